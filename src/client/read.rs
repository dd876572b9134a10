//! Reads on this node's replicas: at once under a lease or when fresh enough, otherwise after a grant.

use super::Done;
use super::local::{Inner, unexpected};
use super::request::{Body, Response, Route, VALUES_BYTES_MAX, too_large};
use crate::error::{Error, Result};
use crate::kv::{Direction, View};
use crate::store::{ReadLevel, Reply};
use crate::types::{KeyRange, Time};
use bytes::Bytes;
use std::sync::Arc;

impl Inner {
    /// Reads at once if one replica here may answer without asking anybody.
    pub fn read_now(&self, body: &Body) -> Option<Result<Response>> {
        let (level, route) = match body {
            Body::Read { level, keys } if *level != ReadLevel::Linearizable => {
                (*level, self.lone_route(keys)?)
            }
            _ => return None,
        };
        self.read_at_once(route, level, body)
    }

    /// As [`read_now`](Self::read_now), for a routed read. Errors that a retry could mend are `None`.
    pub fn read_at_once(
        &self,
        route: Route,
        level: ReadLevel,
        body: &Body,
    ) -> Option<Result<Response>> {
        let result = self.read_here(route, level, body)?;
        // Met again on the way that knows the other replicas, and the new shapes.
        let again = matches!(
            result,
            Err(Error::Corruption { .. } | Error::EpochNotMatch { .. } | Error::RegionNotFound(_))
        );
        (!again).then_some(result)
    }

    fn read_here(&self, route: Route, level: ReadLevel, body: &Body) -> Option<Result<Response>> {
        let share = self.driver.registry().get(route.region)?;
        if self.driver.stop_reason().is_some() {
            return None;
        }
        match level {
            ReadLevel::Linearizable => None,
            ReadLevel::Lease => {
                let begun = share.begin_lease_read(self.now())?;
                let view = self.driver.kv().view().ok()?;
                let found = view.region(route.region)?;
                // The view lies between the two looks: the lease held when it was taken.
                let state = share.serves_by_lease(begun, self.now(), found)?;
                if state.region.epoch.version != route.version {
                    return None;
                }
                share.is_read();
                Some(read_within(&*view, &state.region.range, body))
            }
            ReadLevel::Stale { max } => {
                if !share.is_fresh(self.now(), max) || share.epoch().version != route.version {
                    return None;
                }
                Some(self.read(route, body))
            }
        }
    }

    /// Waits for a grant, then reads on a read thread.
    pub fn read_when_granted(
        self: &Arc<Self>,
        route: Route,
        level: ReadLevel,
        body: Body,
        deadline: Time,
        done: Done<Response>,
    ) {
        if let Some(share) = self.driver.registry().get(route.region) {
            share.is_read();
        }
        let inner = Arc::clone(self);
        let waiter = Box::new(move |reply| match reply {
            Ok(Reply::Read(Ok(_grant))) => {
                let reader = Arc::clone(&inner);
                // A full queue drops the job, and with it `done`: give it a better word than that.
                let done = Arc::new(parking_lot::Mutex::new(Some(done)));
                let theirs = Arc::clone(&done);
                let job = Box::new(move || {
                    let done = theirs.lock().take();
                    if let Some(done) = done {
                        done.call(reader.read(route, &body));
                    }
                });
                if let Err(error) = inner.driver.spawn_read(job) {
                    let done = done.lock().take();
                    if let Some(done) = done {
                        done.call(Err(error));
                    }
                }
            }
            Ok(Reply::Read(Err(error))) => done.call(Err(error)),
            other => done.call(Err(unexpected(other))),
        });
        self.driver.read(route.region, route.version, level, deadline, waiter);
    }

    /// Reads from a view of now. The view holds the region's state of the same instant, so a region
    /// that changed its shape is noticed here, whatever was checked before.
    fn read(&self, route: Route, body: &Body) -> Result<Response> {
        let view = self.driver.kv().view()?;
        let state = view.region(route.region).ok_or(Error::RegionNotFound(route.region))?;
        if state.region.epoch.version != route.version {
            return Err(Error::EpochNotMatch { current: vec![state.region] });
        }
        read_within(&*view, &state.region.range, body)
    }
}

/// What the view has under the keys of a region's range.
fn read_within(view: &dyn View, owned: &KeyRange, body: &Body) -> Result<Response> {
    match body {
        Body::Read { keys, .. } => {
            if let Some(key) = keys.iter().find(|key| !owned.contains(key)) {
                return Err(Error::InvalidArgument(format!("{key:?} is not in the region")));
            }
            values(view, keys)
        }
        Body::Scan { direction, range, items, bytes, .. } => {
            page(view, &range.intersect(owned), *direction, *items, *bytes)
        }
        _ => Err(Error::InvalidArgument("not a read".into())),
    }
}

/// The values of the keys, while they fit an answer.
fn values(view: &dyn View, keys: &[Bytes]) -> Result<Response> {
    let mut values = Vec::with_capacity(keys.len());
    let mut room = VALUES_BYTES_MAX;
    for key in keys {
        let value = view.get(key)?;
        let bytes = value.as_ref().map_or(0, Bytes::len);
        room = room.checked_sub(bytes).ok_or_else(too_large)?;
        values.push(value);
    }
    Ok(Response::Values(values))
}

/// The keys after `key` start here.
fn successor(key: &Bytes) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    Bytes::from(next)
}

fn page(
    view: &dyn View,
    range: &KeyRange,
    direction: Direction,
    items_max: usize,
    bytes_max: usize,
) -> Result<Response> {
    let mut items: Vec<(Bytes, Bytes)> = Vec::new();
    if range.is_empty() {
        return Ok(Response::Page { items, rest: None });
    }
    let mut bytes = 0;
    for item in view.scan(range, direction)? {
        let (key, value) = item?;
        bytes += key.len() + value.len();
        items.push((key, value));
        if items.len() >= items_max || bytes >= bytes_max {
            break;
        }
    }
    let stopped_short = items.len() >= items_max || bytes >= bytes_max;
    let rest = match items.last().filter(|_| stopped_short) {
        None => None,
        Some((last, _)) => {
            let rest = match direction {
                Direction::Forward => KeyRange { start: successor(last), end: range.end.clone() },
                // An empty end would mean "no upper end": nothing lies below the empty key.
                Direction::Reverse if last.is_empty() => range_of_nothing(),
                Direction::Reverse => KeyRange { start: range.start.clone(), end: last.clone() },
            };
            (!rest.is_empty()).then_some(rest)
        }
    };
    Ok(Response::Page { items, rest })
}

fn range_of_nothing() -> KeyRange {
    KeyRange { start: Bytes::from_static(b"\0"), end: Bytes::from_static(b"\0") }
}
