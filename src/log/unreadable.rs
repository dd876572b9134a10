//! Reading around what the disk cannot read: a bad sector is damage of what lies there, and of nothing else.
//!
//! - Only an error that speaks of the place is taken for damage: the device could not read these bytes. What
//!   speaks of the process or the machine (no memory, no descriptors, a file that ended) stays an error.
//! - Nothing is believed at the first attempt: each stretch is read again in smaller pieces, until the sectors
//!   are known. A fault that goes away by itself leaves no trace.
//! - Where nothing at all can be read, elsewhere in the file neither, it is the device that is gone: an error.
//! - Bytes that could not be read are zeros here, and a [`Hole`] says so. Checksums find them as they find
//!   other bytes; who would *cut* something for what he reads asks for holes first.

use super::BLOCK;
use super::index::Damage;
use crate::env::File;
use crate::error::{Error, Result};
use std::ops::Range;
use std::path::Path;

/// What disks read at least.
const SECTOR: u64 = 512;

/// Pieces that are tried on their own: these, then an eighth of it, down to a sector.
const PIECE: u64 = 256 << 10;

/// A failing read can take seconds. After so many, pieces are given up as they are.
const FAILURES_MAX: u32 = 256;

/// A stretch of a file that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Hole {
    pub from: u64,
    pub end: u64,
    /// What the system says.
    pub detail: String,
}

impl Hole {
    pub fn error(&self, path: &Path) -> Error {
        Error::Corruption { path: path.to_owned(), offset: self.from, detail: self.detail.clone() }
    }

    pub fn damage(&self, path: &Path) -> Damage {
        Damage { file: path.to_owned(), offset: self.from, detail: self.detail.clone() }
    }
}

/// Holes of one file, ascending.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Holes(Vec<Hole>);

impl Holes {
    pub fn first(&self) -> Option<&Hole> {
        self.0.first()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Hole> {
        self.0.iter()
    }

    /// The first that has a part of `places`.
    pub fn within(&self, places: Range<u64>) -> Option<&Hole> {
        self.0.iter().find(|hole| hole.from < places.end && hole.end > places.start)
    }

    /// Where the last one ends.
    pub fn end(&self) -> u64 {
        self.0.last().map_or(0, |hole| hole.end)
    }

    /// Takes in those of another stretch of the file, whichever came first.
    pub fn merge(&mut self, others: Holes) {
        self.0.extend(others.0);
        self.0.sort_by_key(|hole| hole.from);
    }

    fn add(&mut self, places: Range<u64>, error: &Error) {
        if let Some(last) = self.0.last_mut()
            && last.end == places.start
        {
            last.end = places.end;
            return;
        }
        let why = match error {
            Error::Io { source, .. } => source.to_string(),
            other => other.to_string(),
        };
        let detail = format!("cannot be read: {why}");
        self.0.push(Hole { from: places.start, end: places.end, detail });
    }
}

/// Bytes of a file, zeros where they cannot be read.
#[derive(Default, Debug)]
pub(super) struct Sparse {
    pub bytes: Vec<u8>,
    pub holes: Holes,
}

/// Whether the error says that these bytes cannot be read, rather than that nothing can.
pub(super) fn is_of_its_place(error: &Error) -> bool {
    const EIO: i32 = 5;
    // What Linux says of a direct read: a bad medium, a checksum that the device keeps.
    const OF_THE_MEDIUM: &[i32] = if cfg!(target_os = "linux") { &[61, 84] } else { &[] };
    match error {
        Error::Io { op: "read", source, .. } => {
            source.raw_os_error().is_some_and(|code| code == EIO || OF_THE_MEDIUM.contains(&code))
        }
        _ => false,
    }
}

/// An empty vector with room for so many bytes of a file. What a file says of itself, its length among it, may be
/// more than there is memory for: that is an error, no abort.
pub(super) fn room_for(path: &Path, len: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let none = |_| Error::io("read", path, std::io::ErrorKind::OutOfMemory.into());
    bytes.try_reserve_exact(len).map_err(none)?;
    Ok(bytes)
}

/// Bytes are read in pieces of this size: each is in the processor's cache when its zeros are overwritten.
const READ: usize = 1 << 20;

/// Fills an empty vector with so many bytes.
fn read_all(file: &dyn File, offset: u64, len: usize, bytes: &mut Vec<u8>) -> Result<()> {
    while bytes.len() < len {
        let mut done = bytes.len();
        bytes.resize(len.min(done + READ), 0);
        while done < bytes.len() {
            match file.read_at(offset + done as u64, &mut bytes[done..])? {
                0 => return Err(ended(file)),
                n => done += n,
            }
        }
    }
    Ok(())
}

/// The file was longer a moment ago.
fn ended(file: &dyn File) -> Error {
    Error::io("read", file.path(), std::io::ErrorKind::UnexpectedEof.into())
}

/// As [`File::read_up_to`], around what cannot be read, and with an error where there is no memory for it.
pub(super) fn read_around(file: &dyn File, offset: u64, len: usize) -> Result<Sparse> {
    let there = file.len()?.saturating_sub(offset);
    let len = usize::try_from(there).map_or(len, |there| there.min(len));
    let mut bytes = room_for(file.path(), len)?;
    let error = match read_all(file, offset, len, &mut bytes) {
        Ok(()) => return Ok(Sparse { bytes, holes: Holes::default() }),
        Err(error) => error,
    };
    if !is_of_its_place(&error) {
        return Err(error);
    }
    bytes.resize(len, 0);
    let mut search =
        Search { file, offset, bytes, holes: Holes::default(), failures: 1, something: false };
    search.read(offset..offset + len as u64, PIECE)?;
    let Search { bytes, holes, something, .. } = search;
    if !something && !answers(file)? {
        return Err(error);
    }
    Ok(Sparse { bytes, holes })
}

/// Whether anything of the file can be read.
fn answers(file: &dyn File) -> Result<bool> {
    let ends = file.len()?.saturating_sub(SECTOR);
    let mut sector = [0; SECTOR as usize];
    Ok([0, BLOCK as u64, ends].into_iter().any(|at| file.read_at(at, &mut sector).is_ok()))
}

struct Search<'a> {
    file: &'a dyn File,
    offset: u64,
    bytes: Vec<u8>,
    holes: Holes,
    failures: u32,
    /// Some of it could be read.
    something: bool,
}

impl Search<'_> {
    /// Reads a stretch in pieces of this size, and smaller ones where they fail.
    fn read(&mut self, places: Range<u64>, size: u64) -> Result<()> {
        let mut at = places.start;
        while at < places.end {
            let end = places.end.min((at / size + 1) * size);
            match self.fill(at..end) {
                Ok(()) => self.something = true,
                Err(error) if !is_of_its_place(&error) => return Err(error),
                Err(error) => {
                    self.failures += 1;
                    if size > SECTOR && self.failures < FAILURES_MAX {
                        self.read(at..end, size / 8)?;
                    } else {
                        self.piece(&(at..end)).fill(0);
                        self.holes.add(at..end, &error);
                    }
                }
            }
            at = end;
        }
        Ok(())
    }

    fn piece(&mut self, places: &Range<u64>) -> &mut [u8] {
        &mut self.bytes[(places.start - self.offset) as usize..(places.end - self.offset) as usize]
    }

    fn fill(&mut self, places: Range<u64>) -> Result<()> {
        let file = self.file;
        let piece = self.piece(&places);
        let mut done = 0;
        while done < piece.len() {
            match file.read_at(places.start + done as u64, &mut piece[done..])? {
                0 => return Err(ended(file)),
                n => done += n,
            }
        }
        Ok(())
    }
}
