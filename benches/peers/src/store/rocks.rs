//! RocksDB without its write-ahead log. It flushes, compacts and slows writers down by itself.

use super::Engine;
use super::work::{Load, Rows};
use anyhow::{Context, Result};
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, FlushOptions, IteratorMode, Options,
    WaitForCompactOptions, WriteBatch, WriteOptions,
};
use std::path::Path;

/// Block cache, as ours has it.
const CACHE: usize = 64 << 20;
/// Memtables, active and waiting for their flush.
const MEMTABLES: i32 = 4;

/// The database.
pub struct Rocks {
    db: DB,
    unlogged: WriteOptions,
}

impl Rocks {
    /// Opens a database with RocksDB's defaults, but for what the other engines have too: the size of memtables, the
    /// block cache, the filter, no compression; and a background job for each core.
    pub fn open(load: &Load, dir: &Path) -> Result<Rocks> {
        let mut blocks = BlockBasedOptions::default();
        blocks.set_block_cache(&Cache::new_lru_cache(CACHE));
        blocks.set_bloom_filter(10.0, false);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_compression_type(DBCompressionType::None);
        options.set_write_buffer_size(usize::try_from(load.memtable)?);
        options.set_max_write_buffer_number(MEMTABLES);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        options.set_max_background_jobs(i32::try_from(cores)?.max(2));
        options.set_block_based_table_factory(&blocks);
        let db = DB::open(&options, dir.join("db")).context("cannot open RocksDB")?;
        let mut unlogged = WriteOptions::new();
        unlogged.disable_wal(true);
        Ok(Rocks { db, unlogged })
    }
}

impl Engine for Rocks {
    fn apply(&self, rows: Rows) -> Result<()> {
        let mut batch = WriteBatch::default();
        for (key, value) in rows.iter() {
            batch.put(key, value);
        }
        self.db.write_opt(batch, &self.unlogged)?;
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        let mut flush = FlushOptions::default();
        flush.set_wait(true);
        self.db.flush_opt(&flush)?;
        self.db.wait_for_compact(&WaitForCompactOptions::default())?;
        Ok(())
    }

    fn resume(&mut self) -> Result<()> {
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<usize>> {
        Ok(self.db.get_pinned(key)?.map(|value| value.len()))
    }

    fn scan(&self) -> Result<u64> {
        let mut keys = 0;
        for item in self.db.iterator(IteratorMode::Start) {
            item?;
            keys += 1;
        }
        Ok(keys)
    }
}
