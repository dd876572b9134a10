//! The state machine contract for embedders, and the built-in one.
//!
//! A [`StateMachine`] turns commands into writes. It runs on every replica, again after every restart
//! (from the last durable flush on), and must therefore be deterministic: no clock, no randomness, no
//! thread, nothing but the command and what [`Context::get`] returns. Its writes commit atomically
//! with the applied index. A refusal that every replica reaches alike is a response; an `Err` poisons
//! the store, because replicas may have diverged.

use crate::codec::command::{self, Op, PREVIOUS_BYTES_MAX, Swap};
use crate::error::Result;
use crate::kv::{ChunkId, Pending, View, WriteBatch};
use crate::types::{KeyRange, RegionId};
use bytes::Bytes;
use std::ops::Range;

/// Where a command stands and what it may read and write.
pub struct Context<'a> {
    /// The region it was proposed to.
    pub region: RegionId,
    /// The index of the entry it stands in; several commands of one entry share it.
    pub index: u64,
    /// Its writes. Keys outside of the region's range are a bug of the caller.
    pub batch: &'a mut WriteBatch,
    /// How many bytes of previous values its answer may carry. It differs between replicas (an answer is no
    /// part of the state): writes must not depend on it.
    pub(crate) answer_room: usize,
    /// What was applied before this round of applying.
    pub(crate) view: &'a dyn View,
    /// The entry that the command is a slice of.
    pub(crate) entry: Source<'a>,
}

/// The bytes of an entry, and their place in the batch once something points into them.
///
/// Commands of one entry share one place: a place for each would be most of what a small write costs.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    data: &'a Bytes,
    chunk: &'a mut Option<ChunkId>,
}

impl<'a> Source<'a> {
    /// Of an entry with these bytes; `chunk` is their place, `None` while nothing points into them.
    pub fn new(data: &'a Bytes, chunk: &'a mut Option<ChunkId>) -> Source<'a> {
        Source { data, chunk }
    }

    /// The place, and where in it the command begins. A command that is no slice of the entry gets a place of
    /// its own.
    fn place(&mut self, batch: &mut WriteBatch, command: &[u8]) -> (ChunkId, u32) {
        let Some(base) = self.offset_of(command) else {
            return (batch.add_chunk(Bytes::copy_from_slice(command)), 0);
        };
        let data = self.data;
        (*self.chunk.get_or_insert_with(|| batch.add_chunk(data.clone())), base as u32)
    }

    /// Where in the entry these bytes lie, if they do.
    fn offset_of(&self, part: &[u8]) -> Option<usize> {
        let base = (part.as_ptr() as usize).wrapping_sub(self.data.as_ptr() as usize);
        base.checked_add(part.len()).filter(|end| *end <= self.data.len()).map(|_| base)
    }
}

impl Context<'_> {
    /// The value of `key` as of this command, earlier writes of the round included.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>> {
        match self.batch.get_pending(key) {
            Pending::Put(value) => Ok(Some(value)),
            Pending::Deleted => Ok(None),
            Pending::Unknown => self.view.get(key),
        }
    }

    /// A part of the command as bytes that may be kept. It shares the memory of the log entry, all of which stays for as
    /// long; what is no part of it is copied.
    pub fn share(&self, part: &[u8]) -> Bytes {
        match self.entry.offset_of(part) {
            Some(at) => self.entry.data.slice(at..at + part.len()),
            None => Bytes::copy_from_slice(part),
        }
    }
}

/// Deterministic application of commands. See the [module](self).
pub trait StateMachine: Send + Sync + 'static {
    /// Applies one command, which lies in its log entry ([`Context::share`] keeps parts of it); the response goes to
    /// whoever proposed it, if he still waits. Bound it: one that does not fit a message between nodes (25 MiB) reaches
    /// callers in other processes as an [`Ambiguous`](crate::Error::Ambiguous).
    fn apply(&self, context: &mut Context<'_>, command: &[u8]) -> Result<Bytes>;

    /// Whether this command takes a microsecond or so for each hundred bytes, and reads nothing: up to 16 KiB of entries at once
    /// may then be applied by the thread that also drives consensus, which saves a quiet node the hand-over. Never needed for
    /// being right.
    fn is_quick(&self, command: &[u8]) -> bool {
        let _ = command;
        false
    }
}

/// The built-in commands: put, delete, delete-range, compare-and-swap, batches.
#[derive(Clone, Copy, Default, Debug)]
pub struct KvMachine;

fn offsets(base: u32, range: Range<usize>) -> Range<u32> {
    base + range.start as u32..base + range.end as u32
}

impl StateMachine for KvMachine {
    fn apply(&self, context: &mut Context<'_>, command: &[u8]) -> Result<Bytes> {
        let mut swaps = Vec::new();
        let mut room = context.answer_room.min(PREVIOUS_BYTES_MAX);
        let (chunk, base) = context.entry.place(context.batch, command);
        for op in command::ops(command) {
            match op? {
                Op::Put { key, value } => {
                    context.batch.put_in(chunk, offsets(base, key), offsets(base, value));
                }
                Op::Delete { key } => context.batch.delete_in(chunk, offsets(base, key)),
                Op::DeleteRange { start, end } => context.batch.delete_range(&KeyRange {
                    start: context.share(&command[start]),
                    end: context.share(&command[end]),
                }),
                Op::CompareAndSwap { key, expected, new } => {
                    let previous = context.get(&command[key.clone()])?;
                    let expected = expected.map(|range| &command[range]);
                    let swapped = previous.as_deref() == expected;
                    match new {
                        Some(value) if swapped => {
                            context.batch.put_in(chunk, offsets(base, key), offsets(base, value));
                        }
                        None if swapped => context.batch.delete_in(chunk, offsets(base, key)),
                        _ => {}
                    }
                    swaps.push(Swap::within(&mut room, swapped, previous));
                }
            }
        }
        Ok(command::encode_swaps(&swaps))
    }

    /// Whatever does not look at what is there, which may lie on the disk, and is one key's.
    fn is_quick(&self, command: &[u8]) -> bool {
        let lasts = |op| matches!(op, Ok(Op::CompareAndSwap { .. } | Op::DeleteRange { .. }));
        !command::ops(command).any(lasts)
    }
}

/// Applies nothing and answers nothing: measures consensus alone.
#[derive(Clone, Copy, Default, Debug)]
pub struct NullMachine;

impl StateMachine for NullMachine {
    fn apply(&self, _context: &mut Context<'_>, _command: &[u8]) -> Result<Bytes> {
        Ok(Bytes::new())
    }

    fn is_quick(&self, _command: &[u8]) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::command::{BatchBuilder, decode_swaps};
    use crate::kv::{MemoryStore, StateStore};

    fn swaps_with(room: usize, store: &MemoryStore) -> Vec<Swap> {
        let mut command = BatchBuilder::new();
        for _ in 0..5 {
            command.compare_and_swap(b"big", Some(b"x"), None).unwrap();
        }
        command.compare_and_swap(b"small", Some(b"1"), Some(b"2")).unwrap();
        let (mut batch, view) = (WriteBatch::new(), store.view().unwrap());
        let (command, mut chunk) = (command.finish(), None);
        let mut context = Context {
            entry: Source::new(&command, &mut chunk),
            region: RegionId(1),
            index: 1,
            batch: &mut batch,
            answer_room: room,
            view: &*view,
        };
        let answer = KvMachine.apply(&mut context, &command).unwrap();
        // What is written does not depend on what is told.
        assert_eq!(batch.get_pending(b"big"), Pending::Unknown);
        assert_eq!(batch.get_pending(b"small"), Pending::Put("2".into()));
        decode_swaps(&answer).unwrap()
    }

    /// Commands of one entry point into the same chunk; one that is no slice of it is right all the same.
    #[test]
    fn commands_of_an_entry_share_its_bytes() {
        let store = MemoryStore::new().unwrap();
        let put = |key: &[u8], value: &[u8]| {
            let mut command = BatchBuilder::new();
            command.put(key, value).unwrap();
            command.finish()
        };
        let (one, two, stranger) = (put(b"a", b"1"), put(b"b", b"22"), put(b"c", b"333"));
        let data = Bytes::from([b"head", &one[..], b"gap", &two[..]].concat());
        let second = 4 + one.len() + 3;
        let slices = [data.slice(4..4 + one.len()), data.slice(second..), stranger];
        let (mut batch, view) = (WriteBatch::new(), store.view().unwrap());
        let mut chunk = None;
        for command in &slices {
            let mut context = Context {
                region: RegionId(1),
                index: 1,
                batch: &mut batch,
                answer_room: 0,
                view: &*view,
                entry: Source::new(&data, &mut chunk),
            };
            KvMachine.apply(&mut context, command).unwrap();
        }
        assert_eq!(batch.bytes(), data.len() + slices[2].len());
        store.write(batch).unwrap();
        let view = store.view().unwrap();
        for (key, value) in [("a", "1"), ("b", "22"), ("c", "333")] {
            assert_eq!(view.get(key.as_bytes()).unwrap().unwrap(), value);
        }
    }

    #[test]
    fn an_answer_tells_previous_values_up_to_its_bound() {
        let store = MemoryStore::new().unwrap();
        let mut batch = WriteBatch::new();
        batch.put("big".into(), vec![0; PREVIOUS_BYTES_MAX / 2].into());
        batch.put("small".into(), "1".into());
        store.write(batch).unwrap();
        let told = |room| -> Vec<Option<usize>> {
            let swaps = swaps_with(room, &store);
            assert!(swaps.iter().all(|swap| swap.left_out == swap.previous.is_none()));
            swaps.iter().map(|swap| swap.previous.as_ref().map(Bytes::len)).collect()
        };
        let half = Some(PREVIOUS_BYTES_MAX / 2);
        assert_eq!(told(usize::MAX), [half, half, None, None, None, None]);
        assert_eq!(told(PREVIOUS_BYTES_MAX - 1), [half, None, None, None, None, Some(1)]);
        assert_eq!(told(0), [None; 6]);
    }

    #[test]
    fn what_looks_at_what_is_there_or_at_ranges_is_not_quick() {
        let mut batch = BatchBuilder::new();
        batch.put(b"a", b"1").unwrap();
        batch.delete(b"b").unwrap();
        assert!(KvMachine.is_quick(&batch.finish()));
        let mut batch = BatchBuilder::new();
        batch.delete_range(&KeyRange::new("c", "d")).unwrap();
        assert!(!KvMachine.is_quick(&batch.finish()));
        let mut batch = BatchBuilder::new();
        batch.put(b"a", b"1").unwrap();
        batch.compare_and_swap(b"a", Some(b"1"), None).unwrap();
        assert!(!KvMachine.is_quick(&batch.finish()));
    }
}
