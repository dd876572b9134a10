//! Messages as they are to leave: what raft-rs 0.7 joins with `batch_append` is cut, and mended where it was joined wrongly.

use super::group::Group;
use ::raft::Storage;
use ::raft::eraftpb::{Entry, Message, MessageType};

/// What an entry weighs in a message, about.
fn weight(entry: &Entry) -> u64 {
    (entry.data.len() + entry.context.len() + 32) as u64
}

/// Cuts an append into messages of at most `most` bytes of entries, or of one entry.
///
/// With `batch_append` raft-rs 0.7 joins as many appends as a follower's window holds into one message, each
/// of them as large as [`append_bytes_max`](super::group::GroupConfig::append_bytes_max) allows: more than a transport takes.
/// It would be dropped, and the follower probed, entry by entry.
fn cut(mut message: Message, most: u64, out: &mut Vec<Message>) {
    if message.get_msg_type() != MessageType::MsgAppend || message.entries.len() < 2 {
        return out.push(message);
    }
    let mut rest: std::collections::VecDeque<Entry> = message.take_entries().into_vec().into();
    loop {
        let mut bytes = 0;
        let fits = rest.iter().take_while(|entry| {
            bytes += weight(entry);
            bytes <= most
        });
        let count = fits.count().max(1);
        if count >= rest.len() {
            message.set_entries(rest.into_iter().collect::<Vec<_>>().into());
            out.push(message);
            return;
        }
        let part: Vec<Entry> = rest.drain(..count).collect();
        let (index, term) = part.last().map_or((0, 0), |entry| (entry.index, entry.term));
        let mut head = message.clone();
        head.set_entries(part.into());
        out.push(head);
        (message.index, message.log_term) = (index, term);
    }
}

/// Whether the entries of an append, if it is one and has any, begin behind its index.
pub(super) fn follows_its_index(message: &Message) -> bool {
    let first = message.entries.first().map(|first| first.index);
    message.get_msg_type() != MessageType::MsgAppend
        || first.is_none_or(|first| first == message.index + 1)
}

impl<S: Storage> Group<S> {
    /// Messages as they are to leave.
    pub(super) fn mend(&mut self, messages: Vec<Message>) -> Vec<Message> {
        // Nearly always: one entry, where it belongs.
        if messages.iter().all(|message| message.entries.len() < 2 && follows_its_index(message)) {
            return messages;
        }
        let mut out = Vec::with_capacity(messages.len());
        for mut message in messages {
            if self.rejoin(&mut message) {
                cut(message, self.config.append_bytes_max, &mut out);
            }
        }
        out
    }

    /// Mends an append that raft-rs 0.7 has joined wrongly; `false`: it cannot be, drop it.
    ///
    /// With `batch_append`, entries are added to an unsent append for the same follower. If that one has no
    /// entries (it only tells the commit index), raft-rs does not look whether the new ones follow its
    /// index; after the follower's next index moved in between (a rejection, an unreachable report) they do
    /// not. A follower that takes such a message acknowledges entries it does not have. Found by seed 1 of
    /// the simulator, see `tests/raft_batch_append.rs`.
    fn rejoin(&mut self, message: &mut Message) -> bool {
        if follows_its_index(message) {
            return true;
        }
        let before = message.entries.first().map_or(0, |first| first.index - 1);
        match self.node().raft.raft_log.term(before) {
            // Of what was compacted away meanwhile raft-rs says that the term is zero: a follower that believed it would have
            // to take this peer for an impostor, and fence itself off (seeds 52472 and 53604 of the regions).
            Ok(0) if before > 0 => false,
            Ok(term) => {
                message.index = before;
                message.log_term = term;
                true
            }
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::GroupConfig;
    use crate::types::PeerId;
    use ::raft::storage::MemStorage;

    #[test]
    fn what_follows_on_entries_that_were_compacted_away_is_not_mended_but_dropped() {
        let entry = |index| Entry { index, term: 3, ..Entry::default() };
        let storage = MemStorage::new_with_conf_state((vec![1, 2, 3], vec![]));
        storage.wl().append(&(1..=20).map(entry).collect::<Vec<_>>()).unwrap();
        storage.wl().mut_hard_state().term = 3;
        storage.wl().mut_hard_state().commit = 20;
        storage.wl().compact(11).unwrap();
        let mut group = Group::new(PeerId(1), &GroupConfig::default(), 12, storage).unwrap();
        // Joined to an append that only told of a commit at 20.
        let mut joined = |first: u64| {
            let mut message = Message { to: 2, index: 20, log_term: 3, ..Message::default() };
            message.set_msg_type(MessageType::MsgAppend);
            message.set_entries(vec![entry(first), entry(first + 1)].into());
            let sent = group.mend(vec![message]);
            sent.first().map(|message| (message.index, message.log_term))
        };
        assert_eq!(joined(15), Some((14, 3)));
        assert_eq!(joined(5), None);
    }
}
