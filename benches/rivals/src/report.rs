//! What was measured, as JSON for machines. [`table`](crate::table) makes it readable.

use crate::drive::Figures;
use crate::engine::Which;
use crate::space::Space;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// All that one run measured.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Where.
    pub machine: String,
    /// Which commit of ours, if the caller said.
    pub commit: Option<String>,
    /// Seconds of each measurement.
    pub seconds: f64,
    /// Rows of writing.
    pub rows: Vec<Row>,
    /// Rows of space.
    pub space: Vec<Space>,
}

/// One row of writing for one engine.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Name of the work.
    pub work: String,
    /// Which engine.
    pub which: Which,
    /// Each repetition.
    pub runs: Vec<Figures>,
}

/// Smallest, middle and largest. Of an even number the lower middle.
pub fn spread(values: impl Iterator<Item = f64>) -> (f64, f64, f64) {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let at = |i: usize| values.get(i).copied().unwrap_or(f64::NAN);
    let last = values.len().saturating_sub(1);
    (at(0), at(last / 2), at(last))
}

impl Row {
    /// The median of a figure over the repetitions.
    pub fn median(&self, what: impl Fn(&Figures) -> f64) -> f64 {
        spread(self.runs.iter().map(what)).1
    }

    /// The median rate.
    pub fn rate(&self) -> f64 {
        self.median(|figures| figures.entries_per_s)
    }
}

impl Report {
    /// Adds a run to its row.
    pub fn add(&mut self, work: &str, which: Which, figures: Figures) {
        match self.rows.iter_mut().find(|row| row.work == work && row.which == which) {
            Some(row) => row.runs.push(figures),
            None => self.rows.push(Row { work: work.to_owned(), which, runs: vec![figures] }),
        }
    }

    /// Takes in another report of the same machine and code: rows measured at another time.
    pub fn merge(&mut self, other: Report) -> Result<()> {
        ensure!(
            self.machine == other.machine && self.commit == other.commit,
            "results of {} ({:?}) and of {} ({:?}) are not to be compared",
            self.machine,
            self.commit,
            other.machine,
            other.commit
        );
        self.seconds = self.seconds.max(other.seconds);
        for row in other.rows {
            for figures in row.runs {
                self.add(&row.work, row.which, figures);
            }
        }
        self.space.retain(|old| other.space.iter().all(|new| new.which != old.which));
        self.space.extend(other.space);
        Ok(())
    }

    /// Reads files written by `--json` and puts them together.
    pub fn read(files: &[PathBuf]) -> Result<Report> {
        let mut all: Option<Report> = None;
        for file in files {
            let name = || file.display().to_string();
            let text = std::fs::read_to_string(file).with_context(name)?;
            let report: Report = serde_json::from_str(&text).with_context(name)?;
            match &mut all {
                Some(all) => all.merge(report).with_context(name)?,
                None => all = Some(report),
            }
        }
        Ok(all.unwrap_or_default())
    }

    /// The rows of one work.
    pub fn of(&self, work: &str) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.work == work)
    }

    /// Ours of one work: compressed or not, whichever is faster, as of the rivals.
    pub fn ours(&self, work: &str) -> Option<&Row> {
        let ours = self.of(work).filter(|row| row.which.is_ours());
        ours.max_by(|a, b| a.rate().total_cmp(&b.rate()))
    }

    /// What a row is judged by: the raft-engine with the most entries a second.
    pub fn yardstick(&self, work: &str) -> Option<&Row> {
        let variants = self.of(work).filter(|row| row.which.is_raft_engine());
        variants.max_by(|a, b| a.rate().total_cmp(&b.rate()))
    }
}
