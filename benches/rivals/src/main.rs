//! `catamaran-rivals`: our log beside others, see the library.

use anyhow::{Context, Result};
use catamaran_rivals::conform::{self, Candidate, Conformance};
use catamaran_rivals::engine::Which;
use catamaran_rivals::machine;
use catamaran_rivals::probe::{Ask, Probe};
use catamaran_rivals::report::{Report, spread};
use catamaran_rivals::space::{self, Shape};
use catamaran_rivals::turns::Turns;
use catamaran_rivals::work::{ROWS, Work};
use clap::{Args, Parser, Subcommand, ValueEnum};
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
    /// Run the conformance suite of `catamaran::testkit` over our log and the rivals.
    Conformance(Conforming),
    /// Part of `conformance`, in a process of its own.
    #[command(hide = true)]
    Check {
        #[command(flatten)]
        ask: conform::Ask,
    },
    /// Print results as Markdown; several files are put together.
    Table {
        /// The tables alone, or the document that is kept.
        #[arg(long, value_enum, default_value = "tables")]
        form: Form,
        /// Files written by `--json`.
        files: Vec<PathBuf>,
    },
    /// Part of `space`, in a process of its own; by hand under a profiler.
    #[command(hide = true)]
    Probe {
        probe: Probe,
        #[command(flatten)]
        ask: Ask,
    },
}

/// What `table` prints.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Form {
    /// The tables.
    Tables,
    /// With a head.
    Document,
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
    /// The commit of ours, to be told with the result.
    #[arg(long)]
    commit: Option<String>,
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
struct Conforming {
    /// Stores, comma-separated [default: all that this build knows].
    #[arg(long, value_delimiter = ',', value_parser = Candidate::parse)]
    stores: Vec<Candidate>,
    /// Where to work; something is written below it and removed again [default: the system's
    /// temporary directory].
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Write the result as JSON to this file; `-` is standard output, without the table.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Run nothing: take the findings from this file, which `--json` or `--keep` wrote.
    #[arg(long, conflicts_with_all = ["stores", "dir"])]
    from: Option<PathBuf>,
    /// Keep the result as documentation below this directory: `results/conformance.json`,
    /// `conformance.md`.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// The commit of ours, to be told with the result.
    #[arg(long, conflicts_with = "from")]
    commit: Option<String>,
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

    fn report(&self, seconds: f64) -> Report {
        let (machine, commit) = (machine::describe(), self.commit.clone());
        Report { machine, commit, seconds, ..Report::default() }
    }

    fn publish(&self, report: &Report) -> Result<()> {
        print!("{}", report.table());
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(report)?;
            std::fs::write(path, text + "\n").with_context(|| path.display().to_string())?;
        }
        Ok(())
    }
}

fn write_rows(args: &Writing) -> Result<()> {
    let rows = if args.rows.is_empty() { ROWS.to_vec() } else { args.rows.clone() };
    let mut report = args.common.report(args.seconds);
    let turns = Turns {
        repetitions: args.common.repetitions,
        took: Duration::from_secs_f64(args.seconds),
        rest: Duration::from_secs_f64(args.rest),
    };
    for work in rows {
        let place = args.common.place()?;
        let mut engines = args.common.engines();
        if args.common.engines.is_empty() {
            engines.retain(|which| which.suits(work));
        }
        turns.take(work, &engines, place.path(), &mut report)?;
    }
    args.common.publish(&report)
}

fn measure_space(args: &OfSpace) -> Result<()> {
    let mut report = args.common.report(0.0);
    for which in args.common.engines() {
        if !space::TOLD_APART.contains(&which) {
            continue;
        }
        if which == Which::RaftLog && args.common.engines.is_empty() {
            // Ten thousand directories and threads: only when asked for.
            continue;
        }
        let place = args.common.place()?;
        let shape = Shape { groups: args.groups, entries: args.entries, each: space::TOGETHER };
        let space = space::measure(which, place.path(), shape, args.common.repetitions)
            .with_context(|| which.name())?;
        eprintln!(
            "{}: cold {:.3} s, warm {:.3} s, heap {:.1} and {:.1} B, read {:.2} and {:.2}, kept {:.2}",
            which.name(),
            spread(space.open_cold_s.iter().copied()).1,
            spread(space.open_warm_s.iter().copied()).1,
            space.heap_per_entry,
            space.heap_per_lone_entry,
            space.read_amplification,
            space.lone_read_amplification,
            space.kept_per_live
        );
        report.space.push(space);
    }
    args.common.publish(&report)
}

fn examine(args: &Conforming) -> Result<Conformance> {
    let all = Candidate::all();
    let stores = if args.stores.is_empty() { &all } else { &args.stores };
    let root = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let place = tempfile::tempdir_in(&root).with_context(|| root.display().to_string())?;
    conform::run(stores, place.path())
}

fn conformance(args: &Conforming) -> Result<()> {
    let found = match &args.from {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            serde_json::from_str(&text).with_context(|| path.display().to_string())?
        }
        None => Conformance { commit: args.commit.clone(), ..examine(args)? },
    };
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&found)?;
        if path.as_os_str() == "-" {
            println!("{text}");
            return Ok(());
        }
        std::fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    if let Some(dir) = &args.keep {
        let kept = dir.join("results/conformance.json");
        std::fs::create_dir_all(dir.join("results"))?;
        let text = serde_json::to_string_pretty(&found)?;
        std::fs::write(&kept, text + "\n").with_context(|| kept.display().to_string())?;
        std::fs::write(dir.join("conformance.md"), found.document())?;
    }
    print!("{}", found.table());
    Ok(())
}

fn main() -> Result<()> {
    machine::raise_limits();
    match Cli::parse().command {
        Command::Conformance(args) => conformance(&args),
        Command::Check { ask } => {
            println!("{}", serde_json::to_string(&ask.run()?)?);
            Ok(())
        }
        Command::Run(args) => write_rows(&args),
        Command::Space(args) => measure_space(&args),
        Command::Probe { probe: Probe::Fill, ask } => ask.filled(),
        Command::Probe { probe: Probe::Open, ask } => {
            println!("{}", serde_json::to_string(&ask.opened()?)?);
            Ok(())
        }
        Command::Probe { probe: Probe::Read, ask } => {
            println!("{}", serde_json::to_string(&ask.read_back()?)?);
            Ok(())
        }
        Command::Table { form, files } => {
            let report = Report::read(&files)?;
            match form {
                Form::Tables => print!("{}", report.table()),
                Form::Document => print!("{}", report.document()),
            }
            Ok(())
        }
    }
}
