//! A register tile whose lengths are checked, so that the loops over it need not.

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

use super::{COLUMNS, Line, Scales, Tile};

/// [`Tile`] as pointers.
pub(crate) struct Raw {
    pub rows: usize,
    pub blocks: usize,
    pub a: *const Line,
    pub stride: usize,
    pub b: *const Line,
    pub c: *mut f32,
    ahead: *const [Line],
}

/// Lines that are asked for while a tile computes, some at each block: a processor waits for a few tens of lines at once
/// and drops what is asked for beyond them.
pub(crate) struct Ahead {
    next: *const Line,
    left: usize,
    step: usize,
}

impl Ahead {
    /// Asks for some.
    #[inline(always)]
    pub(crate) fn ask(&mut self) {
        let now = self.step.min(self.left);
        self.left -= now;
        for _ in 0..now {
            // SAFETY: any address may be asked for; this one is even there.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.next.cast()) };
            self.next = self.next.wrapping_add(1);
        }
    }
}

impl Raw {
    /// Checks that everything is there: `lines` lines of weights for each block.
    pub(crate) fn new(tile: Tile<'_>, lines: usize) -> Self {
        assert!(tile.blocks > 0 && tile.rows > 0);
        assert!(tile.a.len() >= (tile.blocks - 1) * tile.stride + tile.rows);
        assert!(tile.b.len() >= tile.blocks * lines);
        assert!(tile.c.len() >= tile.rows * COLUMNS);
        Self {
            rows: tile.rows,
            blocks: tile.blocks,
            a: tile.a.as_ptr(),
            stride: tile.stride,
            b: tile.b.as_ptr(),
            c: tile.c.as_mut_ptr(),
            ahead: tile.ahead,
        }
    }

    /// The lines to ask for, in so many times.
    pub(crate) fn ahead(&self, times: usize) -> Ahead {
        Ahead {
            next: self.ahead.cast(),
            left: self.ahead.len(),
            step: self.ahead.len().div_ceil(times),
        }
    }

    /// Checks the scales as well: blocks of so many lines of a row, and so many of weights; and that the sums are whole lines.
    pub(crate) fn with_scales(
        tile: Tile<'_>,
        scales: &Scales<'_>,
        (lines, weights): (usize, usize),
    ) -> Self {
        assert!(tile.blocks.is_multiple_of(lines));
        assert!(tile.c.as_ptr().cast::<Line>().is_aligned());
        assert!(tile.b.len() >= tile.blocks / lines * weights);
        let raw = Self::new(tile, 0);
        let needed = (raw.blocks - 1) * raw.stride + raw.rows;
        assert!(scales.a.len() >= needed && scales.offsets.len() >= needed);
        raw
    }
}

/// Calls the function that is compiled for so many rows.
macro_rules! by_rows {
    ($rows:expr, $function:ident [$kind:literal] $arguments:tt; $($count:literal)*) => {
        match $rows {
            $($count => $function::<$count, $kind> $arguments,)*
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
    ($rows:expr, $function:ident $arguments:tt; $($count:literal)*) => {
        match $rows {
            $($count => $function::<$count> $arguments,)*
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}
pub(super) use by_rows;
