//! Work in the background that gives way to writers.
//!
//! A flush, a compaction or a large merge takes a core for tenths of a second, and the replicas of a region do theirs at about
//! the same time, for they hold the same data. Where cores are few, what is answered meanwhile is answered late; a lower priority does
//! not help, since a thread that has the core keeps it for its slice. So such work rests between its pieces, in
//! proportion to what they took. The share of the time that it takes is small while it is in time, and all of it once it is not, or
//! when nobody writes.

use std::time::{Duration, Instant};

/// So much is done between two rests.
const PIECE: Duration = Duration::from_millis(1);
/// No rest is longer: what has become urgent meanwhile, or was called off, is not kept waiting.
const REST_MAX: Duration = Duration::from_millis(20);
/// Percent of the time that work takes which is in time.
const SHARE: u32 = 20;

/// How urgent a piece of work is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Urgency {
    /// It is done before long, whatever happens; writers go first.
    InTime,
    /// It is late, or in nobody's way.
    Now,
}

/// The pace of one job.
pub(crate) struct Pace {
    /// Since when it has not rested; `None`: it never does.
    since: Option<Instant>,
}

impl Pace {
    /// A job begins. One that does not give way never looks at a clock.
    pub fn begin(gives_way: bool) -> Pace {
        Pace { since: gives_way.then(Instant::now) }
    }

    /// Between two pieces: rests, if there was enough to rest from.
    pub fn breathe(&mut self, urgency: impl FnOnce() -> Urgency) {
        let Some(worked) = self.since.map(|since| since.elapsed()) else { return };
        if worked < PIECE {
            return;
        }
        if urgency() == Urgency::InTime {
            std::thread::sleep(rest_after(worked));
        }
        self.since = Some(Instant::now());
    }
}

fn rest_after(worked: Duration) -> Duration {
    (worked * (100 - SHARE) / SHARE).min(REST_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often a job that has worked for long is asked how urgent it is.
    fn asked(gives_way: bool, urgency: Urgency) -> u32 {
        let mut asked = 0;
        let mut pace = Pace::begin(gives_way);
        pace.since = pace.since.and_then(|since| since.checked_sub(Duration::from_secs(1)));
        pace.breathe(|| {
            asked += 1;
            urgency
        });
        asked
    }

    #[test]
    fn who_has_worked_is_asked_and_who_never_rests_is_not() {
        assert_eq!([asked(true, Urgency::InTime), asked(true, Urgency::Now)], [1, 1]);
        assert_eq!(asked(false, Urgency::InTime), 0);
    }

    #[test]
    fn a_rest_is_in_proportion_and_bounded() {
        assert_eq!(rest_after(PIECE), PIECE * 4);
        assert_eq!(rest_after(Duration::from_secs(1)), REST_MAX);
    }
}
