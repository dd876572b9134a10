//! The generator against targets that never see a disk: one that stalls, one that refuses, one that lies.

use super::*;
use crate::args::{Cli, Command};
use catamaran::codec::command::{KEY_BYTES_MAX, Op, ops};
use clap::Parser;
use std::collections::HashMap;
use std::sync::Mutex;

fn plan(flags: &str) -> Plan {
    let line = format!("catamaran-load run {flags}");
    match Cli::try_parse_from(line.split_whitespace()).unwrap().command {
        Command::Run(args) => args.plan().unwrap(),
        _ => unreachable!(),
    }
}

fn space(plan: &Plan) -> KeySpace {
    KeySpace::new(plan.regions, plan.clients, plan.keys, plan.key_size, plan.distribution)
}

/// A map that answers after `delay`, from a thread of its own, and answers nothing while it stalls.
struct Slow {
    queue: std::sync::mpsc::Sender<(Instant, Request, Arc<ReadyQueue>)>,
}

impl Slow {
    fn new(delay: Duration, stall_after: Duration, stall: Duration) -> Slow {
        let (queue, requests) = std::sync::mpsc::channel::<(Instant, Request, Arc<ReadyQueue>)>();
        let start = Instant::now();
        std::thread::spawn(move || {
            let mut stalled = false;
            for (came, request, ready) in requests {
                if !stalled && start.elapsed() >= stall_after {
                    stalled = true;
                    std::thread::sleep(stall);
                }
                std::thread::sleep((came + delay).saturating_duration_since(Instant::now()));
                ready.push(request.client, Answer::Written);
            }
        });
        Slow { queue }
    }
}

impl Target for Slow {
    fn submit(&self, requests: &mut Vec<Request>, ready: &Arc<ReadyQueue>) {
        for request in requests.drain(..) {
            self.queue.send((Instant::now(), request, Arc::clone(ready))).unwrap();
        }
    }
}

#[test]
fn a_stall_shows_in_the_open_loop_and_is_nearly_hidden_in_the_closed_one() {
    let stalling =
        || Slow::new(Duration::from_micros(200), Duration::from_secs(1), Duration::from_secs(1));
    let flags = "--duration 3s --clients 4 --batch 1 --keys 1000 --regions 4";
    let open = plan(&format!("{flags} --rate 1000"));
    let (driven, _) = drive(&open, space(&open), &stalling(), &Progress::default(), |_| {});
    let p = driven.record.percentiles();
    // A third of the requests fell due during the stall: they waited up to a second.
    assert!(p.p999 > 900_000.0 && p.p90 > 300_000.0, "{p:?}");
    assert!(p.p50 < 300_000.0, "{p:?}");

    let closed = plan(flags);
    let (driven, _) = drive(&closed, space(&closed), &stalling(), &Progress::default(), |_| {});
    let p = driven.record.percentiles();
    assert!(p.max > 900_000.0 && p.p99 < 500_000.0, "only the outstanding ones saw it: {p:?}");
}

#[test]
fn what_was_due_and_found_no_client_to_send_it_counts_until_the_end() {
    // Nothing is answered before the end, so each client sends once.
    let silent = Slow::new(Duration::ZERO, Duration::ZERO, Duration::from_millis(700));
    let flags = "--duration 500ms --clients 8 --batch 1 --keys 1000 --regions 4 --rate 1000";
    let open = plan(flags);
    let (driven, _) = drive(&open, space(&open), &silent, &Progress::default(), |_| {});
    let unsent = driven.record.unsent;
    assert!((491..=493).contains(&unsent), "{unsent} of 500");
    let longer = driven.record.longer_than(Duration::from_millis(250));
    assert!(longer >= 245, "{longer} of 250 fell due in the first half");
}

#[test]
fn the_rate_is_kept() {
    let plan = plan(
        "--duration 2s --clients 16 --batch 10 --keys 1000 --regions 4 --rate 5000 --threads 2",
    );
    let target = Slow::new(Duration::ZERO, Duration::from_secs(60), Duration::ZERO);
    let (driven, window) = drive(&plan, space(&plan), &target, &Progress::default(), |_| {});
    let per_second = driven.record.ops as f64 / (window.end - window.start).as_secs_f64();
    // Not more than was aimed at; a machine with no time to spare may do less.
    assert!((1_000.0..5_100.0).contains(&per_second), "{per_second}");
    assert_eq!(driven.abandoned, 0);
}

/// A map, with a failure for every `fail_every`th write, half of which are applied all the same.
#[derive(Default)]
struct Map {
    data: Mutex<HashMap<Vec<u8>, Bytes>>,
    calls: AtomicU64,
    fail_every: u64,
    drop_every: u64,
}

impl Target for Map {
    fn submit(&self, requests: &mut Vec<Request>, ready: &Arc<ReadyQueue>) {
        for request in requests.drain(..) {
            let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
            let fails = self.fail_every > 0 && call.is_multiple_of(self.fail_every);
            let lost = self.drop_every > 0 && call.is_multiple_of(self.drop_every);
            let mut data = self.data.lock().unwrap();
            let answer = match request.work {
                Work::Read(keys) => {
                    Answer::Values(keys.iter().map(|key| data.get(&key[..]).cloned()).collect())
                }
                Work::Write(batch) => {
                    let command = batch.finish();
                    let applied = !lost && (!fails || call.is_multiple_of(2));
                    for op in ops(&command).filter(|_| applied) {
                        let Op::Put { key, value } = op.unwrap() else { unreachable!() };
                        data.insert(command[key].to_vec(), command.slice(value));
                    }
                    match fails {
                        true => Answer::Failed(Failure { kind: "timeout", may_be_applied: true }),
                        false => Answer::Written,
                    }
                }
            };
            drop(data);
            ready.push(request.client, answer);
        }
    }
}

fn findings(plan: &Plan, map: &Map, driven: &Driven) -> (u64, u64, u64) {
    let (mut checked, mut missing, mut wrong) = (0, 0, 0);
    let (mut key, mut scratch) = (Vec::new(), Vec::new());
    let data = map.data.lock().unwrap();
    let space = space(plan);
    for (client, ledger) in &driven.ledgers {
        for slot in (0..space.slots()).filter(|&slot| ledger.touched(slot)) {
            space.key(*client, slot, &mut key);
            let found = data.get(&key).map(|value| &value[..]);
            checked += 1;
            match ledger.judge(plan.seed, *client, slot, found, plan.value_size, &mut scratch) {
                Finding::Right => {}
                Finding::Missing => missing += 1,
                Finding::Wrong => wrong += 1,
            }
        }
    }
    (checked, missing, wrong)
}

#[test]
fn writes_with_unknown_outcome_are_never_taken_for_lost_or_wrong() {
    for distribution in ["uniform", "zipfian", "sequential"] {
        let plan = plan(&format!(
            "--duration 300ms --clients 8 --batch 16 --keys 20000 --regions 4 --read-ratio 0.3 \
             --distribution {distribution}"
        ));
        let map = Map { fail_every: 50, ..Map::default() };
        let (driven, _) = drive(&plan, space(&plan), &map, &Progress::default(), |_| {});
        let (checked, missing, wrong) = findings(&plan, &map, &driven);
        assert!(checked > 100 && driven.record.errors["timeout"] > 0);
        assert_eq!((missing, wrong, driven.record.wrong_reads), (0, 0, 0), "{distribution}");
        assert!(driven.record.reads > 0);
    }
}

#[test]
fn a_target_that_loses_acknowledged_writes_is_found_out() {
    let plan = plan("--duration 200ms --clients 8 --batch 16 --keys 20000 --regions 4");
    let map = Map { drop_every: 100, ..Map::default() };
    let (driven, _) = drive(&plan, space(&plan), &map, &Progress::default(), |_| {});
    let (_, missing, wrong) = findings(&plan, &map, &driven);
    assert!(missing + wrong > 0, "{missing} missing, {wrong} wrong");
}

#[test]
fn what_cannot_be_put_together_has_failed_and_is_not_sent() {
    let mut plan = plan("--duration 100ms --clients 2 --batch 3 --keys 1000 --regions 2 --seed 3");
    // Past the plan's own check.
    plan.key_size = KEY_BYTES_MAX + 1;
    let map = Map::default();
    let progress = Progress::default();
    let (driven, _) = drive(&plan, space(&plan), &map, &progress, |_| {});
    assert_eq!((driven.record.ops, driven.record.requests, driven.abandoned), (0, 0, 0));
    assert!(driven.record.errors["invalid_argument"] > 0);
    assert_eq!(progress.ops.load(Ordering::Relaxed), 0);
    // Nobody expects any of it, and none of it came.
    let (checked, missing, wrong) = findings(&plan, &map, &driven);
    assert_eq!((checked, missing, wrong), (0, 0, 0));
}
