//! Idle regions on real nodes: they sleep, they wake, also when the node of their leader is killed, and one node
//! that is down keeps nobody awake. What a sleeping replica weighs is counted by the allocator, and judged.
//!
//! `CATAMARAN_SLEEP_REGIONS=10000 cargo test --release --test cluster_sleep idle_regions -- --nocapture` measures at
//! that size and prints processor time and memory of the idle cluster, how soon orphans take writes, how soon a node that
//! comes back is open, and who is woken by it: at most 2 % of a core for each store, and two seconds for the writes. Without it
//! a small one is looked at, and no time is judged. The three nodes of the measurement keep log and state on the real disk
//! (`CATAMARAN_SLEEP_MEMORY=1`: in memory; the log's bytes count as memory of the replicas then).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use catamaran::config::StateKind;
use catamaran::env::mem::MemDisk;
use catamaran::transport::Hub;
use catamaran::types::{RegionId, StoreId};
use catamaran::{Node, NodeConfig};
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Counts what is allocated and not given back.
struct Counting;

static LIVE: AtomicI64 = AtomicI64::new(0);

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as i64, Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as i64, Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as i64, Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LIVE.fetch_add(size as i64 - layout.size() as i64, Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What is counted is the whole process's: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn live() -> i64 {
    LIVE.load(Relaxed)
}

/// Has the C library give back to the system what it keeps of freed memory, if it is one that does only when asked.
fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            safe fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        malloc_trim(0);
    }
}

const SMALL: u64 = 48;
/// Of a core, by a store whose regions sleep. Judged, like all that takes its time, where another number of regions is asked for.
const CPU_PERCENT_MAX: f64 = 2.0;
/// From the kill of a region's leader to the first write.
const FIRST_WRITE_MAX: Duration = Duration::from_secs(2);

fn regions() -> u64 {
    std::env::var("CATAMARAN_SLEEP_REGIONS").ok().map_or(SMALL, |n| n.parse().unwrap())
}

fn config(id: u64, regions: u64) -> NodeConfig {
    NodeConfig {
        store_id: id,
        cluster: (1..=3).map(|id| (id, format!("hub:{id}"))).collect(),
        regions,
        loops: 2,
        hibernate_after_ms: 1_000,
        segment_bytes: 16 << 20,
        flush_interval_ms: 1_000,
        ..NodeConfig::default()
    }
}

/// Where nodes keep log and state.
enum Disks {
    Memory(BTreeMap<u64, Arc<MemDisk>>),
    Real(tempfile::TempDir),
}

impl Disks {
    fn memory() -> Disks {
        Disks::Memory((1..=3).map(|id| (id, Arc::new(MemDisk::default()))).collect())
    }

    fn real() -> Disks {
        Disks::Real(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
    }
}

struct Cluster {
    hub: Hub,
    regions: u64,
    disks: Disks,
    nodes: BTreeMap<u64, Node>,
}

impl Cluster {
    fn start(regions: u64, disks: Disks) -> Cluster {
        let mut cluster = Cluster { hub: Hub::new(), regions, disks, nodes: BTreeMap::new() };
        (1..=3).for_each(|id| cluster.open(id));
        let start = Instant::now();
        while !cluster.nodes.values().all(|node| node.status().unwrap().len() as u64 == regions) {
            assert!(start.elapsed() < Duration::from_secs(60), "not all replicas are there");
            std::thread::sleep(Duration::from_millis(10));
        }
        cluster
    }

    fn open(&mut self, id: u64) {
        let config = config(id, self.regions);
        let name = format!("node-{id}");
        let node = match &self.disks {
            Disks::Memory(disks) => {
                let (data_dir, state) = (name.into(), StateKind::Memory);
                let disk: Arc<MemDisk> = Arc::clone(&disks[&id]);
                Node::builder(NodeConfig { data_dir, state, ..config }).disk(disk)
            }
            Disks::Real(dir) => {
                Node::builder(NodeConfig { data_dir: dir.path().join(name), ..config })
            }
        };
        self.nodes.insert(id, node.hub(self.hub.clone()).open().unwrap());
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
            assert!(took < Duration::from_secs(900), "{what}: {} awake", self.awake());
            std::thread::sleep(Duration::from_millis(if regions() == SMALL { 100 } else { 2_000 }));
        }
        note(&format!("{what}: all asleep after {:?}", start.elapsed()));
    }

    /// The replicas that are awake, by node.
    fn who_is_awake(&self) -> Vec<(u64, RegionId)> {
        let awake = |(id, node): (&u64, &Node)| {
            let all = node.status().unwrap_or_default().into_iter().filter(|s| !s.asleep);
            all.map(|status| (*id, status.region.id)).collect::<Vec<_>>()
        };
        self.nodes.iter().flat_map(awake).collect()
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

/// Has the system forget what it keeps of files in memory; `false` where that is not allowed.
fn forget_files() -> bool {
    // Only what is on disk is forgotten.
    std::process::Command::new("sync").status().is_ok_and(|status| status.success())
        && std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// What a replica weighs: what is allocated, and what the process takes.
fn measure_memory(what: &str, (live_before, resident_before): (i64, u64), replicas: u64) {
    if regions() == SMALL {
        return;
    }
    let each = |bytes: u64| bytes / replicas;
    let taken = resident().saturating_sub(resident_before);
    trim();
    let trimmed = resident().saturating_sub(resident_before);
    println!(
        "{what}: of each replica {} bytes are allocated; the process takes {}, {} after malloc_trim; everything divided",
        each((live() - live_before).max(0) as u64),
        each(taken),
        each(trimmed),
    );
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
    assert!(each <= CPU_PERCENT_MAX, "{what}: {each:.2} % of a core for each store");
}

#[test]
#[cfg(target_os = "linux")]
fn idle_regions_sleep_and_wake_whoever_is_killed() {
    let _alone = alone();
    let regions = regions();
    let before = (live(), resident());
    let in_memory = regions == SMALL || std::env::var_os("CATAMARAN_SLEEP_MEMORY").is_some();
    let disks = if in_memory { Disks::memory() } else { Disks::real() };
    let mut cluster = Cluster::start(regions, disks);
    cluster.all_fall_asleep("at the start");
    measure_memory("three nodes asleep", before, 3 * regions);
    measure_idle("three nodes idle", 3);
    measure_memory("three nodes idle", before, 3 * regions);
    if std::env::var_os("CATAMARAN_SLEEP_STOP").is_some() {
        std::process::exit(0);
    }

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
    if regions != SMALL {
        assert!(last <= FIRST_WRITE_MAX, "the last first write took {last:?}");
    }

    cluster.all_fall_asleep("with one node down");
    measure_idle("two nodes idle, one dead", 2);
    measure_memory("two nodes idle, one dead", before, 2 * regions);
    let reader = cluster.nodes.values().next().unwrap().client().blocking();
    for region in orphans.iter().take(100) {
        assert_eq!(reader.get(key(*region, regions)).unwrap().unwrap(), "two");
    }

    // It comes back, catches up, and everybody sleeps.
    let cold = regions != SMALL && forget_files();
    let opening = Instant::now();
    cluster.open(victim);
    let there = |cluster: &Cluster| cluster.nodes[&victim].status().unwrap().len() as u64;
    while there(&cluster) < regions {
        std::thread::sleep(Duration::from_millis(5));
    }
    note(&format!(
        "it has {regions} replicas after {:?}, files {} in memory",
        opening.elapsed(),
        if cold { "not" } else { "perhaps" }
    ));
    let mut woken: BTreeSet<(u64, RegionId)> = BTreeSet::new();
    loop {
        let awake = cluster.who_is_awake();
        if awake.is_empty() {
            break;
        }
        woken.extend(awake.into_iter().filter(|(node, _)| *node != victim));
        std::thread::sleep(Duration::from_millis(50));
    }
    cluster.all_fall_asleep("with the node back");
    note(&format!("it woke {} of the others' {} replicas", woken.len(), 2 * regions));
    let status = cluster.nodes[&victim].status().unwrap();
    let behind = status.iter().filter(|s| s.applied < s.committed || s.leader.is_none()).count();
    assert_eq!(behind, 0);
}

#[test]
fn a_follower_read_and_a_transfer_wake_a_sleeping_region() {
    let _alone = alone();
    let cluster = Cluster::start(3, Disks::memory());
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

/// What a sleeping replica may weigh.
const BYTES_MAX: i64 = 4 << 10;

/// Bytes that a cluster of so many regions has allocated once all sleep.
fn weigh(regions: u64) -> i64 {
    let before = live();
    let cluster = Cluster::start(regions, Disks::real());
    cluster.all_fall_asleep("at the start");
    // What was written on the way to sleep is flushed, answers are fetched: it is the least that counts.
    let mut least = i64::MAX;
    for _ in 0..40 {
        least = least.min(live() - before);
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(cluster);
    least
}

#[test]
fn a_sleeping_replica_is_small() {
    let _alone = alone();
    let (few, more) = (16, 512);
    // The first cluster of a process allocates what stays.
    weigh(few);
    let bytes = weigh(few + more) - weigh(few);
    let each = bytes / (3 * more as i64);
    println!("{each} bytes for each sleeping replica");
    assert!(each <= BYTES_MAX, "{each} bytes");
}
