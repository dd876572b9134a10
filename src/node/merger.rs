//! The merger: a thread that carries out the merges which placement plans, one after the other, beside the
//! [`operator`](super::operator): a merge may have to move replicas first, and waits for the wishes of frozen regions,
//! which the operator must be free to carry out.
//!
//! A merge is begun only if both regions still have the shapes that it was planned for. What fails waits, longer from
//! time to time, before it is planned again; what is left half-way ends by itself (frozen) or is as good as before (a
//! replica moved). Nothing is remembered: who leads region 1 next plans anew.
//!
//! A replica that could not be moved takes its learner with it ([`Client::merge`]). One that is left because the node that merged was
//! gone by then is *in passing* by its role, and its region's leader removes it once it has caught up
//! ([`membership`](crate::region::membership)).

use crate::client::{Client, wait};
use crate::error::{Error, Result};
use crate::placement::{Action, Step};
use crate::types::{Region, RegionId, Time};
use crossbeam::channel::{Receiver, Sender, bounded};
use std::collections::BTreeMap;
use std::time::Duration;

/// Merges of one plan.
pub(crate) const MERGES: usize = 8;
/// How long a look at what is to be merged may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a merge may take, replicas that move before it included: the others wait meanwhile.
const WHOLE: Duration = Duration::from_secs(30);
/// How long a merge waits that has failed once.
const PAUSE: Duration = Duration::from_secs(5);
/// And one that has failed often.
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// How a merge ended.
pub(crate) struct Ended {
    pub source: RegionId,
    pub result: Result<Region>,
}

#[derive(Debug)]
struct Waiting {
    failures: u32,
    until: Time,
    over: bool,
}

/// The operator's end.
pub(crate) struct Merger {
    orders: Sender<Step>,
    ended: Receiver<Ended>,
    under_way: usize,
    waiting: BTreeMap<RegionId, Waiting>,
}

impl Merger {
    /// Starts the thread. It ends when the merger is gone.
    pub fn start(client: &Client) -> Result<Merger> {
        let (orders, ordered) = bounded::<Step>(MERGES);
        let (told, ended) = bounded(MERGES);
        let client = client.clone();
        let body = move || {
            for step in ordered {
                let ended = Ended { source: step.region, result: wait(merge(&client, &step)) };
                if told.send(ended).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("merger".into());
        thread.spawn(body).map_err(|e| Error::io("spawn thread", "merger", e))?;
        Ok(Merger::new(orders, ended))
    }

    /// One whose orders somebody else carries out.
    pub fn new(orders: Sender<Step>, ended: Receiver<Ended>) -> Merger {
        Merger { orders, ended, under_way: 0, waiting: BTreeMap::new() }
    }

    /// How many merges may be planned now.
    pub fn room(&self) -> usize {
        if self.under_way == 0 { MERGES } else { 0 }
    }

    /// Whether a region has to wait before it is merged.
    pub fn waits(&self, region: RegionId) -> bool {
        self.waiting.get(&region).is_some_and(|waiting| !waiting.over)
    }

    /// Takes a step of a plan on, if there is room.
    pub fn order(&mut self, step: &Step) {
        if self.orders.try_send(step.clone()).is_ok() {
            self.under_way += 1;
        }
    }

    /// What has ended since: the shapes that it has brought to light. `None`: nothing has changed, and nobody waits
    /// less than before.
    pub fn collect(&mut self, now: Time) -> Option<Vec<Region>> {
        let mut news = false;
        let mut shapes = Vec::new();
        while let Ok(Ended { source, result }) = self.ended.try_recv() {
            news = true;
            self.under_way = self.under_way.saturating_sub(1);
            match result {
                Ok(merged) => {
                    tracing::info!(region = %source, into = %merged.id, "a small region was merged");
                    self.waiting.remove(&source);
                    shapes.push(merged);
                }
                Err(error) => {
                    tracing::info!(region = %source, %error, "a small region was not merged");
                    self.put_off(source, now);
                    if let Error::EpochNotMatch { current } = error {
                        shapes.extend(current);
                    }
                }
            }
        }
        for waiting in self.waiting.values_mut().filter(|waiting| !waiting.over) {
            waiting.over = waiting.until <= now;
            news |= waiting.over;
        }
        // Long forgiven.
        self.waiting.retain(|_, waiting| waiting.until.after(PAUSE_MAX) > now);
        news.then_some(shapes)
    }

    fn put_off(&mut self, region: RegionId, now: Time) {
        let waiting = self.waiting.entry(region);
        let waiting = waiting.or_insert(Waiting { failures: 0, until: now, over: false });
        let pause = PAUSE.saturating_mul(1 << waiting.failures.min(16)).min(PAUSE_MAX);
        (waiting.failures, waiting.until, waiting.over) =
            (waiting.failures + 1, now.after(pause), false);
    }
}

/// Carries out the step of a plan.
pub(crate) async fn merge(client: &Client, step: &Step) -> Result<Region> {
    let Action::Merge { into, epoch } = step.action else {
        return Err(Error::InvalidArgument(format!("{:?} is no merge", step.action)));
    };
    for (region, planned) in [(step.region, step.epoch), (into, epoch)] {
        let known = client.with_timeout(PATIENCE).region(region).await?;
        if known.epoch != planned {
            return Err(Error::EpochNotMatch { current: vec![known] });
        }
    }
    client.with_timeout(WHOLE).merge_once(step.region, into).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_waits_longer_each_time() {
        let (orders, _ordered) = bounded(MERGES);
        let (told, ended) = bounded(MERGES);
        let mut merger = Merger::new(orders, ended);
        let mut now = Time(0);
        let source = RegionId(7);
        let mut pauses = Vec::new();
        for _ in 0..10 {
            told.send(Ended { source, result: Err(Error::Busy { what: "test" }) }).unwrap();
            assert_eq!(merger.collect(now), Some(vec![]));
            assert!(merger.waits(source) && !merger.waits(RegionId(8)));
            let began = now;
            while merger.waits(source) {
                assert!(merger.collect(now).is_none());
                now = now.after(PAUSE);
                merger.collect(now);
            }
            pauses.push(now.since(began).as_secs());
        }
        assert_eq!(pauses[..4], [5, 10, 20, 40]);
        assert_eq!(pauses[8..], [600, 600]);
        let merged = Region { id: RegionId(3), ..Region::default() };
        told.send(Ended { source, result: Ok(merged.clone()) }).unwrap();
        assert_eq!(merger.collect(now), Some(vec![merged]));
        assert!(merger.waiting.is_empty());
    }
}
