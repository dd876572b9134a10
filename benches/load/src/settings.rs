//! Settings of nodes that no flag of ours has: `--set KEY=VALUE`.

use catamaran::NodeConfig;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// What a run decides itself, or has a flag for.
const OURS: [&str; 11] = [
    "store_id",
    "data_dir",
    "listen",
    "cluster",
    "join",
    "regions",
    "state",
    "loops",
    "apply_workers",
    "request_timeout_ms",
    "seed",
];

/// Reads `KEY=VALUE`, the value in JSON's spelling or, failing that, a plain string.
pub fn assignment(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    let (key, value) = (key.trim(), value.trim());
    if OURS.contains(&key) {
        return Err(format!("{key} is set by the run or has a flag of its own"));
    }
    let parsed = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    let set = Map::from_iter([(key.to_owned(), parsed.clone())]);
    changed(NodeConfig::default(), &set)?;
    Ok((key.to_owned(), parsed))
}

/// The settings with these changed, all checked; an error is a usage error in words.
pub fn with(config: NodeConfig, set: &Map<String, Value>) -> Result<NodeConfig, String> {
    let config = changed(config, set)?;
    config.validate().map_err(|error| error.to_string())?;
    Ok(config)
}

/// Whether nodes of a cluster of so many can have them.
pub fn check(nodes: u64, set: &Map<String, Value>) -> Result<(), String> {
    let address = |id| (id, format!("127.0.0.1:{id}"));
    let cluster = if nodes > 1 { (1..=nodes).map(address).collect() } else { BTreeMap::new() };
    with(NodeConfig { store_id: 1, cluster, ..NodeConfig::default() }, set).map(drop)
}

fn changed(config: NodeConfig, set: &Map<String, Value>) -> Result<NodeConfig, String> {
    if set.is_empty() {
        return Ok(config);
    }
    let mut all = serde_json::to_value(config).map_err(|error| error.to_string())?;
    if let Some(all) = all.as_object_mut() {
        all.extend(set.clone());
    }
    serde_json::from_value(all).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_known_checked_and_not_ours() {
        let (key, value) = assignment("entry_bytes = 1").unwrap();
        let config = with(NodeConfig::default(), &Map::from_iter([(key, value)])).unwrap();
        assert_eq!(config.entry_bytes, 1);
        assert_eq!(NodeConfig { entry_bytes: 1 << 20, ..config }, NodeConfig::default());
        for wrong in ["entry_bytes", "entry_byte=1", "entry_bytes=all", "loops=2"] {
            assignment(wrong).unwrap_err();
        }
        // What is wrong or right beside others, and of so many nodes.
        let three = Map::from_iter([assignment("replicas=3").unwrap()]);
        check(3, &three).unwrap();
        check(1, &three).unwrap_err();
        check(3, &Map::from_iter([assignment("entry_bytes=0").unwrap()])).unwrap_err();
    }
}
