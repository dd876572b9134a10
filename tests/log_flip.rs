//! One flipped byte anywhere: reported with file and offset, or harmless; never lost silently and
//! never served.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so when it fails")]

mod log_disk;

use catamaran::Error;
use catamaran::log::inspect::{self, FindingKind};
use catamaran::log::{Entry, Log, LogBatch, Options};
use catamaran::types::LogPosition;
use log_disk::{Image, MemDisk};
use std::path::Path;
use std::sync::Arc;

const DIR: &str = "/log";

fn options() -> Options {
    Options { segment_bytes: 32 << 10, cache_bytes: 0, spare_segments: 1, ..Options::default() }
}

fn open(disk: &MemDisk) -> catamaran::Result<(Log, catamaran::log::Recovery)> {
    Log::open(Arc::new(disk.clone()), Path::new(DIR), options())
}

fn entry(index: u64, group: u64) -> Entry {
    let data = format!("group {group} entry {index} ").repeat(4);
    Entry { index, term: 1 + index / 10, kind: 1, data: data.into() }
}

/// Whether full segments have got their footers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Footers {
    No,
    Yes,
}

/// Four groups over a few segments, two a record, acknowledged and stated.
fn build(footers: Footers) -> (MemDisk, Log) {
    let disk = MemDisk::default();
    let (log, _) = open(&disk).unwrap();
    for index in 1..=24 {
        for pair in [[1, 2], [3, 4]] {
            let mut batch = LogBatch::new();
            for group in pair {
                batch.append(group, [entry(index, group)]);
                batch.set_state(group, format!("state {index} of {group}"));
            }
            if index == 12 && pair[1] == 4 {
                batch.compact_to(4, LogPosition { index: 11, term: 2 });
            }
            log.write(batch).unwrap();
        }
    }
    log.barrier().unwrap();
    while footers == Footers::Yes && log.prepare().unwrap() {}
    (disk, log)
}

/// Whether the log, opened over this image, holds everything. How many groups are fenced off, and how
/// many say what is damaged when they are read (a footer stands for records that nobody has read yet).
fn check(log: &Log, damaged: &Path) -> Result<(usize, usize), String> {
    let (mut fenced, mut unreadable) = (0, 0);
    for group in 1..=4u64 {
        if log.damage(group).is_some() {
            assert!(matches!(log.term(group, 20), Err(Error::Quarantined { .. })));
            assert!(matches!(log.entries(group, 20, 21, 1), Err(Error::Quarantined { .. })));
            let mut batch = LogBatch::new();
            batch.append(group, [entry(25, group)]);
            assert!(matches!(log.submit(batch), Err(Error::Quarantined { .. })));
            fenced += 1;
            continue;
        }
        let first = if group == 4 { 12 } else { 1 };
        if log.first_index(group) != first || log.last_index(group) != 24 {
            return Err(format!("group {group} lost entries: {}", log.last_index(group)));
        }
        let wanted: Vec<Entry> = (first..=24).map(|index| entry(index, group)).collect();
        match log.entries(group, first, 25, u64::MAX) {
            Ok(entries) if entries == wanted => {}
            Ok(_) => return Err(format!("group {group} has wrong entries")),
            Err(Error::Corruption { path, .. }) if path == damaged => unreadable += 1,
            Err(other) => return Err(format!("group {group}: {other}")),
        }
        let state = format!("state 24 of {group}");
        if log.state(group).as_deref() != Some(state.as_bytes()) {
            return Err(format!("group {group} has a wrong state"));
        }
    }
    Ok((fenced, unreadable))
}

#[test]
fn one_flipped_byte() {
    flip_bytes(Footers::No);
}

#[test]
fn one_flipped_byte_beside_footers() {
    flip_bytes(Footers::Yes);
}

fn flip_bytes(footers: Footers) {
    let (disk, log) = build(footers);
    drop(log);
    let image: Image = disk.state().image.clone();
    let (mut rot, mut torn, mut quiet, mut refused, mut fenced) = (0, 0, 0, 0, 0);
    let (mut pairs, mut unreadable, mut read) = (0, 0, 0);
    for (path, inode) in image.names.iter().filter(|(p, _)| p.to_string_lossy().contains(".seg")) {
        let len = image.files[inode].len();
        // Every byte of a header, of the first records and of a trailer, a sample of the rest; or every
        // byte there is.
        let all = std::env::var_os("LOG_FLIP_ALL").is_some();
        let step = if all { 1 } else { 211 };
        let first = path.ends_with("0000000000000001.seg");
        let dense = |at: usize| first && (at < 64 || (4096..5300).contains(&at) || at + 64 > len);
        let positions = (0..len).filter(|at| dense(*at) || at % step == 0);
        for at in positions {
            let mut bent = image.clone();
            if let Some(file) = bent.files.get_mut(inode) {
                Arc::make_mut(file)[at] ^= 1 << (at % 8);
            }
            let disk = MemDisk::of(bent);
            let report = inspect::verify(&disk, Path::new(DIR));
            let where_ = format!("{path:?} at {at}");
            let found = match &report {
                Ok(report) => {
                    let near = report.findings.iter().find(|f| {
                        f.file == *path && f.offset <= at as u64 && at as u64 <= f.offset + 4096
                    });
                    assert!(
                        report.findings.is_empty() || near.is_some() || !report.is_rotten(),
                        "{where_}: {report:?}"
                    );
                    if report.is_rotten() {
                        Some(FindingKind::Rot)
                    } else {
                        report.findings.iter().map(|f| f.kind).find(|k| *k == FindingKind::Torn)
                    }
                }
                Err(Error::Corruption { path: file, .. }) if file == path => Some(FindingKind::Rot),
                Err(Error::Identity(_)) => Some(FindingKind::Rot),
                Err(other) => panic!("{where_}: {other}"),
            };
            match found {
                Some(FindingKind::Rot) => rot += 1,
                Some(_) => torn += 1,
                None => quiet += 1,
            }
            match open(&disk) {
                Ok((log, recovery)) => {
                    // Nothing acknowledged is missing, whatever the log thinks of the tail.
                    let (n, unread) =
                        check(&log, path).unwrap_or_else(|what| panic!("{where_}: {what}"));
                    assert_eq!(n, recovery.quarantined.len());
                    read += recovery.footers;
                    if unread > 0 {
                        assert_eq!((n, unread), (0, 1), "{where_}: one byte hits one group");
                        assert_eq!(found, Some(FindingKind::Rot), "{where_}");
                        unreadable += 1;
                    }
                    if n > 1 {
                        // The directory of a record: the groups it speaks of, and no others.
                        let groups: Vec<u64> =
                            recovery.quarantined.iter().map(|q| q.group).collect();
                        assert!(groups == [1, 2] || groups == [3, 4], "{where_}: {groups:?}");
                        pairs += 1;
                    }
                    if found == Some(FindingKind::Rot) && n + unread == 0 && recovery.footers == 0 {
                        assert!(!recovery.harmless.is_empty(), "{where_}: not a word");
                    }
                    if n > 0 {
                        assert_eq!(found, Some(FindingKind::Rot), "{where_}");
                        let offset = recovery.quarantined[0].damage.offset;
                        assert!(offset <= at as u64 && (at as u64) < offset + 4096);
                        assert_eq!(recovery.quarantined[0].damage.file, *path);
                        fenced += 1;
                    }
                }
                Err(Error::Corruption { path: file, .. }) => {
                    assert_eq!(file, *path, "{where_}");
                    assert_eq!(found, Some(FindingKind::Rot), "{where_}");
                    refused += 1;
                }
                Err(other) => panic!("{where_}: {other}"),
            }
        }
    }
    println!(
        "{rot} rot, {torn} torn, {quiet} harmless; {refused} refused, {fenced} fenced their groups \
         ({pairs} all groups of a record), {unreadable} told by one group when it was read"
    );
    assert!(rot > 0 && quiet > 0 && fenced + unreadable > 0);
    assert_eq!((read > 0, pairs > 0), (footers == Footers::Yes, footers == Footers::No));
    // No single byte hides whose it is.
    assert_eq!(refused, 0);
}

/// Makes a block of a file unreadable; tells whether it held anything.
fn lose_block(image: &mut Image, inode: u64, block: usize) -> bool {
    let Some(file) = image.files.get_mut(&inode) else { return false };
    let bytes = &mut Arc::make_mut(file)[block * 4096..(block + 1) * 4096];
    let held = bytes.iter().any(|byte| *byte != 0);
    bytes.fill(0xa5);
    held
}

#[test]
fn a_lost_block() {
    let (disk, log) = build(Footers::No);
    drop(log);
    let image: Image = disk.state().image.clone();
    let mut fenced = 0;
    let segments: Vec<_> =
        image.names.iter().filter(|(p, _)| p.to_string_lossy().contains(".seg")).collect();
    for (path, inode) in &segments {
        for block in 1..image.files[inode].len() / 4096 {
            let mut bent = image.clone();
            if !lose_block(&mut bent, **inode, block) {
                continue;
            }
            // The block holds a whole record: its groups are known from the one after it, even if that
            // one stands in another segment.
            match open(&MemDisk::of(bent.clone())) {
                Ok((log, recovery)) => {
                    let n = check(&log, path).unwrap().0;
                    assert!(n == 0 || n == 2, "{path:?} {block}: {recovery:?}");
                    fenced += usize::from(n > 0);
                }
                Err(error) => panic!("{path:?} {block}: {error}"),
            }
            // With the record after it gone as well, nothing tells.
            if block + 1 < image.files[inode].len() / 4096
                && lose_block(&mut bent, **inode, block + 1)
            {
                match open(&MemDisk::of(bent)) {
                    Err(Error::Corruption { path: file, .. }) => assert_eq!(&file, *path),
                    // The end of the log, which nothing states.
                    Ok((log, _)) => assert!(check(&log, path).is_ok() || log.last_index(1) == 24),
                    Err(error) => panic!("{path:?} {block}: {error}"),
                }
            }
        }
    }
    assert!(fenced > 20, "{fenced}");
}

#[test]
fn a_lost_directory_stays_lost() {
    let (disk, log) = build(Footers::No);
    drop(log);
    {
        let mut state = disk.state();
        let inode = state.image.names[Path::new("/log/0000000000000001.seg")];
        if let Some(file) = state.image.files.get_mut(&inode) {
            Arc::make_mut(file)[2 * 4096 + 50] ^= 1;
        }
    }
    let groups = |recovery: &catamaran::log::Recovery| {
        recovery.quarantined.iter().map(|q| q.group).collect::<Vec<_>>()
    };
    for _ in 0..3 {
        let (log, recovery) = open(&disk).unwrap();
        assert_eq!(groups(&recovery), [3, 4]);
        // The evidence is not purged, nor summed up in a footer.
        for index in 25..28 {
            let mut batch = LogBatch::new();
            batch.append(1, [entry(log.last_index(1) + 1, 1)]);
            batch.set_state(2, format!("{index}"));
            log.write(batch).unwrap();
        }
        log.barrier().unwrap();
        while log.prepare().unwrap() {}
        assert_eq!(log.purge().unwrap().segments, 0);
    }
    let (log, _) = open(&disk).unwrap();
    let mut batch = LogBatch::new();
    batch.reset(3, LogPosition { index: 40, term: 9 });
    batch.clear(4);
    log.write(batch).unwrap();
    drop(log);
    let (log, recovery) = open(&disk).unwrap();
    assert!(recovery.quarantined.is_empty(), "{recovery:?}");
    assert_eq!(log.groups(), [1, 2, 3]);
}

#[test]
fn a_flip_under_a_running_log_is_not_served() {
    let (disk, log) = build(Footers::No);
    for group in 1..=4 {
        log.trim_cache(group, 24);
    }
    log.write(LogBatch::new()).unwrap();
    {
        let mut state = disk.state();
        let names: Vec<u64> = state.image.names.values().copied().collect();
        for inode in names {
            let file = Arc::make_mut(state.image.files.get_mut(&inode).unwrap());
            for byte in file.iter_mut().skip(4096) {
                *byte ^= 0x10;
            }
        }
    }
    for group in 1..=3 {
        match log.entries(group, 1, 25, u64::MAX) {
            Err(Error::Corruption { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_reset_group_is_healthy_again() {
    let (disk, log) = build(Footers::No);
    drop(log);
    // Bend the first entry of group 2.
    {
        let mut state = disk.state();
        for file in state.image.files.values_mut() {
            let needle = b"group 2 entry 3 ";
            if let Some(at) = file.windows(needle.len()).position(|w| w == needle) {
                Arc::make_mut(file)[at] ^= 1;
            }
        }
    }
    let (log, recovery) = open(&disk).unwrap();
    assert_eq!(recovery.quarantined.len(), 1);
    assert_eq!((recovery.quarantined[0].group, recovery.quarantined[0].last_good), (2, 2));
    // It survives another open, and the others work meanwhile.
    let mut batch = LogBatch::new();
    batch.append(1, [entry(25, 1)]);
    log.write(batch).unwrap();
    assert_eq!(log.purge().unwrap().segments, 0);
    drop(log);
    let (log, recovery) = open(&disk).unwrap();
    assert_eq!(recovery.quarantined.len(), 1);
    let mut batch = LogBatch::new();
    batch.reset(2, LogPosition { index: 30, term: 4 });
    log.write(batch).unwrap();
    assert_eq!(log.damage(2), None);
    drop(log);
    let (log, recovery) = open(&disk).unwrap();
    assert!(recovery.quarantined.is_empty());
    assert_eq!((log.last_index(2), log.last_index(1)), (30, 25));
}
