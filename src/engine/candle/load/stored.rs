//! Tensors that lie in files and are read one at a time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use super::super::broken;
use super::super::spec::Spec;
use super::elements::Elements;
use super::{Source, Tensors};
use crate::engine::Error;

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Place {
    /// Which of the files.
    pub(super) file: usize,
    /// What it is called there.
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) elements: Elements,
    /// Of its first byte in the file. The reader of the file's header has checked that all its bytes are there.
    pub(super) offset: u64,
    /// Heads whose rows lie in pairs (0, 1), (2, 3) … for interleaved rotary positions; ours are in halves.
    pub(super) paired_heads: Option<usize>,
}

/// Tensors in files, under the names that Hugging Face gives them.
pub(super) struct Stored {
    /// What is named where a tensor is missing: a file, or a folder of files.
    pub(super) origin: PathBuf,
    pub(super) files: Vec<(PathBuf, Box<dyn Source>)>,
    pub(super) places: BTreeMap<String, Place>,
}

impl Stored {
    /// Whether the tensors are those of such a model, no more and no fewer, each in its shape. Reads none of them.
    ///
    /// # Errors
    /// The first tensor that is missing, has another shape or is not known.
    pub(super) fn check(&self, spec: &Spec, own_name: fn(&str) -> String) -> Result<(), Error> {
        let wanted: BTreeMap<String, Vec<usize>> = spec.weights().into_iter().collect();
        for (name, shape) in &wanted {
            let Some(place) = self.places.get(name) else {
                return Err(broken(&self.origin)(format!(
                    "tensor {} of the shape {shape:?} is missing",
                    own_name(name)
                )));
            };
            self.check_shape(place, shape)?;
        }
        match self.places.iter().find(|(name, _)| {
            // A copy of the embedding is often kept where it is the head as well.
            !(wanted.contains_key(*name) || spec.tied && *name == "lm_head.weight")
        }) {
            Some((_, place)) => Err(broken(self.path(place))(format!(
                "tensor {} of the shape {:?} is no part of a model of {} layers, {} a norm of each head: this engine would leave it out",
                place.name,
                place.shape,
                spec.layers,
                if spec.head_norms { "with" } else { "without" }
            ))),
            None => Ok(()),
        }
    }

    fn check_shape(&self, place: &Place, wanted: &[usize]) -> Result<(), Error> {
        if place.shape == wanted {
            return Ok(());
        }
        Err(broken(self.path(place))(format!(
            "tensor {} has the shape {:?}, but {wanted:?} is wanted",
            place.name, place.shape
        )))
    }

    /// The file that holds the tensor.
    pub(super) fn path(&self, place: &Place) -> &Path {
        &self.files[place.file].0
    }
}

impl Tensors for Stored {
    fn has(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, Error> {
        let Some(place) = self.places.get(name) else {
            return Err(broken(&self.origin)(format!("tensor {name} is missing")));
        };
        self.check_shape(place, shape)?;
        let (path, source) = &mut self.files[place.file];
        let fault = |error: String| broken(path)(format!("tensor {}: {error}", place.name));
        let count = shape.iter().product();
        let numbers = place
            .elements
            .read(source.as_mut(), place.offset, count)
            .map_err(fault)?;
        Tensor::from_vec(numbers, shape, &Device::Cpu)
            .and_then(|tensor| match place.paired_heads {
                Some(heads) => halved(&tensor, heads),
                None => Ok(tensor),
            })
            .map_err(|e| fault(e.to_string()))
    }
}

/// Rows from pairs (0, 1), (2, 3) … of each head to halves.
fn halved(weight: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let (rows, columns) = weight.dims2()?;
    weight
        .reshape((heads, rows / heads / 2, 2, columns))?
        .transpose(1, 2)?
        .reshape((rows, columns))
}
