//! candle-transformers' models, built from the same sizes and weights: what other forwards are compared with.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Activation, VarBuilder};
use candle_transformers::models::{llama, qwen3};

use super::load::Tensors;
use super::spec::Spec;

pub(super) enum Reference {
    Llama {
        model: llama::Llama,
        cache: Box<llama::Cache>,
    },
    Qwen3(Box<qwen3::ModelForCausalLM>),
}

impl Reference {
    /// Takes every tensor, so the whole model is in memory in f32.
    ///
    /// # Errors
    /// What taking a tensor said, or the size that candle-transformers' model cannot have: a head width of its own (Llama), scaled
    /// rotary frequencies (Qwen3).
    pub(super) fn new(spec: &Spec, tensors: &mut dyn Tensors, context: usize) -> Result<Self> {
        let mut all = HashMap::new();
        for (name, shape) in spec.weights() {
            let tensor = tensors
                .take(&name, &shape)
                .map_err(|e| candle_core::Error::Msg(e.to_string()))?;
            all.insert(name, tensor);
        }
        let weights = VarBuilder::from_tensors(all, DType::F32, &Device::Cpu);
        if spec.head_norms {
            let config = qwen3_config(spec, context)?;
            let model = qwen3::ModelForCausalLM::new(&config, weights)?;
            return Ok(Self::Qwen3(Box::new(model)));
        }
        let config = llama_config(spec, context)?;
        Ok(Self::Llama {
            model: llama::Llama::load(weights, &config)?,
            cache: Box::new(llama::Cache::new(true, DType::F32, &config, &Device::Cpu)?),
        })
    }

    /// Tokens `[1, n]` from `position` on; the logits behind the last one, `[vocabulary]`.
    pub(super) fn forward(&mut self, tokens: &Tensor, position: usize) -> Result<Tensor> {
        match self {
            Self::Llama { model, cache, .. } => model.forward(tokens, position, cache)?.squeeze(0),
            Self::Qwen3(model) => model.forward(tokens, position)?.flatten_all(),
        }
    }
}

#[allow(clippy::cast_possible_truncation)]
fn llama_config(spec: &Spec, context: usize) -> Result<llama::Config> {
    if spec.head_dim * spec.heads != spec.hidden {
        candle_core::bail!(
            "candle's llama has no head width of its own: {} heads of {} are not {}",
            spec.heads,
            spec.head_dim,
            spec.hidden
        );
    }
    Ok(llama::Config {
        hidden_size: spec.hidden,
        intermediate_size: spec.intermediate,
        vocab_size: spec.vocab,
        num_hidden_layers: spec.layers,
        num_attention_heads: spec.heads,
        num_key_value_heads: spec.kv_heads,
        use_flash_attn: false,
        rms_norm_eps: f64::from(spec.norm_epsilon),
        rope_theta: spec.rope_theta as f32,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: spec.rope_scaling.map(|scaling| llama::Llama3RopeConfig {
            factor: scaling.factor,
            low_freq_factor: scaling.low_freq_factor,
            high_freq_factor: scaling.high_freq_factor,
            original_max_position_embeddings: scaling.original_context,
            rope_type: llama::Llama3RopeType::Llama3,
        }),
        // The tables of positions need not be longer than what is asked for.
        max_position_embeddings: context,
        tie_word_embeddings: spec.tied,
    })
}

fn qwen3_config(spec: &Spec, context: usize) -> Result<qwen3::Config> {
    if spec.rope_scaling.is_some() {
        candle_core::bail!("candle's qwen3 has no scaled rotary frequencies");
    }
    Ok(qwen3::Config {
        vocab_size: spec.vocab,
        hidden_size: spec.hidden,
        intermediate_size: spec.intermediate,
        num_hidden_layers: spec.layers,
        num_attention_heads: spec.heads,
        head_dim: spec.head_dim,
        attention_bias: false,
        num_key_value_heads: spec.kv_heads,
        max_position_embeddings: context,
        sliding_window: None,
        max_window_layers: spec.layers,
        tie_word_embeddings: spec.tied,
        rope_theta: spec.rope_theta,
        rms_norm_eps: f64::from(spec.norm_epsilon),
        use_sliding_window: false,
        hidden_act: Activation::Silu,
    })
}
