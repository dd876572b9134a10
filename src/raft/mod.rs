//! The adapter over the `raft` crate: one [`Group`] is the raft state machine of one peer, with typed
//! inputs and a typed [`Ready`].
//!
//! Consensus itself is raft-rs's. This room keeps its contract so that nobody else needs to know it:
//!
//! 1. `tick`, [`Group::step`], [`Group::propose`] and friends change the state;
//! 2. [`Group::ready`] hands out what follows from it, sorted by *when* it may happen: `send_now`
//!    may leave before the local disk write (a leader's appends: Raft thesis 10.2.1), `entries` and
//!    `hard_state` must be made durable, `send_after_persist` (votes, append acknowledgements) must
//!    not leave before they are, `committed` entries are committed *and* locally persisted;
//! 3. once `entries` can be read back from the storage, [`Group::advance`] ends the round; nothing
//!    may be stepped in between;
//! 4. [`Group::persisted`] reports the durable number, in order; [`Group::applied`] the apply index.
//!
//! Three properties are added here. Election timeouts are a pure function of (seed, peer, term,
//! voters, known leader: see `turn`) instead of a draw from a thread's generator, so that a simulation can be repeated. Every message
//! passes the [`guard`] first, because raft-rs panics on messages that parse well and are wrong. And
//! proposals to a non-leader are refused rather than silently forwarded.
//!
//! A group that has nothing to do gives its memory back and is made anew when it has ([`rest`]).
//!
//! Not done: priorities.

pub mod envelope;
mod feeding;
pub mod group;
pub mod guard;
mod look;
mod mending;
pub mod quiet;
pub mod rest;
mod telling;
mod turn;
pub mod wire;

pub use envelope::{Envelope, Lane, Note};
pub use group::{Elections, Group, GroupConfig, ProposeError, Ready, ReadyRest, Room, Status};
pub use quiet::Standing;
