//! The binary from outside: exit codes, explanations, and a round trip through a running cluster.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by them")]

mod support;

use std::ffi::OsStr;
use std::time::{Duration, Instant};
use support::{Servers, catamaran, stderr, stdout};

fn code(args: &[&str]) -> Option<i32> {
    catamaran(args).status.code()
}

#[test]
fn exit_codes_and_help() {
    assert_eq!(code(&["--help"]), Some(0));
    assert_eq!(code(&["no-such-command"]), Some(2));
    assert_eq!(code(&["serve", "--cluster", "nonsense"]), Some(2));
    assert_eq!(
        code(&["kv", "--connect", "127.0.0.1:1", "--timeout", "300ms", "get", "k"]),
        Some(1)
    );
    assert_eq!(code(&["status", "--connect", "127.0.0.1:1", "--timeout", "300ms"]), Some(1));
    assert_eq!(code(&["kv", "--connect", "nonsense", "get", "k"]), Some(2));
    assert!(stdout(&catamaran(&["serve", "--help"])).contains("Examples:"));
    assert!(stdout(&catamaran(&["completions", "bash"])).contains("catamaran"));
}

#[test]
fn keys_that_make_no_sense_are_usage() {
    // Nobody is asked: nobody listens there.
    let kv = |args: &[&OsStr]| {
        let mut command = std::process::Command::new(support::CATAMARAN);
        command.args(["kv", "--connect", "127.0.0.1:1", "--timeout", "20s"]).args(args);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        stderr(&output)
    };
    let text = OsStr::new;
    assert!(kv(&[text("get"), text("--hex"), text("xyz")]).contains("not hexadecimal"));
    assert!(kv(&[text("put"), text("--hex"), text("00"), text("0")]).contains("not hexadecimal"));
    let long = "k".repeat((32 << 10) + 2);
    for option in ["--from", "--to", "--prefix"] {
        let message = kv(&[text("scan"), text(option), text(&long)]);
        assert!(message.contains("32770 bytes: at most 32769"), "{message}");
    }
    assert!(kv(&[text("get"), text(&long)]).contains("key of 32770 bytes"));
    assert!(kv(&[text("put"), text(&long), text("v")]).contains("invalid argument"));
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let bytes = OsStr::from_bytes(b"\xff");
        for line in [
            &[text("get"), bytes][..],
            &[text("delete"), bytes],
            &[text("put"), text("key"), bytes],
            &[text("scan"), text("--from"), bytes],
            &[text("get"), text("--hex"), bytes],
        ] {
            assert!(kv(line).contains("with --hex"), "{line:?}");
        }
    }
}

#[test]
fn settings_that_cannot_work_are_found_before_anything_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    for (set, message) in [
        ("segment_bytes=0", "segment_bytes 0"),
        ("segment_bytes=5000000000", "segment_bytes 5000000000"),
        ("peer_queue_bytes=0", "peer_queue_bytes = 0"),
        ("region_log_bytes=100000", "compact_bytes"),
        ("region_merge_percent=50", "region_merge_percent = 50"),
        ("region_split_load_ms=1", "region_split_load_ms = 1"),
        ("listen=nonsense", "listen = \"nonsense\""),
        ("cluster={1 = \"nonsense\"}", "cluster: 1 = \"nonsense\""),
    ] {
        let output = catamaran(&["serve", "--data-dir", data.to_str().unwrap(), "--set", set]);
        assert_eq!(output.status.code(), Some(2), "{set}: {}", stderr(&output));
        assert!(stderr(&output).contains(message), "{set}: {}", stderr(&output));
        assert!(!data.exists(), "{set}");
    }
    assert_eq!(code(&["demo", "--regions", "0"]), Some(2));
}

#[test]
fn a_node_is_not_made_of_defaults_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new(support::CATAMARAN);
    let output = command.arg("serve").current_dir(dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    let message = stderr(&output);
    assert!(message.contains("--data-dir") && message.contains("catamaran demo"), "{message}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something was made");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_output_is_an_error_in_words() {
    let line = [
        &["serve", "--print-config"][..],
        &["completions", "bash"],
        &["--help"],
        &["status", "--connect", "127.0.0.1:1", "--timeout", "300ms"],
    ];
    for args in line {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = std::process::Command::new(support::CATAMARAN);
        let output = command.args(args).stdout(full).stderr(std::process::Stdio::piped());
        let output = output.spawn().unwrap().wait_with_output().unwrap();
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {message}");
        assert!(message.contains("cannot write to standard output: "), "{args:?}: {message}");
    }
}

#[test]
fn an_unknown_setting_is_an_error_with_a_suggestion() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    std::fs::write(&path, "store_id = 1\nregoins = 4\n").unwrap();
    let output = catamaran(&["serve", "--config", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let message = stderr(&output);
    assert!(
        message.contains("`regoins`") && message.contains("did you mean `regions`?"),
        "{message}"
    );

    std::fs::write(&path, "store_id = \"one\"\n").unwrap();
    let output = catamaran(&["serve", "--config", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("store_id"), "{}", stderr(&output));

    let output = catamaran(&["serve", "--store-id", "9", "--cluster", "1=a:1,2=b:2"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("store_id = 9"), "{}", stderr(&output));

    let output = catamaran(&["serve", "--regions", "12", "--print-config"]);
    assert!(stdout(&output).contains("regions = 12"), "{}", stdout(&output));
}

#[test]
fn a_cluster_is_used_inspected_and_stopped() {
    let mut servers = Servers::start(3, 4);
    let all = servers.addresses().join(",");
    let kv = |args: &[&str]| {
        let mut line = vec!["kv", "--connect", &all, "--timeout", "20s"];
        line.extend_from_slice(args);
        catamaran(&line)
    };
    let ok = |args: &[&str]| {
        let output = kv(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        stdout(&output)
    };
    ok(&["put", "mast", "tall"]);
    ok(&["put", "hull", "twin"]);
    ok(&["put", "\u{fc}ber", "all"]);
    ok(&["put", "--hex", "ff00", "00ff"]);
    assert_eq!(ok(&["get", "mast"]), "tall\n");
    assert_eq!(ok(&["get", "mast", "--output", "raw"]), "tall");
    assert_eq!(ok(&["get", "mast", "--output", "json"]), "{\"key\":\"mast\",\"value\":\"tall\"}\n");
    assert_eq!(ok(&["get", "ff00", "--hex"]), "00ff\n");
    assert_eq!(ok(&["scan", "--limit", "2"]), "hull  twin\nmast  tall\n");
    assert_eq!(ok(&["scan", "--prefix", "m", "--output", "raw"]), "mast\ttall\n");
    assert_eq!(ok(&["scan", "--reverse", "--to", "n"]), "mast  tall\nhull  twin\n");
    assert_eq!(ok(&["scan", "--from", "n"]), "\u{fc}ber  all\n\\xff\\x00  \\x00\\xff\n");
    ok(&["delete", "mast"]);
    let gone = kv(&["get", "mast"]);
    assert_eq!((gone.status.code(), stderr(&gone)), (Some(1), "not found: mast\n".to_owned()));

    // Every region has a leader by now or soon.
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let output = catamaran(&["status", "--connect", &all, "--output", "json"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let nodes = status["nodes"].as_array().unwrap();
        let sum = |field: &str| nodes.iter().map(|n| n[field].as_u64().unwrap()).sum::<u64>();
        assert_eq!((nodes.len(), sum("regions")), (3, 12));
        if sum("leaders") == 4 {
            assert!(sum("applied") > 0 && sum("log_bytes") > 0);
            let replicas = nodes[0]["replicas"].as_array().unwrap();
            assert!(replicas[0]["leader_store"].is_u64());
            let stages = nodes[0]["stages"].as_array().unwrap();
            assert!(stages.iter().any(|s| s["stage"] == "log_write" && s["p99_us"].is_f64()));
            let bound = |at: usize, end: &str| replicas[at][end].as_str().unwrap();
            let cuts = ["", "4000000000000000", "8000000000000000", "c000000000000000", ""];
            for at in 0..4 {
                assert_eq!(
                    (bound(at, "start_hex"), bound(at, "end_hex")),
                    (cuts[at], cuts[at + 1])
                );
            }
            break;
        }
        assert!(Instant::now() < until, "{status}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let table = stdout(&catamaran(&["status", "--connect", &all, "--regions", "--stages"]));
    for word in ["leader", "follower", "log_write", "p99.9"] {
        assert!(table.contains(word), "{word}: {table}");
    }

    // Regions are listed, cut and handed over.
    let ctl = |args: &[&str]| {
        let mut line = vec!["ctl", "--connect", &all, "--timeout", "20s"];
        line.extend_from_slice(args);
        let output = catamaran(&line);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        stdout(&output)
    };
    let list =
        |args: &[&str]| -> Vec<serde_json::Value> { serde_json::from_str(&ctl(args)).unwrap() };
    assert_eq!(list(&["region", "list", "--output", "json"]).len(), 4);
    let cut = list(&["region", "split", "hull", "mast", "--output", "json"]);
    let starts: Vec<_> = cut.iter().map(|region| region["start_hex"].as_str().unwrap()).collect();
    assert_eq!(starts, ["4000000000000000", "68756c6c", "6d617374"]);
    assert_eq!(ctl(&["region", "split", "mast"]).lines().count(), 1, "nothing left to cut");
    let found = &list(&["region", "get", "--key", "hullabaloo", "--output", "json"])[0];
    assert_eq!((&found["region"], &found["version"]), (&cut[1]["region"], &3.into()));
    assert_eq!(found["replicas"].as_array().unwrap().len(), 3);
    let id = found["region"].to_string();
    assert!(ctl(&["region", "get", &id]).contains("hull .. mast"));
    assert_eq!(ctl(&["region", "transfer", &id]), "");
    let handed = &list(&["region", "transfer", &id, "--output", "json"])[0];
    assert_eq!(handed["region"], found["region"], "every verb answers programs");
    // And merged again: what goes is the last part, into the one before it.
    let last = cut[2]["region"].to_string();
    let merged = &list(&["region", "merge", &last, "--into", &id, "--output", "json"])[0];
    assert_eq!((&merged["region"], &merged["end_hex"]), (&cut[1]["region"], &cut[2]["end_hex"]));
    assert_eq!(code(&["ctl", "--connect", &all, "region", "merge", &id, "--into", &id]), Some(2));
    assert_eq!(code(&["ctl", "--connect", &all, "region", "get", "999"]), Some(1));
    assert_eq!(code(&["ctl", "region", "get"]), Some(2));
    assert_eq!(ok(&["get", "hull"]), "twin\n");

    // One at a time: the others take its leaderships over and go on serving.
    assert_eq!(servers.terminate(1, Duration::from_secs(15)), Some(0), "{}", servers.log_tail(1));
    assert_eq!(ok(&["get", "hull"]), "twin\n");
    assert!(servers.data_dir(1).join("log").is_dir());
}
