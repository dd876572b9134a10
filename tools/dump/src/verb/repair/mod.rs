//! `repair`: what is sound of a log, copied into a new directory. The old one is read and left alone.
//!
//! **What raft allows.** A replica that lost an entry it acknowledged, or a vote it cast, must not vote as if
//! it had not: with its help a leader could be elected that lacks committed entries, or two in one term. So
//! a group of which anything may be missing is left out, state record and all. That alone is not enough
//! where the log is a node's: its state store still knows the replica, and would start it with an empty log
//! and no vote. Hence
//! - where it is known which groups are damaged, each gets [`FENCE`] for a state record. It is no raft
//!   state; a node that finds it fences the replica off and serves the others. Remove the replica from its
//!   group and add a new one.
//! - where it is not known, the store's identity is left out too, and a node refuses the directory as it
//!   refuses a wiped log. Let the store join as a new one.
//!
//! `--keep-damaged` keeps what can be had of them, for those who have lost every other replica.
//!
//! **All or nothing.** The copy is made beside its destination and gets its name when it is complete, has
//! been synced and has been read back.

mod copy;
mod judge;

use super::Context;
use super::groups::IDENT_GROUP;
use crate::cli::Repair;
use crate::decode::Position;
use crate::failure::{Failure, Verdict};
use crate::load::LogDir;
use crate::model::{Group, name};
use crate::output::{Page, Table, cell, line, print};
use catamaran::env::Disk;
use catamaran::env::os::OsDisk;
use catamaran::log::{BLOCK, GroupId};
use catamaran::types::LogPosition;
use fs2::FileExt;
use judge::{Fate, Judgement, judge};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Stands for a state record that was left out. Of any size but those of raft's record, 24 and 32 bytes.
pub const FENCE: &[u8] =
    b"left out by catamaran-dump repair: acknowledged writes or votes may be lost";

/// Sizes of segments that the new log may have; it takes those of the old one.
const SEGMENT_BYTES_MIN: u64 = 32 << 10;
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// How often to ask for the lock, and how long to wait in between: a node that has just gone leaves it for a
/// moment to a process that it was about to start.
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// What goes into the new log.
pub struct Plan {
    pub judgement: Judgement,
    pub groups: BTreeMap<GroupId, Part>,
}

/// What of a group goes into it.
pub struct Part {
    pub truncated: LogPosition,
    pub state: Option<Vec<u8>>,
    /// Up to this index, from the first; `None`: no entry.
    pub last: Option<u64>,
    /// Bytes of these entries.
    pub bytes: u64,
    count: u64,
    pub whole: bool,
}

impl Plan {
    pub fn entries(&self) -> u64 {
        self.groups.values().map(|part| part.count).sum()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Outcome {
    /// All of it is in the new log.
    Whole,
    /// A part of it is: it must not vote.
    Cut,
    /// Nothing is, but a state record that keeps a node from starting it.
    Fenced,
    /// Nothing is.
    LeftOut,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum StateOutcome {
    None,
    Kept,
    Dropped,
}

#[derive(Serialize)]
struct Row {
    group: u64,
    outcome: Outcome,
    state: StateOutcome,
    truncated: Position,
    /// Entries in the new log.
    first: Option<u64>,
    last: Option<u64>,
    entries: u64,
    bytes: u64,
    /// Entries that the group had, as far as the records that read tell, and that are not in the new log.
    dropped_entries: u64,
    /// Of them, those that do not read: not even `--keep-damaged` gets them.
    unreadable_entries: u64,
    /// Up to here the group is good.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_good: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

#[derive(Serialize)]
struct Repaired {
    verdict: &'static str,
    /// None: nothing was written.
    out: Option<String>,
    whole: u64,
    damaged: u64,
    entries: u64,
    bytes: u64,
    dropped_entries: u64,
    unreadable_entries: u64,
    /// What is gone without anybody knowing whose it was.
    lost: Vec<String>,
    notes: Vec<String>,
    groups: Vec<Row>,
}

impl Page for Repaired {
    fn tables(&self) -> Vec<Table> {
        let mut head = Table::pairs();
        head.pair("verdict", self.verdict);
        head.pair("new log", self.out.as_deref().unwrap_or("none, a dry run"));
        head.pair("groups", format!("{} whole, {} damaged", self.whole, self.damaged));
        let unreadable = match self.unreadable_entries {
            0 => String::new(),
            some => format!(", {some} of which do not read"),
        };
        // Of records that are lost nobody knows what they held.
        let least = if self.lost.is_empty() { "" } else { "at least " };
        let (kept, dropped) = (self.entries, self.dropped_entries);
        head.pair("entries", format!("{kept} kept, {least}{dropped} dropped{unreadable}"));
        head.pair("bytes", self.bytes);
        self.lost.iter().for_each(|what| head.pair("lost", what));
        self.notes.iter().for_each(|what| head.pair("without harm", what));
        let mut table = Table::new(&[
            "group>",
            "outcome",
            "state",
            "truncated>",
            "kept",
            "entries>",
            "bytes>",
            "dropped>",
            "unreadable>",
            "good to>",
            "why",
        ])
        .titled("groups");
        for row in &self.groups {
            let outcome = match row.outcome {
                Outcome::Whole => "whole",
                Outcome::Cut => "cut",
                Outcome::Fenced => "fenced",
                Outcome::LeftOut => "left out",
            };
            let state = match row.state {
                StateOutcome::None => "none",
                StateOutcome::Kept => "kept",
                StateOutcome::Dropped => "dropped",
            };
            let kept = row.first.zip(row.last).map(|(first, last)| format!("{first}..{last}"));
            table.row(vec![
                row.group.to_string(),
                outcome.to_string(),
                state.to_string(),
                format!("{}@{}", row.truncated.index, row.truncated.term),
                cell(kept),
                row.entries.to_string(),
                row.bytes.to_string(),
                row.dropped_entries.to_string(),
                row.unreadable_entries.to_string(),
                cell(row.last_good),
                row.why.clone().unwrap_or_default(),
            ]);
        }
        vec![head, table]
    }

    fn lines(&self, out: &mut dyn Write) -> io::Result<()> {
        self.groups.iter().try_for_each(|row| line(row, out))
    }
}

/// What is done about what is not whole.
#[derive(Clone, Copy)]
struct Policy {
    /// What can be had of it is kept.
    keep: bool,
    /// A node is kept from starting it.
    fence: bool,
    /// No node is to start at all.
    withhold_identity: bool,
}

impl Row {
    fn new(id: GroupId, truncated: LogPosition) -> Row {
        Row {
            group: id,
            outcome: Outcome::Whole,
            state: StateOutcome::None,
            truncated: Position { index: truncated.index, term: truncated.term },
            first: None,
            last: None,
            entries: 0,
            bytes: 0,
            dropped_entries: 0,
            unreadable_entries: 0,
            last_good: None,
            why: None,
        }
    }

    fn keep(&mut self, part: &Part) {
        self.first = part.last.map(|_| part.truncated.index + 1);
        self.last = part.last;
        self.entries = part.count;
        self.bytes = part.bytes;
    }
}

/// Of a group's entries up to `last`: how many, and their bytes.
fn weigh(group: &Group<()>, last: u64) -> (u64, u64) {
    group.entries.range(..=last).fold((0, 0), |(n, bytes), (_, slot)| (n + 1, bytes + slot.bytes))
}

/// A group of which nothing is missing.
fn whole(id: GroupId, judgement: &Judgement, group: &Group<()>) -> (Part, Row) {
    // The engine's word counts where there is one.
    let (truncated, state, last) = match &judgement.log {
        Some(log) => {
            (log.truncated(id), log.state(id).map(|state| state.to_vec()), log.last_index(id))
        }
        None => (group.truncated, group.state.clone(), group.whole_to()),
    };
    let (count, bytes) = (last - truncated.index, weigh(group, last).1);
    let last = (count > 0).then_some(last);
    let mut row = Row::new(id, truncated);
    row.state = if state.is_some() { StateOutcome::Kept } else { StateOutcome::None };
    let part = Part { truncated, state, last, bytes, count, whole: true };
    row.keep(&part);
    (part, row)
}

/// A group of which something is missing, or may be.
fn damaged(
    id: GroupId,
    group: &Group<()>,
    last_good: u64,
    why: &str,
    policy: Policy,
) -> (Option<Part>, Row) {
    let mut row = Row::new(id, group.truncated);
    row.why = Some(why.to_owned());
    row.last_good = Some(last_good);
    let fence = (policy.fence && id != IDENT_GROUP).then(|| FENCE.to_vec());
    let (count, bytes) = if policy.keep { weigh(group, last_good) } else { (0, 0) };
    row.unreadable_entries = group.lost_entries();
    row.dropped_entries = group.entries.len() as u64 - count + row.unreadable_entries;
    row.state = match (&group.state, policy.keep) {
        (Some(_), true) => StateOutcome::Kept,
        (Some(_), false) => StateOutcome::Dropped,
        (None, _) => StateOutcome::None,
    };
    if policy.keep {
        // Without a vote of its own it would start with a free one.
        let state = group.state.clone().or(fence);
        let last = (count > 0).then_some(last_good);
        let part = Part { truncated: group.truncated, state, last, bytes, count, whole: false };
        row.outcome = Outcome::Cut;
        row.keep(&part);
        return (Some(part), row);
    }
    row.outcome = if fence.is_some() { Outcome::Fenced } else { Outcome::LeftOut };
    let truncated = LogPosition::default();
    let fence = fence.map(|fence| Part {
        truncated,
        state: Some(fence),
        last: None,
        bytes: 0,
        count: 0,
        whole: false,
    });
    (fence, row)
}

/// Decides about every group.
fn decide(judgement: Judgement, policy: Policy) -> (Plan, Vec<Row>) {
    let mut groups = BTreeMap::new();
    let mut rows = Vec::new();
    let none = Group::default();
    for (id, fate) in &judgement.fates {
        let group = judgement.model.groups.get(id).unwrap_or(&none);
        let (part, mut row) = match fate {
            Fate::Whole => {
                let (part, row) = whole(*id, &judgement, group);
                (Some(part), row)
            }
            Fate::Damaged { last_good, why } => damaged(*id, group, *last_good, why, policy),
        };
        if *id == IDENT_GROUP && policy.withhold_identity {
            row.outcome = Outcome::LeftOut;
            row.state = StateOutcome::Dropped;
            row.why = Some("the store's identity: no node may start on the rest".into());
        } else {
            groups.extend(part.map(|part| (*id, part)));
        }
        rows.push(row);
    }
    (Plan { judgement, groups }, rows)
}

/// `repair`.
pub fn run(args: &Repair, context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let source = LogDir::find(&args.at.dir)?;
    let out = match &args.out {
        Some(out) => Some(Destination::check(out, &args.at.dir)?),
        None => None,
    };
    let _lock = lock(&source.path)?;
    let judgement = judge(&source.path)?;
    // Nobody can say which replicas lost something: then no node may start on what is left.
    let unknown = !judgement.lost.is_empty() && !args.keep_damaged;
    let nodes = judgement.is_nodes();
    let policy = Policy {
        keep: args.keep_damaged,
        fence: nodes && !unknown,
        withhold_identity: nodes && unknown,
    };
    let sizes = judgement.model.segments.iter().map(|segment| segment.info.header.size);
    let size = sizes.max().unwrap_or(64 << 20);
    let size = size.next_multiple_of(BLOCK as u64).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
    let (plan, rows) = decide(judgement, policy);
    if let Some(out) = &out {
        out.fill(|dir| copy::copy(&plan, size, dir))?;
    }
    let Judgement { fates, lost, notes, .. } = plan.judgement;
    let sum = |of: fn(&Row) -> u64| rows.iter().map(of).sum::<u64>();
    let damaged = fates.values().filter(|fate| **fate != Fate::Whole).count() as u64;
    let incomplete = damaged > 0 || !lost.is_empty();
    let page = Repaired {
        verdict: if incomplete { "incomplete" } else { "whole" },
        out: args.out.as_ref().map(|out| out.display().to_string()),
        whole: fates.len() as u64 - damaged,
        damaged,
        entries: sum(|row| row.entries),
        bytes: sum(|row| row.bytes),
        dropped_entries: sum(|row| row.dropped_entries),
        unreadable_entries: sum(|row| row.unreadable_entries),
        lost,
        notes,
        groups: rows,
    };
    print(&page, context.format, context.out)?;
    Ok(Verdict::bad_if(incomplete))
}

/// Takes the lock that a node holds, without leaving a trace: a directory that has no lock file, a copy
/// perhaps, has none afterwards.
fn lock(dir: &Path) -> Result<Option<std::fs::File>, Failure> {
    let path = dir.join("LOCK");
    let file = match std::fs::File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::Open(format!("{}: {error}", path.display()))),
    };
    for _ in 0..LOCK_TRIES {
        match file.try_lock_exclusive() {
            Ok(()) => return Ok(Some(file)),
            Err(error) if error.kind() == fs2::lock_contended_error().kind() => {}
            Err(error) => return Err(Failure::Open(format!("{}: {error}", path.display()))),
        }
        std::thread::sleep(LOCK_PAUSE);
    }
    Err(Failure::Open(format!(
        "{}: a node has it open; what is being written cannot be repaired: stop the node, or repair a copy",
        dir.display()
    )))
}

/// Where the new log is to be.
struct Destination {
    dir: PathBuf,
    /// Where it is made.
    stage: PathBuf,
}

impl Destination {
    /// Refuses what is not empty, what lies in the source, and a link into nowhere.
    fn check(out: &Path, source: &Path) -> Result<Destination, Failure> {
        let shown = out.display();
        // It is no place for a directory, and would be met only when the copy is complete and to get its name.
        let is_dangling = |path: &&Path| path.is_symlink() && !path.exists();
        if let Some(link) = out.ancestors().find(is_dangling) {
            let what = format!("{}: a link to a place where nothing is", link.display());
            return Err(Failure::Usage(what));
        }
        let real = |path: &Path| {
            let error = |e: io::Error| Failure::Open(format!("{}: {e}", path.display()));
            std::path::absolute(path).and_then(|path| resolve(&path)).map_err(error)
        };
        let (dir, source) = (real(out)?, real(source)?);
        // The log directory itself may have been given: its parent is the node's.
        if dir.starts_with(&source) {
            return Err(Failure::Usage(format!("{shown} lies in the directory to be repaired")));
        }
        match std::fs::read_dir(&dir).map(|mut files| files.next().is_none()) {
            Ok(true) => {}
            Ok(false) => return Err(Failure::Usage(format!("{shown} is not empty"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(Failure::Usage(format!("{shown} is not a directory")));
            }
            Err(error) => return Err(Failure::Open(format!("{shown}: {error}"))),
        }
        let stage = dir.with_file_name(format!("{}.partial", name(&dir)));
        if stage.exists() {
            let what = format!(
                "{}: left by a repair that was interrupted; remove it first",
                stage.display()
            );
            return Err(Failure::Usage(what));
        }
        Ok(Destination { dir, stage })
    }

    /// Makes it, whole or not at all.
    fn fill(&self, make: impl FnOnce(&Path) -> Result<(), Failure>) -> Result<(), Failure> {
        OsDisk.create_dir_all(&self.stage)?;
        let made = make(&self.stage).and_then(|()| {
            OsDisk.rename(&self.stage, &self.dir)?;
            self.dir.parent().map_or(Ok(()), |parent| OsDisk.sync_dir(parent))?;
            Ok(())
        });
        if made.is_err() {
            // Best effort: the next run says what is left.
            let _ = std::fs::remove_dir_all(&self.stage);
        }
        made
    }
}

/// The path without links, as far as it exists.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => match path.parent() {
            Some(parent) => Ok(resolve(parent)?.join(path.file_name().unwrap_or_default())),
            None => Err(error),
        },
        found => found,
    }
}
