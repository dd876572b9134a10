//! Crashes, failing syncs, full disks, rot. Each needs an ability of the factory.

use crate::testkit::conformance::Check;
use crate::testkit::model::Model;
use crate::testkit::report::{Outcome, Trouble, ensure, fail};
use crate::testkit::store::{Batch, Failure};
use crate::testkit::world::{Dice, World, entries, entry};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub(in crate::testkit) const CHECKS: &[Check] = &[
    Check {
        name: "synced-is-durable",
        story: "An acknowledgement leaves the node once the sync has returned. If the process then dies and \
                the entry is not there, a majority was counted that did not exist.",
        run: synced_is_durable,
    },
    Check {
        name: "a-power-cut-loses-nothing-synced",
        story: "The machine loses power. What was synced is there; what was not is there or not, batch by \
                batch in order, each over all its groups or over none.",
        run: power_cut,
    },
    Check {
        name: "nothing-is-acknowledged-after-a-failed-sync",
        story: "After a failed fsync the kernel may have dropped the pages and will call the next fsync a \
                success. A store that tries again acknowledges what is nowhere.",
        run: failed_sync,
    },
    Check {
        name: "a-full-disk-is-survived",
        story: "The disk fills up. Writes are refused with an error that says so, reads go on, nothing that \
                was synced is lost, and when there is room again, writes go on too.",
        run: full_disk,
    },
    Check {
        name: "a-flipped-byte-is-never-silent",
        story: "A byte of a log that was closed properly rots. The store may repair it, refuse to open, or \
                fence off the group. It may not serve other bytes, nor act as if acknowledged entries \
                had never been: that replica would vote as one that forgot.",
        run: flipped_byte,
    },
];

fn synced_is_durable(world: &mut World<'_>) -> Outcome {
    for round in 0..10u64 {
        let range = round * 5 + 1..round * 5 + 6;
        let batch =
            Batch::new().append(1, entries(1, range, round + 1)).state(2, vec![round as u8]);
        world.write(batch)?;
        world.sync()?;
        world.drop_store();
        world.open()?;
        world.check()?;
    }
    Ok(())
}

fn power_cut(world: &mut World<'_>) -> Outcome {
    let mut dice = Dice(0x9e37_79b9);
    for cut in 0..60u64 {
        // Each state that the log has gone through since the last sync may be what is left.
        let mut after = vec![world.model.clone()];
        for n in 0..=dice.roll(12) {
            let id = 1 + dice.roll(3);
            let mut batch = Batch::new();
            for group in [id, id + 10, id + 20] {
                let next = world.model.last(group) + 1;
                let len = dice.roll(3000) as usize;
                batch = batch.append(group, vec![entry(group, next, cut + 1, len)]);
            }
            batch = batch.state(id, format!("{cut}/{n}"));
            world.write(batch)?;
            after.push(world.model.clone());
            match dice.roll(6) {
                0 | 1 => {
                    world.sync()?;
                    after = vec![world.model.clone()];
                }
                2 => {
                    // A purge may sync; what it must not do is lose.
                    world.purge()?;
                }
                _ => {}
            }
        }
        world.drop_store();
        world.factory.cut_power(&world.name, cut * 7919 + 1)?;
        world.open()?;
        let store = world.store()?;
        let fits = after.iter().rev().find(|model| model.compare(store).is_ok());
        let Some(model) = fits.cloned() else {
            let synced = after.first().map(|model: &Model| model.compare(store));
            fail!(
                "after power cut {cut} the log is none of what it was; against what was synced: {synced:?}"
            )
        };
        world.model = model;
    }
    Ok(())
}

fn failed_sync(world: &mut World<'_>) -> Outcome {
    world.write(Batch::new().append(1, entries(1, 1..4, 1)))?;
    world.sync()?;
    let synced = world.model.clone();
    world.factory.fail_next_sync(&world.name)?;
    world.write(Batch::new().append(1, entries(1, 4..6, 1)))?;
    if world.store()?.sync().is_ok() {
        fail!("the sync failed, and the store says that all is well");
    }
    // The disk works again, by its own account.
    for again in 1..=3 {
        ensure!(
            world.store()?.sync().is_err(),
            "sync number {again} after the failed one succeeded"
        );
    }
    let more = Batch::new().append(1, entries(1, 6..8, 1));
    if world.store()?.write(&more).is_ok() {
        let sync = world.store()?.sync();
        ensure!(sync.is_err(), "a write after the failed sync was acknowledged");
    }
    world.drop_store();
    world.open()?;
    // What the failed sync was about may be there or not.
    let store = world.store()?;
    let mut more = synced.clone();
    more.apply(&Batch::new().append(1, entries(1, 4..6, 1)));
    if synced.compare(store).is_ok() || more.compare(store).is_ok() {
        return Ok(());
    }
    fail!("what was synced before the failure is not there: {:?}", synced.compare(store))
}

fn full_disk(world: &mut World<'_>) -> Outcome {
    world.write(Batch::new().append(1, entries(1, 1..10, 1)).state(1, "before"))?;
    world.sync()?;
    world.factory.limit_space(&world.name, Some(100_000))?;
    let mut synced = world.model.clone();
    let mut full = false;
    for index in 10..400u64 {
        let batch = Batch::new().append(1, vec![entry(1, index, 1, 4000)]);
        let store = world.store()?;
        let written = store.write(&batch);
        let was_synced = written.clone().and_then(|()| store.sync());
        if written.is_ok() {
            world.model.apply(&batch);
        }
        match was_synced {
            Ok(()) => synced = world.model.clone(),
            Err(Failure::NoRoom(_)) => {
                full = true;
                break;
            }
            Err(other) => fail!("expected to hear that there is no room, not: {other}"),
        }
    }
    ensure!(full, "100,000 bytes of room took more than a million");
    // Reads go on.
    let last = synced.last(1);
    let found = world.store()?.entries(1, 1, last + 1, u64::MAX)?;
    ensure!(found.len() as u64 == last, "{} entries are left of {last}", found.len());
    // There is room again: what was taken becomes durable, and more.
    world.factory.limit_space(&world.name, None)?;
    world.sync()?;
    let next = world.model.last(1) + 1;
    world.write(Batch::new().append(1, vec![entry(1, next, 1, 4000)]))?;
    world.sync()?;
    world.drop_store();
    world.open()?;
    world.check()
}

/// How many bytes are flipped, one at a time.
const FLIPS: u64 = 300;

fn flipped_byte(world: &mut World<'_>) -> Outcome {
    let dir = world.factory.directory(&world.name)?;
    for index in 1..=30u64 {
        let mut batch = Batch::new();
        for group in 1..=4 {
            batch = batch.append(group, vec![entry(group, index, 1 + index / 10, 300)]);
        }
        world.write(batch.state(index % 4 + 1, format!("state {index}")))?;
        world.sync()?;
    }
    world.close()?;
    let sound = read_files(&dir)?;
    let mut written: Vec<(PathBuf, usize)> = Vec::new();
    for (path, bytes) in &sound {
        // Preallocated zeros say nothing.
        written.extend(
            bytes.iter().enumerate().filter(|(_, b)| **b != 0).map(|(at, _)| (path.clone(), at)),
        );
    }
    ensure!(!written.is_empty(), "there is nothing in the files of {}", dir.display());
    let mut dice = Dice(0x517c_c1b7);
    for _ in 0..FLIPS {
        let (path, at) = &written[dice.roll(written.len() as u64) as usize];
        let mut rotten = sound.get(path).cloned().unwrap_or_default();
        rotten[*at] ^= 1 << dice.roll(8);
        write_file(path, &rotten)?;
        let what =
            format!("byte {at} of {}", path.file_name().unwrap_or_default().to_string_lossy());
        match world.open() {
            // Refusing is fine.
            Err(Trouble::Failed(_)) => {}
            Err(skipped) => return Err(skipped),
            Ok(()) => judge_rotten(world, &what)?,
        }
        world.drop_store();
        restore(&dir, &sound)?;
    }
    world.open()?;
    world.check()
}

/// Each group is whole, or says that it is damaged.
fn judge_rotten(world: &World<'_>, what: &str) -> Outcome {
    let store = world.store()?;
    for (id, group) in &world.model.groups {
        let bounds = match store.bounds(*id) {
            Ok(bounds) => bounds,
            Err(_) => continue,
        };
        let last = group.last();
        ensure!(
            bounds == Some((1, last)),
            "{what} flipped, and group {id} says nothing but shows {bounds:?} of 1..={last}"
        );
        match store.state(*id) {
            Ok(state) => ensure!(
                state == group.state,
                "{what} flipped, and group {id}'s state became {state:?}"
            ),
            Err(_) => continue,
        }
        let Ok(found) = store.entries(*id, 1, last + 1, u64::MAX) else { continue };
        ensure!(
            found.iter().eq(group.entries.values()),
            "{what} flipped, and group {id} serves entries that nobody wrote"
        );
    }
    Ok(())
}

type Files = BTreeMap<PathBuf, Vec<u8>>;

fn io(what: &Path) -> impl FnOnce(std::io::Error) -> Trouble + '_ {
    move |error| Trouble::Failed(format!("{}: {error}", what.display()))
}

fn read_files(dir: &Path) -> Outcome<Files> {
    let mut files = Files::new();
    for item in std::fs::read_dir(dir).map_err(io(dir))? {
        let path = item.map_err(io(dir))?.path();
        if path.is_file() {
            let bytes = std::fs::read(&path).map_err(io(&path))?;
            files.insert(path, bytes);
        }
    }
    Ok(files)
}

fn write_file(path: &Path, bytes: &[u8]) -> Outcome {
    std::fs::write(path, bytes).map_err(io(path))
}

fn restore(dir: &Path, files: &Files) -> Outcome {
    for path in read_files(dir)?.keys().filter(|path| !files.contains_key(*path)) {
        std::fs::remove_file(path).map_err(io(path))?;
    }
    files.iter().try_for_each(|(path, bytes)| write_file(path, bytes))
}
