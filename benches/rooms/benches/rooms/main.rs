//! Criterion suites for the rooms that a write crosses, each alone and on one thread.

#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(clippy::expect_used, reason = "a benchmark that fails stops")]

mod apply;
mod kv;
mod log;
mod raft;
mod router;
mod wire;

use bytes::Bytes;
use catamaran::codec::command::{BatchBuilder, PayloadBuilder};
use criterion::{Criterion, criterion_group, criterion_main};
use std::time::Duration;

/// Operations in a client's batch.
pub const BATCH: u64 = 128;
/// Batches folded into one entry.
pub const FOLD: u64 = 8;

/// Spreads numbers over all 64 bits.
pub fn mix(number: u64) -> u64 {
    let mixed = (number ^ number >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// A key of 16 bytes, one of a million.
pub fn key(number: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&mix(number % 1_000_000).to_be_bytes());
    key[8..].copy_from_slice(&(number % 1_000_000).to_be_bytes());
    key
}

/// The client batch that begins at `first`: puts of 64 bytes.
pub fn batch(first: u64) -> Bytes {
    let mut batch = BatchBuilder::new();
    for number in first..first + BATCH {
        batch.put(&key(number), &[number as u8; 64]).expect("it works");
    }
    batch.finish()
}

/// An entry's payload, of several batches.
pub fn folded(batches: &[Bytes]) -> Bytes {
    let bytes = batches.iter().map(|batch| batch.len() + 4).sum();
    let mut payload = PayloadBuilder::new(1, bytes);
    batches.iter().for_each(|batch| payload.push(batch));
    payload.finish()
}

/// The batches of an entry.
pub fn batches() -> Vec<Bytes> {
    (0..FOLD).map(|at| batch(at * BATCH)).collect()
}

fn short() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20)
}

criterion_group! {
    name = rooms;
    config = short();
    targets = wire::suite, router::suite, raft::suite, log::suite, apply::suite, kv::suite
}
criterion_main!(rooms);
