//! One flipped byte anywhere: reported with file and offset, or harmless; never lost silently and
//! never served. `LOG_FLIP_ALL` flips every byte in place of a sample (in release: minutes), `LOG_FLIP_THREADS`
//! says on how many threads.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so when it fails")]

mod log_disk;

use catamaran::Error;
use catamaran::log::inspect::{self, FindingKind};
use catamaran::log::{Entry, Log, LogBatch, Options};
use catamaran::types::LogPosition;
use log_disk::{Image, MemDisk};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

const DIR: &str = "/log";

fn options() -> Options {
    with_segments_of(32 << 10)
}

fn with_segments_of(segment_bytes: u64) -> Options {
    Options { segment_bytes, cache_bytes: 0, spare_segments: 1, ..Options::default() }
}

fn open(disk: &MemDisk) -> catamaran::Result<(Log, catamaran::log::Recovery)> {
    Log::open(Arc::new(disk.clone()), Path::new(DIR), options())
}

fn entry(index: u64, group: u64) -> Entry {
    let data = format!("group {group} entry {index} ").repeat(4);
    Entry { index, term: 1 + index / 10, kind: 1, data: data.into() }
}

/// Whether full segments have got their footers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Footers {
    No,
    Yes,
}

/// A log to be damaged, and what it holds: four groups, two a record, acknowledged and stated.
struct Sound {
    options: Options,
    footers: Footers,
    /// The last entry of each group.
    last: u64,
    image: Image,
}

impl Sound {
    fn open(&self, disk: &MemDisk) -> catamaran::Result<(Log, catamaran::log::Recovery)> {
        Log::open(Arc::new(disk.clone()), Path::new(DIR), self.options.clone())
    }

    fn entry(&self, index: u64, group: u64) -> Entry {
        match self.options.segment_bytes {
            0..SEGMENT_OF_MEBIBYTE => entry(index, group),
            _ => long_entry(index, group),
        }
    }

    /// Its segments, by name.
    fn segments(&self) -> Vec<(&Path, u64)> {
        let names = self.image.names.iter().map(|(path, inode)| (path.as_path(), *inode));
        names.filter(|(path, _)| path.extension().is_some_and(|e| e == "seg")).collect()
    }
}

const SEGMENT_OF_MEBIBYTE: u64 = 64 << 10;

/// A record of two fills a block.
fn long_entry(index: u64, group: u64) -> Entry {
    let short = entry(index, group);
    Entry { data: short.data.repeat(14 + (index % 9) as usize).into(), ..short }
}

fn put_pair(log: &Log, pair: [u64; 2], index: u64, entry: impl Fn(u64, u64) -> Entry) {
    let mut batch = LogBatch::new();
    for group in pair {
        batch.append(group, [entry(index, group)]);
        batch.set_state(group, format!("state {index} of {group}"));
    }
    if index == 12 && pair[1] == 4 {
        batch.compact_to(4, LogPosition { index: 11, term: 2 });
    }
    log.write(batch).unwrap();
}

/// Over a few segments, up to this entry of each group. Nobody states the last record.
fn unstated(last: u64) -> (MemDisk, Log) {
    let disk = MemDisk::default();
    let (log, _) = open(&disk).unwrap();
    for index in 1..=last {
        for pair in [[1, 2], [3, 4]] {
            put_pair(&log, pair, index, entry);
        }
    }
    (disk, log)
}

fn build(footers: Footers) -> (MemDisk, Log) {
    let (disk, log) = unstated(24);
    log.barrier().unwrap();
    while footers == Footers::Yes && log.prepare().unwrap() {}
    (disk, log)
}

fn small(footers: Footers) -> Sound {
    let (disk, log) = build(footers);
    drop(log);
    let image = disk.state().image.clone();
    Sound { options: options(), footers, last: 24, image }
}

/// Sixteen segments, of 2^20 bytes in all: fifteen with their footers, and one that is half full.
fn mebibyte() -> Sound {
    let disk = MemDisk::default();
    let options = with_segments_of(SEGMENT_OF_MEBIBYTE);
    let (log, _) = Log::open(Arc::new(disk.clone()), Path::new(DIR), options.clone()).unwrap();
    let mut last = 0;
    let mut more = 4;
    while more > 0 {
        last += 1;
        for pair in [[1, 2], [3, 4]] {
            put_pair(&log, pair, last, long_entry);
        }
        more -= u64::from(log.stats().segments == 16);
    }
    log.barrier().unwrap();
    while log.prepare().unwrap() {}
    drop(log);
    let image = disk.state().image.clone();
    let sound = Sound { options, footers: Footers::Yes, last, image };
    let bytes: usize =
        sound.segments().iter().map(|(_, inode)| sound.image.files[inode].len()).sum();
    assert_eq!(bytes, 1 << 20);
    sound
}

/// Whether the log, opened over this image, holds everything. How many groups are fenced off, and how
/// many say what is damaged when they are read (a footer stands for records that nobody has read yet).
fn check(log: &Log, sound: &Sound, damaged: &Path) -> Result<(usize, usize), String> {
    let (mut fenced, mut unreadable) = (0, 0);
    let last = sound.last;
    for group in 1..=4u64 {
        if log.damage(group).is_some() {
            assert!(matches!(log.term(group, 20), Err(Error::Quarantined { .. })));
            assert!(matches!(log.entries(group, 20, 21, 1), Err(Error::Quarantined { .. })));
            let mut batch = LogBatch::new();
            batch.append(group, [entry(last + 1, group)]);
            assert!(matches!(log.submit(batch), Err(Error::Quarantined { .. })));
            fenced += 1;
            continue;
        }
        let first = if group == 4 { 12 } else { 1 };
        if log.first_index(group) != first || log.last_index(group) != last {
            return Err(format!("group {group} lost entries: {}", log.last_index(group)));
        }
        match log.entries(group, first, last + 1, u64::MAX) {
            Ok(entries) if entries.iter().eq(&wanted(sound, group, first)) => {}
            Ok(_) => return Err(format!("group {group} has wrong entries")),
            Err(Error::Corruption { path, .. }) if path == damaged => unreadable += 1,
            Err(other) => return Err(format!("group {group}: {other}")),
        }
        let state = format!("state {last} of {group}");
        if log.state(group).as_deref() != Some(state.as_bytes()) {
            return Err(format!("group {group} has a wrong state"));
        }
    }
    Ok((fenced, unreadable))
}

fn wanted(sound: &Sound, group: u64, first: u64) -> Vec<Entry> {
    (first..=sound.last).map(|index| sound.entry(index, group)).collect()
}

/// What became of flipped bytes, and what was said of them.
#[derive(Clone, Copy, Default, Debug)]
struct Classes {
    /// Flipped.
    bytes: u64,
    /// Fenced off the groups that the damaged bytes belong to.
    fenced: u64,
    /// Of them: all groups of a record.
    pairs: u64,
    /// Told, with file and offset, by the one group that reads them.
    on_reading: u64,
    /// Reported by the open; nothing is lost (there is a copy, or nobody needs the bytes).
    made_good: u64,
    /// Reported by the inspector; nothing is lost: the open used a footer and did not look there.
    inspected: u64,
    /// Taken for a torn tail; nothing is lost.
    torn: u64,
    /// Not in use: padding, free space.
    unused: u64,
    /// The log does not open.
    refused: u64,
    /// Footers used meanwhile.
    footers: u64,
}

impl Classes {
    fn add(&mut self, other: Classes) {
        self.bytes += other.bytes;
        self.fenced += other.fenced;
        self.pairs += other.pairs;
        self.on_reading += other.on_reading;
        self.made_good += other.made_good;
        self.inspected += other.inspected;
        self.torn += other.torn;
        self.unused += other.unused;
        self.refused += other.refused;
        self.footers += other.footers;
    }

    fn print(&self, what: &str) {
        let percent = |n: u64| format!("{n:>9} ({:>6.3} %)", 100.0 * n as f64 / self.bytes as f64);
        println!("{what}: {} bytes flipped, one at a time", self.bytes);
        println!(
            "  fenced off their groups     {}  of these all of a record {}",
            percent(self.fenced),
            self.pairs
        );
        println!("  told when they are read     {}", percent(self.on_reading));
        println!("  reported, nothing lost      {}", percent(self.made_good));
        println!("  told by the inspector       {}", percent(self.inspected));
        println!("  cut as torn, nothing lost   {}", percent(self.torn));
        println!("  not in use                  {}", percent(self.unused));
        println!("  refused to open             {}", percent(self.refused));
    }
}

/// Flips one bit of this byte, and judges what the inspector and an open make of it.
fn flip(sound: &Sound, path: &Path, inode: u64, at: usize) -> Result<Classes, String> {
    let mut bent = sound.image.clone();
    if let Some(file) = bent.files.get_mut(&inode) {
        Arc::make_mut(file)[at] ^= 1 << (at % 8);
    }
    let disk = MemDisk::of(bent);
    let at = at as u64;
    let mut classes = Classes { bytes: 1, ..Classes::default() };
    let near = |file: &Path, offset: u64| file == path && offset <= at && at <= offset + 4096;
    // One look: nobody writes here, so `inspect::verify`, which looks twice at what is rotten, would say it too.
    let look = inspect::Inspector::open(&disk, Path::new(DIR)).and_then(|all| all.verify());
    let rot = match look {
        Ok(report) => {
            if report.is_rotten() && !report.findings.iter().any(|f| near(&f.file, f.offset)) {
                return Err(format!("reported elsewhere: {report:?}"));
            }
            let torn = report.findings.iter().any(|f| f.kind == FindingKind::Torn);
            classes.torn = u64::from(torn && !report.is_rotten());
            report.is_rotten()
        }
        Err(Error::Corruption { path: file, .. }) if file == path => true,
        Err(Error::Identity(_)) => true,
        Err(other) => return Err(format!("the inspector: {other}")),
    };
    let (log, recovery) = match sound.open(&disk) {
        Ok(opened) => opened,
        Err(Error::Corruption { path: file, .. }) if file == path && rot => {
            classes.refused = 1;
            return Ok(classes);
        }
        Err(other) => return Err(format!("does not open: {other}")),
    };
    // Nothing acknowledged is missing, whatever the log thinks of the tail.
    let (fenced, unread) = check(&log, sound, path)?;
    classes.footers = recovery.footers;
    let told = recovery.harmless.iter().any(|damage| near(&damage.file, damage.offset));
    let fault = |what: &str| Err(format!("{what}: rot {rot}, {fenced}, {unread}, {recovery:?}"));
    if fenced != recovery.quarantined.len() {
        return fault("fenced off without a word");
    }
    if !recovery.harmless.is_empty() && !told {
        return fault("reported elsewhere by the open");
    }
    if (fenced > 0 || unread > 0 || told) && !rot {
        return fault("the inspector does not see it");
    }
    match (fenced, unread) {
        (0, 0) if told => classes.made_good = 1,
        (0, 0) if rot && recovery.footers == 0 => return fault("not a word"),
        (0, 0) if rot => classes.inspected = 1,
        (0, 0) => classes.unused = 1 - classes.torn,
        (0, 1) => classes.on_reading = 1,
        (1 | 2, 0) => {
            if !recovery.quarantined.iter().all(|q| near(&q.damage.file, q.damage.offset)) {
                return fault("fenced off for another place");
            }
            // The directory of a record: the groups it speaks of, and no others.
            let groups: Vec<u64> = recovery.quarantined.iter().map(|q| q.group).collect();
            if groups.len() == 2 && groups != [1, 2] && groups != [3, 4] {
                return fault("others are fenced off too");
            }
            (classes.fenced, classes.pairs) = (1, u64::from(fenced == 2));
        }
        _ => return fault("one byte hits one group"),
    }
    Ok(classes)
}

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// Every byte if `LOG_FLIP_ALL` is set; else one in `step`, with every byte of the headers and the first
/// records of the first segment and of its trailer.
fn flip_bytes(what: &str, sound: &Sound, step: usize) -> Classes {
    flip_places(what, sound, |n, at, len| {
        let dense = n == 0 && (at < 64 || (4096..5300).contains(&at) || at + 64 > len);
        // Another offset in each segment, so that a sample meets every column of a block.
        dense || (at + 37 * n).is_multiple_of(step)
    })
}

/// The bytes for which `wanted` says so: number of the segment, place, and length.
fn flip_places(what: &str, sound: &Sound, wanted: impl Fn(usize, usize, usize) -> bool) -> Classes {
    let all = std::env::var_os("LOG_FLIP_ALL").is_some();
    let mut places = Vec::new();
    for (n, (path, inode)) in sound.segments().into_iter().enumerate() {
        let len = sound.image.files[&inode].len();
        let wanted = (0..len).filter(|at| all || wanted(n, *at, len));
        places.extend(wanted.map(|at| (path, inode, at)));
    }
    let all = Mutex::new(Classes::default());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..setting("LOG_FLIP_THREADS", 2) {
            scope.spawn(|| {
                let mut classes = Classes::default();
                while let Some((path, inode, at)) = places.get(next.fetch_add(1, Relaxed)) {
                    match flip(sound, path, *inode, *at) {
                        Ok(class) => classes.add(class),
                        Err(what) => panic!("{path:?} at {at}: {what}"),
                    }
                }
                all.lock().unwrap().add(classes);
            });
        }
    });
    let classes = all.into_inner().unwrap();
    classes.print(what);
    // Each flip is of one class, and no single byte hides whose it is.
    let sum = classes.fenced + classes.on_reading + classes.made_good + classes.inspected;
    assert_eq!(sum + classes.torn + classes.unused + classes.refused, classes.bytes);
    assert_eq!((classes.bytes, classes.refused), (places.len() as u64, 0));
    assert!(classes.made_good > 0 && classes.unused > 0 && classes.fenced + classes.on_reading > 0);
    assert_eq!(classes.footers > 0, sound.footers == Footers::Yes);
    classes
}

#[test]
fn one_flipped_byte() {
    let classes = flip_bytes("a small log without footers", &small(Footers::No), 211);
    assert!(classes.pairs > 0);
}

#[test]
fn one_flipped_byte_beside_footers() {
    flip_bytes("a small log with footers", &small(Footers::Yes), 211);
}

/// What opening copies is stated durable by the segment that it makes. Nothing repeated its headers until somebody wrote:
/// in a log that was opened and left alone, one byte of one of them cost every group.
#[test]
fn one_flipped_byte_of_a_log_that_was_only_opened() {
    // The last segment is short, or not, or has just begun.
    for last in 21..=24 {
        for (opens, barrier) in [(1, false), (1, true), (2, false), (3, true)] {
            let (disk, log) = unstated(last);
            if barrier {
                log.barrier().unwrap();
            }
            drop(log);
            for _ in 0..opens {
                drop(open(&disk).unwrap());
            }
            let image = disk.state().image.clone();
            let sound = Sound { options: options(), footers: Footers::No, last, image };
            let what = format!("a log of {last}, opened {opens} times, barrier: {barrier}");
            let end = sound.segments().len() - 1;
            // Where groups begin in the last two segments, and a sample of the rest.
            flip_places(&what, &sound, |n, at, _| {
                n + 1 >= end && at % 4096 < 48 && at % 3 == 0 || at.is_multiple_of(499)
            });
        }
    }
}

#[test]
fn one_flipped_byte_of_a_mebibyte() {
    let classes = flip_bytes("a log of 1 MiB, 15 of 16 segments sealed", &mebibyte(), 307);
    assert!(classes.fenced > 0 && classes.on_reading > 0 && classes.inspected > 0);
}

/// Makes a block of a file unreadable; tells whether it held anything.
fn lose_block(image: &mut Image, inode: u64, block: usize) -> bool {
    let Some(file) = image.files.get_mut(&inode) else { return false };
    let bytes = &mut Arc::make_mut(file)[block * 4096..(block + 1) * 4096];
    let held = bytes.iter().any(|byte| *byte != 0);
    bytes.fill(0xa5);
    held
}

#[test]
fn a_lost_block() {
    let sound = small(Footers::No);
    let image = &sound.image;
    let mut fenced = 0;
    for (path, inode) in &sound.segments() {
        for block in 1..image.files[inode].len() / 4096 {
            let mut bent = image.clone();
            if !lose_block(&mut bent, *inode, block) {
                continue;
            }
            // The block holds a whole record: its groups are known from the one after it, even if that
            // one stands in another segment.
            match open(&MemDisk::of(bent.clone())) {
                Ok((log, recovery)) => {
                    let n = check(&log, &sound, path).unwrap().0;
                    assert!(n == 0 || n == 2, "{path:?} {block}: {recovery:?}");
                    fenced += usize::from(n > 0);
                }
                Err(error) => panic!("{path:?} {block}: {error}"),
            }
            // With the record after it gone as well, nothing tells.
            if block + 1 < image.files[inode].len() / 4096
                && lose_block(&mut bent, *inode, block + 1)
            {
                match open(&MemDisk::of(bent)) {
                    Err(Error::Corruption { path: file, .. }) => assert_eq!(&file, *path),
                    // The end of the log, which nothing states.
                    Ok((log, _)) => {
                        assert!(check(&log, &sound, path).is_ok() || log.last_index(1) == 24)
                    }
                    Err(error) => panic!("{path:?} {block}: {error}"),
                }
            }
        }
    }
    assert!(fenced > 20, "{fenced}");
}

#[test]
fn a_lost_directory_stays_lost() {
    let (disk, log) = build(Footers::No);
    drop(log);
    {
        let mut state = disk.state();
        let inode = state.image.names[Path::new("/log/0000000000000001.seg")];
        if let Some(file) = state.image.files.get_mut(&inode) {
            Arc::make_mut(file)[2 * 4096 + 50] ^= 1;
        }
    }
    let groups = |recovery: &catamaran::log::Recovery| {
        recovery.quarantined.iter().map(|q| q.group).collect::<Vec<_>>()
    };
    for _ in 0..3 {
        let (log, recovery) = open(&disk).unwrap();
        assert_eq!(groups(&recovery), [3, 4]);
        // The evidence is not purged, nor summed up in a footer.
        for index in 25..28 {
            let mut batch = LogBatch::new();
            batch.append(1, [entry(log.last_index(1) + 1, 1)]);
            batch.set_state(2, format!("{index}"));
            log.write(batch).unwrap();
        }
        log.barrier().unwrap();
        while log.prepare().unwrap() {}
        assert_eq!(log.purge().unwrap().segments, 0);
    }
    let (log, _) = open(&disk).unwrap();
    let mut batch = LogBatch::new();
    batch.reset(3, LogPosition { index: 40, term: 9 });
    batch.clear(4);
    log.write(batch).unwrap();
    drop(log);
    let (log, recovery) = open(&disk).unwrap();
    assert!(recovery.quarantined.is_empty(), "{recovery:?}");
    assert_eq!(log.groups(), [1, 2, 3]);
}

#[test]
fn a_flip_under_a_running_log_is_not_served() {
    let (disk, log) = build(Footers::No);
    for group in 1..=4 {
        log.trim_cache(group, 24);
    }
    log.write(LogBatch::new()).unwrap();
    {
        let mut state = disk.state();
        let names: Vec<u64> = state.image.names.values().copied().collect();
        for inode in names {
            let file = Arc::make_mut(state.image.files.get_mut(&inode).unwrap());
            for byte in file.iter_mut().skip(4096) {
                *byte ^= 0x10;
            }
        }
    }
    for group in 1..=3 {
        match log.entries(group, 1, 25, u64::MAX) {
            Err(Error::Corruption { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_reset_group_is_healthy_again() {
    let (disk, log) = build(Footers::No);
    drop(log);
    // Bend the first entry of group 2.
    {
        let mut state = disk.state();
        for file in state.image.files.values_mut() {
            let needle = b"group 2 entry 3 ";
            if let Some(at) = file.windows(needle.len()).position(|w| w == needle) {
                Arc::make_mut(file)[at] ^= 1;
            }
        }
    }
    let (log, recovery) = open(&disk).unwrap();
    assert_eq!(recovery.quarantined.len(), 1);
    assert_eq!((recovery.quarantined[0].group, recovery.quarantined[0].last_good), (2, 2));
    // It survives another open, and the others work meanwhile.
    let mut batch = LogBatch::new();
    batch.append(1, [entry(25, 1)]);
    log.write(batch).unwrap();
    assert_eq!(log.purge().unwrap().segments, 0);
    drop(log);
    let (log, recovery) = open(&disk).unwrap();
    assert_eq!(recovery.quarantined.len(), 1);
    let mut batch = LogBatch::new();
    batch.reset(2, LogPosition { index: 30, term: 4 });
    log.write(batch).unwrap();
    assert_eq!(log.damage(2), None);
    drop(log);
    let (log, recovery) = open(&disk).unwrap();
    assert!(recovery.quarantined.is_empty());
    assert_eq!((log.last_index(2), log.last_index(1)), (30, 25));
}

/// Cuts the last segment at many lengths: it is refused, or all is there and it is told.
fn cut_last(sound: &Sound) -> (u64, u64) {
    let segments = sound.segments();
    let (path, inode) = *segments.last().unwrap();
    let len = sound.image.files[&inode].len();
    let (mut refused, mut told) = (0, 0);
    for to in (4096..len).step_by(611).chain((1..len / 4096).map(|n| n * 4096)).chain([len - 1]) {
        let mut bent = sound.image.clone();
        let bytes = sound.image.files[&inode][..to].to_vec();
        bent.files.insert(inode, bytes.into());
        let disk = MemDisk::of(bent);
        let report = inspect::verify(&disk, Path::new(DIR)).unwrap();
        let here = |file: &Path, offset: u64| file == path && offset == to as u64;
        assert!(report.is_rotten(), "{to}: {report:?}");
        match sound.open(&disk) {
            Err(Error::Corruption { path: file, offset, .. }) => {
                assert!(file == path && offset <= to as u64, "{to}: {offset}");
                refused += 1;
            }
            Ok((log, recovery)) => {
                assert_eq!(check(&log, sound, path), Ok((0, 0)), "{to}: {recovery:?}");
                assert!(recovery.harmless.iter().any(|d| here(&d.file, d.offset)), "{recovery:?}");
                assert!(report.findings.iter().any(|f| here(&f.file, f.offset)), "{report:?}");
                told += 1;
            }
            Err(other) => panic!("{to}: {other}"),
        }
    }
    (refused, told)
}

#[test]
fn a_shortened_last_segment_is_never_silent() {
    for footers in [Footers::No, Footers::Yes] {
        let (refused, told) = cut_last(&small(footers));
        assert!(refused > 4 && told > 10, "{footers:?}: {refused}, {told}");
    }
    let (refused, told) = cut_last(&mebibyte());
    assert!(refused > 10 && told > 10, "{refused}, {told}");
}

#[test]
fn a_shortened_sealed_segment_is_told() {
    let sound = small(Footers::No);
    let (path, inode) = sound.segments()[0];
    let mut bent = sound.image.clone();
    let bytes = &sound.image.files[&inode];
    bent.files.insert(inode, bytes[..bytes.len() - 1].to_vec().into());
    let disk = MemDisk::of(bent);
    assert!(inspect::verify(&disk, Path::new(DIR)).unwrap().is_rotten());
    let (log, recovery) = sound.open(&disk).unwrap();
    assert_eq!(check(&log, &sound, path), Ok((0, 0)));
    assert!(recovery.harmless.iter().any(|damage| damage.file == path), "{recovery:?}");
}
