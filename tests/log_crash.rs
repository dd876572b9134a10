//! Crashes at every operation of a log workload, with every kind of loss of what was not synced, and
//! crashes of the recoveries, and of theirs: the recovered log is a whole-batch prefix that holds everything
//! acknowledged. `LOG_CRASH_SEEDS` says how many workloads, `LOG_CRASH_THREADS` on how many threads.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so when it fails")]

#[path = "log_disk/explore.rs"]
mod explore;
mod log_disk;
#[path = "log_disk/script.rs"]
mod script;

use catamaran::Error;
use catamaran::log::{Entry, Log, LogBatch};
use catamaran::types::LogPosition;
use explore::{Density, Explorer, LEVELS, Lie, Tally};
use log_disk::faults::Fault;
use log_disk::{Crash, Image, MemDisk, Survivors};
use script::{After, DIR, Script, check_model, options};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

/// Operations of a workload.
const STEPS: u64 = 150;
/// One in so many images is crashed in its recovery, and one in so many of those again.
const DENSITY: Density = Density([127, 151]);
/// Denser, to meet planted bugs soon.
const DENSE: Density = Density([41, 61]);

/// What comes in less than every workload (18 times in 24 of them, in clumps), and is wanted a third as often. Of fewer
/// workloads than this nothing can be said: they may well have none.
const SELDOM: [&str; 2] =
    ["groups on the disk before an earlier one", "spares and footers beside groups in the air"];
const SOME: u64 = 8;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

fn explorer(seed: u64, lie: Option<Lie>) -> Explorer {
    let density = if lie.is_some() { DENSE } else { DENSITY };
    Explorer { seed: seed * 0x5851_f42d, density, lie, tally: Tally::default() }
}

#[test]
fn crash_at_every_operation() {
    let seeds = setting("LOG_CRASH_SEEDS", 24);
    let tally = Mutex::new(Tally::default());
    let next = AtomicU64::new(1);
    std::thread::scope(|scope| {
        for _ in 0..setting("LOG_CRASH_THREADS", 2) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed > seeds {
                        return;
                    }
                    let mut walk = explorer(seed, None);
                    if let Err(what) = walk.workload(STEPS) {
                        panic!("workload {seed}, {what}");
                    }
                    tally.lock().unwrap().add(walk.tally);
                }
            });
        }
    });
    let tally = tally.into_inner().unwrap();
    println!("{} crash images of {seeds} workloads, all recovered", tally.total());
    tally.print();
    // The enumeration has not become empty on the sly.
    for verb in [
        "append",
        "append about a segment",
        "overwrite",
        "compact",
        "clear",
        "reset",
        "state",
        "barrier",
        "reopen",
        "segments purged",
        "bytes that purge rewrote",
        "groups that purge restated",
        "groups in the air with others",
    ] {
        let times = tally.did.get(verb).copied().unwrap_or(0);
        assert!(times >= seeds.div_ceil(4), "{verb}: {times} times in {seeds} workloads");
    }
    for verb in SELDOM {
        let times = tally.did.get(verb).copied().unwrap_or(0);
        let least = if seeds < SOME { 0 } else { seeds.div_ceil(4) };
        println!("{verb}: {times} times, at least {least} wanted");
        assert!(times >= least, "{verb}: {times} times in {seeds} workloads");
    }
    for purpose in [
        "create a spare",
        "fill a spare",
        "sync a spare",
        "sync names: a spare",
        "write a header",
        "sync a header",
        "copy a tail",
        "sync a copied tail",
        "name a segment",
        "sync names: a segment",
        "write a group",
        "sync a group",
        "write a footer",
        "sync a footer",
        "write a trailer",
        "sync a trailer",
        "recycle a segment",
        "sync names: recycled",
        "remove a segment",
        "sync names: removed",
        "set a length",
    ] {
        assert!(
            tally.after(purpose) >= seeds.div_ceil(4),
            "{purpose}: {} images",
            tally.after(purpose)
        );
    }
    for level in 0..LEVELS {
        let at = tally.images.iter().filter(|((l, ..), _)| *l == level);
        assert!(at.map(|(_, count)| count).sum::<u64>() > 100 * seeds, "level {level}");
    }
    assert!(tally.nested[..LEVELS - 1].iter().flatten().all(|count| *count > 0));
    assert!(tally.footers > 0 && tally.without_footers > 0 && tally.inspected > 0);
    assert!(tally.torn > 0 && tally.beyond > 0);
    assert!(seeds < 24 || tally.total() >= 100_000, "{} images", tally.total());
}

/// Bugs, planted into the disk: what the log counts on is acknowledged and not done. Were they the log's (a
/// sync forgotten), it would look the same. The walk must find each of them. (Not among them: the sync of a
/// new spare is for speed and that of a trailer for the next opening's; nothing is lost without.)
#[test]
fn planted_bugs_are_found() {
    let lies: [(&str, Lie); 9] = [
        ("no sync of a file is done", |purpose| {
            purpose.starts_with("sync") && !purpose.starts_with("sync names")
        }),
        ("no sync of the directory is done", |purpose| purpose.starts_with("sync names")),
        ("groups are not synced", |purpose| purpose == "sync a group"),
        ("copied tails are not synced", |purpose| purpose == "sync a copied tail"),
        ("headers are not synced", |purpose| purpose == "sync a header"),
        ("footers are not synced before their trailers", |purpose| purpose == "sync a footer"),
        ("names of segments are not synced", |purpose| purpose == "sync names: a segment"),
        ("names that a killed process left are not synced", |purpose| {
            purpose == "sync names: at open"
        }),
        ("names of recycled files are not synced", |purpose| purpose == "sync names: recycled"),
    ];
    for (what, lie) in lies {
        let mut images = 0;
        let found = (1..=4).find_map(|seed| {
            let mut walk = explorer(seed, Some(lie));
            let found = walk.workload(STEPS).err();
            images += walk.tally.total();
            found
        });
        println!("{what}: after {images} images: {found:?}");
        assert!(found.is_some(), "{what}: {images} images, and nothing was found");
    }
}

fn check_image(image: Image, acked: u64, after: &After) {
    let disk = MemDisk::of(image);
    let (log, recovery) = Log::open(Arc::new(disk), Path::new(DIR), options()).unwrap();
    assert!(recovery.quarantined.is_empty() && recovery.harmless.is_empty(), "{recovery:?}");
    assert!(recovery.last_seq >= acked, "{acked} acknowledged: {recovery:?}");
    let (_, model) = after.range(..=recovery.last_seq).next_back().unwrap();
    check_model(&log, model).unwrap();
}

/// Every operation of a script fails, one at a time.
#[test]
fn each_operation_fails_once() {
    const STEPS: u64 = 60;
    let seed = 0x2545_f491;
    let mut script = Script::new(seed);
    let before = script.faults.plan().calls;
    assert_eq!(script.run_on_a_bad_disk(STEPS), 0);
    let operations = script.faults.plan().calls - before;
    let mut failures = 0;
    for kind in [Fault::Eio, Fault::Enospc] {
        for k in 0..operations {
            let mut script = Script::new(seed);
            script.faults.plan().at = Some((before + k, kind));
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let failures = script.run_on_a_bad_disk(STEPS);
                let journal = std::mem::take(&mut script.disk.state().journal);
                let mut crash = Crash::default();
                journal.iter().for_each(|step| crash.step(step));
                for survivors in [Survivors::None, Survivors::All, Survivors::Subset(k)] {
                    check_image(crash.image(survivors), crash.acked, &script.after);
                }
                failures
            }));
            failures += outcome.unwrap_or_else(|cause| {
                eprintln!("operation {k} failed with {kind:?}");
                std::panic::resume_unwind(cause)
            });
        }
    }
    println!("{operations} operations failed two ways each: {failures} calls told of it");
    assert!(operations > 200 && failures > operations / 2);
}

#[test]
fn no_acknowledgement_after_a_failed_sync() {
    for left in 0..4 {
        let mut script = Script::new(77);
        script.disk.state().syncs_left = Some(left);
        let mut acked = 0;
        let mut failures = 0;
        for _ in 0..12 {
            let batch = script.batch();
            match script.log().submit(batch) {
                Ok(seq) => match script.log().wait(seq) {
                    Ok(()) => acked = seq.0,
                    Err(_) => failures += 1,
                },
                Err(Error::Stopped { .. }) => failures += 1,
                Err(other) => panic!("{other}"),
            }
            // The disk works again: the log must not.
            if failures > 0 {
                script.disk.state().syncs_left = None;
                assert!(script.log().write_round().is_err());
                assert!(script.log().barrier().is_err());
                assert!(script.log().purge().is_err());
            }
            assert_eq!(script.log().durable().0, acked);
        }
        assert_eq!(acked, left);
        assert_eq!(failures, 12 - left);
    }
}

#[test]
fn a_full_disk_is_survived() {
    let disk = MemDisk::default();
    let open = || Log::open(Arc::new(disk.clone()), Path::new(DIR), options()).unwrap().0;
    let log = open();
    disk.state().capacity = Some(5 * (32 << 10));
    let mut index = 0;
    let mut put = |log: &Log| {
        let mut batch = LogBatch::new();
        let data = vec![index as u8; 3000];
        batch.append(1, [Entry { index: index + 1, term: 1, kind: 0, data: data.into() }]);
        batch.set_state(2, format!("{index}"));
        index += 1;
        let seq = log.submit(batch).unwrap();
        log.wait(seq).map(|()| index)
    };
    let full = loop {
        match put(&log) {
            Ok(_) => {}
            Err(Error::DiskFull { .. }) => break log.last_index(1),
            Err(other) => panic!("{other}"),
        }
    };
    // What was submitted is readable, durable or not; a retry fails the same way.
    assert_eq!(log.entries(1, 1, full + 1, u64::MAX).unwrap().len() as u64, full);
    assert!(matches!(log.write_round(), Err(Error::DiskFull { .. })));
    // Compaction and purge make room out of the reserve.
    let mut batch = LogBatch::new();
    batch.compact_to(1, LogPosition { index: full - 1, term: 1 });
    log.submit(batch).unwrap();
    let purged = log.purge().unwrap();
    assert!(purged.segments > 0, "{purged:?}");
    let relieve = |log: &Log, error: Error| {
        assert!(matches!(error, Error::DiskFull { .. }), "{error}");
        let mut batch = LogBatch::new();
        batch.compact_to(1, LogPosition { index: log.last_index(1) - 1, term: 1 });
        log.submit(batch).unwrap();
        assert!(log.purge().unwrap().segments > 0);
    };
    for _ in 0..100 {
        put(&log).map(drop).unwrap_or_else(|error| relieve(&log, error));
    }
    log.barrier().unwrap_or_else(|error| relieve(&log, error));
    log.barrier().unwrap();
    let (last, state) = (log.last_index(1), log.state(2));
    drop(log);
    let log = open();
    assert_eq!((log.last_index(1), log.state(2)), (last, state));
}

#[test]
fn the_directory_is_locked() {
    let disk = MemDisk::default();
    let open = || Log::open(Arc::new(disk.clone()), Path::new(DIR), options());
    let log = open().unwrap();
    assert!(matches!(open(), Err(Error::Locked(_))));
    drop(log);
    open().unwrap();
}
