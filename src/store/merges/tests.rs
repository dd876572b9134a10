//! Races of merges that a reading found, each brought about by hand on one store: its events are handled, its effects
//! performed, when the test says so. Each test fails without the mend that it tells of.

use super::*;
use crate::codec::admin::Admin;
use crate::codec::merge::Commit;
use crate::codec::region::{REMOVED_MAX, encode_head};
use crate::env::Disk;
use crate::kv::mem::SimTablesDisk;
use crate::kv::{Direction, StateStore, WriteBatch};
use crate::raft::{Envelope, Note};
use crate::region::snapshot::{SnapshotFile, SnapshotWriter};
use crate::region::storage::conf_state;
use crate::sim::clock::NodeClock;
use crate::sim::disk::SimDisk;
use crate::sim::node::{NodeOptions, Running, SNAP_DIR, SimNode};
use crate::store::{Event, StoreConfig};
use ::raft::eraftpb::{Message, MessageType, Snapshot};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
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
    /// What it has sent without waiting for the disk.
    pub sent: Vec<Envelope>,
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
        let (answers, wishes, sent) = (BTreeMap::new(), Vec::new(), Vec::new());
        Bench { now: node.now(Time(0)), node, tokens: 0, answers, wishes, sent }
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

    pub fn drain(&mut self) -> Effects {
        let (mut effects, now) = (Effects::default(), self.now);
        self.store().drain(now, &mut effects);
        effects
    }

    /// Writes, applies and reports what a round asked for.
    pub fn perform(&mut self, mut effects: Effects) {
        assert!(effects.fatal.is_none(), "{:?}", effects.fatal);
        self.sent.extend(effects.send_now.take().into_iter().flat_map(|(_, _, sent)| sent));
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

    pub fn ask(&mut self, id: u64, admin: Admin) -> crate::Result<AdminDone> {
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

    /// Puts a key into the state store, past all regions.
    fn put(&mut self, key: &'static str) {
        let mut batch = WriteBatch::new();
        batch.put(key.into(), "old".into());
        self.running().kv.write(batch).unwrap();
    }

    /// All keys of the state store.
    fn keys(&mut self) -> Vec<Bytes> {
        let view = self.running().kv.view().unwrap();
        let items = view.scan(&KeyRange::all(), Direction::Forward).unwrap();
        items.map(|item| item.unwrap().0).collect()
    }

    /// A file as a snapshot leaves it when it has been received, with one key.
    fn received(&mut self, key: &str) -> SnapshotFile {
        self.tokens += 1;
        let disk: Arc<dyn Disk> = Arc::new(self.node.disk.clone());
        let path = Path::new(SNAP_DIR).join(self.tokens.to_string());
        let mut writer = SnapshotWriter::create(&disk, path).unwrap();
        let lengths = [(key.len() as u32).to_le_bytes(), 3u32.to_le_bytes()].concat();
        writer.chunk(&[&lengths, key.as_bytes(), b"new"].concat()).unwrap();
        writer.finish().unwrap()
    }

    /// A snapshot has arrived for the replica here: whether it is to be restored. If not, its file must go.
    fn takes(&mut self, region: &Region, removed: Vec<Departed>) -> bool {
        self.arrives(region, removed).is_some()
    }

    /// The same, and what the round asks for if it is to be restored. Its one key is the region's first.
    fn arrives(&mut self, region: &Region, removed: Vec<Departed>) -> Option<Effects> {
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
        let Region { id: region, range, .. } = region.clone();
        let from_store = StoreId(2);
        let envelope = Envelope { region, from, to, from_store, message, note: None };
        let start = range.start;
        let file = self.received(std::str::from_utf8(&start).unwrap());
        self.handle(Event::SnapshotReceived { envelope, file: file.clone() });
        let effects = self.drain();
        let restores = |task: &ApplyTask| matches!(task, ApplyTask::Restore { .. });
        let restored = effects.apply.iter().any(restores);
        assert_eq!(effects.discard.contains(&file), !restored);
        restored.then_some(effects)
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

/// The snapshot of a region that took others in, and was cut again since: between its keys and those of whom it swallows
/// another region may live by now, which loses none. The restore cleared all from the first of those keys to the last, so
/// the snapshot was refused until the other one had gone: never, where the orphan of a merge waited for a new
/// replica to take it over (seed 12706).
#[test]
fn a_snapshot_does_not_reach_over_a_region_that_lives_between_it_and_whom_it_swallows() {
    let into = region(10, "a", "g", &[1, 2, 3]);
    let there = || {
        let regions = [("", "a", 1), ("m", "p", 2), ("g", "m", 3), ("p", "", 4)];
        regions.map(|(start, end, id)| region(id, start, end, &[1])).to_vec()
    };
    for known in [vec![], vec![into.clone()]] {
        let mut bench = Bench::new([there(), known.clone()].concat());
        bench.settle();
        ["A", "b", "h", "m", "n", "q"].into_iter().for_each(|key| bench.put(key));
        bench.still(2);
        let restores = bench.arrives(&into, vec![gone(2)]);
        bench.perform(restores.unwrap_or_else(|| panic!("refused, with {known:?}")));
        bench.settle();
        assert_eq!(bench.keys(), ["A", "a", "h", "q"], "with {known:?}");
        assert!(bench.state(2).is_tombstone() && was_merged(&bench.state(2)));
        assert!([1, 3, 4, 10].into_iter().all(|id| bench.stands(id)), "with {known:?}");
    }
}

/// What a snapshot's restore does clear must be nobody else's: the region's keys, those that its replica here had, and those
/// of each that it swallows.
#[test]
fn a_snapshot_waits_for_whoever_holds_keys_that_its_restore_clears() {
    let now = region(10, "a", "g", &[1, 2, 3]);
    let before = Region { range: KeyRange::new("s", "w"), ..now.clone() };
    for (start, end, free) in
        [("b", "c", false), ("n", "o", false), ("t", "u", false), ("h", "i", true), ("w", "", true)]
    {
        let own = vec![region(1, "", "a", &[1]), region(2, "m", "p", &[1]), before.clone()];
        let mut bench = Bench::new(own);
        bench.settle();
        bench.still(2);
        let cut = region(99, start, end, &[1]);
        bench.running().registry.reshape(&region(98, "", "", &[1]), std::iter::once(&cut));
        assert_eq!(bench.takes(&now, vec![gone(2)]), free, "{start}..{end}");
    }
}

/// A snapshot for which the state store has no room was an error that stopped the node. It and what is behind it are given back,
/// nothing of it is there, and once there is room it is restored as if nothing had been.
#[test]
fn a_snapshot_that_finds_no_room_is_restored_later() {
    let into = region(10, "a", "g", &[1, 2, 3]);
    let mut bench = Bench::new(vec![into.clone(), region(3, "g", "", &[1])]);
    bench.settle();
    ["b", "h"].into_iter().for_each(|key| bench.put(key));
    let mut restores = bench.arrives(&into, Vec::new()).expect("it is to be restored");
    let tasks = std::mem::take(&mut restores.apply);
    let count = tasks.len();
    bench.node.tables.set_full(true);
    let running = bench.running();
    running.tasks = tasks;
    let outcome = running.apply().unwrap();
    let left = outcome.left.expect("there is no room");
    assert!(matches!(left.error, crate::Error::DiskFull { .. }), "{}", left.error);
    assert_eq!((left.tasks.len(), outcome.applied.len()), (count, 0));
    assert_eq!(bench.keys(), ["b", "h"]);
    bench.node.tables.set_full(false);
    bench.perform(Effects { apply: left.tasks, ..restores });
    bench.settle();
    assert_eq!(bench.keys(), ["a", "h"]);
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

/// Two ask for the same merge, or one asks again whose first answer was lost: the second was told that the region is frozen, not in
/// which shape, and took the next look at it for a later one. Who wants it frozen for another target still is refused.
#[test]
fn who_asks_for_a_freezing_that_has_happened_is_told_the_shape() {
    let mut bench = Bench::new(row());
    bench.settle();
    let before = bench.state(2).region.epoch;
    bench.freeze(2, 3);
    let frozen = bench.state(2).region;
    for epoch in [before, frozen.epoch] {
        let target = bench.state(3).region;
        let again = bench.ask(2, Admin::PrepareMerge(Prepare { epoch, target, first: 0 }));
        let Ok(AdminDone::Shaped(shapes)) = again else { panic!("{again:?}") };
        assert_eq!(shapes, std::slice::from_ref(&frozen));
        let target = bench.state(1).region;
        let other = bench.ask(2, Admin::PrepareMerge(Prepare { epoch, target, first: 0 }));
        assert!(matches!(other, Err(Error::Busy { .. })), "{other:?}");
    }
    assert_eq!(bench.state(2).region, frozen);
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
