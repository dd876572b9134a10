//! A report as Markdown: what counts (ours against the best raft-engine, and the target), then every engine.

use crate::engine::Which;
use crate::report::{Report, Row, spread};
use crate::space::Space;
use crate::target;
use crate::work::ROWS;
use std::fmt::Write as _;

/// How the document is made, for its head and for whoever finds it stale.
const COMMAND: &str = "benches/rivals/compare.sh";

fn count(value: f64) -> String {
    match value {
        v if v >= 995_000.0 => format!("{:.2} M", v / 1e6),
        v if v >= 99_500.0 => format!("{:.0} k", v / 1e3),
        v => format!("{:.1} k", v / 1e3),
    }
}

fn seconds(values: &[f64]) -> String {
    let (low, middle, high) = spread(values.iter().copied());
    match values.len() {
        1 => format!("{middle:.3}"),
        _ => format!("{middle:.3} ({low:.3}-{high:.3})"),
    }
}

/// A quotient, or a dash if there is nothing to divide by (an engine that got nothing done in a short run).
fn quotient(ours: f64, theirs: f64, digits: usize) -> String {
    let ratio = ours / theirs;
    if ratio.is_finite() { format!("{ratio:.digits$}") } else { "-".into() }
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "**not met**" }
}

/// Names of works in the order of [`ROWS`], then any other.
fn works(report: &Report) -> Vec<String> {
    let mut works: Vec<String> = ROWS.iter().map(|work| work.name.to_owned()).collect();
    works.retain(|work| report.rows.iter().any(|row| row.work == *work));
    for row in &report.rows {
        if !works.contains(&row.work) {
            works.push(row.work.clone());
        }
    }
    works
}

/// A figure that has a target: what, ours, raft-engine's and which variant's, target, whether met.
struct Line {
    what: String,
    ours: String,
    rival: String,
    ratio: String,
    target: String,
    met: bool,
}

impl Line {
    /// A figure of which less is better, against the best raft-engine's, or absolute.
    fn of_space(
        what: &str,
        report: &Report,
        figure: impl Fn(&Space) -> f64,
        limit: Limit,
    ) -> Option<Line> {
        let ours = report.space.iter().find(|space| space.which == Which::Catamaran)?;
        let ours = figure(ours);
        let variants = report.space.iter().filter(|space| space.which.is_raft_engine());
        let best = variants.min_by(|a, b| figure(a).total_cmp(&figure(b)));
        let digits =
            |value: f64| if value < 10.0 { format!("{value:.3}") } else { format!("{value:.1}") };
        let rival = best
            .map_or("-".into(), |best| format!("{} ({})", digits(figure(best)), best.which.name()));
        let ratio = best.map_or("-".into(), |best| quotient(ours, figure(best), 3));
        let (target, met) = match limit {
            Limit::OfRival(part) => {
                let met = best.is_some_and(|best| ours <= part * figure(best));
                (format!("ratio <= {part}"), met)
            }
            Limit::Absolute(most) => (format!("<= {most}"), ours <= most),
        };
        Some(Line { what: what.into(), ours: digits(ours), rival, ratio, target, met })
    }
}

/// A figure, and whose it is unless it is that of our log as it comes.
fn named(figure: String, which: Which) -> String {
    match which {
        Which::Catamaran => figure,
        other => format!("{figure} ({})", other.name()),
    }
}

enum Limit {
    /// At most this part of the best raft-engine's.
    OfRival(f64),
    /// At most this much.
    Absolute(f64),
}

impl Report {
    /// What is kept as documentation.
    pub fn document(&self) -> String {
        let mut out = format!(
            "# The log beside raft-engine and raft-log\n\nMade by `{COMMAND}` from the JSON in \
             `benches/rivals/results`; do not edit. What the rows are and\nhow they are measured: \
             `benches/rivals/README.md`. Targets are ratios against raft-engine: each is judged by the\n\
             variant (new or recycled files, with or without compression) that is best at it; raft-log stands \
             in the tables\nbelow where it took part (see there). \
             What is not met is explained in `src/log/tuning.md`.\n\n"
        );
        if self.rows.is_empty() && self.space.is_empty() {
            out.push_str(
                "No results are kept for the present state of the log: the command makes them on your \
                 machine.\n",
            );
            return out;
        }
        out.push_str(&self.table());
        out
    }

    /// The tables, and where the figures are from.
    pub fn table(&self) -> String {
        let mut out = String::new();
        self.targets(&mut out);
        self.write_rows(&mut out);
        self.space_rows(&mut out);
        let ours = match &self.commit {
            Some(commit) => format!("catamaran {} at {commit}", env!("CARGO_PKG_VERSION")),
            None => format!("catamaran {}", env!("CARGO_PKG_VERSION")),
        };
        let runs = self.rows.iter().map(|row| row.runs.len());
        let (low, high) = (runs.clone().min().unwrap_or(0), runs.max().unwrap_or(0));
        let _ = writeln!(out, "\n{}. {ours}, raft-engine 0.4.2, raft-log 0.4.6.", self.machine);
        if high > 0 {
            let runs = if low == high { low.to_string() } else { format!("{low} to {high}") };
            let _ = writeln!(
                out,
                "Rows of writing: medians of {runs} runs of {} s, engines in turn (smallest-largest).",
                self.seconds
            );
        }
        out
    }

    fn targets(&self, out: &mut String) {
        let mut lines: Vec<Line> = Vec::new();
        for work in works(self) {
            self.rate_lines(&work, &mut lines);
        }
        lines.extend(self.space_lines());
        if lines.is_empty() {
            return;
        }
        out.push_str(
            "| what | ours | best raft-engine | ratio, ours / its | target | |\n|---|---|---|---|---|---|\n",
        );
        for line in lines {
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} |",
                line.what,
                line.ours,
                line.rival,
                line.ratio,
                line.target,
                if line.target == "-" { "" } else { verdict(line.met) }
            );
        }
        out.push('\n');
    }

    fn rate_lines(&self, work: &str, lines: &mut Vec<Line>) {
        let (Some(ours), Some(rival)) = (self.ours(work), self.yardstick(work)) else { return };
        let target = target::of(work);
        let ratio = ours.rate() / rival.rate();
        lines.push(Line {
            what: format!("{work}, entries/s"),
            ours: named(count(ours.rate()), ours.which),
            rival: format!("{} ({})", count(rival.rate()), rival.which.name()),
            ratio: quotient(ours.rate(), rival.rate(), 2),
            target: target.map_or("-".into(), |target| format!(">= {}", target.at_least)),
            met: target.is_some_and(|target| ratio >= target.at_least),
        });
        if let Some(most) = target.and_then(|target| target.p99_at_most) {
            let p99 = |row: &Row| row.median(|figures| figures.p99_us);
            let ratio = p99(ours) / p99(rival);
            lines.push(Line {
                what: format!("{work}, p99 us"),
                ours: named(format!("{:.0}", p99(ours)), ours.which),
                rival: format!("{:.0} ({})", p99(rival), rival.which.name()),
                ratio: quotient(p99(ours), p99(rival), 2),
                target: format!("<= {most}"),
                met: ratio <= most,
            });
        }
    }

    fn space_lines(&self) -> impl Iterator<Item = Line> {
        let middle = |values: &[f64]| spread(values.iter().copied()).1;
        [
            Line::of_space(
                "open cold, s",
                self,
                |space| middle(&space.open_cold_s),
                Limit::OfRival(target::OPEN_COLD),
            ),
            Line::of_space(
                "open warm, s",
                self,
                |space| middle(&space.open_warm_s),
                Limit::OfRival(target::OPEN_WARM),
            ),
            Line::of_space(
                "heap per entry, eight of a group a write, B",
                self,
                |space| space.heap_per_entry,
                Limit::Absolute(target::HEAP_PER_ENTRY),
            ),
            Line::of_space(
                "heap per entry, one of a group a write, B",
                self,
                |space| space.heap_per_lone_entry,
                Limit::Absolute(target::HEAP_PER_ENTRY),
            ),
            Line::of_space(
                "one group cold, eight of it a write, read / wanted",
                self,
                |space| space.read_amplification,
                Limit::Absolute(target::READ_AMPLIFICATION),
            ),
            Line::of_space(
                "one group cold, one of it a write, read / wanted",
                self,
                |space| space.lone_read_amplification,
                Limit::Absolute(target::READ_AMPLIFICATION),
            ),
            Line::of_space(
                "1 % laggards, kept / live",
                self,
                |space| space.kept_per_live,
                Limit::Absolute(target::KEPT_PER_LIVE),
            ),
        ]
        .into_iter()
        .flatten()
    }

    fn write_rows(&self, out: &mut String) {
        if self.rows.is_empty() {
            return;
        }
        out.push_str(
            "| work | engine | entries/s | p50 us | p99 us | ours / this: rate | ours / this: p99 |\n\
             |---|---|---|---|---|---|---|\n",
        );
        for work in works(self) {
            let ours = self.ours(&work);
            let best = self.yardstick(&work).map(|best| best.which);
            for row in self.of(&work) {
                let (low, middle, high) = spread(row.runs.iter().map(|f| f.entries_per_s));
                let ratio = |what: fn(&crate::drive::Figures) -> f64| match ours {
                    Some(ours) if row.which != ours.which => {
                        quotient(ours.median(what), row.median(what), 2)
                    }
                    _ => String::new(),
                };
                let star = if best == Some(row.which) { " (judged by)" } else { "" };
                let _ = writeln!(
                    out,
                    "| {work} | {}{star} | {} ({}-{}) | {:.0} | {:.0} | {} | {} |",
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
    }

    fn space_rows(&self, out: &mut String) {
        let Some(first) = self.space.first() else { return };
        let _ = writeln!(
            out,
            "\nA log of {:.1} GB in entries of 1 KiB, {} groups; cold: {}.\n\n\
             | engine | open cold s | open warm s | heap per entry B (8 a write / 1 a write) | one group cold: read / wanted (8 a write / 1 a write) | 1 % laggards: kept / live |\n\
             |---|---|---|---|---|---|",
            first.data_bytes as f64 / 1e9,
            first.groups,
            first.emptied.map_or("not measured", |emptied| emptied.words()),
        );
        for space in &self.space {
            let other = match space.groups == first.groups {
                true => String::new(),
                false => format!(" ({} groups)", space.groups),
            };
            let _ = writeln!(
                out,
                "| {}{other} | {} | {} | {:.1} / {:.1} | {:.2} / {:.2} | {:.2} |",
                space.which.name(),
                seconds(&space.open_cold_s),
                seconds(&space.open_warm_s),
                space.heap_per_entry,
                space.heap_per_lone_entry,
                space.read_amplification,
                space.lone_read_amplification,
                space.kept_per_live,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drive::Figures;

    fn figures(rate: f64, p99_us: f64) -> Figures {
        Figures { writes_per_s: rate, entries_per_s: rate, p50_us: 1.0, p99_us, max_us: 3.0 }
    }

    #[test]
    fn the_table_names_the_fastest_rival_the_median_and_the_target() {
        let mut report = Report { machine: "here".into(), seconds: 1.0, ..Report::default() };
        for (which, rate, p99) in [
            (Which::Catamaran, 3e6, 2.0),
            (Which::Catamaran, 1e6, 2.0),
            (Which::Catamaran, 2e6, 2.0),
            (Which::RaftEngine, 5e5, 1.0),
            (Which::RaftLog, 1e6, 4.0),
        ] {
            report.add("1x1", which, figures(rate, p99));
        }
        let table = report.table();
        assert!(table.contains("catamaran | 2.00 M (1.00 M-3.00 M)"), "{table}");
        assert!(table.contains("raft-engine (judged by) | 500 k"), "{table}");
        assert!(table.contains("| 500 k (raft-engine) | 4.00 | >= 1.1 | met |"), "{table}");
        assert!(table.contains("| 1 (raft-engine) | 2.00 | <= 1 | **not met** |"), "{table}");
        assert!(table.contains("| 2.00 | 0.50 |"), "{table}");
    }

    #[test]
    fn openings_are_compared_and_amplifications_are_not() {
        let space = |which, open: f64, heap| Space {
            which,
            data_bytes: 1,
            groups: 1,
            open_cold_s: vec![open],
            emptied: None,
            open_warm_s: vec![open],
            heap_per_entry: heap,
            heap_per_lone_entry: heap,
            read_amplification: 1.5,
            lone_read_amplification: 1.5,
            kept_per_live: 2.5,
        };
        let mut report = Report { machine: "here".into(), ..Report::default() };
        let ours = space(Which::Catamaran, 0.2, 6.0);
        report.space = vec![ours, space(Which::RaftEngine, 1.0, 78.0)];
        let table = report.table();
        assert!(
            table.contains(
                "open cold, s | 0.200 | 1.000 (raft-engine) | 0.200 | ratio <= 0.1 | **not met** |"
            ),
            "{table}"
        );
        assert!(table.contains("| ratio <= 0.25 | met |"), "{table}");
        assert!(
            table
                .contains("heap per entry, eight of a group a write, B | 6.000 | 78.0 (raft-engine) | 0.077 | <= 12 | met |"),
            "{table}"
        );
        assert!(table.contains("| <= 2 | **not met** |"), "{table}");
    }

    #[test]
    fn results_of_different_machines_do_not_mix() {
        let here = Report { machine: "here".into(), ..Report::default() };
        let there = Report { machine: "there".into(), ..Report::default() };
        assert!(here.clone().merge(there).is_err());
        assert!(here.clone().merge(here).is_ok());
    }
}
