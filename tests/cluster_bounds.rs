//! Small requests with large answers: each is bounded where it is gathered, for embedded callers and over the
//! wire.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use bytes::Bytes;
use catamaran::client::{Blocking, RemoteClient, Swap};
use catamaran::store::ReadLevel;
use catamaran::types::RegionId;
use catamaran::{Batch, Error, Node, NodeConfig};
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

const LARGE: usize = 15 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster of one, whose second region begins in the middle of the keys.
fn open(dir: &Path, address: &str) -> Node {
    Node::open(NodeConfig {
        cluster: [(1, address.to_owned())].into(),
        data_dir: dir.to_path_buf(),
        regions: 2,
        tick_ms: 20,
        segment_bytes: 4 << 20,
        ..NodeConfig::default()
    })
    .unwrap()
}

/// The same, once it leads.
fn open_and_lead(dir: &Path, address: &str) -> Node {
    let node = open(dir, address);
    node.client().with_timeout(PATIENCE).blocking().put(b"a", b"1").unwrap();
    node
}

fn address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Keys of the first and of the second region.
const KEYS: [&[u8]; 2] = [b"big", b"\xf0big"];

fn swap_often(client: &Blocking, keys: &[&[u8]]) -> Vec<Swap> {
    let mut batch = Batch::new();
    for at in 0..600 {
        batch.compare_and_swap(keys[at % keys.len()], Some(b"x"), None).unwrap();
    }
    batch.compare_and_swap(b"small", Some(b"1"), Some(b"2")).unwrap();
    client.write(batch).unwrap()
}

fn check(swaps: &[Swap], small: bool) {
    let (last, large) = swaps.split_last().unwrap();
    assert_eq!(large.len(), 600);
    for swap in large {
        assert_eq!((swap.swapped, swap.left_out, &swap.previous), (false, true, &None));
    }
    let told = Bytes::from(if small { "1" } else { "2" });
    assert_eq!(*last, Swap { swapped: small, previous: Some(told), left_out: false });
}

#[test]
fn many_swaps_of_a_large_value_leave_it_out() {
    let dir = tempfile::tempdir().unwrap();
    let address = address();
    let node = open(dir.path(), &address);
    let client = node.client().with_timeout(PATIENCE).blocking();
    let remote = RemoteClient::new(std::slice::from_ref(&address), None, PATIENCE).unwrap();
    let remote = remote.client().blocking();
    let large = vec![7; LARGE];
    for key in KEYS {
        client.put(key, &large).unwrap();
    }
    for (client, keys) in [(&client, &KEYS[..1]), (&client, &KEYS), (&remote, &KEYS)] {
        client.put(b"small", b"1").unwrap();
        check(&swap_often(client, keys), true);
    }
    // What is applied again after a restart is bounded as it was.
    node.kill();
    let node = open(dir.path(), &address);
    let client = node.client().with_timeout(PATIENCE).blocking();
    check(&swap_often(&client, &KEYS), false);
    // Values that fit are told, whatever stands beside them.
    client.put(b"fits", vec![1; 4 << 20]).unwrap();
    let swap = client.compare_and_swap(b"fits", None, Some(b"y")).unwrap();
    assert_eq!((swap.swapped, swap.previous.map(|v| v.len())), (false, Some(4 << 20)));
    let swap = client.compare_and_swap(b"big", Some(&large), Some(b"y")).unwrap();
    assert_eq!(swap, Swap { swapped: true, previous: None, left_out: true });
    node.shutdown().unwrap();
}

#[test]
fn a_read_of_more_than_an_answer_holds_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let address = address();
    let node = open(dir.path(), &address);
    let client = node.client().with_timeout(PATIENCE).blocking();
    let remote = RemoteClient::new(&[address], None, PATIENCE).unwrap();
    let remote = remote.client().blocking();
    let large = vec![7; LARGE];
    for key in KEYS {
        client.put(key, &large).unwrap();
    }
    let levels = [ReadLevel::Linearizable, ReadLevel::Lease, ReadLevel::Stale { max: PATIENCE }];
    for client in [&client, &remote] {
        for level in levels {
            for count in [2, 30, 1000] {
                for keys in [&KEYS[..1], &KEYS] {
                    let keys = (0..count).map(|i| Bytes::from(keys[i % keys.len()])).collect();
                    let refused = client.multi_get(keys, level).unwrap_err();
                    let Error::InvalidArgument(why) = refused else { panic!("{refused}") };
                    assert!(why.contains("ask for fewer keys"), "{why}");
                }
            }
            let one = client.multi_get(vec![KEYS[0].into(), "none".into()], level).unwrap();
            assert_eq!(one, [Some(Bytes::from(large.clone())), None]);
        }
    }
    node.shutdown().unwrap();
}

/// A node keeps a request for a region that it does not know until the caller's time is nearly up, for the region may come.
/// The next address was then dialled with no time left, and that it was not reached was all that the caller heard.
#[test]
fn a_node_that_is_not_reached_does_not_hide_what_another_said() {
    let dir = tempfile::tempdir().unwrap();
    let here = address();
    let _node = open_and_lead(dir.path(), &here);
    // One is bound, and nobody accepts there: dialling succeeds and no greeting comes.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let elsewhere = silent.local_addr().unwrap().to_string();
    for _ in 0..2 {
        let addresses = [here.clone(), elsewhere.clone()];
        let remote = RemoteClient::new(&addresses, None, Duration::from_millis(1500)).unwrap();
        let said = remote.client().blocking().region(RegionId(999)).unwrap_err();
        assert!(matches!(said, Error::RegionNotFound(RegionId(999))), "{said}");
    }
}

/// Likewise when the next one is reached: it was handed what was left, a millisecond or none, and "in time" was all that it
/// could say.
#[test]
fn a_node_without_time_does_not_hide_what_another_said() {
    let dir = tempfile::tempdir().unwrap();
    let here = address();
    let _node = open_and_lead(dir.path(), &here);
    let asks = (0..48u64).map(|at| {
        let addresses = [here.clone(), here.clone()];
        std::thread::spawn(move || {
            let patience = Duration::from_millis(1000 + 7 * at);
            let remote = RemoteClient::new(&addresses, None, patience).unwrap();
            remote.client().blocking().region(RegionId(999)).unwrap_err()
        })
    });
    for said in asks.collect::<Vec<_>>() {
        let said = said.join().unwrap();
        assert!(matches!(said, Error::RegionNotFound(RegionId(999))), "{said}");
    }
}

/// A node that is cut off from all others (one that was struck off, say) kept what it could not forward until the caller's time was
/// up, and so hid the nodes that could have answered.
#[test]
fn a_node_that_reaches_nobody_gives_back_what_it_cannot_forward() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (alone, well) = (address(), address());
    let cluster = [(1, alone.clone()), (2, address()), (3, address())];
    let one_of_three = Node::open(NodeConfig {
        cluster: cluster.into(),
        data_dir: dirs[0].path().to_path_buf(),
        ..NodeConfig::default()
    });
    let _one_of_three = one_of_three.unwrap();
    let _node = open(dirs[1].path(), &well);
    for at in 0..3u8 {
        // A client of its own each time: it asks the first address first.
        let patience = Duration::from_secs(20);
        let remote = RemoteClient::new(&[alone.clone(), well.clone()], None, patience).unwrap();
        let client = remote.client().blocking();
        let start = Instant::now();
        match at {
            0 => client.put(b"a", b"1").unwrap(),
            1 => assert_eq!(client.get(&b"a"[..]).unwrap().unwrap(), "1"),
            _ => assert_eq!(client.stores().unwrap().len(), 1),
        }
        assert!(start.elapsed() < patience / 2, "{at}: {:?}", start.elapsed());
    }
}
