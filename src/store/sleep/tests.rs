//! Who sleeps beside what, on one store, by hand.

use super::super::merges::tests::{Bench, region};
use crate::codec::beat::Beat;
use crate::region::peer::Peer;
use crate::store::Event;
use crate::types::{Departed, PeerId, StoreId};
use std::time::Duration;

/// A node that may be lost for good.
const LOST: StoreId = StoreId(2);

/// A region that has lost a replica to a node that is silent.
fn bereaved() -> Bench {
    let mut bench = Bench::tired(vec![region(1, "", "", &[1])], Duration::from_millis(500));
    bench.settle();
    let gone = Departed { region: crate::types::RegionId(1), id: PeerId(12), store: LOST };
    peer(&mut bench).set_removed(vec![gone]);
    bench
}

fn peer(bench: &mut Bench) -> &mut Peer {
    bench.store().peers.values_mut().next().unwrap()
}

fn beat(number: u64) -> Event {
    let beat = Beat {
        number,
        life: 77,
        hears: 0,
        support_ms: 0,
        epoch: 0,
        rouse: 0,
        shares: true,
        sums: None,
    };
    Event::Beat { from: LOST, beat }
}

/// A node dies, its replicas are made anew elsewhere, and nobody can say that the old ones are gone. Their regions sleep all
/// the same, for as long as it is silent; should it come back, they wake and ask.
#[test]
fn a_former_replica_on_a_silent_node_keeps_nobody_awake() {
    let mut bench = bereaved();
    bench.ticks(200);
    assert!(peer(&mut bench).asleep());
    // It is not forgotten, though no region has a replica there any more.
    bench.handle(beat(1));
    bench.ticks(1);
    assert!(!peer(&mut bench).asleep(), "there is somebody to be asked");
    for number in 2..40 {
        bench.handle(beat(number));
        bench.ticks(2);
        assert!(!peer(&mut bench).asleep(), "as long as it is there");
    }
    bench.ticks(200);
    assert!(peer(&mut bench).asleep(), "it is silent again");
}

/// A store that was struck off is never heard of again: what it held is gone. Otherwise its regions would keep it on their
/// lists for ever, and none of them could be merged any more.
#[test]
fn former_replicas_on_a_store_that_has_left_are_forgotten() {
    let mut bench = bereaved();
    bench.ticks(2);
    assert_eq!(peer(&mut bench).removed.len(), 1);
    bench.running().registry.neighbours().has_left(LOST);
    bench.ticks(200);
    assert!(peer(&mut bench).removed.is_empty());
}
