//! `catamaran-load report`: results of runs read again, put into sets of repetitions, and compared.

use crate::quantity::{grouped, human_bytes, human_micros};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What makes two runs repetitions of one another, unless the command line says which are.
const KIND: [&str; 24] = [
    "/profile",
    "/state",
    "/nodes",
    "/regions",
    "/clients",
    "/batch",
    "/key_size",
    "/value_size",
    "/distribution",
    "/one_region_batches",
    "/read_ratio",
    "/rate",
    "/planned_s",
    "/warmup_s",
    "/keys",
    "/threads",
    "/loops",
    "/settings",
    "/log/groups",
    "/log/threads",
    "/log/entries_per_write",
    "/log/span",
    "/machine/cpu",
    "/commit",
];

/// One result file.
#[derive(Debug)]
pub struct Run {
    /// Where it was read.
    pub file: PathBuf,
    json: Value,
}

/// One stage of a run.
#[derive(Clone, PartialEq, Debug)]
pub struct StageTimes {
    /// Its name.
    pub stage: String,
    /// Microseconds on average.
    pub mean_us: f64,
    /// 99 % took no longer.
    pub p99_us: f64,
}

impl Run {
    /// Reads a file; an error says what about it is not a result of ours.
    pub fn read(file: &Path) -> Result<Run> {
        let name = || file.display().to_string();
        let text = std::fs::read_to_string(file).with_context(name)?;
        let json: Value =
            serde_json::from_str(&text).with_context(|| format!("{}: not JSON", name()))?;
        if json.get("rows").is_some_and(Value::is_array) && json.get("ops_per_s").is_none() {
            bail!("{}: a result of `run --beside`, which compares by itself", name());
        }
        let run = Run { file: file.to_owned(), json };
        for (field, there) in [
            ("profile", run.text("/profile").is_some()),
            ("ops_per_s", run.number("/ops_per_s").is_some()),
            ("latency_us", run.number("/latency_us/p50").is_some()),
        ] {
            if !there {
                bail!("{}: not a result of `catamaran-load run --json`: no `{field}`", name());
            }
        }
        Ok(run)
    }

    /// A figure, by JSON pointer.
    pub fn number(&self, path: &str) -> Option<f64> {
        self.json.pointer(path).and_then(Value::as_f64)
    }

    fn text(&self, path: &str) -> Option<&str> {
        self.json.pointer(path).and_then(Value::as_str)
    }

    /// A field as people read it; `-` where there is none.
    pub fn shown(&self, path: &str) -> String {
        match self.json.pointer(path) {
            None | Some(Value::Null) => "-".to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }
    }

    /// What it ran on which commit and machine: equal for repetitions of one another.
    pub fn kind(&self) -> String {
        KIND.map(|path| self.shown(path)).join("|")
    }

    /// Settings of the nodes that were not their defaults.
    pub fn settings(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.json.get("settings").and_then(Value::as_object).into_iter().flatten()
    }

    /// Operations by second, whole seconds only.
    pub fn by_second(&self) -> Vec<f64> {
        let all = self.json.get("ops_by_second").and_then(Value::as_array);
        let mut counts: Vec<f64> = all.into_iter().flatten().filter_map(Value::as_f64).collect();
        let whole = self.number("/duration_s").unwrap_or(f64::MAX).floor().max(1.0) as usize;
        counts.truncate(whole);
        counts
    }

    /// The curve of latencies: percent, microseconds. Of an older result only what its table had.
    pub fn latency_points(&self) -> Vec<(f64, f64)> {
        let all = self.json.get("latency_points").and_then(Value::as_array);
        let points: Vec<(f64, f64)> = all
            .into_iter()
            .flatten()
            .filter_map(|point| Some((point.get(0)?.as_f64()?, point.get(1)?.as_f64()?)))
            .collect();
        if !points.is_empty() {
            return points;
        }
        let five = [(50.0, "p50"), (90.0, "p90"), (99.0, "p99"), (99.9, "p999"), (100.0, "max")];
        five.into_iter()
            .filter_map(|(at, name)| Some((at, self.number(&format!("/latency_us/{name}"))?)))
            .collect()
    }

    /// Where writes waited, in the order of their way; none in older results and where nobody measured it.
    pub fn stages(&self) -> Vec<StageTimes> {
        let all = self.json.get("stages").and_then(Value::as_array);
        all.into_iter()
            .flatten()
            .filter_map(|one| {
                Some(StageTimes {
                    stage: one.get("stage")?.as_str()?.to_owned(),
                    mean_us: one.get("mean_us")?.as_f64()?,
                    p99_us: one.get("p99_us")?.as_f64()?,
                })
            })
            .collect()
    }
}

/// Repetitions of one kind of run.
#[derive(Debug)]
pub struct Set {
    /// What it is called: as the command line says, or a letter.
    pub name: String,
    key: String,
    /// The runs, in the order given.
    pub runs: Vec<Run>,
}

impl Set {
    /// What was run, in a line.
    pub fn title(&self) -> String {
        let Some(run) = self.runs.first() else { return String::new() };
        let shown = |path: &str| run.shown(path);
        let work = match run.text("/profile") {
            Some("log") => format!(
                "{} groups, {} threads, {} entries, span {}, window {}",
                shown("/log/groups"),
                shown("/log/threads"),
                shown("/log/entries_per_write"),
                shown("/log/span"),
                shown("/log/window"),
            ),
            _ => format!(
                "state {}, {} nodes, {} regions, {} x {}",
                shown("/state"),
                shown("/nodes"),
                shown("/regions"),
                shown("/clients"),
                shown("/batch"),
            ),
        };
        let rate = run
            .number("/rate")
            .map_or(String::new(), |rate| format!(", at {} operations/s", grouped(rate as u64)));
        format!(
            "{}, {work}, {}+{} B{rate}; commit {}; n={}",
            shown("/profile"),
            shown("/key_size"),
            shown("/value_size"),
            shown("/commit"),
            self.runs.len(),
        )
    }

    /// A figure over the repetitions; `None` if a run lacks it.
    pub fn spread(&self, figure: impl Fn(&Run) -> Option<f64>) -> Option<Spread> {
        let mut values = self.runs.iter().map(figure).collect::<Option<Vec<f64>>>()?;
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        let median = (values[last / 2] + values[last.div_ceil(2)]) / 2.0;
        Some(Spread { low: values[0], median, high: values[last], runs: values.len() })
    }

    /// What a stage took on average, over the repetitions.
    pub fn stage(&self, name: &str, what: impl Fn(&StageTimes) -> f64) -> Option<Spread> {
        self.spread(|run| run.stages().iter().find(|stage| stage.stage == name).map(&what))
    }
}

/// Smallest, middle and largest of repetitions.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Spread {
    /// The smallest.
    pub low: f64,
    /// The middle one; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// The largest.
    pub high: f64,
    /// Of how many.
    pub runs: usize,
}

impl Spread {
    /// Whether the two share a value.
    pub fn overlaps(&self, other: &Spread) -> bool {
        self.low <= other.high && other.low <= self.high
    }
}

/// The sets of a command line: a word is a file, or `NAME=FILE`. Files without a name are put together by what they
/// ran on which commit.
pub fn sets(words: &[String]) -> Result<Vec<Set>> {
    let mut sets: Vec<Set> = Vec::new();
    let mut unnamed = 0..;
    for word in words {
        let (name, file) = match word.split_once('=') {
            Some((name, file))
                if !name.is_empty() && !name.contains('/') && !Path::new(word).exists() =>
            {
                (Some(name), Path::new(file))
            }
            _ => (None, Path::new(word)),
        };
        let run = Run::read(file)?;
        let key = match name {
            Some(name) => format!("name {name}"),
            None => run.kind(),
        };
        match sets.iter_mut().find(|set| set.key == key) {
            Some(set) => set.runs.push(run),
            None => {
                let name = name.map(str::to_owned).or_else(|| unnamed.next().map(letter));
                sets.push(Set { name: name.unwrap_or_default(), key, runs: vec![run] });
            }
        }
    }
    Ok(sets)
}

/// `A` to `Z`, then `A1` and so on.
fn letter(number: usize) -> String {
    let letter = char::from(b'A' + (number % 26) as u8);
    if number < 26 { letter.to_string() } else { format!("{letter}{}", number / 26) }
}

/// Which way is better.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Better {
    /// More.
    Higher,
    /// Less.
    Lower,
    /// It depends.
    Neither,
}

/// A figure that is compared.
pub struct Figure {
    /// Its name.
    pub name: &'static str,
    /// Where it stands in the JSON.
    path: &'static str,
    /// Which way is better.
    pub better: Better,
    /// As people read it.
    pub show: fn(f64) -> String,
}

fn count(value: f64) -> String {
    grouped(value.round() as u64)
}

fn two_digits(value: f64) -> String {
    format!("{value:.2} us")
}

fn bytes(value: f64) -> String {
    human_bytes(value as u64)
}

/// What is compared, in the order of the report.
pub const FIGURES: [Figure; 11] = {
    const fn figure(
        name: &'static str,
        path: &'static str,
        better: Better,
        show: fn(f64) -> String,
    ) -> Figure {
        Figure { name, path, better, show }
    }
    [
        figure("operations/s", "/ops_per_s", Better::Higher, count),
        figure("entries/s", "/log/entries_per_s", Better::Higher, count),
        figure("latency p50", "/latency_us/p50", Better::Lower, human_micros),
        figure("latency p90", "/latency_us/p90", Better::Lower, human_micros),
        figure("latency p99", "/latency_us/p99", Better::Lower, human_micros),
        figure("latency p99.9", "/latency_us/p999", Better::Lower, human_micros),
        figure("latency max", "/latency_us/max", Better::Lower, human_micros),
        figure("cpu per operation", "/cpu_us_per_op", Better::Lower, two_digits),
        figure("log fsyncs/s", "/fsyncs_per_s", Better::Neither, count),
        figure("log bytes", "/bytes_written", Better::Neither, bytes),
        figure("memory, peak", "/rss_bytes", Better::Lower, bytes),
    ]
};

/// One line of a comparison: a figure of one set, beside the first set's.
pub struct Compared {
    /// Which set.
    pub set: String,
    /// Median and spread, as people read them.
    pub shown: String,
    /// What it says beside the first set; empty for that one.
    pub verdict: String,
}

/// A figure of all sets.
pub struct Row {
    /// The figure.
    pub name: String,
    /// Set by set; those that lack it are left out.
    pub sets: Vec<Compared>,
}

fn shown(spread: &Spread, show: impl Fn(f64) -> String) -> String {
    match spread.runs {
        1 => show(spread.median),
        _ => format!("{} ({} - {})", show(spread.median), show(spread.low), show(spread.high)),
    }
}

fn verdict(base: &Spread, other: &Spread, better: Better) -> String {
    let change = match base.median > 0.0 {
        true => format!("{:+.1} %", (other.median / base.median - 1.0) * 100.0),
        false => "-".to_owned(),
    };
    if base.runs < 2 || other.runs < 2 {
        return format!("{change}, no spread from one run");
    }
    if base.overlaps(other) {
        return format!("{change}, spreads overlap");
    }
    let more = other.median > base.median;
    let word = match better {
        Better::Neither => "",
        Better::Higher if more => ": better",
        Better::Lower if !more => ": better",
        _ => ": worse",
    };
    format!("{change}, spreads apart{word}")
}

fn row(
    name: String,
    sets: &[Set],
    better: Better,
    show: fn(f64) -> String,
    spread: impl Fn(&Set) -> Option<Spread>,
) -> Row {
    let base = sets.first().and_then(&spread);
    let lines = sets.iter().enumerate().filter_map(|(at, set)| {
        let own = spread(set)?;
        let verdict = match (&base, at) {
            (Some(base), 1..) => verdict(base, &own, better),
            _ => String::new(),
        };
        Some(Compared { set: set.name.clone(), shown: shown(&own, show), verdict })
    });
    Row { name, sets: lines.collect() }
}

/// All figures that some set has.
pub fn rows(sets: &[Set]) -> Vec<Row> {
    let all = FIGURES.iter().map(|figure| {
        row(figure.name.to_owned(), sets, figure.better, figure.show, |set| {
            set.spread(|run| run.number(figure.path))
        })
    });
    all.filter(|row| !row.sets.is_empty()).collect()
}

/// The stages that some run has, in the order of the way.
pub fn stage_names(sets: &[Set]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for stage in sets.iter().flat_map(|set| &set.runs).flat_map(Run::stages) {
        if !names.contains(&stage.stage) {
            names.push(stage.stage);
        }
    }
    names
}

/// Means and 99th percentiles of the stages.
pub fn stage_rows(sets: &[Set]) -> Vec<Row> {
    let rows = stage_names(sets).into_iter().flat_map(|name| {
        let of = |what: fn(&StageTimes) -> f64| {
            let name = name.clone();
            move |set: &Set| set.stage(&name, what)
        };
        let (mean, p99) = (of(|stage| stage.mean_us), of(|stage| stage.p99_us));
        [
            row(format!("{name}, mean"), sets, Better::Lower, human_micros, mean),
            row(format!("{name}, p99"), sets, Better::Lower, human_micros, p99),
        ]
    });
    rows.filter(|row| !row.sets.is_empty()).collect()
}

/// What there is to know before comparing: work that differs, plots that are not there.
pub fn remarks(sets: &[Set]) -> Vec<String> {
    let mut remarks = Vec::new();
    for path in KIND.iter().filter(|path| **path != "/commit") {
        let mut values: Vec<String> = Vec::new();
        for run in sets.iter().flat_map(|set| &set.runs) {
            let value = run.shown(path);
            if !values.contains(&value) {
                values.push(value);
            }
        }
        if values.len() > 1 {
            let field = path.trim_start_matches('/').replace('/', ".");
            remarks.push(format!("not the same work: {field} is {}", values.join(" or ")));
        }
    }
    for run in sets.iter().flat_map(|set| &set.runs) {
        let errors = run.json.get("errors").and_then(Value::as_object);
        let failed: f64 = errors.into_iter().flatten().filter_map(|(_, n)| n.as_f64()).sum();
        if failed > 0.0 {
            remarks.push(format!("{}: {failed:.0} requests failed", run.file.display()));
        }
        if run.number("/unsent").is_some_and(|count| count > 0.0) {
            let (file, unsent) = (run.file.display(), run.shown("/unsent"));
            remarks.push(format!("{file}: {unsent} requests were due and never sent"));
        }
        let bad = ["/wrong_reads", "/verified/missing", "/verified/wrong"];
        if bad.iter().any(|path| run.number(path).is_some_and(|count| count > 0.0)) {
            remarks.push(format!("{}: READ BACK MISSING OR WRONG VALUES", run.file.display()));
        }
    }
    for set in sets {
        let silent = |run: &&Run| run.stages().is_empty() && run.text("/profile") != Some("log");
        match set.runs.iter().filter(silent).count() {
            0 => {}
            n => remarks.push(format!(
                "{}: {n} of {} say nothing of stages",
                set.name,
                set.runs.len()
            )),
        }
    }
    remarks
}

/// The report in words.
pub fn text(sets: &[Set]) -> String {
    let mut out = String::new();
    let names = sets.iter().map(|set| set.name.chars().count()).max().unwrap_or(0);
    for set in sets {
        out.push_str(&format!("{:<names$}  {}\n", set.name, set.title()));
    }
    for remark in remarks(sets) {
        out.push_str(&format!("note: {remark}\n"));
    }
    let (rows, stages) = (rows(sets), stage_rows(sets));
    let width = |rows: &mut dyn Iterator<Item = usize>| rows.max().unwrap_or(0);
    let all = || rows.iter().chain(&stages);
    let figures = width(&mut all().map(|row| row.name.chars().count()));
    let values = width(&mut all().flat_map(|row| &row.sets).map(|line| line.shown.chars().count()));
    for (head, rows) in [("", &rows), ("writes by stage", &stages)] {
        if rows.is_empty() {
            continue;
        }
        out.push_str(&format!("\n{head}{}", if head.is_empty() { "" } else { "\n" }));
        for row in rows {
            for (at, line) in row.sets.iter().enumerate() {
                let name = if at == 0 { row.name.as_str() } else { "" };
                let Compared { set, shown, verdict } = line;
                let whole = format!("{name:<figures$}  {set:<names$}  {shown:<values$}  {verdict}");
                out.push_str(whole.trim_end());
                out.push('\n');
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_that_touch_overlap() {
        let spread = |low, high| Spread { low, median: (low + high) / 2.0, high, runs: 3 };
        let base = spread(1.0, 2.0);
        assert_eq!(verdict(&base, &spread(2.0, 4.0), Better::Higher), "+100.0 %, spreads overlap");
        let apart = spread(2.5, 3.5);
        assert_eq!(verdict(&base, &apart, Better::Higher), "+100.0 %, spreads apart: better");
        assert_eq!(verdict(&base, &apart, Better::Lower), "+100.0 %, spreads apart: worse");
        assert_eq!(verdict(&apart, &base, Better::Lower), "-50.0 %, spreads apart: better");
        assert_eq!(verdict(&base, &apart, Better::Neither), "+100.0 %, spreads apart");
        let one = Spread { runs: 1, ..apart };
        assert_eq!(verdict(&base, &one, Better::Lower), "+100.0 %, no spread from one run");
        assert_eq!(
            verdict(&Spread { median: 0.0, ..base }, &one, Better::Lower),
            "-, no spread from one run"
        );
    }

    #[test]
    fn sets_without_names_are_lettered() {
        assert_eq!([0, 25, 26, 53].map(letter), ["A", "Z", "A1", "B2"]);
    }
}
