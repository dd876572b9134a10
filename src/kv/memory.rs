//! A state store without a disk, for benchmarks of everything else (`--state memory`) and for tests.
//!
//! It never reports a cut, so the log is never purged and is the only durable truth: open a new
//! [`MemoryStore`], bootstrap it as the first time, and replay the log from its start. Two things follow. The log
//! grows without end. And a region that was restored from a raft snapshot has a log that starts after the
//! snapshot, so it cannot be rebuilt after a restart: it must be sent a snapshot again.

use super::mem::MemTables;
use super::{Cut, Flush, Options, StateStore, Stats, TableStore, View, WriteBatch};
use crate::error::Result;
use crate::types::{KeyRange, RegionState, StoreIdent};
use bytes::Bytes;

/// See the module's head.
#[derive(Clone)]
pub struct MemoryStore(TableStore);

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Result<MemoryStore> {
        Ok(MemoryStore(TableStore::open(Box::new(MemTables::new()), Options::default())?))
    }
}

impl StateStore for MemoryStore {
    fn ident(&self) -> Result<Option<StoreIdent>> {
        self.0.ident()
    }

    fn bootstrap(&self, ident: &StoreIdent, regions: Vec<RegionState>) -> Result<()> {
        self.0.bootstrap(ident, regions)
    }

    fn region_states(&self) -> Vec<RegionState> {
        self.0.region_states()
    }

    fn tombstones(&self) -> Vec<RegionState> {
        self.0.tombstones()
    }

    fn write(&self, batch: WriteBatch) -> Result<()> {
        self.0.write(batch)
    }

    fn view(&self) -> Result<Box<dyn View>> {
        self.0.view()
    }

    fn freeze(&self) -> Result<Option<Box<dyn Flush>>> {
        Ok(None)
    }

    fn restore(
        &self,
        ranges: &[KeyRange],
        items: &mut dyn Iterator<Item = Result<(Bytes, Bytes)>>,
        states: Vec<RegionState>,
    ) -> Result<Cut> {
        // Nothing is ever durable here: the log is kept.
        self.0.restore(ranges, items, states).map(|_| Cut::new())
    }

    fn maintain(&self) -> Result<bool> {
        // Large merges of the memtable; there is never anything to compact.
        self.0.maintain()
    }

    fn should_flush(&self) -> bool {
        false
    }

    fn memtable_bytes(&self) -> u64 {
        // Nothing will ever be flushed: reporting it would stop writes for good.
        0
    }

    fn debt(&self) -> usize {
        0
    }

    fn stats(&self) -> Stats {
        self.0.stats()
    }

    fn flushes(&self) -> u64 {
        self.0.flushes()
    }
}
