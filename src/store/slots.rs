//! Who may send a snapshot here: the receiver's half of taking turns, one for a node.
//!
//! A slot is reserved before any data flows, and is free again when the snapshot was restored or thrown away: so slots
//! bound the files of received snapshots, not only the transfers. It lapses when nothing is heard for `patience`
//! (longer while it is restored). A sender that comes back for the same errand takes its old slot over: the
//! connection that held it may not know yet that it is broken. Not while its snapshot is being restored: that one
//! need not come again.

use crate::error::{Error, Result};
use crate::region::effects::{Claim, SnapshotErrand};
use crate::region::share::Registry;
use crate::types::{PeerId, RegionId, StoreId, Time};
use std::collections::BTreeMap;
use std::time::Duration;

/// A restore may take so many times as long as a sender may be silent.
const RESTORE_PATIENCE: u32 = 10;

/// Whether a replica of the region could be made, or made good, from a snapshot here: not if other regions still hold
/// some of its keys, or if a later replica lives here. The error says which.
///
/// (That the replica here has got further by itself is no reason: only its answer tells the leader so.)
pub fn has_use(registry: &Registry, id: RegionId, to: PeerId, claim: &Claim) -> Result<()> {
    // Those that were merged into it yield to it, when it is there.
    if !registry.is_free(id, std::slice::from_ref(&claim.range), &claim.merged) {
        let what = "another region holds keys of it here still";
        return Err(Error::InvalidArgument(what.into()));
    }
    match registry.get(id) {
        Some(here) if here.peer > to => {
            Err(Error::InvalidArgument(format!("{} lives here by now", here.peer)))
        }
        _ => Ok(()),
    }
}

/// Names a slot; never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotId(u64);

#[derive(Debug)]
struct Held {
    id: SlotId,
    from: StoreId,
    errand: SnapshotErrand,
    stage: Stage,
    /// Lapses then.
    until: Time,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Receiving,
    Restoring,
}

/// The slots of a node.
///
/// * One for each region at most: two snapshots of one region are never received at once.
#[derive(Debug)]
pub struct Slots {
    most: usize,
    patience: Duration,
    held: BTreeMap<RegionId, Held>,
    last: u64,
}

impl Slots {
    /// So many, all free.
    pub fn new(most: usize, patience: Duration) -> Slots {
        Slots { most: most.max(1), patience, held: BTreeMap::new(), last: 0 }
    }

    /// Reserves one; `None`: not now.
    pub fn reserve(&mut self, now: Time, from: StoreId, errand: SnapshotErrand) -> Option<SlotId> {
        self.held.retain(|_, held| now < held.until);
        let again = match self.held.get(&errand.region) {
            Some(held) if held.stage == Stage::Restoring => return None,
            Some(held) if (held.from, held.errand) == (from, errand) => true,
            Some(_) => return None,
            None => false,
        };
        if !again && self.held.len() >= self.most {
            return None;
        }
        self.last += 1;
        let id = SlotId(self.last);
        let until = now.after(self.patience);
        let stage = Stage::Receiving;
        self.held.insert(errand.region, Held { id, from, errand, stage, until });
        Some(id)
    }

    fn find(&mut self, id: SlotId) -> Option<&mut Held> {
        self.held.values_mut().find(|held| held.id == id)
    }

    /// Something was heard. `false`: the slot has lapsed, or was taken over.
    #[must_use]
    pub fn touch(&mut self, now: Time, id: SlotId) -> bool {
        let until = now.after(self.patience);
        match self.find(id) {
            Some(held) if now < held.until => {
                held.until = until;
                true
            }
            _ => false,
        }
    }

    /// All has come and is being restored.
    pub fn restoring(&mut self, now: Time, id: SlotId) {
        let until = now.after(self.patience * RESTORE_PATIENCE);
        if let Some(held) = self.find(id) {
            (held.stage, held.until) = (Stage::Restoring, until);
        }
    }

    /// It is free again. Nothing, if it is another's by now.
    pub fn release(&mut self, id: SlotId) {
        self.held.retain(|_, held| held.id != id);
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.held.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn errand(region: u64, to: u64) -> SnapshotErrand {
        SnapshotErrand { region: RegionId(region), from: PeerId(1), to: PeerId(to) }
    }

    fn slots() -> Slots {
        Slots::new(2, Duration::from_secs(60))
    }

    #[test]
    fn slots_are_bounded_lapse_and_come_back() {
        let mut slots = slots();
        let a = slots.reserve(Time(0), StoreId(1), errand(1, 2)).unwrap();
        let b = slots.reserve(Time(0), StoreId(1), errand(2, 2)).unwrap();
        assert!(slots.reserve(Time(0), StoreId(2), errand(3, 2)).is_none());
        slots.release(a);
        let c = slots.reserve(Time(0), StoreId(2), errand(3, 2)).unwrap();
        assert!(slots.touch(Time(30 * S), b));
        assert!(!slots.touch(Time(60 * S), c), "lapsed");
        assert!(slots.touch(Time(89 * S), b), "it was heard of");
        assert!(slots.reserve(Time(89 * S), StoreId(2), errand(4, 2)).is_some());
        slots.restoring(Time(100 * S), b);
        assert!(slots.reserve(Time(600 * S), StoreId(2), errand(5, 2)).is_some());
        assert!(slots.reserve(Time(600 * S), StoreId(1), errand(2, 2)).is_none(), "restoring");
        assert!(slots.reserve(Time(700 * S), StoreId(2), errand(2, 2)).is_some());
    }

    #[test]
    fn the_same_sender_takes_over_and_another_waits() {
        let mut slots = slots();
        let old = slots.reserve(Time(0), StoreId(1), errand(1, 2)).unwrap();
        assert!(slots.reserve(Time(0), StoreId(2), errand(1, 2)).is_none(), "another sender");
        assert!(slots.reserve(Time(0), StoreId(1), errand(1, 3)).is_none(), "another receiver");
        let new = slots.reserve(Time(0), StoreId(1), errand(1, 2)).unwrap();
        assert!(!slots.touch(Time(1), old) && slots.touch(Time(1), new));
        slots.release(old);
        assert_eq!(slots.taken(), 1, "the old one has nothing to give back");
    }
}
