//! A frozen region's wish is carried out, as its node's operator does, by production's own client: what that asks is answered
//! here, one thing after the other.

use super::*;
use crate::client::merge::Merged;
use crate::client::request::{Body, Response};
use crate::client::{Backend, Client, Done};
use crate::region::merge::was_merged;
use parking_lot::Mutex;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// What the client asks, until somebody looks.
#[derive(Default)]
struct Asked(Mutex<Vec<(Body, Done<Response>)>>);

impl Backend for Asked {
    fn call(&self, body: Body, _: Duration, done: Done<Response>) {
        self.0.lock().push((body, done));
    }

    fn now(&self) -> Time {
        Time(0) // nobody waits here
    }
}

impl Stage {
    /// Carries out what a frozen region wished for last, as an operator does: where the answer is a final no, or nobody has
    /// one and some store that can be asked knows that its neighbour was merged away, the region is told to thaw. A setback
    /// is that of the commit.
    pub fn commit(&mut self, source: RegionId) -> Outcome<()> {
        self.wish(source)?;
        let Some(wish) = self.hand().wishes.get(&source).cloned() else {
            return Err(Setback::Silence("it wishes for nothing"));
        };
        let asked = Arc::new(Asked::default());
        let client = Client::new(asked.clone(), PATIENCE);
        let told = self.told_of(source, wish.merging.target);
        let mut ended = pin!(client.carry_out(wish, async |_| told));
        let mut setback = None;
        loop {
            let mut context = Context::from_waker(Waker::noop());
            if let Poll::Ready(ended) = ended.as_mut().poll(&mut context) {
                debug_assert!(setback.is_some() || matches!(ended, Ok(Merged::Yes)));
                return setback.map_or(Ok(()), Err);
            }
            let next = asked.0.lock().pop();
            let Some((Body::Admin { region, admin }, done)) = next else {
                return Err(Setback::Silence("nothing is asked"));
            };
            let answer = match self.admin(region, admin) {
                Ok(_) => Ok(Response::Done),
                Err(Setback::Refused(refused)) => {
                    setback.get_or_insert(Setback::Refused(refused.clone()));
                    Err(refused)
                }
                Err(silence @ Setback::Silence(_)) => {
                    setback.get_or_insert(silence);
                    Err(Error::RegionNotFound(region))
                }
                Err(broken) => return Err(broken),
            };
            done.call(answer);
        }
    }

    /// Whether a store that the source's leader can ask knows that a region was merged into another.
    fn told_of(&self, source: RegionId, region: RegionId) -> bool {
        let Ok((leader, _)) = self.leader(source) else { return false };
        let net = &self.cluster.net;
        let reached = self.cluster.nodes.iter().filter(|(id, _)| {
            **id != leader && net.is_open(leader, **id) && net.is_open(**id, leader)
        });
        let record = |node: &SimNode| node.running.as_ref()?.kv.view().ok()?.record(region);
        reached.filter_map(|(_, node)| record(node)).any(|record| was_merged(&record))
    }
}
