//! Where a key lives and what to do when the answer was wrong. Pure: no IO, no clock, no randomness.
//!
//! Protocol of a client:
//! 1. [`RangeCache::lookup`] (or [`split_batch`] for a whole batch) names region, epoch version and
//!    likely leader of each key;
//! 2. the request is sent there, carrying that version; whoever receives it checks, and apply checks
//!    again, so a stale cache costs a round trip, never a wrong answer;
//! 3. on an error [`retry::decide`] says whether, where and when to try again; errors that carry
//!    newer regions or a leader are first fed back by [`RangeCache::update`] and
//!    [`RangeCache::set_leader`].
//!
//! Beside that: the directory. Leaders [report](reporter) to the leader of region 1, which keeps the [`Atlas`] and
//! says where a key lives whose region nobody here has heard of.
//!
//! Not done: the cache of a node holds every region of the cluster (a few hundred bytes each). When
//! placement brings millions, it becomes bounded and asks the directory on a miss.

mod atlas;
mod cache;
pub mod reporter;
pub mod retry;
mod split;

pub use atlas::{Atlas, Sender};
pub use cache::{RangeCache, Route};
pub use split::{Part, lone_route, split_batch};
