//! Random workloads against a plain map, with reopening, on the real file system.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so when it fails")]

use catamaran::Error;
use catamaran::env::os::OsDisk;
use catamaran::log::{Entry, Log, LogBatch, Options};
use catamaran::types::LogPosition;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Clone, Debug)]
enum Do {
    Append { group: u64, back: u64, count: u64, len: usize },
    State { group: u64, len: usize },
    Compact { group: u64, keep: u64 },
    Reset { group: u64, ahead: u64 },
    Clear { group: u64 },
    Gap { group: u64 },
    Write,
    Purge,
    Trim,
    Reopen,
}

fn step() -> impl Strategy<Value = Do> {
    let group = 0..6u64;
    prop_oneof![
        12 => (group.clone(), 0..3u64, 1..6u64, 0..1500usize)
            .prop_map(|(group, back, count, len)| Do::Append { group, back, count, len }),
        3 => (group.clone(), 0..100usize).prop_map(|(group, len)| Do::State { group, len }),
        5 => (group.clone(), 0..8u64).prop_map(|(group, keep)| Do::Compact { group, keep }),
        1 => (group.clone(), 0..9u64).prop_map(|(group, ahead)| Do::Reset { group, ahead }),
        1 => group.clone().prop_map(|group| Do::Clear { group }),
        1 => group.prop_map(|group| Do::Gap { group }),
        5 => Just(Do::Write),
        2 => Just(Do::Purge),
        2 => Just(Do::Trim),
        1 => Just(Do::Reopen),
    ]
}

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
}

fn check(log: &Log, model: &BTreeMap<u64, Group>) {
    assert_eq!(log.groups(), model.keys().copied().collect::<Vec<_>>());
    for (id, group) in model {
        assert_eq!(log.truncated(*id), group.truncated);
        assert_eq!(
            (log.first_index(*id), log.last_index(*id)),
            (group.truncated.index + 1, group.last())
        );
        assert_eq!(log.state(*id).map(|s| s.to_vec()), group.state);
        let wanted: Vec<Entry> = group.entries.values().cloned().collect();
        let (low, high) = (log.first_index(*id), group.last() + 1);
        assert_eq!(log.entries(*id, low, high, u64::MAX).unwrap(), wanted);
        // In pieces: at least one each time, and no more data than asked for.
        let mut pieces = Vec::new();
        while low + (pieces.len() as u64) < high {
            let piece = log.entries(*id, low + pieces.len() as u64, high, 2000).unwrap();
            let data: usize = piece.iter().map(|e| e.data.len()).sum();
            assert!(!piece.is_empty() && (piece.len() == 1 || data <= 2000));
            pieces.extend(piece);
        }
        assert_eq!(pieces, wanted);
        for entry in &wanted {
            assert_eq!(log.term(*id, entry.index).unwrap(), Some(entry.term));
        }
        assert_eq!(log.term(*id, group.last() + 1).unwrap(), None);
        assert!(log.entries(*id, low.saturating_sub(1), high + 1, 1).is_err());
    }
}

fn run(steps: Vec<Do>, options: Options) {
    let dir = tempfile::tempdir().unwrap();
    let open = || Log::open(Arc::new(OsDisk), dir.path(), options.clone()).unwrap().0;
    // Every other time without compression.
    let plain = Options { compress_above: None, ..options.clone() };
    let mut log = open();
    let mut opened = 1;
    let mut model: BTreeMap<u64, Group> = BTreeMap::new();
    for (salt, step) in steps.into_iter().enumerate() {
        let mut batch = LogBatch::new();
        match step {
            Do::Append { group: id, back, count, len } => {
                let group = model.entry(id).or_default();
                let first = (group.last() + 1).saturating_sub(back).max(group.truncated.index + 1);
                group.entries.split_off(&first);
                for index in first..first + count {
                    let data = vec![salt as u8; len].into();
                    let entry = Entry { index, term: 1 + salt as u64 / 7, kind: 3, data };
                    group.entries.insert(index, entry);
                }
                batch.append(id, group.entries.range(first..).map(|(_, e)| e.clone()));
            }
            Do::State { group: id, len } => {
                let state = vec![salt as u8; len];
                batch.set_state(id, state.clone());
                model.entry(id).or_default().state = Some(state);
            }
            Do::Compact { group: id, keep } => {
                let Some(group) = model.get_mut(&id) else { continue };
                let index = group.last().saturating_sub(keep);
                let Some(entry) = group.entries.get(&index) else { continue };
                group.truncated = LogPosition { index, term: entry.term };
                batch.compact_to(id, group.truncated);
                // Lower than now: no effect.
                batch.compact_to(id, LogPosition { index: index - 1, term: 0 });
                group.entries = group.entries.split_off(&(index + 1));
            }
            Do::Reset { group: id, ahead } => {
                let group = model.entry(id).or_default();
                group.truncated = LogPosition { index: group.last() + ahead, term: 3 };
                batch.reset(id, group.truncated);
                group.entries.clear();
            }
            Do::Clear { group } => {
                batch.clear(group);
                model.remove(&group);
            }
            Do::Gap { group: id } => {
                // A refused batch leaves no trace, not even of its good operations.
                let last = model.get(&id).map_or(0, Group::last);
                batch.set_state(id + 1, "never");
                let data = "never".into();
                batch.append(id, [Entry { index: last + 2, term: 1, kind: 0, data }]);
                assert!(matches!(log.submit(batch), Err(Error::InvalidArgument(_))));
                continue;
            }
            Do::Write => {
                log.write_round().unwrap();
                check(&log, &model);
            }
            Do::Purge => {
                log.purge().unwrap();
                check(&log, &model);
            }
            Do::Trim => model.iter().for_each(|(id, group)| log.trim_cache(*id, group.last())),
            Do::Reopen => {
                log.write_round().unwrap();
                drop(log);
                let options = if opened % 2 == 0 { &options } else { &plain };
                opened += 1;
                log = Log::open(Arc::new(OsDisk), dir.path(), options.clone()).unwrap().0;
                check(&log, &model);
            }
        }
        if !batch.is_empty() {
            log.submit(batch).unwrap();
        }
    }
    check(&log, &model);
    log.barrier().unwrap();
    let stats = log.stats();
    assert!(stats.live_bytes <= stats.disk_bytes);
    drop(log);
    check(&open(), &model);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn like_a_map(
        steps in proptest::collection::vec(step(), 1..160),
        compress_above in proptest::option::of(prop_oneof![Just(0), 0..4000usize]),
    ) {
        let options = Options {
            segment_bytes: 32 << 10,
            cache_bytes: 3000,
            spare_segments: 1,
            compress_above,
            ..Options::default()
        };
        run(steps, options);
    }
}

#[test]
fn a_batch_larger_than_a_segment() {
    // Compressed, it is none; of both there are some.
    for compress_above in [None, Some(0), Some(20_000)] {
        let options = Options {
            segment_bytes: 8 << 10,
            cache_bytes: 0,
            compress_above,
            ..Options::default()
        };
        let steps = (0..12).flat_map(|n| {
            let append = Do::Append { group: n % 2, back: 0, count: 5, len: 700 * n as usize };
            let compact = Do::Compact { group: n % 2, keep: 2 };
            [append, Do::Write, Do::Trim, compact, Do::Purge, Do::Reopen]
        });
        run(steps.collect(), options);
    }
}

#[test]
fn a_full_queue_is_busy() {
    let dir = tempfile::tempdir().unwrap();
    let options =
        Options { segment_bytes: 64 << 10, max_pending_bytes: 8000, ..Options::default() };
    let (log, _) = Log::open(Arc::new(OsDisk), dir.path(), options).unwrap();
    let batch = |index| {
        let mut batch = LogBatch::new();
        let data = vec![1; 3000].into();
        batch.append(1, [Entry { index, term: 1, kind: 0, data }]);
        batch
    };
    log.submit(batch(1)).unwrap();
    log.submit(batch(2)).unwrap();
    // A batch is taken while less than the bound waits; this one fills it.
    log.submit(batch(3)).unwrap();
    assert!(!log.has_room());
    assert!(matches!(log.submit(batch(4)), Err(Error::Busy { .. })));
    assert_eq!(log.last_index(1), 3);
    log.write_round().unwrap();
    log.submit(batch(4)).unwrap();
}

#[test]
fn waiters_share_syncs() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 1 << 20, ..Options::default() };
    let (log, _) = Log::open(Arc::new(OsDisk), dir.path(), options).unwrap();
    // 64 groups written at the same moment cost a sync or a few, not 64.
    let before = log.stats().fsyncs;
    let mut last = None;
    for group in 0..64 {
        let mut batch = LogBatch::new();
        batch.append(group, [Entry { index: 1, term: 1, kind: 0, data: "x".into() }]);
        last = Some(log.submit(batch).unwrap());
    }
    log.wait(last.unwrap()).unwrap();
    assert_eq!(log.stats().fsyncs - before, 1);
    std::thread::scope(|scope| {
        for group in 100..116 {
            let log = &log;
            scope.spawn(move || {
                for index in 1..=50 {
                    let mut batch = LogBatch::new();
                    batch.append(group, [Entry { index, term: 1, kind: 0, data: "x".into() }]);
                    log.write(batch).unwrap();
                }
            });
        }
    });
    let syncs = log.stats().fsyncs - before;
    assert!(syncs < 16 * 50, "{syncs}");
    assert_eq!(log.last_index(115), 50);
}

#[test]
fn inspection_beside_a_live_log_sees_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 256 << 10, spare_segments: 2, ..Options::default() };
    let (log, _) = Log::open(Arc::new(OsDisk), dir.path(), options).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for index in 1..=1500u64 {
                let mut batch = LogBatch::new();
                for group in 0..4 {
                    let data = vec![index as u8; 500].into();
                    batch.append(group, [Entry { index, term: 1, kind: 0, data }]);
                    if index > 200 && index % 50 == 0 {
                        batch.compact_to(group, LogPosition { index: index - 100, term: 1 });
                    }
                }
                log.write(batch).unwrap();
                if index % 100 == 0 {
                    log.purge().unwrap();
                }
            }
            done.store(true, std::sync::atomic::Ordering::Release);
        });
        let mut looks = 0;
        while !done.load(std::sync::atomic::Ordering::Acquire) {
            let report = catamaran::log::inspect::verify(&OsDisk, dir.path()).unwrap();
            assert!(!report.is_rotten(), "{report:#?}");
            looks += 1;
        }
        assert!(looks > 0);
    });
}

#[test]
fn laggards_do_not_pin_segments() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 256 << 10, cache_bytes: 0, ..Options::default() };
    let (log, _) = Log::open(Arc::new(OsDisk), dir.path(), options.clone()).unwrap();
    let data = |group: u64, index: u64| format!("{group}/{index};").repeat(20).into_bytes();
    for index in 1..=200u64 {
        let mut batch = LogBatch::new();
        for group in 0..200u64 {
            let data = data(group, index).into();
            batch.append(group, [Entry { index, term: index / 30, kind: 0, data }]);
            log.trim_cache(group, index);
            // Two groups of 200 never compact.
            if index > 2 && group >= 2 {
                batch.compact_to(group, LogPosition { index: index - 2, term: (index - 2) / 30 });
            }
        }
        log.submit(batch).unwrap();
        log.write_round().unwrap();
        if index % 10 == 0 {
            log.purge().unwrap();
        }
    }
    while log.purge().unwrap().segments > 0 {}
    let stats = log.stats();
    let segments = stats.disk_bytes - stats.spares * options.segment_bytes;
    // A few segments stay whatever lives in them; 8 MB were written.
    assert!(segments <= 2 * stats.live_bytes + 6 * options.segment_bytes, "{stats:?}");
    let whole = |log: &Log| {
        for group in 0..2 {
            let entries = log.entries(group, 1, 201, u64::MAX).unwrap();
            assert_eq!(entries.len(), 200);
            for entry in entries {
                assert_eq!(&entry.data[..], data(group, entry.index));
                assert_eq!(entry.term, entry.index / 30);
            }
        }
        assert_eq!((log.first_index(77), log.last_index(77)), (199, 200));
    };
    whole(&log);
    drop(log);
    let (log, recovery) = Log::open(Arc::new(OsDisk), dir.path(), options).unwrap();
    assert!(recovery.quarantined.is_empty());
    whole(&log);
}

/// A position that no log can have is refused, and leaves no trace.
#[test]
fn impossible_positions_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 64 << 10, ..Options::default() };
    let (log, _) = Log::open(Arc::new(OsDisk), dir.path(), options).unwrap();
    let entry = |index: u64, term: u64| Entry { index, term, kind: 0, data: "data".into() };
    let at = |index: u64, term: u64| LogPosition { index, term };
    let refused = |fill: &dyn Fn(&mut LogBatch)| {
        let mut batch = LogBatch::new();
        fill(&mut batch);
        let outcome = log.write(batch);
        assert!(matches!(outcome, Err(catamaran::Error::InvalidArgument(_))), "{outcome:?}");
    };
    let taken = |fill: &dyn Fn(&mut LogBatch)| {
        let mut batch = LogBatch::new();
        fill(&mut batch);
        log.write(batch).unwrap();
    };
    refused(&|batch| batch.reset(1, at(u64::MAX, 1)));
    refused(&|batch| batch.compact_to(1, at(u64::MAX, 1)));
    // Once it was taken, and every entry behind it refused.
    refused(&|batch| batch.reset(1, at(u64::MAX - 1, 1)));
    assert_eq!((log.first_index(1), log.groups()), (1, vec![]));
    taken(&|batch| batch.reset(2, at(u64::MAX - 2, 1)));
    taken(&|batch| batch.append(2, [entry(u64::MAX - 1, 1)]));
    refused(&|batch| batch.append(2, [entry(u64::MAX, 1)]));
    taken(&|batch| batch.compact_to(2, at(u64::MAX - 1, 1)));
    assert_eq!((log.first_index(2), log.last_index(2)), (u64::MAX, u64::MAX - 1));
    // The term of an entry that was there, of one in the same batch, of one that the batch replaces.
    taken(&|batch| batch.append(1, [entry(1, 1), entry(2, 2), entry(3, 2)]));
    refused(&|batch| batch.compact_to(1, at(2, 1)));
    refused(&|batch| {
        batch.append(1, [entry(2, 5)]);
        batch.compact_to(1, at(2, 2));
    });
    refused(&|batch| {
        batch.append(1, [entry(3, 5)]);
        batch.compact_to(1, at(2, 5));
    });
    assert_eq!((log.first_index(1), log.term(1, 2).unwrap()), (1, Some(2)));
    taken(&|batch| {
        batch.append(1, [entry(3, 5)]);
        batch.compact_to(1, at(2, 2));
        batch.compact_to(1, at(3, 5));
        batch.compact_to(1, at(1, 9));
    });
    assert_eq!(log.truncated(1), at(3, 5));
    taken(&|batch| {
        batch.reset(1, at(7, 7));
        batch.append(1, [entry(8, 8)]);
        batch.compact_to(1, at(8, 8));
    });
    assert_eq!(log.truncated(1), at(8, 8));
}
