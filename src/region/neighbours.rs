//! What a node knows of the other nodes: who is there, who counts on whom, and which groups sleep on that.
//!
//! Written by the one store loop that speaks with the other nodes (`store::liveness`), read by all of them.
//! A loop does not hear of every change; it finds counters that grew.

use crate::codec::beat::{CHUNKS, Sums};
use crate::types::{RegionId, StoreId};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Which end of a group that sleeps on a node pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// It follows, here, a leader there.
    Follows,
    /// It leads here; there is a follower that was told to sleep, too.
    Leads,
}

/// Another node, as seen from here.
///
/// * `support`: we hear it. Followers of leaders there sleep only while this holds.
/// * `supports_us`: it hears us, in our present life. Leaders sleep beside followers there only while this holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Neighbour {
    /// Which meeting it is known from: who was forgotten and is met again is somebody new, and all is counted from zero.
    pub met: u64,
    /// Whether we support it.
    pub support: bool,
    /// Whether it supports us.
    pub supports_us: bool,
    /// How often our support was withdrawn, because it fell silent or came back as another life.
    pub losses: u64,
    /// How often it came back as one that may have forgotten us: in another life, after it had given us up, or for the first
    /// time.
    pub returns: u64,
    /// How often it was heard again that had only been silent: it heard us meanwhile, and whoever slept there sleeps on.
    pub pauses: u64,
    /// By chunk: how often the groups shared with it were found not to agree.
    pub doubts: [u32; CHUNKS],
}

impl Default for Neighbour {
    fn default() -> Neighbour {
        let (support, supports_us, met, losses, returns, pauses) = (false, false, 0, 0, 0, 0);
        Neighbour { met, support, supports_us, losses, returns, pauses, doubts: [0; CHUNKS] }
    }
}

#[derive(Clone, Debug)]
struct Known {
    neighbour: Neighbour,
    follow: Box<Sums>,
    lead: Box<Sums>,
}

impl Known {
    fn sums(&mut self, end: End) -> &mut Sums {
        match end {
            End::Follows => &mut self.follow,
            End::Leads => &mut self.lead,
        }
    }
}

/// Who is not here, and matters.
#[derive(Default, Debug)]
struct Absent {
    /// They hold, perhaps, former replicas of groups that sleep here as leaders.
    awaited: BTreeSet<StoreId>,
    /// Groups that are awake ask them whether such replicas are gone; since it was looked last.
    asked: BTreeSet<StoreId>,
    /// They never come back: the cluster has struck them off.
    left: BTreeSet<StoreId>,
    /// They are to be empty.
    draining: BTreeSet<StoreId>,
}

/// All of them. Clones share it.
///
/// * Who is awaited is not forgotten, until it comes or is struck off, nor who was asked a moment ago.
/// * A sum holds exactly the settled [`Bed`]s that exist for that node, end and chunk: a replica that wakes, or is
///   dropped, takes itself out.
#[derive(Clone, Default, Debug)]
pub struct Neighbours {
    known: Arc<Mutex<BTreeMap<StoreId, Known>>>,
    changes: Arc<AtomicU64>,
    meetings: Arc<AtomicU64>,
    absent: Arc<Mutex<Absent>>,
}

/// The chunk of a region.
pub fn chunk_of(region: RegionId) -> usize {
    (region.0 % CHUNKS as u64) as usize
}

impl Neighbours {
    /// A node whose groups want to sleep on it, and with whom beats are to be exchanged from now on.
    pub fn meet(&self, store: StoreId) {
        let met = || self.meetings.fetch_add(1, Ordering::Relaxed) + 1;
        self.known.lock().entry(store).or_insert_with(|| Known {
            neighbour: Neighbour { met: met(), ..Neighbour::default() },
            follow: Box::new([0; CHUNKS]),
            lead: Box::new([0; CHUNKS]),
        });
    }

    /// Whether a node was met, and not forgotten since.
    pub fn knows(&self, store: StoreId) -> bool {
        self.known.lock().contains_key(&store)
    }

    /// A node with former replicas, whose region goes to sleep without knowing them gone: wakes it when it comes.
    pub(crate) fn await_return(&self, store: StoreId) {
        self.meet(store);
        self.absent.lock().awaited.insert(store);
    }

    /// A node is asked about former replicas: beats are exchanged with it meanwhile.
    pub(crate) fn ask(&self, store: StoreId) {
        self.meet(store);
        self.absent.lock().asked.insert(store);
    }

    /// Whether a node is awaited, or was asked since this was last looked at.
    pub fn wants(&self, store: StoreId) -> bool {
        let mut absent = self.absent.lock();
        absent.asked.remove(&store) || absent.awaited.contains(&store)
    }

    /// It is here.
    pub(crate) fn is_here(&self, store: StoreId) {
        self.absent.lock().awaited.remove(&store);
    }

    /// The cluster has struck a store off: nothing ever comes from there again, so its replicas count as gone.
    pub fn has_left(&self, store: StoreId) {
        let mut absent = self.absent.lock();
        absent.left.insert(store);
        absent.awaited.remove(&store);
    }

    /// These stores are to be empty, and no others.
    pub fn are_draining(&self, stores: BTreeSet<StoreId>) {
        self.absent.lock().draining = stores;
    }

    /// Whether a store is to be empty or was struck off, as far as this node knows: it is given no replica, and no vote.
    pub(crate) fn takes_nothing(&self, store: StoreId) -> bool {
        let absent = self.absent.lock();
        absent.draining.contains(&store) || absent.left.contains(&store)
    }

    /// Those of these stores that were struck off.
    pub(crate) fn left_of(&self, stores: impl Iterator<Item = StoreId>) -> BTreeSet<StoreId> {
        let absent = self.absent.lock();
        stores.filter(|store| absent.left.contains(store)).collect()
    }

    /// A node that no region shares any more is forgotten: no beats for it. `false`: something has long slept on it, or awaits it.
    pub fn forget(&self, store: StoreId) -> bool {
        let mut absent = self.absent.lock();
        if absent.asked.remove(&store) || absent.awaited.contains(&store) {
            return false;
        }
        drop(absent);
        let mut known = self.known.lock();
        let empty = |sums: &Sums| sums.iter().all(|sum| *sum == 0);
        let free = known.get(&store).is_none_or(|known| empty(&known.follow) && empty(&known.lead));
        if free {
            known.remove(&store);
        }
        free
    }

    /// Who is known.
    pub fn stores(&self) -> Vec<StoreId> {
        self.known.lock().keys().copied().collect()
    }

    /// What is known of a node; the default of one that nobody has met.
    pub fn get(&self, store: StoreId) -> Neighbour {
        self.known.lock().get(&store).map_or(Neighbour::default(), |known| known.neighbour)
    }

    /// Everything, if anything changed since `changes` was what it is.
    pub fn news(&self, changes: &mut u64) -> Vec<(StoreId, Neighbour)> {
        let now = self.changes.load(Ordering::Acquire);
        if std::mem::replace(changes, now) == now {
            return Vec::new();
        }
        self.known.lock().iter().map(|(store, known)| (*store, known.neighbour)).collect()
    }

    /// Grows with whatever there is [`news`](Self::news) of.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Changes what is known of a node that was met.
    pub fn alter(&self, store: StoreId, change: impl FnOnce(&mut Neighbour)) {
        if let Some(known) = self.known.lock().get_mut(&store) {
            change(&mut known.neighbour);
            self.changes.fetch_add(1, Ordering::Release);
        }
    }

    /// The sums over what sleeps here at one end of the pair with `store`.
    pub fn sums(&self, store: StoreId, end: End) -> Box<Sums> {
        let mut known = self.known.lock();
        known.get_mut(&store).map_or(Box::new([0; CHUNKS]), |known| Box::new(*known.sums(end)))
    }

    /// A replica goes to sleep: `mark` says with whom, at which place of which log; the other end says the same.
    pub(crate) fn lie_down(&self, region: RegionId, mark: u64, on: On) -> Bed {
        let (chunk, neighbours) = (chunk_of(region) as u8, self.clone());
        Bed { neighbours, chunk, mark, on, counted: false }
    }
}

/// A sleeping replica's part of the sums: from when it has slept for long, for as long as it sleeps. (Who sleeps for a
/// moment would only keep the sums of its chunk from being compared.)
#[derive(Debug)]
pub struct Bed {
    neighbours: Neighbours,
    chunk: u8,
    mark: u64,
    on: On,
    counted: bool,
}

/// On which nodes a replica sleeps.
#[derive(Debug)]
pub(crate) enum On {
    /// It follows a leader there.
    Leader(StoreId),
    /// It leads; these nodes have followers that were told to sleep, too. One or two need no memory of their own.
    One([StoreId; 1]),
    Two([StoreId; 2]),
    Many(Box<[StoreId]>),
}

impl On {
    pub fn followers(stores: &[StoreId]) -> On {
        match *stores {
            [one] => On::One([one]),
            [one, other] => On::Two([one, other]),
            _ => On::Many(stores.into()),
        }
    }

    fn parts(&self) -> (&[StoreId], End) {
        match self {
            On::Leader(store) => (std::slice::from_ref(store), End::Follows),
            On::One(stores) => (stores, End::Leads),
            On::Two(stores) => (stores, End::Leads),
            On::Many(stores) => (stores, End::Leads),
        }
    }
}

impl Bed {
    /// It has slept for long.
    pub(crate) fn settle(&mut self) {
        if !std::mem::replace(&mut self.counted, true) {
            self.count(u64::wrapping_add);
        }
    }

    fn count(&self, how: impl Fn(u64, u64) -> u64) {
        let mut known = self.neighbours.known.lock();
        let (stores, end) = self.on.parts();
        for store in stores {
            if let Some(known) = known.get_mut(store) {
                let sum = &mut known.sums(end)[usize::from(self.chunk)];
                *sum = how(*sum, self.mark);
            }
        }
    }

    /// Whether it sleeps on this node, at that end.
    pub fn is_on(&self, store: StoreId, end: End) -> bool {
        let (stores, own) = self.on.parts();
        own == end && stores.contains(&store)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if self.counted {
            self.count(u64::wrapping_sub);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sleeps_is_summed_up_until_it_wakes() {
        let neighbours = Neighbours::default();
        let (a, b) = (StoreId(1), StoreId(2));
        neighbours.meet(a);
        let sum = |store, end| neighbours.sums(store, end)[chunk_of(RegionId(CHUNKS as u64 + 3))];
        let mut one = neighbours.lie_down(RegionId(3), 5, On::followers(&[a, b]));
        let mut two = neighbours.lie_down(RegionId(3), u64::MAX, On::followers(&[a]));
        drop(neighbours.lie_down(RegionId(3), 9, On::followers(&[a])));
        assert_eq!(sum(a, End::Leads), 0, "nobody has slept for long");
        one.settle();
        two.settle();
        one.settle();
        assert_eq!((sum(a, End::Leads), sum(a, End::Follows), sum(b, End::Leads)), (4, 0, 0));
        drop(one);
        assert_eq!(sum(a, End::Leads), u64::MAX);
        drop(two);
        assert_eq!(sum(a, End::Leads), 0);
    }

    #[test]
    fn who_is_slept_on_is_not_forgotten() {
        let neighbours = Neighbours::default();
        neighbours.meet(StoreId(1));
        let mut bed = neighbours.lie_down(RegionId(3), 5, On::Leader(StoreId(1)));
        bed.settle();
        assert!(!neighbours.forget(StoreId(1)) && neighbours.knows(StoreId(1)));
        drop(bed);
        assert!(neighbours.forget(StoreId(1)) && !neighbours.knows(StoreId(1)));
    }

    #[test]
    fn who_is_awaited_is_not_forgotten_until_it_comes_or_is_struck_off() {
        let neighbours = Neighbours::default();
        for come in [Neighbours::is_here, Neighbours::has_left] {
            neighbours.await_return(StoreId(4));
            neighbours.ask(StoreId(4));
            for _ in 0..3 {
                assert!(!neighbours.forget(StoreId(4)) && neighbours.knows(StoreId(4)));
            }
            come(&neighbours, StoreId(4));
            assert!(neighbours.forget(StoreId(4)) && !neighbours.knows(StoreId(4)));
        }
        neighbours.ask(StoreId(4));
        assert!(!neighbours.forget(StoreId(4)) && neighbours.forget(StoreId(4)), "not asked again");
        let stores = || [3, 4].map(StoreId).into_iter();
        assert_eq!(neighbours.left_of(stores()), BTreeSet::from([StoreId(4)]));
    }

    #[test]
    fn news_are_told_once() {
        let neighbours = Neighbours::default();
        let mut changes = 0;
        neighbours.meet(StoreId(4));
        neighbours.alter(StoreId(4), |n| n.losses += 1);
        neighbours.alter(StoreId(5), |n| n.losses += 1);
        assert_eq!(neighbours.news(&mut changes).len(), 1);
        assert_eq!(neighbours.news(&mut changes), vec![]);
        assert_eq!(neighbours.get(StoreId(4)).losses, 1);
        assert_eq!(neighbours.get(StoreId(5)).losses, 0, "nobody met it");
    }
}
