//! Remote clients whose writes leave together, while nodes go and come back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod cluster;

use catamaran::client::{RemoteClient, wait};
use catamaran::{Batch, Node, NodeConfig, Outcome};
use cluster::{eventually, spread_key};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

fn addresses() -> BTreeMap<u64, String> {
    // Bound all at once: no port is given twice.
    let bound: Vec<_> = (1..=3).map(|id| (id, TcpListener::bind("127.0.0.1:0").unwrap())).collect();
    bound.iter().map(|(id, at)| (*id, at.local_addr().unwrap().to_string())).collect()
}

fn open(dir: &Path, id: u64, cluster: &BTreeMap<u64, String>) -> Node {
    Node::open(NodeConfig {
        store_id: id,
        cluster: cluster.clone(),
        data_dir: dir.join(id.to_string()),
        regions: 8,
        tick_ms: 20,
        segment_bytes: 4 << 20,
        ..NodeConfig::default()
    })
    .unwrap()
}

fn put(i: u64) -> Batch {
    let mut batch = Batch::new();
    batch.put(&spread_key(i), &i.to_le_bytes()).unwrap();
    batch
}

/// Each write is told once; what was told to be written is there, and only what was on its way to the node that was killed
/// has an unknown outcome.
#[test]
fn writes_that_leave_together_are_told_once() {
    const ROUND: u64 = 500;
    const ROUNDS: u64 = 40;
    /// Writes that wait for an answer at the same time, at most.
    const AHEAD: u64 = 2000;
    let dir = tempfile::tempdir().unwrap();
    let cluster = addresses();
    let mut nodes: Vec<Node> = (1..=3).map(|id| open(dir.path(), id, &cluster)).collect();
    let all: Vec<String> = cluster.values().cloned().collect();
    let remote = RemoteClient::new(&all, None, PATIENCE).unwrap();
    let client = remote.client();
    wait(client.write(put(1 << 40))).unwrap();

    let (tell, told) = mpsc::channel();
    let mut heard = BTreeMap::new();
    for round in 0..ROUNDS {
        match round {
            10 => nodes.remove(1).kill(),
            25 => nodes.insert(1, open(dir.path(), 2, &cluster)),
            _ => {}
        }
        client.submit_many((round * ROUND..(round + 1) * ROUND).map(|i| {
            let tell = tell.clone();
            (put(i), move |result: catamaran::Result<_>| tell.send((i, result.map(drop))).unwrap())
        }));
        while (round + 1) * ROUND - heard.len() as u64 > AHEAD {
            let (i, result) = told.recv_timeout(2 * PATIENCE).unwrap();
            assert!(heard.insert(i, result).is_none(), "write {i} is told twice");
        }
    }
    drop(tell);
    for (i, result) in told {
        assert!(heard.insert(i, result).is_none(), "write {i} is told twice");
    }
    assert_eq!(heard.len() as u64, ROUND * ROUNDS);
    let reader = nodes[0].client().with_timeout(PATIENCE).blocking();
    let mut unknown = 0;
    for (i, result) in heard {
        match result {
            Ok(()) => {
                let read = reader.get(spread_key(i)).unwrap();
                assert_eq!(read.as_deref(), Some(&i.to_le_bytes()[..]), "write {i}");
            }
            Err(error) if error.outcome() == Outcome::Unknown => unknown += 1,
            Err(error) => panic!("write {i}: {error}"),
        }
    }
    println!("{unknown} of {} have an unknown outcome", ROUND * ROUNDS);
    assert!(unknown <= AHEAD, "{unknown}");
}

/// Futures of the same moment leave together; a client that goes tells everybody.
#[test]
fn futures_of_a_remote_client_meet_at_its_gate() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = addresses();
    let nodes: Vec<Node> = (1..=3).map(|id| open(dir.path(), id, &cluster)).collect();
    let all: Vec<String> = cluster.values().cloned().collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let remote = RemoteClient::new(&all, None, PATIENCE).unwrap();
        let client = remote.client();
        let tasks: Vec<_> = (0..3000)
            .map(|i| {
                let client = client.clone();
                tokio::spawn(async move { client.write(put(i)).await })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        let reads = client.multi_get(
            (0..3000).map(|i| spread_key(i).into()).collect(),
            catamaran::store::ReadLevel::Linearizable,
        );
        assert!(reads.await.unwrap().iter().all(Option::is_some));
    });
    // No node is there to answer, and the client goes before its time is up.
    let remote = RemoteClient::new(&all, None, PATIENCE).unwrap();
    let client = remote.client();
    wait(client.write(put(1))).unwrap();
    nodes.iter().for_each(Node::kill);
    drop(nodes);
    let (tell, told) = mpsc::channel();
    client.submit_many((0..100).map(|i| {
        let tell = tell.clone();
        (put(i), move |result: catamaran::Result<_>| tell.send(result.map(drop)).unwrap())
    }));
    drop((tell, client, remote));
    let mut count = 0;
    eventually("everybody is told", || {
        count += told.try_iter().inspect(|result| assert!(result.is_err())).count();
        count == 100
    });
}
