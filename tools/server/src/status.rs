//! `catamaran status`: where the replicas of running nodes stand.

use crate::args::{StatusArgs, StatusOutput};
use crate::print::{self, columns, hex, readable};
use crate::stages::{self, StageReport};
use crate::stores;
use anyhow::Result;
use catamaran::client::{NodeStatus, RemoteClient};
use catamaran::driver::SnapshotStats;
use catamaran::store::RegionStatus;
use serde::Serialize;
use std::process::ExitCode;
use std::time::Duration;

/// One replica.
#[derive(Serialize)]
struct Replica {
    region: u64,
    /// Always hexadecimal, as `kv` prints what is not text: an escape could not be told from a key that
    /// looks like one.
    start_hex: String,
    /// Empty: no upper end.
    end_hex: String,
    /// For people.
    #[serde(skip)]
    start: String,
    peer: u64,
    leads: bool,
    leader_store: Option<u64>,
    term: u64,
    committed: u64,
    applied: u64,
    flushed: u64,
    first_index: u64,
    last_index: u64,
    log_bytes: u64,
    /// As last measured by its leader; 0: not yet.
    bytes: u64,
    quarantined: Option<String>,
    asleep: bool,
}

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
struct Silent {
    address: String,
    error: String,
}

/// All that was asked.
#[derive(Serialize)]
struct Overview {
    nodes: Vec<NodeReport>,
    unreachable: Vec<Silent>,
    /// What the directory knows; none while nobody leads region 1.
    directory: Option<stores::Directory>,
}

fn replica(status: &RegionStatus) -> Replica {
    let leader = status.leader.and_then(|id| status.region.peers.iter().find(|p| p.id == id));
    Replica {
        region: status.region.id.0,
        start_hex: hex(&status.region.range.start),
        end_hex: hex(&status.region.range.end),
        start: readable(&status.region.range.start),
        peer: status.peer.0,
        leads: status.leads,
        leader_store: leader.map(|peer| peer.store.0),
        term: status.term,
        committed: status.committed,
        applied: status.applied,
        flushed: status.flushed,
        first_index: status.first_index,
        last_index: status.last_index,
        log_bytes: status.log_bytes,
        bytes: status.bytes,
        quarantined: status.quarantined.clone(),
        asleep: status.asleep,
    }
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
        replicas: status.regions.iter().map(replica).collect(),
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
        text.push_str(&format!("{}: {}\n", silent.address, silent.error));
    }
    if let Some(directory) = &overview.directory {
        text.push_str(&stores::brief(directory));
    }
    if args.regions {
        let head = ["region", "store", "role", "term", "committed", "applied", "flushed"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows[0].extend(["log bytes".to_owned(), "start".to_owned()]);
        let mut replicas: Vec<_> = overview
            .nodes
            .iter()
            .flat_map(|node| node.replicas.iter().map(move |replica| (node.store, replica)))
            .collect();
        replicas.sort_by_key(|(store, replica)| (replica.region, *store));
        for (store, r) in replicas {
            let role = match (&r.quarantined, r.leads, r.asleep) {
                (Some(_), ..) => "quarantined",
                (None, true, false) => "leader",
                (None, true, true) => "leader (asleep)",
                (None, false, false) => "follower",
                (None, false, true) => "follower (asleep)",
            };
            rows.push(row([
                &r.region,
                &store,
                &role,
                &r.term,
                &r.committed,
                &r.applied,
                &r.flushed,
                &r.log_bytes,
                &r.start,
            ]));
        }
        text.push('\n');
        text.push_str(&columns(&rows));
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
    let mut overview = Overview { nodes: Vec::new(), unreachable: Vec::new(), directory: None };
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
    match args.output {
        StatusOutput::Json => print::text(&(serde_json::to_string_pretty(&overview)? + "\n"))?,
        StatusOutput::Table => print::text(&table(&overview, args))?,
    }
    Ok(match overview.nodes.is_empty() {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}
