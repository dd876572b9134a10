//! The words of the house: ids, epochs, key ranges, regions, and what a replica durably knows of its
//! region. Plain data, no behaviour beyond what the words mean.

pub(crate) mod ahead;
mod map;
pub(crate) mod slab;

use bytes::Bytes;
pub(crate) use map::IdMap;
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $letter:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($letter, "{}"), self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

id!(
    /// A store: one data directory and its loops. Never reused.
    StoreId, "s"
);
id!(
    /// A region: one key range and the raft group that replicates it. Never reused.
    RegionId, "r"
);
id!(
    /// One replica of a region; also its raft node id. A re-created replica has a larger one.
    PeerId, "p"
);

/// Monotonic time in nanoseconds since an origin that the caller fixes (process start, or the start
/// of a simulation). Comes into the deterministic zone only as an argument.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Time(pub u64);

impl Time {
    /// This instant moved by `duration`.
    pub fn after(self, duration: std::time::Duration) -> Time {
        Time(self.0.saturating_add(duration.as_nanos() as u64))
    }

    /// How long ago `earlier` was; zero if it lies ahead.
    pub fn since(self, earlier: Time) -> std::time::Duration {
        std::time::Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The version of a region's shape. Grows, never shrinks; requests carry it and are refused when it
/// does not match.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Epoch {
    /// Grows with the number of changed peers.
    pub conf_ver: u64,
    /// Grows with split and merge.
    pub version: u64,
}

/// `[start, end)`; an empty `end` means "no upper end".
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub struct KeyRange {
    /// Inclusive.
    pub start: Bytes,
    /// Exclusive; empty = unbounded.
    pub end: Bytes,
}

impl KeyRange {
    /// The whole key space.
    pub fn all() -> KeyRange {
        KeyRange::default()
    }

    /// `[start, end)`, an empty `end` meaning unbounded.
    pub fn new(start: impl Into<Bytes>, end: impl Into<Bytes>) -> KeyRange {
        KeyRange { start: start.into(), end: end.into() }
    }

    /// Whether `key` lies in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        // Nothing is compared with an empty bound: see `router::cache`.
        (self.start.is_empty() || key >= &self.start[..])
            && (self.end.is_empty() || key < &self.end[..])
    }

    /// Whether no key can lie in the range.
    pub fn is_empty(&self) -> bool {
        !self.end.is_empty() && self.start >= self.end
    }

    /// The keys in both ranges (possibly none: see [`is_empty`](Self::is_empty)).
    pub fn intersect(&self, other: &KeyRange) -> KeyRange {
        let start = (&self.start).max(&other.start).clone();
        let end = match (self.end.is_empty(), other.end.is_empty()) {
            (true, _) => other.end.clone(),
            (_, true) => self.end.clone(),
            _ => (&self.end).min(&other.end).clone(),
        };
        KeyRange { start, end }
    }

    /// The smallest range that holds every key of both, and what lies between them.
    pub fn hull(&self, other: &KeyRange) -> KeyRange {
        let end = match self.end.is_empty() || other.end.is_empty() {
            true => Bytes::new(),
            false => (&self.end).max(&other.end).clone(),
        };
        KeyRange { start: (&self.start).min(&other.start).clone(), end }
    }

    /// Whether every key of `other` lies in this range.
    pub fn covers(&self, other: &KeyRange) -> bool {
        self.start <= other.start
            && (self.end.is_empty() || (!other.end.is_empty() && other.end <= self.end))
    }
}

/// What a replica counts for in its group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub enum Role {
    /// Votes and counts in quorums.
    #[default]
    Voter,
    /// Receives the log only.
    Learner,
    /// In a joint configuration: votes in the new one, was a learner in the old one.
    Incoming,
    /// In a joint configuration: votes in the old one, is to be a learner in the new one.
    Demoting,
    /// Receives the log only, and is on its way: to vote, or to go. Its region's leader removes one that has arrived and
    /// that nobody comes for.
    Passing,
}

impl Role {
    /// Whether it counts in a quorum: of one half of a joint configuration at least.
    pub fn votes(self) -> bool {
        !self.is_learner()
    }

    /// Whether it receives the log and nothing else.
    pub fn is_learner(self) -> bool {
        matches!(self, Role::Learner | Role::Passing)
    }
}

/// One replica of a region.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Peer {
    /// The replica, and its raft node id.
    pub id: PeerId,
    /// Where it lives.
    pub store: StoreId,
    /// What it counts for.
    pub role: Role,
}

/// A region: which keys, which version of its shape, which replicas.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Region {
    /// Its id.
    pub id: RegionId,
    /// Its keys.
    pub range: KeyRange,
    /// The version of its shape.
    pub epoch: Epoch,
    /// Its replicas.
    pub peers: Vec<Peer>,
}

impl Region {
    /// The replica on `store`, if there is one.
    pub fn peer_on(&self, store: StoreId) -> Option<Peer> {
        self.peers.iter().copied().find(|p| p.store == store)
    }

    /// Whether the region is between two configurations, and needs a quorum of each.
    pub fn is_joint(&self) -> bool {
        self.peers.iter().any(|peer| matches!(peer.role, Role::Incoming | Role::Demoting))
    }

    /// The replica with this id, if there is one.
    pub fn peer(&self, id: PeerId) -> Option<Peer> {
        self.peers.iter().copied().find(|p| p.id == id)
    }
}

/// A place in a raft log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct LogPosition {
    /// Entry index, counted from 1.
    pub index: u64,
    /// The term the entry was proposed in.
    pub term: u64,
}

/// Where every new region's log starts, on every replica: its first entry has index 6.
pub const INITIAL_POSITION: LogPosition = LogPosition { index: 5, term: 5 };

/// What a store durably knows of its replica of one region. Written in the same atomic batch as the
/// data that the position describes.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct RegionState {
    /// The region as of `applied`.
    pub region: Region,
    /// The local replica.
    pub peer: PeerId,
    /// The last entry whose effects the state store holds.
    pub applied: LogPosition,
    /// The replicated compaction point: entries up to here may be dropped (never above `applied`).
    pub compacted: LogPosition,
    /// Of [`FIRST_REGION`] alone, 0 in all others: the smallest id that no region and no peer has had.
    pub next_id: u64,
    /// Replicas of this region, or of one that was merged into it, that are not yet known to be gone for good.
    pub removed: Vec<Departed>,
    /// Set while the region is frozen, to be merged into another; of a tombstone: that it ended so.
    pub merging: Option<Merging>,
    /// Of [`FIRST_REGION`] alone, empty in all others: the record of the cluster's stores, as
    /// [`Directory`](crate::codec::directory::Directory) writes it.
    pub directory: Bytes,
}

/// A former replica.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Departed {
    /// The region it was a replica of.
    pub region: RegionId,
    /// Which one.
    pub id: PeerId,
    /// Where it lived, and maybe lives still.
    pub store: StoreId,
}

/// A region on its way into its neighbour.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Merging {
    /// The neighbour.
    pub target: RegionId,
    /// Where the neighbour begins.
    pub start: Bytes,
    /// The neighbour's shape: in another one it refuses.
    pub epoch: Epoch,
    /// What some replica of the region may have lacked when it was frozen: the entries from here on.
    pub first: u64,
    /// The entry that froze it, its last one that matters.
    pub at: LogPosition,
}

/// The position of a dead replica: nothing of its log is needed any more.
pub const DEAD: LogPosition = LogPosition { index: u64::MAX, term: u64::MAX };

impl RegionState {
    /// What is left of a replica that was destroyed: `peer` and every smaller one of the region have lived
    /// on this store and never will again. The range is the one that was deleted.
    pub fn tombstone(mut region: Region, peer: PeerId) -> RegionState {
        region.peers.clear();
        RegionState { region, peer, applied: DEAD, ..Default::default() }
    }

    /// Whether this is a [`tombstone`](Self::tombstone).
    pub fn is_tombstone(&self) -> bool {
        self.applied == DEAD
    }
}

/// The region that keeps the cluster's own record. It exists from the start and for ever.
pub const FIRST_REGION: RegionId = RegionId(1);

/// One opening of a data directory. An old copy of the directory counts less than others remember; two copies that
/// count alike differ in the life.
///
/// * Of one life `number` grows: a node that writes marks its directory now and then, as if it had been opened anew. So
///   a copy that was made while it ran is older than what others remember, too.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Start {
    /// Openings and marks so far, this one included.
    pub number: u64,
    /// Drawn at this opening.
    pub life: u64,
}

/// Who a data directory is. Kept in both engines; they must agree.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct StoreIdent {
    /// The cluster it belongs to.
    pub cluster: u64,
    /// The store.
    pub store: StoreId,
    /// Drawn once at creation: a directory wiped and made anew differs in it.
    pub incarnation: u64,
}
