//! What operators ask: which regions there are, and other shapes for them.

use super::api::check_key;
use super::goal::Goal;
use super::request::{Body, Response};
use super::{Client, odd};
use crate::codec::admin::{Admin, CHILDREN_MAX, Child, Split};
use crate::error::{Error, Result};
use crate::types::{FIRST_REGION, PeerId, Region, RegionId};
use bytes::Bytes;

impl Client {
    /// The regions from the one that owns `start` on, at most `count` (and at most 256) of them, as far as the
    /// node knows: another node may know newer shapes.
    pub async fn regions(&self, start: impl Into<Bytes>, count: usize) -> Result<Vec<Region>> {
        match self.call(Body::Regions { start: start.into(), count }).await? {
            Response::Regions(regions) => Ok(regions),
            _ => Err(odd()),
        }
    }

    /// The region that owns `key`, as far as the node knows.
    pub async fn region_of(&self, key: impl Into<Bytes>) -> Result<Region> {
        let key = key.into();
        let found = self.regions(key.clone(), 1).await?.into_iter().next();
        found.filter(|region| region.range.contains(&key)).ok_or(Error::NoRoute { key })
    }

    /// Takes `count` ids that nothing in the cluster has had or will have, and gives the first of them. At most 2^20 at once:
    /// more are an [`InvalidArgument`](Error::InvalidArgument), and so is none.
    pub async fn allocate_ids(&self, count: u64) -> Result<u64> {
        match self.administer(FIRST_REGION, Admin::Allocate { count }).await? {
            Response::Ids(first) => Ok(first),
            _ => Err(odd()),
        }
    }

    /// Cuts regions so that each of `keys` begins one; keys at which one begins already are passed over. Gives the
    /// regions that were cut, with what was cut out of them. No data moves and no snapshot is sent; clients
    /// notice nothing but a retry.
    ///
    /// Each region is cut by one entry of its log, atomically; several regions are not. The client's time limit is that of
    /// the whole. After an error some may have been cut: asking again does the rest.
    pub async fn split<K: Into<Bytes>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<Region>> {
        let mut keys: Vec<Bytes> = keys.into_iter().map(Into::into).collect();
        keys.iter().try_for_each(check_key)?;
        keys.sort_unstable();
        keys.dedup();
        let mut cut = Vec::new();
        let mut goal = Goal::of(self);
        while let Some(first) = keys.first().cloned() {
            let client = self.with_timeout(goal.left());
            let region = client.region_of(first.clone()).await?;
            if region.range.start == first {
                keys.remove(0);
                continue;
            }
            let inside = |key: &&Bytes| region.range.contains(key);
            let inside: Vec<Bytes> =
                keys.iter().take_while(inside).take(CHILDREN_MAX / 4).cloned().collect();
            let admin = client.plan(&region, &inside).await?;
            match self.with_timeout(goal.left()).administer(region.id, admin).await {
                Ok(Response::Regions(regions)) => {
                    cut.extend(regions);
                    keys.drain(..inside.len());
                    goal.is_nearer();
                }
                Ok(_) => return Err(odd()),
                // Somebody else was faster: look again.
                Err(faster @ Error::EpochNotMatch { .. }) => goal.again(faster).await?,
                Err(error) => return Err(error),
            }
        }
        Ok(cut)
    }

    async fn plan(&self, region: &Region, keys: &[Bytes]) -> Result<Admin> {
        let peers = region.peers.len() as u64;
        let each = peers + 1;
        let first = self.allocate_ids(keys.len() as u64 * each).await?;
        let child = |(key, id): (&Bytes, u64)| Child {
            region: RegionId(id),
            start: key.clone(),
            peers: (id + 1..=id + peers).map(PeerId).collect(),
        };
        let ids = (first..).step_by(each as usize);
        let children = keys.iter().zip(ids).map(child).collect();
        Ok(Admin::Split(Split { epoch: region.epoch, children }))
    }

    async fn administer(&self, region: RegionId, admin: Admin) -> Result<Response> {
        self.call(Body::Admin { region, admin }).await
    }
}

impl super::Blocking {
    /// See [`Client::regions`].
    pub fn regions(&self, start: impl Into<Bytes>, count: usize) -> Result<Vec<Region>> {
        super::wait(self.client.regions(start, count))
    }

    /// See [`Client::region_of`].
    pub fn region_of(&self, key: impl Into<Bytes>) -> Result<Region> {
        super::wait(self.client.region_of(key))
    }

    /// See [`Client::split`].
    pub fn split<K: Into<Bytes>>(&self, keys: impl IntoIterator<Item = K>) -> Result<Vec<Region>> {
        super::wait(self.client.split(keys))
    }
}
