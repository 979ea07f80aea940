//! The sizes of a model, by values: one description for every architecture of the Llama family.

use std::f64::consts::PI;

use serde_json::Value;

/// The sizes of a decoder-only transformer of the Llama family.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Spec {
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width between gate, up and down.
    pub intermediate: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Most positions.
    pub context: usize,
    /// Added to the mean square before its root.
    pub norm_epsilon: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Llama 3's stretching of the rotary frequencies.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether queries and keys are normalized head by head (Qwen3).
    pub head_norms: bool,
    /// Whether the output head is the embedding.
    pub tied: bool,
}

/// Llama 3's stretching of the rotary frequencies: long wavelengths by `factor`, short ones not at all, those between in part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RopeScaling {
    /// By how much the lowest frequencies are divided.
    pub factor: f32,
    /// Wavelengths above `original_context / low_freq_factor` are stretched in full.
    pub low_freq_factor: f32,
    /// Wavelengths below `original_context / high_freq_factor` are left alone.
    pub high_freq_factor: f32,
    /// The context that the model was trained with before.
    pub original_context: usize,
}

// No model known comes near these. They keep every product of sizes far from overflow.
const MOST_LAYERS: usize = 1 << 10;
const MOST_WIDTH: usize = 1 << 18;
const MOST_VOCAB: usize = 1 << 22;
const MOST_HEADS: usize = 1 << 10;
const MOST_HEAD_DIM: usize = 1 << 10;
const MOST_CONTEXT: usize = 1 << 24;

impl Spec {
    /// From a `config.json`.
    ///
    /// # Errors
    /// What the model wants that this engine does not compute, or the key whose value is missing or wrong.
    pub fn from_config(config: &Value) -> Result<Self, String> {
        if !config.is_object() {
            return Err("is no JSON object".to_owned());
        }
        let kind = config["model_type"].as_str().unwrap_or("none");
        let qwen3 = match kind {
            "llama" => false,
            "qwen3" => true,
            other => {
                return Err(format!(
                    "model_type {other} is not supported: llama and qwen3 are"
                ));
            }
        };
        refuse_unsupported(config)?;
        let (hidden, heads) = (
            size(config, "hidden_size")?,
            size(config, "num_attention_heads")?,
        );
        let kv_heads = match optional_size(config, "num_key_value_heads")? {
            Some(heads) => heads,
            None if qwen3 => return Err("num_key_value_heads is missing".to_owned()),
            None => heads,
        };
        let head_dim = match optional_size(config, "head_dim")? {
            Some(width) => width,
            // What transformers takes where the key is left out.
            None if qwen3 => 128,
            None if heads == 0 || !hidden.is_multiple_of(heads) => {
                return Err(format!(
                    "hidden_size {hidden} cannot be split into num_attention_heads {heads}"
                ));
            }
            None => hidden / heads,
        };
        let epsilon = number(config, "rms_norm_eps")?.unwrap_or(1e-6);
        #[allow(clippy::cast_possible_truncation)]
        let spec = Self {
            layers: size(config, "num_hidden_layers")?,
            hidden,
            intermediate: size(config, "intermediate_size")?,
            vocab: size(config, "vocab_size")?,
            heads,
            kv_heads,
            head_dim,
            context: size(config, "max_position_embeddings")?,
            norm_epsilon: epsilon as f32,
            rope_theta: theta(config)?,
            rope_scaling: scaling(config)?,
            head_norms: qwen3,
            tied: flag(config, "tie_word_embeddings")?,
        };
        spec.check()?;
        Ok(spec)
    }

    /// Whether the sizes fit each other and are of this world.
    ///
    /// # Errors
    /// Which one does not, in words that fit behind a file's name.
    pub fn check(&self) -> Result<(), String> {
        let sizes = [
            ("layers", self.layers, MOST_LAYERS),
            ("hidden width", self.hidden, MOST_WIDTH),
            ("intermediate width", self.intermediate, MOST_WIDTH),
            ("vocabulary", self.vocab, MOST_VOCAB),
            ("heads", self.heads, MOST_HEADS),
            ("heads of keys and values", self.kv_heads, MOST_HEADS),
            ("head width", self.head_dim, MOST_HEAD_DIM),
            ("context", self.context, MOST_CONTEXT),
        ];
        for (name, size, most) in sizes {
            if !(1..=most).contains(&size) {
                return Err(format!("the {name} is {size}: 1 to {most} would do"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!(
                "{} heads cannot share {} of keys and values",
                self.heads, self.kv_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!(
                "the head width {} is odd: rotary positions turn pairs",
                self.head_dim
            ));
        }
        let epsilon = self.norm_epsilon;
        if !(epsilon.is_finite() && epsilon > 0.0 && epsilon < 1.0) {
            return Err(format!(
                "the norm's epsilon is {epsilon}: above 0 and below 1 would do"
            ));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta >= 1.0) {
            return Err(format!(
                "the rotary base is {}: 1 or more would do",
                self.rope_theta
            ));
        }
        if let Some(scaling) = &self.rope_scaling {
            let sound = scaling.factor.is_finite()
                && scaling.factor >= 1.0
                && scaling.low_freq_factor > 0.0
                && scaling.high_freq_factor.is_finite()
                && scaling.high_freq_factor > scaling.low_freq_factor
                && (1..=MOST_CONTEXT).contains(&scaling.original_context);
            if !sound {
                return Err(format!(
                    "the rotary scaling cannot be: factor {}, low_freq_factor {}, high_freq_factor {}, original context {}",
                    scaling.factor,
                    scaling.low_freq_factor,
                    scaling.high_freq_factor,
                    scaling.original_context
                ));
            }
        }
        Ok(())
    }

    /// Every tensor of such a model: its name and shape, as Hugging Face has them.
    pub fn weights(&self) -> Vec<(String, Vec<usize>)> {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let table = vec![self.vocab, self.hidden];
        let mut all = vec![
            ("model.embed_tokens.weight".to_owned(), table.clone()),
            ("model.norm.weight".to_owned(), vec![self.hidden]),
        ];
        if !self.tied {
            all.push(("lm_head.weight".to_owned(), table));
        }
        for layer in 0..self.layers {
            let mut part = |name: &str, shape: &[usize]| {
                all.push((
                    format!("model.layers.{layer}.{name}.weight"),
                    shape.to_vec(),
                ));
            };
            part("input_layernorm", &[self.hidden]);
            part("self_attn.q_proj", &[queries, self.hidden]);
            part("self_attn.k_proj", &[keys, self.hidden]);
            part("self_attn.v_proj", &[keys, self.hidden]);
            part("self_attn.o_proj", &[self.hidden, queries]);
            if self.head_norms {
                part("self_attn.q_norm", &[self.head_dim]);
                part("self_attn.k_norm", &[self.head_dim]);
            }
            part("post_attention_layernorm", &[self.hidden]);
            part("mlp.gate_proj", &[self.intermediate, self.hidden]);
            part("mlp.up_proj", &[self.intermediate, self.hidden]);
            part("mlp.down_proj", &[self.hidden, self.intermediate]);
        }
        all
    }

    /// The rotary frequency of each pair of a head's dimensions, `[head_dim / 2]`, in radians a position
    /// (Su et al. 2021, arXiv:2104.09864; the stretching as in Llama 3.1's own code).
    pub(crate) fn rotary_frequencies(&self) -> Vec<f32> {
        let plain = |pair: usize| {
            let exponent = 2.0 * pair as f64 / self.head_dim as f64;
            self.rope_theta.powf(-exponent)
        };
        let stretched = |frequency: f64| {
            let Some(scaling) = self.rope_scaling else {
                return frequency;
            };
            let turns = scaling.original_context as f64 * frequency / (2.0 * PI);
            let (low, high) = (
                f64::from(scaling.low_freq_factor),
                f64::from(scaling.high_freq_factor),
            );
            let factor = f64::from(scaling.factor);
            if turns < low {
                frequency / factor
            } else if turns > high {
                frequency
            } else {
                let smooth = (turns - low) / (high - low);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        };
        #[allow(clippy::cast_possible_truncation)] // angles are taken in f32
        (0..self.head_dim / 2)
            .map(|pair| stretched(plain(pair)) as f32)
            .collect()
    }
}

impl RopeScaling {
    /// By how much each of the `head_dim / 2` rotary frequencies is divided.
    pub fn divisors(&self, theta: f64, head_dim: usize) -> Vec<f64> {
        let (factor, original) = (f64::from(self.factor), self.original_context as f64);
        let (low, high) = (
            f64::from(self.low_freq_factor),
            f64::from(self.high_freq_factor),
        );
        (0..head_dim / 2)
            .map(|i| {
                let wavelength = 2.0 * PI * theta.powf(2.0 * i as f64 / head_dim as f64);
                if wavelength < original / high {
                    1.0
                } else if wavelength > original / low {
                    factor
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    1.0 / ((1.0 - smooth) / factor + smooth)
                }
            })
            .collect()
    }
}

/// What a config can ask for beyond what is computed here; each by its key.
fn refuse_unsupported(config: &Value) -> Result<(), String> {
    let sliding = match &config["use_sliding_window"] {
        // Qwen3 keeps a width there that it does not use.
        Value::Bool(used) => *used,
        _ => !config["sliding_window"].is_null(),
    };
    let layers_slide = config["layer_types"]
        .as_array()
        .is_some_and(|all| all.iter().any(|kind| kind != "full_attention"));
    if sliding || layers_slide {
        return Err(
            "attention over a sliding window (sliding_window, layer_types) is not supported"
                .to_owned(),
        );
    }
    for key in ["attention_bias", "mlp_bias"] {
        if flag(config, key)? {
            return Err(format!("{key} is not supported"));
        }
    }
    if let Some(activation) = config["hidden_act"].as_str().filter(|a| *a != "silu") {
        return Err(format!("hidden_act {activation} is not supported: silu is"));
    }
    if let Some(part) = number(config, "partial_rotary_factor")?.filter(|part| *part != 1.0) {
        return Err(format!("partial_rotary_factor {part} is not supported"));
    }
    if !config["quantization_config"].is_null() {
        return Err("quantization_config is not supported: take the model in F32, F16 or BF16, or a GGUF file of it".to_owned());
    }
    Ok(())
}

/// Where transformers 5 puts all that is about rotary positions; before, each had its own key.
fn rope_parameters(config: &Value) -> &Value {
    match &config["rope_parameters"] {
        Value::Null => &config["rope_scaling"],
        parameters => parameters,
    }
}

fn theta(config: &Value) -> Result<f64, String> {
    let inner = number(rope_parameters(config), "rope_theta")?;
    Ok(match inner {
        Some(theta) => theta,
        None => number(config, "rope_theta")?.unwrap_or(10_000.0),
    })
}

fn scaling(config: &Value) -> Result<Option<RopeScaling>, String> {
    let scaling = rope_parameters(config);
    if scaling.is_null() {
        return Ok(None);
    }
    let kind = scaling["rope_type"]
        .as_str()
        .or_else(|| scaling["type"].as_str());
    match kind {
        Some("default") => return Ok(None),
        Some("llama3") => {}
        other => {
            let other = other.unwrap_or("none");
            return Err(format!(
                "rope_scaling of type {other} is not supported: llama3 and default are"
            ));
        }
    }
    let need = |key: &str| {
        number(scaling, key)?.ok_or_else(|| format!("{key} of rope_scaling is missing"))
    };
    #[allow(clippy::cast_possible_truncation)]
    Ok(Some(RopeScaling {
        factor: need("factor")? as f32,
        low_freq_factor: need("low_freq_factor")? as f32,
        high_freq_factor: need("high_freq_factor")? as f32,
        original_context: size(scaling, "original_max_position_embeddings")?,
    }))
}

fn optional_size(config: &Value, key: &str) -> Result<Option<usize>, String> {
    match &config[key] {
        Value::Null => Ok(None),
        value => value
            .as_u64()
            .and_then(|n| usize::try_from(n).ok())
            .map(Some)
            .ok_or_else(|| format!("{key} is no whole number")),
    }
}

fn size(config: &Value, key: &str) -> Result<usize, String> {
    optional_size(config, key)?.ok_or_else(|| format!("{key} is missing"))
}

fn number(config: &Value, key: &str) -> Result<Option<f64>, String> {
    match &config[key] {
        Value::Null => Ok(None),
        value => value
            .as_f64()
            .map(Some)
            .ok_or_else(|| format!("{key} is no number")),
    }
}

fn flag(config: &Value, key: &str) -> Result<bool, String> {
    match &config[key] {
        Value::Null => Ok(false),
        Value::Bool(flag) => Ok(*flag),
        _ => Err(format!("{key} is neither true nor false")),
    }
}

#[cfg(test)]
mod tests;
