//! Segments whose files are much longer than what is in them, where there is little memory: each test runs itself again
//! in a process that may have fewer addresses than the files have bytes.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use catamaran::Error;
use catamaran::env::os::OsDisk;
use catamaran::log::inspect::verify;
use catamaran::log::{Entry, Log, LogBatch, Options};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// Names the directory to the process that may have little.
const DIR: &str = "LOG_LONG_FILE_DIR";
/// Kilobytes of addresses that it may have.
const ADDRESSES: u64 = 400 << 10;
/// Bytes of the long files: not too many to be looked through here.
const LONG: u64 = 600 << 20;
const ENTRIES: u64 = 60;

fn open(dir: &Path) -> catamaran::Result<Log> {
    let options = Options { segment_bytes: 64 << 10, spare_segments: 1, ..Options::default() };
    Log::open(Arc::new(OsDisk), dir, options).map(|(log, _)| log)
}

/// A log of some segments, none of which has a footer.
fn build(dir: &Path) {
    let log = open(dir).unwrap();
    for index in 1..=ENTRIES {
        let mut batch = LogBatch::new();
        batch.append(7, [Entry { index, term: 1, kind: 0, data: vec![7; 5000].into() }]);
        log.write(batch).unwrap();
    }
    log.barrier().unwrap();
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|suffix| suffix == "seg")).collect();
    files.sort();
    assert!(files.len() > 4, "{files:?}");
    files
}

/// Makes some of the segments long; `false` if no file here can be.
fn lengthen(paths: &[&PathBuf]) -> bool {
    for path in paths {
        let file = File::options().write(true).open(path).unwrap();
        if let Err(error) = file.set_len(LONG) {
            // Past the harness, which would keep it to itself.
            let line = format!("\n*** SKIPPED: no file of {LONG} bytes here: {error}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            return false;
        }
    }
    true
}

/// Runs a test of this file again, with little memory.
fn again(test: &str, dir: &Path) {
    let limited = format!("ulimit -v {ADDRESSES}; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &limited]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--test-threads", "1", "--nocapture"]).env(DIR, dir);
    let run = command.output().unwrap();
    assert!(run.status.success(), "{run:?}");
    let told = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(told.contains("1 passed"), "{told}");
}

/// The last segment was read into memory as long as its file is when it was inspected, and each other one when the log
/// was opened: an abort, where there was no memory for holes.
#[test]
fn holes_take_no_memory() {
    if let Some(dir) = std::env::var_os(DIR) {
        let dir = Path::new(&dir);
        let report = verify(&OsDisk, dir).unwrap();
        assert!(!report.is_rotten() && report.last_good[&7] == ENTRIES, "{report:?}");
        let log = open(dir).unwrap();
        return assert_eq!(log.entries(7, 1, ENTRIES + 1, u64::MAX).unwrap().len(), 60);
    }
    let temp = tempfile::tempdir().unwrap();
    build(temp.path());
    let segments = segments(temp.path());
    if lengthen(&[&segments[1], &segments[segments.len() - 1]]) {
        again("holes_take_no_memory", temp.path());
    }
}

/// Where a segment says that it was made so long, and has its length, it is read whole. That there is no memory for it is
/// an error.
#[test]
fn too_little_memory_is_an_error() {
    if let Some(dir) = std::env::var_os(DIR) {
        let no_memory = |error: Error| match error {
            Error::Io { op: "read", source, .. } => {
                assert_eq!(source.kind(), std::io::ErrorKind::OutOfMemory);
            }
            other => panic!("{other:?}"),
        };
        no_memory(verify(&OsDisk, Path::new(&dir)).unwrap_err());
        return no_memory(open(Path::new(&dir)).unwrap_err());
    }
    let temp = tempfile::tempdir().unwrap();
    build(temp.path());
    let segment = &segments(temp.path())[1];
    let file = File::options().read(true).write(true).open(segment).unwrap();
    for at in [0, 2048] {
        let mut head = [0; 64];
        file.read_exact_at(&mut head, at).unwrap();
        head[40..48].copy_from_slice(&LONG.to_le_bytes());
        let sum = crc32c::crc32c(&head[..60]);
        head[60..].copy_from_slice(&sum.to_le_bytes());
        file.write_all_at(&head, at).unwrap();
    }
    if lengthen(&[segment]) {
        again("too_little_memory_is_an_error", temp.path());
    }
}
