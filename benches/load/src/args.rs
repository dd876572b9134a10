//! The command line, and the [`Plan`] it resolves to once each profile has filled in its defaults.

use crate::keys::Distribution;
use crate::{quantity, settings};
use catamaran::codec::command::{BATCH_BYTES_MAX, BatchBuilder, KEY_BYTES_MAX, VALUE_BYTES_MAX};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use serde_json::{Map, Value};
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  The main figure, verified after reopening the data directories:
    catamaran-load run --profile durable --duration 10s --verify
  The same with JSON for a machine to read (`-` is standard output):
    catamaran-load run --verify --json result.json
  Latency at a fixed rate, measured from the intended start of each request:
    catamaran-load run --rate 200k --duration 30s
  Consensus alone, and the log engine alone:
    catamaran-load run --profile consensus --regions 64 --clients 4096 --batch 1
    catamaran-load run --profile log --groups 1000 --threads 2 --entries 64 --span 64
  The log engine in turn with others (a build with `--features rivals`):
    catamaran-load run --profile log --beside raft-engine,raft-log --duration 2s --repetitions 3
  What runs came to, compared, as text and as a page with plots:
    catamaran-load report before.json after.json --html compare.html
  Against running servers:
    catamaran-load run --connect 127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003 --clients 64

Exit codes: 0 fine; 1 the run failed, verification found a missing or a wrong value, or the result
cannot be written (a file for it is opened before the run); 2 usage, or more than the engine takes.";

const REPORT_EXAMPLES: &str = "\
Examples:
  Two runs, or two commits with their repetitions (told apart by what they ran and on which commit):
    catamaran-load report before.json after.json
    catamaran-load report before-*.json after-*.json --html compare.html
  Sets with names of your own; all files of one name are repetitions:
    catamaran-load report one-loop=a1.json one-loop=a2.json two-loops=b1.json two-loops=b2.json

Exit codes: 0 fine, whatever the comparison says; 1 a file cannot be read or is no result of ours, or the
page cannot be written; 2 usage.";

/// Drives Catamaran with load, measures it, and checks what it acknowledged.
#[derive(Parser, Debug)]
#[command(name = "catamaran-load", version, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run one profile and report.
    #[command(after_help = EXAMPLES)]
    Run(Box<RunArgs>),
    /// Print results of runs as a Markdown table: median and spread of repetitions.
    Table {
        /// Files written by `run --json`.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Compare results of runs: in words here, with plots in one HTML page that needs nothing else.
    ///
    /// Each figure has the median and the spread of its repetitions, and says whether the spreads of two sets overlap: if
    /// they do, the difference may be noise. The first set is what the others are compared with. The page has throughput
    /// by second, latency by percentile, and where writes waited, stage by stage; what a result does not say (an older
    /// one has no stages) is left out.
    #[command(after_help = REPORT_EXAMPLES)]
    Report {
        /// Files written by `run --json`.
        #[arg(required = true, value_name = "[NAME=]FILE")]
        files: Vec<String>,
        /// Where the page goes; what is there is replaced. `-` is standard output, without the words.
        #[arg(long, value_name = "FILE", default_value = "report.html")]
        html: PathBuf,
    },
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: Shell,
    },
}

/// A kind of work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Profile {
    /// Three nodes in one process over loopback TCP, fdatasync, applied to the state store.
    Durable,
    /// In-process transport, memory log, state machine that does nothing.
    Consensus,
    /// The log engine alone.
    Log,
    /// One node, 48 one-replica groups, 16-byte writes, 10,000 clients with one write each.
    Disk,
}

impl Profile {
    /// Its name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Durable => "durable",
            Profile::Consensus => "consensus",
            Profile::Log => "log",
            Profile::Disk => "disk",
        }
    }
}

/// Where applied data lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum State {
    /// In tables on disk.
    Disk,
    /// In memory; the log stays on disk.
    Memory,
}

/// Whether a client's batch may hold keys of several regions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spread {
    /// All keys of a batch lie in one region's range.
    OneRegion,
    /// Each key of a batch is drawn from the whole key space.
    AllRegions,
}

/// Options of `run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// What to run.
    #[arg(long, value_enum, default_value = "durable")]
    pub profile: Profile,
    /// Drive running servers instead of nodes of this process; comma-separated addresses.
    #[arg(long, value_delimiter = ',', value_name = "ADDR,ADDR,..")]
    pub connect: Vec<String>,
    /// Nodes in this process [default: 3; disk: 1].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=9))]
    pub nodes: Option<u64>,
    /// Regions of equal size; with --connect, slices that batches keep to [default: 64; disk: 48].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    pub regions: Option<u64>,
    /// Logical clients, each with one request outstanding [default: 256; disk: 10000].
    #[arg(long, value_parser = quantity::count)]
    pub clients: Option<u64>,
    /// Operations in a request, at most 24 MiB; its keys lie in one region unless --spread [default:
    /// 128; disk: 1].
    #[arg(long, value_parser = quantity::count)]
    pub batch: Option<u64>,
    /// Bytes of a key, at least 16.
    #[arg(long, default_value = "16", value_parser = quantity::size)]
    pub key_size: u64,
    /// Bytes of a value, at most 16 MiB, or of an entry in the log profile [default: 64; disk: 16;
    /// log: 128].
    #[arg(long, value_parser = quantity::size)]
    pub value_size: Option<u64>,
    /// How long to issue requests.
    #[arg(long, default_value = "10s", value_parser = quantity::duration)]
    pub duration: Duration,
    /// Run this long before measuring; what is acknowledged then is verified too.
    #[arg(long, default_value = "0s", value_parser = quantity::duration)]
    pub warmup: Duration,
    /// How keys and regions are chosen.
    #[arg(long, value_enum, default_value = "uniform")]
    pub distribution: Distribution,
    /// Distinct keys, all clients together; each client owns an equal share of every region.
    #[arg(long, default_value = "10M", value_parser = quantity::count)]
    pub keys: u64,
    /// Part of the requests that read instead of writing, 0 to 1. Reads are linearizable and checked.
    #[arg(long, default_value_t = 0.0)]
    pub read_ratio: f64,
    /// Let a request's keys lie in any region.
    #[arg(long)]
    pub spread: bool,
    /// Where applied data lives.
    #[arg(long, value_enum, default_value = "disk")]
    pub state: State,
    /// Operations per second to aim at (open loop: latency counts from the intended start) [default:
    /// as many as the clients can, each waiting for its answer].
    #[arg(long, value_parser = quantity::count)]
    pub rate: Option<u64>,
    /// Seeds keys, values and choices.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Afterwards close and reopen the data directories and read back everything acknowledged; with
    /// --connect, read it back from the servers as they run.
    #[arg(long)]
    pub verify: bool,
    /// Where nodes keep their data; must be empty or absent, and is kept [default: a temporary
    /// directory, removed at the end].
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Write the result as JSON to a file; `-` is standard output, without the table.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Log profile: groups.
    #[arg(long, default_value = "1000", value_parser = quantity::count)]
    pub groups: u64,
    /// Threads that generate load (log profile: that write) [default: 1; log: 2].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=256))]
    pub threads: Option<u64>,
    /// Log profile: entries in a write.
    #[arg(long, default_value = "64", value_parser = quantity::count)]
    pub entries: u64,
    /// Log profile: groups that a write's entries are spread over.
    #[arg(long, default_value = "64", value_parser = quantity::count)]
    pub span: u64,
    /// Log profile: writes outstanding per thread.
    #[arg(long, default_value = "16", value_parser = quantity::count)]
    pub window: u64,
    /// Log profile: other logs to measure beside ours, in turn, with the same work: raft-engine,
    /// raft-engine-raw, raft-engine-recycled, raft-engine-recycled-raw, raft-log (raw: without
    /// compression; recycled: on files written full beforehand). Wants a build with `--features rivals`.
    #[arg(long, value_delimiter = ',', value_name = "LOG,LOG,..")]
    pub beside: Vec<String>,
    /// Log profile with --beside: how often each is measured, for --duration each [default: 3].
    #[arg(long, value_parser = quantity::count)]
    pub repetitions: Option<u64>,
    /// Nodes: how many store loops [default: the node's own choice].
    #[arg(long, value_parser = clap::value_parser!(u64).range(0..=64))]
    pub loops: Option<u64>,
    /// Nodes: how many apply workers [default: the node's own choice].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=64))]
    pub apply_workers: Option<u64>,
    /// Nodes: any other setting of theirs, in JSON's spelling, as `entry_bytes=1`. May be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = settings::assignment)]
    pub set: Vec<(String, Value)>,
    /// How long a request may take.
    #[arg(long, default_value = "10s", value_parser = quantity::duration)]
    pub timeout: Duration,
}

/// What a run does, every default filled in.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What to run.
    pub profile: Profile,
    /// Addresses of running servers; empty: nodes of this process.
    pub connect: Vec<String>,
    /// Nodes of this process.
    pub nodes: u64,
    /// Slices of the key space.
    pub regions: u64,
    /// Logical clients.
    pub clients: u32,
    /// Operations in a request.
    pub batch: usize,
    /// Bytes of a key.
    pub key_size: usize,
    /// Bytes of a value.
    pub value_size: usize,
    /// How long to measure.
    pub duration: Duration,
    /// How long to run before that.
    pub warmup: Duration,
    /// How keys are chosen.
    pub distribution: Distribution,
    /// Distinct keys, all clients together.
    pub keys: u64,
    /// Part of the requests that read.
    pub read_ratio: f64,
    /// Whether a batch keeps to one region.
    pub spread: Spread,
    /// Where applied data lives.
    pub state: State,
    /// Operations per second to aim at.
    pub rate: Option<u64>,
    /// Seeds everything that is drawn.
    pub seed: u64,
    /// Whether to read back at the end.
    pub verify: bool,
    /// Where nodes keep their data.
    pub data_dir: Option<PathBuf>,
    /// Where the JSON goes.
    pub json: Option<PathBuf>,
    /// Log profile: groups.
    pub groups: u64,
    /// Threads that generate load.
    pub threads: usize,
    /// Log profile: entries in a write.
    pub entries: u64,
    /// Log profile: groups of a write.
    pub span: u64,
    /// Log profile: writes outstanding per thread.
    pub window: usize,
    /// Log profile: logs to measure beside ours.
    pub beside: Vec<String>,
    /// How often each of them is measured.
    pub repetitions: Option<u64>,
    /// Store loops of a node.
    pub loops: Option<u64>,
    /// Apply workers of a node.
    pub apply_workers: Option<u64>,
    /// Other settings of a node.
    pub set: Map<String, Value>,
    /// How long a request may take.
    pub timeout: Duration,
}

impl RunArgs {
    /// Fills in the profile's defaults; an error is a usage error in words.
    pub fn plan(self) -> Result<Plan, String> {
        let (nodes, regions, clients, batch, value_size, threads) = match self.profile {
            Profile::Durable | Profile::Consensus => (3, 64, 256, 128, 64, 1),
            Profile::Disk => (1, 48, 10_000, 1, 16, 1),
            Profile::Log => (1, 1, 1, 1, 128, 2),
        };
        let clients = self.clients.unwrap_or(clients);
        let plan = Plan {
            profile: self.profile,
            nodes: if self.connect.is_empty() { self.nodes.unwrap_or(nodes) } else { 0 },
            connect: self.connect,
            regions: self.regions.unwrap_or(regions),
            clients: u32::try_from(clients).map_err(|_| "--clients: too many".to_owned())?,
            batch: self.batch.unwrap_or(batch) as usize,
            key_size: self.key_size as usize,
            value_size: self.value_size.unwrap_or(value_size) as usize,
            duration: self.duration,
            warmup: self.warmup,
            distribution: self.distribution,
            keys: self.keys,
            read_ratio: self.read_ratio,
            spread: if self.spread { Spread::AllRegions } else { Spread::OneRegion },
            state: self.state,
            rate: self.rate,
            seed: self.seed,
            verify: self.verify,
            data_dir: self.data_dir,
            json: self.json,
            groups: self.groups,
            threads: self.threads.unwrap_or(threads) as usize,
            entries: self.entries,
            span: self.span,
            window: self.window as usize,
            beside: self.beside,
            repetitions: self.repetitions,
            loops: self.loops,
            apply_workers: self.apply_workers,
            set: self.set.into_iter().collect(),
            timeout: self.timeout,
        };
        plan.check()?;
        Ok(plan)
    }
}

impl Plan {
    fn check(&self) -> Result<(), String> {
        let least = [
            ("--clients", u64::from(self.clients)),
            ("--batch", self.batch as u64),
            ("--keys", self.keys),
            ("--groups", self.groups),
            ("--entries", self.entries),
            ("--span", self.span),
            ("--window", self.window as u64),
            ("--value-size", self.value_size as u64),
            ("--rate", self.rate.unwrap_or(1)),
            ("--repetitions", self.repetitions.unwrap_or(1)),
        ];
        for (flag, value) in least {
            if value == 0 {
                return Err(format!("{flag} must be at least 1"));
            }
        }
        if self.key_size < 16 {
            return Err(
                "--key-size must be at least 16: eight bytes spread a key over the regions, \
                        eight name it"
                    .into(),
            );
        }
        if self.distribution == Distribution::Pinned && self.spread == Spread::AllRegions {
            return Err(
                "--distribution pinned keeps a client in its region, --spread does not".into()
            );
        }
        if !(0.0..=1.0).contains(&self.read_ratio) {
            return Err("--read-ratio must lie between 0 and 1".into());
        }
        if self.duration.is_zero() {
            return Err("--duration must be more than nothing".into());
        }
        if self.profile == Profile::Log && (self.span > self.groups || self.span > self.entries) {
            return Err("--span must not exceed --groups or --entries".into());
        }
        self.check_beside()?;
        if self.profile == Profile::Consensus && (self.verify || self.read_ratio > 0.0) {
            return Err("the consensus profile applies nothing: there is nothing to read".into());
        }
        if !self.connect.is_empty() && self.profile != Profile::Durable {
            return Err("--connect goes with the durable profile only".into());
        }
        if !self.set.is_empty() && (!self.connect.is_empty() || self.profile == Profile::Log) {
            return Err("--set is for nodes of this process".into());
        }
        settings::check(self.nodes, &self.set).map_err(|error| format!("--set: {error}"))?;
        match self.profile {
            // Its entries are no commands.
            Profile::Log => Ok(()),
            _ => self.check_sizes(),
        }
    }

    /// What cannot be done beside other logs, or not by this build.
    fn check_beside(&self) -> Result<(), String> {
        if self.beside.is_empty() {
            return match self.repetitions {
                Some(_) => Err("--repetitions goes with --beside".into()),
                None => Ok(()),
            };
        }
        if self.profile != Profile::Log {
            return Err("--beside goes with the log profile only".into());
        }
        if self.verify || self.rate.is_some() || !self.warmup.is_zero() {
            return Err("--beside goes without --verify, --rate and --warmup".into());
        }
        if !self.entries.is_multiple_of(self.span) {
            return Err("--beside: --entries must be a multiple of --span".into());
        }
        if self.groups < self.span.saturating_mul(self.threads as u64) {
            return Err("--beside: each of --threads needs --span groups of its own".into());
        }
        #[cfg(feature = "rivals")]
        for name in &self.beside {
            catamaran_rivals::engine::Which::parse(name)
                .map_err(|known| format!("--beside {name}: {known}"))?;
        }
        if cfg!(feature = "rivals") {
            return Ok(());
        }
        Err("--beside: this build has no other logs in it; build it by `cargo build --release -p \
             catamaran-load --features rivals`"
            .into())
    }

    /// What the engine refuses in every request is a mistake in the plan.
    fn check_sizes(&self) -> Result<(), String> {
        let (key, value) = (self.key_size, self.value_size);
        if key > KEY_BYTES_MAX {
            return Err(format!("--key-size {key}: at most {KEY_BYTES_MAX} bytes"));
        }
        if value > VALUE_BYTES_MAX {
            return Err(format!("--value-size {value}: at most {VALUE_BYTES_MAX} bytes"));
        }
        // What a put takes beside its value is the engine's to say.
        let mut one = BatchBuilder::new();
        one.put(&vec![0; key], &[]).map_err(|error| format!("--key-size {key}: {error}"))?;
        let bytes = self.batch.saturating_mul(one.bytes() + value);
        if bytes > BATCH_BYTES_MAX {
            return Err(format!(
                "--batch {} of values of {value} bytes makes requests of {bytes} bytes: at most \
                 {BATCH_BYTES_MAX}",
                self.batch
            ));
        }
        Ok(())
    }
}
