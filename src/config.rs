//! What an operator may set: one flat [`NodeConfig`], read from TOML or JSON through serde, with
//! defaults that suit a small cluster, and one [`validate`](NodeConfig::validate) that says in words
//! what is wrong. Durations end in `_ms`, sizes in `_bytes`.
//!
//! It stands above the rooms whose limits it checks by their own word: the log's, the codec's.

use crate::codec::command::BATCH_BYTES_MAX;
use crate::error::{Error, Result};
use crate::log;
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
/// * They are used only once, when the members of `cluster` have all met: a directory that has been set up keeps its
///   regions.
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
    /// All members of a new cluster and their addresses. Empty: a cluster of this node alone, unless it joins one.
    /// They found it together: no region answers before all of them have been up at once, and have met. After that
    /// one of them with an empty directory is never taken for new: another store joins in its place.
    #[serde(deserialize_with = "cluster_map")]
    pub cluster: BTreeMap<u64, String>,
    /// The running nodes that this one joins, in place of `cluster`: all of them, for nobody else tells it where they
    /// are. It starts without a region, introduces itself to them under `listen`, and gets its replicas by
    /// membership changes. To be given again at every start. Its store id must be one that no store has had.
    #[serde(deserialize_with = "cluster_map")]
    pub join: BTreeMap<u64, String>,
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
    /// A region that nobody uses sleeps after a tick or two: it is not ticked, and its group sends nothing until it is
    /// used again or its leader's node is lost. One that has slept for so long gives its group's memory back, too.
    /// 0: regions never sleep.
    pub hibernate_after_ms: u64,
    /// How much faster another node's clock may run, in percent: shortens the leader lease.
    pub clock_drift_percent: u32,
    /// Store loops; 0: half the cores, eight at most.
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
    /// A region is cut in pieces of half this size once its keys and values take more; 0: never by itself.
    pub region_split_bytes: u64,
    /// A region is cut in two once it has taken so many client batches per second for `region_split_load_ms`, if there is a
    /// key that divides them; 0: never for its load. Reads are not counted.
    pub region_split_load: u64,
    /// For how long a region must have taken `region_split_load`.
    pub region_split_load_ms: u64,
    /// A region that takes at most this part of `region_split_bytes`, in percent, and is hardly used, is merged into a
    /// neighbour of which the same is true; at most 20. 0: regions are never merged by themselves. So it is, too, where
    /// regions are never cut for their size.
    pub region_merge_percent: u64,
    /// For how long it must have been so, without a cut and under one leader. Regions that nobody has ever written
    /// to (cut in advance, say) stay as they are.
    pub region_merge_after_ms: u64,
    /// A region's log is compacted, laggards or not, once it holds this much. At least `compact_bytes`.
    pub region_log_bytes: u64,
    /// The state store is flushed when the log takes this much disk, so that the log can shrink.
    pub log_budget_bytes: u64,
    /// Size of a log segment; see [`log::Options::segment_bytes`].
    pub segment_bytes: u64,
    /// Recent log entries kept in memory, of all regions together. 0: only those that still wait for the
    /// disk or for being applied.
    pub entry_cache_bytes: usize,
    /// Entries of a region that go to the log together and take more than this are compressed; see
    /// [`log::Options::compress_above`]. 0: none are.
    pub compress_above_bytes: usize,
    /// The memtable is flushed when it reaches this.
    pub memtable_bytes: usize,
    /// Memory for blocks of the tables on disk. 0: none is kept, every read goes to the system's cache.
    pub block_cache_bytes: u64,
    /// The state store is flushed at least this often while something changes.
    pub flush_interval_ms: u64,
    /// How long a client's call may take unless it says otherwise.
    pub request_timeout_ms: u64,
    /// How long a graceful shutdown waits for leaderships to move. 0: it does not try to hand them over.
    pub shutdown_timeout_ms: u64,
    /// Bytes of messages waiting for one other node, and of answers for one client. Must hold the largest
    /// of them: what never fits is never sent, however often raft tries.
    pub peer_queue_bytes: usize,
    /// Snapshots being sent at once, or asked for a slot for.
    pub snapshots: usize,
    /// Snapshots being received or restored at once: senders wait for a slot before they make one.
    pub snapshot_slots: usize,
    /// Bytes of snapshots that this node sends per second, all together; 0: as many as it can.
    pub snapshot_bytes_per_s: u64,
    /// How long a slot waits for its sender, a sender keeps a snapshot whose connection broke, and a receiver what it
    /// has of it.
    pub snapshot_patience_ms: u64,
    /// How long a snapshot may be under way at most; the log above it is kept meanwhile.
    pub snapshot_timeout_ms: u64,
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
            join: BTreeMap::new(),
            regions: 1,
            replicas: 0,
            state: StateKind::Disk,
            tick_ms: 30,
            election_ticks: 20,
            heartbeat_ticks: 5,
            hibernate_after_ms: 5_000,
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
            region_split_bytes: 256 << 20,
            region_split_load: 50_000,
            region_split_load_ms: 10_000,
            region_merge_percent: 12,
            region_merge_after_ms: 3_600_000,
            region_log_bytes: 256 << 20,
            log_budget_bytes: 2 << 30,
            segment_bytes: 64 << 20,
            entry_cache_bytes: 128 << 20,
            compress_above_bytes: 0,
            memtable_bytes: 128 << 20,
            block_cache_bytes: 64 << 20,
            flush_interval_ms: 30_000,
            request_timeout_ms: 10_000,
            shutdown_timeout_ms: 5_000,
            peer_queue_bytes: 64 << 20,
            snapshots: 2,
            snapshot_slots: 4,
            snapshot_bytes_per_s: 100 << 20,
            snapshot_patience_ms: 60_000,
            snapshot_timeout_ms: 600_000,
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
            Err(_) => {
                Err(serde::de::Error::custom(format!("{id:?} is not a store id (a number from 1)")))
            }
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

    /// The ids of the members of a new cluster, in order; this store alone when `cluster` is empty.
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

    /// The other nodes that the settings name, with their addresses.
    pub fn others(&self) -> impl Iterator<Item = (StoreId, &String)> {
        let named = self.cluster.iter().chain(&self.join);
        named.filter(|(id, _)| **id != self.store_id).map(|(id, address)| (StoreId(*id), address))
    }

    /// The address to listen at, if the node is to be reached by others.
    pub fn listen_addr(&self) -> Option<String> {
        match self.listen.is_empty() {
            true => self.cluster.get(&self.store_id).cloned(),
            false => Some(self.listen.clone()),
        }
    }

    /// Regions of at most so many bytes may be merged by themselves; 0: none.
    pub fn merge_bytes(&self) -> u64 {
        // Not one product: it could overflow.
        self.region_split_bytes / 100 * self.region_merge_percent
            + self.region_split_bytes % 100 * self.region_merge_percent / 100
    }

    /// One tick.
    pub fn tick(&self) -> Duration {
        Duration::from_millis(self.tick_ms)
    }

    /// Checks what the types cannot: [`InvalidArgument`](Error::InvalidArgument) names the field, what
    /// it holds and what it may hold. Looks at the settings alone: no name is resolved, no file opened.
    pub fn validate(&self) -> Result<()> {
        self.validate_members()?;
        if self.data_dir.as_os_str().is_empty() {
            return invalid("data_dir: must not be empty".into());
        }
        // Before the bounds that are given in segments.
        log::Options { segment_bytes: self.segment_bytes, ..log::Options::default() }.validate()?;
        // Before the sums below, which could overflow.
        self.validate_bounds()?;
        self.validate_together()
    }

    fn validate_members(&self) -> Result<()> {
        if self.store_id == 0 || self.cluster.contains_key(&0) || self.join.contains_key(&0) {
            return invalid("store_id: ids start at 1".into());
        }
        if !self.join.is_empty() {
            self.validate_join()?;
        }
        if !self.cluster.is_empty() && !self.cluster.contains_key(&self.store_id) {
            return invalid(format!(
                "store_id = {}: not a member of `cluster` ({:?})",
                self.store_id,
                self.cluster.keys().collect::<Vec<_>>()
            ));
        }
        let nodes = self.stores().len();
        if self.join.is_empty() && self.replica_count() > nodes {
            return invalid(format!("replicas = {}: there are {nodes} nodes", self.replicas));
        }
        if !self.listen.is_empty()
            && let Err(why) = check_address(&self.listen, Port::AnyFree)
        {
            return invalid(format!("listen = {:?}: {why}", self.listen));
        }
        for (name, nodes) in [("cluster", &self.cluster), ("join", &self.join)] {
            let mut known = BTreeMap::new();
            for (id, address) in nodes {
                // The others must know it, so it cannot be drawn at start.
                if let Err(why) = check_address(address, Port::Fixed) {
                    return invalid(format!("{name}: {id} = {address:?}: {why}"));
                }
                if let Some(other) = known.insert(address, id) {
                    return invalid(format!("{name}: {other} and {id} both have {address:?}"));
                }
            }
        }
        Ok(())
    }

    fn validate_join(&self) -> Result<()> {
        if !self.cluster.is_empty() {
            return invalid(
                "join: `cluster` names the members of a new cluster, this joins one".into(),
            );
        }
        if self.join.contains_key(&self.store_id) {
            let id = self.store_id;
            return invalid(format!("join: {id} is this store, not one that runs already"));
        }
        // Its port may not be drawn at start: it introduces itself by it, again after every restart.
        if let Err(why) = check_address(&self.listen, Port::Fixed) {
            return invalid(format!("listen = {:?}: {why}, which `join` needs", self.listen));
        }
        if self.state == StateKind::Memory {
            // After a restart the log is replayed into the first layout, and there is none.
            return invalid("join: a store with state = \"memory\" cannot join".into());
        }
        Ok(())
    }

    fn validate_bounds(&self) -> Result<()> {
        let bounds: [(&str, u64, u64, u64); 34] = [
            ("regions", self.regions, 1, 1 << 20),
            ("tick_ms", self.tick_ms, 1, 10_000),
            ("election_ticks", self.election_ticks as u64, 3, 10_000),
            ("heartbeat_ticks", self.heartbeat_ticks as u64, 1, 1_000),
            ("hibernate_after_ms", self.hibernate_after_ms, 0, 1 << 40),
            ("clock_drift_percent", self.clock_drift_percent.into(), 0, 50),
            ("loops", self.loops as u64, 0, 64),
            ("apply_workers", self.apply_workers as u64, 1, 64),
            ("read_workers", self.read_workers as u64, 1, 256),
            ("inbox_bytes", self.inbox_bytes as u64, 1 << 16, 1 << 40),
            ("inbox_message_bytes", self.inbox_message_bytes as u64, 1 << 16, 1 << 40),
            ("apply_queue_bytes", self.apply_queue_bytes as u64, 1 << 16, 1 << 40),
            ("pending_bytes", self.pending_bytes as u64, 1 << 12, 1 << 40),
            ("entry_bytes", self.entry_bytes as u64, 1, 16 << 20),
            ("compact_bytes", self.compact_bytes, 1, 1 << 50),
            ("region_split_bytes", self.region_split_bytes, 0, 1 << 50),
            ("region_split_load", self.region_split_load, 0, 1 << 40),
            ("region_split_load_ms", self.region_split_load_ms, 100, 3_600_000),
            // Two of that size make less than half of what is cut.
            ("region_merge_percent", self.region_merge_percent, 0, 20),
            ("region_merge_after_ms", self.region_merge_after_ms, 100, 1 << 40),
            ("region_log_bytes", self.region_log_bytes, 1 << 16, 1 << 50),
            ("log_budget_bytes", self.log_budget_bytes, 1, 1 << 50),
            ("entry_cache_bytes", self.entry_cache_bytes as u64, 0, 1 << 40),
            ("compress_above_bytes", self.compress_above_bytes as u64, 0, 1 << 30),
            ("memtable_bytes", self.memtable_bytes as u64, 1 << 12, 1 << 40),
            ("block_cache_bytes", self.block_cache_bytes, 0, 1 << 40),
            ("flush_interval_ms", self.flush_interval_ms, 10, 1 << 40),
            ("request_timeout_ms", self.request_timeout_ms, 1, 1 << 40),
            ("shutdown_timeout_ms", self.shutdown_timeout_ms, 0, 3_600_000),
            ("peer_queue_bytes", self.peer_queue_bytes as u64, MESSAGE_BYTES_MAX as u64, 1 << 40),
            ("snapshots", self.snapshots as u64, 1, 1_000),
            ("snapshot_slots", self.snapshot_slots as u64, 1, 1_000),
            ("snapshot_patience_ms", self.snapshot_patience_ms, 100, 3_600_000),
            ("snapshot_timeout_ms", self.snapshot_timeout_ms, 1_000, 1 << 40),
        ];
        for (name, value, least, most) in bounds {
            if value < least || value > most {
                return invalid(format!("{name} = {value}: must lie in {least}..={most}"));
            }
        }
        Ok(())
    }

    /// What makes no sense together, each by itself within its bounds.
    fn validate_together(&self) -> Result<()> {
        if self.election_ticks <= self.heartbeat_ticks * 2 {
            return invalid(format!(
                "election_ticks = {}: must be more than twice heartbeat_ticks = {}",
                self.election_ticks, self.heartbeat_ticks
            ));
        }
        let election_ms = self.election_ticks as u64 * self.tick_ms;
        if election_ms > ELECTION_MS_MAX {
            return invalid(format!(
                "election_ticks = {} of tick_ms = {}: a lost leader would be missed after {election_ms} \
                 ms at the earliest, at most {ELECTION_MS_MAX} are allowed",
                self.election_ticks, self.tick_ms
            ));
        }
        // Slower, and one chunk would take longer than its receiver waits.
        if (1..SNAPSHOT_RATE_MIN).contains(&self.snapshot_bytes_per_s) {
            return invalid(format!(
                "snapshot_bytes_per_s = {}: must be 0 or at least {SNAPSHOT_RATE_MIN}",
                self.snapshot_bytes_per_s
            ));
        }
        for (name, value, other, least) in [
            ("region_log_bytes", self.region_log_bytes, "compact_bytes", self.compact_bytes),
            ("log_budget_bytes", self.log_budget_bytes, "segment_bytes", self.segment_bytes),
        ] {
            if value < least {
                return invalid(format!("{name} = {value}: must be at least {other} = {least}"));
            }
        }
        Ok(())
    }
}

/// The largest thing that must fit a peer's queue: one entry with the largest batch in it, a forwarded
/// request with that batch, or an answer of a full page and one more value; and their heads. (A queue
/// drops what does not fit whole, and raft would send the same again for ever.)
pub(crate) const MESSAGE_BYTES_MAX: usize = BATCH_BYTES_MAX + (1 << 20);

/// The slowest that snapshots may be sent, bytes per second.
const SNAPSHOT_RATE_MIN: u64 = 1 << 20;

/// Election timeouts beyond this are a slip of the finger.
const ELECTION_MS_MAX: u64 = 600_000;

/// Which ports an address may have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Port {
    /// 1 to 65535.
    Fixed,
    /// 0, too: any that is free.
    AnyFree,
}

/// Whether this reads as `host:port`; else why not.
fn check_address(text: &str, ports: Port) -> std::result::Result<(), String> {
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err("expected host:port".into());
    };
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match bracketed {
        Some(host) if host.parse::<std::net::Ipv6Addr>().is_err() => {
            return Err(format!("{host:?} is not an IPv6 address"));
        }
        Some(_) => {}
        None if host.contains(':') => {
            return Err("an IPv6 address goes in brackets, as in [::1]:7001".into());
        }
        None if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == '/') => {
            return Err(format!("{host:?} is not a host name (expected host:port)"));
        }
        None => {}
    }
    match port.parse::<u16>() {
        Ok(0) if ports == Port::Fixed => Err("port 0 is none that others could reach".into()),
        Ok(_) => Ok(()),
        Err(_) => Err(format!("{port:?} is not a port (a number up to 65535)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut NodeConfig), message: &str) {
        let mut config = NodeConfig::default();
        change(&mut config);
        let found = config.validate().unwrap_err();
        assert!(matches!(found, Error::InvalidArgument(_)), "{found}");
        let found = found.to_string();
        assert!(found.contains(message), "{found:?} does not say {message:?}");
    }

    fn taken(change: impl FnOnce(&mut NodeConfig)) {
        let mut config = NodeConfig::default();
        change(&mut config);
        config.validate().unwrap();
    }

    #[test]
    fn defaults_are_valid_and_mistakes_are_named() {
        taken(|_| {});
        refused(|c| c.regions = 0, "regions = 0");
        refused(|c| c.replicas = 3, "replicas = 3");
        refused(|c| c.replicas = usize::MAX, "there are 1 nodes");
        refused(|c| c.election_ticks = 4, "election_ticks = 4");
        refused(|c| c.cluster = BTreeMap::from([(2, "x:1".to_owned())]), "store_id = 1");
    }

    #[test]
    fn every_number_has_bounds() {
        refused(|c| c.peer_queue_bytes = 0, "peer_queue_bytes = 0");
        refused(|c| c.election_ticks = 100_000, "election_ticks = 100000");
        refused(|c| c.heartbeat_ticks = usize::MAX, "heartbeat_ticks = ");
        refused(|c| c.region_log_bytes = 0, "region_log_bytes = 0");
        refused(|c| c.entry_cache_bytes = usize::MAX, "entry_cache_bytes = ");
        refused(|c| c.compress_above_bytes = usize::MAX, "compress_above_bytes = ");
        refused(|c| c.block_cache_bytes = u64::MAX, "block_cache_bytes = ");
        refused(|c| c.shutdown_timeout_ms = u64::MAX, "shutdown_timeout_ms = ");
        refused(|c| c.snapshot_slots = 0, "snapshot_slots = 0");
        refused(|c| c.snapshot_bytes_per_s = 1, "snapshot_bytes_per_s = 1");
        taken(|c| c.snapshot_bytes_per_s = 0);
        refused(|c| c.clock_drift_percent = 51, "clock_drift_percent = 51");
        refused(|c| c.region_merge_percent = 21, "region_merge_percent = 21");
        refused(|c| c.region_merge_after_ms = 0, "region_merge_after_ms = 0");
        refused(|c| c.region_split_load_ms = 0, "region_split_load_ms = 0");
        taken(|c| (c.region_split_load, c.region_merge_percent) = (0, 0));
        // Nothing kept in memory, and no wait at the end: slow or unkind, but sound.
        taken(|c| (c.entry_cache_bytes, c.block_cache_bytes) = (0, 0));
        taken(|c| c.shutdown_timeout_ms = 0);
    }

    #[test]
    fn two_regions_that_are_merged_are_far_from_being_cut() {
        let of = |region_split_bytes, region_merge_percent| {
            let config =
                NodeConfig { region_split_bytes, region_merge_percent, ..NodeConfig::default() };
            config.validate().unwrap();
            assert!(config.merge_bytes() * 2 <= region_split_bytes / 2);
            config.merge_bytes()
        };
        assert_eq!([of(256 << 20, 12), of(1000, 20), of(1050, 10)], [32_212_254, 200, 105]);
        assert_eq!([of(0, 12), of(1 << 50, 0), of(1 << 50, 20)], [0, 0, (1 << 50) / 5]);
    }

    #[test]
    fn segments_are_judged_by_the_log_and_named() {
        for bytes in [0, 1, 4096, (64 << 20) + 1, 5_000_000_000] {
            refused(|c| c.segment_bytes = bytes, &format!("segment_bytes {bytes}"));
        }
        taken(|c| c.segment_bytes = 8192);
        taken(|c| c.segment_bytes = 2 << 30);
    }

    #[test]
    fn what_belongs_together_is_compared() {
        let smaller = |c: &mut NodeConfig| c.region_log_bytes = c.compact_bytes - 1;
        refused(smaller, "must be at least compact_bytes = 1048576");
        refused(|c| c.log_budget_bytes = 1 << 20, "must be at least segment_bytes = 67108864");
        refused(|c| (c.tick_ms, c.election_ticks) = (10_000, 100), "tick_ms = 10000");
        taken(|c| c.hibernate_after_ms = 0);
        refused(|c| c.peer_queue_bytes = BATCH_BYTES_MAX, "peer_queue_bytes = 25165824");
        taken(|c| c.peer_queue_bytes = MESSAGE_BYTES_MAX);
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for wrong in ["nonsense", ":7001", "h:", "h:port", "h:65536", "h:-1", "a b:1", "::1:7001"] {
            refused(|c| c.listen = wrong.into(), &format!("listen = {wrong:?}"));
            let cluster = BTreeMap::from([(1, wrong.to_owned())]);
            refused(|c| c.cluster = cluster, &format!("cluster: 1 = {wrong:?}"));
        }
        refused(|c| c.listen = "::1:7001".into(), "[::1]:7001");
        refused(|c| c.listen = "[::1::]:7001".into(), "IPv6");
        refused(|c| c.cluster = BTreeMap::from([(1, "h:0".to_owned())]), "port 0");
        let twins = BTreeMap::from([(1, "h:1".to_owned()), (2, "h:1".to_owned())]);
        refused(|c| c.cluster = twins, "1 and 2 both have \"h:1\"");
        for right in ["127.0.0.1:0", "[::1]:7001", "node-1.example:7001", "localhost:65535"] {
            taken(|c| c.listen = right.into());
        }
    }

    #[test]
    fn who_joins_says_where_it_listens_and_founds_nothing() {
        let joining = || NodeConfig {
            store_id: 4,
            listen: "h4:1".into(),
            join: BTreeMap::from([(1, "h1:1".to_owned()), (2, "h2:1".to_owned())]),
            ..NodeConfig::default()
        };
        let config = joining();
        config.validate().unwrap();
        let others: Vec<u64> = config.others().map(|(store, _)| store.0).collect();
        assert_eq!((others, config.listen_addr().as_deref()), (vec![1, 2], Some("h4:1")));
        let refused = |change: &dyn Fn(&mut NodeConfig), message: &str| {
            let mut config = joining();
            change(&mut config);
            let found = config.validate().unwrap_err().to_string();
            assert!(found.contains(message), "{found:?} does not say {message:?}");
        };
        refused(&|c| c.listen.clear(), "which `join` needs");
        refused(&|c| c.listen = "h4:0".into(), "which `join` needs");
        refused(&|c| c.store_id = 2, "2 is this store");
        refused(&|c| c.cluster = BTreeMap::from([(4, "h4:1".to_owned())]), "join: `cluster`");
        refused(&|c| c.state = StateKind::Memory, "memory");
        refused(&|c| drop(c.join.insert(3, "h1:1".into())), "join: 1 and 3 both have");
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
