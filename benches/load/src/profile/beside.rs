//! The log profile beside other logs: the rows and engines of `catamaran-rivals`, with this command line's
//! groups, threads, entries, span, sizes and window. Nothing of the work is written here a second time.

use super::Place;
use crate::args::Plan;
use crate::machine;
use anyhow::{Result, anyhow};
use catamaran_rivals::engine::Which;
use catamaran_rivals::report::Report;
use catamaran_rivals::turns::Turns;
use catamaran_rivals::work::{ROWS, Work};
use std::time::Duration;

/// Rest before each measurement: disks of rented machines have a budget that refills.
const REST: Duration = Duration::from_secs(1);
/// How often each is measured unless the command line says otherwise.
const REPETITIONS: u64 = 3;

/// The plan's work. If it is one of the known rows it bears that one's name, and its target.
fn work(plan: &Plan) -> Work {
    let work = Work {
        name: "asked for",
        groups: plan.groups,
        threads: plan.threads as u64,
        span: plan.span,
        each: plan.entries / plan.span,
        size: plan.value_size,
        window: plan.window,
    };
    ROWS.iter().copied().find(|row| Work { name: work.name, ..*row } == work).unwrap_or(work)
}

/// Measures ours and the others in turn. The result as JSON and as tables.
pub fn run(plan: &Plan) -> Result<(String, String)> {
    let mut engines = vec![Which::Catamaran];
    for name in &plan.beside {
        let which = Which::parse(name).map_err(|error| anyhow!("--beside {name}: {error}"))?;
        if !engines.contains(&which) {
            engines.push(which);
        }
    }
    catamaran_rivals::machine::raise_limits();
    let place = Place::new(plan.data_dir.as_deref())?;
    let mut report = Report {
        machine: catamaran_rivals::machine::describe(),
        commit: Some(machine::commit().to_owned()),
        seconds: plan.duration.as_secs_f64(),
        ..Report::default()
    };
    let turns = Turns {
        repetitions: plan.repetitions.unwrap_or(REPETITIONS) as usize,
        took: plan.duration,
        rest: REST,
    };
    turns.take(work(plan), &engines, place.path(), &mut report)?;
    Ok((serde_json::to_string_pretty(&report)? + "\n", report.table()))
}
