//! A data directory that was wiped, or put back from an old copy, does not vote as what it was: the others keep it out, also
//! when every node has been restarted since and remembers only what is on its disk. Its place is taken by a new store.

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
}

impl World {
    fn new() -> World {
        World { dir: tempfile::tempdir().unwrap(), addresses: addresses(4) }
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
        // Marked as soon as there is reason to.
        Node::builder(config).mark_every(Duration::from_millis(100)).open().unwrap()
    }

    /// How often store 3 has been opened or marked, as is on record.
    fn starts(&self, client: &catamaran::client::Blocking) -> Option<u64> {
        let stores = client.stores().unwrap_or_default();
        stores.iter().find(|record| record.store == StoreId(3)).map(|record| record.start.number)
    }

    /// The present record is on the disks of stores 1 and 2: one that is announced is kept.
    fn wait_for_record(&self, client: &catamaran::client::Blocking) {
        let version = client.cluster().unwrap().directory.version;
        eventually("the record on every disk", || {
            (1..=2).all(|id| {
                let file = std::fs::read(self.data(id).join("members")).unwrap_or_default();
                // Behind magic, checksum, opening and layout; small enough for one byte.
                file.get(30).is_some_and(|byte| u64::from(*byte) >= version)
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
    let world = World::new();
    let mut nodes: Vec<Node> = (1..=3).map(|id| world.open(id)).collect();
    nodes[0].client().blocking().put("k", "old").unwrap();
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
