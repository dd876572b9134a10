//! What each verb prints, to the letter, and how it exits. `fixture/golden.rs` says how the files are made.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod fixture;

use bytes::Bytes;
use fixture::golden::check;
use fixture::*;
use std::io::Write;
use std::path::{Path, PathBuf};

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

/// Compressed runs are shown as what they hold, and what they save is told.
#[test]
fn compressed() {
    let temp = tempfile::tempdir().unwrap();
    let old = temp.path().join("data");
    build_compressed(&old);
    let data = text(&old);
    check("stats-compressed.txt", 0, &["stats", data]);
    check("stats-compressed.json", 0, &["stats", data, "-o", "json"]);
    check("entries-compressed.txt", 0, &["entries", data]);
    check("tail-compressed.txt", 0, &["tail", data]);
    check("tail-compressed.jsonl", 0, &["tail", data, "-o", "jsonl"]);
    assert_eq!(dump(&["verify", data]).code, 0);
    // A copy is compressed as well.
    let new = temp.path().join("new");
    assert_eq!(dump(&["repair", data, "--out", text(&new)]).code, 0);
    let stats = |dir: &Path| -> serde_json::Value {
        serde_json::from_str(&dump(&["stats", text(dir), "-o", "json"]).out).unwrap()
    };
    let (old, new) = (stats(&old), stats(&new));
    assert!(new["log"]["compression"].as_f64() > Some(4.0), "{new:#}");
    assert_eq!(new["log"]["live_bytes"], old["log"]["live_bytes"]);
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

/// What a group counts for when only some of its entries do.
#[test]
fn filters_of_entries_for_verbs_about_groups() {
    let temp = tempfile::tempdir().unwrap();
    build(temp.path(), 1);
    let data = text(temp.path());
    let rows = |args: &[&str]| {
        let run = dump(&[args, &["-o", "json"]].concat());
        assert_eq!(run.code, 0, "{args:?} {}", run.err);
        serde_json::from_str::<serde_json::Value>(&run.out).unwrap()
    };
    let numbers = |rows: &serde_json::Value, names: &[&str]| {
        let row =
            |row: &serde_json::Value| names.iter().map(|n| row[n].as_u64().unwrap()).collect();
        rows.as_array().unwrap().iter().map(row).collect::<Vec<Vec<u64>>>()
    };
    let groups = |args: &[&str]| {
        let found = rows(&[&["groups", data], args].concat());
        numbers(&found, &["group", "first", "last", "entries"])
    };
    assert_eq!(groups(&["--from", "8"]), [[1, 8, 8, 1], [2, 15, 18, 4]]);
    assert_eq!(groups(&["--from", "8", "--to", "16"]), [[1, 8, 8, 1], [2, 15, 16, 2]]);
    assert_eq!(groups(&["--type", "put"]), [[1, 7, 7, 1], [2, 15, 16, 2]]);
    assert_eq!(groups(&["--type", "put", "--from", "9"]), [[2, 15, 16, 2]]);
    assert_eq!(groups(&["--type", "put", "--limit", "1"]), [[1, 7, 7, 1]]);
    assert!(groups(&["--type", "delete", "--group", "2"]).is_empty());

    let stats = |args: &[&str]| {
        let found = rows(&[&["stats", data], args].concat());
        (found["log"].clone(), numbers(&found["groups"], &["group", "entries", "written_entries"]))
    };
    let (log, all) = stats(&[]);
    assert_eq!(all.len(), 3);
    let (log_of_puts, puts) = stats(&["--type", "put"]);
    assert_eq!(log, log_of_puts, "the log's own figures are of all of it");
    // Purge wrote some of them again.
    let entries: Vec<_> = puts.iter().map(|row| (row[0], row[1])).collect();
    assert_eq!(entries, [(2, 2), (1, 1)]);
    assert!(puts.iter().all(|row| row[2] >= row[1]));
    assert_eq!(stats(&["--from", "17", "--to", "17"]).1, [[2, 1, 1]]);
    assert!(stats(&["--group", "1", "--from", "17"]).1.is_empty());

    let states = |args: &[&str]| numbers(&rows(&[&["state", data], args].concat()), &["group"]);
    assert_eq!(states(&[]), [[0], [1], [2]]);
    assert_eq!(states(&["--type", "identity"]), [[0]]);
    assert_eq!(states(&["--type", "hard-state,opaque"]), [[1], [2]]);
    assert_eq!(states(&["--from", "8"]), [[1], [2]], "an identity has committed nothing");
    assert!(states(&["--to", "7"]).is_empty());

    // The one group lives in the last segments, the other's entries were moved there by purge.
    let files = |args: &[&str]| {
        let found = rows(&[&["segments", data], args].concat());
        let name = |row: &serde_json::Value| row["file"].as_str().unwrap().to_owned();
        found.as_array().unwrap().iter().map(name).collect::<Vec<_>>()
    };
    assert!(files(&["--group", "9"]).is_empty());
    let of_entries = rows(&["entries", data, "--group", "2"]);
    for entry in of_entries.as_array().unwrap() {
        let file = entry["file"].as_str().unwrap();
        assert!(files(&["--group", "2"]).iter().any(|found| found == file), "{entry}");
    }
    assert!(files(&["--group", "2"]).len() <= files(&[]).len());
}

#[test]
fn two_replicas_compared() {
    let temp = tempfile::tempdir().unwrap();
    let (a, b): (PathBuf, PathBuf) = (temp.path().join("a"), temp.path().join("b"));
    build(&a, 1);
    build(&b, 2);
    let in_each_form = |name: &str, code: i32| {
        for (format, arg) in FORMS {
            check(&format!("{name}.{format}"), code, &["diff", text(&a), text(&b), "-o", arg]);
        }
    };
    in_each_form("diff-same", 0);
    {
        let log = open(&a);
        let mut batch = catamaran::log::LogBatch::new();
        batch.append(1, [entry(9, 6, folded(&[put(b"x", b"1")]))]);
        batch.append(4, [entry(1, 1, "only here".into())]);
        log.write(batch).unwrap();
        log.barrier().unwrap();
    }
    in_each_form("diff-ranges", 4);
    check("diff-common.txt", 0, &["diff", text(&a), text(&b), "--common"]);
    {
        let log = open(&b);
        let mut batch = catamaran::log::LogBatch::new();
        batch.append(2, [entry(16, 8, folded(&[put(b"y", b"2")]))]);
        batch.set_state(2, hard_state(8, 2, 16));
        log.write(batch).unwrap();
        log.barrier().unwrap();
    }
    // Group 2 differs in a put of index 16; group 1 has one more in A.
    let diff = |args: &[&str]| {
        let run = dump(&[&["diff", text(&a), text(&b), "-o", "jsonl"], args].concat());
        let row = |line: &str| {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            (row["group"].as_u64().unwrap(), row["verdict"].as_str().unwrap().to_owned())
        };
        (run.code, run.out.lines().map(row).collect::<Vec<_>>())
    };
    let row = |group: u64, verdict: &str| (group, verdict.to_owned());
    assert_eq!(diff(&["--type", "put"]), (4, vec![row(1, "ranges"), row(2, "diverged")]));
    assert_eq!(diff(&["--type", "cas"]), (0, vec![row(1, "same")]));
    assert_eq!(diff(&["--type", "put", "--to", "15"]).1[1], row(2, "same"));
    assert_eq!(diff(&["--type", "put", "--to", "7"]), (0, vec![row(1, "same")]));
    check("diff-diverged.txt", 4, &["diff", text(&a), text(&b)]);
    check("diff-diverged.json", 4, &["diff", text(&a), text(&b), "-o", "json", "--group", "2"]);
    check("diff-diverged.jsonl", 4, &["diff", text(&a), text(&b), "-o", "jsonl"]);
    check("diff-limited.txt", 0, &["diff", text(&a), text(&b), "--group", "2", "--to", "15"]);
    assert_eq!(dump(&["diff", text(&a), text(&b), "--common"]).code, 4);
}

/// How golden files end, and what is asked for to get them.
const FORMS: [(&str, &str); 3] = [("txt", "table"), ("json", "json"), ("jsonl", "jsonl")];

const VERBS: [&str; 11] = [
    "summary",
    "segments",
    "groups",
    "entries",
    "state",
    "stats",
    "verify",
    "tail",
    "diff",
    "repair",
    "completions",
];

/// Each verb's help has examples of its own, and each example, everywhere, is a line that is understood:
/// the directories alone are missing.
#[test]
fn help_tells_the_truth() {
    // Where there are no such directories.
    let temp = tempfile::tempdir().unwrap();
    let elsewhere = |words: &[&str]| {
        let output = command(words).current_dir(temp.path()).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for verb in std::iter::once("").chain(VERBS) {
        let run = if verb.is_empty() { dump(&["--help"]) } else { dump(&[verb, "--help"]) };
        assert!(run.code == 0 && run.out.contains("Examples:"), "{verb}: {}", run.out);
        let examples = run.out.lines().filter_map(|l| l.trim().strip_prefix("catamaran-dump "));
        let examples: Vec<&str> = examples.collect();
        assert!(examples.len() > if verb.is_empty() { 10 } else { 1 }, "{}", run.out);
        for line in examples {
            let line = line.split(['|', '>', '&']).next().unwrap();
            let words: Vec<&str> = line.split_whitespace().collect();
            assert!(verb.is_empty() || words[0] == verb, "{verb}: {line}");
            let wanted = if words[0] == "completions" { 0 } else { 3 };
            let (code, err) = elsewhere(&words);
            assert_eq!(code, wanted, "{line}: {err}");
        }
    }
    // One line for each verb, in the order in which they are needed.
    let short = dump(&["-h"]).out;
    let places = VERBS.map(|verb| short.find(&format!("\n  {verb} ")).unwrap());
    assert!(places.is_sorted(), "{short}");
}

/// What is printed about a log that is damaged.
#[test]
fn damaged() {
    let temp = tempfile::tempdir().unwrap();
    build(temp.path(), 1);
    let data = text(temp.path());
    fixture::golden::spoil(temp.path(), b"key16", 100);
    for verb in ["summary", "segments", "groups", "entries", "state", "stats", "tail"] {
        for (format, arg) in FORMS {
            let run = dump(&[verb, data, "-o", arg]);
            assert_eq!(run.code, 4, "{verb} {format}");
            fixture::golden::golden(&format!("{verb}-damaged.{format}"), &run.out);
            let warned = run.err.contains("the log is damaged");
            assert_eq!(warned, verb != "summary", "{verb} says so itself, or warns");
        }
    }
    for (format, args) in FORMS {
        check(&format!("verify-damaged.{format}"), 4, &["verify", data, "-o", args]);
    }
}

/// Two logs with the same hole once were the same.
#[test]
fn replicas_that_do_not_read_are_not_the_same() {
    let temp = tempfile::tempdir().unwrap();
    let (a, b): (PathBuf, PathBuf) = (temp.path().join("a"), temp.path().join("b"));
    for (data, store) in [(&a, 1), (&b, 2)] {
        build(data, store);
        fixture::golden::spoil(data, b"key16", 100);
    }
    for (format, arg) in FORMS {
        let run = dump(&["diff", text(&a), text(&b), "-o", arg]);
        assert_eq!(run.code, 4, "{}", run.out);
        fixture::golden::golden(&format!("diff-incomplete.{format}"), &run.out);
    }
}

#[test]
fn repaired() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("data");
    let run = |name: &str, code: i32, more: &[&str]| {
        for (format, arg) in FORMS {
            let out = temp.path().join("NEW");
            let args = ["repair", text(&data), "--out", text(&out), "-o", arg];
            let run = dump(&[&args, more].concat());
            assert_eq!((run.code, run.err.as_str()), (code, ""), "{name} {}", run.out);
            let shown = run.out.replace(text(temp.path()), "TEMP");
            fixture::golden::golden(&format!("{name}.{format}"), &shown);
            std::fs::remove_dir_all(&out).unwrap();
        }
    };
    build(&data, 1);
    run("repair", 0, &[]);
    for (format, arg) in FORMS {
        let args = ["repair", text(&data), "--dry-run", "-o", arg];
        check(&format!("repair-dry.{format}"), 0, &args);
    }
    fixture::golden::spoil(&data, b"key16", 100);
    run("repair-damaged", 4, &[]);
    run("repair-kept", 4, &["--keep-damaged"]);
    // The segment with the last records.
    let path = segments(&data).pop().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[..4096].fill(0xaa);
    std::fs::write(&path, bytes).unwrap();
    run("repair-lost", 4, &[]);
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
    // A filter without a meaning is refused, with a reason.
    for (verb, filter, why) in [
        ("summary", "--group", "whole log"),
        ("summary", "--from", "whole log"),
        ("summary", "--to", "whole log"),
        ("summary", "--type", "whole log"),
        ("summary", "--limit", "whole log"),
        ("segments", "--type", "tail --type"),
        ("verify", "--from", "verify --group"),
        ("verify", "--to", "verify --group"),
    ] {
        let run = dump(&[verb, text(&data), filter, "1"]);
        assert_eq!((run.code, run.out.as_str()), (2, ""), "{verb} {filter}");
        assert!(run.err.contains(why), "{verb} {filter}: {}", run.err);
    }
    // All others are taken.
    for verb in ["segments", "groups", "entries", "state", "stats", "verify", "tail"] {
        for (filter, value) in
            [("--group", "1-9"), ("--from", "1"), ("--to", "9"), ("--limit", "3")]
        {
            if verb == "verify" && (filter == "--from" || filter == "--to") {
                continue;
            }
            let run = dump(&[verb, text(&data), filter, value]);
            assert_eq!((run.code, run.err.as_str()), (0, ""), "{verb} {filter}");
        }
    }
    for dir in [&nowhere, &empty] {
        for verb in VERBS.iter().filter(|verb| !["diff", "completions"].contains(verb)) {
            let more: &[&str] = if *verb == "repair" { &["--dry-run"] } else { &[] };
            let run = dump(&[&[verb, text(dir)], more].concat());
            assert_eq!((run.code, run.out.as_str()), (3, ""), "{verb}");
            assert!(run.err.starts_with("catamaran-dump: "), "{}", run.err);
        }
    }
    assert_eq!(dump(&["diff", text(&data), text(&nowhere)]).code, 3);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        check(&format!("completions-{shell}.txt"), 0, &["completions", shell]);
        let script = dump(&["completions", shell]).out;
        for word in VERBS.iter().chain(&["keep-damaged", "follow"]) {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    assert_eq!(dump(&["completions", "no-such-shell"]).code, 2);
}

/// What bash offers for the last of these words.
fn bash_offers(words: &[&str]) -> Option<String> {
    let script = dump(&["completions", "bash"]).out;
    let (last, list) = (words.len() - 1, words.join(" "));
    let ask = format!(
        "{script}\nf=$(complete -p catamaran-dump | sed 's/.*-F \\([^ ]*\\).*/\\1/')\n\
         COMP_WORDS=({list}); COMP_CWORD={last}\n\
         $f catamaran-dump '{}' '{}'; echo \"${{COMPREPLY[@]}}\"",
        words[last],
        words[last - 1]
    );
    let run = std::process::Command::new("bash").args(["--norc", "-c", &ask]).output().ok()?;
    Some(String::from_utf8_lossy(&run.stdout).into_owned())
}

#[test]
fn bash_completes_verbs_and_their_options() {
    let Some(verbs) = bash_offers(&["catamaran-dump", "re"]) else {
        // Past the harness, which would keep it to itself.
        let line = "\n*** SKIPPED bash_completes_verbs_and_their_options: no bash here\n";
        return std::io::stderr().write_all(line.as_bytes()).unwrap();
    };
    assert_eq!(verbs.trim(), "repair");
    for (verb, option) in [("repair", "--out"), ("tail", "--follow"), ("diff", "--common")] {
        let offered = bash_offers(&["catamaran-dump", verb, "--"]).unwrap();
        assert!(offered.contains(option), "{verb}: {offered:?}");
    }
}

/// From the start over one append to the end, which is that the directory is gone: all that is printed, in each form.
#[test]
fn followed_until_it_is_gone() {
    use std::io::{BufRead, BufReader, Read};
    for (format, arg) in FORMS {
        let temp = tempfile::tempdir().unwrap();
        let data = temp.path().join("data");
        build(&data, 1);
        let mut child = command(&["tail", text(&data), "-f", "-n", "2", "-o", arg])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut shown = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let before = dump(&["tail", text(&data), "-n", "2", "-o", "jsonl"]).out.lines().count();
        // Its rows, and in a table what stands above them.
        for _ in 0..before + usize::from(format == "txt") {
            assert!(out.read_line(&mut shown).unwrap() > 0, "{shown}");
        }
        let log = open(&data);
        let mut batch = catamaran::log::LogBatch::new();
        batch.append(1, [entry(9, 6, folded(&[put(b"late", b"1")]))]);
        log.write(batch).unwrap();
        drop(log);
        let appends = |shown: &str| shown.lines().last().is_some_and(|row| row.contains("append"));
        while !appends(&shown) {
            assert!(out.read_line(&mut shown).unwrap() > 0, "{shown}");
        }
        std::fs::remove_dir_all(&data).unwrap();
        out.read_to_string(&mut shown).unwrap();
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(3), "{err}");
        fixture::golden::golden(&format!("tail-follow.{format}"), &shown);
        let err = err.replace(text(temp.path()), "TEMP");
        fixture::golden::golden("tail-follow.err.txt", &err);
    }
}

/// Once the first rot in a log was where following began, wherever it lay: `-n` counted for nothing.
#[test]
fn rot_is_not_where_following_begins() {
    let temp = tempfile::tempdir().unwrap();
    build(temp.path(), 1);
    fixture::golden::spoil(temp.path(), b"key16", 100);
    let tail = ["tail", text(temp.path()), "-f", "--to", "18"];
    for (format, arg) in FORMS {
        // Of eighteen records the fourteenth is damaged.
        let before = dump(&[&tail[..], &["-n", "2", "-o", arg]].concat());
        assert_eq!((before.code, before.err.as_str()), (0, ""), "{}", before.out);
        fixture::golden::golden(&format!("tail-follow-rot-before.{format}"), &before.out);
        let within = dump(&[&tail[..], &["-n", "5", "-o", arg]].concat());
        assert_eq!((within.code, within.err.as_str()), (4, ""), "{}", within.out);
        fixture::golden::golden(&format!("tail-follow-damaged.{format}"), &within.out);
    }
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
