//! The simulator: whole clusters on one thread, on a seeded disk, network and clock, with the same
//! deterministic code that production runs. It is public under the feature `sim`, so that users can
//! test their own state machines under the same faults.
//!
//! Protocol of a run: a [`world::World`] holds the events in order of time; the loop pops one, hands it
//! to the node it is for, and turns what the node wants into new events: messages through
//! [`net::Net::route`], disk work after [`disk::SimDisk::take_busy`], timers through
//! [`clock::NodeClock`]. After every step the [`checker`]s look; at the end [`linear`] judges what the
//! clients saw. Everything that happens is a line of the [`trace::Trace`].
//!
//! - One seed, one trace: nothing in here asks a clock, a thread, an address or a hash order.
//! - Draws are keyed ([`rng::Rng`]): leaving out one fault does not move the others.
//!
//! [`seed`] runs one seed from its drawn shape to the judgement: [`node`] is one node in production's own
//! code, [`cluster`] does in events what production's shell does in threads, [`client`] and [`callers`] are
//! the workload, [`regions`] the one in which regions change, [`trouble`] the faults, [`siege`] and `recount` those that are aimed, [`watch`] what the checkers look at,
//! `leases` the part of it that is about lease reads.
//! On a [`stage`] nothing is drawn: what happens there a script says, step by step.
//!
//! In the workload `regions` nodes have an operator and a clerk (`staff`, `clerk`): they register, report and announce,
//! and carry out what is planned, by `requests` through the same network; and stores join, drain, leave, lose their directories
//! (`stores`) and have damaged logs (`rot`). The threads, sockets and callbacks of production's `driver`, `transport` and `node` are not in here, and of its
//! `client` what leads from a key to a region is not; nor are founding and marks of directories.
//!
//! Not done: shrinking of failing seeds.

mod afterlife;
mod agreement;
pub mod callers;
pub mod checker;
mod clerk;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod counts;
pub mod couriers;
pub mod disk;
mod full;
mod leases;
pub mod linear;
mod lives;
mod members;
mod merges;
pub mod net;
pub mod node;
mod reads;
mod recount;
pub mod regions;
pub mod requests;
pub mod rng;
mod rot;
pub mod seed;
pub mod siege;
mod slumber;
mod staff;
pub mod stage;
mod stores;
pub mod trace;
pub mod traffic;
pub mod trouble;
mod unborn;
pub mod watch;
pub mod world;
