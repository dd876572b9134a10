//! The workload `regions`: while clients read and write, regions are cut up and their replicas change.
//!
//! Somebody sits beside the cluster and reshapes it at random. Now and then it picks a leader and asks it to split its region
//! at one or a few of the keys that clients use, to change its replicas (`members`), or to be merged (`merges`), with ids
//! from the cluster's own counter. What comes of it is found out as production does: clients learn new shapes from refusals.
//!
//! Meanwhile every node has its own operator and clerk (`staff`): what grows is cut, what is frozen is taken in or thawed,
//! what is small and cold is merged, what is short of voters gets new ones. And stores come and go (`stores`).
//!
//! Looked at whenever something was applied: on one store regions never overlap; the epoch of a replica only
//! grows. (They may leave a gap: a store that was overtaken by the snapshot of a shrunk region waits for those of
//! the others.) The newest shapes, of all stores together, cover every key exactly once. In the end what the
//! stores hold does, and every region has all its replicas.

use super::checker::{EpochsGrow, Shapes, covers_key_space};
use super::client::Keys;
use super::cluster::{Cluster, Happening, Step, violation};
use crate::codec::admin::{Admin, Child, Split};
use crate::kv::StateStore;
use crate::node::operator::Wish;
use crate::region::size::{self, Measured};
use crate::router::RangeCache;
use crate::store::*;
use crate::types::*;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;

/// What a seed is about.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Workload {
    /// Reads, writes, swaps and range deletes in regions that stay as they are.
    #[default]
    Kv,
    /// The same while regions are cut up and change their replicas.
    Regions,
}

impl Workload {
    /// By name.
    pub const ALL: [(&'static str, Workload); 2] =
        [("kv", Workload::Kv), ("regions", Workload::Regions)];

    /// Its name.
    pub fn name(self) -> &'static str {
        Workload::ALL.iter().find(|(_, workload)| *workload == self).map_or("", |(name, _)| name)
    }
}

/// What whoever reshapes at random knows.
#[derive(Debug)]
pub(super) struct Operator {
    /// Ids that were handed out to it and not used.
    ids: std::ops::Range<u64>,
    /// What it waits for.
    waiting: BTreeMap<Token, RegionId>,
    epochs: EpochsGrow,
    pub(super) shapes: Shapes,
    /// The node whose applier stands still, and until when.
    held: Option<(StoreId, Time)>,
}

impl Operator {
    pub fn new() -> Operator {
        Operator {
            ids: 0..0,
            waiting: BTreeMap::new(),
            epochs: EpochsGrow::default(),
            shapes: Shapes::default(),
            held: None,
        }
    }

    /// Somebody else was given ids from `first` on: those handed out before are too old for new peers of a region that may
    /// have had one of them.
    pub fn outdate(&mut self, first: u64) {
        self.ids = first.max(self.ids.end)..first.max(self.ids.end);
    }

    /// How long a node's applier still stands still.
    pub fn apply_held(&self, id: StoreId, now: Time) -> Duration {
        let until = self.held.filter(|(held, _)| *held == id).map_or(now, |(_, until)| until);
        until.since(now)
    }
}

/// Ids that the operator asks for at once.
const IDS: u64 = 16;

impl Cluster {
    /// The regions as the clients know them, by range.
    pub(super) fn known_regions(&self) -> impl Iterator<Item = &Region> {
        self.routes.routes().map(|route| &*route.region)
    }

    /// The clients learn of regions.
    pub(super) fn learn(&mut self, regions: &[Region]) {
        let mut changed = false;
        for region in regions {
            changed |= self.routes.update(region.clone());
        }
        if changed {
            self.keys = keys_of(&self.routes, &self.keys);
        }
    }

    /// What a node that refused a request knows of the key's neighbourhood.
    pub(super) fn learn_at(&mut self, node: StoreId, key: &[u8], current: &[Region]) {
        let mut regions = current.to_vec();
        if let Some(running) = self.running(node) {
            regions.extend(running.registry.lookup(key).map(|region| (*region).clone()));
        }
        self.learn(&regions);
    }

    /// One change of a region's shape, then an appointment for the next.
    pub(super) fn reshape(&mut self, now: Time) -> Step {
        if self.closing {
            return Ok(());
        }
        let next = self.pause("reshape.interval", 350_000) + Duration::from_millis(20);
        self.world.after(next, Happening::Reshape);
        if self.lull(now).is_some() {
            return Ok(());
        }
        let all = self.nodes.keys().flat_map(|id| self.statuses(*id).into_iter().map(|s| (*id, s)));
        let led: Vec<_> = all.filter(|(_, status)| status.leads).collect();
        if self.operator.ids.end - self.operator.ids.start < IDS / 2 {
            let first = led.iter().find(|(_, s)| s.region.id == FIRST_REGION);
            let Some((node, _)) = first else { return Ok(()) };
            let count = IDS;
            return self.administer(now, *node, FIRST_REGION, Admin::Allocate { count });
        }
        if self.rng.chance("reshape.merge", 300) {
            return self.merge_some(now, &led);
        }
        if self.rng.chance("reshape.members", 500) {
            for _ in 0..self.rng.range("reshape.wishes", 1..4) {
                self.change_members(now, &led)?;
            }
            return Ok(());
        }
        let Some((node, status)) = self.rng.pick("reshape.region", &led).cloned() else {
            return Ok(());
        };
        self.split(now, node, &status.region)
    }

    /// An id of the cluster's own counter.
    pub(super) fn next_id(&mut self) -> Option<u64> {
        self.operator.ids.next()
    }

    fn split(&mut self, now: Time, node: StoreId, region: &Region) -> Step {
        let inside = |key: &&Bytes| region.range.contains(key) && **key != region.range.start;
        let mut keys: Vec<Bytes> = self.keys.all().filter(inside).cloned().collect();
        self.rng.shuffle("reshape.keys", &mut keys);
        keys.truncate(self.rng.range("reshape.count", 1..4) as usize);
        keys.sort_unstable();
        self.cut(now, node, region, keys)
    }

    fn cut(&mut self, now: Time, node: StoreId, region: &Region, keys: Vec<Bytes>) -> Step {
        let mut children = Vec::new();
        for start in keys {
            let Some(id) = self.operator.ids.next() else { break };
            let peers: Vec<PeerId> =
                self.operator.ids.by_ref().take(region.peers.len()).map(PeerId).collect();
            if peers.len() == region.peers.len() {
                children.push(Child { region: RegionId(id), start, peers });
            }
        }
        if children.is_empty() {
            return Ok(());
        }
        self.trace
            .line(now, format_args!("{node} is to cut {} in {}", region.id, children.len() + 1));
        self.administer(now, node, region.id, Admin::Split(Split { epoch: region.epoch, children }))
    }

    pub(super) fn administer(
        &mut self,
        now: Time,
        node: StoreId,
        region: RegionId,
        admin: Admin,
    ) -> Step {
        let Some((life, at)) = self.place(node, region) else { return Ok(()) };
        self.next_token += 1;
        let token = Token(self.next_token);
        self.operator.waiting.insert(token, region);
        let shapes = admin.epoch().is_some();
        self.post(now, node, life, at, Event::Admin { token, region, admin })?;
        if shapes && !self.calm && self.rng.chance("reshape.ambush", 300) {
            self.ambush(now, node, life, region);
        }
        Ok(())
    }

    /// The aimed fault of this workload: a leader hands over right behind a change of its region's shape, to one
    /// whose applier stands still. So it leads, and takes requests, without knowing the shape; what it
    /// proposes then lies behind the change in the log, and must have no effect.
    fn ambush(&mut self, now: Time, node: StoreId, life: u64, region: RegionId) {
        let Some(status) = self.statuses(node).into_iter().find(|s| s.region.id == region) else {
            return;
        };
        let heirs = status.region.peers.iter().filter(|p| p.role == Role::Voter && p.store != node);
        let heirs: Vec<StoreId> = heirs.map(|peer| peer.store).collect();
        let Some(heir) = self.rng.pick("ambush.heir", &heirs).copied() else { return };
        let held = self.pause("ambush.held", 200_000) + Duration::from_millis(50);
        self.operator.held = Some((heir, now.after(held)));
        for client in self.clients.iter_mut().step_by(2) {
            client.node = heir;
        }
        self.trace.line(now, format_args!("ambush of {region}: from {node} to {heir}"));
        let pause = self.pause("ambush.leave", 20_000);
        let Some((_, at)) = self.place(node, region) else { return };
        let event = Event::Transfer { token: Token(0), region, to: Some(heir) };
        self.world.after(pause, Happening::Post(node, life, at, event));
    }

    /// Measures a region from a view of now; the answer comes a moment later.
    pub(super) fn measure(&mut self, id: StoreId, life: u64, check: SizeCheck) {
        let pause = self.pause("measure.pause", 20_000);
        let SizeCheck { region, peer, epoch, range, split_bytes } = check;
        let Some((_, at)) = self.place(id, region) else { return };
        let Some(view) = self.running(id).and_then(|running| running.kv.view().ok()) else {
            return;
        };
        let event = match size::measure(&*view, &range, split_bytes) {
            Ok((bytes, keys)) => Event::Measured(Measured { region, peer, epoch, bytes, keys }),
            Err(_) => Event::NotMeasured(region),
        };
        self.world.after(pause, Happening::Post(id, life, at, event));
    }

    /// A replica wishes its region to be cut.
    pub(super) fn wish_to_split(&mut self, now: Time, node: StoreId, wish: SplitWish) -> Step {
        self.counts.splits[1] += u64::from(wish.why == Excess::Load);
        self.wish(now, node, Wish::Split(wish))
    }

    /// An answer to the operator.
    pub(super) fn administered(
        &mut self,
        now: Time,
        token: Token,
        done: crate::Result<AdminDone>,
    ) -> Step {
        let Some(region) = self.operator.waiting.remove(&token) else { return Ok(()) };
        match done {
            // An older block's answer may come later: a new peer must be larger than those before it.
            Ok(AdminDone::Ids { first }) if first < self.operator.ids.end => {}
            Ok(AdminDone::Ids { first }) => self.operator.ids = first..first + IDS,
            Ok(AdminDone::Shaped(regions)) if regions.len() == 1 => {
                self.counts.changes += 1;
                let peers = &regions[0].peers;
                self.trace.line(now, format_args!("{region} changed: {peers:?}"));
            }
            Ok(AdminDone::Shaped(regions)) => {
                self.counts.splits[0] += regions.len() as u64 - 1;
                self.trace.line(now, format_args!("{region} is {} regions", regions.len()));
            }
            Ok(AdminDone::Stores(directory)) => {
                self.trace.line(now, format_args!("{} stores on record", directory.stores.len()));
            }
            Err(error) => self.trace.line(now, format_args!("{region} not changed: {error}")),
        }
        Ok(())
    }

    /// A crashed node's replicas may be found in an older shape.
    pub(super) fn forget_shapes(&mut self, node: StoreId) {
        self.operator.epochs.forget(node);
    }

    /// After something was applied: the shapes of a store's regions fit together.
    pub(super) fn look_at_shapes(&mut self, id: StoreId) -> Step {
        if self.workload == Workload::Kv {
            return Ok(());
        }
        let Some(running) = self.nodes.get(&id).and_then(|n| n.running.as_ref()) else {
            return Ok(());
        };
        let states = running.kv.region_states();
        let others = self.nodes.values().filter_map(|node| node.running.as_ref());
        let all: Vec<RegionState> = match self.operator.shapes.is_empty() {
            true => others.flat_map(|running| running.kv.region_states()).collect(),
            false => Vec::new(),
        };
        let seen = all.iter().chain(&states).map(|state| &state.region);
        self.operator.shapes.observe(seen)?;
        for state in &states {
            self.operator.epochs.observe(id, state.peer, &state.region)?;
        }
        let mut regions: Vec<Region> = states.into_iter().map(|state| state.region).collect();
        regions.sort_by(|a, b| a.range.start.cmp(&b.range.start));
        for pair in regions.windows(2) {
            if !pair[0].range.intersect(&pair[1].range).is_empty() {
                let detail = format!("{id}: {} and {}", pair[0].id, pair[1].id);
                return Err(violation("regions do not overlap", detail));
            }
        }
        Ok(())
    }

    /// At the end: the newest shape of every region, which must cover the key space.
    pub(super) fn final_regions(&self) -> Result<Vec<Region>, super::checker::Violation> {
        let mut newest: BTreeMap<RegionId, Region> = BTreeMap::new();
        for node in self.nodes.values() {
            for state in node.running.iter().flat_map(|running| running.kv.region_states()) {
                let known = newest.entry(state.region.id).or_insert_with(|| state.region.clone());
                if known.epoch < state.region.epoch {
                    *known = state.region;
                }
            }
        }
        let regions: Vec<Region> = newest.into_values().collect();
        covers_key_space(&regions)?;
        Ok(regions)
    }
}

/// The same keys, by the regions that they lie in now.
fn keys_of(routes: &RangeCache, keys: &Keys) -> Keys {
    let mut sorted: Vec<&Bytes> = keys.all().collect();
    sorted.sort_unstable();
    let of = |region: &Region| -> Vec<Bytes> {
        sorted.iter().filter(|key| region.range.contains(key)).map(|key| (*key).clone()).collect()
    };
    let by_region = routes.routes().map(|route| of(&route.region));
    let mut by_region: Vec<Vec<Bytes>> = by_region.filter(|keys| !keys.is_empty()).collect();
    // What lies where nobody knows a region: each key alone.
    let unknown = sorted.iter().filter(|key| routes.lookup(key).is_none());
    by_region.extend(unknown.map(|key| vec![(*key).clone()]));
    Keys { by_region }
}
