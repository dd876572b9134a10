//! [`Peer`]: one replica of a region on this store. Its verbs are in the files beside this one.

use super::compact::LogBytes;
use super::effects::{
    Effects, FORMER_MAX, Frozen, Persisted, RegionStatus, Reply, Token, Unsettled,
};
use super::farewell::Asking;
use super::handing::Handing;
use super::hibernate::Rest;
use super::load::Load;
use super::membership::Passage;
use super::merge::{FROZEN, Held, Lent};
use super::propose::Proposals;
use super::read::Reads;
use super::ready::{Received, Restoring, Unpersisted};
use super::sending::Flights;
use super::share::PeerShare;
use super::size::Size;
use super::sparse::Sparse;
use super::storage::PeerStorage;
use crate::error::Error;
use crate::raft::guard::Verdict;
use crate::raft::{Elections, Envelope, Group};
use crate::region::config::StoreConfig;
use crate::types::{Departed, LogPosition, Merging, PeerId, Region, StoreId, Time, ahead};
use ::raft::eraftpb::{Message, MessageType};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What raft-rs puts into the vote requests of a candidate that was ordered to campaign.
const CAMPAIGN_TRANSFER: &[u8] = b"CampaignTransfer";

/// Senders without a place among the known members that are remembered.
const STRANGERS_MAX: usize = 16;

/// How far the replica's state machine and its durable form are.
#[derive(Clone, Copy, Default, Debug)]
pub struct Progress {
    /// Applied.
    pub applied: LogPosition,
    /// Applied as of the last durable flush: the log below is not needed for recovery.
    pub flushed: u64,
    /// The replicated compaction point.
    pub compacted: LogPosition,
    /// Bytes handed to the applier and not yet applied.
    pub applying_bytes: usize,
}

/// One replica of a region.
///
/// * `progress.flushed <= progress.applied.index <=` committed; the log is never compacted above `flushed`.
/// * While `restoring` is set the group's round is held open: nothing is stepped, ticked or proposed.
/// * `region` is the very one that `share` shows.
/// * Once `fence` is set the group is never touched again; the replica answers nothing but
///   [`Error::Quarantined`].
pub struct Peer {
    /// The region as of the applied index.
    pub region: Arc<Region>,
    /// This replica.
    pub id: PeerId,
    pub(crate) store: StoreId,
    pub(crate) group: Group<PeerStorage>,
    pub(crate) share: Arc<PeerShare>,
    pub(crate) proposals: Sparse<Proposals>,
    pub(crate) reads: Reads,
    pub(crate) unpersisted: Unpersisted,
    pub(crate) progress: Progress,
    pub(crate) log_bytes: LogBytes,
    /// A snapshot that raft has accepted and not yet handed out.
    pub(crate) received: Option<Box<Received>>,
    pub(crate) restoring: Option<Box<Restoring>>,
    /// Snapshots that leave.
    pub(crate) flights: Flights,
    pub(crate) fence: Option<String>,
    /// No vote before this instant, by promise to a leader or by the ban after a restart.
    pub(crate) votes_from: Time,
    /// The end of the ban after a restart.
    pub(crate) banned_until: Time,
    /// The term in which it last tried to hand leadership over: without a lease to its end, because the
    /// order to campaign, and the votes it forces, may arrive long after the attempt was given up.
    pub(crate) handed_over_in: u64,
    /// Leadership is to go.
    pub(super) handing: Option<Box<Handing>>,
    /// A proposed and not yet applied change of the region's shape: client batches wait for it.
    pub(crate) reshaping: Option<LogPosition>,
    pub(crate) size: Size,
    pub(crate) load: Load,
    /// Of a leader: a replica in passing that has caught up.
    pub(super) passage: Option<Box<Passage>>,
    /// A proposed and not yet applied change of the replicas: no other change of shape goes beside it.
    pub(crate) changing: Option<LogPosition>,
    /// Former replicas, of this region or of one merged into it, that are not known to be gone.
    pub(crate) removed: Vec<Departed>,
    /// Set while the region is frozen, to be merged into another.
    pub(crate) merging: Option<Box<Merging>>,
    /// The last entry that was handed to the applier.
    pub(crate) handed: u64,
    /// Committed entries from a merge on that waits for its source.
    pub(crate) held: Sparse<Held>,
    /// It stands still here: its data are about to be another region's.
    pub(crate) lent: Option<Lent>,
    #[cfg(any(test, feature = "sim"))]
    pub(crate) planted: super::planted::Planted,
    /// When a frozen region asks next.
    pub(crate) wishing: Asking,
    pub(crate) asking: Asking,
    /// Where those live that have spoken to it and are not, or not yet, among the members it knows.
    pub(crate) strangers: BTreeMap<PeerId, StoreId>,
    /// No member any more: about to be destroyed.
    pub(crate) leaving: bool,
    pub(crate) ticks: u64,
    /// The store's tick at which it was ticked last.
    pub(crate) looked_at: u64,
    pub(crate) rest: Rest,
}

impl Peer {
    /// It is about to be visited: what it holds elsewhere in memory is asked for.
    pub(crate) fn fetch_ahead(&self) {
        self.group.fetch_ahead();
        ahead::fetch(&*self.share);
        ahead::fetch(&*self.region);
    }

    /// Whether the group may be touched.
    pub(crate) fn runs(&self) -> bool {
        self.fence.is_none() && self.restoring.is_none() && !self.leaving && self.lent.is_none()
    }

    /// Fences the replica off, for ever: damage or a protocol violation. Everyone who waits is told.
    pub(crate) fn quarantine(&mut self, reason: String, effects: &mut Effects) {
        self.share.set_lease(Time(0));
        self.share.set_leader(None);
        self.fence.get_or_insert(reason);
        self.drop_held(effects);
        self.call_off_snapshots(effects);
        effects.discard.extend(self.received.take().map(|received| received.file));
        for token in self.proposals.abandon() {
            let what = "the replica was fenced off";
            effects.replies.push((token, Reply::Written(Err(Error::Ambiguous { what }))));
        }
        for token in self.reads.abandon() {
            effects.replies.push((token, Reply::Read(Err(self.fenced()))));
        }
        self.end_handing(Err(self.fenced()), effects);
    }

    /// The error that a replica answers which does not run.
    pub(crate) fn fenced(&self) -> Error {
        if self.leaving {
            return Error::RegionNotFound(self.region.id);
        }
        match &self.fence {
            Some(reason) => Error::Quarantined { region: self.region.id, reason: reason.clone() },
            None if self.lent.is_some() => FROZEN,
            None => Error::Busy { what: "restoring a snapshot" },
        }
    }

    /// The error that a non-leader answers.
    pub(crate) fn not_leader(&self) -> Error {
        let leader = self.leader_store().filter(|store| *store != self.store);
        Error::NotLeader { region: self.region.id, leader }
    }

    pub(crate) fn leader_store(&self) -> Option<StoreId> {
        self.store_of(self.group.status().leader?)
    }

    fn store_of(&self, peer: PeerId) -> Option<StoreId> {
        let member = self.region.peer(peer).map(|peer| peer.store);
        member.or_else(|| self.strangers.get(&peer).copied())
    }

    /// Somebody speaks to it. A leader that joined after what is applied here is not known as a member yet, and must
    /// be heard and answered all the same.
    pub(crate) fn meet(&mut self, peer: PeerId, store: StoreId) {
        if self.region.peer(peer).is_none() {
            self.strangers.insert(peer, store);
            while self.strangers.len() > STRANGERS_MAX {
                self.strangers.pop_first();
            }
        }
    }

    /// One tick.
    pub(crate) fn tick(&mut self, now: Time, config: &StoreConfig) {
        self.ticks += 1;
        // Now and then is soon enough.
        self.group.storage().trim_cache(self.progress.applied.index);
        self.group.tick(if now < self.votes_from { Elections::Held } else { Elections::Free });
        if self.stays_up(config) {
            self.group.tell_commit_if_quiet();
        }
    }

    /// Takes a message of a peer.
    ///
    /// A message from its leader renews the **promise** that the leader's lease rests on: this peer helps no
    /// one else to leadership, itself included, for an election timeout by its own clock. raft-rs promises
    /// the same by `leader_id` and ticks, but forgets it when a term is bumped or the process restarts.
    /// A hand-over is exempt: the old leader has given up its lease before it orders one.
    pub(crate) fn step(
        &mut self,
        now: Time,
        config: &StoreConfig,
        message: Message,
        effects: &mut Effects,
    ) {
        let kind = message.get_msg_type();
        let vote = matches!(kind, MessageType::MsgRequestVote | MessageType::MsgRequestPreVote);
        let handed_over = &message.context[..] == CAMPAIGN_TRANSFER;
        if vote && now < self.votes_from && (!handed_over || self.restarted(now)) {
            return;
        }
        let (from, term) = (message.from, message.term);
        let leads = matches!(kind, MessageType::MsgAppend | MessageType::MsgHeartbeat);
        if let Verdict::Violation(what) = self.group.step(message) {
            return self.quarantine(what, effects);
        }
        let status = self.group.status();
        if leads && status.term == term && status.leader == Some(PeerId(from)) {
            self.votes_from = self.votes_from.max(now.after(config.election_timeout()));
        }
    }

    /// Whether the ban after a restart still holds: then nobody is helped, hand-over or not, because
    /// what was promised before is not known.
    pub(crate) fn restarted(&self, now: Time) -> bool {
        now < self.banned_until
    }

    /// A planted bug of the simulator's: neither the promise to the leader nor the ban after a restart holds.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn forget_promise(&mut self) {
        (self.votes_from, self.banned_until) = (Time(0), Time(0));
    }

    /// Takes a completed log write. Ignored when it is an older peer's.
    pub(crate) fn persisted(&mut self, persisted: Persisted) {
        if persisted.peer == self.id && self.runs() {
            #[cfg(debug_assertions)]
            debug_assert!(self.group.storage().agrees());
            self.unpersisted.done(persisted.number);
            self.group.persisted(persisted.number);
            // A restored snapshot is applied before raft knows it to be persisted.
            self.group.applied(self.progress.applied.index);
        }
    }

    /// An envelope to a peer of the region, with the store it lives on.
    pub(crate) fn envelope(&self, message: Message) -> Option<(StoreId, Envelope)> {
        let to = PeerId(message.to);
        let store = self.store_of(to)?;
        let envelope = Envelope {
            region: self.region.id,
            from: self.id,
            to,
            from_store: self.store,
            message,
            note: None,
        };
        Some((store, envelope))
    }

    /// The term it leads, if it does.
    pub fn leads_term(&self) -> Option<u64> {
        (self.runs() && self.group.leads()).then(|| self.group.status().term)
    }

    /// Where the replica stands.
    pub fn status(&self) -> RegionStatus {
        let status = self.group.status();
        RegionStatus {
            region: Region::clone(&self.region),
            peer: self.id,
            leads: self.runs() && self.group.leads(),
            leader: status.leader,
            term: status.term,
            committed: status.committed,
            applied: self.progress.applied.index,
            flushed: self.progress.flushed,
            first_index: self.group.storage().truncated().index + 1,
            last_index: status.last_index,
            log_bytes: self.log_bytes.total(),
            bytes: self.about_bytes(),
            quarantined: self.fence.clone(),
            asleep: self.asleep(),
            unsettled: self.unsettled(),
        }
    }

    /// Why another change of its shape or its replicas may have to wait.
    fn unsettled(&self) -> Unsettled {
        let frozen = self.merging.as_ref().map(|merging| Frozen {
            target: merging.target,
            epoch: merging.epoch,
            at: merging.at,
            stands_still: self.lent.is_some(),
        });
        Unsettled {
            changing: self.reshaping.is_some() || self.changing.is_some(),
            frozen,
            waits_for: self.source_waited_for(),
            formers: self.removed.len() as u64,
            former: self.removed.iter().take(FORMER_MAX).copied().collect(),
        }
    }

    /// Answers a write that cannot even be queued.
    pub(crate) fn refuse(effects: &mut Effects, token: Token, error: Error) {
        effects.replies.push((token, Reply::Written(Err(error))));
    }
}
