//! The shared log engine: one append-only log for the entries and state records of thousands of raft
//! groups. Usable alone; it knows nothing of raft but indexes and terms ([`raft_rs`] shows it to raft-rs).
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
//! (if the damaged bytes are still needed). Rot in a record's header or directory hides which groups it
//! spoke of; but each write group repeats, in other blocks and in the very write that states earlier
//! groups durable, their headers and the names of their groups (their echoes). So a
//! header is made good from the echo (and reported), and a lost directory fences off its own groups: all
//! of them, for what it said of each is gone, until they are reset or cleared or a floor passes. The
//! damaged record is evidence: its segment is neither purged nor summed up in a footer. The log
//! refuses to open only where nobody can tell whose the rot was: when the echo is gone as well, or
//! both copies of a segment's header, or a whole segment; or where what cannot be *read* may be the end of what was
//! acknowledged. The last groups in flight before an end without
//! [`Log::barrier`] are stated and echoed by nobody: damage to them counts as torn, and cannot be told from it
//! by anyone who has only the disk. What opening copies brings its echo along.
//!
//! **Unreadable.** A sector that the disk fails to read (EIO, tried again in pieces down to the sector) is damage of what
//! lies there: of the group whose bytes they are, of a footer that the records stand in for, of nobody. Sealing gives
//! such a segment up, purge stops at it, neither ends the log. It is held against a group in memory only, and nothing is
//! cut for it: once the disk reads again, all is there. Errors that speak of the process, or of a device that
//! answers nothing, stay errors; those of writes and syncs are final.
//!
//! **Takeover.** After a crash the page cache may hold what the disk lost, so nothing that was found
//! is trusted to be durable, names neither: a process may have been killed before it synced them, so opening
//! syncs the directory before it builds on what it lists. Opening copies the unstated tail (or, if the last segment is short, all
//! of it) into a new segment, syncs it under a spare's name, renames it, syncs the directory. Only a
//! file that bears a segment's name counts, so the copy takes over in one step: its `base_seq` voids
//! what earlier segments hold from there on. Generations are unique in a directory (a spare's header
//! is synced before its first record), so bytes of a file's former life never read as live.
//!
//! **Footers.** A full segment gets an index of its records, written behind them in the background
//! ([`Log::prepare`], [`Log::purge`]), never on the path of a write; the newest few only if half of them
//! lives, for what dies soon is purged before anybody could need it. Opening reads footers and only the last
//! segment's records (and those of segments that have no footer yet). The argument: a footer is made of the
//! writer's notes, of records whose flights were written, synced and published, or, where there are no notes (a
//! segment that opening found), of records that were read back and found whole; it is written only after the
//! next segment has its name durably, so nothing will be appended before it and no acknowledged block is touched; its body
//! is durable before the trailer that points to it is written; the trailer names generation, base and
//! the next segment's base, so that a former life's footer, or one that counts records which a
//! takeover has voided since, is not believed. A torn footer is none: the records are read. A segment
//! in which opening found damage gets none, for it is the reading that keeps the groups fenced off. Rot that
//! befalls a segment while its log runs is not looked for: with or without a footer, what a footer
//! stands for is checked when it is read (or purged): bodies by their checksums, sections by theirs; a
//! bad section is made good from the records. Notes are directories and states: less than half of what the
//! index holds of the same records, of a few segments only, and they go when the footer is there. Lazily loaded
//! per group is what each segment has of it: the index keeps one packed run (of up to 128 records' runs) for
//! that, and reads the section when its entries are asked for.
//!
//! **Opening** reads the footers of neighbouring segments beside each other where the disk can
//! ([`Disk::run`]), and the last segment with them; it takes them together in one walk over the groups,
//! each of which belongs to one job alone. So what comes out depends on no timing.
//!
//! **Compression.** Above [`Options::compress_above`] bytes a run is stored as an LZ4 block, made on the
//! caller's side. Checksums, footers, echoes and sizes are of what is stored; only who looks at entries
//! unpacks: readers, the inspector, and purge when it puts runs together (it moves as compressed what came
//! so). What a run says of its size is believed up to what its block can come to.
//!
//! **Purge.** Segments go from the oldest on: at once if nothing in them lives, else once the log holds
//! 1.75 times what lives and their live rest (the tails of laggards, states, positions) is a third of them or less, and
//! did not shrink much since the call before (what is dying would be moved for nothing); it is moved forward, neighbouring
//! small runs put together, a segment's worth a call at most (but the oldest segment whole, if a large batch made its file grow:
//! where there is no room for a file as long as that, purge is refused and nothing begun). A move is a
//! record like any other (`rewrite`): copied and submitted with what still lives under the submit lock,
//! durable before the index leads readers to it, and replayed as the same entries at another place, so
//! a crash before, between or after the moves costs nothing but space. Submitters are held up for one record of it
//! at a time, of some hundred groups or a quarter of a MiB; nobody waits while purge looks at all groups. It names one group's entries each
//! and can do nothing to another's. The argument that nothing comes back or is lost: let `F`
//! be the first record that stays. Before any file goes, a checkpoint, of as many records as it takes, restates for every group
//! the state and truncated position whose latest statement lies below `F`, follows copies of
//! every live run below `F`, and ends with `Floor(F)`; all of them are synced. Replay then reads: everything
//! learnt below `F` is dropped at `Floor(F)`, everything needed stands at or above `F`. The doomed
//! files go from the oldest on, each durably before the next, and any of the newest may survive a crash. A clear, reset or overwrite kills only what is
//! older than itself, and older files never outlive newer ones *unvoided*: a cleared group's entries
//! lie below its clear, so if the clear is below `F`, so are they, and both are void. A hole in the
//! sequence that no floor covers means a segment is missing, and the log refuses to open.
//!
//! **Full disk.** One spare file is held in reserve, for purge alone. When no segment can be made,
//! a round fails with `DiskFull`, what was submitted stays queued and readable, and a later round
//! tries again. Purge begins nothing that the room it has (the rest of the active segment, the spares) cannot
//! hold, what waits before it included; it moves what fits if that frees more, keeps writers from the
//! room meanwhile, and queues nothing while records of an earlier call wait. If what waits before it is too much,
//! what it says goes to the disk in one of the first batches that wait (the berth): see `ahead`. Opening takes the reserve, but copies
//! the last segment whole then, so that its file is the next reserve; where there is none (a purge
//! was cut off), it makes do with a shorter file, and where there is no room at all, with the room that the last segment
//! does not use. A footer that finds no room is tried again when there may be some. A failed sync, or a failed write of another kind, is
//! final, whoever asked for it: the writer, purge, or who keeps spares ready.
//!
//! # Locks
//! In this order: purge, writer, queue, flights, rotten, shard, segments, pool, boarding. Readers take one shard, then segments.
//! Nothing is taken under `boarding` (of the waiters); `rotten` is held with one shard at a time.
//!
//! # Not done, and why
//! - Records are replayed one segment after the other: that is the last segment, and those that a crash found
//!   without their footer.
//! - Directories, state records and footers are not compressed: they are small, or read at every opening.
//! - Opening does not check the bodies in segments with a footer, which would mean reading everything:
//!   rot there is met by the reader, by purge and by `inspect`.
//! - Runs of different groups are not compressed together, though a batch of many small ones would gain by it:
//!   who reads one group would unpack all.
//! - The writer's copy of a batch into its group stays: direct writes want one aligned stretch of memory.
//! - The echo names groups, it does not repeat directories: a second copy would save the groups that naming
//!   can only fence off, for several times the bytes.

mod ahead;
mod batch;
mod choose;
mod copy;
mod echo;
mod flight;
mod footer;
mod format;
mod groups;
mod index;
pub mod inspect;
mod lz4;
mod notes;
mod purge;
mod queue;
pub mod raft_rs;
mod read;
mod recover;
mod scan;
mod seal;
mod sealed;
mod segment;
mod tail;
mod unreadable;
mod write;

pub use batch::LogBatch;
pub use format::{BLOCK, BadSum, OLDEST_VERSION, SegmentHeader, VERSION};
pub use index::Damage;
pub use purge::Purged;
pub use recover::{Quarantine, Recovery, TornTail};
pub use write::Round;

use crate::env::{DirLock, Disk};
use bytes::Bytes;
use flight::Air;
use groups::Index;
use parking_lot::{Condvar, Mutex, RwLock};
use queue::Queue;
use segment::{Pool, SegmentTable};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};
use write::{Waiters, Writer};

#[doc = include_str!("format.md")]
pub mod format_page {}
#[doc = include_str!("safety.md")]
pub mod safety_page {}
#[doc = include_str!("tuning.md")]
pub mod tuning_page {}
#[doc = include_str!("comparison.md")]
pub mod comparison_page {}

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
    /// Bound of what was submitted and is not yet durable, at least 1: a batch is taken while less than this waits. See [`Log::is_crowded`] for when to hold back.
    pub max_pending_bytes: usize,
    /// Spare files to have ready, at least 1 (the reserve for a full disk) and at most 1024, each as large as a
    /// segment; up to twice as many are kept when segments come back.
    pub spare_segments: usize,
    /// Purge moves the live rest of the oldest segments when it is at most this many percent of what they
    /// hold, at most 100. More frees space sooner and writes more (what moves may be about to die anyway).
    pub rewrite_percent: u64,
    /// Entries of one group in one batch that take more bytes than this are compressed together by LZ4, if
    /// that saves an eighth. By the caller of [`Log::submit`], before it takes any lock. `None`, the default:
    /// nothing is. What is compressed already is read whatever this says.
    ///
    /// Off by default because it trades what a log of commands rarely lacks, disk bandwidth, for what it has
    /// to share with its embedder, processor time: a batch is small and waits for a sync, not for its bytes;
    /// who reads one entry has to unpack all that were appended with it; and values that are large enough
    /// to matter are often compressed by their owner. Worth a try (with 4 to 8 KiB, below which little is
    /// found to save) where batches are large and verbose, or the disk is slow or small.
    pub compress_above: Option<usize>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            segment_bytes: 64 << 20,
            cache_bytes: 128 << 20,
            max_pending_bytes: 1 << 30,
            spare_segments: 2,
            rewrite_percent: 33,
            compress_above: None,
        }
    }
}

/// More spare files than this nobody means: already so many of the smallest hold 8 MiB, of the usual ones 64 GiB.
const SPARE_SEGMENTS_MAX: usize = 1024;

impl Options {
    /// Whether a log would open with these: [`InvalidArgument`](crate::Error::InvalidArgument) names the
    /// field, what it holds and what it may hold.
    pub fn validate(&self) -> crate::Result<()> {
        self.check()?;
        let what = if self.spare_segments == 0 {
            "spare_segments 0: at least 1".to_owned()
        } else if self.spare_segments > SPARE_SEGMENTS_MAX {
            format!("spare_segments {}: at most {SPARE_SEGMENTS_MAX}", self.spare_segments)
        } else if self.max_pending_bytes == 0 {
            "max_pending_bytes 0: at least 1, or no batch would ever be taken".to_owned()
        } else if self.rewrite_percent > 100 {
            format!("rewrite_percent {}: at most 100", self.rewrite_percent)
        } else {
            return Ok(());
        };
        Err(crate::Error::InvalidArgument(what))
    }

    /// Refuses options that cannot work.
    fn check(&self) -> crate::Result<()> {
        let block = format::BLOCK as u64;
        if self.segment_bytes < 2 * block
            || !self.segment_bytes.is_multiple_of(block)
            || self.segment_bytes > 1 << 31
        {
            let what =
                format!("segment_bytes {}: 8 KiB to 2 GiB, whole blocks", self.segment_bytes);
            return Err(crate::Error::InvalidArgument(what));
        }
        Ok(())
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
    purging: Mutex<purge::Watch>,
    durable: AtomicU64,
    /// Live runs that purge could not read: the record, and whose it is.
    rotten: Mutex<BTreeMap<u64, GroupId>>,
    /// What failed for good, once something has.
    poisoned: OnceLock<String>,
    cache_bytes: AtomicUsize,
    /// Whether a new segment found no room, the last time that one was wanted.
    full: AtomicBool,
    /// How often there may have been new room on the disk: see `seal`.
    room: AtomicU64,
    counters: Counters,
    _lock: Box<dyn DirLock>,
}

#[derive(Debug, Default)]
struct Counters {
    fsyncs: AtomicU64,
    writes: AtomicU64,
    bytes_written: AtomicU64,
    footer_bytes: AtomicU64,
    entry_bytes: AtomicU64,
    raw_entry_bytes: AtomicU64,
    moved_bytes: AtomicU64,
    purged_segments: AtomicU64,
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
    /// Bytes of footers written.
    pub footer_bytes: u64,
    /// Bytes of the runs in submitted batches, as they are stored: compressed, where they are.
    pub entry_bytes: u64,
    /// The same before compression.
    pub raw_entry_bytes: u64,
    /// Bytes of runs that purge moved forward.
    pub moved_bytes: u64,
    /// Segments that purge gave back.
    pub purged_segments: u64,
    /// Bytes of segments that were written: `disk_bytes` without spares and free room. (Of a segment from before the log was opened
    /// it is the whole file.)
    pub used_bytes: u64,
    /// Batches submitted.
    pub batches: u64,
    /// Entries submitted.
    pub entries: u64,
    /// Bytes of runs, states and positions that some group needs.
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

impl Stats {
    /// Bytes written to segments for each byte of entries submitted, as they are stored: what the log adds,
    /// which compression does not hide. 0 before the first. Neither the zeros that make a spare nor what opening copies are in it.
    pub fn write_amplification(&self) -> f64 {
        ratio(self.bytes_written + self.footer_bytes, self.entry_bytes)
    }

    /// Bytes of entries submitted for each byte of them stored: 1 without compression. 0 before the first.
    pub fn compression(&self) -> f64 {
        ratio(self.raw_entry_bytes, self.entry_bytes)
    }

    /// Bytes that segments hold for each byte of entries, states and positions that some group needs, as they
    /// are stored. 0 if none does.
    pub fn space_amplification(&self) -> f64 {
        ratio(self.used_bytes, self.live_bytes)
    }
}

fn ratio(of: u64, to: u64) -> f64 {
    if to == 0 { 0.0 } else { of as f64 / to as f64 }
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
            footer_bytes: counters.footer_bytes.load(Relaxed),
            entry_bytes: counters.entry_bytes.load(Relaxed),
            raw_entry_bytes: counters.raw_entry_bytes.load(Relaxed),
            moved_bytes: counters.moved_bytes.load(Relaxed),
            purged_segments: counters.purged_segments.load(Relaxed),
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
            stats.used_bytes = segments.by_base.values().map(|s| s.used).sum();
        }
        stats.live_bytes += shared.index.stated_bytes();
        let pool = shared.pool.lock();
        stats.spares = pool.len() as u64;
        stats.disk_bytes += pool.bytes();
        stats
    }

    /// Makes one spare file, if the pool is not full, or else gives one full segment its footer; tells
    /// whether more is wanted. Meant for a background thread: a round that finds no spare has to make
    /// one itself, which takes as long as writing a whole segment, and a log without footers opens
    /// slowly. Waits for no writer and holds none up.
    ///
    /// Errors: [`DiskFull`](crate::Error::DiskFull) when a spare finds no room: nothing is lost, try again later. (A footer
    /// that finds none is no error.) A spare that cannot be opened is [`Io`](crate::Error::Io), and the log goes on. Another failure of a write or a sync is final: [`Io`](crate::Error::Io), and
    /// [`Stopped`](crate::Error::Stopped) from then on. A failed read is not: the segment waits for its footer.
    pub fn prepare(&self) -> crate::Result<bool> {
        self.prepare_gently(&mut || ())
    }

    /// [`prepare`](Self::prepare) beside others who use the disk: a spare is written in small pieces, and `rest` is
    /// called between them while there is time: what is left of the active segment is used up more slowly, by twice, than
    /// the spare grows. The caller sleeps then, or does not.
    pub fn prepare_gently(&self, rest: &mut dyn FnMut()) -> crate::Result<bool> {
        if self.fill_pool(rest)? {
            return Ok(true);
        }
        // Whoever purges seals as well.
        let Some(_one) = self.shared.purging.try_lock() else { return Ok(false) };
        self.shared.check_running()?;
        self.shared.seal_one()
    }

    fn fill_pool(&self, rest: &mut dyn FnMut()) -> crate::Result<bool> {
        let shared = &*self.shared;
        shared.check_running()?;
        let path = {
            let mut pool = shared.pool.lock();
            if !pool.wants() {
                return Ok(false);
            }
            pool.next_path()?
        };
        let size = shared.options.segment_bytes;
        let mut between = |filled| {
            if shared.is_in_time(filled) {
                rest();
            }
        };
        let disk = shared.disk.as_ref();
        let spare = segment::make_spare(disk, &shared.dir, path, size, &mut between);
        let spare = spare.map_err(|error| match error {
            full @ crate::Error::DiskFull { .. } => {
                // Before the spares that are left have been used up: what is submitted from here on is little.
                shared.full.store(true, Relaxed);
                full
            }
            // Nothing was written yet: too many files are open, perhaps.
            unopened @ crate::Error::Io { op: "open", .. } => unopened,
            other => shared.poison(other),
        })?;
        shared.room_came();
        let mut pool = shared.pool.lock();
        pool.put(spare);
        Ok(pool.wants())
    }
}

impl Shared {
    /// Whether a spare of which so much is written will be whole before it is needed: there is the reserve, and the active
    /// segment is at most half as full as this. (It is as full as this can get by then, and there is a sync to come.)
    fn is_in_time(&self, filled: u64) -> bool {
        let spares = self.pool.lock().len();
        let segments = self.segments.read();
        let active = segments.by_base.last_key_value();
        let (used, usable) = active.map_or((0, 1), |(_, active)| {
            (active.used, active.size.saturating_sub(active.room).max(1))
        });
        let (filled, whole) = (u128::from(filled), u128::from(self.options.segment_bytes));
        spares > 0 && filled * u128::from(usable) >= 2 * u128::from(used) * whole
    }
}
