//! The engine room: the threads of a node around the deterministic [`Store`]s.
//!
//! | thread | how many | does |
//! |---|---|---|
//! | store loop (`round`) | `loops` | swaps its inbox out, handles everything, ticks, drains once, hands the effects on |
//! | log writer (`writer`) | 1 | writes and syncs all that waits, then releases what waited for it |
//! | apply (`apply`) | `apply_workers` | applies committed entries, answers callers |
//! | reads ([`readers`]) | `read_workers` | reads that waited for a grant, and forwarded ones |
//! | flusher, compactor, keeper (`upkeep`) | 3 | flush the state store; compact it; purge the log and make its spare files |
//! | timer ([`timer`]) | 1 | deadlines and retries of callers |
//!
//! Their number does not depend on the number of regions. A write crosses: caller -> inbox -> loop ->
//! log writer (and transport) -> loop (`Persisted`, acknowledgements) -> apply -> caller. Everything is
//! handed over in batches, and a thread is woken only when it sleeps. On a quiet node being woken is most of what a write
//! costs, so two hand-overs are left out when there is little to do: a loop applies a little itself while the apply worker
//! sleeps (`apply::queue`), and writes the log itself where the disk is memory (`writer::write_at_once`).
//!
//! **Bounds.** Inboxes bound what clients propose and what peers send; a full one answers `Busy` or
//! drops (raft sends again). Apply queues and the state store's memtables do not refuse work that is
//! committed; instead new proposals wait at a gate as the state store falls behind (`admission`). Nor may
//! the log refuse what raft has decided to write: while its queue is crowded, proposals are refused and entries
//! from peers dropped. Completions are bounded by the work that they complete.
//!
//! **Stopping.** A failed sync or an apply error stops the node at once: [`Driver::stop`] keeps the first
//! reason, closes every queue, sends every waiting caller home with it. Nothing is flushed then; the log
//! has all that was acknowledged.
//!
//! **Stages.** How long writes take from border to border is [measured](Stage), always: [`Driver::stages`].
//!
//! What limits a node of 2, 16 and 64 cores has [a page](scaling_page).
//!
//! Not done: moving regions between loops by load (a region's loop is its id modulo the loops).

mod admission;
mod apply;
mod clock;
mod figures;
mod histogram;
mod inbox;
mod outward;
mod propose;
pub mod readers;
mod round;
#[doc = include_str!("scaling.md")]
pub mod scaling_page {}
mod stages;
pub mod timer;
mod upkeep;
pub mod waiting;
mod writer;

pub use clock::Clock;
pub use figures::DriverStats;
pub use histogram::Histogram;
pub use outward::{Outward, SnapshotStats};
pub use stages::{Stage, StageStats};
pub use timer::Timer;
pub use upkeep::FlushNow;
pub use waiting::Waiter;

use crate::codec::admin::Admin;
use crate::codec::beat::Beat;
use crate::env::Disk;
use crate::error::{Error, Result};
use crate::kv::StateStore;
use crate::log::Log;
use crate::raft::Envelope;
use crate::region::apply::Applier;
use crate::store::{Birth, Event, ReadLevel, ReadRequest, Registry, Store, Token};
use crate::types::{RegionId, StoreId, Time};
use admission::Admission;
use apply::ApplyQueue;
use bytes::Bytes;
use figures::Counters;
use inbox::Inbox;
use parking_lot::Mutex;
use readers::Readers;
use stages::Stages;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use waiting::Desks;
use writer::WriterQueue;

/// Limits and times of the driver; see `NodeConfig` for their meaning.
#[derive(Clone, Debug)]
pub struct DriverConfig {
    /// One tick of the logical clock.
    pub tick: Duration,
    /// Threads for reads.
    pub read_workers: usize,
    /// Client bytes in one inbox.
    pub inbox_bytes: usize,
    /// Raft message bytes in one inbox.
    pub inbox_message_bytes: usize,
    /// Committed bytes waiting to be applied above which proposals are refused.
    pub apply_queue_bytes: usize,
    /// Bytes that memtables may take: from a quarter of them still to be flushed on proposals are slowed down, above all
    /// of them none enters.
    pub memtable_bytes_max: u64,
    /// Log bytes on disk above which the state store is flushed.
    pub log_budget_bytes: u64,
    /// Time between flushes while something changes, at most.
    pub flush_interval: Duration,
}

/// What a driver is made of.
pub struct Parts {
    /// Limits and times.
    pub config: DriverConfig,
    /// One store for each loop, shard `i` of `stores.len()` at place `i`.
    pub stores: Vec<Store>,
    /// One applier for each apply worker.
    pub appliers: Vec<Applier>,
    /// The log.
    pub log: Log,
    /// The state store.
    pub kv: Arc<dyn StateStore>,
    /// What the stores publish.
    pub registry: Registry,
    /// Where received snapshots lie.
    pub disk: Arc<dyn Disk>,
    /// The way out.
    pub outward: Arc<dyn Outward>,
    /// The clock that the stores were opened by.
    pub clock: Clock,
}

/// A client batch and who waits for it.
pub struct Submission {
    /// The region its keys were routed to.
    pub region: RegionId,
    /// The epoch version it was routed for.
    pub version: u64,
    /// The state machine's command.
    pub command: Bytes,
    /// Who waits.
    pub waiter: Waiter,
}

/// Everything that the threads share.
struct Shared {
    config: DriverConfig,
    inboxes: Vec<Arc<Inbox>>,
    desks: Desks,
    writer: WriterQueue,
    apply: Vec<ApplyQueue>,
    apply_bytes: AtomicUsize,
    /// Whether nobody waits for the disk: the loops write the log themselves.
    instant: bool,
    readers: Readers,
    upkeep: upkeep::Upkeep,
    aside: propose::Aside,
    /// How much may be proposed while the state store owes much.
    admission: Admission,
    /// Raised by a loop that left work undone because the log had no room.
    held: AtomicBool,
    log: Log,
    kv: Arc<dyn StateStore>,
    registry: Registry,
    disk: Arc<dyn Disk>,
    outward: Arc<dyn Outward>,
    clock: Clock,
    timer: Timer,
    stopped: AtomicBool,
    reason: Mutex<Option<Error>>,
    counters: Counters,
    stages: Stages,
}

/// A handle to a node's threads; clones share them.
#[derive(Clone)]
pub struct Driver {
    shared: Arc<Shared>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Shared {
    fn loop_of(&self, region: RegionId) -> usize {
        (region.0 % self.inboxes.len() as u64) as usize
    }

    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    fn post_all(&self, event: impl Fn() -> Event) {
        for inbox in &self.inboxes {
            inbox.post(event());
        }
    }

    /// Keeps the first reason; closes everything.
    fn stop(&self, why: Error) {
        let error = {
            let mut reason = self.reason.lock();
            reason.get_or_insert(why).clone()
        };
        if self.stopped.swap(true, Ordering::AcqRel) {
            return;
        }
        for inbox in &self.inboxes {
            inbox.close();
        }
        for queue in &self.apply {
            queue.close();
        }
        self.upkeep.close();
        self.kv.set_halted(true);
        drop(self.admission.clear());
        self.log.wake_writer();
        self.readers.stop();
        self.desks.close(&error);
    }

    fn stopped_error(&self) -> Error {
        let fallback = || Error::Stopped { reason: "the node is closed".into() };
        self.reason.lock().clone().unwrap_or_else(fallback)
    }

    /// The node cannot go on.
    fn fail(&self, room: &'static str, error: Error) {
        if !self.stopped() {
            tracing::error!(room, %error, "the store stops");
        }
        self.stop(Error::Stopped { reason: format!("{room}: {error}") });
    }
}

type Body = Box<dyn FnOnce(&Shared) + Send>;

impl Driver {
    /// Starts the threads.
    pub fn start(parts: Parts) -> Result<Driver> {
        let Parts { config, stores, appliers, log, kv, registry, disk, outward, clock } = parts;
        if stores.is_empty() || stores.len() > waiting::LOOPS_MAX || appliers.is_empty() {
            return Err(Error::InvalidArgument("store loops or apply workers".into()));
        }
        let inbox = |_| Arc::new(Inbox::new(config.inbox_bytes, config.inbox_message_bytes));
        let read_workers = config.read_workers.max(1);
        kv.set_halted(false);
        let shared = Arc::new(Shared {
            inboxes: (0..stores.len()).map(inbox).collect(),
            desks: Desks::new(stores.len()),
            writer: WriterQueue::new(stores.len()),
            apply: appliers.into_iter().map(ApplyQueue::new).collect(),
            instant: disk.is_instant(),
            apply_bytes: AtomicUsize::new(0),
            readers: Readers::default(),
            upkeep: upkeep::Upkeep::default(),
            aside: propose::Aside::default(),
            admission: Admission::new(clock.now(), config.inbox_bytes),
            held: AtomicBool::new(false),
            timer: Timer::start("timer")?,
            stopped: AtomicBool::new(false),
            reason: Mutex::new(None),
            counters: Counters::default(),
            stages: Stages::default(),
            config,
            log,
            kv,
            registry,
            disk,
            outward,
            clock,
        });
        let mut bodies: Vec<(String, Body)> = Vec::new();
        for (at, store) in stores.into_iter().enumerate() {
            bodies.push((format!("store-{at}"), Box::new(move |s| round::run(s, at, store))));
        }
        for at in 0..shared.apply.len() {
            bodies.push((format!("apply-{at}"), Box::new(move |s| apply::run(s, at))));
        }
        for at in 0..read_workers {
            bodies.push((format!("read-{at}"), Box::new(|s| s.readers.run())));
        }
        bodies.push(("log-writer".into(), Box::new(writer::run)));
        bodies.push(("flusher".into(), Box::new(upkeep::run_flusher)));
        bodies.push(("compactor".into(), Box::new(upkeep::run_compactor)));
        bodies.push(("log-keeper".into(), Box::new(upkeep::run_keeper)));
        let driver = Driver { shared, threads: Arc::default() };
        for (name, body) in bodies {
            if let Err(error) = driver.spawn(&name, body) {
                driver.stop("a thread could not be started");
                driver.join();
                return Err(error);
            }
        }
        driver.expire_callers();
        Ok(driver)
    }

    fn spawn(&self, name: &str, body: Body) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let inside = move || {
            let guard = Stopper(&shared);
            body(&shared);
            drop(guard);
        };
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(inside)
            .map_err(|e| Error::io("spawn thread", name, e))?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// Looks for overdue callers every now and then.
    fn expire_callers(&self) {
        let weak = Arc::downgrade(&self.shared);
        expire_later(&self.shared.timer, weak);
    }

    /// The loop that a region belongs to.
    pub fn loop_of(&self, region: RegionId) -> usize {
        self.shared.loop_of(region)
    }

    fn wait(&self, at: usize, deadline: Time, waiter: Waiter) -> Option<Token> {
        let mut seat = None;
        // When does not matter: only writes are measured.
        self.shared.desks.seat(at, Time(0), deadline, [waiter], |token| seat = token);
        seat
    }

    /// Asks for a read grant.
    pub fn read(
        &self,
        region: RegionId,
        version: u64,
        level: ReadLevel,
        deadline: Time,
        waiter: Waiter,
    ) {
        let at = self.shared.loop_of(region);
        if let Some(token) = self.wait(at, deadline, waiter)
            && let Err(error) =
                self.shared.inboxes[at].read(ReadRequest { token, region, version, level })
        {
            self.shared.desks.refuse([token], &error);
        }
    }

    /// Hands leadership over.
    pub fn transfer(&self, region: RegionId, to: Option<StoreId>, deadline: Time, waiter: Waiter) {
        let at = self.shared.loop_of(region);
        if let Some(token) = self.wait(at, deadline, waiter) {
            self.shared.inboxes[at].post(Event::Transfer { token, region, to });
        }
    }

    /// Asks a region's leader to carry out an administrative command.
    pub fn admin(&self, region: RegionId, admin: Admin, deadline: Time, waiter: Waiter) {
        let at = self.shared.loop_of(region);
        if let Some(token) = self.wait(at, deadline, waiter) {
            self.shared.inboxes[at].post(Event::Admin { token, region, admin });
        }
    }

    /// Asks every loop where its replicas stand: one answer for each.
    pub fn status(&self, deadline: Time, mut waiter: impl FnMut() -> Waiter) {
        for at in 0..self.shared.inboxes.len() {
            if let Some(token) = self.wait(at, deadline, waiter()) {
                self.shared.inboxes[at].post(Event::Status(token));
            }
        }
    }

    /// How many store loops there are.
    pub fn loops(&self) -> usize {
        self.shared.inboxes.len()
    }

    /// Raft messages from peers.
    pub fn messages(&self, mut envelopes: Vec<Envelope>) {
        let shared = &self.shared;
        let mut dropped = 0;
        if shared.log.is_crowded() {
            // The disk is full or slow. A log that refuses what raft has decided to write stops the node;
            // entries that do not arrive are sent again.
            let before = envelopes.len();
            envelopes.retain(|envelope| envelope.message.get_entries().is_empty());
            dropped = before - envelopes.len();
        }
        dropped += match shared.inboxes.len() {
            1 => shared.inboxes[0].messages(envelopes),
            loops => {
                let mut parts: Vec<Vec<Envelope>> = vec![Vec::new(); loops];
                for envelope in envelopes {
                    parts[shared.loop_of(envelope.region)].push(envelope);
                }
                let parts = parts.into_iter().enumerate().filter(|(_, part)| !part.is_empty());
                parts.map(|(at, part)| shared.inboxes[at].messages(part)).sum()
            }
        };
        if dropped > 0 {
            shared.counters.dropped_messages.fetch_add(dropped as u64, Ordering::Relaxed);
        }
    }

    /// A beat of another node: for the first loop, which has them.
    pub fn beat(&self, from: StoreId, beat: Beat) {
        self.shared.inboxes[0].beat(from, beat);
    }

    /// Tells one region's loop.
    pub fn post(&self, region: RegionId, event: Event) {
        self.shared.inboxes[self.shared.loop_of(region)].post(event);
    }

    /// The cluster is founded: these replicas begin their lives.
    pub fn found(&self, births: Vec<Birth>) {
        let mut parts: Vec<Vec<Birth>> = vec![Vec::new(); self.loops()];
        for birth in births {
            parts[self.loop_of(birth.state.region.id)].push(birth);
        }
        for (inbox, part) in self.shared.inboxes.iter().zip(parts) {
            inbox.post(Event::Founded(part));
        }
    }

    /// Messages to a store do not arrive.
    pub fn unreachable(&self, store: StoreId) {
        self.shared.post_all(|| Event::Unreachable(store));
    }

    /// Runs a read on a read thread.
    pub fn spawn_read(&self, job: readers::ReadJob) -> Result<()> {
        self.shared.readers.submit(job)
    }

    /// Flushes the state store soon, or waits for it.
    pub fn flush(&self, how: FlushNow) -> Result<()> {
        upkeep::flush_now(&self.shared, how)
    }

    /// The clock.
    pub fn clock(&self) -> Clock {
        self.shared.clock
    }

    /// The timer: for retries.
    pub fn timer(&self) -> &Timer {
        &self.shared.timer
    }

    /// The state store.
    pub fn kv(&self) -> &Arc<dyn StateStore> {
        &self.shared.kv
    }

    /// The log.
    pub fn log(&self) -> &Log {
        &self.shared.log
    }

    /// What the replicas publish.
    pub fn registry(&self) -> &Registry {
        &self.shared.registry
    }

    /// What became of snapshots.
    pub fn snapshot_stats(&self) -> SnapshotStats {
        self.shared.outward.snapshot_stats()
    }

    /// Why the threads have stopped, if they have.
    pub fn stop_reason(&self) -> Option<Error> {
        self.shared.reason.lock().clone()
    }

    /// Stops everything at once; returns before the threads have ended.
    pub fn stop(&self, reason: &str) {
        self.shared.stop(Error::Stopped { reason: reason.to_owned() });
    }

    /// Waits for the threads to end, except for the one that calls.
    pub fn join(&self) {
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
        self.shared.timer.stop();
    }
}

/// Callers' deadlines are looked at this often.
const EXPIRE_EVERY: Duration = Duration::from_millis(50);
/// The same where nobody waits: a deadline may be missed by as much.
const EXPIRE_IDLE: Duration = Duration::from_millis(150);

fn expire_later(timer: &Timer, shared: std::sync::Weak<Shared>) {
    let waits = shared.upgrade().is_some_and(|shared| !shared.desks.is_empty());
    timer.after(
        if waits { EXPIRE_EVERY } else { EXPIRE_IDLE },
        Box::new(move || {
            let Some(strong) = shared.upgrade() else { return };
            if strong.stopped() {
                return;
            }
            strong.desks.expire(strong.clock.now());
            expire_later(&strong.timer, shared);
        }),
    );
}

/// A thread that ends before the node was told to stop has panicked: the others must not go on as if
/// it still did its part.
struct Stopper<'a>(&'a Shared);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let name = std::thread::current().name().unwrap_or("a thread").to_owned();
            self.0.stop(Error::Stopped { reason: format!("{name} panicked") });
        }
    }
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
