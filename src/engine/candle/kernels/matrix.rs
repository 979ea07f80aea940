//! Weights, packed for the register tiles, and their product with activations.

use super::activations::Kind;
use super::half::bf16_from;
use super::{
    Activations, COLUMNS, Line, MOST_ROWS, Path, Pool, SCALED, Scales, Shared, Slab, Tile,
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
    /// With `a` and `w` the largest magnitudes among 64 activations and 64 weights, a product is off by at most
    /// `(|x| w + |y| a) / 254 + a w / 254²` for each activation `x` and weight `y`, and by f32's rounding.
    Int8,
}

impl Format {
    /// Weights in a word of four bytes.
    fn per_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
            Self::Int8 => 4,
        }
    }
}

/// Tiles whose sums are kept while a part of the weights stays in the first cache.
const TILES: usize = 4;
/// Blocks of 64 weights that stay in the first cache (in int8: 24 KB).
const DEPTH: usize = 12;

/// Weights `[n, k]`: panels of 32 outputs, in each the words of four bytes along `k`, and for each word the 32 outputs.
#[derive(Debug)]
pub(crate) struct Matrix {
    format: Format,
    n: usize,
    k: usize,
    lines: Slab,
    /// `[panels, k / 64, 32]`, only for bytes.
    scales: Vec<f32>,
}

impl Matrix {
    /// Packs weights of several matrices `[n, k]` below each other.
    ///
    /// # Panics
    /// Where a part does not have `n * k` values, or `k` is 0.
    pub(crate) fn pack(
        path: &dyn Path,
        pool: &Pool,
        format: Format,
        parts: &[(&[f32], usize)],
        k: usize,
    ) -> Self {
        let mut matrix = Self::zeros(format, parts.iter().map(|part| part.1).sum(), k);
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
    /// # Panics
    /// Where `k` is 0.
    pub(crate) fn zeros(format: Format, n: usize, k: usize) -> Self {
        assert!(k > 0);
        let (blocks, panels) = (k.div_ceil(SCALED), n.div_ceil(COLUMNS));
        let words = blocks * SCALED / format.per_word();
        let scales = if format == Format::Int8 {
            panels * blocks * COLUMNS
        } else {
            0
        };
        Self {
            format,
            n,
            k,
            lines: Slab::zeros(panels * words * 2),
            scales: vec![0.0; scales],
        }
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
        let blocks = self.k.div_ceil(SCALED);
        let panel_lines = blocks * SCALED / self.format.per_word() * 2;
        let panel_scales = self.scales.len() / self.n.div_ceil(COLUMNS);
        let (lines, scales) = (Shared::new(&mut self.lines), Shared::new(&mut self.scales));
        let (format, k) = (self.format, self.k);
        let (first, last) = (row / COLUMNS, (row + rows).div_ceil(COLUMNS));
        pool.split(last - first, 1, |panels| {
            for panel in first + panels.start..first + panels.end {
                // SAFETY: a panel belongs to one task.
                let (lines, scales) = unsafe {
                    (
                        lines.part(panel * panel_lines, panel_lines),
                        scales.part(panel * panel_scales, panel_scales),
                    )
                };
                let outputs = (panel * COLUMNS).max(row)..((panel + 1) * COLUMNS).min(row + rows);
                for output in outputs {
                    let weights = &weights[(output - row) * k..(output - row + 1) * k];
                    pack_row(path, format, output % COLUMNS, weights, lines, scales);
                }
            }
        });
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
    pub(crate) fn bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>() + self.scales.len() * size_of::<f32>()
    }

    /// `out[rows, n] = x[rows, k] · wᵀ`.
    ///
    /// # Panics
    /// Where the widths or the length of `out` do not fit, or the activations are not in the format that goes with
    /// this path and these weights ([`Kind::of`]).
    pub(crate) fn multiply(&self, path: &dyn Path, pool: &Pool, x: &Activations, out: &mut [f32]) {
        assert_eq!(x.width(), self.k);
        assert_eq!(x.kind(), Some(Kind::of(self.format, path)));
        assert_eq!(out.len(), x.rows() * self.n);
        if out.is_empty() {
            return;
        }
        let out = Shared::new(out);
        let panels = self.n.div_ceil(COLUMNS);
        pool.split(panels, 1, |panels| {
            for panel in panels {
                self.panel(path, x, panel, &out);
            }
        });
    }

    /// All rows' sums for one panel.
    fn panel(&self, path: &dyn Path, x: &Activations, panel: usize, out: &Shared<'_, f32>) {
        let blocks = self.k.div_ceil(SCALED);
        let lines_per_block = SCALED / self.format.per_word() * 2;
        let x_blocks = SCALED / Kind::of(self.format, path).per_line();
        let rows = x.rows();
        let tiles = rows.div_ceil(path.rows());
        // Tiles of about the same height: 13 rows are 7 and 6, not 12 and 1.
        let height = rows.div_ceil(tiles);
        let (first, columns) = (panel * COLUMNS, COLUMNS.min(self.n - panel * COLUMNS));
        let mut sums = [Line::ZERO; TILES * MOST_ROWS * 2];
        let mut group = 0;
        while group < rows {
            let group_rows = (height * TILES).min(rows - group);
            sums[..group_rows * 2].fill(Line::ZERO);
            let mut block = 0;
            while block < blocks {
                let depth = DEPTH.min(blocks - block);
                let at = panel * blocks + block;
                let b = &self.lines[at * lines_per_block..(at + depth) * lines_per_block];
                let mut row = group;
                while row < group + group_rows {
                    let tile_rows = height.min(group + group_rows - row);
                    let from = block * x_blocks * x.stride() + row;
                    let tile = Tile {
                        rows: tile_rows,
                        blocks: depth * x_blocks,
                        a: &x.lines()[from..],
                        stride: x.stride(),
                        b,
                        c: Line::floats_of_mut(
                            &mut sums[(row - group) * 2..(row - group + tile_rows) * 2],
                        ),
                    };
                    match self.format {
                        Format::F32 => path.f32(tile),
                        Format::Bf16 => path.bf16(tile),
                        Format::Int8 => path.int8(
                            tile,
                            &Scales {
                                a: &x.scales()[from..],
                                offsets: &x.offsets()[from..],
                                b: &self.scales[at * COLUMNS..(at + depth) * COLUMNS],
                            },
                        ),
                    }
                    row += tile_rows;
                }
                block += depth;
            }
            for (row, sums) in Line::floats_of_mut(&mut sums[..group_rows * 2])
                .chunks_exact(COLUMNS)
                .enumerate()
            {
                // SAFETY: these columns belong to this panel, and each panel to one task.
                let out = unsafe { out.part((group + row) * self.n + first, columns) };
                out.copy_from_slice(&sums[..columns]);
            }
            group += group_rows;
        }
    }
}

/// Packs one output's weights into its panel.
fn pack_row(
    path: &dyn Path,
    format: Format,
    column: usize,
    weights: &[f32],
    lines: &mut [Line],
    scales: &mut [f32],
) {
    let words = SCALED / format.per_word();
    for (block, weights) in weights.chunks(SCALED).enumerate() {
        let lines = &mut lines[block * words * 2..(block + 1) * words * 2];
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
                scales[block * COLUMNS + column] = path.quantize(weights, &mut line).0;
                for (i, &bytes) in line.0.iter().enumerate() {
                    // Adding 128 to a byte, modulo 256, is turning its highest bit.
                    word(i, bytes ^ 0x8080_8080);
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "matrix_tests.rs"]
mod tests;
