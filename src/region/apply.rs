//! Applied: committed entries become writes of the state store, off the store loop.
//!
//! An [`Applier`] takes all waiting tasks of its regions at once and publishes ONE kv batch for them
//! (split by size at entry boundaries): data, region states and applied positions together. Only then is
//! anybody answered, so whoever got an answer can read it. Recovery replays the log through the same path:
//! there is no second one.
//!
//! A command that every replica refuses alike is answered and leaves nothing behind. Any other error is
//! fatal for the store: replicas may differ from here on.

use super::admin::administer;
use super::effects::*;
use super::machine::{Context, Source, StateMachine};
use super::snapshot::{SnapshotFile, SnapshotReader};
use crate::codec::command::{Batches, Payload};
use crate::env::Disk;
use crate::error::{Error, Result};
use crate::kv::{Cut, StateStore, View, WriteBatch};
use crate::types::{
    DEAD, Departed, Epoch, IdMap, LogPosition, Merging, PeerId, Region, RegionId, RegionState,
};
use bytes::Bytes;
use std::sync::Arc;

/// A kv batch is published once it holds this much.
const PUBLISH_BYTES: usize = 8 << 20;

/// Ids below are those of the first layout.
pub const FIRST_FREE_ID: u64 = 1 << 20;

/// Bytes of answers that wait for the end of a round of applying, about: beyond it compare and swaps leave
/// out their previous values.
const ANSWER_BYTES: usize = 64 << 20;

/// Regions whose states are kept from one round of applying to the next, about: most regions are idle.
const REGIONS_KEPT: usize = 1 << 14;

/// What a round of applying led to.
#[derive(Default, Debug)]
pub struct ApplyOutcome {
    /// To be reported back as `Event::Applied`.
    pub applied: Vec<Applied>,
    /// Answers; everything in them is visible.
    pub replies: Vec<(Token, Reply)>,
    /// Snapshot files that are no longer needed.
    pub discard: Vec<SnapshotFile>,
    /// What a restore has made durable, all regions: to be reported as `Event::Flushed`, behind `applied`.
    pub cut: Option<Cut>,
    /// The rest, if there was no room for it.
    pub left: Option<Left>,
}

/// What was not applied, for a snapshot found no room to be restored: to be handed over again later, before anything else.
#[derive(Debug)]
pub struct Left {
    /// Where there was no room.
    pub error: Error,
    /// The snapshot's task and those behind it.
    pub tasks: Vec<ApplyTask>,
}

/// Applies the entries of some regions, in order.
///
/// * A region's tasks always go to the same applier.
pub struct Applier {
    kv: Arc<dyn StateStore>,
    machine: Arc<dyn StateMachine>,
    disk: Arc<dyn Disk>,
    /// What it has worked on, as published; the state store has them all.
    regions: IdMap<RegionId, Kept>,
    /// Of the batch that is being filled.
    number: u64,
    /// What answers may still take in this round.
    answer_room: usize,
    /// Whether the epoch is looked at; always, but for a planted bug of the simulator's.
    epochs: Epochs,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Epochs {
    Checked,
    #[cfg(any(test, feature = "sim"))]
    Ignored,
}

/// A region's state, and where it stands among what a batch has touched.
///
/// * `state` is shared with the state store; `applied` is how far the region is, what `state` says of it may be older.
struct Kept {
    state: Arc<RegionState>,
    applied: LogPosition,
    /// The batch that touched it last, and its place there.
    touched: (u64, usize),
}

impl From<RegionState> for Kept {
    fn from(state: RegionState) -> Kept {
        Kept { applied: state.applied, state: Arc::new(state), touched: (0, 0) }
    }
}

impl Kept {
    /// How far the region gets by batch `number`, which has touched these so far.
    fn touch<'a>(
        &mut self,
        number: u64,
        touched: &'a mut Vec<Applied>,
        start: Applied,
    ) -> &'a mut Applied {
        if self.touched.0 != number {
            self.touched = (number, touched.len());
            touched.push(start);
        }
        &mut touched[self.touched.1]
    }
}

/// One kv batch being filled.
struct Publishing {
    /// Batches count from one.
    number: u64,
    batch: WriteBatch,
    view: Box<dyn View>,
    /// Where each region gets to by this batch, in the order in which it touched them.
    touched: Vec<Applied>,
    replies: Vec<(Token, Reply)>,
}

/// What those are told whose write may or may not have been applied elsewhere.
fn unknown(waiting: Waiting, what: &'static str) -> impl Iterator<Item = (Token, Reply)> {
    let unknown = move |token| (token, Reply::Written(Err(Error::Ambiguous { what })));
    waiting.into_iter().map(unknown)
}

impl Applier {
    /// An applier over a state store.
    pub fn new(
        kv: Arc<dyn StateStore>,
        machine: Arc<dyn StateMachine>,
        disk: Arc<dyn Disk>,
    ) -> Applier {
        let (answer_room, epochs) = (ANSWER_BYTES, Epochs::Checked);
        Applier { kv, machine, disk, regions: IdMap::default(), number: 0, answer_room, epochs }
    }

    /// A planted bug of the simulator's: what was made for another shape is applied all the same.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn ignore_epochs(&mut self) {
        self.epochs = Epochs::Ignored;
    }

    /// Whether these tasks are entries of users' commands that are all [quick](StateMachine::is_quick).
    pub fn is_quick(&self, tasks: &[ApplyTask]) -> bool {
        let quick = |entry: &CommittedEntry| match Payload::parse(&entry.data) {
            _ if entry.data.is_empty() => true,
            Ok(Payload::Normal { mut batches, .. }) => {
                batches.all(|command| self.machine.is_quick(command))
            }
            Ok(Payload::Compact(_) | Payload::Admin(_)) | Err(_) => false,
        };
        tasks.iter().all(|task| match task {
            ApplyTask::Entries { region, entries, .. } => {
                self.regions.contains_key(region) && entries.iter().all(quick)
            }
            ApplyTask::Restore { .. } | ApplyTask::Destroy { .. } => false,
        })
    }

    /// Applies the tasks, in order. Where a snapshot finds no room to be restored it ends, and that task and those behind it
    /// are [`left`](ApplyOutcome::left). Any other error is fatal: the store must stop.
    pub fn apply(&mut self, tasks: Vec<ApplyTask>, out: &mut ApplyOutcome) -> Result<()> {
        self.answer_room = ANSWER_BYTES;
        let mut publishing = self.begin()?;
        let mut tasks = tasks.into_iter();
        while let Some(task) = tasks.next() {
            match task {
                ApplyTask::Entries { region, peer, entries } => {
                    for entry in entries {
                        self.entry(region, peer, entry, &mut publishing)?;
                        if publishing.batch.bytes() >= PUBLISH_BYTES {
                            self.publish(publishing, out)?;
                            publishing = self.begin()?;
                        }
                    }
                }
                ApplyTask::Restore { state, file, swallow } => {
                    self.publish(publishing, out)?;
                    match self.restore(&state, &file, &swallow, out) {
                        Err(error @ Error::DiskFull { .. }) => {
                            let again = ApplyTask::Restore { state, file, swallow };
                            let tasks = std::iter::once(again).chain(tasks).collect();
                            out.left = Some(Left { error, tasks });
                            return Ok(());
                        }
                        done => done?,
                    }
                    publishing = self.begin()?;
                }
                ApplyTask::Destroy { region, peer, epoch } => {
                    self.publish(publishing, out)?;
                    self.destroy(region, peer, epoch, out)?;
                    publishing = self.begin()?;
                }
            }
        }
        self.publish(publishing, out)?;
        if self.regions.len() > REGIONS_KEPT {
            self.regions.clear();
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<Publishing> {
        self.number += 1;
        Ok(Publishing {
            number: self.number,
            batch: WriteBatch::new(),
            view: self.kv.view()?,
            touched: Vec::new(),
            replies: Vec::new(),
        })
    }

    fn publish(&mut self, publishing: Publishing, out: &mut ApplyOutcome) -> Result<()> {
        let Publishing { mut batch, touched, replies, .. } = publishing;
        if touched.is_empty() {
            out.replies.extend(replies);
            return Ok(());
        }
        batch.expect_regions(touched.len());
        for Applied { region, .. } in &touched {
            if let Some(kept) = self.regions.get(region) {
                batch.set_applied(&kept.state, kept.applied);
            }
        }
        self.kv.write(batch)?;
        out.applied.extend(touched);
        out.replies.extend(replies);
        Ok(())
    }

    fn entry(
        &mut self,
        region: RegionId,
        peer: PeerId,
        entry: CommittedEntry,
        publishing: &mut Publishing,
    ) -> Result<()> {
        if !self.regions.contains_key(&region) {
            // Not met for long; or cut out of another region since, by another worker perhaps: what that one has
            // published.
            let now = self.kv.view()?;
            match publishing.view.region(region).or(now.region(region)) {
                Some(born) => drop(self.regions.insert(region, born.into())),
                // Its end overtook its birth: the loop hears of it in a moment.
                None if now.record(region).is_some_and(|dead| dead.peer >= peer) => {
                    publishing.replies.extend(unknown(entry.waiting, "the replica was removed"));
                    return Ok(());
                }
                None => return Err(Error::RegionNotFound(region)),
            }
        }
        let Some(kept) = self.regions.get_mut(&region) else {
            return Err(Error::RegionNotFound(region));
        };
        if entry.position.index <= kept.applied.index || kept.state.peer != peer {
            // Handed over again after a restart or a restore; another's. Whoever waits is told all the same.
            publishing.replies.extend(unknown(entry.waiting, "overtaken by a snapshot"));
            return Ok(());
        }
        let start = Applied::at(region, peer, entry.position);
        let applied = kept.touch(publishing.number, &mut publishing.touched, start);
        applied.position = entry.position;
        applied.bytes += entry.data.len();
        kept.applied = entry.position;
        if entry.data.is_empty() {
            return Ok(()); // raft's own
        }
        match Payload::parse(&entry.data)? {
            Payload::Compact(_) if kept.state.merging.is_some() => Ok(()),
            Payload::Compact(position) => {
                let index = kept.applied.index;
                let position = position.min(LogPosition { index, ..position });
                let state = Arc::make_mut(&mut kept.state);
                state.compacted = state.compacted.max(position);
                applied.compacted = Some(state.compacted);
                Ok(())
            }
            Payload::Admin(admin) => {
                #[cfg(any(test, feature = "sim"))]
                let mut admin = admin;
                #[cfg(any(test, feature = "sim"))]
                if self.epochs == Epochs::Ignored {
                    admin.set_epoch(kept.state.region.epoch);
                }
                let state = Arc::make_mut(&mut kept.state);
                state.applied = kept.applied;
                let news = applied.news.get_or_insert_default();
                let done =
                    administer(&admin, state, news, &mut publishing.batch, &*publishing.view)?;
                if let Some(token) = entry.waiting.first() {
                    publishing.replies.push((*token, Reply::Admin(done)));
                }
                for gone in &news.absorbed {
                    self.regions.remove(&gone.region);
                }
                Ok(())
            }
            Payload::Normal { version, batches } => {
                let state = &kept.state;
                let frozen = state.merging.is_some() || version != state.region.epoch.version;
                let old = self.epochs == Epochs::Checked && frozen;
                let current = old.then(|| state.region.clone());
                self.commands(region, current, &entry, batches, publishing)
            }
        }
    }

    fn commands(
        &mut self,
        region: RegionId,
        moved_to: Option<crate::types::Region>,
        entry: &CommittedEntry,
        batches: Batches<'_>,
        publishing: &mut Publishing,
    ) -> Result<()> {
        let mut chunk = None;
        for (at, command) in batches.enumerate() {
            let answer = match &moved_to {
                Some(region) => Err(Error::EpochNotMatch { current: vec![region.clone()] }),
                None => {
                    let source = Source::new(&entry.data, &mut chunk);
                    self.command(region, entry.position.index, command, source, publishing)?
                }
            };
            if let Some(token) = entry.waiting.get(at) {
                let bytes = answer.as_ref().map_or(0, Bytes::len);
                self.answer_room = self.answer_room.saturating_sub(bytes);
                publishing.replies.push((*token, Reply::Written(answer)));
            }
        }
        Ok(())
    }

    /// The inner result is the same on every replica; the outer error is fatal.
    fn command(
        &self,
        region: RegionId,
        index: u64,
        command: &[u8],
        source: Source<'_>,
        publishing: &mut Publishing,
    ) -> Result<Result<Bytes>> {
        let mark = publishing.batch.mark();
        let mut context = Context {
            region,
            index,
            batch: &mut publishing.batch,
            answer_room: self.answer_room,
            view: &*publishing.view,
            entry: source,
        };
        match self.machine.apply(&mut context, command) {
            Ok(response) => Ok(Ok(response)),
            Err(refusal @ (Error::Malformed { .. } | Error::InvalidArgument(_))) => {
                publishing.batch.rollback(mark);
                Ok(Err(refusal))
            }
            Err(fatal) => Err(fatal),
        }
    }

    fn restore(
        &mut self,
        state: &RegionState,
        file: &SnapshotFile,
        swallow: &[Departed],
        out: &mut ApplyOutcome,
    ) -> Result<()> {
        let mut items = SnapshotReader::open(&self.disk, file)?;
        let view = self.kv.view()?;
        // What was cut off behind this replica's back leaves no data here: should it come, it brings its own.
        let mut cleared = vec![state.region.range.clone()];
        cleared.extend(view.region(state.region.id).map(|old| old.region.range));
        let mut states = vec![state.clone()];
        for gone in swallow {
            let there = view.record(gone.region).filter(|there| !there.is_tombstone());
            cleared.extend(there.iter().map(|there| there.region.range.clone()));
            let region = there.map(|there| there.region).unwrap_or_default();
            let dead = RegionState::tombstone(Region { id: gone.region, ..region }, gone.id);
            states.push(RegionState { merging: Some(Merging::default()), ..dead });
        }
        out.cut = Some(self.kv.restore(&cleared, &mut items, states)?);
        swallow.iter().for_each(|gone| drop(self.regions.remove(&gone.region)));
        let news =
            News { restored: Some(state.clone()), absorbed: swallow.to_vec(), ..News::default() };
        let applied = Applied::at(state.region.id, state.peer, state.applied).with(news);
        out.applied.push(Applied { compacted: Some(state.compacted), ..applied });
        out.discard.push(file.clone());
        self.regions.insert(state.region.id, state.clone().into());
        Ok(())
    }

    /// Deletes a replica and leaves its tombstone, in one batch. A later replica of the region is left alone.
    fn destroy(
        &mut self,
        region: RegionId,
        peer: PeerId,
        epoch: Epoch,
        out: &mut ApplyOutcome,
    ) -> Result<()> {
        let gone = News { destroyed: true, ..News::default() };
        let there = self.kv.view()?.record(region);
        if there.as_ref().is_some_and(|there| there.peer > peer) {
            return Ok(());
        }
        if there.as_ref().is_some_and(|there| there.is_tombstone() && there.peer == peer) {
            self.regions.remove(&region);
            out.applied.push(Applied::at(region, peer, DEAD).with(gone));
            return Ok(());
        }
        let mut batch = WriteBatch::new();
        let mut last = Region { id: region, ..Region::default() };
        if let Some(there) = there.filter(|there| !there.is_tombstone()) {
            batch.delete_range(&there.region.range);
            last = there.region;
        }
        last.epoch.conf_ver = last.epoch.conf_ver.max(epoch.conf_ver);
        last.epoch.version = last.epoch.version.max(epoch.version);
        batch.set_region(RegionState::tombstone(last, peer));
        self.kv.write(batch)?;
        self.regions.remove(&region);
        out.applied.push(Applied::at(region, peer, DEAD).with(gone));
        Ok(())
    }
}
