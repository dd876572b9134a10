//! `repair`: the new log opens and holds exactly what it is said to hold; the old one stays as it was; what
//! is damaged never comes back as if it were whole.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod fixture;

use catamaran::env::os::OsDisk;
use catamaran::log::{Entry, Log, LogBatch, Options};
use fixture::golden::spoil;
use fixture::*;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Every file of a log directory.
fn content(data: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = std::fs::read_dir(data.join("log")).unwrap().map(|file| file.unwrap().path());
    files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// A group as a log has it.
#[derive(Clone, PartialEq, Debug)]
struct Held {
    truncated: (u64, u64),
    state: Option<Vec<u8>>,
    entries: Vec<Entry>,
}

fn held(log: &Log) -> BTreeMap<u64, Held> {
    let one = |id: u64| {
        let at = log.truncated(id);
        let entries = log.entries(id, log.first_index(id), log.last_index(id) + 1, u64::MAX);
        let state = log.state(id).map(|state| state.to_vec());
        (id, Held { truncated: (at.index, at.term), state, entries: entries.unwrap() })
    };
    log.groups().into_iter().map(one).collect()
}

/// Opens a repaired log: nothing may be amiss with it.
fn open_new(dir: &Path) -> BTreeMap<u64, Held> {
    let options = Options { segment_bytes: 64 << 10, spare_segments: 1, ..Options::default() };
    let (log, recovery) = Log::open(Arc::new(OsDisk), dir, options).unwrap();
    assert!(recovery.quarantined.is_empty() && recovery.harmless.is_empty(), "{recovery:?}");
    assert!(recovery.torn.is_none(), "{recovery:?}");
    held(&log)
}

/// Runs repair and returns exit code, page, and what the new log holds.
fn repair(data: &Path, out: &Path, more: &[&str]) -> (i32, Value, BTreeMap<u64, Held>) {
    let before = content(data);
    let args = [&["repair", text(data), "--out", text(out), "-o", "json"], more].concat();
    let run = dump(&args);
    assert!(run.code == 0 || run.code == 4, "{} {}", run.code, run.err);
    assert_eq!(run.err, "");
    assert_eq!(content(data), before, "the old log was touched");
    assert!(!out.with_extension("partial").exists());
    // Nothing but what is said: before the engine opens it, the dumper's own view agrees with the page.
    assert_eq!(dump(&["verify", text(out)]).code, 0);
    let page: Value = serde_json::from_str(&run.out).unwrap();
    let new = open_new(out);
    for row in page["groups"].as_array().unwrap() {
        let group = row["group"].as_u64().unwrap();
        let entries = new.get(&group).map_or(0, |held| held.entries.len() as u64);
        assert_eq!(row["entries"], entries, "{row}");
        assert_eq!(row["outcome"] == "left-out", !new.contains_key(&group), "{row}");
    }
    let clean = |row: &Value| row["outcome"] == "whole";
    let all = page["groups"].as_array().unwrap().iter().all(clean);
    let lost = !page["lost"].as_array().unwrap().is_empty();
    assert_eq!(run.code, if all && !lost { 0 } else { 4 }, "{page:#}");
    (run.code, page, new)
}

fn row(page: &Value, group: u64) -> &Value {
    page["groups"].as_array().unwrap().iter().find(|row| row["group"] == group).unwrap()
}

/// Flips a bit in the directory of the record with this number.
fn spoil_record(data: &Path, seq: u64) {
    let run = dump(&["tail", text(data), "--from", &seq.to_string(), "-n", "1", "-o", "jsonl"]);
    let row: Value = serde_json::from_str(run.out.lines().next().unwrap()).unwrap();
    assert_eq!(row["seq"], seq);
    let path = data.join("log").join(row["file"].as_str().unwrap());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[row["offset"].as_u64().unwrap() as usize + 49] ^= 0x40;
    std::fs::write(&path, &bytes).unwrap();
}

#[test]
fn a_sound_log_is_copied_whole() {
    let temp = tempfile::tempdir().unwrap();
    let (data, out) = (temp.path().join("data"), temp.path().join("new/log"));
    build(&data, 1);
    let (code, page, new) = repair(&data, &out, &[]);
    assert_eq!((code, &page["verdict"]), (0, &"whole".into()), "{page:#}");
    let old = held(&open(&data));
    assert_eq!(new, old);
    // Again, from the copy (its log directory itself), into a directory that is there and empty.
    let again = temp.path().join("again");
    std::fs::create_dir(&again).unwrap();
    let run = dump(&["repair", text(&out), "--out", text(&again)]);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    assert_eq!(open_new(&again), old);
}

#[test]
fn a_torn_tail_is_no_loss() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("data");
    {
        let log = open(&data);
        for index in 1..=3 {
            let mut batch = LogBatch::new();
            batch.append(1, [entry(index, 1, folded(&[put(b"torn-key", b"value")]))]);
            log.write(batch).unwrap();
        }
    }
    let path = segments(&data).pop().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(8).rposition(|window| window == b"torn-key").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let (code, page, new) = repair(&data, &temp.path().join("new"), &[]);
    assert_eq!(code, 0, "{page:#}");
    assert_eq!(new[&1].entries.len(), 2);
    assert!(page["notes"][0].as_str().unwrap().contains("never acknowledged"), "{page:#}");
}

#[test]
fn a_damaged_group_stays_out_and_a_node_is_told() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("data");
    build(&data, 1);
    let old = {
        let temp = tempfile::tempdir().unwrap();
        build(temp.path(), 1);
        held(&open(temp.path()))
    };
    spoil(&data, b"key16", 100);
    let (code, page, new) = repair(&data, &temp.path().join("new"), &[]);
    assert_eq!((code, &page["verdict"]), (4, &"incomplete".into()));
    assert_eq!((row(&page, 1)["outcome"].as_str(), &new[&1]), (Some("whole"), &old[&1]));
    assert_eq!(new[&0], old[&0]);
    let (two, fence) = (row(&page, 2), &new[&2]);
    assert_eq!(two["outcome"], "fenced", "{two}");
    assert_eq!((&two["state"], &two["last_good"]), (&"dropped".into(), &15.into()), "{two}");
    assert!(two["why"].as_str().unwrap().contains(".seg at "), "{two}");
    assert_eq!((fence.truncated, fence.entries.len()), ((0, 0), 0));
    assert_ne!(fence.state.as_ref().unwrap().len(), 24, "raft could start from it");

    // On demand its sound prefix is kept, and its state as it was.
    let (code, page, new) = repair(&data, &temp.path().join("kept"), &["--keep-damaged"]);
    assert_eq!((code, row(&page, 2)["outcome"].as_str()), (4, Some("cut")));
    let (found, whole) = (&new[&2], &old[&2]);
    assert_eq!((found.truncated, &found.state), (whole.truncated, &whole.state));
    assert_eq!(found.entries, whole.entries[..1]);
    let two = row(&page, 2);
    assert_eq!(two["dropped_entries"], 3, "17 and 18 lie behind the gap");
    assert_eq!(two["unreadable_entries"], 1, "16 is the gap");
}

#[test]
fn a_log_that_is_no_nodes_has_no_fences() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("data");
    {
        let log = open(&data);
        for index in 1..=3u8 {
            let mut batch = LogBatch::new();
            for group in [1, 2] {
                let data = folded(&[put(format!("g{group}i{index}").as_bytes(), b"value")]);
                batch.append(group, [entry(index.into(), 1, data)]);
            }
            log.write(batch).unwrap();
        }
        log.barrier().unwrap();
    }
    spoil(&data, b"g1i2", 0);
    let (code, page, new) = repair(&data, &temp.path().join("new"), &[]);
    assert_eq!((code, row(&page, 1)["outcome"].as_str()), (4, Some("left-out")));
    assert_eq!(new.keys().copied().collect::<Vec<_>>(), [2]);
    assert_eq!(new[&2].entries.len(), 3);
}

/// The record that is lost could have been anybody's: who did not say everything anew since is not whole.
#[test]
fn records_lost_without_a_name() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("data");
    {
        let log = open(&data);
        let write = |fill: &dyn Fn(&mut LogBatch)| {
            let mut batch = LogBatch::new();
            fill(&mut batch);
            log.write(batch).unwrap();
        };
        let entries = |from: u64, to: u64, term| {
            (from..=to).map(move |index| entry(index, term, index.to_string().into()))
        };
        write(&|batch| batch.set_state(0, ident(1)));
        write(&|batch| {
            for group in 1..=4 {
                batch.append(group, entries(1, 4, 1));
                batch.set_state(group, hard_state(1, 1, 2));
            }
        });
        // Lost: group 1's overwrite, among others.
        write(&|batch| {
            batch.append(1, entries(3, 3, 2));
            batch.append(2, entries(5, 5, 1));
        });
        write(&|batch| {
            batch.append(1, entries(4, 5, 2));
            batch.set_state(1, hard_state(2, 1, 4));
        });
        // Starts anew from a snapshot: nothing older counts.
        write(&|batch| {
            batch.reset(3, at(10, 2));
            batch.append(3, entries(11, 12, 2));
            batch.set_state(3, hard_state(2, 3, 11));
        });
        // The same, but its vote is older than the loss.
        write(&|batch| {
            batch.reset(4, at(10, 2));
            batch.append(4, entries(11, 12, 2));
        });
        log.barrier().unwrap();
    }
    spoil_record(&data, 3);
    let options = Options { segment_bytes: SEGMENT_BYTES, ..Options::default() };
    let copy = temp.path().join("refused");
    std::fs::create_dir(&copy).unwrap();
    for (path, bytes) in content(&data) {
        std::fs::write(copy.join(path.file_name().unwrap()), bytes).unwrap();
    }
    let refused = Log::open(Arc::new(OsDisk), &copy, options).is_err();

    let (code, page, new) = repair(&data, &temp.path().join("new"), &[]);
    assert_eq!(code, 4);
    if refused {
        assert!(page["lost"].to_string().contains("record 3"), "{page:#}");
        let outcomes: Vec<_> =
            (0..=4).map(|id| row(&page, id)["outcome"].as_str().unwrap()).collect();
        assert_eq!(outcomes, ["left-out", "left-out", "left-out", "whole", "left-out"]);
        assert_eq!(new.keys().copied().collect::<Vec<_>>(), [3]);
        let indexes: Vec<u64> = new[&3].entries.iter().map(|entry| entry.index).collect();
        assert_eq!((new[&3].truncated, indexes), ((10, 2), vec![11, 12]));
    } else {
        // An engine that knows whose records they were.
        assert_eq!(row(&page, 1)["outcome"], "fenced", "{page:#}");
        assert_eq!(row(&page, 2)["outcome"], "fenced", "{page:#}");
    }
    let (code, page, new) = repair(&data, &temp.path().join("kept"), &["--keep-damaged"]);
    assert_eq!(code, 4);
    // Of group 1 what was there before the loss: with what came after, it would be a log that never was.
    let kept = |id: u64| new[&id].entries.iter().map(|e| (e.index, e.term)).collect::<Vec<_>>();
    assert!(kept(1).iter().all(|(_, term)| *term == 1) && kept(1).len() >= 3, "{page:#}");
    assert!(new[&1].state.as_deref() == Some(&hard_state(2, 1, 4)[..]), "the newest there is");
    assert_eq!(kept(2).len(), 4);
    assert!(new.contains_key(&0), "the danger was accepted");
}

#[test]
fn a_segment_that_is_missing_or_has_no_header() {
    for (which, how) in [(0, "missing"), (0, "header"), (1, "header")] {
        let temp = tempfile::tempdir().unwrap();
        let data = temp.path().join("data");
        build(&data, 1);
        let files = segments(&data);
        assert_eq!(files.len(), 2);
        if how == "missing" {
            std::fs::remove_file(&files[which]).unwrap();
        } else {
            let mut bytes = std::fs::read(&files[which]).unwrap();
            bytes[..4096].fill(0xaa);
            std::fs::write(&files[which], bytes).unwrap();
        }
        let (code, page, new) = repair(&data, &temp.path().join("new"), &[]);
        assert_eq!(code, 4, "{which} {how}");
        assert!(!page["lost"].as_array().unwrap().is_empty(), "{which} {how} {page:#}");
        assert!(new.is_empty() || how == "header", "{which} {how} {page:#}");
        assert!(!new.contains_key(&0), "a node would start on it: {which} {how} {page:#}");
        let (code, ..) = repair(&data, &temp.path().join("kept"), &["--keep-damaged"]);
        assert_eq!(code, 4, "{which} {how}");
    }
}

/// Whatever byte is hit: a group that is said to be whole is, and of others nothing is kept that was not
/// there, as it was at some time.
#[test]
fn any_byte() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("data");
    // Every stage of every group: position and entries.
    let mut past: BTreeMap<u64, Vec<Held>> = BTreeMap::new();
    let last = {
        let log = open(&data);
        let mut write = |fill: &dyn Fn(&mut LogBatch)| {
            let mut batch = LogBatch::new();
            fill(&mut batch);
            log.write(batch).unwrap();
            let now = held(&log);
            now.iter().for_each(|(id, held)| past.entry(*id).or_default().push(held.clone()));
        };
        write(&|batch| batch.set_state(0, ident(1)));
        for step in 1..=14u64 {
            write(&|batch| {
                for group in 1..=2 {
                    // Every fifth step a new leader overwrites the last two entries.
                    let from = if step % 5 == 0 { step * 2 - 3 } else { step * 2 - 1 };
                    let value = vec![b'v'; 150 * group as usize];
                    let made = |index| {
                        entry(index, 1 + step / 5, folded(&[put(&index.to_le_bytes(), &value)]))
                    };
                    batch.append(group, (from..=step * 2).map(made));
                    if step % 3 == 0 {
                        batch.set_state(group, hard_state(1 + step / 5, group, step));
                    }
                }
                if step == 7 {
                    batch.compact_to(1, at(9, 2));
                }
            });
        }
        log.barrier().unwrap();
        held(&log)
    };
    let files = segments(&data);
    let (mut whole, mut cut, mut run) = (0, 0, 0);
    for path in files {
        let sound = std::fs::read(&path).unwrap();
        let used = sound.iter().rposition(|byte| *byte != 0).unwrap() + 50;
        for at in (0..used.min(sound.len())).step_by(613).chain([0, 20, 2050]) {
            let mut bytes = sound.clone();
            bytes[at] ^= 0x21;
            std::fs::write(&path, &bytes).unwrap();
            run += 1;
            let out = temp.path().join(format!("new{run}"));
            let more: &[&str] = if run % 2 == 0 { &["--keep-damaged"] } else { &[] };
            let (_, page, new) = repair(&data, &out, more);
            for (id, found) in &new {
                match row(&page, *id)["outcome"].as_str().unwrap() {
                    "whole" => {
                        whole += 1;
                        assert_eq!(*found, last[id], "{} {at} {page:#}", path.display());
                    }
                    "cut" => {
                        cut += 1;
                        let was = |then: &Held| {
                            let first = found.truncated.0 + 1;
                            let from = then.entries.iter().position(|entry| entry.index == first);
                            let later = &then.entries[from.unwrap_or(then.entries.len())..];
                            later.starts_with(&found.entries)
                        };
                        assert!(past[id].iter().any(was), "{} {at} {page:#}", path.display());
                    }
                    _ => assert!(found.entries.is_empty()),
                }
            }
            std::fs::remove_dir_all(&out).unwrap();
        }
        std::fs::write(&path, &sound).unwrap();
    }
    assert!(whole > 20 && cut > 5, "{whole} whole, {cut} cut in {run} runs");
}

#[test]
fn what_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let (data, new) = (temp.path().join("data"), temp.path().join("new"));
    build(&data, 1);
    let before = content(&data);
    let check = |code: i32, why: &str, args: &[&str]| {
        let run = dump(&[&["repair"], args].concat());
        assert_eq!((run.code, run.out.as_str()), (code, ""), "{args:?} {}", run.err);
        assert!(run.err.contains(why), "{args:?}: {}", run.err);
    };
    let full = temp.path().join("full");
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("x"), "").unwrap();
    check(2, "not empty", &[text(&data), "--out", text(&full)]);
    check(2, "not a directory", &[text(&data), "--out", text(&full.join("x"))]);
    check(3, "Not a directory", &[text(&data), "--out", text(&full.join("x/new"))]);
    for inside in [data.clone(), data.join("log"), data.join("new/er"), data.join("log/new")] {
        check(2, "lies in the directory", &[text(&data), "--out", text(&inside)]);
    }
    check(2, "lies in", &[text(&data.join("log")), "--out", text(&data.join("log/../log/x"))]);
    let link = temp.path().join("link");
    std::os::unix::fs::symlink(&data, &link).unwrap();
    check(2, "lies in", &[text(&data), "--out", text(&link.join("new"))]);
    // Nothing is read for a place that cannot be had: the source need not even be sound.
    let nowhere = temp.path().join("nowhere");
    std::os::unix::fs::symlink(temp.path().join("no/such/place"), &nowhere).unwrap();
    for out in [nowhere.clone(), nowhere.join("new")] {
        check(
            2,
            "nowhere: a link to a place where nothing is",
            &[text(&data), "--out", text(&out)],
        );
    }
    assert!(!temp.path().join("nowhere.partial").exists());
    std::fs::remove_file(&nowhere).unwrap();
    check(2, "--out", &[text(&data)]);
    check(2, "cannot be used with", &[text(&data), "--dry-run", "--out", text(&new)]);
    check(3, "no log here", &[text(&full), "--out", text(&new)]);
    let stale = temp.path().join("new.partial");
    std::fs::create_dir(&stale).unwrap();
    check(2, "interrupted", &[text(&data), "--out", text(&new)]);
    std::fs::remove_dir(&stale).unwrap();
    {
        let _log = open(&data);
        check(3, "stop the node", &[text(&data), "--out", text(&new)]);
        check(3, "stop the node", &[text(&data), "--dry-run"]);
    }
    assert!(!new.exists() && !stale.exists());
    // A dry run says the same and writes nothing.
    let data = temp.path().join("other");
    build(&data, 1);
    spoil(&data, b"key16", 100);
    let before_other = content(&data);
    let dry = dump(&["repair", text(&data), "--dry-run", "-o", "jsonl"]);
    let wet = dump(&["repair", text(&data), "--out", text(&new), "-o", "jsonl"]);
    assert_eq!((dry.code, wet.code, &dry.out), (4, 4, &wet.out));
    assert_eq!(content(&data), before_other);
    drop(before);
}

/// A destination that takes no more: an error, and nothing is left that could be taken for a log.
#[test]
fn a_copy_that_fails_is_not_there() {
    let temp = tempfile::tempdir().unwrap();
    let (data, new) = (temp.path().join("data"), temp.path().join("new"));
    build(&data, 1);
    let script = "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\"";
    let exe = env!("CARGO_BIN_EXE_catamaran-dump");
    let args = ["-c", script, exe, "repair", text(&data), "--out", text(&new)];
    let run = std::process::Command::new("sh").args(args).output().unwrap();
    let err = String::from_utf8_lossy(&run.stderr);
    assert_eq!((run.status.code(), run.stdout.as_slice()), (Some(3), &b""[..]), "{err}");
    assert!(err.contains("new.partial"), "{err}");
    assert!(!new.exists() && !new.with_extension("partial").exists());
    assert_eq!(repair(&data, &new, &[]).0, 0);
}

/// A copy has no lock file, and gets none.
#[test]
fn no_lock_file_no_trace() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("data");
    build(&data, 1);
    std::fs::remove_file(data.join("log/LOCK")).unwrap();
    assert_eq!(repair(&data, &temp.path().join("new"), &[]).0, 0);
}
