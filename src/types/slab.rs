//! Values that wait, under keys, with deadlines.

use super::Time;

const INDEX_BITS: u32 = 24;
const GENERATION_BITS: u32 = 34;
/// A key takes so many bits.
pub const KEY_BITS: u32 = INDEX_BITS + GENERATION_BITS;
const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;
const GENERATION_MASK: u64 = (1 << GENERATION_BITS) - 1;

/// The slot of a key's value: a small number, and no other value's as long as that one waits.
pub fn place_of(key: u64) -> usize {
    (key & INDEX_MASK) as usize
}

#[derive(Debug)]
struct Slot<W> {
    generation: u64,
    deadline: Time,
    waiter: Option<W>,
}

/// Values under keys that are cheap to make, look up and forget.
///
/// * A key is never valid for two values: each slot counts its uses, and the key carries the count.
///   It takes 2^34 uses of one slot to repeat a key.
#[derive(Debug)]
pub struct Slab<W> {
    slots: Vec<Slot<W>>,
    free: Vec<u32>,
}

impl<W> Default for Slab<W> {
    fn default() -> Self {
        Slab { slots: Vec::new(), free: Vec::new() }
    }
}

impl<W> Slab<W> {
    /// How many values it holds.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps a value until `deadline`. Gives it back when 2^24 values are waiting already.
    pub fn insert(&mut self, waiter: W, deadline: Time) -> Result<u64, W> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() as u64 > INDEX_MASK => return Err(waiter),
            None => {
                self.slots.push(Slot { generation: 0, deadline, waiter: None });
                self.slots.len() as u32 - 1
            }
        };
        let slot = &mut self.slots[index as usize];
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        slot.deadline = deadline;
        slot.waiter = Some(waiter);
        Ok(slot.generation << INDEX_BITS | u64::from(index))
    }

    /// Takes a value out, if it is still there.
    pub fn take(&mut self, key: u64) -> Option<W> {
        let index = key & INDEX_MASK;
        let slot = self.slots.get_mut(index as usize)?;
        if slot.generation != (key >> INDEX_BITS) & GENERATION_MASK {
            return None;
        }
        let waiter = slot.waiter.take()?;
        self.free.push(index as u32);
        Some(waiter)
    }

    /// Takes out every value whose deadline has passed, or that `also` names.
    pub fn take_where(&mut self, now: Time, also: impl Fn(&W) -> bool, out: &mut Vec<W>) {
        if self.is_empty() {
            return;
        }
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let due = slot.waiter.as_ref().is_some_and(|w| slot.deadline <= now || also(w));
            if due && let Some(waiter) = slot.waiter.take() {
                self.free.push(index as u32);
                out.push(waiter);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_good_once() {
        let mut slab = Slab::default();
        let a = slab.insert("a", Time(5)).unwrap();
        assert_eq!(slab.take(a), Some("a"));
        let b = slab.insert("b", Time(5)).unwrap();
        assert_eq!((slab.take(a), slab.len()), (None, 1), "the slot was reused, the key was not");
        let mut out = Vec::new();
        slab.take_where(Time(4), |_| false, &mut out);
        assert!(out.is_empty());
        slab.take_where(Time(5), |_| false, &mut out);
        assert_eq!((out, slab.take(b), slab.is_empty()), (vec!["b"], None, true));
    }
}
