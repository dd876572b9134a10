//! Durations, counted in buckets that grow with them: recording is two relaxed additions, and what was
//! counted can be subtracted, added up and sent.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A bucket's width is an eighth of the power of two that it lies above.
const SUB_BITS: u32 = 3;
const SUB: usize = 1 << SUB_BITS;
/// Durations are counted in 1024 ns: what is shorter is all the same here.
const UNIT_BITS: u32 = 10;
/// The last bucket takes what is longer than 2^(10 + 27) ns, which is 137 s.
const OCTAVES: usize = 27 - SUB_BITS as usize;

/// How many buckets there are: 8 of 1 us, then 8 for each doubling, and one for the rest.
pub const BUCKETS: usize = SUB + OCTAVES * SUB + 1;

fn bucket(nanos: u64) -> usize {
    let units = nanos >> UNIT_BITS;
    if units < SUB as u64 {
        return units as usize;
    }
    let octave = units.ilog2() - SUB_BITS;
    let sub = (units >> octave) as usize - SUB;
    (SUB + octave as usize * SUB + sub).min(BUCKETS - 1)
}

/// Where a bucket ends, in nanoseconds: what lies in it is shorter.
fn end(bucket: usize) -> u64 {
    let units = match bucket {
        at if at < SUB => at as u64 + 1,
        at if at < BUCKETS - 1 => {
            let (octave, sub) = ((at - SUB) / SUB, (at - SUB) % SUB);
            ((SUB + sub + 1) as u64) << octave
        }
        _ => return u64::MAX,
    };
    units << UNIT_BITS
}

/// Counts durations; shared by the threads that measure.
///
/// * Counts never fall. A [`Histogram`] taken while others record may lack what they are recording, in
///   its sum and its buckets separately.
#[derive(Debug)]
pub struct Meter {
    buckets: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
    longest: AtomicU64,
}

impl Default for Meter {
    fn default() -> Meter {
        let buckets = [const { AtomicU64::new(0) }; BUCKETS];
        Meter { buckets, nanos: AtomicU64::new(0), longest: AtomicU64::new(0) }
    }
}

impl Meter {
    /// Counts `times` things that took so long.
    pub fn record(&self, nanos: u64, times: u64) {
        if times == 0 {
            return;
        }
        self.buckets[bucket(nanos)].fetch_add(times, Relaxed);
        self.nanos.fetch_add(nanos.saturating_mul(times), Relaxed);
        // Read first: a new longest is rare.
        if nanos > self.longest.load(Relaxed) {
            self.longest.fetch_max(nanos, Relaxed);
        }
    }

    /// What was counted so far.
    pub fn read(&self) -> Histogram {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        Histogram::from_parts(counts, self.nanos.load(Relaxed), self.longest.load(Relaxed))
    }
}

/// Durations that were counted: exact in number and sum, to an eighth in everything else, from 1 us to
/// 137 s.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Histogram {
    /// Without the empty ones at the end.
    counts: Vec<u64>,
    nanos: u64,
    longest: u64,
}

impl Histogram {
    fn from_parts(mut counts: Vec<u64>, nanos: u64, longest: u64) -> Histogram {
        counts.truncate(counts.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1));
        Histogram { counts, nanos, longest }
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All of them together.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.nanos)
    }

    /// On average; zero if nothing was counted.
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.nanos.checked_div(self.count()).unwrap_or(0))
    }

    /// The longest. Of a [difference](Self::since): not shorter than that, by an eighth at most.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.longest)
    }

    /// What this part of them (0 to 1) did not exceed: up to an eighth more than that. Zero if nothing was
    /// counted.
    pub fn quantile(&self, part: f64) -> Duration {
        let count = self.count();
        let rank = ((part.clamp(0.0, 1.0) * count as f64).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0;
        for (at, in_it) in self.counts.iter().enumerate() {
            seen += in_it;
            if seen >= rank {
                return Duration::from_nanos(end(at).min(self.longest));
            }
        }
        Duration::ZERO
    }

    /// What was counted since `before` was read, of the same node.
    pub fn since(&self, before: &Histogram) -> Histogram {
        let old = before.counts.iter().copied().chain(std::iter::repeat(0));
        let counts =
            self.counts.iter().zip(old).map(|(now, old)| now.saturating_sub(old)).collect();
        let mut between =
            Histogram::from_parts(counts, self.nanos.saturating_sub(before.nanos), self.longest);
        // When the longest came is not known: it is not longer than its bucket.
        between.longest = match between.counts.len().checked_sub(1) {
            Some(last) => between.longest.min(end(last)),
            None => 0,
        };
        between
    }

    /// Both together: of several nodes, or of several stretches of time.
    pub fn plus(&self, other: &Histogram) -> Histogram {
        let (longer, shorter) = match self.counts.len() >= other.counts.len() {
            true => (self, other),
            false => (other, self),
        };
        let mut counts = longer.counts.clone();
        counts.iter_mut().zip(&shorter.counts).for_each(|(sum, more)| *sum += more);
        let nanos = self.nanos.saturating_add(other.nanos);
        Histogram { counts, nanos, longest: self.longest.max(other.longest) }
    }

    /// The buckets that are not empty, from the shortest on: where each ends, how many lie in it.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.map(|(at, count)| (Duration::from_nanos(end(at)), *count))
    }

    /// All of it as numbers, for [`read`](Self::read): sum, longest, how many buckets, and of each that is
    /// not empty its place and its count.
    pub fn figures(&self) -> Vec<u64> {
        let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        let places = filled.clone().flat_map(|(at, count)| [at as u64, *count]);
        [self.nanos, self.longest, filled.clone().count() as u64]
            .into_iter()
            .chain(places)
            .collect()
    }

    /// Reads them in that order. Places that this version does not have count as the longest.
    pub fn read<E>(mut next: impl FnMut() -> Result<u64, E>) -> Result<Histogram, E> {
        let (nanos, longest, filled) = (next()?, next()?, next()?);
        let mut counts = vec![0u64; BUCKETS];
        for _ in 0..filled {
            let at = usize::try_from(next()?).unwrap_or(usize::MAX).min(BUCKETS - 1);
            counts[at] = counts[at].saturating_add(next()?);
        }
        Ok(Histogram::from_parts(counts, nanos, longest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_one_another_and_are_an_eighth_wide() {
        let mut before = 0;
        for at in 0..BUCKETS - 1 {
            let end = end(at);
            assert_eq!((bucket(end - 1), bucket(end)), (at, at + 1), "{at}");
            assert!(at < SUB || (end - before) * 8 <= before, "{at}: {before} to {end}");
            before = end;
        }
        assert!(before > 100_000_000_000, "at least 100 s: {before}");
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_upper_bounds_within_an_eighth() {
        let meter = Meter::default();
        (1..=1000u64).for_each(|us| meter.record(us * 1000, 1));
        let read = meter.read();
        assert_eq!((read.count(), read.sum()), (1000, Duration::from_micros(500_500)));
        assert_eq!(read.max(), Duration::from_millis(1));
        for (part, us) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0), (0.999, 999.0)] {
            let told = read.quantile(part).as_secs_f64() * 1e6;
            assert!(told >= us && told <= us * 1.126, "{part}: {told}");
        }
        assert_eq!(read.quantile(1.0), read.max());
        assert_eq!(Histogram::default().quantile(0.5), Duration::ZERO);
        assert_eq!(Histogram::default().mean(), Duration::ZERO);
    }

    #[test]
    fn readings_subtract_add_up_and_travel() {
        let meter = Meter::default();
        meter.record(5_000_000_000, 1);
        let first = meter.read();
        meter.record(2_000_000, 10);
        meter.record(1, 0);
        let second = meter.read();
        let between = second.since(&first);
        assert_eq!((between.count(), between.mean()), (10, Duration::from_millis(2)));
        assert!(between.max() < Duration::from_micros(2250), "{:?}", between.max());
        assert!(between.max() >= Duration::from_millis(2));
        assert_eq!(between.plus(&first).count(), second.count());
        assert_eq!(first.plus(&between).sum(), second.sum());
        assert_eq!(second.since(&second), Histogram::default());
        assert_eq!(between.buckets().map(|(_, count)| count).sum::<u64>(), 10);
        let mut figures = second.figures().into_iter();
        assert_eq!(Histogram::read(|| figures.next().ok_or(())), Ok(second));
        assert_eq!(figures.next(), None);
        assert_eq!(Histogram::read(|| Err("short")), Err("short"));
    }
}
