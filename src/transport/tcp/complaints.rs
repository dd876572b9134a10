//! Warnings about those who dial us, bounded: what strangers send must not fill a disk with log lines.

use super::super::payload::Reason;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// So many lines of one kind are written in one [`WINDOW`].
const LINES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(1);

/// What a warning is about. Each has its own allowance: a flood of one does not hide another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Complaint {
    /// The listener cannot accept.
    Accept,
    /// A connection too many.
    Crowded,
    /// A handshake refused.
    Refused(Reason),
    /// A connection closed for what came on it.
    Closed,
    /// A connection closed because its answers are not read.
    Unread,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    said: u32,
    left_out: u64,
}

/// Who decides which warnings are written.
///
/// * Lines left out are counted and told with the next line of their kind. If none follows they are told
///   nowhere in the log; the transport's counters hold every refusal.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    windows: Mutex<BTreeMap<Complaint, Window>>,
}

impl Complaints {
    /// Whether to write a line now: if so, how many of its kind were left out since the last one.
    pub(super) fn may_say(&self, about: Complaint) -> Option<u64> {
        self.may_say_at(about, Instant::now())
    }

    fn may_say_at(&self, about: Complaint, now: Instant) -> Option<u64> {
        let mut windows = self.windows.lock();
        let window = windows.entry(about).or_insert(Window { began: now, said: 0, left_out: 0 });
        if now >= window.began + WINDOW {
            (window.began, window.said) = (now, 0);
        }
        if window.said == LINES {
            window.left_out += 1;
            return None;
        }
        window.said += 1;
        Some(std::mem::take(&mut window.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_counted_and_hides_nothing_else() {
        let complaints = Complaints::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let malformed = Complaint::Refused(Reason::Malformed);
        for i in 0..500 {
            let said = complaints.may_say_at(malformed, at(i));
            assert_eq!(said, (i < u64::from(LINES)).then_some(0), "{i}");
        }
        assert_eq!(complaints.may_say_at(Complaint::Refused(Reason::Silent), at(500)), Some(0));
        assert_eq!(complaints.may_say_at(Complaint::Closed, at(500)), Some(0));
        // A new second: the first line tells what was left out, once.
        assert_eq!(complaints.may_say_at(malformed, at(1000)), Some(490));
        assert_eq!(complaints.may_say_at(malformed, at(1001)), Some(0));
    }
}
