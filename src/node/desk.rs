//! The network's side of a node: what arrives goes to the driver, what the driver sends goes out.

use super::handover::Away;
use super::members::Roster;
use super::operator::Wishes;
use crate::client::local::Local;
use crate::codec::beat::Beat;
use crate::codec::{self, Reader, Writer};
use crate::driver::{Driver, Outward};
use crate::env::Disk;
use crate::error::{Error, Result};
use crate::raft::{Envelope, Lane, wire};
use crate::region::snapshot::{Chunks, SnapshotFile, SnapshotWriter};
use crate::store::{Delivered, Event, SnapshotSend, SplitWish};
use crate::transport::{Handler, Origin, SnapshotJob, SnapshotSink, SnapshotSource, Transport};
use crate::types::{PeerId, RegionId, Start, StoreId};
use bytes::{Bytes, BytesMut};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The way out: the driver's, over a transport.
pub(super) struct Outbound {
    pub transport: Arc<dyn Transport>,
    pub wishes: Wishes,
}

/// A region's chunk may hold one value larger than the transport's chunks: it is sent in pieces, each
/// behind a byte that says whether more of it follows.
struct Source {
    chunks: Chunks,
    rest: Bytes,
}

const MORE: u8 = 0;
const LAST: u8 = 1;
const PIECE_BYTES: usize = 1 << 20;
/// A larger chunk than the largest value with its key can make is refused.
const CHUNK_BYTES_MAX: usize = 32 << 20;

fn piece(rest: &mut Bytes) -> Bytes {
    let part = rest.split_to(rest.len().min(PIECE_BYTES));
    let mut out = Vec::with_capacity(1 + part.len());
    out.push(if rest.is_empty() { LAST } else { MORE });
    out.extend_from_slice(&part);
    Bytes::from(out)
}

impl SnapshotSource for Source {
    fn next(&mut self) -> Result<Option<Bytes>> {
        if self.rest.is_empty() {
            match self.chunks.next_chunk()? {
                Some(chunk) => self.rest = chunk,
                None => return Ok(None),
            }
        }
        Ok(Some(piece(&mut self.rest)))
    }
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

impl Outward for Outbound {
    fn send(&self, to: StoreId, lane: Lane, envelopes: Vec<Envelope>) {
        self.transport.send(to, lane, envelopes);
    }

    fn beat(&self, to: StoreId, beat: Beat) {
        self.transport.beat(to, beat);
    }

    fn split(&self, wish: SplitWish) {
        self.wishes.split(wish);
    }

    fn send_snapshot(&self, snapshot: SnapshotSend, done: Box<dyn FnOnce(Delivered) + Send>) {
        let SnapshotSend { to, envelope, chunks } = snapshot;
        let region = envelope.region;
        let done = Box::new(move |result: Result<()>| {
            done(match result {
                Ok(()) => Delivered::Whole,
                Err(error) => {
                    tracing::debug!(%region, %to, %error, "a snapshot was not delivered");
                    Delivered::Failed
                }
            });
        });
        let job = SnapshotJob {
            header: encode_header(&envelope),
            source: Box::new(Source { chunks, rest: Bytes::new() }),
            done,
        };
        self.transport.send_snapshot(to, job);
    }
}

/// Region, sender and receiver as varints, then the raft message.
fn encode_header(envelope: &Envelope) -> Bytes {
    let mut bytes = Vec::new();
    let mut out = Writer::new(&mut bytes);
    out.varint(envelope.region.0);
    out.varint(envelope.from.0);
    out.varint(envelope.to.0);
    wire::encode(&envelope.message, &mut bytes);
    Bytes::from(bytes)
}

fn decode_header(header: Bytes, from_store: StoreId) -> Result<Envelope> {
    let mut from = Reader::new("snapshot header", header);
    let envelope = Envelope {
        region: RegionId(from.varint()?),
        from: PeerId(from.varint()?),
        to: PeerId(from.varint()?),
        from_store,
        message: wire::decode(&mut from)?,
        note: None,
    };
    from.finish()?;
    Ok(envelope)
}

/// Everything that arrives.
///
/// * A store is known by what is on record of its directory ([`Roster`]): one that comes back with another, or with an
///   old copy, is kept out for ever. It joins anew, under a new id.
/// * At most `snapshots_max` snapshots are received at once.
pub(super) struct Desk {
    pub local: Local,
    pub driver: Driver,
    pub disk: Arc<dyn Disk>,
    pub snap_dir: PathBuf,
    pub snapshots_max: usize,
    pub receiving: Arc<AtomicUsize>,
    pub files: AtomicU64,
    pub roster: Arc<Roster>,
    pub away: Arc<Away>,
}

impl Desk {
    fn heard(&self, origin: Origin) {
        if let Some(store) = origin.store {
            self.away.heard(store);
        }
    }
}

impl Handler for Desk {
    fn envelopes(&self, from: StoreId, envelopes: Vec<Envelope>) {
        self.away.heard(from);
        self.driver.messages(envelopes);
    }

    fn beat(&self, from: StoreId, beat: Beat) {
        self.away.heard(from);
        self.driver.beat(from, beat);
    }

    fn request(&self, origin: Origin, id: u64, body: Bytes) {
        self.heard(origin);
        self.local.serve(origin, vec![(id, body)]);
    }

    fn requests(&self, origin: Origin, requests: Vec<(u64, Bytes)>) {
        self.heard(origin);
        self.local.serve(origin, requests);
    }

    fn response(&self, from: StoreId, id: u64, body: Bytes) {
        self.local.answered(from, id, body);
    }

    fn unreachable(&self, store: StoreId) {
        self.away.lost(store);
        self.driver.unreachable(store);
    }

    fn connection_lost(&self, store: StoreId) {
        self.local.connection_lost(store);
    }

    fn hello(&self, from: StoreId, incarnation: u64, start: Start) -> Result<()> {
        self.roster.greet(from, incarnation, start)?;
        self.away.heard(from);
        Ok(())
    }

    fn snapshot_begin(&self, from: StoreId, header: Bytes) -> Result<Box<dyn SnapshotSink>> {
        let envelope = decode_header(header, from)?;
        let head = codec::region::decode_head(&envelope.message.get_snapshot().data)?;
        if !self.driver.registry().is_free(&head.region) {
            return Err(Error::Busy { what: "the range: another region holds it here still" });
        }
        let slot = Slot(Arc::clone(&self.receiving));
        if slot.0.fetch_add(1, Ordering::AcqRel) >= self.snapshots_max {
            return Err(Error::Busy { what: "snapshots being received" });
        }
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        let path = self.snap_dir.join(format!("{}-{number}.snap", envelope.region.0));
        let writer = SnapshotWriter::create(&self.disk, path.clone())?;
        Ok(Box::new(Sink {
            slot,
            driver: self.driver.clone(),
            disk: Arc::clone(&self.disk),
            path,
            open: Some((writer, envelope)),
            so_far: BytesMut::new(),
        }))
    }
}

struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

struct Sink {
    slot: Slot,
    driver: Driver,
    disk: Arc<dyn Disk>,
    path: PathBuf,
    open: Option<(SnapshotWriter, Envelope)>,
    so_far: BytesMut,
}

impl SnapshotSink for Sink {
    fn chunk(&mut self, bytes: Bytes) -> Result<()> {
        let whole = join(&mut self.so_far, bytes)?;
        match (&mut self.open, whole) {
            (Some(_), None) => Ok(()),
            (Some((writer, _)), Some(chunk)) => writer.chunk(&chunk),
            (None, _) => Err(Error::malformed("snapshot", "a chunk after the end")),
        }
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        if !self.so_far.is_empty() {
            return Err(Error::malformed("snapshot", "its last chunk is not whole"));
        }
        let Some((writer, envelope)) = self.open.take() else { return Ok(()) };
        let finished: Result<SnapshotFile> = writer.finish();
        match finished {
            Ok(file) => {
                let region = envelope.region;
                self.driver.post(region, Event::SnapshotReceived { envelope, file });
                Ok(())
            }
            Err(error) => {
                let _ = self.disk.remove(&self.path);
                Err(error)
            }
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let _ = &self.slot;
        // Broken off: what came so far is worth nothing.
        if self.open.take().is_some() {
            let _ = self.disk.remove(&self.path);
        }
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
    fn snapshot_headers_read_back() {
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
        let bytes = encode_header(&envelope);
        assert_eq!(decode_header(bytes.clone(), StoreId(4)).unwrap(), envelope);
        for cut in 0..bytes.len() {
            assert!(decode_header(bytes.slice(..cut), StoreId(4)).is_err());
        }
    }
}
