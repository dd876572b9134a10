//! `catamaran`: one node of a cluster, a demo of three, and the tools to use them.
//!
//! | room | what |
//! |---|---|
//! | `args`, `settings` | the command line and the configuration file |
//! | `serve` | nodes: opening, waiting, stopping |
//! | `kv`, `ctl`, `stores`, `status`, `replica`, `stages` | a running cluster from outside |
//! | `print` | bytes for people, JSON and pipes |

mod args;
mod ctl;
mod kv;
mod print;
mod replica;
mod serve;
mod settings;
mod stages;
mod status;
mod stores;

use anyhow::Context;
use args::{Cli, Command};
use clap::{CommandFactory, Parser};
use std::io::Write;
use std::process::ExitCode;

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Usage or configuration.
const USAGE: u8 = 2;

fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(code)
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(page) if page.use_stderr() => page.exit(),
        // Help, or the version.
        Err(page) => {
            let printed = page.print().and_then(|()| std::io::stdout().flush());
            let printed = printed.map(|()| ExitCode::SUCCESS).context(print::UNWRITTEN);
            return printed.unwrap_or_else(|error| fail(&error, 1));
        }
    };
    let result = match cli.command {
        Command::Serve(args) => match serve::serve(&args) {
            Ok(result) => result,
            Err(mistake) => return fail(&mistake, USAGE),
        },
        Command::Demo(args) => serve::demo(&args),
        Command::Kv(args) => kv::run(&args),
        Command::Ctl(args) => ctl::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "catamaran", &mut script);
            print::text(&String::from_utf8_lossy(&script)).map(|()| ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| fail(&error, code(&error)))
}

/// What the caller has to change in what was asked is usage, wherever it was noticed.
fn code(error: &anyhow::Error) -> u8 {
    let mistake = error.is::<print::Mistake>()
        || matches!(error.downcast_ref(), Some(catamaran::Error::InvalidArgument(_)));
    if mistake { USAGE } else { 1 }
}
