//! The generator: logical clients as small state machines, many on one thread, each with at most one
//! request outstanding.
//!
//! * **Closed loop** (no rate): a client sends its next request when the last one is answered.
//! * **Open loop** (`--rate`): requests are due at fixed instants. A due request takes an idle client;
//!   if there is none it waits, and its latency counts from when it was due. So a target that
//!   stalls shows the stall in every request that fell into it (no coordinated omission).

use crate::args::{Plan, Spread};
use crate::keys::{Chooser, KeySpace, Shape, mix};
use crate::ledger::{Finding, Ledger, value};
use crate::record::{Record, Window};
use crate::target::{Answer, Completion, Failure, ReadyQueue, Request, Target, Work};
use bytes::Bytes;
use catamaran::codec::command::BatchBuilder;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a client rests after an error, so that a refusing target is not hammered.
const REST: Duration = Duration::from_millis(5);
/// Most requests handed over at once: keeps the first from waiting for the last to be built.
const HAND_OVER: usize = 64;
/// About so many operations are looked up in the ledgers at once.
const LOOK_UP: usize = 1024;

/// What all generator threads share.
#[derive(Debug, Default)]
pub struct Progress {
    /// Operations acknowledged so far, warm-up included.
    pub ops: AtomicU64,
    /// Requests failed so far.
    pub errors: AtomicU64,
}

/// What a finished thread hands back: its counts and its clients, for the read-back.
#[derive(Debug)]
pub struct Driven {
    /// What it counted.
    pub record: Record,
    /// What its clients must find, by client.
    pub ledgers: Vec<(u32, Ledger)>,
    /// Requests that were never answered.
    pub abandoned: u64,
}

#[derive(Debug)]
struct Outstanding {
    intended: Instant,
    slots: Vec<u32>,
    reads: bool,
    pending: bool,
}

#[derive(Debug)]
struct Client {
    id: u32,
    ledger: Ledger,
    chooser: Chooser,
    rng: SmallRng,
    request: Outstanding,
}

/// A request whose slots are chosen.
#[derive(Clone, Copy, Debug)]
struct Drawn {
    client: u32,
    /// The slice of all of them, if it is one.
    slice: Option<u32>,
}

/// Due instants of one thread's requests.
#[derive(Clone, Copy, Debug)]
struct Pace {
    start: Instant,
    interval: f64,
    next: u64,
}

impl Pace {
    fn due(&self) -> Instant {
        self.start + Duration::from_secs_f64(self.interval * self.next as f64)
    }
}

/// One generator thread's work.
pub struct Generator<'a> {
    plan: &'a Plan,
    space: KeySpace,
    clients: Vec<Client>,
    idle: VecDeque<u32>,
    resting: VecDeque<(Instant, u32)>,
    pace: Option<Pace>,
    window: Window,
    outstanding: usize,
    ready: Arc<ReadyQueue>,
    record: Record,
    progress: &'a Progress,
    scratch: Vec<u8>,
    key: Vec<u8>,
}

impl<'a> Generator<'a> {
    /// The part `index` of `plan.threads` of the clients, beginning at `window.start` less the warm-up.
    pub fn new(
        plan: &'a Plan,
        space: KeySpace,
        shape: &Shape,
        index: usize,
        window: Window,
        progress: &'a Progress,
    ) -> Generator<'a> {
        let threads = plan.threads as u32;
        let clients: Vec<Client> = (0..plan.clients)
            .filter(|id| id % threads == index as u32)
            .map(|id| Client {
                id,
                ledger: Ledger::new(space.slots()),
                chooser: Chooser::new(space, shape.clone(), id),
                rng: SmallRng::seed_from_u64(mix(plan.seed) ^ mix(u64::from(id))),
                request: Outstanding {
                    intended: window.start,
                    slots: Vec::with_capacity(plan.batch),
                    reads: false,
                    pending: false,
                },
            })
            .collect();
        let pace = plan.rate.map(|rate| {
            let interval = plan.batch as f64 * f64::from(threads) / rate as f64;
            let stagger = interval * index as f64 / f64::from(threads);
            let start = window.start - plan.warmup + Duration::from_secs_f64(stagger);
            Pace { start, interval, next: 0 }
        });
        Generator {
            plan,
            space,
            idle: (0..clients.len() as u32).collect(),
            clients,
            resting: VecDeque::new(),
            pace,
            window,
            outstanding: 0,
            ready: Arc::default(),
            record: Record::new(),
            progress,
            scratch: Vec::new(),
            key: Vec::new(),
        }
    }

    /// Runs to the end of the window, then waits for what is outstanding.
    pub fn run(mut self, target: &dyn Target) -> Driven {
        let mut drawn = Vec::with_capacity(HAND_OVER);
        let mut requests = Vec::with_capacity(HAND_OVER);
        let mut done = Vec::new();
        loop {
            // What was due within the window goes out even if its end has come meanwhile.
            let now = Instant::now().min(self.window.end);
            let over = now == self.window.end;
            if over && self.pace.is_none() {
                break;
            }
            self.wake_rested(now);
            loop {
                let at_once = (LOOK_UP / self.plan.batch.max(1)).clamp(1, HAND_OVER);
                while drawn.len() < at_once
                    && let Some((client, intended)) = self.next_due(now)
                {
                    drawn.push(self.draw(client, intended));
                }
                let all = drawn.len() < at_once;
                self.look_up(&drawn);
                requests.extend(drawn.drain(..).filter_map(|drawn| self.build(drawn)));
                if requests.len() >= HAND_OVER || all && !requests.is_empty() {
                    target.submit(&mut requests, &self.ready);
                    requests.clear();
                }
                if all {
                    break;
                }
            }
            if over {
                break;
            }
            self.ready.take(&mut done, self.wait_until());
            self.complete(&mut done);
        }
        self.give_up_due();
        let patience = Instant::now() + self.plan.timeout + Duration::from_secs(5);
        while self.outstanding > 0 && Instant::now() < patience {
            self.ready.take(&mut done, patience);
            self.complete(&mut done);
        }
        self.finish()
    }

    /// The window is over: what was due in it and had no client to send it is not sent any more.
    fn give_up_due(&mut self) {
        let Some(pace) = &mut self.pace else { return };
        while pace.due() < self.window.end {
            self.record.unsent(self.window, pace.due());
            pace.next += 1;
        }
    }

    fn wake_rested(&mut self, now: Instant) {
        while let Some(&(until, client)) = self.resting.front() {
            if until > now {
                break;
            }
            self.resting.pop_front();
            self.idle.push_back(client);
        }
    }

    /// The next request that may go: by which client, and when it should have gone.
    fn next_due(&mut self, now: Instant) -> Option<(u32, Instant)> {
        let intended = match &self.pace {
            Some(pace) if pace.due() > now => return None,
            Some(pace) => pace.due(),
            None => now,
        };
        let client = self.idle.pop_front()?;
        if let Some(pace) = &mut self.pace {
            pace.next += 1;
        }
        let intended = if self.pace.is_none() { Instant::now() } else { intended };
        Some((client, intended))
    }

    fn wait_until(&self) -> Instant {
        let mut until = self.window.end;
        if let Some(&(rested, _)) = self.resting.front() {
            until = until.min(rested);
        }
        match &self.pace {
            Some(pace) if !self.idle.is_empty() => until.min(pace.due()),
            _ => until,
        }
    }

    /// Draws what the client's next request is to touch.
    fn draw(&mut self, at: u32, intended: Instant) -> Drawn {
        let plan = self.plan;
        let client = &mut self.clients[at as usize];
        let reads = plan.read_ratio > 0.0 && client.rng.random_bool(plan.read_ratio);
        client.request.intended = intended;
        client.request.reads = reads;
        client.request.pending = true;
        client.request.slots.clear();
        self.outstanding += 1;
        let mut slice = client.chooser.slice(&mut client.rng);
        let one_slice = (plan.spread == Spread::OneRegion).then_some(slice);
        let mut redraws = 0;
        while client.request.slots.len() < plan.batch {
            let slot = client.chooser.slot(slice, &mut client.rng);
            if !reads && !client.ledger.may_write(slot) {
                redraws += 1;
                if redraws < 10 * plan.batch {
                    continue;
                }
                // Nearly every slot is in doubt: a shorter batch, or none.
                break;
            }
            client.request.slots.push(slot);
            if plan.spread == Spread::AllRegions {
                slice = client.chooser.slice(&mut client.rng);
            }
        }
        Drawn { client: at, slice: one_slice }
    }

    /// Fetches the versions of what was drawn: looks into large tables, which do not wait for one another here.
    fn look_up(&self, drawn: &[Drawn]) {
        let versions = drawn.iter().flat_map(|drawn| {
            let client = &self.clients[drawn.client as usize];
            client.request.slots.iter().map(|slot| client.ledger.issued(*slot))
        });
        std::hint::black_box(versions.fold(0, |all, version| all ^ version));
    }

    /// The request. What cannot even be put together has failed there and then: it comes
    /// back through the queue as a refusal, and nothing is sent.
    fn build(&mut self, drawn: Drawn) -> Option<Request> {
        let (plan, at) = (self.plan, drawn.client);
        let client = &mut self.clients[at as usize];
        let reads = client.request.reads;
        let mut keys = Vec::new();
        let op_bytes = 7 + plan.key_size + plan.value_size;
        let room = if reads { 0 } else { plan.batch * op_bytes };
        let mut batch = BatchBuilder::with_capacity(room);
        let mut failed = None;
        for &slot in &client.request.slots {
            self.space.key(client.id, slot, &mut self.key);
            if reads {
                keys.push(Bytes::copy_from_slice(&self.key));
                continue;
            }
            self.scratch.clear();
            let version = client.ledger.issue(slot);
            value(plan.seed, client.id, slot, version, plan.value_size, &mut self.scratch);
            // All slots get their versions: a refusal takes them back from all.
            failed = failed.or(batch.put(&self.key, &self.scratch).err());
        }
        if let Some(error) = failed {
            let failure = Failure { may_be_applied: false, ..Failure::from(&error) };
            self.ready.push(at, Answer::Failed(failure));
            return None;
        }
        let work = if reads { Work::Read(keys) } else { Work::Write(batch) };
        Some(Request { client: at, slice: drawn.slice, work })
    }

    fn complete(&mut self, done: &mut Vec<Completion>) {
        let mut acknowledged = 0;
        for Completion { client: at, at: when, answer } in done.drain(..) {
            let client = &mut self.clients[at as usize];
            let request = &mut client.request;
            if !std::mem::take(&mut request.pending) {
                continue;
            }
            self.outstanding -= 1;
            let ops = request.slots.len() as u64;
            match answer {
                Answer::Written => {
                    self.record.answered(self.window, request.intended, when, ops, 0);
                }
                Answer::Values(values) => {
                    self.record.answered(self.window, request.intended, when, ops, ops);
                    let found = values.iter().map(Option::as_deref);
                    for (&slot, found) in request.slots.iter().zip(found) {
                        let size = self.plan.value_size;
                        let seed = self.plan.seed;
                        let scratch = &mut self.scratch;
                        let ledger = &client.ledger;
                        let finding = ledger.judge(seed, client.id, slot, found, size, scratch);
                        if finding != Finding::Right {
                            self.record.wrong_reads += 1;
                        }
                    }
                }
                Answer::Failed(failure) => {
                    self.record.failed(failure.kind);
                    self.progress.errors.fetch_add(1, Ordering::Relaxed);
                    match (request.reads, failure.may_be_applied) {
                        (true, _) => {}
                        (false, true) => client.ledger.unknown(&request.slots),
                        (false, false) => client.ledger.refused(&request.slots),
                    }
                    self.resting.push_back((Instant::now() + REST, at));
                    continue;
                }
            }
            acknowledged += ops;
            self.idle.push_back(at);
        }
        self.progress.ops.fetch_add(acknowledged, Ordering::Relaxed);
    }

    fn finish(mut self) -> Driven {
        for client in &mut self.clients {
            if client.request.pending && !client.request.reads {
                client.ledger.unknown(&client.request.slots);
            }
        }
        Driven {
            record: self.record,
            ledgers: self.clients.into_iter().map(|client| (client.id, client.ledger)).collect(),
            abandoned: self.outstanding as u64,
        }
    }
}

/// Runs all generator threads against a target; returns what they counted, put together, and the
/// ledgers by client. `watch` is called on this thread while they run.
pub fn drive(
    plan: &Plan,
    space: KeySpace,
    target: &dyn Target,
    progress: &Progress,
    watch: impl FnOnce(Window),
) -> (Driven, Window) {
    let shape = Shape::new(plan.distribution, &space);
    let start = Instant::now() + plan.warmup;
    let window = Window { start, end: start + plan.duration };
    let mut all = Driven { record: Record::new(), ledgers: Vec::new(), abandoned: 0 };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..plan.threads)
            .map(|index| {
                let shape = &shape;
                scope.spawn(move || {
                    Generator::new(plan, space, shape, index, window, progress).run(target)
                })
            })
            .collect();
        watch(window);
        for thread in threads {
            match thread.join() {
                Ok(driven) => {
                    all.record.add(&driven.record);
                    all.ledgers.extend(driven.ledgers);
                    all.abandoned += driven.abandoned;
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    all.ledgers.sort_by_key(|(client, _)| *client);
    (all, window)
}

#[cfg(test)]
mod stall_tests;
#[cfg(test)]
mod tests;
