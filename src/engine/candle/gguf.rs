//! A GGUF file: weights (dequantized at load), tokenizer and template in one.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{Device, Tensor};
use candle_nn::Activation;
use candle_transformers::models::{llama, qwen3};
use serde_json::json;

use super::broken;
use super::chat::Chat;
use super::model::Spec;
use super::weights::Loaded;
use crate::engine::Error;

/// Token types of the GGUF specification that stand for markers, not for text.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

pub(super) fn file(path: &Path) -> Result<Loaded, Error> {
    let mut reader = BufReader::new(File::open(path).map_err(broken(path))?);
    let content = Content::read(&mut reader).map_err(broken(path))?;
    let meta = Meta {
        content: &content,
        path,
    };
    let architecture = meta.text("general.architecture")?;
    if !matches!(architecture, "llama" | "qwen3") {
        return Err(broken(path)(format!(
            "architecture {architecture} is not supported: llama and qwen3 are"
        )));
    }
    let number = |key: &str| meta.number(&format!("{architecture}.{key}"));
    let (heads, kv_heads) = (
        number("attention.head_count")?,
        number("attention.head_count_kv")?,
    );
    let layers = number("block_count")?;
    if heads == 0 || kv_heads == 0 || heads % kv_heads != 0 {
        return Err(broken(path)(format!(
            "{heads} heads cannot share {kv_heads} of keys and values"
        )));
    }
    let mut tensors = HashMap::new();
    for name in content.tensor_infos.keys() {
        let Some(known) = hub_name(name) else {
            return Err(broken(path)(format!(
                "tensor {name} is not of a {architecture} model"
            )));
        };
        let Some(known) = known else {
            continue;
        };
        let weight = content
            .tensor(&mut reader, name, &Device::Cpu)
            .and_then(|t| t.dequantize(&Device::Cpu))
            .and_then(|t| match name {
                // llama.cpp's converter permutes these rows for interleaved rotary embeddings; ours are in halves.
                n if architecture == "llama" && n.ends_with("attn_q.weight") => {
                    unpermuted(&t, heads)
                }
                n if architecture == "llama" && n.ends_with("attn_k.weight") => {
                    unpermuted(&t, kv_heads)
                }
                _ => Ok(t),
            })
            .map_err(|e| broken(path)(format!("tensor {name}: {e}")))?;
        tensors.insert(known, weight);
    }
    let embedding = tensors
        .get("model.embed_tokens.weight")
        .ok_or_else(|| broken(path)("tensor token_embd.weight is missing"))?;
    let (vocab_size, hidden_size) = embedding.dims2().map_err(broken(path))?;
    let tied = !tensors.contains_key("lm_head.weight");
    let epsilon = meta.float(&format!("{architecture}.attention.layer_norm_rms_epsilon"))?;
    let theta = meta
        .float(&format!("{architecture}.rope.freq_base"))
        .unwrap_or(10_000.0);
    let intermediate_size = number("feed_forward_length")?;
    let context = number("context_length")?;
    #[allow(clippy::cast_possible_truncation)]
    let spec = if architecture == "llama" {
        Spec::Llama(llama::Config {
            hidden_size,
            intermediate_size,
            vocab_size,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            use_flash_attn: false,
            rms_norm_eps: epsilon,
            rope_theta: theta as f32,
            bos_token_id: None,
            eos_token_id: None,
            rope_scaling: None,
            max_position_embeddings: context,
            tie_word_embeddings: tied,
        })
    } else {
        Spec::Qwen3(qwen3::Config {
            vocab_size,
            hidden_size,
            intermediate_size,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            head_dim: number("attention.key_length").unwrap_or(hidden_size / heads),
            attention_bias: false,
            num_key_value_heads: kv_heads,
            max_position_embeddings: context,
            sliding_window: None,
            max_window_layers: layers,
            tie_word_embeddings: tied,
            rope_theta: theta,
            rms_norm_eps: epsilon,
            use_sliding_window: false,
            hidden_act: Activation::Silu,
        })
    };
    Ok(Loaded {
        spec,
        tensors,
        chat: chat(&meta)?,
        files: vec![path.to_owned()],
    })
}

/// A tensor's name as Hugging Face has it; `Some(None)`: not needed; `None`: unknown.
fn hub_name(name: &str) -> Option<Option<String>> {
    let top = match name {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        "rope_freqs.weight" => return Some(None),
        _ => None,
    };
    if let Some(top) = top {
        return Some(Some(top.to_owned()));
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let part = match part.strip_suffix(".weight")? {
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        _ => return None,
    };
    Some(Some(format!("model.layers.{layer}.{part}.weight")))
}

/// Rows from pairs (0, 1), (2, 3) … of each head back to halves.
fn unpermuted(weight: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let (rows, columns) = weight.dims2()?;
    weight
        .reshape((heads, rows / heads / 2, 2, columns))?
        .transpose(1, 2)?
        .reshape((rows, columns))
}

fn chat(meta: &Meta<'_>) -> Result<Chat, Error> {
    let fail = |what: &str| broken(meta.path)(what.to_owned());
    if meta.text("tokenizer.ggml.model")? != "gpt2" {
        return Err(fail(
            "only byte-pair tokenizers (tokenizer.ggml.model = gpt2) are supported",
        ));
    }
    let byte_level = |use_regex| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let pre = meta.text("tokenizer.ggml.pre")?;
    let (steps, normalizer, whole_words) = match pre {
        "smollm" => (
            vec![
                json!({"type": "Digits", "individual_digits": true}),
                byte_level(true),
            ],
            json!(null),
            false,
        ),
        "qwen2" => (
            vec![
                split(
                    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
                ),
                byte_level(false),
            ],
            json!({"type": "NFC"}),
            false,
        ),
        "llama-bpe" => (
            vec![
                split(
                    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
                ),
                byte_level(false),
            ],
            json!(null),
            true,
        ),
        other => {
            return Err(fail(&format!(
                "tokenizer.ggml.pre {other} is not supported: smollm, qwen2 and llama-bpe are"
            )));
        }
    };
    let tokens = meta.list("tokenizer.ggml.tokens")?;
    let types = meta.list("tokenizer.ggml.token_type")?;
    let (mut vocab, mut added) = (serde_json::Map::new(), Vec::new());
    for (id, token) in tokens.iter().enumerate() {
        let text = token.to_string().map_err(broken(meta.path))?;
        let kind = types.get(id).and_then(integer);
        if matches!(kind, Some(CONTROL | USER_DEFINED)) {
            added.push(json!({"id": id, "content": text, "special": kind == Some(CONTROL), "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}));
        }
        vocab.insert(text.clone(), id.into());
    }
    let merges = meta.list("tokenizer.ggml.merges")?;
    let merges: Vec<&String> = merges
        .iter()
        .map(Value::to_string)
        .collect::<Result<_, _>>()
        .map_err(broken(meta.path))?;
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": false, "byte_fallback": false, "ignore_merges": whole_words, "vocab": vocab, "merges": merges},
    });
    let id = |key: &str| meta.number(key).ok();
    let bos = id("tokenizer.ggml.bos_token_id")
        .and_then(|id| tokens.get(id))
        .and_then(|t| t.to_string().ok());
    let stops: Vec<u32> = id("tokenizer.ggml.eos_token_id")
        .and_then(|id| u32::try_from(id).ok())
        .into_iter()
        .collect();
    let template = meta.text("tokenizer.chat_template")?;
    Chat::new(&tokenizer, template, bos.map_or("", String::as_str), &stops)
        .map_err(broken(meta.path))
}

struct Meta<'a> {
    content: &'a Content,
    path: &'a Path,
}

impl<'a> Meta<'a> {
    fn get(&self, key: &str) -> Result<&'a Value, Error> {
        self.content
            .metadata
            .get(key)
            .ok_or_else(|| broken(self.path)(format!("{key} is missing")))
    }

    fn text(&self, key: &str) -> Result<&'a str, Error> {
        let value = self.get(key)?.to_string();
        value
            .map(String::as_str)
            .map_err(|e| broken(self.path)(format!("{key}: {e}")))
    }

    fn list(&self, key: &str) -> Result<&'a [Value], Error> {
        let value = self.get(key)?.to_vec();
        value
            .map(Vec::as_slice)
            .map_err(|e| broken(self.path)(format!("{key}: {e}")))
    }

    fn number(&self, key: &str) -> Result<usize, Error> {
        let number = integer(self.get(key)?).and_then(|n| usize::try_from(n).ok());
        number.ok_or_else(|| broken(self.path)(format!("{key} is no whole number")))
    }

    fn float(&self, key: &str) -> Result<f64, Error> {
        match self.get(key)? {
            Value::F32(x) => Ok(f64::from(*x)),
            Value::F64(x) => Ok(*x),
            _ => Err(broken(self.path)(format!("{key} is no number"))),
        }
    }
}

fn integer(value: &Value) -> Option<i64> {
    match *value {
        Value::U8(n) => Some(n.into()),
        Value::I8(n) => Some(n.into()),
        Value::U16(n) => Some(n.into()),
        Value::I16(n) => Some(n.into()),
        Value::U32(n) => Some(n.into()),
        Value::I32(n) => Some(n.into()),
        Value::I64(n) => Some(n),
        Value::U64(n) => i64::try_from(n).ok(),
        _ => None,
    }
}
