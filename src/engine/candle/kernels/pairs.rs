//! Products of 16-bit integers in plain loops, for paths that have none of their own.

use super::{COLUMNS, INT16_LINES, Line, SCALED, Scales, Tile};

/// See [`super::Path::int16`].
pub(super) fn int16(tile: Tile<'_>, scales: &Scales<'_>) {
    for row in 0..tile.rows {
        let c = &mut tile.c[row * COLUMNS..(row + 1) * COLUMNS];
        for (block, lines) in tile.b.chunks(INT16_LINES).take(tile.blocks / 2).enumerate() {
            let (lines, columns) = lines.split_at(SCALED);
            let at = [block * 2, block * 2 + 1].map(|line| line * tile.stride + row);
            let words = at.iter().flat_map(|&at| tile.a[at].0);
            let mut sums = [0i32; COLUMNS];
            for (a, pair) in words.zip(lines.as_chunks::<2>().0) {
                let (sums, b) = (sums.iter_mut(), pair.iter().flat_map(|line| line.0));
                for (sum, b) in sums.zip(b) {
                    *sum += low(a) * low(b) + high(a) * high(b);
                }
            }
            for ((c, &sum), &scale) in c.iter_mut().zip(&sums).zip(Line::floats_of(columns)) {
                *c += sum as f32 * scale * scales.a[at[0]];
            }
        }
    }
}

fn low(word: u32) -> i32 {
    i32::from(word as u16 as i16)
}

fn high(word: u32) -> i32 {
    low(word >> 16)
}
