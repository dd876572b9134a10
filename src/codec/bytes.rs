//! A bounded little-endian cursor pair: [`Writer`] appends to a `Vec<u8>`, [`Reader`] takes apart a
//! `Bytes` without copying. Fixed integers are little-endian; varints are LEB128 in their shortest
//! form, so that one value has one encoding.

use crate::error::{Error, Result};
use ::bytes::Bytes;

/// The longest varint: 10 bytes hold 64 bits.
pub const MAX_VARINT_LEN: usize = 10;

/// Appends to a buffer that the caller owns and recycles.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Writer<'a> {
    /// Appends behind what `out` already holds.
    pub fn new(out: &'a mut Vec<u8>) -> Writer<'a> {
        Writer { out }
    }

    /// Bytes in the buffer, those from before included.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether the buffer holds nothing.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.out.push(value);
    }

    /// Two bytes.
    pub fn u16(&mut self, value: u16) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    /// One to ten bytes, small values short.
    pub fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.out.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.out.push(value as u8);
    }

    /// A signed varint: zigzag, so that small negative values stay short.
    pub fn zigzag(&mut self, value: i64) {
        self.varint(((value << 1) ^ (value >> 63)) as u64);
    }

    /// Bytes as they are; the reader must know how many.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// A varint length, then the bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.varint(bytes.len() as u64);
        self.raw(bytes);
    }
}

/// How many bytes [`Writer::varint`] takes for `value`.
pub fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Takes a frame apart from front to back.
///
/// * Never reads beyond the frame and never panics: what does not fit is
///   [`Malformed`](crate::Error::Malformed), with the offset.
/// * Slices handed out share the frame's memory (no copy); they keep it alive.
/// * Nothing is allocated from a length that the frame claims.
#[derive(Debug, Clone)]
pub struct Reader {
    what: &'static str,
    frame: Bytes,
    at: usize,
}

impl Reader {
    /// Reads `frame` from its start; `what` names it in errors.
    pub fn new(what: &'static str, frame: Bytes) -> Reader {
        Reader { what, frame, at: 0 }
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.frame.len() - self.at
    }

    /// Bytes read so far.
    pub fn offset(&self) -> usize {
        self.at
    }

    /// The error for what was found here.
    #[cold]
    pub fn malformed(&self, detail: impl std::fmt::Display) -> Error {
        Error::malformed(
            self.what,
            format!("{detail} (at byte {} of {})", self.at, self.frame.len()),
        )
    }

    /// The next `len` bytes, borrowed.
    #[inline]
    pub fn raw(&mut self, len: usize) -> Result<&[u8]> {
        if len > self.remaining() {
            return Err(self.malformed(format_args!(
                "{len} bytes wanted, {} left",
                self.frame.len() - self.at
            )));
        }
        let from = self.at;
        self.at += len;
        Ok(&self.frame[from..from + len])
    }

    /// The next `len` bytes, sharing the frame's memory.
    #[inline]
    pub fn slice(&mut self, len: usize) -> Result<Bytes> {
        let from = self.at;
        self.raw(len)?;
        Ok(self.frame.slice(from..from + len))
    }

    /// All that is left, sharing the frame's memory.
    pub fn rest(&mut self) -> Bytes {
        let from = self.at;
        self.at = self.frame.len();
        self.frame.slice(from..)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.raw(N)?);
        Ok(out)
    }

    /// One byte.
    #[inline]
    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.raw(1)?[0])
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A varint. One that is longer than need be, or beyond 64 bits, is refused.
    #[inline]
    pub fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        let rest = &self.frame[self.at..];
        for (i, &byte) in rest.iter().take(MAX_VARINT_LEN).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                if i > 0 && byte == 0 {
                    return Err(self.malformed("a varint longer than need be"));
                }
                if i == MAX_VARINT_LEN - 1 && byte > 1 {
                    return Err(self.malformed("a varint beyond 64 bits"));
                }
                self.at += i + 1;
                return Ok(value);
            }
        }
        Err(self.malformed(if rest.len() < MAX_VARINT_LEN {
            "a varint cut short"
        } else {
            "a varint beyond 64 bits"
        }))
    }

    /// A signed varint.
    pub fn zigzag(&mut self) -> Result<i64> {
        let raw = self.varint()?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    /// A varint length of at most `cap`, then that many bytes, sharing the frame's memory.
    #[inline]
    pub fn bytes(&mut self, cap: usize) -> Result<Bytes> {
        let len = self.varint()?;
        if len > cap as u64 {
            return Err(self.malformed(format_args!("length {len} above the cap of {cap}")));
        }
        self.slice(len as usize)
    }

    /// A varint length of at most `cap`, then UTF-8 text.
    pub fn text(&mut self, cap: usize) -> Result<String> {
        let bytes = self.bytes(cap)?;
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.malformed("text that is not UTF-8")),
        }
    }

    /// A varint count of things that take at least `least` bytes each: refused above `cap` or when
    /// what is left cannot hold that many, so it may be used to reserve memory.
    pub fn count(&mut self, least: usize, cap: usize) -> Result<usize> {
        let count = self.varint()?;
        let room = self.remaining() / least.max(1);
        if count > cap.min(room) as u64 {
            return Err(self.malformed(format_args!(
                "count {count} above {} (room for {room}, cap {cap})",
                cap.min(room)
            )));
        }
        Ok(count as usize)
    }

    /// The end: anything left over is refused.
    pub fn finish(self) -> Result<()> {
        match self.remaining() {
            0 => Ok(()),
            left => Err(self.malformed(format_args!("{left} bytes left over"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8]) -> Reader {
        Reader::new("test", Bytes::copy_from_slice(bytes))
    }

    #[test]
    fn varints_are_short_and_only_the_shortest_form_is_taken() {
        for (value, len) in [(0, 1), (127, 1), (128, 2), (16_383, 2), (16_384, 3), (u64::MAX, 10)] {
            let mut out = Vec::new();
            Writer::new(&mut out).varint(value);
            assert_eq!((out.len(), varint_len(value)), (len, len), "{value}");
            assert_eq!(read(&out).varint().unwrap(), value);
        }
        assert!(read(&[0x80, 0x00]).varint().is_err(), "zero in two bytes");
        assert!(read(&[0x80]).varint().is_err(), "cut short");
        assert!(read(&[0xff; 10]).varint().is_err(), "no end");
        let mut big = [0xff; 10];
        big[9] = 2;
        assert!(read(&big).varint().is_err(), "bit 64");
    }

    #[test]
    fn lengths_and_counts_are_checked_before_use() {
        let mut out = Vec::new();
        Writer::new(&mut out).varint(u64::MAX);
        assert!(read(&out).bytes(usize::MAX).is_err());
        assert!(read(&out).count(1, usize::MAX).is_err());
        assert!(read(&[5, 1, 2, 3, 4, 5]).bytes(4).is_err(), "above the cap");
        assert_eq!(read(&[2, 1, 2]).count(1, 10).unwrap(), 2);
        assert!(read(&[2, 1, 2]).count(2, 10).is_err(), "two of two bytes do not fit");
        assert!(read(&[1]).finish().is_err());
        assert!(read(&[2, 0xff, 0xff]).text(9).is_err());
    }

    proptest! {
        #[test]
        fn integers_and_bytes_round_trip(a: u64, b: i64, c: u32, d: u16, e: Vec<u8>) {
            let mut out = Vec::new();
            let mut w = Writer::new(&mut out);
            w.varint(a);
            w.zigzag(b);
            w.u32(c);
            w.u16(d);
            w.bytes(&e);
            w.u64(a);
            let mut r = read(&out);
            prop_assert_eq!(r.varint().unwrap(), a);
            prop_assert_eq!(r.zigzag().unwrap(), b);
            prop_assert_eq!(r.u32().unwrap(), c);
            prop_assert_eq!(r.u16().unwrap(), d);
            prop_assert_eq!(&r.bytes(e.len()).unwrap()[..], &e[..]);
            prop_assert_eq!(r.u64().unwrap(), a);
            prop_assert!(r.finish().is_ok());
        }

        #[test]
        fn no_input_panics(bytes: Vec<u8>, steps: Vec<u8>) {
            let mut r = read(&bytes);
            for step in steps {
                match step % 8 {
                    0 => { let _ = r.varint(); }
                    1 => { let _ = r.bytes(16); }
                    2 => { let _ = r.count(2, 100); }
                    3 => { let _ = r.u64(); }
                    4 => { let _ = r.text(9); }
                    5 => { let _ = r.zigzag(); }
                    6 => { let _ = r.slice(step as usize); }
                    _ => { let _ = r.u16(); }
                }
                prop_assert!(r.offset() <= bytes.len());
            }
        }
    }
}
