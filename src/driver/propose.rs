//! The way in for client batches: past the node's limits and the [gate](super::admission), into a loop's inbox.

use super::admission::{Entry, Parcel, release_later};
use super::{Driver, Shared, Submission};
use crate::error::Error;
use crate::store::{Proposal, Token};
use crate::types::{RegionId, Time};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Driver {
    /// Hands client batches to the loop of `region`, all under one lock. All of them must belong to
    /// regions of one [loop](Self::loop_of). Every waiter is called, whatever happens.
    ///
    /// While the state store is behind they wait before the loop, in the order in which they came, until there is room or
    /// their time is over.
    pub fn propose(&self, at: RegionId, deadline: Time, submissions: Vec<Submission>) {
        let shared = &self.shared;
        let at = shared.loop_of(at);
        let since = shared.clock.now();
        if let Some(error) = self.pressure() {
            count_refused(shared, submissions.len());
            for submission in submissions {
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
            Entry::First => release_later(shared, Arc::downgrade(shared)),
            Entry::Refused(parcel) => {
                refuse(shared, parcel.proposals, "state store (flush is behind)");
            }
        }
    }

    /// Why new proposals are refused, if they are.
    fn pressure(&self) -> Option<Error> {
        let shared = &self.shared;
        if shared.stopped() {
            return Some(self.stopped_error());
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
}

/// Hands them to their loop.
pub fn enter(shared: &Shared, parcel: Parcel) {
    let refused = shared.inboxes[parcel.at].propose(parcel.since, parcel.proposals);
    if !refused.is_empty() {
        refuse(shared, refused, "store inbox");
    }
}

fn refuse(shared: &Shared, proposals: Vec<Proposal>, what: &'static str) {
    count_refused(shared, proposals.len());
    let tokens = proposals.into_iter().map(|proposal| proposal.token);
    shared.desks.refuse(tokens, &Error::Busy { what });
}

fn count_refused(shared: &Shared, batches: usize) {
    shared.counters.refused_proposals.fetch_add(batches as u64, Ordering::Relaxed);
}
