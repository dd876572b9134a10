//! Three nodes in one process whose regions are cut up while clients write and read.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use catamaran::client::Blocking;
use catamaran::kv::Direction;
use catamaran::store::ReadLevel;
use catamaran::transport::Hub;
use catamaran::types::{KeyRange, Region};
use catamaran::{Node, NodeConfig};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

fn open(dir: &Path, id: u64, hub: &Hub) -> Node {
    let cluster = (1..=3).map(|id| (id, format!("node-{id}:1"))).collect();
    let config = NodeConfig {
        store_id: id,
        cluster,
        data_dir: dir.join(id.to_string()),
        regions: 1,
        segment_bytes: 4 << 20,
        ..NodeConfig::default()
    };
    Node::builder(config).hub(hub.clone()).open().unwrap()
}

fn key(i: u64) -> Vec<u8> {
    format!("k{i:08}").into_bytes()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(120), "waited for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The regions that a node's replicas belong to, by range; they must cover the key space.
fn regions_of(node: &Node) -> Vec<Region> {
    let mut regions: Vec<Region> =
        node.status().unwrap().into_iter().map(|status| status.region).collect();
    regions.sort_by(|a, b| a.range.start.cmp(&b.range.start));
    regions
}

fn covers(regions: &[Region]) -> bool {
    let joined = regions.windows(2).all(|pair| pair[0].range.end == pair[1].range.start);
    joined
        && regions.first().is_some_and(|first| first.range.start.is_empty())
        && regions.last().is_some_and(|last| last.range.end.is_empty())
}

/// Writes `key(i) = n` for growing n until told to stop, checking what it reads back; gives the last of each.
fn work(
    client: &Blocking,
    keys: std::ops::Range<u64>,
    stop: &AtomicBool,
) -> (BTreeMap<u64, u64>, u64) {
    let mut last = BTreeMap::new();
    let mut done = 0;
    while !stop.load(Ordering::Relaxed) {
        for i in keys.clone() {
            done += 1;
            client.put(key(i), done.to_string()).expect("a write while regions are cut");
            let read =
                client.get_at(key(i), ReadLevel::Lease).expect("a read while regions are cut");
            assert_eq!(read.as_deref(), Some(done.to_string().as_bytes()), "key {i}");
            last.insert(i, done);
            if stop.load(Ordering::Relaxed) {
                break;
            }
        }
    }
    (last, done)
}

/// Many splits in a row, each of a random region at a key of its own, under load: nobody's operation fails, no
/// snapshot is sent, every node ends with the same regions, a restarted one too.
#[test]
fn a_hundred_splits_under_load() {
    let splits: u64 = std::env::var("CATAMARAN_SPLITS").map_or(100, |text| text.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new();
    let mut nodes: Vec<Node> = (1..=3).map(|id| open(dir.path(), id, &hub)).collect();
    let operator = nodes[0].client().blocking();
    operator.put("first", "1").unwrap();
    let stop = AtomicBool::new(false);
    let written = AtomicU64::new(0);
    let last: Vec<BTreeMap<u64, u64>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3u64)
            .map(|at| {
                let client = nodes[at as usize].client().blocking();
                let (stop, written) = (&stop, &written);
                scope.spawn(move || {
                    let keys = at * splits / 3..(at + 1) * splits / 3;
                    let (last, done) = work(&client, keys, stop);
                    written.fetch_add(done, Ordering::Relaxed);
                    last
                })
            })
            .collect();
        for i in 0..splits {
            // Spread over the key space, so that small and large regions are cut alike.
            let at = i * 7919 % splits;
            let cut = operator.split([key(at)]).unwrap();
            assert_eq!(cut.len(), 2, "split {i} at {at}");
        }
        stop.store(true, Ordering::Relaxed);
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    for node in &nodes {
        eventually("all regions on every node", || {
            let regions = regions_of(node);
            regions.len() as u64 == splits + 1 && covers(&regions)
        });
        assert_eq!(node.stats().transport.snapshots_sent, 0);
        assert_eq!(node.health().map(|error| error.to_string()), None);
    }
    assert!(written.load(Ordering::Relaxed) > 0);
    // A restart replays the splits, or finds them flushed.
    nodes[1].kill();
    nodes[1] = open(dir.path(), 2, &hub);
    for node in &nodes {
        let client = node.client().blocking();
        for (i, value) in last.iter().flatten() {
            let read = client.get(key(*i)).unwrap();
            assert_eq!(read.as_deref(), Some(value.to_string().as_bytes()), "key {i}");
        }
        let rows = client.scan(KeyRange::all(), Direction::Forward, ReadLevel::Linearizable);
        let keys: Vec<_> = rows.map(|row| row.unwrap().0).collect();
        assert_eq!(keys.len(), 1 + last.iter().map(BTreeMap::len).sum::<usize>());
        assert!(keys.is_sorted());
    }
    eventually("the restarted node's regions", || {
        let regions = regions_of(&nodes[1]);
        regions.len() as u64 == splits + 1 && covers(&regions)
    });
}

#[test]
fn many_keys_are_cut_at_once_and_nonsense_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(NodeConfig::single(dir.path().join("data"))).unwrap();
    let client = node.client().blocking();
    let keys: Vec<_> = (0..50).map(key).collect();
    let cut = client.split(keys.clone()).unwrap();
    assert!(cut.len() > 50, "{}", cut.len());
    eventually("all children", || covers(&regions_of(&node)));
    assert_eq!(client.split(keys).unwrap(), [], "they are cut already");
    assert_eq!(client.split([""]).unwrap(), [], "the first key begins a region");
    let region = client.region_of(key(7)).unwrap();
    assert_eq!(region.range, KeyRange::new(key(7), key(8)));
    assert!(client.split([vec![b'x'; 40 << 10]]).is_err(), "a key too long");
    let first = catamaran::client::wait(node.client().allocate_ids(10)).unwrap();
    let next = catamaran::client::wait(node.client().allocate_ids(1)).unwrap();
    assert_eq!(next, first + 10);
    assert!(catamaran::client::wait(node.client().allocate_ids(0)).is_err());
    client.put(key(7), "x").unwrap();
    node.shutdown().unwrap();
    drop(client);
    let node = Node::open(NodeConfig::single(dir.path().join("data"))).unwrap();
    eventually("all children", || covers(&regions_of(&node)));
    assert_eq!(node.client().blocking().get(key(7)).unwrap().unwrap(), "x");
}

/// Whoever writes a lot gets more regions without asking, also over a restart.
#[test]
fn a_region_that_grows_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        NodeConfig { region_split_bytes: 128 << 10, ..NodeConfig::single(dir.path().join("data")) };
    let node = Node::open(config.clone()).unwrap();
    let client = node.client().blocking();
    for i in 0..1000 {
        client.put(key(i), vec![b'v'; 1 << 10]).unwrap();
    }
    eventually("at least eight regions", || regions_of(&node).len() >= 8);
    eventually("all of them", || covers(&regions_of(&node)));
    node.shutdown().unwrap();
    drop(client);
    let node = Node::open(config).unwrap();
    assert!(regions_of(&node).len() >= 8);
    let client = node.client().blocking();
    let rows = client.scan(KeyRange::all(), Direction::Forward, ReadLevel::Linearizable);
    assert_eq!(rows.map(Result::unwrap).count(), 1000);
}
