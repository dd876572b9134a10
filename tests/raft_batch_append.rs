//! raft-rs 0.7 with `batch_append`: an unsent empty append is joined with entries that do not follow its index.
//!
//! The story (seed 1 of the simulator's first day): a leader tells a follower its commit index by an append
//! without entries at index 220. Before the message leaves, the follower is reported unreachable, and its next
//! index goes back to what it is known to match; the next append starts at entry 220. raft-rs puts those
//! entries into the waiting message without looking at its index. The follower would check index 220, find its
//! own entry there, append one entry after it, and acknowledge 221, which it does not have.
//!
//! `Group::ready` rebuilds the message that was meant. The guard of the receiver refuses the wrong one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use bytes::Bytes;
use catamaran::raft::guard::Verdict;
use catamaran::raft::{Elections, Group, GroupConfig};
use catamaran::types::PeerId;
use raft::eraftpb::{ConfState, Entry, Message, MessageType};
use raft::storage::MemStorage;

fn message(kind: MessageType, term: u64, change: impl FnOnce(&mut Message)) -> Message {
    let mut m = Message { from: 2, to: 1, term, ..Default::default() };
    m.set_msg_type(kind);
    change(&mut m);
    m
}

/// Ends a round as a store with an instant disk would; returns what is sent.
fn round(group: &mut Group<MemStorage>) -> Vec<Message> {
    let mut sent = Vec::new();
    while let Some(ready) = group.ready() {
        group.storage_mut().wl().append(&ready.entries).unwrap();
        if let Some(hard_state) = ready.hard_state {
            group.storage_mut().wl().set_hardstate(hard_state);
        }
        let number = ready.rest.number();
        sent.extend(ready.send_now);
        sent.extend(ready.send_after_persist);
        group.advance(ready.rest);
        group.persisted(number);
    }
    sent
}

/// Peer 1 of three, which leads, and its term.
fn leader(config: &GroupConfig) -> (Group<MemStorage>, u64) {
    let voters = ConfState { voters: vec![1, 2, 3], ..Default::default() };
    let storage = MemStorage::new_with_conf_state(voters);
    let mut group = Group::new(PeerId(1), config, 0, storage).unwrap();
    group.campaign();
    round(&mut group);
    let term = group.status().term + 1;
    for kind in [MessageType::MsgRequestPreVoteResponse, MessageType::MsgRequestVoteResponse] {
        assert_eq!(group.step(message(kind, term, |_| {})), Verdict::Step);
        round(&mut group);
    }
    assert!(group.leads());
    (group, term)
}

/// A leader in the middle of the story: what raft-rs joined has not left.
fn with_a_wrong_append_on_its_way() -> (Group<MemStorage>, u64) {
    let (mut group, term) =
        leader(&GroupConfig { inflight_messages_max: 64, ..Default::default() });
    let acknowledge = |group: &mut Group<MemStorage>, index: u64| {
        let ack = message(MessageType::MsgAppendResponse, term, |m| m.index = index);
        assert_eq!(group.step(ack), Verdict::Step);
    };
    acknowledge(&mut group, 1);
    round(&mut group);
    for data in ["a", "b", "c"] {
        group.propose(Bytes::from(data)).unwrap();
    }
    round(&mut group);
    // The follower has 2 of 4 entries; its answer commits entry 2, which the leader wants to tell...
    acknowledge(&mut group, 2);
    group.tell_commit();
    // ... but before it leaves, the follower is said to be unreachable and answers a probe anew.
    group.unreachable(PeerId(2));
    acknowledge(&mut group, 3);
    group.propose(Bytes::from("d")).unwrap();
    (group, term)
}

fn appends(sent: &[Message]) -> Vec<&Message> {
    let with_entries =
        |m: &&Message| m.get_msg_type() == MessageType::MsgAppend && !m.entries.is_empty();
    sent.iter().filter(with_entries).collect()
}

#[test]
fn appends_always_follow_their_index() {
    let (mut group, _) = with_a_wrong_append_on_its_way();
    let sent = round(&mut group);
    assert!(!appends(&sent).is_empty());
    for append in appends(&sent) {
        assert_eq!(append.entries[0].index, append.index + 1, "{append:?}");
    }
}

/// Seed 11385 of the simulator's regions: the leader heard of a newer term before the message left. What a follower has to
/// say waits for the disk, its last words as a leader too; they went out as raft-rs had joined them, and a sound
/// follower was fenced for it.
#[test]
fn nor_do_those_of_a_leader_that_steps_down_in_the_same_round() {
    let (mut group, term) = with_a_wrong_append_on_its_way();
    let newer = message(MessageType::MsgHeartbeat, term + 1, |_| {});
    assert_eq!(group.step(newer), Verdict::Step);
    assert!(!group.leads());
    for append in appends(&round(&mut group)) {
        assert_eq!(append.entries[0].index, append.index + 1, "{append:?}");
    }
}

/// A second trait of the same joining: it knows no bound. A follower 40 entries behind was sent all of them
/// in one message, as many as its window holds; where entries are large the transport dropped it, and the
/// follower caught up by one entry a probe.
#[test]
fn what_a_follower_lacks_is_sent_in_messages_of_bounded_size() {
    let config = GroupConfig { append_bytes_max: 1000, ..Default::default() };
    let (mut group, term) = leader(&config);
    // More than a message holds, one of them alone.
    let sizes = (0..40).map(|i| if i == 20 { 5_000 } else { 300 });
    for size in sizes {
        group.propose(Bytes::from(vec![7; size])).unwrap();
    }
    round(&mut group);
    let ack = message(MessageType::MsgAppendResponse, term, |m| m.index = 1);
    assert_eq!(group.step(ack), Verdict::Step);
    let mut sent = round(&mut group);
    sent.retain(|m| m.get_msg_type() == MessageType::MsgAppend && m.to == 2);
    let mut next = 2;
    for append in sent.iter().filter(|m| !m.entries.is_empty()) {
        let bytes: usize = append.entries.iter().map(|entry| entry.data.len()).sum();
        assert!(bytes <= 1000 || append.entries.len() == 1, "{bytes} bytes");
        assert_eq!((append.index, append.log_term), (next - 1, term));
        for entry in &append.entries {
            assert_eq!(entry.index, next);
            next += 1;
        }
    }
    assert_eq!(next, 42, "everything was sent");
}

/// A commit alone sends nobody anything: see `raft::telling`.
#[test]
fn a_commit_is_told_once_when_the_group_is_quiet_or_a_follower_asks() {
    let (mut group, term) = leader(&GroupConfig::default());
    let acknowledge = |group: &mut Group<MemStorage>, from: u64, index: u64| {
        let ack = message(MessageType::MsgAppendResponse, term, |m| {
            (m.from, m.index) = (from, index);
        });
        assert_eq!(group.step(ack), Verdict::Step);
        round(group)
    };
    let tick = |group: &mut Group<MemStorage>| {
        group.tick(Elections::Free);
        group.tell_commit_if_quiet();
        let mut sent = round(group);
        sent.retain(|m| m.get_msg_type() == MessageType::MsgAppend);
        sent.iter().map(|m| (m.to, m.commit)).collect::<Vec<_>>()
    };
    for from in [2, 3] {
        acknowledge(&mut group, from, 1);
    }
    assert_eq!(tick(&mut group), [(2, 1), (3, 1)]);
    group.propose(Bytes::from("a")).unwrap();
    round(&mut group);
    assert_eq!(acknowledge(&mut group, 2, 2), []);
    assert_eq!(group.status().committed, 2);
    assert_eq!(tick(&mut group), [(2, 2), (3, 2)]);
    assert_eq!(tick(&mut group), []);
    // The next append says it, too; what is under way is not interrupted.
    group.propose(Bytes::from("b")).unwrap();
    acknowledge(&mut group, 2, 3);
    group.propose(Bytes::from("c")).unwrap();
    assert!(round(&mut group).iter().all(|m| (m.commit, m.entries.len()) == (3, 1)));
    assert_eq!(tick(&mut group), []);
    // A follower that reads waits for what is committed.
    let ask = message(MessageType::MsgReadIndex, 0, |m| m.mut_entries().push(Entry::default()));
    assert_eq!(group.step(ask), Verdict::Step);
    let mut sent = round(&mut group);
    sent.retain(|m| m.get_msg_type() == MessageType::MsgAppend);
    assert_eq!(sent.iter().map(|m| (m.to, m.commit)).collect::<Vec<_>>(), [(2, 3), (3, 3)]);
}
