//! Readers whose file is recycled under them: whatever the disk says of it, the entries are somewhere else by then.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod log_disk;

use catamaran::Error;
use catamaran::env::mem::MemDisk;
use catamaran::log::{Entry, Log, LogBatch, Options};
use catamaran::types::LogPosition;
use log_disk::hold::{Call, HoldDisk, Rule};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

/// Reads fail.
#[derive(Default, Debug)]
struct Snag {
    /// The next one, with what a file says that was cut while it was read, when this log has given it back.
    recycled: Mutex<Option<Log>>,
    /// All of them, while this is there.
    broken: Mutex<Option<ErrorKind>>,
    reads: AtomicU64,
}

impl Rule for Snag {
    fn before(&self, _: Call, _: &Path) -> Result<(), ErrorKind> {
        Ok(())
    }

    fn before_read(&self, _: &Path) -> Result<(), ErrorKind> {
        self.reads.fetch_add(1, SeqCst);
        if let Some(kind) = *self.broken.lock().unwrap() {
            return Err(kind);
        }
        // Purge reads as well.
        let Some(log) = self.recycled.lock().unwrap().take() else { return Ok(()) };
        let gone = (0..10).any(|_| log.purge().unwrap().segments > 0);
        assert!(gone, "{:?}", log.stats());
        Err(ErrorKind::UnexpectedEof)
    }
}

fn entry(index: u64, len: usize) -> Entry {
    Entry { index, term: 1, kind: 0, data: vec![index as u8; len].into() }
}

/// A laggard's entries in the oldest segment, garbage behind it; nothing in the cache.
fn laggard(footers: u64) -> (Arc<Snag>, Log) {
    let disk = HoldDisk::<Snag>::over(Arc::new(MemDisk::default()));
    let snag = disk.hold.clone();
    let options = Options { segment_bytes: 64 << 10, cache_bytes: 0, ..Options::default() };
    let (log, _) = Log::open(Arc::new(disk), Path::new("/log"), options).unwrap();
    for index in 1..=3 {
        let mut batch = LogBatch::new();
        batch.append(1, [entry(index, 300)]);
        log.write(batch).unwrap();
    }
    for index in 1..=400 {
        let mut batch = LogBatch::new();
        batch.append(2, [entry(index, 3000)]);
        log.write(batch).unwrap();
    }
    if footers > 0 {
        while log.prepare().unwrap() {}
        assert!(log.stats().footer_bytes > 0);
    }
    let mut batch = LogBatch::new();
    batch.compact_to(2, LogPosition { index: 399, term: 1 });
    log.write(batch).unwrap();
    log.trim_cache(1, 3);
    log.trim_cache(2, 400);
    let mut batch = LogBatch::new();
    batch.set_state(3, "the cache is looked through when something is submitted");
    log.write(batch).unwrap();
    assert_eq!(log.stats().cache_bytes, 0);
    (snag, log)
}

#[test]
fn a_file_that_is_cut_under_a_reader_is_no_error() {
    for footers in [0, 1] {
        let (snag, log) = laggard(footers);
        *snag.recycled.lock().unwrap() = Some(log.clone());
        let read = log.entries(1, 1, 4, u64::MAX).unwrap();
        assert_eq!(read, [entry(1, 300), entry(2, 300), entry(3, 300)]);
        assert!(snag.recycled.lock().unwrap().is_none() && log.stats().purged_segments > 0);
    }
}

/// The same error, of a file that is still the one to read: told at once, and not tried again and again.
#[test]
fn a_file_that_cannot_be_read_is_told_at_once() {
    let (snag, log) = laggard(0);
    for kind in [ErrorKind::UnexpectedEof, ErrorKind::Other] {
        *snag.broken.lock().unwrap() = Some(kind);
        let before = snag.reads.load(SeqCst);
        let error = log.entries(1, 1, 4, u64::MAX).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
        assert_eq!(snag.reads.load(SeqCst) - before, 1);
        *snag.broken.lock().unwrap() = None;
        assert_eq!(log.entries(1, 1, 4, u64::MAX).unwrap().len(), 3);
    }
}
