//! [`Atlas`]: which regions there are and who leads them, as their leaders report it. The leader of region 1 keeps it, in
//! memory, for one session ([`reporter`](super::reporter) has the protocol).

use super::cache::RangeCache;
use crate::codec::report::{Extent, RegionInfo, Report, Verdict};
use crate::types::{Epoch, Region, RegionId, StoreId};
use bytes::Bytes;
use std::collections::BTreeMap;

#[derive(Clone, Copy, Default, Debug)]
struct Load {
    term: u64,
    bytes: u64,
    /// Of the shape of this epoch.
    calm: Option<u64>,
    epoch: Epoch,
}

/// Who has reported, and what he said of himself.
#[derive(Clone, Copy, Default, Debug)]
pub struct Sender {
    life: u64,
    number: u64,
    /// Bytes that it takes on its disk.
    pub used_bytes: u64,
    /// Bytes that it could take.
    pub capacity_bytes: u64,
}

/// The regions of the cluster.
///
/// * Of two shapes the newer one stays, of two leaders the one of the later term: reports may come in any order.
/// * What nobody has reported in this session is not in it.
#[derive(Debug)]
pub struct Atlas {
    session: u64,
    regions: RangeCache,
    loads: BTreeMap<RegionId, Load>,
    senders: BTreeMap<StoreId, Sender>,
    changes: u64,
}

impl Atlas {
    /// An empty one. `session` is not 0, and no other reign draws it.
    pub fn new(session: u64) -> Atlas {
        let (regions, loads) = (RangeCache::new(), BTreeMap::new());
        Atlas { session, regions, loads, senders: BTreeMap::new(), changes: 0 }
    }

    /// Its session.
    pub fn session(&self) -> u64 {
        self.session
    }

    /// Grows with everything that is learnt.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Takes a report in, if it is of this session and nothing is missing before it.
    pub fn take(&mut self, report: &Report) -> Verdict {
        let known = self.senders.get(&report.store).copied();
        let same_life = known.is_some_and(|known| known.life == report.life);
        if report.session != self.session || (report.extent == Extent::Difference && !same_life) {
            return Verdict::Again;
        }
        if known.is_some_and(|known| same_life && known.number >= report.number) {
            // It comes late: what came before it said the same and more.
            return Verdict::Taken;
        }
        self.changes += 1;
        let sender = Sender {
            life: report.life,
            number: report.number,
            used_bytes: report.used_bytes,
            capacity_bytes: report.capacity_bytes,
        };
        self.senders.insert(report.store, sender);
        if report.extent == Extent::Whole {
            let led = self.regions.routes().filter(|route| route.leader == Some(report.store));
            let led: Vec<RegionId> = led.map(|route| route.region.id).collect();
            led.into_iter().for_each(|region| self.regions.set_leader(region, None));
        }
        for led in &report.led {
            let id = led.region.id;
            self.regions.update(led.region.clone());
            let load = self.loads.entry(id).or_default();
            if led.term >= load.term {
                let epoch = led.region.epoch;
                *load = Load { term: led.term, bytes: led.bytes, calm: led.calm, epoch };
                self.regions.set_leader(id, Some(report.store));
            }
        }
        for (region, term) in &report.gone {
            let is_led = |route: &super::Route| route.leader == Some(report.store);
            let later = self.loads.get(region).is_some_and(|load| load.term > *term);
            if !later && self.regions.get(*region).is_some_and(is_led) {
                self.regions.set_leader(*region, None);
            }
        }
        self.prune();
        Verdict::Taken
    }

    /// A region has this shape now, as somebody knows who has just changed it.
    pub fn learn(&mut self, region: &Region) -> bool {
        let known = self.regions.get(region.id).map(|route| route.region.epoch);
        let learnt = known != Some(region.epoch) && self.regions.update(region.clone());
        if learnt {
            self.changes += 1;
            self.prune();
        }
        learnt
    }

    /// Forgets what was known of regions that are no more.
    fn prune(&mut self) {
        if self.loads.len() > self.regions.len() {
            let regions = &self.regions;
            self.loads.retain(|region, _| regions.get(*region).is_some());
        }
    }

    /// What a store said of itself.
    pub fn sender(&self, store: StoreId) -> Option<&Sender> {
        self.senders.get(&store)
    }

    /// All regions that have been reported, by range, and who leads them.
    pub fn regions(&self) -> impl Iterator<Item = (&Region, Option<StoreId>)> {
        self.regions.routes().map(|route| (&*route.region, route.leader))
    }

    /// Whether a region may be merged into a neighbour, and how large it is, as its leader has said of exactly this shape.
    pub fn calm(&self, region: &Region) -> Option<u64> {
        self.loads.get(&region.id).filter(|load| load.epoch == region.epoch)?.calm
    }

    /// Whether every key belongs to a region that has been reported.
    pub fn is_whole(&self) -> bool {
        let mut at = Bytes::new();
        for route in self.regions.routes() {
            if route.region.range.start != at {
                return false;
            }
            at = route.region.range.end.clone();
            if at.is_empty() {
                return true;
            }
        }
        false
    }

    /// What has been reported of a region.
    pub fn describe(&self, region: &Region) -> RegionInfo {
        let id = region.id;
        RegionInfo {
            region: region.clone(),
            leader: self.regions.get(id).and_then(|route| route.leader),
            bytes: self.loads.get(&id).map_or(0, |load| load.bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::reporter::{Mark, Reporter, Space};
    use super::*;
    use crate::types::{KeyRange, Peer, PeerId, Role};
    use proptest::prelude::*;

    fn region(id: u64, start: &str, end: &str, version: u64) -> Region {
        Region {
            id: RegionId(id),
            range: KeyRange::new(start.to_owned(), end.to_owned()),
            epoch: Epoch { conf_ver: 1, version },
            peers: (1..=3)
                .map(|s| Peer { id: PeerId(s), store: StoreId(s), role: Role::Voter })
                .collect(),
        }
    }

    /// A store that leads some regions.
    struct Store {
        reporter: Reporter,
        leads: BTreeMap<RegionId, (Region, u64, u64)>,
    }

    impl Store {
        fn new(id: u64) -> Store {
            Store { reporter: Reporter::new(StoreId(id), id * 100), leads: BTreeMap::new() }
        }

        fn leads(&mut self, region: Region, term: u64, bytes: u64) {
            self.leads.insert(region.id, (region, term, bytes));
        }

        fn next(&mut self) -> Option<Report> {
            let led: Vec<(RegionId, Mark)> = self
                .leads
                .iter()
                .map(|(id, (region, term, bytes))| {
                    // Small ones are calm.
                    let calm = Some(*bytes).filter(|bytes| (20..40).contains(bytes));
                    (*id, Mark { epoch: region.epoch, term: *term, bytes: *bytes, calm })
                })
                .collect();
            let shape = |id| self.leads.get(&id).map(|(region, ..)| region.clone());
            self.reporter.next(&led, Space::default(), shape)
        }

        /// Reports until there is nothing left to say; how many reports it took.
        fn settle(&mut self, atlas: &mut Atlas) -> usize {
            let mut count = 0;
            while let Some(report) = self.next() {
                let verdict = atlas.take(&report);
                self.reporter.answered(report.number, atlas.session(), verdict);
                count += 1;
                assert!(count < 9, "{report:?}");
            }
            count
        }
    }

    fn leaders(atlas: &Atlas) -> Vec<(u64, Option<u64>)> {
        let one = |(region, leader): (&Region, Option<StoreId>)| (region.id.0, leader.map(|s| s.0));
        atlas.regions().map(one).collect()
    }

    #[test]
    fn only_differences_are_told_and_nothing_before_a_session() {
        let mut atlas = Atlas::new(77);
        let mut store = Store::new(1);
        store.leads(region(1, "", "m", 1), 5, 0);
        store.leads(region(2, "m", "", 1), 5, 0);
        assert_eq!(store.next(), None, "nobody has announced a session");
        store.reporter.announced(77);
        let first = store.next().unwrap();
        assert_eq!((first.extent, first.led.len()), (Extent::Whole, 2));
        assert_eq!(store.next(), None, "one is under way");
        store.reporter.answered(first.number, 77, atlas.take(&first));
        assert_eq!(store.next(), None, "nothing is new");
        assert!(atlas.is_whole());
        store.leads(region(2, "m", "", 1), 5, 9);
        let size = store.next().unwrap();
        assert_eq!((size.extent, size.led.len()), (Extent::Difference, 1));
        store.reporter.failed(size.number);
        store.leads.remove(&RegionId(1));
        let both = store.next().unwrap();
        assert_eq!((both.led.len(), both.gone.clone()), (1, vec![(RegionId(1), 5)]));
        assert_eq!(atlas.take(&both), Verdict::Taken);
        assert_eq!(atlas.take(&size), Verdict::Taken, "late, and passed over");
        store.reporter.answered(size.number, 77, Verdict::Again);
        store.reporter.answered(both.number, 77, Verdict::Taken);
        assert_eq!(leaders(&atlas), [(1, None), (2, Some(1))]);
        store.leads(region(2, "m", "", 1), 5, 1000);
        assert_eq!(store.next(), None, "a little more is no news");
        store.leads(region(2, "m", "", 1), 5, 64 << 20);
        assert_eq!(store.settle(&mut atlas), 1);
        let info = atlas.describe(&region(2, "m", "", 1));
        assert_eq!((info.leader, info.bytes), (Some(StoreId(1)), 64 << 20));
    }

    /// What was said in a report that seemed lost, and is true no more, is taken back.
    #[test]
    fn whatever_may_have_been_heard_is_said_again() {
        let mut atlas = Atlas::new(1);
        let mut store = Store::new(1);
        store.reporter.announced(1);
        store.leads(region(1, "", "m", 1), 5, 0);
        store.settle(&mut atlas);
        store.leads(region(1, "", "m", 1), 5, 30);
        store.leads(region(2, "m", "", 1), 6, 0);
        let late = store.next().unwrap();
        store.reporter.failed(late.number);
        atlas.take(&late);
        store.leads.remove(&RegionId(2));
        store.leads(region(1, "", "m", 1), 5, 0);
        assert_eq!(atlas.calm(&region(1, "", "m", 1)), Some(30));
        assert_eq!(store.settle(&mut atlas), 1);
        assert_eq!(leaders(&atlas), [(1, Some(1)), (2, None)]);
        assert_eq!(atlas.calm(&region(1, "", "m", 1)), None);
        assert_eq!(store.next(), None, "once is enough");
    }

    #[test]
    fn who_is_calm_is_known_of_the_shape_that_was_reported() {
        let mut atlas = Atlas::new(1);
        let mut store = Store::new(1);
        store.reporter.announced(1);
        store.leads(region(1, "", "m", 1), 5, 29);
        store.leads(region(2, "m", "", 1), 5, 1000);
        store.settle(&mut atlas);
        assert_eq!(atlas.calm(&region(1, "", "m", 1)), Some(29));
        assert_eq!(atlas.calm(&region(2, "m", "", 1)), None);
        // It is calm no more, and says so; another is from now on.
        store.leads(region(1, "", "m", 1), 5, 1000);
        store.leads(region(2, "m", "", 1), 5, 27);
        assert_eq!(store.settle(&mut atlas), 1);
        assert_eq!(atlas.calm(&region(1, "", "m", 1)), None);
        assert_eq!(atlas.calm(&region(2, "m", "", 1)), Some(27));
        // Somebody knows a later shape: of that nobody has said anything.
        assert!(atlas.learn(&region(2, "", "", 2)));
        assert_eq!(atlas.calm(&region(2, "", "", 2)), None);
        store.leads.clear();
        store.leads(region(2, "", "", 2), 5, 36);
        store.settle(&mut atlas);
        assert_eq!(atlas.calm(&region(2, "", "", 2)), Some(36));
    }

    #[test]
    fn the_later_term_leads_whoever_speaks_last() {
        let mut atlas = Atlas::new(1);
        let (mut old, mut new) = (Store::new(1), Store::new(2));
        old.reporter.announced(1);
        new.reporter.announced(1);
        old.leads(region(1, "", "", 1), 5, 0);
        new.leads(region(1, "", "", 1), 6, 0);
        new.settle(&mut atlas);
        old.settle(&mut atlas);
        assert_eq!(leaders(&atlas), [(1, Some(2))]);
        old.leads.clear();
        old.settle(&mut atlas);
        assert_eq!(leaders(&atlas), [(1, Some(2))], "it never was the leader that counts");
        new.leads.clear();
        new.settle(&mut atlas);
        assert_eq!(leaders(&atlas), [(1, None)]);
    }

    #[test]
    fn a_new_reign_hears_everything_from_the_start() {
        let mut store = Store::new(1);
        store.leads(region(1, "", "m", 1), 5, 7);
        store.leads(region(2, "m", "", 1), 5, 0);
        store.reporter.announced(1);
        store.settle(&mut Atlas::new(1));
        // The new leader's announcement is lost: a report finds it.
        let mut atlas = Atlas::new(2);
        store.leads(region(2, "m", "", 1), 6, 0);
        assert_eq!(store.settle(&mut atlas), 2);
        assert_eq!(leaders(&atlas), [(1, Some(1)), (2, Some(1))]);
        // The same reign, but the reporter has been restarted, and leads less.
        let mut again = Store::new(1);
        again.reporter = Reporter::new(StoreId(1), 999);
        again.leads(region(1, "", "m", 1), 5, 7);
        again.reporter.announced(2);
        assert_eq!(again.settle(&mut atlas), 1);
        assert_eq!(leaders(&atlas), [(1, Some(1)), (2, None)]);
    }

    /// A new leader of region 1 whose replica has not applied the latest record yet announces an older one, which nobody
    /// takes: all still know the last reign's announcement, and heed it at each look. Report and answer went to and fro between
    /// the two sessions without a pause (seed 671 of the simulator's regions: for ever, at one instant).
    #[test]
    fn an_announcement_heeded_again_does_not_undo_an_answer() {
        let mut store = Store::new(1);
        store.leads(region(1, "", "", 1), 5, 7);
        store.reporter.announced(1);
        let mut atlas = Atlas::new(2);
        let mut reports = 0;
        for _look in 0..10 {
            store.reporter.announced(1);
            reports += store.settle(&mut atlas);
        }
        assert_eq!((leaders(&atlas), reports), (vec![(1, Some(1))], 2));
        // And a reign that is announced later counts.
        let mut later = Atlas::new(3);
        store.reporter.announced(3);
        assert_eq!((store.settle(&mut later), leaders(&later)), (1, vec![(1, Some(1))]));
    }

    proptest! {
        /// Whatever is lost, late or repeated: once all have settled, the atlas says what is.
        #[test]
        fn the_last_word_counts(steps in proptest::collection::vec((0u8..6, 0usize..3, 0u64..4), 0..80)) {
            let mut atlas = Atlas::new(1);
            let mut sessions = 1;
            let mut stores: Vec<Store> = (1..=3).map(Store::new).collect();
            stores.iter_mut().for_each(|store| store.reporter.announced(1));
            let mut terms = [5u64; 4];
            let mut late: Vec<(usize, Report)> = Vec::new();
            let shape = |id: u64| region(id + 1, ["", "g", "m", "t"][id as usize], ["g", "m", "t", ""][id as usize], 1);
            for (what, at, id) in steps {
                match what {
                    0 => {
                        terms[id as usize] += 1;
                        stores.iter_mut().for_each(|store| { store.leads.remove(&RegionId(id + 1)); });
                        stores[at].leads(shape(id), terms[id as usize], 0);
                    }
                    1 => { stores[at].leads.remove(&RegionId(id + 1)); }
                    2 => if let Some(report) = stores[at].next() {
                        stores[at].reporter.failed(report.number);
                        late.push((at, report));
                    },
                    3 => if let Some((_, report)) = late.pop() { atlas.take(&report); },
                    4 => { stores[at].settle(&mut atlas); }
                    _ => { sessions += 1; atlas = Atlas::new(sessions); }
                }
            }
            let session = atlas.session();
            for store in &mut stores {
                store.reporter.announced(session);
                store.settle(&mut atlas);
            }
            for (region, leader) in atlas.regions() {
                let leads = stores.iter().position(|store| store.leads.contains_key(&region.id));
                prop_assert_eq!(leader, leads.map(|at| StoreId(at as u64 + 1)));
            }
        }
    }
}
