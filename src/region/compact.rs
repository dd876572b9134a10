//! How far a region's log may go: a pure policy for the leader, and the bookkeeping of log bytes.
//!
//! The leader proposes a compaction point; every replica that applies it drops its own log up to there, but
//! never beyond what its state store has durably flushed (DESIGN 4, the rule).

use crate::region::config::StoreConfig;
use crate::types::PeerId;
use std::collections::VecDeque;

/// Granularity of the bookkeeping, in bytes.
const BUCKET_BYTES: u64 = 64 << 10;

/// Bytes of a region's log, roughly by index.
///
/// * After a restart it starts from what the log holds.
#[derive(Default, Debug)]
pub struct LogBytes {
    buckets: VecDeque<Bucket>,
    total: u64,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// It begins behind this index.
    after: u64,
    last: u64,
    bytes: u64,
}

impl LogBytes {
    /// What a log holds: (last index of a stretch, bytes), in order.
    pub fn of(sizes: Vec<(u64, u64)>) -> LogBytes {
        let mut out = LogBytes::default();
        for (index, bytes) in sizes {
            out.add(index, bytes);
        }
        out
    }

    /// An entry was appended.
    pub fn add(&mut self, index: u64, bytes: u64) {
        self.total += bytes;
        match self.buckets.back_mut() {
            Some(bucket) if bucket.bytes < BUCKET_BYTES => {
                (bucket.last, bucket.bytes) = (index, bucket.bytes + bytes);
            }
            _ => self.buckets.push_back(Bucket { after: index.max(1) - 1, last: index, bytes }),
        }
    }

    /// Everything up to `index` is gone. Of a bucket that it cuts, a share of the bytes: otherwise a limit smaller
    /// than a bucket would be exceeded for ever, and a quiet region compacted again and again.
    pub fn compacted(&mut self, index: u64) {
        while let Some(front) = self.buckets.front_mut() {
            if front.last > index {
                if front.after < index {
                    let rest = u128::from(front.bytes) * u128::from(front.last - index)
                        / u128::from(front.last - front.after);
                    self.total -= front.bytes - rest as u64;
                    (front.after, front.bytes) = (index, rest as u64);
                }
                break;
            }
            self.total -= front.bytes;
            self.buckets.pop_front();
        }
    }

    /// Gives back the memory that is not used.
    pub(crate) fn free(&mut self) {
        self.buckets.shrink_to_fit();
    }

    /// Bytes held.
    pub fn total(&self) -> u64 {
        self.total
    }
}

/// What the leader knows when it decides.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// The point the log starts after.
    pub truncated: u64,
    /// The leader's applied index.
    pub applied: u64,
    /// Bytes of the log.
    pub bytes: u64,
    /// (peer, matched index, recently active).
    pub progress: &'a [(PeerId, u64, bool)],
    /// The index of the oldest snapshot that is on its way to a follower, which goes on from there.
    pub pin: Option<u64>,
}

/// The index up to which all replicas should compact, if it is time: what every replica has; over the
/// byte limit what every *live* replica has, or half, so that a dead or slow one cannot pin the log for
/// ever (it will get a snapshot). Never above the pin: a snapshot that is not followed by the log is in vain, and the
/// next one would be as well. (Pins are bounded by a time, see [`sending`](super::sending).)
pub fn target(config: &StoreConfig, s: Situation<'_>) -> Option<u64> {
    if s.bytes < config.compact_bytes {
        return None;
    }
    let min = |live_only: bool| {
        s.progress.iter().filter(|p| p.2 || !live_only).map(|p| p.1).min().unwrap_or(s.applied)
    };
    let mut target = min(false).min(s.applied);
    if s.bytes >= config.log_bytes_max {
        let half = s.truncated + s.applied.saturating_sub(s.truncated) / 2;
        target = target.max(min(true)).max(half).min(s.applied);
    }
    target = target.min(s.pin.unwrap_or(u64::MAX));
    (target > s.truncated).then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> StoreConfig {
        StoreConfig { compact_bytes: 100, log_bytes_max: 1000, ..Default::default() }
    }

    fn judge(bytes: u64, matched: [(u64, bool); 3]) -> Option<u64> {
        judge_pinned(bytes, matched, None)
    }

    fn judge_pinned(bytes: u64, matched: [(u64, bool); 3], pin: Option<u64>) -> Option<u64> {
        let progress: Vec<_> =
            matched.iter().enumerate().map(|(i, m)| (PeerId(i as u64 + 1), m.0, m.1)).collect();
        let s = Situation { truncated: 10, applied: 50, bytes, progress: &progress, pin };
        target(&config(), s)
    }

    #[test]
    fn nothing_is_compacted_above_a_snapshot_under_way() {
        let even = [(60, true), (60, true), (60, true)];
        assert_eq!(judge_pinned(100, even, Some(40)), Some(40));
        assert_eq!(judge_pinned(100, even, Some(55)), Some(50), "applied");
        assert_eq!(judge_pinned(100, even, Some(10)), None);
        let laggard = [(60, true), (45, true), (0, true)];
        assert_eq!(judge(100, laggard), None, "fed from the log");
        assert_eq!(judge(1000, laggard), Some(30), "as long as the budget allows it");
        assert_eq!(judge_pinned(1000, laggard, Some(20)), Some(20), "a snapshot is on its way");
    }

    #[test]
    fn waits_for_laggards_until_the_log_is_too_large() {
        let laggard = [(60, true), (45, true), (20, false)];
        assert_eq!(judge(99, laggard), None);
        assert_eq!(judge(100, laggard), Some(20));
        assert_eq!(judge(1000, laggard), Some(45));
        assert_eq!(judge(1000, [(60, true), (12, true), (12, true)]), Some(30), "half");
        assert_eq!(judge(100, [(60, true), (60, true), (60, true)]), Some(50), "applied");
        assert_eq!(judge(100, [(60, true), (60, true), (10, true)]), None);
    }

    #[test]
    fn bytes_follow_append_and_compaction() {
        let mut bytes = LogBytes::default();
        for index in 1..=100 {
            bytes.add(index, 10 << 10);
        }
        assert_eq!(bytes.total(), 1000 << 10);
        bytes.compacted(50);
        assert!((500 << 10..=570 << 10).contains(&bytes.total()), "{}", bytes.total());
        bytes.compacted(99);
        assert_eq!(bytes.total(), 10 << 10, "a share of the last bucket");
        bytes.compacted(100);
        assert_eq!(bytes.total(), 0);
    }
}
