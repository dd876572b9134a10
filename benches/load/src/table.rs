//! `catamaran-load table`: results of runs as a Markdown table, one row for each kind of run, with the median and
//! the spread of its repetitions. README's table is made by it, see `benches/readme-table.sh`.

use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What makes two runs repetitions of one another.
const KIND: [&str; 7] = ["profile", "state", "nodes", "regions", "clients", "batch", "value_size"];

fn number(run: &Value, path: &str) -> f64 {
    run.pointer(path).and_then(Value::as_f64).unwrap_or(0.0)
}

/// Smallest, middle and largest of a figure over the repetitions.
fn spread(runs: &[Value], path: &str) -> (f64, f64, f64) {
    let mut values: Vec<f64> = runs.iter().map(|run| number(run, path)).collect();
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
    // Of an even number the lower middle: not the flattering one.
    (at(0), at(values.len().saturating_sub(1) / 2), at(values.len().saturating_sub(1)))
}

fn kind(run: &Value) -> String {
    KIND.map(|field| run.get(field).map_or(String::new(), ToString::to_string)).join("|")
}

/// The rate that the profile is about: entries for the log, operations for everything else.
fn rate(runs: &[Value]) -> String {
    let log = runs.first().is_some_and(|run| run.get("profile") == Some(&"log".into()));
    let (path, unit) = if log { ("/log/entries_per_s", " entries/s") } else { ("/ops_per_s", "") };
    let (low, middle, high) = spread(runs, path);
    let thousands = |value: f64| format!("{:.0} k", value / 1000.0);
    match runs.len() {
        1 => format!("{}{unit}", thousands(middle)),
        n => format!(
            "**{}**{unit} ({}-{}, n={n})",
            thousands(middle),
            thousands(low),
            thousands(high)
        ),
    }
}

fn row(runs: &[Value]) -> String {
    let Some(run) = runs.first() else { return String::new() };
    let text = |field: &str| run.get(field).and_then(Value::as_str).unwrap_or("-").to_owned();
    let ms = |path: &str| format!("{:.1}", spread(runs, path).1 / 1000.0);
    let verified: f64 = runs.iter().map(|run| number(run, "/verified/checked")).sum();
    let bad: f64 = runs
        .iter()
        .map(|run| number(run, "/verified/missing") + number(run, "/verified/wrong"))
        .sum();
    let verdict = match verified > 0.0 {
        true => format!("{verified:.0} keys, {bad:.0} missing or wrong"),
        false => "-".to_owned(),
    };
    format!(
        "| {}, {} | {:.0} | {:.0} x {:.0} | {} | {:.0} | {} | {} | {} | {verdict} |",
        text("profile"),
        text("state"),
        number(run, "/regions"),
        number(run, "/clients"),
        number(run, "/batch"),
        rate(runs),
        spread(runs, "/fsyncs_per_s").1,
        ms("/latency_us/p50"),
        ms("/latency_us/p99"),
        ms("/latency_us/max"),
    )
}

fn origin(run: &Value) -> String {
    let text = |path: &str| match run.pointer(path) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => "?".to_owned(),
    };
    format!(
        "Commit {}, {} cores, {}. Median of n runs (smallest-largest); latencies are medians, in ms; log syncs are those of all nodes together.",
        text("/commit"),
        text("/machine/cores"),
        text("/machine/cpu"),
    )
}

/// The table of these result files, in the order in which their kinds first appear.
pub fn table(files: &[PathBuf]) -> Result<String> {
    let mut order = Vec::new();
    let mut kinds: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for file in files {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let run: Value = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
        let kind = kind(&run);
        if !kinds.contains_key(&kind) {
            order.push(kind.clone());
        }
        kinds.entry(kind).or_default().push(run);
    }
    let mut out = String::from(
        "| profile, state | regions | clients x batch | operations/s | log syncs/s | p50 | p99 | max | read back |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for kind in &order {
        if let Some(runs) = kinds.get(kind) {
            out.push_str(&row(runs));
            out.push('\n');
        }
    }
    if let Some(run) = order.first().and_then(|kind| kinds.get(kind)?.first()) {
        out.push('\n');
        out.push_str(&origin(run));
        out.push('\n');
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_share_a_row_with_their_median() {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<PathBuf> = [300_000.0, 100_000.0, 200_000.0]
            .iter()
            .enumerate()
            .map(|(at, rate)| {
                let path = dir.path().join(format!("{at}.json"));
                let run = serde_json::json!({
                    "profile": "durable", "state": "disk", "nodes": 3, "regions": 64,
                    "clients": 256, "batch": 128, "value_size": 64, "ops_per_s": rate,
                    "fsyncs_per_s": 400.0, "latency_us": {"p50": 1000.0, "p99": 2000.0, "max": 3000.0},
                    "verified": {"checked": 10, "missing": 0, "wrong": 0}, "commit": "abc"
                });
                std::fs::write(&path, run.to_string()).unwrap();
                path
            })
            .collect();
        let table = table(&files).unwrap();
        assert!(table.contains("**200 k** (100 k-300 k, n=3)"), "{table}");
        assert!(table.contains("30 keys, 0 missing or wrong"), "{table}");
        assert_eq!(table.lines().filter(|line| line.starts_with("| durable")).count(), 1);
    }
}
