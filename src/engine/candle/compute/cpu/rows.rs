//! Activations between the operations, in memory that is used again.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Result, bail};

use super::super::super::kernels::{Activations, Buffer, Kind, Matrix, Path};

/// What a row set is made of.
#[derive(Default)]
struct Memory {
    values: Buffer,
    packed: Activations,
}

/// Memory of rows that are gone.
#[derive(Clone, Default)]
pub(super) struct Spare(Arc<Mutex<Vec<Memory>>>);

impl Spare {
    /// Rows whose values are not said.
    pub(super) fn rows(&self, count: usize, width: usize) -> Rows {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut memory = all.pop().unwrap_or_default();
        drop(all);
        memory.values.resize(count * width);
        Rows {
            count,
            width,
            memory,
            packed: false,
            home: self.clone(),
        }
    }
}

/// Activations `[count, width]`.
pub(crate) struct Rows {
    count: usize,
    width: usize,
    memory: Memory,
    /// Whether the values are packed for a linear layer as well.
    packed: bool,
    home: Spare,
}

impl Rows {
    /// How many.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Values in each.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// That the values are there, not only packed ones.
    pub(super) fn check(&self) -> Result<()> {
        if self.memory.values.len() != self.count * self.width {
            bail!("rows made for a linear layer and nothing else");
        }
        Ok(())
    }

    /// All of them.
    pub(super) fn values(&self) -> &[f32] {
        &self.memory.values
    }

    /// All of them, to be changed: what was packed is no longer.
    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        self.packed = false;
        &mut self.memory.values
    }

    /// One of them.
    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.memory.values[row * self.width..(row + 1) * self.width]
    }

    /// Values and packed values, to be filled together.
    pub(super) fn parts(&mut self) -> (&mut [f32], &mut Activations) {
        (&mut self.memory.values, &mut self.memory.packed)
    }

    /// Packed values alone, to be filled: there are no others then.
    pub(super) fn packed_alone(&mut self) -> &mut Activations {
        self.memory.values.resize(0);
        self.packed = true;
        &mut self.memory.packed
    }

    /// Says that both are filled.
    pub(super) fn set_packed(&mut self) {
        self.packed = true;
    }

    /// Packed as a product with such weights wants them on this path, where they are.
    pub(super) fn packed_for(&self, w: &Matrix, path: &dyn Path) -> Option<&Activations> {
        let kind = Kind::of(w.format(), path);
        let packed = self.packed.then_some(&self.memory.packed);
        packed.filter(|packed| packed.kind() == Some(kind))
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        let mut all = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(memory);
    }
}
