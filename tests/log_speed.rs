//! Quick figures on the real disk, to see that nothing got slow. Ignored by default:
//! `cargo test --release -p catamaran --test log_speed -- --ignored --nocapture`

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so when it fails")]

use catamaran::env::os::OsDisk;
use catamaran::log::{Entry, Log, LogBatch, Options, Seq};
use catamaran::types::LogPosition;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn dir() -> tempfile::TempDir {
    let root = std::env::var("LOG_SPEED_DIR").map(PathBuf::from).ok();
    let root = root.unwrap_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")));
    tempfile::tempdir_in(root).unwrap()
}

fn percentile(times: &mut [Duration], p: f64) -> Duration {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * p) as usize]
}

#[test]
#[ignore = "a measurement"]
fn one_entry_blocking() {
    let dir = dir();
    let (log, _) = Log::open(Arc::new(OsDisk), dir.path(), Options::default()).unwrap();
    let mut times = Vec::new();
    let start = Instant::now();
    for index in 1..=20_000 {
        let mut batch = LogBatch::new();
        batch.append(1, [Entry { index, term: 1, kind: 0, data: vec![7; 128].into() }]);
        let begun = Instant::now();
        log.write(batch).unwrap();
        times.push(begun.elapsed());
    }
    let rate = 20_000.0 / start.elapsed().as_secs_f64();
    let (p50, p99) = (percentile(&mut times, 0.5), percentile(&mut times, 0.99));
    println!("1 x 128 B, 1 thread, blocking: {rate:.0}/s, p50 {p50:?}, p99 {p99:?}");
}

fn many(threads: u64, span: u64, per_group: u64, size: usize, window: usize, rounds: u64) {
    let dir = dir();
    let (log, _) = Log::open(Arc::new(OsDisk), dir.path(), Options::default()).unwrap();
    while log.prepare().unwrap() {}
    let stop = Arc::new(AtomicBool::new(false));
    // As the driver does: one thread writes rounds, one keeps spares ready and purges.
    let writer = (window > 1).then(|| {
        let (log, stop) = (log.clone(), stop.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if log.wait_for_work(Duration::from_millis(50)) {
                    log.write_round().unwrap();
                }
            }
        })
    });
    let keeper = {
        let (log, stop) = (log.clone(), stop.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
                log.purge().unwrap();
                log.prepare().unwrap();
            }
        })
    };
    let start = Instant::now();
    let handles: Vec<_> = (0..threads)
        .map(|t| {
            let log = log.clone();
            std::thread::spawn(move || {
                let mut times = Vec::new();
                let mut waiting: VecDeque<(Seq, Instant)> = VecDeque::new();
                let data = bytes::Bytes::from(vec![7; size]);
                let groups = 1000 / threads;
                let mut next = vec![1u64; groups as usize];
                for round in 0..rounds {
                    let mut batch = LogBatch::new();
                    for i in 0..span {
                        let group = (round * span + i) % groups;
                        let at = next[group as usize];
                        let entry = |index| Entry { index, term: 1, kind: 0, data: data.clone() };
                        batch.append(t * groups + group, (at..at + per_group).map(entry));
                        next[group as usize] += per_group;
                        if at.is_multiple_of(64) && at > 64 {
                            let to = LogPosition { index: at - 64, term: 1 };
                            batch.compact_to(t * groups + group, to);
                        }
                        if at.is_multiple_of(16) {
                            log.trim_cache(t * groups + group, at - 1);
                        }
                    }
                    let begun = Instant::now();
                    waiting.push_back((log.submit(batch).unwrap(), begun));
                    if waiting.len() >= window {
                        let (seq, begun) = waiting.pop_front().unwrap();
                        log.wait(seq).unwrap();
                        times.push(begun.elapsed());
                    }
                }
                for (seq, _) in waiting {
                    log.wait(seq).unwrap();
                }
                times
            })
        })
        .collect();
    let mut times: Vec<Duration> = handles.into_iter().flat_map(|h| h.join().unwrap()).collect();
    let seconds = start.elapsed().as_secs_f64();
    let entries = (threads * rounds * span * per_group) as f64;
    stop.store(true, Ordering::Relaxed);
    log.wake_writer();
    if let Some(writer) = writer {
        writer.join().unwrap();
    }
    keeper.join().unwrap();
    let stats = log.stats();
    let (p50, p99) = (percentile(&mut times, 0.5), percentile(&mut times, 0.99));
    println!(
        "{} entries over {span} groups x {size} B, {threads} threads, window {window}: {:.3} M/s, \
         p50 {p50:?}, p99 {p99:?}, {:.0} fsyncs/s, {:.0} MB/s",
        span * per_group,
        entries / seconds / 1e6,
        stats.fsyncs as f64 / seconds,
        stats.bytes_written as f64 / seconds / 1e6,
    );
}

#[test]
#[ignore = "a measurement"]
fn many_groups() {
    many(4, 1, 1, 128, 1, 10_000);
    many(2, 1, 1, 128, 512, 400_000);
    many(2, 64, 1, 128, 1, 15_000);
    many(2, 64, 1, 128, 16, 60_000);
    many(2, 64, 1, 1024, 1, 8_000);
    many(2, 64, 1, 1024, 16, 10_000);
    many(2, 256, 4, 128, 1, 4_000);
}
