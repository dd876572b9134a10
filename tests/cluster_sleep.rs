//! Idle regions on real nodes: they sleep, they wake, also when the node of their leader is killed, and one node
//! that is down keeps nobody awake.
//!
//! `CATAMARAN_SLEEP_REGIONS=10000 cargo test --release --test cluster_sleep -- --nocapture` measures at that size
//! and prints processor time and memory of the idle cluster; without it a small one is looked at, and no time is judged.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use catamaran::config::StateKind;
use catamaran::env::mem::MemDisk;
use catamaran::transport::Hub;
use catamaran::types::{RegionId, StoreId};
use catamaran::{Node, NodeConfig};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SMALL: u64 = 48;

fn regions() -> u64 {
    std::env::var("CATAMARAN_SLEEP_REGIONS").ok().map_or(SMALL, |n| n.parse().unwrap())
}

fn config(id: u64, regions: u64) -> NodeConfig {
    NodeConfig {
        store_id: id,
        cluster: (1..=3).map(|id| (id, format!("hub:{id}"))).collect(),
        data_dir: format!("node-{id}").into(),
        state: StateKind::Memory,
        regions,
        loops: 2,
        hibernate_after_ms: 1_000,
        segment_bytes: 16 << 20,
        ..NodeConfig::default()
    }
}

struct Cluster {
    hub: Hub,
    regions: u64,
    disks: BTreeMap<u64, Arc<MemDisk>>,
    nodes: BTreeMap<u64, Node>,
}

impl Cluster {
    fn start(regions: u64) -> Cluster {
        let disks = (1..=3).map(|id| (id, Arc::new(MemDisk::default()))).collect();
        let mut cluster = Cluster { hub: Hub::new(), regions, disks, nodes: BTreeMap::new() };
        (1..=3).for_each(|id| cluster.open(id));
        cluster
    }

    fn open(&mut self, id: u64) {
        let disk = Arc::clone(&self.disks[&id]);
        let node = Node::builder(config(id, self.regions)).hub(self.hub.clone()).disk(disk);
        self.nodes.insert(id, node.open().unwrap());
    }

    fn kill(&mut self, id: u64) {
        self.nodes.remove(&id).unwrap().kill();
    }

    /// Replicas that are awake, over all nodes.
    fn awake(&self) -> usize {
        // A node that is too busy to say is awake.
        let awake =
            |node: &Node| node.status().map_or(1, |all| all.iter().filter(|s| !s.asleep).count());
        self.nodes.values().map(awake).sum()
    }

    fn all_fall_asleep(&self, what: &str) {
        let start = Instant::now();
        while self.awake() > 0 {
            note(&format!("{:?}: {} awake, cpu {:?}", start.elapsed(), self.awake(), cpu()));
            let took = start.elapsed();
            assert!(took < Duration::from_secs(240), "{what}: {} awake", self.awake());
            std::thread::sleep(Duration::from_millis(if regions() == SMALL { 100 } else { 2_000 }));
        }
        note(&format!("{what}: all asleep after {:?}", start.elapsed()));
    }

    fn leaders(&self) -> BTreeMap<RegionId, u64> {
        let led = |(id, node): (&u64, &Node)| {
            let led = node.status().unwrap().into_iter().filter(|status| status.leads);
            led.map(|status| (status.region.id, *id)).collect::<Vec<_>>()
        };
        self.nodes.iter().flat_map(led).collect()
    }
}

fn note(text: &str) {
    if regions() != SMALL {
        println!("{text}");
    }
}

/// The first key of a region of the first layout.
fn key(region: RegionId, regions: u64) -> Vec<u8> {
    let start = ((u128::from(region.0 - 1) << 64) / u128::from(regions)) as u64;
    [&start.to_be_bytes()[..], b"k"].concat()
}

/// Processor time of this process so far.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

fn measure_idle(what: &str, stores: u32) {
    if regions() == SMALL {
        return;
    }
    let (before, start) = (cpu(), Instant::now());
    std::thread::sleep(Duration::from_secs(20));
    let share = (cpu() - before).as_secs_f64() / start.elapsed().as_secs_f64() * 100.0;
    let each = share / f64::from(stores);
    println!("{what}: {share:.2} % of a core, {each:.2} % for each of {stores} stores");
}

#[test]
#[cfg(target_os = "linux")]
fn idle_regions_sleep_and_wake_whoever_is_killed() {
    let regions = regions();
    let before = resident();
    let mut cluster = Cluster::start(regions);
    cluster.all_fall_asleep("at the start");
    let bytes = (resident() - before) / (3 * regions);
    note(&format!("{bytes} bytes of memory per sleeping replica, everything divided"));
    measure_idle("three nodes idle", 3);

    // Everything wakes for a write, and sleeps again.
    let leaders = cluster.leaders();
    assert_eq!(leaders.len() as u64, regions);
    let client = cluster.nodes[&1].client().blocking();
    for region in leaders.keys().take(100) {
        client.put(key(*region, regions), "one").unwrap();
    }
    cluster.all_fall_asleep("after some writes");

    // The node that leads most is killed: each of its regions takes a write.
    let mut led: BTreeMap<u64, Vec<RegionId>> = BTreeMap::new();
    leaders.iter().for_each(|(region, node)| led.entry(*node).or_default().push(*region));
    let (victim, orphans) = led.into_iter().max_by_key(|(_, led)| led.len()).unwrap();
    let orphans: Vec<RegionId> = orphans.into_iter().take(1000).collect();
    cluster.kill(victim);
    let killed = Instant::now();
    let other = cluster.nodes.values().next().unwrap().client();
    let mut took: Vec<Duration> = std::thread::scope(|scope| {
        let write = |part: Vec<RegionId>| {
            let client = other.with_timeout(Duration::from_secs(60)).blocking();
            scope.spawn(move || {
                let mut took = Vec::new();
                for region in part {
                    client.put(key(region, regions), "two").unwrap();
                    took.push(killed.elapsed());
                }
                took
            })
        };
        let parts = orphans.chunks(orphans.len().div_ceil(16)).map(<[_]>::to_vec);
        let workers: Vec<_> = parts.map(write).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    took.sort_unstable();
    assert_eq!(took.len(), orphans.len());
    let (half, last) = (took[took.len() / 2], took[took.len() - 1]);
    note(&format!(
        "first writes to {} orphaned regions: half in {half:?}, all in {last:?}",
        took.len()
    ));

    cluster.all_fall_asleep("with one node down");
    measure_idle("two nodes idle, one dead", 2);
    let reader = cluster.nodes.values().next().unwrap().client().blocking();
    for region in orphans.iter().take(100) {
        assert_eq!(reader.get(key(*region, regions)).unwrap().unwrap(), "two");
    }

    // It comes back, catches up, and everybody sleeps.
    cluster.open(victim);
    cluster.all_fall_asleep("with the node back");
    let status = cluster.nodes[&victim].status().unwrap();
    let behind = status.iter().filter(|s| s.applied < s.committed || s.leader.is_none()).count();
    assert_eq!(behind, 0);
}

#[test]
fn a_follower_read_and_a_transfer_wake_a_sleeping_region() {
    let cluster = Cluster::start(3);
    cluster.all_fall_asleep("at the start");
    let leaders = cluster.leaders();
    let (region, leader) = leaders.into_iter().next().unwrap();
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let client = cluster.nodes[&follower].client().blocking();
    assert_eq!(client.get(key(region, 3)).unwrap(), None);
    cluster.all_fall_asleep("after a read");
    let start = Instant::now();
    while cluster.leaders()[&region] != follower {
        assert!(start.elapsed() < Duration::from_secs(60), "nobody takes over");
        if cluster.leaders()[&region] == leader {
            let _ = cluster.nodes[&leader].transfer_leader(region, Some(StoreId(follower)));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    client.put(key(region, 3), "v").unwrap();
    cluster.all_fall_asleep("after a transfer");
}
