//! The heartbeat of a node pair: one small message per pair and interval, whatever number of groups they share.
//!
//! ```text
//! 0      version of this layout, 1
//! 1      flags: bit 0: sums follow; bit 1: sender and receiver share a region
//! 2..10  life of the sender
//! 10..18 life of the receiver that the sender supports; 0: none
//! 18..22 how long the support lasts, in milliseconds
//! ..     support epoch, varint
//! ..     chunks to rouse, 8 bytes, one bit for each
//! ..     if bit 0: 64 sums of 8 bytes
//! ```
//!
//! All little-endian. A reader takes what it knows of a later version and leaves the rest: whoever adds a field
//! adds it at the end. What is shorter than its version, or has unknown flags in version 1, is refused.

use super::{Reader, Writer};
use crate::error::Result;
use bytes::Bytes;

/// Groups are summed up in so many chunks, by region id.
pub const CHUNKS: usize = 64;

/// Sums over the sleeping groups of a node pair, by chunk.
pub type Sums = [u64; CHUNKS];

const VERSION: u8 = 1;
const WITH_SUMS: u8 = 1;
const SHARES: u8 = 2;

/// What one node tells another at every interval.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Beat {
    /// Grows with every beat of the sender's life: of two, the later one counts.
    pub number: u64,
    /// Drawn anew at each start of the sender.
    pub life: u64,
    /// The receiver's life that the sender supports; 0: none.
    pub hears: u64,
    /// How long it does from now on, by its clock, if it hears nothing more.
    pub support_ms: u32,
    /// How often the sender has withdrawn its support from the receiver.
    pub epoch: u64,
    /// Chunks whose groups, as far as the two nodes share them, must not sleep on.
    pub rouse: u64,
    /// Whether some region has, as far as the sender knows, a replica at both ends: the receiver's may not be there
    /// yet.
    pub shares: bool,
    /// Now and then: of each chunk, the groups that sleep at the sender under leaders at the receiver.
    pub sums: Option<Box<Sums>>,
}

/// Writes everything but the number, which stands before it in the frame.
pub fn encode(beat: &Beat) -> Bytes {
    let mut bytes = Vec::with_capacity(if beat.sums.is_some() { 48 + 8 * CHUNKS } else { 48 });
    let mut out = Writer::new(&mut bytes);
    out.u8(VERSION);
    let sums = if beat.sums.is_some() { WITH_SUMS } else { 0 };
    out.u8(sums | if beat.shares { SHARES } else { 0 });
    out.u64(beat.life);
    out.u64(beat.hears);
    out.u32(beat.support_ms);
    out.varint(beat.epoch);
    out.u64(beat.rouse);
    for sum in beat.sums.iter().flat_map(|sums| sums.iter()) {
        out.u64(*sum);
    }
    Bytes::from(bytes)
}

/// Reads what [`encode`] wrote, in this version or a later one.
pub fn decode(number: u64, bytes: Bytes) -> Result<Beat> {
    let mut from = Reader::new("beat", bytes);
    let version = from.u8()?;
    if version == 0 {
        return Err(from.malformed("version 0"));
    }
    let flags = from.u8()?;
    if version == VERSION && flags > WITH_SUMS | SHARES {
        return Err(from.malformed(format_args!("flags {flags:#04x}")));
    }
    let mut beat = Beat {
        number,
        life: from.u64()?,
        hears: from.u64()?,
        support_ms: from.u32()?,
        epoch: from.varint()?,
        rouse: from.u64()?,
        shares: flags & SHARES != 0,
        sums: None,
    };
    if flags & WITH_SUMS != 0 {
        let mut sums = Box::new([0; CHUNKS]);
        for sum in sums.iter_mut() {
            *sum = from.u64()?;
        }
        beat.sums = Some(sums);
    }
    if version == VERSION {
        from.finish()?;
    }
    Ok(beat)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn beat(sums: Option<Box<Sums>>) -> Beat {
        let (hears, support_ms, shares) = (9, 600, sums.is_some());
        Beat { number: 7, life: 1 << 60, hears, support_ms, epoch: 300, rouse: 5, shares, sums }
    }

    #[test]
    fn beats_read_back_and_cut_ones_do_not() {
        for beat in [beat(None), beat(Some(Box::new([u64::MAX; CHUNKS])))] {
            let bytes = encode(&beat);
            assert_eq!(decode(7, bytes.clone()).unwrap(), beat);
            for cut in 0..bytes.len() {
                assert!(decode(7, bytes.slice(..cut)).is_err(), "{cut}");
            }
            let longer: Bytes = [&bytes[..], &[0]].concat().into();
            assert!(decode(7, longer).is_err());
        }
    }

    #[test]
    fn a_later_version_may_say_more() {
        let mut bytes = encode(&beat(None)).to_vec();
        bytes[0] = 2;
        bytes[1] = 0x80;
        bytes.extend_from_slice(b"news");
        assert_eq!(decode(7, bytes.into()).unwrap(), beat(None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = decode(1, Bytes::from(bytes));
        }
    }
}
