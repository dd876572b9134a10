//! What is inside the frames, kind by kind. Sizes are capped before anything is allocated; what does
//! not parse to its last byte is refused. The layouts with offsets are in `format.md`.

use super::Envelope;
use super::frame::{self, Kind};
use crate::codec::beat::{self, Beat};
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::raft::{Note, wire};
use crate::types::{Epoch, PeerId, RegionId, Start, StoreId};
use bytes::Bytes;

/// The protocol spoken here. Two sides talk only if theirs are equal.
pub const PROTOCOL: u32 = 4;
/// Longest payload of a frame before the handshake is done.
pub const MAX_HANDSHAKE: usize = 1024;
/// Most messages in one frame; a writer begins another one before that.
pub const MAX_ENVELOPES: usize = 4096;
/// A message takes about so many bytes or fewer, where many come together; memory for more is not reserved at once.
const USUAL_ENVELOPE: usize = 256;
/// Longest frame that may hold more than one message.
pub const MAX_SHARED_FRAME: usize = 1 << 20;
/// Longest chunk of a snapshot.
pub const MAX_CHUNK: usize = 4 << 20;
/// Longest question for a snapshot's slot: ids and two keys.
pub const MAX_SNAPSHOT_ASK: usize = 128 << 10;
/// Longest header of a snapshot.
pub const MAX_SNAPSHOT_HEADER: usize = 1 << 20;
/// Longest text of a refusal.
const MAX_TEXT: usize = 512;
/// Longest address in a hello: the longest host name and a port.
const MAX_ADDRESS: usize = 264;

/// What a dialling side wants of the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Purpose {
    /// A peer node: raft messages and forwarded requests.
    Peer = 1,
    /// A client: requests.
    Client = 2,
    /// A peer node: one snapshot.
    Snapshot = 3,
}

/// The dialling side's introduction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Its protocol, [`PROTOCOL`].
    pub protocol: u32,
    /// What it wants.
    pub purpose: Purpose,
    /// Its cluster; `None` for a client that takes any.
    pub cluster: Option<u64>,
    /// Who it is; zero for a client.
    pub store: StoreId,
    /// The incarnation of its data directory; zero for a client.
    pub incarnation: u64,
    /// Whom it means to reach; `None` for anyone.
    pub target: Option<StoreId>,
    /// Which opening of its data directory it is; zeros for a client.
    pub start: Start,
    /// Where it listens, `host:port` of at most 264 bytes, if the others may not know it yet.
    pub address: Option<String>,
}

/// The accepting side's introduction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// Its protocol.
    pub protocol: u32,
    /// Its cluster.
    pub cluster: u64,
    /// Who it is.
    pub store: StoreId,
    /// The incarnation of its data directory.
    pub incarnation: u64,
    /// Which opening of its data directory it is.
    pub start: Start,
}

/// Why a connection or a snapshot is refused. The numbers are on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Reason {
    /// Another protocol version.
    Protocol = 1,
    /// Another cluster.
    Cluster = 2,
    /// Not the store that was meant, or one that may not connect.
    Store = 3,
    /// No room: connections, snapshot slots, memory. Try later.
    Busy = 4,
    /// Bytes that do not parse.
    Malformed = 5,
    /// Nothing came in time.
    Silent = 6,
    /// Something failed on the refusing side.
    Failed = 7,
    /// There is no use for it here, as things are.
    Useless = 8,
}

/// A refusal, as sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The kind of it.
    pub reason: Reason,
    /// For people. At most 512 bytes travel.
    pub detail: String,
}

impl Refusal {
    /// The refusal that tells the other side about `error`.
    pub fn of(error: &Error) -> Refusal {
        let reason = match error {
            Error::Busy { .. } => Reason::Busy,
            Error::Identity(_) => Reason::Store,
            Error::Malformed { .. } => Reason::Malformed,
            Error::Timeout { .. } => Reason::Silent,
            Error::InvalidArgument(_) => Reason::Useless,
            _ => Reason::Failed,
        };
        Refusal { reason, detail: error.to_string() }
    }

    /// What the refused side makes of it.
    pub fn into_error(self) -> Error {
        match self.reason {
            Reason::Protocol | Reason::Cluster | Reason::Store => {
                Error::Identity(format!("the other side refused: {}", self.detail))
            }
            Reason::Busy => Error::Busy { what: "the other side has no room" },
            Reason::Malformed => Error::malformed("what we sent", self.detail),
            Reason::Silent => Error::Timeout { after_ms: 0, what: "the other side heard nothing" },
            Reason::Failed => Error::Stopped { reason: self.detail },
            Reason::Useless => Error::InvalidArgument(self.detail),
        }
    }
}

/// Appends a hello frame.
pub fn write_hello(hello: &Hello, out: &mut Vec<u8>) {
    frame::encode(Kind::Hello, out, |out| {
        let mut w = Writer::new(out);
        w.u32(hello.protocol);
        w.u8(hello.purpose as u8);
        let given = [hello.cluster.is_some(), hello.target.is_some(), hello.address.is_some()];
        w.u8((0..).zip(given).map(|(bit, given)| u8::from(given) << bit).sum());
        w.u64(hello.cluster.unwrap_or(0));
        w.u64(hello.store.0);
        w.u64(hello.incarnation);
        w.u64(hello.target.map_or(0, |s| s.0));
        w.u64(hello.start.number);
        w.u64(hello.start.life);
        if let Some(address) = &hello.address {
            w.bytes(address.as_bytes());
        }
    });
}

/// Reads a hello. Of another protocol only the version is looked at: the rest may differ.
pub fn read_hello(payload: Bytes) -> Result<Hello> {
    let mut r = Reader::new("hello", payload);
    let protocol = r.u32()?;
    if protocol != PROTOCOL {
        return Err(Error::Identity(format!("protocol {protocol}, this side speaks {PROTOCOL}")));
    }
    let purpose = match r.u8()? {
        1 => Purpose::Peer,
        2 => Purpose::Client,
        3 => Purpose::Snapshot,
        other => return Err(r.malformed(format_args!("purpose {other}"))),
    };
    let flags = r.u8()?;
    if flags > 7 {
        return Err(r.malformed(format_args!("flags {flags:#04x}")));
    }
    let cluster = r.u64()?;
    let store = StoreId(r.u64()?);
    let incarnation = r.u64()?;
    let target = StoreId(r.u64()?);
    let start = Start { number: r.u64()?, life: r.u64()? };
    let address = if flags & 4 != 0 { Some(r.text(MAX_ADDRESS)?) } else { None };
    r.finish()?;
    let cluster = (flags & 1 != 0).then_some(cluster);
    let target = (flags & 2 != 0).then_some(target);
    Ok(Hello { protocol, purpose, cluster, store, incarnation, target, start, address })
}

/// Appends a welcome frame.
pub fn write_welcome(welcome: &Welcome, out: &mut Vec<u8>) {
    frame::encode(Kind::Welcome, out, |out| {
        let mut w = Writer::new(out);
        w.u32(welcome.protocol);
        w.u64(welcome.cluster);
        w.u64(welcome.store.0);
        w.u64(welcome.incarnation);
        w.u64(welcome.start.number);
        w.u64(welcome.start.life);
    });
}

/// Reads a welcome.
pub fn read_welcome(payload: Bytes) -> Result<Welcome> {
    let mut r = Reader::new("welcome", payload);
    let protocol = r.u32()?;
    if protocol != PROTOCOL {
        return Err(Error::Identity(format!("protocol {protocol}, this side speaks {PROTOCOL}")));
    }
    let cluster = r.u64()?;
    let store = StoreId(r.u64()?);
    let incarnation = r.u64()?;
    let start = Start { number: r.u64()?, life: r.u64()? };
    r.finish()?;
    Ok(Welcome { protocol, cluster, store, incarnation, start })
}

/// Appends a refusal frame.
pub fn write_refusal(refusal: &Refusal, out: &mut Vec<u8>) {
    frame::encode(Kind::Refused, out, |out| {
        let mut end = refusal.detail.len().min(MAX_TEXT);
        while !refusal.detail.is_char_boundary(end) {
            end -= 1;
        }
        let mut w = Writer::new(out);
        w.u8(refusal.reason as u8);
        w.bytes(&refusal.detail.as_bytes()[..end]);
    });
}

/// Reads a refusal.
pub fn read_refusal(payload: Bytes) -> Result<Refusal> {
    let mut r = Reader::new("refusal", payload);
    let reason = match r.u8()? {
        1 => Reason::Protocol,
        2 => Reason::Cluster,
        3 => Reason::Store,
        4 => Reason::Busy,
        5 => Reason::Malformed,
        6 => Reason::Silent,
        7 => Reason::Failed,
        8 => Reason::Useless,
        other => return Err(r.malformed(format_args!("reason {other}"))),
    };
    let detail = r.text(MAX_TEXT)?;
    r.finish()?;
    Ok(Refusal { reason, detail })
}

/// Bytes that an envelope takes at most.
pub fn envelope_len(envelope: &Envelope) -> usize {
    31 + wire::encoded_len(&envelope.message)
}

/// Bit 0 of an envelope's flags: the replicas are spelled out.
const NAMED: u8 = 1;
/// Bit 1: a note instead of a message, its replicas always spelled out.
const NOTE: u8 = 2;
const NOTE_GONE: u8 = 1;
const NOTE_BURIED: u8 = 2;
const NOTE_ASK: u8 = 3;
const NOTE_CAN_YOU_LEAD: u8 = 4;
const NOTE_CAN_LEAD: u8 = 5;

fn encode_note(envelope: &Envelope, note: &Note, out: &mut Vec<u8>) {
    let mut w = Writer::new(out);
    w.u8(NAMED | NOTE);
    w.varint(envelope.region.0);
    w.varint(envelope.from.0);
    w.varint(envelope.to.0);
    match note {
        Note::Gone { epoch, by } => {
            w.u8(NOTE_GONE);
            w.varint(epoch.conf_ver);
            w.varint(epoch.version);
            w.varint(by.0);
        }
        Note::Ask { by } => {
            w.u8(NOTE_ASK);
            w.varint(by.0);
        }
        Note::CanYouLead { committed } => {
            w.u8(NOTE_CAN_YOU_LEAD);
            w.varint(*committed);
        }
        Note::CanLead => w.u8(NOTE_CAN_LEAD),
        Note::Buried => w.u8(NOTE_BURIED),
    }
}

fn decode_note(r: &mut Reader) -> Result<Note> {
    match r.u8()? {
        NOTE_GONE => {
            let epoch = Epoch { conf_ver: r.varint()?, version: r.varint()? };
            Ok(Note::Gone { epoch, by: RegionId(r.varint()?) })
        }
        NOTE_ASK => Ok(Note::Ask { by: RegionId(r.varint()?) }),
        NOTE_BURIED => Ok(Note::Buried),
        NOTE_CAN_YOU_LEAD => Ok(Note::CanYouLead { committed: r.varint()? }),
        NOTE_CAN_LEAD => Ok(Note::CanLead),
        other => Err(r.malformed(format_args!("note {other}"))),
    }
}

fn encode_envelope(envelope: &Envelope, out: &mut Vec<u8>) {
    if let Some(note) = &envelope.note {
        return encode_note(envelope, note, out);
    }
    // The replicas are nearly always those that the message names itself.
    let same = envelope.from.0 == envelope.message.from && envelope.to.0 == envelope.message.to;
    let mut w = Writer::new(out);
    w.u8(u8::from(!same));
    w.varint(envelope.region.0);
    if !same {
        w.varint(envelope.from.0);
        w.varint(envelope.to.0);
    }
    wire::encode(&envelope.message, out);
}

fn decode_envelope(r: &mut Reader, from_store: StoreId) -> Result<Envelope> {
    let flags = r.u8()?;
    if !matches!(flags, 0 | NAMED) && flags != NAMED | NOTE {
        return Err(r.malformed(format_args!("envelope flags {flags:#04x}")));
    }
    let region = RegionId(r.varint()?);
    let named = match flags {
        0 => None,
        _ => Some((r.varint()?, r.varint()?)),
    };
    if flags & NOTE != 0 {
        let note = Some(decode_note(r)?);
        let (from, to) = named.map_or((PeerId(0), PeerId(0)), |(f, t)| (PeerId(f), PeerId(t)));
        let message = ::raft::eraftpb::Message::default();
        return Ok(Envelope { region, from, to, from_store, message, note });
    }
    let message = wire::decode(r)?;
    let (from, to) = match named {
        None => (message.from, message.to),
        Some(ids) if ids == (message.from, message.to) => {
            return Err(r.malformed("replicas spelled out that follow"));
        }
        Some(ids) => ids,
    };
    Ok(Envelope { region, from: PeerId(from), to: PeerId(to), from_store, message, note: None })
}

/// Appends as many frames as it takes; none holds more than one message if it is longer than
/// [`MAX_SHARED_FRAME`]. A message longer than `max` or beyond the codec's caps is left out. Returns
/// how many were left out.
pub fn write_envelopes<'a>(
    envelopes: impl Iterator<Item = &'a Envelope>,
    max: usize,
    out: &mut Vec<u8>,
) -> usize {
    let mut left_out = 0;
    let mut open: Option<(usize, usize)> = None;
    for envelope in envelopes {
        let len = envelope_len(envelope);
        if len > max || wire::check(&envelope.message).is_err() {
            left_out += 1;
            continue;
        }
        if let Some((start, count)) = open {
            let so_far = out.len() - start - frame::HEAD;
            if count == MAX_ENVELOPES || so_far + len > MAX_SHARED_FRAME.min(max) {
                frame::end(start, out);
                open = None;
            }
        }
        let (start, count) = match open {
            Some(open) => open,
            None => (frame::begin(Kind::Envelopes, out), 0),
        };
        encode_envelope(envelope, out);
        open = Some((start, count + 1));
    }
    if let Some((start, _)) = open {
        frame::end(start, out);
    }
    left_out
}

/// Reads a frame of messages, appending to `out`.
pub fn read_envelopes(payload: Bytes, from: StoreId, out: &mut Vec<Envelope>) -> Result<()> {
    let shared = payload.len() <= MAX_SHARED_FRAME;
    let mut r = Reader::new("envelopes", payload);
    let mut count = 0;
    out.reserve((r.remaining() / USUAL_ENVELOPE).min(MAX_ENVELOPES));
    while r.remaining() > 0 {
        if count == MAX_ENVELOPES || (count == 1 && !shared) {
            return Err(r.malformed("too many messages in one frame"));
        }
        out.push(decode_envelope(&mut r, from)?);
        count += 1;
    }
    Ok(())
}

/// Appends a request or an answer ([`Kind::Request`], [`Kind::Response`]).
pub fn write_call(kind: Kind, id: u64, body: &[u8], out: &mut Vec<u8>) {
    frame::encode(kind, out, |out| {
        let mut w = Writer::new(out);
        w.u64(id);
        w.raw(body);
    });
}

/// Reads a request or an answer. The body shares the frame's memory.
pub fn read_call(payload: Bytes) -> Result<(u64, Bytes)> {
    let mut r = Reader::new("call", payload);
    let id = r.u64()?;
    Ok((id, r.rest()))
}

/// Appends a beat: its number, then the rest as [`beat`] lays it out.
pub fn write_beat(beat: &Beat, out: &mut Vec<u8>) {
    write_call(Kind::Beat, beat.number, &beat::encode(beat), out);
}

/// Reads a beat.
pub fn read_beat(payload: Bytes) -> Result<Beat> {
    let (number, body) = read_call(payload)?;
    beat::decode(number, body)
}

/// Appends a frame that is its kind and nothing else.
pub fn write_signal(kind: Kind, out: &mut Vec<u8>) {
    frame::encode(kind, out, |_| {});
}

/// Reads such a frame.
pub fn read_signal(payload: Bytes) -> Result<()> {
    Reader::new("signal", payload).finish()
}

/// Appends a question for a snapshot's slot.
pub fn write_snapshot_ask(ask: &[u8], out: &mut Vec<u8>) {
    frame::encode(Kind::SnapshotAsk, out, |out| out.extend_from_slice(ask));
}

/// Reads a question for a slot: all of the payload, capped.
pub fn read_snapshot_ask(payload: Bytes) -> Result<Bytes> {
    if payload.len() > MAX_SNAPSHOT_ASK {
        return Err(Error::malformed("snapshot question", format!("{} bytes", payload.len())));
    }
    Ok(payload)
}

/// Appends the answer to a snapshot's header: how many chunks and bytes of it the receiver holds already.
pub fn write_snapshot_accept(held: (u64, u64), out: &mut Vec<u8>) {
    write_totals(Kind::SnapshotAccept, held, out);
}

/// Reads what the receiver holds of a snapshot, from its start.
pub fn read_snapshot_accept(payload: Bytes) -> Result<(u64, u64)> {
    let (chunks, bytes) = read_totals("snapshot accept", payload)?;
    // Between one byte and the longest, each.
    if bytes < chunks || bytes > chunks.saturating_mul(MAX_CHUNK as u64) {
        let detail = format!("{chunks} chunks of {bytes} bytes");
        return Err(Error::malformed("snapshot accept", detail));
    }
    Ok((chunks, bytes))
}

fn write_totals(kind: Kind, (chunks, bytes): (u64, u64), out: &mut Vec<u8>) {
    frame::encode(kind, out, |out| {
        let mut w = Writer::new(out);
        w.u64(chunks);
        w.u64(bytes);
    });
}

fn read_totals(what: &'static str, payload: Bytes) -> Result<(u64, u64)> {
    let mut r = Reader::new(what, payload);
    let totals = (r.u64()?, r.u64()?);
    r.finish()?;
    Ok(totals)
}

/// Appends a snapshot's header.
pub fn write_snapshot_begin(header: &[u8], out: &mut Vec<u8>) {
    frame::encode(Kind::SnapshotBegin, out, |out| out.extend_from_slice(header));
}

/// Reads a snapshot's header: all of the payload, capped.
pub fn read_snapshot_begin(payload: Bytes) -> Result<Bytes> {
    if payload.len() > MAX_SNAPSHOT_HEADER {
        return Err(Error::malformed("snapshot header", format!("{} bytes", payload.len())));
    }
    Ok(payload)
}

/// Appends chunk `number` of a snapshot.
pub fn write_snapshot_chunk(number: u64, bytes: &[u8], out: &mut Vec<u8>) {
    write_call(Kind::SnapshotChunk, number, bytes, out);
}

/// Reads a chunk, which must be number `expected` and not empty.
pub fn read_snapshot_chunk(payload: Bytes, expected: u64) -> Result<Bytes> {
    let mut r = Reader::new("snapshot chunk", payload);
    let number = r.u64()?;
    if number != expected {
        return Err(r.malformed(format_args!("number {number}, expected {expected}")));
    }
    match r.remaining() {
        0 => Err(r.malformed("empty")),
        len if len > MAX_CHUNK => Err(r.malformed(format_args!("{len} bytes"))),
        _ => Ok(r.rest()),
    }
}

/// Appends the end of a snapshot.
pub fn write_snapshot_end(chunks: u64, bytes: u64, out: &mut Vec<u8>) {
    write_totals(Kind::SnapshotEnd, (chunks, bytes), out);
}

/// Reads the end of a snapshot: how many chunks and bytes were sent.
pub fn read_snapshot_end(payload: Bytes) -> Result<(u64, u64)> {
    read_totals("snapshot end", payload)
}
