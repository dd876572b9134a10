//! Which compactions there are, when they begin and how they end, on real files.

use super::*;

#[test]
fn a_compaction_of_level_0_is_due_by_its_runs() {
    for runs in 1..40 {
        for tables in runs..runs * 4 {
            let due = tables >= usize::from(l0_tables(12, runs, tables));
            assert_eq!(due, runs >= 12, "{tables} tables in {runs} runs");
        }
    }
    assert_eq!(l0_tables(0, 0, 0), 2);
}

fn options() -> LsmOptions {
    LsmOptions { idle_after: Duration::ZERO, table_bytes: 64 << 10, ..LsmOptions::default() }
}

fn key(n: u32) -> [u8; 4] {
    n.to_be_bytes()
}

/// An ingestion of `count` keys, `step` apart, whose values say which ingestion it was.
fn ingest(tables: &LsmTables, mark: u8, step: u32, count: u32) {
    let mut fill =
        |sink: &mut dyn Sink| (0..count).try_for_each(|n| sink.put(&key(n * step), &[mark; 100]));
    tables.ingest(&mut fill).unwrap();
}

/// Does what would be done if nothing else were ingested; how many steps it took.
fn settle(tables: &LsmTables) -> usize {
    let mut steps = 0;
    while tables.debt().pending {
        steps += usize::from(tables.maintain().unwrap());
    }
    steps
}

/// Files of tables, and their bytes.
fn files(dir: &Path) -> std::collections::BTreeMap<std::ffi::OsString, u64> {
    let entries = std::fs::read_dir(dir.join("tree/tables")).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name(), entry.metadata().unwrap().len())).collect()
}

#[test]
fn after_writing_stops_few_runs_are_left() {
    for runs in 2..12u8 {
        let dir = tempfile::tempdir().unwrap();
        let tables = LsmTables::open(dir.path(), options()).unwrap();
        (0..runs).for_each(|mark| ingest(&tables, mark, u32::from(mark) + 1, 1000));
        let before = tables.snapshot().unwrap();
        assert_eq!(tables.runs(), usize::from(runs));
        let steps = settle(&tables);
        assert!((1..4).contains(&steps), "{steps} steps for {runs} runs");
        assert!(tables.runs() <= 1, "{} runs are left of {runs}", tables.runs());
        let after = tables.snapshot().unwrap();
        let all = KeyRange::new(key(0).to_vec(), key(u32::MAX).to_vec());
        let read = |view: &dyn TablesView| -> Vec<_> {
            view.scan(&all, Direction::Forward).map(|item| item.unwrap()).collect()
        };
        assert_eq!(read(&*after), read(&*before));
        assert_eq!(after.get(&key(0)).unwrap().unwrap(), vec![runs - 1; 100]);
        drop((before, after, tables));
        // Nothing is left over for the next one who opens them.
        let tables = LsmTables::open(dir.path(), options()).unwrap();
        assert!(!tables.debt().pending && tables.runs() <= 1);
    }
}

/// What was there before a restart counts, too.
#[test]
fn runs_that_were_left_before_a_restart_are_compacted() {
    let dir = tempfile::tempdir().unwrap();
    let never = LsmOptions { idle_after: Duration::MAX, ..options() };
    let tables = LsmTables::open(dir.path(), never).unwrap();
    (0..11).for_each(|mark| ingest(&tables, mark, 1, 500));
    assert_eq!((settle(&tables), tables.runs()), (0, 11));
    drop(tables);
    let tables = LsmTables::open(dir.path(), options()).unwrap();
    settle(&tables);
    assert!(tables.runs() <= 1);
    assert_eq!(tables.snapshot().unwrap().get(&key(7)).unwrap().unwrap(), vec![10; 100]);
}

#[test]
fn a_trickle_rewrites_a_bounded_amount() {
    let dir = tempfile::tempdir().unwrap();
    // Ordinary compactions are left out.
    let options = LsmOptions { l0_runs: 255, late_runs: 1000, ..options() };
    let tables = LsmTables::open(dir.path(), options).unwrap();
    let (mut ingested, mut rewritten, mut large) = (0, 0, 0);
    let mut seen = files(dir.path());
    let mut look = || {
        let now = files(dir.path());
        let new = now.iter().filter(|(name, _)| !seen.contains_key(*name)).map(|(_, bytes)| bytes);
        let new: u64 = new.sum();
        seen = now;
        new
    };
    for flush in 0..100u8 {
        // Two large ones, then a trickle.
        ingest(&tables, flush, 1, if flush < 2 { 5000 } else { 20 });
        ingested += look();
        settle(&tables);
        let bytes = look();
        rewritten += bytes;
        large += usize::from(bytes > 400_000);
    }
    assert!(rewritten <= 4 * ingested, "{rewritten} bytes for {ingested}");
    // The two large ones have paid for that: four times what they are, and their merge is half of it.
    assert!((1..=8).contains(&large), "the large level was written {large} times");
}

#[test]
fn a_halt_leaves_the_tables_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let tables = LsmTables::open(dir.path(), options()).unwrap();
    (0..5).for_each(|mark| ingest(&tables, mark, 1, 2000));
    let before = files(dir.path());
    tables.set_halted(true);
    // As if it had begun already.
    assert!(!tables.compact_idle().unwrap());
    assert!(!tables.compact(Arc::new(PullDown(0, 6))).unwrap());
    assert!(!tables.maintain().unwrap());
    assert_eq!((tables.runs(), files(dir.path())), (5, before));
    ingest(&tables, 9, 1, 1);
    assert_eq!(tables.snapshot().unwrap().get(&key(0)).unwrap().unwrap(), vec![9; 100]);
    drop(tables);
    let tables = LsmTables::open(dir.path(), options()).unwrap();
    settle(&tables);
    assert_eq!(tables.snapshot().unwrap().get(&key(1)).unwrap().unwrap(), vec![4; 100]);
}

/// A thread that compacts on and on ends when the store is halted, wherever it is.
#[test]
fn a_compacting_thread_ends_when_halted() {
    let dir = tempfile::tempdir().unwrap();
    let tables = LsmTables::open(dir.path(), options()).unwrap();
    (0..8).for_each(|mark| ingest(&tables, mark, 1, 20_000));
    std::thread::scope(|scope| {
        let compactor = scope.spawn(|| {
            while !tables.brake.is_halted() {
                tables.maintain().unwrap();
            }
        });
        while !tables.compacting.is_locked_exclusive() && tables.runs() == 8 {
            std::thread::yield_now();
        }
        tables.set_halted(true);
        compactor.join().unwrap();
    });
    assert!(matches!(tables.runs(), 0 | 8), "done or undone: {} runs", tables.runs());
    assert_eq!(tables.snapshot().unwrap().get(&key(1)).unwrap().unwrap(), vec![7; 100]);
}

#[test]
fn a_compaction_of_the_idle_gives_way_to_an_ordinary_one() {
    let dir = tempfile::tempdir().unwrap();
    let tables = LsmTables::open(dir.path(), LsmOptions { l0_runs: 4, ..options() }).unwrap();
    (0..3).for_each(|mark| ingest(&tables, mark, 1, 1000));
    tables.brake.set_idle(true);
    ingest(&tables, 3, 1, 1000);
    let before = files(dir.path());
    assert!(!tables.compact(Arc::new(PullDown(0, 6))).unwrap(), "it met the fourth run");
    assert_eq!((tables.runs(), files(dir.path())), (4, before));
    tables.brake.set_idle(false);
    // The brake is for the idle alone: ordinary ones begin, and end, with its lever still pulled.
    ingest(&tables, 4, 1, 1000);
    assert!(tables.maintain().unwrap());
    assert_eq!(tables.runs(), 0);
}

/// Tables of many keys: their filters and indexes are cut into several blocks.
#[test]
fn every_key_of_large_tables_is_found_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let large = LsmOptions { table_bytes: 64 << 20, l0_runs: 3, ..options() };
    let tables = LsmTables::open(dir.path(), large).unwrap();
    // Odd keys are there; every third of them twice. First by a compaction of the idle, then by an ordinary one.
    let odd = |n: u32| n * 2 + 1;
    let fill = |mark: u8, step: u32| {
        let mut keys = |sink: &mut dyn Sink| {
            let keys = (0..20_000).step_by(step as usize);
            keys.into_iter().try_for_each(|n| sink.put(&key(odd(n)), &[mark; 100]))
        };
        tables.ingest(&mut keys).unwrap();
    };
    let check = |marks: [u8; 2]| {
        settle(&tables);
        assert!(tables.runs() <= 1);
        let view = tables.snapshot().unwrap();
        for n in 0..20_000 {
            let mark = marks[usize::from(n % 3 == 0)];
            assert_eq!(view.get(&key(odd(n))).unwrap().unwrap(), vec![mark; 100], "{n}");
            assert_eq!(view.get(&key(n * 2)).unwrap(), None, "{n}");
        }
    };
    fill(1, 1);
    fill(2, 3);
    check([1, 2]);
    (3..6).for_each(|mark| fill(mark, 3));
    check([1, 5]);
}
