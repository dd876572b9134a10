//! Giving leaderships away before a node goes: to whom, how often, and when to stop trying.

use crate::region::handing::drawn;
use crate::store::RegionStatus;
use crate::types::{RegionId, Role, StoreId};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The stores that messages do not get to, as far as the transport has told.
///
/// * Whoever is heard from is there: a wrong report (an overfull queue) mends itself.
#[derive(Default, Debug)]
pub(crate) struct Away {
    stores: Mutex<BTreeSet<StoreId>>,
    /// How many they are, so that the many who are heard from take no lock.
    count: AtomicUsize,
}

impl Away {
    /// Messages to `store` do not arrive.
    pub fn lost(&self, store: StoreId) {
        let mut stores = self.stores.lock();
        stores.insert(store);
        self.count.store(stores.len(), Ordering::Release);
    }

    /// Something came from `store`.
    pub fn heard(&self, store: StoreId) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut stores = self.stores.lock();
        stores.remove(&store);
        self.count.store(stores.len(), Ordering::Release);
    }

    /// Whether messages to `store` do not arrive.
    pub fn has(&self, store: StoreId) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.stores.lock().contains(&store)
    }

    /// All of them now.
    pub fn now(&self) -> BTreeSet<StoreId> {
        self.stores.lock().clone()
    }
}

/// Times that one region is given away, at most. It comes back when the other node is going, too; then
/// a third may take it. But nodes that all go at once must not play ball until their patience ends.
const STINTS_MAX: u32 = 2;

/// What a going node has tried so far.
#[derive(Debug)]
pub(super) struct HandOver {
    own: StoreId,
    /// How long a transfer may take before it is asked for again: raft gives it up by itself.
    again: Duration,
    stints: BTreeMap<RegionId, Stint>,
}

/// A time of leading a region.
#[derive(Debug)]
struct Stint {
    number: u32,
    asked_at: Instant,
    asked_for: Option<StoreId>,
    ended: bool,
}

/// What to do next.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Step {
    /// Transfers to ask for: the region and, if not everybody is there, to whom.
    pub ask: Vec<(RegionId, Option<StoreId>)>,
    /// Leaderships that may still move. None: nothing is worth waiting for.
    pub waiting: usize,
}

/// A store that can take a region over: `Err` if nobody can, `Ok(None)` if any of the others can.
fn heir(
    status: &RegionStatus,
    own: StoreId,
    away: &BTreeSet<StoreId>,
) -> Result<Option<StoreId>, ()> {
    let voters = || status.region.peers.iter().filter(|peer| peer.role == Role::Voter);
    let there = || voters().filter(|peer| peer.store != own && !away.contains(&peer.store));
    let (all, others) = (voters().count(), there().count());
    // Who takes over needs the votes of a majority; ours is one of them.
    match others > 0 && others + 1 > all / 2 {
        false => Err(()),
        true if others + 1 == all => Ok(None),
        true => Ok(there().nth(drawn(status.region.id, others)).map(|peer| peer.store)),
    }
}

impl HandOver {
    pub fn new(own: StoreId, again: Duration) -> HandOver {
        HandOver { own, again, stints: BTreeMap::new() }
    }

    /// Looks at where the replicas stand.
    pub fn step(
        &mut self,
        now: Instant,
        regions: &[RegionStatus],
        away: &BTreeSet<StoreId>,
    ) -> Step {
        let mut step = Step { ask: Vec::new(), waiting: 0 };
        for status in regions {
            let id = status.region.id;
            if !status.leads {
                if let Some(stint) = self.stints.get_mut(&id) {
                    stint.ended = true;
                }
                continue;
            }
            let Ok(to) = heir(status, self.own, away) else { continue };
            let number = match self.stints.get(&id) {
                None => 1,
                Some(Stint { number: STINTS_MAX, ended: true, .. }) => continue,
                Some(stint) if stint.ended => stint.number + 1,
                // Whoever was to take over may have gone meanwhile.
                Some(stint)
                    if stint.asked_for != to || now.duration_since(stint.asked_at) > self.again =>
                {
                    stint.number
                }
                Some(_) => {
                    step.waiting += 1;
                    continue;
                }
            };
            let stint = Stint { number, asked_at: now, asked_for: to, ended: false };
            self.stints.insert(id, stint);
            step.ask.push((id, to));
            step.waiting += 1;
        }
        step
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Epoch, KeyRange, Peer, PeerId, Region};

    fn region(id: u64, leads: bool, stores: u64) -> RegionStatus {
        let peer = |n| Peer { id: PeerId(10 * id + n), store: StoreId(n), role: Role::Voter };
        RegionStatus {
            region: Region {
                id: RegionId(id),
                range: KeyRange::all(),
                epoch: Epoch::default(),
                peers: (1..=stores).map(peer).collect(),
            },
            peer: PeerId(10 * id + 1),
            leads,
            leader: None,
            term: 6,
            committed: 0,
            applied: 0,
            flushed: 0,
            first_index: 6,
            last_index: 5,
            log_bytes: 0,
            bytes: 0,
            quarantined: None,
            asleep: false,
            unsettled: Default::default(),
        }
    }

    fn away(stores: &[u64]) -> BTreeSet<StoreId> {
        stores.iter().copied().map(StoreId).collect()
    }

    #[test]
    fn only_who_is_there_and_has_a_majority_takes_over() {
        let heir = |stores, gone: &[u64]| heir(&region(1, true, stores), StoreId(1), &away(gone));
        assert_eq!(heir(1, &[]), Err(()));
        assert_eq!(heir(2, &[]), Ok(None));
        assert_eq!(heir(2, &[2]), Err(()));
        assert_eq!(heir(3, &[2]), Ok(Some(StoreId(3))));
        assert_eq!(heir(3, &[2, 3]), Err(()));
        assert!(matches!(heir(5, &[2, 3]), Ok(Some(StoreId(4 | 5)))));
        assert_eq!(heir(5, &[2, 3, 4]), Err(()));
    }

    /// All leaderships went to one store.
    #[test]
    fn leaderships_are_spread_over_those_that_are_there() {
        // Ids of regions with four peers each, or three.
        for step in [4u64, 5] {
            let one = |id| heir(&region(1 + id * step, true, 4), StoreId(1), &away(&[2]));
            let to: Vec<_> = (0..100u64).map(one).collect();
            let third = to.iter().filter(|to| **to == Ok(Some(StoreId(3)))).count();
            assert!((35..=65).contains(&third), "{third} of 100 go to s3");
        }
    }

    #[test]
    fn a_leadership_that_comes_back_is_given_away_once_more() {
        let start = Instant::now();
        let again = Duration::from_secs(1);
        let mut over = HandOver::new(StoreId(1), again);
        let mut step = |at: Duration, leads: bool, gone: &[u64]| {
            let regions = [region(7, leads, 3), region(8, false, 3)];
            let step = over.step(start + at, &regions, &away(gone));
            (step.ask.len(), step.waiting)
        };
        assert_eq!(step(Duration::ZERO, true, &[]), (1, 1));
        assert_eq!(step(again, true, &[]), (0, 1), "it is being done");
        assert_eq!(step(again * 3, true, &[]), (1, 1), "it takes too long");
        assert_eq!(step(again * 3, false, &[]), (0, 0));
        assert_eq!(step(again * 3, true, &[]), (1, 1), "it came back");
        assert_eq!(step(again * 3, true, &[2, 3]), (0, 0), "nobody is left");
        assert_eq!(step(again * 3, true, &[2]), (1, 1), "perhaps to the one that is gone");
        assert_eq!(step(again * 3, true, &[2]), (0, 1));
        assert_eq!(step(again * 3, false, &[2]), (0, 0));
        assert_eq!(step(again * 9, true, &[]), (0, 0), "it is nobody's");
    }

    #[test]
    fn who_is_heard_from_is_there() {
        let away = Away::default();
        away.heard(StoreId(2));
        away.lost(StoreId(2));
        away.lost(StoreId(3));
        away.heard(StoreId(2));
        assert_eq!(away.now(), BTreeSet::from([StoreId(3)]));
    }
}
