//! The writing half: submit, the round of the single writer, waiting, rotation.

use super::batch::{BatchOp, Encoded, LogBatch, term_in_batch};
use super::flight::{Flight, Landed};
use super::format::{BLOCK, Op, RECORD_HEADER, align};
use super::index::weight;
use super::queue::{Pending, Queue, TakeQueue};
use super::seal::DYING;
use super::segment::Reserve;
use super::{Entry, Log, Seq, Shared};
use crate::env::File;
use crate::error::{Error, Result};
use crate::types::{LogPosition, RegionId};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::Duration;

/// The writer's own.
#[derive(Debug)]
pub(super) struct Writer {
    pub file: Arc<dyn File>,
    pub generation: u64,
    pub offset: u64,
    /// Bytes of it that records may take.
    pub size: u64,
    /// On a full disk purge alone writes, until it has given space back: the room that is left is enough for
    /// what it began.
    pub reserved: bool,
    /// And then nothing above this number: see `ahead`.
    pub until: u64,
    /// Batches taken from the queue that have no place yet.
    pub stalled: VecDeque<Pending>,
    /// The number of the next flight.
    pub next_flight: u64,
    /// The durable sequence that the last record on disk states.
    pub stated: u64,
    /// What is still to be repeated of groups: the last record of each, and its echo. The first group that
    /// states a group durable takes its echo along.
    pub echoes: VecDeque<(u64, Vec<u8>)>,
}

/// Those who wait for durability.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    /// How many of them are about to let a group take off.
    boarding: Mutex<usize>,
    progress: Condvar,
}

/// So many full segments that have no footer yet may have notes: those that seals wait for, and a few that
/// wait for whoever seals.
const NOTED: usize = DYING + 4;

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

impl Log {
    /// Takes a batch: it is visible to readers on return and durable once [`durable`](Self::durable)
    /// reaches the returned number. Never waits for the disk.
    ///
    /// Errors: [`Busy`](Error::Busy) when too many bytes wait for the writer,
    /// [`InvalidArgument`](Error::InvalidArgument) for a gap, an overwrite of compacted entries, a compaction beyond the
    /// last entry or with a false term, a reset to the last index there is, or more than 1 GiB in one batch,
    /// [`Quarantined`](Error::Quarantined) for a group that is damaged (until it is reset or cleared),
    /// [`Stopped`](Error::Stopped) after a failed write. A refused batch leaves no trace.
    pub fn submit(&self, batch: LogBatch) -> Result<Seq> {
        let encoded = batch.encode(self.shared.options.compress_above)?;
        let mut queue = self.shared.queue.lock();
        self.submit_locked(&mut queue, encoded)
    }

    /// Whether less than an eighth of what may wait for the writer does: callers that cannot take a refusal
    /// look here before they produce a batch. On a full disk it is less: see [`is_crowded`](Self::is_crowded).
    pub fn has_room(&self) -> bool {
        let shared = &*self.shared;
        shared.pending_bytes.load(Relaxed) < 2 * shared.crowd()
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
        shared.validate(&encoded.source, &encoded.entries)?;
        let seq = queue.next_seq;
        queue.next_seq += 1;
        shared.pending_bytes.fetch_add(size, Relaxed);

        let (run_bytes, undoes) = shared.index_batch(queue, seq, &mut encoded);
        queue.push(Pending { seq, encoded, run_bytes, undoes });
        shared.counters.batches.fetch_add(1, Relaxed);
        if queue.writer_sleeps {
            queue.writer_sleeps = false;
            shared.work.notify_one();
        }
        shared.shrink_cache(queue);
        Ok(Seq(seq))
    }

    /// The writer's work: writes every waiting batch as one group (one more for each segment that fills
    /// up), syncs it, publishes. `None` if nothing waited. Calls from several threads overlap: while
    /// one waits for the disk another may write what has come in since, however little: as many groups are in flight
    /// as threads call. (Only [`wait`](Self::wait) holds back for larger groups.) Each returns when its groups
    /// are durable and all before them.
    ///
    /// [`DiskFull`](Error::DiskFull) leaves the log usable: what was submitted stays queued and
    /// readable, and a later call tries again. Any other error ([`Io`](Error::Io) as a rule) is final: nothing is
    /// acknowledged ever after, and every later call fails with [`Stopped`](Error::Stopped).
    pub fn write_round(&self) -> Result<Option<Round>> {
        let shared = &*self.shared;
        let mut round = None;
        let mut queue = TakeQueue::First;
        loop {
            let flight = {
                let mut writer = shared.writer.lock();
                shared.take_off(&mut writer, Reserve::Keep, queue)
            };
            // Those who wait may have counted on this call.
            let flight = flight.inspect_err(|_| shared.notify())?;
            let Some(flight) = flight else { return Ok(round) };
            queue = TakeQueue::No;
            let flown = shared.fly_counted(flight)?;
            round.get_or_insert_with(Round::default).add(flown);
        }
    }

    /// Whether what waits for the writer has used up a sixteenth of its bound: whoever feeds the log
    /// should hold back now, for [`submit`](Self::submit) refuses at the bound, and what is on its way
    /// (inboxes, a peer's window) still comes. While the disk is known to be full it is a quarter of a
    /// segment, if that is less: the reserve holds it, then, beside what purge has to write. (It is known when a
    /// segment or, by [`prepare`](Self::prepare), a spare finds no room.) Takes no lock.
    pub fn is_crowded(&self) -> bool {
        let shared = &*self.shared;
        shared.pending_bytes.load(Relaxed) > shared.crowd()
    }

    /// Everything up to this number survives a crash.
    pub fn durable(&self) -> Seq {
        Seq(self.shared.durable.load(Acquire))
    }

    /// Waits until `seq` is durable, writing a group itself if the writer does not (group commit).
    ///
    /// Errors: those of [`write_round`](Self::write_round). After [`DiskFull`](Error::DiskFull) the batch is still queued:
    /// wait again. [`InvalidArgument`](Error::InvalidArgument) for a number that was never given out.
    pub fn wait(&self, seq: Seq) -> Result<()> {
        let shared = &*self.shared;
        let waiters = &shared.waiters;
        let mut boarding = waiters.boarding.lock();
        loop {
            if self.durable() >= seq {
                return Ok(());
            }
            shared.check_running()?;
            let pending = shared.pending_bytes.load(Relaxed);
            if *boarding > 0 || !shared.should_lead(seq.0, pending) {
                waiters.progress.wait(&mut boarding);
                continue;
            }
            *boarding += 1;
            drop(boarding);
            let flight = {
                let mut writer = shared.writer.lock();
                shared.take_off(&mut writer, Reserve::Keep, TakeQueue::First)
            };
            boarding = waiters.boarding.lock();
            *boarding -= 1;
            // Others held back for this one; one of them may have enough for a group of its own.
            match &flight {
                Ok(Some(_)) => _ = waiters.progress.notify_one(),
                _ => _ = waiters.progress.notify_all(),
            }
            drop(boarding);
            match flight {
                Ok(Some(flight)) => shared.fly(flight)?,
                Ok(None) if self.durable() < seq && shared.queue.lock().next_seq <= seq.0 => {
                    let what = format!("{seq:?} was never submitted");
                    return Err(Error::InvalidArgument(what));
                }
                Ok(None) => {}
                Err(error) => return Err(error),
            }
            boarding = waiters.boarding.lock();
        }
    }

    /// [`submit`](Self::submit) and [`wait`](Self::wait), and the errors of both. After
    /// [`DiskFull`](Error::DiskFull) the batch is taken and may become durable later: do not submit it again.
    pub fn write(&self, batch: LogBatch) -> Result<Seq> {
        let seq = self.submit(batch)?;
        self.wait(seq)?;
        Ok(seq)
    }

    /// For a writer of its own: sleeps until something is submitted or `timeout` has passed, and tells
    /// whether something waits. A submitter wakes it only if it sleeps.
    pub fn wait_for_work(&self, timeout: Duration) -> bool {
        let mut queue = self.shared.queue.lock();
        let called = std::mem::take(&mut queue.writer_called);
        if queue.is_empty() && !called && !self.shared.stopped() {
            queue.writer_sleeps = true;
            self.shared.work.wait_for(&mut queue, timeout);
            queue.writer_sleeps = false;
        }
        !queue.is_empty()
    }

    /// Ends [`wait_for_work`](Self::wait_for_work), or the next one that would sleep: for a writer that is to end.
    pub fn wake_writer(&self) {
        self.shared.queue.lock().writer_called = true;
        self.shared.work.notify_all();
    }

    /// Makes everything submitted durable, and states on the disk that it is: damage to it will be
    /// told from a torn tail. Worth a call when the log has become quiet, and before closing. Its errors are
    /// those of [`write_round`](Self::write_round).
    pub fn barrier(&self) -> Result<()> {
        let mut writer = self.shared.writer.lock();
        self.shared.round(&mut writer, Reserve::Keep)?;
        if writer.stated >= self.shared.durable.load(Acquire) {
            return Ok(());
        }
        {
            let mut queue = self.shared.queue.lock();
            self.shared.enqueue(&mut queue, LogBatch::new().encode(None)?);
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
    /// More than this should not wait for the writer.
    fn crowd(&self) -> usize {
        let crowd = self.options.max_pending_bytes / 16;
        match self.full.load(Relaxed) {
            true => crowd.min((self.options.segment_bytes / 4) as usize),
            false => crowd,
        }
    }

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

    /// Ends the log. What is returned is final for whoever gets it: [`DiskFull`](Error::DiskFull), which a sync may fail
    /// with too, promises that the log stays usable.
    pub(super) fn poison(&self, error: Error) -> Error {
        let error = match error {
            Error::DiskFull { path } => {
                let source = Arc::new(std::io::ErrorKind::StorageFull.into());
                Error::Io { op: "sync", path, source }
            }
            error => error,
        };
        // The first failure is the cause; whoever asks later is told of it.
        let _ = self.poisoned.set(error.to_string());
        tracing::error!(%error, "the log stops: nothing is acknowledged from here on");
        self.air.alarm();
        self.notify();
        error
    }

    pub(super) fn notify(&self) {
        // Under the lock, so that a waiter is either before its check or asleep.
        let _boarding = self.waiters.boarding.lock();
        self.waiters.progress.notify_all();
    }

    /// Whether one who waits for `seq` should let a group take off: its batch is in none yet (or that
    /// one is grounded), and there is room for another.
    fn should_lead(&self, seq: u64, pending: usize) -> bool {
        (self.air.is_free() || !self.air.carries(seq)) && self.air.has_room(pending)
    }

    /// Refuses what would leave a gap, overwrite the compacted part or touch a damaged group.
    fn validate(&self, ops: &[BatchOp], entries: &[Entry]) -> Result<()> {
        let mut at: Option<(u64, u64, u64)> = None;
        let mut healthy = true;
        let mut groups = self.index.reading();
        for (n, op) in ops.iter().enumerate() {
            let group = op.group();
            let (truncated, last) = match at {
                Some((g, truncated, last)) if g == group => (truncated, last),
                _ => match groups.get(group) {
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
                    if index > truncated {
                        let here = term_in_batch(&ops[..n], entries, group, index);
                        let term = here.unwrap_or_else(|| groups.get(group)?.term(index));
                        if let Some(term) = term.filter(|term| *term != to.term) {
                            let what =
                                format!("group {group}: compact to {to:?}, its term is {term}");
                            return Err(Error::InvalidArgument(what));
                        }
                    }
                    (truncated.max(index), last)
                }
                BatchOp::Append { first, count, .. } => {
                    let first = *first;
                    if first <= truncated || first > last + 1 {
                        let what = format!(
                            "group {group}: append at {first}, the log is ({truncated}, {last}]"
                        );
                        return Err(Error::InvalidArgument(what));
                    }
                    (truncated, first + *count as u64 - 1)
                }
            };
            at = Some((group, after.0, after.1));
        }
        Ok(())
    }

    /// Makes a batch visible. Returns the bytes of its runs, and the oldest record that it undoes.
    fn index_batch(&self, queue: &mut Queue, seq: u64, encoded: &mut Encoded) -> (u64, u64) {
        let mut dead = Vec::new();
        let mut undoes = u64::MAX;
        let mut run_bytes = 0;
        let mut freed = 0;
        let source = std::mem::take(&mut encoded.source);
        // Weighed here, where they lie side by side, and not in their groups, which the processor fetches.
        let added: usize = encoded.entries.iter().map(weight).sum();
        let mut entries = std::mem::take(&mut encoded.entries).into_iter();
        let mut groups = self.index.changing();
        let mut count_entries = 0;
        let mut enter = Vec::new();
        for (op, source) in encoded.ops.iter().zip(source) {
            let Some(id) = op.group() else { continue };
            freed += match source {
                BatchOp::Append { first, count, .. } => groups.append(id, |group| {
                    // Nearly never: what follows the last entry undoes nothing.
                    if first <= group.last() {
                        undoes = undoes.min(group.undoes(op));
                    }
                    let freed = group.take(seq, op, None, &mut dead);
                    group.cache.extend(entries.by_ref().take(count));
                    if !group.in_clock {
                        group.in_clock = true;
                        enter.push(id);
                    }
                    freed
                }),
                BatchOp::State { state, .. } => groups.change(id, |group| {
                    undoes = undoes.min(group.undoes(op));
                    group.take(seq, op, Some(state), &mut dead)
                }),
                _ => groups.change(id, |group| {
                    undoes = undoes.min(group.undoes(op));
                    group.take(seq, op, None, &mut dead)
                }),
            };
            if let Op::Append { body, count, .. } = op {
                run_bytes += u64::from(body.len);
                count_entries += u64::from(*count);
            }
        }
        drop(groups);
        enter.into_iter().for_each(|id| queue.enter_clock(id, &self.index));
        self.counters.entries.fetch_add(count_entries, Relaxed);
        encoded.ops = Vec::new();
        self.counters.entry_bytes.fetch_add(run_bytes, Relaxed);
        self.counters.raw_entry_bytes.fetch_add(encoded.raw_bytes, Relaxed);
        self.cache_bytes.fetch_add(added, Relaxed);
        self.cache_bytes.fetch_sub(freed, Relaxed);
        if !dead.is_empty() {
            self.segments.write().bury(dead);
        }
        (run_bytes, undoes)
    }

    /// One round, with the writer's lock held. On return all that took off before is published as well.
    pub(super) fn round(&self, writer: &mut Writer, reserve: Reserve) -> Result<Option<Round>> {
        let mut round = None;
        let mut queue = TakeQueue::First;
        loop {
            while let Some(flight) = self.take_off(writer, reserve, queue)? {
                queue = TakeQueue::No;
                let flown = self.fly_counted(flight)?;
                round.get_or_insert_with(Round::default).add(flown);
            }
            if self.all_landed(writer)? == Landed::All {
                return Ok(round);
            }
        }
    }

    fn fly_counted(&self, flight: Flight) -> Result<Round> {
        let (durable, batches, bytes) = (Seq(flight.last_seq()), flight.batches(), flight.bytes());
        self.fly(flight)?;
        Ok(Round { durable, batches, bytes })
    }

    /// The next group to fly, if anything waits: what waits in the queue too, if that is asked for.
    pub(super) fn take_off(
        &self,
        writer: &mut Writer,
        reserve: Reserve,
        queue: TakeQueue,
    ) -> Result<Option<Flight>> {
        self.check_running()?;
        if queue == TakeQueue::First {
            let taken = self.queue.lock().take();
            writer.stalled.extend(taken);
        }
        loop {
            if let Some(flight) = self.air.again() {
                return Ok(Some(flight));
            }
            if writer.stalled.is_empty() {
                return Ok(None);
            }
            if writer.reserved && reserve == Reserve::Keep {
                return Err(Error::DiskFull { path: self.dir.clone() });
            }
            let most = writer.how_many_may();
            if most == 0 {
                return Ok(None);
            }
            let fits = writer.how_many_fit().min(most);
            if fits > 0 {
                let flight = self.board(writer, fits);
                self.tell_leftover(writer);
                return Ok(Some(flight));
            }
            // The next segment says that everything before it is durable.
            if self.all_landed(writer)? == Landed::All {
                self.rotate(writer, reserve)?;
            }
        }
    }

    /// Who takes off one group and is content leaves the rest to whoever writes next.
    fn tell_leftover(&self, writer: &Writer) {
        let mut queue = self.queue.lock();
        queue.leftover = !writer.stalled.is_empty();
        if queue.leftover && queue.writer_sleeps {
            queue.writer_sleeps = false;
            self.work.notify_one();
        }
    }

    /// Opens the next segment. A full disk is not final.
    fn rotate(&self, writer: &mut Writer, reserve: Reserve) -> Result<()> {
        let base = self.durable.load(Relaxed) + 1;
        let mut pool = self.pool.lock();
        let spare = pool.take(reserve, writer.first_bytes()).map_err(|error| match error {
            full @ Error::DiskFull { .. } => {
                self.full.store(true, Relaxed);
                full
            }
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
        self.room_came();
        writer.stated = base - 1;
        let mut segments = self.segments.write();
        segments.by_base.insert(base, segment);
        // Nobody seals, or what was not worth it then is only worth reading back now.
        if let Some((_, old)) = segments.by_base.iter_mut().rev().nth(NOTED + 1) {
            old.notes.drop_all();
        }
        Ok(())
    }
}

impl Round {
    fn add(&mut self, other: Round) {
        self.durable = self.durable.max(other.durable);
        self.batches += other.batches;
        self.bytes += other.bytes;
    }
}

impl Writer {
    pub fn new(segment: &super::segment::Segment, stated: u64) -> Writer {
        Writer {
            file: segment.file.clone(),
            generation: segment.generation,
            offset: segment.used,
            size: segment.size.saturating_sub(segment.room),
            reserved: false,
            until: u64::MAX,
            stalled: VecDeque::new(),
            next_flight: 0,
            stated,
            echoes: VecDeque::new(),
        }
    }

    fn enter(&mut self, segment: &super::segment::Segment) {
        self.file = segment.file.clone();
        self.generation = segment.generation;
        self.offset = segment.used;
        self.size = segment.size.saturating_sub(segment.room);
    }

    /// The echoes of the groups that one which states `durable` is the first to state.
    pub(super) fn take_echoes(&mut self, durable: u64) -> Vec<u8> {
        let mut taken = Vec::new();
        while self.echoes.front().is_some_and(|(last, _)| *last <= durable) {
            let echo = self.echoes.pop_front();
            taken.extend(echo.into_iter().flat_map(|(_, echo)| echo));
        }
        taken
    }

    /// What the first of the waiting batches takes.
    fn first_bytes(&self) -> u64 {
        let first = self.stalled.front().map_or(0, Pending::size);
        align(first + self.echoed() as usize) as u64
    }

    /// How many of the waiting batches the active segment has room for. A batch larger than a whole
    /// segment fits an empty one: the file grows.
    fn how_many_fit(&self) -> usize {
        let room = self.size.saturating_sub(self.offset) as usize;
        let mut len = self.echoed() as usize;
        for (n, pending) in self.stalled.iter().enumerate() {
            len += pending.size();
            if align(len) > room {
                return if n == 0 && self.offset == BLOCK as u64 { 1 } else { n };
            }
        }
        self.stalled.len()
    }
}
