//! The round: `handle` any number of events, then `drain` once.

use super::absent::Absent;
use super::event::{DiskSpace, Event, Proposal, ReadRequest};
use super::graves::Graves;
use super::liveness::Liveness;
use super::open::{Shard, is_first};
use super::peers::Peers;
use super::sizes::Sizes;
use super::sleep::Watch;
use crate::codec::{self, admin::Admin};
use crate::error::{Error, Result};
use crate::kv::{Cut, StateStore};
use crate::log::{Log, LogBatch, Seq};
use crate::raft::{Envelope, GroupConfig, Room};
use crate::region::config::StoreConfig;
use crate::region::effects::*;
use crate::region::hibernate::{self, Wake};
use crate::region::life;
use crate::region::peer::Peer;
use crate::region::ready::{Pass, Received};
use crate::region::share::Registry;
use crate::region::snapshot::SnapshotFile;
use crate::types::*;
use ::raft::eraftpb::MessageType;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Passes of one drain: a group that still has work then gets its turn in the next round.
const PASSES_MAX: usize = 16;

/// All replicas of one store loop.
///
/// * `touched` holds every peer whose group may have something to hand out, perhaps twice, and nobody else is looked at.
/// * Messages to another peer id than the present one are dropped.
pub struct Store {
    pub(super) config: StoreConfig,
    /// Part of it, of all groups together.
    pub(super) group: Arc<GroupConfig>,
    pub(super) log: Log,
    pub(super) kv: Arc<dyn StateStore>,
    pub(super) registry: Registry,
    /// Boxed: a map's nodes are half empty, and a replica is large.
    pub(super) peers: Peers,
    pub(super) touched: Vec<RegionId>,
    /// The last batch.
    submitted: Seq,
    /// Regions that others think have a replica here, and that have none.
    pub(super) absent: Absent,
    pub(super) graves: Graves,
    pub(super) shard: Shard,
    pub(super) disk: DiskSpace,
    pub(super) watch: Watch,
    pub(super) sizes: Sizes,
    /// Effects of events, handed out by the next drain.
    pub(super) pending: Effects,
    /// For the rounds of all peers.
    room: Room,
}

impl Store {
    /// Brings up the replicas of one loop from what log and state store hold, after
    /// [`prepare`](super::prepare). Damaged ones (`quarantined`) come up fenced.
    pub fn open(
        config: StoreConfig,
        shard: Shard,
        log: Log,
        kv: Arc<dyn StateStore>,
        registry: &Registry,
        quarantined: &BTreeMap<RegionId, String>,
        now: Time,
    ) -> Result<Store> {
        let states: Vec<_> =
            kv.region_states().into_iter().filter(|s| shard.owns(s.region.id)).collect();
        let mut batch = LogBatch::new();
        let found: Vec<_> =
            states.iter().map(|state| life::agree(&log, state, &mut batch)).collect();
        let graves = Graves::open(&*kv, &log, |region| shard.owns(region), &mut batch);
        if !batch.is_empty() {
            let seq = log.submit(batch)?;
            log.wait(seq)?;
        }
        let group_config = Arc::new(config.group.clone());
        let mut groups = Vec::with_capacity(states.len());
        for (state, mut found) in states.into_iter().zip(found) {
            if let Some(damage) = quarantined.get(&state.region.id) {
                found.fence = Some(damage.clone());
            }
            // The first peer of a new cluster's region; the only one of any.
            let first = is_first(&state);
            let alone = state.region.peers.len() == 1;
            let campaign = match found.past {
                life::Past::None if first => Campaign::Now,
                life::Past::Some if alone => Campaign::Now,
                _ => Campaign::Later,
            };
            let group = life::group_of(&group_config, &log, &kv, &state, &found, campaign)?;
            groups.push((state, found, group));
        }
        let start = |(state, found, group)| {
            let peer = Peer::start(&config, &log, group, state, found, now);
            (peer.region.id, Box::new(peer))
        };
        let started: Vec<_> = groups.into_iter().map(start).collect();
        registry.insert_all(started.iter().map(|(id, peer)| (*id, peer.share.clone())));
        let mut peers = Peers::default();
        peers.insert_all(started);
        let touched: Vec<RegionId> = peers.iter().map(|(region, _)| region).collect();
        let liveness = match shard.index {
            0 => Liveness::new(&config, registry.neighbours(), now),
            _ => None,
        };
        let watch = Watch::new(touched.iter().copied().collect(), liveness);
        // They had applied their removal, and had not gone yet.
        let member = |peer: &Peer| peer.region.peer(peer.id).is_some();
        let removed: Vec<(RegionId, Epoch)> = peers
            .values()
            .filter(|peer| !member(peer))
            .map(|peer| (peer.region.id, peer.region.epoch))
            .collect();
        let mut store = Store {
            config,
            group: group_config,
            log,
            kv,
            registry: registry.clone(),
            peers,
            touched,
            submitted: Seq::default(),
            absent: Absent::default(),
            graves,
            shard,
            disk: DiskSpace::Enough,
            watch,
            sizes: Sizes::default(),
            pending: Effects::default(),
            room: Room::default(),
        };
        for (region, epoch) in removed {
            store.bury(region, epoch);
        }
        Ok(store)
    }

    /// Takes one event. What follows from it is handed out by the next [`drain`](Self::drain).
    pub fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::Tick => self.tick(now),
            Event::Beat { from, beat } => self.beat(now, from, beat),
            Event::Messages(envelopes) => {
                let mut envelopes = envelopes.into_iter();
                while let Some(envelope) = envelopes.next() {
                    self.peers.ahead(|n| envelopes.as_slice().get(n).map(|next| next.region));
                    // A snapshot comes with its data, as an event of its own.
                    if envelope.message.get_msg_type() != MessageType::MsgSnapshot {
                        self.message(now, envelope);
                    }
                }
            }
            Event::Propose(proposals) => self.propose_all(proposals),
            Event::Admin { token, region, admin } => self.admin(token, region, &admin),
            Event::Born(birth) => {
                if let Err(error) = self.born(now, birth) {
                    self.pending.fatal.get_or_insert(error);
                }
            }
            Event::Founded(births) => {
                if let Err(error) = self.founded(now, births) {
                    self.pending.fatal.get_or_insert(error);
                }
            }
            Event::Aside(aside) => {
                self.rouse(aside.region);
                if self.peers.get(&aside.region).is_some_and(|peer| peer.id == aside.peer) {
                    self.touch(aside.region, |peer, effects| peer.told(aside.word, effects));
                }
            }
            Event::Measured(done) => self.measured(done),
            Event::NotMeasured(region) => self.touch(region, |peer, _| peer.not_measured()),
            Event::Read(requests) => {
                for request in requests {
                    self.read(now, request);
                }
            }
            Event::Persisted(rounds) => {
                for (at, round) in rounds.iter().copied().enumerate() {
                    self.peers.ahead(|n| rounds.get(at + 1 + n).map(|next| next.region));
                    let Some(peer) = self.peers.get_mut(&round.region) else { continue };
                    peer.persisted(round);
                    if peer.wants_a_visit() {
                        self.touched.push(round.region);
                    }
                }
            }
            Event::Applied(regions) => self.applied(now, regions),
            Event::Flushed(cut) => self.flushed(&cut),
            Event::Unreachable(store) => self.unreachable(store),
            Event::SnapshotGranted { region, from, to } => {
                self.snapshot_granted(region, from, to);
            }
            Event::SnapshotSent { region, from, to, delivered } => {
                self.snapshot_sent(region, from, to, delivered);
            }
            Event::SnapshotReceived { envelope, file } => {
                self.snapshot_received(now, envelope, file)
            }
            Event::Transfer { token, region, to } => self.transfer(token, region, to),
            Event::StepAside(region) => self.step_aside(region),
            Event::Status(token) => {
                let status = self.status();
                self.pending.replies.push((token, Reply::Status(status)));
            }
            Event::DiskSpace(space) => self.disk = space,
        }
    }

    /// Hands out everything that follows from the events since the last drain: one visit to every touched
    /// peer, one batch for the log.
    pub fn drain(&mut self, now: Time, effects: &mut Effects) {
        debug_assert!(effects.is_empty(), "the previous round's effects were not performed");
        *effects = std::mem::take(&mut self.pending);
        for _ in 0..PASSES_MAX {
            // With the disk behind, everyone stays touched until it has caught up.
            if self.touched.is_empty() || effects.fatal.is_some() {
                break;
            }
            if !self.log.has_room() {
                // That may last.
                self.touched.sort_unstable();
                self.touched.dedup();
                break;
            }
            if let Err(error) = self.pass(now, effects) {
                effects.fatal = Some(error);
            }
        }
    }

    /// Whether a drain would find work.
    pub fn has_work(&self) -> bool {
        !self.touched.is_empty() || !self.pending.is_empty()
    }

    /// Where all replicas stand, by region.
    pub fn status(&self) -> Vec<RegionStatus> {
        self.peers.values().map(|peer| peer.status()).collect()
    }

    /// The replicas, for checkers and tools.
    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.peers.values()
    }

    fn pass(&mut self, now: Time, effects: &mut Effects) -> Result<()> {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        let mut pass = Pass::over(touched.len(), effects, &mut self.room);
        for (at, region) in touched.iter().copied().enumerate() {
            self.peers.ahead(|n| touched.get(at + 1 + n).copied());
            let Some(peer) = self.peers.get_mut(&region) else { continue };
            if let Some(vain) = peer.list_for_size(&self.config) {
                self.sizes.list(now, region, vain);
            }
            if peer.collect(now, &self.config, &mut pass) {
                if peer.asleep() {
                    // Nothing should be left to do in a sleeping group. If there is, it does not sleep.
                    peer.sit_up();
                    self.watch.awake.insert(region);
                }
                // Persisting nothing may have made more ready, and a limit may have held some back. (A visit to nobody's
                // use costs as much as any other: thousands of groups do not stay in the cache from one to the next.)
                if peer.wants_a_visit() {
                    self.touched.push(region);
                }
            } else if peer.nods_off(self.registry.neighbours()) {
                self.watch.lies_down(now, region, peer);
            }
        }
        let Pass { batch, acks, after, effects, .. } = pass;
        if !batch.is_empty() {
            self.submitted = self.log.submit(batch)?;
        }
        // What waits without a write of its own waits for an earlier one of its peer.
        if !acks.is_empty() {
            effects.after_persist.push(AfterPersist { seq: self.submitted, acks, send: after });
        }
        Ok(())
    }

    /// Runs `act` on a region's peer, if there is one, and marks it touched.
    pub(super) fn touch(&mut self, region: RegionId, act: impl FnOnce(&mut Peer, &mut Effects)) {
        if let Some(peer) = self.peers.get_mut(&region) {
            act(peer, &mut self.pending);
            self.touched.push(region);
        }
    }

    pub(super) fn message(&mut self, now: Time, envelope: Envelope) {
        if let Some(note) = envelope.note {
            return self.note(&envelope, note);
        }
        let Some(peer) = self.peers.get_mut(&envelope.region) else {
            return self.message_for_absent(now, &envelope);
        };
        if envelope.to != peer.id {
            return self.meant_for_another(&envelope);
        }
        if peer.removed.iter().any(|gone| gone.id == envelope.from) {
            return peer.send_away(envelope.from, envelope.from_store, &mut self.pending);
        }
        if peer.asleep() && peer.is_old(&envelope.message) {
            return;
        }
        if peer.runs() {
            let message = envelope.message;
            if hibernate::is_word(&message) {
                let known = peer.region.peer(envelope.from).is_some();
                let slept = peer.asleep();
                if known && peer.told_to_sleep(&self.config, self.registry.neighbours(), &message) {
                    if !slept {
                        self.watch.lies_down(now, envelope.region, peer);
                    }
                    return;
                }
            } else {
                peer.rouses();
            }
            if peer.asleep() {
                // Whoever answers the word to sleep does not agree.
                let answers = hibernate::answers_word(&message);
                let why = if answers { Wake::Returned(envelope.from_store) } else { Wake::Asked };
                peer.wake(&self.config, why);
                self.watch.awake.insert(envelope.region);
            }
            peer.meet(envelope.from, envelope.from_store);
            peer.step(now, &self.config, message, &mut self.pending);
        }
        if peer.wants_a_visit() {
            self.touched.push(envelope.region);
        }
    }

    /// Region by region, each region's in the order in which they came.
    fn propose_all(&mut self, mut proposals: Vec<Proposal>) {
        proposals.sort_by_key(|proposal| proposal.region);
        let mut proposals = proposals.into_iter().peekable();
        while let Some(first) = proposals.next() {
            let region = first.region;
            let next = || proposals.next_if(|next| next.region == region);
            self.propose(region, std::iter::once(first).chain(std::iter::from_fn(next)));
        }
    }

    fn propose(&mut self, region: RegionId, proposals: impl Iterator<Item = Proposal>) {
        self.rouse_for(region, Wake::Proposes);
        let full = self.disk == DiskSpace::Full;
        let Some(peer) = self.peers.get_mut(&region).filter(|_| !full) else {
            let path = || std::path::PathBuf::from("data directory");
            for Proposal { token, .. } in proposals {
                let error = match full {
                    true => Error::DiskFull { path: path() },
                    false => Error::RegionNotFound(region),
                };
                Peer::refuse(&mut self.pending, token, error);
            }
            return self.step_aside(region);
        };
        for Proposal { token, version, command, .. } in proposals {
            peer.propose(&self.config, token, version, command, &mut self.pending);
        }
        self.touched.push(region);
    }

    fn admin(&mut self, token: Token, region: RegionId, admin: &Admin) {
        self.rouse(region);
        let refusal = match self.disk {
            DiskSpace::Full => Error::DiskFull { path: "data directory".into() },
            DiskSpace::Enough if self.peers.contains_key(&region) => {
                if let Admin::PrepareMerge(prepare) = admin
                    && let Err(error) = self.knows_target(prepare)
                {
                    return self.pending.replies.push((token, Reply::Admin(Err(error))));
                }
                let config = self.config.clone();
                let neighbours = self.registry.neighbours().clone();
                return self.touch(region, |peer, effects| {
                    peer.propose_admin(&config, &neighbours, token, admin, effects);
                });
            }
            DiskSpace::Enough => Error::RegionNotFound(region),
        };
        self.pending.replies.push((token, Reply::Admin(Err(refusal))));
    }

    fn read(&mut self, now: Time, request: ReadRequest) {
        let ReadRequest { token, region, version, level } = request;
        self.rouse(region);
        if !self.peers.contains_key(&region) {
            let refusal = Reply::Read(Err(Error::RegionNotFound(region)));
            return self.pending.replies.push((token, refusal));
        }
        self.touch(region, |peer, effects| peer.read(now, token, version, level, effects));
    }

    fn applied(&mut self, now: Time, regions: Vec<Applied>) {
        let mut regions = regions.into_iter();
        while let Some(mut applied) = regions.next() {
            self.peers.ahead(|n| regions.as_slice().get(n).map(|next| next.region));
            if let Some(mut news) = applied.news.take() {
                let made = self.absent.restored(&applied, &mut news);
                self.bury_absorbed(&mut news);
                if let Some(state) = made {
                    self.made(now, state);
                    continue;
                }
                if news.destroyed {
                    self.destroyed(applied.region, applied.peer);
                    continue;
                }
                self.reshaped(&applied, &mut news);
                applied.news = Some(news);
            }
            let Some(peer) = self.peers.get_mut(&applied.region) else { continue };
            let region = applied.region;
            peer.applied(applied, &self.config, &mut self.pending);
            if let Some(vain) = peer.list_for_size(&self.config) {
                self.sizes.list(now, region, vain);
            }
            if peer.wants_a_visit() {
                self.touched.push(region);
            }
            if peer.region.peer(peer.id).is_none() {
                let (region, epoch) = (peer.region.id, peer.region.epoch);
                self.bury(region, epoch);
            }
        }
    }

    /// The registry learns a region's new shape, and its children are born.
    fn reshaped(&mut self, applied: &Applied, news: &mut News) {
        let births = std::mem::take(&mut news.births);
        let Some(peer) = self.peers.get_mut(&applied.region) else { return };
        // (A replica that stands still for a merge has them from the target's log, which says so.)
        if (news.reshaped.is_some() || !births.is_empty()) && peer.lent.is_none() {
            // A child that has sworn anything must be found again after a crash, by replay of the split: a
            // parent that does not know it to be committed may be overtaken by a snapshot instead, and
            // where voters are few the child's group would wait for that vote for ever (seed 304). And who forgot that
            // another was removed would wait for the vote of one that is gone.
            let mut batch = LogBatch::new();
            peer.record_commit(applied.position.index, &mut batch);
            if !batch.is_empty()
                && let Err(error) = self.log.submit(batch)
            {
                self.pending.fatal.get_or_insert(error);
            }
        }
        let lead = peer.runs() && peer.group.leads();
        let campaign = if lead { Campaign::Now } else { Campaign::Later };
        if let Some(state) = &news.restored {
            self.registry.reshape(&state.region, std::iter::empty());
        }
        if let Some(region) = &news.reshaped {
            self.registry.reshape(region, births.iter().map(|born| &born.region));
        }
        self.pending.births.extend(births.into_iter().map(|state| Birth { state, campaign }));
    }

    fn flushed(&mut self, cut: &Cut) {
        if let Err(error) = self.flushed_graves(cut) {
            self.pending.fatal.get_or_insert(error);
        }
        for (region, id, position) in cut {
            let Some(peer) = self.peers.get_mut(region).filter(|peer| peer.id == *id) else {
                continue;
            };
            peer.flushed(position.index);
            if peer.compactable() {
                self.touched.push(*region);
            }
            if peer.sleeps_on_a_log(&self.config) {
                // It fell asleep before it looked.
                peer.wake(&self.config, Wake::Proposes);
                peer.propose_compaction(&self.config);
                self.watch.awake.insert(*region);
                self.touched.push(*region);
            }
        }
    }

    fn unreachable(&mut self, store: StoreId) {
        for region in &self.watch.awake {
            let Some(peer) = self.peers.get_mut(region) else { continue };
            let Some(there) = peer.region.peer_on(store) else { continue };
            if peer.runs() && peer.group.leads() {
                peer.group.unreachable(there.id);
                self.touched.push(*region);
            }
        }
    }

    fn snapshot_granted(&mut self, region: RegionId, from: PeerId, to: PeerId) {
        self.rouse(region);
        if !self.peers.contains_key(&region) {
            let errand = SnapshotErrand { region, from, to };
            self.pending.snapshot_words.push(SnapshotWord::Declined(errand));
        }
        self.touch(region, |peer, effects| peer.snapshot_granted(from, to, effects));
    }

    fn snapshot_sent(&mut self, region: RegionId, from: PeerId, to: PeerId, delivered: Delivered) {
        self.rouse(region);
        self.touch(region, |peer, _| {
            if peer.id == from {
                peer.snapshot_sent(to, delivered);
            }
        });
    }

    fn snapshot_received(&mut self, now: Time, envelope: Envelope, file: SnapshotFile) {
        let meta = envelope.message.get_snapshot().get_metadata();
        let position = LogPosition { index: meta.index, term: meta.term };
        let region = envelope.region;
        let Some(peer) = self.peers.get(&region) else {
            return self.snapshot_for_absent(&envelope, file);
        };
        if peer.id != envelope.to {
            self.meant_for_another(&envelope);
            return self.pending.discard.push(file);
        }
        let (runs, waits) = (peer.runs(), peer.waits_for_source());
        let own = peer.region.range.clone();
        let head = codec::region::decode_head(&envelope.message.get_snapshot().data);
        let Some(head) = head.ok().filter(|_| runs && !waits) else {
            return self.pending.discard.push(file);
        };
        let swallow = self.merged_into(&head);
        let cleared = self.cleared_by(&head, Some(own), &swallow);
        if !self.ask_to_yield(&swallow) || !self.registry.is_free(region, &cleared, &swallow) {
            return self.pending.discard.push(file);
        }
        self.message(now, envelope);
        self.touch(region, |peer, effects| {
            effects.discard.extend(peer.keep_received(Received { position, file, swallow }));
        });
    }

    /// Gives a region to others while there is no space for writes here.
    fn step_aside(&mut self, region: RegionId) {
        if self.disk == DiskSpace::Full {
            self.rouse(region);
            let config = self.config.clone();
            self.touch(region, |peer, effects| peer.step_aside(&config, effects));
        }
    }

    fn transfer(&mut self, token: Token, region: RegionId, to: Option<StoreId>) {
        self.rouse(region);
        let Some(peer) = self.peers.get_mut(&region) else {
            let nobody = Reply::Transfer(Err(Error::RegionNotFound(region)));
            return self.pending.replies.push((token, nobody));
        };
        peer.transfer(&self.config, token, to, &mut self.pending);
        self.touched.push(region);
    }
}

#[cfg(test)]
mod tests;
