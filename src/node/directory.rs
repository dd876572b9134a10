//! The clerk: one thread of a node that keeps it in the directory. It meets the other [founders](super::founding) if there is
//! no cluster yet, registers the store when the node starts, reports what is led here, and, on the node that leads region 1, announces the reign and the record to everybody.
//!
//! It looks twice a second, and at once when something is announced. A look at an idle node compares what is led with
//! what was acknowledged and finds nothing to say: no message leaves, no group is touched. Where nothing was applied since, it
//! compares every eight seconds only: with a hundred thousand regions that takes a while. Everything that it asks for is
//! asked without waiting; one question of a kind (and one announcement to a store) is under way at a time.
//! Its reports also say which regions are small and cold, as the [`census`](super::census) has it.
//!
//! A store that the record refuses when it registers (a directory that was wiped, put back from a copy, or struck off) stops its
//! node: what it forgot it must not vote about. One that nobody lets in, for they know it already, cannot register; it hears nothing
//! and is heard by nobody, says why in its log, and waits for whoever runs it.

use super::census::{Census, Found, Seen};
use super::founding::{Errands, Founding, SetUp};
use super::members::{Members, Roster};
use crate::client::ask::{Answer, Ask};
use crate::client::local::Local;
use crate::client::request::Response;
use crate::client::{Done, Office};
use crate::codec::directory::{StoreChange, StoreRecord, StoreState};
use crate::codec::report::{Announcement, Verdict};
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::router::reporter::Reporter;
use crate::transport::Transport;
use crate::types::StoreId;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a clerk looks.
const LOOK: Duration = Duration::from_millis(500);
/// After it has compared in vain it does so again this much later, if nothing was applied since.
const COMPARE_IDLE: Duration = Duration::from_secs(8);
/// How long the leader of region 1 may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a store may take that something is announced to.
const STORE_PATIENCE: Duration = Duration::from_secs(2);
/// The longest pause before somebody who did not answer is told again.
const PAUSE_MAX: Duration = Duration::from_secs(8);
/// How often a node that writes marks its directory.
pub(super) const MARK_EVERY: Duration = Duration::from_secs(300);
/// Fewer entries than this, and some for each store, are no reason to: marks are entries themselves.
const MARK_ENTRIES: u64 = 64;
/// For each store.
const MARK_ENTRIES_EACH: u64 = 4;
/// How often free space is looked up.
const SPACE_EVERY: Duration = Duration::from_secs(10);

/// What the directory cost so far: messages that the clerk sent.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DirectoryStats {
    /// Reports to the leader of region 1.
    pub reports: u64,
    /// Regions in them.
    pub regions: u64,
    /// Announcements to other stores.
    pub announcements: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    reports: AtomicU64,
    regions: AtomicU64,
    announcements: AtomicU64,
}

impl Counters {
    pub fn stats(&self) -> DirectoryStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DirectoryStats {
            reports: load(&self.reports),
            regions: load(&self.regions),
            announcements: load(&self.announcements),
        }
    }
}

/// What a clerk is made of.
pub(super) struct Parts {
    pub local: Local,
    pub driver: Driver,
    pub transport: Arc<dyn Transport>,
    pub members: Members,
    pub roster: Arc<Roster>,
    /// This store, as it registers.
    pub record: StoreRecord,
    /// What no other run draws: its reports are known by it.
    pub life: u64,
    /// How many replicas it was configured for; 0 if it has joined.
    pub replicas: u64,
    /// Whose addresses the configuration names: it is right about them until they register anew.
    pub named: BTreeSet<StoreId>,
    /// See [`Members::mark`].
    pub mark_every: Duration,
    /// Which of the regions led here may be merged.
    pub census: Option<Census>,
    /// Where to look how much space is left.
    pub free_space: Box<dyn Fn() -> Option<u64> + Send>,
    pub counters: Arc<Counters>,
    /// Whether the cluster has been founded, and how far that is.
    pub founding: Arc<Founding>,
    /// What is left to do when it is.
    pub set_up: Option<SetUp>,
}

/// A question that was answered, or not.
pub(super) enum Outcome {
    Found { store: StoreId, result: Result<Response> },
    Registered(Result<Response>),
    Reported { number: u64, result: Result<Response> },
    Announced { store: StoreId, session: u64, version: u64, result: Result<Response> },
    Members(Result<Response>),
    Measured(Found),
}

/// Where answers are put: at most one of each kind, and of each store.
#[derive(Clone, Default)]
struct Tray(Arc<Mutex<Vec<Outcome>>>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Registration {
    Wanted,
    Asked,
    Done,
}

/// What changes with most of what there is to report. The rest may be told [later](COMPARE_IDLE): a leader that steps down and
/// hears of no other, one that is fenced off, a size that was measured, space.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Basis {
    session: u64,
    applied_entries: u64,
    settled: u64,
}

/// A comparison that found nothing to report.
#[derive(Clone, Copy)]
struct Vain {
    basis: Basis,
    at: Instant,
    /// One at least [`LOOK`] earlier had found nothing, too: a store loop publishes what was applied a moment after it was.
    again: bool,
}

/// How far a store has been told.
#[derive(Default)]
struct Told {
    session: u64,
    version: u64,
    asked: bool,
    failures: u32,
    again: Option<Instant>,
}

pub(super) struct Clerk {
    pub(super) parts: Parts,
    /// While the cluster is being founded.
    pub(super) errands: Errands,
    tray: Tray,
    reporter: Reporter,
    registration: Registration,
    again: Instant,
    failures: u32,
    told: BTreeMap<StoreId, Told>,
    /// Who is asked next for what was announced, by a node that knows nobody.
    turn: usize,
    asked_members: bool,
    free: Option<u64>,
    free_as_of: Option<Instant>,
    in_vain: Option<Vain>,
    /// The record as far as it has been acted upon.
    version: u64,
    /// The life of each store whose address the transport has, and that address as it was on record.
    placed: BTreeMap<StoreId, (u64, String)>,
    /// When the directory was marked last, and how many entries its log had been given by then.
    marked: (Instant, u64),
}

/// The thread; ends when it is stopped.
pub(super) struct Handle {
    stop: Arc<AtomicBool>,
    local: Local,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Handle {
    /// Ends the thread, and waits for it: afterwards it writes nothing any more.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.local.bureau().ring();
        if let Some(thread) = self.thread.lock().take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

/// Starts the thread.
pub(super) fn start(parts: Parts) -> Result<Handle> {
    let local = parts.local.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    let remembered = parts.members.directory.stores.values();
    let named = remembered.filter(|record| parts.named.contains(&record.store));
    let place = |r: &StoreRecord| (r.store, (r.start.life, r.address.clone()));
    let placed = named.map(place).collect();
    let clerk = Clerk {
        reporter: Reporter::new(parts.record.store, parts.life),
        parts,
        errands: Errands::default(),
        tray: Tray::default(),
        registration: Registration::Wanted,
        again: Instant::now(),
        failures: 0,
        told: BTreeMap::new(),
        turn: 0,
        asked_members: false,
        free: None,
        free_as_of: None,
        in_vain: None,
        version: 0,
        placed,
        marked: (Instant::now(), 0),
    };
    let thread = std::thread::Builder::new().name("directory".into());
    let thread = thread
        .spawn(move || clerk.run(&told))
        .map_err(|e| Error::io("spawn thread", "directory", e))?;
    Ok(Handle { stop, local, thread: Mutex::new(Some(thread)) })
}

fn pause(failures: u32) -> Duration {
    LOOK.saturating_mul(1 << failures.min(8)).min(PAUSE_MAX)
}

impl Clerk {
    fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) && !self.parts.local.stopped() {
            self.collect();
            if self.parts.founding.is_under_way() {
                let pause = self.found();
                self.parts.local.bureau().wait_for_news(pause);
                continue;
            }
            self.act_upon_announcement();
            self.mark();
            self.register();
            if let Some(announcement) = self.parts.local.bureau().proclaim() {
                self.announce(&announcement);
            } else {
                self.told.clear();
            }
            self.count();
            self.report();
            self.parts.local.bureau().wait_for_news(LOOK);
        }
    }

    /// A way for an answer to get to the tray. Whoever is told nothing would wait for ever: `Done` sees to it.
    pub(super) fn done(
        &self,
        outcome: impl FnOnce(Result<Response>) -> Outcome + Send + 'static,
    ) -> Done<Response> {
        let (tray, local) = (self.tray.clone(), self.parts.local.clone());
        Done::new(move |result| {
            tray.0.lock().push(outcome(result));
            local.bureau().ring();
        })
    }

    fn collect(&mut self) {
        let outcomes = std::mem::take(&mut *self.tray.0.lock());
        for outcome in outcomes {
            match outcome {
                Outcome::Found { store, result } => self.found_answered(store, result),
                Outcome::Registered(result) => self.registered(result),
                Outcome::Reported { number, result } => match result {
                    Ok(Response::Directory(Answer::Reported { session, verdict })) => {
                        self.failures = 0;
                        self.reporter.answered(number, session, verdict);
                        if verdict == Verdict::Again {
                            tracing::debug!("the directory wants to hear everything again");
                        }
                    }
                    _ => {
                        // Whoever reigns next will say so.
                        self.reporter.failed(number);
                        self.failures += 1;
                        self.again = Instant::now() + pause(self.failures);
                    }
                },
                Outcome::Announced { store, session, version, result } => {
                    let told = self.told.entry(store).or_default();
                    told.asked = false;
                    match result {
                        Ok(_) => {
                            (told.session, told.version) = (session, version);
                            (told.failures, told.again) = (0, None);
                        }
                        Err(_) => {
                            told.failures += 1;
                            told.again = Some(Instant::now() + pause(told.failures));
                        }
                    }
                }
                Outcome::Measured(found) => {
                    if let Some(census) = &mut self.parts.census {
                        census.found(self.parts.driver.clock().now(), found);
                    }
                }
                Outcome::Members(result) => {
                    self.asked_members = false;
                    if let Ok(Response::Directory(Answer::Members(members))) = result {
                        self.parts.local.bureau().take_members(members);
                    }
                }
            }
        }
    }

    fn registered(&mut self, result: Result<Response>) {
        match result {
            Ok(Response::Directory(Answer::Record(directory))) => {
                self.registration = Registration::Done;
                self.failures = 0;
                if let Err(error) = self.parts.members.confirm() {
                    tracing::warn!(%error, "it could not be kept that the store is on record");
                    self.registration = Registration::Wanted;
                    self.again = Instant::now() + PAUSE_MAX;
                }
                let (session, leader) = (0, StoreId(0));
                self.parts.local.bureau().take_members(Announcement { session, leader, directory });
            }
            Err(Error::Identity(why)) => {
                tracing::error!(why, "the cluster does not know this directory: the node stops");
                self.parts.driver.stop(&format!("kept out of the cluster: {why}"));
            }
            other => {
                if let Err(error) = other {
                    tracing::debug!(%error, "not registered yet");
                }
                self.registration = Registration::Wanted;
                self.failures += 1;
                self.again = Instant::now() + pause(self.failures.min(3));
            }
        }
    }

    /// Marks the directory, if enough was written to it: a copy that lacks that shall be recognised.
    fn mark(&mut self) {
        let (at, before) = self.marked;
        if self.registration != Registration::Done || at.elapsed() < self.parts.mark_every {
            return;
        }
        let entries = self.parts.driver.log().stats().entries;
        let stores = self.parts.members.directory.stores.len() as u64;
        if entries.saturating_sub(before) < MARK_ENTRIES + MARK_ENTRIES_EACH * stores {
            return;
        }
        self.marked = (Instant::now(), entries);
        match self.parts.members.mark() {
            Ok(number) => {
                self.parts.record.start.number = number;
                self.registration = Registration::Wanted;
            }
            Err(error) => tracing::warn!(%error, "the directory could not be marked"),
        }
    }

    fn register(&mut self) {
        if self.registration != Registration::Wanted || Instant::now() < self.again {
            return;
        }
        self.ask_for_members();
        self.registration = Registration::Asked;
        let (record, replicas) = (self.parts.record.clone(), self.parts.replicas);
        let change = StoreChange::Register { record, replicas };
        let done = self.done(Outcome::Registered);
        self.parts.local.change_record(change, PATIENCE, done);
    }

    /// A node that has just come asks those that it knows who else there is.
    fn ask_for_members(&mut self) {
        let others = self.parts.local.bureau().others();
        if others.is_empty() || self.asked_members {
            return;
        }
        self.turn += 1;
        self.asked_members = true;
        let to = others[self.turn % others.len()];
        let done = self.done(Outcome::Members);
        self.parts.local.ask_store(to, Ask::Members, STORE_PATIENCE, done);
    }

    /// Takes what was announced to heart: keeps it, lets the transport know where everybody is.
    fn act_upon_announcement(&mut self) {
        let known = self.parts.local.bureau().announcement();
        if known.session != 0 {
            self.reporter.announced(known.session);
        }
        let version = known.directory.version;
        if version <= self.version {
            return;
        }
        self.parts.roster.learn(&known.directory);
        let neighbours = self.parts.driver.registry().neighbours();
        neighbours.are_draining(known.directory.in_state(StoreState::Draining).collect());
        for record in known.directory.stores.values() {
            let store = record.store;
            if record.state == StoreState::Left {
                // It holds nothing that counts any more, and is not let in again.
                neighbours.has_left(store);
                self.parts.transport.cut_off(store);
            }
            let there = record.state != StoreState::Left && !record.address.is_empty();
            let place = (record.start.life, record.address.clone());
            if store != self.parts.record.store
                && there
                && self.placed.insert(store, place.clone()) != Some(place)
            {
                self.parts.transport.set_peer(store, record.address.clone());
            }
        }
        match self.parts.members.keep(&known.directory) {
            Ok(()) => self.version = version,
            // Tried again at the next look.
            Err(error) => tracing::warn!(%error, "the record of the stores could not be kept"),
        }
    }

    fn announce(&mut self, announcement: &Announcement) {
        let (session, version) = (announcement.session, announcement.directory.version);
        let now = Instant::now();
        let present = announcement.directory.stores.values();
        let present = present.filter(|record| record.state != StoreState::Left);
        let others: BTreeSet<StoreId> =
            present.map(|record| record.store).filter(|s| *s != self.parts.record.store).collect();
        self.told.retain(|store, _| others.contains(store));
        for store in others {
            let told = self.told.entry(store).or_default();
            let knows = (told.session, told.version) == (session, version);
            if knows || told.asked || told.again.is_some_and(|again| now < again) {
                continue;
            }
            told.asked = true;
            self.parts.counters.announcements.fetch_add(1, Ordering::Relaxed);
            let done =
                self.done(move |result| Outcome::Announced { store, session, version, result });
            let ask = Ask::Announce(announcement.clone());
            self.parts.local.ask_store(store, ask, STORE_PATIENCE, done);
        }
    }

    /// Looks which regions are small and cold.
    fn count(&mut self) {
        let local = &self.parts.local;
        let Some(census) = &mut self.parts.census else { return };
        let seen =
            || local.bureau().leaders().into_iter().map(|(id, share)| (id, Seen::of(&share)));
        census.look(self.parts.driver.clock().now(), seen);
        let Some(errand) = census.errand() else { return };
        let (tray, ring) = (self.tray.clone(), local.clone());
        let sent = local.look_into(move |view| {
            tray.0.lock().push(Outcome::Measured(errand.carry_out(view)));
            ring.bureau().ring();
        });
        if sent.is_err() {
            census.found(self.parts.driver.clock().now(), Vec::new());
        }
    }

    fn report(&mut self) {
        let now = Instant::now();
        if self.reporter.session() == 0 || (self.failures > 0 && now < self.again) {
            return;
        }
        let basis = Basis {
            session: self.reporter.session(),
            applied_entries: self.parts.driver.stats().applied_entries,
            settled: self.parts.census.as_ref().map_or(0, Census::settled),
        };
        let space_is_due = self.free_as_of.is_none_or(|as_of| now - as_of > SPACE_EVERY);
        let before = self.in_vain.filter(|vain| vain.basis == basis);
        if before.is_some_and(|vain| vain.again && now - vain.at < COMPARE_IDLE) && !space_is_due {
            return;
        }
        self.in_vain = None;
        if space_is_due {
            self.free = (self.parts.free_space)();
            self.free_as_of = Some(now);
        }
        let local = &self.parts.local;
        let census = self.parts.census.as_ref();
        let led = local.bureau().led(|region, epoch| census?.calm(region, epoch));
        let space = local.space(self.free);
        let shape = |region| local.bureau().shape(region);
        let Some(report) = self.reporter.next(&led, space, shape) else {
            self.in_vain = match before {
                _ if self.reporter.waits() => None,
                Some(vain) if !vain.again && now - vain.at < LOOK => Some(vain),
                before => Some(Vain { basis, at: now, again: before.is_some() }),
            };
            return;
        };
        let number = report.number;
        self.parts.counters.reports.fetch_add(1, Ordering::Relaxed);
        let regions = (report.led.len() + report.gone.len()) as u64;
        self.parts.counters.regions.fetch_add(regions, Ordering::Relaxed);
        let done = self.done(move |result| Outcome::Reported { number, result });
        self.parts.local.ask(Ask::Report(report), PATIENCE, done);
    }
}
