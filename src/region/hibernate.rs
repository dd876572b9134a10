//! Hibernate: a group that is even everywhere and that nobody uses sleeps: no tick, no message, and later no buffers.
//!
//! 1. **Quiet.** Nothing was proposed, read, appended or applied from one look of its store to the next: a tick, or a few
//!    where thousands are awake. (Where so many are that looks are as far apart as heartbeats, it is enough that nothing is under
//!    way.) To be woken costs a write next to nothing; a heartbeat costs what a write does.
//! 2. **The leader's word.** It leads, everything is durable, committed and applied, nobody waits, no leadership
//!    or configuration is changing. Every follower is *even* (holds everything) and its
//!    node and ours support each other; or it is *away*: its node is silent and raft has not heard of it either. At
//!    least a majority of the voters, the leader included, is even. Nobody who is even is only
//!    [in passing](super::membership). Former replicas that are not known to be gone are on
//!    silent nodes, which were asked for long. Then the leader sends each even follower one last heartbeat that says
//!    "sleep", and up to where everything is committed, and lies down at once.
//! 3. **The follower agrees** only in the leader's term, when its log ends where the leader's commit stands, with
//!    everything durable and applied here too, and its node supports the leader's. If all that is missing is that it heard
//!    of the commit only now, it is *drowsy*: it lies down as soon as it has applied what was left, and answers nothing. Otherwise
//!    it takes the word as the heartbeat that it also is, and the answer, marked as one to the word, wakes the leader.
//! 4. **Memory.** Who has slept for `hibernate_after` gives raft's node and the buffers back. Until then waking is free.
//!
//! **Who wakes whom.** Any message wakes that says anything new; so does anything that a caller wants. (Late answers of even
//! followers say nothing new.) A leader that wakes speaks to all
//! followers at once, unless it wakes for a write, which does that. Followers wake when their leader's *node* loses our support, and campaign soon, each after
//! its own delay; the delays, and the chunks in which a store wakes its groups, keep it from being one storm. A
//! leader wakes when a follower's node comes back (it may lag, or have forgotten whom it follows; where it was only silent, it
//! wakes if it slept without that follower), or that of a former replica which it has still to ask whether it is gone, or when so many went silent that it cannot lead any more. In
//! the first case it wakes *softly*: the others are told to sleep on instead of being sent heartbeats, and once the one for whom it woke is even all lie down again. If that takes too
//! long, or anything else is wanted, it speaks to everybody after all. (After three quarters of an election timeout: soon
//! raft would look whether its leader hears of a quorum, which sleeps.) What is lost or late mends itself: a follower that never got the word
//! campaigns in time, and asks its sleeping leader for a vote; before that, who hears nothing of his leader tells him that he is
//! awake, as if it answered the word; a late word puts a follower to sleep that the next
//! heartbeat wakes.
//!
//! **Why nothing is unsafe.** No promise is given by sleeping and none is broken. A lease rests on the promises
//! (`votes_from`) that followers gave when they confirmed a round, counted by their clocks, asleep or not; it lapses
//! by the leader's clock. Nobody renews it asleep: the first lease read finds none, and wakes the group for a round.
//! Raft's own timers stand still ([`quiet`](crate::raft::quiet)). A leader that was deposed in its sleep can commit
//! nothing and confirm no read: both need a quorum that still follows it.
//!
//! **Why nobody sleeps for ever.** Suppose a follower sleeps at A and its leader, at B, does not lead any more. Who
//! replaced it either speaks to A, or sleeps; and sleeps only if A was even (it was awake and followed it then) or
//! away, and in the second case it wakes when A comes back. If B is gone, A's support of it ends. What this argument
//! overlooks the watchdog finds (`store::liveness`): now and then the ends of a node pair compare sums over what
//! has slept for long in each chunk of groups, and chunks that stay different are woken at both ends.
//!
//! **What stays**, of who has slept for long: the replica itself, small; raft's node goes ([`rest`](crate::raft::rest)) and
//! is made anew by whatever wakes it.

use super::config::StoreConfig;
use super::effects::Outbox;
use super::farewell::Asking;
use super::neighbours::{Bed, End, Neighbours, On};
use super::peer::Peer;
use super::sparse::Empty;
use crate::raft::Standing;
use crate::types::{Departed, PeerId, RegionId, Role, StoreId, Time};
use ::raft::eraftpb::{Message, MessageType};

/// What the leader's last heartbeat says.
const SLEEP: &[u8] = b"sleep";

/// Whether the replica takes part in time.
#[derive(Default, Debug)]
pub(crate) struct Rest {
    /// Something happened since the store looked last.
    stirred: bool,
    /// Nothing had, when it looked last.
    quiet: bool,
    /// A follower that was told to sleep and has still to apply something.
    drowsy: bool,
    asleep: Option<Bed>,
    /// When it lay down last.
    since: Time,
    /// The store is going to look whether it sleeps still.
    pub(crate) listed: bool,
    /// Of a leader that woke for its follower on this node alone; and until which tick it may stay so.
    softly: Option<(StoreId, u64)>,
}

/// Why a replica is woken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Wake {
    /// A follower's node is there again, or the follower did not agree to sleep: leaders look after that one.
    Returned(StoreId),
    /// It is going to propose, which wakes the others.
    Proposes,
    /// Something is to be done, or looked at.
    Asked,
    /// The node of its leader is gone.
    LeaderLost(StoreId),
}

impl Wake {
    /// For both reasons.
    pub(crate) fn and(self, other: Wake) -> Wake {
        match (self, other) {
            (Wake::Returned(one), Wake::Returned(other)) if one != other => Wake::Asked,
            (one, other) => one.max(other),
        }
    }
}

fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// What both ends of a sleeping group know of it.
fn mark(region: RegionId, (term, last_index): (u64, u64)) -> u64 {
    mix(mix(mix(region.0).wrapping_add(term)).wrapping_add(last_index)).max(1)
}

/// How many ticks a leader may be awake softly: until soon before raft looks whether it hears of a quorum.
fn soft_patience(config: &StoreConfig) -> u64 {
    config.group.election_ticks as u64 * 3 / 4
}

/// Whether this is the answer to a word to sleep.
pub(crate) fn answers_word(message: &Message) -> bool {
    message.get_msg_type() == MessageType::MsgHeartbeatResponse && &message.context[..] == SLEEP
}

/// Whether this is a leader's word to sleep.
pub(crate) fn is_word(message: &Message) -> bool {
    message.get_msg_type() == MessageType::MsgHeartbeat && &message.context[..] == SLEEP
}

impl Peer {
    /// Whether it sleeps.
    pub(crate) fn asleep(&self) -> bool {
        self.rest.asleep.is_some()
    }

    /// Something happened.
    pub(crate) fn stir(&mut self) {
        (self.rest.stirred, self.rest.quiet, self.rest.softly) = (true, false, None);
    }

    /// The store looks at it, every so many ticks. Whether it is time to sleep.
    pub(crate) fn grows_tired(&mut self, config: &StoreConfig, turns: u64) -> bool {
        let stirred = std::mem::take(&mut self.rest.stirred);
        // Looks that are as far apart as heartbeats find a heartbeat due: to sleep, if it may, says less.
        let heartbeat = config.group.heartbeat_ticks as u64;
        self.rest.quiet = !stirred || turns >= heartbeat;
        // Who does not agree to sleep is not told again at once.
        let waits = |(_, until)| self.ticks + soft_patience(config) < until + heartbeat;
        self.rest.quiet && config.hibernates() && !self.rest.softly.is_some_and(waits)
    }

    /// Whether it is quiet and does not sleep.
    pub(crate) fn stays_up(&self, config: &StoreConfig) -> bool {
        self.rest.quiet || !config.hibernates()
    }

    /// Whether a visit would find anything to do.
    pub(crate) fn has_work(&self) -> bool {
        self.group.has_ready()
            || self.proposals.has_pending()
            || self.reads.has_waiting()
            || self.compactable()
    }

    /// Whether it could stand still as far as it knows itself.
    fn rested(&self) -> bool {
        self.is_free()
            && self.progress.applied.index == self.group.status().last_index
            && self.progress.applying_bytes == 0
            && self.group.settled()
    }

    /// Whether nothing is going on here but what is being replicated.
    fn is_free(&self) -> bool {
        self.runs()
            && self.received.is_none()
            && self.reshaping.is_none()
            && self.changing.is_none()
            && self.handing.is_none()
            && self.passage.is_none()
            && self.merging.is_none()
            && self.held.is_empty()
            && self.flights.is_idle()
            && !self.region.is_joint()
            && self.proposals.is_empty()
            && self.reads.is_idle()
    }

    fn node_of(&self, standing: &Standing) -> Option<StoreId> {
        self.region.peer(standing.peer).map(|peer| peer.store)
    }

    /// The even followers and their nodes, if a leader may sleep beside its followers as they stand.
    fn even_followers(&self, neighbours: &Neighbours) -> Option<Vec<(Standing, StoreId)>> {
        let mut even = Vec::new();
        for standing in self.group.standings() {
            let store = self.node_of(&standing)?;
            let node = neighbours.get(store);
            match (standing.even, standing.active, node.support) {
                (true, true, true) if node.supports_us => even.push((standing, store)),
                (_, false, false) => {
                    neighbours.meet(store);
                }
                _ => {
                    neighbours.meet(store);
                    return None;
                }
            }
        }
        let votes = |even: &(Standing, StoreId)| {
            self.region.peer(even.0.peer).is_some_and(|peer| peer.role == Role::Voter)
        };
        let own = self.region.peer(self.id).is_some_and(|peer| peer.role == Role::Voter);
        let voters = self.region.peers.iter().filter(|peer| peer.role == Role::Voter).count();
        let majority = even.iter().filter(|even| votes(even)).count() + usize::from(own);
        (majority > voters / 2).then_some(even)
    }

    /// A leader that woke softly and could not sleep again in time speaks to everybody.
    pub(crate) fn speak_up(&mut self) -> bool {
        if self.rest.softly.is_none_or(|(_, until)| self.ticks < until) {
            return false;
        }
        self.stir();
        let leads = self.runs() && self.group.leads();
        if leads {
            self.group.ping();
        }
        leads
    }

    /// A follower whose leader says nothing, and sleeps perhaps, says that it is awake: it woke alone, or did not come to lie
    /// down when it was told to. (Voters would campaign in the end; the others wait for ever.)
    pub(crate) fn call_leader(&mut self, config: &StoreConfig, out: &mut Outbox) {
        let (silent, every) = (self.group.left_alone(), config.group.heartbeat_ticks.max(1));
        if !config.hibernates() || silent < 2 * every || !silent.is_multiple_of(every) {
            return;
        }
        self.rest.drowsy = false;
        let status = self.group.status();
        let mut answer = Message {
            from: self.id.0,
            to: status.leader.map_or(0, |leader| leader.0),
            term: status.term,
            commit: status.committed,
            context: SLEEP.into(),
            ..Default::default()
        };
        answer.set_msg_type(MessageType::MsgHeartbeatResponse);
        if let Some((store, envelope)) = self.envelope(answer) {
            out.push(store, envelope);
        }
    }

    /// What a leader that woke softly says unasked to those for whom it did not wake is the word to sleep.
    pub(crate) fn hush(&self, message: &mut Message) {
        let Some((awake_for, _)) = self.rest.softly else { return };
        let unasked =
            message.get_msg_type() == MessageType::MsgHeartbeat && message.context.is_empty();
        // Who lacks something is told of less than all.
        let has_all = || message.commit == self.group.status().last_index;
        let to = || self.region.peer(PeerId(message.to)).map(|peer| peer.store);
        if unasked && has_all() && to() != Some(awake_for) {
            message.context = SLEEP.into();
        }
    }

    /// A leader that is quiet sleeps, if it may, and says so. `false`: it stays awake.
    pub(crate) fn try_to_sleep(
        &mut self,
        config: &StoreConfig,
        neighbours: &Neighbours,
        out: &mut Outbox,
    ) -> bool {
        if self.asleep() || !self.runs() || !self.group.leads() || !self.rested() {
            return false;
        }
        // Who can be asked whether a former replica is gone is asked first.
        let silent =
            |gone: &Departed| gone.store != self.store && !neighbours.get(gone.store).support;
        let in_vain = self.asking.was_in_vain(config) && self.removed.iter().all(silent);
        if !self.removed.is_empty() && !in_vain {
            return false;
        }
        let Some(even) = self.even_followers(neighbours) else { return false };
        // Who has arrived is to vote, or to go: that is seen to awake.
        let passing = |even: &(Standing, StoreId)| {
            self.region.peer(even.0.peer).is_some_and(|peer| peer.role == Role::Passing)
        };
        if even.iter().any(passing) {
            return false;
        }
        self.removed.iter().for_each(|gone| neighbours.await_return(gone.store));
        let status = self.group.status();
        for (standing, _) in &even {
            let mut word = Message {
                from: self.id.0,
                to: standing.peer.0,
                term: status.term,
                commit: status.committed,
                context: SLEEP.into(),
                ..Default::default()
            };
            word.set_msg_type(MessageType::MsgHeartbeat);
            if let Some((store, envelope)) = self.envelope(word) {
                out.push(store, envelope);
            }
        }
        self.rest.softly = None;
        let on: Vec<StoreId> = even.into_iter().map(|(_, store)| store).collect();
        self.lie_down(neighbours, On::followers(&on));
        true
    }

    /// The leader's word. `false`: it is to be taken as a heartbeat.
    pub(crate) fn told_to_sleep(
        &mut self,
        config: &StoreConfig,
        neighbours: &Neighbours,
        word: &Message,
    ) -> bool {
        self.rest.drowsy = false;
        let status = self.group.status();
        let agrees = config.hibernates()
            && self.runs()
            && status.term == word.term
            && status.leader.is_some_and(|leader| leader.0 == word.from && leader != self.id)
            && status.last_index == word.commit;
        let Some(leader) = self.leader_store().filter(|_| agrees) else { return false };
        if self.asleep() {
            return status.committed == word.commit;
        }
        neighbours.meet(leader);
        self.rest.drowsy = neighbours.get(leader).support && self.is_free();
        status.committed == word.commit && self.nods_off(neighbours)
    }

    /// Whoever is drowsy lies down, if nothing is left to do.
    pub(crate) fn nods_off(&mut self, neighbours: &Neighbours) -> bool {
        if !self.rest.drowsy || !self.rested() {
            return false;
        }
        self.rest.drowsy = false;
        let leader = self.leader_store().filter(|leader| neighbours.get(*leader).support);
        let follows = leader.filter(|_| !self.group.leads());
        if let Some(leader) = follows {
            self.lie_down(neighbours, On::Leader(leader));
        }
        follows.is_some()
    }

    /// Whether it is to lie down when nothing is left to do.
    pub(crate) fn is_drowsy(&self) -> bool {
        self.rest.drowsy
    }

    /// Another message has come than the word to sleep.
    pub(crate) fn rouses(&mut self) {
        self.rest.drowsy = false;
    }

    /// Whether a message is the answer to a word to sleep: of one that does not agree, if it leaves.
    pub(crate) fn keeps_back(&self, message: &Message) -> bool {
        self.rest.drowsy && answers_word(message)
    }

    /// Whether a message can be nothing new to one that sleeps: an answer that took long, of one that is even to its leader,
    /// or to a vote that it has stopped to ask for. (Where answers take longer than a group takes to fall asleep, who
    /// had campaigned woke of them again and again: seed 5757 of the simulator's regions.)
    pub(crate) fn is_old(&self, message: &Message) -> bool {
        let term = self.group.status().term;
        let even = || {
            let from = self.region.peer(PeerId(message.from));
            message.term == term && from.is_some_and(|peer| self.sleeps_on(peer.store, End::Leads))
        };
        match message.get_msg_type() {
            MessageType::MsgHeartbeatResponse => !answers_word(message) && even(),
            MessageType::MsgAppendResponse => !message.reject && even(),
            MessageType::MsgRequestPreVoteResponse => !message.reject || message.term <= term,
            MessageType::MsgRequestVoteResponse => message.term <= term,
            _ => false,
        }
    }

    fn lie_down(&mut self, neighbours: &Neighbours, on: On) {
        self.group.told_to_sleep();
        // No tick comes for it any more.
        self.group.storage().trim_cache(self.progress.applied.index);
        let mark = mark(self.region.id, self.group.mark());
        self.rest.asleep = Some(neighbours.lie_down(self.region.id, mark, on));
    }

    /// It has lain down.
    pub(crate) fn lay_down(&mut self, now: Time) {
        self.rest.since = now;
    }

    /// When it lay down, if it sleeps.
    pub(crate) fn sleeps_since(&self) -> Option<Time> {
        self.asleep().then_some(self.rest.since)
    }

    /// It has slept for long: what it would need awake goes.
    pub(crate) fn give_back(&mut self) {
        if let Some(bed) = &mut self.rest.asleep {
            bed.settle();
        }
        self.group.rest();
        self.group.storage().trim_cache(self.progress.applied.index);
        self.group.storage().rest();
        self.log_bytes.free();
        self.proposals.free();
        self.reads.free();
        self.held.free();
    }

    /// Ends its sleep, if it sleeps.
    pub(crate) fn wake(&mut self, config: &StoreConfig, why: Wake) {
        let Some(bed) = self.rest.asleep.take() else { return };
        self.stir();
        self.asking = Asking::default();
        match why {
            Wake::Proposes => {}
            Wake::Returned(store) if self.group.leads() => {
                self.rest.softly = Some((store, self.ticks + soft_patience(config)));
                self.group.ping();
            }
            _ if self.group.leads() => self.group.ping(),
            Wake::LeaderLost(store) if bed.is_on(store, End::Follows) => {
                // The first heartbeat interval is for the others to notice, too.
                let ticks = config.group.heartbeat_ticks;
                let ticks = ticks + self.group.spread(config.group.election_ticks / 4);
                self.group.lose_leader(ticks);
            }
            _ => {}
        }
    }

    /// Ends its sleep in the middle of a round, in which raft may not be touched.
    pub(crate) fn sit_up(&mut self) {
        self.rest.asleep = None;
        self.stir();
    }

    /// Whether it sleeps on a node, at that end.
    pub(crate) fn sleeps_on(&self, store: StoreId, end: End) -> bool {
        self.rest.asleep.as_ref().is_some_and(|bed| bed.is_on(store, end))
    }

    /// Whether it sleeps as a leader of a region with a replica there, or with a former one that is not known to be gone.
    pub(crate) fn sleeps_leading(&self, store: StoreId) -> bool {
        let former = || self.removed.iter().any(|gone| gone.store == store);
        let there = || self.region.peer_on(store).is_some() || former();
        self.asleep() && self.group.leads() && there()
    }

    /// Whether it sleeps so, and what it has there was not told to sleep: it lags, or is still to be asked whether it is gone.
    pub(crate) fn sleeps_without(&self, store: StoreId) -> bool {
        let former = || self.removed.iter().any(|gone| gone.store == store);
        self.sleeps_leading(store) && (!self.sleeps_on(store, End::Leads) || former())
    }

    /// Whether the nodes that are there hold no majority of the voters any more.
    pub(crate) fn is_outvoted(&self, neighbours: &Neighbours) -> bool {
        let voters = || self.region.peers.iter().filter(|peer| peer.role == Role::Voter);
        let there = |store| store == self.store || neighbours.get(store).support;
        voters().filter(|peer| there(peer.store)).count() <= voters().count() / 2
    }
}
