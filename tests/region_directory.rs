//! The record of the stores is a replicated state: whatever changes are asked for, every replica of region 1 comes to the same
//! record, whatever it was restarted by (a crash, its flushed cut, a snapshot) on the way; and the rules hold at every step.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use catamaran::codec::admin::Admin;
use catamaran::codec::directory::{Directory, StoreChange, StoreRecord, StoreState};
use catamaran::codec::region::{decode_head, encode_head};
use catamaran::kv::mem::SimTablesDisk;
use catamaran::kv::{Options, StateStore, TableStore};
use catamaran::region::apply::{Applier, ApplyOutcome};
use catamaran::region::effects::{ApplyTask, CommittedEntry, Waiting};
use catamaran::region::machine::KvMachine;
use catamaran::sim::disk::SimDisk;
use catamaran::types::*;
use proptest::prelude::*;
use std::sync::Arc;

const PEER: PeerId = PeerId(1);

/// A replica of region 1.
struct Replica {
    tables: SimTablesDisk,
    kv: TableStore,
    applier: Applier,
}

fn applier(kv: &TableStore) -> Applier {
    let shared: Arc<dyn StateStore> = Arc::new(kv.clone());
    Applier::new(shared, Arc::new(KvMachine), Arc::new(SimDisk::new(1)))
}

impl Replica {
    fn new(state: RegionState) -> Replica {
        let tables = SimTablesDisk::new();
        let kv = TableStore::open(Box::new(tables.open()), Options::default()).unwrap();
        let ident = StoreIdent { cluster: 1, store: StoreId(1), incarnation: 1 };
        kv.bootstrap(&ident, vec![state]).unwrap();
        let applier = applier(&kv);
        Replica { tables, kv, applier }
    }

    fn state(&self) -> RegionState {
        self.kv.view().unwrap().region(FIRST_REGION).unwrap()
    }

    /// Applies what of the log is not applied yet.
    fn catch_up(&mut self, log: &[Admin]) {
        let at = |index: usize| LogPosition { index: index as u64, term: 5 };
        let entries = log.iter().enumerate().map(|(i, admin)| CommittedEntry {
            position: at(i + 6),
            data: admin.encode(),
            waiting: Waiting::new(),
        });
        let task =
            ApplyTask::Entries { region: FIRST_REGION, peer: PEER, entries: entries.collect() };
        self.applier.apply(vec![task], &mut ApplyOutcome::default()).unwrap();
    }

    fn flush(&self) {
        if let Some(flush) = self.kv.freeze().unwrap() {
            flush.run().unwrap();
        }
    }

    /// What was not flushed is gone.
    fn crash(&mut self) {
        self.tables.crash();
        self.kv = TableStore::open(Box::new(self.tables.open()), Options::default()).unwrap();
        self.applier = applier(&self.kv);
    }
}

fn first() -> RegionState {
    let peer = Peer { id: PEER, store: StoreId(1), role: Role::Voter };
    let region = Region {
        id: FIRST_REGION,
        epoch: Epoch { conf_ver: 1, version: 1 },
        peers: vec![peer],
        ..Region::default()
    };
    let (applied, compacted) = (INITIAL_POSITION, INITIAL_POSITION);
    RegionState { region, peer: PEER, applied, compacted, ..Default::default() }
}

fn change() -> impl Strategy<Value = Admin> {
    let store = || (1u64..5).prop_map(StoreId);
    let register =
        (store(), 1u64..3, 1u64..4, 0u64..2).prop_map(|(store, incarnation, number, life)| {
            let (start, address) = (Start { number, life }, format!("{store}:{number}"));
            let record = StoreRecord { store, incarnation, start, address, ..Default::default() };
            StoreChange::Register { record, replicas: number % 3 }
        });
    prop_oneof![
        4 => register,
        2 => store().prop_map(StoreChange::Drain),
        1 => store().prop_map(StoreChange::Resume),
        1 => store().prop_map(StoreChange::Leave),
    ]
    .prop_map(Admin::Stores)
}

/// What may become of a record, and what never does.
fn follows(before: &Directory, after: &Directory) {
    assert!(after.version >= before.version);
    assert!(before.replicas == 0 || before.replicas == after.replicas);
    for (store, old) in &before.stores {
        let new = &after.stores[store];
        assert_eq!(new.incarnation, old.incarnation, "an id is one directory's");
        assert!(new.start.number >= old.start.number, "openings only grow");
        if old.state == StoreState::Left {
            assert_eq!(new, old, "gone for good");
        }
        if new.state == StoreState::Left {
            assert_ne!(old.state, StoreState::Up, "who leaves has drained");
        }
    }
    if before.version == after.version {
        assert_eq!(before, after);
    }
}

/// Ids do not come back. One request for nearly all there are was granted, by every replica alike: from then on no region could be
/// cut and none could get another replica, for ever.
#[test]
fn nobody_takes_all_ids() {
    let mut replica = Replica::new(first());
    let ask = |count| Admin::Allocate { count };
    replica.catch_up(&[ask(9)]);
    let before = replica.state().next_id;
    let greedy = [u64::MAX, u64::MAX - before, u64::MAX / 2, (1 << 20) + 1, 0].map(ask);
    replica.catch_up(&[&[ask(9)], &greedy[..]].concat());
    assert_eq!(replica.state().next_id, before, "refused");
    replica.catch_up(&[&[ask(9)], &greedy[..], &[ask(1 << 20)]].concat());
    assert_eq!(replica.state().next_id, before + (1 << 20));
}

proptest! {
    #[test]
    fn all_replicas_keep_the_same_record(
        log in proptest::collection::vec(change(), 1..40),
        crashes in proptest::collection::vec((0usize..40, any::<bool>()), 0..4),
        snapshot in 0usize..40,
    ) {
        let mut steady = Replica::new(first());
        let mut other = Replica::new(first());
        let mut late = None;
        let mut before = Directory::default();
        for upto in 1..=log.len() {
            steady.catch_up(&log[..upto]);
            let state = steady.state();
            let now = Directory::decode(&state.directory).unwrap();
            follows(&before, &now);
            before = now;
            for (_, flushed) in crashes.iter().filter(|(at, _)| *at == upto) {
                other.catch_up(&log[..upto]);
                if *flushed {
                    other.flush();
                }
                other.crash();
            }
            if snapshot == upto {
                // One that begins from a snapshot taken here.
                let head = decode_head(&encode_head(&state)).unwrap();
                let begun = RegionState { directory: head.directory, next_id: head.next_id, ..state };
                late = Some(Replica::new(begun));
            }
        }
        let end = steady.state();
        other.catch_up(&log);
        prop_assert_eq!(&other.state(), &end);
        if let Some(mut late) = late {
            late.catch_up(&log);
            prop_assert_eq!(&late.state(), &end);
        }
    }
}
