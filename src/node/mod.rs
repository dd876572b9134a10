//! The embedder's handle: one [`Node`] is one member of a cluster in this process.
//!
//! ```
//! use catamaran::kv::Direction;
//! use catamaran::store::ReadLevel;
//! use catamaran::types::KeyRange;
//! use catamaran::{Node, NodeConfig};
//!
//! # fn main() -> catamaran::Result<()> {
//! # let dir = tempfile::tempdir().unwrap();
//! let node = Node::open(NodeConfig::single(dir.path().join("data")))?;
//! let client = node.client().blocking();
//!
//! client.put("mast", "tall")?;
//! client.put("hull", "twin")?;
//! assert_eq!(client.get("hull")?.unwrap(), "twin");
//!
//! let rows = client.scan(KeyRange::all(), Direction::Forward, ReadLevel::Linearizable);
//! let keys: Vec<_> = rows.map(|row| row.map(|(key, _)| key)).collect::<Result<_, _>>()?;
//! assert_eq!(keys, ["hull", "mast"]);
//!
//! node.shutdown()?;
//! # Ok(())
//! # }
//! ```
//!
//! A directory holds `log/` (the raft log), `state/` (the tables of the state store) and `snap/`
//! (snapshots being received; emptied at every open). Three more nodes make a cluster: give each the same
//! [`cluster`](NodeConfig::cluster) and its own [`store_id`](NodeConfig::store_id).
//!
//! [`Node::shutdown`] hands leaderships over, flushes and closes; [`Node::kill`] stops on the spot, as a
//! crash would. After either, the directory can be opened again, even while clients of the old node
//! are still held. A node that hits a failed sync or an apply error stops by itself:
//! [`Node::health`] says why.
//!
//! The members of a new cluster found it together: each waits until it has met all the others, and has no regions before. So
//! a member whose directory was lost never takes part as if it were new, however many have lost theirs; it joins
//! under another id.
//!
//! A store [registers](crate::codec::directory) with the cluster when its node starts; one that [joins](NodeConfig::join) a
//! running cluster begins empty and is given replicas. What it knows of the others it keeps in the file `members`.
//!
//! Not done: a joining node must be told the addresses of some members; a cluster cannot be asked for an id.

pub(crate) mod census;
mod desk;
mod directory;
mod fates;
mod founding;
pub(crate) mod handover;
mod leaders;
pub(crate) mod members;
pub(crate) mod merger;
mod open;
pub(crate) mod operator;
mod snapshots;

pub use crate::config::{NodeConfig, StateKind};
pub use directory::DirectoryStats;
pub use open::NodeBuilder;

use crate::client::local::Local;
use crate::client::{Client, wait};
use crate::driver::{Driver, DriverStats, FlushNow, SnapshotStats, StageStats};
use crate::error::{Error, Result};
use crate::store::{RegionStatus, Reply};
use crate::transport::Transport;
use crate::types::{RegionId, StoreId};
use crate::{kv, log, transport};
use handover::{Away, HandOver};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a node did and holds: the figures of its rooms.
#[derive(Clone, Default, Debug)]
pub struct NodeStats {
    /// Syncs, bytes, entries, segments of the log.
    pub log: log::Stats,
    /// Memtables, tables, flushes.
    pub kv: kv::Stats,
    /// Messages, bytes, connections.
    pub transport: transport::Stats,
    /// Rounds, applied entries, queues.
    pub driver: DriverStats,
    /// Where the writes of the regions led here waited, stage by stage.
    pub stages: StageStats,
    /// Snapshots sent, received, refused, resumed, under way.
    pub snapshots: SnapshotStats,
    /// Reports and announcements.
    pub directory: DirectoryStats,
}

/// What a running node consists of.
struct Running {
    driver: Driver,
    local: Local,
    transport: Arc<dyn Transport>,
    runtime: Option<tokio::runtime::Runtime>,
    away: Arc<Away>,
    clerk: directory::Handle,
    directory: Arc<directory::Counters>,
}

struct Shared {
    config: NodeConfig,
    store: StoreId,
    local_addr: Option<SocketAddr>,
    client: Client,
    running: Mutex<Option<Arc<Running>>>,
    last_words: Mutex<(NodeStats, Option<Error>)>,
}

/// One member of a cluster. Clones are handles to the same node; it stops when the last one goes.
#[derive(Clone)]
pub struct Node {
    shared: Arc<Shared>,
}

impl Node {
    /// Opens a data directory, or makes it, and starts the node. It serves at once; regions answer as
    /// soon as they have a leader: those of a new cluster when all of its members have been up at once.
    ///
    /// Errors: an invalid configuration, a directory of another store or cluster, a locked or damaged
    /// one, an address in use.
    pub fn open(config: NodeConfig) -> Result<Node> {
        NodeBuilder::new(config).open()
    }

    /// To open a node with other parts than the usual ones.
    pub fn builder(config: NodeConfig) -> NodeBuilder {
        NodeBuilder::new(config)
    }

    fn running(&self) -> Result<Arc<Running>> {
        let stopped = || Error::Stopped { reason: "the node is closed".into() };
        self.shared.running.lock().clone().ok_or_else(stopped)
    }

    /// A client that enters the cluster here, without a connection.
    pub fn client(&self) -> Client {
        self.shared.client.clone()
    }

    /// Which store it is.
    pub fn store_id(&self) -> StoreId {
        self.shared.store
    }

    /// Where it listens, if it does.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.shared.local_addr
    }

    /// Its settings.
    pub fn config(&self) -> &NodeConfig {
        &self.shared.config
    }

    /// Where its replicas stand, by region. Waits for the loops (bounded by the request timeout).
    pub fn status(&self) -> Result<Vec<RegionStatus>> {
        wait(self.client().status()).map(|status| status.regions)
    }

    /// What it did so far; of a closed node: its last figures.
    pub fn stats(&self) -> NodeStats {
        match self.running() {
            Ok(running) => running.stats(),
            Err(_) => self.shared.last_words.lock().0.clone(),
        }
    }

    /// Why the node has stopped, if it has: by itself after a fatal error, or because it was closed.
    pub fn health(&self) -> Option<Error> {
        match self.running() {
            Ok(running) => running.driver.stop_reason(),
            Err(closed) => Some(self.shared.last_words.lock().1.clone().unwrap_or(closed)),
        }
    }

    /// Starts handing leadership of a region to `to`, or to some follower that can lead at once. The region must
    /// be led here.
    pub fn transfer_leader(&self, region: RegionId, to: Option<StoreId>) -> Result<()> {
        let running = self.running()?;
        let (tell, told) = tokio::sync::oneshot::channel();
        let waiter = Box::new(move |reply| {
            let _ = tell.send(match reply {
                Ok(Reply::Transfer(result)) => result,
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            });
        });
        let timeout = Duration::from_millis(self.shared.config.request_timeout_ms);
        let deadline = running.driver.clock().now().after(timeout);
        running.driver.transfer(region, to, deadline, waiter);
        drop(running);
        wait(told).unwrap_or_else(|_| Err(Error::Stopped { reason: "the node is closed".into() }))
    }

    /// Flushes the state store: durable on return. The log can shrink a moment later.
    pub fn flush(&self) -> Result<()> {
        self.running()?.driver.flush(FlushNow::Wait)
    }

    /// Hands every leadership over that another node can take (bounded by `shutdown_timeout_ms`), flushes,
    /// stops, waits for the threads. Calling it again does nothing. Do not call it on a thread of an async runtime.
    pub fn shutdown(&self) -> Result<()> {
        let Ok(running) = self.running() else { return Ok(()) };
        let flushed = match running.driver.stop_reason() {
            Some(_) => Ok(()),
            None => {
                self.hand_over(&running);
                let flushed = running.driver.flush(FlushNow::Wait);
                flushed.and_then(|()| running.driver.log().barrier())
            }
        };
        drop(running);
        self.shared.close("shut down");
        flushed
    }

    /// Until nothing is led here any more that somebody else could lead.
    fn hand_over(&self, running: &Running) {
        let patience = Duration::from_millis(self.shared.config.shutdown_timeout_ms);
        if patience.is_zero() {
            return;
        }
        let until = Instant::now() + patience;
        let client = self.client().with_timeout(patience.max(Duration::from_millis(100)));
        let config = &self.shared.config;
        let mut over =
            HandOver::new(self.shared.store, config.tick() * config.election_ticks as u32);
        while Instant::now() < until {
            let Ok(status) = wait(client.status()) else { return };
            let step = over.step(Instant::now(), &status.regions, &running.away.now());
            if step.waiting == 0 {
                return;
            }
            let deadline = running.driver.clock().now().after(patience);
            for (region, to) in step.ask {
                running.driver.transfer(region, to, deadline, Box::new(|_| {}));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        tracing::warn!("shutting down with leaderships not handed over");
    }

    /// Stops on the spot: nothing is flushed or handed over. For tests of what a crash does.
    pub fn kill(&self) {
        self.shared.close("killed");
    }
}

impl Running {
    fn stats(&self) -> NodeStats {
        NodeStats {
            log: self.driver.log().stats(),
            kv: self.driver.kv().stats(),
            transport: self.transport.stats(),
            driver: self.driver.stats(),
            stages: self.driver.stages(),
            snapshots: self.driver.snapshot_stats(),
            directory: self.directory.stats(),
        }
    }
}

/// How long the network tasks may take to end.
const NETWORK_END: Duration = Duration::from_secs(1);

impl Shared {
    fn close(&self, why: &str) {
        let Some(running) = self.running.lock().take() else { return };
        *self.last_words.lock() = (running.stats(), running.driver.stop_reason());
        running.driver.stop(why);
        running.clerk.stop();
        running.local.close();
        running.transport.shutdown();
        running.driver.join();
        self.last_words.lock().1.get_or_insert(Error::Stopped { reason: why.to_owned() });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        // Waiting is forbidden on a thread of a runtime.
        match tokio::runtime::Handle::try_current() {
            Ok(_) => runtime.shutdown_background(),
            Err(_) => runtime.shutdown_timeout(NETWORK_END),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.close("dropped");
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("store", &self.shared.store)
            .field("local_addr", &self.shared.local_addr)
            .finish_non_exhaustive()
    }
}
