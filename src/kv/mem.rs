//! Simulated tables: in memory, with the crash behaviour of real ones. An ingestion is durable when it
//! completes and not there at all before. The "disk" is a handle that outlives the tables, so a store can be
//! reopened on it after a simulated crash.

use super::tables::{Sink, TableDebt, TableScan, Tables, TablesView};
use super::{Direction, tables};
use crate::error::{Error, Result};
use crate::types::KeyRange;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;

type Map = BTreeMap<Bytes, Bytes>;

/// Ingestions that make a compaction.
const DUE_RUNS: usize = 4;

/// What goes wrong with the next ingestion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It fails with an IO error after its last key, before it is installed.
    Io,
    /// There is no room ([`Error::DiskFull`]) after its last key.
    DiskFull,
    /// The process dies in the middle: nothing of it is there, and neither this nor any later ingestion of the
    /// same [`MemTables`] succeeds. Reopen on the disk.
    Crash,
}

#[derive(Default)]
struct DiskState {
    map: Arc<Map>,
    /// Ingestions since the last compaction step.
    runs: usize,
    bytes: u64,
    fault: Option<Fault>,
    full: bool,
    /// Who is alive: tables opened before the last crash are not.
    lives: u64,
    ingested: u64,
}

/// What survives a simulated crash.
#[derive(Clone, Default)]
pub struct SimTablesDisk(Arc<Mutex<DiskState>>);

impl SimTablesDisk {
    /// An empty disk.
    pub fn new() -> SimTablesDisk {
        SimTablesDisk::default()
    }

    /// A copy of what is on it.
    pub fn fork(&self) -> SimTablesDisk {
        let disk = self.0.lock();
        let (map, runs, bytes) = (Arc::clone(&disk.map), disk.runs, disk.bytes);
        SimTablesDisk(Arc::new(Mutex::new(DiskState { map, runs, bytes, ..Default::default() })))
    }

    /// Tables on this disk. Those opened earlier are dead from now on: their ingestions fail.
    pub fn open(&self) -> MemTables {
        let mut disk = self.0.lock();
        disk.lives += 1;
        MemTables { disk: self.clone(), life: disk.lives }
    }

    /// Arms a fault for the next ingestion.
    pub fn fail_next(&self, fault: Fault) {
        self.0.lock().fault = Some(fault);
    }

    /// Whether ingestions find no room from now on.
    pub fn set_full(&self, full: bool) {
        self.0.lock().full = full;
    }

    /// Kills the tables open now: whatever they ingest from now on fails, as after the end of a process.
    pub fn crash(&self) {
        self.0.lock().lives += 1;
    }

    /// Completed ingestions, over all lives.
    pub fn ingested(&self) -> u64 {
        self.0.lock().ingested
    }
}

/// Tables in memory. See [`SimTablesDisk`].
pub struct MemTables {
    disk: SimTablesDisk,
    life: u64,
}

impl MemTables {
    /// Tables on a disk of their own.
    pub fn new() -> MemTables {
        SimTablesDisk::new().open()
    }
}

impl Default for MemTables {
    fn default() -> MemTables {
        MemTables::new()
    }
}

#[derive(Default)]
struct Staged {
    items: Vec<(Bytes, Option<Bytes>)>,
}

impl Staged {
    fn push(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        tables::ascending(self.items.last().map(|item| &item.0[..]), key)?;
        self.items.push((Bytes::copy_from_slice(key), value.map(Bytes::copy_from_slice)));
        Ok(())
    }
}

impl Sink for Staged {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.push(key, Some(value))
    }

    fn delete(&mut self, key: &[u8]) -> Result<()> {
        self.push(key, None)
    }
}

fn simulated() -> PathBuf {
    PathBuf::from("(simulated tables)")
}

impl Tables for MemTables {
    fn ingest(&self, fill: &mut dyn FnMut(&mut dyn Sink) -> Result<()>) -> Result<()> {
        let mut staged = Staged::default();
        fill(&mut staged)?;
        let mut disk = self.disk.0.lock();
        let fault = disk.fault.take().or(disk.full.then_some(Fault::DiskFull));
        if fault == Some(Fault::Crash) {
            disk.lives += 1;
        }
        if disk.lives != self.life {
            return Err(Error::Stopped { reason: "the simulated process has crashed".into() });
        }
        let full = std::io::ErrorKind::StorageFull;
        match fault {
            Some(Fault::Io) => {
                return Err(Error::io("ingest", simulated(), std::io::Error::other("injected")));
            }
            Some(Fault::DiskFull) => {
                return Err(Error::io("ingest", simulated(), full.into()));
            }
            Some(Fault::Crash) | None => {}
        }
        // A snapshot that is still held keeps the old map; then this copies it.
        let map = Arc::make_mut(&mut disk.map);
        for (key, value) in staged.items {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        disk.bytes = disk.map.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum();
        disk.runs += 1;
        disk.ingested += 1;
        Ok(())
    }

    fn snapshot(&self) -> Result<Arc<dyn TablesView>> {
        Ok(Arc::new(MemView(Arc::clone(&self.disk.0.lock().map))))
    }

    fn maintain(&self) -> Result<bool> {
        let mut disk = self.disk.0.lock();
        let due = disk.runs >= DUE_RUNS;
        if due {
            disk.runs = 0;
        }
        Ok(due)
    }

    fn debt(&self) -> TableDebt {
        let disk = self.disk.0.lock();
        TableDebt { runs: disk.runs, bytes: disk.bytes, pending: disk.runs >= DUE_RUNS }
    }
}

struct MemView(Arc<Map>);

impl TablesView for MemView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, range: &KeyRange, direction: Direction) -> TableScan {
        if range.is_empty() {
            return Box::new(std::iter::empty());
        }
        Box::new(MemScan { map: Arc::clone(&self.0), rest: range.clone(), direction })
    }
}

/// Looks each next key up afresh: the iterator owns its map, and simulations scan little.
struct MemScan {
    map: Arc<Map>,
    rest: KeyRange,
    direction: Direction,
}

impl Iterator for MemScan {
    type Item = Result<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let start = Bound::Included(self.rest.start.clone());
        let end = match self.rest.end.is_empty() {
            true => Bound::Unbounded,
            false => Bound::Excluded(self.rest.end.clone()),
        };
        let mut found = self.map.range((start, end));
        let (key, value) = match self.direction {
            Direction::Forward => found.next()?,
            Direction::Reverse => found.next_back()?,
        };
        match self.direction {
            Direction::Forward => {
                let mut after = Vec::with_capacity(key.len() + 1);
                after.extend_from_slice(key);
                after.push(0);
                self.rest.start = after.into();
            }
            Direction::Reverse => self.rest.end = key.clone(),
        }
        Some(Ok((key.clone(), value.clone())))
    }
}
