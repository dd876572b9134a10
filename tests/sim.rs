//! The simulator itself is tested: one seed gives one trace, in any process, and bugs that are put in on
//! purpose are found within the seeds that CI runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use catamaran::error::Error;
use catamaran::sim::node::Planted;
use catamaran::sim::regions::Workload;
use catamaran::sim::seed::{Plan, run};
use catamaran::sim::stage::{Outcome, Setback, Stage};
use catamaran::store::ReadLevel;
use catamaran::types::{RegionId, StoreId};
use std::process::Command;
use std::time::Duration;

/// CI runs these of each workload; see README.
const SEEDS: std::ops::Range<u64> = 0..500;

fn trace_in_another_process(workload: &str, seed: u64) -> Vec<u8> {
    let output = Command::new(env!("CARGO_BIN_EXE_catamaran-sim"))
        .args(["--workload", workload, "--seed", &seed.to_string(), "--trace", "--steps", "6000"])
        .output()
        .expect("the simulator runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    output.stdout
}

#[test]
fn one_seed_gives_one_trace_in_every_process() {
    for (workload, seed) in [3, 11, 42].into_iter().flat_map(|s| [("kv", s), ("regions", s)]) {
        let [first, second] = [(); 2].map(|()| trace_in_another_process(workload, seed));
        assert!(first.len() > 1_000, "a trace of {} bytes", first.len());
        assert!(first == second, "{workload} seed {seed} gave two traces");
    }
}

#[test]
fn different_seeds_give_different_traces() {
    let hash = |seed| run(&Plan { steps: 3_000, ..Plan::new(seed) }).trace_hash;
    assert_ne!(hash(1), hash(2));
}

/// One of CI's seeds in which the named promise is the first that is seen broken by a planted bug; looked for from `hint` on, to save
/// time. A bug that another look finds by chance is not found.
fn found_in(workload: Workload, planted: Planted, hint: u64, promise: &str) -> Option<u64> {
    found_as(workload, planted, hint, promise, "")
}

/// The same, if what was seen says so, too.
fn found_as(
    workload: Workload,
    planted: Planted,
    hint: u64,
    promise: &str,
    detail: &str,
) -> Option<u64> {
    (hint..SEEDS.end).chain(SEEDS.start..hint).find(|seed| {
        let plan = Plan { planted: Some(planted), workload, ..Plan::new(*seed) };
        let found = std::panic::catch_unwind(|| run(&plan).violation).unwrap_or_default();
        found.is_some_and(|said| said.starts_with(promise) && said.contains(detail))
    })
}

#[test]
fn acknowledgements_before_the_sync_are_found() {
    let promise = "leader completeness";
    assert!(found_in(Workload::Kv, Planted::AckBeforeSync, 8, promise).is_some());
}

/// Who restarts helps nobody for an election's time, so somebody who missed a term must campaign for it after that: `sim::recount` sees
/// to it (seeds 7, 42, 54, 146 and 248 of the first three hundred).
#[test]
fn a_forgotten_vote_is_found() {
    let promise = "one leader per term";
    assert!(found_in(Workload::Regions, Planted::ForgottenVote, 7, promise).is_some());
}

#[test]
fn a_forgotten_promise_is_found() {
    let promise = "one lease at a time";
    assert!(found_in(Workload::Kv, Planted::ForgottenPromise, 0, promise).is_some());
}

#[test]
fn support_that_is_kept_is_found() {
    let promise = "who lost its leader wakes";
    assert!(found_in(Workload::Kv, Planted::SupportKept, 0, promise).is_some());
}

/// What the log lacks then is found when the node starts again.
#[test]
fn a_log_purged_past_the_flush_is_found() {
    let (promise, detail) = ("no replica is fenced without damage", "the log starts after");
    let found = found_as(Workload::Kv, Planted::FlushReportedEarly, 26, promise, detail);
    assert!(found.is_some());
}

#[test]
fn a_change_made_for_another_shape_and_applied_all_the_same_is_found() {
    let promise = "state equality";
    assert!(found_in(Workload::Regions, Planted::IgnoredEpoch, 46, promise).is_some());
}

#[test]
fn a_lease_that_outlives_a_merge_is_found() {
    let promise = "no lease of a region that was merged";
    assert!(found_in(Workload::Regions, Planted::LeaseKept, 12, promise).is_some());
}

/// Each region has one lease, and one key has two: its parent's and that of the part in which it lies.
#[test]
fn a_lease_that_a_parent_keeps_over_what_was_cut_off_is_found() {
    let promise = "one node serves a key by a lease";
    assert!(found_in(Workload::Regions, Planted::RangeKept, 10, promise).is_some());
}

/// A split writes nothing, but from then on others may write: a lease read that does not wait for it lacks that.
#[test]
fn a_lease_read_that_does_not_wait_for_a_split_is_found() {
    let promise = "a lease read finds what was applied anywhere";
    assert!(found_in(Workload::Regions, Planted::ShapeUnawaited, 0, promise).is_some());
}

/// Whoever lacked the rest cannot go on.
#[test]
fn a_merge_that_carries_too_little_is_found() {
    let promise = "no replica is fenced without damage";
    let detail = "merge: entries that every replica holds";
    let found = found_as(Workload::Regions, Planted::FirstFromCommit, 6, promise, detail);
    assert!(found.is_some());
}

/// In the end all are gone, and nothing else looks for it: what is seen is that one has lived for too long.
#[test]
fn a_removed_replica_that_is_asked_late_is_found() {
    let promise = "a removed replica that can be told goes soon";
    assert!(found_in(Workload::Regions, Planted::RemovedAskedLate, 22, promise).is_some());
}

/// In the seeds a snapshot is over before the leader looks at its log's size again, and none finds this one; on a stage the
/// receiver takes its time to restore, and the leader's log outgrows its budget meanwhile.
#[test]
fn a_log_compacted_above_a_snapshot_on_its_way_is_found() {
    let write = |stage: &mut Stage| -> Outcome<()> {
        for i in 0..20 {
            stage.put(&format!("k{i}"), &"v".repeat(100))?;
            stage.run(Duration::from_millis(100))?;
        }
        Ok(())
    };
    let sends = |planted| -> Outcome<u64> {
        let mut stage = Stage::open_with(3, &[], planted)?;
        stage.isolate(StoreId(3));
        write(&mut stage)?;
        stage.hold(StoreId(3));
        stage.heal();
        write(&mut stage)?;
        stage.release(StoreId(3));
        stage.check()?;
        Ok(stage.snapshots())
    };
    assert_eq!(sends(None).unwrap(), 1, "one is enough: the log goes on from there");
    match sends(Some(Planted::PinIgnored)) {
        Err(Setback::Broken(found)) => assert!(found.what.contains("the log above a snapshot")),
        other => panic!("{other:?}"),
    }
}

/// Kv seed 18 found it once; since followers are fed otherwise no seed of CI's does: a replica would have to lag behind in applying
/// for longer than its clients' bounds just when a round of reads is confirmed. On a stage it does.
#[test]
fn a_replica_that_counts_as_fresh_too_early_is_found() {
    let slow = StoreId(2);
    let bounded_read = |planted| {
        let mut stage = Stage::open_with(3, &[], planted).unwrap();
        stage.put("k", "old").unwrap();
        stage.get("k", Some(slow), ReadLevel::Linearizable).unwrap();
        stage.hold(slow);
        stage.put("k", "new").unwrap();
        stage.run(Duration::from_secs(20)).unwrap();
        // A round that is confirmed, and whose answer waits for what is not applied yet.
        let asked = stage.get("k", Some(slow), ReadLevel::Linearizable);
        assert!(matches!(asked, Err(Setback::Silence(_))), "{asked:?}");
        stage.get("k", Some(slow), ReadLevel::Stale { max: Duration::from_secs(10) })
    };
    let waits = bounded_read(None);
    assert!(matches!(waits, Err(Setback::Silence(_))), "{waits:?}");
    let (_, found) = bounded_read(Some(Planted::FreshUnapplied)).unwrap();
    assert_eq!(found.as_deref(), Some(&b"old"[..]), "of more than twenty seconds ago");
}

/// It breaks nothing else: the candidate asks again in time.
#[test]
fn a_vote_that_was_asked_for_before_birth_and_forgotten_is_found() {
    let promise = "who was asked for a vote before it was born answers";
    assert!(found_in(Workload::Regions, Planted::RequestDropped, 0, promise).is_some());
}

/// A replica that is not here has no state, and votes for nobody; what is kept for it is the request. So a part that was cut off
/// is led at once wherever its parent's leader stands, and with the bug it would be an election timeout later.
#[test]
fn a_part_is_led_at_once_by_votes_that_were_asked_for_before_birth() {
    let led_soon = |planted| {
        let mut stage = Stage::open_with(3, &[], planted)?;
        stage.put("z", "1")?;
        stage.hold(StoreId(2));
        stage.hold(StoreId(3));
        stage.split(RegionId(1), "m", RegionId(4))?;
        stage.run(Duration::from_millis(20))?;
        assert_eq!(stage.led_by(RegionId(4)), None, "nobody to vote is born yet");
        stage.release(StoreId(2));
        stage.release(StoreId(3));
        stage.run(Duration::from_millis(100))?;
        Ok(stage.led_by(RegionId(4)))
    };
    assert_eq!(led_soon(None).unwrap(), Some(StoreId(1)));
    let planted = led_soon(Some(Planted::RequestDropped));
    let promise = "who was asked for a vote before it was born answers";
    assert!(
        matches!(&planted, Err(Setback::Broken(broken)) if broken.what == promise),
        "{planted:?}"
    );
}

/// Reads of every level are asked of every replica while regions are cut, merged, handed over and restarted, and join the
/// history that is judged.
#[test]
fn reads_of_every_kind_meet_changes_of_every_kind() {
    let runs: Vec<_> =
        (0..6).map(|seed| run(&Plan { workload: Workload::Regions, ..Plan::new(seed) })).collect();
    let sum = |count: fn(&catamaran::sim::counts::Counts) -> u64| -> u64 {
        runs.iter().map(|report| count(&report.counts)).sum()
    };
    assert!(runs.iter().all(|report| report.violation.is_none()), "{runs:?}");
    for (what, count) in [
        ("stale", sum(|c| c.stale_reads)),
        ("at followers", sum(|c| c.follower_reads)),
        ("splits", sum(|c| c.splits[0])),
        ("merges", sum(|c| c.merges[1])),
        ("changes of members", sum(|c| c.changes)),
        ("crashes", sum(|c| c.crashes)),
        ("elections", sum(|c| c.elections)),
    ] {
        assert!(count >= 10, "{what}: {count}");
    }
}

/// Seed 2695 of the regions: a region grew to four times its size while a follower was behind, so its cut was refused;
/// from then on it took no write, and as nothing was applied any more nobody measured it again.
#[test]
fn a_region_too_large_to_take_writes_is_cut_in_the_end() {
    let report = run(&Plan { workload: Workload::Regions, ..Plan::new(2695) });
    assert!(report.violation.is_none(), "{report:?}");
}

/// Regions seed 85: one of three stores was lost, another one needed a snapshot, and the third led in a new term. It made no
/// snapshot before it had applied an entry of its term, and could commit none without the other.
#[test]
fn a_follower_without_which_nothing_is_committed_is_sent_a_snapshot() {
    let mut stage = Stage::open(3, &[]).unwrap();
    stage.isolate(StoreId(3));
    for i in 0..20 {
        stage.put(&format!("k{i}"), &"v".repeat(100)).unwrap();
        stage.run(Duration::from_millis(100)).unwrap();
    }
    stage.crash(StoreId(1)).unwrap();
    stage.heal();
    stage.run(Duration::from_secs(5)).unwrap();
    stage.put("k", "v").unwrap();
    assert_eq!(stage.snapshots(), 1);
    stage.restart(StoreId(1)).unwrap();
    stage.run(Duration::from_secs(5)).unwrap();
    stage.check().unwrap();
}

/// Whoever was out of reach, or behind, was handed leaderships all the same: for an election's time nothing could be written, and as the
/// heir never came the leader had no lease for the rest of its term.
#[test]
fn a_region_is_not_handed_over_to_whoever_cannot_lead_it() {
    let mut stage = Stage::open(3, &[]).unwrap();
    stage.put("k", "1").unwrap();
    let leader = stage.led_by(RegionId(1)).unwrap();
    let gone = (1..=3).map(StoreId).find(|store| *store != leader).unwrap();
    stage.isolate(gone);
    stage.run(Duration::from_secs(5)).unwrap();
    assert_eq!(stage.led_by(RegionId(1)), Some(leader));
    let refused = stage.transfer(RegionId(1), gone);
    assert!(matches!(refused, Err(Setback::Refused(Error::Busy { .. }))), "{refused:?}");
    let nobody = stage.transfer(RegionId(1), StoreId(9));
    assert!(matches!(nobody, Err(Setback::Refused(Error::InvalidArgument(_)))), "{nobody:?}");
    stage.transfer(RegionId(1), leader).unwrap();
    stage.put("k", "2").unwrap();
    stage.get("k", Some(leader), ReadLevel::Linearizable).unwrap();
    assert_eq!(stage.leases(RegionId(1)), [leader], "nothing was given away");
    stage.heal();
    stage.run(Duration::from_secs(2)).unwrap();
    let now = stage.led_by(RegionId(1)).unwrap();
    let heir = if now == gone { leader } else { gone };
    stage.transfer(RegionId(1), heir).unwrap();
    stage.check().unwrap();
}

/// Who has much to apply still would lead a region whose reads wait for that.
#[test]
fn a_region_is_not_handed_over_to_whoever_has_much_to_apply() {
    let mut stage = Stage::open(3, &[]).unwrap();
    stage.put("k", "1").unwrap();
    let leader = stage.led_by(RegionId(1)).unwrap();
    let others: Vec<_> = (1..=3).map(StoreId).filter(|store| *store != leader).collect();
    let (slow, ready) = (others[0], others[1]);
    stage.hold(slow);
    let large = "x".repeat(1 << 20);
    for _ in 0..10 {
        stage.put("large", &large).unwrap();
    }
    stage.run(Duration::from_secs(1)).unwrap();
    let refused = stage.transfer(RegionId(1), slow);
    assert!(matches!(refused, Err(Setback::Refused(Error::Busy { .. }))), "{refused:?}");
    stage.put("k", "2").unwrap();
    stage.get("k", Some(leader), ReadLevel::Linearizable).unwrap();
    assert_eq!(stage.leases(RegionId(1)), [leader], "nothing was given away");
    stage.transfer(RegionId(1), ready).unwrap();
    stage.release(slow);
    stage.run(Duration::from_secs(2)).unwrap();
    stage.transfer(RegionId(1), slow).unwrap();
    stage.put("k", "3").unwrap();
    stage.check().unwrap();
}

/// Whoever moves a replica may be gone before the last step; what was left of it kept regions from being merged until somebody
/// removed it by hand. A learner that was placed as one stays.
#[test]
fn what_was_on_its_way_and_forgotten_goes() {
    let mut stage = Stage::open_among(3, 5, &[], None).unwrap();
    stage.put("k", "v").unwrap();
    let region = RegionId(1);
    stage.place(region, StoreId(4), true).unwrap();
    stage.place(region, StoreId(5), false).unwrap();
    stage.run(Duration::from_secs(2)).unwrap();
    assert!(stage.status().contains("s4"), "{}", stage.status());
    stage.run(Duration::from_secs(60)).unwrap();
    let status = stage.status();
    let members = status.lines().next().unwrap_or_default();
    assert!(!members.contains("s4") && members.contains("s5"), "{status}");
    stage.check().unwrap();
}

/// Stores join, are drained and leave, lose their directories and have old copies put back, have damaged logs, have full disks for a
/// while; what is said of them in the end holds (`sim::stores`, `sim::rot`, `sim::full`).
#[test]
fn stores_come_and_go_in_the_seeds() {
    let runs: Vec<_> =
        (0..40).map(|seed| run(&Plan { workload: Workload::Regions, ..Plan::new(seed) })).collect();
    let sum = |count: fn(&catamaran::sim::counts::Counts) -> u64| -> u64 {
        runs.iter().map(|report| count(&report.counts)).sum()
    };
    let failed = runs.iter().find(|report| report.violation.is_some());
    assert!(failed.is_none(), "{failed:?}");
    for (what, count) in [
        ("joined", sum(|c| c.stores[0])),
        ("drained", sum(|c| c.stores[1])),
        ("left", sum(|c| c.stores[2])),
        ("merged by themselves", sum(|c| c.automatic_merges)),
        ("directories wiped", sum(|c| c.lost[0])),
        ("old copies put back", sum(|c| c.lost[1])),
        ("logs damaged", sum(|c| c.damaged)),
        ("replicas fenced off", sum(|c| c.fenced[0])),
        ("connections refused", sum(|c| c.kept_out)),
        ("disks full", sum(|c| c.full)),
    ] {
        assert!(count >= 1, "{what}: {count}");
    }
}
