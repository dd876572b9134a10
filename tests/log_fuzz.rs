//! The drivers of the fuzz targets on seeded random bytes, for a moment: that they stay sound, and that
//! what they found stays mended. `LOG_FUZZ_RUNS` sets how many.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "fuzz/drive/mod.rs"]
mod drive;

fn runs(default: u64) -> u64 {
    std::env::var("LOG_FUZZ_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

fn bytes(seed: u64, max: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    };
    let len = next() % max;
    (0..len).map(|_| next() as u8).collect()
}

fn each(runs: u64, max: u64, drive: fn(&[u8])) {
    for seed in 1..=runs {
        let input = bytes(seed, max);
        let outcome = std::panic::catch_unwind(|| drive(&input));
        if let Err(cause) = outcome {
            eprintln!("seed {seed}: {input:?}");
            std::panic::resume_unwind(cause);
        }
    }
}

#[test]
fn recovery_of_random_directories() {
    each(runs(1500), 60, drive::recovery::run);
}

#[test]
fn random_operations() {
    each(runs(150), 700, drive::operations::run);
}
