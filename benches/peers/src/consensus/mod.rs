//! Consensus alone: three replicas of each group in one process, log in memory, in-process network, nothing applied.
//! Clients have one request outstanding each. It is the work of openraft's own benchmark.
//!
//! | peer | what |
//! |---|---|
//! | `catamaran` | nodes as an embedder opens them, memory disk, hub, `NullMachine`; a task for each client |
//! | `catamaran-callbacks` | the same, one thread for all clients: `Client::submit_many` |
//! | `openraft` | as its own benchmark sets it up: 16 threads for the servers, a task for each client |
//! | `openraft-cores` | the same with as many threads for the servers as there are cores |
//! | `openraft-pipelined` | that, with appends sent ahead of their answers (`Raft::stream_append`) |
//! | `openraft-callbacks` | as `openraft-cores`, one thread for all clients: `Raft::client_write_ff` |
//!
//! A peer is open only while it is measured: idle groups of some take processor time from whoever is next.
//! What is written by openraft's clients is empty; ours names a key of 16 bytes, for a key is how a region is found.

mod callbacks;
pub(crate) mod clients;
pub mod idle;
#[cfg(feature = "openraft")]
mod openraft;
mod ours;
pub mod turns;
mod work;

pub use work::{ROWS, Work};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Who is measured, and how he is set up. See the [module](self).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Which {
    /// Ours, a task for each client.
    Catamaran,
    /// Ours, one thread for all clients.
    CatamaranCallbacks,
    /// openraft as its own benchmark sets it up.
    Openraft,
    /// openraft with a thread for each core.
    OpenraftCores,
    /// openraft with appends sent ahead.
    OpenraftPipelined,
    /// openraft, one thread for all clients.
    OpenraftCallbacks,
}

/// Who hands the clients' requests over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hands {
    /// A task for each client.
    Tasks,
    /// One thread for all of them.
    Callbacks,
}

impl Which {
    const KNOWN: [Which; 6] = [
        Which::Catamaran,
        Which::CatamaranCallbacks,
        Which::Openraft,
        Which::OpenraftCores,
        Which::OpenraftPipelined,
        Which::OpenraftCallbacks,
    ];

    /// All that this build knows.
    pub fn all() -> Vec<Which> {
        Which::KNOWN.into_iter().filter(|which| which.is_built()).collect()
    }

    fn is_built(self) -> bool {
        self.is_ours() || cfg!(feature = "openraft")
    }

    /// Whether it is catamaran.
    pub fn is_ours(self) -> bool {
        matches!(self, Which::Catamaran | Which::CatamaranCallbacks)
    }

    /// Its name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Which::Catamaran => "catamaran",
            Which::CatamaranCallbacks => "catamaran-callbacks",
            Which::Openraft => "openraft",
            Which::OpenraftCores => "openraft-cores",
            Which::OpenraftPipelined => "openraft-pipelined",
            Which::OpenraftCallbacks => "openraft-callbacks",
        }
    }

    /// Reads a name. An error says what would do, or that this build has it not.
    pub fn parse(name: &str) -> Result<Which, String> {
        let known = Which::KNOWN.into_iter().find(|which| which.name() == name);
        match known {
            Some(which) if which.is_built() => Ok(which),
            Some(_) => Err("not in this build: use --features openraft".into()),
            None => {
                let names: Vec<&str> = Which::all().into_iter().map(Which::name).collect();
                Err(format!("peers are {}", names.join(", ")))
            }
        }
    }

    /// Whether its idle groups are another matter than those of the others.
    pub fn idles(self) -> bool {
        matches!(self, Which::Catamaran | Which::Openraft)
    }

    /// Who hands the clients' requests over.
    pub fn hands(self) -> Hands {
        match self {
            Which::CatamaranCallbacks | Which::OpenraftCallbacks => Hands::Callbacks,
            _ => Hands::Tasks,
        }
    }
}

/// How long a measurement takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// Driven first, without counting.
    pub warmup: Duration,
    /// Then counted.
    pub took: Duration,
}

/// What a measurement found.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Figures {
    /// Puts acknowledged per second.
    pub puts_per_s: f64,
    /// From handing a request over to its answer, the median; every 16th of each client.
    pub p50_us: f64,
    /// The same, 99th percentile.
    pub p99_us: f64,
    /// Processor time of the process, servers and clients, for a put.
    pub cpu_us_per_put: f64,
    /// Requests that failed and were sent anew.
    pub failed: u64,
}

/// A cluster with its groups, each of which has a leader.
trait Peer {
    /// Has the row's clients write for a while.
    fn run(&mut self, work: Work, span: Span) -> Result<Figures>;
    /// Stops everything.
    fn close(self: Box<Self>) -> Result<()>;
}

fn open(which: Which, groups: usize) -> Result<Box<dyn Peer>> {
    match which {
        Which::Catamaran | Which::CatamaranCallbacks => {
            Ok(Box::new(ours::Ours::open(which.hands(), groups)?))
        }
        #[cfg(feature = "openraft")]
        Which::Openraft
        | Which::OpenraftCores
        | Which::OpenraftPipelined
        | Which::OpenraftCallbacks => {
            Ok(Box::new(openraft::Openraft::open(openraft::Setup::of(which), groups)?))
        }
        #[cfg(not(feature = "openraft"))]
        _ => anyhow::bail!("{} is not in this build", which.name()),
    }
}

/// Opens a peer, measures one row, and closes it again.
pub fn measure(which: Which, work: Work, span: Span) -> Result<Figures> {
    let mut peer = open(which, work.groups)?;
    let figures = peer.run(work, span);
    peer.close()?;
    figures
}
