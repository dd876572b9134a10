//! Ours, with the threads and the pacing that a node gives it: a flusher, a compactor, small sleeps by debt.

use super::Engine;
use super::beside::{Beside, LOOK};
use super::work::{KEY, Load, Rows};
use anyhow::{Result, ensure};
use bytes::Bytes;
use catamaran::kv::lsm::{LsmOptions, LsmTables};
use catamaran::kv::{Direction, Options, StateStore, TableStore, WriteBatch};
use catamaran::types::KeyRange;
use std::path::Path;
use std::time::{Duration, Instant};

/// Unmerged ingestions from which applying is slowed down, and by how much: the driver's figures.
const DEBT_FREE: usize = 8;
const PAUSE_PER_DEBT: Duration = Duration::from_micros(500);
const PAUSE_MAX: Duration = Duration::from_millis(10);
/// Memtables, active and frozen, beyond so many times their size slow it down as well.
const MEMTABLES_MAX: u64 = 4;
/// Compaction has come to its end by then.
const SETTLE_MAX: Duration = Duration::from_secs(600);

/// The store and who works for it.
pub struct Ours {
    store: TableStore,
    memtables_max: u64,
    beside: Beside,
}

impl Ours {
    /// Opens the store as a node does, with its defaults but for the memtable.
    pub fn open(load: &Load, dir: &Path) -> Result<Ours> {
        let tables = LsmTables::open(&dir.join("state"), LsmOptions::default())?;
        let options = Options { memtable_bytes: load.memtable };
        let store = TableStore::open(Box::new(tables), options)?;
        let mut ours =
            Ours { store, memtables_max: load.memtable * MEMTABLES_MAX, beside: Beside::default() };
        ours.resume()?;
        Ok(ours)
    }
}

fn flush(store: &TableStore) -> catamaran::Result<bool> {
    match store.freeze()? {
        Some(flush) => flush.run().map(|_| true),
        None => Ok(false),
    }
}

fn flush_if_full(store: &TableStore) -> catamaran::Result<bool> {
    if store.should_flush() { flush(store) } else { Ok(false) }
}

impl Engine for Ours {
    fn apply(&self, rows: Rows) -> Result<()> {
        let stride = rows.stride as u32;
        let count = (rows.bytes.len() / rows.stride) as u32;
        let mut batch = WriteBatch::with_capacity(count as usize);
        // As the payload of a raft entry: nothing is copied out of it.
        let chunk = batch.add_chunk(Bytes::from(rows.bytes));
        for row in 0..count {
            let (key, end) = (row * stride, (row + 1) * stride);
            let value = key + KEY as u32;
            batch.put_in(chunk, key..value, value..end);
        }
        self.store.write(batch)?;
        let debt = self.store.debt().saturating_sub(DEBT_FREE) as u32;
        if debt > 0 {
            std::thread::sleep((PAUSE_PER_DEBT * debt).min(PAUSE_MAX));
        }
        if self.store.memtable_bytes() > self.memtables_max {
            std::thread::sleep(PAUSE_MAX);
        }
        self.beside.check()
    }

    fn settle(&mut self) -> Result<()> {
        self.beside.stop()?;
        while flush(&self.store)? {}
        // What it would do by itself while nothing is written, and when it would.
        let began = Instant::now();
        while self.store.maintain()? || self.store.stats().compaction_pending {
            ensure!(began.elapsed() < SETTLE_MAX, "compaction does not end");
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<()> {
        let store = self.store.clone();
        self.beside.start("flusher", move || Ok(flush_if_full(&store)?))?;
        let store = self.store.clone();
        self.beside.start("compactor", move || Ok(store.maintain()?))
    }

    fn get(&self, key: &[u8]) -> Result<Option<usize>> {
        Ok(self.store.view()?.get(key)?.map(|value| value.len()))
    }

    fn scan(&self) -> Result<u64> {
        let view = self.store.view()?;
        let mut keys = 0;
        for item in view.scan(&KeyRange::new(Bytes::new(), Bytes::new()), Direction::Forward)? {
            item?;
            keys += 1;
        }
        Ok(keys)
    }
}
