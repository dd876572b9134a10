//! A disk whose writes and syncs follow a rule: each may be held, or fail. [`Hold`] holds those of chosen
//! threads until the test lets each go, so that several groups are in flight and complete in an order that the
//! test chose.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so when it fails")]

use catamaran::env::{DirLock, Disk, File, Irregular, OpenMode};
use catamaran::{Error, Result};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::{ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// What is about to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    Write,
    Sync,
}

/// Decides over writes and syncs.
pub trait Rule: std::fmt::Debug + Send + Sync + 'static {
    /// Asked by the thread that is about to do it; an error is what comes of it.
    fn before(&self, call: Call, path: &Path) -> std::result::Result<(), ErrorKind>;
    /// Asked before a read.
    fn before_read(&self, _: &Path) -> std::result::Result<(), ErrorKind> {
        Ok(())
    }
    /// A sync of this thread is done.
    fn synced(&self) {}
}

thread_local! {
    static HELD: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From here on the writes and syncs of this thread are held, under this number.
pub fn hold_this_thread(number: u64) {
    HELD.set(Some(number));
}

#[derive(Default, Debug)]
struct Turns {
    waiting: BTreeSet<u64>,
    going: BTreeSet<u64>,
    synced: BTreeSet<u64>,
    /// Something went wrong: nobody is held any more.
    free: bool,
}

/// Far longer than any thread has to wait for its turn.
const PATIENCE: Duration = Duration::from_secs(100);

/// What is held.
#[derive(Default, Debug)]
pub struct Hold {
    turns: Mutex<Turns>,
    moved: Condvar,
}

/// Where a held thread is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Held {
    /// Before its next operation.
    Waits,
    /// Its sync is done.
    Synced,
}

impl Hold {
    /// Forgets everything.
    pub fn clear(&self) {
        *self.turns.lock().unwrap() = Turns::default();
    }

    /// Waits until the thread is held, or has synced. Panics if neither comes (the group found no place and
    /// waits for those that are held), and lets everybody go, so that the test ends.
    pub fn settled(&self, number: u64) -> Held {
        let mut turns = self.turns.lock().unwrap();
        loop {
            if turns.waiting.contains(&number) {
                return Held::Waits;
            }
            if turns.synced.contains(&number) {
                return Held::Synced;
            }
            let (now, late) = self.moved.wait_timeout(turns, PATIENCE).unwrap();
            turns = now;
            if late.timed_out() {
                turns.free = true;
                self.moved.notify_all();
                drop(turns);
                panic!("{number} neither writes nor syncs");
            }
        }
    }

    /// Lets a held thread do its operation.
    pub fn let_go(&self, number: u64) {
        let mut turns = self.turns.lock().unwrap();
        assert!(turns.waiting.remove(&number), "{number} is not held");
        turns.going.insert(number);
        self.moved.notify_all();
    }
}

impl Rule for Hold {
    fn before(&self, _: Call, _: &Path) -> std::result::Result<(), ErrorKind> {
        let Some(number) = HELD.get() else { return Ok(()) };
        let mut turns = self.turns.lock().unwrap();
        turns.waiting.insert(number);
        self.moved.notify_all();
        while !turns.going.remove(&number) && !turns.free {
            turns = self.moved.wait(turns).unwrap();
        }
        Ok(())
    }

    fn synced(&self) {
        let Some(number) = HELD.get() else { return };
        self.turns.lock().unwrap().synced.insert(number);
        self.moved.notify_all();
    }
}

/// The disk. Clones share it.
#[derive(Debug)]
pub struct HoldDisk<R = Hold> {
    inner: Arc<dyn Disk>,
    pub hold: Arc<R>,
}

#[derive(Debug)]
struct HoldFile<R> {
    file: Arc<dyn File>,
    hold: Arc<R>,
}

impl<R: Default> HoldDisk<R> {
    pub fn over(inner: Arc<dyn Disk>) -> HoldDisk<R> {
        HoldDisk { inner, hold: Arc::default() }
    }
}

impl<R> Clone for HoldDisk<R> {
    fn clone(&self) -> HoldDisk<R> {
        HoldDisk { inner: self.inner.clone(), hold: self.hold.clone() }
    }
}

impl<R: Rule> Disk for HoldDisk<R> {
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>> {
        let file = self.inner.open(path, mode)?;
        Ok(Arc::new(HoldFile { file, hold: self.hold.clone() }))
    }
    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.inner.rename(from, to)
    }
    fn remove(&self, path: &Path) -> Result<()> {
        self.inner.remove(path)
    }
    fn list(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        self.inner.list(dir)
    }
    fn list_irregular(&self, dir: &Path) -> Result<Vec<Irregular>> {
        self.inner.list_irregular(dir)
    }
    fn exists(&self, path: &Path) -> Result<bool> {
        self.inner.exists(path)
    }
    fn create_dir_all(&self, dir: &Path) -> Result<()> {
        self.inner.create_dir_all(dir)
    }
    fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.inner.sync_dir(dir)
    }
    fn lock_dir(&self, dir: &Path) -> Result<Box<dyn DirLock>> {
        self.inner.lock_dir(dir)
    }
}

impl<R: Rule> HoldFile<R> {
    fn turn(&self, call: Call) -> Result<()> {
        let what = if call == Call::Write { "write" } else { "sync" };
        let path = self.file.path();
        self.hold.before(call, path).map_err(|kind| Error::io(what, path, kind.into()))
    }
}

impl<R: Rule> File for HoldFile<R> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let path = self.file.path();
        self.hold.before_read(path).map_err(|kind| Error::io("read", path, kind.into()))?;
        self.file.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.turn(Call::Write)?;
        self.file.write_at(offset, buf)
    }
    fn write_vectored_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        self.turn(Call::Write)?;
        self.file.write_vectored_at(offset, bufs)
    }
    fn sync_data(&self) -> Result<()> {
        self.turn(Call::Sync)?;
        let done = self.file.sync_data();
        self.hold.synced();
        done
    }
    fn len(&self) -> Result<u64> {
        self.file.len()
    }
    fn set_len(&self, len: u64) -> Result<()> {
        self.file.set_len(len)
    }
    fn path(&self) -> &Path {
        self.file.path()
    }
}
