//! The rules of the house that the compiler does not know: floors, zones, file heads and lengths,
//! banned names. Every failure names file, line and rule.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "tidy/source.rs"]
mod source;
use source::{Source, paths};

/// A room names only lower floors. `sim` may name every room; `lib.rs` ties them together.
const FLOORS: &[(&str, u32)] = &[
    ("types", 0),
    ("error", 0),
    ("codec", 0),
    ("pb", 0),
    ("env", 1),
    ("raft", 1),
    ("log", 2),
    ("kv", 2),
    ("region", 3),
    ("config", 3),
    ("testkit", 3),
    ("store", 4),
    ("router", 4),
    ("placement", 4),
    ("transport", 5),
    ("driver", 5),
    ("node", 6),
    ("client", 6),
    ("admin", 6),
    ("sim", 7),
];

/// Within a floor: rooms that may name those before them in the same stair.
const STAIRS: &[&[&str]] = &[&["types", "error", "codec", "pb"], &["client", "node", "admin"]];

fn is_up_the_stairs(own: &str, named: &str) -> bool {
    STAIRS.iter().any(|stair| {
        let at = |room: &str| stair.iter().position(|step| *step == room);
        matches!((at(own), at(named)), (Some(own), Some(named)) if named < own)
    })
}

/// What the crate's root re-exports for everybody (from floor 0).
const ROOT_ITEMS: &[&str] = &["Error", "Outcome", "Result"];

/// Rooms without threads, clocks, sockets or files of their own.
const DETERMINISTIC: &[&str] =
    &["codec", "kv", "log", "placement", "raft", "region", "router", "store"];
/// The part of a deterministic room that belongs to the shell: the tables of a library on real files.
const SHELL_PARTS: &[&str] = &["src/kv/lsm.rs", "src/kv/lsm/"];
/// Rooms where not even a lookup in a hash map is welcome.
const PURE: &[&str] = &["codec", "raft", "router"];

const BANNED_MODULES: &[&str] =
    &["util", "utils", "common", "helper", "helpers", "manager", "core"];

const MAX_LINES: usize = 600;
/// Files that are longer, with their length. This list only shrinks.
const LONG_FILES: &[(&str, usize)] = &[];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `dir`, as paths relative to the root, sorted; build output left out.
fn walk(dir: &str, into: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(root().join(dir)) else { return };
    for entry in entries {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if dir.is_empty() { name.clone() } else { format!("{dir}/{name}") };
        if entry.file_type().unwrap().is_dir() {
            if name != "target" && name != ".git" {
                walk(&path, into);
            }
        } else {
            into.insert(path);
        }
    }
}

fn rust_files(dirs: &[&str]) -> Vec<(String, String)> {
    let mut files = BTreeSet::new();
    dirs.iter().for_each(|dir| walk(dir, &mut files));
    let rust = files.into_iter().filter(|path| path.ends_with(".rs"));
    rust.map(|path| {
        let text = fs::read_to_string(root().join(&path)).unwrap();
        (path, text)
    })
    .collect()
}

/// The module path of a library file: `src/log/read.rs` is `["log", "read"]`.
fn module_of(path: &str) -> Option<Vec<&str>> {
    let inner = path.strip_prefix("src/")?.strip_suffix(".rs")?;
    let inner = inner.strip_suffix("/mod").unwrap_or(inner);
    (inner != "lib").then(|| inner.split('/').collect())
}

fn is_test_file(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    path.starts_with("tests/")
        || path.contains("/tests/")
        || name == "tests.rs"
        || name.ends_with("_tests.rs")
}

fn floor(room: &str) -> Option<u32> {
    FLOORS.iter().find(|(name, _)| *name == room).map(|(_, floor)| *floor)
}

/// Where a path leads, from the crate's root, if it starts at `crate` or climbs with `super`.
fn from_root<'a>(module: &[&'a str], path: &[&'a str]) -> Option<Vec<&'a str>> {
    match *path.first()? {
        "crate" => Some(path[1..].to_vec()),
        "super" => {
            let climbs = path.iter().take_while(|part| **part == "super").count();
            let stem = module.get(..module.len().checked_sub(climbs)?)?;
            Some(stem.iter().chain(&path[climbs..]).copied().collect())
        }
        _ => None,
    }
}

/// All breaches of one file's code.
fn breaches(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let source = Source::read(text);
    let test_file = is_test_file(path);
    let mut report = |line: usize, rule: String| found.push(format!("{path}:{line}: {rule}"));

    if !text.starts_with("//!") {
        report(1, "every file starts with //! and says what it is for".to_owned());
    }
    let lines = text.lines().count();
    let allowed = LONG_FILES.iter().find(|(long, _)| *long == path).map(|(_, len)| *len);
    match allowed {
        None if lines > MAX_LINES => {
            report(lines, format!("{lines} lines, at most {MAX_LINES}: split by verb"));
        }
        Some(allowed) if lines > allowed => report(lines, "a long file grew".to_owned()),
        Some(_) if lines <= MAX_LINES => {
            report(1, "no longer long: take it from LONG_FILES".to_owned());
        }
        _ => {}
    }
    for part in path.trim_end_matches(".rs").split('/') {
        if BANNED_MODULES.contains(&part) {
            report(1, format!("a module called {part}: name it by what it does"));
        }
    }

    for (at, line) in source.lines.iter().enumerate() {
        if test_file || line.test {
            continue;
        }
        let code = line.code.as_str();
        let squeezed: String = code.chars().filter(|c| !c.is_whitespace()).collect();
        if squeezed.contains(".unwrap()") {
            report(at + 1, "unwrap outside tests".to_owned());
        }
        if ["unbounded(", "unbounded::<", "unbounded_channel", "mpsc::channel()"]
            .iter()
            .any(|name| squeezed.contains(name))
        {
            report(at + 1, "an unbounded queue".to_owned());
        }
        for word in BANNED_MODULES {
            if squeezed.contains(&format!("mod{word};"))
                || squeezed.contains(&format!("mod{word}{{"))
            {
                report(at + 1, format!("a module called {word}: name it by what it does"));
            }
        }
    }

    let Some(module) = module_of(path) else { return found };
    let room = module[0];
    let Some(own_floor) = floor(room) else {
        found.push(format!("{path}:1: room {room} has no floor: give it one in tests/tidy.rs"));
        return found;
    };
    let shell_part = SHELL_PARTS.iter().any(|part| path.starts_with(part));
    let deterministic = DETERMINISTIC.contains(&room) && !shell_part;
    for used in paths(&source) {
        // Tests may look anywhere.
        if test_file || used.test {
            continue;
        }
        let parts: Vec<&str> = used.parts.iter().map(String::as_str).collect();
        let mut report = |rule: String| found.push(format!("{path}:{}: {rule}", used.line));
        if let Some(target) = from_root(&module, &parts)
            && let Some(named) = target.first()
            && *named != room
            && room != "sim"
        {
            match floor(named) {
                Some(floor) if floor < own_floor => {}
                Some(_) if is_up_the_stairs(room, named) => {}
                Some(floor) => {
                    report(format!("{room} (floor {own_floor}) names {named} (floor {floor})"));
                }
                None if ROOT_ITEMS.contains(named) || parts == ["crate"] => {}
                None => report(format!("crate::{named} has no floor: name it through its room")),
            }
        }
        if deterministic {
            let banned = match parts[..] {
                ["std", "thread" | "fs" | "net" | "process", ..] => true,
                ["tokio" | "rand" | "getrandom", ..] if parts.len() > 1 || used.import => true,
                _ => parts.iter().any(|part| ["Instant", "SystemTime"].contains(part)),
            };
            if banned {
                report(format!("{} in deterministic room {room}", parts.join("::")));
            }
            let hashed = |part: &&&str| part.ends_with("HashMap") || part.ends_with("HashSet");
            if let Some(map) = parts.iter().find(hashed) {
                if PURE.contains(&room) {
                    report(format!("{map} in pure room {room}"));
                } else if parts.len() > 1 && !text_says_lookup_only(text, &used.span) {
                    report(format!("{map} without the comment `// lookup only`"));
                }
            }
        }
    }
    found
}

fn text_says_lookup_only(text: &str, span: &std::ops::RangeInclusive<usize>) -> bool {
    let from = span.start().saturating_sub(2);
    let lines = text.lines().skip(from).take(span.end() - from);
    lines.into_iter().any(|line| line.contains("// lookup only"))
}

#[test]
fn code_keeps_the_rules() {
    let mut found = Vec::new();
    for (path, text) in rust_files(&["src", "benches", "tools", "tests", "proto", "examples"]) {
        found.extend(breaches(&path, &text));
    }
    for (path, _) in LONG_FILES {
        if !root().join(path).exists() {
            found.push(format!("{path}:1: gone: take it from LONG_FILES"));
        }
    }
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

/// Files under version control; without git, all that are not build output.
fn tracked() -> Vec<String> {
    let listed = std::process::Command::new("git").arg("ls-files").current_dir(root()).output();
    match listed {
        Ok(out) if out.status.success() && !out.stdout.is_empty() => {
            String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect()
        }
        _ => {
            let mut files = BTreeSet::new();
            walk("", &mut files);
            files.into_iter().collect()
        }
    }
}

#[test]
fn nothing_of_one_machine_is_tracked() {
    // In two parts each, so that this file does not find itself.
    let foreign: Vec<String> = [
        ("/wo", "rk/"),
        ("/ho", "me/"),
        ("/ro", "ot/"),
        ("/Us", "ers/"),
        (".cargo/", "registry"),
        ("index.crates", ".io"),
        ("static.crates", ".io"),
        ("static.rust-", "lang.org"),
        ("replace-", "with"),
    ]
    .map(|(a, b)| format!("{a}{b}"))
    .to_vec();
    let registry = format!("registry+https://github.com/rust-lang/{}", "crates.io-index");
    let mut found = Vec::new();
    for path in tracked() {
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        for (at, line) in text.lines().enumerate() {
            let at = at + 1;
            if let Some(name) = foreign.iter().find(|name| line.contains(*name)) {
                found.push(format!("{path}:{at}: names this machine or a registry: {name}"));
            }
            let locked = Path::new(&path).file_name().is_some_and(|name| name == "Cargo.lock");
            if locked && line.starts_with("source = ") && !line.contains(&registry) {
                found.push(format!("{path}:{at}: locked to another registry: {line}"));
            }
        }
    }
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn the_rules_bite() {
    let rules = |path: &str, code: &str| {
        let text = format!("//! Head.\n{code}\n");
        let found = breaches(path, &text);
        found.iter().map(|f| f[path.len() + 1..].to_owned()).collect::<Vec<_>>().join("|")
    };
    let clean = |path: &str, code: &str| assert_eq!(rules(path, code), "", "{path}: {code}");
    let caught = |path: &str, code: &str, what: &str| {
        let found = rules(path, code);
        assert!(found.contains(what), "{path}: {code}: {found:?}");
    };
    clean("src/log/a.rs", "use crate::{env::{Disk, File}, types::*, Error};");
    caught("src/log/a.rs", "use crate::{types::X,\n kv::Y};", "names kv (floor 2)");
    caught("src/log/a.rs", "fn f() { crate::store::g() }", "2: log (floor 2) names store");
    caught("src/log/a.rs", "use super::super::region::X;", "names region");
    caught("src/log/mod.rs", "use super::kv;", "names kv");
    clean("src/log/a.rs", "use super::kv;");
    clean(
        "src/log/a.rs",
        "// crate::store\n/* crate::node /* nested */ crate::kv */ /// crate::kv",
    );
    clean("src/log/a.rs", "const A: &str = \"crate::store .unwrap()\"; const B: char = '\"';");
    clean("src/log/a.rs", "const A: &str = r#\"a \" crate::store\"#; fn f<'a>(x: &'a u8) {}");
    clean("src/sim/a.rs", "use crate::node::Node;");
    clean("src/lib.rs", "pub use crate::node::Node;");
    clean("src/transport/a.rs", "use crate::raft::wire;");
    caught("src/log/a.rs", "use crate::Node;", "has no floor");
    caught("src/attic/a.rs", "", "room attic has no floor");
    caught("src/store/a.rs", "use std::{sync::Arc, thread};", "std::thread");
    caught("src/store/a.rs", "fn f() { std::fs::read(x); }", "std::fs");
    caught("src/store/a.rs", "use std::time::{Duration, Instant};", "Instant");
    caught("src/kv/a.rs", "async fn f() { tokio::spawn(x) }", "tokio");
    clean("src/kv/lsm.rs", "use std::fs;");
    clean("src/driver/a.rs", "use std::{fs, thread, time::Instant};");
    caught("src/raft/a.rs", "use std::collections::HashMap;", "pure room");
    caught("src/log/a.rs", "use std::collections::HashMap;", "lookup only");
    clean("src/log/a.rs", "use std::collections::HashMap; // lookup only");
    caught("src/driver/a.rs", "fn f() { x\n.unwrap() }", "3: unwrap outside tests");
    clean("src/driver/a.rs", "#[cfg(test)]\nmod tests { fn f() { x.unwrap(); } }");
    clean("src/driver/tests.rs", "fn f() { x.unwrap(); }");
    caught("src/driver/a.rs", "#[cfg(test)]\nmod tests;\nfn f() { x.unwrap(); }", "4: unwrap");
    caught("tools/dump/src/a.rs", "fn f() { let x = channel::unbounded(); }", "unbounded");
    caught("src/driver/util.rs", "", "a module called util");
    caught("src/driver/a.rs", "mod helpers { }", "a module called helpers");
    caught("src/driver/a.rs", &"\n".repeat(700), "lines, at most 600");
    assert!(breaches("src/driver/a.rs", "fn f() {}")[0].contains("starts with //!"));
}
