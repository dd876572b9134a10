//! Runs the checks.

use super::checks;
use super::report::{Finding, Outcome, Report, Trouble, Verdict};
use super::store::Factory;
use super::world::World;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// One thing that a store of raft logs owes.
pub struct Check {
    /// Its name.
    pub name: &'static str,
    /// What goes wrong in a cluster whose store does not do it.
    pub story: &'static str,
    pub(super) run: fn(&mut World<'_>) -> Outcome,
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Every check, in the order they run.
pub fn checks() -> impl Iterator<Item = &'static Check> {
    let rooms: [&'static [Check]; 6] = [
        checks::batch::CHECKS,
        checks::entries::CHECKS,
        checks::compaction::CHECKS,
        checks::groups::CHECKS,
        checks::threads::CHECKS,
        checks::faults::CHECKS,
    ];
    rooms.into_iter().flatten()
}

/// Runs every check. Each opens a store of its own, so the factory's place should be empty at first.
pub fn run_all(factory: &dyn Factory) -> Report {
    run_if(factory, |_| true)
}

/// Runs the checks of these names. A name that no check bears is passed over.
pub fn run_named(factory: &dyn Factory, names: &[&str]) -> Report {
    run_if(factory, |check| names.contains(&check.name))
}

fn run_if(factory: &dyn Factory, wanted: impl Fn(&Check) -> bool) -> Report {
    let chosen = checks().filter(|check| wanted(check));
    let findings = chosen.map(|check| Finding { check, verdict: run(factory, check) }).collect();
    Report { store: factory.name(), findings }
}

fn run(factory: &dyn Factory, check: &Check) -> Verdict {
    // A store that panics fails its check; the kit goes on to the next, with a store of another name. It is
    // dropped only after the panic was caught: many a store panics again then, which would end the process.
    let mut world = None;
    let outcome = catch(|| {
        let world = world.insert(World::new(factory, check.name)?);
        (check.run)(world)
    });
    let dropped = catch(|| {
        drop(world);
        Ok(())
    });
    match outcome.and(dropped) {
        Ok(()) => Verdict::Passed,
        Err(Trouble::Failed(why)) => Verdict::Failed(why),
        Err(Trouble::Skipped(why)) => Verdict::Skipped(why),
    }
}

fn catch(what: impl FnOnce() -> Outcome) -> Outcome {
    catch_unwind(AssertUnwindSafe(what)).unwrap_or_else(|cause| {
        let said = cause.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("?");
        Err(Trouble::Failed(format!("panicked: {said}")))
    })
}
