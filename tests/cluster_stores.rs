//! Stores on real nodes: they register, are drained under load, leave for good, and a new one joins. Everything is where it
//! should be afterwards, and nothing is lost. The directory knows who leads what, and an idle cluster says nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod cluster;

use catamaran::client::Blocking;
use catamaran::codec::directory::StoreState;
use catamaran::codec::report::RegionInfo;
use catamaran::transport::Hub;
use catamaran::types::{RegionId, Role, StoreId};
use catamaran::{Node, NodeConfig};
use cluster::{eventually, finds, spread_key, work_in_rounds};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Store `id` of a cluster that stores 1 to `founders` have made.
fn config(dir: &Path, id: u64, founders: u64, regions: u64) -> NodeConfig {
    let mut members: BTreeMap<u64, String> =
        (1..=founders).map(|id| (id, format!("node-{id}:1"))).collect();
    let joins = id > founders;
    NodeConfig {
        store_id: id,
        join: if joins { std::mem::take(&mut members) } else { BTreeMap::new() },
        cluster: members,
        listen: if joins { format!("node-{id}:1") } else { String::new() },
        data_dir: dir.join(id.to_string()),
        regions,
        replicas: 3,
        segment_bytes: 4 << 20,
        hibernate_after_ms: 1_000,
        ..NodeConfig::default()
    }
}

fn open(dir: &Path, id: u64, founders: u64, regions: u64, hub: &Hub) -> Node {
    Node::builder(config(dir, id, founders, regions)).hub(hub.clone()).open().unwrap()
}

fn located(client: &Blocking) -> Vec<RegionInfo> {
    client.locate("", 256).unwrap()
}

/// Whether every region has three voters, none of them on `without`, and a leader that is known.
fn settled(client: &Blocking, without: &[u64]) -> bool {
    let good = |info: &RegionInfo| {
        info.leader.is_some()
            && info.region.peers.len() == 3
            && info.region.peers.iter().all(|peer| peer.role == Role::Voter)
            && info.region.peers.iter().all(|peer| !without.contains(&peer.store.0))
    };
    client.locate("", 256).is_ok_and(|infos| infos.iter().all(good))
}

#[test]
fn stores_join_drain_and_leave_under_load() {
    const REGIONS: u64 = 8;
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new();
    let mut nodes: Vec<Node> = (1..=4).map(|id| open(dir.path(), id, 4, REGIONS, &hub)).collect();
    let operator = nodes[0].client().blocking();
    eventually("all stores on record", || operator.stores().is_ok_and(|all| all.len() == 4));
    let stop = AtomicBool::new(false);
    let last = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3u64)
            .map(|at| {
                let client = nodes[at as usize].client().blocking();
                let stop = &stop;
                scope.spawn(move || work_in_rounds(&client, at * 8..(at + 1) * 8, stop))
            })
            .collect();
        // A fifth store joins: it is on record, and holds nothing.
        let fifth = open(dir.path(), 5, 4, REGIONS, &hub);
        eventually("the fifth store", || operator.stores().unwrap().len() == 5);
        assert!(fifth.status().unwrap().is_empty());
        assert_eq!(fifth.client().blocking().get("nothing").unwrap(), None, "it finds its way");
        // Two stores go. One that does not drain cannot be removed, one that is not empty neither.
        let refused = operator.remove_store(StoreId(1)).unwrap_err();
        assert!(refused.to_string().contains("drain it first"), "{refused}");
        operator.drain_store(StoreId(1)).unwrap();
        operator.drain_store(StoreId(4)).unwrap();
        let refused = operator.remove_store(StoreId(4));
        assert!(refused.is_err(), "it still holds replicas");
        let refused = operator.add_learner(RegionId(1), StoreId(4));
        assert!(refused.is_ok() || refused.unwrap_err().to_string().contains("draining"));
        eventually("empty stores", || settled(&operator, &[1, 4]));
        for id in [0, 3] {
            eventually("the last replica", || nodes[id].status().unwrap().is_empty());
        }
        stop.store(true, Ordering::Relaxed);
        let last: Vec<_> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
        nodes.push(fifth);
        last
    });
    // The fourth goes for good. Its id does not come back, with whatever directory.
    eventually("the removal", || operator.remove_store(StoreId(4)).is_ok());
    operator.remove_store(StoreId(4)).unwrap();
    assert!(operator.resume_store(StoreId(4)).is_err());
    // It is cut off while it runs, and nobody listens to it when it comes again.
    let is_cut_off = |node: &Node| {
        let client = node.client().with_timeout(Duration::from_millis(500)).blocking();
        client.get(spread_key(0)).is_err()
    };
    eventually("the fourth store to be cut off", || is_cut_off(&nodes[3]));
    nodes[3].kill();
    let again = open(dir.path(), 4, 4, REGIONS, &hub);
    assert!(is_cut_off(&again));
    let cluster = operator.cluster().unwrap();
    assert_eq!(cluster.directory.stores[&StoreId(4)].state, StoreState::Left);
    assert_eq!((cluster.regions, cluster.remarks), (REGIONS, vec![]));
    // The first one stays after all.
    operator.resume_store(StoreId(1)).unwrap();
    let replicas: u64 = cluster.loads.values().map(|load| load.replicas).sum();
    assert_eq!((replicas, cluster.loads.len()), (3 * REGIONS, 4));
    for at in [0, 1, 2, 4] {
        assert_eq!(nodes[at].health().map(|error| error.to_string()), None);
        let client = nodes[at].client().blocking();
        finds(&client, spread_key, last.iter().flatten());
    }
}

#[test]
fn any_node_knows_the_leaders_and_silence_costs_nothing() {
    const REGIONS: u64 = 12;
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new();
    let mut nodes: Vec<Node> = (1..=4).map(|id| open(dir.path(), id, 4, REGIONS, &hub)).collect();
    let leaders = |nodes: &[Node]| -> BTreeMap<RegionId, StoreId> {
        let led = |node: &Node| {
            let led = node.status().unwrap().into_iter().filter(|status| status.leads);
            led.map(|status| (status.region.id, node.store_id())).collect::<Vec<_>>()
        };
        nodes.iter().flat_map(led).collect()
    };
    let told = |client: &Blocking| -> BTreeMap<RegionId, StoreId> {
        let infos = client.locate("", 256).unwrap_or_default();
        infos.into_iter().filter_map(|info| Some((info.region.id, info.leader?))).collect()
    };
    let agree = |nodes: &[Node], what: &str| {
        eventually(what, || {
            let truth = leaders(nodes);
            truth.len() as u64 == REGIONS
                && nodes.iter().all(|node| told(&node.client().blocking()) == truth)
        });
    };
    agree(&nodes, "every node to know every leader");
    let client = nodes[3].client().blocking();
    client.split([spread_key(3)]).unwrap();
    eventually("the part that was cut off", || located(&client).len() as u64 == REGIONS + 1);
    // Asleep, nobody says anything, and nobody is woken by it.
    let asleep = |nodes: &[Node]| {
        nodes.iter().all(|node| node.status().unwrap().iter().all(|status| status.asleep))
    };
    eventually("all regions to sleep", || asleep(&nodes));
    let said = |nodes: &[Node]| -> Vec<_> { nodes.iter().map(|n| n.stats().directory).collect() };
    let mut before = said(&nodes);
    // Whatever was still to be said. (An idle clerk compares every eight seconds.)
    eventually("silence", || {
        std::thread::sleep(Duration::from_millis(9_000));
        std::mem::replace(&mut before, said(&nodes)) == before
    });
    assert!(asleep(&nodes), "reports do not wake");
    assert_eq!(told(&nodes[1].client().blocking()).len() as u64, REGIONS + 1);
    assert!(asleep(&nodes), "nor do questions");
    // The node that leads region 1 dies: another one reigns and hears everything anew.
    let reigns = told(&client)[&RegionId(1)];
    let at = nodes.iter().position(|node| node.store_id() == reigns).unwrap();
    let dead = nodes.remove(at);
    dead.kill();
    let client = nodes[0].client().blocking();
    for i in 0..64 {
        client.put(spread_key(i), "x").unwrap();
    }
    eventually("the new reign", || {
        let told = told(&client);
        told.len() as u64 == REGIONS + 1 && told.values().all(|leader| *leader != reigns)
    });
    eventually("the loss to be seen", || {
        client.cluster().is_ok_and(|cluster| !cluster.loads[&reigns].reachable)
    });
}

/// Whoever shut down led nothing when it was back, and whoever was there longest led everything.
#[test]
fn a_store_that_was_restarted_leads_its_share_again() {
    const REGIONS: u64 = 30;
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new();
    let mut nodes: Vec<Node> = (1..=3).map(|id| open(dir.path(), id, 3, REGIONS, &hub)).collect();
    let led = |nodes: &[Node]| -> Vec<u64> {
        let led = |node: &Node| node.status().unwrap().iter().filter(|s| s.leads).count() as u64;
        nodes.iter().map(led).collect()
    };
    let alike = |nodes: &[Node]| {
        let led = led(nodes);
        led.iter().sum::<u64>() == REGIONS && led.iter().all(|count| (5..=15).contains(count))
    };
    eventually("a leader of every region", || led(&nodes).iter().sum::<u64>() == REGIONS);
    let client = nodes[2].client().blocking();
    (0..64).for_each(|i| client.put(spread_key(i), i.to_string()).unwrap());
    // All that the first one leads goes to the two others, about alike, and it stays away for a moment.
    eventually("leaders to give away", || alike(&nodes));
    let gave = led(&nodes)[0];
    let before = led(&nodes);
    nodes[0].shutdown().unwrap();
    let after = [0].into_iter().chain(led(&nodes[1..])).collect::<Vec<_>>();
    eprintln!("led {before:?}, then {after:?}");
    assert_eq!(after.iter().sum::<u64>(), REGIONS, "all were handed over");
    let given = [1, 2].map(|at| after[at].saturating_sub(before[at]));
    assert!(given.iter().all(|more| *more >= gave / 5), "of {gave} they were given {given:?}");
    nodes[0] = open(dir.path(), 1, 3, REGIONS, &hub);
    eventually("the first one to lead its share", || led(&nodes)[0] >= 5 && alike(&nodes));
    // That is the end of it: nothing goes to and fro.
    let terms = |nodes: &[Node]| -> u64 {
        nodes.iter().flat_map(|node| node.status().unwrap()).map(|status| status.term).sum()
    };
    let mut before = 0;
    eventually("an end", || {
        std::thread::sleep(Duration::from_secs(3));
        std::mem::replace(&mut before, terms(&nodes)) == terms(&nodes)
    });
    eprintln!("in the end {:?}", led(&nodes));
    assert!(alike(&nodes), "{:?}", led(&nodes));
    (0..64).for_each(|i| assert_eq!(client.get(spread_key(i)).unwrap().unwrap(), i.to_string()));
}

#[test]
fn a_region_short_of_voters_is_mended_and_a_dead_store_can_be_drained() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new();
    let mut nodes: Vec<Node> = (1..=4).map(|id| open(dir.path(), id, 4, 2, &hub)).collect();
    let client = nodes[0].client().blocking();
    client.put("k", "1").unwrap();
    eventually("all stores on record", || client.stores().is_ok_and(|all| all.len() == 4));
    let region = client.region_of("k").unwrap();
    client.remove_peer(region.id, region.peers[2].store).unwrap();
    eventually("the third voter", || settled(&client, &[]));
    // A store dies; draining it moves its replicas to the one that has room.
    let dead = StoreId(3);
    let at = nodes.iter().position(|node| node.store_id() == dead).unwrap();
    nodes.remove(at).kill();
    client.drain_store(dead).unwrap();
    eventually("the dead store to be empty", || settled(&client, &[3]));
    assert_eq!(client.get("k").unwrap().unwrap(), "1");
    eventually("the removal", || client.remove_store(dead).is_ok());
}
