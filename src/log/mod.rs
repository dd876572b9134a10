//! The shared log engine: one append-only log for the entries and state records of thousands of raft
//! groups. Usable alone; it knows nothing of raft but indexes and terms.
//!
//! ```
//! use catamaran::env::os::OsDisk;
//! use catamaran::log::{Entry, Log, LogBatch, Options};
//! use std::sync::Arc;
//!
//! # fn main() -> catamaran::Result<()> {
//! # let dir = tempfile::tempdir().unwrap();
//! # let dir = dir.path().join("log");
//! let options = Options { segment_bytes: 1 << 20, ..Options::default() };
//! let (log, recovery) = Log::open(Arc::new(OsDisk), &dir, options.clone())?;
//! assert!(recovery.quarantined.is_empty());
//!
//! let mut batch = LogBatch::new();
//! batch.append(7, [Entry { index: 1, term: 1, kind: 0, data: "hello".into() }]);
//! batch.set_state(7, "voted for 2");
//! batch.append(9, [Entry { index: 1, term: 1, kind: 0, data: "world".into() }]);
//! let seq = log.submit(batch)?; // readable at once
//! log.wait(seq)?; // durable, both groups together
//! log.barrier()?;
//! drop(log);
//!
//! let (log, _) = Log::open(Arc::new(OsDisk), &dir, options)?;
//! assert_eq!(&log.entries(9, 1, 2, u64::MAX)?[0].data[..], b"world");
//! assert_eq!(log.state(7).unwrap(), "voted for 2");
//! # Ok(())
//! # }
//! ```
//!
//! # Protocol
//! **Write.** [`Log::submit`] encodes and checksums on the caller's side, then, under one short lock,
//! numbers the batch, makes it visible in the index and queues it. [`Log::write_round`] takes all that
//! waits, writes it as one block-aligned group, syncs and publishes the durable number. Nobody else
//! waits for the disk. [`Log::wait`] is group commit for those who have no writer thread.
//!
//! **Flights.** A few groups may be in flight at a time, written and synced by as many threads; where
//! the system can, they bypass its page cache. They are published in the order in which they took
//! off, each after its own sync: a group that the disk completed early waits for those before it, and
//! after a failure nothing behind it is acknowledged. A group states what was published when it took
//! off, so that one which survives a crash without its predecessors proves nothing about them: it is
//! cut with them. A segment is closed only when everything in it is published.
//!
//! **Torn or rotten.** Each record states what was durable when it was written, and nothing is
//! acknowledged before everything up to it was synced. So for a record that does not read: if any readable record,
//! or the header of a later segment, states a durable number at or above it, it was acknowledged and
//! is rot; else it is a torn tail and is cut. Rot in the body of an operation fences off that group
//! (if the damaged bytes are still needed); rot in a record's header or directory hides *which* groups
//! it spoke of, and the log refuses to open. The last groups in flight before an end without
//! [`Log::barrier`] are stated by nobody: damage to them counts as torn.
//!
//! **Takeover.** After a crash the page cache may hold what the disk lost, so nothing that was found
//! is trusted to be durable. Opening copies the unstated tail (or, if the last segment is short, all
//! of it) into a new segment, syncs it under a spare's name, renames it, syncs the directory. Only a
//! file that bears a segment's name counts, so the copy takes over in one step: its `base_seq` voids
//! what earlier segments hold from there on. Generations are unique in a directory (a spare's header
//! is synced before its first record), so bytes of a file's former life never read as live.
//!
//! **Purge.** Segments go from the oldest on. The argument that nothing comes back or is lost: let `F`
//! be the first record that stays. Before any file goes, a checkpoint record restates for every group
//! the state and truncated position whose latest statement lies below `F`, holds or follows copies of
//! every live run below `F`, and ends with `Floor(F)`; it is synced. Replay then reads: everything
//! learnt below `F` is dropped at `Floor(F)`, everything needed stands at or above `F`. Hence any
//! subset of the doomed files may survive a crash. A clear, reset or overwrite kills only what is
//! older than itself, and older files never outlive newer ones *unvoided*: a cleared group's entries
//! lie below its clear, so if the clear is below `F`, so are they, and both are void. A hole in the
//! sequence that no floor covers means a segment is missing, and the log refuses to open.
//!
//! **Full disk.** One spare file is held in reserve, for purge alone. When no segment can be made,
//! a round fails with `DiskFull`, what was submitted stays queued and readable, and a later round
//! tries again. A failed sync, or a failed write of another kind, is final.
//!
//! # Locks
//! In this order: purge, writer, queue, flights, shard, segments, pool. Readers take one shard, then segments.
//!
//! # Not done, and why
//! - Sealed segments carry no footer index yet; opening reads every live segment. The version field
//!   and unused directory tags leave room for it.
//! - No compression: at the rates measured (140 KB a write, 100 us) packing costs more than the disk
//!   saves; `benches/rivals` compares with an engine that does.
//! - The writer's copy of a batch into its group stays: direct writes want one aligned stretch of memory,
//!   and the copy is a twentieth of such a write.
//! - Rot in a record's header or directory refuses the whole log; naming the groups it hid needs a
//!   second copy of the directory, which costs a tenth of the bytes of small entries.

mod batch;
mod flight;
mod format;
mod index;
pub mod inspect;
mod purge;
mod read;
mod recover;
mod scan;
mod segment;
mod write;

pub use batch::LogBatch;
pub use format::{BLOCK, BadSum, SegmentHeader, VERSION};
pub use index::Damage;
pub use purge::Purged;
pub use recover::{Quarantine, Recovery, TornTail};
pub use write::Round;

use crate::env::{DirLock, Disk};
use bytes::Bytes;
use flight::Air;
use format::RECORD_HEADER;
use index::Index;
use parking_lot::{Condvar, Mutex, RwLock};
use segment::{Pool, SegmentTable};
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};
use write::{Queue, Waiters, Writer};

#[doc = include_str!("format.md")]
pub mod format_page {}

/// A group's name in the log. The log gives it no meaning.
pub type GroupId = u64;

/// A slot of a group's log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Counted from 1, without gaps.
    pub index: u64,
    /// The term it was proposed in.
    pub term: u64,
    /// Opaque to the log.
    pub kind: u8,
    /// Opaque to the log.
    pub data: Bytes,
}

/// The number of a batch: batches become durable in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Seq(pub u64);

/// How a log is to behave. None of it is stored: a directory may be opened with other options later.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Size of a segment file; whole blocks of 4 KiB, at most 2 GiB.
    pub segment_bytes: u64,
    /// Bound of the entry cache. What is not yet durable and applied stays, whatever the bound.
    pub cache_bytes: usize,
    /// Bound of what was submitted and is not yet durable: a batch is taken while less than this waits. See [`Log::is_crowded`] for when to hold back.
    pub max_pending_bytes: usize,
    /// Spare files to have ready, at least 1 (the reserve for a full disk); up to twice as many are
    /// kept when segments come back.
    pub spare_segments: usize,
    /// Purge moves the live rest of the oldest segment when it is at most this many percent of it.
    pub rewrite_percent: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            segment_bytes: 64 << 20,
            cache_bytes: 128 << 20,
            max_pending_bytes: 1 << 30,
            spare_segments: 2,
            rewrite_percent: 50,
        }
    }
}

/// The log. Clones share it; the last one to go releases the directory.
///
/// - What [`durable`](Log::durable) covers survives any crash.
/// - Batches become durable in order, each whole.
/// - After a failed sync nothing becomes durable any more.
#[derive(Clone, Debug)]
pub struct Log {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    index: Index,
    queue: Mutex<Queue>,
    /// Submitted and not yet durable. Grows under the queue's lock only.
    pending_bytes: AtomicUsize,
    work: Condvar,
    writer: Mutex<Writer>,
    air: Air,
    waiters: Waiters,
    segments: RwLock<SegmentTable>,
    pool: Mutex<Pool>,
    purging: Mutex<()>,
    durable: AtomicU64,
    /// What failed for good, once something has.
    poisoned: OnceLock<String>,
    cache_bytes: AtomicUsize,
    counters: Counters,
    _lock: Box<dyn DirLock>,
}

#[derive(Debug, Default)]
struct Counters {
    fsyncs: AtomicU64,
    writes: AtomicU64,
    bytes_written: AtomicU64,
    batches: AtomicU64,
    entries: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    disk_reads: AtomicU64,
    disk_read_bytes: AtomicU64,
}

/// Figures since the log was opened, and its size now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Syncs of segment files.
    pub fsyncs: u64,
    /// Writes of groups.
    pub writes: u64,
    /// Bytes written, padding included.
    pub bytes_written: u64,
    /// Batches submitted.
    pub batches: u64,
    /// Entries submitted.
    pub entries: u64,
    /// Bytes of runs that some group needs.
    pub live_bytes: u64,
    /// Bytes of segments and spares on the disk.
    pub disk_bytes: u64,
    /// Segments, the active one included.
    pub segments: u64,
    /// Spare files.
    pub spares: u64,
    /// Groups known.
    pub groups: u64,
    /// What the cache weighs.
    pub cache_bytes: u64,
    /// Calls of `entries` that the cache answered alone.
    pub cache_hits: u64,
    /// Calls of `entries` that needed the disk.
    pub cache_misses: u64,
    /// Reads of runs from the disk, after opening.
    pub disk_reads: u64,
    /// Bytes of them.
    pub disk_read_bytes: u64,
    /// Submitted, not yet durable.
    pub pending_bytes: u64,
}

impl Log {
    /// Figures now. Cheap enough for every second, not for every batch.
    pub fn stats(&self) -> Stats {
        let shared = &*self.shared;
        let counters = &shared.counters;
        let mut stats = Stats {
            fsyncs: counters.fsyncs.load(Relaxed),
            writes: counters.writes.load(Relaxed),
            bytes_written: counters.bytes_written.load(Relaxed),
            batches: counters.batches.load(Relaxed),
            entries: counters.entries.load(Relaxed),
            groups: shared.index.len() as u64,
            cache_bytes: shared.cache_bytes.load(Relaxed) as u64,
            cache_hits: counters.hits.load(Relaxed),
            cache_misses: counters.misses.load(Relaxed),
            disk_reads: counters.disk_reads.load(Relaxed),
            disk_read_bytes: counters.disk_read_bytes.load(Relaxed),
            pending_bytes: shared.pending_bytes.load(Relaxed) as u64,
            ..Stats::default()
        };
        {
            let segments = shared.segments.read();
            stats.segments = segments.by_base.len() as u64;
            stats.live_bytes = segments.by_base.values().map(|s| s.live).sum();
            stats.disk_bytes = segments.by_base.values().map(|s| s.size).sum();
        }
        let pool = shared.pool.lock();
        stats.spares = pool.len() as u64;
        stats.disk_bytes += pool.bytes();
        stats
    }

    /// Makes one spare file, if the pool is not full; tells whether another is wanted. Meant for a
    /// background thread: a round that finds no spare has to make one itself, which takes as long as
    /// writing a whole segment. Waits for no writer and holds none up.
    pub fn prepare(&self) -> crate::Result<bool> {
        let shared = &*self.shared;
        let path = {
            let mut pool = shared.pool.lock();
            if !pool.wants() {
                return Ok(false);
            }
            pool.next_path()
        };
        let size = shared.options.segment_bytes;
        let spare = segment::make_spare(shared.disk.as_ref(), &shared.dir, path, size)?;
        let mut pool = shared.pool.lock();
        pool.put(spare);
        Ok(pool.wants())
    }
}
