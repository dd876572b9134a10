//! One connection's two halves: [`FrameReader`] cuts frames out of what arrives, [`write_loop`] drains
//! an outbox into few large writes. Both are used by either side, and by the client.

use super::super::frame::{self, Decoder, Frame, HEAD};
use super::super::payload::write_signal;
use super::super::queue::{Batch, Outbox};
use super::Counters;
use crate::error::{Error, Result};
use bytes::BytesMut;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

/// Room for one read.
const READ: usize = 128 << 10;
/// Less room than this is not worth a read.
const LEAST_ROOM: usize = 16 << 10;
/// Bytes a connection may hold unaccounted; beyond that it draws on the shared budget.
const FREE: usize = 256 << 10;
/// Bytes of messages folded into one write.
const WRITE: usize = 256 << 10;
/// A write buffer that grew beyond this is given back.
const KEEP: usize = 2 << 20;

/// A byte budget shared by connections.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    left: Arc<AtomicUsize>,
}

impl Budget {
    pub(crate) fn new(bytes: usize) -> Budget {
        Budget { left: Arc::new(AtomicUsize::new(bytes)) }
    }

    fn take(&self, bytes: usize) -> bool {
        self.left
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(bytes))
            .is_ok()
    }

    fn give(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::AcqRel);
    }
}

/// How long a reader waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For any byte.
    pub(crate) idle: Duration,
    /// For the rest of a frame that has begun.
    pub(crate) frame: Duration,
}

/// Cuts frames out of a stream.
///
/// * Memory follows what has arrived, never what is claimed; a frame larger than a read's worth
///   draws on the budget of all connections.
/// * Silence, and a frame that does not end, are errors after a while.
#[derive(Debug)]
pub(crate) struct FrameReader<R> {
    stream: R,
    buffer: BytesMut,
    decoder: Decoder,
    patience: Patience,
    budget: Budget,
    drawn: usize,
    begun: Option<Instant>,
    counters: Arc<Counters>,
}

impl<R> Drop for FrameReader<R> {
    fn drop(&mut self) {
        self.budget.give(self.drawn);
    }
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(
        stream: R,
        max: usize,
        patience: Patience,
        budget: Budget,
        counters: Arc<Counters>,
    ) -> FrameReader<R> {
        let (buffer, decoder) = (BytesMut::new(), Decoder::new(max));
        FrameReader { stream, buffer, decoder, patience, budget, drawn: 0, begun: None, counters }
    }

    /// From now on: longer frames, other limits of time. What is buffered stays.
    pub(crate) fn relax(&mut self, max: usize, patience: Patience) {
        self.decoder = Decoder::new(max);
        self.patience = patience;
    }

    /// The next frame.
    pub(crate) async fn next(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = self.cut()? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }

    /// At least one frame, and whatever else has come with it.
    pub(crate) async fn next_batch(&mut self, frames: &mut Vec<Frame>) -> Result<()> {
        frames.push(self.next().await?);
        while let Some(frame) = self.cut()? {
            frames.push(frame);
        }
        Ok(())
    }

    /// Reads and forgets for a while, until the other side closes. A socket closed with unread bytes
    /// resets the connection, and the refusal just written would be lost with it.
    pub(crate) async fn drain(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            self.buffer.clear();
            self.buffer.reserve(LEAST_ROOM);
            match timeout_at(deadline, self.stream.read_buf(&mut self.buffer)).await {
                Ok(Ok(read)) if read > 0 => {}
                _ => return,
            }
        }
    }

    fn cut(&mut self) -> Result<Option<Frame>> {
        let frame = self.decoder.decode(&mut self.buffer)?;
        if frame.is_some() || self.buffer.is_empty() {
            self.begun = None;
        }
        if frame.is_some() && self.drawn > 0 && self.buffer.len() < FREE {
            self.budget.give(std::mem::take(&mut self.drawn));
        }
        Ok(frame)
    }

    async fn fill(&mut self) -> Result<()> {
        let room = self.buffer.capacity() - self.buffer.len();
        let wants = self.decoder.wants(&self.buffer, LEAST_ROOM);
        if room < wants {
            let grow = wants.max(READ);
            let held = self.buffer.len() + grow;
            let owed = if held > FREE { held } else { 0 };
            if owed > self.drawn {
                if !self.budget.take(owed - self.drawn) {
                    return Err(Error::Busy { what: "bytes being received" });
                }
                self.drawn = owed;
            }
            self.buffer.reserve(grow);
        }
        let now = Instant::now();
        let mut deadline = now + self.patience.idle;
        if !self.buffer.is_empty() {
            deadline = deadline.min(*self.begun.get_or_insert(now) + self.patience.frame);
        }
        let read = match timeout_at(deadline, self.stream.read_buf(&mut self.buffer)).await {
            Err(_) => {
                let after_ms = self.patience.idle.min(self.patience.frame).as_millis() as u64;
                let what = "bytes from the other side";
                return Err(Error::Timeout { after_ms, what });
            }
            Ok(Err(error)) => return Err(Error::io("read", "connection", error)),
            Ok(Ok(read)) => read,
        };
        if read == 0 {
            return Err(match self.buffer.len() {
                0 => closed(),
                left => Error::malformed("frame", format!("the stream ends {left} bytes into it")),
            });
        }
        Counters::add(&self.counters.reads, 1);
        Counters::add(&self.counters.received_bytes, read as u64);
        Ok(())
    }
}

/// The other side has closed the connection in good order.
pub(crate) fn closed() -> Error {
    Error::io("read", "connection", std::io::ErrorKind::UnexpectedEof.into())
}

/// How a writer works.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Longest frame the other side takes.
    pub(crate) max_frame: usize,
    /// How often to say "I am here".
    pub(crate) ping: Duration,
    /// How long one write may take.
    pub(crate) stall: Duration,
}

/// Writes what the outbox holds, until the connection fails.
pub(crate) async fn write_loop<W: AsyncWrite + Unpin>(
    mut stream: W,
    outbox: &Outbox,
    pace: Pace,
    counters: &Counters,
) -> Result<()> {
    let mut batch = Batch::default();
    let mut buffer: Vec<u8> = Vec::with_capacity(WRITE + (WRITE >> 2));
    let mut next_ping = Instant::now() + pace.ping;
    loop {
        outbox.take(WRITE, &mut batch);
        if batch.is_empty() && timeout_at(next_ping, outbox.ready()).await.is_ok() {
            continue;
        }
        buffer.clear();
        let left_out = batch.encode(pace.max_frame, &mut buffer) as u64;
        if left_out > 0 {
            tracing::warn!(messages = left_out, "raft messages above the frame cap dropped");
            Counters::add(&counters.dropped_envelopes, left_out);
        }
        let now = Instant::now();
        if now >= next_ping {
            write_signal(frame::Kind::Ping, &mut buffer);
            next_ping = now + pace.ping;
        }
        if let Err(error) = write(&mut stream, &buffer, pace.stall, counters).await {
            Counters::add(&counters.dropped_envelopes, batch.envelopes() - left_out);
            return Err(error);
        }
        Counters::add(&counters.sent_envelopes, batch.envelopes() - left_out);
        if buffer.capacity() > KEEP {
            buffer = Vec::with_capacity(WRITE + HEAD);
        }
    }
}

/// One write of everything, or an error after `stall`.
pub(crate) async fn write<W: AsyncWrite + Unpin>(
    stream: &mut W,
    bytes: &[u8],
    stall: Duration,
    counters: &Counters,
) -> Result<()> {
    match timeout(stall, stream.write_all(bytes)).await {
        Ok(Ok(())) => {
            Counters::add(&counters.writes, 1);
            Counters::add(&counters.sent_bytes, bytes.len() as u64);
            Ok(())
        }
        Ok(Err(error)) => Err(Error::io("write", "connection", error)),
        Err(_) => Err(Error::Timeout { after_ms: stall.as_millis() as u64, what: "a write" }),
    }
}
