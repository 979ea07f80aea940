//! What one packed forward computes, and what it answers.

use crate::engine::Error;

/// Positions in a block of the KV cache.
pub(crate) const BLOCK: usize = 32;

/// What one packed forward computes: rows of many sequences, each with its own position.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Step {
    /// Token ids, `[T]`.
    pub tokens: Vec<u32>,
    /// Each sequence's run of rows, in order, without gaps: their lengths sum to `T`.
    pub spans: Vec<Span>,
    /// Rows whose logits are wanted, ascending.
    pub wanted: Vec<Wanted>,
}

/// A sequence's part of a step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Span {
    /// How many rows.
    pub rows: usize,
    /// The position of the first row: so many positions of the sequence are in the cache already.
    pub start: usize,
    /// The sequence's blocks; at least `ceil((start + rows) / BLOCK)` of them.
    pub blocks: Vec<u32>,
}

/// A row whose logits are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Which row of the step.
    pub row: usize,
    /// All of its logits; else only the likeliest token.
    pub logits: bool,
}

/// Stands for the likeliest token where the highest logit is not a finite number, so that there is none.
pub(crate) const NOTHING: u32 = u32::MAX;

/// What a wanted row said.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    /// The likeliest token, the first of equal ones; or [`NOTHING`].
    Likeliest(u32),
    /// The logits, `[vocab]`.
    Logits(Vec<f32>),
}

/// The model, as the scheduler sees it.
pub(crate) trait Forward {
    /// Runs the step; one answer for each wanted row, in order. Keys and values of every row are in the cache afterwards.
    ///
    /// # Errors
    /// [`Error::Broken`] where the computation fails; nothing of the step may be used then.
    fn step(&mut self, step: &Step) -> Result<Vec<Answer>, Error>;

    /// Copies a whole block of the cache, in every layer (copy on write).
    ///
    /// # Errors
    /// [`Error::Broken`] where the computation fails.
    fn copy_block(&mut self, from: u32, to: u32) -> Result<(), Error>;
}
