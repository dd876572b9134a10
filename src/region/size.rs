//! Size: how large a region is, and where to cut one that has grown too large.
//!
//! Nobody counts keys as they are written: overwrites and deletes would have to be looked up. The leader counts the
//! bytes it applies. What was measured last and what was written since bound the size from above: once the bound
//! passes [`split_bytes`](StoreConfig::split_bytes), the region is measured, which reads it once from a view, off
//! the loop ([`measure`]). (A leader that has never measured its region does so after a quarter of that. Whoever is not written
//! to so much is measured in its turn, see `store::sizes`.) What has
//! grown too large is cut into pieces of half that size; the ids come from the cluster's counter, so the wish
//! goes out as an effect.
//!
//! **Push-back.** A region that takes writes faster than it is measured and cut refuses them once it is
//! four times too large, until it is cut; each refusal sees to it that it is being measured. One that cannot be cut (a
//! single key) is left in peace.

use super::config::StoreConfig;
use super::effects::{Effects, Excess, SizeCheck, SplitWish};
use super::peer::Peer;
use crate::error::Result;
use crate::kv::{Direction, View};
use crate::types::{Epoch, KeyRange, PeerId, RegionId};
use bytes::Bytes;

/// From so many times the size at which it is cut on, a region takes no writes.
const FAR_ABOVE: u64 = 4;
/// A region of unknown size is measured after it has taken this part of that size.
const FIRST_AFTER: u64 = 4;
/// Pieces of one cut, at most: the rest is cut at the next measurement.
const PIECES_MAX: usize = 64;

/// What a replica knows of its region's size. Kept by leaders.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Size {
    /// As last measured.
    measured: u64,
    /// Bytes applied since.
    written: u64,
    state: State,
    /// It waits in its loop's list for a measurement.
    listed: bool,
    /// Measurements in this shape after which it was still in want of one.
    vain: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum State {
    /// Never measured here.
    #[default]
    Unknown,
    Known,
    /// Somebody is measuring.
    Asked,
    /// It is too large and has no key to be cut at.
    Whole,
}

impl Size {
    /// Of a region that has never held anything.
    pub fn nothing() -> Size {
        Size { state: State::Known, ..Size::default() }
    }

    fn is_due(&self, split_bytes: u64) -> bool {
        match self.state {
            State::Unknown => self.written >= split_bytes / FIRST_AFTER,
            State::Known => self.measured + self.written > split_bytes,
            State::Whole => self.written > split_bytes,
            State::Asked => false,
        }
    }

    /// Whether it is to be measured though nothing is written: nobody knows how large it is, or it is known to be too
    /// large and has not been cut.
    fn is_wanted(&self, split_bytes: u64) -> bool {
        match self.state {
            State::Unknown => true,
            State::Known => self.is_due(split_bytes),
            State::Whole | State::Asked => false,
        }
    }
}

/// The answer to a [`SizeCheck`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Measured {
    /// The region.
    pub region: RegionId,
    /// The replica that asked.
    pub peer: PeerId,
    /// The shape that was measured.
    pub epoch: Epoch,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Where to cut it, if it is too large.
    pub keys: Vec<Bytes>,
}

/// Adds up a range; finds the keys that cut it into pieces of half of `split_bytes`, if it holds more than that.
pub fn measure(view: &dyn View, range: &KeyRange, split_bytes: u64) -> Result<(u64, Vec<Bytes>)> {
    let piece = (split_bytes / 2).max(1);
    let (mut bytes, mut in_piece) = (0, 0);
    let mut keys = Vec::new();
    for item in view.scan(range, Direction::Forward)? {
        let (key, value) = item?;
        if in_piece >= piece && key > range.start {
            keys.push(key.clone());
            in_piece = 0;
        }
        let weight = (key.len() + value.len()) as u64;
        bytes += weight;
        in_piece += weight;
    }
    if bytes <= split_bytes {
        keys.clear();
    } else if in_piece < piece / 2 && keys.len() > 1 {
        // No crumb at the end.
        keys.pop();
    }
    keys.truncate(PIECES_MAX - 1);
    Ok((bytes, keys))
}

/// Adds up a range, unless it holds more than `most` bytes: then it stops there, and gives `None`.
pub fn measure_up_to(view: &dyn View, range: &KeyRange, most: u64) -> Result<Option<u64>> {
    let mut bytes = 0;
    for item in view.scan(range, Direction::Forward)? {
        let (key, value) = item?;
        bytes += (key.len() + value.len()) as u64;
        if bytes > most {
            return Ok(None);
        }
    }
    Ok(Some(bytes))
}

impl Peer {
    /// Entries of so many bytes were applied: asks for a measurement when it is time.
    pub(crate) fn grown(&mut self, config: &StoreConfig, bytes: usize, effects: &mut Effects) {
        self.size.written += bytes as u64;
        self.load.applied(bytes);
        if config.split_bytes > 0 && self.size.is_due(config.split_bytes) && self.group.leads() {
            self.ask_size(config, effects);
        }
    }

    /// A write was refused because the region is far too large. Nothing is applied until it is cut, so nothing
    /// else would ask again, should the last measurement or the wish that came of it have been in vain. (Found
    /// by seed 2695 of the simulator's regions: a cut refused for a follower that was behind, and no write ever
    /// after.)
    pub(crate) fn refused_for_size(&mut self, config: &StoreConfig, effects: &mut Effects) {
        if self.size.state != State::Asked {
            self.ask_size(config, effects);
        }
    }

    /// Whether it is in want of a measurement and not listed for it: then it is from now on. Gives how many were
    /// in vain.
    pub(crate) fn list_for_size(&mut self, config: &StoreConfig) -> Option<u32> {
        let wanted = !self.size.listed && self.is_to_be_measured(config);
        self.size.listed |= wanted;
        wanted.then_some(self.size.vain.into())
    }

    /// Its turn in the list has come. `false`: it is in no want any more.
    pub(crate) fn measure_now(&mut self, config: &StoreConfig, effects: &mut Effects) -> bool {
        self.size.listed = false;
        let wanted = self.is_to_be_measured(config);
        if wanted {
            self.ask_size(config, effects);
        }
        wanted
    }

    fn is_to_be_measured(&self, config: &StoreConfig) -> bool {
        config.split_bytes > 0
            && self.size.is_wanted(config.split_bytes)
            && self.merging.is_none()
            && self.runs()
            && self.group.leads()
    }

    /// Whether somebody measures it.
    pub(crate) fn is_being_measured(&self) -> bool {
        self.size.state == State::Asked
    }

    fn ask_size(&mut self, config: &StoreConfig, effects: &mut Effects) {
        self.size.state = State::Asked;
        self.size.vain = self.size.vain.saturating_add(1);
        effects.size_checks.push(SizeCheck {
            region: self.region.id,
            peer: self.id,
            epoch: self.region.epoch,
            range: self.region.range.clone(),
            split_bytes: config.split_bytes,
        });
    }

    /// The region was measured: if it is too large, it is to be cut.
    pub(crate) fn measured(&mut self, config: &StoreConfig, done: Measured, effects: &mut Effects) {
        if done.peer != self.id {
            return;
        }
        if done.epoch != self.region.epoch {
            return self.not_measured();
        }
        self.size.state = State::Known;
        self.size.measured = done.bytes;
        self.size.written = 0;
        self.share.set_bytes(self.bytes_so_far());
        if done.keys.is_empty() {
            self.size.vain = 0;
            if done.bytes > config.split_bytes {
                self.size.state = State::Whole;
            }
        } else if self.merging.is_some() {
            // It cannot be cut before it is thawed, and must not keep whoever is to merge it busy.
            self.size.state = State::Unknown;
        } else if self.group.leads() {
            let (region, keys) = (self.region.id, done.keys);
            effects.split_wishes.push(SplitWish { region, keys, why: Excess::Size });
        }
    }

    /// Nobody measured: it is asked for again.
    pub(crate) fn not_measured(&mut self) {
        if self.size.state == State::Asked {
            self.size.state = State::Unknown;
        }
    }

    /// Whether the region is so far above its size that it takes no writes until it is cut.
    pub(crate) fn is_far_too_large(&self, config: &StoreConfig) -> bool {
        let bytes = self.size.measured + self.size.written;
        config.split_bytes > 0
            && self.size.state != State::Whole
            && bytes > config.split_bytes.saturating_mul(FAR_ABOVE)
    }

    /// Another shape: another size, which nobody knows yet.
    pub(crate) fn forget_size(&mut self) {
        self.size = Size::default();
    }

    /// Bytes of keys and values as last measured, and what was written since.
    pub(crate) fn bytes_so_far(&self) -> u64 {
        self.size.measured + self.size.written
    }

    /// Bytes of keys and values, about; 0 until it was measured for the first time.
    pub(crate) fn about_bytes(&self) -> u64 {
        self.size.measured
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{MemoryStore, StateStore, WriteBatch};

    fn keys_of(items: &[(&'static str, usize)], split_bytes: u64) -> (u64, Vec<Bytes>) {
        let store = MemoryStore::new().unwrap();
        let mut batch = WriteBatch::new();
        for (key, len) in items {
            batch.put(Bytes::from_static(key.as_bytes()), vec![0; *len].into());
        }
        store.write(batch).unwrap();
        measure(&*store.view().unwrap(), &KeyRange::new("a", "z"), split_bytes).unwrap()
    }

    #[test]
    fn pieces_are_half_as_large_and_leave_no_crumb() {
        let even: Vec<_> = ["b", "c", "d", "e", "f", "g"].map(|key| (key, 99)).to_vec();
        assert_eq!(keys_of(&even, 600), (600, vec![]), "not above it");
        assert_eq!(keys_of(&even, 400), (600, vec!["d".into(), "f".into()]));
        assert_eq!(keys_of(&even, 500).1, ["e"], "three and three");
        let crumb = [("b", 299), ("c", 299), ("d", 9)];
        assert_eq!(keys_of(&crumb, 500).1, ["c"]);
        assert_eq!(keys_of(&[("b", 9999)], 500), (10_000, vec![]), "a single key");
        assert_eq!(keys_of(&[("a", 9999), ("b", 9999)], 500).1, ["b"]);
        assert_eq!(keys_of(&[], 500), (0, vec![]));
    }

    #[test]
    fn what_is_small_is_added_up_and_no_more_is_read() {
        let store = MemoryStore::new().unwrap();
        let mut batch = WriteBatch::new();
        for key in ["b", "c", "d", "z"] {
            batch.put(Bytes::from_static(key.as_bytes()), vec![0; 99].into());
        }
        store.write(batch).unwrap();
        let view = store.view().unwrap();
        let up_to = |most| measure_up_to(&*view, &KeyRange::new("a", "z"), most).unwrap();
        assert_eq!((up_to(300), up_to(299), up_to(0)), (Some(300), None, None));
        assert_eq!(measure_up_to(&*view, &KeyRange::new("x", "y"), 0).unwrap(), Some(0));
    }
}
