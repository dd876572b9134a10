//! What is encoded comes back, and nothing else is taken.

use super::*;
use proptest::prelude::*;

fn entries(lens: &[usize]) -> Vec<Entry> {
    let entry = |(n, len): (usize, &usize)| Entry {
        index: 10 + n as u64,
        term: 1 + n as u64 / 2,
        kind: n as u8,
        data: vec![n as u8; *len].into(),
    };
    lens.iter().enumerate().map(entry).collect()
}

#[test]
fn a_run_comes_back_in_any_part() {
    let all = entries(&[0, 1, 127, 128, 20_000]);
    let mut body = Vec::new();
    encode_run(&mut body, &all);
    let body = Bytes::from(body);
    let terms = Terms::of(&all);
    assert_eq!(terms.iter().collect::<Vec<_>>(), [(10, 1), (12, 2), (14, 3)]);
    let term = |index: u64| 1 + (index - 10) / 2;
    for skip in 0..5u32 {
        for count in 1..=5 - skip {
            let from = 10 + u64::from(skip);
            let part = decode_run(&body, skip, from, count, term).unwrap();
            assert_eq!(part, all[skip as usize..(skip + count) as usize]);
        }
    }
    assert!(decode_run(&body, 1, 11, 5, term).is_err());
}

#[test]
fn numbers_take_what_is_counted() {
    for value in (0..64).flat_map(|bit| [(1 << bit) - 1, 1 << bit]).chain([u64::MAX]) {
        let mut out = Vec::new();
        put(&mut out, value);
        assert_eq!(varint(value), out.len() as u64, "{value}");
    }
}

/// Found by `segment_recovery` with checksums made right: what a run says of itself was believed until its body was read,
/// and something done for each of four billion entries before that.
#[test]
fn a_run_of_more_entries_than_its_body_can_hold_is_refused() {
    let append = |count: u32, len: u32, rest: Vec<(u64, u64)>| {
        let terms = Terms { first: (5, 1), rest };
        let body = Span { rel: 0, len, crc: 7 };
        let mut dir = Vec::new();
        Op::Append { group: 1, first: 5, count, terms, body }.encode_to(&mut dir);
        decode_dir(&dir, len)
    };
    assert!(append(u32::MAX, 100, vec![]).is_err());
    // Two bytes an entry, and one before them; compressed it can be 255 times as many.
    assert!(append(127, 1, vec![]).is_ok());
    assert!(append(128, 1, vec![]).is_err());
    // A run of more than a payload can come to has no body anywhere.
    assert!(append(1 << 29, u32::MAX, vec![]).is_err());
    assert!(!can_hold(1, u32::MAX, u32::MAX));
    // Its terms begin at its entries, behind the first.
    assert!(append(9, 100, vec![(6, 2), (13, 3)]).is_ok());
    assert!(append(9, 100, vec![(6, 2), (6, 3)]).is_ok());
    for wrong in [vec![(14, 2)], vec![(5, 2)], vec![(5, 2), (6, 3)]] {
        assert!(append(9, 100, wrong).is_err());
    }
}

/// No writer says that a run has no term; the reader once took it for one.
#[test]
fn a_run_without_a_term_is_refused() {
    let read = |terms: u64| {
        let mut bytes = Vec::new();
        put(&mut bytes, terms);
        put(&mut bytes, 7);
        take_terms(&mut &bytes[..], 5, 9)
    };
    assert_eq!(read(1), Some(Terms { first: (5, 7), rest: Vec::new() }));
    assert_eq!(read(0), None);
}

#[test]
fn headers_come_back() {
    let header = SegmentHeader { generation: 3, base_seq: 9, durable: 8, size: 1 << 20 };
    let mut block = header.encode();
    assert_eq!(SegmentHeader::decode(&block).0.unwrap(), header);
    // One copy is enough, and the damaged one is named.
    block[17] ^= 1;
    let (found, bad) = SegmentHeader::decode(&block);
    assert_eq!((found.unwrap(), bad.len(), bad[0].offset), (header, 1, 0));
    block[2048] ^= 1;
    assert!(SegmentHeader::decode(&block).0.is_err());
}

proptest! {
    #[test]
    fn operations_come_back(group: u64, first in 1..u64::MAX / 2, count in 301..5000u32, term: u64,
                            index in ..u64::MAX, seq: u64) {
        let position = LogPosition { index, term };
        let terms = Terms { first: (first, term), rest: vec![(first + 1, 7), (first + 300, 9)] };
        let body = Span { rel: 0, len: 40, crc: 7 };
        let next = Span { rel: 40, len: 2, crc: 8 };
        let ops = vec![
            Op::Append { group, first, count, terms: terms.clone(), body },
            Op::State { group, body: next },
            Op::Compact { group, to: position },
            Op::Reset { group, to: position },
            Op::Base { group, at: position },
            Op::Clear { group },
            Op::Floor { seq },
            Op::Rewrite { group, from: first, count, skip: 3, terms,
                          body: Span { rel: 42, ..body } },
        ];
        let mut dir = Vec::new();
        ops.iter().for_each(|op| op.encode_to(&mut dir));
        prop_assert_eq!(decode_dir(&dir, 82).unwrap(), ops);
        prop_assert!(decode_dir(&dir, 81).is_err());
    }

    #[test]
    fn hostile_bytes_are_refused(bytes: Vec<u8>, count: u32, skip: u32) {
        let _ = decode_dir(&bytes, bytes.len() as u32);
        let _ = SegmentHeader::decode(&bytes);
        let _ = RecordHeader::decode(&bytes, 1);
        let _ = decode_run(&bytes.into(), skip, 1, count, |_| 1);
    }
}
