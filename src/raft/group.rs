//! [`Group`]: the raft state machine of one peer.

use super::feeding::Answer;
use super::guard::{self, Verdict};
use super::mending;
use super::rest::{Resting, Shown};
use super::turn::Turn;
use crate::codec::admin::Change;
use crate::types::{LogPosition, PeerId};
use ::raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry,
    EntryType, HardState, Message, MessageType, Snapshot,
};
use ::raft::{Config, RawNode, SnapshotStatus, StateRole, Storage};
use bytes::Bytes;
use std::sync::{Arc, LazyLock};

/// How the groups of a store behave. Times are in ticks.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// Silence after which a follower campaigns, at least; the real timeout lies between one and two
    /// of it.
    pub election_ticks: usize,
    /// Ticks between two heartbeats of a leader.
    pub heartbeat_ticks: usize,
    /// Bytes of entries in one append message, about.
    pub append_bytes_max: u64,
    /// Append messages in flight to one follower.
    pub inflight_messages_max: usize,
    /// Bytes of entries proposed and not yet committed.
    pub uncommitted_bytes_max: u64,
    /// Bytes of committed entries handed out in one [`Ready`].
    pub committed_bytes_max: u64,
    /// Seeds the election timeouts.
    pub seed: u64,
}

impl Default for GroupConfig {
    fn default() -> Self {
        GroupConfig {
            election_ticks: 20,
            heartbeat_ticks: 4,
            append_bytes_max: 1 << 20,
            inflight_messages_max: 64,
            uncommitted_bytes_max: 32 << 20,
            committed_bytes_max: 4 << 20,
            seed: 0,
        }
    }
}

/// Why a proposal was refused. It has not entered the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProposeError {
    /// Only leaders propose.
    NotLeader,
    /// Leadership is being handed over.
    Transferring,
    /// Too many uncommitted bytes; propose again after some have committed.
    Full,
    /// Another change of the configuration is proposed and not yet applied, or it cannot follow this one.
    Changing,
}

/// Whether a tick may start an election.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Elections {
    /// It may.
    Free,
    /// Not now: this peer has promised not to help anybody against its leader yet.
    Held,
}

/// Where a group stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status {
    /// Current term.
    pub term: u64,
    /// Role in it.
    pub role: StateRole,
    /// Its leader, as far as this peer knows.
    pub leader: Option<PeerId>,
    /// Commit index.
    pub committed: u64,
    /// Last index of the log, durable or not.
    pub last_index: u64,
}

/// What must happen after a round, sorted by when it may. See the room's head.
#[derive(Debug)]
pub struct Ready {
    /// Messages that may leave before anything is persisted.
    pub send_now: Vec<Message>,
    /// Entries to make durable.
    pub entries: Vec<Entry>,
    /// Term, vote and commit to make durable, if they changed.
    pub hard_state: Option<HardState>,
    /// Messages that must not leave before `entries` and `hard_state` are durable.
    pub send_after_persist: Vec<Message>,
    /// Committed and locally persisted entries to apply, in order.
    pub committed: Vec<Entry>,
    /// Answered read-index requests: (context, index to wait for).
    pub reads: Vec<(Vec<u8>, u64)>,
    /// A snapshot to restore before anything else of this round.
    pub snapshot: Option<Snapshot>,
    /// Whether leadership or role changed.
    pub changed_role: Option<StateRole>,
    /// What [`Group::advance`] takes back.
    pub rest: ReadyRest,
}

/// Proof that a [`Ready`] is being handled.
#[derive(Debug)]
pub struct ReadyRest {
    /// Boxed: it is large, and handed around. See [`Room`].
    ready: Box<::raft::Ready>,
    number: u64,
}

impl ReadyRest {
    /// The number by which [`Group::persisted`] is told.
    pub fn number(&self) -> u64 {
        self.number
    }
}

/// Memory for a round, which the next one of whatever group takes again.
#[derive(Default, Debug)]
pub struct Room(Option<Box<::raft::Ready>>);

impl Room {
    fn put(&mut self, ready: ::raft::Ready) -> Box<::raft::Ready> {
        match self.0.take() {
            Some(mut room) => {
                *room = ready;
                room
            }
            None => Box::new(ready),
        }
    }
}

impl Ready {
    /// Whether something must be made durable.
    pub fn must_persist(&self) -> bool {
        !self.entries.is_empty() || self.hard_state.is_some() || self.snapshot.is_some()
    }
}

/// The raft state machine of one peer.
///
/// * Between [`ready`](Self::ready) and [`advance`](Self::advance) nothing else may be called.
/// * Its election timeout depends on (seed, peer, term, voters, known leader) only.
/// * While rounds with entries or a snapshot wait for the disk (`written > durable`) it does not become
///   leader, and while the log starts above what raft knows to be applied it does not campaign: raft-rs
///   stops the process on both.
/// * Exactly one of `node` and `resting` is there. Whatever changes the state finds a node: a group at rest
///   rises for it (see [`rest`](super::rest)).
/// * Rounds are numbered on when a node is made anew: `base` is the last number before its first.
pub struct Group<S: Storage> {
    pub(super) node: Option<Box<RawNode<Shown<S>>>>,
    pub(super) resting: Option<Resting<S>>,
    pub(super) config: Arc<GroupConfig>,
    pub(super) id: PeerId,
    pub(super) base: u64,
    /// The last round handed out.
    pub(super) number: u64,
    /// The last round with entries or a snapshot.
    pub(super) written: u64,
    /// The last round known to be durable.
    pub(super) durable: u64,
    /// Whether the storage held less than it should when the group rose.
    pub(super) lost: bool,
    /// The election timeout, and for which term and leader it was computed.
    pub(super) timeout: (u64, u64, usize),
    /// In which term which commit index was told to all followers: see [`telling`](super::telling).
    pub(super) told: (u64, u64),
}

/// Where raft-rs's own log goes: nowhere, and of all groups together.
static SILENCE: LazyLock<slog::Logger> =
    LazyLock::new(|| slog::Logger::root(slog::Discard, slog::o!()));

/// raft's own form of a change.
fn form_of(changes: &[Change]) -> ConfChangeV2 {
    let mut form = ConfChangeV2::default();
    for change in changes {
        let mut single = ConfChangeSingle { node_id: change.peer().0, ..Default::default() };
        single.set_change_type(match change {
            Change::AddLearner { .. } | Change::Demote(_) => ConfChangeType::AddLearnerNode,
            Change::Promote(_) => ConfChangeType::AddNode,
            Change::Remove(_) => ConfChangeType::RemoveNode,
        });
        form.mut_changes().push(single);
    }
    if changes.len() > 1 {
        form.set_transition(ConfChangeTransition::Explicit);
    }
    form
}

/// Puts the lists of a configuration in order.
pub fn sort(state: &mut ConfState) {
    for list in [
        &mut state.voters,
        &mut state.learners,
        &mut state.voters_outgoing,
        &mut state.learners_next,
    ] {
        list.sort_unstable();
    }
}

impl GroupConfig {
    /// A node of raft-rs's on a storage.
    pub(super) fn node<S: Storage>(
        &self,
        id: PeerId,
        applied: u64,
        storage: S,
    ) -> ::raft::Result<RawNode<S>> {
        let config = Config {
            id: id.0,
            election_tick: self.election_ticks,
            heartbeat_tick: self.heartbeat_ticks,
            applied,
            max_size_per_msg: self.append_bytes_max,
            max_inflight_msgs: self.inflight_messages_max,
            check_quorum: true,
            pre_vote: true,
            batch_append: true,
            skip_bcast_commit: true,
            max_uncommitted_size: self.uncommitted_bytes_max,
            max_committed_size_per_ready: self.committed_bytes_max,
            ..Default::default()
        };
        let mut node = RawNode::new(&config, storage, &SILENCE)?;
        // Only a leader that appends needs them, and gets them again then.
        node.raft.maybe_free_inflight_buffers();
        Ok(node)
    }
}

impl<S: Storage> Group<S> {
    /// Brings a peer to life from its storage; `applied` is what its state machine holds.
    ///
    /// Errors when the storage does not hold a consistent raft state.
    pub fn new(id: PeerId, config: &GroupConfig, applied: u64, storage: S) -> ::raft::Result<Self> {
        Group::sharing(id, Arc::new(config.clone()), applied, storage)
    }

    /// As [`new`](Self::new), with one configuration for many groups.
    pub fn sharing(
        id: PeerId,
        config: Arc<GroupConfig>,
        applied: u64,
        storage: S,
    ) -> ::raft::Result<Self> {
        let node = config.node(id, applied, Shown::as_it_is(storage))?;
        let mut group = Group {
            node: Some(Box::new(node)),
            resting: None,
            config,
            id,
            base: 0,
            number: 0,
            written: 0,
            durable: 0,
            lost: false,
            timeout: (0, 0, 0),
            told: (0, 0),
        };
        group.fix_timeout();
        Ok(group)
    }

    /// Replaces raft-rs's draw: see [`turn`](super::turn). Raft draws anew when the term, the leader or the role changes; and
    /// who votes is what [`refix_timeout`](Self::refix_timeout) is for.
    pub(super) fn fix_timeout(&mut self) {
        let (term, leader, timeout) = self.timeout;
        let raft = &self.node().raft;
        if (raft.term, raft.leader_id, raft.randomized_election_timeout())
            != (term, leader, timeout)
        {
            self.refix_timeout();
        }
    }

    /// The same, whatever it was computed for last.
    pub(super) fn refix_timeout(&mut self) {
        let timeout = self.timeout();
        let raft = &mut self.node().raft;
        if raft.randomized_election_timeout() != timeout {
            raft.set_randomized_election_timeout(timeout);
        }
        let now = (raft.term, raft.leader_id, timeout);
        self.timeout = now;
    }

    /// How long it waits for its leader, in ticks.
    pub(super) fn timeout(&self) -> usize {
        let status = self.status();
        let leader = status.leader.map_or(0, |leader| leader.0);
        let turn = Turn { own: self.id.0, leader, term: status.term, seed: self.config.seed };
        let base = self.config.election_ticks;
        match self.raft() {
            Some(raft) => turn.timeout(base, raft.prs().conf().voters().ids().iter()),
            // At rest there is one configuration only.
            None => turn.timeout(base, self.configuration().voters.into_iter()),
        }
    }

    /// One tick of the logical clock. A follower whose election is due waits while elections are held back
    /// (or while its disk is behind).
    pub fn tick(&mut self, elections: Elections) {
        let raft = &self.node().raft;
        let due = raft.election_elapsed + 1 >= raft.randomized_election_timeout();
        // A learner's time goes on: held back one tick before its election it would follow a leader that is gone for
        // ever, and refuse the vote that those who have made it a voter wait for (seed 41).
        let (waits, promotable) = (raft.state != StateRole::Leader && due, raft.promotable());
        if waits && promotable && !(elections == Elections::Free && self.may_campaign()) {
            return;
        }
        self.node().tick();
        self.fix_timeout();
    }

    /// Whether raft-rs survives a campaign now. It reads the entries from what it knows to be applied on,
    /// which a restored snapshot that is not durable yet has cut off; and the only voter wins at once.
    fn may_campaign(&mut self) -> bool {
        let (written, durable) = (self.written, self.durable);
        let raft = &self.node().raft;
        let log = &raft.raft_log;
        let from = log.unstable.maybe_first_index().unwrap_or(log.applied() + 1);
        let in_flight = written > durable || log.persisted < log.last_index();
        let conf = raft.prs().conf().to_conf_state();
        // Of both halves, if there are two.
        let alone = conf.voters.iter().chain(&conf.voters_outgoing).all(|id| *id == raft.id);
        raft.promotable() && from >= log.first_index() && !(alone && in_flight)
    }

    /// Whether a message would make raft-rs campaign or lead at a moment at which it stops the process:
    /// a vote may be heard of before the round that asked for it is known to be durable here.
    fn too_early(&mut self, message: &Message) -> bool {
        match message.get_msg_type() {
            MessageType::MsgTimeoutNow => !self.may_campaign(),
            MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse => {
                let behind = self.written > self.durable;
                let log = &self.node().raft.raft_log;
                !message.reject && (behind || log.persisted < log.last_index())
            }
            _ => false,
        }
    }

    /// Takes a message from a peer, if the [`guard`] lets it.
    pub fn step(&mut self, message: Message) -> Verdict {
        let verdict = {
            let raft = &self.node().raft;
            let view = guard::View {
                id: raft.id,
                term: raft.term,
                leads: raft.state == StateRole::Leader,
                committed: raft.raft_log.committed,
                last_index: raft.raft_log.last_index(),
                term_of: &|index| raft.raft_log.term(index).ok().filter(|term| *term > 0),
            };
            guard::check(&view, &message)
        };
        if verdict == Verdict::Step && self.too_early(&message) {
            return Verdict::Drop;
        }
        if verdict == Verdict::Step {
            let answer = Answer::of(&message);
            if message.get_msg_type() == MessageType::MsgReadIndex {
                self.tell_commit();
            }
            let restores = message.get_msg_type() == MessageType::MsgSnapshot;
            // A message from an unknown peer or to an old role is refused; nothing to do about it.
            let _ = self.node().step(message);
            self.end_probing(answer);
            match restores {
                true => self.refix_timeout(),
                false => self.fix_timeout(),
            }
        }
        verdict
    }

    /// Appends one entry to the leader's log and returns where it stands.
    pub fn propose(&mut self, data: Bytes) -> Result<LogPosition, ProposeError> {
        self.may_propose()?;
        self.put(Entry { data, ..Default::default() })
    }

    fn may_propose(&self) -> Result<(), ProposeError> {
        match (self.leads(), self.transferring()) {
            (false, _) => Err(ProposeError::NotLeader),
            (true, true) => Err(ProposeError::Transferring),
            (true, false) => Ok(()),
        }
    }

    fn put(&mut self, entry: Entry) -> Result<LogPosition, ProposeError> {
        let raft = &mut self.node().raft;
        let mut message = Message { from: raft.id, ..Default::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.mut_entries().push(entry);
        raft.step(message).map_err(|_| ProposeError::Full)?;
        Ok(LogPosition { index: raft.raft_log.last_index(), term: raft.term })
    }

    /// Appends a change of the configuration to the leader's log; no changes: the end of a joint one. What replicas
    /// apply is `said`; raft's own form beside it is looked at here only. raft-rs would replace what it does
    /// not like by an empty entry, in silence: that is refused before.
    pub fn propose_change(
        &mut self,
        changes: &[Change],
        said: Bytes,
    ) -> Result<LogPosition, ProposeError> {
        self.may_propose()?;
        let joint = !self.configuration().voters_outgoing.is_empty();
        if self.change_pending() || joint != changes.is_empty() {
            return Err(ProposeError::Changing);
        }
        let form = form_of(changes);
        let data = protobuf::Message::write_to_bytes(&form).map_err(|_| ProposeError::Full)?;
        let mut entry = Entry { data: data.into(), context: said, ..Default::default() };
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        self.put(entry)
    }

    /// A change of the configuration was applied, in order and before [`applied`](Self::applied) of its index. A
    /// leader that does not vote any more steps down. Nothing is to be called for one that was refused: raft-rs
    /// 0.7 takes an empty change for the end of a joint configuration.
    pub fn reconfigure(&mut self, changes: &[Change]) -> ::raft::Result<()> {
        let node = self.node();
        node.apply_conf_change(&form_of(changes))?;
        let raft = &mut node.raft;
        if raft.state == StateRole::Leader && !raft.promotable() {
            let term = raft.term;
            raft.become_follower(term, ::raft::INVALID_ID);
        }
        self.refix_timeout();
        Ok(())
    }

    /// Asks for a read index under `context`, which must be unique in the group. May be dropped
    /// silently (no leader, nothing committed in the term): retry under a new context.
    pub fn read_index(&mut self, context: Vec<u8>) {
        self.node().read_index(context);
    }

    /// Starts an election at once.
    pub fn campaign(&mut self) {
        if !self.may_campaign() {
            return;
        }
        let _ = self.node().campaign();
        self.fix_timeout();
    }

    /// Hands leadership to `to`, if it is a voter that can catch up.
    pub fn transfer_leader(&mut self, to: PeerId) {
        self.node().transfer_leader(to.0);
    }

    /// Tells that messages to `peer` do not arrive.
    pub fn unreachable(&mut self, peer: PeerId) {
        self.node().report_unreachable(peer.0);
    }

    /// Tells how sending a snapshot to `peer` ended.
    pub fn snapshot_sent(&mut self, peer: PeerId, status: SnapshotStatus) {
        self.node().report_snapshot(peer.0, status);
    }

    /// Takes what the changes so far ask for, if anything.
    pub fn ready(&mut self) -> Option<Ready> {
        self.ready_in(&mut Room::default())
    }

    /// As [`ready`](Self::ready), for whoever has many groups, one after another.
    pub fn ready_in(&mut self, room: &mut Room) -> Option<Ready> {
        if !self.has_ready() {
            return None;
        }
        let mut ready = room.put(self.node().ready());
        let number = self.base + ready.number();
        self.number = number;
        if !ready.entries().is_empty() || !ready.snapshot().is_empty() {
            self.written = number;
        }
        let snapshot = ready.snapshot();
        let snapshot = (snapshot.get_metadata().index > 0).then(|| snapshot.clone());
        let messages = ready.take_messages();
        Some(Ready {
            send_now: self.mend(messages),
            entries: ready.take_entries(),
            hard_state: ready.hs().cloned(),
            send_after_persist: {
                let mut messages = ready.take_persisted_messages();
                // Of one that stepped down in this round there may be appends among them, and nobody needs those.
                messages.retain(mending::follows_its_index);
                messages
            },
            committed: ready.take_committed_entries(),
            reads: ready
                .take_read_states()
                .into_iter()
                .map(|state| (state.request_ctx, state.index))
                .collect(),
            snapshot,
            changed_role: ready.ss().map(|state| state.raft_state),
            rest: ReadyRest { ready, number },
        })
    }

    /// Ends the round: its entries can be read from the storage now.
    pub fn advance(&mut self, rest: ReadyRest) {
        self.advance_in(rest, &mut Room::default());
    }

    /// As [`advance`](Self::advance); leaves the room for the next [`ready_in`](Self::ready_in).
    pub fn advance_in(&mut self, mut rest: ReadyRest, room: &mut Room) {
        self.node().advance_append_async(std::mem::take(&mut *rest.ready));
        room.0 = Some(rest.ready);
    }

    /// All rounds up to `number` are durable.
    pub fn persisted(&mut self, number: u64) {
        self.durable = self.durable.max(number);
        // Of before a rest: that it was durable is known.
        if number <= self.base {
            return;
        }
        let number = number - self.base;
        self.node().on_persist_ready(number);
        self.fix_timeout();
    }

    /// The state machine has applied everything up to `index`. Ignored when raft knows more already, or
    /// does not know yet that the log is persisted so far (say it again later then).
    pub fn applied(&mut self, index: u64) {
        if self.resting.is_some() {
            return; // everything was applied before
        }
        let node = self.node();
        let log = &node.raft.raft_log;
        if index > log.applied() && index <= log.committed.min(log.persisted) {
            node.advance_apply_to(index);
        }
    }
}
