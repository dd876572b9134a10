//! The front desk: what an embedder calls ([`Client`]), and the machinery that gets a request to the
//! replica that can answer it.
//!
//! One set of requests ([`request`]) serves three ways in:
//! * an embedded [`Client`] hands them to [`local::Local`], which routes, executes what this node can
//!   and forwards the rest;
//! * another node forwards a *routed* request (region and epoch version named): it is executed here or
//!   refused with a hint, never forwarded again;
//! * a [`remote`] client sends *unrouted* ones to any node, which routes them as for its own embedder.
//!   So a request travels two hops at most.
//!
//! **Writes** are atomic per region: a batch that spans regions is cut, and its parts succeed or fail on
//! their own. A write is retried only while it certainly has not been applied. When a call fails,
//! [`Error::outcome`](crate::Error::outcome) says whether it may have taken effect.
//! **Goals** (a merge, a split, a change of replicas) take several requests. The client's time limit
//! ([`Client::with_timeout`]) is that of the whole: when it is over the caller is told what was waited for last.
//! What was begun stays as it is or ends by itself; asking again goes on from there, and what is done already
//! is found done. The steps are made for one shape of a region each, so none is taken twice.
//! **Reads** take their level per call ([`ReadLevel`](crate::store::ReadLevel)); a lease read on the
//! leader runs on the caller's thread and touches no queue. A scan reads page by page, each page of one
//! instant, the whole not.
//!
//! Callbacks carry everything; futures and blocking calls are thin coats over them, so no runtime is
//! needed and none is blocked.
//!
//! Not done: transactions over regions; a scan of one instant over regions.

mod admin;
mod api;
pub mod ask;
mod block;
mod budget;
mod directory;
pub mod fault;
mod gate;
mod goal;
mod hints;
mod job;
pub mod local;
mod locate;
mod members;
pub(crate) mod merge;
mod pages;
mod parked;
mod read;
pub mod remote;
pub mod request;
mod serve;
mod spread;
mod stores;
mod volley;

pub use crate::codec::command::{BatchBuilder as Batch, Swap};
pub use api::{Blocking, Client};
pub(crate) use block::together;
pub use block::wait;
#[cfg(any(test, feature = "sim"))]
pub(crate) use directory::Bureau;
pub(crate) use directory::{Basis, Office};
pub use pages::{Pages, Rows};
pub use remote::RemoteClient;
pub use request::{NodeStatus, NodeWork};

use crate::error::{Error, Result};
use crate::types::Time;
use bytes::Bytes;
use request::{Body, Response};
use std::time::Duration;

/// Called once with the answer.
pub type Callback<T> = Box<dyn FnOnce(Result<T>) + Send>;

/// A callback that is called exactly once, even if whoever holds it lets it go.
pub struct Done<T>(Option<Callback<T>>);

impl<T> Done<T> {
    /// Wraps a callback.
    pub fn new(callback: impl FnOnce(Result<T>) + Send + 'static) -> Done<T> {
        Done(Some(Box::new(callback)))
    }

    /// Calls it.
    pub fn call(mut self, result: Result<T>) {
        if let Some(callback) = self.0.take() {
            callback(result);
        }
    }
}

impl<T> Drop for Done<T> {
    fn drop(&mut self) {
        if let Some(callback) = self.0.take() {
            callback(Err(Error::Stopped { reason: "the node has gone".into() }));
        }
    }
}

/// Whatever answers requests: this node, or a connection to others.
pub(crate) trait Backend: Send + Sync + 'static {
    /// Answers a request; the callback runs on a thread of the backend.
    fn call(&self, body: Body, timeout: Duration, done: Done<Response>);

    /// What its clock shows: the time of a [`Goal`](goal::Goal) is counted by it. Once it has gone there is none left.
    fn now(&self) -> Time;

    /// Calls back after a pause; at once where answers take their time anyway.
    fn pause(&self, pause: Duration, done: Done<()>) {
        let _ = pause;
        done.call(Ok(()));
    }

    /// Writes many batches, with as few locks as can be.
    fn write_many(&self, batches: Vec<(Bytes, Done<Response>)>, timeout: Duration) {
        for (command, done) in batches {
            self.call(Body::Write { command }, timeout, done);
        }
    }

    /// Writes a batch, together with others of the same moment: at the latest when somebody [lets in](Self::let_in)
    /// what waits, which whoever calls this must do.
    fn write_soon(&self, command: Bytes, timeout: Duration, done: Done<Response>) {
        self.call(Body::Write { command }, timeout, done);
    }

    /// Lets in every batch that waits for company.
    fn let_in(&self) {}

    /// Reads at once on the caller's thread, if that is possible.
    fn read_now(&self, body: &Body) -> Option<Result<Response>> {
        let _ = body;
        None
    }
}

pub(crate) fn written(result: Result<Response>) -> Result<Bytes> {
    match result? {
        Response::Written(bytes) => Ok(bytes),
        _ => Err(odd()),
    }
}

pub(crate) fn odd() -> Error {
    Error::Ambiguous { what: "an answer of another kind than the request" }
}
