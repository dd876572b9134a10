//! How a segment's bytes come into memory: whole, or no more of them than its records take. A file may be much longer
//! than what is in it.

use super::Found;
use crate::env::File;
use crate::error::Result;
use crate::log::echo::Echoes;
use crate::log::format::{BLOCK, RECORD_HEADER, RecordHeader, align};
use crate::log::seal::read_trailer;
use crate::log::unreadable::{Holes, Sparse, is_of_its_place, read_around, room_for};
use std::collections::BTreeSet;
use std::ops::Range;

impl Found {
    /// Reads a segment that later ones follow; `beyond` is what they repeat of it.
    pub(in crate::log) fn read(&self, beyond: &Echoes) -> Result<Sparse> {
        let len = place(self.file.len()?);
        read_around(self.file.as_ref(), 0, if self.is_long() { self.matters(beyond)? } else { len })
    }

    /// Whether it is longer than it was made. A batch larger than a segment may have made it grow, or a footer; or somebody
    /// else did, and what came to it is nearly all hole: there need not be memory for that.
    fn is_long(&self) -> bool {
        self.len > self.header.size
    }

    /// How much of the file its records take, and a block more, found with a small window.
    fn matters(&self, beyond: &Echoes) -> Result<usize> {
        let len = place(self.file.len()?);
        let fits = |end: &usize| *end <= len;
        let echoed = beyond.values().filter_map(|echoed| echoed.end().filter(fits)).max();
        let last = self.pass(&(BLOCK..len))?.max(echoed.unwrap_or(0));
        Ok(with_next(last).min(len))
    }

    /// Reads of the last segment what may matter: not the rest of the file, which is zeros or another life.
    /// In parts, because it takes long: these, of so many bytes each; [`pass`](Self::pass) over each, beside each
    /// other or not; then [`read_to`](Self::read_to) the largest end that one of them found.
    ///
    /// A scan looks at the beginning of every block, at what follows each record, at the records themselves,
    /// and right behind the last one whether another was begun. All those places are looked at here, in a
    /// small window that passes over the file, and nothing behind the last of them is kept. (Where a later
    /// segment repeats headers of this one that is not enough: they may lead to records that nothing
    /// here leads to.)
    pub(in crate::log) fn passes(&self, bytes: usize) -> Result<Vec<Range<usize>>> {
        let len = place(self.file.len()?);
        Ok((BLOCK..len)
            .step_by(bytes)
            .map(|from| from..len.min(from.saturating_add(bytes)))
            .collect())
    }

    /// Where the last of the records ends that the blocks of a part lead to, or the last hole there (it may have
    /// held one); 0 if there is none.
    pub(in crate::log) fn pass(&self, part: &Range<usize>) -> Result<usize> {
        let len = place(self.file.len()?);
        let mut window =
            Window { file: self.file.as_ref(), start: 0, bytes: Vec::new(), holes_end: 0 };
        let mut ends = BTreeSet::new();
        let mut last = 0;
        for block in part.clone().step_by(BLOCK).chain([len]) {
            if block < len {
                ends.insert(block);
            }
            while let Some(at) = ends.pop_first() {
                if at > block {
                    ends.insert(at);
                    break;
                }
                if at >= part.end && at.is_multiple_of(BLOCK) {
                    // Another part's.
                    continue;
                }
                let head = window.read(at, RECORD_HEADER)?;
                if let Ok(header) = RecordHeader::decode(head, self.header.generation)
                    && header.total() <= len - at
                {
                    last = last.max(at + header.total());
                    ends.insert(at + header.total());
                }
            }
        }
        Ok(last.max(window.holes_end))
    }

    /// The file as far as the last record matters, which ends at `last`.
    pub(in crate::log) fn read_to(&self, last: usize) -> Result<Sparse> {
        let len = place(self.file.len()?);
        read_around(self.file.as_ref(), 0, len.min(with_next(last)))
    }

    /// Reads a segment for whoever looks at all of it: with its footer, if it has one, and as one that may be being
    /// written, if it is the last. `beyond` is what the next segment repeats of it.
    pub(in crate::log) fn read_beside(&self, beyond: &Echoes) -> Result<Sparse> {
        let file = self.file.as_ref();
        match (self.limit, read_trailer(file, &self.header)?) {
            (Some(_), Some(_)) => read_around(file, 0, place(file.len()?)),
            (Some(_), None) => self.read(beyond),
            (None, _) => self.read_backwards(),
        }
    }

    /// Reads a segment that may be being written, block by block from the end to the beginning. A
    /// record that states another to be durable was written after it and lies behind it: read in this
    /// order, whatever evidence we see, what it speaks of was complete when we come to read it.
    fn read_backwards(&self) -> Result<Sparse> {
        let mut all = Holes::default();
        let len = match self.is_long() && read_trailer(self.file.as_ref(), &self.header)?.is_none()
        {
            true => self.matters(&Echoes::new())?,
            false => place(self.file.len()?),
        };
        let mut bytes = room_for(self.file.path(), len)?;
        bytes.resize(len, 0);
        for (n, block) in bytes.chunks_mut(BLOCK).enumerate().rev() {
            let read = read_around(self.file.as_ref(), (n * BLOCK) as u64, block.len())?;
            block[..read.bytes.len()].copy_from_slice(&read.bytes);
            all.merge(read.holes);
        }
        Ok(Sparse { bytes, holes: all })
    }
}

/// A length of a file in memory.
fn place(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// To the end of the block behind the one in which the last record ends: another may begin there.
fn with_next(last: usize) -> usize {
    align(last.max(BLOCK)) + BLOCK
}

/// A part of a file, which moves on.
struct Window<'a> {
    file: &'a dyn File,
    start: usize,
    bytes: Vec<u8>,
    /// Where the last hole ends that it passed over.
    holes_end: usize,
}

/// Small enough to stay in the processor's cache.
const WINDOW: usize = 256 << 10;

impl Window<'_> {
    /// Bytes of the file, fewer at its end.
    fn read(&mut self, at: usize, len: usize) -> Result<&[u8]> {
        let end = self.start + self.bytes.len();
        if at < self.start || at + len > end {
            self.start = at;
            self.bytes.resize(WINDOW, 0);
            let mut done = 0;
            while done < WINDOW {
                match self.file.read_at((at + done) as u64, &mut self.bytes[done..]) {
                    Ok(0) => break,
                    Ok(n) => done += n,
                    Err(error) if is_of_its_place(&error) => {
                        let read = read_around(self.file, at as u64, WINDOW)?;
                        done = read.bytes.len();
                        self.bytes = read.bytes;
                        self.holes_end = self.holes_end.max(read.holes.end() as usize);
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
            self.bytes.truncate(done);
        }
        let rest = &self.bytes[(at - self.start).min(self.bytes.len())..];
        Ok(&rest[..len.min(rest.len())])
    }
}
