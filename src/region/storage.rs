//! Shows one group of the log engine, and the region's data as a snapshot, to raft-rs.
//!
//! raft-rs ends the process on most storage errors. So damage met while reading is noted
//! ([`PeerStorage::take_fault`]) and answered as harmlessly as the trait allows; the peer looks at the
//! note before it acts on what raft-rs made of the answer, and fences itself. Never as if there were no entries
//! where raft-rs would conclude something from that: see [`raft_rs`](crate::log::raft_rs). (A group that the log has
//! quarantined never comes so far: it is fenced when it is opened, and only opening quarantines.)

use super::sparse::{Empty, Sparse};
use super::tail::Tail;
use crate::codec;
use crate::error::Error;
use crate::kv::{StateStore, View};
use crate::log::Log;
pub use crate::log::raft_rs::to_log;
use crate::log::raft_rs::{from_log, without_entries};
use crate::types::{LogPosition, PeerId, Region, RegionId, Role};
use ::raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot};
use ::raft::{GetEntriesContext, RaftState, Storage, StorageError};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The storage of one group.
///
/// * A snapshot's position is the applied position of the very view that will be sent.
/// * A view is taken only for whom `allow` names: whoever else wants one is noted.
/// * `tail`, if it is there, is what the log says once all that was put into batches is submitted.
pub struct PeerStorage {
    log: Log,
    kv: Arc<dyn StateStore>,
    region: RegionId,
    /// For whom a snapshot may be made at this moment.
    allowed: Cell<Option<PeerId>>,
    /// Until raft has started.
    start: Option<Box<RaftState>>,
    /// Shown as empty: damaged entries have no terms, and raft-rs ends the process over the last one's.
    fenced: bool,
    /// What the log's cache was told last to be applied.
    trimmed: Cell<u64>,
    /// Made when raft asks, gone when the group rests.
    tail: RefCell<Option<Box<Tail>>>,
    notes: RefCell<Sparse<Notes>>,
}

/// What came up while raft read.
#[derive(Default)]
struct Notes {
    /// Whom raft wants to send a snapshot.
    wanted: BTreeSet<PeerId>,
    /// What was made and not yet taken, and of which index.
    views: BTreeMap<PeerId, Made>,
    fault: Option<String>,
}

impl Empty for Notes {
    fn empty() -> &'static Notes {
        static NOTHING: Notes =
            Notes { wanted: BTreeSet::new(), views: BTreeMap::new(), fault: None };
        &NOTHING
    }

    fn is_empty(&self) -> bool {
        self.wanted.is_empty() && self.views.is_empty() && self.fault.is_none()
    }
}

/// The index and the data of a snapshot.
type Made = (u64, Box<dyn View>);

/// The raft configuration of a region.
pub fn conf_state(region: &Region) -> ConfState {
    let ids = |roles: &[Role]| -> Vec<u64> {
        let mut ids: Vec<u64> =
            region.peers.iter().filter(|p| roles.contains(&p.role)).map(|p| p.id.0).collect();
        ids.sort_unstable();
        ids
    };
    let voters_outgoing = match region.is_joint() {
        true => ids(&[Role::Voter, Role::Demoting]),
        false => Vec::new(),
    };
    ConfState {
        voters: ids(&[Role::Voter, Role::Incoming]),
        learners: ids(&[Role::Learner, Role::Passing]),
        voters_outgoing,
        learners_next: ids(&[Role::Demoting]),
        ..Default::default()
    }
}

/// Whose word a group's state record is.
#[derive(Clone, PartialEq, Debug)]
pub struct Sworn {
    /// The replica that wrote it. A record of an older engine does not say.
    pub peer: Option<PeerId>,
    /// Term, vote and commit.
    pub hard_state: HardState,
}

/// The per-group state record in the log: term, vote, commit, and the replica whose vote it is, each `u64`
/// little-endian. A later replica of the region must never take the vote of a dead one for its own.
pub fn encode_hard_state(state: &HardState, peer: PeerId) -> Bytes {
    let mut out = Vec::with_capacity(32);
    for value in [state.term, state.vote, state.commit, peer.0] {
        out.extend_from_slice(&value.to_le_bytes());
    }
    Bytes::from(out)
}

/// Reads what [`encode_hard_state`] wrote, or wrote before it named the replica (24 bytes); `None` when it is
/// something else.
pub fn decode_hard_state(bytes: &[u8]) -> Option<Sworn> {
    let field = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let peer = match bytes.len() {
        24 => None,
        32 => Some(PeerId(field(24)?)),
        _ => return None,
    };
    let (term, vote, commit) = (field(0)?, field(8)?, field(16)?);
    let hard_state = HardState { term, vote, commit, ..Default::default() };
    Some(Sworn { peer, hard_state })
}

impl PeerStorage {
    /// The storage of a region's group, raft starting from `hard_state`.
    pub fn new(
        log: Log,
        kv: Arc<dyn StateStore>,
        region: &Region,
        hard_state: HardState,
    ) -> PeerStorage {
        PeerStorage {
            log,
            kv,
            region: region.id,
            allowed: Cell::new(None),
            start: Some(Box::new(RaftState::new(hard_state, conf_state(region)))),
            fenced: false,
            trimmed: Cell::new(0),
            tail: RefCell::default(),
            notes: RefCell::default(),
        }
    }

    /// The storage of a replica that is fenced off: a log that ends where it starts, whatever it holds.
    pub fn fenced(mut self) -> PeerStorage {
        self.fenced = true;
        self
    }

    /// Raft has started, and keeps its own state.
    pub fn started(&mut self) {
        self.start = None;
    }

    /// Whether raft wants to send a snapshot, or met damage, that nobody has been told of.
    pub(crate) fn has_news(&self) -> bool {
        self.note(|notes| !notes.wanted.is_empty() || notes.fault.is_some())
    }

    /// Damage met since the last call.
    pub fn take_fault(&self) -> Option<String> {
        self.note(|notes| notes.fault.take())
    }

    /// The data of the snapshot that was last made for `to`.
    pub fn take_view(&self, to: PeerId) -> Option<Box<dyn View>> {
        self.note(|notes| notes.views.remove(&to)).map(|(_, view)| view)
    }

    /// Whom raft wanted to send a snapshot since the last call, in vain.
    pub(crate) fn take_wanted(&self) -> BTreeSet<PeerId> {
        self.note(|notes| std::mem::take(&mut notes.wanted))
    }

    /// From now on a snapshot may be made for `to`, and for nobody else.
    pub(crate) fn allow(&self, to: Option<PeerId>) {
        self.allowed.set(to);
    }

    /// The index of the snapshot that was made for `to` and is not yet taken.
    pub(crate) fn made(&self, to: PeerId) -> Option<u64> {
        self.notes.borrow().views.get(&to).map(|(index, _)| *index)
    }

    /// The entries `from..to` as they are applied, with their places. `None` unless all of them are there; if they
    /// are and cannot be read, that is damage met.
    pub fn payloads(&self, from: u64, to: u64) -> Option<Vec<(LogPosition, Bytes)>> {
        if from <= self.truncated().index {
            return (from >= to).then(Vec::new);
        }
        let found = match self.log.entries(self.region.0, from, to, u64::MAX) {
            Ok(found) => found,
            Err(Error::InvalidArgument(_)) => return None,
            Err(error) => {
                self.fail(error.to_string());
                return None;
            }
        };
        let found = found.into_iter().map(|entry| {
            let entry = from_log(entry).ok()?;
            let position = LogPosition { index: entry.index, term: entry.term };
            Some((position, payload_of(entry)?))
        });
        let found: Vec<_> = found.collect::<Option<_>>()?;
        (found.len() as u64 == to.saturating_sub(from)).then_some(found)
    }

    /// Term of an index of the log, if it is there.
    pub fn term_of(&self, index: u64) -> Option<u64> {
        let truncated = self.truncated();
        if index == truncated.index {
            return Some(truncated.term);
        }
        self.log.term(self.region.0, index).ok().flatten()
    }

    /// The point the group's log starts after.
    pub fn truncated(&self) -> LogPosition {
        match &*self.tail.borrow() {
            Some(tail) => tail.truncated,
            None => self.log.truncated(self.region.0),
        }
    }

    /// Entries were put into the batch of this round. (Raft looks for them before the log has them.)
    pub(crate) fn appended(&self, entries: Vec<Entry>) {
        self.ask(|_| Some(()));
        if let Some(tail) = &mut *self.tail.borrow_mut() {
            tail.append(entries);
        }
    }

    /// All that is committed up to here was handed out to be applied.
    pub(crate) fn handed_out(&self, index: u64) {
        if let Some(tail) = &mut *self.tail.borrow_mut() {
            tail.handed_out(index);
        }
    }

    /// That the log is compacted up to here was put into the batch of this round.
    pub(crate) fn compacted(&self, truncated: LogPosition) {
        if let Some(tail) = &mut *self.tail.borrow_mut() {
            tail.compacted(truncated);
        }
    }

    /// That the log begins anew was put into the batch of this round.
    pub(crate) fn reset(&self, position: LogPosition) {
        *self.tail.borrow_mut() = Some(Box::new(Tail::after(position)));
    }

    /// Asks the tail, which is made if it is not there. `None`: it does not know.
    fn ask<T>(&self, what: impl FnOnce(&Tail) -> Option<T>) -> Option<T> {
        if self.fenced {
            return None;
        }
        let mut tail = self.tail.borrow_mut();
        if tail.is_none() {
            *tail = Some(Box::new(Tail::of(&self.log, self.region)?));
        }
        let tail = tail.as_deref()?;
        what(tail)
    }

    /// Whether the tail, if there is one, ends and begins where the log does. (Not between a batch's making and its submitting.)
    #[cfg(debug_assertions)]
    pub(crate) fn agrees(&self) -> bool {
        self.tail.borrow().as_ref().is_none_or(|tail| {
            tail.last.index == last_index(&self.log, self.region)
                && tail.truncated == self.log.truncated(self.region.0)
        })
    }

    /// Entries up to here are applied: the cache may let them go.
    pub fn trim_cache(&self, applied: u64) {
        if self.trimmed.replace(applied) != applied {
            self.log.trim_cache(self.region.0, applied);
        }
    }

    /// Nobody is going to use the group for long.
    pub fn rest(&self) {
        *self.tail.borrow_mut() = None;
        self.log.rest(self.region.0);
    }

    /// Takes something out, if anything is there.
    fn note<T: Default>(&self, take: impl FnOnce(&mut Notes) -> T) -> T {
        let mut notes = self.notes.borrow_mut();
        if notes.is_empty() {
            return T::default();
        }
        let taken = take(&mut notes);
        notes.free();
        taken
    }

    fn fail(&self, what: String) {
        self.notes.borrow_mut().fault.get_or_insert(what);
    }
}

impl Storage for PeerStorage {
    fn initial_state(&self) -> ::raft::Result<RaftState> {
        let start = self.start.as_ref().ok_or(StorageError::Unavailable)?;
        Ok((**start).clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> ::raft::Result<Vec<Entry>> {
        let max_bytes = max_size.into().unwrap_or(u64::MAX);
        if let Some(found) = self.ask(|tail| tail.entries(low, high, max_bytes)) {
            return Ok(found);
        }
        if low <= self.truncated().index {
            return Err(StorageError::Compacted.into());
        }
        let found = self.log.entries(self.region.0, low, high, max_bytes);
        match found.and_then(|found| found.into_iter().map(from_log).collect()) {
            Ok(entries) => Ok(entries),
            Err(error) => {
                self.fail(error.to_string());
                without_entries(&context, low)
            }
        }
    }

    fn term(&self, index: u64) -> ::raft::Result<u64> {
        if let Some(term) = self.ask(|tail| tail.term(index)) {
            return Ok(term);
        }
        let truncated = self.truncated();
        if index < truncated.index {
            return Err(StorageError::Compacted.into());
        }
        if index == truncated.index {
            return Ok(truncated.term);
        }
        match self.log.term(self.region.0, index) {
            Ok(Some(term)) => Ok(term),
            Ok(None) => Err(StorageError::Unavailable.into()),
            Err(error) => {
                self.fail(error.to_string());
                Err(StorageError::Unavailable.into())
            }
        }
    }

    fn first_index(&self) -> ::raft::Result<u64> {
        let truncated = self.ask(|tail| Some(tail.truncated));
        Ok(truncated.unwrap_or_else(|| self.truncated()).index + 1)
    }

    fn last_index(&self) -> ::raft::Result<u64> {
        if self.fenced {
            return Ok(self.log.truncated(self.region.0).index);
        }
        let last = self.ask(|tail| Some(tail.last.index));
        Ok(last.unwrap_or_else(|| last_index(&self.log, self.region)))
    }

    fn snapshot(&self, request_index: u64, to: u64) -> ::raft::Result<Snapshot> {
        let unavailable = || StorageError::SnapshotTemporarilyUnavailable.into();
        let to = PeerId(to);
        if self.allowed.get() != Some(to) {
            self.notes.borrow_mut().wanted.insert(to);
            return Err(unavailable());
        }
        let view = self.kv.view().map_err(|_| unavailable())?;
        let state = view.region(self.region).ok_or_else(unavailable)?;
        // What is applied may be ahead of what raft knows: the receiver may be removed already.
        if state.applied.index < request_index || state.region.peer(to).is_none() {
            return Err(unavailable());
        }
        let mut snapshot = Snapshot::default();
        let meta = snapshot.mut_metadata();
        meta.index = state.applied.index;
        meta.term = state.applied.term;
        meta.set_conf_state(conf_state(&state.region));
        snapshot.data = codec::region::encode_head(&state);
        self.notes.borrow_mut().views.insert(to, (state.applied.index, view));
        Ok(snapshot)
    }
}

/// What replicas apply of an entry; empty for raft's own. `None`: a change of the configuration that is not ours.
pub fn payload_of(entry: Entry) -> Option<Bytes> {
    match entry.get_entry_type() {
        EntryType::EntryNormal => Some(entry.data),
        // What replicas are to make of a changed configuration stands beside raft's form of it.
        EntryType::EntryConfChangeV2 if !entry.context.is_empty() => Some(entry.context),
        _ => None,
    }
}

/// The last index of a region's log; the point it starts after, when it is empty.
pub fn last_index(log: &Log, region: RegionId) -> u64 {
    log.last_index(region.0).max(log.truncated(region.0).index)
}

/// Whether the log holds, or starts exactly after, this position.
pub fn holds(log: &Log, region: RegionId, position: LogPosition) -> bool {
    let truncated = log.truncated(region.0);
    if position.index == truncated.index {
        return position.term == truncated.term;
    }
    matches!(log.term(region.0, position.index), Ok(Some(term)) if term == position.term)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::mem::MemDisk;
    use crate::env::{Disk, OpenMode};
    use crate::kv::MemoryStore;
    use crate::log::{LogBatch, Options};
    use crate::types::{Peer, StoreId};
    use ::raft::eraftpb::{Message, MessageType};
    use ::raft::{Config, RawNode, StateRole};
    use std::path::Path;

    const LAST: u64 = 5;

    fn voters() -> Region {
        let voter = |n| Peer { id: PeerId(n), store: StoreId(n), role: Role::Voter };
        Region { id: RegionId(7), peers: (1..=3).map(voter).collect(), ..Region::default() }
    }

    /// Entries 2 to 5 of term 1, the first three of them committed; nothing is in the cache.
    fn node(applied: u64) -> (RawNode<PeerStorage>, Arc<MemDisk>) {
        let disk = Arc::new(MemDisk::default());
        let open = || {
            let options = Options { segment_bytes: 64 << 10, ..Options::default() };
            Log::open(disk.clone(), Path::new("/log"), options).unwrap().0
        };
        let log = open();
        let mut batch = LogBatch::new();
        batch.reset(7, LogPosition { index: 1, term: 1 });
        for index in 2..=LAST {
            let data = vec![0xa7; 100].into();
            let entry = Entry { index, term: 1, data, ..Default::default() };
            batch.append(7, [to_log(&entry)]);
        }
        log.write(batch).unwrap();
        log.barrier().unwrap();
        drop(log);
        let hard_state = HardState { term: 1, commit: 4, ..Default::default() };
        let kv: Arc<dyn StateStore> = Arc::new(MemoryStore::new().unwrap());
        let storage = PeerStorage::new(open(), kv, &voters(), hard_state);
        let config = Config { id: 1, applied, max_size_per_msg: 1 << 20, ..Config::default() };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        (RawNode::new(&config, storage, &logger).unwrap(), disk.clone())
    }

    /// The same, and none of the entries can be read.
    fn blind(applied: u64) -> RawNode<PeerStorage> {
        let (node, disk) = node(applied);
        let dir = Path::new("/log");
        for name in disk.list(dir).unwrap() {
            let file = disk.open(&dir.join(name), OpenMode::ReadWrite).unwrap();
            let mut bytes = file.read_up_to(0, file.len().unwrap() as usize).unwrap();
            bytes.iter_mut().filter(|byte| **byte == 0xa7).for_each(|byte| *byte = 0xa8);
            file.write_at(0, &bytes).unwrap();
        }
        node
    }

    /// One of the committed entries may change the configuration: who campaigns with the old one may lead beside
    /// another leader.
    #[test]
    fn a_replica_does_not_campaign_over_entries_that_it_cannot_read() {
        for applied in [1, 3] {
            let mut sound = node(applied).0;
            sound.campaign().unwrap();
            assert_eq!(sound.raft.state, StateRole::Candidate);
            assert_eq!(sound.store().take_fault(), None);
            let mut blind = blind(applied);
            blind.campaign().unwrap();
            assert_eq!(blind.raft.state, StateRole::Follower, "applied {applied}");
            assert!(blind.raft.msgs.is_empty());
            assert!(blind.store().take_fault().unwrap().contains("checksum"));
        }
    }

    /// A follower that lacks them gets nothing, rather than an append that says there are none; nothing is applied.
    #[test]
    fn a_leader_sends_no_append_in_the_place_of_entries_that_it_cannot_read() {
        for (readable, mut node) in [(true, node(4).0), (false, blind(4))] {
            node.campaign().unwrap();
            let answer =
                |kind| Message { msg_type: kind, from: 2, to: 1, term: 2, ..Message::default() };
            node.step(answer(MessageType::MsgRequestVoteResponse)).unwrap();
            assert_eq!(node.raft.state, StateRole::Leader);
            assert_eq!(node.store().take_fault(), None);
            node.raft.msgs.clear();
            let lacks = Message {
                reject: true,
                index: LAST,
                reject_hint: 1,
                log_term: 1,
                ..answer(MessageType::MsgAppendResponse)
            };
            node.step(lacks).unwrap();
            let sent = node.raft.msgs.iter().map(|m| m.entries.len()).collect::<Vec<_>>();
            assert_eq!(sent, if readable { vec![LAST as usize] } else { vec![] });
            assert_eq!(node.store().take_fault().is_none(), readable);
        }
    }

    #[test]
    fn entries_that_cannot_be_read_are_not_handed_out() {
        assert_eq!(node(1).0.ready().committed_entries().len(), 3);
        let mut blind = blind(1);
        assert!(blind.has_ready() && blind.ready().committed_entries().is_empty());
        assert!(blind.store().take_fault().is_some());
    }

    #[test]
    fn the_state_record_names_its_replica_and_the_old_form_is_read() {
        let hard_state = HardState { term: 3, vote: 2, commit: 9, ..Default::default() };
        let bytes = encode_hard_state(&hard_state, PeerId(7));
        let read = decode_hard_state(&bytes).unwrap();
        assert_eq!((read.peer, &read.hard_state), (Some(PeerId(7)), &hard_state));
        let old = decode_hard_state(&bytes[..24]).unwrap();
        assert_eq!((old.peer, old.hard_state), (None, hard_state));
        assert!(
            (0..32).filter(|len| *len != 24).all(|len| decode_hard_state(&bytes[..len]).is_none())
        );
    }

    #[test]
    fn roles_make_both_halves_of_a_joint_configuration() {
        let peer = |id: u64, role| Peer { id: PeerId(id), store: StoreId(id), role };
        let peers = vec![
            peer(4, Role::Demoting),
            peer(2, Role::Voter),
            peer(3, Role::Incoming),
            peer(1, Role::Learner),
        ];
        let mut region = Region { peers, ..Region::default() };
        let state = conf_state(&region);
        assert_eq!((&state.voters[..], &state.voters_outgoing[..]), (&[2, 3][..], &[2, 4][..]));
        assert_eq!((&state.learners[..], &state.learners_next[..]), (&[1][..], &[4][..]));
        region.peers.retain(|p| !matches!(p.role, Role::Incoming | Role::Demoting));
        assert!(conf_state(&region).voters_outgoing.is_empty());
    }
}
