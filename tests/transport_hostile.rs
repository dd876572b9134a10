//! Hostile bytes: random and damaged frames of every kind, to the decoders and over real sockets; wrong
//! cluster, wrong version, a length of 4 GiB, silence, frames cut short. Asked for each time: an error in
//! the log, a closed connection, no panic, bounded memory.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use ::raft::eraftpb::{Entry, Message, MessageType};
use bytes::{Bytes, BytesMut};
use catamaran::codec::beat::{Beat, CHUNKS};
use catamaran::transport::frame::{self, Decoder, Frame, HEAD, Kind};
use catamaran::transport::payload::*;
use catamaran::transport::remote::Connection;
use catamaran::transport::*;
use catamaran::types::{PeerId, RegionId, Start, StoreId};
use catamaran::{Error, Result};
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// Counts what is allocated, and the most that ever was.
struct Counting;
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: both methods pass the call on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How far the heap rose above where it was, while `work` ran.
fn rise(work: impl FnOnce()) -> usize {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    work();
    PEAK.load(Ordering::Relaxed).saturating_sub(before)
}

/// The tests here measure the heap and read one log: one at a time.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> std::sync::MutexGuard<'static, ()> {
    log();
    let turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    log().lock().unwrap().clear();
    turn
}

/// Warnings and errors, as text.
fn log() -> &'static Mutex<Vec<String>> {
    static LOG: OnceLock<Mutex<Vec<String>>> = OnceLock::new();
    LOG.get_or_init(|| {
        tracing::subscriber::set_global_default(Subscriber).unwrap();
        Mutex::default()
    })
}

struct Subscriber;
struct Text(String);

impl tracing::field::Visit for Text {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0 += &format!("{field}={value:?} ");
    }
}

impl tracing::Subscriber for Subscriber {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        log().lock().unwrap().push(text.0);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

fn logged(part: &str) -> bool {
    log().lock().unwrap().iter().any(|line| line.contains(part))
}

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

fn envelopes(rng: &mut Rng) -> Vec<Envelope> {
    (0..1 + rng.below(8))
        .map(|i| {
            let mut message =
                Message { to: 2, from: 1, term: 6, index: rng.next() >> 40, ..Default::default() };
            match i % 4 {
                0 => {
                    let entry = |len| Entry { data: vec![1; len].into(), ..Default::default() };
                    message.entries = (0..rng.below(9)).map(entry).collect::<Vec<_>>().into();
                    message.msg_type = MessageType::MsgAppend;
                }
                1 => message.msg_type = MessageType::MsgHeartbeat,
                2 => message.msg_type = MessageType::MsgRequestVote,
                _ => {
                    message.msg_type = MessageType::MsgSnapshot;
                    message.mut_snapshot().mut_metadata().mut_conf_state().voters = vec![1, 2, 3];
                }
            }
            let (from, to) = (PeerId(1), PeerId(2));
            Envelope {
                region: RegionId(i as u64),
                from,
                to,
                from_store: StoreId(1),
                message,
                note: None,
            }
        })
        .collect()
}

/// A good frame of this kind.
fn good(kind: Kind, rng: &mut Rng) -> Vec<u8> {
    let mut out = Vec::new();
    let len = rng.below(200);
    let body = rng.bytes(1 + len);
    match kind {
        Kind::Hello => write_hello(&hello(), &mut out),
        Kind::Welcome => {
            let (cluster, store, incarnation, start) = (7, StoreId(1), 5, Start::default());
            let welcome = Welcome { protocol: PROTOCOL, cluster, store, incarnation, start };
            write_welcome(&welcome, &mut out);
        }
        Kind::Refused => {
            let refusal = Refusal { reason: Reason::Busy, detail: "x".repeat(body.len()) };
            write_refusal(&refusal, &mut out);
        }
        Kind::Envelopes => {
            write_envelopes(envelopes(rng).iter(), 1 << 20, &mut out);
        }
        Kind::Request | Kind::Response => write_call(kind, rng.next(), &body, &mut out),
        Kind::Beat => {
            let sums = len.is_multiple_of(2).then(|| Box::new([rng.next(); CHUNKS]));
            let (number, life, hears) = (rng.next(), rng.next(), rng.next());
            let (support_ms, epoch, rouse) = (len as u32, rng.next(), rng.next());
            let shares = rng.next().is_multiple_of(2);
            let beat = Beat { number, life, hears, support_ms, epoch, rouse, shares, sums };
            write_beat(&beat, &mut out);
        }
        Kind::SnapshotBegin => write_snapshot_begin(&body, &mut out),
        Kind::SnapshotChunk => write_snapshot_chunk(0, &body, &mut out),
        Kind::SnapshotEnd => write_snapshot_end(rng.next(), rng.next(), &mut out),
        Kind::SnapshotAsk => write_snapshot_ask(&body, &mut out),
        Kind::SnapshotAccept => write_snapshot_accept((3, 12), &mut out),
        Kind::Ping | Kind::SnapshotGrant | Kind::SnapshotCancel | Kind::SnapshotDone => {
            write_signal(kind, &mut out);
        }
    }
    out
}

fn hello() -> Hello {
    Hello {
        protocol: PROTOCOL,
        purpose: Purpose::Peer,
        cluster: Some(7),
        store: StoreId(2),
        incarnation: 9,
        target: Some(StoreId(1)),
        start: Start::default(),
        address: None,
    }
}

/// Makes length and checksum right again, so that damage reaches the payload's decoder.
fn seal(bytes: &mut [u8]) {
    if bytes.len() >= HEAD {
        frame::end(0, bytes);
    }
}

fn parse(frame: Frame) -> Result<()> {
    let p = frame.payload;
    match frame.kind {
        Kind::Hello => read_hello(p).map(drop),
        Kind::Welcome => read_welcome(p).map(drop),
        Kind::Refused => read_refusal(p).map(drop),
        Kind::Envelopes => read_envelopes(p, StoreId(1), &mut Vec::new()),
        Kind::Request | Kind::Response => read_call(p).map(drop),
        Kind::Beat => read_beat(p).map(drop),
        Kind::SnapshotBegin => read_snapshot_begin(p).map(drop),
        Kind::SnapshotChunk => read_snapshot_chunk(p, 0).map(drop),
        Kind::SnapshotEnd => read_snapshot_end(p).map(drop),
        Kind::SnapshotAsk => read_snapshot_ask(p).map(drop),
        Kind::SnapshotAccept => read_snapshot_accept(p).map(drop),
        Kind::Ping | Kind::SnapshotGrant | Kind::SnapshotCancel | Kind::SnapshotDone => {
            read_signal(p)
        }
    }
}

fn feed(bytes: &[u8]) -> Result<()> {
    let mut wire = BytesMut::from(bytes);
    while let Some(frame) = Decoder::new(64 << 20).decode(&mut wire)? {
        parse(frame)?;
    }
    Ok(())
}

/// Flips, overwrites, cuts, doubles or inserts.
fn damage(bytes: &mut Vec<u8>, from: usize, rng: &mut Rng) {
    for _ in 0..1 + rng.below(4) {
        let at = from + rng.below(bytes.len().saturating_sub(from).max(1));
        match rng.below(5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            1 if at < bytes.len() => bytes[at] = rng.next() as u8,
            2 => bytes.truncate(at.max(from)),
            3 => bytes.insert(at.min(bytes.len()), rng.next() as u8),
            _ if at < bytes.len() => bytes[at] = 0xff,
            _ => {}
        }
    }
}

#[test]
fn a_thousand_random_and_a_thousand_damaged_frames_of_every_kind() {
    let _turn = turn();
    let mut rng = Rng(1);
    let mut refused = 0;
    let most = rise(|| {
        for kind in Kind::ALL {
            for _ in 0..1000 {
                // Random bytes; then random bytes behind a good head of this kind.
                let len = rng.below(600);
                assert!(len == 0 || feed(&rng.bytes(len)).is_err() || len < 3);
                let mut dressed = Vec::new();
                let body = rng.bytes(len);
                frame::encode(kind, &mut dressed, |out| out.extend_from_slice(&body));
                refused += usize::from(feed(&dressed).is_err());
            }
            for i in 0..1000 {
                let mut bytes = good(kind, &mut rng);
                feed(&bytes).unwrap();
                if i % 2 == 0 {
                    damage(&mut bytes, 0, &mut rng);
                } else {
                    damage(&mut bytes, HEAD, &mut rng);
                    seal(&mut bytes);
                }
                refused += usize::from(feed(&bytes).is_err());
            }
        }
    });
    assert!(refused > 10_000, "{refused}");
    assert!(most < 2 << 20, "frames of 600 bytes cost {most} bytes of heap");
}

#[test]
fn a_large_claim_costs_nothing() {
    let _turn = turn();
    // 1 MiB of the smallest entries: what the codec's caps are for.
    let most = rise(|| {
        let mut body = vec![0, 1, 3, 0, 0x20];
        body.extend_from_slice(&[0xff, 0xff, 0x0f]); // 262,143 entries
        body.resize(body.len() + 2 * 262_143, 0);
        let mut got = Vec::new();
        read_envelopes(body.into(), StoreId(1), &mut got).unwrap();
        assert_eq!(got[0].message.entries.len(), 262_143);
    });
    assert!(most < 150 << 20, "{most}");
    let most = rise(|| {
        let mut head = b"Ct\x01\x04".to_vec();
        head.extend_from_slice(&u32::MAX.to_le_bytes());
        head.extend_from_slice(&[0; 4]);
        let error = Decoder::new(64 << 20).decode(&mut BytesMut::from(&head[..])).unwrap_err();
        assert!(error.to_string().contains("cap"), "{error}");
        // Within the cap: nothing is asked for that has not nearly come.
        head[4..8].copy_from_slice(&(64u32 << 20).to_le_bytes());
        let mut wire = BytesMut::from(&head[..]);
        assert!(Decoder::new(64 << 20).decode(&mut wire).unwrap().is_none());
        assert!(Decoder::new(64 << 20).wants(&wire, 1024) <= 1024);
    });
    assert!(most < 64 << 10, "{most}");
}

/// Takes everything and does nothing.
struct Deaf;

impl Handler for Deaf {
    fn envelopes(&self, _: StoreId, _: Vec<Envelope>) {}
    fn request(&self, _: Origin, _: u64, _: Bytes) {}
    fn response(&self, _: StoreId, _: u64, _: Bytes) {}
    fn unreachable(&self, _: StoreId) {}
    fn connection_lost(&self, _: StoreId) {}
    fn snapshot_reserve(&self, _: StoreId, _: Bytes) -> Result<Box<dyn SnapshotRoom>> {
        Err(Error::Busy { what: "snapshot slots" })
    }
}

struct Server {
    rt: tokio::runtime::Runtime,
    tcp: Tcp,
}

impl Server {
    fn new(change: impl FnOnce(&mut Config)) -> Server {
        let rt = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let mut config = Config::new(7, StoreId(1), 5, ([127, 0, 0, 1], 0).into());
        config.handshake_timeout = Duration::from_millis(300);
        config.idle_timeout = Duration::from_millis(600);
        config.ping = Duration::from_millis(200);
        config.frame_timeout = Duration::from_millis(500);
        change(&mut config);
        let tcp = Tcp::bind(config, rt.handle().clone()).unwrap();
        tcp.start(Arc::new(Deaf));
        Server { rt, tcp }
    }

    fn dial(&self) -> TcpStream {
        let stream = TcpStream::connect(self.tcp.local_addr()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
    }

    /// Writes, then reads until the server closes; the refusal, if it said one.
    fn provoke(&self, bytes: &[u8]) -> Option<Refusal> {
        let mut stream = self.dial();
        let _ = stream.write_all(bytes);
        heard(stream)
    }

    /// It still serves a decent client.
    fn check(&self) {
        let address = self.tcp.local_addr().to_string();
        self.rt.block_on(Connection::connect(&address, Some(7))).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tcp.shutdown();
    }
}

/// Reads to the end of the stream; the last refusal in it.
fn heard(mut stream: TcpStream) -> Option<Refusal> {
    let mut all = Vec::new();
    if let Err(error) = stream.read_to_end(&mut all) {
        let reset = error.kind() == std::io::ErrorKind::ConnectionReset;
        assert!(reset, "not closed: {error}");
    }
    let mut wire = BytesMut::from(&all[..]);
    let mut refusal = None;
    while let Ok(Some(frame)) = Decoder::new(1 << 20).decode(&mut wire) {
        if frame.kind == Kind::Refused {
            refusal = Some(read_refusal(frame.payload).unwrap());
        }
    }
    refusal
}

fn hello_with(change: impl FnOnce(&mut Hello)) -> Vec<u8> {
    let mut out = Vec::new();
    let mut hello = hello();
    change(&mut hello);
    write_hello(&hello, &mut out);
    out
}

#[test]
fn strangers_are_told_why_and_closed() {
    let _turn = turn();
    let server = Server::new(|_| {});
    let cases = [
        (hello_with(|h| h.cluster = Some(8)), Reason::Cluster),
        (hello_with(|h| h.cluster = None), Reason::Cluster),
        (hello_with(|h| h.protocol = PROTOCOL + 1), Reason::Protocol),
        (hello_with(|h| h.store = StoreId(1)), Reason::Store),
        (hello_with(|h| h.target = Some(StoreId(4))), Reason::Store),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), Reason::Malformed),
        (b"Ct\x01\x01\xff\xff\xff\xff\0\0\0\0".to_vec(), Reason::Malformed),
        (hello_with(|_| {})[..20].to_vec(), Reason::Silent),
        (Vec::new(), Reason::Silent),
    ];
    let count = cases.len() as u64;
    for (bytes, reason) in cases {
        let start = Instant::now();
        assert_eq!(server.provoke(&bytes).map(|r| r.reason), Some(reason));
        assert!(start.elapsed() < Duration::from_secs(30));
        assert!(logged(&format!("reason={reason:?}")), "{reason:?} not in the log");
    }
    assert_eq!(server.tcp.stats().refused_connections, count);
    server.check();
}

#[test]
fn a_flood_of_strangers_does_not_flood_the_log() {
    const STRANGERS: u64 = 100;
    let _turn = turn();
    let server = Server::new(|_| {});
    let lines = || {
        let log = log().lock().unwrap();
        log.iter().filter(|line| line.contains("reason=Cluster")).count()
    };
    let (before, start) = (lines(), Instant::now());
    for _ in 0..STRANGERS {
        let refusal = server.provoke(&hello_with(|h| h.cluster = Some(8)));
        assert_eq!(refusal.map(|r| r.reason), Some(Reason::Cluster));
    }
    // Ten in a second; a slow machine takes more seconds for them.
    let (said, most) = (lines() - before, 10 * (start.elapsed().as_secs() as usize + 1));
    assert!(said >= 10 && said <= most, "{said} lines, at most {most}");
    assert_eq!(server.tcp.stats().refused_connections, STRANGERS);
    server.check();
}

#[test]
fn hostile_bytes_after_a_good_handshake() {
    let _turn = turn();
    let server = Server::new(|_| {});
    let with = |tail: &[u8]| [&hello_with(|_| {})[..], tail].concat();
    let refusal = server.provoke(&with(b"Ct\x01\x04\xff\xff\xff\xff\0\0\0\0")).unwrap();
    assert!(refusal.detail.contains("cap"), "{refusal:?}");
    assert!(logged("above the cap"));
    // 60 MiB claimed, 1 KiB sent, then nothing: the frame's clock ends it, memory stays small.
    let mut stall = b"Ct\x01\x04".to_vec();
    stall.extend_from_slice(&(60u32 << 20).to_le_bytes());
    stall.resize(1024, 0);
    let most = rise(|| {
        let refusal = server.provoke(&with(&stall)).unwrap();
        assert_eq!(refusal.reason, Reason::Silent, "{refusal:?}");
    });
    assert!(most < 4 << 20, "{most}");
    // A peer that goes silent after a good start.
    assert_eq!(server.provoke(&with(b"")).unwrap().reason, Reason::Silent);
    // A frame that only the other side may send; one cut short by the end of the stream.
    let mut rng = Rng(3);
    let welcome = good(Kind::Welcome, &mut rng);
    assert_eq!(server.provoke(&with(&welcome)).unwrap().reason, Reason::Malformed);
    let mut stream = server.dial();
    let request = good(Kind::Request, &mut rng);
    stream.write_all(&with(&request[..request.len() - 1])).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(heard(stream).unwrap().reason, Reason::Malformed);
    // A client may not send raft messages, nor ask for a snapshot.
    let client = hello_with(|h| h.purpose = Purpose::Client);
    for kind in [Kind::Envelopes, Kind::SnapshotAsk, Kind::SnapshotBegin] {
        let bytes = [&client[..], &good(kind, &mut rng)].concat();
        assert_eq!(server.provoke(&bytes).unwrap().reason, Reason::Malformed);
    }
    // A snapshot connection that begins with something else, and one that is refused its room.
    let snapshot = hello_with(|h| h.purpose = Purpose::Snapshot);
    for kind in [Kind::SnapshotChunk, Kind::SnapshotBegin, Kind::SnapshotEnd] {
        let bytes = [&snapshot[..], &good(kind, &mut rng)].concat();
        assert_eq!(server.provoke(&bytes).unwrap().reason, Reason::Malformed);
    }
    let bytes = [&snapshot[..], &good(Kind::SnapshotAsk, &mut rng)].concat();
    assert_eq!(server.provoke(&bytes).unwrap().reason, Reason::Busy);
    server.check();
}

#[test]
fn damaged_frames_over_a_real_socket() {
    let _turn = turn();
    let server = Server::new(|c| {
        c.idle_timeout = Duration::from_millis(30);
        c.frame_timeout = Duration::from_millis(30);
        c.handshake_timeout = Duration::from_millis(30);
    });
    let mut rng = Rng(11);
    let most = rise(|| {
        for kind in Kind::ALL {
            for i in 0..24 {
                let mut bytes = match i % 3 {
                    0 => rng.bytes(300),
                    _ => good(kind, &mut rng),
                };
                match i % 3 {
                    0 => {}
                    1 => damage(&mut bytes, 0, &mut rng),
                    _ => {
                        damage(&mut bytes, HEAD, &mut rng);
                        seal(&mut bytes);
                    }
                }
                let hello = match i % 2 {
                    0 => hello_with(|_| {}),
                    _ => Vec::new(),
                };
                let mut stream = server.dial();
                let _ = stream.write_all(&[&hello[..], &bytes].concat());
                let _ = stream.shutdown(std::net::Shutdown::Write);
                heard(stream); // returns: the server has closed it
            }
        }
    });
    assert!(most < 8 << 20, "{most}");
    let stats = server.tcp.stats();
    assert!(stats.malformed > 100, "{stats:?}");
    let start = Instant::now();
    while server.tcp.stats().connections > 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", server.tcp.stats());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn connections_and_bytes_being_received_are_bounded() {
    let _turn = turn();
    let server = Server::new(|c| {
        c.max_connections = 4;
        c.receive_budget = 4 << 20;
        c.idle_timeout = Duration::from_secs(5);
        c.frame_timeout = Duration::from_secs(5);
    });
    // Each sends 2 MiB of a frame of 60 MiB and keeps the rest: there is room for less than that.
    let mut head = b"Ct\x01\x04".to_vec();
    head.extend_from_slice(&(60u32 << 20).to_le_bytes());
    head.resize(HEAD, 0);
    let most = rise(|| {
        let held: Vec<_> = (0..4)
            .map(|_| {
                let mut stream = server.dial();
                let part = vec![0; 1 << 20];
                let _ = stream.write_all(&[&hello_with(|_| {})[..], &head].concat());
                let _ = stream.write_all(&part).and_then(|()| stream.write_all(&part));
                stream
            })
            .collect();
        let start = Instant::now();
        while !logged("bytes being received") {
            assert!(start.elapsed() < Duration::from_secs(60), "{:?}", server.tcp.stats());
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(held);
    });
    assert!(most < 12 << 20, "{most}");
    // All places taken by idle clients: the next one is told.
    let start = Instant::now();
    while server.tcp.stats().connections > 0 {
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(1200)); // farewells take up to a second
    let address = server.tcp.local_addr().to_string();
    let clients: Vec<_> = (0..4)
        .map(|_| server.rt.block_on(Connection::connect(&address, Some(7))).unwrap())
        .collect();
    let error = server.rt.block_on(Connection::connect(&address, Some(7))).unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    assert!(logged("too many connections"));
    assert!(clients.iter().all(Connection::is_open));
}

#[test]
fn an_idle_client_stays_connected() {
    let _turn = turn();
    // A client pings every two seconds.
    let server = Server::new(|c| c.idle_timeout = Duration::from_secs(3));
    let address = server.tcp.local_addr().to_string();
    let client = server.rt.block_on(Connection::connect(&address, Some(7))).unwrap();
    std::thread::sleep(Duration::from_secs(5));
    assert!(client.is_open());
    assert_eq!(server.tcp.stats().connections, 1);
}
