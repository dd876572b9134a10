//! A generation is used once, also where it was given out to a file that never got its segment's name.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so when it fails")]

mod log_disk;

use catamaran::log::{Entry, Log, LogBatch, Options, Recovery};
use log_disk::{Crash, MemDisk, Step, Survivors};
use std::path::Path;
use std::sync::Arc;

fn open(disk: &MemDisk) -> (Log, Recovery) {
    let options = Options { segment_bytes: 64 << 10, spare_segments: 1, ..Options::default() };
    Log::open(Arc::new(disk.clone()), Path::new("/log"), options).unwrap()
}

fn put(log: &Log, index: u64, len: usize) {
    let mut batch = LogBatch::new();
    batch.append(1, [Entry { index, term: 1, kind: 0, data: vec![index as u8; len].into() }]);
    log.write(batch).unwrap();
}

/// Which of these steps the last is that `is` says.
fn last_of(steps: &[Step], is: impl Fn(&Step) -> bool) -> usize {
    steps.iter().rposition(is).unwrap()
}

/// A process was killed between the writes of its last groups and their syncs. The next one saw them, out of the page cache, copied
/// them into a spare under a new generation, and synced that. Then the power went, before the copy had its segment's
/// name: the groups were gone, and the spare with their copies was the first to be taken for the next copy. Were its
/// generation given out again, they would stand behind a shorter copy as if they belonged there: of some sizes, one begins just
/// where the next group would.
#[test]
fn a_generation_that_never_came_to_be_is_not_used_again() {
    for len in 900..1024 {
        let disk = MemDisk::default();
        let (log, _) = open(&disk);
        (1..=3).for_each(|index| put(&log, index, len));
        let certain = disk.state().image.clone();
        disk.state().journal.clear();
        (4..=6).for_each(|index| put(&log, index, len));
        drop(log);
        let mut crash = Crash { certain, ..Crash::default() };
        let written = std::mem::take(&mut disk.state().journal);
        let is_sync = |step: &&Step| !matches!(step, Step::Sync { .. });
        written.iter().filter(is_sync).for_each(|step| crash.step(step));

        let seen = MemDisk::numbered(crash.image(Survivors::All), crash.next_inode());
        let (_, recovery) = open(&seen);
        assert!(recovery.copied_bytes > 0, "{recovery:?}");
        let opened = std::mem::take(&mut seen.state().journal);
        let named = last_of(
            &opened,
            |step| matches!(step, Step::Rename { to, .. } if to.extension().is_some_and(|e| e == "seg")),
        );
        opened[..named].iter().for_each(|step| crash.step(step));

        let disk = MemDisk::of(crash.image(Survivors::None));
        let (log, recovery) = open(&disk);
        assert_eq!((log.last_index(1), recovery.last_seq), (3, 3), "{recovery:?}");
        drop(log);
        for _ in 0..2 {
            let (log, recovery) = open(&disk);
            assert_eq!(log.last_index(1), 3, "{len}, came back: {recovery:?}");
        }
    }
}
