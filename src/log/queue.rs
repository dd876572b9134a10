//! What waits for the writer: batches that have their numbers and no place on the disk yet.

use super::batch::Encoded;
use super::format::{Op, RECORD_HEADER};
use super::groups::Index;
use super::{GroupId, Shared};
use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::Ordering::Relaxed;

/// What an echo says of a record beside the groups in it, at most.
const ECHOED: usize = 24;

/// A clock of so many groups is not looked through.
const CLOCK_LEAST: usize = 1024;

/// A batch that has its number and waits for the writer.
#[derive(Debug)]
pub(super) struct Pending {
    pub seq: u64,
    pub encoded: Encoded,
    /// Bytes of runs in it.
    pub run_bytes: u64,
    /// The oldest record that is needed no more, or not for all that it says, because of this batch;
    /// `u64::MAX` if there is none.
    pub undoes: u64,
}

impl Pending {
    pub fn size(&self) -> usize {
        RECORD_HEADER + self.encoded.dir.len() + self.encoded.payload.len()
    }

    /// Bytes that it takes on the disk, its place in an echo included.
    pub fn room(&self) -> u64 {
        (self.size() + self.encoded.groups.len() + ECHOED) as u64
    }
}

/// What submitters and the writer share. Its lock orders batches: a batch gets its number, becomes
/// visible in the index and enters the queue under it, so index and disk agree on the order.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub next_seq: u64,
    pending: Vec<Pending>,
    /// Bytes of what is pending here.
    waiting: u64,
    /// Groups that have entries in the cache; the hand of the clock is at the front.
    pub clock: VecDeque<u64>,
    /// When there are more of them than this, those are looked for that are not there any more.
    clock_bound: usize,
    pub writer_sleeps: bool,
    /// The writer was to be woken, and may not have slept.
    pub writer_called: bool,
    /// Batches left the queue that are in no group yet, for want of room in the segment.
    pub leftover: bool,
}

impl Queue {
    /// Empty; the next batch has this number.
    pub fn new(next_seq: u64) -> Queue {
        Queue { next_seq, clock_bound: CLOCK_LEAST, ..Queue::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.pending.is_empty() && !self.leftover
    }

    pub fn push(&mut self, pending: Pending) {
        self.waiting += pending.room();
        self.pending.push(pending);
    }

    pub fn take(&mut self) -> Vec<Pending> {
        self.waiting = 0;
        std::mem::take(&mut self.pending)
    }

    /// Bytes that what waits here for the writer takes on the disk.
    pub fn waiting(&self) -> u64 {
        self.waiting
    }

    /// A group has entries in the cache, and no place in the clock.
    pub fn enter_clock(&mut self, group: GroupId, index: &Index) {
        self.clock.push_back(group);
        if self.clock.len() <= self.clock_bound {
            return;
        }
        // Groups that were cleared left their places, and may have come back to others.
        let mut seen = BTreeSet::new();
        self.clock.retain(|id| {
            let is_there = *id == group || index.read(*id).is_some_and(|group| group.in_clock);
            is_there && seen.insert(*id)
        });
        self.clock_bound = 2 * self.clock.len() + CLOCK_LEAST;
    }
}

/// Whether a group is to take in what waits in the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TakeQueue {
    First,
    No,
}

impl Shared {
    /// Queues a record of our own making. It may exceed the bound of the queue: it frees space.
    pub(super) fn enqueue(&self, queue: &mut Queue, mut encoded: Encoded) -> u64 {
        let seq = queue.next_seq;
        queue.next_seq += 1;
        encoded.dir_crc = crc32c::crc32c(&encoded.dir);
        let runs = encoded.ops.iter().filter(|op| matches!(op, Op::Rewrite { .. }));
        let run_bytes = runs.filter_map(Op::body).map(|body| u64::from(body.len)).sum();
        encoded.ops = Vec::new();
        let size = RECORD_HEADER + encoded.dir.len() + encoded.payload.len();
        self.pending_bytes.fetch_add(size, Relaxed);
        queue.push(Pending { seq, encoded, run_bytes, undoes: u64::MAX });
        self.counters.batches.fetch_add(1, Relaxed);
        seq
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::mem::MemDisk;
    use crate::log::{Entry, Log, LogBatch, Options};
    use std::path::Path;
    use std::sync::Arc;

    /// Groups that come and go leave nothing behind.
    #[test]
    fn clear_and_create_leaks_the_clock() {
        let options = Options { segment_bytes: 1 << 20, ..Options::default() };
        let (log, _) = Log::open(Arc::new(MemDisk::default()), Path::new("/log"), options).unwrap();
        let append = |batch: &mut LogBatch, id| {
            let data = vec![7; 8].into();
            batch.append(id, [Entry { index: 1, term: 1, kind: 0, data }]);
        };
        let mut batch = LogBatch::new();
        (5000..6500).for_each(|id| append(&mut batch, id));
        log.write(batch).unwrap();
        for n in 0..200 {
            let mut batch = LogBatch::new();
            for id in 0..500 {
                append(&mut batch, id + n % 3);
                batch.clear(id + n % 3);
            }
            log.write(batch).unwrap();
        }
        let queue = log.shared.queue.lock();
        assert!(queue.clock.len() <= 2 * 2000 + CLOCK_LEAST, "{}", queue.clock.len());
        // Those that stay have their places.
        let there: BTreeSet<u64> = queue.clock.iter().copied().collect();
        assert!((5000..6500).all(|id| there.contains(&id)));
    }
}
