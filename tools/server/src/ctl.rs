//! `catamaran ctl`: the regions of a running cluster, looked at and changed.

use crate::args::{CtlArgs, CtlCommand, RegionCommand, StatusOutput};
use crate::kv::connect;
use crate::print::{self, Spelling, columns, hex, readable};
use anyhow::{Context, Result};
use catamaran::client::Blocking;
use catamaran::types::{Region, RegionId, Role, StoreId};
use serde::Serialize;
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
    replicas: Vec<Replica>,
    #[serde(skip)]
    keys: String,
}

fn shape(region: &Region) -> Shape {
    let role = |role| match role {
        Role::Voter => "voter",
        Role::Learner => "learner",
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
        replicas: region.peers.iter().map(replica).collect(),
        keys: format!("{} .. {end}", readable(&region.range.start)),
    }
}

fn show(regions: &[Region], output: StatusOutput) -> Result<()> {
    let shapes: Vec<Shape> = regions.iter().map(shape).collect();
    if output == StatusOutput::Json {
        return print::text(&(serde_json::to_string_pretty(&shapes)? + "\n"));
    }
    let head = ["region", "conf_ver", "version", "replicas", "keys"];
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
            replicas.join(" "),
            shape.keys,
        ]);
    }
    print::text(&columns(&rows))
}

/// All regions, page by page. A region that is cut meanwhile may be listed in parts.
fn all(client: &Blocking) -> Result<Vec<Region>> {
    const PAGE: usize = 256;
    let mut out: Vec<Region> = Vec::new();
    loop {
        let start = out.last().map(|region| region.range.end.clone()).unwrap_or_default();
        let page = client.regions(start, PAGE).context("region list")?;
        let Some(last) = page.last() else { return Ok(out) };
        let done = last.range.end.is_empty();
        out.extend(page);
        if done {
            return Ok(out);
        }
    }
}

fn find(client: &Blocking, id: u64) -> Result<Region> {
    let found = all(client)?.into_iter().find(|region| region.id == RegionId(id));
    found.with_context(|| format!("there is no region {id}"))
}

fn parse(spelling: Spelling, keys: &[OsString]) -> Result<Vec<Vec<u8>>> {
    keys.iter().map(|key| Ok(spelling.parse(key)?)).collect()
}

/// Runs the command.
pub fn run(args: &CtlArgs) -> Result<ExitCode> {
    let client = connect(&args.connect)?;
    let spelling = if args.hex { Spelling::Hex } else { Spelling::Text };
    let CtlCommand::Region { command } = &args.command;
    match command {
        RegionCommand::List => show(&all(&client)?, args.output)?,
        RegionCommand::Get { region: Some(id), .. } => show(&[find(&client, *id)?], args.output)?,
        RegionCommand::Get { region: None, key } => {
            let key = key.as_ref().map(|key| spelling.parse(key)).transpose()?;
            let region = client.region_of(key.unwrap_or_default()).context("region get")?;
            show(&[region], args.output)?;
        }
        RegionCommand::Split { keys } => {
            let cut = client.split(parse(spelling, keys)?).context("region split")?;
            show(&cut, args.output)?;
        }
        RegionCommand::Transfer { region, to } => {
            let to = to.map(StoreId);
            client.transfer_leader(RegionId(*region), to).context("region transfer")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
