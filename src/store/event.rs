//! What can happen to a store.

use crate::codec::admin::Admin;
use crate::codec::beat::Beat;
use crate::kv::Cut;
use crate::raft::Envelope;
use crate::region::effects::{Applied, Aside, Birth, Delivered, Persisted, Token};
use crate::region::size::Measured;
use crate::region::snapshot::SnapshotFile;
use crate::types::{PeerId, RegionId, StoreId};
use bytes::Bytes;
use std::sync::Arc;

pub use crate::region::read::ReadLevel;

/// A client batch to replicate in one region.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// Whoever waits for the response.
    pub token: Token,
    /// The region its keys were routed to.
    pub region: RegionId,
    /// The epoch version it was routed for.
    pub version: u64,
    /// The state machine's command.
    pub command: Bytes,
}

/// A wish to read from a region's replica here.
#[derive(Clone, Debug)]
pub struct ReadRequest {
    /// Whoever waits for the grant.
    pub token: Token,
    /// The region.
    pub region: RegionId,
    /// The epoch version it was routed for.
    pub version: u64,
    /// How fresh the answer must be.
    pub level: ReadLevel,
}

/// What can happen to a store. Order between events of one region is the caller's; everything
/// asynchronous names region *and* peer.
#[derive(Debug)]
pub enum Event {
    /// One tick of the logical clock (one tick interval has passed on the monotonic clock).
    Tick,
    /// Another node is there; for the first loop.
    Beat {
        /// Which.
        from: StoreId,
        /// What it says.
        beat: Beat,
    },
    /// Messages from peers.
    Messages(Vec<Envelope>),
    /// Client batches.
    Propose(Vec<Proposal>),
    /// An administrative command for the region's leader.
    Admin {
        /// Whoever waits.
        token: Token,
        /// The region.
        region: RegionId,
        /// What to do.
        admin: Admin,
    },
    /// A replica begins its life: the state store holds its state. Any number of times.
    Born(Birth),
    /// The cluster is founded: the replicas of the first layout, all at once, in a store that had none. The state store
    /// holds their states.
    Founded(Vec<Birth>),
    /// A replica of another region on this store has something to say about a merge.
    Aside(Aside),
    /// A region was measured.
    Measured(Measured),
    /// A region could not be measured now.
    NotMeasured(RegionId),
    /// Reads.
    Read(Vec<ReadRequest>),
    /// Rounds whose log writes are durable, in order per peer.
    Persisted(Vec<Persisted>),
    /// Regions whose state machines moved.
    Applied(Vec<Applied>),
    /// The state store has flushed: what it holds durably.
    Flushed(Arc<Cut>),
    /// Messages to a store do not arrive.
    Unreachable(StoreId),
    /// There is a slot for a snapshot that was wanted. Answered by the snapshot or by a word that it is declined.
    SnapshotGranted {
        /// The region.
        region: RegionId,
        /// The local peer that wanted it.
        from: PeerId,
        /// The peer that it goes to.
        to: PeerId,
    },
    /// How streaming a snapshot ended.
    SnapshotSent {
        /// The region.
        region: RegionId,
        /// The local peer that sent it.
        from: PeerId,
        /// The peer it went to.
        to: PeerId,
        /// Whether the receiver confirmed all of it.
        delivered: Delivered,
    },
    /// A snapshot has arrived, its data durable in `file`.
    SnapshotReceived {
        /// The raft message that came with it.
        envelope: Envelope,
        /// The data.
        file: SnapshotFile,
    },
    /// Hand leadership of a region over: to the given store, or to the most advanced follower.
    Transfer {
        /// Whoever waits.
        token: Token,
        /// The region.
        region: RegionId,
        /// Where to.
        to: Option<StoreId>,
    },
    /// A write was refused before it came here, for want of space: somebody else is to lead the region.
    StepAside(RegionId),
    /// Tell where all replicas stand.
    Status(Token),
    /// Whether the disk has room for new proposals.
    DiskSpace(DiskSpace),
}

/// Whether the disk takes new proposals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskSpace {
    /// There is room.
    Enough,
    /// Refuse proposals; reads, heartbeats and compaction go on.
    Full,
}
