//! openraft 0.10: three nodes of each group in one process, log in memory, function calls for a network, a state
//! machine that keeps nothing. Settings are those of its own benchmark; log and network are ours, written against
//! its public traits (`log`, `network`, `machine`), as cheap as they can be.

mod log;
mod machine;
mod network;

use super::callbacks::{self, Counter, Fate, Returns};
use super::clients::{self, Client};
use super::{Figures, Hands, Peer, Span, Which, Work};
use anyhow::{Context, Result, anyhow};
use futures_util::TryStreamExt;
use machine::Machine;
use network::{Append, Network};
use openraft::raft::ClientWriteResult;
use openraft::raft::responder::Responder;
use openraft::{Config, OptionalSend, Raft, RaftTypeConfig};
use std::any::Any;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::runtime::Runtime;

const NODES: u64 = 3;
/// Threads of the servers in openraft's own benchmark.
const THREADS: usize = 16;
/// How long elections may take before the run gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a client writes: nothing.
#[derive(Clone, Copy, Debug)]
pub struct Put;

impl fmt::Display for Put {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("put")
    }
}

/// What it is told: nothing.
#[derive(Clone, Copy, Debug)]
pub struct Done;

/// openraft's choice of types: its defaults, but for what is written and who is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Types;

impl RaftTypeConfig for Types {
    type D = Put;
    type R = Done;
    type NodeId = u64;
    type Node = ();
    type Term = u64;
    type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
    type Vote = openraft::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<Put, u64, ()>;
    type Entry = openraft::alias::DefaultEntryOf<Self>;
    type AsyncRuntime = openraft_rt_tokio::TokioRuntime;
    type Responder<T>
        = Told
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

/// One replica.
pub type Replica = Raft<Types, Machine>;

/// Tells the thread of the clients that a request has its answer, once all of its writes have theirs.
pub struct Told {
    client: u32,
    back: Arc<Returns>,
    /// The other writes of the request, if there are any.
    others: Option<Arc<Others>>,
}

/// What the writes of one request share.
struct Others {
    waiting: AtomicUsize,
    failed: AtomicBool,
}

impl Told {
    fn one(client: u32, back: &Arc<Returns>) -> Told {
        Told { client, back: Arc::clone(back), others: None }
    }

    /// For a request of so many writes, one for each.
    fn each(client: u32, back: &Arc<Returns>, writes: usize) -> impl Iterator<Item = Told> {
        let others = Others { waiting: AtomicUsize::new(writes), failed: AtomicBool::new(false) };
        let (back, others) = (Arc::clone(back), Arc::new(others));
        (0..writes).map(move |_| Told {
            client,
            back: Arc::clone(&back),
            others: Some(Arc::clone(&others)),
        })
    }

    fn answered(self, mut fate: Fate) {
        if let Some(others) = &self.others {
            if fate == Fate::Failed {
                others.failed.store(true, Ordering::Release);
            }
            if others.waiting.fetch_sub(1, Ordering::AcqRel) > 1 {
                return;
            }
            if others.failed.load(Ordering::Acquire) {
                fate = Fate::Failed;
            }
        }
        self.back.push(self.client, fate);
    }
}

impl<T: OptionalSend + 'static> Responder<Types, T> for Told {
    fn on_complete(self, result: T) {
        let result: &dyn Any = &result;
        let fate = match result.downcast_ref::<ClientWriteResult<Types>>() {
            Some(Ok(_)) => Fate::Written,
            _ => Fate::Failed,
        };
        self.answered(fate);
    }
}

/// How it is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setup {
    hands: Hands,
    threads: usize,
    append: Append,
}

impl Setup {
    /// The setup that a name stands for.
    pub fn of(which: Which) -> Setup {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if which == Which::Openraft { THREADS } else { cores };
        let append = match which {
            Which::OpenraftPipelined => Append::Ahead,
            _ => Append::OneByOne,
        };
        Setup { hands: which.hands(), threads, append }
    }
}

/// Groups of three replicas on one runtime.
pub struct Openraft {
    hands: Hands,
    runtime: Runtime,
    groups: Vec<Group>,
}

/// Three replicas; the first one leads as long as nothing goes wrong.
struct Group {
    network: Network,
    replicas: Vec<Replica>,
}

impl Group {
    async fn open(config: Arc<Config>, append: Append) -> Result<Group> {
        let network = Network::new(append);
        let mut replicas = Vec::new();
        for id in 0..NODES {
            let (log, machine) = (log::MemoryLog::default(), Machine::default());
            let replica = Raft::new(id, Arc::clone(&config), network.clone(), log, machine).await;
            let replica: Replica = replica.context("cannot open a replica")?;
            network.add(id, replica.clone());
            replicas.push(replica);
        }
        let first = &replicas[0];
        first.initialize((0..NODES).collect::<BTreeSet<u64>>()).await.context("initialize")?;
        Ok(Group { network, replicas })
    }

    /// Waits until every replica has applied the leader's first entry.
    async fn settle(&self) -> Result<()> {
        for replica in &self.replicas {
            let wait = replica.wait(Some(PATIENCE));
            let applied = wait.applied_index_at_least(Some(1), "led").await;
            applied.context("a group has no leader")?;
        }
        Ok(())
    }

    async fn close(self) -> Result<()> {
        for replica in &self.replicas {
            replica.shutdown().await.map_err(|error| anyhow!("cannot close a replica: {error}"))?;
        }
        // Replicas hold the network, which holds them.
        self.network.clear();
        Ok(())
    }
}

impl Openraft {
    /// Opens the groups and waits until each has a leader.
    pub fn open(setup: Setup, groups: usize) -> Result<Openraft> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(setup.threads).thread_name("openraft").enable_all();
        let runtime = builder.build().context("cannot start openraft's threads")?;
        let config = Config {
            election_timeout_min: 200,
            election_timeout_max: 2000,
            purge_batch_size: 1024,
            max_payload_entries: 1024,
            ..Config::default()
        };
        let config = Arc::new(config.validate().context("openraft's settings")?);
        let groups = runtime.block_on(async {
            let mut opened = Vec::with_capacity(groups);
            for _ in 0..groups {
                opened.push(Group::open(Arc::clone(&config), setup.append).await?);
            }
            for group in &opened {
                group.settle().await?;
            }
            anyhow::Ok(opened)
        })?;
        Ok(Openraft { hands: setup.hands, runtime, groups })
    }

    fn writers(&self, work: Work) -> Vec<Writer> {
        let writer = |client: usize| {
            let group = &self.groups[client % self.groups.len()];
            Writer { replicas: group.replicas.clone(), leader: 0, batch: work.batch }
        };
        (0..work.clients).map(writer).collect()
    }
}

/// One client.
struct Writer {
    replicas: Vec<Replica>,
    leader: usize,
    batch: usize,
}

impl Writer {
    async fn put(&self) -> Result<()> {
        let replica = &self.replicas[self.leader];
        if self.batch == 1 {
            replica.client_write(Put).await?;
            return Ok(());
        }
        let mut answers = replica.client_write_many(vec![Put; self.batch]).await?;
        while let Some(answer) = answers.try_next().await? {
            answer?;
        }
        Ok(())
    }
}

impl Client for Writer {
    async fn write(&mut self) -> Result<()> {
        let written = self.put().await;
        if written.is_err() {
            self.leader = (self.leader + 1) % self.replicas.len();
        }
        written
    }
}

/// All clients of a run, for the thread that hands their requests over.
struct Desk {
    writers: Vec<Writer>,
    runtime: Runtime,
}

impl Counter for Desk {
    fn submit(&mut self, clients: &[u32], back: &Arc<Returns>) -> Result<()> {
        let Desk { writers, runtime } = self;
        runtime.block_on(async {
            for client in clients {
                let writer = &writers[*client as usize];
                let leader = &writer.replicas[writer.leader];
                if writer.batch == 1 {
                    leader.client_write_ff(Put, Some(Told::one(*client, back))).await?;
                    continue;
                }
                for told in Told::each(*client, back, writer.batch) {
                    leader.client_write_ff(Put, Some(told)).await?;
                }
            }
            Ok(())
        })
    }
}

impl Peer for Openraft {
    fn run(&mut self, work: Work, span: Span) -> Result<Figures> {
        let writers = self.writers(work);
        match self.hands {
            Hands::Tasks => clients::run(writers, work.batch, span),
            Hands::Callbacks => {
                let desk = Desk { writers, runtime: clients::runtime()? };
                callbacks::run(desk, work.clients, work.batch, span)
            }
        }
    }

    fn close(self: Box<Self>) -> Result<()> {
        let Openraft { runtime, groups, .. } = *self;
        runtime.block_on(async {
            for group in groups {
                group.close().await?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::measure;
    use super::*;

    #[test]
    fn a_request_is_answered_once_by_the_last_of_its_writes() {
        let back = Arc::<Returns>::default();
        let mut told: Vec<Told> = Told::each(7, &back, 3).collect();
        told.pop().unwrap().answered(Fate::Written);
        told.pop().unwrap().answered(Fate::Failed);
        assert!(back.answers().is_empty());
        told.pop().unwrap().answered(Fate::Written);
        assert_eq!(back.answers(), [(7, Fate::Failed)]);
        Told::one(8, &back).answered(Fate::Written);
        assert_eq!(back.answers(), [(8, Fate::Written)]);
    }

    #[test]
    fn openraft_runs_a_small_row_in_every_setup() {
        let span = Span { warmup: Duration::ZERO, took: Duration::from_millis(50) };
        for which in Which::all().into_iter().filter(|which| !which.is_ours()) {
            for batch in [1, 3] {
                let figures = measure(which, Work { groups: 2, clients: 5, batch }, span).unwrap();
                assert!(figures.puts_per_s > 0.0, "{figures:?}");
            }
        }
    }
}
