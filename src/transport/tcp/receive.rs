//! The receiving end of a snapshot: a slot first, then numbered chunks, and an acknowledgement when all of it is
//! held.

use super::super::frame::{HEAD, Kind};
use super::super::payload::{
    MAX_CHUNK, MAX_SNAPSHOT_ASK, MAX_SNAPSHOT_HEADER, read_signal, read_snapshot_ask,
    read_snapshot_begin, read_snapshot_chunk, read_snapshot_end, write_signal,
    write_snapshot_accept,
};
use super::super::{SnapshotRoom, SnapshotSink};
use super::accept::Reader;
use super::ship::blocking;
use super::stream::{Patience, write};
use super::{Counters, Shared};
use crate::error::{Error, Result};
use crate::types::StoreId;
use tokio::net::tcp::OwnedWriteHalf;

/// An error is told to the sender by the caller. What is dropped here without an end may be resumed.
pub(super) async fn receive(
    shared: &Shared,
    from: StoreId,
    reader: &mut Reader,
    writer: &mut OwnedWriteHalf,
) -> Result<()> {
    let frame = shared.config.frame_timeout;
    // Whoever dialled for this asks at once.
    reader.relax(MAX_SNAPSHOT_ASK, Patience { idle: shared.config.handshake_timeout, frame });
    let Some(room) = reserve(shared, from, reader).await? else { return Ok(()) };
    signal(shared, Kind::SnapshotGrant, writer).await?;
    reader.relax(
        (MAX_CHUNK.max(MAX_SNAPSHOT_HEADER) + HEAD).min(shared.config.max_frame),
        Patience { idle: shared.config.snapshot_timeout, frame },
    );
    let begin = reader.next().await?;
    let header = match begin.kind {
        Kind::SnapshotBegin => read_snapshot_begin(begin.payload)?,
        // The sender does not need the slot.
        Kind::SnapshotCancel => return read_signal(begin.payload),
        kind => return Err(Error::malformed("snapshot stream", format!("{kind:?} in a slot"))),
    };
    let sink = blocking(move || room.begin(header)).await??;
    let held = sink.held();
    let mut out = Vec::new();
    write_snapshot_accept(held, &mut out);
    write(writer, &out, frame, &shared.counters).await?;
    let Some(sink) = chunks(shared, reader, sink, held).await? else { return Ok(()) };
    blocking(move || sink.finish()).await??;
    Counters::add(&shared.counters.snapshots_received, 1);
    signal(shared, Kind::SnapshotDone, writer).await
}

async fn reserve(
    shared: &Shared,
    from: StoreId,
    reader: &mut Reader,
) -> Result<Option<Box<dyn SnapshotRoom>>> {
    let frame = reader.next().await?;
    if frame.kind != Kind::SnapshotAsk {
        return Err(Error::malformed("snapshot stream", format!("{:?} first", frame.kind)));
    }
    let ask = read_snapshot_ask(frame.payload)?;
    let Some(handler) = shared.handler() else { return Ok(None) };
    Ok(Some(blocking(move || handler.snapshot_reserve(from, ask)).await??))
}

/// All chunks that are missing; `None`: the sender has given up.
async fn chunks(
    shared: &Shared,
    reader: &mut Reader,
    mut sink: Box<dyn SnapshotSink>,
    (mut chunks, mut bytes): (u64, u64),
) -> Result<Option<Box<dyn SnapshotSink>>> {
    loop {
        let frame = reader.next().await?;
        match frame.kind {
            Kind::SnapshotChunk => {
                let chunk = read_snapshot_chunk(frame.payload, chunks)?;
                chunks += 1;
                bytes += chunk.len() as u64;
                Counters::add(&shared.counters.snapshot_bytes_received, chunk.len() as u64);
                let taken;
                (sink, taken) = blocking(move || {
                    let taken = sink.chunk(chunk);
                    (sink, taken)
                })
                .await?;
                taken?;
            }
            Kind::SnapshotEnd => {
                let totals = read_snapshot_end(frame.payload)?;
                if totals != (chunks, bytes) {
                    let detail = format!("{totals:?} sent, {:?} received", (chunks, bytes));
                    blocking(move || sink.cancel()).await?;
                    return Err(Error::malformed("snapshot end", detail));
                }
                return Ok(Some(sink));
            }
            Kind::SnapshotCancel => {
                read_signal(frame.payload)?;
                blocking(move || sink.cancel()).await?;
                return Ok(None);
            }
            kind => return Err(Error::malformed("snapshot stream", format!("{kind:?}"))),
        }
    }
}

async fn signal(shared: &Shared, kind: Kind, writer: &mut OwnedWriteHalf) -> Result<()> {
    let mut out = Vec::new();
    write_signal(kind, &mut out);
    write(writer, &out, shared.config.frame_timeout, &shared.counters).await
}
