//! When a follower campaigns: a pure function, so that a simulation can be repeated, and one that keeps those who
//! lost the same leader out of each other's way.
//!
//! Timeouts lie within one and two election timeouts. Those who may campaign (the voters, but for the leader that is
//! known) each have a part of that time for themselves, in turns that change with the term, and draw within it. So
//! two of them do not split the votes. A part begins with a pause: at the first moment at which raft lets a follower
//! campaign, the other may still have promised its vote to the leader, for it heard of it a little later.

/// Who waits for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    pub own: u64,
    /// 0: unknown.
    pub leader: u64,
    pub term: u64,
    /// Of this node alone.
    pub seed: u64,
}

fn mix(mut x: u64) -> u64 {
    // splitmix64's finaliser (Steele, Lea, Flood 2014).
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Turn {
    /// The timeout in ticks, in `base..2 * base`. The order of `voters` is of no account.
    pub fn timeout(self, base: usize, voters: impl Iterator<Item = u64>) -> usize {
        let (mut count, mut before, mut least) = (0, 0, u64::MAX);
        for id in voters {
            least = least.min(id);
            if id == self.own || id != self.leader {
                count += 1;
                before += usize::from(id < self.own);
            }
        }
        let count = count.max(1);
        // What all replicas know alike decides whose turn it is; the draw within the turn is each one's own.
        let first = mix(mix(least) ^ self.term) as usize % count;
        let part = (base / count).max(1);
        let pause = part / 4;
        let draw = mix(mix(mix(self.seed) ^ self.own) ^ self.term) as usize % (part - pause).max(1);
        let begin = (before + first) % count * part + pause;
        base + (begin + draw).min(base.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeouts(base: usize, voters: &[u64], leader: u64, term: u64) -> Vec<usize> {
        let others = voters.iter().filter(|id| **id != leader);
        let turn = |own: &u64| Turn { own: *own, leader, term, seed: own * 77 };
        others.map(|own| turn(own).timeout(base, voters.iter().copied())).collect()
    }

    #[test]
    fn nobody_campaigns_at_the_same_time_and_everybody_comes_first_at_times() {
        for voters in [&[4, 9, 12][..], &[4, 9, 12, 13, 20]] {
            for leader in [0, 9] {
                let mut firsts = std::collections::BTreeSet::new();
                for term in 0..200 {
                    let all = timeouts(20, voters, leader, term);
                    let mut sorted = all.clone();
                    sorted.sort_unstable();
                    assert!(sorted[0] >= 20 && sorted[sorted.len() - 1] < 40, "{all:?}");
                    assert!(sorted.windows(2).all(|two| two[0] + 1 < two[1]), "{all:?}");
                    firsts.insert(all.iter().position(|one| *one == sorted[0]));
                }
                assert_eq!(firsts.len(), voters.len() - usize::from(leader != 0));
            }
        }
    }

    #[test]
    fn many_voters_and_short_timeouts_stay_within_bounds() {
        let many: Vec<u64> = (1..40).collect();
        for base in [1, 2, 3, 10] {
            for term in 0..50 {
                assert!(
                    timeouts(base, &many, 3, term).iter().all(|t| (base..2 * base).contains(t))
                );
            }
        }
        // Not a voter (any more), or the only one.
        let turn = Turn { own: 50, leader: 1, term: 9, seed: 1 };
        assert!((20..40).contains(&turn.timeout(20, [1, 2].into_iter())));
        assert!((20..40).contains(&turn.timeout(20, [].into_iter())));
    }
}
