//! The commands of a merge. The protocol stands in [`region::merge`](crate::region::merge).
//!
//! All numbers are varints, a region is its [flat form](super::region) with its length before it.
//!
//! | payload | bytes |
//! |---|---|
//! | prepare | `8` (one byte), conf_ver, version, the target, first index |
//! | commit | `9` (one byte), target, conf_ver, version, the source, index, term, first index, number of entries, then for each: term, length, data |
//! | roll back | `10` (one byte), index |

use super::region;
use super::{Reader, Writer};
use crate::error::Result;
use crate::types::{Epoch, LogPosition, Region, RegionId};
use bytes::Bytes;

/// Entries that a commit carries, at most.
pub const ENTRIES_MAX: usize = 1 << 10;
/// A region's flat form, at most.
const REGION_BYTES_MAX: usize = 1 << 20;
/// An entry's data, at most.
const ENTRY_BYTES_MAX: usize = 64 << 20;

/// Freezes a region, to be merged into its neighbour.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prepare {
    /// The region's shape; in another it refuses.
    pub epoch: Epoch,
    /// The neighbour; in another shape it will refuse.
    pub target: Region,
    /// What some replica may lack: the entries from here on. The leader that proposes it fills it in.
    pub first: u64,
}

/// Takes a frozen region in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Commit {
    /// The region that is to take it in.
    pub target: RegionId,
    /// Its shape when the source was frozen; in another it refuses.
    pub epoch: Epoch,
    /// The source, frozen.
    pub source: Region,
    /// The entry that froze it.
    pub at: LogPosition,
    /// The index of the first of `entries`: what lies before every replica of the source holds.
    pub first: u64,
    /// The source's entries up to `at`, as they are applied: their terms and data.
    pub entries: Vec<(u64, Bytes)>,
}

pub(super) fn encode_prepare(prepare: &Prepare, out: &mut Writer<'_>) {
    super::admin::encode_epoch(&prepare.epoch, out);
    out.bytes(&region::encode(&prepare.target, LogPosition::default()));
    out.varint(prepare.first);
}

pub(super) fn encode_commit(commit: &Commit, out: &mut Writer<'_>) {
    out.varint(commit.target.0);
    super::admin::encode_epoch(&commit.epoch, out);
    out.bytes(&region::encode(&commit.source, LogPosition::default()));
    out.varint(commit.at.index);
    out.varint(commit.at.term);
    out.varint(commit.first);
    out.varint(commit.entries.len() as u64);
    for (term, data) in &commit.entries {
        out.varint(*term);
        out.bytes(data);
    }
}

fn decode_region(from: &mut Reader) -> Result<Region> {
    Ok(region::decode(&from.bytes(REGION_BYTES_MAX)?)?.0)
}

pub(super) fn decode_prepare(from: &mut Reader) -> Result<Prepare> {
    let epoch = super::admin::decode_epoch(from)?;
    Ok(Prepare { epoch, target: decode_region(from)?, first: from.varint()? })
}

pub(super) fn decode_commit(from: &mut Reader) -> Result<Commit> {
    let target = RegionId(from.varint()?);
    let epoch = super::admin::decode_epoch(from)?;
    let source = decode_region(from)?;
    let at = LogPosition { index: from.varint()?, term: from.varint()? };
    let first = from.varint()?;
    let count = from.count(2, ENTRIES_MAX)?;
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        entries.push((from.varint()?, from.bytes(ENTRY_BYTES_MAX)?));
    }
    if first.checked_add(count as u64) != at.index.checked_add(1) {
        return Err(from.malformed("entries do not end where the region froze"));
    }
    Ok(Commit { target, epoch, source, at, first, entries })
}
