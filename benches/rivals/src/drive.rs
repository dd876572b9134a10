//! Threads that do a row's work against an engine for a while.

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

struct Thread<'a> {
    engine: &'a dyn Engine,
    stream: Stream,
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

/// Runs one row against one engine in an empty directory.
pub fn measure(which: Which, work: Work, dir: &Path, took: Duration) -> Result<Figures> {
    let setup = Setup { groups: work.groups, window: work.window, files: Files::Usual };
    let engine = engine::open(which, dir, setup)?;
    while engine.tend()? {}
    // What earlier runs left to write must not be written during this one.
    rustix::fs::sync();
    let ended = AtomicBool::new(false);
    let payload = Payload::new(work.size);
    let start = Instant::now() + took / 5;
    let end = start + took;
    let parts = std::thread::scope(|scope| -> Result<Vec<_>> {
        let caretaker = scope.spawn(|| -> Result<()> {
            while !ended.load(Ordering::Acquire) {
                if !engine.tend()? {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            Ok(())
        });
        let threads: Vec<_> = (0..work.threads)
            .map(|thread| {
                let thread = Thread {
                    engine: engine.as_ref(),
                    stream: Stream::new(work, thread),
                    payload: payload.clone(),
                    window: work.window,
                    outstanding: VecDeque::new(),
                    latency: histogram()?,
                    writes: 0,
                };
                Ok(scope.spawn(move || thread.run(start, end)))
            })
            .collect::<Result<_>>()?;
        let parts = threads
            .into_iter()
            .map(|t| t.join().map_err(|_| anyhow!("a writing thread panicked"))?)
            .collect();
        ended.store(true, Ordering::Release);
        caretaker.join().map_err(|_| anyhow!("the caretaker panicked"))??;
        parts
    })
    .with_context(|| format!("{} {}", which.name(), work.name))?;
    let mut latency: Histogram<u64> = histogram()?;
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
