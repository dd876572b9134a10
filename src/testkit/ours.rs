//! The adapter of [`crate::log`].

use super::store::{Batch, Factory, Failure, LogStore, Op};
use crate::Error;
use crate::env::Disk;
use crate::env::os::OsDisk;
use crate::log::{Entry, GroupId, Log, LogBatch, Options};
use crate::types::LogPosition;
use bytes::Bytes;
use std::path::{Path, PathBuf};
use std::sync::Arc;

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let what = error.to_string();
        match error {
            Error::InvalidArgument(_) | Error::Busy { .. } => Failure::Refused(what),
            Error::DiskFull { .. } => Failure::NoRoom(what),
            Error::Corruption { .. } | Error::Quarantined { .. } | Error::Identity(_) => {
                Failure::Damaged(what)
            }
            _ => Failure::Stopped(what),
        }
    }
}

impl From<&Batch> for LogBatch {
    fn from(batch: &Batch) -> LogBatch {
        let mut ours = LogBatch::new();
        for op in batch.ops.iter().cloned() {
            match op {
                Op::Append { group, entries } => ours.append(group, entries),
                Op::State { group, state } => ours.set_state(group, state),
                Op::Compact { group, to } => ours.compact_to(group, to),
                Op::Reset { group, to } => ours.reset(group, to),
                Op::Clear { group } => ours.clear(group),
            }
        }
        ours
    }
}

impl LogStore for Log {
    fn write(&self, batch: &Batch) -> Result<(), Failure> {
        Ok(self.submit(LogBatch::from(batch)).map(drop)?)
    }

    fn sync(&self) -> Result<(), Failure> {
        Ok(self.write_round().map(drop)?)
    }

    fn bounds(&self, group: GroupId) -> Result<Option<(u64, u64)>, Failure> {
        if let Some(damage) = self.damage(group) {
            return Err(Failure::Damaged(format!("group {group}: {damage:?}")));
        }
        let (first, last) = (self.first_index(group), self.last_index(group));
        Ok((first <= last).then_some((first, last)))
    }

    fn entries(
        &self,
        group: GroupId,
        low: u64,
        high: u64,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, Failure> {
        Ok(Log::entries(self, group, low, high, max_bytes)?)
    }

    fn term(&self, group: GroupId, index: u64) -> Result<Option<u64>, Failure> {
        // The log also knows the term of the compaction's position, which is no entry any more.
        let term = Log::term(self, group, index)?;
        Ok(term.filter(|_| index >= self.first_index(group)))
    }

    fn state(&self, group: GroupId) -> Result<Option<Bytes>, Failure> {
        if let Some(damage) = self.damage(group) {
            return Err(Failure::Damaged(format!("group {group}: {damage:?}")));
        }
        Ok(Log::state(self, group))
    }

    fn groups(&self) -> Result<Vec<GroupId>, Failure> {
        Ok(Log::groups(self))
    }

    fn truncated(&self, group: GroupId) -> Result<LogPosition, Failure> {
        Ok(Log::truncated(self, group))
    }

    fn purge(&self) -> Result<(), Failure> {
        while Log::purge(self)?.more {}
        Ok(())
    }

    fn disk_bytes(&self) -> Result<u64, Failure> {
        Ok(self.stats().disk_bytes)
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        // Also states on the disk that all of it is durable: damage is then told from a torn tail.
        Ok(self.barrier()?)
    }
}

/// Opens logs in directories below one, on the real disk.
#[derive(Clone, Debug)]
pub struct CatamaranFactory {
    root: PathBuf,
    disk: Arc<dyn Disk>,
    options: Options,
}

impl CatamaranFactory {
    /// With small segments, on the real disk, below `root`.
    pub fn new(root: &Path) -> CatamaranFactory {
        let options = Options {
            segment_bytes: 64 << 10,
            cache_bytes: 32 << 10,
            spare_segments: 2,
            ..Options::default()
        };
        CatamaranFactory { root: root.to_owned(), disk: Arc::new(OsDisk), options }
    }

    /// Compresses runs of more than so many bytes.
    pub fn compressing(mut self, above: usize) -> CatamaranFactory {
        self.options.compress_above = Some(above);
        self
    }

    /// On another disk. [`Factory::directory`] still names a directory of the real file system.
    pub fn on(mut self, disk: Arc<dyn Disk>) -> CatamaranFactory {
        self.disk = disk;
        self
    }
}

impl Factory for CatamaranFactory {
    fn name(&self) -> String {
        let how = if self.options.compress_above.is_some() { ", compressing" } else { "" };
        format!("catamaran::log {}{how}", env!("CARGO_PKG_VERSION"))
    }

    fn open(&self, store: &str) -> Result<Box<dyn LogStore>, Failure> {
        let dir = self.root.join(store);
        let (log, _) = Log::open(self.disk.clone(), &dir, self.options.clone())?;
        Ok(Box::new(log))
    }

    fn directory(&self, store: &str) -> Result<PathBuf, Failure> {
        Ok(self.root.join(store))
    }
}
