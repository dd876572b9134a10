//! Load: how much is written to a region, and where to cut one that takes too much of it.
//!
//! **Protocol.** The leader counts the batches that it takes. At every look (a tenth of
//! [`split_load_for`](StoreConfig::split_load_for)) it compares their rate with
//! [`split_load`](StoreConfig::split_load). As long as that is not reached nothing else happens: no key is looked at and
//! nothing is allocated. Once it is, a search for a key begins, and goes on while the rate stays there; one look
//! below ends it. After ten looks in a row the key is taken that divides what was seen best, if it leaves at least three
//! eighths on either side, and goes out as a wish, as those of [`size`](super::size) do; then a new search begins, with
//! nothing remembered. So a wish that came to nothing is wished again, and not before.
//!
//! **The search** looks at some of the batches: so many that a look brings some 128 keys, whatever the rate. Sixteen of all
//! keys seen so far are candidates, each as likely as any other (a reservoir); every key seen after a candidate is
//! counted on its left or on its right. A key that is hot by itself is on the right of the cut at itself: however it is
//! cut, one side has nearly all, and there is no wish. So, too, with keys that only grow: each is on the right of all
//! before, and a cut would leave a cold half behind.
//!
//! **Determinism.** The time comes in with the ticks. What is drawn is drawn from a seed that is made of the region's id and
//! of what it has counted: the same events give the same wishes.
//!
//! **What it does not see.** Reads: those by the lease never come to the loop. Batches of a state machine of the
//! embedder's own that are not laid out as ours: they are counted, but no key is found in them.
//!
//! **Source.** A reservoir of keys with counters is how CockroachDB and TiKV find where to split by load; theirs see reads,
//! which pass through their leaders' queues.

use super::config::StoreConfig;
use super::effects::{Effects, Excess, SplitWish};
use super::peer::Peer;
use crate::codec::command;
use crate::types::{KeyRange, RegionId, Time};
use bytes::Bytes;

/// Looks in a row at which the rate must be reached.
const LOOKS: u32 = 10;
/// Keys that a look is to bring, about.
const KEYS_PER_LOOK: u64 = 128;
/// Keys that may become cuts.
const CANDIDATES: usize = 16;
/// Operations of one batch that are looked at, at most.
const OPS_MAX: usize = 64;

/// What a replica knows of its region's load. Kept by leaders.
///
/// * `search` is there only while the rate was reached at the last look.
#[derive(Default, Debug)]
pub(crate) struct Load {
    /// Client batches taken, since the replica came up.
    taken: u64,
    /// Bytes applied, since it came up.
    applied: u64,
    looked_at: Time,
    /// `taken` then.
    taken_then: u64,
    search: Option<Box<Search>>,
}

/// The search for a key that divides the load.
#[derive(Debug)]
struct Search {
    looks: u32,
    /// Of so many batches one is looked at, on average.
    stride: u64,
    /// So many more are not.
    skip: u64,
    /// Keys seen.
    seen: u64,
    random: u64,
    candidates: Vec<Candidate>,
}

#[derive(Debug)]
struct Candidate {
    key: Bytes,
    left: u32,
    right: u32,
}

impl Candidate {
    /// How uneven its sides are, in 1024ths; `None`: too uneven, or too little is known.
    fn slant(&self, least: u32) -> Option<u32> {
        let (all, apart) = (self.left + self.right, self.left.abs_diff(self.right));
        (all >= least.max(1) && apart <= all / 4)
            .then(|| (u64::from(apart) * 1024 / u64::from(all)) as u32)
    }
}

impl Search {
    fn new(region: RegionId, taken: u64, stride: u64) -> Search {
        let random = region.0.rotate_left(32) ^ taken;
        let candidates = Vec::with_capacity(CANDIDATES);
        Search { looks: 0, stride, skip: 0, seen: 0, random, candidates }
    }

    /// The next number of splitmix64 (Steele, Lea, Flood 2014).
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = self.random;
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn took(&mut self, batch: &[u8], range: &KeyRange) {
        if self.skip > 0 {
            self.skip -= 1;
            return;
        }
        // Drawn, so that no rhythm of the writers keeps step with it.
        self.skip = self.draw() % (self.stride * 2 - 1).max(1);
        let count = command::ops(batch).take(OPS_MAX).take_while(Result::is_ok).count();
        if count == 0 {
            return;
        }
        let at = (self.draw() % count as u64) as usize;
        if let Some(Ok(op)) = command::ops(batch).nth(at) {
            self.saw(&batch[op.key()], range);
        }
    }

    fn saw(&mut self, key: &[u8], range: &KeyRange) {
        self.seen += 1;
        let mut known = false;
        for candidate in &mut self.candidates {
            // The key of a cut begins its right half.
            match key < &candidate.key[..] {
                true => candidate.left += 1,
                false => candidate.right += 1,
            }
            known |= candidate.key == key;
        }
        if known || key == range.start || !range.contains(key) {
            return;
        }
        let fresh = |key| Candidate { key: Bytes::copy_from_slice(key), left: 0, right: 0 };
        if self.candidates.len() < CANDIDATES {
            return self.candidates.push(fresh(key));
        }
        let at = self.draw() % self.seen;
        if let Some(place) = self.candidates.get_mut(at as usize) {
            *place = fresh(key);
        }
    }

    /// The key that divides what was seen best, of those beside which enough was seen.
    fn best(&self, least: u32) -> Option<Bytes> {
        let even = self.candidates.iter().filter_map(|one| Some((one.slant(least)?, &one.key)));
        even.min().map(|(_, key)| key.clone())
    }
}

impl Load {
    /// A client batch was taken, in a region of this range.
    pub fn took(&mut self, batch: &[u8], range: &KeyRange) {
        self.taken += 1;
        if let Some(search) = &mut self.search {
            search.took(batch, range);
        }
    }

    /// Entries of so many bytes were applied.
    pub fn applied(&mut self, bytes: usize) {
        self.applied += bytes as u64;
    }

    /// Client batches taken, and bytes applied, since the replica came up.
    pub fn totals(&self) -> (u64, u64) {
        (self.taken, self.applied)
    }

    /// Another shape, or nobody to take load: what was seen says nothing any more.
    pub fn forget(&mut self) {
        self.search = None;
        self.looked_at = Time(0);
    }

    /// A look, if it is time. Gives a key to cut at.
    fn look(&mut self, now: Time, region: RegionId, config: &StoreConfig) -> Option<Bytes> {
        let taken = self.taken - self.taken_then;
        let passed = now.since(self.looked_at);
        if passed < config.split_load_for / LOOKS {
            return None;
        }
        let first = self.looked_at == Time(0);
        (self.looked_at, self.taken_then) = (now, self.taken);
        let rate = u128::from(taken) * 1_000_000_000 / passed.as_nanos().max(1);
        if first || rate < u128::from(config.split_load) {
            self.search = None;
            return None;
        }
        let stride = (taken / KEYS_PER_LOOK).max(1);
        let Some(search) = &mut self.search else {
            self.search = Some(Box::new(Search::new(region, self.taken, stride)));
            return None;
        };
        (search.looks, search.stride) = (search.looks + 1, stride);
        if search.looks < LOOKS {
            return None;
        }
        let best = search.best(config.split_load_keys);
        self.search = None;
        best
    }
}

impl Peer {
    /// A tick of the load: a region that has taken too much for long enough is to be cut.
    pub(crate) fn tick_load(&mut self, now: Time, config: &StoreConfig, effects: &mut Effects) {
        if config.split_load == 0 {
            return;
        }
        if !self.group.leads() || self.merging.is_some() {
            return self.load.forget();
        }
        if let Some(key) = self.load.look(now, self.region.id, config) {
            let (region, why) = (self.region.id, Excess::Load);
            effects.split_wishes.push(SplitWish { region, keys: vec![key], why });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::command::BatchBuilder;
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    fn config() -> StoreConfig {
        StoreConfig { split_load: 1000, split_load_for: SECOND * 10, ..StoreConfig::default() }
    }

    fn key(i: u64) -> Vec<u8> {
        format!("k{i:06}").into_bytes()
    }

    fn batch(keys: &[u64]) -> Vec<u8> {
        let mut out = BatchBuilder::new();
        keys.iter().for_each(|i| out.put(&key(*i), b"v").unwrap());
        out.finish().to_vec()
    }

    /// So many batches a second for so many seconds; the wishes, and when.
    fn run(
        load: &mut Load,
        seconds: std::ops::Range<u64>,
        rate: u64,
        mut next: impl FnMut(u64) -> Vec<u64>,
    ) -> Vec<(u64, Bytes)> {
        let range = KeyRange::new("a", "z");
        let mut wishes = Vec::new();
        for second in seconds {
            for n in 0..rate {
                load.took(&batch(&next(second * rate + n)), &range);
            }
            let now = Time(0).after(SECOND * (second as u32 + 1));
            wishes.extend(load.look(now, RegionId(7), &config()).map(|key| (second, key)));
        }
        wishes
    }

    fn scattered(n: u64) -> u64 {
        n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40
    }

    #[test]
    fn an_even_load_is_cut_in_the_middle_and_not_before_its_time() {
        let mut load = Load::default();
        let wishes = run(&mut load, 0..40, 3000, |n| vec![scattered(n) % 1000]);
        // The first look knows no rate, the second begins the search, ten more end it; then another one begins.
        let seconds: Vec<u64> = wishes.iter().map(|(second, _)| *second).collect();
        assert_eq!(seconds, [11, 22, 33]);
        for (_, cut) in wishes {
            assert!((375..=625).any(|i| key(i) == cut), "{cut:?}");
        }
    }

    #[test]
    fn a_skewed_load_is_cut_where_its_weight_is() {
        // Nine of ten writes go to the first tenth of the keys.
        let skewed = |n: u64| match n % 10 {
            0 => vec![scattered(n) % 1000],
            _ => vec![scattered(n) % 100],
        };
        let wishes = run(&mut Load::default(), 0..12, 3000, skewed);
        assert!((30..80).any(|i| key(i) == wishes[0].1), "{wishes:?}");
        // Batches of many keys count where their keys are, not where they begin.
        let many = |n: u64| (0..50).map(|i| i * 20 + n % 20).collect();
        let wishes = run(&mut Load::default(), 0..12, 1500, many);
        assert!((300..700).any(|i| key(i) == wishes[0].1), "{wishes:?}");
    }

    #[test]
    fn two_hot_keys_are_parted_and_one_is_not() {
        let two = run(&mut Load::default(), 0..12, 3000, |n| vec![scattered(n) % 2 * 500]);
        assert_eq!(two, [(11, Bytes::from(key(500)))]);
        assert_eq!(run(&mut Load::default(), 0..40, 3000, |_| vec![5]), []);
        // A hot key among others: two thirds of all, wherever it is cut.
        let among = |n: u64| vec![if n.is_multiple_of(3) { scattered(n) % 1000 } else { 500 }];
        assert_eq!(run(&mut Load::default(), 0..40, 3000, among), []);
    }

    #[test]
    fn keys_that_only_grow_are_let_be() {
        assert_eq!(run(&mut Load::default(), 0..40, 3000, |n| vec![n]), []);
    }

    #[test]
    fn a_rate_that_falls_now_and_then_begins_anew() {
        let mut load = Load::default();
        let even = |n: u64| vec![scattered(n) % 1000];
        assert_eq!(run(&mut load, 0..10, 3000, even), []);
        assert!(load.search.is_some());
        assert_eq!(run(&mut load, 10..11, 999, even), []);
        assert!(load.search.is_none(), "nothing is kept of a region that is not hot");
        assert_eq!(run(&mut load, 11..22, 3000, even).len(), 1);
        assert_eq!(run(&mut load, 22..60, 900, even), []);
        assert_eq!(load.totals().0, 10 * 3000 + 999 + 11 * 3000 + 38 * 900);
    }

    #[test]
    fn what_is_no_cut_is_none() {
        let range = KeyRange::new("k000500", "z");
        let mut search = Search::new(RegionId(1), 0, 1);
        for n in 0..10_000 {
            // The first key of the range, and keys outside of it (of batches that come too late).
            search.took(&batch(&[if n % 2 == 0 { 500 } else { 100 }]), &range);
            search.took(b"no batch of ours", &range);
        }
        assert!(search.candidates.is_empty());
        assert_eq!(search.best(0), None);
    }

    #[test]
    fn the_same_events_give_the_same_cut() {
        let once = || run(&mut Load::default(), 0..60, 2500, |n| vec![scattered(n) % 977]);
        assert_eq!(once(), once());
        assert!(!once().is_empty());
    }

    #[test]
    fn a_busy_region_is_looked_at_now_and_then() {
        let mut load = Load::default();
        run(&mut load, 0..11, 20_000, |n| vec![scattered(n) % 1000]);
        let search = load.search.as_ref().unwrap();
        assert!((500..3000).contains(&search.seen), "{}", search.seen);
    }
}
