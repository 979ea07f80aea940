//! Large pieces of zeroed memory.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use super::Line;

/// The size of a huge page.
const HUGE: usize = 2 << 20;

/// There is not so much memory to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes of memory cannot be had")]
pub(crate) struct NoMemory {
    /// How much was wanted; the most that can be written where it is more.
    pub bytes: usize,
}

/// Lines that are zero at first, and become memory only when they are written. Large ones ask for huge pages: weights
/// and caches are read from end to end, and small pages cost a tenth of the memory's speed.
#[derive(Debug)]
pub(crate) struct Slab {
    memory: *mut u8,
    layout: Layout,
    start: *mut Line,
    len: usize,
}

// SAFETY: it owns its memory alone, like a Vec.
unsafe impl Send for Slab {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for Slab {}

impl Slab {
    /// So many zero lines.
    ///
    /// # Errors
    /// [`NoMemory`] where the system has not so much to give, or an address cannot reach so far.
    pub(crate) fn zeros(len: usize) -> Result<Self, NoMemory> {
        let bytes = len.saturating_mul(size_of::<Line>());
        let align = if bytes >= HUGE {
            HUGE
        } else {
            align_of::<Line>()
        };
        // Room to begin at a multiple of `align` by hand: asked for more than the usual alignment, the allocator would
        // fill in the zeros itself, and so take up all of the memory at once.
        let layout = Layout::from_size_align(bytes.saturating_add(align), 16)
            .map_err(|_| NoMemory { bytes })?;
        // SAFETY: the layout's size is not 0, as `align` is not.
        let memory = unsafe { alloc_zeroed(layout) };
        if memory.is_null() {
            return Err(NoMemory { bytes });
        }
        let start = memory.wrapping_add(memory.align_offset(align));
        if align == HUGE {
            advise(start, bytes);
        }
        Ok(Self {
            memory,
            layout,
            start: start.cast(),
            len,
        })
    }
}

/// Asks for huge pages; where there are none, nothing changes.
#[cfg(target_os = "linux")]
fn advise(start: *mut u8, bytes: usize) {
    const MADV_HUGEPAGE: i32 = 14;
    unsafe extern "C" {
        fn madvise(start: *mut u8, bytes: usize, advice: i32) -> i32;
    }
    // SAFETY: the range is whole pages from a multiple of the page size on, all within our memory (the size is rounded
    // down), and this advice does not change what is in it.
    unsafe { madvise(start, bytes / HUGE * HUGE, MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise(_start: *mut u8, _bytes: usize) {}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `zeros`, and freed only here.
        unsafe { dealloc(self.memory, self.layout) };
    }
}

impl Deref for Slab {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        // SAFETY: `start` is aligned and has room for `len` lines (`zeros`), all initialized with zeros.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl DerefMut for Slab {
    fn deref_mut(&mut self) -> &mut [Line] {
        // SAFETY: as in `deref`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

/// Lines of a slab that are shared out piece by piece: matrices that are smaller than a huge page lie in one nevertheless.
#[derive(Default)]
pub(crate) struct Shelf(Mutex<Option<(Arc<Slab>, usize)>>);

impl Shelf {
    /// Lines of a slab that serves many.
    const LINES: usize = 16 * HUGE / size_of::<Line>();

    /// So many zero lines.
    ///
    /// # Errors
    /// As [`Slab::zeros`].
    pub(crate) fn take(&self, len: usize) -> Result<Piece, NoMemory> {
        if len > Self::LINES / 2 {
            return Ok(Piece::of(Arc::new(Slab::zeros(len)?), 0, len));
        }
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (slab, used) = match open.take() {
            Some((slab, used)) if slab.len - used >= len => (slab, used),
            _ => (Arc::new(Slab::zeros(Self::LINES)?), 0),
        };
        *open = Some((Arc::clone(&slab), used + len));
        Ok(Piece::of(slab, used, len))
    }
}

/// Lines from a [`Shelf`].
#[derive(Debug)]
pub(crate) struct Piece {
    start: *mut Line,
    len: usize,
    /// Keeps the memory.
    _slab: Arc<Slab>,
}

// SAFETY: no other piece has its lines, and nobody reaches a slab on a shelf but through pieces; so it owns them.
unsafe impl Send for Piece {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for Piece {}

impl Piece {
    fn of(slab: Arc<Slab>, from: usize, len: usize) -> Self {
        debug_assert!(from + len <= slab.len);
        Self {
            start: slab.start.wrapping_add(from),
            len,
            _slab: slab,
        }
    }
}

impl Deref for Piece {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        // SAFETY: lines of the slab, which lives as long as the piece, and of no other piece (`Shelf::take`).
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl DerefMut for Piece {
    fn deref_mut(&mut self) -> &mut [Line] {
        // SAFETY: as in `deref`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_zero_aligned_and_writable_to_the_end() {
        for len in [0, 1, 7, HUGE / 64 - 1, HUGE / 64, 3 * HUGE / 64 + 5] {
            let mut slab = Slab::zeros(len).unwrap();
            assert_eq!(slab.len(), len);
            assert_eq!(slab.as_ptr().align_offset(64), 0);
            assert!(slab.iter().all(|line| *line == Line::ZERO));
            slab.fill(Line([7; 16]));
            assert!(slab.iter().all(|line| *line == Line([7; 16])));
        }
    }

    #[test]
    fn memory_that_is_not_there_is_an_error_that_says_how_much() {
        // More than 47 bits of addresses, more than an object may have, more than a size can say.
        for len in [1 << 50, 1 << 57, usize::MAX] {
            let bytes = len.saturating_mul(64);
            assert_eq!(Slab::zeros(len).err(), Some(NoMemory { bytes }));
            assert_eq!(Shelf::default().take(len).err(), Some(NoMemory { bytes }));
        }
    }

    #[test]
    fn pieces_of_a_shelf_are_zero_and_apart() {
        let shelf = Shelf::default();
        let mut pieces: Vec<Piece> = [5, 0, Shelf::LINES / 2, 7, Shelf::LINES / 2, Shelf::LINES, 3]
            .into_iter()
            .map(|len| shelf.take(len).unwrap())
            .collect();
        drop(shelf);
        for (i, piece) in pieces.iter_mut().enumerate() {
            assert!(piece.iter().all(|line| *line == Line::ZERO));
            piece.fill(Line([i as u32 + 1; 16]));
        }
        for (i, piece) in pieces.iter().enumerate() {
            assert!(piece.iter().all(|line| *line == Line([i as u32 + 1; 16])));
        }
    }
}
