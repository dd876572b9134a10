//! Who waits for an answer: callbacks by token, with deadlines.

use crate::error::{Error, Result};
use crate::region::effects::{Reply, Token};
use crate::types::Time;
use crate::types::slab::{self, Slab};
use parking_lot::Mutex;

/// Called once with the answer, or with an error when there will be none. It runs on one of the
/// node's threads: it must be quick, must not block and must not panic.
pub type Waiter = Box<dyn FnOnce(Result<Reply>) + Send>;

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

const LOOP_SHIFT: u32 = slab::KEY_BITS;

/// Where at its desk a token's caller sits: a small number, and nobody else's as long as he waits.
pub fn place_of(token: Token) -> usize {
    slab::place_of(token.0)
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
