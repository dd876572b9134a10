//! What a run does where something is odd about it: a range that ends before it begins, an output that is not there, a
//! name without a file; and what a repair says of entries that do not read.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod fixture;

use fixture::golden::golden;
use fixture::*;
use std::path::Path;
use std::process::{Command, Stdio};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Exit code, output and complaint of a line given to the shell, in which `$D` is the tool.
fn shell(line: &str) -> Run {
    let output = Command::new("sh")
        .args(["-c", line])
        .env("D", env!("CARGO_BIN_EXE_catamaran-dump"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = output.status.code().unwrap();
    Run { code, out: text(&output.stdout), err: text(&output.stderr) }
}

#[test]
fn a_range_that_ends_before_it_begins() {
    let temp = tempfile::tempdir().unwrap();
    build(temp.path(), 1);
    let data = text(temp.path());
    let nowhere = temp.path().join("nowhere");
    let mut said = String::new();
    for verb in ["segments", "groups", "entries", "state", "stats", "tail", "diff"] {
        // It makes no sense wherever the log is, and whether there is one.
        for dir in [data, text(&nowhere)] {
            let mut args = vec![verb, dir];
            args.extend((verb == "diff").then_some(dir));
            let run = dump(&[&args[..], &["--from", "9", "--to", "8"]].concat());
            assert_eq!((run.code, run.out.as_str()), (2, ""), "{verb}: {}", run.err);
            said = run.err;
        }
        if verb != "diff" {
            assert_eq!(dump(&[verb, data, "--from", "9", "--to", "9"]).code, 0, "{verb}");
        }
    }
    golden("range.err.txt", &said);
}

/// `>&-`: nobody is told anything, and the exit code says so. Nothing is done, either.
#[test]
fn a_closed_output_is_an_error() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("data");
    build(&data, 1);
    let new = temp.path().join("new");
    let verbs = ["summary", "segments", "groups", "entries", "state", "stats", "verify", "tail"];
    let mut said = String::new();
    for verb in verbs.into_iter().chain(["tail -f"]) {
        let run = shell(&format!("\"$D\" {verb} '{}' >&-", data.display()));
        assert_eq!((run.code, run.out.as_str()), (3, ""), "{verb}: {}", run.err);
        said = run.err;
    }
    golden("closed.err.txt", &said);
    let line = format!("\"$D\" repair '{}' --out '{}' >&-", data.display(), new.display());
    assert_eq!((shell(&line).code, new.exists()), (3, false));
    assert_eq!(shell("\"$D\" completions bash >&-").code, 3);
    // A place that takes everything and keeps nothing is a place, however it was opened; one without room is none.
    for (to, code) in [("> /dev/null", 0), ("1<> /dev/null", 0), (">/dev/full", 3)] {
        if cfg!(not(target_os = "linux")) && to == ">/dev/full" {
            continue;
        }
        for words in
            [&format!("verify '{}'", data.display()), "--help", "verify --help", "--version"]
        {
            let run = shell(&format!("\"$D\" {words} {to}"));
            assert_eq!(run.code, code, "{words} {to}: {}", run.err);
        }
    }
    assert_eq!(
        (shell("\"$D\" --help >&-").code, shell("\"$D\" --no-such 2>/dev/full").code),
        (3, 2)
    );
}

/// A reader that has seen enough is nobody's error, and neither is one of the complaints.
#[test]
fn a_broken_pipe_is_quiet() {
    let temp = tempfile::tempdir().unwrap();
    build(temp.path(), 1);
    let data = temp.path().display().to_string();
    // The reader goes before anything is written: it waits for its end.
    let gone = "{ sleep 1; \"$D\" entries '$X'; echo \"code $?\" >&2; } | true";
    let run = shell(&gone.replace("$X", &data));
    assert_eq!((run.out.as_str(), run.err.as_str()), ("", "code 0\n"));
    let head = "{ \"$D\" entries '$X' --values; echo \"code $?\" >&2; } | head -n 1";
    let run = shell(&head.replace("$X", &data));
    assert_eq!((run.out.lines().count(), run.err.as_str()), (1, "code 0\n"));
    // Nobody hears what it warns of: the exit code is what it would have been.
    fixture::golden::spoil(temp.path(), b"key16", 100);
    let deaf = "{ { sleep 1; \"$D\" groups '$X' 2>&3; echo \"code $?\"; } 3>&1 >&4 | true; } 4>&1";
    let run = shell(&deaf.replace("$X", &data));
    assert!(run.out.contains("code 4") && !run.err.contains("panicked"), "{} {}", run.out, run.err);
}

/// A name that is a segment's and no file: a link into nowhere, a link to a file, a directory.
#[test]
fn a_segment_that_is_no_file() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("data");
    build(&data, 1);
    let dir = data.join("log");
    let stray = dir.join("0000000000009999.seg");
    let newest = segments(&data).pop().unwrap();
    for what in ["nowhere", "link", "directory"] {
        match what {
            "nowhere" => std::os::unix::fs::symlink("/no/such/place", &stray).unwrap(),
            "link" => std::os::unix::fs::symlink(newest.file_name().unwrap(), &stray).unwrap(),
            _ => std::fs::create_dir(&stray).unwrap(),
        }
        let run = dump(&["verify", text(&data)]);
        assert_eq!((run.code, run.err.as_str()), (4, ""), "{what}: {}", run.out);
        golden(&format!("verify-{what}.txt"), &run.out);
        // What is shown may be incomplete, and says so.
        let run = dump(&["groups", text(&data)]);
        assert!(run.code == 4 && run.err.contains("9999.seg"), "{what}: {} {}", run.code, run.err);
        // It may have been the end: then nobody knows what is lost.
        let out = temp.path().join(what);
        let run = dump(&["repair", text(&data), "--out", text(&out)]);
        assert_eq!((run.code, run.err.as_str()), (4, ""), "{what}: {}", run.out);
        assert!(run.out.contains("9999.seg: no header of its own (is a "), "{what}: {}", run.out);
        if what == "directory" {
            std::fs::remove_dir(&stray).unwrap();
        } else {
            std::fs::remove_file(&stray).unwrap();
        }
    }
    // A segment that was moved away, a link in its place.
    let moved = temp.path().join("moved.seg");
    std::fs::rename(&newest, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, &newest).unwrap();
    assert_eq!(dump(&["verify", text(&data)]).code, 4);
    std::fs::remove_file(&newest).unwrap();
    std::fs::rename(&moved, &newest).unwrap();
    // Other names are nobody's business.
    std::os::unix::fs::symlink("/no/such/place", dir.join("notes.seg")).unwrap();
    std::os::unix::fs::symlink("/no/such/place", dir.join("elsewhere")).unwrap();
    assert_eq!(dump(&["verify", text(&data)]).code, 0);
}

/// Every entry that the group had is either kept or counted as dropped, whatever it is that does not read.
#[test]
fn repair_counts_what_does_not_read() {
    let temp = tempfile::tempdir().unwrap();
    let one = |n: u64| folded(&[put(format!("key-{n:02}").as_bytes(), &[b'v'; 40])]);
    let counts = |name: &str, spoilt: &[&[u8]], more: &[&str]| {
        let data = temp.path().join(name);
        let log = open(&data);
        // Three at a time: one body holds them.
        for first in (1..=12).step_by(3) {
            let mut batch = catamaran::log::LogBatch::new();
            batch.append(7, (first..first + 3).map(|n| entry(n, 1, one(n))));
            batch.append(8, [entry(first.div_ceil(3), 1, one(50 + first))]);
            log.write(batch).unwrap();
        }
        log.barrier().unwrap();
        drop(log);
        spoilt.iter().for_each(|bytes| fixture::golden::spoil(&data, bytes, 8));
        let args = [&["repair", text(&data), "--dry-run", "-o", "json"], more].concat();
        let run = dump(&args);
        assert_eq!((run.code, run.err.as_str()), (if spoilt.is_empty() { 0 } else { 4 }, ""));
        let page: serde_json::Value = serde_json::from_str(&run.out).unwrap();
        let row = page["groups"].as_array().unwrap().iter().find(|row| row["group"] == 7).unwrap();
        ["entries", "dropped_entries", "unreadable_entries"].map(|key| {
            assert!(page[key].as_u64() >= row[key].as_u64(), "{page:#}");
            row[key].as_u64().unwrap()
        })
    };
    assert_eq!(counts("sound", &[], &[]), [12, 0, 0]);
    let keep = &["--keep-damaged"];
    // In the middle, at the end, at the beginning, twice.
    assert_eq!(counts("middle", &[b"key-05"], &[]), [0, 12, 3]);
    assert_eq!(counts("middle-kept", &[b"key-05"], keep), [3, 9, 3]);
    assert_eq!(counts("end", &[b"key-12"], &[]), [0, 12, 3]);
    assert_eq!(counts("end-kept", &[b"key-12"], keep), [9, 3, 3]);
    assert_eq!(counts("front-kept", &[b"key-01"], keep), [0, 12, 3]);
    assert_eq!(counts("twice-kept", &[b"key-06", b"key-11"], keep), [3, 9, 6]);
}
