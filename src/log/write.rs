//! The writing half: submit, the round of the single writer, waiting, rotation.

use super::batch::{BatchOp, Encoded, LogBatch};
use super::echo::EchoDraft;
use super::format::{BLOCK, Op, RECORD_HEADER, RecordHeader, align};
use super::segment::Reserve;
use super::{Log, Options, Seq, Shared};
use crate::env::File;
use crate::error::{Error, Result};
use crate::types::{LogPosition, RegionId};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

/// A batch that has its number and waits for the writer.
#[derive(Debug)]
pub(super) struct Pending {
    pub seq: u64,
    pub encoded: Encoded,
    /// Bytes of runs in it.
    pub run_bytes: u64,
}

impl Pending {
    fn size(&self) -> usize {
        RECORD_HEADER + self.encoded.dir.len() + self.encoded.payload.len()
    }
}

/// What submitters and the writer share. Its lock orders batches: a batch gets its number, becomes
/// visible in the index and enters the queue under it, so index and disk agree on the order.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub next_seq: u64,
    pub pending: Vec<Pending>,
    /// Groups that have entries in the cache; the hand of the clock is at the front.
    pub clock: VecDeque<u64>,
    pub writer_sleeps: bool,
}

/// The writer's own.
#[derive(Debug)]
pub(super) struct Writer {
    pub file: Arc<dyn File>,
    pub generation: u64,
    pub offset: u64,
    /// Bytes of it that records may take.
    pub size: u64,
    /// Batches taken from the queue that the last round had no room for.
    pub stalled: VecDeque<Pending>,
    pub buffer: Vec<u8>,
    /// The durable sequence that the last record on disk states.
    pub stated: u64,
    /// What the next group repeats of the last one.
    pub echo: Vec<u8>,
}

/// Those who wait for durability.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    state: Mutex<Leader>,
    progress: Condvar,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Leader {
    #[default]
    None,
    Writing,
}

/// What one round of the writer made durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Round {
    /// Everything up to here is durable.
    pub durable: Seq,
    /// Batches in this round.
    pub batches: u64,
    /// Bytes written, padding included.
    pub bytes: u64,
}

/// Retained capacity of the write buffer; a rare larger round gives its memory back.
const KEEP_BUFFER: usize = 8 << 20;

impl Log {
    /// Takes a batch: it is visible to readers on return and durable once [`durable`](Self::durable)
    /// reaches the returned number. Never waits for the disk.
    ///
    /// Errors: [`Busy`](Error::Busy) when too many bytes wait for the writer,
    /// [`InvalidArgument`](Error::InvalidArgument) for a gap or an overwrite of compacted entries,
    /// [`Quarantined`](Error::Quarantined) for a group that is damaged (until it is reset or cleared),
    /// [`Stopped`](Error::Stopped) after a failed write. A refused batch leaves no trace.
    pub fn submit(&self, batch: LogBatch) -> Result<Seq> {
        let encoded = batch.encode()?;
        let mut queue = self.shared.queue.lock();
        self.submit_locked(&mut queue, encoded)
    }

    /// Whether less than an eighth of what may wait for the writer does: callers that cannot take a refusal
    /// look here before they produce a batch.
    pub fn has_room(&self) -> bool {
        let shared = &*self.shared;
        shared.pending_bytes.load(Relaxed) < shared.options.max_pending_bytes / 8
    }

    pub(super) fn submit_locked(
        &self,
        queue: &mut MutexGuard<'_, Queue>,
        mut encoded: Encoded,
    ) -> Result<Seq> {
        let shared = &*self.shared;
        shared.check_running()?;
        let size = RECORD_HEADER + encoded.dir.len() + encoded.payload.len();
        let waiting = shared.pending_bytes.load(Relaxed);
        if waiting >= shared.options.max_pending_bytes {
            return Err(Error::Busy { what: "log writer" });
        }
        shared.validate(&encoded.source)?;
        let seq = queue.next_seq;
        queue.next_seq += 1;
        shared.pending_bytes.fetch_add(size, Relaxed);

        let run_bytes = shared.index_batch(queue, seq, &mut encoded);
        queue.pending.push(Pending { seq, encoded, run_bytes });
        shared.counters.batches.fetch_add(1, Relaxed);
        if queue.writer_sleeps {
            queue.writer_sleeps = false;
            shared.work.notify_one();
        }
        shared.shrink_cache(queue);
        Ok(Seq(seq))
    }

    /// The single writer's work: writes every waiting batch, syncs once (once more for each segment
    /// that filled up), publishes. `None` if nothing waited. Calls are serialized.
    ///
    /// [`DiskFull`](Error::DiskFull) leaves the log usable: what was submitted stays queued and
    /// readable, and a later call tries again. Any other error is final: nothing is acknowledged ever
    /// after, and every later call fails.
    pub fn write_round(&self) -> Result<Option<Round>> {
        let mut writer = self.shared.writer.lock();
        self.shared.round(&mut writer, Reserve::Keep)
    }

    /// Whether what waits for the writer has used up a sixteenth of its bound: whoever feeds the log
    /// should hold back now, for [`submit`](Self::submit) refuses at the bound, and what is on its way
    /// (inboxes, a peer's window) still comes. Takes no lock.
    pub fn is_crowded(&self) -> bool {
        let shared = &*self.shared;
        shared.pending_bytes.load(Relaxed) > shared.options.max_pending_bytes / 16
    }

    /// Everything up to this number survives a crash.
    pub fn durable(&self) -> Seq {
        Seq(self.shared.durable.load(Acquire))
    }

    /// Waits until `seq` is durable, writing a round itself if nobody else does (group commit).
    pub fn wait(&self, seq: Seq) -> Result<()> {
        let waiters = &self.shared.waiters;
        let mut state = waiters.state.lock();
        loop {
            if self.durable() >= seq {
                return Ok(());
            }
            self.shared.check_running()?;
            if *state == Leader::Writing {
                waiters.progress.wait(&mut state);
                continue;
            }
            *state = Leader::Writing;
            drop(state);
            let round = self.write_round();
            state = waiters.state.lock();
            *state = Leader::None;
            waiters.progress.notify_all();
            let wrote = round?.is_some();
            if !wrote && self.durable() < seq {
                return Err(Error::InvalidArgument(format!("{seq:?} was never submitted")));
            }
        }
    }

    /// [`submit`](Self::submit) and [`wait`](Self::wait).
    pub fn write(&self, batch: LogBatch) -> Result<Seq> {
        let seq = self.submit(batch)?;
        self.wait(seq)?;
        Ok(seq)
    }

    /// For a writer of its own: sleeps until something is submitted or `timeout` has passed, and tells
    /// whether something waits. A submitter wakes it only if it sleeps.
    pub fn wait_for_work(&self, timeout: Duration) -> bool {
        let mut queue = self.shared.queue.lock();
        if queue.pending.is_empty() && !self.shared.stopped() {
            queue.writer_sleeps = true;
            self.shared.work.wait_for(&mut queue, timeout);
            queue.writer_sleeps = false;
        }
        !queue.pending.is_empty()
    }

    /// Wakes [`wait_for_work`](Self::wait_for_work), for a writer that is to end.
    pub fn wake_writer(&self) {
        let _queue = self.shared.queue.lock();
        self.shared.work.notify_all();
    }

    /// Makes everything submitted durable, and states on the disk that it is: damage to it will be
    /// told from a torn tail. Worth a call when the log has become quiet, and before closing.
    pub fn barrier(&self) -> Result<()> {
        let mut writer = self.shared.writer.lock();
        self.shared.round(&mut writer, Reserve::Keep)?;
        if writer.stated >= self.shared.durable.load(Acquire) {
            return Ok(());
        }
        {
            let mut queue = self.shared.queue.lock();
            self.shared.enqueue(&mut queue, LogBatch::new().encode()?);
        }
        let round = self.shared.round(&mut writer, Reserve::Keep)?;
        // The mark itself carries nothing: that it is not stated by another costs nothing.
        if let Some(round) = round.filter(|round| round.batches == 1) {
            writer.stated = round.durable.0;
        }
        Ok(())
    }
}

impl Shared {
    pub(super) fn stopped(&self) -> bool {
        self.poisoned.get().is_some()
    }

    pub(super) fn check_running(&self) -> Result<()> {
        match self.poisoned.get() {
            Some(cause) => {
                Err(Error::Stopped { reason: format!("the log failed to write: {cause}") })
            }
            None => Ok(()),
        }
    }

    pub(super) fn poison(&self, error: Error) -> Error {
        // The first failure is the cause; whoever asks later is told of it.
        let _ = self.poisoned.set(error.to_string());
        tracing::error!(%error, "the log stops: nothing is acknowledged from here on");
        self.notify();
        error
    }

    fn notify(&self) {
        // Under the lock, so that a waiter is either before its check or asleep.
        let _state = self.waiters.state.lock();
        self.waiters.progress.notify_all();
    }

    /// Refuses what would leave a gap, overwrite the compacted part or touch a damaged group.
    fn validate(&self, ops: &[BatchOp]) -> Result<()> {
        let mut at: Option<(u64, u64, u64)> = None;
        let mut healthy = true;
        for op in ops {
            let group = op.group();
            let (truncated, last) = match at {
                Some((g, truncated, last)) if g == group => (truncated, last),
                _ => match self.index.read(group) {
                    Some(g) => {
                        healthy = g.damage.is_none();
                        (g.truncated.index, g.last())
                    }
                    None => {
                        healthy = true;
                        (0, 0)
                    }
                },
            };
            let after = match op {
                BatchOp::Reset { to, .. } => {
                    healthy = true;
                    (to.index, to.index)
                }
                BatchOp::Clear { .. } => {
                    healthy = true;
                    (0, 0)
                }
                _ if !healthy => {
                    let reason = "its log is damaged".into();
                    return Err(Error::Quarantined { region: RegionId(group), reason });
                }
                BatchOp::State { .. } => (truncated, last),
                BatchOp::Compact { to, .. } => {
                    let LogPosition { index, .. } = *to;
                    if index > last {
                        let what = format!("group {group}: compact to {index}, last is {last}");
                        return Err(Error::InvalidArgument(what));
                    }
                    (truncated.max(index), last)
                }
                BatchOp::Append { entries, .. } => {
                    let first = entries[0].index;
                    if first <= truncated || first > last + 1 {
                        let what = format!(
                            "group {group}: append at {first}, the log is ({truncated}, {last}]"
                        );
                        return Err(Error::InvalidArgument(what));
                    }
                    (truncated, first + entries.len() as u64 - 1)
                }
            };
            at = Some((group, after.0, after.1));
        }
        Ok(())
    }

    /// Makes a batch visible. Returns the bytes of its runs.
    fn index_batch(&self, queue: &mut Queue, seq: u64, encoded: &mut Encoded) -> u64 {
        let mut dead = Vec::new();
        let mut run_bytes = 0;
        let (mut added, mut freed) = (0, 0);
        let source = std::mem::take(&mut encoded.source);
        for (op, source) in encoded.ops.iter().zip(source) {
            let Some(id) = op.group() else { continue };
            self.index.change(id, |group| match source {
                BatchOp::Append { entries, .. } => {
                    freed += group.take(seq, op, None, &mut dead);
                    added += group.cache_append(entries);
                    if !group.in_clock {
                        group.in_clock = true;
                        queue.clock.push_back(id);
                    }
                }
                BatchOp::State { state, .. } => {
                    freed += group.take(seq, op, Some(state), &mut dead);
                }
                _ => freed += group.take(seq, op, None, &mut dead),
            });
            if let Op::Append { body, count, .. } = op {
                run_bytes += u64::from(body.len);
                self.counters.entries.fetch_add(u64::from(*count), Relaxed);
            }
        }
        encoded.ops = Vec::new();
        self.counters.entry_bytes.fetch_add(run_bytes, Relaxed);
        self.cache_bytes.fetch_add(added, Relaxed);
        self.cache_bytes.fetch_sub(freed, Relaxed);
        if !dead.is_empty() {
            self.segments.write().bury(dead);
        }
        run_bytes
    }

    /// One round, with the writer's lock held.
    pub(super) fn round(&self, writer: &mut Writer, reserve: Reserve) -> Result<Option<Round>> {
        self.check_running()?;
        writer.stalled.extend(std::mem::take(&mut self.queue.lock().pending));
        if writer.stalled.is_empty() {
            return Ok(None);
        }
        let mut round = Round::default();
        while !writer.stalled.is_empty() {
            let fits = writer.how_many_fit();
            if fits == 0 {
                self.rotate(writer, reserve)?;
                continue;
            }
            self.write_group(writer, fits, &mut round)?;
        }
        Ok(Some(round))
    }

    /// Writes and syncs the first `count` waiting batches as one group.
    fn write_group(&self, writer: &mut Writer, count: usize, round: &mut Round) -> Result<()> {
        let durable = self.durable.load(Relaxed);
        let mut buffer = std::mem::take(&mut writer.buffer);
        buffer.clear();
        let mut places = Vec::with_capacity(count);
        let mut taken = 0;
        let first = writer.stalled.front().map_or(0, |pending| pending.seq);
        let mut echo = EchoDraft::new(writer.offset, first);
        for pending in writer.stalled.iter().take(count) {
            let encoded = &pending.encoded;
            let header = RecordHeader {
                generation: writer.generation,
                seq: pending.seq,
                durable,
                dir_len: encoded.dir.len() as u32,
                payload_len: encoded.payload.len() as u32,
                dir_crc: encoded.dir_crc,
                echo_len: if pending.seq == first { writer.echo.len() as u32 } else { 0 },
            };
            echo.push(&header, &encoded.groups);
            header.encode_to(&mut buffer);
            buffer.extend_from_slice(&encoded.dir);
            let payload_at = writer.offset + buffer.len() as u64;
            buffer.extend_from_slice(&encoded.payload);
            if pending.seq == first {
                buffer.extend_from_slice(&writer.echo);
            }
            places.push((pending.seq, payload_at as u32, pending.run_bytes));
            taken += pending.size();
        }
        buffer.resize(align(buffer.len()), 0);
        let written = writer.file.write_at(writer.offset, &buffer);
        let bytes = buffer.len() as u64;
        if buffer.capacity() <= KEEP_BUFFER {
            writer.buffer = buffer;
        }
        match written {
            Ok(()) => {}
            // Nothing of it was acknowledged: the same bytes go to the same place when there is room.
            Err(full @ Error::DiskFull { .. }) => return Err(full),
            Err(error) => return Err(self.poison(error)),
        }
        writer.file.sync_data().map_err(|error| self.poison(error))?;

        let last = places.last().map_or(durable, |(seq, ..)| *seq);
        {
            let mut segments = self.segments.write();
            for (seq, at, run_bytes) in places {
                segments.place(seq, at, run_bytes);
            }
            if let Some(mut active) = segments.by_base.last_entry() {
                let active = active.get_mut();
                active.used = writer.offset + bytes;
                active.size = active.size.max(writer.offset + bytes);
            }
        }
        writer.offset += bytes;
        writer.stated = durable;
        writer.echo = echo.finish();
        writer.stalled.drain(..count);
        self.durable.store(last, Release);
        self.pending_bytes.fetch_sub(taken, Relaxed);
        self.notify();
        let counters = &self.counters;
        counters.writes.fetch_add(1, Relaxed);
        counters.fsyncs.fetch_add(1, Relaxed);
        counters.bytes_written.fetch_add(bytes, Relaxed);
        round.durable = Seq(last);
        round.batches += count as u64;
        round.bytes += bytes;
        Ok(())
    }

    /// Opens the next segment. A full disk is not final.
    fn rotate(&self, writer: &mut Writer, reserve: Reserve) -> Result<()> {
        let base = self.durable.load(Relaxed) + 1;
        let mut pool = self.pool.lock();
        let spare = pool.take(reserve).map_err(|error| match error {
            full @ Error::DiskFull { .. } => full,
            other => self.poison(other),
        })?;
        let segment = pool.activate(spare, base, base - 1, |_| Vec::new());
        let segment = segment.map_err(|error| match error {
            full @ Error::DiskFull { .. } => full,
            other => self.poison(other),
        })?;
        drop(pool);
        self.counters.fsyncs.fetch_add(1, Relaxed);
        writer.enter(&segment);
        writer.stated = base - 1;
        self.segments.write().by_base.insert(base, segment);
        Ok(())
    }
}

impl Writer {
    pub fn new(segment: &super::segment::Segment, stated: u64) -> Writer {
        Writer {
            file: segment.file.clone(),
            generation: segment.generation,
            offset: segment.used,
            size: segment.size.saturating_sub(segment.room),
            stalled: VecDeque::new(),
            buffer: Vec::new(),
            stated,
            echo: Vec::new(),
        }
    }

    fn enter(&mut self, segment: &super::segment::Segment) {
        self.file = segment.file.clone();
        self.generation = segment.generation;
        self.offset = segment.used;
        self.size = segment.size.saturating_sub(segment.room);
    }

    /// How many of the waiting batches the active segment has room for. A batch larger than a whole
    /// segment fits an empty one: the file grows.
    fn how_many_fit(&self) -> usize {
        let room = self.size.saturating_sub(self.offset) as usize;
        let mut len = self.echo.len();
        for (n, pending) in self.stalled.iter().enumerate() {
            len += pending.size();
            if align(len) > room {
                return if n == 0 && self.offset == BLOCK as u64 { 1 } else { n };
            }
        }
        self.stalled.len()
    }
}

impl Options {
    /// Refuses options that cannot work.
    pub(super) fn check(&self) -> Result<()> {
        let block = BLOCK as u64;
        if self.segment_bytes < 2 * block
            || !self.segment_bytes.is_multiple_of(block)
            || self.segment_bytes > 1 << 31
        {
            let what =
                format!("segment_bytes {}: 8 KiB to 2 GiB, whole blocks", self.segment_bytes);
            return Err(Error::InvalidArgument(what));
        }
        Ok(())
    }
}
