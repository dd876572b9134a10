//! Bytes that no checksum covers: the unused rest of a segment's first block, and the padding between
//! groups of records. The writer leaves zeros there. Anything else harms no record, but it was once
//! written and synced as zeros: the disk does not keep what it was given, and that is worth an alarm.

use crate::model::{Model, Standing, name};
use catamaran::log::BLOCK;
use std::os::unix::fs::FileExt;

/// A stretch that should be zeros and is not.
pub struct Smudge {
    pub file: String,
    /// The first byte that is not zero.
    pub offset: u64,
    /// Checksum of as many zeros, from there to the end of the padding.
    pub expected: u32,
    /// Checksum of what is there.
    pub found: u32,
}

/// Where the two copies of a segment's header lie.
const HEADERS: [(u64, u64); 2] = [(0, 64), (2048, 2112)];
/// Where a header says which life of the file it is.
const GENERATION_AT: u64 = 16;

/// Looks at every segment that counts.
pub fn check<T>(model: &Model<T>) -> std::io::Result<Vec<Smudge>> {
    let mut smudges = Vec::new();
    for segment in &model.segments {
        if segment.standing(model.floor) == Standing::Void {
            continue;
        }
        let Ok(file) = std::fs::File::open(&segment.path) else { continue };
        let mut gaps = Vec::new();
        let mut at = 0;
        let records = segment.extents.iter().map(|(offset, len, _)| (*offset, offset + len));
        let block = (BLOCK as u64, BLOCK as u64);
        for (from, to) in HEADERS.into_iter().chain([block]).chain(records) {
            if from > at {
                gaps.push((at, from));
            }
            at = to;
        }
        let mut found = Vec::new();
        for (from, to) in gaps {
            let mut bytes = vec![0; (to - from) as usize];
            if file.read_exact_at(&mut bytes, from).is_err() {
                break;
            }
            if let Some(first) = bytes.iter().position(|byte| *byte != 0) {
                let rest = &bytes[first..];
                found.push(Smudge {
                    file: name(&segment.path),
                    offset: from + first as u64,
                    expected: crc32c::crc32c(&vec![0; rest.len()]),
                    found: crc32c::crc32c(rest),
                });
            }
        }
        // A live log may have recycled the file meanwhile; then its first block says so, for it is
        // written before anything else of the file's next life. (One of the copies may be damaged.)
        let same_life = HEADERS.iter().any(|(at, _)| {
            let mut generation = [0; 8];
            file.read_exact_at(&mut generation, at + GENERATION_AT).is_ok()
                && u64::from_le_bytes(generation) == segment.info.header.generation
        });
        if same_life {
            smudges.append(&mut found);
        }
    }
    Ok(smudges)
}
