//! What a remote client knows of where regions are led, so that a request goes to the node that can answer it. A
//! node that leads nothing of it forwards it: right, and another hop.
//!
//! Learnt from the directory, a few hundred regions at a time, when a key is used of whose region nothing is known or
//! nothing fresh; one question at a time, beside the requests. Nothing rests on it: what is stale costs the hop
//! that it would have saved.

use super::request::Body;
use crate::codec::command;
use crate::codec::report::RegionInfo;
use crate::router::{RangeCache, Route};
use crate::types::StoreId;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long what was learnt is taken as it is.
const FRESH: Duration = Duration::from_secs(3);
/// After a question, time until the next.
const PAUSE: Duration = Duration::from_millis(20);
/// Regions asked for at once.
pub(super) const REGIONS: usize = 256;
/// Regions remembered, at most: a client of more begins anew.
const REGIONS_MAX: usize = 1 << 16;

#[derive(Default)]
struct Known {
    routes: RangeCache,
    /// When each was learnt, by its start.
    learnt: BTreeMap<Bytes, Instant>,
}

/// Where regions are led, as far as is known.
#[derive(Default)]
pub(super) struct Hints {
    known: RwLock<Known>,
    asking: AtomicBool,
    asked: Mutex<Option<Instant>>,
}

/// What to do about a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Hint {
    /// Who leads its region, perhaps.
    pub leader: Option<StoreId>,
    /// The directory should be asked about the regions from here on: whoever does says [`Hints::heard`].
    pub ask: Option<Bytes>,
}

/// The first key that a request is about.
fn key_of(body: &Body) -> Option<Bytes> {
    match body {
        Body::Write { command } => first_key(command).map(|key| command.slice(key)),
        Body::Execute { key, .. } => Some(key.clone()),
        Body::Read { keys, .. } => keys.first().cloned(),
        Body::Scan { range, .. } => Some(range.start.clone()),
        Body::Status { .. }
        | Body::Transfer { .. }
        | Body::Admin { .. }
        | Body::Regions { .. }
        | Body::Directory(_) => None,
    }
}

/// Where the first key of a batch lies in it.
fn first_key(command: &[u8]) -> Option<Range<usize>> {
    Some(command::ops(command).next()?.ok()?.key())
}

impl Known {
    fn is_fresh(&self, route: Option<&Route>, now: Instant) -> bool {
        let learnt = route.and_then(|route| self.learnt.get(&route.region.range.start));
        learnt.is_some_and(|at| now.saturating_duration_since(*at) < FRESH)
    }
}

impl Hints {
    /// What is known of the region that a request is about.
    pub fn of(&self, body: &Body, now: Instant) -> Hint {
        let Some(key) = key_of(body) else { return Hint { leader: None, ask: None } };
        let (leader, fresh) = {
            let known = self.known.read();
            let route = known.routes.lookup(&key);
            (route.and_then(|route| route.leader), known.is_fresh(route, now))
        };
        let ask = (!fresh && self.may_ask(now)).then_some(key);
        Hint { leader, ask }
    }

    /// Who leads the regions of many writes, and what to ask: of all whose region is not known, and one of the others.
    pub fn of_writes<'a>(
        &self,
        commands: impl ExactSizeIterator<Item = &'a Bytes>,
        probe: usize,
        now: Instant,
    ) -> (Vec<Option<StoreId>>, Option<Bytes>) {
        let probe = probe.checked_rem(commands.len());
        let mut leaders = Vec::with_capacity(commands.len());
        let mut ask = None;
        let known = self.known.read();
        for (n, command) in commands.enumerate() {
            let Some(key) = first_key(command) else {
                leaders.push(None);
                continue;
            };
            let route = known.routes.lookup(&command[key.clone()]);
            let leader = route.and_then(|route| route.leader);
            if (leader.is_none() || Some(n) == probe) && !known.is_fresh(route, now) {
                ask.get_or_insert_with(|| command.slice(key));
            }
            leaders.push(leader);
        }
        drop(known);
        (leaders, ask.filter(|_| self.may_ask(now)))
    }

    fn may_ask(&self, now: Instant) -> bool {
        if self.asking.load(Ordering::Relaxed) {
            return false;
        }
        let mut asked = self.asked.lock();
        if asked.is_some_and(|at| now.saturating_duration_since(at) < PAUSE) {
            return false;
        }
        *asked = Some(now);
        !self.asking.swap(true, Ordering::Relaxed)
    }

    /// The directory answered, or did not.
    pub fn heard(&self, infos: &[RegionInfo], now: Instant) {
        let mut known = self.known.write();
        if known.learnt.len() > REGIONS_MAX {
            *known = Known::default();
        }
        for info in infos {
            known.routes.update(info.region.clone());
            known.routes.set_leader(info.region.id, info.leader);
            known.learnt.insert(info.region.range.start.clone(), now);
        }
        drop(known);
        self.asking.store(false, Ordering::Relaxed);
    }

    /// A request that went where it said was not served there.
    pub fn misled(&self, body: &Body) {
        let Some(key) = key_of(body) else { return };
        let mut known = self.known.write();
        let Some(id) = known.routes.lookup(&key).map(|route| route.region.id) else { return };
        known.routes.set_leader(id, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ReadLevel;
    use crate::types::{Epoch, KeyRange, Peer, PeerId, Region, RegionId, Role};

    fn info(id: u64, start: &'static str, end: &'static str, leader: Option<u64>) -> RegionInfo {
        let peer = |store| Peer { id: PeerId(store), store: StoreId(store), role: Role::Voter };
        RegionInfo {
            region: Region {
                id: RegionId(id),
                range: KeyRange::new(start, end),
                epoch: Epoch { conf_ver: 1, version: 1 },
                peers: [1, 2, 3].map(peer).to_vec(),
            },
            leader: leader.map(StoreId),
            bytes: 0,
        }
    }

    fn read(key: &'static str) -> Body {
        Body::Read { level: ReadLevel::Linearizable, keys: vec![key.into()] }
    }

    #[test]
    fn it_asks_once_and_then_knows_for_a_while() {
        let (hints, start) = (Hints::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(hints.of(&read("k"), at(0)), Hint { leader: None, ask: Some("k".into()) });
        assert_eq!(hints.of(&read("k"), at(1000)).ask, None, "somebody asks already");
        hints.heard(&[info(1, "", "m", Some(2)), info(2, "m", "", None)], at(1000));
        assert_eq!(hints.of(&read("k"), at(1001)), Hint { leader: Some(StoreId(2)), ask: None });
        assert_eq!(hints.of(&read("z"), at(1001)), Hint { leader: None, ask: None });
        let old = hints.of(&read("k"), at(4001));
        assert_eq!(old, Hint { leader: Some(StoreId(2)), ask: Some("k".into()) });
        hints.heard(&[], at(4002));
        assert_eq!(hints.of(&read("k"), at(4003)).ask, None, "not in a rush");
        assert!(hints.of(&read("k"), at(4100)).ask.is_some());
    }

    #[test]
    fn who_did_not_serve_is_not_named_again() {
        let (hints, now) = (Hints::default(), Instant::now());
        hints.heard(&[info(1, "", "", Some(2))], now);
        hints.misled(&read("k"));
        assert_eq!(hints.of(&read("k"), now).leader, None);
        assert_eq!(hints.of(&Body::Status { region: None }, now), Hint { leader: None, ask: None });
    }
}
