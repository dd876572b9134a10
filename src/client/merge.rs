//! What operators ask: a region for its neighbour. The protocol stands in [`region::merge`](crate::region::merge).

use super::goal::Goal;
use super::request::{Body, Response};
use super::{Client, odd};
use crate::codec::admin::{Admin, Change};
use crate::codec::merge::Prepare;
use crate::error::{Error, Result};
use crate::region::merge::{is_later, live_together};
use crate::store::MergeWish;
use crate::types::{Peer, Region, RegionId, Role, StoreId};
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
    /// is safe, and so is one by somebody else meanwhile: it goes on with what was begun, and waits for a merge of the two that is
    /// under way.
    ///
    /// Errors: [`Error::InvalidArgument`] where it cannot be (no neighbours; a region that keeps the cluster's
    /// record), [`Error::RegionNotFound`] once one of the two is known to be gone (before this call began, or into
    /// another region; or into `target`, where somebody else asked for it and that one has not the source's first keys any
    /// more), [`Error::Busy`] where it could not be in time (a replica that is behind, or out of reach),
    /// [`Error::EpochNotMatch`] when another change of the target's shape came first: the source is as before then.
    /// After any other error the merge may be under way, and ends by itself one way or the other. A replica that could not
    /// be moved leaves no learner behind, as long as the source's leader answers.
    pub async fn merge(&self, source: RegionId, target: RegionId) -> Result<Region> {
        let mut goal = Goal::of(self);
        // The source as it was last seen: at the next look it may be gone.
        let mut seen: Option<Region> = None;
        loop {
            let into = goal.region(target).await?;
            if seen.as_ref().is_some_and(|from| has_taken_in(&into, from)) {
                return Ok(into);
            }
            let from = match (goal.region(source).await, &seen) {
                (Err(Error::RegionNotFound(_)), Some(from)) => {
                    return goal.gone_into(from, target).await;
                }
                (from, _) => from?,
            };
            seen = Some(from.clone());
            let from = goal.bring_together(from, &into).await?;
            match goal.freeze(&from, &into).await {
                Ok(frozen) => return goal.wait_merged(&frozen, &into).await,
                Err(error) => goal.again(error).await?,
            }
        }
    }

    /// The same, but what cannot be now is not tried again.
    pub(crate) async fn merge_once(&self, source: RegionId, target: RegionId) -> Result<Region> {
        let mut goal = Goal::of(self);
        let into = goal.region(target).await?;
        let from = goal.region(source).await?;
        let from = goal.bring_together(from, &into).await?;
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

/// Whether a region has the keys that another one was seen with, earlier: it, or whoever took that one in, was merged into it.
fn has_taken_in(now: &Region, seen: &Region) -> bool {
    now.range.covers(&seen.range) && now.epoch.version > seen.epoch.version
}

impl Goal {
    /// Freezes a region for its neighbour; gives it as it is then. Done already if it is frozen for that one.
    async fn freeze(&self, source: &Region, target: &Region) -> Result<Region> {
        let prepare = Prepare { epoch: source.epoch, target: target.clone(), first: 0 };
        let admin = Admin::PrepareMerge(prepare);
        match self.client().call(Body::Admin { region: source.id, admin }).await? {
            Response::Regions(frozen) => frozen.into_iter().next().ok_or_else(odd),
            _ => Err(odd()),
        }
    }

    /// Moves the source's replicas to the stores of the target's.
    async fn bring_together(&mut self, mut known: Region, target: &Region) -> Result<Region> {
        let source = known.id;
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
            let moved = match old {
                Some(old) => moves.replace(source, old.store, *missing).await,
                None => moves.bring_voter(source, *missing).await,
            };
            known = match moved {
                Ok(known) => known,
                Err(error) => {
                    let left: Vec<StoreId> =
                        old.iter().map(|old| old.store).chain([*missing]).collect();
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
    async fn leave_no_learner(&mut self, region: RegionId, stores: &[StoreId]) {
        let learner = |peer: &&Peer| peer.role.is_learner() && stores.contains(&peer.store);
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

    /// The target, if a source that is gone went into it. What went elsewhere is no merge of the two.
    async fn gone_into(&self, source: &Region, target: RegionId) -> Result<Region> {
        self.ask_owner(source).await;
        let heir = self.heir_of(source).await.filter(|heir| heir.id == target);
        heir.ok_or(Error::RegionNotFound(source.id))
    }

    /// Has a key of a region read: answered by whoever owns it, as soon as somebody does. What this node knows is newer then.
    async fn ask_owner(&self, region: &Region) {
        let _ = self.client().get([&region.range.start[..], &[0]].concat()).await;
    }

    /// Waits until a frozen region is gone, or thawed.
    async fn wait_merged(&mut self, frozen: &Region, target: &Region) -> Result<Region> {
        loop {
            self.ask_owner(frozen).await;
            let now = self.client().region(target.id).await;
            if let Ok(now) = &now
                && has_taken_in(now, frozen)
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

    /// Who has the first keys of a region, if somebody else has them: then it was merged away. Cut or merged with others it keeps
    /// them until then, and who has keys after another has a larger version.
    async fn heir_of(&self, region: &Region) -> Option<Region> {
        let owner = self.client().region_of(region.range.start.clone()).await.ok()?;
        let heir = owner.id != region.id && owner.epoch.version > region.epoch.version;
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
    use crate::client::ask::Answer;
    use crate::client::{Backend, Done, wait};
    use crate::codec::merge::Commit;
    use crate::codec::report::RegionInfo;
    use crate::region::merge::FROZEN;
    use crate::types::{Epoch, KeyRange, LogPosition, Merging, Time};
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
        let (calls, owner) = (Arc::default(), owns(owner, "e", "m", version));
        let backend = Cut { owner, calls: Arc::clone(&calls) };
        let client = Client::new(Arc::new(backend), Duration::from_secs(9));
        let (frozen, target) = (owns(SOURCE, "g", "t", 5), owns(TARGET, "", "g", 4));
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

    const OTHER: RegionId = RegionId(9);

    fn owns(id: RegionId, start: &'static str, end: &'static str, version: u64) -> Region {
        let epoch = Epoch { conf_ver: version, version };
        Region { id, range: KeyRange::new(start, end), epoch, ..Region::default() }
    }

    /// A cluster in which somebody else freezes the source between our first look at it and our asking, and it is merged soon after.
    struct Race {
        /// For whom he does.
        wanted: RegionId,
        /// What our askings are answered with, each with its number; `None`: with how it is.
        answers: fn(u32) -> Option<Error>,
        /// The regions after the merge.
        after: fn() -> Vec<Region>,
        asked: Mutex<u32>,
        /// Looks at the frozen source.
        looks: Mutex<u32>,
        calls: Mutex<u32>,
    }

    impl Race {
        fn regions(&self) -> Vec<Region> {
            let version = 5 + u64::from(*self.asked.lock() > 0);
            match *self.looks.lock() > 2 {
                true => (self.after)(),
                false => vec![
                    owns(TARGET, "", "g", 4),
                    owns(SOURCE, "g", "t", version),
                    owns(OTHER, "t", "", 4),
                ],
            }
        }

        fn freeze(&self, target: RegionId) -> Result<Response> {
            let asked = *self.asked.lock() + 1;
            *self.asked.lock() = asked;
            match (self.answers)(asked) {
                Some(error) => Err(error),
                None if target != self.wanted => Err(FROZEN),
                None => Ok(Response::Regions(vec![self.regions().swap_remove(1)])),
            }
        }

        fn look(&self, id: RegionId) -> Error {
            *self.looks.lock() += u32::from(id == SOURCE && *self.asked.lock() > 0);
            let found = self.regions().into_iter().find(|region| region.id == id);
            found.map_or(Error::RegionNotFound(id), |now| Error::EpochNotMatch {
                current: vec![now],
            })
        }
    }

    impl Backend for Race {
        fn call(&self, body: Body, _timeout: Duration, done: Done<Response>) {
            *self.calls.lock() += 1;
            done.call(match body {
                Body::Admin { admin: Admin::PrepareMerge(prepare), .. } => {
                    self.freeze(prepare.target.id)
                }
                Body::Admin { region, .. } => Err(self.look(region)),
                Body::Read { .. } => Ok(Response::Values(vec![None])),
                Body::Regions { start, .. } => {
                    let owner = self.regions().into_iter().find(|one| one.range.contains(&start));
                    Ok(Response::Regions(owner.into_iter().collect()))
                }
                Body::Directory(_) => {
                    let known = |region| RegionInfo { region, leader: Some(StoreId(1)), bytes: 0 };
                    let known = self.regions().into_iter().map(known).collect();
                    Ok(Response::Directory(Answer::Located(known)))
                }
                other => panic!("{other:?}"),
            });
        }

        /// Each call takes a while.
        fn now(&self) -> Time {
            Time(0).after(Duration::from_millis(100) * *self.calls.lock())
        }
    }

    /// What comes of asking for a merge of the source into the target meanwhile.
    fn raced(
        wanted: RegionId,
        answers: fn(u32) -> Option<Error>,
        after: fn() -> Vec<Region>,
    ) -> Result<Region> {
        let (asked, looks, calls) = Default::default();
        let race = Arc::new(Race { wanted, answers, after, asked, looks, calls });
        let merged = wait(Client::new(race.clone(), Duration::from_secs(60)).merge(SOURCE, TARGET));
        let calls = *race.calls.lock();
        assert!(calls < 150, "it was not waited for until the time was up: {calls}");
        merged
    }

    fn merged() -> Vec<Region> {
        vec![owns(TARGET, "", "t", 7), owns(OTHER, "t", "", 4)]
    }

    fn merged_and_cut() -> Vec<Region> {
        vec![owns(TARGET, "", "m", 8), owns(RegionId(10), "m", "t", 8), owns(OTHER, "t", "", 4)]
    }

    fn merged_elsewhere() -> Vec<Region> {
        vec![owns(TARGET, "", "g", 4), owns(OTHER, "g", "", 7)]
    }

    /// The answer to the freezing was lost, or it was somebody else who had frozen the source a moment before: asking again found it
    /// frozen, took that for a later shape than the one it had been frozen in, and called it an error; or it found the source
    /// gone, and looked for it until the time was up.
    #[test]
    fn a_merge_that_is_under_way_is_waited_for() {
        let lost = |asked| {
            (asked == 1).then_some(Error::Timeout { after_ms: 9, what: "another node's answer" })
        };
        // An older node says no more than that.
        let frozen = |_| Some(FROZEN);
        for answers in [|_| None, lost, frozen] {
            for after in [merged, merged_and_cut] {
                let told = raced(TARGET, answers, after).map(|region| region.id);
                assert!(matches!(told, Ok(TARGET)), "{told:?}");
            }
        }
    }

    /// Somebody has the source go into its other neighbour: that it was frozen, and then gone, was taken for what had been asked for.
    #[test]
    fn a_source_that_goes_elsewhere_is_not_merged_as_was_asked() {
        let lost = |asked| {
            (asked == 1).then_some(Error::Timeout { after_ms: 9, what: "another node's answer" })
        };
        for answers in [|_| None, lost] {
            let told = raced(OTHER, answers, merged_elsewhere).map(|region| region.id);
            assert!(matches!(told, Err(Error::RegionNotFound(SOURCE))), "{told:?}");
        }
    }
}
