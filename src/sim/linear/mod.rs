//! Judges whether what clients saw of a register could have happened one operation after the other, in
//! an order that agrees with real time. Keys are judged apart (linearizability is local, Herlihy and
//! Wing 1990). Per key first a narrow search (`dive`: Wing and Gong's, with Lowe's memory of
//! configurations), then, if that meets too many, a wide one in step with time (`sweep`).
//!
//! Operations of unknown outcome may take effect at any time after their call, or never. They would
//! make the search explode, so before it starts (`resolve`): one whose value was read has taken effect
//! before the first reader returned; one that nobody can have noticed is left out. What stays ambiguous
//! are deletes, and writes beside refused compare-and-swaps.
//!
//! Not done: operations over several keys as one (each key of a batch is judged alone).

mod dive;
mod resolve;
mod sweep;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use dive::dive;
use resolve::{Timed, resolve};
use std::collections::BTreeMap;
use std::fmt;
use sweep::sweep;

/// A value as a number. Distinct writes should write distinct values: that is what makes the judge
/// fast, and sharp. `None` is absence.
pub type Value = Option<u64>;

/// What a client asked of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Write a value.
    Put(u64),
    /// Remove the key.
    Delete,
    /// Read the key.
    Get,
    /// Write `new` if the present value is `expect`.
    Cas {
        /// What must be there.
        expect: Value,
        /// What is there afterwards.
        new: Value,
    },
}

/// What the client was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// A put or delete took effect.
    Done,
    /// A get found this.
    Read(Value),
    /// A compare-and-swap swapped.
    Swapped,
    /// A compare-and-swap found something else.
    Refused,
}

/// An operation in a [`History`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct OpId(usize);

/// How an operation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// Not yet, or with unknown outcome.
    Unknown,
    /// It is certain that it had no effect.
    Failed,
    At(u64, Answer),
}

/// One operation as its client saw it.
#[derive(Clone, Copy, Debug)]
struct Call {
    client: u64,
    op: Op,
    invoked: u64,
    end: End,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {} called {:?} at {}", self.client, self.op, self.invoked)?;
        match self.end {
            End::Unknown => write!(f, ", outcome unknown"),
            End::Failed => write!(f, ", failed"),
            End::At(at, answer) => write!(f, ", got {answer:?} at {at}"),
        }
    }
}

/// What all clients did and saw. Times are any numbers that grow with real time; an operation that
/// is called at the very time at which another returns counts as concurrent with it.
#[derive(Clone, Default, Debug)]
pub struct History {
    calls: Vec<Call>,
    keys: BTreeMap<Bytes, Vec<usize>>,
}

/// How much the judge may search per key before it gives up, in configurations looked at (those with
/// many ambiguous operations count for more).
#[derive(Clone, Copy, Debug)]
pub struct Effort(pub usize);

impl Default for Effort {
    /// Five million.
    fn default() -> Self {
        Effort(5_000_000)
    }
}

/// The judgement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// There is an order that explains everything.
    Linearizable,
    /// There is none for this key.
    Violation(Explanation),
    /// The search for this key was too long: neither shown nor refuted.
    Undecided {
        /// The key.
        key: Bytes,
    },
}

/// Why a key's history has no order: a small part of it that has none either.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explanation {
    /// The key.
    pub key: Bytes,
    /// From the first call to the last return of the part.
    pub window: (u64, u64),
    /// The operations of the part, by call time.
    pub operations: Vec<String>,
    /// The operation at which the longest order broke off, and the value that was there.
    pub stuck: String,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = self.window;
        writeln!(f, "key {:?}: no order explains these operations of [{from}, {to}]:", self.key)?;
        self.operations.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        write!(f, "  {}", self.stuck)
    }
}

impl History {
    /// An empty history. All keys start absent.
    pub fn new() -> History {
        History::default()
    }

    /// A client calls.
    pub fn call(&mut self, client: u64, time: u64, key: &[u8], op: Op) -> OpId {
        let id = self.calls.len();
        self.calls.push(Call { client, op, invoked: time, end: End::Unknown });
        match self.keys.get_mut(key) {
            Some(of_key) => of_key.push(id),
            None => drop(self.keys.insert(Bytes::copy_from_slice(key), vec![id])),
        }
        OpId(id)
    }

    /// The call returned. An answer that does not fit the operation counts as unknown outcome.
    pub fn returned(&mut self, id: OpId, time: u64, answer: Answer) {
        if let Some(call) = self.calls.get_mut(id.0) {
            let fits = match answer {
                Answer::Done => matches!(call.op, Op::Put(_) | Op::Delete),
                Answer::Read(_) => call.op == Op::Get,
                Answer::Swapped | Answer::Refused => matches!(call.op, Op::Cas { .. }),
            };
            call.end = if fits { End::At(time, answer) } else { End::Unknown };
        }
    }

    /// The call failed and certainly had no effect. (One of unknown outcome is simply never ended.)
    pub fn failed(&mut self, id: OpId) {
        if let Some(call) = self.calls.get_mut(id.0) {
            call.end = End::Failed;
        }
    }

    /// How many operations there are.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Judges all keys: the first violation, else the first undecided key, else linearizable.
    pub fn check(&self, effort: Effort) -> Verdict {
        let mut undecided = None;
        for (key, ids) in &self.keys {
            let calls: Vec<Call> = ids.iter().map(|id| self.calls[*id]).collect();
            let ops = resolve(&calls);
            match search(&ops, 1_000_000, effort.0) {
                Found::Order => {}
                Found::GaveUp => undecided = undecided.or_else(|| Some(key.clone())),
                Found::None { .. } => {
                    return Verdict::Violation(explain(key, &calls, effort.0));
                }
            }
        }
        match undecided {
            Some(key) => Verdict::Undecided { key },
            None => Verdict::Linearizable,
        }
    }
}

/// What came of a search.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Found {
    /// There is an order.
    Order,
    /// There is none. The longest attempt could not get past `stuck`, with this value in the register.
    None { stuck: usize, value: Value },
    /// Too many configurations.
    GaveUp,
}

/// The narrow search for so many configurations, then the wide one.
fn search(ops: &[Timed], narrow: usize, effort: usize) -> Found {
    match dive(ops, narrow.min(effort)) {
        Found::GaveUp => sweep(ops, effort),
        decided => decided,
    }
}

/// The history as it looked at `time`: later calls are not there, later returns unknown.
fn until(calls: &[Call], time: u64) -> Vec<Call> {
    let there = calls.iter().filter(|call| call.invoked <= time);
    there
        .map(|call| match call.end {
            End::At(at, _) if at > time => Call { end: End::Unknown, ..*call },
            _ => *call,
        })
        .collect()
}

fn fails(ops: &[Timed], effort: usize) -> bool {
    matches!(search(ops, 10_000, effort), Found::None { .. })
}

/// Shrinks a history without order: first to its shortest prefix without one (a prefix of an explained
/// history is explained, so halving finds it), then by leaving out reads and unread writes.
fn explain(key: &Bytes, calls: &[Call], effort: usize) -> Explanation {
    let mut returns: Vec<u64> = calls
        .iter()
        .filter_map(|call| match call.end {
            End::At(at, _) => Some(at),
            End::Unknown | End::Failed => None,
        })
        .collect();
    returns.sort_unstable();
    let first = returns.partition_point(|at| !fails(&resolve(&until(calls, *at)), effort));
    let time = returns.get(first).copied().unwrap_or(u64::MAX);
    let calls = until(calls, time);
    let mut ops = resolve(&calls);
    let mut tries = 60;
    let mut chunk = ops.len().div_ceil(2);
    while chunk > 0 && tries > 0 {
        let mut from = 0;
        while from < ops.len() && tries > 0 {
            let fewer = resolve::without(&ops, from..from + chunk);
            tries -= 1;
            match fewer.len() < ops.len() && fails(&fewer, effort) {
                true => ops = fewer,
                false => from += chunk,
            }
        }
        chunk /= 2;
    }
    ops.sort_by_key(|op| op.invoked);
    let stuck = match search(&ops, 10_000, effort) {
        Found::None { stuck, value } => {
            format!("stuck at: {} (value then: {value:?})", calls[ops[stuck].source])
        }
        Found::Order | Found::GaveUp => "the part was too hard to judge again".to_owned(),
    };
    let window = (
        ops.iter().map(|op| op.invoked).min().unwrap_or(0),
        ops.iter().filter_map(|op| op.returned).max().unwrap_or(0),
    );
    let operations = ops.iter().map(|op| calls[op.source].to_string()).collect();
    Explanation { key: key.clone(), window, operations, stuck }
}
