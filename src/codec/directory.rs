//! The cluster's own record of its stores, which region 1 keeps and replicates: who they are, where they
//! listen, whether they are to stay.
//!
//! It stands, flat, in the region state of region 1 beside the id counter, and so moves with every snapshot of
//! that region; it is changed by an administrative command of its own ([`StoreChange`]). All numbers are varints
//! but the two that are drawn at random (8 bytes, little-endian); an address is its length and its bytes.
//!
//! | what | bytes |
//! |---|---|
//! | record | layout `1` (one byte), version, wanted replicas, number of stores, then for each: id, incarnation `u64`, starts, life `u64`, state (one byte: `0` up, `1` draining, `2` left), address |
//! | change | kind (one byte): `1` register: id, incarnation `u64`, starts, life `u64`, address, wanted replicas (0: no opinion); `2` drain, `3` resume, `4` leave: id |
//!
//! An empty record is no bytes at all.

use super::{Reader, Writer};
use crate::error::{Error, Result};
use crate::types::{Start, StoreId};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Stores that a cluster remembers, at most; those that have left count.
pub const STORES_MAX: usize = 1 << 12;
/// An address is at most this long, in bytes.
pub const ADDRESS_BYTES_MAX: usize = 1 << 10;

const LAYOUT: u8 = 1;
const REGISTER: u8 = 1;
const DRAIN: u8 = 2;
const RESUME: u8 = 3;
const LEAVE: u8 = 4;

/// Whether a store is to stay.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub enum StoreState {
    /// It holds replicas and may get more.
    #[default]
    Up,
    /// Its replicas are to go elsewhere, and it gets no more. Serves meanwhile.
    Draining,
    /// It has gone for good. Its id is never used again.
    Left,
}

/// One store.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct StoreRecord {
    /// The store.
    pub store: StoreId,
    /// Which data directory it is: one that was wiped and made anew differs in it.
    pub incarnation: u64,
    /// Its latest opening, and mark: an old copy of it counts fewer.
    pub start: Start,
    /// Where it listens, `host:port`; empty if nobody is to dial it.
    pub address: String,
    /// Whether it is to stay.
    pub state: StoreState,
}

/// All stores that the cluster has had.
///
/// * An id belongs to one data directory for ever: another one under it is refused, and so is a copy of that
///   directory from before a start that is on record.
/// * `version` grows with every change, so of two records the one with the larger version is the newer.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Directory {
    /// How often it was changed.
    pub version: u64,
    /// Replicas that a region should have, as the stores that made the cluster were configured; 0: none of them has
    /// registered yet.
    pub replicas: u64,
    /// The stores.
    pub stores: BTreeMap<StoreId, StoreRecord>,
}

/// A change of the record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreChange {
    /// A store that starts says who and where it is.
    Register {
        /// The state given is not looked at.
        record: StoreRecord,
        /// How many replicas it was configured for, if it is one of those that made the cluster; else 0. The first
        /// word counts.
        replicas: u64,
    },
    /// Its replicas are to go elsewhere.
    Drain(StoreId),
    /// It stays after all.
    Resume(StoreId),
    /// It has gone for good; it must have been draining.
    Leave(StoreId),
}

impl Directory {
    /// Those stores that are in this state.
    pub fn in_state(&self, state: StoreState) -> impl Iterator<Item = StoreId> {
        self.stores.values().filter(move |record| record.state == state).map(|record| record.store)
    }

    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        if self.version == 0 && self.stores.is_empty() {
            return Bytes::new();
        }
        let mut bytes = Vec::with_capacity(16 + self.stores.len() * 64);
        let mut out = Writer::new(&mut bytes);
        out.u8(LAYOUT);
        out.varint(self.version);
        out.varint(self.replicas);
        out.varint(self.stores.len() as u64);
        for record in self.stores.values() {
            write_identity(record, &mut out);
            out.u8(match record.state {
                StoreState::Up => 0,
                StoreState::Draining => 1,
                StoreState::Left => 2,
            });
            out.bytes(record.address.as_bytes());
        }
        Bytes::from(bytes)
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub fn decode(bytes: &Bytes) -> Result<Directory> {
        if bytes.is_empty() {
            return Ok(Directory::default());
        }
        let mut from = Reader::new("directory of stores", bytes.clone());
        let layout = from.u8()?;
        if layout != LAYOUT {
            return Err(from.malformed(format_args!("layout {layout}")));
        }
        let (version, replicas) = (from.varint()?, from.varint()?);
        let count = from.count(20, STORES_MAX)?;
        let mut stores = BTreeMap::new();
        for _ in 0..count {
            let mut record = read_identity(&mut from)?;
            record.state = match from.u8()? {
                0 => StoreState::Up,
                1 => StoreState::Draining,
                2 => StoreState::Left,
                other => return Err(from.malformed(format_args!("state {other}"))),
            };
            record.address = from.text(ADDRESS_BYTES_MAX)?;
            stores.insert(record.store, record);
        }
        from.finish()?;
        Ok(Directory { version, replicas, stores })
    }

    /// Makes a change, or refuses it and stays as it is. Deterministic.
    pub fn change(&mut self, change: &StoreChange) -> Result<()> {
        match change {
            StoreChange::Register { record, replicas } => {
                self.register(record)?;
                if self.replicas == 0 {
                    self.replicas = *replicas;
                }
            }
            StoreChange::Drain(store) => {
                let others = self.stores.values().filter(|other| other.store != *store);
                if !others.clone().any(|other| other.state == StoreState::Up) {
                    let why = format!("no store but {store} is up: nobody could take its replicas");
                    return Err(Error::InvalidArgument(why));
                }
                self.present(*store)?.state = StoreState::Draining;
            }
            StoreChange::Resume(store) => self.present(*store)?.state = StoreState::Up,
            StoreChange::Leave(store) => {
                let record = self.present(*store)?;
                if record.state != StoreState::Draining {
                    return Err(Error::InvalidArgument(format!("{store} is not draining")));
                }
                record.state = StoreState::Left;
            }
        }
        self.version += 1;
        Ok(())
    }

    fn present(&mut self, store: StoreId) -> Result<&mut StoreRecord> {
        match self.stores.get_mut(&store) {
            Some(record) if record.state == StoreState::Left => {
                Err(Error::InvalidArgument(format!("{store} has left for good")))
            }
            Some(record) => Ok(record),
            None => Err(Error::InvalidArgument(format!("there is no {store}"))),
        }
    }

    fn register(&mut self, new: &StoreRecord) -> Result<()> {
        let store = new.store;
        if store.0 == 0 || new.address.len() > ADDRESS_BYTES_MAX {
            return Err(Error::InvalidArgument(format!("{store} at {:?}", new.address)));
        }
        let Some(known) = self.stores.get_mut(&store) else {
            if self.stores.len() >= STORES_MAX {
                return Err(Error::InvalidArgument(format!("more than {STORES_MAX} stores")));
            }
            let record = StoreRecord { state: StoreState::Up, ..new.clone() };
            self.stores.insert(store, record);
            return Ok(());
        };
        known.recognise(new.incarnation, new.start)?;
        // Of one run the largest mark counts, in whatever order they come.
        if known.start.life != new.start.life || known.start.number < new.start.number {
            known.start = new.start;
        }
        known.address.clone_from(&new.address);
        Ok(())
    }
}

impl StoreRecord {
    /// Whether a directory that says so is the one on record, at its latest start or a later one. `Err` says in words
    /// why it is kept out.
    pub fn recognise(&self, incarnation: u64, start: Start) -> Result<()> {
        let store = self.store;
        let refuse = |why: String| Err(Error::Identity(why));
        if self.state == StoreState::Left {
            return refuse(format!("{store} has left for good: its id is not used again"));
        }
        if self.incarnation != incarnation {
            return refuse(format!(
                "{store} came with another directory (incarnation {incarnation:x}, on record is {:x}): what it \
                 forgot it may not vote about; let it join as a new store, under a new id",
                self.incarnation
            ));
        }
        let (known, number) = (self.start, start.number);
        if start.life == known.life {
            return Ok(()); // the run that is on record, which may have been marked since it said hello
        }
        if number < known.number {
            return refuse(format!(
                "{store} came with an old copy of its directory (opened {number} times, on record are {}): what \
                 it forgot it may not vote about",
                known.number
            ));
        }
        match number == known.number {
            true => refuse(format!(
                "{store} came with a copy of its directory (opening {number} was another one): what it forgot it \
                 may not vote about"
            )),
            false => Ok(()),
        }
    }
}

fn write_identity(record: &StoreRecord, out: &mut Writer<'_>) {
    out.varint(record.store.0);
    out.u64(record.incarnation);
    out.varint(record.start.number);
    out.u64(record.start.life);
}

fn read_identity(from: &mut Reader) -> Result<StoreRecord> {
    Ok(StoreRecord {
        store: StoreId(from.varint()?),
        incarnation: from.u64()?,
        start: Start { number: from.varint()?, life: from.u64()? },
        ..StoreRecord::default()
    })
}

impl StoreChange {
    /// Appends its bytes.
    pub fn encode(&self, out: &mut Writer<'_>) {
        let (kind, store) = match self {
            StoreChange::Register { record, replicas } => {
                out.u8(REGISTER);
                write_identity(record, out);
                out.bytes(record.address.as_bytes());
                return out.varint(*replicas);
            }
            StoreChange::Drain(store) => (DRAIN, store),
            StoreChange::Resume(store) => (RESUME, store),
            StoreChange::Leave(store) => (LEAVE, store),
        };
        out.u8(kind);
        out.varint(store.0);
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub fn decode(from: &mut Reader) -> Result<StoreChange> {
        Ok(match from.u8()? {
            REGISTER => {
                let mut record = read_identity(from)?;
                record.address = from.text(ADDRESS_BYTES_MAX)?;
                StoreChange::Register { record, replicas: from.varint()? }
            }
            DRAIN => StoreChange::Drain(StoreId(from.varint()?)),
            RESUME => StoreChange::Resume(StoreId(from.varint()?)),
            LEAVE => StoreChange::Leave(StoreId(from.varint()?)),
            other => return Err(from.malformed(format_args!("change of a store {other}"))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(store: u64, incarnation: u64, number: u64) -> StoreRecord {
        let (store, address) = (StoreId(store), format!("host-{store}:1"));
        let start = Start { number, life: number * 7 };
        StoreRecord { store, incarnation, start, address, ..Default::default() }
    }

    fn register(store: u64, incarnation: u64, starts: u64) -> StoreChange {
        StoreChange::Register { record: record(store, incarnation, starts), replicas: 0 }
    }

    fn after(changes: &[StoreChange]) -> Directory {
        let mut directory = Directory::default();
        for change in changes {
            directory.change(change).unwrap();
        }
        directory
    }

    #[test]
    fn records_and_changes_read_back_and_cut_ones_do_not() {
        let changes = [
            register(1, u64::MAX, 1),
            register(300, 5, 9),
            register(2, 5, 9),
            StoreChange::Drain(StoreId(300)),
            StoreChange::Leave(StoreId(300)),
            StoreChange::Drain(StoreId(2)),
        ];
        let directory = after(&changes);
        assert_eq!(directory.version, 6);
        let bytes = directory.encode();
        assert_eq!(Directory::decode(&bytes).unwrap(), directory);
        for cut in 1..bytes.len() {
            assert!(Directory::decode(&bytes.slice(..cut)).is_err(), "{cut}");
        }
        assert_eq!(Directory::decode(&Bytes::new()).unwrap(), Directory::default());
        assert!(Directory::default().encode().is_empty());
        for change in changes.iter().chain([&StoreChange::Resume(StoreId(7))]) {
            let mut out = Vec::new();
            change.encode(&mut Writer::new(&mut out));
            let bytes = Bytes::from(out);
            let mut from = Reader::new("test", bytes.clone());
            assert_eq!(StoreChange::decode(&mut from).unwrap(), *change);
            from.finish().unwrap();
            for cut in 0..bytes.len() {
                assert!(StoreChange::decode(&mut Reader::new("test", bytes.slice(..cut))).is_err());
            }
        }
    }

    #[test]
    fn founders_say_how_many_replicas_there_are() {
        let said =
            |store, replicas| StoreChange::Register { record: record(store, 1, 1), replicas };
        assert_eq!(after(&[said(4, 0)]).replicas, 0);
        let directory = after(&[said(4, 0), said(1, 3), said(2, 5)]);
        assert_eq!(Directory::decode(&directory.encode()).unwrap().replicas, 3);
    }

    #[test]
    fn an_id_belongs_to_one_directory() {
        let mut directory = after(&[register(1, 11, 1), register(2, 22, 1)]);
        let mut refused = |change: StoreChange, why: &str| {
            let before = directory.clone();
            let error = directory.change(&change).unwrap_err();
            assert!(matches!(&error, Error::Identity(text) if text.contains(why)), "{error}");
            assert_eq!(directory, before);
        };
        refused(register(1, 12, 2), "another directory");
        let mut copy = record(1, 11, 1);
        copy.start.life += 1;
        refused(StoreChange::Register { record: copy, replicas: 0 }, "opening 1 was another one");
        directory.change(&register(1, 11, 1)).unwrap();
        directory.change(&register(1, 11, 5)).unwrap();
        let error = directory.change(&register(1, 11, 4)).unwrap_err();
        assert!(error.to_string().contains("old copy"), "{error}");
        directory.change(&StoreChange::Drain(StoreId(1))).unwrap();
        directory.change(&register(1, 11, 6)).unwrap();
        assert_eq!(
            directory.stores[&StoreId(1)].state,
            StoreState::Draining,
            "a restart is no return"
        );
        directory.change(&StoreChange::Leave(StoreId(1))).unwrap();
        let error = directory.change(&register(1, 11, 7)).unwrap_err();
        assert!(error.to_string().contains("left for good"), "{error}");
    }

    #[test]
    fn stores_go_by_draining_and_the_last_one_stays() {
        let mut directory = after(&[register(1, 1, 1), register(2, 2, 1)]);
        let mut no = |change| assert!(directory.change(&change).is_err(), "{change:?}");
        no(StoreChange::Leave(StoreId(1)));
        no(StoreChange::Drain(StoreId(3)));
        directory.change(&StoreChange::Drain(StoreId(1))).unwrap();
        let mut no = |change| assert!(directory.change(&change).is_err(), "{change:?}");
        no(StoreChange::Drain(StoreId(2)));
        directory.change(&StoreChange::Resume(StoreId(1))).unwrap();
        directory.change(&StoreChange::Drain(StoreId(2))).unwrap();
        directory.change(&StoreChange::Leave(StoreId(2))).unwrap();
        let mut no = |change| assert!(directory.change(&change).is_err(), "{change:?}");
        no(StoreChange::Resume(StoreId(2)));
    }
}
