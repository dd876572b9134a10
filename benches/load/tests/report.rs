//! `catamaran-load report` from outside: its words against a golden file (`UPDATE_GOLDEN=1` writes it anew), and that its
//! page is whole and needs nothing from elsewhere.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};

/// A result as `run --json` writes it, of what the report reads.
fn result(commit: &str, ops_per_s: f64, p99: f64) -> Value {
    let stage = |stage: &str, mean: f64| {
        json!({
            "stage": stage, "count": 1000, "mean_us": mean, "p50_us": mean, "p90_us": mean * 2.0,
            "p99_us": mean * 3.0, "p999_us": mean * 4.0, "max_us": mean * 5.0
        })
    };
    json!({
        "profile": "durable", "nodes": 3, "regions": 64, "clients": 256, "batch": 128, "key_size": 16,
        "value_size": 64, "distribution": "uniform", "one_region_batches": true, "read_ratio": 0.0,
        "state": "memory", "rate": null, "duration_s": 3.0, "ops_per_s": ops_per_s, "requests": 30000,
        "fsyncs_per_s": 400.0, "bytes_written": 1 << 30, "cpu_us_per_op": 1.5, "rss_bytes": 1 << 29,
        "latency_us": {"p50": p99 / 4.0, "p90": p99 / 2.0, "p99": p99, "p999": p99 * 2.0, "max": p99 * 3.0},
        "latency_points": [[0.0, 200.0], [50.0, p99 / 4.0], [99.0, p99], [99.9, p99 * 2.0], [100.0, p99 * 3.0]],
        "stages": [
            stage("queue", 100.0), stage("propose", 200.0), stage("log_wait", 300.0), stage("log_write", 900.0),
            stage("replicate", 1500.0), stage("apply_wait", 50.0), stage("apply", 400.0),
            stage("answer", 80.0), stage("whole", p99 / 4.0)
        ],
        "ops_by_second": [ops_per_s, ops_per_s * 0.9, ops_per_s * 1.1],
        "errors": {}, "wrong_reads": 0, "verified": null, "machine": {"cpu": "test"}, "commit": commit
    })
}

fn load(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_catamaran-load"));
    command.current_dir(dir).arg("report").args(args).output().unwrap()
}

fn write(dir: &Path, name: &str, result: &Value) {
    std::fs::write(dir.join(name), result.to_string()).unwrap();
}

/// Six files: two commits with repetitions, an older one without stages, another kind of work.
fn files() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, commit, ops, p99) in [
        ("a1.json", "aaaa", 1_000_000.0, 4000.0),
        ("a2.json", "aaaa", 1_100_000.0, 4400.0),
        ("b1.json", "bbbb", 1_200_000.0, 4300.0),
        ("b2.json", "bbbb", 1_300_000.0, 4600.0),
    ] {
        write(dir.path(), name, &result(commit, ops, p99));
    }
    let mut old = result("cccc", 900_000.0, 5000.0);
    for field in ["stages", "latency_points"] {
        old.as_object_mut().unwrap().remove(field);
    }
    old["regions"] = 48.into();
    old["errors"] = json!({"busy": 3});
    write(dir.path(), "old.json", &old);
    dir
}

#[test]
fn the_words_are_those_of_the_golden_file() {
    let dir = files();
    let output =
        load(dir.path(), &["a1.json", "b1.json", "a2.json", "b2.json", "last year=old.json"]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), errors.as_str()), (Some(0), "plots are in report.html\n"));
    let words = String::from_utf8(output.stdout).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/report.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(golden.parent().unwrap()).unwrap();
        std::fs::write(&golden, &words).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap_or_default();
    assert!(
        words == expected,
        "differs from its golden file; UPDATE_GOLDEN=1 writes it anew:\n{words}"
    );
}

/// Every element that is opened is closed, in order. Enough of a parser for what the page writes.
fn check_elements(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = page.strip_prefix("<!DOCTYPE html>\n").expect("the doctype");
    while let Some(at) = rest.find('<') {
        assert!(
            !rest[..at].contains('>'),
            "a stray > before {}",
            &rest[at..rest.len().min(at + 80)]
        );
        let end = rest[at..].find('>').expect("an element that ends") + at;
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "before {}", &rest[..rest.len().min(80)]);
        } else if !tag.ends_with('/') {
            assert!(tag.matches('"').count().is_multiple_of(2), "{tag}");
            open.push(tag.split_whitespace().next().unwrap());
        }
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest}");
}

#[test]
fn the_page_is_whole_and_stands_alone() {
    let dir = files();
    let output =
        load(dir.path(), &["a1.json", "a2.json", "<b>&=b1.json", "old.json", "--html", "-"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let page = String::from_utf8(output.stdout).unwrap();
    check_elements(&page);
    for foreign in
        ["http", "//", "src=", "href", "@import", "url(", "<script", "<link", "<img", "NaN", "inf"]
    {
        assert!(!page.contains(foreign), "{foreign} in the page");
    }
    assert!(page.contains("&lt;b&gt;&amp;") && page.contains("48"));
    // Throughput, latency, and one waterfall for each set that has stages.
    assert_eq!(page.matches("<svg").count(), 4);
    assert_eq!(page.matches("<polyline").count(), 8, "two plots of four runs");
    for stage in ["queue", "log_write", "replicate", "whole"] {
        assert!(page.contains(&format!(">{stage}</text>")), "{stage}");
    }
    assert!(page.contains("say nothing of stages"));
    assert!(!dir.path().join("report.html").exists());
}

#[test]
fn what_is_no_result_is_refused_by_name() {
    let dir = files();
    for (name, text, why) in [
        ("empty.json", "", "not JSON"),
        ("list.json", "[1, 2]", "no `profile`"),
        ("other.json", "{\"profile\": \"durable\", \"ops_per_s\": \"many\"}", "no `ops_per_s`"),
        ("beside.json", "{\"profile\": \"log\", \"rows\": []}", "--beside"),
    ] {
        std::fs::write(dir.path().join(name), text).unwrap();
        let output = load(dir.path(), &["a1.json", name]);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{message}");
        assert!(message.contains(name) && message.contains(why), "{message}");
    }
    assert_eq!(load(dir.path(), &["nowhere.json"]).status.code(), Some(1));
    assert_eq!(load(dir.path(), &["a1.json", "--html", "none/x.html"]).status.code(), Some(1));
    assert_eq!(load(dir.path(), &[]).status.code(), Some(2));
    assert_eq!(load(dir.path(), &["--help"]).status.code(), Some(0));
    assert!(!dir.path().join("report.html").exists(), "nothing is written before all is read");
    // One alone is shown as well.
    assert_eq!(load(dir.path(), &["old.json"]).status.code(), Some(0));
    assert!(dir.path().join("report.html").exists());
}
