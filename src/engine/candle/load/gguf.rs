//! A GGUF file: sizes, weights, tokenizer and template in one.

mod header;
mod tokenizer;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use super::super::broken;
use super::super::chat::{Chat, Parts};
use super::super::spec::{RopeScaling, Spec};
use super::elements::Elements;
use super::folder::beside;
use super::stored::{Place, Stored};
use super::{Loaded, Source, Wanted, json};
use crate::engine::Error;
use header::{Header, Value};

/// Names of tensors: in GGUF, and as Hugging Face has them.
const TOP: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];
const OF_A_LAYER: [(&str, &str); 11] = [
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
];
/// What llama.cpp's converter makes of Llama 3's `rope_scaling`: by how much each frequency is divided.
const ROPE_FREQS: &str = "rope_freqs.weight";
/// Llama 3's own numbers besides the factor, which alone differs between its models.
const LLAMA3: RopeScaling = RopeScaling {
    factor: 1.0,
    low_freq_factor: 1.0,
    high_freq_factor: 4.0,
    original_context: 8192,
};

pub(super) fn load(path: &Path, wanted: &Wanted<'_>) -> Result<Loaded, Error> {
    let file = File::open(path).map_err(broken(path))?;
    if file.metadata().is_ok_and(|meta| meta.is_dir()) {
        return Err(broken(path)("is a folder"));
    }
    read(path, Box::new(file), wanted)
}

/// The model in those bytes; `path` is what errors name.
pub(super) fn read(
    path: &Path,
    source: Box<dyn Source>,
    wanted: &Wanted<'_>,
) -> Result<Loaded, Error> {
    let (spec, mut stored, header) = open(path, source)?;
    let mut files = vec![path.to_owned()];
    let meta = Meta(&header);
    let source = stored.files[0].1.as_mut();
    let (tokenizer, source_of_tokens) = match wanted.tokenizer {
        Some(file) => {
            files.push(file.to_owned());
            (json(file)?, file)
        }
        None => (
            tokenizer::tokenizer(&meta, source, spec.vocab).map_err(broken(path))?,
            path,
        ),
    };
    let (template, bos) = match meta.optional("tokenizer.chat_template") {
        Some(Value::Text(template)) => {
            let bos = tokenizer::named_token(&meta, source, "tokenizer.ggml.bos_token_id");
            (template.clone(), bos.map_err(broken(path))?)
        }
        _ => {
            let speech = wanted.tokenizer.map_or(Ok(None), beside)?;
            let speech = speech.ok_or_else(|| {
                broken(path)("there is no chat template (tokenizer.chat_template)")
            })?;
            files.extend(speech.files);
            (speech.template, speech.bos)
        }
    };
    let stop = |key| meta.whole(key).ok().and_then(|id| u32::try_from(id).ok());
    let stops = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"];
    let chat = Chat::new(Parts {
        tokenizer,
        template,
        bos,
        stops: stops.into_iter().filter_map(stop).collect(),
        vocab: spec.vocab,
        thinking: wanted.thinking,
    });
    Ok(Loaded {
        spec,
        tensors: Box::new(stored),
        chat: chat.map_err(broken(source_of_tokens))?,
        files,
    })
}

/// Reads the header, and checks the tensors against the sizes.
fn open(path: &Path, mut source: Box<dyn Source>) -> Result<(Spec, Stored, Header), Error> {
    let header = header::read(source.as_mut()).map_err(broken(path))?;
    let meta = Meta(&header);
    let mut spec = spec(&meta).map_err(broken(path))?;
    let qwen3 = spec.head_norms;
    let mut places = BTreeMap::new();
    for info in &header.tensors {
        if info.name == ROPE_FREQS {
            let scaling = rope_scaling(&spec, info, source.as_mut());
            spec.rope_scaling =
                scaling.map_err(|e| broken(path)(format!("tensor {}: {e}", info.name)))?;
            continue;
        }
        let name = hub_name(&info.name).ok_or_else(|| {
            broken(path)(format!(
                "tensor {} is not of a llama or qwen3 model",
                info.name
            ))
        })?;
        // llama.cpp's converter lays the rows of these in pairs; it leaves Qwen3's as they are.
        let paired_heads = match info.name.rsplit('.').nth(1) {
            Some("attn_q") if !qwen3 => Some(spec.heads),
            Some("attn_k") if !qwen3 => Some(spec.kv_heads),
            _ => None,
        };
        places.insert(
            name,
            Place {
                file: 0,
                name: info.name.clone(),
                shape: info.shape.clone(),
                elements: info.elements,
                offset: info.offset,
                paired_heads,
            },
        );
    }
    spec.tied = !places.contains_key("lm_head.weight");
    spec.check().map_err(broken(path))?;
    let stored = Stored {
        origin: path.to_owned(),
        files: vec![(path.to_owned(), source)],
        places,
    };
    stored.check(&spec, own_name)?;
    Ok((spec, stored, header))
}

fn spec(meta: &Meta<'_>) -> Result<Spec, String> {
    let architecture = meta.text("general.architecture")?;
    if !matches!(architecture, "llama" | "qwen3") {
        return Err(format!(
            "architecture {architecture} is not supported: llama and qwen3 are"
        ));
    }
    let parts = meta.whole("split.count").unwrap_or(1);
    if parts > 1 {
        return Err(format!(
            "is one of {parts} parts: put them together first (llama-gguf-split --merge)"
        ));
    }
    let key = |name: &str| format!("{architecture}.{name}");
    let whole = |name: &str| meta.whole(&key(name));
    let size_or = |name: &str, default: usize| match meta.optional(&key(name)) {
        Some(_) => whole(name),
        None => Ok(default),
    };
    for unsupported in ["expert_count", "attention.sliding_window"] {
        if size_or(unsupported, 0)? > 0 {
            return Err(format!("{} is not supported", key(unsupported)));
        }
    }
    let scaling = key("rope.scaling.type");
    if let Some(kind) = meta.optional(&scaling)
        && *kind != Value::Text("none".to_owned())
    {
        return Err(format!(
            "{scaling} {} is not supported: none, or Llama 3's in {ROPE_FREQS}, is",
            match kind {
                Value::Text(text) => text.as_str(),
                _ => "of another type",
            }
        ));
    }
    let heads = whole("attention.head_count")?;
    let hidden = whole("embedding_length")?;
    let head_dim = size_or(
        "attention.key_length",
        hidden.checked_div(heads).unwrap_or(0),
    )?;
    for same in ["attention.value_length", "rope.dimension_count"] {
        let width = size_or(same, head_dim)?;
        if width != head_dim {
            return Err(format!(
                "{} {width} is not supported: it must be the head width {head_dim}",
                key(same)
            ));
        }
    }
    // The metadata need not say it.
    let embedding = meta.0.tensors.iter().find(|info| info.name == TOP[0].0);
    let vocab = embedding
        .map(|info| info.shape[0])
        .ok_or_else(|| format!("tensor {} is missing", TOP[0].0))?;
    #[allow(clippy::cast_possible_truncation)]
    let spec = Spec {
        layers: whole("block_count")?,
        hidden,
        intermediate: whole("feed_forward_length")?,
        vocab,
        heads,
        kv_heads: size_or("attention.head_count_kv", heads)?,
        head_dim,
        context: whole("context_length")?,
        norm_epsilon: meta.number(&key("attention.layer_norm_rms_epsilon"))? as f32,
        rope_theta: match meta.optional(&key("rope.freq_base")) {
            Some(_) => meta.number(&key("rope.freq_base"))?,
            None => 10_000.0,
        },
        rope_scaling: None,
        head_norms: architecture == "qwen3",
        tied: false,
    };
    spec.check()?;
    Ok(spec)
}

/// The scaling that has these divisors. Llama 3's models differ in the factor alone, so they tell which it is.
fn rope_scaling(
    spec: &Spec,
    info: &header::Info,
    source: &mut dyn Source,
) -> Result<Option<RopeScaling>, String> {
    let half = spec.head_dim / 2;
    if info.shape != [half] || info.elements != Elements::F32 {
        return Err(format!(
            "it has the shape {:?}, but [{half}] in F32 is wanted",
            info.shape
        ));
    }
    let found = info.elements.read(source, info.offset, half)?;
    let scaling = RopeScaling {
        factor: found.iter().copied().fold(1.0, f32::max),
        ..LLAMA3
    };
    let wanted = scaling.divisors(spec.rope_theta, spec.head_dim);
    let same = wanted.iter().zip(&found).all(|(wanted, found)| {
        let found = f64::from(*found);
        (wanted - found).abs() <= 1e-3 * wanted
    });
    if !same {
        return Err(
            "the frequencies are not scaled as Llama 3's are: other scalings are not supported"
                .to_owned(),
        );
    }
    Ok((scaling.factor > 1.0).then_some(scaling))
}

/// A tensor's name as Hugging Face has it; `None`: unknown.
fn hub_name(name: &str) -> Option<String> {
    if let Some((_, hub)) = TOP.iter().find(|(own, _)| *own == name) {
        return Some((*hub).to_owned());
    }
    let (number, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: u32 = number.parse().ok()?;
    // "+1" and "01" are numbers too, but no names.
    (layer.to_string() == number).then_some(())?;
    let part = part.strip_suffix(".weight")?;
    let (_, hub) = OF_A_LAYER.iter().find(|(own, _)| *own == part)?;
    Some(format!("model.layers.{layer}.{hub}.weight"))
}

/// The other way round.
fn own_name(hub: &str) -> String {
    if let Some((own, _)) = TOP.iter().find(|(_, name)| *name == hub) {
        return (*own).to_owned();
    }
    let own = || {
        let (layer, part) = hub.strip_prefix("model.layers.")?.split_once('.')?;
        let part = part.strip_suffix(".weight")?;
        let (own, _) = OF_A_LAYER.iter().find(|(_, name)| *name == part)?;
        Some(format!("blk.{layer}.{own}.weight"))
    };
    own().unwrap_or_else(|| hub.to_owned())
}

/// The metadata by its keys.
struct Meta<'a>(&'a Header);

impl<'a> Meta<'a> {
    fn optional(&self, key: &str) -> Option<&'a Value> {
        self.0.metadata.get(key)
    }

    fn get(&self, key: &str) -> Result<&'a Value, String> {
        self.optional(key)
            .ok_or_else(|| format!("metadata {key} is missing"))
    }

    fn text(&self, key: &str) -> Result<&'a str, String> {
        match self.get(key)? {
            Value::Text(text) => Ok(text),
            _ => Err(format!("metadata {key} is no text")),
        }
    }

    fn whole(&self, key: &str) -> Result<usize, String> {
        let number = match self.get(key)? {
            Value::Whole(n) => usize::try_from(*n).ok(),
            _ => None,
        };
        number.ok_or_else(|| format!("metadata {key} is no whole number that can be"))
    }

    fn number(&self, key: &str) -> Result<f64, String> {
        match self.get(key)? {
            Value::Number(x) => Ok(*x),
            _ => Err(format!("metadata {key} is no number")),
        }
    }
}
