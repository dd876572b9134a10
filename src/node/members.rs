//! What a node remembers of the cluster between its runs: how often its directory was opened, with whom it
//! [founded](super::founding) the cluster, and the stores as they were announced last, so that after a restart it knows whom to dial and whom to keep out before anybody has told it.
//!
//! The file `members` of the data directory, replaced as a whole (written aside, synced, renamed):
//!
//! ```text
//! 0..8   "CTMRMEM2"
//! 8..12  crc32c of all that follows, little-endian
//! 12..20 how often the directory was opened or marked, little-endian
//! 20..   founders: one byte, `0` nothing is known of them, `1` they have not all met, `2` they have: their number, and for
//!        each id and incarnation (u64); numbers are varints
//! ..     the record of the stores, see codec::directory
//! ```
//!
//! A file that begins with "CTMRMEM1" was written before the founders were kept, and lacks them.
//!
//! It is as old as the directory it lies in: a copy that is put back later has been opened fewer times than others
//! remember. While the node runs and writes, it *marks* the directory every few minutes ([`Members::mark`]): the count
//! grows as if the directory had been opened once more, and the store registers with it. So a copy from the middle of a
//! run is recognised, too, unless it was made since the last mark. A damaged file is an error: who cannot say how often it was opened cannot say whether it forgot
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
/// Without the founders.
const MAGIC_BEFORE: &[u8; 8] = b"CTMRMEM1";
const HEAD: usize = 20;
/// Larger than any record.
const FILE_BYTES_MAX: usize = 16 << 20;

/// The file, and what it says.
pub(super) struct Members {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// Openings and marks of the directory, this opening included.
    pub starts: u64,
    /// Who founded the cluster.
    pub founders: Founders,
    /// The stores, as announced last.
    pub directory: Directory,
}

impl Members {
    /// Reads the file, counts this opening and writes it, durably. Call it under the directory's lock.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Members> {
        let (founders, directory) = (Founders::default(), Directory::default());
        let mut members = Members { disk, dir: dir.to_owned(), starts: 0, founders, directory };
        let path = members.path();
        if members.disk.exists(&path)? {
            let file = members.disk.open(&path, OpenMode::Read)?;
            let bytes = file.read_up_to(0, FILE_BYTES_MAX)?;
            (members.starts, members.founders, members.directory) =
                read(&bytes).map_err(|error| {
                    let detail = error.to_string();
                    Error::Corruption { path, offset: 0, detail }
                })?;
        }
        members.starts += 1;
        members.write()?;
        Ok(members)
    }

    /// Counts one more, durably: copies that were made before are older than this. The old count stays if it cannot be
    /// written.
    pub fn mark(&mut self) -> Result<u64> {
        self.starts += 1;
        self.write().inspect_err(|_| self.starts -= 1)?;
        Ok(self.starts)
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
    pub fn founding(&mut self, founders: Founders) -> Result<()> {
        let before = std::mem::replace(&mut self.founders, founders);
        self.write().inspect_err(|_| self.founders = before)
    }

    fn write(&self) -> Result<()> {
        let mut rest = self.starts.to_le_bytes().to_vec();
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

fn read(bytes: &[u8]) -> Result<(u64, Founders, Directory)> {
    let bad = |detail: &str| Err(Error::malformed("members", detail));
    let Some((head, stores)) = bytes.split_at_checked(HEAD) else { return bad("cut short") };
    let knows_founders = match &head[..8] {
        magic if magic == MAGIC => true,
        magic if magic == MAGIC_BEFORE => false,
        _ => return bad("it is something else"),
    };
    let number = |at: std::ops::Range<usize>| {
        head[at].iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte))
    };
    if number(8..12) != u64::from(crc32c::crc32c(&bytes[12..])) {
        return bad("its checksum does not match");
    }
    let mut from = Reader::new("members", Bytes::copy_from_slice(stores));
    let founders = match knows_founders {
        true => Founders::decode(&mut from)?,
        false => Founders::default(),
    };
    Ok((number(12..20), founders, Directory::decode(&from.rest())?))
}

/// Who may talk to this node: stores are known by the incarnation on record, and one that is not on record yet by the
/// one that it founded the cluster with, or first came with; each by its latest start, as the record or its own greeting says.
#[derive(Default)]
pub(super) struct Roster {
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
        let mut members = Members::open(Arc::clone(&disk), dir).unwrap();
        assert_eq!((members.starts, members.directory.version), (1, 0));
        let newer = stores(&[register(1, 7), register(2, 8)]);
        members.keep(&newer).unwrap();
        members.keep(&stores(&[register(1, 9)])).unwrap();
        let members = Members::open(Arc::clone(&disk), dir).unwrap();
        assert_eq!((members.starts, &members.directory), (2, &newer));
        let founders = Founders::Met(BTreeMap::from([(StoreId(1), 7), (StoreId(2), 8)]));
        let mut members = members;
        members.founding(founders.clone()).unwrap();
        let members = Members::open(Arc::clone(&disk), dir).unwrap();
        assert_eq!((members.starts, &members.directory), (3, &newer));
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
        assert!(matches!(Members::open(disk, dir), Err(Error::Corruption { .. })));
    }

    #[test]
    fn a_file_from_before_the_founders_were_kept_is_read() {
        let directory = stores(&[register(1, 7)]);
        let mut rest = 9u64.to_le_bytes().to_vec();
        rest.extend_from_slice(&directory.encode());
        let mut bytes = MAGIC_BEFORE.to_vec();
        bytes.extend_from_slice(&crc32c::crc32c(&rest).to_le_bytes());
        bytes.extend_from_slice(&rest);
        assert_eq!(read(&bytes).unwrap(), (9, Founders::Unknown, directory));
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
        let mut members = Members::open(Arc::clone(&disk), dir).unwrap();
        let opened = Start { number: members.starts, life: 99 };
        let record = StoreRecord { store: StoreId(1), start: opened, ..StoreRecord::default() };
        let register = |start| {
            let record = StoreRecord { start, ..record.clone() };
            StoreChange::Register { record, replicas: 3 }
        };
        let mut directory = stores(&[register(opened)]);
        let copied = members.starts;
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
        let again = Start { number: Members::open(disk, dir).unwrap().starts, life: 6 };
        greets(again).unwrap();
        assert!(greets(opened).is_err(), "that one has ended");
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
