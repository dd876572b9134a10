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
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    /// Nothing is held yet, and at most so many bytes will be; a first request always fits.
    pub fn new(max: usize) -> Arc<Budget> {
        Arc::new(Budget { held: AtomicUsize::new(0), max })
    }

    /// Room for a request of so many bytes, or [`Error::Busy`].
    pub fn take(self: &Arc<Budget>, bytes: usize) -> Result<Held> {
        let bytes = bytes + OVERHEAD;
        let before = self.held.fetch_add(bytes, Relaxed);
        // Gives it back if there is no room.
        let held = Held { budget: Arc::clone(self), bytes };
        match before > 0 && before + bytes > self.max {
            true => Err(Error::Busy { what: "the client's memory" }),
            false => Ok(held),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Relaxed);
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
    }
}
