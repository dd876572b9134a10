//! `catamaran-peers`: catamaran beside others, see the library.

use anyhow::{Context, Result};
use catamaran_peers::consensus::idle::{self, Idle};
use catamaran_peers::consensus::turns::Turns;
use catamaran_peers::consensus::{self, ROWS, Span, Work};
use catamaran_peers::report::Report;
use catamaran_peers::store::{self, drive, work::Load};
use catamaran_peers::table;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Measures catamaran beside openraft, lsm-tree, RocksDB and etcd.
#[derive(Parser)]
#[command(name = "catamaran-peers", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Consensus alone, in memory: every peer in turn, several times.
    Consensus(Consensus),
    /// The state store alone: every engine in turn, several times.
    Store(Store),
    /// Puts replicated by three members of etcd, which must run.
    #[cfg(feature = "etcd")]
    Etcd(catamaran_peers::etcd::Drive),
    /// Puts together results of `etcd` and of `catamaran-load run --profile durable --json`.
    Durable(Durable),
    /// Print results as Markdown.
    Table {
        /// The tables alone, or the document that is kept.
        #[arg(long, value_enum, default_value = "tables")]
        form: Form,
        /// Files written by `--json`.
        files: Vec<PathBuf>,
    },
    /// Part of `consensus`, in a process of its own; by hand under a profiler.
    #[command(hide = true)]
    Look(idle::Ask),
    /// Part of `store`, in a process of its own; by hand under a profiler.
    #[command(hide = true)]
    Apply(drive::Ask),
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
    /// How often each is measured.
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
    /// Write the result as JSON to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// The commit of ours, to be told with the result.
    #[arg(long)]
    commit: Option<String>,
}

#[derive(Args)]
struct Consensus {
    #[command(flatten)]
    common: Common,
    /// Peers, comma-separated [default: all that this build knows].
    #[arg(long, value_delimiter = ',', value_parser = consensus::Which::parse)]
    peers: Vec<consensus::Which>,
    /// Rows, comma-separated: GROUPSxCLIENTS or GROUPSxCLIENTS-batch-PUTS [default: those with a target].
    #[arg(long, value_delimiter = ',', value_parser = Work::parse)]
    rows: Vec<Work>,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Seconds of driving before each.
    #[arg(long, default_value_t = 0.3)]
    warmup: f64,
    /// Seconds of rest before each.
    #[arg(long, default_value_t = 0.1)]
    rest: f64,
    /// Groups that do nothing; 0: do not measure idle groups.
    #[arg(long, default_value_t = 512)]
    idle_groups: usize,
    /// Seconds that idle groups are left alone before they are looked at: ours give their memory back after five.
    #[arg(long, default_value_t = 8.0)]
    idle_settle: f64,
    /// Seconds that they are looked at.
    #[arg(long, default_value_t = 5.0)]
    idle_seconds: f64,
    /// How often idle groups are looked at.
    #[arg(long, default_value_t = 1)]
    idle_repetitions: usize,
}

#[derive(Args)]
struct Store {
    #[command(flatten)]
    common: Common,
    /// Engines, comma-separated [default: all that this build knows].
    #[arg(long, value_delimiter = ',', value_parser = store::Which::parse)]
    engines: Vec<store::Which>,
    /// What is applied.
    #[command(flatten)]
    load: Load,
    /// Seconds of rest before each: disks of rented machines have a budget that refills.
    #[arg(long, default_value_t = 2.0)]
    rest: f64,
    /// Where to work; something is written below it and removed again [default: the system's
    /// temporary directory].
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[derive(Args)]
struct Durable {
    /// Write the result as JSON to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Files written by either.
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

fn publish(report: &Report, json: Option<&PathBuf>) -> Result<()> {
    print!("{}", report.table());
    json.map_or(Ok(()), |file| report.write(file))
}

fn all_unless<T: Clone>(asked: &[T], all: Vec<T>) -> Vec<T> {
    if asked.is_empty() { all } else { asked.to_vec() }
}

fn consensus(args: &Consensus) -> Result<()> {
    let mut report = Report::here(args.common.commit.clone());
    report.seconds = args.seconds;
    let peers = all_unless(&args.peers, consensus::Which::all());
    let turns = Turns {
        repetitions: args.common.repetitions,
        span: Span {
            warmup: Duration::from_secs_f64(args.warmup),
            took: Duration::from_secs_f64(args.seconds),
        },
        rest: Duration::from_secs_f64(args.rest),
    };
    for work in all_unless(&args.rows, ROWS.to_vec()) {
        turns.take(work, &peers, &mut report)?;
    }
    if args.idle_groups > 0 {
        // Who hands requests over makes no difference where there are none.
        let idle: Vec<consensus::Which> = peers.into_iter().filter(|which| which.idles()).collect();
        let times =
            (Duration::from_secs_f64(args.idle_settle), Duration::from_secs_f64(args.idle_seconds));
        report.idle = Idle::measure(&idle, args.idle_groups, times, args.idle_repetitions)?;
    }
    publish(&report, args.common.json.as_ref())
}

fn store(args: &Store) -> Result<()> {
    let mut report = Report::here(args.common.commit.clone());
    let engines = all_unless(&args.engines, store::Which::all());
    let root = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let place = tempfile::tempdir_in(&root).with_context(|| root.display().to_string())?;
    let how_often = (args.common.repetitions, Duration::from_secs_f64(args.rest));
    store::turns::take(args.load, &engines, how_often, place.path(), &mut report)?;
    publish(&report, args.common.json.as_ref())
}

fn main() -> Result<()> {
    catamaran_rivals::machine::raise_limits();
    match Cli::parse().command {
        Command::Consensus(args) => consensus(&args),
        Command::Store(args) => store(&args),
        #[cfg(feature = "etcd")]
        Command::Etcd(args) => args.run(),
        Command::Durable(args) => {
            let (durable, commit) = catamaran_peers::durable::read(&args.files)?;
            let report = Report { durable, ..Report::here(commit) };
            publish(&report, args.json.as_ref())
        }
        Command::Table { form, files } => {
            let reports = Report::read_all(&files)?;
            match form {
                Form::Tables => reports.iter().for_each(|report| print!("{}", report.table())),
                Form::Document => print!("{}", table::document(&reports)),
            }
            Ok(())
        }
        Command::Look(ask) => {
            println!("{}", serde_json::to_string(&ask.look()?)?);
            Ok(())
        }
        Command::Apply(ask) => {
            let figures = drive::measure(ask.which, &ask.load, &ask.place)?;
            println!("{}", serde_json::to_string(&figures)?);
            Ok(())
        }
    }
}
