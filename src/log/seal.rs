//! Sealing: a full segment gets its footer, and the index forgets what the footer says. Off the path of
//! writes: whoever keeps spares ready ([`Log::prepare`](super::Log::prepare)) or purges does it.

use super::echo::Echoes;
use super::footer::{Draft, Footer, Summary, TRAILER, Trailer, unpack};
use super::format::{SegmentHeader, align};
use super::index::{Dead, Run};
use super::notes::Notes;
use super::scan::Scan;
use super::segment::{Attempt, Seal, Stage};
use super::unreadable::{Sparse, read_around};
use super::{GroupId, Shared};
use crate::env::File;
use crate::error::{Error, Result};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

/// So many of the newest segments get no footer while less than half of them lives: where entries are
/// compacted soon after, most segments are purged before anybody could need it, and opening reads the
/// records of a few more.
pub(super) const DYING: usize = 4;

/// To sum up this much costs nothing to speak of.
const LITTLE: u64 = 1 << 20;

/// A segment on its way to be sealed.
struct Candidate {
    header: SegmentHeader,
    next_seq: u64,
    file: Arc<dyn File>,
    path: PathBuf,
}

/// What the writer remembers of it.
struct Noted {
    notes: Notes,
    payloads: Vec<u32>,
    /// Where its records end.
    end: u64,
}

/// A footer that found no room is tried again when there may be some: when a segment was given back, a spare was
/// made, another segment was begun, and after so many calls of purge.
const PATIENCE: u64 = 64;

impl Candidate {
    /// The records as the disk has them, and where they end; `None` if they cannot all be read.
    fn scan(&self) -> Result<(Draft, Option<u64>)> {
        let Sparse { bytes, holes } =
            read_around(self.file.as_ref(), 0, self.file.len()? as usize)?;
        for hole in holes.iter() {
            tracing::error!(path = ?self.path, offset = hole.from, end = hole.end,
                "a part of a segment {}", hole.detail);
        }
        let mut scan = Scan::new(&bytes, &self.header, Some(self.next_seq), Echoes::new());
        let mut draft = Draft::default();
        let mut next = self.header.base_seq;
        let mut end = super::BLOCK;
        while let Some(record) = scan.next().filter(|record| record.is_whole()) {
            draft.record(&bytes, &record);
            next += 1;
            end = record.offset + record.header.total();
        }
        let whole = (next == self.next_seq).then_some(end);
        Ok((draft, whole.map(|end| align(end) as u64)))
    }
}

/// The trailer at the end of a file, if it is one of this life of the file.
pub(super) fn read_trailer(file: &dyn File, header: &SegmentHeader) -> Result<Option<Trailer>> {
    let len = file.len()?;
    let Some(at) = len.checked_sub(TRAILER as u64) else { return Ok(None) };
    let trailer = Trailer::decode(&read_around(file, at, TRAILER)?.bytes, header.generation);
    Ok(trailer.filter(|trailer| trailer.base_seq == header.base_seq))
}

/// The summary that a trailer speaks of; `None` if its bytes are not what they were.
pub(super) fn read_summary(file: &dyn File, trailer: Trailer) -> Result<Option<Summary>> {
    let len = u64::from(trailer.summary_len);
    let room = file.len()?;
    if trailer.summary_at.checked_add(len).is_none_or(|end| end > room) {
        return Ok(None);
    }
    let bytes = read_around(file, trailer.summary_at, len as usize)?.bytes;
    Ok(Summary::decode(trailer, bytes.into()))
}

/// What a footer is made of, and where the records end: from what the writer remembers or, if that is not all, from
/// the disk; no end if that cannot all be read.
fn draft(candidate: &Candidate, noted: &Noted) -> Result<(Draft, Option<u64>)> {
    match noted.notes.draft(candidate.header.base_seq, &noted.payloads) {
        Some(draft) => Ok((draft, Some(noted.end))),
        None => candidate.scan(),
    }
}

impl Shared {
    /// Gives one full segment its footer; tells whether one was there to seal. The caller holds the
    /// lock of purge. A segment with damage in it stays as it is: reading it anew at every open is
    /// what keeps its groups fenced off.
    pub(super) fn seal_one(&self) -> Result<bool> {
        // Before the attempt: room that comes meanwhile is reason for another.
        let room = self.room.load(Acquire);
        let Some((candidate, noted, mut stage)) = self.next_to_seal(room) else {
            return Ok(false);
        };
        let base = candidate.header.base_seq;
        // What cannot be read ends nothing: it was durable, and nothing that is written rests on it. Where an error
        // is of the place the segment gets no footer; another one leaves it as it is, to be tried again.
        let drafted = draft(&candidate, &noted)?;
        let sealed = self.write_footer(&candidate, drafted, &mut stage);
        let seal = match &sealed {
            Ok(Some(_)) => Seal::Footer,
            Err(Error::DiskFull { .. }) if stage != Stage::Unknown => {
                Seal::Waits(Attempt { room, stage })
            }
            _ => Seal::Never,
        };
        if let Some(segment) = self.segments.write().by_base.get_mut(&base) {
            segment.seal = seal;
            segment.size = candidate.file.len().unwrap_or(segment.size);
            if matches!(seal, Seal::Waits(_)) {
                segment.notes = noted.notes;
            }
        }
        let footer = match sealed {
            Ok(Some(footer)) => footer,
            Ok(None) => return Ok(true),
            Err(full @ Error::DiskFull { .. }) => {
                tracing::warn!(%full, "no room for a segment's footer");
                return Ok(true);
            }
            Err(error) => return Err(self.poison(error)),
        };
        self.pool.lock().see_footer(footer.body.len() + TRAILER);
        let seqs = base..candidate.next_seq;
        for (group, packed) in footer.packed {
            // A packed run keeps alive what its runs did: nothing dies here.
            let mut dead = Dead::new();
            self.index.change_existing(group, |g| g.relocate(&seqs, packed, &mut dead));
        }
        Ok(true)
    }

    /// There may be room on the disk that was not there before.
    pub(super) fn room_came(&self) {
        self.full.store(false, Relaxed);
        self.room.fetch_add(1, AcqRel);
    }

    /// Purge was called so many times. The disk may have got room that the log does not know of.
    pub(super) fn called(&self, times: u64) {
        if times.is_multiple_of(PATIENCE) {
            self.room.fetch_add(1, AcqRel);
        }
    }

    fn next_to_seal(&self, room: u64) -> Option<(Candidate, Noted, Stage)> {
        let mut segments = self.segments.write();
        let nexts = segments.by_base.keys().skip(1);
        // What is old enough needs a footer in any case.
        let old = segments.by_base.len().saturating_sub(DYING);
        let mut pairs = segments.by_base.iter().zip(nexts).enumerate();
        let (_, ((base, segment), next)) = pairs.find(|(n, ((_, segment), _))| {
            let dying = segment.live * 2 < segment.used && segment.used > LITTLE;
            let due = match segment.seal {
                Seal::Open => true,
                Seal::Waits(attempt) => attempt.room != room,
                Seal::Footer | Seal::Never => false,
            };
            due && (*n < old || !dying)
        })?;
        let stage = match segment.seal {
            Seal::Waits(attempt) => attempt.stage,
            _ => Stage::Body,
        };
        let header = SegmentHeader {
            generation: segment.generation,
            base_seq: *base,
            durable: 0,
            size: segment.size,
        };
        let (file, path, next_seq) = (segment.file.clone(), segment.path.clone(), *next);
        let segment = segments.by_base.get_mut(&header.base_seq)?;
        let noted = Noted {
            notes: segment.notes.take(),
            payloads: segment.payloads.clone(),
            end: segment.used,
        };
        Some((Candidate { header, next_seq, file, path }, noted, stage))
    }

    /// Writes the footer behind the segment's records, or, at the stage of the trailer, what is missing of it;
    /// `None` if nobody remembers the records and they cannot all be read. A footer is the same whenever it is
    /// made, so an attempt that found no room may be made again: the body, as long as nothing points to it.
    fn write_footer(
        &self,
        candidate: &Candidate,
        (draft, end): (Draft, Option<u64>),
        stage: &mut Stage,
    ) -> Result<Option<Footer>> {
        let Some(at) = end else {
            tracing::warn!(path = ?candidate.path, "damaged: the segment gets no footer");
            return Ok(None);
        };
        let header = &candidate.header;
        let footer = draft.finish(header.generation, header.base_seq, at);
        let room = candidate.file.len()?;
        let needed = at + (footer.body.len() + TRAILER) as u64;
        if needed > u64::from(u32::MAX) {
            return Ok(None);
        }
        let len = room.max(align(needed as usize) as u64);
        if *stage == Stage::Body {
            candidate.file.write_at(at, &footer.body)?;
            if len > room {
                // The file grows: it ends in whole blocks.
                candidate.file.set_len(len)?;
            }
            *stage = Stage::Unknown;
            candidate.file.sync_data()?;
            *stage = Stage::Trailer;
        }
        candidate.file.write_at(len - TRAILER as u64, &footer.trailer.encode())?;
        *stage = Stage::Unknown;
        candidate.file.sync_data()?;
        self.counters.footer_bytes.fetch_add((footer.body.len() + TRAILER) as u64, Relaxed);
        Ok(Some(footer))
    }

    /// The runs that a packed run of this group stands for: from the footer's section or, if that is
    /// damaged, from the records.
    pub(super) fn unpack(&self, group: GroupId, packed: &Run) -> Result<Vec<Run>> {
        let candidate = {
            let segments = self.segments.read();
            let next = segments.by_base.range(packed.seq + 1..).next().map(|(base, _)| *base);
            segments.by_base.get(&packed.seq).zip(next).map(|(segment, next_seq)| Candidate {
                header: SegmentHeader {
                    generation: segment.generation,
                    base_seq: packed.seq,
                    durable: 0,
                    size: segment.size,
                },
                next_seq,
                file: segment.file.clone(),
                path: segment.path.clone(),
            })
        };
        let Some(candidate) = candidate else {
            let detail = format!("the segment of record {} is gone", packed.seq);
            return Err(Error::Corruption { path: self.dir.clone(), offset: 0, detail });
        };
        let len = packed.body.len as usize;
        let rel = u64::from(packed.body.rel);
        let section = read_around(candidate.file.as_ref(), rel, len)?.bytes;
        self.counters.disk_reads.fetch_add(1, Relaxed);
        self.counters.disk_read_bytes.fetch_add(section.len() as u64, Relaxed);
        if let Some(runs) = unpack(packed, &section) {
            return Ok(runs);
        }
        let (draft, _) = candidate.scan()?;
        let runs = draft.runs(group).into_iter();
        let inside = |run: Run| {
            let (low, high) = (run.from.max(packed.from), run.end().min(packed.end()));
            (low < high).then(|| run.part(low, high))
        };
        let runs: Vec<Run> = runs.filter_map(inside).collect();
        if runs.iter().map(|run| u64::from(run.count)).sum::<u64>() != u64::from(packed.count) {
            let detail = format!("the list of group {group}'s runs and a record are damaged");
            let offset = u64::from(packed.body.rel);
            return Err(Error::Corruption { path: candidate.path, offset, detail });
        }
        tracing::warn!(path = ?candidate.path, offset = packed.body.rel,
            "a section of the footer is damaged; read from the records instead");
        Ok(runs)
    }
}

#[cfg(test)]
mod tests;
