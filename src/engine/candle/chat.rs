//! The model's own chat template and tokenizer. Text from outside can never become one of the template's markers.

mod template;
mod tokenizer;

use std::sync::Arc;

use serde_json::Value;
use tokenizers::Tokenizer;

use crate::engine::Error;
use template::Given;

/// Stand for the texts while the template is rendered, so that markers and texts are told apart in what comes out.
const SYSTEM: &str = "\u{e000}s\u{e000}";
const USER: &str = "\u{e000}u\u{e000}";
/// Tokens that end a turn, where a model has them, besides those that its files name.
const ENDS: [&str; 4] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end_of_text|>",
];

type Fault = Box<dyn std::error::Error + Send + Sync>;

/// Template and tokenizer of a model.
#[derive(Clone)]
pub(crate) struct Chat {
    inner: Arc<Inner>,
}

struct Inner {
    /// Knows the markers.
    markers: Tokenizer,
    /// Does not know them: `<|im_end|>` in a text is so many letters and signs.
    text: Tokenizer,
    /// The rendered template: before the system text, between the two texts, behind the user text.
    around: [Vec<u32>; 3],
    stops: Vec<u32>,
}

/// What a model's files say of how it is spoken to.
pub(crate) struct Parts {
    /// The content of a `tokenizer.json`.
    pub(crate) tokenizer: Value,
    /// The chat template, in Jinja.
    pub(crate) template: String,
    /// The text of the token that begins every prompt; empty: none.
    pub(crate) bos: String,
    /// Tokens that end the model's turn, as far as its files name them.
    pub(crate) stops: Vec<u32>,
    /// Rows of the embedding: no token may be beyond.
    pub(crate) vocab: usize,
    /// Whether the model may reason before it answers, where the template leaves the choice (`enable_thinking`).
    pub(crate) thinking: bool,
}

impl Chat {
    /// Makes the tokenizers and renders the template once.
    ///
    /// # Errors
    /// What in the tokenizer or the template is not supported.
    pub(crate) fn new(parts: Parts) -> Result<Self, Fault> {
        let Parts {
            mut tokenizer,
            template,
            bos,
            stops,
            vocab: rows,
            thinking,
        } = parts;
        if !tokenizer.is_object() {
            return Err("is no JSON object".into());
        }
        tokenizer::check(&mut tokenizer)?;
        let markers = tokenizer::made(&tokenizer)?;
        let added = tokenizer["added_tokens"].take();
        let vocab = tokenizer["model"]["vocab"]
            .as_object_mut()
            .ok_or("the vocabulary of the tokenizer is no object")?;
        for token in added.as_array().into_iter().flatten() {
            if let Some(content) = token["content"].as_str() {
                vocab.remove(content);
            }
        }
        let beyond = |id: u64| id >= rows as u64;
        if let Some((token, id)) = vocab.iter().find(|(_, id)| id.as_u64().is_none_or(beyond)) {
            return Err(format!(
                "token {token:?} has the number {id}, but the model's vocabulary is {rows}: the tokenizer is another model's"
            )
            .into());
        }
        tokenizer["added_tokens"] = Value::Array(Vec::new());
        let text = tokenizer::made(&tokenizer)?;
        // The template around texts that stand for the real ones.
        let given = Given {
            messages: &[("system", SYSTEM), ("user", USER)],
            bos: &bos,
            thinking,
        };
        let rendered = template::render(&template, &given)?;
        let (before, rest) = rendered
            .split_once(SYSTEM)
            .ok_or("the chat template leaves the system message out")?;
        let (between, after) = rest
            .split_once(USER)
            .ok_or("the chat template leaves the user message out")?;
        if [before, between, after]
            .iter()
            .any(|part| part.contains('\u{e000}'))
        {
            return Err("the chat template repeats a message".into());
        }
        let ids = |part: &str| ids(&markers, part);
        let around = [ids(before)?, ids(between)?, ids(after)?];
        if let Some(id) = around.iter().flatten().find(|id| beyond(u64::from(**id))) {
            return Err(format!(
                "the chat template has token {id}, but the model's vocabulary is {rows}: the tokenizer is another model's"
            )
            .into());
        }
        let mut stops = stops;
        stops.extend(ENDS.iter().filter_map(|end| markers.token_to_id(end)));
        stops.retain(|id| !beyond(u64::from(*id)));
        stops.sort_unstable();
        stops.dedup();
        if stops.is_empty() {
            return Err("no token is known that ends the model's turn".into());
        }
        Ok(Self {
            inner: Arc::new(Inner {
                markers,
                text,
                around,
                stops,
            }),
        })
    }

    /// The tokens that end the model's turn, ascending.
    pub(crate) fn stops(&self) -> &[u32] {
        &self.inner.stops
    }

    /// The prompt. Markers and texts are encoded apart, so what a text holds cannot end its turn or open another.
    pub(crate) fn encode(&self, system: &str, user: &str) -> Result<Vec<u32>, Error> {
        let [before, between, after] = &self.inner.around;
        let mut ids = before.clone();
        ids.extend(self.text_ids(system)?);
        ids.extend(between);
        ids.extend(self.text_ids(user)?);
        ids.extend(after);
        Ok(ids)
    }

    pub(crate) fn text_ids(&self, text: &str) -> Result<Vec<u32>, Error> {
        ids(&self.inner.text, text).map_err(failed)
    }

    /// Tokens of a text alone.
    pub(crate) fn count(&self, text: &str) -> u32 {
        self.text_ids(text)
            .map_or(u32::MAX, |ids| u32::try_from(ids.len()).unwrap_or(u32::MAX))
    }

    /// The tokenizer that knows the markers, and the one that does not.
    #[cfg(test)]
    pub(crate) fn inner_for_tests(&self) -> (&Tokenizer, &Tokenizer) {
        (&self.inner.markers, &self.inner.text)
    }

    /// The text of an answer, without markers.
    pub(crate) fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        tokenizer::guarded(|| self.inner.markers.decode(ids, true)).map_err(failed)
    }
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, String> {
    let encoded = tokenizer::guarded(|| tokenizer.encode_fast(text, false))?;
    Ok(encoded.get_ids().to_vec())
}

/// What went wrong would name the text.
fn failed(_: String) -> Error {
    Error::Broken {
        reason: "the tokenizer failed on a text; its tokenizer.json is at fault, for byte-pair encoding takes every text"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests;
