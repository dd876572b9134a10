//! The operator's third part: neighbours are merged. It freezes a region for the one beside it, also where it should
//! be refused (a stale shape, replicas that live apart). What frozen regions wish for is carried out by the operator of
//! their leader's node, which is production's (`staff`).
//!
//! Looked at: once a region was merged on any store, no store has a lease of it. In the end no region is frozen.

use super::cluster::{Cluster, Step, violation};
use crate::codec::admin::Admin;
use crate::codec::merge::Prepare;
use crate::kv::StateStore;
use crate::node::operator::Wish;
use crate::store::*;
use crate::types::*;

impl Cluster {
    /// One region is to go into a neighbour.
    pub(super) fn merge_some(&mut self, now: Time, led: &[(StoreId, RegionStatus)]) -> Step {
        let mut pairs = Vec::new();
        for (node, source) in led {
            for (_, target) in led {
                let (a, b) = (&source.region.range, &target.region.range);
                let beside =
                    a.end == b.start && !a.end.is_empty() || b.end == a.start && !b.end.is_empty();
                if beside {
                    pairs.push((*node, source.region.clone(), target.region.clone()));
                }
            }
        }
        let together = |pair: &(StoreId, Region, Region)| {
            crate::region::merge::live_together(&pair.1, &pair.2)
        };
        if self.rng.chance("merge.sensible", 900) {
            pairs.retain(together);
        }
        let Some((node, source, target)) = self.rng.pick("merge.pair", &pairs).cloned() else {
            return Ok(());
        };
        self.trace.line(now, format_args!("{node} is to merge {} into {}", source.id, target.id));
        let prepare = Prepare { epoch: source.epoch, target, first: 0 };
        self.administer(now, node, source.id, Admin::PrepareMerge(prepare))
    }

    /// Posts what one loop has for another, or for itself.
    pub(super) fn post_soon(
        &mut self,
        now: Time,
        id: StoreId,
        life: u64,
        to: RegionId,
        event: Event,
    ) {
        let pause = self.pause("birth.pause", 2_000);
        let Some(running) = self.running(id) else { return };
        let at = running.loop_of(to);
        self.post_later(now, id, life, at, pause, event);
    }

    /// Words between the replicas of a node.
    pub(super) fn say_aside(&mut self, now: Time, id: StoreId, life: u64, asides: Vec<Aside>) {
        for aside in asides {
            if self.rng.chance("aside.lost", 20) {
                continue;
            }
            self.post_soon(now, id, life, aside.region, Event::Aside(aside));
        }
    }

    /// Frozen regions want to be taken in: their node's operator sees to it.
    pub(super) fn wish_to_merge(&mut self, now: Time, id: StoreId, wishes: Vec<MergeWish>) -> Step {
        if let Some(hand) = &mut self.hand {
            hand.keep(wishes);
            return Ok(());
        }
        for wish in wishes {
            self.wish(now, id, Wish::Merge(wish))?;
        }
        Ok(())
    }

    pub(super) fn leader_of(&self, region: RegionId) -> Option<(StoreId, RegionStatus)> {
        let all = self.nodes.keys().flat_map(|id| self.statuses(*id).into_iter().map(|s| (*id, s)));
        let led = all.filter(|(_, status)| status.leads && status.region.id == region);
        led.max_by_key(|(_, status)| status.term)
    }

    /// Something of a merge was applied.
    pub(super) fn look_at_merged(&mut self, news: &News) -> Step {
        match &news.merging {
            Some(Some(_)) => self.counts.merges[0] += 1,
            Some(None) => self.counts.merges[2] += 1,
            None => {}
        }
        self.counts.merges[1] += news.absorbed.len() as u64;
        for (id, node) in &self.nodes {
            let Some(running) = &node.running else { continue };
            for gone in &news.absorbed {
                let share = running.registry.get(gone.region);
                let now = node.now(self.world.now());
                if share.is_some_and(|share| share.lease_holds(now)) {
                    let detail = format!("{id} has one of {}", gone.region);
                    return Err(violation("no lease of a region that was merged", detail));
                }
            }
        }
        Ok(())
    }

    /// At the end: nobody is frozen.
    pub(super) fn look_at_the_frozen(&self) -> Step {
        for (id, node) in &self.nodes {
            let mut states = node.running.iter().flat_map(|running| running.kv.region_states());
            if let Some(state) = states.find(|state| state.merging.is_some()) {
                let detail = format!("{id} {}: {:?}", state.region.id, state.merging);
                return Err(violation("a frozen region is merged or thawed in the end", detail));
            }
        }
        Ok(())
    }
}
