//! Three transports over loopback: delivery, requests, kill and return, back-off reports, snapshots, the
//! client's connection. And the in-process twin through the same eyes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use ::raft::eraftpb::{Entry, Message, MessageType};
use bytes::Bytes;
use catamaran::transport::remote::{Connection, Told};
use catamaran::transport::*;
use catamaran::types::{PeerId, RegionId, StoreId};
use catamaran::{Error, Outcome, Result};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Header, bytes and end of every snapshot.
type Snapshots = Arc<Mutex<Vec<(Bytes, usize, &'static str)>>>;

/// Remembers what it is told; answers requests by echo, but for "mute" ones.
#[derive(Default)]
struct Node {
    transport: OnceLock<Arc<dyn Transport>>,
    got: Mutex<Vec<(StoreId, Envelope)>>,
    count: AtomicU64,
    answers: Mutex<Vec<(StoreId, u64, Bytes)>>,
    unreachable: Mutex<Vec<(StoreId, Instant)>>,
    lost: Mutex<Vec<StoreId>>,
    snapshots: Snapshots,
    counting: bool,
}

struct Sink {
    header: Bytes,
    bytes: usize,
    ended: bool,
    list: Snapshots,
}

impl SnapshotSink for Sink {
    fn chunk(&mut self, bytes: Bytes) -> Result<()> {
        if &self.header[..] == b"spoil" && self.bytes > 0 {
            return Err(Error::Busy { what: "disk" });
        }
        self.bytes += bytes.len();
        Ok(())
    }
    fn finish(mut self: Box<Self>) -> Result<()> {
        self.ended = true;
        self.list.lock().push((self.header.clone(), self.bytes, "done"));
        Ok(())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if !self.ended {
            self.list.lock().push((self.header.clone(), self.bytes, "aborted"));
        }
    }
}

impl Handler for Node {
    fn envelopes(&self, from: StoreId, envelopes: Vec<Envelope>) {
        self.count.fetch_add(envelopes.len() as u64, Ordering::Relaxed);
        if !self.counting {
            self.got.lock().extend(envelopes.into_iter().map(|e| (from, e)));
        }
    }
    fn request(&self, origin: Origin, id: u64, body: Bytes) {
        if &body[..] != b"mute" {
            self.transport.get().unwrap().respond(origin, id, body);
        }
    }
    fn response(&self, from: StoreId, id: u64, body: Bytes) {
        self.answers.lock().push((from, id, body));
    }
    fn unreachable(&self, store: StoreId) {
        self.unreachable.lock().push((store, Instant::now()));
    }
    fn connection_lost(&self, store: StoreId) {
        self.lost.lock().push(store);
    }
    fn snapshot_reserve(&self, _: StoreId, ask: Bytes) -> Result<Box<dyn SnapshotRoom>> {
        if &ask[..] == b"full" {
            return Err(Error::Busy { what: "snapshot slots" });
        }
        Ok(Box::new(Room(self.snapshots.clone())))
    }
}

struct Room(Snapshots);

impl SnapshotRoom for Room {
    fn begin(self: Box<Self>, header: Bytes) -> Result<Box<dyn SnapshotSink>> {
        Ok(Box::new(Sink { header, bytes: 0, ended: false, list: self.0 }))
    }
}

fn config(store: u64, port: u16, peers: &BTreeMap<StoreId, String>) -> Config {
    let mut config = Config::new(7, StoreId(store), 100 + store, ([127, 0, 0, 1], port).into());
    config.peers = peers.clone();
    config
}

fn start(config: Config, rt: &Runtime, counting: bool) -> (Tcp, Arc<Node>) {
    let tcp = Tcp::bind(config, rt.handle().clone()).unwrap();
    let node = Arc::new(Node { counting, ..Node::default() });
    let _ = node.transport.set(Arc::new(tcp.clone()));
    tcp.start(node.clone());
    (tcp, node)
}

/// Transports that know each other.
fn cluster(rt: &Runtime, stores: u64, counting: bool) -> Vec<(Tcp, Arc<Node>)> {
    let nodes: Vec<_> =
        (1..=stores).map(|s| start(config(s, 0, &BTreeMap::new()), rt, counting)).collect();
    for (i, (tcp, _)) in nodes.iter().enumerate() {
        for (j, (other, _)) in nodes.iter().enumerate() {
            if i != j {
                tcp.set_peer(StoreId(j as u64 + 1), other.local_addr().to_string());
            }
        }
    }
    nodes
}

fn wait(what: &str, check: impl Fn() -> bool) {
    let start = Instant::now();
    while !check() {
        assert!(start.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn append(region: u64, index: u64, len: usize) -> Envelope {
    let data = Bytes::from(vec![region as u8; len]);
    let entry = Entry { term: 6, index: index + 1, data, ..Default::default() };
    let message = Message {
        msg_type: MessageType::MsgAppend,
        to: 2,
        from: 1,
        term: 6,
        log_term: 6,
        index,
        entries: vec![entry].into(),
        ..Default::default()
    };
    let (from, to, from_store) = (PeerId(1), PeerId(2), StoreId(1));
    Envelope { region: RegionId(region), from, to, from_store, message, note: None }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn who_introduces_itself_is_reached_unless_its_address_was_configured() {
    let rt = runtime();
    let none = BTreeMap::new();
    let nowhere = BTreeMap::from([(StoreId(4), "127.0.0.1:1".to_owned())]);
    let (old, old_node) = start(config(1, 0, &nowhere), &rt, false);
    let newcomer = |store: u64, address: &dyn Fn(u16) -> String| {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        drop(socket);
        let mut config = config(store, port, &none);
        config.advertise = Some(address(port));
        let (tcp, node) = start(config, &rt, false);
        tcp.set_peer(StoreId(1), old.local_addr().to_string());
        (tcp, node)
    };
    // It says which host it is, or that it listens everywhere.
    let _two = newcomer(2, &|port| format!("127.0.0.1:{port}"));
    let _three = newcomer(3, &|port| format!("0.0.0.0:{port}"));
    let _four = newcomer(4, &|port| format!("127.0.0.1:{port}"));
    wait("all three have come", || old.stats().accepted >= 3);
    for (id, store) in [(1, 2), (2, 3)] {
        wait("a request to the newcomer", || {
            old.request(StoreId(store), id, Bytes::from_static(b"hi")).is_ok()
        });
        wait("its answer", || {
            old_node.answers.lock().iter().any(|(from, one, _)| (from.0, *one) == (store, id))
        });
    }
    let _ = old.request(StoreId(4), 3, Bytes::from_static(b"hi"));
    wait("the configured address is dialled", || {
        old_node.unreachable.lock().iter().any(|(store, _)| store.0 == 4)
    });
    assert!(old_node.answers.lock().iter().all(|(from, ..)| from.0 != 4));
    old.shutdown();
}

#[test]
fn messages_arrive_in_order_and_requests_are_answered() {
    let rt = runtime();
    let nodes = cluster(&rt, 3, false);
    for i in 0..100 {
        for to in [2, 3] {
            let batch = (1..=10).map(|r| append(r, i, 128)).collect();
            nodes[0].0.send(StoreId(to), Lane::Bulk, batch);
        }
    }
    for (_, node) in &nodes[1..] {
        wait("messages", || node.got.lock().len() == 1000);
        let got = node.got.lock();
        assert!(got.iter().all(|(from, e)| *from == StoreId(1) && e.from_store == StoreId(1)));
        let expected = (0..100).flat_map(|i| (1..=10).map(move |r| append(r, i, 128)));
        assert!(got.iter().map(|(_, e)| e.clone()).eq(expected));
    }
    for id in 0..100 {
        nodes[1].0.request(StoreId(1), id, Bytes::from(format!("body {id}"))).unwrap();
    }
    wait("answers", || nodes[1].1.answers.lock().len() == 100);
    for (from, id, body) in nodes[1].1.answers.lock().iter() {
        assert_eq!((*from, &body[..]), (StoreId(1), format!("body {id}").as_bytes()));
    }
    assert!(nodes[0].0.stats().writes < 250, "{:?}", nodes[0].0.stats());
    nodes.iter().for_each(|(tcp, _)| tcp.shutdown());
}

#[test]
fn a_killed_node_is_reported_and_comes_back() {
    let rt = runtime();
    let nodes = cluster(&rt, 3, false);
    let (a, node) = &nodes[0];
    a.send(StoreId(2), Lane::Bulk, vec![append(1, 1, 10)]);
    wait("first", || nodes[1].1.got.lock().len() == 1);
    a.request(StoreId(2), 1, Bytes::from_static(b"mute")).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let port = nodes[1].0.local_addr().port();
    // Setting up peers raced with dialling: reports from before do not count.
    node.unreachable.lock().clear();
    node.lost.lock().clear();
    nodes[1].0.shutdown();
    wait("connection lost", || node.lost.lock().contains(&StoreId(2)));
    wait("back-off", || node.unreachable.lock().len() >= 3);
    assert!(matches!(a.request(StoreId(2), 2, Bytes::new()), Err(Error::Busy { .. })));
    let before = a.stats().dropped_envelopes;
    a.send(StoreId(2), Lane::Control, vec![append(1, 2, 10)]);
    assert_eq!(a.stats().dropped_envelopes, before + 1, "dropped at once, not queued");
    // Reports come once per back-off, further and further apart, however much is sent.
    for i in 0..1000 {
        a.send(StoreId(2), Lane::Bulk, vec![append(1, i, 10)]);
    }
    std::thread::sleep(Duration::from_millis(500));
    let reports = node.unreachable.lock().clone();
    assert!(reports.len() < 12, "{}", reports.len());
    assert!(reports.iter().all(|(store, _)| *store == StoreId(2)));
    assert_eq!(node.lost.lock().len(), 1, "the connection was lost once");
    // The others are not affected.
    a.send(StoreId(3), Lane::Bulk, vec![append(1, 1, 10)]);
    wait("third", || nodes[2].1.got.lock().len() == 1);
    // Back on the same address.
    let peers = BTreeMap::from([(StoreId(1), a.local_addr().to_string())]);
    wait("address free", || std::net::TcpListener::bind(("127.0.0.1", port)).is_ok());
    let (again, other) = start(config(2, port, &peers), &rt, false);
    let since = Instant::now();
    again.send(StoreId(1), Lane::Control, vec![append(9, 9, 9)]);
    wait("return", || {
        a.send(StoreId(2), Lane::Control, vec![append(1, 5, 10)]);
        !other.got.lock().is_empty()
    });
    eprintln!("heard again after {:?}", since.elapsed());
    a.request(StoreId(2), 3, Bytes::from_static(b"again")).unwrap();
    wait("answer", || node.answers.lock().iter().any(|(_, id, _)| *id == 3));
    nodes.iter().for_each(|(tcp, _)| tcp.shutdown());
    again.shutdown();
}

/// A store that has left went on talking to everybody over the connections that it had: only new ones were refused.
#[test]
fn who_has_left_is_cut_off_and_stays_so() {
    let rt = runtime();
    let nodes = cluster(&rt, 3, false);
    let (a, node) = &nodes[0];
    let (b, left) = &nodes[1];
    for (from, to) in [(1, 2), (2, 1), (1, 3), (3, 1)] {
        wait("connected", || {
            nodes[from - 1].0.send(StoreId(to as u64), Lane::Control, vec![append(1, 1, 10)]);
            nodes[to - 1].1.got.lock().iter().any(|(store, _)| *store == StoreId(from as u64))
        });
    }
    node.lost.lock().clear();
    a.request(StoreId(2), 1, Bytes::from_static(b"mute")).unwrap();
    a.cut_off(StoreId(2));
    wait("the outcome is unknown", || node.lost.lock().contains(&StoreId(2)));
    wait("the other side's loss", || left.lost.lock().contains(&StoreId(1)));
    wait("one connection less", || a.stats().connections == 1);
    let refused = || matches!(a.request(StoreId(2), 2, Bytes::new()), Err(Error::Busy { .. }));
    wait("nothing is sent", refused);
    // What the third had sent more than once has come.
    let seen = std::cell::Cell::new(u64::MAX);
    wait("quiet", || {
        std::thread::sleep(Duration::from_millis(200));
        let now = node.count.load(Ordering::Relaxed);
        seen.replace(now) == now
    });
    // It dials, again and again, and is put off; it is not dialled.
    let before = (node.count.load(Ordering::Relaxed), a.stats().dialled);
    std::thread::sleep(Duration::from_millis(300));
    b.send(StoreId(1), Lane::Control, vec![append(1, 2, 10)]);
    a.set_peer(StoreId(2), b.local_addr().to_string());
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!((node.count.load(Ordering::Relaxed), a.stats().dialled), before);
    assert!(refused());
    // The others are not affected.
    a.request(StoreId(3), 3, Bytes::from_static(b"here")).unwrap();
    wait("answer", || node.answers.lock().iter().any(|(_, id, _)| *id == 3));
    nodes.iter().for_each(|(tcp, _)| tcp.shutdown());
}

#[test]
fn over_budget_is_dropped_counted_and_reported_once() {
    let rt = runtime();
    // Accepts, and never reads or answers: the handshake hangs, the queue fills.
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let peers = BTreeMap::from([(StoreId(2), deaf.local_addr().unwrap().to_string())]);
    let mut config = config(1, 0, &peers);
    config.peer_budget = 1 << 20;
    let (tcp, node) = start(config, &rt, false);
    for i in 0..100 {
        tcp.send(StoreId(2), Lane::Bulk, vec![append(1, i, 100 << 10)]);
    }
    let stats = tcp.stats();
    assert!(stats.queued_bytes <= 1 << 20 && stats.dropped_envelopes >= 90, "{stats:?}");
    wait("report", || !node.unreachable.lock().is_empty());
    assert_eq!(node.unreachable.lock().len(), 1);
    assert!(tcp.request(StoreId(2), 1, vec![0; 200 << 10].into()).is_err());
    tcp.shutdown();
}

struct Chunks(usize, usize);

impl SnapshotSource for Chunks {
    fn next(&mut self) -> Result<Option<Bytes>> {
        if self.0 == 0 {
            return Ok(None);
        }
        self.0 -= 1;
        Ok(Some(vec![self.0 as u8; self.1].into()))
    }
    fn rewind(&mut self, chunk: u64) -> Result<()> {
        assert_eq!(chunk, 0, "nothing breaks here");
        Ok(())
    }
}

fn ship(
    from: &dyn Transport,
    to: u64,
    header: &'static [u8],
    chunks: usize,
    len: usize,
) -> Result<()> {
    let (tell, told) = mpsc::channel();
    let (answer, answered) = mpsc::channel();
    let ask = Bytes::from_static(header);
    from.ask_snapshot(StoreId(to), ask, Box::new(move |slot| answer.send(slot).unwrap()));
    let slot = answered.recv_timeout(Duration::from_secs(20)).expect("always answered")?;
    let job = SnapshotJob {
        header: Bytes::from_static(header),
        source: Box::new(Chunks(chunks, len)),
        cancel: Cancel::default(),
        done: Box::new(move |result| tell.send(result).unwrap()),
    };
    slot.send(job);
    told.recv_timeout(Duration::from_secs(20)).expect("done is always called")
}

#[test]
fn snapshots_are_reserved_streamed_and_acknowledged() {
    let rt = runtime();
    let nodes = cluster(&rt, 2, false);
    let hub = Hub::new();
    let twin: Vec<_> = (1..=2)
        .map(|s| {
            let (local, node) = (hub.join(StoreId(s)), Arc::new(Node::default()));
            local.start(node.clone());
            (local, node)
        })
        .collect();
    let pairs: [(&dyn Transport, &Node); 2] =
        [(&nodes[0].0, &nodes[1].1), (twin[0].0.as_ref(), &twin[1].1)];
    for (from, to) in pairs {
        ship(from, 2, b"good", 20, 1 << 20).unwrap();
        assert_eq!(to.snapshots.lock().pop().unwrap(), (Bytes::from("good"), 20 << 20, "done"));
        let error = ship(from, 2, b"full", 20, 1 << 20).unwrap_err();
        assert!(matches!(error, Error::Busy { .. }), "{error}");
        let error = ship(from, 2, b"spoil", 20, 1 << 20).unwrap_err();
        assert!(matches!(error, Error::Busy { .. }), "{error}");
        wait("aborted", || to.snapshots.lock().last().is_some_and(|s| s.2 == "aborted"));
        assert!(ship(from, 5, b"good", 1, 1).is_err(), "nobody there");
    }
    assert_eq!(nodes[0].0.stats().snapshots_sent, 1);
    let error = ship(&nodes[0].0, 2, b"good", 1, 5 << 20).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    wait("aborted", || nodes[1].1.snapshots.lock().len() == 2);
    // Shut down in the middle: the end is still told.
    nodes[0].0.shutdown();
    let error = ship(&nodes[0].0, 2, b"good", 1, 1).unwrap_err();
    assert!(matches!(error, Error::Stopped { .. }), "{error}");
    nodes[1].0.shutdown();
}

#[test]
fn the_rate_limit_holds() {
    let rt = runtime();
    let (to, node) = start(config(2, 0, &BTreeMap::new()), &rt, false);
    let peers = BTreeMap::from([(StoreId(2), to.local_addr().to_string())]);
    let mut config = config(1, 0, &peers);
    config.snapshot_rate = 10 << 20;
    let (from, _) = start(config, &rt, false);
    let start = Instant::now();
    ship(&from, 2, b"slow", 16, 256 << 10).unwrap();
    // Four MiB, a burst of an eighth of a second's worth among them.
    assert!(start.elapsed() > Duration::from_millis(250), "{:?}", start.elapsed());
    assert_eq!(node.snapshots.lock().len(), 1);
    from.shutdown();
    to.shutdown();
}

#[test]
fn clients_pipeline_and_learn_that_an_outcome_is_unknown() {
    let rt = runtime();
    let (tcp, _) = start(config(1, 0, &BTreeMap::new()), &rt, false);
    let address = tcp.local_addr().to_string();
    rt.block_on(async {
        let error = Connection::connect(&address, Some(8)).await.unwrap_err();
        assert!(matches!(error, Error::Identity(_)), "{error}");
        let connection = Connection::connect(&address, None).await.unwrap();
        assert_eq!(connection.peer(), (7, StoreId(1)));
        let calls: Vec<_> = (0..1000)
            .map(|i| tokio::spawn(connection.call(Bytes::from(format!("call {i}")))))
            .collect();
        for (i, call) in calls.into_iter().enumerate() {
            assert_eq!(&call.await.unwrap().unwrap()[..], format!("call {i}").as_bytes());
        }
        assert!(tcp.stats().writes < 1000, "coalesced: {:?}", tcp.stats());
        let pending = tokio::spawn(connection.call(Bytes::from_static(b"mute")));
        tokio::time::sleep(Duration::from_millis(100)).await;
        tcp.shutdown();
        let error = pending.await.unwrap().unwrap_err();
        assert!(matches!(error, Error::Ambiguous { .. }), "{error}");
        assert_eq!(error.outcome(), Outcome::Unknown);
        let error = connection.call(Bytes::new()).await.unwrap_err();
        assert_eq!(error.outcome(), Outcome::NotApplied);
        assert!(!connection.is_open());
    });
}

/// Sends these together; each is told to the channel, with its place. Gives how many were given back.
fn volley(
    connection: &Connection,
    bodies: Vec<Bytes>,
    patience: Duration,
) -> (usize, mpsc::Receiver<(usize, Result<Bytes>)>) {
    let (tell, told) = mpsc::channel();
    let calls = bodies.into_iter().enumerate().map(|(at, body)| {
        let tell = tell.clone();
        let done: Told = Box::new(move |answer| tell.send((at, answer)).unwrap());
        (body, done)
    });
    (connection.send(calls.collect(), patience).len(), told)
}

#[test]
fn what_leaves_together_is_told_one_by_one() {
    const LONG: Duration = Duration::from_secs(60);
    let rt = runtime();
    let (tcp, _) = start(config(1, 0, &BTreeMap::new()), &rt, false);
    let address = tcp.local_addr().to_string();
    let connection = rt.block_on(Connection::connect(&address, None)).unwrap();
    let bodies: Vec<_> = (0..1000).map(|i| Bytes::from(format!("call {i}"))).collect();
    let (back, told) = volley(&connection, bodies.clone(), LONG);
    let mut heard: Vec<_> = told.iter().map(|(at, answer)| (at, answer.unwrap())).collect();
    heard.sort();
    let expected: Vec<_> = bodies.into_iter().enumerate().collect();
    assert_eq!((back, heard), (0, expected));
    assert!(tcp.stats().writes < 500, "coalesced: {:?}", tcp.stats());

    // Who is not answered in time is told, and nobody else for it.
    let mute = || Bytes::from_static(b"mute");
    let (back, told) = volley(&connection, vec![mute(), "hi".into()], Duration::from_millis(100));
    let heard: Vec<_> =
        told.iter().map(|(at, answer)| (at, answer.map_err(|e| e.outcome()))).collect();
    assert_eq!((back, heard), (0, vec![(1, Ok("hi".into())), (0, Err(Outcome::Unknown))]));

    // More than may be in flight is given back, and nothing of it was sent. The room comes back with the answers.
    let large = Bytes::from(vec![b'x'; 20 << 20]);
    for (count, given_back) in [(3, 0), (4, 4), (3, 0)] {
        let (back, told) = volley(&connection, vec![large.clone(); count], LONG);
        assert_eq!((back, told.iter().count()), (given_back, count - given_back));
    }

    let (back, told) = volley(&connection, vec![mute(), mute()], LONG);
    std::thread::sleep(Duration::from_millis(100));
    tcp.shutdown();
    let heard: Vec<_> = told.iter().map(|(_, answer)| answer.unwrap_err().outcome()).collect();
    assert_eq!((back, heard), (0, vec![Outcome::Unknown; 2]));
    let (back, told) = volley(&connection, vec![mute()], LONG);
    assert_eq!((back, told.iter().count()), (1, 0), "nothing is sent on a broken connection");
}

#[test]
fn the_twin_delivers_and_can_be_cut() {
    let hub = Hub::new();
    let nodes: Vec<_> = (1..=2)
        .map(|s| {
            let (local, node) = (hub.join(StoreId(s)), Arc::new(Node::default()));
            let _ = node.transport.set(local.clone());
            local.start(node.clone());
            (local, node)
        })
        .collect();
    let (a, node) = &nodes[0];
    a.send(StoreId(2), Lane::Bulk, vec![append(1, 1, 1)]);
    assert_eq!(nodes[1].1.got.lock().len(), 1);
    a.request(StoreId(2), 4, Bytes::from_static(b"hi")).unwrap();
    assert_eq!(node.answers.lock()[..], [(StoreId(2), 4, Bytes::from_static(b"hi"))]);
    hub.cut(StoreId(2), StoreId(1));
    a.request(StoreId(2), 5, Bytes::from_static(b"hi")).unwrap();
    assert_eq!(node.lost.lock()[..], [StoreId(2)], "the answer got lost");
    hub.partition(StoreId(1), StoreId(2));
    a.send(StoreId(2), Lane::Bulk, vec![append(1, 1, 1)]);
    assert_eq!(node.unreachable.lock().len(), 1);
    assert!(a.request(StoreId(2), 6, Bytes::new()).is_err());
    hub.heal(StoreId(1), StoreId(2));
    a.request(StoreId(2), 7, Bytes::new()).unwrap();
    a.shutdown();
    assert!(nodes[1].0.request(StoreId(1), 1, Bytes::new()).is_err());
}

/// `cargo test --release --test transport_tcp -- --ignored --nocapture measure`
#[test]
#[ignore = "a measurement"]
fn measure_appends_over_loopback() {
    let rt = runtime();
    let nodes = cluster(&rt, 2, true);
    let (from, to) = (&nodes[0].0, &nodes[1].1);
    let batch: Vec<_> = (1..=64).map(|r| append(r, 1000, 128)).collect();
    from.send(StoreId(2), Lane::Bulk, batch.clone());
    wait("first", || to.count.load(Ordering::Relaxed) == 64);
    for round in 0..3 {
        let (start, first) = (Instant::now(), from.stats());
        let mut sent = 0u64;
        let before = to.count.load(Ordering::Relaxed);
        while start.elapsed() < Duration::from_secs(3) {
            if from.stats().queued_bytes < 8 << 20 {
                from.send(StoreId(2), Lane::Bulk, batch.clone());
                sent += 64;
            } else {
                std::thread::yield_now();
            }
        }
        wait("all", || to.count.load(Ordering::Relaxed) - before == sent);
        let (took, last) = (start.elapsed().as_secs_f64(), from.stats());
        println!(
            "round {round}: {:.2} M envelopes/s, {:.0} MB/s, {:.0} envelopes a write, dropped {}",
            sent as f64 / took / 1e6,
            (last.sent_bytes - first.sent_bytes) as f64 / took / 1e6,
            sent as f64 / (last.writes - first.writes) as f64,
            last.dropped_envelopes,
        );
    }
    nodes.iter().for_each(|(tcp, _)| tcp.shutdown());
}
