//! A footer comes to what its records come to.

use super::*;
use crate::log::index::tests::broken;
use proptest::prelude::*;

fn op(what: u8, group: u64, at: u64, count: u32, rel: u32) -> Op {
    let to = LogPosition { index: at, term: at / 4 };
    let terms = Terms { first: (at, at / 4), rest: Vec::new() };
    let body = Span { rel, len: 10 * count, crc: rel };
    match what {
        0 => Op::Clear { group },
        1 => Op::Reset { group, to },
        2 => Op::Compact { group, to },
        3 => Op::Base { group, at: to },
        4 => Op::Rewrite { group, from: at, count, skip: 2, terms, body },
        5 => Op::State { group, body },
        _ => Op::Append { group, first: at, count, terms, body },
    }
}

/// What purge writes: the position again, or a part of the oldest run that lies below `base`, to another place.
fn purged(what: u8, group: &Group, base: u64, at: u64, count: u32, rel: u32) -> Option<Op> {
    if what == 0 {
        return (group.base_seq > 0).then_some(Op::Base { group: 1, at: group.truncated });
    }
    let below = group.runs.iter().filter(|run| run.seq < base);
    let run = below.min_by_key(|run| (run.seq, run.from))?;
    // As often as not the whole of it, from its beginning, its middle or to its end.
    let count = if count > 3 { run.count } else { count.min(run.count) };
    let from = run.from + at % (u64::from(run.count - count) + 1);
    let part = run.part(from, from + u64::from(count));
    let (skip, terms) = (part.skip, group.terms_of(&part));
    let body = Span { rel, ..part.body };
    Some(Op::Rewrite { group: 1, from, count, skip, terms, body })
}

/// An operation that a log could have written, the group being as it is.
fn fits(group: &Group, op: &Op, base: u64) -> bool {
    let (first, last) = (group.truncated.index + 1, group.last());
    match op {
        Op::Append { first: at, .. } => *at >= first && *at <= last + 1,
        Op::Compact { to, .. } => to.index <= last,
        Op::Base { at, .. } => at.index == group.truncated.index,
        // Of what lies in an older segment.
        Op::Rewrite { from, count, .. } => {
            let inside = |run: &Run| run.from < from + u64::from(*count) && run.end() > *from;
            *from >= first
                && from + u64::from(*count) <= last + 1
                && group.runs.iter().filter(|run| inside(run)).all(|run| run.seq < base)
        }
        _ => true,
    }
}

fn facts(group: &Group) -> (LogPosition, u64, Option<Bytes>, Vec<Run>, Vec<Option<u64>>) {
    let terms = (0..=group.last() + 1).map(|index| group.term(index)).collect();
    let runs = group.runs.iter().copied().collect();
    (group.truncated, group.base_seq, group.state.clone(), runs, terms)
}

/// The trailer of a summary, of a segment with these records.
fn trailer_of(summary: &[u8], records: std::ops::Range<u64>) -> Trailer {
    Trailer {
        generation: 1,
        base_seq: records.start,
        next_seq: records.end,
        sections_at: 8192,
        summary_at: 8192,
        summary_len: summary.len() as u32,
        summary_crc: crc32c::crc32c(summary),
    }
}

/// Trailer and summary of no records and two groups, the second one so far above the first.
fn of_two_groups(above: u64) -> (Trailer, Bytes) {
    let mut summary = Vec::new();
    let (records, floor, groups, flags, runs) = (0, 0, 2, 0, 0);
    for number in [records, floor, groups, 1, flags, runs, above, flags, runs] {
        put(&mut summary, number);
    }
    (trailer_of(&summary, 1..1), summary.into())
}

/// Found by `segment_recovery` with checksums made right: a group that a footer named twice was put together with other
/// footers twice, and what it came to depended on which other segments had footers. A log opened with one content, and
/// opened with another after a purge.
#[test]
fn a_group_that_comes_twice_is_refused() {
    let groups = |above: u64| {
        let (trailer, summary) = of_two_groups(above);
        Summary::decode(trailer, summary).unwrap().each_group(|_, _| ())
    };
    assert!(groups(1).is_some());
    assert!(groups(0).is_none());
}

/// Found in the same way: a packed run whose section lists fewer entries was read as far as it went, without an error, and purge
/// gave back the records of the others.
#[test]
fn a_section_that_does_not_list_every_entry_is_refused() {
    let run = |from: u64, count: u32| {
        let body = Span { rel: 0, len: 100, crc: 7 };
        Run { from, seq: 9, body, count, skip: 0, packed: 0 }
    };
    let mut section = Vec::new();
    let packed = pack(&[run(5, 3), run(8, 4)], 9, 8192, &mut section);
    assert_eq!(unpack(&packed, &section), Some(vec![run(5, 3), run(8, 4)]));
    assert!(unpack(&Run { count: 8, ..packed }, &section).is_none());
    let none = Span { len: 0, crc: crc32c::crc32c(&[]), ..packed.body };
    assert!(unpack(&Run { body: none, ..packed }, &[]).is_none());
}

/// Found in the same way: a run of a record that is not in the segment was taken for newer than it is, and purge gave its record back.
#[test]
fn a_run_of_another_segments_record_is_refused() {
    let read = |record: u64| {
        let mut summary = Vec::new();
        let (records, payload, floor, groups, flags, runs) = (1, 4200, 0, 1, 0, 1);
        for number in [records, payload, floor, groups, 7, flags, runs] {
            put(&mut summary, number);
        }
        let body = Span { rel: 0, len: 9, crc: 1 };
        let run = Run { from: 1, seq: 5 + record, body, count: 1, skip: 0, packed: 0 };
        put_run(&mut summary, &run, 5, 8192);
        put_terms(&mut summary, 1, &Terms { first: (1, 1), rest: Vec::new() });
        Summary::decode(trailer_of(&summary, 5..6), summary.into()).unwrap().each_group(|_, _| ())
    };
    assert!(read(0).is_some());
    assert!(read(1).is_none());
}

/// Found in the same way: the inspector makes a footer anew for the place where the trailer says it is, and computed
/// with a place that no file has.
#[test]
fn sections_behind_their_summary_are_refused() {
    let (trailer, summary) = of_two_groups(1);
    assert!(Summary::decode(trailer, summary.clone()).is_some());
    let trailer = Trailer { sections_at: u64::MAX, ..trailer };
    assert!(Summary::decode(trailer, summary).is_none());
}

/// Found by a cut of power. A run moved by purge fills a part of a gap; at the end of that part stands the term of what lay before it,
/// for nobody knows better yet. What lay behind the gap was overwritten then, from there on, and the rest of the gap came as a run behind
/// the last: two terms for one entry. The later one counted and was right, but it went to the disk so.
#[test]
fn a_gap_leaves_no_term_behind() {
    let run = |from: u64, count: u32| {
        let body = Span { rel: 0, len: 100, crc: 7 };
        Run { from, seq: 9, body, count, skip: 0, packed: 0 }
    };
    let of = |from: u64, term: u64| Terms { first: (from, term), rest: Vec::new() };
    let mut group = Group::default();
    let mut dead = Dead::new();
    group.push(run(26, 1), &of(26, 21));
    group.push(run(30, 1), &of(30, 25));
    group.place(run(27, 2), &of(27, 23), &mut dead);
    group.drop_from(30, &mut dead);
    group.push(run(29, 2), &of(29, 23));
    assert_eq!(group.terms, [(26, 21), (27, 23)]);
}

/// A segment's footer as it is read.
struct Sealed {
    base: u64,
    next: u64,
    sections: Bytes,
    summary: Summary,
}

impl Sealed {
    fn of(mut draft: Draft, base: u64, next: u64) -> Sealed {
        draft.payloads = vec![4096; (next - base) as usize];
        let footer = draft.finish(7, base, 8192);
        let at = (footer.trailer.summary_at - footer.trailer.sections_at) as usize;
        let sections = Bytes::from(footer.body);
        let summary = Summary::decode(footer.trailer, sections.slice(at..)).unwrap();
        Sealed { base, next, sections, summary }
    }

    /// Does to the group what the segment does. Packed runs are taken apart again, so that groups can be compared.
    fn apply(&self, group: &mut Group) {
        self.summary.each_group(|_, facts| facts.apply(group)).unwrap();
        assert_eq!(broken(group), None);
        let mut plain = std::collections::VecDeque::new();
        for run in group.runs.drain(..) {
            if run.is_packed() && run.seq == self.base {
                let from = run.body.rel as usize - 8192;
                let section = &self.sections[from..from + run.body.len as usize];
                plain.extend(unpack(&run, section).unwrap());
            } else {
                plain.push_back(run);
            }
        }
        group.runs = plain;
    }
}

/// The oldest record that the group needs: purge may state it as the floor.
fn floor(group: &Group) -> u64 {
    let facts = [group.base_seq, group.state_seq].into_iter().filter(|seq| *seq > 0);
    facts.chain(group.runs.iter().map(|run| run.seq)).min().unwrap_or(u64::MAX)
}

/// What is read when purge has taken the segments below the floor. What it moved lies behind gaps until its segment is read.
fn after_purge(segments: &[Sealed], floor: u64) -> Group {
    let mut group = Group::default();
    for segment in segments.iter().filter(|segment| segment.next > floor) {
        segment.apply(&mut group);
    }
    group.drop_below_floor(floor);
    assert_eq!(broken(&group), None);
    group
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, ..ProptestConfig::default() })]

    /// A footer's net effect on whatever was before is that of the records, one after the other; and so it is without
    /// the segments that purge took away.
    #[test]
    fn as_the_records(
        ops in proptest::collection::vec((0..64u8, 0..30u64, 1..6u32), 1..160),
        cuts in proptest::collection::vec(1..160u64, 0..32),
    ) {
        let (mut one, mut net) = (Group::default(), Group::default());
        let (mut draft, mut segments) = (Draft::default(), Vec::new());
        let (mut base, end) = (1, 1 + ops.len() as u64);
        for (seq, (what, at, count)) in (1..).zip(ops) {
            if cuts.contains(&seq) && seq > base {
                segments.push(Sealed::of(std::mem::take(&mut draft), base, seq));
                segments.last().unwrap().apply(&mut net);
                base = seq;
                prop_assert_eq!(facts(&one), facts(&net));
                let floor = floor(&one);
                prop_assert_eq!(facts(&one), facts(&after_purge(&segments, floor)));
            }
            let op = match what {
                0..14 => Some(op(what, 1, at, count, seq as u32)),
                14..34 => purged(what - 14, &one, base, at, count, seq as u32),
                // Over the newest entries, and behind them.
                34..44 => Some(op(9, 1, one.last().saturating_sub(at % 3), count, seq as u32)),
                _ => Some(op(9, 1, one.last() + 1, count, seq as u32)),
            };
            let Some(op) = op.filter(|op| fits(&one, op, base)) else { continue };
            let state = Some(Bytes::from(format!("{seq}")));
            one.take(seq, &op, state.clone(), &mut Dead::new());
            prop_assert_eq!(broken(&one), None);
            draft.nets.entry(1).or_default().take(seq, &op, state);
            prop_assert_eq!(broken(&draft.nets[&1].group), None);
        }
        Sealed::of(draft, base, end.max(base + 1)).apply(&mut net);
        prop_assert_eq!(facts(&one), facts(&net));
    }

    #[test]
    fn hostile_bytes_are_refused(bytes: Vec<u8>) {
        let _ = Trailer::decode(&bytes, 1);
        let trailer = Trailer {
            generation: 1,
            base_seq: 1,
            next_seq: 1 + bytes.first().map_or(0, |b| u64::from(*b)),
            sections_at: 0,
            summary_at: 0,
            summary_len: bytes.len() as u32,
            summary_crc: crc32c::crc32c(&bytes),
        };
        let body = Span { rel: 0, len: bytes.len() as u32, crc: crc32c::crc32c(&bytes) };
        let run = Run { from: 1, seq: 1, body, count: 9, skip: 0, packed: 1 };
        let _ = unpack(&run, &bytes);
        if let Some(read) = Summary::decode(trailer, bytes.into()) {
            let _ = read.each_group(|_, _| ());
        }
    }
}
