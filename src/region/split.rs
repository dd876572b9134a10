//! Split: one region becomes several, without moving a byte.
//!
//! **Life of a split.** The leader is given keys and fresh ids ([`Peer::propose_admin`](super::admin)). It refuses unless every
//! follower replicates: a child whose follower has no parent to be cut from would need a snapshot. What waits
//! for a place in the log goes before the split; what comes after it waits until the split is applied, and is then
//! sent home with the new shapes, because its keys may belong to a child. One entry says everything; on each
//! replica the [`Applier`](super::apply::Applier) checks the epoch once more and publishes parent and children in
//! ONE batch of the state store, so that no cut sees half a split. Data stays where it is: a region is a range.
//!
//! Every child starts at the same log position on every replica, term 5, before which nobody can have voted. The
//! loop that hears of the split hands the children to their loops ([`Birth`](super::effects::Birth)); the child
//! beside the parent's leader campaigns at once. A vote request that arrives before the child exists is kept
//! and answered then.
//!
//! **Crash.** Until a flush covers the split, the parent's log holds it (the rule: nothing is dropped that the
//! last cut may need) and it is applied again; meanwhile the log may hold a child that the state store does not
//! know yet. It is left alone: when the split is applied again, the child starts from what its log holds.
//!
//! Before any child acts, the parent's log says that the split is committed, so that it is applied again without
//! anybody's help, and not overtaken by a snapshot that knows no children.
//!
//! **Reads.** Nobody reads a child's keys by the parent's lease or by a round of the parent: the leader
//! publishes its commit index before a follower can learn of it, a lease read must find it applied, and once the
//! split is applied the version differs. So a child that is written to elsewhere is never overlooked; the simulator looks at who
//! would answer for a key (`sim::leases`).

use super::effects::{Effects, Reply};
use super::peer::Peer;
use crate::codec::admin::{CHILDREN_MAX, Split};
use crate::codec::command::KEY_BYTES_MAX;
use crate::error::{Error, Result};
use crate::types::*;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The regions that a split leaves behind, the cut one first.
///
/// Errors: [`Error::EpochNotMatch`] when it was made for another shape, [`Error::InvalidArgument`] when its keys or
/// ids make no sense. Every replica judges alike.
pub fn divide(region: &Region, split: &Split) -> Result<Vec<Region>> {
    if split.epoch != region.epoch {
        return Err(Error::EpochNotMatch { current: vec![region.clone()] });
    }
    let wrong = |what: &str| Err(Error::InvalidArgument(format!("split of {}: {what}", region.id)));
    let Some(ranges) = split.ranges(&region.range) else {
        return wrong("its keys do not cut the range in order");
    };
    if split.children.is_empty() || split.children.len() > CHILDREN_MAX {
        return wrong("no key, or too many");
    }
    if split.children.iter().any(|child| child.start.len() > KEY_BYTES_MAX) {
        return wrong("a key too long");
    }
    if region.is_joint() {
        return wrong("its replicas are being changed");
    }
    let mut peers = BTreeSet::new();
    let mut regions = BTreeSet::from([region.id]);
    for child in &split.children {
        let fresh = child.peers.iter().all(|peer| peer.0 > 0 && peers.insert(*peer));
        if !fresh || !regions.insert(child.region) || child.region.0 == 0 {
            return wrong("an id twice");
        }
        if child.peers.len() != region.peers.len() {
            return wrong("a peer for each of the parent's, no more, no less");
        }
    }
    let epoch = Epoch { version: epoch_after(region, split), ..region.epoch };
    let mut ranges = ranges.into_iter();
    let own = Region { range: ranges.next().unwrap_or_default(), epoch, ..region.clone() };
    let children = split.children.iter().zip(ranges).map(|(child, range)| {
        let peers = region.peers.iter().zip(&child.peers);
        let peers = peers.map(|(parent, id)| crate::types::Peer { id: *id, ..*parent }).collect();
        Region { id: child.region, range, epoch, peers }
    });
    Ok(std::iter::once(own).chain(children).collect())
}

fn epoch_after(region: &Region, split: &Split) -> u64 {
    region.epoch.version + split.children.len() as u64
}

/// The state in which a child starts on the store that holds this replica of its parent.
pub fn newborn(child: Region, parent: &RegionState) -> Option<RegionState> {
    let store = parent.region.peer(parent.peer)?.store;
    Some(RegionState {
        peer: child.peer_on(store)?.id,
        region: child,
        applied: INITIAL_POSITION,
        compacted: INITIAL_POSITION,
        ..RegionState::default()
    })
}

impl Peer {
    pub(super) fn may_split(&self, split: &Split) -> Result<()> {
        if self.reshaping.is_some() || self.changing.is_some() {
            return Err(Error::Busy { what: "another change of the region's shape" });
        }
        divide(&self.region, split)?;
        match self.group.all_replicate() {
            true => Ok(()),
            false => Err(Error::Busy { what: "a replica that is behind" }),
        }
    }

    /// The region has another shape: whoever waits with the old one is told.
    pub(crate) fn reshaped(&mut self, region: Region, effects: &mut Effects) {
        let moved = region.epoch.version != self.region.epoch.version;
        #[cfg(any(test, feature = "sim"))]
        if self.planted.range_kept && !region.range.covers(&self.region.range) {
            self.share.planted.keep(&self.region);
        }
        let shown = self.share.region();
        self.region = if *shown == region { shown } else { Arc::new(region) };
        self.share.set_region(Arc::clone(&self.region));
        if !moved {
            return;
        }
        self.forget_size();
        self.load.forget();
        let error = || Error::EpochNotMatch { current: vec![Region::clone(&self.region)] };
        for token in self.proposals.take_pending() {
            effects.replies.push((token, Reply::Written(Err(error()))));
        }
        for token in self.reads.abandon() {
            effects.replies.push((token, Reply::Read(Err(error()))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::admin::Child;

    fn parent() -> Region {
        let peer =
            |at: u64| crate::types::Peer { id: PeerId(at), store: StoreId(at), role: Role::Voter };
        Region {
            id: RegionId(4),
            range: KeyRange::new("a", "z"),
            epoch: Epoch { conf_ver: 3, version: 9 },
            peers: vec![peer(1), crate::types::Peer { role: Role::Learner, ..peer(2) }],
        }
    }

    fn child(id: u64, start: &'static str, peers: [u64; 2]) -> Child {
        Child { region: RegionId(id), start: start.into(), peers: peers.map(PeerId).to_vec() }
    }

    #[test]
    fn children_share_stores_roles_and_version() {
        let children = vec![child(10, "g", [11, 12]), child(20, "p", [21, 22])];
        let split = Split { epoch: parent().epoch, children };
        let made = divide(&parent(), &split).unwrap();
        let shapes: Vec<_> =
            made.iter().map(|r| (r.id.0, &r.range.start[..], &r.range.end[..])).collect();
        assert_eq!(shapes, [(4, &b"a"[..], &b"g"[..]), (10, b"g", b"p"), (20, b"p", b"z")]);
        assert!(made.iter().all(|r| r.epoch == Epoch { conf_ver: 3, version: 11 }));
        assert_eq!(made[0].peers, parent().peers);
        let second = made[2].peers[1];
        assert_eq!((second.id, second.store, second.role), (PeerId(22), StoreId(2), Role::Learner));
        let state = RegionState { region: parent(), peer: PeerId(2), ..Default::default() };
        let newborn = newborn(made[1].clone(), &state).unwrap();
        assert_eq!((newborn.peer, newborn.applied), (PeerId(12), INITIAL_POSITION));
    }

    #[test]
    fn nonsense_is_refused_alike_everywhere() {
        let split = |children| Split { epoch: parent().epoch, children };
        let refused = |split: Split| divide(&parent(), &split).unwrap_err();
        assert!(matches!(refused(split(vec![])), Error::InvalidArgument(_)));
        for wrong in [
            vec![child(4, "g", [11, 12])],
            vec![child(10, "g", [11, 11])],
            vec![child(10, "g", [11, 12]), child(10, "h", [13, 14])],
            vec![child(10, "a", [11, 12])],
            vec![child(10, "zz", [11, 12])],
            vec![Child { peers: vec![PeerId(7)], ..child(10, "g", [0, 0]) }],
        ] {
            assert!(matches!(refused(split(wrong)), Error::InvalidArgument(_)));
        }
        let old = Split { epoch: Epoch { conf_ver: 2, version: 9 }, children: vec![] };
        assert!(matches!(refused(old), Error::EpochNotMatch { .. }));
    }
}
