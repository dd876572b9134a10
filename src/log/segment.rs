//! The files: which segments there are, where each record's payload lies, and the pool of spare files.

use super::Options;
use super::format::{BLOCK, SegmentHeader};
use super::notes::Notes;
use super::unreadable::read_around;
use crate::env::{Disk, File, OpenMode};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod leaving;

use leaving::Leaving;

pub(super) const SEGMENT_SUFFIX: &str = ".seg";
pub(super) const SPARE_SUFFIX: &str = ".free";

pub(super) fn segment_name(generation: u64) -> String {
    format!("{generation:016}{SEGMENT_SUFFIX}")
}

/// The largest number that a name has room for. It is never given out.
const LAST_NUMBER: u64 = 9_999_999_999_999_999;

/// Refuses a number after which none has room in a name. No log gets there by itself: somebody else made a file with
/// a number from the end. A longer name would be nobody's, and what is under it not found again.
fn has_successor(number: u64, path: &Path) -> Result<()> {
    if number < LAST_NUMBER {
        return Ok(());
    }
    let detail = format!("number {number}: none after it has room in a file's name");
    Err(Error::Corruption { path: path.to_owned(), offset: 0, detail })
}

fn spare_name(number: u64) -> String {
    format!("{number:016}{SPARE_SUFFIX}")
}

/// The number in a name with this suffix.
pub(super) fn parse_name(name: &Path, suffix: &str) -> Option<u64> {
    let number = name.to_str()?.strip_suffix(suffix)?;
    let is_number = number.len() == 16 && number.bytes().all(|byte| byte.is_ascii_digit());
    number.parse().ok().filter(|_| is_number)
}

/// Whether a segment has its footer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Seal {
    /// Not yet.
    Open,
    /// It has.
    Footer,
    /// The disk was full: it is to be tried again.
    Waits(Attempt),
    /// It is not to get one: damaged, or a sync failed.
    Never,
}

/// What came of the last attempt to write a footer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Attempt {
    /// How often there may have been new room by then (`Shared::room`).
    pub room: u64,
    pub stage: Stage,
}

/// How far a footer has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// Its body is to be written.
    Body,
    /// Its body is durable, and not to be written again: a trailer that points to it may be on the disk.
    Trailer,
    /// A sync failed: what it covered is not known, nor could another one tell.
    Unknown,
}

/// A segment that readers may be sent to.
#[derive(Debug)]
pub(super) struct Segment {
    pub generation: u64,
    pub file: Arc<dyn File>,
    pub path: PathBuf,
    pub size: u64,
    /// Where the payload of record `base_seq + i` begins.
    pub payloads: Vec<u32>,
    /// Bytes of runs that some group still needs.
    pub live: u64,
    /// Bytes written.
    pub used: u64,
    /// Bytes at the file's end that records leave to the footer.
    pub room: u64,
    pub seal: Seal,
    /// Of its records, until it has its footer.
    pub notes: Notes,
}

/// Every segment by its first sequence number. The last is the active one.
#[derive(Default, Debug)]
pub(super) struct SegmentTable {
    pub by_base: BTreeMap<u64, Segment>,
    /// Bodies that died before their record had a place.
    unplaced_dead: Vec<(u64, u32)>,
    /// The last record that has a place.
    placed: u64,
}

impl SegmentTable {
    pub fn locate(&self, seq: u64) -> Option<(&Segment, u64)> {
        let (base, segment) = self.by_base.range(..=seq).next_back()?;
        let at = *segment.payloads.get(usize::try_from(seq - base).ok()?)?;
        Some((segment, u64::from(at)))
    }

    fn holding(&mut self, seq: u64) -> Option<&mut Segment> {
        self.by_base.range_mut(..=seq).next_back().map(|(_, segment)| segment)
    }

    /// Notes where record `seq` lies, in the active segment. `run_bytes` of it are live.
    pub fn place(&mut self, seq: u64, payload_at: u32, run_bytes: u64) {
        if let Some(segment) = self.holding(seq) {
            segment.payloads.push(payload_at);
            segment.live += run_bytes;
        }
        self.placed = seq;
        if !self.unplaced_dead.is_empty() {
            let (now, later) = self.unplaced_dead.drain(..).partition(|(s, _)| *s <= seq);
            self.unplaced_dead = later;
            self.bury(now);
        }
    }

    /// Notes bodies that nobody needs any more.
    pub fn bury(&mut self, dead: Vec<(u64, u32)>) {
        for (seq, len) in dead {
            if seq > self.placed {
                self.unplaced_dead.push((seq, len));
            } else if let Some(segment) = self.holding(seq) {
                segment.live = segment.live.saturating_sub(u64::from(len));
            }
        }
    }

    /// Counts what lives of each segment (recovery): see [`set_live`](Self::set_live).
    pub fn live(&self) -> Live {
        let bases: Vec<u64> = self.by_base.keys().copied().collect();
        Live { bytes: vec![0; bases.len()], bases, at: 0 }
    }

    /// What was counted is what lives.
    pub fn set_live(&mut self, live: Live) {
        for (segment, bytes) in self.by_base.values_mut().zip(live.bytes) {
            segment.live = bytes;
        }
    }

    /// Where placed records end (set once, by recovery).
    pub fn set_placed(&mut self, seq: u64) {
        self.placed = seq;
    }
}

/// Live bytes of each segment while they are counted. Runs of a group come in order, nearly always: the
/// next is in the segment of the one before, or soon after.
#[derive(Debug)]
pub(super) struct Live {
    bases: Vec<u64>,
    bytes: Vec<u64>,
    at: usize,
}

impl Live {
    /// Counts a run that some group needs.
    pub fn add(&mut self, seq: u64, len: u64) {
        if self.bases.get(self.at).is_none_or(|base| *base > seq) {
            let after = self.bases.partition_point(|base| *base <= seq);
            let Some(at) = after.checked_sub(1) else { return };
            self.at = at;
        }
        while self.bases.get(self.at + 1).is_some_and(|base| *base <= seq) {
            self.at += 1;
        }
        self.bytes[self.at] += len;
    }

    /// What was counted, in the order of the segments.
    pub fn into_bytes(self) -> Vec<u64> {
        self.bytes
    }
}

/// A file that waits to become a segment.
#[derive(Debug)]
pub(super) struct Spare {
    pub path: PathBuf,
    pub file: Arc<dyn File>,
    /// Bytes that it was made of: a segment's, or more for a record that is larger.
    pub size: u64,
}

impl Spare {
    /// Makes the file so long, with zeros. `false`, and nothing has changed: there is no room.
    pub fn grow(&self, to: u64) -> Result<bool> {
        let from = self.file.len()?;
        let zeros = aligned(&[0; BLOCK]);
        for at in (from..to).step_by(BLOCK) {
            match self.file.write_at(at, block_of(&zeros)) {
                Ok(()) => {}
                Err(Error::DiskFull { .. }) => {
                    self.file.set_len(from)?;
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// What an allocation may use up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reserve {
    /// The last spare file stays: purge may need it to free space.
    Keep,
    /// This is purge: the last spare may go, for a segment comes back.
    Use,
}

/// Whether there is a spare file in reserve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reserved {
    Yes,
    /// The disk is full.
    No,
}

/// The pool of spare files.
///
/// - A spare was written full and synced before it came here, so that a sync of later writes to it
///   need not commit metadata.
/// - Its directory entry is durable under its spare name: bytes of its next life are never found
///   under the name of an old one.
#[derive(Debug)]
pub(super) struct Pool {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    segment_bytes: u64,
    keep: usize,
    spares: Vec<Spare>,
    next_spare: u64,
    next_generation: u64,
    /// What the next segment keeps free for its footer.
    footer_room: u64,
}

/// Zeros are written in pieces of this size: whoever writes to the disk meanwhile waits for one of them.
const FILL: usize = 256 << 10;

impl Pool {
    pub fn new(disk: Arc<dyn Disk>, dir: &Path, options: &Options) -> Pool {
        Pool {
            disk,
            dir: dir.to_owned(),
            segment_bytes: options.segment_bytes,
            keep: options.spare_segments.max(1),
            spares: Vec::new(),
            next_spare: 1,
            next_generation: 1,
            footer_room: footer_room(options.segment_bytes, options.segment_bytes / 16),
        }
    }

    /// Takes stock of the spare files of a directory; incomplete ones are removed.
    pub fn adopt(&mut self, names: &[PathBuf]) -> Result<()> {
        for name in names {
            let Some(number) = parse_name(name, SPARE_SUFFIX) else { continue };
            let path = self.dir.join(name);
            has_successor(number, &path)?;
            self.next_spare = self.next_spare.max(number + 1);
            let file = self.disk.open(&path, OpenMode::ReadWrite)?;
            let read = read_around(file.as_ref(), 0, BLOCK)?;
            let block = read.bytes;
            // A file that was on its way to become a segment may hold records of a generation that
            // never came to be: its number must not be used again.
            let zero = block.iter().all(|b| *b == 0) && read.holes.first().is_none();
            match SegmentHeader::decode(&block).0 {
                Ok(header) => {
                    has_successor(header.generation, &path)?;
                    self.see_generation(header.generation);
                }
                Err(_) if zero => {}
                Err(_) => {
                    self.disk.remove(&path)?;
                    continue;
                }
            }
            if file.len()? == self.segment_bytes && self.spares.len() < self.most() {
                self.spares.push(Spare { path, file, size: self.segment_bytes });
            } else {
                self.disk.remove(&path)?;
            }
        }
        Ok(())
    }

    pub fn see_generation(&mut self, generation: u64) {
        self.next_generation = self.next_generation.max(generation.saturating_add(1));
    }

    /// A footer took so many bytes: the next will be about as large.
    pub fn see_footer(&mut self, bytes: usize) {
        let bytes = bytes as u64;
        self.footer_room = footer_room(self.segment_bytes, bytes + bytes / 4);
    }

    pub fn len(&self) -> usize {
        self.spares.len()
    }

    pub fn bytes(&self) -> u64 {
        self.spares.iter().map(|spare| spare.size).sum()
    }

    /// Bytes that records may take of a segment.
    pub fn usable(&self) -> u64 {
        self.usable_of(self.segment_bytes)
    }

    fn usable_of(&self, size: u64) -> u64 {
        size.saturating_sub(self.footer_room + BLOCK as u64)
    }

    /// Bytes that records may take of the largest spare.
    pub fn longest(&self) -> u64 {
        let longest = self.spares.iter().map(|spare| spare.size).max();
        longest.map_or(0, |size| self.usable_of(size))
    }

    /// The size of a file of which records may take so many bytes.
    pub fn size_for(&self, records: u64) -> u64 {
        records.next_multiple_of(BLOCK as u64) + self.footer_room + BLOCK as u64
    }

    /// Whether [`fill`](Self::fill) has something to do.
    pub fn wants(&self) -> bool {
        self.spares.len() < self.keep
    }

    /// As many are kept when segments come back: were it no more than what is kept ready, a busy log
    /// would write zeros into new files and remove old ones, in turn, instead of recycling them.
    fn most(&self) -> usize {
        self.keep.saturating_mul(2)
    }

    /// The next spare's path, for a file made outside the pool's lock.
    pub fn next_path(&mut self) -> Result<PathBuf> {
        has_successor(self.next_spare, &self.dir)?;
        let path = self.dir.join(spare_name(self.next_spare));
        self.next_spare += 1;
        Ok(path)
    }

    pub fn put(&mut self, spare: Spare) {
        self.spares.push(spare);
    }

    pub fn add(&mut self, spares: Vec<Spare>) {
        self.spares.extend(spares);
    }

    /// Cuts spares that were made for a record larger than a segment to a segment's size. Nothing is written to a spare before
    /// it is taken, so nothing in it is lost.
    pub fn cut_large(&mut self) -> Result<()> {
        for spare in self.spares.iter_mut().filter(|spare| spare.size > self.segment_bytes) {
            match spare.file.set_len(self.segment_bytes) {
                Ok(()) => {}
                // A file system that takes room to give some back: another time.
                Err(Error::DiskFull { .. }) => return Ok(()),
                Err(error) => return Err(error),
            }
            spare.file.sync_data()?;
            spare.size = self.segment_bytes;
        }
        Ok(())
    }

    /// Takes a file for a new segment, whose first record takes so many bytes.
    pub fn take(&mut self, reserve: Reserve, first: u64) -> Result<Spare> {
        let floor = usize::from(reserve == Reserve::Keep);
        if self.spares.len() > floor {
            let is_large = first > self.usable();
            let suits = |spare: &Spare| match is_large {
                true => first <= self.usable_of(spare.size),
                false => spare.size <= self.segment_bytes,
            };
            // The oldest first: it is the likeliest to be settled on the disk.
            return Ok(self.spares.remove(self.spares.iter().position(suits).unwrap_or(0)));
        }
        self.make(self.segment_bytes)
    }

    fn make(&mut self, size: u64) -> Result<Spare> {
        let path = self.next_path()?;
        make_spare(self.disk.as_ref(), &self.dir, path, size, &mut |_| ())
    }

    /// Makes a file for a copy of so many bytes, best of as many as the first says, where there is no room for a
    /// spare: a shorter one, for a log must be opened to be purged. A small one, so that there is
    /// room for another at the next open.
    pub fn make_short(&mut self, copies: [u64; 2]) -> Result<Spare> {
        let block = BLOCK as u64;
        let beside = self.footer_room + 4 * block;
        let [best, least] = copies.map(|bytes| bytes.next_multiple_of(block) + beside);
        let more = least + self.segment_bytes / 16 / block * block;
        let whole = self.segment_bytes;
        let mut made = Err(Error::DiskFull { path: self.dir.clone() });
        for size in [best, more, least].into_iter().filter(|size| *size < whole) {
            if matches!(made, Err(Error::DiskFull { .. })) {
                made = self.make(size);
            }
        }
        made
    }

    /// Makes a file that holds a copy of so many bytes and nothing else: not even room for a footer.
    pub fn make_bare(&mut self, copy: u64) -> Result<Spare> {
        self.make(copy.next_multiple_of(BLOCK as u64) + 2 * BLOCK as u64)
    }

    /// Has one spare at hand, if there is room for it.
    pub fn reserve(&mut self) -> Result<Reserved> {
        if !self.spares.is_empty() {
            return Ok(Reserved::Yes);
        }
        match self.make(self.segment_bytes) {
            Ok(spare) => self.spares.push(spare),
            Err(Error::DiskFull { .. }) => return Ok(Reserved::No),
            Err(error) => return Err(error),
        }
        Ok(Reserved::Yes)
    }

    fn next_generation(&mut self) -> Result<u64> {
        let generation = self.next_generation;
        has_successor(generation, &self.dir)?;
        self.next_generation += 1;
        Ok(generation)
    }

    /// Gives a segment's file back: into the pool, or away. Durable on return.
    pub fn recycle(&mut self, path: &Path, file: Arc<dyn File>) -> Result<()> {
        let leaving = self.part_with(vec![(path.to_owned(), file)]);
        self.spares.extend(leaving.rename()?);
        Ok(())
    }

    /// Decides what becomes of segments' files that nobody needs. The rest is done without the pool.
    pub fn part_with(&mut self, files: Vec<(PathBuf, Arc<dyn File>)>) -> Leaving {
        let (disk, dir, size) = (self.disk.clone(), self.dir.clone(), self.segment_bytes);
        let room = self.most().saturating_sub(self.spares.len());
        // Without a name for it a file goes away.
        let named =
            |(n, (path, file))| (path, file, (n < room).then(|| self.next_path().ok()).flatten());
        Leaving { disk, dir, size, files: files.into_iter().enumerate().map(named).collect() }
    }

    /// Turns a spare into a segment whose header and first bytes are durable before it has its name.
    ///
    /// [`DiskFull`](Error::DiskFull): the header found no room (a file system that never overwrites in
    /// place needs some); the spare is back in the pool. Any other error is final.
    pub fn activate(
        &mut self,
        spare: Spare,
        base_seq: u64,
        durable: u64,
        tail: impl FnOnce(u64) -> Vec<u8>,
    ) -> Result<Segment> {
        let generation = self.next_generation()?;
        let size = spare.file.len()?;
        let header = SegmentHeader { generation, base_seq, durable, size };
        let head = aligned(&header.encode());
        if let Err(error) = spare.file.write_at(0, block_of(&head)) {
            self.spares.push(spare);
            return Err(error);
        }
        self.fill_and_name(spare, header, tail).map_err(|error| match error {
            Error::DiskFull { path } => {
                let reason = format!("the disk was full when {} was named", path.display());
                Error::Stopped { reason }
            }
            other => other,
        })
    }

    fn fill_and_name(
        &mut self,
        spare: Spare,
        header: SegmentHeader,
        tail: impl FnOnce(u64) -> Vec<u8>,
    ) -> Result<Segment> {
        let generation = header.generation;
        spare.file.sync_data()?;
        let tail = tail(generation);
        if !tail.is_empty() {
            // Only now: were the header lost and these bytes kept, their generation could come again.
            spare.file.write_at(BLOCK as u64, &tail)?;
            spare.file.sync_data()?;
        }
        let path = self.dir.join(segment_name(generation));
        drop(spare.file);
        self.disk.rename(&spare.path, &path)?;
        self.disk.sync_dir(&self.dir)?;
        let file = self.disk.open(&path, OpenMode::Direct)?;
        let size = file.len()?;
        let used = (BLOCK + tail.len()) as u64;
        let (room, payloads) = (self.footer_room, Vec::new());
        let (seal, notes) = (Seal::Open, Notes::default());
        Ok(Segment { generation, file, path, size, payloads, live: 0, used, room, seal, notes })
    }
}

/// What a segment leaves to a footer of about `bytes`, in whole blocks and within reason: a footer that
/// needs more makes the file grow.
fn footer_room(segment_bytes: u64, bytes: u64) -> u64 {
    let block = BLOCK as u64;
    let most = segment_bytes / 4 / block * block;
    (bytes.div_ceil(block) * block).min(most)
}

/// Makes a file full of zeros, durably. What a failure leaves behind is removed. `between` is called between its pieces,
/// with the bytes there are so far.
pub(super) fn make_spare(
    disk: &dyn Disk,
    dir: &Path,
    path: PathBuf,
    size: u64,
    between: &mut dyn FnMut(u64),
) -> Result<Spare> {
    drop(disk.open(&path, OpenMode::CreateNew)?);
    let filled = disk.open(&path, OpenMode::Direct).and_then(|file| {
        fill(file.as_ref(), size, between)?;
        disk.sync_dir(dir)?;
        Ok(file)
    });
    match filled {
        Ok(file) => Ok(Spare { path, file, size }),
        Err(error) => {
            // Best effort: an incomplete spare is removed by the next open as well.
            let _ = disk.remove(&path);
            Err(match error {
                Error::DiskFull { .. } => Error::DiskFull { path },
                other => other,
            })
        }
    }
}

fn fill(file: &dyn File, size: u64, between: &mut dyn FnMut(u64)) -> Result<()> {
    let zeros = aligned(&vec![0; FILL.min(size as usize)]);
    let zeros = block_of(&zeros);
    let mut at = 0;
    while at < size {
        let n = (size - at).min(FILL as u64);
        file.write_at(at, &zeros[..n as usize])?;
        at += n;
        if at < size {
            between(at);
        }
    }
    file.sync_data()
}

/// Bytes that begin at a block's multiple in memory too, so that they need not go through the page cache:
/// where they begin, and what holds them.
fn aligned(bytes: &[u8]) -> (usize, Vec<u8>) {
    let mut room: Vec<u8> = Vec::with_capacity(bytes.len() + BLOCK);
    let start = room.as_ptr().align_offset(BLOCK).min(BLOCK);
    room.resize(start, 0);
    room.extend_from_slice(bytes);
    (start, room)
}

fn block_of((start, room): &(usize, Vec<u8>)) -> &[u8] {
    &room[*start..]
}

#[cfg(test)]
mod tests;
