//! The packed forward: one pass over rows of many sequences, in the order of the layers.

use candle_core::{Result, Tensor};

use super::compute::{Compute, Precision};
use super::load::Tensors;
use super::spec::Spec;
use super::step::{Answer, Forward, Step};
use crate::engine::Error;

/// A decoder-only transformer of the Llama family, on whatever computes it.
pub(crate) struct Model<C: Compute> {
    compute: C,
    /// `None`: the head is the embedding as well.
    embedding: Option<C::Matrix>,
    layers: Vec<Layer<C>>,
    norm: C::Vector,
    head: C::Matrix,
}

struct Layer<C: Compute> {
    attention_norm: C::Vector,
    /// Queries, keys and values.
    qkv: C::Matrix,
    /// Of queries and of keys.
    head_norms: Option<(C::Vector, C::Vector)>,
    out: C::Matrix,
    mlp_norm: C::Vector,
    gate_up: C::Matrix,
    down: C::Matrix,
}

impl<C: Compute> Model<C> {
    /// Takes the weights up one by one: the whole model is never in memory in f32.
    ///
    /// # Errors
    /// [`Error::Broken`] names the tensor that is missing or does not fit.
    pub(crate) fn new(
        compute: C,
        spec: &Spec,
        tensors: &mut dyn Tensors,
    ) -> std::result::Result<Self, Error> {
        let (hidden, inner) = (spec.hidden, spec.intermediate);
        let (queries, keys) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let embedding = tensors.take("model.embed_tokens.weight", &[spec.vocab, hidden])?;
        let embedding = compute
            .matrix(&[embedding], Precision::Fine)
            .map_err(failed)?;
        let (embedding, head) = if spec.tied {
            (None, embedding)
        } else {
            let head = tensors.take("lm_head.weight", &[spec.vocab, hidden])?;
            let head = compute.matrix(&[head], Precision::Fine).map_err(failed)?;
            (Some(embedding), head)
        };
        let mut layers = Vec::with_capacity(spec.layers);
        for index in 0..spec.layers {
            let mut take = |name: &str, shape: &[usize]| -> std::result::Result<Tensor, Error> {
                tensors.take(&format!("model.layers.{index}.{name}.weight"), shape)
            };
            let mut matrix = |precision, parts: &[(&str, usize, usize)]| {
                let parts = parts
                    .iter()
                    .map(|&(name, n, k)| take(name, &[n, k]))
                    .collect::<std::result::Result<Vec<_>, _>>()?;
                compute.matrix(&parts, precision).map_err(failed)
            };
            let qkv = matrix(
                Precision::Fine,
                &[
                    ("self_attn.q_proj", queries, hidden),
                    ("self_attn.k_proj", keys, hidden),
                    ("self_attn.v_proj", keys, hidden),
                ],
            )?;
            let out = matrix(Precision::Asked, &[("self_attn.o_proj", hidden, queries)])?;
            let gate_up = matrix(
                Precision::Asked,
                &[
                    ("mlp.gate_proj", inner, hidden),
                    ("mlp.up_proj", inner, hidden),
                ],
            )?;
            let down = matrix(Precision::Fine, &[("mlp.down_proj", hidden, inner)])?;
            let mut vector =
                |name: &str, width: usize| compute.vector(&take(name, &[width])?).map_err(failed);
            layers.push(Layer {
                attention_norm: vector("input_layernorm", hidden)?,
                mlp_norm: vector("post_attention_layernorm", hidden)?,
                head_norms: if spec.head_norms {
                    Some((
                        vector("self_attn.q_norm", spec.head_dim)?,
                        vector("self_attn.k_norm", spec.head_dim)?,
                    ))
                } else {
                    None
                },
                qkv,
                out,
                gate_up,
                down,
            });
        }
        let norm = tensors.take("model.norm.weight", &[hidden])?;
        Ok(Self {
            norm: compute.vector(&norm).map_err(failed)?,
            compute,
            embedding,
            layers,
            head,
        })
    }

    /// What computes it.
    pub(crate) fn compute(&mut self) -> &mut C {
        &mut self.compute
    }

    /// The logits of the wanted rows, `[wanted, vocab]`; `None` where none is wanted.
    fn forward(&mut self, step: &Step) -> Result<Option<C::Rows>> {
        let c = &mut self.compute;
        c.begin(step)?;
        let wanted: Vec<usize> = step.wanted.iter().map(|w| w.row).collect();
        let embedding = self.embedding.as_ref().unwrap_or(&self.head);
        let mut x = c.embed(embedding, &step.tokens)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let h = c.norm(&x, &layer.attention_norm, &layer.qkv)?;
            let qkv = c.linear(&h, &layer.qkv)?;
            let norms = layer.head_norms.as_ref().map(|(q, k)| (q, k));
            let mut attended = c.attend(index, qkv, norms)?;
            if index + 1 == self.layers.len() {
                // Behind the last attention a row matters to itself alone.
                if wanted.is_empty() {
                    return Ok(None);
                }
                attended = c.select(&attended, &wanted)?;
                x = c.select(&x, &wanted)?;
            }
            c.linear_added(&mut x, &attended, &layer.out)?;
            let h = c.norm(&x, &layer.mlp_norm, &layer.gate_up)?;
            let inner = c.linear_gated(&h, &layer.gate_up, &layer.down)?;
            c.linear_added(&mut x, &inner, &layer.down)?;
        }
        let h = c.norm(&x, &self.norm, &self.head)?;
        c.linear(&h, &self.head).map(Some)
    }

    fn answers(&mut self, step: &Step) -> Result<Vec<Answer>> {
        let Some(logits) = self.forward(step)? else {
            return Ok(Vec::new());
        };
        let likeliest = if step.wanted.iter().all(|w| w.logits) {
            Vec::new()
        } else {
            self.compute.likeliest(&logits)?
        };
        step.wanted
            .iter()
            .enumerate()
            .map(|(index, wanted)| {
                Ok(if wanted.logits {
                    Answer::Logits(self.compute.logits(&logits, index)?)
                } else {
                    Answer::Likeliest(likeliest[index])
                })
            })
            .collect()
    }
}

impl<C: Compute> Forward for Model<C> {
    fn step(&mut self, step: &Step) -> std::result::Result<Vec<Answer>, Error> {
        self.answers(step).map_err(failed)
    }

    fn copy_block(&mut self, from: u32, to: u32) -> std::result::Result<(), Error> {
        self.compute.copy_block(from, to).map_err(failed)
    }
}

fn failed(error: candle_core::Error) -> Error {
    Error::Broken {
        reason: format!("the model failed: {error}"),
    }
}

#[cfg(test)]
mod tests;
