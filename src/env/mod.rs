//! The seams to the outside world. The deterministic zone reaches the disk only through [`Disk`] and
//! [`File`]; the clock and randomness come in as arguments ([`crate::types::Time`], seeds). [`os`] is
//! the real thing, [`mem`] keeps everything in memory and never fails, `sim::disk` is the seeded one
//! that loses what was not synced.
//!
//! Not done: making or following links, and permissions, since no room needs them.

#[cfg(test)]
mod disk_tests;
pub mod mem;
pub mod os;
pub(crate) mod pages;

use crate::error::{Error, Result};
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How to open a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// Existing, for reading.
    Read,
    /// Existing, for reading and writing.
    ReadWrite,
    /// New (fails if it exists), for reading and writing.
    CreateNew,
    /// Existing, for reading and writing, and meant for writes of whole blocks (4 KiB, at such
    /// offsets, from memory so aligned) that are synced at once: where the system can, those go past
    /// its page cache. Any other write works too. Its syncs cover its own writes at least.
    Direct,
}

/// An entry of a directory that is no regular file.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Irregular {
    /// Its name in the directory.
    pub name: PathBuf,
    /// What it is, in words, with an article: a directory, a symbolic link to somewhere.
    pub what: String,
}

impl Irregular {
    /// Those of the directories `dirs` that lie in `dir`, for disks that have no other irregular entries.
    pub(crate) fn directories(dirs: &BTreeSet<PathBuf>, dir: &Path) -> Vec<Irregular> {
        let inside = dirs.iter().filter(|path| path.parent() == Some(dir));
        let names = inside.filter_map(|path| path.file_name());
        names.map(|name| Irregular { name: name.into(), what: A_DIRECTORY.into() }).collect()
    }
}

const A_DIRECTORY: &str = "a directory";

/// Whoever holds it holds the directory. Dropping it lets go.
pub trait DirLock: Send + Sync + Debug {}

/// A piece of work that a [`Disk`] may do beside others.
pub type Job<'a> = Box<dyn FnOnce() + Send + 'a>;

/// A directory tree on some disk.
///
/// Durability follows POSIX: a file's bytes survive a crash after [`File::sync_data`]; its creation,
/// rename or removal survives after [`Disk::sync_dir`] of the directory.
pub trait Disk: Send + Sync + Debug + 'static {
    /// Opens a file.
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>>;
    /// Renames a file, replacing the target atomically.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> Result<()>;
    /// Names of the regular files of a directory, sorted.
    fn list(&self, dir: &Path) -> Result<Vec<PathBuf>>;
    /// What else is in a directory, by name: links (whatever they point to), directories, devices.
    /// [`list`](Self::list) passes over them, so whoever expects a file under a certain name asks here
    /// whether something else has it.
    fn list_irregular(&self, dir: &Path) -> Result<Vec<Irregular>>;
    /// Whether a file or directory exists.
    fn exists(&self, path: &Path) -> Result<bool>;
    /// Makes a directory and its parents, durably.
    fn create_dir_all(&self, dir: &Path) -> Result<()>;
    /// Makes creations, renames and removals in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> Result<()>;
    /// Takes the exclusive lock of a directory ([`crate::Error::Locked`] if another has it).
    fn lock_dir(&self, dir: &Path) -> Result<Box<dyn DirLock>>;
    /// Whether writing and syncing take no longer than copying: a thread that waits for it elsewhere costs more
    /// than it saves.
    fn is_instant(&self) -> bool {
        false
    }
    /// How many jobs are worth running beside each other; at least 1.
    fn hands(&self) -> usize {
        1
    }
    /// Runs jobs that read, perhaps beside each other, and returns when all are done. Whatever their order,
    /// the outcome must be the same. Unless a disk does otherwise: one after the other.
    fn run(&self, jobs: Vec<Job<'_>>) {
        jobs.into_iter().for_each(|job| job());
    }
}

/// An open file. Offsets are absolute: no cursor, so reads may run beside a write.
pub trait File: Send + Sync + Debug + 'static {
    /// Reads up to `buf.len()` bytes; fewer only at the end of the file.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize>;
    /// The bytes from `offset` on, `len` of them or as many as the file has. What comes back short of that is
    /// read on; a file that then has fewer bytes than it says is an error, never taken for a shorter file.
    fn read_up_to(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let there = self.len()?.saturating_sub(offset);
        let mut bytes = vec![0; usize::try_from(there).map_or(len, |there| there.min(len))];
        let mut done = 0;
        while done < bytes.len() {
            match self.read_at(offset + done as u64, &mut bytes[done..])? {
                0 => {
                    let ended = std::io::ErrorKind::UnexpectedEof.into();
                    return Err(Error::io("read", self.path(), ended));
                }
                n => done += n,
            }
        }
        Ok(bytes)
    }
    /// Writes everything or fails.
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()>;
    /// Writes the slices one after the other, everything or fails.
    fn write_vectored_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()>;
    /// Makes the file's bytes (and its size) durable. May run beside writes and other syncs: it covers
    /// what was written before it began. After an error the file must not be used again.
    fn sync_data(&self) -> Result<()>;
    /// Size in bytes.
    fn len(&self) -> Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or extends (with zeros) the file.
    fn set_len(&self, len: u64) -> Result<()>;
    /// The path it was opened by, for messages.
    fn path(&self) -> &Path;
}
