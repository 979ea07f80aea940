//! A slice that the threads of one loop write to, each its own part.

use std::marker::PhantomData;

/// A mutable slice lent to all threads of a loop. Who takes a part of it says that nobody else has that part.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    lent: PhantomData<&'a mut [T]>,
}

// SAFETY: it gives out nothing but parts which its users promise to be disjoint; for those, sending a `&mut [T]` to
// another thread is what it comes to, which is sound where T is Send.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Lends the slice.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            lent: PhantomData,
        }
    }

    /// The part `from..from + len`.
    ///
    /// # Safety
    /// As long as the part lives, no other part that overlaps it may live.
    ///
    /// # Panics
    /// Where the part is not within the slice.
    #[allow(clippy::mut_from_ref)] // The caller promises what the borrow checker cannot see.
    pub(crate) unsafe fn part(&self, from: usize, len: usize) -> &mut [T] {
        assert!(
            from <= self.len && len <= self.len - from,
            "{from}+{len} of {}",
            self.len
        );
        // SAFETY: within the slice that was lent for 'a (checked above); the caller promises that it is the only one.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }
}
