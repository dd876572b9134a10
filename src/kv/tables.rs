//! The seam to the on-disk part: an ordered map of bytes that takes whole sorted runs atomically.
//!
//! Keys are opaque here. The store above puts user data and its own records into one key space by a
//! leading zone byte, so one ingestion holds data *and* cut.

use super::Direction;
use crate::error::{Error, Result};
use crate::pb;
use crate::types::{KeyRange, LogPosition, PeerId, RegionId, RegionState, StoreIdent};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where an ingestion goes. Keys must come in strictly ascending order.
pub trait Sink {
    /// Sets `key`.
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()>;
    /// Removes `key`.
    fn delete(&mut self, key: &[u8]) -> Result<()>;
}

/// Sorted tables.
pub trait Tables: Send + Sync + 'static {
    /// Lets `fill` write a sorted run and installs it: atomic, durable on return. If `fill` or the IO fails
    /// nothing of it is there, now and after a crash. One caller at a time.
    fn ingest(&self, fill: &mut dyn FnMut(&mut dyn Sink) -> Result<()>) -> Result<()>;
    /// The tables as of now; stays as it is whatever comes later.
    fn snapshot(&self) -> Result<Arc<dyn TablesView>>;
    /// One bounded step of compaction; `true` if it did something. May run beside `ingest`. Never changes what
    /// a snapshot shows.
    fn maintain(&self) -> Result<bool>;
    /// While halted, [`maintain`](Self::maintain) does nothing; where it is under way it ends before long, with nothing done.
    fn set_halted(&self, _halted: bool) {}
    /// What is owed. May wait for a job that ends.
    fn debt(&self) -> TableDebt;
    /// [`TableDebt::runs`]; waits for nobody.
    fn runs(&self) -> usize {
        self.debt().runs
    }
}

/// How much compaction is owed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TableDebt {
    /// Ingestions not yet merged into the sorted levels.
    pub runs: usize,
    /// Bytes of all tables.
    pub bytes: u64,
    /// Whether a compaction is under way, or will come by itself if nothing else is ingested.
    pub pending: bool,
}

/// An ordered stream out of tables.
pub type TableScan = Box<dyn Iterator<Item = Result<(Bytes, Bytes)>> + Send>;

/// Tables at one instant.
pub trait TablesView: Send + Sync {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>>;
    /// The keys of `range` (never with an unbounded end) in order.
    fn scan(&self, range: &KeyRange, direction: Direction) -> TableScan;
}

/// Zone of the store's own records: `[0, 'i']` the identity, `[0, 'r', region id big-endian]` a region state.
const ZONE_META: u8 = 0;
/// Zone of user data: `[1, key..]`.
const ZONE_DATA: u8 = 1;

pub(super) const IDENT_KEY: [u8; 2] = [ZONE_META, b'i'];

pub(super) fn region_key(id: RegionId) -> [u8; 10] {
    let mut key = [ZONE_META, b'r', 0, 0, 0, 0, 0, 0, 0, 0];
    key[2..].copy_from_slice(&id.0.to_be_bytes());
    key
}

/// Makes `out` the table key of a user key.
pub(super) fn data_key(key: &[u8], out: &mut Vec<u8>) {
    out.clear();
    out.push(ZONE_DATA);
    out.extend_from_slice(key);
}

fn data_range(range: &KeyRange) -> KeyRange {
    let bound = |key: &[u8]| {
        let mut out = Vec::with_capacity(key.len() + 1);
        data_key(key, &mut out);
        out
    };
    let end = if range.end.is_empty() { vec![ZONE_DATA + 1] } else { bound(&range.end) };
    KeyRange::new(bound(&range.start), end)
}

/// User data of `range` in the tables, under its user keys.
pub(super) fn scan_data(
    tables: &dyn TablesView,
    range: &KeyRange,
    direction: Direction,
) -> TableScan {
    if range.is_empty() {
        return Box::new(std::iter::empty());
    }
    Box::new(
        tables
            .scan(&data_range(range), direction)
            .map(|item| item.map(|(key, value)| (key.slice(1..), value))),
    )
}

/// A region's state. How far it is applied changes with every batch, all else seldom.
#[derive(Clone, Debug)]
pub(super) struct Stand {
    /// All else of the state, shared by all stands since it changed.
    state: Arc<RegionState>,
    pub applied: LogPosition,
}

impl Stand {
    pub fn new(state: Arc<RegionState>, applied: LogPosition) -> Stand {
        Stand { state, applied }
    }

    /// The state, as it is.
    pub fn whole(&self) -> RegionState {
        RegionState { applied: self.applied, ..(*self.state).clone() }
    }

    /// As it is written down.
    pub fn encode(&self) -> Bytes {
        pb::encode_region_state(&self.state, self.applied)
    }

    pub fn region(&self) -> RegionId {
        self.state.region.id
    }

    pub fn peer(&self) -> PeerId {
        self.state.peer
    }
}

impl From<RegionState> for Stand {
    fn from(state: RegionState) -> Stand {
        let applied = state.applied;
        Stand { state: Arc::new(state), applied }
    }
}

/// The region states of one cut. Shared by pointer, so taking a new one costs a pointer and a position per region.
pub(super) type Regions = BTreeMap<RegionId, Stand>;

/// What the last durable cut says beside the data.
pub(super) fn load_meta(tables: &dyn TablesView) -> Result<(Option<StoreIdent>, Regions)> {
    let ident = tables.get(&IDENT_KEY)?.map(|bytes| pb::decode_ident(&bytes)).transpose()?;
    let range = KeyRange::new(vec![ZONE_META, b'r'], vec![ZONE_META, b'r' + 1]);
    let mut regions = Regions::new();
    for item in tables.scan(&range, Direction::Forward) {
        let state = pb::decode_region_state(&item?.1)?;
        regions.insert(state.region.id, state.into());
    }
    Ok((ident, regions))
}

/// Refuses keys that do not ascend: a sink's first duty.
pub(super) fn ascending(last: Option<&[u8]>, key: &[u8]) -> Result<()> {
    match last {
        Some(last) if last >= key => {
            Err(Error::InvalidArgument("keys of an ingestion must ascend".into()))
        }
        _ => Ok(()),
    }
}
