//! One packed forward: rows of many sequences, each with its own position.

use crate::engine::Error;

/// Positions in a block of the KV cache.
pub(crate) const BLOCK: usize = 32;

/// What one packed forward computes: rows of many sequences, each with its own position.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Step {
    /// [T] token ids.
    pub tokens: Vec<u32>,
    /// Each sequence's run of rows, in order, without gaps: their lengths sum to T.
    pub spans: Vec<Span>,
    /// Rows whose logits are wanted, ascending.
    pub wanted: Vec<Wanted>,
}

/// The rows of one sequence in a step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Span {
    /// How many rows.
    pub rows: usize,
    /// The position of the first row = how many positions of the sequence are in the cache already.
    pub start: usize,
    /// The sequence's blocks; at least ceil((start + rows) / BLOCK) of them.
    pub blocks: Vec<u32>,
}

/// A row whose next token is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Which of the step's rows.
    pub row: usize,
    /// All logits, else only the likeliest token.
    pub logits: bool,
}

/// What a wanted row gave.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    /// The token with the highest logit, the first of equals.
    Likeliest(u32),
    /// [vocab] logits.
    Logits(Vec<f32>),
}

/// The model, as the scheduler sees it.
pub(crate) trait Forward {
    /// Runs the step; one answer for each wanted row, in order. K and V of every row are then in the cache.
    ///
    /// # Errors
    /// The model's own; what the step would have written is then undefined.
    fn step(&mut self, step: &Step) -> Result<Vec<Answer>, Error>;

    /// Copies a whole block of the cache (copy on write).
    ///
    /// # Errors
    /// The model's own.
    fn copy_block(&mut self, from: u32, to: u32) -> Result<(), Error>;
}
