//! lsm-tree by itself: its memtable, sealed and flushed by one thread, its leveled strategy on another.

use super::Engine;
use super::work::{Load, Rows};
use anyhow::{Context, Result, anyhow};
use lsm_tree::compaction::Leveled;
use lsm_tree::{AbstractTree, AnyTree, Cache, Config, Guard, SequenceNumberCounter};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Block cache, as ours has it.
const CACHE: u64 = 64 << 20;
/// Runs of level 0 from which writing is slowed down, and by how much; as ours.
const DEBT_FREE: usize = 8;
const PAUSE_PER_DEBT: Duration = Duration::from_micros(500);
const PAUSE_MAX: Duration = Duration::from_millis(10);
/// Memtables that wait for their flush, beyond which writing waits.
const SEALED_MAX: usize = 3;
/// How often an idle thread looks.
const LOOK: Duration = Duration::from_millis(2);

/// The tree and who works for it.
pub struct Lsm {
    tree: AnyTree,
    sequence: SequenceNumberCounter,
    visible: SequenceNumberCounter,
    memtable: u64,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<lsm_tree::Result<()>>>,
}

impl Lsm {
    /// Opens a tree with the crate's defaults but for the block cache.
    pub fn open(load: &Load, dir: &Path) -> Result<Lsm> {
        let sequence = SequenceNumberCounter::default();
        let visible = SequenceNumberCounter::default();
        let config = Config::new(dir.join("tree"), sequence.clone(), visible.clone());
        let config = config.use_cache(Arc::new(Cache::with_capacity_bytes(CACHE)));
        let tree = config.open().context("cannot open the tree")?;
        let ended = Arc::default();
        let memtable = load.memtable;
        let mut lsm = Lsm { tree, sequence, visible, memtable, ended, threads: Vec::new() };
        lsm.resume()?;
        Ok(lsm)
    }

    fn start(
        &mut self,
        name: &str,
        step: impl Fn(&AnyTree, u64) -> lsm_tree::Result<bool> + Send + 'static,
    ) -> Result<()> {
        let (tree, visible) = (self.tree.clone(), self.visible.clone());
        let ended = Arc::clone(&self.ended);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                // Nobody reads the past: overwritten entries may go.
                if !step(&tree, visible.get())? {
                    std::thread::sleep(LOOK);
                }
            }
            Ok(())
        });
        self.threads.push(thread.context("cannot start a thread")?);
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(result) => result?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(())
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
            // A thread that failed has ended; writers would wait for it for ever.
            if self.threads.iter().any(JoinHandle::is_finished) {
                return Err(anyhow!("flush or compaction failed"));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        self.stop()?;
        self.tree.rotate_memtable();
        let watermark = self.visible.get();
        while flush(&self.tree, watermark)? {}
        while compact(&self.tree, watermark)? {}
        Ok(())
    }

    fn resume(&mut self) -> Result<()> {
        self.ended.store(false, Ordering::Relaxed);
        self.start("flusher", flush)?;
        self.start("compactor", compact)
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

impl Drop for Lsm {
    fn drop(&mut self) {
        // After an error: the threads go, what they say was said before.
        let _ = self.stop();
    }
}
