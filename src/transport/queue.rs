//! What waits for one connection: two lanes of messages, calls between them, one byte budget.

use super::frame::Kind;
use super::payload::{write_call, write_envelopes};
use super::{Envelope, Lane};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::VecDeque;
use tokio::sync::Notify;

/// The queue before one connection.
///
/// * Never holds more than its budget (control messages may use an eighth more, so that a wall of
///   appends does not keep heartbeats out).
/// * Closed, it takes nothing and holds nothing.
/// * Within a lane order is kept; control leaves before calls, calls before bulk.
#[derive(Debug)]
pub(crate) struct Outbox {
    inner: Mutex<Inner>,
    budget: usize,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    control: Queued,
    calls: VecDeque<(Kind, u64, Bytes)>,
    bulk: Queued,
    bytes: usize,
    closed: Closed,
}

/// Messages of one lane, as they were handed over: envelopes are large, and are not moved one by one.
#[derive(Debug, Default)]
struct Queued {
    /// With what they weigh.
    parts: VecDeque<(usize, VecDeque<Envelope>)>,
    envelopes: usize,
}

impl Queued {
    fn push(&mut self, weight: usize, part: Vec<Envelope>) {
        self.envelopes += part.len();
        self.parts.push_back((weight, part.into()));
    }

    /// Takes the first ones until they weigh `room` or somewhat more; returns what they weigh.
    fn take(&mut self, room: usize, out: &mut Vec<VecDeque<Envelope>>) -> usize {
        let mut taken = 0;
        while taken < room {
            let Some((weight, mut part)) = self.parts.pop_front() else { break };
            let mut now = weight;
            if taken + weight > room {
                let count;
                (count, now) = first(part.iter(), room - taken);
                if count < part.len() {
                    let some = part.drain(..count).collect();
                    let rest = std::mem::replace(&mut part, some);
                    self.parts.push_front((weight - now, rest));
                }
            }
            taken += now;
            self.envelopes -= part.len();
            out.push(part);
        }
        taken
    }
}

/// How many of the first ones it takes to weigh `room` or more, and what they weigh.
fn first<'a>(part: impl Iterator<Item = &'a Envelope>, room: usize) -> (usize, usize) {
    let mut weight = 0;
    let count = part.take_while(|envelope| {
        let more = weight < room;
        weight += if more { envelope.weight() } else { 0 };
        more
    });
    (count.count(), weight)
}

#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
enum Closed {
    #[default]
    No,
    Yes,
}

/// What was thrown away.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Lost {
    pub(crate) envelopes: u64,
    pub(crate) calls: u64,
}

/// What a writer took, recycled between rounds.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    control: Vec<VecDeque<Envelope>>,
    calls: Vec<(Kind, u64, Bytes)>,
    bulk: Vec<VecDeque<Envelope>>,
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.control.is_empty() && self.calls.is_empty() && self.bulk.is_empty()
    }

    pub(crate) fn envelopes(&self) -> u64 {
        self.control.iter().chain(&self.bulk).map(|part| part.len() as u64).sum()
    }

    /// Appends frames of all that was taken; messages beyond `max` are left out and counted.
    pub(crate) fn encode(&self, max: usize, out: &mut Vec<u8>) -> usize {
        let mut left_out = write_envelopes(self.control.iter().flatten(), max, out);
        for (kind, id, body) in &self.calls {
            write_call(*kind, *id, body, out);
        }
        left_out += write_envelopes(self.bulk.iter().flatten(), max, out);
        left_out
    }

    fn clear(&mut self) {
        self.control.clear();
        self.calls.clear();
        self.bulk.clear();
    }
}

fn call_len(body: &Bytes) -> usize {
    body.len() + 64
}

impl Outbox {
    pub(crate) fn new(budget: usize) -> Outbox {
        Outbox { inner: Mutex::new(Inner::default()), budget, wake: Notify::new() }
    }

    /// Queues what fits, in order; returns how many did not, and whether the queue was open.
    pub(crate) fn push(&self, lane: Lane, mut envelopes: Vec<Envelope>) -> Pushed {
        let all = envelopes.len();
        let limit = match lane {
            Lane::Control => self.budget + self.budget / 8,
            Lane::Bulk => self.budget,
        };
        let mut weight: usize = envelopes.iter().map(Envelope::weight).sum();
        let mut inner = self.inner.lock();
        if inner.closed == Closed::Yes {
            return Pushed { dropped: all, full: false };
        }
        let room = limit.saturating_sub(inner.bytes);
        if weight > room {
            let mut fits;
            (fits, weight) = first(envelopes.iter(), room);
            if weight > room {
                fits -= 1;
                weight -= envelopes[fits].weight();
            }
            envelopes.truncate(fits);
        }
        let taken = envelopes.len();
        if taken > 0 {
            inner.bytes += weight;
            match lane {
                Lane::Control => inner.control.push(weight, envelopes),
                Lane::Bulk => inner.bulk.push(weight, envelopes),
            }
            drop(inner);
            self.wake.notify_one();
        }
        Pushed { dropped: all - taken, full: taken < all }
    }

    /// Queues a request or an answer; `false` if it does not fit or the queue is closed.
    #[must_use]
    pub(crate) fn push_call(&self, kind: Kind, id: u64, body: Bytes) -> bool {
        let mut inner = self.inner.lock();
        let len = call_len(&body);
        if inner.closed == Closed::Yes || inner.bytes + len > self.budget {
            return false;
        }
        inner.bytes += len;
        inner.calls.push_back((kind, id, body));
        drop(inner);
        self.wake.notify_one();
        true
    }

    /// Queues many requests, or gives them back: all that do not fit together, or whatever comes to a closed queue.
    pub(crate) fn push_calls(
        &self,
        kind: Kind,
        calls: Vec<(u64, Bytes)>,
    ) -> Result<(), Vec<(u64, Bytes)>> {
        let len: usize = calls.iter().map(|(_, body)| call_len(body)).sum();
        let mut inner = self.inner.lock();
        if inner.closed == Closed::Yes || inner.bytes + len > self.budget {
            return Err(calls);
        }
        inner.bytes += len;
        inner.calls.extend(calls.into_iter().map(|(id, body)| (kind, id, body)));
        drop(inner);
        self.wake.notify_one();
        Ok(())
    }

    /// Takes all control messages and calls, and bulk up to `limit` bytes: what comes while that is
    /// being written goes before the rest of the bulk. `batch` is emptied first.
    pub(crate) fn take(&self, limit: usize, batch: &mut Batch) {
        batch.clear();
        let mut inner = self.inner.lock();
        let mut bytes = inner.control.take(limit, &mut batch.control);
        while bytes < limit {
            let Some(call) = inner.calls.pop_front() else { break };
            bytes += call_len(&call.2);
            batch.calls.push(call);
        }
        bytes += inner.bulk.take(limit.saturating_sub(bytes), &mut batch.bulk);
        inner.bytes = inner.bytes.saturating_sub(bytes);
    }

    /// Until something may have been queued since the last [`take`](Self::take).
    pub(crate) async fn ready(&self) {
        self.wake.notified().await;
    }

    /// Takes in again.
    pub(crate) fn open(&self) {
        self.inner.lock().closed = Closed::No;
    }

    /// Throws everything away and takes nothing more.
    pub(crate) fn close(&self) -> Lost {
        let mut inner = self.inner.lock();
        let lost = Lost {
            envelopes: (inner.control.envelopes + inner.bulk.envelopes) as u64,
            calls: inner.calls.len() as u64,
        };
        *inner = Inner { closed: Closed::Yes, ..Inner::default() };
        lost
    }

    /// Bytes waiting.
    pub(crate) fn bytes(&self) -> usize {
        self.inner.lock().bytes
    }
}

/// What became of a push.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pushed {
    /// Messages that were not queued.
    pub(crate) dropped: usize,
    /// Whether that was for want of room (and not because the queue is closed).
    pub(crate) full: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::frame::{Decoder, HEAD};
    use crate::transport::payload::read_envelopes;
    use crate::types::{PeerId, RegionId, StoreId};
    use ::raft::eraftpb::{Entry, Message, MessageType};
    use bytes::BytesMut;

    fn envelope(kind: MessageType, data: usize) -> Envelope {
        let mut message = Message { msg_type: kind, to: 2, from: 1, term: 6, ..Default::default() };
        if data > 0 {
            let entry = Entry { data: vec![7; data].into(), ..Default::default() };
            message.entries = vec![entry].into();
        }
        let (from, to) = (PeerId(1), PeerId(2));
        Envelope { region: RegionId(1), from, to, from_store: StoreId(1), message, note: None }
    }

    #[test]
    fn a_vote_behind_ten_megabytes_of_appends_leaves_first() {
        let outbox = Outbox::new(16 << 20);
        for _ in 0..10 {
            let appends = (0..64).map(|_| envelope(MessageType::MsgAppend, 16 << 10)).collect();
            assert_eq!(outbox.push(Lane::Bulk, appends).dropped, 0);
        }
        let mut batch = Batch::default();
        outbox.take(256 << 10, &mut batch);
        let vote = envelope(MessageType::MsgRequestVote, 0);
        outbox.push(Lane::Control, vec![vote.clone()]);
        outbox.take(256 << 10, &mut batch);
        let mut out = Vec::new();
        batch.encode(64 << 20, &mut out);
        assert!(out.len() < (256 << 10) + (17 << 10) + HEAD, "one write is bounded: {}", out.len());
        let mut wire = BytesMut::from(&out[..]);
        let first = Decoder::new(64 << 20).decode(&mut wire).unwrap().unwrap();
        let mut got = Vec::new();
        read_envelopes(first.payload, StoreId(1), &mut got).unwrap();
        assert_eq!(got, [vote]);
    }

    #[test]
    fn parts_are_cut_where_a_write_is_full_and_keep_their_order() {
        let outbox = Outbox::new(1 << 20);
        let mut numbers = 0..;
        let mut part = |count: u64| {
            let one = |number| {
                let mut envelope = envelope(MessageType::MsgAppend, 1000);
                envelope.message.index = number;
                envelope
            };
            numbers.by_ref().take(count as usize).map(one).collect::<Vec<_>>()
        };
        for count in [3, 1, 10, 6] {
            assert_eq!(outbox.push(Lane::Bulk, part(count)).dropped, 0);
        }
        let mut batch = Batch::default();
        let mut seen = Vec::new();
        let mut sizes = Vec::new();
        let four = 3 * envelope(MessageType::MsgAppend, 1000).weight() + 1;
        while {
            outbox.take(four, &mut batch);
            !batch.is_empty()
        } {
            sizes.push(batch.envelopes());
            seen.extend(batch.bulk.iter().flatten().map(|envelope| envelope.message.index));
        }
        assert!(seen.into_iter().eq(0..20), "all, in order");
        assert_eq!(sizes, [4; 5], "as many as it takes to fill a write");
        assert_eq!(outbox.bytes(), 0);
        outbox.push(Lane::Bulk, part(7));
        outbox.take(1, &mut batch);
        assert_eq!((batch.envelopes(), outbox.close().envelopes), (1, 6));
    }

    #[test]
    fn the_budget_holds_and_control_has_a_reserve() {
        let outbox = Outbox::new(100 << 10);
        let appends = (0..100).map(|_| envelope(MessageType::MsgAppend, 10 << 10)).collect();
        let pushed = outbox.push(Lane::Bulk, appends);
        assert!(pushed.full && pushed.dropped > 80);
        assert!(outbox.bytes() <= 100 << 10);
        let beats = (0..10_000).map(|_| envelope(MessageType::MsgHeartbeat, 0)).collect();
        let pushed = outbox.push(Lane::Control, beats);
        assert!(pushed.dropped < 10_000 && outbox.bytes() <= 113 << 10);
        assert!(!outbox.push_call(Kind::Request, 1, Bytes::from_static(b"x")));
        let lost = outbox.close();
        assert!(lost.envelopes > 9 && lost.calls == 0 && outbox.bytes() == 0);
        assert!(!outbox.push_call(Kind::Request, 1, Bytes::new()));
        outbox.open();
        assert!(outbox.push_call(Kind::Request, 1, Bytes::new()));
    }
}
