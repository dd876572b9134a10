//! [`plan()`]: from what is to what comes next.

use crate::codec::admin::Change;
use crate::codec::directory::StoreState;
use crate::types::{Epoch, Peer, Region, RegionId, Role, StoreId};
use std::collections::BTreeMap;

/// A store, as far as placement cares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Site {
    /// Which.
    pub store: StoreId,
    /// Whether it is to stay.
    pub state: StoreState,
    /// Whether anybody gets through to it.
    pub reachable: bool,
    /// Bytes that it takes on its disk.
    pub used_bytes: u64,
    /// Bytes that it could take; 0: not known.
    pub capacity_bytes: u64,
}

/// A region, and who leads it.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Its shape.
    pub region: &'a Region,
    /// The store of its leader, if one has reported.
    pub leader: Option<StoreId>,
    /// It takes at most so many bytes and is hardly used, and has been so for long; `None`: it is not so, or nobody knows.
    pub calm: Option<u64>,
    /// Its leadership was to be moved a moment ago, so that stores lead equally many regions, and could not be: it stays.
    pub kept: bool,
}

/// How much at once, and towards what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Voters that a region should have.
    pub wanted: usize,
    /// Regions that have a learner on its way, at most.
    pub moves: usize,
    /// Steps of one plan, at most.
    pub steps: usize,
    /// A calm region of so many bytes at most is merged into another one; 0: none is.
    pub merge_bytes: u64,
    /// Merges of one plan, at most.
    pub merges: usize,
    /// Leaderships that one plan moves so that stores lead equally many regions, at most, where regions are few; 0: none.
    pub transfers: usize,
}

/// What is to be done to a region.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Hand its leadership over.
    Transfer {
        /// Where to.
        to: StoreId,
    },
    /// Give it a learner.
    AddLearner {
        /// Where.
        on: StoreId,
    },
    /// Change the roles of replicas that it has.
    Change(Vec<Change>),
    /// Merge it into its neighbour.
    Merge {
        /// Which takes it in.
        into: RegionId,
        /// The shape of that one that the step was made for.
        epoch: Epoch,
    },
}

/// Towards what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Goal {
    /// A store is to be empty.
    Drain,
    /// A region is to have all its replicas.
    Repair,
    /// There are to be fewer regions.
    Fewer,
    /// Stores are to lead about equally many regions.
    Spread,
}

/// The next thing to do for a region.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// The region.
    pub region: RegionId,
    /// The shape that the step was made for: another one refuses it.
    pub epoch: Epoch,
    /// What.
    pub action: Action,
    /// Towards what.
    pub goal: Goal,
    /// Why, in words.
    pub why: String,
}

impl Step {
    /// The regions that it names.
    pub(super) fn regions(&self) -> impl Iterator<Item = RegionId> + use<> {
        let other = match self.action {
            Action::Merge { into, .. } => Some(into),
            _ => None,
        };
        [self.region].into_iter().chain(other)
    }
}

/// What comes next, and what cannot.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Plan {
    /// Steps for different regions: in any order.
    pub steps: Vec<Step>,
    /// What is not as it should be and cannot be mended now, in words.
    pub stuck: Vec<String>,
    /// Regions that are not as they should be.
    pub unsettled: usize,
}

/// A store that is this full (in percent) is given nothing.
const FULL_PERCENT: u64 = 90;

/// What is known of a store while a plan is made.
pub(super) struct Room {
    site: Site,
    replicas: usize,
    pub leaders: usize,
}

impl Room {
    fn stays(&self) -> bool {
        self.site.state == StoreState::Up
    }

    pub fn is_there(&self) -> bool {
        self.stays() && self.site.reachable
    }

    pub fn takes_more(&self) -> bool {
        let (used, capacity) = (self.site.used_bytes, self.site.capacity_bytes);
        let full = capacity > 0 && used / FULL_PERCENT >= capacity / 100;
        self.is_there() && !full
    }
}

pub(super) struct Planner {
    pub rooms: BTreeMap<StoreId, Room>,
    pub limits: Limits,
    moves: usize,
    pub plan: Plan,
}

/// The next step of every region that is not as it should be.
pub fn plan(sites: &[Site], places: &[Place<'_>], limits: Limits) -> Plan {
    let room = |site: &Site| (site.store, Room { site: *site, replicas: 0, leaders: 0 });
    let mut planner = Planner {
        rooms: sites.iter().map(room).collect(),
        limits,
        moves: 0,
        plan: Plan::default(),
    };
    for place in places {
        for peer in &place.region.peers {
            if let Some(room) = planner.rooms.get_mut(&peer.store) {
                room.replicas += 1;
                room.leaders += usize::from(place.leader == Some(peer.store));
            }
        }
    }
    let unsettled: Vec<&Place<'_>> =
        places.iter().filter(|place| planner.goal(place.region).is_some()).collect();
    planner.plan.unsettled = unsettled.len();
    planner.moves =
        unsettled.iter().filter(|place| planner.newcomer(place.region).is_some()).count();
    for place in unsettled {
        if planner.plan.steps.len() >= limits.steps {
            break;
        }
        planner.region(place);
    }
    if planner.plan.unsettled == 0 {
        planner.merge(places);
    }
    planner.spread_leaders(places);
    planner.plan
}

impl Planner {
    fn stays(&self, store: StoreId) -> bool {
        // A store that nobody has registered was chosen by an operator: it is let be.
        self.rooms.get(&store).is_none_or(Room::stays)
    }

    fn voters(&self, region: &Region) -> usize {
        region.peers.iter().filter(|peer| peer.role == Role::Voter).count()
    }

    /// What is wrong with a region, if anything is.
    pub fn goal(&self, region: &Region) -> Option<Goal> {
        if region.peers.iter().any(|peer| !self.stays(peer.store)) {
            return Some(Goal::Drain);
        }
        let free = |room: &Room| room.takes_more() && region.peer_on(room.site.store).is_none();
        let short = self.voters(region) < self.limits.wanted;
        let begun = self.newcomer(region).or(self.straggler(region)).is_some();
        let mendable = begun || self.rooms.values().any(free);
        // Fewer stores than wanted replicas: that is how small clusters are.
        (short && mendable).then_some(Goal::Repair)
    }

    /// Whether nobody gets through to a store, or it is not on record: a mistyped one never will be.
    fn is_away(&self, store: StoreId) -> bool {
        self.rooms.get(&store).is_none_or(|room| !room.site.reachable)
    }

    fn learner(&self, region: &Region, counts: impl Fn(StoreId) -> bool) -> Option<Peer> {
        let here = |peer: &&Peer| peer.role.is_learner() && self.stays(peer.store);
        let found = region.peers.iter().filter(here).filter(|peer| counts(peer.store));
        // First those that were placed for it.
        found.min_by_key(|peer| (peer.role == Role::Learner, peer.id)).copied()
    }

    /// A learner on its way.
    fn newcomer(&self, region: &Region) -> Option<Peer> {
        self.learner(region, |store| !self.is_away(store))
    }

    /// A learner that gets nowhere: its store is out of reach. Its turn is not kept for it, for the store may never come back.
    fn straggler(&self, region: &Region) -> Option<Peer> {
        self.learner(region, |store| self.is_away(store))
    }

    /// The store with the fewest replicas that can take one of this region.
    fn emptiest(&self, region: &Region) -> Option<(StoreId, usize)> {
        let free = |room: &&Room| room.takes_more() && region.peer_on(room.site.store).is_none();
        let rooms = self.rooms.values().filter(free);
        let best = rooms.min_by_key(|room| (room.replicas, room.site.store))?;
        Some((best.site.store, best.replicas))
    }

    /// The voter that stays, is there and leads least.
    pub fn heir(&self, region: &Region, leader: StoreId) -> Option<StoreId> {
        let able = |peer: &&Peer| peer.role == Role::Voter && peer.store != leader;
        let heirs = region.peers.iter().filter(able).filter_map(|peer| self.rooms.get(&peer.store));
        let heirs = heirs.filter(|room| room.is_there());
        heirs.min_by_key(|room| (room.leaders, room.site.store)).map(|room| room.site.store)
    }

    fn region(&mut self, place: &Place<'_>) {
        let region = place.region;
        if region.is_joint() {
            return; // its leader ends that by itself
        }
        let Some(leader) = place.leader else {
            return self.stuck(format!("{} has no leader that has reported", region.id));
        };
        let going: Vec<Peer> =
            region.peers.iter().filter(|peer| !self.stays(peer.store)).copied().collect();
        match going.iter().min_by_key(|peer| (peer.role == Role::Voter, peer.id)) {
            Some(peer) => self.drain(region, leader, *peer),
            None => self.repair(region),
        }
    }

    fn drain(&mut self, region: &Region, leader: StoreId, old: Peer) {
        let (id, from) = (region.id, old.store);
        if old.role.is_learner() {
            let why = format!("{from} is to be empty: its replica of {id} does not vote any more");
            return self.step(
                region,
                Goal::Drain,
                Action::Change(vec![Change::Remove(old.id)]),
                why,
            );
        }
        if leader == from
            && let Some(to) = self.heir(region, leader)
        {
            if let Some(room) = self.rooms.get_mut(&to) {
                room.leaders += 1;
            }
            let why = format!(
                "{from} is to be empty and leads {id}: {to} leads the fewest of those that could"
            );
            return self.step(region, Goal::Drain, Action::Transfer { to }, why);
        }
        if let Some(new) = self.newcomer(region) {
            let to = new.store;
            let (changes, why) = match leader == from {
                // Nobody else votes: the new one must, before it can lead.
                true => (
                    vec![Change::Promote(new.id)],
                    format!(
                        "{from} is to be empty and leads {id} alone: {to} is to vote, then to lead"
                    ),
                ),
                false => (
                    vec![Change::Promote(new.id), Change::Demote(old.id)],
                    format!("{from} is to be empty: {to} votes in {id} in its place"),
                ),
            };
            return self.step(region, Goal::Drain, Action::Change(changes), why);
        }
        if leader != from && self.voters(region) > self.limits.wanted {
            let why = format!("{from} is to be empty, and {id} has voters enough without it");
            return self.step(
                region,
                Goal::Drain,
                Action::Change(vec![Change::Remove(old.id)]),
                why,
            );
        }
        self.add(region, Goal::Drain, |to, count| {
            format!("{from} is to be empty: its replica of {id} goes to {to}, which has the fewest ({count})")
        });
    }

    fn repair(&mut self, region: &Region) {
        let (id, voters, wanted) = (region.id, self.voters(region), self.limits.wanted);
        match self.newcomer(region) {
            Some(new) => {
                let why = format!("{id} has {voters} voters of {wanted}: {} is to vote", new.store);
                self.step(region, Goal::Repair, Action::Change(vec![Change::Promote(new.id)]), why);
            }
            None => self.add(region, Goal::Repair, |to, count| {
                format!(
                    "{id} has {voters} voters of {wanted}: {to} has the fewest replicas ({count})"
                )
            }),
        }
    }

    fn add(&mut self, region: &Region, goal: Goal, why: impl Fn(StoreId, usize) -> String) {
        if let Some(straggler) = self.straggler(region) {
            let (id, store) = (region.id, straggler.store);
            return self.stuck(match self.rooms.contains_key(&store) {
                true => format!(
                    "{id}: its learner is on {store}, which is out of reach: wait for it, remove the learner, or drain {store}"
                ),
                false => format!(
                    "{id}: its learner is on {store}, which is not on record: start it, or remove the learner"
                ),
            });
        }
        if self.moves >= self.limits.moves {
            return; // its turn comes
        }
        let Some((on, count)) = self.emptiest(region) else {
            return self.stuck(format!("{}: no other store can take a replica", region.id));
        };
        self.moves += 1;
        if let Some(room) = self.rooms.get_mut(&on) {
            room.replicas += 1;
        }
        self.step(region, goal, Action::AddLearner { on }, why(on, count));
    }

    pub fn step(&mut self, region: &Region, goal: Goal, action: Action, why: String) {
        let (region, epoch) = (region.id, region.epoch);
        self.plan.steps.push(Step { region, epoch, action, goal, why });
    }

    fn stuck(&mut self, why: String) {
        self.plan.stuck.push(why);
    }
}

/// Stores that are up and empty.
#[cfg(test)]
pub(super) fn sites(count: u64) -> Vec<Site> {
    let site = |store| Site {
        store: StoreId(store),
        state: StoreState::Up,
        reachable: true,
        used_bytes: 0,
        capacity_bytes: 0,
    };
    (1..=count).map(site).collect()
}

#[cfg(test)]
mod tests;
