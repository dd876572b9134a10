//! How much new work is let in while the state store is behind: the nearer it is to its limits, the less.
//!
//! A store that takes everything until it is full and then nothing stands still for as long as its largest
//! compaction takes. So writes are slowed down before: from `EASY` runs in level 0 on, or half of what memtables may
//! take, they enter at a rate that falls with the square of the distance to the limit, measured against the rate
//! at which they entered before. Where what comes in equals what goes out the rate stays, without being looked for.
//!
//! Only proposals are held, where they come from: what is in the log is applied. (RocksDB's write controller
//! slows down writers for the same reasons; its rate is stepped up and down instead.)

use crate::types::Time;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Runs in level 0 that are nothing out of the ordinary: as many begin a compaction, and more come during it.
const EASY: usize = 10;
/// Runs at which as good as nothing is let in. An ingestion waits for a compaction at a few more.
const HARD: usize = 22;
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

/// The gate.
///
/// * While the store keeps up nothing is limited, and what enters is counted.
/// * `rate` is bytes per second; zero only while memtables have passed their limit.
#[derive(Debug)]
pub struct Admission {
    rate: AtomicU64,
    entered: AtomicU64,
    bucket: Mutex<Bucket>,
    measure: Mutex<Measure>,
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
    /// Everything is let in.
    pub fn new(now: Time) -> Admission {
        Admission {
            rate: AtomicU64::new(ALL),
            entered: AtomicU64::new(0),
            bucket: Mutex::new(Bucket { bytes: 0, filled: now }),
            measure: Mutex::new(Measure { since: now, entered: 0, free: FIRST }),
        }
    }

    /// Whether batches of so many bytes may enter.
    pub fn admits(&self, now: Time, bytes: usize) -> bool {
        let rate = self.rate.load(Relaxed);
        if rate != ALL && !self.bucket.lock().take(now, rate, bytes) {
            return false;
        }
        self.entered.fetch_add(bytes as u64, Relaxed);
        true
    }

    /// Whether anything is held back.
    pub fn is_limited(&self) -> bool {
        self.rate.load(Relaxed) != ALL
    }

    /// How far behind the store is: runs in level 0, and bytes in memtables of those that they may take.
    pub fn adjust(&self, now: Time, runs: usize, memtables: u64, memtables_max: u64) {
        // Who finds it taken is told the same in a moment.
        let Some(mut measure) = self.measure.try_lock() else { return };
        let strain = strain(runs, memtables, memtables_max);
        let rate = match strain <= 0.0 {
            true => {
                measure.look(now, self.entered.load(Relaxed));
                ALL
            }
            false => {
                measure.restart(now, self.entered.load(Relaxed));
                let left = (1.0 - strain).max(0.0);
                let rate = (measure.free as f64 * left * left) as u64;
                if memtables > memtables_max { 0 } else { rate.max(LEAST) }
            }
        };
        self.rate.store(rate, Relaxed);
    }
}

/// 0: keeps up; 1: at its limit.
fn strain(runs: usize, memtables: u64, memtables_max: u64) -> f64 {
    let by_runs = (runs as f64 - EASY as f64) / (HARD - EASY) as f64;
    let half = (memtables_max / 2).max(1) as f64;
    let by_bytes = (memtables as f64 - half) / half;
    by_runs.max(by_bytes)
}

impl Bucket {
    fn take(&mut self, now: Time, rate: u64, bytes: usize) -> bool {
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

    /// Bytes that enter between two times when 1 KiB is offered every 10 us.
    fn entered(gate: &Admission, from: u64, to: u64) -> usize {
        let times = (from * 100..to * 100).map(|at| Time(0).after(Duration::from_micros(at * 10)));
        times.filter(|now| gate.admits(*now, 1 << 10)).count() << 10
    }

    #[test]
    fn nothing_is_held_while_the_store_keeps_up() {
        let gate = Admission::new(Time(0));
        gate.adjust(after(1), EASY, MAX / 2, MAX);
        assert_eq!(entered(&gate, 1, 100), 9900 << 10);
        assert!(!gate.is_limited());
    }

    #[test]
    fn the_further_behind_the_less_enters_and_never_nothing_before_memory_ends() {
        let gate = Admission::new(Time(0));
        // 100 MiB/s are offered and enter.
        for ms in (0..2000).step_by(100) {
            entered(&gate, ms, ms + 100);
            gate.adjust(after(ms + 100), 0, 0, MAX);
        }
        let mut last = usize::MAX;
        for runs in [EASY + 2, EASY + 4, EASY + 8, HARD + 5] {
            gate.adjust(after(2000), runs, 0, MAX);
            let from = 10_000 + runs as u64 * 1000;
            let bytes = entered(&gate, from, from + 1000);
            assert!(bytes < last && bytes > LEAST as usize / 2, "{runs}: {bytes}");
            last = bytes;
        }
        gate.adjust(after(60_000), 0, MAX + 1, MAX);
        assert!(entered(&gate, 70_000, 70_100) <= 5 << 20 && !gate.admits(after(71_000), 1));
        gate.adjust(after(80_000), 0, 0, MAX);
        assert!(gate.admits(after(80_000), 1 << 30), "at once, when there is room again");
    }
}
