//! A scripted workload on a log, its model after every batch, and a count of what it did.

use crate::log_disk::faults::FaultDisk;
use crate::log_disk::hold::{Held, HoldDisk, hold_this_thread};
use crate::log_disk::{Dice, MemDisk, Step};
use catamaran::Error;
use catamaran::log::{Entry, Log, LogBatch, Options, Seq};
use catamaran::types::LogPosition;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

pub const DIR: &str = "/log";
const GROUPS: u64 = 5;
/// What groups in flight together may fill of a segment, beside what else is in it.
const FLIGHT_ROOM: u64 = 24 << 10;

pub fn options() -> Options {
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
pub struct GroupModel {
    truncated: LogPosition,
    entries: BTreeMap<u64, (u64, u8, Vec<u8>)>,
    state: Option<Vec<u8>>,
}

impl GroupModel {
    fn last(&self) -> u64 {
        self.entries.keys().last().copied().unwrap_or(self.truncated.index)
    }
}

pub type Model = BTreeMap<u64, GroupModel>;
/// What the log is after each record that a user wrote.
pub type After = BTreeMap<u64, Model>;

/// How much a batch is to hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Size {
    /// Fits a block.
    Small,
    Any,
    /// Larger than a segment.
    Huge,
}

pub struct Script {
    pub disk: MemDisk,
    /// The same disk, as the log sees it.
    pub faults: FaultDisk,
    held: HoldDisk,
    log: Option<Log>,
    model: Model,
    pub after: After,
    dice: Dice,
    salt: u64,
    /// Every other script compresses its runs.
    compress_above: Option<usize>,
    /// What the script did, and how often.
    pub did: BTreeMap<&'static str, u64>,
}

impl Script {
    pub fn new(seed: u64) -> Script {
        let disk = MemDisk::default();
        let faults = FaultDisk::over_journal(&disk);
        let held = HoldDisk::over(Arc::new(faults.clone()));
        let after = After::from([(0, Model::default())]);
        let mut script = Script::over(disk, faults, held, after);
        script.dice = Dice(seed);
        script.compress_above = seed.is_multiple_of(2).then_some(64);
        script.log = Some(script.open().unwrap());
        script
    }

    fn over(disk: MemDisk, faults: FaultDisk, held: HoldDisk, after: After) -> Script {
        let model = after.values().next_back().cloned().unwrap_or_default();
        let did = BTreeMap::new();
        Script {
            disk,
            faults,
            held,
            log: None,
            model,
            after,
            dice: Dice(1),
            salt: 0,
            compress_above: None,
            did,
        }
    }

    /// Goes on with a log that was recovered on `held`, which is over `disk`. `after` ends where the log
    /// does; nothing written before bears the salt.
    pub fn resume(
        (disk, held): (MemDisk, HoldDisk),
        log: Log,
        after: After,
        seed: u64,
        salt: u64,
    ) -> Script {
        let faults = FaultDisk::over_journal(&disk);
        let mut script = Script::over(disk, faults, held, after);
        (script.dice, script.salt) = (Dice(seed | 1), salt);
        script.log = Some(log);
        script
    }

    fn open(&self) -> catamaran::Result<Log> {
        let options = Options { compress_above: self.compress_above, ..options() };
        Ok(Log::open(Arc::new(self.held.clone()), Path::new(DIR), options)?.0)
    }

    pub fn log(&self) -> &Log {
        self.log.as_ref().unwrap()
    }

    fn did(&mut self, what: &'static str, times: u64) {
        *self.did.entry(what).or_default() += times;
    }

    pub fn batch(&mut self) -> LogBatch {
        self.batch_of(Size::Any)
    }

    fn batch_of(&mut self, size: Size) -> LogBatch {
        let mut batch = LogBatch::new();
        let times = if size == Size::Any { 1 + self.dice.roll(3) } else { 1 };
        for _ in 0..times {
            let id = 1 + self.dice.roll(GROUPS);
            let what = if size == Size::Huge { 20 } else { self.dice.roll(20) };
            let group = self.model.entry(id).or_default();
            let did = match what {
                0 => {
                    batch.clear(id);
                    *group = GroupModel::default();
                    "clear"
                }
                1 => {
                    let to = LogPosition { index: group.last() + 5, term: 9 };
                    batch.reset(id, to);
                    group.truncated = to;
                    group.entries.clear();
                    "reset"
                }
                2..=6 => {
                    let room = group.last() - group.truncated.index;
                    let index = group.truncated.index + self.dice.roll(room + 1);
                    if let Some((term, ..)) = group.entries.get(&index) {
                        let to = LogPosition { index, term: *term };
                        batch.compact_to(id, to);
                        group.truncated = to;
                        group.entries = group.entries.split_off(&(index + 1));
                        "compact"
                    } else {
                        "nothing"
                    }
                }
                7..=9 => {
                    self.salt += 1;
                    let state = format!("state {} of {id}", self.salt).into_bytes();
                    batch.set_state(id, state.clone());
                    group.state = Some(state);
                    "state"
                }
                _ => {
                    let last = group.last();
                    let back = if what <= 11 { self.dice.roll(4) } else { 0 };
                    let first = (last + 1 - back.min(last)).max(group.truncated.index + 1);
                    group.entries.split_off(&first);
                    let mut entries = Vec::new();
                    let most = if size == Size::Any { 4 } else { 2 };
                    for index in first..=first + self.dice.roll(most) {
                        self.salt += 1;
                        let len = match size {
                            Size::Huge => 20_000,
                            _ => self.dice.roll(900) as usize,
                        };
                        let mut data = format!("{id}/{index}#{}", self.salt).into_bytes();
                        data.resize(data.len() + len, (self.salt % 251) as u8);
                        let term = 1 + self.salt / 40;
                        let kind = (self.salt % 3) as u8;
                        group.entries.insert(index, (term, kind, data.clone()));
                        entries.push(Entry { index, term, kind, data: data.into() });
                    }
                    batch.append(id, entries);
                    match (size, first <= last) {
                        (Size::Huge, _) => "append about a segment",
                        (_, true) => "overwrite",
                        (_, false) => "append",
                    }
                }
            };
            self.did(did, 1);
        }
        self.model.retain(|_, group| *group != GroupModel::default());
        batch
    }

    fn submit(&mut self, size: Size) -> u64 {
        let batch = self.batch_of(size);
        let seq = self.log().submit(batch).unwrap();
        self.after.insert(seq.0, self.model.clone());
        seq.0
    }

    fn ack(&self) {
        self.disk.acked(self.log().durable().0);
    }

    pub fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            match self.dice.roll(25) {
                0 => {
                    let purged = self.log().purge().unwrap();
                    self.did("segments purged", purged.segments);
                    self.did("bytes that purge rewrote", purged.moved_bytes);
                    self.did("groups that purge restated", purged.restated);
                    self.ack();
                }
                1 => {
                    self.log().barrier().unwrap();
                    self.did("barrier", 1);
                    self.ack();
                }
                2 => {
                    self.log().write_round().unwrap();
                    self.ack();
                    self.log = None;
                    self.log = Some(self.open().unwrap());
                    self.did("reopen", 1);
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
                5 | 6 => self.fly_together(),
                7..=13 => drop(self.submit(Size::Any)),
                14 if self.dice.roll(6) == 0 => drop(self.submit(Size::Huge)),
                _ => {
                    self.submit(Size::Any);
                    self.log().write_round().unwrap();
                    self.ack();
                }
            }
        }
        check_model(self.log(), &self.model).unwrap();
    }

    /// How much of the active segment is written: up to the end of what was written last to the file
    /// with the newest name.
    fn used(&self) -> u64 {
        let state = self.disk.state();
        let segment = |path: &&std::path::PathBuf| path.extension().is_some_and(|e| e == "seg");
        let active = state.image.names.keys().rfind(segment).and_then(|p| state.image.names.get(p));
        let end = |step: &Step| match step {
            Step::Write { inode, at, bytes } if Some(inode) == active => {
                Some(at + bytes.len() as u64)
            }
            _ => None,
        };
        state.journal.iter().rev().find_map(end).unwrap_or(u64::MAX)
    }

    /// Up to four groups in the air at a time: they take off, are written and synced in an order of the
    /// dice's, and are acknowledged as the log publishes them.
    fn fly_together(&mut self) {
        self.log().write_round().unwrap();
        self.ack();
        // A block each. The first may need one more for echoes, and the last is not let in unless there
        // would be room for all of them.
        let room = (FLIGHT_ROOM.saturating_sub(self.used()) / 4096).saturating_sub(2);
        let flights = room.min(2 + self.dice.roll(3));
        if flights < 2 {
            return;
        }
        let hold = self.held.hold.clone();
        hold.clear();
        // Of each: its last record, whether it has synced.
        let mut up: Vec<(u64, Held)> = Vec::new();
        std::thread::scope(|scope| {
            loop {
                let waiting: Vec<usize> =
                    (0..up.len()).filter(|n| up[*n].1 == Held::Waits).collect();
                let more = (up.len() as u64) < flights;
                if !more && waiting.is_empty() {
                    break;
                }
                if more && (waiting.is_empty() || self.dice.roll(2) == 0) {
                    let number = up.len() as u64;
                    let seq = self.submit(Size::Small);
                    let log = self.log().clone();
                    scope.spawn(move || {
                        hold_this_thread(number);
                        log.write_round().unwrap();
                    });
                    up.push((seq, hold.settled(number)));
                    self.did("groups in the air with others", u64::from(!waiting.is_empty()));
                    continue;
                }
                if self.dice.roll(8) == 0 {
                    // A keeper's work beside them: a spare, or an older segment's footer.
                    let before = self.disk.state().journal.len();
                    self.log().prepare().unwrap();
                    let worked = self.disk.state().journal.len() > before;
                    self.did("spares and footers beside groups in the air", u64::from(worked));
                }
                let chosen = waiting[self.dice.roll(waiting.len() as u64) as usize];
                hold.let_go(chosen as u64);
                up[chosen].1 = hold.settled(chosen as u64);
                if up[chosen].1 == Held::Synced {
                    let early = up[..chosen].iter().any(|(_, held)| *held == Held::Waits);
                    self.did("groups on the disk before an earlier one", u64::from(early));
                }
                // What is published is acknowledged at once, so that journals repeat.
                let landed = up.iter().take_while(|(_, held)| *held == Held::Synced).last();
                if let Some((seq, _)) = landed {
                    self.log().wait(Seq(*seq)).unwrap();
                    self.ack();
                }
            }
        });
    }

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
        // The test's own reading is not what is to fail.
        self.faults.plan().paused = true;
        check_model(&log, &self.model).unwrap();
        self.faults.plan().paused = false;
        self.log = Some(log);
        self.ack();
        Ok(())
    }

    /// As [`Script::run`], but an operation may fail. Returns how many calls did.
    pub fn run_on_a_bad_disk(&mut self, steps: u64) -> u64 {
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

/// Whether the log is what the model says, to the last byte.
pub fn check_model(log: &Log, model: &Model) -> Result<(), String> {
    let same = |is: bool, what: &dyn Fn() -> String| if is { Ok(()) } else { Err(what()) };
    same(log.groups().iter().eq(model.keys()), &|| {
        format!("groups {:?}, not {:?}", log.groups(), model.keys())
    })?;
    for (id, group) in model {
        same(log.damage(*id).is_none(), &|| format!("group {id}: {:?}", log.damage(*id)))?;
        same(log.truncated(*id) == group.truncated, &|| {
            format!("group {id} begins at {:?}, not {:?}", log.truncated(*id), group.truncated)
        })?;
        same(log.last_index(*id) == group.last(), &|| {
            format!("group {id} ends at {}, not {}", log.last_index(*id), group.last())
        })?;
        same(log.state(*id).as_deref() == group.state.as_deref(), &|| {
            format!("group {id}'s state is {:?}, not {:?}", log.state(*id), group.state)
        })?;
        let (low, high) = (group.truncated.index + 1, group.last() + 1);
        let entries = log.entries(*id, low, high, u64::MAX).map_err(|error| error.to_string())?;
        let told = entries.iter().map(|e| (e.index, (e.term, e.kind, &e.data[..])));
        let wanted = group.entries.iter();
        let wanted = wanted.map(|(index, (term, kind, data))| (*index, (*term, *kind, &data[..])));
        same(told.eq(wanted), &|| format!("group {id} has other entries than were written"))?;
        for (index, (term, ..)) in &group.entries {
            let found = log.term(*id, *index).map_err(|error| error.to_string())?;
            same(found == Some(*term), &|| format!("group {id}, {index}: term {found:?}"))?;
        }
    }
    Ok(())
}
