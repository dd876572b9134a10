//! etcd's members, driven by clients that batch as much as etcd lets them: transactions of up to 128 puts, sent to the
//! leader over several connections. The members must run; `etcd.sh` starts three.
//!
//! The few messages that are needed are written out here by their field numbers: etcd's published client wants a
//! protobuf compiler to be built.

use crate::consensus::clients::{self, Client};
use crate::consensus::{Figures, Span};
use crate::report::{Durable, DurableRow};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// How long members may take until they have a leader.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(200);

/// A transaction without conditions.
#[derive(Clone, PartialEq, prost::Message)]
struct Txn {
    #[prost(message, repeated, tag = "2")]
    success: Vec<Op>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Op {
    #[prost(message, optional, tag = "2")]
    put: Option<Put>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Put {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// What is read of a transaction's answer; the rest is skipped.
#[derive(Clone, PartialEq, prost::Message)]
struct Txned {
    #[prost(bool, tag = "2")]
    succeeded: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AskStatus {}

#[derive(Clone, PartialEq, prost::Message)]
struct Head {
    #[prost(uint64, tag = "2")]
    member: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(message, optional, tag = "1")]
    head: Option<Head>,
    #[prost(string, tag = "2")]
    version: String,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

/// Options of `etcd`.
#[derive(Args, Debug)]
pub struct Drive {
    /// Client addresses of the members, comma-separated: http://HOST:PORT.
    #[arg(long, value_delimiter = ',', required = true)]
    connect: Vec<String>,
    /// Clients, each with one transaction outstanding.
    #[arg(long, default_value_t = 256)]
    clients: usize,
    /// Puts in a transaction: etcd takes 128 unless its --max-txn-ops says otherwise.
    #[arg(long, default_value_t = 128)]
    batch: usize,
    /// Bytes of a value.
    #[arg(long, default_value_t = 64)]
    value: usize,
    /// Distinct keys, all clients together.
    #[arg(long, default_value_t = 10_000_000)]
    keys: u64,
    /// Connections that the clients share.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Seconds of driving before each.
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// How often to measure.
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
    /// Write the result as JSON to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

async fn call<M, R>(channel: &mut Grpc<Channel>, path: &'static str, message: M) -> Result<R>
where
    M: prost::Message + Send + Sync + 'static,
    R: prost::Message + Default + Send + Sync + 'static,
{
    channel.ready().await.context("the connection is not ready")?;
    let path = PathAndQuery::from_static(path);
    let codec = ProstCodec::<M, R>::default();
    Ok(channel.unary(tonic::Request::new(message), path, codec).await?.into_inner())
}

/// One client.
struct Writer {
    channel: Grpc<Channel>,
    id: u64,
    next: u64,
    /// Keys of its own, gone through in turn, so that no transaction has one twice.
    keys: u64,
    batch: usize,
    value: usize,
}

/// A bijective mixer (the finaliser of splitmix64).
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Writer {
    fn put(&mut self) -> Put {
        let slot = self.id << 40 | (self.next % self.keys);
        self.next += 1;
        let mut key = Vec::with_capacity(16);
        key.extend_from_slice(&mix(slot).to_be_bytes());
        key.extend_from_slice(&slot.to_be_bytes());
        let mut word = self.next;
        let mut value = Vec::with_capacity(self.value + 8);
        while value.len() < self.value {
            word = mix(word);
            value.extend_from_slice(&word.to_le_bytes());
        }
        value.truncate(self.value);
        Put { key, value }
    }
}

impl Client for Writer {
    async fn write(&mut self) -> Result<()> {
        let success = (0..self.batch).map(|_| Op { put: Some(self.put()) }).collect();
        let done: Txned = call(&mut self.channel, "/etcdserverpb.KV/Txn", Txn { success }).await?;
        if !done.succeeded {
            bail!("a transaction without conditions did not succeed");
        }
        Ok(())
    }
}

impl Drive {
    /// The address of the leader, and etcd's version.
    async fn leader(&self) -> Result<(String, String)> {
        let until = Instant::now() + PATIENCE;
        loop {
            for address in &self.connect {
                let Ok(channel) = Endpoint::from_shared(address.clone())?.connect().await else {
                    continue;
                };
                let asked = "/etcdserverpb.Maintenance/Status";
                let status: Result<Status> =
                    call(&mut Grpc::new(channel), asked, AskStatus {}).await;
                let Ok(status) = status else { continue };
                let member = status.head.as_ref().map_or(0, |head| head.member);
                if member != 0 && status.leader == member {
                    return Ok((address.clone(), status.version));
                }
            }
            if Instant::now() > until {
                bail!("no leader at {:?} after {PATIENCE:?}", self.connect);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn writers(&self, leader: &str, repetition: usize) -> Result<Vec<Writer>> {
        let mut channels = Vec::new();
        for _ in 0..self.connections.max(1) {
            let endpoint = Endpoint::from_shared(leader.to_owned())?.tcp_nodelay(true);
            channels.push(endpoint.connect().await.context("cannot connect")?);
        }
        let keys = (self.keys / self.clients.max(1) as u64).max(self.batch as u64);
        let writer = |id: usize| Writer {
            channel: Grpc::new(channels[id % channels.len()].clone()),
            id: id as u64,
            next: repetition as u64 * keys / self.repetitions.max(1) as u64,
            keys,
            batch: self.batch,
            value: self.value,
        };
        Ok((0..self.clients).map(writer).collect())
    }

    /// Measures and prints.
    pub fn run(&self) -> Result<()> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).thread_name("clients").enable_all();
        let runtime = builder.build().context("cannot start a thread for clients")?;
        let (leader, version) = runtime.block_on(self.leader())?;
        let mut row = DurableRow {
            system: format!("etcd {version}, {} members", self.connect.len()),
            clients: self.clients as u64,
            batch: self.batch as u64,
            value: self.value as u64,
            runs: Vec::new(),
        };
        let span = Span {
            warmup: Duration::from_secs_f64(self.warmup),
            took: Duration::from_secs_f64(self.seconds),
        };
        for repetition in 0..self.repetitions {
            let writers = runtime.block_on(self.writers(&leader, repetition))?;
            let figures: Figures = clients::run_on(&runtime, writers, self.batch, span)?;
            let Figures { puts_per_s, p50_us, p99_us, failed, .. } = figures;
            eprintln!(
                "{repetition} etcd {version}: {:.1} k puts/s, p50 {p50_us:.0} us, p99 {p99_us:.0} us, {failed} failed",
                puts_per_s / 1e3
            );
            row.runs.push(Durable { puts_per_s, p50_us, p99_us });
        }
        let text = serde_json::to_string_pretty(&row)? + "\n";
        match &self.json {
            Some(file) => std::fs::write(file, text).with_context(|| file.display().to_string()),
            None => {
                print!("{text}");
                Ok(())
            }
        }
    }
}
