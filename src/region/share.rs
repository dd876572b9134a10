//! What other threads may know of a replica without asking its loop: lease, freshness, leader hint, shape.

use super::neighbours::Neighbours;
use crate::types::{
    Departed, Epoch, KeyRange, PeerId, Region, RegionId, RegionState, StoreId, Time,
};
use bytes::Bytes;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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
    still: AtomicBool,
    term: AtomicU64,
    bytes: AtomicU64,
    taken: AtomicU64,
    applied: AtomicU64,
    reads: AtomicU64,
    region: RwLock<Arc<Region>>,
    #[cfg(any(test, feature = "sim"))]
    pub(crate) planted: super::planted::KeptShape,
}

/// A read by the lease that has begun: what was committed before its view is taken.
#[derive(Clone, Copy, Debug)]
pub struct LeaseRead {
    committed: u64,
}

impl PeerShare {
    /// A replica that knows nothing yet.
    pub fn new(peer: PeerId, region: Arc<Region>) -> PeerShare {
        let epoch = region.epoch;
        PeerShare {
            peer,
            lease_until: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            fresh_as_of: AtomicU64::new(0),
            epoch_conf_ver: AtomicU64::new(epoch.conf_ver),
            epoch_version: AtomicU64::new(epoch.version),
            leader: AtomicU64::new(0),
            still: AtomicBool::new(false),
            term: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            region: RwLock::new(region),
            #[cfg(any(test, feature = "sim"))]
            planted: Default::default(),
        }
    }

    /// Whether the leader lease holds at `now`.
    pub fn lease_holds(&self, now: Time) -> bool {
        now.0 < self.lease_until.load(Ordering::SeqCst)
    }

    /// Begins a read by the lease, before its view is taken. `None`: there is no lease at `now`.
    pub fn begin_lease_read(&self, now: Time) -> Option<LeaseRead> {
        self.lease_holds(now).then(|| LeaseRead { committed: self.committed() })
    }

    /// The state by which a read that has begun is answered from its view, given what the view says of the region.
    /// `None`: it is not answered by the lease. The lease must still hold at `now`, by a clock that was looked at after
    /// the view was taken; the view must have applied what was committed when the read began, and must show the region in
    /// the shape that the loop knows.
    pub fn serves_by_lease(
        &self,
        read: LeaseRead,
        now: Time,
        found: RegionState,
    ) -> Option<RegionState> {
        let whole = found.applied.index >= read.committed;
        let known = self.epoch().version == found.region.epoch.version;
        #[cfg(any(test, feature = "sim"))]
        let found = self.planted.instead_of(found);
        (self.lease_holds(now) && whole && known).then_some(found)
    }

    /// The shape by which the replica serves, if its view agrees: for the simulator's look at leases.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn served(&self) -> Arc<Region> {
        self.planted.get().unwrap_or_else(|| self.region())
    }

    /// The commit index as the replica knows it.
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

    /// The replica's term, as of its last round.
    pub fn term(&self) -> u64 {
        self.term.load(Ordering::Relaxed)
    }

    /// Bytes of the region's keys and values, about: as last measured here, and what was written since.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Client batches that the replica took as a leader, since it came up.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Bytes of entries that it applied, since it came up.
    pub fn applied_bytes(&self) -> u64 {
        self.applied.load(Ordering::Relaxed)
    }

    /// Reads that were served from here, or asked for, since it came up; not the stale ones.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Somebody reads. (Who does has just taken a reference of this, so the line is hot anyway.)
    pub(crate) fn is_read(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn set_load(&self, term: u64, bytes: u64, taken: u64, applied: u64) {
        self.term.store(term, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        self.taken.store(taken, Ordering::Relaxed);
        self.applied.store(applied, Ordering::Relaxed);
    }

    /// It was measured; perhaps nothing else happens to it for long.
    pub(crate) fn set_bytes(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn set_lease(&self, until: Time) {
        self.lease_until.store(until.0, Ordering::SeqCst);
        #[cfg(any(test, feature = "sim"))]
        if until == Time(0) {
            self.planted.forget();
        }
    }

    pub(crate) fn set_committed(&self, index: u64) {
        self.committed.store(index, Ordering::SeqCst);
    }

    pub(crate) fn set_fresh(&self, as_of: Time) {
        self.fresh_as_of.fetch_max(as_of.0, Ordering::SeqCst);
    }

    /// The region as of what its loop knows to be applied.
    pub fn region(&self) -> Arc<Region> {
        self.region.read().clone()
    }

    pub(crate) fn set_region(&self, region: Arc<Region>) {
        self.epoch_conf_ver.store(region.epoch.conf_ver, Ordering::SeqCst);
        self.epoch_version.store(region.epoch.version, Ordering::SeqCst);
        *self.region.write() = region;
    }

    /// Whether the replica stands still: what it holds may be taken over by another region's.
    pub(crate) fn is_still(&self) -> bool {
        self.still.load(Ordering::SeqCst)
    }

    pub(crate) fn stand_still(&self) {
        self.still.store(true, Ordering::SeqCst);
    }

    pub(crate) fn move_on(&self) {
        self.still.store(false, Ordering::SeqCst);
    }

    pub(crate) fn set_leader(&self, leader: Option<StoreId>) {
        self.leader.store(leader.map_or(0, |id| id.0), Ordering::Relaxed);
    }
}

/// All replicas of a store, by region and by range, for threads that are not its loops.
///
/// * A replica stands under the start of the range that it was inserted with. Ranges
///   may overlap for an instant, while several loops learn of one change: of two with the same start, the
///   newer version stays.
#[derive(Clone, Default, Debug)]
pub struct Registry {
    replicas: Arc<RwLock<Replicas>>,
    neighbours: Neighbours,
}

#[derive(Default, Debug)]
struct Replicas {
    by_region: BTreeMap<RegionId, Arc<PeerShare>>,
    by_start: BTreeMap<Bytes, RegionId>,
    /// Ranges of replicas that are about to be here.
    claims: BTreeMap<RegionId, KeyRange>,
}

impl Replicas {
    fn is_free(&self, region: RegionId, range: &KeyRange, but: &[Departed]) -> bool {
        let other = |id: &RegionId| *id != region && !but.iter().any(|gone| gone.region == *id);
        let apart = |held: &KeyRange| held.intersect(range).is_empty();
        // Another replica begins at or before the first key, or within the range.
        let before = (Bound::Unbounded, Bound::Included(&range.start[..]));
        let before = self.by_start.range::<[u8], _>(before).rfind(|(_, id)| other(id));
        let within = self.by_start.range(range.start.clone()..);
        let within = within
            .take_while(|(start, _)| range.end.is_empty() || start[..] < range.end[..])
            .filter(|(_, id)| other(id));
        let mut held =
            before.into_iter().chain(within).filter_map(|(_, id)| self.by_region.get(id));
        let mut claims = self.claims.iter().filter(|(id, _)| other(id));
        claims.all(|(_, claimed)| apart(claimed)) && held.all(|share| apart(&share.region().range))
    }

    fn place(&mut self, region: &Region) {
        let known = self.by_start.get(&region.range.start).and_then(|id| self.by_region.get(id));
        if known.is_none_or(|known| known.epoch().version <= region.epoch.version) {
            self.by_start.insert(region.range.start.clone(), region.id);
        }
    }
}

impl Registry {
    /// The other nodes, as the loops see them.
    pub fn neighbours(&self) -> &Neighbours {
        &self.neighbours
    }

    /// The replica of a region, if one lives here.
    pub fn get(&self, region: RegionId) -> Option<Arc<PeerShare>> {
        self.replicas.read().by_region.get(&region).cloned()
    }

    /// Whether any region with a replica here has one on that store, too. Looks at all of them if there is none.
    pub fn shares_with(&self, store: StoreId) -> bool {
        let replicas = self.replicas.read();
        replicas.by_region.values().any(|share| share.region.read().peer_on(store).is_some())
    }

    /// Whether a replica of the region lives here, or is about to.
    pub(crate) fn is_here(&self, region: RegionId) -> bool {
        let replicas = self.replicas.read();
        replicas.by_region.contains_key(&region) || replicas.claims.contains_key(&region)
    }

    /// Whether a replica of the region is about to be here, and is not yet.
    pub(crate) fn is_coming(&self, region: RegionId) -> bool {
        self.replicas.read().claims.contains_key(&region)
    }

    /// Every region with a replica here.
    pub fn regions(&self) -> Vec<RegionId> {
        self.replicas.read().by_region.keys().copied().collect()
    }

    /// The replicas here that lead, as far as they know, in order of their regions.
    pub fn led_by(&self, store: StoreId) -> Vec<(RegionId, Arc<PeerShare>)> {
        let replicas = self.replicas.read();
        let led = replicas.by_region.iter().filter(|(_, share)| share.leader() == Some(store));
        led.map(|(region, share)| (*region, Arc::clone(share))).collect()
    }

    /// The region that owns `key`, if a replica of it lives here.
    pub fn lookup(&self, key: &[u8]) -> Option<Arc<Region>> {
        let replicas = self.replicas.read();
        let upto = (Bound::Unbounded, Bound::Included(key));
        let (_, id) = replicas.by_start.range::<[u8], _>(upto).next_back()?;
        let region = replicas.by_region.get(id)?.region();
        region.range.contains(key).then_some(region)
    }

    /// At most `count` regions with replicas here, in order of their ranges, from the one at `start` on.
    pub fn from(&self, start: &Bytes, count: usize) -> Vec<Arc<Region>> {
        let replicas = self.replicas.read();
        let ids = replicas.by_start.range(start.clone()..).take(count);
        ids.filter_map(|(_, id)| replicas.by_region.get(id)).map(|share| share.region()).collect()
    }

    /// Whether no replica here, living or about to, holds keys of any of the ranges, but the region's own and `but` these.
    pub fn is_free(&self, region: RegionId, ranges: &[KeyRange], but: &[Departed]) -> bool {
        let replicas = self.replicas.read();
        ranges.iter().all(|range| replicas.is_free(region, range, but))
    }

    /// Keeps the range for a replica that is about to be here, if no other one `but` these holds any of it. The claim ends
    /// when the replica comes.
    pub(crate) fn claim(&self, region: &Region, but: &[Departed]) -> bool {
        let mut replicas = self.replicas.write();
        let free = replicas.is_free(region.id, &region.range, but);
        if free {
            replicas.claims.insert(region.id, region.range.clone());
        }
        free
    }

    /// A region whose replica is known has this shape now; what was cut out of it is claimed for the
    /// replicas that are about to be born.
    pub(crate) fn reshape<'a>(&self, region: &Region, cut: impl Iterator<Item = &'a Region>) {
        let mut replicas = self.replicas.write();
        for child in cut {
            if replicas.by_region.contains_key(&child.id) {
                continue;
            }
            replicas.claims.insert(child.id, child.range.clone());
        }
        let Some(share) = replicas.by_region.get(&region.id).cloned() else { return };
        let before = share.region().range.start.clone();
        share.set_region(Arc::new(region.clone()));
        if replicas.by_start.get(&before) == Some(&region.id) {
            replicas.by_start.remove(&before);
        }
        replicas.place(region);
    }

    /// The replica of a region, living or claimed, is gone: its range is free.
    pub(crate) fn remove(&self, region: RegionId) {
        let mut replicas = self.replicas.write();
        replicas.claims.remove(&region);
        replicas.by_region.remove(&region);
        replicas.by_start.retain(|_, id| *id != region);
    }

    /// The replicas of a loop that begins. Maps that grow in order are half empty: they are made anew in the end.
    pub(crate) fn insert_all(&self, shares: impl Iterator<Item = (RegionId, Arc<PeerShare>)>) {
        shares.for_each(|(region, share)| self.insert(region, share));
        let mut replicas = self.replicas.write();
        let Replicas { by_region, by_start, .. } = &mut *replicas;
        *by_region = std::mem::take(by_region).into_iter().collect();
        *by_start = std::mem::take(by_start).into_iter().collect();
    }

    pub(crate) fn insert(&self, region: RegionId, share: Arc<PeerShare>) {
        let mut replicas = self.replicas.write();
        replicas.claims.remove(&region);
        replicas.place(&share.region());
        replicas.by_region.insert(region, share);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::LogPosition;

    /// What lease reads rest on: each of these alone keeps one from being served.
    #[test]
    fn a_lease_read_needs_the_lease_to_its_end_all_that_was_committed_and_the_known_shape() {
        let (lease, after) = (Time(100), Time(101));
        let region =
            |version| Region { epoch: Epoch { conf_ver: 1, version }, ..Region::default() };
        let found = |index, version| RegionState {
            region: region(version),
            applied: LogPosition { index, term: 6 },
            ..RegionState::default()
        };
        let share = PeerShare::new(PeerId(1), Arc::new(region(3)));
        share.set_committed(8);
        assert!(share.begin_lease_read(Time(1)).is_none(), "no lease yet");
        share.set_lease(after);
        let begun = share.begin_lease_read(lease).unwrap();
        share.set_committed(9);
        let serves = |now, found| share.serves_by_lease(begun, now, found);
        assert_eq!(serves(lease, found(8, 3)), Some(found(8, 3)), "as of when it began");
        assert_eq!(serves(after, found(8, 3)), None, "the lease ended before the view was taken");
        assert_eq!(serves(lease, found(7, 3)), None, "a follower may have shown entry 8");
        assert_eq!(serves(lease, found(8, 4)), None, "cut in the view");
        assert_eq!(serves(lease, found(8, 2)), None, "the loop knows of more than the view");
    }
}
