//! The frame around everything on a connection: 12 bytes of head, then the payload.
//!
//! ```text
//! 0..2   magic "Ct"
//! 2      version of the frame layout, 1
//! 3      kind
//! 4..8   length of the payload, little-endian
//! 8..12  crc32c of bytes 0..8 and the payload, little-endian
//! ```
//!
//! Encoding appends to a buffer of the caller's, decoding cuts frames off the front of a read buffer
//! without copying. No IO here: [`Decoder`] is fed by whoever reads.

use crate::error::{Error, Result};
use bytes::{Buf, Bytes, BytesMut};

/// The first bytes of every frame.
pub const MAGIC: [u8; 2] = *b"Ct";
/// The layout described here.
pub const LAYOUT: u8 = 1;
/// Bytes before the payload.
pub const HEAD: usize = 12;

/// What a frame holds. The numbers are on the wire and never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Kind {
    /// The dialling side says who it is.
    Hello = 1,
    /// The accepting side says who it is: the connection is up.
    Welcome = 2,
    /// Why the connection or the transfer is refused; nothing follows.
    Refused = 3,
    /// Raft messages.
    Envelopes = 4,
    /// A request: id and body.
    Request = 5,
    /// An answer: id and body.
    Response = 6,
    /// "I am here": both sides say so at intervals; silence means a dead connection.
    Ping = 7,
    /// A snapshot's header.
    SnapshotBegin = 8,
    /// From which chunk on the receiver wants it.
    SnapshotAccept = 9,
    /// A piece of a snapshot, numbered from 0.
    SnapshotChunk = 10,
    /// The sender has sent all: how many chunks and bytes.
    SnapshotEnd = 11,
    /// The receiver holds all.
    SnapshotDone = 12,
    /// A peer node is there, and whom it supports.
    Beat = 13,
    /// May a snapshot be sent?
    SnapshotAsk = 14,
    /// Yes: a slot is reserved.
    SnapshotGrant = 15,
    /// The sender gives the snapshot up: nothing is to be kept.
    SnapshotCancel = 16,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 16] = [
        Kind::Hello,
        Kind::Welcome,
        Kind::Refused,
        Kind::Envelopes,
        Kind::Request,
        Kind::Response,
        Kind::Ping,
        Kind::SnapshotBegin,
        Kind::SnapshotAccept,
        Kind::SnapshotChunk,
        Kind::SnapshotEnd,
        Kind::SnapshotDone,
        Kind::Beat,
        Kind::SnapshotAsk,
        Kind::SnapshotGrant,
        Kind::SnapshotCancel,
    ];

    fn from_wire(byte: u8) -> Option<Kind> {
        Kind::ALL.get(usize::from(byte).wrapping_sub(1)).copied()
    }
}

/// A frame, taken apart. The payload shares the read buffer's memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// What it holds.
    pub kind: Kind,
    /// The bytes of that.
    pub payload: Bytes,
}

/// Appends a frame to `out`, its payload written by `payload`.
pub fn encode(kind: Kind, out: &mut Vec<u8>, payload: impl FnOnce(&mut Vec<u8>)) {
    let start = begin(kind, out);
    payload(out);
    end(start, out);
}

/// Starts a frame whose payload the caller appends; give what this returns to [`end`].
pub fn begin(kind: Kind, out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[LAYOUT, kind as u8]);
    out.extend_from_slice(&[0; 8]);
    start
}

/// Fills in the length and the checksum of the frame that began at `start`.
///
/// A payload of 4 GiB cannot be expressed; senders keep to caps far below, so the length saturates and
/// the receiver would refuse it.
pub fn end(start: usize, out: &mut [u8]) {
    let len = u32::try_from(out.len() - start - HEAD).unwrap_or(u32::MAX);
    out[start + 4..start + 8].copy_from_slice(&len.to_le_bytes());
    let crc = checksum(&out[start..start + 8], &out[start + HEAD..]);
    out[start + 8..start + HEAD].copy_from_slice(&crc.to_le_bytes());
}

fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), payload)
}

/// Cuts frames off the front of a read buffer.
///
/// * A length above the cap is refused as soon as the head is there: nothing is allocated for it.
/// * It never asks for more room than it already has bytes (times two), so a claimed length alone costs
///   nothing.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    max: usize,
}

impl Decoder {
    /// Refuses payloads longer than `max` bytes.
    pub fn new(max: usize) -> Decoder {
        Decoder { max }
    }

    /// The next whole frame, `None` if its end has not come yet. After an error the stream is lost.
    pub fn decode(&self, buffer: &mut BytesMut) -> Result<Option<Frame>> {
        let Some(len) = self.head(buffer)? else { return Ok(None) };
        if buffer.len() < HEAD + len {
            return Ok(None);
        }
        let wanted = u32::from_le_bytes([buffer[8], buffer[9], buffer[10], buffer[11]]);
        let found = checksum(&buffer[..8], &buffer[HEAD..HEAD + len]);
        if wanted != found {
            return Err(malformed(format!("checksum {found:#010x}, the head says {wanted:#010x}")));
        }
        let Some(kind) = Kind::from_wire(buffer[3]) else {
            return Err(malformed(format!("kind {}", buffer[3])));
        };
        buffer.advance(HEAD);
        let payload = match len {
            0 => Bytes::new(),
            _ => buffer.split_to(len).freeze(),
        };
        Ok(Some(Frame { kind, payload }))
    }

    /// The payload length that the head claims, once the head is there and makes sense.
    fn head(&self, buffer: &[u8]) -> Result<Option<usize>> {
        // A stranger's first bytes are judged as they come: no need to wait for twelve.
        for (i, expected) in [MAGIC[0], MAGIC[1], LAYOUT].into_iter().enumerate() {
            match buffer.get(i) {
                Some(found) if *found != expected => {
                    return Err(malformed(format!("head byte {i} is {found:#04x}")));
                }
                _ => {}
            }
        }
        if buffer.len() < HEAD {
            return Ok(None);
        }
        let len = u32::from_le_bytes([buffer[4], buffer[5], buffer[6], buffer[7]]) as usize;
        if len > self.max {
            return Err(malformed(format!("length {len} above the cap of {}", self.max)));
        }
        Ok(Some(len))
    }

    /// How many bytes of room the next read should have, given what has come.
    pub fn wants(&self, buffer: &BytesMut, least: usize) -> usize {
        match self.head(buffer) {
            Ok(Some(len)) => {
                let missing = (HEAD + len).saturating_sub(buffer.len());
                missing.min(buffer.len().max(least)).max(least)
            }
            _ => least,
        }
    }
}

fn malformed(detail: String) -> Error {
    Error::malformed("frame", detail)
}
