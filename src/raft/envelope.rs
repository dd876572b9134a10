//! A raft message with its address: which region, from whom, to whom.

use crate::types::{PeerId, RegionId, StoreId};
use ::raft::eraftpb::{Message, MessageType};

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
    /// The lane this message belongs in.
    pub fn lane(&self) -> Lane {
        Lane::of(&self.message)
    }
}
