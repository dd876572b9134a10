//! Clocks of nodes: what a node believes the time is. The world has one true time; every node has a
//! monotonic clock with an origin of its own that runs a little fast or slow and may jump forwards (a
//! suspended machine). It never goes backwards, as no monotonic clock does.

use crate::types::Time;
use std::time::Duration;

const MILLION: i128 = 1_000_000;

/// The clock of one node.
///
/// - Node time never falls as world time grows.
/// - [`world_time`](Self::world_time) is the first world time at which the node's clock shows the
///   given time: a timer armed with it never fires early by the node's own clock.
#[derive(Clone, Copy, Debug)]
pub struct NodeClock {
    /// Since when the present rate holds, in world time.
    world: Time,
    /// What the node's clock showed then.
    node: Time,
    ppm: i32,
}

impl NodeClock {
    /// A clock that shows `origin` at world time zero and gains `ppm` millionths (negative: loses).
    /// Rates beyond half and double speed are cut to those.
    pub fn new(origin: Time, ppm: i32) -> NodeClock {
        NodeClock { world: Time(0), node: origin, ppm: Self::sane(ppm) }
    }

    fn sane(ppm: i32) -> i32 {
        ppm.clamp(-500_000, 1_000_000)
    }

    /// What the node's clock shows at a world time (not before the last change of rate).
    pub fn node_time(&self, world: Time) -> Time {
        let passed = i128::from(world.0.saturating_sub(self.world.0));
        let shown = passed * (MILLION + i128::from(self.ppm)) / MILLION;
        Time(self.node.0.saturating_add(shown as u64))
    }

    /// The first world time at which the node's clock shows `node` or later.
    pub fn world_time(&self, node: Time) -> Time {
        let wanted = i128::from(node.0.saturating_sub(self.node.0));
        let rate = MILLION + i128::from(self.ppm);
        let passed = (wanted * MILLION + rate - 1) / rate;
        Time(self.world.0.saturating_add(passed as u64))
    }

    /// From `now` (world time) on the clock gains `ppm` millionths.
    pub fn set_rate(&mut self, now: Time, ppm: i32) {
        *self = NodeClock { world: now, node: self.node_time(now), ppm: Self::sane(ppm) };
    }

    /// At `now` (world time) the clock starts anew at `origin`, as it does with a new process: the one way
    /// in which a node's time may go back.
    pub fn restart(&mut self, now: Time, origin: Time) {
        *self = NodeClock { world: now, node: origin, ppm: self.ppm };
    }

    /// At `now` (world time) the clock leaps forwards. Timers armed before must be armed anew.
    pub fn jump(&mut self, now: Time, by: Duration) {
        *self = NodeClock { world: now, node: self.node_time(now).after(by), ppm: self.ppm };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::rng::Rng;

    #[test]
    fn drift_and_jump() {
        let mut clock = NodeClock::new(Time(1_000), 100_000);
        assert_eq!(clock.node_time(Time(0)), Time(1_000));
        assert_eq!(clock.node_time(Time(1_000)), Time(2_100));
        clock.set_rate(Time(1_000), -500_000);
        assert_eq!(clock.node_time(Time(1_000)), Time(2_100));
        assert_eq!(clock.node_time(Time(3_000)), Time(3_100));
        clock.jump(Time(3_000), Duration::from_nanos(900));
        assert_eq!(clock.node_time(Time(3_000)), Time(4_000));
        assert_eq!(clock.node_time(Time(5_000)), Time(5_000));
    }

    #[test]
    fn timers_fire_at_the_first_instant_that_is_not_early() {
        let mut rng = Rng::new(5);
        for _ in 0..2_000 {
            let mut clock = NodeClock::new(Time(rng.range("o", 0..1 << 40)), 0);
            let ppm = rng.range("p", 0..1_500_000) as i32 - 500_000;
            clock.set_rate(Time(rng.range("w", 0..1 << 40)), ppm);
            let node = clock.node.after(Duration::from_nanos(rng.range("d", 0..1 << 45)));
            let world = clock.world_time(node);
            assert!(clock.node_time(world) >= node);
            if world > clock.world {
                assert!(clock.node_time(Time(world.0 - 1)) < node);
            }
        }
    }
}
