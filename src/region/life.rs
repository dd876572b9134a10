//! Life: how a replica comes to be on this store: the state store says which replicas there are, the log is made
//! to agree with it, and raft starts from both. How one goes stands in [`farewell`](super::farewell).
//!
//! **Agreement.** The state store's applied position was persisted in the log before it was applied, so the
//! log holds it or starts after it. If it does not, a snapshot was restored and the crash came before the log
//! was reset: it is reset now. A log that starts *above* the applied position has a gap, and one whose
//! commit lies beyond its end has forgotten: such a replica is fenced off, it must not vote. Nor may one that cannot read
//! what it has acknowledged: what is known to be committed is read when it is applied, the rest here.

use super::compact::LogBytes;
use super::config::StoreConfig;
use super::effects::Campaign;
use super::hibernate::Rest;
use super::peer::{Peer, Progress};
use super::read::Reads;
use super::ready::Unpersisted;
use super::share::PeerShare;
use super::size::Size;
use super::storage::{self, PeerStorage};
use crate::error::{Error, Result};
use crate::kv::StateStore;
use crate::log::{Log, LogBatch};
use crate::raft::{Group, GroupConfig};
use crate::types::{INITIAL_POSITION, LogPosition, RegionId, RegionState, Time};
use ::raft::eraftpb::HardState;
use std::sync::Arc;

/// Entries are read in pieces of about so many bytes.
const READ_BYTES: u64 = 64 << 20;

/// Whether a replica has a past in which it may have voted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Past {
    /// Never ran.
    None,
    /// Ran before: refuses votes for an election timeout.
    Some,
}

/// How a replica was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Raft's state, to start from.
    pub hard_state: HardState,
    /// Whether it ran before.
    pub past: Past,
    /// Why it must not run, if so.
    pub fence: Option<String>,
}

/// Makes the log of a region agree with its state; what must be written goes into `batch` and must be
/// durable before the replica starts.
pub fn agree(log: &Log, state: &RegionState, batch: &mut LogBatch) -> Found {
    let region = state.region.id;
    let record = log.state(region.0);
    let past = if record.is_some() { Past::Some } else { Past::None };
    let mut found = Found { hard_state: HardState::default(), past, fence: None };
    if let Some(record) = record {
        match storage::decode_hard_state(&record) {
            Some(sworn) if sworn.peer.is_some_and(|peer| peer != state.peer) => {
                return afresh(state, batch);
            }
            Some(sworn) => found.hard_state = sworn.hard_state,
            None => found.fence = Some("the log's state record is not raft's".into()),
        }
    }
    if let Some(damage) = log.damage(region.0) {
        // Nothing is written to it: a reset would heal the damage and make the replica forget what it
        // acknowledged, and it would vote after the next restart.
        found.fence = Some(format!("log damaged: {damage:?}"));
        return found;
    }
    let before = found.hard_state.clone();
    let mut last_index = storage::last_index(log, region);
    if log.truncated(region.0).index > state.applied.index {
        found.fence = Some(format!(
            "the log starts after {} and the state store ends at {}",
            log.truncated(region.0).index,
            state.applied.index
        ));
    } else if !storage::holds(log, region, state.applied) {
        batch.reset(region.0, state.applied);
        last_index = state.applied.index;
        found.hard_state.commit = state.applied.index;
    }
    if found.hard_state.commit > last_index {
        found.fence = Some(format!(
            "entry {} was committed and the log ends at {last_index}",
            found.hard_state.commit
        ));
    }
    let hard_state = &mut found.hard_state;
    hard_state.commit = hard_state.commit.max(state.applied.index);
    if found.fence.is_none() {
        found.fence = unreadable(log, region, hard_state.commit + 1, last_index);
    }
    if hard_state.term < state.applied.term {
        // A restored snapshot's term: no vote of ours in it has left before it was recorded.
        hard_state.term = state.applied.term;
        hard_state.vote = 0;
    }
    if *hard_state != before && found.fence.is_none() {
        batch.set_state(region.0, storage::encode_hard_state(hard_state, state.peer));
    }
    found
}

/// Why the entries `from..=last` cannot be read, if they cannot.
fn unreadable(log: &Log, region: RegionId, mut from: u64, last: u64) -> Option<String> {
    while from <= last {
        match log.entries(region.0, from, last + 1, READ_BYTES) {
            Ok(found) if found.is_empty() => return Some(format!("the log has no entry {from}")),
            Ok(found) => from += found.len() as u64,
            Err(error) => return Some(error.to_string()),
        }
    }
    None
}

/// The log is that of a dead replica of the region: nothing in it counts, its vote least of all.
fn afresh(state: &RegionState, batch: &mut LogBatch) -> Found {
    let group = state.region.id.0;
    let LogPosition { index: commit, term } = state.applied;
    let hard_state = HardState { term, commit, ..Default::default() };
    batch.clear(group);
    batch.reset(group, state.applied);
    batch.set_state(group, storage::encode_hard_state(&hard_state, state.peer));
    Found { hard_state, past: Past::None, fence: None }
}

/// The group of a replica whose log agrees with its state.
///
/// It is made apart from the replica, which stays where it is when the group has gone to rest: a store that opens makes
/// all groups first, and what they take can be given back in one piece.
pub(crate) fn group_of(
    config: &Arc<GroupConfig>,
    log: &Log,
    kv: &Arc<dyn StateStore>,
    state: &RegionState,
    found: &Found,
    campaign: Campaign,
) -> Result<Group<PeerStorage>> {
    let mut hard_state = found.hard_state.clone();
    let mut raft_applied = state.applied.index;
    if found.fence.is_some() {
        // Its group is never touched; raft-rs must only accept it, whatever the log looks like.
        raft_applied = log.truncated(state.region.id.0).index;
        hard_state.commit = raft_applied;
    }
    let kv = kv.clone();
    let mut storage = PeerStorage::new(log.clone(), kv, &state.region, hard_state);
    if found.fence.is_some() {
        storage = storage.fenced();
    }
    let mut group = Group::sharing(state.peer, Arc::clone(config), raft_applied, storage)
        .map_err(|e| Error::malformed("raft state", e.to_string()))?;
    group.storage_mut().started();
    if found.fence.is_none() && campaign == Campaign::Now {
        group.campaign();
    }
    Ok(group)
}

impl Peer {
    /// Starts a replica with its group.
    pub(crate) fn start(
        config: &StoreConfig,
        log: &Log,
        group: Group<PeerStorage>,
        state: RegionState,
        found: Found,
        now: Time,
    ) -> Peer {
        let votes_from = match found.past {
            Past::None => now,
            Past::Some => now.after(config.vote_ban()),
        };
        let region = Arc::new(state.region);
        Peer {
            id: state.peer,
            store: config.store,
            group,
            share: Arc::new(PeerShare::new(state.peer, Arc::clone(&region))),
            proposals: Default::default(),
            reads: Reads::new(config.nonce),
            unpersisted: Unpersisted::new(found.hard_state),
            progress: Progress {
                applied: state.applied,
                flushed: state.applied.index,
                compacted: state.compacted,
                applying_bytes: 0,
            },
            log_bytes: LogBytes::of(log.sizes(region.id.0)),
            received: None,
            restoring: None,
            flights: Default::default(),
            fence: found.fence,
            votes_from,
            banned_until: votes_from,
            handed_over_in: 0,
            handing: None,
            reshaping: None,
            size: match state.applied == INITIAL_POSITION && region.epoch.version == 1 {
                true => Size::nothing(),
                false => Size::default(),
            },
            load: Default::default(),
            changing: None,
            passage: None,
            removed: state.removed,
            merging: state.merging.map(Box::new),
            handed: state.applied.index,
            held: Default::default(),
            lent: None,
            #[cfg(any(test, feature = "sim"))]
            planted: Default::default(),
            wishing: Default::default(),
            asking: Default::default(),
            strangers: Default::default(),
            leaving: false,
            ticks: 0,
            looked_at: 0,
            rest: Rest::default(),
            region,
        }
    }
}
