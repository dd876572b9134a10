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
use crate::types::{Region, StoreId, Time};
use bytes::Bytes;

impl Cluster {
    /// Whether lease or freshness of a replica allow a read without asking its loop.
    pub(super) fn serves_at_once(
        &self,
        now: Time,
        id: StoreId,
        region: &Region,
        level: ReadLevel,
    ) -> bool {
        let Some(node) = self.nodes.get(&id) else { return false };
        let local = node.now(now);
        let Some(running) = node.running.as_ref() else { return false };
        let Some(share) = running.registry.get(region.id) else { return false };
        let Some(state) = running.kv.view().ok().and_then(|view| view.region(region.id)) else {
            return false;
        };
        if state.region.epoch.version != region.epoch.version {
            return false;
        }
        match level {
            ReadLevel::Lease => {
                share.lease_holds(local) && state.applied.index >= share.committed()
            }
            ReadLevel::Stale { max } => share.is_fresh(local, max),
            ReadLevel::Linearizable => false,
        }
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
        if !state.region.range.contains(key) {
            let detail = format!("{id} {}: {key:?} in {:?}", region.id, state.region.range);
            return Err(violation("a read stays within its region", detail));
        }
        Ok(Ok(view.get(key).map_err(failed)?))
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
