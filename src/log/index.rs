//! What the log knows in memory of each group: where its runs lie, its terms, its state record, and
//! the newest entries themselves. Runs are batch-grained: a fixed cost per group and batch, nothing per
//! entry but what the cache holds.

use super::format::{Op, Span, Terms};
use super::{Entry, GroupId};
use crate::types::LogPosition;
use bytes::Bytes;
use parking_lot::{MappedRwLockReadGuard, RwLock, RwLockReadGuard};
use std::collections::{HashMap, VecDeque}; // lookup only
use std::hash::{BuildHasherDefault, Hasher};
use std::path::PathBuf;

/// Consecutive entries that came in one record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    /// Index of the first live entry.
    pub from: u64,
    /// The record.
    pub seq: u64,
    /// The body within the record's payload.
    pub body: Span,
    /// Live entries.
    pub count: u32,
    /// Entries of the body before `from`.
    pub skip: u32,
}

impl Run {
    pub fn end(&self) -> u64 {
        self.from + u64::from(self.count)
    }
}

/// Why a group is fenced off: acknowledged bytes of it are damaged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// The damaged file.
    pub file: PathBuf,
    /// Where the damaged bytes start.
    pub offset: u64,
    /// Expected and found.
    pub detail: String,
}

/// Bodies that a group no longer needs: (record, bytes).
pub(super) type Dead = Vec<(u64, u32)>;

/// One group.
///
/// - `runs` are contiguous from `truncated.index + 1` (only while a log is replayed may there be gaps).
/// - `terms` answers for every index that a run covers.
/// - `cache`, if not empty, is a contiguous range of entries that ends at the last one.
/// - An entry that is not in the cache lies in a record that is durable.
#[derive(Default, Debug)]
pub(super) struct Group {
    pub truncated: LogPosition,
    /// The record that says `truncated`; 0 if none does (a new group).
    pub base_seq: u64,
    pub state: Option<Bytes>,
    pub state_seq: u64,
    /// Where in the record's payload the state lies.
    pub state_rel: u32,
    pub terms: Vec<(u64, u64)>,
    pub runs: VecDeque<Run>,
    pub cache: VecDeque<Entry>,
    pub applied: u64,
    /// Whether the group stands in the cache's clock.
    pub in_clock: bool,
    pub damage: Option<Box<Damage>>,
}

/// What an entry weighs in the cache beside its data.
const CACHE_OVERHEAD: usize = std::mem::size_of::<Entry>();

pub(super) fn weight(entry: &Entry) -> usize {
    entry.data.len() + CACHE_OVERHEAD
}

impl Group {
    pub fn last(&self) -> u64 {
        self.runs.back().map_or(self.truncated.index, |run| run.end() - 1)
    }

    pub fn term(&self, index: u64) -> Option<u64> {
        if index == self.truncated.index {
            return Some(self.truncated.term);
        }
        if index < self.truncated.index || index > self.last() {
            return None;
        }
        self.term_of(index)
    }

    fn term_of(&self, index: u64) -> Option<u64> {
        let after = self.terms.partition_point(|(from, _)| *from <= index);
        after.checked_sub(1).map(|i| self.terms[i].1)
    }

    /// Whether nothing is known that is worth keeping.
    pub fn is_blank(&self) -> bool {
        self.runs.is_empty() && self.base_seq == 0 && self.state.is_none() && self.damage.is_none()
    }

    /// The first index that is missing, if there is a gap.
    pub fn gap(&self) -> Option<u64> {
        let mut next = self.truncated.index + 1;
        for run in &self.runs {
            if run.from != next {
                return Some(next);
            }
            next = run.end();
        }
        None
    }

    /// The run that holds `index`.
    pub fn find(&self, index: u64) -> Option<usize> {
        let after = self.runs.partition_point(|run| run.from <= index);
        after.checked_sub(1).filter(|i| index < self.runs[*i].end())
    }

    /// Takes in one operation of record `seq`. Returns how many bytes left the cache.
    pub fn take(&mut self, seq: u64, op: &Op, state: Option<Bytes>, dead: &mut Dead) -> usize {
        match op {
            Op::Append { first, count, terms, body, .. } => {
                let freed = self.drop_from(*first, dead);
                for (index, term) in terms.iter() {
                    if self.terms.last().is_none_or(|(_, last)| *last != term) {
                        self.terms.push((index, term));
                    }
                }
                let run = Run { from: *first, seq, body: *body, count: *count, skip: 0 };
                self.runs.push_back(run);
                freed
            }
            Op::Rewrite { from, count, skip, terms, body, .. } => {
                let run = Run { from: *from, seq, body: *body, count: *count, skip: *skip };
                self.place(run, terms, dead);
                0
            }
            Op::State { body, .. } => {
                self.state = state;
                self.state_seq = seq;
                self.state_rel = body.rel;
                0
            }
            Op::Compact { to, .. } => {
                if to.index <= self.truncated.index {
                    return 0;
                }
                self.drop_to(seq, *to, dead)
            }
            Op::Base { at, .. } => self.drop_to(seq, *at, dead),
            Op::Reset { to, .. } => {
                let freed = self.drop_all(dead);
                self.truncated = *to;
                self.base_seq = seq;
                self.damage = None;
                freed
            }
            Op::Clear { .. } => {
                let freed = self.drop_all(dead);
                let in_clock = self.in_clock;
                *self = Group { in_clock, ..Group::default() };
                freed
            }
            Op::Floor { .. } => 0,
        }
    }

    fn drop_all(&mut self, dead: &mut Dead) -> usize {
        dead.extend(self.runs.drain(..).map(|run| (run.seq, run.body.len)));
        self.terms = Vec::new();
        self.applied = 0;
        self.cache.drain(..).map(|e| weight(&e)).sum()
    }

    /// Drops the suffix from `first` on.
    fn drop_from(&mut self, first: u64, dead: &mut Dead) -> usize {
        while let Some(run) = self.runs.back_mut() {
            if run.end() <= first {
                break;
            }
            if run.from < first {
                run.count = (first - run.from) as u32;
                break;
            }
            dead.push((run.seq, run.body.len));
            self.runs.pop_back();
        }
        while self.terms.last().is_some_and(|(from, _)| *from >= first) {
            self.terms.pop();
        }
        let mut freed = 0;
        while self.cache.back().is_some_and(|e| e.index >= first) {
            freed += self.cache.pop_back().map_or(0, |e| weight(&e));
        }
        freed
    }

    /// Drops the prefix up to `to`, which becomes the truncated position.
    fn drop_to(&mut self, seq: u64, to: LogPosition, dead: &mut Dead) -> usize {
        while let Some(run) = self.runs.front_mut() {
            if run.from > to.index {
                break;
            }
            if run.end() > to.index + 1 {
                let gone = (to.index + 1 - run.from) as u32;
                run.from += u64::from(gone);
                run.skip += gone;
                run.count -= gone;
                break;
            }
            dead.push((run.seq, run.body.len));
            self.runs.pop_front();
        }
        let keep = self.terms.partition_point(|(from, _)| *from <= to.index + 1);
        self.terms.drain(..keep.saturating_sub(1));
        if self.runs.is_empty() {
            self.terms = Vec::new();
        }
        self.truncated = to;
        self.base_seq = seq;
        let mut freed = 0;
        while self.cache.front().is_some_and(|e| e.index <= to.index) {
            freed += self.cache.pop_front().map_or(0, |e| weight(&e));
        }
        freed
    }

    /// Puts a run where it belongs, instead of whatever is there (a replayed rewrite: what it replaces
    /// may have been purged already, or not yet).
    fn place(&mut self, run: Run, terms: &Terms, dead: &mut Dead) {
        let end = run.end();
        let after = self.term_of(end).filter(|_| self.runs.iter().any(|r| r.end() > end));
        let mut merged: Vec<(u64, u64)> =
            self.terms.iter().copied().filter(|(from, _)| *from < run.from).collect();
        merged.extend(terms.iter());
        merged.extend(after.map(|term| (end, term)));
        merged.extend(self.terms.iter().copied().filter(|(from, _)| *from > end));
        merged.dedup_by_key(|(_, term)| *term);
        self.terms = merged;

        let mut kept = VecDeque::with_capacity(self.runs.len() + 2);
        for old in self.runs.drain(..) {
            if old.end() <= run.from || old.from >= end {
                kept.push_back(old);
                continue;
            }
            let head = run.from.saturating_sub(old.from) as u32;
            let tail = old.end().saturating_sub(end) as u32;
            if head > 0 {
                kept.push_back(Run { count: head, ..old });
            }
            if tail > 0 {
                let gone = old.count - tail;
                kept.push_back(Run { from: end, count: tail, skip: old.skip + gone, ..old });
            }
            if head == 0 && tail == 0 {
                dead.push((old.seq, old.body.len));
            }
        }
        let at = kept.partition_point(|r| r.from < run.from);
        kept.insert(at, run);
        self.runs = kept;
    }

    /// Everything below `floor` was restated or is gone.
    pub fn drop_below_floor(&mut self, floor: u64) {
        self.runs.retain(|run| run.seq >= floor);
        if self.base_seq < floor {
            self.base_seq = 0;
            self.truncated = LogPosition::default();
        }
        if self.state_seq < floor {
            self.state_seq = 0;
            self.state = None;
        }
        if self.runs.is_empty() {
            self.terms = Vec::new();
        }
    }

    /// Puts new entries at the end of the cache. Returns the bytes added.
    pub fn cache_append(&mut self, entries: impl Iterator<Item = Entry>) -> usize {
        let before = self.cache.len();
        self.cache.extend(entries);
        self.cache.range(before..).map(weight).sum()
    }

    /// Evicts what is durable and applied. Returns the bytes freed.
    pub fn evict(&mut self, durable: u64) -> usize {
        let mut freed = 0;
        while let Some(front) = self.cache.front() {
            let index = front.index;
            let written = self.find(index).is_some_and(|i| self.runs[i].seq <= durable);
            if index > self.applied || !written {
                break;
            }
            freed += self.cache.pop_front().map_or(0, |e| weight(&e));
        }
        if self.cache.is_empty() {
            self.cache = VecDeque::new();
        }
        freed
    }
}

/// A multiplicative hash: group ids are dense and not chosen by an enemy.
#[derive(Default)]
pub(super) struct GroupHasher(u64);

impl Hasher for GroupHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0.rotate_left(8) ^ u64::from(*byte));
        }
    }
    fn write_u64(&mut self, value: u64) {
        let mixed = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 29);
    }
}

type Shard = HashMap<GroupId, Group, BuildHasherDefault<GroupHasher>>;

const SHARDS: usize = 64;

/// All groups, sharded so that readers of different groups seldom meet. Writers come one at a time:
/// every change is made under the submit lock.
#[derive(Debug)]
pub(super) struct Index {
    shards: Vec<RwLock<Shard>>,
}

impl Default for Index {
    fn default() -> Index {
        Index { shards: (0..SHARDS).map(|_| RwLock::default()).collect() }
    }
}

impl Index {
    fn shard(&self, group: GroupId) -> &RwLock<Shard> {
        &self.shards[(group % SHARDS as u64) as usize]
    }

    pub fn read(&self, group: GroupId) -> Option<MappedRwLockReadGuard<'_, Group>> {
        RwLockReadGuard::try_map(self.shard(group).read(), |shard| shard.get(&group)).ok()
    }

    /// Changes the group, making it if it is new and dropping it if nothing is left.
    pub fn change<T>(&self, group: GroupId, change: impl FnOnce(&mut Group) -> T) -> T {
        let mut shard = self.shard(group).write();
        let entry = shard.entry(group).or_default();
        let out = change(entry);
        if entry.is_blank() {
            shard.remove(&group);
        }
        out
    }

    /// Changes the group if there is one.
    pub fn change_existing<T>(
        &self,
        group: GroupId,
        change: impl FnOnce(&mut Group) -> T,
    ) -> Option<T> {
        let mut shard = self.shard(group).write();
        shard.get_mut(&group).map(change)
    }

    pub fn groups(&self) -> Vec<GroupId> {
        let mut groups: Vec<GroupId> =
            self.shards.iter().flat_map(|s| s.read().keys().copied().collect::<Vec<_>>()).collect();
        groups.sort_unstable();
        groups
    }

    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.read().len()).sum()
    }
}
