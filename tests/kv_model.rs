//! The state store against a map: random batches, range deletes, flushes, restores, compaction, views that stay
//! as they were, reopening at the last cut. The same over simulated tables (many cases) and real ones (few).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use bytes::Bytes;
use catamaran::error::Result;
use catamaran::kv::lsm::{LsmOptions, LsmTables};
use catamaran::kv::mem::SimTablesDisk;
use catamaran::kv::{Direction, Options, StateStore, TableStore, Tables, View, WriteBatch};
use catamaran::types::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

type Map = BTreeMap<Bytes, Bytes>;

#[derive(Clone, Debug)]
enum Change {
    Put(u8, u16),
    Delete(u8),
    DeleteRange(u8, u8),
}

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<Change>),
    Flush,
    Maintain,
    Restore(u8, u8, Vec<(u8, u16)>),
    Keep,
    Reopen,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (any::<u8>(), any::<u16>()).prop_map(|(k, v)| Change::Put(k, v)),
        2 => any::<u8>().prop_map(Change::Delete),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(a, b)| Change::DeleteRange(a, b)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop::collection::vec(change(), 1..20).prop_map(Step::Write),
        3 => Just(Step::Flush),
        2 => Just(Step::Maintain),
        1 => (any::<u8>(), any::<u8>(), prop::collection::vec((any::<u8>(), any::<u16>()), 0..9))
            .prop_map(|(a, b, items)| Step::Restore(a.min(b), a.max(b), items)),
        2 => Just(Step::Keep),
        1 => Just(Step::Reopen),
    ]
}

fn key(k: u8) -> Bytes {
    // Prefixes of each other and equal first eight bytes, to try the comparison by prefix.
    Bytes::from(match k % 3 {
        0 => vec![k],
        1 => [&b"longprefix"[..], &[k]].concat(),
        _ => vec![k; 1 + usize::from(k % 11)],
    })
}

fn value(v: u16) -> Bytes {
    Bytes::from(vec![v as u8; usize::from(v % 300)])
}

fn range(a: u8, b: u8) -> KeyRange {
    let (a, b) = (key(a), key(b));
    KeyRange { start: a.clone().min(b.clone()), end: a.max(b) }
}

fn state(index: u64) -> RegionState {
    let region = Region { id: RegionId(1), ..Default::default() };
    let applied = LogPosition { index, term: 5 };
    RegionState {
        region,
        peer: PeerId(1),
        applied,
        compacted: INITIAL_POSITION,
        ..RegionState::default()
    }
}

fn everything(view: &dyn View, direction: Direction) -> Vec<(Bytes, Bytes)> {
    view.scan(&KeyRange::all(), direction).unwrap().map(Result::unwrap).collect()
}

fn equal(view: &dyn View, model: &Map, applied: u64) {
    let mut want: Vec<_> = model.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    assert_eq!(everything(view, Direction::Forward), want);
    want.reverse();
    assert_eq!(everything(view, Direction::Reverse), want);
    for k in 0..=255 {
        assert_eq!(view.get(&key(k)).unwrap().as_ref(), model.get(&key(k)), "key {k}");
    }
    assert_eq!(view.region(RegionId(1)).unwrap().applied.index, applied);
}

fn delete_range(model: &mut Map, range: &KeyRange) {
    model.retain(|k, _| !range.contains(k) || range.is_empty());
}

fn write(store: &TableStore, model: &mut Map, changes: &[Change], applied: u64) {
    let mut batch = WriteBatch::new();
    for change in changes {
        match change {
            Change::Put(k, v) => {
                batch.put(key(*k), value(*v));
                model.insert(key(*k), value(*v));
            }
            Change::Delete(k) => {
                batch.delete(key(*k));
                model.remove(&key(*k));
            }
            Change::DeleteRange(a, b) => {
                batch.delete_range(&range(*a, *b));
                delete_range(model, &range(*a, *b));
            }
        }
    }
    batch.set_region(state(applied));
    store.write(batch).unwrap();
}

/// Runs the steps; `open` opens the same place again and again.
fn run(steps: &[Step], open: &dyn Fn() -> Box<dyn Tables>) {
    let options = Options { memtable_bytes: 1 << 20 };
    let mut store = TableStore::open(open(), options).unwrap();
    let ident = StoreIdent { cluster: 1, store: StoreId(1), incarnation: 9 };
    store.bootstrap(&ident, vec![state(5)]).unwrap();
    let (mut model, mut applied) = (Map::new(), 5);
    let (mut durable, mut durable_applied) = (Map::new(), 5);
    let mut kept = Vec::new();
    for step in steps {
        match step {
            Step::Write(changes) => {
                applied += 1;
                write(&store, &mut model, changes, applied);
            }
            Step::Flush => {
                if let Some(flush) = store.freeze().unwrap() {
                    // What is written while the cut is on its way is not in it.
                    (durable, durable_applied) = (model.clone(), applied);
                    applied += 1;
                    write(&store, &mut model, &[Change::Put(7, applied as u16)], applied);
                    let cut = flush.run().unwrap();
                    assert_eq!(cut[0].2.index, durable_applied);
                }
            }
            Step::Maintain => drop(store.maintain().unwrap()),
            Step::Restore(a, b, items) => {
                let range = range(*a, *b);
                let mut inside: Map = items.iter().map(|(k, v)| (key(*k), value(*v))).collect();
                inside.retain(|k, _| range.contains(k) && !range.is_empty());
                applied += 10;
                let mut sorted = inside.clone().into_iter().map(Ok);
                store
                    .restore(std::slice::from_ref(&range), &mut sorted, vec![state(applied)])
                    .unwrap();
                delete_range(&mut model, &range);
                model.extend(inside);
                (durable, durable_applied) = (model.clone(), applied);
            }
            Step::Keep => kept.push((store.view().unwrap(), model.clone(), applied)),
            Step::Reopen => {
                kept.clear();
                drop(store);
                store = TableStore::open(open(), options).unwrap();
                assert_eq!(store.ident().unwrap(), Some(ident));
                (model, applied) = (durable.clone(), durable_applied);
            }
        }
        equal(&*store.view().unwrap(), &model, applied);
    }
    for (view, model, applied) in kept {
        equal(&*view, &model, applied);
    }
}

fn real(dir: &Path) -> Box<dyn Tables> {
    // Two runs are compacted when it is quiet, three in any case.
    let idle_after = Duration::ZERO;
    let options = LsmOptions { table_bytes: 4096, l0_runs: 3, idle_after, ..Default::default() };
    Box::new(LsmTables::open(dir, options).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..Default::default() })]

    #[test]
    fn over_simulated_tables(steps in prop::collection::vec(step(), 1..40)) {
        let disk = SimTablesDisk::new();
        run(&steps, &|| Box::new(disk.open()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..Default::default() })]

    #[test]
    fn over_real_tables(steps in prop::collection::vec(step(), 1..25)) {
        let dir = tempfile::tempdir().unwrap();
        run(&steps, &|| real(dir.path()));
    }
}
