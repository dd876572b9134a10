//! The wide search, in step with time: at every return, all configurations in which the
//! returning operation has taken effect, reached from those of the return before. A configuration is
//! which of the open operations have taken effect, the value, and which ambiguous operations it needed.
//!
//! All configurations of one instant are known together. So one that needed more ambiguous operations
//! than another, all else equal, is dropped for good: whatever follows from it follows from the other.
//! And no memory of the past is kept: a long history costs time in proportion to its length, one
//! without order no more than one with.

use super::resolve::{Effect, Spare, Timed};
use super::{Found, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Which ambiguous operations a configuration needed: of spares only how many of a kind.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Used {
    spares: [u32; 2],
    others: Vec<u64>,
}

fn slot(spare: Spare) -> usize {
    match spare {
        Spare::Delete => 0,
        Spare::Junk => 1,
    }
}

impl Used {
    fn is_within(&self, other: &Used) -> bool {
        self.spares.iter().zip(&other.spares).all(|(a, b)| a <= b)
            && self.others.iter().zip(&other.others).all(|(a, b)| a & !b == 0)
    }

    /// With the ambiguous operation `op` at `place` too, if it is free: of spares, the first unused.
    fn with(&self, place: usize, op: &Timed) -> Option<Used> {
        let mut more = self.clone();
        match op.spare {
            Some(spare) if self.spares[slot(spare)] == op.rank => more.spares[slot(spare)] += 1,
            None if self.others[place / 64] >> (place % 64) & 1 == 0 => {
                more.others[place / 64] |= 1 << (place % 64);
            }
            _ => return None,
        }
        Some(more)
    }
}

/// Configurations by (open operations in effect, value), each with its smallest needs.
#[derive(Default)]
struct Configurations {
    by_state: BTreeMap<(u128, Value), Vec<Used>>,
}

impl Configurations {
    /// Whether the configuration is in and led to nothing known; then it is kept.
    fn add(&mut self, mask: u128, value: Value, used: &Used) -> bool {
        let known = self.by_state.entry((mask, value)).or_default();
        if known.iter().any(|old| old.is_within(used)) {
            return false;
        }
        known.retain(|old| !used.is_within(old));
        known.push(used.clone());
        true
    }

    fn has(&self, mask: u128, value: Value, used: &Used) -> bool {
        self.by_state.get(&(mask, value)).is_some_and(|known| known.contains(used))
    }

    fn into_list(self) -> Vec<(u128, Value, Used)> {
        let states = self.by_state.into_iter();
        states.flat_map(|((m, v), all)| all.into_iter().map(move |used| (m, v, used))).collect()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    /// Before returns of the same time: those count as concurrent.
    Call,
    Return,
}

/// The attempt at one instant.
struct Search<'a> {
    ops: &'a [Timed],
    /// Certain operations called and not returned, by their bit.
    open: Vec<Option<usize>>,
    /// Ambiguous operations by call time, and how many of them are called by now.
    maybe: Vec<usize>,
    called: usize,
    steps: usize,
}

/// Looks for an order of all certain operations and any of the ambiguous ones, within `effort` steps.
/// Gives up also when more than 128 certain operations are open at once.
pub(super) fn sweep(ops: &[Timed], effort: usize) -> Found {
    let mut events: Vec<(u64, Side, usize)> = Vec::with_capacity(ops.len() * 2);
    for (n, op) in ops.iter().enumerate() {
        events.push((op.invoked, Side::Call, n));
        events.extend(op.returned.map(|at| (at.max(op.invoked), Side::Return, n)));
    }
    events.sort_unstable();
    let mut maybe: Vec<usize> = (0..ops.len()).filter(|n| ops[*n].returned.is_none()).collect();
    maybe.sort_by_key(|n| (ops[*n].invoked, *n));
    let nothing = Used { spares: [0; 2], others: vec![0; maybe.len().div_ceil(64)] };
    let mut now = vec![(0u128, None, nothing)];
    let mut search = Search { ops, open: Vec::new(), maybe, called: 0, steps: 0 };
    for (_, side, op) in events {
        match (side, ops[op].returned) {
            (Side::Call, None) => search.called += 1,
            (Side::Call, Some(_)) => match search.open.iter().position(Option::is_none) {
                Some(bit) => search.open[bit] = Some(op),
                None if search.open.len() < 128 => search.open.push(Some(op)),
                None => return Found::GaveUp,
            },
            (Side::Return, _) => {
                let Some(bit) = search.open.iter().position(|open| *open == Some(op)) else {
                    continue;
                };
                let value = now.first().and_then(|(_, value, _)| *value);
                let Some(next) = search.past(bit, now, effort) else { return Found::GaveUp };
                if next.is_empty() {
                    return Found::None { stuck: op, value };
                }
                now = next;
                search.open[bit] = None;
            }
        }
    }
    Found::Order
}

impl Search<'_> {
    /// The configurations in which the operation with `bit` has taken effect, reached from `from`. Its
    /// bit is cleared in them. `None`: too much effort.
    fn past(
        &mut self,
        bit: usize,
        from: Vec<(u128, Value, Used)>,
        effort: usize,
    ) -> Option<Vec<(u128, Value, Used)>> {
        let wanted = 1u128 << bit;
        let mut arrived = Configurations::default();
        let mut seen = Configurations::default();
        let mut todo = Vec::new();
        let maybe_ask: BTreeSet<Value> = self.maybe[..self.called]
            .iter()
            .filter_map(|op| self.ops[*op].effect.observes())
            .collect();
        for (mask, value, used) in from {
            seen.add(mask, value, &used);
            todo.push((mask, value, used));
        }
        while let Some((mask, value, used)) = todo.pop() {
            if mask & wanted != 0 {
                arrived.add(mask & !wanted, value, &used);
                continue;
            }
            // Another with fewer needs may have come since.
            if !seen.has(mask, value, &used) {
                continue;
            }
            // Each is tried with every ambiguous operation.
            self.steps += 1 + self.called / 16;
            if self.steps > effort {
                return None;
            }
            for (at, op) in self.waiting(mask) {
                if let Some(after) = self.ops[op].effect.on(value)
                    && seen.add(mask | 1 << at, after, &used)
                {
                    todo.push((mask | 1 << at, after, used.clone()));
                }
            }
            for place in 0..self.called {
                let op = &self.ops[self.maybe[place]];
                if let Some(after) = op.effect.on(value)
                    && after != value
                    && (maybe_ask.contains(&after) || self.helps(mask, after))
                    && let Some(more) = used.with(place, op)
                    && seen.add(mask, after, &more)
                {
                    todo.push((mask, after, more));
                }
            }
        }
        Some(arrived.into_list())
    }

    /// The open operations that have not taken effect, with their bits.
    fn waiting(&self, mask: u128) -> impl Iterator<Item = (usize, usize)> {
        let bits = self.open.iter().enumerate();
        bits.filter_map(move |(at, op)| op.filter(|_| mask >> at & 1 == 0).map(|op| (at, op)))
    }

    /// Whether an open operation asks for `value`: an ambiguous write is of use only if something that
    /// asks comes next, or it could as well be left out.
    fn helps(&self, mask: u128, value: Value) -> bool {
        self.waiting(mask).any(|(_, op)| {
            let effect = self.ops[op].effect;
            !matches!(effect, Effect::Set(_)) && effect.on(value).is_some()
        })
    }
}
