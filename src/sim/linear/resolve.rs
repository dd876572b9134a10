//! From what clients saw to what the search works on: effects with times, as few of them ambiguous as
//! possible.

use super::{Answer, Call, End, Op, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// What an operation does to, or asserts about, the register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Effect {
    Set(Value),
    Read(Value),
    Swap(Value, Value),
    Refuse(Value),
}

impl Effect {
    /// The value afterwards, or `None` if the effect is impossible at `value`.
    pub(super) fn on(self, value: Value) -> Option<Value> {
        match self {
            Effect::Set(new) => Some(new),
            Effect::Read(found) => (found == value).then_some(value),
            Effect::Swap(expect, new) => (expect == value).then_some(new),
            Effect::Refuse(expect) => (expect != value).then_some(value),
        }
    }

    /// The value it needs to find.
    pub(super) fn observes(self) -> Option<Value> {
        match self {
            Effect::Read(value) | Effect::Swap(value, _) => Some(value),
            Effect::Set(_) | Effect::Refuse(_) => None,
        }
    }

    /// The value it leaves.
    fn writes(self) -> Option<Value> {
        match self {
            Effect::Set(value) | Effect::Swap(_, value) => Some(value),
            Effect::Read(_) | Effect::Refuse(_) => None,
        }
    }
}

/// Ambiguous writes that are all alike: of one kind, the one called first is as good as any, and an
/// order that needed fewer of them is as good as one that needed more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Spare {
    /// It removes the key.
    Delete,
    /// It writes what nobody finds or expects: all it can do is to make something else gone.
    Junk,
}

/// An operation for the search.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timed {
    pub(super) effect: Effect,
    pub(super) invoked: u64,
    /// `None`: it may take effect at any time from `invoked` on, or never.
    pub(super) returned: Option<u64>,
    /// Its place among the calls.
    pub(super) source: usize,
    /// Set if it is ambiguous and one of many alike.
    pub(super) spare: Option<Spare>,
    /// How many spares of its kind were called before it.
    pub(super) rank: u32,
}

/// Failed operations and reads without answer go; the rest gets its effect. Then ambiguous writes are
/// made certain or left out where that changes no verdict.
pub(super) fn resolve(calls: &[Call]) -> Vec<Timed> {
    let mut ops = Vec::with_capacity(calls.len());
    for (source, call) in calls.iter().enumerate() {
        let (effect, returned) = match (call.op, call.end) {
            (_, End::Failed) | (Op::Get, End::Unknown) => continue,
            (Op::Put(value), end) => (Effect::Set(Some(value)), time(end)),
            (Op::Delete, end) => (Effect::Set(None), time(end)),
            (Op::Get, End::At(at, Answer::Read(value))) => (Effect::Read(value), Some(at)),
            (Op::Get, End::At(..)) => continue,
            (Op::Cas { expect, .. }, End::At(at, Answer::Refused)) => {
                (Effect::Refuse(expect), Some(at))
            }
            (Op::Cas { expect, new }, end) => (Effect::Swap(expect, new), time(end)),
        };
        ops.push(Timed { effect, invoked: call.invoked, returned, source, spare: None, rank: 0 });
    }
    if let Some(alone) = sees_what_nobody_wrote(&ops) {
        return vec![alone];
    }
    make_certain(&mut ops);
    leave_out(&mut ops);
    find_spares(&mut ops);
    ops
}

/// An operation that found a value which no operation writes has no order, and needs no search: it
/// alone shows it.
fn sees_what_nobody_wrote(ops: &[Timed]) -> Option<Timed> {
    let written: BTreeSet<u64> = ops.iter().filter_map(|op| op.effect.writes().flatten()).collect();
    let found = |op: &&Timed| op.effect.observes().flatten().filter(|_| op.returned.is_some());
    ops.iter().find(|op| found(op).is_some_and(|value| !written.contains(&value))).copied()
}

fn time(end: End) -> Option<u64> {
    match end {
        End::At(at, _) => Some(at),
        End::Unknown | End::Failed => None,
    }
}

/// A write whose value somebody saw, and which nobody else wrote, took effect before the first who saw
/// it returned. If that makes a swap certain, the swap is somebody who saw its expected value.
fn make_certain(ops: &mut [Timed]) {
    let mut writers: BTreeMap<u64, u32> = BTreeMap::new();
    for value in ops.iter().filter_map(|op| op.effect.writes().flatten()) {
        *writers.entry(value).or_default() += 1;
    }
    loop {
        let mut first_seen: BTreeMap<u64, u64> = BTreeMap::new();
        for op in ops.iter() {
            if let (Some(Some(value)), Some(at)) = (op.effect.observes(), op.returned) {
                let first = first_seen.entry(value).or_insert(at);
                *first = at.min(*first);
            }
        }
        let mut changed = false;
        for op in ops.iter_mut().filter(|op| op.returned.is_none()) {
            if let Some(Some(value)) = op.effect.writes()
                && writers.get(&value) == Some(&1)
                && let Some(seen) = first_seen.get(&value)
            {
                op.returned = Some(op.invoked.max(*seen));
                changed = true;
            }
        }
        if !changed {
            return;
        }
    }
}

/// Leaves out ambiguous writes that nobody who returned after their call can have noticed: an order
/// with one of them is an order without it too.
fn leave_out(ops: &mut Vec<Timed>) {
    let last_refusal = ops
        .iter()
        .filter(|op| matches!(op.effect, Effect::Refuse(_)))
        .filter_map(|op| op.returned)
        .max();
    loop {
        let before = ops.len();
        let mut last_seen: BTreeMap<Value, u64> = BTreeMap::new();
        for op in ops.iter() {
            if let Some(value) = op.effect.observes() {
                // An ambiguous swap may see its expected value at any time.
                let at = op.returned.unwrap_or(u64::MAX);
                let last = last_seen.entry(value).or_insert(at);
                *last = at.max(*last);
            }
        }
        ops.retain(|op| {
            let Some(value) = op.effect.writes() else { return true };
            op.returned.is_some()
                || last_refusal.is_some_and(|at| at >= op.invoked)
                || last_seen.get(&value).is_some_and(|at| *at >= op.invoked)
        });
        if ops.len() == before {
            return;
        }
    }
}

/// Names the ambiguous writes that are alike. What is junk writes one value from here on, which nobody
/// else writes, finds or expects.
fn find_spares(ops: &mut [Timed]) {
    let expected = |op: &Timed| match op.effect {
        Effect::Read(value) | Effect::Swap(value, _) | Effect::Refuse(value) => value,
        Effect::Set(_) => None,
    };
    let cared_for: BTreeSet<u64> = ops.iter().filter_map(expected).collect();
    let mut taken = cared_for.clone();
    taken.extend(ops.iter().filter_map(|op| op.effect.writes().flatten()));
    let Some(junk) = (0..=u64::MAX).rev().find(|value| !taken.contains(value)) else { return };
    for op in ops.iter_mut().filter(|op| op.returned.is_none()) {
        op.spare = match op.effect {
            Effect::Set(None) => Some(Spare::Delete),
            Effect::Set(Some(value)) if !cared_for.contains(&value) => {
                op.effect = Effect::Set(Some(junk));
                Some(Spare::Junk)
            }
            _ => None,
        };
    }
    rank_spares(ops);
}

fn rank_spares(ops: &mut [Timed]) {
    for kind in [Spare::Delete, Spare::Junk] {
        let mut alike: Vec<&mut Timed> =
            ops.iter_mut().filter(|op| op.spare == Some(kind)).collect();
        alike.sort_by_key(|op| op.invoked);
        alike.iter_mut().zip(0..).for_each(|(op, rank)| op.rank = rank);
    }
}

/// The operations without those of a range that can be left out without making an explained history
/// unexplained: all reads and refusals, then the writes that nobody left is about.
pub(super) fn without(ops: &[Timed], range: Range<usize>) -> Vec<Timed> {
    let chosen = |at: usize| range.contains(&at);
    let goes_first = |op: &Timed| matches!(op.effect, Effect::Read(_) | Effect::Refuse(_));
    let left: Vec<(usize, Timed)> = ops
        .iter()
        .copied()
        .enumerate()
        .filter(|(at, op)| !(chosen(*at) && goes_first(op)))
        .collect();
    // An operation is not about a write if one that stays lies between the two in time. Per operation
    // that sees a value (or refuses, then any): its return, and the latest call of a write that stays
    // and had returned when it was called.
    let stays = |at: usize, op: &Timed| !chosen(at) && op.effect.writes().is_some();
    let seen: Vec<(Option<Value>, u64, u64)> = left
        .iter()
        .filter(|(_, op)| !matches!(op.effect, Effect::Set(_)))
        .map(|(_, seer)| {
            let between = left.iter().filter(|(at, op)| {
                stays(*at, op) && op.returned.is_some_and(|end| end < seer.invoked)
            });
            let latest = between.map(|(_, op)| op.invoked).max().unwrap_or(0);
            (seer.effect.observes(), seer.returned.unwrap_or(u64::MAX), latest)
        })
        .collect();
    // Who wrote the value that somebody found stays in any case: without it, the find alone would be
    // the contradiction, and the story lost.
    let is_free = |op: &Timed, value: Value| {
        let end = op.returned.unwrap_or(u64::MAX);
        seen.iter().filter(|(sees, _, _)| sees.is_none_or(|sees| sees == value)).all(
            |(sees, returned, latest)| {
                let found = sees.is_some_and(|value| value.is_some());
                !found && (*returned < op.invoked || end < *latest)
            },
        )
    };
    let mut kept: Vec<Timed> = left
        .iter()
        .filter(|(at, op)| {
            !(chosen(*at) && op.effect.writes().is_some_and(|value| is_free(op, value)))
        })
        .map(|(_, op)| *op)
        .collect();
    rank_spares(&mut kept);
    kept
}
