//! The way of a snapshot over real sockets: a slot first, breaks in the middle, orders to stop, and strangers at
//! either end who do not keep to it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use bytes::{Bytes, BytesMut};
use catamaran::transport::frame::{Decoder, Kind};
use catamaran::transport::payload::*;
use catamaran::transport::*;
use catamaran::types::{Start, StoreId};
use catamaran::{Error, Result};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// What a receiver holds of one snapshot, and how its sinks ended.
#[derive(Default)]
struct Held {
    chunks: Vec<Bytes>,
    ends: Vec<&'static str>,
}

/// Receives, one slot at a time, and keeps what it has when a connection breaks.
#[derive(Default)]
struct Receiver {
    held: Arc<Mutex<Held>>,
    slots: Arc<AtomicUsize>,
}

struct Room(Arc<Mutex<Held>>, Arc<AtomicUsize>);
struct Sink(Option<Room>);

impl Drop for Room {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::SeqCst);
    }
}

impl SnapshotRoom for Room {
    fn begin(self: Box<Self>, header: Bytes) -> Result<Box<dyn SnapshotSink>> {
        if &header[..] == b"other" {
            return Err(Error::malformed("snapshot header", "of another region"));
        }
        Ok(Box::new(Sink(Some(*self))))
    }
}

impl Sink {
    fn end(&mut self, how: &'static str) {
        if let Some(room) = self.0.take() {
            room.0.lock().ends.push(how);
        }
    }
}

impl SnapshotSink for Sink {
    fn held(&self) -> (u64, u64) {
        let held = self.0.as_ref().unwrap().0.lock();
        let bytes: usize = held.chunks.iter().map(Bytes::len).sum();
        (held.chunks.len() as u64, bytes as u64)
    }
    fn chunk(&mut self, bytes: Bytes) -> Result<()> {
        self.0.as_ref().unwrap().0.lock().chunks.push(bytes);
        Ok(())
    }
    fn finish(mut self: Box<Self>) -> Result<()> {
        self.end("done");
        Ok(())
    }
    fn cancel(mut self: Box<Self>) {
        self.end("cancelled");
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.end("broken");
    }
}

impl Handler for Receiver {
    fn envelopes(&self, _: StoreId, _: Vec<Envelope>) {}
    fn request(&self, _: Origin, _: u64, _: Bytes) {}
    fn response(&self, _: StoreId, _: u64, _: Bytes) {}
    fn unreachable(&self, _: StoreId) {}
    fn connection_lost(&self, _: StoreId) {}
    fn snapshot_reserve(&self, _: StoreId, ask: Bytes) -> Result<Box<dyn SnapshotRoom>> {
        if &ask[..] == b"useless" {
            return Err(Error::InvalidArgument("no use for it".into()));
        }
        self.slots.fetch_add(1, Ordering::SeqCst);
        let room = Room(self.held.clone(), self.slots.clone());
        match self.slots.load(Ordering::SeqCst) > 1 {
            true => Err(Error::Busy { what: "slots" }),
            false => Ok(Box::new(room)),
        }
    }
}

fn config(store: u64, peers: &[(u64, String)]) -> Config {
    let mut config = Config::new(7, StoreId(store), 100 + store, ([127, 0, 0, 1], 0).into());
    config.peers =
        peers.iter().map(|(id, at)| (StoreId(*id), at.clone())).collect::<BTreeMap<_, _>>();
    config.backoff_min = Duration::from_millis(5);
    config.snapshot_rate = 0;
    config
}

fn start(rt: &Runtime, config: Config) -> (Tcp, Arc<Receiver>) {
    let tcp = Tcp::bind(config, rt.handle().clone()).unwrap();
    let receiver = Arc::new(Receiver::default());
    tcp.start(receiver.clone());
    (tcp, receiver)
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

const PATIENCE: Duration = Duration::from_secs(60);

fn wait(what: &str, check: impl Fn() -> bool) {
    let start = Instant::now();
    while !check() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn chunk(number: u64) -> Bytes {
    Bytes::from(vec![(number % 251) as u8; 10_000 + number as usize])
}

/// Numbered chunks; counts how often it is asked for one.
struct Source {
    at: u64,
    end: u64,
    asked: Arc<AtomicU64>,
    pause: Duration,
}

impl SnapshotSource for Source {
    fn next(&mut self) -> Result<Option<Bytes>> {
        if self.at == self.end {
            return Ok(None);
        }
        std::thread::sleep(self.pause);
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.at += 1;
        Ok(Some(chunk(self.at - 1)))
    }
    fn rewind(&mut self, chunk: u64) -> Result<()> {
        if chunk > self.at {
            return Err(Error::InvalidArgument("never sent".into()));
        }
        self.at = chunk;
        Ok(())
    }
}

fn slot(from: &dyn Transport, ask: &'static [u8]) -> Result<Box<dyn SnapshotSlot>> {
    let (answer, answered) = mpsc::channel();
    let answer = Box::new(move |slot| answer.send(slot).unwrap());
    from.ask_snapshot(StoreId(2), Bytes::from_static(ask), answer);
    answered.recv_timeout(PATIENCE).expect("always answered")
}

/// A transfer under way.
struct Sent {
    told: mpsc::Receiver<Result<()>>,
    cancel: Cancel,
    asked: Arc<AtomicU64>,
}

fn send(slot: Box<dyn SnapshotSlot>, header: &'static [u8], chunks: u64, pause: Duration) -> Sent {
    let (tell, told) = mpsc::channel();
    let (cancel, asked) = (Cancel::default(), Arc::new(AtomicU64::new(0)));
    slot.send(SnapshotJob {
        header: Bytes::from_static(header),
        source: Box::new(Source { at: 0, end: chunks, asked: asked.clone(), pause }),
        cancel: cancel.clone(),
        done: Box::new(move |result| tell.send(result).unwrap()),
    });
    Sent { told, cancel, asked }
}

impl Sent {
    fn end(&self) -> Result<()> {
        self.told.recv_timeout(PATIENCE).expect("the end is always told")
    }
}

fn whole(held: &Held, chunks: u64) {
    assert_eq!(held.chunks.len() as u64, chunks);
    assert!(held.chunks.iter().zip(0..).all(|(found, number)| *found == chunk(number)));
    assert_eq!(held.ends.last(), Some(&"done"), "{:?}", held.ends);
}

/// Passes on what comes, and breaks each of the first connections after so many bytes.
fn proxy(to: String, breaks: Vec<usize>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let mut breaks = breaks.into_iter();
        for client in listener.incoming() {
            let (Ok(mut client), Ok(mut server)) = (client, TcpStream::connect(&to)) else {
                return;
            };
            let (mut back_from, mut back_to) =
                (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut back_from, &mut back_to);
                let _ = back_to.shutdown(std::net::Shutdown::Both);
            });
            let mut left = breaks.next().unwrap_or(usize::MAX);
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = client.read(&mut buffer) {
                    let part = read.min(left);
                    left -= part;
                    if server.write_all(&buffer[..part]).is_err() || left == 0 {
                        break;
                    }
                }
                let _ = server.shutdown(std::net::Shutdown::Both);
                let _ = client.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    address
}

#[test]
fn a_transfer_goes_on_where_its_connection_broke() {
    let rt = runtime();
    let (to, receiver) = start(&rt, config(2, &[]));
    // In a handshake, in a question, and in the middle of chunks, early and late.
    let breaks = vec![300_000, 20, 70, 120, 500_000, 1_000_000];
    let through = proxy(to.local_addr().to_string(), breaks);
    let (from, _) = start(&rt, config(1, &[(2, through)]));
    let sent = send(slot(&from, b"ask").unwrap(), b"head", 300, Duration::ZERO);
    sent.end().unwrap();
    let held = receiver.held.lock();
    whole(&held, 300);
    assert!(held.ends.iter().filter(|end| **end == "broken").count() >= 3, "{:?}", held.ends);
    let stats = from.stats();
    assert!(stats.snapshots_resumed >= 3, "{stats:?}");
    assert_eq!(stats.snapshots_sent, 1);
    // What was on its way at a break is made again, not everything before it.
    let asked = sent.asked.load(Ordering::SeqCst);
    assert!(asked < 300 + 4 * 250, "{asked} chunks were made");
    drop(held);
    wait("the slot", || receiver.slots.load(Ordering::SeqCst) == 0);
    from.shutdown();
    to.shutdown();
}

#[test]
fn a_receiver_that_stays_away_ends_it() {
    let rt = runtime();
    let (to, _) = start(&rt, config(2, &[]));
    let mut config = config(1, &[(2, to.local_addr().to_string())]);
    config.snapshot_timeout = Duration::from_millis(300);
    let (from, _) = start(&rt, config);
    let sent = send(slot(&from, b"ask").unwrap(), b"head", 100_000, Duration::from_millis(1));
    wait("some of it", || from.stats().snapshot_bytes_sent > 50_000);
    to.shutdown();
    let error = sent.end().unwrap_err();
    assert!(matches!(error, Error::Io { .. } | Error::Timeout { .. }), "{error}");
    from.shutdown();
}

#[test]
fn called_off_it_stops_and_nothing_is_kept() {
    let rt = runtime();
    let (to, receiver) = start(&rt, config(2, &[]));
    let (from, _) = start(&rt, config(1, &[(2, to.local_addr().to_string())]));
    let sent = send(slot(&from, b"ask").unwrap(), b"head", 1_000_000, Duration::from_millis(1));
    wait("some of it", || receiver.held.lock().chunks.len() > 3);
    sent.cancel.cancel();
    assert!(sent.end().is_err());
    wait("the sink", || !receiver.held.lock().ends.is_empty());
    assert_eq!(receiver.held.lock().ends, ["cancelled"]);
    assert!(sent.asked.load(Ordering::SeqCst) < 1_000_000);
    assert_eq!((from.stats().snapshots_cancelled, from.stats().snapshots_sent), (1, 0));
    // And before it has begun.
    let slot = slot(&from, b"ask").unwrap();
    receiver.held.lock().chunks.clear();
    let (tell, told) = mpsc::channel();
    let cancel = Cancel::default();
    cancel.cancel();
    let source = Source { at: 0, end: 5, asked: Arc::default(), pause: Duration::ZERO };
    let done = Box::new(move |result: Result<()>| tell.send(result).unwrap());
    slot.send(SnapshotJob { header: Bytes::new(), source: Box::new(source), cancel, done });
    assert!(told.recv_timeout(PATIENCE).unwrap().is_err());
    wait("the slot", || receiver.slots.load(Ordering::SeqCst) == 0);
    assert!(receiver.held.lock().chunks.is_empty());
    from.shutdown();
    to.shutdown();
}

#[test]
fn slots_are_bounded_given_back_and_refused_with_a_reason() {
    let rt = runtime();
    let (to, receiver) = start(&rt, config(2, &[]));
    let (from, _) = start(&rt, config(1, &[(2, to.local_addr().to_string())]));
    let first = slot(&from, b"ask").unwrap();
    assert!(matches!(slot(&from, b"ask").err(), Some(Error::Busy { .. })));
    assert!(matches!(slot(&from, b"useless").err(), Some(Error::InvalidArgument(_))));
    drop(first);
    wait("the slot", || receiver.slots.load(Ordering::SeqCst) == 0);
    let error = send(slot(&from, b"ask").unwrap(), b"other", 3, Duration::ZERO).end().unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
    wait("the slot", || receiver.slots.load(Ordering::SeqCst) == 0);
    send(slot(&from, b"ask").unwrap(), b"head", 3, Duration::ZERO).end().unwrap();
    whole(&receiver.held.lock(), 3);
    from.shutdown();
    to.shutdown();
}

#[test]
fn a_slot_that_is_not_used_lapses() {
    let rt = runtime();
    let (to, receiver) = start(&rt, config(2, &[]));
    let mut config = config(1, &[(2, to.local_addr().to_string())]);
    config.snapshot_timeout = Duration::from_millis(50);
    let (from, _) = start(&rt, config);
    let slot = slot(&from, b"ask").unwrap();
    wait("the slot", || receiver.slots.load(Ordering::SeqCst) == 0);
    let error = send(slot, b"head", 3, Duration::ZERO).end().unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    assert!(receiver.held.lock().chunks.is_empty());
    from.shutdown();
    to.shutdown();
}

/// Answers the handshake, then says what it is told, and reads on.
fn impostor(says: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut out = Vec::new();
            let (cluster, store, incarnation) = (7, StoreId(2), 5);
            write_welcome(
                &Welcome {
                    protocol: PROTOCOL,
                    cluster,
                    store,
                    incarnation,
                    start: Start::default(),
                },
                &mut out,
            );
            out.extend_from_slice(&says);
            let _ = stream.write_all(&out);
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            });
        }
    });
    address
}

#[test]
fn a_receiver_that_lies_or_says_nothing_harms_nobody() {
    let rt = runtime();
    let asking = |says: Vec<u8>| {
        let mut config = config(1, &[(2, impostor(says))]);
        config.handshake_timeout = Duration::from_millis(200);
        config.snapshot_timeout = Duration::from_millis(400);
        start(&rt, config).0
    };
    // A grant that never comes.
    let from = asking(Vec::new());
    assert!(matches!(slot(&from, b"ask").err(), Some(Error::Timeout { .. })));
    from.shutdown();
    let frame = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write_signal(Kind::SnapshotGrant, &mut out);
        write(&mut out);
        out
    };
    let cases = [
        // Nothing after the grant; what was never sent is held; a count that cannot be; another kind; done at once.
        frame(&|_| {}),
        frame(&|out| write_snapshot_accept((9, 90), out)),
        frame(&|out| write_snapshot_accept((9, 8), out)),
        frame(&|out| write_snapshot_chunk(0, b"x", out)),
        frame(&|out| {
            write_snapshot_accept((0, 0), out);
            write_signal(Kind::SnapshotDone, out);
        }),
    ];
    for says in cases {
        let from = asking(says);
        let sent = send(slot(&from, b"ask").unwrap(), b"head", 40, Duration::from_millis(1));
        assert!(sent.end().is_err());
        assert_eq!(from.stats().snapshots_sent, 0);
        from.shutdown();
    }
}

/// Everything the server says until it closes.
fn heard(stream: &mut TcpStream) -> Vec<(Kind, Bytes)> {
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let mut wire = BytesMut::from(&all[..]);
    let mut frames = Vec::new();
    while let Ok(Some(frame)) = Decoder::new(1 << 20).decode(&mut wire) {
        frames.push((frame.kind, frame.payload));
    }
    frames
}

#[test]
fn a_sender_that_does_not_keep_to_it_is_refused_and_leaves_its_slot() {
    let rt = runtime();
    let mut limits = config(2, &[]);
    limits.snapshot_timeout = Duration::from_millis(300);
    limits.frame_timeout = Duration::from_millis(300);
    let (to, receiver) = start(&rt, limits);
    let bytes = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        out
    };
    let begin = |rest: &dyn Fn(&mut Vec<u8>)| {
        bytes(&|out| {
            write_snapshot_begin(b"head", out);
            rest(out);
        })
    };
    let oversized = vec![7; MAX_CHUNK + 1];
    let cases = [
        ("out of order", Reason::Malformed, begin(&|out| write_snapshot_chunk(1, b"x", out))),
        (
            "twice",
            Reason::Malformed,
            begin(&|out| {
                write_snapshot_chunk(0, b"x", out);
                write_snapshot_chunk(0, b"x", out);
            }),
        ),
        ("empty", Reason::Malformed, begin(&|out| write_snapshot_chunk(0, b"", out))),
        ("too long", Reason::Malformed, begin(&|out| write_snapshot_chunk(0, &oversized, out))),
        ("not all", Reason::Malformed, begin(&|out| write_snapshot_end(1, 1, out))),
        ("begun twice", Reason::Malformed, begin(&|out| write_snapshot_begin(b"head", out))),
        ("a chunk first", Reason::Malformed, bytes(&|out| write_snapshot_chunk(0, b"x", out))),
        ("asked twice", Reason::Malformed, bytes(&|out| write_snapshot_ask(b"ask", out))),
        ("another region", Reason::Malformed, bytes(&|out| write_snapshot_begin(b"other", out))),
        ("silent", Reason::Silent, Vec::new()),
        ("silent in the middle", Reason::Silent, begin(&|_| {})),
        ("cut short", Reason::Silent, begin(&|out| out.extend_from_slice(b"Ct\x01\x0a\xff"))),
    ];
    for (what, reason, says) in cases {
        receiver.held.lock().chunks.clear();
        let mut stream = TcpStream::connect(to.local_addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let hello = Hello {
            protocol: PROTOCOL,
            purpose: Purpose::Snapshot,
            cluster: Some(7),
            store: StoreId(1),
            incarnation: 9,
            start: Start::default(),
            address: None,
            target: Some(StoreId(2)),
        };
        let mut out = Vec::new();
        write_hello(&hello, &mut out);
        write_snapshot_ask(b"ask", &mut out);
        out.extend_from_slice(&says);
        let _ = stream.write_all(&out);
        let frames = heard(&mut stream);
        assert_eq!(frames[1].0, Kind::SnapshotGrant, "{what}");
        let (kind, payload) = frames.last().unwrap().clone();
        assert_eq!(kind, Kind::Refused, "{what}");
        assert_eq!(read_refusal(payload).unwrap().reason, reason, "{what}");
        wait(what, || receiver.slots.load(Ordering::SeqCst) == 0);
    }
    assert_eq!(to.stats().snapshots_received, 0);
    assert!(receiver.held.lock().ends.iter().all(|end| *end != "done"));
    // An honest one is served.
    receiver.held.lock().chunks.clear();
    let (from, _) = start(&rt, config(1, &[(2, to.local_addr().to_string())]));
    send(slot(&from, b"ask").unwrap(), b"head", 3, Duration::ZERO).end().unwrap();
    whole(&receiver.held.lock(), 3);
    from.shutdown();
    to.shutdown();
}

#[test]
fn the_twin_goes_on_when_its_link_is_mended() {
    let hub = Hub::new();
    let receiver = Arc::new(Receiver::default());
    let (from, to) = (hub.join(StoreId(1)), hub.join(StoreId(2)));
    from.start(Arc::new(Receiver::default()));
    to.start(receiver.clone());
    let sent = send(slot(from.as_ref(), b"ask").unwrap(), b"head", 200, Duration::from_millis(1));
    for _ in 0..3 {
        let before = receiver.held.lock().chunks.len();
        wait("more of it", || receiver.held.lock().chunks.len() > before + 5);
        hub.cut(StoreId(1), StoreId(2));
        wait("the break", || receiver.slots.load(Ordering::SeqCst) == 0);
        hub.heal_all();
    }
    sent.end().unwrap();
    whole(&receiver.held.lock(), 200);
    assert!(from.stats().snapshots_resumed >= 1, "{:?}", from.stats());
}
