//! The log engine on a disk in memory: encoding, checksums, the index and the copy into the group.

use bytes::Bytes;
use catamaran::env::mem::MemDisk;
use catamaran::log::{Entry, Log, LogBatch, Options};
use catamaran::types::LogPosition;
use criterion::{Criterion, Throughput};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Groups that write in one round.
const GROUPS: u64 = 64;
/// Rounds between two purges, which are not measured: files in memory must not pile up.
const PURGE_EVERY: u64 = 64;

struct Writing {
    log: Log,
    index: u64,
    data: Bytes,
}

impl Writing {
    fn new(entry_bytes: usize) -> Writing {
        let options = Options { segment_bytes: 8 << 20, ..Options::default() };
        let (log, _) =
            Log::open(Arc::new(MemDisk::default()), Path::new("/log"), options).expect("it works");
        Writing { log, index: 0, data: Bytes::from(vec![7; entry_bytes]) }
    }

    /// An entry for each group, and what was before it goes.
    fn round(&mut self) -> Duration {
        self.index += 1;
        let began = Instant::now();
        let mut batch = LogBatch::new();
        for group in 1..=GROUPS {
            let data = self.data.clone();
            batch.append(group, [Entry { index: self.index, term: 1, kind: 0, data }]);
            if self.index > 1 {
                batch.compact_to(group, LogPosition { index: self.index - 1, term: 1 });
            }
        }
        self.log.submit(batch).expect("it works");
        self.log.write_round().expect("it works");
        let took = began.elapsed();
        if self.index.is_multiple_of(PURGE_EVERY) {
            while self.log.purge().expect("it works").more {}
        }
        took
    }
}

pub fn suite(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("log");
    group.throughput(Throughput::Elements(GROUPS));
    for (name, bytes) in [("append 64 groups, 128 B", 128), ("append 64 groups, 10 KiB", 10 << 10)]
    {
        group.bench_function(name, |bencher| {
            let mut writing = Writing::new(bytes);
            bencher.iter_custom(|rounds| (0..rounds).map(|_| writing.round()).sum());
        });
    }
    group.finish();
}
