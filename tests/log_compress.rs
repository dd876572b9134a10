//! Compressed runs, from the outside: what is compressed and counted, that purge moves no more than lives,
//! that damage in them is seen.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod log_disk;

use catamaran::Error;
use catamaran::log::inspect::{Inspector, OpView, RunBytes};
use catamaran::log::{Entry, Log, LogBatch, Options};
use catamaran::types::LogPosition;
use log_disk::MemDisk;
use std::path::Path;
use std::sync::Arc;

const DIR: &str = "/log";

fn open(disk: &MemDisk, compress_above: Option<usize>) -> Log {
    let options = Options {
        segment_bytes: 64 << 10,
        cache_bytes: 0,
        spare_segments: 1,
        compress_above,
        ..Options::default()
    };
    Log::open(Arc::new(disk.clone()), Path::new(DIR), options).unwrap().0
}

fn verbose(group: u64, index: u64) -> Entry {
    let data =
        format!("{{\"group\": {group}, \"index\": {index}, \"name\": \"value\"}}, ").repeat(20);
    Entry { index, term: 1, kind: 1, data: data.into() }
}

/// What LZ4 makes nothing of.
fn noise(group: u64, index: u64) -> Entry {
    let mut state = (group << 32 | index).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    Entry { index, term: 1, kind: 2, data: (0..900).map(next).collect::<Vec<u8>>().into() }
}

/// Runs of appends and of moves.
fn runs(disk: &MemDisk) -> (Vec<RunBytes>, Vec<RunBytes>) {
    let inspector = Inspector::open(disk, Path::new(DIR)).unwrap();
    let (mut appends, mut moves) = (Vec::new(), Vec::new());
    for record in inspector.records() {
        for op in record.unwrap().ops {
            match op {
                OpView::Append { run, .. } => appends.push(run),
                OpView::Rewrite { run, .. } => moves.push(run),
                _ => {}
            }
        }
    }
    (appends, moves)
}

#[test]
fn what_is_compressed_is_counted_by_what_it_takes() {
    let disk = MemDisk::default();
    let log = open(&disk, Some(1000));
    let mut batch = LogBatch::new();
    batch.append(1, (1..=4).map(|index| verbose(1, index)));
    batch.append(2, [noise(2, 1), noise(2, 2)]);
    batch.append(3, [Entry { data: "small".into(), ..verbose(3, 1) }]);
    let seq = log.submit(batch).unwrap();
    // Before it is written, from the cache; after, from the disk.
    let whole = |log: &Log| {
        let wanted: Vec<Entry> = (1..=4).map(|index| verbose(1, index)).collect();
        assert_eq!(log.entries(1, 1, 5, u64::MAX).unwrap(), wanted);
        assert_eq!(log.entries(1, 3, 4, 0).unwrap(), wanted[2..3]);
        assert_eq!(log.entries(2, 1, 3, u64::MAX).unwrap(), [noise(2, 1), noise(2, 2)]);
    };
    whole(&log);
    log.wait(seq).unwrap();
    (1..=3).for_each(|group| log.trim_cache(group, 4));
    log.barrier().unwrap();
    let (appends, _) = runs(&disk);
    let compressed: Vec<bool> = appends.iter().map(|run| run.is_compressed).collect();
    assert_eq!(compressed, [true, false, false]);
    let stats = log.stats();
    assert_eq!(stats.raw_entry_bytes, appends.iter().map(|run| run.raw).sum::<u64>());
    assert_eq!(stats.entry_bytes, appends.iter().map(|run| run.stored).sum::<u64>());
    assert_eq!(stats.live_bytes, stats.entry_bytes);
    assert_eq!(log.sizes(1), [(4, appends[0].stored)]);
    drop(log);
    whole(&open(&disk, None));
}

/// Compressed entries of a laggard are moved as compressed as they came, though the option is off now: a
/// move takes no more room than what it frees.
#[test]
fn moves_stay_compressed() {
    let disk = MemDisk::default();
    let log = open(&disk, Some(0));
    let mut index = 0;
    let round = |log: &Log, index: u64| {
        let mut batch = LogBatch::new();
        if index <= 60 {
            batch.append(1, [verbose(1, 2 * index - 1), verbose(1, 2 * index)]);
        }
        batch.append(2, [noise(2, index)]);
        if index > 2 {
            batch.compact_to(2, LogPosition { index: index - 2, term: 1 });
        }
        log.write(batch).unwrap();
    };
    while index < 60 {
        index += 1;
        round(&log, index);
    }
    drop(log);
    let log = open(&disk, None);
    while index < 200 {
        index += 1;
        round(&log, index);
        log.purge().unwrap();
    }
    let (_, mut moves) = runs(&disk);
    // Noise of the other group, which could not be.
    moves.retain(|run| run.raw > 1000);
    assert!(!moves.is_empty() && moves.iter().all(|run| run.is_compressed), "{moves:?}");
    assert!(moves.iter().all(|run| run.stored * 4 < run.raw), "{moves:?}");
    let stats = log.stats();
    assert!(stats.moved_bytes > 0 && stats.moved_bytes < 60 * 1000, "{stats:?}");
    let wanted: Vec<Entry> = (1..=120).map(|index| verbose(1, index)).collect();
    assert_eq!(log.entries(1, 1, 121, u64::MAX).unwrap(), wanted);
    drop(log);
    assert_eq!(open(&disk, None).entries(1, 1, 121, u64::MAX).unwrap(), wanted);
}

/// Each byte of a compressed run, flipped: the group is fenced off, the other is not.
#[test]
fn a_flipped_byte_is_seen() {
    let disk = MemDisk::default();
    let log = open(&disk, Some(0));
    let mut batch = LogBatch::new();
    batch.append(1, (1..=4).map(|index| verbose(1, index)));
    batch.append(2, [noise(2, 1)]);
    log.write(batch).unwrap();
    log.barrier().unwrap();
    drop(log);
    let (appends, _) = runs(&disk);
    let sound = disk.state().image.clone();
    let (path, inode) =
        sound.names.iter().find(|(path, _)| path.ends_with("0000000000000001.seg")).unwrap();
    let neighbour = noise(2, 1).data;
    let bytes = &sound.files[inode];
    let end = bytes.windows(neighbour.len()).position(|window| window == neighbour).unwrap();
    // The table of the neighbour's run: one entry, its kind, and two bytes of its size.
    let end = end - 4;
    for at in end - appends[0].stored as usize..end {
        let mut image = sound.clone();
        image.files.get_mut(inode).unwrap()[at] ^= 1 << (at % 8);
        let log = open(&MemDisk::of(image), None);
        let refused = log.entries(1, 1, 5, u64::MAX);
        assert!(matches!(refused, Err(Error::Quarantined { .. })), "{at} of {path:?}: {refused:?}");
        assert_eq!(log.entries(2, 1, 2, u64::MAX).unwrap(), [noise(2, 1)]);
    }
}
