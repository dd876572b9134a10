//! Snapshots between the stores of one process: the same steps as over the network, on a thread for each slot.
//!
//! A cut of the link is a connection that breaks: the transfer asks for a slot again until the link is mended or its
//! patience ends, and goes on where the receiver stands.

use super::bucket::Bucket;
use super::local::Hub;
use super::{SlotAnswer, SnapshotJob, SnapshotSink, SnapshotSlot, Stats};
use crate::error::{Error, Result};
use crate::types::{StoreId, Time};
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// How often a broken transfer tries again.
const RETRY: Duration = Duration::from_millis(20);

/// One store's limits and counters.
#[derive(Debug)]
pub(super) struct Ferry {
    patience: Duration,
    bucket: Mutex<Bucket>,
    origin: Instant,
    sent: AtomicU64,
    bytes: AtomicU64,
    resumed: AtomicU64,
    cancelled: AtomicU64,
}

impl Ferry {
    pub(super) fn new(patience: Duration, rate: u64) -> Arc<Ferry> {
        Arc::new(Ferry {
            patience,
            bucket: Mutex::new(Bucket::new(rate)),
            origin: Instant::now(),
            sent: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            resumed: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
        })
    }

    pub(super) fn stats(&self) -> Stats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            snapshots_sent: get(&self.sent),
            snapshot_bytes_sent: get(&self.bytes),
            snapshots_resumed: get(&self.resumed),
            snapshots_cancelled: get(&self.cancelled),
            ..Stats::default()
        }
    }

    /// Waits until `bytes` more may be sent.
    fn pass(&self, bytes: usize) {
        let now = Time(self.origin.elapsed().as_nanos() as u64);
        let wait = self.bucket.lock().take(now, bytes);
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
    }
}

struct Slot(SyncSender<SnapshotJob>);

impl SnapshotSlot for Slot {
    fn send(self: Box<Self>, job: SnapshotJob) {
        // Not by way of the error: `done` must not run on this thread.
        if let Err(error) = self.0.try_send(job) {
            let (std::sync::mpsc::TrySendError::Full(job)
            | std::sync::mpsc::TrySendError::Disconnected(job)) = error;
            let done = job.done;
            let late = move || done(Err(Error::Busy { what: "the slot: it has lapsed" }));
            let _ = std::thread::Builder::new().name("snapshot".into()).spawn(late);
        }
    }
}

/// Asks in the background.
pub(super) fn ask(
    ferry: &Arc<Ferry>,
    hub: &Hub,
    (from, to): (StoreId, StoreId),
    ask: Bytes,
    answer: SlotAnswer,
) {
    let trip = Trip { ferry: ferry.clone(), hub: hub.clone(), from, to, ask };
    // The answer must come even if the thread cannot be had: it is shared through a slot.
    let held = Arc::new(Mutex::new(Some(answer)));
    let theirs = held.clone();
    let spawned = std::thread::Builder::new().name("snapshot".into()).spawn(move || {
        if let Some(answer) = theirs.lock().take() {
            trip.begin(answer);
        }
    });
    if let Err(error) = spawned
        && let Some(answer) = held.lock().take()
    {
        answer(Err(Error::io("spawn", "a snapshot thread", error)));
    }
}

struct Trip {
    ferry: Arc<Ferry>,
    hub: Hub,
    from: StoreId,
    to: StoreId,
    ask: Bytes,
}

impl Trip {
    fn begin(self, answer: SlotAnswer) {
        let room = match self.reserve() {
            Ok(room) => room,
            Err(error) => return answer(Err(error)),
        };
        let (fill, filled) = sync_channel(1);
        answer(Ok(Box::new(Slot(fill))));
        let Ok(job) = filled.recv_timeout(self.ferry.patience) else { return };
        let SnapshotJob { header, source, cancel, done } = job;
        let mut carry = Carry { trip: &self, source, stop: &|| cancel.is_cancelled() };
        let result = carry.all(room, header);
        let counted = match &result {
            Ok(()) => Some(&self.ferry.sent),
            Err(_) if cancel.is_cancelled() => Some(&self.ferry.cancelled),
            Err(_) => None,
        };
        counted.map(|counter| counter.fetch_add(1, Ordering::Relaxed));
        done(result);
    }

    fn reserve(&self) -> Result<Box<dyn super::SnapshotRoom>> {
        self.reach()?.snapshot_reserve(self.from, self.ask.clone())
    }

    fn reach(&self) -> Result<Arc<dyn super::Handler>> {
        let cut =
            || Error::io("reach", self.to.to_string(), std::io::ErrorKind::NotConnected.into());
        self.hub.reach(self.from, self.to).ok_or_else(cut)
    }
}

struct Carry<'a> {
    trip: &'a Trip,
    source: Box<dyn super::SnapshotSource>,
    stop: &'a dyn Fn() -> bool,
}

impl Carry<'_> {
    fn all(&mut self, mut room: Box<dyn super::SnapshotRoom>, header: Bytes) -> Result<()> {
        let patience = self.trip.ferry.patience;
        let mut until = Instant::now() + patience;
        loop {
            let sink = room.begin(header.clone())?;
            let (from, mut moved) = (sink.held().0, 0);
            let broken = match self.chunks(sink, from, &mut moved) {
                Err(error @ Error::Io { .. }) if self.trip.reach().is_err() => error,
                ended => return ended,
            };
            if moved > 0 {
                until = Instant::now() + patience;
            }
            room = loop {
                if Instant::now() > until || (self.stop)() {
                    return Err(broken);
                }
                std::thread::sleep(RETRY);
                match self.trip.reserve() {
                    Ok(room) => break room,
                    Err(Error::Busy { .. } | Error::Io { .. }) => {}
                    Err(error) => return Err(error),
                }
            };
            self.trip.ferry.resumed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The link is looked at before every chunk, so a cut breaks it off.
    fn chunks(&mut self, mut sink: Box<dyn SnapshotSink>, at: u64, moved: &mut u64) -> Result<()> {
        self.source.rewind(at)?;
        while let Some(bytes) = self.source.next()? {
            self.trip.ferry.pass(bytes.len());
            if (self.stop)() {
                sink.cancel();
                return Err(Error::Busy { what: "a snapshot that was called off" });
            }
            self.trip.reach()?;
            self.trip.ferry.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            sink.chunk(bytes)?;
            *moved += 1;
        }
        self.trip.reach()?;
        sink.finish()
    }
}
