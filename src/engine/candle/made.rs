//! Small random models, made where tests need them: as a folder of safetensors and as GGUF.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value as Meta};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use super::load::Tensors;
use super::reference::Reference;
use super::spec::Spec;

/// A model of random weights.
pub(crate) struct Made {
    pub spec: Spec,
    pub tensors: BTreeMap<String, Tensor>,
}

/// The markers of [`tokenizer`], from token 260 on.
pub(crate) const MARKERS: [&str; 5] = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
];
pub(crate) const TEMPLATE: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}";

/// A small model of the Llama family; change what the test is about.
pub(crate) fn small() -> Spec {
    Spec {
        layers: 2,
        hidden: 32,
        intermediate: 64,
        vocab: 300,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        context: 128,
        norm_epsilon: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        head_norms: false,
        tied: true,
    }
}

/// A number for the likes of `-1.0..1.0`.
fn random(rng: &mut fastrand::Rng) -> f32 {
    rng.f32().mul_add(2.0, -1.0)
}

/// Random numbers of a shape.
pub(crate) fn tensor(rng: &mut fastrand::Rng, shape: &[usize], size: f32) -> Tensor {
    let numbers: Vec<f32> = (0..shape.iter().product())
        .map(|_| random(rng) * size)
        .collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

impl Made {
    /// The same seed makes the same weights.
    pub(crate) fn new(spec: Spec, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let tensors = spec
            .weights()
            .into_iter()
            .map(|(name, shape)| {
                let weight = match shape[..] {
                    // Norms are near 1, as they are in real models.
                    [_] => (tensor(&mut rng, &shape, 0.3) + 1.0).unwrap(),
                    _ => tensor(&mut rng, &shape, 0.2),
                };
                (name, weight)
            })
            .collect();
        Self { spec, tensors }
    }

    /// `config.json`, as transformers writes it.
    pub(crate) fn config(&self) -> Value {
        let spec = &self.spec;
        let mut config = json!({
            "model_type": if spec.head_norms { "qwen3" } else { "llama" },
            "hidden_size": spec.hidden, "intermediate_size": spec.intermediate, "vocab_size": spec.vocab,
            "num_hidden_layers": spec.layers, "num_attention_heads": spec.heads, "num_key_value_heads": spec.kv_heads,
            "head_dim": spec.head_dim, "max_position_embeddings": spec.context, "rms_norm_eps": spec.norm_epsilon,
            "rope_theta": spec.rope_theta, "tie_word_embeddings": spec.tied, "hidden_act": "silu", "eos_token_id": 262,
        });
        if let Some(scaling) = &spec.rope_scaling {
            config["rope_scaling"] = json!({
                "rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor, "original_max_position_embeddings": scaling.original_context,
            });
        }
        config
    }

    /// Writes a folder; more than one shard: with their index.
    pub(crate) fn folder(&self, folder: &Path, shards: usize, dtype: DType) {
        fs::create_dir_all(folder).unwrap();
        let text = |name: &str, value: &Value| {
            fs::write(folder.join(name), serde_json::to_vec(value).unwrap()).unwrap();
        };
        text("config.json", &self.config());
        text("tokenizer.json", &tokenizer());
        let settings = json!({"chat_template": TEMPLATE, "eos_token": "<|im_end|>"});
        text("tokenizer_config.json", &settings);
        let mut parts = vec![std::collections::HashMap::new(); shards];
        let mut map = serde_json::Map::new();
        for (i, (name, tensor)) in self.tensors.iter().enumerate() {
            let file = format!("model-{:05}-of-{shards:05}.safetensors", i % shards + 1);
            map.insert(name.clone(), file.into());
            parts[i % shards].insert(name.clone(), tensor.to_dtype(dtype).unwrap());
        }
        for (i, part) in parts.iter().enumerate() {
            let name = match shards {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{shards:05}.safetensors", i + 1),
            };
            candle_core::safetensors::save(part, folder.join(name)).unwrap();
        }
        if shards > 1 {
            let index = json!({"metadata": {}, "weight_map": map});
            text("model.safetensors.index.json", &index);
        }
    }

    /// The metadata of a GGUF file of the model.
    pub(crate) fn metadata(&self) -> BTreeMap<String, Meta> {
        let spec = &self.spec;
        let architecture = if spec.head_norms { "qwen3" } else { "llama" };
        let number = |n: usize| Meta::U32(u32::try_from(n).unwrap());
        let text = |t: &str| Meta::String(t.to_owned());
        let tokenizer = tokenizer();
        let mut tokens = vec![String::new(); 260 + MARKERS.len()];
        for (token, id) in tokenizer["model"]["vocab"].as_object().unwrap() {
            tokens[usize::try_from(id.as_u64().unwrap()).unwrap()] = token.clone();
        }
        let types = (0..tokens.len())
            .map(|id| {
                Meta::I32(match id {
                    0..260 => 1,
                    263.. => 4,
                    _ => 3,
                })
            })
            .collect();
        for (i, marker) in MARKERS.iter().enumerate() {
            tokens[260 + i] = (*marker).to_owned();
        }
        let merges = tokenizer["model"]["merges"].as_array().unwrap();
        let merges = merges.iter().map(|m| {
            text(&format!(
                "{} {}",
                m[0].as_str().unwrap(),
                m[1].as_str().unwrap()
            ))
        });
        let mut all = BTreeMap::from([
            ("general.architecture".to_owned(), text(architecture)),
            ("tokenizer.ggml.model".to_owned(), text("gpt2")),
            ("tokenizer.ggml.pre".to_owned(), text("qwen2")),
            (
                "tokenizer.ggml.tokens".to_owned(),
                Meta::Array(tokens.iter().map(|t| text(t)).collect()),
            ),
            ("tokenizer.ggml.token_type".to_owned(), Meta::Array(types)),
            (
                "tokenizer.ggml.merges".to_owned(),
                Meta::Array(merges.collect()),
            ),
            ("tokenizer.ggml.eos_token_id".to_owned(), Meta::U32(262)),
            ("tokenizer.chat_template".to_owned(), text(TEMPLATE)),
        ]);
        for (name, value) in [
            ("block_count", number(spec.layers)),
            ("embedding_length", number(spec.hidden)),
            ("feed_forward_length", number(spec.intermediate)),
            ("context_length", number(spec.context)),
            ("attention.head_count", number(spec.heads)),
            ("attention.head_count_kv", number(spec.kv_heads)),
            ("attention.key_length", number(spec.head_dim)),
            ("attention.value_length", number(spec.head_dim)),
            (
                "attention.layer_norm_rms_epsilon",
                Meta::F32(spec.norm_epsilon),
            ),
            #[allow(clippy::cast_possible_truncation)]
            ("rope.freq_base", Meta::F32(spec.rope_theta as f32)),
        ] {
            all.insert(format!("{architecture}.{name}"), value);
        }
        all
    }

    /// The tensors under GGUF's names, queries and keys of llama in pairs as llama.cpp's converter lays them.
    pub(crate) fn gguf_tensors(&self, kind: GgmlDType) -> BTreeMap<String, QTensor> {
        let mut all = BTreeMap::new();
        for (name, tensor) in &self.tensors {
            let own = gguf_name(name);
            let heads = match own.rsplit('.').nth(1).unwrap() {
                "attn_q" if !self.spec.head_norms => Some(self.spec.heads),
                "attn_k" if !self.spec.head_norms => Some(self.spec.kv_heads),
                _ => None,
            };
            let tensor = match heads {
                Some(heads) => paired(tensor, heads),
                None => tensor.clone(),
            };
            let kind = if tensor.rank() == 1 {
                GgmlDType::F32
            } else {
                kind
            };
            all.insert(own, QTensor::quantize(&tensor, kind).unwrap());
        }
        if let Some(scaling) = &self.spec.rope_scaling {
            let divisors = scaling.divisors(self.spec.rope_theta, self.spec.head_dim);
            let freqs = Tensor::new(divisors, &Device::Cpu)
                .unwrap()
                .to_dtype(DType::F32)
                .unwrap();
            let freqs = QTensor::quantize(&freqs, GgmlDType::F32).unwrap();
            all.insert("rope_freqs.weight".to_owned(), freqs);
        }
        all
    }

    /// Writes a GGUF file: matrices in that format, vectors in F32.
    pub(crate) fn gguf(&self, path: &Path, kind: GgmlDType) {
        write_gguf(path, &self.metadata(), &self.gguf_tensors(kind));
    }
}

pub(crate) fn write_gguf(
    path: &Path,
    metadata: &BTreeMap<String, Meta>,
    tensors: &BTreeMap<String, QTensor>,
) {
    let metadata: Vec<(&str, &Meta)> = metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let mut file = File::create(path).unwrap();
    gguf_file::write(&mut file, &metadata, &tensors).unwrap();
}

/// As llama.cpp's converter permutes: halves of each head become pairs.
fn paired(weight: &Tensor, heads: usize) -> Tensor {
    let (rows, columns) = weight.dims2().unwrap();
    weight
        .reshape((heads, 2, rows / heads / 2, columns))
        .and_then(|w| w.transpose(1, 2))
        .and_then(|w| w.reshape((rows, columns)))
        .unwrap()
}

fn gguf_name(name: &str) -> String {
    let name = name.replace("model.layers.", "blk.");
    let parts = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
    ];
    parts
        .iter()
        .fold(name, |name, (hub, own)| name.replace(hub, own))
}

/// A byte-level tokenizer of 256 bytes, four merges and the markers, cut as Qwen's are.
pub(crate) fn tokenizer() -> Value {
    // GPT-2's letters for bytes: printable ones stand for themselves.
    let mut next = 256;
    let mut vocab = serde_json::Map::new();
    for byte in 0u32..256 {
        let letter = match byte {
            33..=126 | 161..=172 | 174..=255 => byte,
            _ => {
                next += 1;
                next - 1
            }
        };
        vocab.insert(char::from_u32(letter).unwrap().to_string(), byte.into());
    }
    let merges = [["h", "e"], ["t", "he"], ["Ġ", "the"], ["i", "n"]];
    for (i, merge) in merges.iter().enumerate() {
        vocab.insert(merge.concat(), (256 + i).into());
    }
    let added: Vec<Value> = MARKERS
        .iter()
        .enumerate()
        .map(|(i, marker)| json!({"id": 260 + i, "content": marker, "special": i < 3, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}))
        .collect();
    let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}, "padding": null,
        "added_tokens": added, "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}]},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": "",
                  "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": merges},
    })
}

/// Logits behind the last of `tokens`, by candle-transformers.
pub(crate) fn logits(spec: &Spec, tensors: &mut dyn Tensors, tokens: &[u32]) -> Vec<f32> {
    let mut model = Reference::new(spec, tensors, tokens.len()).unwrap();
    let tokens = Tensor::new(tokens, &Device::Cpu)
        .unwrap()
        .unsqueeze(0)
        .unwrap();
    model.forward(&tokens, 0).unwrap().to_vec1().unwrap()
}

impl Tensors for BTreeMap<String, Tensor> {
    fn has(&self, name: &str) -> bool {
        self.contains_key(name)
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, crate::engine::Error> {
        assert_eq!(self[name].dims(), shape, "{name}");
        Ok(self[name].clone())
    }
}

/// Writes an adapter of that size for a small model's first queries, in a folder.
pub(crate) fn adapter(folder: &Path, spec: &Spec, size: f32) {
    fs::create_dir_all(folder).unwrap();
    let config =
        json!({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]});
    fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    let rng = &mut fastrand::Rng::with_seed(5);
    let queries = spec.heads * spec.head_dim;
    let part =
        |side| format!("base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight");
    let matrices = std::collections::HashMap::from([
        (part("A"), tensor(rng, &[2, spec.hidden], size)),
        (part("B"), tensor(rng, &[queries, 2], size)),
    ]);
    candle_core::safetensors::save(&matrices, folder.join("adapter_model.safetensors")).unwrap();
}
