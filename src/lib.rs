//! Catamaran: an embeddable multi-Raft sharded storage engine.

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
pub mod raft;
pub mod region;
pub mod router;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod store;
pub mod transport;

pub use client::{Batch, Client};
pub use config::NodeConfig;
pub use error::{Error, Outcome, Result};
pub use node::Node;
