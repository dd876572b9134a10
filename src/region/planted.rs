//! Bugs that are put into a replica on purpose, to see that the simulator finds them.

use crate::types::{Region, RegionState};
use parking_lot::RwLock;
use std::sync::Arc;

/// Which of them.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Planted {
    /// What replicas may lack at a merge is counted from the commit index, not from what they have acknowledged.
    pub first_from_commit: bool,
    /// A leader whose region is frozen keeps the lease that it has, until it runs out.
    pub lease_kept: bool,
    /// The log is compacted above a snapshot that is under way.
    pub pin_ignored: bool,
    /// A replica counts as fresh when a round of reads is confirmed, before it has applied what the round found committed.
    pub fresh_unapplied: bool,
    /// A leader whose region is cut goes on with its lease over the range that it had.
    pub range_kept: bool,
    /// Neither lease reads nor rounds wait until a change of shape that this leader has proposed is applied: it writes
    /// nothing.
    pub shape_unawaited: bool,
    /// A leader asks those who were removed whether they are gone every half minute.
    pub removed_asked_late: bool,
}

/// The shape by which a replica answers lease reads, instead of the one that it has.
#[derive(Default, Debug)]
pub(crate) struct KeptShape(RwLock<Option<Arc<Region>>>);

impl KeptShape {
    pub fn keep(&self, region: &Arc<Region>) {
        self.0.write().get_or_insert_with(|| Arc::clone(region));
    }

    pub fn forget(&self) {
        self.0.write().take();
    }

    pub fn get(&self) -> Option<Arc<Region>> {
        self.0.read().clone()
    }

    pub fn instead_of(&self, found: RegionState) -> RegionState {
        match self.get() {
            Some(kept) => RegionState { region: Region::clone(&kept), ..found },
            None => found,
        }
    }
}
