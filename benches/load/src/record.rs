//! What a generator thread counts, and how the threads' counts are put together.

use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Latencies up to this are told apart.
const LONGEST_NS: u64 = 600_000_000_000;

/// Counts of one thread, or of several put together.
///
/// * Only answers inside the measured window count as operations; a request whose *intended* start lies
///   in the window counts in the latencies even if its answer comes later, or a stall at the end would
///   not show. So does one that was due in the window and that no client was free to send: it has waited to its end.
#[derive(Debug)]
pub struct Record {
    latency: Histogram<u64>,
    /// Operations acknowledged in the window.
    pub ops: u64,
    /// Of them, reads.
    pub reads: u64,
    /// Requests acknowledged in the window.
    pub requests: u64,
    /// Reads that returned what they must not (whenever).
    pub wrong_reads: u64,
    /// Requests that were due in the window and never sent, since every client waited for an answer.
    pub unsent: u64,
    /// Failed requests by kind, of the whole run.
    pub errors: BTreeMap<&'static str, u64>,
    /// Operations by second of the window.
    pub by_second: Vec<u64>,
}

/// Percentiles of latency, in microseconds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Percentiles {
    /// Half of the requests took no longer.
    pub p50: f64,
    /// 90 %.
    pub p90: f64,
    /// 99 %.
    pub p99: f64,
    /// 99.9 %.
    pub p999: f64,
    /// The slowest.
    pub max: f64,
}

/// Where the curve of latencies is given, in percent.
const POINTS: [f64; 17] = [
    0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.8, 99.9, 99.95, 99.99, 99.995,
    99.999, 100.0,
];

/// The measured window.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Its start; the warm-up lies before.
    pub start: Instant,
    /// Its end.
    pub end: Instant,
}

impl Record {
    /// Nothing counted yet.
    pub fn new() -> Record {
        #[expect(clippy::expect_used, reason = "the bounds are constants that the crate accepts")]
        let latency = Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("constant bounds");
        Record {
            latency,
            ops: 0,
            reads: 0,
            requests: 0,
            wrong_reads: 0,
            unsent: 0,
            errors: BTreeMap::new(),
            by_second: Vec::new(),
        }
    }

    /// A request was answered.
    pub fn answered(
        &mut self,
        window: Window,
        intended: Instant,
        at: Instant,
        ops: u64,
        reads: u64,
    ) {
        if intended >= window.start {
            self.latency(at.saturating_duration_since(intended));
        }
        if at < window.start || at >= window.end {
            return;
        }
        self.ops += ops;
        self.reads += reads;
        self.requests += 1;
        let second = (at - window.start).as_secs() as usize;
        if self.by_second.len() <= second {
            self.by_second.resize(second + 1, 0);
        }
        self.by_second[second] += ops;
    }

    /// Counts a latency.
    pub fn latency(&mut self, latency: Duration) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.latency.saturating_record(ns.max(1));
    }

    /// A request was due and was never sent.
    pub fn unsent(&mut self, window: Window, intended: Instant) {
        if intended >= window.start {
            self.unsent += 1;
            self.latency(window.end.saturating_duration_since(intended));
        }
    }

    /// A request failed.
    pub fn failed(&mut self, kind: &'static str) {
        *self.errors.entry(kind).or_default() += 1;
    }

    /// Adds another thread's counts.
    pub fn add(&mut self, other: &Record) {
        // Equal bounds: cannot fail.
        let _ = self.latency.add(&other.latency);
        self.ops += other.ops;
        self.reads += other.reads;
        self.requests += other.requests;
        self.wrong_reads += other.wrong_reads;
        self.unsent += other.unsent;
        for (kind, count) in &other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
        if self.by_second.len() < other.by_second.len() {
            self.by_second.resize(other.by_second.len(), 0);
        }
        for (mine, theirs) in self.by_second.iter_mut().zip(&other.by_second) {
            *mine += theirs;
        }
    }

    /// The curve of the latencies: percent, microseconds. Empty if none was counted; it ends where a further point
    /// would only repeat the slowest.
    pub fn points(&self) -> Vec<(f64, f64)> {
        let slowest = self.latency.max();
        let mut points = Vec::new();
        for percent in POINTS.into_iter().filter(|_| !self.latency.is_empty()) {
            // The histogram gives the upper ends of its steps.
            let ns = self.latency.value_at_quantile(percent / 100.0).min(slowest);
            points.push((percent, ns as f64 / 1e3));
            if ns == slowest {
                break;
            }
        }
        points
    }

    /// The latencies' percentiles.
    pub fn percentiles(&self) -> Percentiles {
        let at = |quantile: f64| self.latency.value_at_quantile(quantile) as f64 / 1e3;
        Percentiles {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: self.latency.max() as f64 / 1e3,
        }
    }
}

#[cfg(test)]
impl Record {
    /// How many requests took longer.
    pub fn longer_than(&self, latency: Duration) -> u64 {
        let beyond = self.latency.iter_recorded();
        let ns = latency.as_nanos() as u64;
        beyond.filter(|at| at.value_iterated_to() > ns).map(|at| at.count_at_value()).sum()
    }
}

impl Default for Record {
    fn default() -> Self {
        Record::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_add_up() {
        let start = Instant::now();
        let window = Window { start, end: start + Duration::from_secs(10) };
        let ms = |ms| start + Duration::from_millis(ms);
        let (mut a, mut b) = (Record::new(), Record::new());
        a.answered(window, ms(0), ms(10), 128, 0);
        b.answered(window, ms(1_500), ms(1_520), 128, 128);
        b.answered(window, ms(9_990), ms(10_500), 128, 0);
        b.failed("busy");
        a.add(&b);
        assert_eq!((a.ops, a.reads, a.requests, &a.by_second[..]), (256, 128, 2, &[128, 128][..]));
        assert_eq!(a.errors["busy"], 1);
        let p = a.percentiles();
        assert!((p.p50 - 20_000.0).abs() < 100.0, "{p:?}");
        assert!(p.max > 500_000.0, "the late answer shows: {p:?}");
        let points = a.points();
        assert!(points.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 <= two[1].1));
        assert_eq!(points.last().map(|(_, us)| *us), Some(p.max));
        assert_eq!(Record::new().points(), []);
    }
}
