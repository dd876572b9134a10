//! Groups live beside each other and know nothing of each other; a group that went stays gone.

use crate::testkit::conformance::Check;
use crate::testkit::report::{Outcome, ensure, fail};
use crate::testkit::store::Batch;
use crate::testkit::world::{Dice, World, entries, entry};

pub(in crate::testkit) const CHECKS: &[Check] = &[
    Check {
        name: "state-and-entries-are-independent",
        story: "A vote is written without entries, entries without a vote. A hard state that an append, an \
                overwrite or a compaction takes along is a vote given twice.",
        run: state_and_entries,
    },
    Check {
        name: "state-is-the-last-one",
        story: "The hard state changes with every commit. An older one that comes back after a purge or a \
                restart is a term that goes backwards.",
        run: last_state,
    },
    Check {
        name: "clear-forgets",
        story: "A removed peer's log must be gone at once and for ever: the region may come back here under \
                a new peer id, and must start from nothing.",
        run: clear_forgets,
    },
    Check {
        name: "cleared-groups-do-not-resurrect",
        story: "The record of the clear sits in a file that is purged, the entries in one that is not. \
                After the next restart a dead peer stands up, votes, and destroys a committed entry.",
        run: no_resurrection,
    },
    Check {
        name: "purge-touches-no-other-group",
        story: "Freeing the space of a removed group rewrites or drops files in which others live. If one \
                of theirs goes with it, a replica has lost acknowledged entries by the removal of a \
                stranger.",
        run: purge_and_others,
    },
    Check {
        name: "many-groups",
        story: "A node has thousands of groups, most of them with a handful of entries. All of them are \
                there after a restart.",
        run: many_groups,
    },
    Check {
        name: "groups-are-listed",
        story: "A node finds its replicas by asking the store. One that is not listed is one that never \
                starts again; one too many is a ghost.",
        run: listed,
    },
    Check {
        name: "two-stores-do-not-see-each-other",
        story: "Two nodes in one process (a test, a multi-tenant server) share globals they did not know \
                of, and one of them recovers the other's log.",
        run: two_stores,
    },
    Check {
        name: "reopening-many-times",
        story: "A node that crash-loops opens its log hundreds of times before somebody looks. It may \
                neither lose its log by that nor fill its disk.",
        run: reopening,
    },
];

fn state_and_entries(world: &mut World<'_>) -> Outcome {
    world.write(Batch::new().state(1, "vote"))?;
    world.check()?;
    world.reopen()?;
    world.write(Batch::new().append(1, entries(1, 1..9, 1)))?;
    world.write(Batch::new().append(2, entries(2, 1..9, 1)))?;
    world.check()?;
    world.write(Batch::new().append(1, entries(1, 4..6, 2)))?;
    world.check()?;
    world.write(Batch::new().compact(1, 5, 2))?;
    world.check()?;
    world.reopen()?;
    world.purge()?;
    world.reopen()?;
    world.write(Batch::new().state(2, "late"))?;
    world.reopen()
}

fn last_state(world: &mut World<'_>) -> Outcome {
    for round in 0..120u64 {
        for group in 1..=3 {
            let state = format!("{round} of {group}, ").repeat(1 + (round % 40) as usize);
            let index = round + 1;
            let batch = Batch::new().state(group, state);
            let batch = batch.append(group, vec![entry(group, index, 1, 700)]);
            world.write(if index > 1 { batch.compact(group, index - 1, 1) } else { batch })?;
        }
        world.sync()?;
        match round % 10 {
            3 => world.purge()?,
            7 => world.reopen()?,
            _ => {}
        }
    }
    world.reopen()
}

fn clear_forgets(world: &mut World<'_>) -> Outcome {
    let fill = || Batch::new().append(1, entries(1, 1..40, 4)).state(1, "old");
    world.write(fill())?;
    world.write(Batch::new().clear(1))?;
    world.check()?;
    ensure!(world.store()?.bounds(1)?.is_none(), "a cleared group has entries");
    ensure!(world.store()?.state(1)?.is_none(), "a cleared group has a state");
    world.reopen()?;
    ensure!(world.store()?.state(1)?.is_none(), "a cleared group has a state, after reopening");
    ensure!(world.store()?.bounds(1)?.is_none(), "a cleared group has entries, after reopening");
    // Cleared twice, and cleared without ever having been.
    world.write(Batch::new().clear(1).clear(77))?;
    world.write(fill())?;
    world.sync()?;
    world.write(Batch::new().clear(1))?;
    // Its next life is shorter than the last.
    world.write(Batch::new().append(1, entries(1, 1..3, 1)))?;
    world.check()?;
    world.reopen()
}

fn no_resurrection(world: &mut World<'_>) -> Outcome {
    // Life, death, then so much of others' that every file turns over, with purges and restarts at
    // different moments between.
    for round in 0..6u64 {
        for group in 100..110 {
            let run = (1..6).map(|i| entry(group, i, round + 1, 500)).collect();
            world.write(Batch::new().append(group, run).state(group, "alive"))?;
        }
        world.sync()?;
        if round % 2 == 0 {
            filler(world)?;
        }
        for group in 100..110 {
            if group % 3 != round % 3 {
                world.write(Batch::new().clear(group))?;
            }
        }
        world.sync()?;
        world.purge()?;
        world.reopen()?;
        filler(world)?;
        world.purge()?;
        world.reopen()?;
        world.purge()?;
        world.check()?;
        for group in 100..110 {
            if group % 3 == round % 3 {
                world.write(Batch::new().clear(group))?;
            }
        }
        world.reopen()?;
    }
    for group in 100..110 {
        ensure!(world.store()?.bounds(group)?.is_none(), "group {group} stood up");
        ensure!(world.store()?.state(group)?.is_none(), "group {group}'s state stood up");
    }
    Ok(())
}

/// Some hundred KiB of another group's, compacted again.
fn filler(world: &mut World<'_>) -> Outcome {
    let from = world.model.last(7) + 1;
    for index in from..from + 60 {
        let batch = Batch::new().append(7, vec![entry(7, index, 1, 4000)]);
        world.write(if index > 3 { batch.compact(7, index - 3, 1) } else { batch })?;
        if index % 6 == 0 {
            world.sync()?;
        }
    }
    Ok(())
}

fn purge_and_others(world: &mut World<'_>) -> Outcome {
    let mut dice = Dice(0x2545_f491);
    for round in 0..40 {
        let mut batch = Batch::new();
        for group in 1..=20u64 {
            let next = world.model.last(group) + 1;
            let len = dice.roll(1200) as usize;
            batch = batch.append(group, vec![entry(group, next, 1 + round / 8, len)]);
        }
        world.write(batch)?;
        if dice.roll(2) == 0 {
            world.sync()?;
        }
        let victim = 1 + dice.roll(20);
        match dice.roll(4) {
            0 => world.write(Batch::new().clear(victim))?,
            1 => {
                let group = world.model.groups.get(&victim).cloned().unwrap_or_default();
                if let Some(last) = group.entries.values().next_back() {
                    world.write(Batch::new().compact(victim, last.index, last.term))?;
                }
            }
            _ => {}
        }
        world.purge()?;
        world.check()?;
        if round % 9 == 8 {
            world.reopen()?;
        }
    }
    world.reopen()
}

fn many_groups(world: &mut World<'_>) -> Outcome {
    for chunk in 0..20u64 {
        let mut batch = Batch::new();
        for group in chunk * 150 + 1..=chunk * 150 + 150 {
            // Ids that are dense, sparse, and hashed.
            let group =
                if group % 3 == 0 { group.wrapping_mul(0x9e37_79b9_7f4a_7c15) } else { group };
            batch = batch
                .append(group, entries(group, 1..3, 1))
                .state(group, group.to_le_bytes().to_vec());
        }
        world.write(batch)?;
    }
    world.check()?;
    world.reopen()?;
    world.purge()?;
    world.reopen()
}

fn listed(world: &mut World<'_>) -> Outcome {
    let batch = Batch::new().append(1, entries(1, 1..3, 1)).state(2, "only a vote");
    world.write(batch.append(3, entries(3, 1..3, 1)).state(3, "both"))?;
    world.write(Batch::new().append(4, entries(4, 1..3, 1)).clear(4))?;
    for round in 0..2 {
        let found = world.store()?.groups()?;
        for group in [1, 2, 3] {
            ensure!(found.contains(&group), "group {group} is not among {found:?}");
        }
        ensure!(!found.contains(&4), "the cleared group 4 is among {found:?}");
        ensure!(!found.contains(&5), "group 5, that nobody wrote, is among {found:?}");
        if round == 0 {
            world.reopen()?;
        }
    }
    Ok(())
}

fn two_stores(world: &mut World<'_>) -> Outcome {
    let other = format!("{}-other", world.name);
    let mut second = World::new(world.factory, &other)?;
    for round in 0..10u64 {
        let range = round * 3 + 1..round * 3 + 4;
        let ours =
            Batch::new().append(1, entries(1, range.clone(), 1)).state(1, format!("a{round}"));
        world.write(ours)?;
        let theirs: Vec<_> = range.map(|i| entry(1, i, 2, 333)).collect();
        second.write(Batch::new().append(1, theirs).state(2, format!("b{round}")))?;
        world.check()?;
        second.check()?;
        if round == 5 {
            world.purge()?;
            world.reopen()?;
            second.check()?;
        }
    }
    second.write(Batch::new().clear(1))?;
    second.reopen()?;
    world.reopen()?;
    world.purge()?;
    if world.store()?.bounds(1)? != Some((1, 30)) {
        fail!("clearing a group of the second store touched the first");
    }
    Ok(())
}

fn reopening(world: &mut World<'_>) -> Outcome {
    world.write(Batch::new().append(1, entries(1, 1..100, 1)).state(1, "here"))?;
    world.reopen()?;
    let size = |world: &World<'_>| world.store().ok().and_then(|store| store.disk_bytes().ok());
    let first = size(world);
    for n in 0..40 {
        if n % 2 == 0 {
            world.reopen()?;
        } else {
            // Without a proper end; there is nothing that it could lose.
            world.drop_store();
            world.open()?;
            world.check()?;
        }
    }
    if let (Some(first), Some(last)) = (first, size(world)) {
        ensure!(last <= first * 4, "{first} bytes have become {last} by reopening alone");
    }
    world.write(Batch::new().append(1, entries(1, 100..102, 1)))?;
    world.reopen()
}
