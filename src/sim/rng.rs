//! Random draws keyed by (seed, site, count). Every place that draws names itself; its n-th draw
//! depends on the seed, the name and n alone. So a fault that is switched off, or a site that is added,
//! leaves all other draws of the run where they were, and a failing seed can be shrunk.

use std::collections::BTreeMap;
use std::ops::Range;

/// A seeded source.
///
/// - The n-th draw of a site never depends on how often other sites drew.
/// - Equal seeds give equal draws on every machine.
#[derive(Clone, Debug)]
pub struct Rng {
    seed: u64,
    counts: BTreeMap<(u64, u64), u64>,
}

/// Scrambles 64 bits so that each input bit moves about half of the output bits (the finalizer of the
/// well-known splitmix64 generator).
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A site's name as a number (FNV-1a).
const fn site_number(site: &str) -> u64 {
    let bytes = site.as_bytes();
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        at += 1;
    }
    hash
}

impl Rng {
    /// A source for `seed`.
    pub fn new(seed: u64) -> Rng {
        Rng { seed: mix(seed), counts: BTreeMap::new() }
    }

    /// A source of its own for `key` (a node, a disk): its draws are independent of this one's, and of
    /// how much either has drawn.
    pub fn fork(&self, site: &'static str, key: u64) -> Rng {
        Rng::new(mix(self.seed ^ site_number(site)) ^ mix(!key))
    }

    /// The next 64 bits of a site.
    pub fn draw(&mut self, site: &'static str) -> u64 {
        self.draw_for(site, 0)
    }

    /// The next 64 bits of a site that many things share, say one count per link or node.
    pub fn draw_for(&mut self, site: &'static str, key: u64) -> u64 {
        let site = site_number(site);
        let count = self.counts.entry((site, key)).or_insert(0);
        let drawn = mix(mix(mix(self.seed ^ site) ^ key) ^ *count);
        *count += 1;
        drawn
    }

    /// True in `permille` of 1,000 cases. Draws even when the answer is certain, so that changing a
    /// probability moves nothing else.
    pub fn chance(&mut self, site: &'static str, permille: u32) -> bool {
        self.draw(site) % 1000 < u64::from(permille)
    }

    /// [`chance`](Self::chance) with a key.
    pub fn chance_for(&mut self, site: &'static str, key: u64, permille: u32) -> bool {
        self.draw_for(site, key) % 1000 < u64::from(permille)
    }

    /// A number in `range`; its start if the range is empty.
    pub fn range(&mut self, site: &'static str, range: Range<u64>) -> u64 {
        self.range_for(site, 0, range)
    }

    /// [`range`](Self::range) with a key.
    pub fn range_for(&mut self, site: &'static str, key: u64, range: Range<u64>) -> u64 {
        let drawn = self.draw_for(site, key);
        let width = range.end.saturating_sub(range.start);
        // The high half of the product is uniform up to a bias of width / 2^64.
        range.start + ((u128::from(drawn) * u128::from(width)) >> 64) as u64
    }

    /// One of the items; `None` if there are none (it draws all the same).
    pub fn pick<'a, T>(&mut self, site: &'static str, items: &'a [T]) -> Option<&'a T> {
        let at = self.range(site, 0..items.len() as u64);
        items.get(at as usize)
    }

    /// Puts the items in random order, with one draw of the site whatever their number.
    pub fn shuffle<T>(&mut self, site: &'static str, items: &mut [T]) {
        let mut state = self.draw(site);
        for last in (1..items.len()).rev() {
            state = mix(state);
            items.swap(last, (state % (last as u64 + 1)) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_do_not_shift_each_other() {
        let mut a = Rng::new(1);
        let mut b = Rng::new(1);
        let alone: Vec<u64> = (0..100).map(|_| a.draw("disk.torn")).collect();
        let between: Vec<u64> = (0..100)
            .map(|n| {
                (0..n % 3).for_each(|_| {
                    b.draw("net.delay");
                });
                b.draw_for("disk.torn", 9);
                b.draw("disk.torn")
            })
            .collect();
        assert_eq!(alone, between);
        let mut distinct = alone.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), 100);
    }

    #[test]
    fn seeds_keys_and_forks_differ() {
        let mut a = Rng::new(1);
        let mut b = Rng::new(2);
        assert_ne!(a.draw("x"), b.draw("x"));
        assert_ne!(a.draw_for("y", 1), a.draw_for("y", 2));
        assert_ne!(a.fork("node", 1).draw("x"), a.fork("node", 2).draw("x"));
        let before = a.fork("node", 1).draw("x");
        a.draw("x");
        assert_eq!(a.fork("node", 1).draw("x"), before, "a fork does not see the draws");
    }

    #[test]
    fn the_first_draws_are_fixed_for_ever() {
        // A change here makes every recorded seed mean something else.
        let mut rng = Rng::new(42);
        let drawn = [rng.draw("a"), rng.draw("a"), rng.draw("b"), rng.draw_for("a", 1)];
        assert_eq!(drawn, FIXED);
    }
    const FIXED: [u64; 4] = [
        15_937_982_829_445_643_533,
        3_628_587_739_110_089_043,
        5_042_280_873_114_080_328,
        886_160_933_300_328_057,
    ];

    #[test]
    fn spread() {
        let mut rng = Rng::new(3);
        let hits = (0..10_000).filter(|_| rng.chance("c", 250)).count();
        assert!((2_300..2_700).contains(&hits), "{hits}");
        let mut seen = [0u32; 10];
        for _ in 0..10_000 {
            seen[rng.range("r", 5..15) as usize - 5] += 1;
        }
        assert!(seen.iter().all(|n| (850..1150).contains(n)), "{seen:?}");
        assert_eq!(rng.range("r", 7..7), 7);
        assert_eq!(rng.pick::<u8>("p", &[]), None);
        let mut items: Vec<u32> = (0..50).collect();
        rng.shuffle("s", &mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
    }
}
