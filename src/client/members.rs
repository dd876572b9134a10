//! What operators ask: other replicas for a region.
//!
//! Each call is a [`Goal`], not a step: it looks at the region as its leader knows it, asks for what is missing, and
//! looks again, until the goal is reached or the client's time is up. So a call that failed half-way, or whose outcome is
//! unknown, is simply repeated. A learner that has not caught up is waited for.

use super::goal::Goal;
use super::request::{Body, Response};
use super::{Client, odd};
use crate::codec::admin::{Admin, Change};
use crate::error::{Error, Result};
use crate::types::{Epoch, PeerId, Region, RegionId, Role, StoreId};
use std::time::Duration;

/// For so long a region may be led before the directory hears of it: it has just been cut out of another one, or its leader has not
/// reported yet, which leaders do within a second of what they apply.
const NEWBORN: Duration = Duration::from_secs(3);

/// The changes of a region's replicas. All of them share this:
///
/// * The client's time limit is that of the whole call. When it is over, the error is what was waited for last: mostly
///   [`Error::Busy`], which says what stands in the way. Steps that were taken stay; one that was asked for last may
///   still be taken. The same call again goes on from there.
/// * [`Error::InvalidArgument`] is told at once: it makes no sense (no replica there, a store that is draining).
/// * [`Error::RegionNotFound`] is told a few seconds after the leader of region 1 first knew of no such region, though it knew
///   who leads every key. With less time than that it is merely what was waited for last.
impl Client {
    /// The region as its leader knows it, once no change of its replicas is under way.
    pub async fn region(&self, region: RegionId) -> Result<Region> {
        // No region has ever had this shape: the refusal says which it has.
        let epoch = Epoch::default();
        let asked = self.call(Body::Admin { region, admin: Admin::LeaveJoint { epoch } }).await;
        match asked {
            Err(Error::EpochNotMatch { current }) => {
                let found = current.into_iter().find(|one| one.id == region);
                found.ok_or(Error::RegionNotFound(region))
            }
            Err(error) => Err(error),
            Ok(_) => Err(odd()),
        }
    }

    /// Gives the region a learner on `store`: it receives the data and every write from now on, and does not vote. Done
    /// already if the store has a replica. Gives the region as it is then; the data follow in the background.
    pub async fn add_learner(&self, region: RegionId, store: StoreId) -> Result<Region> {
        Goal::of(self).add_learner(region, store, false).await
    }

    /// Gives the region a replica on `store` that votes: a learner, which is promoted once it has caught up. Done already
    /// if there is one. One that has not caught up in time stays a learner, until this is called again.
    pub async fn add_voter(&self, region: RegionId, store: StoreId) -> Result<Region> {
        let mut goal = Goal::of(self);
        goal.add_learner(region, store, false).await?;
        goal.promote(region, store).await
    }

    /// Lets the learner on `store` vote, once it has caught up. Done already if it votes. Refused
    /// ([`InvalidArgument`](Error::InvalidArgument)) if the store is draining or has left.
    pub async fn promote(&self, region: RegionId, store: StoreId) -> Result<Region> {
        Goal::of(self).promote(region, store).await
    }

    /// Makes a learner of the voter on `store`; if it leads, leadership is handed over first. Done already if it is one.
    pub async fn demote(&self, region: RegionId, store: StoreId) -> Result<Region> {
        let demoting = |now: &Region| match now.peer_on(store) {
            Some(peer) if peer.role == Role::Voter => Ok(vec![Change::Demote(peer.id)]),
            Some(_) => Ok(Vec::new()),
            None => Err(nobody(region, store)),
        };
        Goal::of(self).reach(region, demoting).await
    }

    /// Removes the replica on `store`, with its data; if it leads, leadership is handed over first. Done already if
    /// there is none. What the store holds is deleted soon after, also if it is out of reach now.
    pub async fn remove_peer(&self, region: RegionId, store: StoreId) -> Result<Region> {
        Goal::of(self).remove_peer(region, store).await
    }

    /// Moves a replica from one store to another: a learner there, and once it has caught up the two change roles in
    /// one step; then the old one is removed. At no time do fewer vote than before. Done already if only `to` has one.
    /// One store cannot be both ([`InvalidArgument`](Error::InvalidArgument)).
    ///
    /// Where the old one alone votes, the new one votes beside it first, for somebody must lead meanwhile; then it leads, and the
    /// old one is removed. Whoever is gone between leaves both of them to vote; asking again goes on from there.
    ///
    /// What is on its way has the role [`Passing`](Role::Passing). If whoever asked is gone before the end, the region's leader
    /// removes it: twenty election timeouts after it has caught up and was last asked to change, in vain or not. Asking again before
    /// goes on from there.
    pub async fn replace_peer(
        &self,
        region: RegionId,
        from: StoreId,
        to: StoreId,
    ) -> Result<Region> {
        if from == to {
            let what = format!("the replica of {region} on {from} cannot take its own place");
            return Err(Error::InvalidArgument(what));
        }
        let mut goal = Goal::of(self);
        let known = goal.region(region).await?;
        if known.peer_on(from).is_none() && known.peer_on(to).is_none() {
            return Err(nobody(region, from));
        }
        goal.replace(region, from, to).await
    }

    /// One change of a region's replicas, made for one shape of it.
    pub(crate) async fn change_peers(
        &self,
        region: RegionId,
        epoch: Epoch,
        changes: Vec<Change>,
    ) -> Result<Vec<Region>> {
        let admin = Admin::ChangePeers { epoch, changes };
        match self.call(Body::Admin { region, admin }).await? {
            Response::Regions(regions) => Ok(regions),
            _ => Err(odd()),
        }
    }
}

impl Goal {
    /// The region as its leader knows it. [`RegionNotFound`](Error::RegionNotFound) once the directory has known of none for
    /// [`NEWBORN`]: unlike that of a single node it is final.
    pub async fn region(&mut self, region: RegionId) -> Result<Region> {
        let mut unknown_since = None;
        loop {
            let error = match self.client().region(region).await {
                Ok(now) => return Ok(now),
                Err(error) => error,
            };
            if let Error::RegionNotFound(_) = error {
                let now = self.now();
                match self.client().is_nowhere(region).await {
                    Ok(true) if now.since(*unknown_since.get_or_insert(now)) >= NEWBORN => {
                        return Err(error);
                    }
                    Ok(false) => unknown_since = None,
                    _ => {}
                }
            }
            self.again(error).await?;
        }
    }

    /// An id for a replica on a store that takes more of them.
    async fn newcomer(&mut self, store: StoreId) -> Result<PeerId> {
        self.insist(|client| async move { client.takes(store).await }).await?;
        let ids = self.insist(|client| async move { client.allocate_ids(1).await });
        ids.await.map(PeerId)
    }

    /// A learner, unless the store has a replica. `passing`: it is to be promoted, and the region's leader removes it if
    /// nobody does.
    ///
    /// Whoever asked with an id and hears nothing asks with the same only while the region's replicas are as they were. Otherwise
    /// it may have come, and gone again by another's hand: its store remembers that, and never lets that one live. (Seed 4560 of the
    /// regions: once the region had forgotten it, too, the second request was taken, and the learner was waited for for ever.)
    async fn add_learner(
        &mut self,
        region: RegionId,
        store: StoreId,
        passing: bool,
    ) -> Result<Region> {
        let mut new: Option<(PeerId, u64)> = None;
        loop {
            let now = self.region(region).await?;
            if now.is_joint() {
                self.step(&now, Vec::new()).await?;
                continue;
            }
            if now.peer_on(store).is_some() {
                self.is_nearer();
                return Ok(now);
            }
            let shape = now.epoch.conf_ver;
            let peer = match new {
                Some((peer, asked_for)) if asked_for == shape => peer,
                _ => self.newcomer(store).await?,
            };
            new = Some((peer, shape));
            self.step(&now, vec![Change::AddLearner { peer, store, passing }]).await?;
        }
    }

    /// A replica more that votes, unless the store has one.
    pub async fn bring_voter(&mut self, region: RegionId, store: StoreId) -> Result<Region> {
        self.add_learner(region, store, true).await?;
        self.promote(region, store).await
    }

    async fn promote(&mut self, region: RegionId, store: StoreId) -> Result<Region> {
        self.may_vote(store).await?;
        self.reach(region, |now| match now.peer_on(store) {
            Some(peer) if peer.role.is_learner() => Ok(vec![Change::Promote(peer.id)]),
            Some(_) => Ok(Vec::new()),
            None => Err(nobody(region, store)),
        })
        .await
    }

    /// Takes the replica away from a store.
    pub async fn remove_peer(&mut self, region: RegionId, store: StoreId) -> Result<Region> {
        self.reach(region, |now| match now.peer_on(store) {
            Some(peer) => Ok(vec![Change::Remove(peer.id)]),
            None => Ok(Vec::new()),
        })
        .await
    }

    /// Replaces the one on a store by one on another, which may be there already.
    pub async fn replace(
        &mut self,
        region: RegionId,
        from: StoreId,
        to: StoreId,
    ) -> Result<Region> {
        self.add_learner(region, to, true).await?;
        self.change_roles(region, from, to).await
    }

    /// Refuses a vote to a replica on a store that is to be emptied, once the replica is there. It may have been asked for before
    /// that was on record, and have come after its region was asked what it has on the store: then the store has left, or will.
    /// (Seed 5763 of the regions: of two voters that were left one was on such a store.)
    async fn may_vote(&mut self, store: StoreId) -> Result<()> {
        self.insist(|client| async move { client.may_take(store).await }).await
    }

    /// The second half of [`replace_peer`](Client::replace_peer): the replica on `to` is there.
    async fn change_roles(
        &mut self,
        region: RegionId,
        from: StoreId,
        to: StoreId,
    ) -> Result<Region> {
        self.may_vote(to).await?;
        self.reach(region, |now| {
            let role = |store| now.peer_on(store).map(|peer| (peer.id, peer.role));
            match (role(from), role(to)) {
                (_, None) => Err(nobody(region, to)),
                // It leads, and nobody else could while it is one step: its heir must vote before.
                (Some((_, Role::Voter)), Some((new, role)))
                    if role.is_learner() && one_votes(now) =>
                {
                    Ok(vec![Change::Promote(new)])
                }
                (Some((old, Role::Voter)), Some((new, role))) if role.is_learner() => {
                    Ok(vec![Change::Promote(new), Change::Demote(old)])
                }
                (None, Some((new, role))) if role.is_learner() => Ok(vec![Change::Promote(new)]),
                _ => Ok(Vec::new()),
            }
        })
        .await?;
        self.remove_peer(region, from).await
    }

    /// Changes the region until `missing` finds nothing to change.
    pub async fn reach(
        &mut self,
        region: RegionId,
        missing: impl Fn(&Region) -> Result<Vec<Change>>,
    ) -> Result<Region> {
        loop {
            let now = self.region(region).await?;
            // Its leader leaves a joint configuration by itself; this waits for it.
            let changes = if now.is_joint() { Vec::new() } else { missing(&now)? };
            if changes.is_empty() && !now.is_joint() {
                self.is_nearer();
                return Ok(now);
            }
            self.step(&now, changes).await?;
        }
    }

    /// Asks for these changes of a region that looks like this, or for the end of its joint configuration. `Ok`: it is time for
    /// another look.
    async fn step(&mut self, now: &Region, changes: Vec<Change>) -> Result<()> {
        let (region, epoch) = (now.id, now.epoch);
        let admin = match now.is_joint() {
            true => Admin::LeaveJoint { epoch },
            false => Admin::ChangePeers { epoch, changes },
        };
        match self.client().call(Body::Admin { region, admin }).await {
            Ok(Response::Regions(_)) => self.is_nearer(),
            Ok(_) => return Err(odd()),
            Err(stays @ Error::LeaderStays { .. }) => {
                let refused = match self.client().hand_over(region, None).await {
                    Ok(()) => stays,
                    // Others vote, or the change had been refused; a leader that is new has heard of none yet.
                    Err(Error::InvalidArgument(_)) => {
                        Error::Busy { what: "a replica that is behind, or out of reach" }
                    }
                    Err(refused) => refused,
                };
                self.again(refused).await?;
            }
            Err(error) => self.again(error).await?,
        }
        Ok(())
    }
}

/// Whether a region that is in no joint configuration has a single voter.
fn one_votes(region: &Region) -> bool {
    region.peers.iter().filter(|peer| peer.role == Role::Voter).count() == 1
}

fn nobody(region: RegionId, store: StoreId) -> Error {
    Error::InvalidArgument(format!("{region} has no replica on {store}"))
}

impl super::Blocking {
    /// See [`Client::region`].
    pub fn region(&self, region: RegionId) -> Result<Region> {
        super::wait(self.client.region(region))
    }

    /// See [`Client::add_learner`].
    pub fn add_learner(&self, region: RegionId, store: StoreId) -> Result<Region> {
        super::wait(self.client.add_learner(region, store))
    }

    /// See [`Client::add_voter`].
    pub fn add_voter(&self, region: RegionId, store: StoreId) -> Result<Region> {
        super::wait(self.client.add_voter(region, store))
    }

    /// See [`Client::promote`].
    pub fn promote(&self, region: RegionId, store: StoreId) -> Result<Region> {
        super::wait(self.client.promote(region, store))
    }

    /// See [`Client::demote`].
    pub fn demote(&self, region: RegionId, store: StoreId) -> Result<Region> {
        super::wait(self.client.demote(region, store))
    }

    /// See [`Client::remove_peer`].
    pub fn remove_peer(&self, region: RegionId, store: StoreId) -> Result<Region> {
        super::wait(self.client.remove_peer(region, store))
    }

    /// See [`Client::replace_peer`].
    pub fn replace_peer(&self, region: RegionId, from: StoreId, to: StoreId) -> Result<Region> {
        super::wait(self.client.replace_peer(region, from, to))
    }
}

#[cfg(test)]
mod tests;
