//! raft-log under the conformance suite.
//!
//! A raft-log is the log of one group; a store of many groups is a directory of many of them. It has no
//! batch: each operation is a record of its own, and a batch over several of them is one after the other.
//! So where an operation is refused behind others that were taken, the batch is answered with
//! "unsupported". A state record is its user data, a clear closes the log and removes its directory, a
//! reset cuts the suffix and purges up to the position (not backwards). Its indexes begin at 0 unless the
//! types say otherwise, as they do here.
//!
//! The suite flips bytes in files of one directory. So while a store is closed, the files of its groups
//! lie there side by side, under names that say where they belong.

use super::Strictness;
use bytes::Bytes;
use catamaran::log::{Entry, GroupId};
use catamaran::testkit::{Batch, Factory, Failure, LogStore, Op};
use catamaran::types::LogPosition;
use raft_log::api::raft_log_writer::RaftLogWriter;
use raft_log::{Config, RaftLog, Types};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct FromOne;

impl Types for FromOne {
    /// Term and index.
    type LogId = (u64, u64);
    /// The kind, then the data.
    type LogPayload = Vec<u8>;
    type Vote = (u64, u64);
    type UserData = Vec<u8>;
    type Callback = SyncSender<io::Result<()>>;

    fn log_index(id: &(u64, u64)) -> u64 {
        id.1
    }

    fn payload_size(payload: &Vec<u8>) -> u64 {
        payload.len() as u64
    }

    fn next_log_index(id: Option<&(u64, u64)>) -> u64 {
        id.map_or(1, |id| id.1 + 1)
    }
}

fn failure(error: io::Error) -> Failure {
    let what = error.to_string();
    match error.kind() {
        io::ErrorKind::InvalidInput => Failure::Refused(what),
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Failure::Damaged(what),
        io::ErrorKind::StorageFull => Failure::NoRoom(what),
        _ => Failure::Stopped(what),
    }
}

/// The group's log, and whether something was written since the last sync.
struct One {
    log: RaftLog<FromOne>,
    dirty: bool,
}

impl One {
    fn open(dir: &Path, strict: Strictness) -> Result<One, Failure> {
        std::fs::create_dir_all(dir).map_err(failure)?;
        let mut config = Config::new(dir.to_string_lossy());
        config.wal.chunk_max_size = Some(64 << 10);
        config.wal.read_buffer_size = Some(64 << 10);
        config.wal.truncate_incomplete_record = Some(strict == Strictness::Default);
        config.log_cache_capacity = Some(32 << 10);
        let log = RaftLog::open(Arc::new(config)).map_err(failure)?;
        Ok(One { log, dirty: false })
    }

    fn purged(&self) -> u64 {
        self.log.log_state().purged().map_or(0, |id| id.1)
    }

    fn last(&self) -> u64 {
        self.log.log_state().last().map_or(0, |id| id.1)
    }

    fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        let Some(first) = entries.first() else { return Ok(()) };
        if first.index <= self.last() {
            self.log.truncate(first.index)?;
        }
        let with_kind = entries.iter().map(|entry| {
            let mut payload = vec![entry.kind];
            payload.extend_from_slice(&entry.data);
            ((entry.term, entry.index), payload)
        });
        self.log.append(with_kind).map(drop)
    }

    fn take(&mut self, op: &Op) -> Result<(), Failure> {
        self.dirty = true;
        match op {
            Op::Append { entries, .. } => self.append(entries).map_err(failure),
            Op::State { state, .. } => {
                self.log.save_user_data(Some(state.to_vec())).map(drop).map_err(failure)
            }
            Op::Compact { to, .. } => {
                self.log.purge((to.term, to.index)).map(drop).map_err(failure)
            }
            Op::Reset { to, .. } => {
                if to.index < self.purged() {
                    return Err(Failure::Unsupported("a log does not go back behind its purge"));
                }
                if self.last() > to.index {
                    self.log.truncate(to.index + 1).map_err(failure)?;
                }
                self.log.purge((to.term, to.index)).map(drop).map_err(failure)
            }
            Op::Clear { .. } => Ok(()),
        }
    }

    fn read(&self, low: u64, high: u64) -> impl Iterator<Item = Result<Entry, Failure>> + use<'_> {
        self.log.read(low, high).map(|found| {
            let ((term, index), payload) = found.map_err(failure)?;
            let mut data = Bytes::from(payload);
            let kind = data.split_to(1.min(data.len())).first().copied().unwrap_or(0);
            Ok(Entry { index, term, kind, data })
        })
    }

    fn bounds(&self) -> Result<Option<(u64, u64)>, Failure> {
        let (purged, last) = (self.purged(), self.last());
        if purged >= last {
            return Ok(None);
        }
        let first = self.read(0, u64::MAX).next().transpose()?;
        Ok(first.map(|first| (first.index, last)))
    }
}

/// Files of a closed store lie in its directory; opening sorts them into a directory for each group.
struct Spread(PathBuf);

/// Between group and file in the name of a closed store's file.
const SEPARATOR: char = '~';

impl Spread {
    fn open(dir: &Path) -> io::Result<Spread> {
        std::fs::create_dir_all(dir)?;
        let spread = Spread(dir.to_owned());
        for item in std::fs::read_dir(dir)? {
            let item = item?;
            let name = item.file_name().to_string_lossy().into_owned();
            if let Some((group, file)) = name.split_once(SEPARATOR) {
                std::fs::create_dir_all(dir.join(group))?;
                std::fs::rename(item.path(), dir.join(group).join(file))?;
            }
        }
        Ok(spread)
    }

    fn gather(&self) -> io::Result<()> {
        for group in std::fs::read_dir(&self.0)? {
            let group = group?;
            if !group.file_type()?.is_dir() {
                continue;
            }
            let id = group.file_name().to_string_lossy().into_owned();
            for file in std::fs::read_dir(group.path())? {
                let file = file?;
                let name = file.file_name().to_string_lossy().into_owned();
                std::fs::rename(file.path(), self.0.join(format!("{id}{SEPARATOR}{name}")))?;
            }
            std::fs::remove_dir(group.path())?;
        }
        Ok(())
    }
}

impl Drop for Spread {
    fn drop(&mut self) {
        if let Err(error) = self.gather() {
            eprintln!("the files of {} could not be put together: {error}", self.0.display());
        }
    }
}

/// A directory of logs. The fields are dropped in this order: logs first, then files are put together.
struct Store {
    logs: Mutex<BTreeMap<GroupId, One>>,
    spread: Spread,
    strict: Strictness,
}

impl Store {
    fn logs(&self) -> MutexGuard<'_, BTreeMap<GroupId, One>> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dir(&self, group: GroupId) -> PathBuf {
        self.spread.0.join(format!("{group:020}"))
    }

    fn take(&self, logs: &mut BTreeMap<GroupId, One>, op: &Op) -> Result<(), Failure> {
        let group = match op {
            Op::Append { group, .. }
            | Op::State { group, .. }
            | Op::Compact { group, .. }
            | Op::Reset { group, .. }
            | Op::Clear { group } => *group,
        };
        if matches!(op, Op::Clear { .. }) {
            drop(logs.remove(&group));
            return match std::fs::remove_dir_all(self.dir(group)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failure(error)),
                _ => Ok(()),
            };
        }
        match logs.entry(group) {
            Slot::Occupied(slot) => slot.into_mut().take(op),
            Slot::Vacant(slot) => slot.insert(One::open(&self.dir(group), self.strict)?).take(op),
        }
    }
}

impl LogStore for Store {
    fn write(&self, batch: &Batch) -> Result<(), Failure> {
        let mut logs = self.logs();
        for (n, op) in batch.ops.iter().enumerate() {
            match self.take(&mut logs, op) {
                Err(Failure::Refused(_)) if n > 0 => {
                    return Err(Failure::Unsupported("no batches: what came before stays"));
                }
                taken => taken?,
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), Failure> {
        let mut answers = Vec::new();
        for one in self.logs().values_mut().filter(|one| one.dirty) {
            let (tell, told) = sync_channel(1);
            one.log.flush(true, Some(tell)).map_err(failure)?;
            one.dirty = false;
            answers.push(told);
        }
        for answer in answers {
            match answer.recv() {
                Ok(synced) => synced.map_err(failure)?,
                Err(_) => return Err(Failure::Stopped("the flush worker has ended".into())),
            }
        }
        Ok(())
    }

    fn bounds(&self, group: GroupId) -> Result<Option<(u64, u64)>, Failure> {
        self.logs().get(&group).map_or(Ok(None), One::bounds)
    }

    fn entries(
        &self,
        group: GroupId,
        low: u64,
        high: u64,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, Failure> {
        let logs = self.logs();
        let Some(one) = logs.get(&group) else { return Ok(Vec::new()) };
        let (mut found, mut bytes) = (Vec::new(), 0);
        for entry in one.read(low, high) {
            let entry = entry?;
            // Its read has no limit of bytes, but it is an iterator.
            bytes += entry.data.len() as u64;
            if !found.is_empty() && bytes > max_bytes {
                break;
            }
            found.push(entry);
        }
        Ok(found)
    }

    fn term(&self, group: GroupId, index: u64) -> Result<Option<u64>, Failure> {
        let logs = self.logs();
        let Some(one) = logs.get(&group) else { return Ok(None) };
        let entry = one.read(index, index.saturating_add(1)).next().transpose()?;
        Ok(entry.map(|entry| entry.term))
    }

    fn state(&self, group: GroupId) -> Result<Option<Bytes>, Failure> {
        let logs = self.logs();
        let state = logs.get(&group).and_then(|one| one.log.log_state().user_data.clone());
        Ok(state.map(Bytes::from))
    }

    fn groups(&self) -> Result<Vec<GroupId>, Failure> {
        Ok(self.logs().keys().copied().collect())
    }

    fn truncated(&self, group: GroupId) -> Result<LogPosition, Failure> {
        let logs = self.logs();
        let purged = logs.get(&group).and_then(|one| one.log.log_state().purged().copied());
        Ok(purged.map_or(LogPosition::default(), |(term, index)| LogPosition { index, term }))
    }

    fn purge(&self) -> Result<(), Failure> {
        // Chunks go behind a sync; the worker removes them in its own time.
        for one in self.logs().values_mut() {
            one.dirty = true;
        }
        self.sync()?;
        self.logs().values().try_for_each(|one| one.log.wait_worker_idle()).map_err(failure)
    }

    fn disk_bytes(&self) -> Result<u64, Failure> {
        Ok(self.logs().values().map(|one| one.log.on_disk_size()).sum())
    }
}

/// Opens directories of logs below one.
pub struct LogFactory {
    root: PathBuf,
    strict: Strictness,
}

impl LogFactory {
    /// Below `root`, told to cut an incomplete record at the end (its default) or not.
    pub fn new(root: PathBuf, strict: Strictness) -> LogFactory {
        LogFactory { root, strict }
    }
}

impl Factory for LogFactory {
    fn name(&self) -> String {
        "raft-log 0.4.6".into()
    }

    fn open(&self, store: &str) -> Result<Box<dyn LogStore>, Failure> {
        let spread = Spread::open(&self.root.join(store)).map_err(failure)?;
        let mut logs = BTreeMap::new();
        for group in std::fs::read_dir(&spread.0).map_err(failure)? {
            let group = group.map_err(failure)?;
            if let Ok(id) = group.file_name().to_string_lossy().parse() {
                logs.insert(id, One::open(&group.path(), self.strict)?);
            }
        }
        Ok(Box::new(Store { logs: Mutex::new(logs), spread, strict: self.strict }))
    }

    fn directory(&self, store: &str) -> Result<PathBuf, Failure> {
        Ok(self.root.join(store))
    }
}
