//! Who is ticked, and who is woken: a store looks at its awake groups only.
//!
//! `awake` holds every replica that takes part in time; the others cost their memory. The protocol by which a
//! group comes to sleep is told in [`hibernate`](crate::region::hibernate), how nodes know of each other in
//! `liveness`. Here is what a loop does with both: at each tick it looks whether a neighbour was lost or
//! came back, lists whom that wakes, and wakes at most [`WAKE_CHUNK`] of them. (A list, because ten thousand
//! campaigns in one round would be late, all of them.) What somebody waits for is woken at once.
//!
//! A tick costs a replica little, and fetching the replica from memory ten times that. Where thousands are awake they take turns: each
//! is looked at every few ticks, never less often than its heartbeats are due, and lives through all of them then. So it may be
//! late by as much, and nothing else changes: the promises that leases rest on go by the clock.

use super::liveness::Liveness;
use super::round::Store;
use crate::codec::beat::Beat;
use crate::region::hibernate::Wake;
use crate::region::neighbours::{End, Neighbour, chunk_of};
use crate::region::peer::Peer;
use crate::types::{RegionId, StoreId, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Groups that one tick wakes of those that a neighbour's coming or going concerns.
const WAKE_CHUNK: usize = 256;
/// Groups that one tick takes the memory of: where thousands fall asleep at once the round is not late for it.
const GIVE_BACK_CHUNK: usize = 256;
/// A loop without beats looks around at least this often, though nobody is awake.
const STILL_MAX: Duration = Duration::from_secs(1);
/// Every this many ticks a leader looks at its log's size.
const COMPACTION_CHECK_TICKS: u64 = 8;

/// Who is awake.
///
/// * A replica that does not sleep is in `awake`, unless it was fenced off.
#[derive(Default, Debug)]
pub(super) struct Watch {
    pub awake: BTreeSet<RegionId>,
    /// So far.
    ticks: u64,
    /// Those that lay down, when, and have not given their memory back.
    ///
    /// * Each is in it once, as the replica says. Who is not asleep when its time comes is listed again when it lies down.
    dozing: BTreeSet<(Time, RegionId)>,
    /// To be woken by the next ticks.
    due: BTreeMap<RegionId, Wake>,
    /// What was heeded of each neighbour, and of all of them.
    heeded: BTreeMap<StoreId, Neighbour>,
    changes: u64,
    /// Of the first loop.
    pub liveness: Option<Liveness>,
}

impl Watch {
    /// Everyone is awake.
    pub fn new(awake: BTreeSet<RegionId>, liveness: Option<Liveness>) -> Watch {
        Watch { awake, liveness, ..Watch::default() }
    }

    /// A replica has lain down.
    pub fn lies_down(&mut self, now: Time, region: RegionId, peer: &mut Peer) {
        self.awake.remove(&region);
        peer.lay_down(now);
        if !std::mem::replace(&mut peer.rest.listed, true) {
            self.dozing.insert((now, region));
        }
    }
}

impl Store {
    /// A tick of the clock.
    pub(super) fn tick(&mut self, now: Time) {
        if let Some(liveness) = &mut self.watch.liveness {
            liveness.tick(now, &mut self.pending.beats);
            liveness.forget(|store| self.registry.shares_with(store));
        }
        self.heed_neighbours();
        self.wake_some();
        self.give_back(now);
        self.tick_sizes(now);
        self.watch.ticks += 1;
        let mut awake = std::mem::take(&mut self.watch.awake);
        let turns = self.config.turns(awake.len());
        awake.retain(|region| {
            !self.has_its_turn(*region, turns) || self.catch_up(now, *region, turns)
        });
        awake.append(&mut self.watch.awake);
        self.watch.awake = awake;
    }

    /// Until when no tick would do anything of note. `None`: somebody is awake, or about to wake. What the first loop hears of
    /// other nodes the other loops are told by [a number](Self::neighbour_changes) that has grown; whoever runs them has
    /// them look at it.
    pub fn still_until(&self, now: Time) -> Option<Time> {
        let watch = &self.watch;
        let heeded = watch.changes == self.neighbour_changes();
        if !watch.awake.is_empty() || !watch.due.is_empty() || !heeded {
            return None;
        }
        let beats = watch.liveness.as_ref().map(Liveness::next_beat);
        let beats = beats.unwrap_or_else(|| now.after(STILL_MAX));
        let after = self.config.hibernate_after;
        let gives_back = watch.dozing.first().map(|(since, _)| since.after(after));
        let soon = now.after(self.config.beat_interval());
        Some(gives_back.map_or(beats, |due| beats.min(due.max(soon))))
    }

    /// Grows whenever the first loop has heard something of other nodes that concerns who sleeps.
    pub fn neighbour_changes(&self) -> u64 {
        self.registry.neighbours().changes()
    }

    fn has_its_turn(&self, region: RegionId, turns: u64) -> bool {
        // Neighbours were often split off one another and are written to together; a loop has every n-th id.
        let drawn = region.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        (self.watch.ticks + drawn).is_multiple_of(turns)
    }

    /// The ticks since a replica was looked at. `false`: it need not be ticked any more.
    fn catch_up(&mut self, now: Time, region: RegionId, turns: u64) -> bool {
        let Some(peer) = self.peers.get_mut(&region) else { return false };
        // Who slept, or was not here, has not missed any.
        let missed = (self.watch.ticks - peer.looked_at).min(turns);
        peer.looked_at = self.watch.ticks;
        // Before the ticks, of which a heartbeat may be waiting to leave: where a group has its turn as often as its heartbeats
        // are due, that is so at every one of its turns (seed 1639 of the simulator's regions: it never slept).
        if peer.grows_tired(&self.config, turns) && peer.runs() {
            let (neighbours, out) = (self.registry.neighbours(), &mut self.pending.send_now);
            if peer.try_to_sleep(&self.config, neighbours, out) {
                self.watch.lies_down(now, region, peer);
                return false;
            }
        }
        (0..missed).all(|_| self.tick_one(now, region))
    }

    /// Ticks a replica. `false`: it need not be ticked any more.
    fn tick_one(&mut self, now: Time, region: RegionId) -> bool {
        let Some(peer) = self.peers.get_mut(&region) else { return false };
        if !peer.runs() {
            return peer.fence.is_none();
        }
        peer.tick(now, &self.config);
        peer.call_leader(&self.config, &mut self.pending.send_now);
        peer.retry_reads(now, &self.config, &mut self.pending);
        peer.tick_membership(&self.config, self.registry.neighbours(), &mut self.pending);
        self.give_up_merge(region);
        let Some(peer) = self.peers.get_mut(&region) else { return false };
        peer.tick_snapshots(&self.config, &mut self.pending);
        peer.tick_load(now, &self.config, &mut self.pending);
        if peer.ticks.is_multiple_of(COMPACTION_CHECK_TICKS) && peer.group.leads() {
            peer.propose_compaction(&self.config);
        }
        if peer.has_work() {
            self.touched.push(region);
        }
        if peer.speak_up() {
            self.touched.push(region);
        }
        true
    }

    /// A beat of another node; for the loop that has the beats.
    pub(super) fn beat(&mut self, now: Time, from: StoreId, beat: Beat) {
        let shares = |store| self.registry.shares_with(store);
        let liveness = self.watch.liveness.as_mut();
        if let Some(liveness) = liveness.filter(|own| own.hears(from, &beat, shares)) {
            liveness.heard(now, from, beat);
        }
    }

    /// Somebody wants something of a region: it wakes, and is not idle.
    pub(super) fn rouse(&mut self, region: RegionId) {
        self.rouse_for(region, Wake::Asked);
    }

    /// The same, and why.
    pub(super) fn rouse_for(&mut self, region: RegionId, why: Wake) {
        if let Some(peer) = self.peers.get_mut(&region) {
            peer.stir();
            self.wake(region, why);
        }
    }

    /// Wakes a replica, if it sleeps.
    pub(super) fn wake(&mut self, region: RegionId, why: Wake) {
        let Some(peer) = self.peers.get_mut(&region).filter(|peer| peer.asleep()) else { return };
        peer.wake(&self.config, why);
        self.watch.awake.insert(region);
        self.touched.push(region);
    }

    /// Lists whom the comings and goings since the last tick wake.
    fn heed_neighbours(&mut self) {
        let neighbours = self.registry.neighbours().clone();
        for (store, now) in neighbours.news(&mut self.watch.changes) {
            // Of somebody new nothing was heeded yet (seed 13534 of the simulator's regions: whoever had been met again came back as
            // often as the last time, and nobody woke).
            let before =
                self.watch.heeded.insert(store, now).filter(|before| before.met == now.met);
            let before = before.unwrap_or_default();
            let (lost, returned) = (now.losses != before.losses, now.returns != before.returns);
            let paused = now.pauses != before.pauses;
            if !lost && !returned && !paused && now.doubts == before.doubts {
                continue;
            }
            for (region, peer) in self.peers.iter().filter(|(_, peer)| peer.asleep()) {
                let doubted = || {
                    let chunk = chunk_of(region);
                    now.doubts[chunk] != before.doubts[chunk]
                        && (peer.sleeps_on(store, End::Follows) || peer.sleeps_leading(store))
                };
                let why = if lost && peer.sleeps_on(store, End::Follows) {
                    Wake::LeaderLost(store)
                } else if lost && peer.sleeps_leading(store) && peer.is_outvoted(&neighbours)
                    || doubted()
                {
                    Wake::Asked
                } else if returned && peer.sleeps_leading(store)
                    || paused && peer.sleeps_without(store)
                {
                    Wake::Returned(store)
                } else {
                    continue;
                };
                let due = self.watch.due.entry(region).or_insert(why);
                *due = why.and(*due);
            }
        }
    }

    /// Takes the memory of those that have slept for long.
    fn give_back(&mut self, now: Time) {
        let after = self.config.hibernate_after;
        for _ in 0..GIVE_BACK_CHUNK {
            let due = |since: Time| since.after(after) <= now;
            let Some((_, region)) = self.watch.dozing.first().filter(|first| due(first.0)).copied()
            else {
                return;
            };
            self.watch.dozing.pop_first();
            let Some(peer) = self.peers.get_mut(&region) else { continue };
            match peer.sleeps_since() {
                Some(since) if !due(since) => _ = self.watch.dozing.insert((since, region)),
                since => {
                    peer.rest.listed = false;
                    if since.is_some() {
                        peer.give_back();
                    }
                }
            }
        }
    }

    fn wake_some(&mut self) {
        for _ in 0..WAKE_CHUNK {
            let Some((region, why)) = self.watch.due.pop_first() else { return };
            self.wake(region, why);
        }
    }
}

#[cfg(test)]
mod tests;
