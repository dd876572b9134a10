//! What each key must hold: values that can be computed again, and the versions that were acknowledged.
//!
//! A value is a function of (seed, client, slot, version). So a read-back needs no copy of the data: it
//! computes what must be there and compares every byte.

use crate::keys::mix;
use std::collections::HashMap;

/// Writes the value of a slot's version to the end of `out`. Of 16 bytes and more, the first twelve
/// spell client, slot and version, so that a wrong value can be explained.
pub fn value(seed: u64, client: u32, slot: u32, version: u32, size: usize, out: &mut Vec<u8>) {
    let end = out.len() + size;
    if size >= 16 {
        out.extend_from_slice(&client.to_be_bytes());
        out.extend_from_slice(&slot.to_be_bytes());
        out.extend_from_slice(&version.to_be_bytes());
    }
    let mut state = mix(seed ^ mix(u64::from(client) << 32 | u64::from(slot)) ^ u64::from(version));
    while out.len() < end {
        state = mix(state);
        let room = (end - out.len()).min(8);
        out.extend_from_slice(&state.to_le_bytes()[..room]);
    }
}

/// What a read-back found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finding {
    /// What must be there.
    Right,
    /// Nothing, though a write was acknowledged.
    Missing,
    /// Something else: an older version, another key's value, damage, a write that was refused.
    Wrong,
}

/// The versions of one client's slots.
///
/// * `issued` counts the writes of a slot that were acknowledged or are outstanding.
/// * A slot whose last write has an unknown outcome is in `doubt`, with the last acknowledged version.
///   It is never written again: such a write may take effect at any later time, and would then be
///   hard to tell from a lost update. So at the end it must hold exactly one of two versions.
#[derive(Debug)]
pub struct Ledger {
    issued: Vec<u32>,
    doubt: HashMap<u32, u32>,
}

impl Ledger {
    /// For this many slots. Untouched pages cost no memory.
    pub fn new(slots: u32) -> Ledger {
        Ledger { issued: vec![0; slots as usize], doubt: HashMap::new() }
    }

    /// Whether a slot may be written.
    pub fn may_write(&self, slot: u32) -> bool {
        self.doubt.is_empty() || !self.doubt.contains_key(&slot)
    }

    /// The version of the last write.
    pub fn issued(&self, slot: u32) -> u32 {
        self.issued[slot as usize]
    }

    /// The version of a new write.
    pub fn issue(&mut self, slot: u32) -> u32 {
        let version = &mut self.issued[slot as usize];
        *version += 1;
        *version
    }

    /// The request was refused and has not taken effect.
    pub fn refused(&mut self, slots: &[u32]) {
        for &slot in slots {
            self.issued[slot as usize] -= 1;
        }
    }

    /// The request may have taken effect, or may still.
    pub fn unknown(&mut self, slots: &[u32]) {
        for &slot in slots {
            *self.doubt.entry(slot).or_insert(self.issued[slot as usize]) -= 1;
        }
    }

    /// Whether anything was written to the slot.
    pub fn touched(&self, slot: u32) -> bool {
        self.issued[slot as usize] > 0
    }

    /// The acknowledged version, and the one that may have replaced it.
    fn allowed(&self, slot: u32) -> (u32, Option<u32>) {
        let issued = self.issued[slot as usize];
        match self.doubt.get(&slot) {
            Some(&acked) => (acked, Some(issued)),
            None => (issued, None),
        }
    }

    /// Whether an acknowledged write makes the slot's key exist.
    pub fn must_exist(&self, slot: u32) -> bool {
        self.allowed(slot).0 > 0
    }

    /// Judges what a key holds. `size` is that of a value, `scratch` is used for computing it.
    pub fn judge(
        &self,
        seed: u64,
        client: u32,
        slot: u32,
        found: Option<&[u8]>,
        size: usize,
        scratch: &mut Vec<u8>,
    ) -> Finding {
        let (acked, maybe) = self.allowed(slot);
        let Some(found) = found else {
            return if acked == 0 { Finding::Right } else { Finding::Missing };
        };
        for version in [Some(acked), maybe].into_iter().flatten().filter(|&v| v > 0) {
            scratch.clear();
            value(seed, client, slot, version, size, scratch);
            if scratch == found {
                return Finding::Right;
            }
        }
        Finding::Wrong
    }

    /// Explains a finding in words.
    pub fn explain(&self, client: u32, slot: u32, found: Option<&[u8]>) -> String {
        let (acked, maybe) = self.allowed(slot);
        let expected = match maybe {
            Some(version) => format!("version {acked} or {version}"),
            None => format!("version {acked}"),
        };
        let found = match found {
            None => "nothing".to_owned(),
            Some(found) => {
                let word = |at: usize| {
                    found.get(at..at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
                };
                match (word(0), word(4), word(8)) {
                    (Some(c), Some(s), Some(v)) if found.len() >= 16 => {
                        format!("{} bytes that say client {c}, slot {s}, version {v}", found.len())
                    }
                    _ => format!("{} bytes: {found:02x?}", found.len()),
                }
            }
        };
        format!("client {client}, slot {slot}: expected {expected}, found {found}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(version: u32, size: usize) -> Vec<u8> {
        let mut out = Vec::new();
        value(9, 3, 5, version, size, &mut out);
        out
    }

    #[test]
    fn values_have_their_size_and_differ() {
        for size in [1, 7, 8, 15, 16, 64, 1000] {
            assert_eq!(bytes(1, size).len(), size);
            assert_eq!(bytes(1, size), bytes(1, size));
        }
        assert_ne!(bytes(1, 8), bytes(2, 8));
        assert_ne!(bytes(1, 64)[12..], bytes(2, 64)[12..]);
    }

    #[test]
    fn only_what_was_acknowledged_or_may_have_been_is_right() {
        let mut ledger = Ledger::new(10);
        let mut scratch = Vec::new();
        let mut judge =
            |ledger: &Ledger, found: Option<&[u8]>| ledger.judge(9, 3, 5, found, 64, &mut scratch);
        assert_eq!(judge(&ledger, None), Finding::Right, "never written");
        assert_eq!((ledger.issue(5), ledger.issue(5)), (1, 2));
        assert_eq!(judge(&ledger, Some(&bytes(2, 64))), Finding::Right);
        assert_eq!(judge(&ledger, Some(&bytes(1, 64))), Finding::Wrong, "a lost update");
        assert_eq!(judge(&ledger, None), Finding::Missing);

        ledger.issue(5);
        ledger.refused(&[5]);
        assert_eq!(judge(&ledger, Some(&bytes(3, 64))), Finding::Wrong, "it was refused");

        // A batch that held the slot twice: both or neither.
        ledger.issue(5);
        ledger.issue(5);
        ledger.unknown(&[5, 5]);
        assert_eq!(judge(&ledger, Some(&bytes(2, 64))), Finding::Right);
        assert_eq!(judge(&ledger, Some(&bytes(3, 64))), Finding::Wrong, "half a batch");
        assert_eq!(judge(&ledger, Some(&bytes(4, 64))), Finding::Right);
        assert_eq!(judge(&ledger, None), Finding::Missing);
        assert!(!ledger.may_write(5) && ledger.may_write(4));

        let mut torn = bytes(4, 64);
        torn[40] ^= 1;
        assert_eq!(judge(&ledger, Some(&torn)), Finding::Wrong);
        assert!(ledger.explain(3, 5, Some(&torn)).contains("version 2 or 4"));
    }
}
