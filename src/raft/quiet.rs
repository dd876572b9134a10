//! What a group must tell, and be told, so that it can stand still: no tick, no message, little memory.
//!
//! A group that is not ticked is one whose clock stands still, and raft's safety does not depend on any clock:
//! terms, votes and logs are judged by messages alone. What ticks decide is when somebody campaigns, when a leader
//! looks whether it still has its quorum, and when it speaks unasked. So a still group elects nobody, and its
//! leader may go on believing; the promises that leases rest on are kept elsewhere, by real clocks.

use super::group::{Group, Status};
use super::rest::Shown;
use crate::types::PeerId;
use ::raft::{Progress, Raft, StateRole, Storage};

/// How a leader sees one of its followers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// The replica.
    pub peer: PeerId,
    /// It holds everything.
    pub even: bool,
    /// It was heard of since the leader last looked for its quorum.
    pub active: bool,
}

impl<S: Storage> Group<S> {
    /// Whether nothing is under way here: everything in the log is durable, committed and applied, nobody waits,
    /// leadership stays where it is and so does the configuration. For a follower: as far as it knows.
    pub fn settled(&self) -> bool {
        let Some(node) = &self.node else { return true };
        let raft = &node.raft;
        let log = &raft.raft_log;
        let last = log.last_index();
        let whole = log.committed == last && log.persisted == last && log.applied() == last;
        whole
            && self.written <= self.durable
            && raft.lead_transferee.is_none()
            && raft.pending_read_count() == 0
            && raft.ready_read_count() == 0
            && !raft.has_pending_conf()
            && !node.has_ready()
            && (raft.state != StateRole::Leader || !self.is_joint())
    }

    pub(super) fn is_joint(&self) -> bool {
        !self.configuration().voters_outgoing.is_empty()
    }

    /// Whether a round would hand anything out.
    pub fn has_ready(&self) -> bool {
        self.node.as_ref().is_some_and(|node| node.has_ready())
    }

    /// The followers, by peer id; for leaders.
    pub fn standings(&self) -> Vec<Standing> {
        let last = self.status().last_index;
        let others = self.far().into_iter().filter(|far| far.peer != self.id);
        others
            .map(|far| Standing {
                peer: far.peer,
                // Probing counts: raft-rs leaves that state, after a snapshot, with the next entry only.
                even: far.matched == last && !far.restores,
                active: far.active,
            })
            .collect()
    }

    /// A leader has told those who hold everything that it is committed; and the group's clock stands still. Whether they heard
    /// is not known, and nothing rests on it.
    pub fn told_to_sleep(&mut self) {
        let Some(node) = &mut self.node else { return };
        let raft = &mut node.raft;
        // Who wakes has time to hear of the others before he misses them.
        raft.election_elapsed = 0;
        if raft.state != StateRole::Leader {
            return;
        }
        let last = raft.raft_log.committed;
        self.told = (raft.term, last);
        let even = |progress: &&mut Progress| progress.matched == last;
        raft.mut_prs().iter_mut().map(|(_, progress)| progress).filter(even).for_each(|progress| {
            progress.committed_index = last;
        });
    }

    /// For how many ticks a follower has heard nothing of the leader that it knows.
    pub fn left_alone(&self) -> usize {
        let follows =
            |raft: &&Raft<Shown<S>>| raft.state == StateRole::Follower && raft.leader_id != 0;
        self.raft().filter(follows).map_or(0, |raft| raft.election_elapsed)
    }

    /// A leader speaks to all followers at once, as a heartbeat would.
    pub fn ping(&mut self) {
        self.node().ping();
    }

    /// A follower learns that its leader is gone: it follows nobody, and its election is due after `ticks`
    /// more. (Whether it may campaign then is another question: see [`Elections`](super::Elections).)
    pub fn lose_leader(&mut self, ticks: usize) {
        let raft = &mut self.node().raft;
        if raft.state != StateRole::Follower {
            return;
        }
        raft.become_follower(raft.term, 0);
        self.fix_timeout();
        let raft = &mut self.node().raft;
        raft.election_elapsed = raft.randomized_election_timeout().saturating_sub(ticks.max(1));
    }

    /// A number of ticks below `most` that differs between the replicas of a group and between terms.
    pub fn spread(&self, most: usize) -> usize {
        let base = self.config.election_ticks;
        let beyond = self.timeout().saturating_sub(base);
        beyond * most / base.max(1)
    }

    /// Term and length: whoever follows the same leader to the same end says the same.
    pub fn mark(&self) -> (u64, u64) {
        let Status { term, last_index, .. } = self.status();
        (term, last_index)
    }
}
