//! Merges, as far as several replicas of a store are concerned. The story stands in
//! [`region::merge`](crate::region::merge).

use super::round::Store;
use crate::codec::merge::Prepare;
use crate::codec::region::Head;
use crate::error::Error;
use crate::region::effects::*;
use crate::region::merge::{FROZEN, was_merged};
use crate::types::*;

impl Store {
    /// The replicas of this store whose regions were merged into that of a snapshot, and are not known to be gone.
    pub(super) fn merged_into(&self, head: &Head) -> Vec<Departed> {
        let here =
            |gone: &&Departed| gone.store == self.config.store && gone.region != head.region.id;
        head.removed.iter().filter(here).copied().collect()
    }

    /// What the restore of a snapshot clears, as far as the loops know: the region's keys, those that its replica here has `held`
    /// so far, and those of each that it swallows. What lies between them is none of its business: a region that took others in
    /// may have been cut since, and others may live there by now.
    pub(super) fn cleared_by(
        &self,
        head: &Head,
        held: Option<KeyRange>,
        swallow: &[Departed],
    ) -> Vec<KeyRange> {
        let swallowed = swallow.iter().filter_map(|gone| self.registry.get(gone.region));
        let swallowed = swallowed.map(|share| share.region().range.clone());
        std::iter::once(head.region.range.clone()).chain(held).chain(swallowed).collect()
    }

    /// Whether those of them that live stand still; who does not is told to.
    pub(super) fn ask_to_yield(&mut self, swallow: &[Departed]) -> bool {
        let mut still = true;
        for gone in swallow {
            // It is about to be born.
            still &= !self.registry.is_coming(gone.region);
            let living = self.registry.get(gone.region).filter(|share| share.peer == gone.id);
            if living.is_some_and(|share| !share.is_still()) {
                still = false;
                let (region, peer) = (gone.region, gone.id);
                self.pending.asides.push(Aside { region, peer, word: Word::Yield });
            }
        }
        still
    }

    /// A frozen region whose target was itself merged away, which its tombstone here says, thaws: that one had not taken this
    /// region in, whose leader lives.
    pub(super) fn give_up_merge(&mut self, region: RegionId) {
        let of = |wish: &MergeWish| wish.source == region;
        let Some(at) = self.pending.merge_wishes.iter().position(of) else { return };
        let target = self.pending.merge_wishes[at].merging.target;
        let record = self.kv.view().ok().and_then(|view| view.record(target));
        if record.is_some_and(|dead| was_merged(&dead)) {
            self.pending.merge_wishes.remove(at);
            if let Some(peer) = self.peers.get_mut(&region) {
                peer.thaw();
                self.touched.push(region);
            }
        }
    }

    /// Replicas whose data another one has taken over are gone: their loops hear of it from the appliers.
    pub(super) fn bury_absorbed(&mut self, news: &mut News) {
        for gone in std::mem::take(&mut news.absorbed) {
            let (region, peer, epoch) = (gone.region, gone.id, Epoch::default());
            self.pending.apply.push(ApplyTask::Destroy { region, peer, epoch });
        }
    }

    /// Whether a merge can be begun as far as the target's replica here knows: a region that was frozen for a target of
    /// another shape, or for none, would only have to be thawed again.
    pub(super) fn knows_target(&self, prepare: &Prepare) -> crate::Result<()> {
        let target = &prepare.target;
        let here = self.registry.get(target.id).ok_or(Error::RegionNotFound(target.id))?;
        let known = here.region();
        match *known == *target {
            true if here.is_still() => Err(FROZEN),
            true => Ok(()),
            false => Err(Error::EpochNotMatch { current: vec![(*known).clone()] }),
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
