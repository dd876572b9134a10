//! What a round asks the shell to do, as values. The shell (or the simulator) does it in whatever
//! threads it has and reports back by events; nothing here does anything by itself.

use crate::codec::admin::Change;
use crate::codec::beat::Beat;
use crate::codec::directory::Directory;
use crate::codec::merge::Commit;
use crate::error::{Error, Result};
use crate::log::Seq;
use crate::raft::{Envelope, Lane};
use crate::region::snapshot::SnapshotFile;
use crate::types::{
    Departed, Epoch, KeyRange, LogPosition, Merging, PeerId, Region, RegionId, RegionState, Role,
    StoreId,
};
use bytes::Bytes;
use smallvec::SmallVec;

/// Names whoever waits for an answer; chosen by the shell, opaque here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(pub u64);

/// Messages by destination and lane, in order within each.
#[derive(Default, Debug)]
pub struct Outbox {
    queues: Vec<(StoreId, Lane, Vec<Envelope>)>,
    /// Messages that a queue has room for from the start.
    room: usize,
}

/// A queue has room for so many messages from the start, at most: it goes to a connection's queue as it is, where only what is in
/// it is counted.
const OUTBOX_ROOM_MAX: usize = 32;

impl Outbox {
    /// An empty one that may get so many messages for each destination.
    pub fn expecting(messages: usize) -> Outbox {
        Outbox { queues: Vec::new(), room: messages.min(OUTBOX_ROOM_MAX) }
    }

    /// The same for one that is there.
    pub fn expect(&mut self, messages: usize) {
        self.room = messages.min(OUTBOX_ROOM_MAX);
    }

    /// Adds a message.
    pub fn push(&mut self, to: StoreId, envelope: Envelope) {
        let lane = envelope.lane();
        match self.queues.iter_mut().find(|queue| queue.0 == to && queue.1 == lane) {
            Some(queue) => queue.2.push(envelope),
            None => {
                let mut queue = Vec::with_capacity(self.room.max(1));
                queue.push(envelope);
                self.queues.push((to, lane, queue));
            }
        }
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// All messages.
    #[cfg(any(test, feature = "sim"))]
    pub fn envelopes(&self) -> impl Iterator<Item = &Envelope> {
        self.queues.iter().flat_map(|queue| &queue.2)
    }

    /// Takes everything.
    pub fn take(&mut self) -> Vec<(StoreId, Lane, Vec<Envelope>)> {
        std::mem::take(&mut self.queues)
    }
}

/// A round of a peer whose durability is reported back to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Persisted {
    /// The region.
    pub region: RegionId,
    /// The peer: a completion for an older peer of the region must not reach a newer one.
    pub peer: PeerId,
    /// The ready number.
    pub number: u64,
}

/// What may happen once the log is durable up to `seq`.
#[derive(Debug)]
pub struct AfterPersist {
    /// Compare with `Log::durable`.
    pub seq: Seq,
    /// To be reported back as `Event::Persisted`.
    pub acks: Vec<Persisted>,
    /// Messages that promise durability.
    pub send: Outbox,
}

/// Those who wait for the batches of an entry, in order. Of one or two they take no memory of their own.
pub type Waiting = SmallVec<[Token; 2]>;

/// Entries to apply, in log order. One takes no memory of its own.
pub type Entries = SmallVec<[CommittedEntry; 1]>;

/// A committed entry to apply.
#[derive(Debug)]
pub struct CommittedEntry {
    /// Where it stands.
    pub position: LogPosition,
    /// The payload; empty for raft's own entries.
    pub data: Bytes,
    /// Who waits for the batches in it, in order; empty unless proposed here.
    pub waiting: Waiting,
}

/// Work for the region's [`Applier`](crate::region::apply::Applier), in order per region.
#[derive(Debug)]
pub enum ApplyTask {
    /// Apply entries.
    Entries {
        /// The region.
        region: RegionId,
        /// The replica.
        peer: PeerId,
        /// In log order.
        entries: Entries,
    },
    /// Replace the region's data by a received snapshot, durably.
    Restore {
        /// What the region becomes.
        state: Box<RegionState>,
        /// Its data.
        file: SnapshotFile,
        /// Replicas here whose regions were merged into it: they end in the same step.
        swallow: Vec<Departed>,
    },
    /// Delete a replica and its data; leave a tombstone. Also where there is none: then it never will be.
    Destroy {
        /// The region.
        region: RegionId,
        /// The replica, which is no member any more.
        peer: PeerId,
        /// The shape in which it is missing.
        epoch: Epoch,
    },
}

impl ApplyTask {
    /// The region the task belongs to: tasks of one region must stay in order.
    pub fn region(&self) -> RegionId {
        match self {
            ApplyTask::Entries { region, .. } | ApplyTask::Destroy { region, .. } => *region,
            ApplyTask::Restore { state, .. } => state.region.id,
        }
    }
}

/// A replica that begins its life here: its region was cut out of another.
#[derive(Clone, PartialEq, Debug)]
pub struct Birth {
    /// What the state store knows of it.
    pub state: RegionState,
    /// Whether it is the one to lead first.
    pub campaign: Campaign,
}

/// Whether a new replica campaigns at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Campaign {
    /// It stands beside the parent's leader.
    Now,
    /// Another one does; its own turn comes when nobody leads.
    Later,
}

/// A region to be measured, off the loop, by [`measure`](crate::region::size::measure).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SizeCheck {
    /// The region.
    pub region: RegionId,
    /// The replica that asks.
    pub peer: PeerId,
    /// Its shape.
    pub epoch: Epoch,
    /// Its range.
    pub range: KeyRange,
    /// What is too large.
    pub split_bytes: u64,
}

/// What a region has too much of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Excess {
    /// Bytes: see [`size`](crate::region::size).
    Size,
    /// Writes: see [`load`](crate::region::load).
    Load,
}

/// A region is too large, or takes too much load, and should be cut here. Whoever takes the wish finds the ids.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SplitWish {
    /// The region.
    pub region: RegionId,
    /// In order.
    pub keys: Vec<Bytes>,
    /// Why.
    pub why: Excess,
}

/// How far a region's state machine got.
#[derive(Clone, PartialEq, Debug)]
pub struct Applied {
    /// The region.
    pub region: RegionId,
    /// The replica.
    pub peer: PeerId,
    /// The last entry applied.
    pub position: LogPosition,
    /// The replicated compaction point, if it moved.
    pub compacted: Option<LogPosition>,
    /// Bytes of the entries applied.
    pub bytes: usize,
    /// What else it did, which is rare.
    pub news: Option<Box<News>>,
}

impl Applied {
    /// A state machine that got to a position; nothing else.
    pub fn at(region: RegionId, peer: PeerId, position: LogPosition) -> Applied {
        Applied { region, peer, position, compacted: None, bytes: 0, news: None }
    }

    /// The same, and this.
    pub fn with(self, news: News) -> Applied {
        Applied { news: Some(Box::new(news)), ..self }
    }
}

/// What applying did to the region itself.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct News {
    /// Set when a snapshot was restored: what the region is now.
    pub restored: Option<RegionState>,
    /// Set when the region's shape was changed: what it is now.
    pub reshaped: Option<Region>,
    /// Regions cut out of it.
    pub births: Vec<RegionState>,
    /// Changes of the configuration, in order, for raft; an empty one is the end of a joint one.
    pub changes: Vec<Vec<Change>>,
    /// Who is on the list of the removed, if that changed.
    pub removed: Option<Vec<Departed>>,
    /// Whether the region is frozen, if that changed.
    pub merging: Option<Option<Merging>>,
    /// Replicas here whose data it has taken over.
    pub absorbed: Vec<Departed>,
    /// The replica was destroyed.
    pub destroyed: bool,
}

impl News {
    /// Whether the followers should not wait for it until the next heartbeat.
    pub(crate) fn is_urgent(&self) -> bool {
        self.reshaped.is_some() || self.merging.is_some() || self.removed.is_some()
    }
}

/// A frozen region asks for its neighbour to take it in. Whoever takes the wish proposes it to the neighbour, wherever
/// that is led, and if it refuses for good has the region thawed ([`Admin::RollBackMerge`](crate::codec::admin::Admin)).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MergeWish {
    /// The frozen region.
    pub source: RegionId,
    /// Why and since when.
    pub merging: Merging,
    /// What to propose to `merging.target`.
    pub commit: Box<Commit>,
}

/// What a replica tells another one on the same store, for a merge. It may be told any number of times, and may be lost.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Aside {
    /// Whose replica it is for.
    pub region: RegionId,
    /// Which: another one does not listen.
    pub peer: PeerId,
    /// What.
    pub word: Word,
}

/// See [`Aside`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Word {
    /// To a source: apply what is committed up to where it was frozen, and then stand still.
    CatchUp {
        /// The target's replica, which waits.
        target: (RegionId, PeerId),
        /// With what the source may lack.
        commit: Box<Commit>,
    },
    /// To a source: stand still, for a snapshot of the target comes in its place.
    Yield,
    /// To a target: the source stands still and has applied everything.
    CaughtUp {
        /// The source.
        source: RegionId,
        /// Where it was frozen.
        at: LogPosition,
    },
    /// To a target: the source never will.
    Stuck {
        /// The source.
        source: RegionId,
    },
}

/// A snapshot to stream to a follower that fell behind the log.
pub struct SnapshotSend {
    /// Where to.
    pub to: StoreId,
    /// The raft message that goes with it (its `snapshot.data` describes the region).
    pub envelope: Envelope,
    /// The region's data at exactly the snapshot's index.
    pub chunks: crate::region::snapshot::Chunks,
}

/// The way of a snapshot: which region's, from which replica to which.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SnapshotErrand {
    /// The region.
    pub region: RegionId,
    /// The local replica, which leads.
    pub from: PeerId,
    /// The replica that lacks entries.
    pub to: PeerId,
}

/// What a snapshot will take where it goes: a receiver that holds some of it for others has no use for it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Claim {
    /// The region's keys.
    pub range: KeyRange,
    /// Replicas there whose regions were merged into it: they yield to it.
    pub merged: Vec<Departed>,
}

/// What a leader says about its snapshots, beside the data. See [`sending`](super::sending).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SnapshotWord {
    /// Raft wants to send one. May be forgotten: it is said again, as long as it is so. Answered, in time, by
    /// `Event::SnapshotGranted`.
    Wanted {
        /// Whose.
        errand: SnapshotErrand,
        /// Where the receiver lives.
        store: StoreId,
        /// What it will take at the receiver.
        claim: Claim,
    },
    /// What was granted is not needed any more: no snapshot follows.
    Declined(SnapshotErrand),
    /// One under way is not wanted any more: end it, and report.
    CalledOff(SnapshotErrand),
}

/// How a snapshot's delivery ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivered {
    /// The receiver holds all of it.
    Whole,
    /// It does not; raft will try again.
    Failed,
}

/// Permission to read from a view taken from now on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadGrant {
    /// The region's epoch when it was given; must still hold after the view is taken.
    pub epoch: Epoch,
}

/// Where one replica stands, for people and tools.
#[derive(Clone, PartialEq, Debug)]
pub struct RegionStatus {
    /// The region.
    pub region: Region,
    /// The local replica.
    pub peer: PeerId,
    /// Whether it leads.
    pub leads: bool,
    /// Who leads, as far as known.
    pub leader: Option<PeerId>,
    /// Its term.
    pub term: u64,
    /// Commit index.
    pub committed: u64,
    /// Applied index.
    pub applied: u64,
    /// Applied index as of the last durable flush.
    pub flushed: u64,
    /// First index the log still holds.
    pub first_index: u64,
    /// Last index of the log.
    pub last_index: u64,
    /// Bytes of entries in the log, about.
    pub log_bytes: u64,
    /// Bytes of its keys and values as last measured here; 0: not yet.
    pub bytes: u64,
    /// Why the replica is fenced off, if it is.
    pub quarantined: Option<String>,
    /// Whether it sleeps: it is not ticked, and its group sends nothing.
    pub asleep: bool,
    /// What other changes of the region's shape or its replicas may have to wait for.
    pub unsettled: Unsettled,
}

impl RegionStatus {
    /// What the local replica counts for; `None`: it is no member, and about to go.
    pub fn role(&self) -> Option<Role> {
        self.region.peer(self.peer).map(|peer| peer.role)
    }
}

/// Former replicas that a status names, at most.
pub const FORMER_MAX: usize = 32;

/// What is not settled about a region's shape, as one of its replicas knows it: why another change waits.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Unsettled {
    /// The replica leads, has proposed a change of the shape or of the replicas, and has not applied it yet.
    pub changing: bool,
    /// The region is frozen, to be merged into its neighbour.
    pub frozen: Option<Frozen>,
    /// A region that is being merged into this one: the replica here applies nothing before the other one's here has
    /// caught up and stands still.
    pub waits_for: Option<RegionId>,
    /// How many former replicas are not known to be gone; as long as there is one the region is not merged into another.
    pub formers: u64,
    /// The first of them, at most [`FORMER_MAX`]. Those of another region were merged into this one with it, and until none
    /// of them is left that merge is not settled. The leader goes on asking all of them, in whatever order.
    pub former: Vec<Departed>,
}

/// A region on its way into its neighbour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frozen {
    /// The neighbour.
    pub target: RegionId,
    /// The shape that the neighbour must have: in a later one it refuses, and the region thaws.
    pub epoch: Epoch,
    /// The entry that froze the region.
    pub at: LogPosition,
    /// Whether the replica here stands still already, for the neighbour's to take its data over.
    pub stands_still: bool,
}

/// What an administrative command led to.
#[derive(Clone, PartialEq, Debug)]
pub enum AdminDone {
    /// The regions that now cover what the region covered.
    Shaped(Vec<Region>),
    /// Ids, from this one on.
    Ids {
        /// The first.
        first: u64,
    },
    /// The record of the stores is this now.
    Stores(Directory),
}

/// An answer to whoever waits under a token.
#[derive(Debug)]
pub enum Reply {
    /// A write: the state machine's response.
    Written(Result<Bytes>),
    /// A read may proceed.
    Read(Result<ReadGrant>),
    /// An administrative command.
    Admin(Result<AdminDone>),
    /// A leadership transfer was started, or not.
    Transfer(Result<()>),
    /// Where the replicas stand.
    Status(Vec<RegionStatus>),
}

/// Everything one round asks for.
#[derive(Default)]
pub struct Effects {
    /// May leave at once.
    pub send_now: Outbox,
    /// Waits for the log.
    pub after_persist: Vec<AfterPersist>,
    /// Entries of clients that were proposed: who waits for the first batch in each, and how many batches there are.
    /// For those who measure; nothing has to be done.
    pub proposed: Vec<(Token, usize)>,
    /// For the appliers, in order.
    pub apply: Vec<ApplyTask>,
    /// Answers.
    pub replies: Vec<(Token, Reply)>,
    /// Replicas that begin their lives, each for the loop that its region belongs to: `Event::Born`.
    pub births: Vec<Birth>,
    /// Regions to measure: `Event::Measured`.
    pub size_checks: Vec<SizeCheck>,
    /// Regions to cut.
    pub split_wishes: Vec<SplitWish>,
    /// Regions to merge.
    pub merge_wishes: Vec<MergeWish>,
    /// For other replicas of this store, each for the loop that its region belongs to: `Event::Aside`.
    pub asides: Vec<Aside>,
    /// Snapshots to stream, each with an end to be told: `Event::SnapshotSent`.
    pub snapshots: Vec<SnapshotSend>,
    /// What else there is to say about snapshots; behind `snapshots`.
    pub snapshot_words: Vec<SnapshotWord>,
    /// Received snapshots that turned out not to be needed: remove the files.
    pub discard: Vec<SnapshotFile>,
    /// Somebody waits for a tombstone to be durable: the state store should be flushed before long.
    pub flush_soon: bool,
    /// Beats for other nodes.
    pub beats: Vec<(StoreId, Beat)>,
    /// The store cannot go on.
    pub fatal: Option<Error>,
}

impl Effects {
    /// Whether the round asks for nothing.
    pub fn is_empty(&self) -> bool {
        self.send_now.is_empty()
            && self.after_persist.is_empty()
            && self.proposed.is_empty()
            && self.apply.is_empty()
            && self.replies.is_empty()
            && self.births.is_empty()
            && self.size_checks.is_empty()
            && self.split_wishes.is_empty()
            && self.merge_wishes.is_empty()
            && self.asides.is_empty()
            && self.snapshots.is_empty()
            && self.snapshot_words.is_empty()
            && self.discard.is_empty()
            && !self.flush_soon
            && self.beats.is_empty()
            && self.fatal.is_none()
    }
}
