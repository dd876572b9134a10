//! [`Goal`]: something that takes several requests, with one deadline for all of them together.
//!
//! A goal looks at how things are, asks for what is missing, and looks again. What may be otherwise at the next look (a
//! replica that is behind, another change, a node that does not answer) is waited for until the caller's time is up; what
//! never will be is told at once. A goal that was not reached in time leaves nothing undecided: each of its steps was made for
//! one shape of a region and either took place or did not. The last of them may still come, and to begin again is safe.

use super::Client;
use super::api::{awaited, heard};
use crate::error::{Error, Result};
use crate::router::retry;
use crate::types::Time;
use std::time::Duration;

/// How long one request of a goal is tried before the goal looks anew: a node that is silent must not use up the time in
/// which others would have answered.
const LOOK: Duration = Duration::from_secs(2);
/// With less time left there is no other look.
const LEAST: Duration = Duration::from_millis(50);

/// A goal on its way.
pub(super) struct Goal {
    client: Client,
    deadline: Time,
    /// Looks that came to nothing since the last step.
    failures: u32,
    /// Why the last one did, unless it only ran out of time.
    said: Option<Error>,
}

impl Goal {
    /// The client's time limit is that of the whole.
    pub fn of(client: &Client) -> Goal {
        let deadline = client.backend.now().after(client.timeout);
        Goal { client: client.clone(), deadline, failures: 0, said: None }
    }

    /// Three quarters of the time that is left: for what has to be taken back if it fails.
    pub fn most(&self) -> Goal {
        let deadline = self.now().after(self.left() / 4 * 3);
        Goal { client: self.client.clone(), deadline, failures: 0, said: None }
    }

    /// By the clock that its time is counted by.
    pub fn now(&self) -> Time {
        self.client.backend.now()
    }

    /// The time that is left.
    pub fn left(&self) -> Duration {
        self.deadline.since(self.now())
    }

    /// A client for one request.
    pub fn client(&self) -> Client {
        self.client.with_timeout(self.left().min(LOOK))
    }

    /// A client for one request that may take all the time that is left.
    pub fn whole(&self) -> Client {
        self.client.with_timeout(self.left())
    }

    /// A step was taken.
    pub fn is_nearer(&mut self) {
        (self.failures, self.said) = (0, None);
    }

    /// After a refusal: `Ok` when it is time for another look. An error is final, or there is no more time: then the last
    /// one that said why.
    pub async fn again(&mut self, error: Error) -> Result<()> {
        if !may_pass(&error) {
            return Err(error);
        }
        tracing::debug!(%error, left = ?self.left(), "not yet");
        let pause = retry::pause(self.failures, self.deadline.0 ^ u64::from(self.failures));
        self.failures += 1;
        if self.left() <= pause + LEAST {
            return Err(match self.said.take() {
                Some(said) if is_mere_lateness(&error) => said,
                _ => error,
            });
        }
        if !is_mere_lateness(&error) {
            self.said = Some(error);
        }
        self.rest(pause).await
    }

    /// A pause, if there is time for it.
    async fn rest(&self, pause: Duration) -> Result<()> {
        let (done, told) = awaited();
        self.client.backend.pause(pause, done);
        heard(told).await
    }

    /// Asks until there is an answer.
    pub async fn insist<T, F>(&mut self, ask: impl Fn(Client) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        loop {
            match ask(self.client()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => self.again(error).await?,
            }
        }
    }
}

/// Whether it may be otherwise at the next look. Steps are made for one shape, so one whose outcome is unknown is no reason
/// to stop.
fn may_pass(error: &Error) -> bool {
    let unknown = matches!(error, Error::Timeout { .. } | Error::Ambiguous { .. });
    unknown || error.is_retryable() || matches!(error, Error::Quarantined { .. })
}

/// Whether it says nothing but that there was no time.
fn is_mere_lateness(error: &Error) -> bool {
    match error {
        Error::Timeout { .. } => true,
        Error::Busy { what } => *what == super::job::LATE,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::ask::Answer;
    use crate::client::request::{Body, Response};
    use crate::client::{Backend, Done, wait};
    use crate::codec::admin::Admin;
    use crate::codec::report::Cluster;
    use crate::types::{Epoch, Peer, PeerId, Region, RegionId, Role, StoreId};
    use parking_lot::Mutex;
    use std::sync::Arc;

    const REGION: RegionId = RegionId(7);
    const LAGS: &str = "a learner that has not caught up";

    /// A region whose learner never catches up, by a clock of its own.
    #[derive(Default)]
    struct Lagging {
        now: Mutex<Duration>,
        /// The limits of all requests.
        limits: Mutex<Vec<Duration>>,
        /// From then on nobody answers.
        silent_from: Option<Duration>,
        gone: bool,
    }

    impl Backend for Lagging {
        fn call(&self, body: Body, timeout: Duration, done: Done<Response>) {
            self.limits.lock().push(timeout);
            let silent = self.silent_from.is_some_and(|from| *self.now.lock() >= from);
            let (took, answer) = match body {
                _ if self.gone => {
                    (Duration::ZERO, Err(Error::Stopped { reason: "the node is closed".into() }))
                }
                _ if silent => {
                    (timeout, Err(Error::Timeout { after_ms: 1, what: "a node's answer" }))
                }
                // Any store takes replicas.
                Body::Directory(_) => {
                    let cluster = Answer::Cluster(Cluster::default());
                    (Duration::ZERO, Ok(Response::Directory(cluster)))
                }
                // What can be tried again is tried again, for as long as the request may take.
                Body::Admin { admin: Admin::ChangePeers { .. }, .. } => {
                    (timeout, Err(Error::Busy { what: LAGS }))
                }
                _ => {
                    let peer = Peer { id: PeerId(1), store: StoreId(4), role: Role::Learner };
                    let epoch = Epoch { conf_ver: 1, version: 1 };
                    let now = Region { id: REGION, epoch, peers: vec![peer], ..Region::default() };
                    (Duration::from_millis(1), Err(Error::EpochNotMatch { current: vec![now] }))
                }
            };
            *self.now.lock() += took;
            done.call(answer);
        }

        fn now(&self) -> Time {
            match self.gone {
                true => Time(u64::MAX),
                false => Time(0).after(*self.now.lock()),
            }
        }

        fn pause(&self, pause: Duration, done: Done<()>) {
            *self.now.lock() += pause;
            done.call(Ok(()));
        }
    }

    /// Asks for a promotion with this limit: the error, how long it took, and the limits of the requests.
    fn promoted(node: Lagging, limit: Duration) -> (Error, Duration, Vec<Duration>) {
        let node = Arc::new(node);
        let client = Client::new(node.clone(), limit);
        let error = wait(client.promote(REGION, StoreId(4))).unwrap_err();
        let (took, limits) = (*node.now.lock(), node.limits.lock().clone());
        (error, took, limits)
    }

    /// Each of up to sixty-four looks had all of the client's time for itself: `--timeout 10s` was eleven minutes.
    #[test]
    fn the_limit_is_that_of_the_whole() {
        for ms in [1, 200, 3_000, 60_000, 600_000] {
            let limit = Duration::from_millis(ms);
            let (error, took, limits) = promoted(Lagging::default(), limit);
            assert!(matches!(error, Error::Busy { what: LAGS }), "{limit:?}: {error}");
            // The first look takes a millisecond more than there is, if there is but one.
            assert!(took <= limit + Duration::from_millis(1), "{limit:?}: {took:?}");
            assert!(took + LOOK >= limit, "{limit:?}: given up after {took:?}");
            assert!(limits.iter().all(|one| *one <= LOOK.min(limit)), "{limit:?}: {limits:?}");
        }
    }

    /// A node that falls silent at the end does not hide what stood in the way before.
    #[test]
    fn that_the_time_is_up_is_not_the_reason() {
        let silent_from = Some(Duration::from_secs(9));
        let node = Lagging { silent_from, ..Lagging::default() };
        let (error, took, _) = promoted(node, Duration::from_secs(20));
        assert!(matches!(error, Error::Busy { what: LAGS }), "{error}");
        assert!(took <= Duration::from_secs(20), "{took:?}");
        let silent = Lagging { silent_from: Some(Duration::ZERO), ..Lagging::default() };
        let (error, ..) = promoted(silent, Duration::from_secs(20));
        assert!(matches!(error, Error::Timeout { .. }), "nobody ever said anything: {error}");
    }

    #[test]
    fn what_will_never_be_is_told_at_once() {
        let client = Client::new(Arc::new(Lagging::default()), Duration::from_secs(20));
        let error = wait(client.promote(REGION, StoreId(5))).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
        let closed = Lagging { gone: true, ..Lagging::default() };
        let (error, _, limits) = promoted(closed, Duration::from_secs(20));
        assert!(matches!(error, Error::Stopped { .. }), "{error}");
        assert_eq!(limits.len(), 1);
    }
}
