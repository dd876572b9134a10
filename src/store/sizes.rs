//! Sizes: a region that nobody writes to is measured, too.
//!
//! A region that grows asks by itself to be measured ([`size`](crate::region::size)). One that is of unknown size (a part
//! that a cut left, a merge, another leader, a restart) or whose cut came to nothing would ask only once enough is
//! written to it, and until then nobody would know that it is far too large.
//!
//! So a loop lists each of its regions that leads here and is in want of a measurement, when it visits it: no group is
//! looked at for this alone, and none that sleeps wakes, unless it turns out to be too large. At each tick the first of the
//! list are measured whose time has come. A region that was not measured in this shape waits a second; each time that it
//! was in vain (a region that must not be cut as long as one of its replicas is down) it waits twice as long.
//!
//! **Bounds.** [`AT_ONCE`] are being measured at a time, and what is read beyond [`BYTES_PER_SECOND`] has to be waited for,
//! whoever asked for it. So a store that starts with thousands of regions reads them one after another, at a speed that
//! leaves its disk to others.

use super::round::Store;
use crate::region::size::Measured;
use crate::types::{RegionId, Time};
use std::collections::BTreeSet;
use std::time::Duration;

/// Regions of one loop that are being measured for this, at most.
const AT_ONCE: usize = 4;
/// What one loop reads for it, about.
const BYTES_PER_SECOND: u64 = 16 << 20;
/// How long a region waits that was not measured in its shape.
const SOON: Duration = Duration::from_secs(1);
/// So often the wait doubles, at most: to a quarter of an hour.
const DOUBLINGS_MAX: u32 = 10;

/// The regions of one loop that are to be measured though nobody writes to them.
#[derive(Default, Debug)]
pub(super) struct Sizes {
    /// By the time from which on.
    due: BTreeSet<(Time, RegionId)>,
    asked: Vec<RegionId>,
    /// What was read and has not been waited for, in bytes.
    debt: u64,
    ticked: Time,
}

impl Sizes {
    /// A region was in want of a measurement when it was visited, after so many that were in vain.
    pub fn list(&mut self, now: Time, region: RegionId, vain: u32) {
        self.due.insert((now.after(SOON * (1 << vain.min(DOUBLINGS_MAX))), region));
    }

    fn tick(&mut self, now: Time) {
        let passed = now.since(std::mem::replace(&mut self.ticked, now)).min(SOON);
        let paid = u128::from(BYTES_PER_SECOND) * passed.as_millis() / 1000;
        self.debt = self.debt.saturating_sub(paid as u64);
    }

    fn next(&mut self, now: Time) -> Option<RegionId> {
        let free = self.debt == 0 && self.asked.len() < AT_ONCE;
        let (from, region) = *self.due.first().filter(|(from, _)| free && *from <= now)?;
        self.due.remove(&(from, region));
        Some(region)
    }
}

impl Store {
    /// A tick: asks for the sizes of the next regions.
    pub(super) fn tick_sizes(&mut self, now: Time) {
        self.sizes.tick(now);
        let peers = &self.peers;
        self.sizes.asked.retain(|region| peers.get(region).is_some_and(|p| p.is_being_measured()));
        while let Some(region) = self.sizes.next(now) {
            let Some(peer) = self.peers.get_mut(&region) else { continue };
            if peer.measure_now(&self.config, &mut self.pending) {
                self.sizes.asked.push(region);
            }
        }
    }

    /// A region was measured.
    pub(super) fn measured(&mut self, done: Measured) {
        self.sizes.debt = self.sizes.debt.saturating_add(done.bytes);
        let config = self.config.clone();
        self.touch(done.region, |peer, effects| peer.measured(&config, done, effects));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_in_vain_waits_longer_and_what_was_read_is_waited_for() {
        let at = |millis| Time(0).after(Duration::from_millis(millis));
        let mut sizes = Sizes::default();
        for region in 1..=9 {
            sizes.list(at(0), RegionId(region), 0);
        }
        sizes.list(at(0), RegionId(10), 3);
        sizes.tick(at(900));
        assert_eq!(sizes.next(at(900)), None);
        for region in 1..=AT_ONCE as u64 {
            assert_eq!(sizes.next(at(1000)), Some(RegionId(region)));
            sizes.asked.push(RegionId(region));
        }
        assert_eq!(sizes.next(at(1000)), None, "no more at once");
        sizes.asked.clear();
        sizes.tick(at(1000));
        sizes.debt += 2 * BYTES_PER_SECOND;
        sizes.tick(at(2000));
        assert_eq!(sizes.next(at(2000)), None, "another second's worth was read");
        sizes.tick(at(3000));
        let rest: Vec<_> = std::iter::from_fn(|| sizes.next(at(3000))).map(|id| id.0).collect();
        assert_eq!(rest, [5, 6, 7, 8, 9]);
        assert_eq!(sizes.next(at(7999)), None);
        assert_eq!(sizes.next(at(8000)), Some(RegionId(10)), "after eight seconds");
    }
}
