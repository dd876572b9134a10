//! The trailer: what tells that a segment has a footer, and where.

use crate::log::format::{LAST_SEQ, read_u32, read_u64};

/// Size of the trailer: the last bytes of the file.
pub(in crate::log) const TRAILER: usize = 64;
const TRAILER_MAGIC: u32 = 0x5446_5443;

/// The last bytes of a sealed segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::log) struct Trailer {
    pub(in crate::log) generation: u64,
    pub(in crate::log) base_seq: u64,
    /// The first record of the next segment.
    pub(in crate::log) next_seq: u64,
    /// Where the sections begin; the summary follows them.
    pub(in crate::log) sections_at: u64,
    pub(in crate::log) summary_at: u64,
    pub(in crate::log) summary_len: u32,
    pub(in crate::log) summary_crc: u32,
}

impl Trailer {
    pub(in crate::log) fn encode(&self) -> [u8; TRAILER] {
        let mut out = [0; TRAILER];
        out[0..4].copy_from_slice(&TRAILER_MAGIC.to_le_bytes());
        out[8..16].copy_from_slice(&self.generation.to_le_bytes());
        out[16..24].copy_from_slice(&self.base_seq.to_le_bytes());
        out[24..32].copy_from_slice(&self.next_seq.to_le_bytes());
        out[32..40].copy_from_slice(&self.sections_at.to_le_bytes());
        out[40..48].copy_from_slice(&self.summary_at.to_le_bytes());
        out[48..52].copy_from_slice(&self.summary_len.to_le_bytes());
        out[52..56].copy_from_slice(&self.summary_crc.to_le_bytes());
        let crc = crc32c::crc32c(&out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Bytes of the footer.
    pub(in crate::log) fn bytes(&self) -> u64 {
        let body = self.summary_at - self.sections_at + u64::from(self.summary_len);
        body + TRAILER as u64
    }

    /// The trailer at the end of a file, if that is one of this generation that a log can have written.
    pub(in crate::log) fn decode(bytes: &[u8], generation: u64) -> Option<Trailer> {
        if bytes.len() != TRAILER
            || read_u32(bytes, 0) != TRAILER_MAGIC
            || read_u64(bytes, 8) != generation
            || read_u32(bytes, 4) != crc32c::crc32c(&bytes[8..])
        {
            return None;
        }
        let trailer = Trailer {
            generation,
            base_seq: read_u64(bytes, 16),
            next_seq: read_u64(bytes, 24),
            sections_at: read_u64(bytes, 32),
            summary_at: read_u64(bytes, 40),
            summary_len: read_u32(bytes, 48),
            summary_crc: read_u32(bytes, 52),
        };
        trailer.makes_sense().then_some(trailer)
    }

    /// Whether a log could have written it: places in a segment are 32 bits wide, and no log counts its records so far.
    fn makes_sense(&self) -> bool {
        self.base_seq <= self.next_seq
            && self.next_seq <= LAST_SEQ
            && self.sections_at <= self.summary_at
            && self.summary_at <= u64::from(u32::MAX)
    }
}
