//! The replicas of one store loop: found by hash, for every event looks one up, and walked in the order of their ids.

use crate::region::peer::Peer;
use crate::types::{IdMap, RegionId, ahead};
use std::collections::BTreeSet;

/// What hangs on a peer is fetched so many visits ahead, itself twice as many.
const AHEAD: usize = 2;

/// Replicas by region.
///
/// * `order` holds the keys of `found`.
#[derive(Default)]
pub(super) struct Peers {
    found: IdMap<RegionId, Box<Peer>>,
    order: BTreeSet<RegionId>,
}

impl Peers {
    pub fn get(&self, region: &RegionId) -> Option<&Peer> {
        self.found.get(region).map(|peer| &**peer)
    }

    pub fn get_mut(&mut self, region: &RegionId) -> Option<&mut Peer> {
        self.found.get_mut(region).map(|peer| &mut **peer)
    }

    /// The peers of these regions are about to be looked at, in this order, after the present one.
    pub fn ahead(&self, next: impl Fn(usize) -> Option<RegionId>) {
        if let Some(far) = next(2 * AHEAD - 1).and_then(|region| self.get(&region)) {
            ahead::fetch(far);
        }
        if let Some(near) = next(AHEAD - 1).and_then(|region| self.get(&region)) {
            near.fetch_ahead();
        }
    }

    pub fn contains_key(&self, region: &RegionId) -> bool {
        self.found.contains_key(region)
    }

    pub fn insert(&mut self, region: RegionId, peer: Box<Peer>) {
        self.found.insert(region, peer);
        self.order.insert(region);
    }

    /// Many at once: a map that grows in order is half empty.
    pub fn insert_all(&mut self, peers: Vec<(RegionId, Box<Peer>)>) {
        let mut order = peers.iter().map(|(region, _)| *region).collect();
        self.order.append(&mut order);
        self.found.extend(peers);
    }

    pub fn remove(&mut self, region: &RegionId) -> Option<Box<Peer>> {
        self.order.remove(region);
        self.found.remove(region)
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = (RegionId, &Peer)> {
        self.order.iter().filter_map(|region| Some((*region, self.get(region)?)))
    }

    /// In order.
    pub fn values(&self) -> impl Iterator<Item = &Peer> {
        self.iter().map(|(_, peer)| peer)
    }

    /// In no order.
    #[cfg(any(test, feature = "sim"))]
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.found.values_mut().map(|peer| &mut **peer)
    }
}
