//! What is left out of the last segment when it is read would have told nothing.

use super::*;
use crate::env::mem::MemDisk;
use crate::log::{Entry, Log, LogBatch, Options};
use proptest::prelude::*;

const DIR: &str = "/log";

/// A log whose last segment lies in a recycled file: a former life's records follow its own.
fn directory(last: u64) -> MemDisk {
    let disk = MemDisk::default();
    let options = Options { segment_bytes: 64 << 10, ..Options::default() };
    let (log, _) = Log::open(Arc::new(disk.clone()), Path::new(DIR), options).unwrap();
    for index in 1..=40 + last {
        let mut batch = LogBatch::new();
        for group in 0..3 {
            let data = vec![index as u8; (index * 97 % 1500) as usize];
            batch.append(group, [Entry { index, term: 1, kind: 0, data: data.into() }]);
            batch.compact_to(group, crate::types::LogPosition { index: index - 1, term: 1 });
        }
        log.submit(batch).unwrap();
        if index % 3 == 0 {
            log.write_round().unwrap();
        }
        log.purge().unwrap();
    }
    log.write_round().unwrap();
    disk
}

/// What is left of the segment if it is looked over in parts of so many blocks.
fn live(found: &Found, blocks: usize) -> Vec<u8> {
    let parts = found.passes(blocks * BLOCK).unwrap();
    // The order in which the parts are looked at must not matter.
    let ends = parts.iter().rev().map(|part| found.pass(part).unwrap());
    found.read_to(ends.max().unwrap_or(0)).unwrap().bytes
}

/// Everything that a scan tells.
fn told(bytes: &[u8], header: &SegmentHeader) -> String {
    let mut scan = Scan::new(bytes, header, None, Echoes::new());
    let mut told = String::new();
    while let Some(record) = scan.next() {
        told += &format!("{record:?}\n");
    }
    told + &format!("{:?}", scan.end())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_rest_tells_nothing(
        last in 0..12u64,
        blocks in 1..20usize,
        damage in proptest::collection::vec((0..64usize << 10, 1..600usize, any::<u8>()), 0..6),
    ) {
        let disk = directory(last);
        let names = disk.list(Path::new(DIR)).unwrap();
        let find = || {
            find_segments(&disk, Path::new(DIR), &names, OpenMode::ReadWrite, Neighbour::None)
        };
        let found = find().unwrap().pop().unwrap();
        let whole = found.read().unwrap().bytes;
        let live = live(&found, blocks);
        prop_assert!(live.len() <= whole.len());
        prop_assert_eq!(told(&live, &found.header), told(&whole, &found.header));
        for (at, len, byte) in damage {
            // Anywhere but in the segment's own header.
            let at = BLOCK + at % (whole.len() - BLOCK - len);
            found.file.write_at(at as u64, &vec![byte; len]).unwrap();
            let (whole, live) = (found.read().unwrap().bytes, self::live(&found, blocks));
            prop_assert_eq!(told(&live, &found.header), told(&whole, &found.header));
        }
    }
}
