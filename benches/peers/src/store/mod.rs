//! The state store alone: one thread that applies batches of random keys, as an apply worker does, with flush and
//! compaction beside it and no write-ahead log anywhere. Then reads.
//!
//! | engine | what |
//! |---|---|
//! | `catamaran` | `kv::TableStore` over `kv::lsm::LsmTables`, opened, flushed, compacted and paced as a node does it |
//! | `lsm-tree` | the crate that our tables are made with, by itself: its own memtable, flushes, leveled compaction |
//! | `rocksdb` | RocksDB without its write-ahead log (feature `rocksdb`) |
//!
//! All have one tree, memtables of the same size, a Bloom filter of ten bits a key, no compression. Each measurement
//! is a process of its own: nobody works in a heap or page cache that another has filled.

mod beside;
pub mod drive;
mod lsm;
mod ours;
#[cfg(feature = "rocksdb")]
mod rocks;
pub mod turns;
pub mod work;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::path::Path;
use work::{Load, Rows};

/// Which engine. See the [module](self).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Which {
    /// Ours.
    Catamaran,
    /// The crate below our tables.
    LsmTree,
    /// RocksDB.
    Rocksdb,
}

impl Which {
    const KNOWN: [Which; 3] = [Which::Catamaran, Which::LsmTree, Which::Rocksdb];

    /// All that this build knows.
    pub fn all() -> Vec<Which> {
        Which::KNOWN.into_iter().filter(|which| which.is_built()).collect()
    }

    fn is_built(self) -> bool {
        self != Which::Rocksdb || cfg!(feature = "rocksdb")
    }

    /// Its name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Which::Catamaran => "catamaran",
            Which::LsmTree => "lsm-tree",
            Which::Rocksdb => "rocksdb",
        }
    }

    /// Reads a name. An error says what would do, or that this build has it not.
    pub fn parse(name: &str) -> Result<Which, String> {
        match Which::KNOWN.into_iter().find(|which| which.name() == name) {
            Some(which) if which.is_built() => Ok(which),
            Some(_) => Err("not in this build: use --features rocksdb".into()),
            None => {
                let names: Vec<&str> = Which::all().into_iter().map(Which::name).collect();
                Err(format!("engines are {}", names.join(", ")))
            }
        }
    }
}

/// A store under load. Flushes and compacts by itself, on threads of its own.
pub trait Engine {
    /// Applies a batch: visible on return. Slows down as the engine means to when it is late.
    fn apply(&self, rows: Rows) -> Result<()>;
    /// Stops working in the background, and does at once what is left to do.
    fn settle(&mut self) -> Result<()>;
    /// Works in the background again.
    fn resume(&mut self) -> Result<()>;
    /// How long the value of a key is, if it is there.
    fn get(&self, key: &[u8]) -> Result<Option<usize>>;
    /// Walks over everything; how many keys there are.
    fn scan(&self) -> Result<u64>;
}

/// Opens an engine in an empty directory.
pub fn open(which: Which, load: &Load, dir: &Path) -> Result<Box<dyn Engine>> {
    match which {
        Which::Catamaran => Ok(Box::new(ours::Ours::open(load, dir)?)),
        Which::LsmTree => Ok(Box::new(lsm::Lsm::open(load, dir)?)),
        #[cfg(feature = "rocksdb")]
        Which::Rocksdb => Ok(Box::new(rocks::Rocks::open(load, dir)?)),
        #[cfg(not(feature = "rocksdb"))]
        Which::Rocksdb => anyhow::bail!("rocksdb is not in this build"),
    }
}
