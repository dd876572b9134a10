//! The census: which of the regions led here are *calm*, that is small and cold for so long that they may be merged into
//! a neighbour ([`placement`](crate::placement) decides which).
//!
//! **What is looked at.** Now and then (an eighth of the patience, a minute at most) the clerk looks at what the replicas
//! that lead here publish: their shape, the batches that they took, the bytes that they applied and how often they were
//! read. No group is touched for it, and none that sleeps wakes.
//!
//! * *Cold* is a region that takes a few batches and reads a second at most ([`Rules::cold`]). (Of reads those count that
//!   its leader's node serves.) One look above it, a cut or another leader, and its patience begins anew. A merge
//!   is no cut: what was merged may find its next neighbour soon.
//! * *Small* is one that has been measured: once it was cold for long enough it is read, on a thread for reads, as far as
//!   [`Rules::small`] bytes and no further. What is applied later is added to it; once the sum is too much it is measured
//!   anew. What was larger is measured again after its patience, if somebody has written to it meanwhile.
//! * A region that nobody has ever written to is *laid out*, and not calm: somebody has cut it in advance. As far as is
//!   known here: that it took a batch since this node leads it, or that its log holds more entries than elections and
//!   changes of its shape make. Who empties a region within few entries, and restarts the node, leaves it laid out until
//!   it is written to again.
//!
//! Not done: sizes are not kept over a restart. The patience begins anew then, too.

use crate::config::NodeConfig;
use crate::error::Result;
use crate::kv::View;
use crate::region::size::measure_up_to;
use crate::store::PeerShare;
use crate::types::{Epoch, INITIAL_POSITION, Region, RegionId, Time};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Batches and reads per second that a cold region takes, at most.
const COLD: u64 = 16;
/// It takes at most this part of the load for which regions are cut: two that are merged are far from it.
const COLD_PART: u64 = 8;
/// The longest time between two looks.
const LOOK_MAX: Duration = Duration::from_secs(60);
/// Regions that are measured by one errand, at most.
const ERRAND_MAX: usize = 64;
/// An errand that has read so much ends.
const ERRAND_BYTES: u64 = 64 << 20;

/// When a region is calm.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Bytes of keys and values, at most.
    pub small: u64,
    /// Batches and reads per second, at most.
    pub cold: u64,
    /// For so long.
    pub patience: Duration,
}

/// What a replica that leads publishes.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    region: Arc<Region>,
    /// Batches that it took, and bytes that it applied, since it came up.
    taken: u64,
    applied: u64,
    /// How often it was read.
    reads: u64,
    term: u64,
    committed: u64,
}

impl Seen {
    pub fn of(share: &PeerShare) -> Seen {
        Seen {
            region: share.region(),
            taken: share.taken(),
            applied: share.applied_bytes(),
            reads: share.reads(),
            term: share.term(),
            committed: share.committed(),
        }
    }

    /// Whether a client has ever written to it, as far as can be told.
    fn is_touched(&self) -> bool {
        let Epoch { conf_ver, version } = self.region.epoch;
        let elections = self.term.saturating_sub(INITIAL_POSITION.term);
        // A change of replicas takes two entries, and one to forget whom it removed.
        let own = elections + 3 * conf_ver + version;
        self.taken > 0 || self.committed > INITIAL_POSITION.index + own
    }
}

#[derive(Clone, Copy, Debug)]
enum Size {
    Unknown,
    /// So many bytes when so many had been applied.
    Small {
        bytes: u64,
        applied: u64,
    },
    /// More than is small, when so many batches had been taken.
    Large {
        taken: u64,
        at: Time,
    },
}

#[derive(Debug)]
struct Entry {
    seen: Seen,
    /// Cold, and not cut, since then.
    since: Time,
    size: Size,
}

impl Entry {
    fn look(&mut self, seen: Seen, now: Time, passed: Duration, rules: &Rules) {
        let (before, after) = (&self.seen.region.range, &seen.region.range);
        if before != after {
            self.size = Size::Unknown;
            if !after.covers(before) {
                self.since = now;
            }
        }
        let uses = |seen: &Seen| seen.taken + seen.reads;
        let used = uses(&seen).checked_sub(uses(&self.seen));
        let may = u128::from(rules.cold) * passed.as_millis() / 1000;
        if used.is_none_or(|used| u128::from(used) > may) {
            self.since = now;
        }
        self.size = match self.size {
            Size::Small { bytes, applied } => match seen.applied.checked_sub(applied) {
                Some(more) if bytes + more <= rules.small => self.size,
                _ => Size::Unknown,
            },
            Size::Large { taken, at } if taken != seen.taken && now.since(at) >= rules.patience => {
                Size::Unknown
            }
            same => same,
        };
        self.seen = seen;
    }

    fn is_cold(&self, now: Time, rules: &Rules) -> bool {
        now.since(self.since) >= rules.patience
    }

    /// At most how many bytes it takes, if it is calm.
    fn calm(&self, now: Time, rules: &Rules) -> Option<u64> {
        let Size::Small { bytes, applied } = self.size else { return None };
        let bytes = bytes + self.seen.applied.saturating_sub(applied);
        let laid_out = bytes == 0 && !self.seen.is_touched();
        (self.is_cold(now, rules) && !laid_out).then_some(bytes)
    }
}

/// What one node knows of the regions that it leads.
///
/// * `calm` follows from the rest. It is kept, because it is asked for far more often than it changes, and mostly empty.
#[derive(Debug)]
pub(crate) struct Census {
    rules: Rules,
    regions: BTreeMap<RegionId, Entry>,
    calm: BTreeMap<RegionId, (Epoch, u64)>,
    looked: Option<Time>,
    /// Something has changed since there was nothing to be measured.
    news: bool,
    /// Somebody is measuring.
    asked: bool,
    /// How often it was found out anew who is calm.
    settled: u64,
}

/// Regions to be measured.
#[derive(Debug)]
pub(crate) struct Errand {
    small: u64,
    regions: Vec<(RegionId, Seen)>,
}

/// What was measured: of each region how much it holds, if it is small.
pub(crate) type Found = Vec<(RegionId, Seen, Option<u64>)>;

impl Errand {
    /// Measures as many as it may.
    pub fn carry_out(self, view: Result<Box<dyn View>>) -> Found {
        let Ok(view) = view else { return Vec::new() };
        let mut read = 0;
        let mut found = Vec::new();
        for (id, seen) in self.regions {
            if read >= ERRAND_BYTES {
                break;
            }
            // What cannot be read is left alone, like what is large.
            let bytes = measure_up_to(&*view, &seen.region.range, self.small).unwrap_or(None);
            read += bytes.unwrap_or(self.small);
            found.push((id, seen, bytes));
        }
        found
    }
}

impl Census {
    /// `None`: nothing is to be merged.
    pub fn of(config: &NodeConfig) -> Option<Census> {
        let cold = match config.region_split_load {
            0 => COLD,
            load => COLD.min(load / COLD_PART),
        };
        let patience = Duration::from_millis(config.region_merge_after_ms);
        let rules = Rules { small: config.merge_bytes(), cold, patience };
        (rules.small > 0).then(|| Census::new(rules))
    }

    /// One that goes by these rules.
    pub fn new(rules: Rules) -> Census {
        let (regions, calm) = (BTreeMap::new(), BTreeMap::new());
        Census { rules, regions, calm, looked: None, news: false, asked: false, settled: 0 }
    }

    /// Looks at all that is led here, if it is time.
    pub fn look<I>(&mut self, now: Time, led: impl FnOnce() -> I)
    where
        I: IntoIterator<Item = (RegionId, Seen)>,
    {
        let passed = self.looked.map(|looked| now.since(looked));
        if passed.is_some_and(|passed| passed < (self.rules.patience / 8).min(LOOK_MAX)) {
            return;
        }
        self.looked = Some(now);
        let mut before = std::mem::take(&mut self.regions);
        for (id, seen) in led() {
            let entry = match before.remove(&id) {
                Some(mut entry) => {
                    entry.look(seen, now, passed.unwrap_or_default(), &self.rules);
                    entry
                }
                None => Entry { seen, since: now, size: Size::Unknown },
            };
            self.regions.insert(id, entry);
        }
        self.settle();
    }

    /// Finds out anew who is calm.
    fn settle(&mut self) {
        self.news = true;
        self.settled += 1;
        let Some(now) = self.looked else { return };
        let (rules, regions) = (&self.rules, &self.regions);
        let calm = regions.iter().filter_map(|(id, entry)| {
            Some((*id, (entry.seen.region.epoch, entry.calm(now, rules)?)))
        });
        self.calm = calm.collect();
    }

    /// What is to be measured now, if there is anything and nothing is being measured.
    pub fn errand(&mut self) -> Option<Errand> {
        let now = self.looked.filter(|_| self.news && !self.asked)?;
        let unknown =
            |entry: &Entry| matches!(entry.size, Size::Unknown) && entry.is_cold(now, &self.rules);
        let wanted = self.regions.iter().filter(|(_, entry)| unknown(entry)).take(ERRAND_MAX);
        let regions: Vec<_> = wanted.map(|(id, entry)| (*id, entry.seen.clone())).collect();
        self.asked = !regions.is_empty();
        self.news = self.asked;
        self.asked.then_some(Errand { small: self.rules.small, regions })
    }

    /// An errand has ended.
    pub fn found(&mut self, now: Time, found: Found) {
        self.asked = false;
        for (id, seen, bytes) in found {
            let Some(entry) = self.regions.get_mut(&id) else { continue };
            // Counted from before it was read: what was applied meanwhile counts twice rather than not at all.
            let same = entry.seen.applied >= seen.applied;
            if same && entry.seen.region.range == seen.region.range {
                entry.size = match bytes {
                    Some(bytes) => Size::Small { bytes, applied: seen.applied },
                    None => Size::Large { taken: seen.taken, at: now },
                };
            }
        }
        self.settle();
    }

    /// How often it was found out anew who is calm.
    pub fn settled(&self) -> u64 {
        self.settled
    }

    /// At most how many bytes a region takes that is calm, and has the shape of this epoch.
    pub fn calm(&self, region: RegionId, epoch: Epoch) -> Option<u64> {
        let (of, bytes) = self.calm.get(&region)?;
        (*of == epoch).then_some(*bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::KeyRange;

    const RULES: Rules = Rules { small: 1000, cold: 10, patience: Duration::from_secs(80) };

    fn region(start: &'static str, end: &'static str, version: u64) -> Arc<Region> {
        let epoch = Epoch { conf_ver: 1, version };
        Arc::new(Region { range: KeyRange::new(start, end), epoch, ..Region::default() })
    }

    /// A region that many have written to, long ago.
    fn seen(region: &Arc<Region>, taken: u64, applied: u64) -> Seen {
        Seen { region: Arc::clone(region), taken, applied, reads: 0, term: 6, committed: 5000 }
    }

    /// A clerk with one region, who looks every ten seconds.
    struct Clerk {
        census: Census,
        now: Time,
        region: Arc<Region>,
        taken: u64,
        applied: u64,
        reads: u64,
    }

    impl Clerk {
        fn new() -> Clerk {
            let region = region("b", "f", 3);
            let (census, now) = (Census::new(RULES), Time(0));
            Clerk { census, now, region, taken: 0, applied: 0, reads: 0 }
        }

        fn pass(&mut self, seconds: u64) {
            for _ in 0..seconds / 10 {
                self.now = self.now.after(Duration::from_secs(10));
                let seen = seen(&self.region, self.taken, self.applied);
                let seen = Seen { reads: self.reads, ..seen };
                self.census.look(self.now, || [(RegionId(7), seen)]);
            }
        }

        /// Somebody measures what is to be measured, and finds this. Whether there was anything.
        fn measure(&mut self, bytes: Option<u64>) -> bool {
            let Some(errand) = self.census.errand() else { return false };
            assert!(self.census.errand().is_none(), "one at a time");
            let found = errand.regions.into_iter().map(|(id, seen)| (id, seen, bytes)).collect();
            self.census.found(self.now, found);
            true
        }

        fn calm(&self) -> Option<u64> {
            self.census.calm(RegionId(7), self.region.epoch)
        }
    }

    #[test]
    fn what_was_small_and_cold_for_long_is_calm() {
        let mut clerk = Clerk::new();
        clerk.pass(80);
        assert!(!clerk.measure(Some(9)), "not yet");
        clerk.pass(10);
        assert_eq!(clerk.calm(), None, "nobody knows how large it is");
        assert!(clerk.measure(Some(9)));
        assert_eq!(clerk.calm(), Some(9));
        assert_eq!(clerk.census.calm(RegionId(7), Epoch::default()), None, "of another shape");
        // A little is written: it is no longer known to be quite so small.
        (clerk.taken, clerk.applied) = (100, 500);
        clerk.pass(10);
        assert_eq!(clerk.calm(), Some(509));
        assert!(!clerk.measure(Some(1)));
        // More: it is measured anew. (It was the same keys all the time.)
        (clerk.taken, clerk.applied) = (200, 1200);
        clerk.pass(10);
        assert_eq!(clerk.calm(), None);
        assert!(clerk.measure(Some(30)));
        assert_eq!(clerk.calm(), Some(30));
        // It is used: two hundred batches before, sixty now, and some reads.
        (clerk.taken, clerk.reads) = (260, 40);
        clerk.pass(10);
        assert_eq!(clerk.calm(), Some(30));
        clerk.reads = 141;
        clerk.pass(10);
        assert_eq!(clerk.calm(), None);
        clerk.pass(70);
        assert_eq!(clerk.calm(), None);
        clerk.pass(10);
        assert_eq!(clerk.calm(), Some(30));
    }

    #[test]
    fn what_is_large_is_measured_again_when_somebody_wrote() {
        let mut clerk = Clerk::new();
        clerk.pass(90);
        assert!(clerk.measure(None));
        clerk.pass(500);
        assert!(!clerk.measure(None), "nobody wrote");
        clerk.taken = 1;
        clerk.pass(10);
        assert!(clerk.measure(Some(0)), "most of it may have been deleted");
        assert_eq!(clerk.calm(), Some(0));
        clerk.pass(10);
        (clerk.taken, clerk.applied) = (2, 5000);
        clerk.pass(10);
        assert!(clerk.measure(None));
        clerk.taken = 3;
        clerk.pass(70);
        assert!(!clerk.measure(None), "not so often");
        clerk.pass(20);
        assert!(clerk.measure(None));
    }

    #[test]
    fn a_cut_begins_anew_and_a_merge_is_only_measured() {
        let mut clerk = Clerk::new();
        clerk.pass(90);
        clerk.measure(Some(9));
        clerk.region = region("b", "d", 4);
        clerk.pass(80);
        assert!(!clerk.measure(Some(1)), "just cut");
        clerk.pass(10);
        assert!(clerk.measure(Some(1)));
        assert_eq!(clerk.calm(), Some(1));
        clerk.region = region("b", "k", 6);
        assert_eq!(clerk.calm(), None);
        clerk.pass(10);
        assert_eq!(clerk.calm(), None);
        assert!(clerk.measure(Some(600)));
        assert_eq!(clerk.calm(), Some(600));
        // Other replicas, the same keys.
        let mut same = (*clerk.region).clone();
        same.epoch.conf_ver = 9;
        clerk.region = Arc::new(same);
        clerk.pass(10);
        assert_eq!(clerk.calm(), Some(600));
        // Merged with something large.
        clerk.region = region("", "k", 9);
        clerk.pass(10);
        assert!(clerk.measure(None));
        assert_eq!(clerk.calm(), None);
    }

    #[test]
    fn what_was_measured_of_another_shape_or_replica_says_nothing() {
        let mut clerk = Clerk::new();
        clerk.applied = 50;
        clerk.pass(90);
        let errand = clerk.census.errand().unwrap();
        clerk.region = region("a", "f", 5);
        clerk.pass(10);
        let found = errand.regions.into_iter().map(|(id, seen)| (id, seen, Some(1))).collect();
        clerk.census.found(clerk.now, found);
        assert_eq!(clerk.calm(), None);
        assert!(clerk.measure(Some(2)));
        assert_eq!(clerk.calm(), Some(2));
        // Its replica here is another one: it counts from the start.
        clerk.applied = 0;
        clerk.pass(10);
        assert_eq!(clerk.calm(), None);
    }

    #[test]
    fn whoever_lost_the_lead_begins_anew() {
        let mut clerk = Clerk::new();
        clerk.pass(90);
        clerk.measure(Some(9));
        clerk.now = clerk.now.after(Duration::from_secs(10));
        clerk.census.look(clerk.now, || []);
        assert_eq!(clerk.calm(), None);
        clerk.pass(80);
        assert!(!clerk.measure(Some(9)));
    }

    #[test]
    fn what_nobody_has_ever_written_to_is_let_be() {
        let fresh = |version, taken, committed| {
            let region = region("b", "f", version);
            let mut census = Census::new(RULES);
            let mut now = Time(0);
            for _ in 0..10 {
                now = now.after(Duration::from_secs(10));
                let region = Arc::clone(&region);
                let seen = Seen { region, taken, applied: 0, reads: 0, term: 8, committed };
                census.look(now, || [(RegionId(7), seen)]);
            }
            let errand = census.errand().unwrap();
            let found = errand.regions.into_iter().map(|(id, seen)| (id, seen, Some(0))).collect();
            census.found(now, found);
            census.calm(RegionId(7), region.epoch)
        };
        // Three elections, one change of replicas, forty cuts.
        assert_eq!(fresh(40, 0, 5 + 3 + 3 + 40), None);
        assert_eq!(fresh(40, 0, 5 + 3 + 3 + 41), Some(0));
        assert_eq!(fresh(40, 1, 5 + 3 + 3 + 40), Some(0));
    }

    #[test]
    fn the_rules_follow_the_settings() {
        let of = |change: fn(&mut NodeConfig)| {
            let mut config = NodeConfig::default();
            change(&mut config);
            Census::of(&config).map(|census| census.rules)
        };
        let rules = of(|_| ()).unwrap();
        assert_eq!((rules.small, rules.cold, rules.patience.as_secs()), (32_212_254, COLD, 3600));
        assert_eq!(of(|c| c.region_split_load = 0).unwrap().cold, COLD);
        assert_eq!(of(|c| c.region_split_load = 80).unwrap().cold, 10);
        assert!(of(|c| c.region_merge_percent = 0).is_none());
        assert!(of(|c| c.region_split_bytes = 0).is_none());
    }
}
