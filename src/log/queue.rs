//! What waits for the writer: batches that have their numbers and no place on the disk yet.

use super::Shared;
use super::batch::Encoded;
use super::format::{Op, RECORD_HEADER};
use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;

/// A batch that has its number and waits for the writer.
#[derive(Debug)]
pub(super) struct Pending {
    pub seq: u64,
    pub encoded: Encoded,
    /// Bytes of runs in it.
    pub run_bytes: u64,
}

impl Pending {
    pub fn size(&self) -> usize {
        RECORD_HEADER + self.encoded.dir.len() + self.encoded.payload.len()
    }
}

/// What submitters and the writer share. Its lock orders batches: a batch gets its number, becomes
/// visible in the index and enters the queue under it, so index and disk agree on the order.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub next_seq: u64,
    pending: Vec<Pending>,
    /// Bytes of what is pending here.
    waiting: usize,
    /// Groups that have entries in the cache; the hand of the clock is at the front.
    pub clock: VecDeque<u64>,
    pub writer_sleeps: bool,
    /// Batches left the queue that are in no group yet, for want of room in the segment.
    pub leftover: bool,
}

impl Queue {
    /// Empty; the next batch has this number.
    pub fn new(next_seq: u64) -> Queue {
        Queue { next_seq, ..Queue::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.pending.is_empty() && !self.leftover
    }

    pub fn push(&mut self, pending: Pending) {
        self.waiting += pending.size();
        self.pending.push(pending);
    }

    pub fn take(&mut self) -> Vec<Pending> {
        self.waiting = 0;
        std::mem::take(&mut self.pending)
    }

    /// Bytes that wait here for the writer.
    pub fn waiting(&self) -> usize {
        self.waiting
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
        queue.push(Pending { seq, encoded, run_bytes });
        self.counters.batches.fetch_add(1, Relaxed);
        seq
    }
}
