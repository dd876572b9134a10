//! Administrative commands, from the wish to its effect: proposed by the leader here, applied alike on every replica.
//! What each of them means stands in its own file.

use super::apply::FIRST_FREE_ID;
use super::config::StoreConfig;
use super::effects::{AdminDone, Effects, News, Reply, Token};
use super::merge::{FROZEN, accept, departed, freeze};
use super::neighbours::Neighbours;
use super::peer::Peer;
use super::{membership, split};
use crate::codec::admin::{Admin, Change};
use crate::codec::directory::Directory;
use crate::codec::merge::{Commit, Prepare};
use crate::error::{Error, Result};
use crate::kv::{View, WriteBatch};
use crate::raft::ProposeError;
use crate::types::{Departed, FIRST_REGION, LogPosition, Merging, Region, RegionState, StoreId};
use smallvec::smallvec;

/// Ids that are handed out at once, at most: none ever comes back, and who asked for too many by mistake would leave none.
const IDS_MAX: u64 = 1 << 20;

impl Peer {
    /// Proposes an administrative command, or refuses it. What waits for a place in the log goes before it.
    pub(crate) fn propose_admin(
        &mut self,
        config: &StoreConfig,
        neighbours: &Neighbours,
        token: Token,
        admin: &Admin,
        effects: &mut Effects,
    ) {
        if let Some(known) = self.known_answer(admin) {
            return effects.replies.push((token, Reply::Admin(known)));
        }
        match self.try_admin(config, neighbours, admin, effects) {
            Ok(position) => self.proposals.proposed(position, smallvec![token]),
            Err(error) => effects.replies.push((token, Reply::Admin(Err(error)))),
        }
    }

    /// What needs no entry in the log.
    fn known_answer(&self, admin: &Admin) -> Option<Result<AdminDone>> {
        match admin {
            Admin::CommitMerge(commit) if self.runs() && self.group.leads() => {
                self.known_of(commit)
            }
            Admin::PrepareMerge(prepare) if self.runs() && self.group.leads() => {
                self.frozen_for(prepare.target.id)
            }
            _ => None,
        }
    }

    fn try_admin(
        &mut self,
        config: &StoreConfig,
        neighbours: &Neighbours,
        admin: &Admin,
        effects: &mut Effects,
    ) -> Result<LogPosition> {
        if !self.runs() {
            return Err(self.fenced());
        }
        if !self.group.leads() || self.group.transferring() {
            return Err(self.not_leader());
        }
        if let Admin::RollBackMerge { at } = admin {
            return match self.merging.as_ref().is_some_and(|merging| merging.at.index == *at) {
                true => self.put_admin(admin),
                false => Err(Error::InvalidArgument(format!("{at} froze nothing"))),
            };
        }
        if self.merging.is_some() && !matches!(admin, Admin::LeaveJoint { .. }) {
            return Err(FROZEN);
        }
        match admin {
            Admin::RollBackMerge { .. } => Err(FROZEN),
            Admin::Split(split) => {
                self.may_split(split)?;
                self.put_alone(config, admin, effects)
            }
            Admin::PrepareMerge(prepare) => {
                let own = RegionState {
                    region: Region::clone(&self.region),
                    removed: self.removed.clone(),
                    ..RegionState::default()
                };
                let asked = Prepare { first: 1, ..prepare.clone() };
                freeze(&own, &asked)?;
                self.fold(config, effects);
                let prepare = self.may_freeze(&asked)?;
                self.put_alone(config, &Admin::PrepareMerge(prepare), effects)
            }
            Admin::CommitMerge(commit) => {
                // A commit of an earlier leader may be under way still.
                let settled = self.group.applied_in_term();
                if !settled || self.reshaping.is_some() || self.changing.is_some() {
                    return Err(Error::Busy { what: "another change of the region's shape" });
                }
                accept(&self.region, &self.removed, commit)?;
                self.put_alone(config, admin, effects)
            }
            Admin::ChangePeers { epoch, changes } => {
                self.come_for(changes);
                self.may_place(neighbours, changes)?;
                self.propose_change(*epoch, changes)
            }
            Admin::LeaveJoint { epoch } => self.propose_leave(*epoch),
            Admin::Allocate { .. } | Admin::Stores(_) if self.region.id != FIRST_REGION => {
                let why =
                    format!("{FIRST_REGION} hands out ids and keeps the record of the stores");
                Err(Error::InvalidArgument(why))
            }
            Admin::Allocate { .. } | Admin::Stores(_) => {
                self.fold(config, effects);
                self.put_admin(admin)
            }
            Admin::Forget { peers } if peers.is_empty() => self.put_admin(admin),
            Admin::Forget { .. } => {
                Err(Error::InvalidArgument("only the leader knows who is gone".into()))
            }
        }
    }

    /// Proposes what changes the region's keys: behind all that waits, and before all that comes.
    fn put_alone(
        &mut self,
        config: &StoreConfig,
        admin: &Admin,
        effects: &mut Effects,
    ) -> Result<LogPosition> {
        self.fold(config, effects);
        if self.proposals.has_pending() {
            return Err(Error::Busy { what: "region's proposals" });
        }
        let position = self.put_admin(admin)?;
        self.reshaping = Some(position);
        Ok(position)
    }

    fn put_admin(&mut self, admin: &Admin) -> Result<LogPosition> {
        self.group.propose(admin.encode()).map_err(|refused| match refused {
            ProposeError::Full | ProposeError::Changing => {
                Error::Busy { what: "region's uncommitted entries" }
            }
            ProposeError::NotLeader | ProposeError::Transferring => self.not_leader(),
        })
    }
}

/// Applies an administrative command. A refusal is the same on every replica and leaves nothing behind; the outer
/// error is fatal.
pub(super) fn administer(
    admin: &Admin,
    state: &mut RegionState,
    news: &mut News,
    batch: &mut WriteBatch,
    view: &dyn View,
) -> Result<Result<AdminDone>> {
    match admin {
        Admin::CommitMerge(commit) => merge_in(commit, state, news, batch, view),
        other => Ok(administer_alone(other, state, news, batch, view)),
    }
}

/// What concerns no other region that lives already.
fn administer_alone(
    admin: &Admin,
    state: &mut RegionState,
    news: &mut News,
    batch: &mut WriteBatch,
    view: &dyn View,
) -> Result<AdminDone> {
    let may = match admin {
        Admin::RollBackMerge { .. } => true,
        Admin::Forget { peers } => !peers.is_empty(),
        _ => false,
    };
    if state.merging.is_some() && !may {
        return Err(FROZEN);
    }
    match admin {
        Admin::PrepareMerge(prepare) => {
            let after = freeze(state, prepare)?;
            let target = &prepare.target;
            state.merging = Some(Merging {
                target: target.id,
                start: target.range.start.clone(),
                epoch: target.epoch,
                first: prepare.first,
                at: state.applied,
            });
            Ok(refreeze(state, news, after))
        }
        Admin::RollBackMerge { at } => {
            if state.merging.as_ref().is_none_or(|merging| merging.at.index != *at) {
                return Err(Error::InvalidArgument(format!("{at} froze nothing")));
            }
            state.merging = None;
            let mut after = state.region.clone();
            after.epoch.version += 1;
            Ok(refreeze(state, news, after))
        }
        Admin::CommitMerge(commit) => {
            Err(Error::InvalidArgument(format!("merge of {}", commit.source.id)))
        }
        Admin::Split(split) => {
            let regions = split::divide(&state.region, split)?;
            for child in &regions[1..] {
                let Some(born) = split::newborn(child.clone(), state) else { continue };
                // Removed before it was born: its region has moved on, its data here are nobody's.
                let dead = view.record(child.id).filter(RegionState::is_tombstone);
                if dead.is_some_and(|dead| dead.peer >= born.peer) {
                    batch.delete_range(&child.range);
                    continue;
                }
                batch.set_region(born.clone());
                news.births.push(born);
            }
            state.region = regions[0].clone();
            news.reshaped = Some(state.region.clone());
            Ok(AdminDone::Shaped(regions))
        }
        Admin::ChangePeers { epoch, changes } => {
            let after = membership::change(&state.region, &state.removed, *epoch, changes)?;
            Ok(reshape(state, news, after, changes))
        }
        Admin::LeaveJoint { epoch } => {
            let after = membership::leave(&state.region, *epoch)?;
            Ok(reshape(state, news, after, &[]))
        }
        Admin::Forget { peers } => {
            if !peers.is_empty() {
                state.removed.retain(|gone| !peers.contains(&gone.id));
                news.removed = Some(state.removed.clone());
            }
            Ok(AdminDone::Shaped(vec![state.region.clone()]))
        }
        Admin::Stores(change) => {
            let mut directory = Directory::decode(&state.directory)?;
            directory.change(change)?;
            state.directory = directory.encode();
            Ok(AdminDone::Stores(directory))
        }
        Admin::Allocate { count } => {
            let first = state.next_id.max(FIRST_FREE_ID);
            let refused = || Error::InvalidArgument(format!("{count} ids: 1 to {IDS_MAX} at once"));
            let sensible = (1..=IDS_MAX).contains(count);
            let next = first.checked_add(*count).filter(|_| sensible).ok_or_else(refused)?;
            state.next_id = next;
            Ok(AdminDone::Ids { first })
        }
    }
}

/// The region is frozen now, or thawed.
fn refreeze(state: &mut RegionState, news: &mut News, after: Region) -> AdminDone {
    state.region = after;
    news.merging = Some(state.merging.clone());
    news.reshaped = Some(state.region.clone());
    AdminDone::Shaped(vec![state.region.clone()])
}

/// Takes over what the source's replica here holds, which stands still. That it does was seen to before.
fn merge_in(
    commit: &Commit,
    state: &mut RegionState,
    news: &mut News,
    batch: &mut WriteBatch,
    view: &dyn View,
) -> Result<Result<AdminDone>> {
    let accepted = state.removed.iter().any(|gone| gone.region == commit.source.id);
    if accepted && commit.target == state.region.id {
        // Once more: proposed by a leader that had not applied the first. Refusing it would thaw the source.
        return Ok(Ok(AdminDone::Shaped(vec![state.region.clone()])));
    }
    let after = match accept(&state.region, &state.removed, commit) {
        Ok(after) => after,
        Err(refused) => return Ok(Err(refused)),
    };
    let source = view.region(commit.source.id);
    let frozen = |source: &RegionState| {
        source.region == commit.source
            && source.merging.as_ref().is_some_and(|merging| merging.at == commit.at)
    };
    let Some(source) = source.filter(frozen) else {
        let what = format!("{} is not here to be merged", commit.source.id);
        return Err(Error::malformed("merge", what));
    };
    let gone = Departed { region: source.region.id, id: source.peer, store: StoreId(0) };
    batch.set_region(RegionState {
        merging: source.merging.clone(),
        ..RegionState::tombstone(source.region, source.peer)
    });
    news.absorbed.push(gone);
    state.removed.extend(departed(&commit.source));
    news.removed = Some(state.removed.clone());
    state.region = after;
    news.reshaped = Some(state.region.clone());
    Ok(Ok(AdminDone::Shaped(vec![state.region.clone()])))
}

/// Gives the region other replicas, and remembers those that it loses.
fn reshape(
    state: &mut RegionState,
    news: &mut News,
    after: Region,
    changes: &[Change],
) -> AdminDone {
    let region = after.id;
    let lost = state.region.peers.iter().filter(|peer| after.peer(peer.id).is_none());
    let lost: Vec<Departed> =
        lost.map(|peer| Departed { region, id: peer.id, store: peer.store }).collect();
    if !lost.is_empty() {
        state.removed.extend(lost);
        news.removed = Some(state.removed.clone());
    }
    state.region = after;
    news.changes.push(changes.to_vec());
    news.reshaped = Some(state.region.clone());
    AdminDone::Shaped(vec![state.region.clone()])
}
