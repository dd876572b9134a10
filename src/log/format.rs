//! The bytes of a segment: headers, the directory of a record, runs of entries. `format.md` is the
//! page for people; a golden file in `tests/golden/log` holds this module to it.

use super::batch::MAX_PAYLOAD;
use super::lz4::EXPANSION_MAX;
use super::{Entry, GroupId};
use crate::error::{Error, Result};
use crate::types::LogPosition;
use bytes::Bytes;

/// Write groups start at multiples of this, so that an append never rewrites an acknowledged block.
pub const BLOCK: usize = 4096;
/// Version of the segment format that is written. A reader refuses newer ones.
pub const VERSION: u32 = 3;
/// The oldest version that is read. What it holds is a part of what the newest may hold, so that records of
/// old segments are copied into new ones as they are.
pub const OLDEST_VERSION: u32 = 2;
/// No log counts its records further than this. What is computed from numbers of records that were found does not overflow.
pub(super) const LAST_SEQ: u64 = u64::MAX / 2;
/// Size of a record's header.
pub const RECORD_HEADER: usize = 48;

const SEGMENT_MAGIC: [u8; 8] = *b"CATALOG\n";
const SEGMENT_HEADER: usize = 64;
/// The second copy lies in another sector: one bad sector does not lose the header.
const SEGMENT_HEADER_COPY: usize = 2048;
pub(super) const RECORD_MAGIC: u32 = 0x5243_5443;

/// Rounds up to the next block.
pub(super) fn align(n: usize) -> usize {
    n.div_ceil(BLOCK) * BLOCK
}

/// What the first block of a segment says. True from the moment the file bears its segment name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// Which life of the file this is. Never reused in a directory; the file's name repeats it.
    pub generation: u64,
    /// The first sequence number that belongs here. Records of earlier segments from this number on
    /// are void.
    pub base_seq: u64,
    /// Everything up to here was durable when the segment got its name.
    pub durable: u64,
    /// Size of the file when it was made.
    pub size: u64,
}

impl SegmentHeader {
    /// The format's version that the first block states; `None` if both copies are damaged.
    pub(super) fn version(block: &[u8]) -> Option<u32> {
        let copies = [0, SEGMENT_HEADER_COPY].map(|at| block.get(at..at + SEGMENT_HEADER));
        let sound = |head: &&[u8]| {
            head[..8] == SEGMENT_MAGIC && read_u32(head, 60) == crc32c::crc32c(&head[..60])
        };
        copies.into_iter().flatten().find(sound).map(|head| read_u32(head, 8))
    }

    /// The first block: the header, and its copy.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        let mut head = [0; SEGMENT_HEADER];
        head[0..8].copy_from_slice(&SEGMENT_MAGIC);
        head[8..12].copy_from_slice(&VERSION.to_le_bytes());
        head[16..24].copy_from_slice(&self.generation.to_le_bytes());
        head[24..32].copy_from_slice(&self.base_seq.to_le_bytes());
        head[32..40].copy_from_slice(&self.durable.to_le_bytes());
        head[40..48].copy_from_slice(&self.size.to_le_bytes());
        let crc = crc32c::crc32c(&head[..60]);
        head[60..64].copy_from_slice(&crc.to_le_bytes());
        block[..SEGMENT_HEADER].copy_from_slice(&head);
        block[SEGMENT_HEADER_COPY..SEGMENT_HEADER_COPY + SEGMENT_HEADER].copy_from_slice(&head);
        block
    }

    /// Reads the first block. The second value tells which copies are damaged (by offset, expected
    /// and found checksum).
    pub(super) fn decode(block: &[u8]) -> (Result<SegmentHeader>, Vec<BadSum>) {
        let mut bad = Vec::new();
        let mut good = None;
        for at in [0, SEGMENT_HEADER_COPY] {
            let Some(head) = block.get(at..at + SEGMENT_HEADER) else { continue };
            let expected = read_u32(head, 60);
            let found = crc32c::crc32c(&head[..60]);
            if head[..8] != SEGMENT_MAGIC || expected != found {
                bad.push(BadSum { offset: at as u64, expected, found });
            } else if good.is_none() {
                good = Some(head);
            }
        }
        let Some(head) = good else {
            return (Err(Error::malformed("segment header", "both copies are damaged")), bad);
        };
        let version = read_u32(head, 8);
        if !(OLDEST_VERSION..=VERSION).contains(&version) {
            let read = format!("{OLDEST_VERSION} to {VERSION}");
            let detail = format!("format version {version}, this build reads {read}");
            return (Err(Error::Identity(detail)), bad);
        }
        let header = SegmentHeader {
            generation: read_u64(head, 16),
            base_seq: read_u64(head, 24),
            durable: read_u64(head, 32),
            size: read_u64(head, 40),
        };
        (Ok(header), bad)
    }
}

/// A checksum that did not match.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadSum {
    /// Where the damaged bytes start in the file.
    pub offset: u64,
    /// The checksum that was written.
    pub expected: u32,
    /// The checksum of what is there.
    pub found: u32,
}

/// The fixed part of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RecordHeader {
    pub generation: u64,
    pub seq: u64,
    pub durable: u64,
    pub dir_len: u32,
    pub payload_len: u32,
    pub dir_crc: u32,
    /// Bytes behind the payload that repeat what the write group before was.
    pub echo_len: u32,
}

impl RecordHeader {
    pub fn total(&self) -> usize {
        RECORD_HEADER + self.dir_len as usize + self.payload_len as usize + self.echo_len as usize
    }

    pub fn encode_to(&self, out: &mut Vec<u8>) {
        let mut head = [0; RECORD_HEADER];
        head[0..4].copy_from_slice(&RECORD_MAGIC.to_le_bytes());
        head[8..16].copy_from_slice(&self.generation.to_le_bytes());
        head[16..24].copy_from_slice(&self.seq.to_le_bytes());
        head[24..32].copy_from_slice(&self.durable.to_le_bytes());
        head[32..36].copy_from_slice(&self.dir_len.to_le_bytes());
        head[36..40].copy_from_slice(&self.payload_len.to_le_bytes());
        head[40..44].copy_from_slice(&self.dir_crc.to_le_bytes());
        head[44..48].copy_from_slice(&self.echo_len.to_le_bytes());
        let crc = crc32c::crc32c(&head[8..]);
        head[4..8].copy_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&head);
    }

    /// The header at the start of `bytes`, if its checksum holds and it speaks of `generation`.
    pub fn decode(bytes: &[u8], generation: u64) -> Result<RecordHeader, BadSum> {
        let Some(head) = bytes.get(..RECORD_HEADER) else {
            return Err(BadSum { offset: 0, expected: 0, found: 0 });
        };
        let expected = read_u32(head, 4);
        if read_u32(head, 0) != RECORD_MAGIC || read_u64(head, 8) != generation {
            return Err(BadSum { offset: 0, expected, found: crc32c::crc32c(&head[8..]) });
        }
        let found = crc32c::crc32c(&head[8..]);
        if expected != found {
            return Err(BadSum { offset: 0, expected, found });
        }
        Ok(RecordHeader {
            generation,
            seq: read_u64(head, 16),
            durable: read_u64(head, 24),
            dir_len: read_u32(head, 32),
            payload_len: read_u32(head, 36),
            dir_crc: read_u32(head, 40),
            echo_len: read_u32(head, 44),
        })
    }
}

/// Where an operation's bytes lie in its record's payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Span {
    pub rel: u32,
    pub len: u32,
    pub crc: u32,
}

/// The terms of a run: where each begins. Nearly always one, so the rest seldom allocates.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Terms {
    pub first: (u64, u64),
    pub rest: Vec<(u64, u64)>,
}

impl Terms {
    pub fn of(entries: &[Entry]) -> Terms {
        let first = entries.first().map_or((0, 0), |e| (e.index, e.term));
        let mut rest = Vec::new();
        let mut now = first.1;
        for entry in entries {
            if entry.term != now {
                now = entry.term;
                rest.push((entry.index, now));
            }
        }
        Terms { first, rest }
    }

    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        std::iter::once(self.first).chain(self.rest.iter().copied())
    }
}

/// One operation as the directory of a record names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Op {
    /// Entries `first..first + count`; what the group had from `first` on is dropped.
    Append {
        group: GroupId,
        first: u64,
        count: u32,
        terms: Terms,
        body: Span,
    },
    State {
        group: GroupId,
        body: Span,
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
    /// Restates where the group's log begins, exactly (checkpoint).
    Base {
        group: GroupId,
        at: LogPosition,
    },
    /// Moves a run: entries `from..from + count` lie here, after `skip` others in the same body.
    Rewrite {
        group: GroupId,
        from: u64,
        count: u32,
        skip: u32,
        terms: Terms,
        body: Span,
    },
    /// Every record below `seq` is void: what was still needed of them stands in this record.
    Floor {
        seq: u64,
    },
}

const APPEND: u8 = 1;
const STATE: u8 = 2;
const COMPACT: u8 = 3;
const RESET: u8 = 4;
const CLEAR: u8 = 5;
const BASE: u8 = 6;
const REWRITE: u8 = 7;
const FLOOR: u8 = 8;

impl Op {
    pub fn group(&self) -> Option<GroupId> {
        match self {
            Op::Append { group, .. }
            | Op::State { group, .. }
            | Op::Compact { group, .. }
            | Op::Reset { group, .. }
            | Op::Clear { group }
            | Op::Base { group, .. }
            | Op::Rewrite { group, .. } => Some(*group),
            Op::Floor { .. } => None,
        }
    }

    /// Whether a log can have said it in record `seq`: a floor lies at or below the record that has it.
    pub fn is_of(&self, seq: u64) -> bool {
        !matches!(self, Op::Floor { seq: floor } if *floor > seq)
    }

    pub fn body(&self) -> Option<Span> {
        match self {
            Op::Append { body, .. } | Op::State { body, .. } | Op::Rewrite { body, .. } => {
                Some(*body)
            }
            _ => None,
        }
    }

    pub fn encode_to(&self, out: &mut Vec<u8>) {
        match self {
            Op::Append { group, first, count, terms, body } => {
                out.push(APPEND);
                put(out, *group);
                put(out, *first);
                put(out, u64::from(*count));
                put_terms(out, *first, terms);
                put_body(out, *body);
            }
            Op::Rewrite { group, from, count, skip, terms, body } => {
                out.push(REWRITE);
                put(out, *group);
                put(out, *from);
                put(out, u64::from(*count));
                put(out, u64::from(*skip));
                put_terms(out, *from, terms);
                put_body(out, *body);
            }
            Op::State { group, body } => {
                out.push(STATE);
                put(out, *group);
                put_body(out, *body);
            }
            Op::Compact { group, to } => put_position(out, COMPACT, *group, *to),
            Op::Reset { group, to } => put_position(out, RESET, *group, *to),
            Op::Base { group, at } => put_position(out, BASE, *group, *at),
            Op::Clear { group } => {
                out.push(CLEAR);
                put(out, *group);
            }
            Op::Floor { seq } => {
                out.push(FLOOR);
                put(out, *seq);
            }
        }
    }
}

/// Reads a directory whose checksum held. An error means a writer from another world.
pub(super) fn decode_dir(dir: &[u8], payload_len: u32) -> Result<Vec<Op>> {
    let mut input = dir;
    let mut ops = Vec::new();
    let mut rel = 0u32;
    while let Some((&tag, rest)) = input.split_first() {
        input = rest;
        ops.push(decode_op(tag, &mut input, &mut rel).ok_or_else(|| malformed("operation"))?);
    }
    if rel != payload_len {
        return Err(malformed("payload length"));
    }
    Ok(ops)
}

fn decode_op(tag: u8, input: &mut &[u8], rel: &mut u32) -> Option<Op> {
    Some(match tag {
        APPEND => {
            let group = take(input)?;
            let first = take(input)?;
            let count = u32::try_from(take(input)?).ok().filter(|n| *n > 0)?;
            first.checked_add(u64::from(count))?;
            let terms = take_terms(input, first, count)?;
            let body = take_body(input, rel).filter(|body| can_hold(body.len, 0, count))?;
            Op::Append { group, first, count, terms, body }
        }
        REWRITE => {
            let group = take(input)?;
            let from = take(input)?;
            let count = u32::try_from(take(input)?).ok().filter(|n| *n > 0)?;
            from.checked_add(u64::from(count))?;
            let skip = u32::try_from(take(input)?).ok()?;
            let terms = take_terms(input, from, count)?;
            let body = take_body(input, rel).filter(|body| can_hold(body.len, skip, count))?;
            Op::Rewrite { group, from, count, skip, terms, body }
        }
        STATE => Op::State { group: take(input)?, body: take_body(input, rel)? },
        COMPACT => Op::Compact { group: take(input)?, to: take_position(input)? },
        RESET => Op::Reset { group: take(input)?, to: take_position(input)? },
        BASE => Op::Base { group: take(input)?, at: take_position(input)? },
        CLEAR => Op::Clear { group: take(input)? },
        FLOOR => Op::Floor { seq: take(input)? },
        _ => return None,
    })
}

/// Whether a body of so many bytes can be of so many entries. Each takes two bytes, before compression, so what says more of
/// itself is believed by nobody, before anything is done for each of them.
pub(super) fn can_hold(bytes: u32, skip: u32, count: u32) -> bool {
    let raw = (u64::from(bytes) * EXPANSION_MAX).min(MAX_PAYLOAD as u64);
    2 * (u64::from(skip) + u64::from(count)) < raw
}

fn malformed(what: &str) -> Error {
    Error::malformed("log record", what)
}

/// The body of a run: how many entries, their kinds and lengths, then their data end to end.
pub(super) fn encode_run(out: &mut Vec<u8>, entries: &[Entry]) {
    put(out, entries.len() as u64);
    for entry in entries {
        out.push(entry.kind);
        put(out, entry.data.len() as u64);
    }
    for entry in entries {
        out.extend_from_slice(&entry.data);
    }
}

/// Entries number `skip..skip + count` of a run's body, the first of which has index `from`. `term`
/// answers for each index. The data shares `body`.
pub(super) fn decode_run(
    body: &Bytes,
    skip: u32,
    from: u64,
    count: u32,
    term: impl Fn(u64) -> u64,
) -> Result<Vec<Entry>> {
    let mut input: &[u8] = body;
    let total = take(&mut input).ok_or_else(|| malformed("run"))?;
    if u64::from(skip) + u64::from(count) > total || total > body.len() as u64 {
        return Err(malformed("run count"));
    }
    let mut table = input;
    for _ in 0..total {
        let (_, rest) = table.split_first().ok_or_else(|| malformed("run table"))?;
        table = rest;
        take(&mut table).ok_or_else(|| malformed("run table"))?;
    }
    let mut at = body.len() - table.len();
    let mut entries = Vec::with_capacity(count as usize);
    for i in 0..u64::from(skip) + u64::from(count) {
        let (&kind, rest) = input.split_first().ok_or_else(|| malformed("run table"))?;
        input = rest;
        let len = take(&mut input).ok_or_else(|| malformed("run table"))?;
        let end = usize::try_from(len).ok().and_then(|len| at.checked_add(len));
        let end = end.filter(|end| *end <= body.len()).ok_or_else(|| malformed("run data"))?;
        if let Some(n) = i.checked_sub(u64::from(skip)) {
            let index = from + n;
            entries.push(Entry { index, term: term(index), kind, data: body.slice(at..end) });
        }
        at = end;
    }
    Ok(entries)
}

pub(super) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// How many bytes [`put`] takes for it.
pub(super) fn varint(value: u64) -> u64 {
    u64::from((64 - (value | 1).leading_zeros()).div_ceil(7))
}

fn put_body(out: &mut Vec<u8>, body: Span) {
    put(out, u64::from(body.len));
    out.extend_from_slice(&body.crc.to_le_bytes());
}

pub(super) fn put_terms(out: &mut Vec<u8>, first: u64, terms: &Terms) {
    put(out, 1 + terms.rest.len() as u64);
    put(out, terms.first.1);
    let mut before = first;
    for (index, term) in &terms.rest {
        put(out, index - before);
        put(out, *term);
        before = *index;
    }
}

fn put_position(out: &mut Vec<u8>, tag: u8, group: GroupId, position: LogPosition) {
    out.push(tag);
    put(out, group);
    put(out, position.index);
    put(out, position.term);
}

pub(super) fn take(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = input.split_first()?;
        *input = rest;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            return None;
        }
        value |= part << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take_body(input: &mut &[u8], rel: &mut u32) -> Option<Span> {
    let len = u32::try_from(take(input)?).ok()?;
    let (crc, rest) = input.split_at_checked(4)?;
    *input = rest;
    let span = Span { rel: *rel, len, crc: read_u32(crc, 0) };
    *rel = rel.checked_add(len)?;
    Some(span)
}

/// Of so many entries from `first` on. Of two terms that begin at one entry the later counts: logs were written that say
/// so (see `a_gap_leaves_no_term_behind`).
pub(super) fn take_terms(input: &mut &[u8], first: u64, entries: u32) -> Option<Terms> {
    let count = take(input).filter(|count| *count > 0)?;
    let mut terms = Terms { first: (first, take(input)?), rest: Vec::new() };
    let mut before = first;
    for _ in 1..count {
        let above = take(input)?;
        let inside = |at: &u64| *at > first && at - first < u64::from(entries);
        before = before.checked_add(above).filter(inside)?;
        terms.rest.push((before, take(input)?));
    }
    Some(terms)
}

/// The last index there is makes no position: behind it there is none. (One that a batch resets to lies one lower still.)
pub(super) fn take_position(input: &mut &[u8]) -> Option<LogPosition> {
    let index = take(input)?;
    index.checked_add(1)?;
    Some(LogPosition { index, term: take(input)? })
}

pub(super) fn read_u32(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

pub(super) fn read_u64(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests;
