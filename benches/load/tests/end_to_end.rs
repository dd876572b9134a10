//! The load generator from outside: small runs of every profile, verified, and its exit codes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by them")]

use catamaran::{Node, NodeConfig};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::{Command, Output};

fn load(args: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_catamaran-load"))
        .args(args.split_whitespace())
        .output()
        .unwrap()
}

fn run(args: &str) -> Value {
    let output = load(&format!("run --json - {args}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{args}: {e}: {errors}"))
}

fn positive(report: &Value, fields: &[&str]) {
    for field in fields {
        assert!(report[field].as_f64().unwrap_or(0.0) > 0.0, "{field} in {report}");
    }
}

fn state() -> String {
    std::env::var("CATAMARAN_STATE").unwrap_or_else(|_| "disk".to_owned())
}

/// Every stage of the way of a write was measured, and the curve of latencies ends at the slowest.
fn check_stages(report: &Value) {
    let stages = report["stages"].as_array().unwrap();
    let names: Vec<&str> = stages.iter().map(|stage| stage["stage"].as_str().unwrap()).collect();
    assert_eq!(names.first().zip(names.last()), Some((&"queue", &"whole")), "{names:?}");
    for stage in stages {
        positive(stage, &["count", "max_us"]);
        assert!(stage["p50_us"].as_f64() <= stage["p99_us"].as_f64(), "{stage}");
    }
    let points = report["latency_points"].as_array().unwrap();
    assert_eq!(points.last().unwrap()[1], report["latency_us"]["max"]);
}

const SMALL: &str = "--duration 1s --clients 16 --batch 16 --regions 8 --keys 20k";

#[test]
fn durable_loses_nothing_over_a_restart_and_reports_every_promised_field() {
    let report = run(&format!("{SMALL} --verify --read-ratio 0.2 --state {}", state()));
    positive(
        &report,
        &[
            "nodes",
            "regions",
            "clients",
            "batch",
            "key_size",
            "value_size",
            "duration_s",
            "ops",
            "ops_per_s",
            "entries",
            "fsyncs",
            "bytes_written",
            "cpu_s",
            "rss_bytes",
            "reads",
        ],
    );
    assert_eq!((&report["profile"], &report["wrong_reads"]), (&"durable".into(), &0.into()));
    positive(&report["latency_us"], &["p50", "p90", "p99", "p999", "max"]);
    positive(&report["verified"], &["checked"]);
    assert_eq!(
        (&report["verified"]["missing"], &report["verified"]["wrong"]),
        (&0.into(), &0.into())
    );
    assert!(report["errors"].is_object() && report["commit"].is_string());
    positive(&report["machine"], &["cores"]);
    check_stages(&report);
}

#[test]
fn durable_at_a_rate_over_spread_zipfian_batches() {
    let report = run(&format!(
        "{SMALL} --verify --rate 2000 --spread --distribution zipfian --state {}",
        state()
    ));
    // Not more than was aimed at; how much less is the machine's affair.
    let rate = report["ops_per_s"].as_f64().unwrap();
    assert!(rate > 0.0 && rate < 2_500.0, "{rate}");
    assert_eq!(
        (&report["verified"]["missing"], &report["verified"]["wrong"]),
        (&0.into(), &0.into())
    );
}

#[test]
fn consensus_commits() {
    let report = run(&format!("--profile consensus {SMALL}"));
    positive(&report, &["ops", "entries"]);
    assert_eq!(report["verified"], Value::Null);
}

#[test]
fn a_setting_reaches_the_nodes() {
    let alone = "--profile consensus --duration 1s --clients 64 --batch 1 --regions 1 --keys 20k";
    let report = run(&format!("{alone} --set entry_bytes=1"));
    assert_eq!(report["settings"]["entry_bytes"], 1);
    // Nothing shares an entry then. Those of all three nodes are counted, one of which may lag behind; and some answers
    // are of entries from before.
    let count = |field: &str| report[field].as_u64().unwrap();
    let (entries, ops) = (count("entries"), count("ops"));
    assert!(entries + 3 * 64 > 2 * ops, "{entries} entries of {ops} operations");
}

#[test]
fn the_log_alone_holds_what_it_acknowledged() {
    let report = run("--profile log --duration 1s --groups 100 --entries 16 --span 8 --verify");
    positive(&report, &["ops", "entries", "fsyncs", "bytes_written"]);
    positive(&report["log"], &["entries_per_s", "writes_per_s", "window"]);
    assert_eq!(report["stages"], Value::Null);
    assert_eq!(
        (&report["verified"]["missing"], &report["verified"]["wrong"]),
        (&0.into(), &0.into())
    );
}

#[cfg(not(feature = "rivals"))]
#[test]
fn a_build_without_other_logs_says_how_to_get_them() {
    let refused = load("run --profile log --beside raft-engine --duration 1s");
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{message}");
    assert!(message.contains("--features rivals"), "{message}");
}

#[cfg(feature = "rivals")]
#[test]
fn logs_beside_ours_do_the_same_work_in_turn() {
    let shape = "--groups 8 --threads 2 --entries 4 --span 4 --value-size 100 --window 2";
    let report = run(&format!(
        "--profile log --beside raft-engine,raft-log --duration 200ms --repetitions 2 {shape}"
    ));
    let rows = report["rows"].as_array().unwrap();
    let which: Vec<&Value> = rows.iter().map(|row| &row["which"]).collect();
    assert_eq!(which, ["catamaran", "raft-engine", "raft-log"]);
    for row in rows {
        assert_eq!(row["runs"].as_array().unwrap().len(), 2);
    }
    let unknown = load("run --profile log --beside nobody --duration 1s");
    assert_eq!(unknown.status.code(), Some(2));
}

#[test]
fn one_node_serves_many_clients_of_single_writes() {
    let report = run(&format!(
        "--profile disk --duration 1s --clients 500 --keys 20k --verify --state {}",
        state()
    ));
    assert_eq!((&report["nodes"], &report["regions"]), (&1.into(), &48.into()));
    assert_eq!(
        (&report["verified"]["missing"], &report["verified"]["wrong"]),
        (&0.into(), &0.into())
    );
}

#[test]
fn running_servers_are_driven_counted_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let sockets: Vec<_> =
        (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses = sockets.iter().map(|socket| socket.local_addr().unwrap().to_string());
    let cluster: BTreeMap<u64, String> = (1..).zip(addresses).collect();
    drop(sockets);
    let nodes: Vec<Node> = (1..=3)
        .map(|id| {
            let data_dir = dir.path().join(id.to_string());
            let cluster = cluster.clone();
            let config =
                NodeConfig { store_id: id, data_dir, cluster, regions: 4, ..<_>::default() };
            Node::open(config).unwrap()
        })
        .collect();
    let addresses: Vec<String> = cluster.into_values().collect();
    let report = run(&format!("{SMALL} --verify --connect {}", addresses.join(",")));
    positive(&report, &["ops", "entries", "fsyncs", "bytes_written", "cpu_s"]);
    let told = ["profile", "state", "nodes", "regions"].map(|field| report[field].clone());
    assert_eq!(Value::from(told.to_vec()), serde_json::json!(["servers", "unknown", 3, 4]));
    check_stages(&report);
    positive(&report["verified"], &["checked"]);
    assert_eq!(
        (&report["verified"]["missing"], &report["verified"]["wrong"]),
        (&0.into(), &0.into())
    );
    nodes.iter().for_each(Node::kill);
}

#[test]
fn usage_errors_and_failures_have_their_exit_codes() {
    for usage in [
        "run --key-size 8",
        "run --profile consensus --verify",
        "run --read-ratio 2",
        "run --profile log --span 9 --entries 8",
        "run --profile durable --beside raft-engine",
        "run --profile log --beside raft-engine --verify",
        "run --profile log --repetitions 2",
        "run --value-size 20M",
        "run --value-size 17M --batch 1 --clients 1 --duration 1s --regions 1 --state memory",
        "run --value-size 1M --batch 32 --clients 1 --verify",
        "run --value-size 1M --batch 24",
        "run --key-size 33k --batch 1",
        "run --batch 10M",
        "run --set entry_byte=1",
        "run --profile log --set entry_bytes=1",
        "run --no-such-flag",
        "nonsense",
    ] {
        assert_eq!(load(usage).status.code(), Some(2), "{usage}");
    }
    let unreachable = "run --connect 127.0.0.1:1 --duration 1s --timeout 300ms";
    assert_eq!(load(unreachable).status.code(), Some(1));
    // Half a day, were the file not tried first.
    let nowhere = load("run --json /nonexistent/x --duration 12h");
    let message = String::from_utf8_lossy(&nowhere.stderr).into_owned();
    assert_eq!(nowhere.status.code(), Some(1), "{message}");
    assert!(message.contains("cannot write /nonexistent/x: "), "{message}");
    assert_eq!(load("completions fish").status.code(), Some(0));
    assert_eq!(load("run --help").status.code(), Some(0));
}
