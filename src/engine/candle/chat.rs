//! The model's own chat template and tokenizer. Text from outside can never become one of the template's markers.

use std::sync::Arc;

use minijinja::{Environment, context};
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::engine::Error;

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
pub(super) struct Chat {
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

impl Chat {
    /// From a `tokenizer.json`'s content, a chat template, and what the model's files say of the tokens that end a turn.
    pub(super) fn new(
        tokenizer: &Value,
        template: &str,
        bos: &str,
        stops: &[u32],
    ) -> Result<Self, Fault> {
        let mut tokenizer = tokenizer.clone();
        // The template writes all markers; a post-processor would add another beginning.
        tokenizer["post_processor"] = Value::Null;
        let markers = Tokenizer::from_bytes(serde_json::to_vec(&tokenizer)?)?;
        let added = tokenizer["added_tokens"].take();
        if let Some(vocab) = tokenizer["model"]["vocab"].as_object_mut() {
            for token in added.as_array().into_iter().flatten() {
                if let Some(content) = token["content"].as_str() {
                    vocab.remove(content);
                }
            }
        }
        tokenizer["added_tokens"] = Value::Array(Vec::new());
        let text = Tokenizer::from_bytes(serde_json::to_vec(&tokenizer)?)?;
        let rendered = render(template, bos)?;
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
        let ids = |part: &str| {
            markers
                .encode_fast(part, false)
                .map(|e| e.get_ids().to_vec())
        };
        let around = [ids(before)?, ids(between)?, ids(after)?];
        let mut stops = stops.to_vec();
        stops.extend(ENDS.iter().filter_map(|end| markers.token_to_id(end)));
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

    /// The tokens that end the model's turn.
    pub(super) fn stops(&self) -> &[u32] {
        &self.inner.stops
    }

    /// The prompt. Markers and texts are encoded apart, so what a text holds cannot end its turn or open another.
    pub(super) fn encode(&self, system: &str, user: &str) -> Result<Vec<u32>, Error> {
        let [before, between, after] = &self.inner.around;
        let mut ids = before.clone();
        ids.extend(self.text_ids(system)?);
        ids.extend(between);
        ids.extend(self.text_ids(user)?);
        ids.extend(after);
        Ok(ids)
    }

    fn text_ids(&self, text: &str) -> Result<Vec<u32>, Error> {
        let encoded = self.inner.text.encode_fast(text, false);
        // The error would name the text; byte-pair encoding has none that a text could cause.
        let encoded = encoded.map_err(|_| Error::Broken {
            reason: "the tokenizer failed on a text".to_owned(),
        })?;
        Ok(encoded.get_ids().to_vec())
    }

    pub(super) fn count(&self, text: &str) -> u32 {
        self.text_ids(text)
            .map_or(u32::MAX, |ids| u32::try_from(ids.len()).unwrap_or(u32::MAX))
    }

    #[cfg(test)]
    pub(super) fn inner_for_tests(&self) -> (&Tokenizer, &Tokenizer) {
        (&self.inner.markers, &self.inner.text)
    }

    /// The text of an answer, without markers.
    pub(super) fn decode(&self, ids: &[u32]) -> String {
        self.inner.markers.decode(ids, true).unwrap_or_default()
    }
}

fn render(template: &str, bos: &str) -> Result<String, Fault> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(
                minijinja::ErrorKind::InvalidOperation,
                message,
            ))
        },
    );
    // A date in the prompt would make every day's answers others than the day's before.
    environment.add_function("strftime_now", |_: String| "2026-01-01");
    environment.add_template("chat", template)?;
    let messages = [
        context! { role => "system", content => SYSTEM },
        context! { role => "user", content => USER },
    ];
    Ok(environment.get_template("chat")?.render(context! {
        messages,
        add_generation_prompt => true,
        enable_thinking => false,
        bos_token => bos,
        eos_token => "",
    })?)
}
