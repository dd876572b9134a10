//! Rot in a table file of a running node: callers are served by another replica, and are told what is damaged
//! where there is none.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use catamaran::client::{Blocking, RemoteClient};
use catamaran::kv::Direction;
use catamaran::store::ReadLevel;
use catamaran::types::KeyRange;
use catamaran::{Error, Node, NodeConfig, Result};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
const KEYS: u64 = 200;
const LEVELS: [ReadLevel; 3] =
    [ReadLevel::Linearizable, ReadLevel::Lease, ReadLevel::Stale { max: PATIENCE }];

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "waited for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn open(dir: &Path, count: u64) -> (Vec<Node>, BTreeMap<u64, String>) {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let address = |listener: &TcpListener| listener.local_addr().unwrap().to_string();
    let cluster: BTreeMap<u64, String> = (1..).zip(listeners.iter().map(address)).collect();
    drop(listeners);
    let open = |id: &u64| {
        Node::open(NodeConfig {
            store_id: *id,
            cluster: cluster.clone(),
            data_dir: dir.join(id.to_string()),
            regions: 1,
            tick_ms: 20,
            segment_bytes: 1 << 20,
            flush_interval_ms: 3_600_000,
            ..NodeConfig::default()
        })
        .unwrap()
    };
    let nodes: Vec<Node> = cluster.keys().map(open).collect();
    let leads = |node: &Node| node.status().unwrap().iter().any(|region| region.leads);
    eventually("all replicas", || nodes.iter().all(|node| !node.status().unwrap().is_empty()));
    eventually("a leader", || nodes.iter().any(leads));
    (nodes, cluster)
}

fn key(i: u64) -> Vec<u8> {
    format!("key {i:05}").into_bytes()
}

/// Not to be compressed.
fn value(i: u64) -> Vec<u8> {
    let mut x = i + 1;
    let mut next = || {
        x = x.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (x >> 33) as u8
    };
    (0..1000).map(|_| next()).collect()
}

/// Writes the keys, and waits until they are in every node's tables.
fn fill(nodes: &[Node]) {
    let client = client(&nodes[0]);
    for i in 0..KEYS {
        client.put(key(i), value(i)).unwrap();
    }
    let applied = |node: &Node| node.status().unwrap()[0].applied;
    eventually("the followers", || {
        let most = nodes.iter().map(applied).max();
        nodes.iter().all(|node| Some(applied(node)) == most)
    });
    for node in nodes {
        node.flush().unwrap();
    }
}

fn client(node: &Node) -> Blocking {
    node.client().with_timeout(PATIENCE).blocking()
}

fn tables(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tables(&path, found);
        } else if path.parent().is_some_and(|parent| parent.ends_with("tree/tables")) {
            found.push(path);
        }
    }
}

/// Damages the first half of the largest table of a node, where blocks of data lie.
fn rot(dir: &Path) {
    let mut found = Vec::new();
    tables(dir, &mut found);
    let path = found.iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    let half = file.metadata().unwrap().len() / 2;
    assert!(half > KEYS * 400, "not the table with the values");
    file.write_all_at(&vec![0xa5; half as usize], 0).unwrap();
}

fn scan(client: &Blocking, level: ReadLevel) -> Result<usize> {
    let rows = client.scan(KeyRange::new("", ""), Direction::Forward, level);
    let rows: Vec<_> = rows.collect::<Result<_>>()?;
    Ok(rows.len())
}

#[test]
fn a_rotten_table_is_read_at_another_replica() {
    let dir = tempfile::tempdir().unwrap();
    let (nodes, addresses) = open(dir.path(), 3);
    fill(&nodes);
    // The leader's: it answers leases, and followers ask it first.
    let leader = nodes.iter().position(|node| node.status().unwrap()[0].leads).unwrap();
    let id = nodes[leader].store_id().0;
    rot(&dir.path().join(id.to_string()));
    let remote = RemoteClient::new(&[addresses[&id].clone()], None, PATIENCE).unwrap();
    let clients: Vec<Blocking> =
        nodes.iter().map(client).chain([remote.client().blocking()]).collect();
    for client in &clients {
        for level in LEVELS {
            for i in (0..KEYS).step_by(40) {
                assert_eq!(client.get_at(key(i), level).unwrap().unwrap(), value(i), "{level:?}");
            }
            assert_eq!(scan(client, level).unwrap(), KEYS as usize);
        }
    }
    assert!(nodes.iter().all(|node| node.health().is_none()), "reads stop no node");
    for node in nodes {
        node.shutdown().unwrap();
    }
}

#[test]
fn rot_without_another_replica_is_told_as_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (nodes, addresses) = open(dir.path(), 1);
    fill(&nodes);
    rot(dir.path());
    let remote = RemoteClient::new(&[addresses[&1].clone()], None, PATIENCE).unwrap();
    for client in [client(&nodes[0]), remote.client().blocking()] {
        for level in LEVELS {
            let damaged = client.get_at(key(0), level).unwrap_err();
            let Error::Corruption { path, detail, .. } = damaged else { panic!("{damaged}") };
            assert!(path.ends_with("tree") && !detail.is_empty(), "{path:?}: {detail}");
        }
        let last = client.get(key(KEYS - 1)).unwrap();
        assert_eq!(last.unwrap(), value(KEYS - 1), "the rest is served");
    }
    assert!(nodes[0].health().is_none());
    client(&nodes[0]).put("more", "x").unwrap();
}
