//! Writers and readers at the same time.

use crate::testkit::conformance::Check;
use crate::testkit::report::{Outcome, ensure, fail};
use crate::testkit::store::{Batch, Failure, LogStore};
use crate::testkit::world::{World, entries, entry};
use std::sync::atomic::{AtomicBool, Ordering};

pub(in crate::testkit) const CHECKS: &[Check] = &[
    Check {
        name: "concurrent-writers",
        story: "Several loops hand their batches to one store. Each group's entries arrive in its own \
                order, none is lost, and each batch that was synced is durable whoever did the sync.",
        run: concurrent_writers,
    },
    Check {
        name: "readers-beside-a-writer",
        story: "Followers are fed from the log while it grows, is compacted and purged. A reader sees the \
                log as it was at some moment: whole entries of the right index, or a refusal.",
        run: readers_beside_a_writer,
    },
];

fn concurrent_writers(world: &mut World<'_>) -> Outcome {
    let store = world.store()?;
    let write = |group: u64| -> Result<(), Failure> {
        for index in 1..=60 {
            store.write(&Batch::new().append(group, vec![entry(group, index, 1, 200)]))?;
            if index % (group % 5 + 2) == 0 {
                store.sync()?;
            }
        }
        store.sync()
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=8).map(|group| scope.spawn(move || write(group))).collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    for result in results {
        match result {
            Ok(result) => result?,
            Err(_) => fail!("a writer panicked"),
        }
    }
    for group in 1..=8 {
        let run = (1..=60).map(|i| entry(group, i, 1, 200)).collect();
        world.model.apply(&Batch::new().append(group, run));
    }
    world.check()?;
    // Each has synced: no proper end is needed.
    world.drop_store();
    world.open()?;
    world.check()
}

fn readers_beside_a_writer(world: &mut World<'_>) -> Outcome {
    world.write(Batch::new().append(1, entries(1, 1..2, 1)).append(2, entries(2, 1..2, 1)))?;
    let store = world.store()?;
    let done = AtomicBool::new(false);
    let (wrote, read) = std::thread::scope(|scope| {
        let readers: Vec<_> = (1..=2)
            .map(|group| {
                let done = &done;
                scope.spawn(move || -> Outcome<u64> {
                    let mut looks = 0;
                    while !done.load(Ordering::Acquire) || looks == 0 {
                        look(store, group)?;
                        looks += 1;
                    }
                    Ok(looks)
                })
            })
            .collect();
        let wrote = grow(store);
        done.store(true, Ordering::Release);
        let read: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
        (wrote, read)
    });
    wrote?;
    for looks in read {
        match looks {
            Ok(looks) => looks.map(drop)?,
            Err(_) => fail!("a reader panicked"),
        }
    }
    Ok(())
}

fn grow(store: &dyn LogStore) -> Outcome {
    for index in 2..=400u64 {
        let mut batch = Batch::new();
        for group in 1..=2 {
            batch = batch.append(group, vec![entry(group, index, 1, 800)]);
            if index > 60 && index % 20 == 0 {
                batch = batch.compact(group, index - 50, 1);
            }
        }
        store.write(&batch)?;
        if index % 8 == 0 {
            store.sync()?;
        }
        if index % 50 == 0 {
            store.purge()?;
        }
    }
    store.sync()?;
    Ok(())
}

fn look(store: &dyn LogStore, group: u64) -> Outcome {
    let Some((first, last)) = store.bounds(group)? else { fail!("group {group} has no entries") };
    let found = match store.entries(group, first, last + 1, u64::MAX) {
        Ok(found) => found,
        // It was compacted meanwhile.
        Err(Failure::Refused(_)) => return Ok(()),
        Err(other) => fail!("group {group}: {other}"),
    };
    ensure!(found.len() as u64 == last + 1 - first, "group {group}: {} entries", found.len());
    for (found, index) in found.iter().zip(first..) {
        let len = if index == 1 { 0 } else { 800 };
        ensure!(*found == entry(group, index, 1, len), "group {group}: entry {index} is another's");
    }
    Ok(())
}
