//! The log's own sources, compiled with locks and condition variables that a scheduler controls. Here this
//! crate bears the names `parking_lot` (for the log) and `catamaran` (for the journalling disk of the tests).
//!
//! Covered: every order in which threads may pass the log's mutexes, read-write locks and condition
//! variables, a lost wake-up included, for a condition variable never times out here. Not covered: orders in
//! which only atomic variables differ, and weak memory: the log's atomics are the standard library's.

#![allow(
    dead_code,
    unused_imports,
    missing_docs,
    reason = "the sources of another crate, of which tests use a part"
)]

extern crate self as catamaran;
extern crate self as parking_lot;

mod locks;
pub use locks::{
    Condvar, MappedRwLockReadGuard, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
};

#[path = "../../../src/env/mod.rs"]
pub mod env;
#[path = "../../../src/error.rs"]
pub mod error;
#[path = "../../../src/log/mod.rs"]
pub mod log;
#[path = "../../log_disk/mod.rs"]
pub mod log_disk;
#[path = "../../../src/types/mod.rs"]
pub mod types;

pub use error::{Error, Result};
