//! What to do after an error, as a pure function.

use crate::error::{Error, Outcome};
use crate::types::StoreId;
use std::time::Duration;

/// The first pause; doubled each time, to [`PAUSE_MAX`].
pub const PAUSE_MIN: Duration = Duration::from_millis(2);
/// The longest pause.
pub const PAUSE_MAX: Duration = Duration::from_millis(250);

/// A read that meets damage is repeated at most until this attempt.
const DAMAGED_MAX: u32 = 6;

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Changes nothing: may be repeated whatever happened to it.
    Read,
    /// Changes something: never repeated when it may have been applied.
    Write,
    /// Changes a region's shape, and was made for one shape: as a write, and never sent elsewhere for another.
    Shape,
}

/// Where to try again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Where it was tried.
    Same,
    /// At this store, which was named as the leader.
    Store(StoreId),
    /// At another replica: this one did not know better.
    Other,
    /// Wherever the router says now: the region's shape has changed.
    Reroute,
}

/// The answer of [`decide`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Hand the error to the caller.
    GiveUp,
    /// Try again.
    Again {
        /// Where.
        at: Target,
        /// After how long.
        after: Duration,
    },
}

/// Exponential back-off with jitter: half of the pause is fixed, half is drawn (`jitter` is any number).
pub fn pause(attempt: u32, jitter: u64) -> Duration {
    let full = PAUSE_MIN.saturating_mul(1 << attempt.min(16)).min(PAUSE_MAX);
    let half = full / 2;
    half + Duration::from_nanos(jitter % (half.as_nanos() as u64 + 1))
}

/// Whether, where and when a request that failed is sent again. `attempt` counts from 0; `left` is the
/// time until the caller's deadline; `jitter` comes from the caller.
///
/// A write whose outcome is unknown is never repeated here: only the caller knows whether that is safe.
pub fn decide(
    access: Access,
    error: &Error,
    attempt: u32,
    left: Duration,
    jitter: u64,
) -> Decision {
    if access != Access::Read && error.outcome() == Outcome::Unknown {
        return Decision::GiveUp;
    }
    let wait = pause(attempt, jitter);
    let (at, after) = match error {
        // A hint is worth an immediate try, but two replicas may name each other for a while.
        Error::NotLeader { leader: Some(store), .. } => {
            (Target::Store(*store), if attempt < 2 { Duration::ZERO } else { wait })
        }
        Error::NotLeader { leader: None, .. } => (Target::Other, wait),
        // Its replica has moved; or it was merged into another, which has its keys now.
        Error::RegionNotFound(_) if access == Access::Shape => (Target::Other, wait),
        Error::RegionNotFound(_) => (Target::Reroute, wait),
        Error::EpochNotMatch { .. } if access == Access::Shape => return Decision::GiveUp,
        Error::EpochNotMatch { current } if !current.is_empty() && attempt < 4 => {
            (Target::Reroute, Duration::ZERO)
        }
        Error::EpochNotMatch { .. } | Error::NoRoute { .. } => (Target::Reroute, wait),
        Error::Busy { .. } | Error::DiskFull { .. } => (Target::Same, wait),
        // This replica's copy is damaged, another one's is not: but where there is no other, do not insist.
        Error::Corruption { .. } if access == Access::Read && attempt < DAMAGED_MAX => {
            (Target::Other, wait)
        }
        Error::Quarantined { .. } => (Target::Other, wait),
        Error::Ambiguous { .. } | Error::Timeout { .. } | Error::Stopped { .. } => {
            (Target::Other, wait)
        }
        _ => return Decision::GiveUp,
    };
    match after < left {
        true => Decision::Again { at, after },
        false => Decision::GiveUp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::RegionId;

    const LONG: Duration = Duration::from_secs(10);

    fn not_leader(leader: Option<u64>) -> Error {
        Error::NotLeader { region: RegionId(1), leader: leader.map(StoreId) }
    }

    #[test]
    fn unknown_writes_are_never_repeated() {
        for error in [
            Error::Ambiguous { what: "x" },
            Error::Timeout { after_ms: 1, what: "x" },
            Error::Stopped { reason: "x".into() },
        ] {
            assert_eq!(decide(Access::Write, &error, 0, LONG, 1), Decision::GiveUp, "{error}");
            assert!(matches!(decide(Access::Read, &error, 0, LONG, 1), Decision::Again { .. }));
        }
    }

    #[test]
    fn reads_that_met_damage_try_another_replica_for_a_while() {
        let rot = Error::Corruption { path: "t".into(), offset: 0, detail: "x".into() };
        assert_eq!(decide(Access::Write, &rot, 0, LONG, 1), Decision::GiveUp);
        let again = decide(Access::Read, &rot, 0, LONG, 1);
        assert!(matches!(again, Decision::Again { at: Target::Other, .. }), "{again:?}");
        assert_eq!(decide(Access::Read, &rot, DAMAGED_MAX, LONG, 1), Decision::GiveUp);
    }

    #[test]
    fn hints_are_followed_at_once_and_then_slowly() {
        let at = Target::Store(StoreId(2));
        let first = decide(Access::Write, &not_leader(Some(2)), 0, LONG, 9);
        assert_eq!(first, Decision::Again { at, after: Duration::ZERO });
        let Decision::Again { after, .. } = decide(Access::Write, &not_leader(Some(2)), 5, LONG, 9)
        else {
            panic!()
        };
        assert!(after >= PAUSE_MIN);
    }

    #[test]
    fn pauses_grow_to_a_bound_and_respect_the_deadline() {
        for attempt in 0..40 {
            for jitter in [0, 1, u64::MAX] {
                let wait = pause(attempt, jitter);
                assert!(wait >= PAUSE_MIN / 2 && wait <= PAUSE_MAX, "{attempt} {wait:?}");
            }
        }
        let soon = Duration::from_micros(10);
        assert_eq!(decide(Access::Write, &not_leader(None), 9, soon, 0), Decision::GiveUp);
        let wrong = Error::InvalidArgument(String::new());
        assert_eq!(decide(Access::Read, &wrong, 0, LONG, 0), Decision::GiveUp);
    }
}
