//! Cuts on their way to disk: the flush, and the snapshot restore, which is a flush with a region replaced.

use super::merge::Scratch;
use super::run::{RegionChange, Run, normalise};
use super::store::Inner;
use super::tables::{Sink, TablesView, data_key, region_key, scan_data};
use super::view::lay_over;
use super::{Cut, Direction, Flush};
use crate::error::{Error, Result};
use crate::types::{KeyRange, RegionState};
use bytes::Bytes;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::iter::Peekable;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// The flush of a frozen memtable.
pub(super) struct TableFlush {
    inner: Arc<Inner>,
}

impl TableFlush {
    pub fn new(inner: Arc<Inner>) -> TableFlush {
        TableFlush { inner }
    }
}

impl Drop for TableFlush {
    fn drop(&mut self) {
        self.inner.outstanding.store(false, std::sync::atomic::Ordering::Release);
    }
}

impl Flush for TableFlush {
    fn run(self: Box<Self>) -> Result<Cut> {
        let inner = &self.inner;
        let _io = inner.io.lock();
        // A restore that came in between has flushed the frozen memtable already.
        let frozen = inner.frozen();
        if let Some(frozen) = frozen {
            let tables = Arc::clone(&inner.state.lock().tables);
            inner.ingest(&mut |sink: &mut dyn Sink| {
                write_regions(&frozen.regions, sink)?;
                let everything = 0..frozen.slots.len();
                write_points(&frozen, everything, &frozen.ranges, &*tables, inner, sink)
            })?;
            inner.install(&frozen.regions)?;
        }
        Ok(inner.durable_cut())
    }
}

impl Inner {
    /// Ingests; what of the frozen memtable it has written does not count if it fails.
    fn ingest(&self, fill: &mut dyn FnMut(&mut dyn Sink) -> Result<()>) -> Result<()> {
        let result = self.tables.ingest(fill);
        if result.is_err() {
            self.written.store(0, Relaxed);
        }
        result
    }

    /// The frozen memtable as one run, if there is one. Caller holds `io`.
    fn frozen(&self) -> Option<Arc<Run>> {
        let runs = self.state.lock().frozen.clone();
        let merged = match &runs[..] {
            [] => return None,
            [one] => return Some(Arc::clone(one)),
            _ => Arc::new(self.merge_frozen(&runs)),
        };
        let mut state = self.state.lock();
        state.frozen = vec![Arc::clone(&merged)];
        state.frozen_bytes = merged.bytes;
        state.changed();
        Some(merged)
    }

    fn merge_frozen(&self, runs: &[Arc<Run>]) -> Run {
        match self.merging_large.try_lock() {
            Some(mut scratch) => Run::merge(runs, &mut scratch),
            None => Run::merge(runs, &mut Scratch::default()),
        }
    }

    /// Publishes what was just ingested: tables in, frozen memtable out. Caller holds `io`.
    fn install(&self, changes: &[RegionChange]) -> Result<()> {
        let snapshot = self.tables.snapshot()?;
        let mut regions = (*self.state.lock().base).clone();
        let only_regions = Run { regions: changes.to_vec(), ..Run::default() };
        lay_over(&mut regions, &only_regions);
        self.flushes.fetch_add(1, Relaxed);
        let mut state = self.state.lock();
        self.written.store(0, Relaxed);
        let old = std::mem::take(&mut state.frozen);
        state.frozen_bytes = 0;
        state.tables = snapshot;
        state.base = Arc::new(regions);
        state.changed();
        drop(state);
        drop(old);
        Ok(())
    }

    /// See [`StateStore::restore`](super::StateStore::restore).
    pub fn restore(
        &self,
        ranges: &[KeyRange],
        items: &mut dyn Iterator<Item = Result<(Bytes, Bytes)>>,
        states: Vec<RegionState>,
    ) -> Result<()> {
        let holes = normalise(ranges.to_vec());
        let _io = self.io.lock();
        // Everything written so far becomes part of this cut. If the ingestion fails it stays frozen, with
        // nothing left out, and goes with the next flush.
        self.state.lock().cut();
        let frozen = self.frozen().unwrap_or_default();
        let tables = Arc::clone(&self.state.lock().tables);
        let mut changes: BTreeMap<_, _> = frozen.regions.iter().cloned().collect();
        changes.extend(states.into_iter().map(|s| (s.region.id, Some(s.into()))));
        let changes: Vec<RegionChange> = changes.into_iter().collect();
        let deleted = ranges_around(&frozen.ranges, &holes);
        let mut items = Some(items);
        self.ingest(&mut |sink: &mut dyn Sink| {
            let Some(items) = items.take() else {
                return Err(Error::InvalidArgument("snapshot items can be read only once".into()));
            };
            let mut items = items.peekable();
            write_regions(&changes, sink)?;
            let mut done = 0;
            for (hole, below) in holes.iter().zip(&deleted) {
                let inside = frozen.span(hole);
                write_points(&frozen, done..inside.start, below, &*tables, self, sink)?;
                replace(hole, &mut items, &*tables, sink)?;
                done = inside.end;
            }
            if let Some(left) = items.next() {
                return Err(left.map_or_else(|error| error, |_| misplaced()));
            }
            let above = deleted.last().map_or(&[][..], |above| above);
            write_points(&frozen, done..frozen.slots.len(), above, &*tables, self, sink)
        })?;
        self.install(&changes)
    }
}

fn write_regions(changes: &[RegionChange], sink: &mut dyn Sink) -> Result<()> {
    for (id, stand) in changes {
        match stand {
            Some(stand) => sink.put(&region_key(*id), &stand.encode())?,
            None => sink.delete(&region_key(*id))?,
        }
    }
    Ok(())
}

/// After so many slots a flush tells how far it has come.
const TOLD_EVERY: usize = 1 << 12;

/// Writes some slots of a run, and a tombstone for every key that the tables hold in `deleted` and the
/// run does not write.
fn write_points(
    run: &Run,
    span: std::ops::Range<usize>,
    deleted: &[KeyRange],
    tables: &dyn TablesView,
    inner: &Inner,
    sink: &mut dyn Sink,
) -> Result<()> {
    let mut scratch = Vec::new();
    let mut doomed = doomed_keys(deleted, tables).peekable();
    for (count, slot) in run.slots_ahead(span).enumerate() {
        if count % TOLD_EVERY == TOLD_EVERY - 1 {
            inner.written.fetch_add(TOLD_EVERY, Relaxed);
        }
        let key = run.key(slot);
        delete_up_to(&mut doomed, Some(key), &mut scratch, sink)?;
        data_key(key, &mut scratch);
        match run.value(slot) {
            Some(value) => sink.put(&scratch, value)?,
            None => sink.delete(&scratch)?,
        }
    }
    delete_up_to(&mut doomed, None, &mut scratch, sink)
}

fn misplaced() -> Error {
    Error::malformed("snapshot", "a key is out of order or out of range")
}

/// Writes the items up to the end of `range`, and tombstones for what else the tables hold in it.
fn replace<I: Iterator<Item = Result<(Bytes, Bytes)>>>(
    range: &KeyRange,
    items: &mut Peekable<I>,
    tables: &dyn TablesView,
    sink: &mut dyn Sink,
) -> Result<()> {
    let mut scratch = Vec::new();
    let mut doomed = doomed_keys(std::slice::from_ref(range), tables).peekable();
    let mut last: Option<Bytes> = None;
    let below_end = |item: &Result<(Bytes, Bytes)>| match item {
        Ok((key, _)) => range.end.is_empty() || *key < range.end,
        Err(_) => true,
    };
    while let Some(item) = items.next_if(below_end) {
        let (key, value) = item?;
        if !range.contains(&key) || last.as_ref().is_some_and(|last| *last >= key) {
            return Err(misplaced());
        }
        delete_up_to(&mut doomed, Some(&key), &mut scratch, sink)?;
        data_key(&key, &mut scratch);
        sink.put(&scratch, &value)?;
        last = Some(key);
    }
    delete_up_to(&mut doomed, None, &mut scratch, sink)
}

/// The keys that the tables hold in the ranges (sorted, disjoint), ascending.
fn doomed_keys<'a>(
    ranges: &'a [KeyRange],
    tables: &'a dyn TablesView,
) -> impl Iterator<Item = Result<Bytes>> + 'a {
    ranges
        .iter()
        .flat_map(move |range| scan_data(tables, range, Direction::Forward))
        .map(|item| item.map(|(key, _)| key))
}

/// Writes tombstones for the doomed keys below `next`, and forgets `next` itself: it is written anyway.
fn delete_up_to<I: Iterator<Item = Result<Bytes>>>(
    doomed: &mut Peekable<I>,
    next: Option<&[u8]>,
    scratch: &mut Vec<u8>,
    sink: &mut dyn Sink,
) -> Result<()> {
    let due = |item: &Result<Bytes>| match (item, next) {
        (Ok(key), Some(next)) => &key[..] <= next,
        _ => true,
    };
    while let Some(item) = doomed.next_if(due) {
        let key = item?;
        if next.is_none_or(|next| key[..].cmp(next) == Ordering::Less) {
            data_key(&key, scratch);
            sink.delete(scratch)?;
        }
    }
    Ok(())
}

/// What of the deleted ranges lies below each of the holes, which ascend and lie apart, and last what lies above all.
fn ranges_around(deleted: &[KeyRange], holes: &[KeyRange]) -> Vec<Vec<KeyRange>> {
    // An empty start leaves nothing below; an empty end nothing above (and must not be read as "unbounded").
    let bound = |key: &Bytes| (!key.is_empty()).then(|| key.clone());
    let (first, last) = (Some(Bytes::new()), Some(Bytes::new()));
    let starts = std::iter::once(first).chain(holes.iter().map(|hole| bound(&hole.end)));
    let ends = holes.iter().map(|hole| bound(&hole.start)).chain(std::iter::once(last));
    let gaps = starts.zip(ends).map(|(start, end)| Some(KeyRange { start: start?, end: end? }));
    let inside = |gap: KeyRange| deleted.iter().map(|range| range.intersect(&gap)).collect();
    gaps.map(|gap| gap.map_or_else(Vec::new, |gap| normalise(inside(gap)))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::mem::MemTables;
    use super::super::tables::{TableDebt, Tables};
    use super::super::{Options, StateStore, TableStore, WriteBatch};
    use super::*;
    use parking_lot::Mutex;
    use std::sync::OnceLock;

    /// Tables that note how much the store says is left to flush when all of a flush but its end is done. The first
    /// ingestion fails there.
    #[derive(Default)]
    struct Watched {
        tables: MemTables,
        store: Arc<OnceLock<TableStore>>,
        left: Arc<Mutex<Vec<u64>>>,
    }

    impl Tables for Watched {
        fn ingest(&self, fill: &mut dyn FnMut(&mut dyn Sink) -> Result<()>) -> Result<()> {
            self.tables.ingest(&mut |sink: &mut dyn Sink| {
                fill(sink)?;
                let mut left = self.left.lock();
                left.push(self.store.get().unwrap().unflushed_bytes());
                match left.len() {
                    1 => Err(Error::DiskFull { path: "tables".into() }),
                    _ => Ok(()),
                }
            })
        }

        fn snapshot(&self) -> Result<Arc<dyn TablesView>> {
            self.tables.snapshot()
        }

        fn maintain(&self) -> Result<bool> {
            self.tables.maintain()
        }

        fn debt(&self) -> TableDebt {
            self.tables.debt()
        }
    }

    #[test]
    fn what_is_left_to_flush_falls_while_a_flush_goes_on() {
        let tables = Watched::default();
        let (cell, left) = (Arc::clone(&tables.store), Arc::clone(&tables.left));
        let store =
            cell.get_or_init(|| TableStore::open(Box::new(tables), Options::default()).unwrap());
        let mut batch = WriteBatch::new();
        (0..10_000u32)
            .for_each(|n| batch.put(Bytes::from(n.to_be_bytes().to_vec()), Bytes::from("v")));
        store.write(batch).unwrap();
        let all = store.memtable_bytes();
        assert_eq!(store.unflushed_bytes(), all);
        store.freeze().unwrap().unwrap().run().unwrap_err();
        assert_eq!(store.unflushed_bytes(), all, "what failed has flushed nothing");
        store.freeze().unwrap().unwrap().run().unwrap();
        assert_eq!((store.unflushed_bytes(), store.memtable_bytes()), (0, 0));
        for left in &*left.lock() {
            assert!(
                (all / 6..all / 5).contains(left),
                "8,192 of 10,000 were told: {left} of {all}"
            );
        }
    }
}
