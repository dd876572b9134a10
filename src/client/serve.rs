//! Requests that come over the network: from other nodes (routed) and from remote clients.

use super::Done;
use super::gate::Entrant;
use super::job::Patience;
use super::local::{Inner, written};
use super::request::{Body, Request, Response, encode_response};
use crate::driver::Submission;
use crate::error::{Error, Result};
use crate::transport::Origin;
use crate::types::{RegionId, Time};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Nobody is waited for longer than this, whatever he says.
const TIMEOUT_MAX: Duration = Duration::from_secs(600);

/// Takes what one read of a connection brought; its writes enter together, those of one loop.
pub(super) fn serve(inner: &Arc<Inner>, origin: Origin, requests: Vec<(u64, Bytes)>) {
    let now = inner.now();
    let mut writes: BTreeMap<usize, (RegionId, Time, Vec<Submission>)> = BTreeMap::new();
    let mut entrants = Vec::new();
    // Counted by itself: the node's own count is everybody's, and would be a line that all threads fight for.
    let shared = Arc::new(Arc::clone(inner));
    for (id, bytes) in requests {
        let back = Arc::clone(&shared);
        let answer = move |result: Result<Response>| {
            let result = result.map_err(|error| back.bureau.with_neighbours(error));
            back.transport.respond(origin, id, encode_response(&result));
        };
        let Request { timeout, route, body } = match Request::decode(bytes) {
            Ok(request) => request,
            Err(error) => {
                answer(Err(error));
                continue;
            }
        };
        if matches!(&body, Body::Directory(ask) if ask.is_among_stores() && origin.store.is_none())
        {
            answer(Err(Error::InvalidArgument("only stores report, announce and found".into())));
            continue;
        }
        let timeout = timeout.min(TIMEOUT_MAX);
        let patience = Patience::of_remote(now, timeout);
        let deadline = patience.deadline;
        match (route, body) {
            (Some(route), Body::Write { command } | Body::Execute { command, .. }) => {
                let (region, version) = (route.region, route.version);
                let done = Done::new(answer);
                let waiter = Box::new(move |reply| done.call(written(reply)));
                let at = inner.driver.loop_of(region);
                let (_, until, list) =
                    writes.entry(at).or_insert_with(|| (region, deadline, Vec::new()));
                *until = deadline.max(*until);
                list.push(Submission { region, version, command, waiter });
            }
            (Some(route), body) => {
                let inner_too = Arc::clone(inner);
                let done = Done::new(answer);
                let job = Box::new(move || {
                    if let Body::Read { level, .. } | Body::Scan { level, .. } = &body
                        && let Some(result) = inner_too.read_at_once(route, *level, &body)
                    {
                        return done.call(result);
                    }
                    inner_too.execute(route, body, deadline, done);
                });
                // A refused job answers by the drop of `done`.
                let _ = inner.driver.spawn_read(job);
            }
            (None, Body::Write { command }) => {
                entrants.push(Entrant { command, timeout, done: Done::new(answer) });
            }
            (None, body) => inner.start(body, patience, 0, Done::new(answer)),
        }
    }
    inner.enter_from_afar(entrants);
    for (region, deadline, submissions) in writes.into_values() {
        inner.driver.propose(region, deadline, submissions);
    }
}
