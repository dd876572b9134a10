//! The end of the last segment, which opening copies in part or whole.

use super::echo;
use super::format::{BLOCK, RecordHeader};

/// The last segment, as far as the takeover cares.
pub(super) struct Tail {
    pub base_seq: u64,
    pub generation: u64,
    /// The file as far as anything in it matters, and a block more.
    pub bytes: Vec<u8>,
    /// Whole records: (number, start, end of the payload, start of the payload).
    pub records: Vec<(u64, usize, usize, usize)>,
    pub clean: bool,
    /// Whether `bytes` end before the place where the next record would begin, or within a record there.
    pub is_cut: bool,
}

impl Tail {
    /// What a record repeats of the segment before: lost with this one, it would be nowhere. (What it
    /// repeats of its own segment stays readable there.)
    pub fn echoes_of_others(&self, seq: u64, start: usize, end: usize) -> &[u8] {
        let header = RecordHeader::decode(&self.bytes[start..], self.generation);
        match header {
            Ok(header) if seq == self.base_seq => {
                let echoes = &self.bytes[end..start + header.total()];
                if echo::check(echoes).is_ok() { echoes } else { &[] }
            }
            _ => &[],
        }
    }

    /// What a first group, of which no record is whole, repeats of the segment before: what was read by it must
    /// stay readable when the group is cut off.
    pub fn echo_of_the_torn(&self) -> &[u8] {
        let echo = || {
            let header = RecordHeader::decode(self.bytes.get(BLOCK..)?, self.generation).ok()?;
            let end = BLOCK.checked_add(header.total())?;
            let echo = self.bytes.get(end.checked_sub(header.echo_len as usize)?..end)?;
            (header.seq == self.base_seq && echo::check(echo).is_ok()).then_some(echo)
        };
        if self.records.is_empty() { echo().unwrap_or_default() } else { &[] }
    }
}
