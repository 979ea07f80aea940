//! Model files become sizes, weights and the way the model is spoken to. What they say is checked before it is believed: a wrong,
//! cut-off or hostile file is an error that names it.

mod adapter;
mod elements;
#[cfg(any(test, fuzzing))]
pub(super) mod entry;
mod folder;
mod gguf;
mod hub;
mod safetensors;
mod stored;

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde_json::Value;

use super::broken;
use super::chat::Chat;
use super::spec::Spec;
use crate::engine::Error;

/// What is to be loaded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// A GGUF file, a folder, the one safetensors file in its folder, or a hub id with `hf:` before it.
    pub model: &'a Path,
    /// A PEFT LoRA adapter's folder.
    pub adapter: Option<&'a Path>,
    /// A `tokenizer.json` that takes the place of the model's own.
    pub tokenizer: Option<&'a Path>,
    /// Whether the template lets the model reason before it answers, where it leaves the choice.
    pub thinking: bool,
}

/// Weights by the names that Hugging Face gives them, one at a time, so that the whole model is never in memory in f32.
pub(crate) trait Tensors: Send {
    /// Whether there is such a tensor.
    // The reference takes what the sizes name and does not ask; other forwards may.
    #[allow(dead_code)]
    fn has(&self, name: &str) -> bool;

    /// The tensor in f32 on the CPU, the adapter merged; its shape must be `shape`. It can be taken again, and is read again then.
    ///
    /// # Errors
    /// [`Error::Broken`] with file and tensor where it is missing, has another shape, cannot be read or holds a number that is not
    /// finite.
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, Error>;
}

/// A model that is ready to be built: every tensor that its sizes ask for is there in its shape, and no other.
pub(crate) struct Loaded {
    /// The sizes.
    pub spec: Spec,
    /// The weights.
    pub tensors: Box<dyn Tensors>,
    /// Template and tokenizer.
    pub chat: Chat,
    /// What it was read from: all that decides its answers.
    pub files: Vec<PathBuf>,
}

/// Where a file's bytes come from; tests take bytes in memory.
pub(super) trait Source: Read + Seek + Send {}

impl<T: Read + Seek + Send> Source for T {}

/// Opens a model, fetching it first where it is on the hub. Blocks.
///
/// # Errors
/// [`Error::Broken`] names the file, the place in it and what would do.
pub(crate) fn load(wanted: &Wanted<'_>) -> Result<Loaded, Error> {
    let fetched;
    let model = match hub::Id::of(wanted.model)? {
        Some(id) => {
            fetched = hub::Hub::from_environment()?.fetch(&id, wanted.tokenizer.is_none())?;
            fetched.as_path()
        }
        None => wanted.model,
    };
    let mut loaded = if model.is_dir() {
        folder::load(model, wanted)?
    } else if model.extension().is_some_and(|e| e == "safetensors") {
        folder::load_file(model, wanted)?
    } else {
        gguf::load(model, wanted)?
    };
    if let Some(folder) = wanted.adapter {
        let (tensors, files) = adapter::merge(folder, loaded.tensors, &loaded.spec)?;
        loaded.tensors = tensors;
        loaded.files.extend(files);
    }
    Ok(loaded)
}

/// JSON files of a model are small; whatever is larger is none.
const MOST_JSON_BYTES: u64 = 256 << 20;

fn json(path: &Path) -> Result<Value, Error> {
    serde_json::from_slice(&small(path)?).map_err(broken(path))
}

/// The bytes of a file that is read as a whole.
fn small(path: &Path) -> Result<Vec<u8>, Error> {
    let file = File::open(path).map_err(broken(path))?;
    let mut bytes = Vec::new();
    file.take(MOST_JSON_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(broken(path))?;
    if bytes.len() as u64 > MOST_JSON_BYTES {
        return Err(broken(path)(format!(
            "is larger than {MOST_JSON_BYTES} bytes"
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
