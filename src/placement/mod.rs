//! Placement: which replica is to go where, as a pure function of what the directory knows. It decides and explains; it
//! changes nothing, and remembers nothing.
//!
//! Protocol: [`plan()`] looks at all stores and regions and gives the next [`Step`] of every region that is not where it
//! should be, each with its reason. Somebody carries the steps out (`node::operator`), in whatever order, as far as he
//! gets, looks again, and asks again. What is on record are *goals* (a store is draining; a region has so many
//! replicas), never steps: after a crash anywhere the next look finds the same goals, and learners that are on their way
//! already.
//!
//! * A replica moves as members do: a learner on the new store first; once it has caught up the two change roles in one
//!   entry; then the old one goes. At no time do fewer vote than before.
//! * A leader does not change itself: leadership goes first, to a store that stays.
//! * A store that is draining, that has left, that is out of reach or that is nearly full is given nothing.
//! * At most [`Limits::moves`] regions have a learner on its way.
//! * Neighbours that are small and cold are merged while nothing else is to be done: `merge` has the rules.
//! * Leaderships are spread over the stores (`leaders`), whatever else is to be done.
//!
//! Not done: balance of replicas, of bytes and of load; failure domains; replacing the replicas of a store that is down
//! without being told to (drain it: that works while it is down, too).

mod leaders;
mod merge;
mod plan;

pub use plan::{Action, Goal, Limits, Place, Plan, Site, Step, plan};
