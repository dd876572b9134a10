//! Snapshots between whole nodes of one process: a new store gets a thousand regions at once, in turn; a transfer whose
//! link breaks goes on; a follower is in step with its leader right after a snapshot, without another write.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use catamaran::config::StateKind;
use catamaran::driver::SnapshotStats;
use catamaran::store::ReadLevel;
use catamaran::transport::Hub;
use catamaran::types::{Region, RegionId, StoreId};
use catamaran::{Error, Node, NodeConfig};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const NEW: StoreId = StoreId(4);

/// Three nodes that hold every region, and a fourth without any.
fn cluster(dir: &Path, hub: &Hub, change: impl Fn(&mut NodeConfig)) -> Vec<Node> {
    let open = |id| {
        let mut config = NodeConfig {
            store_id: id,
            cluster: (1..=4).map(|id| (id, format!("node-{id}:1"))).collect(),
            data_dir: dir.join(id.to_string()),
            replicas: 3,
            segment_bytes: 4 << 20,
            ..NodeConfig::default()
        };
        change(&mut config);
        Node::builder(config).hub(hub.clone()).open().unwrap()
    };
    (1..=4).map(open).collect()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(600), "waited for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn snapshots(node: &Node) -> SnapshotStats {
    node.stats().snapshots
}

/// A key of the region that begins there.
fn key(region: &Region) -> Vec<u8> {
    [&region.range.start[..], b"!key"].concat()
}

fn all_regions(node: &Node) -> Vec<Region> {
    let client = node.client().blocking();
    let mut regions: Vec<Region> = client.regions("", 256).unwrap();
    while let Some(end) =
        regions.last().map(|last| last.range.end.clone()).filter(|e| !e.is_empty())
    {
        regions.extend(client.regions(end, 256).unwrap());
    }
    regions
}

fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("4/snap")).unwrap().count()
}

#[test]
fn a_thousand_regions_go_to_a_new_store_in_turn() {
    // Fewer show less; a debug build under load takes its time.
    const REGIONS: u64 = 1_000;
    let (dir, hub) = (tempfile::tempdir().unwrap(), Hub::new());
    let nodes = cluster(dir.path(), &hub, |config| {
        config.regions = 1;
        config.request_timeout_ms = 120_000;
        // Four thousand groups that are awake: at the usual tick they are all that a debug build gets done.
        config.tick_ms = 150;
        // Each restore on disk is a flush of its own: what is shown here is who waits for whom, not the disk.
        config.state = StateKind::Memory;
    });
    let client = nodes[0].client().blocking();
    client.put("a", "b").unwrap();
    client.split((1..REGIONS).map(|i| format!("{i:04}"))).unwrap();
    let mut layout = Vec::new();
    eventually("all regions", || {
        layout = all_regions(&nodes[0]);
        layout.len() as u64 == REGIONS
    });
    for region in &layout {
        client.put(key(region), region.id.0.to_string()).unwrap();
    }
    assert!(nodes[3].status().unwrap().is_empty());

    let stop = AtomicBool::new(false);
    let (writes, worst) = (AtomicU64::new(0), AtomicU64::new(0));
    let took = std::thread::scope(|scope| {
        // Whoever writes meanwhile is served.
        scope.spawn(|| {
            let client = nodes[1].client().blocking();
            for region in layout.iter().cycle() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let begun = Instant::now();
                match client.put([&key(region)[..], b"+"].concat(), "meanwhile") {
                    // A leader may change while a debug build does all this on one core.
                    Ok(()) | Err(Error::Ambiguous { .. }) => {}
                    Err(error) => panic!("a write beside snapshots: {error}"),
                }
                worst.fetch_max(begun.elapsed().as_millis() as u64, Ordering::Relaxed);
                writes.fetch_add(1, Ordering::Relaxed);
            }
        });
        // Nobody holds more than its places.
        scope.spawn(|| {
            let config = NodeConfig::default();
            while !stop.load(Ordering::Relaxed) {
                for node in &nodes {
                    let now = snapshots(node);
                    assert!(now.sending <= config.snapshots as u64, "{now:?}");
                    assert!(now.receiving <= config.snapshot_slots as u64, "{now:?}");
                    assert!(now.waiting <= REGIONS, "{now:?}");
                }
                let files = files(dir.path());
                assert!(files <= 2 * config.snapshot_slots, "{files} files");
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let begun = Instant::now();
        let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        let tasks: Vec<_> = layout
            .iter()
            .map(|region| {
                let (client, id) = (nodes[(region.id.0 % 3) as usize].client(), region.id);
                rt.spawn(async move { client.add_learner(id, NEW).await.map(|_| ()) })
            })
            .collect();
        for task in tasks {
            rt.block_on(task).unwrap().unwrap();
        }
        let asked = begun.elapsed();
        eventually("a thousand replicas on the new store", || {
            nodes[3].status().unwrap().len() as u64 == REGIONS
        });
        println!("{REGIONS} learners added in {asked:?}, all there after {:?}", begun.elapsed());
        stop.store(true, Ordering::Relaxed);
        begun.elapsed()
    });
    let all: Vec<SnapshotStats> = nodes.iter().map(snapshots).collect();
    let sum = |of: fn(&SnapshotStats) -> u64| all.iter().map(of).sum::<u64>();
    println!(
        "{:.0} snapshots/s; {} sent, {} refused, {} failed, {} called off, {} bytes; {} writes beside it, the slowest \
         {} ms",
        REGIONS as f64 / took.as_secs_f64(),
        sum(|s| s.sent),
        sum(|s| s.refused),
        sum(|s| s.failed),
        sum(|s| s.cancelled),
        sum(|s| s.sent_bytes),
        writes.load(Ordering::Relaxed),
        worst.load(Ordering::Relaxed),
    );
    assert!(sum(|s| s.sent) >= REGIONS && all[3].received >= REGIONS);
    assert!(writes.load(Ordering::Relaxed) > 0);
    // The data is there, and nothing is left of the transfers.
    let here = nodes[3].client().blocking();
    let stale = ReadLevel::Stale { max: Duration::from_secs(3600) };
    for region in &layout {
        eventually(
            "a fresh replica",
            || matches!(here.get_at(key(region), stale), Ok(Some(value)) if value == region.id.0.to_string()),
        );
    }
    eventually("the end of all transfers", || {
        files(dir.path()) == 0
            && nodes.iter().all(|node| {
                let now = snapshots(node);
                now.sending + now.receiving + now.kept == 0
            })
    });
}

#[test]
fn a_transfer_goes_on_when_its_link_is_mended_and_the_follower_is_in_step_at_once() {
    let (dir, hub) = (tempfile::tempdir().unwrap(), Hub::new());
    let nodes = cluster(dir.path(), &hub, |config| {
        config.regions = 1;
        config.snapshot_bytes_per_s = 4 << 20;
        config.snapshot_patience_ms = 120_000;
    });
    let client = nodes[0].client().blocking();
    let value = vec![5u8; 512 << 10];
    for i in 0..24u32 {
        client.put(format!("k{i:02}"), &value).unwrap();
    }
    client.add_learner(RegionId(1), NEW).unwrap();
    for round in 0..2u64 {
        let sent = || nodes.iter().map(|node| snapshots(node).sent_bytes).sum::<u64>();
        let before = sent();
        eventually("some of the data", || sent() > before + (1 << 20));
        (1..=3).for_each(|id| hub.partition(StoreId(id), NEW));
        eventually("the break", || snapshots(&nodes[3]).kept == 1);
        assert_eq!(files(dir.path()), 1, "round {round}: what has come is kept");
        hub.heal_all();
    }
    eventually("the replica", || nodes[3].status().unwrap().len() == 1);
    let resumed: u64 = nodes.iter().map(|node| snapshots(node).resumed).sum();
    let sent: u64 = nodes.iter().map(|node| snapshots(node).sent_bytes).sum();
    println!("resumed {resumed} times, {sent} bytes sent for {} of data", 24 * value.len());
    assert!(resumed >= 2);
    // What was under way at a break is sent again, and no more.
    assert!(sent < (24 + 8) * value.len() as u64, "{sent}");
    // Nobody writes: a split asks whether every replica takes entries as they come.
    eventually("a split right after the snapshot", || client.split(["k12"]).is_ok());
    client.promote(RegionId(1), NEW).unwrap();
    let here = nodes[3].client().blocking();
    let stale = ReadLevel::Stale { max: Duration::from_secs(3600) };
    for i in 0..24u32 {
        let read = || here.get_at(format!("k{i:02}"), stale);
        eventually("a fresh replica", || matches!(read(), Ok(Some(found)) if found == value));
    }
    eventually("no file", || files(dir.path()) == 0);
}

#[test]
fn a_removed_receiver_ends_its_transfer_and_leaves_no_file() {
    let (dir, hub) = (tempfile::tempdir().unwrap(), Hub::new());
    let nodes = cluster(dir.path(), &hub, |config| {
        config.regions = 1;
        config.snapshot_bytes_per_s = 1 << 20;
    });
    let client = nodes[0].client().blocking();
    let value = vec![5u8; 1 << 20];
    // Some two minutes' worth.
    for i in 0..120u32 {
        client.put(format!("k{i:03}"), &value).unwrap();
    }
    client.add_learner(RegionId(1), NEW).unwrap();
    eventually("some of the data", || snapshots(&nodes[3]).received_bytes > 1 << 20);
    client.remove_peer(RegionId(1), NEW).unwrap();
    eventually("the end of it", || {
        let leads = nodes.iter().map(|node| snapshots(node).cancelled).sum::<u64>() == 1;
        let now = snapshots(&nodes[3]);
        leads && now.receiving + now.kept == 0 && files(dir.path()) == 0
    });
    assert_eq!(snapshots(&nodes[3]).received, 0);
    assert!(nodes[3].status().unwrap().is_empty());
}
