//! What is judged alike everywhere, and races of merges that a reading found: each of those tests fails without its mend.

use super::*;
use crate::codec::region::REMOVED_MAX;
use crate::kv::mem::SimTablesDisk;
use crate::kv::{Options, StateStore, TableStore};
use crate::region::apply::{Applier, ApplyOutcome};
use crate::region::machine::KvMachine;
use crate::sim::disk::SimDisk;
use smallvec::smallvec;
use std::sync::Arc;

fn region(id: u64, range: KeyRange, stores: [u64; 3]) -> Region {
    let peers = stores.iter().enumerate().map(|(at, store)| crate::types::Peer {
        id: PeerId(id * 10 + at as u64),
        store: StoreId(*store),
        role: Role::Voter,
    });
    let epoch = Epoch { conf_ver: 2, version: id };
    Region { id: RegionId(id), range, epoch, peers: peers.collect() }
}

fn pair() -> (Region, Region) {
    let source = region(4, KeyRange::new("m", "z"), [1, 2, 3]);
    (source, region(7, KeyRange::new("a", "m"), [3, 1, 2]))
}

fn prepare(source: &Region, target: &Region) -> Prepare {
    Prepare { epoch: source.epoch, target: target.clone(), first: 9 }
}

fn state(region: &Region) -> RegionState {
    RegionState { region: region.clone(), ..RegionState::default() }
}

fn commit(source: Region, target: &Region) -> Commit {
    let at = LogPosition { index: 9, term: 6 };
    let (target, epoch) = (target.id, target.epoch);
    Commit { target, epoch, source, at, first: 10, entries: vec![] }
}

#[test]
fn a_region_goes_into_its_neighbour_on_either_side() {
    let (source, target) = pair();
    for (from, into) in [(&source, &target), (&target, &source)] {
        let frozen = freeze(&state(from), &prepare(from, into)).unwrap();
        let Epoch { conf_ver, version } = from.epoch;
        assert_eq!(frozen.epoch, Epoch { conf_ver: conf_ver + 1, version: version + 1 });
        let merged = absorb(into, &commit(frozen.clone(), into)).unwrap();
        assert_eq!(merged.range, KeyRange::new("a", "z"));
        assert_eq!((merged.id, &merged.peers), (into.id, &into.peers));
        assert!(merged.epoch.version > frozen.epoch.version.max(into.epoch.version));
    }
}

#[test]
fn nonsense_and_other_shapes_are_refused_alike_everywhere() {
    let (source, target) = pair();
    let refused = |state: &RegionState, prepare: &Prepare| freeze(state, prepare).unwrap_err();
    let wrong = |state: &RegionState, target: &Region| {
        let error = refused(state, &prepare(&state.region, target));
        assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    };
    wrong(&state(&Region { id: FIRST_REGION, ..source.clone() }), &target);
    wrong(&state(&source), &source);
    wrong(&state(&source), &region(8, KeyRange::new("a", "l"), [1, 2, 3]));
    wrong(&state(&source), &region(8, KeyRange::new("a", "m"), [1, 2, 4]));
    let mut learns = target.clone();
    learns.peers[0].role = Role::Learner;
    wrong(&state(&source), &learns);
    let old = Prepare { epoch: Epoch::default(), ..prepare(&source, &target) };
    assert!(matches!(refused(&state(&source), &old), Error::EpochNotMatch { .. }));
    let gone = RegionState { removed: vec![Departed::default()], ..state(&source) };
    assert!(matches!(refused(&gone, &prepare(&source, &target)), Error::Busy { .. }));
    let compacted = LogPosition { index: 9, term: 5 };
    let compacted = RegionState { compacted, ..state(&source) };
    assert!(matches!(refused(&compacted, &prepare(&source, &target)), Error::Busy { .. }));
    let mut moved = target.clone();
    moved.epoch.version += 1;
    let late = absorb(&moved, &commit(source, &target)).unwrap_err();
    assert!(matches!(late, Error::EpochNotMatch { .. }));
}

#[test]
fn only_a_later_shape_is_a_final_no() {
    let epoch = |conf_ver, version| Epoch { conf_ver, version };
    assert!(is_later(epoch(2, 4), epoch(2, 3)) && is_later(epoch(3, 3), epoch(2, 3)));
    assert!(!is_later(epoch(2, 3), epoch(2, 3)));
    assert!(!is_later(epoch(1, 9), epoch(2, 3)), "not of one life");
}

/// Store 1 with replicas of a frozen source and of its target, and its applier.
struct Desk {
    kv: TableStore,
    applier: Applier,
    target: RegionState,
    commit: Commit,
}

impl Desk {
    /// `removed`: so many former replicas of other regions are on the target's list.
    fn new(removed: usize) -> Desk {
        let (source, target) = pair();
        let frozen = freeze(&state(&source), &prepare(&source, &target)).unwrap();
        let commit = commit(frozen.clone(), &target);
        let source = RegionState {
            peer: frozen.peer_on(StoreId(1)).unwrap().id,
            applied: commit.at,
            merging: Some(Merging {
                target: target.id,
                start: target.range.start.clone(),
                epoch: target.epoch,
                first: commit.first,
                at: commit.at,
            }),
            ..state(&frozen)
        };
        let gone = |id| Departed { region: RegionId(99), id: PeerId(id), store: StoreId(1) };
        let target = RegionState {
            peer: target.peer_on(StoreId(1)).unwrap().id,
            applied: LogPosition { index: 20, term: 6 },
            removed: (0..removed as u64).map(|id| gone(1_000 + id)).collect(),
            ..state(&target)
        };
        let tables = Box::new(SimTablesDisk::new().open());
        let kv = TableStore::open(tables, Options::default()).unwrap();
        let ident = StoreIdent { cluster: 1, store: StoreId(1), incarnation: 1 };
        kv.bootstrap(&ident, vec![source, target.clone()]).unwrap();
        let shared: Arc<dyn StateStore> = Arc::new(kv.clone());
        let applier = Applier::new(shared, Arc::new(KvMachine), Arc::new(SimDisk::new(1)));
        Desk { kv, applier, target, commit }
    }

    /// Applies the commit at an index of the target's log: what is answered, and what else came of it.
    fn commit_at(&mut self, index: u64) -> (Result<AdminDone>, News) {
        let entry = CommittedEntry {
            position: LogPosition { index, term: 6 },
            data: Admin::CommitMerge(Box::new(self.commit.clone())).encode(),
            waiting: smallvec![Token(1)],
        };
        let (region, peer) = (self.target.region.id, self.target.peer);
        let mut outcome = ApplyOutcome::default();
        let tasks = vec![ApplyTask::Entries { region, peer, entries: smallvec![entry] }];
        self.applier.apply(tasks, &mut outcome).unwrap();
        match outcome.replies.pop() {
            Some((Token(1), Reply::Admin(done))) => {
                let [applied] = &mut outcome.applied[..] else { panic!("{outcome:?}") };
                (done, *applied.news.take().unwrap_or_default())
            }
            other => panic!("{other:?}"),
        }
    }

    fn record(&self, region: RegionId) -> RegionState {
        self.kv.view().unwrap().record(region).unwrap()
    }
}

/// Two leaders of the target, one after the other, propose the same commit, the second before it has applied the first.
/// The target has another shape by then, of its own making. Were the second copy refused for that, whoever proposed it
/// would take the refusal for a final no and thaw a source that is merged: it is answered as the first one was, and
/// changes nothing.
#[test]
fn a_commit_that_comes_twice_is_no_refusal() {
    let mut desk = Desk::new(0);
    let (first, news) = desk.commit_at(21);
    let merged = desk.record(desk.target.region.id);
    assert_eq!(first.unwrap(), AdminDone::Shaped(vec![merged.region.clone()]));
    assert_eq!(merged.region.range, KeyRange::new("a", "z"));
    assert_eq!((news.absorbed.len(), merged.removed.len()), (1, 3));
    let grave = desk.record(desk.commit.source.id);
    assert!(grave.is_tombstone() && grave.merging.is_some());

    let (second, news) = desk.commit_at(22);
    assert_eq!(second.unwrap(), AdminDone::Shaped(vec![merged.region.clone()]));
    let after = desk.record(desk.target.region.id);
    assert_eq!(after.applied.index, 22);
    assert_eq!(RegionState { applied: merged.applied, ..after }, merged, "nothing has changed");
    assert_eq!(news, News::default());
    assert_eq!(desk.record(desk.commit.source.id), grave);
}

/// The list of former replicas has an end: a snapshot's head with a longer one would be refused by whoever needs it. A
/// merge for which there is no room is told so, which is no final no: the source stays frozen, and goes in
/// once some of the others are known to be gone.
#[test]
fn a_merge_that_the_list_of_the_gone_has_no_room_for_waits() {
    let mut desk = Desk::new(REMOVED_MAX - 2);
    let (refused, news) = desk.commit_at(21);
    let Err(Error::Busy { what }) = refused else { panic!("{refused:?}") };
    assert!(what.contains("not known to be gone"), "{what}");
    assert_eq!(news, News::default());
    assert_eq!(desk.record(desk.target.region.id).region, desk.target.region);
    assert!(desk.record(desk.commit.source.id).merging.is_some());
    assert!(!desk.record(desk.commit.source.id).is_tombstone());
    let mut roomy = Desk::new(REMOVED_MAX - 3);
    roomy.commit_at(21).0.unwrap();
    assert_eq!(roomy.record(roomy.target.region.id).removed.len(), REMOVED_MAX);
}
