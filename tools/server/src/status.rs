//! `catamaran status`: where the replicas of running nodes stand, and what changes of their regions wait for.

use crate::args::{StatusArgs, StatusOutput};
use crate::print::{self, columns};
use crate::replica::{Replica, obstacles, replica};
use crate::stages::{self, StageReport};
use crate::stores;
use anyhow::Result;
use catamaran::client::{NodeStatus, RemoteClient};
use catamaran::driver::SnapshotStats;
use serde::Serialize;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

/// One node.
#[derive(Serialize)]
struct NodeReport {
    address: String,
    store: u64,
    regions: usize,
    leaders: usize,
    asleep: usize,
    applied: u64,
    log_bytes: u64,
    snapshots: Snapshots,
    /// Where the writes of the regions that it leads waited.
    stages: Vec<StageReport>,
    replicas: Vec<Replica>,
}

/// What became of a node's snapshots since it was opened, and what is under way.
#[derive(Serialize)]
struct Snapshots {
    sent: u64,
    received: u64,
    sent_bytes: u64,
    received_bytes: u64,
    refused: u64,
    turned_away: u64,
    resumed: u64,
    cancelled: u64,
    failed: u64,
    waiting: u64,
    sending: u64,
    receiving: u64,
    kept: u64,
}

/// A node that did not answer.
#[derive(Serialize)]
pub struct Silent {
    pub address: String,
    pub error: String,
}

impl Silent {
    /// For people.
    pub fn line(&self) -> String {
        format!("{}: {}\n", self.address, self.error)
    }
}

/// All that was asked.
#[derive(Serialize)]
struct Overview {
    nodes: Vec<NodeReport>,
    unreachable: Vec<Silent>,
    /// What the directory knows; none while nobody leads region 1.
    directory: Option<stores::Directory>,
    /// What changes of regions wait for, in words, as far as the nodes that were asked know.
    unsettled: Vec<Obstacle>,
}

/// Something that a change of a region may have to wait for.
#[derive(Serialize)]
struct Obstacle {
    region: u64,
    what: String,
}

/// Lines for people about what is not settled, unless each region has a line too.
const UNSETTLED_LINES: usize = 20;

fn unsettled(nodes: &[NodeReport]) -> Vec<Obstacle> {
    let mut regions: BTreeMap<u64, Vec<&Replica>> = BTreeMap::new();
    for replica in nodes.iter().flat_map(|node| &node.replicas) {
        regions.entry(replica.region).or_default().push(replica);
    }
    let told = |(region, replicas): (u64, Vec<&Replica>)| {
        obstacles(&replicas).into_iter().map(move |what| Obstacle { region, what })
    };
    regions.into_iter().flat_map(told).collect()
}

fn node(address: &str, status: &NodeStatus) -> NodeReport {
    NodeReport {
        address: address.to_owned(),
        store: status.store.0,
        regions: status.regions.len(),
        leaders: status.regions.iter().filter(|region| region.leads).count(),
        asleep: status.regions.iter().filter(|region| region.asleep).count(),
        applied: status.regions.iter().map(|region| region.applied).sum(),
        log_bytes: status.regions.iter().map(|region| region.log_bytes).sum(),
        snapshots: snapshots(&status.work.snapshots),
        stages: stages::stages(&status.stages),
        replicas: status.regions.iter().map(|one| replica(status.store.0, one)).collect(),
    }
}

fn snapshots(stats: &SnapshotStats) -> Snapshots {
    Snapshots {
        sent: stats.sent,
        received: stats.received,
        sent_bytes: stats.sent_bytes,
        received_bytes: stats.received_bytes,
        refused: stats.refused,
        turned_away: stats.turned_away,
        resumed: stats.resumed,
        cancelled: stats.cancelled,
        failed: stats.failed,
        waiting: stats.waiting,
        sending: stats.sending,
        receiving: stats.receiving,
        kept: stats.kept,
    }
}

/// Out and in: what is under way now, if anything.
fn under_way(snapshots: &Snapshots) -> String {
    let out = snapshots.waiting + snapshots.sending;
    match (out, snapshots.receiving + snapshots.kept) {
        (0, 0) => "-".to_owned(),
        (out, incoming) => format!("{out} out, {incoming} in"),
    }
}

fn row<const N: usize>(cells: [&dyn ToString; N]) -> Vec<String> {
    cells.iter().map(|cell| cell.to_string()).collect()
}

/// A line for each replica, region by region, with a head.
pub fn lines(mut replicas: Vec<&Replica>) -> Vec<Vec<String>> {
    let head = ["region", "store", "role", "conf_ver", "version", "term", "committed", "applied"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows[0].extend(["flushed", "log bytes", "replicas", "start"].map(str::to_owned));
    replicas.sort_by_key(|replica| (replica.region, replica.store));
    for r in replicas {
        let (part, places) = (r.part(), r.places());
        rows.push(row([
            &r.region,
            &r.store,
            &part,
            &r.conf_ver,
            &r.version,
            &r.term,
            &r.committed,
            &r.applied,
            &r.flushed,
            &r.log_bytes,
            &places,
            &r.start,
        ]));
    }
    rows
}

fn table(overview: &Overview, args: &StatusArgs) -> String {
    let head = ["store", "address", "regions", "leaders", "asleep", "applied", "log bytes"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows[0].extend(["quarantined".to_owned(), "snapshots".to_owned()]);
    for node in &overview.nodes {
        let fenced = node.replicas.iter().filter(|r| r.quarantined.is_some()).count();
        rows.push(row([
            &node.store,
            &node.address,
            &node.regions,
            &node.leaders,
            &node.asleep,
            &node.applied,
            &node.log_bytes,
            &fenced,
            &under_way(&node.snapshots),
        ]));
    }
    let mut text = columns(&rows);
    for silent in &overview.unreachable {
        text.push_str(&silent.line());
    }
    if let Some(directory) = &overview.directory {
        text.push_str(&stores::brief(directory));
    }
    if args.regions {
        text.push('\n');
        let replicas = overview.nodes.iter().flat_map(|node| &node.replicas);
        text.push_str(&columns(&lines(replicas.collect())));
    }
    let shown = if args.regions { usize::MAX } else { UNSETTLED_LINES };
    for Obstacle { region, what } in overview.unsettled.iter().take(shown) {
        text.push_str(&format!("r{region}: {what}\n"));
    }
    if let Some(more @ 1..) = overview.unsettled.len().checked_sub(shown) {
        text.push_str(&format!("{more} more: see --regions\n"));
    }
    if args.stages {
        text.push('\n');
        let nodes = overview.nodes.iter().map(|node| (node.store, &node.stages[..]));
        text.push_str(&stages::table(nodes));
    }
    text
}

/// How long the directory may take to answer.
const DIRECTORY_PATIENCE: Duration = Duration::from_secs(2);

/// Asks every node named; an error only if none answers.
pub fn run(args: &StatusArgs) -> Result<ExitCode> {
    let (nodes, unreachable) = (Vec::new(), Vec::new());
    let mut overview = Overview { nodes, unreachable, directory: None, unsettled: Vec::new() };
    for address in &args.connect.connect {
        let one = std::slice::from_ref(address);
        let asked = RemoteClient::new(one, None, args.connect.timeout)
            .and_then(|remote| Ok((remote.client().blocking().status()?, remote.client())));
        match asked {
            Ok((status, client)) => {
                overview.nodes.push(node(address, &status));
                if overview.directory.is_none() {
                    // A cluster without a majority is not waited for long.
                    let client = client.with_timeout(DIRECTORY_PATIENCE).blocking();
                    overview.directory = client.cluster().ok().as_ref().map(stores::directory);
                }
            }
            Err(error) => overview
                .unreachable
                .push(Silent { address: address.clone(), error: error.to_string() }),
        }
    }
    overview.unsettled = unsettled(&overview.nodes);
    match args.output {
        StatusOutput::Json => print::text(&(serde_json::to_string_pretty(&overview)? + "\n"))?,
        StatusOutput::Table => print::text(&table(&overview, args))?,
    }
    Ok(match overview.nodes.is_empty() {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}
