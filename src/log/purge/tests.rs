//! A checkpoint that cannot be written leaves no trace.

use super::*;
use crate::env::mem::MemDisk;
use crate::env::{DirLock, Disk, File, Irregular, OpenMode};
use crate::log::queue::Pending;
use crate::log::{LogBatch, Options};
use crate::types::LogPosition;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn entry(index: u64) -> Entry {
    Entry { index, term: 1, kind: 0, data: vec![index as u8; 500].into() }
}

#[test]
fn a_checkpoint_over_live_entries_changes_nothing() {
    let options = Options { segment_bytes: 64 << 10, ..Options::default() };
    let (log, _) =
        Log::open(Arc::new(MemDisk::default()), Path::new("/log"), options.clone()).unwrap();
    let mut batch = LogBatch::new();
    batch.set_state(1, "said once");
    batch.append(2, [entry(1)]);
    log.write(batch).unwrap();
    let said = |log: &Log| {
        let group = log.shared.index.read(1).unwrap();
        (group.state_seq, group.state_rel)
    };
    let before = said(&log);
    let next = log.shared.queue.lock().next_seq;
    // The first group's state would be said again, were it not for the second one's entry.
    assert_eq!(log.shared.checkpoint(next, &mut Watch::default()).unwrap(), None);
    assert_eq!(log.shared.queue.lock().next_seq, next);
    assert_eq!(said(&log), before);

    let mut batch = LogBatch::new();
    batch.clear(2);
    log.write(batch).unwrap();
    let next = log.shared.queue.lock().next_seq;
    assert_eq!(log.shared.checkpoint(next, &mut Watch::default()).unwrap(), Some(1));
    assert_eq!(said(&log).0, next);
}

/// Purge reads what it moves without holding anybody up. What is overwritten, compacted, reset or cleared meanwhile must not come back
/// with the copy, which has the higher number: not for those who read now, and not when the log is opened again.
#[test]
fn what_dies_while_purge_reads_it_does_not_come_back() {
    let of = |term: u64, indexes: std::ops::RangeInclusive<u64>| {
        indexes.map(move |index| Entry { term, ..entry(index) }).collect::<Vec<_>>()
    };
    let at = |index, term| LogPosition { index, term };
    type Way<'a> = (&'a str, &'a dyn Fn(&mut LogBatch), Vec<Entry>);
    let ways: [Way<'_>; 6] = [
        ("nothing", &|batch| batch.set_state(2, "beside"), of(1, 1..=8)),
        (
            "overwritten",
            &|batch| batch.append(1, of(2, 5..=6)),
            [of(1, 1..=4), of(2, 5..=6)].concat(),
        ),
        ("compacted", &|batch| batch.compact_to(1, at(3, 1)), of(1, 4..=8)),
        ("reset", &|batch| batch.reset(1, at(5, 2)), Vec::new()),
        ("cleared", &|batch| batch.clear(1), Vec::new()),
        (
            "born again",
            &|batch| {
                batch.clear(1);
                batch.append(1, of(3, 1..=2));
            },
            of(3, 1..=2),
        ),
    ];
    for (what, way, wanted) in ways {
        let disk = Arc::new(MemDisk::default());
        let options = Options { segment_bytes: 64 << 10, cache_bytes: 0, ..Options::default() };
        let open = || Log::open(disk.clone(), Path::new("/log"), options.clone()).unwrap().0;
        let check = |log: &Log, when: &str| {
            let (first, last) = (log.first_index(1), log.last_index(1));
            let found = log.entries(1, first, last + 1, u64::MAX).unwrap();
            assert_eq!(found, wanted, "{what}, {when}");
            assert_eq!(log.entries(2, 1, 9, u64::MAX).unwrap(), of(1, 1..=8), "{what}, {when}");
        };
        let log = open();
        for index in 1..=8 {
            let mut batch = LogBatch::new();
            batch.append(1, of(1, index..=index));
            batch.append(2, of(1, index..=index));
            log.write(batch).unwrap();
        }
        log.trim_cache(1, 8);
        let floor = log.shared.queue.lock().next_seq;
        let mut load = Vec::new();
        for group in [1, 2] {
            let runs = log.shared.index.read(group).unwrap().runs.iter().copied().collect();
            load.extend(log.shared.merge_runs(group, runs).unwrap());
        }
        let mut batch = LogBatch::new();
        way(&mut batch);
        log.write(batch).unwrap();
        log.shared.move_load(floor, load, &mut Watch::default()).unwrap();
        log.trim_cache(1, 8);
        check(&log, "running");
        drop(log);
        check(&open(), "opened again");
    }
}

/// A spare that was made for one large record, and not taken for it because what it was to hold was given up meanwhile, once stayed
/// as large as it was for as long as the log was open.
#[test]
fn a_large_spare_that_nobody_needs_gives_back_what_it_has_too_much() {
    let options = Options { segment_bytes: 64 << 10, spare_segments: 1, ..Options::default() };
    let disk = MemDisk::default();
    let open = || Log::open(Arc::new(disk.clone()), Path::new("/log"), options.clone()).unwrap().0;
    let log = open();
    let spares = || -> Vec<u64> {
        let names = disk.list(Path::new("/log")).unwrap();
        let free = names.iter().filter(|name| name.extension().is_some_and(|e| e == "free"));
        let open = |name: &PathBuf| disk.open(&Path::new("/log").join(name), OpenMode::Read);
        free.map(|name| open(name).unwrap().len().unwrap()).collect()
    };
    assert_eq!(log.shared.make_room(1 << 20, true).unwrap(), Room::Any);
    assert!(spares().iter().any(|len| *len > 1 << 20), "{:?}", spares());
    let before = spares().len();
    log.purge().unwrap();
    assert_eq!(spares(), vec![64 << 10; before]);
    assert_eq!(log.shared.pool.lock().bytes(), (before as u64) << 16);
    // What was cut is as good as any other.
    for index in 1..=300 {
        let mut batch = LogBatch::new();
        batch.append(1, [entry(index)]);
        log.write(batch).unwrap();
    }
    drop(log);
    assert_eq!(open().last_index(1), 300);
}

/// Submitters wait for one record of a checkpoint, not for all that groups state; and what they say meanwhile is
/// neither lost nor undone by what is said again beside it.
#[test]
fn a_checkpoint_holds_submitters_up_for_few_groups_at_a_time() {
    const GROUPS: u64 = 3000;
    let options = Options { segment_bytes: 1 << 20, ..Options::default() };
    let disk = MemDisk::default();
    let open = || Log::open(Arc::new(disk.clone()), Path::new("/log"), options.clone()).unwrap().0;
    let log = open();
    let mut batch = LogBatch::new();
    (1..=GROUPS).for_each(|group| batch.set_state(group, group.to_le_bytes().to_vec()));
    log.write(batch).unwrap();
    let next = || log.shared.queue.lock().next_seq;
    let first = next();
    let restated = log.shared.checkpoint(first, &mut Watch::default()).unwrap();
    assert_eq!(restated, Some(GROUPS));
    let records = next() - first;
    assert!(records >= GROUPS * (SAYING + 8) / (2 * HOLD_SAID), "{records}");

    // Two submitters, each with its groups, beside one checkpoint after the other.
    let over = std::sync::atomic::AtomicBool::new(false);
    let said = std::thread::scope(|scope| {
        let submitters: Vec<_> = (0..2u64)
            .map(|who| {
                let (log, over) = (&log, &over);
                scope.spawn(move || {
                    let mut said = std::collections::BTreeMap::new();
                    let mut turn = who;
                    while !over.load(Relaxed) || turn < 200 {
                        turn += 2;
                        let group = 1 + turn * 7919 % GROUPS;
                        let group = group - group % 2 + who + 1;
                        let mut batch = LogBatch::new();
                        if turn % 5 == 0 {
                            batch.clear(group);
                            said.insert(group, None);
                        } else {
                            let state = format!("{who} at {turn}").into_bytes();
                            batch.set_state(group, state.clone());
                            said.insert(group, Some(state));
                        }
                        // Where the checkpoint gets no turn for long they run into the log's bound, and wait as a loop does.
                        while let Err(error) = log.submit(batch.clone()) {
                            assert!(matches!(error, Error::Busy { .. }), "{error}");
                            std::thread::sleep(std::time::Duration::from_millis(1));
                        }
                    }
                    said
                })
            })
            .collect();
        for _ in 0..10 {
            let floor = log.shared.queue.lock().next_seq;
            assert!(log.shared.checkpoint(floor, &mut Watch::default()).unwrap().is_some());
            for id in log.shared.index.groups() {
                assert!(!log.shared.index.read(id).is_some_and(|g| g.is_stated_below(floor)));
            }
        }
        over.store(true, Relaxed);
        submitters.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    log.barrier().unwrap();
    let check = |log: &Log| {
        for (group, state) in &said {
            assert_eq!(log.state(*group).as_deref(), state.as_deref(), "group {group}");
        }
    };
    check(&log);
    drop(log);
    let log = open();
    check(&log);
    let all: std::collections::BTreeSet<u64> = said.iter().map(|(group, _)| *group).collect();
    for group in (1..=GROUPS).filter(|group| !all.contains(group)) {
        assert_eq!(log.state(group).as_deref(), Some(&group.to_le_bytes()[..]), "group {group}");
    }
}

/// What is counted on beforehand is never less than what it takes, whatever the numbers.
#[test]
fn what_is_counted_on_is_enough() {
    let mut seed = 88_172_645_463_325_252_u64;
    let mut roll = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        // Numbers of all lengths.
        seed >> (seed.rotate_left(11) % 64)
    };
    for _ in 0..20_000 {
        let (id, len) = (roll(), roll() % 40_000);
        let state = (roll() % 3 > 0).then(|| vec![1; len as usize].into());
        let state_seq = u64::from(state.is_some());
        let truncated = crate::types::LogPosition { index: roll() >> 1, term: roll() };
        let base_seq = roll() % 2;
        let mut group = Group { truncated, base_seq, state, state_seq, ..Group::default() };
        let mut record = Encoded::with_capacity(4, 0);
        let said = restate(id, &group, 2, &mut record).unwrap();
        let [state, base] = group.saying(id);
        let counted =
            said.as_ref().map_or(0, Restated::weight) + state * state_seq + base * base_seq;
        let taken = record.dir.len() + record.payload.len() + record.groups.len();
        assert!(counted >= taken as u64, "{counted} of {taken}: {id} {group:?}");

        // A run, at the end of one with other terms.
        let (from, count) = (truncated.index + 1, 1 + (roll() % u64::from(u32::MAX)) as u32);
        let mut at = from;
        for _ in 0..roll() % 300 {
            group.terms.push((at, roll()));
            at = at.saturating_add(1 + roll());
        }
        let body = Span { rel: 0, len: roll() as u32, crc: roll() as u32 };
        let run = Run { from, seq: 1, body, count, skip: roll() as u32, packed: 0 };
        let mut record = Encoded::with_capacity(4, 0);
        let (skip, terms) = (run.skip, group.terms_of(&run));
        record.push(Op::Rewrite { group: id, from, count, skip, terms, body });
        let taken = record.dir.len() + record.groups.len();
        assert!(group.moving(&run) >= taken as u64, "{taken} of {id} {run:?} {:?}", group.terms);
    }
}

/// A disk that has no room for another file, when it is told so.
#[derive(Clone, Default, Debug)]
struct Small {
    disk: MemDisk,
    full: Arc<std::sync::atomic::AtomicBool>,
}

impl Disk for Small {
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>> {
        if mode == OpenMode::CreateNew && self.full.load(Relaxed) {
            return Err(Error::DiskFull { path: path.to_owned() });
        }
        self.disk.open(path, mode)
    }
    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> Result<()> {
        self.disk.remove(path)
    }
    fn list(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        self.disk.list(dir)
    }
    fn list_irregular(&self, dir: &Path) -> Result<Vec<Irregular>> {
        self.disk.list_irregular(dir)
    }
    fn exists(&self, path: &Path) -> Result<bool> {
        self.disk.exists(path)
    }
    fn create_dir_all(&self, dir: &Path) -> Result<()> {
        self.disk.create_dir_all(dir)
    }
    fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.disk.sync_dir(dir)
    }
    fn lock_dir(&self, dir: &Path) -> Result<Box<dyn DirLock>> {
        self.disk.lock_dir(dir)
    }
}

/// Between the choice of a floor and the moment when it is said, a submitter undoes something below it: then it is not
/// said, no file goes, and a crash finds what was undone. Once the disk has room, all goes on.
#[test]
fn a_submitter_who_undoes_below_a_floor_ahead_keeps_it_from_being_said() {
    const SEGMENT: u64 = 64 << 10;
    let options = Options {
        segment_bytes: SEGMENT,
        cache_bytes: 0,
        spare_segments: 1,
        max_pending_bytes: 8 << 20,
        ..Options::default()
    };
    let one = |index: u64| {
        let mut batch = LogBatch::new();
        let data = vec![index as u8; 2500].into();
        batch.append(1, [Entry { index, term: 1, kind: 0, data }]);
        if index > 1 {
            batch.compact_to(1, LogPosition { index: index - 1, term: 1 });
        }
        batch
    };
    // Nobody comes between; somebody does.
    for spoilt in [None, Some(2)] {
        let disk = Small::default();
        let open = || Log::open(Arc::new(disk.clone()), Path::new("/log"), options.clone());
        let log = open().unwrap().0;
        let mut batch = LogBatch::new();
        batch.set_state(2, "said once");
        log.write(batch).unwrap();
        (1..=100).for_each(|index| _ = log.write(one(index)).unwrap());
        disk.full.store(true, Relaxed);
        let mut last = 100;
        loop {
            last += 1;
            let seq = log.submit(one(last)).unwrap();
            if log.wait(seq).is_err() {
                break;
            }
        }
        let durable = log.durable();
        // More than the reserve holds.
        let end = last + 4 * SEGMENT / 2500;
        (last + 1..=end).for_each(|index| _ = log.submit(one(index)).unwrap());

        let shared = &*log.shared;
        let mut watch = shared.purging.lock();
        let berth = shared.berth(SHARES[0]).unwrap();
        let room = Room::Only(berth.room);
        let plan = shared.choose_floor(&mut watch.lived, room, Some(&berth)).unwrap();
        if let Some(group) = spoilt {
            let mut batch = LogBatch::new();
            batch.clear(group);
            log.submit(batch).unwrap();
        }
        let segments = shared.segments.read().by_base.len();
        let done = shared.alone(&mut watch, Some(berth), |watch| shared.carry_out(watch, plan));
        drop(watch);
        assert!(log.durable() > durable, "it went ahead");
        if spoilt.is_none() {
            assert!(done.unwrap().segments > 0);
        } else {
            assert!(matches!(done, Err(Error::DiskFull { .. })), "{done:?}");
            assert!(shared.segments.read().by_base.len() >= segments);
            // What was left out of what waits waits no more.
            let waits: usize = {
                let writer = shared.writer.lock();
                writer.stalled.iter().map(Pending::size).sum()
            };
            assert_eq!(log.stats().pending_bytes, waits as u64);
            // The process dies, and what waits with it.
            drop(log);
            disk.full.store(false, Relaxed);
            let log = open().unwrap().0;
            assert_eq!(log.state(2).unwrap(), "said once");
            assert!(log.last_index(1) < end);
            continue;
        }
        disk.full.store(false, Relaxed);
        log.barrier().unwrap();
        assert_eq!((log.stats().pending_bytes, log.last_index(1)), (0, end));
        assert_eq!(log.state(2).unwrap(), "said once");
    }
}
