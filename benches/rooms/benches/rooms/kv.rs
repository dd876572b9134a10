//! The memtable: entries written and merged, found, walked.

use crate::{BATCH, mix};
use bytes::Bytes;
use catamaran::codec::command::{BatchBuilder, Op, ops};
use catamaran::kv::{Direction, MemoryStore, StateStore, WriteBatch};
use catamaran::types::KeyRange;
use criterion::{Criterion, SamplingMode, Throughput};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// How keys come.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    batch: u64,
    /// All keys of a batch begin with the same of so many equal parts of the key space.
    regions: u64,
}

const SHAPES: [Shape; 2] = [
    Shape { name: "batches of 1024", batch: 1_024, regions: 1 },
    Shape { name: "batches of 128 in 64 regions", batch: BATCH, regions: 64 },
];

impl Shape {
    fn key(self, number: u64) -> [u8; 16] {
        let region = mix(number / self.batch) % self.regions;
        let step = u64::MAX / self.regions;
        let mut key = [0; 16];
        key[..8].copy_from_slice(&(region * step + mix(number) % step).to_be_bytes());
        key[8..].copy_from_slice(&number.to_be_bytes());
        key
    }

    /// What an entry holds: puts of 64 bytes.
    fn entry(self, first: u64) -> Bytes {
        let mut entry = BatchBuilder::new();
        for number in first..first + self.batch {
            entry.put(&self.key(number), &[number as u8; 64]).expect("it works");
        }
        entry.finish()
    }
}

fn write(store: &MemoryStore, entry: Bytes, puts: u64) {
    let mut batch = WriteBatch::with_capacity(puts as usize);
    let chunk = batch.add_chunk(entry.clone());
    let offsets = |range: std::ops::Range<usize>| range.start as u32..range.end as u32;
    for op in ops(&entry) {
        if let Ok(Op::Put { key, value }) = op {
            batch.put_in(chunk, offsets(key), offsets(value));
        }
    }
    store.write(batch).expect("it works");
}

/// Writes so many entries, and merges as it goes, large merges too. Making what is written is not counted.
fn filled(shape: Shape, entries: u64) -> (MemoryStore, Duration) {
    let store = MemoryStore::new().expect("it works");
    let mut took = Duration::ZERO;
    for first in (0..entries).step_by(shape.batch as usize) {
        let entry = shape.entry(first);
        let began = Instant::now();
        write(&store, entry, shape.batch);
        while store.maintain().expect("it works") {}
        took += began.elapsed();
    }
    (store, took)
}

pub fn suite(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("kv");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    for shape in SHAPES {
        for entries in [1u64 << 20, 4 << 20] {
            let name = |what: &str| format!("{what} {}Mi in {}", entries >> 20, shape.name);
            group.throughput(Throughput::Elements(entries));
            group.bench_function(name("insert"), |bencher| {
                bencher.iter_custom(|rounds| (0..rounds).map(|_| filled(shape, entries).1).sum());
            });
            let (store, _) = filled(shape, entries);
            let view = store.view().expect("it works");
            group.bench_function(name("scan"), |bencher| {
                bencher.iter(|| {
                    let scan = view.scan(&KeyRange::all(), Direction::Forward).expect("it works");
                    assert_eq!(scan.count() as u64, entries);
                });
            });
            group.throughput(Throughput::Elements(1));
            group.bench_function(name("get of"), |bencher| {
                let mut at = 0u64;
                bencher.iter(|| {
                    at += 1;
                    let key = shape.key(mix(at) % entries);
                    black_box(view.get(&key).expect("it works")).expect("it is there")
                });
            });
        }
    }
    group.finish();
}
