//! Runs of entries in the payload of a record, as they are or compressed: who compresses, when, and how
//! far a reader believes what a compressed run says of itself.
//!
//! A run begins with how many entries it has, which is never 0; a 0 there says that what follows is the
//! size of a run and the run itself as an LZ4 block. Checksums, places and sizes everywhere else are of
//! the bytes as stored, so nobody but who looks at entries need know.

use super::Entry;
use super::batch::MAX_PAYLOAD;
use super::format::{encode_run, put, take};
use crate::error::{Error, Result};
use bytes::Bytes;
use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};

/// In place of how many entries there are.
const COMPRESSED: u64 = 0;

/// Of a byte of an LZ4 block come at most so many: what says more of itself is believed by nobody, before
/// any memory is taken for it.
pub(super) const EXPANSION_MAX: u64 = 255;

/// Writes runs, compressed where that pays.
#[derive(Default, Debug)]
pub(super) struct RunWriter {
    above: Option<usize>,
    /// Holds compressed bytes until it is known that they pay; kept from run to run.
    scratch: Vec<u8>,
    /// Bytes of the runs written, before compression.
    pub raw_bytes: u64,
    /// Bytes that compression saved.
    pub saved_bytes: u64,
}

impl RunWriter {
    /// Compresses runs larger than so many bytes.
    pub fn new(above: Option<usize>) -> RunWriter {
        RunWriter { above, ..RunWriter::default() }
    }

    /// Adds a run to `out`. It stays as it is if compression would not save an eighth of it: a reader would
    /// pay for nothing.
    pub fn write(&mut self, out: &mut Vec<u8>, entries: &[Entry]) -> Result<()> {
        let start = out.len();
        encode_run(out, entries);
        let raw = out.len() - start;
        if raw > MAX_PAYLOAD {
            return Err(too_large());
        }
        self.raw_bytes += raw as u64;
        if self.above.is_none_or(|above| raw <= above) {
            return Ok(());
        }
        let room = get_maximum_output_size(raw);
        if self.scratch.len() < room {
            self.scratch.resize(room, 0);
        }
        // It fails for want of room only, and there is enough.
        let Ok(len) = compress_into(&out[start..], &mut self.scratch) else { return Ok(()) };
        if len + HEAD_MAX > raw - raw / 8 {
            return Ok(());
        }
        out.truncate(start);
        put(out, COMPRESSED);
        put(out, raw as u64);
        out.extend_from_slice(&self.scratch[..len]);
        self.saved_bytes += (raw - (out.len() - start)) as u64;
        Ok(())
    }
}

/// A batch, or a run in it, is larger than a record can hold.
pub(super) fn too_large() -> Error {
    Error::InvalidArgument("a log batch is limited to 1 GiB".into())
}

/// Bytes before the block, at most: 0, and a size up to `MAX_PAYLOAD`.
const HEAD_MAX: usize = 6;

fn malformed(what: &str) -> Error {
    Error::malformed("compressed run", what)
}

/// The size of a run that is compressed, and its block.
fn block(body: &[u8]) -> Option<Result<(usize, &[u8])>> {
    let mut input = body;
    if take(&mut input) != Some(COMPRESSED) {
        return None;
    }
    let size = take(&mut input);
    let most = (input.len() as u64).saturating_mul(EXPANSION_MAX).min(MAX_PAYLOAD as u64);
    match size {
        Some(size) if size <= most => Some(Ok((size as usize, input))),
        Some(_) => Some(Err(malformed("size"))),
        None => Some(Err(malformed("head"))),
    }
}

/// The size of a run before compression, as it says itself.
pub(super) fn raw_len(body: &[u8]) -> u64 {
    match block(body) {
        Some(Ok((size, _))) => size as u64,
        _ => body.len() as u64,
    }
}

/// Whether a run is compressed.
pub(super) fn is_compressed(body: &[u8]) -> bool {
    block(body).is_some()
}

/// The run as it was before compression. What it takes in memory is bounded by what an LZ4 block of this
/// size can come to, whatever its bytes say.
pub(super) fn plain(body: Bytes) -> Result<Bytes> {
    let (size, block) = match block(&body) {
        None => return Ok(body),
        Some(block) => block?,
    };
    let mut plain = vec![0; size];
    match decompress_into(block, &mut plain) {
        Ok(len) if len == size => Ok(plain.into()),
        Ok(_) => Err(malformed("size")),
        Err(_) => Err(malformed("block")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::decode_run;
    use super::*;
    use proptest::prelude::*;

    fn entries(count: u64, data: impl Fn(u64) -> Vec<u8>) -> Vec<Entry> {
        let entry = |n| Entry { index: 5 + n, term: 1, kind: n as u8, data: data(n).into() };
        (0..count).map(entry).collect()
    }

    fn stored(above: Option<usize>, entries: &[Entry]) -> (RunWriter, Bytes) {
        let mut writer = RunWriter::new(above);
        let mut out = b"before".to_vec();
        writer.write(&mut out, entries).unwrap();
        assert_eq!(&out[..6], b"before");
        (writer, out.split_off(6).into())
    }

    fn noise(n: u64, len: usize) -> Vec<u8> {
        let mut state = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let next = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..len).map(next).collect()
    }

    #[test]
    fn above_the_bound_and_only_where_it_pays() {
        let even = entries(4, |n| vec![n as u8; 1000]);
        let (writer, plainly) = stored(None, &even);
        assert!(!is_compressed(&plainly));
        assert_eq!((writer.raw_bytes, writer.saved_bytes), (plainly.len() as u64, 0));
        let bound = plainly.len();
        assert_eq!(stored(Some(bound), &even).1, plainly);
        let (writer, small) = stored(Some(bound - 1), &even);
        assert!(is_compressed(&small) && small.len() < bound / 8);
        assert_eq!((writer.raw_bytes, raw_len(&small)), (bound as u64, bound as u64));
        assert_eq!(writer.saved_bytes, (bound - small.len()) as u64);
        // All its entries, in one piece of memory.
        let found = decode_run(&plain(small).unwrap(), 1, 6, 3, |_| 1).unwrap();
        assert_eq!(found, even[1..]);
        let ends = found[0].data.as_ptr_range().end;
        assert_eq!(ends, found[1].data.as_ptr_range().start);

        let noisy = entries(4, |n| noise(n + 1, 1000));
        let (writer, body) = stored(Some(0), &noisy);
        assert!(!is_compressed(&body));
        assert_eq!(writer.saved_bytes, 0);
        assert_eq!(plain(body.clone()).unwrap(), body);
    }

    #[test]
    fn one_that_promises_too_much_is_refused_unread() {
        let (_, small) = stored(Some(0), &entries(1, |_| vec![0; 100_000]));
        let mut input = &small[..];
        take(&mut input).unwrap();
        let size = take(&mut input).unwrap();
        let with = |size: u64, block: &[u8]| {
            let mut body = Vec::new();
            put(&mut body, 0);
            put(&mut body, size);
            body.extend_from_slice(block);
            plain(body.into())
        };
        assert_eq!(with(size, input).unwrap().len() as u64, size);
        for wrong in [0, 1, size - 1, size + 1, 255 * input.len() as u64] {
            assert!(with(wrong, input).is_err(), "{wrong}");
        }
        for wrong in [255 * input.len() as u64 + 1, 1 << 31, u64::MAX] {
            assert!(with(wrong, input).unwrap_err().to_string().contains("size"), "{wrong}");
        }
        assert!(with(size, &input[..input.len() / 2]).is_err());
        assert!(with(10, &[]).is_err());
        assert!(plain(Bytes::from_static(&[0])).is_err());
        // Not one within another.
        let (_, twice) = stored(Some(0), &entries(1, |_| vec![0; 1000]));
        let mut block = vec![0; get_maximum_output_size(twice.len())];
        let len = compress_into(&twice, &mut block).unwrap();
        let inner = with(twice.len() as u64, &block[..len]).unwrap();
        assert!(decode_run(&inner, 0, 5, 1, |_| 1).is_err());
    }

    proptest! {
        #[test]
        fn runs_come_back(above in 0..4000usize, shape in proptest::collection::vec((0..900usize, 0..3u8), 1..12)) {
            let data = |n: u64| {
                let (len, kind) = shape[n as usize];
                if kind == 0 { noise(n + 7, len) } else { vec![kind; len] }
            };
            let all = entries(shape.len() as u64, data);
            let (writer, body) = stored(Some(above), &all);
            prop_assert_eq!(raw_len(&body), writer.raw_bytes);
            prop_assert_eq!(writer.raw_bytes - writer.saved_bytes, body.len() as u64);
            let found = decode_run(&plain(body).unwrap(), 0, 5, all.len() as u32, |_| 1);
            prop_assert_eq!(found.unwrap(), all);
        }

        #[test]
        fn hostile_bytes_are_refused(bytes: Vec<u8>, size in 0..100_000u64) {
            let mut body = vec![0];
            put(&mut body, size);
            body.extend_from_slice(&bytes);
            let _ = plain(bytes.into());
            let _ = plain(body.into());
        }
    }
}
