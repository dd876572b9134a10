//! The replicas of a region, changed by `catamaran ctl region` from outside: every verb, what it prints, its exit codes, how long it
//! takes at most, and what is told when it does not go on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by them")]

mod support;

use serde_json::{Value, json};
use std::time::{Duration, Instant};
use support::ctl::{Ctl, eventually, stores};
use support::{Servers, catamaran, stdout};

/// Five servers and four regions of three replicas each.
fn started() -> (Servers, Ctl) {
    let servers = Servers::start(5, 4);
    let ctl = Ctl { connect: servers.addresses().join(",") };
    ctl.complete(5, 4);
    (servers, ctl)
}

/// A region other than the first, the stores that have it, and one that has not.
fn region(ctl: &Ctl) -> (String, Vec<u64>, u64) {
    let list = ctl.json(&["region", "list"]);
    let region = list.as_array().unwrap().iter().find(|region| region["region"] != 1).unwrap();
    let here = stores(region, "voter");
    let free = (1..=5).find(|id| !here.contains(id)).unwrap();
    (region["region"].to_string(), here, free)
}

fn get(ctl: &Ctl, id: &str) -> Value {
    ctl.json(&["region", "get", id])[0].clone()
}

/// What the replica on a store says.
fn standing(region: &Value, store: u64) -> &Value {
    let all = region["status"].as_array().unwrap();
    all.iter().find(|replica| replica["store"] == store).unwrap_or(&Value::Null)
}

#[test]
fn mistakes_are_usage_and_help_has_examples() {
    let code = |args: &[&str]| catamaran(&[&["ctl", "region"], args].concat()).status.code();
    assert_eq!(code(&["promote", "1"]), Some(2));
    assert_eq!(code(&["demote", "1", "--on", "one"]), Some(2));
    assert_eq!(code(&["replace-peer", "1", "--from", "1"]), Some(2));
    let help = stdout(&catamaran(&["ctl", "region", "--help"]));
    for example in ["promote 3 --on 5", "demote 3 --on 2", "replace-peer 3 --from 1 --to 4"] {
        assert!(help.contains(example), "{example}: {help}");
    }
    let nobody = ["--connect", "127.0.0.1:1", "--timeout", "1s"];
    for verb in [&["promote", "3", "--on", "5"][..], &["demote", "3", "--on", "2"]] {
        let begun = Instant::now();
        assert_eq!(code(&[&nobody[..], verb].concat()), Some(1));
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
}

#[test]
fn roles_are_changed_and_replicas_replaced() {
    let (_servers, ctl) = started();
    let (id, here, free) = region(&ctl);
    let (on, old) = (free.to_string(), here[0].to_string());

    // A learner is one wherever it is shown.
    let with = &ctl.json(&["region", "add-peer", &id, "--to", &on, "--learner"])[0];
    assert_eq!((stores(with, "voter"), stores(with, "learner")), (here.clone(), vec![free]));
    eventually("the learner's replica", || standing(&get(&ctl, &id), free)["role"] == "learner");
    let known = get(&ctl, &id);
    assert_eq!(standing(&known, free)["leads"], false);
    assert_eq!(standing(&known, here[0])["role"], "voter");
    assert_eq!(standing(&known, here[0])["members"].as_array().unwrap().len(), 4);
    for field in ["conf_ver", "version"] {
        assert_eq!(standing(&known, here[0])[field], known[field], "{known}");
    }
    let table = ctl.ok(&["region", "get", &id]);
    assert!(table.contains(&format!("s{free} (learner)")), "{table}");
    let status = stdout(&catamaran(&["status", "--connect", &ctl.connect, "--regions"]));
    let mut lines = status.lines().map(|line| (line, line.split_whitespace().collect::<Vec<_>>()));
    let (learner, cells) = lines.find(|(_, cells)| cells.starts_with(&[&id, &on])).unwrap();
    assert_eq!(cells[2], "learner", "{status}");
    assert!(learner.contains(&format!("s{free} (learner)")), "{learner}");

    // It votes, and does not any more; both are done already when asked for again.
    for _ in 0..2 {
        let four = &ctl.json(&["region", "promote", &id, "--on", &on])[0];
        assert_eq!(stores(four, "voter").len(), 4, "{four}");
    }
    for _ in 0..2 {
        let three = &ctl.json(&["region", "demote", &id, "--on", &on])[0];
        assert_eq!((stores(three, "voter"), stores(three, "learner")), (here.clone(), vec![free]));
    }

    // In the place of another one.
    let three = &ctl.json(&["region", "replace-peer", &id, "--from", &old, "--to", &on])[0];
    let mut there = [&here[1..], &[free]].concat();
    there.sort_unstable();
    assert_eq!((stores(three, "voter"), stores(three, "learner")), (there.clone(), vec![]));
    let again = ["region", "replace-peer", &id, "--from", &old, "--to", &on];
    assert_eq!(stores(&ctl.json(&again)[0], "voter"), there, "done already");
    let table = ctl.ok(&again);
    assert!(table.starts_with("region ") && table.lines().count() == 2, "{table}");
    eventually("nothing left to wait for", || get(&ctl, &id)["unsettled"] == json!([]));

    for verb in ["promote", "demote"] {
        ctl.no(&["region", verb, &id, "--on", &old], 2, "has no replica on");
    }
    ctl.no(&["region", "replace-peer", &id, "--from", &old, "--to", "9"], 2, "has no replica on");
    ctl.no(&["region", "promote", "999", "--on", "1", "--timeout", "2s"], 1, "999");
}

/// A store stops in its tracks while it has a replica that is removed: the region goes on, and waits for that store only where it is
/// to be merged. That took eleven minutes for each ten seconds of `--timeout`, and nothing said why.
#[test]
fn what_does_not_go_on_ends_in_time_and_the_reason_is_told() {
    let (servers, ctl) = started();
    let list = ctl.json(&["region", "list"]);
    let list = list.as_array().unwrap();
    let (left, right) = (&list[1], &list[2]);
    let (into, id) = (left["region"].to_string(), right["region"].to_string());
    // Both live on the same three stores, and one store more has a replica of the one that is to go.
    let (here, there) = (stores(left, "voter"), stores(right, "voter"));
    let from = there.iter().filter(|one| !here.contains(one));
    for (from, to) in from.zip(here.iter().filter(|one| !there.contains(one))) {
        let (from, to) = (from.to_string(), to.to_string());
        ctl.ok(&["region", "replace-peer", &id, "--from", &from, "--to", &to]);
    }
    let extra = (1..=5).find(|id| !here.contains(id)).unwrap();
    let on = extra.to_string();
    ctl.ok(&["region", "add-peer", &id, "--to", &on, "--learner"]);
    eventually("a learner, and nothing left of those that moved", || {
        let known = get(&ctl, &id);
        standing(&known, extra)["role"] == "learner" && known["unsettled"] == json!([])
    });

    let others: Vec<String> =
        (1..=5).filter(|id| *id != extra).map(|id| servers.address(id).to_owned()).collect();
    let ctl = Ctl { connect: others.join(",") };
    servers.pause(extra);
    ctl.ok(&["region", "remove-peer", &id, "--from", &on, "--timeout", "60s"]);
    let begun = Instant::now();
    let (code, _, err) = ctl.run(&["region", "merge", &id, "--into", &into, "--timeout", "4s"]);
    let took = begun.elapsed();
    assert_eq!(code, Some(1), "{err}");
    assert!(took > Duration::from_secs(3) && took < Duration::from_secs(10), "{took:?}: {err}");
    assert!(err.contains("not in time"), "{err}");
    assert!(err.contains("a former replica that is not known to be gone"), "{err}");

    let known = get(&ctl, &id);
    let told = known["unsettled"][0].as_str().unwrap_or_default();
    assert!(told.contains("cannot be merged into another region until"), "{known}");
    assert!(told.contains(&format!("on s{extra}")), "{known}");
    let leader = known["status"].as_array().unwrap().iter().find(|one| one["leads"] == true);
    let former = &leader.unwrap()["former_replicas"];
    assert_eq!((former[0]["region"].to_string(), &former[0]["store"]), (id.clone(), &extra.into()));
    assert!(ctl.ok(&["region", "get", &id]).contains(told));
    let status = catamaran(&["status", "--connect", &ctl.connect]);
    assert!(stdout(&status).contains(&format!("r{id}: {told}")), "{}", stdout(&status));
    let status = catamaran(&["status", "--connect", &ctl.connect, "--output", "json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["unsettled"][0]["region"].to_string(), id, "{}", status["unsettled"]);

    // It comes back, deletes what it had, and is forgotten: the same command again goes on.
    servers.resume(extra);
    let merged = &ctl.json(&["region", "merge", &id, "--into", &into, "--timeout", "100s"])[0];
    assert_eq!(merged["region"].to_string(), into);
    assert_eq!(merged["end_hex"], right["end_hex"]);
    eventually("nothing left to wait for", || get(&ctl, &into)["unsettled"] == json!([]));
}
