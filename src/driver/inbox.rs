//! The mail box of a store loop: bounded, swapped out as a whole.

use crate::codec::beat::Beat;
use crate::error::{Error, Result};
use crate::raft::Envelope;
use crate::store::{Event, Proposal, ReadRequest};
use crate::types::{StoreId, Time};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::time::Instant;

/// Everything that arrived since the last time.
#[derive(Default, Debug)]
pub struct Mail {
    /// What happened, in order.
    pub events: Vec<Event>,
    /// Client batches, in order.
    pub proposals: Vec<Proposal>,
    /// Reads, in order.
    pub reads: Vec<ReadRequest>,
    /// When how many of the client batches were handed over.
    pub handed: Vec<(Time, usize)>,
    proposal_bytes: usize,
    message_bytes: usize,
    beats: usize,
}

impl Mail {
    fn is_empty(&self) -> bool {
        self.events.is_empty() && self.proposals.is_empty() && self.reads.is_empty()
    }

    fn clear(&mut self) {
        self.events.clear();
        self.proposals.clear();
        self.reads.clear();
        self.handed.clear();
        self.proposal_bytes = 0;
        self.message_bytes = 0;
        self.beats = 0;
    }
}

#[derive(Default)]
struct State {
    mail: Mail,
    /// The last look found something.
    busy: bool,
    sleeping: bool,
    nudged: bool,
    closed: bool,
}

/// One loop's inbox.
///
/// * Client proposals beyond `proposal_bytes_max` are refused (a first one always fits), raft messages
///   beyond `message_bytes_max` dropped; completions always enter: they are bounded by what was asked.
/// * Whoever adds something wakes the loop only if it sleeps, once.
pub struct Inbox {
    state: Mutex<State>,
    wake: Condvar,
    proposal_bytes_max: usize,
    message_bytes_max: usize,
}

/// Reads waiting in one inbox, at most.
const READS_MAX: usize = 1 << 18;

/// How often a loop that was busy looks once more, letting others run in between, before it sleeps: some 20 us where
/// nobody else wants the core. To be woken costs more than that, both sides, and an answer is mostly on its way.
const LOOKS: u32 = 60;

/// Beats waiting in one inbox, at most.
const BEATS_MAX: usize = 1 << 12;

impl Inbox {
    /// An inbox with these bounds.
    pub fn new(proposal_bytes_max: usize, message_bytes_max: usize) -> Inbox {
        Inbox {
            state: Mutex::default(),
            wake: Condvar::new(),
            proposal_bytes_max,
            message_bytes_max,
        }
    }

    fn with<T>(&self, add: impl FnOnce(&mut Mail) -> T) -> Option<T> {
        let mut state = self.state.lock();
        if state.closed {
            return None;
        }
        let out = add(&mut state.mail);
        let wake = std::mem::replace(&mut state.sleeping, false);
        drop(state);
        if wake {
            self.wake.notify_one();
        }
        Some(out)
    }

    /// Adds an event that has no bound of its own.
    pub fn post(&self, event: Event) {
        self.with(|mail| mail.events.push(event));
    }

    /// Adds a beat of another node; of too many, the last are dropped.
    pub fn beat(&self, from: StoreId, beat: Beat) {
        self.with(|mail| {
            if mail.beats < BEATS_MAX {
                mail.beats += 1;
                mail.events.push(Event::Beat { from, beat });
            }
        });
    }

    /// Ends the loop's sleep, or the next one, without any mail: what it left undone can be done now.
    pub fn nudge(&self) {
        let mut state = self.state.lock();
        state.nudged = true;
        state.sleeping = false;
        drop(state);
        self.wake.notify_one();
    }

    /// Adds client batches, handed over `now`; gives back those that found no room.
    pub fn propose(
        &self,
        now: Time,
        proposals: impl IntoIterator<Item = Proposal>,
    ) -> Vec<Proposal> {
        let max = self.proposal_bytes_max;
        self.with(|mail| {
            let mut refused = Vec::new();
            let before = mail.proposals.len();
            for proposal in proposals {
                let bytes = proposal.command.len() + 64;
                if mail.proposal_bytes > 0 && mail.proposal_bytes + bytes > max {
                    refused.push(proposal);
                } else {
                    mail.proposal_bytes += bytes;
                    mail.proposals.push(proposal);
                }
            }
            mail.handed.push((now, mail.proposals.len() - before));
            refused
        })
        .unwrap_or_default()
    }

    /// Adds a read.
    pub fn read(&self, read: ReadRequest) -> Result<()> {
        let room = self.with(|mail| {
            let room = mail.reads.len() < READS_MAX;
            if room {
                mail.reads.push(read);
            }
            room
        });
        match room {
            Some(false) => Err(Error::Busy { what: "store inbox (reads)" }),
            _ => Ok(()),
        }
    }

    /// Adds raft messages; tells how many were dropped.
    pub fn messages(&self, envelopes: Vec<Envelope>) -> usize {
        let bytes: usize = envelopes.iter().map(Envelope::weight).sum();
        let count = envelopes.len();
        let max = self.message_bytes_max;
        let taken = self.with(|mail| {
            if mail.message_bytes > 0 && mail.message_bytes + bytes > max {
                return false;
            }
            mail.message_bytes += bytes;
            mail.events.push(Event::Messages(envelopes));
            true
        });
        if taken == Some(false) { count } else { 0 }
    }

    /// Swaps everything out into `mail` (which is emptied first), sleeping until there is something, somebody
    /// [nudges](Self::nudge) or `until` comes. `false` once the inbox is closed.
    pub fn take(&self, mail: &mut Mail, until: Instant) -> bool {
        mail.clear();
        let mut state = self.state.lock();
        let mut looks = if state.busy { LOOKS } else { 0 };
        while state.mail.is_empty() && !state.nudged && !state.closed {
            if looks > 0 {
                looks -= 1;
                MutexGuard::unlocked(&mut state, std::thread::yield_now);
                continue;
            }
            state.sleeping = true;
            if self.wake.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        state.busy = !state.mail.is_empty();
        (state.sleeping, state.nudged) = (false, false);
        std::mem::swap(&mut state.mail, mail);
        !state.closed
    }

    /// Takes nothing more, and ends the loop.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.mail = Mail::default();
        drop(state);
        self.wake.notify_all();
    }
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::effects::Token;
    use crate::types::RegionId;
    use bytes::Bytes;

    fn proposal(bytes: usize) -> Proposal {
        let command = Bytes::from(vec![0; bytes]);
        Proposal { token: Token(1), region: RegionId(1), version: 1, command }
    }

    #[test]
    fn proposals_are_bounded_and_completions_are_not() {
        let inbox = Inbox::new(1000, 1000);
        let now = Time(7);
        assert!(inbox.propose(now, [proposal(5000)]).is_empty(), "a first one always fits");
        assert_eq!(inbox.propose(now, [proposal(1), proposal(1)]).len(), 2);
        inbox.post(Event::Tick);
        let mut mail = Mail::default();
        assert!(inbox.take(&mut mail, Instant::now()));
        assert_eq!((mail.proposals.len(), mail.events.len()), (1, 1));
        assert_eq!(mail.handed, [(now, 1), (now, 0)]);
        assert!(inbox.propose(now, [proposal(100), proposal(100)]).is_empty(), "room again");
        inbox.close();
        assert!(!inbox.take(&mut mail, Instant::now()));
    }

    #[test]
    fn a_nudge_ends_one_sleep_whether_it_comes_before_or_during_it() {
        let inbox = Inbox::new(1000, 1000);
        let never = Instant::now() + std::time::Duration::from_secs(3600);
        let mut mail = Mail::default();
        inbox.nudge();
        assert!(inbox.take(&mut mail, never), "not lost");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !inbox.state.lock().sleeping {
                    std::thread::yield_now();
                }
                inbox.nudge();
            });
            assert!(inbox.take(&mut mail, never));
        });
        assert!(mail.is_empty() && !inbox.state.lock().nudged, "each counts once");
        let now = Instant::now();
        assert!(inbox.take(&mut mail, now), "nothing came");
    }
}
