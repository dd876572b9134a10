//! The report as one HTML page: text, tables and plots, everything inside, no script.

use crate::compare::{self, Row, Set};
use crate::plot::{self, Axis, Bar, BarKind, COLOURS, Line, Scale, escape};
use crate::quantity::{grouped, human_micros};
use std::fmt::Write;

const STYLE: &str = "
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 900px; padding: 0 1em; color: #1b1f24;
  background: #fff; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; } h3 { font-size: 1em; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td, th { text-align: left; padding: 3px 10px 3px 0; border-bottom: 1px solid #d8dee4; vertical-align: top; }
svg { max-width: 100%; height: auto; display: block; }
svg text { font-size: 12px; fill: #1b1f24; } svg text.y { text-anchor: end; } svg text.x { text-anchor: middle; }
.grid { stroke: #d8dee4; stroke-width: 1; }
polyline { fill: none; stroke-width: 1.8; stroke-opacity: 0.85; }
rect.step { fill-opacity: 0.9; } rect.within { fill-opacity: 0.45; } rect.whole { fill-opacity: 0.2; }
.key { display: inline-block; width: 0.8em; height: 0.8em; margin-right: 0.4em; border-radius: 2px; }
.note { color: #9a6700; } .better { color: #1a7f37; } .worse { color: #cf222e; }
";

/// Of the sets, by their place.
const COLOUR: [&str; COLOURS] = ["#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#6e7781"];

fn colours() -> String {
    let mut css = String::new();
    for (at, colour) in COLOUR.iter().enumerate() {
        let _ = writeln!(
            css,
            ".line{at} {{ stroke: {colour}; }} .dot{at}, .fill{at} {{ fill: {colour}; }} \
             .key{at} {{ background: {colour}; }}"
        );
    }
    css
}

fn table(out: &mut String, sets: &[Set], rows: &[Row]) {
    out.push_str("<table>\n<tr><th>figure</th>");
    for set in sets {
        let _ = write!(out, "<th>{}</th>", escape(&set.name));
    }
    out.push_str("</tr>\n");
    for row in rows {
        let _ = write!(out, "<tr><td>{}</td>", escape(&row.name));
        for set in sets {
            let Some(line) = row.sets.iter().find(|line| line.set == set.name) else {
                out.push_str("<td>-</td>");
                continue;
            };
            let class = match &line.verdict {
                verdict if verdict.ends_with("better") => "better",
                verdict if verdict.ends_with("worse") => "worse",
                _ => "plain",
            };
            let _ = write!(
                out,
                "<td>{}<div class=\"{class}\">{}</div></td>",
                escape(&line.shown),
                escape(&line.verdict)
            );
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table>\n");
}

fn thousands(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{} M", (v / 1e4).round() / 100.0),
        v if v >= 1e3 => format!("{} k", (v / 10.0).round() / 100.0),
        v => format!("{v}"),
    }
}

/// A line for each run of each set.
fn each_run(sets: &[Set], points: impl Fn(&compare::Run) -> Vec<(f64, f64)>) -> Vec<Line> {
    let runs =
        sets.iter().enumerate().flat_map(|(at, set)| set.runs.iter().map(move |r| (at, set, r)));
    runs.map(|(set, named, run)| {
        let label = format!("{}: {}", named.name, run.file.display());
        Line { set, label, points: points(run) }
    })
    .filter(|line| !line.points.is_empty())
    .collect()
}

fn throughput(sets: &[Set]) -> Option<String> {
    let seconds = |run: &compare::Run| {
        let counts = run.by_second().into_iter().enumerate();
        counts.map(|(second, ops)| (second as f64 + 1.0, ops)).collect()
    };
    let lines = each_run(sets, seconds);
    if lines.is_empty() {
        return None;
    }
    let all = || lines.iter().flat_map(|line| &line.points);
    let second = |at: f64| format!("{at}");
    let x = Axis::over("second of the run", Scale::Linear, all().map(|at| at.0), second);
    let y = Axis::over("operations/s", Scale::Linear, all().map(|at| at.1), thousands);
    Some(plot::lines("Throughput over time", &x, &y, &lines))
}

/// Nines: 90 % is 1, 99 % is 2; the slowest of `requests` stands where one of so many is.
fn nines(percent: f64, requests: f64) -> f64 {
    let rest = (1.0 - percent / 100.0).max(1.0 / requests.max(10.0)).max(1e-6);
    -rest.log10()
}

fn latencies(sets: &[Set]) -> Option<String> {
    let curve = |run: &compare::Run| {
        let requests = run.number("/requests").unwrap_or(0.0);
        let points = run.latency_points().into_iter();
        points.map(|(percent, us)| (nines(percent, requests), us)).collect()
    };
    let lines = each_run(sets, curve);
    if lines.is_empty() {
        return None;
    }
    let all = || lines.iter().flat_map(|line| &line.points);
    let last = all().map(|at| at.0).fold(1.0, f64::max).ceil() as usize;
    let marks = ["0 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %", "99.9999 %"];
    let marks = marks.iter().enumerate().take(last.min(marks.len() - 1) + 1);
    let x = marks.map(|(at, text)| (at as f64, (*text).to_owned())).collect();
    let x = Axis::marked("part of the requests that took no longer", x);
    let y = Axis::over("latency", Scale::Log, all().map(|at| at.1), human_micros);
    Some(plot::lines("Latency by percentile", &x, &y, &lines))
}

/// What goes on inside of `replicate`.
const WITHIN: [&str; 2] = ["log_wait", "log_write"];

/// The bars of one set: medians of the runs' means, each step from where the one before it ends.
fn bars(set: &Set) -> Vec<Bar> {
    let names = compare::stage_names(std::slice::from_ref(set));
    let (mut bars, mut at, mut within) = (Vec::new(), 0.0, 0.0);
    for name in names {
        let Some(mean) = set.stage(&name, |stage| stage.mean_us) else { continue };
        let length = mean.median;
        let (from, kind) = match name.as_str() {
            "whole" => (0.0, BarKind::Whole),
            inside if WITHIN.contains(&inside) => (at + within, BarKind::Within),
            _ => (at, BarKind::Step),
        };
        match kind {
            BarKind::Step => (at, within) = (at + length, 0.0),
            BarKind::Within => within += length,
            BarKind::Whole => {}
        }
        bars.push(Bar { name, from, length, shown: human_micros(length), kind });
    }
    bars
}

fn waterfalls(sets: &[Set]) -> String {
    let all: Vec<Vec<Bar>> = sets.iter().map(bars).collect();
    let longest = all.iter().flatten().map(|bar| bar.from + bar.length).fold(0.0, f64::max);
    let mut out = String::new();
    for ((at, set), bars) in sets.iter().enumerate().zip(&all) {
        let _ = writeln!(out, "<h3>{}</h3>", escape(&set.name));
        match bars.is_empty() {
            true => out.push_str("<p>Its results say nothing of stages.</p>\n"),
            false => out.push_str(&plot::waterfall("Where a write waits", at, longest, bars)),
        }
    }
    out
}

/// The whole page.
pub fn page(sets: &[Set]) -> String {
    let mut out = String::from(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width\"/>\n<title>catamaran-load report</title>\n<style>",
    );
    out.push_str(STYLE);
    out.push_str(&colours());
    out.push_str("</style>\n</head>\n<body>\n<h1>catamaran-load report</h1>\n<ul>\n");
    for (at, set) in sets.iter().enumerate() {
        let key = at % COLOURS;
        let _ = writeln!(
            out,
            "<li><span class=\"key key{key}\"></span><b>{}</b> {}</li>",
            escape(&set.name),
            escape(&set.title())
        );
    }
    out.push_str("</ul>\n");
    for remark in compare::remarks(sets) {
        let _ = writeln!(out, "<p class=\"note\">{}</p>", escape(&remark));
    }
    out.push_str(
        "<h2>Figures</h2>\n<p>Median (smallest - largest) of the runs, beside the first.</p>\n",
    );
    table(&mut out, sets, &compare::rows(sets));
    if let Some(svg) = throughput(sets) {
        out.push_str("<h2>Throughput over time</h2>\n");
        out.push_str(&svg);
    }
    if let Some(svg) = latencies(sets) {
        out.push_str("<h2>Latency</h2>\n");
        out.push_str(&svg);
    }
    let stages = compare::stage_rows(sets);
    if !stages.is_empty() {
        out.push_str(
            "<h2>Where a write waits</h2>\n<p>Means, each step from where the one before it ends. The log of the \
             leader's node (paler) works beside those of the followers, within replicate.</p>\n",
        );
        out.push_str(&waterfalls(sets));
        table(&mut out, sets, &stages);
    }
    let requests = sets.iter().flat_map(|set| &set.runs).filter_map(|run| run.number("/requests"));
    let _ = writeln!(
        out,
        "<p>{} requests in all.</p>\n</body>\n</html>",
        grouped(requests.sum::<f64>() as u64)
    );
    out
}
