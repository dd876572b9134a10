//! Which leaderships go elsewhere, so that all stores lead about equally many regions: whoever shut down, or was lost, leads
//! nothing when it is back, and nothing else would ever give it anything.
//!
//! **The rule.** A leadership goes from its store to that of the voter that leads least, if the two differ by more than the
//! tolerance: [`APART`], or a [`PART`]th of what each store would lead if all led alike. A plan counts what it gives, so it makes
//! no difference larger and turns none around, and there is an end: elections alone bring further steps about, one each at most.
//!
//! * Regions that are to be changed otherwise are let be, and so is what [`Place::kept`] says. Region 1 stays where it is:
//!   whoever leads it keeps the directory, and would have to hear everything anew.
//! * Nobody is given anything that drains, has left, is full or is out of reach, nor is anything taken from it here.
//! * At most [`Limits::transfers`] leaderships go at once, or one in [`AT_ONCE`] of all where that is more: a store that is back
//!   has its share in seconds, with ten thousand regions as with ten.
//!
//! What a store leads is counted and not weighed: a region that nobody uses counts as much as the busiest.
//!
//! **Source.** TiKV's balance-leader scheduler moves leaderships to the stores that have fewest of them in the same way.

use super::plan::{Action, Goal, Place, Planner, Room};
use crate::types::{FIRST_REGION, Region, RegionId, StoreId};
use std::collections::BTreeSet;

/// Stores whose leaderships differ by no more are as good as equal.
const APART: usize = 2;
/// Of what a store would lead if all led alike.
const PART: usize = 4;
/// Of all leaderships one in so many may go at once: whoever writes waits for a moment where one goes.
const AT_ONCE: usize = 128;

impl Planner {
    /// Plans transfers, of regions that no step names yet.
    pub(super) fn spread_leaders(&mut self, places: &[Place<'_>]) {
        let there = || self.rooms.values().filter(|room| room.is_there());
        let led: usize = there().map(|room| room.leaders).sum();
        if self.limits.transfers == 0 {
            return;
        }
        let share = led / there().count().max(1);
        let tolerance = APART.max(share / PART);
        let least = there().map(|room| room.leaders).min().unwrap_or(0);
        if there().all(|room| room.leaders <= least + tolerance) {
            return;
        }
        let named: BTreeSet<RegionId> =
            self.plan.steps.iter().flat_map(|step| step.regions()).collect();
        let mut left = self.limits.transfers.max(led / AT_ONCE);
        for place in places.iter().filter(|place| !named.contains(&place.region.id)) {
            if left == 0 {
                return;
            }
            let Some((from, to)) = self.lighter(place, tolerance) else { continue };
            left -= 1;
            self.give(place.region, from, to);
        }
    }

    /// From where to where the leadership of a region is to go, if it is.
    fn lighter(&self, place: &Place<'_>, tolerance: usize) -> Option<(StoreId, StoreId)> {
        let region = place.region;
        let moves = !place.kept && !region.is_joint() && region.id != FIRST_REGION;
        let from = place.leader.filter(|_| moves)?;
        // One that is full would refuse all that is written to what it leads.
        let to = self.heir(region, from).filter(|to| self.rooms[to].takes_more())?;
        let leads =
            |store| self.rooms.get(&store).filter(|room| room.is_there()).map(|r| r.leaders);
        let uneven = leads(from)? > leads(to)? + tolerance;
        (uneven && self.goal(region).is_none()).then_some((from, to))
    }

    fn give(&mut self, region: &Region, from: StoreId, to: StoreId) {
        let mut led = |store, change: fn(&mut usize)| {
            self.rooms.get_mut(&store).map_or(0, |room: &mut Room| {
                change(&mut room.leaders);
                room.leaders
            })
        };
        let (many, few) = (led(from, |n| *n -= 1) + 1, led(to, |n| *n += 1) - 1);
        let why = format!("{from} leads {many} regions, {to} only {few}");
        self.step(region, Goal::Spread, Action::Transfer { to }, why);
    }
}

#[cfg(test)]
mod tests;
