//! The sender's side: wishes wait for their turn, slots are asked for, snapshots leave in them.

use super::{Make, encode_ask, encode_header, errand_of, piece};
use crate::driver::{Clock, SnapshotStats};
use crate::error::{Error, Result};
use crate::region::snapshot::Chunks;
use crate::store::Claim;
use crate::store::departures::{Departure, Departures, Refusal};
use crate::store::{Delivered, SnapshotErrand, SnapshotSend};
use crate::transport::{Cancel, SnapshotJob, SnapshotSlot, SnapshotSource, Stats, Transport};
use crate::types::StoreId;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

type Granted = Box<dyn FnOnce() + Send>;

/// All snapshots that leave a node.
///
/// * No call here blocks, or calls anybody while it holds the lock.
/// * Each slot ends in exactly one of: a snapshot sent in it, declined, overdue.
pub(in super::super) struct Dispatch {
    me: Weak<Dispatch>,
    transport: Arc<dyn Transport>,
    clock: Clock,
    /// This life of the process.
    life: u64,
    numbers: AtomicU64,
    state: Mutex<State>,
    refused: AtomicU64,
    failed: AtomicU64,
}

struct State {
    departures: Departures<Granted>,
    slots: BTreeMap<SnapshotErrand, Box<dyn SnapshotSlot>>,
    flying: BTreeMap<SnapshotErrand, Cancel>,
}

impl Dispatch {
    pub fn new(
        transport: Arc<dyn Transport>,
        clock: Clock,
        life: u64,
        sends: usize,
        patience: Duration,
    ) -> Arc<Dispatch> {
        Arc::new_cyclic(|me| Dispatch {
            me: me.clone(),
            transport,
            clock,
            life,
            numbers: AtomicU64::new(1),
            state: Mutex::new(State {
                departures: Departures::new(sends, patience),
                slots: BTreeMap::new(),
                flying: BTreeMap::new(),
            }),
            refused: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })
    }

    /// Raft wants to send a snapshot, still or for the first time.
    pub fn want(&self, errand: SnapshotErrand, store: StoreId, claim: Claim, granted: Granted) {
        let now = self.clock.now();
        self.state.lock().departures.wish(now, errand, store, claim, granted);
        self.go_on();
    }

    /// Asks for slots for those whose turn it is.
    fn go_on(&self) {
        loop {
            let now = self.clock.now();
            let mut state = self.state.lock();
            let overdue = state.departures.overdue(now);
            let late: Vec<_> =
                overdue.iter().filter_map(|errand| state.slots.remove(errand)).collect();
            let next = state.departures.next(now);
            drop(state);
            drop(late); // gives them back
            let Some(departure) = next else { return };
            let (ask, store) = (encode_ask(&departure.errand, &departure.claim), departure.store);
            let me = self.me.clone();
            let answer = move |answer| {
                if let Some(me) = me.upgrade() {
                    me.answered(departure, answer);
                }
            };
            self.transport.ask_snapshot(store, ask, Box::new(answer));
        }
    }

    fn answered(&self, departure: Departure<Granted>, answer: Result<Box<dyn SnapshotSlot>>) {
        let now = self.clock.now();
        match answer {
            Ok(slot) => {
                let errand = departure.errand;
                let mut state = self.state.lock();
                state.departures.granted(now, errand);
                state.slots.insert(errand, slot);
                drop(state);
                (departure.payload)();
            }
            Err(error) => {
                let why = match error {
                    Error::Busy { .. } => Refusal::NotNow,
                    Error::InvalidArgument(_) => Refusal::NoUse,
                    _ => Refusal::OutOfReach,
                };
                if why != Refusal::OutOfReach {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                }
                let (errand, to) = (departure.errand, departure.store);
                tracing::debug!(region = %errand.region, %to, %error, "no slot for a snapshot");
                self.state.lock().departures.refused(now, departure, why);
            }
        }
        // Another store may have its turn now.
        self.go_on();
    }

    /// The leader does not need its slot.
    pub fn declined(&self, errand: SnapshotErrand) {
        let mut state = self.state.lock();
        let slot = state.slots.remove(&errand);
        if !state.flying.contains_key(&errand) {
            state.departures.ended(errand);
        }
        drop(state);
        drop(slot);
        self.go_on();
    }

    /// A snapshot under way is not wanted any more.
    pub fn call_off(&self, errand: SnapshotErrand) {
        let cancel = self.state.lock().flying.get(&errand).cloned();
        if let Some(cancel) = cancel {
            cancel.cancel();
        }
    }

    /// Sends a snapshot in the slot that was granted for it.
    pub fn send(&self, snapshot: SnapshotSend, done: Box<dyn FnOnce(Delivered) + Send>) {
        let SnapshotSend { envelope, chunks, .. } = snapshot;
        let errand = errand_of(&envelope);
        let cancel = Cancel::default();
        let mut state = self.state.lock();
        let slot = state.slots.remove(&errand).filter(|_| state.departures.flies(errand));
        let Some(slot) = slot else {
            drop(state);
            self.failed.fetch_add(1, Ordering::Relaxed);
            return done(Delivered::Failed); // its slot was given back meanwhile
        };
        state.flying.insert(errand, cancel.clone());
        drop(state);
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let header = encode_header(Make { life: self.life, number }, &envelope);
        let (me, called_off) = (self.me.clone(), cancel.clone());
        let done = Box::new(move |result: Result<()>| {
            let me = me.upgrade();
            if let Some(me) = &me {
                me.ended(errand, &result, &called_off);
            }
            done(match result {
                Ok(()) => Delivered::Whole,
                Err(_) => Delivered::Failed,
            });
            if let Some(me) = me {
                me.go_on();
            }
        });
        let source =
            Box::new(Source { chunks, rest: Bytes::new(), firsts: vec![0], at: 0, most: 0 });
        slot.send(SnapshotJob { header, source, cancel, done });
    }

    fn ended(&self, errand: SnapshotErrand, result: &Result<()>, called_off: &Cancel) {
        if let Err(error) = result {
            tracing::debug!(region = %errand.region, %error, "a snapshot was not delivered");
            if !called_off.is_cancelled() {
                self.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
        let mut state = self.state.lock();
        state.flying.remove(&errand);
        state.departures.ended(errand);
    }

    /// What leaves; the rest of the figures is not known here.
    pub fn stats(&self, transport: &Stats) -> SnapshotStats {
        let state = self.state.lock();
        SnapshotStats {
            sent: transport.snapshots_sent,
            sent_bytes: transport.snapshot_bytes_sent,
            resumed: transport.snapshots_resumed,
            cancelled: transport.snapshots_cancelled,
            refused: self.refused.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            waiting: state.departures.waiting() as u64,
            sending: state.departures.under_way() as u64,
            ..SnapshotStats::default()
        }
    }
}

/// The pieces of a region's chunks.
struct Source {
    chunks: Chunks,
    rest: Bytes,
    /// The number of each chunk's first piece, and of the first one behind the chunks so far.
    firsts: Vec<u64>,
    /// The next piece.
    at: u64,
    /// The first piece that was never given out.
    most: u64,
}

impl SnapshotSource for Source {
    fn next(&mut self) -> Result<Option<Bytes>> {
        if self.rest.is_empty() {
            match self.chunks.next_chunk()? {
                Some(chunk) => {
                    let pieces = chunk.len().div_ceil(super::PIECE_BYTES) as u64;
                    self.firsts.truncate(self.chunks.position());
                    self.firsts.push(self.at + pieces);
                    self.rest = chunk;
                }
                None => return Ok(None),
            }
        }
        self.at += 1;
        self.most = self.most.max(self.at);
        Ok(Some(piece(&mut self.rest)))
    }

    fn rewind(&mut self, to: u64) -> Result<()> {
        if to == self.at {
            return Ok(());
        }
        if to > self.most {
            let what = format!("piece {to} of a snapshot, of which {} were sent", self.most);
            return Err(Error::InvalidArgument(what));
        }
        // The first piece is number 0, so something is found or begins before it.
        let chunk = self.firsts.binary_search(&to).unwrap_or_else(|behind| behind - 1);
        let first = self.firsts[chunk];
        self.rest = Bytes::new();
        self.chunks.rewind(chunk)?;
        self.at = first;
        while self.at < to {
            if self.next()?.is_none() {
                return Err(Error::InvalidArgument(format!("piece {to} of {}", self.at)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
