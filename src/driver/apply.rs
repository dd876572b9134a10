//! Apply workers: committed entries in, answers out.

use super::Shared;
use super::stages::{Stage, waited_for};
use super::upkeep::{self, Room};
use crate::error::Result;
use crate::region::apply::{Applier, ApplyOutcome, Left};
use crate::store::{Applied, ApplyTask, Event};
use crate::types::Time;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// One applier, and the queue before it. Not bounded here: what is committed must be applied; `pressure` refuses
/// new proposals instead.
///
/// * Whoever holds the applier applies: mostly the worker, and a store loop for the little of a quiet moment (see
///   [`queue`]). The worker takes it before it takes tasks out, so while a loop has it and nothing waits, nothing is on
///   its way.
pub struct ApplyQueue {
    applier: Mutex<Applier>,
    state: Mutex<State>,
    wake: Condvar,
}

/// What waits for a worker.
#[derive(Default)]
struct Waiting {
    tasks: Vec<ApplyTask>,
    /// When how many batches in them were committed that somebody waits for here.
    committed: Vec<(Time, usize)>,
}

#[derive(Default)]
struct State {
    waiting: Waiting,
    sleeping: bool,
    closed: bool,
}

impl ApplyQueue {
    /// An empty queue.
    pub fn new(applier: Applier) -> ApplyQueue {
        ApplyQueue { applier: Mutex::new(applier), state: Mutex::default(), wake: Condvar::new() }
    }

    fn push(&self, now: Time, tasks: Vec<ApplyTask>) {
        let waited_for = waited_for(&tasks);
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        state.waiting.tasks.extend(tasks);
        if waited_for > 0 {
            state.waiting.committed.push((now, waited_for));
        }
        let wake = std::mem::replace(&mut state.sleeping, false);
        drop(state);
        if wake {
            self.wake.notify_one();
        }
    }

    /// Sleeps until something waits. `false` once it is closed.
    fn wait(&self) -> bool {
        let mut state = self.state.lock();
        while state.waiting.tasks.is_empty() && !state.closed {
            state.sleeping = true;
            self.wake.wait(&mut state);
        }
        !state.closed
    }

    fn take(&self) -> Waiting {
        std::mem::take(&mut self.state.lock().waiting)
    }

    fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.waiting.tasks.is_empty() && !state.closed
    }

    /// Ends the worker; what it has not begun is dropped (the log has it).
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.waiting = Waiting::default();
        drop(state);
        self.wake.notify_all();
    }
}

fn bytes_of(task: &ApplyTask) -> usize {
    match task {
        ApplyTask::Entries { entries, .. } => entries.iter().map(|e| e.data.len() + 64).sum(),
        ApplyTask::Restore { .. } | ApplyTask::Destroy { .. } => 64,
    }
}

/// What a loop applies itself, at most: beyond it the worker's other core is worth waking it.
const AT_ONCE_BYTES: usize = 16 << 10;

/// Hands tasks, committed by `now`, to the workers of their regions.
///
/// A little that is quick is applied here and now if its worker has nothing else to do: waking it, and being woken by
/// what it reports, costs more than the work.
pub fn queue(shared: &Shared, now: Time, tasks: Vec<ApplyTask>) {
    // Counted before a worker can count it off again.
    let bytes = tasks.iter().map(bytes_of).sum();
    shared.apply_bytes.fetch_add(bytes, Ordering::Relaxed);
    let workers = shared.apply.len();
    let little = bytes <= AT_ONCE_BYTES && !shared.admission.is_limited();
    let hand = |queue: &ApplyQueue, tasks: Vec<ApplyTask>| match queue
        .applier
        .try_lock()
        .filter(|applier| little && applier.is_quick(&tasks))
    {
        Some(mut applier) if queue.is_idle() => {
            let committed = vec![(now, waited_for(&tasks))];
            work(shared, &mut applier, Waiting { tasks, committed });
        }
        _ => queue.push(now, tasks),
    };
    if workers == 1 {
        return hand(&shared.apply[0], tasks);
    }
    let mut parts: Vec<Vec<ApplyTask>> = (0..workers).map(|_| Vec::new()).collect();
    for task in tasks {
        parts[(task.region().0 % workers as u64) as usize].push(task);
    }
    for (queue, part) in shared.apply.iter().zip(parts) {
        if !part.is_empty() {
            hand(queue, part);
        }
    }
}

/// How long a worker rests after a pass while memtables are above their limit, the longer the further: proposals are
/// held back long before, but what comes from leaders elsewhere is not. (It waits in the log then, and where too much of
/// a region waits its leader hears no more of it.)
const FULL_PAUSE: Duration = Duration::from_millis(10);
const FULL_PAUSE_MAX: Duration = Duration::from_millis(200);

/// Tells the gate of proposals how far behind the state store is. How much of their limit memtables are above it.
pub fn measure_debt(shared: &Shared) -> f64 {
    let (runs, bytes) = (shared.kv.debt(), shared.kv.memtable_bytes());
    let max = shared.config.memtable_bytes_max;
    shared.admission.adjust(shared.clock.now(), runs, shared.kv.unflushed_bytes(), bytes, max);
    if shared.admission.is_limited() {
        // Who waits at the gate waits for them.
        shared.upkeep.written();
    }
    bytes.saturating_sub(max) as f64 / max.max(1) as f64
}

/// The thread.
pub fn run(shared: &Shared, at: usize) {
    let queue = &shared.apply[at];
    while queue.wait() {
        {
            let mut applier = queue.applier.lock();
            let waiting = queue.take();
            if !waiting.tasks.is_empty() && !work(shared, &mut applier, waiting) {
                return;
            }
        }
        let excess = measure_debt(shared);
        if excess > 0.0 {
            std::thread::sleep((FULL_PAUSE + FULL_PAUSE_MAX.mul_f64(excess)).min(FULL_PAUSE_MAX));
        }
    }
}

/// How long a worker rests when a snapshot found no room to be restored.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(200);

/// Applies all, and waits for room where a snapshot has none: writes are refused meanwhile. `false` if the store cannot go on.
fn work(shared: &Shared, applier: &mut Applier, mut waiting: Waiting) -> bool {
    loop {
        let was_full = match pass(shared, applier, waiting) {
            Err(error) => {
                shared.fail("apply", error);
                return false;
            }
            Ok(None) => return true,
            Ok(Some(left)) => left,
        };
        upkeep::is_full(shared, Room::State, &was_full.error);
        shared.upkeep.wake();
        std::thread::sleep(NO_ROOM_PAUSE);
        if shared.stopped() {
            return false;
        }
        waiting = Waiting { tasks: was_full.tasks, committed: Vec::new() };
    }
}

/// Applies, answers, reports. What there was no room for is left.
fn pass(shared: &Shared, applier: &mut Applier, waiting: Waiting) -> Result<Option<Left>> {
    let Waiting { tasks, committed } = waiting;
    let (stages, began) = (&shared.stages, shared.clock.now());
    for (since, batches) in &committed {
        stages.record(Stage::ApplyWait, *since, began, *batches);
    }
    let waited_for = committed.iter().map(|(_, batches)| batches).sum();
    let mut outcome = ApplyOutcome::default();
    let bytes: usize = tasks.iter().map(bytes_of).sum();
    let entries: usize = tasks
        .iter()
        .map(|task| match task {
            ApplyTask::Entries { entries, .. } => entries.len(),
            ApplyTask::Restore { .. } | ApplyTask::Destroy { .. } => 0,
        })
        .sum();
    let result = applier.apply(tasks, &mut outcome);
    let left = outcome.left.as_ref().map_or(0, |left| left.tasks.iter().map(bytes_of).sum());
    shared.apply_bytes.fetch_sub(bytes - left, Ordering::Relaxed);
    // After an error nothing of the pass is answered: the stop tells the callers.
    result?;
    let applied = shared.clock.now();
    stages.record(Stage::Apply, began, applied, waited_for);
    let answered = shared.desks.complete(outcome.replies);
    let ended = shared.clock.now();
    stages.record(Stage::Answer, applied, ended, waited_for);
    for (since, writes) in answered {
        stages.record(Stage::Whole, since, ended, writes as usize);
    }
    post(shared, outcome.applied);
    if let Some(cut) = outcome.cut {
        upkeep::has_room(shared, Room::State);
        let cut = Arc::new(cut);
        shared.post_all(|| Event::Flushed(Arc::clone(&cut)));
    }
    for file in outcome.discard {
        super::round::remove(shared, &file.path);
    }
    let counters = &shared.counters;
    counters.applied_entries.fetch_add(entries as u64, Ordering::Relaxed);
    counters.applied_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    counters.apply_passes.fetch_add(1, Ordering::Relaxed);
    if shared.kv.should_flush() {
        shared.upkeep.wake();
    }
    Ok(outcome.left)
}

fn post(shared: &Shared, applied: Vec<Applied>) {
    if shared.inboxes.len() == 1 {
        if !applied.is_empty() {
            shared.inboxes[0].post(Event::Applied(applied));
        }
        return;
    }
    let mut parts: Vec<Vec<Applied>> = vec![Vec::new(); shared.inboxes.len()];
    for one in applied {
        parts[shared.loop_of(one.region)].push(one);
    }
    for (inbox, part) in shared.inboxes.iter().zip(parts) {
        if !part.is_empty() {
            inbox.post(Event::Applied(part));
        }
    }
}
