//! One error for the whole crate. Each variant says what the caller can do; [`Error::outcome`] says
//! whether a refused or failed write may have taken effect all the same.

use crate::types::{Region, RegionId, StoreId};
use bytes::Bytes;
use std::path::PathBuf;
use std::sync::Arc;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a failed write may have done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It has not taken effect and never will.
    NotApplied,
    /// It may have taken effect, or may still: read before you retry what is not idempotent.
    Unknown,
}

/// Everything that can go wrong, by what the caller can do about it.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The replica asked is not the leader. Retry at the hinted store; the client does so itself.
    #[error("region {region}: not the leader (leader hint: {leader:?})")]
    NotLeader {
        /// The region asked for.
        region: RegionId,
        /// Where its leader was last seen.
        leader: Option<StoreId>,
    },
    /// The request was made for another shape of the region. Retry with the regions given.
    #[error("the region has changed shape since the request was routed")]
    EpochNotMatch {
        /// What now covers the keys.
        current: Vec<Region>,
    },
    /// The replica to be removed or demoted leads its region. Hand leadership over first.
    #[error("region {region}: its leader does not remove or demote itself")]
    LeaderStays {
        /// The region.
        region: RegionId,
    },
    /// No replica of the region lives here. Said of a merge or a change of replicas that ended before its time was up: the
    /// cluster has no such region.
    #[error("region {0} is not known here")]
    RegionNotFound(RegionId),
    /// Nobody here knows which region owns a key: it has moved a moment ago. Retry later.
    #[error("no region is known for key {key:?}")]
    NoRoute {
        /// The key.
        key: Bytes,
    },
    /// A bounded queue is full. Retry later, with back-off.
    #[error("busy: {what}")]
    Busy {
        /// The queue or budget that is full.
        what: &'static str,
    },
    /// No answer in time. A write may have been applied.
    #[error("timed out after {after_ms} ms: {what}")]
    Timeout {
        /// How long was waited, in milliseconds.
        after_ms: u64,
        /// For what.
        what: &'static str,
    },
    /// The proposal was overtaken by a new leader, or the connection broke: a write may or may not
    /// have been applied.
    #[error("outcome unknown: {what}")]
    Ambiguous {
        /// What happened.
        what: &'static str,
    },
    /// The disk has no room: writes are refused, reads go on. Free space, then retry.
    #[error("disk full: {path}")]
    DiskFull {
        /// The file or directory that could not grow.
        path: PathBuf,
    },
    /// The operating system failed an operation. After a failed sync the store stops.
    #[error("{op} {path}: {source}")]
    Io {
        /// What was tried.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        source: Arc<std::io::Error>,
    },
    /// Bytes that were once acknowledged are damaged. Never repaired silently.
    #[error("corruption in {path} at offset {offset}: {detail}")]
    Corruption {
        /// The damaged file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// Expected and found.
        detail: String,
    },
    /// This replica is fenced off after damage or a protocol violation; the others serve.
    #[error("region {region} is quarantined here: {reason}")]
    Quarantined {
        /// The region.
        region: RegionId,
        /// Why.
        reason: String,
    },
    /// The data directory, the peer or the configuration is not what was expected.
    #[error("identity mismatch: {0}")]
    Identity(String),
    /// Bytes from outside that do not parse.
    #[error("malformed {what}: {detail}")]
    Malformed {
        /// What was being read.
        what: &'static str,
        /// Why it was refused.
        detail: String,
    },
    /// The caller's arguments make no sense; retrying will not help.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
    /// The directory is in use by another process.
    #[error("{0} is locked by another process")]
    Locked(PathBuf),
    /// The store has stopped, by request or after a fatal error.
    #[error("the store has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: String,
    },
}

impl Error {
    /// Wraps an operating system error, recognising a full disk.
    pub fn io(op: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Error {
        let path = path.into();
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Error::DiskFull { path }
            }
            _ => Error::Io { op, path, source: Arc::new(source) },
        }
    }

    /// A [`Malformed`](Error::Malformed) with a formatted detail.
    pub fn malformed(what: &'static str, detail: impl Into<String>) -> Error {
        Error::Malformed { what, detail: detail.into() }
    }

    /// Whether a write that failed with this error may have been applied.
    pub fn outcome(&self) -> Outcome {
        match self {
            Error::Timeout { .. } | Error::Ambiguous { .. } | Error::Stopped { .. } => {
                Outcome::Unknown
            }
            Error::Io { .. } | Error::Corruption { .. } => Outcome::Unknown,
            _ => Outcome::NotApplied,
        }
    }

    /// Whether the same request may succeed a little later or elsewhere.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Error::NotLeader { .. }
                | Error::EpochNotMatch { .. }
                | Error::LeaderStays { .. }
                | Error::RegionNotFound(_)
                | Error::NoRoute { .. }
                | Error::Busy { .. }
                | Error::DiskFull { .. }
        )
    }
}
