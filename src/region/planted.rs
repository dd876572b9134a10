//! Bugs that are put into a replica on purpose, to see that the simulator finds them.

/// Which of them.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Planted {
    /// What replicas may lack at a merge is counted from the commit index, not from what they have acknowledged.
    pub first_from_commit: bool,
    /// A frozen region goes on as before with reads and lease.
    pub lease_kept: bool,
    /// The log is compacted above a snapshot that is under way.
    pub pin_ignored: bool,
    /// A replica counts as fresh when a round of reads is confirmed, before it has applied what the round found committed.
    pub fresh_unapplied: bool,
}
