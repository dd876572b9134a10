//! What an operator may set: one flat [`NodeConfig`], read from TOML or JSON through serde, with
//! defaults that suit a small cluster, and one [`validate`](NodeConfig::validate) that says in words
//! what is wrong. Durations end in `_ms`, sizes in `_bytes`.

use crate::error::{Error, Result};
use crate::types::StoreId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Where a node keeps user data.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StateKind {
    /// In sorted tables on disk.
    #[default]
    Disk,
    /// In memory only: gone with the process, while the log stays on disk. For benchmarks and tests.
    Memory,
}

/// A node's settings. Every field has a default; `store_id`, `data_dir`, `listen` and `cluster` are
/// what a real cluster must set.
///
/// * The whole cluster must agree on `cluster_id`, `cluster`, `regions` and `replicas`: the first
///   layout of a new cluster is computed from them on every node alike.
/// * They are used only once: a directory that has been set up keeps its regions.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Which member of `cluster` this node is. From 1.
    pub store_id: u64,
    /// Nodes of different clusters refuse each other.
    pub cluster_id: u64,
    /// The directory for log, state and snapshots. Owned by one process at a time.
    pub data_dir: PathBuf,
    /// Where to listen, `host:port`. Empty: the address that `cluster` names for this store.
    pub listen: String,
    /// All members and their addresses. Empty: a cluster of this node alone.
    #[serde(deserialize_with = "cluster_map")]
    pub cluster: BTreeMap<u64, String>,
    /// Regions of a new cluster.
    pub regions: u64,
    /// Replicas of each; 0: three, or as many as there are nodes.
    pub replicas: usize,
    /// Where user data lives.
    pub state: StateKind,
    /// One tick of the logical clock.
    pub tick_ms: u64,
    /// Silence after which a follower may campaign, in ticks.
    pub election_ticks: usize,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: usize,
    /// How much faster another node's clock may run, in percent: shortens the leader lease.
    pub clock_drift_percent: u32,
    /// Store loops; 0: half the cores.
    pub loops: usize,
    /// Threads that apply committed entries.
    pub apply_workers: usize,
    /// Threads that serve reads which had to wait, and forwarded ones.
    pub read_workers: usize,
    /// Client bytes waiting in one store loop's inbox; more are answered `Busy`.
    pub inbox_bytes: usize,
    /// Raft message bytes waiting in one store loop's inbox; more are dropped (raft sends again).
    pub inbox_message_bytes: usize,
    /// Committed bytes waiting for the apply workers above which writes are answered `Busy`.
    pub apply_queue_bytes: usize,
    /// Client bytes waiting in one region for a place in its log.
    pub pending_bytes: usize,
    /// Client bytes folded into one log entry, about.
    pub entry_bytes: usize,
    /// A region's log is compacted once it holds this much more than its followers need.
    pub compact_bytes: u64,
    /// A region's log is compacted, laggards or not, once it holds this much.
    pub region_log_bytes: u64,
    /// The state store is flushed when the log takes this much disk, so that the log can shrink.
    pub log_budget_bytes: u64,
    /// Size of a log segment.
    pub segment_bytes: u64,
    /// Recent log entries kept in memory, of all regions together.
    pub entry_cache_bytes: usize,
    /// The memtable is flushed when it reaches this.
    pub memtable_bytes: usize,
    /// Memory for blocks of the tables on disk.
    pub block_cache_bytes: u64,
    /// The state store is flushed at least this often while something changes.
    pub flush_interval_ms: u64,
    /// How long a client's call may take unless it says otherwise.
    pub request_timeout_ms: u64,
    /// How long a graceful shutdown waits for leaderships to move.
    pub shutdown_timeout_ms: u64,
    /// Bytes of messages waiting for one other node.
    pub peer_queue_bytes: usize,
    /// Snapshots streaming out, and in, at once.
    pub snapshots: usize,
    /// Seeds election timeouts; 0: drawn at start.
    pub seed: u64,
}

impl Default for NodeConfig {
    fn default() -> Self {
        NodeConfig {
            store_id: 1,
            cluster_id: 1,
            data_dir: PathBuf::from("data"),
            listen: String::new(),
            cluster: BTreeMap::new(),
            regions: 1,
            replicas: 0,
            state: StateKind::Disk,
            tick_ms: 30,
            election_ticks: 20,
            heartbeat_ticks: 5,
            clock_drift_percent: 5,
            loops: 0,
            apply_workers: 1,
            read_workers: 2,
            inbox_bytes: 64 << 20,
            inbox_message_bytes: 256 << 20,
            apply_queue_bytes: 256 << 20,
            pending_bytes: 8 << 20,
            entry_bytes: 1 << 20,
            compact_bytes: 1 << 20,
            region_log_bytes: 256 << 20,
            log_budget_bytes: 2 << 30,
            segment_bytes: 64 << 20,
            entry_cache_bytes: 128 << 20,
            memtable_bytes: 128 << 20,
            block_cache_bytes: 64 << 20,
            flush_interval_ms: 30_000,
            request_timeout_ms: 10_000,
            shutdown_timeout_ms: 5_000,
            peer_queue_bytes: 64 << 20,
            snapshots: 2,
            seed: 0,
        }
    }
}

/// TOML has string keys only: takes `1 = "host:port"` and `"1" = "host:port"` alike.
fn cluster_map<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<BTreeMap<u64, String>, D::Error> {
    let map = BTreeMap::<String, String>::deserialize(deserializer)?;
    map.into_iter()
        .map(|(id, addr)| match id.parse() {
            Ok(id) => Ok((id, addr)),
            Err(_) => Err(serde::de::Error::custom(format!(
                "cluster: {id:?} is not a store id (a number from 1)"
            ))),
        })
        .collect()
}

fn invalid<T>(message: String) -> Result<T> {
    Err(Error::InvalidArgument(message))
}

impl NodeConfig {
    /// A cluster of one node in `data_dir`, reachable by its embedder only.
    pub fn single(data_dir: impl Into<PathBuf>) -> NodeConfig {
        NodeConfig { data_dir: data_dir.into(), ..NodeConfig::default() }
    }

    /// The members' ids, in order; this store alone when `cluster` is empty.
    pub fn stores(&self) -> Vec<StoreId> {
        match self.cluster.is_empty() {
            true => vec![StoreId(self.store_id)],
            false => self.cluster.keys().copied().map(StoreId).collect(),
        }
    }

    /// Replicas of each region, with the default filled in.
    pub fn replica_count(&self) -> usize {
        match self.replicas {
            0 => self.stores().len().min(3),
            n => n,
        }
    }

    /// The address to listen at, if the node is to be reached by others.
    pub fn listen_addr(&self) -> Option<String> {
        match self.listen.is_empty() {
            true => self.cluster.get(&self.store_id).cloned(),
            false => Some(self.listen.clone()),
        }
    }

    /// One tick.
    pub fn tick(&self) -> Duration {
        Duration::from_millis(self.tick_ms)
    }

    /// Checks what the types cannot: [`InvalidArgument`](Error::InvalidArgument) names the field, what
    /// it holds and what it may hold.
    pub fn validate(&self) -> Result<()> {
        if self.store_id == 0 || self.cluster.contains_key(&0) {
            return invalid("store_id: ids start at 1".into());
        }
        if !self.cluster.is_empty() && !self.cluster.contains_key(&self.store_id) {
            return invalid(format!(
                "store_id = {}: not a member of `cluster` ({:?})",
                self.store_id,
                self.cluster.keys().collect::<Vec<_>>()
            ));
        }
        if self.data_dir.as_os_str().is_empty() {
            return invalid("data_dir: must not be empty".into());
        }
        let nodes = self.stores().len();
        if self.replica_count() > nodes {
            return invalid(format!("replicas = {}: there are {nodes} nodes", self.replicas));
        }
        if self.election_ticks <= self.heartbeat_ticks * 2 {
            return invalid(format!(
                "election_ticks = {}: must be more than twice heartbeat_ticks = {}",
                self.election_ticks, self.heartbeat_ticks
            ));
        }
        if self.clock_drift_percent > 50 {
            return invalid(format!(
                "clock_drift_percent = {}: at most 50",
                self.clock_drift_percent
            ));
        }
        self.validate_bounds()
    }

    fn validate_bounds(&self) -> Result<()> {
        let bounds: [(&str, u64, u64, u64); 17] = [
            ("regions", self.regions, 1, 1 << 20),
            ("tick_ms", self.tick_ms, 1, 10_000),
            ("heartbeat_ticks", self.heartbeat_ticks as u64, 1, 1_000),
            ("loops", self.loops as u64, 0, 64),
            ("apply_workers", self.apply_workers as u64, 1, 64),
            ("read_workers", self.read_workers as u64, 1, 256),
            ("inbox_bytes", self.inbox_bytes as u64, 1 << 16, 1 << 40),
            ("inbox_message_bytes", self.inbox_message_bytes as u64, 1 << 16, 1 << 40),
            ("apply_queue_bytes", self.apply_queue_bytes as u64, 1 << 16, 1 << 40),
            ("pending_bytes", self.pending_bytes as u64, 1 << 12, 1 << 40),
            ("entry_bytes", self.entry_bytes as u64, 1, 16 << 20),
            ("compact_bytes", self.compact_bytes, 1, 1 << 50),
            ("log_budget_bytes", self.log_budget_bytes, self.segment_bytes, 1 << 50),
            ("memtable_bytes", self.memtable_bytes as u64, 1 << 12, 1 << 40),
            ("flush_interval_ms", self.flush_interval_ms, 10, 1 << 40),
            ("request_timeout_ms", self.request_timeout_ms, 1, 1 << 40),
            ("snapshots", self.snapshots as u64, 1, 1_000),
        ];
        for (name, value, least, most) in bounds {
            if value < least || value > most {
                return invalid(format!("{name} = {value}: must lie in {least}..={most}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_mistakes_are_named() {
        NodeConfig::default().validate().unwrap();
        let named = |config: NodeConfig, field: &str| {
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains(field), "{message}");
        };
        named(NodeConfig { regions: 0, ..Default::default() }, "regions = 0");
        named(NodeConfig { replicas: 3, ..Default::default() }, "replicas = 3");
        named(NodeConfig { election_ticks: 4, ..Default::default() }, "election_ticks = 4");
        let cluster = BTreeMap::from([(2, "x:1".to_owned())]);
        named(NodeConfig { cluster, ..Default::default() }, "store_id = 1");
    }

    #[test]
    fn replicas_follow_the_number_of_nodes() {
        let mut config = NodeConfig::default();
        assert_eq!((config.replica_count(), config.stores()), (1, vec![StoreId(1)]));
        config.cluster = (1..=5).map(|id| (id, format!("h{id}:1"))).collect();
        assert_eq!(config.replica_count(), 3);
        assert_eq!(config.listen_addr().as_deref(), Some("h1:1"));
    }
}
