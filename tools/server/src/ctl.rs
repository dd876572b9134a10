//! `catamaran ctl region`: the regions of a running cluster, looked at and changed.

use crate::args::{CtlArgs, CtlCommand, RegionCommand, StatusOutput};
use crate::kv::connect;
use crate::print::{self, Spelling, columns, hex, readable};
use crate::stores;
use anyhow::{Context, Result};
use catamaran::client::Blocking;
use catamaran::codec::report::RegionInfo;
use catamaran::types::{Region, RegionId, Role, StoreId};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::process::ExitCode;

/// One replica.
#[derive(Serialize)]
struct Replica {
    peer: u64,
    store: u64,
    role: &'static str,
}

/// One region.
#[derive(Serialize)]
struct Shape {
    region: u64,
    /// Always hexadecimal: an escape could not be told from a key that looks like one.
    start_hex: String,
    /// Empty: no upper end.
    end_hex: String,
    conf_ver: u64,
    version: u64,
    /// As last reported to the directory.
    leader_store: Option<u64>,
    /// Keys and values, about; 0: nobody knows.
    bytes: u64,
    replicas: Vec<Replica>,
    #[serde(skip)]
    keys: String,
}

fn shape(info: &RegionInfo) -> Shape {
    let region = &info.region;
    let role = |role| match role {
        Role::Voter => "voter",
        Role::Learner => "learner",
        Role::Passing => "passing",
        Role::Incoming => "incoming",
        Role::Demoting => "demoting",
    };
    let replica =
        |p: &catamaran::types::Peer| Replica { peer: p.id.0, store: p.store.0, role: role(p.role) };
    let end = match region.range.end.is_empty() {
        true => "(end)".to_owned(),
        false => readable(&region.range.end),
    };
    Shape {
        region: region.id.0,
        start_hex: hex(&region.range.start),
        end_hex: hex(&region.range.end),
        conf_ver: region.epoch.conf_ver,
        version: region.epoch.version,
        leader_store: info.leader.map(|store| store.0),
        bytes: info.bytes,
        replicas: region.peers.iter().map(replica).collect(),
        keys: format!("{} .. {end}", readable(&region.range.start)),
    }
}

fn show(regions: &[RegionInfo], output: StatusOutput) -> Result<()> {
    let shapes: Vec<Shape> = regions.iter().map(shape).collect();
    if output == StatusOutput::Json {
        return print::text(&(serde_json::to_string_pretty(&shapes)? + "\n"));
    }
    let head = ["region", "conf_ver", "version", "leader", "bytes", "replicas", "keys"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for shape in shapes {
        let mark = |replica: &Replica| match replica.role {
            "voter" => format!("s{}", replica.store),
            other => format!("s{} ({other})", replica.store),
        };
        let replicas: Vec<String> = shape.replicas.iter().map(mark).collect();
        rows.push(vec![
            shape.region.to_string(),
            shape.conf_ver.to_string(),
            shape.version.to_string(),
            shape.leader_store.map_or("-".to_owned(), |store| format!("s{store}")),
            shape.bytes.to_string(),
            replicas.join(" "),
            shape.keys,
        ]);
    }
    print::text(&columns(&rows))
}

/// A page of regions: as the directory has them, or, while nobody leads region 1, as the node asked has.
fn page(client: &Blocking, start: &[u8], count: usize) -> Result<Vec<RegionInfo>> {
    match client.locate(start.to_vec(), count) {
        Ok(infos) if !infos.is_empty() => Ok(infos),
        _ => {
            let regions = client.regions(start.to_vec(), count)?;
            Ok(regions.into_iter().map(unreported).collect())
        }
    }
}

fn unreported(region: Region) -> RegionInfo {
    RegionInfo { region, leader: None, bytes: 0 }
}

/// All regions, page by page. A region that is cut meanwhile may be listed in parts.
fn all(client: &Blocking) -> Result<Vec<RegionInfo>> {
    const PAGE: usize = 256;
    let mut out: Vec<RegionInfo> = Vec::new();
    loop {
        let start = out.last().map(|info| info.region.range.end.clone()).unwrap_or_default();
        let page = page(client, &start, PAGE).context("region list")?;
        let Some(last) = page.last() else { return Ok(out) };
        let done = last.region.range.end.is_empty();
        out.extend(page);
        if done {
            return Ok(out);
        }
    }
}

fn find(client: &Blocking, id: u64) -> Result<RegionInfo> {
    let found = all(client)?.into_iter().find(|info| info.region.id == RegionId(id));
    found.with_context(|| format!("there is no region {id}"))
}

/// Regions that were just changed, with what the directory knows of them.
fn described(client: &Blocking, regions: Vec<Region>) -> Vec<RegionInfo> {
    let mut known: BTreeMap<RegionId, RegionInfo> = BTreeMap::new();
    for region in &regions {
        for info in page(client, &region.range.start, 1).unwrap_or_default() {
            known.insert(info.region.id, info);
        }
    }
    let describe = |region: Region| match known.remove(&region.id) {
        Some(info) => RegionInfo { region, ..info },
        None => unreported(region),
    };
    regions.into_iter().map(describe).collect()
}

fn parse(spelling: Spelling, keys: &[OsString]) -> Result<Vec<Vec<u8>>> {
    keys.iter().map(|key| Ok(spelling.parse(key)?)).collect()
}

/// Runs the command.
pub fn run(args: &CtlArgs) -> Result<ExitCode> {
    let client = connect(&args.connect)?;
    match &args.command {
        CtlCommand::Region { command } => region(args, &client, command)?,
        CtlCommand::Store { command } => {
            stores::run(&client, command, args.connect.timeout, args.output)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn region(args: &CtlArgs, client: &Blocking, command: &RegionCommand) -> Result<()> {
    let spelling = if args.hex { Spelling::Hex } else { Spelling::Text };
    let changed = match command {
        RegionCommand::List => return show(&all(client)?, args.output),
        RegionCommand::Get { region: Some(id), .. } => {
            return show(&[find(client, *id)?], args.output);
        }
        RegionCommand::Get { region: None, key } => {
            let key = key.as_ref().map(|key| spelling.parse(key)).transpose()?;
            vec![client.region_of(key.unwrap_or_default()).context("region get")?]
        }
        RegionCommand::Split { keys } => {
            client.split(parse(spelling, keys)?).context("region split")?
        }
        RegionCommand::Merge { region, into } => {
            let (source, target) = (RegionId(*region), RegionId(*into));
            vec![client.merge(source, target).context("region merge")?]
        }
        RegionCommand::AddPeer { region, to, learner } => {
            let (region, to) = (RegionId(*region), StoreId(*to));
            let with_learner = client.add_learner(region, to).context("region add-peer")?;
            vec![match learner {
                true => with_learner,
                false => client.promote(region, to).context("region add-peer")?,
            }]
        }
        RegionCommand::RemovePeer { region, from } => {
            let (region, from) = (RegionId(*region), StoreId(*from));
            vec![client.remove_peer(region, from).context("region remove-peer")?]
        }
        RegionCommand::Transfer { region, to } => {
            let (id, to) = (RegionId(*region), to.map(StoreId));
            client.transfer_leader(id, to).context("region transfer")?;
            match args.output {
                StatusOutput::Table => return Ok(()),
                StatusOutput::Json => vec![client.region(id).context("region transfer")?],
            }
        }
    };
    show(&described(client, changed), args.output)
}
