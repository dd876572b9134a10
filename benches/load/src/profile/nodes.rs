//! Whole nodes: three over loopback TCP, three over memory, one alone, or running servers.

use super::Place;
use crate::args::{Plan, Profile};
use crate::cluster::Cluster;
use crate::drive::{Driven, Progress, drive};
use crate::enter::{Entry, Reads};
use crate::keys::KeySpace;
use crate::record::Window;
use crate::remote::Servers;
use crate::report::{Cost, Report};
use crate::verify::verify;
use crate::watch::{say, watch};
use anyhow::Result;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often the generator looks where the regions are led.
const LOOK_EVERY: Duration = Duration::from_millis(500);

fn space(plan: &Plan) -> KeySpace {
    KeySpace::new(plan.regions, plan.clients, plan.keys, plan.key_size, plan.distribution)
}

fn reads(plan: &Plan) -> Reads {
    if plan.read_ratio > 0.0 { Reads::Some } else { Reads::None }
}

/// Drives `entry` and measures what `cost` says over the window.
fn measure(plan: &Plan, entry: &Entry, cost: impl Fn() -> Cost) -> (Driven, Report) {
    let progress = Progress::default();
    let mut spent = Cost::default();
    let (driven, window) = drive(plan, space(plan), entry, &progress, |window: Window| {
        let warm = Window { start: window.start, end: window.start };
        watch(warm, &progress);
        let before = cost();
        watch(window, &progress);
        spent = cost().since(&before);
    });
    let mut report = Report::new(plan, &driven.record, window.end - window.start, &spent);
    report.abandoned = driven.abandoned;
    report.wrong_reads = driven.record.wrong_reads;
    (driven, report)
}

/// Runs the profile.
pub(super) fn run(plan: &Plan) -> Result<Report> {
    if !plan.connect.is_empty() {
        return run_remote(plan);
    }
    let place = Place::new(plan.data_dir.as_deref())?;
    say(&format!("opening {} nodes with {} regions", plan.nodes, plan.regions));
    let cluster = Cluster::open(plan, place.path())?;
    let regions = plan.regions as usize;
    let entry = Entry::new(cluster.clients(), plan.regions, reads(plan))?;
    entry.set_leaders(&cluster.leaders(regions)?);
    let ended = AtomicBool::new(false);
    let (driven, mut report) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut looked = Instant::now();
            while !ended.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(20));
                if looked.elapsed() >= LOOK_EVERY {
                    looked = Instant::now();
                    if let Ok(leaders) = cluster.leaders(regions) {
                        entry.set_leaders(&leaders);
                    }
                }
            }
        });
        let measured = measure(plan, &entry, || cluster.cost());
        ended.store(true, Ordering::Release);
        measured
    });
    drop(entry);
    cluster.check_health()?;
    if !plan.verify || plan.profile == Profile::Consensus {
        cluster.close()?;
        return Ok(report);
    }
    say("closing the nodes");
    cluster.close()?;
    say("opening them again, reading back");
    let cluster = Cluster::open(plan, place.path())?;
    let entry = Entry::new(cluster.clients(), plan.regions, Reads::None)?;
    report.verified = Some(verify(plan, space(plan), &driven.ledgers, &entry)?);
    drop(entry);
    cluster.close()?;
    Ok(report)
}

/// Drives running servers: what they did is asked of them, their processor time is not visible from here.
fn run_remote(plan: &Plan) -> Result<Report> {
    let servers = Servers::connect(&plan.connect, plan.timeout)?;
    let entry = Entry::new(vec![servers.client()], plan.regions, reads(plan))?;
    let (driven, mut report) = measure(plan, &entry, || servers.cost());
    (report.nodes, report.regions) = servers.count();
    if plan.verify {
        say("reading back from the running servers (their directories are not reopened)");
        report.verified = Some(verify(plan, space(plan), &driven.ledgers, &entry)?);
    }
    Ok(report)
}
