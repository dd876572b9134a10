//! What an implementation has to show: a store, and how to open one.

use crate::log::{Entry, GroupId};
use crate::types::LogPosition;
use bytes::Bytes;
use std::path::PathBuf;

/// Why a store did not do what it was asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    /// The request made no sense to it (a gap, a range it does not have). Nothing has changed.
    #[error("refused: {0}")]
    Refused(String),
    /// The disk has no room. The store stays usable for reads.
    #[error("no room: {0}")]
    NoRoom(String),
    /// It found damaged bytes, and says so.
    #[error("damaged: {0}")]
    Damaged(String),
    /// It cannot go on: an operation of the disk failed, or an earlier one had.
    #[error("stopped: {0}")]
    Stopped(String),
    /// This implementation has no such ability. Checks that need it are skipped.
    #[error("not supported: {0}")]
    Unsupported(&'static str),
}

/// One operation of a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Entries, contiguous. If they start at or below the group's last entry, the old suffix goes.
    Append {
        /// Whose.
        group: GroupId,
        /// At least one.
        entries: Vec<Entry>,
    },
    /// The group's state record (its hard state, say): the last one wins.
    State {
        /// Whose.
        group: GroupId,
        /// Opaque.
        state: Bytes,
    },
    /// Entries up to `to.index` go. Does nothing if they are gone.
    Compact {
        /// Whose.
        group: GroupId,
        /// The last position to go.
        to: LogPosition,
    },
    /// All entries go; the log begins after `to` (a snapshot was restored). The state record stays.
    Reset {
        /// Whose.
        group: GroupId,
        /// The snapshot's position.
        to: LogPosition,
    },
    /// Everything of the group goes.
    Clear {
        /// Whose.
        group: GroupId,
    },
}

/// Operations that take effect together or not at all; per group in the order they were added.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch {
    /// In order.
    pub ops: Vec<Op>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Adds [`Op::Append`].
    pub fn append(mut self, group: GroupId, entries: Vec<Entry>) -> Batch {
        self.ops.push(Op::Append { group, entries });
        self
    }

    /// Adds [`Op::State`].
    pub fn state(mut self, group: GroupId, state: impl Into<Bytes>) -> Batch {
        self.ops.push(Op::State { group, state: state.into() });
        self
    }

    /// Adds [`Op::Compact`].
    pub fn compact(mut self, group: GroupId, index: u64, term: u64) -> Batch {
        self.ops.push(Op::Compact { group, to: LogPosition { index, term } });
        self
    }

    /// Adds [`Op::Reset`].
    pub fn reset(mut self, group: GroupId, index: u64, term: u64) -> Batch {
        self.ops.push(Op::Reset { group, to: LogPosition { index, term } });
        self
    }

    /// Adds [`Op::Clear`].
    pub fn clear(mut self, group: GroupId) -> Batch {
        self.ops.push(Op::Clear { group });
        self
    }
}

/// One open store.
///
/// - What [`write`](Self::write) took is seen by every later read of the same store.
/// - What was written before a [`sync`](Self::sync) that returned `Ok` survives any crash.
/// - A batch survives whole or not at all.
///
/// Dropping a store is a process that ends without a word; [`close`](Self::close) is a proper end.
pub trait LogStore: Send + Sync {
    /// Takes a batch. It need not be durable on return.
    fn write(&self, batch: &Batch) -> Result<(), Failure>;

    /// Makes what was written durable.
    fn sync(&self) -> Result<(), Failure>;

    /// The first and the last index of the group's entries; `None` if it has none.
    fn bounds(&self, group: GroupId) -> Result<Option<(u64, u64)>, Failure>;

    /// The entries `low..high`, in order: as many as `max_bytes` of data allow, at least one if the
    /// range is not empty. [`Failure::Refused`] for what is not there.
    fn entries(
        &self,
        group: GroupId,
        low: u64,
        high: u64,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, Failure>;

    /// The term of an entry; `None` if there is no such entry.
    fn term(&self, group: GroupId, index: u64) -> Result<Option<u64>, Failure>;

    /// The group's state record.
    fn state(&self, group: GroupId) -> Result<Option<Bytes>, Failure>;

    /// Groups that have entries or a state record, in any order. Others may be among them.
    fn groups(&self) -> Result<Vec<GroupId>, Failure>;

    /// The position before the first entry: where the last compaction or reset went.
    fn truncated(&self, _group: GroupId) -> Result<LogPosition, Failure> {
        Err(Failure::Unsupported("the position of a compaction is not kept"))
    }

    /// Gives back what space it can now, synchronously.
    fn purge(&self) -> Result<(), Failure> {
        Ok(())
    }

    /// Bytes on the disk, for checks that space comes back.
    fn disk_bytes(&self) -> Result<u64, Failure> {
        Err(Failure::Unsupported("the size on disk is not reported"))
    }

    /// Ends it properly: what was written is durable afterwards.
    fn close(self: Box<Self>) -> Result<(), Failure> {
        self.sync()
    }
}

/// Opens stores by name. A name always means the same place; stores of different names share nothing.
pub trait Factory {
    /// The implementation, for the report.
    fn name(&self) -> String;

    /// Opens the store of that name, making it if it is not there. Segments or files should be small
    /// (64 KiB or so), that purges and rotations happen.
    fn open(&self, store: &str) -> Result<Box<dyn LogStore>, Failure>;

    /// Where the store keeps its files, all of them in this one directory of the real file system: for
    /// the check that flips bytes. The store is closed while that is done.
    fn directory(&self, _store: &str) -> Result<PathBuf, Failure> {
        Err(Failure::Unsupported("its files cannot be reached"))
    }

    /// Makes the disk of a store, which was dropped just now, look as after a power cut: what was synced
    /// is there, of the rest a part that `seed` chooses.
    fn cut_power(&self, _store: &str, _seed: u64) -> Result<(), Failure> {
        Err(Failure::Unsupported("no power cut can be simulated"))
    }

    /// Lets the next sync of an open store's files fail, and all is well again after it.
    fn fail_next_sync(&self, _store: &str) -> Result<(), Failure> {
        Err(Failure::Unsupported("no sync can be made to fail"))
    }

    /// Lets the disk of an open store take only so many bytes more; `None`: as many as it wants.
    fn limit_space(&self, _store: &str, _more: Option<u64>) -> Result<(), Failure> {
        Err(Failure::Unsupported("the disk cannot be made full"))
    }
}
