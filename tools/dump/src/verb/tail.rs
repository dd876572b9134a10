//! `tail`: the last records in the order in which they were written, and with `-f` those to come.

use super::Context;
use super::follow::follow;
use super::groups::{State, decode_state};
use crate::cli::{Format, Keys, RecordType, Tail};
use crate::failure::{Failure, Verdict};
use crate::load::{LogDir, PAUSE};
use crate::model::name;
use crate::output::{Listing, print};
use catamaran::log::Entry;
use catamaran::log::inspect::{OpView, RecordView, RunBytes};
use serde::Serialize;
use std::collections::VecDeque;

#[derive(Serialize)]
pub struct Row {
    seq: u64,
    file: String,
    offset: u64,
    bytes: u64,
    /// What was durable when the record was written.
    durable: u64,
    damaged: bool,
    ops: Vec<OpRow>,
}

#[derive(Serialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
enum OpRow {
    Append(Run),
    Rewrite(Run),
    State { group: u64, state: State },
    Compact { group: u64, index: u64, term: u64 },
    Reset { group: u64, index: u64, term: u64 },
    Base { group: u64, index: u64, term: u64 },
    Clear { group: u64 },
    Floor { seq: u64 },
    Damaged { group: u64 },
}

#[derive(Serialize)]
struct Run {
    group: u64,
    first: u64,
    last: u64,
    /// Of the last entry.
    term: u64,
    bytes: u64,
    /// Bytes that they take, if they are compressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    compressed: Option<u64>,
}

fn run_of(group: u64, entries: &[Entry], run: &RunBytes) -> Run {
    let (first, last) = (entries.first(), entries.last());
    Run {
        group,
        first: first.map_or(0, |e| e.index),
        last: last.map_or(0, |e| e.index),
        term: last.map_or(0, |e| e.term),
        bytes: entries.iter().map(|e| e.data.len() as u64).sum(),
        compressed: run.is_compressed.then_some(run.stored),
    }
}

fn op_row(op: &OpView, keys: Keys) -> (RecordType, OpRow) {
    match op {
        OpView::Append { group, entries, run } => {
            (RecordType::Append, OpRow::Append(run_of(*group, entries, run)))
        }
        OpView::Rewrite { group, entries, run } => {
            (RecordType::Rewrite, OpRow::Rewrite(run_of(*group, entries, run)))
        }
        OpView::State { group, state } => {
            let state = decode_state(*group, state, keys);
            (RecordType::State, OpRow::State { group: *group, state })
        }
        OpView::Compact { group, to } => {
            (RecordType::Compact, OpRow::Compact { group: *group, index: to.index, term: to.term })
        }
        OpView::Reset { group, to } => {
            (RecordType::Reset, OpRow::Reset { group: *group, index: to.index, term: to.term })
        }
        OpView::Base { group, at } => {
            (RecordType::Base, OpRow::Base { group: *group, index: at.index, term: at.term })
        }
        OpView::Clear { group } => (RecordType::Clear, OpRow::Clear { group: *group }),
        OpView::Floor { seq } => (RecordType::Floor, OpRow::Floor { seq: *seq }),
        // It may have been anything: it is shown whatever is asked for.
        OpView::Damaged { group, .. } => (RecordType::Append, OpRow::Damaged { group: *group }),
    }
}

fn group_of(op: &OpView) -> Option<u64> {
    match op {
        OpView::Append { group, .. }
        | OpView::Rewrite { group, .. }
        | OpView::State { group, .. }
        | OpView::Compact { group, .. }
        | OpView::Reset { group, .. }
        | OpView::Base { group, .. }
        | OpView::Clear { group }
        | OpView::Damaged { group, .. } => Some(*group),
        OpView::Floor { .. } => None,
    }
}

/// The record as asked for; `None` if nothing of it is.
pub fn row(record: &RecordView, args: &Tail, keys: Keys) -> Option<Row> {
    let mut ops = Vec::new();
    for op in &record.ops {
        let takes_group = match group_of(op) {
            Some(group) => args.only.takes(group),
            None => !args.only.is_given(),
        };
        let (kind, shown) = op_row(op, keys);
        let takes_type = args.types.is_empty()
            || args.types.contains(&kind)
            || matches!(op, OpView::Damaged { .. });
        if takes_group && takes_type {
            ops.push(shown);
        }
    }
    let filtered = args.only.is_given() || !args.types.is_empty();
    (!filtered || !ops.is_empty()).then(|| Row {
        seq: record.seq,
        file: name(&record.path),
        offset: record.offset,
        bytes: record.len,
        durable: record.durable,
        damaged: !record.damaged.is_empty(),
        ops,
    })
}

fn text(op: &OpRow) -> String {
    match op {
        OpRow::Append(run) => format!("append {}: {}", run.group, span(run)),
        OpRow::Rewrite(run) => format!("rewrite {}: {}", run.group, span(run)),
        OpRow::State { group, state } => match state {
            State::Raft { term, vote, commit } => {
                format!("state {group}: term {term} vote {vote} commit {commit}")
            }
            State::Identity { store, cluster, .. } => {
                format!("state {group}: store {store} of cluster {cluster}")
            }
            State::Opaque { bytes } => format!("state {group}: {bytes}"),
        },
        OpRow::Compact { group, index, term } => format!("compact {group}: to {index}@{term}"),
        OpRow::Reset { group, index, term } => format!("reset {group}: to {index}@{term}"),
        OpRow::Base { group, index, term } => format!("base {group}: {index}@{term}"),
        OpRow::Clear { group } => format!("clear {group}"),
        OpRow::Floor { seq } => format!("floor {seq}"),
        OpRow::Damaged { group } => format!("damaged {group}"),
    }
}

fn span(run: &Run) -> String {
    let bytes = match run.compressed {
        None => format!("{} B", run.bytes),
        Some(stored) => format!("{} B in {stored}", run.bytes),
    };
    match run.first == run.last {
        true => format!("{}@{} ({bytes})", run.last, run.term),
        false => format!("{}..{}@{} ({bytes})", run.first, run.last, run.term),
    }
}

const COLUMNS: &[&str] = &["seq>", "file", "offset>", "bytes>", "durable>", "operations"];

pub fn cells(row: &Row) -> Vec<String> {
    let mut ops: Vec<String> = row.ops.iter().map(text).collect();
    if row.damaged {
        ops.push("DAMAGED".into());
    }
    let ops = if ops.is_empty() { "-".to_string() } else { ops.join(", ") };
    vec![
        row.seq.to_string(),
        row.file.clone(),
        row.offset.to_string(),
        row.bytes.to_string(),
        row.durable.to_string(),
        ops,
    ]
}

/// A record that may be shown once what lies before it is.
struct Held {
    seq: u64,
    damaged: bool,
    row: Option<Row>,
}

/// Every wanted record from `from` on, the last `limit` of them, and the number that would come next.
fn collect(
    dir: &LogDir,
    args: &Tail,
    keys: Keys,
    from: u64,
    limit: usize,
) -> Result<(VecDeque<Row>, u64), Failure> {
    let inspector = dir.inspect()?;
    // A damaged record that nothing states to be durable is being written at this moment, or torn: who follows
    // waits for it, and for what lies behind.
    let mut stated = match args.follow {
        true => inspector.segments()?.iter().map(|s| s.header.durable).max().unwrap_or(0),
        false => u64::MAX,
    };
    let mut rows = VecDeque::new();
    let mut held: VecDeque<Held> = VecDeque::new();
    let mut next = from;
    for record in inspector.records_from(from) {
        let record = record?;
        if record.seq < next {
            continue;
        }
        next = record.seq + 1;
        if args.to.is_some_and(|to| record.seq > to) {
            break;
        }
        stated = stated.max(record.durable);
        let (seq, damaged) = (record.seq, !record.damaged.is_empty());
        held.push_back(Held { seq, damaged, row: row(&record, args, keys) });
        while held.front().is_some_and(|held| !held.damaged || held.seq <= stated) {
            rows.extend(held.pop_front().and_then(|held| held.row));
            if rows.len() > limit {
                if args.from.is_some() && !args.follow {
                    rows.pop_back();
                    return Ok((rows, next));
                }
                rows.pop_front();
            }
        }
    }
    Ok((rows, held.front().map_or(next, |held| held.seq)))
}

/// How often to look while there is damage that the look before did not find.
const LOOKS_MAX: usize = 8;

/// What is to be shown of a log that may be living. One look may meet files of two moments: an error takes a second one,
/// and who follows believes damage when the next look finds the same.
fn settled(
    dir: &LogDir,
    args: &Tail,
    keys: Keys,
    from: u64,
) -> Result<(VecDeque<Row>, u64), Failure> {
    let look = || collect(dir, args, keys, from, args.limit);
    let damaged = |rows: &VecDeque<Row>| -> Vec<u64> {
        rows.iter().filter(|row| row.damaged).map(|row| row.seq).collect()
    };
    let (mut rows, mut next) = look().or_else(|_| look())?;
    for _ in 1..LOOKS_MAX {
        let before = damaged(&rows);
        if !args.follow || before.is_empty() {
            break;
        }
        std::thread::sleep(PAUSE);
        (rows, next) = look().or_else(|_| look())?;
        if damaged(&rows).iter().all(|seq| before.contains(seq)) {
            break;
        }
    }
    Ok((rows, next))
}

/// The number of the first record that can be left out when only the last are wanted: that of the
/// last segments which hold enough records.
fn start(dir: &LogDir, args: &Tail) -> Result<u64, Failure> {
    let filtered = args.only.is_given() || !args.types.is_empty() || args.to.is_some();
    if filtered {
        return Ok(1);
    }
    let segments = dir.inspect()?.segments()?;
    let newest = segments.last().map_or(1, |s| s.header.base_seq);
    let enough = newest.saturating_sub(args.limit as u64);
    Ok(enough.max(1))
}

/// `tail`.
pub fn run(args: &Tail, context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let dir = LogDir::find(&args.at.dir)?;
    let keys = context.keys;
    let from = match args.from {
        Some(from) => from.max(1),
        None => start(&dir, args)?,
    };
    let (rows, next) = settled(&dir, args, keys, from)?;
    let damaged = rows.iter().any(|row| row.damaged);
    let page = Listing { columns: COLUMNS, cells, items: rows.into() };
    match (args.follow, context.format) {
        // While following, a list never ends: its items are what is printed.
        (true, Format::Json) => print(&page, Format::Jsonl, context.out)?,
        (_, format) => print(&page, format, context.out)?,
    }
    if !args.follow {
        return Ok(Verdict::bad_if(rotten(&dir)?));
    }
    follow(&dir, args, next, damaged, context)
}

/// Whether the log is damaged, in what was printed or elsewhere; a torn tail is fine.
fn rotten(dir: &LogDir) -> Result<bool, Failure> {
    Ok(dir.load(|_, _, _| ())?.warn())
}
