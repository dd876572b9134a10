//! A real node on a repaired log: the replicas that lost something are fenced, whatever the state store
//! remembers of them, and stay so; the others serve. If nobody knows who lost something, no node starts.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod fixture;

use catamaran::store::ReadLevel;
use catamaran::types::RegionId;
use catamaran::{Error, Node, NodeConfig};
use fixture::{dump, segments};
use std::path::Path;
use std::time::{Duration, Instant};

fn config(data: &Path) -> NodeConfig {
    NodeConfig {
        data_dir: data.to_owned(),
        regions: 2,
        tick_ms: 10,
        segment_bytes: 64 << 10,
        ..NodeConfig::default()
    }
}

/// A key in one of the two regions.
fn key(region: u64, i: u64) -> Vec<u8> {
    [&[(region - 1) as u8 * 128 + 1][..], format!("key {i}").as_bytes()].concat()
}

/// Opens a node and waits until every replica leads or is fenced.
fn start(data: &Path) -> Node {
    let node = Node::open(config(data)).unwrap();
    let since = Instant::now();
    let settled = |node: &Node| {
        node.status().unwrap().iter().all(|region| region.leads || region.quarantined.is_some())
    };
    while !settled(&node) {
        assert!(since.elapsed() < Duration::from_secs(120), "no leaders");
        std::thread::sleep(Duration::from_millis(10));
    }
    node
}

/// A node that was written to, flushed (so its state store remembers), written to again and killed.
fn lived(data: &Path) {
    let node = start(data);
    let client = node.client().with_timeout(Duration::from_secs(60)).blocking();
    for i in 0..30 {
        for region in 1..=2 {
            let value = format!("<{region}/{i}>");
            client.put(key(region, i), value.as_bytes()).unwrap();
        }
        if i == 10 {
            node.flush().unwrap();
        }
    }
    node.kill();
}

fn repair(data: &Path, more: &[&str]) {
    let (log, new) = (data.join("log"), data.with_extension("repaired"));
    let args = ["repair", data.to_str().unwrap(), "--out", new.to_str().unwrap()];
    let run = dump(&[&args, more].concat());
    assert_eq!((run.code, run.err.as_str()), (4, ""), "{}", run.out);
    std::fs::rename(&log, data.with_extension("old")).unwrap();
    std::fs::rename(&new, &log).unwrap();
}

/// Changes a byte at `offset` from the last place where the log holds these bytes.
fn spoil(data: &Path, needle: &[u8], offset: impl Fn(usize) -> usize) {
    for path in segments(data).iter().rev() {
        let mut bytes = std::fs::read(path).unwrap();
        if let Some(at) = bytes.windows(needle.len()).rposition(|window| window == needle) {
            bytes[offset(at)] ^= 1;
            return std::fs::write(path, &bytes).unwrap();
        }
    }
    panic!("not in the log");
}

#[test]
fn a_replica_that_lost_something_does_not_come_back_as_if_it_were_whole() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("data");
    lived(&data);
    spoil(&data, b"<2/20>", |at| at);
    repair(&data, &[]);
    for _ in 0..3 {
        let node = start(&data);
        let client = node.client().with_timeout(Duration::from_secs(60)).blocking();
        for region in node.status().unwrap() {
            let damaged = region.region.id == RegionId(2);
            assert_eq!(region.quarantined.is_some(), damaged, "{region:?}");
            assert!(!(damaged && region.leads), "{region:?}");
        }
        for i in 0..30 {
            let found = client.get_at(key(1, i), ReadLevel::Linearizable).unwrap();
            assert_eq!(found.as_deref(), Some(format!("<1/{i}>").as_bytes()));
        }
        let fenced = node.client().with_timeout(Duration::from_secs(1)).blocking();
        assert!(fenced.get_at(key(2, 1), ReadLevel::Linearizable).is_err());
        assert!(fenced.put(key(2, 1), b"new").is_err());
        client.put(key(1, 99), b"goes on").unwrap();
        node.shutdown().unwrap();
    }
}

#[test]
fn when_nobody_knows_whose_records_are_lost_no_node_starts() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("data");
    lived(&data);
    // A whole segment's first block: its header, both copies.
    let path = segments(&data).pop().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[..4096].fill(0x55);
    std::fs::write(&path, &bytes).unwrap();
    repair(&data, &[]);
    match Node::open(config(&data)) {
        Err(Error::Identity(why)) => assert!(why.contains("vote twice"), "{why}"),
        other => panic!("{:?}", other.map(|_| "it started")),
    }
}
