//! The slots of a run, in blocks: merges neither ask for nor give back large pieces of memory, which an allocator
//! returns to the system and gets back page by page, each to be cleared.

use super::slot::{Slot, prefix_of};
use bytes::Bytes;
use std::ops::Range;

/// Slots of a block: 64 KiB.
pub(super) const BLOCK: usize = 4 << 10;

/// A sequence of slots.
///
/// * Every block but the last has [`BLOCK`] slots; none is empty.
#[derive(Default, Debug)]
pub(super) struct Slots {
    blocks: Vec<Block>,
    len: usize,
    /// How many there will be at most.
    room: usize,
}

#[derive(Debug)]
struct Block {
    /// The prefix of its first slot, here because that is looked for.
    first: u64,
    slots: Vec<Slot>,
}

impl From<Vec<Slot>> for Slots {
    fn from(slots: Vec<Slot>) -> Slots {
        let Some(first) = slots.first() else { return Slots::default() };
        let len = slots.len();
        if len <= BLOCK {
            return Slots { blocks: vec![Block { first: first.prefix, slots }], len, room: len };
        }
        let mut out = Slots::with_room(len);
        out.extend(&slots);
        out
    }
}

impl Slots {
    /// Without slots, for at most `room` of them.
    pub fn with_room(room: usize) -> Slots {
        Slots { blocks: Vec::with_capacity(room.div_ceil(BLOCK)), len: 0, room }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn get(&self, at: usize) -> Option<&Slot> {
        self.blocks.get(at / BLOCK)?.slots.get(at % BLOCK)
    }

    /// Slots side by side in memory, from `at` on: at least one, unless there are no more.
    pub fn side_by_side(&self, at: usize) -> &[Slot] {
        let block = self.blocks.get(at / BLOCK);
        block.and_then(|block| block.slots.get(at % BLOCK..)).unwrap_or_default()
    }

    /// The slots at these places, in pieces that lie side by side.
    pub fn pieces(&self, span: Range<usize>) -> impl Iterator<Item = &[Slot]> {
        let mut at = span.start;
        std::iter::from_fn(move || {
            let piece = self.side_by_side(at);
            let piece = &piece[..piece.len().min(span.end.saturating_sub(at))];
            at += piece.len();
            (!piece.is_empty()).then_some(piece)
        })
    }

    pub fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.blocks.iter().flat_map(|block| block.slots.iter())
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.blocks.iter_mut().flat_map(|block| block.slots.iter_mut())
    }

    /// Appends slots.
    pub fn extend(&mut self, mut slots: &[Slot]) {
        while let Some(first) = slots.first() {
            let room = BLOCK - self.len % BLOCK;
            if room == BLOCK {
                let room = self.room.saturating_sub(self.len).clamp(1, BLOCK);
                self.blocks.push(Block { first: first.prefix, slots: Vec::with_capacity(room) });
            }
            let (now, rest) = slots.split_at(slots.len().min(room));
            if let Some(block) = self.blocks.last_mut() {
                block.slots.extend_from_slice(now);
            }
            self.len += now.len();
            slots = rest;
        }
    }

    /// Of ascending slots the first whose key is `>= key`.
    pub fn lower_bound(&self, key: &[u8], chunks: &[Bytes]) -> usize {
        let prefix = prefix_of(key);
        let start = self.first_after(|other| other < prefix);
        // Mostly it is decided here, after one look at a record at most.
        match self.get(start) {
            Some(slot) if slot.prefix == prefix && slot.key(chunks) < key => {}
            _ => return start,
        }
        let (mut start, mut end) = (start + 1, self.first_after(|other| other <= prefix));
        while start < end {
            let middle = start + (end - start) / 2;
            match self.get(middle) {
                Some(slot) if slot.key(chunks) < key => start = middle + 1,
                _ => end = middle,
            }
        }
        start
    }

    /// The first slot whose prefix is not among those that come `before`.
    fn first_after(&self, before: impl Fn(u64) -> bool) -> usize {
        let blocks = self.blocks.partition_point(|block| before(block.first));
        let Some(block) = blocks.checked_sub(1) else { return 0 };
        block * BLOCK + self.blocks[block].slots.partition_point(|slot| before(slot.prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::super::slot::record_put;
    use super::*;
    use proptest::prelude::*;

    /// Keys of which many have the same first eight bytes.
    fn key(number: u32) -> Vec<u8> {
        let mut key = (number / 1_000 % 7).to_be_bytes().repeat(2);
        key.extend_from_slice(&number.to_be_bytes()[..(number % 5) as usize]);
        key.extend_from_slice(&number.to_be_bytes());
        key
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..Default::default() })]

        #[test]
        fn the_lower_bound_is_that_of_a_sorted_list(
            numbers in prop::collection::btree_set(0u32..40_000, 0..3 * BLOCK),
            cuts in prop::collection::vec(1usize..5_000, 1..8),
            looked_for in prop::collection::vec(0u32..40_000, 50),
        ) {
            let mut keys: Vec<Vec<u8>> = numbers.iter().map(|number| key(*number)).collect();
            keys.sort();
            let (mut arena, mut list) = (Vec::new(), Vec::new());
            for key in &keys {
                list.push(Slot { prefix: prefix_of(key), chunk: 0, at: arena.len() as u32 });
                record_put(&mut arena, key, b"value");
            }
            let chunks = [Bytes::from(arena)];
            let mut slots = Slots::with_room(list.len());
            let mut rest = &list[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at(rest.len().min(*cut));
                slots.extend(now);
                rest = later;
            }
            prop_assert_eq!(slots.len(), keys.len());
            prop_assert!(slots.iter().map(|slot| slot.key(&chunks)).eq(keys.iter().map(|key| &key[..])));
            prop_assert!(keys.iter().enumerate().all(|(at, key)| slots.side_by_side(at)[0].key(&chunks) == key));
            for number in looked_for {
                let key = key(number);
                let want = keys.partition_point(|other| *other < key);
                prop_assert_eq!(slots.lower_bound(&key, &chunks), want);
            }
            prop_assert_eq!(slots.lower_bound(&[], &chunks), 0);
            prop_assert_eq!(slots.lower_bound(&[255; 20], &chunks), keys.len());
        }
    }
}
