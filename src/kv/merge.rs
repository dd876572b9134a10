//! Merging sorted slots, in pieces that stay in the processor's cache: each slot is read once and written once,
//! however many lists there are.

use super::slot::{Slot, order};
use super::slots::Slots;
use bytes::Bytes;
use std::cmp::Ordering;

/// A list on its way into a merge, and what to add to its chunks. Older lists come first.
pub(super) type Input<'a> = (&'a Slots, u32);

/// Slots of a piece, about.
const PIECE: usize = 8 << 10;
/// Of each list at least so many are looked at for a piece.
const STEP_MIN: usize = 64;

/// Memory for a piece, used again by the next one and the next merge.
#[derive(Default, Debug)]
pub(super) struct Scratch {
    from: Vec<Slot>,
    to: Vec<Slot>,
}

/// What a merge made.
pub(super) struct Merged {
    pub slots: Slots,
    /// Bytes of records that are no longer pointed to, because a newer one has their key.
    pub replaced: usize,
}

/// Merges sorted lists; of equal keys the newest stays.
pub(super) fn merge(inputs: &[Input<'_>], chunks: &[Bytes], scratch: &mut Scratch) -> Merged {
    let room = inputs.iter().map(|(slots, _)| slots.len()).sum();
    let mut merging = Merging { chunks, replaced: 0 };
    let mut out = Slots::with_room(room);
    let mut rests: Vec<Rest<'_>> =
        inputs.iter().map(|(slots, base)| Rest { slots, base: *base, at: 0 }).collect();
    let step = (PIECE / inputs.len().max(1)).max(STEP_MIN);
    loop {
        rests.retain(|rest| rest.at < rest.slots.len());
        if rests.is_empty() {
            return Merged { slots: out, replaced: merging.replaced };
        }
        let piece = next_piece(&mut rests, step, chunks);
        merging.piece(&piece, scratch);
        out.extend(&scratch.from);
    }
}

/// What is left of an input.
struct Rest<'a> {
    slots: &'a Slots,
    base: u32,
    at: usize,
}

impl<'a> Rest<'a> {
    /// The slots that the next piece may take.
    fn window(&self, step: usize) -> &'a [Slot] {
        let window = self.slots.side_by_side(self.at);
        &window[..window.len().min(step)]
    }
}

/// Takes from all lists what comes before a key, chosen so that the windows hold all of it. The list whose window
/// ends first gives its whole window, so every piece is a step.
fn next_piece<'a>(rests: &mut [Rest<'a>], step: usize, chunks: &[Bytes]) -> Vec<Sorted<'a>> {
    let mut end: Option<Slot> = None;
    for rest in rests.iter() {
        if let Some(beyond) = rest.slots.get(rest.at + rest.window(step).len()) {
            let beyond = beyond.rebased(rest.base);
            if end.is_none_or(|end| order(&beyond, &end, chunks).is_lt()) {
                end = Some(beyond);
            }
        }
    }
    let mut piece = Vec::with_capacity(rests.len());
    for rest in rests {
        let window = rest.window(step);
        let before = |slot: &Slot| {
            end.is_none_or(|end| order(&slot.rebased(rest.base), &end, chunks).is_lt())
        };
        let taken = window.partition_point(before);
        rest.at += taken;
        if taken > 0 {
            piece.push((&window[..taken], rest.base));
        }
    }
    piece
}

/// Slots, and what to add to their chunks.
type Sorted<'a> = (&'a [Slot], u32);

/// One merge.
struct Merging<'a> {
    chunks: &'a [Bytes],
    replaced: usize,
}

impl Merging<'_> {
    /// Merges the lists of a piece into `scratch.from`, neighbours pairwise until one is left.
    fn piece(&mut self, lists: &[Sorted<'_>], scratch: &mut Scratch) {
        let Scratch { from, to } = scratch;
        let mut ends = self.pass(lists.iter().copied(), from);
        while ends.len() > 1 {
            ends = self.pass(between(from, &ends), to);
            std::mem::swap(from, to);
        }
    }

    /// Merges each two neighbours, oldest first, one behind the other into `out`; tells where each result ends.
    fn pass<'a>(
        &mut self,
        mut lists: impl Iterator<Item = Sorted<'a>>,
        out: &mut Vec<Slot>,
    ) -> Vec<usize> {
        out.clear();
        let mut ends = Vec::new();
        while let Some(older) = lists.next() {
            match lists.next() {
                Some(newer) => self.two(older, newer, out),
                None => extend(out, older),
            }
            ends.push(out.len());
        }
        ends
    }

    fn two(
        &mut self,
        (old, old_base): Sorted<'_>,
        (new, new_base): Sorted<'_>,
        out: &mut Vec<Slot>,
    ) {
        out.reserve(old.len() + new.len());
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
            match a.key(self.chunks).cmp(b.key(self.chunks)) {
                Ordering::Less => {
                    out.push(a);
                    i += 1;
                }
                Ordering::Greater => {
                    out.push(b);
                    j += 1;
                }
                Ordering::Equal => {
                    self.replaced += a.record_len(self.chunks);
                    out.push(b);
                    i += 1;
                    j += 1;
                }
            }
        }
        extend(out, (&old[i..], old_base));
        extend(out, (&new[j..], new_base));
    }
}

fn extend(out: &mut Vec<Slot>, (slots, base): Sorted<'_>) {
    out.extend(slots.iter().map(|slot| slot.rebased(base)));
}

/// The lists that end at these places.
fn between<'a>(slots: &'a [Slot], ends: &'a [usize]) -> impl Iterator<Item = Sorted<'a>> {
    let starts = std::iter::once(0).chain(ends.iter().copied());
    starts.zip(ends).map(|(start, end)| (&slots[start..*end], 0))
}
