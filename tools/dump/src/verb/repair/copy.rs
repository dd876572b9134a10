//! Writing the new log, through the engine's own API, and reading it back.

use super::Plan;
use crate::failure::Failure;
use crate::load::read;
use crate::model::Kept;
use bytes::Bytes;
use catamaran::env::os::OsDisk;
use catamaran::log::inspect::{Inspector, OpView};
use catamaran::log::{Entry, GroupId, Log, LogBatch, Options};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// So much goes into one batch, about.
const BATCH_BYTES: usize = 4 << 20;
/// So much is held in memory of groups that the engine does not hand out (or one group's, if that is more).
const GATHER_BYTES: u64 = 256 << 20;

/// Of an entry, all that it says.
fn fingerprint(entry: &Entry) -> u32 {
    let mut crc = crc32c::crc32c(&entry.index.to_le_bytes());
    crc = crc32c::crc32c_append(crc, &entry.term.to_le_bytes());
    crc = crc32c::crc32c_append(crc, &[entry.kind]);
    crc32c::crc32c_append(crc, &entry.data)
}

/// What is kept of an entry when the copy is read back.
struct Print(u32);

impl Kept for Print {
    fn counts(&self) -> bool {
        true
    }
}

/// What was written of a group.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Tally {
    truncated: (u64, u64),
    state: Option<Vec<u8>>,
    entries: u64,
    /// Over the fingerprints, in order.
    chain: u32,
}

impl Tally {
    fn add(&mut self, print: u32) {
        self.entries += 1;
        self.chain = crc32c::crc32c_append(self.chain, &print.to_le_bytes());
    }
}

struct Copier {
    log: Log,
    batch: LogBatch,
    /// The last entry in the batch, by group.
    pending: BTreeMap<GroupId, u64>,
    tallies: BTreeMap<GroupId, Tally>,
    progress: ProgressBar,
}

/// Writes the plan into a directory that is not there yet, and checks that it reads back.
pub fn copy(plan: &Plan, segment_bytes: u64, to: &Path) -> Result<(), Failure> {
    let options = Options {
        segment_bytes,
        spare_segments: 1,
        cache_bytes: 32 << 20,
        // A log that compressed is likely not to fit otherwise.
        compress_above: (plan.judgement.model.runs.compressed > 0).then_some(4 << 10),
        ..Options::default()
    };
    let log = Log::open(Arc::new(OsDisk), to, options)?.0;
    let progress = ProgressBar::new(plan.entries());
    let style = ProgressStyle::with_template("{pos} of {len} entries, {per_sec}, {eta} to go");
    if let Ok(style) = style {
        progress.set_style(style);
    }
    // On anything but a terminal nothing is drawn.
    progress.enable_steady_tick(Duration::from_millis(200));
    let (batch, pending, tallies) = (LogBatch::new(), BTreeMap::new(), BTreeMap::new());
    let mut copier = Copier { log, batch, pending, tallies, progress };
    let copied = copier.groups(plan);
    copier.progress.finish_and_clear();
    copied?;
    let Copier { log, tallies, .. } = copier;
    log.barrier()?;
    drop(log);
    check(to, &tallies)
}

impl Copier {
    fn groups(&mut self, plan: &Plan) -> Result<(), Failure> {
        let mut gathered = BTreeMap::new();
        let mut weight = 0;
        for (id, group) in &plan.groups {
            self.begin(*id, plan)?;
            let Some(last) = group.last else { continue };
            match plan.judgement.log.as_ref().filter(|_| group.whole) {
                Some(log) => self.copy_whole(log, *id, last)?,
                None => {
                    gathered.insert(*id, last);
                    weight += group.bytes;
                    if weight >= GATHER_BYTES {
                        self.copy_gathered(plan, &std::mem::take(&mut gathered))?;
                        weight = 0;
                    }
                }
            }
        }
        self.copy_gathered(plan, &gathered)?;
        self.flush()
    }

    /// All but the entries.
    fn begin(&mut self, id: GroupId, plan: &Plan) -> Result<(), Failure> {
        let group = &plan.groups[&id];
        let mut tally = Tally::default();
        if group.truncated.index > 0 {
            self.batch.reset(id, group.truncated);
            tally.truncated = (group.truncated.index, group.truncated.term);
        }
        if let Some(state) = &group.state {
            self.batch.set_state(id, Bytes::copy_from_slice(state));
            tally.state = Some(state.clone());
        }
        self.tallies.insert(id, tally);
        self.flush_if_full()
    }

    fn copy_whole(&mut self, log: &Log, id: GroupId, last: u64) -> Result<(), Failure> {
        let mut next = log.first_index(id);
        while next <= last {
            let entries = log.entries(id, next, last + 1, BATCH_BYTES as u64)?;
            let Some(end) = entries.last().map(|entry| entry.index) else { break };
            next = end + 1;
            self.append(id, entries)?;
        }
        Ok(())
    }

    /// Entries of groups that the engine does not hand out, up to these indexes: one pass over the records,
    /// from which those are taken that the model found to be alive.
    fn copy_gathered(
        &mut self,
        plan: &Plan,
        wanted: &BTreeMap<GroupId, u64>,
    ) -> Result<(), Failure> {
        if wanted.is_empty() {
            return Ok(());
        }
        let judgement = &plan.judgement;
        let mut found: BTreeMap<GroupId, BTreeMap<u64, Entry>> = BTreeMap::new();
        for record in judgement.inspector.records() {
            let record = record?;
            for op in record.ops {
                let (OpView::Append { group, entries, .. }
                | OpView::Rewrite { group, entries, .. }) = op
                else {
                    continue;
                };
                let Some(last) = wanted.get(&group) else { continue };
                let slots = judgement.model.groups.get(&group).map(|group| &group.entries);
                for entry in entries {
                    let slot = slots.and_then(|slots| slots.get(&entry.index));
                    if entry.index <= *last && slot.is_some_and(|slot| slot.seq == record.seq) {
                        // A slice would hold the whole segment in memory.
                        let data = Bytes::copy_from_slice(&entry.data);
                        let entry = Entry { data, ..entry };
                        found.entry(group).or_default().insert(entry.index, entry);
                    }
                }
            }
        }
        for (id, entries) in found {
            let mut some = Vec::new();
            let mut bytes = 0;
            for entry in entries.into_values() {
                bytes += entry.data.len();
                some.push(entry);
                if bytes >= BATCH_BYTES {
                    self.append(id, std::mem::take(&mut some))?;
                    bytes = 0;
                }
            }
            self.append(id, some)?;
        }
        Ok(())
    }

    fn append(&mut self, id: GroupId, entries: Vec<Entry>) -> Result<(), Failure> {
        let Some(last) = entries.last().map(|entry| entry.index) else { return Ok(()) };
        let tally = self.tallies.entry(id).or_default();
        entries.iter().for_each(|entry| tally.add(fingerprint(entry)));
        self.progress.inc(entries.len() as u64);
        self.pending.insert(id, last);
        self.batch.append(id, entries);
        self.flush_if_full()
    }

    fn flush_if_full(&mut self) -> Result<(), Failure> {
        if self.batch.bytes() >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Failure> {
        if !self.batch.is_empty() {
            self.log.write(std::mem::take(&mut self.batch))?;
        }
        // Nobody will read them here: the cache may let go of them.
        for (id, last) in std::mem::take(&mut self.pending) {
            self.log.trim_cache(id, last);
        }
        Ok(())
    }
}

/// Whether the directory holds what was written to it, and nothing else.
fn check(dir: &Path, wanted: &BTreeMap<GroupId, Tally>) -> Result<(), Failure> {
    let inspector = Inspector::open(&OsDisk, dir)?;
    let loaded = read(&inspector, &mut |_, _, entry| Print(fingerprint(entry)))?;
    let mut found: BTreeMap<GroupId, Tally> = BTreeMap::new();
    for (id, group) in loaded.model.groups {
        let truncated = (group.truncated.index, group.truncated.term);
        let mut tally = Tally { truncated, state: group.state, ..Tally::default() };
        group.entries.values().for_each(|slot| tally.add(slot.kept.0));
        found.insert(id, tally);
    }
    let blank = Tally::default();
    let missing = wanted.iter().find(|(id, tally)| found.get(id).unwrap_or(&blank) != *tally);
    let extra = found.keys().find(|id| !wanted.contains_key(id));
    let off = missing.map(|(id, _)| *id).or(extra.copied());
    match (loaded.report.is_rotten(), off) {
        (false, None) => Ok(()),
        (true, _) => Err(Failure::Corrupt(format!("{}: the copy is damaged", dir.display()))),
        (_, Some(id)) => {
            let what = format!("{}: group {id} does not read back as written", dir.display());
            Err(Failure::Corrupt(what))
        }
    }
}
