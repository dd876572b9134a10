//! How much new work is let in while the state store is behind: the nearer it is to its limits, the less.
//!
//! A store that takes everything until it is full and then nothing stands still for as long as its largest
//! compaction takes. So writes are slowed down before: from `EASY` runs in level 0 on, or a quarter of what memtables may
//! take, they enter at a rate that falls with the distance to the limit, measured against the rate
//! at which they entered before. Where what comes in equals what goes out the rate stays, without being looked for.
//! So what it is measured by must change steadily: memtables count by what is still to be written of them, not by
//! what they hold, which falls by a whole flush at once.
//!
//! Only proposals are held, where they come from: what is in the log is applied. (RocksDB's write controller
//! slows down writers for the same reasons; its rate is stepped up and down instead.) They wait here rather than being
//! refused: who is told to come again comes later than he could, and behind those who came after him.

use crate::store::Proposal;
use crate::types::Time;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Runs in level 0 that are nothing out of the ordinary: fewer begin a compaction (`LsmOptions::l0_runs`), and more come
/// during it.
const EASY: usize = 16;
/// Runs at which as good as nothing is let in. An ingestion waits for a compaction there (`LsmOptions::late_runs`).
const HARD: usize = 48;
/// Bytes per second that are let in however far behind the store is, unless it has no memory left.
const LEAST: u64 = 1 << 20;
/// The rate of before, while none was measured.
const FIRST: u64 = 64 << 20;
/// However little was asked for before: a node that only followed until now is no slow one.
const LEAST_BEFORE: u64 = 16 << 20;
/// What was not used is kept for so long.
const BURST: Duration = Duration::from_millis(50);
/// And what was overdrawn is paid back in so long.
const DEBT: Duration = Duration::from_secs(1);
/// The rate without limits is measured over this.
const MEASURED: Duration = Duration::from_millis(250);
const ALL: u64 = u64::MAX;

/// Client batches for one store loop that came together.
#[derive(Debug)]
pub struct Parcel {
    /// Whose loop.
    pub at: usize,
    /// When they came.
    pub since: Time,
    /// After it nobody waits for them any more.
    pub deadline: Time,
    /// What they weigh.
    pub bytes: usize,
    /// The batches.
    pub proposals: Vec<Proposal>,
}

/// What becomes of a parcel.
#[derive(Debug)]
pub enum Entry {
    /// It may enter.
    Now(Parcel),
    /// It waits, and others wait before it.
    Later,
    /// It waits as the first one: somebody must [look](Admission::release) from now on.
    First,
    /// Too much waits already.
    Refused(Parcel),
}

/// What becomes of those that waited.
#[derive(Debug)]
pub struct Released {
    /// They may enter.
    pub enter: Vec<Parcel>,
    /// Their time was over before.
    pub late: Vec<Parcel>,
    /// Whether others wait on.
    pub more: bool,
}

/// The gate.
///
/// * While the store keeps up nothing is limited, and what enters is counted.
/// * `rate` is bytes per second; zero only while memtables have passed their limit.
/// * While anything waits, what comes waits behind it. To `waiting_max` bytes nothing is added; a first one always fits.
#[derive(Debug)]
pub struct Admission {
    rate: AtomicU64,
    entered: AtomicU64,
    /// Bytes in `line`: written under its lock.
    waiting: AtomicU64,
    waiting_max: u64,
    line: Mutex<Line>,
    measure: Mutex<Measure>,
}

#[derive(Debug)]
struct Line {
    parcels: VecDeque<Parcel>,
    bucket: Bucket,
}

#[derive(Debug)]
struct Bucket {
    /// May be overdrawn by what is handed over at once.
    bytes: i64,
    filled: Time,
}

#[derive(Debug)]
struct Measure {
    since: Time,
    entered: u64,
    /// Bytes per second while nothing was limited: falls slowly, for quiet times say nothing of what can be.
    free: u64,
}

impl Admission {
    /// Everything is let in; so many bytes may wait when it is not.
    pub fn new(now: Time, waiting_max: usize) -> Admission {
        let bucket = Bucket { bytes: 0, filled: now };
        Admission {
            rate: AtomicU64::new(ALL),
            entered: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            waiting_max: waiting_max as u64,
            line: Mutex::new(Line { parcels: VecDeque::new(), bucket }),
            measure: Mutex::new(Measure { since: now, entered: 0, free: FIRST }),
        }
    }

    /// A parcel comes.
    pub fn come(&self, now: Time, parcel: Parcel) -> Entry {
        let (rate, bytes) = (self.rate.load(Relaxed), parcel.bytes as u64);
        if rate != ALL || self.waiting.load(Relaxed) > 0 {
            let mut line = self.line.lock();
            let first = line.parcels.is_empty();
            let free = first && (rate == ALL || line.bucket.take(now, rate, bytes));
            if !free && !first && self.waiting.load(Relaxed) + bytes > self.waiting_max {
                // Those whom nobody waits for any more, who has been told, take no room from others.
                line.parcels.retain(|parcel| parcel.deadline > now);
                let waiting = line.parcels.iter().map(|parcel| parcel.bytes as u64).sum();
                self.waiting.store(waiting, Relaxed);
                if waiting + bytes > self.waiting_max {
                    return Entry::Refused(parcel);
                }
            }
            if !free {
                self.waiting.fetch_add(bytes, Relaxed);
                line.parcels.push_back(parcel);
                return if first { Entry::First } else { Entry::Later };
            }
        }
        self.entered.fetch_add(bytes, Relaxed);
        Entry::Now(parcel)
    }

    /// Those that waited and may enter by now.
    pub fn release(&self, now: Time) -> Released {
        let rate = self.rate.load(Relaxed);
        let (mut enter, mut late_ones) = (Vec::new(), Vec::new());
        let mut line = self.line.lock();
        let Line { parcels, bucket } = &mut *line;
        while let Some(first) = parcels.front() {
            let (bytes, late) = (first.bytes as u64, first.deadline <= now);
            if !late && rate != ALL && !bucket.take(now, rate, bytes) {
                break;
            }
            self.waiting.fetch_sub(bytes, Relaxed);
            if late {
                late_ones.extend(parcels.pop_front());
            } else {
                self.entered.fetch_add(bytes, Relaxed);
                enter.extend(parcels.pop_front());
            }
        }
        Released { enter, late: late_ones, more: !parcels.is_empty() }
    }

    /// Takes all out that wait.
    pub fn clear(&self) -> Vec<Parcel> {
        let mut line = self.line.lock();
        self.waiting.store(0, Relaxed);
        std::mem::take(&mut line.parcels).into()
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Relaxed)
    }

    /// Whether anything is held back.
    pub fn is_limited(&self) -> bool {
        self.rate.load(Relaxed) != ALL
    }

    /// How far behind the store is: runs in level 0, bytes still to be flushed, and bytes in memtables of those that they
    /// may take.
    pub fn adjust(&self, now: Time, runs: usize, unflushed: u64, memtables: u64, max: u64) {
        // Who finds it taken is told the same in a moment.
        let Some(mut measure) = self.measure.try_lock() else { return };
        let strain = strain(runs, unflushed, max);
        let rate = match strain <= 0.0 {
            true => {
                measure.look(now, self.entered.load(Relaxed));
                ALL
            }
            false => {
                measure.restart(now, self.entered.load(Relaxed));
                let rate = (measure.free as f64 * (1.0 - strain).max(0.0)) as u64;
                if memtables > max { 0 } else { rate.max(LEAST) }
            }
        };
        self.rate.store(rate, Relaxed);
    }
}

/// 0: keeps up; 1: at its limit. A flush frees its memory at its end, when as much has come again: so half of what
/// memtables may take is all that may wait for it.
fn strain(runs: usize, unflushed: u64, max: u64) -> f64 {
    let by_runs = (runs as f64 - EASY as f64) / (HARD - EASY) as f64;
    let quarter = (max / 4).max(1) as f64;
    let by_bytes = (unflushed as f64 - quarter) / quarter;
    by_runs.max(by_bytes)
}

impl Bucket {
    fn take(&mut self, now: Time, rate: u64, bytes: u64) -> bool {
        let earned = |time: Duration| (rate as f64 * time.as_secs_f64()) as i64;
        let most = earned(BURST);
        self.bytes = self.bytes.saturating_add(earned(now.since(self.filled))).min(most);
        self.filled = now;
        let enough = self.bytes > 0;
        if enough {
            // Whoever hands over much is let in whole, and does not shut the others out for long.
            self.bytes = (self.bytes - bytes as i64).max(-earned(DEBT));
        }
        enough
    }
}

impl Measure {
    fn look(&mut self, now: Time, entered: u64) {
        let passed = now.since(self.since);
        if passed < MEASURED {
            return;
        }
        let rate = ((entered - self.entered) as f64 / passed.as_secs_f64()) as u64;
        self.free = rate.max(self.free - self.free / 64).max(LEAST_BEFORE);
        (self.since, self.entered) = (now, entered);
    }

    fn restart(&mut self, now: Time, entered: u64) {
        (self.since, self.entered) = (now, entered);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u64 = 256 << 20;

    fn after(ms: u64) -> Time {
        Time(0).after(Duration::from_millis(ms))
    }

    fn parcel(since: Time, bytes: usize) -> Parcel {
        Parcel {
            at: 0,
            since,
            deadline: since.after(Duration::from_secs(5)),
            bytes,
            proposals: vec![],
        }
    }

    /// Bytes that enter between two times when 1 KiB is offered every 10 us, and nothing waits.
    fn entered(gate: &Admission, from: u64, to: u64) -> usize {
        gate.clear();
        let times = (from * 100..to * 100).map(|at| Time(0).after(Duration::from_micros(at * 10)));
        let enters = |now: &Time| match gate.come(*now, parcel(*now, 1 << 10)) {
            Entry::Now(_) => true,
            _ => {
                gate.clear();
                false
            }
        };
        times.filter(enters).count() << 10
    }

    fn gate() -> Admission {
        Admission::new(Time(0), 16 << 10)
    }

    #[test]
    fn nothing_is_held_while_the_store_keeps_up() {
        let gate = gate();
        gate.adjust(after(1), EASY, MAX / 4, MAX / 2, MAX);
        assert_eq!(entered(&gate, 1, 100), 9900 << 10);
        assert!(!gate.is_limited());
    }

    #[test]
    fn the_further_behind_the_less_enters_and_never_nothing_before_memory_ends() {
        let gate = gate();
        // 100 MiB/s are offered and enter.
        for ms in (0..2000).step_by(100) {
            entered(&gate, ms, ms + 100);
            gate.adjust(after(ms + 100), 0, 0, 0, MAX);
        }
        let mut last = usize::MAX;
        for runs in [EASY + 2, EASY + 10, EASY + 30, HARD + 5] {
            gate.adjust(after(2000), runs, 0, 0, MAX);
            let from = 10_000 + runs as u64 * 1000;
            let bytes = entered(&gate, from, from + 1000);
            assert!(bytes < last && bytes > LEAST as usize / 2, "{runs}: {bytes}");
            last = bytes;
        }
        gate.adjust(after(60_000), 0, MAX / 2, MAX + 1, MAX);
        assert!(entered(&gate, 70_000, 70_100) <= 5 << 20 && entered(&gate, 71_000, 71_010) == 0);
        gate.adjust(after(80_000), 0, 0, 0, MAX);
        assert_eq!(entered(&gate, 80_000, 80_001), 100 << 10, "at once, when there is room again");
    }

    #[test]
    fn those_that_wait_enter_in_their_order_and_before_any_other() {
        let gate = gate();
        gate.adjust(after(1), 0, MAX / 2, MAX + 1, MAX);
        let come = |ms: u64, bytes: usize| gate.come(after(ms), parcel(after(ms), bytes));
        assert!(matches!(come(1, 4096), Entry::First));
        assert!(matches!(come(2, 8192), Entry::Later));
        assert!(matches!(come(3, 8192), Entry::Refused(_)), "so many bytes wait, and no more");
        assert!(matches!(come(4000, 4096), Entry::Later));
        assert_eq!(gate.waiting(), 16 << 10);
        let released = gate.release(after(4000));
        assert!(released.enter.is_empty() && released.late.is_empty() && released.more);
        // The store has caught up. Nobody waits any more for the first one.
        gate.adjust(after(5001), 0, 0, 0, MAX);
        assert!(matches!(come(5001, 0), Entry::Later), "behind those that wait");
        let released = gate.release(after(5001));
        assert!(!released.more && gate.waiting() == 0);
        let since = |parcels: &[Parcel]| parcels.iter().map(|one| one.since).collect::<Vec<_>>();
        assert_eq!(since(&released.late), [after(1)]);
        assert_eq!(since(&released.enter), [after(2), after(4000), after(5001)]);
        assert!(matches!(come(5002, 1), Entry::Now(_)));
    }

    #[test]
    fn a_first_one_always_fits_and_those_whose_time_is_over_take_no_room() {
        let gate = gate();
        gate.adjust(after(1), 0, MAX / 2, MAX + 1, MAX);
        assert!(matches!(gate.come(after(1), parcel(after(1), 1 << 20)), Entry::First));
        assert!(matches!(gate.come(after(2), parcel(after(2), 1)), Entry::Refused(_)));
        assert!(matches!(gate.come(after(5001), parcel(after(5001), 1)), Entry::Later));
        assert_eq!(gate.waiting(), 1);
    }

    #[test]
    fn they_enter_at_the_rate() {
        let gate = Admission::new(Time(0), 1 << 30);
        gate.adjust(after(1), HARD + 1, 0, 0, MAX);
        for _ in 0..3000 {
            gate.come(after(1), parcel(after(1), 1 << 10));
        }
        let mut bytes = 0;
        for ms in 1..1001 {
            bytes += gate.release(after(ms)).enter.len() << 10;
        }
        assert!(bytes.abs_diff(LEAST as usize) < LEAST as usize / 8, "{bytes}");
    }
}
