//! The keys and values of all sequences, in blocks of positions.

use super::attention::MOST_DIM;
use super::{COLUMNS, Line, NoMemory, Path, Shared, Slab};

/// Positions in a block.
pub(crate) const POSITIONS: usize = COLUMNS;

/// How attention is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heads {
    /// Heads of the queries, a multiple of `kv_heads`.
    pub queries: usize,
    /// Heads of the keys and values.
    pub kv: usize,
    /// Values in a head.
    pub dim: usize,
}

impl Heads {
    /// Query heads that share a head of keys and values.
    pub(crate) fn group(self) -> usize {
        self.queries / self.kv
    }

    /// Tiles of 32 values that hold a head.
    pub(crate) fn tiles(self) -> usize {
        self.dim.div_ceil(COLUMNS)
    }

    /// Values in a row of queries, keys and values.
    pub(crate) fn width(self) -> usize {
        (self.queries + 2 * self.kv) * self.dim
    }
}

/// `[layer][block][kv head]`, and there the keys `[dim, 32 positions]`, ready to be the right side of queries · keysᵀ, and
/// behind them the values, `[32 positions, 32 of dim]` for each 32 of dim, ready to be the right side of weights · values.
pub(crate) struct Cache {
    heads: Heads,
    blocks: usize,
    layers: usize,
    halves: bool,
    lines: Slab,
}

impl Cache {
    /// An empty cache; its memory is taken up as it is written. In half precision or in f32.
    ///
    /// # Errors
    /// Where there is no memory for it.
    pub(crate) fn new(
        heads: Heads,
        layers: usize,
        blocks: usize,
        halves: bool,
    ) -> Result<Self, NoMemory> {
        let lines = (layers * heads.kv * Self::head_lines(heads, halves)).saturating_mul(blocks);
        Ok(Self {
            heads,
            blocks,
            layers,
            halves,
            lines: Slab::zeros(lines)?,
        })
    }

    /// Lines of the keys and values of one head in one block.
    fn head_lines(heads: Heads, halves: bool) -> usize {
        2 * heads.tiles() * Self::tile_lines(halves)
    }

    /// Lines of a tile of 32 times 32 values.
    fn tile_lines(halves: bool) -> usize {
        if halves { COLUMNS } else { COLUMNS * 2 }
    }

    /// Bytes of a block in all layers.
    pub(crate) fn bytes_per_block(heads: Heads, layers: usize, halves: bool) -> usize {
        layers * heads.kv * Self::head_lines(heads, halves) * size_of::<Line>()
    }

    /// How the heads are.
    pub(crate) fn heads(&self) -> Heads {
        self.heads
    }

    /// How many blocks there are.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Whether values are in half precision.
    pub(crate) fn halves(&self) -> bool {
        self.halves
    }

    fn at(&self, layer: usize, block: usize, head: usize) -> usize {
        assert!(layer < self.layers && block < self.blocks && head < self.heads.kv);
        ((layer * self.blocks + block) * self.heads.kv + head)
            * Self::head_lines(self.heads, self.halves)
    }

    /// A head's keys in a block.
    pub(crate) fn keys(&self, layer: usize, block: usize, head: usize) -> &[Line] {
        let at = self.at(layer, block, head);
        &self.lines[at..at + Self::head_lines(self.heads, self.halves) / 2]
    }

    /// A head's keys and values in a block.
    pub(crate) fn both(&self, layer: usize, block: usize, head: usize) -> &[Line] {
        let at = self.at(layer, block, head);
        &self.lines[at..at + Self::head_lines(self.heads, self.halves)]
    }

    /// A tile of a head's values in a block.
    pub(crate) fn values(&self, layer: usize, block: usize, head: usize, tile: usize) -> &[Line] {
        let size = Self::tile_lines(self.halves);
        let at = self.at(layer, block, head)
            + Self::head_lines(self.heads, self.halves) / 2
            + tile * size;
        &self.lines[at..at + size]
    }

    /// Lends the cache to the threads that write to it.
    pub(crate) fn writing(&mut self, layer: usize) -> Writing<'_> {
        let size = Self::head_lines(self.heads, self.halves);
        let per_layer = self.blocks * self.heads.kv * size;
        let lines = &mut self.lines[layer * per_layer..(layer + 1) * per_layer];
        Writing {
            heads: self.heads,
            halves: self.halves,
            size,
            lines: Shared::new(lines),
        }
    }

    /// Copies a block in all layers.
    pub(crate) fn copy(&mut self, from: usize, to: usize) {
        let size = self.heads.kv * Self::head_lines(self.heads, self.halves);
        for layer in 0..self.layers {
            let (from, to) = (self.at(layer, from, 0), self.at(layer, to, 0));
            self.lines.copy_within(from..from + size, to);
        }
    }
}

/// One layer of a cache while keys and values are written.
pub(crate) struct Writing<'a> {
    heads: Heads,
    halves: bool,
    size: usize,
    lines: Shared<'a, Line>,
}

impl Writing<'_> {
    /// Writes a head's keys and values at one position of a block.
    ///
    /// The values in a cache are always finite: what a former owner or a rejected draft left behind a sequence's last
    /// position has the weight 0, and 0 times NaN would be NaN. Values that are not finite are written as 0 and their keys as
    /// NaN: whoever attends to the position gets NaN by its score, and nobody else does, since scores that do not count are
    /// never looked at. (In half precision what is too large becomes the largest: [`Path::narrow`].)
    ///
    /// # Safety
    /// No other thread may write to the same head of the same block at the same time.
    pub(crate) unsafe fn write(
        &self,
        path: &dyn Path,
        place: (usize, usize),
        head: usize,
        keys: &[f32],
        values: &[f32],
    ) {
        let (block, position) = place;
        assert!(position < POSITIONS && head < self.heads.kv);
        assert!(keys.len() == self.heads.dim && values.len() == self.heads.dim);
        let sound = values.iter().fold(true, |sound, v| sound & v.is_finite());
        let (keys, values) = if sound {
            (keys, values)
        } else {
            (
                &[f32::NAN; MOST_DIM][..keys.len()],
                &[0.0; MOST_DIM][..values.len()],
            )
        };
        let at = (block * self.heads.kv + head) * self.size;
        // SAFETY: these lines are this head's in this block, which the caller has for itself.
        let lines = unsafe { self.lines.part(at, self.size) };
        let (key_lines, value_lines) = lines.split_at_mut(self.size / 2);
        if self.halves {
            let mut narrow = [0; COLUMNS];
            for (tile, keys) in keys.chunks(COLUMNS).enumerate() {
                path.narrow(keys, &mut narrow[..keys.len()]);
                let lines = &mut key_lines[tile * COLUMNS..];
                for (line, &key) in lines.iter_mut().zip(&narrow[..keys.len()]) {
                    line.halves_mut()[position] = key;
                }
            }
            for (tile, values) in values.chunks(COLUMNS).enumerate() {
                let line = &mut value_lines[tile * COLUMNS + position];
                path.narrow(values, &mut line.halves_mut()[..values.len()]);
            }
        } else {
            for (lines, &key) in key_lines.as_chunks_mut::<2>().0.iter_mut().zip(keys) {
                lines[position / 16].floats_mut()[position % 16] = key;
            }
            for (i, values) in values.chunks(16).enumerate() {
                let (tile, half) = (i / 2, i % 2);
                let line = &mut value_lines[(tile * COLUMNS + position) * 2 + half];
                line.floats_mut()[..values.len()].copy_from_slice(values);
            }
        }
    }
}
