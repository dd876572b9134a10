//! The operator's third part: neighbours are merged. It freezes a region for the one beside it, also where it should
//! be refused (a stale shape, replicas that live apart), and carries out what frozen regions wish for, as a node's operator
//! does: it asks whoever leads the neighbour by then, and has the region thawed where the answer is a final no, or where
//! nobody leads that one and some store knows that it was merged away.
//!
//! Looked at: once a region was merged on any store, no store has a lease of it. In the end no region is frozen.

use super::cluster::{Cluster, Step, violation};
use super::node::SimNode;
use crate::codec::admin::Admin;
use crate::codec::merge::Prepare;
use crate::error::Error;
use crate::kv::StateStore;
use crate::region::merge::{is_later, was_merged};
use crate::store::*;
use crate::types::*;

/// Whether the target will never take the region in.
pub(super) fn is_final(wish: &MergeWish, refused: &Error) -> bool {
    let Error::EpochNotMatch { current } = refused else { return false };
    let known = current.iter().find(|region| region.id == wish.merging.target);
    known.is_some_and(|region| is_later(region.epoch, wish.merging.epoch))
}

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

    /// Frozen regions want to be taken in.
    pub(super) fn wish_to_merge(&mut self, now: Time, wishes: Vec<MergeWish>) -> Step {
        if let Some(hand) = &mut self.hand {
            hand.keep(wishes);
            return Ok(());
        }
        for wish in wishes {
            let target = wish.merging.target;
            let Some((node, _)) = self.leader_of(target) else {
                if self.was_merged(target) {
                    self.thaw(now, &wish)?;
                }
                continue;
            };
            let commit = Admin::CommitMerge(wish.commit.clone());
            if let Some(token) = self.administer_as(now, node, target, commit)? {
                self.operator.commits.insert(token, wish);
            }
        }
        Ok(())
    }

    /// Whether a node that is up knows that the region was merged into another.
    pub(super) fn was_merged(&self, region: RegionId) -> bool {
        let record = |node: &SimNode| node.running.as_ref()?.kv.view().ok()?.record(region);
        self.nodes.values().filter_map(record).any(|record| was_merged(&record))
    }

    pub(super) fn leader_of(&self, region: RegionId) -> Option<(StoreId, RegionStatus)> {
        let all = self.nodes.keys().flat_map(|id| self.statuses(*id).into_iter().map(|s| (*id, s)));
        let led = all.filter(|(_, status)| status.leads && status.region.id == region);
        led.max_by_key(|(_, status)| status.term)
    }

    pub(super) fn thaw(&mut self, now: Time, wish: &MergeWish) -> Step {
        let Some((node, _)) = self.leader_of(wish.source) else { return Ok(()) };
        self.trace.line(now, format_args!("{} is to thaw", wish.source));
        let at = wish.merging.at.index;
        self.administer(now, node, wish.source, Admin::RollBackMerge { at })
    }

    /// An answer to a commit. `Some`: it was not one.
    pub(super) fn committed(
        &mut self,
        now: Time,
        token: Token,
        done: crate::Result<AdminDone>,
    ) -> Result<Option<crate::Result<AdminDone>>, super::checker::Violation> {
        let Some(wish) = self.operator.commits.remove(&token) else { return Ok(Some(done)) };
        let target = wish.merging.target;
        match done {
            Ok(_) => {
                self.trace.line(now, format_args!("{} is merged into {target}", wish.source));
            }
            Err(error) if is_final(&wish, &error) => self.thaw(now, &wish)?,
            Err(error) => {
                self.trace.line(now, format_args!("{} not merged: {error}", wish.source));
            }
        }
        Ok(None)
    }

    /// Something of a merge was applied.
    pub(super) fn look_at_merged(&mut self, applied: &Applied) -> Step {
        match &applied.merging {
            Some(Some(_)) => self.counts.merges[0] += 1,
            Some(None) => self.counts.merges[2] += 1,
            None => {}
        }
        self.counts.merges[1] += applied.absorbed.len() as u64;
        for (id, node) in &self.nodes {
            let Some(running) = &node.running else { continue };
            for gone in &applied.absorbed {
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
