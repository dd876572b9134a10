//! The real disk with faults on demand: no room, a sync that fails; and a small file system.

mod mount;

pub use mount::Mount;

use catamaran::env::os::OsDisk;
use catamaran::env::{DirLock, Disk, File, Irregular, OpenMode};
use catamaran::{Error, Result};
use std::collections::BTreeMap;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// What is wrong with a [`BadDisk`], and how full it is.
#[derive(Debug)]
struct Faults {
    /// Bytes that its files may take in all.
    budget: AtomicU64,
    /// Refused for want of room.
    refused: AtomicU64,
    sizes: Mutex<BTreeMap<PathBuf, u64>>,
    fail_sync: AtomicBool,
    failed: Mutex<Option<PathBuf>>,
}

/// The real disk, with faults on demand.
#[derive(Clone, Debug)]
pub struct BadDisk {
    faults: Arc<Faults>,
}

#[derive(Debug)]
struct BadFile {
    file: Arc<dyn File>,
    faults: Arc<Faults>,
    /// Written since the last sync: offset and length.
    unsynced: Mutex<Vec<(u64, usize)>>,
}

impl BadDisk {
    /// A sound disk with room for everything.
    pub fn new() -> BadDisk {
        let faults = Faults {
            budget: AtomicU64::new(u64::MAX),
            refused: AtomicU64::new(0),
            sizes: Mutex::default(),
            fail_sync: AtomicBool::new(false),
            failed: Mutex::default(),
        };
        BadDisk { faults: Arc::new(faults) }
    }

    /// Bytes that its files take.
    pub fn used(&self) -> u64 {
        self.faults.sizes.lock().unwrap().values().sum()
    }

    /// How many they may take.
    pub fn set_budget(&self, bytes: u64) {
        self.faults.budget.store(bytes, Ordering::SeqCst);
    }

    /// How often there was no room.
    pub fn refused(&self) -> u64 {
        self.faults.refused.load(Ordering::SeqCst)
    }

    /// The next sync of a file fails, and what it should have made durable is lost.
    pub fn fail_next_sync(&self) {
        self.faults.fail_sync.store(true, Ordering::SeqCst);
    }

    /// The file whose sync failed.
    pub fn failed(&self) -> Option<PathBuf> {
        self.faults.failed.lock().unwrap().clone()
    }
}

impl Faults {
    /// Makes room for a file that is to reach `end`. Bytes that it has already cost nothing.
    fn grow(&self, path: &Path, end: u64) -> Result<()> {
        let mut sizes = self.sizes.lock().unwrap();
        let has = sizes.get(path).copied().unwrap_or(0);
        let grown = end.saturating_sub(has);
        let used: u64 = sizes.values().sum();
        if grown > 0 && used.saturating_add(grown) > self.budget.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            let full = std::io::Error::from_raw_os_error(28); // ENOSPC
            return Err(Error::io("write", path, full));
        }
        sizes.insert(path.to_owned(), has.max(end));
        Ok(())
    }
}

impl Disk for BadDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>> {
        if mode == OpenMode::CreateNew {
            self.faults.grow(path, 1)?;
        }
        let file = OsDisk.open(path, mode)?;
        self.faults.sizes.lock().unwrap().insert(path.to_owned(), file.len()?);
        let faults = Arc::clone(&self.faults);
        Ok(Arc::new(BadFile { file, faults, unsynced: Mutex::default() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        OsDisk.rename(from, to)?;
        let mut sizes = self.faults.sizes.lock().unwrap();
        let size = sizes.remove(from).unwrap_or(0);
        sizes.insert(to.to_owned(), size);
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<()> {
        OsDisk.remove(path)?;
        self.faults.sizes.lock().unwrap().remove(path);
        Ok(())
    }

    fn list(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        OsDisk.list(dir)
    }

    fn list_irregular(&self, dir: &Path) -> Result<Vec<Irregular>> {
        OsDisk.list_irregular(dir)
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        OsDisk.exists(path)
    }

    fn create_dir_all(&self, dir: &Path) -> Result<()> {
        OsDisk.create_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        OsDisk.sync_dir(dir)
    }

    fn lock_dir(&self, dir: &Path) -> Result<Box<dyn DirLock>> {
        OsDisk.lock_dir(dir)
    }
}

impl File for BadFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.file.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.faults.grow(self.file.path(), offset + buf.len() as u64)?;
        self.unsynced.lock().unwrap().push((offset, buf.len()));
        self.file.write_at(offset, buf)
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        let whole: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        self.write_at(offset, &whole)
    }

    fn sync_data(&self) -> Result<()> {
        let unsynced = std::mem::take(&mut *self.unsynced.lock().unwrap());
        if self.faults.fail_sync.swap(false, Ordering::SeqCst) {
            // The kernel drops the dirty pages; a second sync would say that all is well.
            for (offset, len) in unsynced {
                self.file.write_at(offset, &vec![0; len])?;
            }
            *self.faults.failed.lock().unwrap() = Some(self.file.path().to_owned());
            let eio = std::io::Error::from_raw_os_error(5);
            return Err(Error::io("sync", self.file.path(), eio));
        }
        self.file.sync_data()
    }

    fn len(&self) -> Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.faults.grow(self.file.path(), len)?;
        self.file.set_len(len)
    }

    fn path(&self) -> &Path {
        self.file.path()
    }
}
