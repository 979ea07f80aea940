//! Memory in lines of the cache, as the register tiles read it.

use std::ops::{Deref, DerefMut};

/// One line of the cache: 16 words of four bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub(crate) struct Line(pub [u32; 16]);

impl Line {
    /// Nothing but zeros.
    pub(crate) const ZERO: Self = Self([0; 16]);

    /// The 64 bytes.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8; 64] {
        // SAFETY: 16 u32 are 64 bytes; any bytes are a valid u32 and the other way round; u8 needs no alignment.
        unsafe { &mut *std::ptr::from_mut(&mut self.0).cast::<[u8; 64]>() }
    }

    /// The 64 bytes.
    pub(crate) fn bytes(&self) -> &[u8; 64] {
        // SAFETY: as in `bytes_mut`.
        unsafe { &*std::ptr::from_ref(&self.0).cast::<[u8; 64]>() }
    }

    /// As 32 halves.
    pub(crate) fn halves_mut(&mut self) -> &mut [u16; 32] {
        // SAFETY: 16 u32 are 32 u16, aligned better than these need; any bits are valid for both.
        unsafe { &mut *std::ptr::from_mut(&mut self.0).cast::<[u16; 32]>() }
    }

    /// As 32 halves.
    #[cfg(test)]
    pub(crate) fn halves(&self) -> &[u16; 32] {
        // SAFETY: as in `halves_mut`.
        unsafe { &*std::ptr::from_ref(&self.0).cast::<[u16; 32]>() }
    }

    /// As 16 floats.
    pub(crate) fn floats_mut(&mut self) -> &mut [f32; 16] {
        // SAFETY: u32 and f32 have the same size and alignment, and any bits are valid for both.
        unsafe { &mut *std::ptr::from_mut(&mut self.0).cast::<[f32; 16]>() }
    }

    /// As 16 floats.
    #[cfg(test)]
    pub(crate) fn floats(&self) -> &[f32; 16] {
        // SAFETY: as in `floats_mut`.
        unsafe { &*std::ptr::from_ref(&self.0).cast::<[f32; 16]>() }
    }
}

impl Line {
    /// Lines as floats, 16 for each.
    pub(crate) fn floats_of(lines: &[Self]) -> &[f32] {
        // SAFETY: a line is 16 words of four bytes; any bits are a valid f32, and the alignment is better than needed.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * 16) }
    }

    /// Lines as floats, 16 for each.
    pub(crate) fn floats_of_mut(lines: &mut [Self]) -> &mut [f32] {
        // SAFETY: as in `floats_of`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 16) }
    }
}

/// Copies floats, without a call where there are `N` of them, as there mostly are.
///
/// # Panics
/// Where the lengths differ.
#[inline(always)]
pub(super) fn copy<const N: usize>(out: &mut [f32], from: &[f32]) {
    match (
        <&mut [f32; N]>::try_from(&mut *out),
        <&[f32; N]>::try_from(from),
    ) {
        (Ok(out), Ok(from)) => *out = *from,
        _ => out.copy_from_slice(from),
    }
}

/// Floats that begin on a line of the cache.
#[derive(Debug, Clone, Default)]
pub(crate) struct Buffer {
    lines: Vec<Line>,
    len: usize,
}

impl Buffer {
    /// Makes it so many floats long. What they are is not said: the old ones, or zeros.
    pub(crate) fn resize(&mut self, len: usize) {
        let lines = len.div_ceil(16);
        if lines > self.lines.len() {
            self.lines.resize(lines, Line::ZERO);
        }
        self.len = len;
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        debug_assert!(self.len <= self.lines.len() * 16);
        // SAFETY: the lines are initialized, hold 16 floats each, and are at least as many as `len` needs (`resize`).
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        debug_assert!(self.len <= self.lines.len() * 16);
        // SAFETY: as in `deref`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}
