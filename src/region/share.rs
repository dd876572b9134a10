//! What other threads may know of a replica without asking its loop: lease, freshness, leader hint.

use crate::types::{Epoch, PeerId, RegionId, StoreId, Time};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Published by a replica's loop, read by clients' threads.
///
/// * `lease_until` is zero unless the replica leads, has applied an entry of its term, and a quorum
///   confirmed it by a round that *started* less than a lease ago; it only grows while that holds.
/// * `committed` is published before any follower can learn of it. A lease read must find it applied in its
///   view: a follower may have applied, and shown, what the leader has only committed.
/// * Everything acknowledged (or shown) before `fresh_as_of` is applied here.
#[derive(Debug)]
pub struct PeerShare {
    /// The replica.
    pub peer: PeerId,
    lease_until: AtomicU64,
    committed: AtomicU64,
    fresh_as_of: AtomicU64,
    epoch_conf_ver: AtomicU64,
    epoch_version: AtomicU64,
    leader: AtomicU64,
}

impl PeerShare {
    /// A replica that knows nothing yet.
    pub fn new(peer: PeerId, epoch: Epoch) -> PeerShare {
        PeerShare {
            peer,
            lease_until: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            fresh_as_of: AtomicU64::new(0),
            epoch_conf_ver: AtomicU64::new(epoch.conf_ver),
            epoch_version: AtomicU64::new(epoch.version),
            leader: AtomicU64::new(0),
        }
    }

    /// Whether the leader lease holds at `now`. Check it again *after* the view was taken.
    pub fn lease_holds(&self, now: Time) -> bool {
        now.0 < self.lease_until.load(Ordering::SeqCst)
    }

    /// The commit index as the replica knows it. For a lease read: look at it before the view is taken,
    /// and ask the loop instead if the view's applied index is below.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::SeqCst)
    }

    /// The instant before which nothing acknowledged is missing here; zero: nothing is known.
    pub fn fresh_as_of(&self) -> Time {
        Time(self.fresh_as_of.load(Ordering::SeqCst))
    }

    /// Whether a read may be that stale and still be served from here.
    pub fn is_fresh(&self, now: Time, max: std::time::Duration) -> bool {
        let fresh = self.fresh_as_of();
        fresh > Time(0) && now.since(fresh) <= max
    }

    /// The region's epoch.
    pub fn epoch(&self) -> Epoch {
        Epoch {
            conf_ver: self.epoch_conf_ver.load(Ordering::SeqCst),
            version: self.epoch_version.load(Ordering::SeqCst),
        }
    }

    /// The store of the leader, as far as known.
    pub fn leader(&self) -> Option<StoreId> {
        match self.leader.load(Ordering::Relaxed) {
            0 => None,
            id => Some(StoreId(id)),
        }
    }

    pub(crate) fn set_lease(&self, until: Time) {
        self.lease_until.store(until.0, Ordering::SeqCst);
    }

    pub(crate) fn set_committed(&self, index: u64) {
        self.committed.store(index, Ordering::SeqCst);
    }

    pub(crate) fn set_fresh(&self, as_of: Time) {
        self.fresh_as_of.fetch_max(as_of.0, Ordering::SeqCst);
    }

    pub(crate) fn set_epoch(&self, epoch: Epoch) {
        self.epoch_conf_ver.store(epoch.conf_ver, Ordering::SeqCst);
        self.epoch_version.store(epoch.version, Ordering::SeqCst);
    }

    pub(crate) fn set_leader(&self, leader: Option<StoreId>) {
        self.leader.store(leader.map_or(0, |id| id.0), Ordering::Relaxed);
    }
}

/// All replicas of a store, for threads that are not its loops.
#[derive(Clone, Default, Debug)]
pub struct Registry {
    peers: Arc<RwLock<BTreeMap<RegionId, Arc<PeerShare>>>>,
}

impl Registry {
    /// The replica of a region, if one lives here.
    pub fn get(&self, region: RegionId) -> Option<Arc<PeerShare>> {
        self.peers.read().get(&region).cloned()
    }

    /// Every region with a replica here.
    pub fn regions(&self) -> Vec<RegionId> {
        self.peers.read().keys().copied().collect()
    }

    pub(crate) fn insert(&self, region: RegionId, share: Arc<PeerShare>) {
        self.peers.write().insert(region, share);
    }
}
