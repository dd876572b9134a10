//! What was measured, as JSON for machines. [`table`](crate::table) makes it readable.

use crate::consensus::idle::Idle;
use crate::consensus::{self, Figures};
use crate::store::{self, work::Load};
use anyhow::{Context, Result};
pub use catamaran_rivals::report::spread;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// All that one run measured.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Where.
    pub machine: String,
    /// Which commit of ours, if the caller said.
    pub commit: Option<String>,
    /// Seconds of each measurement of consensus.
    #[serde(default)]
    pub seconds: f64,
    /// Rows of consensus.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub consensus: Vec<ConsensusRow>,
    /// Idle groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub idle: Vec<Idle>,
    /// Rows of the state store.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub store: Vec<StoreRow>,
    /// Replicated, synced puts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub durable: Vec<DurableRow>,
}

/// One row of consensus for one peer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ConsensusRow {
    /// Name of the work.
    pub work: String,
    /// Which peer.
    pub which: consensus::Which,
    /// Each repetition.
    pub runs: Vec<Figures>,
}

/// One load of the state store for one engine.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StoreRow {
    /// What was applied.
    pub load: Load,
    /// Which engine.
    pub which: store::Which,
    /// Each repetition.
    pub runs: Vec<store::drive::Figures>,
}

/// Replicated, synced puts of one system.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DurableRow {
    /// Which system, with its version.
    pub system: String,
    /// Clients, each with one request outstanding.
    pub clients: u64,
    /// Puts in a request.
    pub batch: u64,
    /// Bytes of a value.
    pub value: u64,
    /// Each repetition.
    pub runs: Vec<Durable>,
}

/// What a run of it found.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Durable {
    /// Puts acknowledged per second.
    pub puts_per_s: f64,
    /// Of a request, the median.
    pub p50_us: f64,
    /// Of a request, the 99th percentile.
    pub p99_us: f64,
}

impl ConsensusRow {
    /// The median of a figure over the repetitions.
    pub fn median(&self, what: impl Fn(&Figures) -> f64) -> f64 {
        spread(self.runs.iter().map(what)).1
    }

    /// The median rate.
    pub fn rate(&self) -> f64 {
        self.median(|figures| figures.puts_per_s)
    }
}

impl StoreRow {
    /// Smallest, median and largest of a figure.
    pub fn spread(&self, what: impl Fn(&store::drive::Figures) -> f64) -> (f64, f64, f64) {
        spread(self.runs.iter().map(what))
    }
}

impl Report {
    /// Of this machine, with nothing in it yet.
    pub fn here(commit: Option<String>) -> Report {
        let machine = catamaran_rivals::machine::describe();
        Report { machine, commit, ..Report::default() }
    }

    /// Reads a file written by `--json`.
    pub fn read(file: &Path) -> Result<Report> {
        let name = || file.display().to_string();
        let text = std::fs::read_to_string(file).with_context(name)?;
        serde_json::from_str(&text).with_context(name)
    }

    /// Reads several.
    pub fn read_all(files: &[PathBuf]) -> Result<Vec<Report>> {
        files.iter().map(|file| Report::read(file)).collect()
    }

    /// Writes it as JSON.
    pub fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(file, text + "\n").with_context(|| file.display().to_string())
    }

    /// Names of the consensus rows, in the order in which they were measured.
    pub fn works(&self) -> Vec<&str> {
        let mut works = Vec::new();
        for row in &self.consensus {
            if !works.contains(&row.work.as_str()) {
                works.push(&row.work);
            }
        }
        works
    }

    /// The fastest of some peers in a consensus row.
    pub fn fastest(
        &self,
        work: &str,
        of: impl Fn(consensus::Which) -> bool,
    ) -> Option<&ConsensusRow> {
        let rows = self.consensus.iter().filter(|row| row.work == work && of(row.which));
        rows.max_by(|a, b| a.rate().total_cmp(&b.rate()))
    }
}
