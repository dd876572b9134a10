//! What somebody else may have written, checksums and all.

use super::*;
use crate::env::mem::MemDisk;
use crate::log::format::{RecordHeader, Terms};

/// A segment with one record of these operations, in which all bodies are damaged.
fn disk(ops: &[Op], durable: u64, payload_len: u32) -> MemDisk {
    let mut dir = Vec::new();
    ops.iter().for_each(|op| op.encode_to(&mut dir));
    let record = RecordHeader {
        generation: 1,
        seq: 1,
        durable,
        dir_len: dir.len() as u32,
        payload_len,
        dir_crc: crc32c::crc32c(&dir),
        echo_len: 0,
    };
    let header = SegmentHeader { generation: 1, base_seq: 1, durable: 0, size: 16 << 10 };
    let mut bytes = header.encode();
    record.encode_to(&mut bytes);
    bytes.extend(dir);
    bytes.resize(16 << 10, 0);
    let disk = MemDisk::default();
    disk.create_dir_all(Path::new("/log")).unwrap();
    let path = Path::new("/log/0000000000000001.seg");
    disk.open(path, OpenMode::CreateNew).unwrap().write_at(0, &bytes).unwrap();
    disk
}

/// Indexes are counted from 1: before the first of these entries there is none, and nothing below it.
#[test]
fn an_entry_of_index_0_is_reported_like_any_other() {
    let terms = || Terms { first: (0, 1), rest: Vec::new() };
    let body = |rel| Span { rel, len: 8, crc: 1 };
    let append = Op::Append { group: 1, first: 0, count: 1, terms: terms(), body: body(0) };
    let rewrite =
        Op::Rewrite { group: 2, from: 0, count: 1, skip: 0, terms: terms(), body: body(8) };
    let report = verify(&disk(&[append, rewrite], 1, 16), Path::new("/log")).unwrap();
    let groups: Vec<_> = report.findings.iter().map(|found| found.group).collect();
    assert_eq!(groups, [Some(1), Some(2)]);
    assert_eq!(report.last_good, [(1, 0), (2, 0)].into());
}

/// No record can have this number, so none is there: and it is not counted on from it.
#[test]
fn a_durable_number_from_the_end_of_all_numbers_is_judged() {
    let disk = disk(&[], u64::MAX, 0);
    let report = verify(&disk, Path::new("/log")).unwrap();
    assert!(report.is_rotten() && report.durable == u64::MAX, "{report:?}");
    let opened =
        crate::log::Log::open(std::sync::Arc::new(disk), Path::new("/log"), Default::default());
    assert!(matches!(opened, Err(Error::Corruption { .. })));
}
