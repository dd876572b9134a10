//! The simulator itself is tested: one seed gives one trace, in any process, and bugs that are put in on
//! purpose are found within the seeds that CI runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use catamaran::sim::node::Planted;
use catamaran::sim::regions::Workload;
use catamaran::sim::seed::{Plan, run};
use std::process::Command;

/// CI runs these of each workload; see README.
const SEEDS: std::ops::Range<u64> = 0..500;

fn trace_in_another_process(seed: u64) -> Vec<u8> {
    let output = Command::new(env!("CARGO_BIN_EXE_catamaran-sim"))
        .args(["--seed", &seed.to_string(), "--trace", "--steps", "6000"])
        .output()
        .expect("the simulator runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    output.stdout
}

#[test]
fn one_seed_gives_one_trace_in_every_process() {
    for seed in [3, 11, 42] {
        let (first, second) = (trace_in_another_process(seed), trace_in_another_process(seed));
        assert!(first.len() > 1_000, "a trace of {} bytes", first.len());
        assert!(first == second, "seed {seed} gave two traces");
    }
}

#[test]
fn different_seeds_give_different_traces() {
    let hash = |seed| run(&Plan { steps: 3_000, ..Plan::new(seed) }).trace_hash;
    assert_ne!(hash(1), hash(2));
}

/// One of CI's seeds that finds a planted bug; looked for from `hint` on, to save time.
fn found_by(planted: Planted, hint: u64) -> Option<u64> {
    found_in(Workload::Kv, planted, hint)
}

fn found_in(workload: Workload, planted: Planted, hint: u64) -> Option<u64> {
    (hint..SEEDS.end).chain(SEEDS.start..hint).find(|seed| {
        let plan = Plan { planted: Some(planted), workload, ..Plan::new(*seed) };
        // A panic of raft-rs on an impossible state is a find, too.
        std::panic::catch_unwind(|| run(&plan).violation).map_or(true, |v| v.is_some())
    })
}

#[test]
fn acknowledgements_before_the_sync_are_found() {
    assert!(found_by(Planted::AckBeforeSync, 0).is_some());
}

/// Two seeds in five hundred: who restarts helps nobody for an election's time, so only a request for votes
/// that was long on its way meets a voter who has forgotten.
#[test]
fn a_forgotten_vote_is_found() {
    assert!(found_in(Workload::Regions, Planted::ForgottenVote, 314).is_some());
}

#[test]
fn a_forgotten_promise_is_found() {
    assert!(found_by(Planted::ForgottenPromise, 0).is_some());
}

#[test]
fn support_that_is_kept_is_found() {
    assert!(found_by(Planted::SupportKept, 0).is_some());
}

#[test]
fn a_log_purged_past_the_flush_is_found() {
    assert!(found_by(Planted::FlushReportedEarly, 0).is_some());
}

#[test]
fn a_change_made_for_another_shape_and_applied_all_the_same_is_found() {
    let mut seeds = SEEDS.skip(60);
    let found = seeds.any(|seed| {
        let planted = Some(Planted::IgnoredEpoch);
        let plan = Plan { planted, workload: Workload::Regions, ..Plan::new(seed) };
        std::panic::catch_unwind(|| run(&plan).violation).map_or(true, |v| v.is_some())
    });
    assert!(found);
}

#[test]
fn a_lease_that_outlives_a_merge_is_found() {
    assert!(found_in(Workload::Regions, Planted::LeaseKept, 123).is_some());
}

#[test]
fn a_merge_that_carries_too_little_is_found() {
    assert!(found_in(Workload::Regions, Planted::FirstFromCommit, 38).is_some());
}
