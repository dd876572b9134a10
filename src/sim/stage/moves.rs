//! A replica goes from one store to another, step by step as an operator takes it there: a learner first, which is promoted once
//! it has caught up; then leadership goes there, if it was at the old place, and the old one goes.
//!
//! Not done: to move a replica back to a store that had one, for its id would be the old one.

use super::*;
use crate::codec::admin::Change;

impl Stage {
    /// Moves a replica.
    pub fn move_replica(&mut self, region: RegionId, from: StoreId, to: StoreId) -> Outcome<()> {
        let (old, new) = (peer_of(region, from), peer_of(region, to));
        self.change(region, Change::AddLearner { peer: new, store: to })?;
        self.change(region, Change::Promote(new))?;
        if self.leader(region)?.0 == from {
            // The new voter has to be heard of first.
            self.run(LOOK * 5)?;
            self.transfer(region, to)?;
        }
        self.change(region, Change::Remove(old))
    }

    /// One change of a region's replicas, asked for again while something is in its way.
    fn change(&mut self, region: RegionId, change: Change) -> Outcome<()> {
        let end = self.now().after(PATIENCE);
        loop {
            let changed = self.patiently(|stage| {
                let epoch = stage.leader(region)?.1.epoch;
                stage.admin(region, Admin::ChangePeers { epoch, changes: vec![change] })
            });
            match changed {
                // A learner that has not caught up, most likely.
                Err(Setback::Refused(Error::Busy { .. })) if self.now() < end => self.run(RETRY)?,
                done => return done.map(drop),
            }
        }
    }
}
