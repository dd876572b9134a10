//! How much a remote client holds for its callers.
//!
//! A request is kept until it is answered, for it may have to be sent again; where nobody answers, all of them are. So their bytes are
//! counted, and what comes beyond the limit is refused at once, as a node refuses what its inbox has no room for.

use super::request::Body;
use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// What a request takes beside its bytes, about.
const OVERHEAD: usize = 512;

/// Bytes of requests that are on their way or wait to be.
#[derive(Debug)]
pub(super) struct Budget {
    held: AtomicUsize,
    max: usize,
}

/// A request's part of it, given back when this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    purse: Arc<Purse>,
    bytes: usize,
}

/// What those hold that were taken together. It is counted by itself: the budget's own count is everybody's, and would
/// be a line of memory that all threads fight for.
#[derive(Debug)]
struct Purse(Arc<Budget>);

impl Purse {
    fn take(self: &Arc<Purse>, bytes: usize) -> Result<Held> {
        let Budget { held, max } = &*self.0;
        let before = held.fetch_add(bytes, Relaxed);
        // Gives it back if there is no room.
        let taken = Held { purse: Arc::clone(self), bytes };
        match before > 0 && before + bytes > *max {
            true => Err(Error::Busy { what: "the client's memory" }),
            false => Ok(taken),
        }
    }
}

impl Budget {
    /// Nothing is held yet, and at most so many bytes will be; a first request always fits.
    pub fn new(max: usize) -> Arc<Budget> {
        Arc::new(Budget { held: AtomicUsize::new(0), max })
    }

    /// Room for a request of so many bytes, or [`Error::Busy`].
    pub fn take(self: &Arc<Budget>, bytes: usize) -> Result<Held> {
        Arc::new(Purse(Arc::clone(self))).take(bytes + OVERHEAD)
    }

    /// Room for each of many requests, as [`take`](Self::take).
    pub fn take_each(self: &Arc<Budget>, requests: &[usize]) -> Vec<Result<Held>> {
        let purse = Arc::new(Purse(Arc::clone(self)));
        let all: usize = requests.iter().map(|bytes| bytes + OVERHEAD).sum();
        let fits = |held: usize| Some(held + all).filter(|held| *held <= self.max);
        if self.held.fetch_update(Relaxed, Relaxed, fits).is_ok() {
            let held = |bytes| Ok(Held { purse: Arc::clone(&purse), bytes });
            return requests.iter().map(|bytes| held(bytes + OVERHEAD)).collect();
        }
        requests.iter().map(|bytes| purse.take(bytes + OVERHEAD)).collect()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.purse.0.held.fetch_sub(self.bytes, Relaxed);
    }
}

impl Body {
    /// Bytes that a caller gave, about.
    pub(super) fn payload_bytes(&self) -> usize {
        match self {
            Body::Write { command } => command.len(),
            Body::Execute { key, command } => key.len() + command.len(),
            Body::Read { keys, .. } => keys.iter().map(|key| key.len() + size_of_val(key)).sum(),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let budget = Budget::new(4096);
        let first = budget.take(100_000).unwrap();
        assert!(matches!(budget.take(1), Err(Error::Busy { what: "the client's memory" })));
        drop(first);
        let many: Vec<Held> = std::iter::from_fn(|| budget.take(512).ok()).take(100).collect();
        assert_eq!(many.len(), 4);
        drop(many);
        assert_eq!(budget.held.load(Relaxed), 0);
        // Of many together those are refused that do not fit, and no others.
        let fit = |requests: &[usize]| budget.take_each(requests);
        let three = fit(&[512, 512, 512]);
        assert!(three.iter().all(Result::is_ok));
        let two = fit(&[4000, 100]);
        assert_eq!((two[0].is_ok(), two[1].is_ok()), (false, true));
        drop((three, two));
        assert_eq!(budget.held.load(Relaxed), 0);
    }
}
