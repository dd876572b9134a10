//! `summary`, `segments` and `stats`: the log as a whole.

use super::Context;
use super::groups::{IDENT_GROUP, State, decode_state};
use crate::cli::{self, Groups, Segments};
use crate::decode::is_wanted;
use crate::failure::{Failure, Verdict};
use crate::load::{Loaded, LogDir};
use crate::model::{Counts, Standing, name};
use crate::output::{Listing, Page, Table, cell, percent, print};
use catamaran::log::VERSION;
use serde::Serialize;
use std::collections::BTreeSet;

#[derive(Serialize)]
struct Summary {
    format_version: u32,
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
        table.pair("format version", self.format_version);
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
    let regions = model.groups.keys().filter(|id| **id != IDENT_GROUP);
    let page = Summary {
        format_version: VERSION,
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
            let standing = match row.standing {
                Standing::Active => "active",
                Standing::Sealed => "sealed",
                Standing::Void => "void",
            };
            vec![
                row.file.clone(),
                standing.to_string(),
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

#[derive(Serialize)]
struct Stats {
    log: LogStats,
    groups: Vec<GroupStats>,
}

#[derive(Serialize)]
struct LogStats {
    records: u64,
    /// Groups of records that were written and synced together, as far as the records show it.
    syncs: u64,
    batches_per_sync: f64,
    entries_per_batch: f64,
    /// Records with their padding.
    used_bytes: u64,
    /// Entries and state records, live or not.
    data_bytes: u64,
    live_bytes: u64,
    /// Of the data: what no group needs any more.
    garbage_percent: f64,
    /// Of the used bytes: headers, directories, padding.
    overhead_percent: f64,
    operations: Counts,
}

#[derive(Serialize)]
struct GroupStats {
    group: u64,
    entries: u64,
    live_bytes: u64,
    written_entries: u64,
    written_bytes: u64,
    /// Of what the whole log holds live.
    share_percent: f64,
    garbage_percent: f64,
}

impl Page for Stats {
    fn tables(&self) -> Vec<Table> {
        let log = &self.log;
        let mut whole = Table::pairs().titled("log");
        whole.pair("  records (batches)", log.records);
        whole.pair("  syncs", log.syncs);
        whole.pair("  batches per sync", format!("{:.1}", log.batches_per_sync));
        whole.pair("  entries per batch", format!("{:.1}", log.entries_per_batch));
        whole.pair("  bytes used", log.used_bytes);
        whole.pair("  bytes of data", log.data_bytes);
        whole.pair("  bytes live", log.live_bytes);
        whole.pair("  garbage", format!("{:.1} %", log.garbage_percent));
        whole.pair("  overhead", format!("{:.1} %", log.overhead_percent));
        let n = &log.operations;
        for (what, count) in [
            ("append", n.append),
            ("rewrite", n.rewrite),
            ("state", n.state),
            ("compact", n.compact),
            ("reset", n.reset),
            ("base", n.base),
            ("clear", n.clear),
            ("floor", n.floor),
            ("damaged", n.damaged),
        ] {
            if count > 0 {
                whole.pair(&format!("  operations: {what}"), count);
            }
        }
        let mut groups = Table::new(&[
            "group>",
            "entries>",
            "live bytes>",
            "share %>",
            "written>",
            "written bytes>",
            "garbage %>",
        ])
        .titled("groups, by live bytes");
        for row in &self.groups {
            groups.row(vec![
                row.group.to_string(),
                row.entries.to_string(),
                row.live_bytes.to_string(),
                format!("{:.1}", row.share_percent),
                row.written_entries.to_string(),
                row.written_bytes.to_string(),
                format!("{:.1}", row.garbage_percent),
            ]);
        }
        vec![whole, groups]
    }
}

fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { (a as f64 * 10.0 / b as f64).round() / 10.0 }
}

/// `stats`.
pub fn stats(args: &Groups, context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let filter = &args.entries;
    let dir = LogDir::find(&args.at.dir)?;
    let loaded = dir.load(|_, group, entry| is_wanted(group, entry, filter))?;
    let model = &loaded.model;
    let sum = |of: fn(&crate::model::Segment) -> u64| model.segments.iter().map(of).sum::<u64>();
    let (used, data, live) = (sum(|s| s.used()), sum(|s| s.data), sum(|s| s.live));
    let syncs = sum(|s| s.syncs);
    let mut groups: Vec<GroupStats> = model
        .groups
        .iter()
        .filter(|(id, _)| filter.only.takes(**id))
        .map(|(id, group)| {
            // A state record is no entry.
            let (state, written_state) = match filter.is_choosy() {
                true => (0, 0),
                false => (group.state_bytes(), group.written_state_bytes),
            };
            let live_bytes = group.bytes() + state;
            let written_bytes = group.written_bytes + written_state;
            GroupStats {
                group: *id,
                entries: group.counting().count() as u64,
                live_bytes,
                written_entries: group.written_entries,
                written_bytes,
                share_percent: percent(live_bytes, live),
                garbage_percent: percent(written_bytes.saturating_sub(live_bytes), written_bytes),
            }
        })
        .filter(|row| row.written_entries > 0 || !filter.is_choosy())
        .collect();
    groups.sort_by_key(|row| (std::cmp::Reverse(row.live_bytes), row.group));
    groups.truncate(args.limit.unwrap_or(usize::MAX));
    let log = LogStats {
        records: model.records,
        syncs,
        batches_per_sync: ratio(model.records, syncs),
        entries_per_batch: ratio(model.written_entries, model.records),
        used_bytes: used,
        data_bytes: data,
        live_bytes: live,
        garbage_percent: percent(data.saturating_sub(live), data),
        overhead_percent: percent(used.saturating_sub(data), used),
        operations: model.counts,
    };
    print(&Stats { log, groups }, context.format, context.out)?;
    Ok(Verdict::bad_if(loaded.warn()))
}
