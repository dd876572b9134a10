//! The reading half. Readers take the lock of one shard, never the writer's, and read files outside
//! every lock.

use super::format::decode_run;
use super::index::{Damage, Run};
use super::lz4::plain;
use super::queue::Queue;
use super::unreadable::read_around;
use super::{Entry, GroupId, Log, Shared};
use crate::env::File;
use crate::error::{Error, Result};
use crate::types::{LogPosition, RegionId};
use bytes::Bytes;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

/// A part of a run that has to come from the disk.
struct Missing {
    run: Run,
    /// The term of each index asked for begins here.
    terms: Vec<(u64, u64)>,
}

/// A file may be recycled between the look into the index and the read: then other bytes are there, or fewer
/// than the file had a moment ago, which the disk calls an error. Whatever it was, look again if the index
/// sends elsewhere now.
const ATTEMPTS: usize = 8;

/// How many groups the cache's clock visits for one batch: eviction stays cheap.
const CLOCK_STEPS: usize = 16;

impl Log {
    /// The first index the group may have an entry at: one above its truncated position.
    pub fn first_index(&self, group: GroupId) -> u64 {
        self.truncated(group).index + 1
    }

    /// The last entry's index, or the truncated position's if there is none. A damaged group shows no
    /// entry, neither here nor in [`term`](Self::term) and [`entries`](Self::entries).
    pub fn last_index(&self, group: GroupId) -> u64 {
        self.shared.index.read(group).map_or(0, |g| match g.damage {
            None => g.last(),
            Some(_) => g.truncated.index,
        })
    }

    /// Where the group's log begins: the last position that was compacted away.
    pub fn truncated(&self, group: GroupId) -> LogPosition {
        self.shared.index.read(group).map_or(LogPosition::default(), |g| g.truncated)
    }

    /// Bytes of the group's entries on the disk, by stretches: (last index of the stretch, bytes), in order.
    /// Never reads the disk.
    pub fn sizes(&self, group: GroupId) -> Vec<(u64, u64)> {
        let Some(g) = self.shared.index.read(group) else { return Vec::new() };
        g.runs.iter().map(|run| (run.end() - 1, u64::from(run.live()))).collect()
    }

    /// The term at `index`: known for the truncated position and every entry, `None` elsewhere. Never reads the disk.
    ///
    /// Errors: [`Quarantined`](Error::Quarantined) for a group that is damaged (until it is reset or cleared).
    pub fn term(&self, group: GroupId, index: u64) -> Result<Option<u64>> {
        let Some(g) = self.shared.index.read(group) else {
            return Ok((index == 0).then_some(0));
        };
        quarantined(group, g.damage.as_deref())?;
        Ok(g.term(index))
    }

    /// The group's state record. That of a group that is [damaged](Self::damage) may be what rotted.
    pub fn state(&self, group: GroupId) -> Option<Bytes> {
        self.shared.index.read(group).and_then(|g| g.state.clone())
    }

    /// Every group, ascending.
    pub fn groups(&self) -> Vec<GroupId> {
        self.shared.index.groups()
    }

    /// Why the group is fenced off, if it is.
    pub fn damage(&self, group: GroupId) -> Option<Damage> {
        self.shared.index.read(group).and_then(|g| g.damage.as_deref().cloned())
    }

    /// The entries `low..high`, as many as `max_bytes` of data allow, but at least one if the range is
    /// not empty. Data read from the disk is checked against its checksum.
    ///
    /// Errors: [`InvalidArgument`](Error::InvalidArgument) when the range reaches below the first
    /// entry or above the last; [`Quarantined`](Error::Quarantined) for a group that was found to be damaged (until it
    /// is reset or cleared); [`Corruption`](Error::Corruption) for bytes that turn out to be damaged now, a sector that
    /// cannot be read included; [`Malformed`](Error::Malformed) for bytes that are as they were written, but by
    /// somebody else; [`Io`](Error::Io) when the system fails the read in another way. An empty range is never an
    /// error.
    pub fn entries(
        &self,
        group: GroupId,
        low: u64,
        high: u64,
        max_bytes: u64,
    ) -> Result<Vec<Entry>> {
        if low >= high {
            return Ok(Vec::new());
        }
        let mut last_error = None;
        for _ in 0..ATTEMPTS {
            let mut reading = None;
            match self.shared.try_entries(group, low, high, max_bytes, &mut reading) {
                Ok(entries) => return Ok(entries),
                Err(error) if reading.is_some_and(|run| self.shared.has_moved(group, &run)) => {
                    last_error = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(last_error.unwrap_or(Error::Busy { what: "log segments" }))
    }

    /// Tells the cache that entries up to `applied` were applied: they may be evicted once durable.
    pub fn trim_cache(&self, group: GroupId, applied: u64) {
        self.shared.index.change_existing(group, |g| g.applied = g.applied.max(applied));
    }

    /// Nobody is going to use a group for long: gives back what memory it does not need, and evicts what is applied and
    /// durable from the cache.
    pub fn rest(&self, group: GroupId) {
        let shared = &self.shared;
        let durable = shared.durable.load(Acquire);
        let freed = shared.index.change_existing(group, |group| {
            let freed = group.evict(durable);
            group.runs.shrink_to_fit();
            group.terms.shrink_to_fit();
            freed
        });
        shared.cache_bytes.fetch_sub(freed.unwrap_or(0), Relaxed);
    }
}

fn quarantined(group: GroupId, damage: Option<&Damage>) -> Result<()> {
    match damage {
        None => Ok(()),
        Some(damage) => Err(Error::Quarantined {
            region: RegionId(group),
            reason: format!(
                "log damaged in {} at offset {}: {}",
                damage.file.display(),
                damage.offset,
                damage.detail
            ),
        }),
    }
}

impl Shared {
    /// What of the disk was being read is left in `reading`, for who meets an error.
    fn try_entries(
        &self,
        id: GroupId,
        low: u64,
        high: u64,
        max_bytes: u64,
        reading: &mut Option<Run>,
    ) -> Result<Vec<Entry>> {
        let outside = |first: u64, last: u64| {
            let what = format!("group {id}: entries {low}..{high} of {first}..={last}");
            Err(Error::InvalidArgument(what))
        };
        let mut out = Vec::new();
        let mut bytes = 0;
        let mut missing = Vec::new();
        let mut cached = Vec::new();
        {
            let Some(group) = self.index.read(id) else { return outside(1, 0) };
            quarantined(id, group.damage.as_deref())?;
            let (first, last) = (group.truncated.index + 1, group.last());
            if low < first || high > last + 1 {
                return outside(first, last);
            }
            let cache_from = group.cache.front().map_or(u64::MAX, |e| e.index);
            let mut at = low;
            let mut disk_bytes = 0;
            while at < high.min(cache_from) && disk_bytes <= max_bytes {
                let Some(n) = group.find(at) else { return outside(first, last) };
                let run = group.runs[n];
                let to = run.end().min(high).min(cache_from);
                let part = run.part(at, to);
                // The data come to so much at least: of a body that is read in part nobody knows which of its
                // entries are large. (Each body is read only when those before left room.)
                if run.skip == 0 && part.count == run.count {
                    disk_bytes += least_data(&run);
                }
                let terms = (at..to).filter_map(|i| group.term(i).map(|t| (i, t)));
                let mut starts: Vec<(u64, u64)> = Vec::new();
                for (index, term) in terms {
                    if starts.last().is_none_or(|(_, t)| *t != term) {
                        starts.push((index, term));
                    }
                }
                missing.push(Missing { run: part, terms: starts });
                at = to;
            }
            if at >= cache_from {
                // Clones are counted against the limit again below, once the disk's part is known.
                let start = (at - cache_from) as usize;
                let mut weight = 0;
                for entry in group.cache.range(start..(high - cache_from) as usize) {
                    if !cached.is_empty() && weight > max_bytes {
                        break;
                    }
                    weight += entry.data.len() as u64;
                    cached.push(entry.clone());
                }
            }
        }
        let counter = if missing.is_empty() { &self.counters.hits } else { &self.counters.misses };
        counter.fetch_add(1, Relaxed);
        let mut last_body: Option<(u64, u32, Bytes)> = None;
        for Missing { run, terms } in missing {
            let term = |index: u64| {
                let after = terms.partition_point(|(from, _)| *from <= index);
                after.checked_sub(1).map_or(0, |n| terms[n].1)
            };
            *reading = Some(run);
            let parts = if run.is_packed() { self.unpack(id, &run)? } else { vec![run] };
            for run in parts {
                let body = match last_body.take() {
                    Some((seq, rel, body)) if seq == run.seq && rel == run.body.rel => body,
                    _ => plain(self.read_body(&run)?.0)?,
                };
                last_body = Some((run.seq, run.body.rel, body.clone()));
                for entry in decode_run(&body, run.skip, run.from, run.count, term)? {
                    if !take_within(&mut out, &mut bytes, max_bytes, entry) {
                        return Ok(out);
                    }
                }
            }
        }
        for entry in cached {
            if !take_within(&mut out, &mut bytes, max_bytes, entry) {
                break;
            }
        }
        Ok(out)
    }

    /// Whether the entries of this run lie elsewhere by now, are gone, or their segment is. A segment leaves the
    /// table before its file is touched, so whoever met a recycled file sees it here.
    fn has_moved(&self, id: GroupId, run: &Run) -> bool {
        let same = |now: &Run| {
            now.seq == run.seq && now.body == run.body && now.is_packed() == run.is_packed()
        };
        let still = match self.index.read(id) {
            Some(group) => group.find(run.from).is_some_and(|n| same(&group.runs[n])),
            None => false,
        };
        !still || self.segments.read().locate(run.seq).is_none()
    }

    /// A run's body from the disk, its checksum checked, and where it lies.
    pub(super) fn read_body(&self, run: &Run) -> Result<(Bytes, PathBuf, u64)> {
        let (file, path, at): (Arc<dyn File>, PathBuf, u64) = {
            let segments = self.segments.read();
            let Some((segment, payload)) = segments.locate(run.seq) else {
                return Err(Error::Corruption {
                    path: self.dir.clone(),
                    offset: 0,
                    detail: format!("record {} has no segment", run.seq),
                });
            };
            let at = payload + u64::from(run.body.rel);
            (segment.file.clone(), segment.path.clone(), at)
        };
        let read = read_around(file.as_ref(), at, run.body.len as usize)?;
        let body = read.bytes;
        self.counters.disk_reads.fetch_add(1, Relaxed);
        self.counters.disk_read_bytes.fetch_add(body.len() as u64, Relaxed);
        let found = crc32c::crc32c(&body);
        if body.len() < run.body.len as usize || found != run.body.crc {
            if let Some(hole) = read.holes.first() {
                return Err(hole.error(&path));
            }
            let detail = format!("expected checksum {:#010x}, found {found:#010x}", run.body.crc);
            return Err(Error::Corruption { path, offset: at, detail });
        }
        Ok((body.into(), path, at))
    }

    /// Evicts from the cache, a few groups a call, while it is over its bound.
    pub(super) fn shrink_cache(&self, queue: &mut Queue) {
        for _ in 0..CLOCK_STEPS {
            if self.cache_bytes.load(Relaxed) <= self.options.cache_bytes {
                return;
            }
            let Some(id) = queue.clock.pop_front() else { return };
            let durable = self.durable.load(Acquire);
            let mut freed = 0;
            let again = self.index.change_existing(id, |group| {
                freed = group.evict(durable);
                group.in_clock = !group.cache.is_empty();
                group.in_clock
            });
            self.cache_bytes.fetch_sub(freed, Relaxed);
            if again == Some(true) {
                queue.clock.push_back(id);
            }
        }
    }
}

/// Bytes of data in a run's bodies, at least: all but an entry's kind and size and the body's count, which take
/// this much for each entry at most. (A compressed body holds more than it takes.)
fn least_data(run: &Run) -> u64 {
    const BESIDE: u64 = 7;
    u64::from(run.live()).saturating_sub(BESIDE * u64::from(run.count))
}

fn take_within(out: &mut Vec<Entry>, bytes: &mut u64, max_bytes: u64, entry: Entry) -> bool {
    let len = entry.data.len() as u64;
    if !out.is_empty() && *bytes + len > max_bytes {
        return false;
    }
    *bytes += len;
    out.push(entry);
    true
}
