//! A disk without any room: the log opens all the same, and footers that found none are written when there is some.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod log_disk;

use catamaran::log::{Entry, Log, LogBatch, Options};
use catamaran::types::LogPosition;
use log_disk::faults::{Fault, FaultDisk};
use log_disk::{Crash, Image, MemDisk, Survivors};
use std::path::Path;
use std::sync::Arc;

fn options(segment_bytes: u64) -> Options {
    Options { segment_bytes, cache_bytes: 0, ..Options::default() }
}

/// Large enough that the room which is kept for a footer is more than a few blocks.
const LARGE: u64 = 512 << 10;
const SMALL: u64 = 64 << 10;

fn open(disk: &MemDisk) -> Log {
    let disk = Arc::new(disk.clone());
    let (log, recovery) = Log::open(disk, Path::new("/log"), options(LARGE)).unwrap();
    assert!(recovery.quarantined.is_empty(), "{recovery:?}");
    log
}

fn entry(index: u64, len: usize) -> Entry {
    Entry { index, term: 1, kind: 0, data: vec![index as u8; len].into() }
}

fn used(disk: &MemDisk) -> u64 {
    disk.state().image.files.values().map(|file| file.len() as u64).sum()
}

/// Takes the spares away, and all room.
fn fill_up(disk: &MemDisk) {
    {
        let image = &mut disk.state().image;
        image.names.retain(|name, _| name.extension().is_some_and(|ext| ext == "seg"));
        image.trim();
    }
    disk.state().capacity = Some(used(disk));
}

fn put(log: &Log, group: u64, index: u64, len: usize) -> u64 {
    let mut batch = LogBatch::new();
    batch.append(group, [entry(index, len)]);
    log.write(batch).unwrap().0
}

fn check(log: &Log, group: u64, last: u64, len: usize) {
    let found = log.entries(group, 1, last + 1, u64::MAX).unwrap();
    assert!(found.iter().zip(1..=last).all(|(found, index)| *found == entry(index, len)));
    assert_eq!(log.last_index(group), last);
}

/// Wherever the last segment ends: whether it is short or full, and whether all of it is stated.
#[test]
fn a_log_opens_on_a_disk_without_any_room() {
    for last in [1, 2, 30, 60, 90].into_iter().chain(110..124) {
        for barrier in [0, 1] {
            let disk = MemDisk::default();
            let log = open(&disk);
            (1..=last).for_each(|index| _ = put(&log, 1, index, 2800));
            if barrier > 0 {
                log.barrier().unwrap();
            }
            drop(log);
            fill_up(&disk);
            // And again.
            for _ in 0..4 {
                let log = open(&disk);
                check(&log, 1, last, 2800);
                // A record that repeats others may follow, or take the place of the barrier's.
                assert!((last + barrier..=last + 1).contains(&log.durable().0));
            }
            disk.state().capacity = None;
            let log = open(&disk);
            (last + 1..=last + 300).for_each(|index| _ = put(&log, 1, index, 2800));
            let mut batch = LogBatch::new();
            batch.compact_to(1, LogPosition { index: last + 299, term: 1 });
            log.write(batch).unwrap();
            while log.purge().unwrap().segments > 0 {}
            drop(log);
            let (log, recovery) =
                Log::open(Arc::new(disk.clone()), Path::new("/log"), options(LARGE)).unwrap();
            assert!(recovery.harmless.is_empty(), "{recovery:?}");
            let end = last + 300;
            assert_eq!(log.entries(1, end, end + 1, 0).unwrap(), [entry(end, 2800)]);
        }
    }
}

/// Crashes of the disk's last moments: what is left opens (there is room by then, or none), and says the same.
fn crash_everywhere(start: Image, disk: &MemDisk, check: impl Fn(&MemDisk)) {
    let journal = std::mem::take(&mut disk.state().journal);
    let mut crash = Crash { certain: start, ..Crash::default() };
    for n in 0..=journal.len() as u64 {
        let kinds = [
            Survivors::None,
            Survivors::All,
            Survivors::Subset(n),
            Survivors::Subset(n + 1000),
            Survivors::Torn(n),
            Survivors::Mixed(n),
        ];
        for survivors in kinds {
            check(&MemDisk::of(crash.image(survivors)));
        }
        if let Some(step) = journal.get(n as usize) {
            crash.step(step);
        }
    }
}

#[test]
fn a_crash_of_such_an_open_loses_nothing() {
    for last in [3, 60, 116, 118, 119, 120] {
        let disk = MemDisk::default();
        let log = open(&disk);
        (1..=last).for_each(|index| _ = put(&log, 1, index, 2800));
        drop(log);
        fill_up(&disk);
        let capacity = disk.state().capacity;
        let start = disk.state().image.clone();
        disk.state().journal.clear();
        drop(open(&disk));
        crash_everywhere(start, &disk, |disk| {
            disk.state().capacity = capacity;
            check(&open(disk), 1, last, 2800);
            disk.state().capacity = None;
            check(&open(disk), 1, last, 2800);
        });
    }
}

const GROUPS: u64 = 95;

/// Records of so many small entries that a footer needs more than a segment leaves to it; all of them live, so that
/// purge has nothing else to do.
fn small(log: &Log, records: std::ops::Range<u64>) {
    for index in records {
        let mut batch = LogBatch::new();
        (1..=GROUPS).for_each(|group| batch.append(group, [entry(index, 24)]));
        log.write(batch).unwrap();
    }
}

#[test]
fn a_footer_that_found_no_room_is_written_later() {
    // What brings the room to its notice: another segment, or purge's patience.
    for begins_another in [0, 1] {
        let disk = MemDisk::default();
        let faults = FaultDisk::over_journal(&disk);
        let dir = Path::new("/log");
        let (log, _) = Log::open(Arc::new(faults.clone()), dir, options(SMALL)).unwrap();
        small(&log, 1..150);
        disk.state().capacity = Some(used(&disk));
        for _ in 0..4 {
            log.purge().unwrap();
        }
        assert_eq!(log.stats().footer_bytes, 0);
        assert!(log.stats().segments > 8, "{:?}", log.stats());
        // Nothing is tried over and over.
        let before = faults.plan().calls;
        for _ in 0..40 {
            log.purge().unwrap();
        }
        assert_eq!(faults.plan().calls, before);

        disk.state().capacity = None;
        if begins_another > 0 {
            small(&log, 150..165);
            log.purge().unwrap();
        } else {
            (0..64).for_each(|_| _ = log.purge().unwrap());
        }
        let stats = log.stats();
        assert!(stats.footer_bytes > 8 * 4096, "{stats:?}");
        log.barrier().unwrap();
        drop(log);
        let (log, recovery) = Log::open(Arc::new(disk.clone()), dir, options(SMALL)).unwrap();
        assert!(recovery.footers > 4 && recovery.harmless.is_empty(), "{recovery:?}");
        check(&log, GROUPS, if begins_another > 0 { 164 } else { 149 }, 24);
    }
}

/// Whichever write of a footer finds no room, it is finished later, and no crash on the way shows half of it.
#[test]
fn a_footer_may_find_no_room_at_any_write() {
    let dir = Path::new("/log");
    let mut hits = 0;
    for k in 0..40 {
        let disk = MemDisk::default();
        let faults = FaultDisk::over_journal(&disk);
        let (log, _) = Log::open(Arc::new(faults.clone()), dir, options(SMALL)).unwrap();
        (1..=90).for_each(|index| _ = put(&log, 1, index, 2800));
        log.barrier().unwrap();
        let start = disk.state().image.clone();
        disk.state().journal.clear();
        let next = faults.plan().calls;
        faults.plan().at = Some((next + k, Fault::EnospcOnOverwrite));
        log.purge().unwrap();
        let hit = faults.plan().hit.take();
        hits += u64::from(hit.is_some());
        faults.plan().full = false;
        let before = log.stats().footer_bytes;
        for _ in 0..64 {
            log.purge().unwrap();
        }
        assert_eq!(log.stats().footer_bytes > before, hit.is_some(), "{k}: {hit:?}");
        drop(log);
        if hit.is_none() {
            continue;
        }
        crash_everywhere(start, &disk, |disk| {
            let (log, recovery) = Log::open(Arc::new(disk.clone()), dir, options(SMALL)).unwrap();
            assert!(recovery.harmless.is_empty(), "{k}: {recovery:?}");
            check(&log, 1, 90, 2800);
        });
    }
    assert!(hits > 4, "{hits}");
}

/// What repeats a copy may not fit the spare beside it, and the file cannot grow: the copy goes without it. (A second spare does not
/// say that there is room.)
#[test]
fn a_full_disk_opens_however_much_of_a_segment_nobody_states() {
    let segment = SMALL;
    for (spares, rest) in [(1, 0), (2, 0), (3, 0), (1, segment), (1, segment + 4096)] {
        let options = Options { spare_segments: spares, ..options(segment) };
        let small = (830..900).step_by(5).map(|count| (count, 1));
        let large = (57_000..=61_000).step_by(500).map(|len| (1, len));
        for (count, len) in small.chain(large) {
            let disk = MemDisk::default();
            let open = || {
                let disk = Arc::new(disk.clone());
                Log::open(disk, Path::new("/log"), options.clone()).map(|(log, _)| log)
            };
            let log = open().unwrap();
            while log.prepare().unwrap() {}
            for index in 1..=count {
                let mut batch = LogBatch::new();
                batch.append(1, [entry(index, len)]);
                log.submit(batch).unwrap();
            }
            while log.write_round().unwrap().is_some() {}
            drop(log);
            let capacity = used(&disk) + rest;
            disk.state().capacity = Some(capacity);
            for n in 0..4 {
                let log = open().unwrap_or_else(|error| {
                    panic!("{spares} spares, {rest} B left, {count} entries of {len} B, open {n}: {error}")
                });
                check(&log, 1, count, len);
            }
        }
    }
}
