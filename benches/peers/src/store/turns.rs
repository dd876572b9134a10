//! Engines in turn, a process for each measurement.

use super::Which;
use super::drive::Ask;
use super::work::Load;
use crate::report::{Report, StoreRow};
use anyhow::{Context, Result};
use std::path::Path;
use std::time::Duration;

/// Measures one load for all of these engines, `repetitions` times, below `dir`, and adds the figures. Says on standard
/// error how it goes.
pub fn take(
    load: Load,
    engines: &[Which],
    (repetitions, rest): (usize, Duration),
    dir: &Path,
    report: &mut Report,
) -> Result<()> {
    for repetition in 0..repetitions {
        for which in engines {
            std::thread::sleep(rest);
            let place = tempfile::tempdir_in(dir).context("a place to work")?;
            let ask = Ask { which: *which, place: place.path().to_owned(), load };
            let figures = ask.elsewhere()?;
            eprintln!(
                "{repetition} {} ops, {} prefixes, {}: {:.0} k ops/s, {:.2} us CPU an op, {:.2} written, settled in {:.1} s, \
                 worst {:.0} ms ({:.0} ms at 80 %), {:.0} k gets/s, {:.2} M keys/s walked",
                load.ops,
                load.prefixes,
                which.name(),
                figures.apply_per_s / 1e3,
                figures.cpu_us_per_op,
                figures.write_amplification,
                figures.settle_s,
                figures.worst_batch_ms,
                figures.worst_paced_batch_ms,
                figures.gets_per_s / 1e3,
                figures.scan_per_s / 1e6,
            );
            let rows = &mut report.store;
            match rows.iter_mut().find(|row| row.load == load && row.which == *which) {
                Some(row) => row.runs.push(figures),
                None => rows.push(StoreRow { load, which: *which, runs: vec![figures] }),
            }
        }
    }
    Ok(())
}
