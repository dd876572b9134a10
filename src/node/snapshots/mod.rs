//! Snapshots between nodes: [`dispatch`] is the sender's side, [`arrivals`] the receiver's, and here is what both
//! must agree about.
//!
//! * **The question** for a slot: region, sender and receiver as varints, then the region's keys, `bytes` each.
//! * **The header**: which life of the sender and which of its snapshots this is (`u64` each, little-endian), region,
//!   sender and receiver as varints, then the raft message. What these name together is a snapshot's *identity*:
//!   only a snapshot of the same identity is resumed. A restarted sender has another life, and nothing to
//!   resume from; a restarted receiver has removed what it had.
//! * **Pieces.** A region's chunk may hold one value larger than the transport's chunks: it is cut into pieces, each
//!   behind a byte that says whether more of it follows. A transfer resumes at the first piece of a chunk.

pub(super) mod arrivals;
pub(super) mod dispatch;

use crate::codec::command::KEY_BYTES_MAX;
use crate::codec::region::REMOVED_MAX;
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::raft::{Envelope, wire};
use crate::store::Claim;
use crate::store::SnapshotErrand;
use crate::types::{Departed, KeyRange, PeerId, RegionId, StoreId};
use bytes::{Bytes, BytesMut};

const MORE: u8 = 0;
const LAST: u8 = 1;
const PIECE_BYTES: usize = 1 << 20;
/// A larger chunk than the largest value with its key can make is refused.
const CHUNK_BYTES_MAX: usize = 32 << 20;

/// Which of its snapshots a sender means: the life of its process, and a number that it never uses again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Make {
    life: u64,
    number: u64,
}

fn write_errand(errand: &SnapshotErrand, out: &mut Writer<'_>) {
    out.varint(errand.region.0);
    out.varint(errand.from.0);
    out.varint(errand.to.0);
}

fn read_errand(from: &mut Reader) -> Result<SnapshotErrand> {
    Ok(SnapshotErrand {
        region: RegionId(from.varint()?),
        from: PeerId(from.varint()?),
        to: PeerId(from.varint()?),
    })
}

fn encode_ask(errand: &SnapshotErrand, claim: &Claim) -> Bytes {
    let mut bytes = Vec::new();
    let mut out = Writer::new(&mut bytes);
    write_errand(errand, &mut out);
    out.bytes(&claim.range.start);
    out.bytes(&claim.range.end);
    out.varint(claim.merged.len() as u64);
    for gone in &claim.merged {
        out.varint(gone.region.0);
        out.varint(gone.id.0);
        out.varint(gone.store.0);
    }
    Bytes::from(bytes)
}

fn decode_ask(ask: Bytes) -> Result<(SnapshotErrand, Claim)> {
    let mut from = Reader::new("snapshot question", ask);
    let errand = read_errand(&mut from)?;
    let range = KeyRange { start: from.bytes(KEY_BYTES_MAX)?, end: from.bytes(KEY_BYTES_MAX)? };
    let count = from.count(3, REMOVED_MAX)?;
    let mut merged = Vec::with_capacity(count);
    for _ in 0..count {
        let (region, id) = (RegionId(from.varint()?), PeerId(from.varint()?));
        merged.push(Departed { region, id, store: StoreId(from.varint()?) });
    }
    from.finish()?;
    Ok((errand, Claim { range, merged }))
}

fn errand_of(envelope: &Envelope) -> SnapshotErrand {
    SnapshotErrand { region: envelope.region, from: envelope.from, to: envelope.to }
}

fn encode_header(make: Make, envelope: &Envelope) -> Bytes {
    let mut bytes = Vec::new();
    let mut out = Writer::new(&mut bytes);
    out.u64(make.life);
    out.u64(make.number);
    write_errand(&errand_of(envelope), &mut out);
    wire::encode(&envelope.message, &mut bytes);
    Bytes::from(bytes)
}

fn decode_header(header: Bytes, from_store: StoreId) -> Result<(Make, Envelope)> {
    let mut from = Reader::new("snapshot header", header);
    let make = Make { life: from.u64()?, number: from.u64()? };
    let SnapshotErrand { region, from: sender, to } = read_errand(&mut from)?;
    let envelope = Envelope {
        region,
        from: sender,
        to,
        from_store,
        message: wire::decode(&mut from)?,
        note: None,
    };
    from.finish()?;
    Ok((make, envelope))
}

/// The next piece of a chunk.
fn piece(rest: &mut Bytes) -> Bytes {
    let part = rest.split_to(rest.len().min(PIECE_BYTES));
    let mut out = Vec::with_capacity(1 + part.len());
    out.push(if rest.is_empty() { LAST } else { MORE });
    out.extend_from_slice(&part);
    Bytes::from(out)
}

/// Puts the pieces of a chunk together again: gives the chunk with its last piece.
fn join(so_far: &mut BytesMut, mut piece: Bytes) -> Result<Option<Bytes>> {
    let bad = |detail: &str| Err(Error::malformed("snapshot", detail));
    if piece.is_empty() {
        return bad("an empty piece");
    }
    let flag = piece.split_to(1)[0];
    if so_far.len() + piece.len() > CHUNK_BYTES_MAX {
        return bad("a chunk above its limit");
    }
    match flag {
        LAST if so_far.is_empty() => Ok(Some(piece)),
        LAST => {
            so_far.extend_from_slice(&piece);
            Ok(Some(std::mem::take(so_far).freeze()))
        }
        MORE => {
            so_far.extend_from_slice(&piece);
            Ok(None)
        }
        _ => bad("an unknown flag"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_chunks_are_cut_and_joined() {
        for len in [1, PIECE_BYTES, PIECE_BYTES + 1, 5 * PIECE_BYTES + 7] {
            let chunk: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let chunk = Bytes::from(chunk);
            let mut rest = chunk.clone();
            let mut so_far = BytesMut::new();
            let mut whole = None;
            while whole.is_none() {
                let piece = piece(&mut rest);
                assert!(piece.len() <= PIECE_BYTES + 1);
                whole = join(&mut so_far, piece).unwrap();
            }
            assert_eq!((whole.unwrap(), rest.len(), so_far.len()), (chunk, 0, 0));
        }
        assert!(join(&mut BytesMut::new(), Bytes::new()).is_err());
        assert!(join(&mut BytesMut::new(), Bytes::from_static(b"\x07x")).is_err());
    }

    #[test]
    fn questions_and_headers_read_back_and_no_cut_of_them_does() {
        let mut message = ::raft::eraftpb::Message::default();
        message.set_msg_type(::raft::eraftpb::MessageType::MsgSnapshot);
        message.set_term(7);
        let envelope = Envelope {
            region: RegionId(300),
            from: PeerId(1),
            to: PeerId(2),
            from_store: StoreId(4),
            message,
            note: None,
        };
        let make = Make { life: 5, number: u64::MAX };
        let bytes = encode_header(make, &envelope);
        assert_eq!(decode_header(bytes.clone(), StoreId(4)).unwrap(), (make, envelope.clone()));
        for cut in 0..bytes.len() {
            assert!(decode_header(bytes.slice(..cut), StoreId(4)).is_err());
        }
        let gone = Departed { region: RegionId(9), id: PeerId(300), store: StoreId(2) };
        let claim = Claim { range: KeyRange::new("a", "q"), merged: vec![gone] };
        let errand = errand_of(&envelope);
        let bytes = encode_ask(&errand, &claim);
        assert_eq!(decode_ask(bytes.clone()).unwrap(), (errand, claim));
        for cut in 0..bytes.len() {
            assert!(decode_ask(bytes.slice(..cut)).is_err());
        }
    }
}
