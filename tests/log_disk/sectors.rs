//! What lies in the sectors of a log's files.

use super::MemDisk;
use super::faults::SECTOR;
use catamaran::log::inspect::{Inspector, OpView, RecordView};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Every record of a sound log.
pub fn records(disk: &MemDisk, dir: &Path) -> Vec<RecordView> {
    let inspector = Inspector::open(disk, dir).unwrap();
    inspector.records().map(Result::unwrap).collect()
}

/// Groups of records that have a part in one of these sectors.
pub fn touched(
    disk: &MemDisk,
    dir: &Path,
    bad: &BTreeMap<PathBuf, BTreeSet<u64>>,
) -> BTreeSet<u64> {
    let mut groups = BTreeSet::new();
    for record in records(disk, dir) {
        let Some(sectors) = bad.get(&record.path) else { continue };
        let (from, end) = (record.offset, record.offset + record.len);
        if sectors.iter().any(|at| *at < end && at + SECTOR > from) {
            groups.extend(record.ops.iter().filter_map(group_of));
        }
    }
    groups
}

fn group_of(op: &OpView) -> Option<u64> {
    match op {
        OpView::Append { group, .. }
        | OpView::Rewrite { group, .. }
        | OpView::State { group, .. }
        | OpView::Compact { group, .. }
        | OpView::Reset { group, .. }
        | OpView::Base { group, .. }
        | OpView::Clear { group }
        | OpView::Damaged { group, .. } => Some(*group),
        OpView::Floor { .. } => None,
    }
}
