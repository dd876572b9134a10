//! All replicas of one store loop: events in, effects out.
//!
//! A node runs one [`Store`] per store loop; a region belongs to one of them, by id. A round is
//! `handle(now, event)` any number of times, then one `drain(now, &mut effects)`: every touched peer is
//! visited once, all their entries go into ONE `LogBatch`, which is submitted (readable at once, durable
//! later) and whose durability the shell reports back as [`Event::Persisted`]. The loop never waits for
//! the disk.
//!
//! No task, thread, timer or channel belongs to a region: a quiet one costs its memory (`sleep`): whether
//! nodes are there is found out per node pair (`liveness`), not per group.
//!
//! Snapshots take turns: [`departures`] is the sender's list of who waits for a place, [`slots`] the receiver's of who
//! has one. Both belong to a node, not to a loop.

mod absent;
pub mod departures;
mod event;
mod graves;
mod liveness;
mod merges;
mod open;
mod peers;
#[cfg(any(test, feature = "sim"))]
mod planted;
mod round;
mod sizes;
mod sleep;
pub mod slots;

pub use crate::region::config::StoreConfig;
pub use crate::region::effects::*;
pub use crate::region::share::{PeerShare, Registry};
pub use event::{DiskSpace, Event, Proposal, ReadLevel, ReadRequest};
pub use open::{
    IDENT_GROUP, Recovery, Shard, bootstrap_regions, first_births, identify, initial_states,
    prepare,
};
pub use round::Store;
