//! What we mean to reach, as ratios against raft-engine measured in the same run, whichever of its variants is
//! best at the row. A row without a target is measured for the record, and so is raft-log: it syncs each group
//! by itself, so that a ratio against it says little of either.

/// A row of writing, against the fastest raft-engine of the row.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rate {
    /// Name of the row.
    pub work: &'static str,
    /// Entries a second, ours for each of raft-engine's: at least.
    pub at_least: f64,
    /// The 99th percentile, ours for each of raft-engine's: at most.
    pub p99_at_most: Option<f64>,
}

/// Rows of writing.
pub const RATES: [Rate; 8] = [
    Rate { work: "1x1", at_least: 1.1, p99_at_most: Some(1.0) },
    Rate { work: "1x4", at_least: 1.1, p99_at_most: None },
    Rate { work: "1x2-ahead-512", at_least: 100.0, p99_at_most: None },
    Rate { work: "64x64", at_least: 1.7, p99_at_most: None },
    Rate { work: "64x64-ahead-16", at_least: 6.0, p99_at_most: None },
    Rate { work: "64x64-1k", at_least: 1.5, p99_at_most: None },
    Rate { work: "64x64-1k-ahead-16", at_least: 3.0, p99_at_most: None },
    Rate { work: "1024x256", at_least: 1.3, p99_at_most: Some(0.6) },
];

/// The target of a row of writing, if it has one.
pub fn of(work: &str) -> Option<Rate> {
    RATES.iter().copied().find(|rate| rate.work == work)
}

/// Opening a large log when none of it is in the page cache: at most so much of raft-engine's
/// time.
pub const OPEN_COLD: f64 = 0.1;
/// Opening it again.
pub const OPEN_WARM: f64 = 0.25;
/// Heap bytes for an entry that lives, at most whether a write has eight of a group or one.
pub const HEAP_PER_ENTRY: f64 = 12.0;
/// Bytes that the disk delivers for a byte of one group's entries, cold, at most, likewise.
pub const READ_AMPLIFICATION: f64 = 2.0;
/// Bytes kept for a live byte, with 1 % laggards, after purging, at most.
pub const KEPT_PER_LIVE: f64 = 2.0;
