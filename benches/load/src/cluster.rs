//! Nodes of this process: opened, watched, closed and opened again.

use crate::args::{Plan, Profile, State};
use crate::machine::Used;
use crate::report::Cost;
use crate::settings;
use anyhow::{Context, Result, anyhow, bail};
use catamaran::client::Client;
use catamaran::config::StateKind;
use catamaran::env::mem::MemDisk;
use catamaran::region::machine::NullMachine;
use catamaran::store::RegionStatus;
use catamaran::transport::Hub;
use catamaran::types::RegionId;
use catamaran::{Node, NodeConfig};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long elections may take before the run gives up.
const ELECTION_PATIENCE: Duration = Duration::from_secs(30);

/// The nodes of a run.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
}

/// Addresses that nobody listens at right now. Another process may take one before the node does: then
/// opening fails and is tried again with others.
fn free_addresses(count: u64) -> Result<BTreeMap<u64, String>> {
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    (1..).zip(&listeners).map(|(id, socket)| Ok((id, socket.local_addr()?.to_string()))).collect()
}

fn config(
    plan: &Plan,
    dir: &Path,
    id: u64,
    addresses: &BTreeMap<u64, String>,
) -> Result<NodeConfig> {
    let mut config = NodeConfig {
        store_id: id,
        data_dir: dir.join(format!("node{id}")),
        cluster: addresses.clone(),
        regions: plan.regions,
        state: match (plan.profile, plan.state) {
            (Profile::Consensus, _) | (_, State::Memory) => StateKind::Memory,
            (_, State::Disk) => StateKind::Disk,
        },
        request_timeout_ms: plan.timeout.as_millis() as u64,
        seed: plan.seed.wrapping_mul(1_000).wrapping_add(id),
        ..NodeConfig::default()
    };
    if let Some(loops) = plan.loops {
        config.loops = loops as usize;
    }
    if let Some(workers) = plan.apply_workers {
        config.apply_workers = workers as usize;
    }
    settings::with(config, &plan.set).map_err(|error| anyhow!("--set: {error}"))
}

/// The highest term of each region, added up.
pub fn terms(replicas: impl Iterator<Item = RegionStatus>) -> u64 {
    let mut terms: BTreeMap<RegionId, u64> = BTreeMap::new();
    for replica in replicas {
        let term = terms.entry(replica.region.id).or_default();
        *term = replica.term.max(*term);
    }
    terms.values().sum()
}

impl Cluster {
    /// Opens the plan's nodes below `dir` (or, for the consensus profile, in memory) and waits until
    /// every region has a leader.
    pub fn open(plan: &Plan, dir: &Path) -> Result<Cluster> {
        let mut tries = 0;
        let nodes = loop {
            tries += 1;
            match Cluster::open_nodes(plan, dir) {
                Ok(nodes) => break nodes,
                // An address was taken meanwhile.
                Err(error) if tries < 5 && format!("{error:#}").contains("in use") => {}
                Err(error) => return Err(error.context("cannot open the nodes")),
            }
        };
        let cluster = Cluster { nodes };
        cluster.wait_for_leaders(plan.regions as usize)?;
        Ok(cluster)
    }

    fn open_nodes(plan: &Plan, dir: &Path) -> Result<Vec<Node>> {
        let hub = Hub::new();
        let addresses = match plan.nodes {
            // A cluster of one needs no network.
            1 => BTreeMap::new(),
            count => free_addresses(count)?,
        };
        (1..=plan.nodes)
            .map(|id| {
                let builder = Node::builder(config(plan, dir, id, &addresses)?);
                let builder = match plan.profile {
                    Profile::Consensus => builder
                        .hub(hub.clone())
                        .disk(Arc::new(MemDisk::default()))
                        .machine(Arc::new(NullMachine)),
                    _ => builder,
                };
                Ok(builder.open()?)
            })
            .collect()
    }

    /// The node that leads each region, by region from the first; `None` where nobody does.
    pub fn leaders(&self, regions: usize) -> Result<Vec<Option<usize>>> {
        let mut leaders = vec![None; regions];
        for (at, node) in self.nodes.iter().enumerate() {
            for status in node.status()?.iter().filter(|status| status.leads) {
                let region = usize::try_from(status.region.id.0)?;
                if let Some(leader) = region.checked_sub(1).and_then(|r| leaders.get_mut(r)) {
                    *leader = Some(at);
                }
            }
        }
        Ok(leaders)
    }

    fn wait_for_leaders(&self, regions: usize) -> Result<()> {
        let until = Instant::now() + ELECTION_PATIENCE;
        loop {
            self.check_health()?;
            let missing = self.leaders(regions)?.iter().filter(|leader| leader.is_none()).count();
            if missing == 0 {
                return Ok(());
            }
            if Instant::now() > until {
                bail!("{missing} of {regions} regions have no leader after {ELECTION_PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// An error if a node has stopped.
    pub fn check_health(&self) -> Result<()> {
        for node in &self.nodes {
            if let Some(error) = node.health() {
                return Err(anyhow!(error).context(format!("node {} stopped", node.store_id())));
            }
        }
        Ok(())
    }

    /// A client that enters at each node.
    pub fn clients(&self) -> Vec<Client> {
        self.nodes.iter().map(Node::client).collect()
    }

    /// What the nodes and the process have used so far.
    pub fn cost(&self) -> Cost {
        let mut cost = Cost { cpu: Used::now().cpu, ..Cost::default() };
        for stats in self.nodes.iter().map(Node::stats) {
            cost.entries += stats.log.entries;
            cost.fsyncs += stats.log.fsyncs;
            cost.log_bytes += stats.log.bytes_written;
            cost.flushes += stats.kv.flushes;
            cost.table_bytes += stats.kv.table_bytes;
            cost.stages = cost.stages.plus(&stats.stages);
        }
        cost.terms = terms(self.nodes.iter().filter_map(|node| node.status().ok()).flatten());
        cost
    }

    /// Shuts all nodes down, side by side: each hands its leaderships to the others while there are any.
    pub fn close(self) -> Result<()> {
        std::thread::scope(|scope| {
            let closing: Vec<_> =
                self.nodes.iter().map(|node| scope.spawn(|| node.shutdown())).collect();
            for thread in closing {
                match thread.join() {
                    Ok(result) => result.context("cannot close a node")?,
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            Ok(())
        })
    }
}
