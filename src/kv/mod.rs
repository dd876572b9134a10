//! The state store: user data, region states and applied positions of every region of one store.
//!
//! **It has no write-ahead log: the raft log is the log.** [`StateStore::write`] is atomic and visible
//! at once, but durable only after a flush. A flush persists a *consistent cut* of the whole store
//! (every region at one point of the apply order) together with each region's state in one atomic
//! ingestion, and reports the cut; the log may then discard what the cut covers, never more.
//!
//! Layers, newest first, and who owns them:
//! * [`WriteBatch`] — what one apply pass wants to write; keys and values may point into the raft entry.
//! * memtable (`run`, `layers`, `merge`) — each batch is one immutable sorted run: `slots`, in blocks, that point to
//!   records in the chunks they came in (`slot`). Runs are merged geometrically.
//! * frozen memtable — a cut on its way to disk (at most one), kept until the tables hold it.
//! * [`Tables`] — sorted tables on disk: [`lsm::LsmTables`], or [`mem::MemTables`] for the simulator.
//!
//! Protocol:
//! 1. Open at the last durable cut; [`StateStore::region_states`] gives the flushed applied positions; the
//!    caller replays each region's log from there through the very same [`StateStore::write`].
//! 2. [`StateStore::freeze`] takes the cut: under the publication lock the active memtable becomes the
//!    frozen one. A batch is published as a whole under the same lock, so no cut sees half a batch.
//! 3. [`Flush::run`] does the IO on any thread. If it fails, the frozen memtable stays readable and the next
//!    `freeze` returns it again (the same cut; what was written since is not part of it).
//! 4. [`StateStore::restore`] (raft snapshot) is a flush of its own: the cut as of its start, without the
//!    restored ranges, plus the restored items and region state, in one atomic ingestion. So a crash shows
//!    either the last cut or the new one, no region is cut apart from the others, and nothing in a
//!    memtable can shadow ingested data: what memtables held of the ranges is left out of that ingestion.
//!
//! **Range deletes.** A run keeps the ranges it deletes; they cover older runs and the tables only (points
//! of the same batch that came before are removed when the run is built, later ones survive). At a
//! flush they become point tombstones for the keys that the tables hold in the range. That is exact: under
//! the IO lock nobody else ingests, compaction does not change what a table snapshot shows, so the keys scanned
//! are all the keys older than the run; and the run's own surviving points are written instead of a tombstone.
//!
//! Not done, and why: several trees split by hard links (one shared tree is enough until compaction of a very
//! large store becomes the limit); a restore blocks flushes while it streams (its cut must be the newest when it
//! lands); checkpoints (a backup issue of its own).

mod batch;
mod flush;
mod layers;
pub mod lsm;
pub mod mem;
pub mod memory;
mod merge;
mod run;
mod slot;
mod slots;
mod store;
mod tables;
mod view;

pub use batch::{ChunkId, MAX_KEY_LEN, Mark, Pending, WriteBatch};
pub use memory::MemoryStore;
pub use store::{Options, TableStore};
pub use tables::{Sink, TableDebt, TableScan, Tables, TablesView};

use crate::error::Result;
use crate::types::{KeyRange, LogPosition, PeerId, RegionId, RegionState, StoreIdent};
use bytes::Bytes;

/// Which way a scan walks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub enum Direction {
    /// Ascending keys.
    #[default]
    Forward,
    /// Descending keys.
    Reverse,
}

/// What a scan yields: keys in order, each once.
pub type Scan = Box<dyn Iterator<Item = Result<(Bytes, Bytes)>> + Send>;

/// A durable cut: for every region of the store, the entry up to which its effects are on disk; for a
/// tombstone [`DEAD`](crate::types::DEAD). Sorted by region.
pub type Cut = Vec<(RegionId, PeerId, LogPosition)>;

/// What a store holds and owes; for operators, pacing and tests.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Stats {
    /// Bytes retained by the active memtable.
    pub active_bytes: u64,
    /// Bytes retained by the frozen memtable.
    pub frozen_bytes: u64,
    /// Sorted runs of active and frozen memtable: what a point get may have to search.
    pub runs: usize,
    /// Unmerged ingestions that reads have to look through and compaction owes.
    pub table_runs: usize,
    /// Bytes of all tables.
    pub table_bytes: u64,
    /// Whether a compaction is under way, or will come by itself if nothing else is written.
    pub compaction_pending: bool,
    /// Flushes done since open (restores included).
    pub flushes: u64,
    /// Batches written since open.
    pub batches: u64,
}

/// The state store of one node. Embedders may bring another engine; see the room's head for the contract.
pub trait StateStore: Send + Sync + 'static {
    /// Whose directory this is, as of the last durable state.
    fn ident(&self) -> Result<Option<StoreIdent>>;

    /// Gives an empty store its identity and first regions. Durable on return. Refuses
    /// ([`Error::Identity`](crate::Error::Identity)) when the store has an identity already.
    fn bootstrap(&self, ident: &StoreIdent, regions: Vec<RegionState>) -> Result<()>;

    /// All regions as of now (right after open: as of the last durable cut), sorted by region; no tombstones.
    fn region_states(&self) -> Vec<RegionState>;

    /// What is left of replicas that were destroyed, as [`region_states`](Self::region_states).
    fn tombstones(&self) -> Vec<RegionState>;

    /// Applies a batch: all of it or nothing, visible to views taken later, **not durable** before the next
    /// flush. Several threads may call it; batches of one region must come in apply order.
    fn write(&self, batch: WriteBatch) -> Result<()>;

    /// A consistent, immutable picture of data and region states. Cheap; does not block writers. It keeps
    /// memory and table files alive while it exists.
    fn view(&self) -> Result<Box<dyn View>>;

    /// Takes a cut. `None` when there is nothing to flush or a flush is outstanding already. After a failed
    /// flush the same cut is returned again. Does no IO.
    fn freeze(&self) -> Result<Option<Box<dyn Flush>>>;

    /// Replaces everything in `ranges` by `items` (ascending, distinct, each inside one of the ranges) and sets the states of
    /// regions: of the one that is restored, and of those that it swallows. The ranges come in any order, and may touch,
    /// overlap or be empty; what lies between them stays as it is, for it may be other regions'. Durable and atomic on
    /// return, all of it at once: after a crash either the old or the new state is there. Everything written before is
    /// durable then, too: the cut says what.
    /// The caller makes sure that nobody writes to the regions meanwhile.
    fn restore(
        &self,
        ranges: &[KeyRange],
        items: &mut dyn Iterator<Item = Result<(Bytes, Bytes)>>,
        states: Vec<RegionState>,
    ) -> Result<Cut>;

    /// One bounded step of background work (compaction; merges of memtable runs too large for a writer). `true` if there was any: call again. Blocks its
    /// caller, nobody else.
    fn maintain(&self) -> Result<bool>;

    /// While halted, [`maintain`](Self::maintain) does nothing; where it is under way it ends before long, with its work undone.
    /// A node halts its store when it stops, for the store may be closed then, and lets it go on when it opens.
    fn set_halted(&self, _halted: bool) {}

    /// Whether the active memtable has reached its configured size and can be frozen now.
    fn should_flush(&self) -> bool;

    /// Bytes retained by memtables, active and frozen: the measure for backpressure.
    fn memtable_bytes(&self) -> u64;

    /// Bytes in memtables that are still to be written to tables. Falls while a flush goes on, steadily;
    /// [`memtable_bytes`](Self::memtable_bytes) does at its end.
    fn unflushed_bytes(&self) -> u64 {
        self.memtable_bytes()
    }

    /// How many unmerged ingestions the tables owe: pace writes as it grows (12 is usual, 40 and more is
    /// late), do not stop hard.
    fn debt(&self) -> usize;

    /// What it holds and owes. May take time in proportion to the regions.
    fn stats(&self) -> Stats;

    /// Flushes done since open, as [`stats`](Self::stats) tells it. Asked often.
    fn flushes(&self) -> u64 {
        self.stats().flushes
    }
}

/// A consistent picture of a store. See [`StateStore::view`].
pub trait View: Send + Sync {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>>;
    /// The keys of `range`, in order, either way. The iterator outlives the view.
    fn scan(&self, range: &KeyRange, direction: Direction) -> Result<Scan>;
    /// The state of one region, of the same instant as the data; not its tombstone.
    fn region(&self, id: RegionId) -> Option<RegionState> {
        self.record(id).filter(|state| !state.is_tombstone())
    }
    /// The state of one region, or its tombstone, of the same instant as the data.
    fn record(&self, id: RegionId) -> Option<RegionState>;
}

/// A cut that was taken and is not yet on disk. Dropping it without running it loses nothing: the next
/// [`StateStore::freeze`] returns the same cut.
pub trait Flush: Send {
    /// Writes the cut. Durable on return; blocks for the IO. On error nothing changed, the frozen memtable
    /// is kept and `freeze` offers it again ([`Error::DiskFull`](crate::Error::DiskFull) when that is why).
    fn run(self: Box<Self>) -> Result<Cut>;
}
