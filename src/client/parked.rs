//! Requests that wait for another try, and need not sleep their pause out.
//!
//! An election takes longer than most pauses of a back-off, so whoever waits for one sits in a long pause when it
//! ends. But the replica here learns at once who leads now: a request is tried again when its region has got
//! another leader than it had at the last try, and at the end of its pause at the latest (a replica that has lost
//! touch learns nothing, and many a pause has another reason).
//!
//! One timer looks, for all of them, while there are any. So what the waiting costs depends on the regions that are
//! waited for, not on the requests.
//!
//! - A request waits [`LOOK_EVERY`] at least: replicas that name each other in turn cause no storm.
//! - After [`Parked::close`] nobody waits here any more.

use super::job::Job;
use super::local::Inner;
use crate::router::retry::Target;
use crate::types::{RegionId, StoreId, Time};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How often is looked.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(10);

/// One that waits.
pub(super) struct Waiting {
    pub job: Job,
    pub target: Target,
    /// Until then at most.
    pub until: Time,
    /// Who led at the last try, as far as was known here.
    pub led: Option<StoreId>,
}

#[derive(Default)]
struct State {
    regions: BTreeMap<RegionId, Vec<Waiting>>,
    closed: bool,
}

/// All that wait.
#[derive(Default)]
pub(super) struct Parked {
    state: Mutex<State>,
}

impl Parked {
    /// Adds one. Whether somebody must begin to look.
    fn add(&self, waiting: Waiting) -> bool {
        let mut state = self.state.lock();
        if state.closed {
            drop(state);
            // Dropped, it is told that the node has gone: outside of the lock.
            drop(waiting);
            return false;
        }
        let first = state.regions.is_empty();
        state.regions.entry(waiting.job.route.region).or_default().push(waiting);
        first
    }

    /// Takes those whose time has come. Whether others stay.
    fn take(
        &self,
        now: Time,
        leader: impl Fn(RegionId) -> Option<StoreId>,
    ) -> (Vec<Waiting>, bool) {
        let mut state = self.state.lock();
        let mut out = Vec::new();
        state.regions.retain(|region, waiting| {
            let leads = leader(*region);
            for mut one in waiting
                .extract_if(.., |one| one.until <= now || (leads.is_some() && leads != one.led))
            {
                if leads != one.led {
                    // Where it was to go next was said by somebody who did not know this leader.
                    one.job.aim_anew();
                }
                out.push(one);
            }
            !waiting.is_empty()
        });
        (out, !state.regions.is_empty())
    }

    /// Sends everybody home.
    pub fn close(&self) {
        let gone = {
            let mut state = self.state.lock();
            state.closed = true;
            std::mem::take(&mut state.regions)
        };
        drop(gone);
    }
}

impl Inner {
    /// Tries again when there is reason to.
    pub fn wait(self: &Arc<Self>, waiting: Waiting) {
        if self.parked.add(waiting) {
            look_later(self, Arc::downgrade(self));
        }
    }
}

fn look_later(inner: &Inner, weak: Weak<Inner>) {
    let look = move || {
        let Some(inner) = weak.upgrade() else { return };
        let leader = |region| inner.driver.registry().get(region).and_then(|share| share.leader());
        let (due, more) = inner.parked.take(inner.now(), leader);
        // First, for those that are tried now may wait again, and would find nobody looking.
        if more {
            look_later(&inner, weak);
        }
        for Waiting { job, target, .. } in due {
            inner.again(job, target);
        }
    };
    inner.driver.timer().after(LOOK_EVERY, Box::new(look));
}

#[cfg(test)]
mod tests {
    use super::super::Done;
    use super::super::job::Patience;
    use super::super::request::{Body, Route};
    use super::*;
    use std::sync::mpsc::{Sender, channel};

    fn waiting(region: u64, until: u64, led: Option<u64>, tell: &Sender<u64>) -> Waiting {
        let (route, tell) = (Route { region: RegionId(region), version: 1 }, tell.clone());
        let done = Done::new(move |result| {
            assert!(result.is_err());
            tell.send(until).unwrap();
        });
        let patience = Patience::of(Time(0), Duration::from_nanos(1_000));
        let job = Job::new(Body::Status { region: None }, route, patience, 9, done);
        Waiting { job, target: Target::Same, until: Time(until), led: led.map(StoreId) }
    }

    #[test]
    fn another_leader_or_the_end_of_the_pause_wakes() {
        let (tell, told) = channel();
        let parked = Parked::default();
        assert!(parked.add(waiting(1, 50, Some(1), &tell)));
        assert!(!parked.add(waiting(1, 90, Some(2), &tell)));
        assert!(!parked.add(waiting(2, 70, None, &tell)));
        let take = |now: u64, leaders: [Option<u64>; 2]| {
            let leader = |region: RegionId| leaders[region.0 as usize - 1].map(StoreId);
            let (due, more) = parked.take(Time(now), leader);
            (due.iter().map(|one| one.until.0).collect::<Vec<_>>(), more)
        };
        // No leader is no better than the one that there was.
        assert_eq!(take(10, [None, None]), (vec![], true));
        assert_eq!(take(20, [Some(2), None]), (vec![50], true));
        assert_eq!(take(30, [Some(2), None]), (vec![], true));
        assert_eq!(take(80, [Some(2), None]), (vec![70], true));
        assert_eq!(take(81, [Some(3), Some(3)]), (vec![90], false));
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [50, 70, 90]);

        assert!(parked.add(waiting(1, 95, None, &tell)), "nobody looks any more");
        parked.close();
        assert!(!parked.add(waiting(1, 96, None, &tell)));
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [95, 96], "all are told");
    }
}
