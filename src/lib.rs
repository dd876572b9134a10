//! Catamaran: an embeddable multi-Raft sharded storage engine. Thousands of raft groups in one process share one
//! log, one connection per node pair and one key-value store.
//!
//! Start with [`Node::open`] and [`Client`]. An embedder brings its own commands through
//! [`region::machine::StateMachine`], its own storage through [`kv::StateStore`], and tests both under the
//! simulator (feature `sim`). The log engine stands on its own: [`log`].
//!
#![doc = include_str!("architecture.md")]

pub mod env;
pub mod error;
pub mod pb;
pub mod types;

pub mod client;
pub mod codec;
pub mod config;
pub mod driver;
pub mod kv;
pub mod log;
pub mod node;
pub mod placement;
pub mod raft;
pub mod region;
pub mod router;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod store;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
pub mod transport;

pub use client::{Batch, Client};
pub use config::NodeConfig;
pub use error::{Error, Outcome, Result};
pub use node::Node;

/// The first example of README, run as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct ReadmeDoctests;
