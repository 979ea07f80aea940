//! The rotary angles of positions.

use std::ops::Range;

/// Cosines and sines of all positions up to the furthest that there was, `[positions, head_dim / 2]`.
pub(super) struct Angles {
    frequencies: Vec<f32>,
    turns: Turns,
}

/// Cosines and sines of some rows, `[rows, head_dim / 2]`.
#[derive(Default)]
pub(super) struct Turns {
    pub(super) cosines: Vec<f32>,
    pub(super) sines: Vec<f32>,
}

impl Angles {
    /// No positions so far. The frequencies are in radians a position, at least one.
    pub(super) fn new(frequencies: Vec<f32>) -> Self {
        Self {
            frequencies,
            turns: Turns::default(),
        }
    }

    /// Sees to it that positions below `end` are known. Angles are taken in f32, as the models were trained.
    pub(super) fn reach(&mut self, end: usize) {
        for position in self.turns.cosines.len() / self.frequencies.len()..end {
            for frequency in &self.frequencies {
                let (sine, cosine) = f64::from(position as f32 * frequency).sin_cos();
                self.turns.cosines.push(cosine as f32);
                self.turns.sines.push(sine as f32);
            }
        }
    }
}

impl Turns {
    /// No rows.
    pub(super) fn clear(&mut self) {
        self.cosines.clear();
        self.sines.clear();
    }

    /// Adds rows at positions that are known.
    pub(super) fn take(&mut self, angles: &Angles, positions: Range<usize>) {
        let half = angles.frequencies.len();
        let part = positions.start * half..positions.end * half;
        let cosines = &angles.turns.cosines[part.clone()];
        self.cosines.extend_from_slice(cosines);
        self.sines.extend_from_slice(&angles.turns.sines[part]);
    }
}
