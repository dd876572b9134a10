//! The one clock of a node: monotonic, counted from the node's start.

use crate::types::Time;
use std::time::{Duration, Instant};

/// Monotonic time since the node started (plus a second, so that "a moment ago" is never negative).
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

const LEAD: Duration = Duration::from_secs(1);

impl Clock {
    /// Starts counting.
    pub fn start() -> Clock {
        Clock { origin: Instant::now() }
    }

    /// Now.
    pub fn now(&self) -> Time {
        Time((self.origin.elapsed() + LEAD).as_nanos() as u64)
    }

    /// The system's word for a time of this clock.
    pub(crate) fn instant(&self, time: Time) -> Instant {
        self.origin + Duration::from_nanos(time.0).saturating_sub(LEAD)
    }
}
