//! Requests and responses, and their bytes.
//!
//! | request | bytes |
//! |---|---|
//! | head | version `u8` = 1, kind `u8`, time left in ms, region id (0 = unrouted), epoch version |
//! | 1 write | the batch, to the end |
//! | 2 execute | key, then the command to the end |
//! | 3 read | level, count, keys |
//! | 4 scan | level, direction `u8`, start, end, items at most, bytes at most |
//! | 5 status | region (0 = all) |
//! | 6 transfer | region, store (0 = any) |
//! | 7 admin | region, then the command (see [`admin`](crate::codec::admin)) to the end |
//! | 8 regions | start key, how many at most |
//! | 9 directory | see [`ask`](super::ask) |
//!
//! A level is `0` linearizable, `1` lease, `2` stale and then its bound in ms. A response is version
//! `u8` = 1, kind `u8` (0 = error, see [`fault`]), then the result: 1 written (to the end), 2
//! values (count, each `0` or `1` and bytes), 3 page (count, keys and values, `0` or `1` and the range that is
//! left), 4 status (see `standing.rs`), 5 done, 6 regions (count, each its length and bytes), 7 ids (the
//! first), 8 [directory](super::ask). Numbers and lengths are varints unless said otherwise.

use super::ask::{Answer, Ask};
use super::fault;
use crate::codec::admin::Admin;
use crate::codec::command::{BATCH_BYTES_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::codec::{Reader, Writer, region};
use crate::config::MESSAGE_BYTES_MAX;
use crate::driver::{SnapshotStats, StageStats};
use crate::error::{Error, Result};
use crate::kv::Direction;
use crate::store::{ReadLevel, RegionStatus};
use crate::types::{KeyRange, LogPosition, Region, RegionId, StoreId};
use bytes::Bytes;
use std::time::Duration;

const VERSION: u8 = 1;
/// The kind of an answer to a write.
const WRITTEN: u8 = 1;
const WRITE: u8 = 1;
/// Keys of one read.
pub const KEYS_MAX: usize = 1 << 16;
/// Bytes of a scan's bound: one more than of a key, for the successor of the longest key is a bound.
pub const BOUND_BYTES_MAX: usize = KEY_BYTES_MAX + 1;
/// Items of one page.
pub const PAGE_ITEMS_MAX: usize = 1 << 16;
/// Regions of one answer.
pub const REGIONS_MAX: usize = 1 << 8;
/// Bytes of one page, about: one item more may stand in it.
pub const PAGE_BYTES_MAX: usize = 8 << 20;

/// Bytes of the values of one read: the largest value fits.
pub const VALUES_BYTES_MAX: usize = VALUE_BYTES_MAX + (1 << 20);

/// The error for a read of more than [`VALUES_BYTES_MAX`].
pub fn too_large() -> Error {
    Error::InvalidArgument(format!(
        "answer larger than {VALUES_BYTES_MAX} bytes: ask for fewer keys"
    ))
}

/// What is said in one piece fits the smallest queue that a configuration may ask for: a page (lengths
/// take at most eight bytes an item), the values of a read, and a routed command.
const _: () = assert!(VALUES_BYTES_MAX + KEYS_MAX * 8 + 1024 <= MESSAGE_BYTES_MAX);
const _: () = assert!(
    PAGE_BYTES_MAX + PAGE_ITEMS_MAX * 8 + KEY_BYTES_MAX + VALUE_BYTES_MAX + 1024
        <= MESSAGE_BYTES_MAX
        && BATCH_BYTES_MAX + KEY_BYTES_MAX + 1024 <= MESSAGE_BYTES_MAX
);

/// To which region a request was routed, and by which version of its shape.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// The region.
    pub region: RegionId,
    /// Its epoch version.
    pub version: u64,
}

/// What is asked.
#[derive(Clone, PartialEq, Debug)]
pub enum Body {
    /// A batch of the built-in state machine.
    Write {
        /// The batch.
        command: Bytes,
    },
    /// A command of the embedder's state machine, for the region that owns `key`.
    Execute {
        /// Decides the region.
        key: Bytes,
        /// The command.
        command: Bytes,
    },
    /// The values of some keys.
    Read {
        /// How fresh.
        level: ReadLevel,
        /// The keys.
        keys: Vec<Bytes>,
    },
    /// A page of a range.
    Scan {
        /// How fresh.
        level: ReadLevel,
        /// Which way.
        direction: Direction,
        /// Of which keys.
        range: KeyRange,
        /// Items at most.
        items: usize,
        /// Bytes at most, about.
        bytes: usize,
    },
    /// Where the node's replicas stand.
    Status {
        /// Only that of this region; `None`: all.
        region: Option<RegionId>,
    },
    /// Hand leadership of a region over.
    Transfer {
        /// The region.
        region: RegionId,
        /// Where to; `None`: to the most advanced follower.
        to: Option<StoreId>,
    },
    /// An administrative command for a region's leader.
    Admin {
        /// The region.
        region: RegionId,
        /// What to do.
        admin: Admin,
    },
    /// Which regions there are, as far as the node knows.
    Regions {
        /// From the one that owns this key on.
        start: Bytes,
        /// How many, at most.
        count: usize,
    },
    /// Stores, and who leads what.
    Directory(Ask),
}

/// A request as it crosses the network.
#[derive(Clone, PartialEq, Debug)]
pub struct Request {
    /// How long the asker waits.
    pub timeout: Duration,
    /// Where it was routed to; `None`: route it.
    pub route: Option<Route>,
    /// What is asked.
    pub body: Body,
}

/// Where one node stands.
#[derive(Clone, PartialEq, Debug)]
pub struct NodeStatus {
    /// The node.
    pub store: StoreId,
    /// Its replicas, by region.
    pub regions: Vec<RegionStatus>,
    /// What it did since it was opened.
    pub work: NodeWork,
    /// Where the writes of the regions that it leads waited since then.
    pub stages: StageStats,
}

/// What a node did since it was opened: two looks give what happened in between. A restart begins at
/// zero again.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct NodeWork {
    /// Entries written to its log.
    pub log_entries: u64,
    /// Syncs of its log files.
    pub log_syncs: u64,
    /// Bytes written to its log, padding included.
    pub log_bytes: u64,
    /// Flushes of its state store.
    pub flushes: u64,
    /// Bytes of its tables now.
    pub table_bytes: u64,
    /// Its snapshots.
    pub snapshots: SnapshotStats,
}

/// An answer.
#[derive(Clone, PartialEq, Debug)]
pub enum Response {
    /// What the state machine said.
    Written(Bytes),
    /// In the order of the keys.
    Values(Vec<Option<Bytes>>),
    /// Items in the scan's direction, and the range that is left.
    Page {
        /// Keys and values.
        items: Vec<(Bytes, Bytes)>,
        /// Where the next page lies.
        rest: Option<KeyRange>,
    },
    /// Where the node stands.
    Status(NodeStatus),
    /// It was done.
    Done,
    /// Regions, by range.
    Regions(Vec<Region>),
    /// Fresh ids, from this one on.
    Ids(u64),
    /// Of stores, and who leads what.
    Directory(Answer),
}

fn write_level(level: &ReadLevel, out: &mut Writer<'_>) {
    match level {
        ReadLevel::Linearizable => out.u8(0),
        ReadLevel::Lease => out.u8(1),
        ReadLevel::Stale { max } => {
            out.u8(2);
            out.varint(max.as_millis() as u64);
        }
    }
}

fn read_level(from: &mut Reader) -> Result<ReadLevel> {
    Ok(match from.u8()? {
        0 => ReadLevel::Linearizable,
        1 => ReadLevel::Lease,
        2 => ReadLevel::Stale { max: Duration::from_millis(from.varint()?) },
        level => return Err(from.malformed(format_args!("unknown read level {level}"))),
    })
}

fn write_range(range: &KeyRange, out: &mut Writer<'_>) {
    out.bytes(&range.start);
    out.bytes(&range.end);
}

fn read_range(from: &mut Reader) -> Result<KeyRange> {
    let start = from.bytes(BOUND_BYTES_MAX)?;
    Ok(KeyRange { start, end: from.bytes(BOUND_BYTES_MAX)? })
}

fn write_head(kind: u8, timeout: Duration, route: Option<Route>, out: &mut Writer<'_>) {
    out.u8(VERSION);
    out.u8(kind);
    out.varint(timeout.as_millis() as u64);
    out.varint(route.map_or(0, |route| route.region.0));
    out.varint(route.map_or(0, |route| route.version));
}

/// Appends the bytes of a write that goes to any node.
pub(super) fn put_write(command: &[u8], timeout: Duration, bytes: &mut Vec<u8>) {
    let mut out = Writer::new(bytes);
    write_head(WRITE, timeout, None, &mut out);
    out.raw(command);
}

impl Request {
    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(64 + self.body.weight());
        let mut out = Writer::new(&mut bytes);
        let kind = match &self.body {
            Body::Write { .. } => WRITE,
            Body::Execute { .. } => 2,
            Body::Read { .. } => 3,
            Body::Scan { .. } => 4,
            Body::Status { .. } => 5,
            Body::Transfer { .. } => 6,
            Body::Admin { .. } => 7,
            Body::Regions { .. } => 8,
            Body::Directory(_) => 9,
        };
        write_head(kind, self.timeout, self.route, &mut out);
        match &self.body {
            Body::Write { command } => out.raw(command),
            Body::Execute { key, command } => {
                out.bytes(key);
                out.raw(command);
            }
            Body::Read { level, keys } => {
                write_level(level, &mut out);
                out.varint(keys.len() as u64);
                for key in keys {
                    out.bytes(key);
                }
            }
            Body::Scan { level, direction, range, items, bytes } => {
                write_level(level, &mut out);
                out.u8(u8::from(*direction == Direction::Reverse));
                write_range(range, &mut out);
                out.varint(*items as u64);
                out.varint(*bytes as u64);
            }
            Body::Status { region } => out.varint(region.map_or(0, |region| region.0)),
            Body::Transfer { region, to } => {
                out.varint(region.0);
                out.varint(to.map_or(0, |store| store.0));
            }
            Body::Admin { region, admin } => {
                out.varint(region.0);
                out.raw(&admin.encode());
            }
            Body::Regions { start, count } => {
                out.bytes(start);
                out.varint(*count as u64);
            }
            Body::Directory(ask) => ask.encode(&mut out),
        }
        Bytes::from(bytes)
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub fn decode(bytes: Bytes) -> Result<Request> {
        let mut from = Reader::new("request", bytes);
        let version = from.u8()?;
        if version != VERSION {
            return Err(from.malformed(format_args!("version {version}, {VERSION} is spoken here")));
        }
        let kind = from.u8()?;
        let timeout = Duration::from_millis(from.varint()?.min(1 << 32));
        let route = Route { region: RegionId(from.varint()?), version: from.varint()? };
        let route = Some(route).filter(|route| route.region.0 != 0);
        let body = match kind {
            WRITE => Body::Write { command: command(&mut from)? },
            2 => Body::Execute { key: from.bytes(KEY_BYTES_MAX)?, command: command(&mut from)? },
            3 => {
                let level = read_level(&mut from)?;
                let count = from.count(1, KEYS_MAX)?;
                let keys = (0..count).map(|_| from.bytes(KEY_BYTES_MAX)).collect::<Result<_>>()?;
                Body::Read { level, keys }
            }
            4 => Body::Scan {
                level: read_level(&mut from)?,
                direction: match from.u8()? {
                    0 => Direction::Forward,
                    1 => Direction::Reverse,
                    other => return Err(from.malformed(format_args!("direction {other}"))),
                },
                range: read_range(&mut from)?,
                items: from.varint()?.clamp(1, PAGE_ITEMS_MAX as u64) as usize,
                bytes: from.varint()?.min(PAGE_BYTES_MAX as u64) as usize,
            },
            5 => {
                let region = Some(RegionId(from.varint()?)).filter(|region| region.0 != 0);
                Body::Status { region }
            }
            6 => Body::Transfer {
                region: RegionId(from.varint()?),
                to: Some(StoreId(from.varint()?)).filter(|store| store.0 != 0),
            },
            7 => {
                let region = RegionId(from.varint()?);
                let admin = Admin::decode(&from.rest());
                let unknown = || Err(from.malformed("unknown admin command"));
                Body::Admin { region, admin: admin.unwrap_or_else(unknown)? }
            }
            8 => Body::Regions {
                start: from.bytes(BOUND_BYTES_MAX)?,
                count: from.varint()?.clamp(1, REGIONS_MAX as u64) as usize,
            },
            9 => Body::Directory(Ask::decode(&mut from)?),
            kind => return Err(from.malformed(format_args!("unknown request kind {kind}"))),
        };
        from.finish()?;
        Ok(Request { timeout, route, body })
    }
}

fn command(from: &mut Reader) -> Result<Bytes> {
    let command = from.rest();
    match command.len() > BATCH_BYTES_MAX {
        true => Err(from.malformed("batch above its limit")),
        false => Ok(command),
    }
}

impl Body {
    /// Lets any replica answer what only the leader could: as fresh, and a round trip slower.
    pub fn ask_anywhere(&mut self) {
        if let Body::Read { level, .. } | Body::Scan { level, .. } = self
            && *level == ReadLevel::Lease
        {
            *level = ReadLevel::Linearizable;
        }
    }

    fn weight(&self) -> usize {
        match self {
            Body::Write { command } => command.len(),
            Body::Execute { key, command } => key.len() + command.len(),
            Body::Read { keys, .. } => keys.iter().map(|key| key.len() + 3).sum(),
            Body::Scan { range, .. } => range.start.len() + range.end.len(),
            Body::Admin { .. } | Body::Directory(_) => 1 << 10,
            Body::Regions { start, .. } => start.len(),
            Body::Status { .. } | Body::Transfer { .. } => 0,
        }
    }
}

/// The bytes of an answer. One that does not fit a message becomes an error: nobody would carry it, and the
/// asker would wait in vain. A write's is [`Ambiguous`](Error::Ambiguous), for it was applied.
pub fn encode_response(response: &Result<Response>) -> Bytes {
    let bytes = match response {
        // Nearly always.
        Ok(Response::Written(result)) if result.is_empty() => {
            return Bytes::from_static(&[VERSION, WRITTEN]);
        }
        Ok(Response::Written(result)) if result.len() >= MESSAGE_BYTES_MAX => None,
        response => Some(bytes_of(response)).filter(|bytes| bytes.len() <= MESSAGE_BYTES_MAX),
    };
    bytes.unwrap_or_else(|| {
        bytes_of(&Err(match response {
            Ok(Response::Written(_)) => {
                Error::Ambiguous { what: "it was applied, but its answer is too large to be sent" }
            }
            _ => Error::InvalidArgument(format!(
                "answer larger than a message ({MESSAGE_BYTES_MAX} bytes): ask for less"
            )),
        }))
    })
}

fn bytes_of(response: &Result<Response>) -> Bytes {
    let mut bytes = Vec::new();
    let mut out = Writer::new(&mut bytes);
    out.u8(VERSION);
    match response {
        Err(error) => {
            out.u8(0);
            fault::encode(error, &mut out);
        }
        Ok(Response::Written(result)) => {
            out.u8(WRITTEN);
            out.raw(result);
        }
        Ok(Response::Values(values)) => {
            out.u8(2);
            out.varint(values.len() as u64);
            for value in values {
                out.u8(u8::from(value.is_some()));
                if let Some(value) = value {
                    out.bytes(value);
                }
            }
        }
        Ok(Response::Page { items, rest }) => {
            out.u8(3);
            out.varint(items.len() as u64);
            for (key, value) in items {
                out.bytes(key);
                out.bytes(value);
            }
            out.u8(u8::from(rest.is_some()));
            if let Some(rest) = rest {
                write_range(rest, &mut out);
            }
        }
        Ok(Response::Status(status)) => {
            out.u8(4);
            standing::write(status, &mut out);
        }
        Ok(Response::Done) => out.u8(5),
        Ok(Response::Regions(regions)) => {
            out.u8(6);
            out.varint(regions.len() as u64);
            for one in regions {
                out.bytes(&region::encode(one, LogPosition::default()));
            }
        }
        Ok(Response::Ids(first)) => {
            out.u8(7);
            out.varint(*first);
        }
        Ok(Response::Directory(answer)) => {
            out.u8(8);
            answer.encode(&mut out);
        }
    }
    Bytes::from(bytes)
}

/// Reads what [`encode_response`] wrote: the answer, or the other node's error. What does not parse is
/// an error whose outcome is unknown: something was done, and we cannot tell what.
pub fn decode_response(bytes: Bytes) -> Result<Response> {
    let mut from = Reader::new("response", bytes);
    let parsed = parse_response(&mut from).and_then(|answer| from.finish().map(|()| answer));
    parsed.unwrap_or_else(|error| {
        tracing::warn!(%error, "an answer does not parse");
        Err(Error::Ambiguous { what: "the answer does not parse" })
    })
}

fn parse_response(from: &mut Reader) -> Result<Result<Response>> {
    let version = from.u8()?;
    if version != VERSION {
        return Err(from.malformed(format_args!("version {version}")));
    }
    Ok(Ok(match from.u8()? {
        0 => return Ok(Err(fault::decode(from)?)),
        WRITTEN => Response::Written(from.rest()),
        2 => {
            let count = from.count(1, KEYS_MAX)?;
            let mut values = Vec::with_capacity(count);
            for _ in 0..count {
                values.push(match from.u8()? {
                    0 => None,
                    _ => Some(from.bytes(VALUE_BYTES_MAX)?),
                });
            }
            Response::Values(values)
        }
        3 => {
            let count = from.count(2, PAGE_ITEMS_MAX)?;
            let mut items = Vec::with_capacity(count);
            for _ in 0..count {
                items.push((from.bytes(KEY_BYTES_MAX)?, from.bytes(VALUE_BYTES_MAX)?));
            }
            let rest = match from.u8()? {
                0 => None,
                _ => Some(read_range(from)?),
            };
            Response::Page { items, rest }
        }
        4 => Response::Status(standing::read(from)?),
        5 => Response::Done,
        6 => {
            let count = from.count(1, usize::MAX)?;
            let one = |from: &mut Reader| Ok(region::decode(&from.bytes(128 << 10)?)?.0);
            Response::Regions((0..count).map(|_| one(from)).collect::<Result<_>>()?)
        }
        7 => Response::Ids(from.varint()?),
        8 => Response::Directory(Answer::decode(from)?),
        kind => return Err(from.malformed(format_args!("unknown response kind {kind}"))),
    }))
}

mod standing;
#[cfg(test)]
mod tests;
