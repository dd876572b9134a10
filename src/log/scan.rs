//! Reading a segment's bytes in order, and judging what does not read. Recovery and the read-only
//! inspection share this: what one of them sees, the other sees.

use super::GroupId;
use super::echo::{self, Echoed, Echoes};
use super::format::{
    BLOCK, BadSum, LAST_SEQ, Op, RECORD_HEADER, RECORD_MAGIC, RecordHeader, SegmentHeader, VERSION,
    align, decode_dir, read_u64,
};
use super::segment::{SEGMENT_SUFFIX, SPARE_SUFFIX, parse_name};
use super::unreadable::{Sparse, read_around};
use crate::env::{Disk, File, Irregular, OpenMode};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod reading;

/// A segment as found in the directory.
#[derive(Debug)]
pub(super) struct Found {
    pub path: PathBuf,
    pub file: Arc<dyn File>,
    pub header: SegmentHeader,
    pub version: u32,
    pub bad_header: Vec<BadSum>,
    /// Records from this number on are void: a later segment has them. None for the last segment.
    pub limit: Option<u64>,
    /// Its length when it was found.
    pub len: u64,
}

/// A file that is named like a segment and is none that can be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Unread {
    pub path: PathBuf,
    pub detail: String,
}

impl Found {
    /// Whether a later segment has everything this one could hold.
    pub fn is_void(&self) -> bool {
        self.limit.is_some_and(|limit| limit <= self.header.base_seq)
    }

    /// Whether it is shorter than it was made. The header is written when the file has its whole length, and
    /// synced with it, and nothing shortens a segment that still counts: no crash leaves this behind.
    /// (One that no longer counts may be cut to a new size just before it is recycled.)
    pub fn is_short(&self) -> bool {
        self.len < self.header.size
    }

    pub fn how_short(&self) -> String {
        format!("the file was made with {} bytes and has {}", self.header.size, self.len)
    }
}

/// What a segment can come to, in bytes: the places in it are 32 bits wide, and a footer that would end behind them is
/// not written. (Records take 2 GiB at most, by the options and of a spare made for a large batch, or one group that is
/// larger: a payload and a directory of 1 GiB.)
const LONGEST: u64 = u32::MAX as u64 + 1;

/// What to do about a file that vanishes or changes its name while the directory is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Neighbour {
    /// Nobody else touches the directory.
    None,
    /// A live log may recycle files under our eyes.
    LiveLog,
}

/// Every segment of a directory, oldest first. [`Corruption`](Error::Corruption) if one cannot be read, or if all are
/// gone though there were some.
pub(super) fn find_segments(
    disk: &dyn Disk,
    dir: &Path,
    names: &[PathBuf],
    mode: OpenMode,
    neighbour: Neighbour,
) -> Result<Vec<Found>> {
    let (found, unread) = survey(disk, dir, names, mode, neighbour)?;
    match unread.into_iter().next() {
        Some(Unread { path, detail }) => Err(Error::Corruption { path, offset: 0, detail }),
        None => Ok(found),
    }
}

/// The same, with what stands in the way beside what can be read.
pub(super) fn survey(
    disk: &dyn Disk,
    dir: &Path,
    names: &[PathBuf],
    mode: OpenMode,
    neighbour: Neighbour,
) -> Result<(Vec<Found>, Vec<Unread>)> {
    let mut found = Vec::new();
    let mut unread = no_files(disk, dir)?;
    let live = neighbour == Neighbour::LiveLog;
    for name in names {
        let Some(generation) = parse_name(name, SEGMENT_SUFFIX) else { continue };
        let path = dir.join(name);
        let file = match disk.open(&path, mode) {
            Ok(file) => file,
            Err(_) if live && !disk.exists(&path)? => continue,
            Err(error) => return Err(error),
        };
        let len = file.len()?;
        if len > LONGEST {
            // Not read: whoever made it long (it may be all hole) did not write it.
            let detail = format!("{len} bytes: no segment is that long");
            unread.push(Unread { path, detail });
            continue;
        }
        let Sparse { bytes: block, holes } = read_around(file.as_ref(), 0, BLOCK)?;
        let (header, bad_header) = SegmentHeader::decode(&block);
        let version = SegmentHeader::version(&block).unwrap_or(VERSION);
        let detail = match header {
            Ok(SegmentHeader { base_seq, durable, .. })
                if base_seq == 0 || base_seq.max(durable) > LAST_SEQ =>
            {
                let first = format!("its first record is number {base_seq}");
                format!("{first}, and {durable} are durable: no log comes to that")
            }
            Ok(header) if header.generation == generation => {
                found.push(Found { path, file, header, version, bad_header, limit: None, len });
                continue;
            }
            // Recycled under our eyes, it has lost its name before it gets another header. A name does not come
            // back: if it is still there, it is this file's, and was when its header was read.
            _ if live && !disk.exists(&path)? => continue,
            Ok(header) => format!("named {generation}, its header says {}", header.generation),
            Err(error @ Error::Identity(_)) => return Err(error),
            Err(error) => holes.first().map_or(error.to_string(), |hole| hole.detail.clone()),
        };
        unread.push(Unread { path, detail });
    }
    if found.is_empty() && unread.is_empty() {
        unread.extend(orphaned_spare(disk, dir, names)?);
    }
    found.sort_by_key(|f| f.header.generation);
    let mut limit = None;
    for segment in found.iter_mut().rev() {
        segment.limit = limit;
        limit =
            Some(limit.map_or(segment.header.base_seq, |l: u64| l.min(segment.header.base_seq)));
    }
    Ok((found, unread))
}

/// What has a segment's or a spare's name and is no regular file. No log made it, and what stood in its place is not
/// known: a segment perhaps, with records that were acknowledged, or a spare that reserves a generation.
fn no_files(disk: &dyn Disk, dir: &Path) -> Result<Vec<Unread>> {
    let is_ours = |name: &Path| {
        [SEGMENT_SUFFIX, SPARE_SUFFIX].iter().any(|suffix| parse_name(name, suffix).is_some())
    };
    let others = disk.list_irregular(dir)?.into_iter().filter(|other| is_ours(&other.name));
    let unread = |Irregular { name, what }| {
        let detail = format!("is {what}, not a regular file");
        Unread { path: dir.join(name), detail }
    };
    Ok(others.map(unread).collect())
}

/// A spare that was a segment with others before it. A segment is recycled only when a later one has its name,
/// durably, and the last one never is: where no segment is left, they were taken away. (A first segment that
/// was never finished says nothing: its log had not been opened yet.)
fn orphaned_spare(disk: &dyn Disk, dir: &Path, names: &[PathBuf]) -> Result<Option<Unread>> {
    for name in names.iter().filter(|name| parse_name(name, SPARE_SUFFIX).is_some()) {
        let path = dir.join(name);
        let file = match disk.open(&path, OpenMode::Read) {
            Ok(file) => file,
            Err(_) if !disk.exists(&path)? => continue,
            Err(error) => return Err(error),
        };
        let Sparse { bytes, holes } = read_around(file.as_ref(), 0, BLOCK)?;
        let header = SegmentHeader::decode(&bytes).0;
        if let (Err(_), Some(hole)) = (&header, holes.first()) {
            let detail = format!("there is no segment, and this spare {}", hole.detail);
            return Ok(Some(Unread { path, detail }));
        }
        if let Ok(header) = header
            && header.base_seq > 1
        {
            let detail = format!(
                "there is no segment, though this spare was made one for records from {} on",
                header.base_seq
            );
            return Ok(Some(Unread { path, detail }));
        }
    }
    Ok(None)
}

/// One record that could be framed.
#[derive(Debug)]
pub(super) struct Record {
    pub offset: usize,
    pub header: RecordHeader,
    /// Its operations, or why the directory cannot be read.
    pub ops: Result<Vec<Op>, BadSum>,
    /// Operations whose bodies are damaged, by number.
    pub bad_ops: Vec<(usize, BadSum)>,
    /// Its header is damaged: what stands here is what the next group repeats of it.
    pub bad_header: Option<BadSum>,
    /// What it repeats of the group before is damaged.
    pub bad_echo: Option<BadSum>,
    /// If the directory cannot be read: the groups it spoke of, if the next group repeats them.
    pub groups: Option<Vec<GroupId>>,
}

impl Record {
    pub fn payload_at(&self) -> usize {
        self.offset + RECORD_HEADER + self.header.dir_len as usize
    }

    pub fn echo_at(&self) -> usize {
        self.payload_at() + self.header.payload_len as usize
    }

    /// Whether it says nothing of any group: it states a number, or repeats others.
    pub fn is_empty(&self) -> bool {
        self.header.dir_len == 0
    }

    /// The groups it speaks of, as an echo lists them, if they are known.
    pub fn echoed_groups(&self) -> Option<Vec<u8>> {
        let (mut list, mut last) = (Vec::new(), 0);
        match (&self.ops, &self.groups) {
            (Ok(ops), _) => ops
                .iter()
                .filter_map(Op::group)
                .for_each(|group| echo::put_group(&mut list, &mut last, group)),
            (Err(_), Some(groups)) => {
                groups.iter().for_each(|group| echo::put_group(&mut list, &mut last, *group));
            }
            (Err(_), None) => return None,
        }
        Some(list)
    }

    pub fn is_whole(&self) -> bool {
        self.ops.is_ok()
            && self.bad_ops.is_empty()
            && self.bad_header.is_none()
            && self.bad_echo.is_none()
    }
}

/// Where reading in order came to an end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct End {
    /// The record that would have come next.
    pub next_seq: u64,
    /// Where it would be.
    pub offset: usize,
    /// What is there instead; `None` if nothing is (zeros, or another generation's bytes).
    pub bad: Option<BadSum>,
    /// The largest durable sequence that any readable record or header states.
    pub durable: u64,
    /// The bytes end before the next record does, or before it could begin: had the file been longer once, it
    /// could have been there, and whole.
    pub is_cut: bool,
}

/// Walks the records of a segment in order.
#[derive(Debug)]
pub(super) struct Scan<'a> {
    bytes: &'a [u8],
    generation: u64,
    next_seq: u64,
    limit: Option<u64>,
    at: usize,
    durable: u64,
    over: bool,
    echoes: Echoes,
    /// Whether the echoes of this segment's own records are among them.
    listened: bool,
}

impl<'a> Scan<'a> {
    /// `beyond`: what the next segment repeats of this one.
    pub fn new(
        bytes: &'a [u8],
        header: &SegmentHeader,
        limit: Option<u64>,
        beyond: Echoes,
    ) -> Scan<'a> {
        // The next segment was made when everything before it was durable.
        let durable = header.durable.max(limit.map_or(0, |limit| limit.saturating_sub(1)));
        Scan {
            bytes,
            generation: header.generation,
            next_seq: header.base_seq,
            limit,
            at: BLOCK,
            durable,
            over: false,
            echoes: beyond,
            listened: false,
        }
    }

    /// What a later group repeats of the record, if it is where it can be.
    fn echo(&mut self, seq: u64) -> Option<&Echoed> {
        if !self.listened {
            self.listened = true;
            let mut at = align(self.at);
            while at < self.bytes.len() {
                match self.header_at(at) {
                    Ok(header) if header.seq > self.next_seq => {
                        let end = at + header.total();
                        let echo = &self.bytes[end - header.echo_len as usize..end];
                        echo::decode(echo, self.generation, &mut self.echoes);
                        at = align(end);
                    }
                    _ => at += BLOCK,
                }
            }
            self.follow();
        }
        let fits = |echoed: &&Echoed| echoed.end().is_some_and(|end| end <= self.bytes.len());
        self.echoes.get(&seq).filter(fits)
    }

    /// Who is known from an echo alone, its own header being damaged, repeats others as well.
    fn follow(&mut self) {
        let mut unseen: Vec<Echoed> = self.echoes.values().cloned().collect();
        while let Some(Echoed { offset, header, .. }) = unseen.pop() {
            let end = offset.saturating_add(header.total());
            let echo = self.bytes.get(end.saturating_sub(header.echo_len as usize)..end);
            let Some(echo) = echo.filter(|_| self.header_at(offset).is_err()) else { continue };
            let mut more = Echoes::new();
            echo::decode(echo, self.generation, &mut more);
            more.retain(|seq, _| !self.echoes.contains_key(seq));
            unseen.extend(more.values().cloned());
            self.echoes.append(&mut more);
        }
    }

    fn header_at(&self, at: usize) -> Result<RecordHeader, BadSum> {
        let rest = self.bytes.get(at..).unwrap_or(&[]);
        let header = RecordHeader::decode(rest, self.generation)
            .map_err(|bad| BadSum { offset: at as u64, ..bad })?;
        match header.total() <= rest.len() {
            true => Ok(header),
            false => Err(BadSum { offset: at as u64, expected: 0, found: 0 }),
        }
    }

    /// The next record in sequence, looking past the padding of a group's end.
    pub fn next(&mut self) -> Option<Record> {
        if self.over || self.limit.is_some_and(|limit| self.next_seq >= limit) {
            self.over = true;
            return None;
        }
        let wanted = |header: &RecordHeader| header.seq == self.next_seq;
        let here = self.header_at(self.at).ok().filter(wanted);
        let found = here.map(|header| (self.at, header)).or_else(|| {
            let block = align(self.at);
            self.header_at(block).ok().filter(wanted).map(|header| (block, header))
        });
        let (record, seq) = match found {
            Some((offset, header)) => (self.read(offset, header), header.seq),
            None => {
                let from = self.at;
                let echoed = self.echo(self.next_seq).filter(|echoed| echoed.offset >= from);
                let Some(Echoed { offset, header, .. }) = echoed.cloned() else {
                    self.over = true;
                    return None;
                };
                let mut record = self.read(offset, header);
                let nothing = BadSum { offset: offset as u64, expected: 0, found: 0 };
                record.bad_header = Some(self.header_at(offset).err().unwrap_or(nothing));
                (record, header.seq)
            }
        };
        self.at = record.offset + record.header.total();
        self.durable = self.durable.max(record.header.durable);
        let groups = match record.ops {
            Ok(_) => None,
            Err(_) => self.echo(seq).map(|echoed| echoed.groups.clone()),
        };
        self.next_seq += 1;
        Some(Record { groups, ..record })
    }

    fn read(&self, offset: usize, header: RecordHeader) -> Record {
        let dir_at = offset + RECORD_HEADER;
        let payload_at = dir_at + header.dir_len as usize;
        let dir = &self.bytes[dir_at..payload_at];
        let echo_at = payload_at + header.payload_len as usize;
        let payload = &self.bytes[payload_at..echo_at];
        let bad_echo = echo::check(&self.bytes[echo_at..offset + header.total()]).err();
        let bad_echo =
            bad_echo.map(|(expected, found)| BadSum { offset: echo_at as u64, expected, found });
        let found = crc32c::crc32c(dir);
        let bad_dir = BadSum { offset: dir_at as u64, expected: header.dir_crc, found };
        let ops = match found == header.dir_crc {
            true => decode_dir(dir, header.payload_len)
                .ok()
                .filter(|ops| ops.iter().all(|op| op.is_of(header.seq)))
                .ok_or(bad_dir),
            false => Err(bad_dir),
        };
        let mut bad_ops = Vec::new();
        for (n, op) in ops.iter().flatten().enumerate() {
            let Some(body) = op.body() else { continue };
            let start = body.rel as usize;
            let found = crc32c::crc32c(&payload[start..start + body.len as usize]);
            if found != body.crc {
                let offset = (payload_at + start) as u64;
                bad_ops.push((n, BadSum { offset, expected: body.crc, found }));
            }
        }
        Record { offset, header, ops, bad_ops, bad_header: None, bad_echo, groups: None }
    }

    /// After the last record: looks at every later block for a record of this generation, for its
    /// durable sequence tells a torn tail from rot. Those records are evidence only, never taken.
    pub fn end(mut self) -> End {
        let complete = self.limit.is_some_and(|limit| self.next_seq >= limit);
        let mut bad = None;
        let is_cut = !complete && self.is_cut();
        if !complete {
            let mut at = align(self.at);
            while at < self.bytes.len() {
                match self.header_at(at) {
                    Ok(header) if header.seq >= self.next_seq => {
                        self.durable = self.durable.max(header.durable);
                        at = align(at + header.total());
                    }
                    _ => at += BLOCK,
                }
            }
            bad = self.remains();
        }
        End { next_seq: self.next_seq, offset: self.at, bad, durable: self.durable, is_cut }
    }

    /// Groups are acknowledged in order: with none where the next would begin, none behind it counts.
    fn is_cut(&self) -> bool {
        let block = align(self.at);
        let runs_out = |at: usize| {
            let header = RecordHeader::decode(self.bytes.get(at..).unwrap_or(&[]), self.generation);
            header.is_ok_and(|header| {
                header.seq == self.next_seq && header.total() > self.bytes.len() - at
            })
        };
        block + RECORD_HEADER > self.bytes.len() || runs_out(self.at) || runs_out(block)
    }

    /// What stands where the next record should: a damaged header of ours, or nothing of note.
    fn remains(&self) -> Option<BadSum> {
        let at_block = align(self.at);
        for at in [self.at, at_block] {
            let Some(head) = self.bytes.get(at..at + RECORD_HEADER) else { continue };
            let Err(bad) = self.header_at(at) else { continue };
            // What follows padding is of the file's former life.
            let head = if at < at_block { &head[..RECORD_HEADER.min(at_block - at)] } else { head };
            let is_ours = || at != at_block || is_hinted(head, self.generation);
            if head.iter().any(|b| *b != 0) && is_ours() {
                return Some(bad);
            }
        }
        None
    }
}

/// Whether these bytes, whose checksum does not match, once were a header of this generation. A small number alone may
/// be anybody's data.
fn is_hinted(head: &[u8], generation: u64) -> bool {
    let magic = RECORD_MAGIC.to_le_bytes();
    let alike = magic.iter().zip(head).filter(|(magic, byte)| magic == byte).count();
    alike + 1 >= magic.len() && read_u64(head, 8) == generation
}

#[cfg(test)]
mod tests;
