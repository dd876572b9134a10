//! The default state store: our memtable over any [`Tables`].

use super::flush::TableFlush;
use super::layers;
use super::merge::Scratch;
use super::run::Run;
use super::tables::{IDENT_KEY, region_key};
use super::tables::{Regions, Sink, Stand, Tables, load_meta};
use super::view::{Picture, StoreView};
use super::{Cut, Flush, StateStore, Stats, View, WriteBatch};
use crate::error::{Error, Result};
use crate::pb;
use crate::types::{DEAD, KeyRange, RegionState, StoreIdent};
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// How a store behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// The active memtable's size, in bytes, from which [`StateStore::should_flush`] says yes.
    pub memtable_bytes: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { memtable_bytes: 64 << 20 }
    }
}

/// The default [`StateStore`]. Clones share one store.
#[derive(Clone)]
pub struct TableStore {
    pub(super) inner: Arc<Inner>,
}

/// What every handle of one store shares.
///
/// * Lock order: `io`, then `merging` or `merging_large`, then `state`. `state` is held for nanoseconds, never over IO.
/// * Only the holder of `io` ingests, and only it installs a table snapshot, so no picture combines the
///   tables of one instant with the memtable of another.
pub(super) struct Inner {
    pub tables: Box<dyn Tables>,
    pub options: Options,
    pub io: Mutex<()>,
    /// Who merges runs for the writers.
    merging: Mutex<Scratch>,
    /// Who merges large ones.
    pub merging_large: Mutex<Scratch>,
    pub state: Mutex<State>,
    /// Whether a [`Flush`] object is out.
    pub outstanding: AtomicBool,
    /// Slots of the frozen run that its flush has written so far.
    pub written: AtomicUsize,
    pub flushes: AtomicU64,
    batches: AtomicU64,
}

/// What is published: the source of every view.
pub(super) struct State {
    pub ident: Option<StoreIdent>,
    /// Oldest first.
    pub active: Vec<Arc<Run>>,
    /// The cut on its way to disk, oldest first; empty if there is none.
    pub frozen: Vec<Arc<Run>>,
    pub active_bytes: usize,
    pub frozen_bytes: usize,
    /// Changes whenever `active` is replaced rather than extended: a merge of what it was is then void.
    pub generation: u64,
    /// How many of the oldest active runs a large merge is working on: writers leave them alone.
    reserved: usize,
    pub tables: Arc<dyn super::TablesView>,
    pub base: Arc<Regions>,
    /// The picture of now, made by the first view after a change.
    picture: Option<Arc<Picture>>,
}

impl State {
    pub fn picture(&mut self) -> Arc<Picture> {
        let State { frozen, active, tables, base, picture, .. } = self;
        Arc::clone(picture.get_or_insert_with(|| {
            Arc::new(Picture {
                runs: frozen.iter().chain(active.iter()).cloned().collect(),
                tables: Arc::clone(tables),
                base: Arc::clone(base),
            })
        }))
    }

    /// To be called after every change.
    pub fn changed(&mut self) {
        self.picture = None;
    }

    /// Moves the active runs behind the frozen ones: takes the cut.
    pub fn cut(&mut self) {
        let active = std::mem::take(&mut self.active);
        self.frozen.extend(active);
        self.frozen_bytes += std::mem::take(&mut self.active_bytes);
        self.generation += 1;
        self.reserved = 0;
        self.changed();
    }

    /// Where these runs lie among the active ones, if all of them are still there, side by side.
    fn place_of(&self, runs: &[Arc<Run>]) -> Option<std::ops::Range<usize>> {
        let first = runs.first()?;
        let at = self.active.iter().position(|run| Arc::ptr_eq(run, first))?;
        let there = self.active.get(at..at + runs.len())?;
        let same = runs.iter().zip(there).all(|(a, b)| Arc::ptr_eq(a, b));
        same.then_some(at..at + runs.len())
    }

    /// Puts a merged run in the place of those it was merged from. A writer that chose its runs before a large
    /// merge reserved some of them may reach into those: the large merge finds them gone then, and
    /// nothing beyond what is left of them stays reserved.
    fn replace(&mut self, place: std::ops::Range<usize>, merged: Arc<Run>) {
        self.reserved = self.reserved.min(place.start);
        self.active.splice(place, [merged]);
        self.active_bytes = layers::bytes(&self.active);
        self.changed();
    }
}

/// More runs than this and a writer waits for the merge that is under way instead of adding to the pile.
const MAX_RUNS: usize = 128;

impl TableStore {
    /// Opens the store at the last durable cut of `tables`.
    pub fn open(tables: Box<dyn Tables>, options: Options) -> Result<TableStore> {
        let snapshot = tables.snapshot()?;
        let (ident, regions) = load_meta(&*snapshot)?;
        let state = State {
            ident,
            active: Vec::new(),
            frozen: Vec::new(),
            active_bytes: 0,
            frozen_bytes: 0,
            generation: 0,
            reserved: 0,
            tables: snapshot,
            base: Arc::new(regions),
            picture: None,
        };
        Ok(TableStore {
            inner: Arc::new(Inner {
                tables,
                options,
                io: Mutex::new(()),
                merging: Mutex::default(),
                merging_large: Mutex::default(),
                state: Mutex::new(state),
                outstanding: AtomicBool::new(false),
                written: AtomicUsize::new(0),
                flushes: AtomicU64::new(0),
                batches: AtomicU64::new(0),
            }),
        })
    }
}

impl Inner {
    pub fn picture(&self) -> Arc<Picture> {
        self.state.lock().picture()
    }

    /// Every region's applied position in the last durable cut.
    pub fn durable_cut(&self) -> Cut {
        let base = Arc::clone(&self.state.lock().base);
        base.values().map(|stand| (stand.region(), stand.peer(), stand.applied)).collect()
    }

    /// Merges what is due at the tail. Readers and writers go on meanwhile: the result replaces the merged runs
    /// under the publication lock.
    fn merge_due(&self, pile: usize) {
        let (guard, limit) = match pile > MAX_RUNS {
            true => (Some(self.merging.lock()), usize::MAX),
            false => (self.merging.try_lock(), layers::WRITER_SLOTS),
        };
        let Some(mut scratch) = guard else { return };
        loop {
            let (runs, generation) = {
                let state = self.state.lock();
                let first = state.reserved;
                let Some(due) = layers::due(&state.active[first..], limit) else { return };
                let due = first + due.start..first + due.end;
                (state.active[due].to_vec(), state.generation)
            };
            let merged = Arc::new(Run::merge(&runs, &mut scratch));
            let mut state = self.state.lock();
            if state.generation != generation {
                return;
            }
            // A large merge that ended meanwhile has moved them, or taken some of them.
            let Some(place) = state.place_of(&runs) else { return };
            state.replace(place, merged);
            drop(state);
            // Freed here, outside the lock, unless a view still holds them.
            drop(runs);
        }
    }

    /// Merges what is due and too large for a writer. `true` if there was something.
    fn merge_large(&self) -> bool {
        let mut scratch = self.merging_large.lock();
        let (runs, generation) = {
            let mut state = self.state.lock();
            if state.reserved != 0 {
                return false;
            }
            // The newest runs belong to whoever merges for the writers: leave them out.
            let settled = state
                .active
                .iter()
                .rposition(|run| run.slots.len() * 16 > layers::WRITER_SLOTS)
                .map_or(0, |last| last + 1);
            let Some(due) = layers::due(&state.active[..settled], usize::MAX) else { return false };
            let runs = state.active[due.clone()].to_vec();
            if runs.iter().map(|run| run.slots.len()).sum::<usize>() <= layers::WRITER_SLOTS {
                return false;
            }
            state.reserved = due.end;
            (runs, state.generation)
        };
        let merged = Arc::new(Run::merge(&runs, &mut scratch));
        let mut state = self.state.lock();
        if state.generation != generation {
            return true;
        }
        state.reserved = 0;
        // A writer that had begun before may have merged one of them: then the work was for nothing.
        if let Some(place) = state.place_of(&runs) {
            state.replace(place, merged);
        }
        drop(state);
        true
    }
}

impl StateStore for TableStore {
    fn ident(&self) -> Result<Option<StoreIdent>> {
        Ok(self.inner.state.lock().ident)
    }

    fn bootstrap(&self, ident: &StoreIdent, regions: Vec<RegionState>) -> Result<()> {
        let inner = &self.inner;
        let _io = inner.io.lock();
        if let Some(there) = inner.state.lock().ident {
            return Err(Error::Identity(format!(
                "the state store belongs to store {} of cluster {} already",
                there.store, there.cluster
            )));
        }
        let regions: Regions =
            regions.into_iter().map(|state| (state.region.id, state.into())).collect();
        inner.tables.ingest(&mut |sink: &mut dyn Sink| {
            sink.put(&IDENT_KEY, &pb::encode_ident(ident))?;
            for (id, stand) in &regions {
                sink.put(&region_key(*id), &stand.encode())?;
            }
            Ok(())
        })?;
        let snapshot = inner.tables.snapshot()?;
        let mut state = inner.state.lock();
        state.ident = Some(*ident);
        state.base = Arc::new(regions);
        state.tables = snapshot;
        state.changed();
        Ok(())
    }

    fn region_states(&self) -> Vec<RegionState> {
        let all = self.inner.picture().regions();
        all.values().filter(|s| s.applied != DEAD).map(Stand::whole).collect()
    }

    fn tombstones(&self) -> Vec<RegionState> {
        let all = self.inner.picture().regions();
        all.values().filter(|s| s.applied == DEAD).map(Stand::whole).collect()
    }

    fn write(&self, batch: WriteBatch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let run = Arc::new(batch.into_run()?);
        let inner = &self.inner;
        inner.batches.fetch_add(1, Ordering::Relaxed);
        let (stale, pile, due) = {
            let mut state = inner.state.lock();
            state.active_bytes += run.bytes;
            state.active.push(run);
            let stale = state.picture.take();
            (
                stale,
                state.active.len(),
                layers::due(&state.active[state.reserved..], layers::WRITER_SLOTS).is_some(),
            )
        };
        // The last holder of an old picture frees a list of runs: not under the lock.
        drop(stale);
        if due || pile > MAX_RUNS {
            inner.merge_due(pile);
        }
        Ok(())
    }

    fn view(&self) -> Result<Box<dyn View>> {
        Ok(Box::new(StoreView(self.inner.picture())))
    }

    fn freeze(&self) -> Result<Option<Box<dyn Flush>>> {
        let inner = &self.inner;
        let mut state = inner.state.lock();
        if state.frozen.is_empty() && state.active.is_empty() {
            return Ok(None);
        }
        if inner.outstanding.swap(true, Ordering::AcqRel) {
            return Ok(None);
        }
        if state.frozen.is_empty() {
            state.cut();
        }
        drop(state);
        Ok(Some(Box::new(TableFlush::new(Arc::clone(inner)))))
    }

    fn restore(
        &self,
        ranges: &[KeyRange],
        items: &mut dyn Iterator<Item = Result<(Bytes, Bytes)>>,
        states: Vec<RegionState>,
    ) -> Result<Cut> {
        self.inner.restore(ranges, items, states)?;
        Ok(self.inner.durable_cut())
    }

    fn maintain(&self) -> Result<bool> {
        let inner = &self.inner;
        if inner.merge_large() {
            return Ok(true);
        }
        let worked = inner.tables.maintain()?;
        // Old snapshots keep compacted files alive; take a new one, unless an ingestion is under way: what it
        // installs must become visible together with the memtable change that belongs to it.
        if worked && let Some(_io) = inner.io.try_lock() {
            let snapshot = inner.tables.snapshot()?;
            let mut state = inner.state.lock();
            let old = std::mem::replace(&mut state.tables, snapshot);
            let stale = state.picture.take();
            drop(state);
            drop((old, stale));
        }
        Ok(worked)
    }

    fn set_halted(&self, halted: bool) {
        self.inner.tables.set_halted(halted);
    }

    fn should_flush(&self) -> bool {
        let state = self.inner.state.lock();
        let full = state.active_bytes as u64 >= self.inner.options.memtable_bytes;
        (full || !state.frozen.is_empty()) && !self.inner.outstanding.load(Ordering::Acquire)
    }

    fn memtable_bytes(&self) -> u64 {
        let state = self.inner.state.lock();
        (state.active_bytes + state.frozen_bytes) as u64
    }

    fn unflushed_bytes(&self) -> u64 {
        let state = self.inner.state.lock();
        let slots: usize = state.frozen.iter().map(|run| run.slots.len()).sum();
        let left = slots.saturating_sub(self.inner.written.load(Ordering::Relaxed));
        let share = left as f64 / slots.max(1) as f64;
        state.active_bytes as u64 + (state.frozen_bytes as f64 * share) as u64
    }

    fn debt(&self) -> usize {
        self.inner.tables.runs()
    }

    fn stats(&self) -> Stats {
        let inner = &self.inner;
        let debt = inner.tables.debt();
        let state = inner.state.lock();
        Stats {
            active_bytes: state.active_bytes as u64,
            frozen_bytes: state.frozen_bytes as u64,
            runs: state.active.len() + state.frozen.len(),
            table_runs: debt.runs,
            table_bytes: debt.bytes,
            compaction_pending: debt.pending,
            flushes: inner.flushes.load(Ordering::Relaxed),
            batches: inner.batches.load(Ordering::Relaxed),
        }
    }

    fn flushes(&self) -> u64 {
        self.inner.flushes.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::mem::SimTablesDisk;
    use super::*;
    use bytes::Bytes;

    /// A writer took runs 2.. for a merge, then a large merge reserved runs 0..5, then the writer's merge
    /// ended: the apply worker of a loaded node panicked here, with 24 runs reserved of 17.
    #[test]
    fn a_merge_that_reaches_into_reserved_runs_leaves_a_sound_list() {
        let tables = Box::new(SimTablesDisk::new().open());
        let store = TableStore::open(tables, Options::default()).unwrap();
        let put = |key: u8| {
            let mut batch = WriteBatch::new();
            batch.put(Bytes::from(vec![key]), Bytes::from("v"));
            store.write(batch).unwrap();
        };
        (0..6).for_each(put);
        let runs = {
            let mut state = store.inner.state.lock();
            let runs = state.active[2..].to_vec();
            state.reserved = 5;
            runs
        };
        let merged = Arc::new(Run::merge(&runs, &mut Scratch::default()));
        {
            let mut state = store.inner.state.lock();
            let place = state.place_of(&runs).unwrap();
            state.replace(place, merged);
            assert!(state.reserved <= state.active.len());
        }
        (6..40).for_each(put);
        let view = store.view().unwrap();
        assert!((0..40u8).all(|key| view.get(&[key]).unwrap().is_some()));
    }
}
