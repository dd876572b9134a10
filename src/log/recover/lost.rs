//! Where a segment ends too early, and what follows from records that are gone.

use super::{Damage, Replay, describe};
use crate::error::{Error, Result};
use crate::log::format::{RECORD_HEADER, align};
use crate::log::scan::{End, Found, Record};
use crate::log::unreadable::Holes;
use std::ops::Range;
use std::path::PathBuf;

/// A stretch of records that cannot be read.
pub(super) struct Lost {
    pub from: u64,
    /// The first record that is there again; `u64::MAX` if nobody knows how many there were.
    pub to: u64,
    pub path: PathBuf,
    pub offset: u64,
    pub detail: String,
    pub how: How,
}

/// How records come to be lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum How {
    /// What should hold them is there.
    Unread,
    /// No file holds them. So it is after a purge, and then a floor says so.
    Missing,
}

/// Where the header of the next record could stand: behind the last one, or at the block after it.
fn next_place(end: &End) -> Range<u64> {
    end.offset as u64..(align(end.offset) + RECORD_HEADER) as u64
}

impl Replay {
    /// Notes that a segment is shorter than it was made. That is no damage if the floor turns out to lie behind
    /// it: it may have been on its way into the pool.
    pub(super) fn note_length(&mut self, segment: &Found) {
        if segment.is_short() {
            let (file, detail) = (segment.path.clone(), segment.how_short());
            let damage = Damage { file, offset: segment.len, detail };
            self.short.push((segment.limit.unwrap_or(u64::MAX), damage));
        }
    }

    /// Judges the end of a segment: complete, rotten, torn, or simply the end.
    pub(super) fn close_segment(
        &mut self,
        segment: &Found,
        end: &End,
        holes: &Holes,
    ) -> Option<(usize, u64)> {
        let reached = segment.limit.unwrap_or(end.durable.saturating_add(1));
        if end.next_seq < reached {
            if let Some(hole) = holes.within(next_place(end)) {
                let detail = format!("record {}: {}", end.next_seq, hole.detail);
                self.lose(segment, end.next_seq, reached, hole.from, detail);
                return None;
            }
            let detail = match &end.bad {
                Some(bad) => format!("record {}: {}", end.next_seq, describe(bad)),
                None => format!("record {} is missing", end.next_seq),
            };
            // What is there instead may begin a block, behind the padding of the last record.
            let offset = end.bad.map_or(end.offset as u64, |bad| bad.offset);
            self.lose(segment, end.next_seq, reached, offset, detail);
            return None;
        }
        if segment.is_short() && segment.limit.is_none() && end.is_cut {
            self.lose(segment, end.next_seq, u64::MAX, segment.len, segment.how_short());
            return None;
        }
        end.bad.filter(|_| segment.limit.is_none()).map(|_| (end.offset, end.next_seq))
    }

    /// Judges what of a segment could not be read and is not reported with a record that it damaged. Tells whether
    /// something behind the records could not.
    ///
    /// No read that failed cuts anything: in the last segment, behind what is stated to be durable, what cannot be
    /// read may have been acknowledged all the same, be it the next record or what tells a torn one from
    /// rot. Only where a readable place for the next record holds none is nothing lost: nothing was acknowledged
    /// behind it.
    pub(super) fn judge_holes(
        &mut self,
        segment: &Found,
        holes: &Holes,
        records: &[Record],
        end: &End,
        cut: Option<(usize, u64)>,
    ) -> bool {
        let edge = cut.map_or(end.offset, |(offset, _)| offset) as u64;
        let behind = |from: u64| holes.within(from..u64::MAX);
        let doubt = match (segment.limit, cut) {
            (Some(_), _) => None,
            (None, Some(_)) => behind(edge),
            (None, None) => holes.within(next_place(end)),
        };
        if let Some(hole) = doubt {
            let seq = cut.map_or(end.next_seq, |(_, seq)| seq);
            self.lose(segment, seq, u64::MAX, hole.from, hole.detail.clone());
        }
        for hole in holes.iter() {
            let has = |record: &Record| {
                let from = record.offset as u64;
                hole.from < from + record.header.total() as u64 && hole.end > from
            };
            if !records.iter().any(|record| !record.is_whole() && has(record)) {
                self.recovery.harmless.push(hole.damage(&segment.path));
            }
        }
        behind(edge).is_some()
    }

    pub(super) fn lose(
        &mut self,
        segment: &Found,
        from: u64,
        to: u64,
        offset: u64,
        detail: String,
    ) {
        let (path, how) = (segment.path.clone(), How::Unread);
        self.lost.push(Lost { from, to, path, offset, detail, how });
    }

    /// No file holds the records `from..to`; this segment has those behind them.
    pub(super) fn miss(&mut self, segment: &Found, from: u64, to: u64) {
        let (path, how) = (segment.path.clone(), How::Missing);
        let detail = "a segment before this one is missing".into();
        self.lost.push(Lost { from, to, path, offset: 0, detail, how });
    }

    /// What cannot be read and may have been the floor that explains why these records are missing. A floor stands
    /// behind all that it voids.
    fn silenced(&self, missing: &Lost) -> Option<Damage> {
        let unsaid = self.unsaid.iter().find(|(seq, _)| *seq >= missing.to);
        let unsaid = unsaid.map(|(_, damage)| damage.clone());
        let unread = || {
            let behind = |lost: &&Lost| lost.how == How::Unread && lost.from >= missing.to;
            let Lost { path, offset, detail, .. } = self.lost.iter().find(behind)?;
            Some(Damage { file: path.clone(), offset: *offset, detail: detail.clone() })
        };
        let cut = || {
            let torn = self.recovery.torn.as_ref().filter(|torn| torn.seq >= missing.to)?;
            let detail = format!("record {} and what followed it did not read whole", torn.seq);
            Some(Damage { file: torn.file.clone(), offset: torn.offset, detail })
        };
        unsaid.or_else(unread).or_else(cut)
    }

    /// What was lost below the floor is void. What was lost above it could be anybody's: refuse.
    pub(super) fn judge_losses(&mut self) -> Result<()> {
        if let Some(lost) = self.lost.iter().find(|lost| lost.to > self.floor) {
            if lost.how == How::Missing
                && let Some(Damage { file, offset, detail }) = self.silenced(lost)
            {
                let (from, last) = (lost.from, lost.to - 1);
                let detail = format!(
                    "{detail}; it may have said that records {from} to {last} were purged: nothing that reads \
                     says so, and no file has them"
                );
                return Err(Error::Corruption { path: file, offset, detail });
            }
            let which = match lost.to {
                u64::MAX => format!("records from {} on may have been acknowledged", lost.from),
                to => format!("records {} to {} were acknowledged", lost.from, to - 1),
            };
            let detail = format!("{}; {which} and cannot be read", lost.detail);
            return Err(Error::Corruption { path: lost.path.clone(), offset: lost.offset, detail });
        }
        let short = std::mem::take(&mut self.short);
        let short = short.into_iter().filter(|(limit, _)| *limit > self.floor);
        self.recovery.harmless.extend(short.map(|(_, damage)| damage));
        Ok(())
    }
}
