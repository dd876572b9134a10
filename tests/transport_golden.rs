//! The bytes of every kind of frame, as `src/transport/format.md` describes them. A change here is a
//! new protocol version.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use ::raft::eraftpb::{Entry, Message, MessageType};
use bytes::BytesMut;
use catamaran::codec::beat::{Beat, CHUNKS};
use catamaran::transport::frame::{Decoder, HEAD, Kind};
use catamaran::transport::payload::*;
use catamaran::transport::{Envelope, Note};
use catamaran::types::{Epoch, PeerId, RegionId, Start, StoreId};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn append() -> Envelope {
    let entry = |data: &'static [u8]| Entry { data: data.into(), ..Default::default() };
    let first = Entry { term: 6, index: 10, ..entry(b"ab") };
    let second = Entry { term: 6, index: 11, ..entry(b"c") };
    let third = Entry { term: 7, index: 300, context: (&b"x"[..]).into(), ..entry(b"") };
    let message = Message {
        msg_type: MessageType::MsgAppend,
        to: 12,
        from: 11,
        term: 6,
        log_term: 5,
        index: 9,
        commit: 8,
        entries: vec![first, second, third].into(),
        ..Default::default()
    };
    let (from, to, from_store) = (PeerId(11), PeerId(12), StoreId(1));
    Envelope { region: RegionId(3), from, to, from_store, message, note: None }
}

fn snapshot() -> Envelope {
    let mut message = Message {
        msg_type: MessageType::MsgSnapshot,
        to: 12,
        from: 11,
        term: 6,
        reject: true,
        priority: -1,
        context: (&b"z"[..]).into(),
        ..Default::default()
    };
    let meta = message.mut_snapshot().mut_metadata();
    meta.index = 9;
    meta.term = 5;
    meta.mut_conf_state().voters = vec![11, 12];
    meta.mut_conf_state().learners = vec![300];
    meta.mut_conf_state().auto_leave = true;
    message.mut_snapshot().data = (&b"d"[..]).into();
    let (from, to, from_store) = (PeerId(11), PeerId(13), StoreId(1));
    Envelope { region: RegionId(300), from, to, from_store, message, note: None }
}

fn beat() -> Beat {
    let (life, hears, support_ms, epoch, rouse) = (0x1122, 0x3344, 600, 300, 5);
    let (shares, sums) = (true, Some(Box::new([7; CHUNKS])));
    Beat { number: 9, life, hears, support_ms, epoch, rouse, shares, sums }
}

/// One frame of every kind.
fn gone() -> Envelope {
    let epoch = Epoch { conf_ver: 300, version: 4 };
    let (from, to) = (PeerId(11), PeerId(1 << 21));
    let (region, message) = (RegionId(3), Message::default());
    let note = Some(Note::Gone { epoch, by: RegionId(9) });
    Envelope { region, from, to, from_store: StoreId(1), message, note }
}

fn buried() -> Envelope {
    Envelope { note: Some(Note::Buried), ..gone() }
}

fn about_leading() -> [Envelope; 2] {
    [Note::CanYouLead { committed: 300 }, Note::CanLead]
        .map(|note| Envelope { note: Some(note), ..gone() })
}

fn all() -> Vec<(Kind, Vec<u8>)> {
    let hello = Hello {
        protocol: PROTOCOL,
        purpose: Purpose::Peer,
        cluster: Some(7),
        store: StoreId(1),
        incarnation: 0x1122,
        target: Some(StoreId(2)),
        start: Start { number: 0x55, life: 0x77 },
        address: None,
    };
    let (cluster, store, incarnation) = (7, StoreId(2), 0x3344);
    let start = Start { number: 0x66, life: 0x88 };
    let welcome = Welcome { protocol: PROTOCOL, cluster, store, incarnation, start };
    let refusal = Refusal { reason: Reason::Cluster, detail: "no".into() };
    let frame = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        out
    };
    vec![
        (Kind::Hello, frame(&|out| write_hello(&hello, out))),
        (Kind::Welcome, frame(&|out| write_welcome(&welcome, out))),
        (Kind::Refused, frame(&|out| write_refusal(&refusal, out))),
        (
            Kind::Envelopes,
            frame(&|out| {
                let [can_you, can] = about_leading();
                let all = [append(), snapshot(), gone(), buried(), can_you, can];
                write_envelopes(all.iter(), 1 << 20, out);
            }),
        ),
        (Kind::Request, frame(&|out| write_call(Kind::Request, 5, b"ask", out))),
        (Kind::Response, frame(&|out| write_call(Kind::Response, 5, b"say", out))),
        (Kind::Ping, frame(&|out| write_signal(Kind::Ping, out))),
        (Kind::SnapshotBegin, frame(&|out| write_snapshot_begin(b"head", out))),
        (Kind::SnapshotAccept, frame(&|out| write_snapshot_accept((3, 12), out))),
        (Kind::SnapshotChunk, frame(&|out| write_snapshot_chunk(2, b"data", out))),
        (Kind::SnapshotEnd, frame(&|out| write_snapshot_end(3, 12, out))),
        (Kind::SnapshotDone, frame(&|out| write_signal(Kind::SnapshotDone, out))),
        (Kind::Beat, frame(&|out| write_beat(&beat(), out))),
        (Kind::SnapshotAsk, frame(&|out| write_snapshot_ask(b"ask", out))),
        (Kind::SnapshotGrant, frame(&|out| write_signal(Kind::SnapshotGrant, out))),
        (Kind::SnapshotCancel, frame(&|out| write_signal(Kind::SnapshotCancel, out))),
    ]
}

#[test]
fn every_kind_has_the_bytes_it_always_had() {
    let found: String = all().iter().map(|(k, bytes)| format!("{k:?} {}\n", hex(bytes))).collect();
    let golden = include_str!("golden/transport_frames.txt");
    assert_eq!(found, golden, "\n{found}");
}

#[test]
fn every_kind_is_read_back() {
    for (kind, bytes) in all() {
        let mut wire = BytesMut::from(&bytes[..]);
        let frame = Decoder::new(1 << 20).decode(&mut wire).unwrap().unwrap();
        assert_eq!((frame.kind, frame.payload.len() + HEAD), (kind, bytes.len()));
        let p = frame.payload;
        match kind {
            Kind::Hello => assert_eq!(read_hello(p).unwrap().target, Some(StoreId(2))),
            Kind::Welcome => assert_eq!(read_welcome(p).unwrap().incarnation, 0x3344),
            Kind::Refused => assert_eq!(read_refusal(p).unwrap().detail, "no"),
            Kind::Envelopes => {
                let mut got = Vec::new();
                read_envelopes(p, StoreId(1), &mut got).unwrap();
                let [can_you, can] = about_leading();
                assert_eq!(got, [append(), snapshot(), gone(), buried(), can_you, can]);
            }
            Kind::Request => assert_eq!(read_call(p).unwrap(), (5, (&b"ask"[..]).into())),
            Kind::Response => assert_eq!(read_call(p).unwrap(), (5, (&b"say"[..]).into())),
            Kind::SnapshotBegin => assert_eq!(&read_snapshot_begin(p).unwrap()[..], b"head"),
            Kind::SnapshotChunk => {
                assert!(read_snapshot_chunk(p.clone(), 1).is_err(), "out of order");
                assert_eq!(&read_snapshot_chunk(p, 2).unwrap()[..], b"data");
            }
            Kind::Beat => assert_eq!(read_beat(p).unwrap(), beat()),
            Kind::SnapshotEnd => assert_eq!(read_snapshot_end(p).unwrap(), (3, 12)),
            Kind::SnapshotAsk => assert_eq!(&read_snapshot_ask(p).unwrap()[..], b"ask"),
            Kind::SnapshotAccept => assert_eq!(read_snapshot_accept(p).unwrap(), (3, 12)),
            Kind::Ping | Kind::SnapshotGrant | Kind::SnapshotCancel | Kind::SnapshotDone => {
                read_signal(p).unwrap();
            }
        }
    }
}
