//! One routed request on its way: aimed at a replica, sent, and sent again while that is safe.

use super::Done;
use super::local::Inner;
use super::parked::{LOOK_EVERY, Waiting};
use super::request::{Body, Response, Route};
use crate::error::{Error, Result};
use crate::router::retry::{self, Access, Decision, Target};
use crate::store::ReadLevel;
use crate::types::{StoreId, Time};
use std::sync::Arc;
use std::time::Duration;

/// A request for one region that has not been answered yet.
pub(super) struct Job {
    pub body: Body,
    pub route: Route,
    pub patience: Patience,
    pub attempt: u32,
    /// Where the next attempt goes, if an answer said so.
    target: Option<StoreId>,
    /// Who did not know better last time.
    avoid: Option<StoreId>,
    /// Why it is tried again.
    last: Option<Error>,
    aim: Aim,
    /// Who led the region when it was last tried, as far as the replica here knew.
    led: Option<StoreId>,
    pub done: Done<Response>,
}

/// How long a request is tried here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub started: Time,
    /// What has no answer by then gets none.
    pub deadline: Time,
    /// From then on what cannot be sent to another node is given back.
    elsewhere: Time,
}

/// A node that reaches nobody keeps no remote client longer: it knows other nodes.
const ALONE_MAX: Duration = Duration::from_secs(1);

impl Patience {
    /// Of a caller who has nobody else to ask.
    pub fn of(now: Time, timeout: Duration) -> Patience {
        let deadline = now.after(timeout);
        Patience { started: now, deadline, elsewhere: deadline }
    }

    /// Of a remote client.
    pub fn of_remote(now: Time, timeout: Duration) -> Patience {
        let elsewhere = now.after(ALONE_MAX.min(timeout / 4));
        Patience { elsewhere, ..Patience::of(now, timeout) }
    }

    /// Whether what cannot be sent to another node is to be given back.
    pub fn is_better_spent_elsewhere(&self, now: Time) -> bool {
        now >= self.elsewhere
    }
}

/// How far an attempt got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reach {
    /// The replica's node has (or may have) seen it.
    Answered,
    /// It was never sent: the transport refused it.
    Refused,
}

impl Body {
    /// What it does, for whoever sends it again.
    pub(crate) fn access(&self) -> Access {
        match self {
            Body::Write { .. } | Body::Execute { .. } => Access::Write,
            Body::Admin { .. } => Access::Shape,
            Body::Read { .. }
            | Body::Scan { .. }
            | Body::Status { .. }
            | Body::Transfer { .. }
            | Body::Regions { .. }
            | Body::Directory(_) => Access::Read,
        }
    }
}

/// Where a request may go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Aim {
    /// To whoever may be able to answer it, and again.
    Answerer,
    /// To one store, once.
    Pinned,
}

impl Job {
    pub fn new(
        body: Body,
        route: Route,
        patience: Patience,
        attempt: u32,
        done: Done<Response>,
    ) -> Job {
        let (target, avoid, last, led) = (None, None, None, None);
        let aim = Aim::Answerer;
        Job { body, route, patience, attempt, target, avoid, last, aim, led, done }
    }

    /// It is for the store that it is sent to, and for nobody else.
    pub fn pinned(mut self) -> Job {
        self.aim = Aim::Pinned;
        self
    }

    /// Forgets where the next attempt was to go.
    pub fn aim_anew(&mut self) {
        (self.target, self.avoid) = (None, None);
    }

    /// What was heard before and says more than this error, which says that the time was up. Of a request that was not begun with
    /// that is whatever came before. Of one that had no answer it is what the same store had been waiting for until then; unless it
    /// may have changed something, for that must be told.
    fn reason(&mut self, at: StoreId, error: &Error) -> Option<Error> {
        let waited = self.target == Some(at) && matches!(self.last, Some(Error::Busy { .. }));
        let says_less = match error {
            Error::Busy { what } => *what == LATE,
            Error::Timeout { .. } => waited && self.body.access() == Access::Read,
            _ => false,
        };
        self.last.take().filter(|_| says_less)
    }

    /// Whether any replica can answer, not the leader alone.
    fn anywhere(&self) -> bool {
        match self.body {
            Body::Read { level, .. } | Body::Scan { level, .. } => level != ReadLevel::Lease,
            _ => false,
        }
    }
}

/// Said of a request whose time ran out on its way.
pub(super) const LATE: &str = "no replica took the request in time";

impl Inner {
    /// Sends the next attempt.
    pub fn run(self: &Arc<Self>, mut job: Job) {
        if self.now() >= job.patience.deadline {
            // A pause may end late: what it was for says more.
            let late = Error::Busy { what: LATE };
            let error = job.last.take().unwrap_or(late);
            return job.done.call(Err(error));
        }
        job.led = self.driver.registry().get(job.route.region).and_then(|share| share.leader());
        let to = self.aim(&job);
        if to != self.store {
            return self.forward(to, job);
        }
        let (route, body, deadline) = (job.route, job.body.clone(), job.patience.deadline);
        let back = Arc::clone(self);
        let done = Done::new(move |result| back.finish(job, to, Reach::Answered, result));
        self.execute(route, body, deadline, done);
    }

    fn aim(&self, job: &Job) -> StoreId {
        let anywhere = job.anywhere();
        let blind = || self.bureau.aim(job.route.region, job.attempt, anywhere, job.avoid);
        job.target.unwrap_or_else(blind)
    }

    /// Takes the answer of an attempt: hands it on, or tries again.
    pub fn finish(
        self: &Arc<Self>,
        mut job: Job,
        at: StoreId,
        reach: Reach,
        result: Result<Response>,
    ) {
        let error = match result {
            Ok(response) => {
                if at != self.store && !job.anywhere() {
                    self.bureau.learn_leader(job.route.region, Some(at));
                }
                return job.done.call(Ok(response));
            }
            Err(error) if at == self.store => self.bureau.with_neighbours(error),
            Err(error) => error,
        };
        if job.aim == Aim::Pinned {
            return job.done.call(Err(error));
        }
        let now = self.now();
        let error = match error {
            Error::Timeout { after_ms: 0, what } => Error::Timeout {
                after_ms: now.since(job.patience.started).as_millis() as u64,
                what,
            },
            error => error,
        };
        self.learn(&job, at, reach, &error);
        if reach == Reach::Refused && job.patience.is_better_spent_elsewhere(now) {
            return job.done.call(Err(error));
        }
        let left = job.patience.deadline.since(now);
        let decision = retry::decide(job.body.access(), &error, job.attempt, left, self.jitter());
        let reason = job.reason(at, &error).unwrap_or_else(|| error.clone());
        let Decision::Again { at: target, after } = decision else {
            return job.done.call(Err(reason));
        };
        if self.driver.stop_reason().is_some() {
            return job.done.call(Err(error));
        }
        if let Error::Corruption { .. } = error {
            tracing::error!(%error, store = %at, "a read met damage: another replica is asked, if there is one");
            job.body.ask_anywhere();
        }
        job.last = Some(reason);
        job.attempt += 1;
        job.avoid = None;
        job.target = None;
        match target {
            Target::Same if reach == Reach::Answered => job.target = Some(at),
            Target::Same | Target::Other => job.avoid = Some(at),
            Target::Store(store) if store == at => {}
            Target::Store(store) => job.target = Some(store),
            Target::Reroute => {}
        }
        if after.is_zero() {
            self.again(job, target);
        } else if after <= LOOK_EVERY {
            let back = Arc::clone(self);
            self.driver.timer().after(after, Box::new(move || back.again(job, target)));
        } else {
            let led = job.led;
            self.wait(Waiting { job, target, until: now.after(after), led });
        }
    }

    /// The next try.
    pub fn again(self: &Arc<Self>, job: Job, target: Target) {
        match target {
            Target::Reroute => {
                let Job { body, patience, attempt, last, done, .. } = job;
                if let Some(last) = last.filter(|_| self.now() >= patience.deadline) {
                    // The pause ended late: what it was for says more than that there is no time.
                    return done.call(Err(last));
                }
                self.start(body, patience, attempt, done);
            }
            _ => self.run(job),
        }
    }

    /// Takes what an error tells about the cluster.
    fn learn(self: &Arc<Self>, job: &Job, at: StoreId, reach: Reach, error: &Error) {
        match error {
            Error::EpochNotMatch { current } => self.bureau.learn_regions(current),
            Error::NotLeader { leader, .. } => {
                self.bureau.learn_leader(job.route.region, leader.filter(|l| *l != at))
            }
            // Its replicas have moved, or it was merged: who else knows where to?
            Error::RegionNotFound(region) => {
                let known = self.routes.read().get(*region).cloned();
                if let Some(route) = known {
                    if route.leader == Some(at) {
                        self.bureau.learn_leader(job.route.region, None);
                    }
                    self.bureau.look_around(&route.region.range.start, 1);
                }
                self.ask_around(*region, job.attempt, job.patience.deadline);
            }
            _ if reach == Reach::Refused => {
                self.bureau.lost_leader(job.route.region, at);
                // It may have moved away from all those who are gone.
                if self.bureau.is_lost(job.route.region, job.attempt) {
                    self.ask_around(job.route.region, job.attempt, job.patience.deadline);
                }
            }
            _ => {}
        }
    }
}
