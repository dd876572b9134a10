//! What backs a header up is there whenever the header counts, also when a crash took the group that was to bring it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so when it fails")]

mod log_disk;

use catamaran::log::{Entry, Log, LogBatch, Options, Recovery};
use log_disk::{Image, MemDisk};
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

/// Every byte of every record's header, one at a time: the log opens, twice, and holds both groups' entries.
fn flip_headers(image: &Image, last: u64) {
    let mut flipped = 0;
    for inode in segments(image) {
        let file = &image.files[&inode];
        for at in (BLOCK..file.len()).filter(|at| at % BLOCK < 48) {
            if !file[at / BLOCK * BLOCK..].starts_with(b"CTCR") {
                continue;
            }
            let mut bent = image.clone();
            Arc::make_mut(bent.files.get_mut(&inode).unwrap())[at] ^= 1;
            let disk = MemDisk::of(bent);
            for _ in 0..2 {
                let opened = open(&disk);
                let (log, recovery) =
                    opened.unwrap_or_else(|error| panic!("{inode} at {at}: {error}"));
                assert!(recovery.quarantined.is_empty(), "{inode} at {at}: {recovery:?}");
                for group in [1, 2] {
                    let found = log.entries(group, 1, last + 1, u64::MAX).unwrap();
                    assert_eq!(found.len() as u64, last, "{inode} at {at}: {recovery:?}");
                }
            }
            flipped += 1;
        }
    }
    assert!(flipped > 48 * last / 2, "{flipped}");
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
