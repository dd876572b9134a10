//! The real tables under `kill -9`: a child process writes, flushes, restores and compacts without pause; whenever it
//! dies, the directory must open at exactly one of its cuts, no older than the last one it reported.

use bytes::Bytes;
use catamaran::kv::lsm::{LsmOptions, LsmTables};
use catamaran::kv::{Direction, Options, StateStore, TableStore, WriteBatch};
use catamaran::types::*;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const CHILD: &str = "CATAMARAN_KV_CRASH_DIR";

type Model = BTreeMap<Bytes, Bytes>;

/// A hash as random source: everything a step does follows from its number.
fn draw(step: u64, which: u64) -> u64 {
    let mut x =
        step.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ which.wrapping_mul(0xD1B5_4A32_D192_ED03);
    for _ in 0..2 {
        x = (x ^ (x >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    }
    x ^ (x >> 32)
}

fn key(n: u64) -> Bytes {
    Bytes::from(format!("key-{:05}", n % 4000))
}

fn value(step: u64, which: u64) -> Bytes {
    Bytes::from(vec![draw(step, which) as u8; 40 + (draw(step, which) % 200) as usize])
}

enum Step {
    Batch(Vec<(Bytes, Option<Bytes>)>, Option<KeyRange>),
    Restore(KeyRange, Model),
}

fn range(step: u64, width: u64) -> KeyRange {
    let start = draw(step, 1) % 3900;
    KeyRange::new(key(start), key(start + 1 + draw(step, 2) % width))
}

fn step(n: u64) -> Step {
    if n % 97 == 0 {
        let range = range(n, 90);
        let items = (0..20).map(|i| (key(draw(n, 10 + i)), value(n, i)));
        let items = items.filter(|(key, _)| range.contains(key)).collect();
        return Step::Restore(range, items);
    }
    let ops = (0..60).map(|i| {
        let key = key(draw(n, 100 + i));
        (key, (draw(n, 200 + i) % 8 != 0).then(|| value(n, i)))
    });
    Step::Batch(ops.collect(), (n % 11 == 0).then(|| range(n, 60)))
}

fn model_step(model: &mut Model, n: u64) {
    match step(n) {
        Step::Batch(ops, range) => {
            if let Some(range) = range {
                model.retain(|key, _| !range.contains(key));
            }
            for (key, value) in ops {
                match value {
                    Some(value) => model.insert(key, value),
                    None => model.remove(&key),
                };
            }
        }
        Step::Restore(range, items) => {
            model.retain(|key, _| !range.contains(key));
            model.extend(items);
        }
    }
}

/// Two regions move in lockstep: a cut that showed them apart would be no cut.
fn states(n: u64) -> [RegionState; 2] {
    [1, 2].map(|id| RegionState {
        region: Region { id: RegionId(id), ..Region::default() },
        peer: PeerId(id),
        applied: LogPosition { index: n, term: 1 },
        compacted: LogPosition::default(),
    })
}

fn store_step(store: &TableStore, n: u64) {
    let mut batch = WriteBatch::new();
    let [one, two] = states(n);
    match step(n) {
        Step::Batch(ops, range) => {
            if let Some(range) = range {
                batch.delete_range(&range);
            }
            for (key, value) in ops {
                match value {
                    Some(value) => batch.put(key, value),
                    None => batch.delete(key),
                }
            }
            batch.set_region(one);
            batch.set_region(two);
            store.write(batch).unwrap();
        }
        Step::Restore(range, items) => {
            // The second region's state goes ahead in the memtable and becomes durable with the restore.
            batch.set_region(two);
            store.write(batch).unwrap();
            store.restore(&range, &mut items.into_iter().map(Ok), one).unwrap();
        }
    }
}

fn open(dir: &Path) -> TableStore {
    let options = LsmOptions { l0_runs: 3, table_bytes: 64 << 10, ..Default::default() };
    let tables = LsmTables::open(dir, options).unwrap();
    TableStore::open(Box::new(tables), Options { memtable_bytes: 64 << 10 }).unwrap()
}

fn applied(store: &TableStore) -> u64 {
    let states = store.region_states();
    assert_eq!(states[0].applied, states[1].applied, "the regions are cut apart");
    states[0].applied.index
}

/// The child: works until it is killed. As a test of its own it does nothing.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let store = open(Path::new(&dir));
    let compactor = store.clone();
    std::thread::spawn(move || {
        loop {
            if !compactor.maintain().unwrap() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    let mut out = std::io::stderr();
    for n in applied(&store) + 1.. {
        store_step(&store, n);
        let restored = matches!(step(n), Step::Restore(..));
        if restored {
            writeln!(out, "durable {n}").unwrap();
        } else if store.should_flush()
            && let Some(flush) = store.freeze().unwrap()
        {
            let cut = flush.run().unwrap();
            writeln!(out, "durable {}", cut[0].2.index).unwrap();
        }
    }
}

#[test]
fn killed_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let ident = StoreIdent { cluster: 1, store: StoreId(1), incarnation: 1 };
    open(dir.path()).bootstrap(&ident, states(0).to_vec()).unwrap();
    let (mut model, mut at) = (Model::new(), 0);
    let started = Instant::now();
    let mut rounds = 0;
    while rounds < 25 && started.elapsed() < Duration::from_secs(12) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let reports = BufReader::new(child.stderr.take().unwrap());
        std::thread::sleep(Duration::from_millis(60 + draw(rounds, 0) % 400));
        child.kill().unwrap();
        child.wait().unwrap();
        let reported = reports
            .lines()
            .map_while(Result::ok)
            .filter_map(|line| line.strip_prefix("durable ")?.parse::<u64>().ok())
            .last();

        let store = open(dir.path());
        assert_eq!(store.ident().unwrap(), Some(ident));
        let now = applied(&store);
        assert!(now >= reported.unwrap_or(at), "cut {now}, reported {reported:?}, before {at}");
        for n in at + 1..=now {
            model_step(&mut model, n);
        }
        at = now;
        let found: Vec<_> = store
            .view()
            .unwrap()
            .scan(&KeyRange::all(), Direction::Forward)
            .unwrap()
            .map(|item| item.unwrap())
            .collect();
        let wanted: Vec<_> = model.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        assert!(found == wanted, "round {rounds}: not the state of cut {now}");
        rounds += 1;
    }
    assert!(
        rounds >= 5 && at > 100,
        "{rounds} rounds up to step {at}: too little to mean anything"
    );
    println!("{rounds} kills, {at} steps, {} keys", model.len());
}
