//! What of a damaged operation is known: its record's directory has a checksum of its own, and may be sound.

use crate::log::format::Op;
use std::ops::Range;

/// What a damaged operation was, as far as its record's directory tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Was {
    /// Entries with these indexes, appended.
    Append(Range<u64>),
    /// Entries with these indexes, copied forward by purge.
    Rewrite(Range<u64>),
    /// A state record.
    State,
    /// The directory is damaged too, and its echo names groups and nothing else.
    Unknown,
}

impl Was {
    pub(super) fn of(op: &Op) -> Was {
        match op {
            Op::Append { first, count, .. } => Was::Append(*first..first + u64::from(*count)),
            Op::Rewrite { from, count, .. } => Was::Rewrite(*from..from + u64::from(*count)),
            Op::State { .. } => Was::State,
            // They have no body that could be damaged.
            Op::Compact { .. }
            | Op::Reset { .. }
            | Op::Base { .. }
            | Op::Clear { .. }
            | Op::Floor { .. } => Was::Unknown,
        }
    }
}
