//! One of three nodes has a full disk: what it led is led by others as soon as somebody writes, and all writes go on.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[allow(dead_code, unused_imports, reason = "only some of it is needed here")]
mod bad_disk;

use bad_disk::BadDisk;
use catamaran::transport::Hub;
use catamaran::types::StoreId;
use catamaran::{Error, Node, NodeConfig, Outcome};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const REGIONS: u64 = 4;

fn config(dir: &Path, id: u64) -> NodeConfig {
    NodeConfig {
        store_id: id,
        cluster: (1..=3).map(|id| (id, format!("hub:{id}"))).collect(),
        data_dir: dir.join(format!("node-{id}")),
        regions: REGIONS,
        tick_ms: 10,
        segment_bytes: 64 << 10,
        log_budget_bytes: 256 << 20,
        // Nothing is purged meanwhile that would make room.
        flush_interval_ms: 600_000,
        ..NodeConfig::default()
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(120), "waited for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// How many regions it leads.
fn led(node: &Node) -> usize {
    node.status().unwrap_or_default().iter().filter(|region| region.leads).count()
}

fn key(round: u64, region: u64) -> Vec<u8> {
    [&[(region * 64) as u8 + 1][..], &round.to_be_bytes()].concat()
}

/// A third of all regions took no writes until somebody made room, though two of three nodes had plenty.
#[test]
fn what_a_node_with_a_full_disk_leads_is_led_by_others() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, disk) = (Hub::new(), BadDisk::new());
    let open = |id: u64| {
        let node = Node::builder(config(dir.path(), id)).hub(hub.clone());
        let node = if id == 1 { node.disk(Arc::new(disk.clone())) } else { node };
        node.open().unwrap()
    };
    let nodes = [open(1), open(2), open(3)];
    let client = nodes[1].client().with_timeout(Duration::from_secs(2)).blocking();
    let write = |round: u64, region: u64| client.put(key(round, region), vec![7; 4 << 10]);
    eventually("the first write to each region", || {
        (0..REGIONS).all(|region| write(0, region).is_ok())
    });
    eventually("node 1 to lead them all", || {
        let leaders = nodes[1..].iter().flat_map(|node| node.status().unwrap_or_default());
        for region in leaders.filter(|region| region.leads) {
            let from = nodes.iter().find(|node| {
                let all = node.status().unwrap_or_default();
                all.iter().any(|other| other.region.id == region.region.id && other.leads)
            });
            let _ = from.map(|node| node.transfer_leader(region.region.id, Some(StoreId(1))));
        }
        led(&nodes[0]) as u64 == REGIONS
    });

    disk.set_budget(disk.used());
    let (mut round, mut refused, mut acked) = (0, 0, vec![]);
    // Rounds in a row in which each region took a write.
    let mut whole = 0;
    eventually("writes to all regions", || {
        round += 1;
        let results: Vec<_> = (0..REGIONS).map(|region| (region, write(round, region))).collect();
        for (region, result) in &results {
            match result {
                Ok(()) => acked.push(key(round, *region)),
                Err(Error::DiskFull { .. }) => refused += 1,
                Err(Error::Busy { .. }) => {}
                Err(error) => assert_eq!(error.outcome(), Outcome::Unknown, "{error}"),
            }
        }
        let all = results.iter().all(|(_, result)| result.is_ok());
        whole = if all && disk.refused() > 0 && led(&nodes[0]) == 0 { whole + 1 } else { 0 };
        whole == 20
    });
    assert!(nodes[0].health().is_none(), "{:?}", nodes[0].health());
    eprintln!("{round} rounds, {refused} writes refused");

    // It has room again, and everything that the others have.
    disk.set_budget(u64::MAX);
    for key in &acked {
        assert!(client.get(key.clone()).unwrap().is_some(), "an acknowledged write is lost");
    }
    eventually("node 1 to catch up", || {
        let all = |node: &Node| node.status().unwrap_or_default();
        let (here, there) = (all(&nodes[0]), all(&nodes[1]));
        let applied = |region: &catamaran::store::RegionStatus| {
            here.iter()
                .any(|own| own.region.id == region.region.id && own.applied >= region.applied)
        };
        there.len() as u64 == REGIONS && there.iter().all(applied)
    });
    nodes.iter().for_each(|node| node.shutdown().unwrap());
}
