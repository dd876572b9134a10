//! What a caller asks for: a batch of operations over many groups, and its encoding, which is done on
//! the caller's side and outside every lock.

use super::echo::put_group;
use super::format::{Op, Span, Terms};
use super::lz4::{RunWriter, too_large};
use super::{Entry, GroupId};
use crate::error::{Error, Result};
use crate::types::LogPosition;
use bytes::Bytes;

/// Operations that become durable together or not at all. Per group they take effect in the order in
/// which they were added; operations of different groups do not depend on each other.
#[derive(Clone, Default, Debug)]
pub struct LogBatch {
    ops: Vec<BatchOp>,
    /// The entries of all its appends, end to end: one allocation, not one for each group.
    entries: Vec<Entry>,
    bytes: usize,
}

#[derive(Clone, Debug)]
pub(super) enum BatchOp {
    /// `count` entries (at least one), the first of them at `at` among the batch's entries.
    Append {
        group: GroupId,
        first: u64,
        at: usize,
        count: usize,
    },
    State {
        group: GroupId,
        state: Bytes,
    },
    Compact {
        group: GroupId,
        to: LogPosition,
    },
    Reset {
        group: GroupId,
        to: LogPosition,
    },
    Clear {
        group: GroupId,
    },
}

impl BatchOp {
    pub fn group(&self) -> GroupId {
        match self {
            BatchOp::Append { group, .. }
            | BatchOp::State { group, .. }
            | BatchOp::Compact { group, .. }
            | BatchOp::Reset { group, .. }
            | BatchOp::Clear { group } => *group,
        }
    }
}

/// The last index that an entry can have: the one behind the end of a run is a number as well.
const LAST_INDEX: u64 = u64::MAX - 1;

/// Directory bytes that an operation takes at most, its terms apart.
const OP_OVERHEAD: usize = 40;

impl LogBatch {
    /// An empty batch.
    pub fn new() -> LogBatch {
        LogBatch::default()
    }

    /// An empty batch with room for so many operations, each with an entry.
    pub fn with_capacity(ops: usize) -> LogBatch {
        LogBatch { ops: Vec::with_capacity(ops), entries: Vec::with_capacity(ops), bytes: 0 }
    }

    /// Adds entries. They must be contiguous, start above the group's compaction point and leave no
    /// gap after its last entry; if they start at or below it, the old suffix is dropped.
    /// [`submit`](super::Log::submit) refuses the whole batch otherwise. No entries: no operation.
    pub fn append(&mut self, group: GroupId, entries: impl IntoIterator<Item = Entry>) {
        let at = self.entries.len();
        self.entries.extend(entries);
        let added = &self.entries[at..];
        if let Some(Entry { index: first, .. }) = added.first() {
            let first = *first;
            let data: usize = added.iter().map(|e| e.data.len() + 6).sum();
            self.bytes += data + OP_OVERHEAD;
            self.ops.push(BatchOp::Append { group, first, at, count: added.len() });
        }
    }

    /// Sets the group's state record: small, opaque, the last one wins.
    pub fn set_state(&mut self, group: GroupId, state: impl Into<Bytes>) {
        let state = state.into();
        self.bytes += state.len() + OP_OVERHEAD;
        self.ops.push(BatchOp::State { group, state });
    }

    /// Drops the entries up to `to.index`; `to` becomes the group's truncated position, so its term must be that of
    /// the entry there. Does nothing when the group is compacted that far already.
    pub fn compact_to(&mut self, group: GroupId, to: LogPosition) {
        self.bytes += OP_OVERHEAD;
        self.ops.push(BatchOp::Compact { group, to });
    }

    /// Drops every entry: the group's log begins after `to` (a snapshot was restored). An entry must be able to follow:
    /// the last index that one can have is 2^64 - 2, so `to.index` is at most 2^64 - 3.
    /// [`submit`](super::Log::submit) refuses the whole batch otherwise.
    pub fn reset(&mut self, group: GroupId, to: LogPosition) {
        self.bytes += OP_OVERHEAD;
        self.ops.push(BatchOp::Reset { group, to });
    }

    /// Forgets the group: its entries, its state, its position.
    pub fn clear(&mut self, group: GroupId) {
        self.bytes += OP_OVERHEAD;
        self.ops.push(BatchOp::Clear { group });
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// About how many bytes the batch will take in the log.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Checks what can be checked without the index, then encodes, runs of more than `compress_above` bytes
    /// compressed. Operations are put in group order (stable: the order within a group stays), so that
    /// each group is visited once.
    pub(super) fn encode(mut self, compress_above: Option<usize>) -> Result<Encoded> {
        if !self.ops.is_sorted_by_key(BatchOp::group) {
            self.sort();
        }
        let mut encoded = Encoded::with_capacity(self.ops.len(), self.bytes);
        let mut runs = RunWriter::new(compress_above);
        for op in &self.ops {
            let op = match op {
                BatchOp::Append { group, at, count, .. } => {
                    let entries = &self.entries[*at..at + count];
                    check_contiguous(*group, entries)?;
                    let body = encoded.body(|out| runs.write(out, entries))?;
                    let (first, count) = (entries[0].index, entries.len() as u32);
                    Op::Append { group: *group, first, count, terms: Terms::of(entries), body }
                }
                BatchOp::State { group, state } => {
                    let body = encoded.copy(state)?;
                    Op::State { group: *group, body }
                }
                BatchOp::Compact { group, to } => Op::Compact { group: *group, to: *to },
                BatchOp::Reset { group, to } if to.index >= LAST_INDEX => {
                    let what = format!("group {group}: no entry can follow a reset to {to:?}");
                    return Err(Error::InvalidArgument(what));
                }
                BatchOp::Reset { group, to } => Op::Reset { group: *group, to: *to },
                BatchOp::Clear { group } => Op::Clear { group: *group },
            };
            encoded.push(op);
        }
        if encoded.dir.len() > MAX_PAYLOAD {
            return Err(too_large());
        }
        encoded.raw_bytes = runs.raw_bytes;
        if runs.saved_bytes > 0 {
            // It may wait for the writer for long, and is counted by what it holds.
            encoded.payload.shrink_to_fit();
        }
        encoded.source = self.ops;
        encoded.entries = self.entries;
        encoded.dir_crc = crc32c::crc32c(&encoded.dir);
        Ok(encoded)
    }
}

impl LogBatch {
    /// Puts operations in group order, and the entries in the order of the operations.
    fn sort(&mut self) {
        self.ops.sort_by_key(BatchOp::group);
        let mut from: Vec<Option<Entry>> = self.entries.drain(..).map(Some).collect();
        for op in &mut self.ops {
            if let BatchOp::Append { at, count, .. } = op {
                let moved = from[*at..*at + *count].iter_mut().filter_map(Option::take);
                let now = self.entries.len();
                self.entries.extend(moved);
                *at = now;
            }
        }
    }
}

/// The term of a group's entry after these operations, if they say what is there: `Some(None)` if nothing.
pub(super) fn term_in_batch(
    ops: &[BatchOp],
    entries: &[Entry],
    group: GroupId,
    index: u64,
) -> Option<Option<u64>> {
    ops.iter().rev().take_while(|op| op.group() == group).find_map(|op| match op {
        BatchOp::Append { first, at, count, .. } if *first <= index => {
            let n = usize::try_from(index - first).ok().filter(|n| n < count);
            Some(n.and_then(|n| entries.get(at + n)).map(|entry| entry.term))
        }
        BatchOp::Reset { .. } | BatchOp::Clear { .. } => Some(None),
        _ => None,
    })
}

fn check_contiguous(group: GroupId, entries: &[Entry]) -> Result<()> {
    let first = entries[0].index;
    let broken = first == 0
        || first.checked_add(entries.len() as u64).is_none()
        || u32::try_from(entries.len()).is_err()
        || entries.iter().zip(first..).any(|(e, index)| e.index != index);
    if broken {
        let what = format!("group {group}: appended entries are not contiguous from {first}");
        return Err(Error::InvalidArgument(what));
    }
    Ok(())
}

/// A batch ready for the writer: all but its header, which holds what only the writer knows.
#[derive(Debug, Default)]
pub(super) struct Encoded {
    pub dir: Vec<u8>,
    pub payload: Vec<u8>,
    pub dir_crc: u32,
    /// The groups of its operations, as an echo lists them.
    pub groups: Vec<u8>,
    last_group: GroupId,
    pub ops: Vec<Op>,
    pub source: Vec<BatchOp>,
    /// Bytes of its runs before compression.
    pub raw_bytes: u64,
    /// Of its appends, in their order.
    pub entries: Vec<Entry>,
    /// Its state records, end to end.
    pub states: Vec<u8>,
}

/// A body's place in the record is a u32; this leaves room for headers, and a directory of the same size, in a u32
/// file offset.
pub(super) const MAX_PAYLOAD: usize = 1 << 30;

impl Encoded {
    pub fn with_capacity(ops: usize, bytes: usize) -> Encoded {
        Encoded {
            dir: Vec::with_capacity(ops * 24),
            payload: Vec::with_capacity(bytes),
            ops: Vec::with_capacity(ops),
            ..Encoded::default()
        }
    }

    pub fn body(&mut self, write: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> Result<Span> {
        let rel = self.payload.len();
        write(&mut self.payload)?;
        if self.payload.len() > MAX_PAYLOAD {
            return Err(too_large());
        }
        let bytes = &self.payload[rel..];
        Ok(Span { rel: rel as u32, len: bytes.len() as u32, crc: crc32c::crc32c(bytes) })
    }

    /// A body of these bytes.
    pub fn copy(&mut self, bytes: &[u8]) -> Result<Span> {
        self.body(|out| {
            out.extend_from_slice(bytes);
            Ok(())
        })
    }

    /// A body that was made elsewhere, with its checksum.
    pub fn adopt(&mut self, body: Vec<u8>, crc: u32) -> Result<Span> {
        let (rel, len) = (self.payload.len(), body.len());
        if rel + len > MAX_PAYLOAD {
            return Err(too_large());
        }
        if rel == 0 && len > self.payload.capacity() / 2 {
            self.payload = body;
        } else {
            self.payload.extend_from_slice(&body);
        }
        Ok(Span { rel: rel as u32, len: len as u32, crc })
    }

    pub fn push(&mut self, op: Op) {
        op.encode_to(&mut self.dir);
        if let Op::State { body, .. } = &op {
            let start = body.rel as usize;
            self.states.extend_from_slice(&self.payload[start..start + body.len as usize]);
        }
        if let Some(group) = op.group() {
            put_group(&mut self.groups, &mut self.last_group, group);
        }
        self.ops.push(op);
    }
}
