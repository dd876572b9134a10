//! The number of threads does not depend on the number of regions: a node of 10 and one of 10,000 have as many,
//! while all regions elect their leaders, take writes, and sleep.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use catamaran::config::StateKind;
use catamaran::env::mem::MemDisk;
use catamaran::transport::Hub;
use catamaran::{Node, NodeConfig};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// The most threads that a node has at any time that is looked at.
fn threads_of_a_node(regions: u64) -> usize {
    let before = threads();
    let config = NodeConfig {
        store_id: 1,
        cluster: [(1, "hub:1".to_owned())].into(),
        data_dir: "node-1".into(),
        state: StateKind::Memory,
        regions,
        loops: 2,
        hibernate_after_ms: 1_000,
        segment_bytes: 16 << 20,
        ..NodeConfig::default()
    };
    let hub = Hub::new();
    let node = Node::builder(config).hub(hub).disk(Arc::new(MemDisk::default())).open().unwrap();
    let mut most = threads() - before;
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < Duration::from_secs(240), "{regions} regions do not settle");
        let Ok(status) = node.status() else { continue };
        most = most.max(threads() - before);
        assert_eq!(status.len() as u64, regions);
        if status.iter().all(|status| status.leads && status.asleep) {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let client = node.client().blocking();
    for region in (0..regions).step_by((regions / 10) as usize) {
        let start = ((u128::from(region) << 64) / u128::from(regions)) as u64;
        client.put([&start.to_be_bytes()[..], b"k"].concat(), "v").unwrap();
        most = most.max(threads() - before);
    }
    node.shutdown().unwrap();
    drop(node);
    let end = Instant::now();
    while threads() > before {
        assert!(end.elapsed() < Duration::from_secs(60), "threads stay behind");
        std::thread::sleep(Duration::from_millis(10));
    }
    most
}

#[test]
fn threads_do_not_grow_with_regions() {
    let few = threads_of_a_node(10);
    let many = threads_of_a_node(10_000);
    println!("{few} threads with 10 regions, {many} with 10,000");
    assert!(few > 1);
    assert_eq!(few, many);
}
