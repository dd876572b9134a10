//! Crashes at every operation of a log workload, with every kind of loss of what was not synced: the
//! recovered log is a whole-batch prefix that holds everything acknowledged.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so when it fails")]

mod log_disk;

use catamaran::Error;
use catamaran::log::{Entry, Log, LogBatch, Options};
use catamaran::types::LogPosition;
use log_disk::faults::{Fault, FaultDisk};
use log_disk::{Crash, Dice, Image, MemDisk, Step, Survivors};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const DIR: &str = "/log";
const GROUPS: u64 = 5;

fn options() -> Options {
    Options {
        compress_above: None,
        segment_bytes: 32 << 10,
        cache_bytes: 4 << 10,
        max_pending_bytes: 1 << 20,
        spare_segments: 2,
        rewrite_percent: 50,
    }
}

#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct GroupModel {
    truncated: LogPosition,
    entries: BTreeMap<u64, (u64, u8, Vec<u8>)>,
    state: Option<Vec<u8>>,
}

impl GroupModel {
    fn last(&self) -> u64 {
        self.entries.keys().last().copied().unwrap_or(self.truncated.index)
    }
}

type Model = BTreeMap<u64, GroupModel>;

/// What the log must be after each record that a user wrote.
struct Script {
    disk: MemDisk,
    /// The same disk, as the log sees it.
    faults: FaultDisk,
    log: Option<Log>,
    model: Model,
    after: BTreeMap<u64, Model>,
    dice: Dice,
    salt: u64,
}

impl Script {
    fn new(seed: u64) -> Script {
        let disk = MemDisk::default();
        let faults = FaultDisk::over_journal(&disk);
        let log = Log::open(Arc::new(faults.clone()), Path::new(DIR), options()).unwrap().0;
        let after = BTreeMap::from([(0, Model::default())]);
        let (log, model) = (Some(log), Model::default());
        Script { disk, faults, log, model, after, dice: Dice(seed), salt: 0 }
    }

    fn log(&self) -> &Log {
        self.log.as_ref().unwrap()
    }

    fn batch(&mut self) -> LogBatch {
        let mut batch = LogBatch::new();
        for _ in 0..1 + self.dice.roll(3) {
            let id = 1 + self.dice.roll(GROUPS);
            let what = self.dice.roll(20);
            let group = self.model.entry(id).or_default();
            match what {
                0 => {
                    batch.clear(id);
                    *group = GroupModel::default();
                }
                1 => {
                    let to = LogPosition { index: group.last() + 5, term: 9 };
                    batch.reset(id, to);
                    group.truncated = to;
                    group.entries.clear();
                }
                2..=6 => {
                    let room = group.last() - group.truncated.index;
                    let index = group.truncated.index + self.dice.roll(room + 1);
                    if let Some((term, ..)) = group.entries.get(&index) {
                        let to = LogPosition { index, term: *term };
                        batch.compact_to(id, to);
                        group.truncated = to;
                        group.entries = group.entries.split_off(&(index + 1));
                    }
                }
                7..=9 => {
                    self.salt += 1;
                    let state = format!("state {} of {id}", self.salt).into_bytes();
                    batch.set_state(id, state.clone());
                    group.state = Some(state);
                }
                _ => {
                    let last = group.last();
                    let back = if what == 10 { self.dice.roll(4) } else { 0 };
                    let first = (last + 1 - back.min(last)).max(group.truncated.index + 1);
                    group.entries.split_off(&first);
                    let mut entries = Vec::new();
                    for index in first..=first + self.dice.roll(4) {
                        self.salt += 1;
                        let len = self.dice.roll(900) as usize;
                        let mut data = format!("{id}/{index}#{}", self.salt).into_bytes();
                        data.resize(data.len() + len, (self.salt % 251) as u8);
                        let term = 1 + self.salt / 40;
                        let kind = (self.salt % 3) as u8;
                        group.entries.insert(index, (term, kind, data.clone()));
                        entries.push(Entry { index, term, kind, data: data.into() });
                    }
                    batch.append(id, entries);
                }
            }
        }
        self.model.retain(|_, group| *group != GroupModel::default());
        batch
    }

    fn submit(&mut self) {
        let batch = self.batch();
        let seq = self.log().submit(batch).unwrap();
        self.after.insert(seq.0, self.model.clone());
    }

    fn ack(&self) {
        self.disk.acked(self.log().durable().0);
    }

    fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            match self.dice.roll(24) {
                0 => {
                    let purged = self.log().purge().unwrap();
                    MOVED.fetch_add(purged.moved_bytes, Relaxed);
                    PURGED.fetch_add(purged.segments, Relaxed);
                    self.ack();
                }
                1 => {
                    self.log().barrier().unwrap();
                    self.ack();
                }
                2 => {
                    self.log().write_round().unwrap();
                    self.ack();
                    self.log = None;
                    let opened =
                        Log::open(Arc::new(self.faults.clone()), Path::new(DIR), options());
                    self.log = Some(opened.unwrap().0);
                    self.ack();
                }
                3 => {
                    for id in 1..=GROUPS {
                        let last = self.log().last_index(id);
                        self.log().trim_cache(id, last);
                    }
                }
                4 => {
                    // What a keeper does: spares, footers.
                    while self.log().prepare().unwrap() {}
                    self.ack();
                }
                5..=13 => self.submit(),
                _ => {
                    self.submit();
                    self.log().write_round().unwrap();
                    self.ack();
                }
            }
        }
        check_model(self.log(), &self.model);
    }
}

impl Script {
    /// The log as it is after a failure, opened anew: what was not durable may be gone.
    fn reopen(&mut self) -> catamaran::Result<()> {
        self.log = None;
        let open = || Log::open(Arc::new(self.faults.clone()), Path::new(DIR), options());
        // The disk fails once: the second attempt works, whatever the first one left behind.
        let first = open();
        let failed = first.as_ref().err().map(ToString::to_string);
        let (log, recovery) = match first {
            Ok(opened) => opened,
            Err(_) => {
                self.faults.plan().full = false;
                open().unwrap_or_else(|error| panic!("after {failed:?}: {error}"))
            }
        };
        assert!(recovery.quarantined.is_empty() && recovery.harmless.is_empty(), "{recovery:?}");
        self.after.retain(|seq, _| *seq <= recovery.last_seq);
        self.model = self.after.values().next_back().cloned().unwrap_or_default();
        check_model(&log, &self.model);
        self.log = Some(log);
        self.ack();
        Ok(())
    }

    /// As [`Script::run`], but an operation may fail. Returns how many calls did.
    fn run_on_a_bad_disk(&mut self, steps: u64) -> u64 {
        let mut failures = 0;
        for _ in 0..steps {
            let outcome = match self.dice.roll(24) {
                0..=2 => self.log().purge().map(drop),
                3 => self.log().barrier(),
                4 => self.log().prepare().and_then(|_| self.log().prepare()).map(drop),
                5 => self.reopen(),
                _ => {
                    let before = self.model.clone();
                    let batch = self.batch();
                    match self.log().submit(batch) {
                        Ok(seq) => {
                            self.after.insert(seq.0, self.model.clone());
                            self.log().write_round().map(drop)
                        }
                        Err(error) => {
                            self.model = before;
                            Err(error)
                        }
                    }
                }
            };
            failures += u64::from(outcome.is_err());
            self.faults.plan().full = false;
            match outcome {
                Ok(()) | Err(Error::Io { .. } | Error::DiskFull { .. }) => {}
                Err(Error::Stopped { .. }) => self.reopen().unwrap(),
                Err(other) => panic!("{other}"),
            }
            self.ack();
        }
        failures
    }
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

fn check_model(log: &Log, model: &Model) {
    let groups: Vec<u64> = model.keys().copied().collect();
    assert_eq!(log.groups(), groups);
    for (id, group) in model {
        assert_eq!(log.damage(*id), None);
        assert_eq!(log.truncated(*id), group.truncated, "group {id}");
        assert_eq!(log.last_index(*id), group.last(), "group {id}");
        assert_eq!(log.state(*id).as_deref(), group.state.as_deref(), "group {id}");
        let (low, high) = (group.truncated.index + 1, group.last() + 1);
        let entries = log.entries(*id, low, high, u64::MAX).unwrap();
        let found: BTreeMap<_, _> =
            entries.into_iter().map(|e| (e.index, (e.term, e.kind, e.data.to_vec()))).collect();
        assert_eq!(found, group.entries, "group {id}");
        for (index, (term, ..)) in &group.entries {
            assert_eq!(log.term(*id, *index).unwrap(), Some(*term));
        }
    }
}

/// What purge did in the workloads that were crashed: bytes moved, segments given back.
static MOVED: AtomicU64 = AtomicU64::new(0);
static PURGED: AtomicU64 = AtomicU64::new(0);
/// Footers that were read in place of records, over all images.
static FOOTERS: AtomicU64 = AtomicU64::new(0);
/// Images that were opened once more with every footer rubbed out.
static WITHOUT: AtomicU64 = AtomicU64::new(0);

/// Opens what a crash left, checks it, and tells how far it goes.
fn check_image(mut image: Image, acked: u64, after: &BTreeMap<u64, Model>) -> (MemDisk, u64) {
    let disk = MemDisk::of(image.clone());
    let (log, recovery) = Log::open(Arc::new(disk.clone()), Path::new(DIR), options()).unwrap();
    if FOOTERS.fetch_add(recovery.footers, Relaxed) % 8 < recovery.footers {
        // A footer is a shortcut: without it, the records say the same.
        let trailers = image.files.values_mut().filter_map(|file| file.last_chunk_mut::<64>());
        trailers.for_each(|trailer| trailer.fill(0));
        let disk = MemDisk::of(image);
        let (log, same) = Log::open(Arc::new(disk), Path::new(DIR), options()).unwrap();
        assert_eq!((same.last_seq, same.footers), (recovery.last_seq, 0));
        let (_, model) = after.range(..=same.last_seq).next_back().unwrap();
        check_model(&log, model);
        WITHOUT.fetch_add(1, Relaxed);
    }
    assert!(recovery.quarantined.is_empty(), "{recovery:?}");
    assert!(recovery.harmless.is_empty(), "{recovery:?}");
    assert!(recovery.last_seq >= acked, "{} acknowledged: {recovery:?}", acked);
    let (_, model) = after.range(..=recovery.last_seq).next_back().unwrap();
    check_model(&log, model);
    (disk, recovery.last_seq)
}

fn survivors(crash: &Crash, n: usize) -> Vec<Survivors> {
    let seed = (n as u64 + 1) * 0x9e37_79b9;
    if crash.unsynced.is_empty() {
        return vec![Survivors::None];
    }
    let mut all = vec![
        Survivors::None,
        Survivors::All,
        Survivors::Subset(seed),
        Survivors::Subset(seed ^ 0xffff),
        Survivors::Torn(seed),
        Survivors::Torn(seed ^ 0xffff),
        Survivors::Torn(seed ^ 0xff_ffff),
        Survivors::Garbage(seed),
        Survivors::Garbage(seed ^ 0xffff),
        Survivors::Garbage(seed ^ 0xff_ffff),
    ];
    all.extend((1..crash.unsynced.len()).map(Survivors::Prefix));
    all
}

fn crash_everywhere(seed: u64, steps: u64) -> u64 {
    let mut script = Script::new(seed);
    script.run(steps);
    let journal = std::mem::take(&mut script.disk.state().journal);
    let mut crash = Crash::default();
    let mut images = 0;
    for (n, step) in journal.iter().enumerate() {
        crash.step(step);
        if matches!(step, Step::Acked(_)) {
            continue;
        }
        for (k, survivors) in survivors(&crash, n).into_iter().enumerate() {
            let image = crash.image(survivors);
            let check = || check_image(image.clone(), crash.acked, &script.after);
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check));
            let (disk, last) = outcome.unwrap_or_else(|cause| {
                eprintln!("seed {seed}, crash after operation {n} {step:?}, {survivors:?}");
                std::panic::resume_unwind(cause)
            });
            images += 1;
            // A crash while the crash is being recovered from, now and then.
            if (n + k) % 37 == 0 {
                images += crash_in_recovery(&image, &disk, crash.acked, last, &script.after);
            }
        }
    }
    images
}

fn crash_in_recovery(
    image: &Image,
    recovered: &MemDisk,
    acked: u64,
    last: u64,
    after: &BTreeMap<u64, Model>,
) -> u64 {
    let journal = std::mem::take(&mut recovered.state().journal);
    let mut crash = Crash { certain: image.clone(), unsynced: Vec::new(), acked };
    let mut images = 0;
    for (n, step) in journal.iter().enumerate() {
        crash.step(step);
        if n + 1 == journal.len() {
            // The open has returned: what it found must stay.
            crash.acked = last;
        }
        for survivors in survivors(&crash, n) {
            check_image(crash.image(survivors), crash.acked, after);
            images += 1;
        }
    }
    images
}

#[test]
fn crash_at_every_operation() {
    let seeds: u64 =
        std::env::var("LOG_CRASH_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(24);
    let mut images = 0;
    for seed in 1..=seeds {
        images += crash_everywhere(seed * 0x5851_f42d, 150);
    }
    let (footers, without) = (FOOTERS.load(Relaxed), WITHOUT.load(Relaxed));
    println!(
        "{images} crash images of {seeds} workloads, all recovered; {footers} footers read, {without} \
         images opened without theirs as well"
    );
    let (moved, purged) = (MOVED.load(Relaxed), PURGED.load(Relaxed));
    println!("purge moved {moved} bytes and gave back {purged} segments meanwhile");
    assert!(images > 1000 && footers > 100 && without > 10 && moved > 1000 && purged > 10);
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
