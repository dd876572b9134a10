//! The network's side of a node: what arrives goes to the driver, what the driver sends goes out.

use super::founding::Founding;
use super::handover::Away;
use super::members::Roster;
use super::operator::Wishes;
use super::snapshots::arrivals::Arrivals;
use super::snapshots::dispatch::Dispatch;
use crate::client::local::Local;
use crate::codec::beat::Beat;
use crate::driver::{Driver, Outward, SnapshotStats};
use crate::error::{Error, Result};
use crate::raft::{Envelope, Lane};
use crate::store::{Claim, Delivered, MergeWish, SnapshotErrand, SnapshotSend, SplitWish};
use crate::transport::{Handler, Origin, SnapshotRoom, Transport};
use crate::types::{Start, StoreId};
use ::raft::eraftpb::MessageType;
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;

/// The way out: the driver's, over a transport.
pub(super) struct Outbound {
    pub transport: Arc<dyn Transport>,
    pub wishes: Wishes,
    pub dispatch: Arc<Dispatch>,
    pub arrivals: Arc<Arrivals>,
}

impl Outward for Outbound {
    fn send(&self, to: StoreId, lane: Lane, envelopes: Vec<Envelope>) {
        self.transport.send(to, lane, envelopes);
    }

    fn beat(&self, to: StoreId, beat: Beat) {
        self.transport.beat(to, beat);
    }

    fn split(&self, wish: SplitWish) {
        self.wishes.split(wish);
    }

    fn merge(&self, wish: MergeWish) {
        self.wishes.merge(wish);
    }

    fn snapshot_wanted(
        &self,
        errand: SnapshotErrand,
        store: StoreId,
        claim: Claim,
        granted: Box<dyn FnOnce() + Send>,
    ) {
        self.dispatch.want(errand, store, claim, granted);
    }

    fn snapshot_declined(&self, errand: SnapshotErrand) {
        self.dispatch.declined(errand);
    }

    fn snapshot_called_off(&self, errand: SnapshotErrand) {
        self.dispatch.call_off(errand);
    }

    fn snapshot_gone(&self, path: &Path) {
        self.arrivals.gone(path);
    }

    fn send_snapshot(&self, snapshot: SnapshotSend, done: Box<dyn FnOnce(Delivered) + Send>) {
        self.dispatch.send(snapshot, done);
    }

    fn snapshot_stats(&self) -> SnapshotStats {
        let stats = self.dispatch.stats(&self.transport.stats());
        self.arrivals.stats(stats)
    }
}

/// Everything that arrives.
///
/// * A store is known by what is on record of its directory ([`Roster`]): one that comes back with another, or with an
///   old copy, is kept out for ever. It joins anew, under a new id.
pub(super) struct Desk {
    pub local: Local,
    pub driver: Driver,
    pub arrivals: Arc<Arrivals>,
    pub roster: Arc<Roster>,
    pub away: Arc<Away>,
    pub founding: Arc<Founding>,
}

impl Desk {
    fn heard(&self, origin: Origin) {
        if let Some(store) = origin.store {
            self.away.heard(store);
        }
    }
}

impl Handler for Desk {
    fn envelopes(&self, from: StoreId, mut envelopes: Vec<Envelope>) {
        self.away.heard(from);
        if self.founding.is_under_way() {
            // Nothing is answered before there are replicas. A request for a vote waits for them.
            let asks = [MessageType::MsgRequestVote, MessageType::MsgRequestPreVote];
            envelopes.retain(|envelope| asks.contains(&envelope.message.get_msg_type()));
        }
        self.driver.messages(envelopes);
    }

    fn beat(&self, from: StoreId, beat: Beat) {
        self.away.heard(from);
        self.arrivals.sweep(self.driver.clock().now());
        self.driver.beat(from, beat);
    }

    fn request(&self, origin: Origin, id: u64, body: Bytes) {
        self.heard(origin);
        self.local.serve(origin, vec![(id, body)]);
    }

    fn requests(&self, origin: Origin, requests: Vec<(u64, Bytes)>) {
        self.heard(origin);
        self.local.serve(origin, requests);
    }

    fn response(&self, from: StoreId, id: u64, body: Bytes) {
        self.local.answered(from, id, body);
    }

    fn unreachable(&self, store: StoreId) {
        self.away.lost(store);
        self.driver.unreachable(store);
    }

    fn connection_lost(&self, store: StoreId) {
        self.local.connection_lost(store);
    }

    fn hello(&self, from: StoreId, incarnation: u64, start: Start) -> Result<()> {
        self.roster.greet(from, incarnation, start)?;
        self.away.heard(from);
        Ok(())
    }

    fn snapshot_reserve(&self, from: StoreId, ask: Bytes) -> Result<Box<dyn SnapshotRoom>> {
        if self.founding.is_under_way() {
            return Err(Error::Busy { what: "a store that has not met all founders" });
        }
        Arrivals::reserve(&self.arrivals, &self.driver, from, ask)
    }
}
