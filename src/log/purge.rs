//! Giving space back: the oldest segments go once nothing in them is needed. What little is still
//! needed is moved forward first. The argument why this is safe stands at the head of the room.

use super::batch::Encoded;
use super::format::{Op, Span, Terms};
use super::index::{Group, Run};
use super::segment::Reserve;
use super::write::{Pending, Queue};
use super::{GroupId, Log, RECORD_HEADER, Shared};
use crate::error::Result;
use bytes::Bytes;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

/// What a purge did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Purged {
    /// Segments that went.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of live runs that were moved forward.
    pub moved_bytes: u64,
    /// Groups whose state or position was restated.
    pub restated: u64,
}

/// Runs are moved in records of about this size, so that submitters are not held up for long.
const MOVE_BYTES: usize = 4 << 20;

/// A live run on its way to a new place.
struct Moving {
    group: GroupId,
    old: Run,
    body: Bytes,
    /// Its place in the record that carries it, once it is in one.
    span: Span,
}

impl Log {
    /// Gives back the oldest segments that hold nothing live; if what lives in the oldest is little
    /// (or garbage outweighs it by far), moves it forward first, at most a segment's worth a call.
    /// Never touches what a group still needs, nor segments that hold evidence of damage.
    ///
    /// Blocks for disk IO and runs the writer's rounds itself. On
    /// [`DiskFull`](crate::Error::DiskFull) nothing is lost.
    pub fn purge(&self) -> Result<Purged> {
        let shared = &*self.shared;
        let _one = shared.purging.lock();
        shared.check_running()?;
        let mut purged = Purged::default();
        let Some(floor) = shared.choose_floor() else { return Ok(purged) };
        purged.moved_bytes = shared.move_runs(floor)?;
        let Some(restated) = shared.checkpoint(floor)? else { return Ok(purged) };
        purged.restated = restated;

        let doomed = {
            let mut table = shared.segments.write();
            let kept = table.by_base.split_off(&floor);
            std::mem::replace(&mut table.by_base, kept)
        };
        for segment in doomed.into_values() {
            purged.segments += 1;
            purged.bytes += segment.size;
            shared.pool.lock().recycle(&segment.path, segment.file)?;
        }
        Ok(purged)
    }
}

impl Shared {
    /// The first sequence number that stays, if anything can go.
    fn choose_floor(&self) -> Option<u64> {
        let pinned = self.oldest_damage();
        let segments = self.segments.read();
        let live: u64 = segments.by_base.values().map(|s| s.live).sum();
        let size: u64 = segments.by_base.values().map(|s| s.size).sum();
        let segment_bytes = self.options.segment_bytes;
        let crowded = size > 2 * live + 4 * segment_bytes;
        let mut budget = segment_bytes;
        let mut floor = None;
        let bases: Vec<u64> = segments.by_base.keys().copied().collect();
        for (segment, next) in segments.by_base.values().zip(bases.into_iter().skip(1)) {
            let little = segment.live * 100 <= segment.size * self.options.rewrite_percent;
            let movable = segment.live <= budget && (little || crowded);
            if next > pinned || (segment.live > 0 && !movable) {
                break;
            }
            budget -= segment.live;
            floor = Some(next);
        }
        floor
    }

    /// The oldest record that a damaged group refers to: it is evidence, and stays.
    fn oldest_damage(&self) -> u64 {
        let mut oldest = u64::MAX;
        for id in self.index.groups() {
            let Some(group) = self.index.read(id) else { continue };
            if group.damage.is_some() {
                let facts = [group.state_seq, group.base_seq];
                let runs = group.runs.iter().map(|run| run.seq);
                let seqs = runs.chain(facts.into_iter().filter(|seq| *seq > 0));
                oldest = oldest.min(seqs.min().unwrap_or(0));
            }
        }
        oldest
    }

    /// Moves every live run below `floor` forward. Returns the bytes moved.
    fn move_runs(&self, floor: u64) -> Result<u64> {
        let mut moved = 0;
        let mut load: Vec<Moving> = Vec::new();
        let mut weight = 0;
        for id in self.index.groups() {
            let runs: Vec<Run> = match self.index.read(id) {
                Some(group) => group.runs.iter().copied().filter(|r| r.seq < floor).collect(),
                None => continue,
            };
            for old in runs {
                let body = self.read_body(&old)?.0;
                weight += body.len();
                moved += body.len() as u64;
                load.push(Moving { group: id, old, body, span: Span::default() });
                if weight >= MOVE_BYTES {
                    self.move_load(std::mem::take(&mut load))?;
                    weight = 0;
                }
            }
        }
        self.move_load(load)?;
        Ok(moved)
    }

    fn move_load(&self, mut load: Vec<Moving>) -> Result<()> {
        if load.is_empty() {
            return Ok(());
        }
        let seq = {
            let mut queue = self.queue.lock();
            let bytes = load.iter().map(|m| m.body.len()).sum();
            let mut record = Encoded::with_capacity(load.len(), bytes);
            for moving in &mut load {
                let Some(group) = self.index.read(moving.group) else { continue };
                // As it is now: it may have been overwritten or compacted since it was read.
                let Some(run) = group.runs.iter().find(|run| same_place(run, &moving.old)) else {
                    continue;
                };
                let span = record.body(|out| out.extend_from_slice(&moving.body))?;
                moving.span = span;
                record.push(Op::Rewrite {
                    group: moving.group,
                    from: run.from,
                    count: run.count,
                    skip: run.skip,
                    terms: terms_of(&group, run),
                    body: span,
                });
            }
            load.retain(|moving| moving.span.len > 0);
            self.enqueue(&mut queue, record)
        };
        let done = self.round_to(seq);
        // The index follows only now: until the copy is durable, readers go to the old place.
        let mut dead = Vec::new();
        for moving in load {
            let relocated = done.is_ok()
                && self.index.change_existing(moving.group, |group| {
                    let run = group.runs.iter_mut().find(|run| same_place(run, &moving.old));
                    run.map(|run| {
                        run.seq = seq;
                        run.body = moving.span;
                    })
                }) == Some(Some(()));
            let gone = if relocated { moving.old.seq } else { seq };
            dead.push((gone, moving.span.len));
        }
        self.segments.write().bury(dead);
        done
    }

    /// Restates what only records below `floor` say, and makes that durable with the floor itself.
    /// `None` if something below is still live after all.
    fn checkpoint(&self, floor: u64) -> Result<Option<u64>> {
        let mut restated = 0;
        let seq = {
            let mut queue = self.queue.lock();
            let seq = queue.next_seq;
            let mut record = Encoded::with_capacity(64, 4096);
            for id in self.index.groups() {
                let stated = self.index.change_existing(id, |group| -> Result<_> {
                    if group.runs.iter().any(|run| run.seq < floor) {
                        return Ok(None);
                    }
                    Ok(Some(restate(id, group, floor, seq, &mut record)?))
                });
                match stated {
                    Some(Ok(Some(n))) => restated += n,
                    Some(Ok(None)) => return Ok(None),
                    Some(Err(error)) => return Err(error),
                    None => {}
                }
            }
            record.push(Op::Floor { seq: floor });
            self.enqueue(&mut queue, record)
        };
        self.round_to(seq)?;
        Ok(Some(restated))
    }

    /// Queues a record of our own making. It may exceed the bound of the queue: it frees space.
    pub(super) fn enqueue(&self, queue: &mut Queue, mut encoded: Encoded) -> u64 {
        let seq = queue.next_seq;
        queue.next_seq += 1;
        encoded.dir_crc = crc32c::crc32c(&encoded.dir);
        let runs = encoded.ops.iter().filter(|op| matches!(op, Op::Rewrite { .. }));
        let run_bytes = runs.filter_map(Op::body).map(|body| u64::from(body.len)).sum();
        encoded.ops = Vec::new();
        let size = RECORD_HEADER + encoded.dir.len() + encoded.payload.len();
        self.pending_bytes.fetch_add(size, Relaxed);
        queue.pending.push(Pending { seq, encoded, run_bytes });
        self.counters.batches.fetch_add(1, Relaxed);
        seq
    }

    fn round_to(&self, seq: u64) -> Result<()> {
        while self.durable.load(Acquire) < seq {
            let mut writer = self.writer.lock();
            self.round(&mut writer, Reserve::Use)?;
        }
        Ok(())
    }
}

/// Says again, in `record`, what the group's state and position are, where only records below
/// `floor` say it. Returns 1 if something was said.
fn restate(
    id: GroupId,
    group: &mut Group,
    floor: u64,
    seq: u64,
    record: &mut Encoded,
) -> Result<u64> {
    let mut said = 0;
    if group.base_seq > 0 && group.base_seq < floor {
        record.push(Op::Base { group: id, at: group.truncated });
        group.base_seq = seq;
        said = 1;
    }
    if group.state_seq < floor
        && let Some(state) = &group.state
    {
        let body = record.body(|out| out.extend_from_slice(state))?;
        record.push(Op::State { group: id, body });
        group.state_seq = seq;
        group.state_rel = body.rel;
        said = 1;
    }
    Ok(said)
}

fn same_place(a: &Run, b: &Run) -> bool {
    a.seq == b.seq && a.body.rel == b.body.rel
}

fn terms_of(group: &Group, run: &Run) -> Terms {
    let first = (run.from, group.term(run.from).unwrap_or(0));
    let inside = group.terms.iter().filter(|(from, _)| *from > run.from && *from < run.end());
    Terms { first, rest: inside.copied().collect() }
}
