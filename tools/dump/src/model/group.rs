//! One group of a log: its live entries, what of it does not read, and what its runs come to.

use catamaran::log::inspect::RunBytes;
use catamaran::types::LogPosition;
use std::collections::BTreeMap;

/// A live entry.
#[derive(Clone, Debug)]
pub struct Slot<T> {
    /// The record that holds it.
    pub seq: u64,
    pub term: u64,
    /// Of its data.
    pub bytes: u64,
    /// What the verb wanted to keep of it.
    pub kept: T,
}

/// What a verb keeps of an entry.
pub trait Kept {
    /// Whether it is one of those that were asked for.
    fn counts(&self) -> bool;
}

/// Nothing, of any entry.
impl Kept for () {
    fn counts(&self) -> bool {
        true
    }
}

/// Just that.
impl Kept for bool {
    fn counts(&self) -> bool {
        *self
    }
}

/// Something, of those that were asked for.
impl<T> Kept for Option<T> {
    fn counts(&self) -> bool {
        self.is_some()
    }
}

/// One group.
#[derive(Clone, Debug)]
pub struct Group<T> {
    /// The log begins after it.
    pub truncated: LogPosition,
    /// The record that says so; 0: none does.
    pub base_seq: u64,
    pub state: Option<Vec<u8>>,
    pub state_seq: u64,
    /// The last record that says where the group's log ends: an append or a reset. Nothing older can have
    /// put an entry behind that end.
    pub tail_seq: u64,
    /// Records in which something of the group is damaged, whether it still matters or not.
    pub damages: Vec<u64>,
    pub entries: BTreeMap<u64, Slot<T>>,
    /// Entries that would be live and do not read, as far as directories tell: by index, the record that held them.
    pub unreadable: BTreeMap<u64, u64>,
    /// Entries in the records read that count, dead ones included.
    pub written_entries: u64,
    /// Bytes of them.
    pub written_bytes: u64,
    /// Bytes of state records, dead ones included.
    pub written_state_bytes: u64,
    /// Its runs in the records read, whichever entries count.
    pub runs: Runs,
}

/// What runs of entries come to.
#[derive(Clone, Copy, Default, Debug)]
pub struct Runs {
    pub count: u64,
    pub compressed: u64,
    /// Before compression.
    pub raw: u64,
    pub stored: u64,
}

impl Runs {
    pub(super) fn add(&mut self, run: &RunBytes) {
        self.count += 1;
        self.compressed += u64::from(run.is_compressed);
        self.raw += run.raw;
        self.stored += run.stored;
    }

    /// Bytes for each byte stored; 1 of nothing.
    pub fn ratio(&self) -> f64 {
        match self.stored {
            0 => 1.0,
            stored => (self.raw as f64 * 100.0 / stored as f64).round() / 100.0,
        }
    }
}

impl<T> Default for Group<T> {
    fn default() -> Group<T> {
        Group {
            truncated: LogPosition::default(),
            base_seq: 0,
            state: None,
            state_seq: 0,
            tail_seq: 0,
            damages: Vec::new(),
            entries: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            written_entries: 0,
            written_bytes: 0,
            written_state_bytes: 0,
            runs: Runs::default(),
        }
    }
}

impl<T: Kept> Group<T> {
    /// Live entries that count, in order.
    pub fn counting(&self) -> impl DoubleEndedIterator<Item = (u64, &Slot<T>)> {
        self.entries
            .iter()
            .filter(|(_, slot)| slot.kept.counts())
            .map(|(index, slot)| (*index, slot))
    }

    /// Bytes of live entries that count.
    pub fn bytes(&self) -> u64 {
        self.counting().map(|(_, slot)| slot.bytes).sum()
    }

    /// Records that hold something of the group which is still needed.
    pub fn records(&self) -> impl Iterator<Item = u64> {
        let state = self.state.is_some().then_some(self.state_seq);
        let base = Some(self.base_seq).filter(|seq| *seq > 0);
        self.counting().map(|(_, slot)| slot.seq).chain(state).chain(base)
    }

    /// The last index that is reached without a gap.
    pub fn whole_to(&self) -> u64 {
        let mut at = self.truncated.index;
        for index in self.entries.keys() {
            if *index != at + 1 {
                break;
            }
            at = *index;
        }
        at
    }

    /// Entries that the group had and that cannot be had any more: those that do not read, and those that are
    /// missing between others. (Of what a lost directory appended at the very end nobody knows how much it was.)
    pub fn lost_entries(&self) -> u64 {
        let (held, lost) = (self.entries.keys(), self.unreadable.keys());
        let last = held.clone().next_back().max(lost.clone().next_back());
        let begins = match self.base_seq {
            // Nothing says where it begins.
            0 => held.clone().next().into_iter().chain(lost.clone().next()).min().map(|at| at - 1),
            _ => Some(self.truncated.index),
        };
        let span = last.zip(begins).map_or(0, |(last, begins)| last.saturating_sub(begins));
        span.saturating_sub(held.len() as u64)
    }

    /// Entries from this index on are replaced, or gone.
    pub(super) fn drop_from(&mut self, first: u64) {
        drop(self.entries.split_off(&first));
        drop(self.unreadable.split_off(&first));
    }

    /// These do not read.
    pub(super) fn lose(&mut self, seq: u64, indexes: std::ops::Range<u64>) {
        self.unreadable.extend(indexes.filter(|n| *n > self.truncated.index).map(|n| (n, seq)));
    }

    pub fn state_bytes(&self) -> u64 {
        self.state.as_ref().map_or(0, |state| state.len() as u64)
    }

    pub(super) fn is_blank(&self) -> bool {
        self.entries.is_empty()
            && self.base_seq == 0
            && self.state.is_none()
            && self.damages.is_empty()
    }

    pub(super) fn drop_to(&mut self, seq: u64, to: LogPosition) {
        (self.entries, self.unreadable) = match to.index.checked_add(1) {
            Some(next) => (self.entries.split_off(&next), self.unreadable.split_off(&next)),
            None => Default::default(),
        };
        self.truncated = to;
        self.base_seq = seq;
    }

    pub(super) fn forget(&mut self) {
        self.entries.clear();
        self.unreadable.clear();
        self.damages.clear();
        self.tail_seq = 0;
        self.state = None;
        self.state_seq = 0;
        self.truncated = LogPosition::default();
        self.base_seq = 0;
    }
}
