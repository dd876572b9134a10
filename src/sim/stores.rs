//! Stores that come and go, in the workload `regions`: one joins, one is drained and leaves, one loses its directory or has
//! an old copy of it put back, while regions are cut, merged and moved, and nodes crash. Each of it in some seeds.
//!
//! Whoever administers the cluster asks for it through any node, by production's own client; what is to be done then
//! the nodes' operators find out, from what has been reported to the leader of region 1
//! ([`staff`](super::staff)). A store that has left is cut off by each node that hears of it, and a while later switched off for
//! good.
//!
//! A store that is to lose its directory is known from the start, here, and whoever changes replicas at random leaves every
//! region a majority without it: a minority is lost, never more. It loses it when all others have its record on their disks (who
//! has been told nothing cannot know), and of every region a majority lives elsewhere, whatever change is under way. From then on it
//! runs with what it has; nobody lets it in, and it is drained, and struck off, while it is down to everybody else.
//!
//! Looked at when a store is struck off: no region that had a replica on it when that was asked for has it still.
//! One whose log is damaged (`rot`) is chosen with the same care, is let in by everybody, and is drained a while later.
//!
//! Looked at in the end: within [`SETTLES`] of the calm whoever was to be drained has left, no region is frozen, nobody
//! has anything left to do, every region has the wanted voters, none in passing, and no replica on a store that has left or is to. And
//! no store is kept out, ever, but those that have left or lost their directory.

use super::clock::NodeClock;
use super::cluster::{Cluster, Happening, Step, violation};
use super::disk::{Mercy, SimDisk};
use super::node::SimNode;
use super::rng::Rng;
use super::staff::Finished;
use crate::client::ask::Ask;
use crate::error::Result;
use crate::kv::StateStore;
use crate::kv::mem::SimTablesDisk;
use crate::store::Store;
use crate::types::*;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Between two looks of whoever administers.
const LOOK: Duration = Duration::from_millis(200);
/// Voters that regions should have.
const WANTED: usize = 3;
/// Within this, from when nobody asks for anything new: a wish whose target is nowhere comes again after a minute, and
/// regions short of voters are not helped at once.
const SETTLES: Duration = Duration::from_secs(90);

/// So long damage waits for a region to be frozen.
const AIM: Duration = Duration::from_secs(3);

/// How far a store has come on its way out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Exit {
    /// It is drained from then on.
    Planned(Time),
    /// It is on record that it is to be empty.
    Draining,
    /// It is on record that it has left. It runs on until then: nobody who has heard of it listens to it.
    Left(Time),
    /// It was switched off.
    Gone,
}

/// How a directory is lost.
#[derive(Clone)]
enum Loss {
    /// It is wiped.
    Wiped,
    /// An old copy is put back: a copy is made at that time, and then it is here.
    PutBack(Time, Option<(SimDisk, SimTablesDisk)>),
    /// It is here, with damage in the log (`rot`).
    Damaged,
}

/// A store that is to lose its directory.
#[derive(Clone)]
struct Loser {
    store: StoreId,
    loss: Loss,
    at: Time,
    lost: bool,
}

/// What is to happen to stores, and how far it has.
pub(super) struct Stores {
    /// Those that made the cluster.
    pub founders: BTreeSet<StoreId>,
    /// Regions of so many bytes at most are merged by the nodes themselves; 0: none.
    pub merge_bytes: u64,
    seed: u64,
    joins: Option<Time>,
    exits: BTreeMap<StoreId, Exit>,
    loser: Option<Loser>,
    /// What was asked for, through which node in which of its lives.
    asked: Option<(StoreId, StoreId, u64)>,
    /// What regions had on the store that is to be struck off, when that was asked for.
    held: BTreeSet<(RegionId, PeerId)>,
    turn: usize,
}

impl Stores {
    /// Drawn for a seed with so many nodes.
    pub fn draw(rng: &mut Rng, nodes: u64, split_bytes: u64) -> Stores {
        let mut time = |site, from: u64, to: u64| Time(rng.range(site, from..to) * 1_000_000);
        let (joins_at, drains_at) =
            (time("stores.join.at", 1_000, 8_000), time("stores.drain.at", 2_500, 10_000));
        let (copied_at, lost_at) =
            (time("stores.copy.at", 2_000, 4_000), time("stores.loss.at", 3_000, 9_000));
        let joins = rng.chance("stores.join", 600);
        let (drains, loses) = (rng.chance("stores.drain", 600), rng.chance("stores.loss", 400));
        let damaged = !loses && rng.chance("stores.damage", 700);
        // So many may go.
        let spare = (nodes + u64::from(joins)).saturating_sub(WANTED as u64);
        let mut ids: Vec<StoreId> = (1..=nodes).map(StoreId).collect();
        rng.shuffle("stores.who", &mut ids);
        let mut going = ids.into_iter();
        let drained = going.next().filter(|_| drains && spare >= 1);
        let loses = (loses || damaged) && spare > u64::from(drained.is_some());
        let store = going.next().filter(|_| loses);
        let wiped = rng.chance("stores.wipe", 500);
        let loss = match (damaged, wiped) {
            (true, _) => Loss::Damaged,
            (false, true) => Loss::Wiped,
            (false, false) => Loss::PutBack(copied_at, None),
        };
        let merges = *rng.pick("stores.merge", &[0, 60, 200]).unwrap_or(&0);
        Stores {
            founders: (1..=nodes).map(StoreId).collect(),
            // As in production, far below the size at which regions are cut.
            merge_bytes: if split_bytes > 0 { merges.min(split_bytes / 3) } else { merges },
            seed: rng.draw("stores.seed"),
            joins: joins.then_some(joins_at),
            exits: drained.map(|store| (store, Exit::Planned(drains_at))).into_iter().collect(),
            loser: store.map(|store| Loser { store, loss, at: lost_at, lost: false }),
            asked: None,
            held: BTreeSet::new(),
            turn: 0,
        }
    }

    /// The store as one that has lost its directory, or a part of its log.
    fn lost(&self, store: StoreId) -> Option<&Loser> {
        self.loser.as_ref().filter(|loser| loser.lost && loser.store == store)
    }

    /// What is to be asked for next: drains first, then of all that are drained each in turn.
    fn next(&mut self, now: Time) -> Option<(StoreId, Exit)> {
        let due = |exit: &Exit| match exit {
            Exit::Planned(at) => *at <= now,
            Exit::Draining => true,
            Exit::Left(_) | Exit::Gone => false,
        };
        let due =
            self.exits.iter().filter(|(_, exit)| due(exit)).map(|(store, exit)| (*store, *exit));
        let mut due: Vec<(StoreId, Exit)> = due.collect();
        self.turn += 1;
        let first = self.turn.checked_rem(due.len()).unwrap_or(0);
        due.rotate_left(first);
        due.sort_by_key(|(_, exit)| *exit == Exit::Draining);
        due.first().copied()
    }
}

impl Cluster {
    /// Whether nobody is to listen to a store any more.
    pub(super) fn is_outcast(&self, store: StoreId) -> bool {
        let Some(stores) = &self.stores else { return false };
        let lost = stores.lost(store).is_some_and(|loser| !matches!(loser.loss, Loss::Damaged));
        lost || self.has_left(store)
    }

    /// Whether a store's log was damaged, and not given up since.
    pub(super) fn is_damaged(&self, store: StoreId) -> bool {
        let lost = self.stores.as_ref().and_then(|stores| stores.lost(store));
        lost.is_some_and(|loser| matches!(loser.loss, Loss::Damaged))
    }

    /// The damaged directory is given up: it counts as wiped from now on.
    pub(super) fn lose_damaged(&mut self) {
        if let Some(loser) = self.stores.as_mut().and_then(|stores| stores.loser.as_mut()) {
            loser.loss = Loss::Wiped;
            self.counts.lost[0] += 1;
        }
    }

    /// Whether it is on record that a store has left.
    pub(super) fn has_left(&self, store: StoreId) -> bool {
        let exit = self.stores.as_ref().and_then(|stores| stores.exits.get(&store));
        matches!(exit, Some(Exit::Left(_) | Exit::Gone))
    }

    /// Whether a majority of these voters is left without the store that is to lose its directory.
    pub(super) fn survives_loss(&self, region: &Region) -> bool {
        let loser = self.stores.as_ref().and_then(|stores| stores.loser.as_ref());
        let Some(loser) = loser else { return true };
        let voters = region.peers.iter().filter(|peer| peer.role == Role::Voter);
        let all = voters.clone().count();
        voters.filter(|peer| peer.store != loser.store).count() > all / 2
    }

    /// A look of whoever administers the stores.
    pub(super) fn administer_stores(&mut self, now: Time) -> Step {
        self.world.after(LOOK, Happening::Administer);
        self.join(now);
        self.lose(now, false)?;
        self.switch_off_those_that_left(now);
        let Some(stores) = &mut self.stores else { return Ok(()) };
        if let Some((_, through, life)) = stores.asked
            && self.staff.get(&through).is_some_and(|staff| staff.life == life)
        {
            return Ok(());
        }
        let Some((store, exit)) = stores.next(now) else { return Ok(()) };
        let others = self.staff.keys().copied();
        let others: Vec<StoreId> =
            others.filter(|id| *id != store && !self.is_outcast(*id)).collect();
        let Some(through) = self.rng.pick("stores.through", &others).copied() else {
            return Ok(());
        };
        let Some(staff) = self.staff.get_mut(&through) else { return Ok(()) };
        let (client, life) = (staff.client(), staff.life);
        staff.begin(async move {
            Finished::Administered(match exit {
                Exit::Planned(_) => client.drain_store(store).await,
                _ => client.remove_store(store).await,
            })
        });
        if let Some(stores) = &mut self.stores {
            stores.asked = Some((store, through, life));
            stores.held = self.operator.shapes.on(store);
        }
        self.go_on(now, through)
    }

    /// What was asked for was answered.
    pub(super) fn was_administered(&mut self, now: Time, result: Result<()>) -> Step {
        let off = now.after(self.pause("stores.left.off", 2_000_000));
        let Some(stores) = &mut self.stores else { return Ok(()) };
        let Some((store, through, _)) = stores.asked.take() else { return Ok(()) };
        let Some(exit) = stores.exits.get_mut(&store) else { return Ok(()) };
        if let Err(error) = result {
            self.trace.line(now, format_args!("{through}: {store} not yet: {error}"));
            return Ok(());
        }
        match *exit {
            Exit::Planned(_) => {
                *exit = Exit::Draining;
                self.counts.stores[1] += 1;
                self.trace.line(now, format_args!("{store} is to be empty"));
            }
            _ => {
                *exit = Exit::Left(off);
                self.counts.stores[2] += 1;
                self.trace.line(now, format_args!("{store} has left"));
                // Ids are not used twice: what was there before and is there now was there all the time.
                let now_held = self.operator.shapes.on(store);
                if let Some((region, peer)) = stores.held.intersection(&now_held).next() {
                    let detail = format!("{store} was struck off with {peer} of {region} on it");
                    return Err(violation(
                        "a store leaves when no region has a replica on it",
                        detail,
                    ));
                }
            }
        }
        Ok(())
    }

    fn join(&mut self, now: Time) {
        let Some(stores) = &mut self.stores else { return };
        if stores.joins.take_if(|at| *at <= now).is_none() {
            return;
        }
        let id = StoreId(stores.founders.len() as u64 + 1);
        let node = SimNode {
            id,
            disk: SimDisk::new(stores.seed ^ id.0),
            tables: SimTablesDisk::new(),
            clock: NodeClock::new(Time(0), 0),
            life: 0,
            running: None,
        };
        self.nodes.insert(id, node);
        self.net.add_store(id);
        self.counts.stores[0] += 1;
        self.trace.line(now, format_args!("{id} joins"));
        self.world.at(now, Happening::Restart(id));
    }

    /// A region was frozen on a store: the moment for which damage waits.
    pub(super) fn damage_merge(&mut self, now: Time, id: StoreId) {
        let loser = self.stores.as_ref().and_then(|stores| stores.loser.as_ref());
        let due = |loser: &&Loser| loser.store == id && loser.at <= now && !loser.lost;
        if loser.filter(due).is_some_and(|loser| matches!(loser.loss, Loss::Damaged)) {
            self.world.at(now, Happening::Damage);
        }
    }

    /// A store loses its directory, when all others can know. Damage comes when a region is `frozen`, or a while later.
    pub(super) fn lose(&mut self, now: Time, frozen: bool) -> Step {
        let Some(Loser { store, loss, at, lost }) =
            self.stores.as_ref().and_then(|stores| stores.loser.clone())
        else {
            return Ok(());
        };
        if lost || self.calm {
            return Ok(());
        }
        let damaged = matches!(loss, Loss::Damaged);
        let copy = match loss {
            Loss::PutBack(copied_at, None) if copied_at <= now => return self.copy(now, store),
            Loss::PutBack(_, copy) => copy,
            Loss::Wiped => {
                let seed = self.stores.as_ref().map_or(0, |stores| stores.seed);
                Some((SimDisk::new(!seed), SimTablesDisk::new()))
            }
            Loss::Damaged => None,
        };
        let at = if damaged && !frozen { at.after(AIM) } else { at };
        if at > now || copy.is_none() && !damaged {
            return Ok(());
        }
        let Some(record) = self.staff.get(&store).map(|staff| staff.clerk.record().clone()) else {
            return Ok(());
        };
        let known = |id: &StoreId| {
            *id == store || self.staff.get(id).is_some_and(|staff| staff.clerk.keeps(&record))
        };
        if !self.nodes.keys().all(known)
            || self.siege.is_some()
            || self.recount.is_some()
            || !self.can_do_without(store)
        {
            return Ok(());
        }
        if let Some(copy) = copy {
            self.replace_directory(now, store, copy)?;
        } else if !self.damage_log(now, store)? {
            return Ok(());
        }
        let pause = self.pause("stores.loss.drain", if damaged { 5_000_000 } else { 1_500_000 });
        if let Some(stores) = &mut self.stores
            && let Some(loser) = &mut stores.loser
        {
            loser.lost = true;
            match loser.loss {
                Loss::Wiped => self.counts.lost[0] += 1,
                Loss::PutBack(..) => self.counts.lost[1] += 1,
                Loss::Damaged => {}
            }
            stores.exits.insert(store, Exit::Planned(now.after(pause)));
        }
        Ok(())
    }

    fn replace_directory(
        &mut self,
        now: Time,
        store: StoreId,
        (disk, tables): (SimDisk, SimTablesDisk),
    ) -> Step {
        let down = self.pause("stores.loss.down", 500_000) + Duration::from_millis(5);
        self.crash_for(now, store, Mercy::All, down)?;
        self.trace.line(now, format_args!("{store} loses its directory"));
        if let Some(node) = self.nodes.get_mut(&store) {
            (node.disk, node.tables) = (disk, tables);
        }
        Ok(())
    }

    /// Whether a majority of every region's voters lives on other stores, now and after whatever is under way. Who was left
    /// behind by a split is not born yet on his store, and votes for nobody there.
    ///
    /// A change of the replicas that stands in some log may be committed without this store, and need it from then on.
    fn can_do_without(&self, store: StoreId) -> bool {
        let Ok(regions) = self.final_regions() else { return false };
        let running = || self.nodes.values().filter_map(|node| node.running.as_ref());
        let mut peers = running().flat_map(|running| &running.stores).flat_map(Store::peers);
        if peers.any(|peer| peer.group.holds_change()) {
            return false;
        }
        let born = |region: &Region, peer: &Peer| {
            let running = self.nodes.get(&peer.store).and_then(|node| node.running.as_ref());
            let view = running.and_then(|running| running.kv.view().ok());
            let state = view.and_then(|view| view.region(region.id));
            state.is_some_and(|state| state.peer == peer.id)
        };
        regions.iter().all(|region| outlives(region, store, |peer| born(region, peer)))
    }

    /// Makes a copy of a directory that nobody writes to.
    fn copy(&mut self, now: Time, store: StoreId) -> Step {
        if self.staff.get(&store).is_none_or(|staff| !staff.clerk.is_registered()) {
            return Ok(());
        }
        self.crash(now, store, Mercy::All)?;
        let Some(node) = self.nodes.get(&store) else { return Ok(()) };
        let copy = (node.disk.fork(), node.tables.fork());
        copy.0.set_faults(super::disk::Faults::default());
        self.trace.line(now, format_args!("{store} is copied"));
        if let Some(stores) = &mut self.stores
            && let Some(Loser { loss: Loss::PutBack(_, place), .. }) = &mut stores.loser
        {
            *place = Some(copy);
        }
        Ok(())
    }

    /// A node hears that the cluster does not know its directory: it stops.
    pub(super) fn keep_out(&mut self, now: Time, id: StoreId, why: &str) -> Step {
        if !self.is_outcast(id) && !self.is_leaving(id) {
            return Err(violation("no store is kept out without reason", format!("{id}: {why}")));
        }
        self.trace.line(now, format_args!("{id} is kept out: {why}"));
        self.switch_off(now, id);
        Ok(())
    }

    /// Whether a store may have left without anybody having been told yet.
    pub(super) fn is_leaving(&self, id: StoreId) -> bool {
        let exit = self.stores.as_ref().and_then(|stores| stores.exits.get(&id));
        exit == Some(&Exit::Draining)
    }

    /// Who left is switched off by hand, some time after.
    fn switch_off_those_that_left(&mut self, now: Time) {
        let Some(stores) = &mut self.stores else { return };
        let mut due = Vec::new();
        for (store, exit) in &mut stores.exits {
            if matches!(exit, Exit::Left(at) if *at <= now) {
                *exit = Exit::Gone;
                due.push(*store);
            }
        }
        due.into_iter().for_each(|store| self.switch_off(now, store));
    }

    /// A node goes for good.
    fn switch_off(&mut self, now: Time, id: StoreId) {
        self.dismiss(now, id);
        self.forget_shapes(id);
        self.nodes.remove(&id);
        let gone: Vec<_> =
            self.callers.iter().filter(|(_, c)| c.node == id).map(|(t, _)| *t).collect();
        for token in gone {
            if let Some(caller) = self.callers.remove(&token) {
                self.give_up(now, caller);
            }
        }
    }

    /// Nobody asks for anything new. Waits until what was begun has come to its end.
    pub(super) fn settle_stores(&mut self) -> Step {
        let Some(stores) = &mut self.stores else { return Ok(()) };
        stores.joins = None;
        for staff in self.staff.values_mut() {
            staff.clerk.stop_counting();
        }
        let end = self.world.now().after(SETTLES);
        loop {
            let Some(left) = self.unsettled() else { return Ok(()) };
            let now = self.world.now();
            if now >= end {
                let left = format!("{left}; {}", self.as_directory_says());
                return Err(violation(
                    "stores and regions are where they should be in the end",
                    left,
                ));
            }
            let soon = now.after(LOOK);
            while self.step(soon)? {}
        }
    }

    /// Whether a node's operator or merger has something to do.
    pub(super) fn is_anybody_at_work(&self) -> bool {
        self.staff.values().any(|staff| !staff.rests())
    }

    /// Whether a region still lists former replicas. One that went to sleep before their store left forgets them when
    /// something wakes it.
    pub(super) fn lists_the_gone(&self, state: &RegionState) -> bool {
        let mut all = self.nodes.keys().flat_map(|id| self.statuses(*id));
        let asleep = all.any(|status| status.region.id == state.region.id && status.asleep);
        let counts = |gone: &Departed| !asleep || self.nodes.contains_key(&gone.store);
        state.removed.iter().any(counts)
    }

    /// What whoever leads region 1 knows, for the report of a seed that failed.
    fn as_directory_says(&self) -> String {
        let reigns = |staff: &&super::staff::Staff| staff.room.bureau.reigns();
        let asks = [Ask::Cluster, Ask::Locate { start: Bytes::new(), count: 64 }];
        let reigning = self.staff.values().find(reigns);
        let answers = reigning.map(|staff| asks.map(|ask| staff.room.bureau.answer(ask)));
        let work = self.staff.iter().map(|(id, staff)| format!("{id} {}", staff.work()));
        let awake = self.nodes.keys().flat_map(|id| self.statuses(*id)).filter(|s| !s.asleep);
        let awake: Vec<_> = awake.collect();
        format!("{answers:?}; {:?}; awake {awake:?}", work.collect::<Vec<_>>())
    }

    /// What is not as it should be.
    fn unsettled(&self) -> Option<String> {
        let stores = self.stores.as_ref()?;
        if let Some((store, exit)) = stores.exits.iter().find(|(_, exit)| **exit != Exit::Gone) {
            let regions = self.final_regions().unwrap_or_default();
            let held = regions.iter().find(|region| region.peer_on(*store).is_some());
            return Some(format!("{store}: {exit:?}, {held:?}"));
        }
        if let Err(frozen) = self.look_at_the_frozen() {
            return Some(frozen.to_string());
        }
        let nodes = self.nodes.values().filter_map(|node| node.running.as_ref());
        let mut states = nodes.flat_map(|running| running.kv.region_states());
        if let Some(state) = states.find(|state| self.lists_the_gone(state)) {
            return Some(format!("{}: {:?}", state.region.id, state.removed));
        }
        if self.is_anybody_at_work() {
            return Some("somebody is at work".into());
        }
        let regions = match self.final_regions() {
            Ok(regions) => regions,
            Err(violation) => return Some(violation.to_string()),
        };
        let wanted = WANTED.min(self.nodes.len());
        let placed = |region: &&Region| {
            let voters = region.peers.iter().filter(|peer| peer.role == Role::Voter).count();
            let here = region.peers.iter().all(|peer| self.nodes.contains_key(&peer.store));
            // Whoever was on its way has arrived, or was sent away.
            let passes = region.peers.iter().any(|peer| peer.role == Role::Passing);
            voters >= wanted && here && !passes
        };
        regions.iter().find(|region| !placed(region)).map(|region| format!("{region:?}"))
    }
}

/// Whether a region can go on without this store: in each half of its configuration a majority of those that are `born` lives
/// elsewhere. A learner there may be put in a voter's place, which its leader does as long as it has not missed it: of
/// two voters one is left then, which no engine survives (seed 2323).
fn outlives(region: &Region, lost: StoreId, born: impl Fn(&Peer) -> bool) -> bool {
    let learner = region.peer_on(lost).is_some_and(|peer| peer.role.is_learner());
    [[Role::Voter, Role::Incoming], [Role::Voter, Role::Demoting]].iter().all(|half| {
        let votes = || region.peers.iter().filter(|peer| half.contains(&peer.role));
        let left = votes().filter(|peer| peer.store != lost && born(peer)).count();
        left.saturating_sub(usize::from(learner)) * 2 > votes().count()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Store 3 loses its directory, where it has a replica, the last one, or none.
    fn survives(roles: &[Role]) -> bool {
        let stores = [1, 2, 4, 5].into_iter().take(roles.len() - 1).chain([3]);
        let peers = stores.zip(roles).map(|(store, role)| Peer {
            id: PeerId(store),
            store: StoreId(store),
            role: *role,
        });
        let region = Region { peers: peers.collect(), ..Region::default() };
        outlives(&region, StoreId(3), |_| true)
    }

    /// Seed 2323: of two voters one was being replaced by a learner whose store lost its directory.
    #[test]
    fn a_region_of_two_voters_does_not_outlive_the_learner_that_replaces_one() {
        use Role::*;
        assert!(!survives(&[Voter, Voter, Learner]));
        assert!(!survives(&[Voter, Demoting, Incoming]));
        assert!(!survives(&[Voter, Voter]));
        assert!(survives(&[Voter, Voter, Voter, Learner]));
        assert!(survives(&[Voter, Voter, Demoting, Incoming]));
        assert!(survives(&[Voter, Voter, Voter]));
    }
}
