//! `catamaran-load`: load, measured honestly, and checked.
//!
//! | room | what |
//! |---|---|
//! | `args`, `quantity` | the command line |
//! | `keys`, `ledger` | which keys, which values, and what each key must hold |
//! | `drive`, `target` | logical clients on few threads against anything that answers |
//! | `record`, `report`, `table`, `machine`, `watch` | counts, the result, where it comes from, progress |
//! | `destination` | where the result goes |
//! | `compare`, `page`, `plot` | results read again: in words, as a page, as pictures |
//! | `cluster`, `enter`, `remote` | nodes of this process, ways into them and into servers |
//! | `verify` | reading back |
//! | `profile` | what is set up and driven |

mod args;
mod cluster;
mod compare;
mod destination;
mod drive;
mod enter;
mod keys;
mod ledger;
mod machine;
mod page;
mod plot;
mod profile;
mod quantity;
mod record;
mod remote;
mod report;
mod settings;
mod table;
mod target;
mod verify;
mod watch;

use anyhow::Context;
use args::{Cli, Command, Plan};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use destination::Destination;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}

fn run(plan: &Plan) -> ExitCode {
    let result = Destination::open(plan.json.as_deref()).and_then(|destination| {
        #[cfg(feature = "rivals")]
        if !plan.beside.is_empty() {
            let (json, table) = profile::beside::run(plan)?;
            destination.put(&json, &table)?;
            return Ok(true);
        }
        let report = profile::run(plan)?;
        destination.publish(&report)?;
        Ok(report.is_fine())
    });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("error: the read-back found missing or wrong values");
            ExitCode::FAILURE
        }
        Err(error) => failed(&error),
    }
}

fn report(files: &[String], html: &Path) -> anyhow::Result<()> {
    let sets = compare::sets(files)?;
    let page = html.canonicalize().ok();
    for run in sets.iter().flat_map(|set| &set.runs) {
        if page.is_some() && run.file.canonicalize().ok() == page {
            anyhow::bail!("{}: the page would be written over this result", run.file.display());
        }
    }
    if html == Path::new("-") {
        return destination::print(&page::page(&sets));
    }
    let written = std::fs::write(html, page::page(&sets));
    written.with_context(|| format!("cannot write {}", html.display()))?;
    destination::print(&compare::text(&sets))?;
    watch::say(&format!("plots are in {}", html.display()));
    Ok(())
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(page) if page.use_stderr() => page.exit(),
        // Help, or the version.
        Err(page) => {
            let printed = page.print().and_then(|()| std::io::stdout().flush());
            let printed = printed.map(|()| ExitCode::SUCCESS);
            return printed.context(destination::UNWRITTEN).unwrap_or_else(|error| failed(&error));
        }
    };
    match cli.command {
        Command::Run(args) => match args.plan() {
            Ok(plan) => run(&plan),
            Err(message) => Cli::command().error(ErrorKind::ValueValidation, message).exit(),
        },
        Command::Table { files } => match table::table(&files).and_then(|t| destination::print(&t))
        {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error),
        },
        Command::Report { files, html } => match report(&files, &html) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error),
        },
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "catamaran-load", &mut script);
            // clap_complete 4.6 looks for a verb of a program with a hyphen under another label than it sets.
            let script = String::from_utf8_lossy(&script);
            match destination::print(
                &script.replace("catamaran__subcmd__load__", "catamaran__load__"),
            ) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => failed(&error),
            }
        }
    }
}
