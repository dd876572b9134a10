//! `summary` and `segments`: the log as a whole.

use super::Context;
use super::groups::{IDENT_GROUP, State, decode_state};
use crate::cli::{self, Segments};
use crate::failure::{Failure, Verdict};
use crate::load::{Loaded, LogDir};
use crate::model::{Standing, name};
use crate::output::{Listing, Page, Table, cell, percent, print};
use serde::Serialize;
use std::collections::BTreeSet;

#[derive(Serialize)]
struct Summary {
    /// The newest that a segment is written in, and the oldest.
    format_version: u32,
    oldest_format_version: u32,
    /// The store the directory belongs to, if it is a node's.
    identity: Option<State>,
    segments: u64,
    spares: u64,
    disk_bytes: u64,
    records: u64,
    first_seq: u64,
    last_seq: u64,
    /// Everything up to here is stated to be durable by something that reads.
    durable_seq: u64,
    groups: u64,
    entries: u64,
    live_bytes: u64,
    garbage_percent: f64,
    damaged: bool,
}

impl Page for Summary {
    fn tables(&self) -> Vec<Table> {
        let mut table = Table::pairs();
        match (self.oldest_format_version, self.format_version) {
            (old, new) if old == new => table.pair("format version", new),
            (old, new) => {
                table.pair("format version", format!("{new}, and {old} in older segments"))
            }
        }
        if let Some(State::Identity { cluster, store, incarnation }) = &self.identity {
            table.pair("store", format!("{store} of cluster {cluster}, incarnation {incarnation}"));
        }
        table.pair("segments", format!("{} and {} spare", self.segments, self.spares));
        table.pair("bytes on disk", self.disk_bytes);
        table.pair("records", format!("{}, {} to {}", self.records, self.first_seq, self.last_seq));
        table.pair("stated durable", self.durable_seq);
        table.pair("groups", self.groups);
        table.pair("live entries", self.entries);
        table.pair("live bytes", self.live_bytes);
        table.pair("garbage", format!("{:.1} %", self.garbage_percent));
        table.pair("damage", if self.damaged { "yes, see verify" } else { "none" });
        vec![table]
    }
}

/// `summary`.
pub fn summary(args: &cli::Summary, context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let dir = LogDir::find(&args.at.dir)?;
    let Loaded { model, report } = dir.load(|_, _, _| ())?;
    let (spares, spare_bytes) = dir.spares()?;
    let ident = model.groups.get(&IDENT_GROUP).and_then(|group| group.state.as_deref());
    let ident = ident.map(|state| decode_state(IDENT_GROUP, state, context.keys));
    let data: u64 = model.segments.iter().map(|s| s.data).sum();
    let live: u64 = model.segments.iter().map(|s| s.live).sum();
    let versions = || model.segments.iter().map(|s| s.info.version);
    let regions = model.groups.keys().filter(|id| **id != IDENT_GROUP);
    let page = Summary {
        format_version: versions().max().unwrap_or(0),
        oldest_format_version: versions().min().unwrap_or(0),
        groups: match ident {
            Some(State::Identity { .. }) => regions.count() as u64,
            _ => model.groups.len() as u64,
        },
        identity: ident.filter(|state| matches!(state, State::Identity { .. })),
        segments: model.segments.len() as u64,
        spares,
        disk_bytes: spare_bytes + model.segments.iter().map(|s| s.info.size).sum::<u64>(),
        records: model.records,
        first_seq: model.first_seq,
        last_seq: model.last_seq,
        durable_seq: report.durable,
        entries: model.groups.values().map(|g| g.entries.len() as u64).sum(),
        live_bytes: live,
        garbage_percent: percent(data.saturating_sub(live), data),
        damaged: report.is_rotten(),
    };
    print(&page, context.format, context.out)?;
    Ok(Verdict::bad_if(page.damaged))
}

#[derive(Serialize)]
struct SegmentRow {
    file: String,
    generation: u64,
    standing: Standing,
    first_seq: u64,
    last_seq: Option<u64>,
    records: u64,
    syncs: u64,
    size: u64,
    used: u64,
    data: u64,
    live: u64,
    live_percent: f64,
    /// Bytes of its footer, 0 if it has none.
    footer: u64,
}

/// `segments`.
pub fn segments(args: &Segments, context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let loaded = LogDir::find(&args.at.dir)?.load(|_, _, _| ())?;
    let floor = loaded.model.floor;
    let (from, to) = (args.from.unwrap_or(0), args.to.unwrap_or(u64::MAX));
    // Of groups that are asked for, the records that are still needed.
    let groups = loaded.model.groups.iter().filter(|(id, _)| args.only.takes(**id));
    let needed: Option<BTreeSet<u64>> =
        args.only.is_given().then(|| groups.flat_map(|(_, group)| group.records()).collect());
    let wanted = loaded.model.segments.iter().filter(|s| {
        let holds = |needed: &BTreeSet<u64>| s.extents.iter().any(|(.., seq)| needed.contains(seq));
        s.info.header.base_seq <= to
            && s.info.limit.is_none_or(|limit| limit > from)
            && needed.as_ref().is_none_or(holds)
    });
    let rows = wanted.map(|s| SegmentRow {
        file: name(&s.path),
        generation: s.info.header.generation,
        standing: s.standing(floor),
        first_seq: s.info.header.base_seq,
        last_seq: (s.records > 0).then_some(s.last_seq),
        records: s.records,
        syncs: s.syncs,
        size: s.info.size,
        used: s.used(),
        data: s.data,
        live: s.live,
        live_percent: percent(s.live, s.data),
        footer: s.info.footer,
    });
    let page = Listing {
        columns: &[
            "file",
            "standing",
            "first seq>",
            "last seq>",
            "records>",
            "syncs>",
            "size>",
            "used>",
            "data>",
            "live>",
            "live %>",
            "footer>",
        ],
        cells: |row: &SegmentRow| {
            vec![
                row.file.clone(),
                row.standing.text().to_string(),
                row.first_seq.to_string(),
                cell(row.last_seq),
                row.records.to_string(),
                row.syncs.to_string(),
                row.size.to_string(),
                row.used.to_string(),
                row.data.to_string(),
                row.live.to_string(),
                format!("{:.1}", row.live_percent),
                row.footer.to_string(),
            ]
        },
        items: rows.take(args.limit.unwrap_or(usize::MAX)).collect(),
    };
    print(&page, context.format, context.out)?;
    Ok(Verdict::bad_if(loaded.warn()))
}
