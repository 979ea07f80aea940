//! The processor's own arithmetic: matrices, attention and the loops between them.
//!
//! A [`Path`] is a set of small loops for one kind of instructions (AVX-512, AVX2, none in particular). Which paths
//! this processor has is found at run time; everything above them is the same code. Where it has none but the plain loops,
//! candle computes instead (`device.rs`): the loops are there for the tests alone, as the reference of the other paths. What is written to by many threads
//! at once is lent to them as [`Shared`]: `unsafe` is here, where that is used above (`compute/cpu.rs`), and in the call that
//! sets up a GPU (`device/cuda.rs`).
//!
//! Whatever the path, a row's result does not depend on the rows beside it: sums run in the same order for one row as
//! for a thousand. So a token has the same logits alone, in a chunk of a prompt, and in the verification of a draft.

// No processor but x86 has a path so far.
#![cfg_attr(not(any(test, target_arch = "x86_64")), allow(dead_code))]

mod activations;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod cache;
mod half;
mod lanes;
mod line;
mod matrix;
mod pairs;
mod pool;
#[cfg(test)]
mod portable;
mod product;
#[cfg(test)]
pub(crate) mod random;
#[cfg(target_arch = "x86_64")]
mod raw;
mod shared;
mod slab;
#[cfg(target_arch = "x86_64")]
mod turn;

pub(crate) use activations::{Activations, Kind};
pub(crate) use attention::{Attention, Inputs, Run};
pub(crate) use cache::{Cache, Heads, POSITIONS};

pub(crate) use line::{Buffer, Line};
pub(crate) use matrix::{Format, Matrix};
pub(crate) use pool::Pool;
pub(crate) use shared::Shared;
pub(crate) use slab::{NoMemory, Piece, Shelf, Slab};

/// Columns of a register tile: the weights of so many outputs lie side by side.
pub(crate) const COLUMNS: usize = 32;
/// Most rows of a register tile on any path.
pub(crate) const MOST_ROWS: usize = 12;
/// Values that share one scale in [`Format::Int8`] and [`Format::Int16`]: both the weights of one output and the activations of one row.
pub(crate) const SCALED: usize = 64;
/// Lines of 64 by 32 weights in bytes, the last two their scales.
pub(crate) const INT8_LINES: usize = 34;
/// Lines of 64 by 32 weights in 16 bits, the last two their scales.
pub(crate) const INT16_LINES: usize = 66;
/// The largest magnitude of activations in 16 bits …
pub(crate) const INT16_ACTIVATION: f32 = 32767.0;
/// … and of weights: 64 products of both fit into 32 bits.
pub(crate) const INT16_WEIGHT: f32 = 1023.0;

/// One register tile of a product: `c[rows, 32] += a[rows, k] · b[k, 32]`.
///
/// The activations come in blocks of one [`Line`] a row: line `block * stride + row`. The weights come as words of four
/// bytes, 32 of them (two lines) for each word of a row.
pub(crate) struct Tile<'a> {
    /// Rows, 1 to [`MOST_ROWS`].
    pub rows: usize,
    /// Lines of each row.
    pub blocks: usize,
    /// The activations, from the tile's first row in its first block on.
    pub a: &'a [Line],
    /// Lines from a row's block to its next.
    pub stride: usize,
    /// The weights.
    pub b: &'a [Line],
    /// The sums, `[rows, 32]`, added to; for integers whole lines.
    pub c: &'a mut [f32],
    /// Lines that will be needed soon: the paths of vector instructions ask for them while they compute the tile.
    pub ahead: &'a [Line],
}

/// What an int8 tile needs besides its bytes.
pub(crate) struct Scales<'a> {
    /// A row's scale in a block, at that of the block's first line: `line * stride + row`.
    pub a: &'a [f32],
    /// -128 times the sum of a row's bytes in a block, at `block * stride + row`: takes back the weights' offset. Without
    /// meaning by 16 bits.
    pub offsets: &'a [i32],
}

/// The loops that are written once for each kind of instructions.
pub(crate) trait Path: Send + Sync {
    /// What it is called in logs and tests.
    fn name(&self) -> &'static str;
    /// Rows of its largest register tile, at most [`MOST_ROWS`].
    fn rows(&self) -> usize;
    /// Rows of the tile that [`Path::int8`] and [`Path::int16`] do best.
    fn int8_rows(&self) -> usize;
    /// Whether [`Path::bf16`] wants activations in bf16 too (else f32).
    fn rounds_to_bf16(&self) -> bool;
    /// Whether [`Path::int8`] wants activations of 16 bits, where products of bytes are no faster than those of 16 bits, and
    /// with them weights by pairs.
    fn int8_by_16(&self) -> bool {
        false
    }

    /// Rows of a step up to which drafts of little hope are worth it: about where its time begins to go into products rather than
    /// into reading the weights. See `draft::Policy`.
    fn knee_rows(&self) -> usize {
        32
    }

    /// A line is 16 floats, a word of `b` one float.
    fn f32(&self, tile: Tile<'_>);
    /// A line is 16 floats; `b` has one line of 32 half-precision floats for each.
    fn f16(&self, tile: Tile<'_>);
    /// A word of `b` is two bfloats of one output; a line is 32 bfloats, or 16 floats (see [`Path::rounds_to_bf16`]).
    fn bf16(&self, tile: Tile<'_>);
    /// A line is 64 signed bytes, a word of `b` four bytes of one output with 128 added; behind each 64
    /// of an output stands their scale ([`INT8_LINES`]). By 16 bits a line is 32 values, and a line of `b` a pair of
    /// signed bytes for each of the 32 outputs.
    fn int8(&self, tile: Tile<'_>, scales: &Scales<'_>);

    /// A line of activations is 32 values of 16 bits, a word of `b` two of one output, behind each 64 their scale
    /// ([`INT16_LINES`]).
    fn int16(&self, tile: Tile<'_>, scales: &Scales<'_>) {
        pairs::int16(tile, scales);
    }

    /// Turns 64 values by the Hadamard matrix, scaled so that lengths and products stay as they are. What stands out
    /// among them is spread over all, so that 8 bits hold them better: the weights are turned too, so the product is
    /// the same (as in QuaRot, Ashkboos et al. 2024, arXiv:2404.00456, but within the 64 of a scale).
    fn hadamard(&self, x: &mut [f32; SCALED]);
    /// Quantizes up to 64 values: their scale, and -128 times the sum of the bytes.
    fn quantize(&self, x: &[f32], out: &mut Line) -> (f32, i32);
    /// Quantizes 64 values to whole numbers of 16 bits, `most` at most, at most 32767: their scale.
    fn quantize_16(&self, x: &[f32; SCALED], most: f32, out: &mut [Line; 2]) -> f32;
    /// `out = x / sqrt(mean(x²) + epsilon) * weight`.
    fn norm(&self, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]);
    /// `out = gate / (1 + exp(-gate)) * up`.
    fn gate(&self, gate: &[f32], up: &[f32], out: &mut [f32]);
    /// `x += y`.
    fn add(&self, x: &mut [f32], y: &[f32]);
    /// Turns the pairs `(x[i], x[i + half])` by the angles whose cosines and sines are given.
    fn rotate(&self, x: &mut [f32], cosines: &[f32], sines: &[f32]);
    /// The first of the largest values, NaN left aside; `usize::MAX` where the largest is not a finite number.
    fn argmax(&self, x: &[f32]) -> usize;
    /// Weighs one block of scores `[rows, 32]`, the online softmax: the first `valid[row]` of a row count. The weights go to
    /// the lines `row` and `rows + row`, 0 for what does not count. Earlier sums are to be multiplied with the row's
    /// `rescale`; says whether one of these is not 1.
    fn softmax(
        &self,
        scores: &[f32],
        valid: &[usize],
        states: &mut Softmax,
        weights: &mut [Line],
        rescale: &mut [f32; MOST_ROWS],
    ) -> bool;
    /// `x *= factor`.
    fn scale(&self, x: &mut [f32], factor: f32);
    /// Floats to the nearest half-precision floats; what is larger than these can be becomes the largest.
    fn narrow(&self, x: &[f32], out: &mut [u16]);
}

/// What the attention of a tile's rows has seen so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Softmax {
    /// The largest score.
    pub largest: [f32; MOST_ROWS],
    /// The sum of `exp(score - largest)`.
    pub sum: [f32; MOST_ROWS],
}

/// The paths of vector instructions that this processor has, the best one first.
fn vector_paths() -> Vec<&'static dyn Path> {
    #[cfg(target_arch = "x86_64")]
    return [avx512::paths(), avx2::paths()].concat();
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

/// The best path that this processor has, where it has one of vector instructions.
pub(crate) fn best() -> Option<&'static dyn Path> {
    vector_paths().first().copied()
}

/// The paths this processor has, the best one first, the plain loops last.
#[cfg(test)]
pub(crate) fn paths() -> Vec<&'static dyn Path> {
    let mut paths = vector_paths();
    paths.push(&portable::Portable);
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_that_the_processor_has_is_tested() {
        let names: Vec<_> = paths().iter().map(|path| path.name()).collect();
        assert_eq!(names.last(), Some(&"portable"));
        #[cfg(target_arch = "x86_64")]
        for (name, there) in [
            (
                "avx512",
                is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vnni"),
            ),
            (
                "avx512-bf16",
                is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512bf16"),
            ),
            ("avx2-vnni", is_x86_feature_detected!("avxvnni")),
            (
                "avx2",
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c"),
            ),
        ] {
            assert_eq!(names.contains(&name), there, "{name}");
        }
    }
}
