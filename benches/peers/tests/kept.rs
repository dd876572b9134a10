//! What is kept as documentation is what the kept results say.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use catamaran_peers::report::Report;
use catamaran_peers::{durable, table};
use std::path::{Path, PathBuf};

fn member() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_tables_are_made_from_the_results() {
    let names = ["consensus.json", "store.json", "durable.json"];
    let files = names.into_iter().map(|name| member().join("results").join(name));
    let files: Vec<PathBuf> = files.filter(|file| file.exists()).collect();
    let made = table::document(&Report::read_all(&files).unwrap());
    let kept = std::fs::read_to_string(member().join("results.md")).unwrap();
    assert_eq!(kept, made, "make it anew: PARTS=tables benches/peers/compare.sh");
}

#[test]
fn runs_of_one_shape_become_one_row() {
    let dir = tempfile::tempdir().unwrap();
    let ours = r#"{"profile": "durable", "nodes": 3, "regions": 64, "clients": 256, "batch": 128, "value_size": 64,
        "state": "disk", "ops_per_s": 5e5, "latency_us": {"p50": 1.5, "p90": 2, "p99": 3.0}, "more": [], "commit": "abc"}"#;
    let other = r#"{"system": "etcd 3", "clients": 256, "batch": 128, "value": 64,
        "runs": [{"puts_per_s": 1e4, "p50_us": 5.0, "p99_us": 6.0}]}"#;
    let wrong = r#"{"profile": "log", "nodes": 3, "regions": 64, "clients": 256, "batch": 128, "value_size": 64,
        "state": "disk", "ops_per_s": 5e5, "latency_us": {"p50": 1.5, "p99": 3.0}}"#;
    let write = |name: &str, text: &str| {
        let file = dir.path().join(name);
        std::fs::write(&file, text).unwrap();
        file
    };
    let (rows, commit) = durable::read(&[
        write("1", ours),
        write("2", other),
        write("3", &ours.replace("5e5", "6e5")),
        write("4", &ours.replace("\"batch\": 128", "\"batch\": 1")),
    ])
    .unwrap();
    let counts: Vec<(u64, usize)> = rows.iter().map(|row| (row.batch, row.runs.len())).collect();
    assert_eq!(counts, [(128, 2), (128, 1), (1, 1)]);
    assert_eq!(rows[0].runs[1].puts_per_s, 6e5);
    assert_eq!(commit.as_deref(), Some("abc"));
    let later = ours.replace("abc", "abd");
    assert!(durable::read(&[write("7", ours), write("8", &later)]).is_err());
    assert!(durable::read(&[write("5", wrong)]).is_err());
    assert!(durable::read(&[write("6", "{}")]).is_err());
}
