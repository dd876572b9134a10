//! Who works in a node beside its store: the operator with its merger, and the clerk, who keeps the directory
//! (`clerk`). Operator, merger, census, fates, the node's knowledge of the cluster and the list of whom to let in are
//! production's; they wait for answers only, so what they do is a future that is polled whenever an answer has come.
//!
//! The clerk is the simulator's own, for production's is bound to its thread; what it keeps, says and believes is not.
//!
//! Two nodes talk over a connection, which is made when they first do in their present lives, if each lets the other one in as
//! production's handshake does ([`Roster`]): by directory and opening. It stays while both live.

use super::cluster::{Cluster, Happening, Step};
use super::requests::Sent;
use crate::client::ask::Ask;
use crate::client::request::{Body, Response};
use crate::client::{Backend, Bureau, Client, Done, Office};
use crate::codec::directory::StoreRecord;
use crate::error::Result;
use crate::kv::StateStore;
use crate::node::census::{Census, Rules};
use crate::node::handover::Away;
use crate::node::members::{Members, Roster};
use crate::node::merger::{Ended, MERGES, Merger, merge};
use crate::node::operator::{Desk, LOOK, Operator, Wish, Wished, Wishes};
use crate::placement::Step as Planned;
use crate::router::RangeCache;
use crate::store::ReadLevel;
use crate::types::*;
use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::{Mutex, RwLock};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Where the file `members` lies.
const DATA_DIR: &str = "/";

/// A store leads too few regions for so long before it is given any: far shorter than in production, like a seed.
const FEW_FOR: Duration = Duration::from_secs(1);

/// Pauses that take no time, at one moment.
const PAUSES_AT_ONCE: u32 = 16;
/// Longer than a read of a node's own takes.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The node as its threads see it.
pub(super) struct Room {
    pub bureau: Bureau,
    pub away: Arc<Away>,
    /// By the node's clock.
    now: AtomicU64,
    out: Mutex<Vec<Sent>>,
    /// When there was a pause last, and how many there were at that moment.
    paused: Mutex<(Time, u32)>,
}

impl Room {
    /// Something to be asked.
    pub fn send(&self, sent: Sent) {
        self.out.lock().push(sent);
    }

    /// Takes what is to be asked.
    pub fn sent(&self) -> Vec<Sent> {
        std::mem::take(&mut *self.out.lock())
    }

    /// What the node's clock shows.
    pub fn tell_time(&self, now: Time) {
        self.now.store(now.0, Ordering::Relaxed);
    }
}

impl Backend for Room {
    fn call(&self, body: Body, timeout: Duration, done: Done<Response>) {
        self.send(Sent { to: None, body, timeout, done });
    }

    fn now(&self) -> Time {
        Time(self.now.load(Ordering::Relaxed))
    }

    /// Answers take their time, as a rule. Where they take none, for a node asks itself again and again, time would stand still.
    fn pause(&self, _: Duration, done: Done<()>) {
        let now = Backend::now(self);
        let count = {
            let paused = &mut *self.paused.lock();
            *paused = if paused.0 == now { (now, paused.1 + 1) } else { (now, 0) };
            paused.1
        };
        if count < PAUSES_AT_ONCE {
            return done.call(Ok(()));
        }
        let body = Body::Read { keys: Vec::new(), level: ReadLevel::Linearizable };
        let (timeout, done) = (PAUSE_MAX, Done::new(move |_| done.call(Ok(()))));
        self.send(Sent { to: None, body, timeout, done });
    }
}

impl Office for Arc<Room> {
    fn bureau(&self) -> &Bureau {
        &self.bureau
    }

    fn now(&self) -> Time {
        Time(self.now.load(Ordering::Relaxed))
    }

    fn stopped(&self) -> bool {
        false // it would not be asked
    }

    fn ask_store(&self, to: StoreId, ask: Ask, timeout: Duration, done: Done<Response>) {
        self.send(Sent { to: Some(to), body: Body::Directory(ask), timeout, done });
    }
}

/// What was done.
pub(super) enum Finished {
    /// The operator is free again; how long it looks away.
    Operator(Box<Operator<Arc<Room>>>, Option<Duration>),
    /// A merge has ended.
    Merger(Ended),
    /// Whoever administers the cluster has heard.
    Administered(Result<()>),
}

type Task = Pin<Box<dyn Future<Output = Finished>>>;

/// Everybody in one life of a node.
pub(super) struct Staff {
    pub life: u64,
    pub room: Arc<Room>,
    pub clerk: super::clerk::Clerk,
    pub roster: Roster,
    wishes: Wishes,
    wished: Wished,
    /// `None`: at work.
    operator: Option<Box<Operator<Arc<Room>>>>,
    /// Leaderships that it has moved, as far as they are counted.
    spread: u64,
    looks_at: Time,
    orders: Receiver<Planned>,
    ended: Sender<Ended>,
    merging: bool,
    tasks: Vec<Task>,
}

impl Staff {
    /// Whether nothing is being done.
    pub fn rests(&self) -> bool {
        self.wished.is_empty() && self.tasks.is_empty() && self.orders.is_empty()
    }

    /// What it has to do, in words.
    pub fn work(&self) -> String {
        let (tasks, busy) = (self.tasks.len(), self.operator.is_none());
        format!("{tasks} tasks, operator at work: {busy}, {:?}", self.wished)
    }

    /// What whoever administers the cluster asks through this node.
    pub fn client(&self) -> Client {
        Client::new(self.room.clone(), Duration::from_secs(2))
    }

    /// Something else to do.
    pub fn begin(&mut self, task: impl Future<Output = Finished> + 'static) {
        self.tasks.push(Box::pin(task));
    }
}

impl Cluster {
    /// Whether nodes have a staff.
    pub(super) fn has_staff(&self) -> bool {
        self.stores.is_some()
    }

    /// A node has started. An error is its disk's.
    pub(super) fn hire(&mut self, now: Time, id: StoreId) -> Result<()> {
        let Some(stores) = &self.stores else { return Ok(()) };
        let merge_bytes = stores.merge_bytes;
        let founder = stores.founders.contains(&id);
        let layout = if founder { self.options.layout.clone() } else { Vec::new() };
        let joins = stores.founders.clone();
        let Some(node) = self.nodes.get(&id) else { return Ok(()) };
        let (life, local) = (node.life, node.now(now));
        let Some(running) = &node.running else { return Ok(()) };
        let draw = super::rng::mix(id.0 << 32 | life).max(1);
        let members = Members::open(Arc::new(node.disk.clone()), Path::new(DATA_DIR), draw)?;
        let start = members.start;
        let incarnation = running.kv.ident()?.map_or(0, |ident| ident.incarnation);
        let mut routes = RangeCache::new();
        for region in
            layout.into_iter().chain(running.kv.region_states().into_iter().map(|s| s.region))
        {
            routes.update(region);
        }
        let kv: Arc<dyn StateStore> = Arc::new(running.kv.clone());
        let routes = Arc::new(RwLock::new(routes));
        let bureau = Bureau::new(id, running.registry.clone(), kv, routes, draw);
        let away: Arc<Away> = Arc::default();
        let absent = Arc::clone(&away);
        let others = joins.into_iter().filter(|other| *other != id);
        bureau.remember(
            members.directory.clone(),
            others,
            Box::new(move |store| !absent.has(store)),
            // The simulator's clusters are founded before they begin.
            Box::new(|_, _| {
                Err(crate::Error::Busy { what: "a store that has not met all founders" })
            }),
        );
        let roster = Roster::default();
        roster.learn(&members.directory);
        let (now, out) = (AtomicU64::new(local.0), Mutex::default());
        let room = Arc::new(Room { bureau, away, now, out, paused: Mutex::default() });
        let (wishes, wished) = Wishes::new();
        let (order, orders) = bounded(MERGES);
        let (ended, heard) = bounded(MERGES);
        let door = Arc::downgrade(&room);
        let desk = Desk {
            client: Client::new(room.clone(), Duration::ZERO),
            office: Box::new(move || door.upgrade()),
        };
        let operator = Operator::new(desk, Merger::new(order, heard), merge_bytes, FEW_FOR);
        let record = StoreRecord {
            store: id,
            incarnation,
            start,
            address: format!("store-{id}:1"),
            ..StoreRecord::default()
        };
        let replicas = if founder { 3 } else { 0 };
        let rules = Rules { small: merge_bytes, cold: 16, patience: Duration::from_millis(1500) };
        let census = (merge_bytes > 0).then(|| Census::new(rules));
        let clerk = super::clerk::Clerk::new(members, record, draw, replicas, census);
        let staff = Staff {
            life,
            room,
            clerk,
            roster,
            wishes,
            wished,
            operator: Some(Box::new(operator)),
            spread: 0,
            looks_at: local,
            orders,
            ended,
            merging: false,
            tasks: Vec::new(),
        };
        self.staff.insert(id, staff);
        let pause = self.pause("clerk.first", 50_000);
        self.world.after(pause, Happening::Clerk(id, life, true));
        Ok(())
    }

    /// A node is gone, with all that was being done there.
    pub(super) fn dismiss(&mut self, now: Time, id: StoreId) {
        let Some(staff) = self.staff.remove(&id) else { return };
        self.connections.retain(|(from, to), _| *from != id && *to != id);
        // Nobody waits for an answer any more when they are lost.
        drop(staff);
        self.lose_requests(now, id);
    }

    /// Whether `to` listens to `from`.
    pub(super) fn admits(&mut self, from: StoreId, to: StoreId) -> bool {
        if from == to || !self.has_staff() {
            return true;
        }
        let Some(there) = self.staff.get(&to) else { return true };
        let Some(here) = self.staff.get(&from) else {
            // What was sent before it fell: not over a connection with a directory that is lost.
            return !self.is_outcast(from) && !self.is_outcast(to);
        };
        let lives = (here.life, there.life);
        let connected = self.connections.get(&(from, to)) == Some(&lives);
        // Both sides of a handshake look who the other one is.
        let lets_in = |one: &Staff, other: &Staff| {
            let StoreRecord { store, incarnation, start, .. } = *other.clerk.record();
            one.roster.greet(store, incarnation, start).is_ok()
        };
        let welcome = || lets_in(there, here) && lets_in(here, there);
        if !connected && !welcome() {
            self.counts.kept_out += 1;
            return false;
        }
        there.room.away.heard(from);
        self.connections.insert((from, to), lives);
        true
    }

    /// Something for the operator of a node.
    pub(super) fn wish(&mut self, now: Time, id: StoreId, wish: Wish) -> Step {
        if let Some(staff) = self.staff.get(&id) {
            match wish {
                Wish::Split(wish) => staff.wishes.split(wish),
                Wish::Merge(wish) => staff.wishes.merge(wish),
            }
        }
        self.go_on(now, id)
    }

    /// Whoever waited for an answer goes on.
    pub(super) fn go_on(&mut self, now: Time, id: StoreId) -> Step {
        let Some(local) = self.nodes.get(&id).map(|node| node.now(now)) else { return Ok(()) };
        loop {
            let Some(staff) = self.staff.get_mut(&id) else { return Ok(()) };
            staff.room.tell_time(local);
            staff.take_up(local);
            let mut ended = Vec::new();
            staff.tasks.retain_mut(|task| {
                let mut context = Context::from_waker(Waker::noop());
                match task.as_mut().poll(&mut context) {
                    Poll::Pending => true,
                    Poll::Ready(done) => {
                        ended.push(done);
                        false
                    }
                }
            });
            let none = ended.is_empty();
            for done in ended {
                self.has_done(now, id, done)?;
            }
            if none {
                break;
            }
        }
        self.take_requests(now, id);
        match self.staff.get(&id).is_some_and(|staff| staff.clerk.has_mail()) {
            true => {
                self.wake_clerk(now, id);
                Ok(())
            }
            false => Ok(()),
        }
    }

    fn has_done(&mut self, now: Time, id: StoreId, done: Finished) -> Step {
        let Some(node) = self.nodes.get(&id) else { return Ok(()) };
        let local = node.now(now);
        let Some(staff) = self.staff.get_mut(&id) else { return Ok(()) };
        match done {
            Finished::Operator(operator, pause) => {
                self.counts.spread += operator.spread() - staff.spread;
                staff.spread = operator.spread();
                staff.operator = Some(operator);
                if let Some(pause) = pause {
                    staff.looks_at = local.after(pause);
                    let at = node.clock.world_time(staff.looks_at);
                    self.world.at(at, Happening::Clerk(id, staff.life, false));
                }
            }
            Finished::Merger(ended) => {
                staff.merging = false;
                match &ended.result {
                    Ok(_) => self.counts.automatic_merges += 1,
                    Err(error) => self
                        .trace
                        .line(now, format_args!("{} not merged by {id}: {error}", ended.source)),
                }
                let _ = staff.ended.try_send(ended);
            }
            Finished::Administered(result) => return self.was_administered(now, result),
        }
        Ok(())
    }
}

impl Staff {
    /// Operator and merger begin what is next, if they are free.
    fn take_up(&mut self, now: Time) {
        if !self.merging
            && let Ok(step) = self.orders.try_recv()
        {
            let client = self.client();
            self.merging = true;
            self.begin(async move {
                let result = merge(&client, &step).await;
                Finished::Merger(Ended { source: step.region, result })
            });
        }
        // Wishes that take their time must not keep placement waiting for good.
        let looks = now >= self.looks_at;
        if !looks && self.wished.is_empty() {
            return;
        }
        let Some(mut operator) = self.operator.take() else { return };
        let wish = if looks { None } else { self.wished.take() };
        self.begin(async move {
            let pause = match wish {
                Some(Wish::Split(wish)) => {
                    operator.split(wish).await;
                    None
                }
                Some(Wish::Merge(wish)) => {
                    operator.merge(wish).await;
                    None
                }
                None => operator.look().await.or(Some(LOOK)),
            };
            Finished::Operator(operator, pause)
        });
    }
}
