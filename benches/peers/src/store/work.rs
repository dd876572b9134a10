//! What is applied: keys and values drawn from a seed, in batches.

use clap::Args;
use serde::{Deserialize, Serialize};

/// Bytes of a key.
pub const KEY: usize = 16;

/// A load.
#[derive(Args, Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Load {
    /// Operations, each with a key of its own.
    #[arg(long, default_value_t = 10_000_000)]
    pub ops: u64,
    /// Operations in a batch.
    #[arg(long, default_value_t = 1024)]
    pub batch: u64,
    /// Bytes of a value.
    #[arg(long, default_value_t = 128)]
    pub value: usize,
    /// The keys of a batch begin alike, by one of so many beginnings in turn, as those of a region do; 1: they do not.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub prefixes: u16,
    /// Bytes of a memtable.
    #[arg(long, default_value_t = 128 << 20)]
    pub memtable: u64,
    /// Seconds of point reads.
    #[arg(long, default_value_t = 3.0)]
    pub reading: f64,
    /// Seeds keys and values.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Keys and values, one behind the other: `KEY` bytes, then the value.
#[derive(Clone, Debug)]
pub struct Rows {
    /// All of them.
    pub bytes: Vec<u8>,
    /// Bytes of one key with its value.
    pub stride: usize,
}

impl Rows {
    /// Each key with its value.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.bytes.chunks_exact(self.stride).map(|row| row.split_at(KEY))
    }
}

/// A bijective mixer (the finaliser of splitmix64).
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Load {
    /// Bytes of all keys and values of so many operations.
    pub fn payload(&self, ops: u64) -> u64 {
        ops * (KEY + self.value) as u64
    }

    /// The key of an operation.
    pub fn key(&self, op: u64) -> [u8; KEY] {
        let mut key = [0; KEY];
        let high = mix(mix(self.seed) ^ op);
        // Bijective in `op`, so that no two keys are alike whatever the prefixes do to the other half.
        let low = mix(op ^ self.seed.rotate_left(32));
        key[..8].copy_from_slice(&high.to_be_bytes());
        key[8..].copy_from_slice(&low.to_be_bytes());
        if self.prefixes > 1 {
            key[0] = (op / self.batch % u64::from(self.prefixes)) as u8;
        }
        key
    }

    /// The batch of the operations from `first` up to `end`.
    pub fn rows(&self, first: u64, end: u64) -> Rows {
        let stride = KEY + self.value;
        let mut bytes = Vec::with_capacity((end - first) as usize * stride);
        for op in first..end {
            bytes.extend_from_slice(&self.key(op));
            let mut word = op ^ self.seed;
            let value_end = bytes.len() + self.value;
            while bytes.len() < value_end {
                word = mix(word);
                let room = (value_end - bytes.len()).min(8);
                bytes.extend_from_slice(&word.to_le_bytes()[..room]);
            }
        }
        Rows { bytes, stride }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn keys_are_distinct_and_batches_bear_their_prefix() {
        let load = Load {
            ops: 1000,
            batch: 10,
            value: 13,
            prefixes: 4,
            memtable: 1 << 20,
            reading: 0.0,
            seed: 7,
        };
        let keys: BTreeSet<[u8; KEY]> = (0..load.ops).map(|op| load.key(op)).collect();
        assert_eq!(keys.len() as u64, load.ops);
        let rows = load.rows(20, 30);
        assert_eq!(rows.iter().count(), 10);
        for (op, (key, value)) in (20..).zip(rows.iter()) {
            assert_eq!(key, load.key(op));
            assert_eq!((key[0], value.len()), (2, 13));
        }
        assert_eq!(load.payload(10), rows.bytes.len() as u64);
        let alone = Load { prefixes: 1, ..load };
        assert!((0..50).map(|op| alone.key(op)[0]).collect::<BTreeSet<u8>>().len() > 10);
    }
}
