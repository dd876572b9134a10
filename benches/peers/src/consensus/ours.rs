//! Ours: three nodes as an embedder opens them, with the parts that measure consensus alone.

use super::callbacks::{self, Counter, Fate, Returns};
use super::clients::{self, Client};
use super::{Figures, Hands, Peer, Span, Work};
use anyhow::{Context, Result, anyhow, bail};
use catamaran::client::{Batch, Swap};
use catamaran::config::StateKind;
use catamaran::env::mem::MemDisk;
use catamaran::region::machine::NullMachine;
use catamaran::transport::Hub;
use catamaran::{Node, NodeConfig};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

const NODES: u64 = 3;
/// How long elections may take before the run gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Three nodes.
pub struct Ours {
    nodes: Vec<Node>,
    hands: Hands,
    groups: usize,
}

fn config(id: u64, groups: usize) -> NodeConfig {
    NodeConfig {
        store_id: id,
        data_dir: format!("node{id}").into(),
        // Names only: a hub carries what they say.
        cluster: (1..=NODES).map(|id| (id, format!("127.0.0.1:{id}"))).collect(),
        regions: groups as u64,
        state: StateKind::Memory,
        // All nodes close together: nobody is there to hand leaderships to.
        shutdown_timeout_ms: 0,
        ..NodeConfig::default()
    }
}

impl Ours {
    /// Opens the nodes in memory and waits until every group has a leader.
    pub fn open(hands: Hands, groups: usize) -> Result<Ours> {
        let hub = Hub::new();
        let nodes = (1..=NODES)
            .map(|id| {
                let builder = Node::builder(config(id, groups)).hub(hub.clone());
                let builder = builder.disk(Arc::new(MemDisk::default()));
                builder.machine(Arc::new(NullMachine)).open().context("cannot open a node")
            })
            .collect::<Result<Vec<Node>>>()?;
        let ours = Ours { nodes, hands, groups };
        let until = Instant::now() + PATIENCE;
        while ours.leaders()?.len() < groups {
            if Instant::now() > until {
                bail!("some of {groups} regions have no leader after {PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(ours)
    }

    /// Which node leads each region, where somebody does; regions count from 0.
    fn leaders(&self) -> Result<BTreeMap<usize, usize>> {
        let mut leaders = BTreeMap::new();
        for (at, node) in self.nodes.iter().enumerate() {
            if let Some(error) = node.health() {
                return Err(anyhow!(error).context(format!("node {} stopped", node.store_id())));
            }
            for status in node.status()?.iter().filter(|status| status.leads) {
                leaders.insert(usize::try_from(status.region.id.0)?.saturating_sub(1), at);
            }
        }
        Ok(leaders)
    }

    /// The row's clients: each enters at the node that leads its group, as one that knows its way would.
    fn writers(&self, work: Work) -> Result<Vec<Writer>> {
        let leaders = self.leaders()?;
        (0..work.clients)
            .map(|client| {
                let group = client % self.groups;
                let node = *leaders.get(&group).context("a region has no leader")?;
                let keys = (0..work.batch).map(|put| key(group, self.groups, client, put));
                let client = self.nodes[node].client();
                Ok(Writer { client, node, keys: keys.collect() })
            })
            .collect()
    }
}

/// A key in the range of a group: its start as a new cluster cuts the key space, then client and put.
fn key(group: usize, groups: usize, client: usize, put: usize) -> [u8; 16] {
    // Rounded up: the cut is at the number below.
    let start = ((group as u128) << 64).div_ceil(groups as u128) as u64;
    let mut key = [0; 16];
    key[..8].copy_from_slice(&start.to_be_bytes());
    key[8..12].copy_from_slice(&(client as u32).to_be_bytes());
    key[12..].copy_from_slice(&(put as u32).to_be_bytes());
    key
}

/// One client: where it enters and what it writes.
struct Writer {
    client: catamaran::Client,
    node: usize,
    keys: Vec<[u8; 16]>,
}

impl Writer {
    fn request(&self) -> Result<Batch> {
        let mut batch = Batch::new();
        for key in &self.keys {
            batch.put(key, &[])?;
        }
        Ok(batch)
    }
}

impl Client for Writer {
    async fn write(&mut self) -> Result<()> {
        self.client.write(self.request()?).await?;
        Ok(())
    }
}

/// All clients of a run, for the thread that hands their requests over.
struct Desk {
    writers: Vec<Writer>,
    nodes: Vec<catamaran::Client>,
}

fn answered(
    client: u32,
    back: Arc<Returns>,
) -> impl FnOnce(catamaran::Result<Vec<Swap>>) + Send + 'static {
    move |result| {
        let fate = if result.is_ok() { Fate::Written } else { Fate::Failed };
        back.push(client, fate);
    }
}

impl Counter for Desk {
    fn submit(&mut self, clients: &[u32], back: &Arc<Returns>) -> Result<()> {
        let mut parts: Vec<Vec<(Batch, _)>> = self.nodes.iter().map(|_| Vec::new()).collect();
        for client in clients {
            let writer = &self.writers[*client as usize];
            parts[writer.node].push((writer.request()?, answered(*client, Arc::clone(back))));
        }
        for (node, part) in self.nodes.iter().zip(parts) {
            if !part.is_empty() {
                node.submit_many(part);
            }
        }
        Ok(())
    }
}

impl Peer for Ours {
    fn run(&mut self, work: Work, span: Span) -> Result<Figures> {
        let writers = self.writers(work)?;
        let figures = match self.hands {
            Hands::Tasks => clients::run(writers, work.batch, span),
            Hands::Callbacks => {
                let nodes = self.nodes.iter().map(Node::client).collect();
                callbacks::run(Desk { writers, nodes }, work.clients, work.batch, span)
            }
        };
        // A node that stopped says why; its clients only that it did.
        self.leaders().and(figures)
    }

    fn close(self: Box<Self>) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::super::{Which, measure};
    use super::*;

    #[test]
    fn keys_lie_in_the_range_of_their_group() {
        for groups in [1, 3, 64, 1000] {
            let cut = |group: usize| (((group as u128) << 64) / groups as u128) as u64;
            for group in 0..groups {
                let key = key(group, groups, 4095, 3);
                let start = u64::from_be_bytes(key[..8].try_into().unwrap());
                assert!(start >= cut(group), "{group} of {groups}");
                assert!(group + 1 == groups || start < cut(group + 1), "{group} of {groups}");
            }
        }
    }

    #[test]
    fn ours_runs_a_small_row_by_either_hand() {
        let span = Span { warmup: Duration::ZERO, took: Duration::from_millis(50) };
        let work = Work { groups: 2, clients: 5, batch: 3 };
        for which in [Which::Catamaran, Which::CatamaranCallbacks] {
            let figures = measure(which, work, span).unwrap();
            assert!(figures.puts_per_s > 0.0 && figures.failed == 0, "{figures:?}");
            assert!(figures.p50_us > 0.0 && figures.p50_us <= figures.p99_us, "{figures:?}");
        }
    }
}
