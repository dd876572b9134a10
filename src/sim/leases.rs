//! Reads by the lease, looked at over all regions and nodes: who would answer one, and with what.
//!
//! Nobody has to read for a promise to be broken here. Asked is the function that decides in production
//! ([`PeerShare::serves_by_lease`]), with a view of now. A replica for which it says yes *serves*. Two things hold:
//!
//! - *One node serves a key.* What a replica serves is the range in its own view, so a parent that goes on as if it had not been
//!   cut meets the part that is led elsewhere. (On one node regions never overlap, and all of them read the same state store.)
//! - *Who serves has applied whatever any replica has.* What is applied somewhere may have been shown there, to readers who
//!   put up with the past; and where a split is applied, a part of the region may be led and written to. This holds
//!   because a leader publishes what is committed before anybody else can learn of it. It is why the first holds
//!   over splits: where a part lives, its parent's split is applied.
//!
//! The leases of one region are compared at every election and every drain (`watch.rs`), those of a region that was merged when it is
//! (`merges.rs`), whether their replicas would serve or not.
//!
//! **Cheap.** Who holds a lease stands in a table, with the range in which it would serve, and most drains change nothing
//! there. A view is taken only for a lease that is new, or of another shape, and for one that may lack something.

use super::cluster::{Cluster, Step, violation};
use crate::region::share::PeerShare;
use crate::types::*;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Debug)]
struct Held {
    store: StoreId,
    shape: Arc<Region>,
}

/// Who serves what by a lease, as far as looked at, and what is applied.
///
/// * `held`: two that were found to serve at the same time have no key in common. Who was found not to serve is not
///   in it, and enters again by the next drain with a lease.
/// * `applied`: per region the last index that any replica has ever applied.
#[derive(Default, Debug)]
pub(super) struct Leases {
    held: BTreeMap<RegionId, Held>,
    applied: BTreeMap<RegionId, u64>,
}

impl Leases {
    /// Whether a replica with a lease is to be looked at: it did not serve when last looked at, has another shape, or may
    /// lack something.
    pub fn is_unsure(&self, store: StoreId, region: RegionId, share: &PeerShare) -> bool {
        let same = |held: &Held| held.store == store && Arc::ptr_eq(&held.shape, &share.served());
        let lacks = self.applied.get(&region).is_some_and(|applied| share.committed() < *applied);
        lacks || !self.held.get(&region).is_some_and(same)
    }

    /// Others in the table that hold keys of the range.
    fn beside(&self, store: StoreId, range: &KeyRange) -> Vec<(StoreId, RegionId)> {
        let meets =
            |held: &Held| held.store != store && !held.shape.range.intersect(range).is_empty();
        let others = self.held.iter().filter(|(_, held)| meets(held));
        others.map(|(region, held)| (held.store, *region)).collect()
    }
}

impl Cluster {
    /// A replica has a lease that is new, or of another shape, or lacks what another one has applied.
    pub(super) fn look_at_lease(&mut self, now: Time, id: StoreId, region: RegionId) -> Step {
        let Some(state) = self.serves_by_lease(now, id, region) else { return Ok(()) };
        let applied = self.leases.applied.get(&region).copied().unwrap_or(0);
        if state.applied.index < applied {
            let detail = format!(
                "{region}: {id} would read at {}, {applied} is applied elsewhere",
                state.applied.index
            );
            return Err(violation("a lease read finds what was applied anywhere", detail));
        }
        let range = &state.region.range;
        for (other, beside) in self.leases.beside(id, range) {
            let theirs = self.serves_by_lease(now, other, beside).map(|state| state.region);
            match theirs {
                Some(theirs) if !theirs.range.intersect(range).is_empty() => {
                    let detail = format!(
                        "{id} would read {range:?} in {region}, {other} {:?} in {beside}",
                        theirs.range
                    );
                    return Err(violation("one node serves a key by a lease", detail));
                }
                Some(_) => {}
                None => drop(self.leases.held.remove(&beside)),
            }
        }
        let share = self.running(id).and_then(|running| running.registry.get(region));
        if let Some(shape) = share.map(|share| share.served()) {
            self.leases.held.insert(region, Held { store: id, shape });
        }
        Ok(())
    }

    /// A replica has applied so much: whoever serves the region has, too.
    pub(super) fn look_at_what_is_shown(
        &mut self,
        id: StoreId,
        region: RegionId,
        index: u64,
    ) -> Step {
        let most = self.leases.applied.entry(region).or_default();
        if *most >= index {
            return Ok(());
        }
        *most = index;
        let Some(server) = self.leases.held.get(&region).map(|held| held.store) else {
            return Ok(());
        };
        let running = self.nodes.get(&server).and_then(|node| node.running.as_ref());
        let share = running.and_then(|running| running.registry.get(region));
        match share.is_some_and(|share| server != id && share.committed() < index) {
            true => self.look_at_lease(self.world.now(), server, region),
            false => Ok(()),
        }
    }
}
