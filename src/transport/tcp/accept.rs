//! The accepting side: handshake, then raft messages and requests in, answers out.

use super::super::frame::{Frame, Kind};
use super::super::payload::{
    Hello, MAX_HANDSHAKE, PROTOCOL, Purpose, Reason, Refusal, Welcome, read_beat, read_call,
    read_envelopes, read_hello, read_signal, write_refusal, write_welcome,
};
use super::super::queue::Outbox;
use super::super::{Handler, Origin};
use super::complaints::Complaint;
use super::stream::{FrameReader, Patience, write, write_loop};
use super::{Accepted, Counters, Shared, receive};
use crate::error::{Error, Result};
use crate::types::StoreId;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// How long a refusal may take to be written.
const FAREWELL: Duration = Duration::from_secs(1);

pub(super) type Reader = FrameReader<OwnedReadHalf>;

/// Accepts for as long as the transport lives.
pub(super) async fn listen(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, mostly: waiting helps, spinning does not.
                if let Some(left_out) = shared.complaints.may_say(Complaint::Accept) {
                    tracing::warn!(%error, left_out, "accept failed");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(permit) = shared.open.clone().try_acquire_owned() else {
            Counters::add(&shared.counters.refused_connections, 1);
            if let Some(left_out) = shared.complaints.may_say(Complaint::Crowded) {
                tracing::warn!(%from, left_out, "refused: too many connections");
            }
            let mut out = Vec::new();
            let detail = "too many connections".to_owned();
            write_refusal(&Refusal { reason: Reason::Busy, detail }, &mut out);
            // A fresh socket takes these few bytes; if not, closing says enough.
            let _ = stream.try_write(&out);
            continue;
        };
        let theirs = shared.clone();
        shared.spawn(async move {
            connection(theirs, stream, from).await;
            drop(permit);
        });
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream, from: SocketAddr) {
    let _ = stream.set_nodelay(true);
    let (reader, mut writer) = stream.into_split();
    let limit = shared.config.handshake_timeout;
    let patience = Patience { idle: limit, frame: limit };
    let counters = shared.counters.clone();
    let mut reader =
        FrameReader::new(reader, MAX_HANDSHAKE, patience, shared.budget.clone(), counters);
    let hello = match greet(&shared, &mut reader, from).await {
        Ok(hello) => hello,
        Err(refusal) => {
            Counters::add(&shared.counters.refused_connections, 1);
            if refusal.reason == Reason::Malformed {
                Counters::add(&shared.counters.malformed, 1);
            }
            let Refusal { reason, detail } = &refusal;
            if let Some(left_out) = shared.complaints.may_say(Complaint::Refused(*reason)) {
                tracing::warn!(%from, ?reason, detail, left_out, "handshake refused");
            }
            return farewell(&shared, reader, writer, &refusal).await;
        }
    };
    let mut out = Vec::new();
    write_welcome(
        &Welcome {
            protocol: PROTOCOL,
            cluster: shared.config.cluster,
            store: shared.config.store,
            incarnation: shared.config.incarnation,
            start: shared.config.start,
        },
        &mut out,
    );
    if write(&mut writer, &out, limit, &shared.counters).await.is_err() {
        return;
    }
    Counters::add(&shared.counters.accepted, 1);
    reader.relax(shared.config.max_frame, shared.patience());
    if hello.purpose != Purpose::Client {
        // It lives: no need to wait before dialling it.
        if let Some(peer) = shared.peers.lock().get(&hello.store) {
            peer.alive.notify_waiters();
        }
    }
    let Err(error) = attend(&shared, &hello, &mut reader, &mut writer).await else { return };
    match &error {
        Error::Malformed { .. } => Counters::add(&shared.counters.malformed, 1),
        Error::Io { .. } => {
            tracing::debug!(%from, %error, "connection ended");
            return;
        }
        _ => {}
    }
    if let Some(left_out) = shared.complaints.may_say(Complaint::Closed) {
        tracing::warn!(%from, %error, left_out, "closing the connection");
    }
    farewell(&shared, reader, writer, &Refusal::of(&error)).await;
}

/// What the other side wants, until it ends.
async fn attend(
    shared: &Shared,
    hello: &Hello,
    reader: &mut Reader,
    writer: &mut OwnedWriteHalf,
) -> Result<()> {
    let store = hello.store;
    let work = async {
        match hello.purpose {
            Purpose::Snapshot => receive::receive(shared, store, reader, writer).await,
            Purpose::Peer => serve(shared, Some(store), reader, writer).await,
            Purpose::Client => serve(shared, None, reader, writer).await,
        }
    };
    if hello.purpose == Purpose::Client {
        return work.await;
    }
    tokio::select! {
        // First, so that nothing more is taken in.
        biased;
        why = shared.cut_off(store) => Err(why),
        ended = work => ended,
    }
}

async fn farewell(
    shared: &Shared,
    mut reader: Reader,
    mut writer: OwnedWriteHalf,
    refusal: &Refusal,
) {
    let mut out = Vec::new();
    write_refusal(refusal, &mut out);
    // Best effort: who sends nonsense may not read either.
    if write(&mut writer, &out, FAREWELL, &shared.counters).await.is_ok() {
        drop(writer); // closes this direction
        reader.drain(FAREWELL).await;
    }
}

/// The dialling side's hello, if we want to talk to it.
async fn greet(
    shared: &Arc<Shared>,
    reader: &mut Reader,
    from: SocketAddr,
) -> Result<Hello, Refusal> {
    let refuse = |reason, detail: String| Err(Refusal { reason, detail });
    // One clock for the whole of it: a byte now and then does not prolong it.
    let frame = match tokio::time::timeout(shared.config.handshake_timeout, reader.next()).await {
        Ok(Ok(frame)) => frame,
        Ok(Err(error)) => return Err(Refusal::of(&error)),
        Err(_) => return refuse(Reason::Silent, "no hello in time".into()),
    };
    if frame.kind != Kind::Hello {
        return refuse(Reason::Malformed, format!("{:?} for a hello", frame.kind));
    }
    let hello = match read_hello(frame.payload) {
        Ok(hello) => hello,
        Err(Error::Identity(detail)) => return refuse(Reason::Protocol, detail),
        Err(error) => return Err(Refusal::of(&error)),
    };
    let config = &shared.config;
    let anonymous = hello.purpose == Purpose::Client;
    match hello.cluster {
        Some(cluster) if cluster != config.cluster => {
            let ours = config.cluster;
            return refuse(Reason::Cluster, format!("cluster {cluster}, this is cluster {ours}"));
        }
        None if !anonymous => return refuse(Reason::Cluster, "a node without a cluster".into()),
        _ => {}
    }
    if let Some(target) = hello.target.filter(|target| *target != config.store) {
        return refuse(Reason::Store, format!("{target} was meant, this is {}", config.store));
    }
    if !anonymous {
        if hello.store == config.store {
            return refuse(Reason::Store, format!("{} is this store", hello.store));
        }
        let Some(handler) = shared.handler() else {
            return refuse(Reason::Failed, "shutting down".into());
        };
        if let Err(error) = handler.hello(hello.store, hello.incarnation, hello.start) {
            return Err(Refusal::of(&error));
        }
        if let Some(address) = hello.address.clone() {
            shared.introduced(hello.store, address, from);
        }
    }
    Ok(hello)
}

/// Forgets a connection, whichever way its task ends.
struct Listed<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.shared.accepted.lock().remove(&self.id);
    }
}

/// Takes messages and requests in, lets answers out, until something breaks.
async fn serve(
    shared: &Shared,
    store: Option<StoreId>,
    reader: &mut Reader,
    writer: &mut OwnedWriteHalf,
) -> Result<()> {
    let id = shared.next_connection.fetch_add(1, Ordering::Relaxed);
    let accepted =
        Arc::new(Accepted { outbox: Outbox::new(shared.config.peer_budget), close: Notify::new() });
    shared.accepted.lock().insert(id, accepted.clone());
    let _listed = Listed { shared, id };
    let origin = Origin { store, connection: id };
    let reading = async {
        let mut frames = Vec::new();
        loop {
            reader.next_batch(&mut frames).await?;
            let Some(handler) = shared.handler() else { return Ok(()) };
            dispatch(shared, handler.as_ref(), origin, &mut frames)?;
        }
    };
    tokio::select! {
        ended = reading => ended,
        ended = write_loop(writer, &accepted.outbox, shared.pace(), &shared.counters) => ended,
        () = accepted.close.notified() => Err(Error::Busy { what: "answers not being read" }),
    }
}

/// Hands over all that one read brought. What came whole before a bad frame is still handed over.
fn dispatch(
    shared: &Shared,
    handler: &dyn Handler,
    origin: Origin,
    frames: &mut Vec<Frame>,
) -> Result<()> {
    let mut envelopes = Vec::new();
    let mut requests = Vec::new();
    let mut sort = |frame: Frame| match (frame.kind, origin.store) {
        (Kind::Envelopes, Some(store)) => {
            let before = envelopes.len();
            read_envelopes(frame.payload, store, &mut envelopes)
                .inspect_err(|_| envelopes.truncate(before))
        }
        (Kind::Beat, Some(store)) => read_beat(frame.payload).map(|beat| handler.beat(store, beat)),
        (Kind::Request, _) => read_call(frame.payload).map(|call| requests.push(call)),
        (Kind::Ping, _) => read_signal(frame.payload),
        (kind, _) => Err(Error::malformed("stream", format!("{kind:?} from a dialler"))),
    };
    let judged = frames.drain(..).try_for_each(&mut sort);
    if let (Some(store), false) = (origin.store, envelopes.is_empty()) {
        Counters::add(&shared.counters.received_envelopes, envelopes.len() as u64);
        handler.envelopes(store, envelopes);
    }
    if !requests.is_empty() {
        handler.requests(origin, requests);
    }
    judged
}
