//! A disk in memory that keeps a journal of what was done to it, so that a test can stand at any
//! operation and ask what a crash could have left behind.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so when it fails")]
#![allow(dead_code, reason = "each test file uses its part")]

pub mod crash;
pub mod faults;
pub mod hold;
pub mod sectors;

#[allow(unused_imports, reason = "each test file uses its part")]
pub use crash::{Crash, Survivors};

use catamaran::env::{DirLock, Disk, File, Irregular, OpenMode};
use catamaran::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error as IoError, ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// What was done to the disk.
#[derive(Clone, Debug)]
pub enum Step {
    Write {
        inode: u64,
        at: u64,
        bytes: Vec<u8>,
    },
    SetLen {
        inode: u64,
        len: u64,
    },
    Sync {
        inode: u64,
    },
    Create {
        path: PathBuf,
        inode: u64,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Remove {
        path: PathBuf,
    },
    SyncDir,
    /// From here on the test may rely on this record being durable.
    Acked(u64),
}

/// Files and names. A copy shares the bytes of files until one of the two changes them.
#[derive(Clone, Default, Debug)]
pub struct Image {
    pub files: BTreeMap<u64, Arc<Vec<u8>>>,
    pub names: BTreeMap<PathBuf, u64>,
}

impl Image {
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Write { inode, at, bytes } => {
                let file = Arc::make_mut(self.files.entry(*inode).or_default());
                let end = *at as usize + bytes.len();
                if file.len() < end {
                    file.resize(end, 0);
                }
                file[*at as usize..end].copy_from_slice(bytes);
            }
            Step::SetLen { inode, len } => {
                let file = Arc::make_mut(self.files.entry(*inode).or_default());
                file.resize(*len as usize, 0);
            }
            Step::Create { path, inode } => {
                self.names.insert(path.clone(), *inode);
                self.files.entry(*inode).or_default();
            }
            Step::Rename { from, to } => {
                if let Some(inode) = self.names.remove(from) {
                    self.names.insert(to.clone(), inode);
                }
            }
            Step::Remove { path } => {
                self.names.remove(path);
            }
            Step::Sync { .. } | Step::SyncDir | Step::Acked(_) => {}
        }
    }

    /// Forgets files that have no name.
    pub fn trim(&mut self) {
        let named: BTreeSet<u64> = self.names.values().copied().collect();
        self.files.retain(|inode, _| named.contains(inode));
    }
}

#[derive(Default, Debug)]
pub struct State {
    pub image: Image,
    pub journal: Vec<Step>,
    next_inode: u64,
    locked: bool,
    /// Syncs that still succeed; then they fail.
    pub syncs_left: Option<u64>,
    /// Total bytes that fit.
    pub capacity: Option<u64>,
}

/// The disk. Clones share it.
#[derive(Clone, Default, Debug)]
pub struct MemDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct MemFile {
    disk: MemDisk,
    inode: u64,
    path: PathBuf,
}

#[derive(Debug)]
struct MemLock(MemDisk);

impl DirLock for MemLock {}

impl Drop for MemLock {
    fn drop(&mut self) {
        self.0.state().locked = false;
    }
}

impl MemDisk {
    pub fn of(image: Image) -> MemDisk {
        let next_inode = image.files.keys().last().map_or(0, |n| n + 1);
        MemDisk::numbered(image, next_inode)
    }

    /// As [`of`](Self::of); new files get numbers above `next_inode`.
    pub fn numbered(image: Image, next_inode: u64) -> MemDisk {
        MemDisk(Arc::new(Mutex::new(State { image, next_inode, ..State::default() })))
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub fn acked(&self, seq: u64) {
        self.state().journal.push(Step::Acked(seq));
    }

    fn step(&self, step: Step) {
        let mut state = self.state();
        state.image.apply(&step);
        state.journal.push(step);
    }
}

impl Disk for MemDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>> {
        let known = self.state().image.names.get(path).copied();
        let inode = match (known, mode) {
            (Some(_), OpenMode::CreateNew) => {
                return Err(Error::io("open", path, ErrorKind::AlreadyExists.into()));
            }
            (None, OpenMode::CreateNew) => {
                let inode = {
                    let mut state = self.state();
                    state.next_inode += 1;
                    state.next_inode
                };
                self.step(Step::Create { path: path.to_owned(), inode });
                inode
            }
            (Some(inode), _) => inode,
            (None, _) => return Err(Error::io("open", path, ErrorKind::NotFound.into())),
        };
        Ok(Arc::new(MemFile { disk: self.clone(), inode, path: path.to_owned() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        assert!(self.state().image.names.contains_key(from), "rename of {from:?}");
        self.step(Step::Rename { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<()> {
        assert!(self.state().image.names.contains_key(path), "remove of {path:?}");
        self.step(Step::Remove { path: path.to_owned() });
        self.state().image.trim();
        Ok(())
    }

    fn list(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        let state = self.state();
        let names = state.image.names.keys();
        Ok(names.filter_map(|p| p.strip_prefix(dir).ok().map(PathBuf::from)).collect())
    }

    fn list_irregular(&self, _: &Path) -> Result<Vec<Irregular>> {
        // It has files and one directory.
        Ok(Vec::new())
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        Ok(self.state().image.names.keys().any(|p| p.starts_with(path)))
    }

    fn create_dir_all(&self, _dir: &Path) -> Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _dir: &Path) -> Result<()> {
        self.step(Step::SyncDir);
        Ok(())
    }

    fn lock_dir(&self, dir: &Path) -> Result<Box<dyn DirLock>> {
        let mut state = self.state();
        if state.locked {
            return Err(Error::Locked(dir.to_owned()));
        }
        state.locked = true;
        Ok(Box::new(MemLock(self.clone())))
    }
}

impl File for MemFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let state = self.disk.state();
        let bytes = state.image.files.get(&self.inode).map_or(&[][..], |f| f.as_slice());
        let rest = bytes.get(offset as usize..).unwrap_or(&[]);
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        {
            let state = self.disk.state();
            let used: u64 = state.image.files.values().map(|f| f.len() as u64).sum();
            let len = state.image.files.get(&self.inode).map_or(0, |f| f.len() as u64);
            let grows = (offset + buf.len() as u64).saturating_sub(len);
            if grows > 0 && state.capacity.is_some_and(|capacity| used + grows > capacity) {
                return Err(Error::io("write", &self.path, ErrorKind::StorageFull.into()));
            }
        }
        self.disk.step(Step::Write { inode: self.inode, at: offset, bytes: buf.to_vec() });
        Ok(())
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        let all: Vec<u8> = bufs.iter().flat_map(|b| b.iter().copied()).collect();
        self.write_at(offset, &all)
    }

    fn sync_data(&self) -> Result<()> {
        {
            let mut state = self.disk.state();
            match &mut state.syncs_left {
                Some(0) => {
                    return Err(Error::io("sync", &self.path, IoError::other("EIO")));
                }
                Some(n) => *n -= 1,
                None => {}
            }
        }
        self.disk.step(Step::Sync { inode: self.inode });
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        Ok(self.disk.state().image.files.get(&self.inode).map_or(0, |f| f.len() as u64))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.disk.step(Step::SetLen { inode: self.inode, len });
        Ok(())
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// A small generator (xorshift), so that a failing image can be found again.
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % sides.max(1)
    }
}
