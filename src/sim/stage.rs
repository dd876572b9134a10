//! The stage: a cluster without clients, operator and faults of its own, in which things happen when a script says so.
//! What the seeds find by chance is told here step by step, for people to read: `tests/scripts`.
//!
//! Nodes, network, disks and checkers are the simulator's. Between two verbs no time passes; a verb lets it pass until it
//! is answered, and [`Stage::run`] for as long as it is told. What in production somebody does of his own accord waits
//! for a verb: a frozen region's wish to be taken in is kept until [`Stage::commit`] carries it out, once or
//! again; a node that is down stays down; an applier that is held, and a region whose messages are lost on one
//! store, stay so.
//!
//! - One script, one outcome: the stage draws from one seed, as every cluster here.
//! - Every step is looked at by the checkers of the seeds: a script cannot go on over a broken promise.

use super::checker::Violation;
use super::client::Keys;
use super::clock::NodeClock;
use super::cluster::{Cluster, Step};
use super::disk::{Mercy, SimDisk};
use super::net::{Net, Partition, Weather};
use super::node::{NodeOptions, Planted, SimNode};
use super::regions::Workload;
use crate::codec::admin::{Admin, Child, Split};
use crate::codec::command::BatchBuilder;
use crate::codec::merge::Prepare;
use crate::error::Error;
use crate::kv::StateStore;
use crate::kv::mem::SimTablesDisk;
use crate::raft::{Envelope, GroupConfig};
use crate::store::*;
use crate::types::*;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

mod commits;
mod moves;

/// How long a verb waits for its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a node that was switched off would stay so by itself.
const FOR_GOOD: Duration = Duration::from_secs(1 << 20);
/// Between two looks at what should come about by itself.
const LOOK: Duration = Duration::from_millis(100);
/// Between two attempts of a client.
const RETRY: Duration = Duration::from_millis(10);
const LEADERLESS: &str = "nobody leads its region";
const SEED: u64 = 1;

/// Why a verb did not do what it says.
#[derive(Debug)]
pub enum Setback {
    /// It was refused.
    Refused(Error),
    /// Nobody answered in time.
    Silence(&'static str),
    /// A promise is broken: the script ends.
    Broken(Violation),
}

impl std::fmt::Display for Setback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Setback::Refused(error) => write!(f, "{error}"),
            Setback::Silence(what) => write!(f, "no answer: {what}"),
            Setback::Broken(violation) => write!(f, "BROKEN {violation}"),
        }
    }
}

impl From<Violation> for Setback {
    fn from(violation: Violation) -> Setback {
        Setback::Broken(violation)
    }
}

impl From<Error> for Setback {
    fn from(error: Error) -> Setback {
        Setback::Refused(error)
    }
}

/// What a verb led to.
pub type Outcome<T> = std::result::Result<T, Setback>;

/// What is done by hand in a cluster.
#[derive(Default, Debug)]
pub(super) struct Hand {
    waiting: BTreeSet<Token>,
    answers: BTreeMap<Token, Reply>,
    /// The last one of every frozen region.
    wishes: BTreeMap<RegionId, MergeWish>,
    /// Replicas that nobody hears, and that hear nobody.
    lost: BTreeSet<(RegionId, StoreId)>,
    /// Appliers that stand still.
    held: BTreeSet<StoreId>,
    /// How many replicas of a region have left a store for another.
    left: BTreeMap<(RegionId, StoreId), u64>,
}

impl Hand {
    pub fn loses(&self, envelope: &Envelope, to: StoreId) -> bool {
        let at = |store| self.lost.contains(&(envelope.region, store));
        at(to) || at(envelope.from_store)
    }

    pub fn holds(&self, id: StoreId) -> bool {
        self.held.contains(&id)
    }

    /// Keeps wishes for later.
    pub fn keep(&mut self, wishes: Vec<MergeWish>) {
        self.wishes.extend(wishes.into_iter().map(|wish| (wish.source, wish)));
    }

    /// Takes an answer that a verb waits for.
    pub fn take(&mut self, token: Token, reply: Reply) -> Option<Reply> {
        if !self.waiting.remove(&token) {
            return Some(reply);
        }
        self.answers.insert(token, reply);
        None
    }
}

impl Cluster {
    /// An answer; `None`: a script waits for it.
    pub(super) fn by_hand(&mut self, token: Token, reply: Reply) -> Option<Reply> {
        match &mut self.hand {
            Some(hand) => hand.take(token, reply),
            None => Some(reply),
        }
    }
}

/// A cluster and its script.
pub struct Stage {
    pub(super) cluster: Cluster,
}

fn options(layout: Vec<Region>, planted: Option<Planted>) -> NodeOptions {
    NodeOptions {
        config: StoreConfig {
            group: GroupConfig { election_ticks: 10, heartbeat_ticks: 2, ..Default::default() },
            compact_bytes: 256,
            log_bytes_max: 1 << 10,
            hibernate_after: Duration::ZERO,
            ..StoreConfig::default()
        },
        loops: 1,
        log: crate::log::Options {
            segment_bytes: 16 << 12,
            max_pending_bytes: 16 << 20,
            spare_segments: 1,
            ..Default::default()
        },
        memtable_bytes: 4096,
        snapshot_slots: (2, 2),
        layout,
        planted,
    }
}

/// The replicas of region 4 are 41 on store 1, 42 on store 2, and so on: so are those of regions to come.
fn peer_of(region: RegionId, store: StoreId) -> PeerId {
    PeerId(region.0 * 10 + store.0)
}

impl Stage {
    /// Stores 1 to `stores` with replicas of every region: 1 from the first key to the first cut, 2 from there on, ...
    /// Store 1 leads them all.
    pub fn open(stores: u64, cuts: &[&str]) -> Outcome<Stage> {
        Stage::open_among(stores, stores, cuts, None)
    }

    /// The same with a bug put in on purpose.
    pub fn open_with(stores: u64, cuts: &[&str], planted: Option<Planted>) -> Outcome<Stage> {
        Stage::open_among(stores, stores, cuts, planted)
    }

    /// The same beside others, up to `all`, that are empty.
    pub fn open_among(
        stores: u64,
        all: u64,
        cuts: &[&str],
        planted: Option<Planted>,
    ) -> Outcome<Stage> {
        let bounds: Vec<&str> = [""].iter().chain(cuts).chain(&[""]).copied().collect();
        let peers = |region| {
            let peer = |store| (peer_of(region, StoreId(store)), StoreId(store));
            let peers = (1..=stores).map(peer);
            peers.map(|(id, store)| Peer { id, store, role: Role::Voter }).collect()
        };
        let layout = bounds.windows(2).zip(1..).map(|(pair, id)| Region {
            id: RegionId(id),
            range: KeyRange::new(pair[0].to_owned(), pair[1].to_owned()),
            epoch: Epoch { conf_ver: 1, version: 1 },
            peers: peers(RegionId(id)),
        });
        let layout: Vec<Region> = layout.collect();
        let node = |id| SimNode {
            id: StoreId(id),
            disk: SimDisk::new(id),
            tables: SimTablesDisk::new(),
            clock: NodeClock::new(Time(0), 0),
            life: 0,
            running: None,
        };
        let net = Net::new((1..=all).map(StoreId), Weather::fair());
        let nodes = (1..=all).map(node).collect();
        let keys = Keys { by_region: Vec::new() };
        let mut cluster = Cluster::new(SEED, net, nodes, options(layout, planted), 0, keys);
        // No fault is drawn, and none explains a failure.
        cluster.calm = true;
        cluster.workload = Workload::Regions;
        cluster.hand = Some(Hand::default());
        let mut stage = Stage { cluster };
        stage.run(Duration::from_secs(1))?;
        Ok(stage)
    }

    fn now(&self) -> Time {
        self.cluster.world.now()
    }

    fn hand(&mut self) -> &mut Hand {
        self.cluster.hand.get_or_insert_default()
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) -> Outcome<()> {
        let end = self.now().after(time);
        while self.cluster.step(end)? {}
        Ok(())
    }

    /// Posts an event to the loop of a region on a node, and lets time pass until it is answered.
    fn ask(
        &mut self,
        id: StoreId,
        region: RegionId,
        event: impl FnOnce(Token) -> Event,
    ) -> Outcome<Reply> {
        let place = self.cluster.place(id, region);
        let (life, at) = place.ok_or(Setback::Silence("the node is down"))?;
        self.cluster.next_token += 1;
        let token = Token(self.cluster.next_token);
        self.hand().waiting.insert(token);
        let now = self.now();
        self.cluster.post(now, id, life, at, event(token))?;
        let end = now.after(PATIENCE);
        loop {
            if let Some(reply) = self.hand().answers.remove(&token) {
                return Ok(reply);
            }
            if !self.cluster.step(end)? {
                return Err(Setback::Silence("it takes too long"));
            }
        }
    }

    fn leader(&self, region: RegionId) -> Outcome<(StoreId, Region)> {
        let leader = self.cluster.leader_of(region).ok_or(Setback::Silence(LEADERLESS))?;
        Ok((leader.0, leader.1.region))
    }

    /// The newest region with the key that somebody leads.
    fn owner(&self, key: &[u8]) -> Outcome<(StoreId, Region)> {
        let ids: Vec<StoreId> = self.cluster.nodes.keys().copied().collect();
        let all =
            ids.iter().flat_map(|id| self.cluster.statuses(*id).into_iter().map(|s| (*id, s)));
        let owns = all.filter(|(_, s)| s.leads && s.region.range.contains(key));
        let newest = owns.max_by_key(|(_, s)| (s.region.epoch.version, s.term));
        let (id, status) = newest.ok_or(Setback::Silence(LEADERLESS))?;
        Ok((id, status.region))
    }

    /// Tries again, as clients do, while leader or shape of a region are not what they were, or not known.
    fn patiently<T>(&mut self, mut act: impl FnMut(&mut Stage) -> Outcome<T>) -> Outcome<T> {
        let end = self.now().after(PATIENCE);
        loop {
            let again = match act(self) {
                Err(
                    again @ (Setback::Silence(LEADERLESS)
                    | Setback::Refused(
                        Error::EpochNotMatch { .. } | Error::NotLeader { .. },
                    )),
                ) => again,
                done => return done,
            };
            if self.now() >= end {
                return Err(again);
            }
            self.run(RETRY)?;
        }
    }

    fn admin(&mut self, region: RegionId, admin: Admin) -> Outcome<AdminDone> {
        let (id, _) = self.leader(region)?;
        match self.ask(id, region, |token| Event::Admin { token, region, admin })? {
            Reply::Admin(done) => Ok(done?),
            _ => Err(Setback::Silence("an answer to something else")),
        }
    }
}

/// What clients and operators do.
impl Stage {
    /// Writes to the leader of the key's region.
    pub fn put(&mut self, key: &str, value: &str) -> Outcome<()> {
        self.patiently(|stage| {
            let (id, known) = stage.owner(key.as_bytes())?;
            let mut batch = BatchBuilder::new();
            batch.put(key.as_bytes(), value.as_bytes())?;
            let (region, version, command) = (known.id, known.epoch.version, batch.finish());
            let event = |token| Event::Propose(vec![Proposal { token, region, version, command }]);
            match stage.ask(id, region, event)? {
                Reply::Written(done) => Ok(done.map(drop)?),
                _ => Err(Setback::Silence("an answer to something else")),
            }
        })
    }

    /// Reads at a node, or at the leader: as clients do, by lease or freshness at once where these allow it, otherwise by a
    /// grant of the replica. Gives the region that answered, too.
    pub fn get(
        &mut self,
        key: &str,
        at: Option<StoreId>,
        level: ReadLevel,
    ) -> Outcome<(RegionId, Option<Bytes>)> {
        let Some(id) = at else {
            return self.patiently(|stage| {
                let (id, region) = stage.owner(key.as_bytes())?;
                stage.read(id, &region, key, level)
            });
        };
        let running = self.cluster.running(id).ok_or(Setback::Silence("it is down"))?;
        let known = running.registry.lookup(key.as_bytes());
        let none = || Error::NoRoute { key: Bytes::copy_from_slice(key.as_bytes()) };
        let known = known.ok_or_else(none)?;
        self.read(id, &known, key, level)
    }

    fn read(
        &mut self,
        id: StoreId,
        region: &Region,
        key: &str,
        level: ReadLevel,
    ) -> Outcome<(RegionId, Option<Bytes>)> {
        if let Some(shape) = self.cluster.serves_at_once(self.now(), id, region, level) {
            let value = self.cluster.value_within(id, &shape, key.as_bytes())?;
            return Ok((region.id, value));
        }
        let (asked, version) = (region.id, region.epoch.version);
        let event = |token| Event::Read(vec![ReadRequest { token, region: asked, version, level }]);
        match self.ask(id, asked, event)? {
            Reply::Read(grant) => drop(grant?),
            _ => return Err(Setback::Silence("an answer to something else")),
        }
        Ok((region.id, self.cluster.value_at(id, region, key.as_bytes())??))
    }

    /// Cuts a region at a key; the part from there on is a region of the given id.
    pub fn split(&mut self, region: RegionId, key: &str, child: RegionId) -> Outcome<()> {
        let (_, known) = self.leader(region)?;
        let peers = known.peers.iter().map(|peer| peer_of(child, peer.store)).collect();
        let children = vec![Child { region: child, start: key.to_owned().into(), peers }];
        let split = Split { epoch: known.epoch, children };
        self.admin(region, Admin::Split(split)).map(drop)
    }

    /// Freezes a region for its neighbour.
    pub fn merge(&mut self, source: RegionId, target: RegionId) -> Outcome<()> {
        let prepare = self.prepare(source, target)?;
        self.admin(source, prepare).map(drop)
    }

    /// The same, without waiting for what comes of it.
    pub fn begin_merge(&mut self, source: RegionId, target: RegionId) -> Outcome<()> {
        let admin = self.prepare(source, target)?;
        let ((id, _), now) = (self.leader(source)?, self.now());
        let (life, at) = self.cluster.place(id, source).ok_or(Setback::Silence(LEADERLESS))?;
        let event = Event::Admin { token: Token(0), region: source, admin };
        Ok(self.cluster.post(now, id, life, at, event)?)
    }

    fn prepare(&mut self, source: RegionId, target: RegionId) -> Outcome<Admin> {
        let (epoch, target) = (self.leader(source)?.1.epoch, self.leader(target)?.1);
        // What it wished for when it was frozen before is past.
        self.hand().wishes.remove(&source);
        Ok(Admin::PrepareMerge(Prepare { epoch, target, first: 0 }))
    }

    /// What a frozen region wishes for, once it does: its neighbour, and how many entries go with it.
    pub fn wish(&mut self, source: RegionId) -> Outcome<(RegionId, usize)> {
        let end = self.now().after(PATIENCE);
        loop {
            if let Some(wish) = self.hand().wishes.get(&source) {
                return Ok((wish.merging.target, wish.commit.entries.len()));
            }
            if !self.cluster.step(end)? {
                return Err(Setback::Silence("it wishes for nothing"));
            }
        }
    }

    /// Hands a region over, and waits until the new leader can do all that leaders do.
    pub fn transfer(&mut self, region: RegionId, to: StoreId) -> Outcome<()> {
        let (id, _) = self.leader(region)?;
        match self.ask(id, region, |token| Event::Transfer { token, region, to: Some(to) })? {
            Reply::Transfer(done) => done?,
            _ => return Err(Setback::Silence("an answer to something else")),
        }
        let end = self.now().after(PATIENCE);
        let leads = |peer: &crate::region::peer::Peer| {
            peer.region.id == region && peer.runs() && peer.group.leads()
        };
        loop {
            let settled = self
                .cluster
                .running(to)
                .is_some_and(|running| running.stores.iter().flat_map(Store::peers).any(leads));
            if settled {
                return Ok(());
            }
            if !self.cluster.step(end)? {
                return Err(Setback::Silence("it does not lead"));
            }
        }
    }
}

/// What befalls a cluster.
impl Stage {
    /// Cuts a node off from all others.
    pub fn isolate(&mut self, id: StoreId) {
        self.cluster.net.cut(&Partition::Full([id].into()));
    }

    /// All nodes and replicas hear each other again.
    pub fn heal(&mut self) {
        self.cluster.net.heal();
        self.hand().lost.clear();
    }

    /// From now on messages from and to one replica are lost.
    pub fn lose(&mut self, region: RegionId, id: StoreId) {
        self.hand().lost.insert((region, id));
    }

    /// A node applies nothing any more.
    pub fn hold(&mut self, id: StoreId) {
        self.hand().held.insert(id);
    }

    /// It goes on.
    pub fn release(&mut self, id: StoreId) {
        self.hand().held.remove(&id);
        if let Some(life) = self.cluster.nodes.get(&id).map(|node| node.life) {
            self.cluster.schedule_work(id, life);
        }
    }

    /// Power fails: what was not synced is lost. The node stays down.
    pub fn crash(&mut self, id: StoreId) -> Outcome<()> {
        let now = self.now();
        Ok(self.cluster.crash_for(now, id, Mercy::None, FOR_GOOD)?)
    }

    /// A node comes back.
    pub fn restart(&mut self, id: StoreId) -> Outcome<()> {
        let now = self.now();
        Ok(self.cluster.restart(now, id)?)
    }
}

/// What can be seen.
impl Stage {
    /// The stores with a lease of the region.
    pub fn leases(&self, region: RegionId) -> Vec<StoreId> {
        let holds = |node: &SimNode| {
            let share = node.running.as_ref().and_then(|running| running.registry.get(region));
            share.is_some_and(|share| share.lease_holds(node.now(self.now())))
        };
        self.cluster.nodes.values().filter(|node| holds(node)).map(|node| node.id).collect()
    }

    /// Who leads a region.
    pub fn led_by(&self, region: RegionId) -> Option<StoreId> {
        self.cluster.leader_of(region).map(|(id, _)| id)
    }

    /// Snapshots delivered so far.
    pub fn snapshots(&self) -> u64 {
        self.cluster.counts.snapshots
    }

    /// Where the replicas of one store stand, as its node says; nothing while it is down.
    pub fn statuses(&self, id: StoreId) -> Vec<RegionStatus> {
        self.cluster.statuses(id)
    }

    /// What every store has applied of every region: a line for each shape of it.
    pub fn status(&self) -> String {
        let mut shapes: BTreeMap<(RegionId, String), Vec<String>> = BTreeMap::new();
        let mut graves: BTreeMap<RegionId, Vec<String>> = BTreeMap::new();
        let mut out = String::new();
        for (id, node) in &self.cluster.nodes {
            let Some(running) = &node.running else {
                // Writing to a String cannot fail.
                let _ = writeln!(out, "{id} is down");
                continue;
            };
            let led = self.cluster.statuses(*id);
            for state in running.kv.region_states() {
                let region = state.region.id;
                let leads = led.iter().any(|status| status.leads && status.region.id == region);
                let name = if leads { format!("{id} leads") } else { id.to_string() };
                shapes.entry((region, shape(&state))).or_default().push(name);
            }
            for dead in running.kv.tombstones() {
                graves.entry(dead.region.id).or_default().push(id.to_string());
            }
        }
        for ((region, shape), stores) in shapes {
            let _ = writeln!(out, "{region} {shape}: {}", stores.join(", "));
        }
        for (region, stores) in graves {
            let _ = writeln!(out, "{region} is gone from {}", stores.join(", "));
        }
        out
    }

    /// What must be true of a cluster that is left alone: nobody is frozen, the regions cover the key space, replicas
    /// are equal, who is gone is gone. Waits a while for it.
    pub fn check(&mut self) -> Outcome<()> {
        let end = self.now().after(PATIENCE);
        loop {
            self.cluster.look_at_agreement().map_err(Setback::Broken)?;
            let judged: Step = self.cluster.look_at_replicas();
            match judged {
                Ok(()) => return Ok(()),
                Err(broken) if self.now() >= end => return Err(Setback::Broken(broken)),
                Err(_) => self.run(LOOK)?,
            }
        }
    }
}

/// Keys, versions and freezing of a region.
fn shape(state: &RegionState) -> String {
    let Region { range, epoch, .. } = &state.region;
    let text = |key: &Bytes| String::from_utf8_lossy(key).into_owned();
    let Epoch { conf_ver, version } = epoch;
    let mut out = format!("[{}..{}) {conf_ver}.{version}", text(&range.start), text(&range.end));
    if let Some(merging) = &state.merging {
        let _ = write!(out, " frozen for {}", merging.target);
    }
    out
}
