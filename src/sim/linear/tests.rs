//! Histories written by hand, and the time a long one takes. Random ones against another checker are
//! in `tests/sim_linear.rs`.

use super::*;

/// Builds a history on key "k" from (client, call, return, op, answer); return 0 means never.
fn judge(rows: &[(u64, u64, u64, Op, Answer)]) -> Verdict {
    let mut history = History::new();
    for (client, from, to, op, answer) in rows {
        let id = history.call(*client, *from, b"k", *op);
        if *to > 0 {
            history.returned(id, *to, *answer);
        }
    }
    let calls: Vec<Call> = history.calls.clone();
    let ops = resolve(&calls);
    let (narrow, wide) = (dive(&ops, 100_000), sweep(&ops, 100_000));
    assert_eq!(narrow == Found::Order, wide == Found::Order, "{narrow:?} {wide:?}");
    history.check(Effort::default())
}

fn bad(rows: &[(u64, u64, u64, Op, Answer)]) -> Explanation {
    match judge(rows) {
        Verdict::Violation(explanation) => explanation,
        other => panic!("{other:?}"),
    }
}

use Answer::{Done, Read, Refused, Swapped};
use Op::{Delete, Get, Put};

fn cas(expect: u64, new: u64) -> Op {
    Op::Cas { expect: Some(expect), new: Some(new) }
}

#[test]
fn explained_histories() {
    let good = |rows: &[_]| assert_eq!(judge(rows), Verdict::Linearizable);
    good(&[]);
    good(&[(1, 1, 2, Get, Read(None))]);
    // A read beside a write may see either.
    good(&[(1, 1, 9, Put(1), Done), (2, 2, 3, Get, Read(None)), (2, 4, 5, Get, Read(Some(1)))]);
    // An unknown write may come late, or never.
    good(&[(1, 1, 0, Put(1), Done), (2, 2, 3, Get, Read(None)), (2, 8, 9, Get, Read(Some(1)))]);
    good(&[(1, 1, 0, Put(1), Done), (2, 2, 3, Get, Read(None))]);
    good(&[(1, 1, 2, Put(1), Done), (2, 3, 0, Delete, Done), (1, 4, 5, Get, Read(None))]);
    good(&[(1, 1, 2, Put(1), Done), (2, 3, 4, cas(1, 2), Swapped), (1, 5, 6, Get, Read(Some(2)))]);
    // Only the unknown write explains the refusal.
    good(&[(1, 1, 2, Put(1), Done), (2, 3, 0, Put(2), Done), (1, 4, 5, cas(1, 3), Refused)]);
    // Touching at one instant counts as concurrent.
    good(&[(1, 1, 5, Put(1), Done), (2, 5, 6, Get, Read(None))]);
    // An unknown swap between.
    good(&[(1, 1, 2, Put(1), Done), (2, 1, 0, cas(1, 2), Done), (3, 6, 7, Get, Read(Some(2)))]);
}

#[test]
fn stale_read() {
    let why = bad(&[
        (1, 1, 2, Put(1), Done),
        (1, 3, 4, Put(2), Done),
        (2, 5, 6, Get, Read(Some(2))),
        (3, 7, 8, Get, Read(Some(1))),
        (3, 9, 10, Get, Read(Some(1))),
    ]);
    assert_eq!(why.operations.len(), 3, "{why}");
    assert_eq!(why.window, (1, 8));
    assert!(why.stuck.contains("client 3 called Get at 7"), "{why}");
    assert!(why.to_string().contains("no order explains"));
}

#[test]
fn lost_write_and_its_kin() {
    bad(&[(1, 1, 2, Put(1), Done), (2, 3, 4, Get, Read(None))]);
    bad(&[(1, 1, 2, Get, Read(Some(7)))]);
    bad(&[(1, 3, 0, Put(1), Done), (2, 1, 2, Get, Read(Some(1)))]);
    // Seen, then gone, then seen.
    bad(&[
        (1, 1, 0, Put(1), Done),
        (2, 2, 3, Get, Read(Some(1))),
        (2, 4, 5, Get, Read(None)),
        (2, 6, 7, Get, Read(Some(1))),
    ]);
    // Two swaps from one value.
    bad(&[(1, 1, 2, Put(1), Done), (2, 3, 9, cas(1, 2), Swapped), (3, 3, 9, cas(1, 3), Swapped)]);
    bad(&[(1, 1, 2, Put(1), Done), (2, 3, 4, cas(1, 2), Refused)]);
    // One unknown delete cannot remove twice.
    bad(&[
        (1, 1, 2, Put(1), Done),
        (2, 3, 0, Delete, Done),
        (1, 4, 5, Get, Read(None)),
        (1, 6, 7, Put(2), Done),
        (1, 8, 9, Get, Read(None)),
    ]);
}

#[test]
fn a_failed_write_must_not_be_seen() {
    let mut history = History::new();
    let id = history.call(1, 1, b"k", Put(1));
    history.failed(id);
    let get = history.call(2, 3, b"k", Get);
    history.returned(get, 4, Read(Some(1)));
    assert!(matches!(history.check(Effort::default()), Verdict::Violation(_)));
}

#[test]
fn keys_are_judged_apart_and_the_guilty_one_is_named() {
    let mut history = History::new();
    for n in 0..20u64 {
        let key = format!("key{n}");
        let id = history.call(n, 1, key.as_bytes(), Put(n));
        history.returned(id, 2, Done);
        let id = history.call(n, 3, key.as_bytes(), Get);
        history.returned(id, 4, Read(if n == 13 { None } else { Some(n) }));
    }
    match history.check(Effort::default()) {
        Verdict::Violation(why) => assert_eq!(&why.key[..], b"key13"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn little_effort_is_admitted() {
    let rows: Vec<_> = (0..10).map(|n| (n, 1, 100, Put(n), Done)).collect();
    let mut history = History::new();
    for (client, from, to, op, answer) in rows {
        let id = history.call(client, from, b"k", op);
        history.returned(id, to, answer);
    }
    assert!(matches!(history.check(Effort(3)), Verdict::Undecided { .. }));
    assert_eq!(history.check(Effort::default()), Verdict::Linearizable);
}

#[test]
fn both_searches_agree() {
    let mut rng = crate::sim::rng::Rng::new(11);
    let (mut orders, mut none) = (0, 0);
    for _ in 0..5_000 {
        let few = |rng: &mut crate::sim::rng::Rng, site| rng.range(site, 0..3);
        let calls: Vec<Call> = (0..rng.range("n", 2..9))
            .map(|client| {
                let value = few(&mut rng, "value");
                let found = Some(few(&mut rng, "found")).filter(|_| rng.chance("some", 800));
                let (op, answer) = match rng.range("op", 0..6) {
                    0 | 1 => (Put(value), Done),
                    2 => (Delete, Done),
                    3 => (Get, Read(found)),
                    4 => (Op::Cas { expect: found, new: Some(value) }, Swapped),
                    _ => (Op::Cas { expect: found, new: None }, Refused),
                };
                let invoked = rng.range("from", 0..20);
                let returned = invoked + rng.range("for", 1..12);
                let end = match rng.chance("unknown", 250) {
                    true => End::Unknown,
                    false => End::At(returned, answer),
                };
                Call { client, op, invoked, end }
            })
            .collect();
        let ops = resolve(&calls);
        let (narrow, wide) = (dive(&ops, usize::MAX), sweep(&ops, usize::MAX));
        assert_eq!(narrow == Found::Order, wide == Found::Order, "{calls:#?}");
        match wide {
            Found::Order => orders += 1,
            _ => none += 1,
        }
    }
    assert!(orders > 500 && none > 500, "{orders} {none}");
}
