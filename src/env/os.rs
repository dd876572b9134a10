//! The real disk: `std::fs` with positioned reads and writes.
//!
//! A file opened [`OpenMode::Direct`] has two descriptors: one past the page cache, for writes of
//! aligned blocks, and the usual one for all else (the system keeps the two coherent). Past the cache
//! each write reports its own failure. In the cache a failed write-back is reported to the first sync
//! that asks, though another may be waiting for those very bytes: so there syncs of one file come one
//! at a time, and after one that failed all others fail.

use super::{A_DIRECTORY, DirLock, Disk, File, Irregular, Job, OpenMode};
use crate::error::{Error, Result};
use fs2::FileExt as _;
use parking_lot::Mutex;
use std::fs::FileType;
use std::io::IoSlice;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The operating system's file system.
#[derive(Clone, Copy, Default, Debug)]
pub struct OsDisk;

#[derive(Debug)]
struct OsFile {
    file: std::fs::File,
    /// Past the page cache; `None` where the file system cannot.
    direct: Option<std::fs::File>,
    /// Whether something was written in the page cache (and a sync of `direct` is not enough).
    cached: AtomicBool,
    /// Whether a sync failed.
    failed: Mutex<bool>,
    path: PathBuf,
}

/// What direct writes are aligned to, in the file and in memory.
const ALIGNED: usize = 4096;

/// Opens a second descriptor that writes past the page cache.
#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> Option<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let flag = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    std::fs::OpenOptions::new().write(true).custom_flags(flag).open(path).ok()
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_: &Path) -> Option<std::fs::File> {
    None
}

/// Slices per system call: what Linux and macOS take at most (`IOV_MAX`).
const MAX_SLICES: usize = 1024;

/// The file whose lock stands for the directory's.
const LOCK_FILE: &str = "LOCK";

#[derive(Debug)]
struct OsLock {
    _file: std::fs::File,
}

impl DirLock for OsLock {}

/// The directory that holds the entry of `path`.
fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

/// Names and kinds of all that a directory holds, sorted. What goes away meanwhile may be left out.
fn entries_of(dir: &Path) -> Result<Vec<(PathBuf, FileType)>> {
    let io = |e| Error::io("list", dir, e);
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let entry = entry.map_err(io)?;
        match entry.file_type() {
            Ok(kind) => entries.push((PathBuf::from(entry.file_name()), kind)),
            // Some file systems are asked for the kind only now.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(io(e)),
        }
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(entries)
}

/// What an entry is that is no regular file.
fn describe(dir: &Path, name: PathBuf, kind: FileType) -> Irregular {
    let path = dir.join(&name);
    let what = match std::fs::read_link(&path) {
        Ok(to) if path.exists() => format!("a symbolic link to {}", to.display()),
        Ok(to) => format!("a symbolic link to {} (nothing is there)", to.display()),
        Err(_) if kind.is_symlink() => "a symbolic link".to_owned(),
        Err(_) if kind.is_dir() => A_DIRECTORY.to_owned(),
        Err(_) => "a device, a pipe or a socket".to_owned(),
    };
    Irregular { name, what }
}

impl Disk for OsDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>> {
        let mut options = std::fs::OpenOptions::new();
        options.read(true);
        match mode {
            OpenMode::Read => &mut options,
            OpenMode::ReadWrite | OpenMode::Direct => options.write(true),
            OpenMode::CreateNew => options.write(true).create_new(true),
        };
        let file = options.open(path).map_err(|e| Error::io("open", path, e))?;
        let direct = if mode == OpenMode::Direct { open_direct(path) } else { None };
        let path = path.to_owned();
        Ok(Arc::new(OsFile { file, direct, cached: false.into(), failed: Mutex::new(false), path }))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        std::fs::rename(from, to).map_err(|e| Error::io("rename", from, e))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        std::fs::remove_file(path).map_err(|e| Error::io("remove", path, e))
    }

    fn list(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        let entries = entries_of(dir)?.into_iter().filter(|(_, kind)| kind.is_file());
        Ok(entries.map(|(name, _)| name).collect())
    }

    fn list_irregular(&self, dir: &Path) -> Result<Vec<Irregular>> {
        let entries = entries_of(dir)?.into_iter().filter(|(_, kind)| !kind.is_file());
        Ok(entries.map(|(name, kind)| describe(dir, name, kind)).collect())
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        path.try_exists().map_err(|e| Error::io("stat", path, e))
    }

    fn create_dir_all(&self, dir: &Path) -> Result<()> {
        // Every directory that gained an entry is synced, not only the last one. The parent of what
        // exists already is synced too: an earlier attempt may have died between the two steps.
        let mut gained = vec![parent_of(dir)];
        for above in dir.ancestors().skip(1).take_while(|d| !d.as_os_str().is_empty()) {
            if self.exists(above)? {
                break;
            }
            gained.push(parent_of(above));
        }
        std::fs::create_dir_all(dir).map_err(|e| Error::io("mkdir", dir, e))?;
        gained.into_iter().rev().try_for_each(|parent| self.sync_dir(parent))
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        let io = |e| Error::io("sync directory", dir, e);
        std::fs::File::open(dir).map_err(io)?.sync_all().map_err(io)
    }

    fn lock_dir(&self, dir: &Path) -> Result<Box<dyn DirLock>> {
        let path = dir.join(LOCK_FILE);
        let file = std::fs::OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| Error::io("open", &path, e))?;
        match file.try_lock_exclusive() {
            Ok(()) => Ok(Box::new(OsLock { _file: file })),
            Err(e) if e.kind() == fs2::lock_contended_error().kind() => {
                Err(Error::Locked(dir.to_owned()))
            }
            Err(e) => Err(Error::io("lock", &path, e)),
        }
    }

    fn hands(&self) -> usize {
        std::thread::available_parallelism().map_or(1, |cores| cores.get().min(HANDS_MAX))
    }

    fn run(&self, jobs: Vec<Job<'_>>) {
        let others = self.hands().min(jobs.len()).saturating_sub(1);
        let jobs = Mutex::new(jobs.into_iter());
        let work = || {
            // Not in the loop's head, where the lock would be held during the job.
            let next = || jobs.lock().next();
            while let Some(job) = next() {
                job();
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..others {
                // Where no thread can be had, this one does all the work.
                let _ = std::thread::Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
    }
}

/// Threads beside each other at most, for reads at opening: more would only wait for the same disk.
const HANDS_MAX: usize = 8;

impl OsFile {
    /// Writes past the page cache as much as can be; how many bytes that was.
    fn write_direct(&self, offset: u64, buf: &[u8]) -> Result<usize> {
        let Some(direct) = &self.direct else { return Ok(0) };
        let fits = offset.is_multiple_of(ALIGNED as u64)
            && buf.len().is_multiple_of(ALIGNED)
            && buf.as_ptr().align_offset(ALIGNED) == 0;
        let mut done = 0;
        while fits && done < buf.len() && done.is_multiple_of(ALIGNED) {
            match direct.write_at(&buf[done..], offset + done as u64) {
                Ok(n) if n > 0 => done += n,
                Ok(_) => break,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                // A device with larger blocks.
                Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => break,
                Err(e) => return Err(Error::io("write", &self.path, e)),
            }
        }
        Ok(done)
    }
}

impl File for OsFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("read", &self.path, e)),
            }
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let done = self.write_direct(offset, buf)?;
        if done == buf.len() {
            return Ok(());
        }
        self.cached.store(true, Ordering::Release);
        let (rest, at) = (&buf[done..], offset + done as u64);
        self.file.write_all_at(rest, at).map_err(|e| Error::io("write", &self.path, e))
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        self.cached.store(true, Ordering::Release);
        let mut at = offset;
        let mut left: Vec<IoSlice<'_>> = bufs.iter().filter(|b| !b.is_empty()).copied().collect();
        let mut left = &mut left[..];
        while !left.is_empty() {
            let some = &left[..left.len().min(MAX_SLICES)];
            match rustix::io::pwritev(&self.file, some, at) {
                Ok(0) => {
                    let error = std::io::ErrorKind::WriteZero.into();
                    return Err(Error::io("write", &self.path, error));
                }
                Ok(n) => {
                    at += n as u64;
                    IoSlice::advance_slices(&mut left, n);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Error::io("write", &self.path, e.into())),
            }
        }
        Ok(())
    }

    fn sync_data(&self) -> Result<()> {
        let io = |e| Error::io("sync", &self.path, e);
        if let Some(direct) = self.direct.as_ref().filter(|_| !self.cached.load(Ordering::Acquire))
        {
            return direct.sync_data().map_err(io);
        }
        let mut failed = self.failed.lock();
        if *failed {
            return Err(io(std::io::Error::other("an earlier sync of this file failed")));
        }
        let result = self.file.sync_data();
        *failed = result.is_err();
        result.map_err(io)
    }

    fn len(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(|e| Error::io("stat", &self.path, e))?.len())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.cached.store(true, Ordering::Release);
        self.file.set_len(len).map_err(|e| Error::io("set length of", &self.path, e))
    }

    fn path(&self) -> &Path {
        &self.path
    }
}
