//! Open files and held locks of a simulated disk.

use super::platter::{InodeId, Platter};
use super::{Change, failed};
use crate::env::{DirLock, File, OpenMode};
use crate::error::Result;
use parking_lot::{Mutex, MutexGuard};
use std::io::{ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open file. Dead after a crash: its operations fail.
#[derive(Debug)]
pub(super) struct SimFile {
    pub(super) state: Arc<Mutex<Platter>>,
    pub(super) inode: InodeId,
    pub(super) era: u64,
    pub(super) path: PathBuf,
    pub(super) mode: OpenMode,
}

/// A held lock. A crash has released it, then dropping it does nothing.
#[derive(Debug)]
pub(super) struct SimLock {
    pub(super) state: Arc<Mutex<Platter>>,
    pub(super) era: u64,
    pub(super) dir: PathBuf,
}

impl DirLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if state.era == self.era {
            state.locks.remove(&self.dir);
        }
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if state.era == self.era
            && let Some(node) = state.inodes.get_mut(&self.inode)
        {
            node.handles -= 1;
            if node.handles == 0 {
                state.forget_nameless();
            }
        }
    }
}

impl SimFile {
    fn live(&self, op: &'static str) -> Result<MutexGuard<'_, Platter>> {
        let state = self.state.lock();
        if state.era != self.era {
            return failed(op, &self.path, ErrorKind::BrokenPipe);
        }
        state.expect_on(op, &self.path)?;
        Ok(state)
    }

    fn writable(&self, op: &'static str) -> Result<MutexGuard<'_, Platter>> {
        match self.mode {
            OpenMode::Read => failed(op, &self.path, ErrorKind::PermissionDenied),
            OpenMode::ReadWrite | OpenMode::CreateNew | OpenMode::Direct => self.live(op),
        }
    }
}

impl File for SimFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.live("read")?.read(self.inode, &self.path, offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let mut state = self.writable("write")?;
        state.write(self.inode, &self.path, offset, Change::bytes(offset, buf))
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        let mut all = Vec::with_capacity(bufs.iter().map(|b| b.len()).sum());
        bufs.iter().for_each(|buf| all.extend_from_slice(buf));
        self.write_at(offset, &all)
    }

    fn sync_data(&self) -> Result<()> {
        self.live("sync")?.sync(self.inode, &self.path)
    }

    fn len(&self) -> Result<u64> {
        let state = self.live("stat")?;
        Ok(state.inodes.get(&self.inode).map_or(0, |node| node.seen.len()))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let mut state = self.writable("set length of")?;
        state.write(self.inode, &self.path, len, Change::Length(len))
    }

    fn path(&self) -> &Path {
        &self.path
    }
}
