//! Rest: a group that stands still gives its memory back. Of raft-rs's node only a record stays; whatever is to
//! change the state makes the node anew from record and log first, as after a restart, but with nothing forgotten.
//!
//! **What is recorded.** Term, vote, leader, role, the configuration, and for a leader how far each follower is. The
//! group is [`settled`](Group::settled), so all of committed, applied and persisted index are the end of the log,
//! which is in the storage; nothing is in flight, nobody waits.
//!
//! **Why a leader may be made anew.** It never ceased to lead: nobody else can have been elected in its term, and
//! whatever a later term brought about wakes it by a message, which it then meets as the leader that it was.
//! raft-rs has no way in, but its state is public: the node starts as a follower in the same term, with the same
//! vote, and is given role and progress back. No entry is appended and no term is begun. Of a follower that did
//! not take entries as they came the next append is a probe, and a snapshot that was on its way is found out anew.
//!
//! **What is not**, because it is a function of time that stood still, or of nothing: ticks since the last election
//! or heartbeat (they start from zero), votes (of a candidate, which never rests), read requests (none).
//!
//! A log that holds less than it did when the group lay down has lost what was acknowledged. The group says so
//! ([`Group::has_lost`]) and must not be heard any more.

use super::group::{Group, Status};
use super::look::Far;
use crate::types::PeerId;
use ::raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use ::raft::{GetEntriesContext, RaftState, RawNode, StateRole, Storage};

/// A storage, as raft-rs is shown it: with another state to start from, if there is one.
pub(super) struct Shown<S> {
    pub inner: S,
    start: Option<Box<RaftState>>,
}

impl<S> Shown<S> {
    pub fn as_it_is(inner: S) -> Shown<S> {
        Shown { inner, start: None }
    }
}

impl<S: Storage> Storage for Shown<S> {
    fn initial_state(&self) -> ::raft::Result<RaftState> {
        match &self.start {
            Some(start) => Ok((**start).clone()),
            None => self.inner.initial_state(),
        }
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> ::raft::Result<Vec<Entry>> {
        self.inner.entries(low, high, max_size, context)
    }

    fn term(&self, index: u64) -> ::raft::Result<u64> {
        self.inner.term(index)
    }

    fn first_index(&self) -> ::raft::Result<u64> {
        self.inner.first_index()
    }

    fn last_index(&self) -> ::raft::Result<u64> {
        self.inner.last_index()
    }

    fn snapshot(&self, request_index: u64, to: u64) -> ::raft::Result<Snapshot> {
        self.inner.snapshot(request_index, to)
    }
}

/// Ids that mostly need no memory of their own.
enum Ids {
    Few([u64; 3], u8),
    Many(Box<[u64]>),
}

impl From<Vec<u64>> for Ids {
    fn from(ids: Vec<u64>) -> Ids {
        let mut few = [0; 3];
        match few.get_mut(..ids.len()) {
            Some(room) => {
                room.copy_from_slice(&ids);
                Ids::Few(few, ids.len() as u8)
            }
            None => Ids::Many(ids.into()),
        }
    }
}

impl std::ops::Deref for Ids {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        match self {
            Ids::Few(ids, count) => &ids[..usize::from(*count)],
            Ids::Many(ids) => ids,
        }
    }
}

/// A group at rest.
///
/// * `last` is committed, applied and persisted; it is the end of the log.
/// * It lies within its group, and mostly allocates nothing: what is allocated just as a node is freed comes to lie where
///   the node was, and the memory of ten thousand nodes could not be given back for it.
pub(super) struct Resting<S> {
    storage: S,
    term: u64,
    vote: u64,
    leader: u64,
    last: u64,
    last_term: u64,
    /// Voters, then learners.
    members: Ids,
    voters: u32,
    /// Of a leader: those who are not even with it, or were not heard of.
    odd: Box<[Far]>,
}

impl<S> Resting<S> {
    fn leads(&self, own: PeerId) -> bool {
        self.leader == own.0
    }

    pub fn status(&self, own: PeerId) -> Status {
        Status {
            term: self.term,
            role: if self.leads(own) { StateRole::Leader } else { StateRole::Follower },
            leader: (self.leader != 0).then_some(PeerId(self.leader)),
            committed: self.last,
            last_index: self.last,
        }
    }

    /// Whether the last entry is of the present term.
    pub fn ends_in_term(&self) -> bool {
        self.last_term == self.term
    }

    pub fn far(&self, own: PeerId) -> Vec<Far> {
        let odd = |id: &u64| self.odd.iter().find(|far| far.peer.0 == *id).copied();
        let known = |id: &u64| self.leads(own) || self.leader == *id;
        let even = |id: &u64| match known(id) {
            true => Far::even(PeerId(*id), self.last),
            // What is not a leader's to know is not kept; its own log it knows.
            false => Far { matched: 0, active: false, ..Far::even(PeerId(*id), self.last) },
        };
        let mut far: Vec<Far> =
            self.members.iter().map(|id| odd(id).unwrap_or_else(|| even(id))).collect();
        far.sort_unstable_by_key(|far| far.peer);
        far
    }

    pub fn configuration(&self) -> ConfState {
        let (voters, learners) = self.members.split_at(self.voters as usize);
        ConfState { voters: voters.to_vec(), learners: learners.to_vec(), ..Default::default() }
    }
}

impl<S: Storage> Group<S> {
    /// raft-rs's node. A group at rest rises.
    pub(super) fn node(&mut self) -> &mut RawNode<Shown<S>> {
        if let Some(resting) = self.resting.take() {
            let node = self.rise(resting);
            self.node = Some(Box::new(node));
            self.refix_timeout();
        }
        #[expect(clippy::expect_used, reason = "a group has a node or a record of one")]
        self.node.as_deref_mut().expect("neither up nor at rest")
    }

    /// Gives the node's memory back, if the group is settled, leads or follows, and is in no joint configuration.
    pub fn rest(&mut self) {
        if !self.settled() || self.is_joint() {
            return;
        }
        let status = self.status();
        let follows = status.role == StateRole::Follower;
        let leads = status.role == StateRole::Leader && status.leader == Some(self.id);
        if !(leads || follows && status.leader != Some(self.id)) {
            return;
        }
        let ConfState { mut voters, learners, .. } = self.configuration();
        let even = |far: &Far| *far == Far::even(far.peer, status.last_index);
        let odd = match leads {
            true => {
                self.far().into_iter().filter(|far| far.peer != self.id && !even(far)).collect()
            }
            false => Box::default(),
        };
        let Some(node) = self.node.take() else { return };
        let raft = node.raft.r;
        let count = voters.len() as u32;
        voters.extend(learners);
        self.base = self.number;
        self.resting = Some(Resting {
            term: status.term,
            vote: raft.vote,
            leader: raft.leader_id,
            last: status.last_index,
            last_term: raft.raft_log.term(status.last_index).unwrap_or(0),
            members: voters.into(),
            voters: count,
            odd,
            storage: raft.raft_log.store.inner,
        });
    }

    /// Whether it rests.
    pub fn rests(&self) -> bool {
        self.resting.is_some()
    }

    /// Whether its log was found to hold less than it did when the group lay down.
    pub fn has_lost(&self) -> bool {
        self.lost
    }

    /// Makes the node anew.
    fn rise(&mut self, resting: Resting<S>) -> RawNode<Shown<S>> {
        let conf_state = resting.configuration();
        let far = resting.far(self.id);
        let Resting { storage, term, vote, leader, last, last_term, .. } = resting;
        let first = storage.first_index().unwrap_or(last + 1);
        let end = storage.last_index().unwrap_or(0);
        // What was compacted meanwhile has no term any more, unless it is the point that the log starts after.
        self.lost |= end != last || first > last + 1 || storage.term(last).ok() != Some(last_term);
        // raft-rs ends the process over a commit index that is not in the log.
        let commit = if self.lost { end.max(first.saturating_sub(1)) } else { last };
        let hard_state = HardState { term, vote, commit, ..Default::default() };
        let start = Some(Box::new(RaftState { hard_state, conf_state }));
        let node = self.config.node(self.id, commit, Shown { inner: storage, start });
        #[expect(clippy::expect_used, reason = "configuration and limits were raft's own")]
        let mut node = node.expect("a node as it was");
        let raft = &mut node.raft;
        raft.mut_store().start = None;
        raft.leader_id = leader;
        if leader == self.id.0 && !self.lost {
            raft.state = StateRole::Leader;
            for (id, progress) in raft.mut_prs().iter_mut() {
                let others = || far.iter().filter(|far| far.peer != self.id);
                let Some(far) = others().find(|far| far.peer.0 == *id) else {
                    progress.become_replicate();
                    continue;
                };
                progress.matched = far.matched;
                progress.committed_index = far.committed;
                match far.replicates {
                    true => progress.become_replicate(),
                    false => progress.become_probe(),
                }
                progress.recent_active = far.active;
            }
        }
        node
    }

    /// The storage below.
    pub fn storage(&self) -> &S {
        #[expect(clippy::expect_used, reason = "a group has a node or a record of one")]
        match (&self.node, &self.resting) {
            (Some(node), _) => &node.store().inner,
            (None, resting) => &resting.as_ref().expect("neither up nor at rest").storage,
        }
    }

    /// The storage below, to change it. A group at rest rises.
    pub fn storage_mut(&mut self) -> &mut S {
        &mut self.node().mut_store().inner
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::admin::Change;
    use crate::raft::guard::Verdict;
    use crate::raft::{Elections, GroupConfig, ProposeError};
    use ::raft::eraftpb::{Message, MessageType};
    use ::raft::storage::MemStorage;
    use bytes::Bytes;

    fn group(id: u64) -> Group<MemStorage> {
        let storage = MemStorage::new_with_conf_state((vec![1, 2, 3], vec![]));
        Group::new(PeerId(id), &GroupConfig::default(), 0, storage).unwrap()
    }

    /// Handles everything that the group has to say.
    fn round(group: &mut Group<MemStorage>) -> Vec<Message> {
        let mut out = Vec::new();
        while let Some(ready) = group.ready() {
            if let Some(snapshot) = ready.snapshot {
                group.storage_mut().wl().apply_snapshot(snapshot).unwrap();
            }
            group.storage_mut().wl().append(&ready.entries).unwrap();
            let number = ready.rest.number();
            let last = ready.committed.last().map(|entry| entry.index);
            out.extend(ready.send_now);
            out.extend(ready.send_after_persist);
            group.advance(ready.rest);
            group.persisted(number);
            if let Some(last) = last {
                group.applied(last);
            }
        }
        out
    }

    /// Delivers until nobody says anything any more.
    fn talk(groups: &mut [Group<MemStorage>]) {
        loop {
            let said: Vec<Message> = groups.iter_mut().flat_map(round).collect();
            if said.is_empty() {
                return;
            }
            for message in said {
                let to = &mut groups[message.to as usize - 1];
                assert!(!matches!(to.step(message), Verdict::Violation(_)));
            }
        }
    }

    fn beat(groups: &mut [Group<MemStorage>]) {
        groups[0].ping();
        talk(groups);
    }

    fn three() -> Vec<Group<MemStorage>> {
        let mut groups: Vec<_> = (1..=3).map(group).collect();
        groups[0].campaign();
        talk(&mut groups);
        groups[0].propose(Bytes::from("one")).unwrap();
        talk(&mut groups);
        beat(&mut groups);
        assert!(groups[0].leads());
        groups
    }

    fn seen(group: &Group<MemStorage>) -> impl PartialEq + std::fmt::Debug + use<> {
        let asked = (group.committed_in_term(), group.applied_in_term(), group.configuration());
        let open = (group.change_pending(), group.transferring(), group.has_ready());
        (group.status(), group.standings(), group.mark(), group.leads(), asked, open)
    }

    #[test]
    fn at_rest_it_answers_as_it_did() {
        let mut groups = three();
        for group in &mut groups[..1] {
            let (before, progress) = (seen(group), group.progress());
            group.rest();
            assert!(group.rests());
            assert_eq!(seen(group), before);
            assert_eq!(group.progress(), progress);
            group.node();
            assert!(!group.rests() && !group.has_lost());
            assert_eq!(group.progress(), progress);
            round(group);
            assert_eq!(seen(group), before);
        }
        let follower = &mut groups[1];
        let before = (follower.status(), follower.configuration());
        follower.rest();
        assert_eq!((follower.status(), follower.configuration()), before);
        follower.node();
        assert_eq!((follower.status(), follower.configuration()), before);
    }

    #[test]
    fn a_leader_that_rises_leads_on_in_its_term() {
        let mut groups = three();
        let term = groups[0].status().term;
        groups.iter_mut().for_each(Group::rest);
        assert!(groups.iter().all(Group::rests));
        let position = groups[0].propose(Bytes::from("two")).unwrap();
        assert_eq!(position.term, term, "no election, and no entry but this");
        assert_eq!(position.index, groups[1].status().last_index + 1);
        talk(&mut groups);
        beat(&mut groups);
        for group in &groups {
            let status = group.status();
            assert_eq!((status.term, status.committed), (term, position.index));
            assert_eq!(status.leader, Some(PeerId(1)));
        }
        assert_eq!(groups[1].propose(Bytes::new()), Err(ProposeError::NotLeader));
    }

    #[test]
    fn a_vote_is_not_forgotten_at_rest() {
        let mut groups = three();
        let term = groups[0].status().term;
        groups[1].rest();
        let mut request = Message { from: 3, to: 2, term, index: 99, ..Default::default() };
        request.log_term = term;
        request.set_msg_type(MessageType::MsgRequestVote);
        let _ = groups[1].step(request);
        let answers = round(&mut groups[1]);
        assert!(answers.iter().all(|answer| answer.reject), "{answers:?}");
    }

    #[test]
    fn whoever_has_something_under_way_does_not_rest() {
        let mut groups = three();
        groups[0].propose(Bytes::from("three")).unwrap();
        groups[0].rest();
        assert!(!groups[0].rests());
        let mut lonely = group(2);
        (0..64).for_each(|_| lonely.tick(Elections::Free));
        round(&mut lonely);
        assert_eq!(lonely.status().role, StateRole::PreCandidate);
        lonely.rest();
        assert!(!lonely.rests());
    }

    /// A change binds whoever commits it, long before anybody has applied it: the simulator must know of it wherever it
    /// stands (seed 2323 of its regions).
    #[test]
    fn a_change_is_seen_in_every_log_that_holds_it_until_it_is_applied() {
        let mut groups = three();
        assert!(groups.iter().all(|group| !group.holds_change()));
        let change = Change::Demote(PeerId(3));
        groups[0].propose_change(&[change], Bytes::from("demote")).unwrap();
        assert!(groups[0].holds_change() && !groups[1].holds_change());
        for message in round(&mut groups[0]).into_iter().filter(|message| message.to == 2) {
            groups[1].step(message);
        }
        assert!(groups[1].holds_change() && !groups[2].holds_change());
        let answers = round(&mut groups[1]);
        answers.into_iter().for_each(|answer| drop(groups[0].step(answer)));
        talk(&mut groups);
        beat(&mut groups);
        assert!(groups[..2].iter().all(|group| !group.holds_change()));
    }

    #[test]
    fn rounds_are_numbered_on_and_late_acknowledgements_of_old_ones_mean_nothing() {
        let mut groups = three();
        let old = groups[0].number;
        groups[0].rest();
        groups[0].propose(Bytes::from("two")).unwrap();
        let ready = groups[0].ready().unwrap();
        let number = ready.rest.number();
        assert!(number > old);
        groups[0].storage_mut().wl().append(&ready.entries).unwrap();
        groups[0].advance(ready.rest);
        groups[0].persisted(old);
        assert!(groups[0].written > groups[0].durable);
        groups[0].persisted(number);
        assert!(groups[0].written <= groups[0].durable);
    }

    #[test]
    fn a_log_that_shrank_in_between_is_noticed() {
        let mut groups = three();
        groups[1].rest();
        let resting = groups[1].resting.as_mut().unwrap();
        resting.last += 1;
        groups[1].node();
        assert!(groups[1].has_lost());
    }
}
