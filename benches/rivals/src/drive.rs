//! Threads that do a row's work against an engine for a while. An engine stays open from one repetition
//! to the next, so that what it writes at opening (files filled beforehand) is written once.

use crate::engine::{self, Engine, Files, Setup, Ticket, Which};
use crate::work::{Payload, Stream, Work};
use anyhow::{Context, Result, anyhow};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What one run of one row measured.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Figures {
    /// Writes acknowledged as durable, per second.
    pub writes_per_s: f64,
    /// Entries of them.
    pub entries_per_s: f64,
    /// Microseconds from building a write to its acknowledgement.
    pub p50_us: f64,
    /// The same, of the slowest in a hundred.
    pub p99_us: f64,
    /// The slowest.
    pub max_us: f64,
}

/// How often a thread beside the writers asks every engine to purge.
const PURGE_EVERY: Duration = Duration::from_millis(200);

struct Thread<'a> {
    engine: &'a dyn Engine,
    stream: &'a mut Stream,
    payload: Payload,
    window: usize,
    outstanding: VecDeque<(Ticket, Instant)>,
    latency: Histogram<u64>,
    writes: u64,
}

impl Thread<'_> {
    fn run(mut self, start: Instant, end: Instant) -> Result<(Histogram<u64>, u64)> {
        let mut pieces = Vec::new();
        loop {
            if self.outstanding.len() >= self.window {
                self.settle(start, end)?;
            }
            let began = Instant::now();
            if began >= end {
                break;
            }
            self.stream.next(&mut pieces);
            let ticket = self.engine.write(&pieces, &mut self.payload)?;
            self.outstanding.push_back((ticket, began));
            if matches!(self.outstanding.back(), Some((Ticket::Done, _))) {
                self.settle(start, end)?;
            }
        }
        while !self.outstanding.is_empty() {
            self.settle(start, end)?;
        }
        Ok((self.latency, self.writes))
    }

    fn settle(&mut self, start: Instant, end: Instant) -> Result<()> {
        let Some((ticket, began)) = self.outstanding.pop_front() else { return Ok(()) };
        self.engine.settle(ticket)?;
        let now = Instant::now();
        if now >= start && now < end {
            self.writes += 1;
            let nanos = u64::try_from((now - began).as_nanos()).unwrap_or(u64::MAX);
            self.latency.saturating_record(nanos.max(1));
        }
        Ok(())
    }
}

/// From a nanosecond to a minute, three digits.
fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).map_err(|e| anyhow!("{e}"))
}

/// One row with one engine.
pub struct Bench {
    which: Which,
    work: Work,
    engine: Box<dyn Engine>,
    streams: Vec<Stream>,
}

impl Bench {
    /// Opens the engine in an empty directory.
    pub fn open(which: Which, work: Work, dir: &Path) -> Result<Bench> {
        let setup = Setup { groups: work.groups, window: work.window, files: Files::Usual };
        let engine = engine::open(which, dir, setup)?;
        while engine.prepare()? {}
        let streams = (0..work.threads).map(|thread| Stream::new(work, thread)).collect();
        Ok(Bench { which, work, engine, streams })
    }

    /// Runs the row for a while.
    pub fn run(&mut self, took: Duration) -> Result<Figures> {
        // What others left to write must not be written during this run.
        rustix::fs::sync();
        let (engine, work) = (self.engine.as_ref(), self.work);
        let ended = AtomicBool::new(false);
        let start = Instant::now() + took / 5;
        let end = start + took;
        let parts = std::thread::scope(|scope| -> Result<Vec<_>> {
            let caretaker = scope.spawn(|| -> Result<()> {
                let mut purged = Instant::now();
                while !ended.load(Ordering::Acquire) {
                    if !engine.prepare()? {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    if purged.elapsed() >= PURGE_EVERY {
                        purged = Instant::now();
                        engine.purge()?;
                    }
                }
                Ok(())
            });
            let mut threads = Vec::new();
            for stream in &mut self.streams {
                let thread = Thread {
                    engine,
                    stream,
                    // Its own: a count of references that all threads share would be what is measured.
                    payload: Payload::new(work.size),
                    window: work.window,
                    outstanding: VecDeque::new(),
                    latency: histogram()?,
                    writes: 0,
                };
                threads.push(scope.spawn(move || thread.run(start, end)));
            }
            let parts = threads
                .into_iter()
                .map(|t| t.join().map_err(|_| anyhow!("a writing thread panicked"))?)
                .collect();
            ended.store(true, Ordering::Release);
            caretaker.join().map_err(|_| anyhow!("the caretaker panicked"))??;
            parts
        })
        .with_context(|| format!("{} {}", self.which.name(), work.name))?;
        let mut latency = histogram()?;
        let mut writes = 0;
        for (part, n) in parts {
            latency.add(part).map_err(|e| anyhow!("{e}"))?;
            writes += n;
        }
        let writes_per_s = writes as f64 / took.as_secs_f64();
        let us = |quantile| latency.value_at_quantile(quantile) as f64 / 1000.0;
        Ok(Figures {
            writes_per_s,
            entries_per_s: writes_per_s * (work.span * work.each) as f64,
            p50_us: us(0.5),
            p99_us: us(0.99),
            max_us: latency.max() as f64 / 1000.0,
        })
    }
}
