//! Membership: who the replicas of a region are, and how that changes while it serves.
//!
//! **Life of a change.** A store gets a replica as a *learner* first: it is sent a snapshot and the log, and counts in no
//! quorum. Once it has caught up it is *promoted*. One change stands alone; several promotions and demotions stand in
//! one entry and take effect together, by way of a **joint** configuration in which a quorum of the old and one of
//! the new voters must agree; its leader ends it ([`Admin::LeaveJoint`]) as soon as it has applied its begin. The
//! entry is of raft's own kind, so that raft-rs keeps a second one out of the log; what it means is decided by
//! [`change`] and [`leave`], at propose and again where it is applied, on every replica alike. The
//! [`Applier`](super::apply::Applier) publishes the new shape in one batch with the applied index; the loop that hears of it
//! tells raft-rs, in order. After a restart raft-rs starts from the shape as of the applied index and hears of
//! the changes behind it once more, by the same path.
//!
//! **What a leader refuses**, though the shape allows it: a second change before the first is applied; to promote
//! who lags; a replica or a vote on a store that its node knows to be draining or to have left; to remove or demote itself (it would lead a group without voting in it: hand leadership over
//! first); a change after which no quorum is alive and within reach of the log, for nothing would ever commit
//! again. These are its own views, so they are not looked at again where the change is applied: a leader that is
//! demoted all the same steps down.
//!
//! **In passing** is a learner that was placed to vote, and a voter that was demoted together with a promotion: it is on its way.
//! Whoever moves a replica takes several steps and may be gone before the last. So the region's leader removes such a one once
//! it has long caught up and nobody has asked for a change of it since (one that has not caught up may be waited for). Whoever is
//! refused is there all the same, and asks again. A learner that was placed as one stays.
//!
//! **Who is removed** goes with its data, and its store remembers that (see [`farewell`](super::farewell)). The region keeps it
//! on a list until it is known to be gone for good.
//!
//! **Leases** hold across a change: an old and a new configuration that follow each other share a voter in any two
//! of their quorums, and whoever acknowledges the entry between them has heard of the leader after the round began
//! that a lease counts from.

use super::config::StoreConfig;
use super::neighbours::Neighbours;
use super::peer::Peer;
use crate::codec::admin::{Admin, Change};
use crate::codec::region::REMOVED_MAX;
use crate::error::{Error, Result};
use crate::raft::ProposeError;
use crate::types::{Departed, Epoch, LogPosition, PeerId, Region, Role};
use std::collections::BTreeSet;

/// A learner may lack so many committed entries and still be promoted: they are under way.
const PROMOTION_GAP: u64 = 64;
/// Replicas of one region, at most.
const PEERS_MAX: usize = 64;
/// Election timeouts after which a replica in passing that has caught up, and that nobody asks to change, is not waited for any
/// more.
const PASSAGE: u64 = 20;

/// The region after a change of its replicas.
///
/// Errors: [`Error::EpochNotMatch`] when it was made for other replicas, [`Error::InvalidArgument`] when it makes no
/// sense. Every replica judges alike. A split in between does not matter.
pub fn change(
    region: &Region,
    removed: &[Departed],
    epoch: Epoch,
    changes: &[Change],
) -> Result<Region> {
    if epoch.conf_ver != region.epoch.conf_ver {
        return Err(Error::EpochNotMatch { current: vec![region.clone()] });
    }
    let wrong = |what: &str| Err(Error::InvalidArgument(format!("peers of {}: {what}", region.id)));
    if region.is_joint() {
        return wrong("the last change is not completed");
    }
    let joint = changes.len() > 1;
    let mut after = region.clone();
    let mut changed = BTreeSet::new();
    for change in changes {
        if !changed.insert(change.peer()) {
            return wrong("two changes of one peer");
        }
        let at = after.peers.iter().position(|peer| peer.id == change.peer());
        let role = at.map(|at| after.peers[at].role);
        match (*change, at, role) {
            (Change::AddLearner { .. } | Change::Remove(_), ..) if joint => {
                return wrong("only promotions and demotions go together");
            }
            (Change::AddLearner { peer, store, passing }, None, _) => {
                let used = removed
                    .iter()
                    .any(|gone| gone.region == region.id && gone.id >= peer && gone.store == store);
                if used || peer.0 == 0 || store.0 == 0 || region.peer_on(store).is_some() {
                    return wrong("the store has a replica, or has had this one");
                }
                if removed.iter().any(|gone| gone.id == peer) || after.peers.len() >= PEERS_MAX {
                    return wrong("an id twice, or too many peers");
                }
                let role = if passing { Role::Passing } else { Role::Learner };
                after.peers.push(crate::types::Peer { id: peer, store, role });
            }
            (Change::Promote(_), Some(at), Some(Role::Learner | Role::Passing)) => {
                after.peers[at].role = if joint { Role::Incoming } else { Role::Voter };
            }
            (Change::Demote(_), Some(at), Some(Role::Voter)) => {
                after.peers[at].role = if joint { Role::Demoting } else { Role::Learner };
            }
            (Change::Remove(_), Some(at), _) if removed.len() < REMOVED_MAX => {
                after.peers.remove(at);
            }
            _ => return wrong("no such peer, or not in such a role"),
        }
    }
    let votes = |peer: &crate::types::Peer| matches!(peer.role, Role::Voter | Role::Incoming);
    if changes.is_empty() || !after.peers.iter().any(votes) {
        return wrong("nothing to change, or nobody left to vote");
    }
    after.epoch.conf_ver += changes.len() as u64;
    Ok(after)
}

/// The region after the end of its joint configuration. Errors as [`change`].
pub fn leave(region: &Region, epoch: Epoch) -> Result<Region> {
    if epoch.conf_ver != region.epoch.conf_ver {
        return Err(Error::EpochNotMatch { current: vec![region.clone()] });
    }
    if !region.is_joint() {
        return Err(Error::InvalidArgument(format!("{} is in no joint configuration", region.id)));
    }
    let mut after = region.clone();
    for peer in &mut after.peers {
        let role = match peer.role {
            Role::Incoming => Role::Voter,
            Role::Demoting => Role::Passing,
            same => same,
        };
        after.epoch.conf_ver += u64::from(role != peer.role);
        peer.role = role;
    }
    Ok(after)
}

/// A replica in passing that has caught up.
#[derive(Debug)]
pub(crate) struct Passage {
    peer: PeerId,
    /// Ticks at which it was seen so since somebody asked for a change of it, and the last of them.
    arrived: u64,
    seen: u64,
}

impl Peer {
    /// Proposes a change of the replicas, or refuses it.
    pub(crate) fn propose_change(
        &mut self,
        epoch: Epoch,
        changes: &[Change],
    ) -> Result<LogPosition> {
        if self.reshaping.is_some() || self.changing.is_some() || self.group.change_pending() {
            return Err(Error::Busy { what: "another change of the region's shape" });
        }
        let after = change(&self.region, &self.removed, epoch, changes)?;
        let lowers = |change: &Change| matches!(change, Change::Demote(_) | Change::Remove(_));
        if changes.iter().any(|change| change.peer() == self.id && lowers(change)) {
            return Err(Error::LeaderStays { region: self.region.id });
        }
        let lags = |change: &Change| matches!(change, Change::Promote(peer) if !self.group.has_caught_up(*peer, PROMOTION_GAP));
        if changes.iter().any(lags) {
            return Err(Error::Busy { what: "a learner that has not caught up" });
        }
        if !self.can_go_on(&after) {
            return Err(Error::Busy { what: "live replicas: too few would be left to agree" });
        }
        let admin = Admin::ChangePeers { epoch, changes: changes.to_vec() };
        self.put_change(changes, &admin)
    }

    /// Refuses replicas and votes on stores that are to be empty or have left. Whoever asks has looked, but perhaps long ago: a
    /// request that was held up must not reach a store that was found to be empty and struck off since.
    pub(super) fn may_place(&self, neighbours: &Neighbours, changes: &[Change]) -> Result<()> {
        let gains = |change: &Change| match *change {
            Change::AddLearner { store, .. } => Some(store),
            Change::Promote(peer) => self.region.peer(peer).map(|peer| peer.store),
            Change::Demote(_) | Change::Remove(_) => None,
        };
        match changes.iter().filter_map(gains).any(|store| neighbours.takes_nothing(store)) {
            // What is on record may be another by now, which is heard of here soon: who asks looks it up before.
            true => Err(Error::Busy { what: "a store that is draining or has left" }),
            false => Ok(()),
        }
    }

    /// Proposes the end of a joint configuration.
    pub(crate) fn propose_leave(&mut self, epoch: Epoch) -> Result<LogPosition> {
        if self.reshaping.is_some() || self.changing.is_some() || self.group.change_pending() {
            return Err(Error::Busy { what: "another change of the region's shape" });
        }
        leave(&self.region, epoch)?;
        self.put_change(&[], &Admin::LeaveJoint { epoch })
    }

    fn put_change(&mut self, changes: &[Change], admin: &Admin) -> Result<LogPosition> {
        match self.group.propose_change(changes, admin.encode()) {
            Ok(position) => {
                self.changing = Some(position);
                Ok(position)
            }
            Err(ProposeError::Full) => Err(Error::Busy { what: "region's uncommitted entries" }),
            Err(ProposeError::Changing) => {
                Err(Error::Busy { what: "another change of the region's shape" })
            }
            Err(ProposeError::NotLeader | ProposeError::Transferring) => Err(self.not_leader()),
        }
    }

    /// A leader in a joint configuration ends it. Refused: the next tick tries again.
    pub(crate) fn leave_joint(&mut self) {
        if self.runs() && self.region.is_joint() && self.group.leads() {
            let _ = self.propose_leave(self.region.epoch);
        }
    }

    /// Whether in either half of the configuration a quorum is alive and can be fed from the leader's log.
    fn can_go_on(&self, after: &Region) -> bool {
        self.has_quorum(after, |_| true)
    }

    /// The same with those alone that `counts` names.
    pub(super) fn has_quorum(
        &self,
        region: &Region,
        counts: impl Fn(&&crate::types::Peer) -> bool,
    ) -> bool {
        let from = self.group.storage().truncated().index;
        let progress = self.group.progress();
        let fit = |peer: &&crate::types::Peer| {
            peer.id == self.id
                || progress
                    .iter()
                    .any(|(id, matched, live)| *id == peer.id && *live && *matched >= from)
        };
        [[Role::Voter, Role::Incoming], [Role::Voter, Role::Demoting]].iter().all(|half| {
            let votes = || region.peers.iter().filter(|peer| half.contains(&peer.role));
            votes().filter(fit).filter(&counts).count() * 2 > votes().count()
        })
    }

    /// Tells raft-rs of changes that were applied; `region` is what they led to. Anything but the same
    /// configuration on both sides fences the replica.
    pub(crate) fn reconfigure(
        &mut self,
        changes: &[Vec<Change>],
        region: &Region,
    ) -> std::result::Result<(), String> {
        for change in changes {
            self.group.reconfigure(change).map_err(|e| format!("configuration: {e}"))?;
        }
        let (is, ought) = (self.group.configuration(), super::storage::conf_state(region));
        match changes.is_empty() || is == ought {
            true => Ok(()),
            false => Err(format!("raft's configuration is {is:?}, the region's {ought:?}")),
        }
    }

    /// Somebody asks for changes, whether or not they can be made now: who is named in them is not forgotten.
    pub(super) fn come_for(&mut self, changes: &[Change]) {
        if let Some(passage) = &mut self.passage
            && changes.iter().any(|change| change.peer() == passage.peer)
        {
            passage.arrived = 0;
        }
    }

    /// Removes a replica in passing that has arrived and that nobody comes for: whoever placed it is gone.
    fn end_passage(&mut self, config: &StoreConfig) {
        let election = config.group.election_ticks as u64;
        let may = self.group.leads() && self.merging.is_none() && !self.region.is_joint();
        let mut passing = self.region.peers.iter().filter(|peer| peer.role == Role::Passing);
        // The one that is counted for, or the first.
        let known = self.passage.take();
        let known = known.filter(|passage| self.ticks - passage.seen <= 2 * election);
        let peer = match &known {
            Some(passage) => passing.find(|peer| peer.id == passage.peer),
            None => passing.find(|peer| self.group.has_caught_up(peer.id, PROMOTION_GAP)),
        };
        let Some(peer) = peer.map(|peer| peer.id).filter(|_| may) else { return };
        let mut passage = known.unwrap_or_else(|| Box::new(Passage { peer, arrived: 0, seen: 0 }));
        // (raft forgets once in an election timeout who is alive.)
        if self.group.has_caught_up(peer, PROMOTION_GAP) {
            (passage.arrived, passage.seen) = (passage.arrived + 1, self.ticks);
        }
        let forgotten = passage.arrived >= PASSAGE * election;
        self.passage = Some(passage);
        if forgotten && self.propose_change(self.region.epoch, &[Change::Remove(peer)]).is_ok() {
            tracing::info!(region = %self.region.id, %peer, "a replica in passing was forgotten: it goes");
            self.passage = None;
        }
    }

    /// What a tick does about membership.
    pub(crate) fn tick_membership(
        &mut self,
        config: &StoreConfig,
        neighbours: &super::neighbours::Neighbours,
        effects: &mut super::effects::Effects,
    ) {
        self.leave_joint();
        self.end_passage(config);
        self.ask_removed(config, neighbours, effects);
        self.tick_merge(config, effects);
        self.tick_handing(effects);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{PeerId, RegionId, StoreId};

    fn peer(id: u64, role: Role) -> crate::types::Peer {
        crate::types::Peer { id: PeerId(id), store: StoreId(id % 10), role }
    }

    fn region() -> Region {
        Region {
            id: RegionId(4),
            epoch: Epoch { conf_ver: 7, version: 2 },
            peers: vec![peer(1, Role::Voter), peer(2, Role::Voter), peer(3, Role::Learner)],
            ..Region::default()
        }
    }

    const NOW: Epoch = Epoch { conf_ver: 7, version: 9 };

    #[test]
    fn one_change_stands_alone_and_several_make_a_joint_configuration() {
        let one = change(&region(), &[], NOW, &[Change::Promote(PeerId(3))]).unwrap();
        assert_eq!(
            (one.peers[2].role, one.epoch.conf_ver, one.is_joint()),
            (Role::Voter, 8, false)
        );
        let swap = [Change::Promote(PeerId(3)), Change::Demote(PeerId(1))];
        let joint = change(&region(), &[], NOW, &swap).unwrap();
        let roles: Vec<Role> = joint.peers.iter().map(|p| p.role).collect();
        assert_eq!(roles, [Role::Demoting, Role::Voter, Role::Incoming]);
        assert_eq!(joint.epoch, Epoch { conf_ver: 9, version: 2 });
        let stuck = change(&joint, &[], joint.epoch, &[Change::Remove(PeerId(2))]);
        assert!(matches!(stuck, Err(Error::InvalidArgument(_))), "leave first");
        let left = leave(&joint, joint.epoch).unwrap();
        let roles: Vec<Role> = left.peers.iter().map(|p| p.role).collect();
        assert_eq!(
            (&roles[..], left.epoch.conf_ver),
            (&[Role::Passing, Role::Voter, Role::Voter][..], 11)
        );
        assert!(leave(&left, left.epoch).is_err());
        let gone = change(&left, &[], left.epoch, &[Change::Remove(PeerId(1))]).unwrap();
        assert_eq!((gone.peers.len(), gone.epoch.conf_ver), (2, 12));
    }

    #[test]
    fn nonsense_and_changes_for_other_replicas_are_refused() {
        let refused = |changes: &[Change]| {
            let removed = [Departed { region: RegionId(4), id: PeerId(14), store: StoreId(4) }];
            matches!(change(&region(), &removed, NOW, changes), Err(Error::InvalidArgument(_)))
        };
        let add = |id: u64, store: u64| Change::AddLearner {
            peer: PeerId(id),
            store: StoreId(store),
            passing: false,
        };
        assert!(!refused(&[add(24, 4)]));
        assert!(refused(&[]) && refused(&[add(24, 2)]), "nothing; a store with a replica");
        assert!(refused(&[add(14, 5)]) && refused(&[add(13, 4)]), "ids of the past");
        assert!(refused(&[Change::Promote(PeerId(1))]) && refused(&[Change::Demote(PeerId(3))]));
        assert!(refused(&[Change::Remove(PeerId(9))]));
        assert!(refused(&[Change::Promote(PeerId(3)), Change::Promote(PeerId(3))]));
        assert!(refused(&[Change::Promote(PeerId(3)), Change::Remove(PeerId(1))]));
        let mut lonely = region();
        lonely.peers.remove(0);
        let last = change(&lonely, &[], NOW, &[Change::Remove(PeerId(2))]);
        assert!(matches!(last, Err(Error::InvalidArgument(_))), "nobody to vote");
        let old = Epoch { conf_ver: 6, version: 2 };
        let stale = change(&region(), &[], old, &[Change::Promote(PeerId(3))]);
        assert!(matches!(stale, Err(Error::EpochNotMatch { .. })));
    }
}
