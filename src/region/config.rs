//! How the replicas of a store behave: limits and times.

use crate::raft::GroupConfig;
use crate::types::StoreId;
use std::time::Duration;

/// How a store behaves.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Which store this is.
    pub store: StoreId,
    /// Its raft groups.
    pub group: GroupConfig,
    /// Drawn anew at each start of the process: sets this life's read requests apart from those of earlier
    /// ones, whose answers may still be under way.
    pub nonce: u64,
    /// What a tick stands for.
    pub tick: Duration,
    /// Awake groups that one tick looks at, about. If more are awake each is looked at every few ticks, for as many.
    pub ticked_at_once: usize,
    /// How much faster another node's clock may run than ours, in percent, before leases are unsafe.
    pub clock_drift_percent_max: u32,
    /// Client bytes waiting in one region for a place in the log, at most.
    pub pending_bytes_max: usize,
    /// Bytes of client batches folded into one entry, at most (about).
    pub entry_bytes_max: usize,
    /// A region's log is compacted once it holds this much beyond what followers need.
    pub compact_bytes: u64,
    /// A region's log is compacted to half, laggards or not, once it holds this much.
    pub log_bytes_max: u64,
    /// How long a snapshot may be under way, and the log above it be kept for its receiver.
    pub snapshot_time_max: Duration,
    /// A region is cut once its keys and values take more than this; 0: never by itself.
    pub split_bytes: u64,
    /// A region is cut once it takes so many client batches per second; 0: never by itself.
    pub split_load: u64,
    /// For how long it must have.
    pub split_load_for: Duration,
    /// So many keys must have been seen beside one before a region is cut there for its load.
    pub split_load_keys: u32,
    /// Committed and not yet applied bytes of one region above which its proposals wait.
    pub apply_lag_bytes_max: usize,
    /// How long a group must sleep before it gives its memory back; zero: groups never sleep.
    pub hibernate_after: Duration,
}

impl Default for StoreConfig {
    fn default() -> Self {
        StoreConfig {
            store: StoreId(1),
            group: GroupConfig::default(),
            nonce: 0,
            tick: Duration::from_millis(50),
            ticked_at_once: 2048,
            clock_drift_percent_max: 5,
            pending_bytes_max: 8 << 20,
            entry_bytes_max: 1 << 20,
            compact_bytes: 1 << 20,
            log_bytes_max: 256 << 20,
            snapshot_time_max: Duration::from_secs(600),
            split_bytes: 0,
            split_load: 0,
            split_load_for: Duration::from_secs(10),
            split_load_keys: 32,
            apply_lag_bytes_max: 32 << 20,
            hibernate_after: Duration::from_secs(5),
        }
    }
}

impl StoreConfig {
    /// How long a confirmed round keeps a leader's lease, counted from when the round *started*: shorter
    /// than what the followers that confirmed it have promised (an election timeout by their own clocks) by
    /// the drift margin and a tick.
    pub fn lease(&self) -> Duration {
        let promised = self.election_timeout().saturating_sub(self.tick);
        promised * (100 - self.clock_drift_percent_max.min(100)) / 100
    }

    /// Every how many ticks each of so many awake groups is looked at: a leader is in time for its heartbeats.
    pub fn turns(&self, awake: usize) -> u64 {
        let turns = awake.div_ceil(self.ticked_at_once.max(1));
        turns.clamp(1, self.group.heartbeat_ticks.max(1)) as u64
    }

    /// One election timeout.
    pub fn election_timeout(&self) -> Duration {
        self.tick * self.group.election_ticks as u32
    }

    /// Whether groups sleep that nobody uses.
    pub fn hibernates(&self) -> bool {
        !self.hibernate_after.is_zero()
    }

    /// [`snapshot_time_max`](Self::snapshot_time_max) in ticks.
    pub fn snapshot_ticks_max(&self) -> u64 {
        let ticks = self.snapshot_time_max.as_nanos() / self.tick.as_nanos().max(1);
        u64::try_from(ticks).unwrap_or(u64::MAX).max(1)
    }

    /// The time between two beats of a node pair.
    pub fn beat_interval(&self) -> Duration {
        self.tick * self.group.heartbeat_ticks as u32
    }

    /// How long after a restart votes are refused: raft-rs forgets whom it followed, and that leader may
    /// hold a lease still. Longer than the timeout by the drift margin.
    pub fn vote_ban(&self) -> Duration {
        self.election_timeout() * (100 + self.clock_drift_percent_max) / 100
    }
}
