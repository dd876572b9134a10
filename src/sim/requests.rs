//! Requests of a node's own threads to others, over the seeded network: what its clerk and its operator ask, and what
//! whoever administers the cluster asks through it.
//!
//! Where a request goes, what is learnt from a refusal and whether it is tried again is decided by production's own
//! functions (`Bureau::aim`, [`retry`]); the way there and back is the network's. Lost on its way, it is unknown
//! what became of it. Both ends must have let each other in (`staff`).

use super::cluster::{Cluster, Happening, Step};
use super::staff::Room;
use crate::client::Done;
use crate::client::ask::{Answer, Ask};
use crate::client::local::administered;
use crate::client::request::{Body, Response};
use crate::error::Error;
use crate::router::retry::{self, Decision, Target};
use crate::store::*;
use crate::types::*;
use std::sync::Arc;
use std::time::Duration;

/// Something that a node's threads have to ask.
pub(super) struct Sent {
    /// Only this store, once; `None`: whoever can answer.
    pub to: Option<StoreId>,
    pub body: Body,
    pub timeout: Duration,
    pub done: Done<Response>,
}

/// A request that has not been answered.
pub(super) struct Request {
    /// Who asks, and in which of its lives.
    pub from: StoreId,
    life: u64,
    pinned: Option<StoreId>,
    body: Body,
    deadline: Time,
    attempt: u32,
    target: Option<StoreId>,
    avoid: Option<StoreId>,
    done: Done<Response>,
}

/// A step of a request. Answers name the attempt that they are for.
pub enum Trip {
    /// It is sent, or sent again.
    Try(u64),
    /// It arrives.
    Arrived(u64, u32, StoreId),
    /// Its answer arrives, from there.
    Answered(u64, u32, StoreId, crate::Result<Response>),
    /// It could not be sent there.
    Refused(u64, u32, StoreId),
    /// Its time is up.
    Late(u64),
}

/// How far an attempt got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reach {
    Answered,
    /// It was never sent.
    Refused,
}

/// Who works on what a token stands for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Served {
    request: u64,
    attempt: u32,
    at: StoreId,
}

/// About the bytes of a request or an answer.
const BYTES: usize = 256;
/// What reading a key's region that is being merged takes, at least.
const READ: Duration = Duration::from_millis(100);
/// Regions that a question for a lost one brings.
const NEIGHBOURS: usize = 32;
/// How long that question may take.
const PATIENCE: Duration = Duration::from_secs(1);

impl Cluster {
    /// Takes what a node's threads have to ask.
    pub(super) fn take_requests(&mut self, now: Time, from: StoreId) {
        let Some(staff) = self.staff.get(&from) else { return };
        let life = staff.life;
        for Sent { to, body, timeout, done } in staff.room.sent() {
            self.next_request += 1;
            let (id, deadline) = (self.next_request, now.after(timeout));
            let (attempt, target, avoid) = (0, to, None);
            let request =
                Request { from, life, pinned: to, body, deadline, attempt, target, avoid, done };
            self.requests.insert(id, request);
            self.world.at(deadline, Happening::Trip(Trip::Late(id)));
            self.world.at(now, Happening::Trip(Trip::Try(id)));
        }
    }

    /// What is asked and served by a node that is gone: nobody hears an answer any more.
    pub(super) fn lose_requests(&mut self, now: Time, gone: StoreId) {
        self.requests.retain(|_, request| request.from != gone);
        let lost: Vec<Served> =
            self.serving.values().filter(|served| served.at == gone).copied().collect();
        self.serving.retain(|_, served| served.at != gone);
        for Served { request, attempt, at } in lost {
            let what = "the connection broke before the answer";
            let trip = Trip::Answered(request, attempt, at, Err(Error::Ambiguous { what }));
            self.world.at(now, Happening::Trip(trip));
        }
    }

    pub(super) fn trip(&mut self, now: Time, trip: Trip) -> Step {
        match trip {
            Trip::Try(id) => self.try_request(now, id),
            Trip::Arrived(id, attempt, at) => self.request_arrives(now, id, attempt, at),
            Trip::Answered(id, attempt, at, result) => {
                let from = self.requests.get(&id).map(|request| request.from);
                // One end has cut the other off meanwhile.
                let broken = from.is_some_and(|from| !self.admits(from, at));
                let what = "the connection broke before the answer";
                let result = if broken { Err(Error::Ambiguous { what }) } else { result };
                self.request_answered(now, id, attempt, at, Reach::Answered, result)
            }
            Trip::Refused(id, attempt, at) => {
                let refused = Err(Error::Busy { what: "a node cannot be reached" });
                self.request_answered(now, id, attempt, at, Reach::Refused, refused)
            }
            Trip::Late(id) => {
                let Some(request) = self.requests.remove(&id) else { return Ok(()) };
                if let Body::Admin { region, .. } = &request.body {
                    let from = request.from;
                    self.trace.line(now, format_args!("{from} heard nothing of {region}"));
                }
                let what = "another node's answer";
                request.done.call(Err(Error::Timeout { after_ms: 0, what }));
                self.go_on(now, request.from)
            }
        }
    }

    fn try_request(&mut self, now: Time, id: u64) -> Step {
        let Some(request) = self.requests.get(&id) else { return Ok(()) };
        let (from, attempt) = (request.from, request.attempt);
        let Some(staff) = self.staff.get(&from).filter(|staff| staff.life == request.life) else {
            return Ok(());
        };
        let answered = |result| Trip::Answered(id, attempt, from, result);
        // What a node knows itself, it says at once.
        let own = match &request.body {
            Body::Regions { start, count } => {
                Some((now, Response::Regions(staff.room.bureau.regions(start, *count))))
            }
            // Merges read in order to wait; what they read is not looked at.
            Body::Read { keys, .. } => {
                Some((now.after(READ), Response::Values(vec![None; keys.len()])))
            }
            _ => None,
        };
        if let Some((at, response)) = own {
            self.world.at(at, Happening::Trip(answered(Ok(response))));
            return Ok(());
        }
        let region = match &request.body {
            Body::Admin { region, .. } | Body::Transfer { region, .. } => *region,
            _ => FIRST_REGION,
        };
        let aim = || staff.room.bureau.aim(region, attempt, false, request.avoid);
        let to = request.target.unwrap_or_else(aim);
        let up = self.staff.contains_key(&to) && self.net.is_open(from, to);
        if !up || !self.admits(from, to) {
            if let Some(staff) = self.staff.get(&from) {
                staff.room.away.lost(to);
            }
            let pause = self.pause("request.refused", 5_000);
            self.world.after(pause, Happening::Trip(Trip::Refused(id, attempt, to)));
            return Ok(());
        }
        if let Some(at) = self.travels(now, from, to) {
            self.world.at(at, Happening::Trip(Trip::Arrived(id, attempt, to)));
        }
        Ok(())
    }

    /// When something arrives, if it does.
    fn travels(&mut self, now: Time, from: StoreId, to: StoreId) -> Option<Time> {
        let deliveries = self.net.route(now, from, to, BYTES, &mut self.rng);
        deliveries.first().filter(|first| first.flipped_bit.is_none()).map(|first| first.at)
    }

    fn request_arrives(&mut self, now: Time, id: u64, attempt: u32, at: StoreId) -> Step {
        let Some(request) = self.requests.get(&id).filter(|r| r.attempt == attempt) else {
            return Ok(());
        };
        let (from, body) = (request.from, request.body.clone());
        if !self.net.is_open(from, at) || !self.admits(from, at) {
            return Ok(());
        }
        let Some(staff) = self.staff.get(&at) else { return Ok(()) };
        let (region, event): (_, Box<dyn FnOnce(Token) -> Event>) = match body {
            Body::Directory(ask) => {
                let announced = matches!(ask, Ask::Announce(_));
                let answer = staff.room.bureau.answer(ask);
                if announced {
                    self.wake_clerk(now, at);
                }
                return self.send_answer(now, id, attempt, at, answer);
            }
            Body::Admin { region, admin } => {
                (region, Box::new(move |token| Event::Admin { token, region, admin }))
            }
            Body::Transfer { region, to } => {
                (region, Box::new(move |token| Event::Transfer { token, region, to }))
            }
            other => {
                let odd = Err(Error::InvalidArgument(format!("{other:?}")));
                return self.send_answer(now, id, attempt, at, odd);
            }
        };
        let Some((life, on)) = self.place(at, region) else { return Ok(()) };
        self.next_token += 1;
        let token = Token(self.next_token);
        self.serving.insert(token, Served { request: id, attempt, at });
        self.post(now, at, life, on, event(token))
    }

    /// An answer of a loop. `Some`: it was for somebody else.
    pub(super) fn served(
        &mut self,
        now: Time,
        token: Token,
        reply: Reply,
    ) -> Result<Option<Reply>, super::checker::Violation> {
        let Some(Served { request, attempt, at }) = self.serving.remove(&token) else {
            return Ok(Some(reply));
        };
        let answer = match reply {
            Reply::Transfer(done) => done.map(|()| Response::Done),
            other => administered(Ok(other)),
        };
        match &answer {
            Ok(Response::Regions(regions)) => {
                self.counts.splits[0] += regions.len().saturating_sub(1) as u64;
            }
            Ok(Response::Ids(first)) => self.operator.outdate(*first),
            _ => {}
        }
        let bureau = self.staff.get(&at).map(|staff| &staff.room.bureau);
        let answer = match (answer, bureau) {
            (Err(error), Some(bureau)) => Err(bureau.with_neighbours(error)),
            (answer, _) => answer,
        };
        self.send_answer(now, request, attempt, at, answer)?;
        Ok(None)
    }

    fn send_answer(
        &mut self,
        now: Time,
        id: u64,
        attempt: u32,
        at: StoreId,
        answer: crate::Result<Response>,
    ) -> Step {
        let Some(request) = self.requests.get(&id) else { return Ok(()) };
        let from = request.from;
        if let Some(arrival) = self.travels(now, at, from) {
            let trip = Trip::Answered(id, attempt, at, answer);
            self.world.at(arrival, Happening::Trip(trip));
        }
        Ok(())
    }

    fn request_answered(
        &mut self,
        now: Time,
        id: u64,
        attempt: u32,
        at: StoreId,
        reach: Reach,
        result: crate::Result<Response>,
    ) -> Step {
        if self.requests.get(&id).is_none_or(|request| request.attempt != attempt) {
            return Ok(());
        }
        let Some(mut request) = self.requests.remove(&id) else { return Ok(()) };
        let from = request.from;
        let error = match result {
            Err(error) if request.pinned.is_none() => error,
            result => {
                request.done.call(result);
                return self.go_on(now, from);
            }
        };
        self.learn_from(&request, at, reach, &error);
        let (left, jitter) = (request.deadline.since(now), self.rng.draw("request.jitter"));
        let access = request.body.access();
        let Decision::Again { at: next, after } =
            retry::decide(access, &error, attempt, left, jitter)
        else {
            if let Body::Admin { region, .. } = &request.body {
                self.trace.line(now, format_args!("{from} was refused by {region}: {error}"));
            }
            request.done.call(Err(error));
            return self.go_on(now, from);
        };
        request.attempt += 1;
        (request.target, request.avoid) = match next {
            Target::Same if reach == Reach::Answered => (Some(at), None),
            Target::Same | Target::Other => (None, Some(at)),
            Target::Store(store) if store != at => (Some(store), None),
            Target::Store(_) | Target::Reroute => (None, None),
        };
        self.requests.insert(id, request);
        self.world.after(after, Happening::Trip(Trip::Try(id)));
        self.take_requests(now, from);
        Ok(())
    }

    /// Takes what an error tells about the cluster, as a node's router does.
    fn learn_from(&self, request: &Request, at: StoreId, reach: Reach, error: &Error) {
        let Some(staff) = self.staff.get(&request.from) else { return };
        let (room, bureau) = (&staff.room, &staff.room.bureau);
        match error {
            Error::EpochNotMatch { current } => bureau.learn_regions(current),
            Error::NotLeader { region, leader } => {
                bureau.learn_leader(*region, leader.filter(|leader| *leader != at));
            }
            Error::RegionNotFound(region) if *region != FIRST_REGION => {
                bureau.learn_leader(*region, None);
                locate(room, *region);
            }
            _ if reach == Reach::Refused => {
                let region = match &request.body {
                    Body::Admin { region, .. } | Body::Transfer { region, .. } => *region,
                    _ => FIRST_REGION,
                };
                bureau.lost_leader(region, at);
                if bureau.is_lost(region, request.attempt) {
                    locate(room, region);
                }
            }
            _ => {}
        }
    }
}

/// Asks who knows where a region lives.
fn locate(room: &Arc<Room>, region: RegionId) {
    let Some(start) = room.bureau.whereabouts(region) else { return };
    let back = Arc::clone(room);
    let done = Done::new(move |result| {
        if let Ok(Response::Directory(Answer::Located(infos))) = result {
            back.bureau.learn_infos(&infos);
        }
    });
    let body = Body::Directory(Ask::Locate { start, count: NEIGHBOURS });
    room.send(Sent { to: None, body, timeout: PATIENCE, done });
}
