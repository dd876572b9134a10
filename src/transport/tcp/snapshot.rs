//! Both ends of a snapshot: a connection of its own, room reserved first, numbered chunks, and an
//! acknowledgement when the receiver holds everything.

use super::super::frame::{Frame, HEAD, Kind};
use super::super::payload::{
    MAX_CHUNK, MAX_SNAPSHOT_HEADER, Purpose, read_refusal, read_signal, read_snapshot_begin,
    read_snapshot_chunk, read_snapshot_end, write_signal, write_snapshot_begin,
    write_snapshot_chunk, write_snapshot_end,
};
use super::super::{SnapshotJob, SnapshotSource};
use super::accept::Reader;
use super::dial::{Dialled, dial};
use super::stream::{Patience, write};
use super::{Counters, Shared};
use crate::error::{Error, Result};
use crate::types::StoreId;
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::time::{Instant, sleep_until};

/// Spreads the bytes of all transfers over time.
pub(super) struct Pacer {
    rate: Option<u64>,
    next: Mutex<Option<Instant>>,
}

impl Pacer {
    pub(super) fn new(rate: Option<u64>) -> Pacer {
        Pacer { rate, next: Mutex::new(None) }
    }

    /// Waits until `bytes` more may be sent.
    async fn pass(&self, bytes: usize) {
        let Some(rate) = self.rate else { return };
        let cost = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        let turn = {
            let mut next = self.next.lock();
            let turn = next.unwrap_or_else(Instant::now).max(Instant::now());
            *next = Some(turn + cost);
            turn
        };
        sleep_until(turn).await;
    }
}

type DoneFn = Box<dyn FnOnce(Result<()>) + Send>;

/// Calls `done` once, whatever happens to the task that holds it.
struct Done(Option<DoneFn>);

impl Done {
    fn call(mut self, result: Result<()>) {
        if let Some(done) = self.0.take() {
            done(result);
        }
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done(Err(Error::Stopped { reason: "the transport was shut down".into() }));
        }
    }
}

/// Sends in the background; see [`Transport::send_snapshot`](super::super::Transport::send_snapshot).
pub(super) fn send(shared: &Arc<Shared>, to: StoreId, job: SnapshotJob) {
    let SnapshotJob { header, source, done } = job;
    let done = Done(Some(done));
    let shared = shared.clone();
    // `done` never runs on the caller's thread: it may hold its own locks.
    shared.clone().spawn(async move {
        let Ok(_permit) = shared.sending.clone().try_acquire_owned() else {
            return done.call(Err(Error::Busy { what: "snapshots being sent" }));
        };
        let result = transfer(&shared, to, header, source).await;
        match &result {
            Ok(()) => Counters::add(&shared.counters.snapshots_sent, 1),
            Err(error) => tracing::warn!(store = %to, %error, "snapshot not sent"),
        }
        done.call(result);
    });
}

async fn transfer(
    shared: &Arc<Shared>,
    to: StoreId,
    header: Bytes,
    source: Box<dyn SnapshotSource>,
) -> Result<()> {
    if header.len() > MAX_SNAPSHOT_HEADER {
        return Err(Error::InvalidArgument(format!("a snapshot header of {} bytes", header.len())));
    }
    let peer = shared.peer(to);
    let Dialled { mut reader, mut writer } = dial(shared, &peer, Purpose::Snapshot).await?;
    let limit = shared.config.snapshot_timeout;
    let stall = shared.config.frame_timeout;
    // No pings here: the receiver may be busy with its disk for as long as the limit says.
    reader.relax(shared.config.max_frame, Patience { idle: limit, frame: stall });
    let mut out = Vec::new();
    write_snapshot_begin(&header, &mut out);
    write(&mut writer, &out, stall, &shared.counters).await?;
    expect(reader.next().await?, Kind::SnapshotAccept)?;
    let pouring = pour(shared, source, &mut writer);
    // A refusal in the middle ends it; nothing else may come before the end.
    let early = {
        // A receiver says nothing while chunks flow, so silence is no fault here.
        reader.relax(shared.config.max_frame, Patience { idle: FOREVER, frame: stall });
        tokio::select! {
            biased;
            frame = reader.next() => Some(frame?),
            poured = pouring => match poured {
                Ok(()) => None,
                // The receiver may have said why before it closed.
                Err(Error::Io { .. }) => Some(reader.next().await?),
                Err(error) => return Err(error),
            },
        }
    };
    if let Some(frame) = early {
        expect(frame, Kind::Refused)?;
    }
    reader.relax(shared.config.max_frame, Patience { idle: limit, frame: stall });
    expect(reader.next().await?, Kind::SnapshotDone)
}

/// Long enough to be never.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// A frame of this kind, or the error that came instead.
fn expect(frame: Frame, kind: Kind) -> Result<()> {
    match frame.kind {
        Kind::Refused => Err(read_refusal(frame.payload)?.into_error()),
        found if found == kind => read_signal(frame.payload),
        found => Err(Error::malformed("snapshot stream", format!("{found:?} for {kind:?}"))),
    }
}

async fn pour(
    shared: &Shared,
    mut source: Box<dyn SnapshotSource>,
    writer: &mut OwnedWriteHalf,
) -> Result<()> {
    let (mut chunks, mut bytes) = (0u64, 0u64);
    let mut out = Vec::new();
    loop {
        let chunk;
        (source, chunk) = blocking(move || {
            let chunk = source.next();
            (source, chunk)
        })
        .await?;
        let Some(chunk) = chunk? else { break };
        if chunk.is_empty() || chunk.len() > MAX_CHUNK {
            let len = chunk.len();
            return Err(Error::InvalidArgument(format!("a snapshot chunk of {len} bytes")));
        }
        shared.pacer.pass(chunk.len()).await;
        out.clear();
        write_snapshot_chunk(chunks, &chunk, &mut out);
        write(writer, &out, shared.config.frame_timeout, &shared.counters).await?;
        chunks += 1;
        bytes += chunk.len() as u64;
    }
    out.clear();
    write_snapshot_end(chunks, bytes, &mut out);
    write(writer, &out, shared.config.frame_timeout, &shared.counters).await
}

/// Runs what may block where that is allowed.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::Stopped { reason: format!("snapshot work ended early: {e}") })
}

/// The receiving end. An error is told to the sender by the caller; the sink is then dropped.
pub(super) async fn receive(
    shared: &Shared,
    from: StoreId,
    reader: &mut Reader,
    writer: &mut OwnedWriteHalf,
) -> Result<()> {
    let limits =
        Patience { idle: shared.config.snapshot_timeout, frame: shared.config.frame_timeout };
    let max = MAX_CHUNK.max(MAX_SNAPSHOT_HEADER) + HEAD;
    reader.relax(max.min(shared.config.max_frame), limits);
    let frame = reader.next().await?;
    if frame.kind != Kind::SnapshotBegin {
        return Err(Error::malformed("snapshot stream", format!("{:?} first", frame.kind)));
    }
    let header = read_snapshot_begin(frame.payload)?;
    let Some(handler) = shared.handler() else { return Ok(()) };
    let mut sink = blocking(move || handler.snapshot_begin(from, header)).await??;
    signal(shared, Kind::SnapshotAccept, writer).await?;
    let (mut chunks, mut bytes) = (0u64, 0u64);
    loop {
        let frame = reader.next().await?;
        match frame.kind {
            Kind::SnapshotChunk => {
                let chunk = read_snapshot_chunk(frame.payload, chunks)?;
                chunks += 1;
                bytes += chunk.len() as u64;
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
                    return Err(Error::malformed("snapshot end", detail));
                }
                break;
            }
            kind => return Err(Error::malformed("snapshot stream", format!("{kind:?}"))),
        }
    }
    blocking(move || sink.finish()).await??;
    Counters::add(&shared.counters.snapshots_received, 1);
    signal(shared, Kind::SnapshotDone, writer).await
}

async fn signal(shared: &Shared, kind: Kind, writer: &mut OwnedWriteHalf) -> Result<()> {
    let mut out = Vec::new();
    write_signal(kind, &mut out);
    write(writer, &out, shared.config.frame_timeout, &shared.counters).await
}
