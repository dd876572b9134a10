//! What a leader does for one follower beyond what raft-rs 0.7 does by itself.
//!
//! raft-rs takes a follower out of probe state only by an answer that acknowledges something *new*. After a
//! snapshot whose acknowledgement overtook the report of its delivery, or after an unreachable report, the follower
//! holds everything, and nothing new is acknowledged before the next entry: whoever looks at its state meanwhile
//! (the gate of a split does) takes it for one that is behind. So here any acknowledgement of the very end that
//! is known to match ends the probing, and a heartbeat's answer from a follower that is still probed and
//! lacks nothing is followed by an empty append, whose answer is such an acknowledgement.

use super::group::Group;
use crate::types::PeerId;
use ::raft::eraftpb::{Message, MessageType};
use ::raft::{ProgressState, StateRole, Storage};

/// A follower's answer, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    from: u64,
    term: u64,
    /// The acknowledged index; `None`: a heartbeat's answer.
    index: Option<u64>,
}

impl Answer {
    /// What a message says, before raft takes it.
    pub(super) fn of(message: &Message) -> Option<Answer> {
        let index = match message.get_msg_type() {
            MessageType::MsgAppendResponse if !message.reject => Some(message.index),
            MessageType::MsgHeartbeatResponse => None,
            _ => return None,
        };
        Some(Answer { from: message.from, term: message.term, index })
    }
}

impl<S: Storage> Group<S> {
    /// Raft has taken an answer: see the head of this file.
    pub(super) fn end_probing(&mut self, answer: Option<Answer>) {
        let Some(Answer { from, term, index }) = answer else { return };
        let raft = &mut self.node().raft;
        if raft.state != StateRole::Leader || term != raft.term || from == raft.id {
            return;
        }
        let last = raft.raft_log.last_index();
        let Some(progress) = raft.mut_prs().get_mut(from) else { return };
        if progress.state != ProgressState::Probe {
            return;
        }
        match index {
            Some(index) if index > 0 && index == progress.matched => progress.become_replicate(),
            None if progress.matched == last => raft.send_append(from),
            _ => {}
        }
    }

    /// A leader sends `peer` what it lacks at once, a snapshot if the storage lets it: without waiting for the
    /// next answer to a heartbeat.
    pub fn feed(&mut self, peer: PeerId) {
        let raft = &mut self.node().raft;
        if raft.state != StateRole::Leader || peer.0 == raft.id {
            return;
        }
        let Some(progress) = raft.mut_prs().get_mut(peer.0) else { return };
        if progress.state == ProgressState::Probe {
            progress.resume();
        }
        raft.send_append(peer.0);
    }

    /// The last entry that `peer` is known to share; for leaders.
    pub fn matched(&self, peer: PeerId) -> Option<u64> {
        self.far().into_iter().find(|far| far.peer == peer).map(|far| far.matched)
    }
}
