//! What must hold in every run, whatever the faults. Each checker is fed with what the replicas do and
//! answers with the first [`Violation`]. They hold what they saw by index or key and can be told to
//! forget what lies far behind.

use super::rng::mix;
use crate::types::{Epoch, PeerId, Region, RegionId, StoreId};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Something happened that must never happen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which promise was broken.
    pub what: &'static str,
    /// Where, by whom, expected and found.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.detail)
    }
}

impl std::error::Error for Violation {}

fn broken<T>(what: &'static str, detail: String) -> Result<T, Violation> {
    Err(Violation { what, detail })
}

/// Entries of one index and term are the same everywhere, and what was once committed stays.
#[derive(Clone, Default, Debug)]
pub struct LogMatching {
    /// By (region, index, term): the first peer that showed the entry, and its checksum.
    entries: BTreeMap<(RegionId, u64, u64), (PeerId, u32)>,
    /// By (region, index): who committed first, its term and checksum.
    committed: BTreeMap<(RegionId, u64), (PeerId, u64, u32)>,
}

impl LogMatching {
    /// A peer has this entry in its log.
    pub fn observe(
        &mut self,
        region: RegionId,
        peer: PeerId,
        index: u64,
        term: u64,
        crc: u32,
    ) -> Result<(), Violation> {
        let first = *self.entries.entry((region, index, term)).or_insert((peer, crc));
        if first.1 == crc {
            return Ok(());
        }
        let (other, other_crc) = first;
        let at = format!("{region} index {index} term {term}");
        broken("log matching", format!("{at}: {peer} has {crc:08x}, {other} had {other_crc:08x}"))
    }

    /// A peer knows this entry to be committed.
    pub fn commit(
        &mut self,
        region: RegionId,
        peer: PeerId,
        index: u64,
        term: u64,
        crc: u32,
    ) -> Result<(), Violation> {
        self.observe(region, peer, index, term, crc)?;
        let first = *self.committed.entry((region, index)).or_insert((peer, term, crc));
        if (first.1, first.2) == (term, crc) {
            return Ok(());
        }
        let (other, old_term, old_crc) = first;
        let detail = format!(
            "{region} index {index}: {peer} committed term {term} {crc:08x}, \
             {other} had committed term {old_term} {old_crc:08x}"
        );
        broken("committed entries never change", detail)
    }

    /// A peer became leader in `term`: its log, asked by index for (term, checksum), holds what was
    /// committed so far in earlier terms from `first` (its first index) on.
    pub fn leader_is_complete(
        &self,
        region: RegionId,
        peer: PeerId,
        term: u64,
        first: u64,
        log: impl Fn(u64) -> Option<(u64, u32)>,
    ) -> Result<(), Violation> {
        for ((_, index), (by, old_term, crc)) in
            self.committed.range((region, first)..=(region, u64::MAX))
        {
            if *old_term < term && log(*index) != Some((*old_term, *crc)) {
                let has = log(*index);
                let detail = format!(
                    "{region}: {peer} leads term {term} with {has:x?} at index {index}, \
                     where {by} committed term {old_term} {crc:08x}"
                );
                return broken("leader completeness", detail);
            }
        }
        Ok(())
    }

    /// The highest index of a region known to be committed.
    pub fn committed_index(&self, region: RegionId) -> u64 {
        let of_region = self.committed.range((region, 0)..=(region, u64::MAX));
        of_region.last().map_or(0, |((_, index), _)| *index)
    }

    /// Forgets what lies below an index of a region: bounds the memory of long runs.
    pub fn forget_below(&mut self, region: RegionId, index: u64) {
        self.entries.retain(|(r, i, _), _| *r != region || *i >= index);
        self.committed.retain(|(r, i), _| *r != region || *i >= index);
    }
}

/// At most one leader per region and term.
#[derive(Clone, Default, Debug)]
pub struct OneLeaderPerTerm {
    leaders: BTreeMap<(RegionId, u64), PeerId>,
}

impl OneLeaderPerTerm {
    /// A peer leads.
    pub fn observe(&mut self, region: RegionId, term: u64, peer: PeerId) -> Result<(), Violation> {
        match *self.leaders.entry((region, term)).or_insert(peer) {
            first if first == peer => Ok(()),
            first => {
                broken("one leader per term", format!("{region} term {term}: {first} and {peer}"))
            }
        }
    }
}

/// Replicas that applied up to the same index hold the same state.
#[derive(Clone, Default, Debug)]
pub struct StateEquality {
    states: BTreeMap<(RegionId, u64), (PeerId, u64)>,
}

impl StateEquality {
    /// A peer that applied `index` has a state with this hash.
    pub fn observe(
        &mut self,
        region: RegionId,
        peer: PeerId,
        index: u64,
        hash: u64,
    ) -> Result<(), Violation> {
        let (first, known) = *self.states.entry((region, index)).or_insert((peer, hash));
        if known == hash {
            return Ok(());
        }
        let detail =
            format!("{region} applied {index}: {peer} has {hash:016x}, {first} had {known:016x}");
        broken("state equality", detail)
    }

    /// Forgets what lies below an index of a region.
    pub fn forget_below(&mut self, region: RegionId, index: u64) {
        self.states.retain(|(r, i), _| *r != region || *i >= index);
    }
}

/// A hash over key-value pairs in key order, for [`StateEquality`].
pub fn state_hash<'a>(pairs: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> u64 {
    pairs.into_iter().fold(0, |hash, (key, value)| {
        let key = crc32c::crc32c(key);
        let value = crc32c::crc32c(value);
        mix(hash ^ (u64::from(key) << 32 | u64::from(value)))
    })
}

/// Epochs of a region only grow on one store.
#[derive(Clone, Default, Debug)]
pub struct EpochsGrow {
    epochs: BTreeMap<(StoreId, RegionId, PeerId), Epoch>,
}

impl EpochsGrow {
    /// A store's replica of a region has this shape. To be [forgotten](Self::forget) at a crash: what
    /// was applied and not flushed is applied again.
    pub fn observe(
        &mut self,
        store: StoreId,
        peer: PeerId,
        region: &Region,
    ) -> Result<(), Violation> {
        let known = self.epochs.entry((store, region.id, peer)).or_insert(region.epoch);
        let (old, new) = (*known, region.epoch);
        if new.conf_ver < old.conf_ver || new.version < old.version {
            let detail = format!("{} on {store}: from {old:?} to {new:?}", region.id);
            return broken("epochs only grow", detail);
        }
        *known = new;
        Ok(())
    }

    /// A store crashed.
    pub fn forget(&mut self, store: StoreId) {
        self.epochs.retain(|(s, _, _), _| *s != store);
    }
}

/// The newest shapes that were ever applied, by whomever: at every moment they cover every key exactly once.
///
/// * Whoever owns a key owns it at a higher version than those before: so of two regions that hold the same key
///   the one of the lower version was merged away (or is seen as a crashed store left it).
#[derive(Clone, Default, Debug)]
pub struct Shapes {
    newest: BTreeMap<RegionId, Region>,
}

impl Shapes {
    /// Whether none was seen yet: all stores are to be looked at first.
    pub fn is_empty(&self) -> bool {
        self.newest.is_empty()
    }

    /// The replicas that regions have on a store.
    pub fn on(&self, store: StoreId) -> BTreeSet<(RegionId, PeerId)> {
        let there = |region: &Region| region.peer_on(store).map(|peer| (region.id, peer.id));
        self.newest.values().filter_map(there).collect()
    }

    /// What one store holds, after it applied something.
    pub fn observe<'a>(&mut self, held: impl Iterator<Item = &'a Region>) -> Result<(), Violation> {
        let mut news = Vec::new();
        for region in held {
            match self.newest.get_mut(&region.id) {
                Some(known) if known.epoch.version > region.epoch.version => {}
                Some(known) if known.epoch.version == region.epoch.version => {
                    if known.epoch.conf_ver < region.epoch.conf_ver {
                        known.clone_from(region);
                    }
                }
                _ => {
                    self.newest.insert(region.id, region.clone());
                    news.push(region);
                }
            }
        }
        if news.is_empty() {
            return Ok(());
        }
        let owners: Vec<Region> = self.newest.values().cloned().collect();
        self.newest.retain(|id, region| {
            let taken = |other: &&Region| {
                other.id != *id
                    && other.epoch.version > region.epoch.version
                    && !other.range.intersect(&region.range).is_empty()
            };
            !owners.iter().any(|other| taken(&other))
        });
        let newest: Vec<Region> = self.newest.values().cloned().collect();
        covers_key_space(&newest)
    }
}

/// The regions, taken together, cover every key exactly once.
pub fn covers_key_space(regions: &[Region]) -> Result<(), Violation> {
    const WHAT: &str = "regions cover the key space";
    let mut sorted: Vec<&Region> = regions.iter().collect();
    sorted.sort_by(|a, b| a.range.start.cmp(&b.range.start));
    match (sorted.first(), sorted.last()) {
        (Some(first), Some(last)) => {
            if !first.range.start.is_empty() {
                let detail = format!("nothing before {:?} ({})", first.range.start, first.id);
                return broken(WHAT, detail);
            }
            if !last.range.end.is_empty() {
                let detail = format!("nothing from {:?} on ({})", last.range.end, last.id);
                return broken(WHAT, detail);
            }
        }
        _ => return broken(WHAT, "there is no region".to_owned()),
    }
    for pair in sorted.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        if a.range.end != b.range.start || a.range.is_empty() {
            let kind = match a.range.end.is_empty() || a.range.end > b.range.start {
                true => "overlap",
                false => "gap",
            };
            let (end, start) = (&a.range.end, &b.range.start);
            let detail = format!("{kind}: {} ends at {end:?}, {} starts at {start:?}", a.id, b.id);
            return broken(WHAT, detail);
        }
    }
    Ok(())
}

/// A write in [`Acknowledged`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriteId(usize);

#[derive(Clone, Debug)]
struct Write {
    key: Bytes,
    /// `None`: a delete.
    value: Option<Bytes>,
    begun: u64,
    end: Fate,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// It may be there, now or later.
    Unknown,
    Failed,
    Acked(u64),
}

/// No acknowledged write is lost: what is read at the end (by key, when nothing is under way) was
/// written, and not before an acknowledged write that it should have given way to. Cheaper than the
/// linearizability judge, and it needs no reads during the run.
///
/// - Times are any numbers that grow with real time.
#[derive(Clone, Default, Debug)]
pub struct Acknowledged {
    writes: Vec<Write>,
    keys: BTreeMap<Bytes, Vec<usize>>,
}

impl Acknowledged {
    /// A client starts to write (`None`: to delete).
    pub fn begin(&mut self, time: u64, key: &Bytes, value: Option<Bytes>) -> WriteId {
        let id = self.writes.len();
        self.writes.push(Write { key: key.clone(), value, begun: time, end: Fate::Unknown });
        self.keys.entry(key.clone()).or_default().push(id);
        WriteId(id)
    }

    /// It was acknowledged.
    pub fn acked(&mut self, id: WriteId, time: u64) {
        if let Some(write) = self.writes.get_mut(id.0) {
            write.end = Fate::Acked(time);
        }
    }

    /// It certainly had no effect. (One of unknown outcome is simply never ended.)
    pub fn failed(&mut self, id: WriteId) {
        if let Some(write) = self.writes.get_mut(id.0) {
            write.end = Fate::Failed;
        }
    }

    /// The keys ever written to, in order: what to read at the end.
    pub fn keys(&self) -> impl Iterator<Item = &Bytes> {
        self.keys.keys()
    }

    /// How many writes were acknowledged.
    pub fn count(&self) -> usize {
        self.writes.iter().filter(|write| matches!(write.end, Fate::Acked(_))).count()
    }

    /// The key was read after the last write ended.
    pub fn read(&self, key: &[u8], found: Option<&[u8]>) -> Result<(), Violation> {
        let ids = self.keys.get(key).map_or(&[][..], Vec::as_slice);
        let writes: Vec<&Write> = ids.iter().map(|id| &self.writes[*id]).collect();
        // The latest begin of an acknowledged write: whatever was acknowledged before it is gone.
        let last = writes
            .iter()
            .filter(|write| matches!(write.end, Fate::Acked(_)))
            .max_by_key(|write| write.begun);
        let may_remain = |write: &&&Write| match (write.end, last) {
            (Fate::Failed, _) => false,
            (Fate::Acked(at), Some(last)) => last.begun <= at,
            (Fate::Acked(_) | Fate::Unknown, _) => true,
        };
        let never_written = found.is_none() && last.is_none();
        let explained =
            writes.iter().filter(may_remain).any(|write| write.value.as_deref() == found);
        if never_written || explained {
            return Ok(());
        }
        let expected = match last {
            Some(write) => format!(
                "{:?} (begun at {}, acknowledged: {:?}) or later",
                write.value, write.begun, write.end
            ),
            None => "absence or a write of unknown outcome".to_owned(),
        };
        let found = found.map(Bytes::copy_from_slice);
        let key = writes.first().map_or_else(|| Bytes::copy_from_slice(key), |w| w.key.clone());
        broken("no acknowledged write is lost", format!("{key:?}: {found:?}, expected {expected}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::KeyRange;

    const R: RegionId = RegionId(1);
    const A: PeerId = PeerId(1);
    const B: PeerId = PeerId(2);

    #[test]
    fn shapes_cover_the_key_space_while_regions_are_cut_and_merged() {
        let at = |id: u64, version: u64, start: &'static str, end: &'static str| {
            let epoch = Epoch { version, ..Epoch::default() };
            Region {
                id: RegionId(id),
                range: KeyRange::new(start, end),
                epoch,
                ..Region::default()
            }
        };
        let mut shapes = Shapes::default();
        let mut sees = |held: &[Region]| shapes.observe(held.iter());
        sees(&[at(1, 1, "", "m"), at(2, 1, "m", "")]).unwrap();
        sees(&[at(1, 2, "", "f"), at(3, 2, "f", "m")]).unwrap();
        // 3 goes into 2; then a store comes back that does not know it yet.
        sees(&[at(2, 3, "f", "")]).unwrap();
        sees(&[at(1, 1, "", "m"), at(3, 2, "f", "m"), at(2, 1, "m", "")]).unwrap();
        let gap = sees(&[at(1, 3, "", "c")]).unwrap_err().detail;
        assert!(gap.starts_with("gap"), "{gap}");
        let overlap = sees(&[at(4, 3, "c", "g")]).unwrap_err().detail;
        assert!(overlap.starts_with("overlap"), "{overlap}");
    }

    #[test]
    fn logs() {
        let mut logs = LogMatching::default();
        logs.observe(R, A, 6, 5, 0xaa).unwrap();
        logs.observe(R, B, 6, 5, 0xaa).unwrap();
        logs.observe(R, B, 6, 6, 0xbb).unwrap();
        assert_eq!(logs.observe(R, B, 6, 5, 0xab).unwrap_err().what, "log matching");
        logs.commit(R, A, 6, 6, 0xbb).unwrap();
        logs.commit(R, B, 6, 6, 0xbb).unwrap();
        let changed = logs.commit(R, B, 6, 5, 0xaa).unwrap_err();
        assert_eq!(changed.what, "committed entries never change");
        assert_eq!(logs.committed_index(R), 6);
        logs.leader_is_complete(R, A, 7, 6, |_| Some((6, 0xbb))).unwrap();
        logs.leader_is_complete(R, A, 7, 7, |_| None).unwrap();
        logs.leader_is_complete(R, A, 6, 6, |_| None).unwrap();
        logs.leader_is_complete(R, A, 7, 6, |_| None).unwrap_err();
        logs.forget_below(R, 7);
        logs.commit(R, B, 6, 5, 0xaa).unwrap();
    }

    #[test]
    fn leaders_states_and_epochs() {
        let mut leaders = OneLeaderPerTerm::default();
        leaders.observe(R, 1, A).unwrap();
        leaders.observe(R, 1, A).unwrap();
        leaders.observe(R, 2, B).unwrap();
        assert_eq!(leaders.observe(R, 1, B).unwrap_err().detail, "r1 term 1: p1 and p2");

        let mut states = StateEquality::default();
        let hash = state_hash([(&b"a"[..], &b"1"[..]), (b"b", b"2")]);
        assert_ne!(hash, state_hash([(&b"b"[..], &b"2"[..]), (b"a", b"1")]));
        states.observe(R, A, 9, hash).unwrap();
        states.observe(R, B, 9, hash).unwrap();
        states.observe(R, B, 9, hash ^ 1).unwrap_err();
        states.forget_below(R, 10);
        states.observe(R, B, 9, hash ^ 1).unwrap();

        let mut epochs = EpochsGrow::default();
        let mut region =
            Region { id: R, epoch: Epoch { conf_ver: 2, version: 1 }, ..<_>::default() };
        epochs.observe(StoreId(1), A, &region).unwrap();
        region.epoch = Epoch { conf_ver: 1, version: 5 };
        epochs.observe(StoreId(1), A, &region).unwrap_err();
        epochs.observe(StoreId(2), A, &region).unwrap();
        epochs.forget(StoreId(1));
        epochs.observe(StoreId(1), A, &region).unwrap();
    }

    #[test]
    fn key_space() {
        let region = |id, start: &'static str, end: &'static str| Region {
            id: RegionId(id),
            range: KeyRange::new(start, end),
            ..Region::default()
        };
        covers_key_space(&[region(2, "m", ""), region(1, "", "m")]).unwrap();
        let wrong = |regions: &[Region]| covers_key_space(regions).unwrap_err().detail;
        assert!(wrong(&[]).contains("no region"));
        assert!(wrong(&[region(1, "", "m"), region(2, "n", "")]).starts_with("gap"));
        assert!(wrong(&[region(1, "", "n"), region(2, "m", "")]).starts_with("overlap"));
        assert!(wrong(&[region(1, "", ""), region(2, "m", "")]).starts_with("overlap"));
        assert!(wrong(&[region(1, "a", "")]).starts_with("nothing before"));
        assert!(wrong(&[region(1, "", "z")]).starts_with("nothing from"));
    }

    #[test]
    fn acknowledged_writes() {
        let mut writes = Acknowledged::default();
        let key = Bytes::from_static(b"k");
        writes.read(b"k", None).unwrap();
        writes.read(b"k", Some(b"?")).unwrap_err();
        let put = |writes: &mut Acknowledged, time, value: &'static str| {
            writes.begin(time, &key, Some(Bytes::from_static(value.as_bytes())))
        };
        let one = put(&mut writes, 1, "1");
        writes.read(b"k", None).unwrap();
        writes.read(b"k", Some(b"1")).unwrap();
        writes.acked(one, 2);
        writes.read(b"k", None).unwrap_err();
        let two = put(&mut writes, 3, "2");
        let three = put(&mut writes, 4, "3");
        writes.acked(two, 6);
        writes.acked(three, 5);
        let failed = put(&mut writes, 7, "4");
        writes.failed(failed);
        writes.read(b"k", Some(b"1")).unwrap_err();
        writes.read(b"k", Some(b"2")).unwrap();
        writes.read(b"k", Some(b"3")).unwrap();
        writes.read(b"k", Some(b"4")).unwrap_err();
        let gone = writes.begin(8, &key, None);
        writes.read(b"k", None).unwrap();
        writes.acked(gone, 9);
        writes.read(b"k", Some(b"3")).unwrap_err();
        assert_eq!((writes.count(), writes.keys().count()), (4, 1));
    }
}
