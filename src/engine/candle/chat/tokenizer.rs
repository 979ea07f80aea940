//! Makes tokenizers out of somebody else's `tokenizer.json`, and has them work where a panic ends nothing.
//!
//! The library panics on some files while it reads them and on others at the first text, and some of its parts make a text longer
//! without bound. So only the parts that byte-pair tokenizers of language models are made of are let through.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::Value;
use tokenizers::Tokenizer;

/// The parts that are let through, by what they are parts of.
const KNOWN: [(&str, &[&str]); 3] = [
    (
        "normalizer",
        &["NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace"],
    ),
    (
        "pre_tokenizer",
        &["ByteLevel", "Digits", "Metaspace", "Split"],
    ),
    (
        "decoder",
        &[
            "ByteFallback",
            "ByteLevel",
            "Fuse",
            "Metaspace",
            "Replace",
            "Strip",
        ],
    ),
];
/// Parts in a sequence. A replacement that matches nothing between two letters doubles a text at most, so eight make 256 of one.
const MOST: usize = 8;
/// Letters that a step may put before a text: all known put one.
const MOST_PREPENDED: usize = 8;

/// What the library made of it, or what it said.
///
/// # Errors
/// What the work said, or that it panicked: a panic's own message may have the text in it, and goes to standard error alone.
pub(super) fn guarded<T, E: ToString>(work: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    // A tokenizer has a cache behind a lock, which it does without when the lock is poisoned, and nothing else that changes.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("the tokenizers library panics on it".to_owned()),
    }
}

/// The tokenizer of a file that [`check`] has let through.
pub(super) fn made(whole: &Value) -> Result<Tokenizer, String> {
    let bytes = serde_json::to_vec(whole).map_err(|e| e.to_string())?;
    guarded(|| Tokenizer::from_bytes(bytes))
}

/// Lets known parts through, and makes them give the same tokens every time.
///
/// # Errors
/// The part that is not supported.
pub(super) fn check(whole: &mut Value) -> Result<(), String> {
    let model = &mut whole["model"];
    let kind = &model["type"];
    if kind != "BPE" {
        return Err(format!(
            "a tokenizer of type {kind} is not supported: BPE is"
        ));
    }
    for affix in ["continuing_subword_prefix", "end_of_word_suffix"] {
        // Qwen's are there and empty.
        if !model[affix].is_null() && model[affix] != "" {
            return Err(format!(
                "its {affix} {} is not supported: none is",
                model[affix]
            ));
        }
        model[affix] = Value::Null;
    }
    // Merges left out at random are for training.
    model["dropout"] = Value::Null;
    // The template writes all markers; a post-processor would add another beginning. Nothing is cut off and nothing filled up.
    for part in ["post_processor", "truncation", "padding"] {
        whole[part] = Value::Null;
    }
    for (part, known) in KNOWN {
        let mut count = 0;
        steps(part, known, &whole[part], &mut count)?;
        if count > MOST {
            return Err(format!(
                "its {part} has {count} steps: {MOST} are supported"
            ));
        }
    }
    Ok(())
}

/// The part itself, or each of a sequence. JSON nests no deeper than its reader lets it.
fn steps(part: &str, known: &[&str], step: &Value, count: &mut usize) -> Result<(), String> {
    if step.is_null() {
        return Ok(());
    }
    let kind = step["type"].as_str().unwrap_or_default();
    if kind == "Sequence" {
        let all = ["normalizers", "pretokenizers", "decoders"];
        let all = all.iter().find_map(|name| step[name].as_array());
        return all
            .into_iter()
            .flatten()
            .try_for_each(|step| steps(part, known, step, count));
    }
    *count += 1;
    if !known.contains(&kind) {
        return Err(format!(
            "its {part} {kind:?} is not supported: {} are",
            known.join(", ")
        ));
    }
    let letters = |value: &Value| value.as_str().map_or(0, |text| text.chars().count());
    let fault = match kind {
        "Prepend" if letters(&step["prepend"]) > MOST_PREPENDED => "prepends too much",
        // From one letter no two come, and nothing is put in where nothing was.
        "Replace" if letters(&step["content"]) > letters(&step["pattern"]["String"]).max(1) => {
            "makes a text longer"
        }
        "Replace" if step["pattern"]["String"] == "" => "makes a text longer",
        // The library cuts beyond the beginning of a token that has nothing else.
        "Strip" if step["stop"] != 0 => "cuts off ends",
        _ => return Ok(()),
    };
    Err(format!("its {part} {kind} {fault}, which is not supported"))
}

#[cfg(test)]
mod tests;
