//! The architecture, by its sizes: Llama, Llama 3, SmolLM2 and Qwen3 are the same code with other values.

/// The sizes of a decoder-only transformer of the Llama family.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Spec {
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the gated MLP.
    pub intermediate: usize,
    /// Tokens that there are.
    pub vocab: usize,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Most positions that the model was made for.
    pub context: usize,
    /// Added to the mean square under the root of an RMS norm.
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

/// How Llama 3.1 and later stretch the rotary frequencies beyond the context that they were first trained with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RopeScaling {
    /// Low frequencies are divided by it.
    pub factor: f32,
    /// Frequencies with fewer turns in the original context than this are low.
    pub low_freq_factor: f32,
    /// Frequencies with more turns than this stay as they are; between the two they are blended.
    pub high_freq_factor: f32,
    /// The context of the first training.
    pub original_context: usize,
}

impl Spec {
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
            let turns = scaling.original_context as f64 * frequency / (2.0 * std::f64::consts::PI);
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

    /// Width of queries, keys and values together.
    pub(crate) fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
}
