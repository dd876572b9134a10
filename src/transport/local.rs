//! The network's twin inside one process: a [`Hub`] joins any number of stores, messages are handed
//! over as they are, without bytes. For tests, demos and the consensus benchmark.
//!
//! Messages, requests and answers reach the other side's [`Handler`] on the caller's thread. Snapshots
//! run on a thread of their own, a bounded number at once. Links can be cut and mended, one way or
//! both, to see what the node makes of it.

use super::{Envelope, Handler, Lane, Origin, SnapshotJob, Stats, Transport};
use crate::codec::beat::Beat;
use crate::error::{Error, Result};
use crate::types::StoreId;
use bytes::Bytes;
use parking_lot::RwLock;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Snapshots that one store sends at the same time.
const MAX_SNAPSHOTS: usize = 4;

/// Joins the stores of one process.
#[derive(Clone, Default)]
pub struct Hub {
    inner: Arc<RwLock<Links>>,
}

#[derive(Default)]
struct Links {
    stores: BTreeMap<StoreId, Arc<dyn Handler>>,
    cut: BTreeSet<(StoreId, StoreId)>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let links = self.inner.read();
        f.debug_struct("Hub")
            .field("stores", &links.stores.keys().collect::<Vec<_>>())
            .field("cut", &links.cut)
            .finish()
    }
}

impl Hub {
    /// A hub without stores.
    pub fn new() -> Hub {
        Hub::default()
    }

    /// The end of `store`. It receives nothing before [`Local::start`].
    pub fn join(&self, store: StoreId) -> Arc<Local> {
        Arc::new(Local {
            store,
            hub: self.clone(),
            sent: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            snapshots: AtomicU64::new(0),
            sending: Arc::new(AtomicUsize::new(0)),
        })
    }

    /// Cuts both directions between two stores.
    pub fn partition(&self, a: StoreId, b: StoreId) {
        self.cut(a, b);
        self.cut(b, a);
    }

    /// Cuts one direction: nothing sent by `from` reaches `to`, answers included.
    pub fn cut(&self, from: StoreId, to: StoreId) {
        self.inner.write().cut.insert((from, to));
    }

    /// Mends both directions between two stores.
    pub fn heal(&self, a: StoreId, b: StoreId) {
        let mut links = self.inner.write();
        links.cut.remove(&(a, b));
        links.cut.remove(&(b, a));
    }

    /// Mends everything.
    pub fn heal_all(&self) {
        self.inner.write().cut.clear();
    }

    /// The handler of `to`, if `from` can reach it. The lock is not held while it is called.
    fn reach(&self, from: StoreId, to: StoreId) -> Option<Arc<dyn Handler>> {
        let links = self.inner.read();
        if links.cut.contains(&(from, to)) {
            return None;
        }
        links.stores.get(&to).cloned()
    }
}

/// One store's end of a [`Hub`].
#[derive(Debug)]
pub struct Local {
    store: StoreId,
    hub: Hub,
    sent: AtomicU64,
    dropped: AtomicU64,
    refused: AtomicU64,
    snapshots: AtomicU64,
    sending: Arc<AtomicUsize>,
}

impl Local {
    /// Begins to receive.
    pub fn start(&self, handler: Arc<dyn Handler>) {
        self.hub.inner.write().stores.insert(self.store, handler);
    }
}

impl Transport for Local {
    fn send(&self, to: StoreId, _lane: Lane, mut envelopes: Vec<Envelope>) {
        let count = envelopes.len() as u64;
        match self.hub.reach(self.store, to) {
            Some(handler) => {
                for envelope in &mut envelopes {
                    envelope.from_store = self.store;
                }
                self.sent.fetch_add(count, Ordering::Relaxed);
                handler.envelopes(self.store, envelopes);
            }
            None => {
                self.dropped.fetch_add(count, Ordering::Relaxed);
                let own = self.hub.inner.read().stores.get(&self.store).cloned();
                if let Some(own) = own {
                    own.unreachable(to);
                }
            }
        }
    }

    fn beat(&self, to: StoreId, beat: Beat) {
        if let Some(handler) = self.hub.reach(self.store, to) {
            handler.beat(self.store, beat);
        }
    }

    fn request(&self, to: StoreId, id: u64, body: Bytes) -> Result<()> {
        let Some(handler) = self.hub.reach(self.store, to) else {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Error::Busy { what: "the other store is out of reach" });
        };
        let origin = Origin { store: Some(self.store), connection: self.store.0 };
        handler.request(origin, id, body);
        Ok(())
    }

    fn respond(&self, to: Origin, id: u64, body: Bytes) {
        let Some(asked) = to.store else { return };
        match self.hub.reach(self.store, asked) {
            Some(handler) => handler.response(self.store, id, body),
            None => {
                // The answer is lost: over a network the asking side's connection would break.
                let asked = self.hub.inner.read().stores.get(&asked).cloned();
                if let Some(asked) = asked {
                    asked.connection_lost(self.store);
                }
            }
        }
    }

    fn send_snapshot(&self, to: StoreId, job: SnapshotJob) {
        if self.sending.fetch_add(1, Ordering::AcqRel) >= MAX_SNAPSHOTS {
            self.sending.fetch_sub(1, Ordering::AcqRel);
            (job.done)(Err(Error::Busy { what: "snapshots being sent" }));
            return;
        }
        let SnapshotJob { header, source, done } = job;
        let (hub, from, sending) = (self.hub.clone(), self.store, self.sending.clone());
        // `done` must be called even if the thread cannot be had: it is shared through a slot.
        let slot = Arc::new(parking_lot::Mutex::new(Some(done)));
        let theirs = slot.clone();
        let spawned = std::thread::Builder::new().name("snapshot".into()).spawn(move || {
            let result = stream(&hub, from, to, header, source);
            sending.fetch_sub(1, Ordering::AcqRel);
            if let Some(done) = theirs.lock().take() {
                done(result);
            }
        });
        match spawned {
            Ok(_) => {
                self.snapshots.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                self.sending.fetch_sub(1, Ordering::AcqRel);
                if let Some(done) = slot.lock().take() {
                    done(Err(Error::io("spawn", "a snapshot thread", error)));
                }
            }
        }
    }

    fn shutdown(&self) {
        self.hub.inner.write().stores.remove(&self.store);
    }

    fn stats(&self) -> Stats {
        Stats {
            sent_envelopes: self.sent.load(Ordering::Relaxed),
            dropped_envelopes: self.dropped.load(Ordering::Relaxed),
            refused_requests: self.refused.load(Ordering::Relaxed),
            snapshots_sent: self.snapshots.load(Ordering::Relaxed),
            ..Stats::default()
        }
    }
}

/// Runs a whole transfer. The link is looked at before every chunk, so a cut breaks it off.
fn stream(
    hub: &Hub,
    from: StoreId,
    to: StoreId,
    header: Bytes,
    mut source: Box<dyn super::SnapshotSource>,
) -> Result<()> {
    let reach =
        || hub.reach(from, to).ok_or(Error::Busy { what: "the other store is out of reach" });
    let mut sink = reach()?.snapshot_begin(from, header)?;
    while let Some(bytes) = source.next()? {
        reach()?;
        sink.chunk(bytes)?;
    }
    reach()?;
    sink.finish()
}
