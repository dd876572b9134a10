//! What runs while it is measured: a course that all clients walk, and clients as tasks of a runtime.

use super::{Figures, Span};
use crate::used;
use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

const WARM: u8 = 0;
const COUNTED: u8 = 1;
const OVER: u8 = 2;

/// Of how many requests of a client one is timed.
const TIMED: u64 = 16;
/// How long a client rests after a failure, so that a group without a leader is not hammered.
pub const REST: Duration = Duration::from_millis(5);
/// Latencies beyond this many microseconds count as this.
const LONGEST_US: u64 = 60_000_000;

/// One client: a request at a time.
pub trait Client: Send + 'static {
    /// Writes the next request and waits for its acknowledgement.
    fn write(&mut self) -> impl Future<Output = Result<()>> + Send;
}

/// What all clients of a run share.
pub struct Course {
    stage: AtomicU8,
    requests: AtomicU64,
    failed: AtomicU64,
    latencies: Mutex<Histogram<u64>>,
}

/// What one client, or a thread of many, has counted so far.
#[derive(Default)]
pub struct Tally {
    requests: u64,
    seen: u64,
    failed: u64,
}

impl Course {
    /// Before its start.
    pub fn new() -> Result<Course> {
        let latencies = Histogram::new_with_bounds(1, LONGEST_US, 3).context("histogram")?;
        Ok(Course {
            stage: AtomicU8::new(WARM),
            requests: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            latencies: Mutex::new(latencies),
        })
    }

    /// Whether clients are to stop.
    pub fn is_over(&self) -> bool {
        self.stage.load(Ordering::Relaxed) == OVER
    }

    /// Counts a request that was answered.
    pub fn answered(&self, tally: &mut Tally, began: Instant, now: Instant) {
        if self.stage.load(Ordering::Relaxed) == COUNTED {
            tally.requests += 1;
            if tally.seen.is_multiple_of(TIMED) {
                let took = now.saturating_duration_since(began).as_micros() as u64;
                self.latencies.lock().saturating_record(took.max(1));
            }
            tally.seen += 1;
        }
    }

    /// Counts a request that failed.
    pub fn failed(&self, tally: &mut Tally) {
        tally.failed += 1;
    }

    /// Takes what a client has counted.
    pub fn take(&self, tally: &Tally) {
        self.requests.fetch_add(tally.requests, Ordering::Relaxed);
        self.failed.fetch_add(tally.failed, Ordering::Relaxed);
    }

    /// Lets the clients run, on the caller's thread. Gives the seconds that were counted, and the processor time.
    pub fn watch(&self, span: Span) -> (f64, Duration) {
        std::thread::sleep(span.warmup);
        let (began, cpu) = (Instant::now(), used::cpu());
        self.stage.store(COUNTED, Ordering::Relaxed);
        std::thread::sleep(span.took);
        self.stage.store(OVER, Ordering::Relaxed);
        (began.elapsed().as_secs_f64(), used::cpu().saturating_sub(cpu))
    }

    /// What came out, once every client has handed in its tally.
    pub fn figures(&self, (seconds, cpu): (f64, Duration), batch: usize) -> Result<Figures> {
        let requests = self.requests.load(Ordering::Relaxed);
        let failed = self.failed.load(Ordering::Relaxed);
        if requests == 0 {
            bail!("nothing was acknowledged; {failed} requests failed");
        }
        let puts = (requests * batch as u64) as f64;
        let latencies = self.latencies.lock();
        Ok(Figures {
            puts_per_s: puts / seconds,
            p50_us: latencies.value_at_quantile(0.5) as f64,
            p99_us: latencies.value_at_quantile(0.99) as f64,
            cpu_us_per_put: cpu.as_secs_f64() * 1e6 / puts,
            failed,
        })
    }

    async fn walk(&self, mut client: impl Client) {
        let mut tally = Tally::default();
        let mut began = Instant::now();
        while !self.is_over() {
            let written = client.write().await;
            let now = Instant::now();
            match written {
                Ok(()) => self.answered(&mut tally, began, now),
                Err(_) => {
                    self.failed(&mut tally);
                    tokio::time::sleep(REST).await;
                }
            }
            began = now;
        }
        self.take(&tally);
    }
}

/// A runtime for clients: one thread, as in openraft's benchmark.
pub fn runtime() -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).thread_name("clients").enable_time();
    builder.build().context("cannot start a thread for clients")
}

/// Runs clients as tasks, on a runtime of their own.
pub fn run<C: Client>(clients: Vec<C>, batch: usize, span: Span) -> Result<Figures> {
    run_on(&runtime()?, clients, batch, span)
}

/// Runs clients as tasks of a runtime.
pub fn run_on<C: Client>(
    runtime: &Runtime,
    clients: Vec<C>,
    batch: usize,
    span: Span,
) -> Result<Figures> {
    let course = Arc::new(Course::new()?);
    let tasks: Vec<_> = clients
        .into_iter()
        .map(|client| {
            let course = Arc::clone(&course);
            runtime.spawn(async move { course.walk(client).await })
        })
        .collect();
    let spent = course.watch(span);
    for task in tasks {
        runtime.block_on(task).context("a client")?;
    }
    course.figures(spent, batch)
}
