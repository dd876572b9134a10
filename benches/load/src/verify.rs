//! Reading back: every key that was ever written is scanned and judged by its client's ledger.

use crate::args::Plan;
use crate::keys::KeySpace;
use crate::ledger::{Finding, Ledger};
use anyhow::Result;
use serde::Serialize;
use std::sync::atomic::{AtomicU32, Ordering};

/// Examples kept for people.
const EXAMPLES: usize = 10;

/// Something that can be scanned in key order.
pub trait Source: Sync {
    /// Calls `each` for every pair with a key in `[start, end)`, in order; an empty end is no end.
    fn scan(&self, start: &[u8], end: &[u8], each: &mut dyn FnMut(&[u8], &[u8])) -> Result<()>;
}

/// What the read-back found.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Verified {
    /// Keys looked at: all that were ever written.
    pub checked: u64,
    /// Keys that hold nothing though a write to them was acknowledged.
    pub missing: u64,
    /// Keys that hold what they must not, or stand out of order.
    pub wrong: u64,
    /// The first few of them, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<String>,
}

impl Verified {
    fn add(&mut self, other: Verified) {
        self.checked += other.checked;
        self.missing += other.missing;
        self.wrong += other.wrong;
        self.examples.extend(other.examples);
        self.examples.truncate(EXAMPLES);
    }

    /// Whether everything was as it must be.
    pub fn is_fine(&self) -> bool {
        self.missing == 0 && self.wrong == 0
    }

    fn note(&mut self, finding: Finding, explain: impl FnOnce() -> String) {
        match finding {
            Finding::Right => return,
            Finding::Missing => self.missing += 1,
            Finding::Wrong => self.wrong += 1,
        }
        if self.examples.len() < EXAMPLES {
            self.examples.push(explain());
        }
    }
}

/// Scans every slice and judges what it holds. `ledgers` holds every client, in order.
pub fn verify(
    plan: &Plan,
    space: KeySpace,
    ledgers: &[(u32, Ledger)],
    source: &dyn Source,
) -> Result<Verified> {
    let next = AtomicU32::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                let next = &next;
                scope.spawn(move || -> Result<Verified> {
                    let mut all = Verified::default();
                    loop {
                        let slice = next.fetch_add(1, Ordering::Relaxed);
                        if slice >= space.slices {
                            return Ok(all);
                        }
                        all.add(verify_slice(plan, space, ledgers, source, slice)?);
                    }
                })
            })
            .collect();
        let mut all = Verified::default();
        for worker in workers {
            match worker.join() {
                Ok(part) => all.add(part?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(all)
    })
}

fn verify_slice(
    plan: &Plan,
    space: KeySpace,
    ledgers: &[(u32, Ledger)],
    source: &dyn Source,
    slice: u32,
) -> Result<Verified> {
    let mut verified = Verified::default();
    let places = space.clients as usize * space.per_slice as usize;
    let mut seen = vec![0u64; places.div_ceil(64)];
    let place = |client: u32, slot: u32| {
        client as usize * space.per_slice as usize + space.nth(slot) as usize
    };
    let mut scratch = Vec::new();
    let mut last: Vec<u8> = Vec::new();
    let (start, end) = space.bounds(slice);
    source.scan(&start, &end, &mut |key, found| {
        if !last.is_empty() && key <= &last[..] {
            verified.note(Finding::Wrong, || format!("key {key:02x?} stands after {last:02x?}"));
        }
        last.clear();
        last.extend_from_slice(key);
        // What the generator never wrote is none of its business (other users of a cluster).
        let Some((client, slot)) = space.owner(key) else { return };
        let Some((_, ledger)) = ledgers.get(client as usize) else { return };
        if !ledger.touched(slot) {
            return;
        }
        let at = place(client, slot);
        seen[at / 64] |= 1 << (at % 64);
        let finding =
            ledger.judge(plan.seed, client, slot, Some(found), plan.value_size, &mut scratch);
        verified.note(finding, || ledger.explain(client, slot, Some(found)));
    })?;
    for (client, ledger) in ledgers.iter().filter(|(client, _)| space.is_in(*client, slice)) {
        for nth in 0..space.per_slice {
            let slot = space.slot(slice, nth);
            if !ledger.touched(slot) {
                continue;
            }
            verified.checked += 1;
            let at = place(*client, slot);
            if seen[at / 64] & (1 << (at % 64)) == 0 && ledger.must_exist(slot) {
                verified.note(Finding::Missing, || ledger.explain(*client, slot, None));
            }
        }
    }
    Ok(verified)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use crate::ledger::value;
    use clap::Parser;
    use std::collections::BTreeMap;

    struct Tree(BTreeMap<Vec<u8>, Vec<u8>>);

    impl Source for Tree {
        fn scan(&self, start: &[u8], end: &[u8], each: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
            for (key, value) in self.0.range(start.to_vec()..) {
                if end.is_empty() || &key[..] < end {
                    each(key, value);
                }
            }
            Ok(())
        }
    }

    #[test]
    fn one_loss_and_one_flipped_bit_among_thousands_are_found() {
        for distribution in ["uniform", "pinned"] {
            check_finds(distribution);
        }
    }

    fn check_finds(distribution: &str) {
        let run = ["catamaran-load", "run", "--regions", "8", "--clients", "3"];
        let cli = Cli::try_parse_from(run.into_iter().chain(["--distribution", distribution]));
        let Command::Run(args) = cli.unwrap().command else { unreachable!() };
        let plan = args.plan().unwrap();
        let space = KeySpace::new(8, 3, 5_000, 16, plan.distribution);
        let mut tree = Tree(BTreeMap::new());
        let mut ledgers = Vec::new();
        let mut written = 0;
        for client in 0..3 {
            let mut ledger = Ledger::new(space.slots());
            for slot in (0..space.slots()).step_by(2) {
                let version = ledger.issue(slot);
                let (mut key, mut bytes) = (Vec::new(), Vec::new());
                space.key(client, slot, &mut key);
                value(plan.seed, client, slot, version, plan.value_size, &mut bytes);
                tree.0.insert(key, bytes);
                written += 1;
            }
            ledgers.push((client, ledger));
        }
        tree.0.insert(b"somebody else's".to_vec(), b"x".to_vec());
        let check = |tree: &Tree| verify(&plan, space, &ledgers, tree).unwrap();
        assert_eq!(check(&tree), Verified { checked: written, ..Verified::default() });

        let keys: Vec<_> = tree.0.keys().filter(|key| key.len() == 16).cloned().collect();
        tree.0.remove(&keys[17]);
        tree.0.get_mut(&keys[99]).unwrap()[60] ^= 4;
        let found = check(&tree);
        assert_eq!((found.checked, found.missing, found.wrong), (written, 1, 1));
        assert_eq!((found.is_fine(), found.examples.len()), (false, 2));
    }
}
