//! `groups` and `state`: what the log knows of each group.

use super::Context;
use crate::cli::{Groups, StateType, States};
use crate::decode::{Position, is_wanted, render};
use crate::failure::{Failure, Verdict};
use crate::load::LogDir;
use crate::model::Group;
use crate::output::{Listing, cell, print};
use catamaran::pb;
use catamaran::types::LogPosition;
use serde::Serialize;

/// The group whose state record is the store's identity.
pub const IDENT_GROUP: u64 = 0;

/// What a state record says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum State {
    #[serde(rename = "hard-state")]
    Raft {
        term: u64,
        vote: u64,
        commit: u64,
    },
    Identity {
        cluster: u64,
        store: u64,
        incarnation: u64,
    },
    /// Something else: the log is used alone, or by another build.
    Opaque {
        bytes: String,
    },
}

/// Decodes a state record. Regions keep term, vote and commit there, eight bytes each.
pub fn decode_state(group: u64, bytes: &[u8], keys: crate::cli::Keys) -> State {
    if group == IDENT_GROUP
        && let Ok(ident) = pb::decode_ident(bytes)
    {
        let (cluster, store) = (ident.cluster, ident.store.0);
        return State::Identity { cluster, store, incarnation: ident.incarnation };
    }
    match commit(group, bytes) {
        Some((term, vote, commit)) => State::Raft { term, vote, commit },
        None => State::Opaque { bytes: render(bytes, keys) },
    }
}

/// Term, vote and commit of a region's state record.
pub fn commit(group: u64, bytes: &[u8]) -> Option<(u64, u64, u64)> {
    let field = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    // The longer form names the replica, too.
    let hard_state = group != IDENT_GROUP && matches!(bytes.len(), 24 | 32);
    hard_state.then(|| Some((field(0)?, field(8)?, field(16)?))).flatten()
}

#[derive(Serialize)]
struct GroupRow {
    group: u64,
    first: Option<u64>,
    last: Option<u64>,
    last_term: u64,
    truncated: Position,
    entries: u64,
    bytes: u64,
    commit: Option<u64>,
}

fn position(at: LogPosition) -> Position {
    Position { index: at.index, term: at.term }
}

fn group_row(id: u64, group: &Group<bool>) -> GroupRow {
    let last = group.counting().next_back();
    GroupRow {
        group: id,
        first: group.counting().next().map(|(index, _)| index),
        last: last.map(|(index, _)| index),
        last_term: last.map_or(group.truncated.term, |(_, slot)| slot.term),
        truncated: position(group.truncated),
        entries: group.counting().count() as u64,
        bytes: group.bytes(),
        commit: group.state.as_deref().and_then(|s| commit(id, s)).map(|(.., commit)| commit),
    }
}

/// `groups`.
pub fn groups(args: &Groups, context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let filter = &args.entries;
    let dir = LogDir::find(&args.at.dir)?;
    let loaded = dir.load(|_, group, entry| is_wanted(group, entry, filter))?;
    let groups = loaded.model.groups.iter().filter(|(id, _)| filter.only.takes(**id));
    let rows = groups.map(|(id, group)| group_row(*id, group));
    let rows = rows.filter(|row| row.entries > 0 || !filter.is_choosy());
    let page = Listing {
        columns: &[
            "group>",
            "first>",
            "last>",
            "term>",
            "truncated>",
            "entries>",
            "bytes>",
            "commit>",
        ],
        cells: |row: &GroupRow| {
            vec![
                row.group.to_string(),
                cell(row.first),
                cell(row.last),
                row.last_term.to_string(),
                format!("{}@{}", row.truncated.index, row.truncated.term),
                row.entries.to_string(),
                row.bytes.to_string(),
                cell(row.commit),
            ]
        },
        items: rows.take(args.limit.unwrap_or(usize::MAX)).collect(),
    };
    print(&page, context.format, context.out)?;
    Ok(Verdict::bad_if(loaded.warn()))
}

#[derive(Serialize)]
struct StateRow {
    group: u64,
    #[serde(flatten)]
    state: State,
}

/// `state`.
pub fn state(args: &States, context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let loaded = LogDir::find(&args.at.dir)?.load(|_, _, _| ())?;
    let groups = loaded.model.groups.iter().filter(|(id, _)| args.only.takes(**id));
    let rows = groups.filter_map(|(id, group)| {
        let state = decode_state(*id, group.state.as_deref()?, context.keys);
        let (kind, commit) = match &state {
            State::Raft { commit, .. } => (StateType::HardState, Some(*commit)),
            State::Identity { .. } => (StateType::Identity, None),
            State::Opaque { .. } => (StateType::Opaque, None),
        };
        // What has no commit index has none between two.
        let by_index = (args.from.is_none() && args.to.is_none())
            || commit.is_some_and(|commit| {
                (args.from.unwrap_or(0)..=args.to.unwrap_or(u64::MAX)).contains(&commit)
            });
        let wanted = by_index && (args.types.is_empty() || args.types.contains(&kind));
        wanted.then_some(StateRow { group: *id, state })
    });
    let page = Listing {
        columns: &["group>", "term>", "vote>", "commit>", "other"],
        cells: |row: &StateRow| {
            let mut cells = vec![row.group.to_string()];
            let (term, vote, commit, other) = match &row.state {
                State::Raft { term, vote, commit } => {
                    (Some(*term), Some(*vote), Some(*commit), String::new())
                }
                State::Identity { cluster, store, incarnation } => {
                    let text =
                        format!("store {store} of cluster {cluster}, incarnation {incarnation}");
                    (None, None, None, text)
                }
                State::Opaque { bytes } => (None, None, None, bytes.clone()),
            };
            cells.extend([cell(term), cell(vote), cell(commit), other]);
            cells
        },
        items: rows.take(args.limit.unwrap_or(usize::MAX)).collect(),
    };
    print(&page, context.format, context.out)?;
    Ok(Verdict::bad_if(loaded.warn()))
}
