//! What a group must tell, and be told, so that it can stand still: no tick, no message, little memory.
//!
//! A group that is not ticked is one whose clock stands still, and raft's safety does not depend on any clock:
//! terms, votes and logs are judged by messages alone. What ticks decide is when somebody campaigns, when a leader
//! looks whether it still has its quorum, and when it speaks unasked. So a still group elects nobody, and its
//! leader may go on believing; the promises that leases rest on are kept elsewhere, by real clocks.

use super::group::{Group, Status};
use crate::types::PeerId;
use ::raft::{ProgressState, StateRole, Storage};

/// How a leader sees one of its followers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// The replica.
    pub peer: PeerId,
    /// It holds everything, and knows that everything is committed.
    pub even: bool,
    /// It was heard of since the leader last looked for its quorum.
    pub active: bool,
}

impl<S: Storage> Group<S> {
    /// Whether nothing is under way here: everything in the log is durable, committed and applied, nobody waits,
    /// leadership stays where it is and so does the configuration. For a follower: as far as it knows.
    pub fn settled(&self) -> bool {
        let raft = &self.node.raft;
        let log = &raft.raft_log;
        let last = log.last_index();
        let whole = log.committed == last && log.persisted == last && log.applied() == last;
        whole
            && self.written <= self.durable
            && raft.lead_transferee.is_none()
            && raft.pending_read_count() == 0
            && raft.ready_read_count() == 0
            && !raft.has_pending_conf()
            && !self.node.has_ready()
            && (raft.state != StateRole::Leader || !self.is_joint())
    }

    fn is_joint(&self) -> bool {
        let conf = self.node.raft.prs().conf().to_conf_state();
        !conf.voters_outgoing.is_empty()
    }

    /// Whether a round would hand anything out.
    pub fn has_ready(&self) -> bool {
        self.node.has_ready()
    }

    /// The followers, by peer id; for leaders.
    pub fn standings(&self) -> Vec<Standing> {
        let raft = &self.node.raft;
        let last = raft.raft_log.last_index();
        let others = raft.prs().iter().filter(|(id, _)| **id != raft.id);
        let mut standings: Vec<_> = others
            .map(|(id, progress)| Standing {
                peer: PeerId(*id),
                even: progress.matched == last
                    && progress.committed_index == last
                    // Probing counts: raft-rs leaves that state, after a snapshot, with the next entry only.
                    && progress.state != ProgressState::Snapshot,
                active: progress.recent_active,
            })
            .collect();
        standings.sort_unstable_by_key(|standing| standing.peer);
        standings
    }

    /// Gives back the memory that only a working group needs.
    pub fn free_buffers(&mut self) {
        self.node.raft.maybe_free_inflight_buffers();
        self.node.raft.msgs.shrink_to_fit();
    }

    /// A leader speaks to all followers at once, as a heartbeat would.
    pub fn ping(&mut self) {
        self.node.ping();
    }

    /// A follower learns that its leader is gone: it follows nobody, and its election is due after `ticks`
    /// more. (Whether it may campaign then is another question: see [`Elections`](super::Elections).)
    pub fn lose_leader(&mut self, ticks: usize) {
        let raft = &mut self.node.raft;
        if raft.state != StateRole::Follower {
            return;
        }
        raft.become_follower(raft.term, 0);
        self.fix_timeout();
        let raft = &mut self.node.raft;
        raft.election_elapsed = raft.randomized_election_timeout().saturating_sub(ticks.max(1));
    }

    /// A number of ticks below `most` that differs between the replicas of a group and between terms.
    pub fn spread(&self, most: usize) -> usize {
        let raft = &self.node.raft;
        let beyond = raft.randomized_election_timeout().saturating_sub(raft.election_timeout());
        beyond * most / raft.election_timeout().max(1)
    }

    /// Term and length: whoever follows the same leader to the same end says the same.
    pub fn mark(&self) -> (u64, u64) {
        let Status { term, last_index, .. } = self.status();
        (term, last_index)
    }
}
