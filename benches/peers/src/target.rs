//! What we mean to reach: ratios against a peer measured in the same run, whichever of its variants is best at the
//! row, and a few absolute figures.

/// Puts a second of a consensus row, ours for each of openraft's: at least.
pub fn consensus(work: &str) -> Option<f64> {
    let rows = [
        ("1x1", 1.3),
        ("1x64", 2.0),
        ("1x1024", 2.0),
        ("1x4096", 2.0),
        ("1x4096-batch-4", 3.0),
        ("64x64", 10.0),
        ("64x4096", 3.0),
    ];
    rows.into_iter().find(|(name, _)| *name == work).map(|(_, ratio)| ratio)
}

/// Processor time of idle groups, as a part of one core: at most.
pub const IDLE_CPU: f64 = 0.01;
/// Memory of an idle group, all its replicas, in bytes: at most.
pub const IDLE_BYTES: f64 = 4096.0;

/// A figure of the state store against RocksDB.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Bound {
    /// Ours for each of its: at least.
    AtLeast(f64),
    /// Ours for each of its: at most.
    AtMost(f64),
    /// Ours, whatever its is: at most.
    Absolute(f64),
}

/// Writes a second: over ten million operations.
pub const APPLY: Bound = Bound::AtLeast(1.7);
/// Writes a second, from [`LONG_OPS`] operations on.
pub const APPLY_LONG: Bound = Bound::AtLeast(1.4);
/// What counts as a long load.
pub const LONG_OPS: u64 = 40_000_000;
/// Processor time per operation, compaction included.
pub const CPU: Bound = Bound::AtMost(0.7);
/// Bytes written for a byte of payload.
pub const WRITE_AMPLIFICATION: Bound = Bound::AtMost(1.0);
/// The longest batch at 80 % load, milliseconds.
pub const WORST_BATCH_MS: Bound = Bound::Absolute(50.0);
/// Point reads a second.
pub const GETS: Bound = Bound::AtLeast(0.9);
/// Keys a second of a full iteration.
pub const SCAN: Bound = Bound::AtLeast(0.7);

impl Bound {
    /// In words.
    pub fn words(self) -> String {
        match self {
            Bound::AtLeast(ratio) => format!("ratio >= {ratio}"),
            Bound::AtMost(ratio) => format!("ratio <= {ratio}"),
            Bound::Absolute(most) => format!("<= {most}"),
        }
    }

    /// Whether it is met; `None` where there is nothing to compare with.
    pub fn met(self, ours: f64, theirs: Option<f64>) -> Option<bool> {
        match self {
            Bound::AtLeast(ratio) => theirs.map(|theirs| ours >= ratio * theirs),
            Bound::AtMost(ratio) => theirs.map(|theirs| ours <= ratio * theirs),
            Bound::Absolute(most) => Some(ours <= most),
        }
    }
}
