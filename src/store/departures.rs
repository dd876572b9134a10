//! Who waits to send a snapshot, and whose turn it is: the sender's half of taking turns, one for a node.
//!
//! A leader's wish ([`SnapshotWord::Wanted`](crate::region::effects::SnapshotWord::Wanted)) waits here in the line of the store it goes to. When one of `sends`
//! places is free, the next line whose store may be asked is asked for a slot, with the wish at its front. "Not now"
//! puts the wish back where it was and lets the store rest for a while that doubles; "no use" lets the one wish rest;
//! a store out of reach loses the wish (raft repeats it) and rests. A granted slot goes to the leader, who makes the
//! snapshot or declines. Nothing here has a timer: wishes come again with every answer to a heartbeat, and
//! each of them is an occasion to look whose turn it is.

use crate::region::effects::Claim;
use crate::region::effects::SnapshotErrand;
use crate::types::{StoreId, Time};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::time::Duration;

/// Wishes that wait, at most; of more, the new ones are forgotten (and come again).
const WAITING_MAX: usize = 1 << 16;
/// A wish that was not repeated for so long is not one any more.
const WISH_LIFE: Duration = Duration::from_secs(10);
/// How long a store rests after its first "not now".
const REST_MIN: Duration = Duration::from_millis(10);
/// Doublings of that.
const REST_DOUBLINGS: u32 = 7;
/// How long a wish rests that the receiver has no use for.
const REST_USELESS: Duration = Duration::from_millis(300);

/// Why there is no slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// All are taken.
    NotNow,
    /// The receiver has no use for this one, as things are.
    NoUse,
    /// It could not be asked.
    OutOfReach,
}

/// A wish whose turn it is: its store is to be asked, and the answer told.
#[derive(Debug)]
pub struct Departure<P> {
    /// Whose snapshot.
    pub errand: SnapshotErrand,
    /// Where it goes.
    pub store: StoreId,
    /// The region's keys.
    pub claim: Claim,
    /// What the caller keeps with it.
    pub payload: P,
    wished: Time,
}

#[derive(Debug)]
struct Line {
    queue: VecDeque<SnapshotErrand>,
    not_before: Time,
    refusals: u32,
    /// One question at a time: the answer says what another would.
    asking: bool,
}

impl Default for Line {
    fn default() -> Self {
        Line { queue: VecDeque::new(), not_before: Time(0), refusals: 0, asking: false }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Asking,
    /// The slot is there, the snapshot is not, since then.
    Loading(Time),
    Flying,
}

/// The wishes of a node and what became of them.
///
/// * A wish waits in exactly one line, or is under way, or is not known.
/// * At most `sends` are under way.
#[derive(Debug)]
pub struct Departures<P> {
    sends: usize,
    patience: Duration,
    lines: BTreeMap<StoreId, Line>,
    waiting: BTreeMap<SnapshotErrand, Departure<P>>,
    under_way: BTreeMap<SnapshotErrand, (StoreId, Stage)>,
    resting: BTreeMap<SnapshotErrand, Time>,
    /// The store that was asked last.
    last: StoreId,
}

impl<P> Departures<P> {
    /// Nobody waits. `patience` is how long a leader may take to make a snapshot.
    pub fn new(sends: usize, patience: Duration) -> Departures<P> {
        Departures {
            sends: sends.max(1),
            patience,
            lines: BTreeMap::new(),
            waiting: BTreeMap::new(),
            under_way: BTreeMap::new(),
            resting: BTreeMap::new(),
            last: StoreId(0),
        }
    }

    /// A leader wants to send a snapshot, still or for the first time.
    pub fn wish(
        &mut self,
        now: Time,
        errand: SnapshotErrand,
        store: StoreId,
        claim: Claim,
        payload: P,
    ) {
        let rests = self.resting.get(&errand).is_some_and(|until| now < *until);
        if rests || self.under_way.contains_key(&errand) {
            return;
        }
        if let Some(known) = self.waiting.get_mut(&errand) {
            (known.wished, known.claim, known.payload) = (now, claim, payload);
            return;
        }
        if self.waiting.len() < WAITING_MAX {
            self.lines.entry(store).or_default().queue.push_back(errand);
            let departure = Departure { errand, store, claim, payload, wished: now };
            self.waiting.insert(errand, departure);
        }
    }

    /// Whose turn it is, if anybody's; to be answered by [`granted`](Self::granted) or [`refused`](Self::refused).
    pub fn next(&mut self, now: Time) -> Option<Departure<P>> {
        if self.under_way.len() >= self.sends {
            return None;
        }
        let after = (Bound::Excluded(self.last), Bound::Unbounded);
        let behind = self.lines.range(after).chain(self.lines.range(..=self.last));
        let ready = |line: &Line| !line.asking && line.not_before <= now && !line.queue.is_empty();
        let stores: Vec<StoreId> =
            behind.filter(|(_, line)| ready(line)).map(|(store, _)| *store).collect();
        for store in stores {
            let Some(line) = self.lines.get_mut(&store) else { continue };
            while let Some(errand) = line.queue.pop_front() {
                let Some(departure) = self.waiting.remove(&errand) else { continue };
                if now.since(departure.wished) > WISH_LIFE {
                    continue;
                }
                line.asking = true;
                self.last = store;
                self.under_way.insert(errand, (store, Stage::Asking));
                return Some(departure);
            }
        }
        None
    }

    fn answered(&mut self, store: StoreId) -> &mut Line {
        let line = self.lines.entry(store).or_default();
        line.asking = false;
        line
    }

    /// There is a slot: the leader makes its snapshot now, or declines.
    pub fn granted(&mut self, now: Time, errand: SnapshotErrand) {
        let Some((store, stage)) = self.under_way.get_mut(&errand) else { return };
        *stage = Stage::Loading(now);
        let store = *store;
        self.answered(store).refusals = 0;
    }

    /// There is none.
    pub fn refused(&mut self, now: Time, departure: Departure<P>, why: Refusal) {
        let (errand, store) = (departure.errand, departure.store);
        self.under_way.remove(&errand);
        let known = self.waiting.contains_key(&errand);
        let line = self.answered(store);
        if why == Refusal::NoUse {
            self.resting.retain(|_, until| now < *until);
            self.resting.insert(errand, now.after(REST_USELESS));
            return;
        }
        line.not_before = now.after(REST_MIN * (1 << line.refusals.min(REST_DOUBLINGS)));
        line.refusals += 1;
        if why == Refusal::NotNow && !known {
            line.queue.push_front(errand);
            self.waiting.insert(errand, departure);
        }
    }

    /// The snapshot is there. `false`: it came too late, or nobody asked for it; there is no slot.
    pub fn flies(&mut self, errand: SnapshotErrand) -> bool {
        match self.under_way.get_mut(&errand) {
            Some((_, stage @ Stage::Loading(_))) => {
                *stage = Stage::Flying;
                true
            }
            _ => false,
        }
    }

    /// It has ended, or was declined: the place is free.
    pub fn ended(&mut self, errand: SnapshotErrand) {
        if !matches!(self.under_way.get(&errand), Some((_, Stage::Asking))) {
            self.under_way.remove(&errand);
        }
    }

    /// Slots whose leader has kept silent for too long: given up here, the caller gives them back.
    pub fn overdue(&mut self, now: Time) -> Vec<SnapshotErrand> {
        let late = |stage: &Stage| matches!(stage, Stage::Loading(since) if now.since(*since) > self.patience);
        let overdue: Vec<_> =
            self.under_way.iter().filter(|(_, w)| late(&w.1)).map(|(e, _)| *e).collect();
        for errand in &overdue {
            self.under_way.remove(errand);
        }
        overdue
    }

    /// Wishes that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Being asked for, made, or sent.
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{PeerId, RegionId};

    fn errand(region: u64) -> SnapshotErrand {
        SnapshotErrand { region: RegionId(region), from: PeerId(1), to: PeerId(2) }
    }

    fn ms(ms: u64) -> Time {
        Time(ms * 1_000_000)
    }

    fn wish(d: &mut Departures<()>, now: Time, region: u64, store: u64) {
        d.wish(now, errand(region), StoreId(store), Claim::default(), ());
    }

    #[test]
    fn stores_take_turns_and_places_are_bounded() {
        let mut d = Departures::new(2, Duration::from_secs(60));
        for region in 1..=4 {
            wish(&mut d, ms(0), region, 1);
            wish(&mut d, ms(1), region, 1);
        }
        wish(&mut d, ms(1), 9, 2);
        assert_eq!(d.waiting(), 5, "a repeated wish is one");
        let first = d.next(ms(1)).unwrap();
        let second = d.next(ms(1)).unwrap();
        assert_eq!((first.store, second.store), (StoreId(1), StoreId(2)));
        assert!(d.next(ms(1)).is_none(), "both places are taken");
        d.granted(ms(1), first.errand);
        assert!(d.flies(first.errand) && !d.flies(first.errand));
        d.granted(ms(1), second.errand);
        d.ended(second.errand);
        assert!(!d.flies(second.errand), "declined");
        assert_eq!(d.next(ms(1)).unwrap().errand, errand(2), "in order");
        assert!(d.next(ms(1)).is_none());
        wish(&mut d, ms(1), 1, 1);
        assert_eq!(d.waiting(), 2, "under way");
    }

    #[test]
    fn a_refusal_keeps_the_place_in_the_line_and_rests_for_longer_each_time() {
        let mut d = Departures::new(4, Duration::from_secs(60));
        wish(&mut d, ms(0), 1, 1);
        wish(&mut d, ms(0), 2, 1);
        let mut now = ms(0);
        for rest in [10, 20, 40, 80] {
            let asked = d.next(now).unwrap();
            assert_eq!(asked.errand, errand(1));
            assert!(d.next(now).is_none(), "one question at a time");
            d.refused(now, asked, Refusal::NotNow);
            assert!(d.next(now.after(Duration::from_millis(rest - 1))).is_none());
            now = now.after(Duration::from_millis(rest));
        }
        let asked = d.next(now).unwrap();
        d.granted(now, asked.errand);
        assert_eq!(d.next(now).unwrap().errand, errand(2), "a grant ends the rest");
    }

    #[test]
    fn the_useless_rest_alone_the_unreachable_and_the_stale_are_forgotten() {
        let mut d = Departures::new(4, Duration::from_secs(60));
        wish(&mut d, ms(0), 1, 1);
        wish(&mut d, ms(0), 2, 1);
        let asked = d.next(ms(0)).unwrap();
        d.refused(ms(0), asked, Refusal::NoUse);
        wish(&mut d, ms(250), 1, 1);
        let asked = d.next(ms(250)).unwrap();
        assert_eq!((asked.errand, d.waiting()), (errand(2), 0), "region 1 rests");
        d.refused(ms(250), asked, Refusal::OutOfReach);
        assert_eq!((d.waiting(), d.under_way()), (0, 0));
        wish(&mut d, ms(1500), 1, 1);
        assert_eq!(d.waiting(), 1);
        assert!(d.next(ms(12_000)).is_none(), "nobody wishes it any more");
        assert_eq!(d.waiting(), 0);
    }

    #[test]
    fn a_leader_that_says_nothing_loses_its_slot() {
        let mut d = Departures::new(1, Duration::from_secs(60));
        wish(&mut d, ms(0), 1, 1);
        let asked = d.next(ms(0)).unwrap();
        assert!(d.overdue(ms(90_000)).is_empty(), "the question will be answered");
        d.granted(ms(0), asked.errand);
        assert!(d.overdue(ms(60_000)).is_empty());
        assert_eq!(d.overdue(ms(60_001)), [errand(1)]);
        assert!(!d.flies(errand(1)) && d.under_way() == 0);
    }
}
