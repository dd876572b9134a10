//! The way out of a full disk when more waits for the writer than there is room for: what purge has to say
//! goes to the disk in a batch that waits, before those that have higher numbers.
//!
//! Batches have their numbers when they are submitted, so a record of purge has a higher one than all that
//! wait, and on the disk numbers have no gaps. But a batch that has not taken off may still say more: purge's
//! operations move into one of the first (the berth), behind that batch's own, and purge's record keeps its number and
//! says nothing. What must hold, so that a crash right behind the berth loses nothing:
//!
//! - What is said again or moved lies below the floor, where nothing that waits says anything, and is in the index:
//!   so no batch that waits has undone it, and it is true at the berth as it is true at the end of the queue.
//! - What is needed at the berth and not at the end is what batches behind the berth undo. They may be lost: so
//!   the floor is said there only if none of them undoes anything below it ([`Pending::undoes`]). Else it is
//!   left out, no file goes, and what was said again stays said for the next attempt.
//! - What happens behind the berth comes after what is said there, on the disk as in the index: a fact that
//!   was said again and then changed in a batch behind it is changed by replay too.
//! - All of a batch takes effect or nothing, what is the batch's and what is purge's. Its own operations come first:
//!   they may undo what lies below the floor.
//!
//! Nothing else changes: the berth is durable when its number is, and who waits for that waits as before.
//!
//! # Not done, and why
//! - The first batch that waits is larger than the reserve: nothing can be said before it, for there is no number. (An empty
//!   record before each large batch would be a berth, but for one record of purge alone, and would have to stay with
//!   its batch.) A batch should be smaller than half a segment.
//! - What a batch far behind gives up is needed until that batch is there; it is not torn apart to say that part of it first.

use super::Shared;
use super::batch::MAX_PAYLOAD;
use super::format::{BLOCK, Op, decode_dir};
use super::purge::Queued;
use super::queue::{Pending, Queue};
use super::write::Writer;
use crate::error::{Error, Result};
use parking_lot::MutexGuard;
use std::sync::atomic::Ordering::Relaxed;

/// A place for what purge says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Berth {
    /// The batch that takes it along (or, when that has taken off, the first that waits).
    seq: u64,
    /// Bytes of what is to be written with it and before it; of one more batch, too, if purge should need two.
    pub bytes: u64,
    /// Batches behind it undo something in this record, but in none before it.
    pub undone: u64,
    /// All of it has to find a place in so many bytes: one stretch of a segment, so that it does.
    pub room: u64,
}

/// Whether a floor that was queued is on the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stated {
    Yes,
    /// What waits behind it undoes something below.
    No,
}

impl Shared {
    /// A berth with at most `percent` of the room for what waits before it. `None` if nothing waits.
    pub(super) fn berth(&self, percent: u64) -> Option<Berth> {
        let mut writer = self.writer.lock();
        drop(self.gather(&mut writer));
        let room = self.stretch(&writer);
        let first = writer.stalled.front()?.seq;
        let mut berth = Berth { seq: first, bytes: writer.echoed(), undone: u64::MAX, room };
        let mut before = true;
        for pending in &writer.stalled {
            let bytes = berth.bytes + pending.room();
            if pending.seq == first || before && bytes <= room * percent / 100 {
                berth = Berth { seq: pending.seq, bytes, ..berth };
                continue;
            }
            if before {
                berth.bytes = bytes;
            }
            before = false;
            berth.undone = berth.undone.min(pending.undoes);
        }
        Some(berth)
    }

    /// What records can be sure to find a place in, one behind the other, whatever their sizes.
    fn stretch(&self, writer: &Writer) -> u64 {
        let pool = self.pool.lock();
        let spare = if pool.len() > 0 { pool.usable() } else { 0 };
        spare.max(writer.size.saturating_sub(writer.offset))
    }

    /// All that waits waits in one place, and nobody submits meanwhile.
    fn gather(&self, writer: &mut Writer) -> MutexGuard<'_, Queue> {
        let mut queue = self.queue.lock();
        let taken = queue.take();
        writer.stalled.extend(taken);
        queue.leftover = !writer.stalled.is_empty();
        queue
    }

    /// Moves what these records say into the berth, or a place before it, if they are behind it. Nothing above
    /// that takes off from here on. Tells whether the floor, if they have one, is said there.
    ///
    /// [`DiskFull`](Error::DiskFull): there is no room for it; nothing was changed.
    pub(super) fn advance(&self, queued: &mut Queued, berth: &Berth) -> Result<Stated> {
        let full = || Error::DiskFull { path: self.dir.clone() };
        let mut writer = self.writer.lock();
        // Until the index says in which record things stand now.
        let _queue = self.gather(&mut writer);
        let room = self.stretch(&writer) / BLOCK as u64 * BLOCK as u64;
        let echoed = writer.echoed();
        let first = writer.stalled.front().map_or(u64::MAX, |pending| pending.seq);
        let place = |seq: u64| (seq - first) as usize;
        let Some(last) = queued.seqs.last().copied().filter(|last| *last >= first) else {
            // They have taken off.
            writer.until = queued.last;
            return Ok(Stated::Yes);
        };
        let stalled = &mut writer.stalled;
        // What was counted on is known now.
        let fits = |at: &usize| {
            let behind = stalled.iter().skip(at + 1).filter(|p| queued.seqs.contains(&p.seq));
            let bytes: u64 = stalled.iter().take(at + 1).chain(behind).map(Pending::room).sum();
            (bytes + echoed).next_multiple_of(BLOCK as u64) <= room
        };
        let most = place(berth.seq.clamp(first, last));
        let at = (0..=most).rev().find(fits).ok_or_else(full)?;
        let seq = first + at as u64;
        let ours: Vec<u64> = queued.seqs.iter().copied().filter(|ours| *ours > seq).collect();
        if ours.is_empty() {
            writer.until = queued.last;
            return Ok(Stated::Yes);
        }
        let mut ops = Vec::with_capacity(ours.len());
        let mut payload = stalled[at].encoded.payload.len();
        for seq in &ours {
            let encoded = &stalled[place(*seq)].encoded;
            payload += encoded.payload.len();
            ops.push(decode_dir(&encoded.dir, encoded.payload.len() as u32)?);
        }
        if payload > MAX_PAYLOAD {
            return Err(full());
        }
        let behind = stalled.iter().skip(at + 1).filter(|p| !ours.contains(&p.seq));
        let undone = behind.map(|pending| pending.undoes).min().unwrap_or(u64::MAX);
        let mut stated = Stated::Yes;
        let moving = || ours.iter().map(|seq| place(*seq)).chain([at]);
        let before: usize = moving().map(|n| stalled[n].size()).sum();
        for (from, ops) in ours.iter().copied().zip(ops) {
            let ours = &mut stalled[place(from)];
            let taken = std::mem::take(&mut ours.encoded);
            let run_bytes = std::mem::take(&mut ours.run_bytes);
            let berth = &mut stalled[at];
            berth.run_bytes += run_bytes;
            let by = berth.encoded.payload.len() as u32;
            berth.encoded.payload.extend_from_slice(&taken.payload);
            for op in ops {
                if matches!(op, Op::Floor { seq } if seq > undone) {
                    stated = Stated::No;
                    continue;
                }
                let op = moved(op, by);
                self.said_at(&op, from, seq);
                berth.encoded.push(op);
            }
            for (_, run) in queued.moved.iter_mut().filter(|(_, run)| run.seq == from) {
                run.seq = seq;
                run.body.rel += by;
            }
        }
        let encoded = &mut stalled[at].encoded;
        encoded.ops = Vec::new();
        encoded.dir_crc = crc32c::crc32c(&encoded.dir);
        // A floor that was left out is not written, and waits no more.
        let after: usize = moving().map(|n| stalled[n].size()).sum();
        self.pending_bytes.fetch_sub(before.saturating_sub(after), Relaxed);
        // The berth is not ours to be moved again; what is ours and lies before it comes with it.
        queued.seqs.clear();
        queued.last = seq;
        writer.until = seq;
        Ok(stated)
    }

    /// The index follows: what record `from` was to say stands in record `to`.
    fn said_at(&self, op: &Op, from: u64, to: u64) {
        match op {
            Op::Base { group, .. } => {
                _ = self.index.change_existing(*group, |group| {
                    if group.base_seq == from {
                        group.base_seq = to;
                    }
                })
            }
            Op::State { group, body } => {
                _ = self.index.change_existing(*group, |group| {
                    if group.state_seq == from {
                        (group.state_seq, group.state_rel) = (to, body.rel);
                    }
                })
            }
            // Readers are sent to a moved run when it is durable.
            _ => {}
        }
    }
}

impl Writer {
    /// Bytes of echoes that wait for a group to take them along.
    pub fn echoed(&self) -> u64 {
        self.echoes.iter().map(|(_, echo)| echo.len() as u64).sum()
    }

    /// How many of the waiting batches may take off: all, but while purge is on its way out of a full disk.
    pub fn how_many_may(&self) -> usize {
        let first = self.stalled.front().map_or(0, |pending| pending.seq);
        let most = self.until.saturating_add(1).saturating_sub(first);
        usize::try_from(most).unwrap_or(usize::MAX)
    }
}

/// The operation, its body so much further behind in the payload.
fn moved(mut op: Op, by: u32) -> Op {
    if let Op::State { body, .. } | Op::Rewrite { body, .. } = &mut op {
        body.rel += by;
    }
    op
}
