//! Regions change their shapes step by step: scripts of tiny verbs, with what comes of them, for people to read and check.
//! Each file in `tests/scripts` tells one story; its head says which.
//!
//! `UPDATE_GOLDENFILES=1 cargo test --test scripts` writes down what comes of them now: read the difference.
//!
//! | verb | what |
//! |---|---|
//! | `open 3 cut p` | stores 1 to 3 with all regions: 1 up to `p`, 2 from there on; store 1 leads |
//! | `open 3 of 4 cut p` | the same, and store 4 is empty |
//! | `put k=v` | a write, at the leader |
//! | `get k`, `get k at 2`, `get k by lease`, `get k at 3 within 500` | a read: linearizable, by lease, or at most so many milliseconds stale |
//! | `split 1 at m as 4` | cuts region 1; from `m` on it is region 4 |
//! | `merge 2 into 1` | freezes region 2 |
//! | `begin merge 2 into 1` | the same, and nobody waits for what comes of it |
//! | `wish 2` | what the frozen region asks for |
//! | `commit 2` | carries its wish out: takes it in, or has it thawed |
//! | `move 2 from 1 to 4` | a replica goes to another store |
//! | `transfer 1 to 2` | leadership goes to a store |
//! | `isolate 3`, `heal` | a store is cut off; all is mended |
//! | `lose 2 at 3` | nobody hears region 2's replica on store 3, nor does it hear anybody; until `heal` |
//! | `hold 3`, `release 3` | a store applies nothing |
//! | `crash 2`, `restart 2` | power fails; it comes back |
//! | `run 500` | so many milliseconds pass |
//! | `lease 2`, `snapshots`, `status` | who holds a lease; how many snapshots were delivered; all replicas: keys, versions of members and shape, where |
//! | `check` | replicas are equal, regions cover the key space, who is gone is gone |

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use catamaran::sim::stage::{Outcome, Setback, Stage};
use catamaran::store::ReadLevel;
use catamaran::types::{RegionId, StoreId};
use goldenscript::{Argument, Command, Runner};
use std::error::Error;
use std::time::Duration;

#[derive(Default)]
struct Script {
    stage: Option<Stage>,
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("{word} is no number"))
}

fn region(word: &str) -> RegionId {
    RegionId(number(word))
}

fn store(word: &str) -> StoreId {
    StoreId(number(word))
}

fn text(bytes: Option<bytes::Bytes>) -> String {
    bytes.map_or("nothing".to_owned(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// `get k at 2 by lease`, without the first word.
fn get(stage: &mut Stage, words: &[&str]) -> Outcome<String> {
    let [key, options @ ..] = words else { panic!("get what?") };
    let (mut at, mut level) = (None, ReadLevel::Linearizable);
    for pair in options.chunks(2) {
        match pair {
            ["at", id] => at = Some(store(id)),
            ["by", "lease"] => level = ReadLevel::Lease,
            ["within", ms] => level = ReadLevel::Stale { max: Duration::from_millis(number(ms)) },
            _ => panic!("get {pair:?}?"),
        }
    }
    let (from, value) = stage.get(key, at, level)?;
    Ok(format!("{} ({from})", text(value)))
}

fn act(stage: &mut Stage, words: &[&str]) -> Outcome<String> {
    let done = match words {
        ["get", rest @ ..] => return get(stage, rest),
        ["status"] => return Ok(stage.status()),
        ["snapshots"] => return Ok(stage.snapshots().to_string()),
        ["lease", id] => {
            let holders: Vec<_> =
                stage.leases(region(id)).iter().map(ToString::to_string).collect();
            return Ok(if holders.is_empty() { "nobody".into() } else { holders.join(", ") });
        }
        ["wish", id] => {
            let (target, entries) = stage.wish(region(id))?;
            return Ok(format!("into {target}; entries: {entries}"));
        }
        ["split", id, "at", key, "as", child] => stage.split(region(id), key, region(child)),
        ["merge", id, "into", target] => stage.merge(region(id), region(target)),
        ["begin", "merge", id, "into", target] => stage.begin_merge(region(id), region(target)),
        ["commit", id] => return stage.commit(region(id)).map(|()| "done".into()),
        ["move", id, "from", from, "to", to] => {
            stage.move_replica(region(id), store(from), store(to))
        }
        ["transfer", id, "to", to] => stage.transfer(region(id), store(to)),
        ["crash", id] => stage.crash(store(id)),
        ["restart", id] => stage.restart(store(id)),
        ["run", ms] => stage.run(Duration::from_millis(number(ms))),
        ["check"] => stage.check(),
        ["isolate", id] => {
            stage.isolate(store(id));
            Ok(())
        }
        ["heal"] => {
            stage.heal();
            Ok(())
        }
        ["lose", id, "at", at] => {
            stage.lose(region(id), store(at));
            Ok(())
        }
        ["hold", id] => {
            stage.hold(store(id));
            Ok(())
        }
        ["release", id] => {
            stage.release(store(id));
            Ok(())
        }
        other => panic!("no such verb: {other:?}"),
    };
    done.map(|()| String::new())
}

impl Runner for Script {
    fn run(&mut self, command: &Command) -> Result<String, Box<dyn Error>> {
        let values = command.args.iter().filter(|arg| arg.key.is_none());
        let words: Vec<&str> = std::iter::once(command.name.as_str())
            .chain(values.map(|arg| arg.value.as_str()))
            .collect();
        if let ["open", stores, cuts @ ..] = &words[..] {
            let (all, cuts) = match cuts {
                ["of", all, cuts @ ..] => (all, cuts),
                cuts => (stores, cuts),
            };
            let cuts = cuts.strip_prefix(&["cut"]).unwrap_or(cuts);
            let stage = Stage::open_among(number(stores), number(all), cuts, None);
            self.stage = Some(stage.map_err(|e| e.to_string())?);
            return Ok(String::new());
        }
        let stage = self.stage.as_mut().expect("open comes first");
        let pairs: Vec<&Argument> = command.args.iter().filter(|arg| arg.key.is_some()).collect();
        let outcome = match pairs[..] {
            [] => act(stage, &words),
            _ => pairs
                .iter()
                .try_for_each(|pair| stage.put(pair.name(), &pair.value))
                .map(|()| String::new()),
        };
        match outcome {
            Ok(said) if said.is_empty() || said.contains('\n') => Ok(said),
            Ok(said) => Ok(format!("{}: {said}", words.join(" "))),
            Err(broken @ Setback::Broken(_)) => Err(broken.to_string().into()),
            Err(refused) => Ok(format!("{}: {refused}", words.join(" "))),
        }
    }
}

#[test]
fn scripts_come_out_as_written() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut paths: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 8, "{paths:?}");
    for path in paths {
        println!("{}", path.display());
        goldenscript::run(&mut Script::default(), &path).unwrap();
    }
}
