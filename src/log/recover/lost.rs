//! Where a segment ends too early, and what follows from records that are gone.

use super::{Damage, Replay, describe};
use crate::error::{Error, Result};
use crate::log::scan::{End, Found};
use std::path::PathBuf;

/// A stretch of records that cannot be read.
pub(super) struct Lost {
    pub from: u64,
    /// The first record that is there again; `u64::MAX` if nobody knows how many there were.
    pub to: u64,
    pub path: PathBuf,
    pub offset: u64,
    pub detail: String,
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
    pub(super) fn close_segment(&mut self, segment: &Found, end: &End) -> Option<(usize, u64)> {
        let reached = segment.limit.unwrap_or(end.durable + 1);
        if end.next_seq < reached {
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

    pub(super) fn lose(
        &mut self,
        segment: &Found,
        from: u64,
        to: u64,
        offset: u64,
        detail: String,
    ) {
        self.lost.push(Lost { from, to, path: segment.path.clone(), offset, detail });
    }

    /// What was lost below the floor is void. What was lost above it could be anybody's: refuse.
    pub(super) fn judge_losses(&mut self) -> Result<()> {
        if let Some(lost) = self.lost.iter().find(|lost| lost.to > self.floor) {
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
