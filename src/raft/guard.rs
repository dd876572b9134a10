//! Refuses messages on which raft-rs 0.7 would panic, and with it every region of the process.
//!
//! raft-rs trusts its peers: it stops the process on a commit beyond the log's end, on a conflict with
//! a committed entry, on a snapshot with an inconsistent configuration. An innocent wiped or restored
//! peer can send such messages. A violation fences the one region ([`Verdict::Violation`]); a message
//! that is merely stale or not for us is dropped ([`Verdict::Drop`]).

use ::raft::eraftpb::{Message, MessageType};

/// What the guard knows of the group a message is for.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The local peer's raft id.
    pub id: u64,
    /// Its term.
    pub term: u64,
    /// Whether it leads.
    pub leads: bool,
    /// Its commit index.
    pub committed: u64,
    /// The last index of its log.
    pub last_index: u64,
    /// Term of an index of its log, `None` where unknown (compacted or beyond the end).
    pub term_of: &'a dyn Fn(u64) -> Option<u64>,
}

/// What to do with a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Safe to step.
    Step,
    /// Stale or not for this peer: ignore it.
    Drop,
    /// No correct peer sends this to a correct peer: fence the region.
    Violation(String),
}

/// Terms above this are not reached by elections in any lifetime; raft-rs adds to terms unchecked.
const TERM_MAX: u64 = u64::MAX >> 1;

fn violation(message: &Message, what: &str) -> Verdict {
    Verdict::Violation(format!(
        "{:?} from {} at term {}: {what}",
        message.get_msg_type(),
        message.from,
        message.term
    ))
}

/// Judges one message against the group's state.
pub fn check(view: &View<'_>, m: &Message) -> Verdict {
    if m.to != view.id || m.from == 0 || m.from == view.id {
        return Verdict::Drop;
    }
    if m.term > TERM_MAX {
        return Verdict::Drop; // whoever counted that far must not draw others after it
    }
    match m.get_msg_type() {
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum
        | MessageType::MsgPropose
        | MessageType::MsgTransferLeader => violation(m, "never crosses the network"),
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp if m.entries.len() != 1 => {
            violation(m, "carries exactly one context")
        }
        // raft-rs takes term 0 for "local"; read requests alone carry it, and must: a follower that passes
        // one with a term on stops the process.
        MessageType::MsgReadIndex if m.term != 0 => violation(m, "a read request has no term"),
        MessageType::MsgReadIndex => Verdict::Step,
        _ if m.term == 0 => violation(m, "term 0"),
        MessageType::MsgAppend => check_append(view, m),
        MessageType::MsgHeartbeat if m.term >= view.term && m.commit > view.last_index => {
            violation(m, &format!("commit {} beyond last index {}", m.commit, view.last_index))
        }
        MessageType::MsgAppendResponse
            if view.leads && m.term == view.term && !m.reject && m.index > view.last_index =>
        {
            violation(m, &format!("acknowledges {} beyond {}", m.index, view.last_index))
        }
        MessageType::MsgSnapshot => check_snapshot(view, m),
        _ => Verdict::Step,
    }
}

fn check_append(view: &View<'_>, m: &Message) -> Verdict {
    if m.term < view.term {
        return Verdict::Step; // raft-rs answers it so that the sender learns the term
    }
    if view.leads && m.term == view.term {
        return violation(m, "a second leader in one term");
    }
    // raft-rs answers "term 0" for every index that it does not have, and would find it to match.
    if m.log_term == 0 && m.index > 0 {
        return violation(m, "follows an entry of term 0");
    }
    let Some(mut expected) = m.index.checked_add(1).filter(|next| *next < u64::MAX >> 1) else {
        return violation(m, "index out of range");
    };
    let mut term = m.log_term;
    for entry in &m.entries {
        if entry.index != expected || entry.term < term || entry.term > m.term {
            return violation(
                m,
                &format!(
                    "entry {} at term {} out of order: after {} at term {}, expected {expected}, {} entries",
                    entry.index,
                    entry.term,
                    m.index,
                    m.log_term,
                    m.entries.len()
                ),
            );
        }
        if entry.index <= view.committed
            && (view.term_of)(entry.index).is_some_and(|own| own != entry.term)
        {
            return violation(m, &format!("conflicts with committed entry {}", entry.index));
        }
        expected += 1;
        term = entry.term;
    }
    Verdict::Step
}

fn check_snapshot(view: &View<'_>, m: &Message) -> Verdict {
    if m.term < view.term {
        return Verdict::Drop;
    }
    if view.leads && m.term == view.term {
        return violation(m, "a second leader in one term");
    }
    let meta = m.get_snapshot().get_metadata();
    let conf = meta.get_conf_state();
    if meta.index == 0 || meta.index > u64::MAX >> 1 || meta.term == 0 || meta.term > m.term {
        return violation(m, "position out of range");
    }
    if conf.voters.is_empty() || conf.auto_leave {
        return violation(m, "not a configuration of ours");
    }
    // Nobody twice in the new half; in the old half nobody twice, no learner, and all who are to be learners.
    let new = [&conf.voters[..], &conf.learners, &conf.learners_next].concat();
    let old = [&conf.voters_outgoing[..], &conf.learners].concat();
    if !distinct(new) || !distinct(old.clone()) {
        return violation(m, "a peer stands in the configuration twice");
    }
    if conf.learners_next.iter().any(|id| !conf.voters_outgoing.contains(id)) {
        return violation(m, "who is demoted did not vote");
    }
    if !conf.voters.contains(&view.id) && !old.contains(&view.id) {
        return Verdict::Drop; // removed, and has not heard of it
    }
    Verdict::Step
}

fn distinct(mut ids: Vec<u64>) -> bool {
    ids.sort_unstable();
    ids.windows(2).all(|pair| pair[0] != pair[1]) && ids.first() != Some(&0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::raft::eraftpb::Entry;

    fn view<'a>(term_of: &'a dyn Fn(u64) -> Option<u64>) -> View<'a> {
        View { id: 1, term: 7, leads: false, committed: 20, last_index: 25, term_of }
    }

    fn message(kind: MessageType, change: impl FnOnce(&mut Message)) -> Message {
        let mut m = Message { to: 1, from: 2, term: 7, ..Default::default() };
        m.set_msg_type(kind);
        change(&mut m);
        m
    }

    fn is_violation(m: &Message) -> bool {
        matches!(check(&view(&|_| Some(7)), m), Verdict::Violation(_))
    }

    #[test]
    fn heartbeat_beyond_the_log_is_refused() {
        assert!(is_violation(&message(MessageType::MsgHeartbeat, |m| m.commit = 26)));
        assert!(!is_violation(&message(MessageType::MsgHeartbeat, |m| m.commit = 25)));
    }

    #[test]
    fn append_that_rewrites_committed_entries_is_refused() {
        let entry = |index, term| Entry { index, term, ..Default::default() };
        let append = |index, entries: Vec<Entry>| {
            message(MessageType::MsgAppend, |m| {
                m.index = index;
                m.log_term = 6;
                m.entries = entries.into();
            })
        };
        let terms = |i: u64| Some(if i <= 20 { 6 } else { 7 });
        let judge = |m: &Message| check(&view(&terms), m);
        assert!(matches!(judge(&append(18, vec![entry(19, 7)])), Verdict::Violation(_)));
        assert_eq!(judge(&append(19, vec![entry(20, 6), entry(21, 7)])), Verdict::Step);
        assert!(matches!(judge(&append(20, vec![entry(22, 7)])), Verdict::Violation(_)), "a gap");
        assert!(matches!(judge(&append(20, vec![entry(21, 8)])), Verdict::Violation(_)), "term");
    }

    #[test]
    fn snapshots_need_a_sound_configuration_with_us_in_it() {
        let snapshot = |voters: Vec<u64>| {
            message(MessageType::MsgSnapshot, |m| {
                let meta = m.mut_snapshot().mut_metadata();
                meta.index = 30;
                meta.term = 6;
                meta.mut_conf_state().voters = voters;
            })
        };
        assert!(!is_violation(&snapshot(vec![1, 2, 3])));
        let without = snapshot(vec![2, 3]);
        assert_eq!(check(&view(&|_| None), &without), Verdict::Drop, "removed meanwhile");
        assert!(is_violation(&snapshot(vec![1, 1, 3])));
        assert!(is_violation(&snapshot(vec![])));
        let joint = |outgoing: Vec<u64>, learners: Vec<u64>, next: Vec<u64>| {
            let mut m = snapshot(vec![1, 2, 3]);
            let conf = m.mut_snapshot().mut_metadata().mut_conf_state();
            conf.voters_outgoing = outgoing;
            conf.learners = learners;
            conf.learners_next = next;
            m
        };
        assert!(!is_violation(&joint(vec![1, 2, 4], vec![5], vec![4])));
        assert!(is_violation(&joint(vec![1, 2, 4], vec![4], vec![])), "votes and listens");
        assert!(is_violation(&joint(vec![1, 2, 4], vec![], vec![3])), "stays a voter");
        assert!(is_violation(&joint(vec![1, 2], vec![], vec![4])), "never voted");
        assert!(is_violation(&joint(vec![1, 1], vec![], vec![])));
    }

    #[test]
    fn local_kinds_and_absurd_terms_are_refused() {
        assert!(is_violation(&message(MessageType::MsgPropose, |_| {})));
        assert!(is_violation(&message(MessageType::MsgHup, |_| {})));
        let absurd = message(MessageType::MsgHeartbeat, |m| m.term = u64::MAX);
        assert_eq!(check(&view(&|_| None), &absurd), Verdict::Drop);
        assert!(is_violation(&message(MessageType::MsgAppend, |m| m.term = 0)));
        let stray = message(MessageType::MsgHeartbeat, |m| m.to = 9);
        assert_eq!(check(&view(&|_| None), &stray), Verdict::Drop);
    }
}
