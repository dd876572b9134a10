//! The network's twin inside one process: a [`Hub`] joins any number of stores, messages are handed
//! over as they are, without bytes. For tests, demos and the consensus benchmark.
//!
//! Messages, requests and answers reach the other side's [`Handler`] on the caller's thread. Each question for a
//! snapshot's slot, and the snapshot in it, has a thread of its own (`ferry`): whoever asks keeps
//! their number bounded. Links can be cut and mended, one way or
//! both, to see what the node makes of it. A store that has left is cut off for as long as the end lasts that did it.

use super::ferry::{self, Ferry};
use super::{Envelope, Handler, Lane, Origin, SlotAnswer, Stats, Transport};
use crate::codec::beat::Beat;
use crate::error::{Error, Result};
use crate::types::StoreId;
use bytes::Bytes;
use parking_lot::RwLock;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Joins the stores of one process.
#[derive(Clone, Default)]
pub struct Hub {
    inner: Arc<RwLock<Links>>,
}

#[derive(Default)]
struct Links {
    stores: BTreeMap<StoreId, Arc<dyn Handler>>,
    cut: BTreeSet<(StoreId, StoreId)>,
    /// Who has cut off whom, for having left.
    left: BTreeSet<(StoreId, StoreId)>,
}

impl Links {
    fn is_open(&self, from: StoreId, to: StoreId) -> bool {
        let left = self.left.contains(&(from, to)) || self.left.contains(&(to, from));
        !left && !self.cut.contains(&(from, to))
    }
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
        self.join_limited(store, Duration::from_secs(60), 0)
    }

    /// The same, with limits for snapshots: how long a broken transfer tries to go on, and bytes per second (0: none).
    pub fn join_limited(&self, store: StoreId, patience: Duration, rate: u64) -> Arc<Local> {
        Arc::new(Local {
            store,
            hub: self.clone(),
            sent: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            ferry: Ferry::new(patience, rate),
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

    /// Mends everything; who has left stays cut off.
    pub fn heal_all(&self) {
        self.inner.write().cut.clear();
    }

    /// The handler of `to`, if `from` can reach it. The lock is not held while it is called.
    pub(super) fn reach(&self, from: StoreId, to: StoreId) -> Option<Arc<dyn Handler>> {
        let links = self.inner.read();
        links.stores.get(&to).filter(|_| links.is_open(from, to)).cloned()
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
    ferry: Arc<Ferry>,
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

    fn ask_snapshot(&self, to: StoreId, ask: Bytes, answer: SlotAnswer) {
        ferry::ask(&self.ferry, &self.hub, (self.store, to), ask, answer);
    }

    fn cut_off(&self, store: StoreId) {
        let mut links = self.hub.inner.write();
        if !links.left.insert((self.store, store)) {
            return;
        }
        let ends = [(self.store, store), (store, self.store)];
        let ends = ends.map(|(here, there)| (links.stores.get(&here).cloned(), there));
        drop(links);
        // What either had asked the other is not answered any more.
        for (here, there) in ends {
            if let Some(here) = here {
                here.connection_lost(there);
            }
        }
    }

    fn shutdown(&self) {
        let mut links = self.hub.inner.write();
        links.stores.remove(&self.store);
        links.left.retain(|(by, _)| *by != self.store);
    }

    fn stats(&self) -> Stats {
        Stats {
            sent_envelopes: self.sent.load(Ordering::Relaxed),
            dropped_envelopes: self.dropped.load(Ordering::Relaxed),
            refused_requests: self.refused.load(Ordering::Relaxed),
            ..self.ferry.stats()
        }
    }
}
