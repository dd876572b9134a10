//! The memtable against a map, in sizes at which runs have many blocks, merges many pieces, and records move because
//! most of those beside them are dead. Views taken at random points show what was there then, whatever is
//! merged, moved and flushed afterwards.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use bytes::Bytes;
use catamaran::codec::command::{BatchBuilder, Op, ops};
use catamaran::error::Result;
use catamaran::kv::mem::SimTablesDisk;
use catamaran::kv::{Direction, Options, Pending, StateStore, TableStore, View, WriteBatch};
use catamaran::types::KeyRange;
use proptest::prelude::*;
use std::collections::BTreeMap;

type Map = BTreeMap<Bytes, Bytes>;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ mixed >> 27
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Spread, alike in the first eight bytes, and short with zeros at the end: all that the order of prefixes gets
/// wrong if nobody looks further.
fn key(number: u64) -> Bytes {
    match number % 4 {
        0 | 1 => {
            let spread = Rng(number).next().to_be_bytes();
            Bytes::from([spread, number.to_be_bytes()].concat())
        }
        2 => Bytes::from([&b"the-same"[..], &number.to_be_bytes()[5..]].concat()),
        _ => Bytes::from([&[number as u8][..], &vec![0; (number / 256 % 10) as usize]].concat()),
    }
}

fn value(rng: &mut Rng) -> Bytes {
    let len = match rng.below(400) {
        0 => 1_000 + rng.below(9_000),
        _ => rng.below(90),
    };
    Bytes::from(vec![rng.next() as u8; len as usize])
}

fn offsets(range: std::ops::Range<usize>) -> std::ops::Range<u32> {
    range.start as u32..range.end as u32
}

/// Fills a batch with random writes, spelt in all the ways that there are.
fn batch(rng: &mut Rng, writes: u64, keys: u64, model: &mut Map) -> WriteBatch {
    let mut batch = WriteBatch::new();
    let mut left = writes;
    while left > 0 {
        let together = left.min(1 + rng.below(300));
        left -= together;
        match rng.below(4) {
            // As they stand in an entry.
            0 | 1 => {
                let mut entry = BatchBuilder::new();
                for _ in 0..together {
                    let (key, value) = (key(rng.below(keys)), value(rng));
                    if rng.below(5) == 0 {
                        entry.delete(&key).unwrap();
                        model.remove(&key);
                    } else {
                        entry.put(&key, &value).unwrap();
                        model.insert(key, value);
                    }
                }
                let entry = entry.finish();
                let chunk = batch.add_chunk(entry.clone());
                for op in ops(&entry) {
                    match op.unwrap() {
                        Op::Put { key, value } => {
                            batch.put_in(chunk, offsets(key), offsets(value));
                        }
                        Op::Delete { key } => batch.delete_in(chunk, offsets(key)),
                        _ => unreachable!(),
                    }
                }
            }
            // In a layout of somebody else's: value, key.
            2 => {
                for _ in 0..together {
                    let (key, value) = (key(rng.below(keys)), value(rng));
                    let bytes = Bytes::from([&value[..], &key].concat());
                    let chunk = batch.add_chunk(bytes);
                    let (middle, end) = (value.len() as u32, (value.len() + key.len()) as u32);
                    if rng.below(5) == 0 {
                        batch.delete_in(chunk, middle..end);
                        model.remove(&key);
                    } else {
                        batch.put_in(chunk, middle..end, 0..middle);
                        model.insert(key, value);
                    }
                }
            }
            _ => {
                for _ in 0..together {
                    let (key, value) = (key(rng.below(keys)), value(rng));
                    batch.put(key.clone(), value.clone());
                    model.insert(key, value);
                }
            }
        }
        if rng.below(60) == 0 {
            let (a, b) = (key(rng.below(keys)), key(rng.below(keys)));
            let range = KeyRange { start: a.clone().min(b.clone()), end: a.max(b) };
            // Ranges that leave something.
            if model.range(range.start.clone()..range.end.clone()).count() < model.len() / 3 {
                model.retain(|key, _| !range.contains(key));
                batch.delete_range(&range);
            }
        }
    }
    for _ in 0..10 {
        let key = key(rng.below(keys));
        match batch.get_pending(&key) {
            Pending::Put(value) => assert_eq!(model.get(&key), Some(&value)),
            Pending::Deleted => assert_eq!(model.get(&key), None),
            Pending::Unknown => {}
        }
    }
    batch
}

fn equal(view: &dyn View, model: &Map, rng: &mut Rng, keys: u64) {
    let all = |direction| {
        let scan = view.scan(&KeyRange::all(), direction).unwrap();
        scan.map(Result::unwrap).collect::<Vec<_>>()
    };
    let mut seen = all(Direction::Forward);
    assert!(seen.iter().map(|(k, v)| (k, v)).eq(model.iter()));
    seen.reverse();
    assert!(all(Direction::Reverse) == seen);
    for _ in 0..200 {
        let key = key(rng.below(keys));
        assert_eq!(view.get(&key).unwrap().as_ref(), model.get(&key), "{key:?}");
        let upwards = KeyRange { start: key.clone(), end: Bytes::new() };
        let next = view.scan(&upwards, Direction::Forward).unwrap().next().map(Result::unwrap);
        let want = model.range(key..).next().map(|(k, v)| (k.clone(), v.clone()));
        assert_eq!(next, want);
    }
}

fn play(seed: u64, keys: u64, batches: u64, writes: u64) {
    let mut rng = Rng(seed);
    let disk = SimTablesDisk::new();
    let open = || TableStore::open(Box::new(disk.open()), Options::default()).unwrap();
    let mut store = open();
    let (mut model, mut kept) = (Map::new(), Vec::new());
    for _ in 0..batches {
        let writes = 1 + rng.below(writes);
        store.write(batch(&mut rng, writes, keys, &mut model)).unwrap();
        match rng.below(40) {
            0 | 1 => kept.push((store.view().unwrap(), model.clone())),
            2..=12 => drop(store.maintain().unwrap()),
            13 => {
                let Some(flush) = store.freeze().unwrap() else { continue };
                let frozen = model.clone();
                store.write(batch(&mut rng, writes, keys, &mut model)).unwrap();
                flush.run().unwrap();
                if rng.below(2) == 0 {
                    // The tables alone hold the cut and nothing else.
                    (store, model) = (open(), frozen);
                    equal(&*store.view().unwrap(), &model, &mut rng, keys);
                }
            }
            _ => {}
        }
    }
    equal(&*store.view().unwrap(), &model, &mut rng, keys);
    while store.maintain().unwrap() {}
    kept.push((store.view().unwrap(), model));
    for (view, model) in kept {
        equal(&*view, &model, &mut rng, keys);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..Default::default() })]

    #[test]
    fn many_small_batches(seed: u64, keys in 1u64..3_000) {
        play(seed, keys, 150, 40);
    }

    #[test]
    fn large_batches(seed: u64, keys in 10_000u64..80_000) {
        play(seed, keys, 24, 9_000);
    }
}

/// Without flushes, too, what is retained is a small multiple of what is alive.
#[test]
fn overwritten_bytes_are_given_back() {
    let (keys, rounds, bytes) = (20_000u64, 60, 100);
    let store =
        TableStore::open(Box::new(SimTablesDisk::new().open()), Options::default()).unwrap();
    let mut rng = Rng(7);
    for round in 0..rounds {
        for _ in 0..keys / 500 {
            let mut entry = BatchBuilder::new();
            for _ in 0..500 {
                entry.put(&rng.below(keys).to_be_bytes(), &vec![round as u8; bytes]).unwrap();
            }
            let entry = entry.finish();
            let mut batch = WriteBatch::new();
            let chunk = batch.add_chunk(entry.clone());
            for op in ops(&entry) {
                if let Ok(Op::Put { key, value }) = op {
                    batch.put_in(chunk, offsets(key), offsets(value));
                }
            }
            store.write(batch).unwrap();
            while store.maintain().unwrap() {}
        }
    }
    let alive = keys * (8 + bytes as u64);
    let written = alive * rounds;
    let held = store.memtable_bytes();
    assert!(held < written / 4, "{held} bytes held, {alive} alive, {written} written");
}
