//! Every verb beside a log that is being written, rotated and purged: none fails, none sees damage, none
//! takes the lock or leaves a trace in the directory.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod fixture;

use catamaran::log::LogBatch;
use fixture::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[test]
fn looking_never_fails_and_never_disturbs() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path();
    build(data, 1);
    let log = open(data);
    let stop = AtomicBool::new(false);
    let written = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut index = 9;
            while !stop.load(Ordering::Relaxed) {
                let mut batch = LogBatch::new();
                let value = vec![b'x'; 200 + (index % 7) as usize * 400];
                batch.append(1, [entry(index, 6, folded(&[put(b"live", &value)]))]);
                batch.append(5, [entry(index - 8, 1, folded(&[put(b"other", b"")]))]);
                if index % 10 == 0 {
                    batch.compact_to(1, at(index - 2, 6));
                    batch.compact_to(5, at(index - 10, 1));
                }
                log.write(batch).unwrap();
                if index % 25 == 0 {
                    log.purge().unwrap();
                }
                if index % 40 == 0 {
                    // Quiet moments, as a node has them: a log this small turns over all its files
                    // in milliseconds otherwise.
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                written.fetch_add(1, Ordering::Relaxed);
                index += 1;
            }
        });
        let dir = data.to_str().unwrap();
        let verbs =
            ["summary", "segments", "groups", "entries", "state", "stats", "verify", "tail"];
        // At least so many rounds, and at least so many writes beside them.
        let busy = |round: &usize| *round < 12 || written.load(Ordering::Relaxed) < 300;
        let failed: Vec<String> = (0..200)
            .take_while(busy)
            .flat_map(|_| verbs)
            .filter_map(|verb| {
                let run = dump(&[verb, dir]);
                let bad = run.code != 0 || !run.err.is_empty() || run.out.is_empty();
                bad.then(|| format!("{verb}: {} {} {}", run.code, run.err, run.out))
            })
            .collect();
        let compared = dump(&["diff", dir, dir, "--common"]);
        stop.store(true, Ordering::Relaxed);
        assert!(failed.is_empty(), "{} failed: {}", failed.len(), failed[0]);
        assert_eq!(compared.code, 0, "{} {}", compared.err, compared.out);
    });
    assert!(written.load(Ordering::Relaxed) > 100);
    drop(log);
    // What the log engine makes of it afterwards.
    let log = open(data);
    log.barrier().unwrap();
    assert_eq!(dump(&["verify", data.to_str().unwrap()]).code, 0);
}
