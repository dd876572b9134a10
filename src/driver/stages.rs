//! Where a write waits: how long it takes from one place of its way to the next.
//!
//! ```text
//! hand-over        loop takes it     entry proposed       entry committed     worker takes it    visible      called back
//!     |--- queue ------|---- propose -----|---- replicate -----|--- apply_wait ---|--- apply ----|--- answer ---|
//!                                         |- log_wait -|- log_write -|  (on this node, beside the followers')
//!     |-------------------------------------------- whole ------------------------------------------------------|
//! ```
//!
//! **Cost.** Clocks are read once for a hand-over, a round of a loop, a round of the log, a pass of a worker,
//! never for a write; then one [`Meter`] is told of all that shared the reading. The rooms below name no
//! clock: what is measured are their borders, as the driver sees them. An entry is followed by the token
//! of its first batch, through a table of the loop's own.
//!
//! Not done: reads (they pass none of these stages but the queue); what lies before the hand-over, which is the
//! client's routing and, for a remote one, the network; append and sync apart, for the log does them in one step.

use super::histogram::{Histogram, Meter};
use super::waiting::place_of;
use crate::store::{ApplyTask, Token};
use crate::types::Time;

/// A part of a write's way through the node that leads its region.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Stage {
    /// From the client's hand-over until a store loop takes it out of its inbox. Counts requests (client batches of
    /// one region), as do the others unless they say something else.
    Queue,
    /// Until its entry is proposed: in the log's queue, its messages on their way. More than the loop's round only
    /// if the region holds it back, because too much is uncommitted or applying lags. Long rounds show here and in
    /// the queue.
    Propose,
    /// What a round of a loop put into the log, until the log writer takes it up. Counts such rounds, those that
    /// only follow another node's leader included.
    LogWait,
    /// Written and synced, behind the wait. Counts rounds, too.
    LogWrite,
    /// From the proposal until the entry is committed *and* durable here: the slower of this node's log and the
    /// fastest majority's, with the network and the rounds of the loops in between.
    Replicate,
    /// Committed, until an apply worker takes it.
    ApplyWait,
    /// Applied together with all that waited: until the whole pass is visible to readers.
    Apply,
    /// The callers of the pass are called back: until the last of them was.
    Answer,
    /// From the hand-over to the end of the pass that answered it. A sample of one in eight, scaled up; failed writes are
    /// not in it, nor those whose answer came after their deadline.
    Whole,
}

impl Stage {
    /// All of them, in the order of the way.
    pub const ALL: [Stage; 9] = [
        Stage::Queue,
        Stage::Propose,
        Stage::LogWait,
        Stage::LogWrite,
        Stage::Replicate,
        Stage::ApplyWait,
        Stage::Apply,
        Stage::Answer,
        Stage::Whole,
    ];

    /// Its name in results and tables.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Queue => "queue",
            Stage::Propose => "propose",
            Stage::LogWait => "log_wait",
            Stage::LogWrite => "log_write",
            Stage::Replicate => "replicate",
            Stage::ApplyWait => "apply_wait",
            Stage::Apply => "apply",
            Stage::Answer => "answer",
            Stage::Whole => "whole",
        }
    }
}

/// How long writes spent in each [`Stage`] since the node was opened, at this node as leader. Two readings
/// [give](Self::since) what happened in between; those of several nodes [add up](Self::plus).
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct StageStats {
    /// Boxed: it travels in answers that are small otherwise.
    stages: Box<[Histogram; Stage::ALL.len()]>,
}

impl std::ops::Index<Stage> for StageStats {
    type Output = Histogram;

    fn index(&self, stage: Stage) -> &Histogram {
        &self.stages[stage as usize]
    }
}

impl StageStats {
    /// Every stage, in the order of the way.
    pub fn iter(&self) -> impl Iterator<Item = (Stage, &Histogram)> {
        Stage::ALL.into_iter().zip(self.stages.iter())
    }

    /// What was counted since `before` was read, of the same node.
    pub fn since(&self, before: &StageStats) -> StageStats {
        let stages = Stage::ALL.map(|stage| self[stage].since(&before[stage]));
        StageStats { stages: Box::new(stages) }
    }

    /// Both together.
    pub fn plus(&self, other: &StageStats) -> StageStats {
        StageStats { stages: Box::new(Stage::ALL.map(|stage| self[stage].plus(&other[stage]))) }
    }

    /// All of it as numbers, for [`read`](Self::read).
    pub fn figures(&self) -> Vec<u64> {
        self.stages.iter().flat_map(Histogram::figures).collect()
    }

    /// Reads them in that order.
    pub fn read<E>(mut next: impl FnMut() -> Result<u64, E>) -> Result<StageStats, E> {
        let mut stats = StageStats::default();
        for stage in stats.stages.iter_mut() {
            *stage = Histogram::read(&mut next)?;
        }
        Ok(stats)
    }
}

/// The meters of a node, one for each stage.
#[derive(Default, Debug)]
pub struct Stages {
    meters: [Meter; Stage::ALL.len()],
}

impl Stages {
    /// `times` writes (or rounds) spent the time between these two in a stage.
    pub fn record(&self, stage: Stage, from: Time, to: Time, times: usize) {
        self.meters[stage as usize].record(to.0.saturating_sub(from.0), times as u64);
    }

    /// What they show.
    pub fn read(&self) -> StageStats {
        StageStats { stages: Box::new(Stage::ALL.map(|stage| self.meters[stage as usize].read())) }
    }
}

/// Where the writes of one loop are: taken out of the inbox, or proposed, and since when.
///
/// * One place for each place at the loop's desk, up to [`PLACES`]: whoever sits beyond is not followed. A place holds
///   the token it was last given to; under another one nothing is found.
#[derive(Default, Debug)]
pub struct Followed {
    places: Vec<(Token, Time)>,
}

/// A desk with more callers than this is followed in part.
const PLACES: usize = 1 << 16;
const NOBODY: (Token, Time) = (Token(u64::MAX), Time(0));

impl Followed {
    /// A write is as far as its next border.
    pub fn put(&mut self, token: Token, now: Time) {
        let at = place_of(token);
        if at >= PLACES {
            return;
        }
        if at >= self.places.len() {
            self.places.resize((at + 1).next_power_of_two(), NOBODY);
        }
        self.places[at] = (token, now);
    }

    /// When it got there.
    pub fn take(&mut self, token: Token) -> Option<Time> {
        let place = self.places.get_mut(place_of(token)).filter(|place| place.0 == token)?;
        Some(std::mem::replace(place, NOBODY).1)
    }

    /// Entries were proposed by `now`, in a round that began at `began`: for each the first batch in it, and how many
    /// there are.
    pub fn proposed(
        &mut self,
        stages: &Stages,
        began: Time,
        now: Time,
        entries: &[(Token, usize)],
    ) {
        for &(first, batches) in entries {
            let taken = self.take(first).unwrap_or(began);
            stages.record(Stage::Propose, taken, now, batches);
            self.put(first, now);
        }
    }

    /// Entries were committed by `now`. Those that nobody waits for here were proposed elsewhere.
    pub fn committed(&mut self, stages: &Stages, now: Time, tasks: &[ApplyTask]) {
        for task in tasks {
            let ApplyTask::Entries { entries, .. } = task else { continue };
            for entry in entries {
                let first = entry.waiting.first();
                if let Some(proposed) = first.and_then(|first| self.take(*first)) {
                    stages.record(Stage::Replicate, proposed, now, entry.waiting.len());
                }
            }
        }
    }
}

/// How many batches in these tasks somebody waits for here.
pub fn waited_for(tasks: &[ApplyTask]) -> usize {
    let entries = tasks.iter().map(|task| match task {
        ApplyTask::Entries { entries, .. } => &entries[..],
        ApplyTask::Restore { .. } | ApplyTask::Destroy { .. } => &[],
    });
    entries.flatten().map(|entry| entry.waiting.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::CommittedEntry;
    use crate::types::{LogPosition, PeerId, RegionId};
    use bytes::Bytes;
    use smallvec::smallvec;
    use std::time::Duration;

    fn task(waiting: &[u64]) -> ApplyTask {
        let position = LogPosition { index: 9, term: 1 };
        let waiting = waiting.iter().map(|token| Token(*token)).collect();
        let entries = smallvec![CommittedEntry { position, data: Bytes::new(), waiting }];
        ApplyTask::Entries { region: RegionId(1), peer: PeerId(1), entries }
    }

    #[test]
    fn an_entry_is_followed_by_its_first_batch() {
        let (stages, mut followed) = (Stages::default(), Followed::default());
        let us = |us: u64| Time(us * 1000);
        for token in [1, 2, 3] {
            followed.put(Token(token), us(10));
        }
        followed.proposed(
            &stages,
            us(500),
            us(600),
            &[(Token(1), 2), (Token(3), 1), (Token(8), 1)],
        );
        // Somebody else's entry, one that nobody followed, and the two.
        followed.committed(&stages, us(1600), &[task(&[]), task(&[2]), task(&[1, 2]), task(&[3])]);
        followed.committed(&stages, us(9000), &[task(&[1, 2])]);
        assert_eq!(waited_for(&[task(&[]), task(&[1, 2])]), 2);
        let stats = stages.read();
        let (propose, replicate) = (&stats[Stage::Propose], &stats[Stage::Replicate]);
        assert_eq!((propose.count(), propose.max()), (4, Duration::from_micros(590)));
        assert_eq!(
            propose.sum(),
            Duration::from_micros(3 * 590 + 100),
            "the stranger from the round's start"
        );
        // Batch 2 was taken and never proposed by itself: what is found is when it was taken.
        assert_eq!(replicate.count(), 4);
        assert_eq!(stats[Stage::Queue].count(), 0);
        let mut figures = stats.figures().into_iter();
        assert_eq!(StageStats::read(|| figures.next().ok_or(())), Ok(stats.clone()));
        assert_eq!(stats.since(&stats), StageStats::default());
        assert_eq!(stats.plus(&stats)[Stage::Propose].count(), 8);
    }

    #[test]
    fn what_sits_too_far_off_is_not_followed() {
        let mut followed = Followed::default();
        followed.put(Token(PLACES as u64), Time(1));
        assert!(followed.places.is_empty());
        assert_eq!(followed.take(Token(PLACES as u64)), None);
    }
}
