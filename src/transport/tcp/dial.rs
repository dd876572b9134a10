//! The dialling side: a connection to each peer node, kept alive.

use super::super::frame::Kind;
use super::super::payload::{
    Hello, MAX_HANDSHAKE, PROTOCOL, Purpose, read_call, read_refusal, read_signal, read_welcome,
    write_hello,
};
use super::stream::{FrameReader, Patience, write, write_loop};
use super::{Counters, Peer, Shared};
use crate::error::{Error, Result};
use crate::types::StoreId;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

/// A connection after its handshake.
pub(super) struct Dialled {
    pub(super) reader: FrameReader<OwnedReadHalf>,
    pub(super) writer: OwnedWriteHalf,
}

/// Dials, serves, backs off; for as long as the transport lives, and the store belongs to the cluster.
pub(super) async fn keep(shared: Arc<Shared>, peer: Arc<Peer>) {
    let why = tokio::select! {
        why = shared.cut_off(peer.store) => why,
        () = keep_dialling(&shared, &peer) => return,
    };
    tracing::info!(store = %peer.store, %why, "cut off");
    // Stays closed: nothing is sent any more.
    let lost = peer.outbox.close();
    Counters::add(&shared.counters.dropped_envelopes, lost.envelopes);
    if let Some(handler) = shared.handler() {
        handler.connection_lost(peer.store);
        handler.unreachable(peer.store);
    }
}

/// Of refusals in a row one in so many is said aloud, beginning with the first.
const REFUSED_EVERY: u32 = 100;

async fn keep_dialling(shared: &Arc<Shared>, peer: &Peer) {
    let mut failures = 0u32;
    loop {
        let mut connected = false;
        let ended = match dial(shared, peer, Purpose::Peer).await {
            Ok(dialled) => {
                failures = 0;
                connected = true;
                tracing::info!(store = %peer.store, "connected");
                Counters::add(&shared.counters.dialled, 1);
                peer.outbox.open();
                serve(shared, peer, dialled).await
            }
            Err(error) => error,
        };
        let lost = peer.outbox.close();
        Counters::add(&shared.counters.dropped_envelopes, lost.envelopes);
        let wait = backoff(shared, peer.store, failures);
        failures = failures.saturating_add(1);
        match &ended {
            // Another cluster or protocol: somebody has to do something about it.
            Error::Identity(_) => match failures % REFUSED_EVERY {
                1 => tracing::error!(store = %peer.store, %ended, failures, "refused"),
                _ => tracing::debug!(store = %peer.store, %ended, failures, "refused"),
            },
            _ => tracing::warn!(store = %peer.store, %ended, ?wait, "out of reach"),
        }
        if let Some(handler) = shared.handler() {
            if connected || lost.calls > 0 {
                handler.connection_lost(peer.store);
            }
            handler.unreachable(peer.store);
        }
        let _ = timeout(wait, peer.alive.notified()).await;
    }
}

/// Doubles from the least to the most, and takes off up to half of it: nodes that lost the same peer
/// do not come back in step.
fn backoff(shared: &Shared, store: StoreId, failures: u32) -> Duration {
    let config = &shared.config;
    let full = config.backoff_min.saturating_mul(1 << failures.min(16)).min(config.backoff_max);
    let mut x = config.store.0 ^ store.0.rotate_left(20) ^ config.incarnation;
    x = x.wrapping_add(u64::from(failures).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    full - full.mul_f64(((x >> 40) as f64) / ((1u64 << 24) as f64) / 2.0)
}

/// A connection to `peer` with the handshake done.
pub(super) async fn dial(shared: &Arc<Shared>, peer: &Peer, purpose: Purpose) -> Result<Dialled> {
    let Some(address) = peer.address.lock().clone() else {
        return Err(Error::InvalidArgument(format!("{} has no known address", peer.store)));
    };
    let limit = shared.config.handshake_timeout;
    let stream = match timeout(limit, TcpStream::connect(&address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(Error::io("connect to", address, error)),
        Err(_) => {
            let after_ms = limit.as_millis() as u64;
            return Err(Error::Timeout { after_ms, what: "a connection" });
        }
    };
    stream.set_nodelay(true).map_err(|e| Error::io("set nodelay", &address, e))?;
    let (reader, mut writer) = stream.into_split();
    let patience = Patience { idle: limit, frame: limit };
    let counters = shared.counters.clone();
    let mut reader =
        FrameReader::new(reader, MAX_HANDSHAKE, patience, shared.budget.clone(), counters);
    let hello = Hello {
        protocol: PROTOCOL,
        purpose,
        cluster: Some(shared.config.cluster),
        store: shared.config.store,
        incarnation: shared.config.incarnation,
        target: Some(peer.store),
        start: shared.config.start,
        address: shared.config.advertise.clone(),
    };
    let mut out = Vec::new();
    write_hello(&hello, &mut out);
    write(&mut writer, &out, limit, &shared.counters).await?;
    let frame = reader.next().await?;
    let welcome = match frame.kind {
        Kind::Welcome => read_welcome(frame.payload)?,
        Kind::Refused => return Err(read_refusal(frame.payload)?.into_error()),
        kind => return Err(Error::malformed("handshake", format!("{kind:?} for a welcome"))),
    };
    if welcome.cluster != shared.config.cluster || welcome.store != peer.store {
        return Err(Error::Identity(format!(
            "{address} is {} of cluster {}, expected {} of {}",
            welcome.store, welcome.cluster, peer.store, shared.config.cluster
        )));
    }
    if let Some(handler) = shared.handler() {
        handler.hello(peer.store, welcome.incarnation, welcome.start)?;
    }
    reader.relax(shared.config.max_frame, shared.patience());
    Ok(Dialled { reader, writer })
}

/// Writes what is queued, reads answers; returns why it ended.
async fn serve(shared: &Arc<Shared>, peer: &Peer, dialled: Dialled) -> Error {
    let Dialled { mut reader, writer } = dialled;
    let reading = async {
        let mut frames = Vec::new();
        loop {
            reader.next_batch(&mut frames).await?;
            let mut answers = Vec::new();
            for frame in frames.drain(..) {
                match frame.kind {
                    Kind::Response => answers.push(read_call(frame.payload)?),
                    Kind::Ping => read_signal(frame.payload)?,
                    Kind::Refused => return Err(read_refusal(frame.payload)?.into_error()),
                    kind => {
                        return Err(Error::malformed(
                            "stream",
                            format!("{kind:?} from an acceptor"),
                        ));
                    }
                }
            }
            match shared.handler() {
                Some(handler) if !answers.is_empty() => handler.responses(peer.store, answers),
                _ => {}
            }
        }
    };
    let writing = write_loop(writer, &peer.outbox, shared.pace(), &shared.counters);
    let ended: Result<()> = tokio::select! {
        ended = reading => ended,
        ended = writing => ended,
    };
    let ended = ended.err().unwrap_or_else(super::stream::closed);
    if matches!(ended, Error::Malformed { .. }) {
        Counters::add(&shared.counters.malformed, 1);
    }
    ended
}
