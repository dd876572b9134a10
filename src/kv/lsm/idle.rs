//! Compaction of level 0 while little is written.
//!
//! Under load a compaction waits until level 0 has `l0_runs` runs, for that writes least. What is left when writing stops
//! would stay for ever, and every read looks into all of it. So level 0 is compacted from fewer runs on
//! ([`MIN_RUNS`]) once these hold:
//!
//! * *It is quiet*: nothing was ingested for [`LsmOptions::idle_after`](super::LsmOptions), and for longer the more there is
//!   to write: a load that merely paused is back before a long job is worth beginning.
//! * *It is paid for*: of each byte ingested [`CREDIT`] bytes may be written by such compactions. So a trickle
//!   of small flushes does not rewrite a large level again and again; it waits until it is some fraction of that level.
//! * There is room on the disk for twice of what it writes: this can be left undone.
//!
//! Such a compaction is never in the way of an ordinary one: when level 0 reaches `l0_runs` runs after all it gives way
//! (see [`Brake`]), and the ordinary one begins as if there had been none.

use super::trickle::Trickle;
use lsm_tree::compaction::filter::{CompactionFilter, Context, Factory, ItemAccessor, Verdict};
use parking_lot::Mutex;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Fewer runs than this are left as they are.
pub(super) const MIN_RUNS: usize = 2;
/// Bytes that may be written, for each byte ingested. With 4, level 0 is compacted when it is a third of the level beneath.
const CREDIT: u64 = 4;
/// The quiet is longer by the time in which so many bytes are written: about a quarter of what the job takes.
const QUIET_BYTES_PER_S: f64 = 400e6;

/// Level 0, and the level that it would be merged with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    /// Runs of level 0.
    pub runs: usize,
    /// Bytes of level 0.
    pub bytes: u64,
    /// The level to merge into: the first that is not empty, or the one above if that is full.
    pub target: u8,
    /// Bytes of that level, all of which are written again.
    pub beneath: u64,
}

impl Shape {
    /// Of the levels' sizes in bytes, level 0 first. The highest level of several may hold `full` bytes.
    pub fn of(runs: usize, levels: &[u64], full: u64) -> Shape {
        let bytes = levels.first().copied().unwrap_or(0);
        let last = levels.len().saturating_sub(1);
        let first = (1..last).find(|at| levels[*at] > 0).unwrap_or(last);
        let beneath = levels.get(first).copied().unwrap_or(0);
        // The crate's strategy makes a new level then, too.
        let (target, beneath) =
            if beneath > full && first > 1 { (first - 1, 0) } else { (first, beneath) };
        Shape { runs, bytes, target: target as u8, beneath }
    }

    /// Bytes that a compaction reads, and at most writes.
    pub fn cost(&self) -> u64 {
        self.bytes + self.beneath
    }
}

/// When to compact although nothing urges it.
#[derive(Debug)]
pub(super) struct Idle {
    after: Duration,
    credit_max: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ingested_at: Instant,
    /// Bytes that may be written.
    credit: u64,
}

impl Idle {
    /// For tables whose level 0 holds so many bytes. What a load of any length leaves over pays for `job_bytes` at most,
    /// times [`CREDIT`].
    pub fn new(after: Duration, level0: u64, job_bytes: u64, now: Instant) -> Idle {
        let credit_max = job_bytes.saturating_mul(CREDIT);
        let credit = level0.saturating_mul(CREDIT).min(credit_max);
        Idle { after, credit_max, state: Mutex::new(State { ingested_at: now, credit }) }
    }

    /// So many bytes were ingested.
    pub fn ingested(&self, bytes: u64, now: Instant) {
        let mut state = self.state.lock();
        state.ingested_at = now;
        let credit = state.credit.saturating_add(bytes.saturating_mul(CREDIT));
        state.credit = credit.min(self.credit_max);
    }

    /// Whether a compaction will come if nothing else is ingested.
    pub fn pending(&self, shape: Shape) -> bool {
        shape.runs >= MIN_RUNS
            && shape.cost() <= self.state.lock().credit
            && self.after < Duration::MAX
    }

    /// Whether one is to begin now.
    pub fn due(&self, shape: Shape, now: Instant) -> bool {
        let needed = Duration::from_secs_f64(shape.cost() as f64 / QUIET_BYTES_PER_S);
        let quiet = now.saturating_duration_since(self.state.lock().ingested_at);
        self.pending(shape) && quiet >= self.after.saturating_add(needed)
    }

    /// One begins: it costs whether or not it comes to its end.
    pub fn begins(&self, shape: Shape) {
        let mut state = self.state.lock();
        state.credit = state.credit.saturating_sub(shape.cost());
    }
}

/// Stops compactions under way, at the next entry: a filter that keeps everything or fails.
#[derive(Default, Debug)]
pub(super) struct Brake {
    halted: AtomicBool,
    /// Whether the compaction under way is one of the idle: the others give way to nobody.
    idle: AtomicBool,
    give_way: AtomicBool,
}

/// Entries of a compaction whose bytes are counted at once.
const PIECE: u32 = 256;

impl Brake {
    /// While halted, whatever compacts ends, and nothing begins.
    pub fn set_halted(&self, halted: bool) {
        self.halted.store(halted, Relaxed);
    }

    pub fn is_halted(&self) -> bool {
        self.halted.load(Relaxed)
    }

    /// A compaction of the idle begins, or has ended.
    pub fn set_idle(&self, idle: bool) {
        self.give_way.store(false, Relaxed);
        self.idle.store(idle, Relaxed);
    }

    /// An ordinary compaction is due: one of the idle ends.
    pub fn give_way(&self) {
        self.give_way.store(true, Relaxed);
    }

    fn is_on(&self) -> bool {
        self.halted.load(Relaxed) || (self.idle.load(Relaxed) && self.give_way.load(Relaxed))
    }

    /// Whether a compaction that ended with this error was stopped by the brake.
    pub fn has_stopped(&self, error: &lsm_tree::Error) -> bool {
        self.is_on()
            && matches!(error, lsm_tree::Error::Io(error) if error.kind() == ErrorKind::Interrupted)
    }
}

/// Makes the filters.
pub(super) struct Brakes {
    pub brake: Arc<Brake>,
    /// The directory that tables are written into.
    pub tables: PathBuf,
}

impl Factory for Brakes {
    fn name(&self) -> &str {
        "brake"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        let (brake, trickle) = (Arc::clone(&self.brake), Trickle::into(&self.tables));
        Box::new(Braked { brake, trickle, entries: 0 })
    }
}

/// A compaction under way.
struct Braked {
    brake: Arc<Brake>,
    trickle: Trickle,
    entries: u32,
}

impl CompactionFilter for Braked {
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> lsm_tree::Result<Verdict> {
        self.entries = self.entries.wrapping_add(1);
        if self.entries.is_multiple_of(PIECE) {
            // One stands for all: it need not be exact.
            let bytes = item.key().len() + item.value().map_or(0, |value| value.len());
            self.trickle.wrote(bytes as u64 * u64::from(PIECE));
        }
        match self.brake.is_on() {
            true => Err(std::io::Error::new(ErrorKind::Interrupted, "gives way").into()),
            false => Ok(Verdict::Keep),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const RUN: u64 = 64 * MIB;
    const FULL: u64 = 12 * RUN;
    const AFTER: Duration = Duration::from_secs(1);

    /// Levels as the tables keep them, and what it costs.
    struct Levels {
        idle: Idle,
        at: Instant,
        runs: usize,
        sizes: [u64; 7],
        ingested: u64,
        rewritten: u64,
    }

    impl Levels {
        fn new(last: u64) -> Levels {
            let at = Instant::now();
            let sizes = [0, 0, 0, 0, 0, 0, last];
            Levels {
                idle: Idle::new(AFTER, 0, FULL, at),
                at,
                runs: 0,
                sizes,
                ingested: 0,
                rewritten: 0,
            }
        }

        fn ingest(&mut self, bytes: u64) {
            self.sizes[0] += bytes;
            self.runs += 1;
            self.ingested += bytes;
            self.idle.ingested(bytes, self.at);
            if self.runs == 12 {
                self.merge();
            }
        }

        fn merge(&mut self) {
            let shape = self.shape();
            self.sizes[usize::from(shape.target)] += std::mem::take(&mut self.sizes[0]);
            self.runs = 0;
        }

        fn shape(&self) -> Shape {
            Shape::of(self.runs, &self.sizes, FULL)
        }

        /// Lets time pass; whether a compaction of the idle was due.
        fn pass(&mut self, time: Duration) -> bool {
            self.at += time;
            let (shape, pending) = (self.shape(), self.idle.pending(self.shape()));
            let due = self.idle.due(shape, self.at);
            assert!(pending || !due);
            if due {
                self.idle.begins(shape);
                self.rewritten += shape.cost();
                self.merge();
            }
            due
        }
    }

    #[test]
    fn what_a_load_leaves_in_level_0_is_compacted_once_it_is_quiet() {
        for runs in 2..12 {
            let mut levels = Levels::new(RUN);
            (0..runs).for_each(|_| levels.ingest(RUN));
            assert!(!levels.pass(AFTER), "{runs} runs: a long job waits longer");
            assert!(levels.pass(Duration::from_secs(4)), "{runs} runs");
            assert!(!levels.pass(Duration::from_secs(3600)));
        }
        let mut levels = Levels::new(0);
        levels.ingest(RUN);
        assert!(!levels.pass(Duration::from_secs(3600)), "one run is few enough");
    }

    #[test]
    fn under_load_nothing_is_due() {
        let mut levels = Levels::new(RUN);
        for _ in 0..1000 {
            levels.ingest(RUN);
            assert!(!levels.pass(Duration::from_millis(900)));
        }
    }

    /// Memtables of all sizes, flushed twice a minute for four weeks, over a level of 700 MiB: without the credit each
    /// second of them would rewrite it.
    #[test]
    fn a_trickle_of_writes_does_not_rewrite_the_level_beneath_each_time() {
        for bytes in [1 << 10, 100 << 10, 2 * MIB, 20 * MIB, RUN] {
            let mut levels = Levels::new(700 * MIB);
            for _ in 0..4 * 7 * 24 * 120 {
                levels.ingest(bytes);
                levels.pass(Duration::from_secs(30));
            }
            assert!(levels.rewritten <= CREDIT * levels.ingested, "{bytes} bytes a flush");
        }
    }

    #[test]
    fn what_gave_way_was_paid_for() {
        let mut levels = Levels::new(700 * MIB);
        (0..4).for_each(|_| levels.ingest(RUN));
        let shape = levels.shape();
        assert!(levels.idle.pending(shape));
        levels.idle.begins(shape);
        assert!(!levels.idle.pending(shape), "nor is it begun again and again");
    }

    #[test]
    fn never_is_never() {
        let now = Instant::now();
        let idle = Idle::new(Duration::MAX, FULL, FULL, now);
        let shape = Shape::of(11, &[RUN, 0, 0, 0, 0, 0, 0], FULL);
        assert!(!idle.pending(shape) && !idle.due(shape, now + Duration::from_secs(1 << 40)));
    }

    #[test]
    fn level_0_goes_into_the_first_level_that_is_not_full() {
        let of = |levels: [u64; 7]| {
            let shape = Shape::of(3, &levels, FULL);
            (shape.target, shape.cost())
        };
        assert_eq!(of([5, 0, 0, 0, 0, 0, 0]), (6, 5));
        assert_eq!(of([5, 0, 0, 0, 0, 0, 7]), (6, 12));
        assert_eq!(of([5, 0, 0, 0, 0, 7, FULL * 10]), (5, 12));
        // A new level above a full one; nothing lies above level 1.
        assert_eq!(of([5, 0, 0, 0, 0, 0, FULL + 1]), (5, 5));
        assert_eq!(of([5, FULL + 1, 0, 0, 0, 0, 9]), (1, 5 + FULL + 1));
        assert_eq!(Shape::of(0, &[], FULL).cost(), 0);
    }
}
