//! Reading a log directory without taking part: no lock, no write, beside a live node if need be. For
//! dumpers and verifiers. A segment that the live log recycles under our eyes is passed over; records
//! that are being written read as a tail beyond the durable end.

use super::echo::echoes_beyond;
use super::footer::check_footer;
use super::format::{BadSum, Op, SegmentHeader, Span, decode_run};
use super::lz4::{is_compressed, plain, raw_len};
use super::recover::name_directory;
use super::scan::{Found, Neighbour, Record, Scan, Unread, survey};
use super::seal::read_trailer;
use super::unreadable::Sparse;
use super::{Entry, GroupId};
use crate::env::{Disk, OpenMode};
use crate::error::{Error, Result};
use crate::types::LogPosition;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

mod was;

pub use was::Was;

/// One segment file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentInfo {
    /// The file.
    pub path: PathBuf,
    /// Its header.
    pub header: SegmentHeader,
    /// Version of the format it is written in.
    pub version: u32,
    /// Size of the file.
    pub size: u64,
    /// Records from this number on are void: a later segment has them. `None`: the last segment.
    pub limit: Option<u64>,
    /// Bytes of its footer, 0 if it has none.
    pub footer: u64,
}

impl SegmentInfo {
    /// Whether a later segment follows.
    pub fn is_sealed(&self) -> bool {
        self.limit.is_some()
    }
}

/// One record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordView {
    /// The segment's file.
    pub path: PathBuf,
    /// The segment's generation.
    pub generation: u64,
    /// Where the record starts in the file.
    pub offset: u64,
    /// Bytes it takes.
    pub len: u64,
    /// Its number.
    pub seq: u64,
    /// What was durable when it was written.
    pub durable: u64,
    /// Its operations; damaged ones are in `damaged`.
    pub ops: Vec<OpView>,
    /// Checksums that do not match.
    pub damaged: Vec<BadSum>,
    /// Its directory is damaged, and nobody knows of which groups it spoke.
    pub is_lost: bool,
}

/// What a run of entries takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunBytes {
    /// Its bytes before compression: the entries' data, kinds and sizes.
    pub raw: u64,
    /// Its bytes in the segment.
    pub stored: u64,
    /// Whether these are compressed.
    pub is_compressed: bool,
}

/// One operation of a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OpView {
    /// Entries were appended, overwriting from the first one's index on.
    Append {
        /// The group.
        group: GroupId,
        /// The entries.
        entries: Vec<Entry>,
        /// What they take.
        run: RunBytes,
    },
    /// Live entries were copied forward by purge.
    Rewrite {
        /// The group.
        group: GroupId,
        /// The entries.
        entries: Vec<Entry>,
        /// What they take, and entries copied with them that were dead already.
        run: RunBytes,
    },
    /// The state record was set.
    State {
        /// The group.
        group: GroupId,
        /// The new state.
        state: Bytes,
    },
    /// Entries up to the position were dropped.
    Compact {
        /// The group.
        group: GroupId,
        /// The new truncated position.
        to: LogPosition,
    },
    /// Every entry was dropped: the log begins after the position.
    Reset {
        /// The group.
        group: GroupId,
        /// The new truncated position.
        to: LogPosition,
    },
    /// The truncated position was restated by purge.
    Base {
        /// The group.
        group: GroupId,
        /// The position.
        at: LogPosition,
    },
    /// The group was forgotten.
    Clear {
        /// The group.
        group: GroupId,
    },
    /// Records below the number are void.
    Floor {
        /// The first record that counts.
        seq: u64,
    },
    /// The operation's bytes are damaged.
    Damaged {
        /// The group they belong to.
        group: GroupId,
        /// What it was.
        was: Was,
    },
}

/// What a finding means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FindingKind {
    /// A tail that no readable record states to be durable, and that was begun.
    Torn,
    /// Whole records whose durability nothing states yet. Not an error: the normal end of a log
    /// that is in use or was killed.
    BeyondDurable,
    /// Acknowledged bytes are damaged or gone.
    Rot,
}

/// One thing that verification noticed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The file.
    pub file: PathBuf,
    /// Where the damaged bytes start.
    pub offset: u64,
    /// What it means.
    pub kind: FindingKind,
    /// The checksum that was written (0 if it cannot be read).
    pub expected: u32,
    /// The checksum of what is there.
    pub found: u32,
    /// The group it belongs to, if that can be told.
    pub group: Option<GroupId>,
    /// In words.
    pub detail: String,
}

/// What verification found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Findings, oldest segment first.
    pub findings: Vec<Finding>,
    /// Per group, the last index before its first damage (or its last index).
    pub last_good: BTreeMap<GroupId, u64>,
    /// Segments read.
    pub segments: u64,
    /// Records read.
    pub records: u64,
    /// Everything up to here is stated to be durable.
    pub durable: u64,
}

impl Report {
    /// Whether acknowledged bytes are damaged.
    pub fn is_rotten(&self) -> bool {
        self.findings.iter().any(|finding| finding.kind == FindingKind::Rot)
    }
}

/// A log directory, as it was when it was opened.
#[derive(Debug)]
pub struct Inspector {
    found: Vec<Found>,
    unread: Vec<Unread>,
}

impl Inspector {
    /// Lists the segments of a directory. [`Corruption`](crate::Error::Corruption) if a header is beyond
    /// reading or does not say what the file's name says, if what has a segment's or a spare's name is no regular
    /// file, or if all segments were taken away;
    /// [`Identity`](crate::Error::Identity) for a format version that this build does not read; [`Io`](crate::Error::Io).
    pub fn open(disk: &dyn Disk, dir: &Path) -> Result<Inspector> {
        let inspector = Inspector::survey(disk, dir)?;
        match inspector.unread.into_iter().next() {
            Some(Unread { path, detail }) => Err(Error::Corruption { path, offset: 0, detail }),
            None => Ok(Inspector { unread: Vec::new(), ..inspector }),
        }
    }

    /// The same, but files that cannot be read as segments are passed over. [`verify`](Self::verify) reports them
    /// with the rest; what was in them is missing from [`segments`](Self::segments) and
    /// [`records`](Self::records).
    pub fn survey(disk: &dyn Disk, dir: &Path) -> Result<Inspector> {
        let names = disk.list(dir)?;
        let (found, unread) = survey(disk, dir, &names, OpenMode::Read, Neighbour::LiveLog)?;
        Ok(Inspector { found, unread })
    }

    /// The segments, oldest first. [`Io`](crate::Error::Io) if one cannot be looked at.
    pub fn segments(&self) -> Result<Vec<SegmentInfo>> {
        let info = |f: &Found| {
            let trailer = read_trailer(f.file.as_ref(), &f.header)?;
            Ok(SegmentInfo {
                footer: trailer.map_or(0, |trailer| trailer.bytes()),
                path: f.path.clone(),
                header: f.header,
                version: f.version,
                size: f.file.len()?,
                limit: f.limit,
            })
        };
        self.found.iter().map(info).collect()
    }

    /// Every record that counts, in order, one segment in memory at a time. [`Io`](crate::Error::Io) for a segment that
    /// cannot be read, [`Malformed`](crate::Error::Malformed) for one that somebody else wrote.
    pub fn records(&self) -> impl Iterator<Item = Result<RecordView>> + '_ {
        self.records_from(0)
    }

    /// The same without the segments that hold only records below `seq` (and hence with records below
    /// `seq`, if they share a segment with later ones).
    pub fn records_from(&self, seq: u64) -> impl Iterator<Item = Result<RecordView>> + '_ {
        let wanted = move |f: &&Found| !f.is_void() && f.limit.is_none_or(|limit| limit > seq);
        let numbered = self.found.iter().enumerate();
        let wanted = numbered.filter(move |(_, f)| wanted(f));
        wanted.flat_map(|(n, segment)| match read_segment(segment, &self.found[n + 1..]) {
            Ok(records) => records.into_iter().map(Ok).collect::<Vec<_>>(),
            Err(error) => vec![Err(error)],
        })
    }

    /// Checks every checksum and every continuity. Damage is in the report; [`Io`](crate::Error::Io) if a segment cannot
    /// be read.
    pub fn verify(&self) -> Result<Report> {
        let mut check = Check::default();
        for Unread { path, detail } in &self.unread {
            let nothing = BadSum { offset: 0, expected: 0, found: 0 };
            check.note(path, nothing, FindingKind::Rot, detail.clone(), u64::MAX);
        }
        for (n, segment) in self.found.iter().enumerate() {
            check.segment(segment, &self.found[n + 1..])?;
        }
        Ok(check.report())
    }
}

/// How often a live directory is looked at anew before what looks rotten is believed all the same.
const LOOKS_MAX: usize = 16;

/// [`Inspector::verify`] in one call. Beside a live node one look can meet files of two moments (a segment
/// recycled between listing and reading), so rot is believed only when two looks in a row find the same. Files that
/// cannot be read as segments are among the findings.
pub fn verify(disk: &dyn Disk, dir: &Path) -> Result<Report> {
    let mut report = Inspector::survey(disk, dir)?.verify()?;
    for _ in 1..LOOKS_MAX {
        if !report.is_rotten() {
            break;
        }
        let again = Inspector::survey(disk, dir)?.verify()?;
        if again.findings == report.findings {
            break;
        }
        report = again;
    }
    Ok(report)
}

fn read_segment(segment: &Found, later: &[Found]) -> Result<Vec<RecordView>> {
    let beyond = echoes_beyond(segment, later.iter())?;
    let bytes = Bytes::from(segment.read_beside(&beyond)?.bytes);
    let mut scan = Scan::new(&bytes, &segment.header, segment.limit, beyond);
    let mut views = Vec::new();
    while let Some(record) = scan.next() {
        views.push(view(segment, &bytes, &record)?);
    }
    Ok(views)
}

fn view(segment: &Found, bytes: &Bytes, record: &Record) -> Result<RecordView> {
    let payload = record.payload_at();
    let mut ops = Vec::new();
    for (n, op) in record.ops.iter().flatten().enumerate() {
        let bad = record.bad_ops.iter().any(|(bad, _)| *bad == n);
        ops.push(match (bad, op.group()) {
            (true, Some(group)) => OpView::Damaged { group, was: Was::of(op) },
            _ => view_op(op, bytes, payload)?,
        });
    }
    for group in record.groups.iter().flatten() {
        ops.push(OpView::Damaged { group: *group, was: Was::Unknown });
    }
    let damaged = record.ops.as_ref().err().into_iter().chain(record.bad_ops.iter().map(|b| &b.1));
    let damaged = damaged.chain(&record.bad_header).chain(&record.bad_echo);
    Ok(RecordView {
        path: segment.path.clone(),
        generation: record.header.generation,
        offset: record.offset as u64,
        len: record.header.total() as u64,
        seq: record.header.seq,
        durable: record.header.durable,
        ops,
        damaged: damaged.copied().collect(),
        is_lost: record.ops.is_err() && record.groups.is_none(),
    })
}

fn view_op(op: &Op, bytes: &Bytes, payload: usize) -> Result<OpView> {
    let slice = |body: &Span| {
        let start = payload + body.rel as usize;
        bytes.slice(start..start + body.len as usize)
    };
    let run_bytes = |body: &Span| {
        let stored = slice(body);
        RunBytes {
            raw: raw_len(&stored),
            stored: stored.len() as u64,
            is_compressed: is_compressed(&stored),
        }
    };
    Ok(match op {
        Op::Append { group, first, count, terms, body } => {
            let term = |index| terms.iter().take_while(|(from, _)| *from <= index).last();
            let term = |index| term(index).map_or(0, |(_, term)| term);
            let entries = decode_run(&plain(slice(body))?, 0, *first, *count, term)?;
            OpView::Append { group: *group, entries, run: run_bytes(body) }
        }
        Op::Rewrite { group, from, count, skip, terms, body } => {
            let term = |index| terms.iter().take_while(|(from, _)| *from <= index).last();
            let term = |index| term(index).map_or(0, |(_, term)| term);
            let entries = decode_run(&plain(slice(body))?, *skip, *from, *count, term)?;
            OpView::Rewrite { group: *group, entries, run: run_bytes(body) }
        }
        Op::State { group, body } => OpView::State { group: *group, state: slice(body) },
        Op::Compact { group, to } => OpView::Compact { group: *group, to: *to },
        Op::Reset { group, to } => OpView::Reset { group: *group, to: *to },
        Op::Base { group, at } => OpView::Base { group: *group, at: *at },
        Op::Clear { group } => OpView::Clear { group: *group },
        Op::Floor { seq } => OpView::Floor { seq: *seq },
    })
}

/// A finding with what decides whether it still matters.
struct Raw {
    finding: Finding,
    /// The first record after the damaged ones: void if a floor lies at or above it.
    to: u64,
}

#[derive(Default)]
struct Check {
    raw: Vec<Raw>,
    floor: u64,
    next_seq: Option<u64>,
    last: BTreeMap<GroupId, u64>,
    spoilt: BTreeMap<GroupId, u64>,
    segments: u64,
    records: u64,
    durable: u64,
}

impl Check {
    fn note(&mut self, file: &Path, bad: BadSum, kind: FindingKind, what: String, to: u64) {
        let finding = Finding {
            file: file.to_owned(),
            offset: bad.offset,
            kind,
            expected: bad.expected,
            found: bad.found,
            group: None,
            detail: what,
        };
        self.raw.push(Raw { finding, to });
    }

    fn segment(&mut self, segment: &Found, later: &[Found]) -> Result<()> {
        for bad in &segment.bad_header {
            let what = "one of the two copies of the segment header".to_string();
            self.note(&segment.path, *bad, FindingKind::Rot, what, u64::MAX);
        }
        if segment.is_void() {
            return Ok(());
        }
        let base = segment.header.base_seq;
        if let Some(expected) = self.next_seq.filter(|next| base > *next) {
            let bad = BadSum { offset: 0, expected: 0, found: 0 };
            let what = format!("records {expected} to {} are missing before this one", base - 1);
            self.note(&segment.path, bad, FindingKind::Rot, what, base);
        } else if self.next_seq.is_none() && base > 1 {
            let bad = BadSum { offset: 0, expected: 0, found: 0 };
            let what = format!("records 1 to {} are missing before this one", base - 1);
            self.note(&segment.path, bad, FindingKind::Rot, what, base);
        }
        self.segments += 1;
        let beyond = echoes_beyond(segment, later.iter())?;
        let Sparse { bytes, holes } = segment.read_beside(&beyond)?;
        for hole in holes.iter() {
            let bad = BadSum { offset: hole.from, expected: 0, found: 0 };
            let to = segment.limit.unwrap_or(u64::MAX);
            self.note(&segment.path, bad, FindingKind::Rot, hole.detail.clone(), to);
        }
        let bytes = Bytes::from(bytes);
        let mut scan = Scan::new(&bytes, &segment.header, segment.limit, beyond);
        let mut records = Vec::new();
        while let Some(record) = scan.next() {
            records.push(record);
        }
        let end = scan.end();
        self.durable = self.durable.max(end.durable);
        for record in &records {
            self.record(segment, record, end.durable);
        }
        self.footer(segment, &bytes, &records);
        self.next_seq = Some(end.next_seq);
        let reached = segment.limit.unwrap_or(end.durable.saturating_add(1));
        let nothing = BadSum { offset: end.offset as u64, expected: 0, found: 0 };
        if end.next_seq < reached {
            let what = format!("records {} to {} cannot be read", end.next_seq, reached - 1);
            let bad = end.bad.unwrap_or(nothing);
            self.note(&segment.path, bad, FindingKind::Rot, what, reached);
            self.next_seq = Some(reached);
        } else if segment.is_short() {
            let bad = BadSum { offset: segment.len, expected: 0, found: 0 };
            let (what, to) = match segment.limit {
                None if end.is_cut => {
                    (format!("records from {} on may be gone", end.next_seq), u64::MAX)
                }
                limit => ("no record is gone".to_owned(), limit.unwrap_or(u64::MAX)),
            };
            let what = format!("{}: {what}", segment.how_short());
            self.note(&segment.path, bad, FindingKind::Rot, what, to);
        }
        if end.next_seq >= reached && segment.limit.is_none() {
            if let Some(bad) = end.bad {
                let what = format!("record {} was begun", end.next_seq);
                self.note(&segment.path, bad, FindingKind::Torn, what, u64::MAX);
            }
            if let Some(first) = records.iter().find(|r| r.header.seq > end.durable) {
                let bad = BadSum { offset: first.offset as u64, expected: 0, found: 0 };
                let what = format!(
                    "records {} to {} are whole, nothing states that they are durable",
                    first.header.seq,
                    end.next_seq - 1
                );
                self.note(&segment.path, bad, FindingKind::BeyondDurable, what, u64::MAX);
            }
        }
        Ok(())
    }

    /// A footer must say what the records say.
    fn footer(&mut self, segment: &Found, bytes: &Bytes, records: &[Record]) {
        let findings = check_footer(&segment.header, segment.limit, bytes, records);
        for (bad, group, what) in findings {
            self.note(&segment.path, bad, FindingKind::Rot, what, u64::MAX);
            if let Some(raw) = self.raw.last_mut() {
                raw.finding.group = group;
            }
        }
    }

    /// The group is good up to this index at most.
    fn spoil(&mut self, group: GroupId, good: u64) {
        self.last.entry(group).or_default();
        self.spoilt.entry(group).and_modify(|g| *g = good.min(*g)).or_insert(good);
    }

    fn record(&mut self, segment: &Found, record: &Record, stated: u64) {
        self.records += 1;
        let seq = record.header.seq;
        let kind = if seq > stated { FindingKind::Torn } else { FindingKind::Rot };
        if let Some(bad) = &record.bad_header {
            let what = format!("header of record {seq} (the group after it repeats it)");
            self.note(&segment.path, *bad, kind, what, seq + 1);
        }
        if let Some(bad) = &record.bad_echo {
            let what = format!("what record {seq} repeats of the group before it");
            self.note(&segment.path, *bad, kind, what, seq + 1);
        }
        let ops = match &record.ops {
            Ok(ops) => ops,
            Err(bad) => {
                let what = name_directory(seq, bad);
                // A floor's names none.
                let Some(groups) = record.groups.as_ref().filter(|groups| !groups.is_empty())
                else {
                    return self.note(&segment.path, *bad, kind, what, seq + 1);
                };
                for group in groups {
                    self.note(&segment.path, *bad, kind, what.clone(), seq + 1);
                    if let Some(raw) = self.raw.last_mut() {
                        raw.finding.group = Some(*group);
                    }
                    self.spoil(*group, self.last.get(group).copied().unwrap_or(0));
                }
                return;
            }
        };
        for (n, op) in ops.iter().enumerate() {
            let bad = record.bad_ops.iter().find(|(bad, _)| *bad == n);
            let Some(group) = op.group() else {
                if let Op::Floor { seq } = op {
                    self.floor = self.floor.max(*seq);
                }
                continue;
            };
            if let Some((_, bad)) = bad {
                let what = format!("group {group} in record {seq}");
                self.note(&segment.path, *bad, kind, what, seq + 1);
                if let Some(raw) = self.raw.last_mut() {
                    raw.finding.group = Some(group);
                }
                let good = match op {
                    // No entry has index 0, but a file may say so.
                    Op::Append { first, .. } => first.saturating_sub(1),
                    Op::Rewrite { from, .. } => from.saturating_sub(1),
                    _ => self.last.get(&group).copied().unwrap_or(0),
                };
                self.spoil(group, good);
            }
            let last = self.last.entry(group).or_default();
            match op {
                Op::Append { first, count, .. } => *last = first + u64::from(*count) - 1,
                Op::Rewrite { from, count, .. } => {
                    *last = (*last).max(from + u64::from(*count) - 1);
                }
                Op::Compact { to, .. } | Op::Base { at: to, .. } => *last = (*last).max(to.index),
                Op::Reset { to, .. } => {
                    *last = to.index;
                    self.spoilt.remove(&group);
                }
                Op::Clear { .. } => {
                    self.last.remove(&group);
                    self.spoilt.remove(&group);
                }
                Op::State { .. } | Op::Floor { .. } => {}
            }
        }
    }

    fn report(self) -> Report {
        let mut last_good = self.last;
        for (group, good) in self.spoilt {
            last_good.entry(group).and_modify(|last| *last = good.min(*last));
        }
        let floor = self.floor;
        let findings = self.raw.into_iter().filter(|raw| raw.to > floor).map(|raw| raw.finding);
        Report {
            findings: findings.collect(),
            last_good,
            segments: self.segments,
            records: self.records,
            durable: self.durable,
        }
    }
}

#[cfg(test)]
mod tests;
