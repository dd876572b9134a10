//! Nodes in one process whose regions are merged while clients write and read.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod cluster;

use bytes::Bytes;
use catamaran::client::Blocking;
use catamaran::error::Outcome;
use catamaran::kv::Direction;
use catamaran::store::ReadLevel;
use catamaran::transport::Hub;
use catamaran::types::{FIRST_REGION, KeyRange, Region, RegionId, Role, StoreId};
use catamaran::{Error, Node, NodeConfig};
use cluster::{Work, covers, eventually, finds, key, open_of_three, regions_of, work};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Nobody else writes the key: a write that a killed node took along is simply done again.
fn put(client: &Blocking, key: Vec<u8>, value: String) {
    let begun = Instant::now();
    while let Err(error) = client.put(key.clone(), value.clone()) {
        assert!(error.outcome() == Outcome::Unknown, "{error}");
        assert!(begun.elapsed() < Duration::from_secs(60), "{error}");
    }
}

/// The neighbours of the smallest id but the first, to be merged: (source, target).
fn next_pair(regions: &[Region], turn: usize) -> (RegionId, RegionId) {
    let at = turn % (regions.len() - 1);
    let (left, right) = (&regions[at], &regions[at + 1]);
    // Either may go into the other, but for the one that keeps the cluster's record.
    match left.id == FIRST_REGION || turn.is_multiple_of(2) {
        true => (right.id, left.id),
        false => (left.id, right.id),
    }
}

/// Every region that a node knows, in key order: it answers a page at a time.
fn all_regions(client: &Blocking) -> Vec<Region> {
    let mut all: Vec<Region> = Vec::new();
    loop {
        let start = all.last().map_or_else(Bytes::new, |last| last.range.end.clone());
        let page = client.regions(start, usize::MAX).unwrap();
        all.extend(page);
        if all.last().is_none_or(|last| last.range.end.is_empty()) {
            return all;
        }
    }
}

/// What a client is told of all regions, as their leaders have reported it: shape and leader.
fn located(client: &Blocking) -> Vec<(Region, Option<StoreId>)> {
    let mut all: Vec<(Region, Option<StoreId>)> = Vec::new();
    loop {
        let start = all.last().map_or_else(Bytes::new, |(last, _)| last.range.end.clone());
        let page = client.locate(start, usize::MAX).unwrap();
        let ends = page.last().is_none_or(|last| last.region.range.end.is_empty());
        all.extend(page.into_iter().map(|info| (info.region, info.leader)));
        if ends {
            return all;
        }
    }
}

/// The same, as the replicas that lead have it.
fn led(nodes: &[Node]) -> Vec<(Region, Option<StoreId>)> {
    let of = |node: &Node| {
        let (leader, status) = (node.store_id(), node.status().unwrap());
        status.into_iter().filter(|one| one.leads).map(move |one| (one.region, Some(leader)))
    };
    let mut all: Vec<(Region, Option<StoreId>)> = nodes.iter().flat_map(of).collect();
    all.sort_by(|(a, _), (b, _)| a.range.start.cmp(&b.range.start));
    all
}

/// From many regions down to eight, under load, while one node is killed and comes back: nothing is lost or wrong, and
/// every node ends with the same few regions. `CATAMARAN_MERGES=1000 cargo test --release --test cluster_merge
/// down_to_eight -- --nocapture`.
#[test]
fn down_to_eight_under_load() {
    let before: u64 = std::env::var("CATAMARAN_MERGES").map_or(40, |text| text.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new();
    let mut nodes: Vec<Node> = (1..=3).map(|id| open_of_three(dir.path(), id, &hub)).collect();
    let operator = nodes[0].client().blocking();
    operator.split((1..before).map(key).collect::<Vec<_>>()).unwrap();
    for node in &nodes {
        eventually("all regions", || regions_of(node).len() as u64 == before);
    }
    let stop = AtomicBool::new(false);
    let done: Vec<Work> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2u64)
            .map(|at| {
                let client = nodes[at as usize].client().blocking();
                let stop = &stop;
                let keys = at * before / 2..(at + 1) * before / 2;
                scope.spawn(move || work(&client, keys, stop, put))
            })
            .collect();
        let begun = Instant::now();
        let third = &mut nodes[2..];
        let mut down: Option<Instant> = None;
        let mut turn = 0;
        let mut took = Vec::new();
        loop {
            let known = all_regions(&operator);
            if known.len() <= 8 {
                break;
            }
            if known.len() as u64 <= before / 2 && down.is_none() {
                third[0].kill();
                third[0] = open_of_three(dir.path(), 3, &hub);
                down = Some(Instant::now());
            }
            let (source, target) = next_pair(&known, turn);
            turn += 1;
            let asked = Instant::now();
            match operator.merge(source, target) {
                Ok(merged) => {
                    assert_eq!(merged.id, target);
                    took.push(asked.elapsed());
                }
                Err(error) => println!("{source} into {target}: {error}"),
            }
            assert!(begun.elapsed() < Duration::from_secs(600), "{} regions left", known.len());
        }
        assert!(down.is_some(), "a node restarts half-way");
        took.sort_unstable();
        println!(
            "{before} regions down to eight in {:?}, {turn} attempts; a merge: median {:?}, longest {:?}",
            begun.elapsed(),
            took[took.len() / 2],
            took.last()
        );
        stop.store(true, Ordering::Relaxed);
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    for node in &nodes {
        eventually("eight regions on every node", || {
            let regions = regions_of(node);
            regions.len() <= 8 && covers(&regions)
        });
        assert_eq!(node.health().map(|error| error.to_string()), None);
    }
    for pair in nodes.windows(2) {
        assert_eq!(regions_of(&pair[0]), regions_of(&pair[1]));
    }
    // A restart finds the merges, or does them again.
    nodes[1].kill();
    nodes[1] = open_of_three(dir.path(), 2, &hub);
    for node in &nodes {
        let client = node.client().blocking();
        finds(&client, key, done.iter().flat_map(|work| &work.last));
        let rows = client.scan(KeyRange::all(), Direction::Forward, ReadLevel::Linearizable);
        let keys: Vec<_> = rows.map(|row| row.unwrap().0).collect();
        assert_eq!(keys.len(), done.iter().map(|work| work.last.len()).sum::<usize>());
        assert!(keys.is_sorted());
        // What the node knows of the key space is what the leaders know.
        for region in all_regions(&client) {
            let led = client.region(region.id).unwrap();
            assert_eq!((led.id, led.range), (region.id, region.range));
        }
    }
    // The directory has them as they are: no other region, no other shape, no other leader. It lags by a report.
    for node in &nodes {
        let client = node.client().blocking();
        eventually("a directory that agrees with the regions", || located(&client) == led(&nodes));
        let regions: Vec<Region> = located(&client).into_iter().map(|(region, _)| region).collect();
        assert!(covers(&regions) && regions.len() <= 8, "{regions:?}");
    }
}

/// What cannot be merged is refused with a reason, and goes on as before.
#[test]
fn what_cannot_be_merged_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(NodeConfig::single(dir.path().join("data"))).unwrap();
    let client = node.client().blocking();
    client.split([key(1), key(2), key(3)]).unwrap();
    eventually("four regions", || regions_of(&node).len() >= 4 && covers(&regions_of(&node)));
    let regions = client.regions("", usize::MAX).unwrap();
    let ids: Vec<RegionId> = regions.iter().map(|region| region.id).collect();
    let last = ids.len() - 1;
    let refused = |source, target| client.merge(source, target).unwrap_err().to_string();
    assert!(refused(ids[last], ids[last - 2]).contains("no neighbour"));
    assert!(refused(ids[last], ids[last]).contains("no neighbour"));
    if ids[0] == FIRST_REGION {
        assert!(refused(ids[0], ids[1]).contains("record"));
    }
    client.put(key(3), "x").unwrap();
    let merged = client.merge(ids[last], ids[last - 1]).unwrap();
    assert_eq!((merged.id, &merged.range.start[..]), (ids[last - 1], &key(2)[..]));
    assert_eq!(client.get(key(3)).unwrap().unwrap(), "x");
    client.put(key(3), "y").unwrap();
    // And cut again: what was merged is a region like any other.
    client.split([key(3)]).unwrap();
    assert_eq!(client.get(key(3)).unwrap().unwrap(), "y");
}

/// Regions whose replicas live apart are brought together first.
#[test]
fn replicas_that_live_apart_are_moved_first() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new();
    let nodes: Vec<Node> = (1..=3).map(|id| open_of_three(dir.path(), id, &hub)).collect();
    let client = nodes[0].client().blocking();
    for i in 0..20 {
        client.put(key(i), i.to_string()).unwrap();
    }
    let cut = client.split([key(10)]).unwrap();
    let (left, right) = (&cut[0], &cut[1]);
    client.remove_peer(right.id, StoreId(3)).unwrap();
    let merged = client.merge(right.id, left.id).unwrap();
    assert_eq!(merged.id, left.id);
    for i in 0..20 {
        assert_eq!(client.get(key(i)).unwrap().unwrap(), i.to_string());
    }
}

/// A merge had to move a replica to a store that was out of reach: the learner that it had made there stayed after the merge had
/// failed, and because of it no later attempt was ever begun. What the merge has made it takes away again.
#[test]
fn a_merge_that_cannot_move_a_replica_leaves_no_learner() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new();
    let nodes: Vec<Node> = (1..=3).map(|id| open_of_three(dir.path(), id, &hub)).collect();
    let client = nodes[0].client().blocking();
    let right = client.split([key(10)]).unwrap()[1].clone();
    let left = client.region_of(key(0)).unwrap();
    let third = StoreId(3);
    client.remove_peer(right.id, third).unwrap();
    eventually("leaders elsewhere", || {
        let led = nodes[2].status().unwrap().into_iter().filter(|status| status.leads);
        let led: Vec<RegionId> = led.map(|status| status.region.id).collect();
        for region in &led {
            let _ = nodes[2].transfer_leader(*region, Some(StoreId(1)));
        }
        led.is_empty()
    });
    for other in [1, 2] {
        hub.partition(third, StoreId(other));
    }
    let patience = Duration::from_secs(2);
    let hurried = nodes[0].client().with_timeout(patience).blocking();
    let begun = Instant::now();
    assert!(hurried.merge(right.id, left.id).is_err(), "the third store is out of reach");
    // The time is that of the whole, with what had to be taken back.
    assert!(begun.elapsed() < patience * 2, "{:?}", begun.elapsed());
    let known = client.region(right.id).unwrap();
    assert_eq!(known.peers.len(), 2, "{known:?}");
    assert!(known.peers.iter().all(|peer| peer.role == Role::Voter), "{known:?}");
    hub.heal_all();
    client.merge(right.id, left.id).unwrap();
    client.put(key(11), "x").unwrap();
    assert_eq!(client.get(key(11)).unwrap().unwrap(), "x");
}

/// Regions with one voter each, on different stores: the source's was to be replaced, which no leader without an heir lets happen.
#[test]
fn regions_with_one_voter_are_merged_across_stores() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new();
    let open = |id: u64| {
        let config = NodeConfig {
            store_id: id,
            cluster: (1..=2).map(|id| (id, format!("node-{id}:1"))).collect(),
            data_dir: dir.path().join(id.to_string()),
            regions: 1,
            replicas: 1,
            segment_bytes: 4 << 20,
            ..NodeConfig::default()
        };
        Node::builder(config).hub(hub.clone()).open().unwrap()
    };
    let nodes: Vec<Node> = (1..=2).map(open).collect();
    let client = nodes[0].client().with_timeout(Duration::from_secs(60)).blocking();
    for i in 0..20 {
        client.put(key(i), i.to_string()).unwrap();
    }
    let cut = client.split([key(10)]).unwrap();
    let (left, right) = (&cut[0], &cut[1]);
    let here = left.peers[0].store;
    client.replace_peer(right.id, here, StoreId(3 - here.0)).unwrap();
    let merged = client.merge(right.id, left.id).unwrap();
    assert_eq!((merged.id, merged.peers.len()), (left.id, 1));
    for i in 0..20 {
        assert_eq!(client.get(key(i)).unwrap().unwrap(), i.to_string());
    }
}

/// Whoever asked for a merge that somebody else had just begun was told that the target had changed, or waited until his time was
/// up for a region that was gone.
#[test]
fn all_who_ask_for_one_merge_are_told_that_it_is_done() {
    const REGIONS: u64 = 10;
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new();
    let nodes: Vec<Node> = (1..=3).map(|id| open_of_three(dir.path(), id, &hub)).collect();
    let operator = nodes[0].client().blocking();
    operator.split((1..REGIONS).map(key).collect::<Vec<_>>()).unwrap();
    for node in &nodes {
        eventually("all regions", || regions_of(node).len() as u64 == REGIONS);
    }
    let patience = Duration::from_secs(100);
    let mut together = 0;
    for turn in 0.. {
        let known = all_regions(&operator);
        if known.len() <= 2 {
            break;
        }
        let (source, target) = next_pair(&known, turn);
        let begun = Instant::now();
        let told = std::thread::scope(|scope| {
            let asked: Vec<_> = (0..6)
                .map(|at| {
                    let client = nodes[at % 3].client().with_timeout(patience).blocking();
                    scope.spawn(move || client.merge(source, target))
                })
                .collect();
            let told = asked.into_iter().map(|asked| asked.join().unwrap());
            told.collect::<Vec<Result<Region, Error>>>()
        });
        for told in &told {
            match told {
                Ok(merged) => assert_eq!(merged.id, target),
                // He had not even looked when it was over.
                Err(Error::RegionNotFound(gone)) => assert_eq!(*gone, source),
                Err(error) => panic!("{source} into {target}: {error}"),
            }
        }
        together += told.iter().filter(|told| told.is_ok()).count().saturating_sub(1);
        assert!(begun.elapsed() < patience / 3, "{:?}", begun.elapsed());
    }
    assert!(together > 8, "{together}");
}
