//! Merge: a region (the *source*) goes into its neighbour (the *target*), without moving a byte.
//!
//! **Life of a merge.** Their replicas must live on the same stores, in the same roles.
//!
//! 1. *Prepare*, an entry of the source's log, freezes it on every replica that applies it: no write, no read, no other
//!    change of its shape, no compaction, no lease; both halves of its epoch grow. The leader proposes it only while
//!    every replica is alive and nearly even, and notes from which entry on some replica may lack something, by what
//!    they have acknowledged. Whoever asks for it once more, for the same target, is told the frozen shape.
//! 2. The frozen source's leader, whoever that is, *wishes* for the target to take it in, again and again
//!    ([`MergeWish`]). The wish carries those entries; whoever takes it proposes *Commit* to the target's leader,
//!    wherever that is. It is accepted if, and only if, the target has the shape that it had when the source was
//!    frozen: every replica of the target judges alike.
//! 3. A replica of the target that comes to an accepted commit holds it, and all that follows, back from its applier
//!    until the source's replica on the same store has applied everything up to its freezing and *stands still*
//!    ([`Aside`]). What that one lacks the commit brings with it, so it needs nobody's help: the rest of its group may
//!    be gone already. Then ONE batch of the state store makes the target larger and leaves the source's
//!    tombstone. From here on the source is gone on this store, as in [`farewell`](super::farewell).
//! 4. The target lists the source's replicas among its *removed* until all of them are known to be buried. Only where
//!    no replica of the target lives (any more) is one told to go; elsewhere that one takes it over.
//!
//! **Rolling back.** The source thaws only on a fact that is replicated: the target has another, later shape and does not
//! list the source, so no commit can be accepted any more; or the target was itself merged away, which its tombstone
//! says, on whatever store. Shapes only grow, and the target cannot forget the source while the source's leader lives. Who
//! does not know waits.
//!
//! **A target that was merged away** says so by the mark on a tombstone ([`was_merged`]): on the store of the source's leader,
//! or, where its replicas had moved elsewhere before, on another one, which whoever carries out the wish asks. One mark is
//! proof that the target has not taken the source in and never will, for whoever has the source roll back *after* he
//! has seen it:
//!
//! - The mark is written where another region accepts the target, or brings a list with it (by a snapshot) that only such an
//!   acceptance makes. That is an entry of that region's log: it stays true if the store forgets the mark in a crash.
//!   Replicas that move away or are sent away leave tombstones without it. Ids are not used twice, and what was merged
//!   never comes back: a mark is never too old.
//! - So the target's life ended at the entry that froze it. Frozen it accepts nobody: its leader proposes no commit then, and
//!   one that stood in the log before it was accepted or refused before. Were the source taken in, it was earlier.
//! - Then the target listed all replicas of the source among its removed, and that list was empty when it was frozen ([`freeze`],
//!   judged alike everywhere): each of them is buried, durably, or on a store that has left the cluster. A frozen source gets
//!   no others. So whoever leads it on a store that has *not* left proves that the source was not taken in. That is asked of
//!   region 1, by an entry of its log, once the mark has been seen: whoever left did so before the list was empty. (That others do not
//!   listen to a store that has left is not enough: a connection may be older than the leaving, or both have left.)
//!
//! Neither the target's shape as the source expects it nor the order of the two freezings matters. A wish may be as old as it
//! likes: the rollback names the entry that froze the source, and another freezing has another. What is *no* proof is that
//! somebody else owns the target's first key by now: a target that takes in its left neighbour begins there, and a part that is
//! cut off it may own the key after.
//!
//! **Reads.** The target takes writes to the source's keys as soon as one of its leaders has applied the commit. By then
//! no replica of the source answers anybody: commits come from wishes, a wish from a leader that has applied its own
//! freezing, dropped its lease and refused whoever waited; an earlier leader's lease ended before that one was
//! elected. Bounded-stale reads go on, from what was fresh then, until they are too stale.
//!
//! **Snapshots.** A replica of the target that fell behind may be sent a snapshot from behind the commit. Its list says who
//! was merged: such a replica here is told to stand still, and ends in the same step that puts the snapshot in place.
//!
//! **Crash.** A cut of the state store holds both sides of the batch or none. Before it, both logs still hold everything,
//! and all is done again.
//!
//! **Source.** TiKV's merge has the same three commands; its replicas push the missing entries through raft of the source,
//! here they go straight to its applier.

use super::config::StoreConfig;
use super::effects::*;
use super::farewell::Asking;
use super::peer::Peer;
use super::sparse::Empty;
use crate::codec::admin::{Admin, commit_in};
use crate::codec::merge::{Commit, Prepare};
use crate::codec::region::REMOVED_MAX;
use crate::error::{Error, Result};
use crate::log::LogBatch;
use crate::types::*;
use bytes::Bytes;
use std::collections::VecDeque;

/// What a frozen region answers.
pub(crate) const FROZEN: Error = Error::Busy { what: "region, frozen: it is being merged" };

/// Entries that the slowest replica of a source may lack when it is frozen.
const GAP_MAX: u64 = 16;
/// Bytes of them, about: they travel in one entry of the target's log.
const GAP_BYTES_MAX: usize = 4 << 20;

/// Committed entries that are not handed to the applier yet.
#[derive(Default, Debug)]
pub(crate) struct Held {
    entries: VecDeque<CommittedEntry>,
    /// What the first of them commits: then the others wait for it.
    commit: Option<Box<Commit>>,
    /// When the source is asked again.
    asking: Asking,
    asked: bool,
    /// To be written down as committed.
    pub(super) unrecorded: Option<u64>,
}

impl Held {
    const NOTHING: Held = Held {
        entries: VecDeque::new(),
        commit: None,
        asking: Asking::NEVER,
        asked: false,
        unrecorded: None,
    };
}

impl Empty for Held {
    fn empty() -> &'static Held {
        static NOTHING: Held = Held::NOTHING;
        &NOTHING
    }

    fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.commit.is_none() && self.unrecorded.is_none()
    }
}

/// A source's replica that stands still, or will as soon as it can.
#[derive(Default, Debug)]
pub(crate) struct Lent {
    /// Who waits for it, and for what; nobody: a snapshot will take its place.
    wanted: Option<((RegionId, PeerId), Box<Commit>)>,
}

/// Whether `later` comes after `epoch` in the life of a region.
pub fn is_later(later: Epoch, epoch: Epoch) -> bool {
    later != epoch && later.conf_ver >= epoch.conf_ver && later.version >= epoch.version
}

/// Whether what a store holds of a region proves that it was merged into another. Anything else, a tombstone without the mark
/// included, proves nothing.
pub fn was_merged(record: &RegionState) -> bool {
    record.is_tombstone() && record.merging.is_some()
}

/// The range of two neighbours together; `None` if they are none.
fn joined(one: &KeyRange, other: &KeyRange) -> Option<KeyRange> {
    let follows = |a: &KeyRange, b: &KeyRange| !a.end.is_empty() && a.end == b.start;
    if follows(one, other) {
        return Some(KeyRange { start: one.start.clone(), end: other.end.clone() });
    }
    follows(other, one).then(|| KeyRange { start: other.start.clone(), end: one.end.clone() })
}

/// Whether they have replicas on the same stores, in the same roles.
pub fn live_together(one: &Region, other: &Region) -> bool {
    let places = |region: &Region| {
        // On its way or not, a learner is a learner.
        let role = |role: Role| if role.is_learner() { Role::Learner } else { role };
        let mut places: Vec<_> =
            region.peers.iter().map(|peer| (peer.store, role(peer.role))).collect();
        places.sort_unstable();
        places
    };
    places(one) == places(other)
}

/// The source, frozen.
///
/// Errors: [`Error::EpochNotMatch`] when it was made for another shape, [`Error::InvalidArgument`] when it makes no
/// sense, [`Error::Busy`] when what the replicas may lack is not kept any more. Every replica judges alike.
pub fn freeze(state: &RegionState, prepare: &Prepare) -> Result<Region> {
    let region = &state.region;
    if prepare.epoch != region.epoch {
        return Err(Error::EpochNotMatch { current: vec![region.clone()] });
    }
    let wrong = |what| Err(Error::InvalidArgument(format!("merge of {}: {what}", region.id)));
    let target = &prepare.target;
    if region.id == FIRST_REGION {
        return wrong("it keeps the cluster's record");
    }
    if target.id == region.id || joined(&region.range, &target.range).is_none() {
        return wrong("the other is no neighbour");
    }
    if region.is_joint() || target.is_joint() || !live_together(region, target) {
        return wrong("its replicas live elsewhere, or in other roles");
    }
    if !state.removed.is_empty() {
        return Err(Error::Busy { what: "a former replica that is not known to be gone" });
    }
    if state.compacted.index >= prepare.first {
        return Err(Error::Busy { what: "a replica that is behind" });
    }
    let Epoch { conf_ver, version } = region.epoch;
    let epoch = Epoch { conf_ver: conf_ver + 1, version: version + 1 };
    Ok(Region { epoch, ..region.clone() })
}

/// The target with the source in it. Errors as [`freeze`].
pub fn absorb(target: &Region, commit: &Commit) -> Result<Region> {
    let source = &commit.source;
    if commit.epoch != target.epoch {
        return Err(Error::EpochNotMatch { current: vec![target.clone()] });
    }
    let range = joined(&target.range, &source.range)
        .filter(|_| live_together(target, source) && !target.is_joint())
        .filter(|_| target.id == commit.target && target.id != source.id);
    let Some(range) = range else {
        let what = format!("{} is not ready to be merged into {}", source.id, target.id);
        return Err(Error::InvalidArgument(what));
    };
    let version = target.epoch.version.max(source.epoch.version) + 1;
    Ok(Region { range, epoch: Epoch { version, ..target.epoch }, ..target.clone() })
}

/// The target with the source in it, if its list of the `removed` has room for the source's replicas: what every
/// replica of the target makes of a commit, and all that it makes of it before it troubles the source.
///
/// Errors as [`absorb`], and [`Error::Busy`] for the list: no final no, for it grows shorter again.
pub fn accept(target: &Region, removed: &[Departed], commit: &Commit) -> Result<Region> {
    let after = absorb(target, commit)?;
    match removed.len() + commit.source.peers.len() > REMOVED_MAX {
        true => Err(Error::Busy { what: "former replicas that are not known to be gone" }),
        false => Ok(after),
    }
}

/// The replicas of a source, for the list of the target.
pub fn departed(source: &Region) -> impl Iterator<Item = Departed> {
    let region = source.id;
    source.peers.iter().map(move |peer| Departed { region, id: peer.id, store: peer.store })
}

/// The source, of a leader.
impl Peer {
    /// What to propose for a merge, if its time has come.
    pub(super) fn may_freeze(&self, prepare: &Prepare) -> Result<Prepare> {
        if self.reshaping.is_some() || self.changing.is_some() {
            return Err(Error::Busy { what: "another change of the region's shape" });
        }
        let behind = Err(Error::Busy { what: "a replica that is behind" });
        let progress = self.group.progress();
        let Some(least) = progress.iter().map(|(_, matched, _)| *matched).min() else {
            return behind;
        };
        let last = self.group.status().last_index;
        let alive = progress.iter().all(|(_, _, live)| *live) && self.group.all_replicate();
        if !alive || last - least > GAP_MAX || least < self.group.storage().truncated().index {
            return behind;
        }
        let lacking = self.group.storage().payloads(least + 1, last + 1);
        let bytes = lacking.map(|found| found.iter().map(|(_, data)| data.len()).sum::<usize>());
        if bytes.is_none_or(|bytes| bytes > GAP_BYTES_MAX) {
            return behind;
        }
        let first = self.lacking_from(least);
        Ok(Prepare { first, ..prepare.clone() })
    }

    #[cfg(not(any(test, feature = "sim")))]
    fn lacking_from(&self, least: u64) -> u64 {
        least + 1
    }

    /// With the simulator's planted bug: by what is committed, instead of what every replica has.
    #[cfg(any(test, feature = "sim"))]
    fn lacking_from(&self, least: u64) -> u64 {
        match self.planted.first_from_commit {
            true => self.group.status().committed + 1,
            false => least + 1,
        }
    }

    /// The answer to whoever asks for it to be frozen and finds it so already, for the same target: somebody else was faster, or his
    /// own asking was not heard to have succeeded.
    pub(super) fn frozen_for(&self, target: RegionId) -> Option<Result<AdminDone>> {
        let same = self.merging.as_ref().is_some_and(|merging| merging.target == target);
        same.then(|| Ok(AdminDone::Shaped(vec![Region::clone(&self.region)])))
    }

    /// The region is frozen from now on, or thawed.
    pub(super) fn set_merging(&mut self, merging: Option<Merging>) {
        self.merging = merging.map(Box::new);
        self.wishing = Asking::default();
        #[cfg(any(test, feature = "sim"))]
        if self.planted.lease_kept {
            return;
        }
        if self.frozen() {
            self.share.set_lease(Time(0));
        }
    }

    /// Whether it answers no reads and no writes, and has no lease.
    pub(super) fn frozen(&self) -> bool {
        self.merging.is_some()
    }

    /// The wish of a frozen region's leader, if it is time.
    fn wish(&mut self, config: &StoreConfig, effects: &mut Effects) {
        let Some(merging) = &self.merging else { return };
        if !self.runs() || !self.group.leads() || !self.group.applied_in_term() {
            return;
        }
        if !self.wishing.is_due(self.ticks, config) {
            return;
        }
        let found = self.group.storage().payloads(merging.first, merging.at.index + 1);
        // Not there: this replica was brought here without them, so the merge is as good as done.
        let Some(found) = found else { return };
        let entries = found.into_iter().map(|(place, data)| (place.term, data)).collect();
        let commit = Box::new(Commit {
            target: merging.target,
            epoch: merging.epoch,
            source: Region::clone(&self.region),
            at: merging.at,
            first: merging.first,
            entries,
        });
        let (source, merging) = (self.region.id, Merging::clone(merging));
        effects.merge_wishes.push(MergeWish { source, merging, commit });
    }

    /// Proposes to thaw. Not proposed: it is tried again.
    pub(crate) fn thaw(&mut self) {
        if let Some(merging) = &self.merging {
            let _ = self.group.propose(Admin::RollBackMerge { at: merging.at.index }.encode());
        }
    }

    /// A tick of a merge: wishes and questions are repeated.
    pub(crate) fn tick_merge(&mut self, config: &StoreConfig, effects: &mut Effects) {
        self.wish(config, effects);
        if self.held.commit.is_some() && self.held.asking.is_due(self.ticks, config) {
            self.held.asked = false;
            self.release(effects);
        }
    }
}

/// The source, on every store.
impl Peer {
    /// The target's replica here waits for this one.
    fn catch_up(&mut self, target: (RegionId, PeerId), commit: Box<Commit>, effects: &mut Effects) {
        if self.leaving || self.restoring.is_some() {
            return; // asked again
        }
        if self.fence.is_some() {
            let word = Word::Stuck { source: self.region.id };
            return effects.asides.push(Aside { region: target.0, peer: target.1, word });
        }
        self.lend(Lent { wanted: Some((target, commit)) }, effects);
    }

    fn lend(&mut self, lent: Lent, effects: &mut Effects) {
        self.share.move_on();
        if self.lent.replace(lent).is_none() {
            self.fall_silent(effects);
        }
        self.settle(effects);
    }

    /// A replica that is to stand still: does so once nothing is being applied, and everything is that is wanted.
    pub(super) fn settle(&mut self, effects: &mut Effects) {
        let Some(lent) = &self.lent else { return };
        let applied = self.progress.applied.index;
        if self.restoring.is_some() || self.handed > applied || !self.held.entries.is_empty() {
            return;
        }
        let Some((target, commit)) = &lent.wanted else { return self.share.stand_still() };
        if applied < commit.at.index {
            return match self.missing(commit) {
                Some(entries) => self.hand(entries, effects),
                None => self.stick(*target, "entries that every replica holds", effects),
            };
        }
        if self.merging.as_ref().is_none_or(|merging| merging.at != commit.at) {
            return self.stick(*target, "not frozen, and merged all the same", effects);
        }
        let (region, peer) = *target;
        let word = Word::CaughtUp { source: self.region.id, at: commit.at };
        self.share.stand_still();
        effects.asides.push(Aside { region, peer, word });
    }

    /// The protocol was broken.
    fn stick(&mut self, target: (RegionId, PeerId), what: &str, effects: &mut Effects) {
        self.quarantine(format!("merge: {what}"), effects);
        let (region, peer) = target;
        let word = Word::Stuck { source: self.region.id };
        effects.asides.push(Aside { region, peer, word });
    }

    /// The entries behind what is applied up to the freezing: of its own log what every replica has, the rest from the
    /// commit.
    fn missing(&self, commit: &Commit) -> Option<Entries> {
        let from = self.progress.applied.index + 1;
        let own = self.group.storage().payloads(from, commit.first)?;
        let brought = (commit.first..).zip(&commit.entries);
        let brought = brought
            .filter(|(index, _)| *index >= from)
            .map(|(index, (term, data))| (LogPosition { index, term: *term }, data.clone()));
        let entry = |(position, data): (LogPosition, Bytes)| CommittedEntry {
            position,
            data,
            waiting: Waiting::new(),
        };
        Some(own.into_iter().chain(brought).map(entry).collect())
    }
}

/// The target, on every store.
impl Peer {
    /// Takes committed entries, in order, for the applier.
    pub(super) fn hand(&mut self, entries: Entries, effects: &mut Effects) {
        // Nearly always: nothing is held back, and nothing in them will be.
        if self.held.entries.is_empty() && entries.iter().all(|e| commit_in(&e.data).is_none()) {
            return self.hand_on(entries, effects);
        }
        self.held.entries.extend(entries);
        self.release(effects);
    }

    /// Hands on what nothing holds back. A commit can be judged when all before it is applied: then this loop knows the
    /// shape that the applier will find.
    pub(super) fn release(&mut self, effects: &mut Effects) {
        let mut out = Entries::new();
        while !self.held.entries.is_empty() {
            let held = &mut *self.held;
            let Some(next) = held.entries.front() else { break };
            if held.commit.is_none() {
                held.commit = commit_in(&next.data);
            }
            if let Some(commit) = &held.commit {
                let judged = self.progress.applied.index + 1 == next.position.index;
                if !judged || !out.is_empty() {
                    break;
                }
                // (Were the source to stand still for one that is refused then, nobody would have it move on.)
                if accept(&self.region, &self.removed, commit).is_ok() {
                    self.ask_source(effects);
                    break;
                }
            }
            out.extend(self.next_held());
        }
        self.hand_on(out, effects);
    }

    fn next_held(&mut self) -> Option<CommittedEntry> {
        (self.held.commit, self.held.asked) = (None, false);
        self.held.asking = Asking::default();
        self.held.entries.pop_front()
    }

    fn hand_on(&mut self, entries: Entries, effects: &mut Effects) {
        let Some(last) = entries.last() else { return };
        self.handed = last.position.index;
        let (region, peer) = (self.region.id, self.id);
        effects.apply.push(ApplyTask::Entries { region, peer, entries });
    }

    fn ask_source(&mut self, effects: &mut Effects) {
        let Some(commit) = self.held.commit.as_ref().filter(|_| !self.held.asked) else { return };
        let Some(source) = commit.source.peer_on(self.store) else { return };
        let word = Word::CatchUp { target: (self.region.id, self.id), commit: commit.clone() };
        effects.asides.push(Aside { region: commit.source.id, peer: source.id, word });
        self.held.asked = true;
        // What the source applies now it may never find in its own log: this log must say, before anything comes of
        // it, that the commit is committed (seed 84 of the simulator's regions).
        self.held.unrecorded = self.held.entries.front().map(|entry| entry.position.index);
    }

    /// Writes down what a source's replica is about to rely on.
    pub(super) fn record_held(&mut self, batch: &mut LogBatch) {
        if let Some(index) = self.held.unrecorded {
            self.held.unrecorded = None;
            self.record_commit(index, batch);
        }
    }

    /// Whether it waits for a source: then no snapshot may take that one's place.
    pub(crate) fn waits_for_source(&self) -> bool {
        self.held.commit.is_some()
    }

    /// The source that it waits for, if its commit was accepted.
    pub(super) fn source_waited_for(&self) -> Option<RegionId> {
        let commit = self.held.commit.as_ref().filter(|_| self.held.asked);
        commit.map(|commit| commit.source.id)
    }

    /// The source's replica stands still where it was frozen.
    fn caught_up(&mut self, source: RegionId, at: LogPosition, effects: &mut Effects) {
        let commit = self.held.commit.as_ref();
        let next = self.held.entries.front().map(|entry| entry.position.index);
        let asked = commit.is_some_and(|commit| commit.source.id == source && commit.at == at);
        if asked && next == Some(self.progress.applied.index + 1) && self.restoring.is_none() {
            let entry = self.next_held();
            self.hand_on(entry.into_iter().collect(), effects);
        }
    }

    /// What is held is dropped: a snapshot overtook it, or the replica ends.
    pub(super) fn drop_held(&mut self, effects: &mut Effects) {
        let held = std::mem::take(&mut *self.held);
        for token in held.entries.into_iter().flat_map(|entry| entry.waiting) {
            let error = Error::Ambiguous { what: "overtaken by a snapshot" };
            Peer::refuse(effects, token, error);
        }
    }

    /// What another replica on this store has to say.
    pub(crate) fn told(&mut self, word: Word, effects: &mut Effects) {
        match word {
            Word::CatchUp { target, commit } => self.catch_up(target, commit, effects),
            Word::Yield if self.leaving || self.fence.is_some() => {}
            Word::Yield => self.lend(Lent::default(), effects),
            Word::CaughtUp { source, at } => self.caught_up(source, at, effects),
            Word::Stuck { source } => {
                let waits = self.held.commit.as_ref().is_some_and(|c| c.source.id == source);
                if waits && self.fence.is_none() {
                    self.quarantine(format!("{source}, merged into it, is fenced off"), effects);
                }
            }
        }
    }

    /// What a leader knows of a commit without proposing it; `None`: it must be proposed.
    ///
    /// Both answers are final: what was accepted is listed until the source is gone everywhere, and a later shape
    /// refuses for ever.
    pub(super) fn known_of(&self, commit: &Commit) -> Option<Result<AdminDone>> {
        if self.removed.iter().any(|gone| gone.region == commit.source.id) {
            return Some(Ok(AdminDone::Shaped(vec![Region::clone(&self.region)])));
        }
        let current = || vec![Region::clone(&self.region)];
        match self.region.epoch {
            _ if self.region.id != commit.target => {
                let what = format!("{} is not to take {} in", self.region.id, commit.source.id);
                Some(Err(Error::InvalidArgument(what)))
            }
            epoch if epoch == commit.epoch => None,
            epoch if is_later(epoch, commit.epoch) => {
                Some(Err(Error::EpochNotMatch { current: current() }))
            }
            _ => Some(Err(Error::Busy { what: "another change of the region's shape" })),
        }
    }
}

#[cfg(test)]
mod tests;
