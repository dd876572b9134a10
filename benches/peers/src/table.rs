//! Reports as Markdown: what has a target first, then every figure.

use crate::consensus::idle::Idle;
use crate::consensus::{self, Hands};
use crate::report::{ConsensusRow, DurableRow, Report, StoreRow, spread};
use crate::store::Which;
use crate::store::drive::Figures;
use crate::store::work::Load;
use crate::target::{self, Bound};
use std::fmt::Write as _;

/// How the document is made, for its head and for whoever finds it stale.
const COMMAND: &str = "benches/peers/compare.sh";

fn count(value: f64) -> String {
    match value {
        v if v >= 995_000.0 => format!("{:.2} M", v / 1e6),
        v if v >= 99_500.0 => format!("{:.0} k", v / 1e3),
        v => format!("{:.1} k", v / 1e3),
    }
}

fn with_spread((low, middle, high): (f64, f64, f64), form: impl Fn(f64) -> String) -> String {
    match low == high {
        true => form(middle),
        false => format!("{} ({}-{})", form(middle), form(low), form(high)),
    }
}

/// A quotient, or a dash if there is nothing to divide by.
fn quotient(ours: f64, theirs: f64) -> String {
    let ratio = ours / theirs;
    if ratio.is_finite() { format!("{ratio:.2}") } else { "-".into() }
}

fn verdict(met: Option<bool>) -> &'static str {
    match met {
        Some(true) => "met",
        Some(false) => "**not met**",
        None => "",
    }
}

fn named(row: &ConsensusRow) -> String {
    format!("{} ({})", count(row.rate()), row.which.name())
}

/// Who is compared with whom.
struct Pair {
    name: &'static str,
    ours: fn(consensus::Which) -> bool,
    theirs: fn(consensus::Which) -> bool,
}

fn by_tasks(which: consensus::Which) -> bool {
    which.hands() == Hands::Tasks
}

fn by_callbacks(which: consensus::Which) -> bool {
    which.hands() == Hands::Callbacks
}

/// Like with like first; the last is what the targets were set against.
const PAIRS: [Pair; 3] = [
    Pair { name: "a task each", ours: by_tasks, theirs: by_tasks },
    Pair { name: "one thread for all", ours: by_callbacks, theirs: by_callbacks },
    Pair {
        name: "ours by one thread, openraft as its own benchmark does",
        ours: by_callbacks,
        theirs: |which| which == consensus::Which::Openraft,
    },
];

/// The document that is kept.
pub fn document(reports: &[Report]) -> String {
    let mut out = format!(
        "# Catamaran beside its peers\n\nMade by `{COMMAND}` from the JSON in `benches/peers/results`; do not edit. \
         What the rows are and how they are\nmeasured: `benches/peers/README.md`.\n"
    );
    if reports.is_empty() {
        out.push_str(
            "\nNo results are kept for the present state of the code: the command makes them on your machine.\n",
        );
    }
    for report in reports {
        out.push('\n');
        out.push_str(&report.table());
    }
    out
}

impl Report {
    /// The tables, and where the figures are from.
    pub fn table(&self) -> String {
        let mut out = String::new();
        if !self.consensus.is_empty() {
            self.consensus_targets(&mut out);
            self.consensus_rows(&mut out);
        }
        if !self.idle.is_empty() {
            self.idle_rows(&mut out);
        }
        if !self.store.is_empty() {
            self.store_rows(&mut out);
        }
        if !self.durable.is_empty() {
            self.durable_rows(&mut out);
        }
        let commit = self.commit.as_ref().map_or(String::new(), |commit| format!(" at {commit}"));
        let version = env!("CARGO_PKG_VERSION");
        let _ = writeln!(out, "{}. catamaran {version}{commit}.", self.machine);
        out
    }

    fn consensus_targets(&self, out: &mut String) {
        out.push_str(
            "## Consensus beside openraft\n\n| groups x clients | compared | ours, puts/s | openraft, puts/s | ours / its \
             | target | |\n|---|---|---|---|---|---|---|\n",
        );
        for work in self.works() {
            for pair in PAIRS {
                let ours = self.fastest(work, |which| which.is_ours() && (pair.ours)(which));
                let theirs = self.fastest(work, |which| !which.is_ours() && (pair.theirs)(which));
                let (Some(ours), Some(theirs)) = (ours, theirs) else { continue };
                let target = target::consensus(work);
                let met = target.map(|least| ours.rate() >= least * theirs.rate());
                let _ = writeln!(
                    out,
                    "| {work} | {} | {} | {} | {} | {} | {} |",
                    pair.name,
                    count(ours.rate()),
                    named(theirs),
                    quotient(ours.rate(), theirs.rate()),
                    target.map_or("-".into(), |least| format!(">= {least}")),
                    verdict(met),
                );
            }
        }
        out.push('\n');
    }

    fn consensus_rows(&self, out: &mut String) {
        out.push_str(
            "| groups x clients | peer | puts/s | p50 us | p99 us | CPU us a put | failed |\n|---|---|---|---|---|---|---|\n",
        );
        for work in self.works() {
            for row in self.consensus.iter().filter(|row| row.work == work) {
                let _ = writeln!(
                    out,
                    "| {work} | {} | {} | {:.0} | {:.0} | {:.2} | {} |",
                    row.which.name(),
                    with_spread(spread(row.runs.iter().map(|run| run.puts_per_s)), count),
                    row.median(|run| run.p50_us),
                    row.median(|run| run.p99_us),
                    row.median(|run| run.cpu_us_per_put),
                    row.runs.iter().map(|run| run.failed).sum::<u64>(),
                );
            }
        }
        let runs = self.consensus.iter().map(|row| row.runs.len());
        let (low, high) = (runs.clone().min().unwrap_or(0), runs.max().unwrap_or(0));
        let runs = if low == high { low.to_string() } else { format!("{low} to {high}") };
        let _ = writeln!(
            out,
            "\nMedians of {runs} runs of {} s, peers in turn (smallest-largest).\n",
            self.seconds
        );
    }

    fn idle_rows(&self, out: &mut String) {
        out.push_str(
            "## Idle groups\n\n| peer | groups | CPU of a core | | memory per group of three replicas | |\n\
             |---|---|---|---|---|---|\n",
        );
        for idle in &self.idle {
            let ours = idle.which.is_ours();
            let middle = |values: &mut dyn Iterator<Item = f64>| spread(values).1;
            let judge = |value: f64, most: f64| {
                if ours { verdict(Some(value <= most)) } else { "" }
            };
            let cpu = middle(&mut Idle::cpu(idle));
            let bytes = middle(&mut Idle::bytes_per_group(idle));
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} |",
                idle.which.name(),
                idle.groups,
                with_spread(spread(idle.cpu()), |part| format!("{:.1} %", part * 100.0)),
                judge(cpu, target::IDLE_CPU),
                with_spread(spread(idle.bytes_per_group()), |b| format!("{:.1} KiB", b / 1024.0)),
                judge(bytes, target::IDLE_BYTES),
            );
        }
        let _ = writeln!(
            out,
            "\nTargets: {} % of a core, {} B a group.\n",
            target::IDLE_CPU * 100.0,
            target::IDLE_BYTES
        );
    }

    fn store_rows(&self, out: &mut String) {
        let mut loads: Vec<Load> = Vec::new();
        for row in &self.store {
            if !loads.contains(&row.load) {
                loads.push(row.load);
            }
        }
        for load in loads {
            let rows: Vec<&StoreRow> = self.store.iter().filter(|row| row.load == load).collect();
            let Load { ops, batch, value, prefixes, memtable, .. } = load;
            let _ = writeln!(
                out,
                "## State store: {:.1} M operations in batches of {batch}, values of {value} B{}, memtables of {} MiB\n",
                ops as f64 / 1e6,
                if prefixes > 1 { format!(", {prefixes} prefixes") } else { String::new() },
                memtable >> 20,
            );
            store_table(&rows, ops, out);
        }
    }

    fn durable_rows(&self, out: &mut String) {
        out.push_str(
            "## Replicated and synced: three nodes on one machine\n\n| system | clients x puts a request | value B | \
             puts/s | p50 us | p99 us |\n|---|---|---|---|---|---|\n",
        );
        for row in &self.durable {
            let DurableRow { system, clients, batch, value, runs } = row;
            let _ = writeln!(
                out,
                "| {system} | {clients} x {batch} | {value} | {} | {:.0} | {:.0} |",
                with_spread(spread(runs.iter().map(|run| run.puts_per_s)), count),
                spread(runs.iter().map(|run| run.p50_us)).1,
                spread(runs.iter().map(|run| run.p99_us)).1,
            );
        }
        out.push('\n');
    }
}

/// What is told of an engine.
struct Told {
    name: &'static str,
    figure: fn(&Figures) -> f64,
    form: fn(f64) -> String,
    bound: Option<Bound>,
}

fn store_figures(ops: u64) -> [Told; 8] {
    let apply = if ops >= target::LONG_OPS { target::APPLY_LONG } else { target::APPLY };
    let plain = |value: f64| format!("{value:.2}");
    let whole = |value: f64| format!("{value:.0}");
    let told = |name, figure, form, bound| Told { name, figure, form, bound };
    [
        told("apply, ops/s", |run| run.apply_per_s, count, Some(apply)),
        told("CPU us an op, settled", |run| run.cpu_us_per_op, plain, Some(target::CPU)),
        told(
            "bytes written / payload, settled",
            |run| run.write_amplification,
            plain,
            Some(target::WRITE_AMPLIFICATION),
        ),
        told("worst batch, ms", |run| run.worst_batch_ms, whole, None),
        told(
            "worst batch at 80 % load, ms",
            |run| run.worst_paced_batch_ms,
            whole,
            Some(target::WORST_BATCH_MS),
        ),
        told("settling afterwards, s", |run| run.settle_s, plain, None),
        told("point gets/s", |run| run.gets_per_s, count, Some(target::GETS)),
        told("keys walked/s", |run| run.scan_per_s, count, Some(target::SCAN)),
    ]
}

fn store_table(rows: &[&StoreRow], ops: u64, out: &mut String) {
    let of = |which| rows.iter().find(|row| row.which == which);
    out.push_str("| what |");
    rows.iter().for_each(|row| {
        let _ = write!(out, " {} |", row.which.name());
    });
    out.push_str(" ours / lsm-tree | ours / RocksDB | target, RocksDB | |\n|---|");
    out.push_str(&"---|".repeat(rows.len() + 4));
    out.push('\n');
    for Told { name, figure, form, bound } in store_figures(ops) {
        let _ = write!(out, "| {name} |");
        for row in rows {
            let _ = write!(out, " {} |", with_spread(row.spread(figure), form));
        }
        let middle = |which| of(which).map(|row| row.spread(figure).1);
        let ours = middle(Which::Catamaran);
        let ratio = |theirs: Option<f64>| {
            ours.zip(theirs).map_or("-".into(), |(ours, theirs)| quotient(ours, theirs))
        };
        let rocks = middle(Which::Rocksdb);
        let met = ours.zip(bound).and_then(|(ours, bound)| bound.met(ours, rocks));
        let _ = writeln!(
            out,
            " {} | {} | {} | {} |",
            ratio(middle(Which::LsmTree)),
            ratio(rocks),
            bound.map_or("-".into(), Bound::words),
            verdict(met),
        );
    }
    let runs = rows.iter().map(|row| row.runs.len()).min().unwrap_or(0);
    let _ = writeln!(out, "\nMedians of {runs} runs, engines in turn, a process each.\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::idle::Seen;

    fn run(puts_per_s: f64) -> consensus::Figures {
        consensus::Figures { puts_per_s, p50_us: 1.0, p99_us: 2.0, cpu_us_per_put: 0.5, failed: 0 }
    }

    fn row(work: &str, which: consensus::Which, rates: &[f64]) -> ConsensusRow {
        ConsensusRow { work: work.into(), which, runs: rates.iter().map(|r| run(*r)).collect() }
    }

    #[test]
    fn like_is_compared_with_like_by_the_median() {
        use crate::consensus::Which::*;
        let consensus = vec![
            row("1x64", Catamaran, &[3e6, 1e6, 2e6]),
            row("1x64", CatamaranCallbacks, &[4e6]),
            row("1x64", Openraft, &[5e5]),
            row("1x64", OpenraftPipelined, &[8e5]),
            row("1x64", OpenraftCallbacks, &[4e6]),
            row("2x2", Catamaran, &[3e4]),
            row("2x2", Openraft, &[3e4]),
        ];
        let report = Report { machine: "here".into(), consensus, ..Report::default() };
        let table = report.table();
        for line in [
            "| 1x64 | a task each | 2.00 M | 800 k (openraft-pipelined) | 2.50 | >= 2 | met |",
            "| 1x64 | one thread for all | 4.00 M | 4.00 M (openraft-callbacks) | 1.00 | >= 2 | **not met** |",
            "does | 4.00 M | 500 k (openraft) | 8.00 | >= 2 | met |",
            "| 2x2 | a task each | 30.0 k | 30.0 k (openraft) | 1.00 | - |  |",
            "| 2.00 M (1.00 M-3.00 M) | 1 | 2 | 0.50 | 0 |",
            "here. catamaran",
        ] {
            assert!(table.contains(line), "{line}\n{table}");
        }
    }

    #[test]
    fn idle_groups_are_judged_only_if_they_are_ours() {
        let idle = |which, cpu, kib: u64| Idle {
            which,
            groups: 101,
            many: vec![Seen { cpu, resident_bytes: (kib * 100 + 500) * 1024 }],
            one: vec![Seen { cpu: 0.0, resident_bytes: 500 * 1024 }],
        };
        let idle = vec![
            idle(consensus::Which::Catamaran, 0.005, 5),
            idle(consensus::Which::Openraft, 0.9, 400),
        ];
        let table = Report { idle, ..Report::default() }.table();
        assert!(
            table.contains("| catamaran | 101 | 0.5 % | met | 5.0 KiB | **not met** |"),
            "{table}"
        );
        assert!(table.contains("| openraft | 101 | 90.0 % |  | 400.0 KiB |  |"), "{table}");
    }

    #[test]
    fn the_store_is_judged_by_rocksdb_where_it_was_measured() {
        let load = Load {
            ops: 10_000_000,
            batch: 1024,
            value: 128,
            prefixes: 1,
            memtable: 128 << 20,
            reading: 3.0,
            seed: 1,
        };
        let figures = |apply_per_s| Figures {
            apply_per_s,
            settle_s: 1.0,
            cpu_us_per_op: 2.0,
            write_amplification: 3.0,
            worst_batch_ms: 70.0,
            worst_paced_batch_ms: 30.0,
            gets_per_s: 1e5,
            scan_per_s: 2e6,
        };
        let row = |which, rate| StoreRow { load, which, runs: vec![figures(rate)] };
        let store = vec![row(Which::Catamaran, 1.5e6), row(Which::LsmTree, 3e5)];
        let mut report = Report { store, ..Report::default() };
        let table = report.table();
        let line = "| apply, ops/s | 1.50 M | 300 k | 5.00 | - | ratio >= 1.7 |  |";
        assert!(table.contains(line), "{table}");
        let line = "| worst batch at 80 % load, ms | 30 | 30 | 1.00 | - | <= 50 | met |";
        assert!(table.contains(line), "{table}");
        report.store.push(row(Which::Rocksdb, 1e6));
        let table = report.table();
        let line =
            "| apply, ops/s | 1.50 M | 300 k | 1.00 M | 5.00 | 1.50 | ratio >= 1.7 | **not met** |";
        assert!(table.contains(line), "{table}");
        assert!(table.contains("| 1.00 | ratio <= 0.7 | **not met** |"), "{table}");
    }

    #[test]
    fn durable_rows_are_told_side_by_side() {
        use crate::report::Durable;
        let run = |puts_per_s| Durable { puts_per_s, p50_us: 900.0, p99_us: 2000.0 };
        let row = DurableRow {
            system: "etcd 3".into(),
            clients: 256,
            batch: 128,
            value: 64,
            runs: vec![run(5e4), run(7e4), run(6e4)],
        };
        let table = Report { durable: vec![row], ..Report::default() }.table();
        let line = "| etcd 3 | 256 x 128 | 64 | 60.0 k (50.0 k-70.0 k) | 900 | 2000 |";
        assert!(table.contains(line), "{table}");
    }

    #[test]
    fn a_report_is_read_back_as_it_was_written() {
        let consensus = vec![row("1x1", consensus::Which::OpenraftCallbacks, &[1.5])];
        let commit = Some("abc".to_owned());
        let report = Report { commit, consensus, seconds: 2.0, ..Report::here(None) };
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("report.json");
        report.write(&file).unwrap();
        let read = Report::read_all(&[file]).unwrap();
        assert_eq!(read, std::slice::from_ref(&report));
        assert!(document(&[report]).starts_with("# Catamaran beside its peers\n"));
    }
}
