//! Replicated, synced puts: files of `catamaran-load run --profile durable --json` and of `catamaran-peers etcd --json`
//! as rows of one table. Repetitions of one shape become one row.

use crate::report::{Durable, DurableRow};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::path::PathBuf;

/// What is read of a file of `catamaran-load`.
#[derive(Deserialize)]
struct Loaded {
    profile: String,
    nodes: u64,
    regions: u64,
    clients: u64,
    batch: u64,
    value_size: u64,
    state: String,
    ops_per_s: f64,
    latency_us: Latency,
    commit: Option<String>,
}

#[derive(Deserialize)]
struct Latency {
    p50: f64,
    p99: f64,
}

impl Loaded {
    fn row(self) -> Result<DurableRow> {
        if self.profile != "durable" {
            bail!("a run of the profile {:?}: only durable ones are comparable", self.profile);
        }
        let Loaded { nodes, regions, clients, batch, value_size, state, .. } = self;
        let run = Durable {
            puts_per_s: self.ops_per_s,
            p50_us: self.latency_us.p50,
            p99_us: self.latency_us.p99,
        };
        Ok(DurableRow {
            system: format!("catamaran, {nodes} nodes, {regions} regions, state: {state}"),
            clients,
            batch,
            value: value_size,
            runs: vec![run],
        })
    }
}

/// A row, and the commit of ours that it is of, if it is and says so.
fn row(text: &str) -> Result<(DurableRow, Option<String>)> {
    if let Ok(row) = serde_json::from_str::<DurableRow>(text) {
        return Ok((row, None));
    }
    let mut loaded: Loaded =
        serde_json::from_str(text).context("neither of catamaran-load nor of catamaran-peers")?;
    let commit = loaded.commit.take();
    Ok((loaded.row()?, commit))
}

/// Reads result files of either kind. The commit is the one that the runs of ours name: all the same one.
pub fn read(files: &[PathBuf]) -> Result<(Vec<DurableRow>, Option<String>)> {
    let mut rows: Vec<DurableRow> = Vec::new();
    let mut commit: Option<String> = None;
    for file in files {
        let name = || file.display().to_string();
        let text = std::fs::read_to_string(file).with_context(name)?;
        let (new, of) = row(&text).with_context(name)?;
        if commit.is_some() && of.is_some() && of != commit {
            bail!("{}: of {of:?}, others are of {commit:?}", name());
        }
        commit = of.or(commit);
        let alike =
            |row: &&mut DurableRow| DurableRow { runs: new.runs.clone(), ..(**row).clone() } == new;
        match rows.iter_mut().find(alike) {
            Some(row) => row.runs.extend(new.runs),
            None => rows.push(new),
        }
    }
    Ok((rows, commit))
}
