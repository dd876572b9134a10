//! The write batch: what one apply pass wants to write, in order.

use super::run::{RegionChange, Run, normalise};
use super::slot::{
    HEAD, Kind, Slot, is_delete_at, is_put_at, key_at, kind_at, order, prefix_of, record_delete,
    record_put, record_put_elsewhere, value_at,
};
use super::tables::Stand;
use crate::error::{Error, Result};
use crate::types::{KeyRange, LogPosition, RegionId, RegionState};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::collections::HashMap; // lookup only
use std::ops::{Bound, Range};
use std::sync::Arc;

/// The longest key a store takes, in bytes.
pub const MAX_KEY_LEN: usize = 65_000;

/// Keys and values up to this many bytes together are copied into the batch's arena; larger ones are kept by
/// reference.
const COPY_LIMIT: usize = 1 << 10;

/// No record begins beyond this in the arena, so that 32-bit offsets always suffice.
const ARENA_LIMIT: usize = 1 << 30;

/// The arena's place in the chunk list. First, so that distances to other chunks are known at once.
const ARENA: u32 = 0;

/// A piece of memory that keys and values of a batch point into. See [`WriteBatch::add_chunk`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkId(u32);

/// What a batch, not yet written, will do to a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Pending {
    /// It sets it.
    Put(Bytes),
    /// It removes it (by itself or within a range).
    Deleted,
    /// It does not touch it: ask a view.
    Unknown,
}

/// A place in a batch to go back to. See [`WriteBatch::mark`].
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    ops: usize,
    ranges: usize,
    regions: usize,
    refused: bool,
    live: usize,
}

/// An ordered list of writes that takes effect as a whole.
///
/// * Order counts: a later write of a key wins; a range delete hides earlier writes of this batch in its range
///   and leaves later ones.
/// * Keys longer than [`MAX_KEY_LEN`] and pieces outside their chunk make the whole batch invalid: it is then
///   refused by the store ([`Error::InvalidArgument`]). Check before a proposal is made.
#[derive(Debug)]
pub struct WriteBatch {
    /// What slots point into; the first is the arena's place, filled in when the batch becomes a run.
    chunks: Vec<Bytes>,
    /// Bytes of the chunks: asked for after each entry of thousands that share a batch, so not added up then.
    shared: usize,
    arena: Vec<u8>,
    ops: Vec<Slot>,
    /// Range deletes, each with the number of ops before it.
    ranges: Vec<(usize, KeyRange)>,
    regions: Vec<RegionChange>,
    refused: bool,
    /// Bytes of the ops' records, counted while they are at hand.
    live: usize,
    pending: PendingIndex,
}

/// Last op of each key, built on the first look and caught up on later ones.
#[derive(Default, Debug)]
struct PendingIndex {
    last: HashMap<Box<[u8]>, usize>,
    indexed: usize,
}

impl Default for WriteBatch {
    fn default() -> WriteBatch {
        WriteBatch::new()
    }
}

impl WriteBatch {
    /// An empty batch.
    pub fn new() -> WriteBatch {
        WriteBatch {
            chunks: vec![Bytes::new()],
            shared: 0,
            arena: Vec::new(),
            ops: Vec::new(),
            ranges: Vec::new(),
            regions: Vec::new(),
            refused: false,
            live: 0,
            pending: PendingIndex::default(),
        }
    }

    /// An empty batch with room for `ops` operations.
    pub fn with_capacity(ops: usize) -> WriteBatch {
        WriteBatch { ops: Vec::with_capacity(ops), ..WriteBatch::new() }
    }

    /// Number of point writes and range deletes.
    pub fn len(&self) -> usize {
        self.ops.len() + self.ranges.len()
    }

    /// Whether it would change nothing, not even a region's state. A batch that will be refused is not empty.
    pub fn is_empty(&self) -> bool {
        let writes = !self.ops.is_empty() || !self.ranges.is_empty();
        !writes && self.regions.is_empty() && !self.refused
    }

    /// Bytes that it holds on to.
    pub fn bytes(&self) -> usize {
        self.arena.len() + self.shared
    }

    /// Sets `key`. Small writes are copied, large values are kept by reference.
    pub fn put(&mut self, key: Bytes, value: Bytes) {
        if !self.takes(&key) || u32::try_from(value.len()).is_err() {
            self.refused = true;
            return;
        }
        self.live += HEAD + key.len() + value.len();
        if key.len() + value.len() <= COPY_LIMIT {
            self.ops.push(next_in(&self.arena, &key));
            record_put(&mut self.arena, &key, &value);
        } else {
            let place = 0..value.len() as u32;
            let ChunkId(chunk) = self.add_chunk(value);
            self.ops.push(next_in(&self.arena, &key));
            record_put_elsewhere(&mut self.arena, &key, chunk - ARENA, place);
        }
    }

    /// Removes `key`.
    pub fn delete(&mut self, key: Bytes) {
        if !self.takes(&key) {
            self.refused = true;
            return;
        }
        self.live += HEAD + key.len();
        self.ops.push(next_in(&self.arena, &key));
        record_delete(&mut self.arena, &key);
    }

    fn takes(&self, key: &[u8]) -> bool {
        key.len() <= MAX_KEY_LEN && self.arena.len() <= ARENA_LIMIT
    }

    /// Removes every key of `range`: those in the store and those written earlier in this batch.
    pub fn delete_range(&mut self, range: &KeyRange) {
        if !range.is_empty() {
            self.ranges.push((self.ops.len(), range.clone()));
        }
    }

    /// Makes room for the states of so many regions.
    pub fn expect_regions(&mut self, regions: usize) {
        self.regions.reserve_exact(regions);
    }

    /// Sets a region's state, applied position included.
    pub fn set_region(&mut self, state: RegionState) {
        self.regions.push((state.region.id, Some(state.into())));
    }

    /// Sets a region's state, with `applied` in the place of its own position: so what seldom changes is shared by one batch
    /// after another, and not copied for each.
    pub fn set_applied(&mut self, state: &Arc<RegionState>, applied: LogPosition) {
        let stand = Stand::new(Arc::clone(state), applied);
        self.regions.push((state.region.id, Some(stand)));
    }

    /// Forgets a region.
    pub fn remove_region(&mut self, region: RegionId) {
        self.regions.push((region, None));
    }

    /// Registers memory that [`put_in`](Self::put_in) and [`delete_in`](Self::delete_in) point into, without
    /// copying it (a raft entry's payload). The store keeps all of it until the keys are flushed, or until too
    /// much of what it keeps is dead.
    pub fn add_chunk(&mut self, chunk: Bytes) -> ChunkId {
        self.shared += chunk.len();
        self.chunks.push(chunk);
        ChunkId((self.chunks.len() - 1) as u32)
    }

    /// Sets a key; key and value lie in a chunk of this batch. Nothing is copied if they lie there as in a
    /// [command](crate::codec::command)'s put; else small writes are, and of large ones the key.
    pub fn put_in(&mut self, chunk: ChunkId, key: Range<u32>, value: Range<u32>) {
        let there = piece(&self.chunks, chunk, &value).is_some();
        let Some(name) = piece(&self.chunks, chunk, &key).filter(|key| there && self.takes(key))
        else {
            self.refused = true;
            return;
        };
        self.live += HEAD + key.len() + value.len();
        let bytes = &self.chunks[chunk.0 as usize];
        if is_put_at(bytes, &key, &value) {
            self.ops.push(slot_of(name, chunk, &key));
            return;
        }
        self.ops.push(next_in(&self.arena, name));
        if key.len() + value.len() <= COPY_LIMIT {
            let value = &bytes[value.start as usize..value.end as usize];
            record_put(&mut self.arena, name, value);
        } else {
            record_put_elsewhere(&mut self.arena, name, chunk.0 - ARENA, value);
        }
    }

    /// Removes a key that lies in a chunk of this batch; copied or not as [`put_in`](Self::put_in) does it.
    pub fn delete_in(&mut self, chunk: ChunkId, key: Range<u32>) {
        let Some(name) = piece(&self.chunks, chunk, &key).filter(|key| self.takes(key)) else {
            self.refused = true;
            return;
        };
        self.live += HEAD + key.len();
        if is_delete_at(&self.chunks[chunk.0 as usize], &key) {
            self.ops.push(slot_of(name, chunk, &key));
        } else {
            self.ops.push(next_in(&self.arena, name));
            record_delete(&mut self.arena, name);
        }
    }

    /// What this batch will do to `key`, for compare-and-swap behind earlier writes of the same batch. The
    /// first call builds an index over the batch; batches that never ask pay nothing.
    pub fn get_pending(&mut self, key: &[u8]) -> Pending {
        if self.ops.is_empty() && self.ranges.is_empty() {
            return Pending::Unknown;
        }
        for at in self.pending.indexed..self.ops.len() {
            let slot = &self.ops[at];
            let key = key_at(self.chunk(slot.chunk), slot.at);
            self.pending.last.insert(Box::from(key), at);
        }
        self.pending.indexed = self.ops.len();
        let last = self.pending.last.get(key).copied();
        let hidden = |before: usize| {
            self.ranges.iter().any(|(position, range)| *position > before && range.contains(key))
        };
        match last {
            Some(at) if hidden(at) => Pending::Deleted,
            Some(at) => self.pending_of(&self.ops[at]),
            None if self.ranges.iter().any(|(_, range)| range.contains(key)) => Pending::Deleted,
            None => Pending::Unknown,
        }
    }

    /// Where the batch stands now.
    pub fn mark(&self) -> Mark {
        Mark {
            ops: self.ops.len(),
            ranges: self.ranges.len(),
            regions: self.regions.len(),
            refused: self.refused,
            live: self.live,
        }
    }

    /// Takes back everything since `mark` (memory stays until the batch is written).
    pub fn rollback(&mut self, mark: Mark) {
        self.ops.truncate(mark.ops);
        self.ranges.truncate(mark.ranges);
        self.regions.truncate(mark.regions);
        self.refused = mark.refused;
        self.live = mark.live;
        if self.pending.indexed > mark.ops {
            self.pending = PendingIndex::default();
        }
    }

    fn chunk(&self, chunk: u32) -> &[u8] {
        match chunk {
            ARENA => &self.arena,
            chunk => &self.chunks[chunk as usize],
        }
    }

    fn pending_of(&self, slot: &Slot) -> Pending {
        let bytes = self.chunk(slot.chunk);
        if kind_at(bytes, slot.at) == Kind::Delete {
            return Pending::Deleted;
        }
        let value = value_at(bytes, slot.at);
        let chunk = slot.chunk.wrapping_add(value.chunks_on);
        Pending::Put(match chunk {
            ARENA => Bytes::copy_from_slice(&self.arena[value.place]),
            chunk => self.chunks[chunk as usize].slice(value.place),
        })
    }

    /// Sorts the batch into a run: the last write of each key, range deletes applied to what came before them.
    pub(super) fn into_run(self) -> Result<Run> {
        if self.refused {
            return Err(Error::InvalidArgument(format!(
                "a key of the batch is longer than {MAX_KEY_LEN} bytes, or a piece lies outside its chunk"
            )));
        }
        let (mut ops, mut chunks, mut live) = (self.ops, self.chunks, self.live);
        let all = ops.len();
        if self.arena.is_empty() {
            // Every op is in a later chunk, then.
            chunks.remove(ARENA as usize);
            ops.iter_mut().for_each(|slot| slot.chunk -= 1);
        } else {
            chunks[ARENA as usize] = Bytes::from(self.arena);
        }
        if !self.ranges.is_empty() {
            ops = without_covered(ops, &self.ranges, &chunks);
        }
        if !ops.is_sorted_by(|a, b| order(a, b, &chunks).is_lt()) {
            ops = sorted(&ops, &chunks);
        }
        if ops.len() < all {
            live = ops.iter().map(|slot| slot.record_len(&chunks)).sum();
        }
        let ranges = normalise(self.ranges.into_iter().map(|(_, range)| range).collect());
        Ok(Run::new(ops.into(), chunks, live, ranges, last_changes(self.regions)))
    }
}

/// The slot of the record that is about to be written to the arena.
fn next_in(arena: &[u8], key: &[u8]) -> Slot {
    Slot { prefix: prefix_of(key), chunk: ARENA, at: arena.len() as u32 }
}

/// The slot of the record that has its key there.
fn slot_of(key: &[u8], chunk: ChunkId, place: &Range<u32>) -> Slot {
    Slot { prefix: prefix_of(key), chunk: chunk.0, at: place.start - HEAD as u32 }
}

/// Bytes of a chunk that a caller registered.
fn piece<'a>(chunks: &'a [Bytes], chunk: ChunkId, place: &Range<u32>) -> Option<&'a [u8]> {
    let bytes = chunks.get(chunk.0 as usize)?;
    bytes.get(place.start as usize..place.end as usize)
}

/// The ops by key, of each key the last one.
///
/// Prefix and place make one number, and numbers sort several times faster than slots that are compared. Only ops
/// with equal prefixes are compared by their keys.
fn sorted(ops: &[Slot], chunks: &[Bytes]) -> Vec<Slot> {
    let number = |(at, slot): (usize, &Slot)| u128::from(slot.prefix) << 64 | at as u128;
    let mut numbers: Vec<u128> = ops.iter().enumerate().map(number).collect();
    numbers.sort_unstable();
    let mut out: Vec<Slot> = Vec::with_capacity(ops.len());
    for alike in numbers.chunk_by(|a, b| a >> 64 == b >> 64) {
        let start = out.len();
        out.extend(alike.iter().map(|number| ops[*number as u64 as usize]));
        if alike.len() > 1 {
            // Stable, so that among writes of one key the last stays last.
            out[start..].sort_by(|a, b| order(a, b, chunks));
            keep_last(&mut out, start, chunks);
        }
    }
    out
}

/// From `start` on, of neighbours with one key only the last stays.
fn keep_last(ops: &mut Vec<Slot>, start: usize, chunks: &[Bytes]) {
    let mut kept = start;
    for at in start..ops.len() {
        if kept > start && order(&ops[kept - 1], &ops[at], chunks).is_eq() {
            ops[kept - 1] = ops[at];
        } else {
            ops[kept] = ops[at];
            kept += 1;
        }
    }
    ops.truncate(kept);
}

/// Drops ops that a later range delete of the batch covers.
fn without_covered(ops: Vec<Slot>, ranges: &[(usize, KeyRange)], chunks: &[Bytes]) -> Vec<Slot> {
    let mut kept = Vec::with_capacity(ops.len());
    let mut end = ops.len();
    let mut later = Covered::default();
    // From the back: the ranges seen so far are those that come after the ops at hand.
    for (position, range) in ranges.iter().rev() {
        push_uncovered(&ops[*position..end], &later, chunks, &mut kept);
        later.add(range);
        end = *position;
    }
    push_uncovered(&ops[..end], &later, chunks, &mut kept);
    kept.reverse();
    kept
}

fn push_uncovered(ops: &[Slot], later: &Covered, chunks: &[Bytes], kept: &mut Vec<Slot>) {
    kept.extend(ops.iter().rev().filter(|slot| !later.contains(slot.key(chunks))));
}

/// A growing set of keys: ranges that neither overlap nor touch, start and end, an empty end for none.
#[derive(Default)]
struct Covered(BTreeMap<Bytes, Bytes>);

impl Covered {
    /// The range that begins last at or before `key`.
    fn before(&self, key: &[u8]) -> Option<(&Bytes, &Bytes)> {
        self.0.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back()
    }

    fn contains(&self, key: &[u8]) -> bool {
        self.before(key).is_some_and(|(_, end)| end.is_empty() || key < &end[..])
    }

    fn add(&mut self, range: &KeyRange) {
        let KeyRange { start, mut end } = range.clone();
        // Whoever begins before it ends is joined to it, from the last one back.
        while let Some((from, to)) = match end.is_empty() {
            true => self.0.last_key_value(),
            false => self.before(&end),
        } {
            if !to.is_empty() && *to < start {
                break;
            }
            if to.is_empty() || !end.is_empty() && *to > end {
                end = to.clone();
            }
            let from = from.clone();
            self.0.remove(&from);
            if from < start {
                self.0.insert(from, end);
                return;
            }
        }
        self.0.insert(start, end);
    }
}

/// The last change of each region, ascending by id.
fn last_changes(mut changes: Vec<RegionChange>) -> Vec<RegionChange> {
    if !changes.is_sorted_by(|a, b| a.0 < b.0) {
        changes.sort_by_key(|change| change.0);
        // Keeps the last of each id: the sort is stable.
        changes.reverse();
        changes.dedup_by_key(|change| change.0);
        changes.reverse();
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::super::run::covers;
    use super::*;
    use proptest::prelude::*;

    /// After a restart an applier asks after each of the entries that it applies anew, tens of thousands of one batch. It once added up
    /// all their chunks each time: 1.3 M entries of 64 bytes were not read back within ten seconds.
    #[test]
    fn what_a_batch_holds_is_counted_as_it_comes() {
        let mut batch = WriteBatch::new();
        for at in 0..10u8 {
            batch.add_chunk(Bytes::from(vec![at; 100]));
        }
        let large = Bytes::from(vec![1; 10 * COPY_LIMIT]);
        batch.put(Bytes::from_static(b"small"), Bytes::from_static(b"value"));
        batch.put(Bytes::from_static(b"large"), large);
        let held = batch.chunks.iter().map(Bytes::len).sum::<usize>();
        assert!(held >= 1000 + 10 * COPY_LIMIT);
        assert_eq!(batch.bytes(), batch.arena.len() + held);
    }

    proptest! {
        /// Grown range by range, it is what all of them cover together.
        #[test]
        fn covered_is_what_the_ranges_cover(
            ranges in prop::collection::vec((0u8..30, 0u8..31), 0..12)
        ) {
            let key = |n: u8| if n == 30 { Bytes::new() } else { Bytes::from(vec![b'a' + n]) };
            let ranges: Vec<KeyRange> = ranges
                .into_iter()
                .map(|(start, end)| KeyRange { start: key(start), end: key(end) })
                .filter(|range| !range.is_empty())
                .collect();
            let mut covered = Covered::default();
            ranges.iter().for_each(|range| covered.add(range));
            let all = normalise(ranges);
            for n in 0..40 {
                let key = [b'a' + n];
                prop_assert_eq!(covered.contains(&key), covers(&all, &key));
            }
            let joined: Vec<KeyRange> =
                covered.0.into_iter().map(|(start, end)| KeyRange { start, end }).collect();
            prop_assert_eq!(joined, all);
        }
    }
}
