//! Something later: callbacks at a time, on one thread.

use crate::error::{Error, Result};
use parking_lot::{Condvar, Mutex};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Called once, on the timer's thread: quick, no blocking.
pub type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    jobs: BTreeMap<u64, Job>,
    next: u64,
    stopped: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

/// A handle to a timer. The thread ends when told to, or with the last handle.
#[derive(Clone)]
pub struct Timer {
    owner: Arc<Owner>,
}

struct Owner {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Owner {
    fn stop(&self) {
        let dropped = {
            let mut state = self.shared.state.lock();
            state.stopped = true;
            state.due.clear();
            std::mem::take(&mut state.jobs)
        };
        self.shared.wake.notify_all();
        // Jobs may own handles of this very timer: they go outside of the lock.
        drop(dropped);
        if let Some(thread) = self.thread.lock().take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

impl Timer {
    /// Starts the thread.
    pub fn start(name: &str) -> Result<Timer> {
        let shared = Arc::new(Shared::default());
        let inside = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(&inside))
            .map_err(|e| Error::io("spawn thread", name, e))?;
        Ok(Timer { owner: Arc::new(Owner { shared, thread: Mutex::new(Some(thread)) }) })
    }

    /// Calls `job` after `delay`. After the stop it is dropped uncalled.
    pub fn after(&self, delay: Duration, job: Job) {
        let at = Instant::now() + delay;
        let shared = &self.owner.shared;
        let mut state = shared.state.lock();
        if state.stopped {
            drop(state);
            return;
        }
        let id = state.next;
        state.next += 1;
        let first = state.due.peek().is_none_or(|Reverse((due, _))| at < *due);
        state.due.push(Reverse((at, id)));
        state.jobs.insert(id, job);
        drop(state);
        if first {
            shared.wake.notify_one();
        }
    }

    /// Ends the thread; what was not due is dropped.
    pub fn stop(&self) {
        self.owner.stop();
    }
}

fn run(shared: &Shared) {
    let mut state = shared.state.lock();
    while !state.stopped {
        match state.due.peek().map(|Reverse(due)| *due) {
            None => shared.wake.wait(&mut state),
            Some((at, id)) if at <= Instant::now() => {
                state.due.pop();
                let job = state.jobs.remove(&id);
                drop(state);
                if let Some(job) = job {
                    job();
                }
                state = shared.state.lock();
            }
            Some((at, _)) => {
                shared.wake.wait_until(&mut state, at);
            }
        }
    }
}

impl std::fmt::Debug for Timer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Timer").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_run_in_order_of_time_and_stop_ends_it() {
        let timer = Timer::start("timer-test").unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        for (ms, name) in [(30, "late"), (1, "soon"), (60_000, "never")] {
            let tell = tell.clone();
            timer.after(Duration::from_millis(ms), Box::new(move || tell.send(name).unwrap()));
        }
        assert_eq!((told.recv().unwrap(), told.recv().unwrap()), ("soon", "late"));
        timer.stop();
        drop(tell);
        assert!(told.recv().is_err());
    }
}
