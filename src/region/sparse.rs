//! [`Sparse`]: what a replica has only while something goes on. As long as there is nothing it costs a pointer; of ten
//! thousand replicas nearly all sleep.

use std::ops::{Deref, DerefMut};

/// A value that is mostly empty.
pub(crate) trait Empty: Default + 'static {
    /// The empty one, for whoever only looks.
    fn empty() -> &'static Self;

    /// Whether nothing would be lost with it.
    fn is_empty(&self) -> bool;
}

/// A value behind a pointer that is not there as long as nobody has put anything in.
///
/// * Looking allocates nothing; changing does, and what was allocated stays until [`free`](Self::free).
#[derive(Debug)]
pub(crate) struct Sparse<T>(Option<Box<T>>);

impl<T> Default for Sparse<T> {
    fn default() -> Sparse<T> {
        Sparse(None)
    }
}

impl<T: Empty> Sparse<T> {
    /// Gives the memory back, if nothing would be lost.
    pub fn free(&mut self) {
        self.0.take_if(|value| value.is_empty());
    }
}

impl<T: Empty> Deref for Sparse<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.0 {
            Some(value) => value,
            None => T::empty(),
        }
    }
}

impl<T: Empty> DerefMut for Sparse<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Empty for Vec<u8> {
        fn empty() -> &'static Vec<u8> {
            static EMPTY: Vec<u8> = Vec::new();
            &EMPTY
        }

        fn is_empty(&self) -> bool {
            self[..].is_empty()
        }
    }

    #[test]
    fn what_is_empty_is_given_back_and_nothing_else() {
        let mut sparse = Sparse::<Vec<u8>>::default();
        assert_eq!(sparse[..], [0u8; 0]);
        assert!(sparse.0.is_none(), "nobody put anything in");
        sparse.push(7);
        sparse.free();
        assert_eq!(sparse[..], [7]);
        sparse.clear();
        assert!(sparse.0.is_some());
        sparse.free();
        assert!(sparse.0.is_none());
    }
}
