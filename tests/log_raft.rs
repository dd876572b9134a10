//! raft-rs on the log alone: groups of three that lose messages, restart, compact, catch up by snapshot and
//! change their members.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use catamaran::Error;
use catamaran::env::mem::MemDisk;
use catamaran::log::raft_rs::RaftStorage;
use catamaran::log::raft_rs::raft::eraftpb::{
    ConfChange, ConfChangeType, ConfState, Entry, EntryType, Message, Snapshot,
};
use catamaran::log::raft_rs::raft::{Config, GetEntriesContext, RawNode, StateRole, Storage};
use catamaran::log::{Log, LogBatch, Options};
use protobuf::Message as _;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

const GROUPS: [u64; 3] = [1, 20, 300];

/// What a group's state machine holds: the commands, and up to where it has applied.
#[derive(Clone, Default, PartialEq, Debug)]
struct Machine {
    applied: u64,
    term: u64,
    commands: Vec<Vec<u8>>,
    conf: ConfState,
}

impl Machine {
    fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        let mut data = Vec::new();
        for command in &self.commands {
            data.extend_from_slice(&(command.len() as u32).to_le_bytes());
            data.extend_from_slice(command);
        }
        snapshot.data = data.into();
        let meta = snapshot.mut_metadata();
        meta.index = self.applied;
        meta.term = self.term;
        meta.set_conf_state(self.conf.clone());
        snapshot
    }

    fn restore(&mut self, snapshot: &Snapshot) {
        let meta = snapshot.get_metadata();
        self.applied = meta.index;
        self.term = meta.term;
        self.conf = meta.get_conf_state().clone();
        self.commands.clear();
        let mut data = &snapshot.data[..];
        while let Some((len, rest)) = data.split_first_chunk::<4>() {
            let (command, rest) = rest.split_at(u32::from_le_bytes(*len) as usize);
            self.commands.push(command.to_vec());
            data = rest;
        }
    }
}

/// One process: a log, and a peer of each group. The machines outlive it, as durable ones would.
struct Process {
    id: u64,
    disk: MemDisk,
    log: Option<Log>,
    peers: BTreeMap<u64, RawNode<RaftStorage>>,
    machines: BTreeMap<u64, Arc<Mutex<Machine>>>,
}

impl Process {
    fn new(id: u64, voters: &[u64]) -> Process {
        let machines = GROUPS.map(|group| (group, Arc::default())).into_iter().collect();
        let disk = MemDisk::default();
        let mut process = Process { id, disk, log: None, peers: BTreeMap::new(), machines };
        process.start(voters);
        process
    }

    fn start(&mut self, voters: &[u64]) {
        self.peers.clear();
        self.log = None;
        let options = Options { segment_bytes: 64 << 10, cache_bytes: 2000, ..Options::default() };
        let disk = Arc::new(self.disk.clone());
        let log = Log::open(disk, Path::new("/log"), options).unwrap().0;
        for (group, machine) in &self.machines {
            let source = Arc::clone(machine);
            let storage = RaftStorage::open(log.clone(), *group).unwrap().with_snapshots(
                move |request: u64, _to: u64| {
                    let machine = source.lock().unwrap();
                    (machine.applied >= request).then(|| machine.snapshot())
                },
            );
            if !storage.is_initialized() && !voters.is_empty() {
                let mut batch = LogBatch::new();
                storage.put_bootstrap(&mut batch, voters.iter().copied()).unwrap();
                log.write(batch).unwrap();
                let mut machine = machine.lock().unwrap();
                (machine.applied, machine.term) = (1, 1);
                machine.conf = storage.initial_state().unwrap().conf_state;
            }
            let config = Config {
                id: self.id,
                applied: machine.lock().unwrap().applied,
                max_size_per_msg: 1 << 20,
                max_inflight_msgs: 64,
                check_quorum: true,
                pre_vote: true,
                ..Config::default()
            };
            let logger = slog::Logger::root(slog::Discard, slog::o!());
            let node = RawNode::new(&config, storage, &logger).unwrap();
            self.peers.insert(*group, node);
        }
        self.log = Some(log);
    }

    /// One round over all groups: one batch, one sync. Returns what is to be sent.
    fn round(&mut self) -> Vec<(u64, Message)> {
        let log = self.log.clone().unwrap();
        let mut out = Vec::new();
        let mut batch = LogBatch::new();
        let mut readies = Vec::new();
        for (group, node) in &mut self.peers {
            if !node.has_ready() {
                continue;
            }
            let mut ready = node.ready();
            assert!(node.store().take_fault().is_none());
            out.extend(ready.take_messages().into_iter().map(|m| (*group, m)));
            if !ready.snapshot().is_empty() {
                self.machines[group].lock().unwrap().restore(ready.snapshot());
            }
            node.store().put_ready(&mut batch, &ready);
            readies.push((*group, ready));
        }
        let seq = log.submit(batch).unwrap();
        log.wait(seq).unwrap();
        for (group, mut ready) in readies {
            let node = self.peers.get_mut(&group).unwrap();
            out.extend(ready.take_persisted_messages().into_iter().map(|m| (group, m)));
            let mut committed = ready.take_committed_entries();
            let mut light = node.advance(ready);
            let mut batch = LogBatch::new();
            if let Some(commit) = light.commit_index() {
                node.store().put_commit(&mut batch, commit);
            }
            out.extend(light.take_messages().into_iter().map(|m| (group, m)));
            committed.extend(light.take_committed_entries());
            for entry in committed {
                Self::apply(node, &self.machines[&group], &mut batch, entry);
            }
            node.advance_apply();
            log.submit(batch).unwrap();
        }
        out
    }

    fn apply(
        node: &mut RawNode<RaftStorage>,
        machine: &Mutex<Machine>,
        batch: &mut LogBatch,
        entry: Entry,
    ) {
        let mut machine = machine.lock().unwrap();
        assert_eq!(entry.index, machine.applied + 1);
        (machine.applied, machine.term) = (entry.index, entry.term);
        match entry.get_entry_type() {
            EntryType::EntryNormal if entry.data.is_empty() => {}
            EntryType::EntryNormal => {
                let mut command = entry.context.to_vec();
                command.extend_from_slice(&entry.data);
                machine.commands.push(command);
            }
            _ if entry.index <= node.store().conf_index() => {}
            _ => {
                let change = ConfChange::parse_from_bytes(&entry.data).unwrap();
                let conf = node.apply_conf_change(&change).unwrap();
                node.store().put_conf_state(batch, entry.index, &conf);
                machine.conf = node.store().initial_state().unwrap().conf_state;
            }
        }
    }

    fn compact(&self, group: u64, keep: u64) {
        let applied = self.machines[&group].lock().unwrap().applied;
        let mut batch = LogBatch::new();
        let storage = self.peers[&group].store();
        storage.put_compact(&mut batch, applied.saturating_sub(keep)).unwrap();
        storage.trim_cache(applied);
        self.log.as_ref().unwrap().write(batch).unwrap();
        self.log.as_ref().unwrap().purge().unwrap();
    }
}

struct World {
    processes: BTreeMap<u64, Process>,
    /// Messages to and from this one are lost.
    cut: Option<u64>,
}

impl World {
    fn new() -> World {
        let processes = (1..=3).map(|id| (id, Process::new(id, &[1, 2, 3]))).collect();
        World { processes, cut: None }
    }

    fn run(&mut self) {
        loop {
            let mut sent = Vec::new();
            for process in self.processes.values_mut() {
                let from = process.id;
                sent.extend(process.round().into_iter().map(|(g, m)| (from, g, m)));
            }
            if sent.is_empty() {
                return;
            }
            for (from, group, message) in sent {
                let lost = self.cut.is_some_and(|cut| cut == from || cut == message.to);
                let snapshot = !message.get_snapshot().is_empty();
                let to = message.to;
                if let Some(process) = self.processes.get_mut(&to).filter(|_| !lost) {
                    process.peers.get_mut(&group).unwrap().step(message).unwrap();
                }
                if snapshot && let Some(leader) = self.processes.get_mut(&from) {
                    let status = catamaran::log::raft_rs::raft::SnapshotStatus::Finish;
                    leader.peers.get_mut(&group).unwrap().report_snapshot(to, status);
                }
            }
        }
    }

    fn tick(&mut self, times: u32) {
        for _ in 0..times {
            for process in self.processes.values_mut() {
                for node in process.peers.values_mut() {
                    node.tick();
                }
            }
            self.run();
        }
    }

    fn leader(&mut self, group: u64) -> u64 {
        for _ in 0..1000 {
            let leads = |p: &Process| p.peers[&group].raft.state == StateRole::Leader;
            let found = self.processes.values().find(|p| Some(p.id) != self.cut && leads(p));
            if let Some(process) = found {
                return process.id;
            }
            self.tick(1);
        }
        panic!("group {group} elects nobody");
    }

    fn propose(&mut self, group: u64, context: &str, data: &str) {
        let leader = self.leader(group);
        let node = self.processes.get_mut(&leader).unwrap().peers.get_mut(&group).unwrap();
        node.propose(context.into(), data.into()).unwrap();
        self.run();
    }

    fn agree(&mut self, group: u64, commands: usize) {
        self.leader(group);
        self.tick(30);
        let machines: Vec<Machine> =
            self.processes.values().map(|p| p.machines[&group].lock().unwrap().clone()).collect();
        assert_eq!(machines[0].commands.len(), commands, "group {group}");
        assert!(machines.windows(2).all(|two| two[0] == two[1]), "{machines:#?}");
    }
}

#[test]
fn three_processes_restart_one_by_one_and_all_at_once() {
    let mut world = World::new();
    for n in 0..40 {
        for group in GROUPS {
            let context = if n % 3 == 0 { format!("context {n} ") } else { String::new() };
            world.propose(group, &context, &format!("command {n} of {group}"));
        }
        if n % 10 == 9 {
            let id = 1 + n / 10 % 3;
            world.processes.get_mut(&id).unwrap().start(&[]);
        }
        if n % 7 == 6 {
            for process in world.processes.values() {
                GROUPS.iter().for_each(|group| process.compact(*group, 3));
            }
        }
    }
    for process in world.processes.values_mut() {
        process.start(&[]);
    }
    for group in GROUPS {
        world.agree(group, 40);
        let machine = world.processes[&1].machines[&group].lock().unwrap().clone();
        assert_eq!(machine.commands[0], format!("context 0 command 0 of {group}").into_bytes());
        assert_eq!(machine.commands[1], format!("command 1 of {group}").into_bytes());
    }
}

#[test]
fn who_is_far_behind_gets_a_snapshot_and_keeps_it() {
    let mut world = World::new();
    let group = GROUPS[1];
    for n in 0..5 {
        world.propose(group, "", &format!("{n}"));
    }
    let away = 1 + world.leader(group) % 3;
    world.cut = Some(away);
    for n in 5..30 {
        world.propose(group, "", &format!("{n}"));
    }
    for process in world.processes.values().filter(|p| p.id != away) {
        process.compact(group, 0);
    }
    world.cut = None;
    world.agree(group, 30);
    let behind = &world.processes[&away].peers[&group];
    assert!(behind.store().first_index().unwrap() > 20, "it caught up by a snapshot");
    world.processes.get_mut(&away).unwrap().start(&[]);
    world.propose(group, "", "30");
    world.agree(group, 31);
}

#[test]
fn a_fourth_joins_and_everybody_remembers() {
    let mut world = World::new();
    let group = GROUPS[0];
    world.propose(group, "", "before");
    world.processes.insert(4, Process::new(4, &[]));
    for kind in [ConfChangeType::AddLearnerNode, ConfChangeType::AddNode] {
        let mut change = ConfChange { node_id: 4, ..Default::default() };
        change.set_change_type(kind);
        let leader = world.leader(group);
        let node = world.processes.get_mut(&leader).unwrap().peers.get_mut(&group).unwrap();
        node.propose_conf_change(vec![], change).unwrap();
        world.tick(5);
    }
    world.propose(group, "", "after");
    world.agree(group, 2);
    for process in world.processes.values_mut() {
        process.start(&[]);
        let storage = process.peers[&group].store();
        let voters = storage.initial_state().unwrap().conf_state.voters;
        assert_eq!(voters, [1, 2, 3, 4], "process {}", process.id);
    }
    world.propose(group, "", "later");
    world.agree(group, 3);
}

#[test]
fn puts_share_a_batch() {
    let disk = MemDisk::default();
    let open = || Log::open(Arc::new(disk.clone()), Path::new("/log"), small()).unwrap().0;
    let log = open();
    let storage = RaftStorage::open(log.clone(), 5).unwrap();
    let mut batch = LogBatch::new();
    storage.put_bootstrap(&mut batch, [1, 2]).unwrap();
    assert!(storage.put_bootstrap(&mut batch, [1]).is_err());
    storage.put_conf_state(&mut batch, 1, &ConfState::from((vec![1, 2, 3], vec![4])));
    storage.put_commit(&mut batch, 1);
    log.write(batch).unwrap();
    let mut batch = LogBatch::new();
    assert!(matches!(storage.put_compact(&mut batch, 2), Err(Error::InvalidArgument(_))));
    storage.put_compact(&mut batch, 1).unwrap();
    assert!(batch.is_empty());
    drop((log, storage));
    let log = open();
    let storage = RaftStorage::open(log.clone(), 5).unwrap();
    let state = storage.initial_state().unwrap();
    assert_eq!((state.hard_state.commit, state.hard_state.term), (1, 1));
    assert_eq!((state.conf_state.voters, state.conf_state.learners), (vec![1, 2, 3], vec![4]));
    assert_eq!((storage.first_index().unwrap(), storage.last_index().unwrap()), (2, 1));
    assert_eq!(storage.term(1).unwrap(), 1);
    assert!(storage.term(0).is_err() && storage.term(2).is_err());
    assert!(storage.entries(1, 2, None, GetEntriesContext::empty(false)).is_err());
    assert!(storage.snapshot(0, 1).is_err());
    let mut batch = LogBatch::new();
    storage.put_destroy(&mut batch);
    log.write(batch).unwrap();
    assert!(!storage.is_initialized() && log.groups().is_empty());
    log.write({
        let mut batch = LogBatch::new();
        batch.set_state(6, "somebody else's");
        batch
    })
    .unwrap();
    assert!(matches!(RaftStorage::open(log, 6), Err(Error::Malformed { .. })));
}

fn small() -> Options {
    Options { segment_bytes: 64 << 10, ..Options::default() }
}
