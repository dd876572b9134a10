//! A whole cluster on one thread: nodes, network, clients and the checkers that look on.
//!
//! Production's shell has threads, sockets and callers; here each of its activities is an event in one
//! queue: a loop drains, the log writer writes, what is durable is reported, the applier applies, a flush
//! starts and ends, a message arrives. The seed decides how they interleave. After each of them the checkers
//! look at what changed.

use super::afterlife::Afterlife;
use super::checker::{LogMatching, OneLeaderPerTerm, StateEquality, Violation};
use super::client::{Client, Keys};
use super::counts::Counts;
use super::couriers::Courier;
use super::full::Room;
use super::leases::Leases;
use super::linear::History;
use super::net::Net;
use super::node::{NodeOptions, Planted, SimNode};
use super::recount::{Recount, Turn};
use super::regions::{Operator, Workload};
use super::requests::{Request, Served, Trip};
use super::rng::Rng;
use super::siege::Siege;
use super::slumber::{Lulls, Probes};
use super::staff::Staff;
use super::stage::Hand;
use super::stores::Stores;
use super::trace::Trace;
use super::unborn::Unborn;
use super::world::World;
use crate::codec::beat::Beat;
use crate::error::Error;
use crate::kv::{Cut, StateStore};
use crate::raft::Envelope;
use crate::router::RangeCache;
use crate::store::*;
use crate::types::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// What can happen next. Completions carry the life of the node that asked for them.
pub enum Happening {
    /// A node's clock ticks.
    Tick(StoreId, u64),
    /// A loop ends its round.
    Drain(StoreId, u64, usize),
    /// The log writer runs.
    Write(StoreId, u64),
    /// What was written is known to be durable.
    Durable(StoreId, u64, Vec<(usize, AfterPersist)>),
    /// The applier runs.
    Apply(StoreId, u64),
    /// Events reach a loop.
    Post(StoreId, u64, usize, Event),
    /// A cut is taken.
    Freeze(StoreId, u64),
    /// The cut is written.
    Flush(StoreId, u64),
    /// A beat of another node arrives.
    Beat(StoreId, StoreId, Beat),
    /// A message arrives.
    Arrive(StoreId, Envelope),
    /// A snapshot gets a step further.
    Courier(Courier),
    /// A client asks, or asks again.
    Ask(usize, u64),
    /// The fault injector's turn.
    Trouble,
    /// The next stage of the siege.
    Siege,
    /// The next turn of a recount.
    Recount(Turn),
    /// The operator's turn.
    Reshape,
    /// A node comes back.
    Restart(StoreId),
    /// A full disk has room again.
    Room(StoreId),
    /// A node's clerk looks around, regularly or because there is news.
    Clerk(StoreId, u64, bool),
    /// A request of a node's threads gets a step further.
    Trip(Trip),
    /// Whoever administers the stores has another look.
    Administer,
    /// A region is frozen where a log is to be damaged.
    Damage,
}

/// Who waits under a token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    pub client: usize,
    pub attempt: u64,
    pub node: StoreId,
}

/// The cluster.
pub struct Cluster {
    pub(super) world: World<Happening>,
    pub(super) rng: Rng,
    pub(super) net: Net,
    pub(super) nodes: BTreeMap<StoreId, SimNode>,
    pub(super) options: NodeOptions,
    pub(super) trace: Trace,
    pub(super) counts: Counts,
    pub(super) history: History,
    /// Clients ask nothing new.
    pub(super) closing: bool,
    /// Faults are over.
    pub(super) calm: bool,
    /// While a leader is besieged.
    pub(super) siege: Option<Siege>,
    /// While a leader is deposed, and its successor's voter restarts.
    pub(super) recount: Option<Recount>,
    pub(super) unborn: Unborn,
    pub(super) clients: Vec<Client>,
    pub(super) keys: Keys,
    /// What the clients know of the regions.
    pub(super) routes: RangeCache,
    pub(super) operator: Operator,
    pub(super) workload: Workload,
    pub(super) callers: BTreeMap<Token, Caller>,
    pub(super) next_token: u64,
    /// In the workload in which stores come and go.
    pub(super) stores: Option<Stores>,
    pub(super) staff: BTreeMap<StoreId, Staff>,
    /// In which of their lives one store has let another in: (from, to).
    pub(super) connections: BTreeMap<(StoreId, StoreId), (u64, u64)>,
    pub(super) requests: BTreeMap<u64, Request>,
    pub(super) next_request: u64,
    pub(super) serving: BTreeMap<Token, Served>,
    pub(super) matching: LogMatching,
    pub(super) leaders: OneLeaderPerTerm,
    pub(super) led: BTreeMap<RegionId, u64>,
    pub(super) states: StateEquality,
    pub(super) leases: Leases,
    pub(super) afterlife: Afterlife,
    /// Who was ever fenced off, on damaged stores.
    pub(super) fenced: BTreeSet<(StoreId, RegionId, PeerId)>,
    /// When all replicas are compared next.
    pub(super) looks_at: Time,
    /// In seeds in which groups sleep.
    pub(super) lulls: Option<Lulls>,
    pub(super) probes: Probes,
    /// On a stage.
    pub(super) hand: Option<Hand>,
}

pub(super) type Step = Result<(), Violation>;

/// So many events at one instant are two parties that never have enough of each other.
const AT_ONCE_MAX: u64 = 100_000;

pub(super) fn violation(what: &'static str, detail: impl Into<String>) -> Violation {
    Violation { what, detail: detail.into() }
}

impl Cluster {
    /// Nodes with empty disks, and clients, in a network.
    pub fn new(
        seed: u64,
        net: Net,
        nodes: Vec<SimNode>,
        options: NodeOptions,
        clients: usize,
        keys: Keys,
    ) -> Cluster {
        let mut routes = RangeCache::new();
        for region in &options.layout {
            routes.update(region.clone());
        }
        let mut cluster = Cluster {
            world: World::new(),
            rng: Rng::new(seed),
            net,
            nodes: nodes.into_iter().map(|node| (node.id, node)).collect(),
            options,
            trace: Trace::new(200),
            counts: Counts::default(),
            history: History::new(),
            closing: false,
            calm: false,
            siege: None,
            recount: None,
            unborn: Unborn::default(),
            clients: Vec::new(),
            keys,
            routes,
            operator: Operator::new(),
            workload: Workload::Kv,
            callers: BTreeMap::new(),
            next_token: 0,
            stores: None,
            staff: BTreeMap::new(),
            connections: BTreeMap::new(),
            requests: BTreeMap::new(),
            next_request: 0,
            serving: BTreeMap::new(),
            matching: LogMatching::default(),
            leaders: OneLeaderPerTerm::default(),
            led: BTreeMap::new(),
            states: StateEquality::default(),
            leases: Leases::default(),
            afterlife: Afterlife::default(),
            fenced: BTreeSet::new(),
            looks_at: Time(0),
            lulls: None,
            probes: Probes::default(),
            hand: None,
        };
        let ids: Vec<StoreId> = cluster.nodes.keys().copied().collect();
        for id in 0..clients {
            let node = ids[id % ids.len()];
            cluster.clients.push(Client::new(id as u64 + 1, node));
            cluster.world.after(Duration::from_millis(id as u64), Happening::Ask(id, 0));
        }
        for node in ids {
            cluster.world.at(Time(0), Happening::Restart(node));
        }
        cluster
    }

    /// Handles one event. `false` when nothing is left to happen before `end`.
    pub fn step(&mut self, end: Time) -> Result<bool, Violation> {
        let Some((now, happening)) = self.world.step_until(end) else { return Ok(false) };
        self.counts.steps += 1;
        if self.world.at_once() > AT_ONCE_MAX {
            let requests = self.requests.len();
            return Err(violation(
                "time",
                format!("it stands still; {requests} requests under way"),
            ));
        }
        self.happen(now, happening)?;
        self.look_at_afterlife(now)?;
        self.look_now_and_then(now)?;
        Ok(true)
    }

    fn happen(&mut self, now: Time, happening: Happening) -> Step {
        match happening {
            Happening::Tick(node, life) => self.tick(now, node, life),
            Happening::Drain(node, life, at) => self.drain(now, node, life, at),
            Happening::Write(node, life) => self.write(now, node, life),
            Happening::Durable(node, life, done) => self.durable(now, node, life, done),
            Happening::Apply(node, life) => self.apply(now, node, life),
            Happening::Post(node, life, at, event) => self.post(now, node, life, at, event),
            Happening::Freeze(node, life) => self.freeze(now, node, life),
            Happening::Flush(node, life) => self.flush(now, node, life),
            Happening::Beat(node, from, beat) => self.beat_arrives(now, node, from, beat),
            Happening::Arrive(node, envelope) => self.arrive(now, node, envelope),
            Happening::Courier(courier) => self.courier(now, courier),
            Happening::Ask(client, attempt) => self.ask(now, client, attempt),
            Happening::Trouble => self.trouble(now),
            Happening::Siege => self.siege(now),
            Happening::Recount(turn) => self.recount(now, turn),
            Happening::Reshape => self.reshape(now),
            Happening::Restart(node) => self.restart(now, node),
            Happening::Room(node) => {
                self.empty_disk(now, node);
                Ok(())
            }
            Happening::Clerk(node, life, regular) => self.clerk(now, node, life, regular),
            Happening::Trip(trip) => self.trip(now, trip),
            Happening::Administer => self.administer_stores(now),
            Happening::Damage => self.lose(now, true),
        }
    }

    /// The node, if it still runs the life that the event belongs to.
    pub(super) fn alive(&mut self, node: StoreId, life: u64) -> Option<&mut SimNode> {
        self.nodes.get_mut(&node).filter(|n| n.life == life && n.running.is_some())
    }

    pub(super) fn pause(&mut self, site: &'static str, max_us: u64) -> Duration {
        Duration::from_micros(self.rng.range(site, 0..max_us + 1))
    }

    // ---- node activities -------------------------------------------------------------------------

    fn tick(&mut self, now: Time, id: StoreId, life: u64) -> Step {
        let tick = self.options.config.tick;
        let Some(node) = self.alive(id, life) else { return Ok(()) };
        let local = node.now(now);
        let next = node.clock.world_time(local.after(tick));
        let loops = node.running.as_ref().map_or(0, |r| r.stores.len());
        for at in 0..loops {
            self.post(now, id, life, at, Event::Tick)?;
        }
        self.world.at(next, Happening::Tick(id, life));
        Ok(())
    }

    /// Hands an event to a loop and makes sure that it drains soon.
    pub(super) fn post(
        &mut self,
        now: Time,
        id: StoreId,
        life: u64,
        at: usize,
        event: Event,
    ) -> Step {
        let pause = self.pause("drain.pause", 300);
        let planted = self.options.planted;
        if self.alive(id, life).is_some() {
            self.note_requests(id, life, at, &event);
        }
        let Some(node) = self.alive(id, life) else { return Ok(()) };
        let local = node.now(now);
        let Some(running) = node.running.as_mut() else { return Ok(()) };
        if let Some(planted) = planted {
            planted.act(&mut running.stores[at]);
        }
        running.stores[at].handle(local, event);
        if !std::mem::replace(&mut running.scheduled.drain[at], true) {
            self.world.after(pause, Happening::Drain(id, life, at));
        }
        Ok(())
    }

    /// Posts a completion after a pause, behind those posted before: production's queues keep their order.
    pub(super) fn post_later(
        &mut self,
        now: Time,
        id: StoreId,
        life: u64,
        at: usize,
        pause: Duration,
        event: Event,
    ) {
        let Some(running) = self.running(id) else { return };
        let when = now.after(pause).max(running.last_post[at]);
        running.last_post[at] = when;
        self.world.at(when, Happening::Post(id, life, at, event));
    }

    fn drain(&mut self, now: Time, id: StoreId, life: u64, at: usize) -> Step {
        let Some(node) = self.alive(id, life) else { return Ok(()) };
        let local = node.now(now);
        let Some(running) = node.running.as_mut() else { return Ok(()) };
        running.scheduled.drain[at] = false;
        let mut effects = Effects::default();
        running.stores[at].drain(local, &mut effects);
        if running.stores[at].has_work() {
            running.scheduled.drain[at] = true;
            self.world.after(Duration::from_micros(50), Happening::Drain(id, life, at));
        }
        self.look_at_leaders(now, id, at)?;
        self.look_at_the_newborn(now, id, life, at, &effects)?;
        self.perform(now, id, life, at, effects)
    }

    fn perform(&mut self, now: Time, id: StoreId, life: u64, at: usize, effects: Effects) -> Step {
        let Effects {
            mut send_now,
            after_persist,
            apply,
            replies,
            births,
            size_checks,
            split_wishes,
            merge_wishes,
            asides,
            snapshots,
            snapshot_words,
            discard,
            beats,
            fatal,
            proposed: _,
            flush_soon: _,
        } = effects;
        self.send(now, id, &mut send_now);
        self.send_beats(now, id, beats);
        for task in &apply {
            self.look_at_commits(task)?;
        }
        if self.options.planted == Some(Planted::AckBeforeSync) {
            self.durable(now, id, life, after_persist.into_iter().map(|a| (at, a)).collect())?;
        } else if let Some(running) = self.running(id) {
            running.after.extend(after_persist.into_iter().map(|after| (at, after)));
        }
        if let Some(running) = self.running(id) {
            running.tasks.extend(apply);
        }
        self.schedule_work(id, life);
        for birth in births {
            self.post_soon(now, id, life, birth.state.region.id, Event::Born(birth));
        }
        for check in size_checks {
            self.measure(id, life, check);
        }
        for wish in split_wishes {
            self.wish_to_split(now, id, wish)?;
        }
        self.say_aside(now, id, life, asides);
        self.wish_to_merge(now, id, merge_wishes)?;
        for snapshot in snapshots {
            self.send_snapshot(now, id, life, snapshot);
        }
        self.say(now, id, life, snapshot_words);
        self.discard(id, discard);
        self.answer(now, id, replies)?;
        match fatal {
            Some(error) => self.node_failed(now, id, "drain", error),
            None => Ok(()),
        }
    }

    pub(super) fn running(&mut self, id: StoreId) -> Option<&mut super::node::Running> {
        self.nodes.get_mut(&id)?.running.as_mut()
    }

    /// Wakes log writer and applier when they have work.
    pub(super) fn schedule_work(&mut self, id: StoreId, life: u64) {
        let (write_pause, apply_pause) =
            (self.pause("write.pause", 500), self.pause("apply.pause", 2000));
        let ambush = self.operator.apply_held(id, self.world.now());
        let apply_pause = apply_pause.max(ambush);
        let Some(running) = self.running(id) else { return };
        let write = running.log.stats().pending_bytes > 0 || !running.after.is_empty();
        let write = write && !std::mem::replace(&mut running.scheduled.write, write);
        let apply = !running.tasks.is_empty() && !running.scheduled.apply;
        running.scheduled.apply |= apply;
        if write {
            self.world.after(write_pause, Happening::Write(id, life));
        }
        if apply {
            self.world.after(apply_pause, Happening::Apply(id, life));
        }
    }

    fn write(&mut self, now: Time, id: StoreId, life: u64) -> Step {
        let Some(node) = self.alive(id, life) else { return Ok(()) };
        let disk = node.disk.clone();
        let Some(running) = node.running.as_mut() else { return Ok(()) };
        running.scheduled.write = false;
        match running.log.write_round() {
            Ok(_) => self.has_room(now, id, life, Room::Log)?,
            Err(Error::DiskFull { .. }) => {
                self.purge(now, id)?;
                self.lacks(now, id, life, Room::Log)?;
            }
            Err(error) => return self.node_failed(now, id, "log write", error),
        }
        let Some(running) = self.running(id) else { return Ok(()) };
        let durable = running.log.durable();
        let mut done = Vec::new();
        while running.after.front().is_some_and(|(_, after)| after.seq <= durable) {
            done.extend(running.after.pop_front());
        }
        let busy = disk.take_busy();
        self.world.after(busy, Happening::Durable(id, life, done));
        Ok(())
    }

    /// The log writer's own part: messages that promised durability leave, loops are told.
    fn durable(
        &mut self,
        now: Time,
        id: StoreId,
        life: u64,
        done: Vec<(usize, AfterPersist)>,
    ) -> Step {
        if self.alive(id, life).is_none() {
            return Ok(());
        }
        for (at, mut after) in done {
            self.send(now, id, &mut after.send);
            self.look_at_log(id, &after.acks)?;
            let slow = self.rng.chance("persisted.slow", 20);
            let pause = self.pause("persisted.pause", if slow { 50_000 } else { 200 });
            self.post_later(now, id, life, at, pause, Event::Persisted(after.acks));
        }
        Ok(())
    }

    fn apply(&mut self, now: Time, id: StoreId, life: u64) -> Step {
        let Some(_) = self.alive(id, life) else { return Ok(()) };
        let held = self.hand.as_ref().is_some_and(|hand| hand.holds(id));
        let Some(running) = self.running(id) else { return Ok(()) };
        running.scheduled.apply = false;
        if held {
            return Ok(());
        }
        let mut outcome = match running.apply() {
            Ok(outcome) => outcome,
            Err(error) => return self.node_failed(now, id, "apply", error),
        };
        self.left(now, id, life, outcome.left.take())?;
        self.look_at_states(id, &outcome.applied)?;
        self.look_at_shapes(id)?;
        self.discard(id, outcome.discard);
        self.answer(now, id, outcome.replies)?;
        for applied in outcome.applied {
            let pause = self.pause("applied.pause", 200);
            let Some(running) = self.running(id) else { return Ok(()) };
            let at = running.loop_of(applied.region);
            self.post_later(now, id, life, at, pause, Event::Applied(vec![applied]));
        }
        let Some(cut) = outcome.cut.map(Arc::new) else { return Ok(()) };
        self.has_room(now, id, life, Room::State)?;
        for at in 0..self.running(id).map_or(0, |r| r.stores.len()) {
            let pause = self.pause("applied.pause", 200);
            self.post_later(now, id, life, at, pause, Event::Flushed(cut.clone()));
        }
        Ok(())
    }

    fn freeze(&mut self, now: Time, id: StoreId, life: u64) -> Step {
        let next = self.pause("flush.interval", 800_000) + Duration::from_millis(100);
        let length = self.pause("flush.length", 100_000);
        let planted = self.options.planted;
        if self.alive(id, life).is_none() {
            return Ok(());
        }
        self.world.after(next, Happening::Freeze(id, life));
        let Some(running) = self.running(id) else { return Ok(()) };
        if running.flush.is_some() {
            return Ok(());
        }
        match running.kv.freeze() {
            Ok(flush) => running.flush = flush,
            Err(error) => return self.node_failed(now, id, "freeze", error),
        }
        if running.flush.is_none() {
            return Ok(());
        }
        let states = running.kv.region_states();
        self.world.after(length, Happening::Flush(id, life));
        if planted == Some(Planted::FlushReportedEarly) {
            let cut = states.iter().map(|s| (s.region.id, s.peer, s.applied)).collect();
            return self.flushed(now, id, life, cut);
        }
        Ok(())
    }

    fn flush(&mut self, now: Time, id: StoreId, life: u64) -> Step {
        let compact = self.rng.chance("flush.compact", 300);
        if self.alive(id, life).is_none() {
            return Ok(());
        }
        let Some(running) = self.running(id) else { return Ok(()) };
        let Some(flush) = running.flush.take() else { return Ok(()) };
        match flush.run() {
            Ok(cut) => {
                if compact && let Err(error) = running.kv.maintain() {
                    return self.node_failed(now, id, "compaction", error);
                }
                self.counts.flushes += 1;
                self.has_room(now, id, life, Room::State)?;
                self.trace.line(now, format_args!("{id} flushed"));
                self.flushed(now, id, life, cut)
            }
            // Kept and offered again by the next freeze.
            Err(Error::DiskFull { .. }) => self.lacks(now, id, life, Room::State),
            Err(Error::Io { .. }) => Ok(()),
            Err(error) => self.node_failed(now, id, "flush", error),
        }
    }

    fn flushed(&mut self, now: Time, id: StoreId, life: u64, cut: Cut) -> Step {
        let cut = Arc::new(cut);
        let loops = self.running(id).map_or(0, |r| r.stores.len());
        for at in 0..loops {
            self.post(now, id, life, at, Event::Flushed(cut.clone()))?;
        }
        self.purge(now, id)
    }

    fn purge(&mut self, now: Time, id: StoreId) -> Step {
        let Some(running) = self.running(id) else { return Ok(()) };
        match running.log.purge() {
            Ok(_) | Err(Error::DiskFull { .. }) => Ok(()),
            Err(error) => self.node_failed(now, id, "purge", error),
        }
    }
}
