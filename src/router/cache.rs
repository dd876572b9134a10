//! [`RangeCache`]: which region owns a key, as far as this node has heard.

use crate::types::{Epoch, KeyRange, Region, RegionId, StoreId};
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{self, Excluded, Included};
use std::sync::Arc;

/// What the cache knows of one region.
#[derive(Clone, PartialEq, Debug)]
pub struct Route {
    /// The region.
    pub region: Arc<Region>,
    /// Where its leader was last seen.
    pub leader: Option<StoreId>,
}

/// A route under its region's first key. (Kept with it, the key would cost as much as all the rest.)
#[derive(Clone, Debug)]
struct Placed(Route);

/// The lowest key, at an address that can be read. An empty `Bytes` points nowhere, and a vectorised comparison
/// of no bytes still loads from there, masked: the processor takes a detour of hundreds of cycles for it. Every
/// lookup compares with the first region's start (8 % of what small writes cost was this).
static LOWEST: [u8; 1] = [0];

impl Placed {
    fn start(&self) -> &[u8] {
        match &self.0.region.range.start {
            start if start.is_empty() => &LOWEST[..0],
            start => start,
        }
    }
}

impl Borrow<[u8]> for Placed {
    fn borrow(&self) -> &[u8] {
        self.start()
    }
}

impl PartialEq for Placed {
    fn eq(&self, other: &Placed) -> bool {
        self.start() == other.start()
    }
}

impl Eq for Placed {}

impl PartialOrd for Placed {
    fn partial_cmp(&self, other: &Placed) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Placed {
    fn cmp(&self, other: &Placed) -> Ordering {
        self.start().cmp(other.start())
    }
}

/// Regions by start key.
///
/// * `by_id` holds exactly the regions of `by_start`.
/// * Regions in it never overlap. Gaps are possible, and mean "not known".
/// * A region gives way only to one that is not older: of two versions of one region the larger epoch
///   stays, and a region with a smaller version never displaces an overlapping one with a larger.
#[derive(Clone, Default, Debug)]
pub struct RangeCache {
    by_start: BTreeSet<Placed>,
    by_id: BTreeMap<RegionId, Arc<Region>>,
}

fn up_to(last: Bound<&[u8]>) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (Bound::Unbounded, last)
}

fn older(a: Epoch, b: Epoch) -> bool {
    (a.version, a.conf_ver) < (b.version, b.conf_ver)
}

impl RangeCache {
    /// An empty cache.
    pub fn new() -> RangeCache {
        RangeCache::default()
    }

    /// How many regions are known.
    pub fn len(&self) -> usize {
        self.by_start.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.by_start.is_empty()
    }

    /// All known regions, by start key.
    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        self.by_start.iter().map(|placed| &placed.0)
    }

    /// The region that owns `key`.
    pub fn lookup(&self, key: &[u8]) -> Option<&Route> {
        let Placed(route) = self.by_start.range::<[u8], _>(up_to(Included(key))).next_back()?;
        route.region.range.contains(key).then_some(route)
    }

    /// The region that owns the keys just below `end` (an empty `end`: the last keys of all).
    pub fn lookup_before(&self, end: &[u8]) -> Option<&Route> {
        let Placed(route) = match end.is_empty() {
            true => self.by_start.iter().next_back()?,
            false => self.by_start.range::<[u8], _>(up_to(Excluded(end))).next_back()?,
        };
        let until = &route.region.range.end;
        let reaches = until.is_empty() || (!end.is_empty() && end <= &until[..]);
        reaches.then_some(route)
    }

    /// A region by its id.
    pub fn get(&self, region: RegionId) -> Option<&Route> {
        let start = &self.by_id.get(&region)?.range.start;
        self.by_start.get(&start[..]).map(|placed| &placed.0)
    }

    /// The known regions that share keys with `range`, by start key.
    pub fn overlapping(&self, range: &KeyRange) -> Vec<Route> {
        if range.is_empty() {
            return Vec::new();
        }
        let upto = self.by_start.range::<[u8], _>(up_to(Included(&range.start))).next_back();
        let first = match upto {
            Some(Placed(route)) if route.region.range.contains(&range.start) => {
                &route.region.range.start
            }
            _ => &range.start,
        };
        self.by_start
            .range::<[u8], _>((Included(&first[..]), Bound::Unbounded))
            .map(|placed| &placed.0)
            .take_while(|route| {
                range.end.is_empty() || route.region.range.start[..] < range.end[..]
            })
            .cloned()
            .collect()
    }

    /// Learns of a region. Older ones that overlap it go; `false` when it is itself the older one and
    /// nothing changed. A leader hint survives as long as the leader's store has a replica.
    pub fn update(&mut self, region: impl Into<Arc<Region>>) -> bool {
        let region = region.into();
        let rivals = self.overlapping(&region.range);
        let known = self.get(region.id).cloned();
        if known.as_ref().is_some_and(|known| older(region.epoch, known.region.epoch))
            || rivals.iter().any(|rival| {
                rival.region.id != region.id && rival.region.epoch.version > region.epoch.version
            })
        {
            return false;
        }
        for gone in rivals.iter().chain(&known) {
            self.by_start.remove(&gone.region.range.start[..]);
            self.by_id.remove(&gone.region.id);
        }
        let leader =
            known.and_then(|known| known.leader).filter(|store| region.peer_on(*store).is_some());
        self.by_id.insert(region.id, Arc::clone(&region));
        self.by_start.insert(Placed(Route { region, leader }));
        true
    }

    /// Learns who leads a region, or that nobody knows.
    pub fn set_leader(&mut self, region: RegionId, leader: Option<StoreId>) {
        let Some(start) = self.by_id.get(&region).map(|region| &region.range.start[..]) else {
            return;
        };
        let known = self.by_start.get(start).is_some_and(|placed| placed.0.leader == leader);
        if !known && let Some(Placed(route)) = self.by_start.take(start) {
            self.by_start.insert(Placed(Route { leader, ..route }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Peer, PeerId, Role};
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

    fn ids(routes: &[Route]) -> Vec<u64> {
        routes.iter().map(|route| route.region.id.0).collect()
    }

    #[test]
    fn keys_are_found_at_both_edges() {
        let mut cache = RangeCache::new();
        cache.update(region(1, "", "m", 1));
        cache.update(region(2, "m", "", 1));
        let at = |key: &str| cache.lookup(key.as_bytes()).unwrap().region.id.0;
        assert_eq!((at(""), at("lzz"), at("m"), at("zzz")), (1, 1, 2, 2));
        let before = |key: &str| cache.lookup_before(key.as_bytes()).unwrap().region.id.0;
        assert_eq!((before("m"), before("m\0"), before("")), (1, 2, 2));
        assert_eq!(ids(&cache.overlapping(&KeyRange::new("a", "m"))), [1]);
        assert_eq!(ids(&cache.overlapping(&KeyRange::new("a", "n"))), [1, 2]);
        assert_eq!(ids(&cache.overlapping(&KeyRange::all())), [1, 2]);
    }

    #[test]
    fn newer_shapes_displace_older_ones_only() {
        let mut cache = RangeCache::new();
        assert!(cache.update(region(1, "", "", 1)));
        cache.set_leader(RegionId(1), Some(StoreId(2)));
        assert!(cache.update(region(1, "", "m", 2)));
        assert_eq!(cache.lookup(b"a").unwrap().leader, Some(StoreId(2)), "the hint survives");
        assert!(cache.lookup(b"z").is_none(), "not known yet");
        assert!(cache.update(region(2, "m", "", 2)));
        assert!(!cache.update(region(1, "", "", 1)), "older than itself");
        assert!(!cache.update(region(3, "a", "z", 1)), "older than what it overlaps");
        assert!(cache.update(region(2, "", "", 3)), "a merge");
        assert_eq!((cache.len(), cache.get(RegionId(1))), (1, None));
    }

    proptest! {
        #[test]
        fn regions_never_overlap(
            updates in proptest::collection::vec((1u64..6, 0u8..20, 0u8..20, 0u64..8), 0..60)
        ) {
            let mut cache = RangeCache::new();
            for (id, a, b, version) in updates {
                let (start, end) = (a.min(b), a.max(b) + 1);
                let mut new = region(id, "", "", version);
                new.range = KeyRange::new(vec![start], vec![end]);
                cache.update(new);
                let all: Vec<_> = cache.routes().collect();
                for pair in all.windows(2) {
                    prop_assert!(pair[0].region.range.end <= pair[1].region.range.start);
                }
                for route in &all {
                    prop_assert_eq!(cache.get(route.region.id), Some(*route));
                    prop_assert_eq!(cache.lookup(&route.region.range.start), Some(*route));
                    prop_assert_eq!(cache.lookup_before(&route.region.range.end), Some(*route));
                }
            }
        }
    }
}
