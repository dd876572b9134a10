//! The log writer: one thread writes and syncs for all groups, then releases what waited for it.

use super::Shared;
use super::stages::Stage;
use super::upkeep::{Room, has_room, is_full};
use crate::error::Error;
use crate::log::Seq;
use crate::store::{AfterPersist, Event};
use crate::types::Time;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What waits for the log, per store loop.
///
/// * Each queue is in order of `seq`: a loop numbers its batches and queues them in one order.
/// * Whoever releases holds `releasing`, from taking out to handing on: so rounds of a peer are
///   reported in order, whether the writer releases or the loop (for what became durable before it was
///   queued).
#[derive(Debug)]
pub struct WriterQueue {
    loops: Vec<Waiting>,
    /// When the writer began its last round.
    began: AtomicU64,
}

#[derive(Default, Debug)]
struct Waiting {
    /// With when it was put there.
    queue: Mutex<VecDeque<(Time, AfterPersist)>>,
    releasing: Mutex<()>,
}

impl WriterQueue {
    /// Queues for this many loops.
    pub fn new(loops: usize) -> WriterQueue {
        let loops = (0..loops).map(|_| Waiting::default()).collect();
        WriterQueue { loops, began: AtomicU64::new(0) }
    }
}

/// How long the writer sleeps without work before it looks whether it shall end.
const NAP: Duration = Duration::from_millis(100);
/// The same once a nap has found nothing to do. Who submits to the log ends it, and who stops the node; on a disk in
/// memory what a loop has submitted is written by itself, so that nobody need be woken.
const NAP_IDLE: Duration = Duration::from_millis(500);
/// Pause between attempts on a full disk.
const FULL_PAUSE: Duration = Duration::from_millis(200);

/// Queues what waits for the log, and releases at once what no longer has to.
pub fn queue(shared: &Shared, at: usize, now: Time, waiting: impl Iterator<Item = AfterPersist>) {
    let front = {
        let mut queue = shared.writer.loops[at].queue.lock();
        queue.extend(waiting.map(|round| (now, round)));
        queue.front().map(|(_, first)| first.seq)
    };
    // The writer publishes the durable number before it looks into the queue: either it sees what was
    // just queued, or we see the number.
    let durable = shared.log.durable();
    if front.is_some_and(|seq| seq <= durable) {
        release(shared, at, durable);
    }
}

fn release(shared: &Shared, at: usize, durable: Seq) {
    let waiting = &shared.writer.loops[at];
    let _order = waiting.releasing.lock();
    let mut ready: Vec<(Time, AfterPersist)> = {
        let mut queue = waiting.queue.lock();
        let count = queue.iter().take_while(|(_, first)| first.seq <= durable).count();
        queue.drain(..count).collect()
    };
    if ready.is_empty() {
        return;
    }
    measure(shared, &ready);
    let mut acks = Vec::new();
    for (_, round) in &mut ready {
        acks.append(&mut round.acks);
    }
    // First, so that no answer to what is sent overtakes it: raft must know that a round is durable before
    // it hears of the votes that the round asked for.
    if !acks.is_empty() {
        shared.inboxes[at].post(Event::Persisted(acks));
    }
    for (_, mut round) in ready {
        for (to, lane, envelopes) in round.send.take() {
            shared.outward.send(to, lane, envelopes);
        }
    }
}

/// How long what is released waited for the writer, and then for the disk.
fn measure(shared: &Shared, ready: &[(Time, AfterPersist)]) {
    let (stages, now) = (&shared.stages, shared.clock.now());
    let began = Time(shared.writer.began.load(Ordering::Relaxed));
    for (queued, _) in ready {
        // What came while the writer was at it waited for nothing.
        let written_from = began.max(*queued);
        stages.record(Stage::LogWait, *queued, written_from, 1);
        stages.record(Stage::LogWrite, written_from, now, 1);
    }
}

/// Releases all that the log's durable number allows, and the loops that waited for room in it. For
/// whoever may have written a round.
pub fn release_all(shared: &Shared) {
    let durable = shared.log.durable();
    for at in 0..shared.writer.loops.len() {
        release(shared, at, durable);
    }
    // Not every loop that was held back has something in the log whose end would wake it.
    if shared.log.has_room() && shared.held.swap(false, Ordering::SeqCst) {
        for inbox in &shared.inboxes {
            inbox.nudge();
        }
    }
}

/// Whether something is still waiting for the log.
fn is_waited_for(shared: &Shared) -> bool {
    shared.writer.loops.iter().any(|waiting| !waiting.queue.lock().is_empty())
}

/// What a round of the log came to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Written {
    All,
    /// The disk is full: to be tried again.
    TurnedAway,
    /// The store stops.
    Failed,
}

fn write(shared: &Shared) -> Written {
    shared.writer.began.store(shared.clock.now().0, Ordering::Relaxed);
    match shared.log.write_round() {
        Ok(written) => {
            has_room(shared, Room::Log);
            release_all(shared);
            if written.is_some() {
                shared.upkeep.written();
            }
            Written::All
        }
        Err(error @ Error::DiskFull { .. }) => {
            is_full(shared, Room::Log, &error);
            shared.upkeep.log_is_full();
            Written::TurnedAway
        }
        Err(error) => {
            shared.fail("log", error);
            Written::Failed
        }
    }
}

/// Writes what waits on the caller's thread, where nobody waits for the disk. What the disk has no room for is left
/// to the writer.
pub fn write_at_once(shared: &Shared) {
    if shared.instant {
        write(shared);
    }
}

/// The thread.
pub fn run(shared: &Shared) {
    let mut unstated = false;
    // What a full disk turned away waits inside the log, not in its queue: only another round takes it
    // up. Without one nobody would learn that there is room again, for new writes are refused.
    let mut turned_away = false;
    let (mut nap, mut seen) = (NAP, shared.log.durable());
    while !shared.stopped() {
        let work = turned_away
            || match shared.instant {
                false => shared.log.wait_for_work(nap),
                true => {
                    shared.upkeep.pause(shared, nap);
                    // The loops have written. What is left they had nothing else to hand on with.
                    unstated = true;
                    shared.log.wait_for_work(Duration::ZERO)
                }
            };
        if !work {
            // Quiet: state on the disk what is durable, so that damage to it is told from a torn tail.
            if std::mem::take(&mut unstated)
                && let Err(error) = shared.log.barrier()
                && !matches!(error, Error::DiskFull { .. })
            {
                shared.fail("log", error);
            }
            // Rounds are also written by purge and barrier.
            release_all(shared);
            let durable = shared.log.durable();
            let idle = std::mem::replace(&mut seen, durable) == durable && !is_waited_for(shared);
            nap = if idle { NAP_IDLE } else { NAP };
            continue;
        }
        if shared.stopped() {
            return;
        }
        match write(shared) {
            Written::All => (turned_away, unstated, nap) = (false, true, NAP),
            Written::TurnedAway => {
                turned_away = true;
                shared.upkeep.pause(shared, FULL_PAUSE);
            }
            Written::Failed => return,
        }
    }
}
