//! Fetching ahead: what is looked at next is brought into the processor's cache while something else is done.
//!
//! A store loop visits one replica after the other, thousands of them, and none is in the cache from the visit before: it
//! would wait for one line after the other. Who comes next is known.

/// A line of the cache, in bytes.
const LINE: usize = 64;

/// Asks for the memory of a value, as much of it as lies in itself. It has no effect but on time.
#[inline]
pub(crate) fn fetch<T>(value: &T) {
    let start = std::ptr::from_ref(value).cast::<i8>();
    for at in (0..size_of::<T>()).step_by(LINE) {
        line(start.wrapping_add(at));
    }
    // It need not begin where a line does.
    line(start.wrapping_add(size_of::<T>().saturating_sub(1)));
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline]
fn line(at: *const i8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a prefetch reads nothing that the program could see, and faults on no address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at) }
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
#[inline]
fn line(_: *const i8) {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Under Miri it is nothing; elsewhere it must not touch what it is shown, nor mind what lies behind it.
    #[test]
    fn fetching_changes_nothing() {
        fetch(&());
        let odd = [7u8; 4095];
        fetch(&odd);
        assert_eq!(odd, [7; 4095]);
        let last = vec![1u64; 512];
        last.iter().for_each(fetch);
        assert_eq!(last.iter().sum::<u64>(), 512);
    }
}
