//! The hand-over between submitters, writer, waiters, readers and purge, under many schedules.
//! `SHUTTLE_RUNS` sets how many per scene.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use catamaran_shuttle::log::{Entry, Log, LogBatch, Options, Seq};
use catamaran_shuttle::log_disk::faults::FaultDisk;
use catamaran_shuttle::log_disk::{Crash, MemDisk, Survivors};
use catamaran_shuttle::types::LogPosition;
use catamaran_shuttle::{Error, Result};
use shuttle::thread;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn options() -> Options {
    Options { segment_bytes: 8 << 10, cache_bytes: 600, spare_segments: 2, ..Options::default() }
}

fn explore(scene: impl Fn() + Send + Sync + Copy + 'static) {
    let runs = std::env::var("SHUTTLE_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    shuttle::check_random(scene, runs);
    shuttle::check_pct(scene, runs, 3);
}

#[derive(Clone)]
struct Stage {
    disk: MemDisk,
    faults: FaultDisk,
    log: Log,
}

fn stage() -> Stage {
    let disk = MemDisk::default();
    let faults = FaultDisk::over_journal(&disk);
    let log = Log::open(Arc::new(faults.clone()), Path::new("/log"), options()).unwrap().0;
    Stage { disk, faults, log }
}

fn batch(group: u64, index: u64, len: usize) -> LogBatch {
    let mut batch = LogBatch::new();
    let data = vec![group as u8; len].into();
    batch.append(group, [Entry { index, term: 1, kind: 0, data }]);
    batch
}

/// What was acknowledged is there after a power cut at this moment.
fn expect_durable(disk: &MemDisk, seq: Seq) {
    let mut crash = Crash::default();
    for step in &disk.state().journal {
        crash.step(step);
    }
    let disk = Arc::new(MemDisk::of(crash.image(Survivors::None)));
    let (_, recovery) = Log::open(disk, Path::new("/log"), options()).unwrap();
    assert!(recovery.last_seq >= seq.0, "{seq:?} acknowledged: {recovery:?}");
}

/// Nobody has a thread for writing: who waits writes for all.
#[test]
fn waiters_write_for_each_other() {
    explore(|| {
        let stage = stage();
        let threads: Vec<_> = (1..=3)
            .map(|group| {
                let stage = stage.clone();
                thread::spawn(move || {
                    for index in 1..=2 {
                        let seq = stage.log.submit(batch(group, index, 100)).unwrap();
                        assert_eq!(stage.log.last_index(group), index, "visible at once");
                        stage.log.wait(seq).unwrap();
                        assert!(stage.log.durable() >= seq);
                        expect_durable(&stage.disk, seq);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(stage.log.durable(), Seq(6));
    });
}

/// Submitters go on at once; one writer sleeps when there is nothing to do, and is woken.
#[test]
fn the_writer_sleeps_and_misses_nothing() {
    explore(|| {
        let stage = stage();
        let over = Arc::new(AtomicBool::new(false));
        let gone = Arc::new(AtomicBool::new(false));
        let writer = {
            let (log, over, gone) = (stage.log.clone(), over.clone(), gone.clone());
            thread::spawn(move || {
                loop {
                    let work = log.wait_for_work(Duration::from_secs(3600));
                    if work {
                        log.write_round().unwrap();
                    } else if over.load(Ordering::SeqCst) {
                        return gone.store(true, Ordering::SeqCst);
                    }
                }
            })
        };
        let submitters: Vec<_> = (1..=2)
            .map(|group| {
                let log = stage.log.clone();
                thread::spawn(move || {
                    (1..=3).map(|index| log.submit(batch(group, index, 700)).unwrap()).collect()
                })
            })
            .collect();
        let mut seqs = Vec::new();
        for thread in submitters {
            let own: Vec<Seq> = thread.join().unwrap();
            assert!(own.is_sorted());
            seqs.extend(own);
        }
        // Whoever waits beside the writer gets on, too.
        stage.log.wait(Seq(4)).unwrap();
        over.store(true, Ordering::SeqCst);
        // The writer may be on its way into its sleep: only a look under the lock is sure to wake it.
        while !gone.load(Ordering::SeqCst) {
            stage.log.wake_writer();
            thread::yield_now();
        }
        writer.join().unwrap();
        seqs.sort();
        assert_eq!(seqs, (1..=6).map(Seq).collect::<Vec<_>>(), "a number each, in order");
        assert_eq!(stage.log.durable(), Seq(6));
        expect_durable(&stage.disk, Seq(6));
    });
}

/// One sync fails: everybody who waits hears of it, nobody is told that all is well, nobody hangs.
#[test]
fn a_failed_sync_ends_it_for_all() {
    explore(|| {
        let stage = stage();
        stage.log.write(batch(9, 1, 50)).unwrap();
        stage.faults.plan().fail_next_sync = true;
        let threads: Vec<_> = (1..=3)
            .map(|group| {
                let log = stage.log.clone();
                thread::spawn(move || -> Result<Seq> {
                    let seq = log.submit(batch(group, 1, 100))?;
                    log.wait(seq)?;
                    Ok(seq)
                })
            })
            .collect();
        for thread in threads {
            let error = thread.join().unwrap().expect_err("acknowledged after a failed sync");
            assert!(matches!(error, Error::Io { .. } | Error::Stopped { .. }), "{error}");
        }
        assert_eq!(stage.log.durable(), Seq(1));
        assert!(stage.log.barrier().is_err() && stage.log.purge().is_err());
        assert!(!stage.log.wait_for_work(Duration::ZERO) || stage.log.write_round().is_err());
        expect_durable(&stage.disk, Seq(1));
    });
}

/// No room for one: the others' fate is the same, what they submitted waits, and goes on when there is room.
#[test]
fn a_full_disk_is_heard_of_and_forgotten() {
    explore(|| {
        let stage = stage();
        stage.faults.plan().room = Some(0);
        let threads: Vec<_> = (1..=2)
            .map(|group| {
                let log = stage.log.clone();
                thread::spawn(move || {
                    let mut full = 0;
                    for index in 1..=5 {
                        let seq = log.submit(batch(group, index, 1200)).unwrap();
                        match log.wait(seq) {
                            Ok(()) => assert!(log.durable() >= seq),
                            Err(Error::DiskFull { .. }) => full += 1,
                            Err(other) => panic!("{other}"),
                        }
                    }
                    full
                })
            })
            .collect();
        let full: u64 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert!(full > 0);
        stage.faults.plan().room = None;
        stage.log.wait(Seq(10)).unwrap();
        expect_durable(&stage.disk, Seq(10));
    });
}

/// Purge moves and drops under the eyes of a reader and beside submitters.
#[test]
fn readers_beside_purge() {
    explore(|| {
        let stage = stage();
        let writer = {
            let log = stage.log.clone();
            thread::spawn(move || {
                for index in 1..=6u64 {
                    let mut batch = batch(1, index, 900);
                    batch.append(2, [Entry { index, term: 1, kind: 0, data: "lags".into() }]);
                    if index > 2 {
                        batch.compact_to(1, LogPosition { index: index - 2, term: 1 });
                    }
                    let seq = log.submit(batch).unwrap();
                    log.trim_cache(1, index);
                    log.trim_cache(2, index);
                    log.wait(seq).unwrap();
                }
            })
        };
        let purger = {
            let log = stage.log.clone();
            thread::spawn(move || {
                for _ in 0..3 {
                    log.purge().unwrap();
                    log.prepare().unwrap();
                }
            })
        };
        let reader = {
            let log = stage.log.clone();
            thread::spawn(move || {
                for _ in 0..6 {
                    let last = log.last_index(2);
                    let lags = log.entries(2, 1, last + 1, u64::MAX).unwrap();
                    assert!(lags.iter().map(|e| e.index).eq(1..=last));
                    let first = log.first_index(1);
                    match log.entries(1, first, first + 1, u64::MAX) {
                        Ok(found) => {
                            assert_eq!((found[0].index, found[0].data.len()), (first, 900))
                        }
                        Err(Error::InvalidArgument(_)) => {}
                        Err(other) => panic!("{other}"),
                    }
                    thread::yield_now();
                }
            })
        };
        writer.join().unwrap();
        reader.join().unwrap();
        purger.join().unwrap();
        assert_eq!((stage.log.first_index(1), stage.log.last_index(2)), (5, 6));
        let durable = stage.log.durable();
        expect_durable(&stage.disk, durable);
        drop(stage.log);
        let disk = Arc::new(stage.disk);
        let log = Log::open(disk, Path::new("/log"), options()).unwrap().0;
        assert_eq!(log.entries(2, 1, 7, u64::MAX).unwrap().len(), 6);
        assert_eq!((log.first_index(1), log.last_index(1)), (5, 6));
    });
}
