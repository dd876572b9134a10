//! Makes checksums right again, so that what was changed comes to the decoders behind them; and knows where those read.
//! `src/log/format.md` has the offsets.

use super::Feed;
use std::ops::Range;

const BLOCK: usize = 4096;
const RECORD_HEADER: usize = 48;
const SEGMENT_HEADER: usize = 64;
const TRAILER: usize = 64;

/// Makes every checksum of a segment right that can be found: those of bodies and sections first, then of what lists
/// them, then of what points there.
pub fn mend(file: &mut [u8]) {
    walk(file);
}

/// A place that a decoder reads: one of the structures of a segment, and somewhere in it.
pub fn aim(file: &[u8], feed: &mut Feed<'_>) -> usize {
    // The walk mends, which is not asked for here.
    let places = walk(&mut file.to_vec());
    let (which, far) = (feed.number(2) as usize, feed.number(2) as usize);
    match places.get(which % places.len().max(1)) {
        Some(place) => place.start + far % place.len(),
        None => far % file.len().max(1),
    }
}

/// Mends what there is, and tells where it lies.
fn walk(file: &mut [u8]) -> Vec<Range<usize>> {
    let mut places = Vec::new();
    for at in [0, 2048] {
        if file.get(at..at + 8) == Some(b"CATALOG\n") && file.len() >= at + SEGMENT_HEADER {
            seal(file, at + 60, at..at + 60);
            places.push(at + 8..at + 60);
        }
    }
    let mut chained = BLOCK;
    for block in (BLOCK..file.len()).step_by(BLOCK) {
        if chained > block {
            continue;
        }
        chained = block;
        while let Some(end) = record(file, chained, &mut places) {
            chained = end;
        }
    }
    footer(file, &mut places);
    places.retain(|place| !place.is_empty());
    places
}

/// Writes the checksum of these bytes to a place.
fn seal(file: &mut [u8], at: usize, of: Range<usize>) {
    let sum = crc32c::crc32c(&file[of]);
    file[at..at + 4].copy_from_slice(&sum.to_le_bytes());
}

fn u32_at(file: &[u8], at: usize) -> usize {
    u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize
}

fn u64_at(file: &[u8], at: usize) -> usize {
    u64::from_le_bytes(file[at..at + 8].try_into().unwrap()) as usize
}

/// The record that begins here, if one does, and where it ends.
fn record(file: &mut [u8], at: usize, places: &mut Vec<Range<usize>>) -> Option<usize> {
    if file.get(at..at + RECORD_HEADER)?[..4] != *b"CTCR" {
        return None;
    }
    let dir = at + RECORD_HEADER;
    let payload = dir + u32_at(file, at + 32);
    let echo = payload + u32_at(file, at + 36);
    let end = echo + u32_at(file, at + 44);
    if end > file.len() {
        seal(file, at + 4, at + 8..dir);
        return None;
    }
    // A directory that makes no sense is mended as far as it does.
    let _ = bodies(file, dir..payload, payload..echo, places);
    seal(file, at + 40, dir..payload);
    echoes(file, echo..end);
    seal(file, at + 4, at + 8..dir);
    places.extend([at + 8..dir, dir..payload, echo..end]);
    Some(end)
}

fn echoes(file: &mut [u8], places: Range<usize>) {
    let mut at = places.start;
    while at + 8 <= places.end {
        let end = (at + 8).saturating_add(u32_at(file, at + 4));
        if end > places.end {
            return;
        }
        seal(file, at, at + 4..end);
        at = end;
    }
}

/// Reads on in a range of a file.
struct Cursor<'a> {
    file: &'a mut [u8],
    at: usize,
    end: usize,
}

impl Cursor<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.file[..self.end].get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn number(&mut self) -> Option<usize> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value as usize);
            }
        }
        None
    }

    fn skip(&mut self, numbers: usize) -> Option<()> {
        (0..numbers).try_for_each(|_| self.number().map(drop))
    }

    fn terms(&mut self) -> Option<()> {
        let count = self.number()?;
        self.skip(1)?;
        (1..count).try_for_each(|_| self.skip(2))
    }

    /// The checksum that is next, of these bytes.
    fn sum(&mut self, of: Option<Range<usize>>) -> Option<()> {
        let at = self.at;
        if at + 4 > self.end {
            return None;
        }
        self.at += 4;
        let of = of.filter(|of| of.start <= of.end && of.end <= self.file.len());
        of.into_iter().for_each(|of| seal(self.file, at, of));
        Some(())
    }
}

/// The bodies of a record's operations.
fn bodies(
    file: &mut [u8],
    dir: Range<usize>,
    payload: Range<usize>,
    places: &mut Vec<Range<usize>>,
) -> Option<()> {
    let mut cursor = Cursor { file, at: dir.start, end: dir.end };
    let mut body = payload.start;
    while cursor.at < cursor.end {
        let has_body = match cursor.byte()? {
            1 => cursor.skip(3).and_then(|()| cursor.terms()).map(|()| true)?,
            7 => cursor.skip(4).and_then(|()| cursor.terms()).map(|()| true)?,
            2 => cursor.skip(1).map(|()| true)?,
            3 | 4 | 6 => cursor.skip(3).map(|()| false)?,
            5 | 8 => cursor.skip(1).map(|()| false)?,
            _ => return None,
        };
        if has_body {
            let end = body.saturating_add(cursor.number()?);
            cursor.sum(Some(body..end).filter(|_| end <= payload.end))?;
            if end > payload.end {
                return None;
            }
            // A run's table is at its beginning.
            places.push(body..end.min(body + 16));
            body = end;
        }
    }
    Some(())
}

fn footer(file: &mut [u8], places: &mut Vec<Range<usize>>) {
    let Some(at) = file.len().checked_sub(TRAILER) else { return };
    if file[at..at + 4] != *b"CTFT" {
        return;
    }
    let (sections, summary) = (u64_at(file, at + 32), u64_at(file, at + 40));
    let end = summary.saturating_add(u32_at(file, at + 48));
    if end <= file.len() {
        let cursor = Cursor { file, at: summary, end };
        let _ = facts(cursor, sections, places);
        seal(file, at + 52, summary..end);
        places.push(summary..end);
    }
    seal(file, at + 4, at + 8..at + TRAILER);
    places.push(at + 8..at + TRAILER);
}

/// The sections that a summary names.
fn facts(mut cursor: Cursor<'_>, sections: usize, places: &mut Vec<Range<usize>>) -> Option<()> {
    let records = cursor.number()?;
    cursor.skip(records)?;
    cursor.skip(1)?;
    for _ in 0..cursor.number()? {
        cursor.skip(1)?;
        let flags = cursor.byte()?;
        cursor.skip(usize::from(flags & 4 > 0))?;
        cursor.skip(if flags & (8 | 16) > 0 { 3 } else { 0 })?;
        if flags & 32 > 0 {
            cursor.skip(2)?;
            cursor.at = cursor.number()?.checked_add(cursor.at)?;
        }
        for _ in 0..cursor.number()? {
            cursor.skip(1)?;
            let is_packed = cursor.number()? & 1 == 1;
            cursor.skip(if is_packed { 1 } else { 2 })?;
            let (rel, len) = (cursor.number()?, cursor.number()?);
            let from = sections.checked_add(rel)?;
            let section = Some(from..from.checked_add(len)?).filter(|_| is_packed);
            let section = section.filter(|section| section.end <= cursor.file.len());
            places.extend(section.clone());
            // Of another run the body lies in a record, and its checksum is the one that stands there.
            cursor.sum(section)?;
            cursor.terms()?;
        }
    }
    Some(())
}
