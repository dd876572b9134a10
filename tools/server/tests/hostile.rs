//! Three real server processes, each in a network namespace of its own. Clients read and write through
//! different nodes while ways between nodes are cut (both ways, one way), nodes are taken off the network,
//! paused for longer than a lease, made to hand their leaderships over, killed and started again. What the
//! clients saw must be linearizable, and at the end everything acknowledged must be there, whichever node is
//! asked. Some reads only ask for what is no older than a bound: they are judged by that.
//!
//! `CATAMARAN_HOSTILE_SECONDS` says how long (default 30), `CATAMARAN_SEED` repeats the choices of a run, not
//! their timing. `CATAMARAN_HOSTILE=must` says that this machine has network namespaces: without them the test fails
//! then, and is otherwise skipped, loudly.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by them")]

mod support;

use catamaran::client::{Blocking, RemoteClient};
use catamaran::error::{Error, Outcome};
use catamaran::sim::linear::{Answer, Effort, History, Op, Value, Verdict};
use catamaran::store::ReadLevel;
use catamaran::types::StoreId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::net::{Isolated, Net, isolate};
use support::{Draw, Plan, Servers, client, load, number, status, wait_for};

const REGIONS: u64 = 4;
const CLIENTS: u64 = 8;
const SLOTS: u64 = 6;
/// A key is used for so long, by all clients; then the next one, so that each history stays short.
const KEY_LIFE: Duration = Duration::from_secs(4);
const NODES: [u64; 3] = [1, 2, 3];
const PATIENCE: Duration = Duration::from_secs(90);

/// One call as its client saw it, in nanoseconds since the start.
struct Seen {
    client: u64,
    called: u64,
    key: Vec<u8>,
    op: Op,
    /// A read that may be so much older, in nanoseconds; no part of what must be linearizable.
    within: Option<u64>,
    end: End,
}

#[derive(Clone, Copy)]
enum End {
    Answered(u64, Answer),
    /// It certainly had no effect.
    Failed,
    Unknown,
}

fn number_of(value: &[u8]) -> u64 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

fn read(asked: &Blocking, key: &[u8], level: ReadLevel) -> Result<Value, Error> {
    let found = asked.get_at(key.to_vec(), level)?;
    Ok(found.map(|value| number_of(&value)))
}

/// One client: calls, until told to stop.
struct Caller {
    id: u64,
    asked: Blocking,
    draw: Draw,
    start: Instant,
    /// What it last saw in each slot.
    known: BTreeMap<Vec<u8>, Value>,
    written: u64,
    seen: Vec<Seen>,
}

impl Caller {
    fn new(id: u64, addresses: &[String], draw: &mut Draw, start: Instant) -> Caller {
        // Most talk to one node each, whatever becomes of it; the others to all.
        let addresses = match (id as usize) < 2 * addresses.len() {
            true => std::slice::from_ref(&addresses[id as usize % addresses.len()]),
            false => addresses,
        };
        let (asked, draw) =
            (client(addresses, Duration::from_millis(1500)), Draw::new(draw.below(1 << 40)));
        Caller { id, asked, draw, start, known: BTreeMap::new(), written: 0, seen: Vec::new() }
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// A value that nobody else writes.
    fn fresh(&mut self) -> u64 {
        self.written += 1;
        self.id << 40 | self.written
    }

    fn call(&mut self) {
        let slot = self.draw.below(SLOTS);
        let life = self.start.elapsed().as_secs() / KEY_LIFE.as_secs();
        let key = load::key(REGIONS, slot, &format!("slot{slot}life{life}"));
        let known = self.known.get(&key).copied().flatten();
        let mut level = ReadLevel::Linearizable;
        let op = match self.draw.below(100) {
            0..20 => Op::Get,
            20..40 => {
                level = ReadLevel::Lease;
                Op::Get
            }
            40..50 => {
                let ms = [50, 300, 1_000, 3_000][self.draw.below(4) as usize];
                level = ReadLevel::Stale { max: Duration::from_millis(ms) };
                Op::Get
            }
            50..75 => Op::Put(self.fresh()),
            75..95 => Op::Cas { expect: known, new: Some(self.fresh()) },
            _ => Op::Delete,
        };
        let called = self.now();
        let bytes = |value: u64| value.to_string().into_bytes();
        let told = match op {
            Op::Get => read(&self.asked, &key, level).map(Answer::Read),
            Op::Put(value) => self.asked.put(&key, bytes(value)).map(|()| Answer::Done),
            Op::Delete => self.asked.delete(&key).map(|()| Answer::Done),
            Op::Cas { expect, new } => {
                let (expect, new) = (expect.map(bytes), new.map(bytes));
                let swap = self.asked.compare_and_swap(&key, expect.as_deref(), new.as_deref());
                swap.map(|swap| if swap.swapped { Answer::Swapped } else { Answer::Refused })
            }
        };
        let within = match level {
            ReadLevel::Stale { max } => Some(max.as_nanos() as u64),
            _ => None,
        };
        let value = match (op, &told) {
            (_, Ok(Answer::Read(value))) if within.is_none() => Some(*value),
            (Op::Put(value), Ok(_)) => Some(Some(value)),
            (Op::Cas { new, .. }, Ok(Answer::Swapped)) => Some(new),
            (Op::Delete, Ok(_)) => Some(None),
            _ => None,
        };
        if let Some(value) = value {
            self.known.insert(key.clone(), value);
        }
        let end = match told {
            Ok(answer) => End::Answered(self.now(), answer),
            Err(error) if error.outcome() == Outcome::NotApplied => End::Failed,
            Err(_) => End::Unknown,
        };
        self.seen.push(Seen { client: self.id, called, key, op, within, end });
    }

    fn run(mut self, stop: &AtomicBool) -> Vec<Seen> {
        while !stop.load(Ordering::Relaxed) {
            self.call();
            // The servers need the processor, too.
            std::thread::sleep(Duration::from_micros(500));
        }
        self.seen
    }
}

/// Something that is done to the cluster for a while.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Fault {
    /// Its messages get to nobody; it hears the others.
    Mute,
    /// It hears nobody; the others hear it.
    Deaf,
    /// Its messages to one of the others get lost.
    OneWay,
    /// It and one other do not hear each other.
    Pair,
    /// It and the others do not hear each other; its clients reach it.
    Alone,
    /// It is off the network.
    Unplugged,
    /// It stands still for longer than a lease lasts, and goes on as if nothing had been.
    Paused,
    /// It is killed, and started again.
    Killed,
    /// It is told to hand all its leaderships to one of the others.
    Deposed,
}

const FAULTS: [Fault; 9] = [
    Fault::Mute,
    Fault::Deaf,
    Fault::OneWay,
    Fault::Pair,
    Fault::Alone,
    Fault::Unplugged,
    Fault::Paused,
    Fault::Killed,
    Fault::Deposed,
];

/// Does faults to a cluster, and takes them back.
struct Injector {
    net: Net,
    servers: Servers,
    draw: Draw,
    deck: Vec<Fault>,
    cuts: BTreeSet<(u64, u64)>,
    done: BTreeMap<Fault, u64>,
}

impl Injector {
    /// The next kind: each comes once before any comes again.
    fn kind(&mut self) -> Fault {
        if self.deck.is_empty() {
            self.deck = FAULTS.to_vec();
        }
        let at = self.draw.below(self.deck.len() as u64) as usize;
        self.deck.swap_remove(at)
    }

    /// Any node; but half of the time the one that leads most.
    fn victim(&mut self) -> u64 {
        let led = |id: &u64| {
            let status = status(self.servers.address(*id));
            status.map_or(0, |status| status.regions.iter().filter(|region| region.leads).count())
        };
        match self.draw.below(2) {
            0 => 1 + self.draw.below(3),
            _ => NODES.into_iter().max_by_key(led).unwrap(),
        }
    }

    fn begin(&mut self, fault: Fault, at: u64) {
        *self.done.entry(fault).or_default() += 1;
        let (next, last) = (at % 3 + 1, (at + 1) % 3 + 1);
        let ways = match fault {
            Fault::Mute => vec![(at, next), (at, last)],
            Fault::Deaf => vec![(next, at), (last, at)],
            Fault::OneWay => vec![(at, next)],
            Fault::Pair => vec![(at, next), (next, at)],
            Fault::Alone => vec![(at, next), (at, last), (next, at), (last, at)],
            Fault::Unplugged | Fault::Paused | Fault::Killed | Fault::Deposed => Vec::new(),
        };
        for (from, to) in ways {
            if self.cuts.insert((from, to)) {
                self.net.cut(from, to);
            }
        }
        match fault {
            Fault::Unplugged => self.net.unplug(at),
            Fault::Paused => self.servers.pause(at),
            Fault::Killed => self.servers.kill(at),
            Fault::Deposed => self.depose(at, next),
            _ => {}
        }
    }

    /// As far as they can be reached.
    fn depose(&self, at: u64, heir: u64) {
        let Some(status) = status(self.servers.address(at)) else { return };
        let asked = client(&[self.servers.address(at).to_owned()], Duration::from_millis(500));
        for led in status.regions.iter().filter(|region| region.leads) {
            let _ = asked.transfer_leader(led.region.id, Some(StoreId(heir)));
        }
    }

    fn end(&mut self, fault: Fault, at: u64) {
        match fault {
            Fault::Unplugged => self.net.plug(at),
            Fault::Paused => self.servers.resume(at),
            Fault::Killed => self.servers.spawn(at),
            _ => {}
        }
        for (from, to) in std::mem::take(&mut self.cuts) {
            self.net.mend(from, to);
        }
    }

    /// One fault, sometimes two at once; gives how long the cluster took to serve again through every node.
    fn round(&mut self, number: u64, start: Instant) -> Duration {
        let mut faults = vec![(self.kind(), self.victim())];
        if self.draw.below(4) == 0 {
            let second = (self.kind(), 1 + self.draw.below(3));
            // One node is not killed and paused at once.
            if second.1 != faults[0].1 {
                faults.push(second);
            }
        }
        for (fault, at) in &faults {
            self.begin(*fault, *at);
        }
        std::thread::sleep(self.draw.between(900, 3_000));
        for (fault, at) in faults.iter().rev() {
            self.end(*fault, *at);
        }
        let healed = Instant::now();
        self.serves(number);
        let took = healed.elapsed();
        let at = start.elapsed();
        println!("{at:>7.1?} {faults:?}, healed; every node serves all regions after {took:.2?}");
        std::thread::sleep(self.draw.between(200, 1_000));
        took
    }

    /// Waits until every region is written through every node.
    fn serves(&self, number: u64) {
        for id in NODES {
            let probe = client(&[self.servers.address(id).to_owned()], Duration::from_secs(1));
            for region in 0..REGIONS {
                let key = load::key(REGIONS, region, "probe");
                wait_for(&format!("region {region} through node {id}"), PATIENCE, || {
                    let put = probe.put(&key, number.to_string());
                    put.inspect_err(|error| {
                        if number > 0 {
                            println!("    node {id}, region {region}: {error}");
                        }
                    })
                    .ok()
                });
            }
        }
    }
}

/// The judge of reads with a bound.
mod bounded {
    use super::{Answer, BTreeMap, End, Op, Seen, Value};

    /// What its client knows of a change: from the call to the answer, or to the end of time.
    struct Change {
        called: u64,
        ended: u64,
        left: Value,
    }

    impl Change {
        /// `None` if it certainly did not happen.
        fn of(one: &Seen) -> Option<Change> {
            let left = match one.op {
                Op::Get => return None,
                Op::Put(value) => Some(value),
                Op::Cas { new, .. } => new,
                Op::Delete => None,
            };
            let ended = match one.end {
                End::Failed | End::Answered(_, Answer::Refused) => return None,
                End::Answered(at, _) => at,
                End::Unknown => u64::MAX,
            };
            Some(Change { called: one.called, ended, left })
        }
    }

    /// Gives how many reads there were, or words for one whose value is older than it may be: every change that could have
    /// left the value had ended before another was called, and that one was acknowledged when the bound began. No value
    /// is written twice, so nothing can have brought it back; only "nothing" is left by any deletion.
    pub fn judge(seen: &[Seen]) -> Result<usize, String> {
        let mut changes: BTreeMap<&[u8], Vec<Change>> = BTreeMap::new();
        for one in seen {
            let nothing = || vec![Change { called: 0, ended: 0, left: None }];
            changes.entry(&one.key).or_insert_with(nothing).extend(Change::of(one));
        }
        let mut judged = 0;
        for one in seen {
            let (Some(within), End::Answered(at, Answer::Read(value))) = (one.within, one.end)
            else {
                continue;
            };
            judged += 1;
            let from = one.called.saturating_sub(within);
            let of_key = &changes[&one.key[..]];
            let settled = of_key.iter().filter(|change| change.ended <= from);
            let latest = settled.map(|change| change.called).max().unwrap_or_default();
            let explains = |change: &Change| {
                change.left == value && change.called < at && change.ended >= latest
            };
            if !of_key.iter().any(explains) {
                return Err(format!(
                    "client {} read {value:?} of {} at {}, within {within} ns: a change called at {latest} \
                     was acknowledged before that, and began after whatever had left the value",
                    one.client,
                    String::from_utf8_lossy(&one.key),
                    one.called,
                ));
            }
        }
        Ok(judged)
    }

    /// That it looks at all: the first of two writes, read too long after the second, is found.
    pub fn judge_finds_an_old_value(seen: &mut Vec<Seen>) {
        let written = |one: &Seen| match (one.op, one.end) {
            (Op::Put(value), End::Answered(at, Answer::Done)) => Some((one.called, at, value)),
            _ => None,
        };
        let overwritten = seen.iter().find_map(|first| {
            let (_, ended, value) = written(first)?;
            let mut later = seen.iter().filter(|one| one.key == first.key).filter_map(written);
            let (_, at, _) = later.find(|(called, ..)| *called > ended)?;
            Some((first.key.clone(), at, value))
        });
        let (key, at, value) = overwritten.expect("a key that was written twice");
        let (within, called) = (1_000_000, at + 1_000_000);
        let end = End::Answered(called + 1, Answer::Read(Some(value)));
        let (client, op, within) = (99, Op::Get, Some(within));
        seen.push(Seen { client, called, key, op, within, end });
        assert!(judge(seen).is_err());
        seen.pop();
    }
}

fn history(seen: &mut [Seen]) -> History {
    seen.sort_by_key(|one| one.called);
    let mut history = History::new();
    for one in seen.iter().filter(|one| one.within.is_none()) {
        let id = history.call(one.client, one.called, &one.key, one.op);
        match one.end {
            End::Answered(at, answer) => history.returned(id, at, answer),
            End::Failed => history.failed(id),
            End::Unknown => {}
        }
    }
    history
}

/// Reads every key through every node: what was acknowledged and is not there breaks the history.
fn read_back(servers: &Servers, start: Instant, seen: &mut Vec<Seen>) {
    let keys: BTreeSet<Vec<u8>> = seen.iter().map(|one| one.key.clone()).collect();
    for id in NODES {
        let address = [servers.address(id).to_owned()];
        let remote = RemoteClient::new(&address, None, Duration::from_secs(30)).unwrap();
        let asked = remote.client().blocking();
        for (at, key) in keys.iter().enumerate() {
            let level = [ReadLevel::Linearizable, ReadLevel::Lease][at % 2];
            let called = start.elapsed().as_nanos() as u64;
            let value = read(&asked, key, level).unwrap();
            let end = End::Answered(start.elapsed().as_nanos() as u64, Answer::Read(value));
            let (client, key, op) = (CLIENTS + id, key.clone(), Op::Get);
            seen.push(Seen { client, called, key, op, within: None, end });
        }
    }
}

fn count(seen: &[Seen]) {
    let mut counts: BTreeMap<&str, [u64; 3]> = BTreeMap::new();
    for one in seen {
        let name = match one.op {
            Op::Get if one.within.is_some() => "bounded get",
            Op::Get => "get",
            Op::Put(_) => "put",
            Op::Delete => "delete",
            Op::Cas { .. } => "compare-and-swap",
        };
        let at = match one.end {
            End::Answered(..) => 0,
            End::Failed => 1,
            End::Unknown => 2,
        };
        counts.entry(name).or_default()[at] += 1;
    }
    for (name, [answered, failed, unknown]) in counts {
        println!("{name}: {answered} answered, {failed} failed for certain, {unknown} unknown");
    }
}

#[test]
fn what_clients_see_over_a_hostile_network_is_linearizable() {
    let name = "what_clients_see_over_a_hostile_network_is_linearizable";
    match isolate(name) {
        Isolated::Inside => {}
        Isolated::Passed => return,
        Isolated::Impossible(why) => {
            let must = std::env::var("CATAMARAN_HOSTILE").is_ok_and(|word| word == "must");
            assert!(!must, "{why}");
            return support::skip(name, &why);
        }
    }
    let length = Duration::from_secs(number("CATAMARAN_HOSTILE_SECONDS").unwrap_or(30));
    let mut draw = Draw::start();
    let net = Net::lay(3);
    let (addresses, within) = (net.addresses(), net.within());
    let servers =
        Servers::founded(3, Plan { regions: REGIONS, addresses, within, ..Plan::default() });
    let all = servers.addresses();
    let start = Instant::now();
    let callers: Vec<Caller> =
        (0..CLIENTS).map(|id| Caller::new(id, &all, &mut draw, start)).collect();
    let (deck, cuts, done) = Default::default();
    let mut injector = Injector { net, servers, draw, deck, cuts, done };
    injector.serves(0);

    let stop = AtomicBool::new(false);
    let mut recoveries = Vec::new();
    let mut seen: Vec<Seen> = std::thread::scope(|scope| {
        let stop = &stop;
        let running: Vec<_> =
            callers.into_iter().map(|caller| scope.spawn(move || caller.run(stop))).collect();
        // A failing round must not leave the callers running: catch, stop them, go on failing.
        let rounds = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 1.. {
                if start.elapsed() >= length {
                    break;
                }
                recoveries.push(injector.round(round, start));
            }
        }));
        stop.store(true, Ordering::Relaxed);
        let seen = running.into_iter().flat_map(|caller| caller.join().unwrap()).collect();
        if let Err(panic) = rounds {
            for id in NODES {
                println!("server {id}:\n{}", injector.servers.log_tail(id));
            }
            std::panic::resume_unwind(panic);
        }
        seen
    });
    read_back(&injector.servers, start, &mut seen);
    count(&seen);
    println!("faults: {:?} in {:.0?}", injector.done, start.elapsed());
    println!("{}", support::bars::draw("served again", recoveries, Duration::from_millis(500)));

    match bounded::judge(&seen) {
        Ok(judged) => println!("{judged} bounded reads were new enough"),
        Err(violation) => panic!("{violation}"),
    }
    bounded::judge_finds_an_old_value(&mut seen);
    let history = history(&mut seen);
    let judged = Instant::now();
    let verdict = history.check(Effort::default());
    println!("{} operations judged in {:.1?}: {verdict:?}", history.len(), judged.elapsed());
    if let Verdict::Violation(explanation) = &verdict {
        panic!("{explanation}");
    }
    // Nor is any key too hard to judge.
    assert_eq!(verdict, Verdict::Linearizable);
    assert!(seen.iter().any(|one| matches!(one.end, End::Answered(_, Answer::Swapped))));

    // That the judge looks at all: a read that forgets an acknowledged write is found.
    let mut spoilt = history.clone();
    let now = start.elapsed().as_nanos() as u64;
    let written = seen
        .iter()
        .rev()
        .find(|one| matches!((one.op, &one.end), (Op::Put(_), End::Answered(_, Answer::Done))));
    let key = &written.unwrap().key;
    for value in [None, Some(u64::MAX)] {
        let id = spoilt.call(99, now, key, Op::Get);
        spoilt.returned(id, now + 1, Answer::Read(value));
    }
    assert!(matches!(spoilt.check(Effort::default()), Verdict::Violation(_)));
}
