//! What operators ask: a region for its neighbour. The protocol stands in [`region::merge`](crate::region::merge).

use super::request::{Body, Response};
use super::{Client, odd};
use crate::codec::admin::{Admin, Change};
use crate::codec::merge::Prepare;
use crate::error::{Error, Result};
use crate::region::merge::{is_later, live_together};
use crate::store::MergeWish;
use crate::types::{Peer, PeerId, Region, RegionId, Role, StoreId};
use std::collections::BTreeSet;

/// Looks at a merge before it is left to itself.
const LOOKS_MAX: u32 = 32;

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
    /// Errors: [`Error::InvalidArgument`] where it cannot be (no neighbours; a region that keeps the cluster's
    /// record), [`Error::Busy`] where it cannot be now (a replica that is behind, or out of reach),
    /// [`Error::EpochNotMatch`] when another change of the target's shape came first: the source is as before then.
    /// After any other error the merge may be under way, and ends by itself one way or the other. A replica that could not
    /// be moved leaves no learner behind, as long as the source's leader answers.
    pub async fn merge(&self, source: RegionId, target: RegionId) -> Result<Region> {
        let mut last = Error::Busy { what: "another change of the region's shape" };
        for _ in 0..super::members::LOOKS_MAX {
            let into = self.region(target).await?;
            let from = self.bring_together(source, &into).await?;
            match self.freeze(&from, &into).await {
                Ok(frozen) => return self.wait_merged(&frozen, &into).await,
                Err(Error::LeaderStays { .. }) => self.transfer_leader(source, None).await?,
                Err(
                    error @ (Error::EpochNotMatch { .. }
                    | Error::Busy { .. }
                    | Error::NotLeader { .. }
                    | Error::Timeout { .. }),
                ) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// The same, but what cannot be now is not tried again.
    pub(crate) async fn merge_once(&self, source: RegionId, target: RegionId) -> Result<Region> {
        let into = self.region(target).await?;
        let from = self.bring_together(source, &into).await?;
        let frozen = self.freeze(&from, &into).await?;
        self.wait_merged(&frozen, &into).await
    }

    /// Freezes a region for its neighbour.
    async fn freeze(&self, source: &Region, target: &Region) -> Result<Region> {
        let prepare = Prepare { epoch: source.epoch, target: target.clone(), first: 0 };
        let admin = Admin::PrepareMerge(prepare);
        match self.call(Body::Admin { region: source.id, admin }).await? {
            Response::Regions(frozen) => frozen.into_iter().next().ok_or_else(odd),
            _ => Err(odd()),
        }
    }

    /// Moves the source's replicas to the stores of the target's.
    async fn bring_together(&self, source: RegionId, target: &Region) -> Result<Region> {
        let mut known = self.region(source).await?;
        let learns = |region: &Region| region.peers.iter().any(|peer| peer.role != Role::Voter);
        if !live_together(&known, target) && (learns(&known) || learns(target)) {
            let what = format!("{source} and {} have learners on different stores", target.id);
            return Err(Error::InvalidArgument(what));
        }
        let stores = |region: &Region| -> BTreeSet<StoreId> {
            region.peers.iter().map(|peer| peer.store).collect()
        };
        let (mut from, to) = (stores(&known), stores(target));
        for missing in to.difference(&from.clone()) {
            let old = known
                .peers
                .iter()
                .find(|peer| from.contains(&peer.store) && !to.contains(&peer.store));
            let old = old.copied();
            self.may_take(*missing).await?;
            let new = PeerId(self.allocate_ids(1).await?);
            let moved = match old {
                Some(old) => self.replace_by(source, old.store, (new, *missing)).await,
                None => self.add_voter(source, (new, *missing)).await,
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
            known = self.remove_peer(source, *extra).await?;
        }
        Ok(known)
    }

    /// Takes back what a replica that could not be moved left behind, as far as that is possible now: a learner that never
    /// caught up, or the one that was to go and does not vote any more. The region had voters only, and voters stay.
    async fn leave_no_learner(&self, region: RegionId, peers: &[PeerId]) {
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
    async fn wait_merged(&self, frozen: &Region, target: &Region) -> Result<Region> {
        // Answered by whoever owns it, as soon as somebody does.
        let key = [&frozen.range.start[..], &[0]].concat();
        for _ in 0..LOOKS_MAX {
            let _ = self.get(key.clone()).await;
            let now = self.region(target.id).await;
            if let Ok(now) = &now
                && now.range.covers(&frozen.range)
            {
                return Ok(now.clone());
            }
            match self.region(frozen.id).await {
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
        }
        Err(Error::Ambiguous { what: "a merge that is under way" })
    }

    /// Who has the first keys of a region that was frozen, if somebody else has them. A frozen region keeps its keys until it
    /// is taken in or thawed, and who has keys after another has a larger version.
    async fn heir_of(&self, frozen: &Region) -> Option<Region> {
        let owner = self.region_of(frozen.range.start.clone()).await.ok()?;
        let heir = owner.id != frozen.id && owner.epoch.version > frozen.epoch.version;
        heir.then_some(owner)
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
    use crate::types::{Epoch, KeyRange, LogPosition, Merging};
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
        let waited = wait(client.wait_merged(&frozen, &target));
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
}
