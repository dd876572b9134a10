//! The narrow search: depth first over "which operation was next", never twice through the same
//! configuration (set of operations done, value). It finds an order quickly where there is one; where
//! there is none, ambiguous operations send it through all their subsets.

use super::resolve::{Effect, Timed};
use super::{Found, Value};
use crate::sim::rng::mix;
use std::collections::HashSet;

/// A set of operations as the exclusive or of 128 random bits each: two sets are taken for one with a
/// probability that no number of runs will ever meet (10^6 configurations: about 10^-27).
fn mark(op: usize) -> u128 {
    let low = mix(op as u64);
    u128::from(mix(low ^ 0x5bd1_e995)) << 64 | u128::from(low)
}

/// The calls and returns that are not yet part of the order, by time, as a list with links.
struct Line {
    /// Per event: its operation, and whether it is the call.
    events: Vec<(usize, Side)>,
    call_of: Vec<usize>,
    return_of: Vec<Option<usize>>,
    /// Links by event + 1; 0 is both the head and the end.
    next: Vec<usize>,
    back: Vec<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    /// Before returns of the same time: those count as concurrent.
    Call,
    Return,
}

impl Line {
    fn new(ops: &[Timed]) -> Line {
        let mut timed: Vec<(u64, Side, usize)> = Vec::with_capacity(ops.len() * 2);
        for (n, op) in ops.iter().enumerate() {
            timed.push((op.invoked, Side::Call, n));
            timed.extend(op.returned.map(|at| (at.max(op.invoked), Side::Return, n)));
        }
        timed.sort_unstable();
        let mut line = Line {
            events: timed.iter().map(|(_, side, op)| (*op, *side)).collect(),
            call_of: vec![0; ops.len()],
            return_of: vec![None; ops.len()],
            next: (1..=timed.len()).chain([0]).collect(),
            back: [timed.len()].into_iter().chain(0..timed.len()).collect(),
        };
        for (at, (op, side)) in line.events.iter().enumerate() {
            match side {
                Side::Call => line.call_of[*op] = at + 1,
                Side::Return => line.return_of[*op] = Some(at + 1),
            }
        }
        line
    }

    fn unlink(&mut self, at: usize) {
        let (back, next) = (self.back[at], self.next[at]);
        self.next[back] = next;
        self.back[next] = back;
    }

    /// Undoes the latest `unlink` not yet undone.
    fn relink(&mut self, at: usize) {
        let (back, next) = (self.back[at], self.next[at]);
        self.next[back] = at;
        self.back[next] = at;
    }

    fn take(&mut self, op: usize) {
        self.unlink(self.call_of[op]);
        if let Some(at) = self.return_of[op] {
            self.unlink(at);
        }
    }

    fn put_back(&mut self, op: usize) {
        if let Some(at) = self.return_of[op] {
            self.relink(at);
        }
        self.relink(self.call_of[op]);
    }
}

/// Looks for an order of all certain operations and any of the ambiguous ones.
pub(super) fn dive(ops: &[Timed], effort: usize) -> Found {
    let mut line = Line::new(ops);
    let mut certain = ops.iter().filter(|op| op.returned.is_some()).count();
    let mut order: Vec<(usize, Value)> = Vec::with_capacity(ops.len());
    let mut been: HashSet<(u128, Value)> = HashSet::new();
    let (mut done, mut value) = (0u128, None);
    let mut furthest = (usize::MAX, 0, None);
    // Ambiguous deletes are all alike: the one called first is always as good as any. This is set once
    // one was passed over since the head of the line.
    let mut delete_passed = false;
    let mut at = line.next[0];
    while certain > 0 {
        let (op, side) = line.events[at - 1];
        if side == Side::Return {
            // `op` had to be in the order by now.
            if certain < furthest.0 {
                furthest = (certain, op, value);
            }
            let Some((last, before)) = order.pop() else {
                return Found::None { stuck: furthest.1, value: furthest.2 };
            };
            line.put_back(last);
            done ^= mark(last);
            value = before;
            certain += usize::from(ops[last].returned.is_some());
            delete_passed = is_spare_delete(&ops[last]);
            at = line.next[line.call_of[last]];
            continue;
        }
        let spare = is_spare_delete(&ops[op]);
        let pointless = ops[op].returned.is_none() && ops[op].effect.on(value) == Some(value);
        let after = match (spare && delete_passed) || pointless {
            true => None,
            false => ops[op].effect.on(value),
        };
        delete_passed |= spare;
        match after {
            Some(after) if been.insert((done ^ mark(op), after)) => {
                if been.len() > effort {
                    return Found::GaveUp;
                }
                order.push((op, value));
                line.take(op);
                done ^= mark(op);
                value = after;
                certain -= usize::from(ops[op].returned.is_some());
                delete_passed = false;
                at = line.next[0];
            }
            _ => at = line.next[at],
        }
    }
    Found::Order
}

fn is_spare_delete(op: &Timed) -> bool {
    op.returned.is_none() && op.effect == Effect::Set(None)
}
