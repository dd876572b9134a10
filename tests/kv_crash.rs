//! The real tables under `kill -9`: a child process writes, flushes, restores and compacts, the parent kills it
//! at random moments and reads what is left. It must be one consistent cut, exactly the model at that
//! point, and never older than what the child saw durable.
//!
//! The child is this test binary, run again with [`DIR_VAR`] set. What a killed process leaves in the page cache
//! stays there: losses of unsynced writes are the simulated disks' subject.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use bytes::Bytes;
use catamaran::kv::lsm::{LsmOptions, LsmTables};
use catamaran::kv::{Direction, Options, StateStore, TableStore, WriteBatch};
use catamaran::types::*;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Set for the child: where the store is.
const DIR_VAR: &str = "CATAMARAN_KV_CRASH_DIR";
const ROUNDS: u64 = 25;
/// The directory is made anew after so many rounds, so that the first open is hit too.
const ROUNDS_PER_DIR: u64 = 9;
const REGIONS: u64 = 3;
const KEYS_PER_REGION: u64 = 500;
const MEMTABLE_BYTES: u64 = 24 << 10;
const FIRST: u64 = INITIAL_POSITION.index;
/// Every so many batches one is a restore.
const RESTORE_EVERY: u64 = 64;

type Map = BTreeMap<Bytes, Bytes>;

/// splitmix64: the only source of choice, in both processes.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// What batch `i` does, the same in both processes.
#[derive(Debug)]
enum Change {
    Put(Bytes, Bytes),
    Delete(Bytes),
    DeleteRange(KeyRange),
}

/// The region that batch `i` belongs to.
fn region_of(i: u64) -> u64 {
    1 + i % REGIONS
}

fn key(region: u64, k: u64) -> Bytes {
    Bytes::from(format!("{region}/{k:05}"))
}

fn region_range(region: u64) -> KeyRange {
    KeyRange::new(format!("{region}/"), format!("{region}0"))
}

fn value(dice: &mut Dice, i: u64) -> Bytes {
    let mut value = format!("{i}:").into_bytes();
    value.resize(value.len() + dice.below(300) as usize, i as u8);
    Bytes::from(value)
}

fn is_restore(i: u64) -> bool {
    i.is_multiple_of(RESTORE_EVERY)
}

fn changes(i: u64) -> Vec<Change> {
    let mut dice = Dice(i);
    let region = region_of(i);
    let count = 1 + dice.below(24);
    let mut changes = Vec::new();
    for _ in 0..count {
        let k = dice.below(KEYS_PER_REGION);
        changes.push(match dice.below(40) {
            0 => Change::DeleteRange(KeyRange::new(key(region, k), key(region, k + 30))),
            1..=5 => Change::Delete(key(region, k)),
            _ => Change::Put(key(region, k), value(&mut dice, i)),
        });
    }
    changes
}

/// What a restore puts in place of everything that its region held.
fn restored(i: u64) -> Map {
    let mut dice = Dice(i);
    let region = region_of(i);
    let mut keys: Vec<u64> = (0..60).map(|_| dice.below(KEYS_PER_REGION)).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.into_iter().map(|k| (key(region, k), value(&mut dice, i))).collect()
}

/// Replays batch `i` on the model.
fn replay(model: &mut Map, i: u64) {
    if is_restore(i) {
        model.retain(|key, _| !region_range(region_of(i)).contains(key));
        return model.extend(restored(i));
    }
    for change in changes(i) {
        match change {
            Change::Put(key, value) => drop(model.insert(key, value)),
            Change::Delete(key) => drop(model.remove(&key)),
            Change::DeleteRange(range) => model.retain(|key, _| !range.contains(key)),
        }
    }
}

fn state(region: u64, index: u64) -> RegionState {
    let range = region_range(region);
    let region = Region { id: RegionId(region), range, ..Default::default() };
    let applied = LogPosition { index, term: 5 };
    let peer = PeerId(10 + region.id.0);
    RegionState { region, peer, applied, compacted: INITIAL_POSITION, ..RegionState::default() }
}

fn write(store: &TableStore, i: u64) {
    let state = state(region_of(i), i);
    if is_restore(i) {
        let mut items = restored(i).into_iter().map(Ok);
        store.restore(&[region_range(region_of(i))], &mut items, vec![state]).unwrap();
        return;
    }
    let mut batch = WriteBatch::new();
    for change in changes(i) {
        match change {
            Change::Put(key, value) => batch.put(key, value),
            Change::Delete(key) => batch.delete(key),
            Change::DeleteRange(range) => batch.delete_range(&range),
        }
    }
    batch.set_region(state);
    store.write(batch).unwrap();
}

fn open(dir: &Path) -> TableStore {
    // Some compactions are ordinary ones, some are begun in a pause, and some of those give way.
    let idle_after = Duration::ZERO;
    let options =
        LsmOptions { table_bytes: 16 << 10, l0_runs: 3, idle_after, ..Default::default() };
    let tables = LsmTables::open(dir, options).unwrap();
    TableStore::open(Box::new(tables), Options { memtable_bytes: MEMTABLE_BYTES }).unwrap()
}

/// The last batch of a cut: batches take turns among the regions, so the regions' indexes tell whether it is
/// one cut of the whole store.
fn last_batch(states: &[RegionState]) -> u64 {
    let last = states.iter().map(|state| state.applied.index).max().unwrap();
    let found: Vec<_> = states.iter().map(|s| (s.region.id.0, s.applied.index)).collect();
    let expected: Vec<_> = (1..=REGIONS)
        .map(|region| {
            let of_it = |i: &u64| *i == FIRST || region_of(*i) == region;
            (region, (FIRST..=last).rev().find(of_it).unwrap())
        })
        .collect();
    assert_eq!(found, expected, "regions of different instants");
    last
}

/// One line, in one system call: whole or not there.
fn say(line: String) {
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).unwrap();
    out.flush().unwrap();
}

/// Not a test of its own: what the child runs until it is killed.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR_VAR) else { return };
    let store = open(Path::new(&dir));
    if store.ident().unwrap().is_none() {
        let ident = StoreIdent { cluster: 1, store: StoreId(1), incarnation: 9 };
        let regions = (1..=REGIONS).map(|region| state(region, FIRST)).collect();
        store.bootstrap(&ident, regions).unwrap();
    }
    let first = last_batch(&store.region_states());
    say(format!("\ndurable {first}\n"));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                if !store.maintain().unwrap() {
                    std::thread::sleep(Duration::from_micros(500));
                }
            }
        });
        scope.spawn(|| {
            loop {
                if store.should_flush()
                    && let Some(flush) = store.freeze().unwrap()
                {
                    let cut = flush.run().unwrap();
                    let last = cut.iter().map(|(_, _, position)| position.index).max();
                    say(format!("durable {}\n", last.unwrap()));
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        for i in first + 1.. {
            while store.memtable_bytes() > MEMTABLE_BYTES * 4 {
                std::thread::sleep(Duration::from_micros(200));
            }
            write(&store, i);
            if is_restore(i) {
                say(format!("durable {i}\n"));
            }
        }
    });
}

/// Runs a child on `dir` and kills it; gives the newest batch that it reported durable.
fn run_and_kill(dir: &Path, dice: &mut Dice) -> Option<u64> {
    let delay = Duration::from_micros(5_000 + dice.below(55_000));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(DIR_VAR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut said = String::new();
    // One in four dies wherever it is, opening perhaps; the others once they write.
    if dice.below(4) != 0 {
        while !said.contains("durable ") {
            assert!(lines.read_line(&mut said).unwrap() > 0, "the child ended: {said}");
        }
    }
    std::thread::sleep(delay);
    child.kill().unwrap(); // SIGKILL
    let status = child.wait().unwrap();
    lines.read_to_string(&mut said).unwrap();
    assert!(status.code().is_none(), "the child ended by itself, {status}: {said}");
    let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().filter_map(|line| line.strip_prefix("durable ")?.parse().ok()).max()
}

#[test]
fn killed_at_random_moments() {
    let started = Instant::now();
    let mut dice = Dice(20_260_101);
    let mut dir = tempfile::tempdir().unwrap();
    let (mut model, mut at, mut durable) = (Map::new(), FIRST, 0);
    let (mut batches, mut lucky, mut tables) = (0, 0, 0);
    for round in 0..ROUNDS {
        if round % ROUNDS_PER_DIR == ROUNDS_PER_DIR - 1 {
            dir = tempfile::tempdir().unwrap();
            (model, at, durable) = (Map::new(), FIRST, 0);
        }
        durable = run_and_kill(dir.path(), &mut dice).unwrap_or(0).max(durable);
        let store = open(dir.path());
        if store.ident().unwrap().is_none() {
            assert_eq!((durable, store.region_states()), (0, vec![]), "round {round}");
            continue;
        }
        let last = last_batch(&store.region_states());
        assert!(last >= durable, "round {round}: batch {last}, but {durable} was durable");
        assert!(last >= at, "round {round}: batch {last}, but {at} was there before");
        batches += last - at;
        lucky += u64::from(last > durable);
        for i in at + 1..=last {
            replay(&mut model, i);
        }
        (at, durable) = (last, last);
        for direction in [Direction::Forward, Direction::Reverse] {
            let view = store.view().unwrap();
            let found = view.scan(&KeyRange::all(), direction).unwrap();
            let mut found: Vec<_> = found.map(Result::unwrap).collect();
            if direction == Direction::Reverse {
                found.reverse();
            }
            let equal = found.iter().map(|(k, v)| (k, v)).eq(model.iter());
            assert!(equal, "round {round}, batch {last}: {}", difference(&found, &model));
        }
        tables = tables.max(store.stats().table_bytes);
    }
    eprintln!(
        "{ROUNDS} kills, {batches} batches durable, {lucky} cuts newer than told, tables of at \
         most {tables} bytes, {:?}",
        started.elapsed()
    );
    assert!(batches > 200, "only {batches} batches: the kills came too early to try anything");
}

/// The first few keys in which the store and the model differ.
fn difference(found: &[(Bytes, Bytes)], model: &Map) -> String {
    let found: Map = found.iter().cloned().collect();
    let text = |map: &Map, key: &Bytes| {
        map.get(key).map(|v| String::from_utf8_lossy(&v[..v.len().min(12)]).into_owned())
    };
    let mut keys: Vec<&Bytes> = found.keys().chain(model.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.retain(|key| found.get(*key) != model.get(*key));
    let some = keys
        .iter()
        .take(5)
        .map(|key| format!("{key:?} is {:?}, should be {:?}", text(&found, key), text(model, key)));
    format!("{} differ: {}", keys.len(), some.collect::<Vec<_>>().join("; "))
}
