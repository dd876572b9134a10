//! The raft adapter: three peers that hand each other their messages, storage in memory.

use crate::{BATCH, FOLD, batches, folded};
use bytes::Bytes;
use catamaran::log::raft_rs::raft::eraftpb::Message;
use catamaran::log::raft_rs::raft::storage::MemStorage;
use catamaran::raft::{Group, GroupConfig};
use catamaran::types::PeerId;
use criterion::{Criterion, Throughput};
use std::collections::VecDeque;

/// The storage is cut this often.
const CUT_EVERY: u64 = 64;

struct Trio {
    groups: Vec<Group<MemStorage>>,
    messages: VecDeque<Message>,
    committed: [u64; 3],
    proposed: u64,
}

impl Trio {
    fn new() -> Trio {
        let groups = (1..=3).map(|id| {
            let storage = MemStorage::new_with_conf_state((vec![1, 2, 3], vec![]));
            Group::new(PeerId(id), &GroupConfig::default(), 0, storage).expect("it works")
        });
        let (groups, messages) = (groups.collect(), VecDeque::new());
        let mut trio = Trio { groups, messages, committed: [0; 3], proposed: 0 };
        trio.groups[0].campaign();
        trio.settle();
        assert!(trio.groups[0].leads());
        trio
    }

    /// Rounds until nobody has anything left to do.
    fn settle(&mut self) {
        loop {
            let mut quiet = true;
            for (at, group) in self.groups.iter_mut().enumerate() {
                while let Some(ready) = group.ready() {
                    quiet = false;
                    {
                        let mut storage = group.storage().wl();
                        storage.append(&ready.entries).expect("it works");
                        if let Some(state) = &ready.hard_state {
                            storage.set_hardstate(state.clone());
                        }
                    }
                    self.messages.extend(ready.send_now);
                    self.messages.extend(ready.send_after_persist);
                    let number = ready.rest.number();
                    group.advance(ready.rest);
                    group.persisted(number);
                    if let Some(last) = ready.committed.last() {
                        self.committed[at] = last.index;
                        group.applied(last.index);
                    }
                }
            }
            while let Some(message) = self.messages.pop_front() {
                quiet = false;
                let to = message.to as usize - 1;
                let _ = self.groups[to].step(message);
            }
            if quiet {
                return;
            }
        }
    }

    fn commit(&mut self, data: Bytes) {
        let position = self.groups[0].propose(data).expect("it works");
        self.settle();
        assert_eq!(self.committed[0], position.index);
        self.proposed += 1;
        if self.proposed.is_multiple_of(CUT_EVERY) {
            for (group, committed) in self.groups.iter_mut().zip(self.committed) {
                group.storage().wl().compact(committed).expect("it works");
            }
        }
    }
}

pub fn suite(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("raft");
    let entry = folded(&batches());
    for (name, data, ops) in [
        ("commit a folded entry", entry, BATCH * FOLD),
        ("commit a small entry", Bytes::from_static(b"x"), 1),
    ] {
        group.throughput(Throughput::Elements(ops));
        group.bench_function(name, |bencher| {
            let mut trio = Trio::new();
            bencher.iter(|| trio.commit(data.clone()));
        });
    }
    group.finish();
}
