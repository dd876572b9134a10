//! `catamaran ctl` against running servers.

use super::{catamaran, stderr, stdout};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Waits until something holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(120), "waited for {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A way to servers.
pub struct Ctl {
    pub connect: String,
}

impl Ctl {
    /// Exit code, standard output, standard error. A `--timeout` among the arguments counts.
    pub fn run(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let mut line = vec!["ctl", "--connect", &self.connect, "--timeout", "20s"];
        line.extend_from_slice(args);
        let output = catamaran(&line);
        (output.status.code(), stdout(&output), stderr(&output))
    }

    pub fn ok(&self, args: &[&str]) -> String {
        let (code, out, err) = self.run(args);
        assert_eq!(code, Some(0), "{args:?}: {err}");
        out
    }

    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[args, &["--output", "json"]].concat())).unwrap()
    }

    /// Refused, with that exit code and those words.
    pub fn no(&self, args: &[&str], code: i32, words: &str) {
        let (got, _, err) = self.run(args);
        assert_eq!(got, Some(code), "{args:?}: {err}");
        assert!(err.contains(words), "{args:?}: {err}");
    }

    pub fn store(&self, id: u64) -> Value {
        let list = self.json(&["store", "list"]);
        let stores = list["stores"].as_array().unwrap();
        stores.iter().find(|store| store["store"] == id).unwrap().clone()
    }

    /// Waits until so many stores and regions are on record, all of them with a leader.
    pub fn complete(&self, stores: usize, regions: u64) {
        eventually("all on record", || {
            let (code, out, _) = self.run(&["store", "list", "--output", "json"]);
            let list: Value = serde_json::from_str(&out).unwrap_or_default();
            code == Some(0)
                && list["stores"].as_array().is_some_and(|all| all.len() == stores)
                && list["regions_with_leader"] == regions
        });
    }
}

/// The stores of a region's replicas in this role.
pub fn stores(region: &Value, role: &str) -> Vec<u64> {
    let replicas = region["replicas"].as_array().unwrap().iter();
    let mut stores: Vec<u64> = replicas
        .filter(|replica| replica["role"] == role)
        .map(|replica| replica["store"].as_u64().unwrap())
        .collect();
    stores.sort_unstable();
    stores
}
