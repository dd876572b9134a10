//! A disk that keeps its promises and nothing more. What was synced is there after a crash; of what
//! was not, a seeded part is: some writes whole, some torn at sectors, some not at all. Names are
//! durable after the directory was synced; of the unsynced changes of a directory a prefix survives.
//!
//! One [`SimDisk`] stands for one node's disk and outlives the node's crashes: drop everything the
//! node had, call [`SimDisk::crash`], open again. File handles and locks from before a crash are dead:
//! their operations fail, so a part of the node that was not torn down cannot write into the new life.
//!
//! A failed sync behaves as page caches do: the bytes stay readable, a part of them never reaches the
//! platter, and the next sync succeeds without them. Code that retries a sync is found out by the next
//! crash.
//!
//! Not done: rot of names, misdirected writes (checksums that name their place catch both alike), and
//! the loss of synced bytes by a lying drive (nothing above could survive it).

mod fault;
mod file;
mod platter;
#[cfg(test)]
mod tests;

pub use fault::{Faults, Fires, Speed};
use file::{SimFile, SimLock};
use platter::{Change, DirOp, Platter};

use super::rng::Rng;
use crate::env::{DirLock, Disk, File, Irregular, OpenMode};
use crate::error::{Error, Result};
use parking_lot::Mutex;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A seeded disk in memory. Clones are handles to the same disk; [`fork`](Self::fork) copies it.
///
/// - Synced bytes and synced names survive every crash; only [`rot`](Self::rot) harms them.
/// - What survives depends on the seed and on the operations before, on nothing else.
#[derive(Clone, Debug)]
pub struct SimDisk {
    state: Arc<Mutex<Platter>>,
}

/// What was asked of a disk since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Reads of files.
    pub reads: u64,
    /// Writes, vectored ones counting once, and changes of length.
    pub writes: u64,
    /// Syncs of files.
    pub syncs: u64,
    /// Creations, renames and removals.
    pub dir_changes: u64,
    /// Syncs of directories.
    pub dir_syncs: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Crashes.
    pub crashes: u64,
    /// Operations failed on purpose.
    pub faults: u64,
}

impl Counts {
    /// Operations that change the disk or its durable part: what [`Faults::power_off_after`] counts.
    pub fn changes(&self) -> u64 {
        self.writes + self.syncs + self.dir_changes + self.dir_syncs
    }
}

/// How kind a crash is to what was not synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mercy {
    /// One of the others, drawn.
    Drawn,
    /// Everything that was written is there (a killed process).
    All,
    /// Nothing that was not synced is there.
    None,
    /// Writes up to some point, the last of them torn.
    Prefix,
    /// Any subset, each possibly torn at sectors or with a garbled sector.
    Subset,
}

impl SimDisk {
    /// An empty disk without faults.
    pub fn new(seed: u64) -> SimDisk {
        SimDisk { state: Arc::new(Mutex::new(Platter::new(Rng::new(seed)))) }
    }

    /// A copy of the disk in its present state, with what is unsynced, the faults and the counts.
    /// Cheap: the bytes are shared until written. Open handles stay with the original.
    pub fn fork(&self) -> SimDisk {
        let mut copy = self.state.lock().clone();
        copy.era += 1;
        copy.locks.clear();
        SimDisk { state: Arc::new(Mutex::new(copy)) }
    }

    /// Sets what goes wrong from now on. Counts of operations go on.
    pub fn set_faults(&self, faults: Faults) {
        self.state.lock().faults = faults;
    }

    /// Changes what goes wrong.
    pub fn alter_faults(&self, alter: impl FnOnce(&mut Faults)) {
        alter(&mut self.state.lock().faults);
    }

    /// The node is gone, by power or by kill: what is unsynced survives as far as `mercy` and the seed
    /// say, locks are released, handles are dead, and the power is on again.
    pub fn crash(&self, mercy: Mercy) {
        self.state.lock().crash(mercy);
    }

    /// The disk as a crash now would leave it; this one goes on. For crashes at every boundary.
    pub fn crash_image(&self, mercy: Mercy) -> SimDisk {
        let image = self.fork();
        image.crash(mercy);
        image
    }

    /// Flips bits of one synced byte: rot. Nothing is told.
    pub fn rot(&self, path: &Path, offset: u64, mask: u8) -> Result<()> {
        self.state.lock().rot(path, offset, mask)
    }

    /// Flips one drawn bit of one drawn synced byte in a file whose name `wanted` accepts; says which.
    pub fn rot_somewhere(&self, wanted: impl Fn(&Path) -> bool) -> Option<(PathBuf, u64)> {
        self.state.lock().rot_somewhere(wanted)
    }

    /// How long the disk was busy with what was asked since the last call: the world delays the
    /// completions by it. Zero unless [`Faults::speed`] says otherwise.
    pub fn take_busy(&self) -> Duration {
        std::mem::take(&mut self.state.lock().busy)
    }

    /// What was asked so far.
    pub fn counts(&self) -> Counts {
        self.state.lock().counts
    }

    /// Bytes of all files that have a name.
    pub fn used(&self) -> u64 {
        self.state.lock().used()
    }

    /// Writes not yet synced, over all files, and changes of directories not yet synced.
    pub fn unsynced(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.inodes.values().map(|node| node.unsynced.len()).sum(), state.dir_ops.len())
    }

    /// Whether [`Faults::power_off_after`] has struck: everything fails until the next crash.
    pub fn is_off(&self) -> bool {
        self.state.lock().off
    }
}

/// An error of the kind an operating system would give.
fn failed<T>(op: &'static str, path: &Path, kind: ErrorKind) -> Result<T> {
    Err(Error::io(op, path, kind.into()))
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>> {
        let mut state = self.state.lock();
        state.expect_on("open", path)?;
        state.expect_parent("open", path)?;
        let inode = match (mode, state.names.get(path).copied()) {
            (OpenMode::CreateNew, Some(_)) => {
                return failed("open", path, ErrorKind::AlreadyExists);
            }
            (OpenMode::CreateNew, None) => {
                let inode = state.new_inode();
                state.change_dir(path, DirOp::Link { path: path.to_owned(), inode })?;
                inode
            }
            (_, Some(inode)) => inode,
            (_, None) => return failed("open", path, ErrorKind::NotFound),
        };
        let era = state.era;
        if let Some(node) = state.inodes.get_mut(&inode) {
            node.handles += 1;
        }
        let path = path.to_owned();
        Ok(Arc::new(SimFile { state: Arc::clone(&self.state), inode, era, path, mode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let mut state = self.state.lock();
        state.expect_on("rename", from)?;
        state.expect_parent("rename", to)?;
        let Some(&inode) = state.names.get(from) else {
            return failed("rename", from, ErrorKind::NotFound);
        };
        let (from, to) = (from.to_owned(), to.to_owned());
        state.change_dir(&to.clone(), DirOp::Rename { from, to, inode })
    }

    fn remove(&self, path: &Path) -> Result<()> {
        let mut state = self.state.lock();
        state.expect_on("remove", path)?;
        if !state.names.contains_key(path) {
            return failed("remove", path, ErrorKind::NotFound);
        }
        state.change_dir(path, DirOp::Unlink { path: path.to_owned() })
    }

    fn list(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        let state = self.state.lock();
        state.expect_on("list", dir)?;
        if !state.has_dir(dir) {
            return failed("list", dir, ErrorKind::NotFound);
        }
        let inside = state.names.keys().filter(|path| path.parent() == Some(dir));
        let mut names: Vec<PathBuf> =
            inside.filter_map(|p| p.file_name()).map(Into::into).collect();
        names.sort();
        Ok(names)
    }

    fn list_irregular(&self, dir: &Path) -> Result<Vec<Irregular>> {
        let state = self.state.lock();
        state.expect_on("list", dir)?;
        match state.has_dir(dir) {
            true => Ok(Irregular::directories(&state.dirs, dir)),
            false => failed("list", dir, ErrorKind::NotFound),
        }
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        let state = self.state.lock();
        state.expect_on("stat", path)?;
        Ok(state.names.contains_key(path) || state.has_dir(path))
    }

    fn create_dir_all(&self, dir: &Path) -> Result<()> {
        let mut state = self.state.lock();
        state.expect_on("mkdir", dir)?;
        if dir.ancestors().any(|d| state.names.contains_key(d)) {
            return failed("mkdir", dir, ErrorKind::AlreadyExists);
        }
        state.dirs.extend(dir.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        let mut state = self.state.lock();
        state.expect_on("sync directory", dir)?;
        if !state.has_dir(dir) {
            return failed("sync directory", dir, ErrorKind::NotFound);
        }
        state.sync_dir(dir)
    }

    fn lock_dir(&self, dir: &Path) -> Result<Box<dyn DirLock>> {
        let mut state = self.state.lock();
        state.expect_on("lock", dir)?;
        if !state.has_dir(dir) {
            return failed("lock", dir, ErrorKind::NotFound);
        }
        if !state.locks.insert(dir.to_owned()) {
            return Err(Error::Locked(dir.to_owned()));
        }
        let (era, dir) = (state.era, dir.to_owned());
        Ok(Box::new(SimLock { state: Arc::clone(&self.state), era, dir }))
    }
}
