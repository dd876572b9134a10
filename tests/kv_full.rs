//! Real tables without room: an ingestion that fails leaves no file behind, so whatever is freed while it is tried
//! again adds up.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "bad_disk/mount.rs"]
mod mount;

use bytes::Bytes;
use catamaran::Error;
use catamaran::kv::lsm::{LsmOptions, LsmTables};
use catamaran::kv::{Direction, Options, Sink, StateStore, TableStore, Tables, WriteBatch};
use catamaran::types::KeyRange;
use mount::Mount;
use std::path::{Path, PathBuf};

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir.join("tree/tables")).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn ingest(tables: &LsmTables, value: &[u8]) {
    tables
        .ingest(&mut |sink: &mut dyn Sink| {
            (0..100u32).try_for_each(|i| sink.put(&i.to_be_bytes(), value))
        })
        .unwrap();
}

#[test]
fn a_failed_ingestion_leaves_no_file_and_snapshots_keep_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let tables = LsmTables::open(dir.path(), LsmOptions { l0_runs: 2, ..LsmOptions::default() });
    let tables = tables.unwrap();
    ingest(&tables, b"old");
    ingest(&tables, b"older");
    // One snapshot and one scan keep what compaction replaces.
    let snapshot = tables.snapshot().unwrap();
    let everything = KeyRange::new("", "\u{7f}");
    let scan = tables.snapshot().unwrap().scan(&everything, Direction::Forward);
    ingest(&tables, b"new");
    while tables.maintain().unwrap() {}
    let fails = |sink: &mut dyn Sink| {
        (0..1000u32).try_for_each(|i| sink.put(&i.to_be_bytes(), &[7; 1000]))?;
        Err(Error::InvalidArgument("the source is gone".into()))
    };
    // The first sweep takes what compaction left and nobody holds, too.
    assert!(tables.ingest(&mut { fails }).is_err());
    let before = files(dir.path());
    assert!(before.len() >= 3, "what is current, and what two snapshots hold: {before:?}");
    for _ in 0..3 {
        assert!(matches!(tables.ingest(&mut { fails }), Err(Error::InvalidArgument(_))));
        assert_eq!(files(dir.path()), before);
    }
    assert_eq!(snapshot.get(&1u32.to_be_bytes()).unwrap().unwrap(), "older");
    drop(snapshot);
    assert!(tables.ingest(&mut { fails }).is_err());
    let read: Vec<_> = scan.map(|item| item.unwrap().1).collect();
    assert_eq!(read, vec![Bytes::from("older"); 100]);
    assert!(tables.ingest(&mut { fails }).is_err());
    let view = tables.snapshot().unwrap();
    assert_eq!(view.get(&1u32.to_be_bytes()).unwrap().unwrap(), "new");
    assert_eq!(files(dir.path()).len(), 1, "only what the version names");
    drop((view, tables));
    let tables = LsmTables::open(dir.path(), LsmOptions::default()).unwrap();
    let view = tables.snapshot().unwrap();
    assert_eq!(view.get(&99u32.to_be_bytes()).unwrap().unwrap(), "new");
}

/// Room comes back in slices smaller than one flush, and each slice is followed by a try.
#[test]
fn room_freed_in_slices_adds_up() {
    let place = tempfile::tempdir().unwrap();
    let Some(mount) = Mount::new(place.path().join("small"), "16m") else {
        return;
    };
    let dir = mount.0.join("kv");
    let tables = LsmTables::open(&dir, LsmOptions::default()).unwrap();
    let store = TableStore::open(Box::new(tables), Options::default()).unwrap();
    let value = |i: u32| -> Bytes {
        // Not to be compressed.
        let mut x = u64::from(i) + 1;
        let mut next = || {
            x = x.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (x >> 33) as u8
        };
        (0..64 << 10).map(|_| next()).collect()
    };
    let mut batch = WriteBatch::new();
    for i in 0..100 {
        batch.put(Bytes::copy_from_slice(&u32::to_be_bytes(i)), value(i));
    }
    store.write(batch).unwrap();
    let slice = vec![0; 512 << 10];
    let ballast: Vec<PathBuf> = (0..64).map(|i| mount.0.join(format!("ballast {i}"))).collect();
    let full = ballast.iter().position(|path| std::fs::write(path, &slice).is_err());
    let full = full.expect("16 MiB take no 32");
    let before = files(&dir);
    let flush = || store.freeze().unwrap().unwrap().run();
    let mut tries = 0;
    let freed = ballast[..=full].iter().position(|path| {
        let flushed = flush();
        tries += 1;
        if let Err(error) = &flushed {
            assert!(matches!(error, Error::DiskFull { .. }), "{error}");
            assert_eq!(files(&dir), before, "after try {tries}");
            std::fs::remove_file(path).unwrap();
        }
        flushed.is_ok()
    });
    let freed = freed.expect("all of the ballast is gone and it still does not fit");
    assert!(freed > 5, "{freed} slices: not smaller than a flush");
    let view = store.view().unwrap();
    for i in 0..100 {
        assert_eq!(view.get(&u32::to_be_bytes(i)).unwrap(), Some(value(i)));
    }
}
