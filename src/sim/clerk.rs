//! The clerk of a simulated node: it registers the store, announces the reign and the record while the node leads region 1,
//! keeps what was announced, and reports what is led here and what of it is small and cold. Twice a second, and when an
//! answer or an announcement has come, as in production's `node::directory`; there each turn is one of a thread's.
//!
//! Not done: marks (seeds are shorter than the pause between two), and space on disks.

use super::cluster::{Cluster, Happening, Step};
use super::requests::Sent;
use super::staff::{Room, Staff};
use crate::client::Done;
use crate::client::ask::{Answer, Ask};
use crate::client::request::{Body, Response};
use crate::codec::admin::Admin;
use crate::codec::directory::{StoreChange, StoreRecord, StoreState};
use crate::codec::report::{Announcement, Verdict};
use crate::error::{Error, Result};
use crate::kv::StateStore;
use crate::node::census::{Census, Found, Seen};
use crate::node::members::{Members, Roster};
use crate::region::neighbours::Neighbours;
use crate::router::reporter::{Reporter, Space};
use crate::types::*;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How often a clerk looks.
const LOOK: Duration = Duration::from_millis(500);
/// How long the leader of region 1 may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a store may take that something is announced to.
const STORE_PATIENCE: Duration = Duration::from_secs(2);

/// What has come back.
enum Mail {
    Registered(Result<Response>),
    Reported(u64, Result<Response>),
    Announced(StoreId, (u64, u64), Result<Response>),
    Members(Result<Response>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Registration {
    Wanted,
    Asked,
    Done,
}

/// How far a store has been told: of which reign, which version; and whether it is being told.
#[derive(Clone, Copy, Default)]
struct Told {
    heard: (u64, u64),
    asked: bool,
    /// It did not hear: it is told again at the next regular turn.
    failed: bool,
}

/// What it knows and has under way.
pub(super) struct Clerk {
    members: Members,
    record: StoreRecord,
    replicas: u64,
    census: Option<Census>,
    measured: Option<Found>,
    reporter: Reporter,
    registration: Registration,
    /// The last report was lost: the next one waits for a regular turn.
    failed: bool,
    told: BTreeMap<StoreId, Told>,
    asked_members: bool,
    turn: usize,
    version: u64,
    mail: Arc<Mutex<Vec<Mail>>>,
}

/// What a turn found out.
#[derive(PartialEq, Eq)]
enum Verdicts {
    Goes,
    /// The record knows another directory under this name.
    KeptOut(String),
}

impl Clerk {
    /// One that has said nothing.
    pub fn new(
        members: Members,
        record: StoreRecord,
        life: u64,
        replicas: u64,
        census: Option<Census>,
    ) -> Clerk {
        Clerk {
            members,
            replicas,
            census,
            measured: None,
            reporter: Reporter::new(record.store, life),
            record,
            registration: Registration::Wanted,
            failed: false,
            told: BTreeMap::new(),
            asked_members: false,
            turn: 0,
            version: 0,
            mail: Arc::default(),
        }
    }

    /// This store, as it registers.
    pub fn record(&self) -> &StoreRecord {
        &self.record
    }

    /// Whether the record of a store is on this node's disk.
    pub fn keeps(&self, store: &StoreRecord) -> bool {
        let kept = self.members.directory.stores.get(&store.store);
        kept.is_some_and(|kept| (kept.incarnation, kept.start) == (store.incarnation, store.start))
    }

    /// Whether an answer has come that it has not looked at.
    pub fn has_mail(&self) -> bool {
        !self.mail.lock().is_empty()
    }

    /// Whether this store is on record.
    pub fn is_registered(&self) -> bool {
        self.registration == Registration::Done
    }

    /// Nothing is to be merged by itself any more.
    pub fn stop_counting(&mut self) {
        self.census = None;
    }

    fn done(&self, mail: impl FnOnce(Result<Response>) -> Mail + Send + 'static) -> Done<Response> {
        let tray = Arc::clone(&self.mail);
        Done::new(move |result| tray.lock().push(mail(result)))
    }

    fn collect(&mut self, room: &Room) -> Verdicts {
        let mails = std::mem::take(&mut *self.mail.lock());
        for mail in mails {
            match mail {
                Mail::Registered(Ok(Response::Directory(Answer::Record(directory)))) => {
                    // Not kept: it registers again.
                    self.registration = match self.members.confirm() {
                        Ok(()) => Registration::Done,
                        Err(_) => Registration::Wanted,
                    };
                    let (session, leader) = (0, StoreId(0));
                    room.bureau.take_members(Announcement { session, leader, directory });
                }
                Mail::Registered(Err(Error::Identity(why))) => return Verdicts::KeptOut(why),
                Mail::Registered(_) => self.registration = Registration::Wanted,
                Mail::Reported(number, Ok(Response::Directory(answer))) => {
                    if let Answer::Reported { session, verdict } = answer {
                        self.reporter.answered(number, session, verdict);
                        debug_assert!(matches!(verdict, Verdict::Taken | Verdict::Again));
                    }
                }
                Mail::Reported(number, _) => {
                    self.reporter.failed(number);
                    self.failed = true;
                }
                Mail::Announced(store, heard, result) => {
                    let told = self.told.entry(store).or_default();
                    (told.asked, told.failed) = (false, result.is_err());
                    if result.is_ok() {
                        told.heard = heard;
                    }
                }
                Mail::Members(result) => {
                    self.asked_members = false;
                    if let Ok(Response::Directory(Answer::Members(members))) = result {
                        room.bureau.take_members(members);
                    }
                }
            }
        }
        Verdicts::Goes
    }

    fn act_upon_announcement(
        &mut self,
        room: &Room,
        roster: &Roster,
        neighbours: &Neighbours,
    ) -> Vec<StoreId> {
        let known = room.bureau.announcement();
        if known.session != 0 {
            self.reporter.announced(known.session);
        }
        let version = known.directory.version;
        if version <= self.version {
            return Vec::new();
        }
        roster.learn(&known.directory);
        // Tried again at the next look.
        if self.members.keep(&known.directory).is_ok() {
            self.version = version;
        }
        neighbours.are_draining(known.directory.in_state(StoreState::Draining).collect());
        known.directory.in_state(StoreState::Left).collect()
    }

    fn register(&mut self, room: &Room) {
        if self.registration != Registration::Wanted {
            return;
        }
        self.ask_for_members(room);
        self.registration = Registration::Asked;
        let (record, replicas) = (self.record.clone(), self.replicas);
        let admin = Admin::Stores(StoreChange::Register { record, replicas });
        let body = Body::Admin { region: FIRST_REGION, admin };
        let done = self.done(Mail::Registered);
        room.send(Sent { to: None, body, timeout: PATIENCE, done });
    }

    /// A node that has just come asks those that it knows who else there is.
    fn ask_for_members(&mut self, room: &Room) {
        let others = room.bureau.others();
        if others.is_empty() || self.asked_members {
            return;
        }
        self.turn += 1;
        self.asked_members = true;
        let to = Some(others[self.turn % others.len()]);
        let (body, done) = (Body::Directory(Ask::Members), self.done(Mail::Members));
        room.send(Sent { to, body, timeout: STORE_PATIENCE, done });
    }

    fn announce(&mut self, room: &Room) {
        let Some(announcement) = room.bureau.proclaim() else { return self.told.clear() };
        let heard = (announcement.session, announcement.directory.version);
        let present = announcement.directory.stores.values();
        let present = present.filter(|record| record.state != StoreState::Left);
        let others: BTreeSet<StoreId> =
            present.map(|record| record.store).filter(|s| *s != self.record.store).collect();
        self.told.retain(|store, _| others.contains(store));
        for store in others {
            let told = self.told.entry(store).or_default();
            if told.heard == heard || told.asked || told.failed {
                continue;
            }
            told.asked = true;
            let done = self.done(move |result| Mail::Announced(store, heard, result));
            let body = Body::Directory(Ask::Announce(announcement.clone()));
            room.send(Sent { to: Some(store), body, timeout: STORE_PATIENCE, done });
        }
    }

    /// Looks which regions are small and cold.
    fn count(&mut self, now: Time, room: &Room, kv: &dyn StateStore) {
        let Some(census) = &mut self.census else { return };
        if let Some(found) = self.measured.take() {
            census.found(now, found);
        }
        let seen = || room.bureau.leaders().into_iter().map(|(id, share)| (id, Seen::of(&share)));
        census.look(now, seen);
        self.measured = census.errand().map(|errand| errand.carry_out(kv.view()));
    }

    /// What failed may be tried again.
    fn forgive(&mut self) {
        self.failed = false;
        self.told.values_mut().for_each(|told| told.failed = false);
    }

    fn report(&mut self, room: &Room) {
        if self.failed {
            return;
        }
        let census = self.census.as_ref();
        let led = room.bureau.led(|region, epoch| census?.calm(region, epoch));
        let shape = |region| room.bureau.shape(region);
        let Some(report) = self.reporter.next(&led, Space::default(), shape) else { return };
        let number = report.number;
        let done = self.done(move |result| Mail::Reported(number, result));
        let body = Body::Directory(Ask::Report(report));
        room.send(Sent { to: None, body, timeout: PATIENCE, done });
    }
}

impl Cluster {
    /// A turn of a node's clerk; then its operator may go on.
    pub(super) fn clerk(&mut self, now: Time, id: StoreId, life: u64, regular: bool) -> Step {
        let Some(node) = self.nodes.get(&id) else { return Ok(()) };
        let local = node.now(now);
        let Some(running) = &node.running else { return Ok(()) };
        let Some(staff) = self.staff.get_mut(&id).filter(|staff| staff.life == life) else {
            return Ok(());
        };
        if regular {
            self.world.after(LOOK, Happening::Clerk(id, life, true));
            // Who was out of reach is dialled again.
            let net = &self.net;
            let back = |store: &StoreId| {
                let up = self.nodes.get(store).is_some_and(|node| node.running.is_some());
                up && net.is_open(id, *store) && net.is_open(*store, id)
            };
            let away = staff.room.away.now();
            away.into_iter().filter(back).for_each(|store| staff.room.away.heard(store));
        }
        let Staff { room, clerk, roster, .. } = staff;
        room.tell_time(local);
        if let Verdicts::KeptOut(why) = clerk.collect(room) {
            return self.keep_out(now, id, &why);
        }
        let neighbours = running.registry.neighbours();
        for left in clerk.act_upon_announcement(room, roster, neighbours) {
            neighbours.has_left(left);
            // Cut off: no connection lasts, and none is made any more, see `admits`.
            self.connections.retain(|ends, _| *ends != (id, left) && *ends != (left, id));
        }
        if node.disk.is_off() {
            let off = Error::Stopped { reason: "the power is off".into() };
            return self.node_failed(now, id, "the record of the stores", off);
        }
        if regular {
            clerk.forgive();
            clerk.register(room);
        }
        clerk.announce(room);
        clerk.count(local, room, &running.kv);
        clerk.report(room);
        self.go_on(now, id)
    }

    /// The clerk looks at once.
    pub(super) fn wake_clerk(&mut self, now: Time, id: StoreId) {
        if let Some(staff) = self.staff.get(&id) {
            self.world.at(now, Happening::Clerk(id, staff.life, false));
        }
    }
}
