//! A disk whose n-th operation fails, over any other; and one that has only so much room.

use super::{MemDisk, Step};
use catamaran::env::{DirLock, Disk, File, Irregular, OpenMode};
use catamaran::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error as IoError, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// How an operation fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The device failed.
    Eio,
    /// No room for a file to grow.
    Enospc,
    /// No room, not even to overwrite: a file system that copies on write.
    EnospcOnOverwrite,
    /// Interrupted, and nobody below tried again.
    Eintr,
    /// A read returns fewer bytes than there are. Other operations succeed.
    ShortRead,
    /// A write leaves its first part on the disk, then fails. Other operations succeed.
    ShortWrite,
    /// A sector in the middle of what a read asks for cannot be read from now on, until it is written. Other operations
    /// succeed.
    BadSector,
}

/// Bytes of a sector.
pub const SECTOR: u64 = 512;

/// What was asked of the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    Open,
    Create,
    Rename,
    Remove,
    List,
    Exists,
    MakeDir,
    SyncDir,
    Lock,
    Read,
    /// Makes the file longer.
    Write,
    /// Within the file.
    Overwrite,
    Sync,
    Len,
    SetLen,
}

#[derive(Debug, Default)]
pub struct Plan {
    /// Operations so far.
    pub calls: u64,
    /// Neither counts nor fails operations.
    pub paused: bool,
    /// Which operation fails, counted from 0, and how.
    pub at: Option<(u64, Fault)>,
    /// The next sync of a file fails.
    pub fail_next_sync: bool,
    /// From the fault on nothing that grows a file succeeds, until there is room again.
    pub full: bool,
    /// So full that nothing can be written, not even over what is there.
    pub stuffed: bool,
    /// What failed, once it has.
    pub hit: Option<(Call, PathBuf)>,
    /// Bytes that files may still grow by.
    pub room: Option<u64>,
    /// Sectors that cannot be read, by file: where they begin.
    pub bad: BTreeMap<PathBuf, BTreeSet<u64>>,
    /// Every read fails like this.
    pub reads_fail: Option<i32>,
    sizes: BTreeMap<PathBuf, u64>,
}

/// The disk. Clones share it.
#[derive(Clone, Debug)]
pub struct FaultDisk {
    inner: Arc<dyn Disk>,
    /// What a failed sync was to make durable is lost here.
    journal: Option<MemDisk>,
    plan: Arc<Mutex<Plan>>,
}

#[derive(Debug)]
struct FaultFile {
    file: Arc<dyn File>,
    disk: FaultDisk,
}

fn error(fault: Fault, call: Call, path: &Path) -> Error {
    let code = match fault {
        Fault::Enospc | Fault::EnospcOnOverwrite => 28,
        Fault::Eintr => 4,
        Fault::Eio | Fault::ShortRead | Fault::ShortWrite | Fault::BadSector => 5,
    };
    let op = match call {
        Call::Open | Call::Create => "open",
        Call::Rename => "rename",
        Call::Remove => "remove",
        Call::List => "list",
        Call::Exists | Call::Len => "stat",
        Call::MakeDir => "mkdir",
        Call::SyncDir => "sync directory",
        Call::Lock => "lock",
        Call::Read => "read",
        Call::Write | Call::Overwrite => "write",
        Call::Sync => "sync",
        Call::SetLen => "set length of",
    };
    Error::io(op, path, IoError::from_raw_os_error(code))
}

/// Takes from the journal what was written to a file since its last sync: no crash finds it.
fn lose_unsynced(disk: &MemDisk, path: &Path) {
    let mut state = disk.state();
    let Some(lost) = state.image.names.get(path).copied() else { return };
    let synced = |step: &Step| matches!(step, Step::Sync { inode } if *inode == lost);
    let from = state.journal.iter().rposition(synced).map_or(0, |at| at + 1);
    let mut at = 0;
    state.journal.retain(|step| {
        at += 1;
        let theirs = match step {
            Step::Write { inode, .. } | Step::SetLen { inode, .. } => *inode == lost,
            _ => false,
        };
        at <= from || !theirs
    });
}

impl FaultDisk {
    pub fn over(inner: Arc<dyn Disk>) -> FaultDisk {
        FaultDisk { inner, journal: None, plan: Arc::default() }
    }

    /// Over a disk that keeps a journal. A failed sync drops what it was about, as a kernel does: it can
    /// still be read, and no later sync makes it durable.
    pub fn over_journal(disk: &MemDisk) -> FaultDisk {
        let journal = Some(disk.clone());
        FaultDisk { inner: Arc::new(disk.clone()), journal, plan: Arc::default() }
    }

    pub fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap()
    }

    /// Whether this operation is the one to fail, and how.
    fn turn(&self, call: Call, path: &Path) -> Option<Fault> {
        let mut plan = self.plan();
        if plan.paused {
            return None;
        }
        let n = plan.calls;
        plan.calls += 1;
        if plan.stuffed && matches!(call, Call::Create | Call::Write | Call::Overwrite) {
            return Some(Fault::Enospc);
        }
        if call == Call::Sync && std::mem::take(&mut plan.fail_next_sync) {
            plan.hit = Some((call, path.to_owned()));
            return Some(Fault::Eio);
        }
        let fault = plan.at.filter(|(at, _)| *at == n).map(|(_, fault)| fault)?;
        let concerned = match fault {
            Fault::ShortRead | Fault::BadSector => call == Call::Read,
            Fault::ShortWrite => matches!(call, Call::Write | Call::Overwrite),
            // A full disk still renames, removes, reads.
            Fault::Enospc => {
                matches!(call, Call::Create | Call::Write | Call::SetLen | Call::Sync)
            }
            Fault::EnospcOnOverwrite => call == Call::Overwrite,
            Fault::Eio | Fault::Eintr => true,
        };
        if concerned {
            plan.hit = Some((call, path.to_owned()));
            // A disk that was full for one operation is full for the next.
            plan.full |= matches!(fault, Fault::Enospc | Fault::EnospcOnOverwrite);
        }
        concerned.then_some(fault)
    }

    /// Whether the disk can read these bytes at all.
    fn readable(&self, path: &Path, offset: u64, len: u64) -> Result<()> {
        let plan = self.plan();
        if plan.paused || len == 0 {
            return Ok(());
        }
        if let Some(code) = plan.reads_fail {
            return Err(Error::io("read", path, IoError::from_raw_os_error(code)));
        }
        let from = (offset + 1).saturating_sub(SECTOR);
        match plan.bad.get(path).map(|bad| bad.range(from..offset + len).count()) {
            None | Some(0) => Ok(()),
            Some(_) => Err(error(Fault::BadSector, Call::Read, path)),
        }
    }

    /// These bytes were written: the disk has found other sectors for them.
    fn heal(&self, path: &Path, offset: u64, end: u64) {
        if let Some(bad) = self.plan().bad.get_mut(path) {
            bad.retain(|at| at + SECTOR <= offset || *at >= end);
        }
    }

    fn check(&self, call: Call, path: &Path) -> Result<()> {
        match self.turn(call, path) {
            Some(Fault::ShortRead | Fault::ShortWrite | Fault::BadSector) | None => Ok(()),
            Some(fault) => Err(error(fault, call, path)),
        }
    }

    /// Whether the file may reach `end`.
    fn grow(&self, path: &Path, end: u64, call: Call) -> Result<()> {
        let mut plan = self.plan();
        let has = plan.sizes.get(path).copied().unwrap_or(0);
        let grown = end.saturating_sub(has);
        let fits = !plan.full && plan.room.is_none_or(|room| grown <= room);
        if grown > 0 && !fits {
            return Err(error(Fault::Enospc, call, path));
        }
        plan.room = plan.room.map(|room| room - grown);
        plan.sizes.insert(path.to_owned(), has.max(end));
        Ok(())
    }
}

impl Disk for FaultDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>> {
        let call = if mode == OpenMode::CreateNew { Call::Create } else { Call::Open };
        self.check(call, path)?;
        if mode == OpenMode::CreateNew && self.plan().full {
            return Err(error(Fault::Enospc, call, path));
        }
        let file = self.inner.open(path, mode)?;
        self.plan().sizes.insert(path.to_owned(), file.len()?);
        Ok(Arc::new(FaultFile { file, disk: self.clone() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.check(Call::Rename, from)?;
        self.inner.rename(from, to)?;
        let mut plan = self.plan();
        let size = plan.sizes.remove(from).unwrap_or(0);
        plan.sizes.insert(to.to_owned(), size);
        let bad = plan.bad.remove(from).unwrap_or_default();
        plan.bad.insert(to.to_owned(), bad);
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.check(Call::Remove, path)?;
        self.inner.remove(path)?;
        let mut plan = self.plan();
        let size = plan.sizes.remove(path).unwrap_or(0);
        plan.bad.remove(path);
        plan.room = plan.room.map(|room| room + size);
        Ok(())
    }

    fn list(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        self.check(Call::List, dir)?;
        self.inner.list(dir)
    }

    fn list_irregular(&self, dir: &Path) -> Result<Vec<Irregular>> {
        self.check(Call::List, dir)?;
        self.inner.list_irregular(dir)
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        self.check(Call::Exists, path)?;
        self.inner.exists(path)
    }

    fn create_dir_all(&self, dir: &Path) -> Result<()> {
        self.check(Call::MakeDir, dir)?;
        self.inner.create_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.check(Call::SyncDir, dir)?;
        self.inner.sync_dir(dir)
    }

    fn lock_dir(&self, dir: &Path) -> Result<Box<dyn DirLock>> {
        self.check(Call::Lock, dir)?;
        self.inner.lock_dir(dir)
    }
}

impl File for FaultFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let turn = self.disk.turn(Call::Read, self.path());
        let there = self.file.len()?.saturating_sub(offset).min(buf.len() as u64);
        if turn == Some(Fault::BadSector) {
            let middle = (offset + there / 2) / SECTOR * SECTOR;
            self.disk.plan().bad.entry(self.path().to_owned()).or_default().insert(middle);
        }
        self.disk.readable(self.path(), offset, there)?;
        match turn {
            Some(Fault::BadSector) => self.file.read_at(offset, buf),
            Some(Fault::ShortRead) => {
                let some = buf.len() / 2;
                self.file.read_at(offset, &mut buf[..some])
            }
            Some(fault) => Err(error(fault, Call::Read, self.path())),
            None => self.file.read_at(offset, buf),
        }
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let end = offset + buf.len() as u64;
        let call = if end > self.file.len()? { Call::Write } else { Call::Overwrite };
        match self.disk.turn(call, self.path()) {
            Some(Fault::ShortWrite) => {
                let some = buf.len() / 2;
                self.file.write_at(offset, &buf[..some])?;
                return Err(error(Fault::ShortWrite, call, self.path()));
            }
            Some(fault) => return Err(error(fault, call, self.path())),
            None => {}
        }
        self.disk.grow(self.path(), end, call)?;
        self.file.write_at(offset, buf)?;
        self.disk.heal(self.path(), offset, end);
        Ok(())
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        let whole: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        self.write_at(offset, &whole)
    }

    fn sync_data(&self) -> Result<()> {
        match self.disk.turn(Call::Sync, self.path()) {
            Some(Fault::ShortRead | Fault::ShortWrite | Fault::BadSector) | None => {
                self.file.sync_data()
            }
            Some(fault) => {
                if let Some(journal) = &self.disk.journal {
                    lose_unsynced(journal, self.path());
                }
                Err(error(fault, Call::Sync, self.path()))
            }
        }
    }

    fn len(&self) -> Result<u64> {
        self.disk.check(Call::Len, self.path())?;
        self.file.len()
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.disk.check(Call::SetLen, self.path())?;
        self.disk.grow(self.path(), len, Call::SetLen)?;
        self.file.set_len(len)
    }

    fn path(&self) -> &Path {
        self.file.path()
    }
}
