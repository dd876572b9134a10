//! Sectors that cannot be read (EIO, as real rot shows itself) harm those whose bytes they held, and nobody else; and
//! nothing is written down of it before it is certain: a disk that reads again has lost nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod log_disk;

use catamaran::log::inspect::{OpView, RecordView, verify};
use catamaran::log::{Entry, Log, LogBatch, Options, Recovery};
use catamaran::types::LogPosition;
use catamaran::{Error, Result};
use log_disk::MemDisk;
use log_disk::faults::{FaultDisk, SECTOR};
use log_disk::sectors::{records, touched};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const DIR: &str = "/log";

fn options() -> Options {
    Options { segment_bytes: 64 << 10, cache_bytes: 0, rewrite_percent: 90, ..Options::default() }
}

fn open(disk: &FaultDisk, options: Options) -> Result<(Log, Recovery)> {
    Log::open(Arc::new(disk.clone()), Path::new(DIR), options)
}

fn entry(index: u64, len: usize, group: u64) -> Entry {
    let mut data = vec![index as u8; len];
    let mark = format!("{group}/{index:06}");
    data[..mark.len()].copy_from_slice(mark.as_bytes());
    Entry { index, term: 1, kind: 0, data: data.into() }
}

/// Where these bytes are.
fn find(disk: &MemDisk, wanted: &[u8]) -> (PathBuf, u64) {
    let state = disk.state();
    let found = state.image.names.iter().find_map(|(path, inode)| {
        let file = &state.image.files[inode];
        let at = file.windows(wanted.len()).position(|window| window == wanted)?;
        Some((path.clone(), at as u64))
    });
    found.expect("the bytes are somewhere")
}

/// The sector that holds the byte at `at` cannot be read.
fn spoil(disk: &FaultDisk, path: &Path, at: u64) -> u64 {
    let sector = at / SECTOR * SECTOR;
    disk.plan().bad.entry(path.to_owned()).or_default().insert(sector);
    sector
}

/// A group of large entries and two of small ones, side by side.
fn fill(log: &Log) {
    for index in 1..=200 {
        let mut batch = LogBatch::new();
        batch.append(1, [entry(index, 3000, 1)]);
        batch.append(2, [entry(index, 2000, 2)]);
        batch.append(3, [entry(index, 600, 3)]);
        log.write(batch).unwrap();
    }
    log.barrier().unwrap();
    // Nothing of it is read from the cache.
    for group in 1..=3 {
        log.trim_cache(group, 200);
        log.rest(group);
    }
}

fn all(log: &Log, group: u64) -> Result<usize> {
    Ok(log.entries(group, log.first_index(group), log.last_index(group) + 1, u64::MAX)?.len())
}

fn write(log: &Log, group: u64) {
    let mut batch = LogBatch::new();
    batch.append(group, [entry(log.last_index(group) + 1, 20, group)]);
    log.write(batch).unwrap();
}

/// Footers, writes, purge and the other groups' readers go on; purge stops at the segment, not before it.
#[test]
fn a_bad_sector_stops_nobody_else() {
    for (reopen, sealed) in [(true, false), (true, true), (false, true), (false, false)] {
        let mem = MemDisk::default();
        let disk = FaultDisk::over(Arc::new(mem.clone()));
        let (mut log, _) = open(&disk, options()).unwrap();
        fill(&log);
        while sealed && log.prepare().unwrap() {}
        if reopen {
            drop(log);
            log = open(&disk, options()).unwrap().0;
        }
        let (path, at) = find(&mem, &entry(100, 2000, 2).data);
        let sector = spoil(&disk, &path, at + 1000);

        for _ in 0..40 {
            log.prepare().unwrap();
        }
        write(&log, 9);
        let before = log.stats().segments;
        let mut batch = LogBatch::new();
        batch.compact_to(1, LogPosition { index: 200, term: 1 });
        log.write(batch).unwrap();
        let mut blocked = false;
        let mut gone = 0;
        for _ in 0..40 {
            let purged = log.purge().unwrap();
            blocked |= purged.blocked;
            gone += purged.segments;
        }
        assert!(blocked, "reopen {reopen}, sealed {sealed}");
        assert!(gone > 2, "what lies before it goes: {gone} of {before}");
        assert!(mem.state().image.names.contains_key(&path), "evidence stays");
        write(&log, 9);

        assert_eq!((all(&log, 3).unwrap(), all(&log, 9).unwrap()), (200, 2));
        let (named, offset, detail) = match all(&log, 2) {
            Err(Error::Corruption { path, offset, detail }) => (path, offset, detail),
            other => panic!("reopen {reopen}, sealed {sealed}: {other:?}"),
        };
        assert_eq!(named, path);
        assert!((sector..sector + SECTOR).contains(&offset), "{offset}: {detail}");
        assert!(detail.contains("cannot be read"), "{detail}");

        // It was not for good, and nobody has written it down.
        disk.plan().bad.clear();
        assert_eq!(all(&log, 2).unwrap(), 200);
        log.barrier().unwrap();
        drop(log);
        let (log, recovery) = open(&disk, options()).unwrap();
        assert!(recovery.quarantined.is_empty(), "{recovery:?}");
        assert_eq!((all(&log, 2).unwrap(), all(&log, 3).unwrap()), (200, 200));
    }
}

#[test]
fn a_bad_sector_at_opening() {
    for sealed in [true, false] {
        let mem = MemDisk::default();
        let disk = FaultDisk::over(Arc::new(mem.clone()));
        let (log, _) = open(&disk, options()).unwrap();
        fill(&log);
        while sealed && log.prepare().unwrap() {}
        drop(log);
        let (path, at) = find(&mem, &entry(20, 2000, 2).data);
        let sector = spoil(&disk, &path, at + 1000);

        let (log, recovery) = open(&disk, options()).unwrap();
        assert_eq!((all(&log, 1).unwrap(), all(&log, 3).unwrap()), (200, 200));
        if sealed {
            // Nobody has read it yet.
            assert!(recovery.quarantined.is_empty(), "{recovery:?}");
            assert!(matches!(all(&log, 2), Err(Error::Corruption { .. })));
        } else {
            let [fenced] = &recovery.quarantined[..] else { panic!("{recovery:?}") };
            assert_eq!((fenced.group, fenced.last_good, &fenced.damage.file), (2, 19, &path));
            assert!((sector..sector + SECTOR).contains(&fenced.damage.offset), "{fenced:?}");
            assert!(fenced.damage.detail.contains("cannot be read"), "{fenced:?}");
            let term = log.term(2, 1);
            assert!(matches!(term, Err(Error::Quarantined { .. })), "{term:?}");
        }
        for _ in 0..40 {
            log.prepare().unwrap();
            log.purge().unwrap();
        }
        write(&log, 3);
        drop(log);
        let report = verify(&disk, Path::new(DIR)).unwrap();
        assert!(report.findings.iter().any(|found| found.file == path && found.offset == sector));

        disk.plan().bad.clear();
        let (log, recovery) = open(&disk, options()).unwrap();
        assert!(recovery.quarantined.is_empty(), "{recovery:?}");
        let counts = [1, 2, 3].map(|group| all(&log, group).unwrap());
        assert_eq!(counts, [200, 200, 201]);
    }
}

/// What the last groups before an end without a barrier hold may have been acknowledged, and nothing states it. Bytes
/// that do not match are a torn tail; bytes that cannot be read are cut by nobody.
#[test]
fn what_cannot_be_read_is_not_cut() {
    let mem = MemDisk::default();
    let disk = FaultDisk::over(Arc::new(mem.clone()));
    let (log, _) = open(&disk, options()).unwrap();
    (0..3).for_each(|_| write(&log, 1));
    let mut batch = LogBatch::new();
    batch.append(1, [entry(4, 3000, 1)]);
    log.write(batch).unwrap();
    drop(log);
    let last = records(&mem, Path::new(DIR)).pop().unwrap();
    let next_block = (last.offset + last.len).next_multiple_of(4096);
    for at in [last.offset, last.offset + last.len - 1, next_block] {
        let before = mem.state().image.clone();
        let sector = spoil(&disk, &last.path, at);
        let error = open(&disk, options()).unwrap_err();
        let Error::Corruption { path, offset, detail } = error else { panic!("{error:?}") };
        assert_eq!((path, offset), (last.path.clone(), sector), "{detail}");
        let after = &mem.state().image.names;
        assert_eq!(*after, before.names, "an open that refuses changes nothing");
        disk.plan().bad.clear();
    }
    // Far behind the place where the next group would begin nothing was acknowledged.
    let sector = spoil(&disk, &last.path, next_block + 8192);
    let (log, recovery) = open(&disk, options()).unwrap();
    assert_eq!(all(&log, 1).unwrap(), 4);
    let [note] = &recovery.harmless[..] else { panic!("{recovery:?}") };
    assert_eq!((&note.file, note.offset), (&last.path, sector));
}

/// One sector, whichever it is, of a log with and without footers.
#[test]
fn one_bad_sector_anywhere() {
    let small = Options { segment_bytes: 16 << 10, ..options() };
    for sealed in [false, true] {
        let mem = MemDisk::default();
        let (log, _) = open(&FaultDisk::over(Arc::new(mem.clone())), small.clone()).unwrap();
        for index in 1..=30 {
            let mut batch = LogBatch::new();
            (1..=4).for_each(|group| batch.append(group, [entry(index, 500, group)]));
            batch.set_state(5 + index % 3, vec![index as u8; 100]);
            log.write(batch).unwrap();
            write(&log, 4 + index * 10);
        }
        log.barrier().unwrap();
        while sealed && log.prepare().unwrap() {}
        drop(log);
        let image = mem.state().image.clone();
        let sound = records(&mem, Path::new(DIR));
        let last = sound.last().unwrap();
        let full = |log: &Log| {
            log.groups()
                .into_iter()
                .map(|id| (id, all(log, id).unwrap()))
                .collect::<BTreeMap<_, _>>()
        };
        let expected = {
            let disk = FaultDisk::over(Arc::new(MemDisk::of(image.clone())));
            full(&open(&disk, small.clone()).unwrap().0)
        };
        let (mut opened, mut refused, mut fenced) = (0, 0, 0);
        for (path, inode) in &image.names {
            for sector in (0..image.files[inode].len() as u64).step_by(SECTOR as usize) {
                let mem = MemDisk::of(image.clone());
                let disk = FaultDisk::over(Arc::new(mem.clone()));
                spoil(&disk, path, sector);
                let bad = BTreeMap::from([(path.clone(), BTreeSet::from([sector]))]);
                let hit = touched(&mem, Path::new(DIR), &bad);
                match open(&disk, small.clone()) {
                    Err(Error::Corruption { path: named, offset, .. }) => {
                        let end = (last.offset + last.len).next_multiple_of(4096) + SECTOR;
                        let unstated = last.offset..end;
                        assert_eq!((&named, &named), (path, &last.path), "at {sector}");
                        assert!(offset == sector && sector + SECTOR > unstated.start);
                        assert!(sector < unstated.end, "{path:?} at {sector}: refused");
                        refused += 1;
                    }
                    Err(error) => panic!("{path:?} at {sector}: {error}"),
                    Ok((log, recovery)) => {
                        opened += 1;
                        for harmed in &recovery.quarantined {
                            assert!(
                                hit.contains(&harmed.group),
                                "{path:?} at {sector}: {harmed:?}"
                            );
                            assert_eq!(&harmed.damage.file, path);
                            fenced += 1;
                        }
                        for _ in 0..6 {
                            log.prepare().unwrap();
                            log.purge().unwrap();
                        }
                        for (group, count) in &expected {
                            match all(&log, *group) {
                                Ok(found) if !hit.contains(group) => assert_eq!(found, *count),
                                // A group that is fenced off shows no entry.
                                Ok(_) => {}
                                Err(_) => assert!(hit.contains(group), "{path:?} at {sector}"),
                            }
                        }
                        write(&log, 1000);
                    }
                }
                disk.plan().bad.clear();
                let (log, recovery) = open(&disk, small.clone()).unwrap();
                assert!(recovery.quarantined.is_empty(), "{path:?} at {sector}: {recovery:?}");
                let mut found = full(&log);
                found.remove(&1000);
                assert_eq!(found, expected, "{path:?} at {sector}: the disk reads again");
            }
        }
        println!("sealed {sealed}: {opened} opened, {refused} refused, {fenced} groups fenced off");
        assert!(opened > 100 && refused > 0 && (sealed || fenced > 0));
    }
}

/// The floor is in a directory that cannot be read: what purge took looks missing. The log refuses to open, and tells
/// what it is that does not read, not what may never have been lost. Rotten bytes do the same.
#[test]
fn a_floor_that_cannot_be_read_is_named() {
    let mem = MemDisk::default();
    let disk = FaultDisk::over(Arc::new(mem.clone()));
    let (log, _) = open(&disk, options()).unwrap();
    fill(&log);
    let mut batch = LogBatch::new();
    (1..=3).for_each(|id| batch.compact_to(id, LogPosition { index: 199, term: 1 }));
    log.write(batch).unwrap();
    let gone: u64 = (0..4).map(|_| log.purge().unwrap().segments).sum();
    assert!(gone > 2);
    for stated in [false, true] {
        if stated {
            // Something that reads says of the floor's record that it was acknowledged.
            log.barrier().unwrap();
        }
        let image = mem.state().image.clone();
        let is_floor = |op: &OpView| matches!(op, OpView::Floor { .. });
        let floors: Vec<_> = records(&mem, Path::new(DIR))
            .into_iter()
            .filter(|record| record.ops.iter().any(is_floor))
            .collect();
        assert!(!floors.is_empty());
        // All of them: an older one says less, and not enough.
        for rotten in [false, true] {
            let mem = MemDisk::of(image.clone());
            let disk = FaultDisk::over(Arc::new(mem.clone()));
            for record in &floors {
                let at = record.offset + 48;
                if rotten {
                    let inode = image.names[&record.path];
                    let mut state = mem.state();
                    let file = state.image.files.get_mut(&inode).unwrap();
                    Arc::make_mut(file)[at as usize] ^= 1;
                } else {
                    spoil(&disk, &record.path, at);
                }
            }
            let what = format!("stated {stated}, rotten {rotten}");
            let error = open(&disk, options()).unwrap_err();
            let Error::Corruption { path, offset, detail } = error else { panic!("{error}") };
            let within = |record: &&RecordView| {
                let span = record.offset / SECTOR * SECTOR..record.offset + record.len;
                record.path == path && span.contains(&offset)
            };
            assert!(
                floors.iter().any(|record| within(&record)),
                "{what}: {detail}, {path:?} {offset}"
            );
            assert!(detail.contains("were purged"), "{what}: {detail}");
            println!("{what}: {path:?} at {offset}: {detail}");
            // The disk reads again: nothing was lost.
            if !rotten {
                disk.plan().bad.clear();
                let (log, recovery) = open(&disk, options()).unwrap();
                assert!(recovery.quarantined.is_empty(), "{recovery:?}");
                assert_eq!([1, 2, 3].map(|id| all(&log, id).unwrap()), [1; 3]);
            }
        }
    }
}

/// Both copies of a segment's header, or a spare: the one refuses and says where, the other goes.
#[test]
fn a_header_that_cannot_be_read() {
    let mem = MemDisk::default();
    let disk = FaultDisk::over(Arc::new(mem.clone()));
    let (log, _) = open(&disk, options()).unwrap();
    fill(&log);
    drop(log);
    let image = mem.state().image.clone();
    let segment = image.names.keys().find(|path| path.extension().unwrap() == "seg").unwrap();
    let spare = image.names.keys().find(|path| path.extension().unwrap() == "free").unwrap();
    for at in [0, 2048] {
        spoil(&disk, segment, at);
    }
    let error = open(&disk, options()).unwrap_err();
    assert!(matches!(&error, Error::Corruption { path, .. } if path == segment), "{error}");
    assert_eq!(mem.state().image.names, image.names);
    disk.plan().bad.clear();
    (0..8).for_each(|sector| _ = spoil(&disk, spare, sector * SECTOR));
    let (log, recovery) = open(&disk, options()).unwrap();
    assert!(recovery.quarantined.is_empty(), "{recovery:?}");
    assert_eq!(all(&log, 1).unwrap(), 200);
}

/// No memory, or no device: nobody's bytes are damaged, nothing is given up, and writers go on.
#[test]
fn an_error_that_is_not_of_the_place_stays_one() {
    const EIO: i32 = 5;
    const ENOMEM: i32 = 12;
    const EACCES: i32 = 13;
    for code in [EIO, ENOMEM, EACCES] {
        let mem = MemDisk::default();
        let disk = FaultDisk::over(Arc::new(mem.clone()));
        let (log, _) = open(&disk, options()).unwrap();
        fill(&log);
        drop(log);
        disk.plan().reads_fail = Some(code);
        let refused = open(&disk, options()).unwrap_err();
        assert!(matches!(refused, Error::Io { .. }), "{code}: {refused}");
        disk.plan().reads_fail = None;
        let (log, _) = open(&disk, options()).unwrap();

        disk.plan().reads_fail = Some(code);
        let read = all(&log, 2).unwrap_err();
        assert!(matches!(read, Error::Io { .. }), "{code}: {read}");
        let prepared = (0..4).try_for_each(|_| log.prepare().map(drop)).unwrap_err();
        assert!(matches!(prepared, Error::Io { .. }), "{code}: {prepared}");
        write(&log, 9);
        let mut batch = LogBatch::new();
        batch.compact_to(1, LogPosition { index: 200, term: 1 });
        log.write(batch).unwrap();
        let purged = log.purge().unwrap_err();
        assert!(matches!(purged, Error::Io { .. }), "{code}: {purged}");

        disk.plan().reads_fail = None;
        while log.prepare().unwrap() {}
        let gone: u64 = (0..40).map(|_| log.purge().unwrap().segments).sum();
        assert!(gone > 2, "{code}: nothing was pinned: {gone}");
        assert_eq!((all(&log, 2).unwrap(), all(&log, 9).unwrap()), (200, 1));
    }
}
