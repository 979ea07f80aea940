//! The architectures, by candle-transformers.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, qwen3};

/// Which architecture, and its sizes.
pub(super) enum Spec {
    Llama(llama::Config),
    Qwen3(qwen3::Config),
}

impl Spec {
    pub(super) fn context(&self) -> u32 {
        let context = match self {
            Self::Llama(config) => config.max_position_embeddings,
            Self::Qwen3(config) => config.max_position_embeddings,
        };
        u32::try_from(context).unwrap_or(u32::MAX)
    }
}

pub(super) enum Model {
    Llama {
        model: llama::Llama,
        config: Box<llama::Config>,
        cache: Box<llama::Cache>,
    },
    Qwen3(Box<qwen3::ModelForCausalLM>),
}

impl Model {
    /// Builds the model from tensors under the names that Hugging Face gives them.
    pub(super) fn new(spec: &Spec, tensors: HashMap<String, Tensor>, context: u32) -> Result<Self> {
        let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        match spec {
            Spec::Llama(config) => {
                // The tables of positions need not be longer than what is asked for.
                let config = llama::Config {
                    max_position_embeddings: context as usize,
                    ..config.clone()
                };
                Ok(Self::Llama {
                    model: llama::Llama::load(weights, &config)?,
                    cache: Box::new(llama::Cache::new(true, DType::F32, &config, &Device::Cpu)?),
                    config: Box::new(config),
                })
            }
            Spec::Qwen3(config) => {
                let config = qwen3::Config {
                    max_position_embeddings: context as usize,
                    ..config.clone()
                };
                Ok(Self::Qwen3(Box::new(qwen3::ModelForCausalLM::new(
                    &config, weights,
                )?)))
            }
        }
    }

    /// Forgets the request before.
    pub(super) fn begin(&mut self) -> Result<()> {
        match self {
            Self::Llama { config, cache, .. } => {
                **cache = llama::Cache::new(true, DType::F32, config, &Device::Cpu)?
            }
            Self::Qwen3(model) => model.clear_kv_cache(),
        }
        Ok(())
    }

    /// Tokens `[1, n]` from `position` on; the logits behind the last one, `[vocabulary]`.
    pub(super) fn forward(&mut self, tokens: &Tensor, position: usize) -> Result<Tensor> {
        match self {
            Self::Llama { model, cache, .. } => model.forward(tokens, position, cache)?.squeeze(0),
            Self::Qwen3(model) => model.forward(tokens, position)?.flatten_all(),
        }
    }
}
