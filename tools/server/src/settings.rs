//! A node's settings from file, flags and `--set`, and what to say when a key is not known.

use crate::args::ServeArgs;
use anyhow::{Context, Result, anyhow, bail};
use catamaran::config::NodeConfig;
use std::collections::BTreeMap;
use toml::{Table, Value};

/// Every setting there is, with its default.
fn known() -> Result<Table> {
    Ok(Table::try_from(NodeConfig::default())?)
}

/// How many letters differ: insertions, deletions, replacements and swapped neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
}

/// The known key that an unknown one most likely stands for.
fn suggestion<'a>(unknown: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |key: &str| key.to_lowercase().replace(['-', '_'], "");
    known
        .map(|key| (distance(&plain(unknown), &plain(key)), key))
        .filter(|(distance, key)| *distance <= (key.len() / 3).max(2))
        .min()
        .map(|(_, key)| key)
}

/// Refuses keys that are not settings.
fn check_keys(table: &Table, from: &str) -> Result<()> {
    let known = known()?;
    if let Some(key) = table.keys().find(|key| !known.contains_key(*key)) {
        match suggestion(key, known.keys().map(String::as_str)) {
            Some(like) => bail!("{from}: unknown key `{key}`: did you mean `{like}`?"),
            None => bail!(
                "{from}: unknown key `{key}`; `catamaran serve --print-config` lists all settings"
            ),
        }
    }
    Ok(())
}

/// `key=value`, the value in TOML's spelling or, failing that, a plain string.
fn assignment(text: &str) -> Result<(String, Value)> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| anyhow!("--set {text:?}: expected KEY=VALUE"))?;
    let key = key.trim();
    let parsed = format!("value = {}", value.trim()).parse::<Table>().ok();
    let value = parsed.and_then(|mut table| table.remove("value"));
    let value = value.unwrap_or_else(|| Value::String(text[key.len() + 1..].trim().to_owned()));
    Ok((key.to_owned(), value))
}

fn integer(name: &str, number: u64) -> Result<Value> {
    Ok(Value::Integer(i64::try_from(number).with_context(|| format!("--{name}: too large"))?))
}

/// Refuses to run a node of which nobody said who it is, where its data goes and where it listens: the
/// defaults of a library are no answer to that.
fn check_given(table: &Table) -> Result<()> {
    let listens = table.get("listen").and_then(Value::as_str).is_some_and(|at| !at.is_empty());
    let member = table.get("cluster").and_then(Value::as_table).is_some_and(|all| !all.is_empty());
    let needed = [
        ("--store-id", table.contains_key("store_id")),
        ("--data-dir", table.contains_key("data_dir")),
        ("--listen or --cluster", listens || member),
    ];
    let missing: Vec<&str> =
        needed.into_iter().filter(|(_, given)| !given).map(|(flag, _)| flag).collect();
    if !missing.is_empty() {
        bail!(
            "serve also needs {} (or the same settings in a file, with --config); `catamaran demo` \
             runs three nodes without any of them",
            missing.join(", ")
        );
    }
    Ok(())
}

/// Puts a node's settings together: defaults, then the file, then flags, then `--set`. Checked; and unless
/// they are only to be printed, what has no sensible default must have been given.
pub fn load(args: &ServeArgs) -> Result<NodeConfig> {
    let mut table = Table::new();
    if let Some(path) = &args.config {
        let from = path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {from}"))?;
        table = text.parse().with_context(|| format!("{from} is not TOML"))?;
        check_keys(&table, &from)?;
        // Says which line a wrong value stands in, which the merged table could not.
        toml::from_str::<NodeConfig>(&text).with_context(|| from)?;
    }
    let mut flag = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            table.insert(name.to_owned(), value);
        }
    };
    flag("store_id", args.store_id.map(|id| integer("store-id", id)).transpose()?);
    flag("regions", args.regions.map(|n| integer("regions", n)).transpose()?);
    flag("listen", args.listen.clone().map(Value::String));
    let dir = args.data_dir.as_ref().map(|dir| {
        let dir = dir.to_str().ok_or_else(|| anyhow!("--data-dir: not UTF-8"))?;
        anyhow::Ok(Value::String(dir.to_owned()))
    });
    flag("data_dir", dir.transpose()?);
    for (name, nodes) in [("cluster", &args.cluster), ("join", &args.join)] {
        let member = |(id, address): &(u64, String)| (id.to_string(), address.clone().into());
        let members: Table = nodes.iter().map(member).collect();
        if members.len() != nodes.len() {
            bail!("--{name}: a store id appears twice");
        }
        flag(name, (!members.is_empty()).then_some(Value::Table(members)));
    }
    let mut set = Table::new();
    for text in &args.set {
        let (key, value) = assignment(text)?;
        set.insert(key, value);
    }
    check_keys(&set, "--set")?;
    table.extend(set);
    let config: NodeConfig = table.clone().try_into().context("settings")?;
    config.validate()?;
    if !args.print_config {
        check_given(&table)?;
    }
    Ok(config)
}

/// The settings as a TOML file.
pub fn print(config: &NodeConfig) -> Result<String> {
    // TOML's keys are strings, those of `cluster` and `join` are numbers; and tables come last in TOML, or
    // they would swallow the keys after them.
    let none = BTreeMap::new;
    let mut text =
        toml::to_string(&NodeConfig { cluster: none(), join: none(), ..config.clone() })?;
    for (name, nodes) in [("cluster", &config.cluster), ("join", &config.join)] {
        text = text.replace(&format!("[{name}]\n"), "");
        if !nodes.is_empty() {
            let members: BTreeMap<String, &String> =
                nodes.iter().map(|(id, address)| (id.to_string(), address)).collect();
            text = format!("{}\n\n[{name}]\n{}", text.trim_end(), toml::to_string(&members)?);
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn load_from(flags: &[&str]) -> Result<NodeConfig> {
        let line = ["catamaran", "serve"].iter().chain(flags);
        let Command::Serve(args) = Cli::try_parse_from(line).unwrap().command else {
            unreachable!()
        };
        load(&args)
    }

    #[test]
    fn flags_win_over_the_file_and_set_over_both() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        let text = "store_id = 2\ndata_dir = \"d\"\nregions = 4\ntick_ms = 20\n[cluster]\n1 = \"a:1\"\n2 = \"b:2\"\n";
        std::fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap();
        let config =
            load_from(&["--config", path, "--regions", "9", "--set", "tick_ms=30"]).unwrap();
        assert_eq!((config.store_id, config.regions, config.tick_ms), (2, 9, 30));
        assert_eq!(config.cluster[&2], "b:2");
        let printed = print(&config).unwrap();
        assert_eq!(toml::from_str::<NodeConfig>(&printed).unwrap(), config);
    }

    #[test]
    fn who_joins_names_the_others() {
        let line = ["--store-id", "4", "--data-dir", "d", "--join", "1=a:1,2=b:2"];
        let config = load_from(&[&line[..], &["--listen", "d:4"]].concat()).unwrap();
        assert_eq!((config.cluster.len(), config.join[&2].as_str()), (0, "b:2"));
        let printed = print(&config).unwrap();
        assert_eq!(toml::from_str::<NodeConfig>(&printed).unwrap(), config);
        let message = |flags: &[&str]| format!("{:#}", load_from(flags).unwrap_err());
        assert!(message(&line).contains("listen"), "{}", message(&line));
        assert!(message(&["--join", "1=a:1,1=b:1"]).contains("--join: a store id appears twice"));
    }

    #[test]
    fn mistakes_are_explained() {
        let message = |flags: &[&str]| format!("{:#}", load_from(flags).unwrap_err());
        assert!(message(&["--set", "memtable-byte=1"]).contains("did you mean `memtable_bytes`?"));
        assert!(message(&["--set", "colour=red"]).contains("--print-config"));
        assert!(message(&["--store-id", "7", "--cluster", "1=a:1"]).contains("store_id = 7"));
        assert!(message(&["--set", "regions=many"]).contains("regions"));
    }

    #[test]
    fn who_where_and_at_which_address_must_be_said() {
        let message = |flags: &[&str]| format!("{:#}", load_from(flags).unwrap_err());
        let all = message(&[]);
        assert!(all.contains("--store-id, --data-dir, --listen or --cluster"), "{all}");
        assert!(all.contains("catamaran demo"), "{all}");
        let most = ["--store-id", "1", "--data-dir", "d"];
        assert!(message(&most).contains("needs --listen or --cluster ("));
        for listen in [["--listen", "127.0.0.1:0"], ["--cluster", "1=h:1"]] {
            load_from(&[&most[..], &listen[..]].concat()).unwrap();
        }
        load_from(&["--set", "store_id=1", "--set", "data_dir=d", "--set", "listen=h:1"]).unwrap();
        load_from(&["--print-config"]).unwrap();
    }

    #[test]
    fn slips_of_the_finger_are_recognised() {
        let keys = ["regions", "replicas", "listen", "loops", "data_dir"];
        let like = |unknown| suggestion(unknown, keys.into_iter());
        assert_eq!(like("regoins"), Some("regions"));
        assert_eq!(like("DataDir"), Some("data_dir"));
        assert_eq!(like("replica"), Some("replicas"));
        assert_eq!(like("xyzzy"), None);
        assert_eq!(distance("ab", "ba"), 1);
    }
}
