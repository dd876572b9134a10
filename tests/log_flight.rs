//! Several groups in flight: whatever order the disk completes them in, they become durable in theirs,
//! and a crash between them leaves a prefix.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod log_disk;

use catamaran::log::{Entry, Log, LogBatch, Options, Seq};
use catamaran::{Error, Result};
use log_disk::hold::{Call, HoldDisk, Rule};
use log_disk::{Crash, Dice, Image, MemDisk, Step, Survivors};
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

const DIR: &str = "/log";
const GROUPS: u64 = 3;

fn options() -> Options {
    Options { segment_bytes: 64 << 10, spare_segments: 2, ..Options::default() }
}

/// What becomes of one write or sync of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// It waits for [`Gate::release`], then is done.
    Held,
    /// It waits for that, then fails.
    HeldThenFails(ErrorKind),
    /// It fails at once.
    Fails(ErrorKind),
}

/// Decides over writes and syncs of segments.
#[derive(Default, Debug)]
struct Gate {
    writes: Mutex<VecDeque<Option<Fate>>>,
    syncs: Mutex<VecDeque<Option<Fate>>>,
    waiting: Mutex<(u64, u64)>,
    moved: Condvar,
    /// Not 0: every write and sync is put off for a while, by chance.
    shake: AtomicU64,
}

impl Gate {
    fn pass(&self, plan: &Mutex<VecDeque<Option<Fate>>>) -> std::result::Result<(), ErrorKind> {
        let fate = plan.lock().unwrap().pop_front().flatten();
        let seed = self.shake.load(Ordering::Relaxed);
        if seed != 0 {
            let mut dice = Dice(seed);
            let turns = dice.roll(60);
            self.shake.store(dice.0 | 1, Ordering::Relaxed);
            (0..turns).for_each(|_| std::thread::yield_now());
        }
        let Some(fate) = fate else { return Ok(()) };
        if let Fate::Fails(kind) = fate {
            return Err(kind);
        }
        let mut waiting = self.waiting.lock().unwrap();
        waiting.0 += 1;
        let ticket = waiting.0;
        self.moved.notify_all();
        while waiting.1 < ticket {
            waiting = self.moved.wait(waiting).unwrap();
        }
        match fate {
            Fate::Held => Ok(()),
            Fate::HeldThenFails(kind) | Fate::Fails(kind) => Err(kind),
        }
    }

    /// Waits until so many have been held since the beginning.
    fn held(&self, count: u64) {
        let mut waiting = self.waiting.lock().unwrap();
        while waiting.0 < count {
            waiting = self.moved.wait(waiting).unwrap();
        }
    }

    fn release(&self) {
        self.waiting.lock().unwrap().1 += 1;
        self.moved.notify_all();
    }
}

impl Rule for Gate {
    fn before(&self, call: Call, path: &Path) -> std::result::Result<(), ErrorKind> {
        if path.extension().is_none_or(|e| e != "seg") {
            return Ok(());
        }
        self.pass(if call == Call::Write { &self.writes } else { &self.syncs })
    }
}

/// What is on the disk, and the disk with the gate before it.
struct Gated {
    disk: MemDisk,
    gate: HoldDisk<Gate>,
}

impl Default for Gated {
    fn default() -> Gated {
        let disk = MemDisk::default();
        Gated { gate: HoldDisk::over(Arc::new(disk.clone())), disk }
    }
}

impl Gated {
    fn gate(&self) -> &Gate {
        &self.gate.hold
    }
}

/// Batch number `n` (from 1): one entry in each group, of a size and content of its own.
fn batch(n: u64) -> LogBatch {
    let mut batch = LogBatch::new();
    for group in 1..=GROUPS {
        let data = vec![(n * group) as u8; (n * 37 % 1500) as usize];
        batch.append(group, [Entry { index: n, term: 1, kind: 0, data: data.into() }]);
    }
    batch
}

fn open(disk: &Gated) -> Log {
    Log::open(Arc::new(disk.gate.clone()), Path::new(DIR), options()).unwrap().0
}

/// Opens what a crash left: batches 1 to some number, that number at least `acked`, and nothing else.
fn check_image(image: Image, acked: u64) -> u64 {
    let disk = MemDisk::of(image);
    let (log, recovery) = Log::open(Arc::new(disk), Path::new(DIR), options()).unwrap();
    assert!(recovery.quarantined.is_empty() && recovery.harmless.is_empty(), "{recovery:?}");
    let last = log.last_index(1);
    assert!(last >= acked, "{acked} acknowledged: {recovery:?}");
    for group in 1..=GROUPS {
        assert_eq!(log.last_index(group), last, "batches are whole");
        for entry in log.entries(group, 1, last + 1, u64::MAX).unwrap() {
            let n = entry.index;
            assert_eq!(entry.data, vec![(n * group) as u8; (n * 37 % 1500) as usize]);
        }
    }
    last
}

/// The image in which all that was written stays, synced or not.
fn image_of(disk: &Gated) -> Image {
    let mut crash = Crash::default();
    disk.disk.state().journal.iter().for_each(|step| crash.step(step));
    crash.image(Survivors::All)
}

/// Two rounds from two threads; the first is held at its write, the second at its sync. Then
/// `between`, then both go on. What the rounds return, in order.
fn two_in_flight(
    disk: &Gated,
    log: &Log,
    first: Fate,
    between: impl FnOnce(),
) -> (Result<Option<u64>>, Result<Option<u64>>) {
    disk.gate().writes.lock().unwrap().extend([Some(first), None]);
    disk.gate().syncs.lock().unwrap().extend([Some(Fate::Held)]);
    std::thread::scope(|scope| {
        let round = || log.write_round().map(|round| round.map(|round| round.durable.0));
        log.submit(batch(1)).unwrap();
        let one = scope.spawn(round);
        disk.gate().held(1);
        log.submit(batch(2)).unwrap();
        let two = scope.spawn(round);
        disk.gate().held(2);
        assert_eq!(log.durable(), Seq(0));
        between();
        // The gate lets the first held go first.
        disk.gate().release();
        disk.gate().release();
        (one.join().unwrap(), two.join().unwrap())
    })
}

#[test]
fn a_later_group_on_the_disk_before_an_earlier_one() {
    let disk = Gated::default();
    let log = open(&disk);
    let rounds = two_in_flight(&disk, &log, Fate::Held, || {
        // The second group is there, the first is not: nothing was acknowledged, nothing comes back.
        assert_eq!(check_image(image_of(&disk), 0), 0);
    });
    assert_eq!((rounds.0.unwrap(), rounds.1.unwrap()), (Some(1), Some(2)));
    assert_eq!(log.durable(), Seq(2));
    drop(log);
    assert_eq!(check_image(image_of(&disk), 2), 2);
}

#[test]
fn a_failed_write_takes_those_behind_it_along() {
    let disk = Gated::default();
    let log = open(&disk);
    let rounds = two_in_flight(&disk, &log, Fate::HeldThenFails(ErrorKind::Other), || {});
    assert!(rounds.0.is_err());
    assert!(rounds.1.is_err(), "acknowledged behind a group that failed");
    assert_eq!(log.durable(), Seq(0));
    assert!(matches!(log.submit(batch(3)), Err(Error::Stopped { .. })));
    assert!(log.wait(Seq(1)).is_err() && log.write_round().is_err());
}

#[test]
fn a_failed_sync_takes_those_behind_it_along() {
    let disk = Gated::default();
    let log = open(&disk);
    disk.gate().syncs.lock().unwrap().extend([Some(Fate::HeldThenFails(ErrorKind::Other)), None]);
    std::thread::scope(|scope| {
        log.submit(batch(1)).unwrap();
        let one = scope.spawn(|| log.write_round().map(drop));
        disk.gate().held(1);
        log.submit(batch(2)).unwrap();
        let two = scope.spawn(|| log.write_round().map(drop));
        disk.gate().release();
        assert!(one.join().unwrap().is_err());
        assert!(two.join().unwrap().is_err());
    });
    assert_eq!(log.durable(), Seq(0));
}

/// Once a sync has failed, one that succeeds proves nothing, be it of an earlier group: what failed may have been the write-back
/// of that group's blocks.
#[test]
fn a_failed_sync_takes_those_before_it_along() {
    let disk = Gated::default();
    let log = open(&disk);
    disk.gate().writes.lock().unwrap().extend([Some(Fate::Held), None]);
    disk.gate().syncs.lock().unwrap().extend([Some(Fate::Fails(ErrorKind::Other)), None]);
    std::thread::scope(|scope| {
        let first = log.submit(batch(1)).unwrap();
        let one = scope.spawn(|| log.write_round().map(drop));
        disk.gate().held(1);
        log.submit(batch(2)).unwrap();
        assert!(log.write_round().is_err());
        disk.gate().release();
        assert!(one.join().unwrap().is_err(), "acknowledged after a failed sync");
        assert!(log.wait(first).is_err());
    });
    assert_eq!(log.durable(), Seq(0));
}

#[test]
fn a_group_that_found_no_room_flies_again() {
    let disk = Gated::default();
    let log = open(&disk);
    let full = Fate::HeldThenFails(ErrorKind::StorageFull);
    let rounds = two_in_flight(&disk, &log, full, || {});
    assert!(matches!(rounds.0, Err(Error::DiskFull { .. })));
    assert!(matches!(rounds.1, Err(Error::DiskFull { .. })));
    assert_eq!((log.durable(), log.last_index(1)), (Seq(0), 2));
    log.submit(batch(3)).unwrap();
    log.wait(Seq(2)).unwrap();
    log.wait(Seq(3)).unwrap();
    assert_eq!(log.stats().pending_bytes, 0);
    log.barrier().unwrap();
    drop(log);
    assert_eq!(check_image(image_of(&disk), 3), 3);
}

#[test]
fn crashes_under_many_writers() {
    const BATCHES: u64 = 120;
    let mut images = 0;
    for seed in 1..=4u64 {
        let disk = Gated::default();
        let log = open(&disk);
        disk.gate().shake.store(seed * 0x9e37_79b9, Ordering::Relaxed);
        let next = Mutex::new(1);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    loop {
                        let seq = {
                            let mut next = next.lock().unwrap();
                            if *next > BATCHES {
                                break;
                            }
                            *next += 1;
                            log.submit(batch(*next - 1)).unwrap()
                        };
                        log.wait(seq).unwrap();
                        disk.disk.acked(seq.0);
                    }
                });
            }
        });
        assert_eq!(log.durable(), Seq(BATCHES));
        drop(log);
        let journal = std::mem::take(&mut disk.disk.state().journal);
        let mut crash = Crash::default();
        let mut acked = 0;
        for (n, step) in journal.iter().enumerate() {
            if let Step::Acked(seq) = step {
                acked = acked.max(*seq);
                continue;
            }
            crash.step(step);
            let seed = (n as u64 + 1) * 0x9e37_79b9;
            for survivors in [
                Survivors::None,
                Survivors::All,
                Survivors::Subset(seed),
                Survivors::Subset(seed ^ 0xffff),
                Survivors::Torn(seed),
            ] {
                let check = || check_image(crash.image(survivors), acked);
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check));
                outcome.unwrap_or_else(|cause| {
                    eprintln!("seed {seed}, crash after operation {n}, {survivors:?}");
                    std::panic::resume_unwind(cause)
                });
                images += 1;
            }
        }
    }
    println!("{images} crash images with several groups in flight, all recovered");
}
