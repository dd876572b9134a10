//! `catamaran status --stages`: where the writes of a node waited.

use crate::print::columns;
use catamaran::driver::{Histogram, Stage, StageStats};
use serde::Serialize;
use std::time::Duration;

/// One stage of the way of a write, since the node was opened. Percentiles are rounded up by an eighth at most.
#[derive(Serialize)]
pub struct StageReport {
    stage: &'static str,
    /// Requests; rounds of the store loops for `log_wait` and `log_write`.
    count: u64,
    /// Of all of them together.
    total_us: f64,
    mean_us: f64,
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
}

fn micros(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}

fn report(stage: Stage, times: &Histogram) -> StageReport {
    let at = |part| micros(times.quantile(part));
    StageReport {
        stage: stage.name(),
        count: times.count(),
        total_us: micros(times.sum()),
        mean_us: micros(times.mean()),
        p50_us: at(0.5),
        p90_us: at(0.9),
        p99_us: at(0.99),
        p999_us: at(0.999),
        max_us: micros(times.max()),
    }
}

/// All stages, in the order of the way.
pub fn stages(stats: &StageStats) -> Vec<StageReport> {
    stats.iter().map(|(stage, times)| report(stage, times)).collect()
}

/// A table of them, a line for each stage of each node (by its store).
pub fn table<'a>(nodes: impl Iterator<Item = (u64, &'a [StageReport])>) -> String {
    let head = ["stage", "store", "count", "mean us", "p50", "p90", "p99", "p99.9", "max"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (store, stages) in nodes {
        for stage in stages {
            let mut row = vec![stage.stage.to_owned(), store.to_string(), stage.count.to_string()];
            let times = [
                stage.mean_us,
                stage.p50_us,
                stage.p90_us,
                stage.p99_us,
                stage.p999_us,
                stage.max_us,
            ];
            row.extend(times.map(|us| format!("{us:.0}")));
            rows.push(row);
        }
    }
    columns(&rows)
}
