//! Plain loops for any processor: what the other paths are tested against.

use super::lanes::elementwise;
use super::{COLUMNS, INT8_LINES, Line, MOST_ROWS, Path, SCALED, Scales, Softmax, Tile, half};

/// The path without any particular instructions.
pub(crate) struct Portable;

impl Path for Portable {
    fn name(&self) -> &'static str {
        "portable"
    }

    fn rows(&self) -> usize {
        4
    }

    fn int8_rows(&self) -> usize {
        4
    }

    fn rounds_to_bf16(&self) -> bool {
        false
    }

    fn f32(&self, tile: Tile<'_>) {
        each_row(tile, 16, |a, b, sums| {
            for (word, &a) in a.floats().iter().enumerate() {
                for (part, sums) in sums.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                    for (sum, &b) in sums.iter_mut().zip(b[word * 2 + part].floats()) {
                        *sum += a * b;
                    }
                }
            }
        });
    }

    fn f16(&self, tile: Tile<'_>) {
        let lines = tile.blocks * 16;
        let mut wide = vec![Line::ZERO; lines * 2];
        for (half, wide) in tile.b[..lines].iter().zip(wide.as_chunks_mut::<2>().0) {
            for (i, &half) in half.halves().iter().enumerate() {
                wide[i / 16].floats_mut()[i % 16] = half::f16_to(half);
            }
        }
        self.f32(Tile { b: &wide, ..tile });
    }

    fn bf16(&self, tile: Tile<'_>) {
        each_row(tile, 8, |a, b, sums| {
            for (word, a) in a.floats().as_chunks::<2>().0.iter().enumerate() {
                for (part, sums) in sums.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                    for (sum, &pair) in sums.iter_mut().zip(&b[word * 2 + part].0) {
                        *sum += a[0] * f32::from_bits(pair << 16);
                        *sum += a[1] * f32::from_bits(pair & 0xffff_0000);
                    }
                }
            }
        });
    }

    fn int8(&self, tile: Tile<'_>, scales: &Scales<'_>) {
        for row in 0..tile.rows {
            for block in 0..tile.blocks {
                let at = block * tile.stride + row;
                let mut sums = [scales.offsets[at]; COLUMNS];
                let words = tile.a[at].bytes().as_chunks::<4>().0;
                let lines = &tile.b[block * INT8_LINES..(block + 1) * INT8_LINES];
                let (lines, columns) = lines.split_at(SCALED / 2);
                for (word, pair) in words.iter().zip(lines.as_chunks::<2>().0) {
                    for (part, sums) in sums.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                        for (sum, b) in sums.iter_mut().zip(pair[part].bytes().as_chunks::<4>().0) {
                            for i in 0..4 {
                                *sum += i32::from(word[i] as i8) * i32::from(b[i]);
                            }
                        }
                    }
                }
                let c = &mut tile.c[row * COLUMNS..(row + 1) * COLUMNS];
                for ((c, &sum), &scale) in c.iter_mut().zip(&sums).zip(Line::floats_of(columns)) {
                    *c += sum as f32 * scale * scales.a[at];
                }
            }
        }
    }

    fn hadamard(&self, x: &mut [f32; SCALED]) {
        super::lanes::hadamard(x);
    }

    elementwise!();
    elementwise!(hot);
}

/// Calls `block` with each row's lines, the lines of weights that belong to them, and the row's sums.
#[inline(always)]
fn each_row(tile: Tile<'_>, words: usize, block: impl Fn(&Line, &[Line], &mut [f32; COLUMNS])) {
    for row in 0..tile.rows {
        let sums = &mut tile.c.as_chunks_mut::<COLUMNS>().0[row];
        for i in 0..tile.blocks {
            block(
                &tile.a[i * tile.stride + row],
                &tile.b[i * words * 2..(i + 1) * words * 2],
                sums,
            );
        }
    }
}
