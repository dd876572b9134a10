//! Reads, as production's nodes serve them: at once where lease or freshness allow it, otherwise from a view that is taken
//! when the replica has granted them.
//!
//! Every level is asked of every node, leader or not, in both workloads, while regions are cut, merged, handed over and
//! restarted. What is read joins the history that the judge explains in the end: a bounded-stale read counts as begun
//! earlier by its bound, so it may see the past so far and no farther; all others see what was acknowledged before they
//! began.

use super::checker::Violation;
use super::cluster::{Cluster, violation};
use crate::error::Error;
use crate::kv::StateStore;
use crate::region::read::ReadLevel;
use crate::types::{Region, RegionId, RegionState, StoreId, Time};
use bytes::Bytes;

impl Cluster {
    /// The shape within which a replica answers a read without asking its loop, if its lease or freshness allow it.
    pub(super) fn serves_at_once(
        &self,
        now: Time,
        id: StoreId,
        region: &Region,
        level: ReadLevel,
    ) -> Option<Region> {
        let state = match level {
            ReadLevel::Linearizable => None,
            ReadLevel::Lease => self.serves_by_lease(now, id, region.id),
            ReadLevel::Stale { max } => {
                let node = self.nodes.get(&id)?;
                let running = node.running.as_ref()?;
                let fresh = running.registry.get(region.id)?.is_fresh(node.now(now), max);
                running.kv.view().ok()?.region(region.id).filter(|_| fresh)
            }
        };
        let shape = state?.region;
        (shape.epoch.version == region.epoch.version).then_some(shape)
    }

    /// The state by which a node would answer a lease read of the region now, without asking its loop.
    pub(super) fn serves_by_lease(
        &self,
        now: Time,
        id: StoreId,
        region: RegionId,
    ) -> Option<RegionState> {
        let node = self.nodes.get(&id)?;
        let running = node.running.as_ref()?;
        let share = running.registry.get(region)?;
        let begun = share.begin_lease_read(node.now(now))?;
        let found = running.kv.view().ok()?.region(region)?;
        share.serves_by_lease(begun, node.now(now), found)
    }

    /// What a view of now has under the key, if the region still has the shape that the read was meant for. The outer
    /// error: a key that is not the region's.
    pub(super) fn value_at(
        &self,
        id: StoreId,
        region: &Region,
        key: &[u8],
    ) -> Result<crate::Result<Option<Bytes>>, Violation> {
        let running = self.nodes.get(&id).and_then(|node| node.running.as_ref());
        let Some(running) = running else { return Ok(Err(Error::RegionNotFound(region.id))) };
        let failed = |e: Error| violation("a view can be read", e.to_string());
        let view = running.kv.view().map_err(failed)?;
        let Some(state) = view.region(region.id) else {
            return Ok(Err(Error::RegionNotFound(region.id)));
        };
        if state.region.epoch.version != region.epoch.version {
            return Ok(Err(Error::EpochNotMatch { current: vec![state.region] }));
        }
        self.value_within(id, &state.region, key).map(Ok)
    }

    /// What a view of now has under a key of the region, given its shape.
    pub(super) fn value_within(
        &self,
        id: StoreId,
        shape: &Region,
        key: &[u8],
    ) -> Result<Option<Bytes>, Violation> {
        if !shape.range.contains(key) {
            let detail = format!("{id} {}: {key:?} in {:?}", shape.id, shape.range);
            return Err(violation("a read stays within its region", detail));
        }
        let failed = |e: Error| violation("a view can be read", e.to_string());
        let running = self.nodes.get(&id).and_then(|node| node.running.as_ref());
        let Some(running) = running else { return Err(failed(Error::RegionNotFound(shape.id))) };
        running.kv.view().and_then(|view| view.get(key)).map_err(failed)
    }

    /// Counts what kinds of reads were answered.
    pub(super) fn count_read(&mut self, id: StoreId, region: &Region, level: ReadLevel) {
        let mut here = self.nodes.get(&id).into_iter().flat_map(|node| &node.running);
        let leads = here.any(|running| {
            let peers = running.stores.iter().flat_map(crate::store::Store::peers);
            peers.filter(|peer| peer.region.id == region.id).any(|p| p.leads_term().is_some())
        });
        match level {
            ReadLevel::Stale { .. } => self.counts.stale_reads += 1,
            _ if !leads => self.counts.follower_reads += 1,
            _ => {}
        }
    }
}
