//! The event queue: what happens next, at what time. Events of equal time come out in the order in
//! which they went in, so the order never depends on the heap.

use crate::types::Time;
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::Duration;

/// The queue and the world's time.
///
/// - Time never goes back: an event asked for in the past happens now.
/// - Events come out ordered by (time, order of scheduling).
#[derive(Debug)]
pub struct World<E> {
    now: Time,
    scheduled: u64,
    popped: u64,
    /// Events taken since time moved last.
    at_once: u64,
    peak: usize,
    queue: BinaryHeap<Scheduled<E>>,
}

#[derive(Debug)]
struct Scheduled<E> {
    at: Time,
    sequence: u64,
    event: E,
}

impl<E> Scheduled<E> {
    fn key(&self) -> (Time, u64) {
        (self.at, self.sequence)
    }
}

impl<E> PartialEq for Scheduled<E> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<E> Eq for Scheduled<E> {}

impl<E> PartialOrd for Scheduled<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Scheduled<E> {
    /// Reversed: the heap gives its greatest, we want the earliest.
    fn cmp(&self, other: &Self) -> Ordering {
        other.key().cmp(&self.key())
    }
}

impl<E> Default for World<E> {
    fn default() -> Self {
        World::new()
    }
}

impl<E> World<E> {
    /// An empty world at time zero.
    pub fn new() -> World<E> {
        World {
            now: Time(0),
            scheduled: 0,
            popped: 0,
            at_once: 0,
            peak: 0,
            queue: BinaryHeap::new(),
        }
    }

    /// The time of the last event taken.
    pub fn now(&self) -> Time {
        self.now
    }

    /// Schedules an event; one in the past happens now.
    pub fn at(&mut self, at: Time, event: E) {
        self.scheduled += 1;
        let at = at.max(self.now);
        self.queue.push(Scheduled { at, sequence: self.scheduled, event });
        self.peak = self.peak.max(self.queue.len());
    }

    /// Schedules an event `delay` from now.
    pub fn after(&mut self, delay: Duration, event: E) {
        self.at(self.now.after(delay), event);
    }

    /// When the next event happens.
    pub fn peek(&self) -> Option<Time> {
        self.queue.peek().map(|next| next.at)
    }

    /// Takes the next event and moves the time to it.
    pub fn step(&mut self) -> Option<(Time, E)> {
        let next = self.queue.pop()?;
        self.at_once = if next.at == self.now { self.at_once + 1 } else { 0 };
        self.now = next.at;
        self.popped += 1;
        Some((next.at, next.event))
    }

    /// [`step`](Self::step), unless nothing happens up to and including `end`: then time moves to `end`.
    pub fn step_until(&mut self, end: Time) -> Option<(Time, E)> {
        match self.peek() {
            Some(at) if at <= end => self.step(),
            _ => {
                self.now = self.now.max(end);
                None
            }
        }
    }

    /// Keeps the events that `keep` names: a crash takes the timers of its node along. The order of
    /// what stays does not change.
    pub fn retain(&mut self, mut keep: impl FnMut(&E) -> bool) {
        self.queue.retain(|scheduled| keep(&scheduled.event));
    }

    /// Events taken since time moved last: that it stands still shows here.
    pub fn at_once(&self) -> u64 {
        self.at_once
    }

    /// Events that wait.
    pub fn pending(&self) -> usize {
        self.queue.len()
    }

    /// The most events that ever waited: to check that a run does not snowball.
    pub fn peak(&self) -> usize {
        self.peak
    }

    /// Events taken so far.
    pub fn steps(&self) -> u64 {
        self.popped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::rng::Rng;

    #[test]
    fn equal_times_keep_their_order() {
        let mut world = World::new();
        let mut rng = Rng::new(1);
        for n in 0..1_000u64 {
            world.at(Time(rng.range("t", 0..10)), n);
        }
        world.retain(|n| n % 3 != 0);
        let mut last = (Time(0), 0);
        let mut count = 0;
        while let Some(next) = world.step() {
            assert!(next > last || count == 0, "{last:?} {next:?}");
            assert_ne!(next.1 % 3, 0);
            last = next;
            count += 1;
        }
        assert_eq!((count, world.peak(), world.steps()), (666, 1_000, 666));
    }

    #[test]
    fn time_does_not_go_back() {
        let mut world = World::new();
        world.after(Duration::from_nanos(10), "a");
        assert_eq!(world.step_until(Time(5)), None);
        assert_eq!(world.now(), Time(5));
        assert_eq!(world.step_until(Time(10)), Some((Time(10), "a")));
        world.at(Time(3), "late");
        assert_eq!(world.step(), Some((Time(10), "late")));
        assert_eq!(world.step(), None);
    }
}
