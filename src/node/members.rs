//! What a node remembers of the cluster between its runs: how often its directory was opened, with whom it
//! [founded](super::founding) the cluster, and the stores as they were announced last, so that after a restart it knows whom to dial and whom to keep out before anybody has told it.
//!
//! The file `members` of the data directory, replaced as a whole (written aside, synced, renamed):
//!
//! ```text
//! 0..8   "CTMRMEM2"
//! 8..12  crc32c of all that follows, little-endian
//! 12..20 how often the directory was opened or marked, little-endian
//! 20..28 what was drawn at the last opening that counts, little-endian
//! 28     1 once that opening is known to be on record, else 0
//! 29..   founders: one byte, `0` nothing is known of them, `1` they have not all met, `2` they have: their number, and for
//!        each id and incarnation (u64); numbers are varints
//! ..     the record of the stores, see codec::directory
//! ```
//!
//! A file that begins with "CTMRMEM1" was written before the founders were kept, and lacks what stands between the number and the record.
//!
//! It is as old as the directory it lies in: a copy that is put back later has been opened fewer times than others
//! remember. An opening counts once it is known to be on record; until then the next one takes its place, number and all. So
//! who is kept out does not come nearer by being started over and over. While the node runs and writes, it *marks* the directory every few minutes ([`Members::mark`]): the count
//! grows as if the directory had been opened once more, and the store registers with it. So a copy from the middle of a
//! run is recognised, too, unless it was made since the last mark, or between an opening and its registration. A damaged file is an error: who cannot say how often it was opened cannot say whether it forgot
//! something.

use super::founding::Founders;
use crate::codec::directory::{Directory, StoreRecord};
use crate::codec::{Reader, Writer};
use crate::env::{Disk, OpenMode};
use crate::error::{Error, Result};
use crate::types::{Start, StoreId};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"CTMRMEM2";
/// Without what was drawn at the opening, whether it is on record, and the founders.
const MAGIC_BEFORE: &[u8; 8] = b"CTMRMEM1";
const HEAD: usize = 29;
const HEAD_BEFORE: usize = 20;
/// Larger than any record.
const FILE_BYTES_MAX: usize = 16 << 20;

/// The file, and what it says.
pub(crate) struct Members {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// How this opening presents itself: openings and marks so far, this one included, and what was drawn for it.
    pub start: Start,
    /// Whether it is known to be on record.
    registered: bool,
    /// Who founded the cluster.
    pub(super) founders: Founders,
    /// The stores, as announced last.
    pub directory: Directory,
}

impl Members {
    /// Reads the file, counts this opening, for which `life` was drawn, and writes it, durably. If the last one never came on
    /// record, as far as this directory knows, this is that one again. Call it under the directory's lock.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, life: u64) -> Result<Members> {
        let mut members = Members {
            disk,
            dir: dir.to_owned(),
            start: Start::default(),
            registered: true,
            founders: Founders::default(),
            directory: Directory::default(),
        };
        let path = members.path();
        if members.disk.exists(&path)? {
            let file = members.disk.open(&path, OpenMode::Read)?;
            let bytes = file.read_up_to(0, FILE_BYTES_MAX)?;
            let found = read(&bytes).map_err(|error| {
                let detail = error.to_string();
                Error::Corruption { path, offset: 0, detail }
            })?;
            (members.start, members.registered) = (found.start, found.registered);
            (members.founders, members.directory) = (found.founders, found.directory);
        }
        if std::mem::take(&mut members.registered) {
            members.start = Start { number: members.start.number + 1, life };
            members.write()?;
        }
        Ok(members)
    }

    /// This opening is on record: the next one is another, durably. It is not if it cannot be written.
    pub fn confirm(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.registered, true) {
            true => Ok(()),
            false => self.write().inspect_err(|_| self.registered = false),
        }
    }

    /// Counts one more, durably: copies that were made before are older than this. The old count stays if it cannot be
    /// written.
    pub fn mark(&mut self) -> Result<u64> {
        self.start.number += 1;
        self.write().inspect_err(|_| self.start.number -= 1)?;
        Ok(self.start.number)
    }

    fn path(&self) -> PathBuf {
        self.dir.join("members")
    }

    /// Keeps a newer record, durably. The old one stays if it cannot be written.
    pub fn keep(&mut self, directory: &Directory) -> Result<()> {
        if directory.version <= self.directory.version {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.directory, directory.clone());
        self.write().inspect_err(|_| self.directory = before)
    }

    /// Keeps how far founding has come, durably. What was there stays if it cannot be written.
    pub(super) fn founding(&mut self, founders: Founders) -> Result<()> {
        let before = std::mem::replace(&mut self.founders, founders);
        self.write().inspect_err(|_| self.founders = before)
    }

    fn write(&self) -> Result<()> {
        let mut rest = self.start.number.to_le_bytes().to_vec();
        rest.extend_from_slice(&self.start.life.to_le_bytes());
        rest.push(u8::from(self.registered));
        self.founders.encode(&mut Writer::new(&mut rest));
        rest.extend_from_slice(&self.directory.encode());
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&crc32c::crc32c(&rest).to_le_bytes());
        bytes.extend_from_slice(&rest);
        let aside = self.dir.join("members.new");
        if self.disk.exists(&aside)? {
            self.disk.remove(&aside)?;
        }
        let file = self.disk.open(&aside, OpenMode::CreateNew)?;
        file.write_at(0, &bytes)?;
        file.sync_data()?;
        drop(file);
        self.disk.rename(&aside, &self.path())?;
        self.disk.sync_dir(&self.dir)
    }
}

/// What a file says.
#[derive(Debug, PartialEq)]
struct Said {
    start: Start,
    registered: bool,
    founders: Founders,
    directory: Directory,
}

fn read(bytes: &[u8]) -> Result<Said> {
    let bad = |detail: &str| Err(Error::malformed("members", detail));
    let Some(head) = bytes.get(..HEAD_BEFORE) else { return bad("cut short") };
    let before = match &head[..8] {
        magic if magic == MAGIC => false,
        magic if magic == MAGIC_BEFORE => true,
        _ => return bad("it is something else"),
    };
    let number = |at: std::ops::Range<usize>| {
        bytes[at].iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte))
    };
    if number(8..12) != u64::from(crc32c::crc32c(&bytes[12..])) {
        return bad("its checksum does not match");
    }
    if before {
        let directory = Directory::decode(&Bytes::copy_from_slice(&bytes[HEAD_BEFORE..]))?;
        let start = Start { number: number(12..20), life: 0 };
        return Ok(Said { start, registered: true, founders: Founders::default(), directory });
    }
    let Some((head, rest)) = bytes.split_at_checked(HEAD) else { return bad("cut short") };
    let mut from = Reader::new("members", Bytes::copy_from_slice(rest));
    let founders = Founders::decode(&mut from)?;
    Ok(Said {
        start: Start { number: number(12..20), life: number(20..28) },
        registered: head[28] != 0,
        founders,
        directory: Directory::decode(&from.rest())?,
    })
}

/// Who may talk to this node: stores are known by the incarnation on record, and one that is not on record yet by the
/// one that it founded the cluster with, or first came with; each by its latest start, as the record or its own greeting says.
#[derive(Default)]
pub(crate) struct Roster {
    inner: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    directory: Directory,
    /// The founders, by incarnation, if they have all met.
    founders: BTreeMap<StoreId, u64>,
    /// The incarnation that each store came with, and its latest start, in this node's life.
    met: BTreeMap<StoreId, (u64, Start)>,
}

impl Roster {
    /// The record is this now.
    pub fn learn(&self, directory: &Directory) {
        let mut seen = self.inner.lock();
        if directory.version > seen.directory.version {
            seen.directory = directory.clone();
        }
    }

    /// The cluster was founded by these.
    pub fn founded_by(&self, founders: &BTreeMap<StoreId, u64>) {
        self.inner.lock().founders.clone_from(founders);
    }

    /// A store has come with this incarnation, at this start. An error says why it is kept out.
    pub fn greet(&self, store: StoreId, incarnation: u64, start: Start) -> Result<()> {
        let mut seen = self.inner.lock();
        let Seen { directory, founders, met } = &mut *seen;
        let record = directory.stores.get(&store);
        if let Some(record) = record {
            record.recognise(incarnation, start)?;
        } else if let Some(known) = founders.get(&store) {
            let founder = StoreRecord { store, incarnation: *known, start, ..Default::default() };
            founder.recognise(incarnation, start)?;
        }
        let first = met.entry(store).or_insert((incarnation, start));
        if record.is_some() && first.0 != incarnation {
            // The record decides who it is, not who came first.
            *first = (incarnation, start);
        }
        let known =
            StoreRecord { store, incarnation: first.0, start: first.1, ..StoreRecord::default() };
        known.recognise(incarnation, start)?;
        first.1 = start;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::directory::StoreChange;
    use crate::env::mem::MemDisk;

    fn stores(changes: &[StoreChange]) -> Directory {
        let mut directory = Directory::default();
        changes.iter().for_each(|change| directory.change(change).unwrap());
        directory
    }

    fn at(number: u64) -> Start {
        Start { number, life: number + 70 }
    }

    fn register(store: u64, incarnation: u64) -> StoreChange {
        let address = format!("host-{store}:1");
        let store = StoreId(store);
        let start = at(5);
        let record = StoreRecord { store, incarnation, address, start, ..Default::default() };
        StoreChange::Register { record, replicas: 3 }
    }

    #[test]
    fn openings_are_counted_and_the_newest_record_is_kept() {
        let disk: Arc<dyn Disk> = Arc::new(MemDisk::default());
        let dir = Path::new("data");
        disk.create_dir_all(dir).unwrap();
        let mut members = Members::open(Arc::clone(&disk), dir, 31).unwrap();
        assert_eq!((members.start, members.directory.version), (Start { number: 1, life: 31 }, 0));
        members.confirm().unwrap();
        let newer = stores(&[register(1, 7), register(2, 8)]);
        members.keep(&newer).unwrap();
        members.keep(&stores(&[register(1, 9)])).unwrap();
        let mut members = Members::open(Arc::clone(&disk), dir, 32).unwrap();
        let start = Start { number: 2, life: 32 };
        assert_eq!((members.start, &members.directory), (start, &newer));
        let founders = Founders::Met(BTreeMap::from([(StoreId(1), 7), (StoreId(2), 8)]));
        members.founding(founders.clone()).unwrap();
        let members = Members::open(Arc::clone(&disk), dir, 33).unwrap();
        assert_eq!((members.start, &members.directory), (start, &newer), "it never came on record");
        assert_eq!(members.founders, founders);
        // Any flipped bit is found.
        let path = dir.join("members");
        let file = disk.open(&path, OpenMode::ReadWrite).unwrap();
        let bytes = file.read_up_to(0, FILE_BYTES_MAX).unwrap();
        for at in 0..bytes.len() {
            let mut rotten = bytes.clone();
            rotten[at] ^= 4;
            assert!(read(&rotten).is_err(), "{at}");
            assert!(read(&bytes[..at]).is_err(), "{at}");
        }
        file.write_at(0, b"?").unwrap();
        assert!(matches!(Members::open(disk, dir, 33), Err(Error::Corruption { .. })));
    }

    #[test]
    fn a_file_from_before_the_founders_were_kept_is_read() {
        let directory = stores(&[register(1, 7)]);
        let mut rest = 9u64.to_le_bytes().to_vec();
        rest.extend_from_slice(&directory.encode());
        let mut bytes = MAGIC_BEFORE.to_vec();
        bytes.extend_from_slice(&crc32c::crc32c(&rest).to_le_bytes());
        bytes.extend_from_slice(&rest);
        let start = Start { number: 9, life: 0 };
        let founders = Founders::Unknown;
        assert_eq!(read(&bytes).unwrap(), Said { start, registered: true, founders, directory });
    }

    #[test]
    fn a_founder_is_known_before_it_is_on_record() {
        let roster = Roster::default();
        roster.founded_by(&BTreeMap::from([(StoreId(1), 7), (StoreId(2), 8)]));
        assert!(roster.greet(StoreId(2), 9, at(1)).is_err(), "wiped before anybody registered");
        roster.greet(StoreId(2), 8, at(1)).unwrap();
        roster.greet(StoreId(3), 9, at(1)).unwrap();
    }

    /// A node runs for weeks and is never restarted; a copy of its directory that was made in between is put back. It has
    /// been opened as often as the others remember, were it not for the marks.
    #[test]
    fn a_copy_from_before_the_last_mark_is_recognised() {
        let disk: Arc<dyn Disk> = Arc::new(MemDisk::default());
        let dir = Path::new("data");
        disk.create_dir_all(dir).unwrap();
        let mut members = Members::open(Arc::clone(&disk), dir, 99).unwrap();
        let opened = members.start;
        members.confirm().unwrap();
        let record = StoreRecord { store: StoreId(1), start: opened, ..StoreRecord::default() };
        let register = |start| {
            let record = StoreRecord { start, ..record.clone() };
            StoreChange::Register { record, replicas: 3 }
        };
        let mut directory = stores(&[register(opened)]);
        let copied = members.start.number;
        let marked = Start { number: members.mark().unwrap(), ..opened };
        directory.change(&register(marked)).unwrap();
        // What was said earlier and comes later takes nothing back.
        directory.change(&register(opened)).unwrap();
        assert_eq!(directory.stores[&StoreId(1)].start, marked);

        let roster = Roster::default();
        roster.learn(&directory);
        let greets = |start| roster.greet(StoreId(1), 0, start);
        assert!(greets(Start { number: copied + 1, life: 5 }).is_err(), "the copy");
        greets(opened).unwrap(); // its connection may be older than the mark
        let again = Members::open(disk, dir, 6).unwrap().start;
        greets(again).unwrap();
        assert!(greets(opened).is_err(), "that one has ended");
    }

    /// Regions seed 79 of the simulator: an old copy was put back and kept out, but counted its openings all the same; started
    /// over and over, it had been opened more often than the record said, was let in, and took part in elections as what
    /// it had been.
    #[test]
    fn an_old_copy_that_is_started_over_and_over_stays_an_old_copy() {
        let disk: Arc<dyn Disk> = Arc::new(MemDisk::default());
        let dir = Path::new("data");
        disk.create_dir_all(dir).unwrap();
        let roster = Roster::default();
        let mut directory = Directory::default();
        // This directory is a copy of one that went on: another opening of that one is on record.
        let mut members = Members::open(Arc::clone(&disk), dir, 1).unwrap();
        members.confirm().unwrap();
        let start = Start { number: members.start.number + 1, life: 2 };
        let record = StoreRecord { store: StoreId(1), start, ..StoreRecord::default() };
        directory.change(&StoreChange::Register { record, replicas: 3 }).unwrap();
        roster.learn(&directory);
        for life in 3..10 {
            let copy = Members::open(Arc::clone(&disk), dir, life).unwrap().start;
            assert!(roster.greet(StoreId(1), 0, copy).is_err(), "opening {life}");
            let record = StoreRecord { store: StoreId(1), start: copy, ..StoreRecord::default() };
            let register = StoreChange::Register { record, replicas: 3 };
            assert!(directory.clone().change(&register).is_err());
        }
    }

    /// A node registers and falls before it is told. It is known by what it registered with.
    #[test]
    fn an_opening_that_came_on_record_unnoticed_is_taken_up_by_the_next() {
        let disk: Arc<dyn Disk> = Arc::new(MemDisk::default());
        let dir = Path::new("data");
        disk.create_dir_all(dir).unwrap();
        let mut directory = Directory::default();
        let mut register = |start| {
            let record = StoreRecord { store: StoreId(1), start, ..StoreRecord::default() };
            directory.change(&StoreChange::Register { record, replicas: 3 })
        };
        for life in 1..5 {
            let mut members = Members::open(Arc::clone(&disk), dir, life).unwrap();
            register(members.start).unwrap();
            let again = Members::open(Arc::clone(&disk), dir, life + 50).unwrap();
            assert_eq!(again.start, members.start);
            register(again.start).unwrap();
            members.confirm().unwrap();
        }
    }

    #[test]
    fn who_is_on_record_is_known_before_he_comes() {
        let roster = Roster::default();
        roster.greet(StoreId(3), 30, at(2)).unwrap();
        assert!(roster.greet(StoreId(3), 31, at(2)).is_err(), "it came first with 30");
        assert!(roster.greet(StoreId(3), 30, at(1)).is_err(), "it was opened twice already");
        roster.greet(StoreId(3), 30, at(2)).unwrap();
        let mut directory = stores(&[register(1, 10), register(2, 20), register(3, 31)]);
        roster.learn(&directory);
        roster.greet(StoreId(1), 10, at(5)).unwrap();
        assert!(roster.greet(StoreId(1), 10, at(4)).is_err(), "an old copy");
        assert!(roster.greet(StoreId(1), 11, at(9)).is_err());
        assert!(roster.greet(StoreId(2), 20, at(4)).is_err(), "an old copy, by the record alone");
        let other = Start { life: 1, ..at(5) };
        assert!(roster.greet(StoreId(2), 20, other).is_err(), "a copy, opened as often");
        roster.greet(StoreId(3), 31, at(5)).unwrap();
        directory.change(&StoreChange::Drain(StoreId(2))).unwrap();
        directory.change(&StoreChange::Leave(StoreId(2))).unwrap();
        roster.learn(&directory);
        assert!(roster.greet(StoreId(2), 20, at(9)).is_err(), "it has left");
    }
}
