//! The format on disk stays what it is: a fixed workload writes the golden segments byte for byte, and
//! the golden segments of every version that is read open. After a deliberate change of the format (and of
//! its version), write those of the new version with `LOG_GOLDEN=write cargo test -p catamaran --test
//! log_golden`, and keep the old ones.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so when it fails")]

mod log_disk;

use catamaran::Error;
use catamaran::log::inspect::{Inspector, OpView};
use catamaran::log::{Entry, Log, LogBatch, OLDEST_VERSION, Options, VERSION};
use catamaran::types::LogPosition;
use log_disk::{Image, MemDisk};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const DIR: &str = "/log";
const SEGMENT: &str = "/log/0000000000000001.seg";
const NEXT: &str = "/log/0000000000000002.seg";

fn golden_path(version: u32, what: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/log/v{version}{what}.seg"))
}

fn open(disk: &MemDisk) -> catamaran::Result<(Log, catamaran::log::Recovery)> {
    open_with(disk, None)
}

fn open_with(
    disk: &MemDisk,
    compress_above: Option<usize>,
) -> catamaran::Result<(Log, catamaran::log::Recovery)> {
    let options = Options {
        segment_bytes: 32 << 10,
        spare_segments: 1,
        compress_above,
        ..Options::default()
    };
    Log::open(Arc::new(disk.clone()), Path::new(DIR), options)
}

fn entry(index: u64, term: u64, kind: u8, data: &str) -> Entry {
    Entry { index, term, kind, data: data.to_string().into() }
}

/// The active segment of a short log; a full one with its footer, and the one after it.
fn write() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let disk = MemDisk::default();
    let (log, _) = open(&disk).unwrap();
    let mut batch = LogBatch::new();
    batch.append(1, [entry(1, 1, 0, "one"), entry(2, 1, 7, ""), entry(3, 2, 0, "three")]);
    batch.set_state(1, "vote 1");
    batch.reset(300, LogPosition { index: 5, term: 5 });
    batch.append(300, [entry(6, 5, 1, "six")]);
    log.submit(batch).unwrap();
    let mut batch = LogBatch::new();
    batch.append(1, [entry(3, 3, 0, "three again"), entry(4, 3, 2, "four")]);
    batch.append(u64::MAX, [entry(1, 9, 255, "the last group")]);
    log.submit(batch).unwrap();
    log.write_round().unwrap();
    let mut batch = LogBatch::new();
    batch.compact_to(1, LogPosition { index: 1, term: 1 });
    batch.set_state(300, vec![0; 200]);
    log.write(batch).unwrap();
    let mut batch = LogBatch::new();
    batch.append(8, [entry(1, 1, 0, "gone")]);
    batch.clear(8);
    log.write(batch).unwrap();
    log.barrier().unwrap();
    let active = file(&disk, SEGMENT);
    for index in 5..9 {
        let mut batch = LogBatch::new();
        batch.append(1, [entry(index, 3, 0, &"long ".repeat(700))]);
        log.write(batch).unwrap();
    }
    while log.prepare().unwrap() {}
    (active, file(&disk, SEGMENT), file(&disk, NEXT))
}

fn file(disk: &MemDisk, name: &str) -> Vec<u8> {
    let state = disk.state();
    state.image.files[&state.image.names[Path::new(name)]].clone()
}

/// Entries of which LZ4 makes less, and others.
fn compressible() -> Vec<Entry> {
    let entry = |n: u64, data: String| entry(n, 2, 0, &data);
    (1..=3).map(|n| entry(n, format!("line {n}; ").repeat(20))).collect()
}

/// A segment with a compressed run, and one that is too small for that.
fn write_compressed() -> Vec<u8> {
    let disk = MemDisk::default();
    let (log, _) = open_with(&disk, Some(64)).unwrap();
    let mut batch = LogBatch::new();
    batch.append(1, compressible());
    batch.append(2, [entry(1, 2, 0, &"x".repeat(60))]);
    log.write(batch).unwrap();
    log.barrier().unwrap();
    let stats = log.stats();
    assert!(stats.compression() > 3.0 && stats.raw_entry_bytes > 3 * stats.entry_bytes);
    file(&disk, SEGMENT)
}

fn golden(version: u32, what: &str) -> Vec<u8> {
    std::fs::read(golden_path(version, what)).unwrap()
}

const VERSIONS: std::ops::RangeInclusive<u32> = OLDEST_VERSION..=VERSION;

fn image_with(bytes: Vec<u8>) -> Image {
    Image {
        files: BTreeMap::from([(1, bytes)]),
        names: BTreeMap::from([(PathBuf::from(SEGMENT), 1)]),
    }
}

fn disk_with(bytes: Vec<u8>) -> MemDisk {
    MemDisk::of(image_with(bytes))
}

#[test]
fn the_workload_writes_the_golden_bytes() {
    let (active, sealed, next) = write();
    let compressed = write_compressed();
    for (what, bytes) in
        [("", active), ("-sealed", sealed), ("-next", next), ("-compressed", compressed)]
    {
        if std::env::var("LOG_GOLDEN").is_ok_and(|what| what == "write") {
            std::fs::write(golden_path(VERSION, what), &bytes).unwrap();
        }
        let golden = golden(VERSION, what);
        let differs = bytes.iter().zip(&golden).position(|(a, b)| a != b);
        assert_eq!(differs, None, "first difference of {what:?} at this offset");
        assert_eq!(bytes.len(), golden.len());
    }
}

#[test]
fn the_golden_footers_open() {
    VERSIONS.for_each(the_golden_footer_opens);
}

fn the_golden_footer_opens(version: u32) {
    let mut image = image_with(golden(version, "-sealed"));
    // A footer says that a segment follows.
    let alone = open(&MemDisk::of(image.clone())).unwrap_err();
    assert!(matches!(&alone, Error::Corruption { detail, .. } if detail.contains("missing")));
    image.files.insert(2, golden(version, "-next"));
    image.names.insert(PathBuf::from(NEXT), 2);
    let (log, recovery) = open(&MemDisk::of(image.clone())).unwrap();
    assert_eq!((recovery.segments, recovery.footers), (2, 1));
    assert!(recovery.quarantined.is_empty() && recovery.harmless.is_empty());
    assert_eq!(log.groups(), [1, 300, u64::MAX]);
    assert_eq!(log.state(1).unwrap(), "vote 1");
    assert_eq!((log.truncated(1).index, log.last_index(1)), (1, 8));
    assert_eq!(log.truncated(300), LogPosition { index: 5, term: 5 });
    let entries = log.entries(1, 2, 9, u64::MAX).unwrap();
    assert_eq!((entries.len(), &entries[1]), (7, &entry(3, 3, 0, "three again")));
    let disk = MemDisk::of(image);
    let inspector = Inspector::open(&disk, Path::new(DIR)).unwrap();
    let footers: Vec<bool> = inspector.segments().unwrap().iter().map(|s| s.footer > 0).collect();
    assert_eq!(footers, [true, false]);
    assert!(inspector.segments().unwrap().iter().all(|s| s.version == version));
    assert!(!inspector.verify().unwrap().is_rotten());
}

#[test]
fn the_golden_segments_open() {
    VERSIONS.for_each(the_golden_segment_opens);
}

fn the_golden_segment_opens(version: u32) {
    let (log, recovery) = open(&disk_with(golden(version, ""))).unwrap();
    assert_eq!((recovery.records, recovery.last_seq, &recovery.torn), (5, 5, &None));
    assert!(recovery.quarantined.is_empty() && recovery.harmless.is_empty());
    assert_eq!(log.groups(), [1, 300, u64::MAX]);
    assert_eq!(log.truncated(1), LogPosition { index: 1, term: 1 });
    let wanted = [entry(2, 1, 7, ""), entry(3, 3, 0, "three again"), entry(4, 3, 2, "four")];
    assert_eq!(log.entries(1, 2, 5, u64::MAX).unwrap(), wanted);
    assert_eq!(log.state(1).unwrap(), "vote 1");
    assert_eq!(log.state(300).unwrap().len(), 200);
    assert_eq!(log.entries(300, 6, 7, 0).unwrap(), [entry(6, 5, 1, "six")]);
    let last = log.entries(u64::MAX, 1, 2, 0).unwrap();
    assert_eq!(last, [entry(1, 9, 255, "the last group")]);
}

#[test]
fn the_golden_segments_inspect() {
    VERSIONS.for_each(the_golden_segment_inspects);
}

fn the_golden_segment_inspects(version: u32) {
    let disk = disk_with(golden(version, ""));
    let inspector = Inspector::open(&disk, Path::new(DIR)).unwrap();
    let segments = inspector.segments().unwrap();
    assert_eq!(
        (segments.len(), segments[0].header.generation, segments[0].header.base_seq),
        (1, 1, 1)
    );
    let records: Vec<_> = inspector.records().map(Result::unwrap).collect();
    let places: Vec<_> = records.iter().map(|r| (r.seq, r.durable, r.offset)).collect();
    let second = places[1].2;
    assert_eq!(places, [(1, 0, 4096), (2, 0, second), (3, 2, 8192), (4, 3, 12288), (5, 4, 16384)]);
    assert_eq!(records[0].ops.len(), 4);
    assert!(
        matches!(&records[1].ops[0], OpView::Append { group: 1, entries, .. } if entries[0].term == 3)
    );
    let report = inspector.verify().unwrap();
    assert!(!report.is_rotten());
    assert_eq!(report.durable, 4);
    assert_eq!(report.last_good, BTreeMap::from([(1, 4), (300, 6), (u64::MAX, 1)]));
}

#[test]
fn the_golden_compressed_run_reads() {
    let disk = disk_with(golden(VERSION, "-compressed"));
    let inspector = Inspector::open(&disk, Path::new(DIR)).unwrap();
    let first = inspector.records().next().unwrap().unwrap();
    let [OpView::Append { entries, run, .. }, OpView::Append { run: small, .. }] = &first.ops[..]
    else {
        panic!("{first:?}")
    };
    assert_eq!((entries, run.is_compressed), (&compressible(), true));
    assert!(run.stored * 3 < run.raw, "{run:?}");
    assert_eq!((small.is_compressed, small.stored), (false, small.raw));
    assert!(!inspector.verify().unwrap().is_rotten());
    // Whatever the options say.
    let (log, recovery) = open(&disk).unwrap();
    assert!(recovery.quarantined.is_empty() && recovery.harmless.is_empty());
    assert_eq!(log.entries(1, 1, 4, u64::MAX).unwrap(), compressible());
    assert_eq!(log.entries(1, 2, 3, u64::MAX).unwrap(), compressible()[1..2]);
    assert_eq!(log.entries(2, 1, 2, 0).unwrap()[0].data.len(), 60);
}

/// A directory of version 2 opens, is written in version 3 from then on, and shows what it showed before.
#[test]
fn an_old_directory_is_taken_over() {
    let mut image = image_with(golden(2, "-sealed"));
    image.files.insert(2, golden(2, "-next"));
    image.names.insert(PathBuf::from(NEXT), 2);
    let disk = MemDisk::of(image);
    let versions = || {
        let inspector = Inspector::open(&disk, Path::new(DIR)).unwrap();
        assert!(!inspector.verify().unwrap().is_rotten());
        inspector.segments().unwrap().iter().map(|s| s.version).collect::<Vec<_>>()
    };
    assert_eq!(versions(), [2, 2]);
    let (log, recovery) = open_with(&disk, Some(0)).unwrap();
    assert!(recovery.quarantined.is_empty() && recovery.harmless.is_empty());
    let before = log.entries(1, 2, 9, u64::MAX).unwrap();
    assert_eq!((before.len(), versions()), (7, vec![2, 2, 3]));
    let mut batch = LogBatch::new();
    batch.append(2, compressible());
    batch.compact_to(300, LogPosition { index: 6, term: 5 });
    log.write(batch).unwrap();
    // Purge moves what is left of the old segment, bit by bit, until nothing is.
    let big = "abc".repeat(9000);
    for index in 1..40 {
        let mut batch = LogBatch::new();
        let noise: String = big.chars().zip(0..).map(|(c, n)| noisy(c, n * index)).collect();
        batch.append(3, [entry(index, 2, 0, &noise)]);
        batch.compact_to(3, LogPosition { index, term: 2 });
        log.write(batch).unwrap();
        log.purge().unwrap();
    }
    assert!(versions().iter().all(|version| *version == 3), "{:?}", versions());
    assert_eq!(log.entries(1, 2, 9, u64::MAX).unwrap(), before);
    drop(log);
    let (log, _) = open(&disk).unwrap();
    assert_eq!(log.entries(1, 2, 9, u64::MAX).unwrap(), before);
    assert_eq!(log.entries(2, 1, 4, u64::MAX).unwrap(), compressible());
    assert_eq!(log.state(1).unwrap(), "vote 1");
}

fn noisy(c: char, n: u64) -> char {
    let mixed = (u64::from(u32::from(c)) + n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    char::from((mixed >> 40) as u8 & 0x7f)
}

#[test]
fn other_versions_are_refused_and_left_alone() {
    for version in [OLDEST_VERSION - 1, VERSION + 1] {
        let mut bytes = golden(VERSION, "");
        for at in [0, 2048] {
            bytes[at + 8] = version as u8;
            let crc = crc32c::crc32c(&bytes[at..at + 60]).to_le_bytes();
            bytes[at + 60..at + 64].copy_from_slice(&crc);
        }
        let disk = disk_with(bytes.clone());
        let refused = open(&disk).unwrap_err();
        assert!(matches!(&refused, Error::Identity(why) if why.contains("version")), "{refused}");
        let looked = Inspector::open(&disk, Path::new(DIR)).map(drop).unwrap_err();
        assert!(matches!(looked, Error::Identity(_)), "{looked}");
        assert_eq!(file(&disk, SEGMENT), bytes);
    }
}
