//! Who a data directory is: set up once, recognised ever after, refused when half of it was wiped.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use bytes::Bytes;
use catamaran::env::{Disk, OpenMode};
use catamaran::error::{Error, Result};
use catamaran::kv::mem::{MemTables, SimTablesDisk};
use catamaran::kv::{Options, StateStore, TableStore};
use catamaran::log::{self, Log};
use catamaran::region::snapshot::{SnapshotFile, SnapshotReader, SnapshotWriter};
use catamaran::sim::disk::{Mercy, SimDisk};
use catamaran::store::{Recovery, bootstrap_regions, prepare};
use catamaran::types::*;
use std::path::Path;
use std::sync::Arc;

const DIR: &str = "/log";

fn tables(disk: &SimTablesDisk) -> Box<MemTables> {
    Box::new(disk.open())
}

fn open(disk: &SimDisk, state: &SimTablesDisk, store: u64) -> Result<(Recovery, usize)> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let options = log::Options { segment_bytes: 16 << 12, spare_segments: 1, ..Default::default() };
    let (log, found) = Log::open(disk, Path::new(DIR), options)?;
    let kv = TableStore::open(tables(state), Options::default())?;
    let stores = [StoreId(1), StoreId(2), StoreId(3)];
    let layout = bootstrap_regions(&stores, 4, 3)?;
    let recovery = prepare(&log, &found, &kv, 7, StoreId(store), &layout, 99)?;
    Ok((recovery, kv.region_states().len()))
}

#[test]
fn a_directory_is_set_up_once_and_recognised() {
    let (disk, state) = (SimDisk::new(1), SimTablesDisk::new());
    let (first, regions) = open(&disk, &state, 2).unwrap();
    assert!(first.created);
    assert_eq!(regions, 4);
    disk.crash(Mercy::None);
    let (second, regions) = open(&disk, &state, 2).unwrap();
    assert!(!second.created);
    assert_eq!((second.ident, regions), (first.ident, 4));
}

#[test]
fn half_a_directory_is_refused() {
    let (disk, state) = (SimDisk::new(1), SimTablesDisk::new());
    open(&disk, &state, 2).unwrap();
    disk.crash(Mercy::None);
    let wiped_log = open(&SimDisk::new(2), &state, 2);
    assert!(
        matches!(&wiped_log, Err(Error::Identity(why)) if why.contains("vote")),
        "{wiped_log:?}"
    );
    let other_store = open(&disk, &state, 3);
    assert!(matches!(other_store, Err(Error::Identity(_))), "{other_store:?}");
}

/// Regions seed 442, once logs were damaged there: of a rotten identity the log says that its group is damaged, and what it holds all
/// the same was parsed, so the store could not be opened for a "malformed" identity, or might have had another one.
#[test]
fn an_identity_that_rotted_in_the_log_is_told_as_damage() {
    let (disk, state) = (SimDisk::new(1), SimTablesDisk::new());
    let (first, _) = open(&disk, &state, 2).unwrap();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let options = log::Options { segment_bytes: 16 << 12, spare_segments: 1, ..Default::default() };
    let (log, _) = Log::open(shared.clone(), Path::new(DIR), options).unwrap();
    // Later records state that the first one is durable.
    for _ in 0..2 {
        let mut batch = log::LogBatch::new();
        batch.set_state(5, Bytes::from_static(b"later"));
        log.wait(log.submit(batch).unwrap()).unwrap();
    }
    drop(log);
    let path = Path::new(DIR).join(&disk.list(Path::new(DIR)).unwrap()[0]);
    let file = disk.open(&path, OpenMode::Read).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(0, &mut bytes).unwrap();
    let mut told = 0;
    for at in (0..bytes.len()).filter(|at| bytes[*at] != 0) {
        let rotten = disk.fork();
        rotten.crash(Mercy::All);
        rotten.rot(&path, at as u64, 0x10).unwrap();
        match open(&rotten, &state.fork(), 2) {
            Ok((found, _)) => assert_eq!(found.ident, first.ident, "byte {at}"),
            Err(Error::Corruption { detail, .. }) if detail.contains("identity") => told += 1,
            Err(Error::Corruption { .. } | Error::Identity(_)) => {}
            Err(other) => panic!("byte {at}: {other:?}"),
        }
    }
    assert!(told > 0, "the identity's own bytes");
}

#[test]
fn a_crash_while_setting_up_leaves_a_directory_that_can_be_set_up() {
    let whole = SimDisk::new(5);
    open(&whole, &SimTablesDisk::new(), 1).unwrap();
    let changes = whole.counts().changes();
    for at in 1..=changes {
        let (disk, state) = (SimDisk::new(at), SimTablesDisk::new());
        disk.alter_faults(|faults| faults.power_off_after = Some(at));
        let cut = open(&disk, &state, 1);
        disk.alter_faults(|faults| faults.power_off_after = None);
        disk.crash(Mercy::Drawn);
        let again = open(&disk, &state, 1);
        assert!(again.is_ok(), "crash at change {at} of {changes}: {cut:?}, then {again:?}");
    }
}

fn snapshot(disk: &Arc<dyn Disk>, name: &str) -> (SnapshotFile, Vec<(Bytes, Bytes)>) {
    let mut writer = SnapshotWriter::create(disk, Path::new("/s").join(name)).unwrap();
    let mut items = Vec::new();
    for chunk in 0..3u8 {
        let mut bytes = Vec::new();
        for item in 0..4u8 {
            let (key, value) = (vec![chunk, item], vec![item; 5]);
            bytes.extend_from_slice(&2u32.to_le_bytes());
            bytes.extend_from_slice(&5u32.to_le_bytes());
            bytes.extend_from_slice(&key);
            bytes.extend_from_slice(&value);
            items.push((Bytes::from(key), Bytes::from(value)));
        }
        writer.chunk(&bytes).unwrap();
    }
    (writer.finish().unwrap(), items)
}

#[test]
fn a_received_snapshot_reads_back_and_every_flipped_byte_is_found() {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
    disk.create_dir_all(Path::new("/s")).unwrap();
    let (file, items) = snapshot(&disk, "a");
    let read =
        |file: &SnapshotFile| -> Result<Vec<_>> { SnapshotReader::open(&disk, file)?.collect() };
    assert_eq!(read(&file).unwrap(), items);
    let raw = disk.open(&file.path, OpenMode::ReadWrite).unwrap();
    for at in 0..raw.len().unwrap() {
        let mut byte = [0];
        raw.read_at(at, &mut byte).unwrap();
        raw.write_at(at, &[byte[0] ^ 0x40]).unwrap();
        assert!(read(&file).is_err(), "byte {at}");
        raw.write_at(at, &byte).unwrap();
    }
    raw.set_len(raw.len().unwrap() - 1).unwrap();
    assert!(read(&file).is_err(), "cut short");
}
