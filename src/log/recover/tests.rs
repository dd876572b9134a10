//! What opening says of a group whose records leave a gap that no damage explains.

use super::*;
use crate::env::mem::MemDisk;
use crate::log::LogBatch;
use crate::log::scan::find_segments;
use crate::log::{Entry, inspect::Inspector};
use std::path::Path;

/// It was once said of no file at all: whoever was told had nowhere to look.
#[test]
fn a_missing_entry_is_told_with_the_segment_that_goes_on_behind_it() {
    let (disk, dir) = (MemDisk::default(), Path::new("/log"));
    let options = Options { segment_bytes: 16 << 10, spare_segments: 1, ..Options::default() };
    let (log, _) = Log::open(Arc::new(disk.clone()), dir, options).unwrap();
    for index in 1..=12 {
        let mut batch = LogBatch::new();
        batch.append(7, [Entry { index, term: 1, kind: 0, data: vec![7; 3000].into() }]);
        log.write(batch).unwrap();
    }
    log.barrier().unwrap();
    let inspector = Inspector::open(&disk, dir).unwrap();
    let records: Vec<_> = inspector.records().collect::<Result<_>>().unwrap();
    let names = disk.list(dir).unwrap();
    let found = find_segments(&disk, dir, &names, OpenMode::Read, Neighbour::None).unwrap();
    assert!(found.len() > 2);
    for missing in 1..12u64 {
        let mut replay = Replay { next_seq: 1, ..Replay::default() };
        for (n, segment) in found.iter().enumerate() {
            replay.segment(segment, None, found[n + 1..].iter()).unwrap();
        }
        replay.index.change(7, |group| {
            let at = group.find(missing).unwrap();
            group.runs.remove(at);
        });
        replay.judge(&found).unwrap();
        let [Quarantine { group: 7, last_good, damage }] = &replay.recovery.quarantined[..] else {
            panic!("{:?}", replay.recovery)
        };
        assert_eq!(*last_good, missing - 1);
        assert_eq!(damage.detail, format!("entry {missing} is missing before those in this file"));
        // One entry in a record, from the first on.
        let next = records.iter().find(|record| record.seq == missing + 1).unwrap();
        assert_eq!(damage.file, next.path);
    }
}
