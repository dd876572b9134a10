//! The message codec and the payloads: round trips, one encoding per message, no copy, and bytes that
//! are random or damaged.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use ::raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType, Snapshot};
use bytes::{Bytes, BytesMut};
use catamaran::codec::Reader;
use catamaran::raft::wire;
use catamaran::transport::frame::{Decoder, Kind};
use catamaran::transport::payload::*;
use catamaran::transport::{Envelope, Note};
use catamaran::types::{Epoch, PeerId, RegionId, StoreId};
use proptest::prelude::*;

const KINDS: [MessageType; 19] = [
    MessageType::MsgHup,
    MessageType::MsgBeat,
    MessageType::MsgPropose,
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgUnreachable,
    MessageType::MsgSnapStatus,
    MessageType::MsgCheckQuorum,
    MessageType::MsgTransferLeader,
    MessageType::MsgTimeoutNow,
    MessageType::MsgReadIndex,
    MessageType::MsgReadIndexResp,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

/// Mostly zero and small, now and then anything.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![3 => Just(0u64), 4 => 1u64..300, 1 => any::<u64>(), 1 => Just(u64::MAX)]
}

fn blob(max: usize) -> impl Strategy<Value = Bytes> {
    prop_oneof![
        1 => Just(Bytes::new()),
        2 => prop::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    (0..3u8, number(), number(), blob(300), blob(8), any::<bool>()).prop_map(
        |(kind, term, index, data, context, sync_log)| Entry {
            entry_type: [
                EntryType::EntryNormal,
                EntryType::EntryConfChange,
                EntryType::EntryConfChangeV2,
            ][kind as usize],
            term,
            index,
            data,
            context,
            sync_log,
            ..Default::default()
        },
    )
}

fn snapshot() -> impl Strategy<Value = Option<Snapshot>> {
    let ids = || prop::collection::vec(number(), 0..5);
    let conf = (ids(), ids(), ids(), ids(), any::<bool>()).prop_map(|(a, b, c, d, auto_leave)| {
        ConfState {
            voters: a,
            learners: b,
            voters_outgoing: c,
            learners_next: d,
            auto_leave,
            ..Default::default()
        }
    });
    let meta = prop::option::of((number(), number(), prop::option::of(conf)));
    prop::option::of((blob(64), meta).prop_map(|(data, meta)| {
        let mut snapshot = Snapshot { data, ..Default::default() };
        if let Some((index, term, conf)) = meta {
            let meta = snapshot.mut_metadata();
            meta.index = index;
            meta.term = term;
            if let Some(conf) = conf {
                meta.set_conf_state(conf);
            }
        }
        snapshot
    }))
}

fn message() -> impl Strategy<Value = Message> {
    let numbers = prop::array::uniform10(number());
    let entries = prop_oneof![Just(Vec::new()), prop::collection::vec(entry(), 0..8)];
    let rest = (any::<bool>(), prop_oneof![Just(0i64), any::<i64>()], blob(20));
    (0..KINDS.len(), numbers, rest, entries, snapshot()).prop_map(
        |(kind, n, (reject, priority, context), entries, snapshot)| Message {
            msg_type: KINDS[kind],
            to: n[0],
            from: n[1],
            term: n[2],
            log_term: n[3],
            index: n[4],
            commit: n[5],
            commit_term: n[6],
            reject_hint: n[7],
            request_snapshot: n[8],
            deprecated_priority: n[9],
            reject,
            priority,
            context,
            entries: entries.into(),
            snapshot: snapshot.into(),
            ..Default::default()
        },
    )
}

fn envelope() -> impl Strategy<Value = Envelope> {
    (number(), number(), number(), any::<bool>(), message()).prop_map(|(r, f, t, same, message)| {
        let (f, t) = if same { (message.from, message.to) } else { (f, t) };
        let from_store = StoreId(9);
        Envelope {
            region: RegionId(r),
            from: PeerId(f),
            to: PeerId(t),
            from_store,
            message,
            note: None,
        }
    })
}

fn note() -> impl Strategy<Value = Envelope> {
    let gone = (number(), number()).prop_map(|(conf_ver, version)| Note::Gone {
        epoch: Epoch { conf_ver, version },
        by: RegionId(version / 3),
    });
    let asked = number().prop_map(|committed| Note::CanYouLead { committed });
    let note = prop_oneof![gone, Just(Note::Buried), asked, Just(Note::CanLead)];
    (number(), number(), number(), note).prop_map(|(r, f, t, note)| Envelope {
        region: RegionId(r),
        from: PeerId(f),
        to: PeerId(t),
        from_store: StoreId(9),
        message: Message::default(),
        note: Some(note),
    })
}

fn encoded(message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    wire::encode(message, &mut out);
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..Default::default() })]

    #[test]
    fn messages_round_trip(message in message()) {
        let bytes = encoded(&message);
        prop_assert!(bytes.len() <= wire::encoded_len(&message));
        let mut r = Reader::new("test", bytes.into());
        let back = wire::decode(&mut r).unwrap();
        prop_assert!(r.finish().is_ok());
        prop_assert_eq!(back, message);
    }

    #[test]
    fn cut_short_is_an_error(message in message(), cut in any::<prop::sample::Index>()) {
        let mut bytes = encoded(&message);
        bytes.truncate(cut.index(bytes.len()));
        prop_assert!(wire::decode(&mut Reader::new("test", bytes.into())).is_err());
    }

    #[test]
    fn what_decodes_has_one_encoding(
        message in message(),
        at in any::<prop::sample::Index>(),
        with in any::<u8>(),
    ) {
        let mut bytes = encoded(&message);
        let at = at.index(bytes.len());
        bytes[at] = with;
        let mut r = Reader::new("test", bytes.clone().into());
        if let Ok(message) = wire::decode(&mut r) {
            prop_assert_eq!(&encoded(&message)[..], &bytes[..r.offset()]);
        }
    }

    #[test]
    fn random_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let bytes = Bytes::from(bytes);
        let _ = wire::decode(&mut Reader::new("test", bytes.clone()));
        let _ = read_envelopes(bytes, StoreId(1), &mut Vec::new());
    }

    #[test]
    fn envelopes_round_trip(envelopes in prop::collection::vec(prop_oneof![3 => envelope(), 1 => note()], 0..6)) {
        let mut out = Vec::new();
        prop_assert_eq!(write_envelopes(envelopes.iter(), 64 << 20, &mut out), 0);
        let mut wire = BytesMut::from(&out[..]);
        let mut got = Vec::new();
        while let Some(frame) = Decoder::new(64 << 20).decode(&mut wire).unwrap() {
            prop_assert_eq!(frame.kind, Kind::Envelopes);
            read_envelopes(frame.payload, StoreId(9), &mut got).unwrap();
        }
        prop_assert!(wire.is_empty());
        prop_assert_eq!(got, envelopes);
    }
}

#[test]
fn hostile_notes_are_refused() {
    let read = |payload: &[u8]| {
        read_envelopes(Bytes::copy_from_slice(payload), StoreId(9), &mut Vec::new())
    };
    let gone: &[u8] = &[3, 3, 11, 12, 1, 5, 6, 9];
    read(gone).unwrap();
    read(&[3, 3, 11, 12, 2]).unwrap();
    read(&[3, 3, 11, 12, 3, 9]).unwrap();
    for cut in 1..gone.len() {
        assert!(read(&gone[..cut]).is_err(), "cut at {cut}");
    }
    assert!(read(&[2, 3, 11, 12, 2]).is_err(), "replicas not spelled out");
    assert!(read(&[4, 3, 11, 12, 2]).is_err() && read(&[7, 3, 11, 12, 2]).is_err(), "flags");
    assert!(read(&[3, 3, 11, 12, 0]).is_err() && read(&[3, 3, 11, 12, 4]).is_err(), "kinds");
}

#[test]
fn data_is_not_copied() {
    let data = Bytes::from(vec![7u8; 4096]);
    let entry = Entry { data, ..Default::default() };
    let message = Message {
        msg_type: MessageType::MsgAppend,
        entries: vec![entry].into(),
        ..Default::default()
    };
    let frame = Bytes::from(encoded(&message));
    let back = wire::decode(&mut Reader::new("test", frame.clone())).unwrap();
    let inside = frame.as_ptr_range();
    assert!(inside.contains(&back.entries[0].data.as_ptr()));
}

#[test]
fn a_heartbeat_is_small_and_claims_are_checked() {
    let beat = Message {
        msg_type: MessageType::MsgHeartbeat,
        to: 12,
        from: 11,
        term: 6,
        commit: 1000,
        ..Default::default()
    };
    assert_eq!(encoded(&beat).len(), 8);
    // Append, entries only, 2^28 of them claimed in a frame of nine bytes.
    let claim = [3u8, 0x00, 0x20, 0x80, 0x80, 0x80, 0x80, 0x01, 0x00];
    let error = wire::decode(&mut Reader::new("test", Bytes::copy_from_slice(&claim))).unwrap_err();
    assert!(error.to_string().contains("count"), "{error}");
    for hostile in
        [&[19u8, 0, 0][..], &[3, 0, 0x80], &[3, 0, 0x20, 1, 0x40, 0], &[3, 0, 0x20, 1, 3, 0]]
    {
        assert!(wire::decode(&mut Reader::new("test", Bytes::copy_from_slice(hostile))).is_err());
    }
}

#[test]
fn a_message_above_the_cap_is_left_out_alone() {
    let with = |len: usize| {
        let entry = Entry { data: vec![1; len].into(), ..Default::default() };
        let message = Message {
            msg_type: MessageType::MsgAppend,
            entries: vec![entry].into(),
            ..Default::default()
        };
        let (from, to, from_store) = (PeerId(0), PeerId(0), StoreId(1));
        Envelope { region: RegionId(1), from, to, from_store, message, note: None }
    };
    let envelopes =
        [with(10), with(3 << 20), with(2 << 20), with(20), with(900 << 10), with(900 << 10)];
    let mut out = Vec::new();
    assert_eq!(write_envelopes(envelopes.iter(), 2 << 21, &mut out), 0);
    out.clear();
    assert_eq!(write_envelopes(envelopes.iter(), 5 << 19, &mut out), 1);
    let mut wire = BytesMut::from(&out[..]);
    let mut counts = Vec::new();
    while let Some(frame) = Decoder::new(64 << 20).decode(&mut wire).unwrap() {
        let mut got = Vec::new();
        read_envelopes(frame.payload, StoreId(1), &mut got).unwrap();
        counts.push(got.len());
    }
    assert_eq!(counts, [1, 1, 2, 1], "a long one stands alone");
}
