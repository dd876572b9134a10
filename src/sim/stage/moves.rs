//! A replica goes from one store to another, step by step as an operator takes it there: a learner first, which is promoted once
//! it has caught up; then leadership goes there, if it was at the old place, and the old one goes.
//! A replica that comes to a store that had one has another id.

use super::*;
use crate::codec::admin::Change;

/// Between the ids of a region's replicas on one store, one after the other.
const LATER: u64 = 1_000;

impl Stage {
    /// Moves a replica.
    pub fn move_replica(&mut self, region: RegionId, from: StoreId, to: StoreId) -> Outcome<()> {
        let known = self.patiently(|stage| stage.leader(region))?.1;
        let old = known.peer_on(from).map_or(PeerId(0), |peer| peer.id);
        let new = self.place(region, to, true)?;
        self.change(region, Change::Promote(new))?;
        if self.leader(region)?.0 == from {
            // The new voter has to be heard of first.
            self.run(LOOK * 5)?;
            self.transfer(region, to)?;
        }
        self.change(region, Change::Remove(old))?;
        *self.hand().left.entry((region, from)).or_default() += 1;
        Ok(())
    }

    /// Places a learner, which is to be promoted or to stay.
    pub fn place(&mut self, region: RegionId, on: StoreId, passing: bool) -> Outcome<PeerId> {
        let before = self.hand().left.get(&(region, on)).copied().unwrap_or(0);
        let peer = PeerId(peer_of(region, on).0 + before * LATER);
        self.change(region, Change::AddLearner { peer, store: on, passing })?;
        Ok(peer)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::config::StoreConfig;

    const REGION: RegionId = RegionId(2);
    const NEW: StoreId = StoreId(4);

    /// Whoever moved a replica asked for the last step again and again and was refused (its leader could not hand over, say): the
    /// leader took him for gone, removed the replica that had arrived, and he was told that it had never been there.
    #[test]
    fn a_replica_in_passing_stays_while_somebody_asks_for_its_promotion() {
        let mut stage = Stage::open_among(3, 4, &["m"], None).unwrap();
        let new = stage.place(REGION, NEW, true).unwrap();
        let there = |stage: &Stage| stage.leader(REGION).unwrap().1.peer_on(NEW).is_some();
        let ticks = options(Vec::new(), None).config.group.election_ticks as u32;
        let election = StoreConfig::default().tick * ticks;
        for _ in 0..60 {
            stage.run(election).unwrap();
            let (leader, known) = stage.leader(REGION).unwrap();
            let old = known.peer_on(leader).unwrap().id;
            let changes = vec![Change::Promote(new), Change::Demote(old)];
            let asked = stage.admin(REGION, Admin::ChangePeers { epoch: known.epoch, changes });
            let stays = matches!(asked, Err(Setback::Refused(Error::LeaderStays { .. })));
            assert!(stays && there(&stage), "{asked:?}");
        }
        // Nobody comes for it any more.
        stage.run(election * 15).unwrap();
        assert!(there(&stage));
        stage.run(election * 20).unwrap();
        assert!(!there(&stage));
    }
}
