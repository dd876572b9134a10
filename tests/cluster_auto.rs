//! Regions that are merged, and cut for their load, by themselves: nodes in one process, nobody asks for anything.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use bytes::Bytes;
use catamaran::client::Blocking;
use catamaran::kv::Direction;
use catamaran::store::ReadLevel;
use catamaran::transport::Hub;
use catamaran::types::{KeyRange, Region};
use catamaran::{Node, NodeConfig};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a region must be small and cold.
const PATIENCE: Duration = Duration::from_millis(1500);

fn open(dir: &Path, id: u64, hub: &Hub, settings: fn(&mut NodeConfig)) -> Node {
    let cluster = (1..=3).map(|id| (id, format!("node-{id}:1"))).collect();
    let mut config = NodeConfig {
        store_id: id,
        cluster,
        data_dir: dir.join(id.to_string()),
        regions: 1,
        segment_bytes: 4 << 20,
        region_split_load: 0,
        region_merge_after_ms: PATIENCE.as_millis() as u64,
        ..NodeConfig::default()
    };
    settings(&mut config);
    Node::builder(config).hub(hub.clone()).open().unwrap()
}

fn key(i: u64) -> Vec<u8> {
    format!("k{i:08}").into_bytes()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(180), "waited for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The same of all nodes, with what they know of their replicas if it does not come about.
fn eventually_all(nodes: &[Node], what: &str, holds: impl Fn(&Node) -> bool) {
    let start = Instant::now();
    while !nodes.iter().all(&holds) {
        if start.elapsed() >= Duration::from_secs(180) {
            let status = |node: &Node| node.status().unwrap();
            panic!("waited for {what}: {:#?}", nodes.iter().map(status).collect::<Vec<_>>());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Ends the workers, also of a test that fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The regions that a node's replicas belong to, by range.
fn regions_of(node: &Node) -> Vec<Region> {
    let status = node.status().unwrap();
    let mut regions: Vec<Region> = status.into_iter().map(|status| status.region).collect();
    regions.sort_by(|a, b| a.range.start.cmp(&b.range.start));
    regions
}

fn covers(regions: &[Region]) -> bool {
    let joined = regions.windows(2).all(|pair| pair[0].range.end == pair[1].range.start);
    joined
        && regions.first().is_some_and(|first| first.range.start.is_empty())
        && regions.last().is_some_and(|last| last.range.end.is_empty())
}

/// Where the regions begin.
fn bounds(node: &Node) -> BTreeSet<Vec<u8>> {
    regions_of(node).iter().map(|region| region.range.start.to_vec()).collect()
}

/// Writes and reads back with pauses until told to stop; gives the last value of each key.
fn work(client: &Blocking, keys: std::ops::Range<u64>, stop: &AtomicBool) -> BTreeMap<u64, String> {
    let mut last = BTreeMap::new();
    for (n, i) in keys.cycle().enumerate() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let value = format!("{n}");
        client.put(key(i), value.clone()).expect("a write while regions are merged");
        let read =
            client.get_at(key(i), ReadLevel::Lease).expect("a read while regions are merged");
        assert_eq!(read.as_deref(), Some(value.as_bytes()), "key {i}");
        last.insert(i, value);
        // So few that every region is cold.
        std::thread::sleep(Duration::from_millis(250));
    }
    last
}

fn check(nodes: &[Node], expected: &BTreeMap<u64, String>) {
    for node in nodes {
        assert_eq!(node.health().map(|error| error.to_string()), None);
        let client = node.client().blocking();
        let rows = client.scan(KeyRange::all(), Direction::Forward, ReadLevel::Linearizable);
        let rows: Vec<_> = rows.map(Result::unwrap).collect();
        let expected = expected.iter().map(|(i, value)| (key(*i), value.as_bytes()));
        assert!(rows.iter().map(|(key, value)| (key.to_vec(), &value[..])).eq(expected));
    }
}

/// Many small regions become one under a light load, those that nobody ever wrote to stay; then they grow and are cut,
/// and what was cut is not merged.
#[test]
fn small_regions_are_merged_and_grow_again() {
    const REGIONS: u64 = 24;
    const KEYS: u64 = REGIONS * 10;
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new();
    let settings = |config: &mut NodeConfig| {
        config.region_split_bytes = 256 << 10;
        config.region_merge_percent = 20;
    };
    let nodes: Vec<Node> = (1..=3).map(|id| open(dir.path(), id, &hub, settings)).collect();
    let client = nodes[0].client().blocking();
    let laid_out = [b"x".to_vec(), b"y".to_vec()];
    let cuts = (1..REGIONS).map(|i| key(i * 10)).chain(laid_out.iter().cloned());
    client.split(cuts.collect::<Vec<_>>()).unwrap();
    let mut expected = BTreeMap::new();
    for i in 0..KEYS {
        client.put(key(i), "first").unwrap();
        expected.insert(i, "first".to_owned());
    }
    eventually("all of them", || regions_of(&nodes[0]).len() as u64 >= REGIONS + 2);
    let stop = AtomicBool::new(false);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let _end = End(&stop);
        let (client, stop) = (nodes[1].client().blocking(), &stop);
        let worker = scope.spawn(move || work(&client, 0..KEYS, stop));
        for node in &nodes {
            eventually("one region, and those that wait for their data", || {
                let regions = regions_of(node);
                regions.len() == 3 && covers(&regions)
            });
        }
        stop.store(true, Ordering::Relaxed);
        expected.extend(worker.join().unwrap());
    });
    println!("{REGIONS} regions merged into one in {:?}", begun.elapsed());
    check(&nodes, &expected);
    let few: BTreeSet<Vec<u8>> = [Vec::new()].into_iter().chain(laid_out).collect();
    for node in &nodes {
        assert_eq!(bounds(node), few);
    }
    // They grow, and are cut.
    for i in 0..KEYS {
        let value = format!("{i:04}").repeat(1 << 10);
        client.put(key(i), value.clone()).unwrap();
        expected.insert(i, value);
    }
    eventually_all(&nodes, "four more regions", |node| {
        regions_of(node).len() >= 7 && covers(&regions_of(node))
    });
    let grown = bounds(&nodes[0]);
    std::thread::sleep(PATIENCE * 3);
    assert!(bounds(&nodes[0]).is_superset(&grown), "what was cut is not merged");
    check(&nodes, &expected);
    // Most of it is deleted: one region is enough again.
    for i in 0..KEYS {
        client.delete(key(i)).unwrap();
    }
    expected.clear();
    for node in &nodes {
        eventually("one region again", || regions_of(node).len() == 3 && covers(&regions_of(node)));
        assert_eq!(bounds(node), few);
    }
    check(&nodes, &expected);
}

/// Neighbours of which each lives on three of four stores: the data of one are moved first.
#[test]
fn neighbours_that_live_apart_are_brought_together() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new();
    let settings = |config: &mut NodeConfig| {
        config.cluster = (1..=4).map(|id| (id, format!("node-{id}:1"))).collect();
        (config.regions, config.replicas) = (4, 3);
    };
    let nodes: Vec<Node> = (1..=4).map(|id| open(dir.path(), id, &hub, settings)).collect();
    let client = nodes[0].client().blocking();
    // The first layout cuts by the first bytes.
    let key = |i: u64| (i << 56).to_be_bytes().to_vec();
    for i in 0..256 {
        client.put(key(i), i.to_string()).unwrap();
    }
    let before = client.regions("", usize::MAX).unwrap();
    let apart = |pair: &[Region]| {
        let stores = |region: &Region| -> BTreeSet<_> {
            region.peers.iter().map(|peer| peer.store).collect()
        };
        stores(&pair[0]) != stores(&pair[1])
    };
    assert!(before.len() == 4 && before.windows(2).any(apart), "{before:?}");
    eventually("one region with three replicas", || {
        let held: Vec<Region> = nodes.iter().flat_map(regions_of).collect();
        held.len() == 3
            && held.iter().all(|region| region.peers.len() == 3 && region.range == KeyRange::all())
    });
    for node in &nodes {
        assert_eq!(node.health().map(|error| error.to_string()), None);
        let client = node.client().blocking();
        for i in 0..256 {
            assert_eq!(client.get(key(i)).unwrap().as_deref(), Some(i.to_string().as_bytes()));
        }
    }
}

/// A small region that takes many writes is cut, serves on in its parts, and is one again when the load has gone.
#[test]
fn a_hot_region_is_cut_while_it_is_hot() {
    const KEYS: u64 = 1000;
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new();
    let settings = |config: &mut NodeConfig| {
        config.region_split_load = 60;
        config.region_split_load_ms = 2_000;
    };
    let nodes: Vec<Node> = (1..=3).map(|id| open(dir.path(), id, &hub, settings)).collect();
    let stop = AtomicBool::new(false);
    let mut expected = BTreeMap::new();
    std::thread::scope(|scope| {
        let _end = End(&stop);
        let workers: Vec<_> = (0..8u64)
            .map(|at| {
                let client = nodes[at as usize % 3].client().blocking();
                let stop = &stop;
                scope.spawn(move || {
                    let mut last = BTreeMap::new();
                    for n in 0u64.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        // Scattered over the keys of this worker.
                        let i = n * 7919 % (KEYS / 8) * 8 + at;
                        client.put(key(i), n.to_string()).expect("a write while regions are cut");
                        last.insert(i, n.to_string());
                    }
                    last
                })
            })
            .collect();
        eventually("a region that is cut for its load", || regions_of(&nodes[0]).len() >= 2);
        let cut = bounds(&nodes[0]);
        assert!(cut.iter().all(|bound| bound.is_empty() || bound.starts_with(b"k")), "{cut:?}");
        // Both sides are written to and led.
        for node in &nodes {
            eventually("the same on every node", || bounds(node).is_superset(&cut));
            let client = node.client().blocking();
            for i in [0, KEYS - 1] {
                client.get(key(i)).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            expected.extend(worker.join().unwrap());
        }
    });
    check(&nodes, &expected);
    for node in &nodes {
        eventually("one region", || regions_of(node).len() == 1 && covers(&regions_of(node)));
    }
    check(&nodes, &expected);
}

/// No part of what is held is larger than regions may be.
fn parts_are_small(node: &Node, split_bytes: u64) -> bool {
    let client = node.client().blocking();
    let small = |region: &Region| {
        let rows = client.scan(region.range.clone(), Direction::Forward, ReadLevel::Linearizable);
        let bytes = |row: catamaran::Result<(_, _)>| {
            row.map(|(key, value): (Bytes, Bytes)| key.len() + value.len())
        };
        rows.map(bytes)
            .sum::<catamaran::Result<usize>>()
            .is_ok_and(|bytes| bytes as u64 <= split_bytes)
    };
    regions_of(node).iter().all(small)
}

/// A region gets, by a single batch, far more than one cut can take off it, and nobody ever writes again: it is cut until all of its
/// parts are small. (What a cut left was of unknown size, and was measured only once it was written to.) Then it is
/// opened with a smaller limit, and every part is cut again, without a write.
#[test]
fn what_nobody_writes_to_is_cut_until_it_is_small() {
    const SPLIT: u64 = 16 << 10;
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new();
    let large: fn(&mut NodeConfig) = |config| {
        config.region_split_bytes = SPLIT;
        config.region_merge_percent = 0;
    };
    let smaller: fn(&mut NodeConfig) = |config| {
        config.region_split_bytes = SPLIT / 2;
        config.region_merge_percent = 0;
    };
    let nodes: Vec<Node> = (1..=3).map(|id| open(dir.path(), id, &hub, large)).collect();
    let client = nodes[0].client().blocking();
    let mut batch = catamaran::Batch::new();
    let mut expected = BTreeMap::new();
    for i in 0..1000 {
        let value = format!("{i:04}").repeat(256);
        batch.put(&key(i), value.as_bytes()).unwrap();
        expected.insert(i, value);
    }
    client.write(batch).unwrap();
    let cut = |nodes: &[Node], to: u64| {
        let begun = Instant::now();
        eventually_all(nodes, "small parts", |node| {
            covers(&regions_of(node)) && parts_are_small(node, to)
        });
        println!("{} regions after {:?}", regions_of(&nodes[0]).len(), begun.elapsed());
        check(nodes, &expected);
    };
    cut(&nodes, SPLIT);
    drop(nodes);
    let nodes: Vec<Node> = (1..=3).map(|id| open(dir.path(), id, &hub, smaller)).collect();
    cut(&nodes, SPLIT / 2);
}
