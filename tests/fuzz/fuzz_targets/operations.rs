//! Arbitrary operations, restarts and power cuts against a plain map.
#![no_main]

#[path = "../drive/mod.rs"]
mod drive;

libfuzzer_sys::fuzz_target!(|data: &[u8]| drive::operations::run(data));
