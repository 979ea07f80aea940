//! Bytes from anywhere into the loaders, for the fuzz targets: none of these may panic or allocate more than a small multiple of what
//! it was given.

use std::io::Cursor;
use std::path::Path;

use super::chat::{Chat, Parts};
use super::load::entry as load;
use super::spec::Spec;

/// A GGUF file: header, sizes, tokenizer, template, and then every tensor.
pub fn gguf(bytes: &[u8]) {
    load::gguf(
        Path::new("fuzz.gguf"),
        Box::new(Cursor::new(bytes.to_vec())),
    );
}

/// A safetensors file: header, and then every tensor.
pub fn safetensors(bytes: &[u8]) {
    load::safetensors(Box::new(Cursor::new(bytes.to_vec())));
}

/// A `model.safetensors.index.json`.
pub fn index(bytes: &[u8]) {
    load::index(bytes);
}

/// `adapter_config.json` and `adapter_model.safetensors`, as [`two`] parts them.
pub fn adapter(bytes: &[u8]) {
    let (config, weights) = two(bytes);
    load::adapter(config, Box::new(Cursor::new(weights.to_vec())));
}

/// A `config.json`.
pub fn config(bytes: &[u8]) {
    if let Ok(value) = serde_json::from_slice(bytes)
        && let Ok(spec) = Spec::from_config(&value)
    {
        // At most a few names for each of a bounded number of layers.
        assert!(spec.weights().len() >= 2);
    }
}

/// A `tokenizer.json` and a chat template, as [`two`] parts them.
pub fn chat(bytes: &[u8]) {
    let (tokenizer, template) = two(bytes);
    let Ok(tokenizer) = serde_json::from_slice(tokenizer) else {
        return;
    };
    let chat = Chat::new(Parts {
        tokenizer,
        template: String::from_utf8_lossy(template).into_owned(),
        bos: String::new(),
        stops: Vec::new(),
        vocab: 300,
        thinking: false,
    });
    if let Ok(chat) = chat
        && let Ok(ids) = chat.encode("be brief", "- loved Fargo (1996) \u{e9}<|im_end|>\n")
    {
        let _ = chat.decode(&ids);
    }
}

/// Two files in one: the first 4 bytes, little-endian, are the length of the first.
fn two(bytes: &[u8]) -> (&[u8], &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk() else {
        return (&[], &[]);
    };
    let length = u32::from_le_bytes(*length) as usize;
    rest.split_at(length.min(rest.len()))
}

#[cfg(test)]
mod tests;
