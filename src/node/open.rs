//! Putting a node together, from the disk upwards.

use super::census::Census;
use super::desk::{Desk, Outbound};
use super::directory;
use super::founding::{Founders, Founding, SetUp};
use super::handover::Away;
use super::members::{Members, Roster};
use super::operator::{self, Wishes};
use super::snapshots::arrivals::Arrivals;
use super::snapshots::dispatch::Dispatch;
use super::{Node, Running, Shared};
use crate::client::local::Local;
use crate::codec::directory::StoreRecord;
use crate::config::{NodeConfig, StateKind};
use crate::driver::{Clock, Driver, DriverConfig, Parts};
use crate::env::Disk;
use crate::env::os::OsDisk;
use crate::error::{Error, Result};
use crate::kv::lsm::{LsmOptions, LsmTables};
use crate::kv::{self, MemoryStore, StateStore, TableStore};
use crate::log::{self, Log};
use crate::pb;
use crate::raft::GroupConfig;
use crate::region::apply::Applier;
use crate::region::machine::{KvMachine, StateMachine};
use crate::store::{
    self, IDENT_GROUP, Registry, Shard, Store, StoreConfig, bootstrap_regions, first_births,
};
use crate::transport::{self, Handler, Hub, Tcp, Transport};
use crate::types::{Region, Start, StoreId, StoreIdent};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Opens a [`Node`] with other parts than the usual ones.
pub struct NodeBuilder {
    config: NodeConfig,
    machine: Arc<dyn StateMachine>,
    state: Option<Arc<dyn StateStore>>,
    disk: Arc<dyn Disk>,
    hub: Option<Hub>,
    mark_every: Duration,
}

/// A transport that is bound and not yet started.
enum Bound {
    Tcp(Tcp, tokio::runtime::Runtime),
    Hub(Arc<transport::Local>),
}

/// A number that no other start draws.
fn draw() -> u64 {
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish().max(1)
}

impl NodeBuilder {
    /// The usual parts: [`KvMachine`], the operating system's disk, TCP when the configuration names an
    /// address.
    pub fn new(config: NodeConfig) -> NodeBuilder {
        NodeBuilder {
            config,
            machine: Arc::new(KvMachine),
            state: None,
            disk: Arc::new(OsDisk),
            hub: None,
            mark_every: directory::MARK_EVERY,
        }
    }

    /// Applies commands by another state machine. The same on every node.
    pub fn machine(mut self, machine: Arc<dyn StateMachine>) -> NodeBuilder {
        self.machine = machine;
        self
    }

    /// Keeps user data in another engine.
    pub fn state_store(mut self, state: Arc<dyn StateStore>) -> NodeBuilder {
        self.state = Some(state);
        self
    }

    /// Keeps log and received snapshots on another disk, in memory for example (the default tables of
    /// the state store always use the operating system's).
    pub fn disk(mut self, disk: Arc<dyn Disk>) -> NodeBuilder {
        self.disk = disk;
        self
    }

    /// Talks to the other nodes of this process through a hub instead of the network.
    pub fn hub(mut self, hub: Hub) -> NodeBuilder {
        self.hub = Some(hub);
        self
    }

    /// How often a node that writes marks its data directory (five minutes): a copy of it that is put back later is
    /// recognised, and kept out, if it was made before the last mark. Each costs an entry of region 1.
    pub fn mark_every(mut self, pause: Duration) -> NodeBuilder {
        self.mark_every = pause;
        self
    }

    /// Opens the node. See [`Node::open`].
    pub fn open(self) -> Result<Node> {
        let NodeBuilder { config, machine, state, disk, hub, mark_every } = self;
        config.validate()?;
        let store_id = StoreId(config.store_id);
        let snap_dir = config.data_dir.join("snap");
        make_dirs(&*disk, &config.data_dir)?;
        let log_dir = config.data_dir.join("log");
        let (log, found) =
            once_unlocked(|| Log::open(Arc::clone(&disk), &log_dir, log_options(&config)))?;
        // Not before the log's lock is ours: they may be another process's.
        for leftover in disk.list(&snap_dir)? {
            disk.remove(&snap_dir.join(leftover))?;
        }
        if let Some(torn) = &found.torn {
            tracing::info!(?torn, "the log's torn tail was cut");
        }
        let mut members = Members::open(Arc::clone(&disk), &config.data_dir, draw())?;
        // The first layout is that of the stores that made the cluster.
        let layout = match config.join.is_empty() {
            true => bootstrap_regions(&config.stores(), config.regions, config.replica_count())?,
            false => Vec::new(),
        };
        let kv = match state {
            Some(state) => state,
            None => once_unlocked(|| open_state(&config, &log, &members.founders, &layout))?,
        };
        let named: BTreeSet<StoreId> = config.others().map(|(store, _)| store).collect();
        let is_empty = log.state(IDENT_GROUP).is_none() && kv.ident()?.is_none();
        if is_empty && config.join.is_empty() && !named.is_empty() {
            // Before it has an identity, so that no directory with one seems to have founded.
            members.founding(Founders::Gathering)?;
        }
        let cluster = config.cluster_id;
        let incarnation = draw();
        let recovery = match members.founders {
            Founders::Gathering => {
                store::identify(&log, &found, &*kv, cluster, store_id, incarnation)?
            }
            _ => store::prepare(&log, &found, &*kv, cluster, store_id, &layout, incarnation)?,
        };
        let ident = recovery.ident;
        let founders = members.founders.clone();
        let founding = Founding::new((store_id, ident.incarnation), named.clone(), founders);
        let founding = Arc::new(founding);
        let set_up: SetUp = {
            let (log, kv, layout) = (log.clone(), Arc::clone(&kv), layout.clone());
            Box::new(move || {
                let StoreIdent { cluster, store, incarnation } = ident;
                store::prepare(&log, &found, &*kv, cluster, store, &layout, incarnation)?;
                Ok(first_births(store, &layout).collect())
            })
        };
        for (region, reason) in &recovery.quarantined {
            tracing::error!(%region, reason, "a replica is fenced off: its log is damaged");
        }

        let clock = Clock::start();
        let registry = Registry::default();
        let store_config = store_config(&config);
        let count = loops(&config) as u64;
        let stores = (0..count)
            .map(|index| {
                Store::open(
                    store_config.clone(),
                    Shard { index, count },
                    log.clone(),
                    Arc::clone(&kv),
                    &registry,
                    &recovery.quarantined,
                    clock.now(),
                )
            })
            .collect::<Result<Vec<_>>>()?;
        let appliers = (0..config.apply_workers)
            .map(|_| Applier::new(Arc::clone(&kv), Arc::clone(&machine), Arc::clone(&disk)))
            .collect();

        let start = members.start;
        let bound = bind(&config, recovery.ident.incarnation, start, hub)?;
        let transport: Arc<dyn Transport> = match &bound {
            Bound::Tcp(tcp, _) => Arc::new(tcp.clone()),
            Bound::Hub(local) => Arc::clone(local) as Arc<dyn Transport>,
        };
        let (wishes, wished) = Wishes::new();
        let patience = Duration::from_millis(config.snapshot_patience_ms);
        let dispatch =
            Dispatch::new(Arc::clone(&transport), clock, draw(), config.snapshots, patience);
        let arrivals = Arrivals::new(Arc::clone(&disk), snap_dir, config.snapshot_slots, patience);
        let outward = Outbound {
            transport: Arc::clone(&transport),
            wishes,
            dispatch,
            arrivals: Arc::clone(&arrivals),
        };
        let driver = Driver::start(Parts {
            config: driver_config(&config),
            stores,
            appliers,
            log,
            kv: Arc::clone(&kv),
            registry,
            disk,
            outward: Arc::new(outward),
            clock,
        })?;
        // What the store knows durably is at least as new as the first layout.
        let known = layout.into_iter().chain(kv.region_states().into_iter().map(|s| s.region));
        let local =
            Local::new(store_id, driver.clone(), Arc::clone(&transport), known.collect(), draw());
        let away: Arc<Away> = Arc::default();
        let roster = Arc::new(Roster::default());
        roster.learn(&members.directory);
        if let Founders::Met(all) = &members.founders {
            roster.founded_by(all);
        }
        let absent = Arc::clone(&away);
        let founds = Arc::clone(&founding);
        let named: BTreeSet<StoreId> = config.others().map(|(store, _)| store).collect();
        local.bureau().remember(
            members.directory.clone(),
            named.clone(),
            Box::new(move |store| !absent.has(store)),
            Box::new(move |store, incarnation| founds.answer(store, incarnation)),
        );
        let desk: Arc<dyn Handler> = Arc::new(Desk {
            local: local.clone(),
            driver: driver.clone(),
            arrivals,
            roster: Arc::clone(&roster),
            away: Arc::clone(&away),
            founding: Arc::clone(&founding),
        });
        let (local_addr, runtime) = match bound {
            Bound::Tcp(tcp, runtime) => {
                tcp.start(desk);
                // They are dialled at once, not when there is something to say: they do not know us yet.
                for (id, address) in &config.join {
                    tcp.set_peer(StoreId(*id), address.clone());
                }
                (Some(tcp.local_addr()), Some(runtime))
            }
            Bound::Hub(hub) => {
                hub.start(desk);
                (None, None)
            }
        };
        let desk = operator::Desk {
            client: local.client(Duration::ZERO),
            office: Box::new(local.weakly()),
        };
        operator::start(wished, desk, config.merge_bytes())?;
        let counters = Arc::new(directory::Counters::default());
        let data_dir = config.data_dir.clone();
        let clerk = directory::start(directory::Parts {
            local: local.clone(),
            driver: driver.clone(),
            transport: Arc::clone(&transport),
            record: StoreRecord {
                store: store_id,
                incarnation: recovery.ident.incarnation,
                start,
                address: address_of(&config, local_addr),
                ..StoreRecord::default()
            },
            life: draw(),
            replicas: if config.join.is_empty() { config.replica_count() as u64 } else { 0 },
            named,
            members,
            roster,
            mark_every,
            census: Census::of(&config),
            free_space: Box::new(move || fs2::available_space(&data_dir).ok()),
            counters: Arc::clone(&counters),
            founding,
            set_up: Some(set_up),
        })?;
        let client = local.client(Duration::from_millis(config.request_timeout_ms));
        let directory = counters;
        let running = Running { driver, local, transport, runtime, away, clerk, directory };
        Ok(Node {
            shared: Arc::new(Shared {
                config,
                store: store_id,
                local_addr,
                client,
                running: Mutex::new(Some(Arc::new(running))),
                last_words: Mutex::default(),
            }),
        })
    }
}

impl std::fmt::Debug for NodeBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Where the others find this node: as the configuration names it, or where it listens.
fn address_of(config: &NodeConfig, local: Option<SocketAddr>) -> String {
    let named = config.cluster.get(&config.store_id).cloned();
    let named = named.or(config.listen_addr().filter(|_| !config.join.is_empty()));
    named.or(local.map(|address| address.to_string())).unwrap_or_default()
}

fn make_dirs(disk: &dyn Disk, data: &Path) -> Result<()> {
    for dir in ["log", "snap"] {
        disk.create_dir_all(&data.join(dir))?;
    }
    Ok(())
}

/// What more loops could carry, no disk does: see `driver::scaling`.
const LOOPS_BY_DEFAULT: usize = 8;

fn loops(config: &NodeConfig) -> usize {
    match config.loops {
        0 => std::thread::available_parallelism()
            .map_or(1, |cores| (cores.get() / 2).clamp(1, LOOPS_BY_DEFAULT)),
        n => n,
    }
}

fn log_options(config: &NodeConfig) -> log::Options {
    log::Options {
        segment_bytes: config.segment_bytes,
        cache_bytes: config.entry_cache_bytes,
        compress_above: Some(config.compress_above_bytes).filter(|bytes| *bytes > 0),
        ..log::Options::default()
    }
}

fn open_state(
    config: &NodeConfig,
    log: &Log,
    founders: &Founders,
    layout: &[Region],
) -> Result<Arc<dyn StateStore>> {
    match config.state {
        StateKind::Disk => {
            let options =
                LsmOptions { block_cache_bytes: config.block_cache_bytes, ..LsmOptions::default() };
            let tables = LsmTables::open(&config.data_dir.join("state"), options)?;
            let memtable_bytes = config.memtable_bytes as u64;
            let options = kv::Options { memtable_bytes };
            Ok(Arc::new(TableStore::open(Box::new(tables), options)?))
        }
        StateKind::Memory => {
            let state = MemoryStore::new()?;
            // The log is the whole truth: it is replayed from its start into the first layout.
            if let Some(ident) = log.state(IDENT_GROUP)
                && *founders != Founders::Gathering
            {
                let states = store::initial_states(StoreId(config.store_id), layout);
                state.bootstrap(&pb::decode_ident(&ident)?, states.collect())?;
            }
            Ok(Arc::new(state))
        }
    }
}

/// How long a directory may stay locked by a node that is just being closed.
const UNLOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Opens what a node closed a moment ago may still hold: its last network task or timer lets go of it shortly.
fn once_unlocked<T>(open: impl Fn() -> Result<T>) -> Result<T> {
    let start = std::time::Instant::now();
    loop {
        match open() {
            Err(Error::Locked(_)) if start.elapsed() < UNLOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

fn store_config(config: &NodeConfig) -> StoreConfig {
    StoreConfig {
        store: StoreId(config.store_id),
        group: GroupConfig {
            election_ticks: config.election_ticks,
            heartbeat_ticks: config.heartbeat_ticks,
            seed: if config.seed == 0 { draw() } else { config.seed },
            ..GroupConfig::default()
        },
        nonce: draw(),
        tick: config.tick(),
        clock_drift_percent_max: config.clock_drift_percent,
        pending_bytes_max: config.pending_bytes,
        entry_bytes_max: config.entry_bytes,
        compact_bytes: config.compact_bytes,
        log_bytes_max: config.region_log_bytes,
        snapshot_time_max: Duration::from_millis(config.snapshot_timeout_ms),
        hibernate_after: Duration::from_millis(config.hibernate_after_ms),
        split_bytes: config.region_split_bytes,
        split_load: config.region_split_load,
        split_load_for: Duration::from_millis(config.region_split_load_ms),
        ..StoreConfig::default()
    }
}

fn driver_config(config: &NodeConfig) -> DriverConfig {
    DriverConfig {
        tick: config.tick(),
        read_workers: config.read_workers,
        inbox_bytes: config.inbox_bytes,
        inbox_message_bytes: config.inbox_message_bytes,
        apply_queue_bytes: config.apply_queue_bytes,
        memtable_bytes_max: config.memtable_bytes as u64 * 4,
        log_budget_bytes: config.log_budget_bytes,
        flush_interval: Duration::from_millis(config.flush_interval_ms),
    }
}

fn resolve(address: &str) -> Result<SocketAddr> {
    let failed = |e| Error::io("resolve", address, e);
    let mut found = address.to_socket_addrs().map_err(failed)?;
    found.next().ok_or_else(|| Error::InvalidArgument(format!("no address for {address:?}")))
}

fn bind(config: &NodeConfig, incarnation: u64, start: Start, hub: Option<Hub>) -> Result<Bound> {
    let store = StoreId(config.store_id);
    let listen = match (hub, config.listen_addr()) {
        (Some(hub), _) => {
            let patience = Duration::from_millis(config.snapshot_patience_ms);
            let hub = hub.join_limited(store, patience, config.snapshot_bytes_per_s);
            return Ok(Bound::Hub(hub));
        }
        // Nobody else to talk to: a hub of one.
        (None, None) => return Ok(Bound::Hub(Hub::new().join(store))),
        (None, Some(listen)) => resolve(&listen)?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(1, |n| n.get().clamp(1, 4)))
        .thread_name("network")
        .enable_all()
        .build()
        .map_err(|e| Error::io("start runtime", "network", e))?;
    let mut tcp = transport::Config::new(config.cluster_id, store, incarnation, listen);
    tcp.start = start;
    tcp.peers = config.others().map(|(store, address)| (store, address.clone())).collect();
    tcp.peers = config.others().map(|(store, address)| (store, address.clone())).collect();
    tcp.advertise = config.listen_addr().filter(|_| !config.join.is_empty());
    tcp.peer_budget = config.peer_queue_bytes;
    tcp.snapshot_timeout = Duration::from_millis(config.snapshot_patience_ms);
    tcp.snapshot_rate = config.snapshot_bytes_per_s;
    let tcp = Tcp::bind(tcp, runtime.handle().clone())?;
    Ok(Bound::Tcp(tcp, runtime))
}
