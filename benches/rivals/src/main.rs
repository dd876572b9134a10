//! `catamaran-rivals`: our log beside others, see the library.

use anyhow::{Context, Result};
use catamaran_rivals::drive::Bench;
use catamaran_rivals::engine::Which;
use catamaran_rivals::machine;
use catamaran_rivals::probe::{Ask, Probe};
use catamaran_rivals::report::{Report, spread};
use catamaran_rivals::space::{self, Shape};
use catamaran_rivals::work::{ROWS, Work};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

/// Measures catamaran's log beside raft-engine and raft-log.
#[derive(Parser)]
#[command(name = "catamaran-rivals", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Rows of writing: every engine in turn, several times.
    Run(Writing),
    /// Opening, heap, cold reading and purging of a large log.
    Space(OfSpace),
    /// Print results as Markdown; several files are put together.
    Table {
        /// Files written by `--json`.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Part of `space`, in a process of its own.
    #[command(hide = true)]
    Probe {
        probe: Probe,
        #[command(flatten)]
        ask: Ask,
    },
}

#[derive(Args)]
struct Common {
    /// Engines, comma-separated [default: all that this build knows].
    #[arg(long, value_delimiter = ',', value_parser = Which::parse)]
    engines: Vec<Which>,
    /// How often each is measured.
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
    /// Where to work; something is written below it and removed again [default: the system's
    /// temporary directory].
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Write the result as JSON to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Args)]
struct Writing {
    #[command(flatten)]
    common: Common,
    /// Rows, comma-separated [default: all].
    #[arg(long, value_delimiter = ',', value_parser = row)]
    rows: Vec<Work>,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Seconds of rest before each: disks of rented machines have a budget that refills.
    #[arg(long, default_value_t = 1.0)]
    rest: f64,
}

#[derive(Args)]
struct OfSpace {
    #[command(flatten)]
    common: Common,
    /// Groups.
    #[arg(long, default_value_t = 10_000)]
    groups: u64,
    /// Entries of 1 KiB in each.
    #[arg(long, default_value_t = 160)]
    entries: u64,
}

fn row(name: &str) -> Result<Work, String> {
    ROWS.iter().copied().find(|work| work.name == name).ok_or_else(|| {
        let names: Vec<&str> = ROWS.iter().map(|work| work.name).collect();
        format!("rows are {}", names.join(", "))
    })
}

impl Common {
    fn engines(&self) -> Vec<Which> {
        if self.engines.is_empty() { Which::all() } else { self.engines.clone() }
    }

    fn place(&self) -> Result<tempfile::TempDir> {
        let root = self.dir.clone().unwrap_or_else(std::env::temp_dir);
        tempfile::tempdir_in(&root).with_context(|| root.display().to_string())
    }

    fn publish(&self, report: &Report) -> Result<()> {
        print!("{}", report.table());
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(report)?;
            std::fs::write(path, text).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }
}

fn empty(seconds: f64) -> Report {
    Report { machine: machine::describe(), seconds, rows: Vec::new(), space: Vec::new() }
}

fn write_rows(args: &Writing) -> Result<()> {
    let rows = if args.rows.is_empty() { ROWS.to_vec() } else { args.rows.clone() };
    let mut report = empty(args.seconds);
    let took = Duration::from_secs_f64(args.seconds);
    let rest = Duration::from_secs_f64(args.rest);
    for work in &rows {
        let place = args.common.place()?;
        let mut benches = Vec::new();
        for which in args.common.engines() {
            if which == Which::RaftLog && work.span > 64 && args.common.engines.is_empty() {
                // A sync for each of 256 groups: it was asked for with 64.
                continue;
            }
            let bench = Bench::open(which, *work, &place.path().join(which.name()))?;
            benches.push((which, bench));
        }
        for repetition in 0..args.common.repetitions {
            for (which, bench) in &mut benches {
                std::thread::sleep(rest);
                let figures = bench.run(took)?;
                eprintln!(
                    "{repetition} {} {}: {:.1} k entries/s, p50 {:.0} us, p99 {:.0} us, max {:.0} us",
                    work.name,
                    which.name(),
                    figures.entries_per_s / 1e3,
                    figures.p50_us,
                    figures.p99_us,
                    figures.max_us
                );
                report.add(work.name, *which, figures);
            }
        }
    }
    args.common.publish(&report)
}

fn measure_space(args: &OfSpace) -> Result<()> {
    let mut report = empty(0.0);
    for which in args.common.engines() {
        if matches!(which, Which::RaftEngineRecycled | Which::RaftEngineRecycledRaw) {
            // It matters to writing only.
            continue;
        }
        if which == Which::RaftLog && args.common.engines.is_empty() {
            // Ten thousand directories and threads: only when asked for.
            continue;
        }
        let place = args.common.place()?;
        let shape = Shape { groups: args.groups, entries: args.entries, each: 8 };
        let space = space::measure(which, place.path(), shape, args.common.repetitions)
            .with_context(|| which.name())?;
        eprintln!(
            "{}: cold {:.3} s, warm {:.3} s, heap {:.1} B, read {:.2}, kept {:.2}",
            which.name(),
            spread(space.open_cold_s.iter().copied()).1,
            spread(space.open_warm_s.iter().copied()).1,
            space.heap_per_entry,
            space.read_amplification,
            space.kept_per_live
        );
        report.space.push(space);
    }
    args.common.publish(&report)
}

fn main() -> Result<()> {
    machine::raise_limits();
    match Cli::parse().command {
        Command::Run(args) => write_rows(&args),
        Command::Space(args) => measure_space(&args),
        Command::Probe { probe: Probe::Open, ask } => {
            println!("{}", serde_json::to_string(&ask.opened()?)?);
            Ok(())
        }
        Command::Probe { probe: Probe::Read, ask } => {
            println!("{}", serde_json::to_string(&ask.read_back()?)?);
            Ok(())
        }
        Command::Table { files } => {
            let mut all: Option<Report> = None;
            for file in files {
                let text =
                    std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
                let report: Report = serde_json::from_str(&text)?;
                match &mut all {
                    Some(all) => {
                        all.seconds = all.seconds.max(report.seconds);
                        all.merge(report);
                    }
                    None => all = Some(report),
                }
            }
            print!("{}", all.map(|report| report.table()).unwrap_or_default());
            Ok(())
        }
    }
}
