//! Files that are arbitrary, or were sound once. Of some the checksums are made right again: what must hold then is less,
//! for nobody can know what was acknowledged.

use super::log_disk::{Image, MemDisk};
use super::{Feed, mend};
use bytes::Bytes;
use catamaran::Error;
use catamaran::log::inspect::{self, Inspector};
use catamaran::log::{Entry, Log, LogBatch, Options};
use catamaran::types::LogPosition;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

const DIR: &str = "/log";

fn options() -> Options {
    Options {
        segment_bytes: 16 << 10,
        cache_bytes: 0,
        spare_segments: 2,
        // The runs of two groups of three, in the directories that are sound.
        compress_above: Some(500),
        ..Options::default()
    }
}

/// A sound directory and every entry that was ever written to it.
struct Sound {
    image: Image,
    written: BTreeSet<(u64, u64, u64, Vec<u8>)>,
}

fn sound() -> &'static [Sound] {
    static SOUND: OnceLock<Vec<Sound>> = OnceLock::new();
    SOUND.get_or_init(|| (0..4).map(make_sound).collect())
}

/// A short one; one of several segments; one that was purged; one that ended without a barrier.
fn make_sound(which: u64) -> Sound {
    let disk = MemDisk::default();
    let log = Log::open(Arc::new(disk.clone()), Path::new(DIR), options()).unwrap().0;
    let mut written = BTreeSet::new();
    let rounds = if which == 0 { 4 } else { 24 };
    for index in 1..=rounds {
        let mut batch = LogBatch::new();
        for group in 1..=3u64 {
            let term = 1 + index / 5;
            let mut data = format!("{group}/{index}").into_bytes();
            data.resize(data.len() + 300 * group as usize, index as u8);
            written.insert((group, index, term, data.clone()));
            batch.append(group, [Entry { index, term, kind: 0, data: data.into() }]);
            batch.set_state(group, format!("state {index}"));
            if group > 1 && index > 3 {
                let to = index - 2;
                batch.compact_to(group, LogPosition { index: to, term: 1 + to / 5 });
            }
        }
        log.write(batch).unwrap();
        if which >= 2 && index % 6 == 0 {
            log.purge().unwrap();
        }
    }
    if which < 3 {
        log.barrier().unwrap();
    }
    drop(log);
    let image = disk.state().image.clone();
    Sound { image, written }
}

/// Panics when opening does, or shows what nobody wrote.
pub fn run(data: &[u8]) {
    let mut feed = Feed(data);
    let first = feed.byte();
    let (kind, forged) = (first % 8, (first >> 3) % 4 == 3);
    if kind < 2 {
        return raw(&mut feed, forged);
    }
    let sound = &sound()[kind as usize % 4];
    let mut image = sound.image.clone();
    while !feed.is_over() {
        change(&mut image, &mut feed, forged);
    }
    let disk = MemDisk::of(image);
    inspect_all(&disk);
    let Some(log) = open(&disk) else { return };
    look(&log, Some(sound).filter(|_| !forged));
    go_on(log, &disk, forged);
}

/// The input is one segment file, or two, or a spare.
fn raw(feed: &mut Feed<'_>, forged: bool) {
    let names = ["0000000000000001.seg", "0000000000000002.seg", "0000000000000003.free", "LOCK"];
    let mut image = Image::default();
    let split = feed.number(2) as usize;
    for (inode, chunk) in feed.0.chunks(split.max(64)).take(names.len()).enumerate() {
        image.names.insert(Path::new(DIR).join(names[inode]), inode as u64);
        let mut bytes = chunk.to_vec();
        if forged {
            mend::mend(&mut bytes);
        }
        image.files.insert(inode as u64, bytes.into());
    }
    let disk = MemDisk::of(image);
    inspect_all(&disk);
    if let Some(log) = open(&disk) {
        look(&log, None);
        go_on(log, &disk, forged);
    }
}

/// All that a dumper looks at. What it finds may be anything.
fn inspect_all(disk: &MemDisk) {
    let _ = inspect::verify(disk, Path::new(DIR));
    if let Ok(inspector) = Inspector::survey(disk, Path::new(DIR)) {
        inspector.records().for_each(drop);
    }
}

fn open(disk: &MemDisk) -> Option<Log> {
    match Log::open(Arc::new(disk.clone()), Path::new(DIR), options()) {
        Ok((log, _)) => Some(log),
        Err(Error::Corruption { .. } | Error::Identity(_) | Error::Malformed { .. }) => None,
        Err(other) => panic!("{other:?}"),
    }
}

/// What can be read was written; what cannot has a typed error.
fn look(log: &Log, sound: Option<&Sound>) {
    for group in log.groups() {
        let (first, last) = (log.first_index(group), log.last_index(group));
        if log.damage(group).is_some() {
            let refused = log.entries(group, first, first + 1, u64::MAX);
            assert!(matches!(refused, Err(Error::Quarantined { .. })), "{refused:?}");
            continue;
        }
        match log.entries(group, first, last + 1, u64::MAX) {
            Ok(entries) => {
                for entry in entries {
                    let id = (group, entry.index, entry.term, entry.data.to_vec());
                    assert!(sound.is_none_or(|sound| sound.written.contains(&id)), "{entry:?}");
                }
            }
            Err(Error::Corruption { .. }) => {}
            // Its checksum holds.
            Err(Error::Malformed { .. }) if sound.is_none() => {}
            Err(other) => panic!("{other:?}"),
        }
    }
}

/// A log that opened can be opened again at once, written, purged, and opened again, and keeps what it showed.
fn go_on(log: Log, disk: &MemDisk, forged: bool) {
    let shown = contents(&log);
    drop(log);
    let log = reopen(disk);
    assert_eq!(shown, contents(&log));
    let mut batch = LogBatch::new();
    let group = 1000;
    if log.last_index(group) == 0 && log.damage(group).is_none() {
        batch.append(group, [Entry { index: 1, term: 1, kind: 0, data: "new".into() }]);
        log.write(batch).unwrap();
    }
    match log.purge() {
        Ok(_) | Err(Error::Corruption { .. }) => {}
        // Its checksum holds.
        Err(Error::Malformed { .. }) if forged => {}
        Err(other) => panic!("{other:?}"),
    }
    let shown = contents(&log);
    drop(log);
    assert_eq!(shown, contents(&reopen(disk)));
}

/// What opened once opens again.
fn reopen(disk: &MemDisk) -> Log {
    let again = Log::open(Arc::new(disk.clone()), Path::new(DIR), options());
    again.expect("what opened once opens again").0
}

/// Each group: its last entry and its state.
fn contents(log: &Log) -> Vec<(u64, u64, Option<Bytes>)> {
    log.groups().iter().map(|g| (*g, log.last_index(*g), log.state(*g))).collect()
}

fn change(image: &mut Image, feed: &mut Feed<'_>, forged: bool) {
    let paths: Vec<PathBuf> = image.names.keys().cloned().collect();
    if paths.is_empty() {
        feed.0 = &[];
        return;
    }
    let path = paths[feed.below(paths.len() as u64) as usize].clone();
    let inode = image.names[&path];
    let what = feed.byte();
    let Some(file) = image.files.get_mut(&inode).map(Arc::make_mut) else { return };
    let at = match forged {
        _ if file.is_empty() => 0,
        false => feed.number(2) as usize % file.len(),
        true => mend::aim(file, feed),
    };
    match (what % 12, forged) {
        // The largest number there is, as varint or as it is.
        (3, true) => file[at..].iter_mut().take(9).for_each(|byte| *byte = 0xff),
        (kind, _) => alter(image, &path, kind, at, feed),
    }
    // Some changes stay as they are: what is damaged and what is forged can meet.
    if forged && !(what / 12).is_multiple_of(4) {
        let file = image.files.get_mut(&inode).map(Arc::make_mut);
        file.into_iter().for_each(|file| mend::mend(file));
    }
}

fn alter(image: &mut Image, path: &PathBuf, what: u8, at: usize, feed: &mut Feed<'_>) {
    let paths: Vec<PathBuf> = image.names.keys().cloned().collect();
    let inode = image.names[path];
    let Some(file) = image.files.get_mut(&inode).map(Arc::make_mut) else { return };
    match what {
        0..=3 if !file.is_empty() => file[at] ^= feed.byte().max(1),
        4 if !file.is_empty() => {
            let len = feed.below(16) as usize;
            for byte in file.iter_mut().skip(at).take(len) {
                *byte = feed.byte();
            }
        }
        5 => {
            let len = (feed.below(16) as usize + 1) * 512;
            file.iter_mut().skip(at / 512 * 512).take(len).for_each(|byte| *byte = 0);
        }
        6 => file.truncate(at),
        7 => file.resize(at + feed.below(9000) as usize, feed.byte()),
        8 => {
            // A stretch of one place at another.
            let from = feed.number(2) as usize % file.len().max(1);
            let len = feed.number(2) as usize % 5000;
            let bytes: Vec<u8> = file.iter().skip(from).take(len).copied().collect();
            file.iter_mut().skip(at).zip(bytes).for_each(|(to, byte)| *to = byte);
        }
        9 => drop(image.names.remove(path)),
        10 => {
            let other = &paths[feed.below(paths.len() as u64) as usize];
            if other.extension() != path.extension() {
                return;
            }
            let theirs = image.names[other];
            image.names.insert(path.clone(), theirs);
            image.names.insert(other.clone(), inode);
        }
        _ => {
            // A segment under a spare's name is nobody's accident: its generation would come again.
            let suffix = path.extension().map_or("".into(), |suffix| suffix.to_string_lossy());
            let name = format!("{:016}.{suffix}", feed.below(40));
            image.names.remove(path);
            image.names.insert(Path::new(DIR).join(name), inode);
        }
    }
}
