//! One replica of one region: the verbs of a [`Peer`](peer::Peer), each in its file.
//!
//! The life of a write, as this room sees it:
//!
//! 1. **propose** ([`propose`]): client batches wait in the peer until the round ends, are folded into
//!    one entry and proposed; the tokens of whoever waits are kept under the entry's position.
//! 2. **ready** ([`ready`]): the round's entries go into the store's one `LogBatch`; messages are sorted
//!    by whether they may leave before it is durable.
//! 3. **applied** ([`apply`]): committed and locally persisted entries are applied, off the loop, by an
//!    [`Applier`](apply::Applier) that publishes one kv batch for many regions and answers the waiting
//!    tokens; the peer learns the new applied index.
//!
//! [`split`] cuts a region, [`merge`] joins two, [`size`] and [`load`] find out when and where; [`membership`] changes who its replicas are, and
//! [`farewell`] is how one goes; [`handing`] gives leadership to another; [`read`] keeps the read-index rounds, the leader lease and freshness; [`snapshot`] turns a consistent
//! view into chunks and chunks into a restored region; [`storage`] shows the log engine to raft-rs;
//! [`sending`] is how snapshots leave; [`life`] creates peers and brings them back after a restart; [`compact`] decides how far logs may go; [`hibernate`]
//! lets idle groups sleep, on what the node knows of its [`neighbours`].
//!
//! Everything here is deterministic: the disk comes through `env::Disk` (inside log and kv), time as an
//! argument, answers leave as values.
//!
//! Not done: reads count for nothing in what a region's load is. That small regions merge is not decided here, but by
//! placement: it takes two to merge, and they may be led on different nodes.

pub mod admin;
pub mod apply;
pub mod compact;
pub mod config;
pub mod effects;
pub mod farewell;
pub mod handing;
pub mod hibernate;
pub mod life;
pub mod load;
pub mod machine;
pub mod membership;
pub mod merge;
pub mod neighbours;
pub mod peer;
#[cfg(any(test, feature = "sim"))]
mod planted;
pub mod propose;
pub mod read;
pub mod ready;
pub mod sending;
pub mod share;
pub mod size;
pub mod snapshot;
mod sparse;
pub mod split;
pub mod storage;
mod tail;
