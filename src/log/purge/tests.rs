//! A checkpoint that cannot be written leaves no trace.

use super::*;
use crate::env::mem::MemDisk;
use crate::log::{LogBatch, Options};
use std::path::Path;
use std::sync::Arc;

fn entry(index: u64) -> Entry {
    Entry { index, term: 1, kind: 0, data: vec![index as u8; 500].into() }
}

#[test]
fn a_checkpoint_over_live_entries_changes_nothing() {
    let options = Options { segment_bytes: 64 << 10, ..Options::default() };
    let (log, _) =
        Log::open(Arc::new(MemDisk::default()), Path::new("/log"), options.clone()).unwrap();
    let mut batch = LogBatch::new();
    batch.set_state(1, "said once");
    batch.append(2, [entry(1)]);
    log.write(batch).unwrap();
    let said = |log: &Log| {
        let group = log.shared.index.read(1).unwrap();
        (group.state_seq, group.state_rel)
    };
    let before = said(&log);
    let next = log.shared.queue.lock().next_seq;
    // The first group's state would be said again, were it not for the second one's entry.
    assert_eq!(log.shared.checkpoint(next, &mut Watch::default()).unwrap(), None);
    assert_eq!(log.shared.queue.lock().next_seq, next);
    assert_eq!(said(&log), before);

    let mut batch = LogBatch::new();
    batch.clear(2);
    log.write(batch).unwrap();
    let next = log.shared.queue.lock().next_seq;
    assert_eq!(log.shared.checkpoint(next, &mut Watch::default()).unwrap(), Some(1));
    assert_eq!(said(&log).0, next);
}
