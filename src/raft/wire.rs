//! The flat codec of raft messages: what crosses the network instead of protobuf.
//!
//! A message is its type, a bitmap of the fields that are not zero, and those fields in bit order;
//! integers are varints. Entries lean on their predecessor (same term, next index), so an entry costs
//! two bytes and its data. Decoding shares the frame's memory for data and contexts: no copy.
//!
//! * One message has one encoding: what decodes encodes to the same bytes again (a field present but
//!   zero, or spelled out where it follows, is refused).
//! * Unknown types and bits are refused; a new field is a new protocol version.
//! * Counts and lengths are compared with what the frame holds before anything is allocated.
//! * It says nothing about sense: whether a message may be stepped is the guard's matter.
//!
//! The layout with offsets is in `src/transport/format.md`.

use crate::codec::bytes::varint_len;
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use ::raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType, Snapshot};

/// Most entries in one message: bounds what a small hostile frame can blow up to in memory.
pub const MAX_ENTRIES: usize = 1 << 18;
/// Most members in one list of a snapshot's membership.
pub const MAX_MEMBERS: usize = 1 << 12;
/// Memory reserved at once for entries, however many are claimed.
const RESERVE_ENTRIES: usize = 1 << 10;

const TO: u16 = 1 << 0;
const FROM: u16 = 1 << 1;
const TERM: u16 = 1 << 2;
const LOG_TERM: u16 = 1 << 3;
const INDEX: u16 = 1 << 4;
const COMMIT: u16 = 1 << 5;
const COMMIT_TERM: u16 = 1 << 6;
const REJECT: u16 = 1 << 7;
const REJECT_HINT: u16 = 1 << 8;
const REQUEST_SNAPSHOT: u16 = 1 << 9;
const DEPRECATED_PRIORITY: u16 = 1 << 10;
const PRIORITY: u16 = 1 << 11;
const CONTEXT: u16 = 1 << 12;
const ENTRIES: u16 = 1 << 13;
const SNAPSHOT: u16 = 1 << 14;
const KNOWN: u16 = (1 << 15) - 1;

const ENTRY_KIND: u8 = 0b11;
const ENTRY_SYNC_LOG: u8 = 1 << 2;
const ENTRY_CONTEXT: u8 = 1 << 3;
const ENTRY_TERM: u8 = 1 << 4;
const ENTRY_INDEX: u8 = 1 << 5;
const ENTRY_KNOWN: u8 = (1 << 6) - 1;

const SNAP_DATA: u8 = 1 << 0;
const SNAP_META: u8 = 1 << 1;
const SNAP_CONF: u8 = 1 << 2;
const SNAP_AUTO_LEAVE: u8 = 1 << 3;
const SNAP_KNOWN: u8 = (1 << 4) - 1;

const TYPES: [MessageType; 19] = [
    MessageType::MsgHup,
    MessageType::MsgBeat,
    MessageType::MsgPropose,
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgUnreachable,
    MessageType::MsgSnapStatus,
    MessageType::MsgCheckQuorum,
    MessageType::MsgTransferLeader,
    MessageType::MsgTimeoutNow,
    MessageType::MsgReadIndex,
    MessageType::MsgReadIndexResp,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

/// The plain integer fields in bit order; the decoder reads them in the same order.
fn integers(message: &Message) -> [(u16, u64); 10] {
    [
        (TO, message.to),
        (FROM, message.from),
        (TERM, message.term),
        (LOG_TERM, message.log_term),
        (INDEX, message.index),
        (COMMIT, message.commit),
        (COMMIT_TERM, message.commit_term),
        (REJECT_HINT, message.reject_hint),
        (REQUEST_SNAPSHOT, message.request_snapshot),
        (DEPRECATED_PRIORITY, message.deprecated_priority),
    ]
}

/// Bytes that [`encode`] will write, at most. Cheap: for budgets and for reserving a buffer.
pub fn encoded_len(message: &Message) -> usize {
    // Type, bitmap, ten integers and the priority at their longest would be 113; ids and indexes
    // are short in practice, so measure them.
    let mut len = 3;
    for (_, value) in integers(message) {
        len += if value == 0 { 0 } else { varint_len(value) };
    }
    len += if message.priority == 0 { 0 } else { 10 };
    if !message.context.is_empty() {
        len += varint_len(message.context.len() as u64) + message.context.len();
    }
    if !message.entries.is_empty() {
        len += 5;
        for entry in message.entries.iter() {
            len += entry_len(entry);
        }
    }
    if let Some(snapshot) = message.snapshot.as_ref() {
        len += 16 + snapshot.data.len();
        if let Some(meta) = snapshot.metadata.as_ref() {
            len += 20;
            if let Some(conf) = meta.conf_state.as_ref() {
                for list in lists(conf) {
                    len += 10 + 10 * list.len();
                }
            }
        }
    }
    len
}

fn entry_len(entry: &Entry) -> usize {
    // Flags, the length of the data, and 20 for a term and an index that do not follow.
    let context = match entry.context.len() {
        0 => 0,
        len => len + varint_len(len as u64),
    };
    1 + varint_len(entry.data.len() as u64) + entry.data.len() + context + 20
}

/// Appends `message` to `out`. Never fails; a message beyond the caps would not decode, see
/// [`check`].
pub fn encode(message: &Message, out: &mut Vec<u8>) {
    let mut bits = 0;
    for (bit, value) in integers(message) {
        bits |= if value == 0 { 0 } else { bit };
    }
    for (bit, present) in [
        (REJECT, message.reject),
        (PRIORITY, message.priority != 0),
        (CONTEXT, !message.context.is_empty()),
        (ENTRIES, !message.entries.is_empty()),
        (SNAPSHOT, message.snapshot.is_some()),
    ] {
        bits |= if present { bit } else { 0 };
    }
    let mut w = Writer::new(out);
    w.u8(message.msg_type as u8);
    w.u16(bits);
    for (_, value) in integers(message) {
        if value != 0 {
            w.varint(value);
        }
    }
    if bits & PRIORITY != 0 {
        w.zigzag(message.priority);
    }
    if bits & CONTEXT != 0 {
        w.bytes(&message.context);
    }
    if bits & ENTRIES != 0 {
        w.varint(message.entries.len() as u64);
        let mut previous = (message.term, message.index);
        for entry in message.entries.iter() {
            encode_entry(entry, previous, &mut w);
            previous = (entry.term, entry.index);
        }
    }
    if let Some(snapshot) = message.snapshot.as_ref() {
        encode_snapshot(snapshot, &mut w);
    }
}

/// Whether `message` keeps the caps of the decoder, so that the other side will take it.
pub fn check(message: &Message) -> Result<()> {
    let members = message
        .snapshot
        .as_ref()
        .and_then(|s| s.metadata.as_ref())
        .and_then(|m| m.conf_state.as_ref())
        .map_or(0, |c| lists(c).iter().map(|l| l.len()).max().unwrap_or(0));
    if message.entries.len() > MAX_ENTRIES || members > MAX_MEMBERS {
        return Err(Error::InvalidArgument(format!(
            "a raft message of {} entries and {members} members (caps {MAX_ENTRIES}, {MAX_MEMBERS})",
            message.entries.len()
        )));
    }
    Ok(())
}

fn encode_entry(entry: &Entry, previous: (u64, u64), w: &mut Writer<'_>) {
    let mut flags = entry.entry_type as u8;
    for (bit, present) in [
        (ENTRY_SYNC_LOG, entry.sync_log),
        (ENTRY_CONTEXT, !entry.context.is_empty()),
        (ENTRY_TERM, entry.term != previous.0),
        (ENTRY_INDEX, entry.index != previous.1.wrapping_add(1)),
    ] {
        flags |= if present { bit } else { 0 };
    }
    w.u8(flags);
    if flags & ENTRY_TERM != 0 {
        w.varint(entry.term);
    }
    if flags & ENTRY_INDEX != 0 {
        w.varint(entry.index);
    }
    if flags & ENTRY_CONTEXT != 0 {
        w.bytes(&entry.context);
    }
    w.bytes(&entry.data);
}

fn lists(conf: &ConfState) -> [&[u64]; 4] {
    [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next]
}

fn encode_snapshot(snapshot: &Snapshot, w: &mut Writer<'_>) {
    let meta = snapshot.metadata.as_ref();
    let conf = meta.and_then(|m| m.conf_state.as_ref());
    let mut flags = 0;
    for (bit, present) in [
        (SNAP_DATA, !snapshot.data.is_empty()),
        (SNAP_META, meta.is_some()),
        (SNAP_CONF, conf.is_some()),
        (SNAP_AUTO_LEAVE, conf.is_some_and(|c| c.auto_leave)),
    ] {
        flags |= if present { bit } else { 0 };
    }
    w.u8(flags);
    if let Some(meta) = meta {
        w.varint(meta.index);
        w.varint(meta.term);
    }
    if let Some(conf) = conf {
        for list in lists(conf) {
            w.varint(list.len() as u64);
            for id in list {
                w.varint(*id);
            }
        }
    }
    if flags & SNAP_DATA != 0 {
        w.bytes(&snapshot.data);
    }
}

/// Reads one message; what follows it stays in the reader. Data and contexts share the frame's
/// memory.
pub fn decode(r: &mut Reader) -> Result<Message> {
    let mut message = Message::default();
    let kind = r.u8()?;
    message.msg_type = match TYPES.get(kind as usize) {
        Some(kind) => *kind,
        None => return Err(r.malformed(format_args!("message type {kind}"))),
    };
    let bits = r.u16()?;
    if bits & !KNOWN != 0 {
        return Err(r.malformed(format_args!("unknown field bits {bits:#06x}")));
    }
    message.to = integer(r, bits & TO != 0)?;
    message.from = integer(r, bits & FROM != 0)?;
    message.term = integer(r, bits & TERM != 0)?;
    message.log_term = integer(r, bits & LOG_TERM != 0)?;
    message.index = integer(r, bits & INDEX != 0)?;
    message.commit = integer(r, bits & COMMIT != 0)?;
    message.commit_term = integer(r, bits & COMMIT_TERM != 0)?;
    message.reject = bits & REJECT != 0;
    message.reject_hint = integer(r, bits & REJECT_HINT != 0)?;
    message.request_snapshot = integer(r, bits & REQUEST_SNAPSHOT != 0)?;
    message.deprecated_priority = integer(r, bits & DEPRECATED_PRIORITY != 0)?;
    if bits & PRIORITY != 0 {
        message.priority = r.zigzag()?;
        if message.priority == 0 {
            return Err(r.malformed("a field present but zero"));
        }
    }
    if bits & CONTEXT != 0 {
        message.context = filled(r)?;
    }
    if bits & ENTRIES != 0 {
        // An entry is at least its flags and the length of its data.
        let count = r.count(2, MAX_ENTRIES)?;
        if count == 0 {
            return Err(r.malformed("a field present but empty"));
        }
        let mut entries = Vec::with_capacity(count.min(RESERVE_ENTRIES));
        let mut previous = (message.term, message.index);
        for _ in 0..count {
            let entry = decode_entry(r, previous)?;
            previous = (entry.term, entry.index);
            entries.push(entry);
        }
        message.entries = entries.into();
    }
    if bits & SNAPSHOT != 0 {
        message.set_snapshot(decode_snapshot(r)?);
    }
    Ok(message)
}

/// An integer that is written only when it is not zero.
#[inline]
fn integer(r: &mut Reader, present: bool) -> Result<u64> {
    if !present {
        return Ok(0);
    }
    match r.varint()? {
        0 => Err(r.malformed("a field present but zero")),
        value => Ok(value),
    }
}

/// Bytes that are written only when there are any.
fn filled(r: &mut Reader) -> Result<::bytes::Bytes> {
    let bytes = r.bytes(usize::MAX)?;
    if bytes.is_empty() {
        return Err(r.malformed("a field present but empty"));
    }
    Ok(bytes)
}

fn decode_entry(r: &mut Reader, previous: (u64, u64)) -> Result<Entry> {
    let flags = r.u8()?;
    if flags & !ENTRY_KNOWN != 0 {
        return Err(r.malformed(format_args!("unknown entry bits {flags:#04x}")));
    }
    let entry_type = match flags & ENTRY_KIND {
        0 => EntryType::EntryNormal,
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        kind => return Err(r.malformed(format_args!("entry type {kind}"))),
    };
    let mut entry = Entry { entry_type, term: previous.0, ..Default::default() };
    entry.sync_log = flags & ENTRY_SYNC_LOG != 0;
    if flags & ENTRY_TERM != 0 {
        entry.term = r.varint()?;
        if entry.term == previous.0 {
            return Err(r.malformed("a term spelled out that follows"));
        }
    }
    entry.index = previous.1.wrapping_add(1);
    if flags & ENTRY_INDEX != 0 {
        let index = r.varint()?;
        if index == entry.index {
            return Err(r.malformed("an index spelled out that follows"));
        }
        entry.index = index;
    }
    if flags & ENTRY_CONTEXT != 0 {
        entry.context = filled(r)?;
    }
    entry.data = r.bytes(usize::MAX)?;
    Ok(entry)
}

fn decode_snapshot(r: &mut Reader) -> Result<Snapshot> {
    let flags = r.u8()?;
    let follows = |flag: u8, needs: u8| flags & flag == 0 || flags & needs != 0;
    if flags & !SNAP_KNOWN != 0
        || !follows(SNAP_CONF, SNAP_META)
        || !follows(SNAP_AUTO_LEAVE, SNAP_CONF)
    {
        return Err(r.malformed(format_args!("snapshot bits {flags:#04x}")));
    }
    let mut snapshot = Snapshot::default();
    if flags & SNAP_META != 0 {
        let meta = snapshot.mut_metadata();
        meta.index = r.varint()?;
        meta.term = r.varint()?;
        if flags & SNAP_CONF != 0 {
            let conf = meta.mut_conf_state();
            conf.voters = members(r)?;
            conf.learners = members(r)?;
            conf.voters_outgoing = members(r)?;
            conf.learners_next = members(r)?;
            conf.auto_leave = flags & SNAP_AUTO_LEAVE != 0;
        }
    }
    if flags & SNAP_DATA != 0 {
        snapshot.data = filled(r)?;
    }
    Ok(snapshot)
}

fn members(r: &mut Reader) -> Result<Vec<u64>> {
    let count = r.count(1, MAX_MEMBERS)?;
    (0..count).map(|_| r.varint()).collect()
}
