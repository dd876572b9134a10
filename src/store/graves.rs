//! Replicas that are no more: who is sent away, what their tombstones answer, when their logs are cleared. The
//! story stands in [`farewell`](crate::region::farewell); here is the store's part of it, with the memory of the dead.

use super::event::DiskSpace;
use super::round::Store;
use crate::error::Result;
use crate::kv::{Cut, StateStore};
use crate::log::{Log, LogBatch};
use crate::raft::{Envelope, Note};
use crate::region::effects::*;
use crate::types::*;
use std::collections::BTreeMap;

/// A tombstone.
#[derive(Clone, Copy, Debug)]
struct Grave {
    /// It and every smaller peer of the region are dead here.
    peer: PeerId,
    /// Whether a flush covers the tombstone. Before that a crash may bring the replica back.
    durable: bool,
    /// Whether its log is cleared.
    cleared: bool,
}

/// The dead of one store loop.
///
/// * All of them are smaller than the replica of the region that lives here, if one does.
#[derive(Default, Debug)]
pub struct Graves {
    graves: BTreeMap<RegionId, Grave>,
}

impl Graves {
    /// What the state store durably knows, and the logs that can go.
    pub(super) fn open(
        kv: &dyn StateStore,
        log: &Log,
        owns: impl Fn(RegionId) -> bool,
        batch: &mut LogBatch,
    ) -> Graves {
        let mut out = Graves::default();
        for dead in kv.tombstones() {
            let region = dead.region.id;
            if owns(region) {
                if log.groups().contains(&region.0) {
                    batch.clear(region.0);
                }
                let grave = Grave { peer: dead.peer, durable: true, cleared: true };
                out.graves.insert(region, grave);
            }
        }
        out
    }

    /// Whether this replica never lives here (again).
    pub(super) fn refuse(&self, region: RegionId, peer: PeerId) -> bool {
        self.graves.get(&region).is_some_and(|grave| grave.peer >= peer)
    }

    /// A larger replica lives.
    pub(super) fn reopen(&mut self, region: RegionId) {
        self.graves.remove(&region);
    }
}

impl Store {
    /// Sends the region's replica on its way out: behind all that it has still to apply.
    pub(super) fn bury(&mut self, region: RegionId, epoch: Epoch) {
        let Some(peer) = self.peers.get_mut(&region).filter(|peer| !peer.leaving) else { return };
        peer.leave_life(&mut self.pending);
        let peer = peer.id;
        self.pending.apply.push(ApplyTask::Destroy { region, peer, epoch });
    }

    /// A note from another store.
    pub(super) fn note(&mut self, envelope: &Envelope, note: Note) {
        let (region, peer) = (envelope.region, envelope.to);
        self.rouse(region);
        match note {
            Note::Buried => {
                if let Some(asked) = self.peers.get_mut(&region).filter(|p| p.id == peer) {
                    asked.buried(envelope.from);
                    self.touched.push(region);
                }
            }
            Note::CanYouLead { .. } | Note::CanLead => self.about_leading(envelope, note),
            Note::Gone { epoch, by } => self.gone(envelope, peer, epoch, by),
            Note::Ask { by } => {
                let dead = |grave: &&Grave| grave.peer >= peer;
                match self.graves.graves.get(&region).filter(dead).map(|grave| grave.durable) {
                    Some(true) => self.answer_buried(envelope, by),
                    Some(false) => self.pending.flush_soon = true,
                    None => {}
                }
            }
        }
    }

    fn about_leading(&mut self, envelope: &Envelope, note: Note) {
        let (from, on) = (envelope.from, envelope.from_store);
        let here = self.peers.get_mut(&envelope.region);
        let Some(replica) = here.filter(|replica| replica.id == envelope.to) else { return };
        let effects = &mut self.pending;
        match note {
            // It could write nothing.
            Note::CanYouLead { .. } if self.disk == DiskSpace::Full => {}
            Note::CanYouLead { committed } => {
                replica.may_be_heir(&self.config, from, on, committed, effects);
            }
            _ => replica.can_lead(from, effects),
        }
        self.touched.push(envelope.region);
    }

    fn gone(&mut self, envelope: &Envelope, peer: PeerId, epoch: Epoch, by: RegionId) {
        let region = envelope.region;
        if by != region && self.registry.is_here(by) {
            return; // that one takes it over, or goes itself first; asked again
        }
        match self.peers.get(&region) {
            Some(here) if here.id > peer => self.answer_buried(envelope, by),
            Some(here) => {
                let (id, known) = (here.id, here.region.epoch.conf_ver);
                if id < peer || epoch.conf_ver > known {
                    self.bury(region, epoch);
                }
            }
            None if self.absent.is_making(region) => {} // asked again
            None => match self.graves.graves.get(&region) {
                Some(grave) if grave.peer >= peer && grave.durable => {
                    self.answer_buried(envelope, by);
                }
                // Never here, or about to be born: a tombstone sees to it that it never is. One that is not
                // durable may have been overwritten by a split that another worker applied: once more, then.
                _ => {
                    self.pending.flush_soon = true;
                    self.pending.apply.push(ApplyTask::Destroy { region, peer, epoch });
                }
            },
        }
    }

    fn answer_buried(&mut self, question: &Envelope, by: RegionId) {
        let answer = Envelope {
            region: by,
            from: question.to,
            to: question.from,
            from_store: self.config.store,
            message: Default::default(),
            note: Some(Note::Buried),
        };
        self.pending.send_now.push(question.from_store, answer);
    }

    /// A message for another replica of the region than the one here: a larger one proves that this one was removed,
    /// for a region has one member on a store at a time.
    pub(super) fn meant_for_another(&mut self, envelope: &Envelope) {
        let Some(here) = self.peers.get(&envelope.region) else { return };
        if envelope.to > here.id {
            let epoch = here.region.epoch;
            self.bury(envelope.region, epoch);
        }
    }

    /// The applier has destroyed a replica.
    pub(super) fn destroyed(&mut self, region: RegionId, peer: PeerId) {
        if self.peers.get(&region).is_some_and(|here| here.id > peer) {
            return;
        }
        // Born while its end was on the way already: whoever asked it is told (seed 11912).
        if let Some(mut gone) = self.peers.remove(&region)
            && !gone.leaving
        {
            gone.leave_life(&mut self.pending);
        }
        self.touched.retain(|touched| *touched != region);
        // What is kept for a larger one, which is being made from a snapshot, stays kept: else whoever was cut out of
        // it since could come first, and then be born a second time.
        if !self.absent.is_making(region) {
            self.registry.remove(region);
        }
        let grave = Grave { peer, durable: false, cleared: false };
        let known = self.graves.graves.entry(region).or_insert(grave);
        if known.peer < peer {
            *known = grave;
        }
        // A flush may have been heard of first.
        if known.durable
            && let Err(error) = self.clear_logs([region])
        {
            self.pending.fatal.get_or_insert(error);
        }
    }

    /// A flush has ended: what tombstones it covers, and so which logs can go.
    pub(super) fn flushed_graves(&mut self, cut: &Cut) -> Result<()> {
        let mut covered = Vec::new();
        for (region, peer, position) in cut {
            if *position != DEAD || !self.shard.owns(*region) {
                continue;
            }
            let grave = Grave { peer: *peer, durable: true, cleared: false };
            let known = self.graves.graves.entry(*region).or_insert(grave);
            if known.peer < *peer {
                *known = grave;
            }
            if known.peer == *peer {
                known.durable = true;
                covered.push(*region);
            }
        }
        self.clear_logs(covered)
    }

    /// Clears the logs of dead replicas whose tombstones are durable, once, unless another one lives by now: its
    /// log begins afresh by itself.
    fn clear_logs(&mut self, regions: impl IntoIterator<Item = RegionId>) -> Result<()> {
        let mut batch = LogBatch::new();
        for region in regions {
            let living = self.peers.contains_key(&region) || self.absent.is_making(region);
            let Some(grave) = self.graves.graves.get_mut(&region).filter(|_| !living) else {
                continue;
            };
            if !std::mem::replace(&mut grave.cleared, true) {
                batch.clear(region.0);
            }
        }
        if !batch.is_empty() {
            self.log.submit(batch)?;
        }
        Ok(())
    }
}
