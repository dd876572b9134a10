//! Unrouted requests: split by region, gathered again.

use super::Done;
use super::ask::Ask;
use super::fault;
use super::job::{Job, Patience};
use super::local::{Inner, unexpected};
use super::request::{Body, NodeStatus, NodeWork, Response, Route, VALUES_BYTES_MAX, too_large};
use crate::codec::command::{self, PREVIOUS_BYTES_MAX, Swap};
use crate::driver::Waiter;
use crate::error::{Error, Result};
use crate::kv::Direction;
use crate::router;
use crate::store::{RegionStatus, Reply};
use crate::types::{FIRST_REGION, KeyRange, RegionId, Time};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the parts of one request have brought so far.
struct Gather {
    left: usize,
    succeeded: usize,
    errors: Vec<Error>,
    swaps: Vec<Option<Swap>>,
    values: Vec<Option<Bytes>>,
    /// How many bytes of values (or of previous ones) the whole answer still has room for: regions bound theirs
    /// each on its own.
    room: usize,
    done: Option<Done<Response>>,
}

fn route_of(route: &router::Route) -> Route {
    Route { region: route.region.id, version: route.region.epoch.version }
}

fn unknown(key: &[u8]) -> Error {
    Error::NoRoute { key: Bytes::copy_from_slice(key) }
}

impl Inner {
    /// Routes a request and runs it, in parts if need be.
    pub fn start(
        self: &Arc<Self>,
        body: Body,
        patience: Patience,
        attempt: u32,
        done: Done<Response>,
    ) {
        let job = |body, route, done| Job::new(body, route, patience, attempt, done);
        match body {
            Body::Write { command } => {
                let parts = router::split_batch(&self.routes.read(), &command);
                let mut parts = match parts {
                    Ok(parts) => parts,
                    Err(Error::NoRoute { key }) => {
                        let body = Body::Write { command };
                        return self.start_elsewhere(body, key, patience, attempt, done);
                    }
                    Err(error) => return done.call(Err(error)),
                };
                match parts.len() {
                    0 => done.call(Ok(Response::Written(Bytes::new()))),
                    1 => {
                        let part = parts.remove(0);
                        let body = Body::Write { command: part.command };
                        self.run(job(body, route_of(&part.route), done));
                    }
                    _ => {
                        let swaps = parts.iter().map(|part| part.swaps.len()).sum();
                        let gather = gather(parts.len(), swaps, 0, done);
                        for part in parts {
                            let body = Body::Write { command: part.command };
                            let done = gather_swaps(&gather, part.swaps);
                            self.run(job(body, route_of(&part.route), done));
                        }
                    }
                }
            }
            Body::Execute { ref key, .. } => {
                let route = self.routes.read().lookup(key).map(route_of);
                match route {
                    Some(route) => self.run(job(body, route, done)),
                    None => {
                        let key = key.clone();
                        self.start_elsewhere(body, key, patience, attempt, done);
                    }
                }
            }
            Body::Read { level, keys } => match self.by_region(&keys) {
                Err(Error::NoRoute { key }) => {
                    let body = Body::Read { level, keys };
                    self.start_elsewhere(body, key, patience, attempt, done);
                }
                Err(error) => done.call(Err(error)),
                Ok(parts) if parts.is_empty() => done.call(Ok(Response::Values(Vec::new()))),
                Ok(mut parts) if parts.len() == 1 => {
                    if let Some((_, (route, _))) = parts.pop_first() {
                        self.run(job(Body::Read { level, keys }, route, done));
                    }
                }
                Ok(parts) => {
                    let gather = gather(parts.len(), 0, keys.len(), done);
                    for (_, (route, places)) in parts {
                        let keys = places.iter().map(|at| keys[*at].clone()).collect();
                        let done = gather_values(&gather, places);
                        self.run(job(Body::Read { level, keys }, route, done));
                    }
                }
            },
            Body::Scan { level, direction, range, items, bytes } => {
                match self.piece(&range, direction) {
                    Err(Error::NoRoute { key }) => {
                        let body = Body::Scan { level, direction, range, items, bytes };
                        self.start_elsewhere(body, key, patience, attempt, done);
                    }
                    Err(error) => done.call(Err(error)),
                    Ok(None) => done.call(Ok(Response::Page { items: Vec::new(), rest: None })),
                    Ok(Some((route, piece))) => {
                        let whole = piece.clone();
                        let done = Done::new(move |result: Result<Response>| {
                            done.call(result.map(|r| widen(r, &range, &whole, direction)));
                        });
                        let body = Body::Scan { level, direction, range: piece, items, bytes };
                        self.run(job(body, route, done));
                    }
                }
            }
            Body::Status { region } => self.status(region, patience.deadline, done),
            Body::Regions { start, count } => {
                let regions = self.bureau.regions(&start, count);
                match regions.first().is_some_and(|first| first.range.contains(&start)) {
                    true => done.call(Ok(Response::Regions(regions))),
                    false => {
                        let (key, body) = (start.clone(), Body::Regions { start, count });
                        self.start_elsewhere(body, key, patience, attempt, done);
                    }
                }
            }
            Body::Directory(ask @ (Ask::Members | Ask::WasMerged(_))) => {
                done.call(self.bureau.answer(ask));
            }
            Body::Directory(_) => {
                self.run(job(body, Route { region: FIRST_REGION, version: 0 }, done));
            }
            Body::Transfer { region, .. } | Body::Admin { region, .. } => {
                self.run(job(body, Route { region, version: 0 }, done));
            }
        }
    }

    fn by_region(&self, keys: &[Bytes]) -> Result<BTreeMap<RegionId, (Route, Vec<usize>)>> {
        let routes = self.routes.read();
        let mut parts: BTreeMap<RegionId, (Route, Vec<usize>)> = BTreeMap::new();
        for (at, key) in keys.iter().enumerate() {
            let route = routes.lookup(key).ok_or_else(|| unknown(key))?;
            let part = parts.entry(route.region.id);
            part.or_insert_with(|| (route_of(route), Vec::new())).1.push(at);
        }
        Ok(parts)
    }

    /// The region that a scan begins in, and what of the range lies there.
    fn piece(&self, range: &KeyRange, direction: Direction) -> Result<Option<(Route, KeyRange)>> {
        if range.is_empty() {
            return Ok(None);
        }
        let routes = self.routes.read();
        let (route, edge) = match direction {
            Direction::Forward => (routes.lookup(&range.start), &range.start),
            Direction::Reverse => (routes.lookup_before(&range.end), &range.end),
        };
        let route = route.ok_or_else(|| unknown(edge))?;
        Ok(Some((route_of(route), range.intersect(&route.region.range))))
    }

    /// The route of a read that one region here can answer, for reads on the caller's thread.
    pub fn lone_route(&self, keys: &[Bytes]) -> Option<Route> {
        let routes = self.routes.read();
        let route = routes.lookup(keys.first()?)?;
        keys.iter().all(|key| route.region.range.contains(key)).then(|| route_of(route))
    }

    fn work(&self) -> NodeWork {
        let (log, kv) = (self.driver.log().stats(), self.driver.kv().stats());
        NodeWork {
            log_entries: log.entries,
            log_syncs: log.fsyncs,
            log_bytes: log.bytes_written,
            flushes: kv.flushes,
            table_bytes: kv.table_bytes,
            snapshots: self.driver.snapshot_stats(),
        }
    }

    /// Asks every loop of this node: where all replicas stand, or that of one region.
    pub fn status(self: &Arc<Self>, only: Option<RegionId>, deadline: Time, done: Done<Response>) {
        let parts = (self.driver.loops(), Vec::new(), Some(done), self.driver.stages());
        let parts = Arc::new(Mutex::new(parts));
        let store = self.store;
        let work = self.work();
        self.driver.status(deadline, || -> Waiter {
            let parts = Arc::clone(&parts);
            Box::new(move |reply| {
                let mut parts = parts.lock();
                let (left, regions, done, stages) = &mut *parts;
                let failed = match reply {
                    Ok(Reply::Status(some)) => {
                        let asked =
                            |one: &RegionStatus| only.is_none_or(|only| one.region.id == only);
                        regions.extend(some.into_iter().filter(asked));
                        *left -= 1;
                        None
                    }
                    other => Some(unexpected(other)),
                };
                let result = match failed {
                    Some(error) => Err(error),
                    None if *left > 0 => return,
                    None => {
                        regions.sort_by_key(|status| status.region.id);
                        let (regions, stages) = (std::mem::take(regions), std::mem::take(stages));
                        Ok(Response::Status(NodeStatus { store, regions, work, stages }))
                    }
                };
                let done = done.take();
                drop(parts);
                if let Some(done) = done {
                    done.call(result);
                }
            })
        });
    }
}

/// What is left of the whole range after a page of its first piece.
fn widen(response: Response, range: &KeyRange, piece: &KeyRange, direction: Direction) -> Response {
    let Response::Page { items, rest } = response else { return response };
    let rest = match (direction, rest) {
        (Direction::Forward, Some(rest)) => {
            Some(KeyRange { start: rest.start, end: range.end.clone() })
        }
        (Direction::Reverse, Some(rest)) => {
            Some(KeyRange { start: range.start.clone(), end: rest.end })
        }
        (Direction::Forward, None) if piece.end != range.end => {
            Some(KeyRange { start: piece.end.clone(), end: range.end.clone() })
        }
        (Direction::Reverse, None) if piece.start != range.start => {
            Some(KeyRange { start: range.start.clone(), end: piece.start.clone() })
        }
        (_, None) => None,
    };
    Response::Page { items, rest }
}

fn gather(left: usize, swaps: usize, values: usize, done: Done<Response>) -> Arc<Mutex<Gather>> {
    Arc::new(Mutex::new(Gather {
        left,
        succeeded: 0,
        errors: Vec::new(),
        swaps: vec![None; swaps],
        values: vec![None; values],
        room: if values > 0 { VALUES_BYTES_MAX } else { PREVIOUS_BYTES_MAX },
        done: Some(done),
    }))
}

/// Counts a part off; the last one answers.
fn arrive(
    gather: &Mutex<Gather>,
    result: Result<Response>,
    place: impl FnOnce(&mut Gather, Response) -> Result<()>,
) {
    let mut all = gather.lock();
    all.left -= 1;
    match result.and_then(|response| place(&mut all, response)) {
        Ok(()) => all.succeeded += 1,
        Err(error) => all.errors.push(error),
    }
    if all.left > 0 {
        return;
    }
    let reads = !all.values.is_empty();
    let error = match reads {
        true => all.errors.first().cloned(),
        false => fault::of_parts(&all.errors, all.succeeded),
    };
    let result = match error {
        Some(error) => Err(error),
        None if reads => Ok(Response::Values(std::mem::take(&mut all.values))),
        None => {
            let swaps: Vec<Swap> = std::mem::take(&mut all.swaps).into_iter().flatten().collect();
            Ok(Response::Written(command::encode_swaps(&swaps)))
        }
    };
    let done = all.done.take();
    drop(all);
    if let Some(done) = done {
        done.call(result);
    }
}

fn gather_swaps(gather: &Arc<Mutex<Gather>>, places: Vec<u32>) -> Done<Response> {
    let gather = Arc::clone(gather);
    Done::new(move |result| {
        arrive(&gather, result, |all, response| {
            let Response::Written(bytes) = response else { return Err(super::odd()) };
            for (at, swap) in places.into_iter().zip(command::decode_swaps(&bytes)?) {
                let Gather { swaps, room, .. } = &mut *all;
                if let Some(place) = swaps.get_mut(at as usize) {
                    // A copy: what is kept must not hold the whole of the region's answer.
                    *place = Some(match swap.left_out {
                        true => swap,
                        false => {
                            let mut told = Swap::within(room, swap.swapped, swap.previous);
                            told.previous = told.previous.map(|v| Bytes::copy_from_slice(&v));
                            told
                        }
                    });
                }
            }
            Ok(())
        });
    })
}

fn gather_values(gather: &Arc<Mutex<Gather>>, places: Vec<usize>) -> Done<Response> {
    let gather = Arc::clone(gather);
    Done::new(move |result| {
        arrive(&gather, result, |all, response| {
            let Response::Values(values) = response else { return Err(super::odd()) };
            if values.len() != places.len() {
                return Err(super::odd());
            }
            let bytes = values.iter().flatten().map(Bytes::len).sum();
            // Nothing is kept of an answer that will be an error.
            let Some(room) = all.room.checked_sub(bytes).filter(|_| all.errors.is_empty()) else {
                all.values.fill(None);
                return Err(too_large());
            };
            all.room = room;
            for (at, value) in places.into_iter().zip(values) {
                all.values[at] = value;
            }
            Ok(())
        });
    })
}
