//! Fates: what became of a region that nobody answers for.
//!
//! A frozen region waits for its neighbour to take it in. Had that one moved to other stores and was then merged away itself,
//! nobody will ever answer the wish, and the tombstone that says so lies elsewhere. So the other stores on record are asked; one
//! that knows is proof enough, and what the proof rests on is told in [`region::merge`](crate::region::merge). "No" and silence
//! prove nothing: the region waits on.
//!
//! Asked are a few stores at a time, in turn, and the longer the more rarely: a wish comes again every few seconds, its
//! neighbour may only be without a leader for a moment, and a merge that is lost is none.
//!
//! If all stores with such a tombstone are out of reach, the frozen region waits until one is back. None of them leaves
//! meanwhile: to strike a store off, every region is asked by an entry of its log where its replicas are, and a frozen one
//! refuses to say ([`remove_store`](crate::client::Client::remove_store)).
//!
//! Not done: what to do if all of them have lost their disks, or left before the region was frozen. For the latter the target
//! must have moved off all stores of the source's leader and been merged away, and those that it had moved to must have been drained and
//! left, all between somebody's look at it and the freezing that he asked for.

use crate::client::ask::{Answer, Ask};
use crate::client::request::Response;
use crate::client::{Done, Office};
use crate::types::{RegionId, StoreId, Time};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Stores that are asked at once.
const STORES: usize = 32;
/// How long they have to answer: other wishes wait meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);
/// After the first questions.
const PAUSE: Duration = Duration::from_secs(5);
/// And after many.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Regions that are remembered to have been asked for.
const REGIONS: usize = 1 << 10;

/// When a region is asked for next.
#[derive(Debug)]
struct Asked {
    due: Time,
    pause: Duration,
    /// Stores asked so far.
    stores: usize,
}

/// The regions that nobody answers for.
#[derive(Default, Debug)]
pub(super) struct Fates {
    asked: BTreeMap<RegionId, Asked>,
}

impl Fates {
    /// Whether another store knows that the region was merged into another one, once it is said, or nobody else will
    /// answer. `false`: it is not known, or not yet time to ask again.
    pub async fn was_merged(&mut self, office: impl Office, region: RegionId) -> bool {
        let stores = self.next(region, office.bureau().others(), office.now());
        let (tell, told) = oneshot::channel();
        let tell = Arc::new(Mutex::new(Some(tell)));
        for store in stores {
            let tell = Arc::clone(&tell);
            let done = Done::new(move |answer| {
                let known = matches!(answer, Ok(Response::Directory(Answer::WasMerged(true))));
                if let Some(tell) = tell.lock().take_if(|_| known) {
                    // Nobody listens any more: fine.
                    let _ = tell.send(());
                }
            });
            office.ask_store(store, Ask::WasMerged(region), PATIENCE, done);
        }
        // Not held while they answer: a node that is closed meanwhile lets go of its directory.
        drop((office, tell));
        let known = told.await.is_ok();
        if known {
            // Its other neighbour may wait for it, too.
            self.asked.remove(&region);
        }
        known
    }

    /// Whom to ask now.
    fn next(&mut self, region: RegionId, mut others: Vec<StoreId>, now: Time) -> Vec<StoreId> {
        // Nobody wishes for those any more.
        self.asked.retain(|_, asked| now < asked.due.after(PAUSE_MAX * 2));
        if self.asked.len() >= REGIONS && !self.asked.contains_key(&region) {
            return Vec::new();
        }
        let first = Asked { due: now, pause: PAUSE, stores: 0 };
        let asked = self.asked.entry(region).or_insert(first);
        if now < asked.due || others.is_empty() {
            return Vec::new();
        }
        let count = others.len();
        others.rotate_left(asked.stores % count);
        others.truncate(STORES);
        asked.stores += others.len();
        asked.due = now.after(asked.pause);
        asked.pause = (asked.pause * 2).min(PAUSE_MAX);
        others
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::wait;
    use crate::config::StateKind;
    use crate::env::mem::MemDisk;
    use crate::transport::Hub;
    use crate::{Node, NodeConfig};
    use std::sync::Arc;

    fn stores(range: std::ops::RangeInclusive<u64>) -> Vec<StoreId> {
        range.map(StoreId).collect()
    }

    #[test]
    fn a_region_is_asked_for_more_and_more_rarely() {
        let (mut fates, mut now) = (Fates::default(), Time(0));
        let mut pauses = Vec::new();
        for _ in 0..6 {
            let asked = now;
            assert_eq!(fates.next(RegionId(7), stores(1..=3), now).len(), 3);
            while fates.asked[&RegionId(7)].due > now {
                assert!(fates.next(RegionId(7), stores(1..=3), now).is_empty());
                now = now.after(Duration::from_secs(1));
            }
            pauses.push(now.since(asked).as_secs());
        }
        assert_eq!(pauses, [5, 10, 20, 40, 60, 60]);
    }

    #[test]
    fn of_many_stores_some_are_asked_at_a_time_and_all_in_turn() {
        let (mut fates, mut now) = (Fates::default(), Time(0));
        let all = stores(1..=STORES as u64 * 2 + 8);
        let mut met = Vec::new();
        for _ in 0..3 {
            let turn = fates.next(RegionId(7), all.clone(), now);
            assert_eq!(turn.len(), STORES);
            met.extend(turn);
            now = now.after(PAUSE_MAX);
        }
        met.sort_unstable();
        met.dedup();
        assert_eq!(met, all);
        assert!(fates.next(RegionId(8), Vec::new(), now).is_empty(), "there is nobody else");
    }

    #[test]
    fn what_is_remembered_is_bounded_and_forgotten() {
        let (mut fates, now) = (Fates::default(), Time(0));
        for region in 0..REGIONS as u64 {
            assert_eq!(fates.next(RegionId(region), stores(2..=2), now), stores(2..=2));
        }
        assert!(fates.next(RegionId(1 << 20), stores(2..=2), now).is_empty(), "later");
        let later = now.after(PAUSE_MAX * 3);
        assert_eq!(fates.next(RegionId(1 << 20), stores(2..=2), later), stores(2..=2));
        assert_eq!(fates.asked.len(), 1);
    }

    /// Three nodes merge a region: each of the others says so, and nothing of the kind of one that lives, or never did.
    #[test]
    fn other_nodes_know_who_was_merged() {
        let hub = Hub::new();
        let open = |id: u64| {
            let config = NodeConfig {
                store_id: id,
                cluster: (1..=3).map(|id| (id, format!("node-{id}:1"))).collect(),
                data_dir: format!("node-{id}").into(),
                state: StateKind::Memory,
                regions: 1,
                tick_ms: 20,
                segment_bytes: 1 << 20,
                ..NodeConfig::default()
            };
            let disk = Arc::new(MemDisk::default());
            Node::builder(config).hub(hub.clone()).disk(disk).open().unwrap()
        };
        let nodes: Vec<Node> = (1..=3).map(open).collect();
        let client = nodes[0].client().blocking();
        client.put("k", "v").unwrap();
        let cut = client.split(["m"]).unwrap();
        let (left, right) = (cut[0].id, cut[1].id);
        client.merge(right, left).unwrap();
        let knows = |region| {
            let local = nodes[0].running().unwrap().local.clone();
            wait(Fates::default().was_merged(local, region))
        };
        let begun = std::time::Instant::now();
        while !knows(right) {
            assert!(begun.elapsed() < Duration::from_secs(60), "nobody has applied it");
        }
        assert!(!knows(left) && !knows(RegionId(1 << 50)));
        assert_eq!(client.get("k").unwrap().unwrap(), "v");
    }
}
