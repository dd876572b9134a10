//! The network: one tokio listener, one dialled connection per peer node, snapshots apart.
//!
//! Rooms: `stream` reads and writes frames, `dial` keeps a connection to each peer alive,
//! `accept` serves those who dial us, `complaints` bounds what is logged about them, `ship` and `receive`
//! the two ends of a snapshot's way. All tasks hang on one stop signal.
//!
//! * A task per connection and direction, none per group. Queues are in
//!   `transport::queue`, bounded in bytes.
//! * While a peer is out of reach its queue is closed: messages to it are dropped at once, requests
//!   answered `Busy`; reconnecting backs off exponentially with jitter, and stops waiting as soon as
//!   that peer dials us.
//! * A store that has left is cut off: every task that has to do with it ends, and so its connections.

mod accept;
mod complaints;
mod dial;
mod receive;
mod ship;
pub(crate) mod stream;

use super::payload::MAX_SHARED_FRAME;
use super::queue::Outbox;
use super::{Envelope, Handler, Lane, Origin, SlotAnswer, Stats, Transport, frame::Kind};
use crate::codec::beat::{self, Beat};
use crate::error::{Error, Result};
use crate::types::{Start, StoreId};
use bytes::Bytes;
use complaints::{Complaint, Complaints};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;

/// Stores that may introduce themselves, of all that are known.
const INTRODUCED_MAX: usize = 1024;

/// Who we are, whom we know, and every limit.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster; a connection from another one is refused.
    pub cluster: u64,
    /// Who we are.
    pub store: StoreId,
    /// The incarnation of our data directory.
    pub incarnation: u64,
    /// Which opening of it this is: others keep out a copy from before a start that they remember.
    pub start: Start,
    /// Where to listen. Port 0 takes a free one, see [`Tcp::local_addr`].
    pub listen: SocketAddr,
    /// Where the others listen, `host:port`. More by [`Tcp::set_peer`], and by those who introduce themselves.
    pub peers: BTreeMap<StoreId, String>,
    /// Where we listen, told to whomever we dial: for a node whose address the others were not given.
    pub advertise: Option<String>,
    /// Longest frame, bytes. The same on every node.
    pub max_frame: usize,
    /// Bytes that may wait for one peer node or for one connection's answers.
    pub peer_budget: usize,
    /// Bytes of large frames being received, over all connections.
    pub receive_budget: usize,
    /// Connections accepted at the same time.
    pub max_connections: usize,
    /// For dialling and for the whole handshake.
    pub handshake_timeout: Duration,
    /// How often each side says "I am here" when there is nothing else to say.
    pub ping: Duration,
    /// Silence after which a connection is dead: at least three times the others' `ping`.
    pub idle_timeout: Duration,
    /// For one frame to arrive whole, and for one write to be taken.
    pub frame_timeout: Duration,
    /// First wait before dialling again.
    pub backoff_min: Duration,
    /// Longest wait before dialling again.
    pub backoff_max: Duration,
    /// How long a reserved slot waits for its snapshot, a transfer for its next chunk, a sender for the receiver to
    /// hold everything, and a broken transfer for a connection that lasts.
    pub snapshot_timeout: Duration,
    /// Bytes of snapshots sent per second, all together; 0 is as fast as it goes.
    pub snapshot_rate: u64,
}

impl Config {
    /// The usual limits.
    pub fn new(cluster: u64, store: StoreId, incarnation: u64, listen: SocketAddr) -> Config {
        Config {
            cluster,
            store,
            incarnation,
            start: Start::default(),
            listen,
            peers: BTreeMap::new(),
            advertise: None,
            max_frame: 64 << 20,
            peer_budget: 64 << 20,
            receive_budget: 512 << 20,
            max_connections: 4096,
            handshake_timeout: Duration::from_secs(5),
            ping: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(10),
            frame_timeout: Duration::from_secs(30),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(1),
            snapshot_timeout: Duration::from_secs(60),
            snapshot_rate: 100 << 20,
        }
    }
}

/// What is counted, as [`Stats`] reports it.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) sent_envelopes: AtomicU64,
    pub(crate) sent_bytes: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) received_envelopes: AtomicU64,
    pub(crate) received_bytes: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) dropped_envelopes: AtomicU64,
    pub(crate) refused_requests: AtomicU64,
    pub(crate) dialled: AtomicU64,
    pub(crate) accepted: AtomicU64,
    pub(crate) refused_connections: AtomicU64,
    pub(crate) malformed: AtomicU64,
    pub(crate) snapshots_sent: AtomicU64,
    pub(crate) snapshots_received: AtomicU64,
    pub(crate) snapshot_bytes_sent: AtomicU64,
    pub(crate) snapshot_bytes_received: AtomicU64,
    pub(crate) snapshots_resumed: AtomicU64,
    pub(crate) snapshots_cancelled: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, more: u64) {
        counter.fetch_add(more, Ordering::Relaxed);
    }
}

/// A peer node, as the sending side sees it.
struct Peer {
    store: StoreId,
    address: Mutex<Option<String>>,
    outbox: Outbox,
    /// Its dialling task has been started.
    dialling: AtomicBool,
    /// Cuts a back-off short: the peer lives.
    alive: Notify,
    /// When messages over budget were last reported.
    reported: Mutex<Option<Instant>>,
}

/// A connection that answers go out on.
struct Accepted {
    outbox: Outbox,
    close: Notify,
}

struct Shared {
    config: Config,
    handle: Handle,
    handler: RwLock<Option<Arc<dyn Handler>>>,
    peers: Mutex<BTreeMap<StoreId, Arc<Peer>>>,
    accepted: Mutex<HashMap<u64, Arc<Accepted>>>,
    next_connection: AtomicU64,
    open: Arc<Semaphore>,
    pacer: ship::Pacer,
    budget: stream::Budget,
    counters: Arc<Counters>,
    complaints: Complaints,
    /// Stores that are not to be talked to any more.
    cut_off: watch::Sender<BTreeSet<StoreId>>,
    stop: watch::Sender<bool>,
}

impl Shared {
    fn handler(&self) -> Option<Arc<dyn Handler>> {
        self.handler.read().clone()
    }

    /// Runs `work` until it ends or the transport stops.
    fn spawn(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        let mut stop = self.stop.subscribe();
        self.handle.spawn(async move {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stopped| *stopped) => {}
                () = work => {}
            }
        });
    }

    /// Until the store is cut off; at once, if it is.
    async fn cut_off(&self, store: StoreId) -> Error {
        // It ends early only with the transport, and then the tasks that wait here do.
        let _ = self.cut_off.subscribe().wait_for(|stores| stores.contains(&store)).await;
        Error::Identity(format!("{store} has left for good"))
    }

    fn patience(&self) -> stream::Patience {
        stream::Patience { idle: self.config.idle_timeout, frame: self.config.frame_timeout }
    }

    fn pace(&self) -> stream::Pace {
        stream::Pace {
            max_frame: self.config.max_frame,
            ping: self.config.ping,
            stall: self.config.frame_timeout,
        }
    }

    /// A store has said where it listens. What the configuration says of it stands.
    fn introduced(self: &Arc<Self>, store: StoreId, address: String, from: SocketAddr) {
        let known = self.peers.lock();
        let full = known.len() >= INTRODUCED_MAX && !known.contains_key(&store);
        drop(known);
        if full || self.config.peers.contains_key(&store) {
            return;
        }
        // Whoever listens everywhere does not know under which address we see it.
        let address = match address.parse::<SocketAddr>() {
            Ok(at) if at.ip().is_unspecified() => SocketAddr::new(from.ip(), at.port()).to_string(),
            _ => address,
        };
        let peer = self.peer(store);
        let before = peer.address.lock().replace(address.clone());
        if before.as_ref() != Some(&address) {
            tracing::info!(%store, address, "introduced itself");
            peer.alive.notify_one();
        }
    }

    /// The sending side's view of `store`, made (and its dialling begun) when first needed.
    fn peer(self: &Arc<Self>, store: StoreId) -> Arc<Peer> {
        let peer = self
            .peers
            .lock()
            .entry(store)
            .or_insert_with(|| {
                Arc::new(Peer {
                    store,
                    address: Mutex::new(self.config.peers.get(&store).cloned()),
                    outbox: Outbox::new(self.config.peer_budget),
                    dialling: AtomicBool::new(false),
                    alive: Notify::new(),
                    reported: Mutex::new(None),
                })
            })
            .clone();
        if !peer.dialling.swap(true, Ordering::AcqRel) {
            let shared = self.clone();
            let theirs = peer.clone();
            self.spawn(async move { dial::keep(shared, theirs).await });
        }
        peer
    }
}

/// The transport over TCP. Cheap to clone; all clones are one transport.
#[derive(Clone)]
pub struct Tcp {
    shared: Arc<Shared>,
    address: SocketAddr,
    listener: Arc<Mutex<Option<tokio::net::TcpListener>>>,
}

impl std::fmt::Debug for Tcp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tcp")
            .field("store", &self.shared.config.store)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Tcp {
    /// Takes the address. Nobody is served and nothing is sent before [`start`](Self::start); `handle`
    /// is where the tasks will run.
    pub fn bind(config: Config, handle: Handle) -> Result<Tcp> {
        if config.max_frame < MAX_SHARED_FRAME || config.max_frame > u32::MAX as usize {
            return Err(Error::InvalidArgument(format!(
                "max_frame {} is not between {MAX_SHARED_FRAME} and 4 GiB",
                config.max_frame
            )));
        }
        let name = config.listen.to_string();
        let listener = std::net::TcpListener::bind(config.listen)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|e| Error::io("listen on", &name, e))?;
        let _inside = handle.enter();
        let listener = tokio::net::TcpListener::from_std(listener)
            .map_err(|e| Error::io("listen on", &name, e))?;
        let address = listener.local_addr().map_err(|e| Error::io("listen on", &name, e))?;
        let shared = Arc::new(Shared {
            handler: RwLock::new(None),
            peers: Mutex::default(),
            accepted: Mutex::default(),
            next_connection: AtomicU64::new(1),
            open: Arc::new(Semaphore::new(config.max_connections)),
            pacer: ship::Pacer::new(config.snapshot_rate),
            budget: stream::Budget::new(config.receive_budget),
            counters: Arc::default(),
            complaints: Complaints::default(),
            cut_off: watch::Sender::new(BTreeSet::new()),
            stop: watch::Sender::new(false),
            handle: handle.clone(),
            config,
        });
        Ok(Tcp { shared, address, listener: Arc::new(Mutex::new(Some(listener))) })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves and sends from now on.
    pub fn start(&self, handler: Arc<dyn Handler>) {
        let Some(listener) = self.listener.lock().take() else { return };
        *self.shared.handler.write() = Some(handler);
        let shared = self.shared.clone();
        self.shared.spawn(async move { accept::listen(shared, listener).await });
    }

    /// Where `store` listens from now on. A live connection stays; the next dial uses it.
    pub fn set_peer(&self, store: StoreId, address: String) {
        let peer = self.shared.peer(store);
        let before = peer.address.lock().replace(address.clone());
        if before != Some(address) {
            peer.alive.notify_one();
        }
    }
}

impl Transport for Tcp {
    fn send(&self, to: StoreId, lane: Lane, envelopes: Vec<Envelope>) {
        let shared = &self.shared;
        let peer = shared.peer(to);
        let pushed = peer.outbox.push(lane, envelopes);
        if pushed.dropped == 0 {
            return;
        }
        Counters::add(&shared.counters.dropped_envelopes, pushed.dropped as u64);
        if !pushed.full {
            return; // closed: the dialling task reports it, once per back-off
        }
        let now = Instant::now();
        let mut reported = peer.reported.lock();
        if reported.is_some_and(|last| now < last + shared.config.backoff_max) {
            return;
        }
        *reported = Some(now);
        tracing::warn!(store = %to, dropped = pushed.dropped, "over the byte budget of this peer");
        // Not on the caller's thread: it may hold its own locks.
        if let Some(handler) = shared.handler() {
            shared.spawn(async move { handler.unreachable(to) });
        }
    }

    fn beat(&self, to: StoreId, beat: Beat) {
        // Without room for a beat, better none: the next one says more.
        let body = beat::encode(&beat);
        let _ = self.shared.peer(to).outbox.push_call(Kind::Beat, beat.number, body);
    }

    fn request(&self, to: StoreId, id: u64, body: Bytes) -> Result<()> {
        if body.len() + 8 > self.shared.config.max_frame {
            let len = body.len();
            return Err(Error::InvalidArgument(format!("a request of {len} bytes")));
        }
        match self.shared.peer(to).outbox.push_call(Kind::Request, id, body) {
            true => Ok(()),
            false => {
                Counters::add(&self.shared.counters.refused_requests, 1);
                Err(Error::Busy { what: "the other store is out of reach or its queue is full" })
            }
        }
    }

    fn respond(&self, to: Origin, id: u64, body: Bytes) {
        let Some(connection) = self.shared.accepted.lock().get(&to.connection).cloned() else {
            return;
        };
        let fits = body.len() + 8 <= self.shared.config.max_frame;
        if !fits || !connection.outbox.push_call(Kind::Response, id, body) {
            if let Some(left_out) = self.shared.complaints.may_say(Complaint::Unread) {
                tracing::warn!(
                    origin = ?to,
                    left_out,
                    "an answer does not fit: closing the connection"
                );
            }
            connection.close.notify_one();
        }
    }

    fn ask_snapshot(&self, to: StoreId, ask: Bytes, answer: SlotAnswer) {
        ship::ask(&self.shared, to, ask, answer);
    }

    fn set_peer(&self, store: StoreId, address: String) {
        Tcp::set_peer(self, store, address);
    }

    fn cut_off(&self, store: StoreId) {
        self.shared.cut_off.send_if_modified(|stores| stores.insert(store));
    }

    fn shutdown(&self) {
        self.shared.stop.send_replace(true);
        *self.shared.handler.write() = None;
        self.listener.lock().take();
        for peer in self.shared.peers.lock().values() {
            peer.outbox.close();
        }
    }

    fn stats(&self) -> Stats {
        let c = &self.shared.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let queued: usize = self.shared.peers.lock().values().map(|p| p.outbox.bytes()).sum();
        Stats {
            sent_envelopes: get(&c.sent_envelopes),
            sent_bytes: get(&c.sent_bytes),
            writes: get(&c.writes),
            received_envelopes: get(&c.received_envelopes),
            received_bytes: get(&c.received_bytes),
            reads: get(&c.reads),
            dropped_envelopes: get(&c.dropped_envelopes),
            refused_requests: get(&c.refused_requests),
            dialled: get(&c.dialled),
            accepted: get(&c.accepted),
            refused_connections: get(&c.refused_connections),
            malformed: get(&c.malformed),
            snapshots_sent: get(&c.snapshots_sent),
            snapshots_received: get(&c.snapshots_received),
            snapshot_bytes_sent: get(&c.snapshot_bytes_sent),
            snapshot_bytes_received: get(&c.snapshot_bytes_received),
            snapshots_resumed: get(&c.snapshots_resumed),
            snapshots_cancelled: get(&c.snapshots_cancelled),
            queued_bytes: queued as u64,
            connections: self.shared.accepted.lock().len() as u64,
        }
    }
}
