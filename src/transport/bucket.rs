//! A token bucket: how fast all snapshots of a node may leave, together. Time is an argument.

use crate::types::Time;
use std::time::Duration;

/// What may leave at once after a pause: so much time's worth.
const BURST: Duration = Duration::from_millis(125);

/// Spreads bytes over time.
///
/// * In any span of time no more than the rate times that span leaves, and one burst, and the one piece that
///   was let through last.
/// * Whoever takes goes into debt for all of its piece and waits until the debt is paid: turns are in order of
///   taking, and a piece larger than a burst passes all the same.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// Bytes per second; 0: no limit.
    rate: u64,
    /// When the debt is paid; in the past: that much is saved up, a burst at most.
    even: Time,
}

impl Bucket {
    /// A full one; `rate` in bytes per second, 0: no limit.
    pub(crate) fn new(rate: u64) -> Bucket {
        Bucket { rate, even: Time(0) }
    }

    /// Takes `bytes` at `now`: they may leave after so long.
    pub(crate) fn take(&mut self, now: Time, bytes: usize) -> Duration {
        if self.rate == 0 {
            return Duration::ZERO;
        }
        let full = Time(now.0.saturating_sub(BURST.as_nanos() as u64));
        let cost = bytes as u128 * 1_000_000_000 / u128::from(self.rate);
        let cost = u64::try_from(cost).unwrap_or(u64::MAX);
        self.even = Time(self.even.max(full).0.saturating_add(cost));
        Duration::from_nanos(self.even.0.saturating_sub(now.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const START: Time = Time(1_000 * MS);

    #[test]
    fn a_burst_passes_then_the_rate_holds() {
        // 1,000 bytes a second: a burst is 125.
        let mut bucket = Bucket::new(1000);
        assert_eq!(bucket.take(START, 100), Duration::ZERO);
        assert_eq!(bucket.take(START, 25), Duration::ZERO);
        assert_eq!(bucket.take(START, 100), Duration::from_millis(100));
        assert_eq!(bucket.take(START, 50), Duration::from_millis(150), "behind the other");
        let later = Time(START.0 + 150 * MS);
        assert_eq!(bucket.take(later, 10), Duration::from_millis(10));
        let much_later = Time(START.0 + 3_600_000 * MS);
        assert_eq!(bucket.take(much_later, 125), Duration::ZERO, "no more than a burst is saved");
        assert_eq!(bucket.take(much_later, 1), Duration::from_millis(1));
    }

    #[test]
    fn over_any_span_the_rate_is_kept() {
        let (mut bucket, mut now, mut sent) = (Bucket::new(1 << 20), START, 0u64);
        // Whoever takes waits as told, and a little longer at times.
        for i in 0..1_000u64 {
            let bytes = 1 + (i * 7919) % 40_000;
            let wait = bucket.take(now, bytes as usize);
            now = Time(now.0 + wait.as_nanos() as u64 + (i % 3) * MS);
            sent += bytes;
            let span = now.0 - START.0;
            let most = u128::from(span) * (1 << 20) / 1_000_000_000 + (1 << 17);
            assert!(u128::from(sent) <= most + 40_000, "{sent} in {span} ns");
        }
        assert!(sent > 15 << 20 && now.0 - START.0 > 15_000 * MS);
    }

    #[test]
    fn none_is_none_and_a_piece_above_the_burst_passes() {
        assert_eq!(Bucket::new(0).take(START, usize::MAX), Duration::ZERO);
        let mut bucket = Bucket::new(1000);
        assert_eq!(bucket.take(START, 10_000), Duration::from_millis(9_875));
    }
}
