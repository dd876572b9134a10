//! What must be done now and then: flush and compact the state store, purge the log.

use super::Shared;
use crate::error::{Error, Result};
use crate::log::Seq;
use crate::store::{DiskSpace, Event};
use parking_lot::{Condvar, Mutex};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// Whether the caller of a flush waits for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlushNow {
    /// Soon, on the flusher's thread.
    Soon,
    /// On the caller's thread; durable on return.
    Wait,
}

/// Wake-ups for the upkeep threads.
#[derive(Default, Debug)]
pub struct Upkeep {
    state: Mutex<State>,
    wake: Condvar,
    flush_wanted: AtomicBool,
    purge_wanted: AtomicBool,
    waited_for: AtomicBool,
    full: AtomicU8,
    /// Somebody looks seldom, for nothing was written.
    idle: AtomicBool,
    /// What could not grow last.
    full_at: Mutex<PathBuf>,
    /// Held over a flush: `FlushNow::Wait` and the flusher take turns.
    flushing: Mutex<()>,
}

#[derive(Default, Debug)]
struct State {
    closed: bool,
}

/// How often memtables and spares are looked at.
const LOOK: Duration = Duration::from_millis(20);
/// The same while nothing is written.
const LOOK_IDLE: Duration = Duration::from_millis(500);
/// How often the log's size is looked at.
const LOOK_AT_LOG: Duration = Duration::from_millis(500);
/// Flushes for the log's sake are at least this far apart.
const FLUSH_FOR_LOG: Duration = Duration::from_secs(2);
/// As are those that somebody waits for, who is in no hurry.
const FLUSH_WAITED_FOR: Duration = Duration::from_secs(1);
/// The log is purged this long after a flush: the loops compact first.
const PURGE_AFTER: Duration = Duration::from_millis(300);
/// And at least this often, for what was compacted later.
const PURGE_EVERY: Duration = Duration::from_secs(5);
const FULL_PAUSE: Duration = Duration::from_millis(500);
/// A piece of a spare segment that is not needed yet is followed by so many times as long without one: the log's own
/// writes wait behind it.
const RESTS: u32 = 3;
/// But by no more than this.
const REST_MAX: Duration = Duration::from_millis(5);

impl Upkeep {
    /// Looks now.
    pub fn wake(&self) {
        self.flush_wanted.store(true, Ordering::Relaxed);
        self.wake.notify_all();
    }

    /// Somebody waits for the next flush.
    pub fn flush_before_long(&self) {
        self.waited_for.store(true, Ordering::Relaxed);
    }

    /// The log found no room: purge what can be purged.
    pub fn log_is_full(&self) {
        self.purge_wanted.store(true, Ordering::Relaxed);
        self.wake();
    }

    fn is_full(&self, room: Room) -> bool {
        self.full.load(Ordering::Acquire) & room as u8 != 0
    }

    /// The error for writes while there is no place for them.
    pub fn refusal(&self) -> Option<Error> {
        (self.full.load(Ordering::Acquire) != 0)
            .then(|| Error::DiskFull { path: self.full_at.lock().clone() })
    }

    /// Ends the threads.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.wake.notify_all();
    }

    /// Something was written: whoever looks seldom looks now.
    pub fn written(&self) {
        if self.idle.load(Ordering::Relaxed) && self.idle.swap(false, Ordering::Relaxed) {
            // Whoever set it is asleep once this can be had.
            drop(self.state.lock());
            self.wake.notify_all();
        }
    }

    /// Sleeps until the next look, or until woken: for long if nothing was written since the last.
    fn pause_between(&self, shared: &Shared, seen: &mut Seq) {
        let durable = shared.log.durable();
        let busy = std::mem::replace(seen, durable) != durable
            || shared.admission.is_limited()
            || self.full.load(Ordering::Acquire) != 0
            || self.purge_wanted.load(Ordering::Relaxed);
        if busy {
            return self.pause(shared, LOOK);
        }
        let mut state = self.state.lock();
        self.idle.store(true, Ordering::SeqCst);
        // What was written since found nobody idle.
        if !state.closed && !shared.stopped() && shared.log.durable() == durable {
            self.wake.wait_for(&mut state, LOOK_IDLE);
        }
    }

    /// Sleeps until woken (or the node stops).
    pub fn pause(&self, shared: &Shared, at_most: Duration) {
        let mut state = self.state.lock();
        if !state.closed && !shared.stopped() {
            self.wake.wait_for(&mut state, at_most);
        }
    }
}

/// Who needs room on the disk. Bits, so that several may lack it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// The log.
    Log = 1,
    /// The state store.
    State = 2,
}

/// A room found no place to write: new writes are refused from now on.
pub fn is_full(shared: &Shared, room: Room, error: &Error) {
    if let Error::DiskFull { path } = error {
        shared.upkeep.full_at.lock().clone_from(path);
    }
    let before = shared.upkeep.full.fetch_or(room as u8, Ordering::AcqRel);
    if before & room as u8 == 0 {
        tracing::warn!(?room, %error, "no place to write: writes are refused");
    }
    shared.post_all(|| Event::DiskSpace(DiskSpace::Full));
}

/// A room could write. Writes are taken again once no room lacks place.
pub fn has_room(shared: &Shared, room: Room) {
    if shared.upkeep.full.load(Ordering::Acquire) == 0 {
        return;
    }
    let before = shared.upkeep.full.fetch_and(!(room as u8), Ordering::AcqRel);
    if before == room as u8 {
        tracing::info!("there is room again: writes are taken");
        shared.post_all(|| Event::DiskSpace(DiskSpace::Enough));
    }
}

/// Takes a cut and writes it, tells the loops. `false` if there was nothing to flush.
fn flush(shared: &Shared) -> Result<bool> {
    let _turn = shared.upkeep.flushing.lock();
    let Some(flush) = shared.kv.freeze()? else { return Ok(false) };
    let cut = Arc::new(flush.run()?);
    shared.post_all(|| Event::Flushed(Arc::clone(&cut)));
    Ok(true)
}

/// For callers outside.
pub fn flush_now(shared: &Shared, how: FlushNow) -> Result<()> {
    match how {
        FlushNow::Soon => {
            shared.upkeep.wake();
            Ok(())
        }
        FlushNow::Wait => flush(shared).map(|_| ()),
    }
}

/// How much lower the priority of the flusher and of the compactor is than that of the others, in steps of `nice`: with as many of
/// the others as cores they get a tenth of the time. The replicas of a region flush and compact at about the same time, for they hold
/// the same data; where cores are few, all that is answered meanwhile waits for them otherwise. What is late
/// slows writers down, which leaves the cores to it.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;
/// There is no lower priority.
#[cfg(target_os = "linux")]
const LOWEST: i32 = 19;

/// Lowers this thread's priority. For good: only the privileged may raise one.
fn stand_back() {
    // On Linux these are of the calling thread, elsewhere of the whole process.
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{getpriority_process, setpriority_process};
        let lowered = getpriority_process(None)
            .and_then(|now| setpriority_process(None, (now + NICENESS).min(LOWEST)));
        if let Err(error) = lowered {
            tracing::debug!(%error, "works in the background with the priority of all");
        }
    }
}

/// The flusher: on size, on the log's budget, on time.
pub fn run_flusher(shared: &Shared) {
    stand_back();
    let mut flushed_at = Instant::now();
    let mut looked_at = Instant::now();
    let mut seen = Seq(0);
    while !shared.stopped() {
        shared.upkeep.pause_between(shared, &mut seen);
        if shared.stopped() {
            return;
        }
        super::apply::measure_debt(shared);
        // Whatever the memtable's own limit: memory is bounded by all of them.
        let behind = shared.kv.memtable_bytes() > shared.config.memtable_bytes_max / 2;
        let wanted = shared.upkeep.flush_wanted.swap(false, Ordering::Relaxed);
        let mut due =
            shared.upkeep.is_full(Room::State) || behind || wanted || shared.kv.should_flush();
        due |= flushed_at.elapsed() >= shared.config.flush_interval;
        due |= flushed_at.elapsed() >= FLUSH_WAITED_FOR
            && shared.upkeep.waited_for.load(Ordering::Relaxed);
        if looked_at.elapsed() >= LOOK_AT_LOG {
            looked_at = Instant::now();
            // Not at every look: a log that a laggard keeps large would be flushed for nothing.
            due |= flushed_at.elapsed() >= FLUSH_FOR_LOG
                && shared.log.stats().disk_bytes > shared.config.log_budget_bytes;
        }
        if !due {
            continue;
        }
        flushed_at = Instant::now();
        // Before the cut is taken: what is asked for from here on may not be in it.
        shared.upkeep.waited_for.store(false, Ordering::Relaxed);
        match flush(shared) {
            Ok(_) => has_room(shared, Room::State),
            Err(error @ Error::DiskFull { .. }) => {
                is_full(shared, Room::State, &error);
                shared.upkeep.pause(shared, FULL_PAUSE);
            }
            Err(error) => return shared.fail("flush", error),
        }
    }
}

/// The compactor: bounded steps while there is work.
pub fn run_compactor(shared: &Shared) {
    stand_back();
    let mut seen = Seq(0);
    while !shared.stopped() {
        match shared.kv.maintain() {
            Ok(true) => {}
            Ok(false) => shared.upkeep.pause_between(shared, &mut seen),
            Err(error @ Error::DiskFull { .. }) => {
                tracing::warn!(%error, "compaction waits for room");
                shared.upkeep.pause(shared, FULL_PAUSE);
            }
            Err(error) => return shared.fail("compaction", error),
        }
    }
}

/// The keeper of the log: spare segments before the writer needs them, purge after flushes.
pub fn run_keeper(shared: &Shared) {
    let mut flushes = shared.kv.flushes();
    let mut purge_at = Instant::now() + PURGE_EVERY;
    let mut written = Seq(0);
    while !shared.stopped() {
        let mut since = Instant::now();
        let mut rest = || {
            // What else this thread does is waited for then.
            let purge = shared.upkeep.purge_wanted.load(Ordering::Relaxed)
                || Instant::now() >= purge_at
                || shared.kv.flushes() != flushes;
            if !purge && !shared.admission.is_limited() {
                shared.upkeep.pause(shared, (since.elapsed() * RESTS).min(REST_MAX));
            }
            since = Instant::now();
        };
        match shared.log.prepare_gently(&mut rest) {
            Ok(true) => continue,
            Ok(false) => {}
            // The writer meets the same, and tells.
            Err(Error::DiskFull { .. }) => shared.upkeep.pause(shared, FULL_PAUSE),
            // Too many open files, perhaps. The log has a spare left, and goes on.
            Err(error @ Error::Io { op: "open", .. }) => {
                tracing::warn!(%error, "no spare segment can be made");
                shared.upkeep.pause(shared, FULL_PAUSE);
            }
            Err(error) => return shared.fail("log spares", error),
        }
        // While a flush waits for a compaction, and nothing is applied, nobody else looks.
        super::apply::measure_debt(shared);
        let now = Instant::now();
        let seen = shared.kv.flushes();
        if seen != flushes {
            flushes = seen;
            purge_at = purge_at.min(now + PURGE_AFTER);
        }
        if shared.upkeep.purge_wanted.swap(false, Ordering::Relaxed) || now >= purge_at {
            purge_at = now + PURGE_EVERY;
            let purged = shared.log.purge();
            // It writes rounds itself.
            super::writer::release_all(shared);
            match purged {
                // After the next look at the spares: what came back may be among them.
                Ok(purged) if purged.more => {
                    shared.upkeep.purge_wanted.store(true, Ordering::Relaxed)
                }
                Ok(_) | Err(Error::DiskFull { .. }) => {}
                Err(Error::Stopped { .. }) => return,
                Err(error) => return shared.fail("log purge", error),
            }
        }
        shared.upkeep.pause_between(shared, &mut written);
    }
}
