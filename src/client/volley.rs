//! Writes of a remote client that leave together: by node, without a task, a timer or a lock of its own for each.
//!
//! What comes back with an error that may be repeated, or cannot leave at once (no connection, too much in flight), goes on as
//! a request of its own does.

use super::Done;
use super::budget::Held;
use super::remote::{GRACE, Shared};
use super::request::{self, Body, Response, decode_response};
use crate::error::{Error, Result};
use crate::transport::remote::{Connection, Told, not_sent};
use crate::types::StoreId;
use bytes::Bytes;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// What a request says before the batch takes so many bytes at most.
const HEAD: usize = 16;

/// One write on its way.
struct Write {
    command: Bytes,
    /// Who leads its region, as far as is known.
    leader: Option<StoreId>,
    done: Done<Response>,
    held: Held,
}

/// Where a store answers; each is looked for once.
fn slot_of(
    leader: Option<StoreId>,
    known: &mut Vec<(StoreId, Option<usize>)>,
    find: impl FnOnce(StoreId) -> Option<usize>,
) -> Option<usize> {
    let store = leader?;
    if let Some((_, slot)) = known.iter().find(|(known, _)| *known == store) {
        return *slot;
    }
    let slot = find(store);
    known.push((store, slot));
    slot
}

/// The requests, in one piece of memory: they leave together.
fn encode(writes: &[Write], timeout: Duration) -> Vec<Bytes> {
    let room = writes.iter().map(|one| one.command.len() + HEAD).sum();
    let mut bytes = Vec::with_capacity(room);
    let mut from = 0;
    let pieces: Vec<Range<usize>> = writes
        .iter()
        .map(|one| {
            request::put_write(&one.command, timeout, &mut bytes);
            std::mem::replace(&mut from, bytes.len())..bytes.len()
        })
        .collect();
    let bytes = Bytes::from(bytes);
    pieces.into_iter().map(|piece| bytes.slice(piece)).collect()
}

impl Shared {
    pub(super) fn write_many(
        self: &Arc<Self>,
        batches: Vec<(Bytes, Done<Response>)>,
        timeout: Duration,
    ) {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let commands = batches.iter().map(|(command, _)| command);
        let (leaders, ask) = self.hints.of_writes(commands, turn, Instant::now());
        self.locate(ask);
        let anyone = self.choose(turn);
        let mut at = Vec::new();
        let mut refused = Vec::new();
        let mut volleys: Vec<Vec<Write>> = Vec::new();
        volleys.resize_with(self.slots.len(), Vec::new);
        let sizes: Vec<usize> = batches.iter().map(|(command, _)| command.len()).collect();
        let room = self.budget.take_each(&sizes);
        for (((command, done), leader), held) in batches.into_iter().zip(leaders).zip(room) {
            let slot = slot_of(leader, &mut at, |store| self.slot_of(store)).unwrap_or(anyone);
            match held {
                Ok(held) => volleys[slot].push(Write { command, leader, done, held }),
                Err(error) => refused.push((done, error)),
            }
        }
        if !refused.is_empty() {
            self.refuse(refused);
        }
        for (slot, writes) in self.slots.iter().zip(volleys).filter(|(_, some)| !some.is_empty()) {
            let connection = slot.dialled.lock().clone();
            match connection {
                Some(connection) => self.volley(&connection, writes, timeout),
                None => writes.into_iter().for_each(|one| self.alone(one, timeout, None)),
            }
        }
    }

    fn volley(self: &Arc<Self>, connection: &Connection, writes: Vec<Write>, timeout: Duration) {
        let bodies = encode(&writes, timeout);
        let deadline = Instant::now() + timeout;
        // Counted by itself, as the room for them is.
        let shared = Arc::new(Arc::downgrade(self));
        let told = |one: Write| -> Told {
            let shared: Arc<Weak<Shared>> = Arc::clone(&shared);
            Box::new(move |answer: Result<Bytes>| {
                let error = match answer.and_then(decode_response) {
                    Ok(response) => {
                        drop(one.held);
                        return one.done.call(Ok(response));
                    }
                    Err(error) => error,
                };
                match shared.upgrade() {
                    Some(shared) => {
                        let left = deadline.saturating_duration_since(Instant::now());
                        shared.alone(one, left, Some(error));
                    }
                    None => one.done.call(Err(error)),
                }
            })
        };
        let calls = bodies.into_iter().zip(writes.into_iter().map(told)).collect();
        for (_, told) in connection.send(calls, timeout + GRACE) {
            told(Err(not_sent()));
        }
    }

    /// One write by itself.
    fn alone(self: &Arc<Self>, one: Write, timeout: Duration, tried: Option<Error>) {
        let Write { command, leader, done, held } = one;
        let shared = Arc::clone(self);
        self.handle.spawn(async move {
            let body = Body::Write { command };
            let answer = shared.ask(body, leader, timeout, tried).await;
            drop(held);
            done.call(answer);
        });
    }

    /// Tells callers that there was no room, on a thread of ours as every answer.
    pub(super) fn refuse(&self, refused: Vec<(Done<Response>, Error)>) {
        self.handle.spawn(async move {
            refused.into_iter().for_each(|(done, error)| done.call(Err(error)));
        });
    }
}
