//! What operators ask: stores that join, drain and leave; who leads what.

use super::api::heard;
use super::ask::{Answer, Ask};
use super::goal::Goal;
use super::request::{Body, REGIONS_MAX, Response};
use super::{Client, odd};
use crate::codec::admin::Admin;
use crate::codec::directory::{Directory, StoreChange, StoreRecord, StoreState};
use crate::codec::report::{Cluster, RegionInfo};
use crate::error::{Error, Result};
use crate::types::{FIRST_REGION, Region, RegionId, StoreId};
use bytes::Bytes;

/// Regions that are asked at once.
const PAGE: usize = 64;

/// How it is known where a region has replicas.
#[derive(Clone, Copy)]
enum Known {
    ByReports,
    ByThemselves,
}

impl Client {
    async fn ask(&self, ask: Ask) -> Result<Answer> {
        match self.call(Body::Directory(ask)).await? {
            Response::Directory(answer) => Ok(answer),
            _ => Err(odd()),
        }
    }

    /// The stores of the cluster, what they hold, and what stands in the way of draining them, as the leader of region 1
    /// knows it. Any node can be asked. What stores hold is as they have last reported it: about half a second
    /// ago, and some seconds where nothing was written (sizes that were measured since, free space).
    pub async fn cluster(&self) -> Result<Cluster> {
        match self.ask(Ask::Cluster).await? {
            Answer::Cluster(cluster) => Ok(cluster),
            _ => Err(odd()),
        }
    }

    /// The record of the stores, those that have left included.
    pub async fn stores(&self) -> Result<Vec<StoreRecord>> {
        Ok(self.cluster().await?.directory.stores.into_values().collect())
    }

    /// The regions from the one that owns `start` on, at most `count` (and at most 256) of them, with leader and size, as
    /// they have been reported to the leader of region 1. Any node can be asked.
    pub async fn locate(&self, start: impl Into<Bytes>, count: usize) -> Result<Vec<RegionInfo>> {
        let (start, count) = (start.into(), count.clamp(1, REGIONS_MAX));
        match self.ask(Ask::Locate { start, count }).await? {
            Answer::Located(regions) => Ok(regions),
            _ => Err(odd()),
        }
    }

    /// Whether the leader of region 1 knows who leads every key, and none of them leads this region. It knows what was
    /// reported: a region that was cut out of another a moment ago it may not know yet.
    pub(super) async fn is_nowhere(&self, region: RegionId) -> Result<bool> {
        let mut at = Bytes::new();
        loop {
            let page = self.locate(at.clone(), REGIONS_MAX).await?;
            let begin = at.clone();
            for RegionInfo { region: known, leader, .. } in page {
                if known.id == region || leader.is_none() || !known.range.contains(&at) {
                    return Ok(false);
                }
                at = known.range.end;
                if at.is_empty() {
                    return Ok(true);
                }
            }
            if at == begin {
                return Ok(false);
            }
        }
    }

    async fn change_record(&self, change: StoreChange) -> Result<Directory> {
        let admin = Admin::Stores(change);
        match self.call(Body::Admin { region: FIRST_REGION, admin }).await? {
            Response::Directory(Answer::Record(directory)) => Ok(directory),
            _ => Err(odd()),
        }
    }

    /// Asks region 1, by an entry of its log, whether a store still belongs to the cluster. `Err` if it has left, is another
    /// one than the record says, or nobody can tell.
    pub(crate) async fn still_belongs(&self, record: StoreRecord) -> Result<()> {
        self.change_record(StoreChange::Register { record, replicas: 0 }).await.map(drop)
    }

    /// Empties a store: it gets no more replicas, its leaderships go to others, and each of its replicas is replaced by
    /// one on the store with the fewest. Returns as soon as that is on record; the work is done in the background by the
    /// node that leads region 1, a few regions at a time, and goes on after any crash. [`cluster`](Self::cluster) shows
    /// how far it got. The store serves meanwhile; it may as well be down. Asking again changes nothing.
    ///
    /// A learner that is on the store beyond the wanted replicas goes without being replaced.
    pub async fn drain_store(&self, store: StoreId) -> Result<()> {
        self.change_record(StoreChange::Drain(store)).await.map(drop)
    }

    /// Takes a drain back: the store may get replicas again. What has gone does not come back by itself.
    pub async fn resume_store(&self, store: StoreId) -> Result<()> {
        self.change_record(StoreChange::Resume(store)).await.map(drop)
    }

    /// Strikes a store off for good: it must have been drained and hold no replica any more. Its id is never used again,
    /// and its directory is kept out from then on. Done already if it has left.
    ///
    /// That no region has a replica on it is asked of every region, by an entry of its log: it takes as long as a write to each, 64
    /// at a time, and a leader for each; the client's time limit is that of the whole. Nothing is changed when it fails; ask again.
    ///
    /// Errors: [`InvalidArgument`](Error::InvalidArgument) if it is not draining or regions still have replicas on it,
    /// [`Busy`](Error::Busy) while not every region has been reported or one is being merged; what a write to a region
    /// may meet.
    pub async fn remove_store(&self, store: StoreId) -> Result<()> {
        let goal = Goal::of(self);
        let record = self.cluster().await?.directory.stores.remove(&store);
        match record.map(|record| record.state) {
            None => return Err(Error::InvalidArgument(format!("there is no {store}"))),
            Some(StoreState::Left) => return Ok(()),
            Some(StoreState::Up) => {
                return Err(Error::InvalidArgument(format!(
                    "{store} is not draining: drain it first"
                )));
            }
            Some(StoreState::Draining) => {}
        }
        for known in [Known::ByReports, Known::ByThemselves] {
            holds_nothing(&goal, store, known).await?;
        }
        goal.whole().change_record(StoreChange::Leave(store)).await.map(drop)
    }

    /// These regions as each is at an entry of its log that is made for it. A frozen one refuses that: its merge, or its
    /// thawing, may hang on what the store remembers (see [`fates`](crate::node)).
    async fn as_their_logs_say(&self, page: &[RegionInfo]) -> Result<Vec<Region>> {
        let asked: Vec<_> = page
            .iter()
            .map(|info| {
                let admin = Admin::Forget { peers: Vec::new() };
                self.ask_soon(Body::Admin { region: info.region.id, admin })
            })
            .collect();
        let mut regions = Vec::with_capacity(asked.len());
        for told in asked {
            match heard(told).await? {
                Response::Regions(said) => regions.extend(said),
                _ => return Err(odd()),
            }
        }
        Ok(regions)
    }

    /// Refuses a store that is to get no replica: one that is not on record may be about to be, and is waited for.
    pub(super) async fn takes(&self, store: StoreId) -> Result<()> {
        let cluster = self.cluster().await?;
        match cluster.directory.stores.contains_key(&store) {
            true => may_take(&cluster, store),
            false => Err(Error::Busy { what: "a store that is not on record" }),
        }
    }

    /// Refuses a store that is to get no more replicas. One that is not on record has its replica from whoever knew better.
    pub(super) async fn may_take(&self, store: StoreId) -> Result<()> {
        may_take(&self.cluster().await?, store)
    }
}

fn may_take(cluster: &Cluster, store: StoreId) -> Result<()> {
    match cluster.directory.stores.get(&store).map(|record| record.state) {
        Some(StoreState::Draining) => {
            Err(Error::InvalidArgument(format!("{store} is draining: it gets no more replicas")))
        }
        Some(StoreState::Left) => Err(Error::InvalidArgument(format!("{store} has left for good"))),
        _ => Ok(()),
    }
}

/// Goes through all keys, and refuses if a region has a replica on the store.
///
/// What has been reported tells it soon, and proves nothing: a leader that does not reach the leader of region 1 has
/// not told what it did since. What regions say by an entry of their logs does. A draining store gets no replica, so it does not
/// matter that they say it one after the other, and that some are cut or merged meanwhile.
async fn holds_nothing(goal: &Goal, store: StoreId, known: Known) -> Result<()> {
    let (mut at, mut held) = (Bytes::new(), 0);
    loop {
        let page = goal.whole().locate(at.clone(), PAGE).await?;
        let begin = at.clone();
        // A gap: nobody knows who holds these keys.
        let gap = |info: &RegionInfo| info.leader.is_none() || !info.region.range.contains(&at);
        if page.first().is_none_or(gap) {
            return Err(Error::Busy { what: "regions that have not been reported yet" });
        }
        let regions: Vec<Region> = match known {
            Known::ByReports => page.into_iter().map(|info| info.region).collect(),
            Known::ByThemselves => goal.whole().as_their_logs_say(&page).await?,
        };
        for region in regions {
            // Another one has these keys by now, or nobody is known to: the next page, which begins here, tells.
            if !region.range.contains(&at) {
                break;
            }
            held += usize::from(region.peer_on(store).is_some());
            at = region.range.end;
            if at.is_empty() {
                return match held {
                    0 => Ok(()),
                    _ => Err(Error::InvalidArgument(format!(
                        "{held} regions still have a replica on {store}"
                    ))),
                };
            }
        }
        if at == begin {
            return Err(Error::Busy { what: "regions that have not been reported yet" });
        }
    }
}

impl super::Blocking {
    /// See [`Client::cluster`].
    pub fn cluster(&self) -> Result<Cluster> {
        super::wait(self.client.cluster())
    }

    /// See [`Client::stores`].
    pub fn stores(&self) -> Result<Vec<StoreRecord>> {
        super::wait(self.client.stores())
    }

    /// See [`Client::locate`].
    pub fn locate(&self, start: impl Into<Bytes>, count: usize) -> Result<Vec<RegionInfo>> {
        super::wait(self.client.locate(start, count))
    }

    /// See [`Client::drain_store`].
    pub fn drain_store(&self, store: StoreId) -> Result<()> {
        super::wait(self.client.drain_store(store))
    }

    /// See [`Client::resume_store`].
    pub fn resume_store(&self, store: StoreId) -> Result<()> {
        super::wait(self.client.resume_store(store))
    }

    /// See [`Client::remove_store`].
    pub fn remove_store(&self, store: StoreId) -> Result<()> {
        super::wait(self.client.remove_store(store))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Backend, Done, wait};
    use crate::types::{Peer, PeerId, Time};
    use std::sync::Arc;
    use std::time::Duration;

    const GOING: StoreId = StoreId(4);

    fn region(stores: &[u64]) -> Region {
        let peer =
            |store: &u64| Peer { id: PeerId(*store), store: StoreId(*store), ..Peer::default() };
        Region { id: RegionId(7), peers: stores.iter().map(peer).collect(), ..Region::default() }
    }

    /// One region that owns all keys: what was reported of it, and what it says itself, if it is not frozen.
    struct Cluster1 {
        reported: Region,
        said: Option<Region>,
    }

    impl Cluster1 {
        fn answer(&self, body: Body) -> Result<Response> {
            let record =
                StoreRecord { store: GOING, state: StoreState::Draining, ..StoreRecord::default() };
            let directory = Directory { stores: [(GOING, record)].into(), ..Directory::default() };
            Ok(match body {
                Body::Directory(Ask::Cluster) => {
                    let cluster = Cluster { directory, ..Cluster::default() };
                    Response::Directory(Answer::Cluster(cluster))
                }
                Body::Directory(Ask::Locate { .. }) => {
                    let (region, leader) = (self.reported.clone(), Some(StoreId(1)));
                    let info = RegionInfo { region, leader, bytes: 0 };
                    Response::Directory(Answer::Located(vec![info]))
                }
                Body::Admin { admin: Admin::Forget { peers }, .. } if peers.is_empty() => {
                    let frozen = Error::Busy { what: "region, frozen: it is being merged" };
                    Response::Regions(vec![self.said.clone().ok_or(frozen)?])
                }
                Body::Admin { admin: Admin::Stores(StoreChange::Leave(GOING)), .. } => {
                    Response::Directory(Answer::Record(directory))
                }
                other => panic!("{other:?}"),
            })
        }
    }

    impl Backend for Cluster1 {
        fn call(&self, body: Body, _: Duration, done: Done<Response>) {
            done.call(self.answer(body));
        }

        fn now(&self) -> Time {
            Time(0)
        }

        fn pause(&self, _: Duration, done: Done<()>) {
            done.call(Ok(()));
        }
    }

    fn removed(reported: &[u64], said: Option<&[u64]>) -> Result<()> {
        let cluster = Cluster1 { reported: region(reported), said: said.map(region) };
        let client = Client::new(Arc::new(cluster), Duration::from_secs(1));
        wait(client.remove_store(GOING))
    }

    /// A leader that does not reach the leader of region 1 has not told where it has placed a replica since: the store was struck
    /// off with it.
    #[test]
    fn a_store_is_not_struck_off_on_hearsay() {
        let refused = |result| matches!(result, Err(Error::InvalidArgument(why)) if why.contains("still have"));
        assert!(refused(removed(&[1, 2, 4], Some(&[1, 2, 4]))));
        assert!(refused(removed(&[1, 2, 3], Some(&[1, 2, 4]))), "the region knows better");
        assert!(matches!(removed(&[1, 2, 3], None), Err(Error::Busy { .. })), "it is frozen");
        removed(&[1, 2, 3], Some(&[1, 2, 3])).unwrap();
    }
}
