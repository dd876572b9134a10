//! A log in memory: entries in a row, no serialization, no sync.

use super::Types;
use openraft::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{OptionalSend, RaftTypeConfig};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

/// The log of one replica. Clones share it. Nothing is awaited while it is locked.
#[derive(Clone, Default)]
pub struct MemoryLog(Arc<Mutex<Held>>);

/// * `entries` have consecutive indices, the first of which is `first`.
#[derive(Default)]
struct Held {
    vote: Option<VoteOf<Types>>,
    purged: Option<LogIdOf<Types>>,
    first: u64,
    entries: VecDeque<<Types as RaftTypeConfig>::Entry>,
}

impl Held {
    /// How many entries lie below an index.
    fn below(&self, index: u64) -> usize {
        let count = index.saturating_sub(self.first);
        usize::try_from(count).map_or(self.entries.len(), |count| count.min(self.entries.len()))
    }
}

impl RaftLogReader<Types> for MemoryLog {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<EntryOf<Types>>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let held = self.0.lock();
        let start = match range.start_bound() {
            Bound::Included(index) => held.below(*index),
            Bound::Excluded(index) => held.below(index.saturating_add(1)),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(index) => held.below(index.saturating_add(1)),
            Bound::Excluded(index) => held.below(*index),
            Bound::Unbounded => held.entries.len(),
        };
        Ok(held.entries.range(start..end.max(start)).cloned().collect())
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf<Types>>, io::Error> {
        Ok(self.0.lock().vote)
    }
}

impl RaftLogStorage<Types> for MemoryLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let held = self.0.lock();
        let last = held.entries.back().map(|entry| entry.log_id());
        Ok(LogState { last_purged_log_id: held.purged, last_log_id: last.or(held.purged) })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<Types>) -> Result<(), io::Error> {
        self.0.lock().vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = EntryOf<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        {
            let mut held = self.0.lock();
            for entry in entries {
                if held.entries.is_empty() {
                    held.first = entry.index();
                }
                held.entries.push_back(entry);
            }
        }
        callback.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<Types>>) -> Result<(), io::Error> {
        let mut held = self.0.lock();
        let keep = last.map_or(0, |last| held.below(last.index().saturating_add(1)));
        held.entries.truncate(keep);
        Ok(())
    }

    async fn purge(&mut self, up_to: LogIdOf<Types>) -> Result<(), io::Error> {
        let mut held = self.0.lock();
        let gone = held.below(up_to.index().saturating_add(1));
        held.entries.drain(..gone);
        held.first = up_to.index().saturating_add(1);
        held.purged = Some(up_to);
        Ok(())
    }
}
