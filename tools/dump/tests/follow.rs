//! `tail -f`: nothing is passed over in silence, whatever the log does meanwhile, and it ends when it should.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod fixture;

use catamaran::log::{Log, LogBatch};
use fixture::*;
use serde_json::Value;
use std::io::{BufRead, BufReader, Lines, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

struct Follow {
    child: Child,
    lines: Option<Lines<BufReader<ChildStdout>>>,
}

impl Follow {
    fn start(data: &Path, args: &[&str]) -> Follow {
        let args = [&["tail", data.to_str().unwrap(), "-f", "-o", "jsonl"], args].concat();
        let mut child =
            command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = Some(BufReader::new(child.stdout.take().unwrap()).lines());
        Follow { child, lines }
    }

    fn row(&mut self) -> Option<Value> {
        let line = self.lines.as_mut().unwrap().next()?.unwrap();
        Some(serde_json::from_str(&line).unwrap())
    }

    fn seq(&mut self) -> u64 {
        self.row().unwrap()["seq"].as_u64().unwrap()
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// Exit code and standard error.
    fn end(mut self) -> (Option<i32>, String) {
        let since = Instant::now();
        let code = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status.code();
            }
            if since.elapsed() > Duration::from_secs(60) {
                self.child.kill().unwrap();
                panic!("it goes on and on");
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let mut err = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        (code, err)
    }
}

fn write(log: &Log, index: u64, bytes: usize) {
    let mut batch = LogBatch::new();
    batch.append(1, [entry(index, 6, folded(&[put(b"late", &vec![b'x'; bytes])]))]);
    log.write(batch).unwrap();
}

#[test]
fn across_rotation_recycling_and_restart() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path();
    build(data, 1);
    let mut follow = Follow::start(data, &["-n", "1"]);
    let first = follow.seq();
    let mut log = open(data);
    let mut shown = vec![first];
    let mut index = 9;
    for round in 0..12 {
        // Some segments' worth, then the oldest are purged and used again.
        for _ in 0..12 {
            write(&log, index, 1500);
            index += 1;
        }
        log.barrier().unwrap();
        let last = tail_end(data);
        while *shown.last().unwrap() < last {
            shown.push(follow.seq());
        }
        let mut batch = LogBatch::new();
        batch.compact_to(1, at(index - 2, 6));
        log.write(batch).unwrap();
        log.purge().unwrap();
        if round % 5 == 4 {
            drop(log);
            log = open(data);
        }
    }
    log.barrier().unwrap();
    let last = tail_end(data);
    while *shown.last().unwrap() < last {
        shown.push(follow.seq());
    }
    assert!(shown.is_sorted_by(|a, b| a < b), "{shown:?}");
    follow.signal("-INT");
    let (code, err) = follow.end();
    assert_eq!(code, Some(0), "{err}");
    // Each hole was announced. (The reader was waited for before each purge: a hole is rare.)
    for pair in shown.windows(2).filter(|pair| pair[1] != pair[0] + 1) {
        let hole = format!("records {} to {} were gone", pair[0] + 1, pair[1] - 1);
        assert!(err.contains(&hole), "{hole}: {err}");
    }
    assert!(shown.len() > 100, "{}", shown.len());
}

fn tail_end(data: &Path) -> u64 {
    let run = dump(&["tail", data.to_str().unwrap(), "-n", "1", "-o", "jsonl"]);
    let row: Value = serde_json::from_str(run.out.lines().last().unwrap()).unwrap();
    row["seq"].as_u64().unwrap()
}

#[test]
fn what_was_purged_unseen_is_said() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path();
    build(data, 1);
    let mut follow = Follow::start(data, &["-n", "1"]);
    let first = follow.seq();
    follow.signal("-STOP");
    {
        let log = open(data);
        for index in 9..60 {
            write(&log, index, 1500);
        }
        let mut batch = LogBatch::new();
        batch.compact_to(1, at(58, 6));
        log.write(batch).unwrap();
        for _ in 0..10 {
            log.purge().unwrap();
        }
        log.barrier().unwrap();
    }
    follow.signal("-CONT");
    let next = follow.seq();
    assert!(next > first + 1, "{first} {next}");
    follow.signal("-TERM");
    let (code, err) = follow.end();
    assert_eq!(code, Some(0));
    assert!(err.contains(&format!("records {} to {} were gone", first + 1, next - 1)), "{err}");
}

#[test]
fn nobody_reads_any_more_and_nothing_is_written() {
    let temp = tempfile::tempdir().unwrap();
    build(temp.path(), 1);
    let mut follow = Follow::start(temp.path(), &["-n", "1"]);
    follow.seq();
    follow.lines = None;
    assert_eq!(follow.end(), (Some(0), String::new()));
}

#[test]
fn up_to_a_record() {
    let temp = tempfile::tempdir().unwrap();
    build(temp.path(), 1);
    let last = tail_end(temp.path());
    let mut follow = Follow::start(temp.path(), &["-n", "1", "--to", &(last + 2).to_string()]);
    assert_eq!(follow.seq(), last);
    let log = open(temp.path());
    for index in 9..14 {
        write(&log, index, 10);
    }
    assert_eq!((follow.seq(), follow.seq()), (last + 1, last + 2));
    assert!(follow.row().is_none());
    assert_eq!(follow.end(), (Some(0), String::new()));
}

/// Rot in what was acknowledged is shown, and passed over.
#[test]
fn damage_does_not_stop_it() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path();
    build(data, 1);
    let mut follow = Follow::start(data, &["-n", "1"]);
    let first = follow.seq();
    follow.signal("-STOP");
    let log = open(data);
    for index in 9..12 {
        write(&log, index, 700);
    }
    log.barrier().unwrap();
    let path = segments(data).into_iter().rev().find(|path| {
        let bytes = std::fs::read(path).unwrap();
        bytes.windows(4).any(|window| window == b"late")
    });
    let path = path.unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(4).position(|window| window == b"late").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    follow.signal("-CONT");
    let rows: Vec<Value> = (0..3).map(|_| follow.row().unwrap()).collect();
    assert!(rows.iter().any(|row| row["damaged"] == true), "{rows:?}");
    assert!(rows.iter().all(|row| row["seq"].as_u64().unwrap() > first));
    follow.signal("-INT");
    assert_eq!(follow.end().0, Some(4));
}

/// It went on for ever, without a word.
#[test]
fn a_log_that_goes_away_ends_it() {
    for how in ["removed", "renamed", "emptied"] {
        let temp = tempfile::tempdir().unwrap();
        let data = temp.path().join("data");
        build(&data, 1);
        let mut follow = Follow::start(&data, &["-n", "1"]);
        follow.seq();
        match how {
            "removed" => std::fs::remove_dir_all(&data).unwrap(),
            "renamed" => std::fs::rename(&data, temp.path().join("elsewhere")).unwrap(),
            _ => {
                for entry in std::fs::read_dir(data.join("log")).unwrap() {
                    std::fs::remove_file(entry.unwrap().path()).unwrap();
                }
            }
        }
        let (code, err) = follow.end();
        assert_eq!((code, err.lines().count()), (Some(3), 1), "{how}: {err}");
        assert!(err.contains("log: the log is gone"), "{how}: {err}");
    }
}

/// What may pass is said once, and when it has passed the follower goes on where it was.
#[test]
fn a_log_that_does_not_read_for_a_while_is_told_once() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path();
    build(data, 1);
    let mut follow = Follow::start(data, &["-n", "1"]);
    let first = follow.seq();
    let path = segments(data).pop().unwrap();
    let sound = std::fs::read(&path).unwrap();
    let mut other = sound.clone();
    for at in [0, 2048] {
        // A version of the format that nobody reads.
        other[at + 8] = 99;
        let crc = crc32c::crc32c(&other[at..at + 60]);
        other[at + 60..at + 64].copy_from_slice(&crc.to_le_bytes());
    }
    let mut err = BufReader::new(follow.child.stderr.take().unwrap());
    std::fs::write(&path, &other).unwrap();
    let mut said = String::new();
    err.read_line(&mut said).unwrap();
    assert!(said.contains("does not read") && said.contains("version 99"), "{said}");
    // Looked at again, and not said again.
    for _ in 0..3 {
        std::fs::write(&path, &other).unwrap();
        std::thread::sleep(Duration::from_millis(300));
    }
    std::fs::write(&path, &sound).unwrap();
    write(&open(data), 9, 10);
    assert_eq!(follow.seq(), first + 1);
    follow.signal("-INT");
    let mut rest = String::new();
    err.read_to_string(&mut rest).unwrap();
    assert_eq!((follow.child.wait().unwrap().code(), rest.as_str()), (Some(0), ""));
}
