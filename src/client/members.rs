//! What operators ask: other replicas for a region.
//!
//! Each call is a goal, not a step: it looks at the region as its leader knows it, asks for what is missing, and
//! looks again, until the goal is reached. So a call that failed half-way, or whose outcome is unknown, is simply
//! repeated. A learner that has not caught up is waited for, as long as a request may take, several times over.

use super::request::{Body, Response};
use super::{Client, odd};
use crate::codec::admin::{Admin, Change};
use crate::error::{Error, Result};
use crate::types::{Epoch, PeerId, Region, RegionId, Role, StoreId};

/// Looks at a region before a goal is given up.
pub(super) const LOOKS_MAX: u32 = 64;

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
        let known = self.region(region).await?;
        if known.peer_on(store).is_some() {
            return Ok(known);
        }
        self.may_take(store).await?;
        let peer = PeerId(self.allocate_ids(1).await?);
        self.place(region, (peer, store), false).await
    }

    /// A learner with this id, unless the store has a replica. `passing`: it is to be promoted, and its leader removes it if
    /// nobody does.
    async fn place(
        &self,
        region: RegionId,
        new: (PeerId, StoreId),
        passing: bool,
    ) -> Result<Region> {
        let (peer, store) = new;
        self.reach(region, |now| match now.peer_on(store) {
            Some(_) => Ok(Vec::new()),
            None => Ok(vec![Change::AddLearner { peer, store, passing }]),
        })
        .await
    }

    /// A replica more that votes, under this id unless the store has one.
    pub(super) async fn add_voter(
        &self,
        region: RegionId,
        new: (PeerId, StoreId),
    ) -> Result<Region> {
        self.place(region, new, true).await?;
        self.promote(region, new.1).await
    }

    /// Lets the learner on `store` vote, once it has caught up.
    pub async fn promote(&self, region: RegionId, store: StoreId) -> Result<Region> {
        self.reach(region, |now| match now.peer_on(store) {
            Some(peer) if peer.role.is_learner() => Ok(vec![Change::Promote(peer.id)]),
            Some(_) => Ok(Vec::new()),
            None => Err(nobody(region, store)),
        })
        .await
    }

    /// Makes a learner of the voter on `store`; if it leads, leadership is handed over first.
    pub async fn demote(&self, region: RegionId, store: StoreId) -> Result<Region> {
        self.reach(region, |now| match now.peer_on(store) {
            Some(peer) if peer.role == Role::Voter => Ok(vec![Change::Demote(peer.id)]),
            Some(_) => Ok(Vec::new()),
            None => Err(nobody(region, store)),
        })
        .await
    }

    /// Removes the replica on `store`, with its data; if it leads, leadership is handed over first. Done already if
    /// there is none. What the store holds is deleted soon after, also if it is out of reach now.
    pub async fn remove_peer(&self, region: RegionId, store: StoreId) -> Result<Region> {
        self.reach(region, |now| match now.peer_on(store) {
            Some(peer) => Ok(vec![Change::Remove(peer.id)]),
            None => Ok(Vec::new()),
        })
        .await
    }

    /// Moves a replica from one store to another: a learner there, and once it has caught up the two change roles in
    /// one step; then the old one is removed. At no time do fewer vote than before. Where whoever asked is gone before the end, the
    /// region's leader removes what does not vote, after twenty election timeouts.
    pub async fn replace_peer(
        &self,
        region: RegionId,
        from: StoreId,
        to: StoreId,
    ) -> Result<Region> {
        let known = self.region(region).await?;
        if known.peer_on(from).is_none() && known.peer_on(to).is_none() {
            return Err(nobody(region, from));
        }
        if known.peer_on(to).is_none() {
            self.may_take(to).await?;
            let peer = PeerId(self.allocate_ids(1).await?);
            self.place(region, (peer, to), true).await?;
        }
        self.change_roles(region, from, to).await
    }

    /// The same with a new replica of this id, unless the store has one.
    pub(super) async fn replace_by(
        &self,
        region: RegionId,
        from: StoreId,
        new: (PeerId, StoreId),
    ) -> Result<Region> {
        self.place(region, new, true).await?;
        self.change_roles(region, from, new.1).await
    }

    /// The second half of [`replace_peer`](Self::replace_peer): the replica on `to` is there.
    async fn change_roles(&self, region: RegionId, from: StoreId, to: StoreId) -> Result<Region> {
        self.reach(region, |now| {
            let role = |store| now.peer_on(store).map(|peer| (peer.id, peer.role));
            match (role(from), role(to)) {
                (_, None) => Err(nobody(region, to)),
                (Some((old, Role::Voter)), Some((new, Role::Learner | Role::Passing))) => {
                    Ok(vec![Change::Promote(new), Change::Demote(old)])
                }
                (None, Some((new, Role::Learner | Role::Passing))) => {
                    Ok(vec![Change::Promote(new)])
                }
                _ => Ok(Vec::new()),
            }
        })
        .await?;
        self.remove_peer(region, from).await
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

    /// Changes the region until `missing` finds nothing to change.
    pub(super) async fn reach(
        &self,
        region: RegionId,
        missing: impl Fn(&Region) -> Result<Vec<Change>>,
    ) -> Result<Region> {
        let mut last = Error::Busy { what: "another change of the region's shape" };
        for _ in 0..LOOKS_MAX {
            let now = self.region(region).await?;
            let epoch = now.epoch;
            let admin = match now.is_joint() {
                // Its leader does so by itself; this waits for it.
                true => Admin::LeaveJoint { epoch },
                false => {
                    let changes = missing(&now)?;
                    if changes.is_empty() {
                        return Ok(now);
                    }
                    Admin::ChangePeers { epoch, changes }
                }
            };
            match self.call(Body::Admin { region, admin }).await {
                Ok(Response::Regions(_)) => {}
                Ok(_) => return Err(odd()),
                Err(Error::LeaderStays { .. }) => self.transfer_leader(region, None).await?,
                Err(
                    error @ (Error::EpochNotMatch { .. }
                    | Error::Busy { .. }
                    | Error::NotLeader { .. }
                    | Error::Timeout { .. }
                    | Error::Ambiguous { .. }),
                ) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }
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
