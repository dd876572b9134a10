//! A client's end of a connection: requests pipelined by number, answers in any order.

use super::frame::Kind;
use super::payload::{
    Hello, MAX_HANDSHAKE, PROTOCOL, Purpose, Welcome, read_call, read_refusal, read_signal,
    read_welcome, write_hello,
};
use super::queue::Outbox;
use super::tcp::stream::{Budget, FrameReader, Pace, Patience, write, write_loop};
use super::tcp::{Config, Counters};
use crate::error::{Error, Result};
use crate::types::{Start, StoreId};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::timeout;

/// Bytes of requests without an answer, over all clones; beyond that a call waits.
const IN_FLIGHT: usize = 64 << 20;

/// A connection to a node, for a client. Clones share it; it closes when the last one goes.
///
/// * A request is sent once. If the connection breaks before its answer, the call fails as
///   [`Ambiguous`](Error::Ambiguous); if it was broken before, as [`Busy`](Error::Busy) (not sent).
/// * It does not reconnect: the client above knows where to go next.
#[derive(Clone, Debug)]
pub struct Connection {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    link: Arc<Link>,
    welcome: Welcome,
    /// Dropped with the last clone, which ends the task.
    _alive: watch::Sender<()>,
}

#[derive(Debug)]
struct Link {
    outbox: Outbox,
    next: AtomicU64,
    waiting: Mutex<Waiting>,
    room: Semaphore,
    max_frame: usize,
}

type Answer = Result<Bytes>;

#[derive(Debug, Default)]
struct Waiting {
    calls: HashMap<u64, oneshot::Sender<Answer>>,
    /// Why the connection ended, once it has.
    ended: Option<String>,
}

/// Takes a call off the list when its caller loses interest.
struct Interest<'a> {
    link: &'a Link,
    id: u64,
}

impl Drop for Interest<'_> {
    fn drop(&mut self) {
        self.link.waiting.lock().calls.remove(&self.id);
    }
}

impl Connection {
    /// Dials `address` (`host:port`) and shakes hands. With a cluster given, a node of another one is
    /// an [`Identity`](Error::Identity) error. Needs a tokio runtime around it.
    pub async fn connect(address: &str, cluster: Option<u64>) -> Result<Connection> {
        let any = std::net::SocketAddr::from(([0, 0, 0, 0], 0));
        let limits = Config::new(0, StoreId(0), 0, any);
        let late = Error::Timeout {
            after_ms: limits.handshake_timeout.as_millis() as u64,
            what: "a connection",
        };
        let counters = Arc::new(Counters::default());
        let dialling = shake_hands(address, cluster, &limits, &counters);
        let (reader, writer, welcome) =
            timeout(limits.handshake_timeout, dialling).await.map_err(|_| late)??;
        let link = Arc::new(Link {
            outbox: Outbox::new(2 * IN_FLIGHT + limits.max_frame),
            next: AtomicU64::new(1),
            waiting: Mutex::default(),
            room: Semaphore::new(IN_FLIGHT),
            max_frame: limits.max_frame,
        });
        let (alive, gone) = watch::channel(());
        tokio::spawn(run(link.clone(), reader, writer, limits, counters, gone));
        Ok(Connection { inner: Arc::new(Inner { link, welcome, _alive: alive }) })
    }

    /// The cluster and the store at the other end.
    pub fn peer(&self) -> (u64, StoreId) {
        (self.inner.welcome.cluster, self.inner.welcome.store)
    }

    /// Whether it still stands, as far as is known.
    pub fn is_open(&self) -> bool {
        self.inner.link.waiting.lock().ended.is_none()
    }

    /// Sends a request, waits for its answer. Waits for room first when too many bytes are in flight.
    /// Dropping the future gives up the answer, not the request.
    pub fn call(&self, body: Bytes) -> impl Future<Output = Result<Bytes>> + Send + 'static {
        let inner = self.inner.clone();
        async move {
            let link = &*inner.link;
            let size = body.len() + 64;
            if body.len() + 8 > link.max_frame {
                let len = body.len();
                return Err(Error::InvalidArgument(format!("a request of {len} bytes")));
            }
            let want = size.min(IN_FLIGHT) as u32;
            let _room = link.room.acquire_many(want).await.map_err(|_| not_sent())?;
            let id = link.next.fetch_add(1, Ordering::Relaxed);
            let (tell, told) = oneshot::channel();
            {
                let mut waiting = link.waiting.lock();
                if waiting.ended.is_some() {
                    return Err(not_sent());
                }
                waiting.calls.insert(id, tell);
            }
            let _interest = Interest { link, id };
            if !link.outbox.push_call(Kind::Request, id, body) {
                return Err(not_sent());
            }
            told.await.unwrap_or(Err(Error::Ambiguous { what: "the connection broke" }))
        }
    }
}

fn not_sent() -> Error {
    Error::Busy { what: "the connection is closed or full: nothing was sent" }
}

type Halves = (FrameReader<OwnedReadHalf>, OwnedWriteHalf, Welcome);

async fn shake_hands(
    address: &str,
    cluster: Option<u64>,
    limits: &Config,
    counters: &Arc<Counters>,
) -> Result<Halves> {
    let limit = limits.handshake_timeout;
    let failed = |e| Error::io("connect to", address, e);
    let stream = TcpStream::connect(address).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let (reader, mut writer) = stream.into_split();
    let patience = Patience { idle: limit, frame: limit };
    let budget = Budget::new(limits.receive_budget);
    let mut reader = FrameReader::new(reader, MAX_HANDSHAKE, patience, budget, counters.clone());
    let hello = Hello {
        protocol: PROTOCOL,
        purpose: Purpose::Client,
        cluster,
        store: StoreId(0),
        incarnation: 0,
        target: None,
        start: Start::default(),
        address: None,
    };
    let mut out = Vec::new();
    write_hello(&hello, &mut out);
    write(&mut writer, &out, limit, counters).await?;
    let frame = reader.next().await?;
    let welcome = match frame.kind {
        Kind::Welcome => read_welcome(frame.payload)?,
        Kind::Refused => return Err(read_refusal(frame.payload)?.into_error()),
        kind => return Err(Error::malformed("handshake", format!("{kind:?} for a welcome"))),
    };
    if cluster.is_some_and(|cluster| cluster != welcome.cluster) {
        return Err(Error::Identity(format!("{address} is of cluster {}", welcome.cluster)));
    }
    reader.relax(
        limits.max_frame,
        Patience { idle: limits.idle_timeout, frame: limits.frame_timeout },
    );
    Ok((reader, writer, welcome))
}

/// The connection's life; at its end every call still waiting fails.
async fn run(
    link: Arc<Link>,
    mut reader: FrameReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    limits: Config,
    counters: Arc<Counters>,
    mut gone: watch::Receiver<()>,
) {
    let reading = async {
        let mut frames = Vec::new();
        loop {
            reader.next_batch(&mut frames).await?;
            let mut answers = Vec::with_capacity(frames.len());
            for frame in frames.drain(..) {
                match frame.kind {
                    Kind::Response => answers.push(read_call(frame.payload)?),
                    Kind::Ping => read_signal(frame.payload)?,
                    Kind::Refused => return Err(read_refusal(frame.payload)?.into_error()),
                    kind => return Err(Error::malformed("stream", format!("{kind:?}"))),
                }
            }
            let mut waiting = link.waiting.lock();
            for (id, body) in answers {
                // One that nobody waits for any more is dropped.
                if let Some(tell) = waiting.calls.remove(&id) {
                    let _ = tell.send(Ok(body));
                }
            }
        }
    };
    let pace = Pace { max_frame: limits.max_frame, ping: limits.ping, stall: limits.frame_timeout };
    let ended: Result<()> = tokio::select! {
        ended = reading => ended,
        ended = write_loop(writer, &link.outbox, pace, &counters) => ended,
        _ = gone.changed() => Ok(()),
    };
    let mut waiting = link.waiting.lock();
    waiting.ended = Some(ended.err().map_or_else(|| "closed".to_owned(), |e| e.to_string()));
    tracing::debug!(ended = ?waiting.ended, waiting = waiting.calls.len(), "connection ended");
    waiting.calls.clear(); // drops the senders: each call is told
    drop(waiting);
    link.outbox.close();
    link.room.close();
}
