//! `catamaran-load table`: results of runs as a Markdown table, one row for each kind of run, with the median and
//! the spread of its repetitions. README's table is made by it, see `benches/readme-table.sh`.

use crate::compare::{Better, Run};
use anyhow::{Result, bail};
use std::path::PathBuf;

fn number(run: &Run, path: &str) -> f64 {
    run.number(path).unwrap_or(0.0)
}

/// Smallest, middle and largest of a figure over the repetitions; of an even number the worse of the two in the middle.
fn spread(runs: &[Run], path: &str, better: Better) -> (f64, f64, f64) {
    let mut values: Vec<f64> = runs.iter().map(|run| number(run, path)).collect();
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
    let last = values.len().saturating_sub(1);
    let middle = match better {
        Better::Lower => last.div_ceil(2),
        _ => last / 2,
    };
    (at(0), at(middle), at(last))
}

fn is_log(runs: &[Run]) -> bool {
    runs.first().is_some_and(|run| run.shown("/profile") == "log")
}

/// The rate that the profile is about: entries for the log, operations for everything else.
fn rate(runs: &[Run]) -> String {
    let (path, unit) = match is_log(runs) {
        true => ("/log/entries_per_s", " entries/s"),
        false => ("/ops_per_s", ""),
    };
    let (low, middle, high) = spread(runs, path, Better::Higher);
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

/// How keys were drawn, unless as usual.
fn drawn(run: &Run) -> String {
    match run.shown("/distribution") {
        usual if usual.is_empty() || usual == "uniform" || usual == "-" => String::new(),
        other => format!(", {other}"),
    }
}

/// The nodes' settings that were not their defaults.
fn settings(run: &Run) -> String {
    run.settings().map(|(key, value)| format!(", {key} {value}")).collect()
}

fn row(runs: &[Run]) -> String {
    let Some(run) = runs.first() else { return String::new() };
    let ms = |path: &str| format!("{:.1}", spread(runs, path, Better::Lower).1 / 1000.0);
    let (what, regions, clients) = match is_log(runs) {
        true => (
            format!(
                "log alone: {} entries over {} groups",
                run.shown("/log/entries_per_write"),
                run.shown("/log/span")
            ),
            "-".to_owned(),
            format!("{} threads x {} ahead", run.shown("/log/threads"), run.shown("/log/window")),
        ),
        false => (
            format!(
                "{}, {}{}{}",
                run.shown("/profile"),
                run.shown("/state"),
                drawn(run),
                settings(run)
            ),
            run.shown("/regions"),
            format!("{} x {}", run.shown("/clients"), run.shown("/batch")),
        ),
    };
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
        "| {what} | {regions} | {clients} | {} | {:.0} | {} | {} | {} | {verdict} |",
        rate(runs),
        spread(runs, "/fsyncs_per_s", Better::Higher).1,
        ms("/latency_us/p50"),
        ms("/latency_us/p99"),
        ms("/latency_us/max"),
    )
}

fn origin(run: &Run) -> String {
    format!(
        "Commit {}, {} cores, {}. Median of n runs (smallest-largest), of an even number the worse one; latencies in ms; log syncs are those of \
         all nodes together; what was read back is of all n.",
        run.shown("/commit"),
        run.shown("/machine/cores"),
        run.shown("/machine/cpu"),
    )
}

/// The table of these result files, in the order in which their kinds first appear. Refuses what is not a result, and
/// results of several commits or machines: the table names one.
pub fn table(files: &[PathBuf]) -> Result<String> {
    let mut kinds: Vec<(String, Vec<Run>)> = Vec::new();
    let mut origins: Option<(String, PathBuf)> = None;
    for file in files {
        let run = Run::read(file)?;
        let from = origin(&run);
        match &origins {
            Some((other, first)) if *other != from => bail!(
                "{} and {} are not of one commit and machine: one table does not hold both",
                first.display(),
                file.display()
            ),
            _ => origins = Some((from, file.clone())),
        }
        let kind = run.kind();
        match kinds.iter_mut().find(|(other, _)| *other == kind) {
            Some((_, runs)) => runs.push(run),
            None => kinds.push((kind, vec![run])),
        }
    }
    let mut out = String::from(
        "| profile, state | regions | clients x batch | operations/s | log syncs/s | p50 | p99 | max | read back |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for (_, runs) in &kinds {
        out.push_str(&row(runs));
        out.push('\n');
    }
    if let Some((from, _)) = origins {
        out.push('\n');
        out.push_str(&from);
        out.push('\n');
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A result file.
    fn result(
        dir: &std::path::Path,
        at: usize,
        rate: f64,
        p99: f64,
        more: &[(&str, &str)],
    ) -> PathBuf {
        let path = dir.join(format!("{at}.json"));
        let mut run = serde_json::json!({
            "profile": "durable", "state": "disk", "nodes": 3, "regions": 64,
            "clients": 256, "batch": 128, "value_size": 64, "ops_per_s": rate,
            "fsyncs_per_s": 400.0, "latency_us": {"p50": 1000.0, "p99": p99, "max": 9000.0},
            "verified": {"checked": 10, "missing": 0, "wrong": 0}, "commit": "abc"
        });
        for (field, value) in more {
            run[*field] = (*value).into();
        }
        std::fs::write(&path, run.to_string()).unwrap();
        path
    }

    #[test]
    fn repetitions_share_a_row_with_their_median() {
        let dir = tempfile::tempdir().unwrap();
        let rates = [300_000.0, 100_000.0, 200_000.0];
        let files: Vec<PathBuf> =
            (0..3).map(|at| result(dir.path(), at, rates[at], 2000.0, &[])).collect();
        let table = table(&files).unwrap();
        assert!(table.contains("**200 k** (100 k-300 k, n=3)"), "{table}");
        assert!(table.contains("30 keys, 0 missing or wrong"), "{table}");
        assert_eq!(table.lines().filter(|line| line.starts_with("| durable")).count(), 1);
    }

    #[test]
    fn of_two_runs_each_figure_is_the_worse_one() {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            result(dir.path(), 0, 300_000.0, 2000.0, &[]),
            result(dir.path(), 1, 100_000.0, 4000.0, &[]),
        ];
        let table = table(&files).unwrap();
        assert!(table.contains("**100 k** (100 k-300 k, n=2) | 400 | 1.0 | 4.0 |"), "{table}");
    }

    #[test]
    fn other_work_has_a_row_of_its_own_and_other_commits_a_table_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let first = result(dir.path(), 0, 1.0, 1.0, &[]);
        let other = result(dir.path(), 1, 1.0, 1.0, &[("distribution", "zipfian")]);
        let rows = table(&[first.clone(), other]).unwrap();
        assert_eq!(rows.lines().filter(|line| line.starts_with("| durable")).count(), 2);
        assert_eq!(rows.lines().filter(|line| line.contains(", zipfian |")).count(), 1, "{rows}");
        let later = result(dir.path(), 2, 1.0, 1.0, &[("commit", "def")]);
        assert!(table(&[first.clone(), later]).unwrap_err().to_string().contains("one commit"));
        let empty = dir.path().join("empty.json");
        std::fs::write(&empty, "{}").unwrap();
        assert!(table(&[first, empty]).unwrap_err().to_string().contains("not a result"));
    }
}
