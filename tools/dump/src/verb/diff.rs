//! `diff`: two replicas' logs, group by group.

use super::Context;
use super::groups::{IDENT_GROUP, commit};
use crate::cli::{Diff, EntryFilter};
use crate::decode::is_wanted;
use crate::failure::{Failure, Verdict};
use crate::load::LogDir;
use crate::model::{Group, Kept, Slot};
use crate::output::{Listing, cell, hex32};
use catamaran::log::Entry;
use serde::Serialize;
use std::collections::BTreeSet;

/// What is compared of an entry, its term apart: kind and data.
fn fingerprint(entry: &Entry) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&[entry.kind]), &entry.data)
}

/// What is kept of an entry.
struct Print {
    crc: u32,
    wanted: bool,
}

impl Kept for Print {
    fn counts(&self) -> bool {
        self.wanted
    }
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
    /// Indexes that the log had and that do not read: nothing is known of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unreadable_in_a: Vec<Range>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unreadable_in_b: Vec<Range>,
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
fn only(here: &Group<Print>, there: Option<&Group<Print>>) -> Vec<Range> {
    let mut out: Vec<Range> = Vec::new();
    for (index, _) in here.counting() {
        if there.is_some_and(|there| there.entries.contains_key(&index)) {
            continue;
        }
        match out.last_mut() {
            Some(range) if range.last + 1 == index => range.last = index,
            _ => out.push(Range { first: index, last: index }),
        }
    }
    out
}

/// Indexes within the group's log that do not read.
fn unreadable(group: &Group<Print>, filter: &EntryFilter) -> Vec<Range> {
    let end = group.unreadable.keys().next_back().map_or(0, |last| last.saturating_add(1));
    let begin = match group.base_seq {
        // Nothing says where it begins.
        0 => group.entries.keys().chain(group.unreadable.keys()).min().copied().unwrap_or(0),
        _ => group.truncated.index.saturating_add(1),
    };
    let wanted = filter.indexes.range();
    let (mut next, mut out) = (begin, Vec::new());
    for index in group.entries.keys().copied().chain([end]) {
        let first = next.max(*wanted.start());
        let last = index.saturating_sub(1).min(*wanted.end());
        if next < index && first <= last {
            out.push(Range { first, last });
        }
        next = next.max(index.saturating_add(1));
    }
    out
}

fn compare(
    id: u64,
    a: Option<&Group<Print>>,
    b: Option<&Group<Print>>,
    filter: &EntryFilter,
) -> Row {
    let mut row = Row {
        group: id,
        verdict: "same",
        common: None,
        divergence: None,
        only_in_a: a.map(|a| only(a, b)).unwrap_or_default(),
        only_in_b: b.map(|b| only(b, a)).unwrap_or_default(),
        unreadable_in_a: a.map(|a| unreadable(a, filter)).unwrap_or_default(),
        unreadable_in_b: b.map(|b| unreadable(b, filter)).unwrap_or_default(),
    };
    let committed = |group: &Group<Print>| {
        group.state.as_deref().and_then(|state| commit(id, state)).map_or(0, |(.., commit)| commit)
    };
    if let (Some(a), Some(b)) = (a, b) {
        for (index, in_a) in &a.entries {
            let Some(in_b) = b.entries.get(index) else { continue };
            if !in_a.kept.wanted && !in_b.kept.wanted {
                continue;
            }
            let first = row.common.map_or(*index, |range| range.first);
            row.common = Some(Range { first, last: *index });
            let differs = (in_a.term, in_a.kept.crc) != (in_b.term, in_b.kept.crc);
            if differs && row.divergence.is_none() {
                let side = |slot: &Slot<Print>| Side { term: slot.term, crc: hex32(slot.kept.crc) };
                let committed = *index <= committed(a).max(committed(b));
                let (a, b) = (side(in_a), side(in_b));
                row.divergence = Some(Divergence { index: *index, committed, a, b });
            }
        }
    }
    let apart = !row.only_in_a.is_empty() || !row.only_in_b.is_empty();
    let holed = !row.unreadable_in_a.is_empty() || !row.unreadable_in_b.is_empty();
    row.verdict = match (&row.divergence, a.is_some(), b.is_some()) {
        (_, true, false) => "only in A",
        (_, false, true) => "only in B",
        (Some(_), ..) => "diverged",
        // What reads is the same.
        (None, ..) if holed => "incomplete",
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

/// The verdict, and what it knows nothing of.
fn verdict(row: &Row) -> String {
    let holes = [("A", &row.unreadable_in_a), ("B", &row.unreadable_in_b)];
    let holes = holes.into_iter().filter(|(_, holes)| !holes.is_empty());
    let holes: Vec<String> =
        holes.map(|(side, holes)| format!("{side} {}", ranges(holes))).collect();
    match holes.is_empty() {
        true => row.verdict.to_string(),
        false => format!("{} (unreadable: {})", row.verdict, holes.join(", ")),
    }
}

/// `diff`.
pub fn run(args: &Diff, context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let (a, b) = (LogDir::find(&args.a)?, LogDir::find(&args.b)?);
    let filter = &args.entries;
    let print = |group, entry: &Entry| Print {
        crc: fingerprint(entry),
        wanted: is_wanted(group, entry, filter),
    };
    let a = a.load(|_, group, entry| print(group, entry))?;
    let b = b.load(|_, group, entry| print(group, entry))?;
    let damaged = a.warn() | b.warn();
    let (a, b) = (&a.model.groups, &b.model.groups);
    // The identity is every store's own.
    let ids: BTreeSet<u64> = a.keys().chain(b.keys()).copied().collect();
    let ids = ids.into_iter().filter(|id| *id != IDENT_GROUP && filter.only.takes(*id));
    let rows = ids.map(|id| compare(id, a.get(&id), b.get(&id), filter));
    // What has nothing of what is asked for is neither the same nor different.
    let speaks = |row: &Row| {
        let silent = row.verdict != "incomplete"
            && row.common.is_none()
            && row.only_in_a.is_empty()
            && row.only_in_b.is_empty();
        !silent || filter.types.is_empty()
    };
    let rows: Vec<Row> = rows.filter(speaks).collect();
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
                verdict(row),
                row.common.map_or_else(|| "-".into(), |range| ranges(&[range])),
                cell(divergence),
                ranges(&row.only_in_a),
                ranges(&row.only_in_b),
            ]
        },
        items: rows.into_iter().take(args.limit.unwrap_or(usize::MAX)).collect(),
    };
    crate::output::print(&page, context.format, context.out)?;
    Ok(Verdict::bad_if(differ || damaged))
}
