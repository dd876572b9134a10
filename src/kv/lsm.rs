//! Tables on the real disk: the `lsm-tree` crate, of which only bulk ingestion, reads and leveled compaction
//! are used (SHELL: this file uses the file system).
//!
//! What was read in the crate's source (3.1.10) and is relied upon:
//! * An ingestion writes whole tables (each `fsync`ed, and their directory), then a new version file (`fsync`ed,
//!   directory too), then replaces `current` by rename (`fsync`ed, directory too). A crash before the rename shows the
//!   old version; leftover tables are removed at the next open. So it is atomic and durable.
//! * `current` carries a checksum of the version file that the crate does not check at open: [`LsmTables::open`]
//!   does. Blocks of tables carry checksums that are checked on every read from disk.
//! * Newer runs of level 0 shadow older ones by their order; sequence numbers must grow, so the counter is set past
//!   the highest persisted one at open.
//! * A `Version` holds its table files (they are removed when the last holder drops them). A snapshot keeps one,
//!   so compaction may drop every overwritten entry at once, and reads take none of the tree's locks (which are
//!   held over `fsync` when a version is installed). For that a few `doc(hidden)` items are used: pin the version.
//! * An ingestion or a compaction that fails leaves the tables it has written so far where they are. On a full disk
//!   each retry would eat what was freed since the last one, so a failed job is swept up after at once: see
//!   `LsmTables::sweep`.
//!
//! * A compaction filter that fails ends its compaction with nothing changed. (The crate's own signal to stop must not be
//!   used: it installs what was written so far in the place of everything that was to be read.)
//!
//! Level 0 is compacted from `l0_runs` runs on, and from two on when little is written (`lsm/idle.rs`).
//!
//! Not done: limiting a level-0 job to a number of runs (the crate's strategy takes all of level 0 and its trait
//! cannot be implemented outside); callers pace by [`TableDebt::runs`] instead, see `LsmOptions::late_runs`.

mod idle;
#[cfg(test)]
mod tests;
mod trickle;

use self::idle::{Brake, Brakes, Idle, Shape};
use self::trickle::Trickle;
use super::Direction;
use super::tables::{Sink, TableDebt, TableScan, Tables, TablesView, ascending};
use crate::error::{Error, Result};
use crate::types::KeyRange;
use bytes::Bytes;
use fs2::FileExt;
use lsm_tree::compaction::{CompactionStrategy, Leveled, PullDown};
use lsm_tree::config::PartitioningPolicy;
use lsm_tree::table::filter::standard_bloom::Builder as Bloom;
use lsm_tree::{AbstractTree, AnyTree, SeqNo, SequenceNumberCounter, Slice};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Where the crate keeps its tables, beneath the tree's directory; their names are ascending numbers.
const TABLES: &str = "tables";

/// How the tables behave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LsmOptions {
    /// Bytes of uncompressed blocks kept in memory.
    pub block_cache_bytes: u64,
    /// Files kept open.
    pub open_files: usize,
    /// Ingestions in level 0 that make a compaction.
    pub l0_runs: u8,
    /// Target size of one table file, in bytes.
    pub table_bytes: u64,
    /// With this many ingestions in level 0 an ingestion compacts first, so that no job meets many more.
    pub late_runs: usize,
    /// Once nothing was ingested for this long (and longer for a large compaction), fewer than `l0_runs` ingestions are
    /// compacted, too. [`Duration::MAX`]: never.
    pub idle_after: Duration,
}

impl Default for LsmOptions {
    fn default() -> LsmOptions {
        LsmOptions {
            block_cache_bytes: 64 << 20,
            open_files: 512,
            // The more, the less is written again, and the more a read has to look into: over 40 s of the `durable` load 12
            // instead of 8 took a sixth off the processor's time per write.
            l0_runs: 12,
            table_bytes: 64 << 20,
            // Writers are slowed down from fewer on: see `driver::admission`.
            late_runs: 48,
            idle_after: Duration::from_secs(1),
        }
    }
}

impl LsmOptions {
    /// Bytes of the highest level below level 0, and about those of a compaction of level 0.
    fn level_bytes(&self) -> u64 {
        self.table_bytes.saturating_mul(u64::from(self.l0_runs.max(2)))
    }
}

/// The numbers of some tables, which are the names of their files.
type TableIds = BTreeSet<u64>;

/// Tables in a directory.
pub struct LsmTables {
    tree: lsm_tree::Tree,
    visible: SequenceNumberCounter,
    options: LsmOptions,
    path: PathBuf,
    /// Runs of level 0 as of the last job. Asked for often, by threads that must not wait: the crate's own answer takes the
    /// lock that is held while a version goes to the disk.
    runs: AtomicUsize,
    idle: Idle,
    brake: Arc<Brake>,
    /// Ordinary compactions share it, one of the idle takes it alone. Nobody waits for it.
    compacting: RwLock<()>,
    /// Shared by ingestions and compactions: what they are writing is in no version yet. A sweep takes it alone.
    jobs: RwLock<()>,
    /// The tables of each snapshot that may still be alive.
    pinned: Mutex<Vec<Weak<TableIds>>>,
    /// Held for as long as the tables are open.
    _lock: std::fs::File,
}

impl LsmTables {
    /// Opens or creates the tables in `dir`, which must be used for nothing else. Refuses a directory that is
    /// open already ([`Error::Locked`]) and a damaged version file ([`Error::Corruption`]).
    pub fn open(dir: &Path, options: LsmOptions) -> Result<LsmTables> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        let lock_path = dir.join("LOCK");
        let lock = std::fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|e| Error::io("open", &lock_path, e))?;
        lock.try_lock_exclusive().map_err(|_| Error::Locked(dir.to_path_buf()))?;
        let path = dir.join("tree");
        check_version_file(&path)?;
        let sequence = SequenceNumberCounter::default();
        let visible = SequenceNumberCounter::default();
        let brake = Arc::new(Brake::default());
        let brakes = Brakes { brake: Arc::clone(&brake), tables: path.join(TABLES) };
        let mut config = lsm_tree::Config::new(&path, sequence.clone(), visible.clone())
            .with_compaction_filter_factory(Some(Arc::new(brakes)))
            .use_cache(Arc::new(lsm_tree::Cache::with_capacity_bytes(options.block_cache_bytes)))
            .use_descriptor_table(Some(Arc::new(lsm_tree::DescriptorTable::new(
                options.open_files.max(16),
            ))));
        // Below level 0 filters and indexes are cut into blocks that the cache takes one by one. By default those of the upper
        // levels are one block for a whole table, half a megabyte: once the cache does not hold all of them, a get reads,
        // checks and drops that much.
        config.filter_block_partitioning_policy = PartitioningPolicy::new([false, true]);
        config.index_block_partitioning_policy = PartitioningPolicy::new([false, true]);
        let tree = match config.open().map_err(|e| failed("open", &path, e))? {
            AnyTree::Standard(tree) => tree,
            AnyTree::Blob(_) => {
                return Err(Error::malformed("tables", "a key-value separated tree"));
            }
        };
        let next = tree.get_highest_persisted_seqno().map_or(1, |highest| highest + 1);
        sequence.fetch_max(next);
        visible.fetch_max(next);
        let level0 = tree.current_version().l0().size();
        Ok(LsmTables {
            runs: AtomicUsize::new(tree.l0_run_count()),
            idle: Idle::new(options.idle_after, level0, options.level_bytes(), Instant::now()),
            brake,
            compacting: RwLock::default(),
            tree,
            visible,
            options,
            path,
            jobs: RwLock::default(),
            pinned: Mutex::default(),
            _lock: lock,
        })
    }

    /// The crate counts the tables of level 0, not its runs: an ingestion of a large memtable makes several tables.
    fn strategy(&self) -> Arc<Leveled> {
        let version = self.tree.current_version();
        let level = version.l0();
        let threshold = l0_tables(self.options.l0_runs, level.run_count(), level.table_count());
        let strategy = Leveled::default().with_l0_threshold(threshold);
        Arc::new(strategy.with_table_target_size(self.options.table_bytes))
    }

    /// Runs an ingestion or a compaction, and removes what it leaves behind if it fails.
    fn job<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let result = {
            let _shared = self.jobs.read();
            work()
        };
        self.runs.store(self.tree.l0_run_count(), Ordering::Relaxed);
        if result.is_err() {
            // Waits for the other jobs: their tables cannot be told from this one's.
            let _alone = self.jobs.write();
            if let Err(error) = self.sweep() {
                tracing::warn!(%error, "a failed job's tables stay until the next failure or start");
            }
        }
        result
    }

    /// Removes table files that no version names, as opening the tree does: not the one on disk (which is the one
    /// in memory, or nothing is touched), nor one that a snapshot holds. Caller holds `jobs` alone.
    fn sweep(&self) -> Result<()> {
        // Nobody takes a snapshot meanwhile.
        let mut pinned = self.pinned.lock();
        let version = self.tree.current_version();
        let current = self.path.join("current");
        let head = std::fs::read(&current).map_err(|e| Error::io("read", &current, e))?;
        // A failure after the rename: the version on disk is ahead, and names what was just written.
        if head.first_chunk::<8>().map(|id| u64::from_le_bytes(*id)) != Some(version.id()) {
            return Ok(());
        }
        pinned.retain(|ids| ids.strong_count() > 0);
        let held: Vec<Arc<TableIds>> = pinned.iter().filter_map(Weak::upgrade).collect();
        let named: TableIds = version.iter_tables().map(|table| table.id()).collect();
        let dir = self.path.join(TABLES);
        for entry in std::fs::read_dir(&dir).map_err(|e| Error::io("list", &dir, e))? {
            let entry = entry.map_err(|e| Error::io("list", &dir, e))?;
            let id = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok());
            let Some(id) = id else { continue };
            if !named.contains(&id) && !held.iter().any(|ids| ids.contains(&id)) {
                let path = entry.path();
                std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
            }
        }
        Ok(())
    }

    fn error(&self, op: &'static str, error: lsm_tree::Error) -> Error {
        failed(op, &self.path, error)
    }

    /// Runs one compaction. `false` if there was nothing to do, or the brake was put on.
    fn compact(&self, strategy: Arc<dyn CompactionStrategy>) -> Result<bool> {
        let before = self.tree.current_version().id();
        // Snapshots hold their version's files, so nothing needs an overwritten entry to survive in new ones.
        let watermark = self.visible.get();
        let mut stopped = false;
        let done = self.job(|| {
            self.tree.compact(strategy, watermark).map_err(|error| {
                stopped = self.brake.has_stopped(&error);
                self.error("compact", error)
            })
        });
        match done {
            // What it has written is swept up.
            Err(_) if stopped => Ok(false),
            done => done.map(|()| self.tree.current_version().id() != before),
        }
    }

    /// What a compaction of the idle would do, if it may.
    fn shape(&self) -> Option<Shape> {
        let version = self.tree.current_version();
        let runs = version.l0().run_count();
        // An ordinary one's business.
        if runs < idle::MIN_RUNS || runs >= usize::from(self.options.l0_runs) {
            return None;
        }
        let levels: Vec<u64> = version.iter_levels().map(|level| level.size()).collect();
        let shape = Shape::of(runs, &levels, self.options.level_bytes());
        let room = fs2::available_space(&self.path).unwrap_or(0);
        (room / 2 >= shape.cost()).then_some(shape)
    }

    /// Compacts level 0 if little is written and it pays.
    fn compact_idle(&self) -> Result<bool> {
        let Some(_alone) = self.compacting.try_write() else { return Ok(false) };
        // Before the look at level 0: an ingestion that makes it too large from here on is heard.
        self.brake.set_idle(true);
        let due = self.shape().filter(|shape| self.idle.due(*shape, Instant::now()));
        let worked = due.map_or(Ok(false), |shape| {
            self.idle.begins(shape);
            self.compact(Arc::new(PullDown(0, shape.target)))
        });
        self.brake.set_idle(false);
        worked
    }
}

/// So many tables in level 0 are `wanted` runs, if it holds `tables` in `runs` now.
fn l0_tables(wanted: u8, runs: usize, tables: usize) -> u8 {
    let wanted = usize::from(wanted.max(2));
    let tables = (wanted * tables.max(1)).div_ceil(runs.max(1));
    tables.clamp(wanted, usize::from(u8::MAX)) as u8
}

/// Our word for the crate's error.
fn failed(op: &'static str, path: &Path, error: lsm_tree::Error) -> Error {
    match error {
        lsm_tree::Error::Io(source) => Error::io(op, path, source),
        // The crate does not say which file and where in it.
        other => Error::Corruption {
            path: path.to_path_buf(),
            offset: 0,
            detail: format!("{op}: {other:?}"),
        },
    }
}

/// Checks the version file against the checksum in `current`.
fn check_version_file(tree: &Path) -> Result<()> {
    let current = tree.join("current");
    let head = match std::fs::read(&current) {
        Ok(head) => head,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("read", current, e)),
    };
    let damaged = |path: PathBuf, detail: String| Error::Corruption { path, offset: 0, detail };
    // Version id, checksum (xxh3, 128 bits), kind of checksum; little-endian.
    let (Some(id), Some(sum), Some(0)) =
        (head.first_chunk::<8>(), head.get(8..24), head.get(24).copied())
    else {
        return Err(damaged(current, format!("{} bytes, expected 25", head.len())));
    };
    let version = tree.join(format!("v{}", u64::from_le_bytes(*id)));
    let bytes = std::fs::read(&version).map_err(|e| Error::io("read", &version, e))?;
    let mut hasher = lsm_tree::checksum::ChecksummedWriter::new(std::io::sink());
    hasher.write_all(&bytes).map_err(|e| Error::io("checksum", &version, e))?;
    let found = hasher.checksum().into_u128();
    if found.to_le_bytes() != sum {
        return Err(damaged(
            version,
            format!("checksum {found:032x} differs from the one recorded"),
        ));
    }
    Ok(())
}

/// An ingestion under way.
struct LsmSink<'a> {
    ingestion: lsm_tree::AnyIngestion<'a>,
    bytes: u64,
    last: Vec<u8>,
    tables: &'a LsmTables,
    trickle: Trickle,
}

impl LsmSink<'_> {
    /// The crate asserts order; we refuse.
    fn next(&mut self, key: &[u8]) -> Result<()> {
        ascending((!self.last.is_empty()).then_some(&self.last[..]), key)?;
        self.last.clear();
        self.last.extend_from_slice(key);
        Ok(())
    }

    fn wrote(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.trickle.wrote(bytes as u64);
    }
}

impl Sink for LsmSink<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.next(key)?;
        self.wrote(key.len() + value.len());
        let written = self.ingestion.write(Slice::from(key), Slice::from(value));
        written.map_err(|e| self.tables.error("ingest", e))
    }

    fn delete(&mut self, key: &[u8]) -> Result<()> {
        self.next(key)?;
        self.wrote(key.len());
        let written = self.ingestion.write_tombstone(Slice::from(key));
        written.map_err(|e| self.tables.error("ingest", e))
    }
}

impl Tables for LsmTables {
    fn ingest(&self, fill: &mut dyn FnMut(&mut dyn Sink) -> Result<()>) -> Result<()> {
        while self.tree.l0_run_count() >= self.options.late_runs {
            if !self.maintain()? {
                break;
            }
        }
        let bytes = self.job(|| {
            let tree = AnyTree::Standard(self.tree.clone());
            let ingestion = tree.ingestion().map_err(|e| self.error("ingest", e))?;
            let trickle = Trickle::into(&self.path.join(TABLES));
            let last = Vec::new();
            let mut sink = LsmSink { ingestion, bytes: 0, last, tables: self, trickle };
            fill(&mut sink)?;
            sink.ingestion.finish().map_err(|e| self.error("install", e))?;
            Ok(sink.bytes)
        })?;
        self.idle.ingested(bytes, Instant::now());
        if self.runs() >= usize::from(self.options.l0_runs) {
            self.brake.give_way();
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Arc<dyn TablesView>> {
        let mut pinned = self.pinned.lock();
        let (view, ids) = snapshot_of(&self.tree, self.visible.get(), self.path.clone());
        pinned.retain(|ids| ids.strong_count() > 0);
        pinned.push(ids);
        Ok(Arc::new(view))
    }

    fn maintain(&self) -> Result<bool> {
        if self.brake.is_halted() {
            return Ok(false);
        }
        let worked = match self.compacting.try_read() {
            Some(_shared) => self.compact(self.strategy())?,
            None => false,
        };
        Ok(worked || self.compact_idle()?)
    }

    fn set_halted(&self, halted: bool) {
        self.brake.set_halted(halted);
    }

    fn runs(&self) -> usize {
        self.runs.load(Ordering::Relaxed)
    }

    fn debt(&self) -> TableDebt {
        let (runs, bytes) = (self.runs(), self.tree.disk_space());
        let pending = runs >= usize::from(self.options.l0_runs)
            || self.compacting.is_locked()
            || self.shape().is_some_and(|shape| self.idle.pending(shape));
        TableDebt { runs, bytes, pending }
    }
}

type Get = Box<dyn Fn(&[u8]) -> lsm_tree::Result<Option<Slice>> + Send + Sync>;
type Pairs = Box<dyn DoubleEndedIterator<Item = lsm_tree::Result<(Slice, Slice)>> + Send>;
type Range = Box<dyn Fn(&KeyRange) -> Pairs + Send + Sync>;

/// The tree at one instant. Closures, because the crate's version types cannot be named outside of it.
struct LsmView {
    get: Get,
    range: Range,
    path: PathBuf,
}

/// Pins the tree's present tables. Gives their numbers too, which live as long as anything reads from them.
fn snapshot_of(tree: &lsm_tree::Tree, visible: SeqNo, path: PathBuf) -> (LsmView, Weak<TableIds>) {
    // The crate gives the version in two forms; both must be the same one.
    let (version, pinned) = loop {
        let version = tree.current_version();
        let pinned = tree.get_version_history_lock().latest_version();
        if tree.current_version().id() == version.id() {
            break (version, pinned);
        }
    };
    let ids: Arc<TableIds> = Arc::new(version.iter_tables().map(|table| table.id()).collect());
    let held = Arc::downgrade(&ids);
    let get = move |key: &[u8]| {
        let hash = Bloom::get_hash(key);
        let levels = version.iter_levels().flat_map(|level| level.iter());
        for table in levels.filter_map(|run| run.get_for_key(key)) {
            if let Some(entry) = table.get(key, visible, hash)? {
                return Ok((!entry.is_tombstone()).then_some(entry.value));
            }
        }
        Ok(None)
    };
    let range = move |range: &KeyRange| -> Pairs {
        let bounds = range.start.to_vec()..range.end.to_vec();
        let entries = lsm_tree::Tree::create_internal_range(pinned.clone(), &bounds, visible, None);
        // The iterator may outlive the snapshot.
        let ids = Arc::clone(&ids);
        Box::new(entries.map(move |entry| {
            let _held = &ids;
            entry.map(|entry| (entry.key.user_key, entry.value))
        }))
    };
    (LsmView { get: Box::new(get), range: Box::new(range), path }, held)
}

impl TablesView for LsmView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let found = (self.get)(key).map_err(|e| failed("read", &self.path, e))?;
        Ok(found.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&self, range: &KeyRange, direction: Direction) -> TableScan {
        if range.is_empty() {
            return Box::new(std::iter::empty());
        }
        let pairs = (self.range)(range);
        let path = self.path.clone();
        let ours = move |item: lsm_tree::Result<(Slice, Slice)>| match item {
            Ok((key, value)) => Ok((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value))),
            Err(error) => Err(failed("scan", &path, error)),
        };
        match direction {
            Direction::Forward => Box::new(pairs.map(ours)),
            Direction::Reverse => Box::new(pairs.rev().map(ours)),
        }
    }
}
