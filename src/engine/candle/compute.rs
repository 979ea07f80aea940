//! The operations that a packed forward is made of, whatever they run on.

mod cpu;
mod tensor;

pub(crate) use cpu::Cpu;
pub(crate) use tensor::TensorCompute;

use std::time::Duration;

use candle_core::{Result, Tensor};

use super::step::Step;

/// The operations of one forward. Rows are activations `[T, width]`.
pub(crate) trait Compute {
    /// Weights of a linear layer, as this implementation multiplies with them.
    type Matrix;
    /// Weights of a norm.
    type Vector;
    /// Activations, `[T, width]`.
    type Rows;

    /// Takes weights up, each part `[n, k]` in f32 on the CPU, stacked by rows: queries, keys and values in one, gate and up in one.
    ///
    /// # Errors
    /// Where the parts do not fit together or memory is short.
    fn matrix(&self, parts: &[Tensor], precision: Precision) -> Result<Self::Matrix>;

    /// Takes a norm's weights up, `[width]` in f32 on the CPU.
    ///
    /// # Errors
    /// Where memory is short.
    fn vector(&self, weights: &Tensor) -> Result<Self::Vector>;

    /// Takes a step up: its positions, and which rows belong together. Comes before all that follows.
    ///
    /// # Errors
    /// Where the step is not consistent.
    fn begin(&mut self, step: &Step) -> Result<()>;

    /// The tokens' embeddings, `[T, hidden]`.
    ///
    /// # Errors
    /// Where a token is beyond the vocabulary.
    fn embed(&mut self, embedding: &Self::Matrix, tokens: &[u32]) -> Result<Self::Rows>;

    /// `x / sqrt(mean(x²) + ε) · weight` for each row (RMS norm; Zhang and Sennrich 2019, arXiv:1910.07467), to be multiplied
    /// with `next`.
    ///
    /// # Errors
    /// Where the computation fails.
    fn norm(
        &mut self,
        x: &Self::Rows,
        weight: &Self::Vector,
        next: &Self::Matrix,
    ) -> Result<Self::Rows>;

    /// `x · wᵀ`: `[T, k]` by `[n, k]` to `[T, n]`.
    ///
    /// # Errors
    /// Where the computation fails.
    fn linear(&mut self, x: &Self::Rows, w: &Self::Matrix) -> Result<Self::Rows>;

    /// Queries, keys and values `[T, (heads + 2 kv_heads) · head_dim]`: normalizes heads where `norms` (query, key) says so, turns queries and
    /// keys to their positions, puts keys and values into the cache of `layer`, and attends causally over each sequence's
    /// blocks: `[T, heads · head_dim]`.
    ///
    /// # Errors
    /// Where the computation fails.
    fn attend(
        &mut self,
        layer: usize,
        qkv: Self::Rows,
        norms: Option<(&Self::Vector, &Self::Vector)>,
    ) -> Result<Self::Rows>;

    /// `silu(gate) · up` of `[T, 2 · width]`, the gate first: `[T, width]`, to be multiplied with `next`.
    ///
    /// # Errors
    /// Where the computation fails.
    fn gate(&mut self, gate_up: Self::Rows, next: &Self::Matrix) -> Result<Self::Rows>;

    /// `x += y`.
    ///
    /// # Errors
    /// Where the computation fails.
    fn add(&mut self, x: &mut Self::Rows, y: &Self::Rows) -> Result<()>;

    /// [`Compute::gate`] of [`Compute::linear`], for the product with `next` and nothing else.
    ///
    /// # Errors
    /// Where the computation fails.
    fn linear_gated(
        &mut self,
        x: &Self::Rows,
        w: &Self::Matrix,
        next: &Self::Matrix,
    ) -> Result<Self::Rows> {
        let gate_up = self.linear(x, w)?;
        self.gate(gate_up, next)
    }

    /// `x += y · wᵀ`.
    ///
    /// # Errors
    /// Where the computation fails.
    fn linear_added(&mut self, x: &mut Self::Rows, y: &Self::Rows, w: &Self::Matrix) -> Result<()> {
        let product = self.linear(y, w)?;
        self.add(x, &product)
    }

    /// Some of the rows, in the order given.
    ///
    /// # Errors
    /// Where the computation fails.
    fn select(&mut self, x: &Self::Rows, rows: &[usize]) -> Result<Self::Rows>;

    /// The index of each row's highest value, the first of equal ones; [`NOTHING`](super::step::NOTHING) where that is not a
    /// finite number.
    ///
    /// # Errors
    /// Where the computation fails.
    fn likeliest(&mut self, logits: &Self::Rows) -> Result<Vec<u32>>;

    /// One row's values.
    ///
    /// # Errors
    /// Where the computation fails.
    fn logits(&mut self, logits: &Self::Rows, row: usize) -> Result<Vec<f32>>;

    /// Copies a block of the cache in every layer.
    ///
    /// # Errors
    /// Where the computation fails.
    fn copy_block(&mut self, from: u32, to: u32) -> Result<()>;

    /// Where the time went since the last question, as far as it is known.
    fn times(&mut self) -> Times {
        Times::default()
    }
}

/// How finely a matrix is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    /// In the number format that was asked for.
    Asked,
    /// In 16 bits at least: the answers feel the rounding of these weights most.
    Fine,
}

/// Time by part of a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Times {
    /// Products with weights.
    pub matrix: Duration,
    /// Attention, and keys and values on their way into the cache.
    pub attention: Duration,
    /// Norms, sums, embeddings and the choice of tokens.
    pub other: Duration,
}

impl Times {
    /// The parts by the names that metrics give them.
    pub(crate) fn parts(&self) -> [(&'static str, Duration); 3] {
        [
            ("matrix", self.matrix),
            ("attention", self.attention),
            ("other", self.other),
        ]
    }
}
