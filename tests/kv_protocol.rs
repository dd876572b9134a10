//! The state store's protocol against a model: chunked batches, region states, roll-backs, cuts that are dropped,
//! fail or are overtaken by a restore, refused restores, crashes. Over simulated tables, and over the real ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use bytes::Bytes;
use catamaran::Error;
use catamaran::kv::lsm::{LsmOptions, LsmTables};
use catamaran::kv::mem::{Fault, SimTablesDisk};
use catamaran::kv::{
    Direction, Flush, Options, Pending, StateStore, TableStore, Tables, View, WriteBatch,
};
use catamaran::types::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

type Data = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Clone, Default, PartialEq, Debug)]
struct Model {
    data: Data,
    regions: BTreeMap<u64, RegionState>,
}

#[derive(Clone, Debug)]
enum Op {
    Put(Vec<u8>, Vec<u8>),
    PutIn(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    DeleteIn(Vec<u8>),
    DeleteRange(Vec<u8>, Vec<u8>),
    SetRegion(u64),
    SetApplied(u64),
    RemoveRegion(u64),
    Rollback(Vec<u8>),
}

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<Op>),
    Freeze,
    DropFlush,
    RunFlush,
    FailFlush(Fault),
    Restore { ranges: Vec<(Vec<u8>, Vec<u8>)>, keys: Vec<Vec<u8>>, region: u64 },
    BadRestore { start: Vec<u8>, end: Vec<u8> },
    Maintain,
    View,
    Crash,
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    // Short keys over a small alphabet, some behind a shared prefix longer than eight bytes, zero bytes included.
    let tail = prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(b'a'), Just(255)], 0..4);
    (any::<bool>(), tail).prop_map(|(long, tail)| {
        let mut key = if long { b"prefix-of-nine".to_vec() } else { Vec::new() };
        key.extend(tail);
        key
    })
}

fn op() -> impl Strategy<Value = Op> {
    let value = || prop::collection::vec(any::<u8>(), 0..6);
    prop_oneof![
        8 => (key(), value()).prop_map(|(k, v)| Op::Put(k, v)),
        1 => key().prop_map(|k| Op::Put(k, vec![7; 2000])),
        4 => (key(), value()).prop_map(|(k, v)| Op::PutIn(k, v)),
        3 => key().prop_map(Op::Delete),
        1 => key().prop_map(Op::DeleteIn),
        1 => (key(), key()).prop_map(|(a, b)| Op::DeleteRange(a, b)),
        2 => (1u64..6).prop_map(Op::SetRegion),
        2 => (1u64..6).prop_map(Op::SetApplied),
        1 => (1u64..6).prop_map(Op::RemoveRegion),
        1 => key().prop_map(Op::Rollback),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => prop::collection::vec(op(), 1..12).prop_map(Step::Write),
        3 => Just(Step::Freeze),
        1 => Just(Step::DropFlush),
        3 => Just(Step::RunFlush),
        1 => prop_oneof![Just(Fault::Io), Just(Fault::DiskFull)].prop_map(Step::FailFlush),
        2 => (
            prop::collection::vec((key(), key()), 0..4),
            prop::collection::vec(key(), 0..8),
            1u64..6,
        )
            .prop_map(|(ranges, keys, region)| Step::Restore { ranges, keys, region }),
        1 => (key(), key()).prop_map(|(start, end)| Step::BadRestore { start, end }),
        2 => Just(Step::Maintain),
        3 => Just(Step::View),
        1 => Just(Step::Crash),
    ]
}

/// Where a run happens: simulated disk or a directory.
enum Place {
    Sim(SimTablesDisk),
    Dir(PathBuf),
}

impl Place {
    fn open(&self) -> TableStore {
        let tables: Box<dyn Tables> = match self {
            Place::Sim(disk) => Box::new(disk.open()),
            Place::Dir(dir) => {
                let options = LsmOptions { l0_runs: 2, table_bytes: 4 << 10, ..Default::default() };
                Box::new(LsmTables::open(dir, options).unwrap())
            }
        };
        TableStore::open(tables, Options::default()).unwrap()
    }
}

fn state(region: u64, index: u64) -> RegionState {
    RegionState {
        region: Region {
            id: RegionId(region),
            range: KeyRange::new(vec![region as u8], vec![]),
            ..Region::default()
        },
        peer: PeerId(region * 10),
        applied: LogPosition { index, term: 6 },
        compacted: LogPosition::default(),
        ..RegionState::default()
    }
}

fn apply(op: &Op, clock: &mut u64, batch: &mut WriteBatch, model: &mut Model) {
    let in_chunk = |batch: &mut WriteBatch, k: &[u8], v: &[u8]| {
        let bytes = [b"junk", k, v].concat();
        let (at, mid, end) = (4, 4 + k.len() as u32, (4 + k.len() + v.len()) as u32);
        (batch.add_chunk(bytes.into()), at..mid, mid..end)
    };
    match op {
        Op::Put(k, v) => {
            batch.put(k.clone().into(), v.clone().into());
            model.data.insert(k.clone(), v.clone());
        }
        Op::PutIn(k, v) => {
            let (chunk, key, value) = in_chunk(batch, k, v);
            batch.put_in(chunk, key, value);
            model.data.insert(k.clone(), v.clone());
        }
        Op::Delete(k) => {
            batch.delete(k.clone().into());
            model.data.remove(k);
        }
        Op::DeleteIn(k) => {
            let (chunk, key, _) = in_chunk(batch, k, b"");
            batch.delete_in(chunk, key);
            model.data.remove(k);
        }
        Op::DeleteRange(a, b) => {
            let range = KeyRange::new(a.clone(), b.clone());
            batch.delete_range(&range);
            model.data.retain(|k, _| !range.contains(k));
        }
        Op::SetRegion(id) => {
            *clock += 1;
            batch.set_region(state(*id, *clock));
            model.regions.insert(*id, state(*id, *clock));
        }
        Op::SetApplied(id) => {
            // The state's own position is the one before.
            let Some(state) = model.regions.get_mut(id) else { return };
            *clock += 1;
            let applied = LogPosition { index: *clock, term: 6 };
            batch.set_applied(&Arc::new(state.clone()), applied);
            state.applied = applied;
        }
        Op::RemoveRegion(id) => {
            batch.remove_region(RegionId(*id));
            model.regions.remove(id);
        }
        Op::Rollback(k) => {
            let before = batch.get_pending(k);
            let mark = batch.mark();
            batch.put(k.clone().into(), Bytes::from_static(b"never"));
            assert_eq!(batch.get_pending(k), Pending::Put(Bytes::from_static(b"never")));
            batch.delete_range(&KeyRange::all());
            assert_eq!(batch.get_pending(k), Pending::Deleted);
            batch.set_region(state(77, 1));
            batch.rollback(mark);
            assert_eq!(batch.get_pending(k), before);
        }
    }
}

fn check(view: &dyn View, model: &Model, probe: &KeyRange) {
    for (direction, range) in [
        (Direction::Forward, &KeyRange::all()),
        (Direction::Reverse, &KeyRange::all()),
        (Direction::Forward, probe),
        (Direction::Reverse, probe),
    ] {
        let found: Vec<(Vec<u8>, Vec<u8>)> = view
            .scan(range, direction)
            .unwrap()
            .map(|item| item.map(|(k, v)| (k.to_vec(), v.to_vec())).unwrap())
            .collect();
        let mut wanted: Vec<(Vec<u8>, Vec<u8>)> = model
            .data
            .iter()
            .filter(|(k, _)| range.contains(k))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        if direction == Direction::Reverse {
            wanted.reverse();
        }
        assert_eq!(found, wanted, "{direction:?} {range:?}");
    }
    for (k, v) in &model.data {
        assert_eq!(view.get(k).unwrap().as_deref(), Some(&v[..]));
    }
    for k in
        [&b""[..], b"a", b"aa", b"prefix-of-nine", b"prefix-of-ninea", b"nowhere", &[0], &[255]]
    {
        assert_eq!(view.get(k).unwrap().map(|v| v.to_vec()), model.data.get(k).cloned());
    }
    for id in 0..8 {
        assert_eq!(view.region(RegionId(id)), model.regions.get(&id).cloned());
    }
}

fn cut_of(model: &Model) -> Vec<(RegionId, PeerId, LogPosition)> {
    model.regions.values().map(|s| (s.region.id, s.peer, s.applied)).collect()
}

/// Plays the steps on store and model.
fn play(place: &Place, steps: &[Step]) {
    let ident = StoreIdent { cluster: 1, store: StoreId(2), incarnation: 3 };
    let mut store = place.open();
    let mut clock = 0;
    let mut now = Model::default();
    now.regions.insert(1, state(1, 0));
    store.bootstrap(&ident, vec![state(1, 0)]).unwrap();
    assert!(matches!(store.bootstrap(&ident, vec![]), Err(Error::Identity(_))));
    let mut durable = now.clone();
    // The cut that is frozen, and the flush object if one is out.
    let mut frozen: Option<Model> = None;
    let mut flush: Option<Box<dyn Flush>> = None;
    let mut dirty = false;
    let mut views: Vec<(Box<dyn View>, Model)> = Vec::new();
    let mut probe = KeyRange::all();
    for step in steps {
        match step {
            Step::Write(ops) => {
                let mut batch = WriteBatch::new();
                let mut next = now.clone();
                for op in ops {
                    apply(op, &mut clock, &mut batch, &mut next);
                }
                for op in ops {
                    if let Op::Put(k, _) | Op::Delete(k) = op {
                        let pending = match next.data.get(k) {
                            Some(v) => Pending::Put(v.clone().into()),
                            None => Pending::Deleted,
                        };
                        assert_eq!(batch.get_pending(k), pending);
                    }
                    if let Op::DeleteRange(a, b) = op {
                        probe = KeyRange::new(a.clone(), b.clone());
                    }
                }
                dirty |= !batch.is_empty();
                store.write(batch).unwrap();
                now = next;
            }
            Step::Freeze => {
                let taken = store.freeze().unwrap();
                assert_eq!(taken.is_some(), flush.is_none() && (frozen.is_some() || dirty));
                if let Some(taken) = taken {
                    if frozen.is_none() {
                        frozen = Some(now.clone());
                        dirty = false;
                    }
                    flush = Some(taken);
                }
            }
            Step::DropFlush => flush = None,
            Step::RunFlush => {
                if let Some(flush) = flush.take() {
                    let cut = flush.run().unwrap();
                    if let Some(model) = frozen.take() {
                        durable = model;
                    }
                    assert_eq!(cut, cut_of(&durable));
                }
            }
            Step::FailFlush(fault) => {
                if let (Place::Sim(disk), Some(_)) = (place, &frozen)
                    && let Some(flush) = flush.take()
                {
                    disk.fail_next(*fault);
                    let error = flush.run().unwrap_err();
                    assert_eq!(matches!(error, Error::DiskFull { .. }), *fault == Fault::DiskFull);
                }
            }
            Step::Restore { ranges, keys, region } => {
                clock += 1;
                let range =
                    |(start, end): &(Vec<u8>, Vec<u8>)| KeyRange::new(start.clone(), end.clone());
                let ranges: Vec<KeyRange> = ranges.iter().map(range).collect();
                let inside = |k: &[u8]| ranges.iter().any(|range| range.contains(k));
                let items: Data = keys
                    .iter()
                    .filter(|k| inside(k))
                    .map(|k| (k.clone(), b"restored".to_vec()))
                    .collect();
                let mut it = items.iter().map(|(k, v)| Ok((k.clone().into(), v.clone().into())));
                store.restore(&ranges, &mut it, vec![state(*region, clock)]).unwrap();
                now.data.retain(|k, _| !inside(k));
                now.data.extend(items.clone());
                now.regions.insert(*region, state(*region, clock));
                durable = now.clone();
                frozen = None;
                dirty = false;
                probe = ranges.into_iter().next().unwrap_or_default();
            }
            Step::BadRestore { start, end } => {
                let range = KeyRange::new(start.clone(), end.clone());
                let item = || Ok((Bytes::from(start.clone()), Bytes::new()));
                let mut twice = [item(), item()].into_iter();
                let result = store.restore(&[range], &mut twice, vec![state(1, 9)]);
                assert!(result.is_err());
                // What was active has joined the frozen cut.
                if frozen.is_some() || dirty {
                    frozen = Some(now.clone());
                }
                dirty = false;
            }
            Step::Maintain => while store.maintain().unwrap() {},
            Step::View => views.push((store.view().unwrap(), now.clone())),
            Step::Crash => {
                flush = None;
                views.clear();
                if let Place::Sim(disk) = place {
                    disk.crash();
                }
                drop(store);
                store = place.open();
                assert_eq!(store.ident().unwrap(), Some(ident));
                now = durable.clone();
                frozen = None;
                dirty = false;
            }
        }
        check(&*store.view().unwrap(), &now, &probe);
        let states: Vec<RegionState> = now.regions.values().cloned().collect();
        assert_eq!(store.region_states(), states);
    }
    for (view, model) in &views {
        check(&**view, model, &probe);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn simulated_tables(steps in prop::collection::vec(step(), 1..80)) {
        play(&Place::Sim(SimTablesDisk::new()), &steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..Default::default() })]

    #[test]
    fn real_tables(steps in prop::collection::vec(step(), 1..80)) {
        let dir = tempfile::tempdir().unwrap();
        play(&Place::Dir(dir.path().to_path_buf()), &steps);
    }
}

/// A long run of small batches goes through every class of merges.
#[test]
fn many_small_batches() {
    let store = Place::Sim(SimTablesDisk::new()).open();
    let mut model = Data::new();
    let mut x = 1u64;
    for round in 0..20_000u64 {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let key = ((x >> 33) % 5000).to_be_bytes().to_vec();
        let mut batch = WriteBatch::new();
        if x >> 60 == 0 {
            batch.delete(key.clone().into());
            model.remove(&key);
        } else {
            let value = round.to_be_bytes().to_vec();
            batch.put(key.clone().into(), value.clone().into());
            model.insert(key, value);
        }
        store.write(batch).unwrap();
        assert!(store.stats().runs <= 8 * 6);
    }
    let model = Model { data: model, ..Model::default() };
    check(&*store.view().unwrap(), &model, &KeyRange::new(vec![0; 7], vec![1]));
}

/// A snapshot's restore replaces a region's keys and removes those of regions that were merged into it. What lies between is
/// another region's, in the tables or not yet, deleted by key or by range: all of that stays, before and after a crash.
/// Whatever is refused changes nothing.
#[test]
fn a_restore_leaves_alone_what_lies_between_its_ranges() {
    let place = Place::Sim(SimTablesDisk::new());
    let store = place.open();
    let ident = StoreIdent { cluster: 1, store: StoreId(1), incarnation: 1 };
    store.bootstrap(&ident, vec![state(1, 5), state(2, 5)]).unwrap();
    let write = |keys: &[&'static str], deleted: KeyRange| {
        let mut batch = WriteBatch::new();
        keys.iter().for_each(|key| batch.put((*key).into(), "v".into()));
        batch.delete_range(&deleted);
        store.write(batch).unwrap();
    };
    let nothing = || KeyRange::new("x", "x");
    write(&["a1", "b1", "g1", "h1", "i1", "m1", "n1", "q1", "r1"], nothing());
    store.freeze().unwrap().unwrap().run().unwrap();
    write(&["b2", "h2", "n2", "q2"], nothing());
    write(&[], KeyRange::new("b11", "b3"));
    write(&[], KeyRange::new("i", "n"));
    write(&[], KeyRange::new("r", "s"));
    let keys = |store: &TableStore| -> Vec<String> {
        let items = store.view().unwrap().scan(&KeyRange::all(), Direction::Forward).unwrap();
        items.map(|item| String::from_utf8(item.unwrap().0.to_vec()).unwrap()).collect()
    };
    let before = ["a1", "b1", "g1", "h1", "h2", "n1", "n2", "q1", "q2"];
    assert_eq!(keys(&store), before);
    let ranges = [("m", "p"), ("g", "a"), ("b", "c"), ("c", "g"), ("d", "e")];
    let ranges = ranges.map(|(start, end)| KeyRange::new(start, end));
    let restore = |keys: &[&'static str]| {
        let mut items = keys.iter().map(|key| Ok(((*key).into(), "new".into())));
        store.restore(&ranges, &mut items, vec![state(1, 9), state(2, 9)])
    };
    for wrong in [&["a"][..], &["b", "h"], &["n", "q"], &["n", "b"], &["n", "n"], &["c", "b"]] {
        assert!(matches!(restore(wrong), Err(Error::Malformed { .. })), "{wrong:?}");
        assert_eq!(keys(&store), before, "{wrong:?}");
    }
    restore(&["b", "c", "n3"]).unwrap();
    let after = ["a1", "b", "c", "g1", "h1", "h2", "n3", "q1", "q2"];
    assert_eq!(keys(&store), after);
    let reopened = place.open();
    assert_eq!(keys(&reopened), after);
    assert_eq!(reopened.region_states(), [state(1, 9), state(2, 9)]);
}

#[test]
fn a_dead_process_ingests_nothing() {
    let disk = SimTablesDisk::new();
    let place = Place::Sim(disk.clone());
    let store = place.open();
    let ident = StoreIdent { cluster: 1, store: StoreId(1), incarnation: 1 };
    store.bootstrap(&ident, vec![state(1, 5)]).unwrap();
    let mut batch = WriteBatch::new();
    batch.put(Bytes::from_static(b"k"), Bytes::from_static(b"v"));
    store.write(batch).unwrap();
    disk.fail_next(Fault::Crash);
    assert!(store.freeze().unwrap().unwrap().run().is_err());
    let reopened = place.open();
    assert!(store.freeze().unwrap().unwrap().run().is_err());
    assert_eq!(reopened.view().unwrap().get(b"k").unwrap(), None);
    assert_eq!(reopened.region_states(), vec![state(1, 5)]);
}

#[test]
fn refused_batches_change_nothing() {
    let store = Place::Sim(SimTablesDisk::new()).open();
    let mut batch = WriteBatch::new();
    batch.put(Bytes::from_static(b"k"), Bytes::from_static(b"v"));
    batch.put(Bytes::from(vec![0; 70_000]), Bytes::new());
    assert!(matches!(store.write(batch), Err(Error::InvalidArgument(_))));
    let mut batch = WriteBatch::new();
    let chunk = batch.add_chunk(Bytes::from_static(b"kv"));
    batch.put_in(chunk, 0..1, 1..3);
    assert!(matches!(store.write(batch), Err(Error::InvalidArgument(_))));
    assert_eq!(store.view().unwrap().get(b"k").unwrap(), None);
}

#[test]
fn a_damaged_version_file_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::Dir(dir.path().to_path_buf());
    let store = place.open();
    assert!(matches!(LsmTables::open(dir.path(), LsmOptions::default()), Err(Error::Locked(_))));
    let ident = StoreIdent { cluster: 1, store: StoreId(1), incarnation: 1 };
    store.bootstrap(&ident, vec![state(1, 5)]).unwrap();
    drop(store);
    let tree = dir.path().join("tree");
    let current = std::fs::read(tree.join("current")).unwrap();
    let id = u64::from_le_bytes(current[..8].try_into().unwrap());
    let version = tree.join(format!("v{id}"));
    let good = std::fs::read(&version).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&version, &bad).unwrap();
        let opened = LsmTables::open(dir.path(), LsmOptions::default());
        assert!(matches!(opened, Err(Error::Corruption { .. })), "byte {at}");
    }
    std::fs::write(&version, &good).unwrap();
    assert_eq!(place.open().ident().unwrap(), Some(ident));
}

/// Writers of different regions, a flusher and a compactor at once: each region's keys are what its writer wrote,
/// and every view shows each region at the position its data says.
#[test]
fn many_threads() {
    const BATCHES: u64 = 3000;
    let disk = SimTablesDisk::new();
    let place = Place::Sim(disk);
    let store = place.open();
    let done = std::sync::atomic::AtomicU64::new(0);
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    let key = |region: u64, n: u64| [&region.to_be_bytes()[..], &n.to_be_bytes()].concat();
    let look = |view: &dyn View| {
        for region in 1..4 {
            let Some(state) = view.region(RegionId(region)) else { continue };
            let range = KeyRange::new(key(region, 0), key(region + 1, 0));
            let items: Vec<_> = view.scan(&range, Direction::Forward).unwrap().flatten().collect();
            let upto = state.applied.index;
            // Every batch n writes keys 0..40 of its own residue and the mark.
            assert_eq!(items[0].1[..], upto.to_be_bytes(), "region {region}");
            assert_eq!(items.len() as u64, 1 + upto.min(200) * 40);
        }
    };
    std::thread::scope(|scope| {
        for region in 1..4u64 {
            let (store, done) = (store.clone(), &done);
            scope.spawn(move || {
                for n in 1..=BATCHES {
                    let mut batch = WriteBatch::new();
                    batch.put(key(region, 0).into(), n.to_be_bytes().to_vec().into());
                    for i in 0..40 {
                        let name = 1 + (n % 200) * 40 + i;
                        batch.put(key(region, name).into(), n.to_be_bytes().to_vec().into());
                    }
                    batch.set_region(state(region, n));
                    store.write(batch).unwrap();
                }
                done.fetch_add(1, relaxed);
            });
        }
        let (flusher, compactor, reader) = (store.clone(), store.clone(), store.clone());
        let (done, look) = (&done, &look);
        scope.spawn(move || {
            while done.load(relaxed) < 3 {
                if let Some(flush) = flusher.freeze().unwrap() {
                    flush.run().unwrap();
                }
                std::thread::sleep(std::time::Duration::from_millis(30));
            }
        });
        scope.spawn(move || {
            while done.load(relaxed) < 3 {
                compactor.maintain().unwrap();
            }
        });
        scope.spawn(move || {
            while done.load(relaxed) < 3 {
                look(&*reader.view().unwrap());
            }
        });
    });
    look(&*store.view().unwrap());
    for region in 1..4 {
        assert_eq!(store.view().unwrap().region(RegionId(region)).unwrap().applied.index, BATCHES);
    }
}
