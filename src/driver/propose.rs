//! The way in for client batches: past the node's limits and the [gate](super::admission), into a loop's inbox.

use super::admission::{Entry, Parcel, Released};
use super::{Driver, Shared, Submission};
use crate::error::Error;
use crate::store::{Event, Proposal, Token};
use crate::types::{RegionId, Time};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Those that wait at the gate are looked at this often.
const LOOK: Duration = Duration::from_millis(1);
const BEHIND: Error = Error::Busy { what: "state store (flush is behind)" };
/// A region that is refused writes for want of space is told to go elsewhere this often, at most.
const TOLD_EVERY: Duration = Duration::from_millis(500);

/// The regions that were told so lately.
#[derive(Default, Debug)]
pub struct Aside(Mutex<(Time, BTreeSet<RegionId>)>);

impl Aside {
    /// Whether a region is to be told now.
    fn is_due(&self, region: RegionId, now: Time) -> bool {
        let (since, told) = &mut *self.0.lock();
        if now.since(*since) > TOLD_EVERY {
            *since = now;
            told.clear();
        }
        told.insert(region)
    }
}

impl Driver {
    /// Hands client batches to the loop of `region`, all under one lock. All of them must belong to
    /// regions of one [loop](Self::loop_of). Every waiter is called, whatever happens.
    ///
    /// While the state store is behind they wait before the loop until there is room or their time is over. Those that
    /// come later wait behind them.
    pub fn propose(&self, at: RegionId, deadline: Time, submissions: Vec<Submission>) {
        let shared = &self.shared;
        let at = shared.loop_of(at);
        let since = shared.clock.now();
        if let Some(error) = pressure(shared) {
            count_refused(shared, submissions.len());
            for submission in submissions {
                step_aside(shared, submission.region, since, &error);
                (submission.waiter)(Err(error.clone()));
            }
            return;
        }
        let bytes = submissions.iter().map(|submission| submission.command.len() + 64).sum();
        let mut proposals = Vec::with_capacity(submissions.len());
        let mut waiters = Vec::with_capacity(submissions.len());
        for Submission { region, version, command, waiter } in submissions {
            proposals.push(Proposal { token: Token(0), region, version, command });
            waiters.push(waiter);
        }
        let mut place = 0;
        shared.desks.seat(at, since, deadline, waiters, |token| match token {
            Some(token) => {
                proposals[place].token = token;
                place += 1;
            }
            None => {
                proposals.remove(place);
            }
        });
        let parcel = Parcel { at, since, deadline, bytes, proposals };
        match shared.admission.come(since, parcel) {
            Entry::Now(parcel) => enter(shared, parcel),
            Entry::Later => {}
            Entry::First => look_later(shared, Arc::downgrade(shared)),
            Entry::Refused(parcel) => refuse(shared, parcel.proposals, &BEHIND),
        }
    }
}

/// Why new proposals are refused, if they are.
fn pressure(shared: &Shared) -> Option<Error> {
    if shared.stopped() {
        return Some(shared.stopped_error());
    }
    // The cause of whatever else is full then: said rather than "busy".
    if let Some(error) = shared.upkeep.refusal() {
        return Some(error);
    }
    if shared.apply_bytes.load(Ordering::Relaxed) > shared.config.apply_queue_bytes {
        return Some(Error::Busy { what: "apply queue" });
    }
    shared.log.is_crowded().then_some(Error::Busy { what: "log writer" })
}

/// Looks after those that wait at the gate, again and again while there are any.
fn look_later(shared: &Shared, weak: Weak<Shared>) {
    let look = move || {
        let Some(shared) = weak.upgrade() else { return };
        if look(&shared) && !shared.stopped() {
            look_later(&shared, weak);
        }
    };
    shared.timer.after(LOOK, Box::new(look));
}

/// Lets in what may enter; whether anything waits on.
fn look(shared: &Shared) -> bool {
    if let Some(error) = shared.upkeep.refusal() {
        // It will not be flushed soon: they are told why, as those who come now are.
        let all = shared.admission.clear();
        let now = shared.clock.now();
        for parcel in all {
            let regions = parcel.proposals.iter().map(|proposal| proposal.region);
            regions.for_each(|region| step_aside(shared, region, now, &error));
            refuse(shared, parcel.proposals, &error);
        }
        return false;
    }
    if pressure(shared).is_some() {
        return true;
    }
    let Released { enter: some, late, more } = shared.admission.release(shared.clock.now());
    some.into_iter().for_each(|parcel| enter(shared, parcel));
    // They never entered, and may come again.
    late.into_iter().for_each(|parcel| refuse(shared, parcel.proposals, &BEHIND));
    more
}

/// Hands them to their loop.
fn enter(shared: &Shared, parcel: Parcel) {
    let refused = shared.inboxes[parcel.at].propose(parcel.since, parcel.proposals);
    if !refused.is_empty() {
        refuse(shared, refused, &Error::Busy { what: "store inbox" });
    }
}

/// A write of a region was refused: if for want of space, another node is to lead it.
fn step_aside(shared: &Shared, region: RegionId, now: Time, why: &Error) {
    if matches!(why, Error::DiskFull { .. }) && shared.aside.is_due(region, now) {
        shared.inboxes[shared.loop_of(region)].post(Event::StepAside(region));
    }
}

fn refuse(shared: &Shared, proposals: Vec<Proposal>, error: &Error) {
    count_refused(shared, proposals.len());
    shared.desks.refuse(proposals.into_iter().map(|proposal| proposal.token), error);
}

fn count_refused(shared: &Shared, batches: usize) {
    shared.counters.refused_proposals.fetch_add(batches as u64, Ordering::Relaxed);
}
