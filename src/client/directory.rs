//! A node's part in the directory: it answers for the whole cluster while it leads region 1, and keeps what was announced
//! to it otherwise.
//!
//! The record of the stores is replicated and stands in the state of region 1. Which regions there are and who leads them
//! is soft state: an [`Atlas`] that the leader of region 1 keeps for the length of its reign, filled by the reports of all
//! stores. Whether a node reigns it knows from its replica's own role: no message is sent for it and no group is woken,
//! so one that is deposed and does not know answers from old knowledge for a moment. Nothing rests on that: whatever
//! is changed on the ground of it is checked again by the region that it concerns.

use super::Done;
use super::ask::{Answer, Ask};
use super::job::Job;
use super::local::{Inner, Local};
use super::request::{Body, REGIONS_MAX, Response, Route};
use crate::codec::admin::Admin;
use crate::codec::directory::{Directory, StoreChange, StoreRecord, StoreState};
use crate::codec::report::{Announcement, Cluster, RegionInfo, Report, StoreLoad, Verdict};
use crate::error::{Error, Result};
use crate::kv::View;
use crate::placement::{self, Limits, Place, Plan, Site};
use crate::region::merge::was_merged;
use crate::router::Atlas;
use crate::router::reporter::{Mark, Space};
use crate::store::PeerShare;
use crate::types::{Epoch, FIRST_REGION, Region, RegionId, StoreId};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Says whether a store can be got at.
pub(crate) type Reachable = Box<dyn Fn(StoreId) -> bool + Send + Sync>;

/// Answers a store that wants to found the cluster with this one, and that directory of its: by this one's.
pub(crate) type Founds = Box<dyn Fn(StoreId, u64) -> Result<u64> + Send + Sync>;

/// What a node knows of the cluster.
#[derive(Default)]
pub(super) struct Bureau {
    /// While it reigns.
    atlas: Mutex<Option<Atlas>>,
    /// As last announced, or as remembered from the last run.
    known: RwLock<Announcement>,
    /// What the configuration names.
    named: RwLock<BTreeSet<StoreId>>,
    reachable: OnceLock<Reachable>,
    founds: OnceLock<Founds>,
    /// What stands in the way of the last plan.
    remarks: Mutex<Vec<String>>,
    news: Mutex<bool>,
    wake: Condvar,
}

impl Bureau {
    /// Something has happened that the node's clerk waits for.
    fn ring(&self) {
        *self.news.lock() = true;
        self.wake.notify_all();
    }
}

/// What a plan was made of: as long as it is the same, there is nothing new to plan.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Basis {
    session: u64,
    version: u64,
    changes: u64,
}

impl Inner {
    /// Whether this node leads region 1, as far as its replica knows.
    pub fn reigns(&self) -> bool {
        let share = self.driver.registry().get(FIRST_REGION);
        share.is_some_and(|share| share.leader() == Some(self.store))
    }

    /// Who does, as far as anybody has said; not this node.
    pub fn sovereign(&self) -> Option<StoreId> {
        let share = self.driver.registry().get(FIRST_REGION).and_then(|share| share.leader());
        let said = || Some(self.bureau.known.read().leader).filter(|store| store.0 != 0);
        share.or_else(said).filter(|store| *store != self.store)
    }

    /// With the atlas of this reign; an error if another one reigns.
    fn reign<R>(&self, work: impl FnOnce(&mut Atlas) -> R) -> Result<R> {
        let mut atlas = self.bureau.atlas.lock();
        if !self.reigns() {
            *atlas = None;
            return Err(Error::NotLeader { region: FIRST_REGION, leader: self.sovereign() });
        }
        Ok(work(atlas.get_or_insert_with(|| Atlas::new(self.jitter().max(1)))))
    }

    /// The record, as this node's replica of region 1 has it.
    fn record(&self) -> Result<Directory> {
        let state = self.driver.kv().view()?.region(FIRST_REGION);
        let state = state.ok_or(Error::RegionNotFound(FIRST_REGION))?;
        Directory::decode(&state.directory)
    }

    /// Stores other than this one: those on record, those configured, those that regions live on.
    pub fn others(&self) -> Vec<StoreId> {
        let mut stores: BTreeSet<StoreId> = self.bureau.named.read().clone();
        let known = self.bureau.known.read();
        let present = |record: &&StoreRecord| record.state != StoreState::Left;
        stores.extend(known.directory.stores.values().filter(present).map(|record| record.store));
        drop(known);
        let routes = self.routes.read();
        let peers = routes.routes().take(REGIONS_MAX).flat_map(|route| &route.region.peers);
        stores.extend(peers.map(|peer| peer.store));
        stores.remove(&self.store);
        stores.into_iter().collect()
    }

    /// Answers a question where it has arrived.
    pub fn answer(&self, ask: Ask) -> Result<Response> {
        Ok(Response::Directory(match ask {
            Ask::Report(report) => self.take_report(&report)?,
            Ask::Announce(announcement) => {
                self.announced(announcement);
                return Ok(Response::Done);
            }
            Ask::Cluster => Answer::Cluster(self.cluster()?),
            Ask::Locate { start, count } => Answer::Located(self.located(&start, count)?),
            Ask::Members => Answer::Members(self.members()),
            Ask::WasMerged(region) => {
                let record = self.driver.kv().view()?.record(region);
                Answer::WasMerged(record.is_some_and(|record| was_merged(&record)))
            }
            Ask::Found { store, incarnation } => self.founds(store, incarnation)?,
        }))
    }

    fn founds(&self, store: StoreId, incarnation: u64) -> Result<Answer> {
        let nobody = || Error::InvalidArgument("this node founds nothing".into());
        let founds = self.bureau.founds.get().ok_or_else(nobody)?;
        let incarnation = founds(store, incarnation)?;
        // Who asks is there, and can be asked in turn.
        self.bureau.ring();
        Ok(Answer::Founds { incarnation })
    }

    fn take_report(&self, report: &Report) -> Result<Answer> {
        let (session, verdict) = self.reign(|atlas| (atlas.session(), atlas.take(report)))?;
        if verdict == Verdict::Taken {
            let mut routes = self.routes.write();
            for led in &report.led {
                routes.update(led.region.clone());
                routes.set_leader(led.region.id, Some(report.store));
            }
        }
        Ok(Answer::Reported { session, verdict })
    }

    /// Of two announcements the one with the newer record counts; of one record, the later that arrives.
    fn announced(&self, announcement: Announcement) {
        let mut known = self.bureau.known.write();
        if announcement.directory.version < known.directory.version || *known == announcement {
            return;
        }
        *known = announcement;
        drop(known);
        self.bureau.ring();
    }

    fn members(&self) -> Announcement {
        let mut members = self.bureau.known.read().clone();
        // Without a session: who asks is not to report on hearsay.
        members.session = 0;
        members.leader = self.sovereign().unwrap_or_default();
        if self.reigns() {
            members.leader = self.store;
        }
        members
    }

    fn is_reachable(&self, store: StoreId) -> bool {
        store == self.store || self.bureau.reachable.get().is_none_or(|reachable| reachable(store))
    }

    fn cluster(&self) -> Result<Cluster> {
        self.reign(|_| ())?;
        let directory = self.record()?;
        let present = directory.stores.values().filter(|record| record.state != StoreState::Left);
        let load = |record: &StoreRecord| {
            let reachable = self.is_reachable(record.store);
            (record.store, StoreLoad { reachable, ..StoreLoad::default() })
        };
        let mut loads: BTreeMap<StoreId, StoreLoad> = present.map(load).collect();
        let remarks = self.bureau.remarks.lock().clone();
        self.reign(|atlas| {
            let (mut regions, mut led) = (0, 0);
            for (region, leader) in atlas.regions() {
                regions += 1;
                led += u64::from(leader.is_some());
                for peer in &region.peers {
                    if let Some(load) = loads.get_mut(&peer.store) {
                        load.replicas += 1;
                        load.leaders += u64::from(leader == Some(peer.store));
                    }
                }
            }
            for (store, load) in &mut loads {
                if let Some(sender) = atlas.sender(*store) {
                    load.used_bytes = sender.used_bytes;
                    load.capacity_bytes = sender.capacity_bytes;
                }
            }
            Cluster { directory, loads, regions, led, remarks }
        })
    }

    fn located(&self, start: &Bytes, count: usize) -> Result<Vec<RegionInfo>> {
        self.reign(|_| ())?;
        // All that was reported stands in the routes, too, and what was not is filled from them.
        let regions = self.regions(start, count);
        self.reign(|atlas| regions.iter().map(|region| atlas.describe(region)).collect())
    }

    /// Takes over what the directory says of some regions.
    pub fn learn_infos(&self, infos: &[RegionInfo]) {
        let mut routes = self.routes.write();
        for info in infos {
            routes.update(info.region.clone());
            if info.leader.is_some() {
                routes.set_leader(info.region.id, info.leader);
            }
        }
    }
}

/// For the node's own threads.
impl Local {
    /// Sets what is known before anybody has said anything: what the node remembers of its last run, and whom
    /// its configuration names.
    pub(crate) fn remember(
        &self,
        directory: Directory,
        named: impl IntoIterator<Item = StoreId>,
        reachable: Reachable,
        founds: Founds,
    ) {
        self.inner.bureau.known.write().directory = directory;
        self.inner.bureau.named.write().extend(named);
        let _ = self.inner.bureau.reachable.set(reachable);
        let _ = self.inner.bureau.founds.set(founds);
    }

    /// A way to get at it that does not keep it alive.
    pub(crate) fn weakly(&self) -> impl Fn() -> Option<Local> + Send + use<> {
        let weak = Arc::downgrade(&self.inner);
        move || weak.upgrade().map(|inner| Local { inner })
    }

    /// What was announced last.
    pub(crate) fn announcement(&self) -> Announcement {
        self.inner.bureau.known.read().clone()
    }

    /// What is on record of this store, as far as was announced.
    pub(crate) fn own_record(&self) -> Option<StoreRecord> {
        self.inner.bureau.known.read().directory.stores.get(&self.inner.store).cloned()
    }

    /// See [`Inner::announced`]: for what another node has said it was told.
    pub(crate) fn take_members(&self, members: Announcement) {
        let known = self.announcement();
        if members.directory.version > known.directory.version {
            let session = known.session;
            self.inner.announced(Announcement { session, ..members });
        } else if known.leader.0 == 0 {
            self.inner.bureau.known.write().leader = members.leader;
        }
    }

    /// Waits until there is news, or for so long.
    pub(crate) fn wait_for_news(&self, patience: Duration) {
        let mut news = self.inner.bureau.news.lock();
        if !*news {
            self.inner.bureau.wake.wait_for(&mut news, patience);
        }
        *news = false;
    }

    /// Wakes whoever waits for news.
    pub(crate) fn ring(&self) {
        self.inner.bureau.ring();
    }

    /// The announcement of this node's reign, if it reigns; takes notice of it itself.
    pub(crate) fn reign(&self) -> Option<Announcement> {
        let session = self.inner.reign(|atlas| atlas.session()).ok()?;
        let directory = self.inner.record().ok()?;
        let announcement = Announcement { session, leader: self.inner.store, directory };
        self.inner.announced(announcement.clone());
        Some(announcement)
    }

    /// Whether the node's threads have stopped.
    pub(crate) fn stopped(&self) -> bool {
        self.inner.driver.stop_reason().is_some()
    }

    /// The regions led here; `calm` says which of them are, in that shape.
    pub(crate) fn led(
        &self,
        calm: impl Fn(RegionId, Epoch) -> Option<u64>,
    ) -> Vec<(RegionId, Mark)> {
        let led = self.inner.driver.registry().led_by(self.inner.store);
        let mark = |region, share: &PeerShare| {
            let epoch = share.epoch();
            let calm = calm(region, epoch);
            Mark { epoch, term: share.term(), bytes: share.bytes(), calm }
        };
        led.into_iter().map(|(region, share)| (region, mark(region, &share))).collect()
    }

    /// The replicas that lead here.
    pub(crate) fn leaders(&self) -> Vec<(RegionId, Arc<PeerShare>)> {
        self.inner.driver.registry().led_by(self.inner.store)
    }

    /// Does something with a view of the state store, on a thread for reads.
    pub(crate) fn look_into(
        &self,
        work: impl FnOnce(Result<Box<dyn View>>) + Send + 'static,
    ) -> Result<()> {
        let kv = Arc::clone(self.inner.driver.kv());
        self.inner.driver.spawn_read(Box::new(move || work(kv.view())))
    }

    /// The shape of a region that lives here.
    pub(crate) fn shape(&self, region: RegionId) -> Option<Region> {
        let share = self.inner.driver.registry().get(region)?;
        Some((*share.region()).clone())
    }

    /// Bytes that the store takes, and those that it could take if `free` are free.
    pub(crate) fn space(&self, free: Option<u64>) -> Space {
        let (log, kv) = (self.inner.driver.log().stats(), self.inner.driver.kv().stats());
        let used = log.disk_bytes + kv.table_bytes;
        Space { used, capacity: free.map_or(0, |free| used + free) }
    }

    /// Asks the leader of region 1.
    pub(crate) fn ask(&self, ask: Ask, patience: Duration, done: Done<Response>) {
        let now = self.inner.now();
        self.inner.start(Body::Directory(ask), now, now.after(patience), 0, done);
    }

    /// Asks one store and nobody else, once.
    pub(crate) fn ask_store(
        &self,
        to: StoreId,
        ask: Ask,
        patience: Duration,
        done: Done<Response>,
    ) {
        let now = self.inner.now();
        let route = Route { region: FIRST_REGION, version: 0 };
        let job = Job::new(Body::Directory(ask), route, now, now.after(patience), 0, done);
        self.inner.forward(to, job.pinned());
    }

    /// Changes the record.
    pub(crate) fn change_record(
        &self,
        change: StoreChange,
        patience: Duration,
        done: Done<Response>,
    ) {
        let now = self.inner.now();
        let body = Body::Admin { region: FIRST_REGION, admin: Admin::Stores(change) };
        self.inner.start(body, now, now.after(patience), 0, done);
    }

    /// Other stores.
    pub(crate) fn others(&self) -> Vec<StoreId> {
        self.inner.others()
    }

    /// What is to be done next, if this node reigns and anything has changed since a plan was made of `basis`.
    /// `limits` are given for the wanted number of replicas; `busy` regions are not calm.
    pub(crate) fn plan(
        &self,
        basis: &mut Basis,
        limits: impl FnOnce(usize) -> Limits,
        busy: impl Fn(RegionId) -> bool,
    ) -> Option<Plan> {
        let (session, changes) =
            self.inner.reign(|atlas| (atlas.session(), atlas.changes())).ok()?;
        let directory = self.inner.record().ok()?;
        // Nobody knows yet how many replicas there should be.
        let wanted = usize::try_from(directory.replicas).ok().filter(|wanted| *wanted > 0)?;
        let limits = limits(wanted);
        let now = Basis { session, version: directory.version, changes };
        if std::mem::replace(basis, now) == now {
            return None;
        }
        let inner = &self.inner;
        let planned = inner.reign(|atlas| {
            let site = |record: &StoreRecord| {
                let sender = atlas.sender(record.store).copied().unwrap_or_default();
                Site {
                    store: record.store,
                    state: record.state,
                    reachable: inner.is_reachable(record.store),
                    used_bytes: sender.used_bytes,
                    capacity_bytes: sender.capacity_bytes,
                }
            };
            let sites: Vec<Site> = directory.stores.values().map(site).collect();
            let calm = |region: &Region| atlas.calm(region).filter(|_| !busy(region.id));
            let place = |(region, leader)| Place { region, leader, calm: calm(region) };
            let places: Vec<Place<'_>> = atlas.regions().map(place).collect();
            placement::plan(&sites, &places, limits)
        });
        let plan = planned.ok()?;
        let few = plan.stuck.iter().take(crate::codec::report::REMARKS_MAX).cloned();
        *inner.bureau.remarks.lock() = few.collect();
        Some(plan)
    }

    /// Takes note of shapes that somebody has just learnt. Whether any was new.
    pub(crate) fn learn(&self, regions: &[Region]) -> bool {
        self.inner.learn_regions(regions);
        let learn =
            |atlas: &mut Atlas| regions.iter().filter(|region| atlas.learn(region)).count() > 0;
        self.inner.reign(learn).unwrap_or(false)
    }
}
