//! The checks, by what they are about. Each file lists its own in `CHECKS`.

pub(super) mod batch;
pub(super) mod compaction;
pub(super) mod entries;
pub(super) mod faults;
pub(super) mod groups;
pub(super) mod threads;
