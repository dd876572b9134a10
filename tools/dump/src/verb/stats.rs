//! `stats`: where the bytes go.

use super::Context;
use crate::cli;
use crate::decode::is_wanted;
use crate::failure::{Failure, Verdict};
use crate::load::LogDir;
use crate::model::{Counts, Group, Model, Segment, Spread, Standing, name};
use crate::output::{Page, Table, percent, print};
use serde::Serialize;
use std::cmp::Reverse;

#[derive(Serialize)]
struct Stats {
    log: LogStats,
    segments: Vec<SegmentStats>,
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
    /// Entries and state records, live or not, before compression.
    data_bytes: u64,
    /// Runs of entries, and those of them that are compressed.
    runs: u64,
    compressed_runs: u64,
    /// Bytes of runs before compression, as they are stored, and how many of the former for one of the latter.
    run_bytes: u64,
    stored_run_bytes: u64,
    compression: f64,
    live_bytes: u64,
    /// Of the data: what no group needs any more.
    garbage_bytes: u64,
    live_percent: f64,
    garbage_percent: f64,
    /// Of the used bytes: headers and directories of records, tables of runs.
    framing_bytes: u64,
    /// Of the used bytes: zeros between groups of records.
    padding_bytes: u64,
    /// Of the used bytes: framing and padding.
    overhead_percent: f64,
    /// Bytes of a batch, with header and directory. A record that only states what is durable is none.
    batch_bytes: Digest,
    /// Entries of a batch.
    batch_entries: Digest,
    operations: Counts,
}

/// How a figure is spread. All 0: nothing was counted.
#[derive(Serialize)]
struct Digest {
    count: u64,
    min: u64,
    p50: u64,
    p90: u64,
    p99: u64,
    max: u64,
}

impl Digest {
    fn of(spread: &Spread) -> Digest {
        let at = |percent| spread.percentile(percent);
        let count = spread.count();
        Digest { count, min: at(0), p50: at(50), p90: at(90), p99: at(99), max: at(100) }
    }

    fn text(&self) -> String {
        let Digest { min, p50, p90, p99, max, .. } = self;
        format!("min {min}, p50 {p50}, p90 {p90}, p99 {p99}, max {max}")
    }
}

#[derive(Serialize)]
struct SegmentStats {
    file: String,
    standing: Standing,
    data_bytes: u64,
    live_bytes: u64,
    garbage_bytes: u64,
    live_percent: f64,
    framing_bytes: u64,
    padding_bytes: u64,
}

impl SegmentStats {
    fn of(segment: &Segment, floor: u64) -> SegmentStats {
        SegmentStats {
            file: name(&segment.path),
            standing: segment.standing(floor),
            data_bytes: segment.data,
            live_bytes: segment.live,
            garbage_bytes: segment.data.saturating_sub(segment.live),
            live_percent: percent(segment.live, segment.data),
            framing_bytes: segment.framing(),
            padding_bytes: segment.used().saturating_sub(segment.record_bytes()),
        }
    }
}

#[derive(Serialize)]
struct GroupStats {
    group: u64,
    entries: u64,
    live_bytes: u64,
    written_entries: u64,
    written_bytes: u64,
    /// Of its runs, as in the log's.
    compressed_runs: u64,
    run_bytes: u64,
    stored_run_bytes: u64,
    compression: f64,
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
        let runs = format!("{}, stored in {}", log.run_bytes, log.stored_run_bytes);
        whole.pair("  bytes of runs", runs);
        let of = format!("{} of {} runs", log.compressed_runs, log.runs);
        whole.pair("  compression", format!("{:.2} to 1, {of}", log.compression));
        whole.pair("  bytes live", format!("{} ({:.1} %)", log.live_bytes, log.live_percent));
        let garbage = format!("{} ({:.1} %)", log.garbage_bytes, log.garbage_percent);
        whole.pair("  bytes of garbage", garbage);
        whole.pair("  bytes of framing", log.framing_bytes);
        whole.pair("  bytes of padding", log.padding_bytes);
        whole.pair("  overhead", format!("{:.1} %", log.overhead_percent));
        whole.pair("  batch: bytes", log.batch_bytes.text());
        whole.pair("  batch: entries", log.batch_entries.text());
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
        let mut segments = Table::new(&[
            "file", "standing", "data>", "live>", "garbage>", "live %>", "framing>", "padding>",
        ])
        .titled("segments, by garbage");
        for row in &self.segments {
            segments.row(vec![
                row.file.clone(),
                row.standing.text().to_string(),
                row.data_bytes.to_string(),
                row.live_bytes.to_string(),
                row.garbage_bytes.to_string(),
                format!("{:.1}", row.live_percent),
                row.framing_bytes.to_string(),
                row.padding_bytes.to_string(),
            ]);
        }
        let mut groups = Table::new(&[
            "group>",
            "entries>",
            "live bytes>",
            "share %>",
            "written>",
            "written bytes>",
            "stored>",
            "compression>",
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
                row.stored_run_bytes.to_string(),
                format!("{:.2}", row.compression),
                format!("{:.1}", row.garbage_percent),
            ]);
        }
        vec![whole, segments, groups]
    }
}

fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { (a as f64 * 10.0 / b as f64).round() / 10.0 }
}

impl GroupStats {
    fn of(id: u64, group: &Group<bool>, choosy: bool, all_live: u64) -> GroupStats {
        // A state record is no entry.
        let (state, written_state) = match choosy {
            true => (0, 0),
            false => (group.state_bytes(), group.written_state_bytes),
        };
        let live_bytes = group.bytes() + state;
        let written_bytes = group.written_bytes + written_state;
        GroupStats {
            group: id,
            entries: group.counting().count() as u64,
            live_bytes,
            written_entries: group.written_entries,
            written_bytes,
            compressed_runs: group.runs.compressed,
            run_bytes: group.runs.raw,
            stored_run_bytes: group.runs.stored,
            compression: group.runs.ratio(),
            share_percent: percent(live_bytes, all_live),
            garbage_percent: percent(written_bytes.saturating_sub(live_bytes), written_bytes),
        }
    }
}

fn log_stats(model: &Model<bool>) -> LogStats {
    let sum = |of: fn(&Segment) -> u64| model.segments.iter().map(of).sum::<u64>();
    let (used, data, live) = (sum(|s| s.used()), sum(|s| s.data), sum(|s| s.live));
    let (syncs, records) = (sum(|s| s.syncs), sum(|s| s.record_bytes()));
    let framing = sum(|s| s.framing());
    LogStats {
        records: model.records,
        syncs,
        batches_per_sync: ratio(model.records, syncs),
        entries_per_batch: ratio(model.written_entries, model.records),
        used_bytes: used,
        data_bytes: data,
        runs: model.runs.count,
        compressed_runs: model.runs.compressed,
        run_bytes: model.runs.raw,
        stored_run_bytes: model.runs.stored,
        compression: model.runs.ratio(),
        live_bytes: live,
        garbage_bytes: data.saturating_sub(live),
        live_percent: percent(live, data),
        garbage_percent: percent(data.saturating_sub(live), data),
        framing_bytes: framing,
        padding_bytes: used.saturating_sub(records),
        overhead_percent: percent(framing + used.saturating_sub(records), used),
        batch_bytes: Digest::of(&model.batch_bytes),
        batch_entries: Digest::of(&model.batch_entries),
        operations: model.counts,
    }
}

/// `stats`.
pub fn run(args: &cli::Stats, context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let filter = &args.entries;
    let dir = LogDir::find(&args.at.dir)?;
    let loaded = dir.load(|_, group, entry| is_wanted(group, entry, filter))?;
    let model = &loaded.model;
    let limit = args.limit.unwrap_or(usize::MAX);
    let log = log_stats(model);
    let mut segments: Vec<SegmentStats> =
        model.segments.iter().map(|segment| SegmentStats::of(segment, model.floor)).collect();
    // Where purge gains most; the older first.
    segments.sort_by_key(|row| Reverse(row.garbage_bytes));
    segments.truncate(limit);
    let taken = model.groups.iter().filter(|(id, _)| filter.only.takes(**id));
    let rows =
        taken.map(|(id, group)| GroupStats::of(*id, group, filter.is_choosy(), log.live_bytes));
    let mut groups: Vec<GroupStats> =
        rows.filter(|row| row.written_entries > 0 || !filter.is_choosy()).collect();
    groups.sort_by_key(|row| (Reverse(row.live_bytes), row.group));
    groups.truncate(limit);
    print(&Stats { log, segments, groups }, context.format, context.out)?;
    Ok(Verdict::bad_if(loaded.warn()))
}
