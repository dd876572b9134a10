//! Clients as small state machines on one thread: what is answered comes back through a queue, the next requests
//! are handed over together.

use super::clients::{Course, REST, Tally};
use super::{Figures, Span};
use anyhow::Result;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::sync::Arc;
use std::time::Instant;

/// Most requests handed over at once: keeps the first from waiting for the last to be made.
const HAND_OVER: usize = 64;

/// How often the thread looks for answers once more, letting others run in between, before it sleeps: to sleep and to be woken
/// costs more than that, and answers are on their way.
const LOOKS: u32 = 60;

/// An answer: whose, and whether it is a good one.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// The client.
    pub client: u32,
    /// What it was told.
    pub fate: Fate,
}

/// What became of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Acknowledged.
    Written,
    /// Refused or lost.
    Failed,
}

/// Answers on their way back. Holds at most one for each client.
#[derive(Debug, Default)]
pub struct Returns {
    state: Mutex<Waiting>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    answers: Vec<Answer>,
    asleep: bool,
}

impl Returns {
    /// Hands an answer over, from any thread.
    pub fn push(&self, client: u32, fate: Fate) {
        let mut state = self.state.lock();
        state.answers.push(Answer { client, fate });
        if std::mem::take(&mut state.asleep) {
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Swaps all answers into `out`, which must be empty; looks for one some times, then sleeps until there is one.
    fn take(&self, out: &mut Vec<Answer>) {
        let mut state = self.state.lock();
        let mut looks = LOOKS;
        while state.answers.is_empty() {
            if looks > 0 {
                looks -= 1;
                MutexGuard::unlocked(&mut state, std::thread::yield_now);
                continue;
            }
            state.asleep = true;
            self.wake.wait(&mut state);
        }
        state.asleep = false;
        std::mem::swap(&mut state.answers, out);
    }
}

#[cfg(all(test, feature = "openraft"))]
impl Returns {
    /// Takes all answers that are there.
    pub fn answers(&self) -> Vec<(u32, Fate)> {
        let answers = std::mem::take(&mut self.state.lock().answers);
        answers.into_iter().map(|answer| (answer.client, answer.fate)).collect()
    }
}

/// Where requests are handed over.
pub trait Counter: Send {
    /// Sends the next request of each of these clients. Each is answered exactly once through `back`.
    fn submit(&mut self, clients: &[u32], back: &Arc<Returns>) -> Result<()>;
}

fn walk(course: &Course, counter: &mut dyn Counter, clients: u32) -> Result<()> {
    let back = Arc::<Returns>::default();
    let mut began = vec![Instant::now(); clients as usize];
    let mut tallies: Vec<Tally> = began.iter().map(|_| Tally::default()).collect();
    let mut idle: Vec<u32> = (0..clients).collect();
    let mut answers = Vec::with_capacity(clients as usize);
    let mut outstanding = 0;
    while !course.is_over() || outstanding > 0 {
        if !course.is_over() {
            for part in idle.chunks(HAND_OVER) {
                let now = Instant::now();
                part.iter().for_each(|client| began[*client as usize] = now);
                counter.submit(part, &back)?;
            }
            outstanding += idle.len();
            idle.clear();
        }
        if outstanding == 0 {
            break;
        }
        back.take(&mut answers);
        let now = Instant::now();
        outstanding -= answers.len();
        let mut failed = false;
        for Answer { client, fate } in answers.drain(..) {
            let at = client as usize;
            match fate {
                Fate::Written => course.answered(&mut tallies[at], began[at], now),
                Fate::Failed => {
                    course.failed(&mut tallies[at]);
                    failed = true;
                }
            }
            idle.push(client);
        }
        if failed {
            std::thread::sleep(REST);
        }
    }
    tallies.iter().for_each(|tally| course.take(tally));
    Ok(())
}

/// Runs `clients` clients on a thread of their own.
pub fn run(mut counter: impl Counter, clients: usize, batch: usize, span: Span) -> Result<Figures> {
    let course = Course::new()?;
    let spent = std::thread::scope(|scope| {
        let walking = scope.spawn(|| walk(&course, &mut counter, clients as u32));
        let spent = course.watch(span);
        match walking.join() {
            Ok(walked) => walked.map(|()| spent),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })?;
    course.figures(spent, batch)
}
