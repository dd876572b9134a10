//! What one store answers to what it is asked, by hand.

use super::super::merges::tests::{Bench, region};
use crate::codec::admin::{Admin, Change};
use crate::error::Error;
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
