//! One contract, three disks: what every implementation of [`Disk`] answers when nothing goes wrong.

use super::mem::MemDisk;
use super::os::OsDisk;
use super::*;
use crate::error::Error;

fn contract(disk: &dyn Disk, root: &Path) {
    let dir = root.join("a/b/c");
    assert!(!disk.exists(&dir).unwrap());
    assert!(disk.list(&dir).is_err());
    assert!(disk.open(&dir.join("f"), OpenMode::CreateNew).is_err(), "no such directory");
    disk.create_dir_all(&dir).unwrap();
    disk.create_dir_all(&dir).unwrap();
    assert!(disk.exists(&dir).unwrap() && disk.exists(&root.join("a/b")).unwrap());

    let path = dir.join("f");
    assert!(disk.open(&path, OpenMode::ReadWrite).is_err());
    let file = disk.open(&path, OpenMode::CreateNew).unwrap();
    assert!(disk.open(&path, OpenMode::CreateNew).is_err());
    assert!(file.is_empty().unwrap());
    assert_eq!(file.path(), path);
    file.write_at(3, b"abc").unwrap();
    let parts: Vec<Vec<u8>> = (0..3000u32).map(|i| vec![i as u8; (i % 7) as usize]).collect();
    let slices: Vec<IoSlice<'_>> = parts.iter().map(|p| IoSlice::new(p)).collect();
    file.write_vectored_at(6, &slices).unwrap();
    file.write_vectored_at(0, &[]).unwrap();
    let mut want = b"\0\0\0abc".to_vec();
    want.extend(parts.concat());
    assert_eq!(file.len().unwrap(), want.len() as u64);
    let mut got = vec![1; want.len() + 10];
    assert_eq!(file.read_at(0, &mut got).unwrap(), want.len());
    assert_eq!(got[..want.len()], want);
    assert_eq!(file.read_at(want.len() as u64, &mut got).unwrap(), 0);
    file.sync_data().unwrap();
    disk.sync_dir(&dir).unwrap();

    file.set_len(4).unwrap();
    file.set_len(6).unwrap();
    let reader = disk.open(&path, OpenMode::Read).unwrap();
    assert!(reader.write_at(0, b"x").is_err());
    let mut six = [9; 6];
    assert_eq!(reader.read_at(0, &mut six).unwrap(), 6);
    assert_eq!(&six, b"\0\0\0a\0\0");

    drop(disk.open(&dir.join("e"), OpenMode::CreateNew).unwrap());
    assert_eq!(disk.list(&dir).unwrap(), [PathBuf::from("e"), PathBuf::from("f")]);
    assert!(disk.list_irregular(&dir).unwrap().is_empty());
    let directory = Irregular { name: "c".into(), what: "a directory".into() };
    assert_eq!(disk.list_irregular(&root.join("a/b")).unwrap(), [directory]);
    assert!(disk.list(&root.join("a/b")).unwrap().is_empty());
    assert!(disk.list_irregular(&root.join("nowhere")).is_err());
    disk.rename(&path, &dir.join("e")).unwrap();
    assert_eq!(disk.list(&dir).unwrap(), [PathBuf::from("e")]);
    assert_eq!(disk.open(&dir.join("e"), OpenMode::Read).unwrap().len().unwrap(), 6);
    assert!(disk.rename(&path, &dir.join("g")).is_err());
    disk.remove(&dir.join("e")).unwrap();
    assert!(disk.remove(&dir.join("e")).is_err());
    assert_eq!(reader.len().unwrap(), 6, "an open file outlives its name");

    assert!(disk.hands() > 0);
    for count in [0, 1, 100] {
        let mut places = vec![0; count];
        let jobs = places
            .iter_mut()
            .enumerate()
            .map(|(n, place)| -> Job<'_> { Box::new(move || *place += n + 1) });
        disk.run(jobs.collect());
        assert!(places.iter().enumerate().all(|(n, place)| *place == n + 1), "each once");
    }

    let held = disk.lock_dir(&dir).unwrap();
    assert!(matches!(disk.lock_dir(&dir), Err(Error::Locked(d)) if d == dir));
    drop(held);
    disk.lock_dir(&dir).unwrap();
    assert!(disk.lock_dir(&root.join("nowhere")).is_err());
}

#[test]
fn memory() {
    contract(&MemDisk::default(), Path::new("/node"));
}

#[test]
fn operating_system() {
    let dir = tempfile::tempdir().unwrap();
    contract(&OsDisk, dir.path());
}

#[test]
fn simulated() {
    contract(&crate::sim::disk::SimDisk::new(1), Path::new("/node"));
}
