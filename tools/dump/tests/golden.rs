//! What each verb prints, to the letter, and how it exits. `UPDATE_GOLDEN=1` writes the files anew; look
//! at the difference before you commit it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod fixture;

use bytes::Bytes;
use fixture::*;
use std::path::{Path, PathBuf};

fn golden(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, wanted, "{name} differs from its golden file");
}

fn check(name: &str, code: i32, args: &[&str]) {
    let run = dump(args);
    assert_eq!((run.code, run.err.as_str()), (code, ""), "{args:?}\n{}", run.out);
    golden(name, &run.out);
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn every_verb_in_every_form() {
    let temp = tempfile::tempdir().unwrap();
    build(temp.path(), 1);
    let data = text(temp.path());
    let verbs = ["summary", "segments", "groups", "entries", "state", "stats", "verify", "tail"];
    for verb in verbs {
        check(&format!("{verb}.txt"), 0, &[verb, data]);
        check(&format!("{verb}.json"), 0, &[verb, data, "-o", "json"]);
        check(&format!("{verb}.jsonl"), 0, &["-o", "jsonl", verb, data]);
        let json = dump(&[verb, data, "-o", "json"]).out;
        serde_json::from_str::<serde_json::Value>(&json).unwrap();
        for line in dump(&[verb, data, "-o", "jsonl"]).out.lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
        // The log directory itself will do as well.
        let inner = temp.path().join("log");
        assert_eq!(dump(&[verb, text(&inner)]).out, dump(&[verb, data]).out);
    }
}

#[test]
fn filters() {
    let temp = tempfile::tempdir().unwrap();
    build(temp.path(), 1);
    let data = text(temp.path());
    check("entries-values.txt", 0, &["entries", data, "--group", "1", "--values"]);
    check("entries-hex.txt", 0, &["entries", data, "--group", "1", "--keys", "hex"]);
    check("entries-cas.jsonl", 0, &["entries", data, "--type", "cas", "--values", "-o", "jsonl"]);
    let lines = |args: &[&str]| {
        let run = dump(&[&["-o", "jsonl"], args].concat());
        assert_eq!(run.code, 0, "{args:?} {}", run.err);
        let row = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
        run.out.lines().map(row).collect::<Vec<_>>()
    };
    let of = |args: &[&str]| {
        let number = |row: &serde_json::Value, key: &str| row[key].as_u64().unwrap();
        let rows = lines(&[&["entries", data], args].concat());
        rows.iter().map(|row| (number(row, "group"), number(row, "index"))).collect::<Vec<_>>()
    };
    assert_eq!(of(&["--group", "1"]), [(1, 7), (1, 8)]);
    assert_eq!(of(&["--group", "2-9", "--from", "16", "--to", "17"]), [(2, 16), (2, 17)]);
    assert_eq!(of(&["--limit", "3"]), [(1, 7), (1, 8), (2, 15)]);
    assert_eq!(of(&["--type", "compact"]), [(1, 8)]);
    assert_eq!(of(&["--type", "conf-change,unknown"]), [(2, 17), (2, 18)]);
    assert_eq!(of(&["--type", "put"]), [(1, 7), (2, 15), (2, 16)]);
    assert_eq!(of(&["--type", "delete-range"]), [(1, 7)]);
    assert_eq!(lines(&["groups", data, "--group", "2"]).len(), 1);
    assert_eq!(lines(&["state", data, "--limit", "2"]).len(), 2);
    assert_eq!(lines(&["tail", data, "-n", "2"]).len(), 2);
    let floors = lines(&["tail", data, "--type", "floor"]);
    assert_eq!(floors.len(), 1);
    let seq = floors[0]["seq"].as_u64().unwrap().to_string();
    assert_eq!(lines(&["tail", data, "--from", &seq, "--to", &seq]).len(), 1);
    assert_eq!(lines(&["segments", data, "--limit", "1"]).len(), 1);
    let last = lines(&["segments", data]).last().unwrap()["first_seq"].as_u64().unwrap();
    assert_eq!(lines(&["segments", data, "--from", &last.to_string()]).len(), 1);
}

#[test]
fn two_replicas_compared() {
    let temp = tempfile::tempdir().unwrap();
    let (a, b): (PathBuf, PathBuf) = (temp.path().join("a"), temp.path().join("b"));
    build(&a, 1);
    build(&b, 2);
    check("diff-same.txt", 0, &["diff", text(&a), text(&b)]);
    {
        let log = open(&a);
        let mut batch = catamaran::log::LogBatch::new();
        batch.append(1, [entry(9, 6, folded(&[put(b"x", b"1")]))]);
        batch.append(4, [entry(1, 1, "only here".into())]);
        log.write(batch).unwrap();
        log.barrier().unwrap();
    }
    check("diff-ranges.txt", 4, &["diff", text(&a), text(&b)]);
    check("diff-common.txt", 0, &["diff", text(&a), text(&b), "--common"]);
    {
        let log = open(&b);
        let mut batch = catamaran::log::LogBatch::new();
        batch.append(2, [entry(16, 8, folded(&[put(b"y", b"2")]))]);
        batch.set_state(2, hard_state(8, 2, 16));
        log.write(batch).unwrap();
        log.barrier().unwrap();
    }
    check("diff-diverged.txt", 4, &["diff", text(&a), text(&b)]);
    check("diff-diverged.json", 4, &["diff", text(&a), text(&b), "-o", "json", "--group", "2"]);
    check("diff-limited.txt", 0, &["diff", text(&a), text(&b), "--group", "2", "--to", "15"]);
    assert_eq!(dump(&["diff", text(&a), text(&b), "--common"]).code, 4);
}

#[test]
fn exit_codes() {
    let temp = tempfile::tempdir().unwrap();
    let empty = temp.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    build(&temp.path().join("data"), 1);
    let data = temp.path().join("data");
    let nowhere = temp.path().join("nowhere");
    assert_eq!(dump(&["summary", text(&data)]).code, 0);
    assert_eq!(dump(&[]).code, 2);
    assert_eq!(dump(&["no-such-verb"]).code, 2);
    assert_eq!(dump(&["entries", text(&data), "--group", "9-1"]).code, 2);
    assert_eq!(dump(&["entries", text(&data), "--type", "nonsense"]).code, 2);
    for dir in [&nowhere, &empty] {
        for verb in ["summary", "verify", "tail", "entries"] {
            let run = dump(&[verb, text(dir)]);
            assert_eq!((run.code, run.out.as_str()), (3, ""), "{verb}");
            assert!(run.err.starts_with("catamaran-dump: "), "{}", run.err);
        }
    }
    assert_eq!(dump(&["diff", text(&data), text(&nowhere)]).code, 3);
    for shell in ["bash", "zsh", "fish"] {
        let run = dump(&["completions", shell]);
        assert!(run.code == 0 && run.out.contains("catamaran-dump"));
    }
    let help = dump(&["--help"]);
    assert!(help.code == 0 && help.out.contains("Examples:"), "{}", help.out);
}

#[test]
fn a_closed_pipe_is_no_error() {
    use std::io::{BufRead, BufReader};
    let temp = tempfile::tempdir().unwrap();
    build(temp.path(), 1);
    let mut child = command(&["tail", text(temp.path()), "-f", "-o", "jsonl"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let before = dump(&["tail", text(temp.path())]).out.lines().count() - 1;
    for _ in 0..before {
        lines.next().unwrap().unwrap();
    }
    // What is written now is followed.
    let log = open(temp.path());
    let mut batch = catamaran::log::LogBatch::new();
    batch.append(1, [entry(9, 6, folded(&[put(b"late", b"1")]))]);
    log.write(batch).unwrap();
    log.barrier().unwrap();
    // Reopening restates nothing here but may write records of its own first.
    let line = lines.find(|l| l.as_ref().unwrap().contains("append")).unwrap().unwrap();
    assert!(line.contains("\"group\":1,\"first\":9"), "{line}");
    drop(lines);
    let mut batch = catamaran::log::LogBatch::new();
    batch.append(1, [entry(10, 6, Bytes::new())]);
    log.write(batch).unwrap();
    log.barrier().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
