//! A large log on disk: opening it cold and warm, the heap it takes, reading it cold, purging it.

use crate::engine::{self, Engine, Files, Setup, Which};
use crate::machine;
use crate::probe::{Ask, Opened, Probe, Readback};
use crate::work::{Payload, Piece};
use anyhow::{Context, Result};
use catamaran::env::os::OsDisk;
use catamaran::log::inspect::Inspector;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How large a log is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Groups.
    pub groups: u64,
    /// Entries of 1 KiB in each.
    pub entries: u64,
    /// Entries of a group in one write.
    pub each: u64,
}

/// Engines that a large log tells apart; how the others differ matters to writing only.
pub const TOLD_APART: [Which; 4] =
    [Which::Catamaran, Which::RaftEngine, Which::RaftEngineRaw, Which::RaftLog];

/// Bytes of an entry.
pub const ENTRY: usize = 1024;
/// Groups of a write.
const SPAN: u64 = 16;
/// Groups that are read back cold.
pub const READ_GROUPS: u64 = 40;
/// Entries of a group in one write, unless it has a single one.
pub const TOGETHER: u64 = 8;

/// What was measured of one engine.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Space {
    /// Which.
    pub which: Which,
    /// Bytes of entries in the log that was opened.
    pub data_bytes: u64,
    /// Groups in it.
    pub groups: u64,
    /// Opening it when nothing of it is in the page cache, in seconds, each time.
    pub open_cold_s: Vec<f64>,
    /// How the page cache was emptied.
    pub emptied: Option<machine::Emptied>,
    /// Opening it again, in seconds, each time.
    pub open_warm_s: Vec<f64>,
    /// Heap after opening, per entry; writes had eight entries of a group.
    pub heap_per_entry: f64,
    /// The same of a log whose writes had one entry of a group.
    pub heap_per_lone_entry: f64,
    /// Bytes the disk delivered for a byte of entries of a single group, cold; writes had eight entries of a group.
    pub read_amplification: f64,
    /// The same of a log whose writes had one entry of a group.
    pub lone_read_amplification: f64,
    /// After 1 GB of which 99 % of the groups need nothing: bytes of live files per live byte.
    pub kept_per_live: f64,
}

fn setup(shape: Shape, files: Files) -> Setup {
    Setup { groups: shape.groups, window: 1, files }
}

/// How large the files of a large log are. raft-log keeps what a group's last file holds in memory: with files as they come
/// (1 GB for each group) that is everything.
pub fn files(which: Which) -> Files {
    if which == Which::RaftLog { Files::Small } else { Files::Usual }
}

/// Writes a log of this shape: the groups in turn.
pub fn fill(engine: &dyn Engine, shape: Shape) -> Result<()> {
    let mut payload = Payload::new(ENTRY);
    let mut pieces = Vec::new();
    let mut first = 1;
    while first <= shape.entries {
        let count = shape.each.min(shape.entries + 1 - first);
        for group in 1..=shape.groups {
            pieces.push(Piece { group, first, count, compact_to: None });
            if pieces.len() as u64 == SPAN || group == shape.groups {
                engine.fill(&pieces, &mut payload)?;
                pieces.clear();
            }
        }
        first += count;
    }
    engine.finish()
}

/// Makes a log of this shape with an engine, which is closed again.
pub fn make(which: Which, dir: &Path, shape: Shape) -> Result<()> {
    let engine = engine::open(which, dir, setup(shape, files(which)))?;
    fill(engine.as_ref(), shape)
}

fn ask(which: Which, dir: &Path, shape: Shape) -> Ask {
    let Shape { groups, entries, each } = shape;
    Ask { which, dir: dir.to_owned(), groups, entries, each }
}

/// Heap for an entry, and bytes read for a byte that is wanted.
fn heap_and_reads(which: Which, dir: &Path, shape: Shape) -> Result<(f64, f64)> {
    let ask = ask(which, dir, shape);
    let read: Readback = ask.run(Probe::Read)?;
    let heap = ask.heap()? as f64 / (shape.groups * shape.entries) as f64;
    Ok((heap, read.bytes_read as f64 / read.bytes_wanted.max(1) as f64))
}

/// Measures all of it for one engine, below `dir`.
pub fn measure(which: Which, dir: &Path, shape: Shape, repetitions: usize) -> Result<Space> {
    let place = dir.join("large");
    make(which, &place, shape).context("filling")?;
    let open = || ask(which, &place, shape).run::<Opened>(Probe::Open);
    // The first opening after a fill may have more to do than any later one.
    open()?;
    let (mut cold, mut warm, mut emptied) = (Vec::new(), Vec::new(), None);
    for _ in 0..repetitions {
        emptied = Some(machine::make_cold(&place)?);
        cold.push(open()?.seconds);
        open()?;
        warm.push(open()?.seconds);
    }
    let (heap_per_entry, read_amplification) = heap_and_reads(which, &place, shape)?;
    std::fs::remove_dir_all(&place)?;
    let lone = Shape { each: 1, ..shape };
    make(which, &place, lone)?;
    let (heap_per_lone_entry, lone_read_amplification) = heap_and_reads(which, &place, lone)?;
    std::fs::remove_dir_all(&place)?;
    let kept_per_live = laggards(which, &place, shape)?;
    std::fs::remove_dir_all(&place)?;
    Ok(Space {
        which,
        data_bytes: shape.groups * shape.entries * ENTRY as u64,
        groups: shape.groups,
        open_cold_s: cold,
        emptied,
        open_warm_s: warm,
        heap_per_entry,
        heap_per_lone_entry,
        read_amplification,
        lone_read_amplification,
        kept_per_live,
    })
}

/// Writes five eighths of the shape, lets all but every hundredth group drop everything, purges until
/// nothing more goes. Bytes of the files that hold the log (not of files kept for reuse) per live byte.
fn laggards(which: Which, dir: &Path, shape: Shape) -> Result<f64> {
    let shape = Shape { entries: (shape.entries * 5 / 8).max(1), ..shape };
    let engine = engine::open(which, dir, setup(shape, Files::Small))?;
    fill(engine.as_ref(), shape)?;
    let (dropped, live): (Vec<u64>, Vec<u64>) = (1..=shape.groups).partition(|g| g % 100 != 0);
    for group in dropped {
        engine.compact(group, shape.entries)?;
    }
    engine.finish()?;
    for _ in 0..64 {
        engine.purge()?;
    }
    let mut bytes = 0;
    for group in &live {
        bytes += engine.read(*group, 1, shape.entries + 1)?;
    }
    anyhow::ensure!(
        bytes == live.len() as u64 * shape.entries * ENTRY as u64,
        "{}: the purge took entries that were needed",
        which.name()
    );
    engine.finish()?;
    drop(engine);
    Ok(kept(which, dir)? as f64 / bytes.max(1) as f64)
}

/// Bytes of the files that hold a log.
fn kept(which: Which, dir: &Path) -> Result<u64> {
    if which == Which::Catamaran {
        // Files are written full beforehand: of each, what is in use counts.
        let inspector = Inspector::open(&OsDisk, dir)?;
        let mut ends: BTreeMap<PathBuf, u64> = BTreeMap::new();
        for record in inspector.records() {
            let record = record?;
            let end = ends.entry(record.path).or_default();
            *end = (*end).max(record.offset + record.len);
        }
        return Ok(ends.values().sum());
    }
    let files = machine::files(dir)?;
    let reserved = |path: &Path| path.extension().is_some_and(|e| e == "reserved");
    Ok(files.iter().filter(|(path, _)| !reserved(path)).map(|(_, len)| len).sum())
}
