//! The operations by candle's own tensors: what a GPU runs, and a processor that the kernels of this crate have no path for; in the
//! tests a reference for these.

mod groups;
#[cfg(test)]
mod tests;

use candle_core::{D, DType, Device, Error, Result, Tensor, bail};
use candle_nn::{ops, rotary_emb};

use super::{Compute, Precision};
use crate::engine::candle::spec::Spec;
use crate::engine::candle::step::{BLOCK, NOTHING, Step};
use groups::Group;

/// candle's tensors on a device, with the paged cache beside them.
pub(crate) struct TensorCompute {
    spec: Spec,
    device: Device,
    dtype: DType,
    /// See [`groups::spread`].
    spread: usize,
    /// The rotary angles' cosines and sines of every position, `[context, head_dim / 2]`.
    cosines: Tensor,
    sines: Tensor,
    /// Keys and values of each layer, `[blocks · BLOCK, kv_heads · head_dim]`.
    cache: Vec<(Tensor, Tensor)>,
    /// A falling number for each token, `[vocab]`: see [`TensorCompute::ranked`].
    falling: Tensor,
    /// Minus infinity: the score of a position that a row may not look at.
    no_score: Tensor,
    step: Taken,
}

/// A step as its operations need it, on the device.
struct Taken {
    /// `[T, head_dim / 2]`.
    cosines: Tensor,
    sines: Tensor,
    /// Each row's place in the cache, repeated over the width: `[T, kv_heads · head_dim]`.
    slots: Tensor,
    groups: Vec<Group>,
    /// Where each row stands in the groups' outputs: `[T]`.
    order: Tensor,
}

impl TensorCompute {
    /// A cache of `blocks` blocks for sequences of up to `context` positions, as far as they fit into it; weights, activations and cache in `dtype`.
    ///
    /// # Errors
    /// Where the device has no room for the cache.
    pub(crate) fn new(
        spec: &Spec,
        device: &Device,
        dtype: DType,
        blocks: usize,
        context: usize,
    ) -> Result<Self> {
        let width = spec.kv_heads * spec.head_dim;
        let empty = || Tensor::zeros((blocks * BLOCK, width), dtype, device);
        let cache = (0..spec.layers)
            .map(|_| Ok((empty()?, empty()?)))
            .collect::<Result<_>>()
            .map_err(|e| {
                Error::msg(format!(
                    "engine.cache: {blocks} blocks of {BLOCK} positions cannot be had ({e}); make it smaller"
                ))
            })?;
        let frequencies = spec.rotary_frequencies();
        // What a file claims of its context takes no more memory than the cache that was reckoned with.
        let context = context.min(blocks.saturating_mul(BLOCK));
        #[allow(clippy::cast_precision_loss)] // positions are far below 2^24
        let angles: Vec<f32> = (0..context)
            .flat_map(|position| frequencies.iter().map(move |f| position as f32 * f))
            .collect();
        let angles = Tensor::from_vec(angles, (context, frequencies.len()), device)?;
        #[allow(clippy::cast_precision_loss)] // vocabularies are far below 2^24
        let falling: Vec<f32> = (1..=spec.vocab).rev().map(|n| n as f32).collect();
        // Not empty: a GPU has no memory of no bytes.
        let nothing = Tensor::zeros((1, width), dtype, device)?;
        Ok(Self {
            cosines: angles.cos()?.to_dtype(dtype)?,
            sines: angles.sin()?.to_dtype(dtype)?,
            spec: spec.clone(),
            device: device.clone(),
            dtype,
            spread: groups::spread(device),
            cache,
            falling: Tensor::new(falling, device)?,
            no_score: Tensor::full(f32::NEG_INFINITY, (), device)?.to_dtype(dtype)?,
            step: Taken {
                cosines: nothing.clone(),
                sines: nothing.clone(),
                slots: nothing.clone(),
                groups: Vec::new(),
                order: nothing,
            },
        })
    }

    /// Grouped as on a GPU.
    #[cfg(test)]
    pub(crate) fn widely(self) -> Self {
        Self {
            spread: groups::ON_A_GPU,
            ..self
        }
    }

    fn taken_up(&self, tensor: &Tensor) -> Result<Tensor> {
        tensor.to_dtype(self.dtype)?.to_device(&self.device)
    }

    /// Heads of `[T, heads · head_dim]`, normalized where there are weights for it, and turned to their positions.
    fn turned(&self, x: &Tensor, heads: usize, norm: Option<&Tensor>) -> Result<Tensor> {
        let (rows, width) = (x.dim(0)?, self.spec.head_dim);
        let mut x = x.reshape((rows * heads, width))?;
        if let Some(norm) = norm {
            x = ops::rms_norm(&x, norm, self.spec.norm_epsilon)?;
        }
        let x = x.reshape((1, rows, heads, width))?;
        rotary_emb::rope_thd(&x, &self.step.cosines, &self.step.sines)?
            .reshape((rows, heads * width))
    }

    /// The logits that are their row's highest, the first of them above the others, and 0 for all else: on a GPU candle's argmax
    /// gives any of equal values, and in 16 bits the highest are often equal.
    fn ranked(&self, logits: &Tensor, highest: &Tensor) -> Result<Tensor> {
        logits
            .broadcast_eq(highest)?
            .to_dtype(DType::F32)?
            .broadcast_mul(&self.falling)
    }

    /// Attention of one group: queries `[T, heads · head_dim]` to the group's rows, padded, `[sequences · rows, heads · head_dim]`.
    fn attention(&self, group: &Group, queries: &Tensor, layer: usize) -> Result<Tensor> {
        let Spec {
            heads,
            kv_heads,
            head_dim,
            ..
        } = self.spec;
        let (n, rows, length) = (group.sequences, group.rows, group.length);
        let shared = heads / kv_heads;
        let (keys, values) = &self.cache[layer];
        // A group's query heads stand below each other, so that their common keys are not repeated.
        let queries = queries
            .index_select(&group.queries, 0)?
            .reshape((n, rows, kv_heads, shared, head_dim))?
            .permute((0, 2, 3, 1, 4))?
            .contiguous()?
            .reshape((n * kv_heads, shared * rows, head_dim))?;
        let keys = keys
            .index_select(&group.slots, 0)?
            .reshape((n, length, kv_heads, head_dim))?
            .permute((0, 2, 3, 1))?
            .contiguous()?
            .reshape((n * kv_heads, head_dim, length))?;
        let values = values
            .index_select(&group.slots, 0)?
            .reshape((n, length, kv_heads, head_dim))?
            .permute((0, 2, 1, 3))?
            .contiguous()?
            .reshape((n * kv_heads, length, head_dim))?;
        let scale = 1.0 / (head_dim as f64).sqrt();
        let scores = (queries.matmul(&keys)? * scale)?.reshape((n, heads, rows, length))?;
        // Not by adding: NaN at a position that a row may not look at is none of its business.
        let scores = group
            .mask
            .broadcast_as(scores.shape())?
            .where_cond(&scores, &self.no_score.broadcast_as(scores.shape())?)?;
        let weights =
            ops::softmax_last_dim(&scores)?.reshape((n * kv_heads, shared * rows, length))?;
        weights
            .matmul(&values)?
            .reshape((n, kv_heads, shared, rows, head_dim))?
            .permute((0, 3, 1, 2, 4))?
            .contiguous()?
            .reshape((n * rows, heads * head_dim))
    }
}

/// Keys and values `[T, heads · head_dim]` as the cache takes them: values that are not finite as 0 and their head's keys as NaN.
/// What a row may not look at has the weight 0, and 0 times NaN would be NaN; those that may look get NaN by their scores.
fn sound(keys: Tensor, values: Tensor, (heads, dim): (usize, usize)) -> Result<(Tensor, Tensor)> {
    // 0, or NaN where a value is not finite.
    let nothing = (&values * 0.0)?;
    let lost = nothing.reshape(((), heads, dim))?.sum_keepdim(2)?;
    let keys = keys
        .reshape(((), heads, dim))?
        .broadcast_add(&lost)?
        .reshape(keys.shape())?;
    let values = nothing
        .eq(&nothing)?
        .where_cond(&values, &values.zeros_like()?)?;
    Ok((keys, values))
}

impl Compute for TensorCompute {
    type Matrix = Tensor;
    type Vector = Tensor;
    type Rows = Tensor;

    /// All weights are in the one number format, which has 16 bits at least.
    fn matrix(&self, parts: &[Tensor], _: Precision) -> Result<Tensor> {
        self.taken_up(&Tensor::cat(parts, 0)?)
    }

    fn vector(&self, weights: &Tensor) -> Result<Tensor> {
        self.taken_up(weights)
    }

    fn begin(&mut self, step: &Step) -> Result<()> {
        let (positions, slots) = groups::places(step)?;
        let width = self.spec.kv_heads * self.spec.head_dim;
        let rows = step.tokens.len();
        // A GPU that looks beyond a tensor is lost to the process.
        let (context, cached) = (self.cosines.dim(0)?, self.cache[0].0.dim(0)?);
        let mut blocks = step.spans.iter().flat_map(|span| &span.blocks);
        if positions.iter().any(|&p| p as usize >= context)
            || blocks.any(|&b| (b as usize + 1) * BLOCK > cached)
        {
            bail!("a position beyond the {context} of the model, or a block beyond the cache");
        }
        let positions = Tensor::new(positions, &self.device)?;
        let slots = Tensor::new(slots, &self.device)?
            .unsqueeze(1)?
            .broadcast_as((rows, width))?
            .contiguous()?;
        let (groups, order) = groups::of(step, self.spec.heads, self.spread, &self.device)?;
        self.step = Taken {
            cosines: self.cosines.index_select(&positions, 0)?,
            sines: self.sines.index_select(&positions, 0)?,
            slots,
            groups,
            order: Tensor::new(order, &self.device)?,
        };
        Ok(())
    }

    fn embed(&mut self, embedding: &Tensor, tokens: &[u32]) -> Result<Tensor> {
        let vocab = embedding.dim(0)?;
        if let Some(token) = tokens.iter().find(|&&t| t as usize >= vocab) {
            bail!("token {token} is beyond the vocabulary of {vocab}");
        }
        embedding.index_select(&Tensor::new(tokens, &self.device)?, 0)
    }

    fn norm(&mut self, x: &Tensor, weight: &Tensor, _: &Tensor) -> Result<Tensor> {
        ops::rms_norm(x, weight, self.spec.norm_epsilon)
    }

    fn linear(&mut self, x: &Tensor, w: &Tensor) -> Result<Tensor> {
        x.matmul(&w.t()?)
    }

    fn attend(
        &mut self,
        layer: usize,
        qkv: Tensor,
        norms: Option<(&Tensor, &Tensor)>,
    ) -> Result<Tensor> {
        let Spec {
            heads,
            kv_heads,
            head_dim,
            ..
        } = self.spec;
        let part = |from: usize, count: usize| {
            qkv.narrow(1, from * head_dim, count * head_dim)?
                .contiguous()
        };
        let queries = self.turned(&part(0, heads)?, heads, norms.map(|n| n.0))?;
        let keys = self.turned(&part(heads, kv_heads)?, kv_heads, norms.map(|n| n.1))?;
        let values = part(heads + kv_heads, kv_heads)?;
        let (keys, values) = sound(keys, values, (kv_heads, head_dim))?;
        let (cached_keys, cached_values) = &self.cache[layer];
        cached_keys.scatter_set(&self.step.slots, &keys, 0)?;
        cached_values.scatter_set(&self.step.slots, &values, 0)?;
        let groups = &self.step.groups;
        let attended = groups
            .iter()
            .map(|group| self.attention(group, &queries, layer))
            .collect::<Result<Vec<_>>>()?;
        Tensor::cat(&attended, 0)?.index_select(&self.step.order, 0)
    }

    fn gate(&mut self, gate_up: Tensor, _: &Tensor) -> Result<Tensor> {
        let width = gate_up.dim(D::Minus1)? / 2;
        let gate = gate_up.narrow(1, 0, width)?.contiguous()?;
        let up = gate_up.narrow(1, width, width)?.contiguous()?;
        ops::silu(&gate)? * up
    }

    fn add(&mut self, x: &mut Tensor, y: &Tensor) -> Result<()> {
        *x = (&*x + y)?;
        Ok(())
    }

    fn select(&mut self, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
        x.index_select(&Tensor::new(groups::ids(rows)?, &self.device)?, 0)
    }

    fn likeliest(&mut self, logits: &Tensor) -> Result<Vec<u32>> {
        let logits = logits.to_dtype(DType::F32)?;
        let highest = logits.max_keepdim(D::Minus1)?;
        let tokens = self.ranked(&logits, &highest)?;
        let tokens = tokens.argmax(D::Minus1)?.to_vec1::<u32>()?;
        let highest = highest.flatten_all()?.to_vec1::<f32>()?;
        let sound = |(token, highest): (u32, f32)| {
            if highest.is_finite() { token } else { NOTHING }
        };
        Ok(tokens.into_iter().zip(highest).map(sound).collect())
    }

    fn logits(&mut self, logits: &Tensor, row: usize) -> Result<Vec<f32>> {
        logits.get(row)?.to_dtype(DType::F32)?.to_vec1::<f32>()
    }

    fn copy_block(&mut self, from: u32, to: u32) -> Result<()> {
        for (keys, values) in &self.cache {
            for cached in [keys, values] {
                let block = cached
                    .narrow(0, from as usize * BLOCK, BLOCK)?
                    .force_contiguous()?;
                cached.slice_set(&block, 0, to as usize * BLOCK)?;
            }
        }
        Ok(())
    }
}
