//! A test kit for raft log stores (feature `testkit`): what every store of raft entries owes to the groups
//! that live in it, as named checks that any implementation can run.
//!
//! ```
//! use catamaran::testkit::{conformance, ours::CatamaranFactory};
//!
//! # let dir = tempfile::tempdir().unwrap();
//! let factory = CatamaranFactory::new(dir.path());
//! let report = conformance::run_named(&factory, &["gap-is-refused", "clear-forgets"]);
//! assert!(report.passed(), "{report}");
//! ```
//!
//! # Protocol
//! An implementation brings a [`Factory`], which opens stores by name, and a [`LogStore`], which is one
//! open store. [`conformance::run_all`] opens a store of a fresh name for each check and returns a
//! [`Report`] with one [`Verdict`] each; it never panics, not even when the store does. What a store
//! cannot do at all it answers with [`Failure::Unsupported`]: a check that needs it is then skipped, with
//! that reason, and not failed. Faults of the disk (a power cut, a failed sync, no room, rot) are such
//! optional abilities of the factory.
//!
//! Each check has a story ([`conformance::Check::story`]): what goes wrong in a cluster whose store does not
//! hold to it. [`Model`] is the plain map that stores are compared with. [`ours`] is the adapter of [`crate::log`], and the example to start from.
//!
//! # Not done, and why
//! - No time limit: a store that hangs hangs the check. A thread that cannot be ended is no better.
//! - No measure of speed: a conformance suite must hold on a slow machine.
//! - Damage is not repaired and not asked to be: a store may refuse to open, it may not lie.

mod checks;
pub mod conformance;
mod model;
pub mod ours;
mod report;
mod store;
mod world;

pub use model::{Group, Model};
pub use report::{Finding, Report, Verdict};
pub use store::{Batch, Factory, Failure, LogStore, Op};
