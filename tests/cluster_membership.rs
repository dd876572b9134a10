//! Five nodes in one process, three of which hold all regions at first: replicas move to the new ones and back while
//! clients write and read. Nothing is lost, and nothing is left behind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod cluster;

use catamaran::client::Blocking;
use catamaran::kv::Direction;
use catamaran::store::ReadLevel;
use catamaran::transport::Hub;
use catamaran::types::{KeyRange, Region, RegionId, Role, StoreId};
use catamaran::{Error, Node, NodeConfig};
use cluster::{eventually, finds, spread_key, work_in_rounds};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The first layout: `regions` regions on `replicas` of `nodes` nodes.
fn open(dir: &Path, id: u64, nodes: u64, regions: u64, hub: &Hub) -> Node {
    open_with(3, dir, id, nodes, regions, hub)
}

fn open_with(replicas: usize, dir: &Path, id: u64, nodes: u64, regions: u64, hub: &Hub) -> Node {
    let config = NodeConfig {
        store_id: id,
        cluster: (1..=nodes).map(|id| (id, format!("node-{id}:1"))).collect(),
        data_dir: dir.join(id.to_string()),
        regions,
        replicas,
        segment_bytes: 4 << 20,
        ..NodeConfig::default()
    };
    Node::builder(config).hub(hub.clone()).open().unwrap()
}

fn stores(region: &Region) -> BTreeSet<u64> {
    region.peers.iter().map(|peer| peer.store.0).collect()
}

/// Waits until each node has exactly the replicas that the regions say, and nobody waits to be forgotten.
fn settled(nodes: &[Node], regions: &[Region]) {
    for (node, id) in nodes.iter().zip(1..) {
        eventually(&format!("the replicas of node {id}"), || {
            let here: BTreeSet<_> =
                node.status().unwrap().iter().map(|s| (s.region.id, s.peer)).collect();
            let ought = regions.iter().filter_map(|r| Some((r.id, r.peer_on(StoreId(id))?.id)));
            here == ought.collect()
        });
    }
}

#[test]
fn replicas_move_to_new_nodes_and_back_under_load() {
    const REGIONS: u64 = 4;
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new();
    let nodes: Vec<Node> = (1..=5).map(|id| open(dir.path(), id, 5, REGIONS, &hub)).collect();
    let operator = nodes[0].client().blocking();
    let layout = operator.regions("", 16).unwrap();
    assert_eq!(layout.len() as u64, REGIONS);
    let stop = AtomicBool::new(false);
    let (last, regions) = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3u64)
            .map(|at| {
                let client = nodes[at as usize].client().blocking();
                let stop = &stop;
                scope.spawn(move || work_in_rounds(&client, at * 8..(at + 1) * 8, stop))
            })
            .collect();
        let mut regions = Vec::new();
        for region in &layout {
            // Every replica goes elsewhere, one after the other: to the two stores without one, and back.
            let here: Vec<u64> = stores(region).into_iter().collect();
            let free: Vec<u64> = (1..=5).filter(|id| !here.contains(id)).collect();
            let mut path = vec![(here[0], free[0]), (here[1], free[1]), (here[2], here[0])];
            path.extend([(free[0], here[2]), (free[1], here[1])]);
            let mut now = region.clone();
            for (from, to) in path {
                now = operator.replace_peer(region.id, StoreId(from), StoreId(to)).unwrap();
                assert!(now.peer_on(StoreId(from)).is_none(), "{now:?}");
                assert!(now.peers.iter().all(|peer| peer.role == Role::Voter), "{now:?}");
                assert_eq!(now.peers.len(), 3);
            }
            assert_eq!(stores(&now), here.into_iter().collect());
            regions.push(now);
        }
        stop.store(true, Ordering::Relaxed);
        let last: Vec<_> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
        (last, regions)
    });
    settled(&nodes, &regions);
    for node in &nodes {
        assert_eq!(node.health().map(|error| error.to_string()), None);
        let client = node.client().blocking();
        finds(&client, spread_key, last.iter().flatten());
        let rows = client.scan(KeyRange::all(), Direction::Forward, ReadLevel::Linearizable);
        let rows: Vec<_> = rows.map(|row| row.unwrap()).collect();
        assert_eq!(rows.len(), last.iter().map(BTreeMap::len).sum::<usize>());
    }
}

#[test]
fn learners_follow_leaders_go_first_and_nonsense_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new();
    let mut nodes: Vec<Node> = (1..=4).map(|id| open(dir.path(), id, 4, 1, &hub)).collect();
    let client = nodes[0].client().blocking();
    client.put("k", "1").unwrap();
    let region = client.region_of("k").unwrap();
    let id = region.id;
    let free = (1..=4).find(|id| !stores(&region).contains(id)).unwrap();
    let learner = client.add_learner(id, StoreId(free)).unwrap();
    assert_eq!(learner.peer_on(StoreId(free)).unwrap().role, Role::Learner);
    assert_eq!(client.add_learner(id, StoreId(free)).unwrap(), learner, "done already");
    // It reads what was written, without a vote.
    let far = nodes[free as usize - 1].client().blocking();
    eventually("the learner's replica", || !nodes[free as usize - 1].status().unwrap().is_empty());
    assert_eq!(far.get("k").unwrap().unwrap(), "1");
    client.promote(id, StoreId(free)).unwrap();
    let four = client.region(id).unwrap();
    assert_eq!(four.peers.iter().filter(|peer| peer.role == Role::Voter).count(), 4);
    // Whoever leads goes, too: it hands over first.
    let leads = |nodes: &[Node]| {
        nodes.iter().position(|node| node.status().unwrap().iter().any(|status| status.leads))
    };
    eventually("a leader", || leads(&nodes).is_some());
    let leader = StoreId(leads(&nodes).unwrap() as u64 + 1);
    let three = client.remove_peer(id, leader).unwrap();
    assert!(three.peer_on(leader).is_none());
    settled(&nodes, std::slice::from_ref(&three));
    assert_eq!(client.remove_peer(id, leader).unwrap().peers, three.peers, "done already");
    assert!(matches!(client.promote(id, leader), Err(Error::InvalidArgument(_))));
    let other = three.peers[0].store;
    client.demote(id, other).unwrap();
    assert_eq!(client.get("k").unwrap().unwrap(), "1");
    // A restart of the store that lost its replica brings nothing back.
    let at = leader.0 as usize - 1;
    nodes[at].kill();
    nodes[at] = open(dir.path(), leader.0, 4, 1, &hub);
    let now = client.region(id).unwrap_or(three);
    settled(&nodes, &[now]);
}

/// Its only voter leads, so it can neither be demoted while another one is promoted nor hand over before: the replica that was to
/// take its place was waited for in vain, and removed.
#[test]
fn a_region_with_one_voter_moves_from_store_to_store() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new();
    let nodes: Vec<Node> = (1..=2).map(|id| open_with(1, dir.path(), id, 2, 3, &hub)).collect();
    let client = nodes[0].client().with_timeout(Duration::from_secs(60)).blocking();
    let keys: Vec<_> = (0..20).map(spread_key).collect();
    keys.iter().for_each(|key| client.put(key, "1").unwrap());
    let layout = client.regions("", 16).unwrap();
    let mut moved = Vec::new();
    for region in &layout {
        let from = region.peers[0].store;
        let to = StoreId(3 - from.0);
        let now = client.replace_peer(region.id, from, to).unwrap();
        assert_eq!(stores(&now), [to.0].into());
        assert_eq!(now.peers[0].role, Role::Voter);
        assert_eq!(client.replace_peer(region.id, from, to).unwrap(), now, "done already");
        moved.push(now);
    }
    assert_eq!(moved.len(), 3);
    settled(&nodes, &moved);
    for key in keys {
        assert_eq!(client.get(key).unwrap().unwrap(), "1");
    }
}

/// A region that nobody has ever had, a mistyped one say, was looked for until the caller's time was up.
#[test]
fn a_region_that_does_not_exist_is_told_early() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new();
    let nodes: Vec<Node> = (1..=3).map(|id| open(dir.path(), id, 3, 4, &hub)).collect();
    let nobody = RegionId(999);
    let first = nodes[0].client().blocking().regions("", 1).unwrap()[0].id;
    let patience = Duration::from_secs(100);
    let begun = Instant::now();
    let said = std::thread::scope(|scope| {
        let ask =
            |node: &Node, goal: fn(&Blocking, RegionId, RegionId) -> Result<Region, Error>| {
                let client = node.client().with_timeout(patience).blocking();
                scope.spawn(move || goal(&client, nobody, first))
            };
        let asked = [
            ask(&nodes[0], |client, nobody, _| client.add_voter(nobody, StoreId(1))),
            ask(&nodes[1], |client, nobody, _| client.remove_peer(nobody, StoreId(1))),
            ask(&nodes[1], |client, nobody, _| client.replace_peer(nobody, StoreId(1), StoreId(2))),
            ask(&nodes[0], |client, nobody, _| {
                client.transfer_leader(nobody, Some(StoreId(1)))?;
                client.region(nobody)
            }),
            ask(&nodes[2], |client, nobody, first| client.merge(nobody, first)),
            ask(&nodes[2], |client, nobody, first| client.merge(first, nobody)),
        ];
        asked.map(|asking| asking.join().unwrap())
    });
    for said in said {
        assert!(matches!(said, Err(Error::RegionNotFound(id)) if id == nobody), "{said:?}");
    }
    assert!(begun.elapsed() < patience / 3, "{:?}", begun.elapsed());
}

/// The leader said what it waited for, again and again, and the last time there was no answer because the time was up: only that
/// was told.
#[test]
fn a_transfer_to_a_silent_store_says_what_was_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new();
    let nodes: Vec<Node> = (1..=3).map(|id| open(dir.path(), id, 3, 1, &hub)).collect();
    let client = nodes[0].client().blocking();
    client.put("k", "1").unwrap();
    let id = client.region_of("k").unwrap().id;
    client.transfer_leader(id, Some(StoreId(1))).unwrap();
    let leads = || nodes[0].status().unwrap().iter().any(|status| status.leads);
    eventually("store 1 to lead", leads);
    for other in [1, 2] {
        hub.partition(StoreId(3), StoreId(other));
    }
    for node in &nodes[..2] {
        for ms in [3_000, 4_500] {
            let client = node.client().with_timeout(Duration::from_millis(ms)).blocking();
            let said = client.transfer_leader(id, Some(StoreId(3))).unwrap_err();
            let reason = "a replica that is behind, or out of reach";
            assert!(matches!(said, Error::Busy { what } if what == reason), "{said}");
        }
    }
    assert!(leads());
}

/// A learner on a store that does not exist, mistyped perhaps, kept its region from being repaired, drained and ever merged again.
#[test]
fn a_store_that_is_not_on_record_gets_no_replica() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new();
    let nodes: Vec<Node> = (1..=3).map(|id| open(dir.path(), id, 3, 1, &hub)).collect();
    let client = nodes[1].client().with_timeout(Duration::from_secs(20)).blocking();
    client.put("k", "1").unwrap();
    let region = client.region_of("k").unwrap();
    let hasty = nodes[1].client().with_timeout(Duration::from_secs(3)).blocking();
    for said in [
        hasty.add_learner(region.id, StoreId(9)),
        hasty.add_voter(region.id, StoreId(9)),
        hasty.replace_peer(region.id, StoreId(1), StoreId(9)),
    ] {
        let reason = "a store that is not on record";
        assert!(matches!(said, Err(Error::Busy { what }) if what == reason), "{said:?}");
    }
    assert_eq!(client.region(region.id).unwrap().peers, region.peers);
}
