//! The k-th operation of the disk fails, for every k of a script, in six ways. Whatever fails: no
//! acknowledged batch is lost, nothing is acknowledged after a failed sync, every error has a type, and a
//! full disk is forgotten once there is room. What cannot be read harms groups that have bytes there, and nobody
//! else. `LOG_FAULTS_ROUNDS` makes the script longer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod log_disk;

use catamaran::log::{Entry, Log, LogBatch, Options, Recovery};
use catamaran::testkit::{Batch, Model};
use catamaran::{Error, Result};
use log_disk::faults::{Call, Fault, FaultDisk, SECTOR};
use log_disk::sectors::touched;
use log_disk::{Crash, Image, MemDisk, Survivors};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

const DIR: &str = "/log";

fn options() -> Options {
    Options {
        segment_bytes: 16 << 10,
        cache_bytes: 1 << 10,
        spare_segments: 2,
        ..Options::default()
    }
}

fn open(disk: &FaultDisk) -> Result<(Log, Recovery)> {
    Log::open(Arc::new(disk.clone()), Path::new(DIR), options())
}

/// A batch is made for what the log holds when its turn has come.
type Make = fn(&Model, u64) -> Batch;

#[derive(Clone, Debug)]
enum Do {
    Submit(Make, u64),
    Round,
    Barrier,
    Purge,
    Prepare,
    /// Reads every entry; the cache is too small for them.
    Read,
    Reopen,
}

fn entry(group: u64, index: u64, term: u64, len: usize) -> Entry {
    let mut data = format!("{group}/{index}@{term}").into_bytes();
    data.resize(data.len() + len, (group * 16 + term) as u8);
    Entry { index, term, kind: 0, data: data.into() }
}

fn run(group: u64, from: u64, to: u64, term: u64, len: usize) -> Vec<Entry> {
    (from..=to).map(|index| entry(group, index, term, len)).collect()
}

fn grow(model: &Model, round: u64) -> Batch {
    let (one, two) = (model.last(1), model.last(2));
    Batch::new()
        .append(1, run(1, one + 1, one + 4, round, 500))
        .append(2, run(2, two + 1, two + 4, round, 300))
        .state(3, format!("vote {round}"))
}

fn ahead(model: &Model, round: u64) -> Batch {
    let last = model.last(1);
    Batch::new().append(1, run(1, last, last + 1, round, 700))
}

fn back(model: &Model, round: u64) -> Batch {
    let last = model.last(1);
    Batch::new().append(1, run(1, last, last, round, 20)).state(1, format!("s{round}"))
}

fn born(_: &Model, round: u64) -> Batch {
    Batch::new().clear(4).append(4, run(4, 1, 3, round, 900)).state(4, "alive")
}

fn dead(_: &Model, _: u64) -> Batch {
    Batch::new().clear(4)
}

/// Larger than a segment: the file grows, and shrinks when it is recycled.
fn huge(model: &Model, round: u64) -> Batch {
    let last = model.last(5);
    Batch::new().append(5, run(5, last + 1, last + 1, round, 18_000))
}

fn compact(model: &Model, id: u64, keep: u64) -> Batch {
    let index = model.last(id).saturating_sub(keep);
    match model.groups.get(&id).and_then(|group| group.entries.get(&index)) {
        Some(entry) => Batch::new().compact(id, index, entry.term),
        None => Batch::new(),
    }
}

/// Appends, overwrites, compactions, clears, rotations, purges, reopenings.
fn script() -> Vec<Do> {
    let rounds = std::env::var("LOG_FAULTS_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(4);
    let mut script = Vec::new();
    for round in 1..=rounds {
        script.extend([Do::Submit(grow, round), Do::Round]);
        // The tail of one group is overwritten, twice in one round of the writer.
        script.extend([Do::Submit(ahead, round), Do::Submit(back, round)]);
        script.push(if round % 2 == 0 { Do::Barrier } else { Do::Round });
        // A group that comes and goes.
        script.extend([Do::Submit(born, round), Do::Round, Do::Submit(dead, round)]);
        // One group compacts, the other lags behind.
        script.extend([Do::Submit(|model, _| compact(model, 1, 2), round), Do::Round]);
        match round % 3 {
            0 => script.extend([Do::Read, Do::Purge]),
            1 => {
                script.extend([Do::Prepare, Do::Read, Do::Submit(huge, round), Do::Round]);
                script.push(Do::Submit(|model, _| compact(model, 5, 0), round));
            }
            _ => script.push(Do::Purge),
        }
        if round % 2 == 0 {
            script.extend([Do::Round, Do::Reopen]);
        }
    }
    script.push(Do::Submit(|model, _| compact(model, 2, 1), 10));
    script.extend([Do::Round, Do::Purge, Do::Barrier, Do::Reopen, Do::Read]);
    script
}

/// One run of the script and what must be true of it.
struct Run {
    disk: MemDisk,
    faults: FaultDisk,
    log: Option<Log>,
    /// What the log shows.
    model: Model,
    /// What the log was after each batch that it took.
    after: BTreeMap<u64, Model>,
    acked: u64,
    /// Nothing may be acknowledged any more, until the next open.
    stopped: bool,
    errors: u64,
}

impl Run {
    fn new(at: Option<(u64, Fault)>) -> Run {
        let disk = MemDisk::default();
        let faults = FaultDisk::over_journal(&disk);
        faults.plan().at = at;
        let after = BTreeMap::from([(0, Model::default())]);
        let model = Model::default();
        let mut run =
            Run { disk, faults, log: None, model, after, acked: 0, stopped: false, errors: 0 };
        run.open();
        run
    }

    /// A fault comes once: the second attempt succeeds, when there is room.
    fn open(&mut self) {
        for attempt in 0..3 {
            self.stopped = false;
            match open(&self.faults) {
                Ok((log, recovery)) => {
                    self.log = Some(log);
                    self.opened(&recovery);
                    return;
                }
                Err(error) => {
                    assert!(attempt < 2, "cannot be opened again: {error}");
                    self.expect_typed(&error);
                    if self.is_rotten() {
                        // What it cannot read may have been acknowledged: it says where, and changes nothing.
                        self.expect_there(&error);
                        self.faults.plan().bad.clear();
                    }
                    self.faults.plan().full = false;
                }
            }
        }
    }

    /// A sector cannot be read.
    fn is_rotten(&self) -> bool {
        self.faults.plan().bad.values().any(|sectors| !sectors.is_empty())
    }

    /// Groups that have something in a sector that cannot be read (or share a record with who has).
    fn hit(&self) -> BTreeSet<u64> {
        let bad = self.faults.plan().bad.clone();
        touched(&self.disk, Path::new(DIR), &bad)
    }

    /// The error names a file with a bad sector, and where it is.
    fn expect_there(&self, error: &Error) {
        let Error::Corruption { path, offset, .. } = error else { panic!("{error:?}") };
        let bad = self.faults.plan().bad.get(path).cloned().unwrap_or_default();
        assert!(bad.iter().any(|at| (*at..at + SECTOR).contains(offset)), "{error}: {bad:?}");
    }

    /// What the disk could not read harms those whose bytes they were; none of it is written down: when the disk
    /// reads again, all is there.
    fn opened(&mut self, recovery: &Recovery) {
        if self.is_rotten() && !recovery.quarantined.is_empty() {
            let hit = self.hit();
            let mut rest = self.model_at(recovery.last_seq);
            for fenced in &recovery.quarantined {
                assert!(hit.contains(&fenced.group), "{fenced:?}, hit are {hit:?}");
                rest.groups.remove(&fenced.group);
            }
            let log = self.log.clone().unwrap();
            rest.groups.iter().for_each(|(id, group)| {
                self.faults.plan().paused = true;
                let found = log.entries(*id, group.truncated.index + 1, group.last() + 1, u64::MAX);
                self.faults.plan().paused = false;
                assert!(found.unwrap().iter().eq(group.entries.values()), "group {id}");
            });
            drop(log);
            self.errors += 1;
            self.log = None;
            self.faults.plan().bad.clear();
            return self.open();
        }
        assert!(recovery.quarantined.is_empty(), "{recovery:?}");
        assert!(recovery.last_seq >= self.acked, "{} acknowledged: {recovery:?}", self.acked);
        // What was taken and not acknowledged may be gone.
        self.after.split_off(&(recovery.last_seq + 1));
        self.model = self.after.values().next_back().unwrap().clone();
        self.acked = recovery.last_seq;
        self.compare();
    }

    fn model_at(&self, seq: u64) -> Model {
        self.after.range(..=seq).next_back().unwrap().1.clone()
    }

    fn compare(&self) {
        self.faults.plan().paused = true;
        self.model.compare(self.log.as_ref().unwrap()).unwrap();
        self.faults.plan().paused = false;
    }

    fn expect_typed(&mut self, error: &Error) {
        self.errors += 1;
        let typed = matches!(
            error,
            Error::Io { .. }
                | Error::DiskFull { .. }
                | Error::Stopped { .. }
                | Error::Corruption { .. }
                | Error::Identity(_)
        );
        assert!(typed, "{error:?}");
    }

    /// After each step: what was acknowledged never shrinks, and does not grow once it must not.
    fn note(&mut self, result: Result<()>) {
        let log = self.log.clone().unwrap();
        let durable = log.durable().0;
        assert!(durable >= self.acked);
        if self.stopped {
            assert_eq!(durable, self.acked, "acknowledged after a failed sync");
        }
        self.acked = durable;
        self.disk.acked(durable);
        if let Err(error) = result {
            self.expect_typed(&error);
            assert!(!self.is_rotten(), "one sector ends it: {error}");
            if matches!(error, Error::DiskFull { .. }) {
                // A promise: what waits is tried again.
                let again = log.write_round();
                let stops = matches!(again, Err(Error::Stopped { .. }));
                assert!(!stops, "was to stay usable: {error}, {again:?}");
            }
            if matches!(self.faults.plan().hit, Some((Call::Sync | Call::SyncDir, _)))
                && matches!(
                    error,
                    Error::Io { op: "sync" | "sync directory", .. } | Error::Stopped { .. }
                )
            {
                // Whoever asked for it: the writer, purge, or who keeps spares ready.
                let after = [log.write_round().map(drop), log.purge().map(drop)];
                let stops = |after: &Result<()>| matches!(after, Err(Error::Stopped { .. }));
                assert!(after.iter().all(stops), "goes on after a failed sync: {error}, {after:?}");
                self.stopped = true;
            }
        }
    }

    fn step(&mut self, step: &Do) {
        let log = self.log.clone().unwrap();
        match step {
            Do::Submit(make, round) => {
                let batch = make(&self.model, *round);
                let submitted = log.submit(LogBatch::from(&batch));
                if let Ok(seq) = submitted {
                    self.model.apply(&batch);
                    self.after.insert(seq.0, self.model.clone());
                }
                self.note(submitted.map(drop));
            }
            Do::Round => self.note(log.write_round().map(drop)),
            Do::Barrier => self.note(log.barrier()),
            Do::Purge => self.note(log.purge().map(drop)),
            Do::Prepare => self.note(log.prepare().map(drop)),
            Do::Read => {
                for (id, group) in &self.model.groups {
                    log.trim_cache(*id, group.last());
                }
                let read = self.model.groups.iter().try_for_each(|(id, group)| {
                    let found =
                        log.entries(*id, group.truncated.index + 1, group.last() + 1, u64::MAX);
                    let found = match found {
                        Err(error @ Error::Corruption { .. }) if self.is_rotten() => {
                            let hit = self.hit();
                            assert!(hit.contains(id), "group {id}, hit are {hit:?}: {error}");
                            self.expect_there(&error);
                            return Ok(());
                        }
                        found => found?,
                    };
                    assert!(found.iter().eq(group.entries.values()), "group {id}");
                    Ok(())
                });
                self.note(read);
            }
            Do::Reopen => {
                drop(log);
                self.log = None;
                self.open();
            }
        }
    }

    /// The script to its end, then crashes, then a sound disk.
    fn finish(mut self, script: &[Do]) -> Run {
        let mut since = 0;
        for step in script {
            self.step(step);
            if self.faults.plan().full {
                // Some steps in want of room, then there is some again.
                since += 1;
                if since > 4 {
                    self.faults.plan().full = false;
                    self.recovers();
                }
            }
        }
        self.faults.plan().full = false;
        self.faults.plan().bad.clear();
        let mut crash = Crash::default();
        for step in &self.disk.state().journal {
            crash.step(step);
        }
        let acked = self.acked;
        for survivors in
            [Survivors::None, Survivors::All, Survivors::Subset(acked), Survivors::Torn(7)]
        {
            check_image(crash.image(survivors), acked, &self.after);
        }
        let live = self.disk.state().image.clone();
        check_image(live, acked, &self.after);
        self.log = None;
        self.open();
        self
    }

    /// There is room again: a log that a full disk did not stop for good goes on as if nothing had been.
    fn recovers(&mut self) {
        if self.stopped {
            // A sync that fails is final, for want of room or otherwise.
            return;
        }
        let log = self.log.clone().unwrap();
        log.write_round().unwrap();
        log.purge().unwrap();
        log.barrier().unwrap();
        let taken = *self.after.keys().next_back().unwrap();
        assert!(log.durable().0 >= taken, "all that was taken is durable");
        self.acked = log.durable().0;
        self.compare();
    }
}

fn check_image(image: Image, acked: u64, after: &BTreeMap<u64, Model>) {
    let disk = MemDisk::of(image);
    let (log, recovery) = Log::open(Arc::new(disk), Path::new(DIR), options()).unwrap();
    assert!(recovery.quarantined.is_empty(), "{recovery:?}");
    assert!(recovery.last_seq >= acked, "{acked} acknowledged: {recovery:?}");
    let (_, model) = after.range(..=recovery.last_seq).next_back().unwrap();
    model.compare(&log).unwrap();
}

/// How many operations the script takes.
fn length(script: &[Do]) -> u64 {
    let run = Run::new(None).finish(script);
    assert_eq!(run.errors, 0);
    assert!(!run.stopped);
    run.faults.plan().calls
}

/// What can be asked of the disk and fail like this: the script must ask for all of it.
fn concerned(fault: Fault) -> BTreeSet<String> {
    use Call::*;
    let calls: &[Call] = match fault {
        Fault::Eio | Fault::Eintr => &[
            Open, Create, Rename, Remove, List, Exists, MakeDir, SyncDir, Lock, Read, Write,
            Overwrite, Sync, Len, SetLen,
        ],
        Fault::Enospc => &[Create, Write, SetLen, Sync],
        Fault::EnospcOnOverwrite => &[Overwrite],
        Fault::ShortRead | Fault::BadSector => &[Read],
        Fault::ShortWrite => &[Write, Overwrite],
    };
    calls.iter().map(|call| format!("{call:?}")).collect()
}

fn fail_everywhere(fault: Fault) {
    let script = script();
    let length = length(&script);
    assert!(length >= 200, "{length} operations");
    let mut hits: BTreeMap<String, u64> = BTreeMap::new();
    let mut bad = Vec::new();
    for k in 0..length {
        let outcome = std::panic::catch_unwind(|| Run::new(Some((k, fault))).finish(&script));
        match outcome {
            Ok(run) => {
                let hit = run.faults.plan().hit.clone();
                if let Some((call, _)) = hit {
                    if (fault, call) == (Fault::Eio, Call::Read) && run.errors > 0 {
                        bad.push(format!("operation {k}: a read that failed once harmed somebody"));
                    }
                    *hits.entry(format!("{call:?}")).or_default() += 1;
                }
            }
            Err(cause) => {
                let said = cause.downcast_ref::<String>().map(String::as_str);
                let said = said.or(cause.downcast_ref::<&str>().copied()).unwrap_or("?");
                bad.push(format!("operation {k}: {said}"));
            }
        }
    }
    println!("{fault:?}: {length} operations, failed in turn: {hits:?}");
    assert!(bad.is_empty(), "{fault:?}: {} of {length}:\n{}", bad.len(), bad.join("\n"));
    assert_eq!(hits.into_keys().collect::<BTreeSet<_>>(), concerned(fault));
}

#[test]
fn eio_at_every_operation() {
    fail_everywhere(Fault::Eio);
}

/// A read fails, and so does every other that wants the same sector.
#[test]
fn a_bad_sector_at_every_read() {
    fail_everywhere(Fault::BadSector);
}

#[test]
fn no_room_at_every_operation() {
    fail_everywhere(Fault::Enospc);
}

#[test]
fn no_room_to_overwrite_at_every_operation() {
    fail_everywhere(Fault::EnospcOnOverwrite);
}

#[test]
fn interrupted_at_every_operation() {
    fail_everywhere(Fault::Eintr);
}

/// Nothing is written to a spare before it is open. That too many files were open (`ulimit -n`) once ended the log, though
/// nothing of it had been touched.
#[test]
fn a_spare_that_cannot_be_opened_ends_nothing() {
    let mut hits = Vec::new();
    for k in 0..6 {
        let disk = FaultDisk::over_journal(&MemDisk::default());
        let (log, _) = open(&disk).unwrap();
        let next = disk.plan().calls + k;
        disk.plan().at = Some((next, Fault::Eio));
        let prepared = log.prepare();
        let hit = disk.plan().hit.as_ref().map(|hit| hit.0);
        if !matches!(hit, Some(Call::Create | Call::Open)) {
            continue;
        }
        hits.extend(hit);
        assert!(matches!(prepared, Err(Error::Io { op: "open", .. })), "{prepared:?}");
        log.write(LogBatch::from(&Batch::new().append(1, run(1, 1, 1, 1, 300)))).unwrap();
        while log.prepare().unwrap() {}
        assert!(log.stats().spares >= 2);
    }
    assert_eq!(hits, [Call::Create, Call::Open]);
}

#[test]
fn a_short_read_at_every_operation() {
    fail_everywhere(Fault::ShortRead);
}

#[test]
fn a_short_write_at_every_operation() {
    fail_everywhere(Fault::ShortWrite);
}

/// A segment's second half must not be missed because a read came back short: what is in it was
/// acknowledged, and so is the evidence for that.
#[test]
fn a_short_read_while_opening_loses_nothing() {
    let fill = |disk: &FaultDisk| -> (u64, Model) {
        let (log, _) = open(disk).unwrap();
        let mut model = Model::default();
        for index in 1..=11 {
            let batch = Batch::new().append(1, run(1, index, index, 1, 300));
            model.apply(&batch);
            log.write(LogBatch::from(&batch)).unwrap();
        }
        log.barrier().unwrap();
        (log.durable().0, model)
    };
    let disk = MemDisk::default();
    let (acked, model) = fill(&FaultDisk::over_journal(&disk));
    let image = disk.state().image.clone();
    for k in 0..40 {
        let faults = FaultDisk::over_journal(&MemDisk::of(image.clone()));
        faults.plan().at = Some((k, Fault::ShortRead));
        match open(&faults) {
            Ok((log, recovery)) => {
                faults.plan().paused = true;
                assert!(recovery.last_seq >= acked, "operation {k}: {recovery:?}");
                model.compare(&log).unwrap();
            }
            Err(error) => {
                assert!(matches!(error, Error::Io { .. } | Error::Corruption { .. }), "{error:?}");
            }
        }
        // The disk is well again, and whatever that open did has harmed nothing.
        faults.plan().at = None;
        faults.plan().paused = true;
        let (log, _) = open(&faults).unwrap();
        model.compare(&log).unwrap_or_else(|what| panic!("operation {k}, opened again: {what}"));
    }
}
