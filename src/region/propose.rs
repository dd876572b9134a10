//! Propose: client batches wait for the end of the round, are folded into one entry, and whoever waits is
//! kept under the entry's position until it is committed.
//!
//! Folding is what makes many small writes cheap: one entry, one ready, one message per follower and one log
//! record for all of them. Under load rounds grow, and entries with them; an idle region proposes at once.

use super::config::StoreConfig;
use super::effects::{Effects, Reply, Token, Waiting};
use super::merge::FROZEN;
use super::peer::Peer;
use super::sparse::Empty;
use crate::codec::command::{self, PayloadBuilder};
use crate::error::Error;
use crate::raft::ProposeError;
use crate::types::{LogPosition, Region};
use bytes::Bytes;
use std::collections::VecDeque;

/// What clients wait for in one region.
///
/// * `pending` has no place in the log yet: refusing it is always safe.
/// * `proposed` is in order of index, then term; an entry leaves it when its index is committed, by whomever.
///   One leader may hold entries of two of its terms, the older at higher indexes: another leader cut them
///   off in between, and they may come back until something of a newer term is *committed*: terms never
///   fall along a log, so from then on nothing older can stand behind it.
#[derive(Default, Debug)]
pub struct Proposals {
    pending: VecDeque<(Token, Bytes)>,
    pending_bytes: usize,
    proposed: VecDeque<(LogPosition, Waiting)>,
    /// Of the last entry known to be committed, while anybody waited.
    term: u64,
}

impl Empty for Proposals {
    fn empty() -> &'static Proposals {
        static NOTHING: Proposals = Proposals {
            pending: VecDeque::new(),
            pending_bytes: 0,
            proposed: VecDeque::new(),
            term: 0,
        };
        &NOTHING
    }

    // (The term only says which of `proposed` were given up already.)
    fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.proposed.is_empty()
    }
}

impl Proposals {
    /// Whether something waits for a place in the log.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Takes back everything that has no place in the log.
    pub fn take_pending(&mut self) -> Vec<Token> {
        self.pending_bytes = 0;
        self.pending.drain(..).map(|(token, _)| token).collect()
    }

    /// Gives up on everything.
    pub fn abandon(&mut self) -> Vec<Token> {
        let mut tokens = self.take_pending();
        tokens.extend(self.proposed.drain(..).flat_map(|(_, tokens)| tokens));
        tokens
    }

    pub(crate) fn proposed(&mut self, position: LogPosition, tokens: Waiting) {
        let at = self.proposed.partition_point(|(other, _)| *other < position);
        self.proposed.insert(at, (position, tokens));
    }

    /// Who waits for the committed entry at `position`; entries of ours that it, or an earlier one,
    /// overwrote go to `lost`.
    pub fn committed(&mut self, position: LogPosition, lost: &mut Vec<Token>) -> Waiting {
        if position.term > self.term {
            self.term = position.term;
            self.give_up_older(position, lost);
        }
        while let Some((at, _)) = self.proposed.front() {
            if at.index > position.index {
                break;
            }
            let Some((at, tokens)) = self.proposed.pop_front() else { break };
            if at == position {
                return tokens;
            }
            lost.extend(tokens);
        }
        Waiting::new()
    }
}

impl Proposals {
    /// What was proposed in an older term for a higher index will never be committed. (Found by seed 2325 of the
    /// simulator's regions: nobody wrote to the region any more, so its log never got that far again.)
    fn give_up_older(&mut self, committed: LogPosition, lost: &mut Vec<Token>) {
        let hopeless = |at: &LogPosition| at.index > committed.index && at.term < committed.term;
        self.proposed.retain_mut(|(at, tokens)| {
            let gone = hopeless(at);
            if gone {
                lost.extend(tokens.drain(..));
            }
            !gone
        });
    }
}

impl Peer {
    /// Queues a client batch for the end of the round, or refuses it.
    pub(crate) fn propose(
        &mut self,
        config: &StoreConfig,
        token: Token,
        version: u64,
        command: Bytes,
        effects: &mut Effects,
    ) {
        if !self.runs() {
            return Peer::refuse(effects, token, self.fenced());
        }
        if !self.group.leads() || self.group.transferring() {
            return Peer::refuse(effects, token, self.not_leader());
        }
        if self.merging.is_some() {
            return Peer::refuse(effects, token, FROZEN);
        }
        if version != self.region.epoch.version {
            let current = vec![Region::clone(&self.region)];
            return Peer::refuse(effects, token, Error::EpochNotMatch { current });
        }
        if self.is_far_too_large(config) {
            self.refused_for_size(config, effects);
            let error = Error::Busy { what: "region, far above its size: it is about to be cut" };
            return Peer::refuse(effects, token, error);
        }
        let waiting = &mut self.proposals;
        if waiting.has_pending() && waiting.pending_bytes + command.len() > config.pending_bytes_max
        {
            return Peer::refuse(effects, token, Error::Busy { what: "region's proposals" });
        }
        waiting.pending_bytes += command.len();
        self.load.took(&command, &self.region.range);
        waiting.pending.push_back((token, command));
    }

    /// Folds what waits into entries and proposes them.
    pub(crate) fn fold(&mut self, config: &StoreConfig, effects: &mut Effects) {
        while self.proposals.has_pending() && self.reshaping.is_none() {
            if self.progress.applying_bytes > config.apply_lag_bytes_max {
                return; // apply lags: the rest waits, and the bound above pushes back
            }
            let (data, count) = self.folded(config.entry_bytes_max);
            match self.group.propose(data) {
                Ok(position) => {
                    let waiting = &mut self.proposals;
                    let batches = waiting.pending.drain(..count);
                    let (mut tokens, mut bytes) = (Waiting::with_capacity(count), 0);
                    for (token, command) in batches {
                        tokens.push(token);
                        bytes += command.len();
                    }
                    effects.proposed.extend(tokens.first().map(|first| (*first, tokens.len())));
                    waiting.pending_bytes -= bytes;
                    waiting.proposed(position, tokens);
                }
                Err(ProposeError::Full | ProposeError::Changing) => return, // again when some have committed
                Err(ProposeError::NotLeader | ProposeError::Transferring) => {
                    return self.refuse_pending(effects);
                }
            }
        }
    }

    /// The next entry and how many waiting batches are in it.
    fn folded(&self, bytes_max: usize) -> (Bytes, usize) {
        let (mut bytes, mut count) = (0, 0);
        for (_, command) in &self.proposals.pending {
            if count > 0 && bytes + command.len() > bytes_max {
                break;
            }
            bytes += command.len() + 4;
            count += 1;
        }
        let mut builder = PayloadBuilder::new(self.region.epoch.version, bytes);
        for (_, command) in self.proposals.pending.iter().take(count) {
            builder.push(command);
        }
        (builder.finish(), count)
    }

    /// Tells everyone without a place in the log that this is not the leader.
    pub(crate) fn refuse_pending(&mut self, effects: &mut Effects) {
        for token in self.proposals.take_pending() {
            let error = self.not_leader();
            effects.replies.push((token, Reply::Written(Err(error))));
        }
    }

    /// Whether it leads in its sleep, and its log is large enough to be compacted.
    pub(crate) fn sleeps_on_a_log(&self, config: &StoreConfig) -> bool {
        self.asleep() && self.log_bytes.total() > config.compact_bytes && self.group.leads()
    }

    /// Proposes to compact the log, if this peer leads and the policy says so.
    pub(crate) fn propose_compaction(&mut self, config: &StoreConfig) {
        if self.reshaping.is_some() || self.merging.is_some() {
            return; // a merge may need what replicas lack
        }
        let truncated = self.group.storage().truncated().index;
        let target = super::compact::target(
            config,
            super::compact::Situation {
                truncated: truncated.max(self.progress.compacted.index),
                applied: self.progress.applied.index,
                bytes: self.log_bytes.total(),
                progress: &self.group.progress(),
                pin: self.pinned_at(),
            },
        );
        let Some(index) = target else { return };
        let Some(term) = self.group.storage().term_of(index) else { return };
        // Refused: the next check proposes it again.
        let _ = self.group.propose(command::encode_compact(LogPosition { index, term }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smallvec::smallvec;

    /// A leader of term 3 proposes 12 to 15, is cut back to 11 by the leader of term 4, leads again in term 5
    /// and proposes 12 anew: the new 12 is answered, and none of the old ones can come back.
    #[test]
    fn an_older_term_at_higher_indexes_hides_nothing() {
        let mut proposals = Proposals::default();
        let at = |index, term| LogPosition { index, term };
        for index in 12..=15 {
            proposals.proposed(at(index, 3), smallvec![Token(index)]);
        }
        proposals.proposed(at(12, 5), smallvec![Token(512)]);
        let mut lost = Vec::new();
        assert_eq!(proposals.committed(at(12, 5), &mut lost).to_vec(), vec![Token(512)]);
        lost.sort_unstable();
        assert_eq!(lost, [12, 13, 14, 15].map(Token));
        assert_eq!(proposals.committed(at(13, 5), &mut lost).to_vec(), vec![]);
    }

    /// Its own term's later proposals wait on.
    #[test]
    fn later_proposals_of_the_same_term_stay() {
        let mut proposals = Proposals::default();
        let at = |index, term| LogPosition { index, term };
        proposals.proposed(at(7, 3), smallvec![Token(7)]);
        proposals.proposed(at(8, 3), smallvec![Token(8)]);
        let mut lost = Vec::new();
        assert_eq!(proposals.committed(at(6, 3), &mut lost).to_vec(), vec![]);
        assert_eq!(proposals.committed(at(7, 3), &mut lost).to_vec(), vec![Token(7)]);
        assert_eq!(proposals.committed(at(8, 3), &mut lost).to_vec(), vec![Token(8)]);
        assert_eq!(lost, vec![]);
    }
}
