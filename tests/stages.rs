//! Where writes wait, as a node tells it: every write passes every stage once, and the stages lie within the whole.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use catamaran::config::StateKind;
use catamaran::driver::{Stage, StageStats};
use catamaran::env::mem::MemDisk;
use catamaran::{Node, NodeConfig};
use std::sync::Arc;
use std::time::{Duration, Instant};

const WRITES: u64 = 50;

#[test]
fn every_write_passes_every_stage() {
    let config = NodeConfig { state: StateKind::Memory, ..NodeConfig::single("/stages") };
    let node = Node::builder(config).disk(Arc::new(MemDisk::default())).open().unwrap();
    let client = node.client().blocking();
    // Who waits for a leader is counted in the queue each time that he is sent away.
    client.put("first", "write").unwrap();
    // What is answered is recorded a moment later.
    let settled = |enough: &dyn Fn(&StageStats) -> bool| {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let stages = node.stats().stages;
            if enough(&stages) {
                return stages;
            }
            assert!(Instant::now() < until, "{stages:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let before = settled(&|stages| stages[Stage::Whole].count() > 0);
    for number in 0..WRITES {
        client.put(format!("key {number}"), "value").unwrap();
    }
    let done = |stages: &StageStats| stages.since(&before)[Stage::Whole].count() >= WRITES;
    let stages = settled(&done).since(&before);
    for (stage, times) in stages.iter() {
        assert!(times.count() > 0, "{}", stage.name());
        assert!(times.quantile(0.5) <= times.quantile(0.999), "{}", stage.name());
        assert!(times.quantile(1.0) <= times.max(), "{}", stage.name());
    }
    for stage in [Stage::Queue, Stage::Propose, Stage::Replicate, Stage::Whole] {
        assert_eq!(stages[stage].count(), WRITES, "{}", stage.name());
    }
    let parts = [Stage::Queue, Stage::Propose, Stage::Replicate].map(|part| stages[part].sum());
    let whole = stages[Stage::Whole].sum();
    assert!(parts.iter().sum::<Duration>() < whole, "{parts:?} of {whole:?}");

    // A closed node tells its last figures, and another way to them is the status.
    let status = catamaran::client::wait(node.client().status()).unwrap();
    assert!(status.stages[Stage::Whole].count() > WRITES);
    node.kill();
    assert!(node.stats().stages[Stage::Whole].count() > WRITES);
}
