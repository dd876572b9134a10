//! A disk in memory that forgets nothing and fails never: for benchmarks of everything above the disk
//! and for tests that need no faults. For those with faults see `sim::disk`.

use super::pages::Pages;
use super::{DirLock, Disk, File, Irregular, OpenMode};
use crate::error::{Error, Result};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A directory tree in memory. Clones are handles to the same tree; it goes with the last of them.
#[derive(Clone, Default, Debug)]
pub struct MemDisk {
    tree: Arc<Mutex<Tree>>,
}

#[derive(Default, Debug)]
struct Tree {
    dirs: BTreeSet<PathBuf>,
    files: BTreeMap<PathBuf, Arc<RwLock<Pages>>>,
    locks: BTreeSet<PathBuf>,
}

#[derive(Debug)]
struct MemFile {
    content: Arc<RwLock<Pages>>,
    path: PathBuf,
    mode: OpenMode,
}

#[derive(Debug)]
struct MemLock {
    tree: Arc<Mutex<Tree>>,
    dir: PathBuf,
}

impl DirLock for MemLock {}

impl Drop for MemLock {
    fn drop(&mut self) {
        self.tree.lock().locks.remove(&self.dir);
    }
}

fn failed<T>(op: &'static str, path: &Path, kind: ErrorKind) -> Result<T> {
    Err(Error::io(op, path, kind.into()))
}

impl Tree {
    fn has_dir(&self, dir: &Path) -> bool {
        dir.as_os_str().is_empty() || dir.parent().is_none() || self.dirs.contains(dir)
    }

    fn expect_parent(&self, op: &'static str, path: &Path) -> Result<()> {
        match path.parent() {
            Some(dir) if self.has_dir(dir) => Ok(()),
            _ => failed(op, path, ErrorKind::NotFound),
        }
    }
}

impl Disk for MemDisk {
    fn is_instant(&self) -> bool {
        true
    }

    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>> {
        let mut tree = self.tree.lock();
        tree.expect_parent("open", path)?;
        let content = match (mode, tree.files.get(path)) {
            (OpenMode::CreateNew, Some(_)) => {
                return failed("open", path, ErrorKind::AlreadyExists);
            }
            (OpenMode::CreateNew, None) => {
                let content = Arc::default();
                tree.files.insert(path.to_owned(), Arc::clone(&content));
                content
            }
            (_, Some(content)) => Arc::clone(content),
            (_, None) => return failed("open", path, ErrorKind::NotFound),
        };
        Ok(Arc::new(MemFile { content, path: path.to_owned(), mode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let mut tree = self.tree.lock();
        tree.expect_parent("rename", to)?;
        match tree.files.remove(from) {
            Some(content) => tree.files.insert(to.to_owned(), content),
            None => return failed("rename", from, ErrorKind::NotFound),
        };
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<()> {
        match self.tree.lock().files.remove(path) {
            Some(_) => Ok(()),
            None => failed("remove", path, ErrorKind::NotFound),
        }
    }

    fn list(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        let tree = self.tree.lock();
        if !tree.has_dir(dir) {
            return failed("list", dir, ErrorKind::NotFound);
        }
        let inside = tree.files.keys().filter(|path| path.parent() == Some(dir));
        let mut names: Vec<PathBuf> =
            inside.filter_map(|p| p.file_name()).map(Into::into).collect();
        names.sort();
        Ok(names)
    }

    fn list_irregular(&self, dir: &Path) -> Result<Vec<Irregular>> {
        let tree = self.tree.lock();
        match tree.has_dir(dir) {
            true => Ok(Irregular::directories(&tree.dirs, dir)),
            false => failed("list", dir, ErrorKind::NotFound),
        }
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        let tree = self.tree.lock();
        Ok(tree.files.contains_key(path) || tree.has_dir(path))
    }

    fn create_dir_all(&self, dir: &Path) -> Result<()> {
        let mut tree = self.tree.lock();
        if dir.ancestors().any(|d| tree.files.contains_key(d)) {
            return failed("mkdir", dir, ErrorKind::AlreadyExists);
        }
        tree.dirs.extend(dir.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        match self.tree.lock().has_dir(dir) {
            true => Ok(()),
            false => failed("sync directory", dir, ErrorKind::NotFound),
        }
    }

    fn lock_dir(&self, dir: &Path) -> Result<Box<dyn DirLock>> {
        let mut tree = self.tree.lock();
        if !tree.has_dir(dir) {
            return failed("lock", dir, ErrorKind::NotFound);
        }
        if !tree.locks.insert(dir.to_owned()) {
            return Err(Error::Locked(dir.to_owned()));
        }
        Ok(Box::new(MemLock { tree: Arc::clone(&self.tree), dir: dir.to_owned() }))
    }
}

impl MemFile {
    fn expect_writable(&self, op: &'static str) -> Result<()> {
        match self.mode {
            OpenMode::Read => failed(op, &self.path, ErrorKind::PermissionDenied),
            OpenMode::ReadWrite | OpenMode::CreateNew | OpenMode::Direct => Ok(()),
        }
    }
}

impl File for MemFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        Ok(self.content.read().read(offset, buf))
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.write_vectored_at(offset, &[IoSlice::new(buf)])
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        self.expect_writable("write")?;
        let mut content = self.content.write();
        let mut at = offset;
        for buf in bufs {
            content.write(at, buf);
            at += buf.len() as u64;
        }
        Ok(())
    }

    fn sync_data(&self) -> Result<()> {
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        Ok(self.content.read().len())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.expect_writable("set length of")?;
        self.content.write().set_len(len);
        Ok(())
    }

    fn path(&self) -> &Path {
        &self.path
    }
}
