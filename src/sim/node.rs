//! One simulated node: the very store, log, kv and applier that production runs, on a seeded disk. What
//! production does in threads is done here when the cluster says so, and reported back when it says so.

use super::clock::NodeClock;
use super::couriers::Couriers;
use super::disk::SimDisk;
use crate::env::Disk;
use crate::error::Result;
use crate::kv::mem::SimTablesDisk;
use crate::kv::{Flush, StateStore, TableStore};
use crate::log::{self, Log, LogBatch};
use crate::region::apply::{Applier, ApplyOutcome};
use crate::region::machine::KvMachine;
use crate::region::storage::{Sworn, decode_hard_state, encode_hard_state};
use crate::store::{self, AfterPersist, ApplyTask, Registry, Shard, Store, StoreConfig};
use crate::types::{Region, RegionId, StoreId, Time};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

/// A bug put in on purpose, to see that the checkers find it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Planted {
    /// Acknowledgements leave before the log is synced.
    AckBeforeSync,
    /// A restarted node does not know whom it voted for.
    ForgottenVote,
    /// The log is told of a flush that has not happened.
    FlushReportedEarly,
    /// A replica keeps no promise to its leader: it helps others to leadership inside the lease.
    ForgottenPromise,
    /// What was made for another shape of a region is applied all the same.
    IgnoredEpoch,
    /// A node goes on supporting one that is silent: groups asleep under leaders there sleep on.
    SupportKept,
    /// A leader whose region is frozen keeps the lease that it has, until it runs out: by then the region may be merged.
    LeaseKept,
    /// A leader whose region is cut goes on with its lease over the range that it had, whoever leads the parts by then.
    RangeKept,
    /// A leader's reads do not wait for a change of shape that it has proposed: a split writes nothing, so they and its lease go on
    /// before it is applied here.
    ShapeUnawaited,
    /// What a merge carries begins behind what is committed, not behind what every replica has.
    FirstFromCommit,
    /// The log is compacted above a snapshot that is under way. Seeds hardly ever have one that takes long enough; the
    /// stage has.
    PinIgnored,
    /// A replica counts as fresh as soon as a round of reads is confirmed, applied or not.
    FreshUnapplied,
    /// A request for the vote of a replica that is not here yet is not kept until it is. (There is no replica without a
    /// state that could vote before it is born.) It costs time alone: the candidate asks again, an election timeout later.
    RequestDropped,
    /// A leader asks those who were removed whether they are gone every half minute: in the end they are, and everybody has forgotten
    /// them.
    RemovedAskedLate,
}

impl Planted {
    /// All of them, by name.
    pub const ALL: [(&'static str, Planted); 14] = [
        ("ack-before-sync", Planted::AckBeforeSync),
        ("forgotten-vote", Planted::ForgottenVote),
        ("flush-reported-early", Planted::FlushReportedEarly),
        ("forgotten-promise", Planted::ForgottenPromise),
        ("ignored-epoch", Planted::IgnoredEpoch),
        ("support-kept", Planted::SupportKept),
        ("lease-kept", Planted::LeaseKept),
        ("range-kept", Planted::RangeKept),
        ("shape-unawaited", Planted::ShapeUnawaited),
        ("first-from-commit", Planted::FirstFromCommit),
        ("pin-ignored", Planted::PinIgnored),
        ("fresh-unapplied", Planted::FreshUnapplied),
        ("request-dropped", Planted::RequestDropped),
        ("removed-asked-late", Planted::RemovedAskedLate),
    ];
}

impl Planted {
    /// Before an event of a store.
    pub(super) fn act(self, store: &mut Store) {
        match self {
            Planted::ForgottenPromise => store.forget_promises(),
            Planted::SupportKept => store.keep_support(),
            Planted::LeaseKept => store.keep_leases(),
            Planted::RangeKept => store.keep_ranges(),
            Planted::ShapeUnawaited => store.leave_shapes_unawaited(),
            Planted::FirstFromCommit => store.carry_too_little(),
            Planted::PinIgnored => store.ignore_pins(),
            Planted::FreshUnapplied => store.hurry_freshness(),
            Planted::RequestDropped => store.drop_requests(),
            Planted::RemovedAskedLate => store.ask_removed_late(),
            Planted::AckBeforeSync
            | Planted::ForgottenVote
            | Planted::FlushReportedEarly
            | Planted::IgnoredEpoch => {}
        }
    }
}

/// Everything a node has while it runs; all of it is gone with a crash.
pub struct Running {
    /// Its store loops.
    pub stores: Vec<Store>,
    /// Its log.
    pub log: Log,
    /// Its state store.
    pub kv: TableStore,
    /// Its applier.
    pub applier: Applier,
    /// What clients' threads may look at.
    pub registry: Registry,
    /// Waits for the log.
    pub after: VecDeque<(usize, AfterPersist)>,
    /// Waits for the applier.
    pub tasks: Vec<ApplyTask>,
    /// A flush under way.
    pub flush: Option<Box<dyn Flush>>,
    /// Which of its activities are scheduled already.
    pub scheduled: Scheduled,
    /// Which of log and state store found no place to write, see `full`.
    pub full: u8,
    /// Its snapshots.
    pub post: Couriers,
    /// When each loop gets the last completion posted so far: they keep their order.
    pub last_post: Vec<Time>,
}

/// Activities with an event in the queue.
#[derive(Default)]
pub struct Scheduled {
    /// Loops about to drain.
    pub drain: Vec<bool>,
    /// The log writer.
    pub write: bool,
    /// The applier.
    pub apply: bool,
}

/// A node and what survives its crashes.
pub struct SimNode {
    /// Which store it is.
    pub id: StoreId,
    /// Its disk.
    pub disk: SimDisk,
    /// The disk below its state store.
    pub tables: SimTablesDisk,
    /// Its clock.
    pub clock: NodeClock,
    /// Grows with each restart: completions of an earlier life mean nothing.
    pub life: u64,
    /// While it runs.
    pub running: Option<Running>,
}

/// How the nodes of one cluster are set up.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Limits and times.
    pub config: StoreConfig,
    /// Store loops.
    pub loops: u64,
    /// The log's.
    pub log: log::Options,
    /// Memtable bytes that ask for a flush.
    pub memtable_bytes: u64,
    /// Snapshots that a node sends at once, and receives at once.
    pub snapshot_slots: (usize, usize),
    /// The regions of the new cluster.
    pub layout: Vec<Region>,
    /// A bug put in on purpose.
    pub planted: Option<Planted>,
}

/// Where a node's log lies on its disk.
pub const LOG_DIR: &str = "/log";
/// Where it puts received snapshots.
pub const SNAP_DIR: &str = "/snap";
/// What a node's clock shows when its process starts.
const CLOCK_ORIGIN: Time = Time(1_000_000_000);
const CLUSTER: u64 = 0xca7a;

impl SimNode {
    /// The node's own idea of the time.
    pub fn now(&self, world: Time) -> Time {
        self.clock.node_time(world)
    }

    /// Opens the directory and starts everything, as `Node::open` does.
    pub fn start(&mut self, world: Time, options: &NodeOptions) -> Result<()> {
        self.clock.restart(world, CLOCK_ORIGIN);
        let now = self.now(world);
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        disk.create_dir_all(Path::new(SNAP_DIR))?;
        for leftover in disk.list(Path::new(SNAP_DIR))? {
            disk.remove(&Path::new(SNAP_DIR).join(leftover))?;
        }
        let (log, found) = Log::open(disk.clone(), Path::new(LOG_DIR), options.log.clone())?;
        let tables = Box::new(self.tables.open());
        let kv_options = crate::kv::Options { memtable_bytes: options.memtable_bytes };
        let kv = TableStore::open(tables, kv_options)?;
        // One that was wiped is made anew in another life.
        let incarnation = self.id.0 << 32 | (self.life + 1);
        let recovery =
            store::prepare(&log, &found, &kv, CLUSTER, self.id, &options.layout, incarnation)?;
        if options.planted == Some(Planted::ForgottenVote) {
            forget_votes(&log)?;
        }
        let nonce = super::rng::mix(self.id.0 ^ super::rng::mix(self.life));
        let registry = Registry::default();
        let shared: Arc<dyn StateStore> = Arc::new(kv.clone());
        let stores = (0..options.loops)
            .map(|index| {
                Store::open(
                    StoreConfig { store: self.id, nonce, ..options.config.clone() },
                    Shard { index, count: options.loops },
                    log.clone(),
                    shared.clone(),
                    &registry,
                    &recovery.quarantined,
                    now,
                )
            })
            .collect::<Result<Vec<_>>>()?;
        let mut applier = Applier::new(shared, Arc::new(KvMachine), disk);
        if options.planted == Some(Planted::IgnoredEpoch) {
            applier.ignore_epochs();
        }
        let scheduled = Scheduled { drain: vec![false; stores.len()], ..Default::default() };
        let last_post = vec![world; stores.len()];
        self.life += 1;
        self.running = Some(Running {
            stores,
            log,
            kv,
            applier,
            registry,
            after: VecDeque::new(),
            tasks: Vec::new(),
            flush: None,
            scheduled,
            full: 0,
            post: Couriers::new(options.snapshot_slots),
            last_post,
        });
        Ok(())
    }
}

impl Running {
    /// Which loop a region belongs to.
    pub fn loop_of(&self, region: RegionId) -> usize {
        (region.0 % self.stores.len() as u64) as usize
    }

    /// Applies what waits.
    pub fn apply(&mut self) -> Result<ApplyOutcome> {
        let mut outcome = ApplyOutcome::default();
        self.applier.apply(std::mem::take(&mut self.tasks), &mut outcome)?;
        Ok(outcome)
    }
}

/// The planted bug: clears every group's vote.
fn forget_votes(log: &Log) -> Result<()> {
    let mut batch = LogBatch::new();
    for group in log.groups().into_iter().filter(|group| log.damage(*group).is_none()) {
        let sworn = log.state(group).and_then(|bytes| decode_hard_state(&bytes));
        let Some(Sworn { peer: Some(peer), mut hard_state }) = sworn else { continue };
        hard_state.vote = 0;
        batch.set_state(group, encode_hard_state(&hard_state, peer));
    }
    if !batch.is_empty() {
        let seq = log.submit(batch)?;
        log.wait(seq)?;
    }
    Ok(())
}
