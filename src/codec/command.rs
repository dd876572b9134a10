//! What stands in a log entry.
//!
//! An entry's data is one [`Payload`]: either the client batches that were waiting when the leader
//! proposed (*folded* into one entry, each with its own result, the epoch checked once), or one
//! administrative command. All integers are little-endian.
//!
//! | payload | bytes |
//! |---|---|
//! | normal | `1`, epoch version `u64`, number of batches `u32`, then for each: length `u32`, batch |
//! | compact | `2`, index `u64`, term `u64` |
//! | others | see [`admin`](super::admin) |
//!
//! The built-in state machine's batch is a sequence of operations, each `kind u8, key length u16,
//! value length u32, key, value`:
//!
//! | kind | key | value |
//! |---|---|---|
//! | 1 put | key | value |
//! | 2 delete | key | - |
//! | 3 delete range | start | end (empty = no upper end) |
//! | 4 compare and swap | key | `flags u8` (1: expect a value, 2: set a value), expected length `u32`, expected, new |
//!
//! A batch is applied as a whole, in order, and parsed in place: the memtable points into the entry.

use super::admin::Admin;
use crate::error::{Error, Result};
use crate::types::{KeyRange, LogPosition};
use bytes::Bytes;
use std::ops::Range;

/// Keys are at most this long, in bytes.
pub const KEY_BYTES_MAX: usize = 32 << 10;
/// Values are at most this long, in bytes.
pub const VALUE_BYTES_MAX: usize = 16 << 20;
/// A client batch is at most this long, in bytes.
pub const BATCH_BYTES_MAX: usize = 24 << 20;

const NORMAL: u8 = 1;
const COMPACT: u8 = 2;
/// Bytes before the first batch of a normal payload.
const NORMAL_HEAD: usize = 1 + 8 + 4;

const PUT: u8 = 1;
const DELETE: u8 = 2;
const DELETE_RANGE: u8 = 3;
const CAS: u8 = 4;
/// Bytes before an operation's key.
const OP_HEAD: usize = 1 + 2 + 4;
const CAS_EXPECTS: u8 = 1;
const CAS_SETS: u8 = 2;

/// The parsed data of one log entry.
#[derive(Clone, PartialEq, Debug)]
pub enum Payload<'a> {
    /// Folded client batches.
    Normal {
        /// The region's epoch version that every batch in it was routed for.
        version: u64,
        /// The batches, in order.
        batches: Batches<'a>,
    },
    /// Every replica may drop its log up to here (once it has flushed that far).
    Compact(LogPosition),
    /// A change of the region's shape or of the cluster's record.
    Admin(Admin),
}

/// The client batches of an entry, read where they lie: to count a reference to each would cost more than to apply it.
#[derive(Clone, PartialEq, Debug)]
pub struct Batches<'a> {
    /// Lengths and batches, known to be whole.
    rest: &'a [u8],
    count: usize,
}

impl<'a> Batches<'a> {
    /// Those that stand in `bytes`, which must hold them and nothing else.
    fn checked(bytes: &'a [u8], count: usize) -> Result<Batches<'a>> {
        let mut at = 0;
        for _ in 0..count {
            let len = u32_at(bytes, at)? as usize;
            at += 4;
            if len > bytes.len() - at {
                return Err(bad("batch cut short"));
            }
            at += len;
        }
        match at == bytes.len() {
            true => Ok(Batches { rest: bytes, count }),
            false => Err(bad("bytes after the last batch")),
        }
    }
}

impl<'a> Iterator for Batches<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (len, rest) = self.rest.split_first_chunk()?;
        let (batch, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        self.rest = rest;
        self.count -= 1;
        Some(batch)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.count, Some(self.count))
    }
}

impl ExactSizeIterator for Batches<'_> {}

/// Folds client batches into one entry.
#[derive(Debug)]
pub struct PayloadBuilder {
    bytes: Vec<u8>,
    count: u32,
}

impl PayloadBuilder {
    /// Starts an entry for the epoch version, with room for `bytes` of batches, the 4 before each of them included.
    pub fn new(version: u64, bytes: usize) -> PayloadBuilder {
        let mut out = Vec::with_capacity(NORMAL_HEAD + bytes);
        out.push(NORMAL);
        out.extend_from_slice(&version.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        PayloadBuilder { bytes: out, count: 0 }
    }

    /// Adds one client batch.
    pub fn push(&mut self, batch: &[u8]) {
        self.bytes.extend_from_slice(&(batch.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(batch);
        self.count += 1;
    }

    /// The entry's data.
    pub fn finish(mut self) -> Bytes {
        self.bytes[9..13].copy_from_slice(&self.count.to_le_bytes());
        Bytes::from(self.bytes)
    }
}

/// The entry of a replicated compaction up to `position`.
pub fn encode_compact(position: LogPosition) -> Bytes {
    let mut out = Vec::with_capacity(17);
    out.push(COMPACT);
    out.extend_from_slice(&position.index.to_le_bytes());
    out.extend_from_slice(&position.term.to_le_bytes());
    Bytes::from(out)
}

fn bad(detail: &str) -> Error {
    Error::malformed("command", detail)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    let raw = bytes.get(at..at + 4).ok_or_else(|| bad("cut short"))?;
    Ok(u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    let raw = bytes.get(at..at + 8).ok_or_else(|| bad("cut short"))?;
    let mut out = [0; 8];
    out.copy_from_slice(raw);
    Ok(u64::from_le_bytes(out))
}

impl Payload<'_> {
    /// Parses an entry's data without copying it.
    pub fn parse(data: &Bytes) -> Result<Payload<'_>> {
        match data.first() {
            Some(&NORMAL) => parse_normal(data),
            Some(&COMPACT) if data.len() == 17 => Ok(Payload::Compact(LogPosition {
                index: u64_at(data, 1)?,
                term: u64_at(data, 9)?,
            })),
            _ => match Admin::decode(data) {
                Some(admin) => admin.map(Payload::Admin),
                None => Err(bad("unknown payload")),
            },
        }
    }
}

/// Whether an entry's data are batches of users' commands.
pub(crate) fn is_normal(data: &[u8]) -> bool {
    data.first() == Some(&NORMAL)
}

fn parse_normal(data: &[u8]) -> Result<Payload<'_>> {
    let version = u64_at(data, 1)?;
    let count = u32_at(data, 9)? as usize;
    let batches = Batches::checked(&data[NORMAL_HEAD..], count)?;
    Ok(Payload::Normal { version, batches })
}

/// One operation of the built-in state machine; ranges are offsets in the batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Sets a key.
    Put {
        /// The key.
        key: Range<usize>,
        /// Its value.
        value: Range<usize>,
    },
    /// Removes a key.
    Delete {
        /// The key.
        key: Range<usize>,
    },
    /// Removes every key of `[start, end)`; an empty end means no upper end.
    DeleteRange {
        /// First key, inclusive.
        start: Range<usize>,
        /// Last key, exclusive.
        end: Range<usize>,
    },
    /// Sets a key if it holds what is expected.
    CompareAndSwap {
        /// The key.
        key: Range<usize>,
        /// What it must hold; `None`: nothing.
        expected: Option<Range<usize>>,
        /// What it shall hold; `None`: nothing.
        new: Option<Range<usize>>,
    },
}

impl Op {
    /// The key that decides which region the operation belongs to.
    pub fn key(&self) -> Range<usize> {
        match self {
            Op::Put { key, .. } | Op::Delete { key } | Op::CompareAndSwap { key, .. } => {
                key.clone()
            }
            Op::DeleteRange { start, .. } => start.clone(),
        }
    }
}

/// The operations of one client batch, in order. Stops at the first malformed one.
#[derive(Debug)]
pub struct Ops<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Reads a client batch.
pub fn ops(batch: &[u8]) -> Ops<'_> {
    Ops { bytes: batch, at: 0 }
}

impl Ops<'_> {
    /// Where in the batch the next operation starts.
    pub fn position(&self) -> usize {
        self.at
    }

    fn read(&mut self) -> Result<Op> {
        let bytes = self.bytes;
        let head =
            bytes.get(self.at..self.at + OP_HEAD).ok_or_else(|| bad("operation cut short"))?;
        let key_len = usize::from(u16::from_le_bytes([head[1], head[2]]));
        let value_len = u32::from_le_bytes([head[3], head[4], head[5], head[6]]) as usize;
        if key_len > KEY_BYTES_MAX {
            return Err(bad("key too long"));
        }
        let key = self.at + OP_HEAD..self.at + OP_HEAD + key_len;
        let value = key.end..key.end.checked_add(value_len).ok_or_else(|| bad("length"))?;
        if value.end > bytes.len() {
            return Err(bad("operation cut short"));
        }
        self.at = value.end;
        match head[0] {
            PUT if value_len > VALUE_BYTES_MAX => Err(bad("value too long")),
            PUT => Ok(Op::Put { key, value }),
            DELETE if value_len == 0 => Ok(Op::Delete { key }),
            DELETE_RANGE => Ok(Op::DeleteRange { start: key, end: value }),
            CAS => self.read_cas(key, value),
            _ => Err(bad("unknown operation")),
        }
    }

    fn read_cas(&self, key: Range<usize>, value: Range<usize>) -> Result<Op> {
        let flags = *self.bytes[value.clone()].first().ok_or_else(|| bad("no flags"))?;
        let expected_len = u32_at(&self.bytes[..value.end], value.start + 1)? as usize;
        let expected = value.start + 5..value.start + 5 + expected_len;
        if expected.end > value.end || flags & !(CAS_EXPECTS | CAS_SETS) != 0 {
            return Err(bad("compare and swap"));
        }
        let new = expected.end..value.end;
        if new.len() > VALUE_BYTES_MAX {
            return Err(bad("value too long"));
        }
        Ok(Op::CompareAndSwap {
            key,
            expected: (flags & CAS_EXPECTS != 0).then_some(expected),
            new: (flags & CAS_SETS != 0).then_some(new),
        })
    }
}

impl Iterator for Ops<'_> {
    type Item = Result<Op>;

    fn next(&mut self) -> Option<Result<Op>> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let op = self.read();
        if op.is_err() {
            self.at = self.bytes.len();
        }
        Some(op)
    }
}

/// Builds a client batch of the built-in state machine.
#[derive(Clone, Default, Debug)]
pub struct BatchBuilder {
    bytes: Vec<u8>,
    count: usize,
}

impl BatchBuilder {
    /// An empty batch.
    pub fn new() -> BatchBuilder {
        BatchBuilder::default()
    }

    /// An empty batch with room for `bytes`: of each operation 7, its key and its value.
    pub fn with_capacity(bytes: usize) -> BatchBuilder {
        BatchBuilder { bytes: Vec::with_capacity(bytes), count: 0 }
    }

    fn op(&mut self, kind: u8, key: &[u8], value_len: usize) -> Result<()> {
        if key.len() > KEY_BYTES_MAX {
            return Err(Error::InvalidArgument(format!(
                "key of {} bytes (limit {KEY_BYTES_MAX})",
                key.len()
            )));
        }
        if value_len > VALUE_BYTES_MAX
            || self.bytes.len() + OP_HEAD + key.len() + value_len > BATCH_BYTES_MAX
        {
            return Err(Error::InvalidArgument(format!(
                "batch or value too large (limits {BATCH_BYTES_MAX} and {VALUE_BYTES_MAX} bytes)"
            )));
        }
        // At once: a batch of one would grow five times.
        self.bytes.reserve(OP_HEAD + key.len() + value_len);
        self.bytes.push(kind);
        self.bytes.extend_from_slice(&(key.len() as u16).to_le_bytes());
        self.bytes.extend_from_slice(&(value_len as u32).to_le_bytes());
        self.bytes.extend_from_slice(key);
        self.count += 1;
        Ok(())
    }

    /// Sets a key. Errors when the key, value or batch is over its limit.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.op(PUT, key, value.len())?;
        self.bytes.extend_from_slice(value);
        Ok(())
    }

    /// Removes a key.
    pub fn delete(&mut self, key: &[u8]) -> Result<()> {
        self.op(DELETE, key, 0)
    }

    /// Removes every key of the range.
    pub fn delete_range(&mut self, range: &KeyRange) -> Result<()> {
        if range.end.len() > KEY_BYTES_MAX {
            return Err(Error::InvalidArgument("range end too long".into()));
        }
        self.op(DELETE_RANGE, &range.start, range.end.len())?;
        self.bytes.extend_from_slice(&range.end);
        Ok(())
    }

    /// Sets `key` to `new` (`None` removes it) if it holds `expected` (`None`: nothing).
    pub fn compare_and_swap(
        &mut self,
        key: &[u8],
        expected: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<()> {
        let (expect, set) = (expected.unwrap_or_default(), new.unwrap_or_default());
        if expect.len() > VALUE_BYTES_MAX || set.len() > VALUE_BYTES_MAX {
            return Err(Error::InvalidArgument("value too long".into()));
        }
        self.op(CAS, key, 5 + expect.len() + set.len())?;
        let flags = if expected.is_some() { CAS_EXPECTS } else { 0 }
            | if new.is_some() { CAS_SETS } else { 0 };
        self.bytes.push(flags);
        self.bytes.extend_from_slice(&(expect.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(expect);
        self.bytes.extend_from_slice(set);
        Ok(())
    }

    /// Number of operations.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes so far.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Adds an operation of another batch, as it stands there.
    pub fn push_raw(&mut self, op: &[u8]) {
        self.bytes.extend_from_slice(op);
        self.count += 1;
    }

    /// The batch.
    pub fn finish(self) -> Bytes {
        Bytes::from(self.bytes)
    }
}

/// Previous values in the answer to one batch, in bytes: a value that does not fit any more is left out. A batch of
/// a few bytes may compare thousands of times with the largest value.
pub const PREVIOUS_BYTES_MAX: usize = 4 << 20;

/// The result of one compare and swap.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Swap {
    /// Whether it was done.
    pub swapped: bool,
    /// What the key held before; `None`: nothing, unless it was left out.
    pub previous: Option<Bytes>,
    /// Whether the key held a value that is not told, because the previous values of its batch are larger than
    /// [`PREVIOUS_BYTES_MAX`] together (`previous` is `None` then): read the key.
    pub left_out: bool,
}

impl Swap {
    /// A result that tells the previous value if `room` is enough for it, and takes that much of it.
    pub fn within(room: &mut usize, swapped: bool, previous: Option<Bytes>) -> Swap {
        match previous {
            Some(value) if value.len() > *room => Swap { swapped, previous: None, left_out: true },
            previous => {
                *room -= previous.as_ref().map_or(0, Bytes::len);
                Swap { swapped, previous, left_out: false }
            }
        }
    }
}

const SWAPPED: u8 = 1;
const HAD_VALUE: u8 = 2;
const LEFT_OUT: u8 = 4;

/// Encodes the results of a batch: empty when it had no compare and swap, otherwise one
/// `flags u8 (1 swapped, 2 had a value that follows, 4 had a value that is left out), length u32, previous`
/// for each, in order.
pub fn encode_swaps(swaps: &[Swap]) -> Bytes {
    let bytes = |swap: &Swap| 5 + swap.previous.as_ref().map_or(0, Bytes::len);
    let mut out = Vec::with_capacity(swaps.iter().map(bytes).sum());
    for swap in swaps {
        let previous = swap.previous.as_deref();
        let flag = |flag: u8, set: bool| if set { flag } else { 0 };
        out.push(
            flag(SWAPPED, swap.swapped)
                | flag(HAD_VALUE, previous.is_some())
                | flag(LEFT_OUT, swap.left_out),
        );
        let previous = previous.unwrap_or_default();
        out.extend_from_slice(&(previous.len() as u32).to_le_bytes());
        out.extend_from_slice(previous);
    }
    Bytes::from(out)
}

/// Reads what [`encode_swaps`] wrote.
pub fn decode_swaps(bytes: &Bytes) -> Result<Vec<Swap>> {
    let mut swaps = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let flags = bytes[at];
        let len = u32_at(bytes, at + 1)? as usize;
        at += 5;
        if len > bytes.len() - at {
            return Err(bad("result cut short"));
        }
        swaps.push(Swap {
            swapped: flags & SWAPPED != 0,
            previous: (flags & HAD_VALUE != 0).then(|| bytes.slice(at..at + len)),
            left_out: flags & LEFT_OUT != 0,
        });
        at += len;
    }
    Ok(swaps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_folded_entry_reads_back() {
        let mut builder = PayloadBuilder::new(7, 10);
        builder.push(b"one");
        builder.push(b"");
        builder.push(b"three");
        let data = builder.finish();
        let Payload::Normal { version: 7, batches } = Payload::parse(&data).unwrap() else {
            panic!("it is another");
        };
        assert_eq!(batches.len(), 3);
        assert_eq!(batches.collect::<Vec<_>>(), [&b"one"[..], b"", b"three"]);
        let cut = data.slice(..data.len() - 1);
        assert!(Payload::parse(&cut).is_err());
        assert!(Payload::parse(&[&data[..], b"x"].concat().into()).is_err());
        let at = LogPosition { index: 9, term: 3 };
        assert_eq!(Payload::parse(&encode_compact(at)).unwrap(), Payload::Compact(at));
    }

    #[test]
    fn operations_read_back() {
        let mut batch = BatchBuilder::new();
        batch.put(b"k", b"v").unwrap();
        batch.delete(b"d").unwrap();
        batch.delete_range(&KeyRange::new("a", "")).unwrap();
        batch.compare_and_swap(b"c", Some(b""), Some(b"new")).unwrap();
        batch.compare_and_swap(b"c", None, None).unwrap();
        let bytes = batch.finish();
        let text = |r: Range<usize>| std::str::from_utf8(&bytes[r]).unwrap().to_owned();
        let shown: Vec<String> = ops(&bytes)
            .map(|op| match op.unwrap() {
                Op::Put { key, value } => format!("put {} {}", text(key), text(value)),
                Op::Delete { key } => format!("delete {}", text(key)),
                Op::DeleteRange { start, end } => format!("range {}..{}", text(start), text(end)),
                Op::CompareAndSwap { key, expected, new } => {
                    format!("cas {} {:?} {:?}", text(key), expected.map(text), new.map(text))
                }
            })
            .collect();
        assert_eq!(
            shown,
            [
                "put k v",
                "delete d",
                "range a..",
                "cas c Some(\"\") Some(\"new\")",
                "cas c None None"
            ]
        );
    }

    #[test]
    fn swaps_read_back() {
        let swaps = vec![
            Swap { swapped: true, previous: None, left_out: false },
            Swap { swapped: false, previous: Some(Bytes::from("x")), left_out: false },
            Swap { swapped: true, previous: None, left_out: true },
        ];
        assert_eq!(decode_swaps(&encode_swaps(&swaps)).unwrap(), swaps);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>, kind in 0u8..6) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() { *first = kind; }
            let bytes = Bytes::from(bytes);
            let _ = Payload::parse(&bytes);
            let _ = ops(&bytes).collect::<Vec<_>>();
            let _ = decode_swaps(&bytes);
        }
    }
}
