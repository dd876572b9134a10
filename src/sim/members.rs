//! The operator's other half: who the replicas are. It adds learners where a store has none, promotes, demotes, swaps two
//! in a joint configuration, removes; sometimes it asks for nonsense, or for what the leader must refuse. It does
//! not wait for anything: what does not fit yet is refused, and its next turn comes.
//!
//! Looked at in the end, after a calm that is long enough for it: every region has left its joint configuration
//! and has forgotten whom it removed; no store has a replica that is no member, or the log of a dead one. How long a removed replica may live is looked at all the time, in `afterlife`.

use super::cluster::{Cluster, Step, violation};
use crate::codec::admin::{Admin, Change};
use crate::kv::StateStore;
use crate::store::*;
use crate::types::*;

/// Replicas of a region, at most, that the operator aims for.
const PEERS_AIM: usize = 5;

/// The roles after these changes.
fn after(region: &Region, changes: &[Change]) -> Region {
    let mut after = region.clone();
    for change in changes {
        let id = change.peer();
        match change {
            Change::Remove(_) => after.peers.retain(|peer| peer.id != id),
            Change::AddLearner { .. } => {}
            Change::Promote(_) | Change::Demote(_) => {
                let votes = matches!(change, Change::Promote(_));
                let role = if votes { Role::Voter } else { Role::Learner };
                let peers = after.peers.iter_mut().filter(|peer| peer.id == id);
                peers.for_each(|peer| peer.role = role);
            }
        }
    }
    after
}

impl Cluster {
    /// One wish about a region's replicas, addressed to its leader.
    pub(super) fn change_members(&mut self, now: Time, led: &[(StoreId, RegionStatus)]) -> Step {
        // Those that something is under way in come first: whole replacements take several turns.
        let busy = |status: &RegionStatus| status.region.peers.iter().any(|p| !p.role.votes());
        let under_way: Vec<_> = led.iter().filter(|(_, status)| busy(status)).cloned().collect();
        let go_on = self.rng.chance("members.go-on", 700) && !under_way.is_empty();
        let from = if go_on { &under_way[..] } else { led };
        let Some((node, status)) = self.rng.pick("members.region", from).cloned() else {
            return Ok(());
        };
        let Some(changes) = self.draw_change(&status) else { return Ok(()) };
        // As clients do, who ask first (seed 5763).
        let to_one_that_goes = |change: &Change| match change {
            Change::AddLearner { store, .. } => self.is_leaving(*store),
            Change::Promote(peer) => {
                let store = status.region.peer(*peer).map(|peer| peer.store);
                store.is_some_and(|store| self.is_leaving(store) || self.has_left(store))
            }
            _ => false,
        };
        if changes.iter().any(to_one_that_goes) {
            return Ok(());
        }
        // Nobody is to be left with too few voters by a loss.
        if !self.survives_loss(&after(&status.region, &changes)) {
            return Ok(());
        }
        let (region, epoch) = (status.region.id, status.region.epoch);
        self.trace.line(now, format_args!("{node} is to change {region}: {changes:?}"));
        self.administer(now, node, region, Admin::ChangePeers { epoch, changes })
    }

    fn draw_change(&mut self, status: &RegionStatus) -> Option<Vec<Change>> {
        let of = |counts: fn(Role) -> bool| -> Vec<PeerId> {
            let peers = status.region.peers.iter().filter(|peer| counts(peer.role));
            peers.map(|peer| peer.id).collect()
        };
        let (voters, learners) = (of(|role| role == Role::Voter), of(Role::is_learner));
        let others: Vec<PeerId> = voters.iter().copied().filter(|id| *id != status.peer).collect();
        let kind = self.rng.range("members.kind", 0..100);
        if kind < 4 {
            // The leader itself: to be refused.
            return Some(vec![Change::Remove(status.peer)]);
        }
        let learner = self.rng.pick("members.learner", &learners).copied();
        let voter = self.rng.pick("members.voter", &others).copied();
        match (learner, voter) {
            (Some(learner), Some(voter)) if kind < 40 => {
                Some(vec![Change::Promote(learner), Change::Demote(voter)])
            }
            (Some(learner), _) if kind < 60 => Some(vec![Change::Promote(learner)]),
            (Some(learner), _) if kind < 85 => Some(vec![Change::Remove(learner)]),
            (None, Some(voter)) if kind < 15 && voters.len() > 2 => {
                Some(vec![Change::Remove(voter)])
            }
            (None, Some(voter)) if kind < 25 && voters.len() > 2 => {
                Some(vec![Change::Demote(voter)])
            }
            _ => self.draw_learner(&status.region),
        }
    }

    fn draw_learner(&mut self, region: &Region) -> Option<Vec<Change>> {
        let free = |id: &StoreId| region.peer_on(*id).is_none() && !self.has_left(*id);
        let stores: Vec<StoreId> = self.nodes.keys().copied().filter(free).collect();
        let store = self.rng.pick("members.store", &stores).copied()?;
        if region.peers.len() >= PEERS_AIM {
            return None;
        }
        let peer = PeerId(self.next_id()?);
        Some(vec![Change::AddLearner { peer, store, passing: peer.0.is_multiple_of(2) }])
    }

    /// At the end: who is no member is gone, with everything.
    pub(super) fn look_at_members(&self, regions: &[Region]) -> Step {
        const WHAT: &str = "removed replicas are gone in the end";
        let current = |id: RegionId| regions.iter().find(|region| region.id == id);
        for region in regions {
            if region.is_joint() {
                let of = |status: &RegionStatus| status.region.id == region.id;
                let all: Vec<_> =
                    self.nodes.keys().flat_map(|id| self.statuses(*id)).filter(of).collect();
                return Err(violation("a joint configuration ends", format!("{all:?}")));
            }
        }
        for (store, node) in &self.nodes {
            let Some(running) = &node.running else { continue };
            let states = running.kv.region_states();
            for state in &states {
                let member = current(state.region.id).and_then(|region| region.peer(state.peer));
                if member.is_none_or(|peer| peer.store != *store) {
                    let detail = format!("{} {} on {store}", state.region.id, state.peer);
                    return Err(violation(WHAT, detail));
                }
                if self.lists_the_gone(state) {
                    let detail = format!("{} on {store}: {:?}", state.region.id, state.removed);
                    return Err(violation("the gone are forgotten in the end", detail));
                }
            }
            for status in running.stores.iter().flat_map(Store::status) {
                if !states.iter().any(|state| state.peer == status.peer) {
                    let detail = format!("{} {} runs on {store}", status.region.id, status.peer);
                    return Err(violation(WHAT, detail));
                }
            }
            for dead in running.kv.tombstones() {
                if running.log.groups().contains(&dead.region.id.0) {
                    let detail = format!("the log of {} {} on {store}", dead.region.id, dead.peer);
                    return Err(violation(WHAT, detail));
                }
            }
        }
        Ok(())
    }
}
