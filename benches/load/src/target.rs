//! What the generator drives: anything that takes requests and answers each of them once, later.

use bytes::Bytes;
use catamaran::codec::command::BatchBuilder;
use catamaran::{Error, Outcome};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What a client wants.
#[derive(Debug)]
pub enum Work {
    /// A batch of puts.
    Write(BatchBuilder),
    /// The values of these keys.
    Read(Vec<Bytes>),
}

/// A client's request.
#[derive(Debug)]
pub struct Request {
    /// Which of the generator's clients.
    pub client: u32,
    /// The part of the key space that all its keys lie in, if they do.
    pub slice: Option<u32>,
    /// What it wants.
    pub work: Work,
}

/// What became of a request.
#[derive(Debug)]
pub enum Answer {
    /// The write is acknowledged.
    Written,
    /// The values, in the order asked for.
    Values(Vec<Option<Bytes>>),
    /// It failed.
    Failed(Failure),
}

/// Why a request failed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Failure {
    /// A short name, the key of the error counts.
    pub kind: &'static str,
    /// Whether a write may have taken effect.
    pub may_be_applied: bool,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Failure {
        let kind = match error {
            Error::NotLeader { .. } => "not_leader",
            Error::EpochNotMatch { .. } => "epoch_not_match",
            Error::RegionNotFound(_) => "region_not_found",
            Error::Busy { .. } => "busy",
            Error::Timeout { .. } => "timeout",
            Error::Ambiguous { .. } => "ambiguous",
            Error::DiskFull { .. } => "disk_full",
            Error::Io { .. } => "io",
            Error::Corruption { .. } => "corruption",
            Error::Quarantined { .. } => "quarantined",
            Error::Identity(_) => "identity",
            Error::Malformed { .. } => "malformed",
            Error::InvalidArgument(_) => "invalid_argument",
            Error::Locked(_) => "locked",
            Error::Stopped { .. } => "stopped",
            _ => "other",
        };
        Failure { kind, may_be_applied: error.outcome() == Outcome::Unknown }
    }
}

/// An answer on its way back to its client.
#[derive(Debug)]
pub struct Completion {
    /// Whose.
    pub client: u32,
    /// When it was known.
    pub at: Instant,
    /// What it is.
    pub answer: Answer,
}

/// Answers for one generator thread. Bounded by the number of its clients, each of which has one
/// request outstanding.
#[derive(Debug, Default)]
pub struct ReadyQueue {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct State {
    done: Vec<Completion>,
    sleeping: bool,
}

fn held<T>(guard: Result<T, PoisonError<T>>) -> T {
    // A vector of answers is whole whatever its last holder did.
    guard.unwrap_or_else(PoisonError::into_inner)
}

impl ReadyQueue {
    /// Hands an answer over; wakes the generator only if it sleeps.
    pub fn push(&self, client: u32, answer: Answer) {
        let at = Instant::now();
        let mut state: MutexGuard<'_, State> = held(self.state.lock());
        state.done.push(Completion { client, at, answer });
        if std::mem::take(&mut state.sleeping) {
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Swaps all answers into `out` (which must be empty), sleeping until there is one or `until` comes.
    pub fn take(&self, out: &mut Vec<Completion>, until: Instant) {
        let mut state = held(self.state.lock());
        while state.done.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state.sleeping = true;
            state = held(self.wake.wait_timeout(state, left)).0;
        }
        state.sleeping = false;
        std::mem::swap(&mut state.done, out);
    }
}

/// Takes requests. Answers come through the queue given, exactly one for each request, from any thread.
pub trait Target: Send + Sync {
    /// Takes everything out of `requests`. Must not block for longer than it takes to hand them over.
    fn submit(&self, requests: &mut Vec<Request>, ready: &Arc<ReadyQueue>);
}
