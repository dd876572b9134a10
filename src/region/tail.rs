//! The end of a group's log, kept beside raft: what raft asks its storage for in every round. The log knows it too, behind
//! the lock of a shard and several fetches from memory; where a thousand groups do a little each, that was a seventh
//! of the work.
//!
//! Only the replica writes to its group's log, so it knows what is in it. What it has handed to the log is in the
//! [`Tail`] from the moment at which it is put into a batch: raft asks for it before the batch is submitted.

use crate::log::Log;
use crate::types::{LogPosition, RegionId};
use ::raft::eraftpb::Entry;
use std::collections::VecDeque;

/// At most so many entries are kept: more wait only where a majority is slow, and the log has them.
const ENTRIES_MAX: usize = 32;
/// Nor any more of them once they weigh so much.
const BYTES_MAX: usize = 1 << 20;

/// The end of a group's log.
///
/// * `entries`, if not empty, are consecutive and end at `last`.
#[derive(Clone, Debug)]
pub(super) struct Tail {
    /// Where the log begins: the last position that was compacted away.
    pub truncated: LogPosition,
    /// Where it ends.
    pub last: LogPosition,
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Tail {
    /// An empty log that starts after a position.
    pub fn after(truncated: LogPosition) -> Tail {
        Tail { truncated, last: truncated, entries: VecDeque::new(), bytes: 0 }
    }

    /// As the log says. `None`: its last entry has no term.
    pub fn of(log: &Log, region: RegionId) -> Option<Tail> {
        let truncated = log.truncated(region.0);
        let index = log.last_index(region.0);
        if index <= truncated.index {
            return Some(Tail::after(truncated));
        }
        let term = log.term(region.0, index).ok().flatten()?;
        Some(Tail { last: LogPosition { index, term }, ..Tail::after(truncated) })
    }

    /// Entries are appended, in the place of those that had their indexes.
    pub fn append(&mut self, entries: Vec<Entry>) {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return };
        while self.entries.back().is_some_and(|entry| entry.index >= first.index) {
            self.bytes -= self.entries.pop_back().map_or(0, |entry| entry.data.len());
        }
        self.last = LogPosition { index: last.index, term: last.term };
        self.bytes += entries.iter().map(|entry| entry.data.len()).sum::<usize>();
        self.entries.extend(entries);
        while self.entries.len() > ENTRIES_MAX || self.bytes > BYTES_MAX {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        self.bytes -= self.entries.pop_front().map_or(0, |entry| entry.data.len());
    }

    /// Raft has handed out what is committed up to here, and seldom asks for it again.
    pub fn handed_out(&mut self, index: u64) {
        while self.entries.front().is_some_and(|first| first.index <= index) {
            self.forget_first();
        }
    }

    /// The log was compacted up to here.
    pub fn compacted(&mut self, truncated: LogPosition) {
        self.truncated = truncated;
        self.handed_out(truncated.index);
    }

    /// The term at an index, if it is known here.
    pub fn term(&self, index: u64) -> Option<u64> {
        if index == self.truncated.index {
            return Some(self.truncated.term);
        }
        if index == self.last.index {
            return Some(self.last.term);
        }
        self.place(index).map(|place| self.entries[place].term)
    }

    fn place(&self, index: u64) -> Option<usize> {
        let first = self.entries.front()?.index;
        let place = usize::try_from(index.checked_sub(first)?).ok()?;
        (place < self.entries.len()).then_some(place)
    }

    /// The entries `low..high`, as many as `max_bytes` of data allow, but at least one; if they are known here.
    pub fn entries(&self, low: u64, high: u64, max_bytes: u64) -> Option<Vec<Entry>> {
        let from = self.place(low)?;
        let to = self.place(high.checked_sub(1)?)?;
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            bytes += entry.data.len() as u64;
            entry.index == low || bytes <= max_bytes
        };
        Some(self.entries.range(from..=to).take_while(fits).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![7; 10].into(), ..Default::default() }
    }

    fn tail() -> Tail {
        let mut tail = Tail::after(LogPosition { index: 4, term: 2 });
        tail.append(vec![entry(5, 2), entry(6, 2), entry(7, 3)]);
        tail
    }

    fn indexes(tail: &Tail, low: u64, high: u64, max: u64) -> Option<Vec<u64>> {
        Some(tail.entries(low, high, max)?.iter().map(|entry| entry.index).collect())
    }

    #[test]
    fn what_is_appended_is_found_and_what_it_replaces_is_gone() {
        let mut tail = tail();
        let terms: Vec<_> = (3..9).map(|index| tail.term(index)).collect();
        assert_eq!(terms, [None, Some(2), Some(2), Some(2), Some(3), None]);
        tail.append(vec![entry(6, 4)]);
        assert_eq!((tail.term(6), tail.term(7), tail.last.index), (Some(4), None, 6));
        assert_eq!(indexes(&tail, 5, 7, u64::MAX), Some(vec![5, 6]));
        assert_eq!(indexes(&tail, 5, 8, u64::MAX), None, "not all of them are there");
        assert_eq!(tail.bytes, 20);
    }

    #[test]
    fn at_least_one_is_given_and_else_what_there_is_room_for() {
        let tail = tail();
        for (max, count) in [(0, 1), (19, 1), (20, 2), (29, 2), (30, 3)] {
            assert_eq!(tail.entries(5, 8, max).map(|found| found.len()), Some(count), "{max}");
        }
    }

    #[test]
    fn what_was_handed_out_or_is_too_much_is_the_logs_to_know() {
        let mut tail = tail();
        tail.handed_out(6);
        assert_eq!((tail.term(6), indexes(&tail, 7, 8, 0)), (None, Some(vec![7])));
        tail.handed_out(9);
        assert_eq!((tail.term(7), tail.bytes), (Some(3), 0), "the end is known");
        for index in 8..100 {
            tail.append(vec![entry(index, 3)]);
        }
        assert_eq!(tail.entries.len(), ENTRIES_MAX);
        let heavy = Entry { data: vec![0; BYTES_MAX + 1].into(), ..entry(100, 3) };
        tail.append(vec![heavy]);
        assert_eq!((tail.entries.len(), tail.bytes, tail.last.index), (0, 0, 100));
        tail.compacted(LogPosition { index: 100, term: 3 });
        assert_eq!((tail.term(4), tail.term(100)), (None, Some(3)));
    }
}
