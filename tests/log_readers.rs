//! Readers beside submitters, a writer and a purger, on real threads: whatever a reader sees is what a plain
//! map held at some moment between the start and the end of its call. `LOG_READERS_SEEDS` sets how many runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod log_disk;

use catamaran::Error;
use catamaran::env::mem::MemDisk;
use catamaran::env::os::OsDisk;
use catamaran::log::{Entry, Log, LogBatch, Options, Seq};
use catamaran::testkit::{Batch, Group, Model};
use log_disk::Dice;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

const SUBMITTERS: u64 = 3;
const GROUPS_EACH: u64 = 2;
const STEPS: u64 = 250;

/// All that a group has been. The version `completed` is visible for certain, `started` perhaps.
#[derive(Default)]
struct History {
    versions: RwLock<Vec<Arc<Group>>>,
    started: AtomicU64,
    completed: AtomicU64,
}

impl History {
    fn new() -> History {
        let history = History::default();
        history.versions.write().unwrap().push(Arc::default());
        history
    }

    fn start(&self, group: &Group) {
        self.versions.write().unwrap().push(Arc::new(group.clone()));
        self.started.fetch_add(1, Ordering::SeqCst);
    }

    fn complete(&self) {
        self.completed.fetch_add(1, Ordering::SeqCst);
    }

    /// Calls `read` and finds the version that explains what it returned.
    fn explain<T: std::fmt::Debug>(
        &self,
        read: impl FnOnce(&Group) -> T,
        fits: impl Fn(&Group, &T) -> bool,
    ) {
        let from = self.completed.load(Ordering::SeqCst);
        let hint = Arc::clone(&self.versions.read().unwrap()[from as usize]);
        let seen = read(&hint);
        let to = self.started.load(Ordering::SeqCst);
        let versions = self.versions.read().unwrap();
        let candidates = &versions[from as usize..=to as usize];
        if !candidates.iter().any(|group| fits(group, &seen)) {
            let outline = |g: &Arc<Group>| (g.truncated.index, g.last(), g.state.clone());
            let candidates: Vec<_> = candidates.iter().map(outline).collect();
            let seen = format!("{seen:?}").replace("xx", "");
            panic!("no version of {from}..={to} explains {seen:.300}: {candidates:?}");
        }
    }
}

struct Stage {
    log: Log,
    histories: Vec<History>,
    over: AtomicBool,
    looks: AtomicU64,
}

fn entry(group: u64, index: u64, salt: u64, len: usize) -> Entry {
    let mut data = format!("{group}/{index}#{salt}").into_bytes();
    data.resize(data.len() + len, b'x');
    Entry { index, term: 1 + salt / 20, kind: 0, data: data.into() }
}

/// Random operations on its own groups. Returns what they must be in the end.
fn submit(stage: &Stage, who: u64, seed: u64) -> Model {
    let mut dice = Dice(seed | 1);
    let mut model = Model::default();
    let mut last = Seq(0);
    for salt in 0..STEPS {
        let mut batch = Batch::new();
        let mut touched = Vec::new();
        for own in 0..GROUPS_EACH {
            if dice.roll(3) == 0 {
                continue;
            }
            let id = who * GROUPS_EACH + own;
            touched.push(id);
            let group = model.groups.get(&id).cloned().unwrap_or_default();
            let room = group.last() - group.truncated.index;
            batch = match dice.roll(20) {
                0 => batch.clear(id),
                1 => batch.reset(id, group.last() + dice.roll(3), 1 + salt / 20),
                2..=6 if room > 0 => {
                    let index = group.truncated.index + 1 + dice.roll(room);
                    batch.compact(id, index, group.entries[&index].term)
                }
                7..=8 => batch.state(id, format!("state {salt}")),
                what => {
                    let back = if what < 12 { dice.roll(room.min(5) + 1) } else { 0 };
                    let first = group.last() + 1 - back;
                    let len = dice.roll(700) as usize;
                    let run = (first..=first + dice.roll(6)).map(|i| entry(id, i, salt, len));
                    batch.append(id, run.collect())
                }
            };
        }
        let nothing = Group::default();
        model.apply(&batch);
        for id in &touched {
            stage.histories[*id as usize].start(model.groups.get(id).unwrap_or(&nothing));
        }
        last = stage.log.submit(LogBatch::from(&batch)).unwrap();
        for id in &touched {
            stage.histories[*id as usize].complete();
            let applied = model.last(*id).saturating_sub(dice.roll(4));
            stage.log.trim_cache(*id, applied);
        }
        if dice.roll(8) == 0 {
            stage.log.wait(last).unwrap();
            assert!(stage.log.durable() >= last);
        }
    }
    stage.log.wait(last).unwrap();
    model
}

fn read(stage: &Stage, seed: u64) {
    let mut dice = Dice(seed | 1);
    let log = &stage.log;
    while !stage.over.load(Ordering::Acquire) {
        let id = dice.roll(SUBMITTERS * GROUPS_EACH);
        let history = &stage.histories[id as usize];
        match dice.roll(5) {
            0 => history.explain(|_| log.first_index(id), |g, seen| *seen == g.truncated.index + 1),
            1 => history.explain(|_| log.last_index(id), |g, seen| *seen == g.last()),
            2 => history.explain(|_| log.state(id), |g, seen| *seen == g.state),
            3 => {
                let back = dice.roll(12);
                let index = |g: &Group| (g.last() + 2).saturating_sub(back);
                history.explain(
                    |hint| (index(hint), log.term(id, index(hint)).unwrap()),
                    |g, (index, term)| {
                        let below = (*index == g.truncated.index).then_some(g.truncated.term);
                        *term == g.entries.get(index).map(|e| e.term).or(below)
                    },
                );
            }
            _ => {
                let (back, len) = (dice.roll(20), 1 + dice.roll(15));
                let max_bytes = if dice.roll(2) == 0 { u64::MAX } else { dice.roll(3000) };
                let low = |g: &Group| (g.last() + 1).saturating_sub(back).max(1);
                history.explain(
                    |hint| {
                        let low = low(hint);
                        (low, low + len, log.entries(id, low, low + len, max_bytes))
                    },
                    |g, (low, high, seen)| explains(g, *low, *high, max_bytes, seen),
                );
            }
        }
        stage.looks.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether a group that is `group` answers so.
fn explains(
    group: &Group,
    low: u64,
    high: u64,
    max_bytes: u64,
    seen: &catamaran::Result<Vec<Entry>>,
) -> bool {
    let inside = low > group.truncated.index && high <= group.last() + 1;
    match seen {
        Err(Error::InvalidArgument(_)) => !inside,
        Err(_) => false,
        Ok(entries) => {
            let bytes: u64 = entries.iter().map(|e| e.data.len() as u64).sum();
            // How many fewer than the limit allows is the log's to decide; without a limit it gives all.
            let enough = entries.len() as u64 == high - low || max_bytes < u64::MAX;
            inside
                && !entries.is_empty()
                && enough
                && (entries.len() == 1 || bytes <= max_bytes)
                && (low..).zip(entries).all(|(index, e)| group.entries.get(&index) == Some(e))
        }
    }
}

fn scene(seed: u64) -> u64 {
    let disk = Arc::new(MemDisk::default());
    let options = Options {
        segment_bytes: 64 << 10,
        cache_bytes: 8 << 10,
        spare_segments: 2,
        ..Options::default()
    };
    let open = || Log::open(disk.clone(), Path::new("/log"), options.clone()).unwrap().0;
    let histories = (0..SUBMITTERS * GROUPS_EACH).map(|_| History::new()).collect();
    let stage =
        Stage { log: open(), histories, over: AtomicBool::new(false), looks: AtomicU64::new(0) };
    let mut whole = Model::default();
    std::thread::scope(|scope| {
        let stage = &stage;
        let readers: Vec<_> =
            (0..3).map(|n| scope.spawn(move || read(stage, seed * 31 + n))).collect();
        scope.spawn(move || {
            while !stage.over.load(Ordering::Acquire) {
                if stage.log.wait_for_work(Duration::from_millis(50)) {
                    stage.log.write_round().unwrap();
                }
            }
        });
        scope.spawn(move || {
            while !stage.over.load(Ordering::Acquire) {
                stage.log.purge().unwrap();
                stage.log.prepare().unwrap();
                std::thread::yield_now();
            }
        });
        let submitters: Vec<_> = (0..SUBMITTERS)
            .map(|who| scope.spawn(move || submit(stage, who, seed * 977 + who)))
            .collect();
        let results: Vec<_> = submitters.into_iter().map(|thread| thread.join()).collect();
        // Before anything may panic: else the others would never end.
        let ended = stage.looks.load(Ordering::Relaxed);
        while stage.looks.load(Ordering::Relaxed) < ended + 10
            && !readers.iter().any(|reader| reader.is_finished())
        {
            std::thread::yield_now();
        }
        stage.over.store(true, Ordering::Release);
        stage.log.wake_writer();
        for model in results {
            whole.groups.extend(model.unwrap().groups);
        }
    });
    whole.compare(&stage.log).unwrap();
    let looks = stage.looks.load(Ordering::Relaxed);
    drop(stage);
    whole.compare(&open()).unwrap();
    looks
}

#[test]
fn every_read_has_its_moment() {
    let seeds = std::env::var("LOG_READERS_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(4);
    let looks: u64 = (1..=seeds).map(scene).sum();
    println!("{looks} reads of {seeds} runs explained");
}

/// Few live entries of a large body are taken for large ones, and the read ends early.
#[test]
fn the_rest_of_a_compacted_run_does_not_end_a_read() {
    let options = Options { segment_bytes: 1 << 20, cache_bytes: 0, ..Options::default() };
    let (log, _) = Log::open(Arc::new(MemDisk::default()), Path::new("/log"), options).unwrap();
    let run = |range: std::ops::RangeInclusive<u64>, len| {
        Batch::new().append(1, range.map(|index| entry(1, index, 1, len)).collect())
    };
    for batch in [run(1..=100, 1000), run(101..=110, 100), Batch::new().compact(1, 99, 1)] {
        log.write(LogBatch::from(&batch)).unwrap();
    }
    log.trim_cache(1, 110);
    // The cache is looked through when something is submitted.
    log.write(LogBatch::from(&Batch::new().state(2, "s"))).unwrap();
    assert_eq!(log.stats().cache_bytes, 0);
    assert_eq!(log.entries(1, 100, 111, 5000).unwrap().len(), 11);
}

/// `entries` hands out as many as the limit allows, whether they come from the cache or from the disk.
#[test]
fn bounded_reads_of_small_entries() {
    let dir = tempfile::tempdir().unwrap();
    let options =
        Options { segment_bytes: 64 << 10, compress_above: Some(64), ..Options::default() };
    let open = || Log::open(Arc::new(OsDisk), dir.path(), options.clone()).unwrap().0;
    let log = open();
    let sizes: Vec<usize> = (1..=100).map(|n| [1, 0, 1, 7, 200][n % 5]).collect();
    for (group, each) in [(1, 1), (2, 10), (3, 100)] {
        for first in (1..=100usize).step_by(each) {
            let entry = |n: usize| {
                let len = if group == 1 { 1 } else { sizes[n - 1] };
                Entry { index: n as u64, term: 1, kind: 0, data: vec![7; len].into() }
            };
            let mut batch = LogBatch::new();
            batch.append(group, (first..first + each).map(entry));
            log.write(batch).unwrap();
        }
    }
    let count = |log: &Log| {
        let mut counts = Vec::new();
        for group in 1..=3 {
            for low in [1, 2, 37] {
                for max in [0, 1, 2, 50, 208, 500, 5000] {
                    counts.push(log.entries(group, low, 101, max).unwrap().len());
                }
            }
        }
        counts
    };
    let cached = count(&log);
    assert_eq!(log.entries(1, 1, 101, 50).unwrap().len(), 50);
    log.barrier().unwrap();
    drop(log);
    let log = open();
    assert_eq!(count(&log), cached);
    for group in 1..=3 {
        // The last one comes again, as large as it was.
        let len = if group == 1 { 1 } else { sizes[99] };
        let mut batch = LogBatch::new();
        batch.append(group, [Entry { index: 100, term: 1, kind: 0, data: vec![7; len].into() }]);
        log.write(batch).unwrap();
    }
    assert_eq!(count(&log), cached, "a part of them from the cache");
    while log.prepare().unwrap() {}
    assert_eq!(count(&log), cached);
}
