//! Agreement: what must be true at every moment between the replicas that are there, members or not, and is looked at every
//! [`LOOK`], in trouble and in the calm, and again whenever the end is judged.
//!
//! - Two replicas of a region that have applied the same know the same: their data, their shape, their ids, the record of
//!   stores, who is gone, what they wait for.
//! - A store holds no key that belongs to none of its replicas.
//! - The log of a replica that takes part reaches what it has applied. One that is being born or restored has its state first.
//!
//! What takes its time, that all have applied everything and who is gone has gone, is looked at in the end, and patiently
//! (`watch`, `members`). A promise of this file that is broken for a moment is broken.

use super::checker::Violation;
use super::cluster::{Cluster, Step, violation};
use super::node::Running;
use crate::kv::{Direction, StateStore};
use crate::region::storage::holds;
use crate::store::Store;
use crate::types::*;
use std::collections::BTreeMap;
use std::time::Duration;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);

/// What was found of a region that has applied so much, and where first.
type Found = BTreeMap<(RegionId, u64), (StoreId, u64, RegionState)>;

impl Cluster {
    /// Looks, if it is time.
    pub(super) fn look_now_and_then(&mut self, now: Time) -> Step {
        if now < self.looks_at {
            return Ok(());
        }
        self.looks_at = now.after(LOOK);
        self.look_at_agreement()
    }

    /// Whether all that is there agrees, now.
    pub(super) fn look_at_agreement(&self) -> Step {
        let mut found = Found::new();
        for (store, node) in &self.nodes {
            let Some(running) = &node.running else { continue };
            let states = running.kv.region_states();
            look_at_keys(*store, running, &states)?;
            for state in states {
                self.compare(*store, running, state, &mut found)?;
            }
        }
        Ok(())
    }

    fn compare(
        &self,
        store: StoreId,
        running: &Running,
        state: RegionState,
        found: &mut Found,
    ) -> Step {
        let (region, applied) = (state.region.id, state.applied);
        let mut peers = running.stores.iter().flat_map(Store::peers);
        let runs = peers.any(|peer| peer.id == state.peer && peer.runs());
        if runs && !holds(&running.log, region, applied) {
            let detail = format!("{store} {region}: {applied:?}");
            return Err(violation("the log reaches what is applied", detail));
        }
        let view = running.kv.view().map_err(|e| violation("a view", e.to_string()))?;
        let hash = self.hash_of(&*view, &state.region.range)?;
        let known = RegionState { peer: PeerId(0), ..state };
        let at = (region, applied.index);
        let (first, same, as_known) =
            found.entry(at).or_insert_with(|| (store, hash, known.clone()));
        if *same != hash {
            let detail = format!("{at:?}: {first} has {same:016x}, {store} has {hash:016x}");
            return Err(violation("replicas that applied the same are equal", detail));
        }
        if *as_known != known {
            let detail = format!("{first}: {as_known:?}, but {known:?} on {store}");
            return Err(violation("replicas that applied the same know the same", detail));
        }
        Ok(())
    }
}

/// Every key of a store is one of a replica there.
fn look_at_keys(
    store: StoreId,
    running: &Running,
    states: &[RegionState],
) -> Result<(), Violation> {
    let scan = running.kv.view().and_then(|view| {
        view.scan(&KeyRange::all(), Direction::Forward)?.collect::<crate::Result<Vec<_>>>()
    });
    let scan = scan.map_err(|e| violation("a store can be scanned", e.to_string()))?;
    let owned = |key: &[u8]| states.iter().any(|state| state.region.range.contains(key));
    match scan.iter().find(|(key, _)| !owned(key)) {
        Some((key, _)) => {
            let detail = format!("{key:?} on {store}");
            Err(violation("every key of a store belongs to a replica there", detail))
        }
        None => Ok(()),
    }
}
