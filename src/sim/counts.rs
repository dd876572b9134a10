//! What was going on in a seed, for its summary.

/// Running counts, for the summary of a seed.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counts {
    /// Events handled.
    pub steps: u64,
    /// Client operations that ended with an answer.
    pub answered: u64,
    /// Client operations given up or of unknown outcome.
    pub unknown: u64,
    /// Crashes.
    pub crashes: u64,
    /// Snapshots delivered.
    pub snapshots: u64,
    /// Questions for a snapshot's slot that were refused.
    pub refused: u64,
    /// Snapshots called off by their leaders.
    pub called_off: u64,
    /// Elections won.
    pub elections: u64,
    /// Flushes made durable.
    pub flushes: u64,
    /// Seeds in which the judge gave up on a key.
    pub undecided: u64,
    /// Reads answered by a lease alone.
    pub lease_reads: u64,
    /// Reads that may be stale.
    pub stale_reads: u64,
    /// Others, answered by replicas that do not lead.
    pub follower_reads: u64,
    /// Regions cut out of others, and wishes to be cut for a load.
    pub splits: [u64; 2],
    /// Changes of regions' replicas.
    pub changes: u64,
    /// Replicas of regions frozen, merged into others, and thawed.
    pub merges: [u64; 3],
    /// Of them by the nodes' own operators, because both regions were small and cold.
    pub automatic_merges: u64,
    /// Leaderships moved by the nodes' own operators, so that stores lead equally many regions.
    pub spread: u64,
    /// Stores that joined, that were drained, and that left.
    pub stores: [u64; 3],
    /// Directories that were wiped, and that were put back from an old copy.
    pub lost: [u64; 2],
    /// Logs that were damaged.
    pub damaged: u64,
    /// Replicas that were fenced off for it, and of them because one that was to be merged into them was.
    pub fenced: [u64; 2],
    /// Votes that were asked of replicas before they were born, which were then.
    pub asked_unborn: u64,
    /// Disks that were full for a while.
    pub full: u64,
    /// Snapshots that waited for room to be restored, each time anew.
    pub waited_for_room: u64,
    /// Connections that nodes with such a directory, or that had left, were refused.
    pub kept_out: u64,
    /// Sleeping replicas, summed up over all faults.
    pub asleep: u64,
    /// The longest that a removed replica lived though it could be told, in milliseconds (`afterlife`).
    pub afterlife: u64,
}
