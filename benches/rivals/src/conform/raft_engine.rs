//! raft-engine under the conformance suite.
//!
//! What the suite asks and raft-engine has no word for: the position of a compaction (unsupported), and a
//! reset, which is done as its users do it, by a compaction past the end; a log may then begin anywhere.
//! Its `Engine::sync` writes an empty batch, which returns before any sync: an empty value of a group of
//! our own is written with a sync instead. A panic of a sync counts as an error, for a process that dies
//! acknowledges nothing; what the engine does after it is what is judged.

use super::Strictness;
use super::shaky::{Shaky, ShakyFs};
use bytes::Bytes;
use catamaran::log::{Entry, GroupId};
use catamaran::testkit::{Batch, Factory, Failure, LogStore, Op};
use raft::eraftpb::{Entry as Proto, EntryType};
use raft_engine::{
    Command, Config, Engine, Error, LogBatch, MessageExt, ReadableSize, RecoveryMode,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

struct Entries;

impl MessageExt for Entries {
    type Entry = Proto;

    fn index(entry: &Proto) -> u64 {
        entry.index
    }
}

/// Key of the state record.
const STATE: &[u8] = b"state";
/// A group that exists to be written to with a sync.
const SYNC_GROUP: GroupId = 0x7379_6e63_7379_6e63;

fn failure(error: Error) -> Failure {
    let what = error.to_string();
    match error {
        Error::InvalidArgument(_) | Error::EntryCompacted | Error::EntryNotFound | Error::Full => {
            Failure::Refused(what)
        }
        Error::Corruption(_) | Error::Codec(_) | Error::Protobuf(_) => Failure::Damaged(what),
        // Both of its words for a full disk: the second when it has tried twice.
        Error::Io(ref io) if io.kind() == std::io::ErrorKind::StorageFull => Failure::NoRoom(what),
        Error::TryAgain(_) => Failure::NoRoom(what),
        _ => Failure::Stopped(what),
    }
}

fn to_proto(entry: &Entry) -> Result<Proto, Failure> {
    let mut proto = Proto::default();
    proto.set_index(entry.index);
    proto.set_term(entry.term);
    proto.set_data(entry.data.clone());
    proto.set_entry_type(match entry.kind {
        0 => EntryType::EntryNormal,
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        _ => return Err(Failure::Unsupported("kinds that raft's entries do not have")),
    });
    Ok(proto)
}

fn from_proto(proto: Proto) -> Entry {
    let kind = match proto.entry_type {
        EntryType::EntryNormal => 0,
        EntryType::EntryConfChange => 1,
        EntryType::EntryConfChangeV2 => 2,
    };
    Entry { index: proto.index, term: proto.term, kind, data: proto.data }
}

/// One open engine.
struct Store(Engine<ShakyFs>);

impl Store {
    fn add(&self, batch: &mut LogBatch, op: &Op) -> Result<(), Failure> {
        match op {
            Op::Append { group, entries } => {
                let entries = entries.iter().map(to_proto).collect::<Result<Vec<_>, _>>()?;
                batch.add_entries::<Entries>(*group, &entries).map_err(failure)
            }
            Op::State { group, state } => {
                batch.put(*group, STATE.to_vec(), state.to_vec()).map_err(failure)
            }
            Op::Compact { group, to } => {
                batch.add_command(*group, Command::Compact { index: to.index + 1 });
                Ok(())
            }
            Op::Reset { group, to } => {
                let last = self.0.last_index(*group).unwrap_or(0).max(to.index);
                batch.add_command(*group, Command::Compact { index: last + 1 });
                Ok(())
            }
            Op::Clear { group } => {
                batch.add_command(*group, Command::Clean);
                Ok(())
            }
        }
    }
}

impl LogStore for Store {
    fn write(&self, batch: &Batch) -> Result<(), Failure> {
        let mut items = LogBatch::default();
        for op in &batch.ops {
            self.add(&mut items, op)?;
        }
        self.0.write(&mut items, false).map(drop).map_err(failure)
    }

    fn sync(&self) -> Result<(), Failure> {
        let mut mark = LogBatch::default();
        mark.put(SYNC_GROUP, STATE.to_vec(), Vec::new()).map_err(failure)?;
        let synced = catch_unwind(AssertUnwindSafe(|| self.0.write(&mut mark, true)));
        match synced {
            Ok(synced) => synced.map(drop).map_err(failure),
            Err(_) => Err(Failure::Stopped("the sync panicked".into())),
        }
    }

    fn bounds(&self, group: GroupId) -> Result<Option<(u64, u64)>, Failure> {
        Ok(self.0.first_index(group).zip(self.0.last_index(group)))
    }

    fn entries(
        &self,
        group: GroupId,
        low: u64,
        high: u64,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, Failure> {
        let mut found = Vec::new();
        let max = usize::try_from(max_bytes).ok().filter(|max| *max < usize::MAX);
        self.0.fetch_entries_to::<Entries>(group, low, high, max, &mut found).map_err(failure)?;
        Ok(found.into_iter().map(from_proto).collect())
    }

    fn term(&self, group: GroupId, index: u64) -> Result<Option<u64>, Failure> {
        let entry = self.0.get_entry::<Entries>(group, index).map_err(failure)?;
        Ok(entry.map(|entry| entry.term))
    }

    fn state(&self, group: GroupId) -> Result<Option<Bytes>, Failure> {
        Ok(self.0.get(group, STATE).map(Bytes::from))
    }

    fn groups(&self) -> Result<Vec<GroupId>, Failure> {
        Ok(self.0.raft_groups().into_iter().filter(|group| *group != SYNC_GROUP).collect())
    }

    fn purge(&self) -> Result<(), Failure> {
        // It names groups that ought to be compacted; what a group needs it rewrites by itself.
        self.0.purge_expired_files().map(drop).map_err(failure)
    }

    fn disk_bytes(&self) -> Result<u64, Failure> {
        // Without files that it keeps for reuse.
        Ok(self.0.get_used_size() as u64)
    }
}

/// Opens engines in directories below one.
pub struct EngineFactory {
    root: PathBuf,
    mode: RecoveryMode,
    shaky: Arc<Shaky>,
}

impl EngineFactory {
    /// With its default recovery mode, which tolerates damage at the end, or the strictest.
    pub fn new(root: PathBuf, strict: Strictness) -> EngineFactory {
        let mode = match strict {
            Strictness::Default => RecoveryMode::TolerateTailCorruption,
            Strictness::Absolute => RecoveryMode::AbsoluteConsistency,
        };
        EngineFactory { root, mode, shaky: Arc::default() }
    }
}

impl Factory for EngineFactory {
    fn name(&self) -> String {
        "raft-engine 0.4.2".into()
    }

    fn open(&self, store: &str) -> Result<Box<dyn LogStore>, Failure> {
        let config = Config {
            dir: self.root.join(store).to_string_lossy().into_owned(),
            recovery_mode: self.mode,
            target_file_size: ReadableSize::kb(64),
            purge_threshold: ReadableSize::kb(128),
            // Compressed, what the suite writes would never fill enough files for a purge.
            batch_compression_threshold: ReadableSize(0),
            ..Config::default()
        };
        let fs = Arc::new(ShakyFs(Arc::clone(&self.shaky)));
        let engine = Engine::open_with_file_system(config, fs).map_err(failure)?;
        Ok(Box::new(Store(engine)))
    }

    fn directory(&self, store: &str) -> Result<PathBuf, Failure> {
        Ok(self.root.join(store))
    }

    fn cut_power(&self, _store: &str, seed: u64) -> Result<(), Failure> {
        self.shaky.cut_power(seed).map_err(|error| Failure::Stopped(error.to_string()))
    }

    fn fail_next_sync(&self, _store: &str) -> Result<(), Failure> {
        self.shaky.fail_next_sync();
        Ok(())
    }

    fn limit_space(&self, _store: &str, more: Option<u64>) -> Result<(), Failure> {
        self.shaky.limit_space(more);
        Ok(())
    }
}
