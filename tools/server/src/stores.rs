//! `catamaran ctl store`: the stores of a running cluster, listed, drained, struck off.

use crate::args::{StatusOutput, StoreCommand};
use crate::ctl::Patience;
use crate::print::{self, columns};
use anyhow::{Context, Result, bail};
use catamaran::codec::directory::StoreState;
use catamaran::codec::report::Cluster;
use catamaran::types::StoreId;
use serde::Serialize;
use std::time::Duration;

/// How often a drain is looked at that is waited for.
const LOOK: Duration = Duration::from_millis(500);

/// One store.
#[derive(Serialize)]
pub struct Store {
    store: u64,
    address: String,
    /// `up`, `draining`, `left`.
    state: &'static str,
    /// As the node that leads region 1 sees it.
    reachable: bool,
    replicas: u64,
    leaders: u64,
    /// 0: nobody knows.
    used_bytes: u64,
    capacity_bytes: u64,
    /// Of its data directory, hexadecimal.
    incarnation: String,
    /// How often that was opened.
    starts: u64,
}

/// What the directory knows, in brief.
#[derive(Serialize)]
pub struct Directory {
    stores: Vec<Store>,
    regions: u64,
    regions_with_leader: u64,
    /// What stands in the way of draining and mending.
    remarks: Vec<String>,
}

/// As it is printed.
pub fn directory(cluster: &Cluster) -> Directory {
    let store = |record: &catamaran::codec::directory::StoreRecord| {
        let load = cluster.loads.get(&record.store).copied().unwrap_or_default();
        Store {
            store: record.store.0,
            address: record.address.clone(),
            state: match record.state {
                StoreState::Up => "up",
                StoreState::Draining => "draining",
                StoreState::Left => "left",
            },
            reachable: load.reachable,
            replicas: load.replicas,
            leaders: load.leaders,
            used_bytes: load.used_bytes,
            capacity_bytes: load.capacity_bytes,
            incarnation: format!("{:016x}", record.incarnation),
            starts: record.start.number,
        }
    };
    Directory {
        stores: cluster.directory.stores.values().map(store).collect(),
        regions: cluster.regions,
        regions_with_leader: cluster.led,
        remarks: cluster.remarks.clone(),
    }
}

/// For people.
pub fn table(directory: &Directory) -> String {
    let head =
        ["store", "address", "state", "reachable", "replicas", "leaders", "used", "capacity"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for store in &directory.stores {
        let bytes = |n: u64| if n == 0 { "-".to_owned() } else { n.to_string() };
        rows.push(vec![
            store.store.to_string(),
            store.address.clone(),
            store.state.to_owned(),
            if store.reachable { "yes" } else { "no" }.to_owned(),
            store.replicas.to_string(),
            store.leaders.to_string(),
            bytes(store.used_bytes),
            bytes(store.capacity_bytes),
        ]);
    }
    let mut text = columns(&rows);
    for remark in &directory.remarks {
        text.push_str(&format!("{remark}\n"));
    }
    text
}

/// The same in a line.
pub fn brief(directory: &Directory) -> String {
    let count = |state| directory.stores.iter().filter(|store| store.state == state).count();
    let away = directory.stores.iter().filter(|s| s.state != "left" && !s.reachable).count();
    let mut text = format!("directory: {} stores up", count("up"));
    for (number, what) in [(count("draining"), "draining"), (away, "out of reach")] {
        if number > 0 {
            text.push_str(&format!(", {number} {what}"));
        }
    }
    let (all, led) = (directory.regions, directory.regions_with_leader);
    text.push_str(&format!("; {all} regions"));
    if led < all {
        text.push_str(&format!(", {} without a leader", all - led));
    }
    text.push('\n');
    for remark in &directory.remarks {
        text.push_str(&format!("  {remark}\n"));
    }
    text
}

fn show(cluster: &Cluster, output: StatusOutput) -> Result<()> {
    let directory = directory(cluster);
    print::text(&match output {
        StatusOutput::Json => serde_json::to_string_pretty(&directory)? + "\n",
        StatusOutput::Table => table(&directory),
    })
}

/// What is said after a change: to people nothing, to programs the stores as they are now.
fn done(patience: &Patience, output: StatusOutput) -> Result<()> {
    match output {
        StatusOutput::Table => Ok(()),
        StatusOutput::Json => show(&patience.client().cluster().context("store list")?, output),
    }
}

/// Waits until a store holds nothing any more. A look that fails is no reason to give up.
fn emptied(patience: &Patience, store: StoreId) -> Result<Cluster> {
    let mut known: Option<Cluster> = None;
    loop {
        match patience.client().cluster() {
            Ok(cluster) => {
                let held = held(&cluster, store);
                let all_known = cluster.regions > 0 && cluster.led == cluster.regions;
                if held == 0 && all_known {
                    return Ok(cluster);
                }
                known = Some(cluster);
            }
            Err(error) if known.is_none() => return Err(error).context("store drain"),
            Err(_) => {}
        }
        let Some(cluster) = known.as_ref().filter(|_| patience.left() <= LOOK) else {
            std::thread::sleep(LOOK);
            continue;
        };
        let remark = cluster.remarks.first().map_or(String::new(), |why| format!(" ({why})"));
        let held = held(cluster, store);
        bail!("{store} still holds {held} replicas{remark}; it goes on being drained");
    }
}

fn held(cluster: &Cluster, store: StoreId) -> u64 {
    cluster.loads.get(&store).map_or(0, |load| load.replicas)
}

/// Runs the command.
pub fn run(patience: &Patience, command: &StoreCommand, output: StatusOutput) -> Result<()> {
    let client = patience.client();
    match command {
        StoreCommand::List => show(&client.cluster().context("store list")?, output),
        StoreCommand::Drain { store, cancel: true, .. } => {
            client.resume_store(StoreId(*store)).context("store drain")?;
            done(patience, output)
        }
        StoreCommand::Drain { store, wait, .. } => {
            client.drain_store(StoreId(*store)).context("store drain")?;
            match wait {
                true => show(&emptied(patience, StoreId(*store))?, output),
                false => done(patience, output),
            }
        }
        StoreCommand::Remove { store } => {
            client.remove_store(StoreId(*store)).context("store remove")?;
            done(patience, output)
        }
    }
}
