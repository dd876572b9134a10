//! The plain map that says what a store must hold.

use super::report::{Outcome, Trouble, ensure, fail};
use super::store::{Batch, LogStore, Op};
use crate::log::{Entry, GroupId};
use crate::types::LogPosition;
use bytes::Bytes;
use std::collections::BTreeMap;

/// What a group must hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Group {
    /// The position before its first entry.
    pub truncated: LogPosition,
    /// Its entries by index, without gaps.
    pub entries: BTreeMap<u64, Entry>,
    /// Its state record.
    pub state: Option<Bytes>,
}

impl Group {
    /// The last index, or the truncated one if there are no entries.
    pub fn last(&self) -> u64 {
        self.entries.keys().next_back().copied().unwrap_or(self.truncated.index)
    }
}

/// What a store must hold: for property tests of one's own.
///
/// ```
/// use catamaran::testkit::{Batch, Model};
///
/// let mut model = Model::default();
/// model.apply(&Batch::new().state(1, "a vote"));
/// assert_eq!(model.groups[&1].state.as_deref(), Some(&b"a vote"[..]));
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Model {
    /// Groups by id. A cleared one is not among them.
    pub groups: BTreeMap<GroupId, Group>,
}

impl Model {
    /// Takes a batch that the store took. It does not check what a store would refuse.
    pub fn apply(&mut self, batch: &Batch) {
        for op in &batch.ops {
            match op {
                Op::Append { group, entries } => {
                    let group = self.groups.entry(*group).or_default();
                    if let Some(first) = entries.first() {
                        group.entries.split_off(&first.index);
                    }
                    group.entries.extend(entries.iter().map(|e| (e.index, e.clone())));
                }
                Op::State { group, state } => {
                    self.groups.entry(*group).or_default().state = Some(state.clone());
                }
                Op::Compact { group, to } => {
                    let group = self.groups.entry(*group).or_default();
                    if to.index > group.truncated.index {
                        group.truncated = *to;
                        group.entries = group.entries.split_off(&(to.index + 1));
                    }
                }
                Op::Reset { group, to } => {
                    let group = self.groups.entry(*group).or_default();
                    group.truncated = *to;
                    group.entries.clear();
                }
                Op::Clear { group } => {
                    self.groups.remove(group);
                }
            }
        }
    }

    /// The last index of a group; 0 if nothing is known of it.
    pub fn last(&self, group: GroupId) -> u64 {
        self.groups.get(&group).map_or(0, Group::last)
    }

    /// Compares a store with it, group by group, entry by entry. The error tells the first difference.
    pub fn compare(&self, store: &dyn LogStore) -> Result<(), String> {
        self.check(store).map_err(|trouble| match trouble {
            Trouble::Failed(what) | Trouble::Skipped(what) => what,
        })
    }

    pub(super) fn check(&self, store: &dyn LogStore) -> Outcome {
        for (id, group) in &self.groups {
            compare_group(store, *id, group)?;
        }
        let nothing = Group::default();
        for id in store.groups()? {
            if !self.groups.contains_key(&id) {
                compare_group(store, id, &nothing)?;
            }
        }
        Ok(())
    }
}

fn compare_group(store: &dyn LogStore, id: GroupId, group: &Group) -> Outcome {
    let first_last = group.entries.keys().next().map(|first| (*first, group.last()));
    let found = store.bounds(id)?;
    ensure!(found == first_last, "group {id}: bounds {found:?}, expected {first_last:?}");
    let state = store.state(id)?;
    ensure!(state == group.state, "group {id}: state {state:?}, expected {:?}", group.state);
    let Some((first, last)) = first_last else { return Ok(()) };
    let entries = store.entries(id, first, last + 1, u64::MAX)?;
    let lengths = (entries.len(), group.entries.len());
    ensure!(lengths.0 == lengths.1, "group {id}: {} entries, expected {}", lengths.0, lengths.1);
    for (found, expected) in entries.iter().zip(group.entries.values()) {
        if found != expected {
            fail!("group {id}: found {}, expected {}", brief(found), brief(expected));
        }
        let term = store.term(id, expected.index)?;
        let expected_term = Some(expected.term);
        ensure!(
            term == expected_term,
            "group {id}: term of {} is {term:?}, expected {expected_term:?}",
            expected.index
        );
    }
    let beyond = store.term(id, last + 1)?;
    ensure!(beyond.is_none(), "group {id}: a term {beyond:?} beyond the last entry {last}");
    Ok(())
}

fn brief(entry: &Entry) -> String {
    let data = &entry.data[..entry.data.len().min(24)];
    let shown = String::from_utf8_lossy(data);
    let (index, term, kind, len) = (entry.index, entry.term, entry.kind, entry.data.len());
    format!("{index} of term {term}, kind {kind}, {len} bytes {shown:?}")
}
