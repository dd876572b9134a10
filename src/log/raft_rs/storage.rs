//! Both halves: what raft-rs reads, and what its readies write.

use super::entry::{from_log, to_log};
use super::record::Record;
use crate::error::{Error, Result};
use crate::log::{GroupId, Log, LogBatch};
use crate::types::{LogPosition, RegionId};
use ::raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot};
use ::raft::{GetEntriesContext, RaftState, Ready, Storage, StorageError};
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;

/// Where snapshots come from: the state machine.
pub trait SnapshotSource: Send + Sync {
    /// A snapshot at `request_index` or later for the peer `to`, its metadata complete; `None` if there is
    /// none now (raft asks again). Must not lie below the group's truncated position.
    fn snapshot(&self, request_index: u64, to: u64) -> Option<Snapshot>;
}

impl<F: Fn(u64, u64) -> Option<Snapshot> + Send + Sync> SnapshotSource for F {
    fn snapshot(&self, request_index: u64, to: u64) -> Option<Snapshot> {
        self(request_index, to)
    }
}

/// Where a bootstrapped group's log begins. Not at 0: who has nothing yet must get a snapshot, for the
/// first configuration is not in the log.
const BOOTSTRAP: LogPosition = LogPosition { index: 1, term: 1 };

/// One group of the log as raft-rs sees it, and the way to write what raft-rs has decided. Clones are
/// handles of the same group.
///
/// - What [`Storage`] shows of entries is what was submitted.
/// - The state record is remembered from the last put, so that several puts may share a batch. A batch that
///   the log refused leaves it ahead of the log: drop the node and its storage then, and open them anew.
/// - Entries, hard state and configuration of one ready are one batch, so a crash never leaves a commit
///   index beyond the log, over which raft-rs would refuse to start.
#[derive(Clone)]
pub struct RaftStorage {
    log: Log,
    group: GroupId,
    record: Arc<Mutex<Record>>,
    snapshots: Option<Arc<dyn SnapshotSource>>,
    fault: Arc<Mutex<Option<Error>>>,
}

impl fmt::Debug for RaftStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RaftStorage").field("group", &self.group).finish_non_exhaustive()
    }
}

impl RaftStorage {
    /// The storage of a group, new or old.
    ///
    /// Errors: [`Quarantined`](Error::Quarantined) when the log found its acknowledged bytes damaged;
    /// [`Malformed`](Error::Malformed) when its state record was written by somebody else.
    pub fn open(log: Log, group: GroupId) -> Result<RaftStorage> {
        if let Some(damage) = log.damage(group) {
            let reason =
                format!("{} at {}: {}", damage.file.display(), damage.offset, damage.detail);
            return Err(Error::Quarantined { region: RegionId(group), reason });
        }
        let record = match log.state(group) {
            Some(bytes) => Record::decode(&bytes)?,
            None => Record::default(),
        };
        let record = Arc::new(Mutex::new(record));
        Ok(RaftStorage { log, group, record, snapshots: None, fault: Arc::default() })
    }

    /// With a source of snapshots. Without one, a peer that needs a snapshot waits for ever.
    pub fn with_snapshots(mut self, source: impl SnapshotSource + 'static) -> RaftStorage {
        self.snapshots = Some(Arc::new(source));
        self
    }

    /// The group.
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// Whether the group has a configuration: it was bootstrapped here or got a snapshot.
    pub fn is_initialized(&self) -> bool {
        self.record.lock().conf != ConfState::default()
    }

    /// The entry that made the recorded configuration what it is. Changes up to it, handed out again
    /// after a restart, are in it already.
    pub fn conf_index(&self) -> u64 {
        self.record.lock().conf_index
    }

    /// Damage that raft-rs was not told of, since it would have ended the process.
    pub fn take_fault(&self) -> Option<Error> {
        self.fault.lock().take()
    }

    /// Puts the beginning of a new group: `voters` as its configuration, its log starting after index 1 of
    /// term 1. Every first voter does the same; peers that join later get a snapshot.
    ///
    /// Errors: [`InvalidArgument`](Error::InvalidArgument) for a group that has begun, or no voters.
    pub fn put_bootstrap(
        &self,
        batch: &mut LogBatch,
        voters: impl IntoIterator<Item = u64>,
    ) -> Result<()> {
        let voters: Vec<u64> = voters.into_iter().collect();
        if voters.is_empty() || *self.record.lock() != Record::default() || self.last() > 0 {
            let what = format!("group {}: has begun already, or has no voters", self.group);
            return Err(Error::InvalidArgument(what));
        }
        batch.reset(self.group, BOOTSTRAP);
        self.put(batch, |record| {
            record.hard.term = BOOTSTRAP.term;
            record.hard.commit = BOOTSTRAP.index;
            record.conf = sorted(&ConfState { voters, ..Default::default() });
            record.conf_index = BOOTSTRAP.index;
        });
        Ok(())
    }

    /// Puts what a ready asks to be made durable: snapshot metadata, entries, hard state. Puts nothing if
    /// there is nothing. The snapshot's data must be durable elsewhere before the batch is submitted.
    pub fn put_ready(&self, batch: &mut LogBatch, ready: &Ready) {
        let snapshot = ready.snapshot().get_metadata();
        let restores = snapshot.index > 0;
        if restores {
            let to = LogPosition { index: snapshot.index, term: snapshot.term };
            batch.reset(self.group, to);
        }
        batch.append(self.group, ready.entries().iter().map(to_log));
        if !restores && ready.hs().is_none() {
            return;
        }
        self.put(batch, |record| {
            if restores {
                record.conf = sorted(snapshot.get_conf_state());
                record.conf_index = snapshot.index;
                record.hard.commit = record.hard.commit.max(snapshot.index);
            }
            if let Some(hard) = ready.hs() {
                let commit = hard.commit.max(record.hard.commit);
                record.hard = HardState { commit, ..hard.clone() };
            }
        });
    }

    /// Puts a commit index that moved on after the ready. It need not become durable soon.
    pub fn put_commit(&self, batch: &mut LogBatch, commit: u64) {
        let known = self.record.lock().hard.commit;
        if commit > known {
            self.put(batch, |record| record.hard.commit = commit);
        }
    }

    /// Puts the configuration that `apply_conf_change` returned for the entry at `index`.
    pub fn put_conf_state(&self, batch: &mut LogBatch, index: u64, conf: &ConfState) {
        self.put(batch, |record| {
            record.conf = sorted(conf);
            record.conf_index = index;
            // What is applied is committed, whether that was written or not.
            record.hard.commit = record.hard.commit.max(index);
        });
    }

    /// Puts a compaction: entries up to `index` are applied, durably, and not needed here any more.
    ///
    /// Errors: [`InvalidArgument`](Error::InvalidArgument) beyond the last entry;
    /// [`Quarantined`](Error::Quarantined) for a group whose log is damaged. Below the first entry it does nothing.
    pub fn put_compact(&self, batch: &mut LogBatch, index: u64) -> Result<()> {
        if index <= self.log.truncated(self.group).index {
            return Ok(());
        }
        let Some(term) = self.log.term(self.group, index)? else {
            let what = format!("group {}: compact to {index}, last is {}", self.group, self.last());
            return Err(Error::InvalidArgument(what));
        };
        // Else raft-rs would meet a commit index below the log's beginning after a restart.
        self.put_commit(batch, index);
        batch.compact_to(self.group, LogPosition { index, term });
        Ok(())
    }

    /// Puts the end of the group: all of it goes. A peer that comes back must have another id.
    pub fn put_destroy(&self, batch: &mut LogBatch) {
        batch.clear(self.group);
        *self.record.lock() = Record::default();
    }

    /// Tells the log that entries up to `applied` were applied and may leave its cache.
    pub fn trim_cache(&self, applied: u64) {
        self.log.trim_cache(self.group, applied);
    }

    fn put(&self, batch: &mut LogBatch, change: impl FnOnce(&mut Record)) {
        let mut record = self.record.lock();
        change(&mut record);
        batch.set_state(self.group, record.encode());
    }

    fn last(&self) -> u64 {
        self.log.last_index(self.group)
    }

    fn note(&self, error: Error) {
        self.fault.lock().get_or_insert(error);
    }

    fn read(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>> {
        self.log.entries(self.group, low, high, max_bytes)?.into_iter().map(from_log).collect()
    }
}

/// What raft-rs wants entries for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Purpose {
    /// To send them to a peer.
    Send,
    /// To hand them out to be applied.
    Apply,
    /// To see whether a change of the configuration is among them, before it stands for election.
    LookForChanges,
    /// Somebody asks who is not raft-rs.
    Outside,
}

impl Purpose {
    /// raft-rs tells only whether entries may come later, and shows the rest when the context is printed. (One
    /// that prints it otherwise is answered as if it wanted to apply them; `log_raft_fault` would tell.)
    fn of(context: &GetEntriesContext) -> Purpose {
        let printed = format!("{context:?}");
        let says = |name: &str| printed.contains(name);
        if says("SendAppend") {
            Purpose::Send
        } else if says("TransferLeader") || says("CommitByVote") {
            Purpose::LookForChanges
        } else if says("Empty") {
            Purpose::Outside
        } else {
            Purpose::Apply
        }
    }

    /// The answer when the entries from `low` on cannot be read, of which raft-rs makes least. The page of the
    /// room says what it makes of each.
    fn without_entries(self, low: u64) -> ::raft::Result<Vec<Entry>> {
        match self {
            Purpose::Send | Purpose::Outside => Err(StorageError::LogTemporarilyUnavailable.into()),
            Purpose::Apply => Ok(Vec::new()),
            // It only counts: with one of these it keeps from campaigning.
            Purpose::LookForChanges => {
                let mut change = Entry { index: low, ..Entry::default() };
                change.set_entry_type(EntryType::EntryConfChangeV2);
                Ok(vec![change])
            }
        }
    }
}

/// The answer to raft-rs, which asked for entries from `low` on, when they cannot be read. Whoever gives it notes the
/// fault, and makes nothing of what raft-rs makes of it.
pub(crate) fn without_entries(context: &GetEntriesContext, low: u64) -> ::raft::Result<Vec<Entry>> {
    Purpose::of(context).without_entries(low)
}

/// raft-rs lists the members in the order of a hash map; the record's bytes must not depend on that.
fn sorted(conf: &ConfState) -> ConfState {
    let mut conf = conf.clone();
    conf.voters.sort_unstable();
    conf.learners.sort_unstable();
    conf.voters_outgoing.sort_unstable();
    conf.learners_next.sort_unstable();
    conf
}

impl Storage for RaftStorage {
    fn initial_state(&self) -> ::raft::Result<RaftState> {
        let record = self.record.lock();
        Ok(RaftState::new(record.hard.clone(), record.conf.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> ::raft::Result<Vec<Entry>> {
        if low <= self.log.truncated(self.group).index {
            return Err(StorageError::Compacted.into());
        }
        let max_bytes = max_size.into().unwrap_or(u64::MAX);
        match self.read(low, high, max_bytes) {
            Ok(entries) => Ok(entries),
            Err(error) => {
                self.note(error);
                without_entries(&context, low)
            }
        }
    }

    fn term(&self, index: u64) -> ::raft::Result<u64> {
        let truncated = self.log.truncated(self.group);
        if index < truncated.index {
            return Err(StorageError::Compacted.into());
        }
        match self.log.term(self.group, index) {
            Ok(Some(term)) => Ok(term),
            Ok(None) => Err(StorageError::Unavailable.into()),
            Err(error) => {
                self.note(error);
                Err(StorageError::Unavailable.into())
            }
        }
    }

    fn first_index(&self) -> ::raft::Result<u64> {
        Ok(self.log.first_index(self.group))
    }

    fn last_index(&self) -> ::raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> ::raft::Result<Snapshot> {
        let snapshot = self.snapshots.as_ref().and_then(|s| s.snapshot(request_index, to));
        let at = |snapshot: &Snapshot| snapshot.get_metadata().index;
        match snapshot.filter(|snapshot| at(snapshot) > 0 && at(snapshot) >= request_index) {
            Some(snapshot) => Ok(snapshot),
            None => Err(StorageError::SnapshotTemporarilyUnavailable.into()),
        }
    }
}
