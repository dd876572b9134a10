//! What is left out of the last segment when it is read would have told nothing; and what has a segment's name and
//! is no file is not passed over.

use super::*;
use crate::env::mem::MemDisk;
use crate::env::os::OsDisk;
use crate::log::inspect::verify;
use crate::log::{Entry, Log, LogBatch, Options};
use proptest::prelude::*;

const DIR: &str = "/log";

/// A log whose last segment lies in a recycled file: a former life's records follow its own.
fn directory(last: u64, purges: bool) -> MemDisk {
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
        if purges {
            log.purge().unwrap();
        }
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
    told_of(Scan::new(bytes, header, None, Echoes::new()))
}

fn told_of(mut scan: Scan<'_>) -> String {
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
        let disk = directory(last, true);
        let names = disk.list(Path::new(DIR)).unwrap();
        let find = || {
            find_segments(&disk, Path::new(DIR), &names, OpenMode::ReadWrite, Neighbour::None)
        };
        let found = find().unwrap().pop().unwrap();
        let whole = found.read(&Echoes::new()).unwrap().bytes;
        let live = live(&found, blocks);
        prop_assert!(live.len() <= whole.len());
        prop_assert_eq!(told(&live, &found.header), told(&whole, &found.header));
        for (at, len, byte) in damage {
            // Anywhere but in the segment's own header.
            let at = BLOCK + at % (whole.len() - BLOCK - len);
            found.file.write_at(at as u64, &vec![byte; len]).unwrap();
            let (whole, live) = (found.read(&Echoes::new()).unwrap().bytes, self::live(&found, blocks));
            prop_assert_eq!(told(&live, &found.header), told(&whole, &found.header));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Of a segment that others follow, what they repeat of it leads to records too.
    #[test]
    fn the_rest_of_a_long_segment_tells_nothing(
        last in 0..12u64,
        damage in proptest::collection::vec((0..64usize << 10, 1..600usize, any::<u8>()), 0..12),
    ) {
        let disk = directory(last, false);
        let names = disk.list(Path::new(DIR)).unwrap();
        let neighbour = Neighbour::None;
        let mut all =
            find_segments(&disk, Path::new(DIR), &names, OpenMode::ReadWrite, neighbour).unwrap();
        prop_assert!(all.len() > 1);
        for (at, len, byte) in damage {
            let at = BLOCK + at % ((64 << 10) - BLOCK - len);
            all[0].file.write_at(at as u64, &vec![byte; len]).unwrap();
        }
        let beyond = echo::echoes_beyond(&all[0], all[1..].iter()).unwrap();
        let mut tell = |size: u64| {
            let found = &mut all[0];
            found.header.size = size;
            let bytes = found.read(&beyond).unwrap().bytes;
            let scan = Scan::new(&bytes, &found.header, found.limit, beyond.clone());
            (bytes.len(), told_of(scan))
        };
        // As if it had been made longer than it is, and as if it had grown.
        let (whole, part) = (tell(u64::MAX), tell(0));
        prop_assert!(part.0 <= whole.0);
        prop_assert_eq!(part.1, whole.1);
    }
}

/// A log on the real disk with an entry in each of so many segments or more.
fn real_directory(dir: &Path, segments: u64) {
    let log = open(dir).unwrap();
    for index in 1..=3 * segments {
        let mut batch = LogBatch::new();
        batch.append(1, [Entry { index, term: 1, kind: 0, data: vec![7; 3000].into() }]);
        log.write(batch).unwrap();
    }
    log.barrier().unwrap();
}

fn open(dir: &Path) -> Result<Log> {
    let options = Options { segment_bytes: 16 << 10, spare_segments: 1, ..Options::default() };
    Log::open(Arc::new(OsDisk), dir, options).map(|(log, _)| log)
}

/// The file that damage is found in, by opening and by verification, and what is said of it.
fn refused(dir: &Path) -> (PathBuf, String) {
    let Err(Error::Corruption { path, detail, .. }) = open(dir) else { panic!("it opened") };
    let report = verify(&OsDisk, dir).unwrap();
    assert!(report.findings.iter().any(|found| found.file == path && found.detail == detail));
    (path, detail)
}

/// Names, kinds and lengths of what a directory holds.
fn listing(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| {
        let entry = entry.unwrap();
        let met = entry.path().symlink_metadata().unwrap();
        format!("{:?} {:?} {}", entry.file_name(), entry.file_type().unwrap(), met.len())
    });
    let mut entries: Vec<String> = entries.collect();
    entries.sort();
    entries
}

/// The newest segment was moved to another disk, a link left in its place. The link was once passed over: the log
/// opened without what the segment held, and a new one took its number.
#[test]
fn a_link_in_the_newest_segments_place_is_not_taken_for_the_end_of_the_log() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, moved) = (temp.path().join("log"), temp.path().join("moved"));
    real_directory(&dir, 3);
    let names = OsDisk.list(&dir).unwrap();
    let newest = names.iter().rfind(|name| parse_name(name, SEGMENT_SUFFIX).is_some()).unwrap();
    let newest = dir.join(newest);
    std::fs::rename(&newest, &moved).unwrap();
    for (to, ends) in [(moved.clone(), ""), (temp.path().join("no"), " (nothing is there)")] {
        std::os::unix::fs::symlink(&to, &newest).unwrap();
        let before = listing(&dir);
        let said = format!("is a symbolic link to {}{ends}, not a regular file", to.display());
        assert_eq!(refused(&dir), (newest.clone(), said));
        assert_eq!(listing(&dir), before);
        std::fs::remove_file(&newest).unwrap();
    }
    std::fs::rename(&moved, &newest).unwrap();
    assert_eq!(open(&dir).unwrap().last_index(1), 9);
}

/// Spares too: what stood in a spare's place may reserve a generation, and may be all that tells that segments were
/// taken away. A name that is nobody's is nobody's business, whatever has it.
#[test]
fn what_has_a_segments_or_a_spares_name_is_a_file_or_refused() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("log");
    real_directory(&dir, 1);
    for name in ["0000000000009999.seg", "0000000000009999.free", "0000000000000000.free"] {
        let odd = dir.join(name);
        std::fs::create_dir(&odd).unwrap();
        let before = listing(&dir);
        let said = "is a directory, not a regular file".to_owned();
        assert_eq!(refused(&dir), (odd.clone(), said));
        assert_eq!(listing(&dir), before);
        std::fs::remove_dir(&odd).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&odd).unwrap());
        let said = "is a device, a pipe or a socket, not a regular file".to_owned();
        assert_eq!(refused(&dir), (odd.clone(), said));
        std::fs::remove_file(&odd).unwrap();
    }
    for name in ["notes.seg", "9999.seg", "+000000000009999.seg", "elsewhere"] {
        std::os::unix::fs::symlink("/no/such/place", dir.join(name)).unwrap();
    }
    std::fs::create_dir(dir.join("backup")).unwrap();
    assert_eq!(open(&dir).unwrap().last_index(1), 3);
    assert!(!verify(&OsDisk, &dir).unwrap().is_rotten());
    // Without any segment it would look like a log that was never opened to its end.
    for name in OsDisk.list(&dir).unwrap() {
        std::fs::remove_file(dir.join(name)).unwrap();
    }
    std::os::unix::fs::symlink("/no/such/place", dir.join("0000000000000001.free")).unwrap();
    assert_eq!(refused(&dir).0, dir.join("0000000000000001.free"));
}

/// Numbers of records are computed with. A header whose checksum holds and that begins with record 0, or with one near the
/// end of all numbers, once made that overflow.
#[test]
fn a_segment_that_begins_with_a_number_that_no_log_comes_to_is_refused() {
    for base_seq in [0, LAST_SEQ + 1, u64::MAX] {
        let disk = directory(0, true);
        let names = disk.list(Path::new(DIR)).unwrap();
        let find =
            || find_segments(&disk, Path::new(DIR), &names, OpenMode::ReadWrite, Neighbour::None);
        let found = find().unwrap().pop().unwrap();
        let header = SegmentHeader { base_seq, ..found.header };
        found.file.write_at(0, &header.encode()).unwrap();
        let Err(Error::Corruption { path, detail, .. }) = find() else { panic!("it was found") };
        assert_eq!(path, found.path);
        assert!(detail.contains("no log comes to that"), "{detail}");
    }
}
