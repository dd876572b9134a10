//! Replicas that are not here: yet, or any more, or never.
//!
//! A region comes to a store in two ways. It is cut out of one that lives here ([`Store::born`]), or its leader
//! sends a snapshot of it. The second must never overtake the first: a snapshot is refused while a region that
//! lives here still holds keys of it, and one map under one lock, the [`Registry`](crate::region::share::Registry),
//! says who holds what.
//!
//! **An absent replica has no state.** It votes for nobody, promises nothing and confirms no read. It answers
//! its leader's appends by "I have nothing", so that the leader sends a snapshot: but only after an election
//! timeout, for a split may be about to bring it. A request for a vote is kept until the replica is born.
//!
//! **Made from a snapshot.** The data goes into the state store first, durably, as in every restore; then the
//! replica starts exactly as after a restart that found a state store ahead of its log. So a log that the group
//! left behind in an earlier life (the split was applied and not flushed, and then the parent was overtaken by a
//! snapshot) counts: the votes in it hold, and entries that this replica once acknowledged stay, if the
//! snapshot lies among them.

use super::round::Store;
use crate::codec;
use crate::error::Result;
use crate::log::LogBatch;
use crate::raft::Envelope;
use crate::region::effects::*;
use crate::region::life;
use crate::region::peer::Peer;
use crate::region::snapshot::SnapshotFile;
use crate::types::*;
use ::raft::eraftpb::{Message, MessageType};
use std::collections::{BTreeMap, BTreeSet};

/// Regions without a replica here that are remembered; of more, the first are forgotten.
const ABSENT_MAX: usize = 1 << 12;

/// What is known of replicas that are not here.
#[derive(Default, Debug)]
pub struct Absent {
    regions: BTreeMap<RegionId, Missed>,
    /// Being made from a snapshot, and for which peer.
    making: BTreeMap<RegionId, PeerId>,
}

#[derive(Debug)]
struct Missed {
    /// When somebody first spoke to it.
    since: Time,
    /// The last request for its vote.
    request: Option<Envelope>,
}

impl Absent {
    /// The state of a replica whose snapshot has just been restored, if it was made here.
    pub(super) fn restored(&mut self, applied: &Applied, news: &mut News) -> Option<RegionState> {
        if self.making.get(&applied.region) != Some(&applied.peer) {
            return None;
        }
        let state = news.restored.take()?;
        self.making.remove(&applied.region);
        Some(state)
    }

    /// A planted bug of the simulator's.
    #[cfg(any(test, feature = "sim"))]
    pub(super) fn drop_requests(&mut self) {
        self.regions.values_mut().for_each(|missed| missed.request = None);
    }

    /// Whether a replica of the region is being made from a snapshot.
    pub(super) fn is_making(&self, region: RegionId) -> bool {
        self.making.contains_key(&region)
    }
}

impl Store {
    /// A message for a replica that is not here.
    pub(super) fn message_for_absent(&mut self, now: Time, envelope: &Envelope) {
        if self.graves.refuse(envelope.region, envelope.to) {
            return;
        }
        let missed = self.absent.regions.entry(envelope.region);
        let missed = missed.or_insert(Missed { since: now, request: None });
        match envelope.message.get_msg_type() {
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => {
                missed.request = Some(envelope.clone());
            }
            kind => {
                let late = now.since(missed.since) >= self.config.election_timeout();
                // What is being made of a snapshot has nothing yet, and soon all of it: said now, "nothing" would bring
                // a second one.
                let making = self.absent.making.contains_key(&envelope.region);
                let speaks = late && !(making && kind == MessageType::MsgAppend);
                if speaks && let Some(answer) = nothing_here(kind, &envelope.message) {
                    let answer = Envelope {
                        region: envelope.region,
                        from: envelope.to,
                        to: envelope.from,
                        from_store: self.config.store,
                        message: answer,
                        note: None,
                    };
                    self.pending.send_now.push(envelope.from_store, answer);
                }
            }
        }
        while self.absent.regions.len() > ABSENT_MAX {
            self.absent.regions.pop_first();
        }
    }

    /// A snapshot for a replica that is not here: it is made from it, unless its keys are another's here.
    pub(super) fn snapshot_for_absent(&mut self, envelope: &Envelope, file: SnapshotFile) {
        let snapshot = envelope.message.get_snapshot();
        let meta = snapshot.get_metadata();
        let applied = LogPosition { index: meta.index, term: meta.term };
        let head = codec::region::decode_head(&snapshot.data).ok().filter(|head| {
            let own = head.region.peer(envelope.to).is_some_and(|p| p.store == self.config.store);
            own && head.region.id == envelope.region && applied.index > 0 && applied.term > 0
        });
        let dead = self.graves.refuse(envelope.region, envelope.to);
        let Some(head) = head.filter(|_| !dead) else { return self.pending.discard.push(file) };
        let swallow = self.merged_into(&head);
        let id = head.region.id;
        let ready = !self.absent.making.contains_key(&id) && self.ask_to_yield(&swallow);
        let cleared = self.cleared_by(&head, None, &swallow);
        let free = ready && self.registry.is_free(id, &cleared, &swallow);
        if !free || !self.registry.claim(&head.region, &swallow) {
            return self.pending.discard.push(file);
        }
        self.absent.making.insert(id, envelope.to);
        let state = head.state(envelope.to, applied);
        self.pending.apply.push(ApplyTask::Restore { state: Box::new(state), file, swallow });
    }

    /// The data of a snapshot is in place.
    pub(super) fn made(&mut self, now: Time, state: RegionState) {
        let birth = Birth { state, campaign: Campaign::Later };
        if let Err(error) = self.born(now, birth) {
            self.pending.fatal.get_or_insert(error);
        }
    }

    /// Starts a replica whose state the state store holds: from what the log holds, if it lived before.
    pub(super) fn born(&mut self, now: Time, birth: Birth) -> Result<()> {
        let Birth { state, campaign } = birth;
        let region = state.region.id;
        if self.peers.contains_key(&region) || self.absent.making.contains_key(&region) {
            return Ok(());
        }
        if self.graves.refuse(region, state.peer) {
            // Removed before it was heard of here: it goes as it came.
            let (peer, epoch) = (state.peer, state.region.epoch);
            self.pending.apply.push(ApplyTask::Destroy { region, peer, epoch });
            return Ok(());
        }
        self.graves.reopen(region);
        let mut batch = LogBatch::new();
        let found = life::agree(&self.log, &state, &mut batch);
        if !batch.is_empty() {
            // Whatever the replica promises is written later, and so is durable no earlier.
            self.log.submit(batch)?;
        }
        let alone = state.region.peers.len() == 1;
        let campaign = match found.past {
            life::Past::Some if !alone => Campaign::Later,
            _ => campaign,
        };
        let group = life::group_of(&self.group, &self.log, &self.kv, &state, &found, campaign)?;
        let peer = Peer::start(&self.config, &self.log, group, state, found, now);
        self.registry.insert(region, peer.share.clone());
        self.peers.insert(region, Box::new(peer));
        self.touched.push(region);
        self.watch.awake.insert(region);
        self.take_up_request(now, region);
        Ok(())
    }

    /// A request for a vote that came before the replica was there.
    fn take_up_request(&mut self, now: Time, region: RegionId) {
        let missed = self.absent.regions.remove(&region);
        if let Some(request) = missed.and_then(|missed| missed.request) {
            self.message(now, request);
        }
    }

    /// Starts the replicas that a new cluster begins with: none of them has a past.
    pub(super) fn founded(&mut self, now: Time, births: Vec<Birth>) -> Result<()> {
        let mut batch = LogBatch::new();
        let found = births.iter().map(|birth| life::agree(&self.log, &birth.state, &mut batch));
        let found: Vec<_> = found.collect();
        if !batch.is_empty() {
            // As in every birth: whatever the replicas promise is written later.
            self.log.submit(batch)?;
        }
        let mut groups = Vec::with_capacity(births.len());
        for (Birth { state, campaign }, found) in births.into_iter().zip(found) {
            let group = life::group_of(&self.group, &self.log, &self.kv, &state, &found, campaign)?;
            groups.push((state, found, group));
        }
        let start = |(state, found, group)| {
            let peer = Peer::start(&self.config, &self.log, group, state, found, now);
            (peer.region.id, Box::new(peer))
        };
        let peers: Vec<_> = groups.into_iter().map(start).collect();
        self.registry.insert_all(peers.iter().map(|(id, peer)| (*id, peer.share.clone())));
        let regions: BTreeSet<RegionId> = peers.iter().map(|(id, _)| *id).collect();
        self.peers.insert_all(peers);
        self.touched.extend(&regions);
        self.watch.awake.append(&mut regions.clone());
        regions.into_iter().for_each(|region| self.take_up_request(now, region));
        Ok(())
    }
}

/// What a leader is told by a replica that is not there: that it lives, without confirming any read, and that
/// it has no entry.
fn nothing_here(kind: MessageType, message: &Message) -> Option<Message> {
    let mut answer =
        Message { from: message.to, to: message.from, term: message.term, ..Default::default() };
    match kind {
        MessageType::MsgHeartbeat => answer.set_msg_type(MessageType::MsgHeartbeatResponse),
        MessageType::MsgAppend => {
            answer.set_msg_type(MessageType::MsgAppendResponse);
            answer.reject = true;
            answer.index = message.index;
        }
        _ => return None,
    }
    Some(answer)
}
