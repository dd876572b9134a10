//! A store beside the plain map that says what must be in it.

use super::report::{Outcome, Trouble, ensure, fail};
use super::store::{Batch, Factory, Failure, LogStore, Op};
use crate::log::{Entry, GroupId};
use crate::types::LogPosition;
use bytes::Bytes;
use std::collections::BTreeMap;

/// What a group must hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Group {
    pub truncated: LogPosition,
    pub entries: BTreeMap<u64, Entry>,
    pub state: Option<Bytes>,
}

impl Group {
    pub fn last(&self) -> u64 {
        self.entries.keys().next_back().copied().unwrap_or(self.truncated.index)
    }
}

/// What a store must hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Model {
    pub groups: BTreeMap<GroupId, Group>,
}

impl Model {
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

    pub fn last(&self, group: GroupId) -> u64 {
        self.groups.get(&group).map_or(0, Group::last)
    }

    /// Compares a store with it, group by group, entry by entry.
    pub fn compare(&self, store: &dyn LogStore) -> Outcome {
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

pub(super) fn compare_group(store: &dyn LogStore, id: GroupId, group: &Group) -> Outcome {
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

/// An entry whose data says whose it is, padded to `len` bytes.
pub(super) fn entry(group: GroupId, index: u64, term: u64, len: usize) -> Entry {
    let mut data = format!("{group}/{index}@{term};").into_bytes();
    if len > data.len() {
        data.resize(len, (index % 251) as u8);
    }
    Entry { index, term, kind: (index % 3) as u8, data: data.into() }
}

/// Such entries, all of one term.
pub(super) fn entries(group: GroupId, range: std::ops::Range<u64>, term: u64) -> Vec<Entry> {
    range.map(|index| entry(group, index, term, 0)).collect()
}

/// A small generator (xorshift*), so that a run can be repeated.
#[derive(Clone, Debug)]
pub(super) struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % sides.max(1)
    }
}

/// One store under test and its model.
pub(super) struct World<'a> {
    pub factory: &'a dyn Factory,
    pub name: String,
    store: Option<Box<dyn LogStore>>,
    pub model: Model,
}

impl<'a> World<'a> {
    pub fn new(factory: &'a dyn Factory, name: &str) -> Outcome<World<'a>> {
        let store = Some(factory.open(name)?);
        Ok(World { factory, name: name.to_owned(), store, model: Model::default() })
    }

    pub fn store(&self) -> Outcome<&dyn LogStore> {
        match &self.store {
            Some(store) => Ok(store.as_ref()),
            None => Err(Trouble::Failed("the store is not open".into())),
        }
    }

    /// Writes, here and in the model.
    pub fn write(&mut self, batch: Batch) -> Outcome {
        self.store()?.write(&batch)?;
        self.model.apply(&batch);
        Ok(())
    }

    /// Writes what must be refused without a trace.
    pub fn write_refused(&mut self, batch: Batch, what: &str) -> Outcome {
        match self.store()?.write(&batch) {
            Err(Failure::Refused(_)) => self.check(),
            Ok(()) => fail!("{what} was taken"),
            Err(other) => fail!("{what}: expected a refusal, not: {other}"),
        }
    }

    pub fn sync(&self) -> Outcome {
        Ok(self.store()?.sync()?)
    }

    pub fn purge(&self) -> Outcome {
        Ok(self.store()?.purge()?)
    }

    pub fn check(&self) -> Outcome {
        self.model.compare(self.store()?)
    }

    /// The process ends without a word.
    pub fn drop_store(&mut self) {
        self.store = None;
    }

    pub fn close(&mut self) -> Outcome {
        match self.store.take() {
            Some(store) => Ok(store.close()?),
            None => Ok(()),
        }
    }

    pub fn open(&mut self) -> Outcome {
        self.store = Some(self.factory.open(&self.name)?);
        Ok(())
    }

    /// Closes, opens, and compares.
    pub fn reopen(&mut self) -> Outcome {
        self.close()?;
        self.open()?;
        self.check()
    }
}
