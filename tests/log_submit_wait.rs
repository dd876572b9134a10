//! How long a submit waits beside purge: printed, never asserted.
//! `cargo test --release --test log_submit_wait -- --ignored --nocapture`; `LOG_WAIT_GROUPS` sets the numbers of groups.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use catamaran::env::mem::MemDisk;
use catamaran::log::{Entry, Log, LogBatch, Options};
use catamaran::types::LogPosition;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

fn groups() -> Vec<u64> {
    let said = std::env::var("LOG_WAIT_GROUPS").unwrap_or_default();
    let some: Vec<u64> = said.split(',').filter_map(|n| n.parse().ok()).collect();
    if some.is_empty() { vec![10_000, 50_000, 200_000] } else { some }
}

/// Segments of garbage behind what all groups state.
fn garbage(log: &Log, from: &mut u64) {
    for _ in 0..640 {
        let mut batch = LogBatch::new();
        let entry = Entry { index: *from, term: 1, kind: 0, data: vec![1; 64 << 10].into() };
        batch.append(0, [entry]);
        if *from > 1 {
            batch.compact_to(0, LogPosition { index: *from - 1, term: 1 });
        }
        *from += 1;
        log.write(batch).unwrap();
        log.trim_cache(0, *from);
    }
}

/// The longest of the submits that are made until `over`, a few a millisecond, and how many they were.
fn submits(log: &Log, over: &AtomicBool) -> (Duration, u64) {
    let (mut worst, mut count) = (Duration::ZERO, 0);
    while !over.load(SeqCst) {
        let mut batch = LogBatch::new();
        batch.set_state(1, "x");
        let begun = Instant::now();
        log.submit(batch).unwrap();
        worst = worst.max(begun.elapsed());
        count += 1;
        std::thread::sleep(Duration::from_micros(100));
    }
    (worst, count)
}

const ROUNDS: u64 = 6;

#[test]
#[ignore = "a measurement"]
fn submits_beside_purge() {
    for groups in groups() {
        let options = Options { segment_bytes: 32 << 20, ..Options::default() };
        let (log, _) = Log::open(Arc::new(MemDisk::default()), Path::new("/log"), options).unwrap();
        let mut from = 1;
        for some in (1..=groups).collect::<Vec<_>>().chunks(1000) {
            let mut batch = LogBatch::new();
            some.iter().for_each(|group| batch.set_state(*group, vec![7; 40]));
            log.write(batch).unwrap();
        }
        let measure = |from: &mut u64, purge: &dyn Fn()| {
            garbage(&log, from);
            let over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let beside = scope.spawn(|| submits(&log, &over));
                let begun = Instant::now();
                purge();
                let took = begun.elapsed();
                over.store(true, SeqCst);
                let (worst, count) = beside.join().unwrap();
                (worst, count, took)
            })
        };
        let restated = std::cell::Cell::new(0);
        let purge = || {
            for _ in 0..6 {
                restated.set(restated.get() + log.purge().unwrap().restated);
            }
        };
        // Of several rounds the best: on a busy machine the worst of a round tells of the machine.
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            restated.set(0);
            let (worst, count, took) = measure(&mut from, &purge);
            if restated.get() >= groups / 2 {
                rounds.push((worst, count, took));
            }
        }
        rounds.sort();
        let said = rounds.iter().map(|(worst, ..)| *worst).collect::<Vec<_>>();
        println!(
            "{groups} groups: worst submit beside a purge that restates them, by rounds: {said:?}; {:?} (worst, submits, time)",
            rounds.first()
        );
    }
}
