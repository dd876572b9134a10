//! Replicas that are gone stay gone: what a later one takes over from the log of a dead one (nothing), and what becomes
//! of a child that was removed before it was born.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use ::raft::eraftpb::HardState;
use bytes::Bytes;
use catamaran::Error;
use catamaran::codec::admin::{Admin, Child, Split};
use catamaran::env::Disk;
use catamaran::kv::mem::SimTablesDisk;
use catamaran::kv::{Options, StateStore, TableStore, WriteBatch};
use catamaran::log::{self, Entry, Log, LogBatch};
use catamaran::region::apply::{Applier, ApplyOutcome};
use catamaran::region::effects::{Applied, ApplyTask, CommittedEntry, Reply, Waiting};
use catamaran::region::life::{self, Past};
use catamaran::region::machine::KvMachine;
use catamaran::region::storage::{decode_hard_state, encode_hard_state};
use catamaran::sim::disk::SimDisk;
use catamaran::store::Token;
use catamaran::types::*;
use std::path::Path;
use std::sync::Arc;

fn peer(id: u64, store: u64) -> Peer {
    Peer { id: PeerId(id), store: StoreId(store), role: Role::Voter }
}

fn state(id: u64, at: LogPosition) -> RegionState {
    let region = Region {
        id: RegionId(3),
        epoch: Epoch { conf_ver: 1, version: 1 },
        peers: vec![peer(id, 1), peer(100, 2), peer(101, 3)],
        ..Region::default()
    };
    RegionState { region, peer: PeerId(id), applied: at, ..Default::default() }
}

fn open_log(disk: &SimDisk) -> Log {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let options = log::Options { segment_bytes: 16 << 12, spare_segments: 1, ..Default::default() };
    Log::open(disk, Path::new("/log"), options).unwrap().0
}

fn write(log: &Log, batch: LogBatch) {
    log.submit(batch).unwrap();
    log.write_round().unwrap();
}

#[test]
fn a_later_replica_inherits_no_vote_and_no_entry() {
    let disk = SimDisk::new(1);
    let log = open_log(&disk);
    let voted = HardState { term: 9, vote: 100, commit: 7, ..Default::default() };
    let mut batch = LogBatch::new();
    batch.reset(3, INITIAL_POSITION);
    batch.append(3, (6..9).map(|index| Entry { index, term: 9, kind: 0, data: Bytes::new() }));
    batch.set_state(3, encode_hard_state(&voted, PeerId(50)));
    write(&log, batch);
    // The same replica after a restart: its vote holds, its entries stay.
    let position = LogPosition { index: 7, term: 9 };
    let mut batch = LogBatch::new();
    let same = life::agree(&log, &state(50, position), &mut batch);
    assert_eq!((same.past, same.hard_state), (Past::Some, voted));
    assert!(batch.is_empty());
    // One that came later, by a snapshot at the very same position.
    let later = life::agree(&log, &state(60, position), &mut batch);
    assert_eq!((later.past, later.hard_state.vote, later.hard_state.term), (Past::None, 0, 9));
    write(&log, batch);
    assert_eq!((log.truncated(3), log.last_index(3).max(7)), (position, 7));
    let sworn = decode_hard_state(&log.state(3).unwrap()).unwrap();
    assert_eq!((sworn.peer, sworn.hard_state.vote), (Some(PeerId(60)), 0));
}

fn entry(index: u64, admin: &Admin) -> CommittedEntry {
    let position = LogPosition { index, term: 5 };
    CommittedEntry { position, data: admin.encode(), waiting: Waiting::new() }
}

#[test]
fn a_child_removed_before_its_birth_is_not_born_and_leaves_nothing() {
    let tables = Box::new(SimTablesDisk::new().open());
    let kv = TableStore::open(tables, Options::default()).unwrap();
    let ident = StoreIdent { cluster: 1, store: StoreId(1), incarnation: 1 };
    kv.bootstrap(&ident, vec![state(50, INITIAL_POSITION)]).unwrap();
    let mut batch = WriteBatch::new();
    for key in ["a", "b", "m", "z"] {
        batch.put(Bytes::from(key), Bytes::from("v"));
    }
    kv.write(batch).unwrap();
    let shared: Arc<dyn StateStore> = Arc::new(kv.clone());
    let mut applier = Applier::new(shared, Arc::new(KvMachine), Arc::new(SimDisk::new(2)));
    let child = |id: u64, start: &'static str| Child {
        region: RegionId(id),
        start: start.into(),
        peers: vec![PeerId(id + 1), PeerId(id + 2), PeerId(id + 3)],
    };
    let epoch = Epoch { conf_ver: 1, version: 1 };
    let split = Admin::Split(Split { epoch, children: vec![child(10, "m"), child(20, "x")] });
    let later = Epoch { conf_ver: 9, version: 3 };
    let tasks = vec![
        ApplyTask::Destroy { region: RegionId(10), peer: PeerId(11), epoch: later },
        ApplyTask::Entries {
            region: RegionId(3),
            peer: PeerId(50),
            entries: [entry(6, &split)].into_iter().collect(),
        },
    ];
    let mut outcome = ApplyOutcome::default();
    applier.apply(tasks, &mut outcome).unwrap();
    let news = outcome.applied.iter().filter_map(|done| done.news.as_deref());
    let born: Vec<RegionId> = news.flat_map(|news| &news.births).map(|s| s.region.id).collect();
    assert_eq!(born, [RegionId(20)]);
    let view = kv.view().unwrap();
    let there = |key: &str| view.get(key.as_bytes()).unwrap().is_some();
    assert!(there("a") && there("b") && there("z") && !there("m"));
    assert!(view.region(RegionId(10)).is_none());
    let grave = view.record(RegionId(10)).unwrap();
    assert_eq!((grave.peer, grave.region.epoch, grave.is_tombstone()), (PeerId(11), later, true));
    assert_eq!(kv.region_states().len(), 2);
    // A living replica goes with its data, whatever is still on its way to it.
    let removal = ApplyTask::Destroy { region: RegionId(20), peer: PeerId(21), epoch: later };
    let late = Admin::Forget { peers: Vec::new() };
    let late = ApplyTask::Entries {
        region: RegionId(3),
        peer: PeerId(49),
        entries: [entry(7, &late)].into_iter().collect(),
    };
    let mut outcome = ApplyOutcome::default();
    applier.apply(vec![removal, late], &mut outcome).unwrap();
    let destroyed = |done: &Applied| done.news.as_ref().is_some_and(|news| news.destroyed);
    assert!(outcome.applied.iter().all(destroyed), "another replica's entry");
    let view = kv.view().unwrap();
    assert!(view.get(b"z").unwrap().is_none() && view.get(b"a").unwrap().is_some());
    assert_eq!(kv.tombstones().len(), 2);
    // Regions seed 9710: a node restarted, a split was applied again, and its part, which had a log, was buried before its loop had
    // heard of the birth. The loop handed over what the log held, and the node stopped: the region was not known.
    let late = |peer| {
        let late = entry(6, &Admin::Forget { peers: Vec::new() });
        let waiting = [Token(4)].into_iter().collect();
        let entries = [CommittedEntry { waiting, ..late }].into_iter().collect();
        ApplyTask::Entries { region: RegionId(20), peer: PeerId(peer), entries }
    };
    let mut outcome = ApplyOutcome::default();
    applier.apply(vec![late(21)], &mut outcome).unwrap();
    assert!(outcome.applied.is_empty());
    let told = &outcome.replies[..];
    assert!(matches!(told, [(Token(4), Reply::Written(Err(Error::Ambiguous { .. })))]), "{told:?}");
    // Nobody has buried this one: that would be a mistake.
    let unknown = applier.apply(vec![late(22)], &mut ApplyOutcome::default());
    assert!(matches!(unknown, Err(Error::RegionNotFound(RegionId(20)))), "{unknown:?}");
}
