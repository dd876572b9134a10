//! What the records of a log add up to: per group its live entries, its state record and its truncated
//! position. The same rules as the log's own recovery, in the plainest form: a map of indexes.

use catamaran::log::inspect::{OpView, RecordView, RunBytes, SegmentInfo, Was};
use catamaran::log::{BLOCK, Entry, GroupId};
use catamaran::types::LogPosition;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

mod group;

pub use group::{Group, Kept, Runs, Slot};

/// How a segment stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// The last one: written to.
    Active,
    /// A later one follows.
    Sealed,
    /// Nothing in it counts any more.
    Void,
}

impl Standing {
    pub fn text(self) -> &'static str {
        match self {
            Standing::Active => "active",
            Standing::Sealed => "sealed",
            Standing::Void => "void",
        }
    }
}

/// How often each value of a figure occurs.
#[derive(Clone, Default, Debug)]
pub struct Spread(BTreeMap<u64, u64>);

impl Spread {
    fn add(&mut self, value: u64) {
        *self.0.entry(value).or_default() += 1;
    }

    pub fn count(&self) -> u64 {
        self.0.values().sum()
    }

    /// The smallest value that so many percent do not exceed; 0 of nothing.
    pub fn percentile(&self, percent: u64) -> u64 {
        let rank = (self.count() * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let reached = self.0.iter().find(|(_, count)| {
            seen += **count;
            seen >= rank
        });
        reached.map_or(0, |(value, _)| *value)
    }
}

/// A segment and what was read in it.
#[derive(Clone, Debug)]
pub struct Segment {
    pub path: PathBuf,
    pub info: SegmentInfo,
    pub records: u64,
    pub last_seq: u64,
    /// Where the last record ends.
    pub end: u64,
    /// Where what is stated to be durable ends.
    pub durable_end: u64,
    /// Groups of records that were written, and so synced, together.
    pub syncs: u64,
    /// Bytes of entries and state records, before compression.
    pub data: u64,
    /// What compression saved of the runs that hold them.
    pub saved: u64,
    /// Those of them that a group still needs.
    pub live: u64,
    /// Where records lie: offset, bytes, number.
    pub extents: Vec<(u64, u64, u64)>,
    stated: Option<u64>,
}

impl Segment {
    fn new(info: SegmentInfo) -> Segment {
        let start = BLOCK as u64;
        Segment {
            path: info.path.clone(),
            info,
            records: 0,
            last_seq: 0,
            end: start,
            durable_end: start,
            syncs: 0,
            data: 0,
            saved: 0,
            live: 0,
            extents: Vec::new(),
            stated: None,
        }
    }

    pub fn standing(&self, floor: u64) -> Standing {
        match self.info.limit {
            None => Standing::Active,
            Some(limit) if limit <= self.info.header.base_seq || limit <= floor => Standing::Void,
            Some(_) => Standing::Sealed,
        }
    }

    /// Bytes of records.
    pub fn record_bytes(&self) -> u64 {
        self.extents.iter().map(|(_, len, _)| len).sum()
    }

    /// Bytes of records that are neither entries nor state: headers, directories, tables of runs.
    pub fn framing(&self) -> u64 {
        (self.record_bytes() + self.saved).saturating_sub(self.data)
    }

    /// Bytes of records and their padding.
    pub fn used(&self) -> u64 {
        (self.end - BLOCK as u64).next_multiple_of(BLOCK as u64)
    }
}

/// How often each operation occurs.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, serde::Serialize)]
pub struct Counts {
    pub append: u64,
    pub rewrite: u64,
    pub state: u64,
    pub compact: u64,
    pub reset: u64,
    pub base: u64,
    pub clear: u64,
    pub floor: u64,
    pub damaged: u64,
}

/// The whole log.
#[derive(Clone, Debug)]
pub struct Model<T> {
    pub groups: BTreeMap<GroupId, Group<T>>,
    /// Oldest first.
    pub segments: Vec<Segment>,
    pub counts: Counts,
    pub runs: Runs,
    pub first_seq: u64,
    pub last_seq: u64,
    pub records: u64,
    /// Entries in them, of any group, live or not, asked for or not.
    pub written_entries: u64,
    /// Of records with operations: their bytes, and how many entries they carry.
    pub batch_bytes: Spread,
    pub batch_entries: Spread,
    /// Records below are void.
    pub floor: u64,
    /// Records that are missing or do not say whose they were: first and last number, in order. What lies
    /// below the floor is of no account.
    lost: Vec<(u64, u64)>,
}

impl<T: Kept> Model<T> {
    pub fn new(segments: Vec<SegmentInfo>) -> Model<T> {
        Model {
            groups: BTreeMap::new(),
            segments: segments.into_iter().map(Segment::new).collect(),
            counts: Counts::default(),
            runs: Runs::default(),
            first_seq: 0,
            last_seq: 0,
            records: 0,
            written_entries: 0,
            batch_bytes: Spread::default(),
            batch_entries: Spread::default(),
            floor: 0,
            lost: Vec::new(),
        }
    }

    /// Takes the next record in. `keep` says what to keep of its entries.
    pub fn record(
        &mut self,
        record: &RecordView,
        keep: &mut impl FnMut(&RecordView, GroupId, &Entry) -> T,
    ) {
        self.records += 1;
        if record.seq != self.last_seq + 1 {
            self.lost.push((self.last_seq + 1, record.seq - 1));
        }
        if record.is_lost {
            self.lost.push((record.seq, record.seq));
        }
        self.last_seq = record.seq;
        if self.first_seq == 0 {
            self.first_seq = record.seq;
        }
        let (mut data, before, runs) = (0, self.written_entries, self.runs);
        for op in &record.ops {
            data += self.op(record, op, keep);
        }
        if !record.ops.is_empty() {
            self.batch_bytes.add(record.len);
            self.batch_entries.add(self.written_entries - before);
        }
        let Some(segment) = self.segments.iter_mut().rev().find(|s| s.path == record.path) else {
            return;
        };
        segment.records += 1;
        segment.last_seq = record.seq;
        segment.end = record.offset + record.len;
        segment.data += data;
        segment.saved += (self.runs.raw - runs.raw) - (self.runs.stored - runs.stored);
        segment.extents.push((record.offset, record.len, record.seq));
        if record.offset.is_multiple_of(BLOCK as u64) && segment.stated != Some(record.durable) {
            segment.stated = Some(record.durable);
            segment.syncs += 1;
        }
    }

    /// Whether something is missing or damaged among the records that count.
    pub fn is_patchy(&self) -> bool {
        self.counts.damaged > 0 || self.lost().next().is_some()
    }

    /// Records that are missing, or do not say whose they were, and may matter: first and last number.
    pub fn lost(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.lost.iter().copied().filter(|(_, last)| *last >= self.floor)
    }

    /// Notes that what came after the last record is gone, and that nobody knows how much it was.
    pub fn lose_end(&mut self) {
        self.lost.push((self.last_seq + 1, u64::MAX));
    }

    /// One operation; tells how many bytes of entries or state it carries.
    fn op(
        &mut self,
        record: &RecordView,
        op: &OpView,
        keep: &mut impl FnMut(&RecordView, GroupId, &Entry) -> T,
    ) -> u64 {
        let seq = record.seq;
        let mut bytes = 0;
        match op {
            OpView::Append { group, entries, run } => {
                self.counts.append += 1;
                if let Some(first) = entries.first() {
                    self.change(*group, |g| {
                        g.tail_seq = seq;
                        g.drop_from(first.index);
                    });
                }
                bytes = self.put(record, *group, (entries, run), keep);
            }
            OpView::Rewrite { group, entries, run } => {
                self.counts.rewrite += 1;
                bytes = self.put(record, *group, (entries, run), keep);
            }
            OpView::State { group, state } => {
                self.counts.state += 1;
                bytes = state.len() as u64;
                self.change(*group, |g| {
                    g.state = Some(state.to_vec());
                    g.state_seq = seq;
                    g.written_state_bytes += bytes;
                });
            }
            OpView::Compact { group, to } => {
                self.counts.compact += 1;
                self.change(*group, |g| {
                    if to.index > g.truncated.index {
                        g.drop_to(seq, *to);
                    }
                });
            }
            OpView::Base { group, at } => {
                self.counts.base += 1;
                self.change(*group, |g| g.drop_to(seq, *at));
            }
            OpView::Reset { group, to } => {
                self.counts.reset += 1;
                self.change(*group, |g| {
                    g.drop_from(0);
                    g.tail_seq = seq;
                    g.truncated = *to;
                    g.base_seq = seq;
                });
            }
            OpView::Clear { group } => {
                self.counts.clear += 1;
                self.change(*group, |g| g.forget());
            }
            OpView::Floor { seq } => {
                self.counts.floor += 1;
                self.drop_below(*seq);
            }
            OpView::Damaged { group, was } => {
                self.counts.damaged += 1;
                self.change(*group, |g| {
                    g.damages.push(seq);
                    match was {
                        Was::Append(indexes) => {
                            // What it replaced is gone, whether it reads or not.
                            g.drop_from(indexes.start);
                            g.lose(seq, indexes.clone());
                        }
                        // The same entries may still be where they were before.
                        Was::Rewrite(indexes) => g.lose(seq, indexes.clone()),
                        Was::State | Was::Unknown => {}
                    }
                });
            }
        }
        bytes
    }

    fn put(
        &mut self,
        record: &RecordView,
        id: GroupId,
        (entries, run): (&[Entry], &RunBytes),
        keep: &mut impl FnMut(&RecordView, GroupId, &Entry) -> T,
    ) -> u64 {
        let group = self.groups.entry(id).or_default();
        self.runs.add(run);
        group.runs.add(run);
        let mut sum = 0;
        for entry in entries {
            let bytes = entry.data.len() as u64;
            sum += bytes;
            self.written_entries += 1;
            let kept = keep(record, id, entry);
            if kept.counts() {
                group.written_entries += 1;
                group.written_bytes += bytes;
            }
            let slot = Slot { seq: record.seq, term: entry.term, bytes, kept };
            group.entries.insert(entry.index, slot);
            group.unreadable.remove(&entry.index);
        }
        sum
    }

    fn change(&mut self, id: GroupId, change: impl FnOnce(&mut Group<T>)) {
        let group = self.groups.entry(id).or_default();
        change(group);
        if group.is_blank() {
            self.groups.remove(&id);
        }
    }

    fn drop_below(&mut self, floor: u64) {
        self.floor = self.floor.max(floor);
        self.groups.retain(|_, group| {
            group.entries.retain(|_, slot| slot.seq >= floor);
            group.unreadable.retain(|_, seq| *seq >= floor);
            group.damages.retain(|seq| *seq >= floor);
            if group.base_seq < floor {
                group.base_seq = 0;
                group.truncated = LogPosition::default();
            }
            if group.state_seq < floor {
                group.state = None;
            }
            !group.is_blank()
        });
    }

    /// After the last record: which bytes of which segment are still needed, and which are durable.
    pub fn close(&mut self, durable: u64) {
        if self.last_seq < durable {
            self.lost.push((self.last_seq + 1, durable));
        }
        let mut live: BTreeMap<u64, u64> = BTreeMap::new();
        for group in self.groups.values() {
            for slot in group.entries.values() {
                *live.entry(slot.seq).or_default() += slot.bytes;
            }
            if group.state.is_some() {
                *live.entry(group.state_seq).or_default() += group.state_bytes();
            }
        }
        for segment in &mut self.segments {
            segment.live = segment.extents.iter().filter_map(|(.., seq)| live.get(seq)).sum();
            let first = segment.extents.iter().find(|(.., seq)| *seq > durable);
            segment.durable_end = match first.filter(|_| segment.info.limit.is_none()) {
                Some((offset, ..)) => *offset,
                None => segment.end,
            };
        }
    }
}

/// A file's name, without the directory.
pub fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let mut spread = Spread::default();
        assert_eq!((spread.count(), spread.percentile(50)), (0, 0));
        (1..=100).for_each(|value| spread.add(value));
        let found: Vec<u64> = [0, 1, 50, 90, 99, 100].map(|p| spread.percentile(p)).into();
        assert_eq!(found, [1, 1, 50, 90, 99, 100]);
        spread.add(7);
        assert_eq!((spread.count(), spread.percentile(100)), (101, 100));
    }
}
