//! [`RemoteClient`]: the same calls as the embedded [`Client`], over connections to running nodes.

use super::ask::{Answer, Ask};
use super::budget::Budget;
use super::gate::{self, Entrant, Gate};
use super::hints::{self, Hints};
use super::request::{Body, Request, Response, decode_response};
use super::{Backend, Client, Done};
use crate::driver::Clock;
use crate::error::{Error, Result};
use crate::router::retry::{self, Decision};
use crate::transport::remote::Connection;
use crate::types::{StoreId, Time};
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::{Handle, Runtime};

/// An address that could not be reached is left alone this long while others can.
const DOWN: Duration = Duration::from_millis(500);
/// For a question to the directory.
const LOCATE: Duration = Duration::from_secs(1);
/// For one dial, at most.
const DIAL: Duration = Duration::from_secs(2);
/// Bytes of requests that a client holds, whether they are on their way or wait for a connection.
const HELD_MAX: usize = 256 << 20;
/// No store's id.
const NOBODY: u64 = 0;
/// What a node gets to answer beyond its own deadline, which is the caller's.
pub(super) const GRACE: Duration = Duration::from_millis(200);

/// A client of nodes in other processes.
///
/// * Calls go to the node that leads their region, once that is known, or else round the addresses; each connection is
///   dialled when first needed, and again when broken.
/// * When a node cannot be reached, or says that the request certainly was not applied, the next one is
///   asked. When a connection breaks under a write, its outcome is unknown and the caller is told.
/// * Requests that wait for an answer take 256 MiB at most, and about as much again while they are being sent; what comes beyond is
///   answered [`Error::Busy`] at once. A first one always fits.
///
/// It has network threads of its own, and needs no runtime around it.
#[derive(Clone, Debug)]
pub struct RemoteClient {
    client: Client,
}

impl RemoteClient {
    /// A client of the nodes at `addresses` (`host:port`). Dials nobody yet. With a cluster id given,
    /// nodes of another cluster are refused.
    pub fn new(addresses: &[String], cluster: Option<u64>, timeout: Duration) -> Result<Self> {
        Self::holding(HELD_MAX, addresses, cluster, timeout)
    }

    /// With a limit of its own to what is held.
    fn holding(
        held_max: usize,
        addresses: &[String],
        cluster: Option<u64>,
        timeout: Duration,
    ) -> Result<Self> {
        if addresses.is_empty() {
            return Err(Error::InvalidArgument("no addresses to connect to".into()));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("client-network")
            .enable_all()
            .build()
            .map_err(|e| Error::io("start runtime", "client", e))?;
        let slots = addresses.iter().map(|address| Slot {
            address: address.clone(),
            store: AtomicU64::new(NOBODY),
            connection: tokio::sync::Mutex::default(),
            dialled: Mutex::default(),
            down_until: Mutex::new(None),
        });
        let shared = Shared {
            slots: slots.collect(),
            handle: runtime.handle().clone(),
            gate: Gate::default(),
            budget: Budget::new(held_max),
            cluster,
            clock: Clock::start(),
            next: AtomicUsize::new(0),
            jitter: AtomicU64::new(u64::from(std::process::id())),
            hints: Hints::default(),
        };
        let remote = Remote { shared: Arc::new(shared), runtime: Some(runtime) };
        Ok(RemoteClient { client: Client::new(Arc::new(remote), timeout) })
    }

    /// The calls.
    pub fn client(&self) -> Client {
        self.client.clone()
    }
}

/// Whether a node that has answered so had tried all the while: it gives up once its next pause does not fit. No other one
/// finds out more in what is left, only that there is no time.
fn kept_it(took: Duration, left: Duration) -> bool {
    left <= retry::PAUSE_MAX && left < took
}

pub(super) struct Slot {
    address: String,
    /// Who answered there last.
    store: AtomicU64,
    connection: tokio::sync::Mutex<Option<Connection>>,
    /// The same, for whoever does not wait: it may have ended.
    pub(super) dialled: Mutex<Option<Connection>>,
    down_until: Mutex<Option<Instant>>,
}

pub(super) struct Shared {
    pub(super) slots: Vec<Slot>,
    pub(super) handle: Handle,
    pub(super) next: AtomicUsize,
    pub(super) hints: Hints,
    gate: Gate,
    pub(super) budget: Arc<Budget>,
    cluster: Option<u64>,
    clock: Clock,
    jitter: AtomicU64,
}

struct Remote {
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

impl Drop for Remote {
    fn drop(&mut self) {
        // In the background: it may be dropped where waiting is forbidden.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Backend for Remote {
    fn call(&self, body: Body, timeout: Duration, done: Done<Response>) {
        let hint = self.shared.hints.of(&body, Instant::now());
        self.shared.locate(hint.ask);
        let shared = Arc::clone(&self.shared);
        let held = match shared.budget.take(body.payload_bytes()) {
            Ok(held) => held,
            Err(error) => return shared.refuse(vec![(done, error)]),
        };
        self.shared.handle.spawn(async move {
            let answer = shared.ask(body, hint.leader, timeout, None).await;
            drop(held);
            done.call(answer);
        });
    }

    fn now(&self) -> Time {
        self.shared.clock.now()
    }

    fn pause(&self, pause: Duration, done: Done<()>) {
        self.shared.handle.spawn(async move {
            tokio::time::sleep(pause).await;
            done.call(Ok(()));
        });
    }

    fn write_many(&self, batches: Vec<(Bytes, Done<Response>)>, timeout: Duration) {
        self.shared.write_many(batches, timeout);
    }

    fn write_soon(&self, command: Bytes, timeout: Duration, done: Done<Response>) {
        self.shared.enter(self.shared.gate.leave(Entrant { command, timeout, done }));
    }

    fn let_in(&self) {
        self.shared.enter(self.shared.gate.open());
    }
}

impl Shared {
    fn enter(self: &Arc<Self>, entrants: Vec<Entrant>) {
        gate::by_patience(entrants, |batches, timeout| self.write_many(batches, timeout));
    }

    /// Asks the directory about the regions from here on, beside everything else.
    pub(super) fn locate(self: &Arc<Self>, from: Option<Bytes>) {
        let Some(start) = from else { return };
        let shared = Arc::clone(self);
        self.handle.spawn(async move {
            let ask = Body::Directory(Ask::Locate { start, count: hints::REGIONS });
            let located = shared.ask(ask, None, LOCATE, None).await;
            let infos = match located {
                Ok(Response::Directory(Answer::Located(infos))) => infos,
                _ => Vec::new(),
            };
            shared.hints.heard(&infos, Instant::now());
        });
    }

    /// Asks until there is an answer, or no more sense in asking. `tried`: it was sent once, and that came of it.
    pub(super) async fn ask(
        &self,
        body: Body,
        leader: Option<StoreId>,
        timeout: Duration,
        mut tried: Option<Error>,
    ) -> Result<Response> {
        let deadline = Instant::now() + timeout;
        let led = leader.and_then(|leader| self.slot_of(leader));
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let access = body.access();
        // What the last node that was reached said: it tells the caller more than that the next one was not.
        let mut said = None;
        for attempt in 0.. {
            let started = Instant::now();
            let left = deadline.saturating_duration_since(started);
            let slot = match led {
                Some(slot) if attempt == 0 => slot,
                _ => self.choose(first.wrapping_add(attempt as usize)),
            };
            let outcome = match tried.take() {
                Some(error) => Ok(Err(error)),
                None => self.attempt(&self.slots[slot], &body, left).await,
            };
            let reached = outcome.is_ok();
            let error = match outcome {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) | Err(error) => error,
            };
            if attempt == 0 && led.is_some() {
                self.hints.misled(&body);
            }
            let now = Instant::now();
            let left = deadline.saturating_duration_since(now);
            if reached && kept_it(now - started, left) {
                return Err(error);
            }
            let jitter = self.jitter.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
            match retry::decide(access, &error, attempt, left, jitter) {
                Decision::GiveUp if reached => return Err(error),
                Decision::GiveUp => return Err(said.unwrap_or(error)),
                Decision::Again { after, .. } => tokio::time::sleep(after).await,
            }
            if reached {
                said = Some(error);
            }
        }
        Err(Error::Busy { what: "every node" })
    }

    /// The slot of a store that has answered before and is not known to be down.
    pub(super) fn slot_of(&self, store: StoreId) -> Option<usize> {
        let of = |slot: &Slot| slot.store.load(Ordering::Relaxed) == store.0;
        self.slots.iter().position(of).filter(|at| self.is_up(*at, Instant::now()))
    }

    /// The slot whose turn it is, or the next one that is not known to be down.
    pub(super) fn choose(&self, turn: usize) -> usize {
        let now = Instant::now();
        let count = self.slots.len();
        let at = (0..count).map(|i| turn.wrapping_add(i) % count).find(|at| self.is_up(*at, now));
        at.unwrap_or(turn % count)
    }

    fn is_up(&self, slot: usize, now: Instant) -> bool {
        self.slots[slot].down_until.lock().is_none_or(|until| until <= now)
    }

    /// What the node answered; or why it was not reached, and so was sent nothing.
    async fn attempt(&self, slot: &Slot, body: &Body, left: Duration) -> Result<Result<Response>> {
        let started = Instant::now();
        let connection = match self.connection(slot, left).await {
            Ok(connection) => connection,
            Err(error) => {
                // A caller in haste has learnt nothing about the node.
                if left >= DIAL || started.elapsed() < left {
                    *slot.down_until.lock() = Some(Instant::now() + DOWN);
                }
                if matches!(error, Error::Identity(_) | Error::InvalidArgument(_)) {
                    return Ok(Err(error));
                }
                tracing::debug!(address = slot.address, %error, "cannot connect");
                return Err(Error::Busy { what: "a node cannot be reached" });
            }
        };
        let left = left.saturating_sub(started.elapsed());
        let request = Request { timeout: left, route: None, body: body.clone() }.encode();
        let answer = tokio::time::timeout(left + GRACE, connection.call(request));
        let bytes: Bytes = match answer.await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => return Ok(Err(error)),
            Err(_) => {
                let after_ms = started.elapsed().as_millis() as u64;
                return Ok(Err(Error::Timeout { after_ms, what: "a node's answer" }));
            }
        };
        Ok(decode_response(bytes))
    }

    async fn connection(&self, slot: &Slot, left: Duration) -> Result<Connection> {
        let late = || Error::Busy { what: "a connection" };
        let connect = async {
            let mut current = slot.connection.lock().await;
            if let Some(connection) = current.as_ref().filter(|c| c.is_open()) {
                return Ok(connection.clone());
            }
            *current = None;
            let connection = Connection::connect(&slot.address, self.cluster).await?;
            *slot.down_until.lock() = None;
            slot.store.store(connection.peer().1.0, Ordering::Relaxed);
            *current = Some(connection.clone());
            *slot.dialled.lock() = Some(connection.clone());
            Ok(connection)
        };
        tokio::time::timeout(left.min(DIAL), connect).await.map_err(|_| late())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::command::BatchBuilder;

    /// A server that takes connections and never says a word.
    #[test]
    fn what_nobody_answers_is_bounded() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addresses = [silent.local_addr().unwrap().to_string()];
        let timeout = Duration::from_millis(1500);
        let remote = RemoteClient::holding(4 << 20, &addresses, None, timeout).unwrap();
        let client = remote.client();
        let (tell, told) = std::sync::mpsc::channel();
        let write = |at: usize| {
            let mut batch = BatchBuilder::new();
            batch.put(format!("key {at}").as_bytes(), &vec![0; 1 << 20]).unwrap();
            let tell = tell.clone();
            client.submit(batch, move |result| drop(tell.send(result.unwrap_err())));
        };
        (0..20).for_each(write);
        let errors: Vec<Error> = told.iter().take(20).collect();
        let full = Error::Busy { what: "the client's memory" }.to_string();
        let refused = errors.iter().filter(|error| error.to_string() == full).count();
        assert_eq!(refused, 17, "{errors:?}");
        assert!(errors[..17].iter().all(|error| error.to_string() == full), "they hear it at once");
        // All was given back.
        write(20);
        assert_ne!(told.recv().unwrap().to_string(), full);
    }
}
