//! A group keeps its invariants, whatever comes, with gaps and without.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Which of the invariants at the head of [`Group`] does not hold, but for gaps between runs.
pub(in crate::log) fn broken(group: &Group) -> Option<String> {
    let mut next = group.truncated.index + 1;
    for run in &group.runs {
        if run.from < next || run.count == 0 {
            return Some(format!("runs {:?} behind {:?}", group.runs, group.truncated));
        }
        next = run.end();
    }
    if !group.terms.is_sorted_by(|a, b| a.0 < b.0) {
        return Some(format!("terms do not ascend: {:?}", group.terms));
    }
    if group.terms.last().is_some_and(|(from, _)| *from > group.last()) {
        return Some(format!("a term behind {}: {:?}", group.last(), group.terms));
    }
    if group.runs.front().is_some_and(|run| group.term_of(run.from).is_none()) {
        return Some(format!("no term for {:?}: {:?}", group.runs.front(), group.terms));
    }
    let indexes = group.cache.iter().map(|entry| entry.index);
    let end = group.last() + 1;
    if !indexes.eq(end - group.cache.len() as u64..end) {
        return Some(format!("the cache of {:?}", group.runs));
    }
    None
}

fn run_of(from: u64, seq: u64, count: u32, terms: u8) -> (Run, Terms) {
    let body = Span { rel: 0, len: 100, crc: 7 };
    let middle = from + u64::from(count) / 2;
    let (first, second) = (u64::from(terms % 4), u64::from(terms / 4));
    let rest = if middle > from && first != second { vec![(middle, second)] } else { Vec::new() };
    let run = Run { from, seq, body, count, skip: 0, packed: 0 };
    (run, Terms { first: (from, first), rest })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// What a replay does to a group, footers and records in any order that leaves gaps. Terms are held against a map.
    #[test]
    fn a_group_with_gaps_keeps_its_invariants(
        script in proptest::collection::vec((0..12u8, 0..30u64, 1..6u32, 0..16u8), 1..60),
    ) {
        let (mut group, mut dead) = (Group::default(), Dead::new());
        // By index: record and term.
        let mut model: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (seq, (what, at, count, terms)) in (1..).zip(script) {
            let begin = group.truncated.index + 1;
            let mut learn = |run: &Run, terms: &Terms| {
                for index in run.from..run.end() {
                    let term = terms.iter().take_while(|(from, _)| *from <= index).last();
                    model.insert(index, (seq, term.unwrap().1));
                }
            };
            match what {
                0 => {
                    group.drop_below_floor(seq.saturating_sub(at));
                    model.retain(|_, (of, _)| *of >= seq.saturating_sub(at));
                }
                1 => {
                    let to = LogPosition { index: begin + at % 8, term: 1 };
                    group.drop_to(seq, to, &mut dead);
                    model.retain(|index, _| *index > to.index);
                }
                2..4 => {
                    group.drop_from(begin + at, &mut dead);
                    model.retain(|index, _| *index < begin + at);
                }
                4..8 => {
                    let (run, terms) = run_of(group.last() + 1 + at % 4, seq, count, terms);
                    group.push(run, &terms);
                    learn(&run, &terms);
                }
                _ => {
                    let (run, terms) = run_of(begin + at, seq, count, terms);
                    group.place(run, &terms, &mut dead);
                    learn(&run, &terms);
                }
            }
            prop_assert_eq!(broken(&group), None);
            let covered = group.runs.iter().flat_map(|run| run.from..run.end());
            let terms: Vec<_> = covered.map(|index| (index, group.term_of(index))).collect();
            let told: Vec<_> = model.iter().map(|(index, (_, term))| (*index, Some(*term))).collect();
            prop_assert_eq!(terms, told);
        }
    }
}
