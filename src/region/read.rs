//! Read: read-index rounds shared by all reads that wait, the leader lease, and freshness.
//!
//! A round asks the leader (over the network, if this is a follower) for the commit index, confirmed by a
//! quorum *after* the round started; once this replica has applied up to it, a view taken here contains
//! everything acknowledged before the round started (Raft thesis 6.4). One finished round gives three things:
//!
//! * linearizable reads that waited for it may proceed;
//! * on a leader, a **lease** counted from the round's start: no follower that confirmed helps another
//!   before an election timeout has passed by its clock, and a restarted one refuses votes for as long. A
//!   lease read must find everything *committed* applied, not only what was acknowledged here: a follower
//!   may have applied it, and shown it, first (found by seed 568 of the simulator);
//! * on any replica, **freshness**: bounded-stale reads are served from here without asking anybody.
//!
//! raft-rs drops requests silently (no leader, nothing committed in the term): contexts are unique, rounds
//! that do not come back are asked again.

use super::config::StoreConfig;
use super::effects::{Effects, ReadGrant, Reply, Token};
use super::merge::FROZEN;
use super::peer::Peer;
use super::sparse::{Empty, Sparse};
use crate::error::Error;
use crate::types::{PeerId, Region, Time};
use std::collections::VecDeque;
use std::time::Duration;

/// How fresh a read must be.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum ReadLevel {
    /// Contains everything acknowledged before the read started; confirmed by a quorum. Any replica.
    #[default]
    Linearizable,
    /// The same guarantee from the leader's lease (no message) as long as clocks drift less than
    /// configured; falls back to a round.
    Lease,
    /// Contains everything acknowledged longer than `max` ago. Any replica, mostly without a message.
    Stale {
        /// The bound on staleness.
        max: Duration,
    },
}

#[derive(Debug)]
struct Waiting {
    token: Token,
    asked: Time,
}

#[derive(Debug)]
struct RoundTrip {
    sequence: u64,
    started: Time,
    index: Option<u64>,
    waiting: Vec<Waiting>,
}

/// The reads of one replica.
#[derive(Debug)]
pub struct Reads {
    queue: Sparse<Queue>,
    sequence: u64,
}

/// Who waits.
///
/// * `rounds` are in order of their start; all belong to the present term and role.
#[derive(Default, Debug)]
struct Queue {
    waiting: Vec<Waiting>,
    rounds: VecDeque<RoundTrip>,
}

impl Empty for Queue {
    fn empty() -> &'static Queue {
        static NOTHING: Queue = Queue { waiting: Vec::new(), rounds: VecDeque::new() };
        &NOTHING
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.rounds.is_empty()
    }
}

/// Rounds under way at once; more reads wait for the next.
const ROUNDS_MAX: usize = 4;
/// Reads are given up after this many election timeouts.
const PATIENCE: u32 = 5;

impl Reads {
    /// `nonce` sets this life's contexts apart from those before a restart: an answer to an earlier life
    /// says nothing about now (found by seed 528 of the simulator).
    pub fn new(nonce: u64) -> Reads {
        Reads { queue: Sparse::default(), sequence: nonce }
    }

    /// Whether nobody waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether reads wait for a round to begin.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.queue.waiting.is_empty()
    }

    /// Gives back the memory of the queues, if nobody waits.
    pub(crate) fn free(&mut self) {
        self.queue.free();
    }

    /// Gives up on everything.
    pub fn abandon(&mut self) -> Vec<Token> {
        self.restart_rounds();
        if self.is_idle() {
            return Vec::new();
        }
        self.queue.waiting.drain(..).map(|waiting| waiting.token).collect()
    }

    /// Rounds of an older term or role count for nothing: their reads wait for a new one.
    pub fn restart_rounds(&mut self) {
        if self.is_idle() {
            return;
        }
        let Queue { waiting, rounds } = &mut *self.queue;
        for round in rounds.drain(..) {
            waiting.extend(round.waiting);
        }
    }

    fn confirmed(&mut self, sequence: u64, index: u64) {
        if self.is_idle() {
            return;
        }
        let mut rounds = self.queue.rounds.iter_mut();
        if let Some(round) = rounds.find(|round| round.sequence == sequence) {
            round.index.get_or_insert(index);
        }
    }
}

fn context(peer: PeerId, sequence: u64) -> Vec<u8> {
    [peer.0.to_le_bytes(), sequence.to_le_bytes()].concat()
}

impl Peer {
    /// Grants a read at once, or lets it wait for a round.
    pub(crate) fn read(
        &mut self,
        now: Time,
        token: Token,
        version: u64,
        level: ReadLevel,
        effects: &mut Effects,
    ) {
        let answer = if !self.runs() {
            Err(self.fenced())
        } else if version != self.region.epoch.version {
            Err(Error::EpochNotMatch { current: vec![Region::clone(&self.region)] })
        } else if self.may_serve(now, level) {
            Ok(ReadGrant { epoch: self.region.epoch })
        } else if self.frozen() {
            Err(FROZEN)
        } else {
            self.reads.queue.waiting.push(Waiting { token, asked: now });
            return;
        };
        effects.replies.push((token, Reply::Read(answer)));
    }

    fn may_serve(&self, now: Time, level: ReadLevel) -> bool {
        match level {
            ReadLevel::Linearizable => false,
            ReadLevel::Lease => {
                let committed = self.awaited_by_reads(self.group.status().committed);
                self.share.lease_holds(now) && self.progress.applied.index >= committed
            }
            ReadLevel::Stale { max } => self.share.is_fresh(now, max),
        }
    }

    /// Starts a round for everyone who waits, if one can succeed.
    pub(crate) fn start_read_round(&mut self, now: Time) {
        let status = self.group.status();
        let leads = self.group.leads();
        let can = if leads { self.group.committed_in_term() } else { status.leader.is_some() };
        let queue = &self.reads.queue;
        if queue.waiting.is_empty() || !can || queue.rounds.len() >= ROUNDS_MAX {
            return;
        }
        self.reads.sequence = self.reads.sequence.wrapping_add(1);
        let sequence = self.reads.sequence;
        let Queue { waiting, rounds } = &mut *self.reads.queue;
        let waiting = std::mem::take(waiting);
        rounds.push_back(RoundTrip { sequence, started: now, index: None, waiting });
        self.group.read_index(context(self.id, sequence));
    }

    /// Takes what raft answered.
    pub(crate) fn read_confirmed(&mut self, context: &[u8], index: u64) {
        let field = |at: usize| context.get(at..at + 8).and_then(|b| b.try_into().ok());
        let (Some(peer), Some(sequence)) = (field(0), field(8)) else { return };
        if u64::from_le_bytes(peer) == self.id.0 {
            self.reads.confirmed(u64::from_le_bytes(sequence), index);
        }
        #[cfg(any(test, feature = "sim"))]
        if self.planted.fresh_unapplied {
            let confirmed = self.reads.queue.rounds.iter().filter(|round| round.index.is_some());
            confirmed.for_each(|round| self.share.set_fresh(round.started));
        }
    }

    /// Lets the reads proceed whose index is applied; renews lease and freshness.
    pub(crate) fn finish_reads(&mut self, config: &StoreConfig, effects: &mut Effects) {
        while let Some(round) = self.take_finished_round() {
            if !self.frozen() {
                // Its keys may be written to elsewhere, by the region that it was merged into.
                self.share.set_fresh(round.started);
                self.renew_lease(config, round.started);
            }
            for waiting in round.waiting {
                let grant = ReadGrant { epoch: self.region.epoch };
                effects.replies.push((waiting.token, Reply::Read(Ok(grant))));
            }
        }
    }

    /// A round whose index is applied.
    fn take_finished_round(&mut self) -> Option<RoundTrip> {
        let applied = self.progress.applied.index;
        let awaited = |index| self.awaited_by_reads(index) <= applied;
        let finished = |round: &RoundTrip| round.index.is_some_and(awaited);
        let at = self.reads.queue.rounds.iter().position(finished)?;
        self.reads.queue.rounds.remove(at)
    }

    /// What a read must find applied when so much is committed: all of it, changes of shape too. They write nothing, but what
    /// was cut off may be written to elsewhere.
    #[cfg(not(any(test, feature = "sim")))]
    pub(super) fn awaited_by_reads(&self, committed: u64) -> u64 {
        committed
    }

    /// The same. With the simulator's planted bug: but for the change of shape that this leader has proposed.
    #[cfg(any(test, feature = "sim"))]
    pub(super) fn awaited_by_reads(&self, committed: u64) -> u64 {
        let unawaited = self.reshaping.filter(|_| self.planted.shape_unawaited);
        unawaited.map_or(committed, |proposed| committed.min(proposed.index - 1))
    }

    fn renew_lease(&self, config: &StoreConfig, started: Time) {
        // Without an entry of its own term applied, the replica may lack what an earlier leader
        // acknowledged; once leadership was to be handed over, another may lead inside the lease.
        let handed_over = self.handed_over_in == self.group.status().term;
        if self.group.leads() && self.group.applied_in_term() && !handed_over {
            self.share.set_lease(started.after(config.lease()));
        }
    }

    /// Asks again where no answer came; gives up on reads that waited too long.
    pub(crate) fn retry_reads(&mut self, now: Time, config: &StoreConfig, effects: &mut Effects) {
        let timeout = config.election_timeout();
        let reads = &mut self.reads;
        if reads.is_idle() {
            return;
        }
        if reads.queue.rounds.iter().any(|r| r.index.is_none() && now.since(r.started) > timeout) {
            reads.restart_rounds();
        }
        let patience = timeout * PATIENCE;
        reads.queue.waiting.retain(|waiting| {
            let keep = now.since(waiting.asked) <= patience;
            if !keep {
                let after_ms = patience.as_millis() as u64;
                let error = Error::Timeout { after_ms, what: "read index" };
                effects.replies.push((waiting.token, Reply::Read(Err(error))));
            }
            keep
        });
    }
}
