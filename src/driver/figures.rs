//! What the driver counts.

use super::Driver;
use super::stages::StageStats;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of the driver.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DriverStats {
    /// Rounds of all store loops.
    pub rounds: u64,
    /// Entries applied.
    pub applied_entries: u64,
    /// Bytes of them.
    pub applied_bytes: u64,
    /// Passes of the apply workers.
    pub apply_passes: u64,
    /// Raft messages dropped because an inbox was full.
    pub dropped_messages: u64,
    /// Client batches refused with `Busy` before they reached a loop.
    pub refused_proposals: u64,
    /// Callers waiting now.
    pub waiting: u64,
    /// Bytes waiting to be applied now.
    pub apply_queue_bytes: u64,
    /// Bytes of client batches waiting for the state store to catch up now.
    pub held_bytes: u64,
}

/// Where the threads count.
#[derive(Default, Debug)]
pub(super) struct Counters {
    pub rounds: AtomicU64,
    pub applied_entries: AtomicU64,
    pub applied_bytes: AtomicU64,
    pub apply_passes: AtomicU64,
    pub dropped_messages: AtomicU64,
    pub refused_proposals: AtomicU64,
}

impl Driver {
    /// Counters.
    pub fn stats(&self) -> DriverStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.shared.counters;
        DriverStats {
            rounds: load(&counters.rounds),
            applied_entries: load(&counters.applied_entries),
            applied_bytes: load(&counters.applied_bytes),
            apply_passes: load(&counters.apply_passes),
            dropped_messages: load(&counters.dropped_messages),
            refused_proposals: load(&counters.refused_proposals),
            waiting: self.shared.desks.len() as u64,
            apply_queue_bytes: self.shared.apply_bytes.load(Ordering::Relaxed) as u64,
            held_bytes: self.shared.admission.waiting(),
        }
    }

    /// Where writes waited.
    pub fn stages(&self) -> StageStats {
        self.shared.stages.read()
    }
}
