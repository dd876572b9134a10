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
use super::job::{Job, Patience};
use super::local::{Local, scramble};
use super::request::{Body, REGIONS_MAX, Response, Route};
use crate::codec::admin::Admin;
use crate::codec::directory::{Directory, StoreChange, StoreRecord, StoreState};
use crate::codec::report::{Announcement, Cluster, RegionInfo, Report, StoreLoad, Verdict};
use crate::error::{Error, Result};
use crate::kv::{StateStore, View};
use crate::placement::{self, Limits, Place, Plan, Site};
use crate::region::merge::was_merged;
use crate::router::reporter::{Mark, Space};
use crate::router::{Atlas, RangeCache};
use crate::store::{PeerShare, Registry};
use crate::types::{Epoch, FIRST_REGION, Region, RegionId, StoreId, Time};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Says whether a store can be got at.
pub(crate) type Reachable = Box<dyn Fn(StoreId) -> bool + Send + Sync>;

/// Answers a store that wants to found the cluster with this one, and that directory of its: by this one's.
pub(crate) type Founds = Box<dyn Fn(StoreId, u64) -> Result<u64> + Send + Sync>;

/// What a node knows of the cluster. It has no thread, and no way to anybody else: the node's own threads ask it, and
/// whoever brings what others ask. (So the simulator's nodes have the same.)
pub(crate) struct Bureau {
    pub(super) store: StoreId,
    pub(super) registry: Registry,
    kv: Arc<dyn StateStore>,
    pub(super) routes: Arc<RwLock<RangeCache>>,
    /// Sessions come from here.
    sessions: AtomicU64,
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

/// What a node's operator needs of the node around it. The simulator's nodes have another one.
pub(crate) trait Office {
    /// What the node knows of the cluster.
    fn bureau(&self) -> &Bureau;

    /// By the node's clock.
    fn now(&self) -> Time;

    /// Whether the node's threads have stopped.
    fn stopped(&self) -> bool;

    /// Asks one store and nobody else, once.
    fn ask_store(&self, to: StoreId, ask: Ask, patience: Duration, done: Done<Response>);
}

impl Bureau {
    /// One that has heard nothing yet. Sessions are drawn from `seed`.
    pub fn new(
        store: StoreId,
        registry: Registry,
        kv: Arc<dyn StateStore>,
        routes: Arc<RwLock<RangeCache>>,
        seed: u64,
    ) -> Bureau {
        Bureau {
            store,
            registry,
            kv,
            routes,
            sessions: AtomicU64::new(seed),
            atlas: Mutex::default(),
            known: RwLock::default(),
            named: RwLock::default(),
            reachable: OnceLock::new(),
            founds: OnceLock::new(),
            remarks: Mutex::default(),
            news: Mutex::default(),
            wake: Condvar::new(),
        }
    }

    /// Something has happened that the node's clerk waits for.
    pub fn ring(&self) {
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

impl Bureau {
    /// Whether this node leads region 1, as far as its replica knows.
    pub fn reigns(&self) -> bool {
        let share = self.registry.get(FIRST_REGION);
        share.is_some_and(|share| share.leader() == Some(self.store))
    }

    /// Who does, as far as anybody has said; not this node.
    pub fn sovereign(&self) -> Option<StoreId> {
        let share = self.registry.get(FIRST_REGION).and_then(|share| share.leader());
        let said = || Some(self.known.read().leader).filter(|store| store.0 != 0);
        share.or_else(said).filter(|store| *store != self.store)
    }

    /// A number that no other reign draws.
    fn session(&self) -> u64 {
        let count = self.sessions.fetch_add(1, Ordering::Relaxed);
        scramble(count, self.store).max(1)
    }

    /// With the atlas of this reign; an error if another one reigns.
    fn reign<R>(&self, work: impl FnOnce(&mut Atlas) -> R) -> Result<R> {
        let mut atlas = self.atlas.lock();
        if !self.reigns() {
            *atlas = None;
            return Err(Error::NotLeader { region: FIRST_REGION, leader: self.sovereign() });
        }
        Ok(work(atlas.get_or_insert_with(|| Atlas::new(self.session()))))
    }

    /// The record, as this node's replica of region 1 has it.
    fn record(&self) -> Result<Directory> {
        let state = self.kv.view()?.region(FIRST_REGION);
        let state = state.ok_or(Error::RegionNotFound(FIRST_REGION))?;
        Directory::decode(&state.directory)
    }

    /// Stores other than this one: those on record, those configured, those that regions live on.
    pub fn others(&self) -> Vec<StoreId> {
        let mut stores: BTreeSet<StoreId> = self.named.read().clone();
        let known = self.known.read();
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
                let record = self.kv.view()?.record(region);
                Answer::WasMerged(record.is_some_and(|record| was_merged(&record)))
            }
            Ask::Found { store, incarnation } => self.founds(store, incarnation)?,
        }))
    }

    fn founds(&self, store: StoreId, incarnation: u64) -> Result<Answer> {
        let nobody = || Error::InvalidArgument("this node founds nothing".into());
        let founds = self.founds.get().ok_or_else(nobody)?;
        let incarnation = founds(store, incarnation)?;
        // Who asks is there, and can be asked in turn.
        self.ring();
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
        let mut known = self.known.write();
        if announcement.directory.version < known.directory.version || *known == announcement {
            return;
        }
        *known = announcement;
        drop(known);
        self.ring();
    }

    fn members(&self) -> Announcement {
        let mut members = self.known.read().clone();
        // Without a session: who asks is not to report on hearsay.
        members.session = 0;
        members.leader = self.sovereign().unwrap_or_default();
        if self.reigns() {
            members.leader = self.store;
        }
        members
    }

    fn is_reachable(&self, store: StoreId) -> bool {
        store == self.store || self.reachable.get().is_none_or(|reachable| reachable(store))
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
        let remarks = self.remarks.lock().clone();
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
impl Bureau {
    /// Sets what is known before anybody has said anything: what the node remembers of its last run, and whom
    /// its configuration names.
    pub(crate) fn remember(
        &self,
        directory: Directory,
        named: impl IntoIterator<Item = StoreId>,
        reachable: Reachable,
        founds: Founds,
    ) {
        self.known.write().directory = directory;
        self.named.write().extend(named);
        let _ = self.reachable.set(reachable);
        let _ = self.founds.set(founds);
    }

    /// What was announced last.
    pub(crate) fn announcement(&self) -> Announcement {
        self.known.read().clone()
    }

    /// What is on record of this store, as far as was announced.
    pub(crate) fn own_record(&self) -> Option<StoreRecord> {
        self.known.read().directory.stores.get(&self.store).cloned()
    }

    /// See [`announced`](Self::announced): for what another node has said it was told.
    pub(crate) fn take_members(&self, members: Announcement) {
        let known = self.announcement();
        if members.directory.version > known.directory.version {
            let session = known.session;
            self.announced(Announcement { session, ..members });
        } else if known.leader.0 == 0 {
            self.known.write().leader = members.leader;
        }
    }

    /// Waits until there is news, or for so long.
    pub(crate) fn wait_for_news(&self, patience: Duration) {
        let mut news = self.news.lock();
        if !*news {
            self.wake.wait_for(&mut news, patience);
        }
        *news = false;
    }

    /// The announcement of this node's reign, if it reigns; takes notice of it itself.
    pub(crate) fn proclaim(&self) -> Option<Announcement> {
        let session = self.reign(|atlas| atlas.session()).ok()?;
        let directory = self.record().ok()?;
        let announcement = Announcement { session, leader: self.store, directory };
        self.announced(announcement.clone());
        Some(announcement)
    }

    /// The regions led here; `calm` says which of them are, in that shape.
    pub(crate) fn led(
        &self,
        calm: impl Fn(RegionId, Epoch) -> Option<u64>,
    ) -> Vec<(RegionId, Mark)> {
        let led = self.registry.led_by(self.store);
        let mark = |region, share: &PeerShare| {
            let epoch = share.epoch();
            let calm = calm(region, epoch);
            Mark { epoch, term: share.term(), bytes: share.bytes(), calm }
        };
        led.into_iter().map(|(region, share)| (region, mark(region, &share))).collect()
    }

    /// The replicas that lead here.
    pub(crate) fn leaders(&self) -> Vec<(RegionId, Arc<PeerShare>)> {
        self.registry.led_by(self.store)
    }

    /// The shape of a region that lives here.
    pub(crate) fn shape(&self, region: RegionId) -> Option<Region> {
        let share = self.registry.get(region)?;
        Some((*share.region()).clone())
    }

    /// What is to be done next, if this node reigns and anything has changed since a plan was made of `basis`.
    /// `limits` are given for the wanted number of replicas; `busy` regions are not calm, and the leaders of those that are `kept`, or
    /// busy, stay where they are, if no replica has to go.
    pub(crate) fn plan(
        &self,
        basis: &mut Basis,
        limits: impl FnOnce(usize) -> Limits,
        busy: impl Fn(RegionId) -> bool,
        mut kept: impl FnMut(RegionId, Option<StoreId>) -> bool,
    ) -> Option<Plan> {
        let (session, changes) = self.reign(|atlas| (atlas.session(), atlas.changes())).ok()?;
        let directory = self.record().ok()?;
        // Nobody knows yet how many replicas there should be.
        let wanted = usize::try_from(directory.replicas).ok().filter(|wanted| *wanted > 0)?;
        let limits = limits(wanted);
        let now = Basis { session, version: directory.version, changes };
        if std::mem::replace(basis, now) == now {
            return None;
        }
        let planned = self.reign(|atlas| {
            let site = |record: &StoreRecord| {
                let sender = atlas.sender(record.store).copied().unwrap_or_default();
                Site {
                    store: record.store,
                    state: record.state,
                    reachable: self.is_reachable(record.store),
                    used_bytes: sender.used_bytes,
                    capacity_bytes: sender.capacity_bytes,
                }
            };
            let sites: Vec<Site> = directory.stores.values().map(site).collect();
            let calm = |region: &Region| atlas.calm(region).filter(|_| !busy(region.id));
            let places: Vec<Place<'_>> = atlas
                .regions()
                .map(|(region, leader)| {
                    let kept = kept(region.id, leader) || busy(region.id);
                    let calm = calm(region);
                    Place { region, leader, calm, kept }
                })
                .collect();
            // Who has not been heard yet leads more than is known.
            let up = sites.iter().filter(|site| site.state == StoreState::Up);
            let heard =
                atlas.is_whole() && up.clone().all(|site| atlas.sender(site.store).is_some());
            let transfers = if heard { limits.transfers } else { 0 };
            placement::plan(&sites, &places, Limits { transfers, ..limits })
        });
        let plan = planned.ok()?;
        let few = plan.stuck.iter().take(crate::codec::report::REMARKS_MAX).cloned();
        *self.remarks.lock() = few.collect();
        Some(plan)
    }

    /// Takes note of shapes that somebody has just learnt. Whether any was new.
    pub(crate) fn learn(&self, regions: &[Region]) -> bool {
        self.learn_regions(regions);
        let learn =
            |atlas: &mut Atlas| regions.iter().filter(|region| atlas.learn(region)).count() > 0;
        self.reign(learn).unwrap_or(false)
    }
}

impl Local {
    /// What the node knows of the cluster.
    pub(crate) fn bureau(&self) -> &Bureau {
        &self.inner.bureau
    }

    /// A way to get at it that does not keep it alive.
    pub(crate) fn weakly(&self) -> impl Fn() -> Option<Local> + Send + use<> {
        let weak = Arc::downgrade(&self.inner);
        move || weak.upgrade().map(|inner| Local { inner })
    }

    /// Does something with a view of the state store, on a thread for reads.
    pub(crate) fn look_into(
        &self,
        work: impl FnOnce(Result<Box<dyn View>>) + Send + 'static,
    ) -> Result<()> {
        let kv = Arc::clone(self.inner.driver.kv());
        self.inner.driver.spawn_read(Box::new(move || work(kv.view())))
    }

    /// Bytes that the store takes, and those that it could take if `free` are free.
    pub(crate) fn space(&self, free: Option<u64>) -> Space {
        let (log, kv) = (self.inner.driver.log().stats(), self.inner.driver.kv().stats());
        let used = log.disk_bytes + kv.table_bytes;
        Space { used, capacity: free.map_or(0, |free| used + free) }
    }

    /// Asks the leader of region 1.
    pub(crate) fn ask(&self, ask: Ask, patience: Duration, done: Done<Response>) {
        let patience = Patience::of(self.inner.now(), patience);
        self.inner.start(Body::Directory(ask), patience, 0, done);
    }

    /// Changes the record.
    pub(crate) fn change_record(
        &self,
        change: StoreChange,
        patience: Duration,
        done: Done<Response>,
    ) {
        let patience = Patience::of(self.inner.now(), patience);
        let body = Body::Admin { region: FIRST_REGION, admin: Admin::Stores(change) };
        self.inner.start(body, patience, 0, done);
    }
}

impl Office for Local {
    fn bureau(&self) -> &Bureau {
        Local::bureau(self)
    }

    fn now(&self) -> Time {
        self.inner.now()
    }

    fn stopped(&self) -> bool {
        self.inner.driver.stop_reason().is_some()
    }

    fn ask_store(&self, to: StoreId, ask: Ask, patience: Duration, done: Done<Response>) {
        let route = Route { region: FIRST_REGION, version: 0 };
        let patience = Patience::of(self.inner.now(), patience);
        let job = Job::new(Body::Directory(ask), route, patience, 0, done);
        self.inner.forward(to, job.pinned());
    }
}
