//! The way of a snapshot through the cluster: wanted, asked for, granted, sent, received, as in production's
//! `node::snapshots`, over the seeded network. The lists of who waits and who has a slot are production's own.
//!
//! A transfer is one arrival here; what happens on its way shows as the time it takes, as a transfer that breaks and
//! comes later (it was resumed), or as one that never comes.

use super::cluster::{Cluster, Happening, Step, violation};
use super::node::SNAP_DIR;
use crate::env::Disk;
use crate::raft::Envelope;
use crate::region::snapshot::{SnapshotFile, SnapshotWriter};
use crate::store::departures::{Departure, Departures, Refusal};
use crate::store::slots::{SlotId, Slots, has_use};
use crate::store::*;
use crate::types::*;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What a running node knows of snapshots.
pub struct Couriers {
    departures: Departures<()>,
    granted: BTreeMap<SnapshotErrand, Grant>,
    /// On their way, and whether they were called off.
    flying: BTreeMap<SnapshotErrand, CalledOff>,
    slots: Slots,
    whole: BTreeMap<PathBuf, SlotId>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum CalledOff {
    No,
    Yes,
}

/// A slot at a node in one of its lives.
#[derive(Clone, Copy, Debug)]
pub struct Grant {
    to: StoreId,
    life: u64,
    slot: SlotId,
}

/// A step that something takes to happen. Lives are the sender's.
pub enum Courier {
    /// A question for a slot arrives.
    Asked(StoreId, u64, Departure<()>),
    /// Its answer arrives.
    Answered(StoreId, u64, Departure<()>, Result<Grant, Refusal>),
    /// A slot is given back.
    Released(Grant),
    /// All of a snapshot has arrived.
    Arrived(StoreId, u64, Grant, Envelope, Vec<Bytes>),
    /// The sender learns how it ended.
    Ended(StoreId, u64, SnapshotErrand, Delivered),
}

/// How long slots and snapshots wait for each other.
const PATIENCE: Duration = Duration::from_secs(4);

impl Couriers {
    /// Nothing is under way. So many are sent at once, and so many received.
    pub fn new((sends, slots): (usize, usize)) -> Couriers {
        Couriers {
            departures: Departures::new(sends, PATIENCE),
            granted: BTreeMap::new(),
            flying: BTreeMap::new(),
            slots: Slots::new(slots, PATIENCE),
            whole: BTreeMap::new(),
        }
    }

    /// Whether nothing is being asked for, made, sent or received.
    pub fn rest(&self) -> bool {
        self.departures.under_way() == 0 && self.flying.is_empty() && self.whole.is_empty()
    }
}

fn errand_of(envelope: &Envelope) -> SnapshotErrand {
    SnapshotErrand { region: envelope.region, from: envelope.from, to: envelope.to }
}

impl Cluster {
    fn local(&self, id: StoreId, now: Time) -> Time {
        self.nodes.get(&id).map_or(now, |node| node.now(now))
    }

    /// What leaders say about snapshots.
    pub(super) fn say(&mut self, now: Time, id: StoreId, life: u64, words: Vec<SnapshotWord>) {
        let local = self.local(id, now);
        for word in words {
            let Some(running) = self.running(id) else { return };
            let post = &mut running.post;
            match word {
                SnapshotWord::Wanted { errand, store, claim } => {
                    post.departures.wish(local, errand, store, claim, ());
                }
                SnapshotWord::Declined(errand) => {
                    if !post.flying.contains_key(&errand) {
                        post.departures.ended(errand);
                    }
                    let grant = post.granted.remove(&errand);
                    self.release(now, id, grant);
                }
                SnapshotWord::CalledOff(errand) => {
                    if let Some(off) = post.flying.get_mut(&errand) {
                        *off = CalledOff::Yes;
                        self.counts.called_off += 1;
                    }
                }
            }
        }
        self.ask_for_slots(now, id, life);
    }

    fn ask_for_slots(&mut self, now: Time, id: StoreId, life: u64) {
        let local = self.local(id, now);
        loop {
            let Some(running) = self.running(id) else { return };
            let post = &mut running.post;
            let late = post.departures.overdue(local);
            let late: Vec<Grant> = late.iter().filter_map(|e| post.granted.remove(e)).collect();
            let next = post.departures.next(local);
            for grant in late {
                self.release(now, id, Some(grant));
            }
            let Some(departure) = next else { return };
            let step = match self.travel(now, id, departure.store, 64) {
                Some(at) => (at, Courier::Asked(id, life, departure)),
                None => {
                    let pause = self.pause("snapshot.ask.lost", 500_000);
                    let lost = Err(Refusal::OutOfReach);
                    (now.after(pause), Courier::Answered(id, life, departure, lost))
                }
            };
            self.world.at(step.0, Happening::Courier(step.1));
        }
    }

    /// When something arrives, if it does.
    fn travel(&mut self, now: Time, from: StoreId, to: StoreId, bytes: usize) -> Option<Time> {
        let deliveries = self.net.route(now, from, to, bytes, &mut self.rng);
        deliveries.first().filter(|first| first.flipped_bit.is_none()).map(|first| first.at)
    }

    fn release(&mut self, now: Time, from: StoreId, grant: Option<Grant>) {
        let Some(grant) = grant else { return };
        // Lost, it lapses.
        if let Some(at) = self.travel(now, from, grant.to, 32) {
            self.world.at(at, Happening::Courier(Courier::Released(grant)));
        }
    }

    pub(super) fn courier(&mut self, now: Time, courier: Courier) -> Step {
        match courier {
            Courier::Asked(from, life, departure) => self.asked(now, from, life, departure),
            Courier::Answered(id, life, departure, answer) => {
                return self.slot_answered(now, id, life, departure, answer);
            }
            Courier::Released(grant) => {
                if let Some(node) = self.alive(grant.to, grant.life)
                    && let Some(running) = node.running.as_mut()
                {
                    running.post.slots.release(grant.slot);
                }
            }
            Courier::Arrived(from, life, grant, envelope, chunks) => {
                return self.snapshot_arrives(now, from, life, grant, envelope, chunks);
            }
            Courier::Ended(id, life, errand, delivered) => {
                return self.snapshot_ended(now, id, life, errand, delivered);
            }
        }
        Ok(())
    }

    fn asked(&mut self, now: Time, from: StoreId, life: u64, departure: Departure<()>) {
        let to = departure.store;
        let unwilling = self.rng.chance("snapshot.unwilling", 100);
        let open = self.net.is_open(from, to) && self.admits(from, to);
        let local = self.local(to, now);
        let answer = match self.nodes.get_mut(&to).filter(|_| open) {
            None => Err(Refusal::OutOfReach),
            Some(node) => {
                let node_life = node.life;
                match node.running.as_mut() {
                    None => Err(Refusal::OutOfReach),
                    Some(_) if unwilling => Err(Refusal::NotNow),
                    Some(running) => {
                        let (errand, claim) = (&departure.errand, &departure.claim);
                        let useful = has_use(&running.registry, errand.region, errand.to, claim);
                        let slots = &mut running.post.slots;
                        match useful.is_ok() {
                            false => Err(Refusal::NoUse),
                            true => match slots.reserve(local, from, departure.errand) {
                                Some(slot) => Ok(Grant { to, life: node_life, slot }),
                                None => Err(Refusal::NotNow),
                            },
                        }
                    }
                }
            }
        };
        if let Err(why) = &answer {
            self.counts.refused += 1;
            let region = departure.errand.region;
            self.trace.line(now, format_args!("{to} has no slot for {region} of {from}: {why:?}"));
        }
        let (at, answer) = match self.travel(now, to, from, 32) {
            Some(at) => (at, answer),
            // The connection breaks: the slot lapses.
            None => (now.after(self.pause("snapshot.ask.lost", 500_000)), Err(Refusal::OutOfReach)),
        };
        let answered = Courier::Answered(from, life, departure, answer);
        self.world.at(at, Happening::Courier(answered));
    }

    fn slot_answered(
        &mut self,
        now: Time,
        id: StoreId,
        life: u64,
        departure: Departure<()>,
        answer: Result<Grant, Refusal>,
    ) -> Step {
        let local = self.local(id, now);
        let Some(running) = self.alive(id, life).and_then(|node| node.running.as_mut()) else {
            return Ok(());
        };
        let errand = departure.errand;
        let at = running.loop_of(errand.region);
        let post = &mut running.post;
        match answer {
            Ok(grant) => {
                post.departures.granted(local, errand);
                post.granted.insert(errand, grant);
                let SnapshotErrand { region, from, to } = errand;
                self.post(now, id, life, at, Event::SnapshotGranted { region, from, to })?;
            }
            Err(why) => post.departures.refused(local, departure, why),
        }
        self.ask_for_slots(now, id, life);
        Ok(())
    }

    pub(super) fn send_snapshot(
        &mut self,
        now: Time,
        from: StoreId,
        life: u64,
        snapshot: SnapshotSend,
    ) {
        let SnapshotSend { to, envelope, mut chunks } = snapshot;
        let errand = errand_of(&envelope);
        let slow = self.pause("snapshot.time", 300_000);
        let broken = self.pause("snapshot.broken", 2_000_000);
        let resumed = self.rng.chance("snapshot.resumed", 500);
        let Some(running) = self.running(from) else { return };
        let post = &mut running.post;
        let grant = post.granted.remove(&errand).filter(|_| post.departures.flies(errand));
        let Some(grant) = grant else {
            let ended = Courier::Ended(from, life, errand, Delivered::Failed);
            return self.world.at(now, Happening::Courier(ended));
        };
        post.flying.insert(errand, CalledOff::No);
        let mut data = Vec::new();
        while let Ok(Some(chunk)) = chunks.next_chunk() {
            data.push(chunk);
        }
        let bytes: usize = data.iter().map(Bytes::len).sum();
        let arrival = self.travel(now, from, to, bytes);
        let (at, step) = match arrival {
            Some(at) => (at.after(slow), Courier::Arrived(from, life, grant, envelope, data)),
            None if resumed => {
                let at = now.after(slow).after(broken);
                (at, Courier::Arrived(from, life, grant, envelope, data))
            }
            None => (now.after(slow), Courier::Ended(from, life, errand, Delivered::Failed)),
        };
        self.world.at(at, Happening::Courier(step));
    }

    fn snapshot_arrives(
        &mut self,
        now: Time,
        from: StoreId,
        life: u64,
        grant: Grant,
        envelope: Envelope,
        chunks: Vec<Bytes>,
    ) -> Step {
        let back = self.pause("snapshot.report", 5_000);
        let name = format!("{}-{}", envelope.region.0, self.counts.steps);
        let (errand, to) = (errand_of(&envelope), grant.to);
        let off = self.alive(from, life).and_then(|node| node.running.as_ref());
        let off = off.and_then(|running| running.post.flying.get(&errand).copied());
        let open = self.net.is_open(from, to) && self.admits(from, to);
        let open = open && off != Some(CalledOff::Yes);
        let local = self.local(to, now);
        let room = self.alive(to, grant.life).and_then(|node| node.running.as_mut());
        let room = room.is_some_and(|running| running.post.slots.touch(local, grant.slot));
        let ended = |cluster: &mut Cluster, delivered| {
            let ended = Courier::Ended(from, life, errand, delivered);
            cluster.world.after(back, Happening::Courier(ended));
        };
        let Some((to_life, at)) = self.place(to, envelope.region).filter(|_| open && room) else {
            ended(self, Delivered::Failed);
            self.release(now, from, Some(grant));
            return Ok(());
        };
        let disk: Arc<dyn Disk> = Arc::new(self.nodes[&to].disk.clone());
        match receive(&disk, &name, chunks) {
            Ok(file) => {
                self.counts.snapshots += 1;
                self.trace.line(now, format_args!("{to} received {} snapshot", envelope.region));
                ended(self, Delivered::Whole);
                if let Some(running) = self.running(to) {
                    running.post.slots.restoring(local, grant.slot);
                    running.post.whole.insert(file.path.clone(), grant.slot);
                }
                self.post(now, to, to_life, at, Event::SnapshotReceived { envelope, file })
            }
            Err(error) => {
                ended(self, Delivered::Failed);
                if matches!(error, crate::error::Error::DiskFull { .. }) {
                    self.release(now, from, Some(grant));
                    return Ok(());
                }
                self.node_failed(now, to, "snapshot", error)
            }
        }
    }

    fn snapshot_ended(
        &mut self,
        now: Time,
        id: StoreId,
        life: u64,
        errand: SnapshotErrand,
        delivered: Delivered,
    ) -> Step {
        let SnapshotErrand { region, from, to } = errand;
        let Some(running) = self.alive(id, life).and_then(|node| node.running.as_mut()) else {
            return Ok(());
        };
        running.post.flying.remove(&errand);
        running.post.departures.ended(errand);
        let at = running.loop_of(region);
        self.post(now, id, life, at, Event::SnapshotSent { region, from, to, delivered })?;
        self.ask_for_slots(now, id, life);
        Ok(())
    }

    /// In the end nothing is left of any snapshot: no place, no slot, no file.
    pub(super) fn look_at_couriers(&self) -> Step {
        for (id, node) in &self.nodes {
            if node.running.as_ref().is_some_and(|running| !running.post.rest()) {
                return Err(violation("snapshots come to an end", id.to_string()));
            }
        }
        Ok(())
    }

    pub(super) fn discard(&mut self, id: StoreId, files: Vec<SnapshotFile>) {
        for file in files {
            // A leftover is removed when the node opens.
            let _ = self.nodes[&id].disk.remove(&file.path);
            if let Some(running) = self.running(id)
                && let Some(slot) = running.post.whole.remove(&file.path)
            {
                running.post.slots.release(slot);
            }
        }
    }
}

fn receive(
    disk: &Arc<dyn Disk>,
    name: &str,
    chunks: Vec<Bytes>,
) -> crate::error::Result<SnapshotFile> {
    let mut writer = SnapshotWriter::create(disk, Path::new(SNAP_DIR).join(name))?;
    for chunk in chunks {
        writer.chunk(&chunk)?;
    }
    writer.finish()
}
