//! What can be asked of a [`Group`] without changing it. One that rests answers from its record: nothing has moved
//! since it lay down, so the record says all that the node would.

use super::group::{Group, Status, sort};
use super::rest::Shown;
use crate::types::{LogPosition, PeerId, ahead};
use ::raft::eraftpb::ConfState;
#[cfg(any(test, feature = "sim"))]
use ::raft::eraftpb::EntryType;
use ::raft::{ProgressState, Raft, StateRole, Storage};

/// How the leader sees a replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Far {
    pub peer: PeerId,
    pub matched: u64,
    /// What it knows to be committed.
    pub committed: u64,
    /// It takes entries as they come.
    pub replicates: bool,
    /// It is being sent a snapshot.
    pub restores: bool,
    /// It was heard of since the leader last looked for its quorum.
    pub active: bool,
}

impl Far {
    /// One that has everything, and was heard of.
    pub fn even(peer: PeerId, last: u64) -> Far {
        let (matched, committed) = (last, last);
        Far { peer, matched, committed, replicates: true, restores: false, active: true }
    }
}

impl<S: Storage> Group<S> {
    /// It is about to be visited.
    pub(crate) fn fetch_ahead(&self) {
        if let Some(node) = &self.node {
            ahead::fetch(&**node);
        }
    }

    pub(super) fn raft(&self) -> Option<&Raft<Shown<S>>> {
        self.node.as_ref().map(|node| &node.raft)
    }

    /// How it sees every replica, itself included, by peer id; of use for leaders.
    pub(super) fn far(&self) -> Vec<Far> {
        let Some(raft) = self.raft() else {
            return self.resting.as_ref().map_or(Vec::new(), |resting| resting.far(self.id));
        };
        let mut far: Vec<Far> = raft
            .prs()
            .iter()
            .map(|(id, progress)| Far {
                peer: PeerId(*id),
                matched: progress.matched,
                committed: progress.committed_index,
                replicates: progress.state == ProgressState::Replicate,
                restores: progress.state == ProgressState::Snapshot,
                active: progress.recent_active,
            })
            .collect();
        far.sort_unstable_by_key(|far| far.peer);
        far
    }

    /// Where the group stands.
    pub fn status(&self) -> Status {
        match (self.raft(), &self.resting) {
            (Some(raft), _) => Status {
                term: raft.term,
                role: raft.state,
                leader: (raft.leader_id != 0).then_some(PeerId(raft.leader_id)),
                committed: raft.raft_log.committed,
                last_index: raft.raft_log.last_index(),
            },
            (None, Some(resting)) => resting.status(self.id),
            (None, None) => Status {
                term: 0,
                role: StateRole::Follower,
                leader: None,
                committed: 0,
                last_index: 0,
            },
        }
    }

    /// Whether this peer leads its group, in its own eyes.
    pub fn leads(&self) -> bool {
        match self.raft() {
            Some(raft) => raft.state == StateRole::Leader,
            None => self.status().role == StateRole::Leader,
        }
    }

    /// Whether the leader has committed an entry of its own term, and so knows the commit index.
    pub fn committed_in_term(&self) -> bool {
        let resting = || self.resting.as_ref().is_some_and(|resting| resting.ends_in_term());
        self.raft().map_or_else(resting, Raft::commit_to_current_term)
    }

    /// Whether the leader has applied an entry of its own term.
    pub fn applied_in_term(&self) -> bool {
        let resting = || self.resting.as_ref().is_some_and(|resting| resting.ends_in_term());
        self.raft().map_or_else(resting, Raft::apply_to_current_term)
    }

    /// Whether leadership is being handed over (the lease is suspended then).
    pub fn transferring(&self) -> bool {
        self.raft().is_some_and(|raft| raft.lead_transferee.is_some())
    }

    /// Whether a change of the configuration may be in the log and not applied, as far as the leader knows.
    pub fn change_pending(&self) -> bool {
        self.raft().is_some_and(Raft::has_pending_conf)
    }

    /// Whether its log holds a change of the configuration that is not applied here, committed or not; for checkers.
    #[cfg(any(test, feature = "sim"))]
    pub fn holds_change(&self) -> bool {
        let Some(raft) = self.raft() else { return false };
        let log = &raft.raft_log;
        let context = ::raft::GetEntriesContext::empty(false);
        // What cannot be read may hold one.
        log.entries(log.applied() + 1, None, context).map_or(true, |entries| {
            entries.iter().any(|entry| entry.get_entry_type() != EntryType::EntryNormal)
        })
    }

    /// The snapshot raft has accepted and not yet handed out.
    pub fn pending_snapshot(&self) -> Option<LogPosition> {
        let meta = self.node.as_ref()?.snap()?.get_metadata();
        Some(LogPosition { index: meta.index, term: meta.term })
    }

    /// Who votes and who listens, sorted.
    pub fn configuration(&self) -> ConfState {
        let mut state = match (self.raft(), &self.resting) {
            (Some(raft), _) => raft.prs().conf().to_conf_state(),
            (None, Some(resting)) => resting.configuration(),
            (None, None) => ConfState::default(),
        };
        sort(&mut state);
        state
    }

    /// (peer, matched index, recently active) of every replica, by peer id; for leaders.
    pub fn progress(&self) -> Vec<(PeerId, u64, bool)> {
        let far = self.far().into_iter();
        far.map(|far| (far.peer, far.matched, far.active || far.peer == self.id)).collect()
    }

    /// Whether a learner takes entries as they come and lacks `gap` of them at most, as the leader sees it.
    pub fn has_caught_up(&self, peer: PeerId, gap: u64) -> bool {
        let committed = self.status().committed;
        let fit = |far: &Far| far.active && far.replicates && far.matched + gap >= committed;
        self.far().iter().any(|far| far.peer == peer && fit(far))
    }

    /// Whether every other replica, as the leader sees it, is alive and takes entries as they come.
    pub fn all_replicate(&self) -> bool {
        self.far().iter().all(|far| far.peer == self.id || (far.active && far.replicates))
    }
}
