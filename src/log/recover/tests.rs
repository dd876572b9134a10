//! What opening says of a group whose records leave a gap that no damage explains.

use super::*;
use crate::env::mem::MemDisk;
use crate::log::batch::Encoded;
use crate::log::inspect::{Inspector, verify};
use crate::log::scan::find_segments;
use crate::log::{Entry, LogBatch, Seq};
use std::path::Path;

/// The log there, in small segments.
fn open_in(disk: &MemDisk, dir: &Path) -> (Log, Recovery) {
    let options = Options { segment_bytes: 64 << 10, ..Options::default() };
    Log::open(Arc::new(disk.clone()), dir, options).unwrap()
}

/// Changes a byte of a file.
fn flip(disk: &MemDisk, path: &Path, at: u64) {
    let file = disk.open(path, OpenMode::ReadWrite).unwrap();
    let mut byte = [0];
    file.read_at(at, &mut byte).unwrap();
    file.write_at(at, &[byte[0] ^ 1]).unwrap();
}

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

/// A damaged directory whose group was reset or cleared later on took nothing with it, and once was told by nobody but the
/// inspector.
#[test]
fn a_damaged_directory_that_nobody_needs_is_told() {
    for clears in [true, false] {
        let (disk, dir) = (MemDisk::default(), Path::new("/log"));
        let open = || open_in(&disk, dir);
        let (log, _) = open();
        for index in 1..=4 {
            let mut batch = LogBatch::new();
            batch.append(7, [Entry { index, term: 1, kind: 0, data: vec![7; 100].into() }]);
            log.write(batch).unwrap();
        }
        let mut batch = LogBatch::new();
        match clears {
            true => batch.clear(7),
            false => batch.reset(7, crate::types::LogPosition { index: 9, term: 2 }),
        }
        log.write(batch).unwrap();
        log.barrier().unwrap();
        drop(log);
        let names = disk.list(dir).unwrap();
        let found =
            find_segments(&disk, dir, &names, OpenMode::ReadWrite, Neighbour::None).unwrap();
        let at = (super::super::format::BLOCK + RECORD_HEADER + 3) as u64;
        let mut byte = [0];
        found[0].file.read_at(at, &mut byte).unwrap();
        found[0].file.write_at(at, &[byte[0] ^ 1]).unwrap();
        drop(found);
        let (_, recovery) = open();
        assert!(recovery.quarantined.is_empty(), "{recovery:?}");
        assert!(
            matches!(&recovery.harmless[..], [damage] if damage.detail.contains("directory of record 1"))
        );
    }
}

/// A position at the last index there is, in a record whose checksums hold, once overflowed while the log was opened. No batch
/// may say it (an entry could not follow), so a record that does is damaged, for the inspector too.
#[test]
fn a_position_that_nothing_can_follow_is_damage() {
    let to = crate::types::LogPosition { index: u64::MAX, term: 1 };
    let group = 5;
    for op in [Op::Reset { group, to }, Op::Compact { group, to }, Op::Base { group, at: to }] {
        let (disk, dir) = (MemDisk::default(), Path::new("/log"));
        let open = || open_in(&disk, dir);
        let (log, _) = open();
        let mut batch = LogBatch::new();
        for id in [1, group] {
            batch.append(id, [Entry { index: 1, term: 1, kind: 0, data: vec![7; 100].into() }]);
        }
        log.write(batch).unwrap();
        let mut record = Encoded::with_capacity(1, 0);
        record.push(op.clone());
        let seq = log.shared.enqueue(&mut log.shared.queue.lock(), record);
        log.wait(Seq(seq)).unwrap();
        log.barrier().unwrap();
        drop(log);

        let report = verify(&disk, dir).unwrap();
        assert!(report.is_rotten(), "{op:?}: {report:?}");
        let told = |what: &str| what.contains("no log says what it says");
        assert!(report.findings.iter().any(|found| told(&found.detail)), "{op:?}: {report:?}");
        let (log, recovery) = open();
        let [Quarantine { group: 5, last_good: 1, damage }] = &recovery.quarantined[..] else {
            panic!("{op:?}: {recovery:?}")
        };
        assert!(told(&damage.detail), "{damage:?}");
        assert_eq!(log.entries(1, 1, 2, 0).unwrap().len(), 1);
        assert!(matches!(log.entries(group, 1, 2, 0), Err(Error::Quarantined { .. })));
    }
}

/// A floor voids what lies before it. One that says it of itself, or of what is still to come, was once believed: all that was
/// written was dropped without a word.
#[test]
fn a_floor_above_its_own_record_is_damage() {
    let (disk, dir) = (MemDisk::default(), Path::new("/log"));
    let open = || open_in(&disk, dir);
    let (log, _) = open();
    let mut batch = LogBatch::new();
    batch.append(1, [Entry { index: 1, term: 1, kind: 0, data: vec![7; 100].into() }]);
    log.write(batch).unwrap();
    let mut record = Encoded::with_capacity(1, 0);
    record.push(Op::Floor { seq: u64::MAX });
    let seq = log.shared.enqueue(&mut log.shared.queue.lock(), record);
    log.wait(Seq(seq)).unwrap();
    log.barrier().unwrap();
    drop(log);
    let report = verify(&disk, dir).unwrap();
    let told = |what: &str| what.contains("no log says what it says");
    assert!(report.findings.iter().any(|found| told(&found.detail)), "{report:?}");
    let (log, recovery) = open();
    assert!(recovery.harmless.iter().any(|damage| told(&damage.detail)), "{recovery:?}");
    assert_eq!(log.entries(1, 1, 2, 0).unwrap().len(), 1);
}

/// Two records of a group with unreadable directories, and later a floor that voids the first. Opening once remembered that one alone: what
/// the second had said was lost, and nothing fenced the group off.
#[test]
fn a_floor_passes_one_of_two_damaged_directories() {
    let (disk, dir) = (MemDisk::default(), Path::new("/log"));
    let open = || open_in(&disk, dir);
    let (log, _) = open();
    let mut batch = LogBatch::new();
    batch.set_state(7, "first");
    log.write(batch).unwrap();
    let mut batch = LogBatch::new();
    batch.set_state(7, "second");
    batch.append(8, [Entry { index: 1, term: 1, kind: 0, data: "sound".into() }]);
    log.write(batch).unwrap();
    let mut record = Encoded::with_capacity(1, 0);
    record.push(Op::Floor { seq: 2 });
    let seq = log.shared.enqueue(&mut log.shared.queue.lock(), record);
    log.wait(Seq(seq)).unwrap();
    log.barrier().unwrap();
    drop(log);

    let inspector = Inspector::open(&disk, dir).unwrap();
    let records: Vec<_> = inspector.records().collect::<Result<_>>().unwrap();
    for record in &records[..2] {
        flip(&disk, &record.path, record.offset + RECORD_HEADER as u64);
    }
    let (log, recovery) = open();
    let fenced: Vec<_> = recovery.quarantined.iter().map(|fenced| fenced.group).collect();
    assert_eq!(fenced, [7, 8], "{recovery:?}");
    assert!(recovery.quarantined[0].damage.detail.contains("record 2"), "{recovery:?}");
    assert!(log.damage(7).is_some());
}

/// Of several damaged places of one group the first is told as what fences it off. The others were once told as damage that took
/// nothing with it, though the group needed them as much.
#[test]
fn further_damage_of_a_fenced_group_is_not_called_harmless() {
    let (disk, dir) = (MemDisk::default(), Path::new("/log"));
    let open = || open_in(&disk, dir);
    let (log, _) = open();
    for index in 1..=6 {
        let mut batch = LogBatch::new();
        batch.append(7, [Entry { index, term: 1, kind: 0, data: vec![7; 100].into() }]);
        batch.set_state(8, "sound");
        log.write(batch).unwrap();
    }
    let mut batch = LogBatch::new();
    batch.set_state(7, "voted");
    batch.compact_to(7, crate::types::LogPosition { index: 1, term: 1 });
    log.write(batch).unwrap();
    log.barrier().unwrap();
    drop(log);

    let inspector = Inspector::open(&disk, dir).unwrap();
    let records: Vec<_> = inspector.records().collect::<Result<_>>().unwrap();
    // Entries 1 (given up), 2 and 4, and the state.
    let flip = |n: usize, from: &[u8]| {
        let record = &records[n];
        let file = disk.open(&record.path, OpenMode::ReadWrite).unwrap();
        let mut bytes = vec![0; record.len as usize];
        file.read_at(record.offset, &mut bytes).unwrap();
        let at = bytes.windows(from.len()).position(|some| some == from).unwrap();
        file.write_at(record.offset + at as u64, &[bytes[at] ^ 1]).unwrap();
        record.offset
    };
    let places = [(0, &[7; 50][..]), (1, &[7; 50]), (3, &[7; 50]), (6, b"voted")];
    let [dead, first, second, state] = places.map(|(n, from)| flip(n, from));
    let (_, recovery) = open();
    let [Quarantine { group: 7, last_good: 1, damage }] = &recovery.quarantined[..] else {
        panic!("{recovery:?}")
    };
    let is_in = |damage: &Damage, record: u64| (record..record + 4096).contains(&damage.offset);
    assert!(is_in(damage, first), "{recovery:?}");
    let [entry, vote] = &recovery.further[..] else { panic!("{recovery:?}") };
    assert!(is_in(entry, second) && is_in(vote, state), "{recovery:?}");
    let [given_up] = &recovery.harmless[..] else { panic!("{recovery:?}") };
    assert!(is_in(given_up, dead), "{recovery:?}");
}

/// The directory of a record is lost, and the body of an older one damaged: the group is good up to the older one.
#[test]
fn a_group_is_good_up_to_the_first_of_its_damaged_places() {
    let (disk, dir) = (MemDisk::default(), Path::new("/log"));
    let open = || open_in(&disk, dir);
    let (log, _) = open();
    for index in 1..=6 {
        let mut batch = LogBatch::new();
        batch.append(7, [Entry { index, term: 1, kind: 0, data: vec![7; 100].into() }]);
        log.write(batch).unwrap();
    }
    log.barrier().unwrap();
    drop(log);
    let inspector = Inspector::open(&disk, dir).unwrap();
    let records: Vec<_> = inspector.records().collect::<Result<_>>().unwrap();
    for (record, at) in [(&records[1], 100), (&records[3], RECORD_HEADER as u64)] {
        flip(&disk, &record.path, record.offset + at);
    }
    let (log, recovery) = open();
    let [Quarantine { group: 7, last_good: 1, damage }] = &recovery.quarantined[..] else {
        panic!("{recovery:?}")
    };
    assert!(damage.detail.contains("directory of record 4"), "{recovery:?}");
    assert_eq!((recovery.further.len(), recovery.harmless.len()), (1, 0), "{recovery:?}");
    log.shared.index.read(7).map(|group| assert_eq!(group.damage_seq, 2)).unwrap();
}

/// A lost directory fences its group off for as long as it can be read that it is lost. Where all that is known of the group stands in
/// newer segments, the record itself must hold purge up: were it taken, the next opening would know of no loss.
#[test]
fn evidence_stays_though_its_group_says_newer_things() {
    let (disk, dir) = (MemDisk::default(), Path::new("/log"));
    let open = || {
        let options = Options { segment_bytes: 16 << 10, spare_segments: 1, ..Options::default() };
        Log::open(Arc::new(disk.clone()), dir, options).unwrap()
    };
    let say = |log: &Log, state: &'static str| {
        let mut batch = LogBatch::new();
        batch.set_state(7, state);
        log.write(batch).unwrap();
    };
    let fill = |log: &Log| {
        let last = log.last_index(1);
        for index in last + 1..=last + 30 {
            let mut batch = LogBatch::new();
            batch.append(1, [Entry { index, term: 1, kind: 0, data: vec![1; 3000].into() }]);
            if index > 1 {
                let to = crate::types::LogPosition { index: index - 1, term: 1 };
                batch.compact_to(1, to);
            }
            log.write(batch).unwrap();
        }
    };
    let (log, _) = open();
    say(&log, "voted");
    fill(&log);
    say(&log, "voted again");
    fill(&log);
    log.barrier().unwrap();
    drop(log);
    let first = dir.join("0000000000000001.seg");
    let file = disk.open(&first, OpenMode::ReadWrite).unwrap();
    let at = (super::super::format::BLOCK + RECORD_HEADER) as u64;
    let mut byte = [0];
    file.read_at(at, &mut byte).unwrap();
    file.write_at(at, &[byte[0] ^ 1]).unwrap();
    drop(file);
    for _ in 0..2 {
        let (log, recovery) = open();
        let fenced: Vec<_> = recovery.quarantined.iter().map(|fenced| fenced.group).collect();
        assert_eq!(fenced, [7], "{recovery:?}");
        fill(&log);
        let purged: Vec<_> = (0..4).map(|_| log.purge().unwrap().segments).collect();
        assert!(disk.exists(&first).unwrap(), "{purged:?}");
        log.barrier().unwrap();
    }
}
