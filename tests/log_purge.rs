//! Purge and sealing beside writers and readers: whatever they do to the places of entries, nobody's
//! entries change.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so when it fails")]

mod log_disk;

use catamaran::Error;
use catamaran::env::os::OsDisk;
use catamaran::log::{Entry, Log, LogBatch, Options, Purged};
use catamaran::types::LogPosition;
use log_disk::Dice;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

const WRITERS: u64 = 3;
const EACH: u64 = 4;

fn options() -> Options {
    Options { segment_bytes: 128 << 10, cache_bytes: 8 << 10, ..Options::default() }
}

/// What a group must be.
#[derive(Clone, Default, PartialEq, Debug)]
struct Group {
    truncated: LogPosition,
    entries: BTreeMap<u64, Entry>,
    state: Option<Vec<u8>>,
}

impl Group {
    fn last(&self) -> u64 {
        self.entries.keys().last().copied().unwrap_or(self.truncated.index)
    }

    fn check(&self, log: &Log, id: u64, low: u64, high: u64) {
        let wanted: Vec<Entry> = self.entries.range(low..high).map(|(_, e)| e.clone()).collect();
        assert_eq!(log.entries(id, low, high, u64::MAX).unwrap(), wanted, "group {id}");
        for entry in &wanted {
            assert_eq!(log.term(id, entry.index).unwrap(), Some(entry.term), "group {id}");
        }
    }

    fn check_all(&self, log: &Log, id: u64) {
        assert_eq!(log.truncated(id), self.truncated, "group {id}");
        assert_eq!(log.last_index(id), self.last(), "group {id}");
        assert_eq!(log.state(id).as_deref(), self.state.as_deref(), "group {id}");
        self.check(log, id, self.truncated.index + 1, self.last() + 1);
    }
}

/// One writer's life: its own groups, some of which lag behind for ever.
fn live(log: &Log, writer: u64, steps: u64) -> BTreeMap<u64, Group> {
    let mut dice = Dice(0x9e37_79b9 + writer * 77);
    let mut groups: BTreeMap<u64, Group> = BTreeMap::new();
    for step in 0..steps {
        let mut batch = LogBatch::new();
        for _ in 0..1 + dice.roll(3) {
            let which = dice.roll(EACH);
            let id = writer * EACH + which;
            let group = groups.entry(id).or_default();
            match dice.roll(40) {
                0 if which > 0 => {
                    batch.clear(id);
                    *group = Group::default();
                }
                1 if which > 0 => {
                    group.truncated = LogPosition { index: group.last() + 3, term: step };
                    group.entries.clear();
                    batch.reset(id, group.truncated);
                }
                2..=4 => {
                    let state = format!("{step} of {id}").into_bytes();
                    batch.set_state(id, state.clone());
                    group.state = Some(state);
                }
                // The first group of each writer never compacts.
                5..=16 if which > 0 => {
                    let keep = dice.roll(6);
                    let index = group.last().saturating_sub(keep);
                    if let Some(entry) = group.entries.get(&index) {
                        group.truncated = LogPosition { index, term: entry.term };
                        batch.compact_to(id, group.truncated);
                        group.entries = group.entries.split_off(&(index + 1));
                    }
                }
                what => {
                    let back = if what == 17 { dice.roll(5) } else { 0 };
                    let first =
                        (group.last() + 1).saturating_sub(back).max(group.truncated.index + 1);
                    group.entries.split_off(&first);
                    for index in first..first + 1 + dice.roll(4) {
                        let len = if which == 0 { 40 } else { dice.roll(2500) as usize };
                        let data = format!("{id}/{index}@{step}").into_bytes();
                        let data = [data, vec![step as u8; len]].concat().into();
                        let entry = Entry { index, term: 1 + step / 9, kind: 1, data };
                        group.entries.insert(index, entry);
                    }
                    batch.append(id, group.entries.range(first..).map(|(_, e)| e.clone()));
                }
            }
        }
        log.write(batch).unwrap();
        let id = writer * EACH + dice.roll(EACH);
        let Some(group) = groups.get(&id) else { continue };
        log.trim_cache(id, group.last());
        let low = group.truncated.index + 1 + dice.roll(group.entries.len() as u64 + 1);
        let high = (low + dice.roll(200)).min(group.last() + 1);
        group.check(log, id, low, high);
        if step % 50 == 0 {
            group.check_all(log, id);
        }
    }
    groups.retain(|_, group| *group != Group::default());
    groups
}

#[test]
fn nobody_notices_purge() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(Arc::new(OsDisk), dir.path(), options()).unwrap();
    let done = AtomicBool::new(false);
    let (moved, purged) = (AtomicU64::new(0), AtomicU64::new(0));
    let groups = std::thread::scope(|scope| {
        let keeper = scope.spawn(|| {
            while !done.load(Relaxed) {
                log.prepare().unwrap();
                std::thread::yield_now();
            }
        });
        let purger = scope.spawn(|| {
            while !done.load(Relaxed) {
                let report = log.purge().unwrap();
                assert!(!report.blocked);
                moved.fetch_add(report.moved_bytes, Relaxed);
                purged.fetch_add(report.segments, Relaxed);
                std::thread::yield_now();
            }
        });
        let log = &log;
        let writers: Vec<_> =
            (0..WRITERS).map(|writer| scope.spawn(move || live(log, writer, 1_000))).collect();
        let results: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        done.store(true, Relaxed);
        keeper.join().unwrap();
        purger.join().unwrap();
        let mut groups = BTreeMap::new();
        results.into_iter().for_each(|result| groups.extend(result.unwrap()));
        groups
    });
    let check = |log: &Log| {
        assert_eq!(log.groups(), groups.keys().copied().collect::<Vec<_>>());
        groups.iter().for_each(|(id, group)| group.check_all(log, *id));
    };
    check(&log);
    log.barrier().unwrap();
    let stats = log.stats();
    println!(
        "{} bytes moved, {} segments gone, {stats:?}",
        moved.load(Relaxed),
        purged.load(Relaxed)
    );
    assert!(moved.load(Relaxed) > 0 && purged.load(Relaxed) > 0);
    assert!(stats.write_amplification() >= 1.0 && stats.space_amplification() >= 1.0);
    drop(log);
    let (log, recovery) = Log::open(Arc::new(OsDisk), dir.path(), options()).unwrap();
    assert!(recovery.quarantined.is_empty() && recovery.harmless.is_empty(), "{recovery:?}");
    check(&log);
}

/// One entry; group 2 needs none but its last.
fn put(log: &Log, group: u64, index: u64, len: usize) {
    let mut batch = LogBatch::new();
    let data = vec![group as u8 + 1; len].into();
    batch.append(group, [Entry { index, term: 1, kind: 0, data }]);
    if group == 2 && index > 1 {
        batch.compact_to(2, LogPosition { index: index - 1, term: 1 });
    }
    log.write(batch).unwrap();
}

/// Entries that cannot be read stop purge where they are, and nothing else.
#[test]
fn rot_blocks_purge_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(Arc::new(OsDisk), dir.path(), options()).unwrap();
    let put = |group: u64, index: u64, len: usize| put(&log, group, index, len);
    put(1, 1, 300);
    (1..200).for_each(|index| put(2, index, 3000));
    let path = dir.path().join("0000000000000001.seg");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(20).position(|window| window == [2; 20]).unwrap();
    bytes[at + 9] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    log.trim_cache(1, 1);
    log.trim_cache(2, 199);
    let purged = log.purge().unwrap();
    assert_eq!((purged.blocked, purged.segments), (true, 0), "{purged:?}");
    // Out of the cache, too.
    log.rest(1);
    let read = log.entries(1, 1, 2, 0);
    assert!(matches!(read, Err(Error::Corruption { .. } | Error::Quarantined { .. })), "{read:?}");
    put(2, 200, 10);
    put(3, 1, 10);
    assert_eq!(log.purge().unwrap().segments, 0);
    // The group is given up: purge goes on.
    let mut batch = LogBatch::new();
    batch.clear(1);
    log.write(batch).unwrap();
    assert!(log.purge().unwrap().segments > 0);
    assert_eq!((log.last_index(2), log.last_index(3)), (200, 1));
}

/// Rot in the middle: it stays, with all that is newer, and what is older goes all the same.
#[test]
fn purge_takes_what_is_older_than_rot() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(Arc::new(OsDisk), dir.path(), options()).unwrap();
    let put = |group: u64, index: u64, len: usize| put(&log, group, index, len);
    // Two laggards, some segments apart.
    put(1, 1, 300);
    (1..100).for_each(|index| put(2, index, 3000));
    put(3, 1, 300);
    (100..200).for_each(|index| put(2, index, 3000));
    let segments = || -> Vec<PathBuf> {
        let files = std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path());
        let mut found: Vec<_> =
            files.filter(|p| p.extension().is_some_and(|e| e == "seg")).collect();
        found.sort();
        found
    };
    let of_third = |bytes: &[u8]| bytes.windows(20).position(|window| window == [4; 20]);
    let before = segments();
    let place = before.iter().position(|path| of_third(&std::fs::read(path).unwrap()).is_some());
    let place = place.unwrap();
    assert!(place > 1 && place + 2 < before.len(), "{place} of {}", before.len());
    let mut bytes = std::fs::read(&before[place]).unwrap();
    let at = of_third(&bytes).unwrap();
    bytes[at + 9] ^= 1;
    std::fs::write(&before[place], &bytes).unwrap();
    [(1, 1), (2, 199), (3, 1)].iter().for_each(|(group, last)| log.trim_cache(*group, *last));

    log.rest(3);
    let purged: Vec<Purged> = (0..6).map(|_| log.purge().unwrap()).collect();
    assert!(purged[0].blocked, "{purged:?}");
    assert_eq!(
        purged.iter().map(|purged| purged.segments).sum::<u64>(),
        place as u64,
        "{purged:?}"
    );
    assert_eq!(segments()[0], before[place]);
    assert_eq!(log.entries(1, 1, 2, 0).unwrap()[0].data.len(), 300);
    assert!(matches!(log.entries(3, 1, 2, 0), Err(Error::Corruption { .. })));
}

/// A store that falls behind with purging catches up in steps of a known size, and loses nothing on the way.
#[test]
fn a_call_gives_back_eight_segments_at_most() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(Arc::new(OsDisk), dir.path(), options()).unwrap();
    let put = |group: u64, index: u64| {
        let mut batch = LogBatch::new();
        let entry = Entry { index, term: 1, kind: 0, data: vec![7; 16 << 10].into() };
        batch.append(group, [entry]);
        log.write(batch).unwrap();
    };
    // One that lives on, and thirty segments of what dies.
    put(2, 1);
    (1..=240).for_each(|index| put(1, index));
    let segments = log.stats().segments;
    assert!(segments > 3 * Purged::MOST, "{segments}");
    let mut batch = LogBatch::new();
    batch.compact_to(1, LogPosition { index: 239, term: 1 });
    log.write(batch).unwrap();

    let mut calls = Vec::new();
    loop {
        let purged = log.purge().unwrap();
        assert_eq!(purged.more, purged.segments == Purged::MOST, "{purged:?}");
        assert!(purged.moved_bytes <= options().segment_bytes, "{purged:?}");
        calls.push(purged.segments);
        if !purged.more {
            break;
        }
    }
    assert!(calls.len() > 3 && calls.iter().all(|segments| *segments <= Purged::MOST), "{calls:?}");
    assert!(log.stats().segments <= 4, "{:?}", log.stats());
    drop(log);
    let (log, _) = Log::open(Arc::new(OsDisk), dir.path(), options()).unwrap();
    assert_eq!(log.entries(2, 1, 2, 0).unwrap().len(), 1);
    assert_eq!((log.first_index(1), log.last_index(1)), (240, 240));
}

/// A batch larger than a segment makes its file grow. One group that lagged behind with such a batch once held up all
/// that came after it, for good and without a word: its bytes were more than a call was to move.
#[test]
fn a_laggard_larger_than_a_segment_pins_nothing() {
    for len in [60_000, 70_000, 200_000] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { segment_bytes: 64 << 10, cache_bytes: 0, ..Options::default() };
        let open = || Log::open(Arc::new(OsDisk), dir.path(), options.clone()).unwrap().0;
        let entry = |index: u64, len: usize| {
            [Entry { index, term: 1, kind: 0, data: vec![index as u8; len].into() }]
        };
        let log = open();
        let mut batch = LogBatch::new();
        batch.append(1, entry(1, len));
        log.write(batch).unwrap();
        log.trim_cache(1, 1);
        let (mut moved, mut most) = (0, 0);
        for index in 1..=1200 {
            let mut batch = LogBatch::new();
            batch.append(2, entry(index, 8000));
            if index > 2 {
                batch.compact_to(2, LogPosition { index: index - 2, term: 1 });
            }
            log.write(batch).unwrap();
            log.trim_cache(2, index);
            if index % 20 == 0 {
                log.prepare().unwrap();
                while log.purge().unwrap().more {}
                let stats = log.stats();
                moved = stats.moved_bytes;
                most = most.max(stats.disk_bytes);
            }
        }
        // What lives, four segments and the thresholds' share, and spares; 9.6 MB were written.
        println!("{len} bytes: {most} on the disk at most, {moved} moved, {:?}", log.stats());
        assert!(moved >= len as u64, "{moved} bytes moved");
        assert!(most <= 4 * len as u64 + (1 << 20), "{most} bytes on the disk");
        drop(log);
        let log = open();
        assert_eq!(log.entries(1, 1, 2, u64::MAX).unwrap(), entry(1, len));
        assert_eq!((log.first_index(2), log.last_index(2)), (1199, 1200));
    }
}
