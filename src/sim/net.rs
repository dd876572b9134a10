//! The network as a pure model: when, how often and how damaged a message arrives, if at all. The
//! world keeps the messages; the network only answers with delivery times.
//!
//! A cut is asked twice: [`Net::route`] drops what is sent over a cut link, and the world asks
//! [`Net::is_open`] again at delivery, so that a partition also takes what was on its way.

use super::rng::Rng;
use crate::types::{StoreId, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::time::Duration;

/// How a link behaves. Durations in world time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Weather {
    /// The usual delay of a message.
    pub delay: Range<Duration>,
    /// How many of 1,000 messages meet a stall.
    pub stall_permille: u32,
    /// How long a stall adds at most.
    pub stall: Duration,
    /// How many of 1,000 messages are lost.
    pub loss_permille: u32,
    /// How many of 1,000 messages arrive twice.
    pub duplicate_permille: u32,
    /// How many of 1,000 messages arrive with a flipped bit.
    pub damage_permille: u32,
    /// Bytes per second one link carries; later messages queue behind earlier ones.
    pub bytes_per_second: u64,
    /// Whether messages of one link may overtake each other.
    pub order: Order,
}

/// Whether a link keeps the order of its messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// As one TCP connection does.
    Kept,
    /// As several connections, or a reconnect, do.
    Free,
}

impl Weather {
    /// A local network on a good day: 0.1 to 0.5 ms, nothing lost.
    pub fn fair() -> Weather {
        Weather {
            delay: Duration::from_micros(100)..Duration::from_micros(500),
            stall_permille: 0,
            stall: Duration::ZERO,
            loss_permille: 0,
            duplicate_permille: 0,
            damage_permille: 0,
            bytes_per_second: 1 << 30,
            order: Order::Kept,
        }
    }

    /// Everything goes wrong now and then.
    pub fn foul() -> Weather {
        Weather {
            delay: Duration::from_micros(100)..Duration::from_millis(5),
            stall_permille: 20,
            stall: Duration::from_millis(2500),
            loss_permille: 30,
            duplicate_permille: 20,
            damage_permille: 2,
            bytes_per_second: 100 << 20,
            order: Order::Free,
        }
    }

    /// Somewhere between fair and foul.
    pub fn draw(rng: &mut Rng) -> Weather {
        let foul = Weather::foul();
        let scale = rng.range("net.weather.scale", 0..1001);
        let part = |of: u32| (u64::from(of) * scale / 1000) as u32;
        let slowest = rng.range("net.weather.delay", 200..5_000);
        Weather {
            delay: Duration::from_micros(100)..Duration::from_micros(slowest),
            stall_permille: part(foul.stall_permille),
            loss_permille: part(foul.loss_permille),
            duplicate_permille: part(foul.duplicate_permille),
            damage_permille: part(foul.damage_permille),
            order: match rng.chance("net.weather.order", 500) {
                true => Order::Free,
                false => Order::Kept,
            },
            ..foul
        }
    }
}

/// One arrival of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Delivery {
    /// When.
    pub at: Time,
    /// If set: which bit of it is flipped (modulo its length in bits).
    pub flipped_bit: Option<u64>,
}

/// The arrivals of one message: none (lost), one, or two.
pub type Deliveries = Vec<Delivery>;

/// A kind of partition, for traces and for shrinking.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Partition {
    /// Nobody in the set hears anybody outside, nor the other way.
    Full(BTreeSet<StoreId>),
    /// The store is not heard, but hears.
    Mute(StoreId),
    /// The store is heard, but does not hear.
    Deaf(StoreId),
    /// The two do not hear each other, all others hear both.
    Pair(StoreId, StoreId),
    /// One direction of one link.
    OneWay(StoreId, StoreId),
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Partition::Full(side) => write!(f, "full {side:?} | others"),
            Partition::Mute(store) => write!(f, "mute {store}"),
            Partition::Deaf(store) => write!(f, "deaf {store}"),
            Partition::Pair(a, b) => write!(f, "pair {a} x {b}"),
            Partition::OneWay(from, to) => write!(f, "one-way {from} -x {to}"),
        }
    }
}

#[derive(Clone, Default, Debug)]
struct Link {
    /// When the line is free for the next message's first byte.
    free_at: Time,
    /// The latest arrival so far, for links that keep their order.
    last_arrival: Time,
    weather: Option<Weather>,
}

/// The network between the stores of one cluster.
///
/// - The fate of the n-th message of a link depends on the seed, the link and n (and on what the line
///   carried before it), never on other links.
/// - A store always reaches itself at once.
#[derive(Clone, Debug)]
pub struct Net {
    weather: Weather,
    links: BTreeMap<(StoreId, StoreId), Link>,
    stores: BTreeSet<StoreId>,
    cuts: BTreeSet<(StoreId, StoreId)>,
    /// Messages lost to cuts and to weather.
    dropped: u64,
    carried: u64,
}

impl Net {
    /// A whole network between `stores`.
    pub fn new(stores: impl IntoIterator<Item = StoreId>, weather: Weather) -> Net {
        Net {
            weather,
            links: BTreeMap::new(),
            stores: stores.into_iter().collect(),
            cuts: BTreeSet::new(),
            dropped: 0,
            carried: 0,
        }
    }

    /// Changes the weather everywhere but on links with their own.
    pub fn set_weather(&mut self, weather: Weather) {
        self.weather = weather;
    }

    /// Gives one direction of a link its own weather; `None` takes it away.
    pub fn set_link_weather(&mut self, from: StoreId, to: StoreId, weather: Option<Weather>) {
        self.links.entry((from, to)).or_default().weather = weather;
    }

    /// Adds a store to those that partitions know of.
    pub fn add_store(&mut self, store: StoreId) {
        self.stores.insert(store);
    }

    /// When a message of `bytes` bytes, sent at `now`, arrives.
    pub fn route(
        &mut self,
        now: Time,
        from: StoreId,
        to: StoreId,
        bytes: usize,
        rng: &mut Rng,
    ) -> Deliveries {
        if from == to {
            return vec![Delivery { at: now, flipped_bit: None }];
        }
        let key = super::rng::mix(from.0) ^ to.0;
        let link = self.links.entry((from, to)).or_default();
        let weather = link.weather.as_ref().unwrap_or(&self.weather);
        let nanos = |d: Duration| d.as_nanos() as u64;

        // All draws happen whatever the outcome: the next message's fate must not depend on it.
        let lost = rng.chance_for("net.loss", key, weather.loss_permille);
        let twice = rng.chance_for("net.duplicate", key, weather.duplicate_permille);
        let stalled = rng.chance_for("net.stall", key, weather.stall_permille);
        let stall = rng.range_for("net.stall.time", key, 0..nanos(weather.stall).max(1));
        let damaged = rng.chance_for("net.damage", key, weather.damage_permille);
        let bit = rng.draw_for("net.damage.bit", key);
        let span = nanos(weather.delay.start)..nanos(weather.delay.end);
        let delays = [(); 2].map(|()| rng.range_for("net.delay", key, span.clone()));
        if lost || self.cuts.contains(&(from, to)) {
            self.dropped += 1;
            return Vec::new();
        }

        let on_line = (bytes as u128 * 1_000_000_000 / u128::from(weather.bytes_per_second.max(1)))
            .min(u128::from(u64::MAX / 4)) as u64;
        link.free_at = Time(link.free_at.max(now).0.saturating_add(on_line));
        let stall = if stalled { stall } else { 0 };
        let mut deliveries = Vec::with_capacity(2);
        for (copy, delay) in delays.into_iter().enumerate().take(if twice { 2 } else { 1 }) {
            let mut at = Time(link.free_at.0.saturating_add(delay).saturating_add(stall));
            if weather.order == Order::Kept {
                at = at.max(link.last_arrival);
                link.last_arrival = at;
            }
            let flipped_bit = (damaged && copy == 0).then_some(bit);
            deliveries.push(Delivery { at, flipped_bit });
        }
        self.carried += 1;
        deliveries
    }

    /// Whether messages from `from` reach `to` at all: to be asked again at delivery.
    pub fn is_open(&self, from: StoreId, to: StoreId) -> bool {
        from == to || !self.cuts.contains(&(from, to))
    }

    /// Cuts links, on top of those that are cut.
    pub fn cut(&mut self, partition: &Partition) {
        let all: Vec<StoreId> = self.stores.iter().copied().collect();
        for &from in &all {
            for &to in &all {
                let hit = match partition {
                    Partition::Full(side) => side.contains(&from) != side.contains(&to),
                    Partition::Mute(store) => from == *store,
                    Partition::Deaf(store) => to == *store,
                    Partition::Pair(a, b) => (from, to) == (*a, *b) || (from, to) == (*b, *a),
                    Partition::OneWay(a, b) => (from, to) == (*a, *b),
                };
                if hit && from != to {
                    self.cuts.insert((from, to));
                }
            }
        }
    }

    /// Draws a partition (without cutting). `None` with fewer than two stores.
    pub fn draw_partition(&self, rng: &mut Rng) -> Option<Partition> {
        let mut stores: Vec<StoreId> = self.stores.iter().copied().collect();
        rng.shuffle("net.partition.who", &mut stores);
        let kind = rng.range("net.partition.kind", 0..6);
        let size = rng.range("net.partition.size", 1..stores.len().max(2) as u64) as usize;
        let (&a, &b) = (stores.first()?, stores.get(1)?);
        Some(match kind {
            0 | 1 => Partition::Full(stores.into_iter().take(size).collect()),
            2 => Partition::Mute(a),
            3 => Partition::Deaf(a),
            4 => Partition::Pair(a, b),
            _ => Partition::OneWay(a, b),
        })
    }

    /// Mends one direction of a link.
    pub fn heal_link(&mut self, from: StoreId, to: StoreId) {
        self.cuts.remove(&(from, to));
    }

    /// Mends everything.
    pub fn heal(&mut self) {
        self.cuts.clear();
    }

    /// Whether no link is cut.
    pub fn is_whole(&self) -> bool {
        self.cuts.is_empty()
    }

    /// Messages that arrived at least once, and those that never will.
    pub fn counts(&self) -> (u64, u64) {
        (self.carried, self.dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: StoreId = StoreId(1);
    const B: StoreId = StoreId(2);
    const C: StoreId = StoreId(3);

    fn net(weather: Weather) -> Net {
        Net::new([A, B, C], weather)
    }

    fn fates(net: &mut Net, rng: &mut Rng, n: u64) -> Vec<Deliveries> {
        (0..n).map(|i| net.route(Time(i * 1_000), A, B, 100, rng)).collect()
    }

    #[test]
    fn fair_weather_keeps_order_and_loses_nothing() {
        let mut rng = Rng::new(1);
        let all = fates(&mut net(Weather::fair()), &mut rng, 1_000);
        assert!(all.iter().all(|d| d.len() == 1 && d[0].flipped_bit.is_none()));
        assert!(all.windows(2).all(|w| w[0][0].at <= w[1][0].at));
        assert_eq!(
            net(Weather::fair()).route(Time(7), A, A, 1 << 20, &mut rng),
            [Delivery { at: Time(7), flipped_bit: None }]
        );
    }

    #[test]
    fn foul_weather_does_everything() {
        let mut rng = Rng::new(2);
        let mut net = net(Weather::foul());
        let all = fates(&mut net, &mut rng, 20_000);
        let count = |f: &dyn Fn(&Deliveries) -> bool| all.iter().filter(|d| f(d)).count();
        assert!((400..800).contains(&count(&|d| d.is_empty())));
        assert!((200..600).contains(&count(&|d| d.len() == 2)));
        assert!(count(&|d| d.iter().any(|d| d.flipped_bit.is_some())) > 10);
        let firsts: Vec<Time> = all.iter().filter_map(|d| d.first()).map(|d| d.at).collect();
        assert!(firsts.windows(2).any(|w| w[0] > w[1]), "nothing overtook");
        assert_eq!(net.counts().0 + net.counts().1, 20_000);
    }

    #[test]
    fn other_links_and_cuts_do_not_shift_a_links_fate() {
        let (mut r1, mut r2) = (Rng::new(3), Rng::new(3));
        let (mut n1, mut n2) = (net(Weather::foul()), net(Weather::foul()));
        let quiet = fates(&mut n1, &mut r1, 500);
        n2.cut(&Partition::OneWay(A, B));
        assert!(fates(&mut n2.clone(), &mut r2.clone(), 9).iter().all(|d| d.is_empty()));
        n2.heal();
        let busy: Vec<Deliveries> = (0..500)
            .map(|i| {
                n2.route(Time(i), B, A, 1 << 20, &mut r2);
                n2.route(Time(i * 1_000), A, B, 100, &mut r2)
            })
            .collect();
        assert_eq!(quiet, busy);
    }

    #[test]
    fn a_narrow_line_queues() {
        let weather = Weather { bytes_per_second: 1_000_000, ..Weather::fair() };
        let mut net = net(weather);
        let mut rng = Rng::new(4);
        let last = (0..10).map(|_| net.route(Time(0), A, B, 100_000, &mut rng)[0].at).max();
        assert!(last >= Some(Time(1_000_000_000)), "1 MB at 1 MB/s: {last:?}");
    }

    #[test]
    fn partitions() {
        let mut net = net(Weather::fair());
        let open = |net: &Net| {
            [(A, B), (A, C), (B, A), (B, C), (C, A), (C, B)].map(|(f, t)| net.is_open(f, t) as u8)
        };
        net.cut(&Partition::Full([A].into()));
        assert_eq!(open(&net), [0, 0, 0, 1, 0, 1]);
        assert!(net.is_open(A, A));
        net.heal_link(A, B);
        assert_eq!(open(&net), [1, 0, 0, 1, 0, 1]);
        net.heal();
        net.cut(&Partition::Mute(A));
        assert_eq!(open(&net), [0, 0, 1, 1, 1, 1]);
        net.heal();
        net.cut(&Partition::Deaf(A));
        net.cut(&Partition::OneWay(B, C));
        assert_eq!(open(&net), [1, 1, 0, 0, 0, 1]);
        net.heal();
        net.cut(&Partition::Pair(A, C));
        assert_eq!(open(&net), [1, 0, 1, 1, 0, 1]);
        assert!(!net.is_whole());
        net.heal();
        assert!(net.is_whole());
    }

    #[test]
    fn drawn_partitions_cut_something_and_cover_all_kinds() {
        let mut rng = Rng::new(5);
        let mut kinds = BTreeSet::new();
        for _ in 0..200 {
            let mut net = net(Weather::draw(&mut rng));
            let partition = net.draw_partition(&mut rng).unwrap();
            net.cut(&partition);
            assert!(!net.is_whole(), "{partition}");
            kinds.insert(partition.to_string().split(' ').next().unwrap().to_owned());
        }
        assert_eq!(kinds.len(), 5);
        assert!(Net::new([A], Weather::fair()).draw_partition(&mut rng).is_none());
    }
}
