//! How fast the state store applies: `cargo test --release --test kv_speed -- --ignored --nocapture --test-threads=1`.
//! 16-byte random keys, 128-byte values, batches of 1,024 that point into one chunk each, one apply thread.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use bytes::Bytes;
use catamaran::kv::lsm::{LsmOptions, LsmTables};
use catamaran::kv::{Direction, MemoryStore, Options, StateStore, TableStore, WriteBatch};
use catamaran::types::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const VALUE: usize = 128;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// A raft entry's payload: `ops` keys and values one after the other.
fn entry(rng: &mut Rng, ops: usize) -> Bytes {
    let mut out = Vec::with_capacity(ops * (16 + VALUE));
    for _ in 0..ops {
        out.extend_from_slice(&rng.next().to_be_bytes());
        out.extend_from_slice(&rng.next().to_be_bytes());
        out.extend_from_slice(&[rng.0 as u8; VALUE]);
    }
    out.into()
}

fn batch(entry: Bytes, ops: usize, index: u64) -> WriteBatch {
    let mut batch = WriteBatch::with_capacity(ops);
    let chunk = batch.add_chunk(entry);
    for op in 0..ops as u32 {
        let at = op * (16 + VALUE as u32);
        batch.put_in(chunk, at..at + 16, at + 16..at + 16 + VALUE as u32);
    }
    batch.set_region(RegionState {
        region: Region { id: RegionId(1), ..Region::default() },
        peer: PeerId(1),
        applied: LogPosition { index, term: 1 },
        compacted: LogPosition::default(),
        ..RegionState::default()
    });
    batch
}

fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks: f64 =
        fields.get(11..13).map_or(0.0, |t| t.iter().flat_map(|t| t.parse::<f64>()).sum());
    ticks / 100.0
}

fn written() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}

#[test]
#[ignore = "a benchmark"]
fn memtable_only() {
    for (ops, total) in
        [(1024, 1 << 20), (1024, 4 << 20), (128, 1 << 20), (16, 1 << 20), (1, 1 << 19)]
    {
        let store = MemoryStore::new().unwrap();
        let mut rng = Rng(88172645463325252);
        let mut spent = Duration::ZERO;
        let mut worst = Duration::ZERO;
        let (stop, background) = (Arc::new(AtomicBool::new(false)), store.clone());
        let stopped = Arc::clone(&stop);
        let maintenance = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if !background.maintain().unwrap() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        for index in 0..(total / ops) as u64 {
            let entry = entry(&mut rng, ops);
            let start = Instant::now();
            store.write(batch(entry, ops, index)).unwrap();
            spent += start.elapsed();
            worst = worst.max(start.elapsed());
        }
        stop.store(true, Ordering::Relaxed);
        maintenance.join().unwrap();
        let mut rng = Rng(88172645463325252);
        let view = store.view().unwrap();
        let gets = 100_000.min(total);
        let keys: Vec<Bytes> = (0..gets).map(|_| entry(&mut rng, 1).slice(..16)).collect();
        let start = Instant::now();
        for key in keys {
            assert!(view.get(&key).unwrap().is_some());
        }
        let get = start.elapsed();
        let start = Instant::now();
        let seen = view.scan(&KeyRange::all(), Direction::Forward).unwrap().count();
        println!(
            "memtable, {total} ops in batches of {ops}: {:.2} M put/s, worst batch {:.1} ms; {} runs; {:.2} M get/s; {:.2} M scanned/s",
            total as f64 / spent.as_secs_f64() / 1e6,
            worst.as_secs_f64() * 1e3,
            store.stats().runs,
            gets as f64 / get.as_secs_f64() / 1e6,
            seen as f64 / start.elapsed().as_secs_f64() / 1e6,
        );
        let start = Instant::now();
        for _ in 0..1_000_000 {
            std::hint::black_box(store.view().unwrap());
        }
        println!("  view: {} ns", start.elapsed().as_nanos() / 1_000_000);
    }
}

#[test]
#[ignore = "a benchmark"]
fn with_flush_and_compaction() {
    let total: usize = std::env::var("OPS").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000_000);
    let ops = 1024;
    let dir = tempfile::tempdir_in(".").unwrap();
    let l0 = std::env::var("L0").ok().and_then(|n| n.parse().ok());
    let defaults = LsmOptions::default();
    let options = LsmOptions { l0_runs: l0.unwrap_or(defaults.l0_runs), ..defaults };
    let tables = LsmTables::open(dir.path(), options).unwrap();
    let store = TableStore::open(Box::new(tables), Options::default()).unwrap();
    let (cpu0, written0) = (cpu(), written());
    let stop = AtomicBool::new(false);
    let start = Instant::now();
    let mut worst = Duration::ZERO;
    let mut stalled = Duration::ZERO;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if store.should_flush()
                    && let Some(flush) = store.freeze().unwrap()
                {
                    flush.run().unwrap();
                } else {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if !store.maintain().unwrap() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        let mut rng = Rng(88172645463325252);
        for index in 0..(total / ops) as u64 {
            let batch = batch(entry(&mut rng, ops), ops, index);
            let begun = Instant::now();
            while store.memtable_bytes() > 256 << 20 {
                std::thread::sleep(Duration::from_millis(1));
                stalled += Duration::from_millis(1);
            }
            let late = store.debt().saturating_sub(8) as u64;
            if late > 0 {
                std::thread::sleep(Duration::from_micros(100 * late));
            }
            store.write(batch).unwrap();
            worst = worst.max(begun.elapsed());
        }
        let applied = start.elapsed();
        println!(
            "lsm, {total} ops: apply {:.2} M/s, worst batch {:.0} ms, stalled {:.1} s",
            total as f64 / applied.as_secs_f64() / 1e6,
            worst.as_secs_f64() * 1e3,
            stalled.as_secs_f64(),
        );
        stop.store(true, Ordering::Relaxed);
    });
    while let Some(flush) = store.freeze().unwrap() {
        flush.run().unwrap();
    }
    while store.maintain().unwrap() {}
    let user = (total * (16 + VALUE)) as f64;
    println!(
        "settled after {:.1} s; CPU {:.2} us/op; write amplification {:.2}; {:?}",
        start.elapsed().as_secs_f64(),
        (cpu() - cpu0) * 1e6 / total as f64,
        (written() - written0) as f64 / user,
        store.stats(),
    );
    let mut rng = Rng(88172645463325252);
    let keys: Vec<Bytes> = (0..ops * 100).map(|_| entry(&mut rng, 1).slice(..16)).collect();
    let view = store.view().unwrap();
    let begun = Instant::now();
    for key in &keys {
        assert!(view.get(key).unwrap().is_some());
    }
    let got = begun.elapsed();
    let begun = Instant::now();
    let seen = view.scan(&KeyRange::all(), Direction::Forward).unwrap().count();
    println!(
        "{:.3} M get/s; {seen} keys scanned at {:.2} M/s",
        keys.len() as f64 / got.as_secs_f64() / 1e6,
        seen as f64 / begun.elapsed().as_secs_f64() / 1e6
    );
}
