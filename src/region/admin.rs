//! Administrative commands, from the wish to its effect: proposed by the leader here, applied alike on every replica.
//! What each of them means stands in its own file.

use super::apply::FIRST_FREE_ID;
use super::config::StoreConfig;
use super::effects::{AdminDone, Applied, Effects, Reply, Token};
use super::peer::Peer;
use super::{membership, split};
use crate::codec::admin::{Admin, Change};
use crate::codec::directory::Directory;
use crate::error::{Error, Result};
use crate::kv::{View, WriteBatch};
use crate::raft::ProposeError;
use crate::types::{FIRST_REGION, LogPosition, Region, RegionState};

impl Peer {
    /// Proposes an administrative command, or refuses it. What waits for a place in the log goes before it.
    pub(crate) fn propose_admin(
        &mut self,
        config: &StoreConfig,
        token: Token,
        admin: &Admin,
        effects: &mut Effects,
    ) {
        match self.try_admin(config, admin, effects) {
            Ok(position) => self.proposals.proposed(position, vec![token]),
            Err(error) => effects.replies.push((token, Reply::Admin(Err(error)))),
        }
    }

    fn try_admin(
        &mut self,
        config: &StoreConfig,
        admin: &Admin,
        effects: &mut Effects,
    ) -> Result<LogPosition> {
        if !self.runs() {
            return Err(self.fenced());
        }
        if !self.group.leads() || self.group.transferring() {
            return Err(self.not_leader());
        }
        match admin {
            Admin::Split(split) => {
                self.may_split(split)?;
                self.fold(config, effects);
                if self.proposals.has_pending() {
                    return Err(Error::Busy { what: "region's proposals" });
                }
                let position = self.put_admin(admin)?;
                self.reshaping = Some(position);
                Ok(position)
            }
            Admin::ChangePeers { epoch, changes } => self.propose_change(*epoch, changes),
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
            Admin::Forget { .. } => {
                Err(Error::InvalidArgument("only the leader knows who is gone".into()))
            }
        }
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

/// Applies an administrative command. A refusal is the same on every replica and leaves nothing behind.
pub(super) fn administer(
    admin: &Admin,
    state: &mut RegionState,
    applied: &mut Applied,
    batch: &mut WriteBatch,
    view: &dyn View,
) -> Result<AdminDone> {
    match admin {
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
                applied.births.push(born);
            }
            state.region = regions[0].clone();
            applied.reshaped = Some(state.region.clone());
            Ok(AdminDone::Shaped(regions))
        }
        Admin::ChangePeers { epoch, changes } => {
            let after = membership::change(&state.region, &state.removed, *epoch, changes)?;
            Ok(reshape(state, applied, after, changes))
        }
        Admin::LeaveJoint { epoch } => {
            let after = membership::leave(&state.region, *epoch)?;
            Ok(reshape(state, applied, after, &[]))
        }
        Admin::Forget { peers } => {
            state.removed.retain(|gone| !peers.contains(&gone.id));
            applied.removed = Some(state.removed.clone());
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
            let refused = || Error::InvalidArgument(format!("{count} ids"));
            let next = first.checked_add(*count).filter(|_| *count > 0).ok_or_else(refused)?;
            state.next_id = next;
            Ok(AdminDone::Ids { first })
        }
    }
}

/// Gives the region other replicas, and remembers those that it loses.
fn reshape(
    state: &mut RegionState,
    applied: &mut Applied,
    after: Region,
    changes: &[Change],
) -> AdminDone {
    let lost = state.region.peers.iter().filter(|peer| after.peer(peer.id).is_none());
    let lost: Vec<crate::types::Peer> = lost.copied().collect();
    if !lost.is_empty() {
        state.removed.extend(lost);
        applied.removed = Some(state.removed.clone());
    }
    state.region = after;
    applied.changes.push(changes.to_vec());
    applied.reshaped = Some(state.region.clone());
    AdminDone::Shaped(vec![state.region.clone()])
}
