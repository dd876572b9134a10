//! What the log knows in memory of each group: where its runs lie, its terms, its state record, and
//! the newest entries themselves. Runs are batch-grained: a fixed cost per group and batch, nothing per
//! entry but what the cache holds.

use super::format::{Op, Span, Terms, varint};
use super::{Entry, GroupId};
use crate::types::LogPosition;
use bytes::Bytes;
use std::collections::VecDeque;
use std::ops::Range;
use std::path::PathBuf;

/// Consecutive entries that came in one record; or, packed, in several records of one sealed segment,
/// whose footer has a section that lists them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    /// Index of the first live entry.
    pub from: u64,
    /// The record. Packed: the first one of the segment.
    pub seq: u64,
    /// The body within the record's payload. Packed: the section within the file.
    pub body: Span,
    /// Live entries.
    pub count: u32,
    /// Entries of the body (packed: of all its bodies) before `from`.
    pub skip: u32,
    /// 0 if `body` holds the entries themselves. Packed: bytes of the bodies that are still needed,
    /// in proportion where only a part of the entries is; at least 1.
    pub packed: u32,
}

impl Run {
    pub fn end(&self) -> u64 {
        self.from + u64::from(self.count)
    }

    pub fn is_packed(&self) -> bool {
        self.packed > 0
    }

    /// Bytes on the disk that it keeps alive.
    pub fn live(&self) -> u32 {
        if self.is_packed() { self.packed } else { self.body.len }
    }

    /// The entries `low..high` of it.
    pub fn part(&self, low: u64, high: u64) -> Run {
        let count = (high - low) as u32;
        let share = u64::from(self.packed) * u64::from(count) / u64::from(self.count.max(1));
        Run {
            from: low,
            count,
            skip: self.skip + (low - self.from) as u32,
            packed: if self.is_packed() { share.max(1) as u32 } else { 0 },
            ..*self
        }
    }

    /// Cuts it down to `low..high`. A body that holds it alone stays alive to the last entry.
    fn trim(&mut self, low: u64, high: u64, dead: &mut Dead) {
        let part = self.part(low, high);
        if self.packed > part.packed {
            dead.push((self.seq, self.packed - part.packed));
        }
        *self = part;
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

/// To state a state or a position takes about so many bytes beside the state itself: what counts as living. For
/// what it takes at most, see [`Group::saying`].
pub(super) const SAYING: u64 = 16;

/// A moved run of one term takes at most so many bytes beside its body: tag, name (twice, for the echo), first
/// index and term of 10 bytes each; count, skip, number of terms and size of 5; a checksum; and a share of its
/// record's header.
const MOVING: u64 = 1 + 2 * 10 + 10 + 10 + 5 + 5 + 5 + 5 + 4 + 8;

/// Each further term takes at most so many.
const TERM: u64 = 10 + 10;

/// A packed run is of so many at most.
const PACKED: u32 = 128;

/// Bodies that a group no longer needs: (record, bytes).
pub(super) type Dead = Vec<(u64, u32)>;

/// One group.
///
/// - `runs` ascend without overlap, contiguous from `truncated.index + 1` (only while a log is replayed may there be gaps).
/// - `terms` ascends strictly and answers for every index that a run covers, and none of them begins behind the last.
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
    /// The damaged record: evidence, which purge leaves alone.
    pub damage_seq: u64,
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

    /// Bytes that its state and position take where they are stated, about.
    pub fn stated_bytes(&self) -> u64 {
        let state = self.state.as_ref().map_or(0, |state| SAYING + state.len() as u64);
        state + if self.base_seq > 0 { SAYING } else { 0 }
    }

    /// What it takes at most to say the group's state again, and its position, beside the state itself and the
    /// [`SAYING`] of each: operation and place in the echo.
    pub fn saying(&self, id: GroupId) -> [u64; 2] {
        let name = 1 + 2 * varint(id);
        let state = self.state.as_ref().map_or(0, |state| name + varint(state.len() as u64) + 4);
        let base = name + varint(self.truncated.index) + varint(self.truncated.term);
        [state, base].map(|bytes| bytes.saturating_sub(SAYING))
    }

    /// What moving this run takes at most beside its bodies: operations, and places in the echo.
    pub fn moving(&self, run: &Run) -> u64 {
        // A packed run may be of many.
        let runs = if run.is_packed() { 1 + u64::from(run.count.min(PACKED)) } else { 1 };
        let first = self.terms.partition_point(|(from, _)| *from <= run.from);
        let terms = self.terms[first..].partition_point(|(from, _)| *from < run.end()) as u64;
        MOVING * runs + TERM * terms
    }

    /// Whether only records below `floor` say what its state or its position is.
    pub fn is_stated_below(&self, floor: u64) -> bool {
        let base = self.base_seq > 0 && self.base_seq < floor;
        base || self.state.is_some() && self.state_seq < floor
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

    /// The oldest record of which this operation, which was submitted, would make something void or older than
    /// the newest: without the operation that record is needed. `u64::MAX` if there is none.
    ///
    /// Asked of every batch, though only a full disk wants to know, and then of what waits already: so it looks at
    /// nothing but what the operation is about to change. An append at the end is not asked.
    pub fn undoes(&self, op: &Op) -> u64 {
        let said = |seq: u64| if seq == 0 { u64::MAX } else { seq };
        let oldest = |runs: &mut dyn Iterator<Item = &Run>| {
            runs.map(|run| run.seq).min().unwrap_or(u64::MAX)
        };
        match op {
            Op::Append { first, .. } if *first > self.last() => u64::MAX,
            Op::Append { first, .. } => {
                oldest(&mut self.runs.iter().rev().take_while(|run| run.end() > *first))
            }
            Op::State { .. } => said(self.state_seq),
            Op::Compact { to, .. } if to.index <= self.truncated.index => u64::MAX,
            Op::Compact { to, .. } => {
                let gone = oldest(&mut self.runs.iter().take_while(|run| run.from <= to.index));
                gone.min(said(self.base_seq))
            }
            Op::Reset { .. } | Op::Clear { .. } => {
                let facts = [self.base_seq, self.state_seq, self.damage_seq].map(said);
                facts.into_iter().fold(oldest(&mut self.runs.iter()), u64::min)
            }
            // Not submitted: what purge says again or moves is void nowhere before it says so.
            Op::Base { .. } | Op::Rewrite { .. } | Op::Floor { .. } => u64::MAX,
        }
    }

    /// Takes in one operation of record `seq`. Returns how many bytes left the cache.
    pub fn take(&mut self, seq: u64, op: &Op, state: Option<Bytes>, dead: &mut Dead) -> usize {
        match op {
            Op::Append { first, count, terms, body, .. } => {
                let freed = self.drop_from(*first, dead);
                let (from, body, count) = (*first, *body, *count);
                self.push(Run { from, seq, body, count, skip: 0, packed: 0 }, terms);
                freed
            }
            Op::Rewrite { from, count, skip, terms, body, .. } => {
                let (from, body, count, skip) = (*from, *body, *count, *skip);
                let run = Run { from, seq, body, count, skip, packed: 0 };
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

    /// Puts a run behind all others.
    pub(super) fn push(&mut self, run: Run, terms: &Terms) {
        for (index, term) in terms.iter() {
            if self.terms.last().is_none_or(|(_, last)| *last != term) {
                self.terms.push((index, term));
            }
        }
        self.runs.push_back(run);
    }

    /// The terms of a part of the log that is there.
    pub(super) fn terms_of(&self, run: &Run) -> Terms {
        let first = (run.from, self.term_of(run.from).unwrap_or(0));
        let inside = self.terms.iter().filter(|(from, _)| *from > run.from && *from < run.end());
        Terms { first, rest: inside.copied().collect() }
    }

    pub(super) fn drop_all(&mut self, dead: &mut Dead) -> usize {
        dead.extend(self.runs.drain(..).map(|run| (run.seq, run.live())));
        self.terms = Vec::new();
        self.applied = 0;
        self.cache.drain(..).map(|e| weight(&e)).sum()
    }

    /// Drops the suffix from `first` on.
    pub(super) fn drop_from(&mut self, first: u64, dead: &mut Dead) -> usize {
        if first > self.last() {
            // Nearly always. Terms and cache lie elsewhere in memory, and are not looked at for nothing.
            return 0;
        }
        while let Some(run) = self.runs.back_mut() {
            if run.end() <= first {
                break;
            }
            if run.from < first {
                run.trim(run.from, first, dead);
                break;
            }
            dead.push((run.seq, run.live()));
            self.runs.pop_back();
        }
        // What was cut off may have lain behind a gap (a footer, or a replay, is not in order), at whose beginning a term stands.
        let last = self.last();
        while self.terms.last().is_some_and(|(from, _)| *from > last) {
            self.terms.pop();
        }
        let mut freed = 0;
        while self.cache.back().is_some_and(|e| e.index >= first) {
            freed += self.cache.pop_back().map_or(0, |e| weight(&e));
        }
        freed
    }

    /// Drops the prefix up to `to`, which becomes the truncated position.
    pub(super) fn drop_to(&mut self, seq: u64, to: LogPosition, dead: &mut Dead) -> usize {
        while let Some(run) = self.runs.front_mut() {
            if run.from > to.index {
                break;
            }
            if run.end() > to.index + 1 {
                run.trim(to.index + 1, run.end(), dead);
                break;
            }
            dead.push((run.seq, run.live()));
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
    pub(super) fn place(&mut self, run: Run, terms: &Terms, dead: &mut Dead) {
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
            let (head, tail) = (old.from < run.from, old.end() > end);
            if head {
                kept.push_back(old.part(old.from, run.from));
            }
            if tail {
                kept.push_back(old.part(end, old.end()));
            }
            if !head && !tail {
                dead.push((old.seq, old.live()));
            }
        }
        let at = kept.partition_point(|r| r.from < run.from);
        kept.insert(at, run);
        self.runs = kept;
    }

    /// Puts each of `pieces` (ascending) instead of the runs of records in `seqs` that it covers. What
    /// died since the pieces were made stays dead; what they do not cover stays. A packed piece takes
    /// over what its runs kept alive; what another replaces is dead.
    pub fn relocate(&mut self, seqs: &Range<u64>, pieces: Vec<Run>, dead: &mut Dead) -> usize {
        let mut moved = Relocation { out: VecDeque::new(), open: None, placed: 0 };
        let mut pieces = pieces.into_iter().peekable();
        for mut old in std::mem::take(&mut self.runs) {
            if !seqs.contains(&old.seq) {
                moved.close();
                moved.out.push_back(old);
                continue;
            }
            loop {
                while pieces.next_if(|piece| piece.end() <= old.from).is_some() {
                    moved.close();
                }
                let Some(piece) = pieces.peek().filter(|piece| piece.from < old.end()) else {
                    moved.close();
                    moved.out.push_back(old);
                    break;
                };
                if old.from < piece.from {
                    moved.close();
                    moved.out.push_back(old.part(old.from, piece.from));
                    old = old.part(piece.from, old.end());
                }
                let high = old.end().min(piece.end());
                let part = old.part(old.from, high);
                moved.cover(piece, &part);
                if !piece.is_packed() && (high == old.end() || old.is_packed()) {
                    dead.push((part.seq, part.live()));
                }
                if high == old.end() {
                    break;
                }
                old = old.part(high, old.end());
            }
        }
        moved.close();
        self.runs = moved.out;
        moved.placed
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
        let last = self.last();
        while self.terms.last().is_some_and(|(from, _)| *from > last) {
            self.terms.pop();
        }
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

/// Runs on their way from old places to new ones.
struct Relocation {
    out: VecDeque<Run>,
    /// The part of a piece that has taken the place of something, so far.
    open: Option<Run>,
    placed: usize,
}

impl Relocation {
    fn cover(&mut self, piece: &Run, part: &Run) {
        if self.open.is_some_and(|open| open.end() != part.from) {
            self.close();
        }
        match &mut self.open {
            Some(open) => {
                open.count += part.count;
                open.packed += if piece.is_packed() { part.live() } else { 0 };
            }
            none => {
                let packed = if piece.is_packed() { part.live() } else { 0 };
                *none = Some(Run { packed, ..piece.part(part.from, part.end()) });
            }
        }
    }

    fn close(&mut self) {
        self.placed += usize::from(self.open.is_some());
        self.out.extend(self.open.take());
    }
}

#[cfg(test)]
pub(super) mod tests;
