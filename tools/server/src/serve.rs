//! Running nodes: one as configured, or three to play with.

use crate::args::{DemoArgs, ServeArgs};
use crate::{print, settings};
use anyhow::{Context, Result, anyhow};
use catamaran::{Node, NodeConfig};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;
use tokio::runtime::Runtime;

/// How often a running node is asked whether it has stopped by itself.
const HEALTH_EVERY: Duration = Duration::from_millis(500);

/// Logs to standard error, as much as `RUST_LOG` says.
fn start_logging(default: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let logging = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .finish();
    // A second start in one process would find the first one in place: fine.
    let _ = tracing::subscriber::set_global_default(logging);
}

/// Why a node stops.
enum End {
    Asked(&'static str),
    Failed(anyhow::Error),
}

fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// Signals, caught from the moment this is made.
#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn catch() -> Result<Signals> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn catch() -> Result<Signals> {
        Ok(Signals)
    }

    async fn next(&mut self) -> &'static str {
        match tokio::signal::ctrl_c().await {
            Ok(()) => "Ctrl-C",
            Err(_) => "no way to wait for Ctrl-C",
        }
    }
}

/// Waits for a signal, or for a node that stops by itself.
async fn wait_for_end(signals: &mut Signals, nodes: &[Node]) -> End {
    loop {
        tokio::select! {
            name = signals.next() => return End::Asked(name),
            () = tokio::time::sleep(HEALTH_EVERY) => {}
        }
        for node in nodes {
            if let Some(error) = node.health() {
                let context = format!("store {} stopped", node.store_id());
                return End::Failed(anyhow!(error).context(context));
            }
        }
    }
}

fn say(line: &str) -> Result<()> {
    print::text(&format!("{line}\n"))
}

/// Runs one node. `Err` of the outer kind is a mistake in the configuration.
pub fn serve(args: &ServeArgs) -> Result<Result<ExitCode>> {
    let config = settings::load(args)?;
    if args.print_config {
        let printed = settings::print(&config).and_then(|text| print::text(&text));
        return Ok(printed.map(|()| ExitCode::SUCCESS));
    }
    Ok(run(config))
}

fn run(config: NodeConfig) -> Result<ExitCode> {
    start_logging("info");
    let runtime = runtime()?;
    // Caught before the node is ready: whoever waits for that may send one at once.
    let mut signals = runtime.block_on(async { Signals::catch() })?;
    let node = Node::open(config).context("cannot open the node")?;
    let address = node.local_addr().map_or("no address".to_owned(), |a| a.to_string());
    say(&format!("ready: store {} listens at {address}", node.store_id().0))?;
    match runtime.block_on(wait_for_end(&mut signals, std::slice::from_ref(&node))) {
        End::Asked(signal) => {
            tracing::info!(signal, "handing leaderships over, then stopping");
            node.shutdown().context("while shutting down")?;
            say("stopped")?;
            Ok(ExitCode::SUCCESS)
        }
        End::Failed(error) => Err(error),
    }
}

/// Runs three nodes until told to stop.
pub fn demo(args: &DemoArgs) -> Result<ExitCode> {
    start_logging("warn");
    let runtime = runtime()?;
    let mut signals = runtime.block_on(async { Signals::catch() })?;
    let temporary = match &args.data_dir {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("catamaran-demo-").tempdir()?),
    };
    let dir = match (&args.data_dir, &temporary) {
        (Some(dir), _) => dir.clone(),
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => anyhow::bail!("no directory"),
    };
    let cluster: BTreeMap<u64, String> =
        (1..=3u16).map(|i| (u64::from(i), format!("127.0.0.1:{}", args.port + i - 1))).collect();
    let nodes = cluster
        .keys()
        .map(|&id| {
            let config = NodeConfig {
                store_id: id,
                data_dir: dir.join(format!("node{id}")),
                cluster: cluster.clone(),
                regions: args.regions,
                // A demo should not fill the disk: small segments are enough.
                segment_bytes: 16 << 20,
                ..NodeConfig::default()
            };
            Node::open(config).with_context(|| format!("cannot open node {id}"))
        })
        .collect::<Result<Vec<_>>>()?;
    let addresses: Vec<&str> = cluster.values().map(String::as_str).collect();
    let all = addresses.join(",");
    say(&format!(
        "ready: three nodes at {all}, {} regions, data below {}\n\n\
         Try, in another terminal:\n\
         \x20 export CATAMARAN_CONNECT={all}\n\
         \x20 catamaran kv put greeting hello\n\
         \x20 catamaran kv get greeting\n\
         \x20 catamaran kv scan --limit 10\n\
         \x20 catamaran status --regions\n\
         \x20 catamaran-load run --connect $CATAMARAN_CONNECT --clients 64 --duration 5s --verify\n\
         \n\
         Ctrl-C stops all three{}.",
        args.regions,
        dir.display(),
        if temporary.is_some() { " and removes the data" } else { "; the data stays" },
    ))?;
    let end = runtime.block_on(wait_for_end(&mut signals, &nodes));
    // All at once, or the last one would look for somebody to hand its leaderships to.
    let closed = std::thread::scope(|scope| {
        let closing: Vec<_> = nodes.iter().map(|node| scope.spawn(|| node.shutdown())).collect();
        let results = closing.into_iter().map(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        results.collect::<catamaran::Result<Vec<()>>>()
    });
    match end {
        End::Asked(_) => {
            closed.context("while shutting down")?;
            say("stopped")?;
            Ok(ExitCode::SUCCESS)
        }
        End::Failed(error) => Err(error),
    }
}
