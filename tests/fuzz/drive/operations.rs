//! Batches, rounds, purges, restarts and power cuts, against a plain map.

use super::Feed;
use super::log_disk::{Crash, Image, MemDisk, Survivors};
use bytes::Bytes;
use catamaran::Error;
use catamaran::log::{Entry, Log, LogBatch, Options, Recovery};
use catamaran::testkit::{Batch, Model};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

const DIR: &str = "/log";
const GROUPS: u64 = 5;

/// `salt`: some runs are compressed in one life of the log, none in another.
fn options(salt: u64) -> Options {
    Options {
        segment_bytes: 16 << 10,
        cache_bytes: 2 << 10,
        max_pending_bytes: 1 << 20,
        spare_segments: 2,
        compress_above: [None, Some(0), Some(600)][salt as usize % 3],
        ..Options::default()
    }
}

fn open(disk: &MemDisk, salt: u64) -> (Log, Recovery) {
    Log::open(Arc::new(disk.clone()), Path::new(DIR), options(salt)).unwrap()
}

struct World {
    /// What was there when the journal began.
    base: Image,
    disk: MemDisk,
    log: Option<Log>,
    model: Model,
    /// What the log was after each batch.
    after: BTreeMap<u64, Model>,
    salt: u64,
    /// Counts openings.
    life: u64,
}

/// Panics when the log is not what it should be.
pub fn run(data: &[u8]) {
    let mut feed = Feed(data);
    let mut world = World::new(data.len() as u64);
    while !feed.is_over() {
        world.step(&mut feed);
    }
    world.compare();
    world.reopen();
}

impl World {
    fn new(life: u64) -> World {
        let disk = MemDisk::default();
        let log = Some(open(&disk, life).0);
        let after = BTreeMap::from([(0, Model::default())]);
        World { base: Image::default(), disk, log, model: Model::default(), after, salt: 0, life }
    }

    fn log(&self) -> &Log {
        self.log.as_ref().unwrap()
    }

    fn compare(&self) {
        self.model.compare(self.log()).unwrap();
    }

    fn step(&mut self, feed: &mut Feed<'_>) {
        match feed.below(16) {
            0 => drop(self.log().write_round().unwrap()),
            1 => self.log().barrier().unwrap(),
            2 => drop(self.log().purge().unwrap()),
            3 => drop(self.log().prepare().unwrap()),
            4 => {
                for (id, group) in &self.model.groups {
                    self.log().trim_cache(*id, group.last());
                }
            }
            5 => self.compare(),
            6 => self.reopen(),
            7 => self.cut_power(feed),
            8 => self.refused(feed),
            _ => self.submit(feed),
        }
    }

    fn reopen(&mut self) {
        self.log().write_round().unwrap();
        let durable = self.log().durable().0;
        self.log = None;
        self.life += 1;
        let (log, recovery) = open(&self.disk, self.life);
        assert_eq!(recovery.last_seq, durable, "{recovery:?}");
        assert!(recovery.quarantined.is_empty(), "{recovery:?}");
        assert!(recovery.torn.is_none(), "{recovery:?}");
        self.log = Some(log);
        self.compare();
    }

    fn cut_power(&mut self, feed: &mut Feed<'_>) {
        let acked = self.log().durable().0;
        self.log = None;
        let mut crash = Crash { certain: std::mem::take(&mut self.base), ..Crash::default() };
        for step in &self.disk.state().journal {
            crash.step(step);
        }
        let seed = feed.number(2) + 1;
        let image = crash.image(match feed.below(4) {
            0 => Survivors::None,
            1 => Survivors::Subset(seed),
            2 => Survivors::Torn(seed),
            _ => Survivors::Prefix(seed as usize % (crash.unsynced.len() + 1)),
        });
        self.base = image.clone();
        self.disk = MemDisk::of(image);
        self.life += 1;
        let (log, recovery) = open(&self.disk, self.life);
        assert!(recovery.last_seq >= acked, "{acked} acknowledged: {recovery:?}");
        assert!(recovery.quarantined.is_empty(), "{recovery:?}");
        self.log = Some(log);
        self.after.split_off(&(recovery.last_seq + 1));
        self.model = self.after.values().next_back().unwrap().clone();
        self.compare();
    }

    fn submit(&mut self, feed: &mut Feed<'_>) {
        let mut batch = Batch::new();
        let mut model = self.model.clone();
        for _ in 0..=feed.below(3) {
            let mut op = Batch::new();
            let id = feed.below(GROUPS);
            let group = model.groups.get(&id).cloned().unwrap_or_default();
            let term = 1 + self.salt / 9;
            match feed.below(12) {
                0 => op = op.clear(id),
                1 => op = op.reset(id, group.last() + feed.below(5), term),
                2 => op = op.reset(id, feed.below(5), term),
                3 | 4 => {
                    let room = group.last() - group.truncated.index;
                    let index = group.truncated.index + feed.below(room + 1);
                    if let Some(entry) = group.entries.get(&index) {
                        op = op.compact(id, index, entry.term);
                    }
                }
                5 => op = op.state(id, vec![self.salt as u8; feed.below(3000) as usize]),
                what => {
                    let back = if what == 6 { feed.below(6) } else { 0 };
                    let first = (group.last() + 1).saturating_sub(back);
                    let first = first.max(group.truncated.index + 1);
                    let len = feed.below(if what == 7 { 9000 } else { 400 }) as usize;
                    let run =
                        (first..=first + feed.below(5)).map(|index| self.entry(index, term, len));
                    op = op.append(id, run.collect());
                }
            }
            self.salt += 1;
            model.apply(&op);
            batch.ops.extend(op.ops);
        }
        let seq = match self.log().submit(LogBatch::from(&batch)) {
            Err(Error::Busy { .. }) => {
                self.log().write_round().unwrap();
                self.log().submit(LogBatch::from(&batch)).unwrap()
            }
            submitted => submitted.unwrap(),
        };
        self.model.apply(&batch);
        self.after.insert(seq.0, self.model.clone());
    }

    fn entry(&self, index: u64, term: u64, len: usize) -> Entry {
        let mut data = format!("{index}#{}", self.salt).into_bytes();
        data.resize(data.len() + len, self.salt as u8);
        Entry { index, term, kind: (self.salt % 3) as u8, data: data.into() }
    }

    /// What makes no sense is refused and leaves no trace.
    fn refused(&mut self, feed: &mut Feed<'_>) {
        let id = feed.below(GROUPS);
        let last = self.model.last(id);
        let truncated = self.model.groups.get(&id).map_or(0, |group| group.truncated.index);
        let entry = |index| Entry { index, term: 1, kind: 0, data: Bytes::from_static(b"never") };
        let batch = Batch::new().state(id, "never");
        let batch = match feed.below(4) {
            0 => batch.append(id, vec![entry(last + 2 + feed.below(9))]),
            1 => batch.append(id, vec![entry(truncated.min(feed.below(9)))]),
            2 => batch.append(id, vec![entry(last + 1), entry(last + 3)]),
            _ => batch.compact(id, last + 1 + feed.below(9), 1),
        };
        // A full queue would be the first thing it hears of.
        self.log().write_round().unwrap();
        let refused = self.log().submit(LogBatch::from(&batch));
        assert!(matches!(refused, Err(Error::InvalidArgument(_))), "{batch:?}: {refused:?}");
    }
}
