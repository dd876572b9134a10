//! The active memtable: sorted runs, oldest first, merged geometrically.
//!
//! A run's class is the logarithm of its size to base [`FAN`]. When the newest run of some class makes
//! `FAN` runs of that class or smaller at the tail, those are merged into one. So an entry is copied about
//! `log_FAN(entries / batch)` times (32 bytes each time), and a get searches at most `FAN` runs per class.

use super::run::Run;
use std::ops::Range;
use std::sync::Arc;

/// Runs of one class that make a merge.
const FAN: usize = 8;

fn class(run: &Run) -> u32 {
    (run.slots.len() + run.ranges.len() + run.regions.len()).max(1).ilog(FAN)
}

/// Merges of more slots than this are not a writer's business: it would stop for longer than a few
/// milliseconds.
pub(super) const WRITER_SLOTS: usize = 128 << 10;

/// Which runs to merge now, if any: a tail of the list with at most `limit` slots.
pub(super) fn due(runs: &[Arc<Run>], limit: usize) -> Option<Range<usize>> {
    let mut level = class(runs.last()?);
    let mut start = runs.len();
    let mut merged = None;
    // A merge that is due counts as one run of the next class: a cascade copies each entry once.
    loop {
        let mut of_level = usize::from(merged.is_some());
        while start > 0 && class(&runs[start - 1]) <= level {
            start -= 1;
            of_level += 1;
        }
        let slots: usize = runs[start..].iter().map(|run| run.slots.len()).sum();
        if of_level < FAN || slots > limit {
            return merged.map(|start| start..runs.len());
        }
        merged = Some(start);
        level += 1;
    }
}

/// Memory that runs retain.
pub(super) fn bytes(runs: &[Arc<Run>]) -> usize {
    runs.iter().map(|run| run.bytes).sum()
}
