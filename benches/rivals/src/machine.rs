//! What the operating system tells and does for a measurement: page cache, bytes read, limits.

use anyhow::{Context, Result};
use rustix::fs::Advice;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How the page cache was emptied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Emptied {
    /// All of it, by the kernel's `drop_caches`.
    DropCaches,
    /// Of the files in question, by `posix_fadvise(DONTNEED)`; names and inodes stay cached.
    Fadvise,
}

impl Emptied {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Emptied::DropCaches => "the whole page cache was dropped",
            Emptied::Fadvise => "the files' pages were given back (fadvise)",
        }
    }
}

/// Makes what lies under `dir` cold.
pub fn make_cold(dir: &Path) -> Result<Emptied> {
    rustix::fs::sync();
    if std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok() {
        return Ok(Emptied::DropCaches);
    }
    for file in files(dir)? {
        let file = std::fs::File::open(&file.0)?;
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(Emptied::Fadvise)
}

/// The files under a directory, with their sizes.
pub fn files(dir: &Path) -> Result<Vec<(std::path::PathBuf, u64)>> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let entry = entry?;
            let kind = entry.metadata()?;
            if kind.is_dir() {
                left.push(entry.path());
            } else {
                found.push((entry.path(), kind.len()));
            }
        }
    }
    Ok(found)
}

/// Bytes that this process made the disk read so far; 0 where the system does not say.
pub fn bytes_read() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("read_bytes:"));
    line.and_then(|line| line.trim().parse().ok()).unwrap_or(0)
}

/// Asks for as many open files as may be had: a file for each group wants many.
pub fn raise_limits() {
    let now = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: Some(1 << 20), maximum: Some(1 << 20) };
    if setrlimit(Resource::Nofile, wanted).is_err() {
        // Not allowed to raise the bound: take all below it. If that fails too, opening says so.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, ..now });
    }
}

/// The processor, how many there are, and the kernel's version as far as it is not of this one machine.
pub fn describe() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    let cpu = line.and_then(|line| line.split_once(':')).map_or("unknown", |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version: Vec<&str> = release.trim().split('.').take(2).collect();
    format!("{cores} cores, {cpu}, {} {}", std::env::consts::OS, version.join("."))
}
