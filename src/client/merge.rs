//! What operators ask: a region for its neighbour. The protocol stands in [`region::merge`](crate::region::merge).

use super::request::{Body, Response};
use super::{Client, odd};
use crate::codec::admin::Admin;
use crate::codec::merge::Prepare;
use crate::error::{Error, Result};
use crate::region::merge::{has_taken_over, is_later, live_together};
use crate::store::MergeWish;
use crate::types::{Merging, Region, RegionId, Role, StoreId};
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
    /// Merges a region into its neighbour, which then has the keys of both; gives that one. Where the replicas of the two
    /// live on different stores, those of `source` are moved first, with their data. Then no data moves; the
    /// source takes no requests for a few round trips, clients notice nothing but a retry.
    ///
    /// Errors: [`Error::InvalidArgument`] where it cannot be (no neighbours; a region that keeps the cluster's
    /// record), [`Error::Busy`] where it cannot be now (a replica that is behind, or out of reach),
    /// [`Error::EpochNotMatch`] when another change of the target's shape came first: the source is as before then.
    /// After any other error the merge may be under way, and ends by itself one way or the other.
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
            match from.iter().copied().find(|store| !to.contains(store)) {
                Some(old) => {
                    known = self.replace_peer(source, old, *missing).await?;
                    from.remove(&old);
                }
                None => {
                    self.add_learner(source, *missing).await?;
                    known = self.promote(source, *missing).await?;
                }
            }
            from.insert(*missing);
        }
        for extra in from.difference(&to) {
            known = self.remove_peer(source, *extra).await?;
        }
        Ok(known)
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
            if let Ok(source) = self.region(frozen.id).await
                && is_later(source.epoch, frozen.epoch)
            {
                return Err(Error::EpochNotMatch { current: now.into_iter().collect() });
            }
        }
        Err(Error::Ambiguous { what: "a merge that is under way" })
    }

    /// Carries out what a frozen region wishes for: it is taken in, or thawed, or waits on.
    pub(crate) async fn carry_out(&self, wish: MergeWish) -> Result<Merged> {
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
            _ => self.is_taken_over(&merging).await,
        };
        if !never {
            return Err(refused);
        }
        let admin = Admin::RollBackMerge { at: merging.at.index };
        self.call(Body::Admin { region: source, admin }).await?;
        Ok(Merged::Never)
    }
}

impl Client {
    /// Whether somebody else has the keys of a merge's target by now: then nobody answers for it any more.
    async fn is_taken_over(&self, merging: &Merging) -> bool {
        let owner = self.locate(merging.start.clone(), 1).await.unwrap_or_default();
        owner.iter().any(|info| has_taken_over(merging, &info.region))
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
    use crate::client::ask::{Answer, Ask};
    use crate::client::{Backend, Done, wait};
    use crate::codec::merge::Commit;
    use crate::codec::report::RegionInfo;
    use crate::types::{Epoch, KeyRange, LogPosition};
    use parking_lot::Mutex;
    use std::sync::Arc;
    use std::time::Duration;

    fn region(id: u64, start: &'static str, version: u64) -> Region {
        let (range, epoch) = (KeyRange::new(start, "z"), Epoch { conf_ver: 1, version });
        Region { id: RegionId(id), range, epoch, peers: vec![] }
    }

    /// A cluster in which region 8 is not: whoever is asked who has its keys names this region.
    struct Without {
        owner: Region,
        thawed: Arc<Mutex<Vec<RegionId>>>,
    }

    impl Backend for Without {
        fn call(&self, body: Body, _timeout: Duration, done: Done<Response>) {
            done.call(match body {
                Body::Admin { region, admin: Admin::CommitMerge(_) } => {
                    Err(Error::RegionNotFound(region))
                }
                Body::Directory(Ask::Locate { start, count: 1 }) => {
                    assert_eq!(start, "m");
                    let info = RegionInfo { region: self.owner.clone(), leader: None, bytes: 0 };
                    Ok(Response::Directory(Answer::Located(vec![info])))
                }
                Body::Admin { region, admin: Admin::RollBackMerge { at: 9 } } => {
                    self.thawed.lock().push(region);
                    Ok(Response::Regions(vec![]))
                }
                other => panic!("{other:?}"),
            });
        }
    }

    /// The target's replicas were moved away from the stores of the source, and then it was merged away: no tombstone there
    /// says so, nobody answers for it, and the source would wait, frozen, for ever.
    #[test]
    fn a_source_whose_target_moved_and_was_merged_away_is_thawed() {
        let epoch = Epoch { conf_ver: 1, version: 5 };
        let at = LogPosition { index: 9, term: 6 };
        let merging = Merging { target: RegionId(8), start: "m".into(), epoch, first: 9, at };
        let commit = Box::new(Commit {
            target: merging.target,
            epoch,
            source: region(7, "a", 5),
            at,
            first: 9,
            entries: vec![],
        });
        let wish = MergeWish { source: RegionId(7), merging, commit };
        let told = |owner: Region| {
            let thawed = Arc::default();
            let backend = Without { owner, thawed: Arc::clone(&thawed) };
            let client = Client::new(Arc::new(backend), Duration::from_secs(9));
            let ended = wait(client.carry_out(wish.clone()));
            let thawed = std::mem::take(&mut *thawed.lock());
            (ended.ok(), thawed)
        };
        assert_eq!(told(region(9, "g", 7)), (Some(Merged::Never), vec![RegionId(7)]));
        assert_eq!(told(region(9, "g", 5)), (None, vec![]), "it was cut out of that one");
        assert_eq!(told(region(8, "m", 9)), (None, vec![]), "it lives, and is out of reach");
    }
}
