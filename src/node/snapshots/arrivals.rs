//! The receiver's side: slots, files that grow, and what is kept of them when a connection breaks.

use super::{CHUNK_BYTES_MAX, Make, decode_ask, decode_header, errand_of, join};
use crate::codec;
use crate::driver::{Driver, SnapshotStats};
use crate::env::Disk;
use crate::error::{Error, Result};
use crate::raft::Envelope;
use crate::region::snapshot::SnapshotWriter;
use crate::store::slots::{SlotId, Slots, has_use};
use crate::store::{Claim, Event, SnapshotErrand};
use crate::transport::{SnapshotRoom, SnapshotSink};
use crate::types::{LogPosition, StoreId, Time};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Exactly one snapshot of all that there ever were.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Identity {
    errand: SnapshotErrand,
    from: StoreId,
    make: Make,
    position: LogPosition,
}

/// A file that grows.
///
/// * It belongs to whoever came last for it: an older connection's chunks are refused.
/// * It ends with a whole chunk whenever nobody writes to it; `pieces` and `bytes` stand there.
struct Partial {
    writer: Option<SnapshotWriter>,
    owner: SlotId,
    pieces: u64,
    bytes: u64,
}

/// A file, and the chunks and bytes that it holds already.
type Opened = (Arc<Mutex<Partial>>, (u64, u64));

struct Kept {
    partial: Arc<Mutex<Partial>>,
    /// As the partial's: whoever comes too late finds out here without waiting for a disk.
    owner: SlotId,
    path: PathBuf,
    /// Since when nobody writes to it.
    idle: Option<Time>,
}

struct State {
    slots: Slots,
    partials: BTreeMap<Identity, Kept>,
    /// Whole files, until they are restored or removed.
    whole: BTreeMap<PathBuf, SlotId>,
}

/// All snapshots that arrive at a node.
///
/// * At most as many files as there are slots are being written or restored; as many again are kept for senders that
///   may come back, none of them longer than the patience.
/// * A partial file is locked for as long as a write takes, and never while the state is.
pub(in super::super) struct Arrivals {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    patience: Duration,
    keep_max: usize,
    files: AtomicU64,
    state: Mutex<State>,
    received: AtomicU64,
    received_bytes: AtomicU64,
    turned_away: AtomicU64,
    resumed: AtomicU64,
    /// When to look for what nobody came back for; 0: nothing is kept.
    sweep_at: AtomicU64,
}

impl Arrivals {
    pub fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        slots: usize,
        patience: Duration,
    ) -> Arc<Arrivals> {
        Arc::new(Arrivals {
            disk,
            dir,
            patience,
            keep_max: slots,
            files: AtomicU64::new(1),
            state: Mutex::new(State {
                slots: Slots::new(slots, patience),
                partials: BTreeMap::new(),
                whole: BTreeMap::new(),
            }),
            received: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            turned_away: AtomicU64::new(0),
            resumed: AtomicU64::new(0),
            sweep_at: AtomicU64::new(0),
        })
    }

    /// A store asks for a slot.
    pub fn reserve(
        me: &Arc<Arrivals>,
        driver: &Driver,
        from: StoreId,
        ask: Bytes,
    ) -> Result<Box<dyn SnapshotRoom>> {
        let (errand, claim) = decode_ask(ask)?;
        let now = driver.clock().now();
        me.sweep(now);
        let turned_away = |error| {
            me.turned_away.fetch_add(1, Ordering::Relaxed);
            error
        };
        has_use(driver.registry(), errand.region, errand.to, &claim).map_err(turned_away)?;
        let slot = me.state.lock().slots.reserve(now, from, errand);
        let full = Error::Busy { what: "snapshots being received" };
        let slot = slot.ok_or_else(|| turned_away(full))?;
        let hold = Hold { arrivals: Arc::clone(me), slot };
        Ok(Box::new(Room { hold, driver: driver.clone(), from, errand }))
    }

    /// Opens the file of a snapshot: the one that was kept of it, or a new one.
    fn open(&self, now: Time, slot: SlotId, identity: Identity) -> Result<Opened> {
        let mut state = self.state.lock();
        if !state.slots.touch(now, slot) {
            return Err(Error::Busy { what: "the slot: it has lapsed" });
        }
        if let Some(kept) = state.partials.get_mut(&identity) {
            (kept.idle, kept.owner) = (None, slot);
            let partial = Arc::clone(&kept.partial);
            drop(state);
            let mut held = partial.lock();
            held.owner = slot;
            let totals = (held.pieces, held.bytes);
            drop(held);
            self.resumed.fetch_add(1, Ordering::Relaxed);
            return Ok((partial, totals));
        }
        // What is left of an older snapshot for the same replica is of no use any more.
        let same = |other: &Identity| {
            (other.errand.region, other.errand.to) == (identity.errand.region, identity.errand.to)
        };
        let old: Vec<Identity> =
            state.partials.keys().filter(|other| same(other)).copied().collect();
        let mut gone: Vec<Kept> = old.iter().filter_map(|id| state.partials.remove(id)).collect();
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("{}-{number}.snap", identity.errand.region.0));
        let writer = SnapshotWriter::create(&self.disk, path.clone());
        let opened = writer.map(|writer| {
            let partial = Partial { writer: Some(writer), owner: slot, pieces: 0, bytes: 0 };
            let partial = Arc::new(Mutex::new(partial));
            let kept = Kept { partial: Arc::clone(&partial), owner: slot, path, idle: None };
            state.partials.insert(identity, kept);
            (partial, (0, 0))
        });
        drop(state);
        gone.drain(..).for_each(|kept| self.remove(&kept));
        opened
    }

    fn remove(&self, kept: &Kept) {
        kept.partial.lock().writer = None;
        if let Err(error) = self.disk.remove(&kept.path) {
            tracing::warn!(%error, "what was received of a snapshot could not be removed");
        }
    }

    /// Nobody writes to a file any more. It is kept for a while, if its owner was the last.
    fn leave(&self, now: Time, identity: &Identity, slot: SlotId) {
        let mut state = self.state.lock();
        let Some(kept) = state.partials.get_mut(identity) else { return };
        if kept.owner != slot {
            return;
        }
        kept.idle = Some(now);
        let idle = |kept: &Kept| kept.idle.map(|since| since.0);
        let mut idling: Vec<(u64, Identity)> =
            state.partials.iter().filter_map(|(id, kept)| Some((idle(kept)?, *id))).collect();
        idling.sort_unstable();
        let over = idling.len().saturating_sub(self.keep_max);
        let gone: Vec<Kept> =
            idling[..over].iter().filter_map(|(_, id)| state.partials.remove(id)).collect();
        let next = idling.get(over).map_or(0, |(since, _)| Time(*since).after(self.patience).0);
        self.sweep_at.store(next, Ordering::Release);
        drop(state);
        gone.iter().for_each(|kept| self.remove(kept));
    }

    /// A file is not to be kept.
    fn discard(&self, identity: &Identity, slot: SlotId) {
        let mut state = self.state.lock();
        let ours = state.partials.get(identity).is_some_and(|kept| kept.owner == slot);
        let gone = ours.then(|| state.partials.remove(identity)).flatten();
        drop(state);
        gone.iter().for_each(|kept| self.remove(kept));
    }

    /// Removes what nobody came back for.
    pub fn sweep(&self, now: Time) {
        let due = self.sweep_at.load(Ordering::Acquire);
        if due == 0 || now.0 < due {
            return;
        }
        let mut state = self.state.lock();
        let late = |kept: &Kept| kept.idle.is_some_and(|since| now.since(since) >= self.patience);
        let old: Vec<Identity> =
            state.partials.iter().filter(|(_, kept)| late(kept)).map(|(id, _)| *id).collect();
        let gone: Vec<Kept> = old.iter().filter_map(|id| state.partials.remove(id)).collect();
        let first = state.partials.values().filter_map(|kept| kept.idle).min();
        let next = first.map_or(0, |since| since.after(self.patience).0);
        self.sweep_at.store(next, Ordering::Release);
        drop(state);
        gone.iter().for_each(|kept| self.remove(kept));
    }

    /// A whole file was restored or removed.
    pub fn gone(&self, path: &Path) {
        let mut state = self.state.lock();
        if let Some(slot) = state.whole.remove(path) {
            state.slots.release(slot);
        }
    }

    /// Adds what arrives.
    pub fn stats(&self, stats: SnapshotStats) -> SnapshotStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let state = self.state.lock();
        SnapshotStats {
            received: get(&self.received),
            received_bytes: get(&self.received_bytes),
            turned_away: get(&self.turned_away),
            receiving: state.slots.taken() as u64,
            kept: state.partials.values().filter(|kept| kept.idle.is_some()).count() as u64,
            ..stats
        }
    }
}

/// A slot that is given back when this goes.
struct Hold {
    arrivals: Arc<Arrivals>,
    slot: SlotId,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.arrivals.state.lock();
        // A whole file keeps its slot.
        if !state.whole.values().any(|slot| *slot == self.slot) {
            state.slots.release(self.slot);
        }
    }
}

struct Room {
    hold: Hold,
    driver: Driver,
    from: StoreId,
    errand: SnapshotErrand,
}

impl SnapshotRoom for Room {
    fn begin(self: Box<Self>, header: Bytes) -> Result<Box<dyn SnapshotSink>> {
        let Room { hold, driver, from, errand } = *self;
        let (make, envelope) = decode_header(header, from)?;
        if errand_of(&envelope) != errand {
            let detail = format!("{:?}, the slot is for {errand:?}", errand_of(&envelope));
            return Err(Error::malformed("snapshot header", detail));
        }
        let snapshot = envelope.message.get_snapshot();
        let head = codec::region::decode_head(&snapshot.data)?;
        if head.region.id != errand.region || head.region.peer(errand.to).is_none() {
            let detail = format!("{} without {}", head.region.id, errand.to);
            return Err(Error::malformed("snapshot header", detail));
        }
        let claim = Claim { range: head.region.range, merged: head.removed };
        has_use(driver.registry(), errand.region, errand.to, &claim)?;
        let meta = snapshot.get_metadata();
        let position = LogPosition { index: meta.index, term: meta.term };
        let identity = Identity { errand, from, make, position };
        let now = driver.clock().now();
        let (partial, held) = hold.arrivals.open(now, hold.slot, identity)?;
        Ok(Box::new(Sink {
            hold,
            driver,
            identity,
            claim,
            envelope: Some(envelope),
            partial,
            held,
            so_far: BytesMut::new(),
            pending: (0, 0),
        }))
    }
}

struct Sink {
    hold: Hold,
    driver: Driver,
    identity: Identity,
    claim: Claim,
    /// Gone when the file is not this sink's business any more.
    envelope: Option<Envelope>,
    partial: Arc<Mutex<Partial>>,
    held: (u64, u64),
    /// Pieces of a chunk that is not whole.
    so_far: BytesMut,
    /// How many, and their bytes.
    pending: (u64, u64),
}

impl Sink {
    fn take(&mut self, bytes: Bytes) -> Result<()> {
        let now = self.driver.clock().now();
        if !self.hold.arrivals.state.lock().slots.touch(now, self.hold.slot) {
            return Err(Error::Busy { what: "the slot: it has lapsed" });
        }
        let SnapshotErrand { region, to, .. } = self.identity.errand;
        has_use(self.driver.registry(), region, to, &self.claim)?;
        debug_assert!(self.so_far.len() <= CHUNK_BYTES_MAX, "join has looked");
        let len = bytes.len() as u64;
        let whole = join(&mut self.so_far, bytes)?;
        self.pending = (self.pending.0 + 1, self.pending.1 + len);
        let Some(chunk) = whole else { return Ok(()) };
        let mut partial = self.partial.lock();
        if partial.owner != self.hold.slot {
            return Err(Error::Busy { what: "the slot: it has lapsed" });
        }
        let Some(writer) = &mut partial.writer else {
            return Err(Error::Busy { what: "the slot: it has lapsed" });
        };
        writer.chunk(&chunk)?;
        let (pieces, bytes) = std::mem::take(&mut self.pending);
        partial.pieces += pieces;
        partial.bytes += bytes;
        self.hold.arrivals.received_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// The file shall go.
    fn spoil(&mut self) {
        if self.envelope.take().is_some() {
            self.hold.arrivals.discard(&self.identity, self.hold.slot);
        }
    }
}

impl SnapshotSink for Sink {
    fn held(&self) -> (u64, u64) {
        self.held
    }

    fn chunk(&mut self, bytes: Bytes) -> Result<()> {
        let taken = self.take(bytes);
        if taken.is_err() {
            self.spoil();
        }
        taken
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        if !self.so_far.is_empty() {
            self.spoil();
            return Err(Error::malformed("snapshot", "its last chunk is not whole"));
        }
        let Some(envelope) = self.envelope.take() else { return Ok(()) };
        let arrivals = Arc::clone(&self.hold.arrivals);
        let writer = {
            let mut partial = self.partial.lock();
            if partial.owner == self.hold.slot { partial.writer.take() } else { None }
        };
        let lost = Error::Busy { what: "the slot: it has lapsed" };
        let file = match writer.ok_or(lost).and_then(SnapshotWriter::finish) {
            Ok(file) => file,
            Err(error) => {
                arrivals.discard(&self.identity, self.hold.slot);
                return Err(error);
            }
        };
        {
            let mut state = arrivals.state.lock();
            state.partials.remove(&self.identity);
            state.slots.restoring(self.driver.clock().now(), self.hold.slot);
            state.whole.insert(file.path.clone(), self.hold.slot);
        }
        arrivals.received.fetch_add(1, Ordering::Relaxed);
        self.driver.post(envelope.region, Event::SnapshotReceived { envelope, file });
        Ok(())
    }

    fn cancel(mut self: Box<Self>) {
        self.spoil();
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // The connection broke: whoever sent may come back.
        if self.envelope.is_some() {
            let now = self.driver.clock().now();
            self.hold.arrivals.leave(now, &self.identity, self.hold.slot);
        }
    }
}
