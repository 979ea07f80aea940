//! Products of activations with weights, and what becomes of them at once.

use std::slice::Chunks;

use super::activations::{Filling, Kind};
use super::line::copy;
use super::{Activations, COLUMNS, Format, Line, Matrix, Path, Pool, SCALED, Scales, Shared, Tile};

/// Rows whose sums are kept while a part of a panel stays in the first cache.
const GROUP: usize = 48;
/// Bytes of a panel that stay in the first cache.
const NEAR: usize = 26 << 10;
/// Panels that hold a block of a gate and the same block of what it lets through.
const GATED: usize = 2 * SCALED / COLUMNS;

impl Matrix {
    /// `out[rows, n] = x[rows, k] · wᵀ`.
    ///
    /// # Panics
    /// Where the widths or the length of `out` do not fit, or the activations are not in the format that goes with
    /// this path and these weights ([`Kind::of`]).
    pub(crate) fn multiply(&self, path: &dyn Path, pool: &Pool, x: &Activations, out: &mut [f32]) {
        self.each_panel(path, pool, x, out, |_, out, sums| {
            copy::<COLUMNS>(out, sums);
        });
    }

    /// `out[rows, n] += x[rows, k] · wᵀ`.
    ///
    /// # Panics
    /// As [`Matrix::multiply`] does.
    pub(crate) fn add_to(&self, path: &dyn Path, pool: &Pool, x: &Activations, out: &mut [f32]) {
        self.each_panel(path, pool, x, out, |path, out, sums| path.add(out, sums));
    }

    /// `gate / (1 + exp(-gate)) * up` of the first and the second half of the outputs, packed for weights of the format
    /// that comes next.
    ///
    /// # Panics
    /// As [`Matrix::multiply`] does; or where a half is not whole blocks of 64 ([`Matrix::can_gate`]).
    pub(crate) fn gated(
        &self,
        path: &dyn Path,
        pool: &Pool,
        x: &Activations,
        next: Format,
        out: &mut Activations,
    ) {
        self.check(path, x);
        assert!(self.can_gate());
        let blocks = self.n / 2 / SCALED;
        let filling = out.lay_out(Kind::of(next, path), x.rows(), self.n / 2);
        pool.run(blocks, |block| {
            self.gate(path, x, block, (blocks, pool.threads()), &filling);
        });
    }

    /// Whether [`Matrix::gated`] can be.
    pub(crate) fn can_gate(&self) -> bool {
        self.n.is_multiple_of(2 * SCALED)
    }

    /// One block of 64 gates, of all rows.
    fn gate(
        &self,
        path: &dyn Path,
        x: &Activations,
        block: usize,
        (blocks, threads): (usize, usize),
        out: &Filling<'_>,
    ) {
        const HALF: usize = GATED / 2;
        let mut sums = [[Line::ZERO; GROUP * 2]; GATED];
        let height = self.height(path, x.rows());
        let panel = |block: usize, i: usize| (i / HALF * blocks + block) * HALF + i % HALF;
        let next = Some(block + threads).filter(|&next| next < blocks);
        let mut ahead: [Chunks<'_, Line>; GATED] = std::array::from_fn(|i| {
            let next = next.map(|next| panel(next, i));
            self.ahead(next, x.rows().div_ceil(height))
        });
        let mut row = 0;
        while row < x.rows() {
            let rows = (GROUP / height * height).min(x.rows() - row);
            for (i, sums) in sums.iter_mut().enumerate() {
                let (part, sums) = ((row, rows, height), &mut sums[..rows * 2]);
                self.sums(path, x, panel(block, i), part, &mut ahead[i], sums);
            }
            let sums = sums.each_ref().map(|sums| Line::floats_of(sums));
            for i in 0..rows {
                let mut gates = [0.0; SCALED];
                for half in 0..HALF {
                    let row = i * COLUMNS..(i + 1) * COLUMNS;
                    let (gate, up) = (&sums[half][row.clone()], &sums[HALF + half][row]);
                    path.gate(gate, up, &mut gates[half * COLUMNS..(half + 1) * COLUMNS]);
                }
                // SAFETY: this block belongs to this task.
                unsafe { out.block(path, row + i, block, &gates) };
            }
            row += rows;
        }
    }

    /// What every product needs.
    fn check(&self, path: &dyn Path, x: &Activations) {
        assert_eq!(x.width(), self.k);
        assert_eq!(x.kind(), Some(Kind::of(self.format, path)));
    }

    /// Calls `put` with each row's part of `out` and its sums, panel by panel.
    fn each_panel(
        &self,
        path: &dyn Path,
        pool: &Pool,
        x: &Activations,
        out: &mut [f32],
        put: impl Fn(&dyn Path, &mut [f32], &[f32]) + Sync,
    ) {
        self.check(path, x);
        assert_eq!(out.len(), x.rows() * self.n);
        if out.is_empty() {
            return;
        }
        let out = Shared::new(out);
        let height = self.height(path, x.rows());
        let panels = self.n.div_ceil(COLUMNS);
        pool.run(panels, |panel| {
            let mut sums = [Line::ZERO; GROUP * 2];
            let (first, columns) = (panel * COLUMNS, COLUMNS.min(self.n - panel * COLUMNS));
            let next = Some(panel + pool.threads()).filter(|&next| next < panels);
            let mut ahead = self.ahead(next, x.rows().div_ceil(height));
            let mut row = 0;
            while row < x.rows() {
                let rows = (GROUP / height * height).min(x.rows() - row);
                let sums = &mut sums[..rows * 2];
                self.sums(path, x, panel, (row, rows, height), &mut ahead, sums);
                let sums = Line::floats_of(sums).as_chunks::<COLUMNS>().0;
                for (i, sums) in sums.iter().enumerate() {
                    // SAFETY: these columns belong to this panel, and each panel to one task.
                    let out = unsafe { out.part((row + i) * self.n + first, columns) };
                    put(path, out, &sums[..columns]);
                }
                row += rows;
            }
        });
    }

    /// Rows of a register tile: all tiles of about the same height, so that 13 rows are 7 and 6, not 12 and 1.
    fn height(&self, path: &dyn Path, rows: usize) -> usize {
        let most = match self.format {
            Format::Int8 | Format::Int16 => path.int8_rows(),
            Format::F32 | Format::Bf16 => path.rows(),
        };
        rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
    }

    /// A panel's lines, in as many parts as there are tiles in a panel of `tiles` tiles of rows: they come from main memory,
    /// and a thread that asks for them while it is at the panel before does not wait for them. Threads take panels as they come
    /// ([`Pool::run`]); while they are equally fast, each has the panel that is as many further as there are threads.
    fn ahead(&self, panel: Option<usize>, tiles: usize) -> Chunks<'_, Line> {
        let blocks = self.k.div_ceil(SCALED);
        let size = blocks * self.format.block_lines();
        let lines = panel.map_or(&[][..], |panel| &self.lines[panel * size..][..size]);
        let tiles = tiles * blocks.div_ceil(self.near());
        lines.chunks(size.div_ceil(tiles.max(1)))
    }

    /// Blocks of a panel that stay in the first cache.
    fn near(&self) -> usize {
        (NEAR / size_of::<Line>() / self.format.block_lines()).max(1)
    }

    /// One panel's sums for `rows` rows from `first` on, in tiles of `height` rows.
    fn sums(
        &self,
        path: &dyn Path,
        x: &Activations,
        panel: usize,
        (first, rows, height): (usize, usize, usize),
        ahead: &mut Chunks<'_, Line>,
        sums: &mut [Line],
    ) {
        let blocks = self.k.div_ceil(SCALED);
        let lines_per_block = self.format.block_lines();
        let x_blocks = SCALED / Kind::of(self.format, path).per_line();
        let near = self.near();
        sums.fill(Line::ZERO);
        let mut block = 0;
        while block < blocks {
            let depth = near.min(blocks - block);
            let at = panel * blocks + block;
            let b = &self.lines[at * lines_per_block..(at + depth) * lines_per_block];
            for (i, sums) in sums.chunks_mut(height * 2).enumerate() {
                let row = first + i * height;
                let from = block * x_blocks * x.stride() + row;
                let tile = Tile {
                    rows: height.min(first + rows - row),
                    blocks: depth * x_blocks,
                    a: &x.lines()[from..],
                    stride: x.stride(),
                    b,
                    c: Line::floats_of_mut(sums),
                    ahead: ahead.next().unwrap_or_default(),
                };
                let scales = || Scales {
                    a: &x.scales()[from..],
                    offsets: &x.offsets()[from..],
                };
                match self.format {
                    Format::F32 => path.f32(tile),
                    Format::Bf16 => path.bf16(tile),
                    Format::Int8 => path.int8(tile, &scales()),
                    Format::Int16 => path.int16(tile, &scales()),
                }
            }
            block += depth;
        }
    }
}

#[cfg(test)]
#[path = "product_tests.rs"]
mod tests;
