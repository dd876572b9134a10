//! Commands and frames.

use crate::{BATCH, FOLD, batch, batches, folded};
use bytes::{Bytes, BytesMut};
use catamaran::codec::command::{Payload, ops};
use catamaran::log::raft_rs::raft::eraftpb::{Entry, Message, MessageType};
use catamaran::raft::Envelope;
use catamaran::transport::frame::Decoder;
use catamaran::transport::payload::{read_envelopes, write_envelopes};
use catamaran::types::{PeerId, RegionId, StoreId};
use criterion::{Criterion, Throughput};
use std::hint::black_box;

const FRAME_MAX: usize = 32 << 20;

fn append(data: Bytes) -> Envelope {
    let mut message =
        Message { from: 1, to: 2, term: 7, log_term: 7, index: 41, ..Message::default() };
    message.set_msg_type(MessageType::MsgAppend);
    message.entries.push(Entry { index: 42, term: 7, data, ..Entry::default() });
    Envelope {
        region: RegionId(1),
        from: PeerId(1),
        to: PeerId(2),
        from_store: StoreId(1),
        message,
        note: None,
    }
}

pub fn suite(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire");
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("build a batch", |bencher| bencher.iter(|| batch(black_box(0))));
    let one = batch(0);
    group.bench_function("parse a batch", |bencher| {
        bencher.iter(|| ops(black_box(&one)).filter(|op| op.is_ok()).count());
    });
    group.throughput(Throughput::Elements(BATCH * FOLD));
    let all = batches();
    group.bench_function("fold an entry", |bencher| bencher.iter(|| folded(black_box(&all))));
    let payload = folded(&all);
    group.bench_function("parse an entry", |bencher| {
        bencher.iter(|| Payload::parse(black_box(&payload)).expect("it works"));
    });
    let envelope = append(payload);
    group.bench_function("frame an append and read it", |bencher| {
        let (mut out, mut envelopes) = (Vec::new(), Vec::new());
        bencher.iter(|| {
            out.clear();
            envelopes.clear();
            assert_eq!(write_envelopes(std::iter::once(&envelope), FRAME_MAX, &mut out), 0);
            let mut received = BytesMut::from(&out[..]);
            let frame =
                Decoder::new(FRAME_MAX).decode(&mut received).expect("it works").expect("it works");
            read_envelopes(frame.payload, StoreId(1), &mut envelopes).expect("it works");
            envelopes.len()
        });
    });
    group.finish();
}
