//! The power goes: a log on ext4 on a loop device, cut off by the file system's own shutdown (nothing that
//! is only in memory reaches the device), mounted again and reopened. Over and over on one log, so that cuts
//! fall into rotation, purge, rewriting and recycling as well as into plain writes.
//!
//! `CATAMARAN_POWER_CUTS` says how often (default 5). Needs Linux, root, loop devices and mkfs.ext4; where
//! something is missing the test says so aloud and passes.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use catamaran::env::os::OsDisk;
use catamaran::log::{Entry, Log, LogBatch, Options, Seq};
use catamaran::types::LogPosition;
use rustix::ioctl::{Setter, ioctl};
use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// `EXT4_IOC_SHUTDOWN`: the file system ends at once.
const SHUTDOWN: u32 = 0x8004_587d;
/// How: with what the journal has committed in memory written out, or with nothing.
const WAYS: [u32; 2] = [1, 2];

const THREADS: u64 = 3;
/// Groups of one thread; nobody else writes to them.
const GROUPS: u64 = 12;
/// Entries that a compaction leaves.
const KEEP: u64 = 30;
/// Batches outstanding per thread.
const WINDOW: usize = 12;

struct Device {
    image: PathBuf,
    at: PathBuf,
    mounted: bool,
}

fn done(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

impl Device {
    fn new(dir: &Path) -> Result<Device, String> {
        let (image, at) = (dir.join("image"), dir.join("mount"));
        let file = std::fs::File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(192 << 20).map_err(|error| error.to_string())?;
        std::fs::create_dir(&at).map_err(|error| error.to_string())?;
        done(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
        let mut device = Device { image, at, mounted: false };
        device.mount()?;
        Ok(device)
    }

    fn mount(&mut self) -> Result<(), String> {
        done(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.at))?;
        self.mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> Result<(), String> {
        self.mounted = false;
        done(Command::new("umount").arg(&self.at))
    }

    fn cut(&self, way: u32) {
        let directory = std::fs::File::open(&self.at).unwrap();
        // SAFETY: the operation reads one u32, which the setter holds, and writes to no memory of ours.
        unsafe { ioctl(&directory, Setter::<SHUTDOWN, u32>::new(way)) }.unwrap();
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg("-l").arg(&self.at).status();
        }
    }
}

/// What a thread's groups must hold after its first so many batches. A batch is a function of thread,
/// number and `life` (how many cuts came before), so a batch that was lost differs from its successor.
#[derive(Clone, Default)]
struct Model {
    batches: u64,
    groups: BTreeMap<u64, (u64, Entries)>,
}

/// By index: term and data.
type Entries = BTreeMap<u64, (u64, Vec<u8>)>;

fn mix(a: u64, b: u64) -> u64 {
    let mut x = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^= x >> 29;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 32)
}

/// The group that holds a thread's count of batches.
fn counter(thread: u64) -> u64 {
    1_000 + thread
}

impl Model {
    /// The next batch, and what it makes of the model.
    fn step(&mut self, thread: u64, life: u64) -> LogBatch {
        self.batches += 1;
        let dice = mix(thread * 1_000 + life, self.batches);
        let mut batch = LogBatch::new();
        batch.set_state(counter(thread), self.batches.to_le_bytes().to_vec());
        for turn in 0..1 + dice % 4 {
            // One group of each thread is written once in a long while: a laggard that pins segments.
            let place = match mix(dice, turn) % 200 {
                0 => 0,
                other => 1 + other % (GROUPS - 1),
            };
            let group = 1 + thread * GROUPS + place;
            let (truncated, entries) = self.groups.entry(group).or_default();
            let last = entries.keys().last().copied().unwrap_or(*truncated);
            if turn == 0 && place != 0 && entries.len() as u64 > 2 * KEEP {
                let to = last - KEEP;
                batch.compact_to(group, LogPosition { index: to, term: entries[&to].0 });
                *truncated = to;
                *entries = entries.split_off(&(to + 1));
            }
            // Sometimes over the last one, as after a change of leaders.
            let index = if mix(dice, turn + 9).is_multiple_of(16) && last > *truncated {
                last
            } else {
                last + 1
            };
            let term = 1 + self.batches / 100;
            let mut data = format!("{group}/{index} by {} in {life}", self.batches).into_bytes();
            data.resize(data.len() + (mix(dice, turn + 5) % 1_500) as usize, (dice % 251) as u8);
            entries.insert(index, (term, data.clone()));
            batch.append(group, [Entry { index, term, kind: 0, data: data.into() }]);
        }
        batch
    }

    fn check(&self, log: &Log) {
        for (group, (truncated, entries)) in &self.groups {
            assert_eq!(log.damage(*group), None);
            assert_eq!(log.truncated(*group).index, *truncated, "group {group}");
            let last = entries.keys().last().copied().unwrap_or(*truncated);
            assert_eq!(log.last_index(*group), last, "group {group}");
            let found = log.entries(*group, truncated + 1, last + 1, u64::MAX).unwrap();
            let found = found.into_iter().map(|e| (e.index, (e.term, e.data.to_vec())));
            assert_eq!(&found.collect::<BTreeMap<_, _>>(), entries, "group {group}");
        }
    }
}

fn open(at: &Path) -> Log {
    let options = Options { segment_bytes: 512 << 10, cache_bytes: 64 << 10, ..Options::default() };
    let disk = OsDisk;
    Log::open(Arc::new(disk), &at.join("log"), options).unwrap().0
}

/// Writes until the log stops; `acked` follows what it called durable.
fn write(log: &Log, thread: u64, life: u64, mut model: Model, acked: &AtomicU64) {
    let mut window: VecDeque<(Seq, u64)> = VecDeque::new();
    loop {
        let batch = model.step(thread, life);
        let Ok(seq) = log.submit(batch) else { return };
        window.push_back((seq, model.batches));
        if window.len() >= WINDOW {
            let (seq, batches) = window.pop_front().unwrap();
            if log.wait(seq).is_err() {
                return;
            }
            acked.store(batches, Ordering::Relaxed);
        }
    }
}

/// Brings a thread's model to where the log stands; gives how many batches were lost that nobody was told of.
fn follow(log: &Log, thread: u64, life: u64, model: &mut Model, acked: u64) -> u64 {
    let state = log
        .state(counter(thread))
        .map_or(0, |state| u64::from_le_bytes(state[..].try_into().unwrap()));
    assert!(state >= acked, "thread {thread}: {acked} acknowledged, {state} found");
    assert!(state >= model.batches);
    while model.batches < state {
        model.step(thread, life);
    }
    model.check(log);
    state - acked
}

#[test]
fn what_was_acknowledged_survives_cuts_of_power() {
    let cuts = std::env::var("CATAMARAN_POWER_CUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(5);
    let dir = tempfile::tempdir().unwrap();
    let mut device = match Device::new(dir.path()) {
        Ok(device) => device,
        Err(why) => {
            // Past the harness, which would keep it to itself.
            let test = "what_was_acknowledged_survives_cuts_of_power";
            let line = format!("\n*** SKIPPED {test}: no loop device: {why}\n");
            return std::io::stderr().write_all(line.as_bytes()).unwrap();
        }
    };
    let mut models = vec![Model::default(); THREADS as usize];
    let (mut acknowledged, mut unasked, mut purged) = (0, 0, 0);
    for life in 0..cuts {
        let log = open(&device.at);
        let acked: Vec<AtomicU64> =
            models.iter().map(|model| AtomicU64::new(model.batches)).collect();
        let ended = AtomicBool::new(false);
        let seen = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..THREADS)
                .zip(models.iter().zip(&acked))
                .map(|(thread, (model, acked))| {
                    let (log, model) = (&log, model.clone());
                    scope.spawn(move || write(log, thread, life, model, acked))
                })
                .collect();
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    let _ = log.prepare();
                    let _ = log.purge();
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            std::thread::sleep(Duration::from_millis(20 + mix(life, 3) % 200));
            // What was called durable before the cut; what is called so while it falls may stand on either side,
            // but is not lost either if the sync had returned: so all of it is held against the log.
            device.cut(WAYS[(life % 2) as usize]);
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            ended.store(true, Ordering::Relaxed);
            acked.iter().map(|acked| acked.load(Ordering::Relaxed)).collect::<Vec<u64>>()
        });
        purged += log.stats().segments;
        drop(log);
        device.unmount().unwrap();
        device.mount().unwrap();
        let log = open(&device.at);
        for (thread, model) in (0..THREADS).zip(&mut models) {
            let before = model.batches;
            let acked = seen[thread as usize];
            unasked += follow(&log, thread, life, model, acked);
            acknowledged += acked - before.min(acked);
        }
    }
    assert!(acknowledged > 0);
    println!(
        "{cuts} cuts: {acknowledged} acknowledged batches, 0 lost; {unasked} more survived; {} segments \
         at a cut, on average",
        purged / cuts
    );
}
