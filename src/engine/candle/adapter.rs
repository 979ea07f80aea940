//! PEFT LoRA adapters, merged into the weights: `W + scale * B A` (Hu et al. 2021, arXiv:2106.09685).

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use super::broken;
use crate::engine::Error;

#[derive(Deserialize)]
struct Config {
    r: f64,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    rank_pattern: HashMap<String, f64>,
    #[serde(default)]
    alpha_pattern: HashMap<String, f64>,
}

const PREFIX: &str = "base_model.model.";

/// Merges the adapter in `folder`; returns the files that it is made of.
pub(super) fn merge(
    folder: &Path,
    tensors: &mut HashMap<String, Tensor>,
) -> Result<Vec<PathBuf>, Error> {
    let files = vec![
        folder.join("adapter_config.json"),
        folder.join("adapter_model.safetensors"),
    ];
    let (config_file, weights_file) = (&files[0], &files[1]);
    let text = fs::read(config_file).map_err(broken(config_file))?;
    let config: Config = serde_json::from_slice(&text).map_err(broken(config_file))?;
    if !config.rank_pattern.is_empty() || !config.alpha_pattern.is_empty() {
        return Err(broken(config_file)(
            "rank_pattern and alpha_pattern are not supported",
        ));
    }
    let root = if config.use_rslora {
        config.r.sqrt()
    } else {
        config.r
    };
    let scale = config.lora_alpha / root;
    if !scale.is_finite() {
        return Err(broken(config_file)("r must be above 0"));
    }
    let adapter =
        candle_core::safetensors::load(weights_file, &Device::Cpu).map_err(broken(weights_file))?;
    let mut used = BTreeSet::new();
    for name in adapter.keys() {
        let Some(module) = name
            .strip_prefix(PREFIX)
            .and_then(|n| n.strip_suffix(".lora_A.weight"))
        else {
            continue;
        };
        let (a_name, b_name) = (name.clone(), format!("{PREFIX}{module}.lora_B.weight"));
        let target = format!("{module}.weight");
        let fail = |what: String| broken(weights_file)(what);
        let b = adapter
            .get(&b_name)
            .ok_or_else(|| fail(format!("{b_name} is missing")))?;
        let weight = tensors.get(&target).ok_or_else(|| {
            fail(format!(
                "{a_name} is for {target}, which the model does not have"
            ))
        })?;
        let merged = delta(&adapter[&a_name], b, scale).and_then(|delta| weight + delta);
        let merged = merged.map_err(|e| fail(format!("{a_name} does not fit {target}: {e}")))?;
        tensors.insert(target, merged);
        used.extend([a_name, b_name]);
    }
    if let Some(unknown) = adapter.keys().find(|name| !used.contains(*name)) {
        return Err(broken(weights_file)(format!(
            "{unknown} is no part of a LoRA adapter"
        )));
    }
    Ok(files)
}

fn delta(a: &Tensor, b: &Tensor, scale: f64) -> candle_core::Result<Tensor> {
    b.to_dtype(DType::F32)?.matmul(&a.to_dtype(DType::F32)?)? * scale
}
