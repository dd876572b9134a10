//! A raft message with its address: which region, from whom, to whom.

use crate::types::{Epoch, PeerId, RegionId, StoreId};
use ::raft::eraftpb::{Message, MessageType};

/// What stores tell each other about a replica, beside raft.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Note {
    /// The receiver is not a member of its region any more, as of this shape: it must go, if it lives, and say when
    /// it is gone for good.
    Gone {
        /// The shape in which it is missing.
        epoch: Epoch,
        /// The region that asks: its own, or the one that it was merged into.
        by: RegionId,
    },
    /// Is the receiver gone for good? Its region was merged into another, which has a replica beside it; that one sees
    /// to it.
    Ask {
        /// The region that asks.
        by: RegionId,
    },
    /// Could the receiver lead the region at once? From its leader.
    CanYouLead {
        /// What the leader knows to be committed.
        committed: u64,
    },
    /// The sender could.
    CanLead,
    /// The sender is gone for good: its store knows durably that it never lives again.
    Buried,
}

/// One raft message on its way between two peers of a region.
#[derive(Clone, PartialEq, Debug)]
pub struct Envelope {
    /// The region both peers belong to.
    pub region: RegionId,
    /// The sender.
    pub from: PeerId,
    /// The receiver. A completion or message for an older peer of the same region never matches.
    pub to: PeerId,
    /// Where the sender lives, for the answer.
    pub from_store: StoreId,
    /// What it says.
    pub message: Message,
    /// What is said instead of a raft message, which is empty then.
    pub note: Option<Note>,
}

/// Which queue of a connection a message takes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Lane {
    /// Heartbeats, votes, acknowledgements: small and urgent. Leaves first.
    Control,
    /// Appends with entries and snapshots: many bytes, patient.
    Bulk,
}

impl Lane {
    /// The lane that suits a message: what carries entries or a snapshot is bulk.
    pub fn of(message: &Message) -> Lane {
        match message.get_msg_type() {
            MessageType::MsgAppend | MessageType::MsgPropose | MessageType::MsgSnapshot => {
                Lane::Bulk
            }
            _ => Lane::Control,
        }
    }
}

impl Envelope {
    /// What it weighs in memory while it waits, about.
    pub fn weight(&self) -> usize {
        let entries = self.message.get_entries().iter();
        size_of::<Envelope>() + entries.map(|entry| entry.data.len() + 64).sum::<usize>()
    }

    /// The lane this message belongs in.
    pub fn lane(&self) -> Lane {
        Lane::of(&self.message)
    }
}
