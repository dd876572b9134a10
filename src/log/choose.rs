//! What purge is to give back: which of the oldest segments, and whether the disk has room for what
//! has to be said again of them.

use super::Shared;
use super::ahead::Berth;
use super::format::BLOCK;
use super::index::SAYING;
use super::purge::{HOLD_MOVED, HOLD_SAID, MOVE_BYTES, Purged};
use super::segment::make_spare;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

/// What lived in each segment when purge looked last, by first sequence number.
pub(super) type Lived = BTreeMap<u64, u64>;

/// What a call of purge is to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// The first sequence number that stays.
    pub floor: u64,
    /// Bytes of records that this takes at most, those that wait already among them.
    pub cost: u64,
    /// Whether some of them may be larger than a segment.
    pub large: bool,
    /// Whether it was the work of a call, not what lives, that set the floor.
    pub more: bool,
}

/// Where the records of a purge are to find a place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Room {
    /// Files can be made.
    Any,
    /// The disk is full: so many bytes are left.
    Only(u64),
}

/// What a record takes at most beside its operations: its header, its place in an echo, the echo's own head,
/// and a floor.
const RECORD: u64 = 128;

/// No spare is made for more than this, beside its footer: places in a file are u32, and the largest batch is half of it.
const LONGEST: u64 = 1 << 31;

impl Shared {
    /// What can go, if anything can. What holds nothing live goes at once (or next to nothing: an eighth,
    /// of states and positions). Live bytes are moved only when the log holds a good deal more than
    /// lives in it, and as few as possible: of the prefixes of segments, the longest that frees enough for what
    /// moving it costs. On a full disk the longest that there is room to move, if it frees a quarter of it.
    ///
    /// Everything that waits is to be written before, or, if there is a `berth`, what the berth says.
    pub(super) fn choose_floor(
        &self,
        lived: &mut Lived,
        room: Room,
        berth: Option<&Berth>,
    ) -> Option<Plan> {
        let undone = berth.map_or(u64::MAX, |berth| berth.undone);
        let pinned = self.oldest_damage().min(self.oldest_rot()).min(undone);
        let (stated, beside) = self.weigh(room);
        let waiting = berth.map_or_else(|| self.places().0, |berth| berth.bytes);
        let segments = self.segments.read();
        let weight = |(base, n): (&u64, usize)| {
            segments.by_base.get(base).map_or(0, |s| s.live) + stated.get(n).unwrap_or(&0)
        };
        let now: Lived = segments.by_base.keys().zip(0..).map(|at| (*at.0, weight(at))).collect();
        let live: u64 = now.values().sum();
        let before = match room {
            Room::Any => std::mem::replace(lived, now),
            Room::Only(_) => Lived::new(),
        };
        let used: u64 = segments.by_base.values().map(|s| s.used).sum();
        let segment_bytes = self.options.segment_bytes;
        // Moved, said again, freed, and what moving takes beside the bodies.
        let (mut moved, mut said, mut freed, mut extra) = (0, 0, 0, 0);
        let mut plan: Option<Plan> = None;
        let mut settled = true;
        let mut ended = false;
        let bases = segments.by_base.keys().skip(1);
        let oldest = segments.by_base.iter().zip(bases).take(Purged::MOST as usize);
        for (n, ((base, segment), next)) in oldest.enumerate() {
            if *next > pinned {
                break;
            }
            let states = stated.get(n).copied().unwrap_or(0);
            // As the log would be without the segments before this one.
            let rest = used - freed + moved + said;
            moved += segment.live;
            said += states;
            freed += segment.used;
            extra += beside.get(n).copied().unwrap_or(0);
            // A call moves a segment's worth at most. But the oldest segment, whatever lives in it, is never too much,
            // or all others would stay with it: it may hold a batch larger than a segment. (On a full disk it is: there
            // is nothing to make a longer file of. What one segment states is not.)
            let cost = self.cost(waiting, moved, said, extra, room);
            let large = moved > segment_bytes;
            let fits = match n {
                0 => !large || room == Room::Any,
                _ => moved + said <= segment_bytes,
            };
            if !fits || matches!(room, Room::Only(room) if cost > room) {
                ended = true;
                break;
            }
            let lives = segment.live + states;
            // What is dying anyway would be moved for nothing: a little patience.
            settled &=
                lives == 0 || before.get(base).is_some_and(|before| before - before / 8 <= lives);
            let free = moved == 0 && said * 8 <= freed;
            let follows = plan.is_some() && segment.live == 0 && states * 8 <= segment.used;
            let goes = match room {
                Room::Only(_) => (moved + said) * 4 <= freed * 3,
                Room::Any => {
                    let percent = self.options.rewrite_percent;
                    let pays = settled && (moved + said) * 100 <= freed * percent;
                    let pressing = rest > 2 * live + 4 * segment_bytes;
                    rest * 4 > live * 7 && (pays || pressing)
                }
            };
            if free || follows || goes {
                plan = Some(Plan { floor: *next, cost, large, more: false });
            }
        }
        plan.map(|plan| Plan { more: ended, ..plan })
    }

    /// Of each segment, in their order: bytes of the states and positions whose latest statement it holds; and
    /// what saying them again takes at most beside that, and moving its runs beside their bodies, if that matters.
    fn weigh(&self, room: Room) -> (Vec<u64>, Vec<u64>) {
        let (mut stated, mut beside) = {
            let segments = self.segments.read();
            (segments.live(), segments.live())
        };
        let groups = self.index.groups();
        let mut reading = self.index.reading();
        for id in groups {
            let Some(group) = reading.get(id) else { continue };
            let [state_beside, base_beside] = group.saying(id);
            if let Some(state) = &group.state {
                stated.add(group.state_seq, SAYING + state.len() as u64);
                beside.add(group.state_seq, state_beside);
            }
            if group.base_seq > 0 {
                stated.add(group.base_seq, SAYING);
                beside.add(group.base_seq, base_beside);
            }
            if room != Room::Any {
                for run in &group.runs {
                    beside.add(run.seq, group.moving(run));
                }
            }
        }
        (stated.into_bytes(), beside.into_bytes())
    }

    /// Records of a purge that wait together come to this size at most, if no body in them is larger.
    pub(super) fn piece(&self) -> u64 {
        (self.options.segment_bytes / 4).min(MOVE_BYTES as u64)
    }

    /// Bytes that it takes to write what waits, what is moved and what is said again: each record of ours
    /// may be a group of its own.
    fn cost(&self, waiting: u64, moved: u64, said: u64, extra: u64, room: Room) -> u64 {
        let block = BLOCK as u64;
        let piece = self.piece();
        let (for_moved, for_said) = match room {
            Room::Any => (piece.min(HOLD_MOVED as u64), piece.min(HOLD_SAID)),
            // Nobody else writes: what is queued together flies together.
            Room::Only(_) => (piece, piece),
        };
        // What waits and the first record of ours fly together.
        let groups = moved.div_ceil(for_moved) + said.div_ceil(for_said).max(1) - 1;
        // Two neighbours come to more than the bound of one.
        let records = 2 * moved.div_ceil(HOLD_MOVED as u64) + said.div_ceil(HOLD_SAID) + 1;
        let bytes = waiting + moved + extra + said + records * RECORD;
        bytes.next_multiple_of(block) + groups * block
    }

    /// What batches that have no place yet take, and what the active segment has left.
    pub(super) fn places(&self) -> (u64, u64) {
        let writer = self.writer.lock();
        let stalled: u64 = writer.stalled.iter().map(|pending| pending.room()).sum();
        let waiting = stalled + self.queue.lock().waiting();
        (waiting + writer.echoed(), writer.size.saturating_sub(writer.offset))
    }

    /// Makes spares until records of `cost` bytes will find a place, whatever happens to the disk. Tells what
    /// there is if it is full.
    ///
    /// What fits into one stretch finds a place there even if the rest of the active segment is too short for
    /// its first record; of several spares each may stay half empty for that reason. A record that may be `large`, more
    /// than a segment, gets a spare that has room for all of it: were the file to grow, it might find no room then.
    pub(super) fn make_room(&self, cost: u64, large: bool) -> Result<Room> {
        loop {
            let (_, rest) = self.places();
            let mut pool = self.pool.lock();
            let spares = pool.len() as u64;
            let halves = pool.usable() * (spares + 1) / 2 * u64::from(spares > 0);
            let room = rest.max(pool.longest()).max(if large { 0 } else { halves });
            let enough = if large { cost.min(LONGEST) } else { cost };
            if room >= enough {
                return Ok(Room::Any);
            }
            let size = if large { pool.size_for(enough) } else { self.options.segment_bytes };
            let path = pool.next_path()?;
            drop(pool);
            match make_spare(&*self.disk, &self.dir, path, size, &mut |_| ()) {
                Ok(spare) => {
                    self.pool.lock().put(spare);
                    self.room_came();
                }
                Err(Error::DiskFull { .. }) => {
                    self.full.store(true, Relaxed);
                    return Ok(Room::Only(room));
                }
                Err(error) => return Err(self.poison(error)),
            }
        }
    }

    /// The oldest record that a damaged group refers to: it is evidence, and stays.
    fn oldest_damage(&self) -> u64 {
        let mut oldest = u64::MAX;
        if !self.index.has_damage() {
            return oldest;
        }
        for id in self.index.groups() {
            let Some(group) = self.index.read(id) else { continue };
            if group.damage.is_some() {
                let facts = [group.state_seq, group.base_seq, group.damage_seq];
                let runs = group.runs.iter().map(|run| run.seq);
                let seqs = runs.chain(facts.into_iter().filter(|seq| *seq > 0));
                oldest = oldest.min(seqs.min().unwrap_or(0));
            }
        }
        oldest
    }

    /// The oldest record that could not be read and still is somebody's.
    fn oldest_rot(&self) -> u64 {
        let mut rotten = self.rotten.lock();
        rotten.retain(|seq, group| {
            let group = self.index.read(*group);
            group.is_some_and(|group| group.runs.iter().any(|run| run.seq == *seq))
        });
        rotten.keys().next().copied().unwrap_or(u64::MAX)
    }
}
