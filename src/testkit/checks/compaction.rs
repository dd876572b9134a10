//! Compaction is logical, purge is physical: neither takes what is still needed.

use crate::log::Entry;
use crate::testkit::conformance::Check;
use crate::testkit::report::{Outcome, ensure};
use crate::testkit::store::Batch;
use crate::testkit::world::{Dice, World, entries, entry};
use crate::types::LogPosition;

pub(in crate::testkit) const CHECKS: &[Check] = &[
    Check {
        name: "compaction-drops-the-prefix",
        story: "Entries below the compaction are gone, those above stay, also in the middle of what was \
                written at once. A prefix that comes back after a restart is applied twice.",
        run: drops_the_prefix,
    },
    Check {
        name: "compaction-only-advances",
        story: "A compaction that was overtaken arrives late. It must not bring the past back, nor hide \
                what is there.",
        run: only_advances,
    },
    Check {
        name: "everything-compacted",
        story: "A quiet group is compacted up to its last entry. Its next entry has the next index, also \
                after a restart; a log that starts over at 1 is a replica that forgot.",
        run: everything,
    },
    Check {
        name: "compaction-keeps-its-position",
        story: "Log matching needs the term of the entry before the first. Without it every follower that \
                is exactly there needs a snapshot.",
        run: keeps_position,
    },
    Check {
        name: "compacted-is-not-overwritten",
        story: "What is compacted was committed and applied. An append below it would rewrite history.",
        run: not_overwritten,
    },
    Check {
        name: "reset-starts-after-a-snapshot",
        story: "A restored snapshot is ahead of the log. The log goes on after it, and not an entry from \
                before may be left, behind it or ahead of it.",
        run: reset,
    },
    Check {
        name: "purge-gives-space-back",
        story: "A store that keeps what was compacted fills the disk, and then every group of the node \
                stops together.",
        run: space_back,
    },
    Check {
        name: "a-laggard-keeps-its-entries",
        story: "One follower is down and its group cannot compact, while thousands of others go on. Its \
                entries must outlive every file that they were once written to.",
        run: laggard,
    },
    Check {
        name: "like-a-map",
        story: "Whatever the order of appends, overwrites, compactions, clears, purges and restarts: what \
                is read is what a plain map would hold.",
        run: like_a_map,
    },
];

fn drops_the_prefix(world: &mut World<'_>) -> Outcome {
    world.write(Batch::new().append(1, entries(1, 1..50, 1)).append(1, entries(1, 50..70, 2)))?;
    for (to, term) in [(1, 1), (7, 1), (48, 1), (49, 1), (50, 2), (68, 2)] {
        world.write(Batch::new().compact(1, to, term))?;
        world.check()?;
        world.reopen()?;
        world.purge()?;
        world.check()?;
    }
    world.write(Batch::new().append(1, entries(1, 70..75, 3)))?;
    world.reopen()
}

fn only_advances(world: &mut World<'_>) -> Outcome {
    world.write(Batch::new().append(1, entries(1, 1..50, 1)))?;
    world.write(Batch::new().compact(1, 30, 1))?;
    for late in [29, 1, 30] {
        world.write(Batch::new().compact(1, late, 1))?;
        world.check()?;
    }
    world.reopen()
}

fn everything(world: &mut World<'_>) -> Outcome {
    world.write(Batch::new().append(1, entries(1, 1..50, 3)).append(2, entries(2, 1..9, 1)))?;
    world.write(Batch::new().compact(1, 49, 3))?;
    world.check()?;
    world.reopen()?;
    world.purge()?;
    world.reopen()?;
    world
        .write_refused(Batch::new().append(1, entries(1, 51..52, 3)), "an append that skips one")?;
    world.write(Batch::new().append(1, entries(1, 50..53, 4)))?;
    world.check()?;
    world.reopen()
}

fn keeps_position(world: &mut World<'_>) -> Outcome {
    world.write(Batch::new().append(1, entries(1, 1..20, 3)).append(1, entries(1, 20..30, 5)))?;
    for (index, term) in [(10, 3), (20, 5), (29, 5)] {
        world.write(Batch::new().compact(1, index, term))?;
        for _ in 0..2 {
            let found = world.store()?.truncated(1)?;
            let expected = LogPosition { index, term };
            ensure!(found == expected, "position {found:?}, expected {expected:?}");
            world.purge()?;
            world.reopen()?;
        }
    }
    let nothing = world.store()?.truncated(2)?;
    ensure!(nothing == LogPosition::default(), "an unknown group's position is {nothing:?}");
    Ok(())
}

fn not_overwritten(world: &mut World<'_>) -> Outcome {
    world.write(Batch::new().append(1, entries(1, 1..20, 3)))?;
    world.write(Batch::new().compact(1, 10, 3))?;
    for from in [1, 9, 10] {
        let below = Batch::new().append(1, entries(1, from..25, 4));
        world.write_refused(below, "an append below the compaction")?;
    }
    world.write(Batch::new().append(1, entries(1, 11..13, 4)))?;
    world.reopen()
}

fn reset(world: &mut World<'_>) -> Outcome {
    world.write(Batch::new().append(1, entries(1, 1..20, 3)).state(1, "kept"))?;
    // Ahead of the log; then back to within what was once written; then where the log is.
    for (index, term) in [(100, 7), (10, 8), (12, 9)] {
        world.write(Batch::new().reset(1, index, term))?;
        world.check()?;
        let found = world.store()?.truncated(1)?;
        ensure!(
            found == LogPosition { index, term },
            "position {found:?} after a reset to {index}"
        );
        world.reopen()?;
        world.write(Batch::new().append(1, entries(1, index + 1..index + 3, term)))?;
        world.purge()?;
        world.reopen()?;
    }
    Ok(())
}

fn space_back(world: &mut World<'_>) -> Outcome {
    let store = |world: &World<'_>| -> Outcome<u64> { Ok(world.store()?.disk_bytes()?) };
    store(world)?;
    let mut full = 0;
    // Noise: a store that compresses must grow as well.
    let mut dice = Dice(0x0dd5_eed5);
    for round in 0..40u64 {
        for group in 1..=4 {
            let mut noise = |index| {
                let data: Vec<u8> = (0..1000).map(|_| dice.roll(256) as u8).collect();
                Entry { data: data.into(), ..entry(group, index, 1, 0) }
            };
            let run = (round * 10 + 1..round * 10 + 11).map(&mut noise).collect();
            world.write(Batch::new().append(group, run))?;
        }
        world.sync()?;
        full = full.max(store(world)?);
    }
    for group in 1..=4 {
        world.write(Batch::new().compact(group, 400, 1))?;
    }
    world.sync()?;
    for _ in 0..100 {
        world.purge()?;
    }
    let left = store(world)?;
    ensure!(left <= full / 2, "{left} of {full} bytes are left after everything was compacted");
    world.check()?;
    world.reopen()
}

fn laggard(world: &mut World<'_>) -> Outcome {
    let data =
        |index| (1..3).map(|group| entry(group, index, 1 + index / 20, 200)).collect::<Vec<_>>();
    for index in 1..=60u64 {
        let mut batch = Batch::new();
        for (group, entry) in (1..).zip(data(index)) {
            batch = batch.append(group, vec![entry]);
        }
        for group in 10..20 {
            batch = batch.append(group, vec![entry(group, index, 1, 1500)]);
            if index > 2 {
                batch = batch.compact(group, index - 2, 1);
            }
        }
        world.write(batch)?;
        world.sync()?;
        if index % 5 == 0 {
            world.purge()?;
            world.check()?;
        }
        if index % 20 == 0 {
            world.reopen()?;
        }
    }
    world.reopen()
}

fn like_a_map(world: &mut World<'_>) -> Outcome {
    let mut dice = Dice(0x5851_f42d_4c95_7f2d);
    let mut term = 1;
    for step in 0..600 {
        let mut batch = Batch::new();
        for _ in 0..=dice.roll(3) {
            let id = 1 + dice.roll(8);
            // What the batch has done so far counts: operations of a batch build on each other.
            let mut model = world.model.clone();
            model.apply(&batch);
            let group = model.groups.get(&id).cloned().unwrap_or_default();
            batch = match dice.roll(14) {
                0 => batch.clear(id),
                1..=2 => batch.state(id, format!("state {step}")),
                3..=5 => {
                    let room = group.last() - group.truncated.index;
                    let index = group.truncated.index + dice.roll(room + 1);
                    match group.entries.get(&index) {
                        Some(entry) => batch.compact(id, index, entry.term),
                        None => batch,
                    }
                }
                _ => {
                    let back = dice.roll(4).saturating_sub(1);
                    let first =
                        (group.last() + 1).saturating_sub(back).max(group.truncated.index + 1);
                    term += u64::from(back > 0);
                    let len = dice.roll(2000) as usize;
                    let run = (first..=first + dice.roll(5)).map(|i| entry(id, i, term, len));
                    batch.append(id, run.collect())
                }
            };
        }
        world.write(batch)?;
        match dice.roll(20) {
            0 => world.purge()?,
            1 => world.reopen()?,
            2..=5 => world.sync()?,
            6..=9 => world.check()?,
            _ => {}
        }
    }
    world.reopen()
}
