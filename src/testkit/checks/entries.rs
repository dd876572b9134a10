//! Entries: what is read is what was written last.

use crate::log::Entry;
use crate::testkit::conformance::Check;
use crate::testkit::report::{Outcome, ensure, fail};
use crate::testkit::store::{Batch, Failure};
use crate::testkit::world::{World, entries, entry};

pub(in crate::testkit) const CHECKS: &[Check] = &[
    Check {
        name: "read-your-writes",
        story: "raft reads back, within the round, what it has just given to the store. An entry that is \
                not there yet ends the process.",
        run: read_your_writes,
    },
    Check {
        name: "bounded-reads",
        story: "A leader fills its messages by bytes. A read that returns nothing for the sake of the \
                limit stops replication for ever; one that ignores it sends messages nobody can take.",
        run: bounded_reads,
    },
    Check {
        name: "outside-reads",
        story: "A read outside of what is there must say so. Entries made up, or of another group, would \
                be applied.",
        run: outside_reads,
    },
    Check {
        name: "suffix-overwrite",
        story: "A deposed leader's entries are overwritten by its successor's. If the old suffix shines \
                through, this replica applies what was never committed.",
        run: suffix_overwrite,
    },
    Check {
        name: "overwritten-suffix-stays-gone",
        story: "The overwritten suffix was longer than what replaced it, and still lies in an older file. \
                Recovery that glues it behind the new entries makes a log that no leader ever had.",
        run: suffix_stays_gone,
    },
    Check {
        name: "terms-change-anywhere",
        story: "Terms decide elections and log matching. One wrong term in the index, and two replicas \
                agree on an entry that differs.",
        run: terms_change,
    },
    Check {
        name: "entries-of-any-size",
        story: "An entry of no bytes is what a new leader appends, and one of megabytes is what a user \
                writes. Neither may be lost, joined, or cut, at the end of a file or elsewhere.",
        run: any_size,
    },
    Check {
        name: "large-entries",
        story: "A batch larger than a segment has to go somewhere, whole.",
        run: large_entries,
    },
    Check {
        name: "extreme-numbers",
        story: "Indexes and terms after years of elections, and ids that were hashed: no width may be \
                saved on them.",
        run: extreme_numbers,
    },
];

fn read_your_writes(world: &mut World<'_>) -> Outcome {
    for index in 1..200 {
        world.write(Batch::new().append(1, vec![entry(1, index, 1 + index / 50, 100)]))?;
        let bounds = world.store()?.bounds(1)?;
        ensure!(bounds == Some((1, index)), "bounds {bounds:?} after writing entry {index}");
        let back = world.store()?.entries(1, index, index + 1, u64::MAX)?;
        ensure!(back == [entry(1, index, 1 + index / 50, 100)], "entry {index} read: {back:?}");
        if index % 31 == 0 {
            world.sync()?;
        }
    }
    world.check()
}

fn bounded_reads(world: &mut World<'_>) -> Outcome {
    let mut index = 1;
    for batch in 1..30 {
        let run: Vec<Entry> = (index..index + batch).map(|i| entry(1, i, 1, 300)).collect();
        index += batch;
        world.write(Batch::new().append(1, run))?;
    }
    for round in 0..2 {
        for max_bytes in [0, 1, 299, 300, 301, 1000, 4096, 100_000] {
            let mut at = 1;
            while at < index {
                let piece = world.store()?.entries(1, at, index, max_bytes)?;
                let Some(first) = piece.first() else {
                    fail!("nothing read from {at} on with a limit of {max_bytes} bytes");
                };
                let bytes: u64 = piece.iter().map(|e| e.data.len() as u64).sum();
                ensure!(first.index == at, "read from {at} on, got {}", first.index);
                ensure!(
                    piece.len() == 1 || bytes <= max_bytes,
                    "{bytes} bytes read from {at} on with a limit of {max_bytes}"
                );
                for (found, expected) in piece.iter().zip(at..) {
                    ensure!(*found == entry(1, expected, 1, 300), "entry {expected}: {found:?}");
                }
                at += piece.len() as u64;
            }
        }
        let nothing = world.store()?.entries(1, 5, 5, u64::MAX)?;
        ensure!(nothing.is_empty(), "an empty range has {} entries", nothing.len());
        if round == 0 {
            world.reopen()?;
        }
    }
    Ok(())
}

fn outside_reads(world: &mut World<'_>) -> Outcome {
    world.write(Batch::new().append(1, entries(1, 1..11, 1)).append(2, entries(2, 1..21, 1)))?;
    world.write(Batch::new().compact(1, 4, 1))?;
    for round in 0..2 {
        for (low, high) in [(1, 3), (4, 6), (11, 12), (9, 12), (11, 14), (500, 501), (0, 1)] {
            match world.store()?.entries(1, low, high, u64::MAX) {
                Err(Failure::Refused(_)) => {}
                Err(other) => fail!("{low}..{high} of 5..=10: {other}"),
                Ok(found) => fail!("{low}..{high} of 5..=10 has {} entries", found.len()),
            }
        }
        for (group, index) in [(1, 3), (1, 11), (1, u64::MAX), (3, 1)] {
            let term = world.store()?.term(group, index)?;
            ensure!(term.is_none(), "group {group}: term of {index} is {term:?}");
        }
        ensure!(world.store()?.bounds(3)?.is_none(), "a group that nobody wrote has entries");
        ensure!(world.store()?.state(3)?.is_none(), "a group that nobody wrote has a state");
        if round == 0 {
            world.reopen()?;
        }
    }
    Ok(())
}

fn suffix_overwrite(world: &mut World<'_>) -> Outcome {
    world.write(Batch::new().append(1, entries(1, 1..20, 1)))?;
    // Shorter than what it replaces, of the same length, longer, all of it.
    for (range, term) in [(10..13, 2), (10..13, 3), (12..30, 4), (29..31, 5), (1..4, 6)] {
        world.write(Batch::new().append(1, entries(1, range, term)))?;
        world.check()?;
    }
    world.reopen()
}

fn suffix_stays_gone(world: &mut World<'_>) -> Outcome {
    let mut term = 1;
    for round in 0..12u64 {
        let keep = 1 + round * 2;
        let long: Vec<Entry> = (keep..keep + 60).map(|i| entry(1, i, term, 900)).collect();
        world.write(Batch::new().append(1, long))?;
        world.sync()?;
        term += 1;
        world.write(Batch::new().append(1, entries(1, keep + 1..keep + 2, term)))?;
        world.reopen()?;
        world.purge()?;
        world.reopen()?;
    }
    Ok(())
}

fn terms_change(world: &mut World<'_>) -> Outcome {
    let run: Vec<Entry> = (1..200).map(|i| entry(1, i, 1 + i / 7, 0)).collect();
    world.write(Batch::new().append(1, run))?;
    for (from, term) in [(150, 40), (151, 41), (90, 42), (91, 42), (92, 50)] {
        world.write(Batch::new().append(1, entries(1, from..from + 5, term)))?;
        world.check()?;
    }
    world.write(Batch::new().compact(1, 48, 7))?;
    world.check()?;
    world.reopen()?;
    world.write(Batch::new().append(1, entries(1, 49..50, 60)))?;
    world.check()?;
    world.reopen()
}

fn any_size(world: &mut World<'_>) -> Outcome {
    let mut index = 1;
    for len in [0, 1, 7, 500, 511, 512, 513, 4000, 4090, 4096, 4097, 9000, 30_000, 66_000] {
        let mut run = Vec::new();
        for copy in 0..3u8 {
            let data = vec![copy.wrapping_mul(85) ^ (len % 256) as u8; len].into();
            run.push(Entry { index, term: 1, kind: copy, data });
            index += 1;
        }
        world.write(Batch::new().append(1, run))?;
        world.sync()?;
    }
    world.check()?;
    world.reopen()?;
    world.purge()?;
    world.reopen()
}

fn large_entries(world: &mut World<'_>) -> Outcome {
    for index in 1..=4u64 {
        let batch = Batch::new()
            .append(1, vec![entry(1, index, 1, 3 << 20)])
            .append(2, vec![entry(2, index, 1, 10)])
            .state(3, vec![index as u8; 100_000]);
        world.write(batch)?;
        world.sync()?;
    }
    world.check()?;
    world.reopen()?;
    world.write(Batch::new().compact(1, 3, 1))?;
    world.purge()?;
    world.reopen()
}

fn extreme_numbers(world: &mut World<'_>) -> Outcome {
    let far = u64::MAX / 4;
    for group in [0, 1, u64::MAX >> 1, u64::MAX - 1, u64::MAX] {
        world.write(Batch::new().append(group, entries(group, 1..4, 1)))?;
        world.write(Batch::new().append(group, vec![entry(group, 4, far, 0)]).state(group, "s"))?;
    }
    world.check()?;
    world.reopen()?;
    // Only a store that can start a log anywhere gets to see a far index.
    world.write(Batch::new().reset(5, far, far).append(5, entries(5, far + 1..far + 5, far)))?;
    world.check()?;
    world.reopen()
}
