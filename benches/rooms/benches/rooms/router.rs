//! Which region holds a key.

use crate::{BATCH, key, mix};
use bytes::Bytes;
use catamaran::codec::command::BatchBuilder;
use catamaran::router::{RangeCache, split_batch};
use catamaran::types::{Epoch, KeyRange, Peer, PeerId, Region, RegionId, Role, StoreId};
use criterion::{Criterion, Throughput};
use std::hint::black_box;

fn cache(regions: u64) -> RangeCache {
    let mut cache = RangeCache::new();
    let step = u64::MAX / regions;
    let bound = |at: u64| match at {
        0 => Bytes::new(),
        at if at == regions => Bytes::new(),
        at => Bytes::copy_from_slice(&(at * step).to_be_bytes()),
    };
    for at in 0..regions {
        cache.update(Region {
            id: RegionId(at + 1),
            range: KeyRange { start: bound(at), end: bound(at + 1) },
            epoch: Epoch { version: 1, conf_ver: 1 },
            peers: vec![Peer { id: PeerId(at + 1), store: StoreId(1), role: Role::Voter }],
        });
    }
    cache
}

pub fn suite(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("router");
    let large = cache(10_000);
    group.throughput(Throughput::Elements(1));
    group.bench_function("look up among 10000 regions", |bencher| {
        let mut number = 0u64;
        bencher.iter(|| {
            number += 1;
            large.lookup(black_box(&key(mix(number)))).map(|route| route.region.id)
        });
    });
    group.throughput(Throughput::Elements(BATCH));
    let mut lone = BatchBuilder::new();
    for number in 0..BATCH {
        let mut key = [0; 16];
        key[8..].copy_from_slice(&number.to_be_bytes());
        lone.put(&key, &[7; 64]).expect("it works");
    }
    let small = cache(64);
    for (name, batch) in
        [("route a batch of one region", lone.finish()), ("cut a batch", crate::batch(0))]
    {
        group.bench_function(name, |bencher| {
            bencher.iter(|| split_batch(&small, black_box(&batch)).expect("it works").len());
        });
    }
    group.finish();
}
