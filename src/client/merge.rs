//! What operators ask: a region for its neighbour. The protocol stands in [`region::merge`](crate::region::merge).

use super::goal::Goal;
use super::request::{Body, Response};
use super::{Client, odd};
use crate::codec::admin::{Admin, Change};
use crate::codec::merge::Prepare;
use crate::error::{Error, Outcome, Result};
use crate::region::merge::{FROZEN, is_later, live_together};
use crate::store::MergeWish;
use crate::types::{Epoch, Peer, PeerId, Region, RegionId, Role, StoreId};
use std::collections::BTreeSet;

/// How a merge ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Merged {
    /// The target has taken the source in.
    Yes,
    /// It never will; the source is thawed.
    Never,
}

impl Client {
    /// Merges a region into its neighbour, which then has the keys of both; gives that one, or, where it was cut or merged
    /// itself meanwhile, whoever has the source's first keys now. Where the replicas of the two
    /// live on different stores, those of `source` are moved first, with their data. Then no data moves; the
    /// source takes no requests for a few round trips, clients notice nothing but a retry.
    ///
    /// The client's time limit is that of the whole; of it, up to three quarters are for moving replicas. The same call again
    /// is safe: it goes on with what was begun, and waits for a merge that is under way.
    ///
    /// Errors: [`Error::InvalidArgument`] where it cannot be (no neighbours; a region that keeps the cluster's
    /// record), [`Error::Busy`] where it could not be in time (a replica that is behind, or out of reach),
    /// [`Error::EpochNotMatch`] when another change of the target's shape came first: the source is as before then.
    /// After any other error the merge may be under way, and ends by itself one way or the other. A replica that could not
    /// be moved leaves no learner behind, as long as the source's leader answers.
    pub async fn merge(&self, source: RegionId, target: RegionId) -> Result<Region> {
        let mut goal = Goal::of(self);
        // What was to be frozen, and perhaps is: nobody has said.
        let mut asked: Option<(Region, Region)> = None;
        loop {
            if let Some((from, into)) = asked.take()
                && goal.has_gone(&from).await?
            {
                return goal.wait_merged(&as_frozen(from), &into).await;
            }
            let into = goal.region(target).await?;
            let from = goal.bring_together(source, &into).await?;
            match goal.freeze(&from, &into).await {
                Ok(frozen) => return goal.wait_merged(&frozen, &into).await,
                // An earlier call has frozen it.
                Err(error) if is_frozen(&error) => return goal.wait_merged(&from, &into).await,
                Err(error) => {
                    if error.outcome() == Outcome::Unknown {
                        asked = Some((from, into));
                    }
                    goal.again(error).await?;
                }
            }
        }
    }

    /// The same, but what cannot be now is not tried again.
    pub(crate) async fn merge_once(&self, source: RegionId, target: RegionId) -> Result<Region> {
        let mut goal = Goal::of(self);
        let into = goal.region(target).await?;
        let from = goal.bring_together(source, &into).await?;
        let frozen = goal.freeze(&from, &into).await?;
        goal.wait_merged(&frozen, &into).await
    }

    /// Carries out what a frozen region wishes for: it is taken in, or thawed, or waits on. Should nobody answer for its
    /// target, `was_merged` is asked whether that one is known to be merged away, see
    /// [`was_merged`](crate::region::merge::was_merged).
    pub(crate) async fn carry_out(
        &self,
        wish: MergeWish,
        was_merged: impl AsyncFnOnce(RegionId) -> bool,
    ) -> Result<Merged> {
        let MergeWish { source, merging, commit } = wish;
        let target = merging.target;
        let admin = Admin::CommitMerge(commit);
        let refused = match self.call(Body::Admin { region: target, admin }).await {
            Ok(_) => return Ok(Merged::Yes),
            Err(refused) => refused,
        };
        let never = match &refused {
            Error::EpochNotMatch { current } => {
                let known = current.iter().find(|region| region.id == target);
                known.is_some_and(|region| is_later(region.epoch, merging.epoch))
            }
            Error::Stopped { .. } => false,
            // Whoever spoke last, another node that is out of reach perhaps: a proof needs no occasion.
            _ => was_merged(target).await,
        };
        if !never {
            return Err(refused);
        }
        let admin = Admin::RollBackMerge { at: merging.at.index };
        self.call(Body::Admin { region: source, admin }).await?;
        Ok(Merged::Never)
    }
}

/// The shape of a region that was frozen in this one.
fn as_frozen(region: Region) -> Region {
    let Epoch { conf_ver, version } = region.epoch;
    Region { epoch: Epoch { conf_ver: conf_ver + 1, version: version + 1 }, ..region }
}

/// Whether a region refuses everything because it is frozen already.
fn is_frozen(error: &Error) -> bool {
    matches!((error, FROZEN), (Error::Busy { what }, Error::Busy { what: frozen }) if *what == frozen)
}

impl Goal {
    /// Freezes a region for its neighbour.
    async fn freeze(&self, source: &Region, target: &Region) -> Result<Region> {
        let prepare = Prepare { epoch: source.epoch, target: target.clone(), first: 0 };
        let admin = Admin::PrepareMerge(prepare);
        match self.client().call(Body::Admin { region: source.id, admin }).await? {
            Response::Regions(frozen) => frozen.into_iter().next().ok_or_else(odd),
            _ => Err(odd()),
        }
    }

    /// Whether a region that was to be frozen in this shape is, or has gone already.
    async fn has_gone(&mut self, from: &Region) -> Result<bool> {
        loop {
            match self.client().region(from.id).await {
                Ok(now) => return Ok(now.epoch == as_frozen(from.clone()).epoch),
                Err(Error::RegionNotFound(_)) => return Ok(true),
                Err(error) => self.again(error).await?,
            }
        }
    }

    /// Moves the source's replicas to the stores of the target's.
    async fn bring_together(&mut self, source: RegionId, target: &Region) -> Result<Region> {
        let mut known = self.region(source).await?;
        let together = live_together(&known, target);
        let has = |roles: &[Role]| {
            let peers = known.peers.iter().chain(&target.peers);
            !together && peers.into_iter().any(|peer| roles.contains(&peer.role))
        };
        if has(&[Role::Passing, Role::Incoming, Role::Demoting]) {
            // They arrive, or go.
            return Err(Error::Busy { what: "another change of the region's shape" });
        }
        if has(&[Role::Learner]) {
            let what = format!("{source} and {} have learners on different stores", target.id);
            return Err(Error::InvalidArgument(what));
        }
        let stores = |region: &Region| -> BTreeSet<StoreId> {
            region.peers.iter().map(|peer| peer.store).collect()
        };
        let (mut from, to) = (stores(&known), stores(target));
        // What cannot be moved has to be taken back.
        let mut moves = self.most();
        for missing in to.difference(&from.clone()) {
            let old = known
                .peers
                .iter()
                .find(|peer| from.contains(&peer.store) && !to.contains(&peer.store));
            let old = old.copied();
            let new = moves.newcomer(*missing).await?;
            let moved = match old {
                Some(old) => moves.replace_by(source, old.store, (new, *missing)).await,
                None => moves.add_voter_as(source, (new, *missing)).await,
            };
            known = match moved {
                Ok(known) => known,
                Err(error) => {
                    let left: Vec<PeerId> = old.iter().map(|old| old.id).chain([new]).collect();
                    self.leave_no_learner(source, &left).await;
                    return Err(error);
                }
            };
            if let Some(old) = old {
                from.remove(&old.store);
            }
            from.insert(*missing);
        }
        for extra in from.difference(&to) {
            known = moves.remove_peer(source, *extra).await?;
        }
        Ok(known)
    }

    /// Takes back what a replica that could not be moved left behind, as far as that is possible now: a learner that never
    /// caught up, or the one that was to go and does not vote any more. The region had voters only, and voters stay.
    async fn leave_no_learner(&mut self, region: RegionId, peers: &[PeerId]) {
        let learner = |peer: &&Peer| peer.role.is_learner() && peers.contains(&peer.id);
        let taken_back = self.reach(region, |now| {
            Ok(now
                .peers
                .iter()
                .find(learner)
                .map(|peer| Change::Remove(peer.id))
                .into_iter()
                .collect())
        });
        if let Err(error) = taken_back.await {
            tracing::warn!(%region, %error, "a learner is left of a merge that was not made");
        }
    }

    /// Waits until a frozen region is gone, or thawed.
    async fn wait_merged(&mut self, frozen: &Region, target: &Region) -> Result<Region> {
        // Answered by whoever owns it, as soon as somebody does.
        let key = [&frozen.range.start[..], &[0]].concat();
        loop {
            let _ = self.client().get(key.clone()).await;
            let now = self.client().region(target.id).await;
            if let Ok(now) = &now
                && now.range.covers(&frozen.range)
            {
                return Ok(now.clone());
            }
            match self.client().region(frozen.id).await {
                Ok(source) if is_later(source.epoch, frozen.epoch) => {
                    return Err(Error::EpochNotMatch { current: now.into_iter().collect() });
                }
                // It is gone, and the target was cut since, or has gone into another region itself.
                Err(Error::RegionNotFound(_)) => {
                    if let Some(heir) = self.heir_of(frozen).await {
                        return Ok(heir);
                    }
                }
                _ => {}
            }
            self.again(Error::Ambiguous { what: "a merge that is under way" }).await?;
        }
    }

    /// Who has the first keys of a region that was frozen, if somebody else has them. A frozen region keeps its keys until it
    /// is taken in or thawed, and who has keys after another has a larger version.
    async fn heir_of(&self, frozen: &Region) -> Option<Region> {
        let owner = self.client().region_of(frozen.range.start.clone()).await.ok()?;
        let heir = owner.id != frozen.id && owner.epoch.version > frozen.epoch.version;
        heir.then_some(owner)
    }
}

impl super::Blocking {
    /// See [`Client::merge`].
    pub fn merge(&self, source: RegionId, target: RegionId) -> Result<Region> {
        super::wait(self.client.merge(source, target))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Backend, Done, wait};
    use crate::codec::merge::Commit;
    use crate::types::{KeyRange, LogPosition, Merging, Time};
    use parking_lot::Mutex;
    use std::sync::Arc;
    use std::time::Duration;

    const SOURCE: RegionId = RegionId(7);
    const TARGET: RegionId = RegionId(8);

    /// A cluster in which every commit is answered like this.
    struct Refuses {
        error: fn() -> Error,
        thawed: Arc<Mutex<Vec<RegionId>>>,
    }

    impl Backend for Refuses {
        fn call(&self, body: Body, _timeout: Duration, done: Done<Response>) {
            done.call(match body {
                Body::Admin { region: TARGET, admin: Admin::CommitMerge(_) } => Err((self.error)()),
                Body::Admin { region, admin: Admin::RollBackMerge { at: 9 } } => {
                    self.thawed.lock().push(region);
                    Ok(Response::Regions(vec![]))
                }
                other => panic!("{other:?}"),
            });
        }

        fn now(&self) -> Time {
            Time(0)
        }
    }

    fn wish() -> MergeWish {
        let epoch = Epoch { conf_ver: 1, version: 5 };
        let at = LogPosition { index: 9, term: 6 };
        let merging = Merging { target: TARGET, start: "m".into(), epoch, first: 9, at };
        let source = Region { id: SOURCE, ..Region::default() };
        let commit = Commit { target: TARGET, epoch, source, at, first: 9, entries: vec![] };
        MergeWish { source: SOURCE, merging, commit: Box::new(commit) }
    }

    /// What came of the wish, who was thawed, and whether it was asked how the target ended.
    fn told(error: fn() -> Error, was_merged: bool) -> (Option<Merged>, Vec<RegionId>, bool) {
        let thawed = Arc::default();
        let backend = Refuses { error, thawed: Arc::clone(&thawed) };
        let client = Client::new(Arc::new(backend), Duration::from_secs(9));
        let mut asked = false;
        let ended = wait(client.carry_out(wish(), async |target| {
            assert_eq!(target, TARGET);
            asked = true;
            was_merged
        }));
        let thawed = std::mem::take(&mut *thawed.lock());
        (ended.ok(), thawed, asked)
    }

    /// The target's replicas were moved away from the stores of the source, and then it was merged away: no tombstone there
    /// says so, nobody answers for it, and the source would wait, frozen, for ever.
    #[test]
    fn a_source_whose_target_moved_and_was_merged_away_is_thawed_on_proof() {
        let nobody = || Error::RegionNotFound(TARGET);
        assert_eq!(told(nobody, true), (Some(Merged::Never), vec![SOURCE], true));
        assert_eq!(told(nobody, false), (None, vec![], true), "it waits");
        let out_of_reach = || Error::Busy { what: "a node cannot be reached" };
        assert_eq!(told(out_of_reach, true), (Some(Merged::Never), vec![SOURCE], true));
        let closing = || Error::Stopped { reason: "the node is closing".into() };
        assert_eq!(told(closing, true), (None, vec![], false));
    }

    /// A cluster in which the source's keys are owned by this region, which is smaller than what was merged.
    struct Cut {
        owner: Region,
        calls: Arc<Mutex<u32>>,
    }

    impl Backend for Cut {
        fn call(&self, body: Body, _timeout: Duration, done: Done<Response>) {
            *self.calls.lock() += 1;
            let current = vec![self.owner.clone()];
            done.call(match body {
                Body::Read { .. } => Ok(Response::Values(vec![None])),
                Body::Regions { .. } => Ok(Response::Regions(current)),
                Body::Admin { region, .. } if region == self.owner.id => {
                    Err(Error::EpochNotMatch { current })
                }
                Body::Admin { region, .. } => Err(Error::RegionNotFound(region)),
                other => panic!("{other:?}"),
            });
        }

        /// Each call takes a while.
        fn now(&self) -> Time {
            Time(0).after(Duration::from_millis(100) * *self.calls.lock())
        }
    }

    /// What comes of waiting for the merge of a source with the keys from `g` to `t`, frozen at version 5, and in how many calls.
    fn waited(owner: RegionId, version: u64) -> (Result<Region>, u32) {
        let region = |id, start: &'static str, end: &'static str, version| Region {
            id,
            range: KeyRange::new(start, end),
            epoch: Epoch { conf_ver: 1, version },
            ..Region::default()
        };
        let (calls, owner) = (Arc::default(), region(owner, "e", "m", version));
        let backend = Cut { owner, calls: Arc::clone(&calls) };
        let client = Client::new(Arc::new(backend), Duration::from_secs(9));
        let (frozen, target) = (region(SOURCE, "g", "t", 5), region(TARGET, "", "g", 4));
        let waited = wait(Goal::of(&client).wait_merged(&frozen, &target));
        let calls = *calls.lock();
        (waited, calls)
    }

    /// The target took the source in, and was cut before anybody looked (it had become large), or went into another region
    /// itself: no region has the keys of both. The merger waited for one for minutes, and merged nothing else meanwhile
    /// (seed 5136 of the simulator's regions).
    #[test]
    fn a_merge_has_ended_though_the_target_was_cut_or_merged_since() {
        for owner in [TARGET, RegionId(9)] {
            let (merged, calls) = waited(owner, 7);
            assert_eq!(merged.map(|region| region.id).ok(), Some(owner));
            assert!(calls <= 4, "{calls}");
        }
        let (merged, _) = waited(TARGET, 4);
        let open = matches!(merged, Err(Error::Ambiguous { .. }));
        assert!(open, "who has an older shape has heard of nothing yet: {merged:?}");
    }

    #[test]
    fn who_has_a_later_shape_is_believed_at_once() {
        fn shape(version: u64) -> Error {
            let epoch = Epoch { conf_ver: 1, version };
            Error::EpochNotMatch {
                current: vec![Region { id: TARGET, epoch, ..Region::default() }],
            }
        }
        assert_eq!(told(|| shape(6), false), (Some(Merged::Never), vec![SOURCE], false));
        assert_eq!(
            told(|| shape(4), false),
            (None, vec![], false),
            "it has not heard of its own yet"
        );
    }

    /// A cluster that freezes the source, or has it frozen already, and answers so: the merge is done soon after.
    struct Silent {
        freezing: fn() -> Error,
        /// Whether it is frozen before anybody asks.
        frozen: Mutex<bool>,
        looks: Mutex<u32>,
    }

    impl Backend for Silent {
        fn call(&self, body: Body, _timeout: Duration, done: Done<Response>) {
            let region = |id, start: &'static str, end: &'static str, version| Region {
                id,
                range: KeyRange::new(start, end),
                epoch: Epoch { conf_ver: version, version },
                ..Region::default()
            };
            let frozen = *self.frozen.lock();
            let looks = *self.looks.lock();
            let merged = frozen && looks > 1;
            done.call(match body {
                Body::Admin { admin: Admin::PrepareMerge(_), .. } => {
                    *self.frozen.lock() = true;
                    Err((self.freezing)())
                }
                Body::Admin { region: SOURCE, .. } if merged => Err(Error::RegionNotFound(SOURCE)),
                Body::Admin { region: SOURCE, .. } => {
                    *self.looks.lock() += u32::from(frozen);
                    let version = if frozen { 6 } else { 5 };
                    let current = vec![region(SOURCE, "g", "t", version)];
                    Err(Error::EpochNotMatch { current })
                }
                Body::Admin { region: TARGET, .. } => {
                    let (end, version) = if merged { ("t", 7) } else { ("g", 4) };
                    let current = vec![region(TARGET, "", end, version)];
                    Err(Error::EpochNotMatch { current })
                }
                Body::Read { .. } => Ok(Response::Values(vec![None])),
                other => panic!("{other:?}"),
            });
        }

        fn now(&self) -> Time {
            Time(0)
        }
    }

    /// The answer to the freezing was lost, or it was an earlier call that had frozen the source: asking again found it frozen, and
    /// in the end gone, and called that an error.
    #[test]
    fn a_merge_that_is_under_way_is_waited_for() {
        let lost: fn() -> Error = || Error::Timeout { after_ms: 9, what: "another node's answer" };
        let frozen: fn() -> Error = || FROZEN;
        for (freezing, before) in [(lost, false), (frozen, true)] {
            let backend = Silent { freezing, frozen: Mutex::new(before), looks: Mutex::new(0) };
            let client = Client::new(Arc::new(backend), Duration::from_secs(9));
            let merged = wait(client.merge(SOURCE, TARGET)).unwrap();
            assert_eq!((merged.id, &merged.range.end[..]), (TARGET, &b"t"[..]));
        }
    }
}
