//! The end of the last segment, which opening copies in part or whole.

use super::scan::Record;

/// The last segment, as far as the takeover cares.
pub(super) struct Tail {
    pub base_seq: u64,
    /// The file as far as anything in it matters, and a block more.
    pub bytes: Vec<u8>,
    /// What counts of its records: those that were acknowledged, and those that are whole.
    pub records: Vec<Record>,
    pub clean: bool,
    /// Whether `bytes` end before the place where the next record would begin, or within a record there.
    pub is_cut: bool,
}

impl Tail {
    /// Bytes of its records, without what they repeat.
    pub fn len(&self) -> usize {
        self.records.iter().map(|record| record.echo_at() - record.offset).sum()
    }

    /// The records before this one, and the others.
    pub fn split(&self, base: u64) -> (&[Record], &[Record]) {
        self.records.split_at(self.records.partition_point(|record| record.header.seq < base))
    }
}
