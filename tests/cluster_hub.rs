//! Three nodes joined by an in-process hub, logs in memory: partitions, and the parts of the consensus
//! benchmark.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use bytes::Bytes;
use catamaran::config::StateKind;
use catamaran::env::mem::MemDisk;
use catamaran::region::machine::{Context, NullMachine, StateMachine};
use catamaran::store::ReadLevel;
use catamaran::transport::Hub;
use catamaran::types::{RegionId, StoreId};
use catamaran::{Error, Node, NodeConfig, Outcome, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn config(id: u64) -> NodeConfig {
    NodeConfig {
        store_id: id,
        cluster: (1..=3).map(|id| (id, format!("hub:{id}"))).collect(),
        data_dir: format!("node-{id}").into(),
        state: StateKind::Memory,
        tick_ms: 20,
        segment_bytes: 1 << 20,
        ..NodeConfig::default()
    }
}

fn start(hub: &Hub) -> Vec<Node> {
    (1..=3)
        .map(|id| {
            let disk = Arc::new(MemDisk::default());
            Node::builder(config(id)).hub(hub.clone()).disk(disk).open().unwrap()
        })
        .collect()
}

fn leader(nodes: &[Node], among: &[usize]) -> usize {
    let start = Instant::now();
    loop {
        let leads = |at: &&usize| nodes[**at].status().unwrap().iter().any(|region| region.leads);
        if let Some(at) = among.iter().find(leads) {
            return *at;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "no leader");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_cut_off_leader_serves_nothing_stale() {
    let hub = Hub::new();
    let nodes = start(&hub);
    let old = leader(&nodes, &[0, 1, 2]);
    nodes[old].client().blocking().put("k", "1").unwrap();
    let others: Vec<usize> = (0..3).filter(|at| *at != old).collect();
    for other in &others {
        hub.partition(StoreId(old as u64 + 1), StoreId(*other as u64 + 1));
    }
    let new = leader(&nodes, &others);
    nodes[new].client().blocking().put("k", "2").unwrap();

    // The old leader may still think it leads; no level that promises freshness may answer there.
    let cut_off = nodes[old].client().with_timeout(Duration::from_millis(400)).blocking();
    for level in [ReadLevel::Lease, ReadLevel::Linearizable] {
        let read = cut_off.get_at("k", level);
        assert!(read.is_err(), "{level:?}: {read:?}");
    }
    let write = cut_off.put("k", "3");
    assert!(write.is_err());

    hub.heal_all();
    for node in &nodes {
        let client = node.client().blocking();
        let value = client.get("k").unwrap().unwrap();
        // The write during the cut has an unknown outcome only if it reached a log.
        match write.as_ref().unwrap_err().outcome() {
            Outcome::NotApplied => assert_eq!(value, "2"),
            Outcome::Unknown => assert!(value == "2" || value == "3"),
        }
    }
    for node in &nodes {
        node.kill();
        assert!(node.health().is_some());
    }
}

#[test]
fn leadership_moves_on_request_and_at_shutdown() {
    let hub = Hub::new();
    let nodes = start(&hub);
    let first = leader(&nodes, &[0, 1, 2]);
    let to = (first + 1) % 3;
    nodes[0].client().blocking().put("k", "v").unwrap();
    // Asked at a node that does not lead: it is forwarded.
    let asked = nodes[(first + 2) % 3].client().blocking();
    asked.transfer_leader(RegionId(1), Some(StoreId(to as u64 + 1))).unwrap();
    assert_eq!(leader(&nodes, &[to]), to);

    let started = Instant::now();
    nodes[to].shutdown().unwrap();
    let rest: Vec<usize> = (0..3).filter(|at| *at != to).collect();
    leader(&nodes, &rest);
    eprintln!("led elsewhere after {:?}", started.elapsed());
    assert_eq!(nodes[rest[0]].client().blocking().get("k").unwrap().unwrap(), "v");
}

#[test]
fn the_parts_of_the_consensus_benchmark_fit() {
    let hub = Hub::new();
    let nodes: Vec<Node> = (1..=3)
        .map(|id| {
            Node::builder(config(id))
                .hub(hub.clone())
                .disk(Arc::new(MemDisk::default()))
                .machine(Arc::new(NullMachine))
                .open()
                .unwrap()
        })
        .collect();
    leader(&nodes, &[0, 1, 2]);
    let client = nodes[1].client().blocking();
    for _ in 0..100 {
        assert!(client.execute("k", "anything").unwrap().is_empty());
    }
    let applied = nodes.iter().map(|node| node.stats().driver.applied_entries).max();
    assert!(applied >= Some(100));
}

/// Fails on one command: to a store that is a reason to stop.
struct Brittle;

impl StateMachine for Brittle {
    fn apply(&self, context: &mut Context<'_>, command: &[u8]) -> Result<Bytes> {
        match command {
            b"boom" => Err(Error::Identity("boom".into())),
            _ => Ok(context.share(command)),
        }
    }
}

#[test]
fn an_apply_error_stops_the_node_and_tells_everybody() {
    let config = NodeConfig {
        data_dir: "alone".into(),
        state: StateKind::Memory,
        tick_ms: 20,
        segment_bytes: 1 << 20,
        ..NodeConfig::default()
    };
    let disk = Arc::new(MemDisk::default());
    let node = Node::builder(config).disk(disk).machine(Arc::new(Brittle)).open().unwrap();
    let client = node.client().blocking();
    assert_eq!(client.execute("k", "fine").unwrap(), "fine");
    assert!(node.health().is_none());
    let told = client.execute("k", "boom").unwrap_err();
    assert!(matches!(&told, Error::Stopped { reason } if reason.contains("boom")), "{told}");
    assert_eq!(told.outcome(), Outcome::Unknown);
    assert!(matches!(node.health(), Some(Error::Stopped { .. })));
    let later = client.execute("k", "fine").unwrap_err();
    assert!(matches!(later, Error::Stopped { .. }), "{later}");
    // Closing what has stopped already neither hangs nor fails.
    node.shutdown().unwrap();
}
