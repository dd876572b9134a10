//! A sorted run: what one batch, or several merged ones, wrote. Immutable, so views share it freely.

use super::merge::{Input, Merged, Scratch, merge};
use super::slot::{Kind, Slot, prefix_of};
use super::slots::Slots;
use super::tables::Stand;
use crate::types::{KeyRange, RegionId};
use bytes::Bytes;
use std::sync::Arc;

/// What a run knows of a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Found {
    Put(Bytes),
    Deleted,
    Unknown,
}

/// A region's state as of a run; `None`: the replica was removed.
pub(super) type RegionChange = (RegionId, Option<Stand>);

/// A sorted run.
///
/// * `slots` ascend strictly by key: one write per key.
/// * `ranges` are disjoint, sorted and not empty; they delete what is *older* than this run, never its slots.
/// * `regions` ascend strictly by id.
#[derive(Default, Debug)]
pub(super) struct Run {
    pub slots: Slots,
    pub chunks: Vec<Bytes>,
    pub ranges: Vec<KeyRange>,
    pub regions: Vec<RegionChange>,
    /// Bytes of the records that slots point to.
    pub live: usize,
    /// Memory retained: chunks (each once, however few of its bytes live) and the index. The states of regions are left out, for
    /// whoever applies has them, too.
    pub bytes: usize,
}

/// A merged run whose records are smaller than this is copied into one chunk: a stream of one-op batches
/// must not drag a list of tiny chunks through every later merge.
const REPACK_BYTES: usize = 128 << 10;

/// Chunks made of what is left of others are about this large.
const PACKED_BYTES: usize = 1 << 20;
/// Records that are fetched at once: about as many lines as a core can wait for.
const AHEAD: usize = 16;

impl Run {
    /// Takes what a batch or a merge made; `live` as in the field. The invariants are the caller's.
    pub fn new(
        slots: Slots,
        chunks: Vec<Bytes>,
        live: usize,
        ranges: Vec<KeyRange>,
        regions: Vec<RegionChange>,
    ) -> Run {
        let mut run = Run { slots, chunks, ranges, regions, live, bytes: 0 };
        run.bytes = run.chunks.iter().map(|c| c.len() + size_of::<Bytes>()).sum::<usize>()
            + run.slots.len() * size_of::<Slot>()
            + run.ranges.iter().map(|r| r.start.len() + r.end.len() + 64).sum::<usize>()
            + run.regions.len() * size_of::<RegionChange>();
        run
    }

    /// The first slot whose key is `>= key`.
    pub fn lower_bound(&self, key: &[u8]) -> usize {
        self.slots.lower_bound(key, &self.chunks)
    }

    /// The slots of a range of keys.
    pub fn span(&self, range: &KeyRange) -> std::ops::Range<usize> {
        let start = self.lower_bound(&range.start);
        let end =
            if range.end.is_empty() { self.slots.len() } else { self.lower_bound(&range.end) };
        start..end.max(start)
    }

    /// These slots in order, for one who reads all their records. Records lie as they were written, all over the memory:
    /// they are fetched [`AHEAD`] at a time, so that the processor waits for that many at once and not for each by itself.
    pub fn slots_ahead(&self, span: std::ops::Range<usize>) -> impl Iterator<Item = &Slot> {
        let pieces = self.slots.pieces(span).flat_map(|piece| piece.chunks(AHEAD));
        pieces.flat_map(|piece| {
            let heads = piece.iter().fold(0, |all, slot| all ^ slot.head_byte(&self.chunks));
            let tails = piece.iter().fold(0, |all, slot| all ^ slot.tail_byte(&self.chunks));
            std::hint::black_box((heads, tails));
            piece
        })
    }

    /// The key of one of its slots.
    pub fn key(&self, slot: &Slot) -> &[u8] {
        slot.key(&self.chunks)
    }

    /// The key of one of its slots, shared.
    pub fn key_bytes(&self, slot: &Slot) -> Bytes {
        self.chunks[slot.chunk as usize].slice(slot.key_place(&self.chunks))
    }

    /// What one of its slots writes; `None`: it deletes.
    pub fn value(&self, slot: &Slot) -> Option<&[u8]> {
        let (chunk, place) = self.value_place(slot)?;
        Some(&self.chunks[chunk][place])
    }

    /// What one of its slots writes, shared.
    pub fn value_bytes(&self, slot: &Slot) -> Option<Bytes> {
        let (chunk, place) = self.value_place(slot)?;
        Some(self.chunks[chunk].slice(place))
    }

    fn value_place(&self, slot: &Slot) -> Option<(usize, std::ops::Range<usize>)> {
        (slot.kind(&self.chunks) == Kind::Put).then(|| slot.value_place(&self.chunks))
    }

    pub fn find(&self, key: &[u8]) -> Found {
        match self.slots.get(self.lower_bound(key)) {
            Some(slot) if slot.prefix == prefix_of(key) && self.key(slot) == key => {
                self.value_bytes(slot).map_or(Found::Deleted, Found::Put)
            }
            _ if covers(&self.ranges, key) => Found::Deleted,
            _ => Found::Unknown,
        }
    }

    pub fn region(&self, id: RegionId) -> Option<&Option<Stand>> {
        let at = self.regions.binary_search_by_key(&id, |change| change.0).ok()?;
        Some(&self.regions[at].1)
    }

    /// Merges runs given oldest first. Newer points win, newer ranges drop older points.
    pub fn merge(runs: &[Arc<Run>], scratch: &mut Scratch) -> Run {
        let mut chunks = Vec::with_capacity(runs.iter().map(|r| r.chunks.len()).sum());
        let (thinned, ranges) = drop_covered(runs);
        let mut live = 0;
        let mut inputs: Vec<Input<'_>> = Vec::with_capacity(runs.len());
        for (run, thinned) in runs.iter().zip(&thinned) {
            let (slots, run_live) = match thinned {
                Some((slots, live)) => (slots, *live),
                None => (&run.slots, run.live),
            };
            inputs.push((slots, chunks.len() as u32));
            chunks.extend(run.chunks.iter().cloned());
            live += run_live;
        }
        let Merged { mut slots, replaced } = merge(&inputs, &chunks, scratch);
        live -= replaced;
        if is_scattered(&chunks, live) {
            chunks = repack(&mut slots, &chunks, live);
            live = chunks.iter().map(Bytes::len).sum();
        }
        let mut regions: Vec<RegionChange> = Vec::new();
        for run in runs {
            overlay(&mut regions, &run.regions);
        }
        Run::new(slots, chunks, live, ranges, regions)
    }
}

/// Whether live records should move together: few bytes in many chunks, or more dead bytes than live ones. The
/// latter move at most as many bytes as have died.
fn is_scattered(chunks: &[Bytes], live: usize) -> bool {
    let held = chunks.iter().map(Bytes::len).sum::<usize>();
    chunks.len() > 4 && (live <= REPACK_BYTES || held > 2 * live + REPACK_BYTES)
}

/// Copies the records into chunks of their own, in the order of their keys.
fn repack(slots: &mut Slots, chunks: &[Bytes], mut live: usize) -> Vec<Bytes> {
    let mut packed = Vec::with_capacity(live.div_ceil(PACKED_BYTES) + 1);
    let mut arena = Vec::with_capacity(live.min(PACKED_BYTES));
    for slot in slots.iter_mut() {
        let bytes = slot.record_len(chunks);
        if arena.len() + bytes > arena.capacity() && !arena.is_empty() {
            live = live.saturating_sub(arena.len());
            let next = Vec::with_capacity(live.min(PACKED_BYTES).max(bytes));
            packed.push(Bytes::from(std::mem::replace(&mut arena, next)));
        }
        let at = arena.len() as u32;
        slot.copy_record(chunks, &mut arena);
        (slot.chunk, slot.at) = (packed.len() as u32, at);
    }
    packed.push(Bytes::from(arena));
    packed
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

/// What is left of a run: slots, and bytes of their records.
type Thinned = (Slots, usize);

/// Drops from each run what newer runs' ranges delete (`None`: nothing had to be looked at); returns the union of
/// all ranges, too.
fn drop_covered(runs: &[Arc<Run>]) -> (Vec<Option<Thinned>>, Vec<KeyRange>) {
    let mut newer: Vec<KeyRange> = Vec::new();
    let mut thinned = Vec::with_capacity(runs.len());
    for run in runs.iter().rev() {
        thinned.push((!newer.is_empty()).then(|| without(run, &newer)));
        if !run.ranges.is_empty() {
            newer.extend(run.ranges.iter().cloned());
            newer = normalise(newer);
        }
    }
    thinned.reverse();
    (thinned, newer)
}

fn without(run: &Run, ranges: &[KeyRange]) -> Thinned {
    let (mut slots, mut live) = (Slots::with_room(run.slots.len()), 0);
    for slot in run.slots.iter().filter(|slot| !covers(ranges, run.key(slot))) {
        live += slot.record_len(&run.chunks);
        slots.extend(std::slice::from_ref(slot));
    }
    (slots, live)
}

#[cfg(test)]
mod tests {
    use super::super::slot::{record_delete, record_put, record_put_elsewhere};
    use super::super::slots::BLOCK;
    use super::*;

    /// A run of several blocks: small values, none, large ones, and such as lie in another chunk.
    fn run(count: usize) -> Run {
        let (mut arena, mut slots) = (Vec::new(), Vec::new());
        for at in 0..count {
            let key = (at as u64).to_be_bytes();
            slots.push(Slot { prefix: prefix_of(&key), chunk: 0, at: arena.len() as u32 });
            match at % 4 {
                0 => record_put(&mut arena, &key, b"small"),
                1 => record_delete(&mut arena, &key),
                2 => record_put(&mut arena, &key, &[7; 300]),
                _ => record_put_elsewhere(&mut arena, &key, 1, 100..900),
            }
        }
        let live = arena.len();
        let chunks = vec![Bytes::from(arena), Bytes::from(vec![9; 1000])];
        Run::new(Slots::from(slots), chunks, live, Vec::new(), Vec::new())
    }

    #[test]
    fn slots_that_are_fetched_ahead_are_the_same_in_the_same_order() {
        let run = run(2 * BLOCK + 100);
        let spans = [
            0..run.slots.len(),
            0..0,
            3..4,
            BLOCK - 5..BLOCK + 5,
            BLOCK..2 * BLOCK,
            7..2 * BLOCK + 99,
            run.slots.len()..run.slots.len(),
        ];
        for span in spans {
            let there: Vec<u64> = run.slots_ahead(span.clone()).map(|slot| slot.prefix).collect();
            let wanted: Vec<u64> = span.map(|at| at as u64).collect();
            assert_eq!(there, wanted);
        }
    }
}
