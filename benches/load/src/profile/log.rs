//! The log engine alone: threads that keep `window` writes outstanding each, one writer that syncs.

use super::Place;
use crate::args::Plan;
use crate::drive::Progress;
use crate::ledger::value;
use crate::machine::Used;
use crate::record::{Record, Window};
use crate::report::{Cost, LogFigures, Report};
use crate::verify::Verified;
use crate::watch::{say, watch};
use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use catamaran::env::os::OsDisk;
use catamaran::log::{Entry, Log, LogBatch, Options, Seq};
use catamaran::types::LogPosition;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A thread drops its groups' old entries when it has written this many since the last time.
const COMPACT_EVERY: u64 = 50_000;
/// Entries that stay when it does, in each group: something to verify.
const KEPT: u64 = 64;

/// Tells writers how far the log is durable.
#[derive(Default)]
struct Durable {
    state: Mutex<(Seq, bool)>,
    moved: Condvar,
}

impl Durable {
    fn publish(&self, seq: Seq, failed: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = (seq.max(state.0), failed || state.1);
        self.moved.notify_all();
    }

    /// Waits until `seq` is durable.
    fn wait(&self, seq: Seq) -> Result<Seq> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.0 < seq && !state.1 {
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.1 {
            return Err(anyhow!("the log's writer failed"));
        }
        Ok(state.0)
    }
}

fn options() -> Options {
    Options { spare_segments: 4, ..Options::default() }
}

fn cost(log: &Log) -> Cost {
    let stats = log.stats();
    Cost {
        entries: stats.entries,
        fsyncs: stats.fsyncs,
        log_bytes: stats.bytes_written,
        cpu: Used::now().cpu,
        ..Cost::default()
    }
}

/// What one group holds, for its thread and the read-back.
#[derive(Clone, Copy)]
struct Group {
    first: u64,
    last: u64,
    acked: u64,
}

/// Groups of a write, by place, and the last index it gave each.
type Touched = Vec<(usize, u64)>;

/// One thread that writes: its groups, and the writes that are outstanding.
struct Thread<'a> {
    plan: &'a Plan,
    log: &'a Log,
    durable: &'a Durable,
    index: usize,
    groups: Vec<Group>,
    next_group: usize,
    outstanding: VecDeque<(Seq, Instant, Touched)>,
    record: Record,
    since_compaction: u64,
}

impl Thread<'_> {
    fn group_id(&self, at: usize) -> u64 {
        (at * self.plan.threads + self.index + 1) as u64
    }

    fn entry(plan: &Plan, group: u64, index: u64) -> Entry {
        let mut data = Vec::with_capacity(plan.value_size);
        value(plan.seed, group as u32, index as u32, 1, plan.value_size, &mut data);
        Entry { index, term: 1, kind: 0, data: Bytes::from(data) }
    }

    /// The next write: `entries` entries over `span` groups, evenly.
    fn batch(&mut self) -> (LogBatch, Touched) {
        let span = (self.plan.span as usize).min(self.groups.len());
        let mut batch = LogBatch::new();
        let mut touched = Vec::with_capacity(span);
        for nth in 0..span {
            let at = (self.next_group + nth) % self.groups.len();
            let whole = self.plan.entries as usize;
            let count = (whole * (nth + 1) / span - whole * nth / span) as u64;
            let id = self.group_id(at);
            let group = &mut self.groups[at];
            let from = group.last + 1;
            group.last += count;
            let plan = self.plan;
            batch.append(id, (from..=group.last).map(|index| Self::entry(plan, id, index)));
            touched.push((at, group.last));
        }
        self.next_group = (self.next_group + span) % self.groups.len();
        (batch, touched)
    }

    /// Lets go of old entries, as every user of a log must, or it grows without end.
    fn compact(&mut self) -> Result<()> {
        self.since_compaction = 0;
        let mut batch = LogBatch::new();
        for at in 0..self.groups.len() {
            let id = self.group_id(at);
            let group = &mut self.groups[at];
            let to = group.acked.saturating_sub(KEPT);
            if to >= group.first {
                batch.compact_to(id, LogPosition { index: to, term: 1 });
                group.first = to + 1;
            }
        }
        if !batch.is_empty() {
            self.log.submit(batch)?;
        }
        Ok(())
    }

    fn run(mut self, window: Window, progress: &Progress) -> Result<(Record, usize, Vec<Group>)> {
        loop {
            let now = Instant::now();
            if now >= window.end {
                break;
            }
            if self.outstanding.len() >= self.plan.window {
                self.settle(window, progress)?;
                continue;
            }
            let (batch, touched) = self.batch();
            let seq = self.log.submit(batch)?;
            self.outstanding.push_back((seq, now, touched));
            self.since_compaction += self.plan.entries;
            if self.since_compaction >= COMPACT_EVERY {
                self.compact()?;
            }
        }
        while !self.outstanding.is_empty() {
            self.settle(window, progress)?;
        }
        Ok((self.record, self.index, self.groups))
    }

    /// Waits for the oldest write; takes those that became durable with it.
    fn settle(&mut self, window: Window, progress: &Progress) -> Result<()> {
        let Some(oldest) = self.outstanding.front().map(|write| write.0) else { return Ok(()) };
        let durable = self.durable.wait(oldest)?;
        let now = Instant::now();
        while let Some((seq, began, touched)) = self.outstanding.pop_front() {
            if seq > durable {
                self.outstanding.push_front((seq, began, touched));
                break;
            }
            for (at, last) in touched {
                self.groups[at].acked = last;
            }
            self.record.answered(window, began, now, self.plan.entries, 0);
            progress.ops.fetch_add(self.plan.entries, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Runs `work` with a writer and a caretaker (spares, purge) beside it.
fn with_writer<T>(log: &Log, durable: &Durable, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| -> Result<()> {
            loop {
                match log.write_round() {
                    Ok(Some(round)) => durable.publish(round.durable, false),
                    Ok(None) if ended.load(Ordering::Acquire) => return Ok(()),
                    Ok(None) => {
                        // The purge runs rounds too.
                        durable.publish(log.durable(), false);
                        log.wait_for_work(Duration::from_millis(5));
                    }
                    Err(error) => {
                        durable.publish(Seq(0), true);
                        return Err(error.into());
                    }
                }
            }
        });
        let caretaker = scope.spawn(|| -> Result<()> {
            while !ended.load(Ordering::Acquire) {
                if !log.prepare()? {
                    log.purge()?;
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            Ok(())
        });
        let result = work();
        ended.store(true, Ordering::Release);
        log.wake_writer();
        let panicked = |_| anyhow!("a thread of the log panicked");
        writer.join().map_err(panicked)??;
        caretaker.join().map_err(panicked)??;
        result
    })
}

/// Runs the profile.
pub(super) fn run(plan: &Plan) -> Result<Report> {
    let place = Place::new(plan.data_dir.as_deref())?;
    let dir = place.path().join("log");
    let (log, _) = Log::open(Arc::new(OsDisk), &dir, options())?;
    while log.prepare()? {}
    let durable = Durable::default();
    let progress = Progress::default();
    let start = Instant::now() + plan.warmup;
    let window = Window { start, end: start + plan.duration };
    let mut costs = (Cost::default(), Cost::default());
    let threads = with_writer(&log, &durable, || {
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..plan.threads)
                .map(|index| {
                    let count = (plan.groups as usize).saturating_sub(index).div_ceil(plan.threads);
                    let thread = Thread {
                        plan,
                        log: &log,
                        durable: &durable,
                        index,
                        groups: vec![Group { first: 1, last: 0, acked: 0 }; count.max(1)],
                        next_group: 0,
                        outstanding: VecDeque::new(),
                        record: Record::new(),
                        since_compaction: 0,
                    };
                    let progress = &progress;
                    scope.spawn(move || thread.run(window, progress))
                })
                .collect();
            std::thread::sleep(window.start.saturating_duration_since(Instant::now()));
            costs.0 = cost(&log);
            watch(window, &progress);
            costs.1 = cost(&log);
            running
                .into_iter()
                .map(|t| t.join().map_err(|_| anyhow!("a writing thread panicked"))?)
                .collect::<Result<Vec<_>>>()
        })
    })?;
    let mut record = Record::new();
    for (part, ..) in &threads {
        record.add(part);
    }
    let measured = window.end - window.start;
    let mut report = Report::new(plan, &record, measured, &costs.1.since(&costs.0));
    report.log = Some(LogFigures {
        groups: plan.groups,
        threads: plan.threads,
        entries_per_write: plan.entries,
        span: plan.span,
        window: plan.window,
        writes_per_s: record.requests as f64 / measured.as_secs_f64(),
        entries_per_s: record.ops as f64 / measured.as_secs_f64(),
    });
    log.barrier()?;
    drop(log);
    if plan.verify {
        say("reading back");
        let groups = threads.iter().map(|(_, index, groups)| (*index, &groups[..]));
        report.verified = Some(read_back(plan, &dir, groups)?);
    }
    Ok(report)
}

/// Opens the log again and compares every entry that was not compacted.
fn read_back<'a>(
    plan: &Plan,
    dir: &Path,
    threads: impl Iterator<Item = (usize, &'a [Group])>,
) -> Result<Verified> {
    let (log, _) = Log::open(Arc::new(OsDisk), dir, options()).context("cannot reopen the log")?;
    let mut verified = Verified::default();
    for (index, groups) in threads {
        for (at, group) in groups.iter().enumerate() {
            let id = (at * plan.threads + index + 1) as u64;
            let held = log.entries(id, group.first, group.acked + 1, u64::MAX).unwrap_or_default();
            verified.checked += group.acked + 1 - group.first;
            let mut held = held.into_iter().peekable();
            for wanted in group.first..=group.acked {
                match held.next_if(|entry| entry.index == wanted) {
                    Some(entry) if entry == Thread::entry(plan, id, wanted) => {}
                    Some(_) => verified.wrong += 1,
                    None => verified.missing += 1,
                }
            }
        }
    }
    Ok(verified)
}
