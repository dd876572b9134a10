//! The log alone under raft-rs: a counter of one node that survives its restarts.
//! `cargo run --example raft_log [DIRECTORY]`, several times.

use catamaran::Result;
use catamaran::env::os::OsDisk;
use catamaran::log::raft_rs::{RaftStorage, raft};
use catamaran::log::{Log, LogBatch, Options};
use raft::eraftpb::Entry;
use raft::{Config, RawNode};
use std::path::Path;
use std::sync::Arc;

/// The group of the counter. The log would hold thousands.
const GROUP: u64 = 1;

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).unwrap_or_else(|| "raft-log-data".to_owned());
    let options = Options { segment_bytes: 1 << 20, ..Options::default() };
    let (log, recovery) = Log::open(Arc::new(OsDisk), Path::new(&dir), options)?;
    println!("{} records, {} groups", recovery.records, recovery.groups);

    let storage = RaftStorage::open(log.clone(), GROUP)?;
    if !storage.is_initialized() {
        let mut batch = LogBatch::new();
        storage.put_bootstrap(&mut batch, [1])?;
        log.write(batch)?;
    }
    // The counter lives in memory, so all of it is applied again.
    let mut counter = 0;
    let config = Config { id: 1, max_size_per_msg: 1 << 20, ..Config::default() };
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let mut node = RawNode::new(&config, storage, &logger)?;
    node.campaign()?;
    counter += settle(&mut node, &log)?;
    println!("counted so far: {counter}");
    for _ in 0..10 {
        node.propose(Vec::new(), b"one more".to_vec())?;
    }
    counter += settle(&mut node, &log)?;
    println!("counted now: {counter}");
    log.barrier()?;
    Ok(())
}

/// Rounds until raft has nothing more to do. Returns how many commands were applied.
fn settle(node: &mut RawNode<RaftStorage>, log: &Log) -> Result<usize> {
    let mut applied = 0;
    while node.has_ready() {
        let mut ready = node.ready();
        if let Some(fault) = node.store().take_fault() {
            return Err(fault);
        }
        let mut batch = LogBatch::new();
        node.store().put_ready(&mut batch, &ready);
        log.write(batch)?;
        let mut committed = ready.take_committed_entries();
        let mut light = node.advance(ready);
        committed.extend(light.take_committed_entries());
        if let Some(commit) = light.commit_index() {
            let mut batch = LogBatch::new();
            node.store().put_commit(&mut batch, commit);
            log.submit(batch)?;
        }
        applied += committed.iter().filter(|entry: &&Entry| !entry.data.is_empty()).count();
        node.advance_apply();
    }
    Ok(applied)
}
