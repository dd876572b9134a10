//! Rows of writing under criterion: time of one write, each engine in turn. Only rows whose writes
//! block, for criterion times one call after the other; `catamaran-rivals run` does the rest.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

use catamaran_rivals::engine::{self, Files, Setup, Which};
use catamaran_rivals::work::{Payload, ROWS, Stream};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::time::Duration;

fn write(criterion: &mut Criterion) {
    for work in ROWS.into_iter().filter(|work| work.window == 1 && work.threads <= 2) {
        let mut group = criterion.benchmark_group(work.name);
        group.throughput(Throughput::Elements(work.span * work.each));
        group.sample_size(10).measurement_time(Duration::from_secs(2));
        group.warm_up_time(Duration::from_millis(500));
        for which in Which::all() {
            if work.span > 1 && which == Which::RaftLog {
                // A sync for each group: criterion would sit there for minutes.
                continue;
            }
            let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"));
            #[expect(clippy::expect_used, reason = "a benchmark says so when it cannot run")]
            let place = place.expect("a directory to work in");
            let setup = Setup { groups: work.groups, window: 1, files: Files::Usual };
            #[expect(clippy::expect_used, reason = "a benchmark says so when it cannot run")]
            let engine = engine::open(which, &place.path().join("log"), setup).expect("opens");
            let mut stream = Stream::new(catamaran_rivals::work::Work { threads: 1, ..work }, 0);
            let mut payload = Payload::new(work.size);
            let mut pieces = Vec::new();
            group.bench_function(BenchmarkId::from_parameter(which.name()), |bench| {
                bench.iter(|| {
                    stream.next(&mut pieces);
                    let ticket = engine.write(&pieces, &mut payload);
                    ticket.and_then(|ticket| engine.settle(ticket))
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, write);
criterion_main!(benches);
