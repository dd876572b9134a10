//! One seed: a cluster of drawn shape lives through drawn faults, calms down, and is judged.

use super::client::Keys;
use super::clock::NodeClock;
use super::cluster::{Cluster, Happening};
use super::counts::Counts;
use super::disk::SimDisk;
use super::net::{Net, Weather};
use super::node::{NodeOptions, Planted, SimNode};
use super::regions::Workload;
use super::rng::Rng;
use super::slumber::Lulls;
use super::stores::Stores;
use crate::kv::mem::SimTablesDisk;
use crate::log;
use crate::raft::GroupConfig;
use crate::store::{StoreConfig, bootstrap_regions};
use crate::types::{Region, StoreId, Time};
use bytes::Bytes;
use std::time::Duration;

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Events after which the faults end at the latest.
    pub steps: u64,
    /// Simulated time after which the faults end.
    pub trouble: Duration,
    /// A bug put in on purpose.
    pub planted: Option<Planted>,
    /// What it is about.
    pub workload: Workload,
}

impl Plan {
    /// The plan of CI for a seed.
    pub fn new(seed: u64) -> Plan {
        Plan {
            seed,
            steps: 30_000,
            trouble: Duration::from_secs(12),
            planted: None,
            workload: Workload::Kv,
        }
    }
}

/// How a seed ended.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// The first broken promise.
    pub violation: Option<String>,
    /// What was going on.
    pub counts: Counts,
    /// Simulated time.
    pub simulated: Duration,
    /// Hash over the whole trace.
    pub trace_hash: u64,
    /// The last lines of the trace.
    pub tail: Vec<String>,
}

impl Report {
    /// The report of a seed in which the engine panicked.
    pub fn panicked(seed: u64, message: &str) -> Report {
        Report {
            seed,
            violation: Some(format!("panic: {message}")),
            counts: Counts::default(),
            simulated: Duration::ZERO,
            trace_hash: 0,
            tail: Vec::new(),
        }
    }
}

/// Time in which a calm cluster must settle.
const SETTLE: Duration = Duration::from_secs(9);

fn options(rng: &mut Rng, nodes: u64, plan: &Plan) -> crate::Result<NodeOptions> {
    let stores: Vec<StoreId> = (1..=nodes).map(StoreId).collect();
    let regions = rng.range("shape.regions", 1..5);
    let config = StoreConfig {
        group: GroupConfig {
            election_ticks: 10,
            heartbeat_ticks: 2,
            inflight_messages_max: rng.range("shape.inflight", 2..32) as usize,
            append_bytes_max: rng.range("shape.append", 64..4096),
            seed: rng.draw("shape.timeouts"),
            ..Default::default()
        },
        tick: Duration::from_millis(50),
        // In some seeds they take turns; not drawn, so that the others stay what they are.
        ticked_at_once: if plan.seed % 8 == 7 { 1 } else { usize::MAX },
        clock_drift_percent_max: 10,
        compact_bytes: rng.range("shape.compact", 256..4096),
        log_bytes_max: rng.range("shape.log", 1024..24_000),
        entry_bytes_max: 4096,
        snapshot_time_max: Duration::from_millis(rng.range("shape.snapshots.time", 500..20_000)),
        hibernate_after: match rng.chance("shape.hibernate", 500) {
            true => Duration::from_millis(rng.range("shape.hibernate.after", 500..1500)),
            false => Duration::ZERO,
        },
        // Keys and values of the clients take some twenty bytes each.
        split_bytes: match plan.workload {
            Workload::Kv => 0,
            Workload::Regions => *rng.pick("shape.split", &[0, 60, 100]).unwrap_or(&0),
        },
        // All regions together take some tens of batches a second.
        split_load: match plan.workload {
            Workload::Kv => 0,
            Workload::Regions => *rng.pick("shape.split.load", &[0, 3, 6]).unwrap_or(&0),
        },
        split_load_for: Duration::from_millis(rng.range("shape.split.load.for", 500..2_500)),
        split_load_keys: 4,
        ..Default::default()
    };
    let replicas = if nodes < 3 { nodes } else { 3 };
    Ok(NodeOptions {
        config,
        loops: rng.range("shape.loops", 1..3),
        log: log::Options {
            segment_bytes: rng.range("shape.segment", 8..32) * 4096,
            cache_bytes: (rng.range("shape.cache", 1..64) << 10) as usize,
            max_pending_bytes: 16 << 20,
            spare_segments: 1,
            ..Default::default()
        },
        memtable_bytes: 4096,
        snapshot_slots: (
            rng.range("shape.snapshots.out", 1..4) as usize,
            rng.range("shape.snapshots.in", 1..4) as usize,
        ),
        layout: bootstrap_regions(&stores, regions, replicas as usize)?,
        planted: plan.planted,
    })
}

/// A few keys in each region.
fn keys(layout: &[Region], per_region: u64) -> Keys {
    let key = |region: &Region, at: u64| -> Bytes {
        let mut key = region.range.start.to_vec();
        key.extend_from_slice(b"k");
        key.push(b'0' + at as u8);
        Bytes::from(key)
    };
    let by_region =
        layout.iter().map(|region| (0..per_region).map(|at| key(region, at)).collect()).collect();
    Keys { by_region }
}

/// Builds the cluster of a seed.
pub fn cluster(plan: &Plan) -> crate::Result<Cluster> {
    let mut rng = Rng::new(plan.seed);
    let counts = match plan.workload {
        Workload::Kv => [3, 3, 3, 5, 1],
        // Stores without a replica: room to move to.
        Workload::Regions => [3, 4, 4, 5, 5],
    };
    let count = *rng.pick("shape.nodes", &counts).unwrap_or(&3);
    let options = options(&mut rng, count, plan)?;
    let per_region = match plan.workload {
        Workload::Kv => 3,
        Workload::Regions => 8,
    };
    let keys = keys(&options.layout, per_region);
    let nodes = (1..=count)
        .map(|id| SimNode {
            id: StoreId(id),
            disk: SimDisk::new(rng.draw_for("shape.disk", id)),
            tables: SimTablesDisk::new(),
            clock: NodeClock::new(
                Time(0),
                rng.range_for("shape.drift", id, 0..60_000) as i32 - 30_000,
            ),
            life: 0,
            running: None,
        })
        .collect();
    let net = Net::new((1..=count).map(StoreId), Weather::draw(&mut rng));
    let clients = rng.range("shape.clients", 2..12) as usize;
    let sleeps = options.config.hibernates();
    let lulls = sleeps.then(|| Lulls::draw(&mut rng));
    let stores = match plan.workload {
        Workload::Kv => None,
        Workload::Regions => {
            let mut rng = rng.fork("stores", 0);
            Some(Stores::draw(&mut rng, count, options.config.split_bytes))
        }
    };
    let mut cluster = Cluster::new(plan.seed, net, nodes, options, clients, keys);
    (cluster.lulls, cluster.stores) = (lulls, stores);
    Ok(cluster)
}

/// Runs a seed to its end or its first violation.
pub fn run(plan: &Plan) -> Report {
    let mut cluster = match cluster(plan) {
        Ok(cluster) => cluster,
        Err(error) => return report(plan, None, Some(error.to_string())),
    };
    let violation = live(&mut cluster, plan).err().map(|v| v.to_string());
    report(plan, Some(&cluster), violation)
}

/// The same with every line of the trace written to `out`.
pub fn run_traced(plan: &Plan, out: impl std::io::Write + Send + 'static) -> Report {
    let mut cluster = match cluster(plan) {
        Ok(cluster) => cluster,
        Err(error) => return report(plan, None, Some(error.to_string())),
    };
    cluster.trace.dump_to(out);
    let violation = live(&mut cluster, plan).err().map(|v| v.to_string());
    let written = cluster.trace.finish().err().map(|e| e.to_string());
    report(plan, Some(&cluster), violation.or(written))
}

fn live(cluster: &mut Cluster, plan: &Plan) -> Result<(), super::checker::Violation> {
    cluster.world.after(Duration::from_secs(2), Happening::Trouble);
    cluster.workload = plan.workload;
    if plan.workload == Workload::Regions {
        cluster.world.after(Duration::from_secs(1), Happening::Reshape);
        cluster.world.after(Duration::from_secs(1), Happening::Administer);
    }
    let end = Time(0).after(plan.trouble);
    while cluster.counts.steps < plan.steps && cluster.step(end)? {}
    let now = cluster.world.now();
    cluster.calm_down(now);
    // Clients go on for a while in the calm: what was lost shows now. Then everything settles.
    let working = now.after(SETTLE / 3);
    while cluster.step(working)? {}
    cluster.closing = true;
    let settled = now.after(SETTLE);
    while cluster.step(settled)? {}
    cluster.settle_stores()?;
    cluster.converge()?;
    cluster.look_at_couriers()?;
    cluster.sleep_and_wake()?;
    cluster.look_at_the_answers()?;
    let (now, hash) = (cluster.world.now(), cluster.trace.hash());
    cluster.trace.line(now, format_args!("judging, {hash:016x}"));
    cluster.look_at_the_history()
}

fn report(plan: &Plan, cluster: Option<&Cluster>, violation: Option<String>) -> Report {
    Report {
        seed: plan.seed,
        violation,
        counts: cluster.map_or(Counts::default(), |c| c.counts),
        simulated: Duration::from_nanos(cluster.map_or(0, |c| c.world.now().0)),
        trace_hash: cluster.map_or(0, |c| c.trace.hash()),
        tail: cluster.map_or(Vec::new(), |c| c.trace.last().map(str::to_owned).collect()),
    }
}
