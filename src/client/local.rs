//! [`Local`]: a node's own backend. Routes, executes what this node can, forwards the rest.

use super::ask::Answer;
use super::directory::Bureau;
use super::gate::{self, Entrant, Gate};
use super::job::{Job, Patience, Reach};
use super::parked::Parked;
use super::request::{self, Body, Request, Response, Route};
use super::{Backend, Client, Done};
use crate::driver::{Driver, Submission};
use crate::error::{Error, Result};
use crate::router::{RangeCache, Route as Placed, lone_route};
use crate::store::{AdminDone, Reply};
use crate::transport::{Origin, Transport};
use crate::types::slab::Slab;
use crate::types::{Region, RegionId, StoreId, Time};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// What is shared by a node's clients and by the answers on their way.
pub(super) struct Inner {
    pub store: StoreId,
    pub driver: Driver,
    pub transport: Arc<dyn Transport>,
    pub routes: Arc<RwLock<RangeCache>>,
    pub bureau: Bureau,
    pub parked: Parked,
    gate: Gate,
    outstanding: Mutex<Slab<Outstanding>>,
    jitter: AtomicU64,
}

/// A request that another node works on.
struct Outstanding {
    to: StoreId,
    job: Job,
}

/// The way from requests to replicas. Clones share it.
#[derive(Clone)]
pub struct Local {
    pub(super) inner: Arc<Inner>,
}

/// The `count`-th number of a store, as good as drawn.
pub(super) fn scramble(count: u64, store: StoreId) -> u64 {
    // splitmix64's constants (Steele, Lea, Flood 2014).
    let mut x = count.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ store.0;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 31)
}

/// Forwarded requests get this much more time than their deadline says, for the answer's way back.
const GRACE: Duration = Duration::from_millis(100);
const EXPIRE_EVERY: Duration = Duration::from_millis(50);
/// The same while there are none.
const EXPIRE_IDLE: Duration = Duration::from_millis(150);

impl Local {
    /// A backend over a running driver. `known`: regions, perhaps in shapes that they no longer have.
    pub fn new(
        store: StoreId,
        driver: Driver,
        transport: Arc<dyn Transport>,
        known: Vec<Region>,
        seed: u64,
    ) -> Local {
        let mut routes = RangeCache::new();
        for region in known {
            // What lives here is known already, and better: one copy is enough.
            let here = driver.registry().get(region.id).map(|share| share.region());
            routes.update(here.unwrap_or_else(|| Arc::new(region)));
        }
        let routes = Arc::new(RwLock::new(routes));
        let (registry, kv) = (driver.registry().clone(), Arc::clone(driver.kv()));
        let bureau = Bureau::new(store, registry, kv, Arc::clone(&routes), !seed);
        let inner = Arc::new(Inner {
            store,
            driver,
            transport,
            routes,
            bureau,
            parked: Parked::default(),
            gate: Gate::default(),
            outstanding: Mutex::default(),
            jitter: AtomicU64::new(seed),
        });
        expire_later(&inner, Arc::downgrade(&inner));
        Local { inner }
    }

    /// A client of this node. It does not keep the node alive.
    pub fn client(&self, timeout: Duration) -> Client {
        Client::new(Arc::new(Door(Arc::downgrade(&self.inner))), timeout)
    }

    /// Requests of other nodes and of remote clients.
    pub fn serve(&self, origin: Origin, requests: Vec<(u64, Bytes)>) {
        super::serve::serve(&self.inner, origin, requests);
    }

    /// The answer to a forwarded request.
    pub fn answered(&self, from: StoreId, id: u64, body: Bytes) {
        let found = self.inner.outstanding.lock().take(id);
        match found {
            Some(Outstanding { to, job }) if to == from => {
                self.inner.finish(job, to, Reach::Answered, request::decode_response(body));
            }
            // Late: its deadline has passed.
            _ => {}
        }
    }

    /// What was forwarded to `store` and not answered has an unknown outcome.
    pub fn connection_lost(&self, store: StoreId) {
        let mut lost = Vec::new();
        self.inner.outstanding.lock().take_where(Time(0), |one| one.to == store, &mut lost);
        for Outstanding { to, job } in lost {
            let error = Error::Ambiguous { what: "the connection broke before the answer" };
            self.inner.finish(job, to, Reach::Answered, Err(error));
        }
    }

    /// The regions known, for tools.
    pub fn regions(&self) -> Vec<Region> {
        self.inner.routes.read().routes().map(|route| route.region.as_ref().clone()).collect()
    }

    /// Sends everybody home whose request is with another node, or waits for another try.
    pub fn close(&self) {
        self.inner.parked.close();
        let mut all = Vec::new();
        self.inner.outstanding.lock().take_where(Time(u64::MAX), |_| true, &mut all);
        for Outstanding { job, .. } in all {
            job.done.call(Err(Error::Stopped { reason: "the node is closing".into() }));
        }
    }
}

fn expire_later(inner: &Inner, weak: Weak<Inner>) {
    let look = move || {
        let Some(inner) = weak.upgrade() else { return };
        let mut late = Vec::new();
        inner.outstanding.lock().take_where(inner.now(), |_| false, &mut late);
        for Outstanding { to, job } in late {
            let error = Error::Timeout { after_ms: 0, what: "another node's answer" };
            inner.finish(job, to, Reach::Answered, Err(error));
        }
        expire_later(&inner, weak);
    };
    let idle = inner.outstanding.lock().is_empty();
    inner.driver.timer().after(if idle { EXPIRE_IDLE } else { EXPIRE_EVERY }, Box::new(look));
}

impl Inner {
    pub fn now(&self) -> Time {
        self.driver.clock().now()
    }

    /// Numbers to spread retries by.
    pub fn jitter(&self) -> u64 {
        scramble(self.jitter.fetch_add(1, Ordering::Relaxed), self.store)
    }

    /// The route of a batch that belongs to one region, if that is led here, as the `last` one was. Anything else about it,
    /// what is wrong with it included, is for [`start`](Self::start) to find.
    fn led_here<'a>(
        &self,
        routes: &'a RangeCache,
        last: &mut Option<&'a Placed>,
        command: &[u8],
    ) -> Option<Route> {
        let found = lone_route(routes, *last, command).ok()??;
        let region = &found.region;
        if !last.is_some_and(|last| std::ptr::eq(last, found)) {
            let share = self.driver.registry().get(region.id)?;
            if share.leader() != Some(self.store) {
                return None;
            }
            *last = Some(found);
        }
        Some(Route { region: region.id, version: region.epoch.version })
    }

    /// Sends a job's request to another node.
    pub fn forward(self: &Arc<Self>, to: StoreId, job: Job) {
        let left = job.patience.deadline.since(self.now());
        let request =
            Request { timeout: left, route: Some(job.route), body: job.body.clone() }.encode();
        let deadline = job.patience.deadline.after(GRACE);
        let seat = self.outstanding.lock().insert(Outstanding { to, job }, deadline);
        let id = match seat {
            Ok(id) => id,
            Err(Outstanding { job, .. }) => {
                return job.done.call(Err(Error::Busy { what: "requests with other nodes" }));
            }
        };
        if let Err(error) = self.transport.request(to, id, request) {
            let back = self.outstanding.lock().take(id);
            if let Some(Outstanding { job, .. }) = back {
                self.finish(job, to, Reach::Refused, Err(error));
            }
        }
    }

    /// Executes a routed request on this node's replica.
    pub fn execute(
        self: &Arc<Self>,
        route: Route,
        body: Body,
        deadline: Time,
        done: Done<Response>,
    ) {
        match body {
            Body::Write { command } | Body::Execute { command, .. } => {
                let waiter = Box::new(move |reply| done.call(written(reply)));
                let Route { region, version } = route;
                let one = Submission { region, version, command, waiter };
                self.driver.propose(region, deadline, vec![one]);
            }
            Body::Read { level, .. } | Body::Scan { level, .. } => {
                self.read_when_granted(route, level, body, deadline, done);
            }
            Body::Transfer { region, to } => {
                let waiter = Box::new(move |reply| {
                    done.call(match reply {
                        Ok(Reply::Transfer(result)) => result.map(|()| Response::Done),
                        other => Err(unexpected(other)),
                    });
                });
                self.driver.transfer(region, to, deadline, waiter);
            }
            Body::Admin { region, admin } => {
                let waiter = Box::new(move |reply| done.call(administered(reply)));
                self.driver.admin(region, admin, deadline, waiter);
            }
            Body::Regions { start, count } => {
                done.call(Ok(Response::Regions(self.bureau.regions(&start, count))));
            }
            Body::Status { region } => self.status(region, deadline, done),
            Body::Directory(ask) => done.call(self.bureau.answer(ask)),
        }
    }
}

/// The error for a reply of another kind than was asked for.
pub(super) fn unexpected(reply: Result<Reply>) -> Error {
    match reply {
        Err(error) => error,
        Ok(_) => super::odd(),
    }
}

/// The answer to an administrative command.
pub(crate) fn administered(reply: Result<Reply>) -> Result<Response> {
    match reply {
        Ok(Reply::Admin(Ok(AdminDone::Shaped(regions)))) => Ok(Response::Regions(regions)),
        Ok(Reply::Admin(Ok(AdminDone::Ids { first }))) => Ok(Response::Ids(first)),
        Ok(Reply::Admin(Ok(AdminDone::Stores(record)))) => {
            Ok(Response::Directory(Answer::Record(record)))
        }
        Ok(Reply::Admin(Err(error)) | Reply::Written(Err(error))) => Err(error),
        other => Err(unexpected(other)),
    }
}

pub(super) fn written(reply: Result<Reply>) -> Result<Response> {
    match reply {
        Ok(Reply::Written(result)) => result.map(Response::Written),
        other => Err(unexpected(other)),
    }
}

/// What clients hold: a node that has been closed lets go of its directory, whoever still has a client.
struct Door(Weak<Inner>);

fn gone() -> Error {
    Error::Stopped { reason: "the node is closed".into() }
}

impl Backend for Door {
    fn call(&self, body: Body, timeout: Duration, done: Done<Response>) {
        let Some(inner) = self.0.upgrade() else { return done.call(Err(gone())) };
        inner.start(body, Patience::of(inner.now(), timeout), 0, done);
    }

    fn now(&self) -> Time {
        self.0.upgrade().map_or(Time(u64::MAX), |inner| inner.now())
    }

    fn pause(&self, pause: Duration, done: Done<()>) {
        match self.0.upgrade() {
            Some(inner) => {
                inner.driver.timer().after(pause, Box::new(move || done.call(Ok(()))));
            }
            None => done.call(Err(gone())),
        }
    }

    fn write_soon(&self, command: Bytes, timeout: Duration, done: Done<Response>) {
        let Some(inner) = &self.0.upgrade() else { return done.call(Err(gone())) };
        inner.enter(inner.gate.leave(Entrant { command, timeout, done }));
    }

    fn let_in(&self) {
        if let Some(inner) = &self.0.upgrade() {
            inner.enter(inner.gate.open());
        }
    }

    fn write_many(&self, batches: Vec<(Bytes, Done<Response>)>, timeout: Duration) {
        match self.0.upgrade() {
            Some(inner) => {
                inner.write_many(batches, Patience::of(inner.now(), timeout));
            }
            None => batches.into_iter().for_each(|(_, done)| done.call(Err(gone()))),
        }
    }

    fn read_now(&self, body: &Body) -> Option<Result<Response>> {
        self.0.upgrade()?.read_now(body)
    }
}

impl Inner {
    /// Those who waited at the gate, or came together.
    pub fn enter(self: &Arc<Self>, entrants: Vec<Entrant>) {
        gate::by_patience(entrants, |batches, timeout| {
            self.write_many(batches, Patience::of(self.now(), timeout))
        });
    }

    /// Those of a remote client.
    pub fn enter_from_afar(self: &Arc<Self>, entrants: Vec<Entrant>) {
        gate::by_patience(entrants, |batches, timeout| {
            self.write_many(batches, Patience::of_remote(self.now(), timeout))
        });
    }

    fn write_many(self: &Arc<Self>, batches: Vec<(Bytes, Done<Response>)>, patience: Patience) {
        let mut here: BTreeMap<usize, (RegionId, Vec<Submission>)> = BTreeMap::new();
        let mut elsewhere = Vec::new();
        {
            let mut last = None;
            let routes = self.routes.read();
            // Counted by itself: the node's own count is everybody's, and would be a line that all threads fight for.
            let back = Arc::new(Arc::clone(self));
            for (command, done) in batches {
                let Some(route) = self.led_here(&routes, &mut last, &command) else {
                    elsewhere.push((command, done));
                    continue;
                };
                let Route { region, version } = route;
                let (back, again) = (Arc::clone(&back), command.clone());
                let waiter = Box::new(move |reply| match written(reply) {
                    Ok(response) => done.call(Ok(response)),
                    Err(error) => {
                        let job =
                            Job::new(Body::Write { command: again }, route, patience, 0, done);
                        back.finish(job, back.store, Reach::Answered, Err(error));
                    }
                });
                let one = Submission { region, version, command, waiter };
                let at = self.driver.loop_of(region);
                here.entry(at).or_insert_with(|| (region, Vec::new())).1.push(one);
            }
        }
        for (region, submissions) in here.into_values() {
            self.driver.propose(region, patience.deadline, submissions);
        }
        for (command, done) in elsewhere {
            self.start(Body::Write { command }, patience, 0, done);
        }
    }
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Local").field("store", &self.inner.store).finish_non_exhaustive()
    }
}
