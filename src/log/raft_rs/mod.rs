//! The `Storage` of raft-rs on the log, for those who use the log alone: one [`RaftStorage`] for each
//! group, and many groups' readies in one [`LogBatch`](super::LogBatch), one sync.
//!
//! ```
//! use catamaran::env::os::OsDisk;
//! use catamaran::log::raft_rs::{RaftStorage, raft};
//! use catamaran::log::{Log, LogBatch, Options};
//! use raft::eraftpb::Entry;
//! use raft::{Config, RawNode, StateRole};
//! use std::sync::Arc;
//!
//! /// One round of a group: what is to be persisted goes into one batch, then to the disk.
//! fn round(node: &mut RawNode<RaftStorage>, log: &Log) -> catamaran::Result<Vec<Entry>> {
//!     let mut ready = node.ready();
//!     let _send_now = ready.take_messages(); // a leader's appends: before the disk, if you like
//!     let mut batch = LogBatch::new(); // the readies of other groups may go in as well
//!     node.store().put_ready(&mut batch, &ready);
//!     log.write(batch)?; // durable, all of it
//!     let _send_now = ready.take_persisted_messages();
//!     let mut committed = ready.take_committed_entries();
//!     let mut light = node.advance(ready);
//!     if let Some(commit) = light.commit_index() {
//!         let mut batch = LogBatch::new();
//!         node.store().put_commit(&mut batch, commit);
//!         log.submit(batch)?; // need not be durable: raft finds it out again
//!     }
//!     let _send_now = light.take_messages();
//!     committed.extend(light.take_committed_entries());
//!     node.advance_apply();
//!     Ok(committed)
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path().join("log");
//! # let options = Options { segment_bytes: 1 << 20, ..Options::default() };
//! let (log, _) = Log::open(Arc::new(OsDisk), &dir, options)?;
//! let storage = RaftStorage::open(log.clone(), 7)?;
//! if !storage.is_initialized() {
//!     let mut batch = LogBatch::new();
//!     storage.put_bootstrap(&mut batch, [1])?; // the group's first voters
//!     log.write(batch)?;
//! }
//! let config = Config { id: 1, max_size_per_msg: 1 << 20, ..Config::default() };
//! let logger = slog::Logger::root(slog::Discard, slog::o!());
//! let mut node = RawNode::new(&config, storage, &logger)?;
//! node.campaign()?;
//! let mut applied = Vec::new();
//! while node.has_ready() {
//!     applied.extend(round(&mut node, &log)?);
//! }
//! assert_eq!(node.raft.state, StateRole::Leader);
//!
//! node.propose(vec![], b"hello".to_vec())?;
//! while node.has_ready() {
//!     applied.extend(round(&mut node, &log)?);
//! }
//! let last = applied.last().unwrap();
//! assert_eq!(&last.data[..], b"hello");
//!
//! // Applied, and durable in the state machine: the log need not keep it.
//! let mut batch = LogBatch::new();
//! node.store().put_compact(&mut batch, last.index)?;
//! log.submit(batch)?;
//! # Ok(())
//! # }
//! ```
//!
//! # Protocol
//! 1. After each [`ready`](::raft::RawNode::ready) look at [`RaftStorage::take_fault`]: raft-rs ends the
//!    process on most errors of a storage, so damage met while reading is noted and answered as
//!    harmlessly as the trait allows. After a fault, drop the node; what it made of the answer is void.
//! 2. [`RaftStorage::put_ready`] puts what must be durable into a batch; [`Log::submit`](super::Log::submit)
//!    makes it readable, which raft-rs asks for before `advance`; what must leave only when it is durable
//!    (`persisted_messages`) waits for [`Log::wait`](super::Log::wait). With `advance_append_async`, call
//!    `on_persist_ready` when [`Log::durable`](super::Log::durable) has reached the batch.
//! 3. Any number of puts of any number of groups share a batch. The log takes a batch whole or refuses it;
//!    after a refusal drop the node and the storage of every group in it.
//! 4. A snapshot in a ready resets the group's log. Make what it carries durable in the state machine
//!    *before* its batch is submitted.
//! 5. After a restart raft-rs hands out committed entries again from `Config::applied` on. Configuration
//!    changes among them that [`RaftStorage::conf_index`] covers are in the recorded configuration already.
//!
//! # An entry that cannot be read
//! The log says so; raft-rs has no answer for it. What its version 0.7 makes of what a storage may return instead:
//!
//! | raft-rs wants entries | `Unavailable`, `Other`, any other error | `LogTemporarilyUnavailable` | `Compacted` | none, as if there were none | so the answer is |
//! |---|---|---|---|---|---|
//! | to send them | ends the process | sends nothing, its progress stays; asks again at the next heartbeat's response | sends a snapshot in their place, again and again | sends an append without entries | `LogTemporarilyUnavailable` |
//! | to hand them out | ends the process | ends the process | ends the process | hands out nothing | none |
//! | to look for changes of the configuration, before a campaign | ends the process | ends the process | ends the process | **campaigns, though there may be one** | one entry that counts as such a change: it does not campaign |
//!
//! The entry of the last row never leaves raft-rs, which counts it and drops it. Whoever else asks
//! ([`GetEntriesContext::empty`](::raft::GetEntriesContext::empty)) is told `LogTemporarilyUnavailable`. Ending the process, for one group's damage,
//! would take all groups along.
//!
//! # The state record
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 1 | bit 0: the configuration leaves its joint state by itself |
//! | 2 | 8 | term |
//! | 10 | 8 | vote |
//! | 18 | 8 | commit |
//! | 26 | 8 | index of the configuration |
//! | 34 | 4 × 4 | how many voters, learners, outgoing voters, learners next |
//! | 50 | 8 each | their ids, in this order |
//!
//! Numbers are little-endian. An entry with a context has bit 7 of its kind set and its data begins with
//! the context's length in 4 bytes, then the context.
//!
//! # Not done, and why
//! - Applying, sending, ticking: those are the embedder's, or the whole engine's ([`crate::Node`]).
//! - Snapshot data: the log has none; see [`SnapshotSource`].
//! - Entries fetched asynchronously: what is not in the cache is read where raft asks for it.

mod entry;
mod record;
mod storage;

pub use ::raft;
pub use entry::{from_log, to_log};
pub(crate) use storage::without_entries;
pub use storage::{RaftStorage, SnapshotSource};
