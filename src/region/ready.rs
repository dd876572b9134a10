//! Ready: what raft asks for at the end of a round, put in its order.
//!
//! `collect` takes the group's ready, adds its log writes to the store's one batch, ends the round in raft and sorts the
//! messages by whether they may leave; the store then submits the batch. (Raft may ask for what it was just given: the
//! storage's tail knows it, see [`storage`]. A group is visited once: of thousands none stays in the cache until the
//! batch is submitted.) What is sent at once never promises durability (a leader's appends); everything else waits in
//! the pass's `AfterPersist`. A ready without anything to persist still waits if an earlier one of the same peer is
//! not durable yet, because raft counts readies in order.
//!
//! A ready with a snapshot is held open (`Restoring`): data first, durably, then the log is reset and the
//! round goes on. A crash in between finds a state store ahead of its log, and resets the log on opening.

use super::config::StoreConfig;
use super::effects::*;
use super::peer::Peer;
use super::snapshot::{Chunks, SnapshotFile};
use super::storage;
use crate::codec::{self, command};
use crate::error::{Error, Result};
use crate::log::LogBatch;
use crate::raft::{Ready, ReadyRest, Room};
use crate::types::{Departed, LogPosition, PeerId, RegionState, Time};
use ::raft::SnapshotStatus;
use ::raft::eraftpb::{Entry, EntryType, HardState, Message, MessageType, Snapshot};

/// Proposals wait at the configured apply lag; everything of the region waits at so many times of it.
const APPLY_LAG_FACTOR: usize = 4;

/// The commit index is written down beside users' entries once it is so many ahead of what was written last: a leader finds
/// it anew, so it is only a second net under the log (see [`life`](super::life)), and what a restart applies at once.
///
/// Beside an entry of any other kind it is written always. Who puts a change of the configuration into its log knows
/// that the one before is committed, and must not forget it: it would campaign by a configuration that
/// others have left two changes ago, and win, beside another leader (seeds 40758 and 42595 of the simulator's regions).
const COMMIT_LAG: u64 = 64;

/// One pass over the touched peers of a store: what they add together.
pub struct Pass<'a> {
    /// Everything to persist, of all peers.
    pub batch: LogBatch,
    /// Rounds to report back when durable.
    pub acks: Vec<Persisted>,
    /// Messages that wait for durability.
    pub after: Outbox,
    /// The rest.
    pub effects: &'a mut Effects,
    /// For the round of one peer after another.
    pub room: &'a mut Room,
}

/// A pass over fewer peers than this makes no room ahead: mostly they have nothing to write.
const FEW: usize = 8;
/// Nor does any make room for more.
const MANY: usize = 256;

impl<'a> Pass<'a> {
    /// A pass that will visit so many peers.
    pub fn over(peers: usize, effects: &'a mut Effects, room: &'a mut Room) -> Pass<'a> {
        let expected = if peers < FEW { 0 } else { peers.min(MANY) };
        effects.send_now.expect(expected);
        Pass {
            batch: LogBatch::with_capacity(expected),
            acks: Vec::with_capacity(expected),
            after: Outbox::expecting(expected),
            effects,
            room,
        }
    }
}

/// What a peer's raft rounds have in flight.
///
/// * `written` is the hard state last put into a batch; `current` may be ahead of it by the commit
///   index only: a commit alone is not worth a sync, nor every one a record beside entries, and is learned again after a restart.
#[derive(Clone, Debug)]
pub struct Unpersisted {
    /// The last round that waits for the disk.
    outstanding: Option<u64>,
    current: HardState,
    written: HardState,
    term: u64,
    leads: bool,
}

impl Unpersisted {
    /// Nothing in flight; `hard_state` is durable.
    pub fn new(hard_state: HardState) -> Unpersisted {
        let term = hard_state.term;
        let written = hard_state.clone();
        Unpersisted { outstanding: None, current: hard_state, written, term, leads: false }
    }

    /// Rounds up to `number` are durable.
    pub fn done(&mut self, number: u64) {
        if self.outstanding.is_some_and(|last| last <= number) {
            self.outstanding = None;
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Writes {
    Something,
    Nothing,
}

/// A round held open until its snapshot is restored.
pub struct Restoring {
    rest: ReadyRest,
    entries: Vec<Entry>,
    messages: Vec<Message>,
    position: LogPosition,
    restored: Option<RegionState>,
}

/// A snapshot that arrived, waiting for raft to want it.
#[derive(Clone, Debug)]
pub struct Received {
    /// Its position.
    pub position: LogPosition,
    /// Its data.
    pub file: SnapshotFile,
    /// Replicas here whose regions were merged into it: they end with what it replaces.
    pub swallow: Vec<Departed>,
}

impl Peer {
    /// Whether [`collect`](Self::collect) would find anything, or the store afterwards, after nothing but a round that was
    /// advanced, persisted or applied, or a message.
    pub(crate) fn wants_a_visit(&self) -> bool {
        self.has_work()
            || self.is_drowsy()
            || self.restoring.is_some()
            || self.held.unrecorded.is_some()
            || self.group.has_lost()
            || self.group.storage().has_news()
    }

    /// Takes the group's round, if it has one, adds its writes to the pass, and ends it. Whether there was one that ended.
    pub(crate) fn collect(&mut self, now: Time, config: &StoreConfig, pass: &mut Pass<'_>) -> bool {
        if self.fence.is_some() || self.leaving {
            return false;
        }
        if self.restoring.is_some() {
            return self.collect_restored(pass).is_some();
        }
        if self.lent.is_some() {
            return false;
        }
        if self.group.has_lost() {
            self.quarantine("the log lost entries while the group rested".into(), pass.effects);
            return false;
        }
        self.compact_log(pass);
        self.record_held(&mut pass.batch);
        self.tell_wishes(pass.effects);
        self.fold(config, pass.effects);
        self.start_read_round(now);
        if self.progress.applying_bytes / APPLY_LAG_FACTOR > config.apply_lag_bytes_max {
            return false; // far behind: acknowledgements stop too, and the leader slows down
        }
        let ready = self.group.ready_in(pass.room);
        if let Some(fault) = self.group.storage().take_fault() {
            self.quarantine(fault, pass.effects);
            return false;
        }
        ready.is_some_and(|ready| self.take_ready(ready, config, pass))
    }

    fn take_ready(&mut self, mut ready: Ready, config: &StoreConfig, pass: &mut Pass<'_>) -> bool {
        // (A node that was made anew says that it leads; it never ceased to.)
        let known = (self.unpersisted.term, self.unpersisted.leads);
        if (self.group.status().term, self.group.leads()) != known
            || !(ready.entries.is_empty() && ready.committed.is_empty() && ready.reads.is_empty())
        {
            self.stir();
        }
        self.notice_role(pass.effects);
        for (context, index) in std::mem::take(&mut ready.reads) {
            self.read_confirmed(&context, index);
        }
        let unsendable = self.send_now(std::mem::take(&mut ready.send_now), pass);
        if let Some(hard_state) = ready.hard_state.take() {
            self.unpersisted.current = hard_state;
        }
        if let Some(snapshot) = ready.snapshot.take() {
            self.begin_restore(snapshot, ready, pass);
            return false;
        }
        self.hand_to_apply(std::mem::take(&mut ready.committed), pass);
        self.finish_reads(config, pass.effects);
        let writes = self.write(ready.entries, pass);
        self.end_round(ready.rest, writes, ready.send_after_persist, pass);
        for peer in unsendable {
            self.group.snapshot_sent(peer, SnapshotStatus::Failure);
        }
        true
    }

    /// Puts entries into the batch, and the hard state if it must be known with them.
    fn write(&mut self, entries: Vec<Entry>, pass: &mut Pass<'_>) -> Writes {
        let rounds = &mut self.unpersisted;
        let voted = (rounds.current.term, rounds.current.vote)
            != (rounds.written.term, rounds.written.vote);
        if entries.is_empty() && !voted {
            return Writes::Nothing;
        }
        let group = self.region.id.0;
        let behind = rounds.current.commit > rounds.written.commit + COMMIT_LAG;
        if voted || behind || !entries.iter().all(is_users) {
            pass.batch.set_state(group, storage::encode_hard_state(&rounds.current, self.id));
            rounds.written = rounds.current.clone();
        }
        if !entries.is_empty() {
            for entry in &entries {
                self.log_bytes.add(entry.index, entry.data.len() as u64);
            }
            pass.batch.append(group, entries.iter().map(storage::to_log));
            self.group.storage().appended(entries);
        }
        Writes::Something
    }

    /// Writes down that everything up to `index` is committed, which is not worth a sync by itself and is now: what
    /// follows from it in other groups' logs must never be durable without it.
    pub(crate) fn record_commit(&mut self, index: u64, batch: &mut LogBatch) {
        if self.fence.is_some() || self.leaving {
            return;
        }
        let rounds = &mut self.unpersisted;
        if self.restoring.is_none() {
            rounds.current.commit = rounds.current.commit.max(index);
            rounds.written = rounds.current.clone();
        } else {
            // A snapshot is on its way into the state store, and raft is at its index already: the log is not, and if
            // it said so and a crash came, it would look as if it had lost entries.
            rounds.written.commit = rounds.written.commit.max(index);
        }
        batch.set_state(self.region.id.0, storage::encode_hard_state(&rounds.written, self.id));
    }

    /// Ends the round in raft, whose writes are in the pass's batch.
    fn end_round(
        &mut self,
        rest: ReadyRest,
        writes: Writes,
        messages: Vec<Message>,
        pass: &mut Pass<'_>,
    ) {
        let number = rest.number();
        self.group.advance_in(rest, pass.room);
        if writes == Writes::Nothing && self.unpersisted.outstanding.is_none() {
            self.group.persisted(number);
            return self.send(messages, Wait::No, pass);
        }
        self.unpersisted.outstanding = Some(number);
        pass.acks.push(Persisted { region: self.region.id, peer: self.id, number });
        self.send(messages, Wait::ForLog, pass);
    }

    fn send(&self, messages: Vec<Message>, wait: Wait, pass: &mut Pass<'_>) {
        for mut message in messages {
            self.hush(&mut message);
            if self.keeps_back(&message) {
                continue;
            }
            let Some((store, envelope)) = self.envelope(message) else { continue };
            match wait {
                Wait::No => pass.effects.send_now.push(store, envelope),
                Wait::ForLog => pass.after.push(store, envelope),
            }
        }
    }

    /// Sends what may leave now; returns followers whose snapshot could not be made.
    fn send_now(&mut self, messages: Vec<Message>, pass: &mut Pass<'_>) -> Vec<PeerId> {
        let is_snapshot = |message: &Message| message.get_msg_type() == MessageType::MsgSnapshot;
        if !messages.iter().any(is_snapshot) {
            self.send(messages, Wait::No, pass);
            return Vec::new();
        }
        let mut unsendable = Vec::new();
        let mut plain = Vec::with_capacity(messages.len());
        for message in messages {
            if !is_snapshot(&message) {
                plain.push(message);
                continue;
            }
            let to = PeerId(message.to);
            match self.snapshot_for(message) {
                Ok(Some(send)) => pass.effects.snapshots.push(send),
                Ok(None) | Err(_) => {
                    self.snapshot_unsendable(to, pass.effects);
                    unsendable.push(to);
                }
            }
        }
        self.send(plain, Wait::No, pass);
        unsendable
    }

    fn snapshot_for(&self, message: Message) -> Result<Option<SnapshotSend>> {
        let Some(view) = self.group.storage().take_view(PeerId(message.to)) else {
            return Ok(None);
        };
        let head = codec::region::decode_head(&message.get_snapshot().data)?;
        let chunks = Chunks::new(view, &head.region.range)?;
        Ok(self.envelope(message).map(|(to, envelope)| SnapshotSend { to, envelope, chunks }))
    }

    /// Keeps what clients' threads see in step with term and role.
    fn notice_role(&mut self, effects: &mut Effects) {
        let status = self.group.status();
        let leads = self.group.leads();
        let changed = (status.term, leads) != (self.unpersisted.term, self.unpersisted.leads);
        (self.unpersisted.term, self.unpersisted.leads) = (status.term, leads);
        self.share.set_leader(self.leader_store());
        let (taken, applied) = self.load.totals();
        self.share.set_load(status.term, self.bytes_so_far(), taken, applied);
        self.share.set_committed(self.awaited_by_reads(status.committed));
        if changed {
            self.share.set_lease(Time(0));
            self.reads.restart_rounds();
            self.call_off_snapshots(effects);
            if !leads {
                self.reshaping = None;
                self.changing = None;
                self.refuse_pending(effects);
            }
        }
    }

    fn hand_to_apply(&mut self, committed: Vec<Entry>, pass: &mut Pass<'_>) {
        let Some(last) = committed.last() else { return };
        self.group.storage().handed_out(last.index);
        let mut lost = Vec::new();
        let mut entries = Entries::with_capacity(committed.len());
        for entry in committed {
            let position = LogPosition { index: entry.index, term: entry.term };
            let Some(data) = storage::payload_of(entry) else {
                let gone = entries.into_iter().flat_map(|e: CommittedEntry| e.waiting).chain(lost);
                for token in gone {
                    let error = Error::Ambiguous { what: "the replica was fenced off" };
                    Peer::refuse(pass.effects, token, error);
                }
                let what = format!(
                    "entry {} changes the configuration in a way that is not ours",
                    position.index
                );
                return self.quarantine(what, pass.effects);
            };
            let waiting = self.proposals.committed(position, &mut lost);
            self.progress.applying_bytes += data.len();
            entries.push(CommittedEntry { position, data, waiting });
        }
        for token in lost {
            // Another entry was committed in its place: it never will be.
            pass.effects.replies.push((token, Reply::Written(Err(self.not_leader()))));
        }
        self.hand(entries, pass.effects);
    }

    /// The applier got further.
    pub(crate) fn applied(
        &mut self,
        mut done: Applied,
        config: &StoreConfig,
        effects: &mut Effects,
    ) {
        if done.peer != self.id || self.fence.is_some() || self.leaving {
            return;
        }
        if let Some(compacted) = done.compacted {
            self.progress.compacted = self.progress.compacted.max(compacted);
        }
        if let Some(state) = done.news.as_mut().and_then(|news| news.restored.take()) {
            return self.restored(state, effects); // the log is reset by the next pass
        }
        self.progress.applying_bytes = self.progress.applying_bytes.saturating_sub(done.bytes);
        self.progress.applied = done.position;
        if self.reshaping.is_some_and(|proposed| proposed.index <= done.position.index) {
            self.reshaping = None;
        }
        if self.changing.is_some_and(|proposed| proposed.index <= done.position.index) {
            self.changing = None;
        }
        // Others wait for what followers do about these, children for their first vote.
        let urgent = done.news.as_ref().is_some_and(|news| news.is_urgent());
        if let Some(news) = done.news
            && let Err(what) = self.learn(*news, effects)
        {
            return self.quarantine(what, effects);
        }
        self.grown(config, done.bytes, effects);
        self.release(effects);
        self.settle(effects);
        if self.restoring.is_some() || self.lent.is_some() {
            return;
        }
        self.group.applied(done.position.index);
        if urgent {
            self.group.tell_commit();
        }
        self.leave_joint();
        self.finish_reads(config, effects);
    }

    /// A snapshot's data is in place.
    fn restored(&mut self, state: RegionState, effects: &mut Effects) {
        self.progress.flushed = state.applied.index;
        self.progress.applied = state.applied;
        self.set_removed(state.removed.clone());
        self.set_merging(state.merging.clone());
        self.reshaped(state.region.clone(), effects);
        if let Some(restoring) = &mut self.restoring {
            restoring.restored = Some(state);
        }
    }

    /// The region is another one now.
    fn learn(&mut self, news: News, effects: &mut Effects) -> std::result::Result<(), String> {
        if let Some(removed) = news.removed {
            self.set_removed(removed);
        }
        if let Some(merging) = news.merging {
            self.set_merging(merging);
        }
        let Some(region) = news.reshaped else { return Ok(()) };
        // A snapshot that raft has accepted brings a later configuration, which raft has taken already.
        let later = self.restoring.is_some() || self.group.pending_snapshot().is_some();
        if !later {
            self.reconfigure(&news.changes, &region)?;
        }
        self.reshaped(region, effects);
        Ok(())
    }

    /// The state store is durable up to `index`.
    pub(crate) fn flushed(&mut self, index: u64) {
        self.progress.flushed = self.progress.flushed.max(index);
    }

    /// Whether the log may be compacted further now.
    pub(crate) fn compactable(&self) -> bool {
        self.fence.is_none()
            && !self.leaving
            && self.progress.compacted.index.min(self.progress.flushed)
                > self.group.storage().truncated().index
    }

    /// Drops the log up to the replicated point, but never above the last durable flush.
    fn compact_log(&mut self, pass: &mut Pass<'_>) {
        if !self.compactable() {
            return;
        }
        let index = self.progress.compacted.index.min(self.progress.flushed);
        let Some(term) = self.group.storage().term_of(index) else { return };
        let position = LogPosition { index, term };
        pass.batch.compact_to(self.region.id.0, position);
        self.group.storage().compacted(position);
        self.log_bytes.compacted(index);
    }

    /// Keeps a received snapshot if raft wants it; returns what is not needed (any more).
    pub(crate) fn keep_received(&mut self, received: Received) -> Option<SnapshotFile> {
        if !self.runs() || self.group.pending_snapshot() != Some(received.position) {
            return Some(received.file);
        }
        self.received.replace(Box::new(received)).map(|old| old.file)
    }

    fn begin_restore(&mut self, snapshot: Snapshot, ready: Ready, pass: &mut Pass<'_>) {
        let meta = snapshot.get_metadata();
        let position = LogPosition { index: meta.index, term: meta.term };
        let received = self.received.take().filter(|r| r.position == position);
        let Some(Received { file, swallow, .. }) = received.map(|received| *received) else {
            return self.quarantine("raft restores a snapshot without data".into(), pass.effects);
        };
        let head = match codec::region::decode_head(&snapshot.data) {
            Ok(head) if head.region.id == self.region.id && head.region.peer(self.id).is_some() => {
                head
            }
            Ok(other) => {
                let what = format!("a snapshot of {} without {}", other.region.id, self.id);
                return self.quarantine(what, pass.effects);
            }
            Err(error) => return self.quarantine(error.to_string(), pass.effects),
        };
        for token in self.proposals.abandon() {
            let error = Error::Ambiguous { what: "overtaken by a snapshot" };
            pass.effects.replies.push((token, Reply::Written(Err(error))));
        }
        self.drop_held(pass.effects);
        self.handed = position.index;
        let state = head.state(self.id, position);
        pass.effects.apply.push(ApplyTask::Restore { state: Box::new(state), file, swallow });
        self.restoring = Some(Box::new(Restoring {
            rest: ready.rest,
            entries: ready.entries,
            messages: ready.send_after_persist,
            position,
            restored: None,
        }));
    }

    /// The data is in place: reset the log and let the round go on.
    fn collect_restored(&mut self, pass: &mut Pass<'_>) -> Option<()> {
        let state = self.restoring.as_mut()?.restored.take()?;
        let held = *self.restoring.take()?;
        let group = self.region.id.0;
        self.progress.compacted = state.compacted;
        self.progress.applying_bytes = 0;
        self.log_bytes = Default::default();
        pass.batch.reset(group, held.position);
        self.group.storage().reset(held.position);
        let rounds = &mut self.unpersisted;
        rounds.current.commit = rounds.current.commit.max(held.position.index);
        // Writes the hard state beside the reset, whatever was written before.
        rounds.written = HardState::default();
        let writes = self.write(held.entries, pass);
        self.end_round(held.rest, writes, held.messages, pass);
        Some(())
    }
}

/// Whether an entry holds users' commands, and nothing that changes the region itself.
fn is_users(entry: &Entry) -> bool {
    entry.get_entry_type() == EntryType::EntryNormal && command::is_normal(&entry.data)
}

#[derive(Clone, Copy)]
enum Wait {
    No,
    ForLog,
}
