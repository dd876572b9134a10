//! Which neighbours are to be one region: those that have shrunk, or were cut for a load that has gone.
//!
//! **The rule.** Two neighbours are merged if both are *calm*: each takes at most [`Limits::merge_bytes`] and is hardly
//! used, and has been so for long, as its leader says who measured it (`node::census`). Of whom nobody knows how large it is,
//! or for how long it has been so, is not calm. Both have a leader, voters only, and every store of theirs is there and
//! stays: a merge needs all replicas. Nothing is merged while a replica is to be moved or made.
//!
//! **Who goes.** The smaller one, or the right one of two equals; never region 1, which keeps the cluster's record.
//! Neighbours that live on the same stores go first: of others the data of one must move, at most `merge_bytes`, and not
//! to a store that is nearly full.
//!
//! **Hysteresis.** What is merged takes at most twice `merge_bytes`, a small part of the size at which regions are cut
//! (`NodeConfig::region_merge_percent` sees to that); pieces of a cut are larger than `merge_bytes`, or, cut for their
//! load, not cold; and whoever was just cut is not calm for as long as the patience lasts. So a merge makes no cut and a
//! cut no merge: where nobody writes, there is an end.
//!
//! One plan names a region once at most, and [`Limits::merges`] pairs at most. Regions that were merged find their next
//! neighbours in later plans, when they have been measured anew.

use super::plan::{Action, Goal, Place, Planner, Room};
use crate::types::{FIRST_REGION, Region, RegionId, Role, StoreId};
use std::collections::BTreeSet;

/// A region that may be merged.
#[derive(Clone, Copy)]
struct Calm<'a> {
    region: &'a Region,
    bytes: u64,
}

impl Calm<'_> {
    fn stores(&self) -> BTreeSet<StoreId> {
        self.region.peers.iter().map(|peer| peer.store).collect()
    }
}

impl Planner {
    /// Plans merges. No region is to be anywhere else.
    pub(super) fn merge(&mut self, places: &[Place<'_>]) {
        let limits = self.limits;
        if limits.merge_bytes == 0 || limits.merges == 0 {
            return;
        }
        let mut calm: Vec<Calm<'_>> = places.iter().filter_map(|place| self.calm(place)).collect();
        calm.sort_unstable_by(|a, b| a.region.range.start.cmp(&b.region.range.start));
        let beside = |pair: &[Calm<'_>]| {
            let (left, right) = (&pair[0].region.range, &pair[1].region.range);
            !left.end.is_empty() && left.end == right.start
        };
        let mut taken = BTreeSet::new();
        let mut left = limits.merges.min(limits.steps.saturating_sub(self.plan.steps.len()));
        for together in [true, false] {
            for pair in calm.windows(2).filter(|pair| beside(pair)) {
                let (source, target) = in_order(pair[0], pair[1]);
                let lives_together = source.stores() == target.stores();
                let free = |region: &Region| !taken.contains(&region.id);
                if left == 0 || lives_together != together {
                    continue;
                }
                if !free(source.region) || !free(target.region) || !self.may_move(&source, &target)
                {
                    continue;
                }
                let named: [RegionId; 2] = [source.region.id, target.region.id];
                taken.extend(named);
                left -= 1;
                let why = format!(
                    "{} takes {} bytes and {} beside it {}, both are hardly used",
                    source.region.id, source.bytes, target.region.id, target.bytes
                );
                let action = Action::Merge { into: target.region.id, epoch: target.region.epoch };
                self.step(source.region, Goal::Fewer, action, why);
            }
        }
    }

    fn calm<'a>(&self, place: &Place<'a>) -> Option<Calm<'a>> {
        let region = place.region;
        let bytes = place.calm.filter(|bytes| *bytes <= self.limits.merge_bytes)?;
        let votes = region.peers.iter().all(|peer| peer.role == Role::Voter);
        let there = |store| self.rooms.get(&store).is_some_and(Room::is_there);
        let all_there = region.peers.iter().all(|peer| there(peer.store));
        (votes && all_there && place.leader.is_some()).then_some(Calm { region, bytes })
    }

    /// Whether the source's replicas can go to where the target's are.
    fn may_move(&self, source: &Calm<'_>, target: &Calm<'_>) -> bool {
        let takes = |store: &StoreId| self.rooms.get(store).is_some_and(Room::takes_more);
        target.stores().difference(&source.stores()).all(takes)
    }
}

/// Which goes into which, of two neighbours from the left.
fn in_order<'a>(left: Calm<'a>, right: Calm<'a>) -> (Calm<'a>, Calm<'a>) {
    let left_goes = left.bytes < right.bytes && left.region.id != FIRST_REGION;
    match left_goes || right.region.id == FIRST_REGION {
        true => (left, right),
        false => (right, left),
    }
}

#[cfg(test)]
mod tests;
