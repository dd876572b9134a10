//! What tests of whole clusters share: opening nodes on a hub, waiting, writers that check what they read back, and
//! looking at what every node has in the end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![allow(dead_code, reason = "each test uses a part of it")]

use catamaran::client::Blocking;
use catamaran::store::ReadLevel;
use catamaran::transport::Hub;
use catamaran::types::Region;
use catamaran::{Error, Node, NodeConfig};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Store `id` of three that begin with one region.
pub fn open_of_three(dir: &Path, id: u64, hub: &Hub) -> Node {
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

/// Keys in the order of their numbers.
pub fn key(i: u64) -> Vec<u8> {
    format!("k{i:08}").into_bytes()
}

/// Keys spread over the key space, which the first layout cuts by its first bytes.
pub fn spread_key(i: u64) -> Vec<u8> {
    let mut key = (i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_be_bytes().to_vec();
    key.extend_from_slice(format!("k{i:04}").as_bytes());
    key
}

/// Waits until something holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(120), "waited for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The regions that a node's replicas belong to, by range.
pub fn regions_of(node: &Node) -> Vec<Region> {
    let mut regions: Vec<Region> =
        node.status().unwrap().into_iter().map(|status| status.region).collect();
    regions.sort_by(|a, b| a.range.start.cmp(&b.range.start));
    regions
}

/// Whether regions, by range, cover the key space.
pub fn covers(regions: &[Region]) -> bool {
    let joined = regions.windows(2).all(|pair| pair[0].range.end == pair[1].range.start);
    joined
        && regions.first().is_some_and(|first| first.range.start.is_empty())
        && regions.last().is_some_and(|last| last.range.end.is_empty())
}

/// What one writer did.
#[derive(Default)]
pub struct Work {
    /// The last value of each key.
    pub last: BTreeMap<u64, u64>,
    /// When each write began and how long it took.
    pub took: Vec<(Instant, Duration)>,
}

/// Writes `key(i) = n` for growing n, by `put`, until told to stop; reads back what it wrote.
pub fn work(
    client: &Blocking,
    keys: std::ops::Range<u64>,
    stop: &AtomicBool,
    put: impl Fn(&Blocking, Vec<u8>, String),
) -> Work {
    let mut done = Work::default();
    for (n, i) in keys.cycle().enumerate() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let begun = Instant::now();
        put(client, key(i), n.to_string());
        done.took.push((begun, begun.elapsed()));
        let read = client.get_at(key(i), ReadLevel::Lease).expect("a read under load");
        assert_eq!(read.as_deref(), Some(n.to_string().as_bytes()), "key {i}");
        done.last.insert(i, n as u64);
    }
    done
}

/// The same over and over with spread keys, whole rounds at a time; gives the last value of each key. A leader that goes
/// may not be able to say what became of a write: then it is written again.
pub fn work_in_rounds(
    client: &Blocking,
    keys: std::ops::Range<u64>,
    stop: &AtomicBool,
) -> BTreeMap<u64, u64> {
    let mut last = BTreeMap::new();
    let mut done = 0u64;
    while !stop.load(Ordering::Relaxed) {
        for i in keys.clone() {
            done += 1;
            loop {
                match client.put(spread_key(i), done.to_string()) {
                    Ok(()) => break,
                    Err(Error::Ambiguous { .. }) => {}
                    Err(error) => panic!("a write under load: {error}"),
                }
            }
            let read = client.get_at(spread_key(i), ReadLevel::Lease).expect("a read under load");
            assert_eq!(read.as_deref(), Some(done.to_string().as_bytes()), "key {i}");
            last.insert(i, done);
        }
    }
    last
}

/// A node finds every key with its last value.
pub fn finds<'a>(
    client: &Blocking,
    key: impl Fn(u64) -> Vec<u8>,
    last: impl Iterator<Item = (&'a u64, &'a u64)>,
) {
    for (i, value) in last {
        let read = client.get(key(*i)).unwrap();
        assert_eq!(read.as_deref(), Some(value.to_string().as_bytes()), "key {i}");
    }
}
