//! Measures catamaran beside those whom a user might take instead: the same work, on the same machine, in turn
//! within one run.
//!
//! ```text
//! cargo run --release -p catamaran-peers --features openraft -- consensus --json consensus.json
//! cargo run --release -p catamaran-peers -- store --json store.json
//! cargo run --release -p catamaran-peers -- table consensus.json store.json
//! ```
//!
//! | room | what |
//! |---|---|
//! | `consensus` | three replicas in one process, log in memory, nothing applied: ours and openraft |
//! | `store` | one thread that applies batches to a state store: ours, lsm-tree, RocksDB |
//! | `durable`, `etcd` | replicated and synced: results of `catamaran-load` beside etcd, driven by batched transactions |
//! | `target` | what is to be reached |
//! | `report`, `table` | medians and spreads, JSON; Markdown |
//! | `used` | processor time, memory and bytes written of this process |
//!
//! Every peer is built only with its feature, and driven through its public API as its documentation says.
//! Where there is a choice, each choice is a column of its own and the fastest one is what ours is judged by.

pub mod consensus;
pub mod durable;
#[cfg(feature = "etcd")]
pub mod etcd;
pub mod report;
pub mod store;
pub mod table;
pub mod target;
pub mod used;
