//! Farewell: how a replica goes for good, and how its region knows that it has.
//!
//! **Going.** A replica learns that it is no member any more in one of three ways: it applies its own removal; a member,
//! or the leader that asks around, says so ([`Note::Gone`]); somebody speaks to a later replica of its region on its
//! store. From then on it takes part in nothing (`Peer::leave_life`). Behind everything that it has still to
//! apply goes [`ApplyTask::Destroy`](super::effects::ApplyTask): in ONE batch of the state store its data is
//! deleted and its state becomes a **tombstone**, the largest dead replica of the region here. Then the range is free,
//! and the store forgets the replica.
//!
//! **Staying gone.** A tombstone refuses every replica that is not larger: late messages, late snapshots, and a birth by a
//! split that is applied only now; a larger one is a new member. The log of the dead one is cleared when a
//! flush covers the tombstone, never before: until then a crash may bring the replica back, to die again. The state
//! record in the log names its replica, so a later one does not inherit a vote.
//!
//! **Being missed.** The region lists who was removed. Its leader asks them, more and more rarely, and each store
//! answers [`Note::Buried`] once its tombstone is durable; only then is the replica struck from the list. A store that is
//! silent is asked for as long as the group is awake, and again when it comes back: the leader sleeps meanwhile, and is
//! woken (see [`hibernate`](super::hibernate)). One that has left the cluster never speaks to anybody again: what it held
//! is as good as buried.

use super::config::StoreConfig;
use super::effects::{Effects, Reply};
use super::neighbours::Neighbours;
use super::peer::Peer;
use crate::codec::admin::Admin;
use crate::error::Error;
use crate::raft::{Envelope, Note};
use crate::types::{Departed, Epoch, PeerId, RegionId, StoreId, Time};
use ::raft::eraftpb::Message;

/// Later than every shape: of a region that was merged nothing is left.
const LATER: Epoch = Epoch { conf_ver: u64::MAX, version: u64::MAX };

/// The longest pause between two questions, in election timeouts.
pub(crate) const PAUSE_MAX: u64 = 4;

/// When somebody is asked next: more and more rarely.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Asking {
    due: u64,
    pause: u64,
}

impl Asking {
    /// Nobody was asked yet.
    pub const NEVER: Asking = Asking { due: 0, pause: 0 };

    /// Whether it is time; then the next time is set.
    pub fn is_due(&mut self, ticks: u64, config: &StoreConfig) -> bool {
        if ticks < self.due {
            return false;
        }
        let (least, most) = (config.group.heartbeat_ticks, config.group.election_ticks);
        let pause = (self.pause * 2).clamp(least as u64, most as u64 * PAUSE_MAX);
        *self = Asking { due: ticks + pause, pause };
        true
    }

    /// Whether it was asked so often that whoever could answer would have.
    pub fn was_in_vain(&self, config: &StoreConfig) -> bool {
        self.pause >= config.group.election_ticks as u64 * PAUSE_MAX
    }
}

impl Peer {
    /// A note to a replica of a region, this one or another.
    pub(super) fn note(&self, region: RegionId, to: PeerId, note: Note) -> Envelope {
        Envelope {
            region,
            from: self.id,
            to,
            from_store: self.store,
            message: Message::default(),
            note: Some(note),
        }
    }

    /// Tells a store that its replica is no member any more.
    pub(crate) fn send_away(&self, peer: PeerId, store: StoreId, effects: &mut Effects) {
        let (region, epoch) = (self.region.id, self.region.epoch);
        let gone = Note::Gone { epoch, by: region };
        effects.send_now.push(store, self.note(region, peer, gone));
    }

    /// The list of the removed has changed.
    pub(crate) fn set_removed(&mut self, removed: Vec<Departed>) {
        self.removed = removed;
        self.asking = Asking::default();
    }

    /// A leader asks those on the list whether they are gone.
    pub(crate) fn ask_removed(
        &mut self,
        config: &StoreConfig,
        neighbours: &Neighbours,
        effects: &mut Effects,
    ) {
        #[cfg(any(test, feature = "sim"))]
        if self.planted.removed_asked_late && !self.ticks.is_multiple_of(600) {
            return;
        }
        if self.removed.is_empty() || !self.group.leads() || !self.asking.is_due(self.ticks, config)
        {
            return;
        }
        let by = self.region.id;
        let left = neighbours.left_of(self.removed.iter().map(|gone| gone.store));
        let buried = self.removed.iter().filter(|gone| left.contains(&gone.store));
        let peers: Vec<PeerId> = buried.map(|gone| gone.id).collect();
        if !peers.is_empty() {
            // Not proposed: next time.
            let _ = self.group.propose(Admin::Forget { peers }.encode());
        }
        for gone in self.removed.iter().filter(|gone| !left.contains(&gone.store)) {
            if gone.store != self.store {
                neighbours.ask(gone.store);
            }
            if gone.region == by {
                self.send_away(gone.id, gone.store, effects);
                continue;
            }
            let note = match self.region.peer_on(gone.store) {
                // Its data are to be taken over by that one.
                Some(_) => Note::Ask { by },
                None => Note::Gone { epoch: LATER, by },
            };
            effects.send_now.push(gone.store, self.note(gone.region, gone.id, note));
        }
    }

    /// A removed replica is gone for good. Not proposed: it will be asked again.
    pub(crate) fn buried(&mut self, peer: PeerId) {
        if self.runs() && self.group.leads() && self.removed.iter().any(|gone| gone.id == peer) {
            let _ = self.group.propose(Admin::Forget { peers: vec![peer] }.encode());
        }
    }

    /// The replica is to be destroyed: it takes part in nothing any more, and everyone who waits is told.
    pub(crate) fn leave_life(&mut self, effects: &mut Effects) {
        self.leaving = true;
        self.share.move_on();
        self.drop_held(effects);
        self.fall_silent(effects);
    }

    /// Everyone who waits is told: the replica answers nobody any more.
    pub(super) fn fall_silent(&mut self, effects: &mut Effects) {
        self.call_off_snapshots(effects);
        self.share.set_lease(Time(0));
        self.share.set_leader(None);
        for token in self.proposals.take_pending() {
            effects.replies.push((token, Reply::Written(Err(self.fenced()))));
        }
        for token in self.proposals.abandon() {
            let what = "the replica was removed";
            effects.replies.push((token, Reply::Written(Err(Error::Ambiguous { what }))));
        }
        for token in self.reads.abandon() {
            effects.replies.push((token, Reply::Read(Err(self.fenced()))));
        }
        self.end_handing(Err(self.fenced()), effects);
        effects.discard.extend(self.received.take().map(|received| received.file));
    }
}
