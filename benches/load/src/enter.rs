//! Clients of real nodes as a [`Target`], and as a [`Source`] for reading back.

use crate::target::{Answer, ReadyQueue, Request, Target, Work};
use crate::verify::Source;
use anyhow::{Context, Result};
use catamaran::client::{Batch, Client, Swap, wait};
use catamaran::kv::Direction;
use catamaran::store::ReadLevel;
use catamaran::types::KeyRange;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::runtime::Runtime;

/// Items of a page when reading back.
const PAGE_ITEMS: usize = 16_384;

/// Requests enter at the node that leads the region, as a client that knows its way would send them;
/// where that is not known, or a batch spans regions, at each node in turn.
pub struct Entry {
    clients: Vec<Client>,
    /// By slice; a number beyond the clients: unknown.
    leaders: Vec<AtomicUsize>,
    turn: AtomicUsize,
    reads: Option<Runtime>,
}

/// Whether a run will read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reads {
    /// It will.
    Some,
    /// It only writes.
    None,
}

impl Entry {
    /// Enters by these clients, one for each node.
    pub fn new(clients: Vec<Client>, slices: u64, reads: Reads) -> Result<Entry> {
        let reads = match reads {
            Reads::None => None,
            Reads::Some => Some(
                tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(1)
                    .thread_name("load-reads")
                    .build()
                    .context("cannot start the threads for reads")?,
            ),
        };
        let leaders = (0..slices).map(|_| AtomicUsize::new(usize::MAX)).collect();
        Ok(Entry { clients, leaders, turn: AtomicUsize::new(0), reads })
    }

    /// Tells where the regions are led.
    pub fn set_leaders(&self, leaders: &[Option<usize>]) {
        for (known, leader) in self.leaders.iter().zip(leaders) {
            known.store(leader.unwrap_or(usize::MAX), Ordering::Relaxed);
        }
    }

    fn node(&self, slice: Option<u32>) -> usize {
        let led = slice.and_then(|slice| self.leaders.get(slice as usize));
        match led.map(|leader| leader.load(Ordering::Relaxed)) {
            Some(node) if node < self.clients.len() => node,
            _ => self.turn.fetch_add(1, Ordering::Relaxed) % self.clients.len(),
        }
    }

    fn read(&self, node: usize, client: u32, keys: Vec<bytes::Bytes>, ready: &Arc<ReadyQueue>) {
        let (way_in, ready) = (self.clients[node].clone(), Arc::clone(ready));
        let read = async move {
            let answer = match way_in.multi_get(keys, ReadLevel::Linearizable).await {
                Ok(values) => Answer::Values(values),
                Err(error) => Answer::Failed((&error).into()),
            };
            ready.push(client, answer);
        };
        match &self.reads {
            Some(runtime) => drop(runtime.spawn(read)),
            None => wait(read),
        }
    }
}

fn answer(
    client: u32,
    ready: Arc<ReadyQueue>,
) -> impl FnOnce(catamaran::Result<Vec<Swap>>) + Send + 'static {
    move |result| {
        let answer = match result {
            Ok(_) => Answer::Written,
            Err(error) => Answer::Failed((&error).into()),
        };
        ready.push(client, answer);
    }
}

impl Target for Entry {
    fn submit(&self, requests: &mut Vec<Request>, ready: &Arc<ReadyQueue>) {
        let mut writes: Vec<Vec<(Batch, _)>> = self.clients.iter().map(|_| Vec::new()).collect();
        for Request { client, slice, work } in requests.drain(..) {
            let node = self.node(slice);
            match work {
                Work::Write(batch) => {
                    writes[node].push((batch, answer(client, Arc::clone(ready))));
                }
                Work::Read(keys) => self.read(node, client, keys, ready),
            }
        }
        for (client, writes) in self.clients.iter().zip(writes) {
            if !writes.is_empty() {
                client.submit_many(writes);
            }
        }
    }
}

impl Source for Entry {
    fn scan(&self, start: &[u8], end: &[u8], each: &mut dyn FnMut(&[u8], &[u8])) -> Result<()> {
        let range = KeyRange::new(start.to_vec(), end.to_vec());
        let client = &self.clients[self.node(None)];
        let mut pages =
            client.scan(range, Direction::Forward, ReadLevel::Linearizable).page_size(PAGE_ITEMS);
        while let Some(page) = wait(pages.next_page()).context("cannot read back")? {
            for (key, value) in &page {
                each(key, value);
            }
        }
        Ok(())
    }
}
