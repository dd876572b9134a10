//! Threads that flush and compact beside the one that applies.

use anyhow::{Context, Result, anyhow};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often an idle thread looks.
pub const LOOK: Duration = Duration::from_millis(2);

/// Threads that work until they are told to end, or fail. Dropping it ends them.
#[derive(Default)]
pub struct Beside {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Beside {
    /// Does a step again and again; rests when there was nothing to do.
    pub fn start(
        &mut self,
        name: &str,
        step: impl Fn() -> Result<bool> + Send + 'static,
    ) -> Result<()> {
        let ended = Arc::clone(&self.ended);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                if !step()? {
                    std::thread::sleep(LOOK);
                }
            }
            Ok(())
        });
        self.threads.push(thread.context("cannot start a thread")?);
        Ok(())
    }

    /// Fails if one of them has: whoever waits for it would wait for ever.
    pub fn check(&self) -> Result<()> {
        match self.threads.iter().any(JoinHandle::is_finished) {
            true => Err(anyhow!("flush or compaction failed")),
            false => Ok(()),
        }
    }

    /// Ends them, and tells what they failed of. Others can be started afterwards.
    pub fn stop(&mut self) -> Result<()> {
        self.ended.store(true, Ordering::Relaxed);
        let threads: Vec<_> = self.threads.drain(..).map(JoinHandle::join).collect();
        self.ended.store(false, Ordering::Relaxed);
        for ended in threads {
            match ended {
                Ok(result) => result?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // After an error: what they say was said before.
            let _ = thread.join();
        }
    }
}
