//! A node whose state store is behind: writes wait before their loop, and enter when it has caught up. And one that closes
//! while its state store compacts.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use bytes::Bytes;
use catamaran::kv::memory::MemoryStore;
use catamaran::kv::{Cut, Flush, StateStore, Stats, View, WriteBatch};
use catamaran::types::{KeyRange, RegionState, StoreIdent};
use catamaran::{Error, Node, NodeConfig, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A store that says it owes as much as it is told to.
struct Behind {
    inner: MemoryStore,
    bytes: Arc<AtomicU64>,
    /// Whether it compacts until it is told to end.
    compacts: AtomicBool,
    halted: AtomicBool,
}

impl StateStore for Behind {
    fn ident(&self) -> Result<Option<StoreIdent>> {
        self.inner.ident()
    }

    fn bootstrap(&self, ident: &StoreIdent, regions: Vec<RegionState>) -> Result<()> {
        self.inner.bootstrap(ident, regions)
    }

    fn region_states(&self) -> Vec<RegionState> {
        self.inner.region_states()
    }

    fn tombstones(&self) -> Vec<RegionState> {
        self.inner.tombstones()
    }

    fn write(&self, batch: WriteBatch) -> Result<()> {
        self.inner.write(batch)
    }

    fn view(&self) -> Result<Box<dyn View>> {
        self.inner.view()
    }

    fn freeze(&self) -> Result<Option<Box<dyn Flush>>> {
        self.inner.freeze()
    }

    fn restore(
        &self,
        ranges: &[KeyRange],
        items: &mut dyn Iterator<Item = Result<(Bytes, Bytes)>>,
        states: Vec<RegionState>,
    ) -> Result<Cut> {
        self.inner.restore(ranges, items, states)
    }

    fn maintain(&self) -> Result<bool> {
        while self.compacts.load(Relaxed) && !self.halted.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.inner.maintain()
    }

    fn set_halted(&self, halted: bool) {
        self.halted.store(halted, Relaxed);
    }

    fn should_flush(&self) -> bool {
        self.inner.should_flush()
    }

    fn memtable_bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    fn debt(&self) -> usize {
        self.inner.debt()
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn node_over(dir: &std::path::Path) -> (Node, Arc<Behind>) {
    let state = Arc::new(Behind {
        inner: MemoryStore::new().unwrap(),
        bytes: Arc::default(),
        compacts: AtomicBool::new(false),
        halted: AtomicBool::new(false),
    });
    let config = NodeConfig { data_dir: dir.join("data"), tick_ms: 10, ..NodeConfig::default() };
    let node = Node::builder(config).state_store(Arc::<Behind>::clone(&state)).open().unwrap();
    eventually("a leader", || node.status().unwrap().iter().all(|region| region.leads));
    (node, state)
}

fn node(dir: &std::path::Path) -> (Node, Arc<AtomicU64>) {
    let (node, state) = node_over(dir);
    (node, Arc::clone(&state.bytes))
}

/// More than all memtables may take: nothing is let in from the next look on.
const FULL: u64 = u64::MAX / 2;

/// Until a write that nobody waits long for was held: when its time is over it is refused. (That it fails would not do: on a
/// slow machine it may, whatever holds it up.)
fn shut(node: &Node, bytes: &AtomicU64) {
    bytes.store(FULL, Relaxed);
    let refused = || node.stats().driver.refused_proposals;
    let before = refused();
    let hasty = node.client().with_timeout(Duration::from_millis(50)).blocking();
    eventually("the gate to shut", || {
        let _ = hasty.put(b"hasty", b"v");
        refused() > before
    });
    eventually("the hasty ones to go", || node.stats().driver.held_bytes == 0);
}

#[test]
fn writes_wait_until_the_state_store_has_caught_up() {
    let dir = tempfile::tempdir().unwrap();
    let (node, bytes) = node(dir.path());
    shut(&node, &bytes);
    let client = node.client().with_timeout(Duration::from_secs(60)).blocking();
    let write = |n: u8| {
        let client = client.clone();
        std::thread::spawn(move || client.put([b'k', n], [n]))
    };
    let writers: Vec<_> = (0..8).map(write).collect();
    eventually("all to be held", || node.stats().driver.held_bytes >= 8 * 64);
    assert!(writers.iter().all(|writer| !writer.is_finished()));
    bytes.store(0, Relaxed);
    for writer in writers {
        writer.join().unwrap().unwrap();
    }
    assert_eq!(node.stats().driver.held_bytes, 0);
    for n in 0..8 {
        let found = client.get(vec![b'k', n]).unwrap();
        assert_eq!(found.as_deref(), Some(&[n][..]));
    }
    node.shutdown().unwrap();
}

/// A node that is closed sends those home who wait before its loops.
#[test]
fn nobody_waits_at_the_gate_of_a_closed_node() {
    let dir = tempfile::tempdir().unwrap();
    let (node, bytes) = node(dir.path());
    shut(&node, &bytes);
    let client = node.client().with_timeout(Duration::from_secs(600)).blocking();
    let writer = std::thread::spawn(move || client.put(b"key", b"value"));
    eventually("it to be held", || node.stats().driver.held_bytes > 0);
    node.shutdown().unwrap();
    assert!(matches!(writer.join().unwrap(), Err(Error::Stopped { .. })));
}

/// Compactions take as long as they take: one that is under way is told, and closing waits for no other end of it.
#[test]
fn a_node_that_closes_ends_a_compaction_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let (node, state) = node_over(dir.path());
    state.compacts.store(true, Relaxed);
    node.shutdown().unwrap();
    assert!(state.halted.load(Relaxed));
}
