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

    /// How often a job of so many milliseconds rests.
    fn rests(work: u64, urgency: Urgency) -> (u32, Duration) {
        let (mut pace, mut asked) = (Pace::begin(true), 0);
        let began = Instant::now();
        for _ in 0..work * 10 {
            let piece = Instant::now();
            while piece.elapsed() < Duration::from_micros(100) {}
            pace.breathe(|| {
                asked += 1;
                urgency
            });
        }
        (asked, began.elapsed())
    }

    #[test]
    fn what_is_in_time_rests_and_what_is_late_does_not() {
        let (asked, took) = rests(20, Urgency::InTime);
        assert!((1..=20).contains(&asked), "{asked}: at most once in a millisecond's work");
        let least = Duration::from_millis(20 + 4 * u64::from(asked));
        assert!(took >= least, "{took:?} with {asked} rests");
        // Which is all that is looked at: nobody sleeps.
        let (asked, _) = rests(20, Urgency::Now);
        assert!(asked >= 1);
    }

    #[test]
    fn a_rest_is_in_proportion_and_bounded() {
        assert_eq!(rest_after(PIECE), PIECE * 4);
        assert_eq!(rest_after(Duration::from_secs(1)), REST_MAX);
        let mut never = Pace::begin(false);
        never.breathe(|| panic!("nobody asks"));
    }
}
