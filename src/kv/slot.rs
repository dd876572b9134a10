//! What a sorted run is made of: records, which lie in chunks, and the slots that point to them.
//!
//! A record is the write as bytes; integers are little-endian:
//!
//! | kind | bytes |
//! |---|---|
//! | 1 put | `kind u8, key length u16, value length u32, key, value` |
//! | 2 delete | the same without a value |
//! | 129 put, value elsewhere | as above, key, chunks from here to the value's `u32` (wrapping), place in it `u32` |
//!
//! The first two are how [commands](crate::codec::command) spell the operation, so an entry's operations are records
//! as they stand. A slot has only what merging needs, and merges move nothing else.

use bytes::Bytes;
use std::cmp::Ordering;
use std::ops::Range;

/// What a write does to its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Put,
    Delete,
}

const PUT: u8 = 1;
const DELETE: u8 = 2;
const PUT_ELSEWHERE: u8 = 129;

/// Bytes of a record before its key.
pub(super) const HEAD: usize = 7;

fn head(kind: u8, key_len: usize, value_len: usize) -> [u8; HEAD] {
    let key = (key_len as u16).to_le_bytes();
    let value = (value_len as u32).to_le_bytes();
    [kind, key[0], key[1], value[0], value[1], value[2], value[3]]
}

/// Whether the record of this put lies in `bytes`, given where key and value do.
pub(super) fn is_put_at(bytes: &[u8], key: &Range<u32>, value: &Range<u32>) -> bool {
    let (key, value) =
        (key.start as usize..key.end as usize, value.start as usize..value.end as usize);
    value.start == key.end && is_head(bytes, &key, head(PUT, key.len(), value.len()))
}

/// Whether the record of this delete lies in `bytes`, given where the key does.
pub(super) fn is_delete_at(bytes: &[u8], key: &Range<u32>) -> bool {
    let key = key.start as usize..key.end as usize;
    is_head(bytes, &key, head(DELETE, key.len(), 0))
}

fn is_head(bytes: &[u8], key: &Range<usize>, head: [u8; HEAD]) -> bool {
    key.start.checked_sub(HEAD).is_some_and(|start| bytes[start..key.start] == head)
}

/// Writes the record of a put.
pub(super) fn record_put(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    out.extend_from_slice(&head(PUT, key.len(), value.len()));
    out.extend_from_slice(key);
    out.extend_from_slice(value);
}

/// Writes the record of a put whose value lies `distance` chunks further on, at `value`.
pub(super) fn record_put_elsewhere(
    out: &mut Vec<u8>,
    key: &[u8],
    distance: u32,
    value: Range<u32>,
) {
    out.extend_from_slice(&head(PUT_ELSEWHERE, key.len(), value.len()));
    out.extend_from_slice(key);
    out.extend_from_slice(&distance.to_le_bytes());
    out.extend_from_slice(&value.start.to_le_bytes());
}

/// Writes the record of a delete.
pub(super) fn record_delete(out: &mut Vec<u8>, key: &[u8]) {
    out.extend_from_slice(&head(DELETE, key.len(), 0));
    out.extend_from_slice(key);
}

/// A record's key.
pub(super) fn key_at(bytes: &[u8], at: u32) -> &[u8] {
    let bytes = &bytes[at as usize..];
    &bytes[HEAD..HEAD + usize::from(u16::from_le_bytes([bytes[1], bytes[2]]))]
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// What a record does.
pub(super) fn kind_at(bytes: &[u8], at: u32) -> Kind {
    match bytes[at as usize] {
        DELETE => Kind::Delete,
        _ => Kind::Put,
    }
}

/// Where a record's value lies: so many chunks further on (wrapping), and where in that chunk.
pub(super) struct ValuePlace {
    pub chunks_on: u32,
    pub place: Range<usize>,
}

/// Where the value of a record lies. Empty for a delete.
pub(super) fn value_at(bytes: &[u8], at: u32) -> ValuePlace {
    let (at, end) = (at as usize, at as usize + HEAD + key_at(bytes, at).len());
    let len = u32_at(bytes, at + 3) as usize;
    if bytes[at] == PUT_ELSEWHERE {
        let start = u32_at(bytes, end + 4) as usize;
        return ValuePlace { chunks_on: u32_at(bytes, end), place: start..start + len };
    }
    ValuePlace { chunks_on: 0, place: end..end + len }
}

/// One point write: where its record lies. Copied around by merges; owns nothing.
///
/// * `prefix` is the key's first eight bytes, big-endian, zero-padded: decides most comparisons without a cache
///   miss.
/// * At `at` in the chunk begins a whole record, and the chunk that this one refers to, if any, is in the same list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub prefix: u64,
    pub chunk: u32,
    pub at: u32,
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

/// A longer record is read on by the processor itself.
const TAIL_MAX: usize = 128;

impl Slot {
    pub fn key<'a>(&self, chunks: &'a [Bytes]) -> &'a [u8] {
        key_at(&chunks[self.chunk as usize], self.at)
    }

    pub fn kind(&self, chunks: &[Bytes]) -> Kind {
        kind_at(&chunks[self.chunk as usize], self.at)
    }

    /// Where the key lies in its chunk.
    pub fn key_place(&self, chunks: &[Bytes]) -> Range<usize> {
        let start = self.at as usize + HEAD;
        start..start + self.key(chunks).len()
    }

    /// Where the value lies: its chunk, and where in it. Empty for a delete.
    pub fn value_place(&self, chunks: &[Bytes]) -> (usize, Range<usize>) {
        let value = value_at(&chunks[self.chunk as usize], self.at);
        (self.chunk.wrapping_add(value.chunks_on) as usize, value.place)
    }

    /// Bytes of the record with its value beside it, wherever that lies.
    pub fn record_len(&self, chunks: &[Bytes]) -> usize {
        let bytes = &chunks[self.chunk as usize][self.at as usize..];
        let key = usize::from(u16::from_le_bytes([bytes[1], bytes[2]]));
        HEAD + key + u32_at(bytes, 3) as usize
    }

    /// The record's first byte.
    pub fn head_byte(&self, chunks: &[Bytes]) -> u8 {
        chunks[self.chunk as usize][self.at as usize]
    }

    /// The record's last byte, or one that is not far behind its first; of a value elsewhere anything.
    pub fn tail_byte(&self, chunks: &[Bytes]) -> u8 {
        let bytes = &chunks[self.chunk as usize];
        let end = (self.at as usize + self.record_len(chunks).min(TAIL_MAX)).min(bytes.len());
        bytes[end - 1]
    }

    /// Writes the record with its value beside it.
    pub fn copy_record(&self, chunks: &[Bytes], out: &mut Vec<u8>) {
        let key = self.key(chunks);
        match self.kind(chunks) {
            Kind::Delete => record_delete(out, key),
            Kind::Put => {
                let (chunk, place) = self.value_place(chunks);
                record_put(out, key, &chunks[chunk][place]);
            }
        }
    }

    /// The same write, after `base` chunks were put before its own.
    pub fn rebased(mut self, base: u32) -> Slot {
        self.chunk += base;
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
