//! A directory as a disk of its own: what is read comes from the real files, what is written stays in
//! memory. The log engine can be opened on it, with all that opening does (a new segment, a copied tail),
//! and the real directory is left as it was.

use catamaran::env::os::OsDisk;
use catamaran::env::{DirLock, Disk, File, Irregular, OpenMode};
use catamaran::error::{Error, Result};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io::{ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Unit of what is kept of writes.
const BLOCK: u64 = 4096;

/// The overlay over one directory. Clones share it.
///
/// - Real files are opened for reading and for nothing else.
/// - Only segments are seen: spares have no content, and the lock is held elsewhere.
#[derive(Clone, Debug)]
pub struct Overlay {
    root: PathBuf,
    files: Arc<Mutex<BTreeMap<PathBuf, Arc<Content>>>>,
    /// What is named like a segment and is no file.
    irregular: Arc<Mutex<Vec<Irregular>>>,
}

#[derive(Debug)]
struct Content {
    real: Option<Arc<dyn File>>,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    len: u64,
    /// So much of the real file shows.
    real_len: u64,
    /// Blocks that were written to, by number. What is nowhere is zeros.
    blocks: BTreeMap<u64, Vec<u8>>,
}

#[derive(Debug)]
struct Handle {
    content: Arc<Content>,
    path: PathBuf,
}

#[derive(Debug)]
struct NoLock;

impl DirLock for NoLock {}

impl Overlay {
    /// Over the segments of a log directory.
    pub fn over(dir: &Path) -> Result<Overlay> {
        let mut files = BTreeMap::new();
        let is_segment = |name: &Path| name.extension().is_some_and(|extension| extension == "seg");
        for name in OsDisk.list(dir)? {
            if is_segment(&name) {
                let path = dir.join(name);
                let real = OsDisk.open(&path, OpenMode::Read)?;
                let len = real.len()?;
                let written = Mutex::new(Written { len, real_len: len, blocks: BTreeMap::new() });
                files.insert(path, Arc::new(Content { real: Some(real), written }));
            }
        }
        let mut irregular = OsDisk.list_irregular(dir)?;
        irregular.retain(|other| is_segment(&other.name));
        let (files, irregular) = (Arc::new(Mutex::new(files)), Arc::new(Mutex::new(irregular)));
        Ok(Overlay { root: dir.to_owned(), files, irregular })
    }

    /// From now on the file, or what has its name, is not there; tells whether it was.
    pub fn hide(&self, path: &Path) -> bool {
        let mut irregular = self.irregular.lock();
        let before = irregular.len();
        irregular.retain(|other| self.root.join(&other.name) != path);
        irregular.len() < before || self.files.lock().remove(path).is_some()
    }

    fn missing<T>(op: &'static str, path: &Path) -> Result<T> {
        Err(Error::io(op, path, ErrorKind::NotFound.into()))
    }
}

impl Disk for Overlay {
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>> {
        let mut files = self.files.lock();
        let content = match (files.get(path), mode) {
            (Some(_), OpenMode::CreateNew) => {
                return Err(Error::io("create", path, ErrorKind::AlreadyExists.into()));
            }
            (Some(content), _) => content.clone(),
            (None, OpenMode::CreateNew) => {
                let written = Written { len: 0, real_len: 0, blocks: BTreeMap::new() };
                let content = Arc::new(Content { real: None, written: Mutex::new(written) });
                files.insert(path.to_owned(), content.clone());
                content
            }
            (None, _) => return Overlay::missing("open", path),
        };
        Ok(Arc::new(Handle { content, path: path.to_owned() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let mut files = self.files.lock();
        let Some(content) = files.remove(from) else { return Overlay::missing("rename", from) };
        files.insert(to.to_owned(), content);
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<()> {
        if self.hide(path) { Ok(()) } else { Overlay::missing("remove", path) }
    }

    fn list(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        let files = self.files.lock();
        let here = files.keys().filter(|path| path.parent() == Some(dir));
        Ok(here.filter_map(|path| path.file_name()).map(PathBuf::from).collect())
    }

    fn list_irregular(&self, dir: &Path) -> Result<Vec<Irregular>> {
        Ok(if dir == self.root { self.irregular.lock().clone() } else { Vec::new() })
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        Ok(path == self.root || self.files.lock().contains_key(path))
    }

    fn create_dir_all(&self, _: &Path) -> Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> Result<()> {
        Ok(())
    }

    fn lock_dir(&self, _: &Path) -> Result<Box<dyn DirLock>> {
        Ok(Box::new(NoLock))
    }
}

impl Content {
    /// What is there without the blocks that were written to.
    fn read_real(&self, written: &Written, offset: u64, buf: &mut [u8]) -> Result<()> {
        buf.fill(0);
        let end = (offset + buf.len() as u64).min(written.real_len);
        match &self.real {
            Some(real) if end > offset => {
                real.read_at(offset, &mut buf[..(end - offset) as usize]).map(drop)
            }
            _ => Ok(()),
        }
    }

    fn write(&self, mut offset: u64, mut data: &[u8]) -> Result<()> {
        let mut written = self.written.lock();
        while !data.is_empty() {
            let (number, at) = (offset / BLOCK, (offset % BLOCK) as usize);
            let (now, rest) = data.split_at(data.len().min(BLOCK as usize - at));
            // Zeros on nothing are nothing: a fresh spare takes no memory.
            let on_nothing = !written.blocks.contains_key(&number)
                && number * BLOCK >= written.real_len
                && now.iter().all(|byte| *byte == 0);
            if !on_nothing {
                let mut block = match written.blocks.remove(&number) {
                    Some(block) => block,
                    None => {
                        let mut block = vec![0; BLOCK as usize];
                        self.read_real(&written, number * BLOCK, &mut block)?;
                        block
                    }
                };
                block[at..at + now.len()].copy_from_slice(now);
                written.blocks.insert(number, block);
            }
            offset += now.len() as u64;
            data = rest;
        }
        written.len = written.len.max(offset);
        Ok(())
    }
}

impl File for Handle {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let written = self.content.written.lock();
        let n = written.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        let buf = &mut buf[..n];
        self.content.read_real(&written, offset, buf)?;
        let end = offset + n as u64;
        for (number, block) in written.blocks.range(offset / BLOCK..end.div_ceil(BLOCK)) {
            let start = number * BLOCK;
            let (from, to) = (start.max(offset), (start + BLOCK).min(end));
            buf[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&block[(from - start) as usize..(to - start) as usize]);
        }
        Ok(n)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.content.write(offset, buf)
    }

    fn write_vectored_at(&self, mut offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        for buf in bufs {
            self.content.write(offset, buf)?;
            offset += buf.len() as u64;
        }
        Ok(())
    }

    fn sync_data(&self) -> Result<()> {
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        Ok(self.content.written.lock().len)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let mut written = self.content.written.lock();
        written.real_len = written.real_len.min(len);
        written.blocks.split_off(&len.div_ceil(BLOCK));
        if let Some(last) = written.blocks.get_mut(&(len / BLOCK)) {
            last[(len % BLOCK) as usize..].fill(0);
        }
        written.len = len;
        Ok(())
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_the_real_file_stays() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("0000000000000001.seg");
        let real: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        std::fs::write(&path, &real).unwrap();
        let overlay = Overlay::over(temp.path()).unwrap();
        let file = overlay.open(&path, OpenMode::ReadWrite).unwrap();
        let mut wanted = real.clone();
        for (offset, len) in [(0, 1), (4090, 20), (9_990, 30), (20_000, 5), (5_000, 4_096)] {
            wanted.resize(wanted.len().max(offset + len), 0);
            wanted[offset..offset + len].fill(0xee);
            file.write_at(offset as u64, &vec![0xee; len]).unwrap();
        }
        let read = |file: &dyn File, from: usize, len: usize| {
            let mut buf = vec![7; len];
            let n = file.read_at(from as u64, &mut buf).unwrap();
            buf.truncate(n);
            buf
        };
        for (from, len) in [(0, 30_000), (4_089, 23), (8_000, 4_000), (20_004, 9), (30_000, 1)] {
            let to = wanted.len().min(from + len);
            assert_eq!(read(&*file, from, len), wanted[from.min(to)..to], "{from} {len}");
        }
        file.set_len(100).unwrap();
        file.set_len(5_000).unwrap();
        wanted.truncate(100);
        wanted.resize(5_000, 0);
        assert_eq!(read(&*file, 0, 9_000), wanted);
        let renamed = temp.path().join("other");
        overlay.rename(&path, &renamed).unwrap();
        assert!(overlay.open(&path, OpenMode::Read).is_err());
        assert!(overlay.exists(&renamed).unwrap() && path.exists());
        assert_eq!(std::fs::read(&path).unwrap(), real);
    }

    #[test]
    fn zeros_on_nothing_take_no_memory() {
        let temp = tempfile::tempdir().unwrap();
        let overlay = Overlay::over(temp.path()).unwrap();
        let path = temp.path().join("x");
        let file = overlay.open(&path, OpenMode::CreateNew).unwrap();
        file.write_at(0, &vec![0; 1 << 20]).unwrap();
        assert_eq!(file.len().unwrap(), 1 << 20);
        assert_eq!(overlay.list(temp.path()).unwrap(), [PathBuf::from("x")]);
        assert!(overlay.files.lock()[&path].written.lock().blocks.is_empty());
    }
}
