//! Opening: read, replay, judge, take over.

use super::echo::{echoes_beyond, of_first, unechoed};
use super::flight::Air;
use super::footer::Summary;
use super::format::{BadSum, Op, RECORD_HEADER};
use super::groups::Index;
use super::index::{Damage, Dead, Group, Run};
use super::notes::Notes;
use super::queue::Queue;
use super::scan::{Found, Neighbour, Record, Scan, find_segments};
use super::sealed::{Looked, STRETCH, Sealed, look_at, merge};
use super::segment::{Pool, Reserved, SEGMENT_SUFFIX, Seal, Segment, SegmentTable, parse_name};
use super::tail::Tail;
use super::unreadable::{Holes, Sparse};
use super::write::{Waiters, Writer};
use super::{Counters, GroupId, Log, Options, Shared};
use crate::env::{Disk, OpenMode};
use crate::error::{Error, Result};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};

mod lost;
mod takeover;

use lost::Lost;

/// What opening found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recovery {
    /// Segments read.
    pub segments: u64,
    /// Of them, those whose footer was read instead of their records.
    pub footers: u64,
    /// Records replayed, those that a footer sums up included.
    pub records: u64,
    /// Groups known now.
    pub groups: u64,
    /// The number of the last record that was found. The next batch may have the second number behind it: opening may write a
    /// record of its own.
    pub last_seq: u64,
    /// What was cut: it had never been acknowledged.
    pub torn: Option<TornTail>,
    /// Groups that are fenced off.
    pub quarantined: Vec<Quarantine>,
    /// Further damage of groups that are fenced off: `quarantined` has one place of each.
    pub further: Vec<Damage>,
    /// Damage that took nothing with it (a copy of a header, a body that nobody needs any more).
    pub harmless: Vec<Damage>,
    /// Bytes of records that were copied into a fresh segment.
    pub copied_bytes: u64,
}

/// A tail that was being written when the log ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TornTail {
    /// The last segment.
    pub file: PathBuf,
    /// Where what was cut begins.
    pub offset: u64,
    /// The first record that was cut.
    pub seq: u64,
}

/// A group whose acknowledged bytes are damaged. Reset or clear it, and it works again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Quarantine {
    /// The group.
    pub group: GroupId,
    /// The last index before the damage.
    pub last_good: u64,
    /// Where the damage is.
    pub damage: Damage,
}

pub(super) fn describe(bad: &BadSum) -> String {
    if bad.expected == bad.found {
        // Magic and generation are checked before the checksum, which leaves the magic out.
        return "no record of this segment begins here".into();
    }
    format!("expected checksum {:#010x}, found {:#010x}", bad.expected, bad.found)
}

/// Names the directory of record `seq`, and says so if it is not its checksum that is wrong.
pub(super) fn name_directory(seq: u64, bad: &BadSum) -> String {
    let but = match bad.expected == bad.found {
        true => ": its checksum holds, but no log says what it says",
        false => "",
    };
    format!("directory of record {seq}{but}")
}

/// Bodies that are damaged, by record and place in the payload.
type BadBodies = BTreeMap<(u64, u32), Damage>;

/// Those that the group still needs.
fn damaged_places(group: &Group, bad: &BadBodies) -> impl Iterator<Item = (u64, u32)> {
    let state = group.state.as_ref().map(|_| (group.state_seq, group.state_rel));
    let runs = group.runs.iter().map(|run| (run.seq, run.body.rel));
    runs.chain(state).filter(|key| bad.contains_key(key))
}

#[derive(Default)]
struct Replay {
    index: Index,
    bad: BadBodies,
    lost: Vec<Lost>,
    /// Records whose directory cannot be read: what they said, a floor perhaps, nobody knows.
    unsaid: Vec<(u64, Damage)>,
    /// Segments that are too short, by where their records end.
    short: Vec<(u64, Damage)>,
    floor: u64,
    next_seq: u64,
    durable: u64,
    recovery: Recovery,
    places: BTreeMap<u64, Vec<u32>>,
    /// Segments whose footer was read, by base.
    sealed: BTreeSet<u64>,
    /// Groups of records whose directory cannot be read, and those records, ascending: a floor may pass some of them.
    fences: BTreeMap<GroupId, Vec<Fence>>,
    /// Echoes of those records of the segment before the last which nothing in it repeats; if its records were not read,
    /// what the last one repeats of it.
    unechoed: Option<Vec<u8>>,
    /// What the next group is to repeat of the one that opening wrote.
    echo: Vec<u8>,
}

/// Why a group has to be fenced off, unless it is wiped later or the floor passes.
struct Fence {
    seq: u64,
    last_good: u64,
    damage: Damage,
}

impl Log {
    /// Opens the log in `dir`, making it if it is not there. Takes the directory's lock.
    ///
    /// On return everything that was found is durable. Errors: [`InvalidArgument`](Error::InvalidArgument) for
    /// options that cannot work; [`Locked`](Error::Locked);
    /// [`Corruption`](Error::Corruption) when acknowledged records are damaged and it cannot be told
    /// which groups they belong to, or when what has a segment's or a spare's name is no regular file (a link, a
    /// directory); [`Identity`](Error::Identity) for a format version that this build does
    /// not read; [`DiskFull`](Error::DiskFull) when there is no room to make a log, or for what has to be copied
    /// ([`Stopped`](Error::Stopped) if it shows only when the new segment gets its name); [`Io`](Error::Io). A failed
    /// open has changed nothing that another open would miss.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, options: Options) -> Result<(Log, Recovery)> {
        options.validate()?;
        if !disk.exists(dir)? {
            disk.create_dir_all(dir)?;
        }
        let lock = disk.lock_dir(dir)?;
        let names = disk.list(dir)?;
        if !names.is_empty() {
            // A process that was killed may have left names that no sync has covered. What is built on them
            // (a newer segment, a spare with a new header) must not survive a power cut without them.
            disk.sync_dir(dir)?;
        }
        let found = find_segments(&*disk, dir, &names, OpenMode::ReadWrite, Neighbour::None)?;
        let mut replay = Replay { next_seq: 1, ..Replay::default() };
        let mut tail = None;
        for from in (0..found.len()).step_by(STRETCH) {
            let some = &found[from..found.len().min(from + STRETCH)];
            let looked = look_at(&*disk, some)?;
            tail = replay.stretch(&*disk, some, looked, &found[from + some.len()..])?;
        }
        replay.judge(&found)?;

        let mut pool = Pool::new(disk.clone(), dir, &options);
        for generation in names.iter().filter_map(|name| parse_name(name, SEGMENT_SUFFIX)) {
            pool.see_generation(generation);
        }
        pool.adopt(&names)?;
        let (active, base) = replay.take_over(&mut pool, &found, tail, &options)?;
        let table = replay.build_table(&mut pool, found, active, base)?;
        if pool.reserve()? == Reserved::No {
            tracing::warn!(
                "no room for a spare segment: purge has only what the last one has left"
            );
        }
        let Replay { index, recovery, next_seq, echo, .. } = replay;
        let last = next_seq - 1;
        let writer = table.by_base.values().next_back().map(|active| Writer::new(active, last));
        let Some(writer) =
            writer.map(|writer| Writer { echoes: [(next_seq - 1, echo)].into(), ..writer })
        else {
            return Err(Error::Stopped { reason: "the log has no active segment".into() });
        };
        let shared = Shared {
            options,
            disk,
            dir: dir.to_owned(),
            index,
            queue: Mutex::new(Queue::new(next_seq)),
            pending_bytes: AtomicUsize::new(0),
            work: Condvar::new(),
            writer: Mutex::new(writer),
            air: Air::default(),
            waiters: Waiters::default(),
            segments: RwLock::new(table),
            pool: Mutex::new(pool),
            purging: Mutex::default(),
            durable: AtomicU64::new(last),
            rotten: Mutex::default(),
            poisoned: OnceLock::new(),
            cache_bytes: AtomicUsize::new(0),
            room: AtomicU64::new(0),
            full: AtomicBool::new(false),
            counters: Counters::default(),
            _lock: lock,
        };
        Ok((Log { shared: Arc::new(shared) }, recovery))
    }
}

impl Replay {
    /// Replays segments that follow each other: footers together, as far as no records come between them. If
    /// the last one of all is among them, returns what the takeover needs of it.
    fn stretch(
        &mut self,
        disk: &dyn Disk,
        segments: &[Found],
        looked: Vec<Looked>,
        later: &[Found],
    ) -> Result<Option<Tail>> {
        let mut tail = None;
        let mut sealed = (Vec::new(), Vec::new());
        for (n, (segment, looked)) in segments.iter().zip(looked).enumerate() {
            for bad in &segment.bad_header {
                let (file, detail) = (segment.path.clone(), describe(bad));
                self.recovery.harmless.push(Damage { file, offset: bad.offset, detail });
            }
            if segment.is_void() {
                continue;
            }
            self.note_length(segment);
            let base = segment.header.base_seq;
            if base > self.next_seq {
                self.miss(segment, self.next_seq, base);
            }
            self.next_seq = base;
            self.recovery.segments += 1;
            match looked.sealed {
                Sealed::Is(summary) => {
                    self.count_footer(segment, &summary);
                    sealed.0.push(segment);
                    sealed.1.push(summary);
                    continue;
                }
                Sealed::No => {}
                Sealed::Orphan(trailer) => {
                    let detail = "the segment after this one is missing".into();
                    self.lose(segment, trailer.next_seq, trailer.next_seq + 1, 0, detail);
                }
                Sealed::Damaged(trailer) => self.recovery.harmless.push(Damage {
                    file: segment.path.clone(),
                    offset: trailer.summary_at,
                    detail: "the footer is damaged; its records were read instead".into(),
                }),
            }
            self.take_footers(disk, std::mem::take(&mut sealed))?;
            let next = segments[n + 1..].iter().chain(later);
            tail = self.segment(segment, looked.bytes, next)?;
        }
        self.take_footers(disk, sealed)?;
        Ok(tail)
    }

    /// What a footer says of its segment as a whole.
    fn count_footer(&mut self, segment: &Found, summary: &Summary) {
        self.unechoed = None;
        self.recovery.footers += 1;
        self.recovery.records += summary.payloads.len() as u64;
        self.next_seq = summary.trailer.next_seq;
        self.durable = self.durable.max(segment.header.durable).max(self.next_seq - 1);
        self.sealed.insert(segment.header.base_seq);
    }

    /// Replays what footers say their segments come to.
    fn take_footers(
        &mut self,
        disk: &dyn Disk,
        (segments, summaries): (Vec<&Found>, Vec<Summary>),
    ) -> Result<()> {
        let wiped = merge(disk, &self.index, &summaries).map_err(|n| {
            // Its checksum held: a writer from another world.
            let (path, offset) = (segments[n].path.clone(), summaries[n].trailer.summary_at);
            Error::Corruption { path, offset, detail: "the footer makes no sense".into() }
        })?;
        for group in wiped {
            self.fences.remove(&group);
        }
        // Groups that are in no footer behind the floor's.
        let floor = summaries.iter().map(|summary| summary.floor).max().unwrap_or(0);
        if floor > 0 {
            self.drop_below(floor);
        }
        for (segment, summary) in segments.into_iter().zip(summaries) {
            self.places.insert(segment.header.base_seq, summary.payloads);
        }
        Ok(())
    }

    /// Replays the records of one segment. For the last one, returns what the takeover needs.
    fn segment<'a>(
        &mut self,
        segment: &Found,
        read: Option<Sparse>,
        later: impl Iterator<Item = &'a Found>,
    ) -> Result<Option<Tail>> {
        let base = segment.header.base_seq;
        let beyond = echoes_beyond(segment, later)?;
        let Sparse { bytes, holes } = read.map_or_else(|| segment.read(&beyond), Ok)?;
        let mut scan = Scan::new(&bytes, &segment.header, segment.limit, beyond);
        let mut records = Vec::new();
        while let Some(record) = scan.next() {
            records.push(record);
        }
        let end = scan.end();
        self.durable = self.durable.max(end.durable);

        // Only the last segment can have a tail that was never acknowledged.
        let stated = end.durable;
        let mut whole = 0;
        let mut clean = true;
        let mut cut = None;
        for record in &records {
            let seq = record.header.seq;
            if !record.is_whole() {
                clean = false;
                if seq > stated {
                    cut = Some((record.offset, seq));
                    break;
                }
            }
            self.record(segment, &bytes, record, &holes);
            whole += 1;
        }
        let places = records[..whole].iter().map(|record| record.payload_at() as u32).collect();
        self.places.insert(base, places);
        self.next_seq = base + whole as u64;
        if cut.is_none() {
            cut = self.close_segment(segment, &end, &holes);
        }
        let is_cut = self.judge_holes(segment, &holes, &records, &end, cut) || end.is_cut;
        clean &= cut.is_none_or(|(_, seq)| seq == self.next_seq) && self.lost.is_empty();
        if let Some((offset, seq)) = cut {
            let file = segment.path.clone();
            self.recovery.torn = Some(TornTail { file, offset: offset as u64, seq });
        }
        records.truncate(whole);
        if segment.limit.is_some() {
            self.unechoed = Some(unechoed(&bytes, &records));
            return Ok(None);
        }
        self.unechoed =
            self.unechoed.take().or_else(|| of_first(&bytes, &segment.header).map(Vec::from));
        Ok(Some(Tail { base_seq: base, bytes, records, clean, is_cut }))
    }

    /// Replays one record that was acknowledged or is whole.
    fn record(&mut self, segment: &Found, bytes: &[u8], record: &Record, holes: &Holes) {
        let seq = record.header.seq;
        let found = |bad: &BadSum, len: u64| match holes.within(bad.offset..bad.offset + len) {
            Some(hole) => hole.damage(&segment.path),
            None => {
                let (file, detail) = (segment.path.clone(), describe(bad));
                Damage { file, offset: bad.offset, detail }
            }
        };
        let damage = |bad: &BadSum, len: u64, what: &str| {
            let found = found(bad, len);
            Damage { detail: format!("{what} of record {seq}: {}", found.detail), ..found }
        };
        if let Some(bad) = &record.bad_header {
            self.recovery.harmless.push(damage(
                bad,
                RECORD_HEADER as u64,
                "header (known from the group after it)",
            ));
        }
        if let Some(bad) = &record.bad_echo {
            self.recovery.harmless.push(damage(bad, u64::from(record.header.echo_len), "echo"));
        }
        let ops = match &record.ops {
            Ok(ops) => ops,
            Err(bad) => {
                let mut damage = damage(bad, u64::from(record.header.dir_len), "directory");
                if bad.expected == bad.found {
                    damage.detail = name_directory(seq, bad);
                }
                self.unsaid.push((seq, damage.clone()));
                let Some(groups) = &record.groups else {
                    return self.lose(segment, seq, seq + 1, damage.offset, damage.detail);
                };
                for group in groups {
                    let last_good = self.index.read(*group).map_or(0, |g| g.last());
                    let fence = Fence { seq, last_good, damage: damage.clone() };
                    self.fences.entry(*group).or_default().push(fence);
                }
                return;
            }
        };
        self.recovery.records += 1;
        for (n, bad) in &record.bad_ops {
            if let Some(body) = ops[*n].body() {
                let damage = found(bad, u64::from(body.len));
                self.bad.insert((seq, body.rel), damage);
            }
        }
        let payload = record.payload_at();
        let mut dead = Dead::new();
        for op in ops {
            let Some(group) = op.group() else {
                if let Op::Floor { seq } = op {
                    self.drop_below(*seq);
                }
                continue;
            };
            let state = match op {
                Op::State { body, .. } => {
                    let start = payload + body.rel as usize;
                    Some(Bytes::copy_from_slice(&bytes[start..start + body.len as usize]))
                }
                Op::Reset { .. } | Op::Clear { .. } => {
                    self.fences.remove(&group);
                    None
                }
                _ => None,
            };
            self.index.change(group, |g| g.take(seq, op, state, &mut dead));
        }
    }

    fn drop_below(&mut self, floor: u64) {
        self.floor = self.floor.max(floor);
        self.fences.retain(|_, fences| {
            fences.retain(|fence| fence.seq >= floor);
            !fences.is_empty()
        });
        for group in self.index.groups() {
            self.index.change(group, |g| g.drop_below_floor(floor));
        }
    }

    /// Damaged bodies that are still needed fence off their groups.
    fn judge(&mut self, segments: &[Found]) -> Result<()> {
        self.judge_losses()?;
        let (mut told, mut needed) = (BTreeSet::new(), BTreeSet::new());
        let fenced = self.fences.keys().copied();
        let groups: BTreeSet<GroupId> = self.index.groups().into_iter().chain(fenced).collect();
        for id in groups {
            let fences = self.fences.remove(&id).unwrap_or_default();
            let bad = &self.bad;
            let mut keys: Vec<(u64, u32)> = fences.iter().map(|fence| (fence.seq, 0)).collect();
            let fence = fences.into_iter().next();
            let (damage, last_good, key) = self.index.change(id, |group| {
                let found = fence.map(|fence| (fence.damage, fence.last_good, (fence.seq, 0)));
                let found = found.or_else(|| {
                    let mut runs = group.runs.iter().take_while(|_| !bad.is_empty());
                    runs.find_map(|run| {
                        let key = (run.seq, run.body.rel);
                        bad.get(&key)
                            .map(|damage| (damage.clone(), run.from.saturating_sub(1), key))
                    })
                });
                let found = found.or_else(|| {
                    // A state record has no place in the index: it is damaged if one of its record is
                    // and its bytes are what was read.
                    let key = (group.state_seq, group.state_rel);
                    let damage = bad.get(&key).filter(|_| group.state.is_some())?;
                    Some((damage.clone(), group.last(), key))
                });
                let found = found.or_else(|| {
                    let gap = group.gap()?;
                    // No bytes are damaged. Where the group goes on is where to look.
                    let next = group.runs.iter().find(|run| run.from > gap);
                    let next = next.map_or(u64::MAX, |run| run.seq);
                    let holds = |at: &&Found| !at.is_void() && at.header.base_seq <= next;
                    let file = segments.iter().rev().find(holds).map(|at| at.path.clone());
                    let detail = format!("entry {gap} is missing before those in this file");
                    let damage = Damage { file: file.unwrap_or_default(), offset: 0, detail };
                    Some((damage, gap - 1, (0, 0)))
                });
                match found {
                    Some((damage, last_good, key)) => {
                        keys.extend(damaged_places(group, bad));
                        group.damage = Some(Box::new(damage.clone()));
                        // What is told is one of several, perhaps: purge keeps all of them, and the first counts.
                        group.damage_seq =
                            keys.iter().fold(key.0, |first, (seq, _)| first.min(*seq));
                        let bad = |run: &&Run| bad.contains_key(&(run.seq, run.body.rel));
                        let first =
                            group.runs.iter().find(bad).map(|run| run.from.saturating_sub(1));
                        (Some(damage), first.map_or(last_good, |first| first.min(last_good)), key)
                    }
                    None => (None, 0, (0, 0)),
                }
            });
            if let Some(damage) = damage {
                told.insert(key);
                needed.extend(keys);
                self.recovery.quarantined.push(Quarantine { group: id, last_good, damage });
            }
        }
        // Bodies, and directories: of some nothing is needed any more, for their groups were reset or cleared, or a floor passed.
        let bodies = self.bad.iter().map(|(key, damage)| (*key, damage));
        let directories = self.unsaid.iter().map(|(seq, damage)| ((*seq, 0), damage));
        for (key, damage) in bodies.chain(directories).filter(|(key, _)| !told.contains(key)) {
            match needed.contains(&key) {
                true => self.recovery.further.push(damage.clone()),
                false => self.recovery.harmless.push(damage.clone()),
            }
        }
        self.recovery.groups = self.index.len() as u64;
        self.recovery.last_seq = self.next_seq - 1;
        Ok(())
    }

    /// The table that readers use; files that hold nothing of worth go back to the pool.
    fn build_table(
        &mut self,
        pool: &mut Pool,
        found: Vec<Found>,
        mut active: Segment,
        base: u64,
    ) -> Result<SegmentTable> {
        let mut table = SegmentTable::default();
        for segment in found {
            let from = segment.header.base_seq;
            let limit = segment.limit.unwrap_or(base).min(base);
            let void = limit <= from || limit <= self.floor;
            if void {
                pool.recycle(&segment.path, segment.file)?;
                continue;
            }
            let size = segment.file.len()?;
            let mut payloads = self.places.remove(&from).unwrap_or_default();
            payloads.truncate((limit - from) as usize);
            table.by_base.insert(
                from,
                Segment {
                    generation: segment.header.generation,
                    file: segment.file,
                    path: segment.path,
                    size,
                    payloads,
                    live: 0,
                    used: size,
                    room: 0,
                    seal: match self.sealed.contains(&from) {
                        true => Seal::Footer,
                        false => Seal::Open,
                    },
                    notes: Notes::default(),
                },
            );
        }
        active.payloads = self.places.remove(&base).unwrap_or_default();
        table.by_base.insert(base, active);
        table.set_placed(self.next_seq - 1);
        let mut live = table.live();
        let mut changing = self.index.changing();
        for group in self.index.groups() {
            changing.change(group, |g| {
                g.runs.shrink_to_fit();
                // Not a slice that holds a whole footer in memory.
                g.state = g.state.as_ref().map(|state| Bytes::copy_from_slice(state));
                for run in &g.runs {
                    live.add(run.seq, u64::from(run.live()));
                }
            });
        }
        drop(changing);
        table.set_live(live);
        Ok(table)
    }
}

#[cfg(test)]
mod tests;
