//! A file system for raft-engine that fails on demand and forgets what was not synced, by the seam that
//! the engine offers for that (`FileSystem`).
//!
//! It is kinder than a real one: names (creation, rename, removal) and lengths are durable at once, and a
//! write that was not synced is there whole or not at all, the earlier before the later of its file.

use raft_engine::env::{DefaultFileSystem, FileSystem, Handle, Permission, WriteExt};
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Read, Result, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type InnerHandle = <DefaultFileSystem as FileSystem>::Handle;
type InnerReader = <DefaultFileSystem as FileSystem>::Reader;
type InnerWriter = <DefaultFileSystem as FileSystem>::Writer;

/// What goes wrong, and what is not synced.
#[derive(Default, Debug)]
pub struct Shaky {
    state: Mutex<State>,
}

#[derive(Default, Debug)]
struct State {
    fail_next_sync: bool,
    room: Option<u64>,
    /// Of each file: writes since its last sync, as place and what was there before.
    unsynced: BTreeMap<PathBuf, Vec<(u64, Vec<u8>)>>,
}

impl Shaky {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the next sync fail.
    pub fn fail_next_sync(&self) {
        self.state().fail_next_sync = true;
    }

    /// Lets so many bytes more be written.
    pub fn limit_space(&self, more: Option<u64>) {
        self.state().room = more;
    }

    /// Undoes of each file all writes that were not synced but the first few.
    pub fn cut_power(&self, seed: u64) -> Result<()> {
        let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for (path, writes) in std::mem::take(&mut self.state().unsynced) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            let kept = (x % (writes.len() as u64 + 1)) as usize;
            let file = match std::fs::OpenOptions::new().write(true).open(&path) {
                Ok(file) => file,
                // Purged meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            for (at, before) in writes[kept..].iter().rev() {
                file.write_all_at(before, *at)?;
            }
        }
        Ok(())
    }

    fn before_write(&self, path: &Path, at: u64, len: usize) -> Result<()> {
        let mut state = self.state();
        if let Some(room) = &mut state.room {
            match room.checked_sub(len as u64) {
                Some(left) => *room = left,
                // The words that the engine knows a full disk by.
                None => return Err(Error::new(ErrorKind::StorageFull, "nospace")),
            }
        }
        let mut before = vec![0; len];
        let file = std::fs::File::open(path)?;
        let mut done = 0;
        while done < len {
            match file.read_at(&mut before[done..], at + done as u64)? {
                0 => break,
                n => done += n,
            }
        }
        state.unsynced.entry(path.to_owned()).or_default().push((at, before));
        Ok(())
    }

    fn moved(&self, from: &Path, to: &Path) {
        let mut state = self.state();
        if let Some(writes) = state.unsynced.remove(from) {
            state.unsynced.insert(to.to_owned(), writes);
        }
    }
}

/// The file system.
pub struct ShakyFs(pub Arc<Shaky>);

/// A file of it.
pub struct ShakyHandle {
    inner: Arc<InnerHandle>,
    path: PathBuf,
    shaky: Arc<Shaky>,
}

/// Writes a file of it.
pub struct ShakyWriter {
    inner: InnerWriter,
    handle: Arc<ShakyHandle>,
}

impl ShakyFs {
    fn handle(&self, inner: InnerHandle, path: &Path) -> ShakyHandle {
        let shaky = Arc::clone(&self.0);
        ShakyHandle { inner: Arc::new(inner), path: path.to_owned(), shaky }
    }
}

impl FileSystem for ShakyFs {
    type Handle = ShakyHandle;
    type Reader = InnerReader;
    type Writer = ShakyWriter;

    fn create<P: AsRef<Path>>(&self, path: P) -> Result<ShakyHandle> {
        Ok(self.handle(DefaultFileSystem.create(&path)?, path.as_ref()))
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> Result<ShakyHandle> {
        Ok(self.handle(DefaultFileSystem.open(&path, permission)?, path.as_ref()))
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> Result<()> {
        self.0.state().unsynced.remove(path.as_ref());
        DefaultFileSystem.delete(path)
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> Result<()> {
        self.0.moved(from.as_ref(), to.as_ref());
        DefaultFileSystem.rename(from, to)
    }

    fn new_reader(&self, handle: Arc<ShakyHandle>) -> Result<InnerReader> {
        DefaultFileSystem.new_reader(Arc::clone(&handle.inner))
    }

    fn new_writer(&self, handle: Arc<ShakyHandle>) -> Result<ShakyWriter> {
        let inner = DefaultFileSystem.new_writer(Arc::clone(&handle.inner))?;
        Ok(ShakyWriter { inner, handle })
    }
}

impl Handle for ShakyHandle {
    fn truncate(&self, offset: usize) -> Result<()> {
        self.inner.truncate(offset)
    }

    fn file_size(&self) -> Result<usize> {
        self.inner.file_size()
    }

    fn sync(&self) -> Result<()> {
        if std::mem::take(&mut self.shaky.state().fail_next_sync) {
            return Err(Error::other("the disk failed"));
        }
        self.inner.sync()?;
        self.shaky.state().unsynced.remove(&self.path);
        Ok(())
    }
}

impl Seek for ShakyWriter {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        self.inner.seek(to)
    }
}

impl Read for ShakyWriter {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        self.inner.read(buf)
    }
}

impl Write for ShakyWriter {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let at = self.inner.stream_position()?;
        self.handle.shaky.before_write(&self.handle.path, at, bytes.len())?;
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> Result<()> {
        self.inner.flush()
    }
}

impl WriteExt for ShakyWriter {
    fn truncate(&mut self, offset: usize) -> Result<()> {
        self.inner.truncate(offset)
    }

    fn allocate(&mut self, offset: usize, size: usize) -> Result<()> {
        self.inner.allocate(offset, size)
    }
}
