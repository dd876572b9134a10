//! What one store answers to what it is asked, by hand.

use super::super::merges::tests::{Bench, region};
use crate::codec::admin::{Admin, Change};
use crate::codec::command::BatchBuilder;
use crate::error::Error;
use crate::region::storage::decode_hard_state;
use crate::store::{Event, Proposal, Token};
use crate::types::{Epoch, PeerId, RegionId, Role, StoreId};
use std::collections::BTreeSet;
use std::time::Duration;

/// A request for a learner was held up on its way to the leader; the store was drained meanwhile, found to be empty and struck off.
/// Then it arrived, and the region had a replica on a store that never comes back.
#[test]
fn a_request_that_was_held_up_makes_no_replica_on_a_store_that_goes() {
    let mut bench = Bench::tired(vec![region(1, "", "", &[1])], Duration::ZERO);
    bench.settle();
    let mut conf_ver = 1;
    let mut ask = |bench: &mut Bench, change| {
        let epoch = Epoch { conf_ver, version: 1 };
        let done = bench.ask(1, Admin::ChangePeers { epoch, changes: vec![change] }).map(drop);
        conf_ver += u64::from(done.is_ok());
        done
    };
    let add = |store| Change::AddLearner {
        peer: PeerId(10 + store),
        store: StoreId(store),
        passing: true,
    };
    let refused = |done| match done {
        Err(Error::Busy { what }) => what,
        other => panic!("{other:?}"),
    };
    let neighbours = bench.running().registry.neighbours().clone();
    neighbours.are_draining(BTreeSet::from([StoreId(2)]));
    assert!(refused(ask(&mut bench, add(2))).contains("is draining or has left"));
    // It stays after all, and the next one drains; that has a learner already, which is to have no vote.
    neighbours.are_draining(BTreeSet::new());
    ask(&mut bench, add(2)).unwrap();
    neighbours.are_draining(BTreeSet::from([StoreId(2)]));
    refused(ask(&mut bench, Change::Promote(PeerId(12))));
    ask(&mut bench, Change::Remove(PeerId(12))).unwrap();
    neighbours.are_draining(BTreeSet::new());
    neighbours.has_left(StoreId(2));
    refused(ask(&mut bench, add(2)));
    ask(&mut bench, add(3)).unwrap();
    let peers = bench.store().peers.get(&RegionId(1)).unwrap().region.peers.clone();
    let there: Vec<_> = peers.iter().map(|peer| (peer.store.0, peer.role)).collect();
    assert_eq!(there, [(1, Role::Voter), (3, Role::Passing)]);
}

/// The commit index is written down beside users' entries only now and then. When it was so beside entries of any kind, who
/// restarted had forgotten that two changes of its configuration were committed, campaigned by the one before both, and
/// won beside another leader (seeds 40758 and 42595 of the simulator's regions).
#[test]
fn who_logs_a_change_records_that_what_came_before_it_is_committed() {
    let mut bench = Bench::tired(vec![region(1, "", "", &[1])], Duration::ZERO);
    bench.settle();
    let recorded = |bench: &mut Bench| {
        let bytes = bench.running().log.state(1).unwrap();
        decode_hard_state(&bytes).unwrap().hard_state.commit
    };
    let committed = |bench: &mut Bench| bench.store().status()[0].committed;
    let put = |bench: &mut Bench, count: u64| {
        for n in 0..count {
            let mut batch = BatchBuilder::new();
            batch.put(b"key", &n.to_le_bytes()).unwrap();
            let (token, region) = (Token(1000 + n), RegionId(1));
            let command = batch.finish();
            bench.handle(Event::Propose(vec![Proposal { token, region, version: 1, command }]));
            bench.settle();
        }
    };
    let before = recorded(&mut bench);
    put(&mut bench, 10);
    assert_eq!((recorded(&mut bench), committed(&mut bench)), (before, before + 11));
    for (conf_ver, store) in [(1, 2), (2, 3)] {
        let add =
            Change::AddLearner { peer: PeerId(10 + store), store: StoreId(store), passing: true };
        let known = committed(&mut bench);
        let epoch = Epoch { conf_ver, version: 1 };
        let (token, region) = (Token(store), RegionId(1));
        let admin = Admin::ChangePeers { epoch, changes: vec![add] };
        bench.handle(Event::Admin { token, region, admin });
        let effects = bench.drain();
        assert_eq!(recorded(&mut bench), known, "beside the change, and so all but the change");
        bench.perform(effects);
        bench.settle();
        assert_eq!(recorded(&mut bench), committed(&mut bench), "the change, once it is applied");
        assert_eq!(recorded(&mut bench), known + 1);
    }
    let last = committed(&mut bench);
    put(&mut bench, 100);
    let known = recorded(&mut bench);
    assert!(known >= last && committed(&mut bench) - known <= 66, "{known} of {last} + 100");
}
