//! The bytes of a file that lives in memory: pages behind reference counts, holes where nothing but
//! zeros was ever written. A copy shares every page until one side writes it, so taking a crash image
//! of a disk full of prefilled segments costs a map, not the bytes. A page holds no more than what was written
//! before the zeros that fill it up: the log pads what it writes to whole blocks.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of one page; also the granule at which an operating system writes dirty memory back.
pub(crate) const PAGE: usize = 4096;

/// The first bytes of a page; behind them it reads as zeros.
type Page = Arc<[u8]>;

/// A file's content.
///
/// - A page that is absent reads as zeros.
/// - No page holds anything but zeros at or above `len`, so that growing again shows zeros.
#[derive(Clone, Default, Debug)]
pub(crate) struct Pages {
    pages: BTreeMap<u64, Page>,
    len: u64,
}

/// Splits a byte range into `(page, offset in the page, bytes)`.
fn spans(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut at = offset;
    let end = offset + len as u64;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let within = (at % PAGE as u64) as usize;
        let take = (PAGE - within).min((end - at) as usize);
        let span = (at / PAGE as u64, within, take);
        at += take as u64;
        Some(span)
    })
}

/// Bytes without the zeros at their end.
fn trimmed(bytes: &[u8]) -> &[u8] {
    let word = |at: usize| bytes[at..at + 16].iter().fold(0, |all, b| all | b);
    let mut len = bytes.len();
    while len >= 16 && word(len - 16) == 0 {
        len -= 16;
    }
    while len > 0 && bytes[len - 1] == 0 {
        len -= 1;
    }
    &bytes[..len]
}

/// Whether a page is as long as before with `written` in it, and no zero is last.
fn keeps_its_end(page: &[u8], within: usize, written: &[u8]) -> bool {
    let end = within + written.len();
    end < page.len() || end == page.len() && written.last() != Some(&0)
}

/// A page in which `written` stands at `within`, before what it held up to there; behind it was nothing, or nothing is left.
fn rewritten(page: &[u8], within: usize, written: &[u8]) -> Page {
    let (head, written) = (&page[..within.min(page.len())], trimmed(written));
    match (head, written) {
        (head, []) => trimmed(head).into(),
        ([], written) if within == 0 => written.into(),
        (head, written) => {
            let mut bytes = Vec::with_capacity(within + written.len());
            bytes.extend_from_slice(head);
            bytes.resize(within, 0);
            bytes.extend_from_slice(written);
            bytes.into()
        }
    }
}

impl Pages {
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Reads up to `buf.len()` bytes; fewer only at the end.
    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) -> usize {
        let there = self.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        let mut done = 0;
        for (page, within, take) in spans(offset, there) {
            let target = &mut buf[done..done + take];
            match self.pages.get(&page) {
                Some(bytes) => {
                    let held = bytes.get(within..).unwrap_or_default();
                    let (there, beyond) = target.split_at_mut(held.len().min(take));
                    there.copy_from_slice(&held[..there.len()]);
                    beyond.fill(0);
                }
                None => target.fill(0),
            }
            done += take;
        }
        there
    }

    /// Writes all of `data`, growing the file as needed.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        let mut done = 0;
        for (page, within, take) in spans(offset, data.len()) {
            let source = &data[done..done + take];
            done += take;
            match self.pages.get_mut(&page) {
                Some(bytes) if keeps_its_end(bytes, within, source) => {
                    Arc::make_mut(bytes)[within..within + take].copy_from_slice(source);
                }
                Some(bytes) if bytes.len() <= within && trimmed(source).is_empty() => {}
                Some(bytes) => *bytes = rewritten(bytes, within, source),
                None if trimmed(source).is_empty() => {}
                None => drop(self.pages.insert(page, rewritten(&[], within, source))),
            }
        }
        if !data.is_empty() {
            self.len = self.len.max(offset + data.len() as u64);
        }
    }

    /// Cuts or extends (with zeros).
    pub(crate) fn set_len(&mut self, len: u64) {
        if len < self.len {
            let keep = len.div_ceil(PAGE as u64);
            self.pages.split_off(&keep);
            let within = (len % PAGE as u64) as usize;
            if within != 0
                && let Some(bytes) = self.pages.get_mut(&(len / PAGE as u64))
                && bytes.len() > within
            {
                *bytes = bytes[..within].into();
            }
        }
        self.len = len;
    }

    /// Flips bits of the byte at `offset`, which must lie inside.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn flip(&mut self, offset: u64, mask: u8) {
        if offset < self.len {
            let mut byte = [0];
            self.read(offset, &mut byte);
            self.write(offset, &[byte[0] ^ mask]);
        }
    }

    /// Takes over the pages that `[offset, offset + len)` touches from `newer`: what a write-back of
    /// those pages does to the platter. Lengths are the caller's business.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn adopt(&mut self, newer: &Pages, offset: u64, len: usize) {
        for (page, _, _) in spans(offset, len) {
            match newer.pages.get(&page) {
                Some(bytes) => drop(self.pages.insert(page, Arc::clone(bytes))),
                None => drop(self.pages.remove(&page)),
            }
        }
    }

    /// Restores the second invariant after [`adopt`](Self::adopt).
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn adopt_len(&mut self, len: u64) {
        if len < self.len {
            self.set_len(len);
        }
        self.len = len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(pages: &Pages) -> Vec<u8> {
        let mut buf = vec![0xaa; pages.len() as usize];
        assert_eq!(pages.read(0, &mut buf), buf.len());
        buf
    }

    #[test]
    fn behaves_like_a_vector() {
        let mut pages = Pages::default();
        let mut model: Vec<u8> = Vec::new();
        let mut x = 7u64;
        for round in 0..400u64 {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let offset = (x >> 40) % 20_000;
            let len = ((x >> 20) % 9_000) as usize;
            if round % 5 == 4 {
                pages.set_len(offset);
                model.resize(offset as usize, 0);
                continue;
            }
            let fill = if round % 3 == 0 { 0 } else { round as u8 };
            pages.write(offset, &vec![fill; len]);
            if len > 0 {
                model.resize(model.len().max(offset as usize + len), 0);
                model[offset as usize..offset as usize + len].fill(fill);
            }
            assert_eq!(all(&pages), model, "round {round}");
        }
    }

    #[test]
    fn copies_are_apart_and_zeros_are_free() {
        let mut a = Pages::default();
        a.write(0, &vec![0; 1 << 20]);
        assert_eq!((a.pages.len(), a.len()), (0, 1 << 20));
        a.write(5000, b"x");
        let b = a.clone();
        a.write(5000, b"y");
        assert_eq!(all(&b)[5000], b'x');
        assert_eq!(all(&a)[5000], b'y');
        a.flip(0, 1);
        assert_eq!(all(&a)[0], 1);
    }

    #[test]
    fn short_read_at_the_end() {
        let mut a = Pages::default();
        a.write(10, b"abc");
        let mut buf = [9; 8];
        assert_eq!(a.read(11, &mut buf), 2);
        assert_eq!(&buf[..2], b"bc");
        assert_eq!(a.read(13, &mut buf), 0);
        assert_eq!(a.read(1 << 50, &mut buf), 0);
    }
}
