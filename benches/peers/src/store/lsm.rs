//! lsm-tree by itself: its memtable, sealed and flushed by one thread, its leveled strategy on another.

use super::Engine;
use super::beside::{Beside, LOOK};
use super::work::{Load, Rows};
use anyhow::{Context, Result};
use lsm_tree::compaction::Leveled;
use lsm_tree::{AbstractTree, AnyTree, Cache, Config, Guard, SequenceNumberCounter};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Block cache, as ours has it.
const CACHE: u64 = 64 << 20;
/// Runs of level 0 from which writing is slowed down, and by how much; as ours.
const DEBT_FREE: usize = 8;
const PAUSE_PER_DEBT: Duration = Duration::from_micros(500);
const PAUSE_MAX: Duration = Duration::from_millis(10);
/// Memtables that wait for their flush, beyond which writing waits.
const SEALED_MAX: usize = 3;

/// The tree and who works for it.
pub struct Lsm {
    tree: AnyTree,
    sequence: SequenceNumberCounter,
    visible: SequenceNumberCounter,
    memtable: u64,
    beside: Beside,
}

impl Lsm {
    /// Opens a tree with the crate's defaults but for the block cache.
    pub fn open(load: &Load, dir: &Path) -> Result<Lsm> {
        let sequence = SequenceNumberCounter::default();
        let visible = SequenceNumberCounter::default();
        let config = Config::new(dir.join("tree"), sequence.clone(), visible.clone());
        let config = config.use_cache(Arc::new(Cache::with_capacity_bytes(CACHE)));
        let tree = config.open().context("cannot open the tree")?;
        let memtable = load.memtable;
        let mut lsm = Lsm { tree, sequence, visible, memtable, beside: Beside::default() };
        lsm.resume()?;
        Ok(lsm)
    }
}

fn flush(tree: &AnyTree, watermark: u64) -> lsm_tree::Result<bool> {
    if tree.sealed_memtable_count() == 0 {
        return Ok(false);
    }
    let lock = tree.get_flush_lock();
    Ok(tree.flush(&lock, watermark)?.is_some())
}

fn compact(tree: &AnyTree, watermark: u64) -> lsm_tree::Result<bool> {
    let before = tree.current_version().id();
    tree.compact(Arc::new(Leveled::default()), watermark)?;
    Ok(tree.current_version().id() != before)
}

impl Engine for Lsm {
    fn apply(&self, rows: Rows) -> Result<()> {
        let at = self.sequence.next();
        let mut size = 0;
        for (key, value) in rows.iter() {
            (_, size) = self.tree.insert(key, value, at);
        }
        self.visible.fetch_max(at + 1);
        if size >= self.memtable {
            self.tree.rotate_memtable();
        }
        let debt = self.tree.l0_run_count().saturating_sub(DEBT_FREE) as u32;
        if debt > 0 {
            std::thread::sleep((PAUSE_PER_DEBT * debt).min(PAUSE_MAX));
        }
        while self.tree.sealed_memtable_count() > SEALED_MAX {
            self.beside.check()?;
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        self.beside.stop()?;
        self.tree.rotate_memtable();
        let watermark = self.visible.get();
        while flush(&self.tree, watermark)? {}
        while compact(&self.tree, watermark)? {}
        Ok(())
    }

    fn resume(&mut self) -> Result<()> {
        // Nobody reads the past: overwritten entries may go.
        let (tree, visible) = (self.tree.clone(), self.visible.clone());
        self.beside.start("flusher", move || Ok(flush(&tree, visible.get())?))?;
        let (tree, visible) = (self.tree.clone(), self.visible.clone());
        self.beside.start("compactor", move || Ok(compact(&tree, visible.get())?))
    }

    fn get(&self, key: &[u8]) -> Result<Option<usize>> {
        Ok(self.tree.get(key, self.visible.get())?.map(|value| value.len()))
    }

    fn scan(&self) -> Result<u64> {
        let mut keys = 0;
        for item in self.tree.iter(self.visible.get(), None) {
            item.into_inner()?;
            keys += 1;
        }
        Ok(keys)
    }
}
