//! The linearizability judge against `stateright`'s on small random histories, explained ones and
//! spoilt ones, and the time it takes for long ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use catamaran::sim::linear::{Answer, Effort, History, Op, OpId, Value, Verdict};
use catamaran::sim::rng::Rng;
use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};
use std::time::Instant;

#[derive(Clone, Default)]
struct Register(Value);

impl SequentialSpec for Register {
    type Op = Op;
    type Ret = Answer;
    fn invoke(&mut self, op: &Op) -> Answer {
        match *op {
            Op::Put(value) => self.0 = Some(value),
            Op::Delete => self.0 = None,
            Op::Get => return Answer::Read(self.0),
            Op::Cas { expect, new } if self.0 == expect => {
                self.0 = new;
                return Answer::Swapped;
            }
            Op::Cas { .. } => return Answer::Refused,
        }
        Answer::Done
    }
}

/// One call or return, in the order of time.
#[derive(Clone, Debug)]
enum Event {
    Call(u64, Op),
    Return(u64, Answer),
}

/// How clients behave in a made-up history.
struct Style {
    clients: u64,
    operations: u64,
    /// How many of 1,000 operations never answer.
    unknown: u32,
    /// Whether every write writes its own value.
    values: u64,
}

/// Plays clients against a true register: each operation takes effect at some moment between its call
/// and its return, or, if it never answers, perhaps later or never.
fn play(rng: &mut Rng, style: &Style) -> Vec<Event> {
    let mut register = Register::default();
    let mut events = Vec::new();
    // Per client: what it waits for, and the answer once it took effect.
    let mut open: Vec<Option<(Op, Option<Answer>)>> = vec![None; style.clients as usize];
    let mut names: Vec<u64> = (0..style.clients).collect();
    let mut next_name = style.clients;
    let mut ghosts: Vec<Op> = Vec::new();
    let mut started = 0;
    while started < style.operations || open.iter().any(Option::is_some) {
        if !ghosts.is_empty() && rng.chance("ghost", 50) {
            let at = rng.range("ghost.which", 0..ghosts.len() as u64) as usize;
            register.invoke(&ghosts.swap_remove(at));
        }
        let who = rng.range("who", 0..style.clients) as usize;
        match open[who] {
            None if started < style.operations => {
                started += 1;
                let value = match style.values {
                    0 => started,
                    few => rng.range("value", 0..few),
                };
                let op = match rng.range("op", 0..10) {
                    0..4 => Op::Put(value),
                    4 => Op::Delete,
                    5..8 => Op::Get,
                    8 => Op::Cas { expect: register.0, new: Some(value) },
                    _ => Op::Cas { expect: Some(value.saturating_sub(2)), new: Some(value) },
                };
                events.push(Event::Call(names[who], op));
                open[who] = Some((op, None));
            }
            None => {}
            Some((op, None)) if rng.chance("unknown", style.unknown) => {
                // The client goes away; its successor has another name.
                ghosts.push(op);
                names[who] = next_name;
                next_name += 1;
                open[who] = None;
            }
            Some((op, None)) => open[who] = Some((op, Some(register.invoke(&op)))),
            Some((_, Some(answer))) => {
                events.push(Event::Return(names[who], answer));
                open[who] = None;
            }
        }
    }
    events
}

/// Changes one answer.
fn spoil(rng: &mut Rng, events: &mut [Event]) {
    let values: Vec<Value> = events
        .iter()
        .filter_map(|event| match event {
            Event::Call(_, Op::Put(value)) => Some(Some(*value)),
            _ => None,
        })
        .chain([None])
        .collect();
    let at = rng.range("spoil", 0..events.len() as u64) as usize;
    let value = rng.pick("spoil.value", &values).copied().flatten();
    let after = events[at..].iter_mut().find_map(|event| match event {
        Event::Return(_, answer) if *answer != Answer::Done => Some(answer),
        _ => None,
    });
    if let Some(answer) = after {
        *answer = match *answer {
            Answer::Read(_) => Answer::Read(value),
            Answer::Swapped => Answer::Refused,
            _ => Answer::Swapped,
        };
    }
}

fn ours(events: &[Event]) -> Verdict {
    let mut history = History::new();
    let mut open: Vec<(u64, OpId)> = Vec::new();
    for (time, event) in events.iter().enumerate() {
        match event {
            Event::Call(client, op) => {
                open.push((*client, history.call(*client, time as u64, b"k", *op)));
            }
            Event::Return(client, answer) => {
                let at = open.iter().position(|(c, _)| c == client).unwrap();
                history.returned(open.swap_remove(at).1, time as u64, *answer);
            }
        }
    }
    history.check(Effort::default())
}

fn theirs(events: &[Event]) -> bool {
    let mut tester = LinearizabilityTester::new(Register::default());
    for event in events {
        match event {
            Event::Call(client, op) => tester.on_invoke(*client, *op).unwrap(),
            Event::Return(client, answer) => tester.on_return(*client, *answer).unwrap(),
        };
    }
    tester.is_consistent()
}

#[test]
fn agrees_with_stateright() {
    let mut rng = Rng::new(7);
    let (mut explained, mut refuted) = (0, 0);
    for round in 0..4_000 {
        let style = Style {
            clients: 2 + round % 3,
            operations: 4 + round % 6,
            unknown: [0, 150, 350][round as usize % 3],
            values: [0, 3][round as usize / 7 % 2],
        };
        let mut events = play(&mut rng, &style);
        let spoilt = round % 4 != 0;
        if spoilt {
            spoil(&mut rng, &mut events);
        }
        let verdict = ours(&events);
        let fine = theirs(&events);
        match &verdict {
            Verdict::Linearizable => explained += 1,
            Verdict::Violation(why) => {
                assert!(!why.operations.is_empty());
                refuted += 1;
            }
            Verdict::Undecided { .. } => panic!("undecided"),
        }
        assert!(spoilt || fine, "the player is wrong: {events:?}");
        assert_eq!(
            verdict == Verdict::Linearizable,
            fine,
            "round {round}: {events:#?}\n{verdict:?}"
        );
    }
    assert!(explained > 1_000 && refuted > 500, "{explained} explained, {refuted} refuted");
}

#[test]
fn long_histories_are_judged_quickly() {
    let operations = if cfg!(debug_assertions) { 400 } else { 5_000 };
    for (unknown, seed) in [(0, 1), (20, 2), (100, 3)] {
        let style = Style { clients: 8, operations, unknown, values: 0 };
        let mut rng = Rng::new(seed);
        let mut events = play(&mut rng, &style);
        let start = Instant::now();
        assert_eq!(ours(&events), Verdict::Linearizable);
        let good = start.elapsed();
        // A read near the end finds what the first acknowledged write wrote. (One of unknown outcome
        // would not do: it may take effect this late.)
        let stale = events.iter().enumerate().find_map(|(at, event)| match event {
            Event::Call(client, Op::Put(value)) => {
                let later = events[at..].iter();
                let mut returns = later.filter(|e| matches!(e, Event::Return(c, _) if c == client));
                returns.next().map(|_| *value)
            }
            _ => None,
        });
        let last = events.iter_mut().rev().find_map(|event| match event {
            Event::Return(_, Answer::Read(value)) => Some(value),
            _ => None,
        });
        *last.unwrap() = stale;
        let start = Instant::now();
        let verdict = ours(&events);
        let why = match verdict {
            Verdict::Violation(why) => why,
            // One write in ten of unknown outcome, beside refused swaps: it may say that it is too hard.
            Verdict::Undecided { .. } if unknown == 100 => {
                println!(
                    "unknown {unknown}: explained in {good:?}, undecided in {:?}",
                    start.elapsed()
                );
                continue;
            }
            _ => panic!("the stale read: {verdict:?}"),
        };
        println!(
            "unknown {unknown}: explained in {good:?}, refuted in {:?}\n{why}",
            start.elapsed()
        );
        assert!(why.operations.len() < 50 || unknown > 0, "{why}");
    }
}
