//! `catamaran ctl store` and the membership half of `catamaran ctl region`, from outside: what they print, their exit codes,
//! and a store that is drained and struck off.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by them")]

mod support;

use serde_json::Value;
use support::ctl::{Ctl, eventually};
use support::{Servers, catamaran, stdout};

#[test]
fn mistakes_are_usage_and_help_has_examples() {
    let code = |args: &[&str]| catamaran(args).status.code();
    assert_eq!(code(&["ctl", "store"]), Some(2));
    assert_eq!(code(&["ctl", "store", "drain"]), Some(2));
    assert_eq!(code(&["ctl", "store", "drain", "one"]), Some(2));
    assert_eq!(code(&["ctl", "store", "drain", "1", "--wait", "--cancel"]), Some(2));
    assert_eq!(code(&["ctl", "region", "add-peer", "1"]), Some(2));
    assert_eq!(code(&["ctl", "region", "remove-peer", "1"]), Some(2));
    let nobody = ["ctl", "--connect", "127.0.0.1:1", "--timeout", "300ms", "store", "list"];
    assert_eq!(code(&nobody), Some(1));
    for (room, example) in
        [("store", "catamaran ctl store drain 4 --wait"), ("region", "add-peer 3 --to 4")]
    {
        let help = stdout(&catamaran(&["ctl", room, "--help"]));
        assert!(help.contains("Examples:") && help.contains(example), "{help}");
    }
}

#[test]
fn stores_are_listed_drained_and_struck_off() {
    let servers = Servers::start(4, 4);
    let ctl = Ctl { connect: servers.addresses().join(",") };
    ctl.complete(4, 4);
    let table = ctl.ok(&["store", "list"]);
    let head: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    let columns =
        ["store", "address", "state", "reachable", "replicas", "leaders", "used", "capacity"];
    assert_eq!(head, columns);
    assert_eq!(table.lines().count(), 5, "{table}");
    let first = ctl.store(1);
    assert_eq!(first["address"], servers.address(1));
    assert_eq!(
        (&first["state"], &first["reachable"], &first["starts"]),
        (&"up".into(), &true.into(), &1.into())
    );
    assert!(first["capacity_bytes"].as_u64().unwrap() > 0, "{first}");

    // Regions show who leads them and how large they are.
    let list = ctl.json(&["region", "list"]);
    assert!(
        list.as_array().unwrap().iter().all(|region| region["leader_store"].is_u64()),
        "{list}"
    );
    let head: Vec<String> = ctl
        .ok(&["region", "list"])
        .lines()
        .next()
        .unwrap()
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    assert_eq!(head, ["region", "conf_ver", "version", "leader", "bytes", "replicas", "keys"]);

    // A replica more, and away again.
    let stores = |region: &Value| -> Vec<u64> {
        let replicas = region["replicas"].as_array().unwrap();
        replicas.iter().map(|replica| replica["store"].as_u64().unwrap()).collect()
    };
    let without = |region: &&Value| !stores(region).contains(&4);
    let region = list.as_array().unwrap().iter().find(without).unwrap();
    let (id, here, free) = (region["region"].to_string(), stores(region), "4");
    let four = &ctl.json(&["region", "add-peer", &id, "--to", free])[0];
    let replicas = four["replicas"].as_array().unwrap();
    assert_eq!(replicas.len(), 4, "{four}");
    assert!(replicas.iter().all(|replica| replica["role"] == "voter"), "{four}");
    let three = &ctl.json(&["region", "remove-peer", &id, "--from", free])[0];
    assert_eq!(stores(three), here);
    // Nobody knows it; where the machine stalls as the time runs out, that it ran out may be all that is heard.
    eventually("the refusal", || {
        let (code, _, err) = ctl.run(&["region", "add-peer", "999", "--to", free]);
        assert_eq!(code, Some(1), "{err}");
        err.contains("999")
    });

    // One store goes.
    ctl.no(&["store", "remove", "9"], 2, "there is no s9");
    ctl.no(&["store", "remove", "4"], 2, "drain it first");
    // Every verb answers programs.
    let draining = ctl.json(&["store", "drain", "4"]);
    assert_eq!(draining["stores"][3]["state"], "draining");
    assert_eq!(ctl.store(4)["state"], "draining");
    ctl.no(&["region", "add-peer", &id, "--to", "4"], 2, "draining");
    let back = ctl.json(&["store", "drain", "4", "--cancel"]);
    assert_eq!(back["stores"][3]["state"], "up");
    assert_eq!(ctl.store(4)["state"], "up");
    let emptied = ctl.json(&["store", "drain", "4", "--wait", "--timeout", "100s"]);
    let fourth = &emptied["stores"][3];
    assert_eq!(
        (&fourth["store"], &fourth["replicas"], &fourth["leaders"]),
        (&4.into(), &0.into(), &0.into())
    );
    eventually("the removal", || ctl.run(&["store", "remove", "4"]).0 == Some(0));
    assert_eq!(ctl.store(4)["state"], "left");
    assert_eq!(ctl.json(&["store", "remove", "4"])["stores"][3]["state"], "left", "done already");
    ctl.no(&["store", "drain", "4"], 2, "left for good");
    // With two left, nobody can take the replicas of a third: who waits is told why, after a look or two.
    eventually("the reason", || {
        let (code, _, err) = ctl.run(&["store", "drain", "3", "--wait", "--timeout", "3s"]);
        assert_eq!(code, Some(1), "{err}");
        err.contains("no other store can take a replica")
    });
    ctl.ok(&["store", "drain", "3", "--cancel"]);

    let status = catamaran(&["status", "--connect", &ctl.connect]);
    assert!(stdout(&status).contains("directory: 3 stores up; 4 regions\n"), "{}", stdout(&status));
    let status = catamaran(&["status", "--connect", &ctl.connect, "--output", "json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["directory"]["regions"], 4);
}
