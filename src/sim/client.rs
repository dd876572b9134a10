//! Simulated clients: closed loops over a few keys, everything they see goes into a history.
//!
//! A client asks the node it believes in, follows hints, and gives up after a while: what it gave up on may
//! still happen. Values are numbers that no two writes share, so a lost, invented or resurrected one shows.

use super::linear::{Answer, History, Op, OpId, Value};
use super::rng::Rng;
use crate::codec::command::{BatchBuilder, Swap};
use crate::error::Result;
use crate::region::read::ReadLevel;
use crate::types::{KeyRange, Region, StoreId, Time};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;

/// What one client asks at once; all keys lie in one region.
#[derive(Clone, Debug)]
pub enum Request {
    /// A batch of writes: what it means for each key, in order.
    Write {
        /// The command.
        command: Bytes,
        /// One operation for each key.
        ops: Vec<(Bytes, Op)>,
    },
    /// A read.
    Read {
        /// The key.
        key: Bytes,
        /// How fresh.
        level: ReadLevel,
    },
}

impl Request {
    /// A key that decides the region.
    pub fn first_key(&self) -> &Bytes {
        match self {
            Request::Write { ops, .. } => &ops[0].0,
            Request::Read { key, .. } => key,
        }
    }
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Request::Write { ops, .. } => write!(f, "{ops:?}"),
            Request::Read { key, level } => write!(f, "read {key:?} {level:?}"),
        }
    }
}

/// A request under way.
#[derive(Debug)]
pub struct Asked {
    /// What was asked.
    pub request: Request,
    /// Its operations in the history.
    pub ids: Vec<OpId>,
    /// When it is given up.
    pub deadline: Time,
    /// Whether a node may be working on it.
    pub flight: Flight,
    /// The region that it was last sent to, as the client knew it then.
    pub routed: Option<Region>,
}

/// Whether a request may have an effect yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flight {
    /// Nobody has it: giving it up is certain.
    Waiting,
    /// A node has it.
    Sent,
}

/// One client.
#[derive(Debug)]
pub struct Client {
    id: u64,
    /// The node it asks.
    pub node: StoreId,
    /// What it waits for.
    pub asked: Option<Asked>,
    /// Grows with each attempt: answers to older ones mean nothing.
    pub attempt: u64,
    next_value: u64,
    /// The value it last read or wrote, by key: what its compare-and-swaps expect.
    seen: BTreeMap<Bytes, Value>,
}

/// The workload's shape.
#[derive(Clone, Debug)]
pub struct Keys {
    /// By region, in order.
    pub by_region: Vec<Vec<Bytes>>,
}

impl Keys {
    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Bytes> {
        self.by_region.iter().flatten()
    }
}

fn bytes_of(value: u64) -> [u8; 8] {
    value.to_be_bytes()
}

/// A stored value as the history knows it.
pub fn value_of(bytes: Option<&[u8]>) -> Value {
    let bytes = bytes?;
    Some(bytes.get(..8).and_then(|b| b.try_into().ok()).map_or(u64::MAX, u64::from_be_bytes))
}

impl Client {
    /// A client that starts at a node.
    pub fn new(id: u64, node: StoreId) -> Client {
        Client { id, node, asked: None, attempt: 0, next_value: 0, seen: BTreeMap::new() }
    }

    fn value(&mut self) -> u64 {
        self.next_value += 1;
        self.id << 32 | self.next_value
    }

    /// Draws the next request and notes it in the history. Nobody writes to the region at `hushed`.
    pub fn ask(
        &mut self,
        now: Time,
        keys: &Keys,
        hushed: Option<usize>,
        rng: &mut Rng,
        history: &mut History,
    ) -> Request {
        let request = self.draw(keys, hushed, rng);
        let mut ids = Vec::new();
        match &request {
            Request::Write { ops, .. } => {
                for (key, op) in ops {
                    ids.push(history.call(self.id, now.0, key, *op));
                }
            }
            Request::Read { key, level } => {
                // A bounded-stale read may see the past: its call counts that much earlier. (The bound is
                // kept by the node's clock, which may be slow by the drift.)
                let since = match level {
                    ReadLevel::Stale { max } => {
                        now.0.saturating_sub(max.as_nanos() as u64 * 105 / 100)
                    }
                    _ => now.0,
                };
                ids.push(history.call(self.id, since, key, Op::Get));
            }
        }
        let patience = Duration::from_millis(rng.range("client.patience", 500..4000));
        self.asked = Some(Asked {
            request: request.clone(),
            ids,
            deadline: now.after(patience),
            flight: Flight::Waiting,
            routed: None,
        });
        request
    }

    fn draw(&mut self, keys: &Keys, hushed: Option<usize>, rng: &mut Rng) -> Request {
        let region = rng.range("client.region", 0..keys.by_region.len() as u64) as usize;
        let in_region = &keys.by_region[region];
        let key = in_region[rng.range("client.key", 0..in_region.len() as u64) as usize].clone();
        match rng.range("client.kind", 0..100) {
            _ if hushed == Some(region) => Request::Read { key, level: draw_level(rng) },
            0..40 => Request::Read { key, level: draw_level(rng) },
            40..70 => self.puts(vec![key]),
            70..78 => self.puts(in_region.clone()),
            78..92 => self.swap(key),
            92..98 => self.write(vec![(key, Op::Delete)]),
            _ => self.clear(in_region),
        }
    }

    fn puts(&mut self, keys: Vec<Bytes>) -> Request {
        let ops = keys.into_iter().map(|key| (key, Op::Put(self.value()))).collect();
        self.write(ops)
    }

    fn swap(&mut self, key: Bytes) -> Request {
        let expect = self.seen.get(&key).copied().flatten();
        let new = Some(self.value());
        self.write(vec![(key, Op::Cas { expect, new })])
    }

    /// A range delete over all keys of a region.
    fn clear(&mut self, keys: &[Bytes]) -> Request {
        let mut batch = BatchBuilder::new();
        let (first, last) = (&keys[0], &keys[keys.len() - 1]);
        let end: Bytes = [last, &[0][..]].concat().into();
        let added = batch.delete_range(&KeyRange { start: first.clone(), end });
        debug_assert!(added.is_ok());
        let ops = keys.iter().map(|key| (key.clone(), Op::Delete)).collect();
        Request::Write { command: batch.finish(), ops }
    }

    fn write(&mut self, ops: Vec<(Bytes, Op)>) -> Request {
        let mut batch = BatchBuilder::new();
        for (key, op) in &ops {
            let added = match op {
                Op::Put(value) => batch.put(key, &bytes_of(*value)),
                Op::Delete => batch.delete(key),
                Op::Cas { expect, new } => {
                    let (expect, new) = (expect.map(bytes_of), new.map(bytes_of));
                    let (expect, new) = (expect.as_ref(), new.as_ref());
                    batch.compare_and_swap(key, expect.map(|v| &v[..]), new.map(|v| &v[..]))
                }
                Op::Get => Ok(()),
            };
            debug_assert!(added.is_ok());
        }
        Request::Write { command: batch.finish(), ops }
    }

    /// The write was answered: it took effect.
    pub fn wrote(&mut self, now: Time, swaps: Result<Vec<Swap>>, history: &mut History) {
        let Some(Asked { request: Request::Write { ops, .. }, ids, .. }) = self.asked.take() else {
            return;
        };
        let mut swaps = swaps.unwrap_or_default().into_iter();
        for ((key, op), id) in ops.into_iter().zip(ids) {
            let answer = match op {
                Op::Cas { new, .. } => match swaps.next() {
                    Some(Swap { swapped: true, .. }) => {
                        self.seen.insert(key, new);
                        Answer::Swapped
                    }
                    Some(Swap { previous, .. }) => {
                        self.seen.insert(key, value_of(previous.as_deref()));
                        Answer::Refused
                    }
                    None => continue,
                },
                _ => Answer::Done,
            };
            history.returned(id, now.0, answer);
        }
    }

    /// The read was answered.
    pub fn has_read(&mut self, now: Time, value: Value, history: &mut History) {
        let Some(Asked { request: Request::Read { key, .. }, ids, .. }) = self.asked.take() else {
            return;
        };
        self.seen.insert(key, value);
        for id in ids {
            history.returned(id, now.0, Answer::Read(value));
        }
    }

    /// The request certainly had no effect and is not tried again.
    pub fn failed(&mut self, history: &mut History) {
        for id in self.asked.take().into_iter().flat_map(|asked| asked.ids) {
            history.failed(id);
        }
    }

    /// The client's patience is at its end.
    pub fn expired(&mut self, history: &mut History) {
        match self.asked.as_ref().map(|asked| asked.flight) {
            Some(Flight::Sent) => self.unknown(history),
            _ => self.failed(history),
        }
    }

    /// Nobody knows whether the request had or will have an effect.
    pub fn unknown(&mut self, history: &mut History) {
        match &self.asked {
            Some(Asked { request: Request::Read { .. }, .. }) => self.failed(history),
            _ => self.asked = None,
        }
    }
}

fn draw_level(rng: &mut Rng) -> ReadLevel {
    match rng.range("client.level", 0..4) {
        0 => ReadLevel::Stale { max: Duration::from_millis(rng.range("client.stale", 50..2000)) },
        1 | 2 => ReadLevel::Lease,
        _ => ReadLevel::Linearizable,
    }
}
