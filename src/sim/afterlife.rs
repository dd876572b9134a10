//! Afterlife: how long a replica lives on after its removal, in the workload `regions`.
//!
//! Removed is who stands on the list of the removed of its region's leader, applied there; of a region that was merged, on that of
//! the leader of the region that took it in. It lives as long as its store runs it or has a state of it that is no tombstone.
//! Its time counts while it can be told: its node is up, leader and node hear each other, neither of them is kept out of the
//! cluster, and the leader is the newest one of its region. Whatever ends this, a restart, a partition, an
//! election, sets its time back to zero, for whoever asks begins anew then, or may be in its longest pause.
//!
//! A replica of a region that was merged does not go while the region that took it in has a member on the same store: that
//! one goes on with its data, and takes it over when it applies the merge. How far it lags behind is not this matter, or whether it
//! is born yet (seed 1775: its keys were still held by a replica that was fenced off, and could not apply the cut that it was to
//! be born by), so such a replica's time does not count.
//!
//! **The bound** is three of the longest pauses between two questions of a leader, twelve election timeouts: 6 s as the
//! simulator's nodes are set. One pause may pass before the first question, and two questions, or their answers, may be lost. Looked at
//! every [`LOOK`], in trouble and in the calm alike.

use super::cluster::{Cluster, Step, violation};
use crate::kv::StateStore;
use crate::region::farewell::PAUSE_MAX;
use crate::store::Store;
use crate::types::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Of a leader's longest pauses, so many may pass until a removed replica that can be told is gone.
const PAUSES: u32 = 3;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Who was removed, and since when they could have been told without a break.
#[derive(Default, Debug)]
pub(super) struct Afterlife {
    due: Time,
    /// By whose leader they were found on its list.
    removed: BTreeMap<Departed, RegionId>,
    since: BTreeMap<Departed, Time>,
}

impl Cluster {
    /// Looks, if it is time, at who lives on and for how long.
    pub(super) fn look_at_afterlife(&mut self, now: Time) -> Step {
        if self.stores.is_none() || now < self.afterlife.due {
            return Ok(());
        }
        self.afterlife.due = now.after(LOOK);
        let config = &self.options.config;
        let longest =
            config.tick * (config.group.election_ticks as u32 * PAUSE_MAX as u32 * PAUSES);
        let leaders = self.list_the_removed();
        let living = self.living();
        let told = |gone: &Departed, by: &RegionId| {
            let Some((leader, region)) = leaders.get(by) else { return false };
            let waits = gone.region != *by && region.peer_on(gone.store).is_some();
            !waits && self.hear_each_other(*leader, gone.store)
        };
        let lives = |gone: &Departed| living.contains(gone);
        let removed = self.afterlife.removed.iter();
        let counted = removed.filter(|(gone, by)| lives(gone) && told(gone, by));
        let counted: Vec<Departed> = counted.map(|(gone, _)| *gone).collect();
        let before = std::mem::take(&mut self.afterlife.since);
        for gone in counted {
            let since = before.get(&gone).copied().unwrap_or(now);
            self.afterlife.since.insert(gone, since);
            let lived = now.since(since);
            self.counts.afterlife = self.counts.afterlife.max(lived.as_millis() as u64);
            if lived > longest {
                let by = self.afterlife.removed.get(&gone);
                let leader = by.and_then(|by| leaders.get(by));
                let detail = format!("{gone:?} for {lived:?}, of {by:?} led at {leader:?}");
                return Err(violation("a removed replica that can be told goes soon", detail));
            }
        }
        Ok(())
    }

    /// Notes whom leaders have on their lists. Where the newest leader of each region is, and its region.
    fn list_the_removed(&mut self) -> BTreeMap<RegionId, (StoreId, Arc<Region>)> {
        let mut leaders = BTreeMap::new();
        for (id, node) in &self.nodes {
            let stores = node.running.iter().flat_map(|running| &running.stores);
            for peer in stores.flat_map(Store::peers) {
                let region = peer.region.id;
                let Some(term) = peer.leads_term() else { continue };
                if self.led.get(&region).is_some_and(|newest| *newest > term) {
                    continue;
                }
                leaders.insert(region, (*id, Arc::clone(&peer.region)));
                self.afterlife.removed.extend(peer.removed.iter().map(|gone| (*gone, region)));
            }
        }
        leaders
    }

    /// All replicas that there are, on nodes that are up.
    fn living(&self) -> BTreeSet<Departed> {
        let mut living = BTreeSet::new();
        for (store, node) in &self.nodes {
            let Some(running) = &node.running else { continue };
            let of = |region, id| Departed { region, id, store: *store };
            let states = running.kv.region_states().into_iter();
            living.extend(states.map(|state| of(state.region.id, state.peer)));
            let peers = running.stores.iter().flat_map(Store::peers);
            living.extend(peers.map(|peer| of(peer.region.id, peer.id)));
        }
        living
    }

    fn hear_each_other(&self, one: StoreId, other: StoreId) -> bool {
        let apart = self.is_outcast(one) || self.is_outcast(other);
        let open = self.net.is_open(one, other) && self.net.is_open(other, one);
        one == other || open && !apart
    }
}
