//! Peers in turn: for every repetition of a row each is opened, driven and closed, one after the other.

use super::{Span, Which, Work, measure};
use crate::report::{ConsensusRow, Report};
use anyhow::{Context, Result};
use std::time::Duration;

/// How peers take turns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Turns {
    /// How often each is measured.
    pub repetitions: usize,
    /// For how long.
    pub span: Span,
    /// Rest before each.
    pub rest: Duration,
}

impl Turns {
    /// Measures one row for all of these peers and adds the figures. Says on standard error how it goes.
    pub fn take(self, work: Work, peers: &[Which], report: &mut Report) -> Result<()> {
        let name = work.name();
        for repetition in 0..self.repetitions {
            for which in peers {
                std::thread::sleep(self.rest);
                let figures = measure(*which, work, self.span)
                    .with_context(|| format!("{} {name}", which.name()))?;
                eprintln!(
                    "{repetition} {name} {}: {:.1} k puts/s, p50 {:.0} us, p99 {:.0} us, {:.2} us CPU a put",
                    which.name(),
                    figures.puts_per_s / 1e3,
                    figures.p50_us,
                    figures.p99_us,
                    figures.cpu_us_per_put,
                );
                let rows = &mut report.consensus;
                match rows.iter_mut().find(|row| row.work == name && row.which == *which) {
                    Some(row) => row.runs.push(figures),
                    None => {
                        let row =
                            ConsensusRow { work: name.clone(), which: *which, runs: vec![figures] };
                        rows.push(row);
                    }
                }
            }
        }
        Ok(())
    }
}
