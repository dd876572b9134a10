//! Snapshots that leave: when a leader may make one, what it pins, when it is called off.
//!
//! 1. **Wanted.** Raft finds a follower behind the log and asks the storage for a snapshot. The storage has none: it
//!    notes the wish, and the round tells the shell ([`SnapshotWord::Wanted`]). Raft asks again at every answer to
//!    a heartbeat, so a wish may be forgotten by anybody.
//! 2. **Granted.** The shell has a place of its own and a slot at the receiver, and says so
//!    (`snapshot_granted`). Only now a view of the state store is taken, if raft still
//!    wants it; otherwise the slot goes back ([`SnapshotWord::Declined`]). So a thousand groups that
//!    wait for their turn hold nothing.
//! 3. **Flying.** At most one for each follower. While it flies, and until the follower has acknowledged its
//!    index, the leader proposes no compaction above that index: the follower goes on from the log. Both are
//!    bounded by `snapshot_time_max`.
//! 4. **Ended.** The shell reports once, whatever happened, and raft is told. Before that the leader calls the
//!    flight off ([`SnapshotWord::CalledOff`]) when it leads no more, when the receiver is no member any more or
//!    has got further by itself, or when it takes too long. Until the shell has reported no other flight
//!    to that follower begins: a report is never taken for another flight's.

use super::config::StoreConfig;
use super::effects::Claim;
use super::effects::{Delivered, Effects, SnapshotErrand, SnapshotWord};
use super::peer::Peer;
use crate::types::{Departed, PeerId};
use ::raft::SnapshotStatus;
use std::collections::BTreeMap;

/// The snapshots of one leader, by receiver.
#[derive(Default, Debug)]
pub(crate) struct Flights(BTreeMap<PeerId, Flight>);

#[derive(Clone, Copy, Debug)]
struct Flight {
    /// The snapshot's index.
    index: u64,
    /// The leader's term when it began.
    term: u64,
    /// The tick at which its stage began.
    since: u64,
    stage: Stage,
    /// Whether the log above it is kept for it.
    pins: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// On its way.
    Flying,
    /// Not wanted any more; the shell has not reported its end yet.
    CalledOff,
    /// Delivered; the receiver has not acknowledged its index yet.
    Landed,
}

impl Flights {
    /// Whether the shell has nothing to report.
    pub(crate) fn is_idle(&self) -> bool {
        self.0.values().all(|flight| flight.stage == Stage::Landed)
    }

    fn may_begin(&self, to: PeerId) -> bool {
        self.0.get(&to).is_none_or(|flight| flight.stage == Stage::Landed)
    }

    /// The index above which the log must stay.
    pub(crate) fn pin(&self) -> Option<u64> {
        let pins = |flight: &&Flight| flight.pins && flight.stage != Stage::CalledOff;
        self.0.values().filter(pins).map(|flight| flight.index).min()
    }

    fn begin(&mut self, to: PeerId, index: u64, term: u64, since: u64, pins: bool) {
        self.0.insert(to, Flight { index, term, since, stage: Stage::Flying, pins });
    }

    /// The shell has reported.
    fn ended(&mut self, to: PeerId, delivered: Delivered, now: u64) {
        match (delivered, self.0.get_mut(&to)) {
            (Delivered::Whole, Some(flight)) if flight.stage == Stage::Flying => {
                (flight.stage, flight.since) = (Stage::Landed, now);
            }
            _ => drop(self.0.remove(&to)),
        }
    }

    /// Judges every flight; gives those to be called off now.
    fn review(&mut self, now: u64, judge: impl Fn(PeerId, &Flight) -> Fate) -> Vec<PeerId> {
        let mut off = Vec::new();
        self.0.retain(|to, flight| match (flight.stage, judge(*to, flight)) {
            (Stage::Flying, Fate::Over) => {
                (flight.stage, flight.since) = (Stage::CalledOff, now);
                off.push(*to);
                true
            }
            (Stage::Landed, Fate::Over) => false,
            _ => true,
        });
        off
    }

    /// Forgets what was called off so many ticks ago: no report comes any more.
    fn forget(&mut self, now: u64, most: u64) {
        self.0.retain(|_, flight| {
            flight.stage != Stage::CalledOff || now.saturating_sub(flight.since) < most
        });
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Needed,
    Over,
}

impl Peer {
    fn errand(&self, to: PeerId) -> SnapshotErrand {
        SnapshotErrand { region: self.region.id, from: self.id, to }
    }

    /// The index above which the leader keeps its log for a snapshot under way; for checkers.
    pub fn pin(&self) -> Option<u64> {
        self.flights.pin()
    }

    /// What compaction is told of it.
    #[cfg(not(any(test, feature = "sim")))]
    pub(super) fn pinned_at(&self) -> Option<u64> {
        self.pin()
    }

    /// With the simulator's planted bug: nothing.
    #[cfg(any(test, feature = "sim"))]
    pub(super) fn pinned_at(&self) -> Option<u64> {
        self.pin().filter(|_| !self.planted.pin_ignored)
    }

    /// Tells the shell to whom raft wants to send a snapshot.
    pub(crate) fn tell_wishes(&mut self, effects: &mut Effects) {
        for to in self.group.storage().take_wanted() {
            let Some(store) = self.region.peer(to).map(|peer| peer.store) else { continue };
            if self.flights.may_begin(to) {
                let errand = self.errand(to);
                let other = |gone: &&Departed| gone.store == store && gone.region != self.region.id;
                let claim = Claim {
                    range: self.region.range.clone(),
                    merged: self.removed.iter().filter(other).copied().collect(),
                };
                effects.snapshot_words.push(SnapshotWord::Wanted { errand, store, claim });
            }
        }
    }

    /// There is a slot for a snapshot: it is made now, or never.
    pub(crate) fn snapshot_granted(&mut self, from: PeerId, to: PeerId, effects: &mut Effects) {
        // Before it has applied an entry of its term, compactions that its predecessor proposed may lie ahead: the log
        // above the snapshot would be cut off under it. But where it never will without this follower, there is nothing to
        // wait for. (Found by seed 85 of the simulator's regions: a store had lost its directory, the other follower needed a
        // snapshot, and the new leader none of whose entries could be committed made none.)
        let pins = self.group.applied_in_term();
        let ours = from == self.id && self.runs() && (pins || self.needs(to));
        let made = match ours && self.flights.may_begin(to) {
            true => {
                self.group.storage().allow(Some(to));
                self.group.feed(to);
                self.group.storage().allow(None);
                self.group.storage().made(to)
            }
            false => None,
        };
        match made {
            Some(index) => {
                self.flights.begin(to, index, self.group.status().term, self.ticks, pins);
            }
            None => {
                let errand = SnapshotErrand { region: self.region.id, from, to };
                effects.snapshot_words.push(SnapshotWord::Declined(errand));
            }
        }
    }

    /// Whether nothing is committed without this follower, as far as the leader knows who is alive and can be fed from its
    /// log.
    fn needs(&self, to: PeerId) -> bool {
        let without = |peer: &&crate::types::Peer| peer.id != to;
        !self.has_quorum(&self.region, without)
    }

    /// A snapshot that raft has asked for cannot be handed out.
    pub(crate) fn snapshot_unsendable(&mut self, to: PeerId, effects: &mut Effects) {
        self.flights.ended(to, Delivered::Failed, self.ticks);
        effects.snapshot_words.push(SnapshotWord::Declined(self.errand(to)));
    }

    /// A flight has ended.
    pub(crate) fn snapshot_sent(&mut self, to: PeerId, delivered: Delivered) {
        self.flights.ended(to, delivered, self.ticks);
        let status = match delivered {
            Delivered::Whole => SnapshotStatus::Finish,
            Delivered::Failed => SnapshotStatus::Failure,
        };
        if self.runs() {
            self.group.snapshot_sent(to, status);
        }
    }

    /// Leadership is gone: what flies is called off, what has landed pins nothing any more.
    pub(crate) fn call_off_snapshots(&mut self, effects: &mut Effects) {
        let off = self.flights.review(self.ticks, |_, _| Fate::Over);
        self.call_off(off, effects);
    }

    fn call_off(&mut self, off: Vec<PeerId>, effects: &mut Effects) {
        for to in off {
            let errand = self.errand(to);
            // It has not left: raft gave the leadership up with the message in hand, and no report will come.
            if self.group.storage().take_view(to).is_some() {
                self.flights.ended(to, Delivered::Failed, self.ticks);
                effects.snapshot_words.push(SnapshotWord::Declined(errand));
            } else {
                effects.snapshot_words.push(SnapshotWord::CalledOff(errand));
            }
        }
    }

    /// What a tick does about flights.
    pub(crate) fn tick_snapshots(&mut self, config: &StoreConfig, effects: &mut Effects) {
        if self.flights.0.is_empty() {
            return;
        }
        let (leads, term) = (self.runs() && self.group.leads(), self.group.status().term);
        let (now, group, region) = (self.ticks, &self.group, &self.region);
        let (most, grace) = (config.snapshot_ticks_max(), config.group.election_ticks as u64);
        let judge = |to: PeerId, flight: &Flight| {
            let age = now.saturating_sub(flight.since);
            let there = group.matched(to).is_some_and(|matched| matched >= flight.index);
            // The report of a delivery may be on its way behind the acknowledgement.
            let there = there && (flight.stage == Stage::Landed || age > grace);
            let member = region.peer(to).is_some();
            match !leads || flight.term != term || !member || there || age >= most {
                true => Fate::Over,
                false => Fate::Needed,
            }
        };
        let off = self.flights.review(now, judge);
        self.call_off(off, effects);
        self.flights.forget(now, most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PeerId = PeerId(1);
    const B: PeerId = PeerId(2);

    #[test]
    fn a_pin_holds_from_the_view_to_the_acknowledgement() {
        let mut flights = Flights::default();
        assert!(flights.is_idle() && flights.pin().is_none() && flights.may_begin(A));
        flights.begin(A, 40, 3, 0, true);
        flights.begin(B, 30, 3, 0, true);
        assert!(!flights.is_idle() && !flights.may_begin(A));
        assert_eq!(flights.pin(), Some(30));
        flights.ended(B, Delivered::Whole, 7);
        assert_eq!(flights.pin(), Some(30), "not acknowledged yet");
        assert!(flights.may_begin(B), "it was in vain, perhaps");
        let acknowledged = |to: PeerId, _: &Flight| if to == B { Fate::Over } else { Fate::Needed };
        assert!(flights.review(8, acknowledged).is_empty());
        assert_eq!(flights.pin(), Some(40));
        flights.ended(A, Delivered::Failed, 9);
        assert!(flights.pin().is_none() && flights.is_idle());
    }

    #[test]
    fn what_is_called_off_pins_nothing_and_blocks_the_next_until_it_is_reported() {
        let mut flights = Flights::default();
        flights.begin(A, 40, 3, 0, true);
        assert_eq!(flights.review(5, |_, _| Fate::Over), [A]);
        assert!(flights.review(6, |_, _| Fate::Over).is_empty(), "said once");
        flights.forget(14, 10);
        assert!(flights.pin().is_none() && !flights.may_begin(A) && !flights.is_idle());
        flights.ended(A, Delivered::Whole, 15);
        assert!(flights.may_begin(A) && flights.is_idle());
        flights.begin(A, 50, 3, 16, false);
        assert!(flights.pin().is_none(), "it was sent before the log could be kept");
        flights.review(17, |_, _| Fate::Over);
        flights.forget(27, 10);
        assert!(flights.may_begin(A), "nobody reports any more");
    }
}
