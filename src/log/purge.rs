//! Giving space back: the oldest segments go once nothing in them is needed. What little is still
//! needed is moved forward first. The argument why this is safe stands at the head of the room.

use super::ahead::{Berth, Stated};
use super::batch::Encoded;
use super::choose::{Lived, Plan, Room};
use super::format::{BLOCK, Op, Span, decode_run};
use super::index::{Group, Run, SAYING};
use super::lz4::{RunWriter, is_compressed, plain};
use super::queue::TakeQueue;
use super::segment::Reserve;
use super::{Entry, GroupId, Log, Shared};
use crate::error::{Error, Result};
use parking_lot::MutexGuard;
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

/// Purge queues about this much (or a quarter of a segment, if that is less), then waits until it is durable.
pub(super) const MOVE_BYTES: usize = 1 << 20;

/// What submitters wait for, at most: purge holds the queue's lock for one record of this many bytes of runs
/// (or one run, if that is larger), of this many runs,
pub(super) const HOLD_MOVED: usize = 256 << 10;
pub(super) const HOLD_RUNS: usize = 256;
/// or of this many bytes of states and positions, whatever the number of groups. (See also `SAYING`: some
/// hundred groups.)
pub(super) const HOLD_SAID: u64 = 8 << 10;

/// Bodies are put together up to this size: a reader of one entry reads the whole body.
const BODY_BYTES: usize = 32 << 10;

/// Live entries on their way to a new place.
struct Moving {
    group: GroupId,
    from: u64,
    end: u64,
    body: Vec<u8>,
    crc: u32,
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

/// On a full disk purge tries these shares of its place for what waits before it, in percent.
const SHARES: [u64; 4] = [85, 50, 15, 0];

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
        let crc = crc32c::crc32c(&body);
        Ok(Some(Moving { group, from, end, body, crc }))
    }
}

impl Log {
    /// Gives back the oldest segments that hold nothing live; if what lives in the oldest is little
    /// (or garbage outweighs it by far), moves it forward first, at most a segment's worth a call (but the oldest
    /// segment whole, if a large batch made its file grow).
    /// Never touches what a group still needs, nor segments that hold evidence of damage.
    ///
    /// The work of a call is bounded: copies of a segment's worth (or of the oldest, if that is larger),
    /// [`Purged::MOST`] segments given back and as many sealed, and one restatement (state and position, some dozens of bytes) of each group that
    /// said nothing since.
    ///
    /// Blocks for disk IO and runs the writer's rounds itself. Nothing is begun for which there is no room: on
    /// [`DiskFull`](crate::Error::DiskFull) nothing is lost, and a later call needs no more than this one.
    ///
    /// Other errors: a write or sync that fails otherwise is final ([`Io`](crate::Error::Io), then
    /// [`Stopped`](crate::Error::Stopped)). A read that fails is not, nor are bytes that somebody else wrote
    /// ([`Malformed`](crate::Error::Malformed)): what was to go stays. Damage is no error: see [`Purged::blocked`].
    pub fn purge(&self) -> Result<Purged> {
        let shared = &*self.shared;
        let mut watch = shared.purging.lock();
        shared.check_running()?;
        watch.calls += 1;
        shared.called(watch.calls);
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
    /// Calls of purge.
    calls: u64,
    lived: Lived,
    /// Our last records, while they are not durable. On a full disk they stay, and no others are queued: however
    /// often purge is called, what waits for the writer does not grow.
    queued: Option<Queued>,
    /// Where they find a place before others, while there is no room for all that waits before them.
    berth: Option<Berth>,
}

/// Records of purge on their way to the disk.
#[derive(Debug)]
pub(super) struct Queued {
    /// Their numbers, ascending, but of those that have moved into others' batches.
    pub seqs: Vec<u64>,
    /// When this one is durable, they are.
    pub last: u64,
    /// Runs in them take the place of what lies below.
    pub floor: u64,
    pub moved: Vec<(GroupId, Run)>,
}

impl Watch {
    /// A record was queued, behind those that are.
    fn queue(&mut self, seq: u64, floor: u64, moved: Vec<(GroupId, Run)>) {
        let new = || Queued { seqs: Vec::new(), last: seq, floor, moved: Vec::new() };
        let queued = self.queued.get_or_insert_with(new);
        queued.seqs.push(seq);
        queued.last = seq;
        queued.moved.extend(moved);
    }

    /// What may be queued before it has to be durable: all that takes one place, if there is but one.
    fn piece(&self, piece: u64) -> u64 {
        if self.berth.is_some() { u64::MAX } else { piece }
    }
}

impl Shared {
    fn purge_once(&self, watch: &mut Watch) -> Result<Purged> {
        // What an earlier call could not finish for want of room.
        self.land(watch)?;
        let plan = self.choose_floor(&mut watch.lived, Room::Any, None);
        if plan.is_none_or(|plan| !plan.large) {
            // One made for a large record that was never moved: what it held was given up meanwhile, or found other room.
            self.pool.lock().cut_large().map_err(|error| self.poison(error))?;
        }
        let Some(plan) = plan else { return Ok(Purged::default()) };
        let room = self.make_room(plan.cost, plan.large)?;
        if room == Room::Any {
            return self.carry_out(watch, plan);
        }
        if let Some(plan) = self.choose_floor(&mut watch.lived, room, None) {
            return self.alone(watch, None, |watch| self.carry_out(watch, plan));
        }
        // Not with all that waits before it. Then with as much of that as possible: it may be what gives
        // things up.
        for part in SHARES {
            let Some(berth) = self.berth(part) else { break };
            let room = Room::Only(berth.room);
            if let Some(plan) = self.choose_floor(&mut watch.lived, room, Some(&berth)) {
                return self.alone(watch, Some(berth), |watch| self.carry_out(watch, plan));
            }
        }
        Err(Error::DiskFull { path: self.dir.clone() })
    }

    /// Nobody else may use up what is left meanwhile: it is enough for this, and this gives it back.
    fn alone<T>(
        &self,
        watch: &mut Watch,
        berth: Option<Berth>,
        purge: impl FnOnce(&mut Watch) -> Result<T>,
    ) -> Result<T> {
        let before = std::mem::replace(&mut watch.berth, berth);
        let reserved = std::mem::replace(&mut self.writer.lock().reserved, true);
        let done = purge(watch);
        watch.berth = before;
        let mut writer = self.writer.lock();
        writer.reserved = reserved;
        writer.until = u64::MAX;
        done
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
        self.room_came();
        Ok(purged)
    }

    /// Moves every live run below `floor` forward, small ones put together. Returns the bytes moved.
    fn move_runs(&self, floor: u64, watch: &mut Watch) -> Result<u64> {
        let mut moved = 0;
        let mut load: Vec<Moving> = Vec::new();
        let mut weight = 0;
        let piece = usize::try_from(watch.piece(self.piece())).unwrap_or(usize::MAX);
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

    fn move_load(&self, floor: u64, load: Vec<Moving>, watch: &mut Watch) -> Result<()> {
        let mut load = load.into_iter().peekable();
        while let Some(first) = load.next() {
            let mut bytes = first.body.len();
            let mut some = vec![first];
            while some.len() < HOLD_RUNS
                && let Some(next) = load.next_if(|m| bytes + m.body.len() <= HOLD_MOVED)
            {
                bytes += next.body.len();
                some.push(next);
            }
            self.queue_moves(floor, some, bytes, watch)?;
        }
        self.land(watch).map(drop)
    }

    /// Queues one record with what still lives of these.
    fn queue_moves(
        &self,
        floor: u64,
        some: Vec<Moving>,
        bytes: usize,
        watch: &mut Watch,
    ) -> Result<()> {
        let mut record = Encoded::with_capacity(some.len(), bytes);
        let mut moved = Vec::with_capacity(some.len());
        let mut queue = self.queue.lock();
        for moving in some {
            let Some(group) = self.index.read(moving.group) else { continue };
            // As it is now: it may have been overwritten or compacted since it was read.
            let Some((from, end)) = moving.still_there(&group, floor) else { continue };
            let body = record.adopt(moving.body, moving.crc)?;
            let (count, skip) = ((end - from) as u32, (from - moving.from) as u32);
            let run = Run { from, seq: 0, body, count, skip, packed: 0 };
            let (group, terms) = (moving.group, group.terms_of(&run));
            record.push(Op::Rewrite { group, from, count, skip, terms, body });
            moved.push((group, run));
        }
        if moved.is_empty() {
            return Ok(());
        }
        let seq = self.enqueue(&mut queue, record);
        // To who waits: else we would have it again before they are awake.
        MutexGuard::unlock_fair(queue);
        let moved = moved.into_iter().map(|(group, run)| (group, Run { seq, ..run }));
        watch.queue(seq, floor, moved.collect());
        Ok(())
    }

    /// Makes our last records durable, if they are not. Only then does the index follow: until the copies are
    /// durable, readers go to the old places. (However much later: what died since stays dead, and what is
    /// newer than a record lies above its floor.)
    fn land(&self, watch: &mut Watch) -> Result<Stated> {
        let Some(queued) = &watch.queued else { return Ok(Stated::Yes) };
        let waits = self.durable.load(Acquire) < queued.last;
        // What waits before them must not use up what is left, for then they would wait for ever.
        if waits
            && watch.berth.is_none()
            && self.make_room(self.places().0.next_multiple_of(BLOCK as u64), false)? != Room::Any
            && let Some(berth) = self.berth(SHARES[0])
        {
            return self.alone(watch, Some(berth), |watch| self.land_now(watch));
        }
        self.land_now(watch)
    }

    fn land_now(&self, watch: &mut Watch) -> Result<Stated> {
        let Some(queued) = &mut watch.queued else { return Ok(Stated::Yes) };
        let stated = match &watch.berth {
            Some(berth) => self.advance(queued, berth)?,
            None => Stated::Yes,
        };
        self.round_to(queued.last)?;
        let Some(Queued { floor, moved, .. }) = watch.queued.take() else { return Ok(stated) };
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
        Ok(stated)
    }

    /// Restates what only records below `floor` say, and makes that durable with the floor itself; in several
    /// records if it is much, the last of which has the floor. `None` if something below is still live
    /// after all: then nothing was queued.
    ///
    /// Nobody is held up by the look at all groups. It may be made beside submitters, and what it finds stays
    /// true: nothing comes to be said below the floor any more, for what is submitted from here on has a number
    /// above it, and nobody but us (with purge's lock) gives runs other places. So a group that says nothing
    /// below the floor, or is not there yet, never will; one that does is looked at again, in the same
    /// critical section in which it is restated, with which submitters cannot interfere.
    fn checkpoint(&self, floor: u64, watch: &mut Watch) -> Result<Option<u64>> {
        let Some(below) = self.stated_below(floor) else { return Ok(None) };
        let mut below = below.into_iter();
        let mut restated = 0;
        loop {
            let mut bytes = 0;
            while bytes < watch.piece(self.piece()) {
                let (said, groups, rest) = self.say_again(&mut below, floor, watch)?;
                bytes += said;
                restated += groups;
                if rest == Rest::None {
                    // Without the floor nothing may go yet; what was said again stays said.
                    return match self.land(watch)? {
                        Stated::Yes => Ok(Some(restated)),
                        Stated::No => Err(Error::DiskFull { path: self.dir.clone() }),
                    };
                }
            }
            self.land(watch)?;
        }
    }

    /// The groups whose state or position only records below `floor` say; `None` if entries of some group lie
    /// there.
    fn stated_below(&self, floor: u64) -> Option<Vec<GroupId>> {
        let mut below = Vec::new();
        for id in self.index.groups() {
            let Some(group) = self.index.read(id) else { continue };
            if group.runs.iter().any(|run| run.seq < floor) {
                return None;
            }
            if group.is_stated_below(floor) {
                below.push(id);
            }
        }
        Some(below)
    }

    /// Queues one record that restates some of these groups, and, behind the last of them, has the floor. Returns
    /// about how many bytes that took, and how many groups it was.
    fn say_again(
        &self,
        below: &mut std::vec::IntoIter<GroupId>,
        floor: u64,
        watch: &mut Watch,
    ) -> Result<(u64, u64, Rest)> {
        let mut record = Encoded::with_capacity(64, 4096);
        let mut said = Vec::new();
        let mut bytes = 0;
        let mut queue = self.queue.lock();
        while bytes < HOLD_SAID
            && let Some(id) = below.next()
        {
            let again = match self.index.read(id) {
                Some(group) => restate(id, &group, floor, &mut record)?,
                None => None,
            };
            // One that has said something newer since was counted on, and takes its time as well.
            bytes += again.as_ref().map_or(SAYING, Restated::weight);
            said.extend(again);
        }
        let rest = if below.len() == 0 { Rest::None } else { Rest::Some };
        if rest == Rest::None {
            record.push(Op::Floor { seq: floor });
        } else if said.is_empty() {
            return Ok((0, 0, rest));
        }
        let seq = self.enqueue(&mut queue, record);
        // Only now, that there is such a record.
        for restated in &said {
            self.index.change_existing(restated.group, |group| restated.apply(group, seq));
        }
        MutexGuard::unlock_fair(queue);
        watch.queue(seq, floor, Vec::new());
        Ok((bytes, said.len() as u64, rest))
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

/// Whether there is more to be said again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rest {
    Some,
    None,
}

/// What a checkpoint says again of a group.
struct Restated {
    group: GroupId,
    base: bool,
    state: Option<Span>,
}

impl Restated {
    /// Bytes, as they are counted on beforehand.
    fn weight(&self) -> u64 {
        let state = self.state.map_or(0, |body| SAYING + u64::from(body.len));
        state + if self.base { SAYING } else { 0 }
    }

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
