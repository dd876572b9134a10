//! `catamaran ctl region`: the regions of a running cluster, looked at and changed.

use crate::args::{CtlArgs, CtlCommand, RegionCommand, StatusOutput};
use crate::kv::client;
use crate::print::{self, Spelling, columns, hex, readable};
use crate::replica::{Member, Replica, members, obstacles, places, replica};
use crate::status::{self, Silent};
use crate::stores;
use anyhow::{Context, Result};
use catamaran::Error;
use catamaran::client::{Blocking, Client, RemoteClient};
use catamaran::codec::report::RegionInfo;
use catamaran::error::Outcome;
use catamaran::types::{Peer, Region, RegionId, StoreId};
use serde::Serialize;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::{Duration, Instant};

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
    replicas: Vec<Member>,
    /// Of a region that was looked at alone.
    #[serde(flatten)]
    standing: Option<Standing>,
    #[serde(skip)]
    keys: String,
}

/// Where the replicas of one region stand, as their nodes have it.
#[derive(Serialize)]
struct Standing {
    status: Vec<Replica>,
    /// What a change of the region waits for, in words.
    unsettled: Vec<String>,
    /// Nodes that should have a replica and did not answer.
    unreachable: Vec<Silent>,
}

fn shape(info: &RegionInfo) -> Shape {
    let region = &info.region;
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
        replicas: members(region),
        standing: None,
        keys: format!("{} .. {end}", readable(&region.range.start)),
    }
}

fn show(regions: &[RegionInfo], output: StatusOutput) -> Result<()> {
    let shapes: Vec<Shape> = regions.iter().map(shape).collect();
    print::text(&match output {
        StatusOutput::Json => serde_json::to_string_pretty(&shapes)? + "\n",
        StatusOutput::Table => table(&shapes),
    })
}

fn table(shapes: &[Shape]) -> String {
    let head = ["region", "conf_ver", "version", "leader", "bytes", "replicas", "keys"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for shape in shapes {
        rows.push(vec![
            shape.region.to_string(),
            shape.conf_ver.to_string(),
            shape.version.to_string(),
            shape.leader_store.map_or("-".to_owned(), |store| format!("s{store}")),
            shape.bytes.to_string(),
            places(&shape.replicas),
            shape.keys.clone(),
        ]);
    }
    columns(&rows)
}

/// One region, with where its replicas stand.
fn show_whole(info: &RegionInfo, standing: Standing, output: StatusOutput) -> Result<()> {
    let shape = Shape { standing: Some(standing), ..shape(info) };
    let shapes = std::slice::from_ref(&shape);
    let mut text = match output {
        StatusOutput::Json => return print::text(&(serde_json::to_string_pretty(shapes)? + "\n")),
        StatusOutput::Table => table(shapes),
    };
    if let Some(Standing { status, unsettled, unreachable }) = &shape.standing {
        text.push('\n');
        text.push_str(&columns(&status::lines(status.iter().collect())));
        unreachable.iter().for_each(|silent| text.push_str(&silent.line()));
        unsettled.iter().for_each(|what| text.push_str(&format!("{what}\n")));
    }
    print::text(&text)
}

/// How long one node may take to say where its replica stands.
const LOOK: Duration = Duration::from_secs(2);

/// Asks the nodes of a region's replicas, wherever the directory says that they listen; where nobody knows, those of the command
/// line.
fn standing(patience: &Patience, connect: &[String], region: &Region) -> Standing {
    let known = patience.directory().cluster().map(|cluster| cluster.directory.stores);
    let address = |peer: &Peer| Some(known.as_ref().ok()?.get(&peer.store)?.address.clone());
    let mut addresses: Vec<String> = region.peers.iter().filter_map(address).collect();
    if addresses.is_empty() {
        addresses = connect.to_vec();
    }
    let (mut status, mut unreachable) = (Vec::new(), Vec::new());
    for address in addresses {
        let time = patience.left().min(LOOK);
        let asked = RemoteClient::new(std::slice::from_ref(&address), None, time);
        match asked.and_then(|node| node.client().blocking().status_of(region.id)) {
            Ok(node) => status.extend(node.regions.iter().map(|one| replica(node.store.0, one))),
            Err(error) => unreachable.push(Silent { address, error: error.to_string() }),
        }
    }
    status.sort_by_key(|replica: &Replica| replica.store);
    let unsettled = obstacles(&status.iter().collect::<Vec<_>>());
    Standing { status, unsettled, unreachable }
}

/// A page of regions: as the directory has them, or, while nobody leads region 1, as the node asked has.
fn page(patience: &Patience, start: &[u8], count: usize) -> Result<Vec<RegionInfo>> {
    match patience.directory().locate(start.to_vec(), count) {
        Ok(infos) if !infos.is_empty() => Ok(infos),
        unknown => {
            if !patience.told.replace(true) {
                let why = unknown.err().map_or("no regions are known".into(), |e| e.to_string());
                eprintln!("the directory does not answer ({why}): as the node asked knows it");
            }
            let regions = patience.client().regions(start.to_vec(), count)?;
            Ok(regions.into_iter().map(unreported).collect())
        }
    }
}

fn unreported(region: Region) -> RegionInfo {
    RegionInfo { region, leader: None, bytes: 0 }
}

/// All regions, page by page. A region that is cut meanwhile may be listed in parts.
fn all(patience: &Patience) -> Result<Vec<RegionInfo>> {
    const PAGE: usize = 256;
    let mut out: Vec<RegionInfo> = Vec::new();
    loop {
        let start = out.last().map(|info| info.region.range.end.clone()).unwrap_or_default();
        let page = page(patience, &start, PAGE).context("region list")?;
        let Some(last) = page.last() else { return Ok(out) };
        let done = last.region.range.end.is_empty();
        out.extend(page);
        if done {
            return Ok(out);
        }
    }
}

fn find(patience: &Patience, id: u64) -> Result<RegionInfo> {
    let found = all(patience)?.into_iter().find(|info| info.region.id == RegionId(id));
    found.with_context(|| format!("there is no region {id}"))
}

/// Regions that were just changed, with what the directory knows of them.
fn described(patience: &Patience, regions: Vec<Region>) -> Vec<RegionInfo> {
    let mut known: BTreeMap<RegionId, RegionInfo> = BTreeMap::new();
    for region in &regions {
        for info in page(patience, &region.range.start, 1).unwrap_or_default() {
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

/// The time of a whole command.
pub struct Patience {
    client: Client,
    until: Instant,
    /// Whether it was said that the directory does not answer.
    told: Cell<bool>,
}

impl Patience {
    /// What is left of it.
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// A client for what comes next: it has what is left.
    pub fn client(&self) -> Blocking {
        self.client.with_timeout(self.left()).blocking()
    }

    /// A client for what can do without the directory: it has half of that.
    fn directory(&self) -> Blocking {
        self.client.with_timeout(self.left() / 2).blocking()
    }

    /// Names what failed; if it only was not done in time, says so.
    fn failed(&self, what: &'static str) -> impl Fn(Error) -> anyhow::Error {
        move |error| {
            let passes = error.is_retryable() || error.outcome() == Outcome::Unknown;
            let late = passes && self.left() < LATE && !matches!(error, Error::RegionNotFound(_));
            let error = anyhow::Error::new(error);
            match late {
                true => error.context(format!("{what}: not in time (again, it goes on from here)")),
                false => error.context(what),
            }
        }
    }
}

/// Who sees no time for another look gives up a little earlier.
const LATE: Duration = Duration::from_millis(400);

/// Runs the command.
pub fn run(args: &CtlArgs) -> Result<ExitCode> {
    let until = Instant::now() + args.connect.timeout;
    let patience = Patience { client: client(&args.connect)?, until, told: Cell::new(false) };
    match &args.command {
        CtlCommand::Region { command } => region(args, &patience, command)?,
        CtlCommand::Store { command } => stores::run(&patience, command, args.output)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn region(args: &CtlArgs, patience: &Patience, command: &RegionCommand) -> Result<()> {
    let spelling = if args.hex { Spelling::Hex } else { Spelling::Text };
    let client = patience.client();
    let id = |region: &u64| RegionId(*region);
    let changed = match command {
        RegionCommand::List => return show(&all(patience)?, args.output),
        RegionCommand::Get { region, key } => {
            let info = match region {
                Some(region) => find(patience, *region)?,
                None => {
                    let key = key.as_ref().map(|key| spelling.parse(key)).transpose()?;
                    let found = client.region_of(key.unwrap_or_default());
                    let region = found.map_err(patience.failed("region get"))?;
                    described(patience, vec![region]).remove(0)
                }
            };
            let standing = standing(patience, &args.connect.connect, &info.region);
            return show_whole(&info, standing, args.output);
        }
        RegionCommand::Split { keys } => {
            let cut = client.split(parse(spelling, keys)?);
            cut.map_err(patience.failed("region split"))?
        }
        RegionCommand::Merge { region, into } => {
            let merged = client.merge(id(region), id(into));
            vec![merged.map_err(patience.failed("region merge"))?]
        }
        RegionCommand::AddPeer { region, to, learner } => {
            let added = match learner {
                true => client.add_learner(id(region), StoreId(*to)),
                false => client.add_voter(id(region), StoreId(*to)),
            };
            vec![added.map_err(patience.failed("region add-peer"))?]
        }
        RegionCommand::RemovePeer { region, from } => {
            let removed = client.remove_peer(id(region), StoreId(*from));
            vec![removed.map_err(patience.failed("region remove-peer"))?]
        }
        RegionCommand::ReplacePeer { region, from, to } => {
            let replaced = client.replace_peer(id(region), StoreId(*from), StoreId(*to));
            vec![replaced.map_err(patience.failed("region replace-peer"))?]
        }
        RegionCommand::Promote { region, on } => {
            let promoted = client.promote(id(region), StoreId(*on));
            vec![promoted.map_err(patience.failed("region promote"))?]
        }
        RegionCommand::Demote { region, on } => {
            let demoted = client.demote(id(region), StoreId(*on));
            vec![demoted.map_err(patience.failed("region demote"))?]
        }
        RegionCommand::Transfer { region, to } => {
            let handed = client.transfer_leader(id(region), to.map(StoreId));
            handed.map_err(patience.failed("region transfer"))?;
            match args.output {
                StatusOutput::Table => return Ok(()),
                StatusOutput::Json => {
                    let now = patience.client().region(id(region));
                    vec![now.map_err(patience.failed("region transfer"))?]
                }
            }
        }
    };
    show(&described(patience, changed), args.output)
}
