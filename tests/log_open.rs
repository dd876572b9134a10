//! How long a large log takes to open, what an entry of it weighs in memory, how much a cold read
//! reads, and what purge leaves behind. Measurements on the real disk, ignored by default:
//! `cargo test --release -p catamaran --test log_open -- --ignored --nocapture --test-threads 1`
//! (`LOG_SPEED_DIR` names another disk, `LOG_OPEN_SPAN` the groups of a batch.)

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so when it fails")]

use catamaran::env::os::OsDisk;
use catamaran::log::{Entry, Log, LogBatch, Options, Stats};
use catamaran::types::LogPosition;
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Counts what is allocated.
struct Counting;

static HEAP: AtomicIsize = AtomicIsize::new(0);

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HEAP.fetch_add(layout.size() as isize, Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HEAP.fetch_sub(layout.size() as isize, Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        HEAP.fetch_add(size as isize - layout.size() as isize, Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const GROUPS: u64 = 10_000;

fn dir() -> tempfile::TempDir {
    let root = std::env::var("LOG_SPEED_DIR").map(PathBuf::from).ok();
    let root = root.unwrap_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")));
    tempfile::tempdir_in(root).unwrap()
}

fn open(dir: &Path) -> (Log, catamaran::log::Recovery) {
    let options = Options { cache_bytes: 0, ..Options::default() };
    Log::open(Arc::new(OsDisk), dir, options).unwrap()
}

/// Takes the files of a directory out of the page cache.
fn cool(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let from = format!("if={}", path.display());
        let dd = std::process::Command::new("dd")
            .args([&from, "iflag=nocache", "count=0", "status=none"])
            .status();
        assert!(dd.is_ok_and(|status| status.success()), "dd is needed");
    }
}

fn settle(log: &Log) {
    while log.prepare().unwrap() {}
}

/// `rounds` times an entry of 1 KiB for every group, in batches of `span` groups.
fn fill(log: &Log, rounds: u64, span: u64, mut each: impl FnMut(&mut LogBatch, u64, u64)) {
    let mut data = vec![0; 1024];
    data[..512].iter_mut().enumerate().for_each(|(n, byte)| *byte = (n * 7) as u8);
    let data = bytes::Bytes::from(data);
    for index in 1..=rounds {
        let mut group = 0;
        while group < GROUPS {
            let mut batch = LogBatch::new();
            for id in group..(group + span).min(GROUPS) {
                batch.append(id, [Entry { index, term: 1, kind: 0, data: data.clone() }]);
                log.trim_cache(id, index);
                each(&mut batch, id, index);
            }
            log.submit(batch).unwrap();
            group += span;
            if (group / span).is_multiple_of(16) {
                log.write_round().unwrap();
            }
        }
        log.write_round().unwrap();
        settle(log);
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn span() -> u64 {
    std::env::var("LOG_OPEN_SPAN").ok().and_then(|n| n.parse().ok()).unwrap_or(64)
}

#[test]
#[ignore = "a measurement"]
fn a_large_log() {
    let dir = dir();
    let rounds = 160;
    {
        let (log, _) = open(dir.path());
        fill(&log, rounds, span(), |batch, id, index| {
            if index == 1 {
                batch.set_state(id, vec![7; 24]);
            }
        });
        log.barrier().unwrap();
        settle(&log);
    }
    let entries = (GROUPS * rounds) as f64;
    let mut opened = (Vec::new(), Vec::new());
    for round in 0..5 {
        for cold in [true, false] {
            if cold {
                cool(dir.path());
            }
            let before = HEAP.load(Relaxed);
            let start = Instant::now();
            let (log, recovery) = open(dir.path());
            let took = start.elapsed();
            let heap = (HEAP.load(Relaxed) - before) as f64;
            if cold {
                opened.0.push(took)
            } else {
                opened.1.push(took)
            }
            assert_eq!((log.last_index(77), recovery.groups), (rounds, GROUPS));
            if round == 0 && cold {
                println!(
                    "{} segments, {} with footers; {:.1} B of heap an entry",
                    recovery.segments,
                    recovery.footers,
                    heap / entries
                );
            }
        }
    }
    println!(
        "open 1.6 GB, {GROUPS} groups: cold {:?}, warm {:?}",
        median(opened.0),
        median(opened.1)
    );
    let (log, _) = open(dir.path());
    let before = log.stats();
    let wanted: usize = (0..100)
        .flat_map(|n| log.entries(n * 97, 1, rounds + 1, u64::MAX).unwrap())
        .map(|entry| entry.data.len())
        .sum();
    let read = log.stats().disk_read_bytes - before.disk_read_bytes;
    println!("cold read of whole groups: {:.3} bytes for each wanted", read as f64 / wanted as f64);
}

fn report(what: &str, stats: &Stats) {
    println!(
        "{what}: {} MB live, {} MB kept ({:.2} x), {} MB on the disk in {} segments and {} spares, \
         write amplification {:.3}, {} MB moved",
        stats.live_bytes >> 20,
        stats.used_bytes >> 20,
        stats.space_amplification(),
        stats.disk_bytes >> 20,
        stats.segments,
        stats.spares,
        stats.write_amplification(),
        stats.moved_bytes >> 20,
    );
}

/// One group of a hundred never compacts, the others keep their last `keep` entries.
fn laggards(keep: u64, segment_bytes: u64) {
    let dir = dir();
    let mut options = Options { cache_bytes: 0, segment_bytes, ..Options::default() };
    if let Some(percent) = std::env::var("LOG_REWRITE").ok().and_then(|n| n.parse().ok()) {
        options.rewrite_percent = percent;
    }
    let (log, _) = Log::open(Arc::new(OsDisk), dir.path(), options).unwrap();
    let compact = |batch: &mut LogBatch, id: u64, index: u64| {
        if !id.is_multiple_of(100) && index > keep {
            batch.compact_to(id, LogPosition { index: index - keep, term: 1 });
        }
    };
    let mut during = Vec::new();
    fill(&log, 100, span(), |batch, id, index| {
        compact(batch, id, index);
        if id == 0 {
            log.purge().unwrap();
            if index > 40 {
                during.push(log.stats().space_amplification());
            }
        }
    });
    let mut worst = Duration::ZERO;
    let during = (during.iter().sum::<f64>() / during.len() as f64, during.len());
    loop {
        let start = Instant::now();
        let purged = log.purge().unwrap();
        worst = worst.max(start.elapsed());
        if purged.segments == 0 {
            break;
        }
    }
    settle(&log);
    println!(
        "{:.2} x on average of {} calls under load; the longest last call {worst:?}",
        during.0, during.1
    );
    report(&format!("1 % laggards, others keep {keep}, {} MiB", segment_bytes >> 20), &log.stats());
}

#[test]
#[ignore = "a measurement"]
fn purge_beside_laggards() {
    laggards(2, 64 << 20);
    laggards(10, 64 << 20);
    laggards(2, 8 << 20);
}
