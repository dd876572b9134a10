//! A real node on a disk that stands still for a second: the open loop shows it, the closed one all but hides it.

use super::*;
use crate::args::{Cli, Command};
use crate::enter::{Entry, Reads};
use catamaran::config::StateKind;
use catamaran::env::mem::MemDisk;
use catamaran::env::{DirLock, Disk, File, Irregular, OpenMode};
use catamaran::{Node, NodeConfig};
use clap::Parser;
use parking_lot::Mutex;
use std::io::IoSlice;
use std::path::{Path, PathBuf};

const STALL: Duration = Duration::from_secs(1);

/// A disk in memory on which no sync ends before the stall does.
#[derive(Clone, Default, Debug)]
struct StallingDisk {
    inner: Arc<MemDisk>,
    until: Arc<Mutex<Option<Instant>>>,
}

#[derive(Debug)]
struct StallingFile {
    inner: Arc<dyn File>,
    until: Arc<Mutex<Option<Instant>>>,
}

impl Disk for StallingDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> catamaran::Result<Arc<dyn File>> {
        let (inner, until) = (self.inner.open(path, mode)?, Arc::clone(&self.until));
        Ok(Arc::new(StallingFile { inner, until }))
    }
    fn rename(&self, from: &Path, to: &Path) -> catamaran::Result<()> {
        self.inner.rename(from, to)
    }
    fn remove(&self, path: &Path) -> catamaran::Result<()> {
        self.inner.remove(path)
    }
    fn list(&self, dir: &Path) -> catamaran::Result<Vec<PathBuf>> {
        self.inner.list(dir)
    }
    fn list_irregular(&self, dir: &Path) -> catamaran::Result<Vec<Irregular>> {
        self.inner.list_irregular(dir)
    }
    fn exists(&self, path: &Path) -> catamaran::Result<bool> {
        self.inner.exists(path)
    }
    fn create_dir_all(&self, dir: &Path) -> catamaran::Result<()> {
        self.inner.create_dir_all(dir)
    }
    fn sync_dir(&self, dir: &Path) -> catamaran::Result<()> {
        self.inner.sync_dir(dir)
    }
    fn lock_dir(&self, dir: &Path) -> catamaran::Result<Box<dyn DirLock>> {
        self.inner.lock_dir(dir)
    }
}

impl File for StallingFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> catamaran::Result<usize> {
        self.inner.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> catamaran::Result<()> {
        self.inner.write_at(offset, buf)
    }
    fn write_vectored_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> catamaran::Result<()> {
        self.inner.write_vectored_at(offset, bufs)
    }
    fn sync_data(&self) -> catamaran::Result<()> {
        let until = *self.until.lock();
        if let Some(until) = until {
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
        }
        self.inner.sync_data()
    }
    fn len(&self) -> catamaran::Result<u64> {
        self.inner.len()
    }
    fn set_len(&self, len: u64) -> catamaran::Result<()> {
        self.inner.set_len(len)
    }
    fn path(&self) -> &Path {
        self.inner.path()
    }
}

/// Drives one node whose disk stands still for a second in the middle of the run.
fn stalled(flags: &str) -> (Record, Plan) {
    let line = format!("catamaran-load run --profile disk --duration 3s --regions 4 {flags}");
    let Command::Run(args) = Cli::try_parse_from(line.split_whitespace()).unwrap().command else {
        unreachable!()
    };
    let plan = args.plan().unwrap();
    let disk = StallingDisk::default();
    let config = NodeConfig {
        regions: plan.regions,
        state: StateKind::Memory,
        ..NodeConfig::single("/stalling")
    };
    let node = Node::builder(config).disk(Arc::new(disk.clone())).open().unwrap();
    // Every region has its leader before the clock runs.
    let until = Instant::now() + Duration::from_secs(60);
    while node.status().unwrap().iter().filter(|region| region.leads).count() < 4 {
        assert!(Instant::now() < until, "no leaders");
        std::thread::sleep(Duration::from_millis(10));
    }
    let entry = Entry::new(vec![node.client()], plan.regions, Reads::None).unwrap();
    let space =
        KeySpace::new(plan.regions, plan.clients, plan.keys, plan.key_size, plan.distribution);
    let (driven, _) = drive(&plan, space, &entry, &Progress::default(), |window| {
        let at = window.start + Duration::from_millis(700);
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        *disk.until.lock() = Some(Instant::now() + STALL);
    });
    node.kill();
    assert_eq!(driven.abandoned, 0);
    (driven.record, plan)
}

#[test]
fn a_disk_that_stands_still_shows_at_a_rate_and_hides_behind_waiting_clients() {
    let (open, plan) = stalled("--clients 8 --keys 4k --rate 500");
    let (p, half) = (open.percentiles(), STALL / 2);
    // What fell due in the first tenth of the stall is 1.6 % of all: far more than one in a thousand.
    assert!(p.p999 > 900_000.0, "{p:?}");
    // What fell due in its first half waited for the other one, whether or not a client was there to send it.
    let due = plan.rate.unwrap() / 2;
    assert!(open.longer_than(half) > due * 8 / 10, "{} of {due}", open.longer_than(half));

    let (closed, _) = stalled("--clients 8 --keys 4k");
    let p = closed.percentiles();
    assert!(p.max > 900_000.0, "there was a stall: {p:?}");
    // Only the eight waited who had a request on its way. (More on a machine with pauses of its own.)
    assert!(closed.longer_than(half) * 4 < open.longer_than(half), "{p:?}");
}
