//! Taking over: what nobody states to be durable is copied into a segment of its own, on a disk that may
//! have no room for it.

use super::super::Options;
use super::super::echo::{EchoDraft, groups_of};
use super::super::format::{BLOCK, RECORD_HEADER, RecordHeader, align};
use super::super::scan::Found;
use super::super::segment::{Pool, Reserve, Reserved, Segment, Spare};
use super::super::tail::Tail;
use super::Replay;
use crate::error::{Error, Result};

/// A file for the copy, of so many bytes, best of as many as the first says. If there is neither a spare nor
/// room for one, not even a short one, the last segment gives the room: see [`give_rest`].
fn file_for(pool: &mut Pool, found: &[Found], tail: &Tail, copies: [u64; 2]) -> Result<Spare> {
    let is_full = |taken: &Result<Spare>| matches!(taken, Err(Error::DiskFull { .. }));
    let mut taken = pool.take_for(copies);
    if is_full(&taken) && give_rest(found, tail)? {
        taken = pool.take_for(copies);
    }
    if is_full(&taken) {
        taken = pool.take_bare(copies[1]);
    }
    taken
}

/// Gives the rest of the last segment's file, in which nothing was ever acknowledged, back to the disk; tells
/// whether there was one. Full segments have such a rest as well: the room for their footers.
///
/// What opening has looked at stays, and with it all that it has concluded: the next open, should this one end
/// here, finds a segment that is shorter than it was made, but ends behind the place where its next group would begin,
/// and holds none there. So nothing was lost (nothing is acknowledged behind a group that is not there), and it
/// says the same, with a note. A file that does not show as much is left as it is.
fn give_rest(found: &[Found], tail: &Tail) -> Result<bool> {
    let Some(last) = found.iter().find(|segment| segment.limit.is_none()) else {
        return Ok(false);
    };
    let matters = align(tail.bytes.len()) as u64;
    if tail.is_cut || matters >= last.file.len()? {
        return Ok(false);
    }
    tracing::warn!(path = ?last.path, to = matters,
        "the disk is full and nothing is in reserve: the unused rest of the last segment is given back");
    last.file.set_len(matters)?;
    // Some file systems give out what was freed only when the change is durable.
    last.file.sync_data()?;
    Ok(true)
}

impl Replay {
    /// Makes the new active segment, with a copy of what nobody states to be durable.
    pub(super) fn take_over(
        &mut self,
        pool: &mut Pool,
        found: &[Found],
        tail: Option<Tail>,
        options: &Options,
    ) -> Result<(Segment, u64)> {
        let last = self.next_seq - 1;
        let Some(tail) = tail else {
            let spare = pool.take(Reserve::Use)?;
            pool.reserve()?;
            return Ok((pool.activate(spare, self.next_seq, last, |_| Vec::new())?, self.next_seq));
        };
        let used = tail.records.last().map_or(0, |(_, _, end, _)| *end) as u64;
        let unstated = (self.durable + 1).min(self.next_seq).max(tail.base_seq);
        let first = tail.records.iter().find(|(seq, ..)| *seq >= unstated);
        let least = first.map_or(0, |(_, start, ..)| used - *start as u64);
        let spare = file_for(pool, found, &tail, [if tail.clean { used } else { least }, least])?;
        let size = spare.file.len()?;
        // A short segment is copied whole: the old file is free at once, and a node that restarts
        // often does not leave a trail of files. So is a long one on a full disk: the old file is the reserve
        // then, for purge and for the next open.
        let short = used <= (options.segment_bytes / 4).min(size);
        let whole = tail.clean && (short || pool.reserve()? == Reserved::No && used <= size);
        let base = if whole { tail.base_seq } else { unstated };
        let mut payloads = Vec::new();
        let durable = self.durable.min(last);
        let mut echo = EchoDraft::new(BLOCK as u64, base);
        let segment = pool.activate(spare, base, last, |generation| {
            let first = tail.records.iter().find(|(seq, ..)| *seq >= base);
            let room = first.map_or(0, |(_, start, ..)| align(used as usize - start));
            let mut out = Vec::with_capacity(room);
            for (seq, start, end, payload) in tail.records.iter().filter(|(seq, ..)| *seq >= base) {
                let old = &tail.bytes[*start..*end];
                let body = &old[RECORD_HEADER..];
                let dir_len = payload - start - RECORD_HEADER;
                let echoes = tail.echoes_of_others(*seq, *start, *end);
                let header = RecordHeader {
                    generation,
                    seq: *seq,
                    durable: durable.min(seq - 1),
                    dir_len: dir_len as u32,
                    payload_len: (end - payload) as u32,
                    dir_crc: crc32c::crc32c(&body[..dir_len]),
                    echo_len: echoes.len() as u32,
                };
                echo.push(&header, &groups_of(&body[..dir_len], header.payload_len));
                header.encode_to(&mut out);
                payloads.push((BLOCK + out.len() + dir_len) as u32);
                out.extend_from_slice(body);
                out.extend_from_slice(echoes);
            }
            out.resize(align(out.len()), 0);
            out
        })?;
        // The copy has no second one of its headers until the next group is written.
        self.echo = match tail.records.is_empty() {
            true => tail.echo_of_the_torn().to_vec(),
            false => echo.finish(),
        };
        self.recovery.copied_bytes = segment.used - BLOCK as u64;
        self.places.insert(base, payloads);
        Ok((segment, base))
    }
}
