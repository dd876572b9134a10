//! Threads for reads that have no caller's thread to run on: forwarded ones, and those that waited.

use crate::error::{Error, Result};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;

/// A read to be done.
pub type ReadJob = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    jobs: VecDeque<ReadJob>,
    idle: usize,
    stopped: bool,
}

/// The queue before the read threads; bounded.
#[derive(Default)]
pub struct Readers {
    state: Mutex<State>,
    wake: Condvar,
}

/// Reads waiting for a thread, at most.
const JOBS_MAX: usize = 1 << 16;

impl Readers {
    /// Queues a read. [`Busy`](Error::Busy) when too many wait.
    pub fn submit(&self, job: ReadJob) -> Result<()> {
        let mut state = self.state.lock();
        if state.stopped {
            return Err(Error::Stopped { reason: "the node is closing".into() });
        }
        if state.jobs.len() >= JOBS_MAX {
            return Err(Error::Busy { what: "read workers" });
        }
        state.jobs.push_back(job);
        let wake = state.idle > 0;
        drop(state);
        if wake {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// What a read thread does until the stop.
    pub fn run(&self) {
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return;
            }
            match state.jobs.pop_front() {
                Some(job) => {
                    drop(state);
                    job();
                    state = self.state.lock();
                }
                None => {
                    state.idle += 1;
                    self.wake.wait(&mut state);
                    state.idle -= 1;
                }
            }
        }
    }

    /// Ends the threads. Reads not begun are dropped: their callers' deadlines answer.
    pub fn stop(&self) {
        let jobs = {
            let mut state = self.state.lock();
            state.stopped = true;
            std::mem::take(&mut state.jobs)
        };
        self.wake.notify_all();
        drop(jobs);
    }
}

impl std::fmt::Debug for Readers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readers").finish_non_exhaustive()
    }
}
