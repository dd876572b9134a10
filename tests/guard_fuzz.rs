//! Messages that parse, are wrong, and pass the guard must not stop the process: random ones, stepped into
//! a [`Group`] in every state that random lives lead to. A violation ends the life, as in a store.
//!
//! `GUARD_FUZZ_LIVES` sets the number of lives (default 3,000; a minute is about 100,000 in a release build).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use bytes::Bytes;
use catamaran::raft::guard::Verdict;
use catamaran::raft::{Group, GroupConfig};
use catamaran::types::PeerId;
use raft::eraftpb::{ConfState, Entry, HardState, Message, MessageType, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

const PEERS: [u64; 3] = [1, 2, 3];

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    fn pick(&mut self, from: &[u64]) -> u64 {
        from[self.below(from.len() as u64) as usize]
    }
}

/// A log that knows the term of the point it starts after, as the log engine does.
#[derive(Default)]
struct Disk {
    truncated: (u64, u64),
    entries: Vec<Entry>,
    snapshot_at: (u64, u64),
}

#[derive(Default)]
struct Store(RefCell<Disk>);

impl Store {
    fn append(&self, entries: &[Entry]) {
        let mut disk = self.0.borrow_mut();
        if let Some(first) = entries.first() {
            let keep = (first.index - disk.truncated.0 - 1) as usize;
            assert!(keep <= disk.entries.len(), "append leaves a gap");
            disk.entries.truncate(keep);
            disk.entries.extend_from_slice(entries);
        }
    }
    fn restore(&self, index: u64, term: u64) {
        *self.0.borrow_mut() =
            Disk { truncated: (index, term), entries: Vec::new(), snapshot_at: (index, term) };
    }
    fn compact(&self, index: u64) {
        let term = Storage::term(self, index).unwrap();
        let mut disk = self.0.borrow_mut();
        let gone = (index - disk.truncated.0) as usize;
        disk.entries.drain(..gone);
        disk.truncated = (index, term);
    }
    fn applied(&self, index: u64) {
        let term = Storage::term(self, index).unwrap_or(0);
        self.0.borrow_mut().snapshot_at = (index, term);
    }
}

impl Storage for Store {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let voters = ConfState { voters: PEERS.to_vec(), ..Default::default() };
        Ok(RaftState::new(HardState { term: 5, commit: 5, ..Default::default() }, voters))
    }
    fn entries(
        &self,
        low: u64,
        high: u64,
        _max: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let disk = self.0.borrow();
        if low <= disk.truncated.0 {
            return Err(StorageError::Compacted.into());
        }
        let at = |index: u64| (index - disk.truncated.0 - 1) as usize;
        Ok(disk.entries[at(low)..at(high)].to_vec())
    }
    fn term(&self, index: u64) -> raft::Result<u64> {
        let disk = self.0.borrow();
        if index < disk.truncated.0 {
            return Err(StorageError::Compacted.into());
        }
        if index == disk.truncated.0 {
            return Ok(disk.truncated.1);
        }
        let entry = disk.entries.get((index - disk.truncated.0 - 1) as usize);
        entry.map(|e| e.term).ok_or_else(|| StorageError::Unavailable.into())
    }
    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.0.borrow().truncated.0 + 1)
    }
    fn last_index(&self) -> raft::Result<u64> {
        let disk = self.0.borrow();
        Ok(disk.truncated.0 + disk.entries.len() as u64)
    }
    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        let (index, term) = self.0.borrow().snapshot_at;
        if index < request_index || index == 0 {
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        }
        let mut snapshot = Snapshot::default();
        snapshot.mut_metadata().index = index;
        snapshot.mut_metadata().term = term;
        snapshot.mut_metadata().mut_conf_state().voters = PEERS.to_vec();
        Ok(snapshot)
    }
}

/// One replica as a store keeps it: rounds become durable later, entries are applied later.
struct Life {
    group: Group<Store>,
    unpersisted: VecDeque<u64>,
    to_apply: VecDeque<u64>,
    applied: u64,
    contexts: u64,
    fenced: bool,
}

impl Life {
    fn new(seed: u64) -> Life {
        let store = Store::default();
        store.restore(5, 5);
        let config = GroupConfig { election_ticks: 4, heartbeat_ticks: 1, seed, ..<_>::default() };
        let group = Group::new(PeerId(1), &config, 5, store).unwrap();
        Life {
            group,
            unpersisted: VecDeque::new(),
            to_apply: VecDeque::new(),
            applied: 5,
            contexts: 0,
            fenced: false,
        }
    }

    fn round(&mut self) {
        let Some(ready) = self.group.ready() else { return };
        let number = ready.rest.number();
        let persist = ready.must_persist();
        if let Some(snapshot) = &ready.snapshot {
            let meta = snapshot.get_metadata();
            self.group.storage().restore(meta.index, meta.term);
            self.applied = meta.index;
            self.to_apply.clear();
        }
        self.group.storage().append(&ready.entries);
        self.to_apply.extend(ready.committed.iter().map(|e| e.index));
        self.group.advance(ready.rest);
        if persist || !self.unpersisted.is_empty() {
            self.unpersisted.push_back(number);
        } else {
            self.group.persisted(number);
        }
    }

    fn persist(&mut self) {
        if let Some(number) = self.unpersisted.pop_front() {
            self.group.persisted(number);
            self.group.applied(self.applied);
        }
    }

    fn apply(&mut self) {
        if let Some(index) = self.to_apply.pop_front() {
            self.applied = self.applied.max(index);
            self.group.storage().applied(self.applied);
            self.group.applied(self.applied);
        }
    }

    fn compact(&mut self, rng: &mut Rng) {
        let first = self.group.storage().first_index().unwrap();
        if self.applied >= first {
            let to = first + rng.below(self.applied - first + 1);
            self.group.storage().compact(to);
        }
    }

    fn act(&mut self, rng: &mut Rng, last: &mut String) {
        match rng.below(100) {
            0..12 => self.group.tick(catamaran::raft::Elections::Free),
            12..32 => self.round(),
            32..40 => self.persist(),
            40..46 => self.apply(),
            46..48 => self.compact(rng),
            48..52 => drop(self.group.propose(Bytes::from_static(b"x"))),
            52..54 => {
                self.contexts += 1;
                self.group.read_index(self.contexts.to_le_bytes().to_vec());
            }
            54 => self.group.transfer_leader(PeerId(2)),
            55 => self.group.unreachable(PeerId(2)),
            _ => {
                let m = self.message(rng);
                let s = self.group.status();
                *last = format!(
                    "{:?} at term {} role {:?} commit {} last {} applied {}",
                    m, s.term, s.role, s.committed, s.last_index, self.applied
                );
                self.fenced = matches!(self.group.step(m), Verdict::Violation(_));
            }
        }
    }

    fn message(&self, rng: &mut Rng) -> Message {
        use MessageType::*;
        const KINDS: [MessageType; 13] = [
            MsgAppend,
            MsgAppend,
            MsgAppendResponse,
            MsgRequestVote,
            MsgRequestVoteResponse,
            MsgRequestPreVote,
            MsgRequestPreVoteResponse,
            MsgSnapshot,
            MsgHeartbeat,
            MsgHeartbeatResponse,
            MsgTimeoutNow,
            MsgReadIndex,
            MsgReadIndexResp,
        ];
        let s = self.group.status();
        let near = |rng: &mut Rng, x: u64| match rng.below(12) {
            0..4 => x,
            4..7 => (x + 1 + rng.below(4)).saturating_sub(2),
            7 => 0,
            8 => x + rng.below(50),
            9 => x.saturating_sub(rng.below(8)),
            10 => s.committed,
            _ => match rng.below(12) {
                0 => u64::MAX,
                1 => u64::MAX >> 1,
                _ => s.last_index,
            },
        };
        let mut m = Message { to: 1, from: 2 + rng.below(2), ..Default::default() };
        if rng.one_in(30) {
            m.from = 7;
        }
        m.set_msg_type(KINDS[rng.below(KINDS.len() as u64) as usize]);
        m.term = match rng.below(10) {
            0 => s.term + 1,
            1 => s.term.saturating_sub(1),
            2 => rng.pick(&[0, s.term + 2]),
            _ => s.term,
        };
        if m.get_msg_type() == MsgRequestPreVoteResponse && rng.one_in(2) {
            m.term = s.term + 1;
        }
        m.index = near(rng, s.last_index);
        let own = self.group.storage().term(m.index).unwrap_or(s.term);
        m.log_term = if rng.one_in(4) { rng.below(s.term + 2) } else { own };
        m.commit = near(rng, s.committed);
        m.commit_term = if rng.one_in(3) { rng.below(s.term + 2) } else { s.term };
        m.reject = rng.one_in(4);
        m.reject_hint = near(rng, s.last_index);
        if rng.one_in(20) {
            m.request_snapshot = near(rng, s.committed);
        }
        match m.get_msg_type() {
            MsgAppend => {
                let mut term = m.log_term;
                for n in 1..=rng.below(4) {
                    term = term.max(if rng.one_in(3) { s.term } else { term });
                    let index = m.index.wrapping_add(n);
                    let mut entry = Entry { index, term, ..Default::default() };
                    if rng.one_in(40) {
                        entry.term = rng.below(s.term + 2);
                        entry.index = near(rng, index);
                    }
                    m.mut_entries().push(entry);
                }
            }
            MsgReadIndex | MsgReadIndexResp => {
                for _ in 0..(if rng.one_in(10) { rng.below(3) } else { 1 }) {
                    let data = (1 + rng.below(self.contexts + 1)).to_le_bytes().to_vec();
                    m.mut_entries().push(Entry { data: data.into(), ..Default::default() });
                }
                if m.get_msg_type() == MsgReadIndex && !rng.one_in(4) {
                    m.term = 0;
                }
            }
            MsgHeartbeat | MsgHeartbeatResponse if rng.one_in(2) => {
                m.context = (1 + rng.below(self.contexts + 1)).to_le_bytes().to_vec().into();
            }
            MsgRequestVote if rng.one_in(3) => m.context = b"CampaignTransfer".to_vec().into(),
            MsgSnapshot => {
                let meta = m.mut_snapshot().mut_metadata();
                meta.index = near(rng, s.committed + 2);
                meta.term = if rng.one_in(3) { rng.below(s.term + 2) } else { s.term };
                let conf = meta.mut_conf_state();
                match rng.below(8) {
                    0 => conf.voters = vec![1],
                    1 => conf.voters = vec![1, 1, 2],
                    2 => (conf.voters, conf.learners) = (vec![2, 3], vec![1]),
                    3 => (conf.voters, conf.learners) = (vec![1, 2], vec![2]),
                    _ => conf.voters = PEERS.to_vec(),
                }
                if rng.one_in(8) {
                    conf.auto_leave = true;
                }
                if rng.one_in(16) {
                    conf.voters_outgoing = vec![1];
                }
            }
            _ => {}
        }
        m
    }
}

#[test]
fn no_message_that_passes_the_guard_stops_the_process() {
    let lives = std::env::var("GUARD_FUZZ_LIVES").ok().and_then(|n| n.parse().ok());
    let lives: u64 = lives.unwrap_or(3_000);
    let mut found: BTreeMap<String, (u64, u64, String)> = BTreeMap::new();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|info| {
        let at = info.location().map_or(String::new(), |l| {
            format!("{}:{}", l.file().rsplit('/').next().unwrap_or(""), l.line())
        });
        PLACE.with(|place| *place.borrow_mut() = at);
    }));
    for seed in 0..lives {
        let mut rng = Rng(seed);
        let mut last = String::new();
        let died = catch_unwind(AssertUnwindSafe(|| {
            let mut life = Life::new(seed);
            for _ in 0..400 {
                if life.fenced {
                    break;
                }
                life.act(&mut rng, &mut last);
            }
        }));
        if let Err(panic) = died {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
            let place = PLACE.with(|place| place.borrow().clone());
            let text = format!("{} ({last})", text.unwrap_or_default());
            found.entry(place).or_insert((seed, 0, text)).1 += 1;
        }
    }
    std::panic::set_hook(hook);
    for (place, (seed, count, text)) in &found {
        println!("{place}: {count} times, first in life {seed}: {text}\n");
    }
    assert!(found.is_empty(), "{} kinds of panic", found.len());
}

thread_local! {
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}
