//! The end of the numbers that names have room for.

use super::*;
use crate::env::mem::MemDisk;
use crate::log::{Entry, Log, LogBatch};

const DIR: &str = "/log";
const LAST: &str = "9999999999999999";

fn open(disk: &MemDisk) -> Result<Log> {
    let options = Options { segment_bytes: 16 << 10, spare_segments: 1, ..Options::default() };
    Log::open(Arc::new(disk.clone()), Path::new(DIR), options).map(|(log, _)| log)
}

fn write(log: &Log, index: u64) -> Result<()> {
    let mut batch = LogBatch::new();
    batch.append(1, [Entry { index, term: 1, kind: 0, data: vec![7; 3000].into() }]);
    log.write(batch).map(drop)
}

fn put(disk: &MemDisk, name: &str, bytes: &[u8]) -> PathBuf {
    let path = Path::new(DIR).join(name);
    disk.open(&path, OpenMode::CreateNew).unwrap().write_at(0, bytes).unwrap();
    path
}

fn refused(disk: &MemDisk) -> PathBuf {
    match open(disk) {
        Err(Error::Corruption { path, detail, .. }) => {
            assert!(detail.contains("none after it has room"), "{detail}");
            path
        }
        other => panic!("{:?}", other.map(drop)),
    }
}

/// The spare made after it once had a name of seventeen digits, which is no spare's: the next open did not know it.
#[test]
fn no_spare_is_named_after_the_last_number() {
    let disk = MemDisk::default();
    drop(open(&disk).unwrap());
    let foreign = put(&disk, &format!("{LAST}.free"), &[0; 16 << 10]);
    assert_eq!(refused(&disk), foreign);
    disk.remove(&foreign).unwrap();
    // Beside one just before it the log opens, and that there is no name shows when a spare is to be made.
    put(&disk, "9999999999999998.free", &[0; 16 << 10]);
    let log = open(&disk).unwrap();
    let error = (1..100).find_map(|index| write(&log, index).err());
    assert!(matches!(error, Some(Error::Corruption { path, .. }) if path == Path::new(DIR)));
    assert!(all_named(&disk));
}

/// Whether each file but the lock is known by its name.
fn all_named(disk: &MemDisk) -> bool {
    let names = disk.list(Path::new(DIR)).unwrap();
    let suffixes = [SEGMENT_SUFFIX, SPARE_SUFFIX];
    names.iter().all(|name| suffixes.iter().any(|suffix| parse_name(name, suffix).is_some()))
}

/// The same of segments: one whose name has seventeen digits would be passed over with what was acknowledged in it.
#[test]
fn no_generation_follows_the_last_number() {
    for (generation, named) in [(9_999_999_999_999_999, true), (u64::MAX, false)] {
        let disk = MemDisk::default();
        drop(open(&disk).unwrap());
        let header = SegmentHeader { generation, base_seq: 1, durable: 0, size: 16 << 10 };
        let mut bytes = header.encode();
        bytes.resize(16 << 10, 0);
        // A spare's header reserves its generation, whatever the spare's name.
        let spare = put(&disk, "0000000000000077.free", &bytes);
        assert_eq!(refused(&disk), spare);
        disk.remove(&spare).unwrap();
        if named {
            let segment = put(&disk, &format!("{generation}.seg"), &bytes);
            assert_eq!(refused(&disk), Path::new(DIR));
            disk.remove(&segment).unwrap();
        }
        write(&open(&disk).unwrap(), 1).unwrap();
    }
}

/// A log that comes to the end of the numbers stops, and all that it acknowledged is there.
#[test]
fn a_log_that_runs_out_of_numbers_stops_with_an_error() {
    let disk = MemDisk::default();
    drop(open(&disk).unwrap());
    let header =
        SegmentHeader { generation: LAST_NUMBER - 3, base_seq: 1, durable: 0, size: 16 << 10 };
    let mut bytes = header.encode();
    bytes.resize(16 << 10, 0);
    put(&disk, "0000000000000077.free", &bytes);
    let log = open(&disk).unwrap();
    let error = (1..100).find_map(|index| write(&log, index).err().map(|error| (index, error)));
    let (index, error) = error.unwrap();
    assert!(matches!(error, Error::Corruption { .. }), "{error}");
    assert!(matches!(write(&log, index), Err(Error::Stopped { .. })));
    assert!(all_named(&disk));
    assert_eq!(log.durable().0 + 1, index);
}

/// Who fills a spare may rest while the reserve is there, and while the spare grows twice as fast as the active segment.
#[test]
fn a_spare_that_is_not_needed_yet_is_filled_at_leisure() {
    let pieces = 8;
    let segment_bytes = pieces * FILL as u64;
    let options = Options { segment_bytes, spare_segments: 2, ..Options::default() };
    let (log, _) = Log::open(Arc::new(MemDisk::default()), Path::new(DIR), options).unwrap();
    let rests = || {
        let mut rests = 0;
        log.prepare_gently(&mut || rests += 1).unwrap();
        rests
    };
    let mut index = 0;
    let mut more = || {
        index += 1;
        let mut batch = LogBatch::new();
        batch.append(1, [Entry { index, term: 1, kind: 0, data: vec![7; FILL / 2].into() }]);
        log.write(batch).unwrap();
    };
    assert_eq!(log.stats().spares, 1);
    assert_eq!(rests(), pieces - 1);
    // Into the next segment, and a quarter of that: no rest before half of the spare is there.
    while log.stats().spares == 2 {
        more();
    }
    (0..pieces / 2).for_each(|_| more());
    let spared = rests();
    assert!((1..=pieces / 2).contains(&spared), "{spared} of {pieces}");
    assert_eq!(log.stats().spares, 2);
    // Into the next, and most of that.
    while log.stats().spares == 2 {
        more();
    }
    (0..pieces + 2).for_each(|_| more());
    assert_eq!(rests(), 0);
}
