//! One flipped byte, anywhere in any segment: `verify` exits 4 and names the file and the place, or the
//! byte lies where nothing is stated to be durable. Looking at a damaged log never fails otherwise.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod fixture;

use fixture::*;
use serde_json::Value;
use std::path::Path;

fn verify(data: &Path) -> (i32, Value) {
    let run = dump(&["verify", data.to_str().unwrap(), "-o", "json"]);
    let json = serde_json::from_str(&run.out).unwrap_or(Value::Null);
    (run.code, json)
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_string()
}

/// Where records lie, by file: (start, end).
fn records(data: &Path) -> Vec<(String, u64, u64)> {
    let run = dump(&["tail", data.to_str().unwrap(), "-n", "1000", "-o", "jsonl"]);
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        let from = number(&row, "offset");
        (row["file"].as_str().unwrap().to_string(), from, from + number(&row, "bytes"))
    };
    run.out.lines().map(row).collect()
}

/// Offsets in every region of the file: all of both headers, some of the rest of the first block, all of
/// each record's header and directory, some of its body, some padding, some unused rest.
fn samples(file: &str, len: u64, records: &[(String, u64, u64)]) -> Vec<u64> {
    let mut at: Vec<u64> = (0..64).step_by(5).chain(2048..2112).step_by(5).collect();
    at.extend([8, 16, 60, 63, 64, 1000, 2047, 2112, 4095]);
    for (_, from, to) in records.iter().filter(|(name, ..)| name == file) {
        at.extend((*from..*to.min(&(from + 96))).step_by(3));
        at.extend((*from..*to).step_by(211));
        at.extend([to - 1, *to, (to + 4096) / 4096 * 4096 - 1]);
    }
    at.push(len - 1);
    at.retain(|at| *at < len);
    at.sort_unstable();
    at.dedup();
    at
}

#[test]
fn anywhere_in_any_segment() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path();
    build(data, 1);
    let records = records(data);
    let (mut named, mut beyond) = (0, 0);
    for path in segments(data) {
        let sound = std::fs::read(&path).unwrap();
        let file = name(&path);
        for at in samples(&file, sound.len() as u64, &records) {
            let mut bytes = sound.clone();
            bytes[at as usize] ^= 0x10;
            std::fs::write(&path, &bytes).unwrap();
            let (code, page) = verify(data);
            if code == 4 {
                named += 1;
                let findings = page["findings"].as_array().unwrap();
                // The finding's offset is where the damaged header, directory, body or padding begins.
                let block = [(file.clone(), 0, 64), (file.clone(), 2048, 2112)];
                let holder = block
                    .iter()
                    .chain(&records)
                    .find(|(name, from, to)| *name == file && *from <= at && at < *to);
                let from = holder.map_or(at, |(_, from, _)| *from);
                let hit = findings.iter().find(|finding| {
                    finding["kind"] == "rot"
                        && finding["file"] == file.as_str()
                        && (from..=at).contains(&number(finding, "offset"))
                });
                let hit = hit.unwrap_or_else(|| panic!("{file} {at}: {page:#}"));
                assert!(hit["expected"].is_string() && hit["found"].is_string(), "{hit}");
                // A record's checksum does not cover the magic number before it.
                let magic = hit["detail"].as_str().unwrap().contains("magic number");
                assert!(hit["expected"] != hit["found"] || magic, "{hit}");
                assert!(!magic || at < from + 4, "{hit}");
                // Whose last good index is it? The group's, or (when it cannot be told) everybody's.
                assert!(hit["last_good"].is_u64() || hit["group"].is_null());
                assert!(page["groups"].is_array());
            } else {
                beyond += 1;
                assert_eq!(code, 0, "{file} {at}");
                let segments = page["segments"].as_array().unwrap();
                let extent = segments.iter().find(|s| s["file"] == file.as_str()).unwrap();
                let durable_end = number(extent, "durable_end");
                assert!(at >= durable_end, "{file} {at} goes unnoticed: {page:#}");
            }
        }
        std::fs::write(&path, &sound).unwrap();
    }
    assert_eq!(verify(data).0, 0);
    assert!(named > 200 && beyond > 10, "{named} named, {beyond} beyond");
}

#[test]
fn damage_to_one_group_names_its_last_good_index() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path();
    build(data, 1);
    let path = segments(data).remove(0);
    let mut bytes = std::fs::read(&path).unwrap();
    // In the value of key16: group 2's entry 16.
    let at = bytes.windows(5).position(|window| window == b"key16").unwrap() + 100;
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let (code, page) = verify(data);
    assert_eq!(code, 4);
    let finding = &page["findings"][0];
    assert_eq!((number(finding, "group"), number(finding, "last_good")), (2, 15));
    let good = |group: usize| number(&page["groups"][group], "last_good");
    assert_eq!((good(1), good(2)), (8, 15), "{page:#}");
    // What is shown may be chosen; the verdict is of everything.
    let shown = |args: &[&str]| {
        let run = dump(&[&["verify", data.to_str().unwrap(), "-o", "json"], args].concat());
        let page: Value = serde_json::from_str(&run.out).unwrap();
        let count = |name: &str| page[name].as_array().unwrap().len();
        (run.code, page["verdict"].as_str().unwrap().to_owned(), count("findings"), count("groups"))
    };
    assert_eq!(shown(&["--type", "rot"]).2, 1);
    assert_eq!(shown(&["--type", "torn-tail"]), (4, "damaged".into(), 0, 3));
    assert_eq!(shown(&["--group", "1", "--type", "rot"]), (4, "damaged".into(), 0, 1));
    // The other verbs show what there is, say that it is not all, and exit 4.
    for verb in ["summary", "segments", "groups", "entries", "state", "stats", "tail"] {
        let run = dump(&[verb, data.to_str().unwrap()]);
        assert_eq!(run.code, 4, "{verb}");
        assert!(!run.out.is_empty(), "{verb}");
    }
    let entries = dump(&["entries", data.to_str().unwrap(), "--group", "1", "-o", "jsonl"]);
    assert_eq!(entries.out.lines().count(), 2);
    assert!(entries.err.contains("damaged"));
}

#[test]
fn a_torn_tail_is_reported_and_fine() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path();
    {
        let log = open(data);
        for index in 1..=2 {
            let mut batch = catamaran::log::LogBatch::new();
            batch.append(1, [entry(index, 1, folded(&[put(b"key", b"value")]))]);
            log.write(batch).unwrap();
        }
    }
    let path = segments(data).pop().unwrap();
    let last = records(data).pop().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[last.2 as usize - 1] ^= 0xff;
    std::fs::write(&path, &bytes).unwrap();
    let (code, page) = verify(data);
    assert_eq!((code, &page["verdict"]), (0, &"sound".into()), "{page:#}");
    assert!(page["findings"].as_array().unwrap().iter().any(|f| f["kind"] == "torn tail"));
    // The torn record is nobody's entry, and looking at it is no failure.
    let run = dump(&["groups", data.to_str().unwrap(), "-o", "jsonl"]);
    assert_eq!(run.code, 0);
    assert!(run.out.contains("\"last\":1"), "{}", run.out);
    assert_eq!(dump(&["tail", data.to_str().unwrap()]).code, 0);
}

#[test]
fn a_segment_without_a_header_is_corruption() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path();
    build(data, 1);
    let path = segments(data).remove(0);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[..4096].fill(0xaa);
    std::fs::write(&path, &bytes).unwrap();
    for verb in ["verify", "segments", "summary", "tail", "entries"] {
        let run = dump(&[verb, data.to_str().unwrap()]);
        assert_eq!(run.code, 4, "{verb}");
        let said = format!("{}{}", run.out, run.err);
        assert!(said.contains(&name(&path)) || said.contains("yes, see verify"), "{verb}: {said}");
        // The rest is shown.
        assert!(run.out.lines().count() > 1, "{verb}: {}", run.out);
    }
}

/// Copies, renames or removes a segment by its place in the directory.
fn misplaced(data: &Path, what: &str) {
    let found = segments(data);
    let (first, last) = (&found[0], &found[found.len() - 1]);
    let wrong = data.join("log/0000000000000077.seg");
    match what {
        "first copied" => _ = std::fs::copy(first, wrong).unwrap(),
        "last copied" => _ = std::fs::copy(last, wrong).unwrap(),
        "first renamed" => std::fs::rename(first, wrong).unwrap(),
        _ => std::fs::rename(last, wrong).unwrap(),
    }
}

#[test]
fn a_segment_under_a_wrong_name_is_damage() {
    for what in ["first copied", "last copied", "first renamed", "last renamed"] {
        let temp = tempfile::tempdir().unwrap();
        let data = temp.path();
        build(data, 1);
        misplaced(data, what);
        let (code, page) = verify(data);
        assert_eq!(code, 4, "{what}: {page:#}");
        let findings = page["findings"].as_array().unwrap();
        let named = |finding: &&Value| finding["file"] == "0000000000000077.seg";
        let hit = findings.iter().find(named).unwrap_or_else(|| panic!("{what}: {page:#}"));
        assert!(hit["detail"].as_str().unwrap().contains("named 77, its header says"), "{hit}");
        // What is under its own name is listed.
        let files = page["segments"].as_array().unwrap().len();
        assert_eq!(files, segments(data).len() - 1, "{what}: {page:#}");
        let repaired = dump(&["repair", data.to_str().unwrap(), "--dry-run"]);
        assert_eq!(repaired.code, 4, "{what}: {}", repaired.err);
    }
    // The only one.
    let temp = tempfile::tempdir().unwrap();
    drop(open(temp.path()));
    misplaced(temp.path(), "last renamed");
    let (code, page) = verify(temp.path());
    assert_eq!((code, &page["verdict"]), (4, &"damaged".into()), "{page:#}");
}

#[test]
fn spares_without_a_segment_are_not_sound() {
    // A log that never held a record: it may as well not have been opened to its end.
    let temp = tempfile::tempdir().unwrap();
    drop(open(temp.path()));
    segments(temp.path()).iter().for_each(|path| std::fs::remove_file(path).unwrap());
    let run = dump(&["verify", temp.path().to_str().unwrap()]);
    assert_eq!(run.code, 3, "{} {}", run.out, run.err);
    assert!(run.err.contains("segment"), "{}", run.err);
    // One whose spares have been segments with others before them.
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path();
    build_once(data);
    for _ in 0..3 {
        drop(open(data));
    }
    segments(data).iter().for_each(|path| std::fs::remove_file(path).unwrap());
    let (code, page) = verify(data);
    assert_eq!((code, &page["verdict"]), (4, &"damaged".into()), "{page:#}");
    let repaired = dump(&["repair", data.to_str().unwrap(), "--dry-run"]);
    assert_eq!(repaired.code, 3, "{} {}", repaired.out, repaired.err);
    let refused = catamaran::log::Log::open(
        std::sync::Arc::new(catamaran::env::os::OsDisk),
        &data.join("log"),
        catamaran::log::Options::default(),
    );
    assert!(matches!(refused, Err(catamaran::Error::Corruption { .. })));
}

/// Opens a log and writes so much that a restart copies the last record and no other; what it copies that into is
/// recycled by a later one.
fn build_once(data: &Path) {
    let log = open(data);
    for _ in 0..8 {
        let mut batch = catamaran::log::LogBatch::new();
        let value = [7; 3000];
        batch.append(1, [entry(log.last_index(1) + 1, 1, folded(&[put(b"key", &value)]))]);
        log.write(batch).unwrap();
    }
}

#[test]
fn a_shortened_last_segment_is_damage() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path();
    build(data, 1);
    let path = segments(data).pop().unwrap();
    let sound = std::fs::read(&path).unwrap();
    for len in [4096, 4100, 8192, 12_288, sound.len() - 4096, sound.len() - 1] {
        std::fs::write(&path, &sound[..len]).unwrap();
        let (code, page) = verify(data);
        assert_eq!((code, &page["verdict"]), (4, &"damaged".into()), "{len}: {page:#}");
        let findings = page["findings"].as_array().unwrap();
        let hit = findings.iter().find(|finding| number(finding, "offset") == len as u64);
        assert!(hit.is_some_and(|hit| hit["file"] == name(&path).as_str()), "{len}: {page:#}");
        let repaired = dump(&["repair", data.to_str().unwrap(), "--dry-run"]);
        let harmless =
            repaired.out.contains("without harm  ") && repaired.out.contains("was made with");
        assert!(repaired.code == 4 || harmless, "{len}: {}{}", repaired.out, repaired.err);
    }
}
