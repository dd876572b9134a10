//! A region's data on its way to a follower that fell behind the log: a consistent view becomes
//! [`Chunks`], the receiver puts them into a file ([`SnapshotWriter`]), and restoring reads the file as
//! ordered items ([`SnapshotReader`]).
//!
//! A chunk is `key length u32, value length u32, key, value`, repeated. The file is, for each chunk,
//! `length u32, crc32c u32, chunk`, and at the end `0 u32, crc32c u32 of the next eight bytes, items u64`: a
//! file without that end was not received whole and is refused. All little-endian.

use crate::env::{Disk, File, OpenMode};
use crate::error::{Error, Result};
use crate::kv::{Direction, Scan, View};
use crate::types::KeyRange;
use bytes::{BufMut, Bytes, BytesMut};
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes of a chunk, about.
const CHUNK_BYTES: usize = 256 << 10;
/// A chunk is never larger: one item over [`CHUNK_BYTES`] stands alone.
const CHUNK_BYTES_MAX: usize = 32 << 20;
/// Bytes of an item besides key and value.
const ITEM_HEAD: usize = 8;
/// Bytes of a chunk's head in the file.
const CHUNK_HEAD: u64 = 8;

/// A received snapshot's data, durable.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SnapshotFile {
    /// Where it lies.
    pub path: PathBuf,
}

/// The data of a region at one applied index, in pieces.
///
/// * The same view is always cut in the same way: a chunk that is made again has the same bytes.
pub struct Chunks {
    view: Box<dyn View>,
    range: KeyRange,
    items: Scan,
    /// The first key of every chunk so far: where to start over.
    starts: Vec<Bytes>,
    /// The next chunk.
    at: usize,
}

impl Chunks {
    /// Everything that `view` holds of `range`.
    pub fn new(view: Box<dyn View>, range: &KeyRange) -> Result<Chunks> {
        let items = view.scan(range, Direction::Forward)?;
        Ok(Chunks { view, range: range.clone(), items, starts: Vec::new(), at: 0 })
    }

    /// Which chunk comes next, from 0.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Goes back to a chunk that was given out before (or that is the next one).
    pub fn rewind(&mut self, chunk: usize) -> Result<()> {
        if chunk == self.at {
            return Ok(());
        }
        let Some(start) = self.starts.get(chunk).filter(|_| chunk < self.at) else {
            let what = format!("chunk {chunk} of a snapshot, of which {} were sent", self.at);
            return Err(Error::InvalidArgument(what));
        };
        let rest = KeyRange { start: start.clone(), end: self.range.end.clone() };
        self.items = self.view.scan(&rest, Direction::Forward)?;
        self.at = chunk;
        Ok(())
    }

    /// The next piece; `None` at the end.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        let mut out = BytesMut::new();
        while out.len() < CHUNK_BYTES {
            let Some(item) = self.items.next() else { break };
            let (key, value) = item?;
            if out.is_empty() && self.starts.len() == self.at {
                // A copy of its own: the key may share the memory of a whole block.
                self.starts.push(Bytes::copy_from_slice(&key));
            }
            out.reserve(ITEM_HEAD + key.len() + value.len());
            out.put_u32_le(key.len() as u32);
            out.put_u32_le(value.len() as u32);
            out.put_slice(&key);
            out.put_slice(&value);
        }
        self.at += usize::from(!out.is_empty());
        Ok((!out.is_empty()).then(|| out.freeze()))
    }
}

/// Writes a snapshot that is being received.
#[derive(Debug)]
pub struct SnapshotWriter {
    disk: Arc<dyn Disk>,
    file: Arc<dyn File>,
    path: PathBuf,
    at: u64,
    items: u64,
}

impl SnapshotWriter {
    /// Starts a file, which must not exist.
    pub fn create(disk: &Arc<dyn Disk>, path: PathBuf) -> Result<SnapshotWriter> {
        let file = disk.open(&path, OpenMode::CreateNew)?;
        Ok(SnapshotWriter { disk: disk.clone(), file, path, at: 0, items: 0 })
    }

    /// Adds a chunk. Refuses one that does not parse.
    pub fn chunk(&mut self, chunk: &[u8]) -> Result<()> {
        if chunk.is_empty() || chunk.len() > CHUNK_BYTES_MAX {
            return Err(Error::malformed("snapshot", "chunk length"));
        }
        let mut at = 0;
        while at < chunk.len() {
            at = item(chunk, at)?.1.end;
            self.items += 1;
        }
        self.write(chunk.len() as u32, chunk)
    }

    fn write(&mut self, len: u32, bytes: &[u8]) -> Result<()> {
        let mut out = Vec::with_capacity(8 + bytes.len());
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&crc32c::crc32c(bytes).to_le_bytes());
        out.extend_from_slice(bytes);
        self.file.write_at(self.at, &out)?;
        self.at += out.len() as u64;
        Ok(())
    }

    /// Ends the file and makes it durable.
    pub fn finish(mut self) -> Result<SnapshotFile> {
        self.write(0, &self.items.to_le_bytes())?;
        self.file.sync_data()?;
        if let Some(dir) = self.path.parent() {
            self.disk.sync_dir(dir)?;
        }
        Ok(SnapshotFile { path: self.path })
    }
}

type Span = std::ops::Range<usize>;

fn item(chunk: &[u8], at: usize) -> Result<(Span, Span)> {
    let short = || Error::malformed("snapshot", "item cut short");
    let len = |at: usize| -> Result<usize> {
        let raw = chunk.get(at..at + 4).ok_or_else(short)?;
        Ok(u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]) as usize)
    };
    let key = at + ITEM_HEAD..at + ITEM_HEAD + len(at)?;
    let value = key.end..key.end + len(at + 4)?;
    if value.end > chunk.len() {
        return Err(short());
    }
    Ok((key, value))
}

/// Reads a snapshot file's items in order, checking everything; ends with an error when the file is not
/// whole.
#[derive(Debug)]
pub struct SnapshotReader {
    file: Arc<dyn File>,
    path: PathBuf,
    at: u64,
    chunk: Bytes,
    in_chunk: usize,
    items: u64,
    ended: Ended,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ended {
    No,
    Yes,
}

impl SnapshotReader {
    /// Opens a received snapshot.
    pub fn open(disk: &Arc<dyn Disk>, snapshot: &SnapshotFile) -> Result<SnapshotReader> {
        Ok(SnapshotReader {
            file: disk.open(&snapshot.path, OpenMode::Read)?,
            path: snapshot.path.clone(),
            at: 0,
            chunk: Bytes::new(),
            in_chunk: 0,
            items: 0,
            ended: Ended::No,
        })
    }

    fn corrupt(&self, detail: &str) -> Error {
        Error::Corruption { path: self.path.clone(), offset: self.at, detail: detail.into() }
    }

    fn block(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut buf = vec![0; len];
        if self.file.read_at(offset, &mut buf)? != len {
            return Err(self.corrupt("cut short"));
        }
        Ok(buf)
    }

    /// Loads the next chunk; at the file's end checks that it is whole.
    fn load(&mut self) -> Result<()> {
        let head = self.block(self.at, CHUNK_HEAD as usize)?;
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let crc = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        if len > CHUNK_BYTES_MAX {
            return Err(self.corrupt("chunk length"));
        }
        let body = self.block(self.at + CHUNK_HEAD, if len == 0 { 8 } else { len })?;
        if crc32c::crc32c(&body) != crc {
            return Err(self.corrupt("checksum"));
        }
        if len == 0 {
            if body != self.items.to_le_bytes() {
                return Err(self.corrupt("number of items"));
            }
            self.ended = Ended::Yes;
            return Ok(());
        }
        self.at += CHUNK_HEAD + len as u64;
        self.chunk = Bytes::from(body);
        self.in_chunk = 0;
        Ok(())
    }

    fn read(&mut self) -> Result<Option<(Bytes, Bytes)>> {
        while self.in_chunk >= self.chunk.len() {
            self.load()?;
            if self.ended == Ended::Yes {
                return Ok(None);
            }
        }
        let (key, value) = item(&self.chunk, self.in_chunk)?;
        self.in_chunk = value.end;
        self.items += 1;
        Ok(Some((self.chunk.slice(key), self.chunk.slice(value))))
    }
}

impl Iterator for SnapshotReader {
    type Item = Result<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended == Ended::Yes {
            return None;
        }
        let read = self.read();
        if read.is_err() {
            self.ended = Ended::Yes;
        }
        read.transpose()
    }
}
