//! Reading: memtable runs over table snapshot, newest first.

use super::run::{Found, Run, covers};
use super::slot::Slot;
use super::tables::{Regions, Stand, TableScan, TablesView, data_key, scan_data};
use super::{Direction, Scan, View};
use crate::error::Result;
use crate::types::{KeyRange, RegionId, RegionState};
use bytes::Bytes;
use std::cmp::Ordering;
use std::sync::Arc;

/// Everything a reader needs, of one instant.
pub(super) struct Picture {
    /// Oldest first: frozen, then active.
    pub runs: Vec<Arc<Run>>,
    pub tables: Arc<dyn TablesView>,
    /// Region states of the last durable cut.
    pub base: Arc<Regions>,
}

impl Picture {
    /// The region states with what memtables say laid over the last cut.
    pub fn regions(&self) -> Regions {
        let mut out = (*self.base).clone();
        for run in &self.runs {
            lay_over(&mut out, run);
        }
        out
    }
}

/// Applies a run's region changes to `regions`.
pub(super) fn lay_over(regions: &mut Regions, run: &Run) {
    for (id, stand) in &run.regions {
        match stand {
            Some(stand) => regions.insert(*id, stand.clone()),
            None => regions.remove(id),
        };
    }
}

/// A store's [`View`]: shared by everybody who asked between two writes.
pub(super) struct StoreView(pub Arc<Picture>);

impl View for StoreView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        for run in self.0.runs.iter().rev() {
            match run.find(key) {
                Found::Put(value) => return Ok(Some(value)),
                Found::Deleted => return Ok(None),
                Found::Unknown => {}
            }
        }
        let mut table_key = Vec::with_capacity(key.len() + 1);
        data_key(key, &mut table_key);
        self.0.tables.get(&table_key)
    }

    fn scan(&self, range: &KeyRange, direction: Direction) -> Result<Scan> {
        if range.is_empty() {
            return Ok(Box::new(std::iter::empty()));
        }
        let runs = &self.0.runs;
        let mut sources = Vec::new();
        // Newest first; each source remembers which range deletes are newer than it.
        for (at, run) in runs.iter().enumerate().rev() {
            sources.extend(Source::new(run, run.span(range), at, direction));
        }
        let deleting = runs
            .iter()
            .enumerate()
            .filter(|(_, run)| !run.ranges.is_empty())
            .map(|(at, run)| (at, Arc::clone(run)))
            .collect();
        let tables = scan_data(&*self.0.tables, range, direction);
        Ok(Box::new(Merged { direction, sources, deleting, tables, head: None, failed: false }))
    }

    fn record(&self, id: RegionId) -> Option<RegionState> {
        for run in self.0.runs.iter().rev() {
            if let Some(stand) = run.region(id) {
                return stand.as_ref().map(Stand::whole);
            }
        }
        self.0.base.get(&id).map(Stand::whole)
    }
}

/// What is left of one run in a scan.
struct Source {
    run: Arc<Run>,
    rest: std::ops::Range<usize>,
    /// The first of the rest, seen in the scan's direction.
    head: Slot,
    /// Place in the picture's list: higher is newer.
    age: usize,
}

impl Source {
    /// `None` if there is nothing.
    fn new(
        run: &Arc<Run>,
        rest: std::ops::Range<usize>,
        age: usize,
        direction: Direction,
    ) -> Option<Source> {
        let head = head_of(run, &rest, direction)?;
        Some(Source { run: Arc::clone(run), rest, head, age })
    }

    fn key(&self) -> &[u8] {
        self.run.key(&self.head)
    }

    /// Leaves the head behind. `false`: there is nothing else.
    fn advance(&mut self, direction: Direction) -> bool {
        match direction {
            Direction::Forward => self.rest.start += 1,
            Direction::Reverse => self.rest.end -= 1,
        }
        let head = head_of(&self.run, &self.rest, direction);
        self.head = head.unwrap_or(self.head);
        head.is_some()
    }

    /// Which of two sources comes first in the scan.
    fn order(&self, other: &Source, direction: Direction) -> Ordering {
        let ascending = match self.head.prefix.cmp(&other.head.prefix) {
            Ordering::Equal => self.key().cmp(other.key()),
            decided => decided,
        };
        directed(ascending, direction)
    }
}

fn head_of(run: &Run, rest: &std::ops::Range<usize>, direction: Direction) -> Option<Slot> {
    let at = match direction {
        _ if rest.is_empty() => return None,
        Direction::Forward => rest.start,
        Direction::Reverse => rest.end - 1,
    };
    run.slots.get(at).copied()
}

fn directed(ascending: Ordering, direction: Direction) -> Ordering {
    match direction {
        Direction::Forward => ascending,
        Direction::Reverse => ascending.reverse(),
    }
}

/// An ordered walk over runs and tables.
///
/// * `sources` are newest first and none is exhausted, so the first of equal keys is the one that counts.
/// * After an error the walk has ended: no key is skipped silently.
struct Merged {
    direction: Direction,
    sources: Vec<Source>,
    /// Runs with range deletes, oldest first.
    deleting: Vec<(usize, Arc<Run>)>,
    tables: TableScan,
    /// The tables' next item, if it was already taken.
    head: Option<(Bytes, Bytes)>,
    failed: bool,
}

impl Merged {
    /// Whether a run newer than `age` (all runs, for the tables) deletes the range that holds `key`.
    fn deleted(&self, age: Option<usize>, key: &[u8]) -> bool {
        self.deleting
            .iter()
            .any(|(at, run)| age.is_none_or(|age| *at > age) && covers(&run.ranges, key))
    }

    /// The source whose head comes first; of equal heads the newest.
    fn first(&self) -> Option<usize> {
        let mut best = 0;
        for at in 1..self.sources.len() {
            if self.sources[at].order(&self.sources[best], self.direction).is_lt() {
                best = at;
            }
        }
        (!self.sources.is_empty()).then_some(best)
    }

    /// Moves every source past `key`, which is the head of `self.sources[from]` and of none before it.
    fn skip(&mut self, from: usize, key: &[u8]) {
        let (direction, mut place) = (self.direction, 0);
        self.sources.retain_mut(|source| {
            place += 1;
            place <= from || source.key() != key || source.advance(direction)
        });
    }
}

impl Iterator for Merged {
    type Item = Result<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        loop {
            if self.head.is_none() {
                match self.tables.next() {
                    Some(Ok(item)) => self.head = Some(item),
                    Some(Err(error)) => {
                        self.failed = true;
                        return Some(Err(error));
                    }
                    None => {}
                }
            }
            let from_runs = self.first().map(|at| (at, self.sources[at].head));
            let order = match (&from_runs, &self.head) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((at, slot)), Some((key, _))) => {
                    directed(self.sources[*at].run.key(slot).cmp(key), self.direction)
                }
            };
            match from_runs {
                Some((at, slot)) if order.is_le() => {
                    if order.is_eq() {
                        self.head = None;
                    }
                    let (run, age) = (Arc::clone(&self.sources[at].run), self.sources[at].age);
                    let key = run.key(&slot);
                    self.skip(at, key);
                    if let Some(value) = run.value_bytes(&slot)
                        && !self.deleted(Some(age), key)
                    {
                        return Some(Ok((run.key_bytes(&slot), value)));
                    }
                }
                _ => {
                    if let Some((key, value)) = self.head.take()
                        && !self.deleted(None, &key)
                    {
                        return Some(Ok((key, value)));
                    }
                }
            }
        }
    }
}
