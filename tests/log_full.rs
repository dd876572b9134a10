//! A full disk: purge gets out of it with what room is left, however often it is called and the log is
//! opened; and an idle log is at rest, whatever its groups state.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod log_disk;

use catamaran::log::{Entry, Log, LogBatch, Options, Recovery};
use catamaran::types::LogPosition;
use catamaran::{Error, Result};
use log_disk::MemDisk;
use log_disk::faults::{Call, Fault, FaultDisk};
use std::path::Path;
use std::sync::Arc;

const SEGMENT: u64 = 256 << 10;

fn options() -> Options {
    Options {
        segment_bytes: SEGMENT,
        cache_bytes: 0,
        max_pending_bytes: 8 << 20,
        ..Options::default()
    }
}

fn open(disk: &MemDisk) -> Result<(Log, Recovery)> {
    Log::open(Arc::new(disk.clone()), Path::new("/log"), options())
}

fn entry(index: u64, len: usize) -> Entry {
    Entry { index, term: 1, kind: 0, data: vec![(index % 251) as u8; len].into() }
}

fn compact(log: &Log, group: u64, index: u64) -> Result<()> {
    let mut batch = LogBatch::new();
    batch.compact_to(group, LogPosition { index, term: 1 });
    log.submit(batch).map(drop)
}

/// A full disk: of each batch 2800 bytes for group 1 and `lag` for group 2. Returns the last index of both.
fn fill(disk: &MemDisk, log: &Log, lag: usize) -> u64 {
    disk.state().capacity = Some(24 * SEGMENT);
    for index in 1.. {
        let mut batch = LogBatch::new();
        batch.append(1, [entry(index, 2800)]);
        batch.append(2, [entry(index, lag)]);
        let seq = log.submit(batch).unwrap();
        match log.wait(seq) {
            Ok(()) => {}
            Err(Error::DiskFull { .. }) => return index,
            Err(error) => panic!("{error}"),
        }
    }
    unreachable!()
}

/// Purges until nothing goes any more.
fn purge(log: &Log) -> u64 {
    let mut gone = 0;
    let mut idle = 0;
    while idle < 3 {
        let segments = log.purge().unwrap().segments;
        gone += segments;
        idle = if segments == 0 { idle + 1 } else { 0 };
    }
    gone
}

fn check(log: &Log, last: u64, lag: usize) {
    let found = log.entries(2, 1, last + 1, u64::MAX).unwrap();
    assert_eq!(found.len() as u64, last);
    assert!(found.iter().zip(1..).all(|(found, index)| *found == entry(index, lag)));
    assert_eq!(log.entries(1, last, last + 1, 0).unwrap(), [entry(last, 2800)]);
}

fn serves(log: &Log, last: u64) {
    for n in 1..=100 {
        let mut batch = LogBatch::new();
        batch.append(1, [entry(last + n, 2800)]);
        log.write(batch).unwrap();
    }
}

#[test]
fn a_full_disk_gets_room_beside_laggards() {
    for (lag, spare_segments) in [(1000, 1), (1000, 2), (1250, 1), (1250, 2)] {
        let options = Options { spare_segments, ..options() };
        let disk = MemDisk::default();
        let (log, _) = Log::open(Arc::new(disk.clone()), Path::new("/log"), options).unwrap();
        let last = fill(&disk, &log, lag);
        compact(&log, 1, last - 1).unwrap();
        assert!(purge(&log) >= 12, "{lag}: {:?}", log.stats());
        log.barrier().unwrap();
        serves(&log, last);
        drop(log);
        let (log, recovery) = open(&disk).unwrap();
        assert!(recovery.quarantined.is_empty(), "{recovery:?}");
        compact(&log, 1, last).unwrap();
        let found = log.entries(2, 1, last + 1, u64::MAX).unwrap();
        assert!(found.iter().zip(1..=last).all(|(found, index)| *found == entry(index, lag)));
        assert_eq!(log.last_index(1), last + 100);
    }
}

/// Nothing can go: however often it is tried, nothing is piled up, and the way out stays open.
#[test]
fn what_waits_does_not_grow_while_purge_fails() {
    let disk = MemDisk::default();
    let (log, _) = open(&disk).unwrap();
    let last = fill(&disk, &log, 2000);
    let mut pending = None;
    for call in 0..50 {
        // Half of what is there dies, bit by bit; what is left is too much to move, at first.
        compact(&log, 1, last * call / 60).unwrap();
        let before = log.stats().pending_bytes;
        match log.purge() {
            Ok(purged) if purged.segments > 0 => {}
            _ => assert!(log.stats().pending_bytes <= before, "{:?}", log.stats()),
        }
        pending.get_or_insert(before);
    }
    compact(&log, 1, last).unwrap();
    compact(&log, 2, last - 1).unwrap();
    assert!(purge(&log) > 0);
    log.barrier().unwrap();
    assert_eq!(log.stats().pending_bytes, 0);
    assert!(log.stats().segments <= 3, "{:?}", log.stats());
    serves(&log, last);
}

/// Even what takes all room away in the middle of a purge leaves one record waiting, not one for each call.
#[test]
fn purge_queues_one_record_at_a_time() {
    let disk = MemDisk::default();
    let faults = FaultDisk::over_journal(&disk);
    let dir = Path::new("/log");
    let (log, _) = Log::open(Arc::new(faults.clone()), dir, options()).unwrap();
    for index in 1..=400 {
        let mut batch = LogBatch::new();
        batch.append(1, [entry(index, 2800)]);
        batch.append(2, [entry(index, 300)]);
        log.write(batch).unwrap();
    }
    compact(&log, 1, 399).unwrap();
    log.barrier().unwrap();
    faults.plan().stuffed = true;
    // What lives has to do so for two calls, perhaps.
    if let Ok(purged) = log.purge() {
        assert_eq!(purged.segments, 0);
    }
    let mut waits = None;
    for call in 0..50 {
        let full = log.purge();
        assert!(matches!(full, Err(Error::DiskFull { .. })), "call {call}: {full:?}");
        let pending = log.stats().pending_bytes;
        assert!(pending > 0 && pending <= SEGMENT / 4 + 4096, "call {call}: {:?}", log.stats());
        assert_eq!(*waits.get_or_insert(pending), pending, "call {call}");
    }
    faults.plan().stuffed = false;
    purge(&log);
    log.barrier().unwrap();
    assert_eq!(log.entries(2, 1, 401, u64::MAX).unwrap().len(), 400);
    assert_eq!(log.stats().pending_bytes, 0);
}

#[test]
fn a_full_disk_opens_again_and_again() {
    for rest in [0, 1] {
        let disk = MemDisk::default();
        let (log, _) = open(&disk).unwrap();
        let last = fill(&disk, &log, 1000);
        if rest == 1 {
            // A segment that is not short.
            compact(&log, 1, last / 2).unwrap();
            log.purge().unwrap();
            let _ = log.barrier();
        }
        drop(log);
        let mut last = None;
        for n in 0..5 {
            let (log, recovery) = open(&disk).unwrap_or_else(|error| panic!("open {n}: {error}"));
            assert!(recovery.quarantined.is_empty(), "{recovery:?}");
            assert!(log.stats().spares > 0, "open {n}: {:?}", log.stats());
            // The first open may add a record that repeats others; the next ones renew it.
            let first = *last.get_or_insert(recovery.last_seq);
            assert!((first..=first + 1).contains(&recovery.last_seq), "{recovery:?}");
        }
        let (log, _) = open(&disk).unwrap();
        let last = log.last_index(1);
        compact(&log, 1, last - 1).unwrap();
        assert!(purge(&log) >= 10, "{:?}", log.stats());
        check(&log, last, 1000);
        serves(&log, last);
    }
}

/// A purge was cut off when it had taken the reserve: some room, but not for a segment.
#[test]
fn a_full_disk_opens_without_a_reserve() {
    let disk = MemDisk::default();
    let (log, _) = open(&disk).unwrap();
    let last = fill(&disk, &log, 1000);
    drop(log);
    {
        let mut state = disk.state();
        let spare = |path: &std::path::PathBuf| path.extension().is_some_and(|e| e == "free");
        let spares: Vec<_> = state.image.names.keys().filter(|path| spare(path)).cloned().collect();
        assert!(!spares.is_empty());
        for path in spares {
            let inode = state.image.names.remove(&path).unwrap();
            state.image.files.remove(&inode);
        }
        let used: u64 = state.image.files.values().map(|file| file.len() as u64).sum();
        state.capacity = Some(used + SEGMENT / 2 + 10_000);
    }
    for n in 0..4 {
        let (log, recovery) = open(&disk).unwrap_or_else(|error| panic!("open {n}: {error}"));
        assert!(recovery.quarantined.is_empty(), "{recovery:?}");
        assert!(log.last_index(1) + 1 >= last, "open {n}");
    }
    let (log, _) = open(&disk).unwrap();
    let last = log.last_index(1);
    compact(&log, 1, last).unwrap();
    compact(&log, 2, last).unwrap();
    assert!(purge(&log) > 10, "{:?}", log.stats());
    log.barrier().unwrap();
    serves(&log, last);
}

/// What groups state is more than a segment holds, and the disk is full.
#[test]
fn states_move_on_a_full_disk() {
    let disk = MemDisk::default();
    let options = Options { segment_bytes: 64 << 10, spare_segments: 1, ..options() };
    let (log, _) = Log::open(Arc::new(disk.clone()), Path::new("/log"), options).unwrap();
    for group in 10..2_010 {
        let mut batch = LogBatch::new();
        batch.set_state(group, vec![7; 60]);
        log.submit(batch).unwrap();
        if group % 100 == 99 {
            log.write_round().unwrap();
        }
    }
    log.barrier().unwrap();
    let mut last = 0;
    disk.state().capacity = Some(20 * (64 << 10));
    loop {
        last += 1;
        let mut batch = LogBatch::new();
        batch.append(1, [entry(last, 3500)]);
        let seq = log.submit(batch).unwrap();
        if let Err(error) = log.wait(seq) {
            assert!(matches!(error, Error::DiskFull { .. }), "{error}");
            break;
        }
    }
    compact(&log, 1, last - 1).unwrap();
    assert!(purge(&log) > 5, "{:?}", log.stats());
    log.barrier().unwrap();
    assert!((10..2_010).all(|group| log.state(group).unwrap() == vec![7; 60]));
    serves(&log, last);
}

fn idle_bytes(log: &Log, calls: u64) -> u64 {
    let mut before = log.stats();
    for _ in 0..calls {
        before = log.stats();
        log.purge().unwrap();
    }
    let after = log.stats();
    after.bytes_written - before.bytes_written
}

#[test]
fn an_idle_log_of_states_is_at_rest() {
    for len in [40, 100] {
        let options = Options { segment_bytes: 64 << 10, ..options() };
        let disk = Arc::new(MemDisk::default());
        let (log, _) = Log::open(disk, Path::new("/log"), options).unwrap();
        for group in 0..3_000 {
            let mut batch = LogBatch::new();
            batch.append(group, [entry(1, 64)]);
            batch.compact_to(group, LogPosition { index: 1, term: 1 });
            batch.set_state(group, vec![7; len]);
            log.submit(batch).unwrap();
            if group % 100 == 99 {
                log.write_round().unwrap();
            }
        }
        assert!(log.stats().space_amplification() > 1.0, "{:?}", log.stats());
        assert_eq!(idle_bytes(&log, 30), 0);
        // Garbage outweighs them: they move, and what lay behind them goes.
        for index in 2..=400 {
            let mut batch = LogBatch::new();
            batch.append(1, [entry(index, 3_000)]);
            batch.compact_to(1, LogPosition { index, term: 1 });
            log.write(batch).unwrap();
        }
        let used = log.stats().used_bytes;
        assert!(purge(&log) > 10);
        assert!(log.stats().used_bytes < used / 2, "{:?}", log.stats());
        assert_eq!(idle_bytes(&log, 30), 0);
        assert_eq!(log.state(2_999).unwrap(), vec![7; len]);
    }
}

/// A call that ends because it has moved its share says so.
#[test]
fn a_call_that_has_done_its_share_says_that_there_is_more() {
    let (log, _) = open(&MemDisk::default()).unwrap();
    for index in 1..=900 {
        let mut batch = LogBatch::new();
        batch.append(1, [entry(index, 2800)]);
        batch.append(2, [entry(index, 700)]);
        log.write(batch).unwrap();
    }
    compact(&log, 1, 899).unwrap();
    log.barrier().unwrap();
    let mut short = 0;
    for _ in 0..3 {
        let purged = log.purge().unwrap();
        if purged.segments > 0 && purged.segments < catamaran::log::Purged::MOST {
            assert!(purged.more, "{purged:?}");
            short += 1;
        }
    }
    assert!(short > 0);
}

/// Any operation of a purge or of keeping spares ready that fails for good, reads apart, ends the log; and
/// the next open finds every file.
#[test]
fn a_failed_sync_ends_the_log_whoever_asked_for_it() {
    let build = || {
        let disk = MemDisk::default();
        let faults = FaultDisk::over_journal(&disk);
        let options = Options { segment_bytes: 64 << 10, ..options() };
        let (log, _) = Log::open(Arc::new(faults.clone()), Path::new("/log"), options).unwrap();
        for index in 1..=60 {
            let mut batch = LogBatch::new();
            batch.append(1, [entry(index, 3500)]);
            batch.set_state(2, "x");
            log.write(batch).unwrap();
        }
        compact(&log, 1, 59).unwrap();
        log.barrier().unwrap();
        (disk, faults, log)
    };
    let ends = |call: &Call| matches!(call, Call::Sync | Call::SyncDir | Call::Rename);
    for what in ["purge", "prepare"] {
        let mut hits = 0;
        for k in 0.. {
            let (disk, faults, log) = build();
            let calls = faults.plan().calls;
            faults.plan().at = Some((calls + k, Fault::Eio));
            let result = match what {
                "purge" => log.purge().map(drop),
                _ => log.prepare().map(drop),
            };
            let Some((call, _)) = faults.plan().hit.clone() else { break };
            faults.plan().at = None;
            if !ends(&call) {
                continue;
            }
            hits += 1;
            assert!(result.is_err(), "{what}, operation {k}, {call:?}");
            let mut batch = LogBatch::new();
            batch.set_state(2, "y");
            let after = log.write(batch);
            assert!(matches!(after, Err(Error::Stopped { .. })), "{what} {k} {call:?}: {after:?}");
            drop(log);
            let options = Options { segment_bytes: 64 << 10, ..options() };
            let (log, _) = Log::open(Arc::new(disk.clone()), Path::new("/log"), options).unwrap();
            assert_eq!(log.state(2).unwrap(), "x");
            assert_eq!(log.last_index(1), 60);
            let stats = log.stats();
            let files = disk.state().image.names.len() as u64;
            assert_eq!(stats.segments + stats.spares, files, "{what} {k} {call:?}");
        }
        assert!(hits > 1, "{what}: {hits}");
    }
}

/// Options that could only lead into a corner are refused, and the field is named.
#[test]
fn options_that_make_no_sense_are_refused() {
    let sound = Options::default();
    for (field, options) in [
        ("spare_segments", Options { spare_segments: 0, ..sound.clone() }),
        ("spare_segments", Options { spare_segments: 1025, ..sound.clone() }),
        ("spare_segments", Options { spare_segments: usize::MAX, ..sound.clone() }),
        ("max_pending_bytes", Options { max_pending_bytes: 0, ..sound.clone() }),
        ("rewrite_percent", Options { rewrite_percent: 101, ..sound.clone() }),
        ("rewrite_percent", Options { rewrite_percent: u64::MAX, ..sound.clone() }),
        ("segment_bytes", Options { segment_bytes: 4096, ..sound.clone() }),
    ] {
        let opened = Log::open(Arc::new(MemDisk::default()), Path::new("/log"), options.clone());
        for refused in [options.validate(), opened.map(drop)] {
            let Err(Error::InvalidArgument(what)) = refused else { panic!("{field}: {refused:?}") };
            assert!(what.contains(field), "{what}");
        }
    }
    let least = Options { spare_segments: 1, max_pending_bytes: 1, rewrite_percent: 0, ..sound };
    least.validate().unwrap();
    Options { rewrite_percent: 100, ..least }.validate().unwrap();
}

/// What has no bound of its own may be as large as its type is: nothing is computed from it that could overflow.
#[test]
fn options_as_large_as_can_be_work() {
    let most = Options {
        segment_bytes: 64 << 10,
        spare_segments: 1024,
        max_pending_bytes: usize::MAX,
        cache_bytes: usize::MAX,
        rewrite_percent: 100,
        compress_above: Some(usize::MAX),
    };
    let disk = MemDisk::default();
    let (log, _) = Log::open(Arc::new(disk), Path::new("/log"), most).unwrap();
    for index in 1..=300 {
        let mut batch = LogBatch::new();
        batch.append(1, [Entry { index, term: 1, kind: 0, data: vec![1; 1000].into() }]);
        batch.compact_to(1, LogPosition { index: index - 1, term: 1 });
        log.write(batch).unwrap();
        assert!(log.has_room() && !log.is_crowded());
    }
    log.purge().unwrap();
    assert!(log.prepare().unwrap() && log.stats().spares < 1024);
}

/// What is to be moved is one entry larger than a segment. For that a file is made that holds it, or, where there is no
/// room for one, nothing is begun: it does not fly to a file that cannot grow, ahead of everybody.
#[test]
fn a_laggard_larger_than_a_segment_waits_for_room() {
    let disk = MemDisk::default();
    let (log, _) = open(&disk).unwrap();
    let large = entry(1, SEGMENT as usize + 50_000);
    let mut batch = LogBatch::new();
    batch.append(3, [large.clone()]);
    log.write(batch).unwrap();
    let last = fill(&disk, &log, 0);
    compact(&log, 1, last - 1).unwrap();
    let before = log.stats();
    for _ in 0..5 {
        let full = log.purge();
        assert!(matches!(full, Err(Error::DiskFull { .. })), "{full:?}");
        let now = log.stats();
        assert_eq!((now.batches, now.pending_bytes), (before.batches, before.pending_bytes));
    }
    disk.state().capacity = Some(26 * SEGMENT);
    assert!(purge(&log) >= 12, "{:?}", log.stats());
    serves(&log, last);
    drop(log);
    let (log, _) = open(&disk).unwrap();
    assert_eq!(log.entries(3, 1, 2, u64::MAX).unwrap(), [large]);
    assert_eq!(log.last_index(1), last + 100);
}
