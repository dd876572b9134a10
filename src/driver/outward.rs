//! The way out of a node, as its threads see it.

use crate::codec::beat::Beat;
use crate::raft::{Envelope, Lane};
use crate::store::{Claim, Delivered, MergeWish, SnapshotErrand, SnapshotSend, SplitWish};
use crate::types::StoreId;
use std::path::Path;

/// What became of the snapshots of a node since it was opened: counters, and gauges at the end.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct SnapshotStats {
    /// Sent to the end.
    pub sent: u64,
    /// Received to the end.
    pub received: u64,
    /// Bytes of data sent; what had to be sent again counts again.
    pub sent_bytes: u64,
    /// Bytes of data received.
    pub received_bytes: u64,
    /// Times that a store which was asked for a slot had none, or no use for the snapshot.
    pub refused: u64,
    /// Times that this node said so.
    pub turned_away: u64,
    /// Transfers, sent from here, that went on over another connection after theirs had broken.
    pub resumed: u64,
    /// Called off by the leader, here.
    pub cancelled: u64,
    /// Not delivered for any other reason.
    pub failed: u64,
    /// Now: wishes that wait for a place or a slot. They hold nothing.
    pub waiting: u64,
    /// Now: being asked for a slot, made, or sent.
    pub sending: u64,
    /// Now: slots taken: being received or restored.
    pub receiving: u64,
    /// Now: parts of snapshots whose connection broke.
    pub kept: u64,
}

impl SnapshotStats {
    /// All of them, in the order of their declaration.
    pub fn figures(&self) -> [u64; 13] {
        [
            self.sent,
            self.received,
            self.sent_bytes,
            self.received_bytes,
            self.refused,
            self.turned_away,
            self.resumed,
            self.cancelled,
            self.failed,
            self.waiting,
            self.sending,
            self.receiving,
            self.kept,
        ]
    }

    /// Reads them in that order.
    pub fn read<E>(mut next: impl FnMut() -> Result<u64, E>) -> Result<SnapshotStats, E> {
        Ok(SnapshotStats {
            sent: next()?,
            received: next()?,
            sent_bytes: next()?,
            received_bytes: next()?,
            refused: next()?,
            turned_away: next()?,
            resumed: next()?,
            cancelled: next()?,
            failed: next()?,
            waiting: next()?,
            sending: next()?,
            receiving: next()?,
            kept: next()?,
        })
    }
}

/// The way out of a node, as the driver sees it. Must not block.
pub trait Outward: Send + Sync + 'static {
    /// Sends raft messages, best effort.
    fn send(&self, to: StoreId, lane: Lane, envelopes: Vec<Envelope>);
    /// Tells another node that this one is there, best effort.
    fn beat(&self, to: StoreId, beat: Beat);
    /// A region should be cut. May be forgotten: it is wished again.
    fn split(&self, wish: SplitWish);
    /// A frozen region should be merged. May be forgotten: it is wished again.
    fn merge(&self, wish: MergeWish);
    /// Raft wants to send a snapshot. May be forgotten: it is wanted again. `granted` is called, at most once, when
    /// there is a slot for it.
    fn snapshot_wanted(
        &self,
        errand: SnapshotErrand,
        store: StoreId,
        claim: Claim,
        granted: Box<dyn FnOnce() + Send>,
    );
    /// No snapshot follows on what was granted.
    fn snapshot_declined(&self, errand: SnapshotErrand);
    /// A snapshot that is being sent is not wanted any more.
    fn snapshot_called_off(&self, errand: SnapshotErrand);
    /// A received snapshot's file is gone: restored, or not needed.
    fn snapshot_gone(&self, path: &Path);
    /// Streams a snapshot; tells the end to `done`, exactly once.
    fn send_snapshot(&self, snapshot: SnapshotSend, done: Box<dyn FnOnce(Delivered) + Send>);
    /// What became of snapshots so far.
    fn snapshot_stats(&self) -> SnapshotStats;
}
