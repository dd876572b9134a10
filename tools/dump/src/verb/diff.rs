//! `diff`: two replicas' logs, group by group.

use super::Context;
use super::groups::{IDENT_GROUP, commit};
use crate::cli::Diff;
use crate::failure::{Failure, Verdict};
use crate::load::LogDir;
use crate::model::Group;
use crate::output::{Listing, cell, hex32, print};
use catamaran::log::Entry;
use serde::Serialize;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;

/// What is compared of an entry, its term apart: kind and data.
fn fingerprint(entry: &Entry) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&[entry.kind]), &entry.data)
}

#[derive(Serialize)]
struct Row {
    group: u64,
    verdict: &'static str,
    /// Indexes that both hold.
    common: Option<Range>,
    /// The first of them where they are not the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    divergence: Option<Divergence>,
    only_in_a: Vec<Range>,
    only_in_b: Vec<Range>,
}

#[derive(Clone, Copy, Serialize)]
struct Range {
    first: u64,
    last: u64,
}

#[derive(Serialize)]
struct Divergence {
    index: u64,
    /// Whether either side holds it to be committed: then one of them is wrong.
    committed: bool,
    a: Side,
    b: Side,
}

#[derive(Serialize)]
struct Side {
    term: u64,
    crc: String,
}

/// Indexes that `here` has and `there` has not.
fn only(
    here: &Group<u32>,
    there: Option<&Group<u32>>,
    indexes: &RangeInclusive<u64>,
) -> Vec<Range> {
    let mut out: Vec<Range> = Vec::new();
    for (index, _) in here.entries.range(indexes.clone()) {
        if there.is_some_and(|there| there.entries.contains_key(index)) {
            continue;
        }
        match out.last_mut() {
            Some(range) if range.last + 1 == *index => range.last = *index,
            _ => out.push(Range { first: *index, last: *index }),
        }
    }
    out
}

fn compare(
    id: u64,
    a: Option<&Group<u32>>,
    b: Option<&Group<u32>>,
    indexes: &RangeInclusive<u64>,
) -> Row {
    let mut row = Row {
        group: id,
        verdict: "same",
        common: None,
        divergence: None,
        only_in_a: a.map(|a| only(a, b, indexes)).unwrap_or_default(),
        only_in_b: b.map(|b| only(b, a, indexes)).unwrap_or_default(),
    };
    let committed = |group: &Group<u32>| {
        group.state.as_deref().and_then(|state| commit(id, state)).map_or(0, |(.., commit)| commit)
    };
    if let (Some(a), Some(b)) = (a, b) {
        for (index, in_a) in a.entries.range(indexes.clone()) {
            let Some(in_b) = b.entries.get(index) else { continue };
            let first = row.common.map_or(*index, |range| range.first);
            row.common = Some(Range { first, last: *index });
            let differs = (in_a.term, in_a.kept) != (in_b.term, in_b.kept);
            if differs && row.divergence.is_none() {
                let side = |slot: &crate::model::Slot<u32>| Side {
                    term: slot.term,
                    crc: hex32(slot.kept),
                };
                let committed = *index <= committed(a).max(committed(b));
                let (a, b) = (side(in_a), side(in_b));
                row.divergence = Some(Divergence { index: *index, committed, a, b });
            }
        }
    }
    let apart = !row.only_in_a.is_empty() || !row.only_in_b.is_empty();
    row.verdict = match (&row.divergence, a.is_some(), b.is_some()) {
        (_, true, false) => "only in A",
        (_, false, true) => "only in B",
        (Some(_), ..) => "diverged",
        (None, ..) if apart => "ranges",
        (None, ..) => "same",
    };
    row
}

fn ranges(ranges: &[Range]) -> String {
    let text = |range: &Range| match range.first == range.last {
        true => range.first.to_string(),
        false => format!("{}..{}", range.first, range.last),
    };
    match ranges.is_empty() {
        true => "-".into(),
        false => ranges.iter().map(text).collect::<Vec<_>>().join(","),
    }
}

/// `diff`.
pub fn run(args: &Diff, context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let (a, b) = (LogDir::find(&args.a)?, LogDir::find(&args.b)?);
    let a = a.load(|_, _, entry| fingerprint(entry))?;
    let b = b.load(|_, _, entry| fingerprint(entry))?;
    let damaged = a.warn() | b.warn();
    let indexes = args.indexes.range();
    let (a, b) = (&a.model.groups, &b.model.groups);
    // The identity is every store's own.
    let ids: BTreeSet<u64> = a.keys().chain(b.keys()).copied().collect();
    let ids = ids.into_iter().filter(|id| *id != IDENT_GROUP && args.only.takes(*id));
    let rows: Vec<Row> = ids.map(|id| compare(id, a.get(&id), b.get(&id), &indexes)).collect();
    let counts = |row: &Row| match args.common {
        true => row.divergence.is_some(),
        false => row.verdict != "same",
    };
    let differ = rows.iter().any(counts);
    let page = Listing {
        columns: &["group>", "verdict", "common", "first divergence", "only in A", "only in B"],
        cells: |row: &Row| {
            let divergence = row.divergence.as_ref().map(|d| {
                let committed = if d.committed { "committed" } else { "not committed" };
                format!(
                    "{} ({committed}): A term {} crc {}, B term {} crc {}",
                    d.index, d.a.term, d.a.crc, d.b.term, d.b.crc
                )
            });
            vec![
                row.group.to_string(),
                row.verdict.to_string(),
                row.common.map_or_else(|| "-".into(), |range| ranges(&[range])),
                cell(divergence),
                ranges(&row.only_in_a),
                ranges(&row.only_in_b),
            ]
        },
        items: rows.into_iter().take(args.limit.unwrap_or(usize::MAX)).collect(),
    };
    print(&page, context.format, context.out)?;
    Ok(Verdict::bad_if(differ || damaged))
}
