//! Medians and spreads, as JSON for machines and as tables for people.

use crate::drive::Figures;
use crate::engine::Which;
use crate::space::Space;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// All that one run measured.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Where.
    pub machine: String,
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
    fn median(&self, what: impl Fn(&Figures) -> f64) -> f64 {
        spread(self.runs.iter().map(what)).1
    }
}

fn count(value: f64) -> String {
    match value {
        v if v >= 995_000.0 => format!("{:.2} M", v / 1e6),
        v if v >= 99_500.0 => format!("{:.0} k", v / 1e3),
        v => format!("{:.1} k", v / 1e3),
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

    /// Takes in another report of the same machine: rows measured at another time.
    pub fn merge(&mut self, other: Report) {
        for row in other.rows {
            for figures in row.runs {
                self.add(&row.work, row.which, figures);
            }
        }
        self.space.retain(|old| other.space.iter().all(|new| new.which != old.which));
        self.space.extend(other.space);
    }

    /// The best rival of a row: the one with the most entries a second.
    fn best_rival(&self, work: &str) -> Option<&Row> {
        let rivals =
            self.rows.iter().filter(|row| row.work == work && row.which != Which::Catamaran);
        rivals.max_by(|a, b| {
            let rate = |row: &Row| row.median(|f| f.entries_per_s);
            rate(a).total_cmp(&rate(b))
        })
    }

    /// Markdown: writing, then space.
    pub fn table(&self) -> String {
        let mut out = String::new();
        self.write_rows(&mut out);
        self.space_rows(&mut out);
        let runs = self.rows.iter().map(|row| row.runs.len()).max().unwrap_or(0);
        let _ = writeln!(
            out,
            "\n{}. Medians of {runs} runs of {} s, engines in turn (smallest-largest).",
            self.machine, self.seconds
        );
        out
    }

    fn write_rows(&self, out: &mut String) {
        if self.rows.is_empty() {
            return;
        }
        out.push_str(
            "| work | engine | entries/s | p50 us | p99 us | ours / this: rate | ours / this: p99 |\n\
             |---|---|---|---|---|---|---|\n",
        );
        for row in &self.rows {
            let (low, middle, high) = spread(row.runs.iter().map(|f| f.entries_per_s));
            let ours = self.rows.iter().find(|r| r.work == row.work && r.which == Which::Catamaran);
            let ratio = |what: fn(&Figures) -> f64| match ours {
                Some(ours) if row.which != Which::Catamaran => {
                    format!("{:.2}", ours.median(what) / row.median(what))
                }
                _ => String::new(),
            };
            let best = self.best_rival(&row.work).is_some_and(|best| best.which == row.which);
            let star = if best { " (fastest rival)" } else { "" };
            let _ = writeln!(
                out,
                "| {} | {}{star} | {} ({}-{}) | {:.0} | {:.0} | {} | {} |",
                row.work,
                row.which.name(),
                count(middle),
                count(low),
                count(high),
                row.median(|f| f.p50_us),
                row.median(|f| f.p99_us),
                ratio(|f| f.entries_per_s),
                ratio(|f| f.p99_us),
            );
        }
    }

    fn space_rows(&self, out: &mut String) {
        let Some(first) = self.space.first() else { return };
        let _ = writeln!(
            out,
            "\nA log of {:.1} GB in entries of 1 KiB, {} groups; cold: {:?}.\n\n\
             | engine | open cold s | open warm s | heap per entry B (8 a write / 1 a write) | read one group cold: read / wanted | 1 % laggards: kept / live |\n\
             |---|---|---|---|---|---|",
            first.data_bytes as f64 / 1e9,
            first.groups,
            first.emptied,
        );
        for space in &self.space {
            let span = |values: &[f64]| {
                let (low, middle, high) = spread(values.iter().copied());
                format!("{middle:.3} ({low:.3}-{high:.3})")
            };
            let other = match space.groups == first.groups {
                true => String::new(),
                false => format!(" ({} groups)", space.groups),
            };
            let _ = writeln!(
                out,
                "| {}{other} | {} | {} | {:.1} / {:.1} | {:.2} | {:.2} |",
                space.which.name(),
                span(&space.open_cold_s),
                span(&space.open_warm_s),
                space.heap_per_entry,
                space.heap_per_lone_entry,
                space.read_amplification,
                space.kept_per_live,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_the_fastest_rival_and_the_median() {
        let mut report =
            Report { machine: "here".into(), seconds: 1.0, rows: vec![], space: vec![] };
        for (which, rate) in [
            (Which::Catamaran, 3e6),
            (Which::Catamaran, 1e6),
            (Which::Catamaran, 2e6),
            (Which::RaftEngine, 5e5),
            (Which::RaftLog, 1e5),
        ] {
            let figures = Figures {
                writes_per_s: rate,
                entries_per_s: rate,
                p50_us: 1.0,
                p99_us: 2.0,
                max_us: 3.0,
            };
            report.add("1x1", which, figures);
        }
        let table = report.table();
        assert!(table.contains("catamaran | 2.00 M (1.00 M-3.00 M)"), "{table}");
        assert!(table.contains("raft-engine (fastest rival) | 500 k"), "{table}");
        assert!(table.contains("| 4.00 | 1.00 |"), "{table}");
    }
}
