//! Applying: an entry becomes writes of the memory store, published and answered.

use crate::{BATCH, FOLD, batch, folded};
use bytes::Bytes;
use catamaran::env::mem::MemDisk;
use catamaran::kv::{MemoryStore, StateStore};
use catamaran::region::apply::{Applier, ApplyOutcome};
use catamaran::region::machine::{KvMachine, NullMachine, StateMachine};
use catamaran::store::{ApplyTask, CommittedEntry, Token, bootstrap_regions};
use catamaran::types::{
    INITIAL_POSITION, LogPosition, PeerId, RegionId, RegionState, StoreId, StoreIdent,
};
use criterion::{Criterion, Throughput};
use std::sync::Arc;

/// Different entries, so that keys repeat as they do under load.
const ENTRIES: u64 = 256;

struct Applying {
    applier: Applier,
    peer: PeerId,
    payloads: Vec<Bytes>,
    position: LogPosition,
}

impl Applying {
    fn new(machine: Arc<dyn StateMachine>) -> Applying {
        let kv = Arc::new(MemoryStore::new().expect("it works"));
        let region = bootstrap_regions(&[StoreId(1)], 1, 1).expect("it works").remove(0);
        let peer = region.peers[0].id;
        let state = RegionState {
            region,
            peer,
            applied: INITIAL_POSITION,
            compacted: INITIAL_POSITION,
            ..RegionState::default()
        };
        let ident = StoreIdent { cluster: 1, store: StoreId(1), incarnation: 1 };
        kv.bootstrap(&ident, vec![state]).expect("it works");
        let payloads = (0..ENTRIES).map(|entry| {
            let batches = (0..FOLD).map(|at| batch((entry * FOLD + at) * BATCH));
            folded(&batches.collect::<Vec<_>>())
        });
        let applier = Applier::new(kv, machine, Arc::new(MemDisk::default()));
        Applying { applier, peer, payloads: payloads.collect(), position: INITIAL_POSITION }
    }

    fn entry(&mut self) -> usize {
        self.position.index += 1;
        let data = self.payloads[(self.position.index % ENTRIES) as usize].clone();
        let waiting = (0..FOLD).map(Token).collect();
        let entries =
            [CommittedEntry { position: self.position, data, waiting }].into_iter().collect();
        let task = ApplyTask::Entries { region: RegionId(1), peer: self.peer, entries };
        let mut outcome = ApplyOutcome::default();
        self.applier.apply(vec![task], &mut outcome).expect("it works");
        assert_eq!(outcome.replies.len(), FOLD as usize);
        outcome.applied.len()
    }
}

pub fn suite(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("apply");
    group.throughput(Throughput::Elements(BATCH * FOLD));
    let machines: [(&str, Arc<dyn StateMachine>); 2] =
        [("put a folded entry", Arc::new(KvMachine)), ("nothing, answered", Arc::new(NullMachine))];
    for (name, machine) in machines {
        group.bench_function(name, |bencher| {
            let mut applying = Applying::new(Arc::clone(&machine));
            bencher.iter(|| applying.entry());
        });
    }
    group.finish();
}
