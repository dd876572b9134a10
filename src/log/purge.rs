//! Giving space back: the oldest segments go once nothing in them is needed. What little is still
//! needed is moved forward first. The argument why this is safe stands at the head of the room.

use super::batch::Encoded;
use super::choose::{Lived, Plan, Room};
use super::format::{Op, Span, decode_run};
use super::index::{Group, Run};
use super::lz4::{RunWriter, is_compressed, plain};
use super::segment::Reserve;
use super::write::{Pending, Queue, TakeQueue};
use super::{Entry, GroupId, Log, RECORD_HEADER, Shared};
use crate::error::{Error, Result};
use std::sync::atomic::Ordering::{Acquire, Relaxed};

/// What a purge did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Purged {
    /// Segments that went.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of live runs that were moved forward.
    pub moved_bytes: u64,
    /// Groups whose state or position was restated.
    pub restated: u64,
    /// Whether live entries that cannot be read held it up: they stay where they are, and with them
    /// all that is newer. The log tells of file and offset when it meets them first.
    pub blocked: bool,
    /// Whether something went, and it was the bound of a call that ended it ([`Purged::MOST`] segments, a
    /// segment's worth of copies): call again, there may be more.
    pub more: bool,
}

impl Purged {
    /// The most segments that one call gives back, and the most that it gives footers.
    pub const MOST: u64 = 8;
}

/// Runs are moved in records of about this size (or a quarter of a segment, if that is less), so that submitters are not held up for long.
pub(super) const MOVE_BYTES: usize = 1 << 20;

/// Bodies are put together up to this size: a reader of one entry reads the whole body.
const BODY_BYTES: usize = 32 << 10;

/// Live entries on their way to a new place.
struct Moving {
    group: GroupId,
    from: u64,
    end: u64,
    body: Vec<u8>,
    /// Its place in the record that carries it, once it is in one.
    run: Option<Run>,
}

impl Moving {
    /// Which of the entries still live below the floor. What died since they were read died from the
    /// front (compaction) or from the back (overwriting).
    fn still_there(&self, group: &Group, floor: u64) -> Option<(u64, u64)> {
        let ours = |run: &&Run| run.seq < floor && run.from < self.end && run.end() > self.from;
        let mut runs = group.runs.iter().filter(ours);
        let first = runs.next()?;
        let last = runs.next_back().unwrap_or(first);
        Some((first.from.max(self.from), last.end().min(self.end)))
    }
}

/// Neighbouring entries that are to share a body.
#[derive(Default)]
struct Open {
    entries: Vec<Entry>,
    /// Bytes of the runs they come from, uncompressed.
    weight: usize,
    /// Whether one of those was compressed.
    compressed: bool,
}

impl Open {
    /// The body. What came compressed goes compressed, whatever the log's options say now: purge counts
    /// on moving no more than what lives.
    fn close(&mut self, group: GroupId, above: Option<usize>) -> Result<Option<Moving>> {
        let Open { entries, compressed, .. } = std::mem::take(self);
        let Some((first, last)) = entries.first().zip(entries.last()) else { return Ok(None) };
        let (from, end) = (first.index, last.index + 1);
        let mut body = Vec::new();
        let above = if compressed { Some(0) } else { above };
        RunWriter::new(above).write(&mut body, &entries)?;
        Ok(Some(Moving { group, from, end, body, run: None }))
    }
}

impl Log {
    /// Gives back the oldest segments that hold nothing live; if what lives in the oldest is little
    /// (or garbage outweighs it by far), moves it forward first, at most a segment's worth a call.
    /// Never touches what a group still needs, nor segments that hold evidence of damage.
    ///
    /// The work of a call is bounded: copies of a segment's worth, [`Purged::MOST`] segments given back and
    /// as many sealed, and one restatement (state and position, some dozens of bytes) of each group that
    /// said nothing since.
    ///
    /// Blocks for disk IO and runs the writer's rounds itself. Nothing is begun for which there is no room: on
    /// [`DiskFull`](crate::Error::DiskFull) nothing is lost, and a later call needs no more than this one. A
    /// write or sync that fails otherwise is final.
    pub fn purge(&self) -> Result<Purged> {
        let shared = &*self.shared;
        let mut watch = shared.purging.lock();
        shared.check_running()?;
        let purged = shared.purge_once(&mut watch)?;
        // Only now: what went needs no footer.
        for _ in 0..Purged::MOST {
            if !shared.seal_one()? {
                break;
            }
        }
        Ok(purged)
    }
}

/// What purge remembers from one call to the next.
#[derive(Default, Debug)]
pub(super) struct Watch {
    lived: Lived,
    /// Our last record, while it is not durable. On a full disk it stays, and no other is queued: however
    /// often purge is called, what waits for the writer does not grow.
    queued: Option<Queued>,
}

/// A record of purge on its way to the disk.
#[derive(Debug)]
struct Queued {
    seq: u64,
    /// Runs in it take the place of what lies below.
    floor: u64,
    moved: Vec<(GroupId, Run)>,
}

impl Shared {
    fn purge_once(&self, watch: &mut Watch) -> Result<Purged> {
        // What an earlier call could not finish for want of room.
        self.land(watch)?;
        let Some(mut plan) = self.choose_floor(&mut watch.lived, Room::Any) else {
            return Ok(Purged::default());
        };
        let room = self.make_room(plan.cost)?;
        if room == Room::Any {
            return self.carry_out(watch, plan);
        }
        // Nobody else may use up what is left: it is enough for this, and this gives it back.
        let only = self.choose_floor(&mut watch.lived, room);
        plan = only.ok_or_else(|| Error::DiskFull { path: self.dir.clone() })?;
        self.writer.lock().reserved = true;
        let purged = self.carry_out(watch, plan);
        self.writer.lock().reserved = false;
        purged
    }

    fn carry_out(&self, watch: &mut Watch, plan: Plan) -> Result<Purged> {
        let mut purged = Purged::default();
        let floor = plan.floor;
        match self.move_runs(floor, watch) {
            Ok(moved) => purged.moved_bytes = moved,
            Err(error @ Error::Corruption { .. }) => {
                // Its group will meet it when it reads. What lies before can still go, next time.
                tracing::error!(%error, "damaged entries hold up purge");
                purged.blocked = true;
                return Ok(purged);
            }
            Err(error) => return Err(error),
        }
        let Some(restated) = self.checkpoint(floor, watch)? else { return Ok(purged) };
        purged.restated = restated;

        let doomed = {
            let mut table = self.segments.write();
            let kept = table.by_base.split_off(&floor);
            std::mem::replace(&mut table.by_base, kept)
        };
        purged.segments = doomed.len() as u64;
        purged.more = plan.more || purged.segments == Purged::MOST;
        purged.bytes = doomed.values().map(|segment| segment.size).sum();
        self.counters.purged_segments.fetch_add(purged.segments, Relaxed);
        let files = doomed.into_values().map(|segment| (segment.path, segment.file)).collect();
        let leaving = self.pool.lock().part_with(files);
        // Without the pool: a writer may need a spare meanwhile. Nobody knows the files that a failure leaves
        // behind: it is final, and the next open finds them.
        let spares = leaving.rename().map_err(|error| self.poison(error))?;
        self.pool.lock().add(spares);
        Ok(purged)
    }

    /// Moves every live run below `floor` forward, small ones put together. Returns the bytes moved.
    fn move_runs(&self, floor: u64, watch: &mut Watch) -> Result<u64> {
        let mut moved = 0;
        let mut load: Vec<Moving> = Vec::new();
        let mut weight = 0;
        let piece = self.piece() as usize;
        for id in self.index.groups() {
            let old: Vec<Run> = match self.index.read(id) {
                Some(group) => group.runs.iter().copied().filter(|r| r.seq < floor).collect(),
                None => continue,
            };
            for body in self.merge_runs(id, old)? {
                if weight > 0 && weight + body.body.len() > piece {
                    self.move_load(floor, std::mem::take(&mut load), watch)?;
                    weight = 0;
                }
                weight += body.body.len();
                moved += body.body.len() as u64;
                load.push(body);
            }
        }
        self.move_load(floor, load, watch)?;
        self.counters.moved_bytes.fetch_add(moved, Relaxed);
        Ok(moved)
    }

    /// New bodies for the entries of these runs: neighbours share one, up to `BODY_BYTES` (uncompressed).
    fn merge_runs(&self, group: GroupId, old: Vec<Run>) -> Result<Vec<Moving>> {
        let above = self.options.compress_above;
        let mut bodies = Vec::new();
        let mut open = Open::default();
        for run in old {
            let parts = match run.is_packed() {
                true => self.unpack(group, &run).inspect_err(|e| self.pin(e, run.seq, group))?,
                false => vec![run],
            };
            for part in parts {
                let body = self.read_body(&part).inspect_err(|e| self.pin(e, run.seq, group))?.0;
                let compressed = is_compressed(&body);
                let body = plain(body)?;
                let follows = open.entries.last().is_some_and(|last| last.index + 1 == part.from);
                if !follows || open.weight + body.len() > BODY_BYTES {
                    bodies.extend(open.close(group, above)?);
                }
                open.weight += body.len();
                open.compressed |= compressed;
                // The term is the index's to tell, when the record is made.
                open.entries.extend(decode_run(&body, part.skip, part.from, part.count, |_| 0)?);
            }
        }
        bodies.extend(open.close(group, above)?);
        Ok(bodies)
    }

    /// What this record holds cannot be read: neither it nor anything after it is purged.
    fn pin(&self, error: &Error, seq: u64, group: GroupId) {
        if matches!(error, Error::Corruption { .. }) {
            self.rotten.lock().insert(seq, group);
        }
    }

    fn move_load(&self, floor: u64, mut load: Vec<Moving>, watch: &mut Watch) -> Result<()> {
        if load.is_empty() {
            return Ok(());
        }
        {
            let mut queue = self.queue.lock();
            let bytes = load.iter().map(|m| m.body.len()).sum();
            let mut record = Encoded::with_capacity(load.len(), bytes);
            for moving in &mut load {
                let Some(group) = self.index.read(moving.group) else { continue };
                // As it is now: it may have been overwritten or compacted since it was read.
                let Some((from, end)) = moving.still_there(&group, floor) else { continue };
                let body = record.copy(&moving.body)?;
                let (count, skip) = ((end - from) as u32, (from - moving.from) as u32);
                let run = Run { from, seq: 0, body, count, skip, packed: 0 };
                let (group, terms) = (moving.group, group.terms_of(&run));
                record.push(Op::Rewrite { group, from, count, skip, terms, body });
                moving.run = Some(run);
            }
            let seq = self.enqueue(&mut queue, record);
            let runs = load.into_iter().filter_map(|m| Some((m.group, Run { seq, ..m.run? })));
            watch.queued = Some(Queued { seq, floor, moved: runs.collect() });
        }
        self.land(watch)
    }

    /// Makes our last record durable, if it is not. Only then does the index follow: until the copies are
    /// durable, readers go to the old places. (However much later: what died since stays dead, and what is
    /// newer than the record lies above its floor.)
    fn land(&self, watch: &mut Watch) -> Result<()> {
        let Some(queued) = &watch.queued else { return Ok(()) };
        self.round_to(queued.seq)?;
        let Some(Queued { floor, moved, .. }) = watch.queued.take() else { return Ok(()) };
        let mut dead = Vec::new();
        for (id, run) in moved {
            let mut gone = Vec::new();
            let placed = self
                .index
                .change_existing(id, |group| group.relocate(&(0..floor), vec![run], &mut gone) > 0)
                == Some(true);
            dead.extend(gone);
            if !placed {
                dead.push((run.seq, run.body.len));
            }
        }
        self.segments.write().bury(dead);
        Ok(())
    }

    /// Restates what only records below `floor` say, and makes that durable with the floor itself; in several
    /// records if it is much, the last of which has the floor. `None` if something below is still live
    /// after all.
    fn checkpoint(&self, floor: u64, watch: &mut Watch) -> Result<Option<u64>> {
        let piece = self.piece() as usize;
        let mut restated = 0;
        loop {
            let mut rest = false;
            {
                let mut queue = self.queue.lock();
                let mut record = Encoded::with_capacity(64, 4096);
                // Nothing changes meanwhile but by us: changes need the queue's lock, or purge's.
                let mut said = Vec::new();
                for id in self.index.groups() {
                    let Some(group) = self.index.read(id) else { continue };
                    if group.runs.iter().any(|run| run.seq < floor) {
                        return Ok(None);
                    }
                    rest |= record.dir.len() + record.payload.len() >= piece;
                    if rest {
                        break;
                    }
                    said.extend(restate(id, &group, floor, &mut record)?);
                }
                if !rest {
                    record.push(Op::Floor { seq: floor });
                }
                let seq = self.enqueue(&mut queue, record);
                // Only now, that there is such a record.
                for restated in &said {
                    self.index.change_existing(restated.group, |group| restated.apply(group, seq));
                }
                restated += said.len() as u64;
                watch.queued = Some(Queued { seq, floor, moved: Vec::new() });
            }
            self.land(watch)?;
            if !rest {
                return Ok(Some(restated));
            }
        }
    }

    /// Queues a record of our own making. It may exceed the bound of the queue: it frees space.
    pub(super) fn enqueue(&self, queue: &mut Queue, mut encoded: Encoded) -> u64 {
        let seq = queue.next_seq;
        queue.next_seq += 1;
        encoded.dir_crc = crc32c::crc32c(&encoded.dir);
        let runs = encoded.ops.iter().filter(|op| matches!(op, Op::Rewrite { .. }));
        let run_bytes = runs.filter_map(Op::body).map(|body| u64::from(body.len)).sum();
        encoded.ops = Vec::new();
        let size = RECORD_HEADER + encoded.dir.len() + encoded.payload.len();
        self.pending_bytes.fetch_add(size, Relaxed);
        queue.pending.push(Pending { seq, encoded, run_bytes });
        self.counters.batches.fetch_add(1, Relaxed);
        seq
    }

    /// Until `seq` is durable. Others may let groups take off meanwhile.
    fn round_to(&self, seq: u64) -> Result<()> {
        while self.durable.load(Acquire) < seq {
            let flight = {
                let mut writer = self.writer.lock();
                self.take_off(&mut writer, Reserve::Use, TakeQueue::First)
            };
            match flight.inspect_err(|_| self.notify())? {
                Some(flight) => self.fly(flight)?,
                None => self.landed(seq)?,
            }
        }
        Ok(())
    }
}

/// What a checkpoint says again of a group.
struct Restated {
    group: GroupId,
    base: bool,
    state: Option<Span>,
}

impl Restated {
    /// The group's facts stand in record `seq` from here on.
    fn apply(&self, group: &mut Group, seq: u64) {
        if self.base {
            group.base_seq = seq;
        }
        if let Some(body) = self.state {
            group.state_seq = seq;
            group.state_rel = body.rel;
        }
    }
}

/// Says again, in `record`, what the group's state and position are, where only records below
/// `floor` say it; tells what was said, if anything was.
fn restate(
    id: GroupId,
    group: &Group,
    floor: u64,
    record: &mut Encoded,
) -> Result<Option<Restated>> {
    let base = group.base_seq > 0 && group.base_seq < floor;
    if base {
        record.push(Op::Base { group: id, at: group.truncated });
    }
    let mut said = None;
    if group.state_seq < floor
        && let Some(state) = &group.state
    {
        let body = record.copy(state)?;
        record.push(Op::State { group: id, body });
        said = Some(body);
    }
    Ok((base || said.is_some()).then_some(Restated { group: id, base, state: said }))
}

#[cfg(test)]
mod tests;
