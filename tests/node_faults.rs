//! Whole nodes on bad disks: full, failing to sync, rotting. What was acknowledged stays, callers get
//! typed errors, and nobody is told anything wrong.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod bad_disk;

use bad_disk::{BadDisk, Mount};
use catamaran::client::Blocking;
use catamaran::env::Disk;
use catamaran::env::os::OsDisk;
use catamaran::kv::Direction;
use catamaran::log::inspect::{Inspector, OpView, RecordView};
use catamaran::store::ReadLevel;
use catamaran::transport::Hub;
use catamaran::types::{KeyRange, RegionId};
use catamaran::{Error, Node, NodeConfig, Outcome, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

const FRESH: [ReadLevel; 2] = [ReadLevel::Lease, ReadLevel::Linearizable];

fn config(dir: &Path) -> NodeConfig {
    NodeConfig {
        data_dir: dir.join("data"),
        regions: 4,
        tick_ms: 10,
        segment_bytes: 64 << 10,
        log_budget_bytes: 256 << 20,
        ..NodeConfig::default()
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Every region that is not fenced has a leader here.
fn settle(node: &Node) {
    eventually("leaders", || {
        node.status().unwrap().iter().all(|region| region.leads || region.quarantined.is_some())
    });
}

/// A key in a region of four, from 1.
fn key(region: u64, i: u64) -> Vec<u8> {
    [&[(region - 1) as u8 * 64 + 1][..], format!("key {i}").as_bytes()].concat()
}

/// Long, and found nowhere else in a log.
fn value(region: u64, i: u64) -> Vec<u8> {
    format!("<value {region}/{i}>").repeat(64).into_bytes()
}

fn patient(node: &Node, ms: u64) -> Blocking {
    node.client().with_timeout(Duration::from_millis(ms)).blocking()
}

/// What clients were told.
#[derive(Default)]
struct Ledger {
    acked: BTreeMap<Vec<u8>, Vec<u8>>,
    /// May be there or not.
    unknown: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Must not be there.
    refused: Vec<Vec<u8>>,
    next: u64,
}

impl Ledger {
    /// Writes a new key, keeps what was answered.
    fn put(&mut self, client: &Blocking) -> Result<()> {
        self.next += 1;
        let region = 1 + self.next % 4;
        let (key, value) = (key(region, self.next), value(region, self.next));
        let result = client.put(&key, &value);
        self.note(key, value, &result);
        result
    }

    fn note(&mut self, key: Vec<u8>, value: Vec<u8>, result: &Result<()>) {
        match result {
            Ok(()) => drop(self.acked.insert(key, value)),
            Err(error) if error.outcome() == Outcome::Unknown => {
                self.unknown.insert(key, value);
            }
            Err(_) => self.refused.push(key),
        }
    }

    /// Compares with everything that the node holds.
    fn check(&self, client: &Blocking) {
        let rows = client.scan(KeyRange::all(), Direction::Forward, ReadLevel::Linearizable);
        let rows: BTreeMap<Vec<u8>, Vec<u8>> =
            rows.map(|row| row.unwrap()).map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
        for (key, value) in &self.acked {
            assert!(rows.get(key) == Some(value), "an acknowledged write is lost or wrong");
        }
        for key in &self.refused {
            assert!(!rows.contains_key(key), "a refused write was applied");
        }
        for (key, value) in &rows {
            let written = self.acked.get(key).or(self.unknown.get(key));
            assert!(written == Some(value), "a value that nobody wrote");
        }
    }
}

#[test]
fn a_full_disk_refuses_writes_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let disk = BadDisk::new();
    let node = Node::builder(config(dir.path())).disk(Arc::new(disk.clone())).open().unwrap();
    settle(&node);
    let mut ledger = Ledger::default();
    for _ in 0..8 {
        ledger.put(&patient(&node, 20_000)).unwrap();
    }
    eventually("spare segments", || node.stats().log.spares == 2);
    for round in 0..2 {
        // Not a byte more than there is: what is left is the active segment and the spares.
        disk.set_budget(disk.used());
        let client = patient(&node, 400);
        let (mut full, mut unknown) = (0, 0);
        for _ in 0..300 {
            match ledger.put(&client) {
                Ok(()) => {}
                Err(Error::DiskFull { .. } | Error::Busy { .. }) => full += 1,
                Err(error) if error.outcome() == Outcome::Unknown => {
                    assert!(
                        matches!(error, Error::Timeout { .. } | Error::Ambiguous { .. }),
                        "{error}"
                    );
                    unknown += 1;
                }
                Err(error) => panic!("{error}"),
            }
            if full == 3 {
                break;
            }
        }
        eprintln!("round {round}: {full} refused, {unknown} unknown, {} acked", ledger.acked.len());
        assert_eq!(full, 3, "the disk was never full");
        assert!(unknown <= 30, "{unknown} callers do not know: new writes must be refused");
        assert!(disk.refused() > 0);

        // Reads go on, and the node is well, for as long as it lasts.
        let until = Instant::now() + Duration::from_millis(1_000);
        while Instant::now() < until {
            for (key, value) in &ledger.acked {
                for level in FRESH {
                    let found = patient(&node, 20_000).get_at(key.clone(), level).unwrap();
                    assert!(found.as_deref() == Some(value), "{level:?}");
                }
            }
        }
        assert!(node.health().is_none(), "{:?}", node.health());
        assert!(node.status().unwrap().iter().all(|region| region.leads));
        // A purge may have freed a segment meanwhile, or one write more may have been let in.
        eventually("the disk to be full again", || match ledger.put(&client) {
            Err(Error::DiskFull { .. }) => true,
            Ok(()) | Err(Error::Busy { .. } | Error::Timeout { .. }) => false,
            Err(error) => panic!("{error}"),
        });

        // Room again: without a restart.
        disk.set_budget(u64::MAX);
        let roomy = Instant::now();
        ledger.put(&patient(&node, 20_000)).unwrap();
        eprintln!("round {round}: writable again after {:?}", roomy.elapsed());
        for _ in 0..40 {
            ledger.put(&patient(&node, 20_000)).unwrap();
        }
        ledger.check(&patient(&node, 20_000));
    }
    node.kill();
    let node = Node::builder(config(dir.path())).disk(Arc::new(disk)).open().unwrap();
    ledger.check(&patient(&node, 20_000));
    node.shutdown().unwrap();
}

/// Log and tables on a file system that somebody else fills up, the real `ENOSPC` from everywhere.
#[test]
fn a_full_file_system_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mount) = Mount::new(dir.path().join("small"), "12m") else {
        return;
    };
    let config = NodeConfig {
        segment_bytes: 256 << 10,
        memtable_bytes: 64 << 10,
        flush_interval_ms: 100,
        ..config(&mount.0)
    };
    let ballast = mount.0.join("ballast");
    let mut node = Node::open(config.clone()).unwrap();
    settle(&node);
    let mut ledger = Ledger::default();
    for round in 0..3 {
        for _ in 0..150 {
            ledger.put(&patient(&node, 20_000)).unwrap();
        }
        let mut zeros = std::io::Read::take(std::io::repeat(0), 64 << 20);
        let full = std::io::copy(&mut zeros, &mut std::fs::File::create(&ballast).unwrap());
        assert!(full.is_err(), "12 MiB take no 64");
        let client = patient(&node, 300);
        let start = Instant::now();
        let mut refused = 0;
        // On a slow disk it takes a while until the log is crowded.
        let full_for = Duration::from_secs(2);
        let patience = Duration::from_secs(60);
        while start.elapsed() < full_for || (refused == 0 && start.elapsed() < patience) {
            match ledger.put(&client) {
                Ok(()) | Err(Error::Busy { .. }) => {}
                Err(Error::DiskFull { .. }) => refused += 1,
                Err(error) => assert!(error.outcome() == Outcome::Unknown, "{error}"),
            }
        }
        assert!(refused > 0, "the disk was never full");
        ledger.check(&patient(&node, 20_000));
        assert!(node.health().is_none(), "{:?}", node.health());
        let flush = node.flush();
        assert!(matches!(flush, Ok(()) | Err(Error::DiskFull { .. })), "{flush:?}");

        std::fs::remove_file(&ballast).unwrap();
        let roomy = Instant::now();
        ledger.put(&patient(&node, 20_000)).unwrap();
        eprintln!("round {round}: {refused} refused, writable again after {:?}", roomy.elapsed());
        node.flush().unwrap();
        ledger.check(&patient(&node, 20_000));
        node.kill();
        node = Node::open(config.clone()).unwrap();
        settle(&node);
        ledger.check(&patient(&node, 20_000));
    }
    node.shutdown().unwrap();
}

/// The leaders go on sending to a follower that has no room, up to their windows: more than its log takes
/// into its queue.
#[test]
fn a_follower_without_room_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new();
    let config = |id: u64| NodeConfig {
        store_id: id,
        cluster: (1..=3).map(|id| (id, format!("hub:{id}"))).collect(),
        tick_ms: 20,
        segment_bytes: 8 << 20,
        ..config(&dir.path().join(id.to_string()))
    };
    let disk = BadDisk::new();
    let nodes: Vec<Node> = (1..=3)
        .map(|id| {
            let builder = Node::builder(config(id)).hub(hub.clone());
            let builder = if id == 3 { builder.disk(Arc::new(disk.clone())) } else { builder };
            builder.open().unwrap()
        })
        .collect();
    let client = patient(&nodes[0], 20_000);
    for region in 1..=4 {
        client.put(key(region, 0), value(region, 0)).unwrap();
    }
    eventually("spare segments", || nodes[2].stats().log.spares == 2);
    for region in 1..=4 {
        let led = |n: &Node| n.status().unwrap().iter().any(|s| s.region.id.0 == region && s.leads);
        eventually("leaders elsewhere", || {
            if led(&nodes[2]) {
                let _ = nodes[2].transfer_leader(RegionId(region), None);
            }
            led(&nodes[0]) || led(&nodes[1])
        });
    }
    disk.set_budget(disk.used());
    let large = |i: u64| vec![i as u8; 512 << 10];
    for i in 1..=60 {
        for region in 1..=4 {
            client.put(key(region, i), large(i)).unwrap();
        }
    }
    let pending = nodes[2].stats().log.pending_bytes;
    eprintln!("{pending} bytes wait for the full disk; {:?}", nodes[2].health());
    assert!(disk.refused() > 0);
    assert!(nodes[2].health().is_none(), "{:?}", nodes[2].health());
    disk.set_budget(u64::MAX);
    eventually("the follower to catch up", || {
        let applied = |node: &Node| -> Vec<u64> {
            node.status().unwrap().iter().map(|region| region.applied).collect()
        };
        applied(&nodes[2]) == applied(&nodes[0])
    });
    assert!(nodes[2].health().is_none(), "{:?}", nodes[2].health());
    nodes.iter().for_each(Node::kill);
}

#[test]
fn a_failed_sync_stops_the_node() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let disk = BadDisk::new();
        let node = Node::builder(config(dir.path())).disk(Arc::new(disk.clone())).open().unwrap();
        settle(&node);
        let ledgers: Vec<Ledger> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4u64)
                .map(|writer| {
                    let client = patient(&node, 20_000);
                    scope.spawn(move || {
                        let next = (round * 4 + writer) * 1_000_000;
                        let mut ledger = Ledger { next, ..Ledger::default() };
                        while ledger.put(&client).is_ok() {}
                        ledger
                    })
                })
                .collect();
            std::thread::sleep(Duration::from_millis(60));
            disk.fail_next_sync();
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        eventually("the node to stop", || node.health().is_some());
        let failed = disk.failed().unwrap();
        let Some(Error::Stopped { reason }) = node.health() else { panic!("{:?}", node.health()) };
        assert!(reason.contains("sync") && reason.contains("error 5"), "{reason}");
        assert!(reason.contains(failed.to_str().unwrap()), "{reason}");

        let client = patient(&node, 20_000);
        let stopped = |error: Error| assert!(matches!(error, Error::Stopped { .. }), "{error}");
        stopped(client.put("k", "v").unwrap_err());
        for level in FRESH {
            stopped(client.get_at(key(1, 1), level).unwrap_err());
        }
        stopped(client.get_at(key(1, 1), ReadLevel::Stale { max: Duration::MAX }).unwrap_err());
        stopped(client.status().map(|_| ()).unwrap_err());
        stopped(node.status().map(|_| ()).unwrap_err());
        stopped(node.transfer_leader(RegionId(1), None).unwrap_err());
        node.shutdown().unwrap();

        // On a sound disk again.
        let node = Node::open(config(dir.path())).unwrap();
        settle(&node);
        let (acked, unknown) = ledgers.iter().fold((0, 0), |(acked, unknown), ledger| {
            (acked + ledger.acked.len(), unknown + ledger.unknown.len())
        });
        eprintln!("round {round}: {acked} acked, {unknown} unknown; {reason}");
        assert!(acked > 0 && unknown <= 4);
        let mut whole = Ledger::default();
        for ledger in ledgers {
            whole.acked.extend(ledger.acked);
            whole.unknown.extend(ledger.unknown);
            whole.refused.extend(ledger.refused);
        }
        whole.check(&patient(&node, 20_000));
        patient(&node, 20_000).delete_range(KeyRange::all()).unwrap();
        node.shutdown().unwrap();
    }
}

/// Where `needle` stands in the segments of a log, once.
fn find(log: &Path, needle: &[u8]) -> (PathBuf, u64) {
    let mut found = Vec::new();
    for name in OsDisk.list(log).unwrap() {
        let path = log.join(name);
        if path.extension().is_some_and(|extension| extension == "seg") {
            let bytes = std::fs::read(&path).unwrap();
            let places = bytes.windows(needle.len()).enumerate();
            let places = places.filter(|(_, window)| *window == needle);
            found.extend(places.map(|(at, _)| (path.clone(), at as u64)));
        }
    }
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// Flips one bit of a byte; again, and it is as it was.
fn flip(path: &Path, at: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

/// Writes ten values to each of four regions and stops as a crash would, nothing flushed, everything stated
/// durable.
fn fill_and_kill(node: &Node) {
    settle(node);
    for i in 0..10 {
        for region in 1..=4 {
            patient(node, 5_000).put(key(region, i), value(region, i)).unwrap();
        }
    }
    assert!(node.status().unwrap().iter().all(|region| region.flushed <= 5));
    // A quiet log states on the disk that all of it is durable.
    std::thread::sleep(Duration::from_millis(500));
    node.kill();
}

#[test]
fn rot_in_an_entry_fences_off_its_region() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    fill_and_kill(&Node::open(config.clone()).unwrap());
    let (path, at) = find(&config.data_dir.join("log"), &value(2, 4));
    flip(&path, at + 333);

    // Again and again: it neither spreads nor is forgotten, whether the state was flushed meanwhile or not.
    for round in 0..3 {
        let node = Node::open(config.clone()).unwrap();
        settle(&node);
        for status in node.status().unwrap() {
            let fenced = status.region.id == RegionId(2);
            assert_eq!(status.quarantined.is_some(), fenced, "{status:?}");
        }
        let client = patient(&node, 20_000);
        // What is fenced is asked for again until the caller's time is up: another replica may take it.
        let hasty = patient(&node, 2_000);
        let quarantined = |error: Error| {
            let ours =
                matches!(&error, Error::Quarantined { region, .. } if *region == RegionId(2));
            assert!(ours, "{error}");
        };
        for i in 0..10 {
            if i == 0 {
                quarantined(hasty.put(key(2, i), "new").unwrap_err());
                for level in FRESH {
                    quarantined(hasty.get_at(key(2, i), level).unwrap_err());
                }
            }
            for region in [1, 3, 4] {
                let found = client.get(key(region, i)).unwrap();
                assert!(found.as_deref() == Some(&value(region, i)[..]));
                client.put(key(region, 100 + i), value(region, 100 + i)).unwrap();
            }
        }
        let whole = hasty.scan(KeyRange::all(), Direction::Forward, ReadLevel::Linearizable);
        let mut rows = 0;
        let mut errors: Vec<Error> = whole
            .filter_map(|row| match row {
                Ok((key, _)) => {
                    assert_eq!(key[0], 1, "nothing of what lies behind the gap");
                    rows += 1;
                    None
                }
                Err(error) => Some(error),
            })
            .collect();
        assert_eq!((rows, errors.len()), (20, 1));
        quarantined(errors.remove(0));
        assert!(node.health().is_none(), "{:?}", node.health());
        match round {
            0 => node.kill(),
            _ => node.shutdown().unwrap(),
        }
    }
}

/// Neither a replica that is fenced off nor one that has yet to replay its log knows how fresh it is.
#[test]
fn a_replica_that_was_never_fresh_serves_no_stale_reads() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    fill_and_kill(&Node::open(config.clone()).unwrap());
    let (path, at) = find(&config.data_dir.join("log"), &value(2, 4));
    flip(&path, at + 333);
    let node = Node::open(config).unwrap();
    let client = patient(&node, 20_000);
    for max in [Duration::from_secs(60), Duration::MAX] {
        let level = ReadLevel::Stale { max };
        let found = client.get_at(key(1, 3), level).unwrap();
        assert!(found.as_deref() == Some(&value(1, 3)[..]), "acknowledged before the restart");
        let found = patient(&node, 2_000).get_at(key(2, 3), level);
        assert!(matches!(found, Err(Error::Quarantined { .. })), "{found:?}");
    }
    node.kill();
}

#[test]
fn rot_on_one_of_three_nodes_is_not_noticed_by_callers() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::new();
    let config = |id: u64| NodeConfig {
        store_id: id,
        cluster: (1..=3).map(|id| (id, format!("hub:{id}"))).collect(),
        tick_ms: 20,
        ..config(&dir.path().join(id.to_string()))
    };
    let open = |id| Node::builder(config(id)).hub(hub.clone()).open().unwrap();
    let nodes: Vec<Node> = (1..=3).map(open).collect();
    let client = patient(&nodes[0], 20_000);
    for i in 0..10 {
        for region in 1..=4 {
            client.put(key(region, i), value(region, i)).unwrap();
        }
    }
    eventually("replication", || {
        let applied = |node: &Node| -> Vec<u64> {
            node.status().unwrap().iter().map(|region| region.applied).collect()
        };
        let first = applied(&nodes[0]);
        nodes.iter().all(|node| applied(node) == first)
    });
    std::thread::sleep(Duration::from_millis(500));
    nodes.iter().for_each(Node::kill);
    drop(nodes);
    let (path, at) = find(&config(2).data_dir.join("log"), &value(3, 7));
    flip(&path, at + 5);

    let nodes: Vec<Node> = (1..=3).map(open).collect();
    for node in &nodes {
        let client = patient(node, 10_000);
        for i in 0..10 {
            for region in 1..=4 {
                for level in FRESH {
                    let found = client.get_at(key(region, i), level).unwrap();
                    assert!(found.as_deref() == Some(&value(region, i)[..]), "{level:?}");
                }
            }
            let new = 100 * node.store_id().0 + i;
            client.put(key(3, new), value(3, new)).unwrap();
        }
    }
    for node in &nodes {
        for status in node.status().unwrap() {
            let rotten = (node.store_id().0, status.region.id) == (2, RegionId(3));
            assert_eq!(status.quarantined.is_some(), rotten, "{status:?}");
            assert!(!(rotten && status.leads));
        }
    }
    nodes.iter().for_each(Node::kill);
}

/// Opens with one more byte damaged, looks at who is fenced off, and mends it again.
fn fenced_by(config: &NodeConfig, path: &Path, at: u64) -> Vec<u64> {
    flip(path, at);
    let node = Node::open(config.clone()).unwrap();
    settle(&node);
    let mut status = node.status().unwrap();
    status.retain(|region| region.quarantined.is_some());
    let fenced: Vec<u64> = status.iter().map(|region| region.region.id.0).collect();
    for region in (1..=4).filter(|region| !fenced.contains(region)) {
        for i in 0..10 {
            let found = patient(&node, 20_000).get(key(region, i)).unwrap();
            assert!(found.as_deref() == Some(&value(region, i)[..]));
        }
    }
    node.kill();
    flip(path, at);
    fenced
}

#[test]
fn rot_in_a_header_or_directory_fences_off_its_regions() {
    let dir = tempfile::tempdir().unwrap();
    // One segment: a full one would have a footer, which knows it all.
    let config = NodeConfig { segment_bytes: 4 << 20, ..config(dir.path()) };
    fill_and_kill(&Node::open(config.clone()).unwrap());
    let log = config.data_dir.join("log");
    let (path, body) = find(&log, &value(2, 4));
    let holds = |r: &RecordView| r.path == path && (r.offset..r.offset + r.len).contains(&body);
    let records = Inspector::open(&OsDisk, &log).unwrap().records().collect::<Result<Vec<_>>>();
    let records = records.unwrap();
    let which = records.iter().position(holds).unwrap();
    let record = &records[which];
    let group_of = |op: &OpView| match op {
        OpView::Append { group, .. } | OpView::State { group, .. } => *group,
        other => panic!("{other:?}"),
    };
    let mut speaks_of: Vec<u64> = record.ops.iter().map(group_of).collect();
    speaks_of.dedup();
    assert!(speaks_of.contains(&2) && speaks_of.len() < 4, "{speaks_of:?}");
    // The group after it repeats its header, and tells whose the directory was.
    for at in [0, 5, 9, 17, 25, 33, 38, 41, 46] {
        assert_eq!(fenced_by(&config, &record.path, record.offset + at), [0; 0], "at {at}");
    }
    for at in [48, 51, 59] {
        assert_eq!(fenced_by(&config, &record.path, record.offset + at), speaks_of, "at {at}");
    }
    // Without the repetition it cannot be told whose it was: better no node than one that forgot.
    let next = records[which + 1..].iter().find(|r| r.offset.is_multiple_of(4096)).unwrap();
    let damage = || {
        flip(&record.path, record.offset + 50);
        flip(&next.path, next.offset + next.len - 1);
    };
    damage();
    match Node::open(config.clone()) {
        Err(Error::Corruption { path, offset, .. }) => {
            assert_eq!((&path, offset), (&record.path, record.offset + 48));
        }
        other => panic!("nobody knows whose record that was: {:?}", other.map(drop)),
    }
    damage();
    // Refusing changed nothing.
    assert_eq!(fenced_by(&config, &record.path, 4000), [0; 0]);
}
