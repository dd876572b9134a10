//! The mail room: everything that stores and clients say to each other, over as few connections as
//! there are nodes.
//!
//! All groups of a node pair share one connection per direction of dial: the side that dialled sends
//! raft messages and requests on it, answers to requests come back on it. Messages of all groups are
//! folded into large frames ([`frame`], [`payload`]); votes and heartbeats ([`Lane::Control`]) leave
//! before appends ([`Lane::Bulk`]). Snapshots travel on connections of their own.
//!
//! Protocol:
//! * A [`Transport`] never blocks its caller. What does not fit a peer's byte budget is dropped and
//!   counted, and the peer is reported unreachable, once per back-off: raft sends again.
//! * Order is kept within a lane of one node pair as long as its connection lives; between lanes and
//!   across connections it is not. Messages may be lost, never altered (crc32c) and, by this room,
//!   never duplicated.
//! * A request is answered at most once. When its connection breaks first, the asking side hears
//!   [`Handler::connection_lost`] and must call the outcome unknown.
//! * Bytes from outside are never trusted: caps before allocation, a budget for all that is being
//!   received, a time limit for handshakes and unfinished frames. A violation is logged, answered by
//!   a refusal where that is possible, and costs the sender its connection.
//!
//! [`tcp`] is the network, [`local`] its in-process twin, [`remote`] the client's end of it. The bytes
//! are described in `format.md` beside this file, with a golden test in `tests/transport_golden.rs`.
//!
//! The life of a **snapshot**: the sender asks ([`Transport::ask_snapshot`]) before it has made anything; the receiver
//! reserves a slot ([`Handler::snapshot_reserve`]) or refuses; the sender makes the snapshot and sends its header, the
//! receiver says how much of exactly this snapshot it holds already; chunks follow, at a rate that all transfers of a
//! node share; the receiver says that it holds everything. A connection that breaks in between is dialled again, a
//! slot asked for again, and the transfer goes on at the first chunk that the receiver does not hold: for as long as
//! something was sent within the last [`snapshot_timeout`](Config::snapshot_timeout). A sender that is
//! told to stop ([`Cancel`]) says so, and the receiver throws away what it has. Neither end resumes across its
//! own restart: the view that a snapshot was cut from is gone then, or the file that it was going to.
//!
//! Not done: mutual TLS (needs rustls, a feature of its own), and compression of bulk frames
//! (loopback and one rack do not want it).

mod bucket;
mod ferry;
pub mod frame;
pub mod local;
pub mod payload;
mod queue;
pub mod remote;
pub mod tcp;

use crate::codec::beat::Beat;
use crate::error::Result;
use crate::types::{Start, StoreId};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use crate::raft::{Envelope, Lane, Note};
pub use local::{Hub, Local};
pub use tcp::{Config, Tcp};

/// Where a request came from, and so where its answer goes: one connection of this transport.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Origin {
    /// The peer node that forwarded it; `None` for a client.
    pub store: Option<StoreId>,
    /// The connection, never reused within one transport.
    pub connection: u64,
}

/// A snapshot to be sent.
pub struct SnapshotJob {
    /// What it is (region, peers, position, identity): opaque here, the receiver decides by it.
    pub header: Bytes,
    /// Where the chunks come from. At most [`payload::MAX_CHUNK`] bytes each.
    pub source: Box<dyn SnapshotSource>,
    /// Ends it early.
    pub cancel: Cancel,
    /// Called exactly once: `Ok` when the receiver has said that it holds all of it.
    pub done: Box<dyn FnOnce(Result<()>) + Send>,
}

impl std::fmt::Debug for SnapshotJob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotJob").field("header", &self.header.len()).finish_non_exhaustive()
    }
}

/// The chunks of a snapshot, in order. May block: it is called where that is allowed.
pub trait SnapshotSource: Send + 'static {
    /// The next chunk (not empty), `None` after the last one.
    fn next(&mut self) -> Result<Option<Bytes>>;

    /// The next chunk shall be number `chunk`, from 0, which was given out before or is the next one anyway. It must
    /// have the same bytes as the first time; an error if that cannot be.
    fn rewind(&mut self, chunk: u64) -> Result<()>;
}

/// A slot at the receiver, reserved. It lapses after a while, or at once when this is dropped.
pub trait SnapshotSlot: Send + 'static {
    /// Sends the snapshot that the slot was asked for. Returns at once; the end is told to `job.done`, never
    /// on the caller's thread.
    fn send(self: Box<Self>, job: SnapshotJob);
}

/// Takes the answer to [`Transport::ask_snapshot`].
pub type SlotAnswer = Box<dyn FnOnce(Result<Box<dyn SnapshotSlot>>) + Send>;

/// Room that a receiver has reserved. Dropped, it is free again.
pub trait SnapshotRoom: Send + 'static {
    /// The snapshot is about to come. May block.
    fn begin(self: Box<Self>, header: Bytes) -> Result<Box<dyn SnapshotSink>>;
}

/// Tells a transfer to stop. Clones are one.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    inner: Arc<CancelInner>,
}

#[derive(Debug, Default)]
struct CancelInner {
    raised: AtomicBool,
    wake: tokio::sync::Notify,
}

impl Cancel {
    /// Stop, soon.
    pub fn cancel(&self) {
        self.inner.raised.store(true, Ordering::SeqCst);
        self.inner.wake.notify_waiters();
    }

    /// Whether it was told to.
    pub fn is_cancelled(&self) -> bool {
        self.inner.raised.load(Ordering::SeqCst)
    }

    /// Until it is.
    pub(crate) async fn cancelled(&self) {
        let woken = self.inner.wake.notified();
        tokio::pin!(woken);
        // Before the look, so that no call in between is missed.
        woken.as_mut().enable();
        if !self.is_cancelled() {
            woken.await;
        }
    }
}

/// Where a received snapshot goes. May block. Dropped without [`finish`](Self::finish) or
/// [`cancel`](Self::cancel), the connection broke: the sender may come back with the same header.
pub trait SnapshotSink: Send + 'static {
    /// What it holds from an earlier connection: chunks, and bytes in them. The next chunk is the one behind them.
    fn held(&self) -> (u64, u64) {
        (0, 0)
    }

    /// The next chunk, already behind its checksum.
    fn chunk(&mut self, bytes: Bytes) -> Result<()>;
    /// All chunks have come. Returns when the receiver holds them; the sender is told then.
    fn finish(self: Box<Self>) -> Result<()>;

    /// The sender has given it up: nothing is to be kept.
    fn cancel(self: Box<Self>) {}
}

/// Sends. Object-safe; every call returns at once, whatever the state of the network.
pub trait Transport: Send + Sync + 'static {
    /// Sends raft messages to the replicas on `to`: best effort. What is over that store's byte budget
    /// is dropped, counted in [`Stats`], and reported by [`Handler::unreachable`].
    fn send(&self, to: StoreId, lane: Lane, envelopes: Vec<Envelope>);

    /// Tells a peer node that this one is there: best effort, and never a reason to report it unreachable.
    /// (Over a transport that does not carry beats all groups stay awake.)
    fn beat(&self, to: StoreId, beat: Beat) {
        let _ = (to, beat);
    }

    /// Forwards a client's request to another store. `id` comes back with the answer; the caller keeps
    /// it unique among its outstanding requests and notes it before this call. [`Busy`](crate::Error::Busy) when the store's budget
    /// is full or the store is known to be out of reach: then nothing was sent. After `Ok` there is an
    /// answer or a [`Handler::connection_lost`].
    fn request(&self, to: StoreId, id: u64, body: Bytes) -> Result<()>;

    /// Answers request `id` of `to`. If that connection is gone, the answer is dropped; if it does not
    /// read its answers, it is closed (its other side then knows that the outcome is unknown).
    fn respond(&self, to: Origin, id: u64, body: Bytes);

    /// Asks a store for a slot for one snapshot, which `ask` describes to it (at most
    /// [`payload::MAX_SNAPSHOT_ASK`] bytes). The answer comes exactly once, never on the caller's thread:
    /// [`Busy`](crate::Error::Busy) is "not now", [`InvalidArgument`](crate::Error::InvalidArgument) "no use for it".
    fn ask_snapshot(&self, to: StoreId, ask: Bytes, answer: SlotAnswer);

    /// Where a store listens from now on, for transports that dial.
    fn set_peer(&self, store: StoreId, address: String) {
        let _ = (store, address);
    }

    /// A store has left for good: its connections are closed, and none to or from it lasts any more. What was asked
    /// over them has an unknown outcome.
    fn cut_off(&self, store: StoreId);

    /// Stops sending, closes every connection, lets go of the handler. No call to it begins afterwards
    /// but those already under way.
    fn shutdown(&self);

    /// What happened so far.
    fn stats(&self) -> Stats;
}

/// Receives: implemented by the node.
///
/// Called from network tasks, and by [`Local`] on the sender's own thread: enqueue and return. Do not
/// block (the snapshot calls may), and do not hold a lock around a call to the [`Transport`] that one of
/// these methods takes too.
pub trait Handler: Send + Sync + 'static {
    /// Raft messages, as many as one read brought.
    fn envelopes(&self, from: StoreId, envelopes: Vec<Envelope>);

    /// A beat of a peer node.
    fn beat(&self, from: StoreId, beat: Beat) {
        let _ = (from, beat);
    }

    /// A request, to be answered by [`Transport::respond`].
    fn request(&self, origin: Origin, id: u64, body: Bytes);

    /// As many requests as one read brought, in order.
    fn requests(&self, origin: Origin, requests: Vec<(u64, Bytes)>) {
        for (id, body) in requests {
            self.request(origin, id, body);
        }
    }

    /// The answer to a request that this node sent to `from`.
    fn response(&self, from: StoreId, id: u64, body: Bytes);

    /// As many answers as one read brought, in order.
    fn responses(&self, from: StoreId, responses: Vec<(u64, Bytes)>) {
        for (id, body) in responses {
            self.response(from, id, body);
        }
    }

    /// Messages to `store` were lost or will be. Once per back-off.
    fn unreachable(&self, store: StoreId);

    /// The connection to `store` broke: requests sent to it and not yet answered have an unknown
    /// outcome. Requests made after this call are not meant.
    fn connection_lost(&self, store: StoreId);

    /// A connection to or from a store came up, which claims this incarnation, at this start. An error closes it: a
    /// wiped store that comes back under its old id can be kept out here, and an old copy of one.
    fn hello(&self, from: StoreId, incarnation: u64, start: Start) -> Result<()> {
        let _ = (from, incarnation, start);
        Ok(())
    }

    /// A store wants to send a snapshot: reserve room for it, or refuse. May block.
    fn snapshot_reserve(&self, from: StoreId, ask: Bytes) -> Result<Box<dyn SnapshotRoom>>;
}

/// What a transport did since it was made. Counters, but for the two gauges at the end.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Stats {
    /// Raft messages written to a connection (or handed over, in process).
    pub sent_envelopes: u64,
    /// Bytes written, frames and all.
    pub sent_bytes: u64,
    /// Writes to sockets: far fewer than messages.
    pub writes: u64,
    /// Raft messages handed to the handler.
    pub received_envelopes: u64,
    /// Bytes read.
    pub received_bytes: u64,
    /// Reads from sockets.
    pub reads: u64,
    /// Raft messages given up: over budget, peer out of reach, connection broken.
    pub dropped_envelopes: u64,
    /// Requests refused with `Busy`.
    pub refused_requests: u64,
    /// Connections that this side dialled and that came up.
    pub dialled: u64,
    /// Connections accepted, after a good handshake.
    pub accepted: u64,
    /// Handshakes refused: wrong cluster, version or store, silence, too many connections.
    pub refused_connections: u64,
    /// Connections closed because of bytes that do not parse.
    pub malformed: u64,
    /// Snapshots sent to the end.
    pub snapshots_sent: u64,
    /// Snapshots received to the end.
    pub snapshots_received: u64,
    /// Bytes of snapshots' chunks sent, again after a break included.
    pub snapshot_bytes_sent: u64,
    /// Bytes of snapshots' chunks received.
    pub snapshot_bytes_received: u64,
    /// Snapshots that went on over another connection after theirs had broken.
    pub snapshots_resumed: u64,
    /// Snapshots that the sender, here, was told to stop.
    pub snapshots_cancelled: u64,
    /// Gauge: bytes waiting to be written.
    pub queued_bytes: u64,
    /// Gauge: connections open.
    pub connections: u64,
}
