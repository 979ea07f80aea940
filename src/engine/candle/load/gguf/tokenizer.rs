//! The tokenizer of a GGUF file, as the `tokenizer.json` that it was made from.

use serde_json::{Map, Value as Json, json};

use super::super::Source;
use super::Meta;
use super::header::{Value, integers, texts};

/// Token types of the GGUF specification that stand for markers, not for text.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// A merge names two tokens: there are more of them than tokens in no tokenizer known, but twice as many do no harm.
const MOST_MERGES: u64 = 1 << 23;

/// The tokenizer, for a model whose embedding has `vocab` rows.
///
/// # Errors
/// The key that is missing or wrong, or the kind of tokenizer that is not supported.
pub(super) fn tokenizer(
    meta: &Meta<'_>,
    source: &mut dyn Source,
    vocab: usize,
) -> Result<Json, String> {
    let kind = meta.text("tokenizer.ggml.model")?;
    if kind != "gpt2" {
        return Err(format!(
            "tokenizer.ggml.model {kind} is not supported: byte-pair tokenizers (gpt2) are; name the model's tokenizer.json in engine.tokenizer"
        ));
    }
    let pre = meta.text("tokenizer.ggml.pre")?;
    let Pre {
        steps,
        normalizer,
        whole_words,
    } = Pre::named(pre).ok_or_else(|| {
        format!("tokenizer.ggml.pre {pre} is not supported: smollm, qwen2 and llama-bpe are; name the model's tokenizer.json in engine.tokenizer")
    })?;
    let mut list = |key: &str, most: u64| -> Result<Vec<String>, String> {
        texts(source, meta.get(key)?, most).map_err(|e| format!("{key}: {e}"))
    };
    let tokens = list("tokenizer.ggml.tokens", vocab as u64)?;
    let merges = list("tokenizer.ggml.merges", MOST_MERGES)?;
    let types_key = "tokenizer.ggml.token_type";
    let types = integers(source, meta.get(types_key)?, vocab as u64)
        .map_err(|e| format!("{types_key}: {e}"))?;
    if types.len() != tokens.len() {
        return Err(format!(
            "{types_key} has {} elements, but there are {} tokens",
            types.len(),
            tokens.len()
        ));
    }
    let (mut vocabulary, mut added) = (Map::new(), Vec::new());
    for (id, (text, kind)) in tokens.iter().zip(types).enumerate() {
        if matches!(kind, CONTROL | USER_DEFINED) {
            added.push(json!({"id": id, "content": text, "special": kind == CONTROL, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}));
        }
        vocabulary.insert(text.clone(), id.into());
    }
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": false, "byte_fallback": false, "ignore_merges": whole_words, "vocab": vocabulary, "merges": merges},
    }))
}

/// How a text is cut before bytes are paired; GGUF names it only.
struct Pre {
    steps: Vec<Json>,
    normalizer: Json,
    /// Whether a word that is a token stays whole, whatever the merges say.
    whole_words: bool,
}

impl Pre {
    fn named(name: &str) -> Option<Self> {
        let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
        let split = |digits: &str| {
            let pattern = format!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            );
            json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
        };
        Some(match name {
            "smollm" => Self {
                steps: vec![
                    json!({"type": "Digits", "individual_digits": true}),
                    byte_level(true),
                ],
                normalizer: Json::Null,
                whole_words: false,
            },
            "qwen2" => Self {
                steps: vec![split(r"\p{N}"), byte_level(false)],
                normalizer: json!({"type": "NFC"}),
                whole_words: false,
            },
            "llama-bpe" => Self {
                steps: vec![split(r"\p{N}{1,3}"), byte_level(false)],
                normalizer: Json::Null,
                whole_words: true,
            },
            _ => return None,
        })
    }
}

/// The text of the token that a key names by its number; empty where it names none.
pub(super) fn named_token(
    meta: &Meta<'_>,
    source: &mut dyn Source,
    key: &str,
) -> Result<String, String> {
    let Some(Value::Whole(id)) = meta.optional(key) else {
        return Ok(String::new());
    };
    let list = meta.get("tokenizer.ggml.tokens")?;
    let tokens = texts(source, list, 1 << 22)?;
    let token = usize::try_from(*id).ok().and_then(|id| tokens.get(id));
    token
        .cloned()
        .ok_or_else(|| format!("{key} is {id}, but there are {} tokens", tokens.len()))
}
