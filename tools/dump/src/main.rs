//! `catamaran-dump`: looks into a Catamaran log directory. Read-only, takes no lock, works beside a live
//! node; `repair` alone wants the node stopped, and writes, but elsewhere. See `--help`.

mod cli;
mod decode;
mod failure;
mod help;
mod load;
mod model;
mod output;
mod overlay;
mod stdout;
mod verb;

use clap::{CommandFactory, Parser};
use cli::{Cli, Verb};
use failure::{Failure, Verdict};
use std::io::{BufWriter, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(page) => return answer(&page),
    };
    let mut out = BufWriter::new(std::io::stdout().lock());
    let result = run(&cli, &mut out);
    tell(&result);
    failure::exit_code(&result)
}

/// Prints the page that was asked for (help, the version), or what is wrong with the command line.
fn answer(page: &clap::Error) -> ExitCode {
    if page.use_stderr() {
        page.exit();
    }
    let print = || page.print().and_then(|()| std::io::stdout().flush());
    let result = stdout::check().and_then(|()| print());
    let result = result.map(|()| Verdict::Fine).map_err(Failure::Output);
    tell(&result);
    failure::exit_code(&result)
}

/// Says why a run failed, if its reader has not just gone.
fn tell(result: &Result<Verdict, Failure>) {
    match result {
        Err(Failure::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        Err(failure) => output::tell(failure),
        Ok(_) => {}
    }
}

fn run(cli: &Cli, out: &mut dyn Write) -> Result<Verdict, Failure> {
    cli.verb.check()?;
    stdout::check()?;
    let context = &mut verb::Context { format: cli.output, keys: cli.keys, out };
    match &cli.verb {
        Verb::Summary(args) => verb::overview::summary(args, context),
        Verb::Segments(args) => verb::overview::segments(args, context),
        Verb::Stats(args) => verb::stats::run(args, context),
        Verb::Groups(args) => verb::groups::groups(args, context),
        Verb::State(args) => verb::groups::state(args, context),
        Verb::Entries(args) => verb::entries::run(args, context),
        Verb::Verify(args) => verb::verify::run(args, context),
        Verb::Tail(args) => verb::tail::run(args, context),
        Verb::Diff(args) => verb::diff::run(args, context),
        Verb::Repair(args) => verb::repair::run(args, context),
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "catamaran-dump", &mut script);
            // clap_complete 4.6 looks for a verb of a program with a hyphen under another label than it sets.
            let script = String::from_utf8_lossy(&script);
            let script = script.replace("catamaran__subcmd__dump__", "catamaran__dump__");
            context.out.write_all(script.as_bytes())?;
            context.out.flush()?;
            Ok(Verdict::Fine)
        }
    }
}
