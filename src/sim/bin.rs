//! `catamaran-sim`: runs seeds of the simulator on both cores. What it prints depends on the seeds alone,
//! times apart.

use catamaran::sim::node::Planted;
use catamaran::sim::regions::Workload;
use catamaran::sim::seed::{Plan, Report, run, run_traced};
use std::io::{self, Write};
use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const USAGE: &str = "\
catamaran-sim: whole clusters on one thread, with faults, judged

usage: catamaran-sim [--workload kv|regions] --seeds A..B [--steps N]
       catamaran-sim [--workload kv|regions] --seed S [--steps N] [--trace]

  --seeds A..B   half-open range of seeds, run on all cores
  --seed S       one seed; its last trace lines are printed
  --steps N      end the faults of a seed after N events (default 30000)
  --trace        write every line of the trace of --seed to stdout
  --planted BUG  run with a bug put in on purpose: ack-before-sync, forgotten-vote,
                 flush-reported-early, forgotten-promise, ignored-epoch, support-kept, lease-kept,
                 range-kept, shape-unawaited, first-from-commit, fresh-unapplied or
                 removed-asked-late; seeds must fail. With pin-ignored (a snapshot is in vain)
                 and request-dropped (a region is led later) they need not
  --workload W   kv: reads, writes, swaps and range deletes over a few keys (the default);
                 regions: the same while regions are cut up, merged and moved, and stores come and go

exit code: 0 all seeds passed, 1 a seed failed or the output cannot be written, 2 usage
example: catamaran-sim --seeds 0..500";

struct Arguments {
    seeds: Range<u64>,
    steps: Option<u64>,
    planted: Option<(&'static str, Planted)>,
    workload: Workload,
    single: bool,
    trace: bool,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut out = Arguments {
        seeds: 0..0,
        steps: None,
        planted: None,
        workload: Workload::Kv,
        single: false,
        trace: false,
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        let number = |text: &str| text.parse::<u64>().map_err(|_| format!("not a number: {text}"));
        match word.as_str() {
            "--seeds" => {
                let text = value()?;
                let (from, to) = text.split_once("..").ok_or("--seeds takes A..B")?;
                out.seeds = number(from)?..number(to)?;
            }
            "--seed" => {
                let seed = number(&value()?)?;
                let end = seed.checked_add(1);
                out.seeds = seed..end.ok_or(format!("--seed is at most {}", u64::MAX - 1))?;
                out.single = true;
            }
            "--steps" => out.steps = Some(number(&value()?)?),
            "--planted" => {
                let name = value()?;
                let bug = Planted::ALL.into_iter().find(|(known, _)| *known == name);
                out.planted = Some(bug.ok_or(format!("unknown bug {name}"))?);
            }
            "--trace" => out.trace = true,
            "--workload" => {
                let name = value()?;
                let known = Workload::ALL.into_iter().find(|(known, _)| *known == name);
                let unknown = || format!("unknown workload {name}; there are: kv, regions");
                out.workload = known.ok_or_else(unknown)?.1;
            }
            "--help" | "-h" => return Err(String::new()),
            other => return Err(format!("unknown argument {other}")),
        }
    }
    if out.seeds.is_empty() {
        return Err("no seeds: --seeds A..B with A < B".into());
    }
    if out.trace && !out.single {
        return Err("--trace goes with --seed".into());
    }
    Ok(out)
}

fn plan(seed: u64, arguments: &Arguments) -> Plan {
    let plan = Plan::new(seed);
    let planted = arguments.planted.map(|(_, bug)| bug);
    let (steps, workload) = (arguments.steps.unwrap_or(plan.steps), arguments.workload);
    Plan { steps, planted, workload, ..plan }
}

/// A panic in the engine is a failure of the seed, and no reason to end the swarm.
fn run_caught(plan: &Plan) -> Report {
    std::panic::catch_unwind(|| run(plan)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("?");
        Report::panicked(plan.seed, text)
    })
}

/// All reports, in order of their seeds.
fn swarm(arguments: &Arguments) -> Vec<Report> {
    let next = AtomicU64::new(arguments.seeds.start);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let mut reports: Vec<Report> = std::thread::scope(|scope| {
        let worker = || {
            let mut done = Vec::new();
            loop {
                // Not beyond the end: that may be the last number there is.
                let more = |seed| (seed < arguments.seeds.end).then(|| seed + 1);
                let Ok(seed) = next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) else {
                    return done;
                };
                done.push(run_caught(&plan(seed, arguments)));
            }
        };
        let handles: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        handles.into_iter().flat_map(|h| h.join().unwrap_or_default()).collect()
    });
    reports.sort_by_key(|report| report.seed);
    reports
}

fn print(out: &mut dyn Write, report: &Report, arguments: &Arguments) -> io::Result<()> {
    if let Some(violation) = &report.violation {
        let steps = arguments.steps.map_or(String::new(), |steps| format!(" --steps {steps}"));
        let planted =
            arguments.planted.map_or(String::new(), |(bug, _)| format!(" --planted {bug}"));
        writeln!(
            out,
            "seed {} FAILED: {} | replay: catamaran-sim --workload {} --seed {}{steps}{planted}",
            report.seed,
            violation.replace('\n', " / "),
            arguments.workload.name(),
            report.seed
        )?;
    }
    Ok(())
}

/// What the run has to say, last line last.
fn print_all(reports: &[Report], failed: usize, arguments: &Arguments) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for report in reports {
        if arguments.single && !arguments.trace {
            report.tail.iter().try_for_each(|line| writeln!(out, "{line}"))?;
        }
        print(&mut out, report, arguments)?;
    }
    let sum = |count: fn(&Report) -> u64| reports.iter().map(count).sum::<u64>();
    let hash = reports.iter().fold(0u64, |all, r| all.rotate_left(5) ^ r.trace_hash);
    let simulated: f64 = reports.iter().map(|r| r.simulated.as_secs_f64()).sum();
    writeln!(
        out,
        "{} seeds, {failed} failed, {} undecided; {} events, {} operations answered, {} unknown, {} crashes, \
         {} elections, {} splits, {} wished for load, {} changes, {}/{}/{} frozen/merged/thawed, {} by themselves, {} leaderships spread, \
         {}/{}/{} stores joined/drained/left, {}/{} directories wiped/put back, {} logs damaged, {} fenced off, {} in merges, {} asked before birth, {} disks full, {} restores put off, {} connections refused, {} asleep at faults, {} snapshots, \
         {} slots refused, {} called off, {} flushes, {} reads by lease or \
         freshness, {} stale, {} of followers, removed replicas lived on for {} ms at most, \
         {simulated:.0} s simulated, trace {hash:016x}",
        reports.len(),
        sum(|r| r.counts.undecided),
        sum(|r| r.counts.steps),
        sum(|r| r.counts.answered),
        sum(|r| r.counts.unknown),
        sum(|r| r.counts.crashes),
        sum(|r| r.counts.elections),
        sum(|r| r.counts.splits[0]),
        sum(|r| r.counts.splits[1]),
        sum(|r| r.counts.changes),
        sum(|r| r.counts.merges[0]),
        sum(|r| r.counts.merges[1]),
        sum(|r| r.counts.merges[2]),
        sum(|r| r.counts.automatic_merges),
        sum(|r| r.counts.spread),
        sum(|r| r.counts.stores[0]),
        sum(|r| r.counts.stores[1]),
        sum(|r| r.counts.stores[2]),
        sum(|r| r.counts.lost[0]),
        sum(|r| r.counts.lost[1]),
        sum(|r| r.counts.damaged),
        sum(|r| r.counts.fenced[0]),
        sum(|r| r.counts.fenced[1]),
        sum(|r| r.counts.asked_unborn),
        sum(|r| r.counts.full),
        sum(|r| r.counts.waited_for_room),
        sum(|r| r.counts.kept_out),
        sum(|r| r.counts.asleep),
        sum(|r| r.counts.snapshots),
        sum(|r| r.counts.refused),
        sum(|r| r.counts.called_off),
        sum(|r| r.counts.flushes),
        sum(|r| r.counts.lease_reads),
        sum(|r| r.counts.stale_reads),
        sum(|r| r.counts.follower_reads),
        reports.iter().map(|r| r.counts.afterlife).max().unwrap_or(0),
    )?;
    out.flush()
}

/// Of so many seeds one may be too hard to judge: more, and the judge has gone blind.
const UNDECIDED_ONE_IN: u64 = 100;

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(problem) if problem.is_empty() => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(problem) => {
            eprintln!("catamaran-sim: {problem}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    std::panic::set_hook(Box::new(|_| {})); // reported with the seed
    let started = Instant::now();
    let reports = match arguments.trace {
        true => vec![run_traced(&plan(arguments.seeds.start, &arguments), std::io::stdout())],
        false => swarm(&arguments),
    };
    let failed = reports.iter().filter(|report| report.violation.is_some()).count();
    eprintln!("{:.1} s of real time", started.elapsed().as_secs_f64());
    if let Err(error) = print_all(&reports, failed, &arguments) {
        eprintln!("catamaran-sim: cannot write to standard output: {error}");
        return ExitCode::FAILURE;
    }
    let undecided: u64 = reports.iter().map(|report| report.counts.undecided).sum();
    if undecided * UNDECIDED_ONE_IN > reports.len() as u64 {
        eprintln!("catamaran-sim: {undecided} histories were neither shown nor refuted: too many");
        return ExitCode::FAILURE;
    }
    if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seeds(line: &str) -> Result<Range<u64>, String> {
        parse(line.split_whitespace().map(str::to_owned)).map(|arguments| arguments.seeds)
    }

    #[test]
    fn seeds_are_taken_up_to_the_last_and_refused_beyond() {
        assert_eq!(seeds("--seed 7"), Ok(7..8));
        assert_eq!(seeds("--seed 18446744073709551614"), Ok(u64::MAX - 1..u64::MAX));
        assert!(seeds("--seed 18446744073709551615").unwrap_err().contains("at most"));
        assert!(seeds("--seed 18446744073709551616").is_err());
        assert!(seeds("--seeds 3..3").is_err() && seeds("").is_err());
        assert_eq!(seeds("--seeds 1..18446744073709551615"), Ok(1..u64::MAX));
    }
}
