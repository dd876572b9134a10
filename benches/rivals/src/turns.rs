//! Engines in turn: every one open at the same time, each measured for a while, then the next, and again.

use crate::drive::Bench;
use crate::engine::Which;
use crate::report::Report;
use crate::work::Work;
use anyhow::Result;
use std::path::Path;
use std::time::Duration;

/// How engines take turns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Turns {
    /// How often each is measured.
    pub repetitions: usize,
    /// For how long.
    pub took: Duration,
    /// Rest before each: disks of rented machines have a budget that refills.
    pub rest: Duration,
}

impl Turns {
    /// Measures one row for all of these engines, in directories below `dir`, and adds the figures. Says on
    /// standard error how it goes.
    pub fn take(
        self,
        work: Work,
        engines: &[Which],
        dir: &Path,
        report: &mut Report,
    ) -> Result<()> {
        let mut benches = Vec::new();
        for which in engines {
            let bench = Bench::open(*which, work, &dir.join(which.name()))?;
            benches.push((*which, bench));
        }
        for repetition in 0..self.repetitions {
            for (which, bench) in &mut benches {
                std::thread::sleep(self.rest);
                let figures = bench.run(self.took)?;
                eprintln!(
                    "{repetition} {} {}: {:.1} k entries/s, p50 {:.0} us, p99 {:.0} us, max {:.0} us",
                    work.name,
                    which.name(),
                    figures.entries_per_s / 1e3,
                    figures.p50_us,
                    figures.p99_us,
                    figures.max_us
                );
                report.add(work.name, *which, figures);
            }
        }
        Ok(())
    }
}
