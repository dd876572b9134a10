//! Settings of nodes that no flag of ours has: `--set KEY=VALUE`.

use catamaran::NodeConfig;
use serde_json::{Map, Value};

/// What a run decides itself, or has a flag for.
const OURS: [&str; 9] = [
    "store_id",
    "data_dir",
    "listen",
    "cluster",
    "join",
    "regions",
    "state",
    "loops",
    "apply_workers",
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
    with(NodeConfig::default(), &set)?;
    Ok((key.to_owned(), parsed))
}

/// The settings with these changed; an error is a usage error in words.
pub fn with(config: NodeConfig, set: &Map<String, Value>) -> Result<NodeConfig, String> {
    if set.is_empty() {
        return Ok(config);
    }
    let mut all = serde_json::to_value(config).map_err(|error| error.to_string())?;
    if let Some(all) = all.as_object_mut() {
        all.extend(set.clone());
    }
    let config: NodeConfig = serde_json::from_value(all).map_err(|error| error.to_string())?;
    config.validate().map_err(|error| error.to_string())?;
    Ok(config)
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
        for wrong in ["entry_bytes", "entry_byte=1", "entry_bytes=0", "entry_bytes=all", "loops=2"]
        {
            assignment(wrong).unwrap_err();
        }
    }
}
