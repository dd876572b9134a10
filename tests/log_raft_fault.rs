//! Entries that cannot be read under raft-rs: nothing is made of them, the process goes on, and the fault is told.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod log_disk;

use catamaran::Error;
use catamaran::log::raft_rs::{RaftStorage, raft, to_log};
use catamaran::log::{Log, LogBatch, Options};
use log_disk::MemDisk;
use raft::eraftpb::{Entry, Message, MessageType};
use raft::{Config, GetEntriesContext, RawNode, StateRole, Storage, StorageError};
use std::path::Path;
use std::sync::Arc;

const GROUP: u64 = 7;
const LAST: u64 = 5;

/// A group of three voters with entries 2 to 5 of term 1, committed up to `commit`; nothing is in the cache.
fn group(commit: u64) -> (MemDisk, Log, RaftStorage) {
    let disk = MemDisk::default();
    let open = || {
        let options = Options { segment_bytes: 64 << 10, ..Options::default() };
        Log::open(Arc::new(disk.clone()), Path::new("/log"), options).unwrap().0
    };
    let log = open();
    let storage = RaftStorage::open(log.clone(), GROUP).unwrap();
    let mut batch = LogBatch::new();
    storage.put_bootstrap(&mut batch, [1, 2, 3]).unwrap();
    for index in 2..=LAST {
        let data = vec![0xa0 + index as u8; 100];
        let entry = Entry { index, term: 1, data: data.into(), ..Entry::default() };
        batch.append(GROUP, [to_log(&entry)]);
    }
    storage.put_commit(&mut batch, commit);
    log.write(batch).unwrap();
    log.barrier().unwrap();
    drop((log, storage));
    let log = open();
    let storage = RaftStorage::open(log.clone(), GROUP).unwrap();
    (disk, log, storage)
}

/// From here on no entry of the group can be read.
fn damage(disk: &MemDisk) {
    let mut hit = 0;
    for file in disk.state().image.files.values_mut() {
        let file = Arc::make_mut(file);
        for at in 0..file.len().saturating_sub(100) {
            if (2..=LAST as u8).any(|n| file[at..at + 100].iter().all(|byte| *byte == 0xa0 + n)) {
                file[at + 50] ^= 1;
                hit += 1;
            }
        }
    }
    assert!(hit >= LAST - 1);
}

fn node(storage: RaftStorage, applied: u64) -> RawNode<RaftStorage> {
    let config = Config { id: 1, applied, max_size_per_msg: 1 << 20, ..Config::default() };
    RawNode::new(&config, storage, &slog::Logger::root(slog::Discard, slog::o!())).unwrap()
}

fn is_told(node: &RawNode<RaftStorage>) -> bool {
    matches!(node.store().take_fault(), Some(Error::Corruption { .. }))
}

#[test]
fn unreadable_entries_are_not_handed_out() {
    let (disk, _log, storage) = group(4);
    let mut healthy = node(storage.clone(), 1);
    assert_eq!(healthy.ready().committed_entries().len(), 3);
    drop(healthy);
    damage(&disk);
    let mut node = node(storage, 1);
    assert!(node.has_ready());
    assert!(node.ready().committed_entries().is_empty());
    assert!(is_told(&node));
}

/// One of the entries that are committed and not applied may change the configuration: to campaign with the old
/// one could make two leaders.
#[test]
fn unreadable_entries_keep_from_campaigning() {
    let (disk, _log, storage) = group(4);
    let mut healthy = node(storage.clone(), 1);
    healthy.campaign().unwrap();
    assert_eq!(healthy.raft.state, StateRole::Candidate);
    drop(healthy);
    damage(&disk);
    // As many as one, or more.
    for applied in [1, 3] {
        let mut node = node(storage.clone(), applied);
        node.campaign().unwrap();
        assert_eq!(node.raft.state, StateRole::Follower, "applied {applied}");
        assert!(node.raft.msgs.is_empty());
        assert!(is_told(&node));
    }
}

fn messages(node: &mut RawNode<RaftStorage>, log: &Log) -> Vec<Message> {
    let mut sent = Vec::new();
    while node.has_ready() {
        let mut ready = node.ready();
        sent.extend(ready.take_messages());
        sent.extend(ready.take_persisted_messages());
        let mut batch = LogBatch::new();
        node.store().put_ready(&mut batch, &ready);
        log.write(batch).unwrap();
        let mut light = node.advance(ready);
        sent.extend(light.take_messages());
        node.advance_apply();
    }
    sent
}

/// A follower that asks for entries which the leader cannot read gets nothing, not an append without them.
#[test]
fn unreadable_entries_are_not_sent() {
    let (disk, log, storage) = group(LAST);
    let mut node = node(storage, LAST);
    node.campaign().unwrap();
    messages(&mut node, &log);
    let answer = |kind: MessageType| Message {
        msg_type: kind,
        from: 2,
        to: 1,
        term: 2,
        ..Message::default()
    };
    node.step(answer(MessageType::MsgRequestVoteResponse)).unwrap();
    assert_eq!(node.raft.state, StateRole::Leader);
    messages(&mut node, &log);
    damage(&disk);
    let refusal = Message {
        reject: true,
        index: LAST,
        reject_hint: 1,
        log_term: 1,
        ..answer(MessageType::MsgAppendResponse)
    };
    node.step(refusal).unwrap();
    let sent = messages(&mut node, &log);
    assert!(sent.is_empty(), "{sent:?}");
    assert!(is_told(&node));
    assert_eq!(node.raft.state, StateRole::Leader);
    // It is asked again, for as long as the embedder leaves the node be.
    node.step(answer(MessageType::MsgHeartbeatResponse)).unwrap();
    assert!(messages(&mut node, &log).is_empty() && is_told(&node));
}

#[test]
fn who_else_asks_is_told_an_error() {
    let (disk, _log, storage) = group(4);
    damage(&disk);
    for can_async in [true, false] {
        let answer = storage.entries(2, 4, None, GetEntriesContext::empty(can_async));
        let unavailable = raft::Error::Store(StorageError::LogTemporarilyUnavailable);
        assert_eq!(answer.unwrap_err(), unavailable);
    }
    assert!(matches!(storage.take_fault(), Some(Error::Corruption { .. })));
}
