//! The embedding.

use super::super::super::kernels::Path;

/// The largest half-precision float.
const LARGEST_HALF: f32 = 65504.0;

/// The embedding `[vocab, width]`, in half precision unless everything is in f32.
pub(crate) struct Table {
    width: usize,
    floats: Vec<f32>,
    halves: Vec<u16>,
}

impl Table {
    /// Takes the values up. What half precision cannot hold stays as it is.
    pub(super) fn new(path: &dyn Path, values: &[f32], width: usize, halve: bool) -> Self {
        let mut table = Self {
            width,
            floats: Vec::new(),
            halves: Vec::new(),
        };
        if halve && values.iter().all(|value| value.abs() <= LARGEST_HALF) {
            table.halves = vec![0; values.len()];
            path.narrow(values, &mut table.halves);
        } else {
            table.floats = values.to_vec();
        }
        table
    }

    /// Values of a token.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// How many tokens there are.
    pub(super) fn vocab(&self) -> usize {
        self.floats.len().max(self.halves.len()) / self.width.max(1)
    }

    /// A token's values.
    pub(super) fn row(&self, path: &dyn Path, token: usize, out: &mut [f32]) {
        let part = token * self.width..(token + 1) * self.width;
        if self.halves.is_empty() {
            out.copy_from_slice(&self.floats[part]);
        } else {
            path.widen(&self.halves[part], out);
        }
    }
}
