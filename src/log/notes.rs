//! What the writer remembers of the records it wrote: their directories and state records, as they stand on
//! the disk. Out of these a full segment's footer is made, without reading the segment back.
//!
//! They take less than half of what the index holds for the same records, and only for so long: a segment
//! that waits for its footer behind a few newer ones, or whose records are mostly directory, is read
//! back instead ([`Notes::drop_all`]).

use super::batch::Encoded;
use super::footer::Draft;
use super::format::{decode_dir, put, take};

/// Notes of records that follow each other from a segment's first one on.
///
/// - Of one record: lengths of its directory, its payload and its states, directory, states.
/// - `records` counts those of which there is one. If that is not all of the segment, they are of no use.
#[derive(Default, Debug)]
pub(super) struct Notes {
    /// One chunk for each group that was written.
    chunks: Vec<Vec<u8>>,
    records: u64,
    bytes: u64,
}

/// Notes of a segment take this part of it at most.
const SHARE: u64 = 4;

/// Lengths of a note, at most.
const LENGTHS: usize = 15;

/// Bytes that the note of this batch takes at most.
pub(super) fn room(encoded: &Encoded) -> usize {
    encoded.dir.len() + encoded.states.len() + LENGTHS
}

/// Notes down a batch.
pub(super) fn note(out: &mut Vec<u8>, encoded: &Encoded) {
    put(out, encoded.dir.len() as u64);
    put(out, encoded.payload.len() as u64);
    put(out, encoded.states.len() as u64);
    out.extend_from_slice(&encoded.dir);
    out.extend_from_slice(&encoded.states);
}

impl Notes {
    /// Takes the notes of so many records, which are durable now, of a segment of `size` bytes.
    pub fn add(&mut self, records: u64, chunk: Vec<u8>, size: u64) {
        self.records += records;
        self.bytes += chunk.len() as u64;
        self.chunks.push(chunk);
        if self.bytes > size / SHARE {
            self.drop_all();
        }
    }

    /// Forgets them, to give their memory back. What is added later is too little to be of use.
    pub fn drop_all(&mut self) {
        *self = Notes::default();
    }

    /// Takes them out, for a footer.
    pub fn take(&mut self) -> Notes {
        std::mem::take(self)
    }

    /// The segment's records, the first of which is `base`, as a footer tells them. `None` if these are not
    /// notes of all of them.
    pub fn draft(&self, base: u64, payloads: &[u32]) -> Option<Draft> {
        if self.records != payloads.len() as u64 {
            return None;
        }
        let mut draft = Draft::default();
        let mut places = (base..).zip(payloads);
        for chunk in &self.chunks {
            let mut input = &chunk[..];
            while !input.is_empty() {
                let dir_len = usize::try_from(take(&mut input)?).ok()?;
                let payload_len = u32::try_from(take(&mut input)?).ok()?;
                let states_len = usize::try_from(take(&mut input)?).ok()?;
                let (dir, rest) = input.split_at_checked(dir_len)?;
                let (mut states, rest) = rest.split_at_checked(states_len)?;
                input = rest;
                let (seq, payload_at) = places.next()?;
                let ops = decode_dir(dir, payload_len).ok()?;
                draft.take(seq, *payload_at, &ops, |body| {
                    let (state, rest) = states.split_at_checked(body.len as usize)?;
                    states = rest;
                    Some(state)
                })?;
            }
        }
        places.next().is_none().then_some(draft)
    }
}
