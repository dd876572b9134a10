//! What the fuzz targets do with bytes. `tests/log_fuzz.rs` does the same with random ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![allow(dead_code, reason = "each target drives one of them")]

#[path = "../../log_disk/mod.rs"]
mod log_disk;
mod mend;
pub mod operations;
pub mod recovery;

/// Reads numbers from the input; zeros once it is at its end.
pub struct Feed<'a>(pub &'a [u8]);

impl Feed<'_> {
    pub fn byte(&mut self) -> u8 {
        self.number(1) as u8
    }

    pub fn number(&mut self, bytes: usize) -> u64 {
        let (head, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        head.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        let bytes = if bound > 256 { 2 } else { 1 };
        self.number(bytes) % bound.max(1)
    }

    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }
}
