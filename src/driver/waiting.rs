//! Who waits for an answer: callbacks by token, with deadlines.

use crate::error::{Error, Result};
use crate::region::effects::{Reply, Token};
use crate::types::Time;
use parking_lot::Mutex;

/// Called once with the answer, or with an error when there will be none. It runs on one of the
/// node's threads: it must be quick, must not block and must not panic.
pub type Waiter = Box<dyn FnOnce(Result<Reply>) + Send>;

const INDEX_BITS: u32 = 24;
const GENERATION_BITS: u32 = 34;
const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;
const GENERATION_MASK: u64 = (1 << GENERATION_BITS) - 1;

#[derive(Debug)]
struct Slot<W> {
    generation: u64,
    deadline: Time,
    waiter: Option<W>,
}

/// Values under keys that are cheap to make, look up and forget.
///
/// * A key is never valid for two values: each slot counts its uses, and the key carries the count.
///   It takes 2^34 uses of one slot to repeat a key.
#[derive(Debug)]
pub struct Slab<W> {
    slots: Vec<Slot<W>>,
    free: Vec<u32>,
}

impl<W> Default for Slab<W> {
    fn default() -> Self {
        Slab { slots: Vec::new(), free: Vec::new() }
    }
}

impl<W> Slab<W> {
    /// How many values it holds.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps a value until `deadline`. Gives it back when 2^24 values are waiting already.
    pub fn insert(&mut self, waiter: W, deadline: Time) -> Result<u64, W> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() as u64 > INDEX_MASK => return Err(waiter),
            None => {
                self.slots.push(Slot { generation: 0, deadline, waiter: None });
                self.slots.len() as u32 - 1
            }
        };
        let slot = &mut self.slots[index as usize];
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        slot.deadline = deadline;
        slot.waiter = Some(waiter);
        Ok(slot.generation << INDEX_BITS | u64::from(index))
    }

    /// Takes a value out, if it is still there.
    pub fn take(&mut self, key: u64) -> Option<W> {
        let index = key & INDEX_MASK;
        let slot = self.slots.get_mut(index as usize)?;
        if slot.generation != (key >> INDEX_BITS) & GENERATION_MASK {
            return None;
        }
        let waiter = slot.waiter.take()?;
        self.free.push(index as u32);
        Some(waiter)
    }

    /// Takes out every value whose deadline has passed, or that `also` names.
    pub fn take_where(&mut self, now: Time, also: impl Fn(&W) -> bool, out: &mut Vec<W>) {
        if self.is_empty() {
            return;
        }
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let due = slot.waiter.as_ref().is_some_and(|w| slot.deadline <= now || also(w));
            if due && let Some(waiter) = slot.waiter.take() {
                self.free.push(index as u32);
                out.push(waiter);
            }
        }
    }
}

/// The waiting callers of a node, one desk (and lock) per store loop.
///
/// * Every waiter is called exactly once: by its reply, by its deadline, or by the stop.
/// * After [`close`](Self::close) nobody can wait any more.
#[derive(Default)]
pub struct Desks {
    desks: Vec<Mutex<Desk>>,
}

/// Who waits, and since when.
struct Seat {
    waiter: Waiter,
    since: Time,
}

#[derive(Default)]
struct Desk {
    slab: Slab<Seat>,
    closed: Option<Error>,
}

const LOOP_SHIFT: u32 = INDEX_BITS + GENERATION_BITS;

/// Where at its desk a token's caller sits: a small number, and nobody else's as long as he waits.
pub fn place_of(token: Token) -> usize {
    (token.0 & INDEX_MASK) as usize
}

/// Of so many writes answered together, the time of one is looked at.
const SAMPLE: u64 = 8;

/// Store loops that tokens have room for.
pub const LOOPS_MAX: usize = 1 << (64 - LOOP_SHIFT);

impl Desks {
    /// Desks for this many loops.
    pub fn new(loops: usize) -> Desks {
        Desks { desks: (0..loops).map(|_| Mutex::default()).collect() }
    }

    /// Seats waiters under one lock, in order; who finds no room is turned away at once. The tokens are
    /// those of the waiters that were seated, `None` where one was not.
    pub fn seat(
        &self,
        at: usize,
        since: Time,
        deadline: Time,
        waiters: impl IntoIterator<Item = Waiter>,
        mut seated: impl FnMut(Option<Token>),
    ) {
        let mut refused = Vec::new();
        {
            let mut desk = self.desks[at].lock();
            let closed = desk.closed.clone();
            for waiter in waiters {
                let place = match &closed {
                    Some(error) => Err((waiter, error.clone())),
                    None => desk
                        .slab
                        .insert(Seat { waiter, since }, deadline)
                        .map_err(|seat| (seat.waiter, Error::Busy { what: "waiting callers" })),
                };
                match place {
                    Ok(key) => seated(Some(Token((at as u64) << LOOP_SHIFT | key))),
                    Err(turned_away) => {
                        refused.push(turned_away);
                        seated(None);
                    }
                }
            }
        }
        for (waiter, error) in refused {
            waiter(Err(error));
        }
    }

    /// Answers, taking each lock once. Replies to whoever left are dropped. Tells of the writes that were answered,
    /// in a sample, since when they waited and for how many each stands.
    pub fn complete(&self, replies: Vec<(Token, Reply)>) -> Vec<(Time, u64)> {
        let (mut written, mut sample) = (0, Vec::new());
        let mut ready = Vec::with_capacity(replies.len());
        let mut replies = replies.into_iter().peekable();
        while let Some(at) = replies.peek().map(|(token, _)| token.0 >> LOOP_SHIFT) {
            let Some(desk) = self.desks.get(at as usize) else {
                replies.next();
                continue;
            };
            let mut desk = desk.lock();
            while let Some((token, reply)) =
                replies.next_if(|(token, _)| token.0 >> LOOP_SHIFT == at)
            {
                let Some(Seat { waiter, since }) = desk.slab.take(token.0) else { continue };
                if matches!(reply, Reply::Written(Ok(_))) {
                    match sample.last_mut() {
                        Some((_, times)) if written % SAMPLE > 0 => *times += 1,
                        _ => sample.push((since, 1)),
                    }
                    written += 1;
                }
                ready.push((waiter, reply));
            }
        }
        for (waiter, reply) in ready {
            waiter(Ok(reply));
        }
        sample
    }

    /// Answers some of them with an error.
    pub fn refuse(&self, tokens: impl IntoIterator<Item = Token>, error: &Error) {
        for token in tokens {
            let desk = self.desks.get((token.0 >> LOOP_SHIFT) as usize);
            let seat = desk.and_then(|desk| desk.lock().slab.take(token.0));
            if let Some(Seat { waiter, .. }) = seat {
                waiter(Err(error.clone()));
            }
        }
    }

    /// Sends home whoever's time is up.
    pub fn expire(&self, now: Time) {
        let mut late = Vec::new();
        for desk in &self.desks {
            desk.lock().slab.take_where(now, |_| false, &mut late);
        }
        for Seat { waiter, .. } in late {
            waiter(Err(Error::Timeout { after_ms: 0, what: "the region's answer" }));
        }
    }

    /// Sends everybody home, and whoever comes later.
    pub fn close(&self, error: &Error) {
        let mut all = Vec::new();
        for desk in &self.desks {
            let mut desk = desk.lock();
            desk.closed.get_or_insert_with(|| error.clone());
            desk.slab.take_where(Time(u64::MAX), |_| true, &mut all);
        }
        for Seat { waiter, .. } in all {
            waiter(Err(error.clone()));
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.desks.iter().map(|desk| desk.lock().slab.len()).sum()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Debug for Desks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desks").field("waiting", &self.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::sync::Arc;

    #[test]
    fn a_key_is_good_once() {
        let mut slab = Slab::default();
        let a = slab.insert("a", Time(5)).unwrap();
        assert_eq!(slab.take(a), Some("a"));
        let b = slab.insert("b", Time(5)).unwrap();
        assert_eq!((slab.take(a), slab.len()), (None, 1), "the slot was reused, the key was not");
        let mut out = Vec::new();
        slab.take_where(Time(4), |_| false, &mut out);
        assert!(out.is_empty());
        slab.take_where(Time(5), |_| false, &mut out);
        assert_eq!((out, slab.take(b), slab.is_empty()), (vec!["b"], None, true));
    }

    #[test]
    fn everybody_is_answered_exactly_once() {
        let desks = Desks::new(2);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let waiter = |name: &'static str| -> Waiter {
            let seen = Arc::clone(&seen);
            Box::new(move |reply| seen.lock().push((name, reply.is_ok())))
        };
        let mut tokens = Vec::new();
        desks.seat(0, Time(3), Time(10), [waiter("a"), waiter("b")], |t| tokens.extend(t));
        desks.seat(1, Time(4), Time(20), [waiter("c"), waiter("d")], |t| tokens.extend(t));
        let reply = || Reply::Transfer(Ok(()));
        desks.complete(vec![(tokens[2], reply()), (tokens[0], reply()), (tokens[0], reply())]);
        desks.expire(Time(10));
        desks.close(&Error::Stopped { reason: "test".into() });
        desks.seat(0, Time(5), Time(99), [waiter("late")], |t| assert!(t.is_none()));
        desks.complete(vec![(tokens[1], reply())]);
        let want = [("c", true), ("a", true), ("b", false), ("d", false), ("late", false)];
        assert_eq!(*seen.lock(), want);
    }

    #[test]
    fn the_sample_stands_for_every_write_that_was_answered() {
        let desks = Desks::new(1);
        let mut tokens = Vec::new();
        for since in 1..=20 {
            desks
                .seat(0, Time(since), Time(99), [Box::new(|_| ()) as Waiter], |t| tokens.extend(t));
        }
        let written = |token| (token, Reply::Written(Ok(Bytes::new())));
        let mut replies: Vec<_> = tokens.iter().copied().map(written).collect();
        replies[3].1 = Reply::Written(Err(Error::Busy { what: "test" }));
        replies[4].1 = Reply::Transfer(Ok(()));
        replies.push(written(tokens[7]));
        assert_eq!(desks.complete(replies), [(Time(1), 8), (Time(11), 8), (Time(19), 2)]);
    }
}
