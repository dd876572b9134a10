//! The rows of writing under criterion, all engines in turn.
//!
//! Criterion asks for all samples of one engine, then for those of the next: minutes lie between them, in
//! which a rented disk may slow down. So when the first of a row's engines is asked, the samples of all are
//! taken in turn (a short stretch of the row's work each, as `catamaran-rivals run` does it) and handed to
//! criterion one after the other: the time of one write, as it was in that stretch. Its own warm-up has
//! nothing to do, therefore; each stretch has one.
//!
//! Opening, heap, cold reads and purging take minutes and processes of their own: `catamaran-rivals space`.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

use catamaran_rivals::drive::Bench;
use catamaran_rivals::engine::Which;
use catamaran_rivals::machine;
use catamaran_rivals::work::{ROWS, Work};
use criterion::{
    BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use std::cell::{Cell, OnceCell};
use std::collections::BTreeMap;
use std::time::Duration;

/// Samples of each engine.
const SAMPLES: usize = 10;
/// How long each lasts.
const STRETCH: Duration = Duration::from_millis(200);

/// Seconds of one write, by engine, in the order in which the samples were taken.
type Samples = BTreeMap<Which, Vec<f64>>;

fn engines(work: Work) -> Vec<Which> {
    Which::all().into_iter().filter(|which| which.suits(work)).collect()
}

fn measure(work: Work) -> anyhow::Result<Samples> {
    // Whether it works at all is what `--test` asks.
    let tested = std::env::args().any(|arg| arg == "--test");
    let (samples, stretch) = if tested { (1, STRETCH / 20) } else { (SAMPLES, STRETCH) };
    machine::raise_limits();
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let mut benches = Vec::new();
    for which in engines(work) {
        benches.push((which, Bench::open(which, work, &place.path().join(which.name()))?));
    }
    let mut all = Samples::new();
    for _ in 0..samples {
        for (which, bench) in &mut benches {
            let figures = bench.run(stretch)?;
            // Not one write in a whole stretch: it took at least that long.
            let seconds = (1.0 / figures.writes_per_s).min(stretch.as_secs_f64());
            all.entry(*which).or_default().push(seconds);
        }
    }
    Ok(all)
}

fn write(criterion: &mut Criterion) {
    for work in ROWS {
        let samples: OnceCell<Samples> = OnceCell::new();
        let mut group = criterion.benchmark_group(work.name);
        group.throughput(Throughput::Elements(work.span * work.each));
        group.sample_size(SAMPLES).sampling_mode(SamplingMode::Flat);
        group.warm_up_time(Duration::from_nanos(1)).measurement_time(Duration::from_micros(10));
        for which in engines(work) {
            let nth = Cell::new(0);
            group.bench_function(BenchmarkId::from_parameter(which.name()), |bench| {
                #[expect(clippy::expect_used, reason = "a benchmark says so when it cannot run")]
                let samples = samples.get_or_init(|| measure(work).expect("the row runs"));
                bench.iter_custom(|times| {
                    let of_this = samples.get(&which).map_or(&[][..], Vec::as_slice);
                    let seconds = of_this.get(nth.get() % SAMPLES.min(of_this.len().max(1)));
                    nth.set(nth.get() + 1);
                    Duration::from_secs_f64(seconds.copied().unwrap_or(0.0) * times as f64)
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, write);
criterion_main!(benches);
