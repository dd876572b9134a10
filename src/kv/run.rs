//! A sorted run: what one batch, or several merged ones, wrote. Immutable, so views share it freely.

use crate::types::{KeyRange, RegionId, RegionState};
use bytes::Bytes;
use std::cmp::Ordering;
use std::sync::Arc;

/// What a slot does to its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Put,
    Delete,
}

/// One point write: where its bytes lie. Copied around by merges; owns nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    /// The key's first eight bytes, big-endian, zero-padded: decides most comparisons without a cache miss.
    pub prefix: u64,
    pub key_chunk: u32,
    pub key_at: u32,
    pub value_chunk: u32,
    pub value_at: u32,
    pub value_len: u32,
    pub key_len: u16,
    pub kind: Kind,
}

pub(super) fn prefix_of(key: &[u8]) -> u64 {
    match key.first_chunk::<8>() {
        Some(head) => u64::from_be_bytes(*head),
        None => {
            let mut head = [0; 8];
            head[..key.len()].copy_from_slice(key);
            u64::from_be_bytes(head)
        }
    }
}

impl Slot {
    pub fn key<'a>(&self, chunks: &'a [Bytes]) -> &'a [u8] {
        let at = self.key_at as usize;
        &chunks[self.key_chunk as usize][at..at + self.key_len as usize]
    }

    fn rebased(mut self, base: u32) -> Slot {
        self.key_chunk += base;
        self.value_chunk += base;
        self
    }
}

/// Orders two slots of one chunk list by key.
pub(super) fn order(a: &Slot, b: &Slot, chunks: &[Bytes]) -> Ordering {
    match a.prefix.cmp(&b.prefix) {
        // Equal prefixes of long keys say nothing of the rest; of short ones not even the length.
        Ordering::Equal => a.key(chunks).cmp(b.key(chunks)),
        decided => decided,
    }
}

/// What a run knows of a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Found {
    Put(Bytes),
    Deleted,
    Unknown,
}

/// A region's state as of a run; `None`: the replica was removed.
pub(super) type RegionChange = (RegionId, Option<Arc<RegionState>>);

/// A sorted run.
///
/// * `slots` ascend strictly by key: one write per key.
/// * `ranges` are disjoint, sorted and not empty; they delete what is *older* than this run, never its slots.
/// * `regions` ascend strictly by id.
#[derive(Default, Debug)]
pub(super) struct Run {
    pub slots: Vec<Slot>,
    pub chunks: Vec<Bytes>,
    pub ranges: Vec<KeyRange>,
    pub regions: Vec<RegionChange>,
    /// Memory retained: chunks (each once, however few of its bytes live) and the index.
    pub bytes: usize,
}

/// A merged run whose payload is smaller than this is copied into one chunk: a stream of one-op batches
/// must not drag a list of tiny chunks through every later merge.
const REPACK_BYTES: usize = 128 << 10;

impl Run {
    /// Takes what a batch or a merge made. The invariants are the caller's.
    pub fn new(
        slots: Vec<Slot>,
        chunks: Vec<Bytes>,
        ranges: Vec<KeyRange>,
        regions: Vec<RegionChange>,
    ) -> Run {
        let mut run = Run { slots, chunks, ranges, regions, bytes: 0 };
        run.bytes = run.chunks.iter().map(|c| c.len() + size_of::<Bytes>()).sum::<usize>()
            + run.slots.len() * size_of::<Slot>()
            + run.ranges.iter().map(|r| r.start.len() + r.end.len() + 64).sum::<usize>()
            + run.regions.len() * 256;
        run
    }

    pub fn key(&self, at: usize) -> &[u8] {
        self.slots[at].key(&self.chunks)
    }

    /// The bytes of the value at `at`, empty for a delete.
    pub fn value(&self, at: usize) -> &[u8] {
        let slot = &self.slots[at];
        let start = slot.value_at as usize;
        &self.chunks[slot.value_chunk as usize][start..start + slot.value_len as usize]
    }

    pub fn key_bytes(&self, at: usize) -> Bytes {
        let slot = &self.slots[at];
        let start = slot.key_at as usize;
        self.chunks[slot.key_chunk as usize].slice(start..start + slot.key_len as usize)
    }

    pub fn value_bytes(&self, at: usize) -> Bytes {
        let slot = &self.slots[at];
        let start = slot.value_at as usize;
        self.chunks[slot.value_chunk as usize].slice(start..start + slot.value_len as usize)
    }

    /// The first slot whose key is `>= key`.
    pub fn lower_bound(&self, key: &[u8]) -> usize {
        let prefix = prefix_of(key);
        self.slots.partition_point(|slot| match slot.prefix.cmp(&prefix) {
            Ordering::Less => true,
            Ordering::Greater => false,
            Ordering::Equal => slot.key(&self.chunks) < key,
        })
    }

    /// The slots of a range of keys.
    pub fn span(&self, range: &KeyRange) -> std::ops::Range<usize> {
        let start = self.lower_bound(&range.start);
        let end =
            if range.end.is_empty() { self.slots.len() } else { self.lower_bound(&range.end) };
        start..end.max(start)
    }

    pub fn find(&self, key: &[u8]) -> Found {
        let at = self.lower_bound(key);
        if at < self.slots.len() && self.key(at) == key {
            return match self.slots[at].kind {
                Kind::Put => Found::Put(self.value_bytes(at)),
                Kind::Delete => Found::Deleted,
            };
        }
        if covers(&self.ranges, key) { Found::Deleted } else { Found::Unknown }
    }

    pub fn region(&self, id: RegionId) -> Option<&Option<Arc<RegionState>>> {
        let at = self.regions.binary_search_by_key(&id, |change| change.0).ok()?;
        Some(&self.regions[at].1)
    }

    /// Merges runs given oldest first. Newer points win, newer ranges drop older points.
    pub fn merge(runs: &[Arc<Run>], scratch: &mut Scratch) -> Run {
        let mut chunks = Vec::with_capacity(runs.iter().map(|r| r.chunks.len()).sum());
        let mut parts: Vec<Part<'_>> = Vec::with_capacity(runs.len());
        for run in runs {
            let base = chunks.len() as u32;
            chunks.extend(run.chunks.iter().cloned());
            parts.push(Part::Whole(&run.slots, base));
        }
        let ranges = drop_covered(runs, &mut parts);
        let mut slots = merge_parts(&parts, &chunks, scratch);
        if runs.len() > 1 {
            repack(&mut slots, &mut chunks);
        }
        let mut regions: Vec<RegionChange> = Vec::new();
        for run in runs {
            overlay(&mut regions, &run.regions);
        }
        Run::new(slots, chunks, ranges, regions)
    }
}

/// Whether one of the sorted disjoint `ranges` contains `key`.
pub(super) fn covers(ranges: &[KeyRange], key: &[u8]) -> bool {
    let at = ranges.partition_point(|range| &range.start[..] <= key);
    at > 0 && ranges[at - 1].contains(key)
}

/// Sorts ranges, drops empty ones and joins those that overlap or touch.
pub(super) fn normalise(mut ranges: Vec<KeyRange>) -> Vec<KeyRange> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by(|a, b| a.start.cmp(&b.start));
    let mut out: Vec<KeyRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match out.last_mut() {
            Some(last) if last.end.is_empty() || range.start <= last.end => {
                if range.end.is_empty() || (!last.end.is_empty() && range.end > last.end) {
                    last.end = range.end;
                }
            }
            _ => out.push(range),
        }
    }
    out
}

/// Lays `newer` over `older`; both ascend by region.
fn overlay(older: &mut Vec<RegionChange>, newer: &[RegionChange]) {
    if newer.is_empty() {
        return;
    }
    let mut out = Vec::with_capacity(older.len() + newer.len());
    let mut rest = newer.iter().peekable();
    for change in older.drain(..) {
        while let Some(next) = rest.next_if(|next| next.0 < change.0) {
            out.push(next.clone());
        }
        match rest.next_if(|next| next.0 == change.0) {
            Some(next) => out.push(next.clone()),
            None => out.push(change),
        }
    }
    out.extend(rest.cloned());
    *older = out;
}

/// Memory of merges, used again by the next one: fresh pages cost more than the merging.
#[derive(Default, Debug)]
pub(super) struct Scratch {
    from: Vec<Slot>,
    to: Vec<Slot>,
    /// How often in a row it was not needed.
    idle: u32,
}

/// A scratch that was not needed so often in a row is given back.
const IDLE_MAX: u32 = 100;

impl Scratch {
    /// Gives back what holds more than this many slots.
    pub fn keep(&mut self, slots: usize) {
        for buffer in [&mut self.from, &mut self.to] {
            if buffer.capacity() > slots {
                *buffer = Vec::new();
            }
        }
    }

    /// It was not needed this time: a store that is at rest gives the memory back after a while.
    pub fn idle(&mut self) {
        self.idle = self.idle.saturating_add(1);
        if self.idle > IDLE_MAX {
            self.keep(0);
        }
    }
}

/// A run's slots on their way into a merge, to be rebased into the joint chunk list.
enum Part<'a> {
    Whole(&'a [Slot], u32),
    /// Without what newer ranges delete.
    Thinned(Vec<Slot>, u32),
}

/// Slots, and what to add to their chunks.
type Sorted<'a> = (&'a [Slot], u32);

impl Part<'_> {
    fn sorted(&self) -> Sorted<'_> {
        match self {
            Part::Whole(slots, base) => (slots, *base),
            Part::Thinned(slots, base) => (slots, *base),
        }
    }
}

/// Drops from each part what a newer run's ranges delete; returns the union of all ranges.
fn drop_covered(runs: &[Arc<Run>], parts: &mut [Part<'_>]) -> Vec<KeyRange> {
    let mut newer: Vec<KeyRange> = Vec::new();
    for (run, part) in runs.iter().zip(parts.iter_mut()).rev() {
        if !newer.is_empty() {
            let base = part.sorted().1;
            let lives = |slot: &&Slot| !covers(&newer, slot.key(&run.chunks));
            *part = Part::Thinned(run.slots.iter().filter(lives).copied().collect(), base);
        }
        if !run.ranges.is_empty() {
            newer.extend(run.ranges.iter().cloned());
            newer = normalise(newer);
        }
    }
    newer
}

/// Merges neighbours pairwise until one is left: each pass touches memory in order. Only the last one writes
/// to memory of its own.
fn merge_parts(parts: &[Part<'_>], chunks: &[Bytes], scratch: &mut Scratch) -> Vec<Slot> {
    if parts.len() <= 2 {
        return merge_last(parts.iter().map(Part::sorted), chunks);
    }
    let Scratch { from, to, idle } = scratch;
    *idle = 0;
    let mut ends = merge_pass(parts.iter().map(Part::sorted), chunks, from);
    while ends.len() > 2 {
        ends = merge_pass(between(from, &ends), chunks, to);
        std::mem::swap(from, to);
    }
    merge_last(between(from, &ends), chunks)
}

fn merge_last<'a>(parts: impl Iterator<Item = Sorted<'a>>, chunks: &[Bytes]) -> Vec<Slot> {
    let mut out = Vec::new();
    merge_pass(parts, chunks, &mut out);
    out
}

/// The lists that end at these places.
fn between<'a>(slots: &'a [Slot], ends: &'a [usize]) -> impl Iterator<Item = Sorted<'a>> {
    let starts = std::iter::once(0).chain(ends.iter().copied());
    starts.zip(ends).map(|(start, end)| (&slots[start..*end], 0))
}

/// Merges each two neighbours, oldest first, one behind the other into `out`; tells where each result ends.
fn merge_pass<'a>(
    parts: impl Iterator<Item = Sorted<'a>>,
    chunks: &[Bytes],
    out: &mut Vec<Slot>,
) -> Vec<usize> {
    let parts: Vec<Sorted<'_>> = parts.collect();
    out.clear();
    out.reserve_exact(parts.iter().map(|part| part.0.len()).sum());
    let mut ends = Vec::with_capacity(parts.len().div_ceil(2));
    for pair in parts.chunks(2) {
        match pair {
            [older, newer] => merge_two(*older, *newer, chunks, out),
            rest => {
                let rest =
                    rest.iter().flat_map(|(slots, base)| slots.iter().map(|s| s.rebased(*base)));
                out.extend(rest);
            }
        }
        ends.push(out.len());
    }
    ends
}

fn merge_two(
    (old, old_base): Sorted<'_>,
    (new, new_base): Sorted<'_>,
    chunks: &[Bytes],
    out: &mut Vec<Slot>,
) {
    let (mut i, mut j) = (0, 0);
    while i < old.len() && j < new.len() {
        let (a, b) = (&old[i], &new[j]);
        if a.prefix != b.prefix {
            // Decided without branching on the outcome: random keys would mispredict every other time.
            let take_old = a.prefix < b.prefix;
            let (slot, base) = if take_old { (a, old_base) } else { (b, new_base) };
            out.push(slot.rebased(base));
            i += usize::from(take_old);
            j += usize::from(!take_old);
            continue;
        }
        let (a, b) = (a.rebased(old_base), b.rebased(new_base));
        match a.key(chunks).cmp(b.key(chunks)) {
            Ordering::Less => {
                out.push(a);
                i += 1;
            }
            Ordering::Greater => {
                out.push(b);
                j += 1;
            }
            Ordering::Equal => {
                out.push(b);
                i += 1;
                j += 1;
            }
        }
    }
    out.extend(old[i..].iter().map(|slot| slot.rebased(old_base)));
    out.extend(new[j..].iter().map(|slot| slot.rebased(new_base)));
}

/// Copies a small payload that is spread over many chunks into one.
fn repack(slots: &mut [Slot], chunks: &mut Vec<Bytes>) {
    if chunks.len() <= 4 {
        return;
    }
    let payload: usize = slots.iter().map(|s| s.key_len as usize + s.value_len as usize).sum();
    if payload > REPACK_BYTES {
        return;
    }
    let mut arena = Vec::with_capacity(payload);
    for slot in slots.iter_mut() {
        let value_at = slot.value_at as usize;
        let key_at = arena.len() as u32;
        arena.extend_from_slice(slot.key(chunks));
        let value = &chunks[slot.value_chunk as usize];
        slot.value_at = arena.len() as u32;
        arena.extend_from_slice(&value[value_at..value_at + slot.value_len as usize]);
        (slot.key_at, slot.key_chunk, slot.value_chunk) = (key_at, 0, 0);
    }
    *chunks = vec![Bytes::from(arena)];
}
