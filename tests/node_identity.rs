//! A data directory that was wiped, or put back from an old copy, does not vote as what it was: the others keep it out, also
//! when every node has been restarted since and remembers only what is on its disk, and when those that were wiped are
//! a majority. Its place is taken by a new store.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use catamaran::types::StoreId;
use catamaran::{Node, NodeConfig};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn addresses(count: u64) -> BTreeMap<u64, String> {
    // Held all at once, so that no two are the same.
    let sockets: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    (1..).zip(&sockets).map(|(id, s)| (id, s.local_addr().unwrap().to_string())).collect()
}

struct World {
    dir: tempfile::TempDir,
    addresses: BTreeMap<u64, String>,
    /// How soon a node that has reason to is marked.
    marks: Duration,
}

impl World {
    fn new() -> World {
        World::marked_every(Duration::from_millis(100))
    }

    fn marked_every(marks: Duration) -> World {
        World { dir: tempfile::tempdir().unwrap(), addresses: addresses(4), marks }
    }

    fn data(&self, id: u64) -> PathBuf {
        self.dir.path().join(id.to_string())
    }

    /// Stores 1 to 3 make the cluster, the fourth joins.
    fn open(&self, id: u64) -> Node {
        let mut cluster = self.addresses.clone();
        cluster.retain(|other, _| *other <= 3);
        let joins = id == 4;
        let config = NodeConfig {
            store_id: id,
            join: if joins { std::mem::take(&mut cluster) } else { BTreeMap::new() },
            cluster,
            listen: if joins { self.addresses[&id].clone() } else { String::new() },
            data_dir: self.data(id),
            regions: 2,
            replicas: 3,
            tick_ms: 20,
            segment_bytes: 4 << 20,
            log_budget_bytes: 64 << 20,
            ..NodeConfig::default()
        };
        Node::builder(config).mark_every(self.marks).open().unwrap()
    }

    /// How often store 3 has been opened or marked, as is on record.
    fn starts(&self, client: &catamaran::client::Blocking) -> Option<u64> {
        let stores = client.stores().unwrap_or_default();
        stores.iter().find(|record| record.store == StoreId(3)).map(|record| record.start.number)
    }

    /// Whether the present opening is known to be on record, as the store's own file says.
    fn counts(&self, id: u64) -> bool {
        let file = std::fs::read(self.data(id).join("members")).unwrap_or_default();
        file.get(28) == Some(&1)
    }

    /// The present record is on the disks of stores 1 and 2: one that is announced is kept.
    fn wait_for_record(&self, client: &catamaran::client::Blocking) {
        let version = client.cluster().unwrap().directory.version;
        eventually("the record on every disk", || {
            (1..=2).all(|id| {
                let file = std::fs::read(self.data(id).join("members")).unwrap_or_default();
                // Behind magic, checksum, opening, three founders and layout; small enough for one byte.
                file.get(29 + 2 + 3 * 9 + 1).is_some_and(|byte| u64::from(*byte) >= version)
            })
        });
    }

    /// All nodes end, and an old copy takes the place of store 3. It has no vote, however often it is started, and what was
    /// written is there.
    fn put_back(&self, nodes: Vec<Node>) {
        nodes.into_iter().for_each(|node| node.kill());
        std::fs::remove_dir_all(self.data(3)).unwrap();
        copy(&self.dir.path().join("copy"), &self.data(3));
        // More often than the directory that it was copied from has ever been.
        (0..6).for_each(|_| self.open(3).kill());
        let old = self.open(3);
        let first = self.open(1);
        has_no_majority(&first);
        assert!(old.status().unwrap().iter().all(|status| !status.leads));
        let second = self.open(2);
        assert_eq!(first.client().blocking().get("k").unwrap().unwrap(), "right");
        drop((old, second));
    }

    /// Whether a node has on its disk where these stores are.
    fn remembers(&self, id: u64, stores: &[u64]) -> bool {
        let file = std::fs::read(self.data(id).join("members")).unwrap_or_default();
        stores.iter().all(|store| {
            let address = self.addresses[store].as_bytes();
            file.windows(address.len()).any(|window| window == address)
        })
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(120), "waited for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// With nobody but itself and one that is kept out, a node gets no majority, however long it tries.
fn has_no_majority(node: &Node) {
    let client = node.client().with_timeout(Duration::from_secs(1)).blocking();
    for i in 0..4 {
        let written = client.put("k", "wrong");
        assert!(written.is_err(), "attempt {i}");
    }
    assert!(node.status().unwrap().iter().all(|status| !status.leads));
}

/// The directory of a node that runs changes under the hand that copies it: a file that was listed is replaced by a rename
/// before it is opened. Such a copy is no copy, and is made anew.
fn copy(from: &Path, to: &Path) {
    eventually("a copy during which nothing was renamed", || {
        let _ = std::fs::remove_dir_all(to);
        match copy_once(from, to) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
            made => made.is_ok() || panic!("{made:?}"),
        }
    });
}

fn copy_once(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_once(&entry.path(), &target)?,
            false => drop(std::fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}

#[test]
fn a_wiped_directory_does_not_vote_and_a_new_store_takes_its_place() {
    let world = World::new();
    let mut nodes: Vec<Node> = (1..=3).map(|id| world.open(id)).collect();
    let client = nodes[0].client().blocking();
    client.put("k", "right").unwrap();
    eventually("the record on every disk", || (1..=3).all(|id| world.remembers(id, &[1, 2, 3])));
    nodes.drain(..).for_each(|node| node.kill());
    std::fs::remove_dir_all(world.data(3)).unwrap();
    let wiped = world.open(3);
    let first = world.open(1);
    has_no_majority(&first);
    assert!(wiped.status().unwrap().iter().all(|status| !status.leads));
    let second = world.open(2);
    let client = first.client().blocking();
    assert_eq!(client.get("k").unwrap().unwrap(), "right");
    // It has to come as somebody else.
    let fourth = world.open(4);
    eventually("the fourth store", || client.stores().is_ok_and(|all| all.len() == 4));
    client.drain_store(StoreId(3)).unwrap();
    eventually("the new replicas", || {
        fourth.status().is_ok_and(|all| all.len() == 2)
            && client.locate("", 9).is_ok_and(|infos| {
                infos.iter().all(|info| info.region.peer_on(StoreId(3)).is_none())
            })
    });
    eventually("the removal", || client.remove_store(StoreId(3)).is_ok());
    wiped.kill();
    second.kill();
    let client = fourth.client().blocking();
    assert_eq!(client.get("k").unwrap().unwrap(), "right", "with a majority of 1 and 4");
    // The fourth finds the others by what it remembers.
    fourth.kill();
    let fourth = world.open(4);
    assert_eq!(fourth.client().blocking().get("k").unwrap().unwrap(), "right");
}

#[test]
fn an_old_copy_of_a_directory_does_not_vote() {
    // A mark counts as a start, and on a slow machine there was one before the shutdown: then no second start was ever seen.
    let world = World::marked_every(Duration::from_secs(3600));
    let mut nodes: Vec<Node> = (1..=3).map(|id| world.open(id)).collect();
    nodes[0].client().blocking().put("k", "old").unwrap();
    // An opening that its node does not know to be on record is opened once more, as the same: there would be no second.
    eventually("the first start to count", || world.counts(3));
    let third = nodes.pop().unwrap();
    third.shutdown().unwrap();
    copy(&world.data(3), &world.dir.path().join("copy"));
    let third = world.open(3);
    let client = nodes[0].client().blocking();
    client.put("k", "right").unwrap();
    // The copy says that it was opened once. The next is its second opening, but not the one that is on record.
    eventually("the second start on record", || world.starts(&client) == Some(2));
    world.wait_for_record(&client);
    nodes.push(third);
    world.put_back(nodes);
}

/// Nodes run for months, and copies are made of their directories meanwhile. What is put back has been opened as often as
/// the others remember; the marks tell that it is older.
#[test]
fn a_copy_from_the_middle_of_a_run_does_not_vote() {
    let world = World::new();
    let nodes: Vec<Node> = (1..=3).map(|id| world.open(id)).collect();
    let client = nodes[0].client().blocking();
    client.put("k", "old").unwrap();
    eventually("the third store on record", || world.starts(&client) == Some(1));
    nodes[2].flush().unwrap();
    copy(&world.data(3), &world.dir.path().join("copy"));
    client.put("k", "right").unwrap();
    for i in 0..200 {
        client.put(format!("{i}"), "something").unwrap();
    }
    eventually("a mark on record", || world.starts(&client) > Some(1));
    world.wait_for_record(&client);
    world.put_back(nodes);
}

/// A store that was struck off kept the connections that it had, and could go on asking and being asked. They are closed, and
/// it is let in no more.
#[test]
fn a_store_that_has_left_is_cut_off() {
    let world = World::new();
    let nodes: Vec<Node> = (1..=4).map(|id| world.open(id)).collect();
    let connections =
        || -> Vec<u64> { nodes.iter().map(|n| n.stats().transport.connections).collect() };
    let client = nodes[0].client().blocking();
    client.put("k", "right").unwrap();
    eventually("everybody with everybody", || connections() == [3; 4]);
    let asks = nodes[3].client().with_timeout(Duration::from_secs(1)).blocking();
    assert_eq!(asks.get("k").unwrap().unwrap(), "right");
    eventually("the fourth store", || client.stores().is_ok_and(|all| all.len() == 4));
    client.drain_store(StoreId(4)).unwrap();
    eventually("the removal", || client.remove_store(StoreId(4)).is_ok());
    eventually("its connections to be closed", || connections() == [2, 2, 2, 0]);
    assert!(asks.get("k").is_err());
    // It tries, and is refused.
    let refused = || nodes[0].stats().transport.refused_connections;
    let before = refused();
    eventually("its next attempts", || refused() > before + 1);
    assert_eq!(connections(), [2, 2, 2, 0]);
    assert_eq!(client.get("k").unwrap().unwrap(), "right");
}

/// Two of three founders lose their directories at once and come back empty. By the first layout they would be a majority, which
/// knows nothing: they elected each other, and served an empty cluster. Now each waits until the third founds with it,
/// which it never does, in whatever order they start; and with the lost directories back, everything is there.
#[test]
fn two_wiped_founders_are_no_majority() {
    let world = World::new();
    let all = || -> Vec<Node> { (1..=3).map(|id| world.open(id)).collect() };
    // Not waited for: that anybody is on record.
    let mut nodes = all();
    nodes[0].client().blocking().put("k", "right").unwrap();
    let aside = |id: u64| world.dir.path().join(format!("aside-{id}"));
    let orders = [[1, 2, 3], [1, 3, 2], [2, 1, 3], [3, 1, 2], [2, 3, 1], [3, 2, 1]];
    for order in orders {
        nodes.drain(..).for_each(|node| node.kill());
        for id in [2, 3] {
            std::fs::rename(world.data(id), aside(id)).unwrap();
        }
        nodes.extend(order.map(|id| world.open(id)));
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            for node in &nodes {
                let client = node.client().with_timeout(Duration::from_millis(100)).blocking();
                assert!(client.put("k", "wrong").is_err(), "{order:?}");
                assert!(client.get("k").is_err(), "{order:?}");
                let status = node.status().unwrap_or_default();
                assert!(status.iter().all(|status| !status.leads), "{order:?}");
                assert!(node.store_id() == StoreId(1) || status.is_empty(), "{order:?}");
            }
        }
        nodes.drain(..).for_each(|node| node.kill());
        for id in [2, 3] {
            std::fs::remove_dir_all(world.data(id)).unwrap();
            std::fs::rename(aside(id), world.data(id)).unwrap();
        }
        nodes.extend(all());
        assert_eq!(nodes[2].client().blocking().get("k").unwrap().unwrap(), "right", "{order:?}");
    }
}

/// A cluster is founded when all its founders have met, however long it takes them to come, and although one was started
/// again meanwhile. From then on a majority is enough.
#[test]
fn founders_may_come_one_after_the_other() {
    let world = World::new();
    let cannot = |node: &Node| {
        let client = node.client().with_timeout(Duration::from_millis(700)).blocking();
        assert!(client.put("k", "early").is_err());
        assert!(node.status().unwrap().is_empty());
    };
    let second = world.open(2);
    cannot(&second);
    let first = world.open(1);
    cannot(&first);
    cannot(&second);
    first.kill();
    cannot(&second);
    let third = world.open(3);
    cannot(&third);
    let first = world.open(1);
    third.client().blocking().put("k", "right").unwrap();
    eventually("all replicas", || {
        [&first, &second, &third].iter().all(|node| node.status().unwrap().len() == 2)
    });
    for node in [first, second, third] {
        node.kill();
    }
    let nodes = [world.open(3), world.open(2)];
    assert_eq!(nodes[0].client().blocking().get("k").unwrap().unwrap(), "right");
}

/// A founder that is wiped before the others have come is met anew by those that were not there yet, and by the others after they
/// have been started again.
#[test]
fn a_founder_may_begin_again_before_the_others_have_met_it() {
    let world = World::new();
    world.open(1).kill();
    std::fs::remove_dir_all(world.data(1)).unwrap();
    let nodes: Vec<Node> = (1..=3).map(|id| world.open(id)).collect();
    nodes[1].client().blocking().put("k", "right").unwrap();
    // Somebody's configuration makes a founder of one that has nothing to do with it.
    let mut cluster = world.addresses.clone();
    cluster.retain(|other, _| *other != 2);
    let stranger = NodeConfig {
        store_id: 4,
        cluster,
        data_dir: world.data(4),
        tick_ms: 20,
        segment_bytes: 4 << 20,
        ..NodeConfig::default()
    };
    let stranger = Node::open(stranger).unwrap();
    eventually("the stranger's end", || {
        stranger.health().is_some_and(|why| why.to_string().contains("let it join"))
    });
}
