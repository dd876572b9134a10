//! Races of merges that a reading found, each brought about by hand on one store: its events are handled, its effects
//! performed, when the test says so. Each test fails without the mend that it tells of.

use super::*;
use crate::codec::admin::Admin;
use crate::codec::merge::Commit;
use crate::codec::region::{REMOVED_MAX, encode_head};
use crate::kv::StateStore;
use crate::kv::mem::SimTablesDisk;
use crate::raft::{Envelope, Note};
use crate::region::snapshot::SnapshotFile;
use crate::region::storage::conf_state;
use crate::sim::clock::NodeClock;
use crate::sim::disk::SimDisk;
use crate::sim::node::{NodeOptions, Running, SimNode};
use crate::store::{Event, StoreConfig};
use ::raft::eraftpb::{Message, MessageType, Snapshot};
use std::collections::BTreeMap;
use std::time::Duration;

const HERE: StoreId = StoreId(1);
/// Of a region that is nowhere.
const NOWHERE: RegionId = RegionId(99);
/// As a merged region's replicas are told.
const LATER: Epoch = Epoch { conf_ver: u64::MAX, version: u64::MAX };

/// A region with voters on these stores: the peer of region 4 on store 1 is 41.
pub(in crate::store) fn region(
    id: u64,
    start: &'static str,
    end: &'static str,
    stores: &[u64],
) -> Region {
    let peer = |store: &u64| Peer {
        id: PeerId(id * 10 + store),
        store: StoreId(*store),
        role: Role::Voter,
    };
    Region {
        id: RegionId(id),
        range: KeyRange::new(start, end),
        epoch: Epoch { conf_ver: 1, version: 1 },
        peers: stores.iter().map(peer).collect(),
    }
}

/// Neighbours in a row, each alone on this store, so that each leads as soon as it is looked at.
fn row() -> Vec<Region> {
    let bounds = ["", "g", "p", "t", ""];
    (1..=4).map(|id| region(id, bounds[id as usize - 1], bounds[id as usize], &[1])).collect()
}

/// The replica of a region on this store, as a region that it was merged into lists it.
fn gone(id: u64) -> Departed {
    Departed { region: RegionId(id), id: PeerId(id * 10 + 1), store: HERE }
}

/// One node by hand.
pub(in crate::store) struct Bench {
    node: SimNode,
    pub now: Time,
    tokens: u64,
    answers: BTreeMap<Token, Reply>,
    wishes: Vec<MergeWish>,
}

impl Bench {
    /// A node that has just started; nothing was drained yet.
    fn new(layout: Vec<Region>) -> Bench {
        Bench::tired(layout, Duration::ZERO)
    }

    /// The same, whose idle groups sleep after so long.
    pub fn tired(layout: Vec<Region>, hibernate_after: Duration) -> Bench {
        let options = NodeOptions {
            config: StoreConfig { hibernate_after, ..StoreConfig::default() },
            loops: 1,
            log: crate::log::Options {
                segment_bytes: 16 << 12,
                spare_segments: 1,
                ..Default::default()
            },
            memtable_bytes: 4096,
            snapshot_slots: (1, 1),
            layout,
            planted: None,
        };
        let mut node = SimNode {
            id: HERE,
            disk: SimDisk::new(1),
            tables: SimTablesDisk::new(),
            clock: NodeClock::new(Time(0), 0),
            life: 0,
            running: None,
        };
        node.start(Time(0), &options).unwrap();
        let (answers, wishes) = (BTreeMap::new(), Vec::new());
        Bench { now: node.now(Time(0)), node, tokens: 0, answers, wishes }
    }

    pub fn running(&mut self) -> &mut Running {
        self.node.running.as_mut().unwrap()
    }

    pub fn store(&mut self) -> &mut Store {
        &mut self.running().stores[0]
    }

    pub fn handle(&mut self, event: Event) {
        let now = self.now;
        self.store().handle(now, event);
    }

    fn drain(&mut self) -> Effects {
        let (mut effects, now) = (Effects::default(), self.now);
        self.store().drain(now, &mut effects);
        effects
    }

    /// Writes, applies and reports what a round asked for.
    fn perform(&mut self, effects: Effects) {
        assert!(effects.fatal.is_none(), "{:?}", effects.fatal);
        self.answers.extend(effects.replies);
        self.wishes.extend(effects.merge_wishes);
        self.running().log.write_round().unwrap();
        for after in effects.after_persist {
            self.handle(Event::Persisted(after.acks));
        }
        self.running().tasks.extend(effects.apply);
        let outcome = self.running().apply().unwrap();
        self.answers.extend(outcome.replies);
        self.handle(Event::Applied(outcome.applied));
        for aside in effects.asides {
            self.handle(Event::Aside(aside));
        }
    }

    /// Performs rounds until there is nothing left to do.
    pub fn settle(&mut self) {
        while self.store().has_work() {
            let effects = self.drain();
            self.perform(effects);
        }
    }

    pub fn ticks(&mut self, count: u32) {
        for _ in 0..count {
            self.now = self.now.after(StoreConfig::default().tick);
            self.handle(Event::Tick);
            self.settle();
        }
    }

    fn post(&mut self, id: u64, admin: Admin) -> Token {
        self.tokens += 1;
        let token = Token(self.tokens);
        self.handle(Event::Admin { token, region: RegionId(id), admin });
        token
    }

    /// The answer to an administrative command, which must have come.
    fn answer(&mut self, token: Token) -> crate::Result<AdminDone> {
        match self.answers.remove(&token) {
            Some(Reply::Admin(done)) => done,
            other => panic!("{other:?}"),
        }
    }

    fn ask(&mut self, id: u64, admin: Admin) -> crate::Result<AdminDone> {
        let token = self.post(id, admin);
        self.settle();
        self.answer(token)
    }

    fn state(&mut self, id: u64) -> RegionState {
        self.running().kv.view().unwrap().record(RegionId(id)).unwrap()
    }

    /// Freezes a region for another, and gives its wish.
    fn freeze(&mut self, source: u64, target: u64) -> MergeWish {
        let (epoch, target) = (self.state(source).region.epoch, self.state(target).region);
        self.ask(source, Admin::PrepareMerge(Prepare { epoch, target, first: 0 })).unwrap();
        assert!(self.state(source).merging.is_some());
        self.ticks(40);
        let own = |wish: &&MergeWish| wish.source == RegionId(source);
        self.wishes.iter().find(own).unwrap().clone()
    }

    fn note(&mut self, id: u64, note: Note) {
        self.handle(Event::Messages(vec![Envelope {
            region: RegionId(id),
            from: PeerId(992),
            to: PeerId(id * 10 + 1),
            from_store: StoreId(2),
            message: Message::default(),
            note: Some(note),
        }]));
    }

    fn leaves(&mut self, id: u64) -> bool {
        self.store().peers().any(|peer| peer.region.id == RegionId(id) && peer.leaving)
    }

    /// Whether a replica takes part in its group.
    fn stands(&mut self, id: u64) -> bool {
        self.store().peers().any(|peer| peer.region.id == RegionId(id) && peer.runs())
    }

    fn ask_to_yield(&mut self, id: u64) -> bool {
        self.store().ask_to_yield(&[gone(id)])
    }

    /// Has a replica stand still for a snapshot of the region that it was merged into.
    fn still(&mut self, id: u64) {
        assert!(!self.ask_to_yield(id), "it is told to");
        self.settle();
        assert!(self.ask_to_yield(id), "and does");
    }

    /// A snapshot has arrived for the replica here: whether it is to be restored. If not, its file must go.
    fn takes(&mut self, region: &Region, removed: Vec<Departed>) -> bool {
        let at = LogPosition { index: 40, term: 9 };
        let head = RegionState { region: region.clone(), removed, ..RegionState::default() };
        let mut snapshot = Snapshot { data: encode_head(&head), ..Snapshot::default() };
        let meta = snapshot.mut_metadata();
        (meta.index, meta.term) = (at.index, at.term);
        meta.set_conf_state(conf_state(region));
        let to = region.peer_on(HERE).unwrap().id;
        let from = region.peer_on(StoreId(2)).unwrap().id;
        let mut message = Message { from: from.0, to: to.0, term: at.term, ..Message::default() };
        message.set_msg_type(MessageType::MsgSnapshot);
        message.set_snapshot(snapshot);
        let (region, from_store) = (region.id, StoreId(2));
        let envelope = Envelope { region, from, to, from_store, message, note: None };
        let file = SnapshotFile { path: "/snap/1".into() };
        self.handle(Event::SnapshotReceived { envelope, file: file.clone() });
        let effects = self.drain();
        let restores = |task: &ApplyTask| matches!(task, ApplyTask::Restore { .. });
        let restored = effects.apply.iter().any(restores);
        assert_eq!(effects.discard.contains(&file), !restored);
        restored
    }
}

/// A leader that has not applied an entry of its own term does not know what its predecessor proposed: a commit of the
/// same source may be under way, and its own would follow it in the log. It proposes none before it knows.
#[test]
fn a_leader_commits_nothing_before_it_knows_what_its_predecessor_did() {
    let mut bench = Bench::new(row());
    let first = bench.drain();
    let leads = |peer: &crate::region::peer::Peer| {
        peer.region.id == RegionId(3) && peer.leads_term().is_some()
    };
    assert!(bench.store().peers().any(leads), "elected, and nothing of its term is durable");
    let epoch = bench.state(3).region.epoch;
    let commit = Commit {
        target: RegionId(3),
        epoch,
        source: region(2, "g", "h", &[1]),
        at: LogPosition { index: 9, term: 6 },
        first: 10,
        entries: vec![],
    };
    let token = bench.post(3, Admin::CommitMerge(Box::new(commit.clone())));
    let second = bench.drain();
    assert!(
        matches!(&second.replies[..], [(answered, Reply::Admin(Err(Error::Busy { .. })))] if *answered == token),
        "{:?}",
        second.replies
    );
    bench.perform(first);
    bench.perform(second);
    bench.settle();
    bench.answer(token).unwrap_err();
    // Now it is proposed, and judged where it is applied: it makes no sense.
    let judged = bench.ask(3, Admin::CommitMerge(Box::new(commit)));
    assert!(matches!(judged, Err(Error::InvalidArgument(_))), "{judged:?}");
}

/// "You are gone, and were merged into this one": as long as a replica of that one lives here, or is about to, the data
/// are its to take over, maybe at this moment. Only where nobody does the replica goes by itself.
#[test]
fn who_was_merged_does_not_go_while_the_one_that_takes_it_over_is_here() {
    let mut bench = Bench::new(row()[..2].to_vec());
    bench.settle();
    bench.note(2, Note::Gone { epoch: LATER, by: RegionId(1) });
    assert!(!bench.leaves(2), "its heir lives here");
    let heir = region(99, "t", "", &[1]);
    assert!(bench.running().registry.claim(&heir, &[]));
    bench.note(2, Note::Gone { epoch: LATER, by: NOWHERE });
    assert!(!bench.leaves(2), "its heir is on its way");
    bench.running().registry.remove(NOWHERE);
    bench.note(2, Note::Gone { epoch: LATER, by: NOWHERE });
    assert!(bench.leaves(2));
    bench.settle();
    assert!(bench.state(2).is_tombstone());
}

/// A replica that stands still for a snapshot is sent away before that comes: from then on its data are being deleted, and
/// whoever looks whether it stands still must find that it does not.
#[test]
fn who_is_buried_does_not_stand_still_any_more() {
    let mut bench = Bench::new(row()[..2].to_vec());
    bench.settle();
    bench.still(2);
    bench.note(2, Note::Gone { epoch: LATER, by: NOWHERE });
    assert!(bench.leaves(2));
    assert!(!bench.ask_to_yield(2), "it is being buried");
    bench.settle();
    assert!(bench.state(2).is_tombstone());
    assert!(bench.ask_to_yield(2), "nobody is left to yield");
}

/// A split cuts out a source whose replica is not born here yet, and a snapshot comes of the region that it was merged into
/// since. Nobody to ask is not the same as somebody who stands still: once born it would have its data replaced
/// under its feet.
#[test]
fn who_is_about_to_be_born_does_not_stand_still() {
    let mut bench = Bench::new(row()[..2].to_vec());
    bench.settle();
    assert!(bench.ask_to_yield(7), "it never was here");
    let unborn = region(7, "t", "", &[1]);
    assert!(bench.running().registry.claim(&unborn, &[]));
    assert!(!bench.ask_to_yield(7));
    bench.running().registry.remove(unborn.id);
    assert!(bench.ask_to_yield(7), "it is not coming after all");
}

/// The snapshot of a region that took others in, and was cut again since. Restoring it deletes all from the region's first
/// key to the last one of those that end in it; between them another region may live here by now, whose keys it
/// must not touch. Then the snapshot is refused until those have gone, whether or not a replica of its region is here.
#[test]
fn a_snapshot_does_not_reach_over_a_region_that_lives_between_it_and_whom_it_swallows() {
    let into = region(10, "a", "g", &[1, 2, 3]);
    let own = || vec![region(1, "", "a", &[1]), region(2, "m", "p", &[1])];
    let between = || region(3, "g", "m", &[1]);
    for (there, free) in [(vec![], true), (vec![between()], false)] {
        for known in [vec![], vec![into.clone()]] {
            let mut bench = Bench::new([own(), there.clone(), known.clone()].concat());
            bench.settle();
            bench.still(2);
            let taken = bench.takes(&into, vec![gone(2)]);
            assert_eq!(taken, free, "beside {there:?}, with {known:?}");
        }
    }
}

/// A region is frozen for a target that is itself merged away, which its tombstone says: nobody will ever answer its wish,
/// so it thaws. A tombstone without that mark says only that a replica was removed from this store: the region
/// lives elsewhere, may have taken the source in, and the source waits.
#[test]
fn a_target_that_was_merged_away_is_known_by_the_mark_on_its_tombstone() {
    let mut bench = Bench::new(row());
    bench.settle();
    bench.freeze(2, 3);
    let wish = bench.freeze(3, 4);
    bench.ask(4, Admin::CommitMerge(wish.commit)).unwrap();
    assert!(bench.state(3).is_tombstone() && bench.state(3).merging.is_some());
    bench.wishes.clear();
    bench.ticks(60);
    assert!(bench.state(2).merging.is_none(), "thawed");
    assert_eq!(bench.wishes, []);
    assert_eq!(bench.state(4).region.range, KeyRange::new("p", ""));

    let mut bench = Bench::new(row());
    bench.settle();
    bench.freeze(2, 3);
    bench.note(3, Note::Gone { epoch: LATER, by: NOWHERE });
    bench.settle();
    assert!(bench.state(3).is_tombstone() && bench.state(3).merging.is_none());
    bench.wishes.clear();
    bench.ticks(60);
    assert!(bench.state(2).merging.is_some(), "it waits");
    assert!(!bench.wishes.is_empty());
}

/// A replica that never was here is declared dead, and while that is being written a snapshot comes for its successor. The
/// keys are the successor's from then on: should one that was cut out of it since come first, also by a snapshot,
/// its successor would give birth to it once more, over its head.
#[test]
fn the_end_of_one_who_never_came_frees_no_keys_of_its_successor() {
    let mut bench = Bench::new(row()[..2].to_vec());
    bench.settle();
    bench.handle(Event::Messages(vec![Envelope {
        region: RegionId(7),
        from: PeerId(72),
        to: PeerId(71),
        from_store: StoreId(2),
        message: Message::default(),
        note: Some(Note::Gone { epoch: Epoch { conf_ver: 3, version: 1 }, by: RegionId(7) }),
    }]));
    let dies = bench.drain();
    assert!(matches!(dies.apply[..], [ApplyTask::Destroy { .. }]), "{:?}", dies.apply);
    let mut successor = region(7, "p", "", &[1, 2]);
    successor.peers[0].id = PeerId(79);
    assert!(bench.takes(&successor, vec![]));
    bench.perform(dies);
    assert!(bench.running().registry.is_coming(RegionId(7)), "its keys are kept for it");
    assert!(!bench.takes(&region(8, "t", "", &[1, 2]), vec![]), "they are another's still");
}

/// The list of the gone has no room for those of a source. A target that finds so only when it applies the commit has made
/// the source stand still before, on every store, for good: nobody would wish, answer or campaign there any more.
#[test]
fn a_source_is_not_troubled_for_a_commit_that_the_list_has_no_room_for() {
    let mut bench = Bench::new(row());
    bench.settle();
    let wish = bench.freeze(2, 3);
    let gone = |id| Departed { region: NOWHERE, id: PeerId(9_000 + id), store: HERE };
    let full: Vec<Departed> = (0..REMOVED_MAX as u64).map(gone).collect();
    let commit = wish.commit.clone();
    let target = |bench: &mut Bench, removed: &[Departed]| {
        let peer = bench.store().peers.get_mut(&RegionId(3)).unwrap();
        peer.set_removed(removed.to_vec());
    };
    target(&mut bench, &full);
    let refused = bench.ask(3, Admin::CommitMerge(commit.clone()));
    assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
    assert!(bench.stands(2), "it still wishes");
    // Proposed while there was room, and applied when there is none.
    target(&mut bench, &[]);
    let token = bench.post(3, Admin::CommitMerge(commit));
    let proposed = bench.drain();
    target(&mut bench, &full);
    bench.running().log.write_round().unwrap();
    for after in proposed.after_persist {
        bench.handle(Event::Persisted(after.acks));
    }
    let effects = bench.drain();
    assert!(effects.asides.is_empty(), "{:?}", effects.asides);
    assert!(
        effects.apply.iter().any(|task| task.region() == RegionId(3)),
        "the applier refuses it"
    );
    assert!(bench.stands(2) && !bench.answers.contains_key(&token));
}
