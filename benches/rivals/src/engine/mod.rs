//! What is measured: one trait, one adapter for each log.

pub mod disk;
pub mod ours;
#[cfg(feature = "rivals")]
pub mod raft_engine;
#[cfg(feature = "rivals")]
pub mod raft_log;

use crate::work::{Payload, Piece, Work};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A log, and how it is set up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Which {
    /// `catamaran::log`.
    Catamaran,
    /// The same, with runs over 512 bytes compressed.
    CatamaranLz4,
    /// No log at all: the same bytes written to a file written full beforehand, and synced. What the disk
    /// leaves to whoever writes one batch after the other.
    Disk,
    /// raft-engine as it comes: batches over 8 KiB are compressed, files are new.
    RaftEngine,
    /// Without compression.
    RaftEngineRaw,
    /// On files written full beforehand, recycled by purges.
    RaftEngineRecycled,
    /// Both.
    RaftEngineRecycledRaw,
    /// raft-log: a directory and a thread for each group.
    RaftLog,
}

impl Which {
    /// All that this build can measure.
    pub fn all() -> Vec<Which> {
        let mut all = vec![Which::Catamaran, Which::CatamaranLz4, Which::Disk];
        if cfg!(feature = "rivals") {
            all.extend([
                Which::RaftEngine,
                Which::RaftEngineRaw,
                Which::RaftEngineRecycled,
                Which::RaftEngineRecycledRaw,
                Which::RaftLog,
            ]);
        }
        all
    }

    /// Its name in tables and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Which::Catamaran => "catamaran",
            Which::CatamaranLz4 => "catamaran-lz4",
            Which::Disk => "disk",
            Which::RaftEngine => "raft-engine",
            Which::RaftEngineRaw => "raft-engine-raw",
            Which::RaftEngineRecycled => "raft-engine-recycled",
            Which::RaftEngineRecycledRaw => "raft-engine-recycled-raw",
            Which::RaftLog => "raft-log",
        }
    }

    /// Whether it is ours.
    pub fn is_ours(self) -> bool {
        matches!(self, Which::Catamaran | Which::CatamaranLz4)
    }

    /// Whether it is raft-engine, however set up: what the targets are ratios against.
    pub fn is_raft_engine(self) -> bool {
        match self {
            Which::RaftEngine
            | Which::RaftEngineRaw
            | Which::RaftEngineRecycled
            | Which::RaftEngineRecycledRaw => true,
            Which::Catamaran | Which::CatamaranLz4 | Which::Disk | Which::RaftLog => false,
        }
    }

    /// Whether it is measured in a row unless it is asked for by name.
    pub fn suits(self, work: Work) -> bool {
        match self {
            Which::Disk => work.threads == 1 && work.window == 1,
            _ => true,
        }
    }

    /// By name.
    pub fn parse(name: &str) -> Result<Which, String> {
        let known = Which::all();
        known.iter().copied().find(|which| which.name() == name).ok_or_else(|| {
            let names: Vec<&str> = known.iter().map(|which| which.name()).collect();
            format!("this build knows {}", names.join(", "))
        })
    }
}

/// How an engine will be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setup {
    /// Groups, numbered from 1.
    pub groups: u64,
    /// Writes outstanding per thread; 1: each waits for its own.
    pub window: usize,
    /// Whether files are to be small, so that a purge has something to choose from.
    pub files: Files,
}

/// How large an engine's files are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Files {
    /// As the engine has them by default.
    Usual,
    /// 32 MiB, and purged from twice that on: 1 GB is to be a long log.
    Small,
}

/// A write that was handed in.
pub enum Ticket {
    /// It is durable already: the API blocks.
    Done,
    /// Durable with this number.
    Seq(u64),
    /// Durable when all of these have answered.
    Answers(Vec<std::sync::mpsc::Receiver<std::io::Result<()>>>),
}

/// A log under measurement. Calls come from many threads.
pub trait Engine: Send + Sync {
    /// Hands a write in; durable once its ticket is settled.
    fn write(&self, pieces: &[Piece], payload: &mut Payload) -> Result<Ticket>;
    /// Waits until a write is durable.
    fn settle(&self, ticket: Ticket) -> Result<()>;
    /// Takes a write that [`finish`](Self::finish) makes durable: filling a log fast.
    fn fill(&self, pieces: &[Piece], payload: &mut Payload) -> Result<()>;
    /// Makes everything durable.
    fn finish(&self) -> Result<()>;
    /// Drops a group's entries up to `to`.
    fn compact(&self, group: u64, to: u64) -> Result<()>;
    /// Makes files ready, if the engine wants that done in the background; whether it wants more.
    fn prepare(&self) -> Result<bool> {
        Ok(false)
    }
    /// Gives back what is not needed any more.
    fn purge(&self) -> Result<()>;
    /// Reads entries `from..to` of a group; how many bytes of data they have.
    fn read(&self, group: u64, from: u64, to: u64) -> Result<u64>;
    /// The last index of a group, 0 if it has none.
    fn last_index(&self, group: u64) -> u64;
}

/// Opens an engine on a directory, which it makes if it is not there.
pub fn open(which: Which, dir: &Path, setup: Setup) -> Result<Box<dyn Engine>> {
    Ok(match which {
        Which::Catamaran | Which::CatamaranLz4 => Box::new(ours::Ours::open(which, dir, setup)?),
        Which::Disk => Box::new(disk::Bare::open(dir)?),
        #[cfg(feature = "rivals")]
        Which::RaftLog => Box::new(raft_log::PerGroup::open(dir, setup)?),
        #[cfg(feature = "rivals")]
        other => Box::new(raft_engine::Shared::open(other, dir, setup)?),
        #[cfg(not(feature = "rivals"))]
        _ => anyhow::bail!("built without the feature `rivals`"),
    })
}
