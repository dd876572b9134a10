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
use crate::types::slab::Slab;
use crate::types::{Start, StoreId, Time};
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::timeout;

/// Bytes of requests without an answer, over all clones; beyond that a call waits.
const IN_FLIGHT: usize = 64 << 20;
/// How often requests that nobody answered in time are looked for.
const LATE_EVERY: Duration = Duration::from_millis(50);

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
    born: Instant,
    waiting: Mutex<Waiting>,
    room: Semaphore,
    max_frame: usize,
}

type Answer = Result<Bytes>;

/// Called once with the answer to a request, or with the reason why there is none.
pub type Told = Box<dyn FnOnce(Result<Bytes>) + Send>;

/// Who waits for an answer.
enum Call {
    Awaited(oneshot::Sender<Answer>),
    /// It holds so much room.
    Told(Told, usize),
}

/// Tells all of them, after the room of all is given back: under one lock, and so that what a callback asks next finds it.
fn tell_all(calls: Vec<(Call, Answer)>, room: &Semaphore) {
    let held = |(call, _): &(Call, Answer)| match call {
        Call::Awaited(_) => 0,
        Call::Told(_, size) => *size,
    };
    room.add_permits(calls.iter().map(held).sum());
    for (call, answer) in calls {
        match call {
            // One that nobody waits for any more is dropped.
            Call::Awaited(tell) => drop(tell.send(answer)),
            Call::Told(told, _) => told(answer),
        }
    }
}

#[derive(Default)]
struct Waiting {
    calls: Slab<Call>,
    /// Why the connection ended, once it has.
    ended: Option<String>,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Waiting { calls, ended, .. } = self;
        f.debug_struct("Waiting").field("calls", &calls.len()).field("ended", ended).finish()
    }
}

/// Takes a call off the list when its caller loses interest.
struct Interest<'a> {
    link: &'a Link,
    id: u64,
}

impl Drop for Interest<'_> {
    fn drop(&mut self) {
        self.link.waiting.lock().calls.take(self.id);
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
            born: Instant::now(),
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
            let size = held_by(&body);
            if body.len() + 8 > link.max_frame {
                let len = body.len();
                return Err(Error::InvalidArgument(format!("a request of {len} bytes")));
            }
            let want = size.min(IN_FLIGHT) as u32;
            let _room = link.room.acquire_many(want).await.map_err(|_| not_sent())?;
            let (tell, told) = oneshot::channel();
            let id = {
                let mut waiting = link.waiting.lock();
                if waiting.ended.is_some() {
                    return Err(not_sent());
                }
                // Its caller gives it up, or not.
                let seat = waiting.calls.insert(Call::Awaited(tell), Time(u64::MAX));
                seat.map_err(|_| not_sent())?
            };
            let _interest = Interest { link, id };
            if !link.outbox.push_call(Kind::Request, id, body) {
                return Err(not_sent());
            }
            told.await.unwrap_or(Err(Error::Ambiguous { what: "the connection broke" }))
        }
    }
}

impl Connection {
    /// Sends many requests under one lock, with one wake-up, and without waiting. Each callback is called once, on a thread of the
    /// connection, and must be quick: with the answer; as [`Ambiguous`](Error::Ambiguous) if the connection breaks before it;
    /// as [`Timeout`](Error::Timeout) when `patience` is over. It is dropped if the runtime is.
    ///
    /// Gives back what it did not send: all of them, if the connection has ended or too many bytes are in flight.
    pub fn send(&self, calls: Vec<(Bytes, Told)>, patience: Duration) -> Vec<(Bytes, Told)> {
        let link = &*self.inner.link;
        let too_long = |(body, _): &(Bytes, Told)| body.len() + 8 > link.max_frame;
        let all: usize = calls.iter().map(|(body, _)| held_by(body)).sum();
        let room = u32::try_from(all).ok().and_then(|all| link.room.try_acquire_many(all).ok());
        let mut waiting = link.waiting.lock();
        let (Some(room), None) = (room, &waiting.ended) else { return calls };
        if calls.iter().any(too_long) {
            return calls;
        }
        // From here on each answer gives back its own.
        room.forget();
        let deadline = link.now().after(patience);
        let (mut bodies, mut back) = (Vec::with_capacity(calls.len()), Vec::new());
        for (body, told) in calls {
            match waiting.calls.insert(Call::Told(told, held_by(&body)), deadline) {
                Ok(id) => bodies.push((id, body)),
                Err(call) => back.push((call, body)),
            }
        }
        if let Err(bodies) = link.outbox.push_calls(Kind::Request, bodies) {
            let taken = |(id, body)| Some((waiting.calls.take(id)?, body));
            back.extend(bodies.into_iter().filter_map(taken));
        }
        drop(waiting);
        let unsent = |(call, body)| match call {
            Call::Told(told, size) => {
                link.room.add_permits(size);
                Some((body, told))
            }
            Call::Awaited(_) => None,
        };
        back.into_iter().filter_map(unsent).collect()
    }
}

/// Bytes that a request holds until its answer comes.
fn held_by(body: &Bytes) -> usize {
    body.len() + 64
}

impl Link {
    fn now(&self) -> Time {
        Time(self.born.elapsed().as_nanos() as u64)
    }

    /// Tells those whose time is up.
    fn expire(&self) {
        let mut late = Vec::new();
        self.waiting.lock().calls.take_where(self.now(), |_| false, &mut late);
        let error = || Error::Timeout { after_ms: 0, what: "a node's answer" };
        tell_all(late.into_iter().map(|call| (call, Err(error()))).collect(), &self.room);
    }
}

/// Why a request never left.
pub(crate) fn not_sent() -> Error {
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
            let mut calls = Vec::with_capacity(answers.len());
            {
                let mut waiting = link.waiting.lock();
                let found = |(id, body)| waiting.calls.take(id).map(|call| (call, Ok(body)));
                calls.extend(answers.into_iter().filter_map(found));
            }
            tell_all(calls, &link.room);
        }
    };
    let late = async {
        loop {
            tokio::time::sleep(LATE_EVERY).await;
            link.expire();
        }
    };
    let pace = Pace { max_frame: limits.max_frame, ping: limits.ping, stall: limits.frame_timeout };
    let ended: Result<()> = tokio::select! {
        ended = reading => ended,
        ended = write_loop(writer, &link.outbox, pace, &counters) => ended,
        ended = late => ended,
        _ = gone.changed() => Ok(()),
    };
    let mut waiting = link.waiting.lock();
    waiting.ended = Some(ended.err().map_or_else(|| "closed".to_owned(), |e| e.to_string()));
    tracing::debug!(ended = ?waiting.ended, waiting = waiting.calls.len(), "connection ended");
    let mut calls = Vec::new();
    waiting.calls.take_where(Time(u64::MAX), |_| true, &mut calls);
    drop(waiting);
    link.outbox.close();
    let broke = || Error::Ambiguous { what: "the connection broke" };
    tell_all(calls.into_iter().map(|call| (call, Err(broke()))).collect(), &link.room);
    link.room.close();
}
