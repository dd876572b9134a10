//! When followers hear what is committed.
//!
//! By itself raft-rs sends every follower an empty append with each commit: half of all messages where entries come one
//! by one, and each of them costs both sides a round. Here that is off (as in TiKV). The commit index goes along with the
//! next append or heartbeat, which a busy group sends anyway, and with the word to sleep, which is what a quiet one says next
//! (`region::hibernate`); one that may not sleep says it once, at a tick.
//! Where somebody waits for a follower to apply, it is said at once: on behalf of a follower's read, and when
//! a change of the region's shape has been applied here (see `region::ready`). While a change of the
//! configuration is pending raft-rs tells every commit.
//!
//! Nothing rests on a follower's knowing early, for the message may be lost: a group sleeps only when all are known to
//! know, a read waits for what its round found.

use super::group::Group;
use ::raft::{StateRole, Storage};

impl<S: Storage> Group<S> {
    /// A leader tells its followers what is committed, unless it has told them.
    pub fn tell_commit(&mut self) {
        let Some(node) = &mut self.node else { return };
        let raft = &mut node.raft;
        let committed = raft.raft_log.committed;
        if raft.state == StateRole::Leader && (raft.term, committed) != self.told {
            self.told = (raft.term, committed);
            raft.bcast_append();
        }
    }

    /// Unless an append is under way, which will be followed by another.
    pub fn tell_commit_if_quiet(&mut self) {
        let Some(node) = &self.node else { return };
        let log = &node.raft.raft_log;
        if log.committed == log.last_index() {
            self.tell_commit();
        }
    }
}
