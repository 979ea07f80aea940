//! A folder as Hugging Face keeps a model: `config.json`, tokenizer, safetensors in one file or in shards.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::super::broken;
use super::super::chat::{Chat, Parts};
use super::super::spec::Spec;
use super::safetensors::header;
use super::stored::Stored;
use super::{Loaded, Wanted, json, small};
use crate::engine::Error;

/// The one weight file, where there are no shards.
pub(super) const WEIGHTS: &str = "model.safetensors";
/// Names the shards.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// The sizes.
pub(super) const CONFIG: &str = "config.json";
/// The tokenizer.
pub(super) const TOKENIZER: &str = "tokenizer.json";
/// What else says how the model is spoken to; each may be missing.
pub(super) const SETTINGS: [&str; 3] = [
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
];

pub(super) fn load(folder: &Path, wanted: &Wanted<'_>) -> Result<Loaded, Error> {
    load_with(folder, || stored(folder), wanted)
}

/// The model whose weights are all in that file; what else it needs lies beside it.
pub(super) fn load_file(file: &Path, wanted: &Wanted<'_>) -> Result<Loaded, Error> {
    let folder = file.parent().unwrap_or(Path::new(""));
    let index_file = folder.join(INDEX);
    if index_file.exists() {
        let shards = indexed(&index_file)?;
        let name = file.file_name().and_then(|name| name.to_str());
        if shards.values().any(|shard| Some(shard.as_str()) == name) {
            return Err(broken(file)(format!(
                "is one of several files of a model: give their folder, {}",
                folder.display()
            )));
        }
    }
    load_with(
        folder,
        || opened(file.to_owned(), vec![file.to_owned()]),
        wanted,
    )
}

fn load_with(
    folder: &Path,
    stored: impl FnOnce() -> Result<Stored, Error>,
    wanted: &Wanted<'_>,
) -> Result<Loaded, Error> {
    let config_file = folder.join(CONFIG);
    let config = json(&config_file)?;
    let spec = Spec::from_config(&config).map_err(broken(&config_file))?;
    let stored = stored()?;
    stored.check(&spec, str::to_owned)?;
    let mut files = vec![config_file];
    files.extend(stored.files.iter().map(|(path, _)| path.clone()));
    // A list, a number, or nothing.
    let mut stops = ids(&config["eos_token_id"]);
    let generation_file = folder.join(SETTINGS[2]);
    if generation_file.exists() {
        stops.extend(ids(&json(&generation_file)?["eos_token_id"]));
        files.push(generation_file);
    }
    let tokenizer_file = match wanted.tokenizer {
        Some(file) => file.to_owned(),
        None => folder.join(TOKENIZER),
    };
    if !tokenizer_file.exists() && wanted.tokenizer.is_none() {
        return Err(broken(&tokenizer_file)(
            "is missing: name a tokenizer.json in engine.tokenizer, or make one with transformers (AutoTokenizer, save_pretrained)",
        ));
    }
    let tokenizer = json(&tokenizer_file)?;
    files.push(tokenizer_file.clone());
    let speech = match Speech::of(folder)? {
        Some(speech) => speech,
        None => beside(&tokenizer_file)?.ok_or_else(|| {
            broken(folder)(
                "there is no chat template: neither chat_template.jinja nor a chat_template in tokenizer_config.json",
            )
        })?,
    };
    files.extend(speech.files);
    stops.extend(speech.end.and_then(|end| token_id(&tokenizer, &end)));
    let parts = Parts {
        tokenizer,
        template: speech.template,
        bos: speech.bos,
        stops,
        vocab: spec.vocab,
        thinking: wanted.thinking,
    };
    let chat = Chat::new(parts).map_err(broken(&tokenizer_file))?;
    Ok(Loaded {
        spec,
        tensors: Box::new(stored),
        chat,
        files,
    })
}

/// How the model is spoken to, as the files of a folder have it.
pub(super) struct Speech {
    pub(super) template: String,
    pub(super) bos: String,
    /// The token that ends a turn.
    end: Option<String>,
    pub(super) files: Vec<PathBuf>,
}

impl Speech {
    /// `None`: the folder has no template.
    pub(super) fn of(folder: &Path) -> Result<Option<Self>, Error> {
        let (settings_file, template_file) = (folder.join(SETTINGS[0]), folder.join(SETTINGS[1]));
        let mut files = Vec::new();
        let settings = if settings_file.exists() {
            files.push(settings_file.clone());
            json(&settings_file)?
        } else {
            Value::Null
        };
        let template = if template_file.exists() {
            files.push(template_file.clone());
            Some(String::from_utf8(small(&template_file)?).map_err(broken(&template_file))?)
        } else {
            template_in(&settings["chat_template"])
        };
        let token = |key: &str| {
            let token = &settings[key];
            let text = token.as_str().or_else(|| token["content"].as_str());
            text.map(str::to_owned)
        };
        Ok(template.map(|template| Self {
            template,
            bos: token("bos_token").unwrap_or_default(),
            end: token("eos_token"),
            files,
        }))
    }
}

/// What the folder of a `tokenizer.json` says of how the model is spoken to.
pub(super) fn beside(tokenizer_file: &Path) -> Result<Option<Speech>, Error> {
    tokenizer_file.parent().map_or(Ok(None), Speech::of)
}

/// One template, or several by name, of which `default` is ours.
fn template_in(value: &Value) -> Option<String> {
    let named = || {
        let all = value.as_array()?;
        let default = all.iter().find(|t| t["name"] == "default")?;
        default["template"].as_str()
    };
    value.as_str().or_else(named).map(str::to_owned)
}

fn token_id(tokenizer: &Value, content: &str) -> Option<u32> {
    let added = tokenizer["added_tokens"].as_array()?;
    let token = added.iter().find(|token| token["content"] == content)?;
    token["id"].as_u64().and_then(|id| u32::try_from(id).ok())
}

fn ids(value: &Value) -> Vec<u32> {
    let one = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    match value {
        Value::Array(all) => all.iter().filter_map(one).collect(),
        other => one(other).into_iter().collect(),
    }
}

/// Opens the weight files and reads their headers.
fn stored(folder: &Path) -> Result<Stored, Error> {
    let index_file = folder.join(INDEX);
    let shards = if index_file.exists() {
        Some(indexed(&index_file)?)
    } else {
        None
    };
    let (origin, paths) = match &shards {
        Some(map) => {
            let names: BTreeSet<&String> = map.values().collect();
            let paths = names.into_iter().map(|name| folder.join(name));
            (index_file.clone(), paths.collect())
        }
        None => (folder.join(WEIGHTS), vec![folder.join(WEIGHTS)]),
    };
    let stored = opened(origin, paths)?;
    for (name, shard) in shards.iter().flatten() {
        let held = stored.places.get(name).map(|place| stored.path(place));
        // What a file's reader leaves out is in no place at all.
        if held.is_some_and(|path| path != folder.join(shard)) {
            return Err(broken(&index_file)(format!(
                "tensor {name} is not in {shard}, where it should be"
            )));
        }
    }
    Ok(stored)
}

/// Their headers, read; `origin` is what is named where a tensor is missing.
fn opened(origin: PathBuf, paths: Vec<PathBuf>) -> Result<Stored, Error> {
    let mut stored = Stored {
        origin,
        files: Vec::new(),
        places: BTreeMap::new(),
    };
    for path in paths {
        let mut source: Box<dyn super::Source> =
            Box::new(File::open(&path).map_err(broken(&path))?);
        let places = header(source.as_mut(), stored.files.len()).map_err(broken(&path))?;
        for place in places {
            let name = place.name.clone();
            if let Some(other) = stored.places.insert(name.clone(), place) {
                return Err(broken(&path)(format!(
                    "tensor {name} is in {} as well",
                    stored.path(&other).display()
                )));
            }
        }
        stored.files.push((path, source));
    }
    Ok(stored)
}

/// The file of each tensor by an index that is there.
pub(super) fn indexed(index_file: &Path) -> Result<BTreeMap<String, String>, Error> {
    shards(&json(index_file)?).map_err(broken(index_file))
}

/// The file of each tensor by the index. No name leaves the folder.
pub(super) fn shards(index: &Value) -> Result<BTreeMap<String, String>, String> {
    let map = index["weight_map"]
        .as_object()
        .ok_or("there is no weight_map")?;
    map.iter()
        .map(|(tensor, name)| {
            let name = name.as_str().unwrap_or_default();
            let plain = Path::new(name).file_name().is_some_and(|n| n == name);
            if plain && name.ends_with(".safetensors") && !name.contains(['/', '\\']) {
                Ok((tensor.clone(), name.to_owned()))
            } else {
                Err(format!(
                    "the file {name:?} of tensor {tensor} is no name of a safetensors file"
                ))
            }
        })
        .collect()
}
