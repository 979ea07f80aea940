//! A folder as Hugging Face keeps a model: `config.json`, tokenizer, safetensors.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_transformers::models::{llama, qwen3};
use serde_json::Value;

use super::broken;
use super::chat::Chat;
use super::model::Spec;
use crate::engine::Error;

/// A model that was read.
pub(super) struct Loaded {
    pub(super) spec: Spec,
    /// 32-bit floats, under the names that Hugging Face gives them.
    pub(super) tensors: HashMap<String, Tensor>,
    pub(super) chat: Chat,
    /// What it was read from.
    pub(super) files: Vec<PathBuf>,
}

pub(super) fn folder(folder: &Path) -> Result<Loaded, Error> {
    let config_file = folder.join("config.json");
    let config = json(&config_file)?;
    let kind = config["model_type"].as_str().unwrap_or("none").to_owned();
    let spec = match kind.as_str() {
        "llama" => {
            let config: llama::LlamaConfig =
                serde_json::from_value(config.clone()).map_err(broken(&config_file))?;
            Spec::Llama(config.into_config(false))
        }
        "qwen3" => Spec::Qwen3(
            serde_json::from_value::<qwen3::Config>(config.clone())
                .map_err(broken(&config_file))?,
        ),
        other => {
            return Err(broken(&config_file)(format!(
                "model_type {other} is not supported: llama and qwen3 are"
            )));
        }
    };
    let mut files = vec![config_file];
    let mut tensors = HashMap::new();
    for file in safetensors(folder)? {
        let shard = candle_core::safetensors::load(&file, &Device::Cpu).map_err(broken(&file))?;
        for (name, tensor) in shard {
            let tensor = tensor.to_dtype(DType::F32).map_err(broken(&file))?;
            tensors.insert(name, tensor);
        }
        files.push(file);
    }
    let tokenizer_file = folder.join("tokenizer.json");
    let tokenizer = json(&tokenizer_file)?;
    files.push(tokenizer_file.clone());
    let settings_file = folder.join("tokenizer_config.json");
    let settings = json(&settings_file)?;
    let template_file = folder.join("chat_template.jinja");
    let template = if template_file.exists() {
        let text = fs::read_to_string(&template_file).map_err(broken(&template_file))?;
        files.push(template_file);
        text
    } else {
        let missing = || {
            broken(&settings_file)(
                "there is no chat_template, and no chat_template.jinja beside it",
            )
        };
        settings["chat_template"]
            .as_str()
            .ok_or_else(missing)?
            .to_owned()
    };
    files.push(settings_file);
    // A list, a number, or nothing.
    let mut stops = ids(&config["eos_token_id"]);
    let generation = folder.join("generation_config.json");
    if generation.exists() {
        stops.extend(ids(&json(&generation)?["eos_token_id"]));
        files.push(generation);
    }
    let bos = settings["bos_token"]
        .as_str()
        .or_else(|| settings["bos_token"]["content"].as_str());
    let chat = Chat::new(&tokenizer, &template, bos.unwrap_or(""), &stops)
        .map_err(broken(&tokenizer_file))?;
    Ok(Loaded {
        spec,
        tensors,
        chat,
        files,
    })
}

fn ids(value: &Value) -> Vec<u32> {
    let one = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    match value {
        Value::Array(all) => all.iter().filter_map(one).collect(),
        other => one(other).into_iter().collect(),
    }
}

/// The weight files: one, or the shards that the index names.
fn safetensors(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let index_file = folder.join("model.safetensors.index.json");
    if !index_file.exists() {
        return Ok(vec![folder.join("model.safetensors")]);
    }
    let index = json(&index_file)?;
    let map = index["weight_map"]
        .as_object()
        .ok_or_else(|| broken(&index_file)("there is no weight_map"))?;
    let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    names
        .into_iter()
        .map(|name| {
            // A name with a path in it would leave the folder.
            let plain = Path::new(name).file_name().is_some_and(|n| n == name);
            if plain {
                Ok(folder.join(name))
            } else {
                Err(broken(&index_file)(format!("{name:?} is no file name")))
            }
        })
        .collect()
}

fn json(path: &Path) -> Result<Value, Error> {
    let text = fs::read(path).map_err(broken(path))?;
    serde_json::from_slice(&text).map_err(broken(path))
}
