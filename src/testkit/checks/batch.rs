//! A batch is one thing, over however many groups.

use crate::testkit::conformance::Check;
use crate::testkit::report::{Outcome, ensure};
use crate::testkit::store::Batch;
use crate::testkit::world::{World, entries, entry};

pub(in crate::testkit) const CHECKS: &[Check] = &[
    Check {
        name: "empty-batch",
        story: "A round of a quiet node has nothing to write. A store that fails it, or loses its place \
                over it, ends a node for having nothing to do.",
        run: empty_batch,
    },
    Check {
        name: "batch-over-groups",
        story: "One write serves every group that became ready. If one of them is left out, its raft has \
                acknowledged entries that are not there.",
        run: batch_over_groups,
    },
    Check {
        name: "refused-batch-leaves-no-trace",
        story: "A batch with one wrong operation is refused. If its good half stays, a group's hard state \
                may say that it voted while the entries that came with it are missing.",
        run: refused_leaves_no_trace,
    },
    Check {
        name: "order-within-a-batch",
        story: "A peer is destroyed and created again within one round: its clear and its first entries \
                share a batch. In the wrong order the new peer loses its log, or inherits the old one's.",
        run: order_within,
    },
    Check {
        name: "gap-is-refused",
        story: "An append beyond the end of the log is a bug above the store. Taken silently, it shows up \
                much later as an index that nobody can read, and raft-rs ends the process over it.",
        run: gap_is_refused,
    },
    Check {
        name: "broken-run-is-refused",
        story: "Entries of one append that are not consecutive would be stored under wrong indexes, and \
                the state machine would apply one command in place of another.",
        run: broken_run_is_refused,
    },
    Check {
        name: "same-group-twice-in-a-batch",
        story: "Two readies of one group may meet in a batch. The second continues, or overwrites, the \
                first.",
        run: same_group_twice,
    },
];

fn empty_batch(world: &mut World<'_>) -> Outcome {
    world.write(Batch::new())?;
    world.sync()?;
    world.reopen()?;
    world.write(Batch::new().append(1, entries(1, 1..4, 1)))?;
    world.write(Batch::new())?;
    world.sync()?;
    world.write(Batch::new().append(1, entries(1, 4..6, 1)))?;
    world.reopen()
}

fn batch_over_groups(world: &mut World<'_>) -> Outcome {
    for round in 0..20u64 {
        let mut batch = Batch::new();
        for group in 1..=50 {
            let from = round * 2 + 1;
            batch = batch.append(group, entries(group, from..from + 2, round / 3 + 1));
            if group % 3 == round % 3 {
                batch = batch.state(group, format!("state {round} of {group}"));
            }
        }
        world.write(batch)?;
        world.check()?;
    }
    world.reopen()
}

fn refused_leaves_no_trace(world: &mut World<'_>) -> Outcome {
    world.write(Batch::new().append(1, entries(1, 1..5, 1)).state(1, "good"))?;
    let bad = Batch::new()
        .state(1, "never")
        .append(1, entries(1, 3..9, 2))
        .append(7, entries(7, 1..4, 1))
        .clear(1)
        .append(9, entries(9, 5..6, 1));
    world.write_refused(bad, "a batch whose last operation leaves a gap")?;
    ensure!(world.store()?.bounds(7)?.is_none(), "group 7 came to be by a refused batch");
    world.reopen()?;
    world.write(Batch::new().append(1, entries(1, 5..7, 1)))?;
    world.reopen()
}

fn order_within(world: &mut World<'_>) -> Outcome {
    world.write(Batch::new().append(1, entries(1, 1..30, 1)).state(1, "old"))?;
    world.write(Batch::new().clear(1).append(1, entries(1, 1..4, 7)).state(1, "new"))?;
    world.check()?;
    world.write(Batch::new().append(2, entries(2, 1..9, 1)).state(2, "gone").clear(2))?;
    world.check()?;
    world.write(Batch::new().append(3, entries(3, 1..9, 1)).compact(3, 5, 1))?;
    world.check()?;
    world.reopen()?;
    world.purge()?;
    world.reopen()
}

fn gap_is_refused(world: &mut World<'_>) -> Outcome {
    world.write(Batch::new().append(1, entries(1, 1..4, 1)))?;
    world.write_refused(Batch::new().append(1, entries(1, 5..6, 1)), "an append that skips one")?;
    world.write_refused(Batch::new().append(1, entries(1, 900..902, 1)), "an append far ahead")?;
    world.write(Batch::new().append(1, entries(1, 4..5, 1)))?;
    world.check()?;
    world.sync()?;
    world.write_refused(Batch::new().append(1, entries(1, 6..7, 1)), "an append that skips one")?;
    world.reopen()?;
    world.write_refused(Batch::new().append(1, entries(1, 6..7, 1)), "a gap, after reopening")
}

fn broken_run_is_refused(world: &mut World<'_>) -> Outcome {
    let holed = vec![entry(1, 1, 1, 0), entry(1, 3, 1, 0)];
    world.write_refused(Batch::new().append(1, holed), "a run with a hole")?;
    let backwards = vec![entry(1, 2, 1, 0), entry(1, 1, 1, 0)];
    world.write_refused(Batch::new().append(1, backwards), "a run that goes backwards")?;
    let twice = vec![entry(1, 1, 1, 0), entry(1, 1, 2, 0)];
    world.write_refused(Batch::new().append(1, twice), "a run with an index twice")
}

fn same_group_twice(world: &mut World<'_>) -> Outcome {
    let batch = Batch::new().append(1, entries(1, 1..5, 1)).append(1, entries(1, 5..9, 1));
    world.write(batch.state(1, "a").state(1, "b"))?;
    world.check()?;
    world.write(Batch::new().append(1, entries(1, 9..20, 1)).append(1, entries(1, 7..9, 2)))?;
    world.check()?;
    world.reopen()
}
