//! What the disk leaves to a log whose caller waits for each write: the bytes themselves, padded to blocks,
//! go one behind the other to a file that was written full beforehand, past the page cache, and are synced.

use super::{Engine, Ticket};
use crate::work::{Payload, Piece};
use anyhow::{Result, bail};
use catamaran::env::os::OsDisk;
use catamaran::env::{Disk as _, File, OpenMode};

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

const BLOCK: usize = 4096;
const FILE_BYTES: u64 = 64 << 20;

/// A file that is written round and round.
pub struct Bare {
    file: Arc<dyn File>,
    next: Mutex<Next>,
}

struct Next {
    offset: u64,
    buffer: Vec<u8>,
}

impl Bare {
    /// Makes the file.
    pub fn open(dir: &Path) -> Result<Bare> {
        OsDisk.create_dir_all(dir)?;
        let path = dir.join("blocks");
        let file = OsDisk.open(&path, OpenMode::CreateNew)?;
        let zeros = vec![0; 1 << 20];
        for offset in (0..FILE_BYTES).step_by(zeros.len()) {
            file.write_at(offset, &zeros)?;
        }
        file.sync_data()?;
        let file = OsDisk.open(&path, OpenMode::Direct)?;
        Ok(Bare { file, next: Mutex::new(Next { offset: 0, buffer: Vec::new() }) })
    }
}

impl Next {
    /// The bytes of a write in whole blocks that begin at a block in memory too; where they begin.
    fn fill(&mut self, pieces: &[Piece], payload: &mut Payload) -> usize {
        let buffer = &mut self.buffer;
        buffer.clear();
        let entries: u64 = pieces.iter().map(|piece| piece.count).sum();
        buffer.reserve(entries as usize * payload.size() + 2 * BLOCK);
        let start = buffer.as_ptr().align_offset(BLOCK);
        buffer.resize(start, 0);
        for piece in pieces {
            (0..piece.count).for_each(|_| buffer.extend_from_slice(&payload.entry()));
        }
        let end = start + (buffer.len() - start).next_multiple_of(BLOCK);
        buffer.resize(end, 0);
        start
    }
}

impl Engine for Bare {
    fn write(&self, pieces: &[Piece], payload: &mut Payload) -> Result<Ticket> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let start = next.fill(pieces, payload);
        let len = (next.buffer.len() - start) as u64;
        if next.offset + len > FILE_BYTES {
            next.offset = 0;
        }
        self.file.write_at(next.offset, &next.buffer[start..])?;
        self.file.sync_data()?;
        next.offset += len;
        Ok(Ticket::Done)
    }

    fn settle(&self, _: Ticket) -> Result<()> {
        Ok(())
    }

    fn fill(&self, _: &[Piece], _: &mut Payload) -> Result<()> {
        bail!("nothing can be found again in it")
    }

    fn finish(&self) -> Result<()> {
        Ok(())
    }

    fn compact(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn purge(&self) -> Result<()> {
        Ok(())
    }

    fn read(&self, _: u64, _: u64, _: u64) -> Result<u64> {
        bail!("nothing can be found again in it")
    }

    fn last_index(&self, _: u64) -> u64 {
        0
    }
}
