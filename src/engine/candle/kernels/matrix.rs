//! Weights, packed for the register tiles.

use super::half::bf16_from;
use super::{COLUMNS, INT8_LINES, Line, NoMemory, Path, Piece, Pool, SCALED, Shared, Shelf};

/// The number format of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Floats.
    F32,
    /// Bfloats; sums in f32.
    Bf16,
    /// Bytes, 64 of one output with a scale; the activations are quantized likewise, row by row. Sums in i32 within
    /// 64, in f32 beyond.
    ///
    /// Both are turned by a Hadamard matrix first ([`Path::hadamard`]). With `a` and `w` the largest magnitudes among
    /// 64 turned activations and 64 turned weights, a product is off by at most `(|x| w + |y| a) / 254 + a w / 254²`
    /// for each turned activation `x` and weight `y`, and by f32's rounding.
    Int8,
}

impl Format {
    /// Lines of a block of 64 by 32 weights.
    pub(super) fn block_lines(self) -> usize {
        match self {
            Self::F32 => 128,
            Self::Bf16 => 64,
            Self::Int8 => INT8_LINES,
        }
    }
}

/// Weights `[n, k]`: panels of 32 outputs; in each, blocks of 64 along `k`; in these the words of four bytes, and for each
/// word the 32 outputs. Behind a block of bytes lie its 32 scales.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub(super) format: Format,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) lines: Piece,
}

impl Matrix {
    /// Packs weights of several matrices `[n, k]` below each other.
    ///
    /// # Panics
    /// Where a part does not have `n * k` values, or `k` is 0.
    #[cfg(test)]
    pub(crate) fn pack(
        path: &dyn Path,
        pool: &Pool,
        shelf: &Shelf,
        format: Format,
        parts: &[(&[f32], usize)],
        k: usize,
    ) -> Self {
        let n = parts.iter().map(|part| part.1).sum();
        let mut matrix = Self::zeros(shelf, format, n, k).unwrap();
        let mut row = 0;
        for &(weights, rows) in parts {
            assert_eq!(weights.len(), rows * k);
            matrix.set(path, pool, row, weights);
            row += rows;
        }
        matrix
    }

    /// All weights 0.
    ///
    /// # Errors
    /// Where there is no memory for them.
    ///
    /// # Panics
    /// Where `k` is 0.
    pub(crate) fn zeros(
        shelf: &Shelf,
        format: Format,
        n: usize,
        k: usize,
    ) -> Result<Self, NoMemory> {
        assert!(k > 0);
        let blocks = n.div_ceil(COLUMNS) * k.div_ceil(SCALED);
        Ok(Self {
            format,
            n,
            k,
            lines: shelf.take(blocks * format.block_lines())?,
        })
    }

    /// Packs the weights of outputs from `row` on, `k` for each.
    ///
    /// # Panics
    /// Where there are no such outputs, or the weights are not whole rows.
    pub(crate) fn set(&mut self, path: &dyn Path, pool: &Pool, row: usize, weights: &[f32]) {
        assert_eq!(weights.len() % self.k, 0);
        let rows = weights.len() / self.k;
        assert!(row + rows <= self.n);
        if rows == 0 {
            return;
        }
        let panel_lines = self.k.div_ceil(SCALED) * self.format.block_lines();
        let lines = Shared::new(&mut self.lines);
        let (format, k) = (self.format, self.k);
        let (first, last) = (row / COLUMNS, (row + rows).div_ceil(COLUMNS));
        pool.split(last - first, 1, |panels| {
            for panel in first + panels.start..first + panels.end {
                // SAFETY: a panel belongs to one task.
                let lines = unsafe { lines.part(panel * panel_lines, panel_lines) };
                let outputs = (panel * COLUMNS).max(row)..((panel + 1) * COLUMNS).min(row + rows);
                for output in outputs {
                    let weights = &weights[(output - row) * k..(output - row + 1) * k];
                    pack_row(path, format, output % COLUMNS, weights, lines);
                }
            }
        });
    }

    /// One output's weights, as they are kept.
    ///
    /// # Panics
    /// Where there is no such output, `out` is not as long as it, or the weights are bytes.
    pub(crate) fn row(&self, output: usize, out: &mut [f32]) {
        assert!(output < self.n && out.len() == self.k && self.format != Format::Int8);
        let panel_lines = self.k.div_ceil(SCALED) * self.format.block_lines();
        // The lines that hold this output's words: one of the two of each word.
        let first = output / COLUMNS * panel_lines + output % COLUMNS / 16;
        let lines = self.lines[first..].iter().step_by(2);
        let words = lines.map(|line| line.0[output % 16]);
        if self.format == Format::F32 {
            for (value, word) in out.iter_mut().zip(words) {
                *value = f32::from_bits(word);
            }
        } else {
            for (pair, word) in out.chunks_mut(2).zip(words) {
                pair[0] = f32::from_bits(word << 16);
                if let Some(high) = pair.get_mut(1) {
                    *high = f32::from_bits(word & 0xffff_0000);
                }
            }
        }
    }

    /// Outputs.
    pub(crate) fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub(crate) fn k(&self) -> usize {
        self.k
    }

    /// Its number format.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Bytes of memory.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }
}

/// Packs one output's weights into its panel.
fn pack_row(path: &dyn Path, format: Format, column: usize, weights: &[f32], lines: &mut [Line]) {
    let blocks = lines.chunks_exact_mut(format.block_lines());
    for (lines, weights) in blocks.zip(weights.chunks(SCALED)) {
        let mut word = |word: usize, value: u32| {
            lines[word * 2 + column / 16].0[column % 16] = value;
        };
        match format {
            Format::F32 => {
                for (i, &weight) in weights.iter().enumerate() {
                    word(i, weight.to_bits());
                }
            }
            Format::Bf16 => {
                for (i, pair) in weights.chunks(2).enumerate() {
                    let low = bf16_from(pair[0]);
                    let high = pair.get(1).map_or(0, |&weight| bf16_from(weight));
                    word(i, u32::from(low) | u32::from(high) << 16);
                }
            }
            Format::Int8 => {
                let mut line = Line::ZERO;
                let mut turned = [0.0; SCALED];
                turned[..weights.len()].copy_from_slice(weights);
                path.hadamard(&mut turned);
                let (scale, _) = path.quantize(&turned, &mut line);
                word(SCALED / 4, scale.to_bits());
                for (i, &bytes) in line.0.iter().enumerate() {
                    // Adding 128 to a byte, modulo 256, is turning its highest bit.
                    word(i, bytes ^ 0x8080_8080);
                }
            }
        }
    }
}
