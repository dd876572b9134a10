//! All groups in memory, in shards, and the few sums over them that somebody asks for often.

use super::GroupId;
use super::index::Group;
use crate::types::IdMap;
use parking_lot::{MappedRwLockReadGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

type Shard = IdMap<GroupId, Group>;

const SHARDS: usize = 64;

/// So many groups with neighbouring numbers share a shard: a batch over many groups takes few locks. Each
/// is a barrier that keeps the processor from fetching the next group while it waits for this one.
const NEIGHBOURS: u64 = 16;

/// All groups, sharded so that readers of different groups seldom meet. Writers come one at a time:
/// what a group is changes under the submit lock; where its entries lie also under purge's.
///
/// - `stated` and `damaged` are sums over all groups, kept with every change, so that nobody has to look at
///   all groups for them.
#[derive(Debug)]
pub(super) struct Index {
    shards: Vec<RwLock<Shard>>,
    /// Bytes of states and positions.
    stated: AtomicU64,
    /// Groups that are fenced off.
    damaged: AtomicU64,
}

impl Default for Index {
    fn default() -> Index {
        let shards = (0..SHARDS).map(|_| RwLock::default()).collect();
        Index { shards, stated: AtomicU64::new(0), damaged: AtomicU64::new(0) }
    }
}

/// A group's share of the sums.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Share {
    stated: u64,
    damaged: u64,
}

impl Share {
    fn of(group: &Group) -> Share {
        Share { stated: group.stated_bytes(), damaged: u64::from(group.damage.is_some()) }
    }
}

impl Index {
    /// The shard that holds a group. Changes of groups in different shards may be made beside each other.
    pub fn shard_of(group: GroupId) -> usize {
        ((group / NEIGHBOURS) % SHARDS as u64) as usize
    }

    fn shard(&self, group: GroupId) -> &RwLock<Shard> {
        &self.shards[Index::shard_of(group)]
    }

    /// Looks at many groups, best in order: one lock for neighbours.
    pub fn reading(&self) -> Reading<'_> {
        Reading { index: self, open: None }
    }

    /// Changes many groups, best in order: one lock for neighbours. Readers of the group that was changed
    /// last wait as long as this lives.
    pub fn changing(&self) -> Changing<'_> {
        Changing { index: self, open: None }
    }

    pub fn read(&self, group: GroupId) -> Option<MappedRwLockReadGuard<'_, Group>> {
        RwLockReadGuard::try_map(self.shard(group).read(), |shard| shard.get(&group)).ok()
    }

    /// Changes the group, making it if it is new and dropping it if nothing is left.
    pub fn change<T>(&self, group: GroupId, change: impl FnOnce(&mut Group) -> T) -> T {
        self.changing().change(group, change)
    }

    /// Changes the group if there is one: its entries or where it is stated, nothing that the sums count.
    pub fn change_existing<T>(
        &self,
        group: GroupId,
        change: impl FnOnce(&mut Group) -> T,
    ) -> Option<T> {
        let mut shard = self.shard(group).write();
        shard.get_mut(&group).map(|group| uncounted(group, change))
    }

    fn count(&self, before: Share, after: Share) {
        if before != after {
            // Modulo 2^64: what falls is added as a large number.
            self.stated.fetch_add(after.stated.wrapping_sub(before.stated), Relaxed);
            self.damaged.fetch_add(after.damaged.wrapping_sub(before.damaged), Relaxed);
        }
    }

    /// Bytes of states and positions that some group needs.
    pub fn stated_bytes(&self) -> u64 {
        self.stated.load(Relaxed)
    }

    /// Whether some group is fenced off.
    pub fn has_damage(&self) -> bool {
        self.damaged.load(Relaxed) > 0
    }

    pub fn groups(&self) -> Vec<GroupId> {
        let mut groups: Vec<GroupId> =
            self.shards.iter().flat_map(|s| s.read().keys().copied().collect::<Vec<_>>()).collect();
        groups.sort_unstable();
        groups
    }

    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.read().len()).sum()
    }
}

/// A look at one group after the other. Holds the lock of one shard.
pub(super) struct Reading<'a> {
    index: &'a Index,
    open: Option<(usize, RwLockReadGuard<'a, Shard>)>,
}

impl Reading<'_> {
    pub fn get(&mut self, group: GroupId) -> Option<&Group> {
        let place = Index::shard_of(group);
        if self.open.as_ref().is_some_and(|(open, _)| *open != place) {
            // Never two locks at a time.
            self.open = None;
        }
        let (_, shard) = self.open.get_or_insert_with(|| (place, self.index.shards[place].read()));
        shard.get(&group)
    }
}

/// Changes of one group after the other. Holds the lock of one shard.
pub(super) struct Changing<'a> {
    index: &'a Index,
    open: Option<(usize, RwLockWriteGuard<'a, Shard>)>,
}

impl Changing<'_> {
    /// As [`Index::change`].
    pub fn change<T>(&mut self, group: GroupId, change: impl FnOnce(&mut Group) -> T) -> T {
        let index = self.index;
        let shard = self.shard(group);
        let entry = shard.entry(group).or_default();
        let before = Share::of(entry);
        let out = change(entry);
        let after = Share::of(entry);
        if entry.is_blank() {
            shard.remove(&group);
        }
        index.count(before, after);
        out
    }

    /// Appends to the group, making it if it is new. Looks at nothing else of it: what the sums count lies in another
    /// part of memory.
    pub fn append<T>(&mut self, group: GroupId, append: impl FnOnce(&mut Group) -> T) -> T {
        uncounted(self.shard(group).entry(group).or_default(), append)
    }

    fn shard(&mut self, group: GroupId) -> &mut Shard {
        let place = Index::shard_of(group);
        if self.open.as_ref().is_some_and(|(open, _)| *open != place) {
            // Never two locks at a time.
            self.open = None;
        }
        let index = self.index;
        let (_, shard) = self.open.get_or_insert_with(|| (place, index.shards[place].write()));
        shard
    }
}

fn uncounted<T>(group: &mut Group, change: impl FnOnce(&mut Group) -> T) -> T {
    let before = if cfg!(debug_assertions) { Share::of(group) } else { Share::default() };
    let out = change(group);
    debug_assert_eq!(before, Share::of(group));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::mem::MemDisk;
    use crate::log::index::tests::broken;
    use crate::log::{Entry, Log, LogBatch, Options};
    use crate::types::LogPosition;
    use proptest::prelude::*;
    use std::path::Path;
    use std::sync::Arc;

    /// The sums, from all groups.
    fn summed(index: &Index) -> (u64, bool) {
        let groups = index.groups();
        let shares: Vec<Share> =
            groups.iter().map(|id| Share::of(&index.read(*id).unwrap())).collect();
        let stated = shares.iter().map(|share| share.stated).sum();
        (stated, shares.iter().any(|share| share.damaged > 0))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        #[test]
        fn the_sums_are_those_of_all_groups(
            script in proptest::collection::vec((1..40u64, 0..9u8, 0..900u64), 100..300),
        ) {
            let options = Options { segment_bytes: 32 << 10, ..Options::default() };
            let disk = Arc::new(MemDisk::default());
            let open = || Log::open(disk.clone(), Path::new("/log"), options.clone()).unwrap().0;
            let mut log = open();
            for (group, what, n) in script {
                let mut batch = LogBatch::new();
                let last = log.last_index(group);
                match what {
                    0 => batch.clear(group),
                    1 => batch.reset(group, LogPosition { index: last + n, term: 1 }),
                    2 | 3 => batch.set_state(group, vec![1; n as usize]),
                    4 if last > 0 => {
                        let term = log.term(group, last).unwrap().unwrap_or(1);
                        batch.compact_to(group, LogPosition { index: last, term });
                    }
                    5 if n % 10 == 0 => {
                        drop(log);
                        log = open();
                    }
                    6 if n % 5 == 0 => _ = log.purge().unwrap(),
                    _ => {
                        let data = vec![2; n as usize].into();
                        batch.append(group, [Entry { index: last + 1, term: 1, kind: 0, data }]);
                    }
                }
                log.write(batch).unwrap();
                let index = &log.shared.index;
                prop_assert_eq!((index.stated_bytes(), index.has_damage()), summed(index));
                for id in index.groups() {
                    let group = index.read(id).unwrap();
                    prop_assert_eq!((broken(&group), group.gap()), (None, None));
                }
            }
        }
    }
}
