//! What a replica's status says of changes that others have to wait for: merges under way, at both ends, and former
//! replicas.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use catamaran::sim::stage::Stage;
use catamaran::store::{RegionStatus, Unsettled};
use catamaran::types::{Epoch, RegionId, Role, StoreId};
use std::time::Duration;

const SOURCE: RegionId = RegionId(2);
const TARGET: RegionId = RegionId(1);

fn status(stage: &Stage, store: u64, region: RegionId) -> Option<RegionStatus> {
    stage.statuses(StoreId(store)).into_iter().find(|status| status.region.id == region)
}

fn unsettled(stage: &Stage, store: u64, region: RegionId) -> Unsettled {
    status(stage, store, region).unwrap().unsettled
}

/// Whoever asked why a change of a region did not go on was shown indexes, and neither that it was frozen, nor for whom, nor
/// whose replicas it still waited for.
#[test]
fn a_merge_shows_at_both_ends_and_until_it_is_settled() {
    let mut stage = Stage::open(3, &["m"]).unwrap();
    stage.put("a", "1").unwrap();
    stage.put("z", "1").unwrap();
    for store in 1..=3 {
        for region in [SOURCE, TARGET] {
            let status = status(&stage, store, region).unwrap();
            assert_eq!(status.unsettled, Unsettled::default());
            assert_eq!(status.role(), Some(Role::Voter));
        }
    }

    // Frozen: every replica that has applied it says for whom, and since which entry.
    stage.merge(SOURCE, TARGET).unwrap();
    stage.run(Duration::from_millis(200)).unwrap();
    for store in 1..=3 {
        let frozen = unsettled(&stage, store, SOURCE).frozen.unwrap();
        assert_eq!((frozen.target, frozen.stands_still), (TARGET, false));
        assert_eq!(frozen.epoch, status(&stage, store, TARGET).unwrap().region.epoch);
        assert_eq!(frozen.epoch, Epoch { conf_ver: 1, version: 1 });
        assert!(frozen.at.index <= status(&stage, store, SOURCE).unwrap().applied);
        assert_eq!(unsettled(&stage, store, TARGET), Unsettled::default());
    }

    // Store 3 hears nothing of the commit. The others take the source over, and wait for its replica there.
    stage.isolate(StoreId(3));
    stage.commit(SOURCE).unwrap();
    stage.run(Duration::from_millis(200)).unwrap();
    assert!(status(&stage, 1, SOURCE).is_none());
    let waits = unsettled(&stage, 1, TARGET);
    assert!(waits.frozen.is_none() && waits.formers >= 1, "{waits:?}");
    assert_eq!(waits.former.len() as u64, waits.formers);
    assert!(waits.former.iter().all(|gone| gone.region == SOURCE), "{waits:?}");
    assert!(waits.former.iter().any(|gone| gone.store == StoreId(3)), "{waits:?}");
    assert!(unsettled(&stage, 3, SOURCE).frozen.is_some());

    stage.heal();
    stage.run(Duration::from_secs(10)).unwrap();
    for store in 1..=3 {
        assert!(status(&stage, store, SOURCE).is_none());
        assert_eq!(unsettled(&stage, store, TARGET), Unsettled::default(), "s{store}");
    }
}

/// A replica of the target that has come to the commit, and whose neighbour on the same store lags behind, says for whom it
/// waits; the other one, that it is about to stand still.
#[test]
fn a_target_that_waits_for_its_source_says_so() {
    let mut stage = Stage::open(3, &["m"]).unwrap();
    stage.put("z", "1").unwrap();
    // From now on store 3 applies nothing: its replica of the source does not get to where it is frozen.
    stage.hold(StoreId(3));
    stage.merge(SOURCE, TARGET).unwrap();
    stage.commit(SOURCE).unwrap();
    stage.run(Duration::from_millis(200)).unwrap();
    assert_eq!(unsettled(&stage, 3, TARGET).waits_for, Some(SOURCE));
    assert!(unsettled(&stage, 3, SOURCE).frozen.is_none(), "it has not applied that yet");
    stage.release(StoreId(3));
    stage.run(Duration::from_secs(10)).unwrap();
    assert_eq!(unsettled(&stage, 3, TARGET), Unsettled::default());
}
