//! Which keys are touched, and what they look like.
//!
//! The key space is cut into `slices` equal parts, as a new cluster cuts it into regions. Every client
//! owns the same number of *slots* in every slice and touches no others, so it alone knows what they
//! hold. Slot `s` lies in slice `s % slices`; pinned clients have all of theirs in one. Its key:
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | where in the slice: a hash of client and slot, or (sequential) ascending with the slot |
//! | 8..12 | client, big-endian |
//! | 12..16 | slot, big-endian |
//! | 16.. | filler, from the hash |

use clap::ValueEnum;
use rand::Rng;
use rand::rngs::SmallRng;
use std::sync::Arc;

/// How keys are chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Distribution {
    /// All alike: a region by chance for each request.
    Uniform,
    /// Few often, most seldom (exponent 0.99), regions too.
    Zipfian,
    /// One after the other in each region, in key order; the regions in turn.
    Sequential,
    /// All alike in one region, which is the client's for the whole run: clients are dealt to regions in turn.
    Pinned,
}

/// A bijective mixer (the finaliser of splitmix64).
pub fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Where slots lie and how their keys are spelt.
#[derive(Clone, Copy, Debug)]
pub struct KeySpace {
    /// Parts of the key space.
    pub slices: u32,
    /// Clients.
    pub clients: u32,
    /// Slots of one client in one slice.
    pub per_slice: u32,
    /// Bytes of a key.
    pub key_size: usize,
    ascending: bool,
    pinned: bool,
}

impl KeySpace {
    /// A space of at least `keys` keys.
    pub fn new(
        slices: u64,
        clients: u32,
        keys: u64,
        key_size: usize,
        distribution: Distribution,
    ) -> KeySpace {
        let pinned = distribution == Distribution::Pinned;
        let parts = if pinned { 1 } else { slices };
        let per_slice = keys.div_ceil(u64::from(clients) * parts).max(1);
        KeySpace {
            slices: slices as u32,
            clients,
            per_slice: per_slice.min(u64::from(u32::MAX) / parts) as u32,
            key_size,
            ascending: distribution == Distribution::Sequential,
            pinned,
        }
    }

    /// Slots of one client.
    pub fn slots(&self) -> u32 {
        if self.pinned { self.per_slice } else { self.per_slice * self.slices }
    }

    /// The slot number `nth` of a slice, of a client that has any there.
    pub fn slot(&self, slice: u32, nth: u32) -> u32 {
        if self.pinned { nth } else { nth * self.slices + slice }
    }

    /// Which of a slice's slots this is.
    pub fn nth(&self, slot: u32) -> u32 {
        if self.pinned { slot } else { slot / self.slices }
    }

    /// Whether a client has slots in a slice.
    pub fn is_in(&self, client: u32, slice: u32) -> bool {
        !self.pinned || self.slice_of(client, 0) == slice
    }

    /// Where a client's slot lies.
    fn slice_of(&self, client: u32, slot: u32) -> u32 {
        if self.pinned { client % self.slices } else { slot % self.slices }
    }

    /// First eight bytes of the first key of a slice; that of slice `slices` is 2^64.
    fn boundary(&self, slice: u32) -> u128 {
        (u128::from(slice) << 64) / u128::from(self.slices)
    }

    /// Bounds of a slice: `[start, end)`, the last one without an end.
    pub fn bounds(&self, slice: u32) -> (Vec<u8>, Vec<u8>) {
        let at = |slice: u32| match slice {
            0 => Vec::new(),
            s if s >= self.slices => Vec::new(),
            s => (self.boundary(s) as u64).to_be_bytes().to_vec(),
        };
        (at(slice), at(slice + 1))
    }

    /// Writes the key of a client's slot into `out`, replacing what is there.
    pub fn key(&self, client: u32, slot: u32, out: &mut Vec<u8>) {
        let slice = self.slice_of(client, slot);
        let (start, end) = (self.boundary(slice), self.boundary(slice + 1));
        let width = end - start;
        let hash = mix(u64::from(client) << 32 | u64::from(slot));
        let offset = if self.ascending {
            let place =
                u64::from(client) * u64::from(self.per_slice) + u64::from(slot / self.slices);
            let places = u64::from(self.clients) * u64::from(self.per_slice);
            // 64-bit fractions keep the product inside 128 bits.
            ((((u128::from(place) << 64) / u128::from(places)) >> 1) * (width >> 1)) >> 62
        } else {
            (u128::from(hash) * (width >> 1)) >> 63
        };
        let prefix = (start + offset.min(width - 1)) as u64;
        out.clear();
        out.extend_from_slice(&prefix.to_be_bytes());
        out.extend_from_slice(&client.to_be_bytes());
        out.extend_from_slice(&slot.to_be_bytes());
        let mut filler = hash;
        while out.len() < self.key_size {
            filler = mix(filler);
            let room = (self.key_size - out.len()).min(8);
            out.extend_from_slice(&filler.to_le_bytes()[..room]);
        }
    }

    /// Whose slot a key is, if it is one of this space.
    pub fn owner(&self, key: &[u8]) -> Option<(u32, u32)> {
        let word =
            |at: usize| key.get(at..at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
        let (client, slot) = (word(8)?, word(12)?);
        if client >= self.clients || slot >= self.slots() {
            return None;
        }
        let mut spelt = Vec::with_capacity(self.key_size);
        self.key(client, slot, &mut spelt);
        (spelt == key).then_some((client, slot))
    }
}

/// Draws 0, 1, 2, .. with probability falling as 1 / rank^theta, by the method of Gray and others
/// ("Quickly generating billion-record synthetic databases", 1994): constant time a draw.
#[derive(Clone, Debug)]
pub struct Zipf {
    n: f64,
    theta: f64,
    alpha: f64,
    zeta: f64,
    eta: f64,
}

impl Zipf {
    /// Ranks `0..n`. Costs one pass over `n`.
    pub fn new(n: u32, theta: f64) -> Zipf {
        let zeta = |n: u32| (1..=n).map(|i| 1.0 / f64::from(i).powf(theta)).sum::<f64>();
        let zeta_n = zeta(n);
        let n = f64::from(n);
        Zipf {
            n,
            theta,
            alpha: 1.0 / (1.0 - theta),
            zeta: zeta_n,
            eta: (1.0 - (2.0 / n).powf(1.0 - theta)) / (1.0 - zeta(2) / zeta_n),
        }
    }

    /// A rank.
    pub fn draw(&self, rng: &mut SmallRng) -> u32 {
        let u: f64 = rng.random();
        let uz = u * self.zeta;
        if uz < 1.0 {
            return 0;
        }
        if uz < 1.0 + 0.5f64.powf(self.theta) {
            return 1.min(self.n as u32 - 1);
        }
        let rank = self.n * (self.eta * u - self.eta + 1.0).powf(self.alpha);
        (rank as u32).min(self.n as u32 - 1)
    }
}

/// The shared, read-only part of choosing.
#[derive(Clone, Debug)]
pub enum Shape {
    /// All alike.
    Uniform,
    /// Ranks of slices and of slots.
    Zipfian(Arc<(Zipf, Zipf)>),
    /// In order.
    Sequential,
    /// All alike in the client's own slice.
    Pinned,
}

impl Shape {
    /// For a distribution over a space.
    pub fn new(distribution: Distribution, space: &KeySpace) -> Shape {
        const THETA: f64 = 0.99;
        match distribution {
            Distribution::Uniform => Shape::Uniform,
            Distribution::Sequential => Shape::Sequential,
            Distribution::Pinned => Shape::Pinned,
            Distribution::Zipfian => Shape::Zipfian(Arc::new((
                Zipf::new(space.slices, THETA),
                Zipf::new(space.per_slice, THETA),
            ))),
        }
    }
}

/// One client's choices: a slice for each request, then slots in it.
#[derive(Debug)]
pub struct Chooser {
    space: KeySpace,
    shape: Shape,
    /// Sequential: the next one; pinned: the only one.
    next_slice: u32,
    /// Sequential: the next slot of each slice.
    cursors: Vec<u32>,
}

impl Chooser {
    /// A client's chooser. Those that go through the slices in turn start apart.
    pub fn new(space: KeySpace, shape: Shape, client: u32) -> Chooser {
        let cursors = match shape {
            Shape::Sequential => vec![0; space.slices as usize],
            _ => Vec::new(),
        };
        let apart = u64::from((space.slices / space.clients.max(1)).max(1));
        let next_slice = match shape {
            Shape::Pinned => space.slice_of(client, 0),
            _ => (u64::from(client) * apart % u64::from(space.slices)) as u32,
        };
        Chooser { space, shape, next_slice, cursors }
    }

    /// The slice of the next request.
    ///
    /// Clients that all go through the slices in the same order bunch up like buses: whoever meets a slow one waits with those
    /// behind. What then is written together is many times what such clients would have written together by chance.
    pub fn slice(&mut self, rng: &mut SmallRng) -> u32 {
        match &self.shape {
            Shape::Uniform => rng.random_range(0..self.space.slices),
            Shape::Zipfian(ranks) => ranks.0.draw(rng),
            Shape::Pinned => self.next_slice,
            Shape::Sequential => {
                let slice = self.next_slice;
                self.next_slice = (slice + 1) % self.space.slices;
                slice
            }
        }
    }

    /// A slot of `slice`.
    pub fn slot(&mut self, slice: u32, rng: &mut SmallRng) -> u32 {
        let nth = match &self.shape {
            Shape::Uniform | Shape::Pinned => rng.random_range(0..self.space.per_slice),
            Shape::Zipfian(ranks) => ranks.1.draw(rng),
            Shape::Sequential => {
                let cursor = &mut self.cursors[slice as usize];
                let nth = *cursor;
                *cursor = (nth + 1) % self.space.per_slice;
                nth
            }
        };
        self.space.slot(slice, nth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use std::collections::BTreeSet;

    #[test]
    fn keys_are_distinct_lie_in_their_slice_and_name_their_owner() {
        let all = [Distribution::Uniform, Distribution::Sequential, Distribution::Pinned];
        for distribution in all {
            for slices in [1, 7, 64] {
                let space = KeySpace::new(slices, 5, 5_000, 20, distribution);
                let mut seen = BTreeSet::new();
                let mut key = Vec::new();
                for client in 0..5 {
                    for slot in 0..space.slots() {
                        space.key(client, slot, &mut key);
                        let (start, end) = space.bounds(space.slice_of(client, slot));
                        assert!(key >= start && (end.is_empty() || key < end));
                        assert_eq!((key.len(), space.owner(&key)), (20, Some((client, slot))));
                        assert!(seen.insert(key.clone()));
                    }
                }
                assert!(seen.len() >= 5_000);
                assert_eq!(space.owner(b"0123456789abcdefghij"), None);
            }
        }
    }

    #[test]
    fn hashed_keys_spread_and_sequential_ones_ascend() {
        let space = KeySpace::new(4, 3, 4_000, 16, Distribution::Uniform);
        let mut eighths = [0u32; 32];
        let mut key = Vec::new();
        for client in 0..3 {
            for slot in 0..space.slots() {
                space.key(client, slot, &mut key);
                eighths[usize::from(key[0] >> 3)] += 1;
            }
        }
        assert!(eighths.iter().all(|&n| (60..200).contains(&n)), "{eighths:?}");

        let space = KeySpace::new(4, 3, 4_000, 16, Distribution::Sequential);
        let mut rng = SmallRng::seed_from_u64(1);
        let mut chooser = Chooser::new(space, Shape::new(Distribution::Sequential, &space), 0);
        let mut last = Vec::new();
        for _ in 0..space.per_slice {
            let slot = chooser.slot(2, &mut rng);
            space.key(1, slot, &mut key);
            assert!(key > last);
            last.clone_from(&key);
        }
    }

    #[test]
    fn zipf_ranks_have_the_expected_shares() {
        let n = 1_000;
        let zipf = Zipf::new(n, 0.99);
        let mut rng = SmallRng::seed_from_u64(7);
        let mut counts = vec![0u32; n as usize];
        let draws = 200_000;
        for _ in 0..draws {
            counts[zipf.draw(&mut rng) as usize] += 1;
        }
        let share = |rank: usize| f64::from(counts[rank]) / f64::from(draws);
        let expected = |rank: usize| 1.0 / ((rank + 1) as f64).powf(0.99) / zipf.zeta;
        for rank in [0, 1] {
            let (got, want) = (share(rank), expected(rank));
            assert!((got / want - 1.0).abs() < 0.1, "rank {rank}: {got} against {want}");
        }
        let (tail, want): (f64, f64) =
            ((100..1000).map(share).sum(), (100..1000).map(expected).sum());
        assert!((tail / want - 1.0).abs() < 0.1, "tail {tail} against {want}");
        let one = Zipf::new(1, 0.99);
        assert!((0..100).all(|_| one.draw(&mut rng) == 0));
    }

    /// Clients that went through the regions in turn, as all did once, met in few of them: a thousand clients in as many regions
    /// had eleven writes in an entry.
    #[test]
    fn clients_go_where_they_like_or_stay_where_they_are() {
        let visited = |distribution, client| {
            let space = KeySpace::new(8, 9, 1_000, 16, distribution);
            let mut rng = SmallRng::seed_from_u64(3);
            let mut chooser = Chooser::new(space, Shape::new(distribution, &space), client);
            (0..1000).map(|_| chooser.slice(&mut rng)).collect::<Vec<_>>()
        };
        for client in 0..9 {
            assert!(visited(Distribution::Pinned, client).iter().all(|at| *at == client % 8));
            let uniform = visited(Distribution::Uniform, client);
            let next = uniform.windows(2).filter(|two| two[1] == (two[0] + 1) % 8).count();
            assert!((80..180).contains(&next), "{next}");
        }
    }

    #[test]
    fn the_same_seed_chooses_the_same() {
        let space = KeySpace::new(8, 2, 1_000, 16, Distribution::Zipfian);
        let run = || {
            let mut rng = SmallRng::seed_from_u64(3);
            let mut chooser = Chooser::new(space, Shape::new(Distribution::Zipfian, &space), 1);
            (0..100)
                .map(|_| {
                    let slice = chooser.slice(&mut rng);
                    chooser.slot(slice, &mut rng)
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(run(), run());
    }
}
