//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  Look around, three nodes in this process:
    catamaran demo
  One node of a cluster of three (start the others alike, with their own id, directory and address):
    catamaran serve --store-id 1 --data-dir /var/lib/catamaran --listen 10.0.0.1:7001 \\
      --cluster 1=10.0.0.1:7001,2=10.0.0.2:7001,3=10.0.0.3:7001 --regions 64
  Use it:
    catamaran kv put greeting hello
    catamaran kv get greeting
    catamaran kv scan --prefix gr --output json
    catamaran ctl region split m
    catamaran status --connect 10.0.0.1:7001,10.0.0.2:7001,10.0.0.3:7001

Exit codes: 0 fine; 1 an error (that standard output cannot be written is one), or the key was not
found; 2 usage or configuration (a key longer than 32 KiB, or hexadecimal that is none, are usage).
Errors are text on standard error, with --output json as well; standard output is empty then.
Logs go to standard error; RUST_LOG says how much (default: info).";

const SERVE_EXAMPLES: &str = "\
Examples:
    catamaran serve --store-id 1 --data-dir d1 --listen 127.0.0.1:7001 \\
      --cluster 1=127.0.0.1:7001,2=127.0.0.1:7002,3=127.0.0.1:7003 --regions 16
    catamaran serve --config node1.toml --set memtable_bytes=67108864
    catamaran serve --store-id 4 --data-dir d4 --listen 127.0.0.1:7004 \\
      --join 1=127.0.0.1:7001,2=127.0.0.1:7002,3=127.0.0.1:7003

A configuration file holds the same settings and more, as TOML:
    store_id = 1
    data_dir = \"d1\"
    regions = 16
    [cluster]
    1 = \"127.0.0.1:7001\"
    2 = \"127.0.0.1:7002\"
    3 = \"127.0.0.1:7003\"
Flags win over the file. Who the node is (store id), where its data goes and where it listens must be
said in one or the other. `catamaran serve --print-config` prints every setting
with its value.";

const KV_EXAMPLES: &str = "\
Examples:
    catamaran kv put greeting hello
    catamaran kv put picture - < picture.png
    catamaran kv get greeting --output raw
    catamaran kv get --hex 6772656574696e67
    catamaran kv scan --prefix gr --limit 10 --reverse
    catamaran kv delete greeting";

const REGION_EXAMPLES: &str = "\
Examples:
    catamaran ctl region list
    catamaran ctl region get 3 --output json
    catamaran ctl region get --key greeting
    catamaran ctl region split g n t
    catamaran ctl region merge 9 --into 3
    catamaran ctl region transfer 3 --to 2
    catamaran ctl region add-peer 3 --to 4
    catamaran ctl region add-peer 3 --to 5 --learner
    catamaran ctl region remove-peer 3 --from 1
    catamaran ctl region replace-peer 3 --from 1 --to 4 --timeout 10m
    catamaran ctl region promote 3 --on 5
    catamaran ctl region demote 3 --on 2

Why does a change not go on? `get` asks the nodes of the region's replicas, and says what is not settled.";

const STORE_EXAMPLES: &str = "\
Examples:
    catamaran ctl store list
    catamaran ctl store drain 4
    catamaran ctl store drain 4 --wait --timeout 10m
    catamaran ctl store drain 4 --cancel
    catamaran ctl store remove 4

To replace a machine: start the new one (serve with `join`, under a new id), drain the old one, wait until it
is empty, remove it, stop it.";

const CTL_EXAMPLES: &str = "\
Examples:
    catamaran ctl region list
    catamaran ctl region get --key greeting --output json
    catamaran ctl region split g n t
    catamaran ctl region split --hex 80000000 c0000000
    catamaran ctl region transfer 3 --to 2
    catamaran ctl region add-peer 3 --to 4
    catamaran ctl region replace-peer 3 --from 1 --to 4
    catamaran ctl store list
    catamaran ctl store drain 4 --wait --timeout 10m
    catamaran ctl store remove 4

Each subcommand has examples of its own: `catamaran ctl region --help`.";

/// A multi-Raft sharded key-value store: one node, a demo, and the tools to use them.
#[derive(Parser, Debug)]
#[command(name = "catamaran", version, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run one node until it is told to stop (SIGINT, SIGTERM), then hand its leaderships over.
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(Box<ServeArgs>),
    /// Run three nodes in this process, print what to try, stay until Ctrl-C.
    Demo(DemoArgs),
    /// Read and write keys of a running cluster.
    #[command(after_help = KV_EXAMPLES)]
    Kv(KvArgs),
    /// Show regions, leaders, applied indexes and log sizes of running nodes, and what changes of regions wait for.
    Status(StatusArgs),
    /// Look at the regions of a running cluster and change them.
    #[command(after_help = CTL_EXAMPLES)]
    Ctl(CtlArgs),
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: Shell,
    },
}

/// Options of `serve`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// Which member of the cluster this node is, from 1.
    #[arg(long)]
    pub store_id: Option<u64>,
    /// Where it keeps its data.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Where it listens [default: the address that --cluster names for it].
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// All members: `1=host:port,2=host:port,3=host:port`.
    #[arg(long, value_delimiter = ',', value_name = "ID=HOST:PORT,..", value_parser = member)]
    pub cluster: Vec<(u64, String)>,
    /// Join these running nodes (name all of them) instead of beginning a cluster: the node starts without a
    /// region, until replicas are moved to it. Needs --listen, and a store id that none has had. To be given at
    /// every start.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "ID=HOST:PORT,..",
        value_parser = member,
        conflicts_with = "cluster"
    )]
    pub join: Vec<(u64, String)>,
    /// Regions of a new cluster.
    #[arg(long)]
    pub regions: Option<u64>,
    /// A TOML file with settings; flags win over it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Any other setting, in TOML's spelling; wins over everything else. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Print the settings as TOML and end.
    #[arg(long)]
    pub print_config: bool,
}

/// Options of `demo`.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Where the nodes keep their data [default: a temporary directory, removed at the end].
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// The first node's port; the others take the next ones.
    #[arg(long, default_value_t = 7001, value_parser = clap::value_parser!(u16).range(1..=65000))]
    pub port: u16,
    /// Regions.
    #[arg(long, default_value_t = 8)]
    pub regions: u64,
}

/// Which servers to talk to.
#[derive(Args, Debug)]
pub struct Connect {
    /// Addresses of running nodes, comma-separated; any of them will do.
    #[arg(
        long,
        env = "CATAMARAN_CONNECT",
        value_delimiter = ',',
        default_value = "127.0.0.1:7001",
        value_name = "HOST:PORT,..",
        value_parser = address,
        global = true
    )]
    pub connect: Vec<String>,
    /// How long the command may take in all; `kv scan`: each page, `status`: each node. Changes of a
    /// region wait so long for what stands in their way, and then say what it is. What was begun stays, or ends by
    /// itself; the same command again goes on from there.
    #[arg(long, default_value = "10s", value_parser = duration, global = true)]
    pub timeout: Duration,
}

/// Options of `kv`.
#[derive(Args, Debug)]
pub struct KvArgs {
    /// Which servers.
    #[command(flatten)]
    pub connect: Connect,
    /// How to print.
    #[arg(long, value_enum, default_value = "table", global = true)]
    pub output: Output,
    /// Keys and values are hexadecimal, on the command line and in what is printed.
    #[arg(long, global = true)]
    pub hex: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: KvCommand,
}

/// What `kv` does.
#[derive(Subcommand, Debug)]
pub enum KvCommand {
    /// Print the value of a key; exit code 1 if there is none.
    Get {
        /// The key.
        key: OsString,
    },
    /// Set a key.
    Put {
        /// The key.
        key: OsString,
        /// Its value; `-` reads standard input, as it is.
        #[arg(allow_hyphen_values = true)]
        value: OsString,
    },
    /// Remove a key; no error if it is not there.
    Delete {
        /// The key.
        key: OsString,
    },
    /// Print keys and values in order.
    Scan {
        /// First key, inclusive.
        #[arg(long)]
        from: Option<OsString>,
        /// Last key, exclusive.
        #[arg(long)]
        to: Option<OsString>,
        /// Only keys that begin with this.
        #[arg(long, conflicts_with_all = ["from", "to"])]
        prefix: Option<OsString>,
        /// At most this many.
        #[arg(long, default_value_t = 100)]
        limit: u64,
        /// From the last key down.
        #[arg(long)]
        reverse: bool,
    },
}

/// Options of `ctl`.
#[derive(Args, Debug)]
pub struct CtlArgs {
    /// Which servers.
    #[command(flatten)]
    pub connect: Connect,
    /// How to print.
    #[arg(long, value_enum, default_value = "table", global = true)]
    pub output: StatusOutput,
    /// Keys on the command line are hexadecimal.
    #[arg(long, global = true)]
    pub hex: bool,
    /// Of what.
    #[command(subcommand)]
    pub command: CtlCommand,
}

/// What `ctl` is about.
#[derive(Subcommand, Debug)]
pub enum CtlCommand {
    /// Regions.
    #[command(after_help = REGION_EXAMPLES)]
    Region {
        /// What to do.
        #[command(subcommand)]
        command: RegionCommand,
    },
    /// Stores.
    #[command(after_help = STORE_EXAMPLES)]
    Store {
        /// What to do.
        #[command(subcommand)]
        command: StoreCommand,
    },
}

/// What is done to stores.
#[derive(Subcommand, Debug)]
pub enum StoreCommand {
    /// All of them: where they are, whether they stay, what they hold.
    List,
    /// Empty a store: its leaderships and replicas go to others, in the background. It may be down. As JSON the stores
    /// are printed.
    Drain {
        /// The store.
        store: u64,
        /// Come back when it holds nothing any more (after `--timeout` with exit code 1; the work goes on).
        #[arg(long, conflicts_with = "cancel")]
        wait: bool,
        /// Take the drain back.
        #[arg(long)]
        cancel: bool,
    },
    /// Strike an empty store off, for good: its id is never used again. As JSON the stores are printed.
    Remove {
        /// The store.
        store: u64,
    },
}

/// What is done to regions.
#[derive(Subcommand, Debug)]
pub enum RegionCommand {
    /// All of them, by range.
    List,
    /// One of them: by its number, or the one that owns a key; with where its replicas stand, and what changes of it wait for.
    Get {
        /// Its number.
        #[arg(required_unless_present = "key")]
        region: Option<u64>,
        /// A key that it owns.
        #[arg(long, conflicts_with = "region")]
        key: Option<OsString>,
    },
    /// Cut regions so that each of these keys begins one, and print the parts. Keys that begin one already
    /// are passed over.
    Split {
        /// The keys.
        #[arg(required = true)]
        keys: Vec<OsString>,
    },
    /// Merge a region into its neighbour, which then has the keys of both, and print that one. If their replicas live
    /// on different stores, those of the first are moved before. What cannot be merged is left as it is.
    Merge {
        /// The region that goes.
        region: u64,
        /// Its neighbour on either side.
        #[arg(long)]
        into: u64,
    },
    /// Give a region a replica on a store, and print the region. It votes as soon as it has caught up.
    AddPeer {
        /// The region.
        region: u64,
        /// On which store.
        #[arg(long)]
        to: u64,
        /// It does not vote, it only receives the data: until a voter is missing, or its store is drained, for then a learner
        /// that is there takes its place.
        #[arg(long)]
        learner: bool,
    },
    /// Remove a region's replica from a store, with its data, and print the region. (If voters are missing then
    /// and another store has room, it gets a new one some seconds later.)
    RemovePeer {
        /// The region.
        region: u64,
        /// From which store.
        #[arg(long)]
        from: u64,
    },
    /// Move a region's replica from one store to another, and print the region. The new one is promoted, in one step with the old
    /// one's demotion, once it has caught up; then the old one goes, with its data.
    ReplacePeer {
        /// The region.
        region: u64,
        /// From which store.
        #[arg(long)]
        from: u64,
        /// To which store.
        #[arg(long)]
        to: u64,
    },
    /// Let a region's learner vote, once it has caught up, and print the region.
    Promote {
        /// The region.
        region: u64,
        /// On which store.
        #[arg(long)]
        on: u64,
    },
    /// Make a learner of a region's voter, and print the region. If it leads, leadership is handed over before. (If voters are
    /// missing then, a learner is promoted some seconds later.)
    Demote {
        /// The region.
        region: u64,
        /// On which store.
        #[arg(long)]
        on: u64,
    },
    /// Start handing the leadership of a region over. As JSON the region is printed.
    Transfer {
        /// The region.
        region: u64,
        /// To which store [default: to the most advanced follower].
        #[arg(long)]
        to: Option<u64>,
    },
}

/// Options of `status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Which servers: each of them is asked.
    #[command(flatten)]
    pub connect: Connect,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    pub output: StatusOutput,
    /// A line for each replica too: its role, the shape of its region, its indexes, and where the region's replicas are.
    #[arg(long)]
    pub regions: bool,
    /// Where writes waited, in microseconds, a line for each stage: queue (before the store loop), propose,
    /// log_wait, log_write (with the sync), replicate (until committed), apply_wait, apply, answer; whole is all
    /// of that. JSON has them always.
    #[arg(long)]
    pub stages: bool,
}

/// How keys and values are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Output {
    /// For people: escaped where not printable.
    Table,
    /// One JSON object per line. What is not UTF-8 is given as `key_hex`, `value_hex`.
    Json,
    /// The bytes as they are: values for get; key, tab, value, newline for scan.
    Raw,
}

/// How the status is printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum StatusOutput {
    /// For people.
    Table,
    /// One JSON document. Keys are hexadecimal there: `start_hex`, `end_hex` (empty: no upper end).
    Json,
}

fn member(text: &str) -> Result<(u64, String), String> {
    let (id, address) = text.split_once('=').ok_or("expected ID=HOST:PORT")?;
    let id = id.trim().parse().ok().filter(|&id| id > 0);
    let id = id.ok_or_else(|| format!("{text:?}: the id must be a number from 1"))?;
    let address = address.trim();
    self::address(address).map_err(|why| format!("{text:?}: {why}"))?;
    Ok((id, address.to_owned()))
}

fn address(text: &str) -> Result<String, String> {
    let port = text.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    match port {
        Some(_) => Ok(text.to_owned()),
        None => Err("the address needs a port, as in 127.0.0.1:7001".to_owned()),
    }
}

/// `10s`, `500ms`, `2m`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let unit = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit);
    let number: f64 = number.parse().map_err(|_| "expected a number and a unit".to_owned())?;
    let seconds = match unit {
        "ms" => number / 1e3,
        "" | "s" => number,
        "m" => number * 60.0,
        other => return Err(format!("unknown unit {other:?}: use ms, s or m")),
    };
    Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound_and_read_as_meant() {
        Cli::command().debug_assert();
        assert_eq!(member("2=h:1"), Ok((2, "h:1".into())));
        assert!(member("0=h:1").is_err() && member("2=h").is_err() && member("h:1").is_err());
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert!(duration("1 week").is_err());
        assert_eq!(address("[::1]:7001").as_deref(), Ok("[::1]:7001"));
        assert!(address("nonsense").is_err() && address("h:port").is_err());
    }
}
