//! The active memtable: sorted runs, oldest first, merged geometrically.
//!
//! A run's class is the logarithm of its size to base [`FAN`]. When the newest run of some class makes
//! `FAN` runs of that class or smaller at the tail, those are merged into one. So a slot is copied about
//! `log_FAN(entries / batch)` times, and a get searches at most `FAN` runs per class.
//!
//! What a write of n bytes costs in memory, all in all:
//! * `n` once, as received. It moves only if most of what lies beside it is dead, in proportion to what has died.
//! * 16 bytes for its slot, in each class again: read once and written once; the passes between, `log_2(FAN)`, stay in
//!   the processor's cache.
//! * Of that, first touches of memory (several times as expensive as all the rest): `n`, 16 for the index as it
//!   grows, and 16 for the one class whose merges are larger than what the allocator keeps at hand. What other merges
//!   need was given back by those before, since all of them take and give blocks of one size.

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
