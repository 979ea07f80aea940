//! PEFT LoRA adapters, merged into the weights: `W + scale * B A` (Hu et al. 2021, arXiv:2106.09685).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::Tensor;

use super::super::broken;
use super::super::spec::Spec;
use super::safetensors::header;
use super::stored::Stored;
use super::{Source, Tensors, small};
use crate::engine::Error;
use config::{Config, Scale};

mod config;

/// PEFT's wrapping around the names of the model's own modules.
const PREFIX: &str = "base_model.model.";

/// The model's weights with an adapter in them. A pair of the adapter is read when its weight is.
struct Merged {
    base: Box<dyn Tensors>,
    pairs: Pairs,
}

/// An adapter's matrices.
struct Pairs {
    stored: Stored,
    /// By the name of the weight that it changes.
    scales: BTreeMap<String, Scale>,
}

/// Puts the adapter in `folder` over `base`; returns the files that it is made of too.
///
/// # Errors
/// What in the adapter is not supported or does not fit the model, with file and key or tensor.
pub(super) fn merge(
    folder: &Path,
    base: Box<dyn Tensors>,
    spec: &Spec,
) -> Result<(Box<dyn Tensors>, Vec<PathBuf>), Error> {
    let (config_file, weights_file) = (
        folder.join("adapter_config.json"),
        folder.join("adapter_model.safetensors"),
    );
    let config = Config::parse(&small(&config_file)?).map_err(broken(&config_file))?;
    let file = File::open(&weights_file).map_err(broken(&weights_file))?;
    let pairs =
        Pairs::open(&weights_file, Box::new(file), &config, spec).map_err(broken(&weights_file))?;
    Ok((
        Box::new(Merged { base, pairs }),
        vec![config_file, weights_file],
    ))
}

fn matrices(target: &str) -> [String; 2] {
    let module = target.strip_suffix(".weight").unwrap_or(target);
    ["A", "B"].map(|which| format!("{PREFIX}{module}.lora_{which}.weight"))
}

impl Pairs {
    /// Reads the header and checks every shape; reads no matrix.
    fn open(
        path: &Path,
        mut source: Box<dyn Source>,
        config: &Config,
        spec: &Spec,
    ) -> Result<Self, String> {
        let mut places = BTreeMap::new();
        for place in header(source.as_mut(), 0)? {
            places.insert(place.name.clone(), place);
        }
        let stored = Stored {
            origin: path.to_owned(),
            files: vec![(path.to_owned(), source)],
            places,
        };
        let weights: BTreeMap<String, Vec<usize>> = spec.weights().into_iter().collect();
        let (mut scales, mut used) = (BTreeMap::new(), BTreeSet::new());
        for name in stored.places.keys() {
            let Some(module) = name
                .strip_prefix(PREFIX)
                .and_then(|n| n.strip_suffix(".lora_A.weight"))
            else {
                continue;
            };
            let target = format!("{module}.weight");
            if spec.tied && target == "lm_head.weight" {
                return Err(format!(
                    "{name} is for {target}, which this model shares with its embedding: such adapters are not supported"
                ));
            }
            let shape = weights
                .get(&target)
                .ok_or_else(|| format!("{name} is for {target}, which the model does not have"))?;
            let [rows, columns] = shape[..] else {
                return Err(format!("{name} is for {target}, which is no matrix"));
            };
            let scale = config.scale(module);
            let wanted = [vec![scale.rank, columns], vec![rows, scale.rank]];
            for (matrix, wanted) in matrices(&target).into_iter().zip(wanted) {
                let place = stored
                    .places
                    .get(&matrix)
                    .ok_or_else(|| format!("{matrix} is missing"))?;
                if place.shape != wanted {
                    return Err(format!(
                        "{matrix} has the shape {:?}, but {wanted:?} is wanted for {target} of the shape {shape:?} and rank {}",
                        place.shape, scale.rank
                    ));
                }
                used.insert(matrix);
            }
            scales.insert(target, scale);
        }
        match stored.places.keys().find(|name| !used.contains(*name)) {
            Some(unknown) => Err(format!(
                "{unknown} is no part of a LoRA adapter of linear layers: only pairs of lora_A and lora_B are merged"
            )),
            None if scales.is_empty() => Err("the adapter is empty".to_owned()),
            None => Ok(Self { stored, scales }),
        }
    }

    /// What is added to the weight of that name and shape; `None`: nothing.
    fn delta(&mut self, target: &str, shape: &[usize]) -> Result<Option<Tensor>, Error> {
        let (Some(scale), &[rows, columns]) = (self.scales.get(target), shape) else {
            return Ok(None);
        };
        let (rank, factor) = (scale.rank, scale.factor);
        let [a_name, b_name] = matrices(target);
        let a = self.stored.take(&a_name, &[rank, columns])?;
        let b = self.stored.take(&b_name, &[rows, rank])?;
        let delta = b.matmul(&a).and_then(|product| product * factor);
        delta
            .map(Some)
            .map_err(|e| broken(&self.stored.origin)(format!("{a_name} for {target}: {e}")))
    }
}

impl Tensors for Merged {
    fn has(&self, name: &str) -> bool {
        self.base.has(name)
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, Error> {
        let weight = self.base.take(name, shape)?;
        let Some(delta) = self.pairs.delta(name, shape)? else {
            return Ok(weight);
        };
        let fault =
            |e: String| broken(&self.pairs.stored.origin)(format!("merged into {name}: {e}"));
        let merged = (weight + delta).map_err(|e| fault(e.to_string()))?;
        let largest = merged
            .abs()
            .and_then(|all| all.max_all()?.to_scalar::<f32>())
            .map_err(|e| fault(e.to_string()))?;
        if largest.is_finite() {
            Ok(merged)
        } else {
            Err(fault("the weight is no longer finite".to_owned()))
        }
    }
}

/// For the fuzz targets: an adapter in memory.
#[cfg(any(test, fuzzing))]
pub(super) fn entry(config: &[u8], weights: Box<dyn Source>, spec: &Spec) {
    let path = Path::new("fuzz.safetensors");
    if let Ok(config) = Config::parse(config)
        && let Ok(mut pairs) = Pairs::open(path, weights, &config, spec)
    {
        for (name, shape) in spec.weights() {
            let _ = pairs.delta(&name, &shape);
        }
    }
}

#[cfg(test)]
mod tests;
