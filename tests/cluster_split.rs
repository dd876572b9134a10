//! Three nodes in one process whose regions are cut up while clients write and read.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod cluster;

use catamaran::kv::Direction;
use catamaran::store::ReadLevel;
use catamaran::transport::Hub;
use catamaran::types::KeyRange;
use catamaran::{Node, NodeConfig};
use cluster::{Work, covers, eventually, finds, key, open_of_three, regions_of, work};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The 99th percentile of the writes begun in a stretch of time; for people, the median as well.
fn percentile(what: &str, work: &[Work], from: Instant, to: Instant) -> Duration {
    let within = |(begun, _): &&(Instant, Duration)| (from..to).contains(begun);
    let mut took: Vec<Duration> =
        work.iter().flat_map(|w| &w.took).filter(within).map(|(_, took)| *took).collect();
    took.sort_unstable();
    let at = |percent: usize| took.get(took.len() * percent / 100).copied().unwrap_or_default();
    println!("{what}: {} writes, p50 {:?}, p99 {:?}", took.len(), at(50), at(99));
    at(99)
}

/// Many splits in a row, each of a random region at a key of its own, under load: nobody's operation fails, no
/// snapshot is sent, every node ends with the same regions, a restarted one too. Latencies are printed, and judged where the
/// number of splits is asked for: `CATAMARAN_SPLITS=1000 cargo test --release --test cluster_split hundred -- --nocapture`.
#[test]
fn a_hundred_splits_under_load() {
    let asked = std::env::var("CATAMARAN_SPLITS").ok();
    let splits: u64 = asked.as_ref().map_or(100, |text| text.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new();
    let mut nodes: Vec<Node> = (1..=3).map(|id| open_of_three(dir.path(), id, &hub)).collect();
    let operator = nodes[0].client().blocking();
    operator.put("first", "1").unwrap();
    let stop = AtomicBool::new(false);
    let begun = Instant::now();
    let mut splitting = begun;
    let done: Vec<Work> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3u64)
            .map(|at| {
                let client = nodes[at as usize].client().blocking();
                let stop = &stop;
                let keys = at * splits / 3..(at + 1) * splits / 3;
                scope.spawn(move || {
                    work(&client, keys, stop, |client, key, value| {
                        client.put(key, value).expect("a write while regions are cut");
                    })
                })
            })
            .collect();
        // A while without splits, to compare with.
        std::thread::sleep(Duration::from_millis(20 * splits.min(100)));
        splitting = Instant::now();
        for i in 0..splits {
            // Spread over the key space, so that small and large regions are cut alike.
            let at = i * 7919 % splits;
            let cut = operator.split([key(at)]).unwrap();
            assert_eq!(cut.len(), 2, "split {i} at {at}");
        }
        stop.store(true, Ordering::Relaxed);
        let took = splitting.elapsed();
        println!("{splits} splits in {took:?}");
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
    let before = percentile("before", &done, begun, splitting);
    let meanwhile = percentile("meanwhile", &done, splitting, Instant::now());
    if asked.is_some() {
        assert!(meanwhile < before * 10, "p99 {meanwhile:?}, without splits {before:?}");
    }
    // A restart replays the splits, or finds them flushed.
    nodes[1].kill();
    nodes[1] = open_of_three(dir.path(), 2, &hub);
    for node in &nodes {
        let client = node.client().blocking();
        finds(&client, key, done.iter().flat_map(|work| &work.last));
        let rows = client.scan(KeyRange::all(), Direction::Forward, ReadLevel::Linearizable);
        let keys: Vec<_> = rows.map(|row| row.unwrap().0).collect();
        assert_eq!(keys.len(), 1 + done.iter().map(|work| work.last.len()).sum::<usize>());
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

/// The directory had the size of what a region had been written to, and of what had only been cut off none, or a few bytes, until the
/// next write.
#[test]
fn the_size_of_what_was_cut_off_is_known_though_nobody_writes_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(NodeConfig::single(dir.path().join("node"))).unwrap();
    let client = node.client().blocking();
    for name in ["a", "b", "n", "o"] {
        client.put(name, vec![7; 1 << 20]).unwrap();
    }
    client.split(["m"]).unwrap();
    eventually("the sizes of both", || {
        let parts = client.locate("", usize::MAX).unwrap();
        parts.len() == 2 && parts.iter().all(|part| part.bytes >= 2 << 20)
    });
    node.shutdown().unwrap();
}
