//! A full disk, and more waits for the writer than the reserve holds: purge says what it has to say in a batch
//! that waits before, and no crash tells.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod log_disk;

use catamaran::Error;
use catamaran::log::{Entry, Log, LogBatch, Options};
use catamaran::types::LogPosition;
use log_disk::{Crash, Dice, MemDisk, Step, Survivors};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

const SEGMENT: u64 = 64 << 10;

fn options() -> Options {
    Options {
        segment_bytes: SEGMENT,
        cache_bytes: 0,
        spare_segments: 1,
        max_pending_bytes: 8 << 20,
        ..Options::default()
    }
}

fn open(disk: &MemDisk, options: Options) -> Log {
    let (log, recovery) = Log::open(Arc::new(disk.clone()), Path::new("/log"), options).unwrap();
    assert!(recovery.quarantined.is_empty(), "{recovery:?}");
    log
}

fn entry(index: u64, term: u64, len: usize) -> Entry {
    Entry { index, term, kind: 0, data: vec![(index * 7 + term) as u8; len].into() }
}

/// One entry, and all before it are given up.
fn one(index: u64) -> LogBatch {
    let mut batch = LogBatch::new();
    batch.append(1, [entry(index, 1, 2500)]);
    if index > 1 {
        batch.compact_to(1, LogPosition { index: index - 1, term: 1 });
    }
    batch
}

/// Writes until the disk is full; what finds no room waits. Gives the last index.
fn fill(log: &Log) -> u64 {
    for last in 1.. {
        let seq = log.submit(one(last)).unwrap();
        match log.wait(seq) {
            Ok(()) => {}
            Err(Error::DiskFull { .. }) => return last,
            Err(error) => panic!("{error}"),
        }
    }
    unreachable!("the disk has an end")
}

/// A full disk, everything on it dead, and more waiting for the writer than the reserve holds.
#[test]
fn what_waits_does_not_lock_purge_out() {
    for kib in [0u64, 16, 32, 64, 100, 200, 400, 4000] {
        let disk = MemDisk::default();
        let log = open(&disk, options());
        disk.state().capacity = Some(32 * SEGMENT);
        let mut last = fill(&log);
        // Far from `max_pending_bytes`, nobody refuses.
        let until = last + kib * 1024 / 2500;
        while last < until {
            last += 1;
            log.submit(one(last)).unwrap();
        }
        assert!(log.purge().unwrap().segments > 0, "{kib} KiB: {:?}", log.stats());
        for _ in 0..500 {
            log.purge().unwrap();
            if log.barrier().is_ok() {
                break;
            }
        }
        log.barrier().unwrap();
        assert_eq!(log.stats().pending_bytes, 0);
        assert_eq!((log.truncated(1).index, log.last_index(1)), (last - 1, last));
        drop(log);
        let log = open(&disk, options());
        assert_eq!(log.entries(1, last, last + 1, u64::MAX).unwrap(), [entry(last, 1, 2500)]);
    }
}

/// What a batch does to a group.
type Act = fn(&mut LogBatch, u64);

/// The oldest segment is given up by a batch that waits behind more than the reserve holds. Nothing of it may go
/// before that batch is on the disk, whatever it is that gives it up: a crash loses the batch.
#[test]
fn what_a_batch_gives_up_stays_until_that_batch_is_on_the_disk() {
    let at = LogPosition { index: 8, term: 1 };
    let ways: [(&str, Act); 6] = [
        ("clear", |batch, id| batch.clear(id)),
        ("reset", |batch, id| batch.reset(id, LogPosition { index: 50, term: 3 })),
        ("compact", |batch, id| batch.compact_to(id, LogPosition { index: 8, term: 1 })),
        ("overwrite", |batch, id| batch.append(id, [entry(1, 2, 10)])),
        ("compact and overwrite", |batch, id| {
            batch.compact_to(id, LogPosition { index: 4, term: 1 });
            batch.append(id, [entry(5, 2, 10)]);
        }),
        ("state", |batch, id| batch.set_state(id, "newer")),
    ];
    for (what, act) in ways {
        let disk = MemDisk::default();
        let log = open(&disk, options());
        // Most of the first segment: of one group entries, of another a state, of a third a position.
        let state = vec![7; 9000];
        let mut batch = LogBatch::new();
        match what {
            "state" => (20..25).for_each(|id| batch.set_state(id, state.clone())),
            _ => batch.append(20, (1..=at.index).map(|index| entry(index, 1, 5000))),
        }
        log.write(batch).unwrap();
        disk.state().capacity = Some(24 * SEGMENT);
        let mut last = fill(&log);
        for _ in 0..4 * SEGMENT / 2500 {
            last += 1;
            log.submit(one(last)).unwrap();
        }
        let mut batch = LogBatch::new();
        match what {
            "state" => (20..25).for_each(|id| act(&mut batch, id)),
            _ => act(&mut batch, 20),
        }
        let giving = log.submit(batch).unwrap();
        let mut crash = Crash::default();
        for call in 1..=4 {
            let gone = match log.purge() {
                Ok(purged) => purged.segments,
                Err(Error::DiskFull { .. }) => 0,
                Err(error) => panic!("{what}: {error}"),
            };
            println!("{what}, call {call}: {gone} segments went, {:?} durable", log.durable());
            assert!(log.durable() < giving, "{what}: the disk has more room than was meant");
            std::mem::take(&mut disk.state().journal).iter().for_each(|step| crash.step(step));
            for survivors in [Survivors::None, Survivors::All] {
                let what = format!("{what}, call {call}, {survivors:?}");
                let log = open(&MemDisk::of(crash.image(survivors)), options());
                if what.starts_with("state") {
                    assert!((20..25).all(|id| log.state(id).unwrap()[..] == state), "{what}");
                    continue;
                }
                let found = log.entries(20, 1, at.index + 1, u64::MAX);
                let found = found.unwrap_or_else(|error| panic!("{what}: {error}"));
                assert!(found.into_iter().eq((1..=at.index).map(|n| entry(n, 1, 5000))), "{what}");
            }
        }
    }
}

/// Who follows `is_crowded` to the letter, with options in the proportions of the default ones.
#[test]
fn is_crowded_does_not_keep_the_way_out_open() {
    let disk = MemDisk::default();
    let segment = 256u64 << 10;
    let options = Options {
        segment_bytes: segment,
        max_pending_bytes: 16 * segment as usize,
        ..Options { spare_segments: 2, ..options() }
    };
    let log = open(&disk, options);
    while log.prepare().unwrap() {}
    disk.state().capacity = Some(20 * segment);
    let (mut last, mut full) = (0, 0);
    while full < 300 {
        if !log.is_crowded() {
            last += 1;
            log.submit(one(last)).unwrap();
        }
        match log.write_round() {
            Ok(_) => full = 0,
            Err(Error::DiskFull { .. }) => full += 1,
            Err(error) => panic!("{error}"),
        }
    }
    // It holds back while there is still room in the reserve.
    assert!(log.stats().pending_bytes < segment / 2, "{:?}", log.stats());
    let gone: u64 = (0..100).map(|_| log.purge().map_or(0, |purged| purged.segments)).sum();
    assert!(gone > 0, "{:?}", log.stats());
    log.barrier().unwrap();
    assert!(log.has_room() && !log.is_crowded());
}

/// Many groups with ids and positions that take many bytes: what purge begins it can finish, and the log opens.
fn states_of(groups: u64, state: usize, id: impl Fn(u64) -> u64, at: LogPosition) {
    let what = format!("{groups} groups, {state}");
    let disk = MemDisk::default();
    let log = open(&disk, options());
    for n in 0..groups {
        let mut batch = LogBatch::new();
        batch.reset(id(n), at);
        if state > 0 {
            batch.set_state(id(n), vec![7; state]);
        }
        log.submit(batch).unwrap();
    }
    log.write_round().unwrap();
    disk.state().capacity = Some(12 * SEGMENT);
    let mut last = 0;
    loop {
        last += 1;
        let mut batch = LogBatch::new();
        batch.append(1, [entry(last, 1, 2500)]);
        let seq = log.submit(batch).unwrap();
        match log.wait(seq) {
            Ok(()) => {}
            Err(Error::DiskFull { .. }) => break,
            Err(error) => panic!("{what}: {error}"),
        }
    }
    let mut batch = LogBatch::new();
    batch.compact_to(1, LogPosition { index: last, term: 1 });
    log.submit(batch).unwrap();
    let gone: u64 = (0..8).map(|_| log.purge().map_or(0, |purged| purged.segments)).sum();
    assert!(gone > 0, "{what}: {:?}", log.stats());
    log.barrier().unwrap();
    drop(log);
    let log = open(&disk, options());
    assert_eq!(log.groups().len() as u64, groups + 1, "{what}");
    assert!((0..groups).all(|n| log.truncated(id(n)) == at), "{what}");
}

#[test]
fn full_disk_with_huge_ids() {
    let at = LogPosition { index: 1 << 61, term: 1 << 61 };
    for groups in (100..2400).step_by(100) {
        for state in [0, 1, 3] {
            states_of(groups, state, |n| u64::MAX - n * 0x10_0000_0000_0001, at);
        }
    }
}

#[test]
fn full_disk_with_hashed_ids() {
    let at = LogPosition { index: 1_000_000_500, term: 1000 };
    for groups in (1500..2700).step_by(75) {
        states_of(groups, 0, |n| (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 2, at);
    }
}

#[derive(Clone, Default, PartialEq, Debug)]
struct Group {
    at: LogPosition,
    entries: BTreeMap<u64, Entry>,
    state: Option<Vec<u8>>,
}

type Model = BTreeMap<u64, Group>;

/// Something about one of eight groups, some of which are seldom heard of.
fn act(dice: &mut Dice, model: &mut Model, batch: &mut LogBatch, salt: u64) {
    let id = match dice.roll(12) {
        rare @ 0..2 => 10 + 3 * rare + dice.roll(3),
        _ => 1 + dice.roll(2),
    };
    let group = model.entry(id).or_default();
    let last = group.entries.keys().next_back().copied().unwrap_or(group.at.index);
    match dice.roll(16) {
        0..9 => {
            let overwrites = dice.roll(5) == 0 && last > group.at.index;
            let first = if overwrites { last - dice.roll(last - group.at.index) } else { last + 1 };
            let len = if id < 10 { dice.roll(2500) } else { dice.roll(300) } as usize;
            let entries: Vec<Entry> = (first..first + 2).map(|n| entry(n, salt, len)).collect();
            group.entries.split_off(&first);
            group.entries.extend(entries.iter().map(|entry| (entry.index, entry.clone())));
            batch.append(id, entries);
        }
        9..12 => {
            let state = vec![salt as u8; 20];
            group.state = Some(state.clone());
            batch.set_state(id, state);
        }
        12 if id > 9 => {
            model.remove(&id);
            batch.clear(id);
        }
        13 if id > 9 => {
            group.at = LogPosition { index: last + 3, term: salt };
            group.entries.clear();
            batch.reset(id, group.at);
        }
        _ if last > group.at.index => {
            let keep = if id < 10 { dice.roll(3) } else { dice.roll(20) };
            let index = last.saturating_sub(keep).max(group.at.index + 1);
            group.at = LogPosition { index, term: group.entries[&index].term };
            group.entries = group.entries.split_off(&(index + 1));
            batch.compact_to(id, group.at);
        }
        _ if *group == Group::default() => _ = model.remove(&id),
        _ => {}
    }
}

fn check(log: &Log, model: &Model, what: &str) {
    assert_eq!(log.groups(), model.keys().copied().collect::<Vec<_>>(), "{what}");
    for (id, group) in model {
        let last = group.entries.keys().next_back().copied().unwrap_or(group.at.index);
        assert_eq!((log.truncated(*id), log.last_index(*id)), (group.at, last), "{what}, {id}");
        assert_eq!(log.state(*id).as_deref(), group.state.as_deref(), "{what}, {id}");
        if !group.entries.is_empty() {
            let found = log.entries(*id, group.at.index + 1, last + 1, u64::MAX).unwrap();
            assert!(found.iter().eq(group.entries.values()), "{what}, {id}");
        }
    }
}

/// Wherever a crash comes, the log is what it was after one of its batches, none of those acknowledged missing.
#[test]
fn a_crash_on_the_way_out_loses_nothing() {
    let seeds: u64 = std::env::var("LOG_FULL_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(8);
    let (mut images, mut ahead) = (0, 0);
    for seed in 1..=seeds {
        let mut dice = Dice(seed * 7919);
        let disk = MemDisk::default();
        let log = open(&disk, options());
        disk.state().capacity = Some(14 * SEGMENT);
        let mut model = Model::new();
        // What the log is after each number.
        let mut after: BTreeMap<u64, Model> = [(0, Model::new())].into();
        let mut submit = |dice: &mut Dice| {
            let mut batch = LogBatch::new();
            (0..1 + dice.roll(3))
                .for_each(|n| act(dice, &mut model, &mut batch, after.len() as u64 * 4 + n));
            let seq = log.submit(batch).unwrap();
            after.insert(seq.0, model.clone());
            seq
        };
        loop {
            let seq = submit(&mut dice);
            if dice.roll(40) == 0 {
                log.barrier()
                    .or_else(|e| if let Error::DiskFull { .. } = e { Ok(()) } else { Err(e) })
                    .unwrap();
            }
            if log.wait(seq).is_err() {
                break;
            }
        }
        let from = disk.state().journal.len();
        for turn in 0..12 {
            if turn % 2 == 0 {
                let bytes = dice.roll(200 << 10);
                while log.stats().pending_bytes < bytes {
                    submit(&mut dice);
                }
            }
            let waits = log.stats().pending_bytes;
            match log.purge() {
                Ok(purged) => ahead += u64::from(purged.segments > 0 && waits > SEGMENT),
                Err(error) => assert!(matches!(error, Error::DiskFull { .. }), "{error}"),
            }
            disk.acked(log.durable().0);
            if turn % 3 == 2 {
                let _ = log.write_round();
                disk.acked(log.durable().0);
            }
        }
        check(&log, after.values().next_back().unwrap(), "running");
        drop(log);
        let journal = std::mem::take(&mut disk.state().journal);
        let mut crash = Crash::default();
        for (n, step) in journal.iter().enumerate() {
            crash.step(step);
            if n < from || matches!(step, Step::Acked(_)) {
                continue;
            }
            for survivors in
                [Survivors::None, Survivors::All, Survivors::Mixed(seed * 31 + n as u64)]
            {
                let what = format!("seed {seed}, operation {n}, {survivors:?}");
                let disk = MemDisk::of(crash.image(survivors));
                let (log, recovery) =
                    Log::open(Arc::new(disk), Path::new("/log"), options()).unwrap();
                assert!(recovery.quarantined.is_empty(), "{what}: {recovery:?}");
                assert!(recovery.last_seq >= crash.acked, "{what}: {recovery:?}");
                let (_, model) = after.range(..=recovery.last_seq).next_back().unwrap();
                check(&log, model, &what);
                images += 1;
            }
        }
    }
    println!("{images} images; {ahead} purges went ahead of more than the reserve holds");
    assert!(ahead >= seeds / 4, "{ahead}");
}
