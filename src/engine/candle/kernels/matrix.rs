//! Weights, packed for the register tiles.

use super::half::{bf16_from, bf16_to};
use super::line::copy;
use super::{
    COLUMNS, INT8_LINES, INT16_LINES, INT16_WEIGHT, Line, NoMemory, Path, Piece, Pool, SCALED,
    Shared, Shelf,
};

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
    /// for each turned activation `x` and weight `y`, and by f32's rounding. Where activations have 16 bits
    /// ([`Path::int8_by_16`]), their rounding is a 258th of that.
    Int8,
    /// Whole numbers up to 1023 in 16 bits, 64 of one output with a scale; the activations are quantized to 16 bits, row by
    /// row. Summed as bytes are.
    ///
    /// With `a` and `w` as above, of what is not turned, a product is off by at most `|x| w / 2046 + |y| a / 65534` and the
    /// product of both, for each.
    Int16,
}

impl Format {
    /// Lines of a block of 64 by 32 weights.
    pub(super) fn block_lines(self) -> usize {
        match self {
            Self::F32 => 128,
            Self::Bf16 => 64,
            Self::Int8 => INT8_LINES,
            Self::Int16 => INT16_LINES,
        }
    }
}

/// Weights `[n, k]`: panels of 32 outputs; in each, blocks of 64 along `k`; in these the words of four bytes (the pairs of
/// bytes, where activations have 16 bits), and for each word the 32 outputs. Behind a block of integers lie its 32 scales.
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
        let lines = self.format.block_lines();
        let first = output / COLUMNS * self.k.div_ceil(SCALED) * lines;
        let (half, column) = (output % COLUMNS / 16, output % 16);
        let blocks = self.lines[first..].chunks(lines);
        for (block, out) in blocks.zip(out.chunks_mut(SCALED)) {
            // Of the two lines of each word, the one that holds this output's.
            let word = |i: usize| block[i * 2 + half].0[column];
            let two = |i: usize| (word(i / 2) >> (i % 2 * 16)) as u16;
            let scale = match self.format {
                Format::Int16 => f32::from_bits(word(SCALED / 2)),
                _ => 1.0,
            };
            for (i, value) in out.iter_mut().enumerate() {
                *value = match self.format {
                    Format::F32 => f32::from_bits(word(i)),
                    Format::Bf16 => bf16_to(two(i)),
                    Format::Int8 | Format::Int16 => f32::from(two(i) as i16) * scale,
                };
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
            Format::Int16 => {
                let mut values = [Line::ZERO; 2];
                let scale = path.quantize_16(&whole(weights), INT16_WEIGHT, &mut values);
                word(SCALED / 2, scale.to_bits());
                for (i, &pair) in values.iter().flat_map(|line| &line.0).enumerate() {
                    word(i, pair);
                }
            }
            Format::Int8 => {
                let (mut line, mut weights) = (Line::ZERO, whole(weights));
                path.hadamard(&mut weights);
                let (scale, _) = path.quantize(&weights, &mut line);
                word(SCALED / 4, scale.to_bits());
                if path.int8_by_16() {
                    for (lines, pair) in lines.iter_mut().zip(line.bytes().as_chunks::<2>().0) {
                        lines.halves_mut()[column] = u16::from_le_bytes(*pair);
                    }
                    continue;
                }
                for (i, &bytes) in line.0.iter().enumerate() {
                    // Adding 128 to a byte, modulo 256, is turning its highest bit.
                    word(i, bytes ^ 0x8080_8080);
                }
            }
        }
    }
}

/// Up to 64 values, filled up with zeros.
#[inline(always)]
pub(super) fn whole(values: &[f32]) -> [f32; SCALED] {
    let mut whole = [0.0; SCALED];
    copy::<SCALED>(&mut whole[..values.len()], values);
    whole
}
