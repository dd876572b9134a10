//! The sending end of a snapshot: ask for a slot, send what belongs in it, come back when the connection breaks.

use super::super::bucket::Bucket;
use super::super::frame::{Frame, Kind};
use super::super::payload::{
    MAX_CHUNK, MAX_SNAPSHOT_ASK, MAX_SNAPSHOT_HEADER, Purpose, read_refusal, read_signal,
    read_snapshot_accept, write_signal, write_snapshot_ask, write_snapshot_begin,
    write_snapshot_chunk, write_snapshot_end,
};
use super::super::{Cancel, SlotAnswer, SnapshotJob, SnapshotSlot, SnapshotSource};
use super::dial::{Dialled, dial};
use super::stream::{Patience, write};
use super::{Counters, Shared};
use crate::error::{Error, Result};
use crate::types::{StoreId, Time};
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

/// Spreads the bytes of all transfers over time.
pub(super) struct Pacer {
    bucket: Mutex<Bucket>,
    origin: Instant,
}

impl Pacer {
    pub(super) fn new(rate: u64) -> Pacer {
        Pacer { bucket: Mutex::new(Bucket::new(rate)), origin: Instant::now() }
    }

    /// Waits until `bytes` more may be sent.
    async fn pass(&self, bytes: usize) {
        let now = Time(self.origin.elapsed().as_nanos() as u64);
        let wait = self.bucket.lock().take(now, bytes);
        if !wait.is_zero() {
            sleep(wait).await;
        }
    }
}

/// Calls what is in it once, whatever happens to the task that holds it.
struct Once<T>(Option<Box<dyn FnOnce(Result<T>) + Send>>);

impl<T> Once<T> {
    fn call(mut self, result: Result<T>) {
        if let Some(tell) = self.0.take() {
            tell(result);
        }
    }
}

impl<T> Drop for Once<T> {
    fn drop(&mut self) {
        if let Some(tell) = self.0.take() {
            tell(Err(Error::Stopped { reason: "the transport was shut down".into() }));
        }
    }
}

/// What fills a slot: the job, and who is told its end.
struct Filling {
    header: Bytes,
    source: Box<dyn SnapshotSource>,
    cancel: Cancel,
    done: Once<()>,
}

/// A slot, with the connection that holds it waiting in a task.
struct Slot {
    shared: Arc<Shared>,
    fill: oneshot::Sender<Filling>,
}

impl SnapshotSlot for Slot {
    fn send(self: Box<Self>, job: SnapshotJob) {
        let SnapshotJob { header, source, cancel, done } = job;
        let filling = Filling { header, source, cancel, done: Once(Some(done)) };
        if let Err(filling) = self.fill.send(filling) {
            // The task has ended: too late, or shut down. Not on the caller's thread: it may hold its own locks.
            self.shared.spawn(async move {
                filling.done.call(Err(Error::Busy { what: "the slot: it has lapsed" }));
            });
        }
    }
}

/// Asks in the background; see [`Transport::ask_snapshot`](super::super::Transport::ask_snapshot).
pub(super) fn ask(shared: &Arc<Shared>, to: StoreId, ask: Bytes, answer: SlotAnswer) {
    let answer = Once(Some(answer));
    let shared = shared.clone();
    shared.clone().spawn(async move {
        let held = match reserve(&shared, to, &ask).await {
            Ok(held) => held,
            Err(error) => return answer.call(Err(error)),
        };
        let (fill, filled) = oneshot::channel();
        answer.call(Ok(Box::new(Slot { shared: shared.clone(), fill })));
        match timeout(shared.config.snapshot_timeout, filled).await {
            Ok(Ok(Filling { header, source, cancel, done })) => {
                let source = Arc::new(Mutex::new(source));
                let transfer = Transfer { shared: &shared, to, ask, header, source, cancel };
                let result = tokio::select! {
                    ended = transfer.run(held) => ended,
                    why = shared.cut_off(to) => Err(why),
                };
                transfer.count(&result);
                done.call(result);
            }
            // Not needed, or too late.
            _ => give_up(&shared, held).await,
        }
    });
}

/// A connection whose other side keeps a slot.
async fn reserve(shared: &Arc<Shared>, to: StoreId, ask: &Bytes) -> Result<Dialled> {
    if ask.len() > MAX_SNAPSHOT_ASK {
        let what = format!("a question for a slot of {} bytes", ask.len());
        return Err(Error::InvalidArgument(what));
    }
    let peer = shared.peer(to);
    let mut held = dial(shared, &peer, Purpose::Snapshot).await?;
    let frame = shared.config.frame_timeout;
    // An answer takes no longer than a handshake: nothing is made for it.
    let idle = shared.config.handshake_timeout;
    held.reader.relax(shared.config.max_frame, Patience { idle, frame });
    let mut out = Vec::new();
    write_snapshot_ask(ask, &mut out);
    write(&mut held.writer, &out, frame, &shared.counters).await?;
    let grant = wanted(held.reader.next().await?, Kind::SnapshotGrant)?;
    read_signal(grant)?;
    Ok(held)
}

/// Says that nothing more comes.
async fn give_up(shared: &Shared, mut held: Dialled) {
    let mut out = Vec::new();
    write_signal(Kind::SnapshotCancel, &mut out);
    // Best effort: the other side finds out by itself.
    let _ = write(&mut held.writer, &out, shared.config.handshake_timeout, &shared.counters).await;
}

/// The payload of a frame of this kind, or the error that came instead.
fn wanted(frame: Frame, kind: Kind) -> Result<Bytes> {
    match frame.kind {
        Kind::Refused => Err(read_refusal(frame.payload)?.into_error()),
        found if found == kind => Ok(frame.payload),
        found => Err(Error::malformed("snapshot stream", format!("{found:?} for {kind:?}"))),
    }
}

/// Runs what may block where that is allowed.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::Stopped { reason: format!("snapshot work ended early: {e}") })
}

fn cancelled() -> Error {
    Error::Busy { what: "a snapshot that was called off" }
}

/// Long enough to be never.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// One snapshot on its way, over as many connections as it takes.
struct Transfer<'a> {
    shared: &'a Arc<Shared>,
    to: StoreId,
    ask: Bytes,
    header: Bytes,
    /// Locked only where blocking is allowed: an attempt may end while the source is still at work for it.
    source: Arc<Mutex<Box<dyn SnapshotSource>>>,
    cancel: Cancel,
}

impl Transfer<'_> {
    async fn run(&self, mut held: Dialled) -> Result<()> {
        if self.header.len() > MAX_SNAPSHOT_HEADER {
            let what = format!("a snapshot header of {} bytes", self.header.len());
            return Err(Error::InvalidArgument(what));
        }
        let patience = self.shared.config.snapshot_timeout;
        let mut until = Instant::now() + patience;
        loop {
            let mut pour = Pour { totals: (0, 0), moved: false };
            let broken = match self.attempt(held, &mut pour).await {
                Err(error) if is_a_break(&error) && !self.cancel.is_cancelled() => error,
                ended => return ended,
            };
            if pour.moved {
                until = Instant::now() + patience;
            }
            tracing::debug!(store = %self.to, error = %broken, "a snapshot's connection broke");
            held = self.again(until, broken).await?;
            Counters::add(&self.shared.counters.snapshots_resumed, 1);
        }
    }

    /// Another connection with a slot, after a break.
    async fn again(&self, until: Instant, broken: Error) -> Result<Dialled> {
        let config = &self.shared.config;
        let mut wait = config.backoff_min;
        loop {
            if Instant::now() + wait > until {
                return Err(broken);
            }
            tokio::select! {
                () = sleep(wait) => {}
                () = self.cancel.cancelled() => return Err(cancelled()),
            }
            match reserve(self.shared, self.to, &self.ask).await {
                Ok(held) => return Ok(held),
                // All slots are taken, or it is still out of reach.
                Err(Error::Busy { .. }) => {}
                Err(error) if is_a_break(&error) => {}
                Err(error) => return Err(error),
            }
            wait = (wait * 2).min(config.backoff_max);
        }
    }

    /// One connection's worth.
    async fn attempt(&self, held: Dialled, pour: &mut Pour) -> Result<()> {
        let Dialled { mut reader, mut writer } = held;
        let shared = self.shared;
        let (limit, stall) = (shared.config.snapshot_timeout, shared.config.frame_timeout);
        // No pings here: the receiver may be busy with its disk for as long as the limit says.
        reader.relax(shared.config.max_frame, Patience { idle: limit, frame: stall });
        let mut out = Vec::new();
        write_snapshot_begin(&self.header, &mut out);
        write(&mut writer, &out, stall, &shared.counters).await?;
        pour.totals = read_snapshot_accept(wanted(reader.next().await?, Kind::SnapshotAccept)?)?;
        // A refusal in the middle ends it; nothing else may come before the end. A receiver says nothing while
        // chunks flow, so silence is no fault here.
        reader.relax(shared.config.max_frame, Patience { idle: FOREVER, frame: stall });
        let ended = tokio::select! {
            biased;
            frame = reader.next() => Err(frame.and_then(|f| wanted(f, Kind::Refused)).map_or_else(
                |error| error,
                |_| Error::malformed("snapshot stream", "a refusal that is none"),
            )),
            poured = pour.run(self, &mut writer) => poured,
        };
        match ended {
            // The receiver may have said why before it closed.
            Err(error @ Error::Io { .. }) => {
                reader.relax(shared.config.max_frame, Patience { idle: stall, frame: stall });
                match reader.next().await {
                    Ok(frame) if frame.kind == Kind::Refused => {
                        wanted(frame, Kind::SnapshotDone).map(|_| ())
                    }
                    _ => Err(error),
                }
            }
            Ok(()) => {
                reader.relax(shared.config.max_frame, Patience { idle: limit, frame: stall });
                tokio::select! {
                    frame = reader.next() => {
                        frame.and_then(|f| wanted(f, Kind::SnapshotDone)).and_then(read_signal)
                    }
                    () = self.cancel.cancelled() => Err(cancelled()),
                }
            }
            other => other,
        }
    }

    async fn source<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut dyn SnapshotSource) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let source = self.source.clone();
        blocking(move || what(&mut **source.lock())).await?
    }

    fn count(&self, result: &Result<()>) {
        let counters = &self.shared.counters;
        match result {
            Ok(()) => Counters::add(&counters.snapshots_sent, 1),
            Err(_) if self.cancel.is_cancelled() => {
                Counters::add(&counters.snapshots_cancelled, 1);
            }
            Err(error) => tracing::warn!(store = %self.to, %error, "snapshot not sent"),
        }
    }
}

/// Whether it was the connection's fault: another one may do better.
fn is_a_break(error: &Error) -> bool {
    matches!(error, Error::Io { .. } | Error::Timeout { .. })
}

/// The chunks of one attempt.
struct Pour {
    /// Chunks and bytes that the receiver holds or was sent.
    totals: (u64, u64),
    /// Whether this attempt sent any.
    moved: bool,
}

impl Pour {
    async fn run(&mut self, transfer: &Transfer<'_>, writer: &mut OwnedWriteHalf) -> Result<()> {
        let (shared, cancel) = (transfer.shared, &transfer.cancel);
        let stall = shared.config.frame_timeout;
        let mut out = Vec::new();
        let held = self.totals.0;
        transfer.source(move |source| source.rewind(held)).await?;
        while let Some(chunk) = transfer.source(|source| source.next()).await? {
            if chunk.is_empty() || chunk.len() > MAX_CHUNK {
                let len = chunk.len();
                return Err(Error::InvalidArgument(format!("a snapshot chunk of {len} bytes")));
            }
            tokio::select! {
                () = shared.pacer.pass(chunk.len()) => {}
                () = cancel.cancelled() => {}
            }
            out.clear();
            if cancel.is_cancelled() {
                write_signal(Kind::SnapshotCancel, &mut out);
                let _ =
                    write(writer, &out, shared.config.handshake_timeout, &shared.counters).await;
                return Err(cancelled());
            }
            write_snapshot_chunk(self.totals.0, &chunk, &mut out);
            // In the middle of a frame nothing can be said: the receiver finds the stream cut.
            tokio::select! {
                written = write(writer, &out, stall, &shared.counters) => written?,
                () = cancel.cancelled() => return Err(cancelled()),
            }
            self.moved = true;
            self.totals.0 += 1;
            self.totals.1 += chunk.len() as u64;
            Counters::add(&shared.counters.snapshot_bytes_sent, chunk.len() as u64);
        }
        out.clear();
        write_snapshot_end(self.totals.0, self.totals.1, &mut out);
        write(writer, &out, stall, &shared.counters).await
    }
}
