//! What backs a header up is there whenever the header counts, also when a crash took the group that was to bring it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so when it fails")]

mod log_disk;

use catamaran::log::{Entry, Log, LogBatch, Options, Recovery};
use log_disk::{Crash, Image, MemDisk, Step, Survivors};
use std::path::Path;
use std::sync::Arc;

const BLOCK: usize = 4096;

fn open(disk: &MemDisk) -> catamaran::Result<(Log, Recovery)> {
    let options = Options { segment_bytes: 64 << 10, spare_segments: 1, ..Options::default() };
    Log::open(Arc::new(disk.clone()), Path::new("/log"), options)
}

fn put(log: &Log, index: u64, len: usize) {
    let mut batch = LogBatch::new();
    for group in [1, 2] {
        let data = vec![index as u8; len].into();
        batch.append(group, [Entry { index, term: 1, kind: 0, data }]);
    }
    log.write(batch).unwrap();
}

fn segments(image: &Image) -> Vec<u64> {
    let names = image.names.iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "seg"));
    names.map(|(_, inode)| *inode).collect()
}

/// Where the headers of records stand in a segment's file: also of those that were copied end to end.
fn headers(file: &[u8]) -> Vec<usize> {
    let is_here =
        |at: &usize| file[*at..].starts_with(b"CTCR") && file[at + 8..at + 16] == file[16..24];
    (BLOCK..file.len() - 48).filter(is_here).collect()
}

/// Some bytes of every record's header, one at a time: the log opens, twice, and holds both groups' entries.
fn flip_headers(image: &Image, last: u64) {
    let mut flipped = 0;
    for inode in segments(image) {
        for at in headers(&image.files[&inode]) {
            for byte in [at, at + 5, at + 16, at + 33] {
                let mut bent = image.clone();
                Arc::make_mut(bent.files.get_mut(&inode).unwrap())[byte] ^= 1;
                opens_twice(&MemDisk::of(bent), last, &format!("{inode} at {byte}"));
            }
            flipped += 1;
        }
    }
    assert!(flipped >= last, "{flipped}");
}

fn opens_twice(disk: &MemDisk, last: u64, what: &str) {
    for _ in 0..2 {
        let opened = open(disk);
        let (log, recovery) = opened.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(recovery.quarantined.is_empty(), "{what}: {recovery:?}");
        for group in [1, 2] {
            let found = log.entries(group, 1, last + 1, u64::MAX).unwrap();
            assert_eq!(found.len() as u64, last, "{what}: {recovery:?}");
        }
    }
}

/// The group that states another carries its echo behind its bodies. A crash may leave the statement, in its first block, and
/// not the echo: the other group was acknowledged then, and nothing backed its headers up after the torn one was cut.
#[test]
fn the_echo_that_a_crash_tore_off_is_made_again() {
    // In the middle of a segment, where it begins, and in a short one.
    for last in [1, 2, 9, 13, 14, 15] {
        let disk = MemDisk::default();
        let (log, _) = open(&disk).unwrap();
        (1..=last).for_each(|index| put(&log, index, 500));
        let before = disk.state().image.clone();
        put(&log, last + 1, 3 * BLOCK);
        drop(log);
        let mut image = disk.state().image.clone();
        for (inode, file) in &mut image.files {
            let file = Arc::make_mut(file);
            let zeros = Arc::new(vec![0; file.len()]);
            let old = before.files.get(inode).unwrap_or(&zeros);
            let changed = |n: &usize| file[n * BLOCK..][..BLOCK] != old[n * BLOCK..][..BLOCK];
            let blocks: Vec<usize> = (1..file.len() / BLOCK).filter(changed).collect();
            for n in blocks.into_iter().skip(1) {
                file[n * BLOCK..][..BLOCK].fill(0);
            }
        }
        let disk = MemDisk::of(image);
        let (_, recovery) = open(&disk).unwrap();
        assert!(recovery.torn.is_some(), "{last}: {recovery:?}");
        let opened = disk.state().image.clone();
        flip_headers(&opened, last);
    }
}

/// What is copied may not fit a spare: the file grows where there is room, and what repeats the copy comes with it.
#[test]
fn a_large_copy_brings_its_echo_along() {
    for len in [20_000, 27_000, 28_500, 35_000, 100_000] {
        let disk = MemDisk::default();
        let (log, _) = open(&disk).unwrap();
        put(&log, 1, 10);
        put(&log, 2, len);
        drop(log);
        drop(open(&disk).unwrap());
        let opened = disk.state().image.clone();
        flip_headers(&opened, 2);
    }
}

/// A process was killed behind the write of a footer's trailer: the next one read it, out of the page cache, and gave up
/// what repeated the segment's last group, for a footer stands for the records. Then the power went, and the footer with it.
#[test]
fn an_echo_outlives_a_footer_that_was_not_synced() {
    let disk = MemDisk::default();
    let (log, _) = open(&disk).unwrap();
    let mut last = 0;
    while log.stats().segments < 2 {
        last += 1;
        put(&log, last, 1500);
    }
    disk.state().journal.clear();
    let certain = disk.state().image.clone();
    while log.prepare().unwrap() {}
    drop(log);
    let journal = std::mem::take(&mut disk.state().journal);
    let trailer = |step: &Step| matches!(step, Step::Write { bytes, .. } if bytes.len() == 64);
    let cut = journal.iter().rposition(trailer).unwrap();
    let mut crash = Crash { certain, ..Crash::default() };
    journal[..=cut].iter().for_each(|step| crash.step(step));
    let seen = MemDisk::numbered(crash.image(Survivors::All), crash.next_inode());
    let (_, recovery) = open(&seen).unwrap();
    assert_eq!(recovery.footers, 1);
    let more = std::mem::take(&mut seen.state().journal);
    more.iter().for_each(|step| crash.step(step));
    for survivors in [Survivors::None, Survivors::All] {
        flip_headers(&crash.image(survivors), last);
    }
}

/// A header that is known from its echo, year after year, is no reason to believe the group behind it less.
#[test]
fn a_damaged_header_repeats_others_all_the_same() {
    let disk = MemDisk::default();
    let (log, _) = open(&disk).unwrap();
    (1..=9).for_each(|index| put(&log, index, 500));
    log.barrier().unwrap();
    drop(log);
    let mut image = disk.state().image.clone();
    let inode = segments(&image)[0];
    let heads = headers(&image.files[&inode]);
    for at in heads[2..6].iter().rev() {
        Arc::make_mut(image.files.get_mut(&inode).unwrap())[at + 5] ^= 1;
        opens_twice(&MemDisk::of(image.clone()), 9, &format!("{at}"));
    }
}
