//! What the simulated disk promises, and that it promises nothing more.

use super::*;
use std::collections::BTreeSet;

const DIR: &str = "/d";

fn disk(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    disk.create_dir_all(Path::new(DIR)).unwrap();
    disk
}

fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

fn create(disk: &SimDisk, name: &str) -> Arc<dyn File> {
    disk.open(&path(name), OpenMode::CreateNew).unwrap()
}

fn content(disk: &SimDisk, name: &str) -> Option<Vec<u8>> {
    let file = disk.open(&path(name), OpenMode::Read).ok()?;
    let mut buf = vec![0; file.len().unwrap() as usize];
    file.read_at(0, &mut buf).unwrap();
    Some(buf)
}

fn names(disk: &SimDisk) -> Vec<PathBuf> {
    disk.list(Path::new(DIR)).unwrap()
}

const ALL: [Mercy; 5] = [Mercy::Drawn, Mercy::All, Mercy::None, Mercy::Prefix, Mercy::Subset];

#[test]
fn synced_survives_always() {
    for seed in 0..300 {
        let disk = disk(seed);
        let file = create(&disk, "f");
        let mut rng = Rng::new(seed);
        let mut model = Vec::new();
        for _ in 0..20 {
            let at = rng.range("at", 0..20_000) as usize;
            let data = vec![rng.draw("byte") as u8; rng.range("len", 1..5_000) as usize];
            file.write_at(at as u64, &data).unwrap();
            model.resize(model.len().max(at + data.len()), 0);
            model[at..at + data.len()].copy_from_slice(&data);
            if rng.chance("cut", 200) {
                let len = rng.range("cut.len", 0..20_000);
                file.set_len(len).unwrap();
                model.resize(len as usize, 0);
            }
            if rng.chance("sync", 400) {
                file.sync_data().unwrap();
                let image = disk.crash_image(Mercy::None);
                assert!(content(&image, "f").is_none(), "the name was not synced");
            }
        }
        file.sync_data().unwrap();
        disk.sync_dir(Path::new(DIR)).unwrap();
        // Unsynced bytes behind the synced ones: they must not harm them.
        file.write_at(model.len() as u64, &[7; 3_000]).unwrap();
        for mercy in ALL {
            let image = disk.crash_image(mercy);
            let found = content(&image, "f").unwrap();
            assert_eq!(found[..model.len()], model, "seed {seed} {mercy:?}");
        }
        disk.crash(Mercy::Drawn);
        assert_eq!(content(&disk, "f").unwrap()[..model.len()], model);
    }
}

#[test]
fn unsynced_is_lost_kept_torn_and_garbled() {
    let mut kinds = BTreeSet::new();
    for seed in 0..400 {
        let disk = disk(seed);
        let file = create(&disk, "f");
        file.write_at(0, &[1; 4096]).unwrap();
        file.sync_data().unwrap();
        disk.sync_dir(Path::new(DIR)).unwrap();
        file.write_at(100, &[2; 2000]).unwrap();
        disk.crash(Mercy::Drawn);
        let found = content(&disk, "f").unwrap();
        let outside = found[..100].iter().chain(&found[2100..]);
        assert!(outside.copied().all(|b| b == 1), "bytes beside the write changed");
        let new = found[100..2100].iter().filter(|b| **b == 2).count();
        let strange = found[100..2100].iter().any(|b| *b > 2);
        kinds.insert(match (new, strange) {
            (_, true) => "garbled",
            (0, _) => "lost",
            (2000, _) => "kept",
            (_, _) => "torn",
        });
        // Tears lie at sector bounds.
        if !strange {
            let edges = (101..2100).filter(|at| found[*at] != found[at - 1]);
            edges.for_each(|at| assert_eq!(at % 512, 0));
        }
    }
    assert_eq!(kinds.len(), 4, "{kinds:?}");
}

#[test]
fn later_writes_may_survive_without_earlier_ones() {
    let reordered = (0..200).any(|seed| {
        let disk = disk(seed);
        let file = create(&disk, "f");
        disk.sync_dir(Path::new(DIR)).unwrap();
        file.write_at(0, &[1; 512]).unwrap();
        file.write_at(512, &[2; 512]).unwrap();
        disk.crash(Mercy::Subset);
        let found = content(&disk, "f").unwrap();
        found.len() == 1024 && found[..512] == [0; 512] && found[512..] == [2; 512]
    });
    assert!(reordered);
}

#[test]
fn names_need_their_directory_synced_and_keep_their_order() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let disk = disk(seed);
        let old = create(&disk, "a");
        old.write_at(0, b"old").unwrap();
        old.sync_data().unwrap();
        disk.sync_dir(Path::new(DIR)).unwrap();
        let new = create(&disk, "a.new");
        new.write_at(0, b"new").unwrap();
        new.sync_data().unwrap();
        disk.rename(&path("a.new"), &path("a")).unwrap();
        create(&disk, "b");
        assert_eq!(content(&disk, "a").unwrap(), b"new");
        let synced = disk.fork();
        synced.sync_dir(Path::new(DIR)).unwrap();
        synced.crash(Mercy::None);
        assert_eq!(names(&synced), [PathBuf::from("a"), PathBuf::from("b")]);
        assert_eq!(content(&synced, "a").unwrap(), b"new");

        disk.crash(Mercy::Subset);
        let a = content(&disk, "a").expect("a name that was durable is never lost by a rename");
        let state = (String::from_utf8(a).unwrap(), names(&disk).len());
        seen.insert(state);
    }
    let want = [("new", 1), ("new", 2), ("old", 1), ("old", 2)];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), want.map(|(a, n)| (a.to_owned(), n)));
}

#[test]
fn removal_may_come_back_until_synced() {
    let disk = disk(1);
    let file = create(&disk, "f");
    file.write_at(0, b"x").unwrap();
    file.sync_data().unwrap();
    disk.sync_dir(Path::new(DIR)).unwrap();
    disk.remove(&path("f")).unwrap();
    drop(file);
    assert_eq!(content(&disk.crash_image(Mercy::None), "f").unwrap(), b"x");
    disk.sync_dir(Path::new(DIR)).unwrap();
    for mercy in ALL {
        assert!(content(&disk.crash_image(mercy), "f").is_none());
    }
    assert!(disk.state.lock().inodes.is_empty(), "nothing leaks");
}

#[test]
fn handles_and_locks_die_with_the_node() {
    let disk = disk(1);
    let file = create(&disk, "f");
    let lock = disk.lock_dir(Path::new(DIR)).unwrap();
    assert!(disk.lock_dir(Path::new(DIR)).is_err());
    disk.sync_dir(Path::new(DIR)).unwrap();
    disk.crash(Mercy::All);
    assert!(file.write_at(0, b"ghost").is_err());
    assert!(file.read_at(0, &mut [0]).is_err());
    assert!(file.sync_data().is_err());
    let again = disk.lock_dir(Path::new(DIR)).unwrap();
    drop(lock);
    assert!(disk.lock_dir(Path::new(DIR)).is_err(), "the ghost released the new lock");
    drop(again);
    drop(file);
    assert_eq!(content(&disk, "f").unwrap(), b"");
}

#[test]
fn planned_errors_strike_where_planned() {
    let disk = disk(1);
    let file = create(&disk, "f");
    let at = |n: u64| Fires::At(BTreeSet::from([n]));
    disk.set_faults(Faults { read: at(2), write: at(3), sync: at(1), ..Faults::default() });
    file.write_at(0, &[1; 10]).unwrap();
    file.read_at(0, &mut [0; 10]).unwrap();
    assert!(matches!(file.read_at(0, &mut [0; 10]), Err(Error::Io { op: "read", .. })));
    file.write_at(10, &[2; 10]).unwrap();
    assert!(file.write_at(20, &[3; 10]).is_err());
    assert!(file.sync_data().is_err());
    assert_eq!(disk.counts().faults, 3);
}

#[test]
fn a_retried_sync_lies() {
    let lied = (0..50).any(|seed| {
        let disk = disk(seed);
        let file = create(&disk, "f");
        disk.sync_dir(Path::new(DIR)).unwrap();
        file.write_at(0, &[1; 100]).unwrap();
        disk.set_faults(Faults { sync: Fires::At([1].into()), ..Faults::default() });
        assert!(file.sync_data().is_err());
        file.sync_data().unwrap();
        assert_eq!(content(&disk, "f").unwrap(), [1; 100], "the page cache still shows it");
        disk.crash(Mercy::All);
        content(&disk, "f").unwrap() != [1; 100]
    });
    assert!(lied);
}

#[test]
fn a_full_disk_refuses_growth_only() {
    let disk = disk(1);
    let file = create(&disk, "f");
    disk.set_faults(Faults { capacity: Some(1000), ..Faults::default() });
    file.set_len(900).unwrap();
    assert!(matches!(file.write_at(890, &[1; 200]), Err(Error::DiskFull { .. })));
    assert!(file.len().unwrap() <= 1000);
    assert!(matches!(file.set_len(1001), Err(Error::DiskFull { .. })));
    file.write_at(0, &[2; 900]).unwrap();
    let other = create(&disk, "g");
    assert!(matches!(other.write_at(0, &[1; 200]), Err(Error::DiskFull { .. })));
    disk.remove(&path("f")).unwrap();
    other.write_at(0, &[1; 1000]).unwrap();
    assert_eq!(disk.used(), 1000);
}

#[test]
fn power_fails_at_every_change() {
    let work = |disk: &SimDisk| -> Result<()> {
        let file = disk.open(&path("f"), OpenMode::CreateNew)?;
        file.write_at(0, b"one")?;
        file.sync_data()?;
        disk.sync_dir(Path::new(DIR))?;
        disk.rename(&path("f"), &path("g"))
    };
    let whole = disk(1);
    work(&whole).unwrap();
    let total = whole.counts().changes();
    assert_eq!(total, 5);
    for n in 1..=total {
        let disk = disk(n);
        disk.set_faults(Faults { power_off_after: Some(n), ..Faults::default() });
        assert!(work(&disk).is_err());
        assert!(disk.is_off() && disk.list(Path::new(DIR)).is_err());
        disk.crash(Mercy::Drawn);
        assert!(names(&disk).len() <= 1);
        if n == total {
            let name = names(&disk)[0].to_string_lossy().into_owned();
            assert_eq!(content(&disk, &name).unwrap(), b"one");
        }
    }
}

#[test]
fn rot_is_seen_and_stays() {
    let disk = disk(1);
    let file = create(&disk, "f");
    file.write_at(0, &[0; 64]).unwrap();
    assert!(disk.rot_somewhere(|_| true).is_none(), "nothing is durable yet");
    file.sync_data().unwrap();
    disk.sync_dir(Path::new(DIR)).unwrap();
    file.write_at(64, b"later").unwrap();
    let (rotten, at) = disk.rot_somewhere(|p| p == path("f")).unwrap();
    assert_eq!(rotten, path("f"));
    let now = content(&disk, "f").unwrap();
    assert_eq!(now[at as usize].count_ones(), 1);
    assert_eq!(now[64..], *b"later");
    disk.crash(Mercy::None);
    assert_eq!(content(&disk, "f").unwrap(), now[..64]);
    assert!(disk.rot(&path("f"), 64, 1).is_err());
}

#[test]
fn time_passes_as_planned() {
    let disk = disk(1);
    let file = create(&disk, "f");
    assert_eq!(disk.take_busy(), Duration::ZERO);
    disk.set_faults(Faults { speed: Speed::solid_state(), ..Faults::default() });
    file.write_at(0, &vec![1; 5_000_000]).unwrap();
    file.sync_data().unwrap();
    assert_eq!(disk.take_busy(), Duration::from_micros(10 + 10_000 + 1_000));
    assert_eq!(disk.take_busy(), Duration::ZERO);
    disk.alter_faults(|f| {
        f.speed = Speed { stalls: Fires::Always, ..Speed::stalling() };
    });
    file.sync_data().unwrap();
    assert!(disk.take_busy() > Duration::from_millis(1));
}

#[test]
fn one_seed_one_outcome() {
    let run = |seed| {
        let disk = disk(seed);
        let file = create(&disk, "f");
        disk.sync_dir(Path::new(DIR)).unwrap();
        for n in 0..50u64 {
            let _ = file.write_at(n * 100, &[n as u8; 150]);
        }
        disk.crash(Mercy::Subset);
        content(&disk, "f")
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}
