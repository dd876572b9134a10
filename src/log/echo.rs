//! The second copy of what a record's header and directory say: each write group repeats, in short, the
//! headers of the groups that it is the first to state durable, and which groups (of raft) their records
//! speak of. It lies in other blocks than what it repeats, and comes to the disk in the very write that
//! states the others durable.

use super::GroupId;
use super::format::{BLOCK, RECORD_HEADER, RecordHeader, SegmentHeader, put, read_u32, take};
use super::scan::{Found, Record};
use super::unreadable::read_around;
use crate::error::Result;
use std::collections::BTreeMap;

/// The echo of one write group in the making.
#[derive(Debug)]
pub(super) struct EchoDraft {
    bytes: Vec<u8>,
    records: u64,
    start: u64,
    first_seq: u64,
}

impl EchoDraft {
    /// Of the group that is written at `start` and whose first record is `first_seq`.
    pub fn new(start: u64, first_seq: u64) -> EchoDraft {
        EchoDraft { bytes: Vec::new(), records: 0, start, first_seq }
    }

    /// The next record: its header, and its groups as [`put_group`] lists them.
    pub fn push(&mut self, header: &RecordHeader, groups: &[u8]) {
        let out = &mut self.bytes;
        put(out, u64::from(header.dir_len));
        put(out, u64::from(header.payload_len));
        put(out, u64::from(header.echo_len));
        out.extend_from_slice(&header.dir_crc.to_le_bytes());
        put(out, groups.len() as u64);
        out.extend_from_slice(groups);
        self.records += 1;
    }

    /// The bytes that the next group's first record carries.
    pub fn finish(self) -> Vec<u8> {
        if self.records == 0 {
            return Vec::new();
        }
        let mut out = vec![0; HEAD];
        put(&mut out, self.start);
        put(&mut out, self.first_seq);
        put(&mut out, self.records);
        out.extend_from_slice(&self.bytes);
        let len = (out.len() - HEAD) as u32;
        out[4..HEAD].copy_from_slice(&len.to_le_bytes());
        let crc = crc32c::crc32c(&out[4..]);
        out[..4].copy_from_slice(&crc.to_le_bytes());
        out
    }
}

/// Adds a group to a list of groups, if it is not the last in it already.
pub(super) fn put_group(out: &mut Vec<u8>, last: &mut GroupId, group: GroupId) {
    if out.is_empty() || *last != group {
        put(out, group.wrapping_sub(*last));
        *last = group;
    }
}

/// What an echo says of one record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Echoed {
    pub offset: usize,
    /// As it was, but for the durable number, which is not repeated.
    pub header: RecordHeader,
    pub groups: Vec<GroupId>,
}

impl Echoed {
    /// Where the record ends in the file.
    pub fn end(&self) -> Option<usize> {
        self.offset.checked_add(self.header.total())
    }
}

/// Echoes by record.
pub(super) type Echoes = BTreeMap<u64, Echoed>;

/// Checksum and length before an echo's body.
const HEAD: usize = 8;

/// The expected checksum and the one found.
type Sums = (u32, u32);

/// The body of the echo that `bytes` begin with, and what is behind it.
fn split(bytes: &[u8]) -> Result<(&[u8], &[u8]), Sums> {
    let (Some(rest), Some(head)) = (bytes.get(4..), bytes.get(..HEAD)) else { return Err((0, 0)) };
    let (expected, len) = (read_u32(head, 0), read_u32(head, 4) as usize);
    let Some(body) = rest.get(..len.saturating_add(4)) else {
        return Err((expected, crc32c::crc32c(rest)));
    };
    let found = crc32c::crc32c(body);
    if expected == found { Ok((&body[4..], &rest[len + 4..])) } else { Err((expected, found)) }
}

/// Whether the bytes of echoes, one behind the other, are what was written: the checksums, if not.
pub(super) fn check(mut bytes: &[u8]) -> Result<(), Sums> {
    while !bytes.is_empty() {
        bytes = split(bytes)?.1;
    }
    Ok(())
}

/// Takes in echoes of groups of the segment with this generation. Damaged ones say nothing, and hide those
/// behind them.
pub(super) fn decode(mut bytes: &[u8], generation: u64, into: &mut Echoes) {
    while let Ok((body, rest)) = split(bytes) {
        let _ = decode_sound(body, generation, into);
        bytes = rest;
    }
}

fn decode_sound(mut input: &[u8], generation: u64, into: &mut Echoes) -> Option<()> {
    let input = &mut input;
    let narrow = |value: u64| u32::try_from(value).ok();
    let mut offset = usize::try_from(take(input)?).ok()?;
    let mut seq = take(input)?;
    for _ in 0..take(input)? {
        let (dir_len, payload_len) = (narrow(take(input)?)?, narrow(take(input)?)?);
        let echo_len = narrow(take(input)?)?;
        let (crc, rest) = input.split_at_checked(4)?;
        *input = rest;
        let dir_crc = read_u32(crc, 0);
        let len = usize::try_from(take(input)?).ok()?;
        let (mut list, rest) = input.split_at_checked(len)?;
        *input = rest;
        let mut groups = Vec::new();
        let mut group: GroupId = 0;
        while !list.is_empty() {
            group = group.wrapping_add(take(&mut list)?);
            groups.push(group);
        }
        let header =
            RecordHeader { generation, seq, durable: 0, dir_len, payload_len, dir_crc, echo_len };
        let total = header.total();
        into.insert(seq, Echoed { offset, header, groups });
        offset = offset.checked_add(total)?;
        seq = seq.checked_add(1)?;
    }
    Some(())
}

/// What the first record of the segment after `segment` repeats of its last group.
pub(super) fn echoes_beyond<'a>(
    segment: &Found,
    mut later: impl Iterator<Item = &'a Found>,
) -> Result<Echoes> {
    let mut echoes = Echoes::new();
    let follows = |next: &&Found| Some(next.header.base_seq) == segment.limit && !next.is_void();
    let Some(next) = later.find(follows) else { return Ok(echoes) };
    let head = read_around(next.file.as_ref(), BLOCK as u64, RECORD_HEADER)?.bytes;
    if let Ok(header) = RecordHeader::decode(&head, next.header.generation) {
        let len = header.echo_len as usize;
        let at = BLOCK + header.total() - len;
        let bytes = read_around(next.file.as_ref(), at as u64, len)?.bytes;
        decode(&bytes, segment.header.generation, &mut echoes);
    }
    Ok(echoes)
}

/// What the first record of a segment repeats of the segment before, if it is sound.
pub(super) fn of_first<'a>(bytes: &'a [u8], header: &SegmentHeader) -> Option<&'a [u8]> {
    let record = RecordHeader::decode(bytes.get(BLOCK..)?, header.generation).ok()?;
    let end = BLOCK.checked_add(record.total())?;
    let echo = bytes.get(end.checked_sub(record.echo_len as usize)?..end)?;
    (record.seq == header.base_seq && check(echo).is_ok()).then_some(echo)
}

/// What these records repeat of those before them, as a reader takes it in.
fn echoed(bytes: &[u8], records: &[Record]) -> Echoes {
    let mut all = Echoes::new();
    for record in records.iter().filter(|record| record.header.echo_len > 0) {
        let at = record.echo_at();
        let echoes = &bytes[at..at + record.header.echo_len as usize];
        let mut own = Echoes::new();
        decode(echoes, record.header.generation, &mut own);
        own.retain(|seq, _| *seq < record.header.seq);
        all.append(&mut own);
    }
    all
}

/// Whether it is this record that an echo speaks of: what a checksum holds may still say something else.
fn is_of(echoed: &Echoed, record: &Record, groups: &[u8]) -> bool {
    let (mut list, mut last) = (Vec::new(), 0);
    echoed.groups.iter().for_each(|group| put_group(&mut list, &mut last, *group));
    let header = RecordHeader { durable: echoed.header.durable, ..record.header };
    echoed.offset == record.offset && echoed.header == header && list == groups
}

/// Echoes of those of a segment's records which none of them repeats, if they are known: nothing else would do it if
/// what comes behind them were cut off.
pub(super) fn unechoed(bytes: &[u8], records: &[Record]) -> Vec<u8> {
    let echoed = echoed(bytes, records);
    let mut out = Vec::new();
    let mut draft: Option<(EchoDraft, usize)> = None;
    for record in records {
        let Some(groups) = record.echoed_groups() else { continue };
        if echoed.get(&record.header.seq).is_some_and(|echoed| is_of(echoed, record, &groups)) {
            continue;
        }
        let here = draft.take_if(|(_, end)| *end != record.offset);
        out.extend(here.into_iter().flat_map(|(draft, _)| draft.finish()));
        let new = || (EchoDraft::new(record.offset as u64, record.header.seq), 0);
        let (draft, end) = draft.get_or_insert_with(new);
        draft.push(&record.header, &groups);
        *end = record.offset + record.header.total();
    }
    out.extend(draft.into_iter().flat_map(|(draft, _)| draft.finish()));
    out
}
