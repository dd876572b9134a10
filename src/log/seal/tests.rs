//! Whether a footer is made from notes or from the records on the disk, it is the same.

use super::*;
use crate::env::mem::MemDisk;
use crate::log::index::tests::broken;
use crate::log::{Entry, Log, LogBatch, Options};
use crate::types::LogPosition;
use proptest::prelude::*;
use std::path::Path;

const GROUPS: u64 = 5;

/// What is done next, to which group.
fn script() -> impl Strategy<Value = Vec<(u64, u8, u64)>> {
    proptest::collection::vec((1..=GROUPS, 0..12u8, 0..2000u64), 150..400)
}

fn step(log: &Log, group: u64, what: u8, n: u64) {
    let mut batch = LogBatch::new();
    let (first, last) = (log.truncated(group).index, log.last_index(group));
    match what {
        0 => batch.set_state(group, vec![n as u8; (n % 90) as usize]),
        1 => {
            let index = first + n % (last + 1 - first);
            let term = log.term(group, index).unwrap().unwrap_or(1);
            batch.compact_to(group, LogPosition { index, term });
        }
        2 if n.is_multiple_of(7) => batch.reset(group, LogPosition { index: last + n, term: 2 }),
        3 if n.is_multiple_of(9) => batch.clear(group),
        4 if n.is_multiple_of(5) => _ = log.purge().unwrap(),
        5 => {
            // Over what is there.
            let index = first + 1 + n % (last + 1 - first);
            batch.append(group, [Entry { index, term: n, kind: 0, data: vec![3; 50].into() }]);
            batch.set_state(group % GROUPS + 1, "beside");
        }
        _ => {
            let data = vec![n as u8; n as usize];
            let entries = (last + 1..last + 2 + n % 3).map(|index| Entry {
                index,
                term: 1,
                kind: 1,
                data: data.clone().into(),
            });
            batch.append(group, entries);
        }
    }
    log.submit(batch).unwrap();
    if n.is_multiple_of(3) {
        log.write_round().unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn notes_say_what_the_disk_says(script in script()) {
        let options = Options { segment_bytes: 32 << 10, ..Options::default() };
        let disk = Arc::new(MemDisk::default());
        let (log, _) = Log::open(disk, Path::new("/log"), options).unwrap();
        let mut compared = 0;
        for (group, what, n) in script {
            step(&log, group, what, n);
            for id in log.shared.index.groups() {
                let group = log.shared.index.read(id).unwrap();
                prop_assert_eq!((broken(&group), group.gap()), (None, None));
            }
            let Some((candidate, noted, _)) = log.shared.next_to_seal(0) else { continue };
            let (read, end) = candidate.scan().unwrap();
            let base = candidate.header.base_seq;
            if let Some(draft) = noted.notes.draft(base, &noted.payloads) {
                prop_assert_eq!(end, Some(noted.end));
                let [ours, theirs] = [draft, read].map(|d| d.finish(1, base, noted.end));
                prop_assert_eq!(ours.body, theirs.body);
                prop_assert_eq!(ours.trailer, theirs.trailer);
                prop_assert_eq!(ours.packed, theirs.packed);
                compared += 1;
            }
            if let Some(segment) = log.shared.segments.write().by_base.get_mut(&base) {
                segment.seal = Seal::Never;
            }
        }
        prop_assert!(compared > 0);
    }
}

#[test]
fn memory_for_notes_is_bounded() {
    let options = Options { segment_bytes: 32 << 10, ..Options::default() };
    let (log, _) = Log::open(Arc::new(MemDisk::default()), Path::new("/log"), options).unwrap();
    for index in 1..400 {
        let mut batch = LogBatch::new();
        batch.append(1, [Entry { index, term: 1, kind: 0, data: vec![1; 3000].into() }]);
        log.write(batch).unwrap();
    }
    let noted = |log: &Log| {
        let segments = log.shared.segments.read();
        let pairs = segments.by_base.iter();
        let noted = pairs.filter(|(base, s)| s.notes.draft(**base, &s.payloads).is_some()).count();
        (noted, segments.by_base.len())
    };
    let (with, all) = noted(&log);
    assert!(with < 12 && all > 30, "{with} of {all} segments have notes");
    // Those that have none any more are read.
    while log.prepare().unwrap() {}
    let segments = log.shared.segments.read();
    let open = segments.by_base.values().filter(|s| s.seal == Seal::Open).count();
    assert_eq!(open, 1, "the active one");
}
